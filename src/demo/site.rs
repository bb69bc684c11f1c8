//! A mail server of the demo: takes everything and tells what arrived. It speaks with the relay's own SMTP session.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use jiff::Timestamp;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;

use crate::accept::{Reception, drive};
use crate::message::{Domain, Envelope, MessageId};
use crate::smtp::Reply;
use crate::smtp::server::{Answer, Question, Session, Terms};
use crate::tls::{Acceptor, ClientCertificate, Identity, Names, Proof, Roots, Stream};

/// Messages that nobody has looked at yet; more and the servers wait.
const ARRIVALS_LIMIT: usize = 10_000;
/// No message of the demo is bigger, in bytes.
const MESSAGE_LIMIT: u64 = 64 << 20;
/// A session of the demo's servers is over after this.
const SESSION_TIMEOUT: Duration = Duration::from_secs(60);

/// One message as one server got it.
#[derive(Debug, Clone)]
pub struct Arrival {
    /// `on-premises`, `cloud` or `internet`.
    pub place: &'static str,
    /// What the client called itself.
    pub hello: String,
    /// MAIL FROM and RCPT TO, with their parameters.
    pub envelope: Envelope,
    /// What XOORG said.
    pub xoorg: Option<Domain>,
    /// The message, byte for byte.
    pub content: Bytes,
    /// Protocol version and cipher; `None`: it came in the clear.
    pub tls: Option<String>,
    /// What the client's certificate proved, if it presented one.
    pub client: Option<Proof>,
}

/// What arrives at the world's servers.
pub type Arrivals = mpsc::Receiver<Arrival>;

/// A channel for arrivals.
pub(super) fn arrivals() -> (mpsc::Sender<Arrival>, Arrivals) {
    mpsc::channel(ARRIVALS_LIMIT)
}

/// How a server answers, for tests of bad days. Changed while it runs.
#[derive(Debug, Default)]
pub struct Behaviour {
    /// What RCPT is answered with; `None`: it is accepted.
    pub recipient: Option<Reply>,
    /// What the end of data is answered with; `None`: the message is taken.
    pub message: Option<Reply>,
    /// STARTTLS is not offered.
    pub no_tls: bool,
}

/// A running server.
#[derive(Debug)]
pub struct Site {
    /// Where it listens.
    pub address: SocketAddr,
    host: Arc<Host>,
    _stopping: watch::Sender<bool>,
    task: JoinHandle<()>,
}

#[derive(Debug)]
struct Host {
    place: &'static str,
    name: Domain,
    acceptor: Acceptor,
    roots: Roots,
    behaviour: Mutex<Behaviour>,
    away: AtomicBool,
    /// Messages it took: what it calls the next.
    taken: AtomicU64,
    arrived: mpsc::Sender<Arrival>,
}

impl Site {
    /// Starts a server called `name` on a port that the system chooses.
    ///
    /// # Errors
    /// What the system said.
    pub async fn start(
        place: &'static str,
        name: &str,
        identity: Identity,
        roots: Roots,
        behaviour: Behaviour,
        arrived: mpsc::Sender<Arrival>,
    ) -> io::Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let address = listener.local_addr()?;
        let host = Arc::new(Host {
            place,
            name: Domain::parse(name).map_err(io::Error::other)?,
            acceptor: Acceptor::new(&identity, true),
            roots,
            behaviour: Mutex::new(behaviour),
            away: AtomicBool::new(false),
            taken: AtomicU64::new(0),
            arrived,
        });
        let (stopping, stop) = watch::channel(false);
        let task = tokio::spawn(listen(listener, Arc::clone(&host), stop));
        Ok(Self { address, host, _stopping: stopping, task })
    }

    /// From now on it answers like this.
    pub fn behave(&self, behaviour: Behaviour) {
        *self.host.behaviour.lock().unwrap_or_else(PoisonError::into_inner) = behaviour;
    }

    /// While it is away, connections are closed as soon as they come.
    pub fn go_away(&self, away: bool) {
        self.host.away.store(away, Ordering::Release);
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn listen(listener: TcpListener, host: Arc<Host>, stop: watch::Receiver<bool>) {
    while let Ok((socket, _)) = listener.accept().await {
        if host.away.load(Ordering::Acquire) {
            continue;
        }
        let (host, stop) = (Arc::clone(&host), stop.clone());
        tokio::spawn(async move {
            let _ = serve(socket, host, stop).await;
        });
    }
}

async fn serve(socket: TcpStream, host: Arc<Host>, stop: watch::Receiver<bool>) -> io::Result<()> {
    socket.set_nodelay(true)?;
    let session = Session::new(host.terms(false), false, Instant::now());
    let mut desk = Desk { host, content: BytesMut::new(), tls: None, client: None, xoorg: None };
    drive(Stream::Plain(socket), session, &mut desk, stop).await
}

impl Host {
    fn terms(&self, secure: bool) -> Terms {
        let no_tls = self.behaviour.lock().unwrap_or_else(PoisonError::into_inner).no_tls;
        Terms {
            hostname: self.name.clone(),
            offer_starttls: !secure && !no_tls,
            require_tls: false,
            offer_auth: false,
            require_auth: false,
            max_message_size: Some(MESSAGE_LIMIT),
            max_recipients: 1000,
            max_errors: 100,
            strict: false,
            xoorg: true,
            command_timeout: SESSION_TIMEOUT,
            data_timeout: SESSION_TIMEOUT,
        }
    }
}

/// One session's side of a server.
struct Desk {
    host: Arc<Host>,
    content: BytesMut,
    tls: Option<String>,
    client: Option<ClientCertificate>,
    /// Of the message under way.
    xoorg: Option<Domain>,
}

impl Desk {
    fn client(&self) -> Option<Proof> {
        // Whoever it is: the first name that chains is what was proved.
        let certificate = self.client.as_ref()?;
        let names = Names::new(certificate.names())?;
        certificate.judge(&self.host.roots, &names, Timestamp::now()).ok()
    }

    async fn message(&mut self, envelope: Envelope, hello: String) -> Reply {
        let refused = self.host.behaviour.lock().unwrap_or_else(PoisonError::into_inner).message.clone();
        let content = self.content.split().freeze();
        if let Some(reply) = refused {
            return reply;
        }
        let arrival = Arrival {
            place: self.host.place,
            hello,
            envelope,
            xoorg: self.xoorg.take(),
            content,
            tls: self.tls.clone(),
            client: self.client(),
        };
        match self.host.arrived.send(arrival).await {
            Ok(()) => Reply::accepted(MessageId(self.host.taken.fetch_add(1, Ordering::Relaxed) + 1)),
            Err(_) => Reply::shutting_down(),
        }
    }
}

impl Reception for Desk {
    async fn answer(&mut self, question: Question) -> Answer {
        match question {
            // AUTH is not offered here.
            Question::Login(_) => Answer::Refuse(Reply::login_unavailable()),
            Question::Sender { xoorg, .. } => {
                self.xoorg = xoorg;
                Answer::Go
            }
            Question::Recipient(_) => {
                match self.host.behaviour.lock().unwrap_or_else(PoisonError::into_inner).recipient.clone() {
                    Some(reply) => Answer::Refuse(reply),
                    None => Answer::Go,
                }
            }
            Question::Message { envelope, hello, .. } => Answer::Done(self.message(envelope, hello).await),
        }
    }

    async fn keep(&mut self, piece: Bytes) {
        self.content.extend_from_slice(&piece);
    }

    fn discard(&mut self) {
        self.content.clear();
    }

    async fn start_tls(&mut self, stream: Stream) -> io::Result<(Stream, Terms)> {
        let Stream::Plain(socket) = stream else { return Err(io::Error::other("STARTTLS inside TLS")) };
        let accepted = self.host.acceptor.accept(socket, tokio::time::Instant::now() + SESSION_TIMEOUT).await?;
        self.tls = Some(accepted.protocol);
        self.client = accepted.client;
        Ok((accepted.stream, self.host.terms(true)))
    }
}
