//! A certificate authority made on the spot, for the demo and the tests.

/// An authority with its key in memory.
pub struct Authority {}

impl Authority {
    /// A new authority of this name.
    pub fn new(name: &str) -> Self {
        let _ = name;
        todo!()
    }

    /// The authority's own certificate: what a `ca_file` would hold.
    pub fn pem(&self) -> String {
        todo!()
    }

    /// The roots that hold this authority alone.
    pub fn roots(&self) -> super::Roots {
        todo!()
    }

    /// A certificate for these DNS names with its chain, and its key, both PEM.
    pub fn issue(&self, names: &[&str]) -> (String, String) {
        let _ = names;
        todo!()
    }

    /// The same, as it would be read from files.
    pub fn identity(&self, names: &[&str]) -> super::Identity {
        let _ = names;
        todo!()
    }
}
