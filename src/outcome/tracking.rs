//! Tracking events: one JSON object a line, a file per day (interface section 10).
