//! Who has a mailbox where: look-up over all sources, as an immutable snapshot.
//!
//! A [`Directory`] never changes; the daemon replaces it whole. [`Directory::reload`] makes the next one: sources
//! whose file is the same are shared with the last, and a source whose new file is refused keeps its last good table.
//! A source that never had one cannot say that it does not know somebody, so what would be its turn to answer is
//! [`Found::Unavailable`]: order among sources is precedence, and a later one is not asked in its stead.
//!
//! Not here: where mail goes (`route`), when to reload (`daemon`).

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

use crate::config::DirectorySource;
use crate::message::{Address, Domain};

pub mod check;
pub mod file;
pub mod import;
mod places;
pub mod table;
pub mod users;

pub use file::{Fault, Fingerprint, LoadError};
use table::Behind;
pub use table::Table;

/// A file that changes while it is read is read again so often before it is refused.
const ATTEMPTS: usize = 3;

/// What the directory says of an address. Types as in the file of recipients.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Entry {
    /// A mailbox on-premises.
    OnPremises,
    /// A mailbox in the cloud; the hybrid routing address where the entry names one.
    Cloud(Option<Address>),
    /// Forwarded: resolved again.
    Forward(Address),
    /// A group: each member is resolved again.
    Group(Vec<Address>),
    /// Another name of that recipient.
    Alias(Address),
}

/// A look-up's answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Found {
    /// This source knows it.
    Entry {
        /// The source, as the configuration names it.
        source: Arc<str>,
        /// What it says.
        entry: Entry,
        /// The entry is that of the address without its `+tag`.
        untagged: bool,
    },
    /// No source knows it.
    Unknown,
    /// A source that might know it cannot answer: 451 4.4.3, never 550. Which, and why.
    Unavailable(String),
}

/// Whose name on the other premises an address is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Owner {
    /// This entry's: a cloud mailbox whose hybrid routing address it is, or, where there is none of those, another entry
    /// that would have it were it one.
    Entry {
        /// The source, as the configuration names it.
        source: Arc<str>,
        /// The entry's own address.
        address: Address,
        /// What it says.
        entry: Entry,
        /// It was found for the address without its `+tag`.
        untagged: bool,
    },
    /// No source knows one.
    Unknown,
    /// A source that might know one cannot answer. Which, and why.
    Unavailable(String),
}

/// Something that can be asked. A trait because LDAP will stand beside the file, and tests ask tables.
pub trait Lookup: Send + Sync {
    /// Finds `address`, without regard to case; `+tag` whole first, then without the tag.
    fn find(&self, address: &Address) -> Found;

    /// Finds whose hybrid routing address `routing` is: that of the cloud mailbox whose target it is, else of the one
    /// without a target in the first domain by `rank` that has this local part. `rank` says `None` of a domain that is
    /// not asked about. Only `find` may know who has the address itself.
    ///
    /// A directory of names alone knows of none.
    fn find_owner(&self, _routing: &Address, _rank: &dyn Fn(&Domain) -> Option<usize>) -> Owner {
        Owner::Unknown
    }

    /// An alias of `of` in another domain than its own: that in the first domain by `rank`, with the same local part if
    /// there is one. `rank` says `None` of a domain whose aliases do not count.
    fn find_alias(&self, _of: &Address, _rank: &dyn Fn(&Domain) -> Option<usize>) -> Option<Address> {
        None
    }
}

/// All sources as they were at one moment, in the order of the configuration.
#[derive(Debug, Default)]
pub struct Directory {
    sources: Vec<Arc<Source>>,
}

#[derive(Debug)]
struct Source {
    name: Arc<str>,
    path: PathBuf,
    state: State,
    /// Its file as it is now was refused: what the report said.
    refused: Option<String>,
}

#[derive(Debug)]
enum State {
    /// The table, and what its file looked like.
    Good(Arc<Table>, Fingerprint),
    /// There never was a good one, and why.
    Missing(String),
}

/// What became of one source at a load.
#[derive(Debug)]
pub struct Report {
    /// The source, as the configuration names it.
    pub source: Arc<str>,
    /// Its file.
    pub path: PathBuf,
    /// What became of it.
    pub outcome: LoadOutcome,
}

/// What became of a source's file.
#[derive(Debug)]
pub enum LoadOutcome {
    /// It was read.
    Loaded {
        /// How many recipients it has.
        recipients: usize,
        /// Lines that were skipped, in order; at most a thousand.
        faults: Vec<Fault>,
        /// How many more were skipped.
        unlisted: usize,
    },
    /// It is the same as before.
    Unchanged,
    /// It was refused.
    Refused {
        /// Why.
        why: LoadError,
        /// The last good table stays; else the source cannot answer.
        kept: bool,
    },
}

impl Directory {
    /// Reads all sources. Blocking.
    pub fn load(sources: &[DirectorySource]) -> (Self, Vec<Report>) {
        Self::default().reload(sources)
    }

    /// The next snapshot: reads those of `sources` whose file is not as it was. Blocking.
    pub fn reload(&self, sources: &[DirectorySource]) -> (Self, Vec<Report>) {
        let mut next = Vec::with_capacity(sources.len());
        let mut reports = Vec::with_capacity(sources.len());
        for source in sources {
            let last = self.sources.iter().find(|last| last.path == source.path);
            let (state, outcome) = load_source(source, last);
            let (name, path) = (source.name.clone(), source.path.clone());
            let report = Report { source: name.clone(), path: path.clone(), outcome };
            next.push(Arc::new(Source { name, path, state, refused: report.is_refused().then(|| report.to_string()) }));
            reports.push(report);
        }
        (Self { sources: next }, reports)
    }

    /// How many recipients all sources know; one that two of them know counts twice.
    pub fn len(&self) -> usize {
        self.tables().map(Table::len).sum()
    }

    /// True if no source knows anybody.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// What is wrong with files as they are now: an older one serves, or none.
    pub fn refused(&self) -> impl Iterator<Item = &str> {
        self.sources.iter().filter_map(|source| source.refused.as_deref())
    }

    /// Bytes of memory the tables hold.
    pub fn memory(&self) -> usize {
        self.tables().map(Table::memory).sum()
    }

    /// Every address that a source knows, in no order; one that two of them know comes twice.
    pub fn addresses(&self) -> impl Iterator<Item = Address> + '_ {
        self.tables().flat_map(Table::addresses)
    }

    /// A single source with this table, or without any.
    #[cfg(test)]
    pub(crate) fn of(name: &str, table: Option<Table>) -> Self {
        let state = match table {
            // Nobody reloads it; any file's fingerprint will do.
            Some(table) => State::Good(Arc::new(table), Fingerprint::of(".".as_ref()).expect("the folder we are in")),
            None => State::Missing("cannot be read".to_owned()),
        };
        Self { sources: vec![Arc::new(Source { name: name.into(), path: name.into(), state, refused: None })] }
    }

    fn tables(&self) -> impl Iterator<Item = &Table> {
        self.sources.iter().filter_map(|source| match &source.state {
            State::Good(table, _) => Some(&**table),
            State::Missing(_) => None,
        })
    }

    /// The first source that knows it, or cannot say.
    fn find_as(&self, local: &str, domain: &Domain, untagged: bool) -> Found {
        for source in &self.sources {
            match &source.state {
                State::Good(table, _) => {
                    if let Some(entry) = table.find(local, domain) {
                        return Found::Entry { source: source.name.clone(), entry, untagged };
                    }
                }
                State::Missing(why) => return Found::Unavailable(format!("{} {why}", source.name)),
            }
        }
        Found::Unknown
    }
}

/// How surely an entry is the one behind a hybrid routing address; the surest comes first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Claim {
    /// A cloud mailbox whose target it is.
    Target,
    /// A cloud mailbox without a target.
    LocalPart,
    /// Not in the cloud, as we know it; somebody else holds it to be.
    OtherKind,
}

impl Claim {
    fn of(entry: &Entry) -> Self {
        match entry {
            Entry::Cloud(Some(_)) => Self::Target,
            Entry::Cloud(None) => Self::LocalPart,
            Entry::OnPremises | Entry::Forward(_) | Entry::Group(_) | Entry::Alias(_) => Self::OtherKind,
        }
    }
}

impl Directory {
    fn find_owner_as(
        &self,
        local: &str,
        domain: &Domain,
        rank: &dyn Fn(&Domain) -> Option<usize>,
        untagged: bool,
    ) -> Owner {
        let mut best: Option<((Claim, usize), Arc<str>, Behind)> = None;
        for (number, source) in self.sources.iter().enumerate() {
            let table = match &source.state {
                State::Good(table, _) => table,
                // Whoever was found before it is a cloud mailbox all the same; else it might have known a better one.
                State::Missing(_) if matches!(best, Some(((Claim::Target | Claim::LocalPart, _), ..))) => break,
                State::Missing(why) => return Owner::Unavailable(format!("{} {why}", source.name)),
            };
            table.behind(local, domain, |behind| {
                let Some(rank) = rank(behind.address.domain()) else { return };
                let claim = (Claim::of(&behind.entry), rank);
                if best.as_ref().is_some_and(|(best, ..)| *best <= claim) {
                    return;
                }
                // What an earlier source says of somebody is what holds.
                let (own, domain) = (behind.address.local(), behind.address.domain());
                if self.sources[..number].iter().any(|earlier| earlier.knows(own, domain)) {
                    return;
                }
                best = Some((claim, source.name.clone(), behind));
            });
        }
        match best {
            Some((_, source, Behind { address, entry })) => Owner::Entry { source, address, entry, untagged },
            None => Owner::Unknown,
        }
    }
}

impl Source {
    fn knows(&self, local: &str, domain: &Domain) -> bool {
        match &self.state {
            State::Good(table, _) => table.find(local, domain).is_some(),
            State::Missing(_) => false,
        }
    }
}

impl Lookup for Directory {
    fn find(&self, address: &Address) -> Found {
        match self.find_as(address.local(), address.domain(), false) {
            Found::Unknown => match untagged(address.local()) {
                Some(local) => self.find_as(local, address.domain(), true),
                None => Found::Unknown,
            },
            found => found,
        }
    }

    fn find_owner(&self, routing: &Address, rank: &dyn Fn(&Domain) -> Option<usize>) -> Owner {
        let domain = routing.domain();
        match self.find_owner_as(routing.local(), domain, rank, false) {
            Owner::Unknown => match untagged(routing.local()) {
                Some(local) => self.find_owner_as(local, domain, rank, true),
                None => Owner::Unknown,
            },
            found => found,
        }
    }

    fn find_alias(&self, of: &Address, rank: &dyn Fn(&Domain) -> Option<usize>) -> Option<Address> {
        let key = of.key();
        // By domain, then that with the same local part, then by name: which one it is must not depend on chance.
        let mut best: Option<((usize, bool, String), Address)> = None;
        for table in self.tables() {
            table.aliases(of.local(), of.domain(), |alias| {
                let Some(rank) = rank(alias.domain()) else { return };
                let place = (rank, !alias.local().eq_ignore_ascii_case(of.local()), alias.key());
                if best.as_ref().is_some_and(|(best, _)| *best <= place) {
                    return;
                }
                // What an earlier source says of that address is what holds.
                if let Found::Entry { entry: Entry::Alias(held), .. } =
                    self.find_as(alias.local(), alias.domain(), false)
                    && held.key() == key
                {
                    best = Some((place, alias));
                }
            });
        }
        best.map(|(_, alias)| alias)
    }
}

/// The local part without its `+tag`; `None` if it has none. The first `+` counts, as in RFC 5233; one at the very
/// front leaves nobody.
pub fn untagged(local: &str) -> Option<&str> {
    local.split_once('+').map(|(user, _)| user).filter(|user| !user.is_empty())
}

fn load_source(source: &DirectorySource, last: Option<&Arc<Source>>) -> (State, LoadOutcome) {
    let good = match last.map(|last| &last.state) {
        Some(State::Good(table, fingerprint)) => Some((table, *fingerprint)),
        Some(State::Missing(_)) | None => None,
    };
    if let Some((table, fingerprint)) = good
        && Fingerprint::of(&source.path).is_ok_and(|now| now == fingerprint)
    {
        return (State::Good(table.clone(), fingerprint), LoadOutcome::Unchanged);
    }
    match load_steady(source) {
        Ok(loaded) => {
            let recipients = loaded.table.len();
            let state = State::Good(Arc::new(loaded.table), loaded.fingerprint);
            (state, LoadOutcome::Loaded { recipients, faults: loaded.faults, unlisted: loaded.unlisted })
        }
        Err(why) => {
            let state = match good {
                // The old fingerprint stays with the old table: the next reload tries again.
                Some((table, fingerprint)) => State::Good(table.clone(), fingerprint),
                None => State::Missing(why.to_string()),
            };
            (state, LoadOutcome::Refused { why, kept: good.is_some() })
        }
    }
}

fn load_steady(source: &DirectorySource) -> Result<file::Loaded, LoadError> {
    let mut attempt = 1;
    loop {
        match file::load(&source.path) {
            Err(LoadError::Changing) if attempt < ATTEMPTS => attempt += 1,
            result => return result,
        }
    }
}

impl Report {
    /// True if the file as a whole was.
    pub fn is_refused(&self) -> bool {
        matches!(self.outcome, LoadOutcome::Refused { .. })
    }

    /// True if somebody should look: the file, or a line of it, was refused.
    pub fn is_faulty(&self) -> bool {
        match &self.outcome {
            LoadOutcome::Loaded { faults, .. } => !faults.is_empty(),
            LoadOutcome::Unchanged => false,
            LoadOutcome::Refused { .. } => true,
        }
    }
}

impl fmt::Display for Report {
    /// One line for the source, and one for each of its faults: `recipients.csv:17: …`
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let source = &self.source;
        match &self.outcome {
            LoadOutcome::Unchanged => write!(f, "{source}: unchanged"),
            LoadOutcome::Refused { why, kept: true } => write!(f, "{source}: {why}; the last good one stays"),
            LoadOutcome::Refused { why, kept: false } => {
                write!(f, "{source}: {why}; until it is there, its recipients get 451 4.4.3")
            }
            LoadOutcome::Loaded { recipients, faults, unlisted } => {
                write!(f, "{source}: {recipients} recipients")?;
                for Fault { line, text } in faults {
                    write!(f, "\n{source}:{line}: {text}; the line is skipped")?;
                }
                if *unlisted > 0 {
                    write!(f, "\n{source}: {unlisted} more lines are faulty and skipped")?;
                }
                Ok(())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn source(folder: &tempfile::TempDir, name: &str, content: &str) -> DirectorySource {
        let path = folder.path().join(name);
        fs::write(&path, content).unwrap();
        DirectorySource { name: name.into(), path }
    }

    /// Replaces a file as a careful writer does; the new inode makes it another file within the same tick of the clock.
    fn replace(source: &DirectorySource, content: &str) {
        let new = source.path.with_extension("new");
        fs::write(&new, content).unwrap();
        fs::rename(&new, &source.path).unwrap();
    }

    fn find(directory: &Directory, address: &str) -> String {
        match directory.find(&Address::parse(address).unwrap()) {
            Found::Entry { source, entry, untagged } => {
                format!("{source}: {entry:?}{}", if untagged { ", untagged" } else { "" })
            }
            Found::Unknown => "unknown".into(),
            Found::Unavailable(why) => format!("unavailable: {why}"),
        }
    }

    const HEADER: &str = "address,type,target\n";

    #[test]
    fn an_alias_in_another_domain_is_found_by_what_it_stands_for() {
        let folder = tempfile::tempdir().unwrap();
        let first = source(
            &folder,
            "a.csv",
            &format!(
                "{HEADER}taken@contoso.com,on-premises,\nann@gmail.example,on-premises,\n\
                 same@gmail.example,alias,ann@gmail.example\na.b@fabrikam.com,alias,Ann@gmail.example\n\
                 z@contoso.com,alias,ann@gmail.example\nfwd@contoso.com,forward,ann@gmail.example\n"
            ),
        );
        let second = source(
            &folder,
            "b.csv",
            &format!(
                "{HEADER}taken@contoso.com,alias,ann@gmail.example\nANN@fabrikam.com,alias,ann@gmail.example\n\
                 y@contoso.com,alias,ann@gmail.example\ntaken@contoso.com,alias,bea@gmail.example\n\
                 bea@gmail.example,on-premises,\nc@x.example,alias,bea@gmail.example\n"
            ),
        );
        let (directory, _) = Directory::load(&[first, second]);
        let find = |of: &str, domains: &[&str]| {
            let rank = |domain: &Domain| domains.iter().position(|one| *one == domain.as_str());
            let found = directory.find_alias(&Address::parse(of).unwrap(), &rank);
            found.map(|alias| alias.to_string()).unwrap_or_default()
        };
        for (of, domains, expected) in [
            ("ann@gmail.example", &["contoso.com", "fabrikam.com"][..], "y@contoso.com"),
            ("ANN@gmail.example", &["fabrikam.com", "contoso.com"], "ann@fabrikam.com"),
            ("ann@gmail.example", &["gmail.example", "x.example"], ""),
            ("ann@contoso.com", &["contoso.com"], ""),
            // What the first source has under that name holds.
            ("bea@gmail.example", &["contoso.com"], ""),
            ("bea@gmail.example", &["contoso.com", "x.example"], "c@x.example"),
            ("nobody@nowhere.example", &["contoso.com"], ""),
        ] {
            assert_eq!(find(of, domains), expected, "{of} in {domains:?}");
        }
    }

    #[test]
    fn the_first_source_that_knows_an_address_answers() {
        let folder = tempfile::tempdir().unwrap();
        let first = source(&folder, "a.csv", &format!("{HEADER}anna@contoso.com,on-premises,\n"));
        let second = source(
            &folder,
            "b.csv",
            &format!("{HEADER}anna@contoso.com,cloud,\ndavid@contoso.com,cloud,\nAnna+Lists@contoso.com,cloud,\n"),
        );
        let (directory, reports) = Directory::load(&[first, second]);
        assert!(reports.iter().all(|report| !report.is_faulty()), "{reports:?}");
        for (address, expected) in [
            ("anna@contoso.com", "a.csv: OnPremises"),
            ("ANNA@CONTOSO.COM", "a.csv: OnPremises"),
            ("david@contoso.com", "b.csv: Cloud(None)"),
            ("david+news@contoso.com", "b.csv: Cloud(None), untagged"),
            ("david+news+more@contoso.com", "b.csv: Cloud(None), untagged"),
            // The whole address comes first, even where an earlier source knows the one without the tag.
            ("anna+LISTS@contoso.com", "b.csv: Cloud(None)"),
            ("anna+x@contoso.com", "a.csv: OnPremises, untagged"),
            ("+david@contoso.com", "unknown"),
            ("nobody@contoso.com", "unknown"),
            ("david@fabrikam.com", "unknown"),
        ] {
            assert_eq!(find(&directory, address), expected, "{address}");
        }
        assert_eq!(directory.len(), 4);
    }

    #[test]
    fn a_source_that_cannot_answer_is_never_taken_for_one_that_does_not_know() {
        // S-110, F-051: 451, not 550; and not what a source of lower rank says.
        let folder = tempfile::tempdir().unwrap();
        let good = source(&folder, "a.csv", &format!("{HEADER}anna@contoso.com,on-premises,\n"));
        let missing = DirectorySource { name: "gone.csv".into(), path: folder.path().join("gone.csv") };
        let last = source(&folder, "z.csv", &format!("{HEADER}david@contoso.com,cloud,\n"));
        let (directory, reports) = Directory::load(&[good, missing, last]);
        assert!(matches!(reports[1].outcome, LoadOutcome::Refused { kept: false, .. }), "{reports:?}");
        assert_eq!(find(&directory, "anna@contoso.com"), "a.csv: OnPremises");
        for address in ["david@contoso.com", "nobody@contoso.com", "anna+x@contoso.com"] {
            assert!(find(&directory, address).starts_with("unavailable: gone.csv cannot be read"), "{address}");
        }
    }

    #[test]
    fn a_hybrid_routing_address_is_found_by_its_mailbox() {
        let folder = tempfile::tempdir().unwrap();
        let first = source(
            &folder,
            "a.csv",
            &format!(
                "{HEADER}anna@contoso.com,on-premises,\njulie@contoso.com,on-premises,\nkim@fabrikam.com,cloud,\n"
            ),
        );
        let second = source(
            &folder,
            "b.csv",
            &format!(
                "{HEADER}david@contoso.com,cloud,\ndora@contoso.com,cloud,dora.x@cloud.example\n\
                 julie@contoso.com,cloud,\nanna@fabrikam.com,cloud,\nkim@contoso.com,cloud,\n\
                 x@elsewhere.example,cloud,\neve@contoso.com,cloud,david@cloud.example\n\
                 lea@contoso.com,cloud,\nlea+vip@contoso.com,cloud,\n"
            ),
        );
        let sources = [first, second];
        let (directory, _) = Directory::load(&sources);
        let ranked = |domain: &Domain| ["contoso.com", "fabrikam.com"].iter().position(|name| *name == domain.as_str());
        let owner = |directory: &Directory, local: &str| match directory
            .find_owner(&Address::parse(&format!("{local}@cloud.example")).unwrap(), &ranked)
        {
            Owner::Entry { source, address, untagged, .. } => {
                format!("{source}: {address}{}", if untagged { ", untagged" } else { "" })
            }
            Owner::Unknown => "unknown".into(),
            Owner::Unavailable(why) => format!("unavailable: {why}"),
        };
        for (local, expected) in [
            // A target says it outright; a local part is only derived.
            ("david", "b.csv: eve@contoso.com"),
            ("DORA.X", "b.csv: dora@contoso.com"),
            ("dora.x+news", "b.csv: dora@contoso.com, untagged"),
            ("dora", "unknown"),
            // The first source holds julie to be on-premises, and what it says holds.
            ("julie", "a.csv: julie@contoso.com"),
            // A cloud mailbox comes before one that is none, even in a later domain.
            ("anna", "b.csv: anna@fabrikam.com"),
            // Of two cloud mailboxes the first accepted domain decides, whatever the source.
            ("kim", "b.csv: kim@contoso.com"),
            ("lea+vip", "b.csv: lea+vip@contoso.com"),
            ("lea+other", "b.csv: lea@contoso.com, untagged"),
            ("x", "unknown"),
            ("nobody", "unknown"),
        ] {
            assert_eq!(owner(&directory, local), expected, "{local}");
        }
        let missing = DirectorySource { name: "gone.csv".into(), path: folder.path().join("gone.csv") };
        let [first, second] = sources;
        let (directory, _) = Directory::load(&[first, missing, second]);
        for (local, expected) in [
            ("kim", "a.csv: kim@fabrikam.com"),
            ("julie", "unavailable: gone.csv cannot be read"),
            ("david", "unavailable: gone.csv cannot be read"),
        ] {
            assert!(owner(&directory, local).starts_with(expected), "{local}: {}", owner(&directory, local));
        }
    }

    #[test]
    fn a_refused_file_leaves_the_last_good_one() {
        let folder = tempfile::tempdir().unwrap();
        let sources = [source(&folder, "a.csv", &format!("{HEADER}anna@contoso.com,on-premises,\n"))];
        let (first, _) = Directory::load(&sources);

        let (second, reports) = first.reload(&sources);
        assert!(matches!(reports[0].outcome, LoadOutcome::Unchanged), "{reports:?}");
        assert!(std::ptr::eq(first.tables().next().unwrap(), second.tables().next().unwrap()), "read anew");

        replace(&sources[0], "nonsense\n");
        let (third, reports) = second.reload(&sources);
        assert!(matches!(reports[0].outcome, LoadOutcome::Refused { kept: true, .. }), "{reports:?}");
        assert!(reports[0].to_string().ends_with("the last good one stays"), "{}", reports[0]);
        assert_eq!(find(&third, "anna@contoso.com"), "a.csv: OnPremises");
        assert_eq!((second.refused().count(), third.refused().count()), (0, 1));

        fs::remove_file(&sources[0].path).unwrap();
        let (fourth, _) = third.reload(&sources);
        assert_eq!(find(&fourth, "anna@contoso.com"), "a.csv: OnPremises");

        fs::write(&sources[0].path, format!("{HEADER}anna@contoso.com,cloud,\nbad\n")).unwrap();
        let (fifth, reports) = fourth.reload(&sources);
        assert_eq!(find(&fifth, "anna@contoso.com"), "a.csv: Cloud(None)");
        assert_eq!(
            reports[0].to_string(),
            "a.csv: 1 recipients\na.csv:3: expected address,type,target; found one column; the line is skipped"
        );
        assert_eq!(find(&first, "anna@contoso.com"), "a.csv: OnPremises", "a snapshot changed");
    }

    #[test]
    fn no_sources_know_nobody() {
        assert_eq!(find(&Directory::default(), "anna@contoso.com"), "unknown");
    }
}
