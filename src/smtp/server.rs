//! The receiving side of one SMTP session, without sockets, clocks or tasks.
//!
//! Bytes and answers go in, [`Step`]s come out; `accept::drive` carries them out. There is never more than
//! one step under way, so replies keep their order however hard the client pipelines. While a step is under way that
//! takes long, the driver may send the replies to earlier commands: [`Session::pending`].
//!
//! Not here: which connector a peer belongs to (`accept::attribute`), where mail goes (`route`),
//! when a 250 may be given (`relay::acknowledge`).
//!
//! Standards: RFC 5321 (SMTP), 2920 (PIPELINING), 3030 (CHUNKING), 3207 (STARTTLS), 3461 (DSN), 4954 (AUTH), 6531
//! (SMTPUTF8).

use std::time::{Duration, Instant};

use bytes::{Buf, Bytes, BytesMut};
use zeroize::Zeroize as _;

use super::Reply;
use super::auth::{Credentials, Heard, Hearing};
use super::command::{self, Mail, Manners, Verb};
use super::extension::Offer;
use super::framing::{COMMAND_LIMIT, ChunkReader, DotReader, LOGIN_LIMIT, Line, LineReader};
use crate::message::address::Syntax;
use crate::message::{Address, Domain, Envelope, Recipient};
use crate::random::HashSet;

/// What a session is held to; the receive connector and the listener say so.
#[derive(Debug, Clone)]
pub struct Terms {
    /// Our name in greeting and EHLO.
    pub hostname: Domain,
    /// STARTTLS is offered (and the session is not in TLS yet).
    pub offer_starttls: bool,
    /// MAIL before STARTTLS is 530 5.7.0.
    pub require_tls: bool,
    /// There are users who may log in; AUTH is offered in TLS.
    pub offer_auth: bool,
    /// MAIL before AUTH is 530 5.7.0.
    pub require_auth: bool,
    /// Bytes; `None`: no limit.
    pub max_message_size: Option<u64>,
    /// Beyond: 452 4.5.3.
    pub max_recipients: usize,
    /// Beyond: 421 4.7.0 and close.
    pub max_errors: usize,
    /// Refuse clients that talk before the greeting, pipeline out of order, or depart from the grammar.
    pub strict: bool,
    /// XOORG is offered, in TLS: an internal connector.
    pub xoorg: bool,
    /// RFC 5321 section 4.5.3.2: the wait for a command.
    pub command_timeout: Duration,
    /// The wait for the next piece of a message, and how far the whole message may lag behind [`LEAST_RATE`].
    pub data_timeout: Duration,
}

impl Terms {
    fn syntax(&self) -> Syntax {
        if self.strict { Syntax::Strict } else { Syntax::Lenient }
    }
}

/// What the driver is to do next.
#[derive(Debug)]
pub enum Step {
    /// Every reply due so far: a pipeline gets one write.
    Send(Bytes),
    /// Read into [`Session::unread`]; nothing by then: [`Session::expired`].
    Receive {
        /// The deadline, on the driver's clock.
        until: Instant,
    },
    /// The next piece of the message, dot-stuffing undone.
    Keep(Bytes),
    /// The message under way will not be finished: forget the pieces kept so far.
    Discard,
    /// Find the answer, then [`Session::answer`].
    Ask(Question),
    /// Shake hands, then [`Session::secured`].
    StartTls,
    /// All is said; close the connection.
    Close,
}

/// What only the stages behind can know.
#[derive(Debug)]
pub enum Question {
    /// Is this the user's password? Answered `Go` or `Refuse`.
    Login(Credentials),
    /// May this sender send here, and a message of this declared size? Answered `Go` or `Refuse`.
    Sender {
        /// The envelope so far: sender and parameters, no recipients.
        envelope: Envelope,
        /// SIZE, if it was given.
        size: Option<u64>,
        /// XOORG, if it was given: the author's organization.
        xoorg: Option<Domain>,
    },
    /// May this recipient come? Answered `Go` or `Refuse`.
    Recipient(Recipient),
    /// The message is whole; may it be acknowledged? Answered with the reply to the final dot, as `Done`.
    Message {
        /// The envelope with the recipients that were accepted.
        envelope: Envelope,
        /// What the client called itself, cleaned up: see [`command::hello_name`].
        hello: String,
        /// EHLO rather than HELO.
        extended: bool,
    },
}

/// The answer to a [`Question`].
#[derive(Debug)]
pub enum Answer {
    /// Yes.
    Go,
    /// No, and this is the reply.
    Refuse(Reply),
    /// The reply to the end of data, good or bad. The transaction is over.
    Done(Reply),
}

/// Replies are handed out once so many octets wait, even if more commands are there: who sends and never
/// reads then fills the kernel's buffers, not our memory.
const UNSENT_LIMIT: usize = 16 * 1024;

/// How long a strict listener listens before it greets.
const GREETING_PAUSE: Duration = Duration::from_millis(100);

/// Commands that carry no mail forward, between one message and the next.
const IDLE_COMMANDS: usize = 100;

/// Logins that may fail in one session.
const FAILED_LOGINS: usize = 3;

/// BDAT 0 in one message.
const EMPTY_CHUNKS: usize = 100;

/// The slowest a message may come, in octets a second: the waits for all its pieces together are at most `data_timeout`
/// and a second for each so many octets. Postfix's `smtpd_min_data_rate` has the same default.
pub const LEAST_RATE: u64 = 500;

/// How far we go on reading a message that will be refused, where no limit of the connector says it.
const SWALLOW_LIMIT: u64 = 64 << 20;

/// Pieces below this size are gathered and copied: handed on as slices, each would keep a whole read buffer
/// alive for as long as the message is.
const SMALL_PIECE: usize = 8 * 1024;

/// Gathered pieces are handed on at this size.
const GATHERED: usize = 64 * 1024;

/// What the driver reserves for commands, and at least for content.
const COMMAND_READ: usize = 4 * 1024;

/// What there is of a command up to this length waits for its end in a buffer of its own size.
const HALF_SAID: usize = 512;

/// What the driver reserves at most.
const CONTENT_READ: usize = 64 * 1024;

/// A client may have pipelined a long list before it hears the first 452: it gets so many times `max_recipients` of
/// them in one transaction, and is not a client any more if it goes on.
const SURPLUS: usize = 10;

/// Up to so many recipients, looking through all of them is the fastest way to find one given twice.
const FEW_RECIPIENTS: usize = 32;

/// One session.
#[derive(Debug)]
pub struct Session {
    terms: Terms,
    secure: bool,
    /// AUTH succeeded.
    logged_in: bool,
    state: State,
    hello: Option<Hello>,
    unread: BytesMut,
    lines: LineReader,
    /// Replies not handed out yet.
    unsent: BytesMut,
    /// Until when the present command has to be whole; set when we first wait for it.
    deadline: Option<Instant>,
    /// Pieces were handed out that no [`Question::Message`] has claimed.
    kept: bool,
    /// Those pieces are to be forgotten.
    discard: bool,
    shutting_down: bool,
    errors: usize,
    failed_logins: usize,
    idle_commands: usize,
    /// Recipients accepted and refused, over all transactions.
    recipients_accepted: usize,
    recipients_refused: usize,
    /// So many more commands of a pipeline whose MAIL was refused are answered without being counted as errors.
    pardoned: usize,
}

#[derive(Debug, Clone, Default)]
struct Hello {
    name: String,
    extended: bool,
}

/// Where the session stands. A transaction lives in the variants that have one, and is gone with them: there is
/// nothing to reset, and nothing of one message is left for the next.
#[derive(Debug)]
enum State {
    /// A strict listener waits whether the client talks first.
    Listening,
    /// The greeting is next.
    Connected,
    /// No transaction.
    Ready,
    /// Inside AUTH: the client's next line is no command.
    LoggingIn(Hearing),
    /// Is this the user's password?
    AskingLogin,
    /// MAIL was sound; may this sender send?
    AskingSender(Box<Transaction>),
    /// RCPT, DATA or BDAT may come.
    Addressing(Box<Transaction>),
    /// RCPT was sound; may this recipient come?
    AskingRecipient(Box<Transaction>, Recipient),
    /// Between 354 and the end of data.
    Data(Box<Transaction>, DotReader, Box<Content>),
    /// Inside a chunk of BDAT.
    Chunk(Box<Transaction>, ChunkReader, Box<Content>, Chunk),
    /// Between chunks.
    Chunks(Box<Transaction>, ChunkReader, Box<Content>),
    /// The message is whole; this is its last piece.
    Whole(Box<Transaction>),
    /// May the message be acknowledged?
    AskingMessage,
    /// Inside a chunk that is thrown away.
    Dropping(Chunk, Refusal),
    /// After a refused chunk: the rest of the message is thrown away until LAST or RSET. RFC 3030 section 2.
    Refused(Refusal),
    /// The 220 to STARTTLS has been said.
    StartingTls,
    /// What is unsent goes out, then the connection closes. What is unread will never be read.
    Closing,
}

#[derive(Debug)]
struct Transaction {
    envelope: Envelope,
    size: Option<u64>,
    /// Some RCPT was refused.
    refused: bool,
    /// RCPTs that named a recipient again.
    repeated: usize,
    /// RCPTs beyond `max_recipients`.
    surplus: usize,
    /// The recipients' addresses, once they are many.
    index: HashSet<Address>,
}

/// A message on its way in.
#[derive(Debug, Default)]
struct Content {
    /// Octets that belong to the message.
    octets: u64,
    /// Octets as they came, stuffing and all.
    raw: u64,
    /// What is wrong with it: from then on it is read only to find its end.
    fault: Option<Fault>,
    /// Beyond so many raw octets we stop reading.
    ceiling: Option<u64>,
    /// Small pieces, waiting to become a large one.
    gathered: BytesMut,
    empty_chunks: usize,
    pace: Pace,
}

/// Why a message is refused at its end. The graver one stays.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Fault {
    TooBig,
    BareControl,
}

/// How long we have waited for a message.
#[derive(Debug, Default)]
struct Pace {
    since: Option<Instant>,
    waited: Duration,
}

/// A chunk under way.
#[derive(Debug, Clone, Copy)]
struct Chunk {
    size: u64,
    remaining: u64,
    last: bool,
}

/// A message sent by BDAT that will not be taken.
#[derive(Debug)]
struct Refusal {
    reply: Reply,
    /// Octets of it that may still be read and thrown away.
    patience: u64,
    /// Octets of it that have been.
    dropped: u64,
    pace: Pace,
}

impl Refusal {
    fn new(reply: Reply, patience: u64) -> Self {
        Self { reply, patience, dropped: 0, pace: Pace::default() }
    }
}

/// What one move of the session comes to.
enum Move {
    /// Look again.
    Again,
    /// The driver has to do this first.
    Give(Step),
    /// Nothing goes on without more octets; this is the deadline.
    Wait(Instant),
}

impl Session {
    /// A session that begins with the greeting. `secure`: TLS came first (an implicit-TLS listener).
    pub fn new(terms: Terms, secure: bool, now: Instant) -> Self {
        let _ = now;
        Self {
            state: if terms.strict { State::Listening } else { State::Connected },
            terms,
            secure,
            logged_in: false,
            hello: None,
            unread: BytesMut::new(),
            lines: LineReader::default(),
            unsent: BytesMut::new(),
            deadline: None,
            kept: false,
            discard: false,
            shutting_down: false,
            errors: 0,
            failed_logins: 0,
            idle_commands: 0,
            recipients_accepted: 0,
            recipients_refused: 0,
            pardoned: 0,
        }
    }

    /// What to do next.
    pub fn step(&mut self, now: Instant) -> Step {
        loop {
            if std::mem::take(&mut self.discard) {
                self.kept = false;
                return Step::Discard;
            }
            if self.unsent.len() >= UNSENT_LIMIT {
                return self.flush();
            }
            match self.advance(now) {
                Move::Again => {}
                Move::Give(Step::StartTls | Step::Close) | Move::Wait(_) if !self.unsent.is_empty() => {
                    return self.flush();
                }
                Move::Give(step) => return step,
                Move::Wait(until) => {
                    self.release_unread();
                    return Step::Receive { until };
                }
            }
        }
    }

    /// Are there replies that no [`Step::Send`] has handed out yet?
    pub fn has_pending(&self) -> bool {
        !self.unsent.is_empty()
    }

    /// These replies, for a driver whose present step takes long: they are true already, and the client may act on them.
    /// None is handed out again.
    pub fn pending(&mut self) -> Bytes {
        std::mem::take(&mut self.unsent).freeze()
    }

    /// Whoever waits holds no read buffer: ten thousand clients that say nothing, or half a command, cost nothing.
    fn release_unread(&mut self) {
        if self.unread.is_empty() {
            self.unread = BytesMut::new();
            return;
        }
        let in_command = matches!(self.state, State::Connected | State::Ready | State::Addressing(_));
        if in_command && self.unread.len() <= HALF_SAID && self.unread.capacity() > 2 * HALF_SAID {
            let half_said = BytesMut::from(&self.unread[..]);
            // It may be the beginning of a password.
            std::mem::replace(&mut self.unread, half_said).zeroize();
        }
    }

    /// Where the driver puts the bytes it reads.
    pub fn unread(&mut self) -> &mut BytesMut {
        &mut self.unread
    }

    /// How much room the driver does well to make in [`Session::unread`] before it reads.
    pub fn wanted(&self) -> usize {
        let expected = match &self.state {
            State::Data(transaction, _, content) => {
                let declared = transaction.size.map(|size| size.saturating_sub(content.octets).saturating_add(1024));
                // Without SIZE most messages are small, and those that are not show it soon.
                declared.unwrap_or_else(|| content.octets.saturating_mul(2).max(16 * 1024))
            }
            State::Chunk(_, _, _, chunk) | State::Dropping(chunk, _) => chunk.remaining.saturating_add(512),
            _ => 0,
        };
        usize::try_from(expected).unwrap_or(CONTENT_READ).clamp(COMMAND_READ, CONTENT_READ)
    }

    /// Nothing came by the deadline.
    pub fn expired(&mut self) {
        match self.state {
            State::Listening => self.state = State::Connected,
            State::Closing => {}
            _ => self.close(Reply::timed_out()),
        }
    }

    /// The answer to the last question.
    pub fn answer(&mut self, answer: Answer) {
        match (std::mem::replace(&mut self.state, State::Ready), answer) {
            (State::AskingLogin, Answer::Go) => {
                self.logged_in = true;
                self.say(&Reply::logged_in());
            }
            (State::AskingLogin, Answer::Refuse(reply) | Answer::Done(reply)) => self.refuse_login(reply),
            (State::AskingSender(transaction), Answer::Go) => {
                self.say(&Reply::sender_ok());
                self.state = State::Addressing(transaction);
            }
            (State::AskingSender(_), Answer::Refuse(reply) | Answer::Done(reply)) => self.refuse_sender(reply),
            (State::AskingRecipient(mut transaction, recipient), Answer::Go) => {
                transaction.add(recipient);
                self.recipients_accepted += 1;
                self.say(&Reply::recipient_ok());
                self.state = State::Addressing(transaction);
            }
            (State::AskingRecipient(mut transaction, _), Answer::Refuse(reply) | Answer::Done(reply)) => {
                transaction.refused = true;
                self.state = State::Addressing(transaction);
                self.refuse_recipient(reply);
            }
            (State::AskingMessage, Answer::Done(reply) | Answer::Refuse(reply)) => {
                if reply.is_positive() {
                    self.idle_commands = 0;
                }
                self.say(&reply);
                if reply.code == 421 {
                    self.state = State::Closing;
                }
            }
            // Without a reply that tells of its keeping no message is acknowledged.
            (State::AskingMessage, Answer::Go) => self.say(&Reply::internal_error()),
            // Nothing was asked.
            (state, _) => self.state = state,
        }
    }

    /// The handshake succeeded; the connection was attributed anew and these are the terms from now on.
    ///
    /// The session forgets what it knew of the client: whoever spoke before may not have been the one who
    /// speaks now. RFC 3207 section 4.2.
    pub fn secured(&mut self, terms: Terms) {
        self.terms = terms;
        self.secure = true;
        self.logged_in = false;
        self.hello = None;
        self.unread.clear();
        self.lines = LineReader::default();
        self.deadline = None;
        if !matches!(self.state, State::Closing) {
            self.state = State::Ready;
        }
    }

    /// The relay is shutting down: 421 4.3.2 at the next point where a reply is due, then close. A message
    /// whose end was already received is finished and answered first, and one that is on its way may come to its
    /// end: how long that may take is the driver's to say.
    pub fn shut_down(&mut self) {
        self.shutting_down = true;
    }

    fn advance(&mut self, now: Instant) -> Move {
        match std::mem::replace(&mut self.state, State::Closing) {
            State::Closing => Move::Give(Step::Close),
            State::Listening if self.unread.is_empty() => {
                self.state = State::Listening;
                let until = *self.deadline.get_or_insert(now + GREETING_PAUSE);
                Move::Wait(until)
            }
            State::Listening => {
                // RFC 5321 section 3.1: the client waits for the greeting.
                self.close(Reply::spoke_too_soon());
                Move::Again
            }
            State::Connected if self.shutting_down => {
                self.close(Reply::shutting_down());
                Move::Again
            }
            State::Connected => {
                self.deadline = None;
                self.say(&Reply::greeting(&self.terms.hostname));
                self.state = State::Ready;
                Move::Again
            }
            state @ (State::Ready
            | State::LoggingIn(_)
            | State::Addressing(_)
            | State::Chunks(..)
            | State::Refused(_)) => {
                self.state = state;
                self.next_command(now)
            }
            State::Data(transaction, reader, content) => self.read_data(transaction, reader, content, now),
            State::Chunk(transaction, reader, content, chunk) => {
                self.read_chunk(transaction, reader, content, chunk, now)
            }
            State::Dropping(chunk, refusal) => self.drop_chunk(chunk, refusal, now),
            State::Whole(transaction) => {
                self.kept = false;
                self.state = State::AskingMessage;
                // Without a hello there is no transaction.
                let Hello { name: hello, extended } = self.hello.clone().unwrap_or_default();
                Move::Give(Step::Ask(Question::Message { envelope: transaction.envelope, hello, extended }))
            }
            State::StartingTls => {
                self.state = State::StartingTls;
                Move::Give(Step::StartTls)
            }
            // The driver owes an answer. It asked for a step all the same; so there will be none.
            State::AskingLogin | State::AskingSender(_) | State::AskingRecipient(..) | State::AskingMessage => {
                debug_assert!(false, "a step was asked for while a question is open");
                self.close(Reply::session_fault());
                Move::Again
            }
        }
    }

    /// Takes the next command line, if it is there.
    fn next_command(&mut self, now: Instant) -> Move {
        if self.shutting_down {
            self.close(Reply::shutting_down());
            return Move::Again;
        }
        // The first octet of a TLS record; no command begins with it.
        if self.unread.first() == Some(&0x16) && self.lines.is_at_start() {
            self.close(Reply::not_smtp());
            return Move::Again;
        }
        match &mut self.state {
            State::Chunks(_, _, content) => content.pace.resume(now),
            State::Refused(refusal) => refusal.pace.resume(now),
            _ => {}
        }
        let limit = if matches!(self.state, State::LoggingIn(_)) { LOGIN_LIMIT } else { COMMAND_LIMIT };
        match self.lines.next(&mut self.unread, limit) {
            None => {
                // One deadline for the whole command: an octet now and then does not put it off.
                let until = *self.deadline.get_or_insert(now + self.terms.command_timeout);
                // The wait between chunks is part of the message: an octet in each is no way to stay.
                let until = match &mut self.state {
                    State::Chunks(_, _, content) => {
                        until.min(content.pace.pause(now, self.terms.data_timeout, content.raw, false))
                    }
                    State::Refused(refusal) => {
                        until.min(refusal.pace.pause(now, self.terms.data_timeout, refusal.dropped, false))
                    }
                    _ => until,
                };
                return Move::Wait(until);
            }
            Some(Line::Whole(len)) => {
                self.deadline = None;
                // Nobody looks at the buffer while the line in it is read; what lies behind is said in a word.
                let mut buffer = std::mem::take(&mut self.unread);
                let next = match std::mem::replace(&mut self.state, State::Ready) {
                    State::LoggingIn(hearing) => {
                        let next = self.hear(hearing.hear(&buffer[..len]));
                        buffer[..len].zeroize();
                        next
                    }
                    state => {
                        self.state = state;
                        self.command(&buffer[..len], buffer.len() > len + 2)
                    }
                };
                if matches!(self.state, State::AskingLogin) {
                    // The password stood behind AUTH.
                    buffer[..len].zeroize();
                }
                self.unread = buffer;
                self.lines.consume(&mut self.unread, len);
                return next;
            }
            Some(Line::TooLong) => {
                self.deadline = None;
                if let State::LoggingIn(_) = self.state {
                    self.state = State::Ready;
                    self.fail(Reply::login_line_too_long());
                } else {
                    self.fail(Reply::line_too_long(COMMAND_LIMIT));
                }
            }
            Some(Line::BareControl) => self.close(Reply::bare_control_in_command()),
            Some(Line::Endless) => self.close(Reply::endless_line()),
        }
        Move::Again
    }

    /// One line per command, RFC 5321 section 4.1.1. `more`: octets came behind this one.
    fn command(&mut self, line: &[u8], more: bool) -> Move {
        let (verb, arguments) = Verb::of(line);
        let extended = self.is_extended();
        // Commands whose answer has to be awaited, RFC 2920 section 3.1; without EHLO every one of them.
        let must_be_last =
            matches!(verb, Verb::Ehlo | Verb::Helo | Verb::Data | Verb::Auth) || (!extended && verb != Verb::Quit);
        if self.terms.strict && must_be_last && more {
            self.close(Reply::spoke_too_soon());
            return Move::Again;
        }
        if !matches!(verb, Verb::Rcpt | Verb::Data | Verb::Bdat) {
            self.pardoned = 0;
        }
        let outcome = match verb {
            Verb::Bdat => return self.bdat(arguments),
            Verb::Auth => return self.auth(arguments),
            Verb::Mail | Verb::Rcpt | Verb::Data | Verb::Vrfy if self.terms.require_tls && !self.secure => {
                Err(Reply::tls_required())
            }
            Verb::Ehlo => self.hello(arguments, true),
            Verb::Helo => self.hello(arguments, false),
            Verb::Mail => return self.mail(arguments),
            Verb::Rcpt => return self.rcpt(arguments),
            Verb::Data => self.data(arguments),
            Verb::Rset => command::check_none(arguments).map(|()| {
                self.end_transaction();
                self.idle(Reply::ok());
            }),
            Verb::Noop => {
                self.idle(Reply::ok());
                Ok(())
            }
            Verb::Help => {
                self.idle(Reply::help());
                Ok(())
            }
            Verb::Vrfy if arguments.is_empty() => Err(Reply::bad_argument("whom?")),
            Verb::Vrfy => command::text(arguments).map(|_| self.idle(Reply::cannot_verify())),
            Verb::Quit => command::check_none(arguments).map(|()| self.close(Reply::bye(&self.terms.hostname))),
            Verb::StartTls => self.starttls(arguments, more),
            Verb::Off => Err(Reply::command_disabled()),
            Verb::Foreign => {
                self.close(Reply::not_smtp());
                Ok(())
            }
            Verb::Unknown => Err(Reply::unknown_command()),
        };
        if let Err(reply) = outcome {
            self.fail(reply);
        }
        Move::Again
    }

    fn hello(&mut self, arguments: &[u8], extended: bool) -> Result<(), Reply> {
        let name = command::hello_name(arguments, self.terms.syntax())?;
        // As RSET. RFC 5321 section 4.1.4.
        self.end_transaction();
        self.hello = Some(Hello { name, extended });
        let hostname = &self.terms.hostname;
        let reply = if extended {
            let offer = Offer {
                secure: self.secure,
                starttls: self.terms.offer_starttls && !self.secure,
                auth: self.terms.offer_auth && self.secure && !self.logged_in,
                max_message_size: self.size_limit(),
                max_recipients: self.terms.max_recipients,
                xoorg: self.terms.xoorg,
            };
            Reply::extended_hello(hostname, offer.keywords())
        } else {
            Reply::hello(hostname)
        };
        self.idle(reply);
        Ok(())
    }

    fn starttls(&mut self, arguments: &[u8], more: bool) -> Result<(), Reply> {
        command::check_none(arguments)?;
        if self.secure {
            return Err(Reply::bad_sequence("already in TLS"));
        }
        if !self.terms.offer_starttls {
            return Err(Reply::command_disabled());
        }
        if !matches!(self.state, State::Ready) {
            return Err(Reply::bad_sequence("not inside a mail transaction"));
        }
        if more {
            // What came along was said in the clear. Obeying it afterwards would let anyone on the way speak as
            // the client (CVE-2011-0411); S-030.
            self.close(Reply::spoke_too_soon());
        } else {
            self.say(&Reply::ready_to_start_tls());
            self.state = State::StartingTls;
        }
        Ok(())
    }

    fn auth(&mut self, arguments: &[u8]) -> Move {
        let heard = self.check_auth().and_then(|()| Hearing::begin(arguments));
        self.hear(heard)
    }

    /// May AUTH come now? RFC 4954 section 4.
    fn check_auth(&self) -> Result<(), Reply> {
        if !self.terms.offer_auth {
            return Err(Reply::command_disabled());
        }
        if !self.secure {
            return Err(Reply::login_needs_tls());
        }
        if !self.is_extended() {
            return Err(Reply::bad_sequence("say EHLO first"));
        }
        if self.logged_in {
            return Err(Reply::bad_sequence("already authenticated"));
        }
        if !matches!(self.state, State::Ready) {
            return Err(Reply::bad_sequence("not inside a mail transaction"));
        }
        Ok(())
    }

    fn hear(&mut self, heard: Result<Heard, Reply>) -> Move {
        match heard {
            Ok(Heard::More(hearing, challenge)) => {
                self.say(&Reply::challenge(challenge));
                self.state = State::LoggingIn(hearing);
                Move::Again
            }
            Ok(Heard::Whole(credentials)) => {
                self.state = State::AskingLogin;
                Move::Give(Step::Ask(Question::Login(credentials)))
            }
            Ok(Heard::ForAnother) => {
                self.refuse_login(Reply::login_refused());
                Move::Again
            }
            Err(reply) => {
                self.fail(reply);
                Move::Again
            }
        }
    }

    /// One slip of the finger is human; who fails again and again is guessing, or will not get in anyway.
    fn refuse_login(&mut self, reply: Reply) {
        self.failed_logins += 1;
        if self.failed_logins >= FAILED_LOGINS {
            self.close(Reply::too_many_failed_logins());
        } else {
            self.fail(reply);
        }
    }

    fn mail(&mut self, arguments: &[u8]) -> Move {
        match self.check_mail(arguments) {
            Ok(mail) => {
                let Mail { sender, size, body, smtputf8, ret, envid, requiretls, xoorg } = mail;
                let envelope = Envelope { sender, recipients: Vec::new(), ret, envid, body, smtputf8, requiretls };
                let question = Question::Sender { envelope: envelope.clone(), size, xoorg };
                let transaction =
                    Transaction { envelope, size, refused: false, repeated: 0, surplus: 0, index: HashSet::default() };
                self.state = State::AskingSender(Box::new(transaction));
                Move::Give(Step::Ask(question))
            }
            Err(reply) => {
                match self.state {
                    State::Ready => self.refuse_sender(reply),
                    State::Chunks(..) => self.out_of_sequence("the message has begun"),
                    _ => self.fail(reply),
                }
                Move::Again
            }
        }
    }

    fn check_mail(&self, arguments: &[u8]) -> Result<Mail, Reply> {
        if self.hello.is_none() {
            return Err(Reply::bad_sequence("say EHLO first"));
        }
        if !matches!(self.state, State::Ready) {
            return Err(Reply::bad_sequence("there is a sender already"));
        }
        if self.terms.require_auth && !self.logged_in {
            return Err(Reply::login_required());
        }
        let mail = Mail::parse(arguments, self.manners(), &self.terms.hostname)?;
        match self.size_limit() {
            Some(limit) if mail.size.is_some_and(|size| size > limit) => Err(Reply::message_too_big(limit)),
            _ => Ok(mail),
        }
    }

    fn rcpt(&mut self, arguments: &[u8]) -> Move {
        let mut transaction = match std::mem::replace(&mut self.state, State::Ready) {
            State::Addressing(transaction) => transaction,
            state => {
                self.state = state;
                self.out_of_sequence("say MAIL first");
                return Move::Again;
            }
        };
        let utf8 = transaction.envelope.smtputf8;
        match command::parse_recipient(arguments, self.manners(), utf8, &self.terms.hostname) {
            // Once is enough: RFC 5321 section 4.1.1.3 leaves it to us, and nobody wants a message twice. Who is named again
            // with other wishes for reports is a recipient of its own until the message is planned.
            Ok(recipient) if transaction.repeated < self.terms.max_recipients && transaction.has(&recipient) => {
                transaction.repeated += 1;
                self.state = State::Addressing(transaction);
                self.say(&Reply::recipient_ok());
            }
            // New ones or the same again and again: there is an end to both.
            Ok(recipient)
                if transaction.envelope.recipients.len() >= self.terms.max_recipients
                    || transaction.has(&recipient) =>
            {
                transaction.surplus += 1;
                let endless = transaction.surplus > self.terms.max_recipients.saturating_mul(SURPLUS);
                self.state = State::Addressing(transaction);
                if endless {
                    self.close(Reply::too_many_errors());
                } else {
                    self.say(&Reply::too_many_recipients(self.terms.max_recipients));
                }
            }
            Ok(recipient) => {
                self.state = State::AskingRecipient(transaction, recipient.clone());
                return Move::Give(Step::Ask(Question::Recipient(recipient)));
            }
            Err(reply) => {
                transaction.refused = true;
                self.state = State::Addressing(transaction);
                self.fail(reply);
            }
        }
        Move::Again
    }

    fn data(&mut self, arguments: &[u8]) -> Result<(), Reply> {
        command::check_none(arguments)?;
        match std::mem::replace(&mut self.state, State::Ready) {
            State::Addressing(transaction) if transaction.envelope.recipients.is_empty() => {
                let reply = transaction.no_recipients();
                self.state = State::Addressing(transaction);
                Err(reply)
            }
            State::Addressing(transaction) => {
                self.say(&Reply::start_mail_input());
                let content = Content { ceiling: self.size_limit().map(ceiling), ..Content::default() };
                self.state = State::Data(transaction, DotReader::default(), Box::new(content));
                Ok(())
            }
            state => {
                self.state = state;
                self.out_of_sequence("say MAIL and RCPT first");
                Ok(())
            }
        }
    }

    /// The next buffer of a message sent by DATA.
    fn read_data(
        &mut self,
        transaction: Box<Transaction>,
        mut reader: DotReader,
        mut content: Box<Content>,
        now: Instant,
    ) -> Move {
        content.pace.resume(now);
        let limit = self.size_limit();
        let room = content.ceiling.map_or(u64::MAX, |ceiling| ceiling.saturating_sub(content.raw));
        let window = self.unread.len().min(usize::try_from(room).unwrap_or(usize::MAX));
        let scanned = reader.scan(&mut self.unread[..window]);
        content.raw += scanned.used as u64;
        if scanned.bare_control {
            self.find_fault(&mut content, Fault::BareControl);
        }
        if content.fault.is_none() {
            content.octets += scanned.content as u64;
            if limit.is_some_and(|limit| content.octets > limit) {
                self.find_fault(&mut content, Fault::TooBig);
            }
        }
        let piece = self.take_piece(&mut content, scanned.content, scanned.used, scanned.end);
        let step = match (scanned.end, content.fault) {
            (true, None) => {
                self.state = State::Whole(transaction);
                Move::Again
            }
            (true, Some(fault)) => {
                self.refuse_message(fault);
                Move::Again
            }
            (false, fault) if window as u64 == room => {
                // So far beyond what was allowed that it is not worth the wait for the end.
                self.close(self.fault_reply(fault.unwrap_or(Fault::TooBig)));
                Move::Again
            }
            (false, _) => {
                let until = content.pace.pause(now, self.terms.data_timeout, content.raw, piece.is_some());
                self.state = State::Data(transaction, reader, content);
                Move::Wait(until)
            }
        };
        piece.map_or(step, |piece| Move::Give(Step::Keep(piece)))
    }

    fn bdat(&mut self, arguments: &[u8]) -> Move {
        let Some((size, last)) = command::parse_chunk(arguments) else {
            // Where the next command begins, nobody can know. RFC 3030 section 2.
            self.close(Reply::bad_argument("BDAT needs a size, and may have LAST"));
            return Move::Again;
        };
        let chunk = Chunk { size, remaining: size, last };
        let patience = self.size_limit().map_or(SWALLOW_LIMIT, ceiling);
        let refusal = match std::mem::replace(&mut self.state, State::Ready) {
            State::Refused(refusal) => refusal,
            _ if self.terms.require_tls && !self.secure => Refusal::new(Reply::tls_required(), patience),
            _ if !self.is_extended() => Refusal::new(Reply::bad_sequence("say EHLO first"), patience),
            State::Addressing(transaction) if transaction.envelope.recipients.is_empty() => {
                Refusal::new(transaction.no_recipients(), patience)
            }
            State::Addressing(transaction) => {
                return self.begin_chunk(transaction, ChunkReader::default(), Box::default(), chunk);
            }
            State::Chunks(transaction, reader, content) => {
                return self.begin_chunk(transaction, reader, content, chunk);
            }
            _ => Refusal::new(Reply::bad_sequence("say MAIL and RCPT first"), patience),
        };
        self.begin_dropping(chunk, refusal);
        Move::Again
    }

    fn begin_chunk(
        &mut self,
        transaction: Box<Transaction>,
        reader: ChunkReader,
        mut content: Box<Content>,
        chunk: Chunk,
    ) -> Move {
        let octets = content.octets.checked_add(chunk.size);
        if let Some(limit) = self.size_limit()
            && octets.is_none_or(|octets| octets > limit)
        {
            let patience = ceiling(limit).saturating_sub(content.octets);
            self.abandon_content();
            self.begin_dropping(chunk, Refusal::new(Reply::message_too_big(limit), patience));
            return Move::Again;
        }
        if chunk.size == 0 && !chunk.last {
            content.empty_chunks += 1;
            if content.empty_chunks > EMPTY_CHUNKS {
                self.close(Reply::too_many_empty_chunks());
                return Move::Again;
            }
        }
        self.state = State::Chunk(transaction, reader, content, chunk);
        Move::Again
    }

    /// Reads a chunk only to find where the next command begins.
    fn begin_dropping(&mut self, chunk: Chunk, mut refusal: Refusal) {
        match refusal.patience.checked_sub(chunk.size) {
            Some(patience) => {
                refusal.patience = patience;
                self.state = State::Dropping(chunk, refusal);
            }
            None => self.close(refusal.reply),
        }
    }

    fn drop_chunk(&mut self, mut chunk: Chunk, mut refusal: Refusal, now: Instant) -> Move {
        refusal.pace.resume(now);
        let piece = chunk.take(self.unread.len());
        self.unread.advance(piece);
        refusal.dropped += piece as u64;
        if chunk.remaining > 0 {
            let until = refusal.pace.pause(now, self.terms.data_timeout, refusal.dropped, false);
            self.state = State::Dropping(chunk, refusal);
            return Move::Wait(until);
        }
        let reply = refusal.reply.clone();
        self.state = if chunk.last { State::Ready } else { State::Refused(refusal) };
        self.fail_or_pardon(reply);
        Move::Again
    }

    fn read_chunk(
        &mut self,
        transaction: Box<Transaction>,
        mut reader: ChunkReader,
        mut content: Box<Content>,
        mut chunk: Chunk,
        now: Instant,
    ) -> Move {
        content.pace.resume(now);
        let piece = chunk.take(self.unread.len());
        let whole = chunk.remaining == 0;
        content.raw += piece as u64;
        content.octets += piece as u64;
        if content.fault.is_none()
            && (reader.has_bare_control(&self.unread[..piece]) || (whole && chunk.last && reader.ends_in_cr()))
        {
            self.find_fault(&mut content, Fault::BareControl);
        }
        let piece = self.take_piece(&mut content, piece, piece, whole && chunk.last);
        let step = match content.fault {
            _ if !whole => {
                let until = content.pace.pause(now, self.terms.data_timeout, content.raw, piece.is_some());
                self.state = State::Chunk(transaction, reader, content, chunk);
                Move::Wait(until)
            }
            Some(fault) => {
                self.refuse_message(fault);
                Move::Again
            }
            None if chunk.last => {
                self.state = State::Whole(transaction);
                Move::Again
            }
            None => {
                self.state = State::Chunks(transaction, reader, content);
                self.say(&Reply::chunk_ok(chunk.size));
                Move::Again
            }
        };
        piece.map_or(step, |piece| Move::Give(Step::Keep(piece)))
    }

    /// Takes `used` octets off the buffer, and makes a piece of those that are content, or of what has been
    /// gathered, if it is time for one.
    fn take_piece(&mut self, content: &mut Content, len: usize, used: usize, end: bool) -> Option<Bytes> {
        if content.fault.is_some() {
            content.gathered = BytesMut::new();
            self.unread.advance(used);
            return None;
        }
        let piece = if len < SMALL_PIECE || !content.gathered.is_empty() {
            let only = end && content.gathered.is_empty();
            let piece = only.then(|| Bytes::copy_from_slice(&self.unread[..len]));
            if !only {
                content.gathered.extend_from_slice(&self.unread[..len]);
            }
            self.unread.advance(used);
            let due = end || content.gathered.len() >= GATHERED;
            piece.or_else(|| due.then(|| std::mem::take(&mut content.gathered).freeze()))
        } else {
            let piece = self.unread.split_to(len).freeze();
            self.unread.advance(used - len);
            Some(piece)
        };
        let piece = piece.filter(|piece| !piece.is_empty());
        self.kept |= piece.is_some();
        piece
    }

    fn find_fault(&mut self, content: &mut Content, fault: Fault) {
        if content.fault.is_none() {
            self.abandon_content();
        }
        content.fault = content.fault.max(Some(fault));
        content.ceiling.get_or_insert(content.raw.saturating_add(SWALLOW_LIMIT));
    }

    /// The end of a message that had something wrong with it.
    fn refuse_message(&mut self, fault: Fault) {
        let reply = self.fault_reply(fault);
        match fault {
            Fault::TooBig => {
                self.state = State::Ready;
                self.fail(reply);
            }
            // What follows may be what somebody wanted to smuggle: it must never be read as commands.
            Fault::BareControl => self.close(reply),
        }
    }

    fn fault_reply(&self, fault: Fault) -> Reply {
        match fault {
            Fault::TooBig => Reply::message_too_big(self.size_limit().unwrap_or(u64::MAX)),
            Fault::BareControl => Reply::bare_control_in_message(),
        }
    }

    /// The command came where it does not belong. Between chunks it spoils the message: RFC 3030 section 2.
    fn out_of_sequence(&mut self, what: &str) {
        let reply = Reply::bad_sequence(what);
        if matches!(self.state, State::Chunks(..)) {
            let patience = self.size_limit().map_or(SWALLOW_LIMIT, ceiling);
            self.abandon_content();
            self.state = State::Refused(Refusal::new(reply.clone(), patience));
        }
        self.fail_or_pardon(reply);
    }

    fn refuse_sender(&mut self, reply: Reply) {
        // A client that pipelines has sent its RCPTs and DATA already; they are no further errors.
        self.pardoned = self.terms.max_recipients.saturating_add(1);
        self.state = State::Ready;
        self.fail(reply);
    }

    /// One wrong address in a long list is an old list; addresses most of which are wrong are guessed.
    fn refuse_recipient(&mut self, reply: Reply) {
        self.recipients_refused += usize::from(reply.is_permanent());
        if reply.code == 421 || (reply.is_permanent() && self.recipients_refused > self.recipients_accepted) {
            self.fail(reply);
        } else {
            self.say(&reply);
        }
    }

    fn end_transaction(&mut self) {
        self.abandon_content();
        self.state = State::Ready;
    }

    /// Pieces handed out so far will not become a message.
    fn abandon_content(&mut self) {
        self.discard |= self.kept;
    }

    /// Answers a command that carries no mail forward.
    fn idle(&mut self, reply: Reply) {
        self.idle_commands += 1;
        if self.idle_commands > IDLE_COMMANDS {
            self.close(Reply::too_many_idle_commands());
        } else {
            self.say(&reply);
        }
    }

    /// Gives a reply to an error, and counts it.
    fn fail(&mut self, reply: Reply) {
        if reply.code == 421 {
            return self.close(reply);
        }
        self.errors += usize::from(reply.is_permanent());
        if self.errors > self.terms.max_errors {
            self.close(Reply::too_many_errors());
        } else {
            self.say(&reply);
        }
    }

    fn fail_or_pardon(&mut self, reply: Reply) {
        match self.pardoned.checked_sub(1) {
            Some(pardoned) => {
                self.pardoned = pardoned;
                self.say(&reply);
            }
            None => self.fail(reply),
        }
    }

    fn say(&mut self, reply: &Reply) {
        reply.write_to(&mut self.unsent);
    }

    /// Gives a last reply.
    fn close(&mut self, reply: Reply) {
        self.say(&reply);
        self.abandon_content();
        self.state = State::Closing;
    }

    fn flush(&mut self) -> Step {
        Step::Send(self.pending())
    }

    /// The largest message; 0 in a configuration is no limit.
    fn size_limit(&self) -> Option<u64> {
        self.terms.max_message_size.filter(|&limit| limit > 0)
    }

    fn is_extended(&self) -> bool {
        self.hello.as_ref().is_some_and(|hello| hello.extended)
    }

    fn manners(&self) -> Manners {
        Manners {
            extended: self.is_extended(),
            secure: self.secure,
            auth: self.terms.offer_auth && self.secure,
            syntax: self.terms.syntax(),
            xoorg: self.secure && self.terms.xoorg,
        }
    }
}

/// How far a message over the limit is read to its end: half as much again, and the lines around the end.
fn ceiling(limit: u64) -> u64 {
    limit.saturating_add(limit / 2).saturating_add(1024)
}

impl Transaction {
    fn has(&self, recipient: &Recipient) -> bool {
        let may_be_known = self.index.is_empty() || self.index.contains(&recipient.address);
        may_be_known && self.envelope.recipients.contains(recipient)
    }

    fn add(&mut self, recipient: Recipient) {
        if !self.index.is_empty() {
            self.index.insert(recipient.address.clone());
        }
        self.envelope.recipients.push(recipient);
        if self.index.is_empty() && self.envelope.recipients.len() > FEW_RECIPIENTS {
            self.index = self.envelope.recipients.iter().map(|recipient| recipient.address.clone()).collect();
        }
    }

    /// Why there can be no message: no RCPT came, or none was taken. RFC 5321 section 3.3.
    fn no_recipients(&self) -> Reply {
        if self.refused { Reply::no_valid_recipients() } else { Reply::bad_sequence("say RCPT first") }
    }
}

impl Chunk {
    /// How many of `available` octets belong to the chunk; they are counted as taken.
    fn take(&mut self, available: usize) -> usize {
        let taken = usize::try_from(self.remaining).unwrap_or(usize::MAX).min(available);
        self.remaining -= taken as u64;
        taken
    }
}

impl Pace {
    fn resume(&mut self, now: Instant) {
        if let Some(since) = self.since.take() {
            self.waited += now.saturating_duration_since(since);
        }
    }

    /// The deadline for the next octets: each piece has `data_timeout`, and all of them together have that and the time
    /// that they take at [`LEAST_RATE`]. Only time in which we were the ones who waited counts: with a piece for the
    /// driver to keep (`busy`), it has not begun.
    fn pause(&mut self, now: Instant, data_timeout: Duration, received: u64, busy: bool) -> Instant {
        self.since = (!busy).then_some(now);
        let allowed = data_timeout.saturating_add(Duration::from_secs(received / LEAST_RATE));
        now + data_timeout.min(allowed.saturating_sub(self.waited))
    }
}

#[cfg(test)]
mod tests;
