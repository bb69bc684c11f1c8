//! Commands and their parameters: one line in, one checked value out.
