//! The mark of a visit: how a relay knows a message that it has sent this way before.
//!
//! Each copy carries one `X-Causeway-Visit:` field for each visit: the relay's number of the message, a time, and one
//! token for each recipient of the copy. A token is keyed: it names nobody, cannot be made without the key, and
//! differs from message to message, so two of them do not tell that they speak of the same recipient. It stands for a
//! recipient, the receive connector it came in by and where it was sent: who comes again for the same recipient by
//! the same connector, and would be sent there again, goes in circles.
//!
//! Not here: what is answered then (`relay::visits`), the file of the key (`daemon::visit_key`).
//!
//! Standards: RFC 2104 (HMAC), 5322 section 2.1.1 (lines).

use std::fmt::Write as _;

use aws_lc_rs::hmac;
use aws_lc_rs::rand::{SecureRandom as _, SystemRandom};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jiff::Timestamp;

use super::{Address, MessageId};

/// The field's name.
pub const FIELD: &str = "X-Causeway-Visit";

/// Marks of one message that are looked at: one more than hops that are allowed is never needed.
pub const MARK_LIMIT: usize = 60;

/// Recipients of one copy that are marked. A field for more would be longer than the whole header that many servers
/// take; of a larger copy that comes back, the rest is cut one round later, when fewer are left.
pub const TOKEN_LIMIT: usize = 1000;

/// Length of a key, in bytes.
pub const KEY_LEN: usize = 32;

/// Tokens on a line: five of them with blanks between are 60 octets.
const PER_LINE: usize = 5;

/// The first bytes of an HMAC. Two recipients among a thousand share one once in 10^13 messages.
type Token = [u8; 8];

/// What makes tokens, and knows them again. Relays that share it know each other's marks.
pub struct Key(hmac::Key);

impl std::fmt::Debug for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Key(…)")
    }
}

/// One recipient's way through this relay.
#[derive(Debug, Clone, Copy)]
pub struct Visit<'a> {
    /// The receive connector it came in by.
    pub by: &'a str,
    /// The address that RCPT named.
    pub asked: &'a Address,
    /// The send connector it leaves by.
    pub via: &'a str,
    /// The address it leaves under.
    pub to: &'a Address,
}

/// One field, as it was read. It may be anybody's; [`Key::when`] tells.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mark {
    id: u64,
    /// Seconds since 1970.
    at: i64,
    /// Of the mark itself.
    seal: Token,
    tokens: Vec<Token>,
}

/// The marks of a message that one key made, each once.
#[derive(Debug)]
pub struct Ours(Vec<Mark>);

impl Key {
    /// A new one.
    ///
    /// # Panics
    /// Where the system has no random numbers: nothing in TLS works there either.
    pub fn random() -> [u8; KEY_LEN] {
        let mut bytes = [0; KEY_LEN];
        SystemRandom::new().fill(&mut bytes).expect("the system gives random numbers");
        bytes
    }

    /// From its bytes.
    pub fn new(bytes: &[u8; KEY_LEN]) -> Self {
        Self(hmac::Key::new(hmac::HMAC_SHA256, bytes))
    }

    /// The field for a copy, folded, with its final CRLF.
    pub fn field<'a>(&self, id: MessageId, at: Timestamp, visits: impl IntoIterator<Item = Visit<'a>>) -> String {
        let at = at.as_second();
        let mut field = String::with_capacity(128);
        // Writing to a String cannot fail.
        let _ = write!(field, "{FIELD}: 1 {id} {at} ");
        push(&mut field, self.seal(id.0, at));
        for (number, visit) in visits.into_iter().enumerate() {
            field.push_str(if number % PER_LINE == 0 { "\r\n\t" } else { " " });
            push(&mut field, self.token(id.0, at, &visit));
        }
        field.push_str("\r\n");
        field
    }

    /// Those of `marks` that were made with this key. Found out once for all recipients of a message, and one for each
    /// number and time: who repeats a mark that he has seen, with whatever behind it, makes no more work of it.
    pub fn ours(&self, marks: &[Mark]) -> Ours {
        let mut ours: Vec<Mark> = Vec::new();
        for mark in marks {
            if let Some(known) = ours.iter_mut().find(|known| (known.id, known.at) == (mark.id, mark.at)) {
                if known.seal == mark.seal {
                    known.tokens.extend_from_slice(&mark.tokens);
                }
            } else if self.seal(mark.id, mark.at) == mark.seal {
                ours.push(mark.clone());
            }
        }
        ours.iter_mut().for_each(|mark| mark.tokens.sort_unstable());
        Ours(ours)
    }

    /// When the message was first sent this way, if one of `ours` says that it was.
    pub fn first_visit(&self, Ours(ours): &Ours, visit: &Visit<'_>) -> Option<Timestamp> {
        let seen = ours.iter().filter(|mark| mark.tokens.binary_search(&self.token(mark.id, mark.at, visit)).is_ok());
        seen.filter_map(|mark| Timestamp::from_second(mark.at).ok()).min()
    }

    /// The same of marks that may be anybody's.
    pub fn when(&self, marks: &[Mark], visit: &Visit<'_>) -> Option<Timestamp> {
        self.first_visit(&self.ours(marks), visit)
    }

    fn seal(&self, id: u64, at: i64) -> Token {
        self.sign(id, at, &[])
    }

    fn token(&self, id: u64, at: i64, visit: &Visit<'_>) -> Token {
        let (asked, to) = (visit.asked.key(), visit.to.key());
        self.sign(id, at, &[visit.by, &asked, visit.via, &to])
    }

    fn sign(&self, id: u64, at: i64, parts: &[&str]) -> Token {
        let mut signing = hmac::Context::with_key(&self.0);
        signing.update(&id.to_le_bytes());
        signing.update(&at.to_le_bytes());
        for part in parts {
            // With its length, so that no two rows of parts are the same bytes.
            signing.update(&(part.len() as u64).to_le_bytes());
            signing.update(part.as_bytes());
        }
        let mut token = Token::default();
        token.copy_from_slice(&signing.sign().as_ref()[..8]);
        token
    }
}

impl Mark {
    /// Reads the value of a field; `None` if it is none of ours, nor of our kind.
    pub fn parse(value: &[u8]) -> Option<Self> {
        let mut words = value.split(u8::is_ascii_whitespace).filter(|word| !word.is_empty());
        if words.next()? != b"1" {
            return None;
        }
        let id = u64::from_str_radix(str::from_utf8(words.next()?).ok()?, 16).ok()?;
        let at = str::from_utf8(words.next()?).ok()?.parse().ok()?;
        let seal = token(words.next()?)?;
        // What follows our tokens may be the first line of a message that begins with a blank, and so continues the field
        // that was put in front of it. No mark of ours has more tokens than the limit.
        let tokens = words.map_while(token).take(TOKEN_LIMIT).collect();
        Some(Self { id, at, seal, tokens })
    }
}

fn token(word: &[u8]) -> Option<Token> {
    let mut token = Token::default();
    let len = URL_SAFE_NO_PAD.decode_slice(word, &mut token).ok()?;
    (len == token.len()).then_some(token)
}

fn push(field: &mut String, token: Token) {
    URL_SAFE_NO_PAD.encode_string(token, field);
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::message::header;

    fn address(text: &str) -> Address {
        Address::parse(text).unwrap()
    }

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    fn marks(fields: &str) -> Vec<Mark> {
        let head = format!("{fields}Subject: x\r\n\r\nbody");
        header::facts(head.as_bytes()).visits
    }

    #[test]
    fn a_second_visit_is_known_and_nothing_else_is() {
        let key = Key::new(&Key::random());
        let (david, routed, dora) =
            (address("david@contoso.com"), address("david@contoso.mail.onmicrosoft.com"), address("dora@contoso.com"));
        let visit = Visit { by: "from-cloud", asked: &david, via: "to-cloud", to: &routed };
        let marks = marks(&key.field(MessageId(0xA3F), at(1_763_737_200), [visit]));
        assert_eq!(marks.len(), 1);
        assert_eq!(key.when(&marks, &visit), Some(at(1_763_737_200)));
        let upper = address("DAVID@Contoso.COM");
        assert!(key.when(&marks, &Visit { asked: &upper, ..visit }).is_some(), "addresses have no case here");
        for (what, other) in [
            ("a mailing list returns it to another recipient", Visit { asked: &dora, ..visit }),
            ("it came another way", Visit { by: "internet", ..visit }),
            ("the directory has changed: another connector", Visit { via: "to-on-premises", ..visit }),
            ("the directory has changed: another address", Visit { to: &david, ..visit }),
        ] {
            assert_eq!(key.when(&marks, &other), None, "{what}");
        }
        let stranger = Key::new(&Key::random());
        assert_eq!(stranger.when(&marks, &visit), None, "the marks of others say nothing");
    }

    #[test]
    fn the_first_of_several_visits_counts_and_other_peoples_marks_are_passed_over() {
        let (key, other) = (Key::new(&Key::random()), Key::new(&Key::random()));
        let to = address("david@contoso.com");
        let visit = Visit { by: "a", asked: &to, via: "b", to: &to };
        let fields = [
            other.field(MessageId(1), at(10), [visit]),
            key.field(MessageId(2), at(30), [visit]),
            "X-Causeway-Visit: 2 something new\r\nX-Causeway-Visit:\r\n".to_owned(),
            key.field(MessageId(3), at(20), [visit]),
        ]
        .concat();
        assert_eq!(key.when(&marks(&fields), &visit), Some(at(20)));
    }

    /// No address, nothing that is the same in two messages, and no mark that somebody changed.
    #[test]
    fn a_mark_says_nothing_and_cannot_be_made() {
        let key = Key::new(&Key::random());
        let to = address("david@contoso.com");
        let visit = Visit { by: "internet", asked: &to, via: "to-cloud", to: &to };
        let one = key.field(MessageId(1), at(10), [visit]);
        let two = key.field(MessageId(2), at(10), [visit]);
        assert!(!one.contains("david") && !one.contains("internet"), "{one}");
        let tokens = |field: &str| field.split_whitespace().skip(4).map(str::to_owned).collect::<Vec<_>>();
        assert!(tokens(&one).iter().all(|token| !tokens(&two).contains(token)), "{one}{two}");
        // The tokens of the one under the number of the other.
        let forged = format!("{FIELD}: 1 {} 10 {}\r\n", MessageId(2), tokens(&one).join(" "));
        assert_eq!(key.when(&marks(&forged), &visit), None);
        let later = one.replace(" 10 ", " 99 ");
        assert_eq!(key.when(&marks(&later), &visit), None, "its time is sealed too");
    }

    /// RFC 5322 section 2.1.1: every recipient of a large copy is known again, and no more marks are read
    /// than hops are allowed.
    #[test]
    fn a_thousand_recipients_fit_on_short_lines() {
        let key = Key::new(&Key::random());
        let people: Vec<Address> = (0..1000).map(|number| address(&format!("user{number}@contoso.com"))).collect();
        let visits = || people.iter().map(|to| Visit { by: "internet", asked: to, via: "to-cloud", to });
        let field = key.field(MessageId(7), at(1), visits());
        assert!(field.lines().all(|line| line.len() <= 78), "{field}");
        let marks = marks(&field);
        assert!(visits().all(|visit| key.when(&marks, &visit).is_some()));
        for (count, expected) in
            [(MARK_LIMIT - 1, MARK_LIMIT - 1), (MARK_LIMIT, MARK_LIMIT), (MARK_LIMIT + 1, MARK_LIMIT)]
        {
            let short = key.field(MessageId(7), at(1), visits().take(1));
            assert_eq!(self::marks(&short.repeat(count)).len(), expected);
        }
    }

    /// A message that begins with a blank continues the field in front of it, and cannot spoil it.
    #[test]
    fn what_continues_a_mark_takes_nothing_from_it() {
        let key = Key::new(&Key::random());
        let to = address("david@contoso.com");
        let visit = Visit { by: "internet", asked: &to, via: "to-cloud", to: &to };
        let field = key.field(MessageId(1), at(10), [visit]);
        for behind in [" \r\n", " x\r\n", "\tAAAAAAAAAAA no token\r\n", " \u{e9}\r\n \r\n"] {
            let marks = marks(&format!("{field}{behind}"));
            assert_eq!(key.when(&marks, &visit), Some(at(10)), "{behind:?}");
        }
    }

    /// Sixty marks as long as a header may be, all of them with a seal of ours: a thousand recipients are looked up in a
    /// moment, not in the product of all three.
    #[test]
    fn s112_marks_that_are_repeated_are_no_more_work() {
        let key = Key::new(&Key::random());
        let to = address("david@contoso.com");
        let visit = Visit { by: "internet", asked: &to, via: "to-cloud", to: &to };
        let genuine = key.field(MessageId(1), at(10), [visit]);
        let filling = "\r\n\tAAAAAAAAAAA AAAAAAAAAAA AAAAAAAAAAA AAAAAAAAAAA AAAAAAAAAAA".repeat(240);
        let padded = format!("{}{filling}\r\n", genuine.trim_end());
        let marks = marks(&(padded.repeat(MARK_LIMIT - 1) + &genuine));
        assert_eq!(marks.len(), MARK_LIMIT);
        assert!(marks.iter().all(|mark| mark.tokens.len() <= TOKEN_LIMIT), "no mark of ours has more");
        let Ours(ours) = key.ours(&marks);
        assert_eq!(ours.len(), 1, "a number and a time are one mark");
        assert_eq!(key.first_visit(&Ours(ours), &visit), Some(at(10)));
    }

    proptest! {
        #[test]
        fn whatever_stands_in_a_mark_is_read_or_passed_over(value in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = Mark::parse(&value);
        }
    }
}
