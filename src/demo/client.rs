//! Sends one message to a relay, as somebody on the Internet or one of the organization's servers would: the demo's
//! and the scenarios' sender.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use bytes::BytesMut;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout};

use crate::smtp::Reply;
use crate::smtp::reply::ReplyParser;
use crate::tls::{self, Demand, Identity, Proof, Stream};

/// The longest any one answer may take.
const PATIENCE: Duration = Duration::from_secs(30);

/// What the relay answered.
#[derive(Debug)]
pub struct Sent {
    /// To each RCPT, in order.
    pub recipients: Vec<Reply>,
    /// To the end of data; `None` if no recipient was accepted.
    pub message: Option<Reply>,
    /// What the relay's certificate proved to this client; in the clear for one that does not use TLS.
    pub proof: Proof,
}

/// Who sends.
#[derive(Debug, Clone)]
pub struct Client {
    hello: String,
    tls: Option<Tls>,
}

/// How a client uses TLS: always, or it says nothing.
#[derive(Debug, Clone)]
struct Tls {
    connector: tls::Connector,
    server: String,
    demand: Demand,
}

impl Client {
    /// Calls itself `hello` and speaks in the clear.
    pub fn new(hello: &str) -> Self {
        Self { hello: hello.to_owned(), tls: None }
    }

    /// From now on it uses STARTTLS, shows `identity`, and sends nothing to a `server` that does not meet `demand`.
    #[must_use]
    pub fn with_tls(mut self, identity: Option<&Identity>, server: &str, demand: Demand) -> Self {
        self.tls = Some(Tls { connector: tls::Connector::new(identity), server: server.to_owned(), demand });
        self
    }

    /// Sends `content` (lines ending in CRLF, dots not stuffed) from `sender` (empty: `<>`) to `recipients`.
    /// `parameters` follow each RCPT, such as ` NOTIFY=SUCCESS`.
    ///
    /// # Errors
    /// What the socket said, or an answer that ends the session.
    pub async fn send(
        &self,
        relay: SocketAddr,
        sender: &str,
        recipients: &[&str],
        parameters: &str,
        content: &str,
    ) -> io::Result<Sent> {
        let (mut line, proof) = self.open(relay).await?;
        line.say(&format!("MAIL FROM:<{sender}>")).await?;
        line.expect(2).await?;
        let mut sent = Sent { recipients: Vec::new(), message: None, proof };
        for recipient in recipients {
            line.say(&format!("RCPT TO:<{recipient}>{parameters}")).await?;
            sent.recipients.push(line.reply().await?);
        }
        if sent.recipients.iter().any(Reply::is_positive) {
            line.say("DATA").await?;
            line.expect(3).await?;
            let stuffed = content.replace("\r\n.", "\r\n..");
            line.say(&format!("{stuffed}.")).await?;
            sent.message = Some(line.reply().await?);
        }
        line.say("QUIT").await?;
        let _ = line.reply().await;
        Ok(sent)
    }

    /// Connects, shakes hands if that is its way, and says who it is.
    async fn open(&self, relay: SocketAddr) -> io::Result<(Line, Proof)> {
        let mut line = Line::new(Stream::Plain(TcpStream::connect(relay).await?));
        line.expect(2).await?;
        line.hello(&self.hello).await?;
        let Some(tls) = &self.tls else { return Ok((line, Proof::Plain)) };
        line.say("STARTTLS").await?;
        line.expect(2).await?;
        let socket = line.stream.into_tcp().ok_or_else(|| io::Error::other("STARTTLS inside TLS"))?;
        let shaken = tls.connector.connect(socket, &tls.server, &tls.demand, Instant::now() + PATIENCE).await;
        let (stream, proof) = shaken.map_err(io::Error::other)?;
        let mut line = Line::new(stream);
        line.hello(&self.hello).await?;
        Ok((line, proof))
    }
}

/// Sends as somebody on the Internet who knows nothing of TLS: see [`Client::send`].
///
/// # Errors
/// What the socket said, or an answer that ends the session.
pub async fn send(
    relay: SocketAddr,
    sender: &str,
    recipients: &[&str],
    parameters: &str,
    content: &str,
) -> io::Result<Sent> {
    Client::new("client.fabrikam.com").send(relay, sender, recipients, parameters, content).await
}

struct Line {
    stream: Stream,
    parser: ReplyParser,
    unread: BytesMut,
}

impl Line {
    fn new(stream: Stream) -> Self {
        Self { stream, parser: ReplyParser::default(), unread: BytesMut::new() }
    }

    async fn hello(&mut self, name: &str) -> io::Result<()> {
        self.say(&format!("EHLO {name}")).await?;
        self.expect(2).await.map(drop)
    }

    async fn say(&mut self, text: &str) -> io::Result<()> {
        self.stream.write_all(format!("{text}\r\n").as_bytes()).await?;
        // What is written in TLS may wait in the session.
        self.stream.flush().await
    }

    async fn reply(&mut self) -> io::Result<Reply> {
        loop {
            if let Some(reply) = self.parser.next(&mut self.unread).map_err(io::Error::other)? {
                return Ok(reply);
            }
            if timeout(PATIENCE, self.stream.read_buf(&mut self.unread)).await?? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
    }

    async fn expect(&mut self, class: u16) -> io::Result<Reply> {
        let reply = self.reply().await?;
        if reply.code / 100 == class { Ok(reply) } else { Err(io::Error::other(format!("the relay said {reply}"))) }
    }
}
