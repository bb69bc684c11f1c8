//! Listeners, connection limits, sessions.
