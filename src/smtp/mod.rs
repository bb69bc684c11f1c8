//! SMTP as rules: bytes, answers and times go in, steps and replies come out. No I/O in this folder.

pub mod auth;
pub mod client;
pub mod command;
pub mod extension;
pub mod framing;
pub mod reply;
pub mod server;

pub use reply::{Reply, Status};
