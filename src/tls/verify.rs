//! Demands as certificate verifiers: the only file that may let a certificate pass that does not chain, and only
//! for a demand that says so. The signature of the handshake is checked for all.
