//! Idle connections, limits per host, rates.
