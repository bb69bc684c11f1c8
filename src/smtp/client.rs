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
use crate::message::{Address, BodyType, Envelope, Notify, OriginalRecipient, Recipient, envelope::Ret};

/// What a reply to the end of a message is called in a [`Fault::Answered`].
pub const END_OF_DATA: &str = "the end of data";

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
    /// EHLO only: what the message needs, HELO cannot offer.
    pub extended: bool,
    /// Who we log in as; only in TLS.
    pub login: Option<Credentials>,
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
            Self::TlsNotOffered | Self::TlsRefused(_) | Self::Login(_) | Self::TooBig { .. } => Remedy::NextHost,
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
            State::Ehlo if reply.is_positive() => {
                self.offered = Offered::parse(reply);
                self.greeted();
            }
            // RFC 5321 section 3.2: a server of before 1995.
            State::Ehlo if matches!(reply.code, 500 | 502 | 504) && !self.terms.extended => {
                self.say(&format!("HELO {}\r\n", self.terms.helo));
                self.state = State::Helo;
            }
            State::Ehlo => self.state = answered("EHLO"),
            State::Helo if reply.is_positive() => self.greeted(),
            State::Helo => self.state = answered("HELO"),
            State::StartTls if reply.is_positive() => self.state = State::Handshake,
            State::StartTls if reply.code == 421 => self.state = answered("STARTTLS"),
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

/// RFC 3461 section 4.2; RFC 6533 section 3 for `utf-8`, in the form that fits into ASCII.
fn push_orcpt(out: &mut BytesMut, orcpt: &OriginalRecipient) {
    let _ = write!(out, " ORCPT={};", orcpt.kind);
    if !orcpt.kind.eq_ignore_ascii_case("utf-8") {
        return push_xtext(out, &orcpt.address);
    }
    for letter in orcpt.address.chars() {
        match letter {
            '+' | '=' | '\\' => {
                let _ = write!(out, "\\x{{{:02X}}}", u32::from(letter));
            }
            '!'..='~' => out.extend_from_slice(&[letter as u8]),
            _ => {
                let _ = write!(out, "\\x{{{:02X}}}", u32::from(letter));
            }
        }
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
