//! An Exchange export becomes a CSV of recipients.
//!
//! The export is what `Export-Csv` makes of Get-Recipient, Get-Mailbox, Get-RemoteMailbox, Get-MailUser,
//! Get-MailContact or Get-DistributionGroup in the on-premises organization: with or without the `#TYPE` line, in UTF-8
//! or UTF-16, with commas or (`-UseCulture`) semicolons. Each recipient becomes a line under its primary address and
//! an alias for each further one. What has no place in the directory is left out, and said with its line and why.
//!
//! Two things stay with Exchange, because they happen behind the mailbox's or the group's own server: forwarding that a
//! mailbox does (`ForwardingSmtpAddress`), and groups whose members the export does not say.
//!
//! Standards: RFC 4180 (CSV), which PowerShell follows, line ends within quotes included.

use std::collections::HashMap;
use std::fmt::Write as _;

use crate::message::Address;

/// What became of an export.
#[derive(Debug, Default)]
pub struct Imported {
    lines: Vec<Line>,
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

impl Imported {
    /// The recipient file.
    pub fn to_csv(&self) -> String {
        let mut csv = String::from("address,type,target\n");
        for Line { address, kind, target } in &self.lines {
            // Writing to a String cannot fail.
            let _ = writeln!(csv, "{},{kind},{}", quoted(&address.to_string()), quoted(target));
        }
        csv
    }

    /// How many lines of this type there are.
    pub fn count(&self, kind: &str) -> usize {
        self.lines.iter().filter(|line| line.kind == kind).count()
    }

    /// How many lines there are.
    pub fn len(&self) -> usize {
        self.lines.len()
    }

    /// True if nothing of the export has a place in the directory.
    pub fn is_empty(&self) -> bool {
        self.lines.is_empty()
    }
}

/// A local part may have quotes, and within them commas.
fn quoted(text: &str) -> String {
    if text.contains([',', '"']) { format!("\"{}\"", text.replace('"', "\"\"")) } else { text.to_owned() }
}

/// Reads an export.
///
/// # Errors
/// It is none, in words.
pub fn import(bytes: &[u8]) -> Result<Imported, String> {
    let text = decoded(bytes)?;
    let mut records = Records::new(&text);
    let header = loop {
        match records.next().transpose()? {
            None => return Err("it is empty".to_owned()),
            // Windows PowerShell's Export-Csv writes it unless told -NoTypeInformation.
            Some((_, fields)) if fields.first().is_some_and(|first| first.starts_with("#TYPE")) => {}
            Some((_, fields)) if fields.iter().all(|field| field.trim().is_empty()) => {}
            Some((_, fields)) => break fields,
        }
    };
    let columns = Columns::of(&header)?;
    let mut rows = Vec::new();
    for record in records {
        let (line, fields) = record?;
        if fields.iter().any(|field| !field.trim().is_empty()) {
            rows.push(Row { line, fields });
        }
    }
    Ok(Import::new(&columns, &rows).run())
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
    match bytes {
        [0xff, 0xfe, rest @ ..] => units(rest, u16::from_le_bytes),
        [0xfe, 0xff, rest @ ..] => units(rest, u16::from_be_bytes),
        [0xef, 0xbb, 0xbf, rest @ ..] => utf8(rest),
        _ => utf8(bytes),
    }
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
    fn new(text: &'a str) -> Self {
        // Whatever separates the names of the header, which have no separators in them.
        let header =
            text.lines().find(|line| !line.starts_with("#TYPE") && !line.trim().is_empty()).unwrap_or_default();
        let count = |separator: char| header.matches(separator).count();
        let separator = [',', ';', '\t'].into_iter().rev().max_by_key(|&one| count(one)).unwrap_or(',');
        Self { rest: text, line: 1, separator }
    }
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

struct Import<'a> {
    columns: &'a Columns,
    rows: &'a [Row],
    /// Primary addresses by name, in lower case; `None` where several have it.
    names: HashMap<String, Option<Address>>,
    /// Who has an address, in lower case, and since which line of the export.
    taken: HashMap<String, (usize, Address)>,
    imported: Imported,
}

impl<'a> Import<'a> {
    fn new(columns: &'a Columns, rows: &'a [Row]) -> Self {
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
        Self { columns, rows, names, taken: HashMap::new(), imported: Imported::default() }
    }

    fn run(mut self) -> Imported {
        let rows = self.rows;
        // A primary address is its owner's, whoever has it as a further one in a line before.
        let mut owners = Vec::with_capacity(rows.len());
        for row in rows {
            owners.push(self.recipient(row));
        }
        for (row, owner) in rows.iter().zip(owners) {
            if let Some((owner, routing)) = owner {
                self.further(row, &owner, routing.as_ref());
            }
        }
        self.imported.remarks.sort_by_key(|remark| remark.line);
        self.imported
    }

    fn remark(&mut self, row: &Row, left_out: bool, text: String) {
        self.imported.remarks.push(Remark { line: row.line, left_out, text });
    }

    /// The line under the primary address, which is returned with the address that routes to it.
    fn recipient(&mut self, row: &Row) -> Option<(Address, Option<Address>)> {
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
        let external = smtp(row.get(columns.routing)).or_else(|| smtp(row.get(columns.external)));
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
                members => ("group", members.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ")),
            },
            Kind::Nothing(_) => return None,
        };
        self.taken.insert(address.key(), (row.line, address.clone()));
        self.imported.lines.push(Line { address: address.clone(), kind, target });
        Some((address, external))
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

    /// An alias for each further address.
    fn further(&mut self, row: &Row, owner: &Address, routing: Option<&Address>) {
        let text = row.get(self.columns.addresses);
        let Some(text) = unbraced(text) else {
            self.remark(row, true, format!(
                "{owner}: its further addresses; the export has {text:?} in their place (select them as @{{n='EmailAddresses';e={{$_.EmailAddresses -join ' '}}}})"
            ));
            return;
        };
        if text.ends_with("...") || text.ends_with('…') {
            self.remark(row, true, format!("{owner}: further addresses; the export has cut the list off"));
        }
        for word in text.split([' ', ',', ';', '\n', '\t']).map(str::trim) {
            let Some(found) = prefixed(word) else { continue };
            let Ok(address) = Address::parse(found) else {
                self.remark(row, true, format!("{owner}: {found:?} is no address"));
                continue;
            };
            // Mail for the routing address is for the other premises already.
            if address.key() == owner.key() || routing.is_some_and(|routing| routing.key() == address.key()) {
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
                    self.imported.lines.push(Line { address, kind: "alias", target: owner.to_string() });
                }
            }
        }
    }
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
        let imported = import(text.as_bytes()).unwrap();
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
            (german.into_bytes(), "with semicolons"),
        ] {
            let other = import(&bytes).unwrap_or_else(|why| panic!("{what}: {why}"));
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
            let why = import(bytes).unwrap_err();
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
            let imported = import(text.as_bytes()).unwrap();
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
