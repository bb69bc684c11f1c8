//! DNS: the only module that names the resolver.
//!
//! Answers are three-way: found, proven absent, unknown. Only a proven absence may ever bounce a message.
//!
//! Standards: RFC 1035, 2308 (negative answers), 5321 section 5.1 (what mail asks for).
//!
//! Not yet: DNSSEC; a second opinion from another server before NXDOMAIN is believed.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use hickory_resolver::TokioResolver;
use hickory_resolver::config::{NameServerConfig, ResolveHosts, ResolverConfig};
use hickory_resolver::lookup::Lookup;
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use hickory_resolver::proto::rr::{Name, RecordType};
use tokio::sync::Semaphore;
use tokio::time::timeout;

use crate::message::Domain;

pub mod records;
pub mod zone;

pub use zone::Zone;

use records::Trouble;

/// The wait for one answer.
const TIMEOUT: Duration = Duration::from_secs(5);
/// A question is asked once more before nobody could tell.
const RETRIES: usize = 1;
/// The wait for all that one look-up takes: aliases are asked for one after the other.
const PATIENCE: Duration = Duration::from_secs(30);
/// Answers that are remembered.
const CACHE_ANSWERS: u64 = 8192;
/// Questions under way at one time, each with its socket; more wait.
const MAX_QUESTIONS: usize = 512;

/// An answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer<T> {
    /// It exists, and this is it. Never empty.
    Found(T),
    /// A server that may say so says that it does not exist.
    Absent(Absence),
    /// Nobody could tell: time-out, SERVFAIL, REFUSED, nonsense. With what went wrong.
    Unknown(String),
}

/// How something does not exist.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Absence {
    /// NXDOMAIN: there is no such name.
    NoName,
    /// The name exists, but has no record of this type.
    NoRecord,
}

/// One MX record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mx {
    /// Lower is preferred.
    pub preference: u16,
    /// The host; `None` is the null MX, `.` (RFC 7505).
    pub host: Option<Domain>,
}

/// The questions a relay asks. A trait because tests answer from tables.
pub trait Resolve: Send + Sync {
    /// The MX records of `domain`, following CNAMEs at the domain itself.
    fn mx(&self, domain: &Domain) -> impl Future<Output = Answer<Vec<Mx>>> + Send;
    /// The addresses of `host`, IPv6 and IPv4.
    fn addresses(&self, host: &Domain) -> impl Future<Output = Answer<Vec<IpAddr>>> + Send;
}

/// Asks name servers, and remembers their answers. Cheap to clone.
#[derive(Clone)]
pub struct Resolver {
    resolver: TokioResolver,
    /// Each question under way holds a socket.
    questions: Arc<Semaphore>,
}

impl Resolver {
    /// Asks `servers`, or, if there are none, those of the system's configuration.
    ///
    /// # Errors
    /// What is wrong with the system's configuration.
    pub fn new(servers: &[SocketAddr]) -> Result<Self, String> {
        let mut servers = servers.iter().map(name_server).collect::<Vec<_>>();
        if servers.is_empty() {
            // Of the system's configuration only the servers: `search` and `ndots` would deliver mail to a domain
            // that nobody named (RFC 5321 section 5.1).
            let (system, _) = hickory_resolver::system_conf::read_system_conf()
                .map_err(|error| format!("the system's DNS configuration: {error}"))?;
            servers = system.name_servers;
        }
        if servers.is_empty() {
            return Err("the system's DNS configuration names no server".to_owned());
        }
        let config = ResolverConfig::from_parts(None, Vec::new(), servers);
        let mut builder = TokioResolver::builder_with_config(config, TokioRuntimeProvider::default());
        let options = builder.options_mut();
        options.timeout = TIMEOUT;
        options.attempts = RETRIES;
        options.ndots = 0;
        // Names in mail are those of the DNS, not of this machine.
        options.use_hosts_file = ResolveHosts::Never;
        options.cache_size = CACHE_ANSWERS;
        options.positive_min_ttl = Some(Duration::from_secs(1));
        options.positive_max_ttl = Some(Duration::from_secs(24 * 60 * 60));
        options.negative_min_ttl = Some(Duration::from_secs(1));
        options.negative_max_ttl = Some(Duration::from_secs(5 * 60));
        options.max_active_requests = MAX_QUESTIONS;
        // The aliases, so that `records` can tell whose record it is.
        options.preserve_intermediates = true;
        let resolver = builder.build().map_err(|error| error.to_string())?;
        Ok(Self { resolver, questions: Arc::new(Semaphore::new(MAX_QUESTIONS)) })
    }

    /// One question. Equal questions at one time are asked once (hickory's pool sees to it).
    async fn ask(&self, name: &Name, kind: RecordType) -> Result<Lookup, Trouble> {
        let asking = async {
            let _permit = self.questions.acquire().await;
            self.resolver.lookup(name.clone(), kind).await
        };
        match timeout(PATIENCE, asking).await {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(error)) => Err(Trouble::of(&error)),
            Err(_) => Err(Trouble::Unknown("no name server answered in time".to_owned())),
        }
    }

    /// The trouble as an answer.
    async fn settle<T>(&self, name: &Name, trouble: Trouble) -> Answer<T> {
        match trouble {
            Trouble::Absent(absence) => Answer::Absent(absence),
            Trouble::Unknown(why) => Answer::Unknown(why),
            // Aliases that lead in a circle, or too far, look the same. Only a name that is no alias has no record.
            Trouble::AbsentWithoutProof => match self.ask(name, RecordType::CNAME).await {
                Err(Trouble::Absent(_) | Trouble::AbsentWithoutProof) => Answer::Absent(Absence::NoRecord),
                Err(Trouble::Unknown(why)) => Answer::Unknown(why),
                Ok(_) => Answer::Unknown("it is an alias that leads nowhere or in a circle".to_owned()),
            },
        }
    }

    async fn addresses_of(&self, name: &Name, kind: RecordType) -> Answer<Vec<IpAddr>> {
        match self.ask(name, kind).await {
            Ok(answer) => match records::addresses(name, &answer) {
                Ok(addresses) if addresses.is_empty() => {
                    Answer::Unknown("the answer holds no record of the name that was asked for".to_owned())
                }
                Ok(addresses) => Answer::Found(addresses),
                Err(why) => Answer::Unknown(why),
            },
            Err(trouble) => self.settle(name, trouble).await,
        }
    }
}

impl Resolve for Resolver {
    async fn mx(&self, domain: &Domain) -> Answer<Vec<Mx>> {
        if domain.literal().is_some() {
            return Answer::Absent(Absence::NoRecord);
        }
        let name = match absolute(domain) {
            Ok(name) => name,
            Err(why) => return Answer::Unknown(why),
        };
        match self.ask(&name, RecordType::MX).await {
            Ok(answer) => records::mx(&name, &answer),
            Err(trouble) => self.settle(&name, trouble).await,
        }
    }

    async fn addresses(&self, host: &Domain) -> Answer<Vec<IpAddr>> {
        if let Some(address) = host.literal() {
            return Answer::Found(vec![address]);
        }
        let name = match absolute(host) {
            Ok(name) => name,
            Err(why) => return Answer::Unknown(why),
        };
        let (v6, v4) =
            tokio::join!(self.addresses_of(&name, RecordType::AAAA), self.addresses_of(&name, RecordType::A));
        records::both(v6, v4)
    }
}

/// UDP, and TCP for what does not fit.
fn name_server(server: &SocketAddr) -> NameServerConfig {
    let mut config = NameServerConfig::udp_and_tcp(server.ip());
    for connection in &mut config.connections {
        connection.port = server.port();
    }
    config
}

/// The domain as a name of the DNS, with the final dot that keeps everybody from adding to it.
fn absolute(domain: &Domain) -> Result<Name, String> {
    let mut name = Name::from_ascii(domain.as_str()).map_err(|error| format!("it is no name of the DNS: {error}"))?;
    name.set_fqdn(true);
    Ok(name)
}
