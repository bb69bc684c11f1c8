//! The session as a whole, driven by hand: tables for single commands, properties for streams.
//!
//! The global assertions of C080 and C081 are made on every line that any of these tests sees.

use proptest::prelude::*;

use super::*;
use crate::message::{BodyType, MessageId, Notify, Ret};

/// What came of a session.
#[derive(Debug, Default, PartialEq, Eq)]
struct Outcome {
    said: String,
    /// Envelope (sender, recipients) and content of each message.
    messages: Vec<(String, Vec<u8>)>,
    closed: bool,
}

/// Counts what depends on how the bytes were cut, and so is no part of the outcome.
#[derive(Debug, Default)]
struct Counts {
    sends: usize,
    keeps: usize,
    discards: usize,
}

struct Driver {
    session: Session,
    /// It sends what is due before it answers a question.
    is_early: bool,
    now: Instant,
    until: Option<Instant>,
    body: Vec<u8>,
    outcome: Outcome,
    counts: Counts,
    envelopes: Vec<Envelope>,
    hellos: Vec<(String, bool)>,
}

fn terms() -> Terms {
    Terms {
        hostname: Domain::parse("mail.contoso.com").unwrap(),
        offer_starttls: true,
        require_tls: false,
        offer_auth: false,
        require_auth: false,
        max_message_size: Some(100_000),
        max_recipients: 1000,
        max_errors: 1000,
        strict: false,
        xoorg: false,
        command_timeout: Duration::from_secs(300),
        data_timeout: Duration::from_secs(180),
    }
}

impl Driver {
    fn new(terms: Terms) -> Self {
        Self::start(terms, false)
    }

    fn start(terms: Terms, secure: bool) -> Self {
        let now = Instant::now();
        let mut driver = Self {
            session: Session::new(terms, secure, now),
            is_early: false,
            now,
            until: None,
            body: Vec::new(),
            outcome: Outcome::default(),
            counts: Counts::default(),
            envelopes: Vec::new(),
            hellos: Vec::new(),
        };
        driver.run();
        driver
    }

    /// Carries out steps until the session wants bytes or closes.
    fn run(&mut self) {
        loop {
            match self.session.step(self.now) {
                Step::Send(bytes) => {
                    self.counts.sends += 1;
                    assert!(bytes.len() < UNSENT_LIMIT + 4096, "unsent replies are bounded");
                    self.outcome.said.push_str(std::str::from_utf8(&bytes).unwrap());
                }
                Step::Receive { until } => {
                    if self.session.unread.is_empty() {
                        assert_eq!(self.session.unread.capacity(), 0, "an idle session holds no buffer");
                    }
                    self.until = Some(until);
                    return;
                }
                Step::Keep(piece) => {
                    assert!(!piece.is_empty());
                    self.counts.keeps += 1;
                    self.body.extend_from_slice(&piece);
                }
                Step::Discard => {
                    self.counts.discards += 1;
                    self.body.clear();
                }
                Step::Ask(question) => {
                    if self.is_early && self.session.has_pending() {
                        self.counts.sends += 1;
                        self.outcome.said.push_str(std::str::from_utf8(&self.session.pending()).unwrap());
                    }
                    let answer = self.answer(question);
                    self.session.answer(answer);
                }
                Step::StartTls => self.session.secured(self.session.terms.clone()),
                Step::Close => {
                    assert!(self.body.is_empty(), "what was kept is discarded before the end");
                    self.outcome.closed = true;
                    return;
                }
            }
        }
    }

    fn answer(&mut self, question: Question) -> Answer {
        match question {
            Question::Login(Credentials { ref username, ref password }) => match (&**username, &**password) {
                ("tim", "tanstaaftanstaaf") => Answer::Go,
                ("later", _) => Answer::Refuse(Reply::login_unavailable()),
                _ => Answer::Refuse(Reply::login_refused()),
            },
            Question::Sender { envelope, .. } => {
                match envelope.sender.is_some_and(|sender| sender.domain().as_str() == "blocked.example") {
                    true => Answer::Refuse(Reply::relay_denied()),
                    false => Answer::Go,
                }
            }
            Question::Recipient(recipient) => match recipient.address.local() {
                "nobody" => Answer::Refuse(Reply::unknown_recipient(&recipient.address)),
                "later" => Answer::Refuse(Reply::directory_unavailable()),
                _ => Answer::Go,
            },
            Question::Message { envelope, hello, extended } => {
                let sender = envelope.sender.as_ref().map_or(String::new(), ToString::to_string);
                let to: Vec<_> = envelope.recipients.iter().map(|to| to.address.to_string()).collect();
                let content = std::mem::take(&mut self.body);
                let refused = content.windows(7).any(|word| word == b"hopping");
                self.outcome.messages.push((format!("{sender} -> {}", to.join(", ")), content));
                self.envelopes.push(envelope);
                self.hellos.push((hello, extended));
                let id = MessageId(self.outcome.messages.len() as u64);
                Answer::Done(if refused { Reply::too_many_hops() } else { Reply::accepted(id) })
            }
        }
    }

    fn send(&mut self, bytes: &[u8]) -> &mut Self {
        for piece in bytes.chunks(CONTENT_READ) {
            if self.outcome.closed {
                break;
            }
            self.session.unread().extend_from_slice(piece);
            self.run();
        }
        self
    }

    /// Sends, and returns what was said since.
    fn ask(&mut self, bytes: impl AsRef<[u8]>) -> String {
        let before = self.outcome.said.len();
        self.send(bytes.as_ref());
        self.outcome.said[before..].to_owned()
    }

    fn pass(&mut self, time: Duration) {
        self.now += time;
        if self.until.is_some_and(|until| until <= self.now) {
            self.session.expired();
            self.run();
        }
    }

    /// The codes said, as "250 354 250"; the first of each reply.
    fn codes(&self) -> String {
        codes(&self.outcome.said)
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            check_replies(&self.outcome.said);
        }
    }
}

fn codes(said: &str) -> String {
    let last = said.split_terminator("\r\n").filter(|line| line.as_bytes()[3] == b' ');
    last.map(|line| &line[..3]).collect::<Vec<_>>().join(" ")
}

/// C080, C081, C082.
fn check_replies(said: &str) {
    assert!(said.is_empty() || said.ends_with("\r\n"));
    let mut multi: Option<&str> = None;
    for (index, line) in said.split_terminator("\r\n").enumerate() {
        assert!(line.len() + 2 <= 512, "{line}");
        assert!(line.bytes().all(|byte| matches!(byte, b' '..=b'~')), "{line}");
        let (code, rest) = line.split_at(3);
        assert!(matches!(code.as_bytes()[0], b'2'..=b'5') && code.bytes().all(|byte| byte.is_ascii_digit()), "{line}");
        assert!(multi.is_none_or(|begun| begun == code), "{line}");
        multi = rest.starts_with('-').then_some(code);
        assert!(rest.starts_with(['-', ' ']), "{line}");
        let word = rest[1..].split(' ').next().unwrap_or_default();
        let enhanced = word.starts_with(&format!("{}.", &code[..1])) && word.split('.').count() == 3;
        let greeting = index == 0 && code == "220";
        let hello = code == "250" && !enhanced;
        if greeting || code == "354" || code == "334" {
            assert!(!enhanced, "{line}");
        } else if !hello {
            assert!(enhanced, "{line}");
        }
    }
    assert_eq!(multi, None, "a reply without its last line");
}

const HELLO: &str = "EHLO one.example\r\n";
const TRANSACTION: &str = "EHLO one.example\r\nMAIL FROM:<a@b.example>\r\nRCPT TO:<anna@contoso.com>\r\n";

/// The last line said to `command` after `before`.
fn last(before: &str, command: &[u8]) -> String {
    let mut driver = Driver::new(terms());
    driver.send(before.as_bytes());
    let said = driver.ask(command);
    said.lines().last().unwrap_or_default().to_owned()
}

/// C001, C007, C008.
#[test]
fn the_greeting_and_the_hellos_name_us_first() {
    let mut driver = Driver::new(terms());
    assert_eq!(driver.outcome.said, "220 mail.contoso.com ESMTP\r\n");
    assert_eq!(driver.ask("HELO one\r\n"), "250 mail.contoso.com\r\n");
    let expected = "250-mail.contoso.com\r\n250-PIPELINING\r\n250-SIZE 100000\r\n250-8BITMIME\r\n250-SMTPUTF8\r\n\
        250-ENHANCEDSTATUSCODES\r\n250-CHUNKING\r\n250-DSN\r\n250-STARTTLS\r\n250 LIMITS RCPTMAX=1000\r\n";
    assert_eq!(driver.ask(HELLO), expected);
}

/// C016, C120, C210: the list follows the session.
#[test]
fn keywords_follow_the_session() {
    let mut driver = Driver::new(Terms { max_message_size: None, ..terms() });
    driver.send(b"EHLO one\r\n");
    assert!(driver.outcome.said.contains("250-SIZE\r\n") && !driver.outcome.said.contains("REQUIRETLS"));
    driver.send(b"STARTTLS\r\n");
    let said = driver.ask("EHLO one\r\n");
    assert!(said.contains("REQUIRETLS") && !said.contains("STARTTLS"), "{said}");
}

/// The table of section 1.2 of the commands: what was said before, the command, how the reply begins.
#[test]
fn commands_are_answered_as_the_standard_has_it() {
    let mail = "EHLO one.example\r\nMAIL FROM:<a@b.example>\r\n";
    let chunks = &format!("{TRANSACTION}BDAT 3\r\nabc");
    let failed = &format!("{mail}RCPT TO:<nobody@contoso.com>\r\n");
    for (id, before, command, expected) in [
        ("C009", "", "EHLO", "501 5.5.4"),
        ("C009", "", "HELO ", "501 5.5.4"),
        ("C010", "", "EHLO [192.0.2.1]", "250 "),
        ("C010", "", "EHLO [IPv6:2001:db8::1]", "250 "),
        ("C010", "", "EHLO a_b.c", "250 "),
        ("C011", "", "EHLO a b c", "250 "),
        ("C011", "", "EHLO a\u{1}b", "501 5.5.4"),
        ("C011", "", "EHLO a\tb", "501 5.5.4"),
        ("C011", "", "EHLO \u{7f}", "501 5.5.4"),
        ("C011", "", "EHLO  \t ", "501 5.5.4"),
        ("C011", "", "EHLO münchen", "250 "),
        ("C011", "", "HELO münchen", "250 "),
        ("C011", "", &format!("EHLO {}", "a ".repeat(300)), "250 "),
        ("C014", "", "MAIL FROM:<a@b.c>", "503 5.5.1"),
        ("C014", "", "NOOP", "250 2.0.0"),
        ("C014", "", "RSET", "250 2.0.0"),
        ("C014", "", "HELP", "214 2.0.0"),
        ("C014", "", "VRFY anna", "252 2.5.0"),
        ("C017", "", "QUIT", "221 2.0.0"),
        ("C030", HELLO, "mAiL fRoM:<A@b.c>", "250 2.1.0"),
        ("C030", mail, "rcpt to:<anna@contoso.com>", "250 2.1.5"),
        ("C031", mail, "RCPT TO:<anna@contoso.com> \t ", "250 2.1.5"),
        ("C032", HELLO, " NOOP", "500 5.5.2"),
        ("C033", HELLO, "MAIL FROM: <a@b.c>", "250 2.1.0"),
        ("C033", HELLO, "MAIL FROM : <a@b.c>", "501 5.5.4"),
        ("C033", HELLO, "MAIL FROM:  <a@b.c> SIZE=1000", "250 2.1.0"),
        ("C033", HELLO, "MAIL  FROM:<a@b.c>\tSIZE=1000 \t BODY=7BIT", "250 2.1.0"),
        ("C033", mail, "RCPT TO:\t<anna@contoso.com>", "250 2.1.5"),
        ("C033", mail, "RCPT TO: \t <anna@contoso.com> NOTIFY=NEVER", "250 2.1.5"),
        ("C034", HELLO, "MAIL FROM:a@b.c", "250 2.1.0"),
        ("C034", HELLO, "MAIL FROM: a@b.c SIZE=1000", "250 2.1.0"),
        ("C034", HELLO, "MAIL FROM:a@b.c SIZE=x", "501 5.5.4"),
        ("C034", HELLO, "MAIL FROM:\"a b\"@b.c SIZE=1000", "250 2.1.0"),
        ("C034", HELLO, "MAIL FROM:root", "250 2.1.0"),
        ("C034", mail, "RCPT TO:anna@contoso.com NOTIFY=NEVER", "250 2.1.5"),
        ("C034", HELLO, "MAIL FROM:", "501 5.5.4"),
        ("C034", HELLO, "MAIL FROM: SIZE=1000", "501 5.5.4"),
        ("C034", HELLO, "MAIL FROM:Anna <a@b.c>", "501 5."),
        ("C034", HELLO, "MAIL FROM:@a,@b:u@d", "501 5.5.4"),
        ("C034", HELLO, "MAIL FROM:<a b>", "501 5.1.7"),
        ("C035", HELLO, "MAIL FROM:<>", "250 2.1.0"),
        ("C036", HELLO, "MAIL FROM:< >", "501 5.1.7"),
        ("C036", HELLO, "MAIL FROM:<<a@b.c>>", "501 5."),
        ("C036", HELLO, "MAIL FROM:<a@b.c", "501 5.5.4"),
        ("C036", HELLO, "MAIL FROM:a@b.c>", "501 5.5.4"),
        ("C036", HELLO, "MAIL FROM:<a@b.c>x", "501 5.5.4"),
        ("C036", HELLO, "MAIL", "501 5.5.4"),
        ("C037", mail, "RCPT TO:<>", "501 5.1.3"),
        ("C038", mail, "RCPT TO:<postmaster>", "250 2.1.5"),
        ("C038", mail, "RCPT TO:<POSTMASTER>", "250 2.1.5"),
        ("C039", mail, "RCPT TO:<someone>", "250 2.1.5"),
        ("C039", HELLO, "MAIL FROM:<someone>", "250 2.1.0"),
        ("C039", HELLO, "MAIL FROM:<@a:someone>", "250 2.1.0"),
        ("C040", mail, "RCPT TO:<@a.x,@b.y:u@contoso.com>", "250 2.1.5"),
        ("C040", mail, "RCPT TO:<@[IPv6:::1]:u@contoso.com>", "250 2.1.5"),
        ("C042", mail, "RCPT TO:<@a:>", "501 5.1.3"),
        ("C042", HELLO, "MAIL FROM:<@a:>", "501 5.1.7"),
        ("C042", mail, "RCPT TO:<@a,b:u@d>", "501 5.5.4"),
        ("C042", mail, "RCPT TO:<:u@d>", "501 5.1.3"),
        ("C042", mail, "RCPT TO:<@:u@d>", "501 5.5.4"),
        ("C042", mail, &format!("RCPT TO:<{}@a:u@d>", "@a,".repeat(199)), "501 5.5.4"),
        ("C043", mail, "RCPT TO:<\"a b\"@contoso.com>", "250 2.1.5"),
        ("C043", mail, "RCPT TO:<\"a>b\\\"\"@contoso.com>", "250 2.1.5"),
        ("C044", mail, "RCPT TO:<\"a@contoso.com>", "501 5."),
        ("C045", mail, "RCPT TO:<.a@contoso.com>", "250 2.1.5"),
        ("C045", mail, "RCPT TO:<a.@contoso.com>", "250 2.1.5"),
        ("C045", HELLO, "MAIL FROM:<a..b@contoso.com>", "250 2.1.0"),
        ("C046", mail, "RCPT TO:<a@contoso.com.>", "501 5.1.3"),
        ("C048", mail, "RCPT TO:<a@[x]>", "501 5.1.3"),
        ("C049", mail, &format!("RCPT TO:<{}@contoso.com>", "x".repeat(64)), "250 2.1.5"),
        ("C049", mail, &format!("RCPT TO:<{}@contoso.com>", "x".repeat(65)), "250 2.1.5"),
        ("C049", mail, &format!("RCPT TO:<{}@contoso.com>", "x".repeat(242)), "250 2.1.5"),
        ("C049", mail, &format!("RCPT TO:<{}@contoso.com>", "x".repeat(243)), "501 5.1.3"),
        ("C049", HELLO, &format!("MAIL FROM:<{}@contoso.com>", "x".repeat(242)), "250 2.1.0"),
        ("C049", HELLO, &format!("MAIL FROM:<{}@contoso.com>", "x".repeat(243)), "501 5.1.7"),
        ("C049", HELLO, &format!("MAIL FROM:<{}>", "x".repeat(243)), "501 5.1.7"),
        ("C050", HELLO, &format!("NOOP {}", "x".repeat(505)), "250 2.0.0"),
        ("C051", HELLO, &format!("NOOP {}", "x".repeat(4096 - 7)), "250 2.0.0"),
        ("C051", HELLO, &format!("NOOP {}", "x".repeat(4096 - 6)), "500 5.5.2"),
        ("C054", HELLO, "FOO", "500 5.5.2"),
        ("C054", HELLO, "", "500 5.5.2"),
        ("C054", HELLO, "EXPN staff", "502 5.5.1"),
        ("C054", HELLO, "ETRN x", "502 5.5.1"),
        ("C054", HELLO, "TURN", "502 5.5.1"),
        ("C055", TRANSACTION, "DATA x", "501 5.5.4"),
        ("C055", HELLO, "RSET x", "501 5.5.4"),
        ("C055", HELLO, "QUIT x", "501 5.5.4"),
        ("C055", HELLO, "STARTTLS x", "501 5.5.4"),
        ("C056", HELLO, "NOOP anything at all", "250 2.0.0"),
        ("C056", HELLO, "HELP MAIL", "214 2.0.0"),
        ("C057", mail, "VRFY anna", "252 2.5.0"),
        ("C058", HELLO, "MAIL FROM:<a@b.c> FOO=1", "555 5.5.4"),
        ("C058", mail, "RCPT TO:<a@b.c> FOO", "555 5.5.4"),
        ("C058", HELLO, "MAIL FROM:<a@b.c> AUTH=<>", "250 2.1.0"),
        ("C058", HELLO, "MAIL FROM:<a@b.c> AUTH=a+3d=\u{7f}", "250 2.1.0"),
        ("C058", "HELO one\r\n", "MAIL FROM:<a@b.c> AUTH=<>", "555 5.5.4"),
        ("C059", HELLO, "MAIL FROM:<a@b.c> SIZE=1 SIZE=1", "501 5.5.4"),
        ("C059", HELLO, "MAIL FROM:<a@b.c> SMTPUTF8 smtputf8", "501 5.5.4"),
        ("C060", HELLO, "MAIL FROM:<a@b.c>SIZE=1", "501 5.5.4"),
        ("C060", HELLO, "MAIL FROM:<a@b.c> SIZE", "501 5.5.4"),
        ("C060", HELLO, "MAIL FROM:<a@b.c> SIZE=", "501 5.5.4"),
        ("C060", HELLO, "MAIL FROM:<a@b.c> =1", "501 5.5.4"),
        ("C060", HELLO, "MAIL FROM:<a@b.c>  =", "501 5.5.4"),
        ("C060", HELLO, "MAIL FROM:<a@b.c> BODY==7BIT", "501 5.5.4"),
        ("C060", HELLO, &format!("MAIL FROM:<a@b.c>{}", " A=1".repeat(100)), "555 5.5.4"),
        ("C060", HELLO, &format!("MAIL FROM:<a@b.c> ENVID={}", "x".repeat(4000)), "250 2.1.0"),
        ("C061", mail, "MAIL FROM:<a@b.c>", "503 5.5.1"),
        ("C062", HELLO, "RCPT TO:<anna@contoso.com>", "503 5.5.1"),
        ("C062", HELLO, "DATA", "503 5.5.1"),
        ("C062", mail, "DATA", "503 5.5.1"),
        ("C062", failed, "DATA", "554 5.5.1"),
        ("C008", "HELO one\r\n", "MAIL FROM:<a@b.c> SIZE=1", "555 5.5.4"),
        ("C008", "HELO one\r\n", "MAIL FROM:<a@b.c> SMTPUTF8", "555 5.5.4"),
        ("C008", "HELO one\r\nMAIL FROM:<a@b.c>\r\n", "RCPT TO:<a@b.c> NOTIFY=NEVER", "555 5.5.4"),
        ("C117", HELLO, "MAIL FROM:<a@b.c> SIZE=100000", "250 2.1.0"),
        ("C117", HELLO, "MAIL FROM:<a@b.c> SIZE=100001", "552 5.3.4"),
        ("C117", HELLO, "MAIL FROM:<a@b.c> SIZE=0", "250 2.1.0"),
        ("C118", HELLO, "MAIL FROM:<a@b.c> SIZE=99999999999999999999", "552 5.3.4"),
        ("C118", HELLO, "MAIL FROM:<a@b.c> SIZE=999999999999999999999", "501 5.5.4"),
        ("C118", HELLO, "MAIL FROM:<a@b.c> SIZE=00000000000000000001", "250 2.1.0"),
        ("C118", HELLO, "MAIL FROM:<a@b.c> SIZE=-1", "501 5.5.4"),
        ("C118", HELLO, "MAIL FROM:<a@b.c> SIZE=+1", "501 5.5.4"),
        ("C118", HELLO, "MAIL FROM:<a@b.c> SIZE=1e3", "501 5.5.4"),
        ("C118", HELLO, "MAIL FROM:<a@b.c> SIZE=0x10", "501 5.5.4"),
        ("C141", chunks, "DATA", "503 5.5.1"),
        ("C141", chunks, "MAIL FROM:<a@b.c>", "503 5.5.1"),
        ("C141", chunks, "RCPT TO:<a@b.c>", "503 5.5.1"),
        ("C142", HELLO, "MAIL FROM:<a@b.c> BODY=BINARYMIME", "555 5.5.4"),
        ("C160", HELLO, "MAIL FROM:<a@b.c> BODY=8bitmime", "250 2.1.0"),
        ("C160", HELLO, "MAIL FROM:<a@b.c> BODY=7BIT", "250 2.1.0"),
        ("C160", HELLO, "MAIL FROM:<a@b.c> BODY=X", "501 5.5.4"),
        ("C163", HELLO, "MAIL FROM:<é@x.example>", "553 5.6.7"),
        ("C163", HELLO, "MAIL FROM:<e@é.example>", "553 5.6.7"),
        ("C163", mail, "RCPT TO:<é@contoso.com>", "553 5.6.7"),
        ("C164", HELLO, "MAIL FROM:<é@x.example> SMTPUTF8", "250 2.1.0"),
        ("C166", HELLO, "MAIL FROM:<a@b.c> SMTPUTF8=1", "501 5.5.4"),
        ("C166", mail, "RCPT TO:<a@b.c> SMTPUTF8", "555 5.5.4"),
        ("C180", HELLO, "MAIL FROM:<a@b.c> RET=full", "250 2.1.0"),
        ("C180", HELLO, "MAIL FROM:<a@b.c> RET=HDRS", "250 2.1.0"),
        ("C180", HELLO, "MAIL FROM:<a@b.c> RET=X", "501 5.5.4"),
        ("C180", HELLO, "MAIL FROM:<a@b.c> RET=FULL RET=FULL", "501 5.5.4"),
        ("C181", HELLO, &format!("MAIL FROM:<a@b.c> ENVID={}", "x".repeat(100)), "250 2.1.0"),
        ("C181", HELLO, &format!("MAIL FROM:<a@b.c> ENVID={}", "x".repeat(101)), "250 2.1.0"),
        ("C181", HELLO, "MAIL FROM:<a@b.c> ENVID=", "250 2.1.0"),
        ("C181", HELLO, "MAIL FROM:<a@b.c> ENVID=a+G0", "250 2.1.0"),
        ("C181", HELLO, "MAIL FROM:<a@b.c> ENVID=a+4", "250 2.1.0"),
        ("C181", HELLO, "MAIL FROM:<a@b.c> ENVID=a+2b", "250 2.1.0"),
        ("C181", HELLO, "MAIL FROM:<a@b.c> ENVID=a=b", "250 2.1.0"),
        ("C182", HELLO, "MAIL FROM:<a@b.c> ENVID=a+00", "250 2.1.0"),
        ("C182", HELLO, "MAIL FROM:<a@b.c> ENVID=a+0D+0A", "250 2.1.0"),
        ("C182", mail, "RCPT TO:<a@b.c> ORCPT=rfc822;a+0Ab", "250 2.1.5"),
        ("C182", mail, "RCPT TO:<a@b.c> ORCPT=utf-8;a\\x{0A}b", "250 2.1.5"),
        ("C183", mail, "RCPT TO:<a@b.c> ORCPT=rfc822;a+2Bb@c", "250 2.1.5"),
        ("C183", mail, "RCPT TO:<a@b.c> ORCPT=utf-8;a\\x{E9}b@c", "250 2.1.5"),
        ("C183", mail, "RCPT TO:<a@b.c> ORCPT=x400;whatever", "250 2.1.5"),
        ("C183", mail, "RCPT TO:<a@b.c> ORCPT=rfc822", "250 2.1.5"),
        ("C183", mail, "RCPT TO:<a@b.c> ORCPT=;a@b", "250 2.1.5"),
        ("C183", mail, &format!("RCPT TO:<a@b.c> ORCPT=rfc822;{}", "x".repeat(493)), "250 2.1.5"),
        ("C183", mail, &format!("RCPT TO:<a@b.c> ORCPT=rfc822;{}", "x".repeat(494)), "250 2.1.5"),
        ("C183", mail, "RCPT TO:<a@b.c> ORCPT=rfc822;", "250 2.1.5"),
        ("C183", mail, "RCPT TO:<a@b.c> ORCPT", "250 2.1.5"),
        ("C183", mail, "RCPT TO:<a@b.c> ORCPT=rfc822;+C3+A9@c", "250 2.1.5"),
        ("C183", mail, "RCPT TO:<a@b.c> ORCPT=rfc822;a@b ORCPT=rfc822;a@b", "501 5.5.4"),
        ("C184", mail, "RCPT TO:<a@b.c> NOTIFY=NEVER", "250 2.1.5"),
        ("C184", mail, "RCPT TO:<a@b.c> NOTIFY=SUCCESS,failure,DELAY", "250 2.1.5"),
        ("C184", mail, "RCPT TO:<a@b.c> NOTIFY=NEVER,FAILURE", "501 5.5.4"),
        ("C184", mail, "RCPT TO:<a@b.c> NOTIFY=", "501 5.5.4"),
        ("C184", mail, "RCPT TO:<a@b.c> NOTIFY=SOMETIMES", "501 5.5.4"),
        ("C184", mail, "RCPT TO:<a@b.c> NOTIFY=DELAY,DELAY", "250 2.1.5"),
        ("C184", mail, "RCPT TO:<a@b.c> NOTIFY=DELAY NOTIFY=DELAY", "501 5.5.4"),
        ("C211", HELLO, "MAIL FROM:<a@b.c> REQUIRETLS", "530 5.7.10"),
        ("C211", HELLO, "MAIL FROM:<a@b.c> REQUIRETLS=x", "501 5.5.4"),
        ("C215", mail, "STARTTLS", "503 5.5.1"),
        ("C215", "STARTTLS\r\n", "STARTTLS", "503 5.5.1"),
        ("C216", "EHLO a\r\nSTARTTLS\r\n", "MAIL FROM:<a@b.c>", "503 5.5.1"),
    ] {
        // STARTTLS has to be sent alone.
        let mut driver = Driver::new(terms());
        for line in before.split_inclusive("\r\n") {
            driver.send(line.as_bytes());
        }
        let said = driver.ask(format!("{command}\r\n"));
        let reply = said.lines().last().unwrap_or_default();
        assert!(reply.starts_with(expected), "{id}: {command}: expected {expected}, got {said}");
        // C055 and the like: an error leaves the state as it was; the session goes on.
        if !driver.outcome.closed {
            assert_eq!(driver.ask("NOOP\r\n"), "250 2.0.0 ok\r\n", "{id}: {command}");
        }
    }
}

/// Rows as above: what a strict listener refuses, and what it takes all the same.
#[test]
fn a_strict_listener_keeps_to_the_grammar() {
    let mail = "EHLO one.example\r\nMAIL FROM:<a@b.example>\r\n";
    let long = "x".repeat(101);
    for (before, command, expected) in [
        ("", "EHLO a b c", "501 5.5.4"),
        ("", "EHLO b\u{fc}ro-pc", "501 5.5.4"),
        ("", "EHLO  one.example", "501 5.5.4"),
        ("", "EHLO a_b.c", "250 "),
        (HELLO, "MAIL FROM: <a@b.c>", "501 5.5.4"),
        (HELLO, "MAIL  FROM:<a@b.c>", "501 5.5.4"),
        (HELLO, "MAIL FROM:<a@b.c>\tSIZE=1000", "501 5.5.4"),
        (HELLO, "MAIL FROM:a@b.c", "501 5.5.4"),
        (HELLO, "MAIL FROM:<root>", "501 5.1.7"),
        (HELLO, "MAIL FROM:<postmaster>", "501 5.1.7"),
        (HELLO, "MAIL FROM:<a..b@b.c>", "501 5.1.7"),
        (HELLO, "MAIL FROM:<a@b.c> AUTH=<>", "555 5.5.4"),
        (HELLO, &format!("MAIL FROM:<a@b.c> ENVID={long}"), "501 5.5.4"),
        (HELLO, "MAIL FROM:<a@b.c> ENVID=", "501 5.5.4"),
        (HELLO, "MAIL FROM:<a@b.c> ENVID=a+2b", "501 5.5.4"),
        (HELLO, "MAIL FROM:<a@b.c> ENVID=a=b", "501 5.5.4"),
        (HELLO, "MAIL FROM:<a@b.c> ENVID=a+0D+0A", "501 5.5.4"),
        (HELLO, "MAIL FROM:<a@b.c> SIZE=1 \tBODY=7BIT", "501 5.5.4"),
        (mail, "RCPT TO:\t<anna@contoso.com>", "501 5.5.4"),
        (mail, "RCPT TO:anna@contoso.com", "501 5.5.4"),
        (mail, "RCPT TO:<root>", "501 5.1.3"),
        (mail, "RCPT TO:<postmaster>", "250 2.1.5"),
        (mail, "RCPT TO:<\"Postmaster\">", "250 2.1.5"),
        (mail, "RCPT TO:<a.@contoso.com>", "501 5.1.3"),
        (mail, "RCPT TO:<.a@contoso.com>", "501 5.1.3"),
        (mail, "RCPT TO:<\"a.\"@contoso.com>", "250 2.1.5"),
        (mail, &format!("RCPT TO:<{}@contoso.com>", "x".repeat(200)), "250 2.1.5"),
        (mail, "RCPT TO:<a@b.c> ORCPT=rfc822;+C3+A9@c", "501 5.5.4"),
        (mail, "RCPT TO:<a@b.c> ORCPT=rfc822;a+2bb@c", "501 5.5.4"),
        (mail, "RCPT TO:<a@b.c> ORCPT=rfc822;", "501 5.5.4"),
        (mail, "RCPT TO:<a@b.c> ORCPT=rfc822;a@b", "250 2.1.5"),
        (mail, "RCPT TO:<a@b.c> NOTIFY=DELAY,DELAY", "501 5.5.4"),
    ] {
        let mut driver = Driver::new(Terms { strict: true, ..terms() });
        driver.pass(GREETING_PAUSE);
        for line in before.split_inclusive("\r\n") {
            driver.send(line.as_bytes());
        }
        let said = driver.ask(format!("{command}\r\n"));
        let reply = said.lines().last().unwrap_or_default();
        assert!(reply.starts_with(expected), "{command}: expected {expected}, got {said}");
    }
}

/// What a client says of itself and of a message, whether it is a strict listener's grammar or not, and what becomes of it.
#[test]
fn what_cannot_be_used_is_left_out() {
    let orcpt = |kind: &str, address: &str| Some((kind.to_owned(), address.to_owned()));
    for (hello, mail, rcpt, expected) in [
        ("one", "<a@b.c>", "<a@b.c>", ("one", "a@b.c", "a@b.c", None, None)),
        ("one", "<root>", "root", ("one", "root@mail.contoso.com", "root@mail.contoso.com", None, None)),
        ("one", "a..b@b.c", "<.a@b.c>", ("one", "\"a..b\"@b.c", "\".a\"@b.c", None, None)),
        (
            "a b",
            "<a@b.c> ENVID=a+2bb",
            "<a@b.c> ORCPT=rfc822;a+2bb@c",
            ("a%20b", "a@b.c", "a@b.c", Some("a+b"), orcpt("rfc822", "a+b@c")),
        ),
        ("ä", "<a@b.c> ENVID=", "<a@b.c> ORCPT=rfc822;", ("%C3%A4", "a@b.c", "a@b.c", None, None)),
        ("[::1]", "<a@b.c> ENVID=+C3+A9", "<a@b.c> ORCPT=rfc822;+C3+A9@c", ("[::1]", "a@b.c", "a@b.c", None, None)),
        ("one", "<a@b.c> ENVID=+00", "<a@b.c> ORCPT=rfc822;a+0D+0A", ("one", "a@b.c", "a@b.c", None, None)),
        ("one", "<a@b.c> ENVID", "<a@b.c> ORCPT=a;b=c", ("one", "a@b.c", "a@b.c", None, orcpt("a", "b=c"))),
    ] {
        let mut driver = Driver::new(terms());
        driver.ask(format!("EHLO {hello}\r\nMAIL FROM:{mail}\r\nRCPT TO:{rcpt}\r\nDATA\r\n.\r\n"));
        assert_eq!(driver.envelopes.len(), 1, "{hello} {mail} {rcpt}: {}", driver.outcome.said);
        let envelope = &driver.envelopes[0];
        let to = &envelope.recipients[0];
        let seen = (
            &*driver.hellos[0].0,
            &*envelope.sender.as_ref().unwrap().to_string(),
            &*to.address.to_string(),
            envelope.envid.as_deref(),
            to.orcpt.as_ref().map(|orcpt| (orcpt.kind.to_string(), orcpt.address.to_string())),
        );
        assert_eq!(seen, expected, "{hello} {mail} {rcpt}");
    }
    // Octets in whatever character set.
    let mut driver = Driver::new(terms());
    driver.ask(b"EHLO DESKTOP-\xc4\xd6\r\nMAIL FROM:<>\r\nRCPT TO:<a@b.c>\r\nDATA\r\n.\r\n");
    assert_eq!(driver.hellos[0].0, "DESKTOP-%C4%D6");
}

/// The same recipient again with another wish for reports is another recipient, as both are to be told.
#[test]
fn a_recipient_named_again_with_other_wishes_keeps_both() {
    let mut driver = Driver::new(terms());
    let said = driver.ask(format!(
        "{TRANSACTION}RCPT TO:<anna@contoso.com>\r\nRCPT TO:<anna@contoso.com> NOTIFY=FAILURE ORCPT=rfc822;a@b\r\n\
         RCPT TO:<ANNA@contoso.com>\r\nRCPT TO:<anna@contoso.com> NOTIFY=FAILURE ORCPT=rfc822;a@b\r\nDATA\r\n.\r\n"
    ));
    assert_eq!(codes(&said), "250 250 250 250 250 250 250 354 250");
    assert_eq!(
        driver.outcome.messages[0].0, "a@b.example -> anna@contoso.com, anna@contoso.com, ANNA@contoso.com",
        "what is the same in everything is once enough"
    );
}

/// C012, C061, C062: what keeps a transaction, and what ends it.
#[test]
fn a_transaction_ends_where_the_standard_ends_it() {
    for (command, kept) in [
        ("NOOP", true),
        ("VRFY anna", true),
        ("HELP", true),
        ("DATA x", true),
        ("RSET x", true),
        ("QUIT x", true),
        ("MAIL FROM:<x@y.z>", true),
        ("RCPT TO:<nobody@contoso.com>", true),
        ("RCPT TO:<bad", true),
        ("EHLO", true),
        ("FOO", true),
        ("STARTTLS", true),
        ("RSET", false),
        ("EHLO two.example", false),
        ("HELO two.example", false),
    ] {
        let mut driver = Driver::new(terms());
        driver.send(TRANSACTION.as_bytes());
        driver.ask(format!("{command}\r\n"));
        let expected = if kept { "354" } else { "503" };
        assert_eq!(codes(&driver.ask("DATA\r\n")), expected, "{command}");
    }
}

/// C063: nothing of one transaction is left for the next.
#[test]
fn rcpt_needs_a_mail_of_its_own() {
    for (what, before) in [
        ("a finished message", "DATA\r\nhi\r\n.\r\n"),
        ("a message refused at the dot", "DATA\r\nhopping\r\n.\r\n"),
        ("a message over the limit", &format!("DATA\r\n{}.\r\n", "x\r\n".repeat(40_000))),
        ("a refused BDAT", "RCPT TO:<x@y.z>\r\nBDAT 100001\r\n"),
        ("RSET", "RSET\r\n"),
        ("EHLO", "EHLO two.example\r\n"),
        ("BDAT LAST", "BDAT 2 LAST\r\nhi"),
    ] {
        let mut driver = Driver::new(terms());
        driver.send(TRANSACTION.as_bytes());
        driver.send(before.as_bytes());
        if what == "a refused BDAT" {
            driver.send(&vec![b'x'; 100_001]);
        }
        let messages = driver.outcome.messages.len();
        assert_eq!(codes(&driver.ask("RCPT TO:<anna@contoso.com>\r\n")), "503", "after {what}");
        assert!(matches!(codes(&driver.ask("DATA\r\n")).as_str(), "503"), "after {what}");
        assert_eq!(driver.outcome.messages.len(), messages, "after {what}");
    }
}

#[test]
fn parameters_reach_the_envelope_decoded() {
    let mut driver = Driver::new(terms());
    driver.send(b"STARTTLS\r\n").send(b"EHLO one.example\r\n");
    driver.send(
        "MAIL FROM:<@x.y,@z:é@münchen.example> SIZE=7 BODY=8BITMIME SMTPUTF8 RET=HDRS ENVID=a+2Bb REQUIRETLS\r\n\
         RCPT TO:<Anna@Contoso.com> NOTIFY=SUCCESS,DELAY ORCPT=rfc822;old+2Bname@contoso.com\r\n\
         RCPT TO:<postmaster> ORCPT=utf-8;\\x{E9}@x\r\n\
         RCPT TO:<\"Anna\"@CONTOSO.com>\r\nRCPT TO:<ö@contoso.com> NOTIFY=NEVER ORCPT=utf-8;ö@x\r\nBDAT 2 LAST\r\nhi"
            .as_bytes(),
    );
    assert!(driver.outcome.said.ends_with("250 2.0.0 queued as 000000000001\r\n"), "{}", driver.outcome.said);
    let envelope = &driver.envelopes[0];
    assert_eq!(envelope.sender.as_ref().unwrap().to_string(), "é@xn--mnchen-3ya.example"); // C041, C164
    assert_eq!((envelope.body, envelope.ret, envelope.smtputf8), (BodyType::EightBit, Some(Ret::Headers), true));
    assert_eq!((envelope.envid.as_deref(), envelope.requiretls), (Some("a+b"), true));
    // Given again with quotes and in other letters of the domain, Anna has another wish, and will get one copy.
    let addresses: Vec<_> = envelope.recipients.iter().map(|to| to.address.to_string()).collect();
    assert_eq!(addresses, ["Anna@contoso.com", "postmaster@mail.contoso.com", "Anna@contoso.com", "ö@contoso.com"]);
    let on = Notify::On { success: true, failure: false, delay: true };
    let notify: Vec<_> = envelope.recipients.iter().map(|to| to.notify).collect();
    assert_eq!(notify, [on, Notify::Unsaid, Notify::Unsaid, Notify::Never]);
    let orcpt: Vec<_> = envelope.recipients.iter().filter_map(|to| to.orcpt.as_ref()).collect();
    let orcpt: Vec<_> = orcpt.iter().map(|orcpt| format!("{};{}", orcpt.kind, orcpt.address)).collect();
    assert_eq!(orcpt, ["rfc822;old+name@contoso.com", "utf-8;é@x", "utf-8;ö@x"]);
    assert_eq!(driver.hellos, [("one.example".to_owned(), true)]);
}

/// C165: octets that are no UTF-8 end no session.
#[test]
fn malformed_utf8_is_refused() {
    for path in [&b"\xC0\x80"[..], b"\xED\xA0\x80", b"\xC3", b"\xF4\x90\x80\x80", b"\xFF"] {
        let mut command = b"MAIL FROM:<".to_vec();
        command.extend_from_slice(path);
        command.extend_from_slice(b"@x.example> SMTPUTF8\r\n");
        assert!(last(HELLO, &command).starts_with("501 5.5.2"), "{path:x?}");
    }
}

/// C090: one write for the group, 354 last; C091 is the property below.
#[test]
fn a_pipelined_group_gets_one_write() {
    let mut driver = Driver::new(terms());
    driver.send(HELLO.as_bytes());
    let sends = driver.counts.sends;
    let said =
        driver.ask("MAIL FROM:<a@b.c>\r\nRCPT TO:<x@y.z>\r\nRCPT TO:<nobody@y.z>\r\nRCPT TO:<w@y.z>\r\nDATA\r\n");
    assert_eq!(codes(&said), "250 250 550 250 354");
    assert_eq!(driver.counts.sends - sends, 1);
}

/// C092, and the pardon for what a client had to send before it knew.
#[test]
fn what_follows_a_refused_mail_is_refused_without_being_counted() {
    let mut driver = Driver::new(Terms { max_errors: 2, ..terms() });
    driver.send(HELLO.as_bytes());
    let group = format!("MAIL FROM:<a@blocked.example>\r\n{}DATA\r\n", "RCPT TO:<x@y.z>\r\n".repeat(20));
    assert_eq!(codes(&driver.ask(&group)), format!("550{} 503", " 503".repeat(20)));
    assert_eq!(codes(&driver.ask("NOOP\r\n")), "250");
    assert!(!driver.outcome.closed);
}

/// C064.
#[test]
fn recipients_beyond_the_limit_are_for_the_next_transaction() {
    let mut driver = Driver::new(Terms { max_recipients: 100, ..terms() });
    driver.send(b"EHLO one\r\nMAIL FROM:<a@b.c>\r\n");
    for number in 0..100 {
        assert_eq!(codes(&driver.ask(format!("RCPT TO:<u{number}@contoso.com>\r\n"))), "250");
    }
    assert!(driver.ask("RCPT TO:<more@contoso.com>\r\n").starts_with("452 4.5.3 "));
    // One we have already is no further recipient.
    assert_eq!(codes(&driver.ask("RCPT TO:<u99@contoso.com>\r\n")), "250");
    driver.send(b"DATA\r\n.\r\n");
    assert_eq!(driver.envelopes[0].recipients.len(), 100);
}

/// The same recipient again and again, or new ones after every 452: a client is served so long and no longer.
#[test]
fn endless_recipients_end_the_session() {
    for (what, expected) in [("the same", (100, 1000)), ("new ones", (0, 1000))] {
        let mut driver = Driver::new(Terms { max_recipients: 100, ..terms() });
        driver.send(b"EHLO one\r\nMAIL FROM:<a@b.c>\r\n");
        for number in 0..100 {
            assert_eq!(codes(&driver.ask(format!("RCPT TO:<u{number}@contoso.com>\r\n"))), "250");
        }
        let (mut taken, mut refused) = (0, 0);
        for number in 100.. {
            let number = if what == "the same" { 0 } else { number };
            match codes(&driver.ask(format!("RCPT TO:<u{number}@contoso.com>\r\n"))).as_str() {
                "250" => taken += 1,
                "452" => refused += 1,
                other => {
                    assert_eq!(other, "421", "{what}");
                    break;
                }
            }
        }
        assert_eq!((taken, refused), expected, "{what}");
        assert!(driver.outcome.closed, "{what}");
    }
}

/// C066.
#[test]
fn too_many_errors_end_the_session() {
    let mut driver = Driver::new(Terms { max_errors: 3, ..terms() });
    for _ in 0..3 {
        assert_eq!(codes(&driver.ask("FOO\r\n")), "500");
    }
    assert_eq!(driver.ask("FOO\r\nNOOP\r\n"), "421 4.7.0 too many errors\r\n");
    assert!(driver.outcome.closed);
}

#[test]
fn guessed_recipients_are_errors_and_a_few_old_ones_are_not() {
    let mut driver = Driver::new(Terms { max_errors: 3, ..terms() });
    driver.send(b"EHLO one\r\nMAIL FROM:<a@b.c>\r\n");
    let said = driver.ask("RCPT TO:<nobody@x.y>\r\n".repeat(5));
    assert_eq!(codes(&said), "550 550 550 421");
    let mut driver = Driver::new(Terms { max_errors: 3, ..terms() });
    driver.send(b"EHLO one\r\nMAIL FROM:<a@b.c>\r\n");
    for number in 0..20 {
        assert_eq!(codes(&driver.ask(format!("RCPT TO:<u{number}@x.y>\r\nRCPT TO:<nobody@x.y>\r\n"))), "250 550");
    }
}

/// C067.
#[test]
fn commands_without_mail_come_to_an_end() {
    for command in ["NOOP\r\n", "RSET\r\n", "VRFY x\r\n", "EHLO one\r\n", "HELP\r\n"] {
        let mut driver = Driver::new(terms());
        driver.send(command.repeat(1000).as_bytes());
        assert!(driver.outcome.closed && driver.outcome.said.ends_with("421 4.7.0 too many commands without mail\r\n"));
        assert_eq!(driver.codes().split(' ').count(), 1 + IDLE_COMMANDS + 1, "{command}");
    }
}

/// C068: another protocol's first line is its last.
#[test]
fn other_protocols_are_sent_away() {
    for first in [
        &b"GET / HTTP/1.1\r\nHost: mail\r\n\r\nEHLO x\r\n"[..],
        b"POST / HTTP/1.1\r\n",
        b"CONNECT mail:25 HTTP/1.1\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"SSH-2.0-OpenSSH_9.6\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    ] {
        let mut driver = Driver::new(terms());
        assert_eq!(driver.ask(first), "554 5.5.0 this is SMTP\r\n", "{first:?}");
        assert!(driver.outcome.closed);
    }
}

/// C051: a long line is skipped in step with the client; an endless one ends the session, in constant memory.
#[test]
fn long_lines_are_skipped_and_endless_ones_are_not_read() {
    let mut driver = Driver::new(terms());
    let said = driver.ask(format!("NOOP {}\r\nNOOP\r\n", "x".repeat(60_000)));
    assert_eq!(codes(&said), "500 250");
    let mut driver = Driver::new(terms());
    for _ in 0..1024 {
        driver.send(&[b'x'; 1024]);
        assert!(driver.session.unread.len() <= COMMAND_LIMIT + 1024);
    }
    assert!(driver.outcome.closed && driver.outcome.said.ends_with("421 4.7.0 line does not end\r\n"));
}

/// C053, S-004: in commands. The session ends, and what follows is not read.
#[test]
fn bare_controls_in_commands_end_the_session() {
    for line in ["NOOP\nNOOP\r\n", "NOOP\rNOOP\r\n", "NO\0OP\r\n", "EHLO a\r\r\n", "\n", "MAIL FROM:<\"a\r\nb\"@c>\n"] {
        let mut driver = Driver::new(terms());
        driver.send(HELLO.as_bytes());
        let said = driver.ask(format!("{line}MAIL FROM:<mallory@example.net>\r\n"));
        assert!(driver.outcome.closed, "{line:?}");
        assert!(said.ends_with("501 5.5.2 lines end in CRLF; CR, LF and NUL stand nowhere else\r\n"), "{said}");
        assert!(!said.contains("250 2.1.0"), "{said}");
    }
}

/// C096: who never reads gets replies in bounded portions, and no more is read meanwhile.
#[test]
fn unsent_replies_are_bounded() {
    let mut driver = Driver::new(terms());
    driver.send(b"EHLO one\r\nMAIL FROM:<a@b.c>\r\n");
    // `run` asserts the bound on every write.
    driver.send("RCPT TO:<u@contoso.com>\r\n".repeat(10_000).as_bytes());
    assert!(driver.counts.sends > 10);
}

/// C110, C111: the stuffing is undone, and the end is found.
#[test]
fn dots_are_taken_off_lines() {
    for (data, content) in [
        (".\r\n", ""),
        ("hi\r\n.\r\n", "hi\r\n"),
        ("..\r\n.\r\n", ".\r\n"),
        (".x\r\n...\r\n.\r\n", "x\r\n..\r\n"),
        ("a\r\n..b\r\n\r\n..\r\nc.d.\r\n.\r\n", "a\r\n.b\r\n\r\n.\r\nc.d.\r\n"),
        ("a\r\n.\t\r\n.\r\n", "a\r\n\t\r\n"),
    ] {
        let mut driver = Driver::new(terms());
        driver.send(TRANSACTION.as_bytes());
        driver.send(format!("DATA\r\n{data}").as_bytes());
        assert_eq!(driver.outcome.messages[0].1, content.as_bytes(), "{data:?}");
        assert!(driver.outcome.said.ends_with("250 2.0.0 queued as 000000000001\r\n"), "{data:?}");
    }
}

/// A message that came in one read is one piece, whatever dots it has.
#[test]
fn a_message_that_came_at_once_is_one_piece() {
    let text = format!("Subject: x\r\n\r\n{}", "..dots\r\nand none\r\n".repeat(50));
    let bdat = text.replace("..", ".");
    for (verb, data) in [
        ("DATA\r\n".to_owned(), format!("{text}.\r\n")),
        (format!("BDAT {} LAST\r\n", bdat.len()), bdat.clone()),
        ("DATA\r\n".to_owned(), format!("{}.\r\n", text.repeat(20))),
        (format!("BDAT {} LAST\r\n", bdat.len() * 20), bdat.repeat(20)),
    ] {
        let mut driver = Driver::new(terms());
        driver.send(TRANSACTION.as_bytes()).send(verb.as_bytes());
        driver.send(data.as_bytes());
        assert_eq!(driver.counts.keeps, 1, "{verb}");
        assert_eq!(driver.outcome.messages[0].1.len() % bdat.len(), 0);
    }
}

/// S-123, C144: 50,000 chunks of one octet become few pieces.
#[test]
fn tiny_pieces_are_gathered() {
    let mut driver = Driver::new(terms());
    driver.send(TRANSACTION.as_bytes());
    for _ in 0..50_000 {
        driver.send(b"BDAT 1\r\nx");
    }
    driver.send(b"BDAT 0 LAST\r\n");
    assert_eq!(driver.outcome.messages[0].1.len(), 50_000);
    assert_eq!(driver.counts.keeps, 1);
    let mut driver = Driver::new(terms());
    driver.send(TRANSACTION.as_bytes()).send(b"DATA\r\n");
    for _ in 0..20_000 {
        driver.send(b".").send(b".").send(b"\r").send(b"\n");
    }
    driver.send(b".\r\n");
    assert_eq!(driver.outcome.messages[0].1, b".\r\n".repeat(20_000));
    assert_eq!(driver.counts.keeps, 1);
}

/// C119, C145: over the limit, to the end; far over the limit, no further.
#[test]
fn a_message_over_the_limit_is_read_to_its_end_or_not_at_all() {
    for (octets, expected, closed) in
        [(100_000, "250", false), (100_002, "552", false), (149_000, "552", false), (160_000, "552", true)]
    {
        let mut driver = Driver::new(terms());
        driver.send(TRANSACTION.as_bytes()).send(b"DATA\r\n");
        let said = driver.ask(format!("{}\r\n.\r\n", "x".repeat(octets - 2)));
        assert_eq!((codes(&said).as_str(), driver.outcome.closed), (expected, closed), "DATA of {octets}");
        if !closed {
            assert_eq!(codes(&driver.ask("NOOP\r\n")), "250");
        }
        let mut driver = Driver::new(terms());
        driver.send(TRANSACTION.as_bytes());
        driver.send(format!("BDAT 50000\r\n{}", "x".repeat(50_000)).as_bytes());
        let rest = octets - 50_000;
        let said = driver.ask(format!("BDAT {rest} LAST\r\n{}", "x".repeat(rest)));
        assert_eq!((codes(&said).as_str(), driver.outcome.closed), (expected, closed), "BDAT of {octets}");
        if !closed {
            assert_eq!(codes(&driver.ask("NOOP\r\n")), "250");
        }
    }
}

/// C130 to C149. Each row is sent after EHLO; the codes of all replies to it.
#[test]
fn chunks() {
    let good = "MAIL FROM:<a@b.c>\r\nRCPT TO:<anna@contoso.com>\r\n";
    let bad = "MAIL FROM:<a@b.c>\r\nRCPT TO:<nobody@contoso.com>\r\n";
    for (id, sent, expected, messages) in [
        ("C130", format!("{good}BDAT 2 LAST\r\nhi"), "250 250 250", vec!["hi"]),
        ("C131", format!("{good}BDAT 2\r\nhiNOOP\r\nBDAT 0 LAST\r\n"), "250 250 250 250 250", vec!["hi"]),
        ("C132", format!("{good}BDAT 13 LAST\r\n\r\n.\r\nQUIT\r\n\r\n"), "250 250 250", vec!["\r\n.\r\nQUIT\r\n\r\n"]),
        ("C133", format!("{good}bdat 2 last\r\nhiNOOP\r\n"), "250 250 250 250", vec!["hi"]),
        ("C134", format!("{good}BDAT 2\r\na\rBDAT 3 LAST\r\n\n.b"), "250 250 250 250", vec!["a\r\n.b"]),
        ("C136", "BDAT 5 LAST\r\nQUIT\nNOOP\r\n".to_owned(), "503 250", vec![]),
        ("C136", "BDAT 5\r\nQUIT\nBDAT 2 LAST\r\n\r\nNOOP\r\n".to_owned(), "503 503 250", vec![]),
        ("C137", format!("{bad}BDAT 2\r\nxxBDAT 2\r\nxxBDAT 0 LAST\r\n{good}"), "250 550 554 554 554 250 250", vec![]),
        ("C137", format!("{bad}BDAT 2 LAST\r\nxxRCPT TO:<x@y.z>\r\n"), "250 550 554 503", vec![]),
        ("C138", format!("{bad}RCPT TO:<x@y.z>\r\nBDAT 2 LAST\r\nhi"), "250 550 250 250", vec!["hi"]),
        (
            "C139",
            format!("{bad}BDAT 2\r\nxxRSET\r\n{good}BDAT 2 LAST\r\nhi"),
            "250 550 554 250 250 250 250",
            vec!["hi"],
        ),
        (
            "C140",
            format!("{good}BDAT 2 LAST\r\nhiBDAT 2\r\nxxRSET\r\n{good}"),
            "250 250 250 503 250 250 250",
            vec!["hi"],
        ),
        ("C141", format!("{good}BDAT 2\r\nhiDATA\r\nBDAT 2 LAST\r\nhi{good}"), "250 250 250 503 503 250 250", vec![]),
        ("C062", "MAIL FROM:<a@b.c>\r\nBDAT 2 LAST\r\nhiNOOP\r\n".to_owned(), "250 503 250", vec![]),
        ("C145", format!("{good}BDAT 999999999999\r\n"), "250 250 552", vec![]),
        ("C147", format!("{good}BDAT 3 LAST\r\na\nbNOOP\r\n"), "250 250 550", vec![]),
        ("C147", format!("{good}BDAT 2\r\na\rBDAT 1 LAST\r\nbNOOP\r\n"), "250 250 250 550", vec![]),
        ("C147", format!("{good}BDAT 2 LAST\r\na\rNOOP\r\n"), "250 250 550", vec![]),
        ("C147", format!("{good}BDAT 3 LAST\r\na\0bNOOP\r\n"), "250 250 550", vec![]),
        ("C018", format!("{good}BDAT 2\r\nhiQUIT\r\n"), "250 250 250 221", vec![]),
        ("C095", format!("{good}BDAT 1 LAST\r\n1{good}BDAT 1 LAST\r\n2"), "250 250 250 250 250 250", vec!["1", "2"]),
    ] {
        let mut driver = Driver::new(terms());
        driver.send(HELLO.as_bytes());
        let said = driver.ask(&sent);
        assert_eq!(codes(&said), expected, "{id}: {sent:?}: {said}");
        let got: Vec<_> = driver.outcome.messages.iter().map(|(_, text)| String::from_utf8_lossy(text)).collect();
        assert_eq!(got, messages, "{id}: {sent:?}");
        assert_eq!(driver.outcome.closed, matches!(id, "C145" | "C147" | "C018"), "{id}: {sent:?}");
    }
}

/// C135: where the next command begins is unknown.
#[test]
fn a_malformed_bdat_ends_the_session() {
    for arguments in ["", " x", " -1", " +1", " 1 2", " 5 FIRST", " 5 LAST x", " 99999999999999999999", " 5  LAST"] {
        let mut driver = Driver::new(terms());
        driver.send(TRANSACTION.as_bytes());
        let said = driver.ask(format!("BDAT{arguments}\r\nNOOP\r\n"));
        assert!(said.starts_with("501 5.5.4 ") && said.lines().count() == 1, "{arguments}: {said}");
        assert!(driver.outcome.closed, "{arguments}");
    }
}

/// C144.
#[test]
fn empty_chunks_come_to_an_end() {
    let mut driver = Driver::new(terms());
    driver.send(TRANSACTION.as_bytes());
    let said = driver.ask("BDAT 0\r\n".repeat(102));
    assert_eq!(codes(&said), format!("{}421", "250 ".repeat(100)));
}

/// S-030.
#[test]
fn bytes_behind_starttls_are_never_obeyed() {
    for behind in ["MAIL FROM:<x@y.z>\r\n", "MAIL FR", "\r\n"] {
        let mut driver = Driver::new(terms());
        driver.send(HELLO.as_bytes());
        let said = driver.ask(format!("STARTTLS\r\n{behind}"));
        assert!(said.starts_with("554 5.5.0 ") && driver.outcome.closed, "{said}");
    }
}

/// C217: RFC 3207 section 4.
#[test]
fn a_listener_that_requires_tls_takes_no_mail_without() {
    let mut driver = Driver::new(Terms { require_tls: true, ..terms() });
    for (command, code) in [
        ("EHLO one", "250"),
        ("NOOP", "250"),
        ("MAIL FROM:<a@b.c>", "530"),
        ("RCPT TO:<a@b.c>", "530"),
        ("DATA", "530"),
        ("BDAT 0", "530"),
        ("BDAT 0 LAST", "530"),
        ("STARTTLS", "220"),
        ("MAIL FROM:<a@b.c>", "503"),
        ("EHLO one", "250"),
        ("MAIL FROM:<a@b.c> REQUIRETLS", "250"),
        ("QUIT", "221"),
    ] {
        assert_eq!(codes(&driver.ask(format!("{command}\r\n"))), code, "{command}");
    }
}

/// C002, C094: only where the connector is strict.
#[test]
fn strict_listeners_refuse_those_who_do_not_wait() {
    let strict = || Terms { strict: true, ..terms() };
    let mut early = Driver::new(strict());
    assert_eq!(early.outcome.said, "");
    assert!(early.ask("EHLO one\r\n").starts_with("554 5.5.0 ") && early.outcome.closed);
    for (before, sent, expected, closed) in [
        ("", "EHLO one\r\nMAIL FROM:<a@b.c>\r\n", "554", true),
        ("", "NOOP\r\nNOOP\r\n", "554", true),
        ("HELO one\r\n", "MAIL FROM:<a@b.c>\r\nRCPT TO:<x@y.z>\r\n", "554", true),
        (TRANSACTION, "DATA\r\nhi\r\n.\r\n", "554", true),
        (TRANSACTION, "DATA\r\n", "354", false),
        (TRANSACTION, "NOOP\r\nVRFY x\r\nNOOP\r\n", "250 252 250", false),
        (TRANSACTION, "MAIL FROM: <a@b.c>\r\n", "503", false),
        ("EHLO one\r\n", "MAIL FROM: <a@b.c>\r\n", "501", false),
        ("EHLO one\r\n", "MAIL FROM:<a@b.c>\r\nRCPT TO:<x@y.z>\r\nDATA\r\n", "250 250 354", false),
    ] {
        let mut driver = Driver::new(strict());
        driver.pass(GREETING_PAUSE);
        assert_eq!(driver.codes(), "220");
        for line in before.split_inclusive("\r\n") {
            driver.send(line.as_bytes());
        }
        assert_eq!(codes(&driver.ask(sent)), expected, "{sent:?}");
        assert_eq!(driver.outcome.closed, closed, "{sent:?}");
    }
}

/// C005, C006: the deadline is the command's, not the octet's.
#[test]
fn commands_have_a_deadline_of_their_own() {
    let mut driver = Driver::new(terms());
    driver.pass(Duration::from_secs(299));
    assert_eq!(codes(&driver.ask("NOOP\r\n")), "250");
    for _ in 0..29 {
        driver.pass(Duration::from_secs(10));
        driver.send(b"N");
        assert!(!driver.outcome.closed);
    }
    driver.pass(Duration::from_secs(10));
    assert!(driver.outcome.closed && driver.outcome.said.ends_with("421 4.4.2 timeout\r\n"));
}

/// With every `data_timeout`, and whichever way the message comes: an octet a second is no way to stay.
#[test]
fn an_octet_a_second_ends_with_data_timeout() {
    let trickle = |octet: u64| if octet == 0 { "DATA\r\n" } else { "x" }.to_owned();
    let in_a_chunk = |octet: u64| if octet == 0 { "BDAT 50000\r\n" } else { "x" }.to_owned();
    let in_chunks = |_: u64| "BDAT 1\r\nx".to_owned();
    let refused = |octet: u64| if octet == 0 { "RSET\r\nBDAT 50000\r\n" } else { "x" }.to_owned();
    let refused_chunks = |octet: u64| format!("{}BDAT 1\r\nx", if octet == 0 { "RSET\r\n" } else { "" });
    let ways: [(&str, &dyn Fn(u64) -> String); 5] = [
        ("DATA", &trickle),
        ("a chunk", &in_a_chunk),
        ("chunks", &in_chunks),
        ("a chunk that is thrown away", &refused),
        ("chunks that are thrown away", &refused_chunks),
    ];
    for (what, said) in ways {
        for timeout in [4, 60, 180] {
            let mut drip = Driver::new(Terms { data_timeout: Duration::from_secs(timeout), ..terms() });
            drip.send(TRANSACTION.as_bytes());
            let mut seconds = 0;
            while !drip.outcome.closed && seconds < 1000 {
                drip.send(said(seconds).as_bytes());
                drip.pass(Duration::from_secs(1));
                seconds += 1;
            }
            assert_eq!(seconds, timeout, "{what}: until so many octets have come");
            assert!(drip.outcome.said.ends_with("421 4.4.2 timeout\r\n"), "{what}: {}", drip.outcome.said);
        }
    }
    // Twice the least rate is enough, however long the message takes.
    let mut slow = Driver::new(Terms { data_timeout: Duration::from_secs(4), max_message_size: None, ..terms() });
    slow.send(TRANSACTION.as_bytes()).send(b"DATA\r\n");
    for _ in 0..1000 {
        slow.pass(Duration::from_secs(3));
        slow.send(&[b'x'; 3 * 2 * LEAST_RATE as usize]);
    }
    assert!(!slow.outcome.closed, "{}", slow.outcome.said);
}

/// S-122: each block has its time, and the whole has a least rate.
#[test]
fn data_has_a_deadline_for_each_block_and_a_least_rate() {
    let begin = |data: &[u8]| {
        let mut driver = Driver::new(terms());
        driver.send(TRANSACTION.as_bytes()).send(data);
        driver
    };
    // The last one is a chunk that is thrown away.
    for data in [&b"DATA\r\n"[..], b"BDAT 50000\r\n", b"RSET\r\nBDAT 50000\r\n"] {
        let mut silent = begin(data);
        silent.pass(Duration::from_secs(179));
        assert!(!silent.outcome.closed);
        silent.pass(Duration::from_secs(1));
        assert!(silent.outcome.closed && silent.outcome.said.ends_with("421 4.4.2 timeout\r\n"));

        let mut drip = begin(data);
        let mut seconds = 0;
        while !drip.outcome.closed {
            drip.pass(Duration::from_secs(10));
            drip.send(b"x");
            seconds += 10;
            assert!(seconds <= 190, "a byte every ten seconds must not do");
        }
        assert!(seconds >= 180 && drip.outcome.said.ends_with("421 4.4.2 timeout\r\n"));
        assert_eq!(drip.counts.discards, 0, "nothing was handed out, so there is nothing to forget");

        let mut slow = begin(data);
        for _ in 0..9 {
            slow.pass(Duration::from_secs(100));
            slow.send(&[b'x'; 50_000 / 10]);
        }
        assert!(slow.outcome.closed, "50 octets a second are too few");
    }

    // The wait between chunks counts as that within one.
    let mut chunks = begin(b"");
    let mut seconds = 0;
    while !chunks.outcome.closed {
        chunks.send(b"BDAT 1\r\nx");
        chunks.pass(Duration::from_secs(100));
        seconds += 100;
        assert!(seconds <= 200, "an octet in each chunk must not do");
    }
    assert!(seconds >= 180 && chunks.outcome.said.ends_with("421 4.4.2 timeout\r\n"), "{seconds}");
    let mut whole = Driver::new(Terms { max_message_size: None, ..terms() });
    whole.send(TRANSACTION.as_bytes());
    for _ in 0..15 {
        whole.send(format!("BDAT 50000\r\n{}", "x".repeat(50_000)).as_bytes());
        whole.pass(Duration::from_secs(90));
    }
    assert!(!whole.outcome.closed, "555 octets a second will do: {}", whole.outcome.said);
}

/// A driver may send what is due while a question is open. It is the same that is said, in the same order.
#[test]
fn replies_may_leave_while_a_question_is_open() {
    let pipeline = "EHLO client.example\r\nMAIL FROM:<a@b.example>\r\nRCPT TO:<julie@contoso.com>\r\n\
        RCPT TO:<nobody@contoso.com>\r\nNOOP\r\nBDAT 4 LAST\r\nhi\r\nMAIL FROM:<a@b.example>\r\n\
        RCPT TO:<later@contoso.com>\r\nQUIT\r\n";
    let mut together = Driver::new(terms());
    together.send(pipeline.as_bytes());
    let mut early = Driver::new(terms());
    early.is_early = true;
    early.send(pipeline.as_bytes());
    assert_eq!(early.outcome, together.outcome);
    // A greeting, then once; or before each question that found something due.
    assert_eq!((together.counts.sends, early.counts.sends), (2, 8));
}

/// C020.
#[test]
fn a_shutdown_says_so_at_the_next_reply() {
    let bye = "421 4.3.2 shutting down\r\n";
    let mut idle = Driver::new(terms());
    idle.session.shut_down();
    idle.run();
    assert!(idle.outcome.closed && idle.outcome.said.ends_with(bye));

    let mut inside = Driver::new(terms());
    inside.send(TRANSACTION.as_bytes()).send(b"DATA\r\nhel");
    inside.session.shut_down();
    inside.run();
    assert!(!inside.outcome.closed);
    assert_eq!(inside.ask("lo\r\n.\r\nNOOP\r\n"), format!("250 2.0.0 queued as 000000000001\r\n{bye}"));
    assert!(inside.outcome.closed);

    let mut chunks = Driver::new(terms());
    chunks.send(TRANSACTION.as_bytes());
    chunks.send(&[&b"BDAT 9000\r\n"[..], &[b'x'; 9000]].concat());
    chunks.session.shut_down();
    chunks.run();
    assert!(chunks.outcome.closed && chunks.outcome.said.ends_with(bye));
    assert_eq!(chunks.counts.discards, 1);

    let mut fresh = Session::new(terms(), false, Instant::now());
    fresh.shut_down();
    assert!(matches!(fresh.step(Instant::now()), Step::Send(said) if said == bye.as_bytes()));
    assert!(matches!(fresh.step(Instant::now()), Step::Close));
}

#[test]
fn the_driver_is_told_how_much_to_read() {
    let mut driver = Driver::new(terms());
    assert_eq!(driver.session.wanted(), COMMAND_READ);
    driver.send(b"EHLO one\r\nMAIL FROM:<a@b.c> SIZE=20000\r\nRCPT TO:<x@y.z>\r\nDATA\r\n");
    assert_eq!(driver.session.wanted(), 21_024);
    driver.send(b"hi\r\n.\r\nMAIL FROM:<a@b.c>\r\nRCPT TO:<x@y.z>\r\nBDAT 99999\r\n");
    assert_eq!(driver.session.wanted(), CONTENT_READ);
}

/// The units S-001 makes its 256 variants of.
const UNITS: &[&str] = &[
    "", "\r", "\n", "\r\n", "\r\r", "\n\n", "\r\r\n", "\n\r", "\0\r\n", "\r\0\n", "\r\n\0", " \r\n", "\r\n ", "\x0b",
    "\u{85}", "\u{2028}",
];

/// What a client would smuggle, with its own true end.
const SMUGGLED: &str =
    "MAIL FROM:<mallory@example.net>\r\nRCPT TO:<victim@contoso.com>\r\nDATA\r\nsmuggled\r\n.\r\nQUIT\r\n";

/// The oracle of S-001: where the message ends, by the standard's own words.
fn true_end(data: &[u8]) -> Option<usize> {
    if data.starts_with(b".\r\n") {
        return Some(3);
    }
    data.windows(5).position(|window| window == b"\r\n.\r\n").map(|at| at + 5)
}

fn has_bare_control(data: &[u8]) -> bool {
    let mut bytes = data.iter().peekable();
    while let Some(byte) = bytes.next() {
        match byte {
            b'\r' if bytes.next_if_eq(&&b'\n').is_some() => {}
            b'\r' | b'\n' | 0 => return true,
            _ => {}
        }
    }
    false
}

fn check_smuggling(name: &str, before: &str, data: &str, segment: usize) {
    let data = data.as_bytes();
    let end = true_end(data).expect("the test data ends");
    let mut driver = Driver::new(terms());
    driver.send(before.as_bytes()).send(b"DATA\r\n");
    for piece in data.chunks(segment) {
        if !driver.outcome.closed {
            driver.send(piece);
        }
    }
    let too_big = end > 100_000 + 10_000;
    if has_bare_control(&data[..end]) {
        assert!(driver.outcome.closed, "{name}");
        assert!(driver.outcome.said.contains("\r\n550 5.6.11 "), "{name}: {}", driver.outcome.said);
        assert_eq!(driver.outcome.messages, [], "{name}");
        assert!(!driver.outcome.said.ends_with("221 2.0.0 mail.contoso.com bye\r\n"), "{name}");
    } else if too_big {
        assert!(driver.outcome.said.contains("\r\n552 5.3.4 "), "{name}");
        assert!(driver.outcome.messages.iter().all(|(_, content)| content == b"smuggled\r\n"), "{name}");
    } else {
        // A positive control: the message ends where the oracle says, and what follows is ordinary pipelining.
        let expected = &data[..end - 3];
        assert_eq!(driver.outcome.messages[0].1, unstuffed(expected), "{name}");
        let others = &driver.outcome.messages[1..];
        assert!(others.is_empty() || end < data.len() - "QUIT\r\n".len(), "{name}: a message out of nothing");
    }
}

fn unstuffed(data: &[u8]) -> Vec<u8> {
    let mut lines = Vec::with_capacity(data.len());
    let mut rest = data;
    while !rest.is_empty() {
        rest = rest.strip_prefix(b".").unwrap_or(rest);
        let end = rest.windows(2).position(|pair| pair == b"\r\n").map_or(rest.len(), |at| at + 2);
        lines.extend_from_slice(&rest[..end]);
        rest = &rest[end..];
    }
    lines
}

/// S-001, S-003.
#[test]
fn a_message_ends_at_crlf_dot_crlf_and_nowhere_else() {
    let failed = format!("{TRANSACTION}RCPT TO:<nobody@contoso.com>\r\n");
    let big = "x\r\n".repeat(40_000);
    let mut controls = 0;
    for x in UNITS {
        for y in UNITS {
            let variant = format!("{x}.{y}");
            let text = format!("Subject: x\r\n\r\nbody{variant}{SMUGGLED}");
            controls += usize::from(true_end(text.as_bytes()) < Some(text.len() - "QUIT\r\n".len()));
            for segment in [usize::MAX, 1, 2, 3, 7] {
                let name = format!("{variant:?} cut every {segment}");
                check_smuggling(&name, TRANSACTION, &text, segment);
                check_smuggling(&name, &failed, &text, segment);
            }
            check_smuggling(&format!("{variant:?} first"), TRANSACTION, &format!("{variant}{SMUGGLED}"), 1);
            check_smuggling(&format!("{variant:?} far on"), TRANSACTION, &format!("{big}a{variant}{SMUGGLED}"), 4096);
        }
    }
    assert_eq!(controls, 12, "twelve of the 256 are true ends");
}

/// S-001 by BDAT: the octets count, and the same octets are refused.
#[test]
fn chunks_end_where_their_size_says() {
    for x in UNITS {
        for y in UNITS {
            let text = format!("body{x}.{y}{SMUGGLED}");
            for segment in [usize::MAX, 1, 5] {
                let mut driver = Driver::new(terms());
                driver.send(TRANSACTION.as_bytes());
                driver.send(format!("BDAT {} LAST\r\n", text.len()).as_bytes());
                for piece in text.as_bytes().chunks(segment) {
                    if !driver.outcome.closed {
                        driver.send(piece);
                    }
                }
                if has_bare_control(text.as_bytes()) {
                    assert!(driver.outcome.closed && driver.outcome.messages.is_empty(), "{text:?}");
                    assert!(driver.outcome.said.contains("\r\n550 5.6.11 "), "{text:?}");
                } else {
                    assert_eq!(driver.outcome.messages[0].1, text.as_bytes(), "{text:?}");
                }
            }
        }
    }
}

/// S-002: the published ones, by name.
#[test]
fn published_smuggling_sequences_smuggle_nothing() {
    for sequence in [
        "\n.\n",
        "\r.\r",
        "\r.\n",
        "\n.\r",
        "\n.\r\n",
        "\r\n.\n",
        "\r.\r\n",
        "\r\n.\r",
        "\r\n\0.\r\n",
        "\r\n.\0\r\n",
        "\r\n.\r\r\n",
        "\r\r\n.\r\r\n",
    ] {
        let text = format!("body{sequence}{SMUGGLED}");
        for segment in [usize::MAX, 1, 2, 3, 4, 5] {
            check_smuggling(&format!("{sequence:?} cut every {segment}"), TRANSACTION, &text, segment);
        }
        let mut driver = Driver::new(terms());
        driver.send(TRANSACTION.as_bytes()).send(b"DATA\r\n").send(text.as_bytes());
        assert!(driver.outcome.messages.is_empty() && driver.outcome.closed, "{sequence:?}");
    }
}

/// Things clients say, good and bad.
fn phrase() -> impl Strategy<Value = Vec<u8>> {
    let command = prop::sample::select(vec![
        "EHLO one.example\r\n",
        "HELO one.example\r\n",
        "MAIL FROM:<a@b.example>\r\n",
        "MAIL FROM:<a@b.example> SIZE=10 BODY=8BITMIME\r\n",
        "MAIL FROM:<a@blocked.example>\r\n",
        "RCPT TO:<anna@contoso.com>\r\n",
        "RCPT TO:<nobody@contoso.com>\r\n",
        "RCPT TO:<later@contoso.com>\r\n",
        "RCPT TO:<broken\r\n",
        "DATA\r\n",
        "RSET\r\n",
        "NOOP\r\n",
        "VRFY x\r\n",
        "QUIT\r\n",
        "NONSENSE\r\n",
        "BDAT 0 LAST\r\n",
        "BDAT 4\r\n\r\n.\r",
        "BDAT 1\r\n\n",
        "BDAT 3 LAST\r\nabc",
        "BDAT x\r\n",
        ".\r\n",
        "..\r\n",
        "\r\n",
        "\r",
        "\n",
        "hopping\r\n",
        "AUTH PLAIN AHRpbQB0YW5zdGFhZnRhbnN0YWFm\r\n",
        "AUTH PLAIN AHRpbQB0\r\n",
        "AUTH PLAIN\r\n",
        "AUTH LOGIN\r\n",
        "dGlt\r\n",
        "AHRpbQB0YW5zdGFhZnRhbnN0YWFm\r\n",
        "*\r\n",
    ]);
    let whole = prop::collection::vec(prop::sample::select(vec!["a", ".", "..", "\r\n", "\r\n.", "é"]), 0..40)
        .prop_map(|parts| format!("{TRANSACTION}DATA\r\n{}\r\n.\r\n", parts.concat()).into_bytes());
    let chunked = prop::collection::vec(prop::sample::select(vec!["a", ".", "\r\n", "\r\n.\r\n", "é"]), 0..40)
        .prop_map(|parts| {
            let text = parts.concat();
            format!("{TRANSACTION}BDAT {} LAST\r\n{text}", text.len()).into_bytes()
        });
    prop_oneof![
        6 => command.prop_map(|command| command.as_bytes().to_vec()),
        2 => whole,
        2 => chunked,
        1 => prop::collection::vec(any::<u8>(), 0..20),
    ]
}

fn transcript(terms: Terms, stream: &[u8], cuts: &[usize]) -> Outcome {
    let secure = terms.offer_auth;
    let mut driver = Driver::start(terms, secure);
    let mut rest = stream;
    for cut in cuts.iter().copied().cycle() {
        if rest.is_empty() || driver.outcome.closed {
            break;
        }
        let (piece, behind) = rest.split_at(cut.clamp(1, rest.len()));
        driver.send(piece);
        rest = behind;
    }
    std::mem::take(&mut driver.outcome)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    /// C091: however the bytes are cut, the same is said and the same is kept.
    #[test]
    fn the_transcript_does_not_depend_on_segments(
        phrases in prop::collection::vec(phrase(), 1..25),
        cuts in prop::collection::vec(1_usize..60, 1..20),
        limit in prop::sample::select(vec![None, Some(20), Some(100_000)]),
        max_errors in 2_usize..20,
        (offer_auth, require_auth) in any::<(bool, bool)>(),
    ) {
        let stream = phrases.concat();
        let terms = Terms { max_message_size: limit, max_errors, offer_starttls: false, offer_auth, require_auth, ..terms() };
        let whole = transcript(terms.clone(), &stream, &[usize::MAX]);
        prop_assert_eq!(&transcript(terms.clone(), &stream, &[1]), &whole);
        prop_assert_eq!(&transcript(terms, &stream, &cuts), &whole);
        check_replies(&whole.said);
    }

    /// C112: what comes between 354 and the dot is what was sent, whatever it is.
    #[test]
    fn content_goes_through_unchanged(
        lines in prop::collection::vec("[\\x01-\\x09\\x0b\\x0c\\x0e-\\x7f]{0,60}", 0..60),
        cut in 1_usize..500,
    ) {
        let text: String = lines.iter().flat_map(|line| [line, "\r\n"]).collect();
        let stuffed: String = lines.iter().flat_map(|line| [if line.starts_with('.') { "." } else { "" }, line, "\r\n"]).collect();
        for data in [format!("DATA\r\n{stuffed}.\r\n"), format!("BDAT {} LAST\r\n{text}", text.len())] {
            let outcome = transcript(terms(), format!("{TRANSACTION}{data}").as_bytes(), &[cut]);
            prop_assert_eq!(outcome.messages.len(), 1);
            prop_assert_eq!(&outcome.messages[0].1, text.as_bytes());
        }
    }

    /// Nothing a client can send makes the session panic.
    #[test]
    fn noise_is_survived(noise in prop::collection::vec(any::<u8>(), 0..2000), cut in 1_usize..300) {
        transcript(terms(), &[HELLO.as_bytes(), &noise].concat(), &[cut]);
    }
}
