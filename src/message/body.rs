//! A message's bytes, in memory or on disk, the same to a reader.
//!
//! The bytes are those between DATA's 354 and the final dot, dot-stuffing undone; nothing is added or changed.

use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::PathBuf;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};

/// How much is read of a file at a time, in bytes.
pub const BLOCK: usize = 64 * 1024;

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
    /// What the file system says; a file shorter than it should be is `UnexpectedEof`.
    pub fn read(&self, offset: u64, limit: usize) -> io::Result<Bytes> {
        match self {
            Self::Memory(pieces) => {
                let mut skip = offset;
                for piece in pieces.iter() {
                    let len = piece.len() as u64;
                    if skip < len {
                        let start = skip as usize;
                        return Ok(piece.slice(start..piece.len().min(start.saturating_add(limit))));
                    }
                    skip -= len;
                }
                Ok(Bytes::new())
            }
            Self::File { file, offset: start, len, .. } => {
                let wanted = len.saturating_sub(offset).min(limit as u64) as usize;
                let mut block = BytesMut::zeroed(wanted);
                file.read_exact_at(&mut block, start + offset)?;
                Ok(block.freeze())
            }
        }
    }

    /// True if every byte is below 128. Blocking where the bytes lie on disk.
    ///
    /// # Errors
    /// What the file system says.
    pub fn is_seven_bit(&self) -> io::Result<bool> {
        let mut offset = 0;
        loop {
            let block = self.read(offset, BLOCK)?;
            if block.is_empty() {
                return Ok(true);
            }
            if !block.is_ascii() {
                return Ok(false);
            }
            offset += block.len() as u64;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write as _;

    #[test]
    fn memory_and_disk_read_the_same_in_blocks_of_any_size() {
        let content: Vec<u8> = (0..10_000u32).map(|n| (n % 251) as u8).collect();
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(b"before").unwrap();
        file.write_all(&content).unwrap();
        file.write_all(b"behind").unwrap();
        let disk =
            Body::File { file: Arc::new(file), path: Arc::new("x".into()), offset: 6, len: content.len() as u64 };
        let memory = Body::Memory(content.chunks(999).map(Bytes::copy_from_slice).collect());
        for body in [&disk, &memory] {
            assert_eq!(body.len(), content.len() as u64);
            for limit in [1, 7, 999, 4096, 100_000] {
                let mut read = Vec::new();
                while let block = body.read(read.len() as u64, limit).unwrap()
                    && !block.is_empty()
                {
                    assert!(block.len() <= limit);
                    read.extend_from_slice(&block);
                }
                assert_eq!(read, content, "in blocks of {limit}");
            }
            assert!(!body.is_seven_bit().unwrap());
        }
        assert!(Body::from_bytes("plain").is_seven_bit().unwrap());
    }

    #[test]
    fn a_file_that_lost_its_end_is_an_error_and_not_a_shorter_message() {
        let body = Body::File {
            file: Arc::new(tempfile::tempfile().unwrap()),
            path: Arc::new("x".into()),
            offset: 0,
            len: 10,
        };
        assert_eq!(body.read(0, 100).unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    }
}
