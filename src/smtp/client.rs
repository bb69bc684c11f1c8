//! The sending side of one SMTP session, without sockets, clocks or tasks.
//!
//! A [`Session`] opens: greeting, EHLO, STARTTLS, login. A [`Delivery`] sends one message over it, in as many
//! transactions as its recipients need, and ends with one answer for each of them. Both are driven alike:
//! [`Step`]s come out; bytes, `sent`, `expired` and `closed` go in.
//!
//! Not here: which host is spoken to (`deliver::hosts`), what a certificate is worth (`tls`), what follows from an
//! answer (`outcome`).
//!
//! Standards: RFC 5321 (SMTP), 1870 (SIZE), 2920 (PIPELINING), 3030 (CHUNKING), 3207 (STARTTLS), 3461 (DSN), 4954
//! (AUTH), 6152 (8BITMIME), 6531 (SMTPUTF8), 8689 (REQUIRETLS).

use std::collections::VecDeque;
use std::fmt::Write as _;
use std::io::IoSlice;
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};

use super::Reply;
use super::auth::{Credentials, Exchange, Next};
use super::extension::Offered;
use super::reply::ReplyParser;
use crate::message::{Address, BodyType, Domain, Envelope, Notify, OriginalRecipient, Recipient, envelope::Ret};

/// What a reply to the end of a message is called in a [`Fault::Answered`].
pub const END_OF_DATA: &str = "the end of data";

/// The longest ORCPT, as written. RFC 3461 section 4.2.
const ORCPT_LIMIT: usize = 500;

/// A message of at most so many bytes travels in one write with its envelope, where the server can take it so. A
/// longer one waits for the recipients' replies: a message nobody wants is not worth more than this.
pub const INLINE_LIMIT: u64 = 256 * 1024;

/// RFC 5321 section 4.5.3.2: how long each reply is waited for. One deadline per wait; a slow trickle moves none.
mod wait {
    use std::time::Duration;

    /// 4.5.3.2.1: a busy server may accept the connection long before it greets.
    pub const GREETING: Duration = Duration::from_mins(5);
    pub const EHLO: Duration = Duration::from_mins(5);
    pub const STARTTLS: Duration = Duration::from_mins(5);
    /// RFC 4954 section 4: at least three minutes.
    pub const AUTH: Duration = Duration::from_mins(5);
    /// 4.5.3.2.2 and 4.5.3.2.3.
    pub const MAIL_RCPT: Duration = Duration::from_mins(5);
    /// 4.5.3.2.4.
    pub const DATA: Duration = Duration::from_mins(2);
    /// 4.5.3.2.6: the server may deliver the message before it answers.
    pub const END: Duration = Duration::from_mins(10);
    /// Nothing hangs on these two but the connection.
    pub const RSET: Duration = Duration::from_secs(20);
    pub const QUIT: Duration = Duration::from_secs(5);
}

/// RFC 5321 section 4.5.3.2.5: the wait for each block of a message to leave.
pub const BLOCK_WAIT: Duration = Duration::from_mins(3);

/// How long a TLS handshake may take.
pub const HANDSHAKE_WAIT: Duration = Duration::from_mins(1);

/// When STARTTLS is said.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StartTls {
    /// Never.
    Never,
    /// If the server offers it.
    IfOffered,
    /// Without it nothing else is said.
    Demanded,
}

/// What a session is held to.
#[derive(Debug, Clone)]
pub struct Terms {
    /// What we call ourselves.
    pub helo: String,
    /// When STARTTLS is said.
    pub starttls: StartTls,
    /// Without TLS, or a login, nothing is sent; HELO can offer neither. So a refused EHLO is the answer.
    pub extended: bool,
    /// Who we log in as; only in TLS.
    pub login: Option<Credentials>,
    /// This relay's hostname: a server that answers EHLO with it is this relay. `None`: any name will do.
    pub own_name: Option<String>,
}

/// Why a message or a session came no further.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fault {
    /// The server said so.
    Answered {
        /// To what.
        command: &'static str,
        /// What.
        reply: Reply,
    },
    /// The connection ended, or nothing came in time; the server does not have the message.
    Broken(String),
    /// The same after the whole message was sent: nobody knows whether the server has it.
    Ambiguous(String),
    /// The server broke the protocol.
    Protocol {
        /// How.
        why: String,
        /// The whole message had been sent.
        handed_over: bool,
    },
    /// STARTTLS is demanded and not offered.
    TlsNotOffered,
    /// STARTTLS is demanded and was refused.
    TlsRefused(Reply),
    /// There is no way to log in, and why.
    Login(String),
    /// The message needs an extension that is not offered.
    Unsupported(&'static str),
    /// The server's SIZE is smaller than the message.
    TooBig {
        /// Its SIZE.
        limit: u64,
        /// The message's.
        size: u64,
    },
    /// CHUNKING is offered, and BDAT does not work. The same host may take DATA, on another connection: what this
    /// one made of the chunk is not known.
    NoChunking(Reply),
    /// The server answered EHLO or HELO with this relay's own name.
    OwnName(String),
}

/// What a [`Fault`] leaves to be done in the same attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Remedy {
    /// Nothing: this is the attempt's answer.
    None,
    /// The next host.
    NextHost,
    /// Another host of the same preference: the less preferred may well be able to do less.
    EqualHost,
    /// The same host, without BDAT.
    WithoutChunking,
}

impl Fault {
    /// What is left to be done in the same attempt.
    pub fn remedy(&self) -> Remedy {
        match self {
            // RFC 5321 section 3.8: 421 speaks of the service, not of the message.
            Self::Answered { command, reply } if reply.code == 421 && *command != END_OF_DATA => Remedy::NextHost,
            Self::Answered { .. } => Remedy::None,
            Self::Broken(_) | Self::Protocol { handed_over: false, .. } => Remedy::NextHost,
            // Another host might take it a second time.
            Self::Ambiguous(_) | Self::Protocol { handed_over: true, .. } => Remedy::None,
            Self::TlsNotOffered | Self::TlsRefused(_) | Self::Login(_) | Self::TooBig { .. } | Self::OwnName(_) => {
                Remedy::NextHost
            }
            Self::Unsupported(_) => Remedy::EqualHost,
            Self::NoChunking(_) => Remedy::WithoutChunking,
        }
    }

    fn protocol(why: impl ToString) -> Self {
        Self::Protocol { why: why.to_string(), handed_over: false }
    }
}

/// What the driver is to do next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Write this, and what of the message is to follow it, in one go; then `sent`, or `closed`.
    Send(Bytes, Option<Payload>),
    /// Read into [`Session::unread`]; the end: [`Session::closed`]; nothing by then: [`Session::expired`].
    Receive {
        /// The deadline, on the driver's clock.
        until: Instant,
    },
    /// Shake hands, then [`Session::secured`], or give the session up.
    StartTls,
    /// Nothing more: look at the result.
    Done,
}

/// The form in which a message follows its command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Payload {
    /// As it is, for BDAT.
    Chunk {
        /// With CRLF behind it.
        add_crlf: bool,
    },
    /// Through a [`Stuffer`], and its end behind it, for DATA.
    Stuffed,
}

/// One connection's session.
#[derive(Debug)]
pub struct Session {
    terms: Terms,
    state: State,
    offered: Offered,
    secure: bool,
    unread: BytesMut,
    parser: ReplyParser,
    outgoing: BytesMut,
    /// The deadline of the present wait.
    until: Option<Instant>,
    /// Why nothing more will come.
    ended: Option<Ended>,
    /// A transaction was left in the middle: RSET comes before the next.
    dirty: bool,
}

#[derive(Debug)]
enum State {
    Greeting,
    Ehlo,
    Helo,
    StartTls,
    Handshake,
    LoggingIn(Exchange),
    Ready,
    Quitting,
    Failed(Fault),
}

#[derive(Debug, Clone)]
struct Ended {
    why: String,
    expired: bool,
}

impl Session {
    /// A session on a connection that was just made.
    pub fn new(terms: Terms) -> Self {
        Self {
            terms,
            state: State::Greeting,
            offered: Offered::default(),
            secure: false,
            unread: BytesMut::new(),
            parser: ReplyParser::default(),
            outgoing: BytesMut::new(),
            until: None,
            ended: None,
            dirty: false,
        }
    }

    /// What to do next until the session is open, and again after [`Session::quit`].
    pub fn step(&mut self, now: Instant) -> Step {
        loop {
            if !self.outgoing.is_empty() {
                return Step::Send(self.outgoing.split().freeze(), None);
            }
            let (wait, hello) = match self.state {
                State::Handshake => return Step::StartTls,
                State::Ready | State::Failed(_) => return Step::Done,
                State::Greeting => (wait::GREETING, false),
                State::Ehlo => (wait::EHLO, true),
                State::Helo => (wait::EHLO, false),
                State::StartTls => (wait::STARTTLS, false),
                State::LoggingIn(_) => (wait::AUTH, false),
                State::Quitting => (wait::QUIT, false),
            };
            match self.reply(now, wait, hello) {
                Ok(Ok(reply)) => self.heard(&reply),
                Ok(Err(until)) => return Step::Receive { until },
                Err(fault) => self.state = State::Failed(fault),
            }
        }
    }

    /// Where the driver puts the bytes it reads.
    pub fn unread(&mut self) -> &mut BytesMut {
        &mut self.unread
    }

    /// What was to be sent has left.
    pub fn sent(&mut self) {
        self.until = None;
    }

    /// Nothing came by the deadline.
    pub fn expired(&mut self) {
        self.ended.get_or_insert(Ended { why: "timed out waiting for its answer".to_owned(), expired: true });
    }

    /// The connection has ended.
    pub fn closed(&mut self, why: impl Into<String>) {
        self.ended.get_or_insert(Ended { why: why.into(), expired: false });
    }

    /// The handshake succeeded and what it proved is enough. All that was known of the server is forgotten:
    /// RFC 3207 section 4.2.
    pub fn secured(&mut self) {
        self.secure = true;
        self.offered = Offered::default();
        self.hello();
    }

    /// Whether the session is open, once [`Session::step`] is done.
    ///
    /// # Errors
    /// Why it is not.
    pub fn outcome(&self) -> Result<(), Fault> {
        match &self.state {
            State::Failed(fault) => Err(fault.clone()),
            _ => Ok(()),
        }
    }

    /// What the server offers: what it said last, in TLS if the session is.
    pub fn offered(&self) -> &Offered {
        &self.offered
    }

    /// True if another message may be sent over it.
    pub fn is_usable(&self) -> bool {
        matches!(self.state, State::Ready)
            && self.ended.is_none()
            && self.unread.is_empty()
            && !self.parser.is_inside()
            && self.outgoing.is_empty()
    }

    /// Says goodbye; then [`Session::step`] until it is done.
    pub fn quit(&mut self) {
        self.state = State::Quitting;
        self.say("QUIT\r\n");
    }

    fn hello(&mut self) {
        self.say(&format!("EHLO {}\r\n", self.terms.helo));
        self.state = State::Ehlo;
    }

    fn say(&mut self, line: &str) {
        self.outgoing.extend_from_slice(line.as_bytes());
        self.until = None;
    }

    /// Judges one reply while the session opens or ends.
    fn heard(&mut self, reply: &Reply) {
        let state = std::mem::replace(&mut self.state, State::Ready);
        // Nothing is due before we have said the next thing; whoever answers it already is not following.
        if !matches!(state, State::Quitting) && !self.unread.is_empty() {
            let why = match state {
                // What comes in the clear behind this reply would be read as if it had come in TLS (CVE-2021-38371).
                State::StartTls => "it sent something between its reply to STARTTLS and the handshake",
                _ => "it answered more than it was asked",
            };
            // A greeting of 421 or 554 and its farewell in one packet is still an answer.
            if reply.code < 400 {
                self.state = State::Failed(Fault::protocol(why));
                return;
            }
        }
        let answered = |command| State::Failed(Fault::Answered { command, reply: reply.clone() });
        match state {
            State::Greeting if reply.is_positive() => self.hello(),
            State::Greeting => self.state = answered("the connection"),
            State::Ehlo | State::Helo if reply.is_positive() && self.is_own_name(reply) => {
                let name = self.terms.own_name.clone().unwrap_or_default();
                self.state = State::Failed(Fault::OwnName(name));
            }
            State::Ehlo if reply.is_positive() => {
                self.offered = Offered::parse(reply);
                self.greeted();
            }
            // RFC 5321 section 3.2: a client that EHLO is refused to should try HELO, once. Servers that know no EHLO say
            // 500 or 502; proxies and policies say 501, 550 or 554.
            State::Ehlo if reply.code / 100 == 5 && self.may_say_helo() => {
                self.say(&format!("HELO {}\r\n", self.terms.helo));
                self.state = State::Helo;
            }
            State::Ehlo => self.state = answered("EHLO"),
            State::Helo if reply.is_positive() => self.greeted(),
            State::Helo => self.state = answered("HELO"),
            State::StartTls if reply.is_positive() => self.state = State::Handshake,
            State::StartTls if reply.code == 421 || reply.code < 400 => self.state = answered("STARTTLS"),
            State::StartTls if self.terms.starttls == StartTls::Demanded => {
                self.state = State::Failed(Fault::TlsRefused(reply.clone()));
            }
            State::StartTls => self.introduced(),
            State::LoggingIn(mut exchange) => match exchange.answer(reply) {
                Next::Say(line) => {
                    self.say(&line);
                    self.state = State::LoggingIn(exchange);
                }
                Next::Done => self.state = State::Ready,
                Next::Refused => self.state = answered("AUTH"),
            },
            State::Quitting | State::Ready | State::Handshake => self.state = State::Ready,
            State::Failed(fault) => self.state = State::Failed(fault),
        }
        // 3yz where there is no such reply.
        if let State::Failed(Fault::Answered { command, reply }) = &self.state
            && reply.code < 400
        {
            self.state = State::Failed(Fault::protocol(format!("it answered {command} with {reply}")));
        }
    }

    /// Can a session begun by HELO still be what the terms demand?
    fn may_say_helo(&self) -> bool {
        !self.terms.extended || (self.secure && self.terms.login.is_none())
    }

    /// Does the reply to EHLO or HELO begin with our own hostname? RFC 5321 section 4.1.1.1: its first word is the
    /// server's name. The greeting is not looked at: many a server greets with the name of its organization's mail.
    fn is_own_name(&self, reply: &Reply) -> bool {
        let name = reply.text.split_ascii_whitespace().next().unwrap_or_default();
        let name = name.strip_suffix('.').unwrap_or(name);
        self.terms.own_name.as_ref().is_some_and(|own| own.eq_ignore_ascii_case(name))
    }

    /// The server has named what it offers.
    fn greeted(&mut self) {
        if self.secure || self.terms.starttls == StartTls::Never {
            self.introduced();
        } else if self.offered.starttls {
            self.say("STARTTLS\r\n");
            self.state = State::StartTls;
        } else if self.terms.starttls == StartTls::Demanded {
            self.state = State::Failed(Fault::TlsNotOffered);
        } else {
            self.introduced();
        }
    }

    /// TLS stands, or will not be had.
    fn introduced(&mut self) {
        let Some(credentials) = &self.terms.login else {
            self.state = State::Ready;
            return;
        };
        if !self.secure {
            self.state = State::Failed(Fault::Login("there is no TLS, and no password is said in the clear".into()));
            return;
        }
        match Exchange::begin(&self.offered.auth, credentials) {
            Some((exchange, command)) => {
                self.say(&command);
                self.state = State::LoggingIn(exchange);
            }
            None => self.state = State::Failed(Fault::Login("the server offers neither AUTH PLAIN nor LOGIN".into())),
        }
    }

    /// The next reply; or until when to wait for it; or why there will be none.
    fn reply(&mut self, now: Instant, wait: Duration, hello: bool) -> Result<Result<Reply, Instant>, Fault> {
        let parsed = if hello { self.parser.next_hello(&mut self.unread) } else { self.parser.next(&mut self.unread) };
        match parsed {
            Ok(Some(reply)) => {
                self.until = None;
                Ok(Ok(reply))
            }
            Ok(None) => match &self.ended {
                Some(ended) => Err(Fault::Broken(ended.why.clone())),
                None => Ok(Err(*self.until.get_or_insert(now + wait))),
            },
            Err(garbled) => {
                self.closed(garbled.to_string());
                Err(Fault::protocol(garbled))
            }
        }
    }
}

/// One message, as it is to be sent over one session.
#[derive(Debug, Clone)]
pub struct Mail<'m> {
    /// Its sender and parameters; the recipients in it do not count.
    pub envelope: &'m Envelope,
    /// Who is to get it, each with a number that comes back with the result.
    pub recipients: Vec<(u16, &'m Recipient)>,
    /// Of all that is sent, in bytes.
    pub size: u64,
    /// Its last bytes are CRLF.
    pub ends_in_crlf: bool,
    /// It has bytes above 127.
    pub eight_bit: bool,
    /// It has such bytes in its header, and came as SMTPUTF8.
    pub utf8_header: bool,
    /// The most recipients of one transaction.
    pub max_recipients: usize,
    /// BDAT may be used where it is offered.
    pub chunking: bool,
    /// What XOORG says in TLS where it is offered: our organization.
    pub xoorg: Option<&'m Domain>,
}

/// What became of one recipient: the reply that took the message, or why none did.
pub type Settled = (u16, Result<Reply, Fault>);

/// One message on its way over one session.
#[derive(Debug)]
pub struct Delivery<'s, 'm> {
    session: &'s mut Session,
    mail: Mail<'m>,
    stage: Stage,
    /// Whose turn has not come.
    waiting: VecDeque<(u16, &'m Recipient)>,
    /// Who is in this transaction.
    present: Vec<Slot<'m>>,
    /// Which replies are due, in order: they are told apart by nothing else. RFC 2920 section 3.1.
    awaited: VecDeque<Awaited>,
    /// What of the message is to be sent, or being sent, with what stands in `outgoing`.
    payload: Option<Payload>,
    sending: bool,
    /// The most recipients of one transaction, as this server takes them.
    room: usize,
    accepted: usize,
    mail_accepted: bool,
    /// The end of the message has been sent.
    handed_over: bool,
    /// Something came back before the end of the message had been sent.
    early: bool,
    /// A reply to this message was read.
    heard: bool,
    /// BDAT was sent, and the session ended before it was answered.
    chunk_lost: bool,
    settled: Vec<Settled>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// Between two transactions.
    Between,
    /// MAIL is said, and RCPT up to this one.
    Addressing(usize),
    /// DATA is said.
    Asking,
    /// The message, or the lone dot, is said.
    Handing,
    Done,
}

#[derive(Debug)]
struct Slot<'m> {
    index: u16,
    recipient: &'m Recipient,
    state: SlotState,
}

#[derive(Debug)]
enum SlotState {
    /// RCPT is not answered.
    Open,
    Accepted,
    /// The server has enough recipients for now; the next transaction takes this one.
    Again(Reply),
    Settled,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Awaited {
    Reset,
    Mail,
    Rcpt(usize),
    Data,
    End,
}

impl Awaited {
    fn command(self) -> &'static str {
        match self {
            Self::Reset => "RSET",
            Self::Mail => "MAIL",
            Self::Rcpt(_) => "RCPT",
            Self::Data => "DATA",
            Self::End => END_OF_DATA,
        }
    }

    fn wait(self) -> Duration {
        match self {
            Self::Reset => wait::RSET,
            Self::Mail | Self::Rcpt(_) => wait::MAIL_RCPT,
            Self::Data => wait::DATA,
            Self::End => wait::END,
        }
    }
}

impl<'s, 'm> Delivery<'s, 'm> {
    /// Begins to send `mail` over a session that is open.
    pub fn new(session: &'s mut Session, mail: Mail<'m>) -> Self {
        let room = session.offered.rcpt_max.and_then(|max| usize::try_from(max).ok()).unwrap_or(usize::MAX);
        let mut this = Self {
            stage: Stage::Between,
            waiting: mail.recipients.iter().copied().collect(),
            present: Vec::with_capacity(mail.recipients.len().min(mail.max_recipients)),
            awaited: VecDeque::new(),
            payload: None,
            sending: false,
            room: room.min(mail.max_recipients).max(1),
            accepted: 0,
            mail_accepted: false,
            handed_over: false,
            early: false,
            heard: false,
            chunk_lost: false,
            settled: Vec::with_capacity(mail.recipients.len()),
            session,
            mail,
        };
        this.refuse_what_cannot_be_sent();
        this
    }

    /// What to do next.
    pub fn step(&mut self, now: Instant) -> Step {
        loop {
            if !self.session.outgoing.is_empty() || (self.payload.is_some() && !self.sending) {
                self.sending = true;
                return Step::Send(self.session.outgoing.split().freeze(), self.payload);
            }
            let Some(&awaited) = self.awaited.front() else {
                if self.stage == Stage::Done {
                    return Step::Done;
                }
                self.advance();
                continue;
            };
            match self.session.reply(now, awaited.wait(), false) {
                Ok(Ok(reply)) => {
                    self.awaited.pop_front();
                    self.judge(awaited, reply);
                }
                Ok(Err(until)) => return Step::Receive { until },
                Err(fault) => self.fail(fault),
            }
        }
    }

    /// The session, for the driver to put bytes into, and to tell of its end.
    pub fn session(&mut self) -> &mut Session {
        self.session
    }

    /// What was to be sent has left, all of it.
    pub fn sent(&mut self) {
        self.session.sent();
        self.sending = false;
        if self.payload.take().is_some() {
            self.handed_over = true;
            // The reply to the end of data was there before the end of data was.
            self.early = self.awaited.front() == Some(&Awaited::End) && !self.session.unread.is_empty();
        }
    }

    /// True if the session had ended before it said anything about this message: a connection that was kept too
    /// long rather than a fault.
    pub fn was_stale(&self) -> bool {
        !self.heard && !self.session.ended.as_ref().is_some_and(|ended| ended.expired)
    }

    /// True if BDAT was sent and the session ended before it was answered. Whether BDAT was the reason, nobody can tell.
    pub fn has_lost_chunk(&self) -> bool {
        self.chunk_lost
    }

    /// Those who have their answer so far.
    pub fn settled(&self) -> &[Settled] {
        &self.settled
    }

    /// The results so far, where the driver cannot go on; the session is of no use then. Whoever is not among them has no
    /// answer.
    pub fn break_off(self) -> Vec<Settled> {
        self.session.closed("the message could not be sent to its end");
        self.settled
    }

    /// The result for each recipient, once [`Delivery::step`] is done.
    pub fn into_settled(self) -> Vec<Settled> {
        debug_assert_eq!(self.settled.len(), self.mail.recipients.len(), "everybody is settled exactly once");
        self.settled
    }

    /// What this server cannot take is not offered to it.
    fn refuse_what_cannot_be_sent(&mut self) {
        let Mail { envelope, size, .. } = self.mail;
        let offered = &self.session.offered;
        let fault = if envelope.requiretls && !(offered.requiretls && self.session.secure) {
            Some(Fault::Unsupported("REQUIRETLS"))
        } else if self.mail.eight_bit && !offered.eightbitmime {
            Some(Fault::Unsupported("8BITMIME"))
        } else if !offered.smtputf8
            && (self.mail.utf8_header || envelope.sender.as_ref().is_some_and(|sender| !sender.is_ascii()))
        {
            Some(Fault::Unsupported("SMTPUTF8"))
        } else if let Some(Some(limit)) = offered.size
            && self.octets() > limit
        {
            Some(Fault::TooBig { limit, size })
        } else {
            None
        };
        if let Some(fault) = fault {
            let all = self.waiting.drain(..);
            self.settled.extend(all.map(|(index, _)| (index, Err(fault.clone()))));
        } else if !offered.smtputf8 {
            // RFC 6531 section 3.2: what can go without it goes.
            let settled = &mut self.settled;
            self.waiting.retain(|(index, recipient)| {
                let fits = recipient.address.is_ascii();
                if !fits {
                    settled.push((*index, Err(Fault::Unsupported("SMTPUTF8"))));
                }
                fits
            });
        }
    }

    /// How long the message will be on the server.
    fn octets(&self) -> u64 {
        self.mail.size + if self.mail.ends_in_crlf { 0 } else { 2 }
    }

    /// Nothing is due: says what comes next.
    fn advance(&mut self) {
        if !self.session.unread.is_empty() || self.session.parser.is_inside() {
            // RFC 5321 section 3.8: a server that closes may say so unasked.
            match self.session.parser.next(&mut self.session.unread) {
                Ok(Some(reply)) if reply.code == 421 => {
                    return self.fail(Fault::Broken(format!("it closed the session: {reply}")));
                }
                _ => return self.fail(Fault::protocol("it answered more than it was asked")),
            }
        }
        if let Some(ended) = &self.session.ended {
            return self.fail(Fault::Broken(ended.why.clone()));
        }
        match self.stage {
            Stage::Between => self.begin(),
            Stage::Addressing(next) if self.mail_accepted && next < self.present.len() => {
                self.say_rcpt(next);
                self.stage = Stage::Addressing(next + 1);
            }
            // All were refused: there is nobody to send it to. RFC 5321 section 3.3.
            Stage::Addressing(_) if self.accepted == 0 => self.end(),
            Stage::Addressing(_) if self.chunks() => self.say_chunk(),
            Stage::Addressing(_) => self.say_data(),
            Stage::Asking | Stage::Handing => self.end(),
            Stage::Done => {}
        }
    }

    fn chunks(&self) -> bool {
        self.mail.chunking && self.session.offered.chunking
    }

    /// Begins the next transaction, or is done.
    fn begin(&mut self) {
        if self.waiting.is_empty() {
            self.stage = Stage::Done;
            return;
        }
        if self.session.dirty {
            self.session.say("RSET\r\n");
            self.awaited.push_back(Awaited::Reset);
            return;
        }
        let count = self.waiting.len().min(self.room);
        self.present.clear();
        self.present.extend(self.waiting.drain(..count).map(|(index, recipient)| Slot {
            index,
            recipient,
            state: SlotState::Open,
        }));
        (self.accepted, self.mail_accepted, self.handed_over, self.early) = (0, false, false, false);
        self.session.dirty = true;
        self.say_mail();
        self.stage = Stage::Addressing(0);
        if self.session.offered.pipelining {
            for index in 0..count {
                self.say_rcpt(index);
            }
            self.stage = Stage::Addressing(count);
            if !self.chunks() {
                self.say_data();
            } else if self.mail.size <= INLINE_LIMIT {
                self.say_chunk();
            }
        }
    }

    fn say_mail(&mut self) {
        let Mail { envelope, .. } = self.mail;
        let octets = self.octets();
        let offered = &self.session.offered;
        let out = &mut self.session.outgoing;
        out.reserve(128 + 96 * self.present.len());
        // RFC 6531 section 3.4: said where it is needed, so that a message in ASCII goes where others can follow.
        let utf8_needed = self.mail.utf8_header
            || envelope.sender.as_ref().is_some_and(|sender| !sender.is_ascii())
            || self.present.iter().any(|slot| !slot.recipient.address.is_ascii());
        out.extend_from_slice(b"MAIL FROM:<");
        if let Some(sender) = &envelope.sender {
            push_address(out, sender);
        }
        out.extend_from_slice(b">");
        if offered.size.is_some() {
            // `BytesMut` grows as it is written to; its `Write` cannot fail. So below.
            let _ = write!(out, " SIZE={octets}");
        }
        if offered.eightbitmime && (self.mail.eight_bit || envelope.body == BodyType::EightBit) {
            out.extend_from_slice(b" BODY=8BITMIME");
        }
        if utf8_needed && offered.smtputf8 {
            out.extend_from_slice(b" SMTPUTF8");
        }
        if envelope.requiretls {
            out.extend_from_slice(b" REQUIRETLS");
        }
        if let Some(domain) = self.mail.xoorg.filter(|_| offered.xoorg && self.session.secure) {
            let _ = write!(out, " XOORG={domain}");
        }
        if offered.dsn {
            match envelope.ret {
                Some(Ret::Full) => out.extend_from_slice(b" RET=FULL"),
                Some(Ret::Headers) => out.extend_from_slice(b" RET=HDRS"),
                None => {}
            }
            if let Some(envid) = &envelope.envid {
                out.extend_from_slice(b" ENVID=");
                push_xtext(out, envid);
            }
        }
        out.extend_from_slice(b"\r\n");
        self.session.until = None;
        self.awaited.push_back(Awaited::Mail);
    }

    fn say_rcpt(&mut self, index: usize) {
        let recipient = self.present[index].recipient;
        let out = &mut self.session.outgoing;
        out.extend_from_slice(b"RCPT TO:<");
        push_address(out, &recipient.address);
        out.extend_from_slice(b">");
        if self.session.offered.dsn {
            match recipient.notify {
                Notify::Unsaid => {}
                Notify::Never => out.extend_from_slice(b" NOTIFY=NEVER"),
                Notify::On { success, failure, delay } => {
                    let mut between = " NOTIFY=";
                    for (on, word) in [(success, "SUCCESS"), (failure, "FAILURE"), (delay, "DELAY")] {
                        if on {
                            let _ = write!(out, "{between}{word}");
                            between = ",";
                        }
                    }
                }
            }
            if let Some(orcpt) = &recipient.orcpt {
                push_orcpt(out, orcpt);
            }
        }
        out.extend_from_slice(b"\r\n");
        self.session.until = None;
        self.awaited.push_back(Awaited::Rcpt(index));
    }

    fn say_data(&mut self) {
        self.session.say("DATA\r\n");
        self.awaited.push_back(Awaited::Data);
        self.stage = Stage::Asking;
    }

    fn say_chunk(&mut self) {
        let octets = self.octets();
        let _ = write!(self.session.outgoing, "BDAT {octets} LAST\r\n");
        self.session.until = None;
        self.payload = Some(Payload::Chunk { add_crlf: !self.mail.ends_in_crlf });
        self.awaited.push_back(Awaited::End);
        self.stage = Stage::Handing;
    }

    /// Judges the reply to what was said longest ago.
    fn judge(&mut self, to: Awaited, reply: Reply) {
        if reply.code == 421 {
            // It will close: nothing that was asked will be answered. RFC 5321 section 3.8.
            self.session.closed(format!("it closed the session: {reply}"));
            return self.fail(Fault::Answered { command: to.command(), reply });
        }
        self.heard |= to != Awaited::Reset;
        let class = reply.code / 100;
        match (to, class) {
            (Awaited::Reset, 2) => self.session.dirty = false,
            (Awaited::Reset, _) => self.fail(Fault::Broken(format!("it answered RSET with {reply}"))),
            (Awaited::Mail, 2) => self.mail_accepted = true,
            (Awaited::Mail, 4 | 5) => {
                // The same MAIL would meet the same answer for those whose turn has not come.
                self.settle_present(|_| true, &Err(Fault::Answered { command: "MAIL", reply: reply.clone() }));
                self.settle_waiting(&Fault::Answered { command: "MAIL", reply });
            }
            // The recipients of a MAIL that was refused are settled.
            (Awaited::Rcpt(_), 2 | 4 | 5) if !self.mail_accepted => {}
            (Awaited::Rcpt(index), 2) => {
                self.accepted += 1;
                self.present[index].state = SlotState::Accepted;
            }
            (Awaited::Rcpt(index), 4 | 5) => self.refused(index, reply),
            (Awaited::Data, 3) if !self.session.unread.is_empty() => {
                self.fail(Fault::protocol("it answered the message before it had any of it"));
            }
            (Awaited::Data, 3) => {
                self.stage = Stage::Handing;
                self.awaited.push_back(Awaited::End);
                if self.accepted > 0 {
                    self.payload = Some(Payload::Stuffed);
                } else {
                    // RFC 2920 section 3.1: the server awaits a message for nobody. It gets an empty one.
                    self.session.say(".\r\n");
                }
            }
            (Awaited::Data, 4 | 5) => {
                self.settle_accepted(&Err(Fault::Answered { command: "DATA", reply }));
            }
            (Awaited::End, _) if self.accepted == 0 && class != 3 => {}
            (Awaited::End, 2) if self.early || !self.handed_over => {
                self.fail(Fault::protocol(format!("it answered {reply} before it had the whole message")));
            }
            // One reply too many: then this may be another command's, and the one behind it the message's. It may
            // be delivered twice so, and cannot be lost. A server that closes may say so.
            (Awaited::End, 2) if !self.session.unread.is_empty() && !self.session.unread.starts_with(b"421") => {
                self.fail(Fault::protocol("it answered more than it was asked"));
            }
            (Awaited::End, 2) => {
                self.session.dirty = false;
                self.settle_accepted(&Ok(reply));
            }
            (Awaited::End, 4 | 5) if self.chunks() && matches!(reply.code, 500 | 502 | 503 | 555) => {
                self.session.closed("it does not know BDAT");
                self.settle_accepted(&Err(Fault::NoChunking(reply)));
            }
            (Awaited::End, 4 | 5) => {
                self.settle_accepted(&Err(Fault::Answered { command: END_OF_DATA, reply }));
            }
            _ => self.fail(Fault::protocol(format!("it answered {} with {reply}", to.command()))),
        }
    }

    /// RCPT was refused.
    fn refused(&mut self, index: usize, mut reply: Reply) {
        let too_many = says_too_many(&reply);
        // RFC 5321 section 4.5.3.1.10: 552 is what servers of before 1989 say for "enough recipients".
        if reply.code == 552 && (self.accepted >= 100 || too_many) {
            reply.code = 452;
            reply.status = None;
        }
        // 452 4.2.2 is a full mailbox, and another transaction will not empty it.
        let enough = reply.code == 452 && (too_many || reply.status.is_none_or(|status| status.1 != 2));
        let slot = &mut self.present[index];
        if enough && self.accepted > 0 {
            slot.state = SlotState::Again(reply);
        } else {
            slot.state = SlotState::Settled;
            self.settled.push((slot.index, Err(Fault::Answered { command: "RCPT", reply })));
        }
    }

    /// The transaction is over, in whichever way.
    fn end(&mut self) {
        let delivered = self.accepted > 0 && !self.session.dirty;
        // Who did not fit goes into the next one at once, in the same order, if this one went well.
        for slot in self.present.drain(..).rev() {
            if let SlotState::Again(reply) = slot.state {
                if delivered {
                    self.room = self.room.min(self.accepted);
                    self.waiting.push_front((slot.index, slot.recipient));
                } else {
                    self.settled.push((slot.index, Err(Fault::Answered { command: "RCPT", reply })));
                }
            }
        }
        self.stage = Stage::Between;
    }

    /// The session is over.
    fn fail(&mut self, fault: Fault) {
        // What is known of RCPT stays known. A message that was handed over may have been taken by those who were
        // accepted, and by those whose reply is still under way; the others can do with another host.
        let handed_over = self.handed_over && self.stage == Stage::Handing;
        self.chunk_lost = self.stage == Stage::Handing && self.chunks() && matches!(fault, Fault::Broken(_));
        let (here, elsewhere) = match fault {
            Fault::Broken(why) if handed_over => (Fault::Ambiguous(why.clone()), Fault::Broken(why)),
            Fault::Protocol { why, .. } => {
                (Fault::Protocol { why: why.clone(), handed_over }, Fault::Protocol { why, handed_over: false })
            }
            // The reply to the end of data is no word about those who were not in it.
            Fault::Answered { command: END_OF_DATA, ref reply } => {
                let why = format!("it closed the session: {reply}");
                (fault, Fault::Broken(why))
            }
            fault => (fault.clone(), fault),
        };
        self.session.closed("the session failed");
        self.settle_present(|state| matches!(state, SlotState::Open | SlotState::Accepted), &Err(here));
        self.settle_present(|state| matches!(state, SlotState::Again(_)), &Err(elsewhere.clone()));
        self.settle_waiting(&elsewhere);
        self.awaited.clear();
        self.payload = None;
        self.session.outgoing.clear();
        self.stage = Stage::Done;
    }

    fn settle_accepted(&mut self, result: &Result<Reply, Fault>) {
        self.settle_present(|state| matches!(state, SlotState::Accepted), result);
    }

    fn settle_present(&mut self, whom: impl Fn(&SlotState) -> bool, result: &Result<Reply, Fault>) {
        for slot in &mut self.present {
            if !matches!(slot.state, SlotState::Settled) && whom(&slot.state) {
                slot.state = SlotState::Settled;
                self.settled.push((slot.index, result.clone()));
            }
        }
    }

    fn settle_waiting(&mut self, fault: &Fault) {
        let all = self.waiting.drain(..);
        self.settled.extend(all.map(|(index, _)| (index, Err(fault.clone()))));
    }
}

/// RFC 5321 section 4.5.3.1.10 wants 452, and RFC 3463 has X.5.3 for it; before there were only words.
fn says_too_many(reply: &Reply) -> bool {
    reply.status.is_some_and(|status| (status.1, status.2) == (5, 3))
        || reply.text.to_ascii_lowercase().contains("too many")
}

fn push_address(out: &mut BytesMut, address: &Address) {
    let _ = write!(out, "{address}");
}

/// RFC 3461 section 4: what is not printable ASCII, and `+` and `=`, becomes `+HH`.
fn push_xtext(out: &mut BytesMut, text: &str) {
    for byte in text.bytes() {
        match byte {
            b'+' | b'=' => {
                let _ = write!(out, "+{byte:02X}");
            }
            b'!'..=b'~' => out.extend_from_slice(&[byte]),
            _ => {
                let _ = write!(out, "+{byte:02X}");
            }
        }
    }
}

/// RFC 3461 section 4.2; RFC 6533 section 3 for `utf-8`, in the form that fits into ASCII. One that grows too long by that
/// is left out: a server that counts would refuse the recipient for it.
fn push_orcpt(out: &mut BytesMut, orcpt: &OriginalRecipient) {
    let from = out.len();
    let _ = write!(out, " ORCPT={};", orcpt.kind);
    if orcpt.kind.eq_ignore_ascii_case("utf-8") {
        for letter in orcpt.address.chars() {
            match letter {
                '!'..='~' if !matches!(letter, '+' | '=' | '\\') => out.extend_from_slice(&[letter as u8]),
                _ => {
                    let _ = write!(out, "\\x{{{:02X}}}", u32::from(letter));
                }
            }
        }
    } else {
        push_xtext(out, &orcpt.address);
    }
    if out.len() - from > " ORCPT=".len() + ORCPT_LIMIT {
        out.truncate(from);
    }
}

/// Dot-stuffing without copying: a message in slices, with a dot between where a line begins with one.
///
/// RFC 5321 section 4.5.2. A dot behind a bare LF is stuffed too: no server may find the end of this message
/// earlier than we do, however it reads line ends.
#[derive(Debug, Clone, Copy)]
pub struct Stuffer {
    /// The last two bytes so far.
    tail: [u8; 2],
}

impl Default for Stuffer {
    fn default() -> Self {
        Self { tail: *b"\r\n" }
    }
}

impl Stuffer {
    /// Appends the slices of the next piece to `out`.
    pub fn cut<'a>(&mut self, piece: &'a [u8], out: &mut Vec<IoSlice<'a>>) {
        let (Some(&first), Some(&last)) = (piece.first(), piece.last()) else { return };
        if self.tail[1] == b'\n' && first == b'.' {
            out.push(IoSlice::new(b"."));
        }
        let mut from = 0;
        for at in memchr::memmem::find_iter(piece, b"\n.") {
            out.push(IoSlice::new(&piece[from..=at]));
            out.push(IoSlice::new(b"."));
            from = at + 1;
        }
        out.push(IoSlice::new(&piece[from..]));
        self.tail = [if let [.., before, _] = piece { *before } else { self.tail[1] }, last];
    }

    /// What ends the message: the dot on a line of its own.
    pub fn end(&self) -> &'static [u8] {
        if self.tail == *b"\r\n" { b".\r\n" } else { b"\r\n.\r\n" }
    }
}

#[cfg(test)]
#[expect(clippy::type_complexity, reason = "tables name the type of their rows where they stand")]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const PREFIX: &[u8] = b"Received: by us\r\n";
    const FULL: &str = "PIPELINING\nCHUNKING\n8BITMIME\nSIZE 1000000\nDSN\nSMTPUTF8\nSTARTTLS\nREQUIRETLS\nAUTH PLAIN";

    /// What the server does where it would have answered well.
    #[derive(Debug, Clone, Copy)]
    enum Act {
        /// Says this.
        Say(&'static str),
        /// Says this and closes.
        Last(&'static str),
        /// Says nothing more.
        Hang,
        /// Closes.
        Close,
        /// Answers without end, an octet every ten seconds.
        Trickle,
        /// Answers with lines that never end.
        Endless,
    }

    /// A server that follows the protocol but where it is told otherwise. It runs in no time.
    struct Server {
        offers: String,
        /// `(stage, how)`; a stage is a verb, with its number where it comes several times: `RCPT 2`.
        acts: Vec<(&'static str, Act)>,
        counts: std::collections::HashMap<String, usize>,
        input: Vec<u8>,
        output: Vec<u8>,
        mode: Mode,
        mail: bool,
        recipients: Vec<String>,
        /// Each write of the client, as text.
        writes: Vec<String>,
        delivered: Vec<(Vec<String>, Vec<u8>)>,
        closed: bool,
        silent: bool,
        trickle: bool,
        now: Instant,
    }

    enum Mode {
        Commands,
        Data,
        Chunk(usize),
    }

    impl Server {
        fn new(offers: &str, acts: &[(&'static str, Act)]) -> Self {
            let mut this = Self {
                offers: offers.to_owned(),
                acts: acts.to_vec(),
                counts: std::collections::HashMap::new(),
                input: Vec::new(),
                output: Vec::new(),
                mode: Mode::Commands,
                mail: false,
                recipients: Vec::new(),
                writes: Vec::new(),
                delivered: Vec::new(),
                closed: false,
                silent: false,
                trickle: false,
                now: Instant::now(),
            };
            this.answer("220", "220 mx.example.net ESMTP\r\n");
            this
        }

        /// Answers `good`, unless it is told otherwise for this stage. True: that was a good answer.
        fn answer(&mut self, stage: &str, good: &str) -> bool {
            let count = self.counts.entry(stage.to_owned()).or_default();
            *count += 1;
            let numbered = format!("{stage} {count}");
            let act = self.acts.iter().find(|(at, _)| *at == stage || *at == numbered).map(|(_, act)| *act);
            if self.silent || self.closed {
                return false;
            }
            match act {
                None => self.output.extend_from_slice(good.as_bytes()),
                Some(Act::Say(text)) => self.output.extend_from_slice(text.as_bytes()),
                Some(Act::Last(text)) => {
                    self.output.extend_from_slice(text.as_bytes());
                    self.closed = true;
                }
                Some(Act::Hang) => self.silent = true,
                Some(Act::Close) => self.closed = true,
                Some(Act::Trickle) => {
                    self.output.extend_from_slice(&[b'2'; 3]);
                    self.output.extend_from_slice(&[b'x'; 100]);
                    (self.trickle, self.silent) = (true, true);
                }
                Some(Act::Endless) => {
                    self.output.extend_from_slice("250-and more\r\n".repeat(30_000).as_bytes());
                    self.silent = true;
                }
            }
            match act {
                None => true,
                Some(Act::Say(text) | Act::Last(text)) => {
                    text.starts_with(&good[..1]) && matches!(text.as_bytes().get(3), Some(b' ' | b'-' | b'\r'))
                }
                Some(_) => false,
            }
        }

        fn take(&mut self, bytes: &[u8]) {
            self.writes.push(String::from_utf8_lossy(bytes).into_owned());
            self.input.extend_from_slice(bytes);
            while self.one() {}
        }

        fn one(&mut self) -> bool {
            let end = match self.mode {
                Mode::Commands => self.input.windows(2).position(|two| two == b"\r\n").map(|at| at + 2),
                Mode::Data if self.input.starts_with(b".\r\n") => Some(3),
                Mode::Data => self.input.windows(5).position(|five| five == b"\r\n.\r\n").map(|at| at + 5),
                Mode::Chunk(octets) => (self.input.len() >= octets).then_some(octets),
            };
            let Some(end) = end else { return false };
            let taken: Vec<u8> = self.input.drain(..end).collect();
            match std::mem::replace(&mut self.mode, Mode::Commands) {
                Mode::Commands => self.command(std::str::from_utf8(&taken).unwrap().trim_end()),
                Mode::Data => {
                    let text = &taken[..taken.len() - 3];
                    let lines = text.split_inclusive(|&byte| byte == b'\n');
                    self.end("dot", lines.flat_map(|line| line.strip_prefix(b".").unwrap_or(line)).copied().collect());
                }
                Mode::Chunk(_) => self.end("BDAT", taken),
            }
            true
        }

        fn end(&mut self, stage: &str, content: Vec<u8>) {
            let recipients = std::mem::take(&mut self.recipients);
            self.mail = false;
            if recipients.is_empty() {
                self.answer("nobody", "554 5.5.1 no valid recipients\r\n");
            } else if self.answer(stage, "250 2.0.0 taken\r\n") {
                self.delivered.push((recipients, content));
            }
        }

        fn command(&mut self, line: &str) {
            match line.split(' ').next().unwrap() {
                "EHLO" => {
                    let keywords = self.offers.replace('\n', "\r\n250-");
                    let stage = if self.counts.contains_key("EHLO") { "EHLO2" } else { "EHLO" };
                    self.answer(stage, &format!("250-mx.example.net\r\n250-{keywords}\r\n250 HELP\r\n"));
                }
                "HELO" => drop(self.answer("HELO", "250 mx.example.net\r\n")),
                "STARTTLS" => drop(self.answer("STARTTLS", "220 2.0.0 go ahead\r\n")),
                "AUTH" => drop(self.answer("AUTH", "235 2.7.0 welcome\r\n")),
                "MAIL" => self.mail = self.answer("MAIL", "250 2.1.0 ok\r\n"),
                "RCPT" if !self.mail => drop(self.answer("early RCPT", "503 5.5.1 MAIL first\r\n")),
                "RCPT" => {
                    if self.answer("RCPT", "250 2.1.5 ok\r\n") {
                        self.recipients.push(line.to_owned());
                    }
                }
                "DATA" if self.recipients.is_empty() => {
                    if !self.answer("DATA for nobody", "503 5.5.1 RCPT first\r\n") {
                        self.mode = Mode::Data;
                    }
                }
                "DATA" => {
                    if self.answer("DATA", "354 go ahead\r\n") {
                        self.mode = Mode::Data;
                    }
                }
                "BDAT" => {
                    let octets = line.split(' ').nth(1).unwrap();
                    self.mode = Mode::Chunk(octets.parse().unwrap());
                }
                "RSET" => {
                    (self.mail, self.recipients) = (false, Vec::new());
                    self.answer("RSET", "250 2.0.0 ok\r\n");
                }
                "QUIT" => drop(self.answer("QUIT", "221 2.0.0 bye\r\n")),
                _ => drop(self.answer("unknown", "500 5.5.2 what?\r\n")),
            }
        }

        /// Gives the client what there is, or lets the time go by.
        fn give(&mut self, session: &mut Session, until: Instant) {
            assert!(until >= self.now, "a wait that is over before it begins");
            if self.trickle && !self.output.is_empty() {
                self.now += Duration::from_secs(10);
                if self.now > until {
                    session.expired();
                } else {
                    session.unread().extend_from_slice(&[self.output.remove(0)]);
                }
            } else if !self.output.is_empty() {
                session.unread().extend_from_slice(&std::mem::take(&mut self.output));
            } else if self.closed {
                session.closed("it closed the connection");
            } else {
                self.now = until;
                session.expired();
            }
        }
    }

    fn terms() -> Terms {
        Terms {
            helo: "mail.contoso.com".into(),
            starttls: StartTls::IfOffered,
            extended: false,
            login: None,
            own_name: Some("mail.contoso.com".into()),
        }
    }

    fn open(server: &mut Server, terms: Terms) -> Session {
        let mut session = Session::new(terms);
        for _ in 0..10_000 {
            match session.step(server.now) {
                Step::Send(bytes, _) => {
                    server.take(&bytes);
                    session.sent();
                }
                Step::Receive { until } => server.give(&mut session, until),
                Step::StartTls => session.secured(),
                Step::Done => return session,
            }
        }
        panic!("the session neither opens nor fails");
    }

    fn send(server: &mut Server, session: &mut Session, mail: Mail<'_>, body: &[u8]) -> Vec<Settled> {
        let recipients = mail.recipients.len();
        let mut delivery = Delivery::new(session, mail);
        for _ in 0..100_000 {
            match delivery.step(server.now) {
                Step::Send(commands, payload) => {
                    let mut bytes = commands.to_vec();
                    match payload {
                        None => {}
                        Some(Payload::Chunk { add_crlf }) => {
                            bytes.extend_from_slice(PREFIX);
                            bytes.extend_from_slice(body);
                            bytes.extend_from_slice(if add_crlf { b"\r\n" } else { b"" });
                        }
                        Some(Payload::Stuffed) => bytes.extend(stuffed(&[PREFIX, body])),
                    }
                    server.take(&bytes);
                    delivery.sent();
                }
                Step::Receive { until } => server.give(delivery.session(), until),
                Step::StartTls => panic!("TLS in the middle of a message"),
                Step::Done => {
                    let mut settled = delivery.into_settled();
                    settled.sort_by_key(|(index, _)| *index);
                    assert_eq!(settled.len(), recipients, "one answer for each");
                    return settled;
                }
            }
        }
        panic!("the message never ends");
    }

    fn stuffed(pieces: &[&[u8]]) -> Vec<u8> {
        let mut slices = Vec::new();
        let mut stuffer = Stuffer::default();
        for piece in pieces {
            stuffer.cut(piece, &mut slices);
        }
        let mut bytes = slices.iter().flat_map(|slice| slice.iter().copied()).collect::<Vec<u8>>();
        bytes.extend_from_slice(stuffer.end());
        bytes
    }

    fn envelope() -> Envelope {
        Envelope {
            sender: Some(Address::parse("anna@contoso.com").unwrap()),
            recipients: Vec::new(),
            ret: None,
            envid: None,
            body: BodyType::SevenBit,
            smtputf8: false,
            requiretls: false,
        }
    }

    fn recipient(address: &str) -> Recipient {
        Recipient { address: Address::parse(address).unwrap(), notify: Notify::Unsaid, orcpt: None }
    }

    fn people(count: usize) -> Vec<Recipient> {
        (1..=count).map(|number| recipient(&format!("r{number}@example.net"))).collect()
    }

    fn mail<'m>(envelope: &'m Envelope, people: &'m [Recipient], body: &[u8]) -> Mail<'m> {
        Mail {
            envelope,
            recipients: (0..).zip(people).collect(),
            size: (PREFIX.len() + body.len()) as u64,
            ends_in_crlf: body.ends_with(b"\r\n"),
            eight_bit: !body.is_ascii(),
            xoorg: None,
            utf8_header: false,
            max_recipients: 1000,
            chunking: true,
        }
    }

    /// The three ways an envelope and its message are sent.
    const WAYS: [(&str, &str); 3] = [("BDAT", FULL), ("DATA", "PIPELINING\n8BITMIME"), ("one by one", "8BITMIME")];

    fn words(result: &Result<Reply, Fault>) -> String {
        let fault = match result {
            Ok(reply) => return format!("delivered {}", reply.code),
            Err(fault) => fault,
        };
        let what = match fault {
            Fault::Answered { command, reply } => format!("{command} {}", reply.code),
            Fault::Broken(_) => "broken".into(),
            Fault::Ambiguous(_) => "ambiguous".into(),
            Fault::Protocol { .. } => "protocol".into(),
            Fault::TlsNotOffered | Fault::TlsRefused(_) => "no TLS".into(),
            Fault::Login(_) => "no login".into(),
            Fault::Unsupported(extension) => format!("no {extension}"),
            Fault::TooBig { limit, size } => format!("{size} > {limit}"),
            Fault::NoChunking(_) => "no BDAT".into(),
            Fault::OwnName(_) => "ourselves".into(),
        };
        match fault.remedy() {
            Remedy::None => what,
            Remedy::NextHost => format!("{what}, next host"),
            Remedy::EqualHost => format!("{what}, equal host"),
            Remedy::WithoutChunking => format!("{what}, again with DATA"),
        }
    }

    fn all_words(settled: &[Settled]) -> String {
        settled.iter().map(|(_, result)| words(result)).collect::<Vec<_>>().join("; ")
    }

    #[test]
    fn a_message_takes_one_write_where_the_server_can_and_its_turn_where_it_cannot() {
        let envelope = envelope();
        let people = people(2);
        let body = b"Subject: x\r\n\r\n.dot\r\n";
        let rcpts = "RCPT TO:<r1@example.net>\r\nRCPT TO:<r2@example.net>\r\n";
        let expected: [Vec<String>; 3] = [
            vec![format!(
                "MAIL FROM:<anna@contoso.com> SIZE=37\r\n{rcpts}BDAT 37 LAST\r\nReceived: by us\r\nSubject: x\r\n\r\n.dot\r\n"
            )],
            vec![
                format!("MAIL FROM:<anna@contoso.com>\r\n{rcpts}DATA\r\n"),
                "Received: by us\r\nSubject: x\r\n\r\n..dot\r\n.\r\n".into(),
            ],
            vec![
                "MAIL FROM:<anna@contoso.com>\r\n".into(),
                "RCPT TO:<r1@example.net>\r\n".into(),
                "RCPT TO:<r2@example.net>\r\n".into(),
                "DATA\r\n".into(),
                "Received: by us\r\nSubject: x\r\n\r\n..dot\r\n.\r\n".into(),
            ],
        ];
        for ((way, offers), expected) in WAYS.into_iter().zip(expected) {
            let mut server = Server::new(offers, &[]);
            let mut session = open(&mut server, terms());
            for round in 1..=2 {
                server.writes.clear();
                let settled = send(&mut server, &mut session, mail(&envelope, &people, body), body);
                assert_eq!(all_words(&settled), "delivered 250; delivered 250", "{way}");
                assert_eq!(server.writes, expected, "{way}, message {round} of the connection");
                assert!(session.is_usable(), "{way}");
            }
            assert_eq!(server.delivered[0].1, [PREFIX, body].concat(), "{way}");
        }
    }

    #[test]
    fn a_long_message_waits_until_somebody_wants_it() {
        let envelope = envelope();
        let people = people(1);
        let body = b"x".repeat(INLINE_LIMIT as usize);
        for (acts, writes, expected) in
            [(&[][..], 2, "delivered 250"), (&[("RCPT", Act::Say("550 5.1.1 no\r\n"))][..], 1, "RCPT 550")]
        {
            let mut server = Server::new(FULL, acts);
            let mut session = open(&mut server, terms());
            server.writes.clear();
            let settled = send(&mut server, &mut session, mail(&envelope, &people, &body), &body);
            assert_eq!((all_words(&settled).as_str(), server.writes.len()), (expected, writes));
        }
    }

    /// Long local parts and dots go out in the form of the standard. An ORCPT that grew too long by its encoding does not
    /// cost the recipient. RFC 3461 section 4.2.
    #[test]
    fn odd_recipients_are_said_as_the_standard_writes_them() {
        let long = format!("SRS0={}@example.net", "==".repeat(115));
        let to = |to: &str, address: &str| Recipient {
            orcpt: Some(OriginalRecipient { kind: "rfc822".into(), address: address.into() }),
            ..recipient(to)
        };
        let people = [to("a..b@example.net", "a..b"), to(&long, &long), to(".a@example.net", &"+".repeat(165))];
        let mut server = Server::new(FULL, &[]);
        let mut session = open(&mut server, terms());
        server.writes.clear();
        let mut envelope = envelope();
        envelope.sender = Address::parse("anna.@contoso.com").ok();
        send(&mut server, &mut session, mail(&envelope, &people, b"x\r\n"), b"x\r\n");
        let lines: Vec<&str> = server.writes[0].split("\r\n").take(4).collect();
        assert_eq!(
            lines,
            [
                "MAIL FROM:<\"anna.\"@contoso.com> SIZE=20",
                "RCPT TO:<\"a..b\"@example.net> ORCPT=rfc822;a..b",
                &format!("RCPT TO:<{long}>"),
                "RCPT TO:<\".a\"@example.net>",
            ]
        );
    }

    /// C185, C186, RFC 3461 and 6533: what was asked is asked of the next hop, in words it can read.
    #[test]
    fn parameters_are_passed_on_where_they_are_offered() {
        let mut envelope = envelope();
        envelope.ret = Some(Ret::Headers);
        envelope.envid = Some("a+b=c d".into());
        envelope.body = BodyType::EightBit;
        let to = |notify, kind: &str, address: &str| Recipient {
            notify,
            orcpt: Some(OriginalRecipient { kind: kind.into(), address: address.into() }),
            ..recipient("r1@example.net")
        };
        let people = [
            to(Notify::Never, "rfc822", "a+b@example.net"),
            to(Notify::On { success: true, failure: false, delay: true }, "utf-8", "jörg+x@example.net"),
        ];
        let cases = [
            (
                FULL,
                "MAIL FROM:<anna@contoso.com> SIZE=20 BODY=8BITMIME RET=HDRS ENVID=a+2Bb+3Dc+20d\r\n\
                 RCPT TO:<r1@example.net> NOTIFY=NEVER ORCPT=rfc822;a+2Bb@example.net\r\n\
                 RCPT TO:<r1@example.net> NOTIFY=SUCCESS,DELAY ORCPT=utf-8;j\\x{F6}rg\\x{2B}x@example.net\r\n\
                 BDAT 20 LAST\r\nReceived: by us\r\nx\r\n",
            ),
            (
                "PIPELINING",
                "MAIL FROM:<anna@contoso.com>\r\nRCPT TO:<r1@example.net>\r\nRCPT TO:<r1@example.net>\r\nDATA\r\n",
            ),
        ];
        for (offers, first_write) in cases {
            let mut server = Server::new(offers, &[]);
            let mut session = open(&mut server, terms());
            server.writes.clear();
            send(&mut server, &mut session, mail(&envelope, &people, b"x\r\n"), b"x\r\n");
            assert_eq!(server.writes[0], first_write, "{offers}");
        }
        let mut null = envelope.clone();
        (null.sender, null.envid, null.ret) = (None, None, None);
        let mut server = Server::new("DSN", &[]);
        let mut session = open(&mut server, terms());
        server.writes.clear();
        send(&mut server, &mut session, mail(&null, &people, b"x\r\n"), b"x\r\n");
        assert_eq!(server.writes[0], "MAIL FROM:<>\r\n");
    }

    /// XOORG: our organization is named to the other premises, in TLS, and to nobody else.
    #[test]
    fn the_organization_is_named_in_tls_where_it_is_asked_for() {
        let (envelope, people) = (envelope(), people(1));
        let organization = Domain::parse("contoso.com").unwrap();
        for (offers, starttls, xoorg, expected) in [
            ("STARTTLS\nXOORG", StartTls::Demanded, Some(&organization), " XOORG=contoso.com"),
            ("STARTTLS\nXOORG", StartTls::Demanded, None, ""),
            ("STARTTLS", StartTls::Demanded, Some(&organization), ""),
            ("STARTTLS\nXOORG", StartTls::Never, Some(&organization), ""),
        ] {
            let mut server = Server::new(offers, &[]);
            let mut session = open(&mut server, Terms { starttls, ..terms() });
            for null in [false, true] {
                let envelope = Envelope { sender: envelope.sender.clone().filter(|_| !null), ..envelope.clone() };
                server.writes.clear();
                send(&mut server, &mut session, Mail { xoorg, ..mail(&envelope, &people, b"x\r\n") }, b"x\r\n");
                let sender = if null { "" } else { "anna@contoso.com" };
                assert_eq!(server.writes[0], format!("MAIL FROM:<{sender}>{expected}\r\n"), "{offers} {starttls:?}");
            }
        }
    }

    /// C161, C162, C167, C212, C275: what a server does not offer is not asked of it.
    #[test]
    fn a_message_is_not_offered_to_a_server_that_cannot_take_it() {
        let plain = envelope();
        let declared = Envelope { body: BodyType::EightBit, ..envelope() };
        let requiretls = Envelope { requiretls: true, ..envelope() };
        let utf8_sender = Envelope { sender: Some(Address::parse("jörg@contoso.com").unwrap()), ..envelope() };
        let ascii = [recipient("r1@example.net")];
        let mixed = [recipient("r1@example.net"), recipient("jörg@example.net")];
        let long = [b"x".repeat(100), b"\r\n".to_vec()].concat();
        let text = b"text\r\n".as_slice();
        let eight = "é\r\n".as_bytes();
        #[rustfmt::skip]
        let cases: [(&str, &Envelope, &[Recipient], &[u8], &str); 13] = [
            ("PIPELINING", &plain, &ascii, eight, "no 8BITMIME, equal host"),
            ("8BITMIME", &plain, &ascii, eight, "delivered 250"),
            ("PIPELINING", &declared, &ascii, text, "delivered 250"),
            ("SIZE 117", &plain, &ascii, &long, "119 > 117, next host"),
            ("SIZE 119", &plain, &ascii, &long, "delivered 250"),
            ("SIZE", &plain, &ascii, &long, "delivered 250"),
            ("SIZE 0", &plain, &ascii, &long, "delivered 250"),
            ("SIZE junk", &plain, &ascii, &long, "delivered 250"),
            ("PIPELINING", &plain, &mixed, text, "delivered 250; no SMTPUTF8, equal host"),
            ("SMTPUTF8", &plain, &mixed, text, "delivered 250; delivered 250"),
            ("8BITMIME", &utf8_sender, &ascii, text, "no SMTPUTF8, equal host"),
            ("STARTTLS\nREQUIRETLS", &requiretls, &ascii, text, "delivered 250"),
            ("REQUIRETLS", &requiretls, &ascii, text, "no REQUIRETLS, equal host"),
        ];
        for (offers, envelope, people, body, expected) in cases {
            let mut server = Server::new(offers, &[]);
            let mut session = open(&mut server, terms());
            server.writes.clear();
            let settled = send(&mut server, &mut session, mail(envelope, people, body), body);
            assert_eq!(all_words(&settled), expected, "{offers}");
            assert!(session.is_usable(), "the connection is as good as before: {offers}");
            let said = server.writes.concat();
            assert_eq!(said.contains(" SMTPUTF8\r\n"), people.len() == 2 && offers == "SMTPUTF8", "{said}");
            assert_eq!(said.contains(" REQUIRETLS\r\n"), expected == "delivered 250" && envelope.requiretls, "{said}");
        }
    }

    /// Rows C266 to C273 of the outbound table, and C093, by each way of sending.
    #[test]
    fn each_reply_to_the_envelope_and_the_message_has_one_meaning() {
        use Act::{Close, Hang, Last, Say};
        let (r450, r550, r552) = (Say("450 4.2.0 later\r\n"), Say("550 5.1.1 no\r\n"), Say("552 5.2.2 full\r\n"));
        let too_many = Say("452 4.5.3 too many recipients\r\n");
        let old = Say("552 too many recipients\r\n");
        let full = Say("452 4.2.2 mailbox full\r\n");
        #[rustfmt::skip]
        let cases: &[(&str, &[(&str, Act)], &str)] = &[
            ("all is well",       &[], "delivered 250; delivered 250; delivered 250"),
            ("C263 any 2yz",      &[("RCPT", Say("251 will forward\r\n")), ("MAIL", Say("299 fine\r\n"))], "delivered 250; delivered 250; delivered 250"),
            ("C266 MAIL 4xx",     &[("MAIL", r450)], "MAIL 450; MAIL 450; MAIL 450"),
            ("C266 MAIL 5xx",     &[("MAIL", r550)], "MAIL 550; MAIL 550; MAIL 550"),
            ("C267 one is later", &[("RCPT 2", r450)], "delivered 250; RCPT 450; delivered 250"),
            ("C267 one is not",   &[("RCPT 1", r550)], "RCPT 550; delivered 250; delivered 250"),
            ("C267 no room left", &[("RCPT 3", r552)], "delivered 250; delivered 250; RCPT 552"),
            ("F-033",             &[("RCPT 2", r450), ("RCPT 3", r550)], "delivered 250; RCPT 450; RCPT 550"),
            ("C268 none is left", &[("RCPT", r550)], "RCPT 550; RCPT 550; RCPT 550"),
            ("C272 421 at MAIL",  &[("MAIL", Last("421 4.3.2 bye\r\n"))], "MAIL 421, next host; MAIL 421, next host; MAIL 421, next host"),
            ("C272 421 at RCPT",  &[("RCPT 1", r550), ("RCPT 2", Last("421 bye\r\n"))], "RCPT 550; RCPT 421, next host; RCPT 421, next host"),
            ("C273 enough",       &[("RCPT 2", too_many), ("RCPT 3", too_many)], "delivered 250; delivered 250; delivered 250"),
            ("C273 as of old",    &[("RCPT 3", old)], "delivered 250; delivered 250; delivered 250"),
            ("C273 a mailbox",    &[("RCPT 3", full)], "delivered 250; delivered 250; RCPT 452"),
            ("C273 the first",    &[("RCPT", too_many)], "RCPT 452; RCPT 452; RCPT 452"),
            ("C267 552 the first",&[("RCPT", old)], "RCPT 452; RCPT 452; RCPT 452"),
        ];
        #[rustfmt::skip]
        let ends: &[(&str, Act, &str)] = &[
            ("C271 4xx",      r450, "END 450"),
            ("C271 5xx",      r550, "END 550"),
            ("C271 nothing",  Hang, "ambiguous"),
            ("C271 close",    Close, "ambiguous"),
            ("C271 421",      Last("421 4.3.2 bye\r\n"), "END 421"),
            ("F-032",         Last("250 2.0.0 ok\r\n"), "delivered 250"),
            ("closes nicely", Last("250 2.0.0 ok\r\n421 bye\r\n"), "delivered 250"),
            ("354",           Say("354 more\r\n"), "protocol"),
            ("junk",          Say("220-\r\n250 x\r\n"), "protocol"),
            ("one too many",  Say("250 ok\r\n550 no\r\n"), "protocol"),
        ];
        let envelope = envelope();
        let people = people(3);
        let body = b"hello\r\n";
        for (way, offers) in WAYS {
            for (id, acts, expected) in cases {
                let mut server = Server::new(offers, acts);
                let mut session = open(&mut server, terms());
                let settled = send(&mut server, &mut session, mail(&envelope, &people, body), body);
                assert_eq!(all_words(&settled), *expected, "{id}, {way}");
                let taken: usize = server.delivered.iter().map(|(recipients, _)| recipients.len()).sum();
                assert_eq!(taken, expected.matches("delivered").count(), "{id}, {way}: who was told so has it, once");
            }
            for (id, act, expected) in ends {
                let stage = if way == "BDAT" { "BDAT" } else { "dot" };
                let mut server = Server::new(offers, &[(stage, *act)]);
                let mut session = open(&mut server, terms());
                let settled = send(&mut server, &mut session, mail(&envelope, &people[..1], body), body);
                assert_eq!(all_words(&settled).replace(END_OF_DATA, "END"), *expected, "{id}, {way}");
            }
        }
        #[rustfmt::skip]
        let rest: &[(&str, &[(&str, Act)], &str, &str)] = &[
            ("C269 4xx", &[("DATA", r450)], "DATA 450", "dirty"),
            ("C269 5xx", &[("DATA", r550)], "DATA 550", "dirty"),
            ("C269 2xx", &[("DATA", Say("250 ok\r\n"))], "protocol, next host", "closed"),
            ("C093",     &[("RCPT", r550), ("DATA for nobody", Say("354 go\r\n"))], "RCPT 550", "dirty"),
            ("C093 250", &[("RCPT", r550), ("DATA for nobody", Say("354 go\r\n")), ("nobody", Say("250 ok\r\n"))], "RCPT 550", "dirty"),
        ];
        for (id, acts, expected, after) in rest {
            let mut server = Server::new("PIPELINING", acts);
            let mut session = open(&mut server, terms());
            let settled = send(&mut server, &mut session, mail(&envelope, &people[..1], body), body);
            assert_eq!(all_words(&settled), *expected, "{id}");
            assert_eq!(session.is_usable(), *after == "dirty", "{id}");
            if session.is_usable() {
                server.acts.clear();
                server.writes.clear();
                let settled = send(&mut server, &mut session, mail(&envelope, &people[..1], body), body);
                assert_eq!(all_words(&settled), "delivered 250", "{id}, the next message");
                assert_eq!(server.writes[0], "RSET\r\n", "{id}: C274");
            }
        }
    }

    #[test]
    fn c267_552_is_for_now_once_a_hundred_were_taken() {
        let envelope = envelope();
        let people = people(120);
        let acts: Vec<(&'static str, Act)> = (101..=120)
            .map(|number| (&*Box::leak(format!("RCPT {number}").into_boxed_str()), Act::Say("552 enough\r\n")))
            .collect();
        let mut server = Server::new("PIPELINING", &acts);
        let mut session = open(&mut server, terms());
        let settled = send(&mut server, &mut session, mail(&envelope, &people, b"x\r\n"), b"x\r\n");
        assert!(settled.iter().all(|(_, result)| result.is_ok()), "{}", all_words(&settled));
        let counts: Vec<_> = server.delivered.iter().map(|(recipients, _)| recipients.len()).collect();
        assert_eq!(counts, [100, 20]);
    }

    #[test]
    fn c273_recipients_are_split_as_the_connector_and_the_server_want_it() {
        let envelope = envelope();
        let people = people(5);
        for (offers, most, expected) in [
            ("PIPELINING", 2, vec![2, 2, 1]),
            ("CHUNKING\nPIPELINING\nLIMITS RCPTMAX=3", 1000, vec![3, 2]),
            ("X", 5, vec![5]),
            ("X", 0, vec![1, 1, 1, 1, 1]),
        ] {
            let mut server = Server::new(offers, &[]);
            let mut session = open(&mut server, terms());
            let mail = Mail { max_recipients: most, ..mail(&envelope, &people, b"x\r\n") };
            let settled = send(&mut server, &mut session, mail, b"x\r\n");
            assert!(settled.iter().all(|(_, result)| result.is_ok()));
            let counts: Vec<_> = server.delivered.iter().map(|(recipients, _)| recipients.len()).collect();
            assert_eq!(counts, expected, "{offers}");
        }
    }

    #[test]
    fn a_server_that_fails_on_bdat_gets_data_on_another_connection() {
        let envelope = envelope();
        let people = people(1);
        for code in ["500", "502", "503", "555"] {
            let answer: &'static str = Box::leak(format!("{code} 5.5.1 what is BDAT?\r\n").into_boxed_str());
            let mut server = Server::new(FULL, &[("BDAT", Act::Say(answer))]);
            let mut session = open(&mut server, terms());
            let settled = send(&mut server, &mut session, mail(&envelope, &people, b"x\r\n"), b"x\r\n");
            assert_eq!(all_words(&settled), "no BDAT, again with DATA", "{code}");
            assert!(!session.is_usable(), "what it made of the chunk is not known");
        }
    }

    /// Some firewalls close at BDAT, in whichever packet it comes. What was closed before BDAT was sent says nothing of it.
    #[test]
    fn a_session_that_ends_at_bdat_is_told_from_others() {
        use Act::{Close, Hang, Last, Say};
        let envelope = envelope();
        let people = people(1);
        let small = b"x\r\n".to_vec();
        let long = b"x".repeat(INLINE_LIMIT as usize);
        for (offers, body, acts, expected) in [
            (FULL, &small, [("BDAT", Close)], true),
            (FULL, &small, [("BDAT", Hang)], true),
            (FULL, &long, [("BDAT", Close)], true),
            // In one packet with it.
            (FULL, &small, [("MAIL", Close)], true),
            (FULL, &long, [("MAIL", Close)], false),
            (FULL, &small, [("BDAT", Last("421 4.3.2 bye\r\n"))], false),
            (FULL, &small, [("BDAT", Say("550 5.7.1 spam\r\n"))], false),
            ("PIPELINING", &small, [("dot", Close)], false),
            (FULL, &small, [("NOOP", Close)], false),
        ] {
            let mut server = Server::new(offers, &acts);
            let mut session = open(&mut server, terms());
            let mail = mail(&envelope, &people, body);
            let mut delivery = Delivery::new(&mut session, mail);
            loop {
                match delivery.step(server.now) {
                    Step::Send(commands, payload) => {
                        let mut bytes = commands.to_vec();
                        match payload {
                            None => {}
                            Some(Payload::Chunk { .. }) => bytes.extend([PREFIX, body, b"\r\n"].concat()),
                            Some(Payload::Stuffed) => bytes.extend(stuffed(&[PREFIX, body])),
                        }
                        server.take(&bytes);
                        delivery.sent();
                    }
                    Step::Receive { until } => server.give(delivery.session(), until),
                    Step::StartTls => panic!("TLS in the middle of a message"),
                    Step::Done => break,
                }
            }
            assert_eq!(delivery.has_lost_chunk(), expected, "{acts:?}, {} octets", body.len());
        }
    }

    #[test]
    fn a_body_without_a_last_line_end_gets_one() {
        let envelope = envelope();
        let people = people(1);
        for (way, offers) in WAYS {
            let mut server = Server::new(offers, &[]);
            let mut session = open(&mut server, terms());
            let settled = send(&mut server, &mut session, mail(&envelope, &people, b"no end"), b"no end");
            assert_eq!(all_words(&settled), "delivered 250");
            assert_eq!(server.delivered[0].1, b"Received: by us\r\nno end\r\n", "{way}");
        }
    }

    /// C260 to C264, S-031 to S-034: how a session opens, or why it does not.
    #[test]
    fn a_session_opens_or_says_why_not() {
        use Act::{Close, Endless, Last, Say};
        let (demanded, offered, never) = (StartTls::Demanded, StartTls::IfOffered, StartTls::Never);
        let plain = "PIPELINING\n8BITMIME";
        #[rustfmt::skip]
        let cases: &[(&str, StartTls, &str, &[(&str, Act)], &str)] = &[
            ("C260 several lines",  never, plain, &[("220", Say("220-hello\r\n220-dear\r\n220 client\r\n"))], "clear"),
            ("C260 no text",        never, plain, &[("220", Say("220\r\n"))], "clear"),
            ("C260 554",            never, plain, &[("220", Last("554 no service\r\n"))], "the connection 554"),
            ("C260 421",            never, plain, &[("220", Last("421 busy\r\n"))], "the connection 421, next host"),
            ("C261 HELO",           never, plain, &[("EHLO", Say("502 what?\r\n"))], "clear, nothing offered"),
            ("C261 HELO in TLS",    demanded, plain, &[("EHLO", Say("502 what?\r\n"))], "EHLO 502"),
            ("HELO for 500",        never, plain, &[("EHLO", Say("500 what?\r\n"))], "clear, nothing offered"),
            ("HELO for 501",        offered, FULL, &[("EHLO", Say("501 5.5.2 EHLO?\r\n"))], "clear, nothing offered"),
            ("HELO for 550",        never, plain, &[("EHLO", Say("550 not you\r\n"))], "clear, nothing offered"),
            ("HELO for 554",        never, plain, &[("EHLO", Say("554 5.7.1 no\r\n"))], "clear, nothing offered"),
            ("HELO is said once",   never, plain, &[("EHLO", Say("550 no\r\n")), ("HELO", Say("550 not you\r\n"))], "HELO 550"),
            ("HELO, then 421",      never, plain, &[("EHLO", Say("550 no\r\n")), ("HELO", Last("421 bye\r\n"))], "HELO 421, next host"),
            ("EHLO 421",            never, plain, &[("EHLO", Last("421 busy\r\n"))], "EHLO 421, next host"),
            ("EHLO 450",            never, plain, &[("EHLO", Say("450 4.7.1 later\r\n"))], "EHLO 450"),
            ("EHLO 550, TLS wanted", demanded, plain, &[("EHLO", Say("550 not you\r\n"))], "EHLO 550"),
            ("our own name",        never, plain, &[("EHLO", Say("250-mail.contoso.com greets you\r\n250 SIZE\r\n"))], "ourselves, next host"),
            ("our own name, large", never, plain, &[("EHLO", Say("250 MAIL.Contoso.COM.\r\n"))], "ourselves, next host"),
            ("our own name, HELO",  never, plain, &[("EHLO", Say("502 no\r\n")), ("HELO", Say("250 mail.contoso.com\r\n"))], "ourselves, next host"),
            ("our own name, TLS",   demanded, FULL, &[("EHLO2", Say("250 mail.contoso.com\r\n"))], "ourselves, next host"),
            ("greets as we do",     never, plain, &[("220", Say("220 mail.contoso.com ESMTP\r\n"))], "clear"),
            ("greets us by name",   never, plain, &[("EHLO", Say("250-mx Hello mail.contoso.com\r\n250 SIZE\r\n"))], "clear"),
            ("C262 endless",        never, plain, &[("EHLO", Endless)], "protocol, next host"),
            ("C264 no code",        never, plain, &[("220", Say("hello\r\n"))], "protocol, next host"),
            ("C264 1yz",            never, plain, &[("EHLO", Say("150 wait\r\n"))], "protocol, next host"),
            ("C264 6yz",            never, plain, &[("EHLO", Say("650 what\r\n"))], "protocol, next host"),
            ("C264 3yz",            never, plain, &[("EHLO", Say("354 go\r\n"))], "protocol, next host"),
            ("C264 empty line",     never, plain, &[("EHLO", Say("\r\n"))], "protocol, next host"),
            ("C264 another code",   never, plain, &[("EHLO", Say("250-x\r\n550 y\r\n"))], "protocol, next host"),
            ("C264 half and close", never, plain, &[("EHLO", Last("250-x\r\n"))], "broken, next host"),
            ("two greetings",       never, plain, &[("220", Say("220 a\r\n220 b\r\n"))], "protocol, next host"),
            ("S-032 not offered",   demanded, plain, &[], "no TLS, next host"),
            ("S-032 mangled",       demanded, "XXXXXXXX\nPIPELINING", &[], "no TLS, next host"),
            ("S-032 454",           demanded, FULL, &[("STARTTLS", Say("454 later\r\n"))], "no TLS, next host"),
            ("S-032 502",           demanded, FULL, &[("STARTTLS", Say("502 what?\r\n"))], "no TLS, next host"),
            ("S-032 close",         demanded, FULL, &[("STARTTLS", Close)], "broken, next host"),
            ("opportunistic 454",   offered, FULL, &[("STARTTLS", Say("454 later\r\n"))], "clear"),
            ("opportunistic none",  offered, plain, &[], "clear"),
            ("S-031",               demanded, FULL, &[("STARTTLS", Say("220 go\r\n250 evil\r\n"))], "protocol, next host"),
            ("S-031 half a line",   offered, FULL, &[("STARTTLS", Say("220 go\r\n25"))], "protocol, next host"),
            ("TLS",                 demanded, FULL, &[], "TLS"),
            ("TLS, never said",     never, FULL, &[], "clear"),
            ("S-034 less in TLS",   demanded, FULL, &[("EHLO2", Say("250 mx\r\n"))], "TLS, nothing offered"),
            ("EHLO in TLS fails",   demanded, FULL, &[("EHLO2", Say("550 no\r\n"))], "TLS, nothing offered"),
        ];
        for (id, starttls, offers, acts, expected) in cases {
            let mut server = Server::new(offers, acts);
            let extended = *starttls == StartTls::Demanded;
            let session = open(&mut server, Terms { starttls: *starttls, extended, ..terms() });
            let seen = match session.outcome() {
                Err(fault) => words(&Err(fault)),
                Ok(()) => {
                    let offered = if *session.offered() == Offered::default() { ", nothing offered" } else { "" };
                    format!("{}{offered}", if session.secure { "TLS" } else { "clear" })
                }
            };
            assert_eq!(seen, *expected, "{id}");
            let said = server.writes.concat();
            assert!(!said.contains("MAIL"), "{id}");
            if let ("S-031" | "S-032", _) = id.split_once(' ').unwrap_or((id, "")) {
                assert!(said.ends_with("STARTTLS\r\n") || !said.contains("STARTTLS"), "{id}: not a word behind it");
            }
        }
    }

    #[test]
    fn a_password_is_said_in_tls_or_not_at_all() {
        let login = Some(Credentials { username: "relay".into(), password: "secret".into() });
        for (starttls, offers, act, expected) in [
            (StartTls::Demanded, FULL, None, "in"),
            (StartTls::Demanded, FULL, Some(Act::Say("535 5.7.8 no\r\n")), "AUTH 535"),
            (StartTls::Demanded, FULL, Some(Act::Say("334 more\r\n")), "protocol, next host"),
            (StartTls::Demanded, "STARTTLS\nAUTH GSSAPI", None, "no login, next host"),
            (StartTls::Demanded, "AUTH PLAIN", None, "no TLS, next host"),
            (StartTls::IfOffered, "AUTH PLAIN", None, "no login, next host"),
            (StartTls::Never, "AUTH PLAIN", None, "no login, next host"),
        ] {
            let acts: Vec<_> = act.map(|act| ("AUTH", act)).into_iter().collect();
            let mut server = Server::new(offers, &acts);
            let session = open(&mut server, Terms { starttls, login: login.clone(), ..terms() });
            let seen = session.outcome().map_or_else(|fault| words(&Err(fault)), |()| "in".to_owned());
            assert_eq!(seen, expected, "{starttls:?} {offers}");
            assert_eq!(server.writes.concat().contains("AUTH"), session.secure && offers.contains("PLAIN"), "{offers}");
        }
    }

    /// The matrix F-030: every stage, every way to fail, every way to send, in the clear and in TLS. A black hole ends
    /// each of them in the stages' own time.
    #[test]
    fn f030_every_fault_at_every_stage_has_one_outcome() {
        use Act::{Close, Endless, Hang, Last, Say, Trickle};
        let behaviours = [
            ("hang", Hang),
            ("close", Close),
            ("4xx", Say("450 4.2.0 later\r\n")),
            ("5xx", Say("550 5.7.1 no\r\n")),
            ("421", Last("421 4.3.2 bye\r\n")),
            ("garbage", Say("\x7f\x01HTTP/1.1 400\r\n")),
            ("overlong", Say(Box::leak(format!("25{}\r\n", "0".repeat(8_000)).into_boxed_str()))),
            ("endless", Endless),
            ("trickle", Trickle),
            ("wrong class", Say("354 go\r\n")),
            ("two replies", Say("250 ok\r\n250 ok\r\n")),
        ];
        let envelope = envelope();
        let body = b"Subject: x\r\n\r\nhello\r\n";
        let mut rows = 0;
        for secure in [false, true] {
            for (way, offers) in WAYS {
                let offers = if secure { format!("{offers}\nSTARTTLS") } else { offers.replace("\nSTARTTLS", "") };
                let last = if way == "BDAT" { "BDAT" } else { "dot" };
                let mut stages = vec!["220", "EHLO", "MAIL", "RCPT", last];
                stages.extend((way != "BDAT").then_some("DATA"));
                stages.extend(secure.then_some(["STARTTLS", "EHLO2"]).into_iter().flatten());
                for stage in stages {
                    for (name, act) in behaviours {
                        if (stage, name) == ("DATA", "wrong class") {
                            // That is what it should say; its wrong class is the 250 of "two replies".
                            continue;
                        }
                        rows += 1;
                        let row = format!("{way}, secure {secure}: {name} at {stage}");
                        let mut server = Server::new(&offers, &[(stage, act)]);
                        let began = server.now;
                        let starttls = if secure { StartTls::Demanded } else { StartTls::Never };
                        let mut session = open(&mut server, Terms { starttls, extended: secure, ..terms() });
                        let opening = matches!(stage, "220" | "EHLO" | "STARTTLS" | "EHLO2");
                        let seen = match session.outcome() {
                            Err(fault) => words(&Err(fault)),
                            Ok(()) => {
                                let people = people(1);
                                all_words(&send(&mut server, &mut session, mail(&envelope, &people, body), body))
                            }
                        };
                        let waited = server.now - began;
                        // A trickle may use up the waits for MAIL and RCPT as well.
                        let most = if name == "trickle" { 1200 } else { 600 };
                        assert!(waited <= Duration::from_secs(most), "{row}: {waited:?}");
                        // The whole message is out as soon as anything is, or after DATA.
                        let out = way == "BDAT" && !opening || stage == last;
                        let command = match stage {
                            "220" => "the connection",
                            "EHLO2" => "EHLO",
                            "BDAT" | "dot" => END_OF_DATA,
                            stage => stage,
                        };
                        let expected = match name {
                            "hang" | "close" | "trickle" if out => "ambiguous".to_owned(),
                            "hang" | "close" | "trickle" => "broken, next host".to_owned(),
                            "4xx" | "5xx" if stage == "STARTTLS" => "no TLS, next host".to_owned(),
                            // HELO does, where TLS is not still to come.
                            "5xx" if stage == "EHLO2" || stage == "EHLO" && !secure => "delivered 250".to_owned(),
                            "4xx" => format!("{command} 450"),
                            "5xx" => format!("{command} 550"),
                            "421" if stage == last => format!("{command} 421"),
                            "421" => format!("{command} 421, next host"),
                            _ if out => "protocol".to_owned(),
                            _ => "protocol, next host".to_owned(),
                        };
                        assert_eq!(seen, expected, "{row}");
                        // Whoever answers too much may have taken it all the same, and then has it twice one day.
                        let has_it = name == "two replies" && out || seen.starts_with("delivered");
                        assert!(server.delivered.is_empty() || has_it, "{row}");
                        assert!(!session.is_usable() || matches!(name, "4xx" | "5xx"), "{row}");
                    }
                }
            }
        }
        assert!(rows > 300, "{rows}");
    }

    #[test]
    fn c276_goodbye_takes_five_seconds_at_most() {
        for act in [Act::Hang, Act::Close, Act::Say("junk\r\n"), Act::Say("221 bye\r\n"), Act::Say("500 what?\r\n")] {
            let mut server = Server::new(FULL, &[("QUIT", act)]);
            let mut session = open(&mut server, terms());
            let began = server.now;
            session.quit();
            while let step = session.step(server.now)
                && step != Step::Done
            {
                match step {
                    Step::Send(bytes, _) => {
                        server.take(&bytes);
                        session.sent();
                    }
                    Step::Receive { until } => server.give(&mut session, until),
                    Step::StartTls | Step::Done => unreachable!("{step:?}"),
                }
            }
            assert!(server.now - began <= Duration::from_secs(5), "{act:?}");
        }
    }

    #[test]
    fn c272_a_kept_connection_that_ended_is_told_from_a_fault() {
        let envelope = envelope();
        let people = people(1);
        for (id, acts, dirty, stale) in [
            ("closed", &[("MAIL 2", Act::Close)][..], false, true),
            ("421", &[("MAIL 2", Act::Last("421 idle\r\n"))][..], false, true),
            ("RSET", &[("RCPT 1", Act::Say("550 no\r\n")), ("RSET", Act::Close)][..], true, true),
            ("RSET 421", &[("RCPT 1", Act::Say("550 no\r\n")), ("RSET", Act::Last("421 bye\r\n"))][..], true, true),
            ("after MAIL", &[("RCPT 2", Act::Close)][..], false, false),
            ("hangs", &[("MAIL 2", Act::Hang)][..], false, false),
        ] {
            let mut server = Server::new("8BITMIME", acts);
            let mut session = open(&mut server, terms());
            send(&mut server, &mut session, mail(&envelope, &people, b"x\r\n"), b"x\r\n");
            assert_eq!(session.dirty, dirty, "{id}");
            let mut delivery = Delivery::new(&mut session, mail(&envelope, &people, b"x\r\n"));
            loop {
                match delivery.step(server.now) {
                    Step::Send(bytes, _) => {
                        server.take(&bytes);
                        delivery.sent();
                    }
                    Step::Receive { until } => server.give(delivery.session(), until),
                    Step::StartTls | Step::Done => break,
                }
            }
            assert_eq!(delivery.was_stale(), stale, "{id}");
        }
    }

    /// C270: a server may answer before it has read all; what it says counts once all is sent, or once it has closed.
    #[test]
    fn c270_early_answers() {
        let envelope = envelope();
        let people = people(1);
        for (early, sent, expected) in [
            ("552 5.3.4 too big\r\n", false, "END 552"),
            ("452 4.3.1 full\r\n", true, "END 452"),
            ("250 2.0.0 thanks\r\n", true, "protocol"),
            ("250 2.0.0 thanks\r\n", false, "protocol, next host"),
            ("", false, "broken, next host"),
        ] {
            let mut server = Server::new("8BITMIME", &[]);
            let mut session = open(&mut server, terms());
            let mut delivery = Delivery::new(&mut session, mail(&envelope, &people, b"x\r\n"));
            loop {
                match delivery.step(server.now) {
                    Step::Send(_, Some(Payload::Stuffed)) => {
                        delivery.session().unread().extend_from_slice(early.as_bytes());
                        if sent {
                            delivery.sent();
                        } else {
                            delivery.session().closed("broken pipe");
                        }
                    }
                    Step::Send(bytes, _) => {
                        server.take(&bytes);
                        delivery.sent();
                    }
                    Step::Receive { until } => server.give(delivery.session(), until),
                    Step::StartTls | Step::Done => break,
                }
            }
            let seen = all_words(&delivery.into_settled()).replace(END_OF_DATA, "END");
            assert_eq!(seen, expected, "{early:?}, all sent: {sent}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(512))]

        /// P5, C110, C134: whatever is sent by DATA, our own receiving side reads it as it was, however it was cut.
        #[test]
        fn what_is_stuffed_is_read_as_it_was(
            lines in prop::collection::vec(prop::sample::select(vec!["", ".", "..", ".x", "a.", "x.y", "text", "é.é"]), 0..40),
            cuts in prop::collection::vec(0usize..200, 0..6),
            reads in 1usize..50,
        ) {
            let content: Vec<u8> = lines.iter().flat_map(|line| [line.as_bytes(), b"\r\n"].concat()).collect();
            let mut cuts: Vec<usize> = cuts.into_iter().map(|cut| cut.min(content.len())).collect();
            cuts.extend([0, content.len()]);
            cuts.sort_unstable();
            let pieces: Vec<&[u8]> = cuts.windows(2).map(|pair| &content[pair[0]..pair[1]]).collect();
            let wire = stuffed(&pieces);

            let mut reader = super::super::framing::DotReader::default();
            let (mut buffer, mut read, mut ended) = (Vec::new(), Vec::new(), false);
            for block in wire.chunks(reads) {
                prop_assert!(!ended, "it ended early");
                buffer.extend_from_slice(block);
                let scanned = reader.scan(&mut buffer);
                prop_assert!(!scanned.bare_control);
                read.extend_from_slice(&buffer[..scanned.content]);
                buffer.drain(..scanned.used);
                ended = scanned.end;
            }
            prop_assert!(ended && buffer.is_empty());
            prop_assert_eq!(read, content);
        }

        /// A body that does not end in CRLF gets it, and nothing else.
        #[test]
        fn the_end_of_what_is_stuffed_stands_alone(content in "[a.\r\n]{0,30}") {
            let wire = stuffed(&[content.as_bytes()]);
            prop_assert!(wire == b".\r\n" || wire.ends_with(b"\r\n.\r\n"));
            let inside = &wire[..wire.len() - 3];
            let early = inside.windows(2).any(|two| two == b"\n." ) && {
                // Every dot that begins a line is followed by the one it was before.
                inside.split_inclusive(|&byte| byte == b'\n').any(|line| line.starts_with(b".") && !line.starts_with(b".."))
            };
            prop_assert!(!early, "{:?}", String::from_utf8_lossy(&wire));
        }
    }
}
