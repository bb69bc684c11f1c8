//! A server to send to, written without the relay's own SMTP: takes what comes, remembers it, and fails on demand.
//!
//! It answers one line at a time as RFC 5321 reads, with STARTTLS and AUTH where the plan has them. An arrival is
//! remembered before it is answered, so that whoever heard the 250 finds it.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use causeway::tls::{Acceptor, Identity, Stream};
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Runtime;
use tokio::sync::Notify;

use super::{PATIENCE, wait_until};

/// One message as it came.
#[derive(Debug, Clone)]
pub struct Arrival {
    /// What stood between MAIL FROM:< and >.
    pub from: String,
    /// The whole MAIL line.
    pub mail: String,
    /// What stood between RCPT TO:< and >.
    pub to: Vec<String>,
    /// The whole RCPT lines.
    pub rcpt: Vec<String>,
    /// Dots taken away again.
    pub content: Vec<u8>,
    /// Protocol and cipher.
    pub tls: Option<String>,
    /// The names in the client's certificate.
    pub client: Option<Vec<String>>,
    /// Who logged in.
    pub login: Option<String>,
    pub at: Instant,
}

impl Arrival {
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.content).into_owned()
    }
}

/// Where a session is when the plan is asked.
#[derive(Debug)]
pub enum At<'a> {
    Connected,
    Ehlo,
    Mail(&'a str),
    Rcpt(&'a str),
    Data,
    /// BDAT, which it does not know unless the plan does something.
    Bdat,
    /// The whole message is there.
    End(&'a Arrival),
}

/// What the sink does there.
#[derive(Debug)]
pub enum Reaction {
    /// What a server should.
    Go,
    /// Say this line instead; a message is then not taken.
    Say(String),
    /// Close the connection and say nothing; a message is not taken.
    HangUp,
    /// At [`At::End`]: take the message, but close the connection without saying so.
    TakeAndHangUp,
}

/// What a sink bears at a time, and what it says beyond.
#[derive(Debug, Clone)]
pub enum Limit {
    /// So many connections: one more hears this line instead of a greeting.
    Connections(usize, &'static str),
    /// So many messages: one more hears this line after MAIL.
    Messages(usize, &'static str),
}

type React = Arc<dyn Fn(&At<'_>) -> Reaction + Send + Sync>;

/// What a sink is like.
#[derive(Clone)]
pub struct SinkPlan {
    pub name: String,
    /// Offered after EHLO, beside STARTTLS and AUTH.
    pub keywords: Vec<&'static str>,
    /// STARTTLS is offered with this certificate; a client certificate is asked for.
    pub identity: Option<Identity>,
    /// MAIL before AUTH as this user with this password is refused; AUTH is offered in TLS only.
    pub login: Option<(String, String)>,
    /// AUTH mechanisms.
    pub mechanisms: &'static str,
    pub react: React,
    /// False: what is remembered of an arrival is without its content.
    pub keep_content: bool,
    /// How long every answer takes.
    pub delay: Duration,
    pub limit: Option<Limit>,
    /// Connections are taken and not greeted, until the plan says otherwise.
    pub silent: bool,
}

impl SinkPlan {
    pub fn new() -> Self {
        Self {
            name: "sink.example".into(),
            keywords: vec!["PIPELINING", "SIZE 100000000", "8BITMIME", "SMTPUTF8", "DSN", "ENHANCEDSTATUSCODES"],
            identity: None,
            login: None,
            mechanisms: "PLAIN LOGIN",
            react: Arc::new(|_| Reaction::Go),
            keep_content: true,
            delay: Duration::ZERO,
            limit: None,
            silent: false,
        }
    }

    pub fn reacting(self, react: impl Fn(&At<'_>) -> Reaction + Send + Sync + 'static) -> Self {
        Self { react: Arc::new(react), ..self }
    }
}

/// A running sink; gone when dropped.
pub struct Sink {
    pub address: SocketAddr,
    shared: Arc<Shared>,
    runtime: Option<Runtime>,
}

struct Shared {
    plan: Mutex<SinkPlan>,
    arrivals: Mutex<Vec<Arrival>>,
    crowd: Mutex<Crowd>,
    /// The plan is another now.
    replanned: Notify,
    /// All connections end.
    hang_up: Notify,
}

/// How many are there at a time.
#[derive(Debug, Clone, Default)]
pub struct Crowd {
    /// Connections, but those that were refused.
    pub open: usize,
    pub most_open: usize,
    /// Messages between MAIL and their last answer.
    pub busy: usize,
    /// Connections and messages beyond the limit.
    pub refused: usize,
    /// How many messages had arrived when each connection came that was not refused.
    pub came_after: Vec<usize>,
}

impl Sink {
    /// One that takes everything.
    pub fn start() -> Self {
        Self::with(SinkPlan::new())
    }

    pub fn with(plan: SinkPlan) -> Self {
        causeway::tls::install_provider();
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let listener = runtime.block_on(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))).unwrap();
        let address = listener.local_addr().unwrap();
        let shared = Arc::new(Shared {
            plan: Mutex::new(plan),
            arrivals: Mutex::default(),
            crowd: Mutex::default(),
            replanned: Notify::new(),
            hang_up: Notify::new(),
        });
        let host = Arc::clone(&shared);
        runtime.spawn(async move {
            while let Ok((socket, _)) = listener.accept().await {
                let host = Arc::clone(&host);
                tokio::spawn(async move {
                    let Some(_guest) = Guest::welcome(&host) else {
                        let _ = refuse(socket, &host).await;
                        return;
                    };
                    let served = async {
                        host.until_it_speaks().await;
                        let plan = host.plan.lock().unwrap().clone();
                        let _ = Session::serve(socket, plan, Arc::clone(&host)).await;
                    };
                    tokio::select! {
                        () = served => {}
                        () = host.hang_up.notified() => {}
                    }
                });
            }
        });
        Self { address, shared, runtime: Some(runtime) }
    }

    /// From now on it is like this; TLS and AUTH in new sessions only.
    pub fn replan(&self, plan: SinkPlan) {
        *self.shared.plan.lock().unwrap() = plan;
        self.shared.replanned.notify_waiters();
    }

    /// Ends all connections there are.
    pub fn hang_up(&self) {
        self.shared.hang_up.notify_waiters();
    }

    pub fn crowd(&self) -> Crowd {
        self.shared.crowd.lock().unwrap().clone()
    }

    pub fn arrivals(&self) -> Vec<Arrival> {
        self.shared.arrivals.lock().unwrap().clone()
    }

    /// Waits until nobody is connected: what a client sent before it died has arrived by then.
    pub fn come_to_rest(&self) {
        wait_until("all sessions end", PATIENCE, || self.shared.crowd.lock().unwrap().open == 0);
    }

    pub fn count(&self) -> usize {
        self.shared.arrivals.lock().unwrap().len()
    }

    /// Looks at the arrivals where they are.
    pub fn look<T>(&self, at: impl FnOnce(&[Arrival]) -> T) -> T {
        at(&self.shared.arrivals.lock().unwrap())
    }

    /// Waits until so many have come, and gives them.
    pub fn wait_for(&self, count: usize) -> Vec<Arrival> {
        wait_until(&format!("{count} messages arrive"), PATIENCE, || self.count() >= count);
        self.arrivals()
    }
}

impl Drop for Sink {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_timeout(Duration::from_secs(1));
        }
    }
}

impl Shared {
    async fn until_it_speaks(&self) {
        loop {
            let replanned = self.replanned.notified();
            if !self.plan.lock().unwrap().silent {
                return;
            }
            replanned.await;
        }
    }

    fn limit(&self) -> Option<Limit> {
        self.plan.lock().unwrap().limit.clone()
    }
}

/// A connection that is counted.
struct Guest(Arc<Shared>);

impl Guest {
    fn welcome(host: &Arc<Shared>) -> Option<Self> {
        let limit = host.limit();
        let arrived = host.arrivals.lock().unwrap().len();
        let mut crowd = host.crowd.lock().unwrap();
        if matches!(limit, Some(Limit::Connections(most, _)) if crowd.open >= most) {
            crowd.refused += 1;
            return None;
        }
        crowd.open += 1;
        crowd.most_open = crowd.most_open.max(crowd.open);
        crowd.came_after.push(arrived);
        drop(crowd);
        Some(Self(Arc::clone(host)))
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        self.0.crowd.lock().unwrap().open -= 1;
    }
}

async fn refuse(mut socket: TcpStream, host: &Shared) -> std::io::Result<()> {
    if let Some(Limit::Connections(_, line)) = host.limit() {
        socket.write_all(format!("{line}\r\n").as_bytes()).await?;
    }
    socket.shutdown().await
}

/// A message that is counted.
struct Busy(Arc<Shared>);

impl Busy {
    /// `Err`: the line that says that there are too many.
    fn begin(host: &Arc<Shared>) -> Result<Self, &'static str> {
        let limit = host.limit();
        let mut crowd = host.crowd.lock().unwrap();
        match limit {
            Some(Limit::Messages(most, line)) if crowd.busy >= most => {
                crowd.refused += 1;
                Err(line)
            }
            _ => {
                crowd.busy += 1;
                drop(crowd);
                Ok(Self(Arc::clone(host)))
            }
        }
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.crowd.lock().unwrap().busy -= 1;
    }
}

struct Session {
    stream: BufReader<Stream>,
    /// Said, but not sent yet.
    out: Vec<u8>,
    plan: SinkPlan,
    host: Arc<Shared>,
    arrival: Arrival,
    busy: Option<Busy>,
}

/// The connection ends here.
struct Over;

impl From<std::io::Error> for Over {
    fn from(_: std::io::Error) -> Self {
        Self
    }
}

impl Session {
    async fn serve(socket: TcpStream, plan: SinkPlan, host: Arc<Shared>) -> Result<(), Over> {
        socket.set_nodelay(true)?;
        let name = plan.name.clone();
        let mut session = Self {
            stream: BufReader::new(Stream::Plain(socket)),
            out: Vec::new(),
            plan,
            host,
            arrival: Arrival {
                from: String::new(),
                mail: String::new(),
                to: Vec::new(),
                rcpt: Vec::new(),
                content: Vec::new(),
                tls: None,
                client: None,
                login: None,
                at: Instant::now(),
            },
            busy: None,
        };
        session.react(&At::Connected, &format!("220 {name} ESMTP sink")).await?;
        loop {
            let line = session.line().await?;
            let verb = line.split([' ', ':']).next().unwrap_or("").to_ascii_uppercase();
            match verb.as_str() {
                "EHLO" => match session.asked()(&At::Ehlo) {
                    Reaction::Go => session.hello().await?,
                    Reaction::Say(line) => session.say(&line).await?,
                    Reaction::HangUp | Reaction::TakeAndHangUp => return Err(Over),
                },
                "HELO" => session.say(&format!("250 {name}")).await?,
                "STARTTLS" if session.plan.identity.is_some() => session = session.start_tls().await?,
                "AUTH" if session.plan.login.is_some() => session.auth(&line).await?,
                "MAIL" if session.plan.login.is_some() && session.arrival.login.is_none() => {
                    session.say("530 5.7.0 log in first").await?;
                }
                "MAIL" => {
                    session.reset();
                    match Busy::begin(&session.host) {
                        Ok(busy) => {
                            if session.react(&At::Mail(&line), "250 2.1.0 ok").await? {
                                session.arrival.from = path(&line);
                                session.arrival.mail = line;
                                session.busy = Some(busy);
                            }
                        }
                        Err(too_many) => session.say(too_many).await?,
                    }
                }
                "RCPT" if session.arrival.mail.is_empty() => session.say("503 5.5.1 MAIL first").await?,
                "RCPT" => {
                    if session.react(&At::Rcpt(&line), "250 2.1.5 ok").await? {
                        session.arrival.to.push(path(&line));
                        session.arrival.rcpt.push(line);
                    }
                }
                "DATA" if session.arrival.to.is_empty() => session.say("554 5.5.1 no valid recipients").await?,
                "DATA" => {
                    if session.react(&At::Data, "354 go on").await? {
                        session.content().await?;
                    }
                }
                "BDAT" => drop(session.react(&At::Bdat, "500 5.5.2 what?").await?),
                "RSET" => {
                    session.reset();
                    session.say("250 2.0.0 ok").await?;
                }
                "NOOP" => session.say("250 2.0.0 ok").await?,
                "QUIT" => {
                    session.say("221 2.0.0 bye").await?;
                    return Ok(());
                }
                _ => session.say("500 5.5.2 what?").await?,
            }
        }
    }

    /// What is done is what the plan says now, also in sessions that began under another.
    fn asked(&self) -> React {
        Arc::clone(&self.host.plan.lock().unwrap().react)
    }

    fn reset(&mut self) {
        self.arrival.from.clear();
        self.arrival.mail.clear();
        self.arrival.to.clear();
        self.arrival.rcpt.clear();
        self.arrival.content.clear();
        self.busy = None;
    }

    async fn line(&mut self) -> Result<String, Over> {
        let mut line = Vec::new();
        if self.stream.read_until(b'\n', &mut line).await? == 0 {
            return Err(Over);
        }
        Ok(String::from_utf8_lossy(&line).trim_end_matches(['\r', '\n']).to_owned())
    }

    async fn say(&mut self, line: &str) -> Result<(), Over> {
        self.out.extend_from_slice(line.as_bytes());
        self.out.extend_from_slice(b"\r\n");
        // Answers to pipelined commands travel together.
        if self.stream.buffer().contains(&b'\n') { Ok(()) } else { self.flush().await }
    }

    async fn flush(&mut self) -> Result<(), Over> {
        let out = std::mem::take(&mut self.out);
        let delay = self.host.plan.lock().unwrap().delay;
        if !delay.is_zero() {
            tokio::time::sleep(delay).await;
        }
        self.stream.get_mut().write_all(&out).await?;
        self.stream.get_mut().flush().await?;
        Ok(())
    }

    /// Does what the plan says; true if it is to go on, and then `go` was said.
    async fn react(&mut self, at: &At<'_>, go: &str) -> Result<bool, Over> {
        match self.asked()(at) {
            Reaction::Go => self.say(go).await.map(|()| true),
            Reaction::Say(line) => self.say(&line).await.map(|()| false),
            Reaction::HangUp | Reaction::TakeAndHangUp => Err(Over),
        }
    }

    async fn hello(&mut self) -> Result<(), Over> {
        let mut lines = vec![self.plan.name.clone()];
        lines.extend(self.plan.keywords.iter().map(|&keyword| keyword.to_owned()));
        let secure = self.arrival.tls.is_some();
        if self.plan.identity.is_some() && !secure {
            lines.push("STARTTLS".into());
        }
        if self.plan.login.is_some() && secure {
            lines.push(format!("AUTH {}", self.plan.mechanisms));
        }
        let last = lines.len() - 1;
        for (index, line) in lines.iter().enumerate() {
            let reply = format!("250{}{line}", if index == last { ' ' } else { '-' });
            self.say(&reply).await?;
        }
        Ok(())
    }

    async fn start_tls(mut self) -> Result<Self, Over> {
        self.say("220 2.0.0 go ahead").await?;
        self.flush().await?;
        let Some(identity) = &self.plan.identity else { return Err(Over) };
        let acceptor = Acceptor::new(identity, true);
        let Stream::Plain(socket) = self.stream.into_inner() else { return Err(Over) };
        let accepted =
            acceptor.accept(socket, tokio::time::Instant::now() + PATIENCE).await.map_err(std::io::Error::from)?;
        self.arrival.tls = Some(accepted.protocol);
        self.arrival.client = accepted.client.map(|client| client.names());
        self.stream = BufReader::new(accepted.stream);
        self.reset();
        Ok(self)
    }

    /// RFC 4954; LOGIN as everybody does it.
    async fn auth(&mut self, line: &str) -> Result<(), Over> {
        let words: Vec<&str> = line.split(' ').collect();
        let mechanism = words.get(1).copied().unwrap_or("").to_ascii_uppercase();
        let mut initial = words.get(2).map(|&word| word.to_owned());
        let (user, password) = match mechanism.as_str() {
            "PLAIN" => {
                let response = match initial.take() {
                    Some(response) => response,
                    None => self.challenge("").await?,
                };
                let decoded = decode(&response);
                let mut parts = decoded.split('\0').skip(1);
                (parts.next().unwrap_or("").to_owned(), parts.next().unwrap_or("").to_owned())
            }
            "LOGIN" => {
                let user = match initial.take() {
                    Some(response) => response,
                    None => self.challenge("VXNlcm5hbWU6").await?,
                };
                let password = self.challenge("UGFzc3dvcmQ6").await?;
                (decode(&user), decode(&password))
            }
            _ => return self.say("504 5.5.4 no such mechanism").await,
        };
        if self.plan.login.as_ref() == Some(&(user.clone(), password)) {
            self.arrival.login = Some(user);
            self.say("235 2.7.0 welcome").await
        } else {
            self.say("535 5.7.8 no").await
        }
    }

    async fn challenge(&mut self, challenge: &str) -> Result<String, Over> {
        self.say(&format!("334 {challenge}")).await?;
        self.flush().await?;
        self.line().await
    }

    async fn content(&mut self) -> Result<(), Over> {
        self.flush().await?;
        let mut content = Vec::new();
        loop {
            let start = content.len();
            if self.stream.read_until(b'\n', &mut content).await? == 0 {
                return Err(Over);
            }
            match &content[start..] {
                b".\r\n" => {
                    content.truncate(start);
                    break;
                }
                [b'.', ..] => {
                    content.remove(start);
                }
                _ => {}
            }
        }
        self.arrival.content = content;
        self.arrival.at = Instant::now();
        let reaction = self.asked()(&At::End(&self.arrival));
        match reaction {
            Reaction::Go => {
                self.remember();
                self.say("250 2.0.0 taken").await?;
            }
            Reaction::Say(line) => self.say(&line).await?,
            Reaction::HangUp => return Err(Over),
            Reaction::TakeAndHangUp => {
                self.remember();
                return Err(Over);
            }
        }
        self.reset();
        Ok(())
    }

    fn remember(&mut self) {
        if !self.plan.keep_content {
            self.arrival.content = Vec::new();
        }
        self.host.arrivals.lock().unwrap().push(self.arrival.clone());
    }
}

/// What stands between `<` and `>`; a quoted local part may contain either.
fn path(line: &str) -> String {
    let from = line.find('<').map_or(0, |at| at + 1);
    let mut quoted = false;
    let mut escaped = false;
    for (at, char) in line[from..].char_indices() {
        match char {
            _ if escaped => escaped = false,
            '\\' => escaped = quoted,
            '"' => quoted = !quoted,
            '>' if !quoted => return line[from..from + at].to_owned(),
            _ => {}
        }
    }
    line[from..].to_owned()
}

fn decode(text: &str) -> String {
    BASE64_STANDARD.decode(text).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default()
}
