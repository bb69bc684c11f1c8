//! Records as our own types.
