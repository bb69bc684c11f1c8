//! More than the relay can take, and more than fits into memory: what is measured here wants the machine's descriptors for
//! itself.

#![allow(clippy::unwrap_used)] // what goes wrong here fails the test

#[path = "../common/mod.rs"]
mod common;

mod deep_queue;
mod overload;
