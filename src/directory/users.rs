//! Who may log in: `users_file`, as an immutable snapshot. The only file that names argon2 and stringprep.
//!
//! A line is `name:$argon2id$…` (a PHC string); blank lines and those that begin with `#` say nothing. A faulty line is
//! reported with its number and skipped. A file in which nothing is usable is refused, and so is one that changes while
//! it is read; the last good one stays. No report ever repeats what stands in a line: somebody may have written a
//! password there.
//!
//! Not here: how often somebody may try (`accept::logins`), the words of AUTH (`smtp::auth`).
//!
//! Names and passwords are compared as SASLprep makes them, so that it does not matter which of two ways to write an `ü` a
//! keyboard has. What SASLprep cannot prepare, such as a letter that is younger than Unicode 3.2, is compared as it is. A
//! hash that was made before names and passwords were prepared still counts for the octets it was made of.
//!
//! Standards: RFC 9106 (Argon2), 4013 (SASLprep), 4616 (PLAIN prepares both).

use std::borrow::Cow;
use std::fmt;
use std::fs::File;
use std::hash::{BuildHasher as _, RandomState};
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use argon2::{Algorithm, Argon2, Block, Params, PasswordHash, PasswordHasher as _, PasswordVerifier as _, Version};

use zeroize::Zeroize as _;

use super::file::{Fault, Fingerprint};

/// What OWASP recommends for Argon2id: 19 MiB, two passes, one lane. In KiB, as the PHC string has it.
const MEMORY: u32 = 19 * 1024;
const PASSES: u32 = 2;
const LANES: u32 = 1;

/// What a line of the file may demand of us at each login, in KiB: 256 MiB.
const MEMORY_LIMIT: u32 = 256 * 1024;

/// Memory times passes, in KiB: about a second of one core.
const WORK_LIMIT: u64 = 1024 * 1024;

/// Lanes are computed one after the other here; more of them make nothing safer.
const LANES_LIMIT: u32 = 16;

/// The longest name. RFC 4616 section 2 has no longer one.
const NAME_LIMIT: usize = 255;

/// A hundred thousand users fit.
const FILE_LIMIT: u64 = 16 << 20;

/// A file of the wrong kind has a fault on every line; nobody reads more of them than this.
const FAULT_LIMIT: usize = 1000;

/// A file that changes while it is read is read again so often before it is refused.
const ATTEMPTS: usize = 3;

/// The users of one file. There is at least one.
#[derive(Debug)]
pub struct Users {
    /// In the order of their names.
    hashes: Vec<(Box<str>, PasswordHash)>,
    /// Which hash stands in for that of somebody who is not there; nobody outside can know.
    decoys: RandomState,
}

impl Users {
    /// True if there is a user of this name.
    pub fn knows(&self, name: &str) -> bool {
        self.find(name).is_some()
    }

    /// True if the password is that user's. This takes tens of milliseconds of a core and as much memory as the line
    /// demands, and no less for a name that nobody has: whoever guesses cannot tell by the time which half was wrong.
    pub fn verify(&self, name: &str, password: &str) -> bool {
        let hash = self.hash_for(name);
        // A second look, for older hashes, depends on what was typed and not on whose password it is.
        let matches = verify_prepared(password, hash) || (is_changed(password) && is_that(password, hash));
        matches && self.knows(name) && !password.is_empty()
    }

    /// How many bytes of memory [`Users::verify`] takes for this name.
    pub fn memory(&self, name: &str) -> u64 {
        // Lines whose parameters cannot be read were skipped.
        Params::try_from(self.hash_for(name)).map_or(0, |params| params.block_count() as u64 * Block::SIZE as u64)
    }

    /// The hash that is computed for this name: the user's, or that of another in the place of a user who is not there.
    fn hash_for(&self, name: &str) -> &PasswordHash {
        // Always the same one for the same name, so that the time is that of a user like any other.
        let decoy = usize::try_from(self.decoys.hash_one(prepared(name)) % self.hashes.len() as u64).unwrap_or(0);
        self.find(name).unwrap_or(&self.hashes[decoy].1)
    }

    fn find(&self, name: &str) -> Option<&PasswordHash> {
        let name = prepared(name);
        let at = self.hashes.binary_search_by(|(known, _)| (**known).cmp(&name)).ok()?;
        Some(&self.hashes[at].1)
    }
}

/// A file that was read.
#[derive(Debug)]
pub struct Loaded {
    /// Its users.
    pub users: Users,
    /// Lines that were skipped, in order; at most a thousand.
    pub faults: Vec<Fault>,
    /// How many more were skipped.
    pub unlisted: usize,
    /// What it looked like.
    pub fingerprint: Fingerprint,
}

/// Why a file was refused as a whole.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// It cannot be opened or read.
    #[error("cannot be read: {0}")]
    Io(#[from] io::Error),
    /// It is no regular file.
    #[error("is not a regular file")]
    NotAFile,
    /// It is larger than any file of users.
    #[error("is larger than 16 MiB")]
    TooLarge,
    /// No line of it is usable.
    #[error("nothing in it is usable{}", .0.first().map(|it| format!("; line {}: {}", it.line, it.text)).unwrap_or_default())]
    NothingUsable(Vec<Fault>),
    /// It was written to in the meantime.
    #[error("changed while it was read")]
    Changing,
}

/// Reads the file at `path`. Blocking.
///
/// # Errors
/// Why it is of no use at all.
pub fn load(path: &Path) -> Result<Loaded, LoadError> {
    let mut attempt = 1;
    loop {
        match load_once(path) {
            Err(LoadError::Changing) if attempt < ATTEMPTS => attempt += 1,
            result => return result,
        }
    }
}

fn load_once(path: &Path) -> Result<Loaded, LoadError> {
    // Asked before it is opened: opening a FIFO would wait for somebody to write to it.
    if !std::fs::metadata(path)?.is_file() {
        return Err(LoadError::NotAFile);
    }
    let mut file = File::open(path)?;
    let before = file.metadata()?;
    if before.len() > FILE_LIMIT {
        return Err(LoadError::TooLarge);
    }
    let fingerprint = Fingerprint::from(&before);
    let mut content = Vec::new();
    (&mut file).take(FILE_LIMIT).read_to_end(&mut content)?;
    if Fingerprint::from(&file.metadata()?) != fingerprint {
        return Err(LoadError::Changing);
    }
    let (users, faults, unlisted) = read(&content)?;
    Ok(Loaded { users, faults, unlisted, fingerprint })
}

/// As [`load`], of text that is in no file: its users, lines that were skipped, and how many more were.
///
/// # Errors
/// Why it is of no use at all.
pub fn read(content: &[u8]) -> Result<(Users, Vec<Fault>, usize), LoadError> {
    let mut read: Vec<(Box<str>, PasswordHash, u64)> = Vec::new();
    let mut faults = Vec::new();
    for (line, number) in content.split(|byte| *byte == b'\n').zip(1..) {
        match user(line) {
            Ok(None) => {}
            Ok(Some((name, hash))) => read.push((name, hash, number)),
            Err(text) => faults.push(Fault { line: number, text }),
        }
    }
    // Stable: of two with the same name the first one of the file stays in front.
    read.sort_by(|one, other| one.0.cmp(&other.0));
    let mut hashes: Vec<(Box<str>, PasswordHash)> = Vec::with_capacity(read.len());
    for (name, hash, line) in read {
        if hashes.last().is_some_and(|(before, _)| *before == name) {
            faults.push(Fault { line, text: format!("a line before has the name {name} already") });
        } else {
            hashes.push((name, hash));
        }
    }
    faults.sort_by_key(|fault| fault.line);
    if hashes.is_empty() {
        faults.truncate(1);
        return Err(LoadError::NothingUsable(faults));
    }
    let unlisted = faults.len().saturating_sub(FAULT_LIMIT);
    faults.truncate(FAULT_LIMIT);
    Ok((Users { hashes, decoys: RandomState::new() }, faults, unlisted))
}

/// One line as what it says; `None` for a blank one or a comment.
fn user(line: &[u8]) -> Result<Option<(Box<str>, PasswordHash)>, String> {
    let line = std::str::from_utf8(line).map_err(|_| "it is not UTF-8".to_owned())?.trim();
    if line.is_empty() || line.starts_with('#') {
        return Ok(None);
    }
    let (name, hash) = line.split_once(':').ok_or("expected name:$argon2id$…; there is no colon")?;
    check_name(name)?;
    Ok(Some((prepared(name).into(), parse_hash(hash).map_err(|why| format!("{name}: {why}"))?)))
}

/// By SASLprep, or as it is. RFC 4013.
fn prepared(text: &str) -> Cow<'_, str> {
    match stringprep::saslprep(text) {
        // What consists of nothing but letters that it takes away is not nothing.
        Ok(prepared) if !prepared.is_empty() => prepared,
        Ok(_) | Err(_) => Cow::Borrowed(text),
    }
}

/// Does SASLprep make something else of this password?
fn is_changed(password: &str) -> bool {
    let mut prepared = prepared(password);
    let is_changed = *prepared != *password;
    wipe(&mut prepared);
    is_changed
}

fn verify_prepared(password: &str, hash: &PasswordHash) -> bool {
    let mut prepared = prepared(password);
    let matches = is_that(&prepared, hash);
    wipe(&mut prepared);
    matches
}

fn is_that(password: &str, hash: &PasswordHash) -> bool {
    Argon2::default().verify_password(password.as_bytes(), hash).is_ok()
}

/// The caller wipes what is only borrowed.
fn wipe(password: &mut Cow<'_, str>) {
    if let Cow::Owned(password) = password {
        password.zeroize();
    }
}

/// What a user may be called: whatever fits on a line of the file and of the log.
///
/// # Errors
/// What is wrong with the name.
pub fn check_name(name: &str) -> Result<(), String> {
    match name {
        "" => Err("the name is missing".to_owned()),
        _ if name.len() > NAME_LIMIT => Err(format!("the name is longer than {NAME_LIMIT} octets")),
        _ if name.contains(':') => Err("a name has no colon".to_owned()),
        _ if name.starts_with('#') => Err("a name does not begin with #".to_owned()),
        _ if name.trim() != name || name.chars().any(char::is_control) => {
            Err("a name has no control characters, and no blanks around it".to_owned())
        }
        _ => Ok(()),
    }
}

fn parse_hash(text: &str) -> Result<PasswordHash, String> {
    let malformed = || r#"expected a hash as "causeway hash-password" prints it: $argon2id$v=19$m=…,t=…,p=…$salt$hash"#;
    let hash = PasswordHash::new(text).map_err(|_| malformed())?;
    if hash.algorithm != Algorithm::Argon2id.ident() || hash.salt.is_none() || hash.hash.is_none() {
        return Err(malformed().to_owned());
    }
    if hash.version.is_some_and(|version| Version::try_from(version).is_err()) {
        return Err("this version of Argon2 is not known; v=19 is".to_owned());
    }
    let params = Params::try_from(&hash).map_err(|_| malformed())?;
    if params.m_cost() > MEMORY_LIMIT {
        return Err(format!("m={} is more than {MEMORY_LIMIT} (256 MiB)", params.m_cost()));
    }
    if params.p_cost() > LANES_LIMIT {
        return Err(format!("p={} is more than {LANES_LIMIT}", params.p_cost()));
    }
    if u64::from(params.m_cost()) * u64::from(params.t_cost()) > WORK_LIMIT {
        return Err(format!(
            "m={} times t={} is more than {WORK_LIMIT}: each login would take seconds",
            params.m_cost(),
            params.t_cost()
        ));
    }
    Ok(hash)
}

/// A PHC string of this password with a salt of its own. Takes tens of milliseconds.
///
/// # Errors
/// The password is empty, or the system has no random numbers.
pub fn hash(password: &str) -> Result<String, String> {
    if password.is_empty() {
        return Err("an empty password is none".to_owned());
    }
    let params = Params::new(MEMORY, PASSES, LANES, None).map_err(|error| error.to_string())?;
    let argon2 = Argon2::new(Algorithm::Argon2id, Version::V0x13, params);
    let mut prepared = prepared(password);
    let hash =
        argon2.hash_password(prepared.as_bytes()).map(|hash| hash.to_string()).map_err(|error| error.to_string());
    wipe(&mut prepared);
    hash
}

/// All users files as they were at one moment.
#[derive(Debug, Default)]
pub struct UserFiles {
    files: Vec<Known>,
}

#[derive(Debug, Clone)]
struct Known {
    path: PathBuf,
    /// The last good state of the file; `None`: there never was one.
    good: Option<(Arc<Users>, Fingerprint)>,
}

/// What became of one file at a load.
#[derive(Debug)]
pub struct Report {
    /// The file.
    pub path: PathBuf,
    /// What became of it.
    pub outcome: Outcome,
}

/// What became of a file.
#[derive(Debug)]
pub enum Outcome {
    /// It was read.
    Loaded {
        /// How many users it has.
        users: usize,
        /// Lines that were skipped.
        faults: Vec<Fault>,
        /// How many more were.
        unlisted: usize,
    },
    /// It is the same as before.
    Unchanged,
    /// It was refused.
    Refused {
        /// Why.
        why: LoadError,
        /// The last good one stays; else nobody can log in.
        kept: bool,
    },
}

impl UserFiles {
    /// The next snapshot: reads those of `paths` that are not as they were. Blocking.
    pub fn reload<'a>(&self, paths: impl IntoIterator<Item = &'a Path>) -> (Self, Vec<Report>) {
        let (mut files, mut reports): (Vec<Known>, Vec<Report>) = (Vec::new(), Vec::new());
        for path in paths {
            if files.iter().any(|known| known.path == path) {
                continue;
            }
            let last = self.files.iter().find(|known| known.path == path).and_then(|known| known.good.clone());
            let (good, outcome) = load_next(path, last);
            files.push(Known { path: path.to_owned(), good });
            reports.push(Report { path: path.to_owned(), outcome });
        }
        (Self { files }, reports)
    }

    /// The users of this file; `None` if it never could be read.
    pub fn of(&self, path: &Path) -> Option<&Arc<Users>> {
        let known = self.files.iter().find(|known| known.path == path)?;
        known.good.as_ref().map(|(users, _)| users)
    }
}

fn load_next(path: &Path, last: Option<(Arc<Users>, Fingerprint)>) -> (Option<(Arc<Users>, Fingerprint)>, Outcome) {
    if let Some((_, fingerprint)) = &last
        && Fingerprint::of(path).is_ok_and(|now| now == *fingerprint)
    {
        return (last, Outcome::Unchanged);
    }
    match load(path) {
        Ok(Loaded { users, faults, unlisted, fingerprint }) => {
            let outcome = Outcome::Loaded { users: users.hashes.len(), faults, unlisted };
            (Some((Arc::new(users), fingerprint)), outcome)
        }
        // The old fingerprint stays with the old users: the next reload tries again.
        Err(why) => {
            let kept = last.is_some();
            (last, Outcome::Refused { why, kept })
        }
    }
}

impl Report {
    /// True if somebody should look: the file, or a line of it, was refused.
    pub fn is_faulty(&self) -> bool {
        match &self.outcome {
            Outcome::Loaded { faults, .. } => !faults.is_empty(),
            Outcome::Unchanged => false,
            Outcome::Refused { .. } => true,
        }
    }
}

impl fmt::Display for Report {
    /// One line for the file, and one for each of its faults.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let path = self.path.display();
        match &self.outcome {
            Outcome::Unchanged => write!(f, "{path}: unchanged"),
            Outcome::Refused { why, kept: true } => write!(f, "{path}: {why}; the last good one stays"),
            Outcome::Refused { why, kept: false } => {
                write!(f, "{path}: {why}; until it is there, AUTH gets 454 4.7.0")
            }
            Outcome::Loaded { users, faults, unlisted } => {
                write!(f, "{path}: {users} {}", if *users == 1 { "user" } else { "users" })?;
                for Fault { line, text } in faults {
                    write!(f, "\n{path}:{line}: {text}; the line is skipped")?;
                }
                if *unlisted > 0 {
                    write!(f, "\n{path}: {unlisted} more lines are faulty and skipped")?;
                }
                Ok(())
            }
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::time::{Duration, Instant};

    use super::*;

    /// A hash that is quick to compute, for tests only.
    pub(crate) fn quick_hash(password: &str) -> String {
        let params = Params::new(8, 1, 1, None).unwrap();
        let argon2 = Argon2::new(Algorithm::Argon2id, Version::V0x13, params);
        argon2.hash_password(password.as_bytes()).unwrap().to_string()
    }

    /// Users with these passwords.
    pub(crate) fn users(all: &[(&str, &str)]) -> Users {
        let lines: Vec<String> =
            all.iter().map(|(name, password)| format!("{name}:{}", quick_hash(password))).collect();
        read(lines.join("\n").as_bytes()).unwrap().0
    }

    #[test]
    fn a_password_belongs_to_its_user_alone() {
        let users = users(&[("tim", "tanstaaf"), ("anna", "gr\u{fc}n"), ("J\u{fc}rgen", "x")]);
        for (name, password, expected) in [
            ("tim", "tanstaaf", true),
            ("anna", "gr\u{fc}n", true),
            ("J\u{fc}rgen", "x", true),
            ("tim", "tanstaaf ", false),
            ("tim", "Tanstaaf", false),
            ("tim", "", false),
            ("Tim", "tanstaaf", false),
            ("anna", "tanstaaf", false),
            ("", "", false),
        ] {
            assert_eq!(users.verify(name, password), expected, "{name} {password}");
        }
        // Nobody gets in by the password of the one whose hash stands in.
        for stranger in 0..50 {
            for password in ["tanstaaf", "gr\u{fc}n", "x"] {
                assert!(!users.verify(&format!("stranger{stranger}"), password));
            }
        }
    }

    /// A name and password as they were hashed, as they are typed, and whether that is the user. SASLprep: RFC 4013 section 3
    /// and others.
    #[test]
    fn names_and_passwords_are_compared_as_saslprep_makes_them() {
        for (hashed, typed, expected) in [
            (("J\u{fc}rgen", "gr\u{fc}n"), ("Ju\u{308}rgen", "gru\u{308}n"), true),
            (("Ju\u{308}rgen", "gru\u{308}n"), ("J\u{fc}rgen", "gr\u{fc}n"), true),
            (("tim", "two words"), ("tim", "two\u{a0}words"), true),
            (("tim", "IX"), ("tim", "I\u{ad}X"), true),
            (("tim", "IX"), ("tim", "\u{2168}"), true),
            (("tim", "a"), ("tim", "\u{aa}"), true),
            (("tim", "USER"), ("tim", "user"), false),
            (("tim", "gr\u{fc}n"), ("tim", "grun"), false),
            // Prohibited, or younger than Unicode 3.2: as it is.
            (("tim", "a\u{7}b"), ("tim", "a\u{7}b"), true),
            (("tim", "\u{1f511}=*"), ("tim", "\u{1f511}=*"), true),
            (("tim", "\u{ad}"), ("tim", "\u{ad}"), true),
            (("tim", "\u{ad}"), ("tim", ""), false),
        ] {
            let line = format!("{}:{}", hashed.0, hash(hashed.1).unwrap());
            let users = read(line.as_bytes()).unwrap().0;
            assert_eq!(users.verify(typed.0, typed.1), expected, "{hashed:?} {typed:?}");
        }
        // Hashes that were made of the octets as they came.
        let users = users(&[("tim", "gru\u{308}n"), ("anna", "tanstaaf")]);
        assert!(users.verify("tim", "gru\u{308}n") && users.verify("anna", "tanstaaf"));
        // Two names that are one.
        let (_, faults, _) =
            read(format!("J\u{fc}rgen:{}\nJu\u{308}rgen:{}\n", quick_hash("x"), quick_hash("y")).as_bytes()).unwrap();
        assert_eq!(faults.len(), 1, "{faults:?}");
    }

    /// An empty password would never be looked at, even if somebody hashed one.
    #[test]
    fn an_empty_password_is_none() {
        assert!(hash("").is_err());
        assert!(!users(&[("tim", "")]).verify("tim", ""));
    }

    /// The work is done for a name that nobody has, too: it cannot come back without it.
    #[test]
    fn an_unknown_name_takes_as_long_as_a_wrong_password() {
        let users = read(format!("tim:{}", hash("secret").unwrap()).as_bytes()).unwrap().0;
        let least = |name: &str| {
            let time = |_| {
                let began = Instant::now();
                assert!(!users.verify(name, "wrong"));
                began.elapsed()
            };
            (0..5).map(time).min().unwrap()
        };
        let (known, unknown) = (least("tim"), least("nobody"));
        // Machines are busy: the bounds are wide, and still a thousand times narrower than no hash at all.
        assert!(unknown > known / 8 && known > unknown / 8, "known {known:?}, unknown {unknown:?}");
        assert!(unknown > Duration::from_millis(1), "{unknown:?}");
    }

    #[test]
    fn our_own_hashes_are_as_recommended_and_never_twice_the_same() {
        let (one, other) = (hash("secret").unwrap(), hash("secret").unwrap());
        assert!(one.starts_with("$argon2id$v=19$m=19456,t=2,p=1$"), "{one}");
        assert_ne!(one, other);
        assert!(read(format!("tim:{one}").as_bytes()).unwrap().0.verify("tim", "secret"));
    }

    /// The answer of another implementation: `echo -n password | argon2 somesalt -id -t 2 -m 16 -p 1 -l 32` of the reference.
    #[test]
    fn hashes_of_other_programs_are_understood() {
        let line = b"tim:$argon2id$v=19$m=65536,t=2,p=1$c29tZXNhbHQ$CTFhFdXPJO1aFaMaO6Mm5c8y7cJHAph8ArZWb2GRPPc";
        assert!(read(line).unwrap().0.verify("tim", "password"));
    }

    /// A line, and what is said of it: nothing where it is good.
    #[test]
    fn faulty_lines_are_told_and_skipped() {
        let good = quick_hash("secret");
        let tail = good.split_once("p=1$").unwrap().1;
        let with = |params: &str| format!("tim:$argon2id$v=19${params}${tail}");
        for (line, expected) in [
            (format!("tim:{good}"), ""),
            (format!("  tim:{good}\r"), ""),
            (with("m=262144,t=4,p=16"), ""),
            ("# a comment".to_owned(), ""),
            (String::new(), ""),
            ("tanstaaf".to_owned(), "there is no colon"),
            (format!(":{good}"), "the name is missing"),
            (format!("tim :{good}"), "no blanks around it"),
            (format!("t\u{1}m:{good}"), "control characters"),
            (format!("{}:{good}", "x".repeat(256)), "longer than 255"),
            ("tim:tanstaaf".to_owned(), "tim: expected a hash as"),
            ("tim:".to_owned(), "tim: expected a hash as"),
            ("tim:$2y$10$abcdefghijklmnopqrstuv".to_owned(), "tim: expected a hash as"),
            (format!("tim:{}", good.replace("argon2id", "argon2i")), "tim: expected a hash as"),
            ("tim:$argon2id$v=19$m=19456,t=2,p=1".to_owned(), "tim: expected a hash as"),
            ("tim:$argon2id$v=19$m=19456,t=2,p=1$c29tZXNhbHQ".to_owned(), "tim: expected a hash as"),
            (format!("tim:{}", good.replace("v=19", "v=18")), "version"),
            (with("m=262145,t=1,p=1"), "m=262145 is more than 262144 (256 MiB)"),
            (with("m=4294967295,t=1,p=1"), "is more than 262144"),
            (with("m=262144,t=5,p=1"), "each login would take seconds"),
            (with("m=8,t=4294967295,p=1"), "each login would take seconds"),
            (with("m=1024,t=1,p=17"), "p=17 is more than 16"),
            (with("m=1,t=1,p=1"), "tim: expected a hash as"),
            (format!("anna:{good}"), "a line before has the name anna already"),
        ] {
            let content = format!("anna:{good}\n{line}\nlast:{good}\n");
            let (users, faults, unlisted) = read(content.as_bytes()).unwrap();
            assert!(users.knows("anna") && users.knows("last") && unlisted == 0, "{line}");
            match (expected, &faults[..]) {
                ("", []) => {}
                ("", faults) => panic!("{line}: {faults:?}"),
                (expected, [fault]) => {
                    assert!(fault.line == 2 && fault.text.contains(expected), "{line}: {fault:?}");
                    assert!(!fault.text.contains("tanstaaf") && !fault.text.contains(tail), "{fault:?}");
                }
                (_, faults) => panic!("{line}: {faults:?}"),
            }
        }
        let (_, faults, _) = read(format!("\u{feff}\ntim:{good}\n").as_bytes().strip_prefix(b"\xef").unwrap()).unwrap();
        assert_eq!(faults[0].text, "it is not UTF-8");
    }

    #[test]
    fn a_refused_file_leaves_the_last_good_one() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("users");
        // Replaced as a careful writer does: the new inode makes it another file within the same tick of the clock.
        let write = |content: &str| {
            std::fs::write(path.with_extension("new"), content).unwrap();
            std::fs::rename(path.with_extension("new"), &path).unwrap();
        };
        let none = UserFiles::default();
        let (missing, reports) = none.reload([&*path, &*path]);
        assert!(missing.of(&path).is_none());
        assert_eq!(reports.len(), 1, "one file, however many connectors name it");
        assert!(reports[0].is_faulty() && reports[0].to_string().ends_with("AUTH gets 454 4.7.0"), "{}", reports[0]);

        write(&format!("tim:{}\nbad\n", quick_hash("one")));
        let (first, reports) = missing.reload([&*path]);
        assert!(first.of(&path).unwrap().verify("tim", "one"));
        let said = reports[0].to_string();
        assert!(
            said.contains(": 1 user\n") && said.contains(":2: ") && said.ends_with("the line is skipped"),
            "{said}"
        );

        let (same, reports) = first.reload([&*path]);
        assert!(matches!(reports[0].outcome, Outcome::Unchanged), "{reports:?}");
        assert!(Arc::ptr_eq(same.of(&path).unwrap(), first.of(&path).unwrap()));

        for nonsense in ["", "# nobody\n\n", "tim:password\n"] {
            write(nonsense);
            let (kept, reports) = same.reload([&*path]);
            assert!(kept.of(&path).unwrap().verify("tim", "one"), "{nonsense:?}");
            assert!(reports[0].to_string().ends_with("the last good one stays"), "{}", reports[0]);
        }
        std::fs::remove_file(&path).unwrap();
        let (kept, _) = same.reload([&*path]);
        assert!(kept.of(&path).unwrap().knows("tim"));

        write(&format!("anna:{}\n", quick_hash("two")));
        let (next, _) = kept.reload([&*path]);
        assert!(next.of(&path).unwrap().verify("anna", "two") && !next.of(&path).unwrap().knows("tim"));
        assert!(first.of(&path).unwrap().knows("tim"), "a snapshot changed");
        let (forgotten, _) = next.reload([]);
        assert!(forgotten.of(&path).is_none());
    }
}
