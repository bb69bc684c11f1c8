//! Plays the dialogues in `tests/dialogues` against the receiving session; the README there tells the format.
//!
//! Each dialogue is played twice: with the client's lines as they stand, and with every octet in a segment of its
//! own. The same has to be said both times, unless the dialogue is about segments and says so.

use std::fmt::Write as _;
use std::path::Path;
use std::time::{Duration, Instant};

use causeway::message::{Domain, MessageId};
use causeway::smtp::Reply;
use causeway::smtp::server::{Answer, Question, Session, Step, Terms};

/// A dialogue as it stands in its file.
struct Dialogue {
    terms: Terms,
    secure: bool,
    whole: bool,
    turns: Vec<(usize, Turn)>,
}

enum Turn {
    /// The client sends these bytes.
    Client(Vec<u8>),
    /// The server says such a line, or does what stands between dashes.
    Server(String),
    /// The client has nothing more to send for so long.
    Pass(Duration),
    ShutDown,
}

/// Plays the part of the driver and of the stages behind.
struct Player {
    session: Session,
    terms: Terms,
    now: Instant,
    until: Option<Instant>,
    body: Vec<u8>,
    messages: u64,
    /// What happened since it was last looked at: lines said, and events between dashes.
    seen: Vec<String>,
    done: bool,
}

#[test]
fn every_dialogue_goes_as_written() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/dialogues");
    let mut names: Vec<_> = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    names.retain(|path| path.extension().is_some_and(|extension| extension == "txt"));
    names.sort();
    assert!(names.len() >= 25, "only {} dialogues were found", names.len());
    let mut faults = String::new();
    for path in names {
        let dialogue = Dialogue::parse(&std::fs::read_to_string(&path).unwrap());
        for segment in if dialogue.whole { &[usize::MAX][..] } else { &[usize::MAX, 1] } {
            if let Err(fault) = play(&dialogue, *segment) {
                let _ = writeln!(faults, "{}:{fault} (segments of {segment})", path.file_name().unwrap().display());
            }
        }
    }
    assert!(faults.is_empty(), "\n{faults}");
}

/// A runner that lets everything pass would be worth nothing.
#[test]
fn a_wrong_dialogue_fails() {
    for wrong in [
        "S: 221 ...",
        "S: 220 ...\nC: NOOP\nS: 250 2.0.0 no",
        "S: 220 ...\nC: NOOP",
        "S: 220 ...\nC: NOOP\nS: 250 ...\nS: 250 ...",
        "S: 220 ...\n-- close --",
        "S: 220 ...\nC: QUIT\nS: 221 ...",
        "S: 220 ...\n-- 4 minutes pass --\nS: 421 ...",
    ] {
        assert!(play(&Dialogue::parse(wrong), usize::MAX).is_err(), "{wrong}");
    }
}

impl Dialogue {
    fn parse(text: &str) -> Self {
        let mut dialogue = Self { terms: terms(), secure: false, whole: false, turns: Vec::new() };
        let mut open = false;
        for (index, line) in text.lines().enumerate() {
            let number = index + 1;
            let trimmed = line.trim();
            let turn =
                if let Some(client) = line.strip_prefix("C: ").or(line.strip_prefix("C:").filter(|s| s.is_empty())) {
                    let mut bytes = unescape(client);
                    bytes.extend_from_slice(b"\r\n");
                    Turn::Client(bytes)
                } else if let Some(client) = line.strip_prefix("C~ ") {
                    Turn::Client(unescape(client))
                } else if let Some(server) = line.strip_prefix("S: ") {
                    Turn::Server(server.to_owned())
                } else if let Some(settings) = trimmed.strip_prefix("# terms:") {
                    dialogue.set(settings);
                    continue;
                } else if trimmed.starts_with("# whole") {
                    dialogue.whole = true;
                    continue;
                } else if trimmed.is_empty() || trimmed.starts_with('#') {
                    continue;
                } else if let Some(event) = trimmed.strip_prefix("-- ").and_then(|rest| rest.strip_suffix(" --")) {
                    open = false;
                    match event.split(' ').collect::<Vec<_>>()[..] {
                        ["cut"] => continue,
                        ["shut", "down"] => Turn::ShutDown,
                        [number, unit, "pass" | "passes"] => {
                            let number: u64 = number.parse().unwrap();
                            let seconds = if unit.starts_with("minute") { 60 } else { 1 };
                            Turn::Pass(Duration::from_secs(number * seconds))
                        }
                        _ => Turn::Server(trimmed.to_owned()),
                    }
                } else {
                    panic!("line {number} is no turn: {line}");
                };
            // Lines of the client that stand together travel together.
            match (turn, dialogue.turns.last_mut()) {
                (Turn::Client(more), Some((_, Turn::Client(bytes)))) if open => bytes.extend_from_slice(&more),
                (turn, _) => {
                    open = matches!(turn, Turn::Client(_));
                    dialogue.turns.push((number, turn));
                }
            }
        }
        dialogue
    }

    fn set(&mut self, settings: &str) {
        for setting in settings.split_whitespace() {
            let (name, value) = setting.split_once('=').unwrap_or((setting, ""));
            match name {
                "strict" => self.terms.strict = true,
                "require_tls" => self.terms.require_tls = true,
                "offer_auth" => self.terms.offer_auth = true,
                "require_auth" => self.terms.require_auth = true,
                "no_starttls" => self.terms.offer_starttls = false,
                "secure" => self.secure = true,
                "xoorg" => self.terms.xoorg = true,
                "no_limit" => self.terms.max_message_size = None,
                "max_message_size" => self.terms.max_message_size = Some(value.parse().unwrap()),
                "max_recipients" => self.terms.max_recipients = value.parse().unwrap(),
                "max_errors" => self.terms.max_errors = value.parse().unwrap(),
                _ => panic!("no such setting: {setting}"),
            }
        }
    }
}

fn terms() -> Terms {
    Terms {
        hostname: Domain::parse("mail.contoso.com").unwrap(),
        offer_starttls: true,
        require_tls: false,
        offer_auth: false,
        require_auth: false,
        max_message_size: Some(36 << 20),
        max_recipients: 1000,
        max_errors: 100,
        strict: false,
        xoorg: false,
        command_timeout: Duration::from_secs(300),
        data_timeout: Duration::from_secs(180),
    }
}

/// `\r`, `\n`, `\0`, `\\`, `\xHH`, and `\*N(text)` for N times the text.
fn unescape(text: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut rest = text;
    while let Some((plain, escaped)) = rest.split_once('\\') {
        bytes.extend_from_slice(plain.as_bytes());
        rest = match escaped.as_bytes()[0] {
            b'r' => {
                bytes.push(b'\r');
                &escaped[1..]
            }
            b'n' => {
                bytes.push(b'\n');
                &escaped[1..]
            }
            b'0' => {
                bytes.push(0);
                &escaped[1..]
            }
            b'\\' => {
                bytes.push(b'\\');
                &escaped[1..]
            }
            b'x' => {
                bytes.push(u8::from_str_radix(&escaped[1..3], 16).unwrap());
                &escaped[3..]
            }
            b'*' => {
                let (count, behind) = escaped[1..].split_once('(').unwrap();
                let (what, behind) = behind.split_once(')').unwrap();
                bytes.extend_from_slice(&unescape(what).repeat(count.parse().unwrap()));
                behind
            }
            _ => panic!("no such escape: \\{escaped}"),
        };
    }
    bytes.extend_from_slice(rest.as_bytes());
    bytes
}

fn play(dialogue: &Dialogue, segment: usize) -> Result<(), String> {
    let now = Instant::now();
    let mut player = Player {
        session: Session::new(dialogue.terms.clone(), dialogue.secure, now),
        terms: dialogue.terms.clone(),
        now,
        until: None,
        body: Vec::new(),
        messages: 0,
        seen: Vec::new(),
        done: false,
    };
    player.run();
    for (index, (number, turn)) in dialogue.turns.iter().enumerate() {
        match turn {
            Turn::Server(expected) => {
                // Replies may wait for the end of their group while a message is handed on; each kind has its order.
                let kind = |line: &String| line.starts_with("-- message ");
                let next = |seen: &[String]| seen.iter().position(|line| kind(line) == kind(expected));
                let Some(at) = next(&player.seen) else {
                    return Err(format!("{number}: expected {expected}, and nothing came"));
                };
                if !matches(expected, &player.seen[at]) {
                    return Err(format!("{number}: expected {expected}, saw {}", player.seen[at]));
                }
                player.seen.remove(at);
                // "250-..." stands for all the lines there are but the last.
                while expected.ends_with("-...")
                    && let Some(at) = next(&player.seen)
                    && matches(expected, &player.seen[at])
                {
                    player.seen.remove(at);
                }
            }
            _ if !player.seen.is_empty() => return Err(format!("{number}: nobody expected {:?}", player.seen)),
            Turn::Client(_) if player.done => return Err(format!("{number}: the connection is closed")),
            Turn::Client(bytes) => {
                for piece in bytes.chunks(segment.min(bytes.len())) {
                    if !player.done {
                        player.session.unread().extend_from_slice(piece);
                        player.run();
                    }
                }
            }
            Turn::Pass(time) => {
                player.now += *time;
                if player.until.is_some_and(|until| until <= player.now) {
                    player.session.expired();
                    player.run();
                }
            }
            Turn::ShutDown => {
                player.session.shut_down();
                player.run();
            }
        }
        if index + 1 == dialogue.turns.len() && !player.seen.is_empty() {
            return Err(format!("{number}: nobody expected {:?}", player.seen));
        }
    }
    Ok(())
}

fn matches(expected: &str, seen: &str) -> bool {
    expected.strip_suffix("...").map_or(expected == seen, |beginning| seen.starts_with(beginning))
}

impl Player {
    fn run(&mut self) {
        while !self.done {
            match self.session.step(self.now) {
                Step::Send(bytes) => {
                    let said = std::str::from_utf8(&bytes).expect("replies are ASCII");
                    assert!(said.ends_with("\r\n"), "{said:?}");
                    for line in said.split_terminator("\r\n") {
                        check_line(line);
                        self.seen.push(line.to_owned());
                    }
                }
                Step::Receive { until } => {
                    self.until = Some(until);
                    return;
                }
                Step::Keep(piece) => self.body.extend_from_slice(&piece),
                Step::Discard => self.body.clear(),
                Step::Ask(question) => {
                    let answer = self.answer(question);
                    self.session.answer(answer);
                }
                Step::StartTls => {
                    self.seen.push("-- tls --".to_owned());
                    self.session.secured(self.terms.clone());
                }
                Step::Close => {
                    self.seen.push("-- close --".to_owned());
                    self.done = true;
                }
            }
        }
    }

    /// The oracle. The README says what it knows.
    fn answer(&mut self, question: Question) -> Answer {
        match question {
            Question::Login(credentials) => match (&*credentials.username, &*credentials.password) {
                ("tim", "tanstaaftanstaaf") => Answer::Go,
                ("later", _) => Answer::Refuse(Reply::login_unavailable()),
                ("guesser", _) => Answer::Refuse(Reply::login_locked()),
                _ => Answer::Refuse(Reply::login_refused()),
            },
            Question::Sender { envelope, size, .. } => match envelope.sender {
                Some(sender) if sender.domain().as_str() == "blocked.example" => {
                    Answer::Refuse(Reply::sender_domain_not_allowed(sender.domain()))
                }
                _ if size == Some(30_000_000) => Answer::Refuse(Reply::insufficient_storage()),
                _ => Answer::Go,
            },
            Question::Recipient(recipient) => {
                let address = &recipient.address;
                match (address.domain().as_str(), &*address.local().to_ascii_lowercase()) {
                    ("contoso.com" | "mail.contoso.com", "postmaster") => Answer::Go,
                    ("contoso.com", "nobody") => Answer::Refuse(Reply::unknown_recipient(address)),
                    ("contoso.com", "later") => Answer::Refuse(Reply::directory_unavailable()),
                    ("contoso.com", local) if local.contains(['%', '!', '=']) || local.contains("out.example") => {
                        Answer::Refuse(Reply::unknown_recipient(address))
                    }
                    ("contoso.com", _) => Answer::Go,
                    _ => Answer::Refuse(Reply::relay_denied()),
                }
            }
            Question::Message { envelope, hello, extended } => {
                let content = std::mem::take(&mut self.body);
                let sender = envelope.sender.as_ref().map_or(String::new(), ToString::to_string);
                let to: Vec<_> = envelope.recipients.iter().map(|to| format!("<{}>", to.address)).collect();
                let hello = if extended { hello } else { format!("{hello} (HELO)") };
                let text = content.escape_ascii();
                self.seen.push(format!("-- message of {hello} from <{sender}> to {}: {text} --", to.join(" ")));
                if content.windows(8).any(|word| word == b"too-many") {
                    return Answer::Done(Reply::too_many_hops());
                }
                self.messages += 1;
                Answer::Done(Reply::accepted(MessageId(self.messages)))
            }
        }
    }
}

/// C080, C081: on every line of every dialogue.
fn check_line(line: &str) {
    assert!(line.len() <= 510 && line.bytes().all(|byte| matches!(byte, b' '..=b'~')), "{line}");
    let (code, text) = line.split_at(3);
    assert!(code.bytes().all(|byte| byte.is_ascii_digit()) && text.starts_with(['-', ' ']), "{line}");
    let enhanced = text[1..].split(' ').next().is_some_and(|word| {
        word.split('.').count() == 3 && word.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.')
    });
    match code.as_bytes()[0] {
        b'3' => assert!(!enhanced, "{line}"),
        b'4' | b'5' => assert!(enhanced && text[1..2] == code[..1], "{line}"),
        _ => assert!(!enhanced || text[1..2] == code[..1], "{line}"),
    }
}
