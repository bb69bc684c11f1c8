//! A small authoritative server for a zone written in the program: the demo and the tests have their DNS here.
//!
//! It knows what is in its [`Zone`] and nothing else: any other name does not exist. It follows aliases like a
//! resolver, over UDP as far as an answer fits, else over TCP.
//!
//! Not here: EDNS, DNSSEC, zone files, other zones. It is no server for anybody else.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use super::Tlsa;
use hickory_resolver::proto::op::{Message, MessageType, OpCode, ResponseCode};
use hickory_resolver::proto::rr::rdata::{A, AAAA, CNAME, MX, SOA, TLSA, TXT};
use hickory_resolver::proto::rr::{Name, RData, Record, RecordType};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::timeout;

/// What fits into an answer by UDP: RFC 1035 section 2.3.4.
const UDP_OCTETS: usize = 512;
/// How often port 0 is tried: the port that UDP gets may be taken for TCP.
const BIND_ATTEMPTS: usize = 16;
/// Aliases that are followed in one answer.
const MAX_ALIASES: usize = 64;
/// A client that has asked by TCP and says nothing more.
const TCP_IDLE: Duration = Duration::from_secs(10);

/// The records that the server knows. Names that are not in it do not exist.
#[derive(Debug, Clone)]
pub struct Zone {
    names: HashMap<Name, Entry>,
    ttl: u32,
    soa: bool,
}

#[derive(Debug, Clone, Default)]
struct Entry {
    records: Vec<RData>,
    failure: Option<Failure>,
}

/// How a server may fail to answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Failure {
    /// SERVFAIL.
    ServFail,
    /// REFUSED.
    Refused,
    /// FORMERR.
    FormErr,
    /// NOTIMP.
    NotImp,
    /// Nothing is sent back.
    Silence,
    /// The answer to another question.
    WrongQuestion,
    /// The right answer with another number on it.
    WrongId,
}

impl Default for Zone {
    fn default() -> Self {
        Self { names: HashMap::new(), ttl: 60, soa: true }
    }
}

impl Zone {
    /// No records.
    pub fn new() -> Self {
        Self::default()
    }

    /// `domain MX preference host`; the host `.` makes a null MX.
    #[must_use]
    pub fn mx(self, domain: &str, preference: u16, host: &str) -> Self {
        self.record(domain, RData::MX(MX::new(preference, name(host))))
    }

    /// `host A address` or `host AAAA address`.
    #[must_use]
    pub fn address(self, host: &str, address: IpAddr) -> Self {
        let data = match address {
            IpAddr::V4(address) => RData::A(A(address)),
            IpAddr::V6(address) => RData::AAAA(AAAA(address)),
        };
        self.record(host, data)
    }

    /// `alias CNAME target`.
    #[must_use]
    pub fn cname(self, alias: &str, target: &str) -> Self {
        self.record(alias, RData::CNAME(CNAME(name(target))))
    }

    /// `domain TXT text`.
    #[must_use]
    pub fn txt(self, domain: &str, text: &str) -> Self {
        // One string holds 255 octets: RFC 1035 section 3.3.14.
        self.record(domain, RData::TXT(TXT::from_bytes(text.as_bytes().chunks(255).collect())))
    }

    /// `_port._tcp.host TLSA usage selector matching data`.
    #[must_use]
    pub fn tlsa(self, host: &str, port: u16, tlsa: &Tlsa) -> Self {
        let data = TLSA::new(tlsa.usage.into(), tlsa.selector.into(), tlsa.matching.into(), tlsa.data.clone());
        self.record(&format!("_{port}._tcp.{host}"), RData::TLSA(data))
    }

    /// Questions about `domain` are answered like this.
    #[must_use]
    pub fn fails(mut self, domain: &str, failure: Failure) -> Self {
        self.names.entry(name(domain)).or_default().failure = Some(failure);
        self
    }

    /// How many seconds the answers hold. 60 unless set.
    #[must_use]
    pub fn ttl(mut self, seconds: u32) -> Self {
        self.ttl = seconds;
        self
    }

    /// Leaves out the SOA record that proves an absence.
    #[must_use]
    pub fn without_soa(mut self) -> Self {
        self.soa = false;
        self
    }

    fn record(mut self, owner: &str, data: RData) -> Self {
        self.names.entry(name(owner)).or_default().records.push(data);
        self
    }

    /// The answer to one question; `None`: silence.
    fn answer(&self, question: &Message) -> Option<Message> {
        let metadata = &question.metadata;
        let mut answer = Message::response(metadata.id, metadata.op_code);
        answer.metadata.recursion_desired = metadata.recursion_desired;
        answer.metadata.recursion_available = true;
        answer.metadata.authoritative = true;
        let Some(query) = question.queries.first() else {
            answer.metadata.response_code = ResponseCode::FormErr;
            return Some(answer);
        };
        answer.add_query(query.clone());
        let (mut owner, kind) = (query.name().to_lowercase(), query.query_type());
        for _ in 0..MAX_ALIASES {
            let Some(entry) = self.names.get(&owner) else {
                if !self.is_above(&owner) {
                    answer.metadata.response_code = ResponseCode::NXDomain;
                }
                break;
            };
            match entry.failure {
                None => {}
                Some(Failure::Silence) => return None,
                Some(failure) => return Some(fail(answer, failure)),
            }
            let wanted = entry.records.iter().filter(|data| data.record_type() == kind || kind == RecordType::ANY);
            let before = answer.answers.len();
            answer.add_answers(wanted.map(|data| Record::from_rdata(owner.clone(), self.ttl, data.clone())));
            let alias = entry.records.iter().find_map(|data| match data {
                RData::CNAME(target) => Some(target.0.clone()),
                _ => None,
            });
            match alias {
                Some(target) if answer.answers.len() == before => {
                    let alias = RData::CNAME(CNAME(target.clone()));
                    answer.add_answer(Record::from_rdata(owner, self.ttl, alias));
                    owner = target.to_lowercase();
                }
                _ => break,
            }
        }
        let complete = answer.answers.iter().any(|record| record.record_type() == kind);
        if self.soa && !complete {
            let soa = SOA::new(name("ns."), name("hostmaster."), 1, 3600, 600, 86400, self.ttl);
            answer.add_authority(Record::from_rdata(Name::root(), self.ttl, RData::SOA(soa)));
        }
        Some(answer)
    }

    /// A name that has no record, but names below it, exists: RFC 8020.
    fn is_above(&self, owner: &Name) -> bool {
        self.names.keys().any(|name| owner.zone_of(name))
    }
}

fn fail(mut answer: Message, failure: Failure) -> Message {
    answer.metadata.response_code = match failure {
        Failure::ServFail => ResponseCode::ServFail,
        Failure::Refused => ResponseCode::Refused,
        Failure::FormErr => ResponseCode::FormErr,
        Failure::NotImp => ResponseCode::NotImp,
        Failure::Silence => answer.metadata.response_code,
        Failure::WrongId => {
            answer.metadata.id = answer.metadata.id.wrapping_add(1);
            ResponseCode::NXDomain
        }
        Failure::WrongQuestion => {
            for query in &mut answer.queries {
                query.set_name(name("elsewhere.example."));
            }
            ResponseCode::NXDomain
        }
    };
    answer
}

/// Any octets make a label, as in the DNS itself. Zones are written in the program: one that is too long is a
/// mistake in it.
fn name(text: &str) -> Name {
    let labels = text.split('.').filter(|label| !label.is_empty()).map(str::as_bytes);
    let name = Name::from_labels(labels).expect("a zone written in the program has names that are not too long");
    name.to_lowercase()
}

/// A running server; it ends when this is dropped.
#[derive(Debug)]
pub struct Serving {
    task: AbortHandle,
    questions: Arc<AtomicU64>,
}

impl Serving {
    /// How many questions came in.
    pub fn questions(&self) -> u64 {
        self.questions.load(Ordering::Relaxed)
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Answers questions about `zone` at `bind`, over UDP and TCP. Port 0: one that is free.
///
/// # Errors
/// If `bind` cannot be had.
pub async fn serve(zone: Zone, bind: SocketAddr) -> io::Result<(SocketAddr, Serving)> {
    let (udp, tcp) = listen(bind).await?;
    let address = udp.local_addr()?;
    let questions = Arc::new(AtomicU64::new(0));
    let server = Arc::new(Server { zone, questions: questions.clone() });
    let task = tokio::spawn(async move {
        // The connections end with the set, and the set with this task.
        let mut connections = JoinSet::new();
        let mut buffer = vec![0; usize::from(u16::MAX)];
        loop {
            tokio::select! {
                Ok((length, from)) = udp.recv_from(&mut buffer) => {
                    if let Some(answer) = server.answer(&buffer[..length], UDP_OCTETS) {
                        // A client that is gone does not concern us.
                        let _ = udp.send_to(&answer, from).await;
                    }
                }
                Ok((stream, _)) = tcp.accept() => {
                    connections.spawn(server.clone().converse(stream));
                }
                Some(_) = connections.join_next() => {}
                // All three failed at once, which nothing but a lack of sockets explains: others run meanwhile.
                else => tokio::task::yield_now().await,
            }
        }
    });
    Ok((address, Serving { task: task.abort_handle(), questions }))
}

/// The same port for both.
async fn listen(bind: SocketAddr) -> io::Result<(UdpSocket, TcpListener)> {
    let mut attempt = 1;
    loop {
        let udp = UdpSocket::bind(bind).await?;
        match TcpListener::bind(udp.local_addr()?).await {
            Ok(tcp) => return Ok((udp, tcp)),
            Err(_) if bind.port() == 0 && attempt < BIND_ATTEMPTS => attempt += 1,
            Err(error) => return Err(error),
        }
    }
}

struct Server {
    zone: Zone,
    questions: Arc<AtomicU64>,
}

impl Server {
    /// The answer on the wire, cut to so many octets; `None`: silence, also for what is no question.
    fn answer(&self, question: &[u8], octets: usize) -> Option<Vec<u8>> {
        let question = Message::from_vec(question).ok()?;
        if question.metadata.message_type != MessageType::Query || question.metadata.op_code != OpCode::Query {
            return None;
        }
        self.questions.fetch_add(1, Ordering::Relaxed);
        let answer = self.zone.answer(&question)?;
        let bytes = answer.to_vec().ok()?;
        if bytes.len() <= octets { Some(bytes) } else { answer.truncate().to_vec().ok() }
    }

    /// Questions and answers over one connection, each with its length in front: RFC 1035 section 4.2.2.
    async fn converse(self: Arc<Self>, mut stream: TcpStream) {
        let mut question = Vec::new();
        while let Ok(Ok(length)) = timeout(TCP_IDLE, stream.read_u16()).await {
            question.resize(usize::from(length), 0);
            let Ok(Ok(_)) = timeout(TCP_IDLE, stream.read_exact(&mut question)).await else { return };
            let Some(answer) = self.answer(&question, usize::from(u16::MAX)) else { continue };
            let Ok(length) = u16::try_from(answer.len()) else { return };
            let framed = [length.to_be_bytes().as_slice(), answer.as_slice()].concat();
            if stream.write_all(&framed).await.is_err() {
                return;
            }
        }
    }
}
