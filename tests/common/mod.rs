//! What the tests of the whole product share: a scratch folder, a CA, the daemon as a child process, a server to send to,
//! a client to send from.
//!
//! Everything is on loopback, on ports that the system chose, and ends when it is dropped: also when a test fails.
//! Nothing sleeps to wait for something: [`wait_until`] looks again and again, with a deadline.

#![allow(dead_code, unused_imports)] // every test file uses its own part of this
#![allow(clippy::unwrap_used)] // what goes wrong here fails the test that asked for it

pub mod config;
pub mod daemon;
pub mod deep;
pub mod history;
pub mod sink;

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::{Duration, Instant};

use causeway::tls::authority::Authority;

pub use config::{IN, out, relay};
pub use daemon::Daemon;
pub use sink::{Arrival, At, Crowd, Limit, Reaction, Sink, SinkPlan};

/// Longer than anything here takes on a busy machine; a test that needs it has failed.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Waits until `condition` holds, and panics with `what` if it does not in time.
pub fn wait_until(what: &str, deadline: Duration, mut condition: impl FnMut() -> bool) {
    let end = Instant::now() + deadline;
    while !condition() {
        assert!(Instant::now() < end, "waited {deadline:?} in vain: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// A loopback address and port that nobody else is given: where a program listens that cannot be handed a bound socket, or
/// where nobody listens. A port that was free on 127.0.0.1 a moment ago may be anybody's by now; every process has a loopback
/// address of its own, made of its number, and counts its ports.
pub fn reserved_address() -> SocketAddr {
    static NEXT: AtomicU16 = AtomicU16::new(20_000);
    let [_, high, middle, low] = std::process::id().to_be_bytes();
    let port = NEXT.fetch_add(1, Ordering::Relaxed);
    // A process number has 22 bits at most: 127.64.0.0 to 127.127.255.255. /proc/sys/kernel/pid_max, proc(5).
    SocketAddr::from(([127, 64 | high, middle, low], port))
}

/// A folder that is gone afterwards.
pub struct Scratch(tempfile::TempDir);

impl Scratch {
    pub fn new() -> Self {
        causeway::tls::install_provider();
        Self(tempfile::Builder::new().prefix("causeway-test-").tempdir().unwrap())
    }

    pub fn path(&self) -> &Path {
        self.0.path()
    }

    pub fn file(&self, name: &str) -> PathBuf {
        self.path().join(name)
    }

    pub fn write(&self, name: &str, content: impl AsRef<[u8]>) -> PathBuf {
        let path = self.file(name);
        std::fs::write(&path, content).unwrap();
        if name.ends_with(".key") {
            // The relay refuses keys that everybody can read.
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
        }
        path
    }

    /// A new CA, with its certificate in `ca.pem`.
    pub fn authority(&self) -> Authority {
        let authority = Authority::new("Causeway test CA");
        self.write("ca.pem", authority.pem());
        authority
    }

    /// A certificate for `names` in `FILE.crt` and `FILE.key`.
    pub fn issue(&self, authority: &Authority, file: &str, names: &[&str]) {
        let (certificate, key) = authority.issue(names);
        self.write(&format!("{file}.crt"), certificate);
        self.write(&format!("{file}.key"), key);
    }
}

/// Runs a program to its end, within `limit`, and gives what it said. Panics if it does not end or is not installed.
pub fn run(command: &mut Command, limit: Duration) -> Output {
    let program = command.get_program().to_owned();
    let mut child =
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap_or_else(|error| {
            panic!("{}: {error}; scripts/test installs what the tests need", program.display())
        });
    let (mut out, mut err) = (child.stdout.take().unwrap(), child.stderr.take().unwrap());
    let out = std::thread::spawn(move || {
        let mut bytes = Vec::new();
        out.read_to_end(&mut bytes).map(|_| bytes)
    });
    let err = std::thread::spawn(move || {
        let mut bytes = Vec::new();
        err.read_to_end(&mut bytes).map(|_| bytes)
    });
    let end = Instant::now() + limit;
    let status = loop {
        if let Some(status) = child.try_wait().unwrap() {
            break status;
        }
        if Instant::now() > end {
            let _ = child.kill();
            let _ = child.wait();
            panic!("{} did not end within {limit:?}", program.display());
        }
        std::thread::sleep(Duration::from_millis(5));
    };
    Output { status, stdout: out.join().unwrap().unwrap(), stderr: err.join().unwrap().unwrap() }
}

/// The binary under test.
pub fn causeway() -> Command {
    Command::new(env!("CARGO_BIN_EXE_causeway"))
}

/// What a program said, both ways, as text.
pub fn said(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// An SMTP client that says what it is told, one line at a time.
pub struct Client {
    stream: BufReader<TcpStream>,
}

impl Client {
    /// Connects and reads the greeting, which must be a 220.
    pub fn connect(address: SocketAddr) -> Self {
        let (client, greeting) = Self::greeted(address).unwrap();
        assert!(greeting.starts_with("220 "), "{greeting}");
        client
    }

    /// Connects and reads the greeting, whatever it is.
    pub fn greeted(address: SocketAddr) -> std::io::Result<(Self, String)> {
        let stream = TcpStream::connect_timeout(&address, PATIENCE)?;
        // A port of which nobody listens any more may be the very one that the system chose for us: then we would be
        // talking to ourselves, and wait for a greeting that never comes.
        if stream.local_addr()? == stream.peer_addr()? {
            return Err(std::io::ErrorKind::ConnectionRefused.into());
        }
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        stream.set_nodelay(true)?;
        let mut client = Self { stream: BufReader::new(stream) };
        let greeting = client.reply()?;
        Ok((client, greeting))
    }

    /// The same, and EHLO.
    pub fn hello(address: SocketAddr) -> Self {
        let mut client = Self::connect(address);
        let reply = client.say("EHLO client.example");
        assert!(reply.starts_with("250"), "{reply}");
        client
    }

    pub fn send(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        self.stream.get_mut().write_all(bytes)
    }

    /// All lines of one reply, joined by LF. At the end of the stream: an error.
    pub fn reply(&mut self) -> std::io::Result<String> {
        let mut reply = String::new();
        loop {
            let mut line = String::new();
            if self.stream.read_line(&mut line)? == 0 {
                return Err(std::io::ErrorKind::UnexpectedEof.into());
            }
            reply.push_str(line.trim_end());
            if line.as_bytes().get(3) != Some(&b'-') {
                return Ok(reply);
            }
            reply.push('\n');
        }
    }

    /// Says a line and gives the reply.
    pub fn say(&mut self, line: &str) -> String {
        self.try_say(line).unwrap_or_else(|error| panic!("after {line:?}: {error}"))
    }

    pub fn try_say(&mut self, line: &str) -> std::io::Result<String> {
        self.send(format!("{line}\r\n").as_bytes())?;
        self.reply()
    }

    /// A whole transaction; gives the last reply, which is the first that refuses.
    pub fn deliver(&mut self, from: &str, to: &[&str], content: &[u8]) -> std::io::Result<String> {
        let reply = self.try_say(&format!("MAIL FROM:<{from}>"))?;
        if !reply.starts_with('2') {
            return Ok(reply);
        }
        for to in to {
            let reply = self.try_say(&format!("RCPT TO:<{to}>"))?;
            if !reply.starts_with('2') {
                return Ok(reply);
            }
        }
        let reply = self.try_say("DATA")?;
        if !reply.starts_with('3') {
            return Ok(reply);
        }
        self.send(&stuffed(content))?;
        self.reply()
    }

    /// Is the connection closed by the other side? Waits for it.
    pub fn is_closed(&mut self) -> bool {
        let mut rest = Vec::new();
        match self.stream.read_to_end(&mut rest) {
            Ok(_) => rest.is_empty(),
            Err(error) => error.kind() == std::io::ErrorKind::ConnectionReset,
        }
    }
}

/// Content (ending in CRLF) as DATA carries it, with the final dot.
pub fn stuffed(content: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(content.len() + content.len() / 64 + 8);
    let mut start = true;
    for &byte in content {
        if start && byte == b'.' {
            out.push(b'.');
        }
        out.push(byte);
        start = byte == b'\n';
    }
    assert!(start, "content ends in CRLF");
    out.extend_from_slice(b".\r\n");
    out
}

/// A message with dots, 8-bit octets, long lines and trailing blanks: what is easily spoilt on the way.
pub fn awkward_message(subject: &str) -> Vec<u8> {
    let mut content = format!(
        "From: Erin <erin@fabrikam.com>\r\nTo: undisclosed\r\nSubject: {subject}\r\n\
         X-Folded: one\r\n\ttwo\r\nMessage-ID: <{subject}@fabrikam.com>\r\n\r\n\
         .\r\n..\r\n.leading dot\r\n \r\ntrailing blanks   \r\n\r\nFrom here on\r\n"
    )
    .into_bytes();
    content.extend_from_slice(b"Gr\xc3\xbc\xc3\x9fe, \xff\xfe latin-1 \xe4\r\n");
    content.extend_from_slice("x".repeat(998).as_bytes());
    content.extend_from_slice(b"\r\n\r\n.\r\n");
    content
}

/// The content behind the fields that hops put in front of it: what the client sent begins with `first`.
pub fn behind_trace<'a>(content: &'a [u8], first: &str) -> &'a [u8] {
    let at = content
        .windows(first.len())
        .position(|window| window == first.as_bytes())
        .unwrap_or_else(|| panic!("no {first:?} in {}", String::from_utf8_lossy(content)));
    &content[at..]
}

/// Panics, readably, if two contents are not the same byte for byte.
pub fn same(arrived: &[u8], sent: &[u8]) {
    let at = arrived.iter().zip(sent).position(|(one, other)| one != other).unwrap_or(arrived.len().min(sent.len()));
    let around = |content: &[u8]| {
        let from = at.saturating_sub(60).min(content.len());
        String::from_utf8_lossy(&content[from..content.len().min(at + 60)]).into_owned()
    };
    assert!(
        arrived == sent,
        "{} octets arrived and {} were sent; they differ at {at}:\n{:?}\n{:?}",
        arrived.len(),
        sent.len(),
        around(arrived),
        around(sent)
    );
}
