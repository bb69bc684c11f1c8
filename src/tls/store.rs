//! Chains, keys and roots as they were read from files; replaced whole when the files change.

use std::path::{Path, PathBuf};
use std::sync::Arc;

/// A certificate chain and the key that belongs to it, seen to fit together.
#[derive(Clone)]
pub struct Identity {
    /// Where the chain was read.
    pub certificate: Arc<PathBuf>,
    // chain, key: the owner of this module adds them
}

/// Certificates that a chain may end in.
#[derive(Clone)]
pub struct Roots {
    /// Where they came from: a file, or "the system's roots".
    pub origin: Arc<str>,
}

/// Something about a chain that its owner should know.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// Nobody will accept the chain as it is; otherwise a warning.
    pub error: bool,
    /// In words.
    pub text: String,
}

impl Identity {
    /// Reads a PEM chain, its own certificate first, and the PEM key that belongs to it.
    ///
    /// # Errors
    /// What is wrong with which file.
    pub fn load(certificate: &Path, key: &Path) -> Result<Self, String> {
        let _ = (certificate, key);
        todo!()
    }

    /// The same from text.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn from_pem(certificate: &str, key: &str) -> Result<Self, String> {
        let _ = (certificate, key);
        todo!()
    }

    /// When the certificate's time is over.
    pub fn expiry(&self) -> jiff::Timestamp {
        todo!()
    }

    /// The names that the certificate carries.
    pub fn names(&self) -> Vec<String> {
        todo!()
    }

    /// What its owner should know about the chain: out of time, soon out of time, incomplete.
    pub fn chain_findings(&self, now: jiff::Timestamp) -> Vec<Finding> {
        let _ = now;
        todo!()
    }
}

impl Roots {
    /// Reads the certificates of a PEM file.
    ///
    /// # Errors
    /// What is wrong with it; a file without certificates too.
    pub fn load(file: &Path) -> Result<Self, String> {
        let _ = file;
        todo!()
    }

    /// The roots that the system trusts.
    ///
    /// # Errors
    /// If there are none.
    pub fn system() -> Result<Self, String> {
        todo!()
    }

    /// The certificates in PEM text; `origin` says where they came from.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn from_pem(pem: &str, origin: &str) -> Result<Self, String> {
        let _ = (pem, origin);
        todo!()
    }

    /// These certificates; `origin` says where they came from.
    ///
    /// # Errors
    /// What is wrong with them.
    pub fn from_der(certificates: &[Vec<u8>], origin: &str) -> Result<Self, String> {
        let _ = (certificates, origin);
        todo!()
    }
}

impl std::fmt::Debug for Identity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Identity({})", self.certificate.display())
    }
}

impl std::fmt::Debug for Roots {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Roots({})", self.origin)
    }
}
