//! The words everything else is made of: addresses, envelopes, header fields and bodies.
//!
//! Nothing here does I/O but `body`, which reads bytes that may lie on disk.

pub mod address;
pub mod body;
pub mod downgrade;
pub mod envelope;
pub mod firewall;
pub mod header;
pub mod received;
pub mod visit;

pub use address::{Address, Domain};
pub use body::Body;
pub use envelope::{BodyType, Envelope, MessageId, Notify, OriginalRecipient, Recipient, Ret};
pub use firewall::OrganizationHeaders;
