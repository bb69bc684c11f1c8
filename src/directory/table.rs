//! A million recipients, compactly: records by the hash of their address.
//!
//! A record is kind, domain number, local part in lower case, and what the kind needs. Domains are kept once and
//! numbered; a hybrid routing address with the same local part costs its domain's number only. So a recipient takes
//! some 45 bytes in its place (`directory::places`). A look-up allocates nothing unless the entry carries addresses. The
//! hash has random keys, because the table is asked for what strangers send.
//!
//! `behind` finds records by the local part under which the other premises knows them: that of the hybrid routing
//! address where an entry names one, else the entry's own. It is a position a recipient, 6 to 11 bytes.
//!
//! `aliases` finds aliases by the recipient they stand for, but only those in another domain than that: who asks wants
//! another domain.
//!
//! A table is built once and never changes; a changed file makes a new one.
//!
//! Not here: several sources and `+tag` (`directory`), the file's syntax (`directory::file`).

use std::fmt;
use std::hash::{BuildHasher, Hasher};

use foldhash::fast::RandomState;
use hashbrown::HashTable;

use super::Entry;
use super::places::Places;
use crate::message::address::LOCAL_LIMIT;
use crate::message::{Address, Domain};

/// Local parts up to this length, nearly all there are, are lowered on the stack.
const LOCAL: usize = 64;

/// What a source knows, unchangeable.
pub struct Table {
    places: Places,
    names: Names,
    /// Where each record is, by the local part of its name on the other premises.
    behind: HashTable<u32>,
    /// Where each alias is that stands for an address in another domain, by the local part of that address.
    aliases: HashTable<u32>,
    count: usize,
}

/// An entry that may stand behind a hybrid routing address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Behind {
    /// Its own address, in lower case.
    pub address: Address,
    /// What it says. A cloud mailbox with a target has exactly the address asked for.
    pub entry: Entry,
}

/// A table under construction: the records in the order they came, each behind its length, and an index to find
/// duplicates.
#[derive(Default)]
pub struct Builder {
    records: Vec<u8>,
    names: Names,
    index: HashTable<u32>,
    record: Vec<u8>,
}

/// Why an entry was not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Rejected {
    /// The address is there already, in whatever case; the first one stays.
    #[error("it is there already; the first line with it holds")]
    Duplicate,
    /// In lower case its local part is longer than any may be.
    #[error("in lower case its local part has more than 256 octets")]
    TooLong,
    /// Positions are 32 bits, and places want room: 2 GiB, some 70 million recipients.
    #[error("the table is full")]
    Full,
}

/// What is needed to find records and to read them.
#[derive(Default)]
struct Names {
    domains: Domains,
    keys: RandomState,
}

/// Each domain once, by number.
#[derive(Default)]
struct Domains {
    names: Vec<Domain>,
    index: HashTable<u32>,
    keys: RandomState,
}

/// The first byte of a record.
mod kind {
    pub const ON_PREMISES: u8 = 0;
    pub const CLOUD: u8 = 1;
    /// A hybrid routing address with the same local part: only its domain follows.
    pub const CLOUD_SAME_LOCAL: u8 = 2;
    pub const CLOUD_AT: u8 = 3;
    pub const FORWARD: u8 = 4;
    pub const GROUP: u8 = 5;
    pub const ALIAS: u8 = 6;
}

impl Table {
    /// What the table says of this local part, without regard to case, at this domain. No tags are cut here.
    pub fn find(&self, local: &str, domain: &Domain) -> Option<Entry> {
        let domain = self.names.domains.number(domain)?;
        lowered(local, |local| {
            self.places.find(self.names.hash(domain, local), |record| {
                let record = Record::read(record);
                record.is(domain, local).then(|| self.names.entry(record))
            })
        })
    }

    /// The entries whose name on the other premises would be `local` at `domain`: cloud mailboxes whose target that is,
    /// and every entry without a target that has this local part, whatever its domain.
    pub fn behind(&self, local: &str, domain: &Domain, mut take: impl FnMut(Behind)) {
        let target_domain = self.names.domains.number(domain);
        lowered(local, |local| {
            for &at in self.behind.iter_hash(self.names.hash_local(local)) {
                let record = Record::read(self.places.from(at));
                let (own, own_domain) = (record.local, record.domain);
                let is_it = match record.target() {
                    None => own == local,
                    Some((target, number)) => Some(number) == target_domain && is_lowered(target, local),
                };
                if is_it {
                    take(Behind { address: self.names.address(own, own_domain), entry: self.names.entry(record) });
                }
            }
        });
    }

    /// The aliases of `local` at `domain` that are in another domain.
    pub fn aliases(&self, local: &str, domain: &Domain, mut take: impl FnMut(Address)) {
        let Some(domain) = self.names.domains.number(domain) else { return };
        lowered(local, |local| {
            for &at in self.aliases.iter_hash(self.names.hash_local(local)) {
                let record = Record::read(self.places.from(at));
                if record.alias_of().is_some_and(|(of, number)| number == domain && is_lowered(of, local)) {
                    take(self.names.address(record.local, record.domain));
                }
            }
        });
    }

    /// The address of every entry, in no order.
    pub fn addresses(&self) -> impl Iterator<Item = Address> + '_ {
        self.places.all().map(|(_, record)| {
            let record = Record::read(record);
            self.names.address(record.local, record.domain)
        })
    }

    /// How many recipients it knows.
    pub fn len(&self) -> usize {
        self.count
    }

    /// True if it knows nobody.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Bytes of memory it holds.
    pub fn memory(&self) -> usize {
        let domains = &self.names.domains;
        let names: usize = domains.names.iter().map(|name| size_of::<Domain>() + name.as_str().len()).sum();
        let indexes = self.behind.allocation_size() + self.aliases.allocation_size() + domains.index.allocation_size();
        self.places.memory() + names + indexes
    }
}

impl Builder {
    /// Adds an entry; of two for one address the first stays.
    ///
    /// # Errors
    /// Why it was not taken.
    pub fn insert(&mut self, address: &Address, entry: &Entry) -> Result<(), Rejected> {
        let domain = self.names.domains.keep(address.domain())?;
        let Self { records, names, index, record } = self;
        lowered(address.local(), |local| {
            // Some letters take more room in lower case.
            if local.len() > LOCAL_LIMIT {
                return Err(Rejected::TooLong);
            }
            let hash = names.hash(domain, local);
            if index.find(hash, |&other| record_at(records, other).is(domain, local)).is_some() {
                return Err(Rejected::Duplicate);
            }
            record.clear();
            names.domains.write(record, domain, local, entry)?;
            let at = records.len();
            write_piece(records, record);
            // Its place takes up to 8/5 of that.
            if u32::try_from(records.len() * 2).is_err() {
                records.truncate(at);
                return Err(Rejected::Full);
            }
            // Its end fits, so its beginning does.
            let at = at as u32;
            index.insert_unique(hash, at, |&other| names.hash_of(&record_at(records, other)));
            Ok(())
        })
    }

    /// How many entries it has so far.
    pub fn len(&self) -> usize {
        self.index.len()
    }

    /// True if it has none.
    pub fn is_empty(&self) -> bool {
        self.index.is_empty()
    }

    /// The table, with no byte to spare.
    pub fn finish(self) -> Table {
        let Self { records, mut names, index, .. } = self;
        let count = index.len();
        drop(index);
        let mut places = Places::new(pieces(&records).map(<[u8]>::len));
        for record in pieces(&records) {
            places.insert(names.hash_of(&Record::read(record)), record);
        }
        drop(records);
        names.domains.names.shrink_to_fit();
        let behind = names.by_name_elsewhere(&places, count);
        let aliases = names.aliases_elsewhere(&places);
        Table { places, names, behind, aliases, count }
    }
}

/// The record that begins at `at`, with its length in front.
fn record_at(records: &[u8], at: u32) -> Record<'_> {
    Record::read(Reader(&records[at as usize..]).piece())
}

/// Every record, each with its length in front.
fn pieces(records: &[u8]) -> impl Iterator<Item = &[u8]> {
    let mut rest = Reader(records);
    std::iter::from_fn(move || (!rest.0.is_empty()).then(|| rest.piece()))
}

/// One record: what is always there, and what its kind adds.
struct Record<'a> {
    kind: u8,
    domain: u32,
    local: &'a [u8],
    rest: Reader<'a>,
}

impl<'a> Record<'a> {
    fn read(bytes: &'a [u8]) -> Self {
        let mut rest = Reader(bytes);
        Self { kind: rest.byte(), domain: rest.number(), local: rest.piece(), rest }
    }

    fn is(&self, domain: u32, local: &[u8]) -> bool {
        self.domain == domain && self.local == local
    }

    /// Local part and domain number of a hybrid routing address, where the entry names one.
    fn target(&self) -> Option<(&'a [u8], u32)> {
        let mut rest = Reader(self.rest.0);
        match self.kind {
            kind::CLOUD_SAME_LOCAL => Some((self.local, rest.number())),
            kind::CLOUD_AT => {
                let domain = rest.number();
                Some((rest.piece(), domain))
            }
            _ => None,
        }
    }

    /// Local part and domain number of the address that an alias stands for.
    fn alias_of(&self) -> Option<(&'a [u8], u32)> {
        let mut rest = Reader(self.rest.0);
        (self.kind == kind::ALIAS).then(|| {
            let domain = rest.number();
            (rest.piece(), domain)
        })
    }
}

impl Names {
    fn hash(&self, domain: u32, local: &[u8]) -> u64 {
        let mut hasher = self.keys.build_hasher();
        hasher.write_u32(domain);
        hasher.write(local);
        hasher.finish()
    }

    fn hash_of(&self, record: &Record<'_>) -> u64 {
        self.hash(record.domain, record.local)
    }

    fn hash_local(&self, local: &[u8]) -> u64 {
        let mut hasher = self.keys.build_hasher();
        hasher.write(local);
        hasher.finish()
    }

    /// The hash of a local part that may have kept its case.
    fn hash_lowered(&self, local: &[u8]) -> u64 {
        match std::str::from_utf8(local) {
            Ok(local) => lowered(local, |local| self.hash_local(local)),
            Err(_) => self.hash_local(local),
        }
    }

    /// The positions of all records by the local part of their name on the other premises.
    fn by_name_elsewhere(&self, places: &Places, count: usize) -> HashTable<u32> {
        let hash = |record: &Record<'_>| match record.target() {
            Some((target, _)) => self.hash_lowered(target),
            None => self.hash_local(record.local),
        };
        let mut index = HashTable::with_capacity(count);
        for (at, record) in places.all() {
            index.insert_unique(hash(&Record::read(record)), at, |&other| hash(&Record::read(places.from(other))));
        }
        index
    }

    /// The positions of the aliases of addresses in other domains, by the local part of those.
    fn aliases_elsewhere(&self, places: &Places) -> HashTable<u32> {
        let hash = |record: &Record<'_>| record.alias_of().map_or(0, |(of, _)| self.hash_lowered(of));
        let mut index = HashTable::new();
        for (at, record) in places.all() {
            let record = Record::read(record);
            if record.alias_of().is_some_and(|(_, domain)| domain != record.domain) {
                index.insert_unique(hash(&record), at, |&other| hash(&Record::read(places.from(other))));
            }
        }
        index.shrink_to_fit(|&other| hash(&Record::read(places.from(other))));
        index
    }

    fn entry(&self, record: Record<'_>) -> Entry {
        let Record { kind, local, mut rest, .. } = record;
        match kind {
            kind::ON_PREMISES => Entry::OnPremises,
            kind::CLOUD => Entry::Cloud(None),
            kind::CLOUD_SAME_LOCAL => Entry::Cloud(Some(self.address(local, rest.number()))),
            kind::CLOUD_AT => Entry::Cloud(Some(self.read_address(&mut rest))),
            kind::FORWARD => Entry::Forward(self.read_address(&mut rest)),
            kind::ALIAS => Entry::Alias(self.read_address(&mut rest)),
            kind::GROUP => {
                let members = rest.number();
                Entry::Group((0..members).map(|_| self.read_address(&mut rest)).collect())
            }
            other => unreachable!("nobody writes a record of kind {other}"),
        }
    }

    fn read_address(&self, from: &mut Reader<'_>) -> Address {
        let domain = from.number();
        self.address(from.piece(), domain)
    }

    fn address(&self, local: &[u8], domain: u32) -> Address {
        let local = std::str::from_utf8(local).expect("it was written from a str");
        Address::new(local, self.domains.names[domain as usize].clone()).expect("it was written from an Address")
    }
}

impl Domains {
    fn number(&self, domain: &Domain) -> Option<u32> {
        let hash = self.keys.hash_one(domain.as_str());
        self.index.find(hash, |&number| self.names[number as usize] == *domain).copied()
    }

    fn keep(&mut self, domain: &Domain) -> Result<u32, Rejected> {
        if let Some(number) = self.number(domain) {
            return Ok(number);
        }
        let number = u32::try_from(self.names.len()).map_err(|_| Rejected::Full)?;
        self.names.push(domain.clone());
        let Self { names, index, keys } = self;
        index.insert_unique(keys.hash_one(domain.as_str()), number, |&other| {
            keys.hash_one(names[other as usize].as_str())
        });
        Ok(number)
    }

    fn write(&mut self, to: &mut Vec<u8>, domain: u32, local: &[u8], entry: &Entry) -> Result<(), Rejected> {
        let kind = match entry {
            Entry::OnPremises => kind::ON_PREMISES,
            Entry::Cloud(None) => kind::CLOUD,
            Entry::Cloud(Some(target)) if target.local().as_bytes() == local => kind::CLOUD_SAME_LOCAL,
            Entry::Cloud(Some(_)) => kind::CLOUD_AT,
            Entry::Forward(_) => kind::FORWARD,
            Entry::Group(_) => kind::GROUP,
            Entry::Alias(_) => kind::ALIAS,
        };
        to.push(kind);
        write_number(to, domain);
        write_piece(to, local);
        match entry {
            Entry::OnPremises | Entry::Cloud(None) => {}
            Entry::Cloud(Some(target)) if kind == kind::CLOUD_SAME_LOCAL => {
                let domain = self.keep(target.domain())?;
                write_number(to, domain);
            }
            Entry::Cloud(Some(target)) | Entry::Forward(target) | Entry::Alias(target) => {
                self.write_address(to, target)?
            }
            Entry::Group(members) => {
                write_number(to, u32::try_from(members.len()).map_err(|_| Rejected::Full)?);
                for member in members {
                    self.write_address(to, member)?;
                }
            }
        }
        Ok(())
    }

    fn write_address(&mut self, to: &mut Vec<u8>, address: &Address) -> Result<(), Rejected> {
        let domain = self.keep(address.domain())?;
        write_number(to, domain);
        write_piece(to, address.local().as_bytes());
        Ok(())
    }
}

/// Reads what `write_*` wrote; only positions that `Builder::insert` noted are ever read.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn byte(&mut self) -> u8 {
        let (first, rest) = self.0.split_first().expect("a record is whole");
        self.0 = rest;
        *first
    }

    fn number(&mut self) -> u32 {
        let mut number = 0;
        let mut shift = 0;
        loop {
            let byte = self.byte();
            number |= u32::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                return number;
            }
            shift += 7;
        }
    }

    fn piece(&mut self) -> &'a [u8] {
        let length = self.number() as usize;
        let (piece, rest) = self.0.split_at(length);
        self.0 = rest;
        piece
    }
}

/// Seven bits a byte, the low ones first.
fn write_number(bytes: &mut Vec<u8>, mut number: u32) {
    while number >= 0x80 {
        bytes.push((number & 0x7f) as u8 | 0x80);
        number >>= 7;
    }
    bytes.push(number as u8);
}

fn write_piece(bytes: &mut Vec<u8>, piece: &[u8]) {
    // A piece is a local part or a record of one line: its length fits.
    write_number(bytes, piece.len() as u32);
    bytes.extend_from_slice(piece);
}

/// Hands on `local` in lower case; on the stack where it is ASCII, as nearly all are.
fn lowered<T>(local: &str, then: impl FnOnce(&[u8]) -> T) -> T {
    let mut small = [0; LOCAL];
    match small.get_mut(..local.len()) {
        Some(small) if local.is_ascii() => {
            small.copy_from_slice(local.as_bytes());
            small.make_ascii_lowercase();
            then(small)
        }
        _ => then(local.to_lowercase().as_bytes()),
    }
}

/// Is `local` this in lower case?
fn is_lowered(local: &[u8], lower: &[u8]) -> bool {
    local == lower || std::str::from_utf8(local).is_ok_and(|local| lowered(local, |local| local == lower))
}

impl fmt::Debug for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Table({} recipients)", self.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(text: &str) -> Address {
        Address::parse(text).unwrap()
    }

    fn find(table: &Table, text: &str) -> Option<Entry> {
        let address = address(text);
        table.find(address.local(), address.domain())
    }

    #[test]
    fn what_was_put_in_comes_out_whatever_the_case() {
        let entries = [
            ("anna@contoso.com", Entry::OnPremises),
            ("david@contoso.com", Entry::Cloud(None)),
            ("Eva@contoso.com", Entry::Cloud(Some(address("eva@contoso.mail.onmicrosoft.com")))),
            ("fred@contoso.com", Entry::Cloud(Some(address("Frederick.S@contoso.mail.onmicrosoft.com")))),
            ("old@contoso.com", Entry::Forward(address("new@elsewhere.example"))),
            ("team@contoso.com", Entry::Group(vec![address("anna@contoso.com"), address("x@fabrikam.com")])),
            ("a.smith@contoso.com", Entry::Alias(address("Anna@contoso.com"))),
            ("anna@sub.contoso.com", Entry::Cloud(None)),
        ];
        let mut builder = Builder::default();
        for (name, entry) in &entries {
            builder.insert(&address(name), entry).unwrap();
        }
        let table = builder.finish();
        assert_eq!(table.len(), entries.len());
        for (name, entry) in &entries {
            assert_eq!(find(&table, name).as_ref(), Some(entry), "{name}");
            assert_eq!(find(&table, &name.to_uppercase()).as_ref(), Some(entry), "{name} in capitals");
        }
        for name in ["ann@contoso.com", "annaa@contoso.com", "anna@contoso.org", "anna@fabrikam.com"] {
            assert_eq!(find(&table, name), None, "{name}");
        }
    }

    #[test]
    fn of_two_entries_for_one_address_the_first_stays() {
        let mut builder = Builder::default();
        builder.insert(&address("anna@contoso.com"), &Entry::OnPremises).unwrap();
        assert_eq!(builder.insert(&address("ANNA@Contoso.com"), &Entry::Cloud(None)), Err(Rejected::Duplicate));
        let table = builder.finish();
        assert_eq!(table.len(), 1);
        assert_eq!(find(&table, "anna@contoso.com"), Some(Entry::OnPremises));
    }

    #[test]
    fn letters_beyond_ascii_have_case_too() {
        let mut builder = Builder::default();
        builder.insert(&address("Jürgen.Öz@contoso.com"), &Entry::OnPremises).unwrap();
        let table = builder.finish();
        assert_eq!(find(&table, "jürgen.öz@contoso.com"), Some(Entry::OnPremises));
        assert_eq!(find(&table, "JÜRGEN.ÖZ@contoso.com"), Some(Entry::OnPremises));
    }

    #[test]
    fn local_parts_may_be_as_long_as_verp_and_srs_make_them() {
        let long = format!("bounces+{}@contoso.com", "x".repeat(200));
        let mut builder = Builder::default();
        builder.insert(&address(&long), &Entry::Forward(address(&long.replace("contoso.com", "d.example")))).unwrap();
        // In lower case it takes half as much again.
        let grows = Address::new(&"\u{23a}".repeat(100), Domain::parse("contoso.com").unwrap()).unwrap();
        assert_eq!(builder.insert(&grows, &Entry::OnPremises), Err(Rejected::TooLong));
        let table = builder.finish();
        assert!(matches!(find(&table, &long.to_uppercase()), Some(Entry::Forward(to)) if to.local().len() == 208));
    }

    #[test]
    fn whose_name_on_the_other_premises_is_it() {
        let mut builder = Builder::default();
        for (name, entry) in [
            ("anna@contoso.com", Entry::OnPremises),
            ("david@contoso.com", Entry::Cloud(None)),
            ("david@fabrikam.com", Entry::Cloud(None)),
            ("Eva@contoso.com", Entry::Cloud(Some(address("eva@cloud.example")))),
            ("eva@fabrikam.com", Entry::Cloud(Some(address("Eva@other.example")))),
            ("fred@contoso.com", Entry::Cloud(Some(address("Frederick.Ö@cloud.example")))),
            ("old@contoso.com", Entry::Forward(address("new@elsewhere.example"))),
        ] {
            builder.insert(&address(name), &entry).unwrap();
        }
        let table = builder.finish();
        for (asked, expected) in [
            ("ANNA@cloud.example", &["anna@contoso.com"][..]),
            ("david@cloud.example", &["david@contoso.com", "david@fabrikam.com"]),
            ("david@nobody.example", &["david@contoso.com", "david@fabrikam.com"]),
            ("EVA@cloud.example", &["eva@contoso.com"]),
            ("eva@other.example", &["eva@fabrikam.com"]),
            ("eva@nobody.example", &[]),
            // Who has a target is not known under the own local part.
            ("fred@cloud.example", &[]),
            ("frederick.ö@cloud.example", &["fred@contoso.com"]),
            ("FREDERICK.Ö@cloud.example", &["fred@contoso.com"]),
            ("frederick.ö@other.example", &[]),
            ("old@cloud.example", &["old@contoso.com"]),
            ("ann@cloud.example", &[]),
        ] {
            let asked = address(asked);
            let mut found = Vec::new();
            table.behind(asked.local(), asked.domain(), |behind| {
                assert_eq!(find(&table, &behind.address.to_string()), Some(behind.entry), "{asked}");
                found.push(behind.address.to_string());
            });
            found.sort();
            assert_eq!(found, expected, "{asked}");
        }
        let mut all: Vec<_> = table.addresses().map(|address| address.to_string()).collect();
        all.sort();
        assert_eq!(all.len(), table.len());
        assert_eq!(all[..2], ["anna@contoso.com", "david@contoso.com"]);
    }

    #[test]
    fn fifty_thousand_are_all_found_and_take_at_most_a_hundred_bytes_each() {
        let mut builder = Builder::default();
        let count = 50_000;
        for number in 0..count {
            let name = format!("firstname.lastname{number}@department{}.contoso.com", number % 7);
            let target = address(&format!("firstname.lastname{number}@contoso.mail.onmicrosoft.com"));
            builder.insert(&address(&name), &Entry::Cloud(Some(target))).unwrap();
        }
        let table = builder.finish();
        assert!(table.memory() / count <= 100, "{} bytes each", table.memory() / count);
        for number in 0..count {
            let name = format!("FirstName.LastName{number}@department{}.contoso.com", number % 7);
            let target = address(&format!("firstname.lastname{number}@contoso.mail.onmicrosoft.com"));
            assert_eq!(find(&table, &name), Some(Entry::Cloud(Some(target))), "{name}");
            let stranger = format!("firstname.lastname{number}@department{}.contoso.com", (number + 1) % 7);
            assert_eq!(find(&table, &stranger), None, "{stranger}");
        }
    }
}
