//! The receiving side of one SMTP session, without sockets, clocks or tasks.
//!
//! Bytes and answers go in, [`Step`]s come out; `accept::drive` carries them out. There is never more than
//! one step under way, so replies keep their order however hard the client pipelines.
//!
//! Not here: which connector a peer belongs to (`accept::attribute`), where mail goes (`route`),
//! when a 250 may be given (`relay::acknowledge`).
//!
//! Standards: RFC 5321 (SMTP), 2920 (PIPELINING), 3030 (CHUNKING), 3207 (STARTTLS), 3461 (DSN), 6531 (SMTPUTF8).

use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};

use super::Reply;
use crate::message::{Domain, Envelope, Recipient};

/// What a session is held to; the receive connector and the listener say so.
#[derive(Debug, Clone)]
pub struct Terms {
    /// Our name in greeting and EHLO.
    pub hostname: Domain,
    /// STARTTLS is offered (and the session is not in TLS yet).
    pub offer_starttls: bool,
    /// MAIL before STARTTLS is 530 5.7.0.
    pub require_tls: bool,
    /// Bytes; `None`: no limit.
    pub max_message_size: Option<u64>,
    /// Beyond: 452 4.5.3.
    pub max_recipients: usize,
    /// Beyond: 421 4.7.0 and close.
    pub max_errors: usize,
    /// Refuse clients that talk before the greeting or pipeline out of order.
    pub strict: bool,
    /// RFC 5321 section 4.5.3.2: the wait for a command.
    pub command_timeout: Duration,
    /// The wait for the next piece of a message.
    pub data_timeout: Duration,
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
    /// May this sender send here, and a message of this declared size? Answered `Go` or `Refuse`.
    Sender {
        /// The envelope so far: sender and parameters, no recipients.
        envelope: Envelope,
        /// SIZE, if it was given.
        size: Option<u64>,
    },
    /// May this recipient come? Answered `Go` or `Refuse`.
    Recipient(Recipient),
    /// The message is whole; may it be acknowledged? Answered with the reply to the final dot, as `Done`.
    Message {
        /// The envelope with the recipients that were accepted.
        envelope: Envelope,
        /// What the client called itself.
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

/// One session.
#[derive(Debug)]
pub struct Session {
    terms: Terms,
    unread: BytesMut,
}

impl Session {
    /// A session that begins with the greeting. `secure`: TLS came first (an implicit-TLS listener).
    pub fn new(terms: Terms, secure: bool, now: Instant) -> Self {
        let _ = (secure, now);
        Self { terms, unread: BytesMut::new() }
    }

    /// What to do next.
    pub fn step(&mut self, now: Instant) -> Step {
        let _ = (now, &self.terms);
        todo!()
    }

    /// Where the driver puts the bytes it reads.
    pub fn unread(&mut self) -> &mut BytesMut {
        &mut self.unread
    }

    /// Nothing came by the deadline.
    pub fn expired(&mut self) {
        todo!()
    }

    /// The answer to the last question.
    pub fn answer(&mut self, answer: Answer) {
        let _ = answer;
        todo!()
    }

    /// The handshake succeeded; the connection was attributed anew and these are the terms from now on.
    pub fn secured(&mut self, terms: Terms) {
        self.terms = terms;
    }

    /// The relay is shutting down: 421 4.3.2 at the next point where a reply is due, then close. A message
    /// whose end was already received is finished and answered first.
    pub fn shut_down(&mut self) {
        todo!()
    }
}
