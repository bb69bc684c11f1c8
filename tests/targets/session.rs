//! The receiving session: bytes, the timer and the answers of the stages behind.
//!
//! The first line of a case has the terms (`strict`, `starttls`, `require_tls`, `auth`, `require_auth`, `xoorg`,
//! `secure`, `small`). What follows is sent by the client, but for four octets that no sensible client sends: FF, the
//! client is silent until the deadline; FE, a minute passes; FD, the relay shuts down; FC, the client waits for its
//! answer before it goes on. The answers follow from the addresses: `nobody…` and `later…` are refused, and so is a
//! password that is not `right`.

use std::time::{Duration, Instant};

use bytes::BytesMut;
use causeway::message::{Address, Domain, Envelope, MessageId, Recipient};
use causeway::smtp::Reply;
use causeway::smtp::framing::ENDLESS_LINE;
use causeway::smtp::reply::{LINE_LIMIT, ReplyParser};
use causeway::smtp::server::{Answer, Question, Session, Step, Terms};

use super::{Cuts, directives, is_clean};

const SILENCE: u8 = 0xff;
const MINUTE: u8 = 0xfe;
const SHUT_DOWN: u8 = 0xfd;
const FLIGHT: u8 = 0xfc;

/// A message that was taken.
#[derive(Debug, PartialEq, Eq)]
struct Taken {
    envelope: Envelope,
    hello: String,
    extended: bool,
    content: Vec<u8>,
}

/// Everything that can be seen of a session.
#[derive(Debug, Default, PartialEq, Eq)]
struct Transcript {
    said: Vec<u8>,
    logins: Vec<(String, String)>,
    senders: Vec<(Envelope, Option<u64>, Option<Domain>)>,
    recipients: Vec<Recipient>,
    messages: Vec<Taken>,
    handshakes: usize,
    closed: bool,
}

struct World<'t> {
    terms: &'t Terms,
    session: Session,
    now: Instant,
    seen: Transcript,
    kept: Vec<u8>,
    secure: bool,
    logged_in: bool,
    /// The transaction under way, as the answers have it.
    sender: Option<Option<Address>>,
    accepted: Vec<Recipient>,
}

pub fn session(data: &[u8]) {
    let (words, stream) = directives(data);
    let is = |word: &str| words.contains(&word);
    let terms = Terms {
        hostname: Domain::parse("mail.contoso.com").unwrap(),
        offer_starttls: is("starttls") || is("require_tls"),
        require_tls: is("require_tls"),
        offer_auth: is("auth") || is("require_auth"),
        require_auth: is("require_auth"),
        max_message_size: Some(if is("small") { 64 } else { 100_000 }),
        max_recipients: if is("small") { 2 } else { 100 },
        max_errors: if is("small") { 2 } else { 20 },
        strict: is("strict"),
        xoorg: is("xoorg"),
        command_timeout: Duration::from_secs(300),
        data_timeout: Duration::from_secs(180),
    };
    let now = Instant::now();
    let mut first: Option<Transcript> = None;
    for cuts in Cuts::of(data) {
        let seen = World::run(&terms, is("secure"), now, stream, cuts);
        check(&seen, &terms);
        match &first {
            // What follows STARTTLS, or comes before its turn, is seen only where it comes in the same piece: then the
            // session says so and ends. With everything in one piece it sees all of that.
            Some(first) if has(&first.said, b"554 5.5.0 synchronization") => {
                let common = first.said.len() - b"554 5.5.0 synchronization: sent before it was your turn\r\n".len();
                assert_eq!(&first.said[..common], seen.said.get(..common).unwrap_or_default(), "{cuts:?}");
            }
            Some(first) => {
                let text = |said: &[u8]| String::from_utf8_lossy(said).into_owned();
                assert_eq!(text(&first.said), text(&seen.said), "{cuts:?}");
                assert_eq!(*first, seen, "{cuts:?}");
            }
            None => first = Some(seen),
        }
    }
}

impl<'t> World<'t> {
    fn run(terms: &'t Terms, secure: bool, now: Instant, stream: &[u8], mut cuts: Cuts) -> Transcript {
        let session = Session::new(terms.clone(), secure, now);
        let (seen, kept, accepted) = (Transcript::default(), Vec::new(), Vec::new());
        let mut world = Self { terms, session, now, seen, kept, secure, logged_in: false, sender: None, accepted };
        for flight in stream.split_inclusive(|&octet| octet >= FLIGHT) {
            let (bytes, mark) = match flight.split_last() {
                Some((&mark, bytes)) if mark >= FLIGHT => (bytes, Some(mark)),
                _ => (flight, None),
            };
            let mut rest = bytes;
            let mut until = world.steps(&mut rest, &mut cuts);
            while !rest.is_empty() && until.is_some() {
                until = world.steps(&mut rest, &mut cuts);
            }
            match (mark, until) {
                (_, None) => break,
                (Some(SILENCE), Some(until)) => {
                    assert!(until >= world.now, "a deadline that is over");
                    world.now = until;
                    world.session.expired();
                }
                (Some(MINUTE), Some(until)) => {
                    world.now += Duration::from_secs(60);
                    // A driver would have noticed.
                    if world.now >= until {
                        world.session.expired();
                    }
                }
                (Some(SHUT_DOWN), _) => world.session.shut_down(),
                _ => {}
            }
        }
        world.steps(&mut &[][..], &mut cuts);
        world.seen
    }

    /// Runs until the session wants to read and there is nothing left in this flight; `None`: it is over.
    fn steps(&mut self, flight: &mut &[u8], cuts: &mut Cuts) -> Option<Instant> {
        if self.seen.closed {
            return None;
        }
        loop {
            match self.session.step(self.now) {
                Step::Send(bytes) => {
                    assert!(!bytes.is_empty(), "nothing is sent");
                    self.seen.said.extend_from_slice(&bytes);
                }
                Step::Receive { until } if flight.is_empty() => return Some(until),
                Step::Receive { until } => {
                    assert!(until >= self.now, "a deadline that is over");
                    let waiting = self.session.unread().len();
                    assert!(waiting <= ENDLESS_LINE, "{waiting} octets wait");
                    assert!(self.session.wanted() > 0);
                    let (piece, rest) = flight.split_at(cuts.next(flight.len()));
                    self.session.unread().extend_from_slice(piece);
                    *flight = rest;
                }
                Step::Keep(piece) => {
                    assert!(!piece.is_empty(), "nothing is kept");
                    self.kept.extend_from_slice(&piece);
                }
                Step::Discard => self.kept.clear(),
                Step::Ask(question) => {
                    let answer = self.answer(question);
                    self.session.answer(answer);
                }
                Step::StartTls => {
                    assert!(!self.secure && self.terms.offer_starttls, "a handshake that was not offered");
                    assert!(self.session.unread().is_empty(), "octets said in the clear wait to be obeyed");
                    self.seen.handshakes += 1;
                    self.secure = true;
                    self.logged_in = false;
                    self.sender = None;
                    self.kept.clear();
                    self.session.secured(self.terms.clone());
                    // The rest of the flight is what the handshake would be.
                    *flight = &[];
                }
                Step::Close => {
                    self.seen.closed = true;
                    return None;
                }
            }
        }
    }

    fn answer(&mut self, question: Question) -> Answer {
        match question {
            Question::Login(credentials) => {
                assert!(
                    self.secure && self.terms.offer_auth && !self.logged_in,
                    "a password nobody should have asked for"
                );
                self.logged_in = credentials.password == "right";
                self.seen.logins.push((credentials.username.clone(), credentials.password.clone()));
                if self.logged_in { Answer::Go } else { Answer::Refuse(Reply::login_refused()) }
            }
            Question::Sender { envelope, size, xoorg } => {
                assert!(self.secure || !self.terms.require_tls, "MAIL in the clear");
                assert!(self.logged_in || !self.terms.require_auth, "MAIL from somebody who did not log in");
                assert!(size.is_none_or(|size| self.terms.max_message_size.is_none_or(|limit| size <= limit)));
                assert!(xoorg.is_none() || (self.secure && self.terms.xoorg));
                assert!(envelope.recipients.is_empty());
                assert!(!envelope.requiretls || self.secure);
                let refused = envelope.sender.as_ref().is_some_and(|sender| sender.local().starts_with("nobody"));
                self.sender = (!refused).then(|| envelope.sender.clone());
                self.accepted.clear();
                self.seen.senders.push((envelope, size, xoorg));
                if refused { Answer::Refuse(Reply::relay_denied()) } else { Answer::Go }
            }
            Question::Recipient(recipient) => {
                assert!(self.sender.is_some(), "a recipient without a sender");
                assert!(self.accepted.len() < self.terms.max_recipients, "more recipients than there may be");
                assert!(!self.accepted.contains(&recipient), "asked a second time");
                let address = recipient.address.clone();
                self.seen.recipients.push(recipient.clone());
                match address.local() {
                    local if local.starts_with("nobody") => Answer::Refuse(Reply::unknown_recipient(&address)),
                    local if local.starts_with("later") => Answer::Refuse(Reply::directory_unavailable()),
                    _ => {
                        self.accepted.push(recipient);
                        Answer::Go
                    }
                }
            }
            Question::Message { envelope, hello, extended } => {
                let content = std::mem::take(&mut self.kept);
                let sender = self.sender.take().expect("a message without a transaction");
                assert_eq!(envelope.sender, sender, "the sender of another message");
                assert_eq!(
                    envelope.recipients,
                    std::mem::take(&mut self.accepted),
                    "the recipients of another message"
                );
                assert!(!envelope.recipients.is_empty(), "a message for nobody");
                assert!(content.len() as u64 <= self.terms.max_message_size.unwrap_or(u64::MAX), "too big");
                assert!(is_clean(&content), "a bare control in {:?}", content.escape_ascii().to_string());
                self.seen.messages.push(Taken { envelope, hello, extended, content });
                Answer::Done(Reply::accepted(MessageId(self.seen.messages.len() as u64)))
            }
        }
    }
}

/// What holds of every transcript.
fn check(seen: &Transcript, terms: &Terms) {
    assert!(seen.handshakes <= 1);
    for line in seen.said.split_inclusive(|&octet| octet == b'\n') {
        assert!(line.ends_with(b"\r\n") && line.len() <= LINE_LIMIT, "{:?}", line.escape_ascii().to_string());
        assert!(line[..line.len() - 2].iter().all(|octet| matches!(octet, b' '..=b'~')));
    }
    // Our own client understands every word.
    let (mut unread, mut parser) = (BytesMut::from(&seen.said[..]), ReplyParser::default());
    let mut replies = Vec::new();
    while let Some(reply) = parser.next_hello(&mut unread).expect("we say nothing that is no reply") {
        replies.push(reply);
    }
    assert!(unread.is_empty() && !parser.is_inside(), "half a reply");
    let queued = replies.iter().filter(|reply| reply.text.starts_with("queued as ")).count();
    assert_eq!(queued, seen.messages.len(), "each message taken is acknowledged once, and no other is");
    let started = replies.iter().filter(|reply| reply.code == 354).count();
    assert!(started <= seen.senders.len(), "354 without a sender");
    // RFC 5321 section 3.8: whom we turn away is told so.
    assert!(!seen.closed || !replies.is_empty(), "closed without a word");
    let errors = replies.iter().filter(|reply| reply.is_permanent()).count();
    // Recipients that are refused and what follows a refused MAIL do not count for as long as others are taken.
    let pardoned = seen.recipients.len() + (seen.senders.len() + 1) * (terms.max_recipients + 1);
    assert!(errors <= terms.max_errors + 2 + 3 + pardoned, "{errors} errors and no end");
}

fn has(text: &[u8], what: &[u8]) -> bool {
    text.windows(what.len()).any(|window| window == what)
}
