//! What the spool says of itself.

use std::sync::PoisonError;

use super::Spool;

impl Spool {
    /// Bytes in the log, and those of them that are records of messages that wait.
    pub fn bytes(&self) -> (u64, u64) {
        let index = self.shared.index.lock().unwrap_or_else(PoisonError::into_inner);
        (index.log_bytes(), index.live_bytes)
    }

    /// Free bytes on its disk, if that says so. A system call.
    pub fn free(&self) -> Option<u64> {
        self.shared.disk.free(&self.shared.folders.root).ok()
    }
}
