//! TLS: the only module that names rustls.
//!
//! A [`Demand`] says what one host must prove; [`Connector::connect`] shakes hands and judges, and there are two
//! outcomes and no third: a [`Proof`], or [`Unmet`] with what was seen instead. On the accepting side the handshake
//! never fails for a client's certificate, however old or weak; [`ClientCertificate::judge`] decides what it is worth,
//! and a [`Demand`] what a server's is. A session that is
//! resumed keeps the certificate of the other side, and it is judged again each time, against the present roots.
//!
//! Standards: RFC 8446, 5246 (TLS 1.3, 1.2), 3207 (STARTTLS), 6125 (names), 5280 (chains).

pub mod authority;
pub mod demand;
pub mod handshake;
mod hello;
pub mod names;
mod possession;
pub mod store;
pub mod stream;
pub mod verify;
#[cfg(test)]
pub(crate) mod wire;

pub use authority::Authority;
pub use demand::{Demand, Proof, Seen, Unmet};
pub use handshake::{Accepted, Acceptor, Connector, HandshakeError, in_words, install_provider};
pub use names::Names;
pub use store::{Expiry, Finding, Identity, Roots};
pub use stream::Stream;
pub use verify::ClientCertificate;
