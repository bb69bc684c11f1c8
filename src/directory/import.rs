//! An Exchange export becomes a CSV of recipients.
//!
//! The export is what `Export-Csv` makes of Get-Recipient, Get-Mailbox, Get-RemoteMailbox, Get-MailUser,
//! Get-MailContact or Get-DistributionGroup in the on-premises organization: with or without the `#TYPE` line and Excel's
//! `sep=;`, in UTF-8 or UTF-16, with commas or (`-UseCulture`) semicolons. Each recipient becomes a line under its primary
//! address and an alias for each further one. What has no place in the directory is left out, and said with its line and
//! why.
//!
//! A contact whose primary address is its external address has no line of its own, for mail to that leaves anyway: its
//! addresses in our domains become forwards to it. A remote mailbox without a routing address has one among its further
//! addresses, mostly.
//!
//! Two things stay with Exchange, because they happen behind the mailbox's or the group's own server: forwarding that a
//! mailbox does (`ForwardingSmtpAddress`), and groups whose members the export does not say.
//!
//! [`Imported::replacing`] says what a new file would take away from the one in its place. What import wrote itself is
//! told by its form: every line as it writes it, aliases last and each of somebody in the file.
//!
//! Standards: RFC 4180 (CSV), which PowerShell follows, line ends within quotes included.

use std::collections::{HashMap, HashSet};
use std::fmt::Write as _;

use super::Entry;
use super::file::{self, LoadError};
use crate::message::{Address, Domain};

/// Under it Exchange Online has the tenants' routing domains.
const ROUTING_DOMAINS: &str = "mail.onmicrosoft.com";

/// What is known of the organization that an export is of.
#[derive(Clone, Copy, Default)]
pub struct Organization<'a> {
    /// Is this an accepted domain? `None`: nobody can say.
    pub accepted: Option<&'a dyn Fn(&Domain) -> bool>,
    /// `[hybrid] routing_domain`.
    pub routing_domain: Option<&'a Domain>,
}

/// What became of an export.
#[derive(Debug, Default)]
pub struct Imported {
    lines: Vec<Line>,
    /// They stand behind the other lines.
    aliases: Vec<Line>,
    /// Recipients and addresses that were left out, and what somebody should know of others; in the export's order.
    pub remarks: Vec<Remark>,
}

/// Something to know of a line of the export.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Remark {
    /// The line of the export.
    pub line: usize,
    /// It was left out, or is there but not as one might think.
    pub left_out: bool,
    /// Who, and why.
    pub text: String,
}

/// One line of the directory.
#[derive(Debug)]
struct Line {
    address: Address,
    kind: &'static str,
    target: String,
}

impl Line {
    /// The line that says this of `address`.
    fn of(address: Address, entry: &Entry) -> Self {
        let (kind, target) = match entry {
            Entry::OnPremises => ("on-premises", String::new()),
            Entry::Cloud(target) => ("cloud", target.as_ref().map(ToString::to_string).unwrap_or_default()),
            Entry::Forward(to) => ("forward", to.to_string()),
            Entry::Group(members) => ("group", joined(members)),
            Entry::Alias(of) => ("alias", of.to_string()),
        };
        Self { address, kind, target }
    }

    /// What it says; lines that differ in case say the same.
    fn key(&self) -> (String, &'static str, String) {
        (self.address.key(), self.kind, self.target.to_lowercase())
    }

    fn text(&self) -> String {
        format!("{},{},{}", quoted(&self.address.to_string()), self.kind, quoted(&self.target))
    }
}

/// What a new file takes away from the one in its place.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Replaced {
    /// Lines that import did not write and that the new file does not have: number and text.
    pub by_hand: Vec<(u64, String)>,
    /// Addresses that the new file does not have.
    pub gone: Vec<Address>,
}

impl Imported {
    /// The recipient file.
    pub fn to_csv(&self) -> String {
        let mut csv = String::from(HEADER);
        for line in self.all() {
            // Writing to a String cannot fail.
            let _ = writeln!(csv, "{}", line.text());
        }
        csv
    }

    /// What is lost of the file `before` where this is written in its place.
    ///
    /// # Errors
    /// It is no recipient file.
    pub fn replacing(&self, before: &[u8]) -> Result<Replaced, LoadError> {
        let mut replaced = Replaced::default();
        if before.is_empty() {
            return Ok(replaced);
        }
        let said: HashSet<_> = self.all().map(Line::key).collect();
        let known: HashSet<_> = self.all().map(|line| line.address.key()).collect();
        let mut raw = before.split(|&byte| byte == b'\n').zip(1u64..);
        let (mut owners, mut aliases): (HashSet<String>, Vec<_>) = Default::default();
        let mut seen = HashSet::new();
        file::read_lines(before, |number, read| {
            let text = raw.find(|(_, at)| *at == number).map_or(&[][..], |(text, _)| text);
            let shown = String::from_utf8_lossy(text).trim_end().to_owned();
            let Ok((address, entry)) = read else { return replaced.by_hand.push((number, shown)) };
            let key = address.key();
            if !known.contains(&key) && seen.insert(key.clone()) {
                replaced.gone.push(address.clone());
            }
            let line = Line::of(address, &entry);
            let is_lost = !said.contains(&line.key());
            let is_as_written = line.text().as_bytes() == text;
            match &entry {
                Entry::Alias(of) => aliases.push((number, shown, of.key(), is_lost, is_as_written)),
                _ => {
                    owners.insert(key);
                    if is_lost && !(is_as_written && aliases.is_empty()) {
                        replaced.by_hand.push((number, shown));
                    }
                }
            }
        })?;
        let strange = aliases
            .into_iter()
            .filter(|(_, _, of, is_lost, is_as_written)| *is_lost && !(*is_as_written && owners.contains(of)));
        replaced.by_hand.extend(strange.map(|(number, shown, ..)| (number, shown)));
        replaced.by_hand.sort();
        Ok(replaced)
    }

    /// How many lines of this type there are.
    pub fn count(&self, kind: &str) -> usize {
        self.all().filter(|line| line.kind == kind).count()
    }

    /// How many lines there are.
    pub fn len(&self) -> usize {
        self.all().count()
    }

    /// True if nothing of the export has a place in the directory.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn all(&self) -> impl Iterator<Item = &Line> {
        self.lines.iter().chain(&self.aliases)
    }
}

const HEADER: &str = "address,type,target\n";

fn joined(members: &[Address]) -> String {
    members.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ")
}

/// A local part may have quotes, and within them commas.
fn quoted(text: &str) -> String {
    if text.contains([',', '"']) { format!("\"{}\"", text.replace('"', "\"\"")) } else { text.to_owned() }
}

/// Reads an export.
///
/// # Errors
/// It is none, in words.
pub fn import(bytes: &[u8], organization: &Organization<'_>) -> Result<Imported, String> {
    let text = decoded(bytes)?;
    let mut records = Records::new(&text);
    let Some((_, header)) = records.next().transpose()? else { return Err("it is empty".to_owned()) };
    let columns = Columns::of(&header)?;
    let is_header = |fields: &[String]| {
        fields.len() == header.len()
            && fields.iter().zip(&header).all(|(field, name)| field.trim().eq_ignore_ascii_case(name.trim()))
    };
    let mut rows = Vec::new();
    for record in records {
        let (line, fields) = record?;
        // Exports that were put one behind the other have several headers.
        let is_type = fields.first().is_some_and(|first| first.starts_with("#TYPE"));
        if fields.iter().any(|field| !field.trim().is_empty()) && !is_type && !is_header(&fields) {
            rows.push(Row { line, fields });
        }
    }
    Ok(Import::new(&columns, &rows, organization).run())
}

/// Export-Csv writes UTF-16 with `-Encoding Unicode`, UTF-8 with and without a byte order mark, and in old versions
/// ASCII, in which everything else has become question marks.
fn decoded(bytes: &[u8]) -> Result<String, String> {
    let units = |bytes: &[u8], unit: fn([u8; 2]) -> u16| {
        let (pairs, rest) = bytes.as_chunks::<2>();
        if !rest.is_empty() {
            return Err("it is UTF-16 and ends within a character".to_owned());
        }
        let units: Vec<u16> = pairs.iter().map(|pair| unit(*pair)).collect();
        String::from_utf16(&units).map_err(|_| "it begins as UTF-16 and is not".to_owned())
    };
    let text = match bytes {
        [0xff, 0xfe, rest @ ..] => units(rest, u16::from_le_bytes),
        [0xfe, 0xff, rest @ ..] => units(rest, u16::from_be_bytes),
        [0xef, 0xbb, 0xbf, rest @ ..] => utf8(rest),
        // Some tools leave the mark out; the header is ASCII.
        [1..=255, 0, 1..=255, 0, ..] => units(bytes, u16::from_le_bytes),
        [0, 1..=255, 0, 1..=255, ..] => units(bytes, u16::from_be_bytes),
        _ => utf8(bytes),
    }?;
    // One that stood in front of another export.
    Ok(text.replace('\u{feff}', ""))
}

fn utf8(bytes: &[u8]) -> Result<String, String> {
    let text = std::str::from_utf8(bytes)
        .map_err(|_| "it is neither UTF-8 nor UTF-16; export it with Export-Csv -Encoding UTF8".to_owned())?;
    Ok(text.to_owned())
}

/// The records of a CSV file, each with the line it begins in.
struct Records<'a> {
    rest: &'a str,
    line: usize,
    separator: char,
}

impl<'a> Records<'a> {
    /// Behind what may stand in front of the header: nothing, `#TYPE …` (Windows PowerShell writes it unless told
    /// -NoTypeInformation), and `sep=;`, by which Excel is told the separator.
    fn new(text: &'a str) -> Self {
        let (mut rest, mut line, mut separator) = (text, 1, None);
        let header = loop {
            let (first, behind) = rest.split_once('\n').unwrap_or((rest, ""));
            let first = first.trim_end_matches('\r');
            let told = separator_line(first);
            let is_blank = first.trim_matches([' ', '\t', ',', ';', '"']).is_empty();
            if rest.is_empty() || !(told.is_some() || is_blank || first.starts_with("#TYPE")) {
                break first;
            }
            separator = separator.or(told);
            (rest, line) = (behind, line + 1);
        };
        // Whatever separates the names of the header, which have no separators in them.
        let guessed = || {
            let count = |separator: char| header.matches(separator).count();
            [',', ';', '\t'].into_iter().rev().max_by_key(|&one| count(one)).unwrap_or(',')
        };
        Self { rest, line, separator: separator.unwrap_or_else(guessed) }
    }
}

/// The separator that `sep=;` names; whoever saved it with another program has quotes or further separators there.
fn separator_line(line: &str) -> Option<char> {
    let line = line.strip_prefix('"').unwrap_or(line);
    let (key, value) = line.split_at_checked("sep=".len())?;
    let mut rest = value.chars();
    let separator = rest.next().filter(|_| key.eq_ignore_ascii_case("sep="))?;
    rest.all(|sign| matches!(sign, '"' | ',' | ';' | '\t' | ' ')).then_some(separator)
}

impl Iterator for Records<'_> {
    type Item = Result<(usize, Vec<String>), String>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.rest.is_empty() {
            return None;
        }
        let begin = self.line;
        let mut fields = Vec::new();
        loop {
            let mut field = String::new();
            if let Some(mut rest) = self.rest.strip_prefix('"') {
                loop {
                    let Some((text, after)) = rest.split_once('"') else {
                        self.rest = "";
                        return Some(Err(format!("line {begin}: a quote is not closed")));
                    };
                    field.push_str(text);
                    rest = after;
                    match rest.strip_prefix('"') {
                        Some(after) => {
                            field.push('"');
                            rest = after;
                        }
                        None => break,
                    }
                }
                self.line += field.matches('\n').count();
                self.rest = rest;
            }
            // What stands unquoted, or wrongly behind the quotes.
            let end = self.rest.find([self.separator, '\n']).unwrap_or(self.rest.len());
            field.push_str(self.rest[..end].trim_end_matches('\r'));
            fields.push(field);
            let mut behind = self.rest[end..].chars();
            let at = behind.next();
            self.rest = behind.as_str();
            if at != Some(self.separator) {
                self.line += usize::from(at == Some('\n'));
                return Some(Ok((begin, fields)));
            }
        }
    }
}

/// Where the columns are.
struct Columns {
    primary: Option<usize>,
    addresses: Option<usize>,
    details: usize,
    routing: Option<usize>,
    external: Option<usize>,
    forwarding: Vec<usize>,
    members: Option<usize>,
    /// By what a group's members may be named.
    names: Vec<usize>,
}

impl Columns {
    fn of(header: &[String]) -> Result<Self, String> {
        let column = |name: &str| header.iter().position(|field| field.trim().eq_ignore_ascii_case(name));
        let details = column("RecipientTypeDetails").or_else(|| column("RecipientType")).ok_or_else(|| {
            format!(
                "expected the columns of an Exchange export, RecipientTypeDetails among them; found {}",
                header.iter().take(8).map(|name| name.trim()).collect::<Vec<_>>().join(", ")
            )
        })?;
        let (primary, addresses) = (column("PrimarySmtpAddress"), column("EmailAddresses"));
        if primary.is_none() && addresses.is_none() {
            return Err("neither PrimarySmtpAddress nor EmailAddresses is among its columns".to_owned());
        }
        Ok(Self {
            primary,
            addresses,
            details,
            routing: column("RemoteRoutingAddress"),
            external: column("ExternalEmailAddress"),
            forwarding: ["ForwardingSmtpAddress", "ForwardingAddress"].into_iter().filter_map(column).collect(),
            members: column("Members").or_else(|| column("Member")),
            names: ["Name", "DisplayName", "Alias", "SamAccountName", "DistinguishedName", "Identity", "Guid"]
                .into_iter()
                .filter_map(column)
                .collect(),
        })
    }
}

struct Row {
    line: usize,
    fields: Vec<String>,
}

impl Row {
    fn get(&self, column: Option<usize>) -> &str {
        column.and_then(|column| self.fields.get(column)).map_or("", |field| field.trim())
    }
}

/// What a recipient is to the relay.
enum Kind {
    OnPremises,
    Cloud,
    External,
    Group,
    /// Nothing, and why.
    Nothing(&'static str),
}

/// By RecipientTypeDetails; where an export has only RecipientType, that says enough of most.
fn kind(details: &str) -> Option<Kind> {
    let is = |words: &[&str]| words.iter().any(|word| details.eq_ignore_ascii_case(word));
    Some(match details {
        _ if is(&[
            "UserMailbox",
            "LinkedMailbox",
            "SharedMailbox",
            "LegacyMailbox",
            "RoomMailbox",
            "LinkedRoomMailbox",
            "EquipmentMailbox",
            "TeamMailbox",
            "SchedulingMailbox",
        ]) =>
        {
            Kind::OnPremises
        }
        _ if is(&[
            "RemoteUserMailbox",
            "RemoteSharedMailbox",
            "RemoteRoomMailbox",
            "RemoteEquipmentMailbox",
            "RemoteTeamMailbox",
            "RemoteGroupMailbox",
        ]) =>
        {
            Kind::Cloud
        }
        _ if is(&["MailUser", "MailContact", "MailForestContact", "GuestMailUser"]) => Kind::External,
        _ if is(&[
            "MailUniversalDistributionGroup",
            "MailUniversalSecurityGroup",
            "MailNonUniversalGroup",
            "RoomList",
        ]) =>
        {
            Kind::Group
        }
        _ if is(&["DynamicDistributionGroup"]) => Kind::Nothing(
            "a dynamic group: Exchange finds its members; if the on-premises server is to do that, add it as on-premises",
        ),
        _ if is(&["PublicFolder", "PublicFolderMailbox", "PublicDatabase"]) => {
            Kind::Nothing("a public folder: if the on-premises server takes its mail, add it as on-premises")
        }
        _ if is(&["GroupMailbox"]) => {
            Kind::Nothing("a Microsoft 365 group, as the cloud's own export names it; add it as cloud")
        }
        _ if is(&[
            "ArbitrationMailbox",
            "AuditLogMailbox",
            "AuxAuditLogMailbox",
            "DiscoveryMailbox",
            "MailboxPlan",
            "MicrosoftExchange",
            "MonitoringMailbox",
            "SupervisoryReviewPolicyMailbox",
            "SystemAttendantMailbox",
            "SystemMailbox",
        ]) =>
        {
            Kind::Nothing("a system mailbox")
        }
        _ if is(&[
            "User",
            "Contact",
            "DisabledUser",
            "LinkedUser",
            "UniversalDistributionGroup",
            "UniversalSecurityGroup",
            "NonUniversalGroup",
            "RoleGroup",
            "Computer",
        ]) =>
        {
            Kind::Nothing("it takes no mail")
        }
        _ => return None,
    })
}

/// A recipient that has its place, and what becomes of its further addresses.
struct Owner {
    address: Address,
    /// The address that routes to it; it is no further one.
    routing: Option<Address>,
    /// The address is the host's outside: there is no line for it, and further ones are forwarded to it.
    is_outside: bool,
}

struct Import<'a> {
    columns: &'a Columns,
    rows: &'a [Row],
    organization: &'a Organization<'a>,
    /// Primary addresses by name, in lower case; `None` where several have it.
    names: HashMap<String, Option<Address>>,
    /// Who has an address, in lower case, and since which line of the export.
    taken: HashMap<String, (usize, Address)>,
    imported: Imported,
}

impl<'a> Import<'a> {
    fn new(columns: &'a Columns, rows: &'a [Row], organization: &'a Organization<'a>) -> Self {
        let mut names = HashMap::new();
        for row in rows {
            let Some(primary) = primary(columns, row) else { continue };
            for name in columns.names.iter().map(|&column| row.get(Some(column)).to_lowercase()) {
                if name.is_empty() {
                    continue;
                }
                let held = names.entry(name).or_insert_with(|| Some(primary.clone()));
                if held.as_ref().is_some_and(|held| *held != primary) {
                    *held = None;
                }
            }
        }
        Self { columns, rows, organization, names, taken: HashMap::new(), imported: Imported::default() }
    }

    fn run(mut self) -> Imported {
        let rows = self.rows;
        // A primary address is its owner's, whoever has it as a further one in a line before.
        let mut owners = Vec::with_capacity(rows.len());
        for row in rows {
            owners.push(self.recipient(row));
        }
        for (row, owner) in rows.iter().zip(owners) {
            if let Some(owner) = owner {
                self.further(row, &owner);
            }
        }
        self.imported.remarks.sort_by_key(|remark| remark.line);
        self.imported
    }

    fn remark(&mut self, row: &Row, left_out: bool, text: String) {
        self.imported.remarks.push(Remark { line: row.line, left_out, text });
    }

    /// The line under the primary address.
    fn recipient(&mut self, row: &Row) -> Option<Owner> {
        let columns = self.columns;
        let details = row.get(Some(columns.details));
        let who = || {
            let named = columns.names.iter().map(|&column| row.get(Some(column))).find(|name| !name.is_empty());
            [row.get(columns.primary), named.unwrap_or_default(), "a recipient"]
                .into_iter()
                .find(|text| !text.is_empty())
        };
        let who = who().unwrap_or_default().to_owned();
        let kind = match kind(details) {
            Some(Kind::Nothing(why)) => {
                self.remark(row, true, format!("{who}: {why}"));
                return None;
            }
            Some(kind) => kind,
            None => {
                self.remark(row, true, format!("{who}: {details:?} is no type of recipient that has mail"));
                return None;
            }
        };
        let Some(address) = primary(columns, row) else {
            self.remark(row, true, format!("{who}: it has no primary address that is one"));
            return None;
        };
        if let Some((line, _)) = self.taken.get(&address.key()) {
            let text = format!("{address}: it stands in line {line} already");
            self.remark(row, true, text);
            return None;
        }
        let mut external = smtp(row.get(columns.routing)).or_else(|| smtp(row.get(columns.external)));
        if matches!(kind, Kind::Cloud) && external.is_none() {
            external = self.routing_address(row);
        }
        let (kind, target) = match kind {
            Kind::OnPremises => {
                let forwarding = columns.forwarding.iter().map(|&column| row.get(Some(column)));
                if let Some(to) = forwarding.into_iter().find(|to| !to.is_empty()) {
                    let to = smtp(to).map_or_else(|| to.to_owned(), |to| to.to_string());
                    self.remark(
                        row,
                        false,
                        format!("{address}: forwards to {to}; its mailbox server does that, not the relay"),
                    );
                }
                ("on-premises", String::new())
            }
            Kind::Cloud => match &external {
                Some(target) => ("cloud", target.to_string()),
                None => {
                    let text = format!("{address}: no RemoteRoutingAddress; it becomes local-part@routing_domain");
                    self.remark(row, false, text);
                    ("cloud", String::new())
                }
            },
            Kind::External => match &external {
                Some(target) if target.key() == address.key() && self.has_names_here(row, target) => {
                    return Some(Owner { address, routing: external, is_outside: true });
                }
                Some(target) if target.key() == address.key() => {
                    let text = format!(
                        "{address}: its external address is this one; a mailbox on the other premises is added as cloud"
                    );
                    self.remark(row, true, text);
                    return None;
                }
                Some(target) => ("forward", target.to_string()),
                None => {
                    self.remark(row, true, format!("{address}: it has no ExternalEmailAddress"));
                    return None;
                }
            },
            Kind::Group => match self.members(row, &address) {
                members if members.is_empty() => {
                    let text = format!(
                        "{address}: the export has none of its members; it is on-premises, where Exchange expands it"
                    );
                    self.remark(row, false, text);
                    ("on-premises", String::new())
                }
                members => ("group", joined(&members)),
            },
            Kind::Nothing(_) => return None,
        };
        self.taken.insert(address.key(), (row.line, address.clone()));
        self.imported.lines.push(Line { address: address.clone(), kind, target });
        Some(Owner { address, routing: external, is_outside: false })
    }

    /// Among all addresses of a remote mailbox that by which the cloud knows it.
    fn routing_address(&self, row: &Row) -> Option<Address> {
        let mut addresses = addresses(row.get(self.columns.addresses)).filter_map(Result::ok);
        match self.organization.routing_domain {
            Some(domain) => addresses.find(|address| address.domain() == domain),
            None => addresses.find(|address| {
                let tenant = address.domain().as_str().strip_suffix(ROUTING_DOMAINS);
                tenant.is_some_and(|tenant| tenant.ends_with('.'))
            }),
        }
    }

    /// Has a contact, whose address outside is `external`, addresses in domains of ours?
    fn has_names_here(&self, row: &Row, external: &Address) -> bool {
        let mut addresses = addresses(row.get(self.columns.addresses)).filter_map(Result::ok);
        addresses.any(|address| self.is_here(address.domain(), external))
    }

    /// Is it a domain of ours, where that of `external` is none?
    fn is_here(&self, domain: &Domain, external: &Address) -> bool {
        match self.organization.accepted {
            Some(accepted) => accepted(domain) && !accepted(external.domain()),
            // Then any other one is worth a line.
            None => domain != external.domain(),
        }
    }

    /// The members as addresses; scripts write them as such, or as the names of other lines of the export.
    fn members(&mut self, row: &Row, group: &Address) -> Vec<Address> {
        let text = row.get(self.columns.members);
        let Some(text) = unbraced(text) else { return Vec::new() };
        let mut members: Vec<Address> = Vec::new();
        // Names have blanks and, as distinguished names, commas; addresses have neither.
        let separators: &[char] = match text.split_whitespace().all(|word| word.contains('@')) {
            true => &[' ', ',', ';', '\n', '\t'],
            false if text.contains(['\n', ';', '|']) => &['\n', ';', '|'],
            false => &[','],
        };
        let mut missing = Vec::new();
        for name in text.split(separators).map(str::trim).filter(|name| !name.is_empty()) {
            let known = || self.names.get(&name.to_lowercase()).cloned().flatten();
            match smtp(name).or_else(known) {
                // A blank inside quotes would be read as the end of the address.
                Some(member) if member.local().contains(char::is_whitespace) => missing.push(name.to_owned()),
                Some(member) if members.iter().any(|other| other.key() == member.key()) => {}
                Some(member) => members.push(member),
                None => missing.push(name.to_owned()),
            }
        }
        if !missing.is_empty() {
            let text = format!(
                "{group}: of its members these are neither an address nor the name of one recipient of the export: {}",
                missing.join(", ")
            );
            self.remark(row, true, text);
        }
        members
    }

    /// An alias for each further address, or a forward to the host outside.
    fn further(&mut self, row: &Row, Owner { address: owner, routing, is_outside }: &Owner) {
        let text = row.get(self.columns.addresses);
        if unbraced(text).is_none() {
            self.remark(row, true, format!(
                "{owner}: its further addresses; the export has {text:?} in their place (select them as @{{n='EmailAddresses';e={{$_.EmailAddresses -join ' '}}}})"
            ));
            return;
        }
        if text.ends_with("...") || text.ends_with('…') || text.ends_with("...}") || text.ends_with("…}") {
            self.remark(row, true, format!("{owner}: further addresses; the export has cut the list off"));
        }
        for address in addresses(text) {
            let address = match address {
                Ok(address) => address,
                Err(found) => {
                    self.remark(row, true, format!("{owner}: {found:?} is no address"));
                    continue;
                }
            };
            // Mail for the routing address is for the other premises already.
            if address.key() == owner.key() || routing.as_ref().is_some_and(|routing| routing.key() == address.key()) {
                continue;
            }
            if *is_outside && !self.is_here(address.domain(), owner) {
                continue;
            }
            match self.taken.get(&address.key()) {
                Some((_, other)) if other == owner => {}
                Some((line, other)) => {
                    let text =
                        format!("{address}, a further address of {owner}: it is {other}'s in line {line} already");
                    self.remark(row, true, text);
                }
                None => {
                    self.taken.insert(address.key(), (row.line, owner.clone()));
                    let target = owner.to_string();
                    match is_outside {
                        true => self.imported.lines.push(Line { address, kind: "forward", target }),
                        false => self.imported.aliases.push(Line { address, kind: "alias", target }),
                    }
                }
            }
        }
    }
}

/// The SMTP addresses of a list; or a word that should be one.
fn addresses(list: &str) -> impl Iterator<Item = Result<Address, &str>> {
    let words = unbraced(list).unwrap_or_default().split([' ', ',', ';', '\n', '\t']);
    let found = words.filter_map(|word| prefixed(word.trim()));
    found.map(|found| Address::parse(found).map_err(|_| found))
}

/// The primary address, from its column or, with `SMTP:` in capitals, from all addresses.
fn primary(columns: &Columns, row: &Row) -> Option<Address> {
    smtp(row.get(columns.primary)).or_else(|| {
        let text = unbraced(row.get(columns.addresses))?;
        let mut words = text.split([' ', ',', ';', '\n', '\t']);
        words.find_map(|word| word.trim().strip_prefix("SMTP:")).and_then(|found| Address::parse(found).ok())
    })
}

/// An address with or without `smtp:` in front.
fn smtp(text: &str) -> Option<Address> {
    Address::parse(prefixed(text).unwrap_or(text)).ok()
}

fn prefixed(word: &str) -> Option<&str> {
    let (prefix, rest) = word.split_at_checked("smtp:".len())?;
    prefix.eq_ignore_ascii_case("smtp:").then_some(rest)
}

/// The content of `{one, two}`; `None` where the export has the name of a class instead of values.
fn unbraced(text: &str) -> Option<&str> {
    if ["Microsoft.Exchange.", "System."].iter().any(|class| text.starts_with(class)) {
        return None;
    }
    Some(text.strip_prefix('{').map_or(text, |inner| inner.strip_suffix('}').unwrap_or(inner)).trim())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn imported(text: &str) -> (String, Vec<String>) {
        imported_for(text, &Organization::default())
    }

    fn imported_for(text: &str, organization: &Organization<'_>) -> (String, Vec<String>) {
        let imported = import(text.as_bytes(), organization).unwrap();
        let remarks = imported
            .remarks
            .iter()
            .map(|remark| format!("{}{}: {}", remark.line, if remark.left_out { "" } else { " note" }, remark.text));
        (imported.to_csv().trim_end().replace("address,type,target\n", ""), remarks.collect())
    }

    const EXPORT: &str = "#TYPE Selected.Microsoft.Exchange.Data.Directory.Management.ReducedRecipient\r\n\
        \"Name\",\"PrimarySmtpAddress\",\"EmailAddresses\",\"RecipientTypeDetails\",\"ExternalEmailAddress\",\"Notes\"\r\n\
        \"Julie Smith\",\"julie@contoso.com\",\"SMTP:julie@contoso.com smtp:j.smith@contoso.com X500:/o=First Organization/ou=Exchange Administrative Group (FYDIBOHF23SPDLT)/cn=Recipients/cn=julie SIP:julie@contoso.com\",\"UserMailbox\",,\"two\r\nlines, and \"\"quotes\"\"\"\r\n\
        \"David\",\"david@contoso.com\",\"smtp:david@contoso.mail.onmicrosoft.com;SMTP:david@contoso.com;smtp:dave@contoso.com\",\"RemoteUserMailbox\",\"SMTP:david@contoso.mail.onmicrosoft.com\",\"\"\r\n\
        \"Room\",\"room@contoso.com\",\"{SMTP:room@contoso.com, smtp:zimmer@contoso.com}\",\"RoomMailbox\",,\r\n\
        \"Kate\",\"kate@contoso.com\",\"SMTP:kate@contoso.com\",\"MailContact\",\"SMTP:kate@tailspintoys.com\",\r\n\
        \"Everybody\",\"all@contoso.com\",\"SMTP:all@contoso.com\",\"DynamicDistributionGroup\",,\r\n\
        \"SystemMailbox{1f05a927}\",\"SystemMailbox{1f05a927}@contoso.com\",\"\",\"ArbitrationMailbox\",,\r\n";

    #[test]
    fn recipients_of_an_export_and_what_is_left_out() {
        let (csv, remarks) = imported(EXPORT);
        assert_eq!(
            csv,
            "julie@contoso.com,on-premises,\n\
             david@contoso.com,cloud,david@contoso.mail.onmicrosoft.com\n\
             room@contoso.com,on-premises,\n\
             kate@contoso.com,forward,kate@tailspintoys.com\n\
             j.smith@contoso.com,alias,julie@contoso.com\n\
             dave@contoso.com,alias,david@contoso.com\n\
             zimmer@contoso.com,alias,room@contoso.com"
        );
        assert_eq!(remarks.len(), 2, "{remarks:?}");
        assert!(remarks[0].starts_with("8: all@contoso.com: a dynamic group"), "{remarks:?}");
        assert_eq!(remarks[1], "9: SystemMailbox{1f05a927}@contoso.com: a system mailbox");
    }

    /// UTF-16 in both orders, a byte order mark, semicolons of a German Windows, `\n` alone: the same.
    #[test]
    fn the_same_export_in_every_coat() {
        let (csv, remarks) = imported(EXPORT);
        let utf16 = |order: fn(u16) -> [u8; 2]| {
            std::iter::once(0xfeff).chain(EXPORT.encode_utf16()).flat_map(order).collect::<Vec<u8>>()
        };
        let german = EXPORT.replace("\",\"", "\";\"").replace("\",,", "\";;").replace("\",\r\n", "\";\r\n");
        for (bytes, what) in [
            (utf16(u16::to_le_bytes), "UTF-16LE"),
            (utf16(u16::to_be_bytes), "UTF-16BE"),
            (format!("\u{feff}{EXPORT}").into_bytes(), "UTF-8 with a mark"),
            (EXPORT.split_once("\r\n").unwrap().1.replace("\r\n", "\n").into_bytes(), "without #TYPE"),
            (german.clone().into_bytes(), "with semicolons"),
            (format!("sep=;\r\n{german}").into_bytes(), "with Excel's line"),
            (format!("\u{feff}\"SEP=;\"\n{german}").into_bytes(), "with Excel's line in quotes"),
            (EXPORT.replacen("\r\n", "\r\nsep=,\r\n", 1).into_bytes(), "with Excel's line behind #TYPE"),
            (
                format!(
                    "sep=\t\n{}",
                    german
                        .replace("\";", "\"\t")
                        .replace(";;\r", "\t\t\r")
                        .replace(";\"", "\t\"")
                        .replace(";\r", "\t\r")
                )
                .into_bytes(),
                "with tabs",
            ),
            (EXPORT.encode_utf16().flat_map(u16::to_le_bytes).collect(), "UTF-16LE without a mark"),
            (EXPORT.encode_utf16().flat_map(u16::to_be_bytes).collect(), "UTF-16BE without a mark"),
            (
                EXPORT
                    .replace("PrimarySmtpAddress", "primarysmtpaddress")
                    .replace("Recipient", "RECIPIENT")
                    .into_bytes(),
                "with a header in another case",
            ),
            (EXPORT.replace("\"Name\",\"Primary", "Name, Primary").into_bytes(), "with a header without quotes"),
        ] {
            let other = import(&bytes, &Organization::default()).unwrap_or_else(|why| panic!("{what}: {why}"));
            assert_eq!(other.to_csv().trim_end().replace("address,type,target\n", ""), csv, "{what}");
            assert_eq!(other.remarks.len(), remarks.len(), "{what}");
        }
    }

    #[test]
    fn each_type_of_recipient_has_its_place() {
        for (details, external, expected) in [
            ("UserMailbox", "", "x@contoso.com,on-premises,"),
            ("usermailbox", "", "x@contoso.com,on-premises,"),
            ("SharedMailbox", "", "x@contoso.com,on-premises,"),
            ("EquipmentMailbox", "", "x@contoso.com,on-premises,"),
            ("LinkedMailbox", "", "x@contoso.com,on-premises,"),
            ("RemoteSharedMailbox", "x@t.mail.onmicrosoft.com", "x@contoso.com,cloud,x@t.mail.onmicrosoft.com"),
            ("RemoteRoomMailbox", "smtp:x@t.mail.onmicrosoft.com", "x@contoso.com,cloud,x@t.mail.onmicrosoft.com"),
            ("RemoteEquipmentMailbox", "", "x@contoso.com,cloud,"),
            ("MailUser", "SMTP:x@fabrikam.com", "x@contoso.com,forward,x@fabrikam.com"),
            ("MailUser", "", ""),
            ("MailUser", "SMTP:X@contoso.com", ""),
            ("MailUniversalSecurityGroup", "", "x@contoso.com,on-premises,"),
            ("PublicFolder", "", ""),
            ("DiscoveryMailbox", "", ""),
            ("MonitoringMailbox", "", ""),
            ("User", "", ""),
            ("SomethingNew", "", ""),
        ] {
            let (csv, remarks) = imported(&format!(
                "PrimarySmtpAddress,RecipientTypeDetails,ExternalEmailAddress\nx@contoso.com,{details},{external}\n"
            ));
            assert_eq!(csv.replace("address,type,target", ""), expected, "{details}");
            assert!(!expected.is_empty() || remarks.len() == 1, "{details} is left out without a word");
        }
    }

    #[test]
    fn a_contact_that_is_outside_is_reached_by_its_addresses_here() {
        let head = "PrimarySmtpAddress,EmailAddresses,RecipientTypeDetails,ExternalEmailAddress\n";
        let accepted = |domain: &Domain| domain.as_str() == "contoso.com";
        let known = Organization { accepted: Some(&accepted), routing_domain: None };
        let bob = "bob@fabrikam.com,SMTP:bob@fabrikam.com smtp:bob@contoso.com smtp:b@contoso.com \
                   X500:/o=x smtp:bob@old.example,MailContact,SMTP:Bob@fabrikam.com\n";
        let ours = "bob@contoso.com,forward,bob@fabrikam.com\nb@contoso.com,forward,bob@fabrikam.com";
        for (row, organization, expected, remarks) in [
            (bob, known, ours.to_owned(), 0),
            // Without a configuration every other domain may be ours.
            (bob, Organization::default(), format!("{ours}\nbob@old.example,forward,bob@fabrikam.com"), 0),
            // Nothing of ours, so nothing to route.
            ("x@fabrikam.com,SMTP:x@fabrikam.com,MailContact,SMTP:x@fabrikam.com\n", known, String::new(), 1),
            ("x@fabrikam.com,SMTP:x@fabrikam.com smtp:x@y.example,MailUser,x@fabrikam.com\n", known, String::new(), 1),
            // Its external address is ours: that is somebody on the other premises.
            ("x@contoso.com,SMTP:x@contoso.com smtp:y@contoso.com,MailUser,x@contoso.com\n", known, String::new(), 1),
            (
                "x@contoso.com,SMTP:x@contoso.com smtp:y@contoso.com,MailUser,x@contoso.com\n",
                Organization::default(),
                String::new(),
                1,
            ),
            // Whose primary address is ours has a line of its own, as ever.
            (
                "k@contoso.com,smtp:k@x.example SMTP:k@contoso.com smtp:l@contoso.com,MailUser,k@x.example\n",
                known,
                "k@contoso.com,forward,k@x.example\nl@contoso.com,alias,k@contoso.com".to_owned(),
                0,
            ),
            // An address that is somebody's stays his; a group names the contact as it is.
            (
                "b@contoso.com,,UserMailbox,\nbob@fabrikam.com,smtp:bob@contoso.com smtp:b@contoso.com,MailContact,bob@fabrikam.com\n\
                 ann@gmail.example,SMTP:ann@gmail.example smtp:ann@contoso.com,UserMailbox,\n",
                known,
                "b@contoso.com,on-premises,\nann@gmail.example,on-premises,\nbob@contoso.com,forward,bob@fabrikam.com\n\
                 ann@contoso.com,alias,ann@gmail.example"
                    .to_owned(),
                1,
            ),
        ] {
            let (csv, found) = imported_for(&format!("{head}{row}"), &organization);
            assert_eq!(csv.replace("address,type,target", ""), expected, "{row}");
            assert_eq!(found.len(), remarks, "{row}: {found:?}");
        }
    }

    #[test]
    fn a_remote_mailbox_has_its_routing_address_among_the_others() {
        let head = "PrimarySmtpAddress,EmailAddresses,RecipientTypeDetails,ExternalEmailAddress\n";
        let domain = Domain::parse("t.mail.onmicrosoft.com").unwrap();
        let known = Organization { accepted: None, routing_domain: Some(&domain) };
        let cloud = |target: &str| format!("d@contoso.com,cloud,{target}");
        for (addresses, external, organization, expected) in [
            ("smtp:d1@t.mail.onmicrosoft.com SMTP:d@contoso.com", "", known, cloud("d1@t.mail.onmicrosoft.com")),
            ("smtp:d1@T.mail.OnMicrosoft.com", "", Organization::default(), cloud("d1@t.mail.onmicrosoft.com")),
            // That of another tenant is a further address.
            (
                "smtp:d0@u.mail.onmicrosoft.com,smtp:d1@t.mail.onmicrosoft.com",
                "",
                known,
                format!("{}\nd0@u.mail.onmicrosoft.com,alias,d@contoso.com", cloud("d1@t.mail.onmicrosoft.com")),
            ),
            ("smtp:d1@t.mail.onmicrosoft.com", "X500:/o=x", known, cloud("d1@t.mail.onmicrosoft.com")),
            ("smtp:d1@t.mail.onmicrosoft.com", "d2@t.mail.onmicrosoft.com", known, {
                format!("{}\nd1@t.mail.onmicrosoft.com,alias,d@contoso.com", cloud("d2@t.mail.onmicrosoft.com"))
            }),
            ("SMTP:d@contoso.com smtp:d@mail.onmicrosoft.com", "", Organization::default(), {
                format!("{}\nd@mail.onmicrosoft.com,alias,d@contoso.com", cloud(""))
            }),
            ("SMTP:d@contoso.com", "", known, cloud("")),
        ] {
            let text = format!("{head}d@contoso.com,\"{addresses}\",RemoteUserMailbox,{external}\n");
            let (csv, remarks) = imported_for(&text, &organization);
            assert_eq!(csv, expected, "{addresses} {external}");
            assert_eq!(
                remarks.len(),
                usize::from(expected.contains("cloud,\n") || expected.ends_with(',')),
                "{remarks:?}"
            );
        }
    }

    #[test]
    fn what_import_wrote_may_be_replaced_and_what_somebody_added_is_told() {
        let before = import(EXPORT.as_bytes(), &Organization::default()).unwrap();
        let written = before.to_csv();
        // Tomorrow julie and her alias are gone, david is on-premises.
        let tomorrow = EXPORT
            .lines()
            .filter(|line| !line.contains("Julie") && !line.starts_with("lines, and"))
            .map(|line| line.replace("RemoteUserMailbox", "UserMailbox") + "\r\n")
            .collect::<String>();
        let next = import(tomorrow.as_bytes(), &Organization::default()).unwrap();
        let replaced = next.replacing(written.as_bytes()).unwrap();
        let gone = |replaced: &Replaced| replaced.gone.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ");
        assert_eq!(
            (replaced.by_hand.as_slice(), gone(&replaced).as_str()),
            (&[][..], "julie@contoso.com j.smith@contoso.com")
        );
        assert_eq!(next.replacing(b"").unwrap(), Replaced::default());

        for (changed, by_hand) in [
            // At the end, where people write; and an alias of somebody whom the file does not have.
            (format!("{written}all@contoso.com,on-premises,\n"), "9 all@contoso.com,on-premises,"),
            (format!("{written}x@contoso.com,alias,y@contoso.com\n"), "9 x@contoso.com,alias,y@contoso.com"),
            (written.replacen("room@", "x@contoso.com, cloud,\nroom@", 1), "4 x@contoso.com, cloud,"),
            (format!("{written}who?\n"), "9 who?"),
            // Nothing is lost of these.
            (format!("{written}\nKATE@contoso.com,forward,kate@tailspintoys.com\n"), ""),
            (written.replace("room@contoso.com,on-premises,\n", "\"room@contoso.com\",on-premises\r\n"), ""),
        ] {
            let replaced = before.replacing(changed.as_bytes()).unwrap();
            let found: Vec<_> = replaced.by_hand.iter().map(|(line, text)| format!("{line} {text}")).collect();
            assert_eq!(found.join("; "), by_hand, "{changed}");
        }
        // Whoever saves it by a spreadsheet has touched every line.
        let saved = written.replace('\n', "\r\n");
        assert_eq!(next.replacing(saved.as_bytes()).unwrap().by_hand.len(), 3);
        for other in [EXPORT, "x", "\n", "hostname = \"mail.contoso.com\"\n"] {
            assert!(matches!(next.replacing(other.as_bytes()), Err(LoadError::Header(_))), "{other}");
        }
    }

    #[test]
    fn exports_one_behind_the_other_are_one() {
        let head = "\"PrimarySmtpAddress\",\"RecipientTypeDetails\"\r\n";
        let (csv, remarks) = imported(&format!(
            "{head}a@contoso.com,UserMailbox\r\n\u{feff}#TYPE Selected\r\n{head}b@contoso.com,UserMailbox\r\n"
        ));
        assert_eq!((csv.as_str(), remarks.len()), ("a@contoso.com,on-premises,\nb@contoso.com,on-premises,", 0));
    }

    #[test]
    fn groups_by_address_or_by_name() {
        let head = "Name,Alias,PrimarySmtpAddress,RecipientTypeDetails,Members\n";
        let people = "Anna Berg,anna,anna@contoso.com,UserMailbox,\nDavid,david,david@contoso.com,RemoteUserMailbox,\n\
                      Twin,t1,t1@contoso.com,UserMailbox,\nTwin,t2,t2@contoso.com,UserMailbox,\n";
        for (members, expected, remarks) in [
            ("anna@contoso.com david@contoso.com", "group,anna@contoso.com david@contoso.com", 0),
            ("anna@contoso.com;x@fabrikam.com;ANNA@contoso.com", "group,anna@contoso.com x@fabrikam.com", 0),
            ("\"{Anna Berg, david}\"", "group,anna@contoso.com david@contoso.com", 0),
            ("Anna Berg;nobody here", "group,anna@contoso.com", 1),
            ("Twin;david", "group,david@contoso.com", 1),
            ("", "on-premises,", 1),
            ("Microsoft.Exchange.Data.MultiValuedProperty`1[ADObjectId]", "on-premises,", 1),
        ] {
            let row = format!("Team,team,team@contoso.com,MailUniversalDistributionGroup,{members}\n");
            let (csv, found) = imported(&format!("{head}{people}{row}"));
            assert_eq!(csv.lines().last().unwrap(), format!("team@contoso.com,{expected}"), "{members}");
            // One is David's, who has no routing address.
            assert_eq!(found.len(), remarks + 1, "{members}: {found:?}");
        }
    }

    #[test]
    fn an_address_belongs_to_one() {
        let (csv, remarks) = imported(
            "PrimarySmtpAddress,EmailAddresses,RecipientTypeDetails,ForwardingSmtpAddress\n\
             a@contoso.com,SMTP:a@contoso.com smtp:b@contoso.com smtp:c@contoso.com,UserMailbox,\n\
             b@contoso.com,SMTP:b@contoso.com smtp:c@contoso.com smtp:no address smtp:@x,UserMailbox,smtp:b@gmail.example\n\
             A@contoso.com,SMTP:A@contoso.com,SharedMailbox,\n\
             ,smtp:y@contoso.com SMTP:d@contoso.com,UserMailbox,\n\
             e@contoso.com,Microsoft.Exchange.Data.ProxyAddressCollection,UserMailbox,\n\
             f@contoso.com,\"{SMTP:f@contoso.com, smtp:g@contoso.com...\",UserMailbox,\n",
        );
        assert_eq!(
            csv,
            "a@contoso.com,on-premises,\nb@contoso.com,on-premises,\nd@contoso.com,on-premises,\ne@contoso.com,on-premises,\n\
             f@contoso.com,on-premises,\nc@contoso.com,alias,a@contoso.com\ny@contoso.com,alias,d@contoso.com"
        );
        let expected = [
            "2: b@contoso.com, a further address of a@contoso.com: it is b@contoso.com's in line 3 already",
            "3 note: b@contoso.com: forwards to b@gmail.example; its mailbox server does that, not the relay",
            "3: c@contoso.com, a further address of b@contoso.com: it is a@contoso.com's in line 2 already",
            "3: b@contoso.com: \"no\" is no address",
            "3: b@contoso.com: \"@x\" is no address",
            "4: A@contoso.com: it stands in line 2 already",
        ];
        assert_eq!(remarks[..expected.len()], expected);
        assert!(remarks[6].starts_with("6: e@contoso.com: its further addresses; the export has"), "{remarks:?}");
        assert!(remarks.iter().any(|remark| remark.contains("the export has cut the list off")), "{remarks:?}");
    }

    #[test]
    fn what_is_no_export_is_refused() {
        for (bytes, expected) in [
            (b"".as_slice(), "it is empty"),
            (
                b"address,type,target\na@b.example,cloud,\n",
                "RecipientTypeDetails among them; found address, type, target",
            ),
            (b"RecipientTypeDetails,Name\nUserMailbox,x\n", "neither PrimarySmtpAddress nor EmailAddresses"),
            (b"PrimarySmtpAddress,RecipientTypeDetails\n\"a@b.example,UserMailbox\n", "line 2: a quote is not closed"),
            (b"PrimarySmtpAddress\xfc,x\n", "neither UTF-8 nor UTF-16"),
            (b"\xff\xfea", "ends within a character"),
        ] {
            let why = import(bytes, &Organization::default()).unwrap_err();
            assert!(why.contains(expected), "{why}");
        }
    }

    proptest::proptest! {
        /// What is made is read again as it was meant, line by line.
        #[test]
        fn the_directory_reads_all_that_is_made(rows in proptest::collection::vec(("[a-z\" ,+]{1,6}", 0_usize..4), 1..20)) {
            let mut text = String::from("PrimarySmtpAddress,RecipientTypeDetails,ExternalEmailAddress\n");
            for (local, kind) in rows {
                let address = Address::new(&local, crate::message::Domain::parse("contoso.com").unwrap());
                let Ok(address) = address else { continue };
                let kind = ["UserMailbox", "RemoteUserMailbox", "MailUser", "RoomList"][kind];
                text += &format!("{},{kind},{}\n", quoted(&address.to_string()), quoted(&address.at(crate::message::Domain::parse("x.example").unwrap()).to_string()));
            }
            let imported = import(text.as_bytes(), &Organization::default()).unwrap();
            let replaced = Imported::default().replacing(imported.to_csv().as_bytes()).unwrap();
            proptest::prop_assert_eq!((replaced.by_hand, replaced.gone.len()), (Vec::new(), imported.len()));
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("recipients.csv");
            std::fs::write(&path, imported.to_csv()).unwrap();
            let mut lines = 0;
            super::super::file::lines(&path, |line, read| {
                assert!(read.is_ok(), "{line}: {read:?} of {}", imported.to_csv());
                lines += 1;
            }).unwrap();
            proptest::prop_assert_eq!(lines, imported.len());
        }
    }
}
