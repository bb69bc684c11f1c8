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

/// One TLSA record: RFC 6698 section 2.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tlsa {
    /// 0 to 3; for mail 2 and 3 only (RFC 7672 section 3.1).
    pub usage: u8,
    /// 0: the certificate, 1: its key.
    pub selector: u8,
    /// 0: as it is, 1: SHA-256, 2: SHA-512.
    pub matching: u8,
    /// What is matched.
    pub data: Vec<u8>,
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
    /// Who is asked.
    servers: Arc<[SocketAddr]>,
    /// They are those of the system's configuration.
    is_system: bool,
    /// Each question under way holds a socket.
    questions: Arc<Semaphore>,
}

impl Resolver {
    /// Asks `servers`, or, if there are none, those of the system's configuration.
    ///
    /// # Errors
    /// What is wrong with the system's configuration.
    pub fn new(servers: &[SocketAddr]) -> Result<Self, String> {
        Self::with_timeout(servers, TIMEOUT)
    }

    /// One that asks `servers` by a new configuration: this one, with all that it remembers, if it asks the same.
    ///
    /// # Errors
    /// As of [`Resolver::new`]; not where the system's configuration was in use and cannot be read now.
    pub fn succeeded_by(&self, servers: &[SocketAddr]) -> Result<Self, String> {
        match name_servers(servers) {
            Ok(now) if *asked(&now) == *self.servers => Ok(Self { is_system: servers.is_empty(), ..self.clone() }),
            Err(why) if self.is_system => {
                tracing::warn!("{why}; the name servers in use stay");
                Ok(self.clone())
            }
            Ok(_) => Self::new(servers),
            Err(why) => Err(why),
        }
    }

    fn with_timeout(addresses: &[SocketAddr], timeout: Duration) -> Result<Self, String> {
        let servers = name_servers(addresses)?;
        let config = ResolverConfig::from_parts(None, Vec::new(), servers.clone());
        let mut builder = TokioResolver::builder_with_config(config, TokioRuntimeProvider::default());
        let options = builder.options_mut();
        options.timeout = timeout;
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
        let (servers, is_system) = (asked(&servers).into(), addresses.is_empty());
        Ok(Self { resolver, servers, is_system, questions: Arc::new(Semaphore::new(MAX_QUESTIONS)) })
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

    /// The texts at `name`, each with its strings joined: RFC 7208 section 3.3.
    pub async fn txt(&self, name: &Domain) -> Answer<Vec<String>> {
        self.records(name.as_str(), RecordType::TXT, records::texts).await
    }

    /// The texts at `label` below `domain`, such as `_mta-sts`.
    pub async fn txt_below(&self, label: &str, domain: &Domain) -> Answer<Vec<String>> {
        self.records(&format!("{label}.{domain}"), RecordType::TXT, records::texts).await
    }

    /// The TLSA records of the server at this port of `host`: RFC 6698 section 3. Not validated.
    pub async fn tlsa(&self, host: &Domain, port: u16) -> Answer<Vec<Tlsa>> {
        self.records(&format!("_{port}._tcp.{host}"), RecordType::TLSA, records::tlsa).await
    }

    async fn records<T>(
        &self,
        name: &str,
        kind: RecordType,
        read: fn(&Name, &Lookup) -> Result<Vec<T>, String>,
    ) -> Answer<Vec<T>> {
        let name = match absolute(name) {
            Ok(name) => name,
            Err(why) => return Answer::Unknown(why),
        };
        match self.ask(&name, kind).await {
            Ok(answer) => match read(&name, &answer) {
                Ok(records) if records.is_empty() => {
                    Answer::Unknown("the answer holds no record of the name that was asked for".to_owned())
                }
                Ok(records) => Answer::Found(records),
                Err(why) => Answer::Unknown(why),
            },
            Err(trouble) => self.settle(&name, trouble).await,
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

impl std::fmt::Debug for Resolver {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Resolver")
    }
}

impl Resolve for Resolver {
    async fn mx(&self, domain: &Domain) -> Answer<Vec<Mx>> {
        if domain.literal().is_some() {
            return Answer::Absent(Absence::NoRecord);
        }
        let name = match absolute(domain.as_str()) {
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
        let name = match absolute(host.as_str()) {
            Ok(name) => name,
            Err(why) => return Answer::Unknown(why),
        };
        let (v6, v4) =
            tokio::join!(self.addresses_of(&name, RecordType::AAAA), self.addresses_of(&name, RecordType::A));
        records::both(v6, v4)
    }
}

/// `servers`, or, if there are none, those of the system's configuration.
fn name_servers(servers: &[SocketAddr]) -> Result<Vec<NameServerConfig>, String> {
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
    Ok(servers)
}

/// Where these are asked.
fn asked(servers: &[NameServerConfig]) -> Vec<SocketAddr> {
    let addresses = |server: &NameServerConfig| {
        let ip = server.ip;
        server.connections.iter().map(move |connection| SocketAddr::new(ip, connection.port)).collect::<Vec<_>>()
    };
    servers.iter().flat_map(addresses).collect()
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
fn absolute(domain: &str) -> Result<Name, String> {
    let mut name = Name::from_ascii(domain).map_err(|error| format!("it is no name of the DNS: {error}"))?;
    name.set_fqdn(true);
    Ok(name)
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::zone::{Failure, Serving, serve};
    use super::*;

    /// Longer than any look-up may take, and a limit to every test.
    const LIMIT: Duration = Duration::from_secs(45);

    fn domain(text: &str) -> Domain {
        Domain::parse(text).unwrap()
    }

    fn loopback() -> SocketAddr {
        "127.0.0.1:0".parse().unwrap()
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    async fn world(zone: Zone) -> (Resolver, Serving) {
        let (address, serving) = serve(zone, loopback()).await.unwrap();
        (Resolver::new(&[address]).unwrap(), serving)
    }

    /// `10 a.example, 20 b.example`, `null`, `no name`, `no record`, `unknown`.
    fn mx_words(answer: &Answer<Vec<Mx>>) -> String {
        match answer {
            Answer::Found(records) => {
                let words = records.iter().map(|mx| match &mx.host {
                    Some(host) => format!("{} {host}", mx.preference),
                    None => "null".to_owned(),
                });
                words.collect::<Vec<_>>().join(", ")
            }
            Answer::Absent(absence) => absence_words(*absence),
            Answer::Unknown(_) => "unknown".to_owned(),
        }
    }

    fn address_words(answer: &Answer<Vec<IpAddr>>) -> String {
        match answer {
            Answer::Found(found) => found.iter().map(IpAddr::to_string).collect::<Vec<_>>().join(", "),
            Answer::Absent(absence) => absence_words(*absence),
            Answer::Unknown(_) => "unknown".to_owned(),
        }
    }

    fn absence_words(absence: Absence) -> String {
        match absence {
            Absence::NoName => "no name".to_owned(),
            Absence::NoRecord => "no record".to_owned(),
        }
    }

    #[tokio::test]
    async fn mx_answers_are_three_way() {
        let mut zone = Zone::new()
            .mx("two.example", 20, "b.example")
            .mx("two.example", 10, "a.example")
            .address("only-a.example", ip("192.0.2.1"))
            .mx("null.example", 0, ".")
            .mx("nearly-null.example", 0, ".")
            .mx("nearly-null.example", 10, "a.example")
            .mx("localhost.example", 10, "localhost")
            .mx("odd.example", 5, "127.0.0.1")
            .mx("odd.example", 6, "with space.example")
            .mx("odd.example", 7, "nul\0.example")
            .mx("odd.example", 10, "a.example")
            .mx("odd-only.example", 5, "127.0.0.1")
            .fails("servfail.example", Failure::ServFail)
            .fails("refused.example", Failure::Refused)
            .fails("formerr.example", Failure::FormErr)
            .fails("notimp.example", Failure::NotImp)
            .cname("alias.example", "two.example")
            .cname("circle.example", "circle2.example")
            .cname("circle2.example", "circle.example")
            .cname("dangling.example", "nothing.example")
            .cname("broken-alias.example", "servfail.example")
            .cname("alias-of-a.example", "only-a.example")
            .mx("c0.example", 10, "a.example")
            .mx("below.exists.example", 10, "a.example");
        for at in 1..=50 {
            zone = zone.cname(&format!("c{at}.example"), &format!("c{}.example", at - 1));
        }
        let (resolver, _serving) = world(zone).await;
        for (id, name, expected) in [
            ("C240", "two.example", "10 a.example, 20 b.example"),
            ("C240", "TWO.example", "10 a.example, 20 b.example"),
            ("C242", "only-a.example", "no record"),
            ("C244", "null.example", "null"),
            ("C244", "nearly-null.example", "10 a.example"),
            ("C245", "localhost.example", "null"),
            ("C245", "odd.example", "10 a.example"),
            ("C245", "odd-only.example", "unknown"),
            ("C246", "nothing.example", "no name"),
            ("C247", "servfail.example", "unknown"),
            ("C247", "refused.example", "unknown"),
            ("C247", "formerr.example", "unknown"),
            ("C247", "notimp.example", "unknown"),
            ("C248", "alias.example", "10 a.example, 20 b.example"),
            ("C248", "c8.example", "10 a.example"),
            ("C248", "circle.example", "unknown"),
            ("C248", "c50.example", "unknown"),
            ("C248", "dangling.example", "no name"),
            ("C248", "broken-alias.example", "unknown"),
            ("C248", "alias-of-a.example", "no record"),
            ("an empty name between others", "exists.example", "no record"),
            ("an address literal", "[192.0.2.1]", "no record"),
        ] {
            let answer = timeout(LIMIT, resolver.mx(&domain(name))).await.expect(name);
            assert_eq!(mx_words(&answer), expected, "{id}: {name}: {answer:?}");
        }
    }

    #[tokio::test]
    async fn addresses_are_three_way() {
        let zone = Zone::new()
            .address("both.example", ip("192.0.2.1"))
            .address("both.example", ip("2001:db8::1"))
            .address("v4.example", ip("192.0.2.4"))
            .mx("mail-only.example", 10, "both.example")
            .cname("alias.example", "both.example")
            .fails("servfail.example", Failure::ServFail);
        let (resolver, _serving) = world(zone).await;
        for (id, name, expected) in [
            ("C251", "both.example", "2001:db8::1, 192.0.2.1"),
            ("", "v4.example", "192.0.2.4"),
            ("C243", "mail-only.example", "no record"),
            ("C243", "nothing.example", "no name"),
            ("C243", "servfail.example", "unknown"),
            ("C249", "alias.example", "2001:db8::1, 192.0.2.1"),
            ("", "[192.0.2.9]", "192.0.2.9"),
            ("", "[IPv6:2001:db8::9]", "2001:db8::9"),
        ] {
            let answer = timeout(LIMIT, resolver.addresses(&domain(name))).await.expect(name);
            assert_eq!(address_words(&answer), expected, "{id}: {name}: {answer:?}");
        }
    }

    #[tokio::test]
    async fn texts_and_tlsa_answers_are_three_way() {
        let long = "v=spf1 ".to_owned() + &"ip4:192.0.2.1 ".repeat(60) + "-all";
        let tlsa = Tlsa { usage: 3, selector: 1, matching: 1, data: vec![1; 32] };
        let zone = Zone::new()
            .txt("two.example", "one")
            .txt("two.example", "other")
            // More than fits into one string, or into UDP.
            .txt("long.example", &long)
            .txt("_mta-sts.two.example", "v=STSv1; id=1;")
            .cname("alias.example", "long.example")
            .tlsa("mx.example", 25, &tlsa)
            .fails("servfail.example", Failure::ServFail);
        let (resolver, _serving) = world(zone).await;
        let found = |text: &str| Answer::Found(vec![text.to_owned()]);
        for (name, expected) in [
            ("two.example", Answer::Found(vec!["one".to_owned(), "other".to_owned()])),
            ("long.example", found(&long)),
            ("alias.example", found(&long)),
            ("mx.example", Answer::Absent(Absence::NoRecord)),
            ("nothing.example", Answer::Absent(Absence::NoName)),
        ] {
            let answer = timeout(LIMIT, resolver.txt(&domain(name))).await.expect(name);
            assert_eq!(answer, expected, "{name}");
        }
        assert!(matches!(resolver.txt(&domain("servfail.example")).await, Answer::Unknown(_)));
        assert_eq!(resolver.txt_below("_mta-sts", &domain("two.example")).await, found("v=STSv1; id=1;"));
        assert_eq!(resolver.tlsa(&domain("mx.example"), 25).await, Answer::Found(vec![tlsa]));
        assert_eq!(resolver.tlsa(&domain("mx.example"), 465).await, Answer::Absent(Absence::NoName));
        assert!(matches!(resolver.tlsa(&domain("[192.0.2.1]"), 25).await, Answer::Absent(_) | Answer::Unknown(_)));
    }

    #[tokio::test]
    async fn c247_silence_and_answers_to_other_questions_are_unknown() {
        let zone = Zone::new()
            .fails("silence.example", Failure::Silence)
            .fails("wrong-id.example", Failure::WrongId)
            .fails("wrong-question.example", Failure::WrongQuestion);
        let (address, _serving) = serve(zone, loopback()).await.unwrap();
        let patience = Duration::from_millis(300);
        let resolver = Resolver::with_timeout(&[address], patience).unwrap();
        let began = Instant::now();
        let names = ["silence.example", "wrong-id.example", "wrong-question.example"].map(domain);
        let (silence, wrong_id, wrong_question) = tokio::join!(
            timeout(LIMIT, resolver.mx(&names[0])),
            timeout(LIMIT, resolver.addresses(&names[1])),
            timeout(LIMIT, resolver.mx(&names[2])),
        );
        assert!(matches!(silence, Ok(Answer::Unknown(_))), "{silence:?}");
        assert!(matches!(wrong_id, Ok(Answer::Unknown(_))), "{wrong_id:?}");
        assert!(matches!(wrong_question, Ok(Answer::Unknown(_))), "{wrong_question:?}");
        assert!(began.elapsed() >= patience, "waited only {:?}", began.elapsed());
    }

    #[tokio::test]
    async fn nobody_there_is_unknown() {
        // TCPMUX: nobody is given it, and nobody serves it.
        let address = SocketAddr::from(([127, 0, 0, 1], 1));
        let resolver = Resolver::with_timeout(&[address], Duration::from_millis(300)).unwrap();
        let answer = timeout(LIMIT, resolver.mx(&domain("example.com"))).await.unwrap();
        assert!(matches!(answer, Answer::Unknown(_)), "{answer:?}");
    }

    /// A circle of aliases without the SOA that would tell it from an absence.
    #[tokio::test]
    async fn c248_without_soa_a_circle_is_unknown_and_an_absence_is_one() {
        let zone = Zone::new()
            .without_soa()
            .cname("circle.example", "circle2.example")
            .cname("circle2.example", "circle.example")
            .address("only-a.example", ip("192.0.2.1"));
        let (resolver, _serving) = world(zone).await;
        for (name, expected) in
            [("circle.example", "unknown"), ("only-a.example", "no record"), ("nothing.example", "no name")]
        {
            let answer = timeout(LIMIT, resolver.mx(&domain(name))).await.expect(name);
            assert_eq!(mx_words(&answer), expected, "{name}: {answer:?}");
        }
    }

    #[tokio::test]
    async fn c250_large_answers_come_by_tcp_and_are_cut() {
        let mut zone = Zone::new();
        for at in 0..300 {
            zone = zone.mx("many.example", 300 - at, &format!("mx{at}.example"));
            zone = zone.address("many-hosts.example", IpAddr::from([192, 0, (at / 256) as u8, (at % 256) as u8]));
        }
        zone = zone.address("many-hosts.example", ip("2001:db8::1"));
        let (resolver, _serving) = world(zone).await;
        let Answer::Found(hosts) = timeout(LIMIT, resolver.mx(&domain("many.example"))).await.unwrap() else {
            panic!("no answer");
        };
        assert_eq!(hosts.len(), 200);
        assert_eq!(hosts[0], Mx { preference: 1, host: Some(domain("mx299.example")) }, "the best are kept");
        let Answer::Found(found) = timeout(LIMIT, resolver.addresses(&domain("many-hosts.example"))).await.unwrap()
        else {
            panic!("no answer");
        };
        assert_eq!(found.len(), 64);
        assert_eq!(found.iter().filter(|address| address.is_ipv6()).count(), 1, "neither family is crowded out");
    }

    /// C253: the question that arrives is the name and nothing behind it.
    #[tokio::test]
    async fn c253_names_of_one_label_are_absolute() {
        let (resolver, serving) = world(Zone::new().mx("host", 10, "a.example")).await;
        let answer = timeout(LIMIT, resolver.mx(&domain("host"))).await.unwrap();
        assert_eq!(mx_words(&answer), "10 a.example");
        let answer = timeout(LIMIT, resolver.mx(&domain("other"))).await.unwrap();
        assert_eq!(mx_words(&answer), "no name");
        assert_eq!(serving.questions(), 2, "no second name was tried");
    }

    #[tokio::test]
    async fn c254_answers_are_kept_also_with_ttl_0_for_a_second() {
        let zone = Zone::new().ttl(0).mx("example.com", 10, "a.example");
        let (resolver, serving) = world(zone).await;
        for _ in 0..50 {
            let answer = timeout(LIMIT, resolver.mx(&domain("example.com"))).await.unwrap();
            assert_eq!(mx_words(&answer), "10 a.example");
        }
        // A slow machine may need several seconds for them.
        assert!(serving.questions() < 25, "{} questions", serving.questions());
    }

    #[tokio::test]
    async fn negative_answers_are_kept() {
        let (resolver, serving) = world(Zone::new()).await;
        for _ in 0..10 {
            let answer = timeout(LIMIT, resolver.mx(&domain("nothing.example"))).await.unwrap();
            assert_eq!(mx_words(&answer), "no name");
        }
        assert_eq!(serving.questions(), 1);
    }

    /// F-050: one question for all who ask at one time.
    #[tokio::test]
    async fn equal_questions_at_one_time_are_asked_once() {
        let (resolver, serving) = world(Zone::new().mx("example.com", 10, "a.example")).await;
        let mut tasks = tokio::task::JoinSet::new();
        for _ in 0..2000 {
            let resolver = resolver.clone();
            tasks.spawn(async move { resolver.mx(&domain("example.com")).await });
        }
        while let Some(answer) = timeout(LIMIT, tasks.join_next()).await.unwrap() {
            assert_eq!(mx_words(&answer.unwrap()), "10 a.example");
        }
        assert!(serving.questions() <= 2, "{} questions", serving.questions());
    }

    /// More questions than may be under way at one time: they wait, and none is lost.
    #[tokio::test]
    async fn many_questions_are_answered() {
        let mut zone = Zone::new();
        for at in 0..1500 {
            zone = zone.mx(&format!("d{at}.example"), 10, "a.example");
        }
        let (resolver, _serving) = world(zone).await;
        let mut tasks = tokio::task::JoinSet::new();
        for at in 0..1500 {
            let resolver = resolver.clone();
            tasks.spawn(async move { resolver.mx(&domain(&format!("d{at}.example"))).await });
        }
        while let Some(answer) = timeout(LIMIT, tasks.join_next()).await.unwrap() {
            assert_eq!(mx_words(&answer.unwrap()), "10 a.example");
        }
    }

    #[test]
    fn a_resolver_can_be_made_before_the_runtime() {
        assert!(Resolver::new(&["127.0.0.1:5353".parse().unwrap()]).is_ok());
    }

    #[tokio::test]
    async fn the_zone_ends_when_it_is_dropped() {
        let (address, serving) = serve(Zone::new(), loopback()).await.unwrap();
        drop(serving);
        let free = async {
            while tokio::net::UdpSocket::bind(address).await.is_err() {
                tokio::task::yield_now().await;
            }
        };
        timeout(LIMIT, free).await.expect("the port is free again");
    }
}
