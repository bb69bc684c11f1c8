//! TLS: the only module that names rustls.
//!
//! A [`Demand`] says what one host must prove; [`connect`] shakes hands and judges, and there are two outcomes
//! and no third: a [`Proof`], or [`Unmet`] with what was seen instead. On the accepting side the handshake never
//! fails for a client's certificate; [`ClientCertificate::judge`] decides what it is worth.
//!
//! Standards: RFC 8446, 5246 (TLS 1.3, 1.2), 3207 (STARTTLS), 6125 (names), 5280 (chains).

pub mod demand;
pub mod names;
pub mod store;
pub mod verify;

pub use demand::{Demand, Proof, Unmet};
pub use names::Names;
pub use store::{Identity, Roots};
