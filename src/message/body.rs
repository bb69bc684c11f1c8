//! A message's bytes, in memory or on disk, the same to a reader.
//!
//! The bytes are those between DATA's 354 and the final dot, dot-stuffing undone; nothing is added or changed.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;

/// The content of a message. Cheap to clone.
#[derive(Debug, Clone)]
pub enum Body {
    /// Pieces as they came from the socket.
    Memory(Arc<[Bytes]>),
    /// A stretch of a file: a spool segment, or a large message's own file.
    File {
        /// The file, open for reading.
        file: Arc<std::fs::File>,
        /// Its name, for error texts.
        path: Arc<PathBuf>,
        /// Where the content starts, in bytes.
        offset: u64,
        /// How long it is, in bytes.
        len: u64,
    },
}

impl Body {
    /// A body that consists of these bytes.
    pub fn from_bytes(bytes: impl Into<Bytes>) -> Self {
        Self::Memory(Arc::from([bytes.into()]))
    }

    /// Length in bytes.
    pub fn len(&self) -> u64 {
        match self {
            Self::Memory(pieces) => pieces.iter().map(|piece| piece.len() as u64).sum(),
            Self::File { len, .. } => *len,
        }
    }

    /// True if there is not a single byte.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// At most `limit` bytes from `offset`; empty at the end. Blocking where the bytes lie on disk.
    ///
    /// # Errors
    /// What the file system says.
    pub fn read(&self, offset: u64, limit: usize) -> io::Result<Bytes> {
        let _ = (offset, limit);
        todo!()
    }

    /// True if every byte is below 128. Blocking where the bytes lie on disk.
    ///
    /// # Errors
    /// What the file system says.
    pub fn is_seven_bit(&self) -> io::Result<bool> {
        todo!()
    }
}
