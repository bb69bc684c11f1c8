//! Sends one message to the relay, as somebody on the Internet would: the demo's and the scenarios' sender.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use bytes::BytesMut;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::smtp::Reply;
use crate::smtp::reply::ReplyParser;

/// The longest any one answer may take.
const PATIENCE: Duration = Duration::from_secs(30);

/// What the relay answered.
#[derive(Debug)]
pub struct Sent {
    /// To each RCPT, in order.
    pub recipients: Vec<Reply>,
    /// To the end of data; `None` if no recipient was accepted.
    pub message: Option<Reply>,
}

/// Sends `content` (lines ending in CRLF, dots not stuffed) from `sender` (empty: `<>`) to `recipients`. `parameters`
/// follow each RCPT, such as ` NOTIFY=SUCCESS`.
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
    let mut line =
        Line { stream: TcpStream::connect(relay).await?, parser: ReplyParser::default(), unread: BytesMut::new() };
    line.expect(2).await?;
    line.say("EHLO client.fabrikam.com").await?;
    line.expect(2).await?;
    line.say(&format!("MAIL FROM:<{sender}>")).await?;
    line.expect(2).await?;
    let mut sent = Sent { recipients: Vec::new(), message: None };
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

struct Line {
    stream: TcpStream,
    parser: ReplyParser,
    unread: BytesMut,
}

impl Line {
    async fn say(&mut self, text: &str) -> io::Result<()> {
        self.stream.write_all(format!("{text}\r\n").as_bytes()).await
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
