//! A million recipients, compactly.
