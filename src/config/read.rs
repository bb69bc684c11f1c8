//! Keys with line and column; those that nobody took are unknown.
