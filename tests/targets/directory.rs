//! Files that an administrator writes or an export makes: recipients, users, Exchange's own CSV.

use causeway::directory::file::{self, LoadError};
use causeway::directory::import::{self, Imported, Organization};
use causeway::directory::table::Behind;
use causeway::directory::users;
use causeway::directory::{Entry, Table};
use causeway::message::{Address, Domain};

use super::command::check_address;

fn check_entry(entry: &Entry) {
    match entry {
        Entry::OnPremises | Entry::Cloud(None) => {}
        Entry::Cloud(Some(to)) | Entry::Forward(to) | Entry::Alias(to) => check_address(to),
        Entry::Group(members) => {
            assert!(!members.is_empty(), "a group without members");
            members.iter().for_each(check_address);
        }
    }
}

/// What the table says of every address it has: itself, and what it would be written as.
fn written(table: &Table) -> String {
    let mut lines: Vec<String> = table
        .addresses()
        .map(|address| {
            check_address(&address);
            let entry = table.find(address.local(), address.domain()).expect("it is in there");
            check_entry(&entry);
            let quoted = |text: String| format!("\"{}\"", text.replace('"', "\"\""));
            let (kind, target) = match &entry {
                Entry::OnPremises => ("on-premises", String::new()),
                Entry::Cloud(to) => ("cloud", to.as_ref().map(Address::to_string).unwrap_or_default()),
                Entry::Forward(to) => ("forward", to.to_string()),
                Entry::Alias(to) => ("alias", to.to_string()),
                Entry::Group(members) => {
                    // A blank separates members, so one with a blank in it cannot be written here.
                    let members: Vec<_> = members.iter().map(Address::to_string).collect();
                    ("group", members.join(" "))
                }
            };
            format!("{},{kind},{}\n", quoted(address.to_string()), quoted(target))
        })
        .collect();
    lines.sort_unstable();
    lines.concat()
}

/// A recipient file, and the same octets as a list of addresses.
pub fn recipients(data: &[u8]) {
    let lines = data.split(|&octet| octet == b'\n').count() as u64;
    match file::read(data) {
        Ok((table, faults, unlisted)) => {
            assert!(!table.is_empty(), "a directory of nobody");
            assert!(faults.len() <= 1000 && (unlisted == 0 || faults.len() == 1000));
            assert!(table.len() as u64 + faults.len() as u64 <= lines);
            let mut last = 0;
            for fault in &faults {
                assert!(fault.line > last && fault.line <= lines, "line {} behind line {last}", fault.line);
                last = fault.line;
                assert!(!fault.text.is_empty() && !fault.text.contains(['\n', '\r']), "{:?}", fault.text);
            }
            // Case and quotes do not matter, and what a file says can be written and read again.
            for address in table.addresses() {
                let upper = address.local().to_uppercase();
                if upper.to_lowercase() == address.local() && upper.len() == address.local().len() {
                    assert!(table.find(&upper, address.domain()).is_some(), "{address}");
                }
                let mut behind: Vec<Behind> = Vec::new();
                table.behind(address.local(), address.domain(), |one| behind.push(one));
                let is_mailbox = matches!(
                    table.find(address.local(), address.domain()),
                    Some(Entry::OnPremises | Entry::Cloud(None))
                );
                assert!(!is_mailbox || behind.iter().any(|one| one.address == address), "{address} is behind itself");
            }
            let written = format!("address,type,target\n{}", written(&table));
            let blanks = table.addresses().any(|address| {
                matches!(table.find(address.local(), address.domain()), Some(Entry::Group(members))
                    if members.iter().any(|member| member.local().contains(char::is_whitespace)))
            });
            if !blanks {
                let (again, faults, _) = file::read(written.as_bytes()).expect("we wrote it");
                assert_eq!(faults, [], "{written}");
                assert_eq!(self::written(&again), written["address,type,target\n".len()..]);
            }
        }
        Err(LoadError::Header(_) | LoadError::NothingUsable(_)) => {}
        Err(error) => panic!("{error}"),
    }
    let listed = file::read_list(data).expect("memory can be read");
    assert!(listed.addresses.len() as u64 + listed.faults.len() as u64 <= lines);
    listed.addresses.iter().for_each(check_address);
}

/// A users file. No report repeats what stands in a line behind the name: somebody may have written a password there.
pub fn users(data: &[u8]) {
    let lines = data.split(|&octet| octet == b'\n').count() as u64;
    let faults = match users::read(data) {
        Ok((users, faults, unlisted)) => {
            assert!(faults.len() <= 1000 && (unlisted == 0 || faults.len() == 1000));
            let named = data.split(|&octet| octet == b'\n').filter_map(|line| std::str::from_utf8(line).ok());
            let names = named.filter_map(|line| line.trim().split_once(':').map(|(name, _)| name));
            assert!(names.into_iter().any(|name| users.knows(name)), "users from nowhere");
            assert!(!users.knows("") && !users.knows("#") && !users.knows(":"));
            faults
        }
        Err(users::LoadError::NothingUsable(faults)) => faults,
        Err(error) => panic!("{error}"),
    };
    for fault in &faults {
        assert!(fault.line > 0 && fault.line <= lines);
        let line = data.split(|&octet| octet == b'\n').nth(fault.line as usize - 1).expect("the line is there");
        let line = String::from_utf8_lossy(line);
        let secret = line.split_once(':').map_or(line.trim(), |(_, secret)| secret.trim());
        // Short words may stand in our own sentences, and names are said.
        let named = line.split_once(':').map_or("", |(name, _)| name);
        let long = secret.len() >= 12 && !named.contains(secret) && !secret.contains('$');
        assert!(!long || !fault.text.contains(secret), "{:?} repeats {secret:?}", fault.text);
        assert!(!fault.text.chars().any(char::is_control), "{:?}", fault.text);
    }
}

/// An Exchange export. What it becomes is a recipient file in which nothing is wrong.
pub fn import(data: &[u8]) {
    let routing_domain = Domain::parse("contoso.mail.onmicrosoft.com").expect("a domain");
    let accepted = |domain: &Domain| domain.as_str() == "contoso.com";
    let known = Organization { accepted: Some(&accepted), routing_domain: Some(&routing_domain) };
    for organization in [known, Organization::default()] {
        import_for(data, &organization);
    }
}

fn import_for(data: &[u8], organization: &Organization<'_>) {
    let imported = match import::import(data, organization) {
        Ok(imported) => imported,
        Err(why) => return assert!(!why.is_empty()),
    };
    let kinds = ["on-premises", "cloud", "forward", "group", "alias"];
    assert_eq!(kinds.iter().map(|kind| imported.count(kind)).sum::<usize>(), imported.len());
    let text = imported.to_csv();
    match file::read(text.as_bytes()) {
        Ok((table, faults, _)) => {
            assert_eq!(faults, [], "{text}");
            assert_eq!(table.len(), imported.len(), "{text}");
        }
        Err(LoadError::NothingUsable(faults)) => {
            assert!(imported.is_empty() && faults.is_empty(), "{faults:?}: {text}")
        }
        Err(error) => panic!("{error}: {text}"),
    }
    // What import wrote is known as such, whatever the next export has.
    let replaced = Imported::default().replacing(text.as_bytes()).expect("a recipient file");
    assert_eq!((replaced.by_hand, replaced.gone.len()), (Vec::new(), imported.len()), "{text}");
    let lines = 1 + text_lines(data);
    for remark in &imported.remarks {
        assert!(remark.line >= 1 && remark.line <= lines, "line {} of {lines}", remark.line);
        assert!(!remark.text.is_empty());
    }
    assert!(imported.remarks.is_sorted_by_key(|remark| remark.line));
}

fn text_lines(data: &[u8]) -> usize {
    data.iter().filter(|&&octet| octet == b'\n').count()
}
