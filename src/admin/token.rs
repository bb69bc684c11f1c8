//! The token: who knows it is the administrator.
//!
//! It stands in a file that nobody else may read, made with a random token where it is missing. It is compared in
//! constant time, so that nobody finds it byte by byte.

use std::fmt;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::Path;

use subtle::ConstantTimeEq as _;

use crate::message::visit;

/// Shorter ones can be guessed, over the years.
const SHORTEST: usize = 16;

/// No token is longer, and /dev/zero ends somewhere.
const LONGEST: u64 = 1024;

/// What stands in `token_file`. Never shown.
#[derive(Clone)]
pub struct Token(Box<[u8]>);

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(…)")
    }
}

impl Token {
    /// Reads it, and makes it first where there is none.
    ///
    /// # Errors
    /// It cannot be read or made, others can read it, or it is no token; with the file's name.
    pub fn open(path: &Path) -> io::Result<Self> {
        match Self::read(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                make(path).map_err(|error| named(path, &error))?;
                Self::read(path)
            }
            other => other,
        }
    }

    /// Reads it.
    ///
    /// # Errors
    /// It cannot be read, others can read it, or it is no token; with the file's name.
    pub fn read(path: &Path) -> io::Result<Self> {
        Self::read_from(path).map_err(|error| named(path, &error))
    }

    fn read_from(path: &Path) -> io::Result<Self> {
        let file = File::open(path)?;
        let metadata = file.metadata()?;
        if metadata.permissions().mode() & 0o077 != 0 {
            return Err(refused("others can read it; run chmod 600, and make a new one if somebody may have"));
        }
        let mut text = String::new();
        file.take(LONGEST).read_to_string(&mut text)?;
        let token = text.trim_ascii();
        if token.len() < SHORTEST || !token.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(refused("expected one token of at least 16 characters; remove the file for a new one"));
        }
        Ok(Self(token.as_bytes().into()))
    }

    /// Is this the token?
    pub fn is(&self, said: &[u8]) -> bool {
        // A length is no secret; the rest takes the same time whatever stands in it.
        self.0.ct_eq(said).into()
    }

    /// As the header carries it, for our own command line.
    pub(super) fn bearer(&self) -> String {
        format!("Bearer {}", String::from_utf8_lossy(&self.0))
    }
}

fn refused(why: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, why)
}

fn named(path: &Path, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{}: {error}", path.display()))
}

/// Written beside and linked, so that there is never half a token and two that start together agree on one.
fn make(path: &Path) -> io::Result<()> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
    let text: String = visit::Key::random().iter().map(|byte| format!("{byte:02x}")).collect();
    let mut new = path.as_os_str().to_owned();
    new.push(format!(".new-{}", std::process::id()));
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&new)?;
    let written = file.write_all(text.as_bytes()).and_then(|()| file.write_all(b"\n")).and_then(|()| file.sync_all());
    let linked = written.and_then(|()| match fs::hard_link(&new, path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        other => other,
    });
    fs::remove_file(&new)?;
    linked?;
    File::open(folder)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_made_once_and_for_nobody_else() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("secrets/admin");
        let first = Token::open(&path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        let text = fs::read_to_string(&path).unwrap();
        assert_eq!(text.trim_end().len(), 64, "256 bits");
        assert!(first.is(text.trim_end().as_bytes()));
        assert!(Token::open(&path).unwrap().is(text.trim_end().as_bytes()), "the same after a restart");
        assert_eq!(format!("{first:?}"), "Token(…)");
        assert_eq!(fs::read_dir(path.parent().unwrap()).unwrap().count(), 1, "nothing is left beside it");
    }

    #[test]
    fn s163_only_the_whole_token_is_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("admin");
        fs::write(&path, "0123456789abcdef\n").unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        let token = Token::read(&path).unwrap();
        for (said, expected) in [
            ("0123456789abcdef", true),
            ("0123456789abcdeF", false),
            ("0123456789abcde", false),
            ("0123456789abcdef0", false),
            ("", false),
        ] {
            assert_eq!(token.is(said.as_bytes()), expected, "{said:?}");
        }
    }

    #[test]
    fn s166_what_others_can_read_or_is_no_token_is_refused_by_name() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("admin");
        for (text, mode, expected) in [
            ("0123456789abcdef", 0o640, "others can read it"),
            ("0123456789abcdef", 0o604, "others can read it"),
            ("short", 0o600, "at least 16 characters"),
            ("0123456789abcdef 0", 0o600, "expected one token"),
            ("", 0o600, "remove the file for a new one"),
        ] {
            fs::write(&path, text).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
            let error = Token::open(&path).unwrap_err().to_string();
            assert!(error.contains(expected) && error.contains("admin: "), "{text:?} {mode:o}: {error}");
            assert_eq!(fs::read_to_string(&path).unwrap(), text, "it is left alone");
        }
    }
}
