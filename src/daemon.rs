//! Puts the parts together: signals, reload, its user, a graceful end.
