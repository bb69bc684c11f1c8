//! A look at a configuration that may be faulty: what the command line needs to find the daemon and its files.
//!
//! A daemon runs on while somebody mends its configuration, or renews a key. How it does is asked just then, and often by
//! somebody who may not read its keys. So only the sections that are asked for must be right; the other faults are
//! counted.

use std::path::Path;

use super::files::Files;
use super::problem::Problems;
use super::read::{Document, Read, Table};
use super::{
    AcceptedDomain, Admin, ConnectorName, DirectorySource, DomainKind, Origin, Tracking, connector, examine, read,
    value,
};
use crate::message::Domain;

/// What stands there, as far as it can be made out.
#[derive(Debug)]
pub struct Glance {
    /// `hostname`, as written.
    pub hostname: Option<String>,
    /// `[tracking]`; or what is wrong with it.
    pub tracking: Result<Option<Tracking>, Problems>,
    /// `[admin]`; or what is wrong with it.
    pub admin: Result<Option<Admin>, Problems>,
    /// What the receive connectors say of their senders.
    pub origins: Vec<(ConnectorName, Origin)>,
    /// What the configuration says of recipients.
    pub recipients: Recipients,
    /// All that [`load`](super::load) would refuse, but for files that whoever asks may not read.
    pub faults: usize,
}

/// Accepted domains, `[hybrid]` and `[[directory]]`, as far as they can be made out; the files need not be there.
#[derive(Debug, Default)]
pub struct Recipients {
    /// `[[accepted_domain]]`, in order.
    pub accepted_domains: Vec<AcceptedDomain>,
    /// `[hybrid] routing_domain`.
    pub routing_domain: Option<Domain>,
    /// `[hybrid] side = "cloud"`
    pub is_cloud_side: bool,
    /// `[[directory]]`, in order.
    pub directories: Vec<DirectorySource>,
}

impl Recipients {
    /// The type of the accepted domain that `domain` is of. On the cloud side the routing domain is one too.
    pub fn accepted(&self, domain: &Domain) -> Option<DomainKind> {
        let routing = || self.is_cloud_side && self.routing_domain.as_ref() == Some(domain);
        let accepted = AcceptedDomain::of(&self.accepted_domains, domain).map(|accepted| accepted.kind);
        accepted.or_else(|| routing().then_some(DomainKind::Authoritative))
    }
}

/// Looks at the file at `path`.
///
/// # Errors
/// It cannot be read, or is no text.
pub fn glance(path: &Path) -> Result<Glance, Problems> {
    let text = read(path)?;
    let (_, problems) = examine(&text, path, &mut Files::new(None));
    // The daemon has a user of its own: what others may not read says nothing about what it can.
    let faults = problems.errors().filter(|problem| !problem.text.contains("Permission denied")).count();
    let document = Document::new(path, &text);
    let root = document.parse_what_can_be();
    let mut table = document.root(&root);
    let doors = table.sections("receive_connector", "name", &mut Problems::default()).unwrap_or_default();
    let doors: Vec<_> = doors.into_iter().filter_map(door).collect();
    let listening = doors.iter().map(|door| (&door.name, door.listen.as_slice()));
    Ok(Glance {
        hostname: table.peek("hostname").map(str::to_owned),
        admin: told(|problems| super::admin(&mut table.section("admin", problems)?, listening, problems)),
        tracking: told(|problems| super::tracking(table.section("tracking", problems)?, problems)),
        recipients: recipients(&mut table),
        origins: doors.iter().filter_map(|door| Some((door.name.clone(), door.origin?))).collect(),
        faults,
    })
}

fn recipients(table: &mut Table<'_>) -> Recipients {
    let untold = &mut Problems::default();
    let domains = table.sections("accepted_domain", "name", untold).unwrap_or_default();
    let directories = table.sections("directory", "path", untold).unwrap_or_default();
    let hybrid = table.section("hybrid", untold).ok();
    let hybrid = |key: &str| hybrid.as_ref().and_then(|table| table.peek(key));
    let source = |table: Table<'_>| {
        let path = table.peek("path")?;
        Some(DirectorySource { name: path.into(), path: table.beside(path) })
    };
    Recipients {
        accepted_domains: domains
            .into_iter()
            .filter_map(|mut table| super::accepted_domain(&mut table, &mut Problems::default()).ok())
            .collect(),
        routing_domain: hybrid("routing_domain").and_then(|domain| Domain::parse(domain).ok()),
        is_cloud_side: hybrid("side") == Some("cloud"),
        directories: directories.into_iter().filter_map(source).collect(),
    }
}

/// What is needed of a receive connector, whatever else stands in it.
struct Door {
    name: ConnectorName,
    listen: Vec<std::net::SocketAddr>,
    origin: Option<Origin>,
}

fn door(mut table: Table<'_>) -> Option<Door> {
    let untold = &mut Problems::default();
    let listen = table.texts("listen", value::listen, untold).ok().flatten().unwrap_or_default();
    let origin = connector::origin(&mut table, untold).ok();
    let name = table.text("name", value::connector_name, untold).ok().flatten()?;
    Some(Door { name, listen, origin })
}

/// The value, or what is wrong with it.
fn told<T>(read: impl FnOnce(&mut Problems) -> Read<T>) -> Result<T, Problems> {
    let mut problems = Problems::default();
    let value = read(&mut problems);
    value.ok().filter(|_| problems.errors().next().is_none()).ok_or(problems)
}

#[cfg(test)]
mod tests {
    use super::*;

    const WHOLE: &str = r#"hostname = "mail.contoso.com"
[spool]
path = "spool"
[tracking]
path = "events"
[admin]
listen = "127.0.0.1:9025"
[[accepted_domain]]
name = "contoso.com"
[[receive_connector]]
name = "in"
listen = ["127.0.0.1:25"]
origin = "partner"
tls = "off"
"#;

    /// Which of both sections can be made out, and how many faults there are.
    fn seen(text: &str) -> (bool, bool, usize) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("causeway.toml");
        std::fs::write(&path, text).unwrap();
        let glance = glance(&path).unwrap();
        let admin = matches!(&glance.admin, Ok(Some(admin)) if admin.listen.port() == 9025);
        let tracking = matches!(&glance.tracking, Ok(Some(tracking)) if tracking.path.ends_with("events"));
        assert_eq!(glance.hostname.as_deref(), Some("mail.contoso.com"), "{text}");
        assert_eq!(glance.origins, [(ConnectorName("in".into()), Origin::Partner)], "{text}");
        let contoso = Domain::parse("contoso.com").unwrap();
        assert_eq!(glance.recipients.accepted(&contoso), Some(DomainKind::Authoritative), "{text}");
        (admin, tracking, glance.faults)
    }

    #[test]
    fn recipients_are_made_out_without_their_files() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("causeway.toml");
        let hybrid = "[hybrid]\nside = \"cloud\"\nrouting_domain = \"t.mail.onmicrosoft.com\"\n";
        let more = "[[accepted_domain]]\nname = \"*.x.example\"\ntype = \"internal-relay\"\n\
                    [[accepted_domain]]\nnam = 1\n[[directory]]\npath = \"gone.csv\"\n";
        for (text, routing) in [(format!("{WHOLE}{hybrid}{more}"), true), (format!("{WHOLE}{more}"), false)] {
            std::fs::write(&path, text).unwrap();
            let recipients = glance(&path).unwrap().recipients;
            for (domain, expected) in [
                ("contoso.com", Some(DomainKind::Authoritative)),
                ("a.x.example", Some(DomainKind::InternalRelay)),
                ("t.mail.onmicrosoft.com", routing.then_some(DomainKind::Authoritative)),
                ("fabrikam.com", None),
            ] {
                assert_eq!(recipients.accepted(&Domain::parse(domain).unwrap()), expected, "{domain}");
            }
            assert_eq!(recipients.directories[0].path, folder.path().join("gone.csv"));
        }
    }

    #[test]
    fn faults_elsewhere_hide_nothing() {
        for (from, to, expected) in [
            ("", "", (true, true, 0)),
            ("[spool]", "[spol]", (true, true, 2)),
            ("path = \"spool\"", "path = 1", (true, true, 1)),
            ("path = \"spool\"", "path = spool", (true, true, 1)),
            ("path = \"spool\"", "path = \"spool", (true, true, 1)),
            ("tls = \"off\"", "tls = \"require\"\ncertificate = \"gone.crt\"\nkey = \"gone.key\"", (true, true, 1)),
            ("[[accepted_domain]]", "[[directory]]\npath = \"gone.csv\"\n[[accepted_domain]]", (true, true, 1)),
            // Their own are theirs.
            ("127.0.0.1:9025", "0.0.0.0:9025", (false, true, 1)),
            ("listen = \"127.0.0.1:9025\"", "lisen = \"127.0.0.1:9025\"", (false, true, 1)),
            ("[tracking]\npath", "[tracking]\npth", (true, false, 1)),
        ] {
            let text = WHOLE.replacen(from, to, 1);
            assert_eq!(seen(&text), expected, "{text}");
        }
    }
}
