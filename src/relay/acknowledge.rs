//! When a 250 is true: only here does a receipt become an answer.
//!
//! `durable`: the receipt exists only after the sync that covers the message's record. Nothing else makes a 250.

use std::io;

use crate::smtp::Reply;
use crate::spool::{PutError, Receipt};

/// The reply to the end of data.
pub(super) fn acknowledge(put: &Result<Receipt, PutError>) -> Reply {
    match put {
        Ok(receipt) => Reply::accepted(receipt.message.id),
        Err(error) => put_failed(error),
    }
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
