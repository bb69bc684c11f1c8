//! The configuration: as written, then checked, then unchangeable. After [`load`] nobody asks again.
//!
//! Every key is read before anything is judged, so one run shows every mistake. A key whose feature is not
//! built is refused with "not supported in this version", unless its value turns the feature off.

use std::fs::{self, File};
use std::io::{self, Read as _};
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;
use jiff::Timestamp;
use nix::unistd::User;

use self::files::Files;
use self::read::{Document, Read, Reported, Table};
use self::together::{Entry, Whole};
use crate::message::{Address, Domain};
use crate::tls::{Identity, Names, Roots};

mod connector;
mod files;
mod glance;
pub mod problem;
mod read;
mod together;
pub mod value;

pub use glance::{Glance, Recipients, glance};
pub use problem::{Problem, Problems, Severity};
pub use read::Places;
pub(crate) use read::nearest;
pub(crate) use value::size;
pub use value::{AddressSpace, ConnectorName, SmartHost, SmartHostAddress};

/// A configuration that makes sense.
#[derive(Debug, Clone)]
pub struct Config {
    /// The file it was read from.
    pub path: PathBuf,
    /// Banner, EHLO, `Received:`, Reporting-MTA.
    pub hostname: Domain,
    /// Where mail to `postmaster` goes that the directory does not know.
    pub postmaster: Address,
    /// How long a graceful end may take.
    pub shutdown_grace: Duration,
    /// After binding ports as root, become this user.
    pub user: Option<String>,
    /// `[spool]`
    pub spool: Spool,
    /// `[dns]`
    pub dns: Dns,
    /// `[hybrid]`; `None`: a plain relay.
    pub hybrid: Option<Hybrid>,
    /// `[[accepted_domain]]`, in order.
    pub accepted_domains: Vec<AcceptedDomain>,
    /// `[[directory]]`, in order: the first that knows an address answers.
    pub directories: Vec<DirectorySource>,
    /// `[[receive_connector]]`, in order.
    pub receive_connectors: Vec<Arc<ReceiveConnector>>,
    /// `[[send_connector]]`, in order, the disabled ones too.
    pub send_connectors: Vec<Arc<SendConnector>>,
    /// `[tracking]`; `None` where `path` is empty: events are not written to files.
    pub tracking: Option<Tracking>,
    /// `[admin]`; `None` where `listen` is empty: nothing listens.
    pub admin: Option<Admin>,
    /// `[log]`
    pub log: Log,
}

/// `[spool]`
#[derive(Debug, Clone)]
pub struct Spool {
    /// The folder.
    pub path: PathBuf,
    /// When a 250 may be said.
    pub acknowledge: Acknowledge,
    /// Undelivered that long after it was accepted, a message is returned.
    pub message_lifetime: Duration,
    /// Undelivered that long, its sender is told once; `None`: never.
    pub delay_warning: Option<Duration>,
    /// Waits between attempts; the last one repeats. Never empty.
    pub retry: Vec<Duration>,
    /// Bytes; below it new mail gets 452 4.3.1.
    pub min_free_space: u64,
}

/// `[spool] acknowledge`
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Acknowledge {
    /// After the message is on stable storage.
    Durable,
    /// As soon as every copy was accepted by its next hop, or that.
    DeliveredOrDurable {
        /// So long next hops are tried before the disk is used.
        window: Duration,
    },
}

/// `[dns]`
#[derive(Debug, Clone, Default)]
pub struct Dns {
    /// Empty: the system's.
    pub servers: Vec<SocketAddr>,
    /// Private networks that an MX may point to.
    pub private_targets: Vec<IpNet>,
}

/// `[hybrid]`
#[derive(Debug, Clone)]
pub struct Hybrid {
    /// Which premises this relay serves.
    pub side: Side,
    /// Send connector for mailboxes on-premises.
    pub on_premises: ConnectorName,
    /// Send connector for mailboxes in the cloud.
    pub cloud: ConnectorName,
    /// Default target of cloud mailboxes: local-part@routing_domain.
    pub routing_domain: Domain,
    /// Where Internet-bound mail leaves.
    pub internet: Internet,
    /// A mailbox that each side holds to be at the other may be moving: it is answered 451 4.4.6 this long, then 5.4.6.
    pub disagreement_grace: Duration,
}

/// `[hybrid] side`
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// This relay stands before the mailboxes on-premises.
    OnPremises,
    /// This relay stands before the mailboxes in the cloud.
    Cloud {
        /// Where mail from the Internet goes first.
        inbound_first_hop: FirstHop,
    },
}

/// `[hybrid] inbound_first_hop`
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FirstHop {
    /// Where its recipient has its mailbox.
    Here,
    /// On-premises, whoever it is for.
    OnPremises,
}

/// `[hybrid] internet`
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Internet {
    /// `"direct"`: by the send connectors' address spaces.
    Direct,
    /// Through the other premises: `"cloud"` on the on-premises side, `"on-premises"` on the cloud side.
    OtherPremises,
}

impl Side {
    /// The word of the interface.
    pub fn word(self) -> &'static str {
        match self {
            Self::OnPremises => "on-premises",
            Self::Cloud { .. } => "cloud",
        }
    }

    /// The origin of what this side sends by itself: its clients' mail and the relay's own reports.
    pub fn origin(self) -> Origin {
        match self {
            Self::OnPremises => Origin::OnPremises,
            Self::Cloud { .. } => Origin::Cloud,
        }
    }
}

/// `[[accepted_domain]]`
#[derive(Debug, Clone)]
pub struct AcceptedDomain {
    /// The name, without `*.`.
    pub name: Domain,
    /// It was written `*.name`: its subdomains too.
    pub subdomains: bool,
    /// What is done with unknown recipients.
    pub kind: DomainKind,
}

impl AcceptedDomain {
    /// The one of `all` that `domain` is of: the longest name, and itself before a pattern.
    pub fn of<'a>(all: &'a [Self], domain: &Domain) -> Option<&'a Self> {
        let of = |accepted: &&Self| {
            if accepted.subdomains { domain.is_within(&accepted.name) } else { *domain == accepted.name }
        };
        let rank = |accepted: &&Self| (accepted.name.as_str().len(), !accepted.subdomains);
        // `max_by_key` would give the last of equals; of two that say the same the first holds.
        all.iter().rev().filter(of).max_by_key(rank)
    }
}

/// `[[accepted_domain]] type`
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DomainKind {
    /// 550 5.1.1 at RCPT.
    Authoritative,
    /// On to the other premises.
    InternalRelay,
    /// By address space, no directory.
    ExternalRelay,
}

/// `[[directory]]`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DirectorySource {
    /// The file as the configuration names it, for reasons and messages.
    pub name: Arc<str>,
    /// The CSV file of recipients.
    pub path: PathBuf,
}

/// `[[receive_connector]] origin`: what a connector says of its senders.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Origin {
    /// Anybody.
    Internet,
    /// The organization's servers on-premises.
    OnPremises,
    /// The organization's cloud service.
    Cloud,
    /// Another organization that proves itself.
    Partner,
    /// The organization's own devices and applications.
    Client,
}

impl Origin {
    /// The word of the interface.
    pub fn word(self) -> &'static str {
        match self {
            Self::Internet => "internet",
            Self::OnPremises => "on-premises",
            Self::Cloud => "cloud",
            Self::Partner => "partner",
            Self::Client => "client",
        }
    }
}

/// `[[receive_connector]]`
#[derive(Debug)]
pub struct ReceiveConnector {
    /// Unique.
    pub name: ConnectorName,
    /// Addresses it listens on.
    pub listen: Vec<SocketAddr>,
    /// Whose connections it takes; the most specific network of all connectors on the address wins.
    pub remote_ips: Vec<IpNet>,
    /// What it says of its senders.
    pub origin: Origin,
    /// TLS.
    pub tls: ReceiveTls,
    /// Presented in the handshake; there unless `tls` is `Off`.
    pub identity: Option<Identity>,
    /// What a client's certificate must carry; `None`: no certificate is asked of this connector.
    pub tls_domain: Option<Names>,
    /// Roots for client certificates.
    pub client_roots: Option<Roots>,
    /// MAIL FROM in `sender_domains` is refused on every other connector.
    pub only_here: bool,
    /// Empty: any. `(domain, with subdomains)`.
    pub sender_domains: Vec<(Domain, bool)>,
    /// This peer's organization headers and XOORG are believed.
    pub internal: bool,
    /// Empty: any. Else `X-OriginatorOrg` or XOORG must be one of these, or the message counts as from the Internet.
    pub originator_org: Vec<Domain>,
    /// Users who may log in by AUTH, in TLS; `None`: AUTH is not offered.
    pub users_file: Option<PathBuf>,
    /// MAIL before AUTH is 530 5.7.0.
    pub require_auth: bool,
    /// `remote_ips` are proxies: each connection begins with a PROXY header that names the client.
    pub proxy_protocol: bool,
    /// May send to domains that are not accepted domains.
    pub relay: bool,
    /// Bytes; `None`: no limit.
    pub max_message_size: Option<u64>,
    /// In one transaction.
    pub max_recipients: usize,
    /// At one time.
    pub max_connections: usize,
    /// At one time from one address (IPv6: /64).
    pub max_connections_per_ip: usize,
    /// In one session.
    pub max_errors: usize,
    /// Refuse clients that talk before the greeting or pipeline out of order.
    pub strict: bool,
    /// The wait for the end of a TLS handshake.
    pub tls_handshake_timeout: Duration,
    /// The wait for a command.
    pub command_timeout: Duration,
    /// The wait for the next piece of a message.
    pub data_timeout: Duration,
}

/// `[[receive_connector]] tls`
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReceiveTls {
    /// STARTTLS is not offered.
    Off,
    /// It is.
    Offer,
    /// 530 5.7.0 before it.
    Require,
    /// From the first byte.
    Implicit,
}

/// `[[send_connector]]`
#[derive(Debug, PartialEq)]
pub struct SendConnector {
    /// Unique.
    pub name: ConnectorName,
    /// What it serves; empty: used only where it is named.
    pub serves: Vec<AddressSpace>,
    /// Smart hosts or MX.
    pub hops: Hops,
    /// Where the hosts listen, unless a smart host says otherwise.
    pub port: u16,
    /// What they must prove.
    pub tls: Level,
    /// Presented when the server asks.
    pub identity: Option<Identity>,
    /// What we call ourselves; `None`: the hostname.
    pub helo: Option<Domain>,
    /// At most one of each family.
    pub source_v4: Option<IpAddr>,
    /// At most one of each family.
    pub source_v6: Option<IpAddr>,
    /// AUTH to smart hosts.
    pub login: Option<Login>,
    /// Per next-hop host.
    pub max_connections: usize,
    /// Then the connection is closed and a new one opened.
    pub max_messages_per_connection: usize,
    /// Per transaction; more are split into several.
    pub max_recipients: usize,
    /// Bytes; refused at routing with 552 5.3.4 beyond.
    pub max_message_size: Option<u64>,
    /// Messages per time.
    pub rate: Option<Rate>,
    /// Per address.
    pub connect_timeout: Duration,
    /// BDAT where the server offers it.
    pub chunking: bool,
    /// What becomes of 8-bit content for a server without 8BITMIME.
    pub eight_bit: EightBit,
    /// What becomes of a `+tag` without which the directory found a recipient.
    pub tags: Tags,
    /// It leads to the other premises: organization headers and XOORG travel along.
    pub internal: bool,
    /// False: never used.
    pub enabled: bool,
}

/// `[[send_connector]] eight_bit`: what becomes of 8-bit content for a server without 8BITMIME.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum EightBit {
    /// MIME parts become quoted-printable or base64; what cannot be converted goes as it is.
    #[default]
    Convert,
    /// It goes as it is.
    AsIs,
    /// It is returned, with 5.6.3.
    Return,
}

/// `[[send_connector]] tags`
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tags {
    /// It goes on with the address.
    Keep,
    /// The address goes on as it stands in the directory.
    Drop,
}

/// Where a send connector's mail goes.
#[derive(Debug, Clone, PartialEq)]
pub enum Hops {
    /// These, in order of preference; equal ones spread. Never empty.
    SmartHosts(Vec<SmartHost>),
    /// The MX of the recipient's domain.
    Mx,
}

/// `[[send_connector]] tls`, with what it needs.
#[derive(Debug, Clone, PartialEq)]
pub enum Level {
    /// STARTTLS is not used.
    Off,
    /// STARTTLS if offered, any certificate.
    Opportunistic,
    /// STARTTLS, any certificate.
    Encrypt,
    /// A chain to these roots.
    Certificate(Roots),
    /// And one of these names; `None` (MX only): the MX host and the domain.
    Domain(Roots, Option<Names>),
}

impl Level {
    /// What a host's certificate must chain to; `None`: it is not asked.
    pub fn roots(&self) -> Option<&Roots> {
        match self {
            Self::Certificate(roots) | Self::Domain(roots, _) => Some(roots),
            Self::Off | Self::Opportunistic | Self::Encrypt => None,
        }
    }
}

/// `username` and what was read from `password_file`.
#[derive(Clone, PartialEq, Eq)]
pub struct Login {
    /// The name.
    pub username: String,
    /// The password; never shown.
    pub password: String,
}

impl std::fmt::Debug for Login {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Login({})", self.username)
    }
}

/// `rate = "600/min"`
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rate {
    /// So many messages
    pub count: u32,
    /// in so long a time.
    pub per: Duration,
}

/// `[tracking]`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tracking {
    /// The folder.
    pub path: PathBuf,
    /// Files older than that are removed.
    pub keep: Duration,
}

/// `[admin]`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Admin {
    /// A loopback address.
    pub listen: SocketAddr,
    /// What who asks must know; made if it is missing.
    pub token_file: PathBuf,
    /// The section is left out: nobody asked for it, and mail flows where it cannot be had.
    pub is_default: bool,
}

/// `[log]`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Log {
    /// One JSON object a line rather than text.
    pub json: bool,
    /// `error`, `warn`, `info`, `debug`, `trace`, or a filter such as `info,causeway::deliver=debug`.
    pub level: String,
}

impl Config {
    /// What XOORG says is ours: the first authoritative domain, or where there is none the first at all.
    pub fn organization(&self) -> Option<&Domain> {
        let authoritative = self.accepted_domains.iter().find(|domain| domain.kind == DomainKind::Authoritative);
        authoritative.or(self.accepted_domains.first()).map(|domain| &domain.name)
    }

    /// The send connector of this name.
    pub fn send_connector(&self, name: &ConnectorName) -> Option<&Arc<SendConnector>> {
        self.send_connectors.iter().find(|connector| connector.name == *name)
    }

    /// Every certificate with its key; one that several connectors name comes several times.
    pub fn identities(&self) -> impl Iterator<Item = &Identity> {
        let receive = self.receive_connectors.iter().filter_map(|connector| connector.identity.as_ref());
        receive.chain(self.send_connectors.iter().filter_map(|connector| connector.identity.as_ref()))
    }

    /// All roots that somebody must chain to, likewise.
    pub fn roots(&self) -> impl Iterator<Item = &Roots> {
        let receive = self.receive_connectors.iter().filter_map(|connector| connector.client_roots.as_ref());
        receive.chain(self.send_connectors.iter().filter_map(|connector| connector.tls.roots()))
    }
}

/// No configuration written by people is longer.
const LENGTH_LIMIT: u64 = 16 << 20;

/// Reads and checks the file at `path` and every file it names, but for the directories' content and the dates of
/// certificates: a daemon whose certificate ran out last night still starts, and says so.
///
/// # Errors
/// All that is wrong with it.
pub fn load(path: &Path) -> Result<Config, Problems> {
    let text = read(path)?;
    parse(&text, path)
}

/// Reads and checks `text` as if it stood in the file `path`.
///
/// # Errors
/// All that is wrong with it.
pub fn parse(text: &str, path: &Path) -> Result<Config, Problems> {
    parse_with_warnings(text, path).map(|(config, _)| config)
}

/// The same, with what somebody should look at.
///
/// # Errors
/// All that is wrong with it.
pub fn parse_with_warnings(text: &str, path: &Path) -> Result<(Config, Problems), Problems> {
    match examine(text, path, &mut Files::new(None)) {
        (Some(config), warnings) => Ok((config, warnings)),
        (None, problems) => Err(problems),
    }
}

/// The same for a relay that runs by `serving`: a certificate with its key, or a file of roots, that cannot be used
/// now, or is out of time at `now` where the one in use is not, stays as it is in use. While somebody renews a pair
/// its files do not belong together for a moment. Beside the configuration: what
/// somebody should look at, and each that stayed, with the reason.
///
/// # Errors
/// All that is wrong with it.
pub fn parse_over(
    text: &str,
    path: &Path,
    serving: &Config,
    now: Timestamp,
) -> Result<(Config, Problems, Vec<String>), Problems> {
    let mut files = Files::over(serving, now);
    match examine(text, path, &mut files) {
        (Some(config), warnings) => Ok((config, warnings, files.into_kept())),
        (None, problems) => Err(problems),
    }
}

/// Everything that can be said about the file at `path` without asking the network: what [`load`] would refuse, the
/// chains of certificates as of `now`, and what should be looked at. There is a configuration if there is no error.
pub fn check(path: &Path, now: Timestamp) -> (Option<Config>, Problems) {
    match read(path) {
        Ok(text) => examine(&text, path, &mut Files::new(Some(now))),
        Err(problems) => (None, problems),
    }
}

/// Reads the file at `path`, for [`parse`].
///
/// # Errors
/// It cannot be read, or is no text.
pub fn read(path: &Path) -> Result<String, Problems> {
    let unreadable = |place, text: String| {
        Problems(vec![Problem { severity: Severity::Unreadable, file: path.to_owned(), place, text }])
    };
    let mut bytes = Vec::new();
    let length = File::open(path).and_then(|file| file.take(LENGTH_LIMIT + 1).read_to_end(&mut bytes));
    if let Err(error) = length {
        let cure = match error.kind() {
            std::io::ErrorKind::NotFound => "; is this its path (-c FILE)? `causeway init` writes one",
            _ => "",
        };
        return Err(unreadable(None, format!("cannot be read: {error}{cure}")));
    }
    if bytes.len() as u64 > LENGTH_LIMIT {
        return Err(unreadable(None, "is longer than 16MiB, which no configuration is".to_owned()));
    }
    String::from_utf8(bytes).map_err(|error| {
        let sound = String::from_utf8_lossy(&error.as_bytes()[..error.utf8_error().valid_up_to()]);
        let line = sound.matches('\n').count() + 1;
        let column = sound.rsplit('\n').next().unwrap_or_default().chars().count() + 1;
        unreadable(Some((line, column)), "this is not UTF-8".to_owned())
    })
}

fn examine(text: &str, path: &Path, files: &mut Files) -> (Option<Config>, Problems) {
    let mut problems = Problems::default();
    let document = Document::new(path, text);
    let config =
        document.parse(&mut problems).and_then(|root| config(document.root(&root), path, files, &mut problems));
    problems.sort();
    let errors = problems.errors().next().is_some();
    (config.ok().filter(|_| !errors), problems)
}

fn config(mut table: Table<'_>, path: &Path, files: &mut Files, problems: &mut Problems) -> Read<Config> {
    let hostname = hostname(&mut table, problems);
    let postmaster = table.text("postmaster", value::address, problems);
    let shutdown_grace = table.text("shutdown_grace", value::duration, problems);
    let user = user(&mut table, problems);
    let spool = table.section("spool", problems).and_then(|table| spool(table, problems));
    let dns = table.section("dns", problems).and_then(|table| dns(table, problems));
    let mut hybrid_table = table.section("hybrid", problems);
    let hybrid = hybrid_table.as_mut().map_err(|reported| *reported).and_then(|table| hybrid(table, problems));
    let domains = entries(&mut table, "accepted_domain", "name", problems, accepted_domain);
    let directories = entries(&mut table, "directory", "path", problems, directory);
    let receives = entries(&mut table, "receive_connector", "name", problems, |table, problems| {
        connector::receive_connector(table, files, problems)
    });
    let sends = entries(&mut table, "send_connector", "name", problems, |table, problems| {
        connector::send_connector(table, files, problems)
    });
    files.judge(&receives, &sends, problems);
    if let Ok(hostname) = &hostname {
        Files::judge_names(hostname, &receives, problems);
    }
    let tracking = table.section("tracking", problems).and_then(|table| tracking(table, problems));
    let log = table.section("log", problems).and_then(|table| log(table, problems));
    let admin = table.section("admin", problems);
    refuse_sections(&mut table, problems);
    table.finish(problems);

    let postmaster = match (postmaster, &domains) {
        (Ok(Some(postmaster)), _) => Ok(postmaster),
        (Ok(None), Ok(domains)) => default_postmaster(&table, domains, problems),
        _ => Err(Reported),
    };
    if let Ok(domains) = &domains {
        together::check_domains(domains, problems);
    }
    if let Ok(table) = &hybrid_table {
        together::check_hybrid(table, &sends, problems);
    }
    if let Ok(sends) = &sends {
        together::check_names(sends, problems);
        if sends.is_empty() {
            table.warn("send_connector", "missing; without one no mail can leave", problems);
        }
    }
    let mut receives = receives?;
    if receives.is_empty() {
        table.complain("receive_connector", "missing; without one no mail can come", problems);
    }
    let listening = receives.iter().filter_map(|entry| entry.read.as_ref().ok());
    let listening = listening.map(|connector| (&connector.name, connector.listen.as_slice()));
    let admin = admin.and_then(|mut section| self::admin(&mut section, listening, problems));
    together::check_names(&receives, problems);
    together::check_listening(&receives, problems);
    together::imply_require(&mut receives);

    let (hybrid, domains, sends) = (hybrid?, domains?, sends?);
    let directories: Vec<DirectorySource> = all(directories?)?.collect();
    if domains.iter().all(|entry| entry.read.is_ok()) && sends.iter().all(|entry| entry.read.is_ok()) {
        let hybrid = hybrid_table.as_ref().ok().zip(hybrid.as_ref());
        Whole { hybrid, domains: &domains, directories: &directories, sends: &sends }.warn(problems);
    }
    Ok(Config {
        path: path.to_owned(),
        hostname: hostname?,
        postmaster: postmaster?,
        shutdown_grace: shutdown_grace?.unwrap_or(Duration::from_secs(30)),
        user: user?,
        spool: spool?,
        dns: dns?,
        hybrid,
        accepted_domains: all(domains)?.collect(),
        directories,
        receive_connectors: all(receives)?.map(Arc::new).collect(),
        send_connectors: all(sends)?.map(Arc::new).collect(),
        tracking: tracking?,
        admin: admin?,
        log: log?,
    })
}

/// Reads each `[[key]]`; a faulty one does not hide the others.
fn entries<'a, T>(
    table: &mut Table<'a>,
    key: &'static str,
    name: &str,
    problems: &mut Problems,
    mut read: impl FnMut(&mut Table<'a>, &mut Problems) -> Read<T>,
) -> Read<Vec<Entry<'a, T>>> {
    let tables = table.sections(key, name, problems)?.into_iter();
    Ok(tables.map(|mut table| Entry { read: read(&mut table, problems), table }).collect())
}

/// The values, if all of them are there.
fn all<T>(entries: Vec<Entry<'_, T>>) -> Read<impl Iterator<Item = T>> {
    entries.into_iter().map(|entry| entry.read).collect::<Read<Vec<T>>>().map(Vec::into_iter)
}

fn hostname(table: &mut Table<'_>, problems: &mut Problems) -> Read<Domain> {
    let why = r#"by what name do other servers know this one? For example "mail.contoso.com""#;
    let hostname = table.required("hostname", why, value::domain, problems)?;
    if hostname.as_str() == "localhost" {
        return Err(table.complain(
            "hostname",
            "every host calls itself \"localhost\"; other servers need a name of its own",
            problems,
        ));
    }
    if !hostname.as_str().contains('.') {
        let text = "has no domain; other servers refuse a name that DNS does not know (RFC 5321 section 2.3.5)";
        table.warn("hostname", text, problems);
    }
    Ok(hostname)
}

fn default_postmaster(
    table: &Table<'_>,
    domains: &[Entry<'_, AcceptedDomain>],
    problems: &mut Problems,
) -> Read<Address> {
    let Some(first) = domains.first() else {
        let text = "missing; without an accepted_domain there is no default for where mail to postmaster goes";
        return Err(table.complain("postmaster", text, problems));
    };
    let domain = first.read.as_ref().map_err(|reported| *reported)?.name.clone();
    Address::new("postmaster", domain)
        .map_err(|malformed| table.complain("postmaster", malformed.to_string(), problems))
}

fn user(table: &mut Table<'_>, problems: &mut Problems) -> Read<Option<String>> {
    let exists = |name: &str| match User::from_name(name) {
        Ok(Some(_)) => Ok(name.to_owned()),
        Ok(None) => Err("expected a user of this host".to_owned()),
        Err(error) => Err(format!("and the users of this host cannot be read: {error}")),
    };
    table.text_or_empty("user", exists, problems)
}

/// RFC 5321 section 4.5.3.2.6 gives the whole answer ten minutes; who sets this means milliseconds.
const LONGEST_WINDOW: Duration = Duration::from_mins(1);

fn spool(mut table: Table<'_>, problems: &mut Problems) -> Read<Spool> {
    let path = folder(&mut table, "path", problems);
    let acknowledge = table.choice("acknowledge", &[("durable", true), ("delivered-or-durable", false)], problems);
    let window = table.text("acknowledge_window", value::duration, problems);
    if let Ok(Some(window)) = window
        && window > LONGEST_WINDOW
    {
        let text = "is too long for a client that waits for its 250; at most \"1m\"";
        table.complain("acknowledge_window", text, problems);
    }
    let acknowledge = acknowledge.and_then(|durable| {
        let window = window?.unwrap_or(Duration::from_millis(200));
        Ok(if durable.unwrap_or(true) { Acknowledge::Durable } else { Acknowledge::DeliveredOrDurable { window } })
    });
    let message_lifetime = table.text("message_lifetime", value::some_time, problems);
    let delay_warning = table.text("delay_warning", value::duration, problems);
    let retry = table.texts("retry", value::some_time, problems);
    let min_free_space = table.size("min_free_space", problems);
    table.finish(problems);

    let path = match path {
        Ok(None) => {
            Err(table.complain("path", "missing; in which folder is mail kept until it is delivered?", problems))
        }
        Ok(Some(path)) => Ok(path),
        Err(Reported) => Err(Reported),
    };
    let message_lifetime = message_lifetime.map(|it| it.unwrap_or(Duration::from_hours(48)));
    let delay_warning = delay_warning.map(|it| it.unwrap_or(Duration::from_hours(4)));
    if let (Ok(lifetime), Ok(warning)) = (message_lifetime, delay_warning)
        && table.has("delay_warning")
        && warning >= lifetime
    {
        table.warn("delay_warning", "never comes to pass: message_lifetime is over before", problems);
    }
    if matches!(&retry, Ok(Some(waits)) if waits.is_empty()) {
        table.complain("retry", r#"is empty; expected at least one wait, such as ["5m"]"#, problems);
    }
    let minutes = |waits: [u64; 5]| waits.map(Duration::from_mins).to_vec();
    Ok(Spool {
        path: path?,
        acknowledge: acknowledge?,
        message_lifetime: message_lifetime?,
        delay_warning: Some(delay_warning?).filter(|warning| !warning.is_zero()),
        retry: retry?.unwrap_or_else(|| minutes([1, 5, 10, 20, 30])),
        min_free_space: min_free_space?.unwrap_or(256 << 20),
    })
}

/// A path where a folder is or will be.
fn folder(table: &mut Table<'_>, key: &'static str, problems: &mut Problems) -> Read<Option<PathBuf>> {
    let path = table.path(key, problems)?;
    match path.as_ref().map(fs::metadata) {
        Some(Ok(metadata)) if !metadata.is_dir() => {
            Err(table.complain(key, "expected a folder; there is a file", problems))
        }
        Some(Err(error)) if error.kind() == io::ErrorKind::NotADirectory => {
            Err(table.complain(key, "expected a folder; there is a file on the way to it", problems))
        }
        _ => Ok(path),
    }
}

fn dns(mut table: Table<'_>, problems: &mut Problems) -> Read<Dns> {
    let servers = table.texts("servers", value::dns_server, problems);
    let dnssec = table.choice("dnssec", &[("off", true), ("validate", false), ("trust-ad", false)], problems);
    if dnssec == Ok(Some(false)) {
        table.refuse("dnssec", r#""off" is"#, problems);
    }
    let private_targets = table.texts("private_targets", value::network, problems);
    table.finish(problems);
    Ok(Dns { servers: servers?.unwrap_or_default(), private_targets: private_targets?.unwrap_or_default() })
}

fn hybrid(table: &mut Table<'_>, problems: &mut Problems) -> Read<Option<Hybrid>> {
    if !table.is_written() {
        return Ok(None);
    }
    let side = table.choice("side", &[("on-premises", true), ("cloud", false)], problems);
    let which = "which send_connector leads to the mailboxes";
    let on_premises = table.required("on_premises", &format!("{which} on-premises?"), value::connector_name, problems);
    let cloud = table.required("cloud", &format!("{which} in the cloud?"), value::connector_name, problems);
    let why = r#"under which domain does the cloud know its mailboxes? For example "contoso.mail.onmicrosoft.com""#;
    let routing_domain = table.required("routing_domain", why, value::domain, problems);
    let words =
        [("direct", InternetWord::Direct), ("cloud", InternetWord::Cloud), ("on-premises", InternetWord::OnPremises)];
    let internet = table.choice("internet", &words, problems);
    let disagreement_grace = table.text("disagreement_grace", value::duration, problems);
    let words = [("here", FirstHop::Here), ("on-premises", FirstHop::OnPremises)];
    let first_hop = table.choice("inbound_first_hop", &words, problems);
    table.finish(problems);

    let on_premises_side = side?.unwrap_or(true);
    let internet = match (on_premises_side, internet?) {
        (_, None | Some(InternetWord::Direct)) => Ok(Internet::Direct),
        (true, Some(InternetWord::Cloud)) | (false, Some(InternetWord::OnPremises)) => Ok(Internet::OtherPremises),
        (true, Some(InternetWord::OnPremises)) => {
            let text = r#""on-premises" is for the cloud side; here it is "direct" or "cloud""#;
            Err(table.complain("internet", text, problems))
        }
        (false, Some(InternetWord::Cloud)) => {
            let text = r#""cloud" is for the on-premises side; here it is "direct" or "on-premises""#;
            Err(table.complain("internet", text, problems))
        }
    };
    let side = match (on_premises_side, first_hop?.unwrap_or(FirstHop::Here)) {
        (true, FirstHop::Here) => Ok(Side::OnPremises),
        (true, FirstHop::OnPremises) => {
            let text = r#""on-premises" is for the cloud side; here it is "here""#;
            Err(table.complain("inbound_first_hop", text, problems))
        }
        (false, inbound_first_hop) => Ok(Side::Cloud { inbound_first_hop }),
    };
    Ok(Some(Hybrid {
        side: side?,
        on_premises: on_premises?,
        cloud: cloud?,
        routing_domain: routing_domain?,
        internet: internet?,
        disagreement_grace: disagreement_grace?.unwrap_or(Duration::from_hours(1)),
    }))
}

/// `[hybrid] internet`, as written.
#[derive(Clone, Copy)]
enum InternetWord {
    Direct,
    Cloud,
    OnPremises,
}

fn accepted_domain(table: &mut Table<'_>, problems: &mut Problems) -> Read<AcceptedDomain> {
    let why = r#"which domain? "*.contoso.com" is the domain and its subdomains"#;
    let name = table.required("name", why, value::wild_domain, problems);
    let words = [
        ("authoritative", DomainKind::Authoritative),
        ("internal-relay", DomainKind::InternalRelay),
        ("external-relay", DomainKind::ExternalRelay),
    ];
    let kind = table.choice("type", &words, problems);
    table.finish(problems);
    let (name, subdomains) = name?;
    Ok(AcceptedDomain { name, subdomains, kind: kind?.unwrap_or(DomainKind::Authoritative) })
}

fn directory(table: &mut Table<'_>, problems: &mut Problems) -> Read<DirectorySource> {
    if table.choice("kind", &[("file", true), ("ldap", false)], problems)? == Some(false) {
        table.refuse("kind", r#""file" is"#, problems);
        return Err(Reported);
    }
    let path = table.path("path", problems);
    table.finish(problems);
    let Some(path) = path? else {
        return Err(table.complain("path", "missing; in which file are the recipients?", problems));
    };
    if let Err(error) = File::open(&path).and_then(|file| file.take(1).read(&mut [0])) {
        return Err(table.complain("path", format!("{} cannot be read: {error}", path.display()), problems));
    }
    Ok(DirectorySource { name: table.peek("path").unwrap_or_default().into(), path })
}

fn tracking(mut table: Table<'_>, problems: &mut Problems) -> Read<Option<Tracking>> {
    let off = table.peek("path").is_some_and(str::is_empty);
    let path =
        if off { table.text("path", |_| Ok(()), problems).map(|_| None) } else { folder(&mut table, "path", problems) };
    let keep = table.text("keep", value::some_time, problems);
    table.finish(problems);
    let (path, keep) = (path?, keep?.unwrap_or(Duration::from_hours(30 * 24)));
    Ok((!off).then(|| Tracking { path: path.unwrap_or_else(|| "/var/log/causeway".into()), keep }))
}

fn log(mut table: Table<'_>, problems: &mut Problems) -> Read<Log> {
    let json = table.choice("format", &[("text", false), ("json", true)], problems);
    let level = table.text("level", value::log_level, problems);
    table.finish(problems);
    Ok(Log { json: json?.unwrap_or(false), level: level?.unwrap_or_else(|| "info".to_owned()) })
}

/// Sections whose features are not built. What would turn them off is taken.
fn refuse_sections(table: &mut Table<'_>, problems: &mut Problems) {
    if let Ok(mut section) = table.section("inbound_authentication", problems)
        && section.is_written()
    {
        inbound_authentication(&mut section, problems);
    }
    for (key, name) in [("milter", "address"), ("journal", "recipient"), ("rule", "name")] {
        for section in table.sections(key, name, problems).unwrap_or_default() {
            section.refuse_whole("leave the section out", problems);
        }
    }
}

/// It listens unless it is told not to. `connectors` are those that receive, and where they listen.
fn admin<'c>(
    section: &mut Table<'_>,
    mut connectors: impl Iterator<Item = (&'c ConnectorName, &'c [SocketAddr])>,
    problems: &mut Problems,
) -> Read<Option<Admin>> {
    let is_off = section.peek("listen").is_some_and(str::is_empty);
    let listen = section.text_or_empty("listen", value::listen, problems);
    let token_file = section.path("token_file", problems);
    section.finish(problems);
    let is_default = !section.is_written();
    let listen = listen?.unwrap_or(ADMIN_LISTEN);
    if is_off {
        return token_file.map(|_| None);
    }
    if !listen.ip().is_loopback() {
        let text = "expected a loopback address such as \"127.0.0.1:8025\": there is no TLS here, and the token would \
                    travel in the clear; come from elsewhere through SSH or a proxy with TLS on this host";
        return Err(section.complain("listen", text, problems));
    }
    let is_taken = |other: &SocketAddr| {
        other.port() == listen.port() && (other.ip() == listen.ip() || other.ip().is_unspecified())
    };
    if listen.port() != 0
        && let Some((other, _)) = connectors.find(|(_, taken)| taken.iter().any(is_taken))
    {
        if is_default {
            return Ok(None);
        }
        let text = format!("{listen} is where receive_connector \"{other}\" listens");
        return Err(section.complain("listen", text, problems));
    }
    let token_file = match token_file? {
        Some(path) => path,
        None => section.beside(ADMIN_TOKEN),
    };
    // One that is missing is made by the daemon when it starts.
    if !is_default && let Ok(metadata) = fs::metadata(&token_file) {
        use std::os::unix::fs::PermissionsExt as _;
        if !metadata.is_file() {
            return Err(section.complain("token_file", "expected a file", problems));
        }
        if metadata.permissions().mode() & 0o077 != 0 {
            let text = format!("others can read {}; run: chmod 600 {0}", token_file.display());
            return Err(section.complain("token_file", text, problems));
        }
    }
    Ok(Some(Admin { listen, token_file, is_default }))
}

/// Where the admin interface listens unless the file says otherwise.
const ADMIN_LISTEN: SocketAddr = SocketAddr::new(IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 8025);

/// Its token, beside the configuration.
const ADMIN_TOKEN: &str = "secrets/admin";

/// SPF, DKIM and DMARC are on unless they are turned off.
fn inbound_authentication(section: &mut Table<'_>, problems: &mut Problems) {
    let spf = section.flag("spf", problems);
    let dkim = section.flag("dkim", problems);
    let dmarc = section.choice("dmarc", &[("off", false), ("record", true), ("enforce", true)], problems);
    let mut wanted = false;
    for (key, on) in [("spf", spf), ("dkim", dkim), ("dmarc", dmarc)] {
        if on == Ok(Some(true)) {
            section.refuse(key, "", problems);
        }
        wanted |= on == Ok(None);
    }
    if wanted {
        section.refuse_whole(r#"leave the section out, or set spf = false, dkim = false and dmarc = "off""#, problems);
    }
    if let Ok(mut seal) = section.section("arc_seal", problems) {
        let parts = ["selector", "domain", "key"];
        let parts = parts.map(|key| seal.text_or_empty(key, value::something, problems));
        if parts.iter().any(|part| matches!(part, Ok(Some(_)))) {
            section.refuse("arc_seal", "", problems);
        }
        seal.finish(problems);
    }
    section.finish(problems);
}
