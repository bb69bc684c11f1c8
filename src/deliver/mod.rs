//! One attempt for one copy, host by host.
//!
//! Not here: which copy is tried when (`relay::schedule`), and what follows (`outcome`, `relay::settle`).

pub mod connect;
pub mod drive;
pub mod hosts;
pub mod pool;
