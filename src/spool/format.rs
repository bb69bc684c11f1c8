//! A record as bytes: version, kind, length, checksum, payload.
