//! Causeway: an SMTP relay for organizations whose mailboxes are partly on-premises and partly in the cloud.
//!
//! The modules are the road a message takes. Imports point downwards only; modules on one line do not know
//! each other:
//!
//! ```text
//! main
//! cli
//! demo
//! daemon
//! accept   admin
//! relay    probe
//! deliver
//! spool
//! outcome
//! route
//! directory
//! config
//! smtp     tls
//! dns
//! message
//! clock
//! ```
//!
//! Three sentences to keep true: `route` and `smtp` never wait. Nothing below `relay` knows what comes next.
//! Foreign types stay in the module that owns them.

pub mod accept;
pub mod admin;
pub mod cli;
pub mod clock;
pub mod config;
pub mod daemon;
pub mod deliver;
pub mod demo;
pub mod directory;
pub mod dns;
pub mod message;
pub mod outcome;
pub mod probe;
pub mod relay;
pub mod route;
#[cfg(test)]
mod simulation;
pub mod smtp;
pub mod spool;
pub mod tls;
