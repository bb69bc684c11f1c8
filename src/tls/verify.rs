//! Demands as certificate verifiers: the only file that may let a certificate pass that does not chain, and only
//! for a demand that says so. The signature of the handshake is checked for all.

use jiff::Timestamp;

use super::{Names, Proof, Roots, Seen, Unmet};

/// What a client presented. It proved that it holds the key; nothing else is decided yet.
#[derive(Debug, Clone)]
pub struct ClientCertificate {
    seen: Seen,
}

impl ClientCertificate {
    /// What the certificate is worth to a connector with these roots and names.
    ///
    /// # Errors
    /// Which clause failed.
    pub fn judge(&self, roots: &Roots, names: &Names, now: Timestamp) -> Result<Proof, Unmet> {
        let _ = (&self.seen, roots, names, now);
        todo!()
    }

    /// The certificate in a few words, for the log.
    pub fn description(&self) -> String {
        todo!()
    }
}
