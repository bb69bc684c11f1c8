//! What follows from an attempt: done, again at a time, or failed; the event, and the report to the sender.

pub mod report;
pub mod setback;
pub mod tracking;

pub use setback::Setback;
