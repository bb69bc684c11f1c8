//! The spool: what was acknowledged survives kill -9 and power loss.
//!
//! An append-only log of records in preallocated segment files, an index in memory, and nothing else. One
//! committer thread writes what waits with one vectored write and one `fdatasync`, then wakes those it covers.
//!
//! Not here: when a 250 may be given (`relay::acknowledge`), when an attempt is due (`relay::schedule`).

use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;
use jiff::Timestamp;

use crate::message::{Body, Envelope, MessageId};
use crate::route::HopCopy;

pub mod disk;
pub mod format;
pub mod recover;

/// A message as the spool keeps it. Shared, never changed; what was settled since stands in the index.
#[derive(Debug)]
pub struct Message {
    /// Its number.
    pub id: MessageId,
    /// When it was accepted, wall clock.
    pub accepted: Timestamp,
    /// Sender and parameters; `recipients` is empty, they stand in `copies`.
    pub envelope: Envelope,
    /// The receive connector it came by; empty for reports the relay wrote.
    pub connector: Box<str>,
    /// The `Message-ID` field, for tracking.
    pub message_id: Option<Box<str>>,
    /// Fields put in front of the content: our `Received:`.
    pub prefix: Bytes,
    /// What came.
    pub content: Body,
    /// The plan: one copy per next hop.
    pub copies: Vec<HopCopy>,
}

/// A message about to be put: as [`Message`], its content in a [`Draft`].
#[derive(Debug)]
pub struct NewMessage {
    /// From [`Spool::next_id`].
    pub id: MessageId,
    /// See [`Message`].
    pub accepted: Timestamp,
    /// See [`Message`].
    pub envelope: Envelope,
    /// See [`Message`].
    pub connector: Box<str>,
    /// See [`Message`].
    pub message_id: Option<Box<str>>,
    /// See [`Message`].
    pub prefix: Bytes,
    /// The content.
    pub content: Draft,
    /// See [`Message`].
    pub copies: Vec<HopCopy>,
    /// What this message settles by existing: a failure report and the failure it reports become durable in one
    /// record, so a crash can neither lose the report nor write it twice.
    pub settles: Vec<Settlement>,
}

/// One recipient of one copy is done with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Settlement {
    /// The message.
    pub id: MessageId,
    /// Index into its copies.
    pub copy: u16,
    /// Index into the copy's recipients.
    pub recipient: u16,
    /// How it ended.
    pub end: End,
}

/// How a recipient ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// Its next hop took it.
    Delivered,
    /// It never will be.
    Failed,
}

/// One copy is tried again later.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Deferral {
    /// The message.
    pub id: MessageId,
    /// Index into its copies.
    pub copy: u16,
    /// When, wall clock.
    pub until: Timestamp,
    /// How many attempts were made.
    pub attempts: u16,
    /// The sender was warned of the delay.
    pub warned: bool,
}

/// Proof that a message is on stable storage. Only the committer makes one, only after the sync returned.
#[must_use = "a receipt is what a 250 follows from"]
#[derive(Debug)]
pub struct Receipt {
    /// The message as it is kept.
    pub message: Arc<Message>,
    #[expect(dead_code, reason = "keeps others from building a receipt")]
    sealed: (),
}

/// Why a message could not be put. New mail gets 452; what was accepted before is not touched.
#[derive(Debug, Clone, thiserror::Error)]
pub enum PutError {
    /// Below `min_free_space`, or no space left on the device.
    #[error("the spool is full: {0}")]
    Full(String),
    /// Writing or syncing failed.
    #[error("the spool cannot be written: {0}")]
    Fault(String),
}

/// What of a copy still waits, as recovery finds it.
#[derive(Debug, Clone)]
pub struct Waiting {
    /// The message.
    pub id: MessageId,
    /// Index into its copies.
    pub copy: u16,
    /// When the next attempt is due; `None`: never tried.
    pub until: Option<Timestamp>,
    /// How many attempts were made.
    pub attempts: u16,
    /// The sender was warned of the delay.
    pub warned: bool,
}

/// How to open a spool.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The folder; made if it is missing.
    pub path: PathBuf,
    /// Bytes that stay free.
    pub min_free_space: u64,
}

/// The content of a message while it arrives: in memory up to 1 MiB, then in a file of its own.
#[derive(Debug)]
pub struct Draft {
    // the owner of this module adds the fields
}

/// An open spool. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Spool {
    // the owner of this module adds the fields
}
