//! Replies: every one we give, and parsing those we get.
//!
//! This file is the complete list of what the daemon says on the wire; nowhere else is a code spelled out.
//! Whatever a reply repeats of a peer's words is escaped to printable ASCII and cut: a reply can neither end a
//! line early nor grow without bound, whoever built it.
//!
//! Standards: RFC 5321 section 4.2 (replies), 2034 and 3463 (enhanced status codes).

use std::borrow::Cow;
use std::fmt::{self, Write as _};

use bytes::{Buf, BytesMut};

use crate::message::{Address, Domain, MessageId};

/// The longest reply line, with its CRLF. RFC 5321 section 4.5.3.1.5.
pub const LINE_LIMIT: usize = 512;

/// The longest text of a reply; what comes after is cut. Enough for two full lines, small enough to keep with
/// each recipient of a queued message.
pub const TEXT_LIMIT: usize = 1024;

/// The longest text kept of a reply to EHLO: there every line counts.
const HELLO_TEXT_LIMIT: usize = 16 * 1024;

/// How much of a line that a server sends us is kept; the rest of it is skipped.
const PEER_LINE_LIMIT: usize = 4096;

/// How many lines of a reply are kept; the rest are skipped.
const PEER_LINES: usize = 128;

/// Beyond this many bytes a reply will never end, and we stop listening.
const PEER_REPLY_LIMIT: usize = 256 * 1024;

/// An enhanced status code, such as 5.1.1. RFC 3463.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Status(pub u16, pub u16, pub u16);

/// One reply: code, enhanced status where there is one, and text of one or several lines.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reply {
    /// Three digits, 200 to 599.
    pub code: u16,
    /// The enhanced status; its class is the code's first digit.
    pub status: Option<Status>,
    /// The text without code and status; lines are separated by LF. Printable, at most 1 KiB.
    pub text: Box<str>,
}

impl Reply {
    /// True for 4yz.
    pub fn is_temporary(&self) -> bool {
        self.code / 100 == 4
    }

    /// True for 5yz.
    pub fn is_permanent(&self) -> bool {
        self.code / 100 == 5
    }

    /// True for 2yz.
    pub fn is_positive(&self) -> bool {
        self.code / 100 == 2
    }

    /// The enhanced status if it is there and of the code's class; else X.0.0. RFC 3463 section 2.
    pub fn status_or_class(&self) -> Status {
        self.status.filter(|status| status.0 == self.code / 100).unwrap_or(Status(self.code / 100, 0, 0))
    }

    /// Appends the reply as it goes over the wire. No line is longer than [`LINE_LIMIT`] and nothing but
    /// printable ASCII leaves, even if the fields were filled in by hand.
    pub fn write_to(&self, out: &mut BytesMut) {
        let text = printable(&self.text, HELLO_TEXT_LIMIT);
        // "250-" and "5.7.1 " and CRLF, with the longest status there can be.
        let room = LINE_LIMIT - 4 - 12 - 2;
        let mut lines = text.split('\n').flat_map(|line| pieces(line, room)).peekable();
        out.reserve(text.len() + 32);
        while let Some(line) = lines.next() {
            // `BytesMut` grows as it is written to; its `Write` cannot fail.
            let _ = write!(out, "{}{}", self.code, if lines.peek().is_some() { '-' } else { ' ' });
            if let Some(status) = self.status {
                let _ = write!(out, "{status} ");
            }
            let _ = write!(out, "{line}\r\n");
        }
    }

    fn new(code: u16, status: Status, text: impl AsRef<str>) -> Self {
        debug_assert_eq!(code / 100, status.0, "code and status speak of different classes");
        Self { status: Some(status), ..Self::bare(code, text) }
    }

    /// A reply without an enhanced status: greeting, EHLO, HELO and 354 have none. RFC 2034 section 3.
    fn bare(code: u16, text: impl AsRef<str>) -> Self {
        Self { code, status: None, text: printable(text.as_ref(), TEXT_LIMIT).into() }
    }
}

/// The session itself.
impl Reply {
    /// The first word is our name. RFC 5321 section 4.2.
    pub fn greeting(hostname: &Domain) -> Self {
        Self::bare(220, format!("{hostname} ESMTP"))
    }

    /// The answer to HELO.
    pub fn hello(hostname: &Domain) -> Self {
        Self::bare(250, hostname.as_str())
    }

    /// The answer to EHLO; each keyword stands on a line of its own.
    pub fn extended_hello<'a>(hostname: &Domain, keywords: impl IntoIterator<Item = Cow<'a, str>>) -> Self {
        let mut text = hostname.to_string();
        for keyword in keywords {
            text.push('\n');
            text.push_str(&keyword);
        }
        Self::bare(250, text)
    }

    /// The answer to STARTTLS: the client begins the handshake. RFC 3207 section 4.
    pub fn ready_to_start_tls() -> Self {
        Self::new(220, Status(2, 0, 0), "go ahead")
    }

    /// The answer to QUIT.
    pub fn bye(hostname: &Domain) -> Self {
        Self::new(221, Status(2, 0, 0), format!("{hostname} bye"))
    }

    /// The answer to NOOP and RSET.
    pub fn ok() -> Self {
        Self::new(250, Status(2, 0, 0), "ok")
    }

    /// The answer to HELP.
    pub fn help() -> Self {
        Self::new(214, Status(2, 0, 0), "see RFC 5321")
    }

    /// The answer to VRFY, known or not: who exists is told at RCPT, to those who may send. RFC 5321 section 3.5.3.
    pub fn cannot_verify() -> Self {
        Self::new(252, Status(2, 5, 0), "cannot verify, but will take the message and try")
    }

    /// The answer to MAIL.
    pub fn sender_ok() -> Self {
        Self::new(250, Status(2, 1, 0), "sender ok")
    }

    /// The answer to RCPT.
    pub fn recipient_ok() -> Self {
        Self::new(250, Status(2, 1, 5), "recipient ok")
    }

    /// The answer to AUTH that asks for more; `text` is base64, and may be empty. RFC 4954 section 4.
    pub fn challenge(text: &str) -> Self {
        Self::bare(334, text)
    }

    /// The password is right.
    pub fn logged_in() -> Self {
        Self::new(235, Status(2, 7, 0), "authentication successful")
    }

    /// The answer to DATA.
    pub fn start_mail_input() -> Self {
        Self::bare(354, "start mail input; end with <CRLF>.<CRLF>")
    }

    /// The answer to a BDAT that is not the last. RFC 3030 section 2.
    pub fn chunk_ok(octets: u64) -> Self {
        Self::new(250, Status(2, 0, 0), format!("{octets} octets received"))
    }

    /// The answer to the end of a message whose keeping we have taken on.
    pub fn accepted(id: MessageId) -> Self {
        Self::new(250, Status(2, 0, 0), format!("queued as {id}"))
    }
}

/// Commands that are wrong in themselves or at this point.
impl Reply {
    /// No such verb.
    pub fn unknown_command() -> Self {
        Self::new(500, Status(5, 5, 2), "command unknown")
    }

    /// A command line beyond its limit.
    pub fn line_too_long(limit: usize) -> Self {
        Self::new(500, Status(5, 5, 2), format!("line longer than {limit} octets"))
    }

    /// A verb that exists and is off here: EXPN, ETRN, TURN, AUTH where nobody may log in.
    pub fn command_disabled() -> Self {
        Self::new(502, Status(5, 5, 1), "command not implemented")
    }

    /// The line breaks the grammar in a way that has no better name.
    pub fn bad_syntax(what: &str) -> Self {
        Self::new(501, Status(5, 5, 2), what)
    }

    /// The argument of a command is missing, malformed or not wanted.
    pub fn bad_argument(what: &str) -> Self {
        Self::new(501, Status(5, 5, 4), what)
    }

    /// The reverse-path is no address.
    pub fn bad_sender(why: &str) -> Self {
        Self::new(501, Status(5, 1, 7), why)
    }

    /// The forward-path is no address.
    pub fn bad_recipient(why: &str) -> Self {
        Self::new(501, Status(5, 1, 3), why)
    }

    /// A UTF-8 address in a transaction without SMTPUTF8. RFC 6531 section 3.5.
    pub fn utf8_not_declared() -> Self {
        Self::new(553, Status(5, 6, 7), "an address outside ASCII needs SMTPUTF8")
    }

    /// A parameter we do not know, or that was not offered: after HELO none is.
    pub fn unknown_parameter(name: &str) -> Self {
        Self::new(555, Status(5, 5, 4), format!("parameter {} not recognized", excerpt(name)))
    }

    /// A parameter we know, with a value it cannot have.
    pub fn bad_parameter(name: &str, why: &str) -> Self {
        Self::new(501, Status(5, 5, 4), format!("parameter {}: {why}", excerpt(name)))
    }

    /// The command does not fit what came before.
    pub fn bad_sequence(what: &str) -> Self {
        Self::new(503, Status(5, 5, 1), what)
    }

    /// DATA or BDAT, and every RCPT was refused. RFC 5321 section 3.3.
    pub fn no_valid_recipients() -> Self {
        Self::new(554, Status(5, 5, 1), "no valid recipients")
    }

    /// This listener's connector wants TLS first. RFC 3207 section 4.
    pub fn tls_required() -> Self {
        Self::new(530, Status(5, 7, 0), "must issue a STARTTLS command first")
    }

    /// This listener's connector wants a login first. RFC 4954 section 6.
    pub fn login_required() -> Self {
        Self::new(530, Status(5, 7, 0), "authentication required")
    }

    /// A password would travel in the clear. RFC 4954 section 6.
    pub fn login_needs_tls() -> Self {
        Self::new(538, Status(5, 7, 11), "encryption required; issue STARTTLS first")
    }

    /// AUTH with a mechanism that was not offered. RFC 4954 section 4.
    pub fn unknown_mechanism() -> Self {
        Self::new(504, Status(5, 5, 4), "mechanism not offered")
    }

    /// The client answered `*`. RFC 4954 section 4.
    pub fn login_cancelled() -> Self {
        Self::new(501, Status(5, 7, 0), "authentication cancelled")
    }

    /// A line of a login beyond its limit. RFC 4954 section 6.
    pub fn login_line_too_long() -> Self {
        Self::new(500, Status(5, 5, 6), "authentication exchange line is too long")
    }

    /// Name and password do not belong together; which of them is wrong, nobody learns.
    pub fn login_refused() -> Self {
        Self::new(535, Status(5, 7, 8), "authentication credentials invalid")
    }

    /// Whether the password is right cannot be said now.
    pub fn login_unavailable() -> Self {
        Self::new(454, Status(4, 7, 0), "temporary authentication failure")
    }

    /// So many logins from this address failed that none is looked at for a while.
    pub fn login_locked() -> Self {
        Self::new(454, Status(4, 7, 0), "too many failed logins from your address; try again later")
    }

    /// REQUIRETLS in a session without TLS. RFC 8689 section 3.
    pub fn requiretls_needs_tls() -> Self {
        Self::new(530, Status(5, 7, 10), "REQUIRETLS needs a session in TLS")
    }

    /// NUL, or CR or LF alone, in a command.
    pub fn bare_control_in_command() -> Self {
        Self::new(501, Status(5, 5, 2), "lines end in CRLF; CR, LF and NUL stand nowhere else")
    }

    /// NUL, or CR or LF alone, in a message: somebody further on might take it for its end. The code is the
    /// one Exchange gives for bare line feeds.
    pub fn bare_control_in_message() -> Self {
        Self::new(550, Status(5, 6, 11), "message has NUL, or CR or LF that are no CRLF")
    }

    /// The client spoke before the greeting, or sent bytes behind a command whose answer it had to await.
    pub fn spoke_too_soon() -> Self {
        Self::new(554, Status(5, 5, 0), "synchronization: sent before it was your turn")
    }

    /// The first line is no SMTP at all: HTTP, TLS, SSH.
    pub fn not_smtp() -> Self {
        Self::new(554, Status(5, 5, 0), "this is SMTP")
    }
}

/// Limits, and the end of a session.
impl Reply {
    /// 452, not 552 as RFC 821 had it: the sender then offers the rest again. RFC 5321 section 4.5.3.1.10.
    pub fn too_many_recipients(limit: usize) -> Self {
        Self::new(452, Status(4, 5, 3), format!("at most {limit} recipients in one transaction"))
    }

    /// So many of them that the client is slowed down.
    pub fn too_many_unknown_recipients() -> Self {
        Self::new(452, Status(4, 5, 3), "too many unknown recipients; send the rest in another transaction")
    }

    /// The message, or what SIZE announced, is over the limit.
    pub fn message_too_big(limit: u64) -> Self {
        Self::new(552, Status(5, 3, 4), format!("message exceeds {limit} octets"))
    }

    /// Its envelope alone is longer than the spool can keep.
    pub fn envelope_too_long() -> Self {
        Self::new(552, Status(5, 3, 4), "the envelope is too long; send to fewer recipients at a time")
    }

    /// `max_errors` is reached.
    pub fn too_many_errors() -> Self {
        Self::new(421, Status(4, 7, 0), "too many errors")
    }

    /// Login after login failed in this session.
    pub fn too_many_failed_logins() -> Self {
        Self::new(421, Status(4, 7, 0), "too many failed logins")
    }

    /// The user has been taken out of the users file meanwhile.
    pub fn login_withdrawn() -> Self {
        Self::new(421, Status(4, 7, 0), "your login is no longer valid")
    }

    /// Command after command, and no mail.
    pub fn too_many_idle_commands() -> Self {
        Self::new(421, Status(4, 7, 0), "too many commands without mail")
    }

    /// One line that does not end.
    pub fn endless_line() -> Self {
        Self::new(421, Status(4, 7, 0), "line does not end")
    }

    /// BDAT after BDAT without content.
    pub fn too_many_empty_chunks() -> Self {
        Self::new(421, Status(4, 7, 0), "too many empty chunks")
    }

    /// Nothing, or too little, came in time.
    pub fn timed_out() -> Self {
        Self::new(421, Status(4, 4, 2), "timeout")
    }

    /// The connection is judged by what no longer holds; the client comes again.
    pub fn configuration_changed() -> Self {
        Self::new(421, Status(4, 3, 2), "the configuration has changed; come again")
    }

    /// The relay stops.
    pub fn shutting_down() -> Self {
        Self::new(421, Status(4, 3, 2), "shutting down")
    }

    /// Something is wrong here, and the session cannot go on.
    pub fn session_fault() -> Self {
        Self::new(421, Status(4, 3, 0), "local error in processing")
    }

    /// As many connections as there may be.
    pub fn too_many_connections() -> Self {
        Self::new(421, Status(4, 3, 2), "too many connections")
    }

    /// There is no memory or no descriptor to spare for another connection.
    pub fn overloaded() -> Self {
        Self::new(421, Status(4, 3, 2), "too busy; try again later")
    }

    /// As many connections from one address as there may be.
    pub fn too_many_connections_from_peer() -> Self {
        Self::new(421, Status(4, 7, 0), "too many connections from your address")
    }

    /// A greeting for those no receive connector takes.
    pub fn peer_not_allowed() -> Self {
        Self::new(554, Status(5, 7, 1), "no SMTP service for your address")
    }
}

/// What those outside are told of an organization whose premises disagree.
pub const LOOPS_INSIDE: &str = "routing loop in the recipient's organization; its postmaster has the details";
/// The same while it may be a mailbox that moves.
pub const MOVING_INSIDE: &str = "the recipient's mailbox may be moving; try again later";

/// What the stages behind have against a sender, a recipient or a message.
impl Reply {
    /// This connector takes mail for our own domains only.
    pub fn relay_denied() -> Self {
        Self::new(550, Status(5, 7, 1), "Unable to relay")
    }

    /// The domain is ours and the directory does not know the address.
    pub fn unknown_recipient(to: &Address) -> Self {
        Self::new(550, Status(5, 1, 1), format!("<{to}>: no such recipient here"))
    }

    /// The directory cannot be asked. Never taken for "unknown".
    pub fn directory_unavailable() -> Self {
        Self::new(451, Status(4, 4, 3), "recipient directory unavailable")
    }

    /// The way to this recipient comes back to where it began.
    pub fn recipient_loops(to: &Address) -> Self {
        Self::new(550, Status(5, 4, 6), format!("<{to}>: routing loop"))
    }

    /// Each premises holds the mailbox to be at the other, and has for longer than a move takes. `whom`: where the
    /// mailbox has another address than the one named. The lines are those that an administrator needs: what each side
    /// believes, and what to mend.
    pub fn sides_disagree(to: &Address, whom: Option<&Address>, source: &str) -> Self {
        let whom = whom.map_or_else(|| "it".to_owned(), Address::to_string);
        Self::new(
            550,
            Status(5, 4, 6),
            format!(
                "<{to}>: the on-premises side sent this here,\nbut {source} (here, cloud) has {whom} as an on-premises \
                 mailbox;\nmend one of the two directories"
            ),
        )
    }

    /// The same, and not for long yet: the mailbox may be moving.
    pub fn sides_disagree_yet(to: &Address, whom: Option<&Address>, source: &str) -> Self {
        let whom = whom.map_or_else(|| "it".to_owned(), Address::to_string);
        Self::new(
            451,
            Status(4, 4, 6),
            format!(
                "<{to}>: the on-premises side sent this here,\nbut {source} (here, cloud) has {whom} as an on-premises \
                 mailbox;\nit may be moving, try again; if it is not, mend one of the two directories"
            ),
        )
    }

    /// Either of these, and the second visit, for those outside: which directory says what is no business of theirs.
    pub fn loops_inside(may_be_moving: bool) -> Self {
        match may_be_moving {
            true => Self::new(451, Status(4, 4, 6), MOVING_INSIDE),
            false => Self::new(550, Status(5, 4, 6), LOOPS_INSIDE),
        }
    }

    /// No send connector serves the domain.
    pub fn no_route(to: &Address) -> Self {
        Self::new(550, Status(5, 4, 4), format!("<{to}>: no route"))
    }

    /// The hop this recipient is reached by takes no message of this size.
    pub fn too_big_for_connector(limit: u64) -> Self {
        Self::new(552, Status(5, 3, 4), format!("the way to this recipient takes at most {limit} octets"))
    }

    /// The send connector is switched off; mail for it is not taken meanwhile.
    pub fn connector_disabled() -> Self {
        Self::new(451, Status(4, 3, 5), "the way to this recipient is switched off")
    }

    /// Groups and rules made more recipients of these than a message may have.
    pub fn too_many_after_expansion(limit: usize) -> Self {
        Self::new(550, Status(5, 3, 0), format!("more than {limit} recipients after expansion"))
    }

    /// The receive connector does not take mail from this sender's domain.
    pub fn sender_domain_not_allowed(domain: &Domain) -> Self {
        Self::new(550, Status(5, 7, 1), format!("mail from {domain} does not come in here"))
    }

    /// The sender's domain is a partner's, and the partner's own connector is where its mail comes in.
    pub fn partner_comes_another_way(domain: &Domain) -> Self {
        Self::new(550, Status(5, 7, 1), format!("mail from {domain} must come from its partner's servers"))
    }

    /// The connector demands a certificate, and this is what is wrong with the one shown.
    pub fn certificate_refused(why: &str) -> Self {
        Self::new(550, Status(5, 7, 1), why)
    }

    /// The message has been through too many relays. RFC 5321 section 6.3.
    pub fn too_many_hops() -> Self {
        Self::new(554, Status(5, 4, 6), "too many hops")
    }

    /// The header block does not end where we stop looking: it could hide what is to be cut. C116, S-123.
    pub fn header_too_long(bytes: usize, fields: usize) -> Self {
        Self::new(552, Status(5, 3, 4), format!("the header has more than {bytes} bytes or {fields} fields"))
    }

    /// The message has been here before and would go the same way again; `words` tell why, one fact a line.
    pub fn second_visit(may_be_moving: bool, words: &str) -> Self {
        match may_be_moving {
            true => {
                let first = "it has been here before; if the mailbox is moving, one side will soon know better:";
                Self::new(451, Status(4, 4, 6), format!("{first}\n{words}"))
            }
            false => Self::new(550, Status(5, 4, 6), format!("routing loop, cut at the second visit:\n{words}")),
        }
    }

    /// The disk has no room for it now.
    pub fn insufficient_storage() -> Self {
        Self::new(452, Status(4, 3, 1), "insufficient storage")
    }

    /// There is no memory for it now: 452, as for a full disk.
    pub fn insufficient_memory() -> Self {
        Self::new(452, Status(4, 3, 1), "insufficient memory; try again later")
    }

    /// The spool could not keep the message.
    pub fn spool_fault() -> Self {
        Self::new(452, Status(4, 3, 0), "the message could not be stored")
    }

    /// Something went wrong here that is no fault of the client.
    pub fn internal_error() -> Self {
        Self::new(451, Status(4, 3, 0), "local error in processing")
    }

    /// The message waited longer for its keeping than the client waits for our word.
    pub fn took_too_long() -> Self {
        Self::new(451, Status(4, 3, 0), "took too long; try again")
    }
}

/// The bytes of a server's replies, made [`Reply`]s one by one, however they arrive.
///
/// A line ends at LF, with or without CR before it: servers that write LF alone exist, and nothing can be
/// smuggled through a reply.
#[derive(Debug, Default)]
pub struct ReplyParser {
    begun: Option<Reply>,
    text: String,
    lines: usize,
    octets: usize,
    /// The rest of an overlong line is being skipped.
    skipping: bool,
}

/// Why what a server sent is no reply: a protocol fault, which is temporary. RFC 5321 section 4.3.2 leaves no
/// meaning for such a thing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Garbled {
    /// A line does not begin with a code from 200 to 599 and space, hyphen or the line's end.
    #[error("a line without a reply code")]
    NoCode,
    /// The lines of one reply have different codes.
    #[error("a reply that changes its code")]
    CodeChanged,
    /// The reply does not end.
    #[error("a reply longer than 256 KiB")]
    Endless,
}

impl ReplyParser {
    /// Takes the next whole reply off `unread`; `None`: more bytes are needed. The text is cut at 1 KiB.
    ///
    /// # Errors
    /// What came is no reply; nothing that follows on this connection can be trusted.
    pub fn next(&mut self, unread: &mut BytesMut) -> Result<Option<Reply>, Garbled> {
        self.take(unread, TEXT_LIMIT)
    }

    /// As [`ReplyParser::next`], for the reply to EHLO: up to 128 lines and 16 KiB of text are kept, for
    /// [`Offered::parse`](super::extension::Offered::parse).
    ///
    /// # Errors
    /// As [`ReplyParser::next`].
    pub fn next_hello(&mut self, unread: &mut BytesMut) -> Result<Option<Reply>, Garbled> {
        self.take(unread, HELLO_TEXT_LIMIT)
    }

    /// True if part of a reply has been read: when the connection ends now, it ended in the middle.
    pub fn is_inside(&self) -> bool {
        self.begun.is_some() || self.skipping
    }

    fn take(&mut self, unread: &mut BytesMut, text_limit: usize) -> Result<Option<Reply>, Garbled> {
        loop {
            let end = memchr::memchr(b'\n', unread);
            if self.skipping {
                let rest = end.map_or(unread.len(), |end| end + 1);
                self.count(rest)?;
                unread.advance(rest);
                self.skipping = end.is_none();
                if self.skipping {
                    return Ok(None);
                }
                // The overlong line has ended; it was taken when its beginning was.
                if let Some(reply) = self.finished(text_limit) {
                    return Ok(Some(reply));
                }
                continue;
            }
            let (line, used) = match end {
                Some(end) if end <= PEER_LINE_LIMIT => (&unread[..end], end + 1),
                _ if unread.len() > PEER_LINE_LIMIT => {
                    self.skipping = true;
                    (&unread[..PEER_LINE_LIMIT], PEER_LINE_LIMIT)
                }
                _ => return Ok(None),
            };
            let line = line.strip_suffix(b"\r").unwrap_or(line).to_vec();
            unread.advance(used);
            self.count(used)?;
            self.line(&line)?;
            if !self.skipping
                && let Some(reply) = self.finished(text_limit)
            {
                return Ok(Some(reply));
            }
        }
    }

    fn count(&mut self, octets: usize) -> Result<(), Garbled> {
        self.octets += octets;
        if self.octets > PEER_REPLY_LIMIT { Err(Garbled::Endless) } else { Ok(()) }
    }

    /// Takes one line. `lines` becomes `usize::MAX` at the last one.
    fn line(&mut self, line: &[u8]) -> Result<(), Garbled> {
        let (code, last, mut text) = split_line(line).ok_or(Garbled::NoCode)?;
        let begun = self.begun.get_or_insert(Reply { code, status: None, text: "".into() });
        if begun.code != code {
            return Err(Garbled::CodeChanged);
        }
        if let Some((status, rest)) = leading_status(text)
            && status.0 == code / 100
            // A later line repeats the status of the first; another one is text. RFC 2034 section 4.
            && (self.lines == 0 || begun.status == Some(status))
        {
            begun.status = Some(status);
            text = rest;
        }
        if self.lines < PEER_LINES && self.text.len() < HELLO_TEXT_LIMIT {
            if self.lines > 0 {
                self.text.push('\n');
            }
            escape(text, &mut self.text);
        }
        self.lines = if last { usize::MAX } else { self.lines.saturating_add(1).min(usize::MAX - 1) };
        Ok(())
    }

    fn finished(&mut self, text_limit: usize) -> Option<Reply> {
        if self.lines != usize::MAX {
            return None;
        }
        let this = std::mem::take(self);
        this.begun.map(|begun| Reply { text: cut(&this.text, text_limit).into(), ..begun })
    }
}

/// Code, whether it is the reply's last line, and the text behind.
fn split_line(line: &[u8]) -> Option<(u16, bool, &[u8])> {
    let (code, rest) = line.split_at_checked(3)?;
    let [hundreds @ b'2'..=b'5', tens @ b'0'..=b'9', ones @ b'0'..=b'9'] = code else { return None };
    let code = u16::from(hundreds - b'0') * 100 + u16::from(tens - b'0') * 10 + u16::from(ones - b'0');
    match rest {
        [] => Some((code, true, rest)),
        [b' ', text @ ..] => Some((code, true, text)),
        [b'-', text @ ..] => Some((code, false, text)),
        _ => None,
    }
}

/// The enhanced status a text begins with, and what follows it. RFC 3463 section 2.
fn leading_status(text: &[u8]) -> Option<(Status, &[u8])> {
    let end = memchr::memchr(b' ', text).unwrap_or(text.len());
    let mut parts = text[..end].split(|&byte| byte == b'.').map(|part| {
        // Three digits at most, so the number fits whatever they are.
        let fits = matches!(part.len(), 1..=3) && part.iter().all(u8::is_ascii_digit);
        fits.then(|| part.iter().fold(0_u16, |number, digit| number * 10 + u16::from(digit - b'0')))
    });
    let status = Status(parts.next()??, parts.next()??, parts.next()??);
    if parts.next().is_some() || !matches!(status.0, 2 | 4 | 5) {
        return None;
    }
    Some((status, text.get(end + 1..).unwrap_or_default()))
}

/// The text with nothing but printable ASCII and LF, at most `limit` octets of it.
fn printable(text: &str, limit: usize) -> Cow<'_, str> {
    if text.bytes().all(|byte| matches!(byte, b' '..=b'~' | b'\n')) {
        return Cow::Borrowed(cut(text, limit));
    }
    let mut escaped = String::with_capacity(text.len() + 16);
    for (index, line) in text.split('\n').enumerate() {
        if index > 0 {
            escaped.push('\n');
        }
        escape(line.as_bytes(), &mut escaped);
    }
    escaped.truncate(cut(&escaped, limit).len());
    Cow::Owned(escaped)
}

/// Appends `bytes`; what is not printable ASCII is written as `\xHH`.
fn escape(bytes: &[u8], out: &mut String) {
    for &byte in bytes {
        match byte {
            b' '..=b'~' => out.push(char::from(byte)),
            _ => {
                let _ = write!(out, "\\x{byte:02X}");
            }
        }
    }
}

/// A peer's word as it may stand inside a reply: escaped and short.
fn excerpt(word: &str) -> Cow<'_, str> {
    printable(word, 64)
}

/// At most `limit` octets of an ASCII text.
fn cut(text: &str, limit: usize) -> &str {
    &text[..text.floor_char_boundary(limit)]
}

/// The line in pieces of at most `room` octets; one empty piece if it is empty.
fn pieces(line: &str, room: usize) -> impl Iterator<Item = &str> {
    let mut rest = Some(line);
    std::iter::from_fn(move || {
        let line = rest?;
        let piece = cut(line, room);
        rest = Some(&line[piece.len()..]).filter(|rest| !rest.is_empty());
        Some(piece)
    })
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.0, self.1, self.2)
    }
}

impl fmt::Display for Reply {
    /// On one line, as logs and reports show it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.code)?;
        if let Some(status) = self.status {
            write!(f, " {status}")?;
        }
        for line in self.text.lines() {
            write!(f, " {line}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn wire(reply: &Reply) -> String {
        let mut out = BytesMut::new();
        reply.write_to(&mut out);
        String::from_utf8(out.to_vec()).unwrap()
    }

    /// Feeds `bytes` in pieces of `cut` octets; every reply on one line each, and the fault, if there was one.
    fn parse(bytes: &[u8], cut: usize) -> Vec<String> {
        let (mut parser, mut unread, mut seen) = (ReplyParser::default(), BytesMut::new(), Vec::new());
        for piece in bytes.chunks(cut) {
            unread.extend_from_slice(piece);
            loop {
                match parser.next(&mut unread) {
                    Ok(Some(reply)) => seen.push(reply.to_string()),
                    Ok(None) => break,
                    Err(fault) => {
                        seen.push(fault.to_string());
                        return seen;
                    }
                }
            }
            assert!(unread.len() <= PEER_LINE_LIMIT, "what is parsed is not kept");
        }
        seen
    }

    /// C080, C081: of every reply there is. Those not listed are told by the session's own tests.
    #[test]
    fn replies_go_over_the_wire_as_the_standard_has_it() {
        let domain = Domain::parse("contoso.com").unwrap();
        let anna = Address::parse("anna@contoso.com").unwrap();
        for (reply, expected) in [
            (Reply::greeting(&domain), "220 contoso.com ESMTP\r\n"),
            (Reply::start_mail_input(), "354 start mail input; end with <CRLF>.<CRLF>\r\n"),
            (Reply::accepted(MessageId(0xAB)), "250 2.0.0 queued as 0000000000AB\r\n"),
            (Reply::unknown_recipient(&anna), "550 5.1.1 <anna@contoso.com>: no such recipient here\r\n"),
            (Reply::relay_denied(), "550 5.7.1 Unable to relay\r\n"),
            (Reply::too_many_recipients(9), "452 4.5.3 at most 9 recipients in one transaction\r\n"),
            (Reply::certificate_refused("a\r\nb\u{e9}"), "550-5.7.1 a\\x0D\r\n550 5.7.1 b\\xC3\\xA9\r\n"),
            (Reply::bare(250, "a\n\nb"), "250-a\r\n250-\r\n250 b\r\n"),
        ] {
            assert_eq!(wire(&reply), expected);
        }
    }

    /// C194, S-090: whatever text a peer gives, a reply stays within its lines.
    #[test]
    fn replies_are_cut_and_escaped() {
        let long = Reply::certificate_refused(&"x".repeat(5000));
        assert_eq!(long.text.len(), TEXT_LIMIT);
        assert!(wire(&long).lines().all(|line| line.len() <= LINE_LIMIT - 2 && line.starts_with("550")));
        let by_hand = Reply { code: 550, status: None, text: "a\r\n250 ok\u{1b}[0m\u{202e}".into() };
        assert_eq!(wire(&by_hand), "550-a\\x0D\r\n550 250 ok\\x1B[0m\\xE2\\x80\\xAE\r\n");
    }

    /// C263 to C265.
    #[test]
    fn replies_of_servers_are_understood() {
        for (bytes, expected) in [
            (&b"250 2.1.0 ok\r\n"[..], &["250 2.1.0 ok"][..]),
            (b"250\r\n", &["250 "]),
            (b"250 \r\n", &["250 "]),
            (b"250 ok\n", &["250 ok"]),
            (b"220-a\r\n220-\r\n220 b\r\n250 c\r\n", &["220 a  b", "250 c"]),
            (b"550-5.7.1 one\r\n550 5.7.1 two\r\n", &["550 5.7.1 one two"]),
            (b"550-5.7.1 one\r\n550 5.7.2 two\r\n", &["550 5.7.1 one 5.7.2 two"]),
            (b"550 5.7.2\r\n", &["550 5.7.2 "]),
            (b"550 5.999.999 x\r\n", &["550 5.999.999 x"]),
            (b"550 5.1000.1 x\r\n", &["550 5.1000.1 x"]),
            (b"550 4.7.1 other class\r\n", &["550 4.7.1 other class"]),
            (b"299 y\r\n", &["299 y"]),
            (b"550 caf\xc3\xa9\r\n", &["550 caf\\xC3\\xA9"]),
            (b"150 x\r\n", &["a line without a reply code"]),
            (b"650 x\r\n", &["a line without a reply code"]),
            (b"2x0 x\r\n", &["a line without a reply code"]),
            (b"25\r\n", &["a line without a reply code"]),
            (b"\r\n", &["a line without a reply code"]),
            (b"hello\r\n", &["a line without a reply code"]),
            (b"2501 x\r\n", &["a line without a reply code"]),
            (b"\x16\x03\x01\n", &["a line without a reply code"]),
            (b"250-a\r\n251 b\r\n", &["a reply that changes its code"]),
            (b"250-a\r\n", &[]),
        ] {
            for cut in [usize::MAX, 1, 2, 5] {
                let expected: Vec<_> = expected.iter().map(|text| text.trim_end().to_owned()).collect();
                let seen: Vec<_> = parse(bytes, cut).iter().map(|text| text.trim_end().to_owned()).collect();
                assert_eq!(seen, expected, "{:?}", bytes.escape_ascii().to_string());
            }
        }
        let other_class = Reply { code: 550, status: None, text: "4.7.1 x".into() };
        assert_eq!(other_class.status_or_class(), Status(5, 0, 0));
    }

    /// C262: a reply that does not end is left; one that is only long is cut.
    #[test]
    fn replies_of_servers_are_bounded() {
        assert_eq!(parse(&b"250-x\r\n".repeat(100_000), 4096), ["a reply longer than 256 KiB"]);
        assert_eq!(parse(&[&b"250 "[..], &[b'x'; 1 << 20]].concat(), 4096), ["a reply longer than 256 KiB"]);
        for cut in [usize::MAX, 4096, 100] {
            let long = [&b"250-"[..], &[b'x'; 100_000], b"\r\n250 end\r\n220 next\r\n"].concat();
            let mut parser = ReplyParser::default();
            let (mut unread, mut seen) = (BytesMut::new(), Vec::new());
            for piece in long.chunks(cut) {
                unread.extend_from_slice(piece);
                while let Some(reply) = parser.next(&mut unread).unwrap() {
                    seen.push((reply.code, reply.text.len()));
                }
            }
            assert_eq!(seen, [(250, TEXT_LIMIT), (220, 4)]);
            assert!(!parser.is_inside());
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn parsing_does_not_depend_on_segments(bytes in "(250[- ]|550[- ]5.1.1 |[a-z]{0,4}|\r\n){0,30}", cut in 1_usize..20) {
            prop_assert_eq!(parse(bytes.as_bytes(), cut), parse(bytes.as_bytes(), usize::MAX));
        }

        #[test]
        fn what_we_write_we_can_read(text in "\\PC{0,600}(\n\\PC{0,20}){0,3}") {
            let reply = Reply::new(550, Status(5, 7, 1), &text);
            let wire = wire(&reply);
            prop_assert!(wire.lines().all(|line| line.len() + 2 <= LINE_LIMIT));
            let mut unread = BytesMut::from(wire.as_bytes());
            let read = ReplyParser::default().next(&mut unread).unwrap().unwrap();
            prop_assert_eq!((read.code, read.status), (550, Some(Status(5, 7, 1))));
            // Lines that had to be parted cost an LF each, and the limit may take as many letters.
            let (read, said) = (read.text.replace('\n', ""), reply.text.replace('\n', ""));
            prop_assert!(said.starts_with(&read) && said.len() - read.len() <= 3, "{} {}", said, read);
        }

        #[test]
        fn noise_is_no_panic(bytes in prop::collection::vec(any::<u8>(), 0..300), cut in 1_usize..20) {
            parse(&bytes, cut);
        }
    }
}
