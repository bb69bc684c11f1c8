//! The file of the key that marks visits: `visit.key` in the spool's folder, 64 hexadecimal digits.
//!
//! It is made at the first start. Relays that stand beside each other share it by a copy: then each knows what the
//! others have seen. Without it the marks of messages under way would mean nothing; so it is never replaced by itself. A
//! copy of another's that is put in its place counts from then on, as any file does that changes.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use crate::message::visit::{KEY_LEN, Key};

/// The file's name.
pub(super) const NAME: &str = "visit.key";

/// The key in `folder`, made if there is none.
///
/// # Errors
/// It cannot be read or made, or is not a key; with the file's name.
pub(super) fn open(folder: &Path) -> io::Result<Key> {
    let path = folder.join(NAME);
    let text = match fs::read_to_string(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            make(folder, &path).map_err(|error| at(&path, &error))?
        }
        Err(error) => return Err(at(&path, &error)),
    };
    key_in(&text, &path)
}

/// The key in `folder` as it is now: somebody may have copied another's there.
///
/// # Errors
/// It cannot be read, or is not a key; with the file's name. A new one is not made: the old one still means something.
pub(super) fn read(folder: &Path) -> io::Result<Key> {
    let path = folder.join(NAME);
    let text = fs::read_to_string(&path).map_err(|error| at(&path, &error))?;
    key_in(&text, &path)
}

fn at(path: &Path, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{}: {error}", path.display()))
}

fn key_in(text: &str, path: &Path) -> io::Result<Key> {
    let key = parse(text.trim_ascii()).ok_or_else(|| {
        let text = "expected 64 hexadecimal digits; copy it from the relay that shares it, or remove it for a new one";
        at(path, &io::Error::new(io::ErrorKind::InvalidData, text))
    })?;
    Ok(Key::new(&key))
}

/// Written beside and renamed, so that there is never half a key.
fn make(folder: &Path, path: &Path) -> io::Result<String> {
    let text: String = Key::random().iter().map(|byte| format!("{byte:02x}")).collect();
    let new = folder.join("visit.key.new");
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&new)?;
    file.write_all(text.as_bytes())?;
    file.write_all(b"\n")?;
    file.sync_all()?;
    fs::rename(&new, path)?;
    File::open(folder)?.sync_all()?;
    Ok(text)
}

fn parse(text: &str) -> Option<[u8; KEY_LEN]> {
    let mut key = [0; KEY_LEN];
    if text.len() != 2 * KEY_LEN || !text.is_ascii() {
        return None;
    }
    for (byte, digits) in key.iter_mut().zip(text.as_bytes().chunks_exact(2)) {
        *byte = u8::from_str_radix(str::from_utf8(digits).ok()?, 16).ok()?;
    }
    Some(key)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use jiff::Timestamp;

    use super::*;
    use crate::message::visit::Visit;
    use crate::message::{Address, MessageId, header};

    #[test]
    fn a_key_is_made_once_kept_and_shared_by_a_copy() {
        let (here, there) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let to = Address::parse("david@contoso.com").unwrap();
        let visit = Visit { by: "internet", asked: &to, via: "to-cloud", to: &to };
        let field = open(here.path()).unwrap().field(MessageId(1), Timestamp::UNIX_EPOCH, [visit]);
        let marks = header::facts(field.as_bytes()).visits;
        assert!(open(here.path()).unwrap().when(&marks, &visit).is_some(), "the same after a restart");
        let mode = fs::metadata(here.path().join("visit.key")).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        assert!(open(there.path()).unwrap().when(&marks, &visit).is_none(), "another relay has another");
        fs::copy(here.path().join("visit.key"), there.path().join("visit.key")).unwrap();
        assert!(open(there.path()).unwrap().when(&marks, &visit).is_some());
    }

    #[test]
    fn what_is_no_key_is_refused_by_name_and_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("visit.key");
        let short = "0".repeat(63);
        let long = "0".repeat(65);
        let odd = format!("{}zz", "0".repeat(62));
        let wide = "é".repeat(32);
        for text in ["", &short, &long, &odd, &wide] {
            fs::write(&path, text).unwrap();
            let error = open(folder.path()).unwrap_err().to_string();
            assert!(error.contains("visit.key: expected 64 hexadecimal digits"), "{text:?}: {error}");
            assert_eq!(fs::read_to_string(&path).unwrap(), text);
        }
    }
}
