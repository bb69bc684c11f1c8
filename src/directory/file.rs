//! The CSV of interface section 4 and its faulty lines. The only file that names csv-core.
