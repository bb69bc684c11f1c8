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
//! clock    random
//! ```
//!
//! Three sentences to keep true: `route` and `smtp` never wait. Nothing below `relay` knows what comes next.
//! Foreign types stay in the module that owns them.

// What runs in a simulated world draws on nothing but its seed: `clippy.toml` lists what is forbidden there, and what to
// use instead. The other modules talk to people, sockets and real files, and run in no such world.
#[cfg_attr(not(test), deny(clippy::disallowed_methods, clippy::disallowed_types))]
pub mod accept;
pub mod admin;
pub mod cli;
#[cfg_attr(not(test), deny(clippy::disallowed_methods, clippy::disallowed_types))]
pub mod clock;
pub mod config;
pub mod daemon;
#[cfg_attr(not(test), deny(clippy::disallowed_methods, clippy::disallowed_types))]
pub mod deliver;
pub mod demo;
pub mod directory;
pub mod dns;
#[cfg_attr(not(test), deny(clippy::disallowed_methods, clippy::disallowed_types))]
pub mod message;
#[cfg_attr(not(test), deny(clippy::disallowed_methods, clippy::disallowed_types))]
pub mod outcome;
pub mod probe;
// The one place that draws from the system.
mod random;
#[cfg_attr(not(test), deny(clippy::disallowed_methods, clippy::disallowed_types))]
pub mod relay;
#[cfg_attr(not(test), deny(clippy::disallowed_methods, clippy::disallowed_types))]
pub mod route;
#[cfg(test)]
mod simulation;
#[cfg_attr(not(test), deny(clippy::disallowed_methods, clippy::disallowed_types))]
pub mod smtp;
#[cfg_attr(not(test), deny(clippy::disallowed_methods, clippy::disallowed_types))]
pub mod spool;
pub mod tls;
