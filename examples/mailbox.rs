//! A mailbox server to try a relay with: takes every message, and prints what came and who brought it. It keeps nothing.
//!
//! ```text
//! cargo run --example mailbox -- 127.0.0.1:2601 certs/test/exchange.contoso.com.crt certs/test/exchange.contoso.com.key
//! ```
//!
//! It offers STARTTLS with the certificate, asks for one, and prints its names without judging them: a relay under test
//! is judged by itself.

use std::error::Error;
use std::path::Path;
use std::time::Duration;

use causeway::tls::{Acceptor, Identity, Stream};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{Instant, timeout};

/// A client that says nothing for so long is gone.
const PATIENCE: Duration = Duration::from_secs(60);
/// No line and no message of a test is longer.
const LIMIT: u64 = 64 << 20;

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [address, certificate, key] = arguments.as_slice() else {
        return Err("usage: mailbox ADDRESS CERTIFICATE KEY".into());
    };
    causeway::tls::install_provider();
    let identity = Identity::load(Path::new(certificate), Path::new(key))?;
    let acceptor = Acceptor::new(&identity, true);
    let listener = TcpListener::bind(address).await?;
    println!("taking mail at {}; Ctrl-C ends it", listener.local_addr()?);
    loop {
        let (socket, _) = listener.accept().await?;
        let acceptor = acceptor.clone();
        tokio::spawn(async move {
            if let Err(error) = session(socket, &acceptor).await {
                println!("a session ended: {error}");
            }
        });
    }
}

/// One message on its way in.
#[derive(Default)]
struct Envelope {
    from: String,
    to: Vec<String>,
}

async fn session(socket: TcpStream, acceptor: &Acceptor) -> Result<(), Box<dyn Error + Send + Sync>> {
    let mut secured = String::from("in the clear");
    let mut stream = BufReader::new(Stream::Plain(socket));
    let mut envelope = Envelope::default();
    stream.write_all(b"220 mailbox.example ESMTP\r\n").await?;
    loop {
        let Some(line) = line(&mut stream).await? else { return Ok(()) };
        let verb = line.split([' ', ':']).next().unwrap_or_default().to_ascii_uppercase();
        let argument = line.split_once(':').map(|(_, argument)| argument.trim().to_owned()).unwrap_or_default();
        let reply = match verb.as_str() {
            "EHLO" if !stream.get_ref().is_tls() => {
                "250-mailbox.example\r\n250-8BITMIME\r\n250-PIPELINING\r\n250 STARTTLS"
            }
            "EHLO" => "250-mailbox.example\r\n250-8BITMIME\r\n250 PIPELINING",
            "HELO" | "NOOP" => "250 mailbox.example",
            "STARTTLS" => {
                stream.write_all(b"220 go ahead\r\n").await?;
                // What came along in the clear is forgotten with the buffer. RFC 3207 section 4.2.
                let Some(socket) = stream.into_inner().into_tcp() else { return Ok(()) };
                let accepted = acceptor.accept(socket, Instant::now() + PATIENCE).await?;
                secured = match &accepted.client {
                    Some(certificate) => format!("in TLS, by {}", certificate.names().join(", ")),
                    None => "in TLS, by whom it did not say".to_owned(),
                };
                stream = BufReader::new(accepted.stream);
                continue;
            }
            "MAIL" => {
                envelope = Envelope { from: argument, to: Vec::new() };
                "250 2.1.0 well"
            }
            "RCPT" => {
                envelope.to.push(argument);
                "250 2.1.5 well"
            }
            "DATA" => {
                stream.write_all(b"354 go ahead\r\n").await?;
                let content = content(&mut stream).await?;
                tell(&envelope, &secured, &content);
                "250 2.0.0 taken"
            }
            "RSET" => {
                envelope = Envelope::default();
                "250 2.0.0 forgotten"
            }
            "QUIT" => {
                stream.write_all(b"221 2.0.0 until next time\r\n").await?;
                return Ok(());
            }
            _ => "502 5.5.1 not here",
        };
        stream.write_all(format!("{reply}\r\n").as_bytes()).await?;
    }
}

/// A line without its end; `None` at the end of the stream.
async fn line(stream: &mut BufReader<Stream>) -> Result<Option<String>, Box<dyn Error + Send + Sync>> {
    let mut line = String::new();
    let length = timeout(PATIENCE, stream.take(LIMIT).read_line(&mut line)).await??;
    Ok((length > 0).then(|| line.trim_end_matches(['\r', '\n']).to_owned()))
}

/// The message, without the dots that SMTP put before its own.
async fn content(stream: &mut BufReader<Stream>) -> Result<String, Box<dyn Error + Send + Sync>> {
    let mut content = String::new();
    loop {
        let mut bytes = Vec::new();
        let length = timeout(PATIENCE, stream.take(LIMIT).read_until(b'\n', &mut bytes)).await??;
        if length == 0 || content.len() as u64 > LIMIT {
            return Err("the message has no end".into());
        }
        let line = String::from_utf8_lossy(&bytes);
        match line.strip_prefix('.') {
            Some("\r\n") => return Ok(content),
            Some(rest) => content.push_str(rest),
            None => content.push_str(&line),
        }
    }
}

fn tell(envelope: &Envelope, secured: &str, content: &str) {
    println!("\nMAIL FROM:{}  {secured}", envelope.from);
    for to in &envelope.to {
        println!("RCPT TO:{to}");
    }
    for line in content.lines() {
        println!("    {line}");
    }
}
