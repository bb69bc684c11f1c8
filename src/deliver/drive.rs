//! Socket <-> smtp::client.
