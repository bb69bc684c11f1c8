//! Our sending session before a server that may say anything, at any time, in any pieces.
//!
//! The first line has the terms (`never`, `demanded`, `login`, `helo`, `alone` (our own name is known), `chunking`, `utf8`, `requiretls`, `secure`). What
//! follows is what the server says. FF: it is silent until the deadline; FC: it waits for what we say next; otherwise
//! it talks on, asked or not. At its end it closes.

use std::time::{Duration, Instant};

use causeway::message::{Address, BodyType, Envelope, Notify, Recipient, Ret};
use causeway::smtp::auth::Credentials;
use causeway::smtp::client::{Delivery, Fault, Mail, Payload, Session, Settled, StartTls, Step, Terms};

use super::{Cuts, directives};

const SILENCE: u8 = 0xff;
const FLIGHT: u8 = 0xfc;
const SECRET: &str = "tanstaaftanstaaf";

/// What the server says next.
struct Server<'d> {
    flights: Vec<&'d [u8]>,
    cuts: Cuts,
}

/// What reading comes to.
enum Heard<'d> {
    Piece(&'d [u8]),
    Silence,
    End,
}

impl<'d> Server<'d> {
    fn hear(&mut self) -> Heard<'d> {
        loop {
            let Some(&flight) = self.flights.last() else { return Heard::End };
            match flight {
                [] => drop(self.flights.pop()),
                [SILENCE] => {
                    self.flights.pop();
                    return Heard::Silence;
                }
                [FLIGHT] => drop(self.flights.pop()),
                _ => {
                    // A piece never goes beyond what is said at once.
                    let end = flight.iter().position(|&octet| octet == SILENCE || octet == FLIGHT);
                    let (piece, rest) = flight.split_at(self.cuts.next(end.unwrap_or(flight.len())));
                    *self.flights.last_mut().expect("it is there") = rest;
                    return Heard::Piece(piece);
                }
            }
        }
    }
}

/// Everything that can be seen of a session.
#[derive(Debug, PartialEq, Eq)]
struct Transcript {
    said: Vec<u8>,
    opened: Result<(), Fault>,
    settled: Vec<String>,
}

pub fn session(data: &[u8]) {
    let (words, stream) = directives(data);
    let now = Instant::now();
    let [whole, rest @ ..] = Cuts::of(data);
    let seen = run(&words, stream, now, whole);
    for cuts in rest {
        let other = run(&words, stream, now, cuts);
        // A server that talks out of turn is found out where its words come in the same piece as those it owed.
        let out_of_turn = |seen: &Transcript| format!("{seen:?}").contains("Protocol");
        if !out_of_turn(&seen) && !out_of_turn(&other) {
            assert_eq!(seen, other, "{cuts:?}");
        }
    }
}

fn run(words: &[&str], stream: &[u8], now: Instant, cuts: Cuts) -> Transcript {
    let is = |word: &str| words.contains(&word);
    let mut now = now;
    let mut flights: Vec<&[u8]> = stream.split_inclusive(|&octet| octet == SILENCE || octet == FLIGHT).collect();
    flights.reverse();
    let mut server = Server { flights, cuts };
    let mut said = Vec::new();
    let mut secure = false;
    let login = is("login").then(|| Credentials { username: "tim".to_owned(), password: SECRET.to_owned() });
    let mut session = Session::new(Terms {
        helo: "mail.contoso.com".to_owned(),
        starttls: match () {
            () if is("never") => StartTls::Never,
            () if is("demanded") => StartTls::Demanded,
            () => StartTls::IfOffered,
        },
        extended: !is("helo"),
        login,
        own_name: is("alone").then(|| "mail.contoso.com".to_owned()),
    });
    for _ in 0..=stream.len() + 100 {
        match session.step(now) {
            Step::Send(bytes, payload) => {
                assert!(payload.is_none(), "a message before the session is open");
                said.extend_from_slice(&bytes);
                session.sent();
            }
            Step::Receive { until } => {
                assert!(until > now && until <= now + Duration::from_secs(600), "no deadline one could wait for");
                match server.hear() {
                    Heard::Piece(piece) => session.unread().extend_from_slice(piece),
                    Heard::Silence => {
                        now = until;
                        session.expired();
                    }
                    Heard::End => session.closed("the end"),
                }
            }
            Step::StartTls => {
                assert!(!is("never") && !secure, "a handshake nobody wanted");
                secure = true;
                session.secured();
            }
            Step::Done => break,
        }
    }
    let opened = session.outcome();
    check_words(&said, secure, &opened, words);
    let mut settled = Vec::new();
    if opened.is_ok() && session.is_usable() {
        settled = deliver(&mut session, &mut server, &mut now, &mut said, words, stream.len());
    }
    Transcript { said, opened, settled }
}

/// The password is said in TLS only, and nothing but EHLO and STARTTLS before it where TLS is demanded.
fn check_words(said: &[u8], secure: bool, opened: &Result<(), Fault>, words: &[&str]) {
    let text = String::from_utf8(said.to_vec()).expect("we say what is ASCII");
    assert!(secure || !text.contains("AUTH "), "a password in the clear: {text:?}");
    assert!(text.lines().all(|line| !line.contains(SECRET)));
    if words.contains(&"demanded") && !words.contains(&"never") && !secure {
        assert!(opened.is_err(), "open without TLS");
        assert!(
            text.lines().all(|line| ["EHLO ", "HELO "].iter().any(|word| line.starts_with(word))
                || line == "STARTTLS"
                || line == "QUIT"),
            "{text:?}"
        );
    }
    assert!(text.is_empty() || text.ends_with("\r\n"));
}

fn deliver(
    session: &mut Session,
    server: &mut Server<'_>,
    now: &mut Instant,
    said: &mut Vec<u8>,
    words: &[&str],
    most: usize,
) -> Vec<String> {
    let is = |word: &str| words.contains(&word);
    let address = |text: &str| Address::parse(text).unwrap();
    let content = b"Subject: x\r\n\r\n.a\r\n";
    let envelope = Envelope {
        sender: Some(address("anna@contoso.com")),
        recipients: Vec::new(),
        ret: Some(Ret::Headers),
        envid: Some("a+b=c".into()),
        body: BodyType::EightBit,
        smtputf8: is("utf8"),
        requiretls: is("requiretls"),
    };
    let everybody: Vec<Recipient> = ["erin@fabrikam.com", "\"a b\"@fabrikam.com", "zo\u{eb}@fabrikam.com"]
        .into_iter()
        .take(if is("utf8") { 3 } else { 2 })
        .map(|to| Recipient { address: address(to), notify: Notify::default(), orcpt: None })
        .collect();
    let mail = Mail {
        envelope: &envelope,
        recipients: everybody.iter().enumerate().map(|(index, one)| (index as u16, one)).collect(),
        size: content.len() as u64,
        ends_in_crlf: true,
        eight_bit: false,
        xoorg: None,
        utf8_header: is("utf8"),
        max_recipients: 100,
        chunking: is("chunking"),
    };
    let offered = session.offered().clone();
    let before = said.len();
    let mut handed_over = 0;
    let mut delivery = Delivery::new(session, mail);
    let mut done = false;
    for _ in 0..=most + 1000 {
        match delivery.step(*now) {
            Step::Send(bytes, payload) => {
                said.extend_from_slice(&bytes);
                match payload {
                    Some(Payload::Chunk { .. }) => assert!(offered.chunking && is("chunking"), "BDAT not offered"),
                    Some(Payload::Stuffed) => {}
                    None => {
                        delivery.sent();
                        continue;
                    }
                }
                handed_over += 1;
                said.extend_from_slice(b"<the message>");
                delivery.sent();
            }
            Step::Receive { until } => {
                assert!(until >= *now, "a deadline that is over");
                match server.hear() {
                    Heard::Piece(piece) => delivery.session().unread().extend_from_slice(piece),
                    Heard::Silence => {
                        *now = until;
                        delivery.session().expired();
                    }
                    Heard::End => delivery.session().closed("the end"),
                }
            }
            Step::StartTls => panic!("TLS inside a message"),
            Step::Done => {
                done = true;
                break;
            }
        }
    }
    assert!(done, "a delivery that does not end");
    let text = String::from_utf8_lossy(&said[before..]).into_owned();
    let mut settled: Vec<Settled> = delivery.into_settled();
    settled.sort_by_key(|(index, _)| *index);
    // Each recipient once, and nobody forgotten.
    let whom: Vec<u16> = settled.iter().map(|(index, _)| *index).collect();
    assert_eq!(whom, (0..everybody.len() as u16).collect::<Vec<_>>(), "{settled:?}");
    for (index, result) in &settled {
        if let Ok(reply) = result {
            assert!(reply.is_positive(), "taken with {reply}");
            assert!(handed_over > 0, "taken, and never sent");
            let to = &everybody[usize::from(*index)].address;
            assert!(text.contains(&format!("RCPT TO:<{to}>")), "taken for {to}, who was never named: {text}");
        }
    }
    // What was not offered is not used.
    for (offer, word) in [
        (offered.dsn, " RET="),
        (offered.dsn, " ENVID="),
        (offered.dsn, " NOTIFY="),
        (offered.size.is_some(), " SIZE="),
        (offered.smtputf8, " SMTPUTF8"),
        (offered.requiretls, " REQUIRETLS"),
        (offered.eightbitmime, " BODY="),
    ] {
        assert!(offer || !text.contains(word), "{word} was not offered: {text}");
    }
    settled.into_iter().map(|(index, result)| format!("{index} {result:?}")).collect()
}
