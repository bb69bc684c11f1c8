//! Chains, keys and roots as they were read from files; replaced whole when the files change.

use std::path::PathBuf;
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
