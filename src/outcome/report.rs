//! Reports to senders: failure, delay, success (RFC 3461 to 3464, 6533).
