//! The configuration: as written, then checked, then unchangeable. After [`load`] nobody asks again.
//!
//! Every key is read before anything is judged, so one run shows every mistake. A key whose feature is not
//! built is refused with "not supported in this version", unless its value turns the feature off.

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;

use crate::message::{Address, Domain};
use crate::tls::{Identity, Names, Roots};

pub mod connector;
pub mod problem;
pub mod read;
pub mod value;

pub use problem::{Problem, Problems};
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
    /// `[tracking]`; `None` where the section is left out: events are not written to files.
    pub tracking: Option<Tracking>,
    /// `[log]`
    pub log: Log,
}

/// `[spool]`
#[derive(Debug, Clone)]
pub struct Spool {
    /// The folder.
    pub path: PathBuf,
    /// Undelivered that long after it was accepted, a message is returned.
    pub message_lifetime: Duration,
    /// Undelivered that long, its sender is told once; `None`: never.
    pub delay_warning: Option<Duration>,
    /// Waits between attempts; the last one repeats. Never empty.
    pub retry: Vec<Duration>,
    /// Bytes; below it new mail gets 452 4.3.1.
    pub min_free_space: u64,
}

/// `[dns]`
#[derive(Debug, Clone, Default)]
pub struct Dns {
    /// Empty: the system's.
    pub servers: Vec<SocketAddr>,
    /// Private networks that an MX may point to.
    pub private_targets: Vec<IpNet>,
}

/// `[hybrid]` on the on-premises side.
#[derive(Debug, Clone)]
pub struct Hybrid {
    /// Send connector for mailboxes on-premises.
    pub on_premises: ConnectorName,
    /// Send connector for mailboxes in the cloud.
    pub cloud: ConnectorName,
    /// Default target of cloud mailboxes: local-part@routing_domain.
    pub routing_domain: Domain,
    /// Where Internet-bound mail leaves.
    pub internet: Internet,
}

/// `[hybrid] internet`
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Internet {
    /// By the send connectors' address spaces.
    Direct,
    /// Through the cloud.
    Cloud,
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
    /// The CSV file of interface section 4.
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
#[derive(Debug)]
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
    /// False: never used.
    pub enabled: bool,
}

/// Where a send connector's mail goes.
#[derive(Debug, Clone)]
pub enum Hops {
    /// These, in order of preference; equal ones spread. Never empty.
    SmartHosts(Vec<SmartHost>),
    /// The MX of the recipient's domain.
    Mx,
}

/// `[[send_connector]] tls`, with what it needs.
#[derive(Debug, Clone)]
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

/// `username` and what was read from `password_file`.
#[derive(Clone)]
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
#[derive(Debug, Clone)]
pub struct Tracking {
    /// The folder.
    pub path: PathBuf,
    /// Files older than that are removed.
    pub keep: Duration,
}

/// `[log]`
#[derive(Debug, Clone)]
pub struct Log {
    /// One JSON object a line rather than text.
    pub json: bool,
    /// `error`, `warn`, `info`, `debug`, `trace`, or a filter such as `info,causeway::deliver=debug`.
    pub level: String,
}

impl Config {
    /// The send connector of this name.
    pub fn send_connector(&self, name: &ConnectorName) -> Option<&Arc<SendConnector>> {
        self.send_connectors.iter().find(|connector| connector.name == *name)
    }
}

/// Reads and checks the file at `path` and every file it names, but for the directories' content.
///
/// # Errors
/// All that is wrong with it.
pub fn load(path: &Path) -> Result<Config, Problems> {
    let _ = path;
    todo!()
}

/// Reads and checks `text` as if it stood in the file `path`.
///
/// # Errors
/// All that is wrong with it.
pub fn parse(text: &str, path: &Path) -> Result<Config, Problems> {
    let _ = (text, path);
    todo!()
}
