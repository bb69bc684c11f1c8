//! The product as people meet it: its commands, its configuration, its wire, beside real peers.
//!
//! One binary, because each that links the crate costs seconds. What has one of its own has a reason: `load` measures and wants
//! the machine's descriptors for itself, `console` needs a browser, `crash` and `power` are run by scripts many times over,
//! `otlp` needs a feature. `cargo test --test it dialogues::` runs one module.

#![allow(clippy::unwrap_used)] // what goes wrong here fails the test

#[path = "../common/mod.rs"]
mod common;
#[path = "../targets/mod.rs"]
mod targets;

mod admin;
mod certificates;
mod check;
mod clients;
mod config;
mod corpus;
mod daemon;
mod dialogues;
mod directory;
mod exim;
mod explain;
mod faults;
mod hops;
mod hybrid;
mod init;
mod listen;
mod manager;
mod odd_certificates;
mod operations;
mod packaging;
mod pairs;
mod postfix;
mod privileges;
mod scenarios;
mod seven_bit;
mod spools;
mod swaks;
mod trace;
mod trust;
