//! When a 250 is true: only here does a receipt become an answer.
//!
//! `durable`: the receipt exists only after the sync that covers the message's record. `delivered-or-durable`: that, or the
//! proof that every recipient was taken by its next hop. Nothing else makes a 250.

use std::io;

use super::early::AllDelivered;
use crate::message::MessageId;
use crate::smtp::Reply;
use crate::spool::{PutError, Receipt};

/// The reply to the end of data.
pub(super) fn acknowledge(receipt: &Receipt) -> Reply {
    Reply::accepted(receipt.message.id)
}

/// The same where nothing is left to keep: the next hops have promised what a 250 promises.
pub(super) fn delivered(id: MessageId, all: AllDelivered) -> Reply {
    drop(all);
    Reply::accepted(id)
}

/// 452: the client keeps the message and offers it again. What never will fit is 552, so that its sender is told.
pub(super) fn put_failed(error: &PutError) -> Reply {
    match error {
        PutError::Full(_) => Reply::insufficient_storage(),
        PutError::Fault(_) => Reply::spool_fault(),
        PutError::TooLong(_) => Reply::envelope_too_long(),
    }
}

/// The same for content that could not be kept while it arrived.
pub(super) fn draft_failed(error: &io::Error) -> Reply {
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Reply::insufficient_storage(),
        _ => Reply::spool_fault(),
    }
}
