//! The hybrid matrix as one match: it reads like the table of interface section 5.
