//! SASL PLAIN and LOGIN, as a client says them and as a server hears them (RFC 4954, 4616).
//!
//! LOGIN has no standard; `draft-murchison-sasl-login` tells what everybody does: name, then password, each asked for.
//!
//! Not here: whether a password may be said at all. The sessions ask for TLS first, whatever is offered. Nor whether it
//! is right (`directory::users`).

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use zeroize::{Zeroize as _, Zeroizing};

use super::Reply;

/// A name and its password. The password is never shown, and wiped when it is no longer needed.
#[derive(Clone)]
pub struct Credentials {
    /// The name.
    pub username: String,
    /// The password.
    pub password: String,
}

impl Drop for Credentials {
    fn drop(&mut self) {
        self.password.zeroize();
    }
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Credentials({})", self.username)
    }
}

/// A login under way: what is still to be said, the next last.
pub struct Exchange {
    unsaid: Vec<String>,
}

impl fmt::Debug for Exchange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Exchange({} to say)", self.unsaid.len())
    }
}

/// What follows from a reply during a login.
#[derive(Debug, PartialEq, Eq)]
pub enum Next {
    /// Say this line.
    Say(String),
    /// We are in.
    Done,
    /// The server said no, or something that no login has.
    Refused,
}

impl Exchange {
    /// Chooses a mechanism among those `offered` and gives the first command; `None` if we speak none of them.
    ///
    /// PLAIN first: it is one round trip. Both say the password in the clear, so neither is the safer one.
    pub fn begin(offered: &[Box<str>], credentials: &Credentials) -> Option<(Self, String)> {
        let Credentials { username, password } = credentials;
        let has = |mechanism: &str| offered.iter().any(|offer| offer.eq_ignore_ascii_case(mechanism));
        if has("PLAIN") {
            // RFC 4616 section 2: no authorization identity of its own.
            let response = STANDARD.encode(format!("\0{username}\0{password}"));
            return Some((Self { unsaid: Vec::new() }, format!("AUTH PLAIN {response}\r\n")));
        }
        if has("LOGIN") {
            let line = |text: &str| format!("{}\r\n", STANDARD.encode(text));
            return Some((Self { unsaid: vec![line(password), line(username)] }, "AUTH LOGIN\r\n".to_owned()));
        }
        None
    }

    /// Takes the server's reply.
    pub fn answer(&mut self, reply: &Reply) -> Next {
        match reply.code {
            // The prompts of LOGIN differ from server to server; their order does not.
            334 => self.unsaid.pop().map_or(Next::Refused, Next::Say),
            _ if reply.is_positive() => Next::Done,
            _ => Next::Refused,
        }
    }
}

/// A login as the server hears it: what the client says next.
#[derive(Debug)]
pub enum Hearing {
    /// PLAIN: everything at once.
    Plain,
    /// LOGIN: the name.
    Name,
    /// LOGIN: the password of that name.
    Password(String),
}

/// What the client's line comes to.
#[derive(Debug)]
pub enum Heard {
    /// There is more to hear; ask for it with this challenge, which is base64.
    More(Hearing, &'static str),
    /// That was all.
    Whole(Credentials),
    /// Somebody wants to act as somebody else, which nobody may here: the login has failed.
    ForAnother,
}

/// "Username:" and "Password:", which clients have come to expect.
const ASK_NAME: &str = "VXNlcm5hbWU6";
const ASK_PASSWORD: &str = "UGFzc3dvcmQ6";

impl Hearing {
    /// The arguments of AUTH: a mechanism, and the first response if the client likes.
    ///
    /// # Errors
    /// The reply that says what is wrong; the login is over.
    pub fn begin(arguments: &[u8]) -> Result<Heard, Reply> {
        let mut words = arguments.split(|byte| *byte == b' ').filter(|word| !word.is_empty());
        let mechanism = words.next().ok_or_else(|| Reply::bad_argument("by which mechanism?"))?;
        let response = words.next();
        let (hearing, challenge) = match mechanism {
            _ if mechanism.eq_ignore_ascii_case(b"PLAIN") => (Self::Plain, ""),
            _ if mechanism.eq_ignore_ascii_case(b"LOGIN") => (Self::Name, ASK_NAME),
            _ => return Err(Reply::unknown_mechanism()),
        };
        match (response, words.next()) {
            (None, _) => Ok(Heard::More(hearing, challenge)),
            // A response of no octets, which could not be told from none. RFC 4954 section 4.
            (Some(b"="), None) => hearing.hear(b""),
            (Some(response), None) => hearing.hear(response),
            (Some(_), Some(_)) => Err(Reply::bad_argument("one mechanism, and at most one response")),
        }
    }

    /// The client's next line.
    ///
    /// # Errors
    /// The reply that says what is wrong; the login is over.
    pub fn hear(self, line: &[u8]) -> Result<Heard, Reply> {
        let line = line.trim_ascii_end();
        if line == b"*" {
            return Err(Reply::login_cancelled());
        }
        let decoded = STANDARD.decode(line).map(Zeroizing::new).map_err(|_| Reply::bad_syntax("not base64"))?;
        let text = std::str::from_utf8(&decoded).map_err(|_| Reply::bad_syntax("not UTF-8"))?;
        match self {
            Self::Plain => {
                // RFC 4616 section 2: whom to act as, who it is, and the password.
                let mut parts = text.split('\0');
                let (Some(act_as), Some(username), Some(password), None) =
                    (parts.next(), parts.next(), parts.next(), parts.next())
                else {
                    return Err(Reply::bad_syntax("PLAIN has three parts, with a NUL between them"));
                };
                if !act_as.is_empty() && act_as != username {
                    return Ok(Heard::ForAnother);
                }
                Ok(Heard::Whole(Credentials { username: username.to_owned(), password: password.to_owned() }))
            }
            Self::Name => Ok(Heard::More(Self::Password(text.to_owned()), ASK_PASSWORD)),
            Self::Password(username) => Ok(Heard::Whole(Credentials { username, password: text.to_owned() })),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reply(code: u16) -> Reply {
        Reply { code, status: None, text: "".into() }
    }

    #[test]
    fn plain_is_one_line_and_login_is_three() {
        let credentials = Credentials { username: "tim".into(), password: "tanstaaftanstaaf".into() };
        let offers = |words: &[&str]| words.iter().map(|word| Box::from(*word)).collect::<Vec<Box<str>>>();

        // The example of RFC 4616 section 4.
        let (mut plain, command) = Exchange::begin(&offers(&["LOGIN", "PLAIN"]), &credentials).unwrap();
        assert_eq!(command, "AUTH PLAIN AHRpbQB0YW5zdGFhZnRhbnN0YWFm\r\n");
        assert_eq!(plain.answer(&reply(235)), Next::Done);

        let (mut login, command) = Exchange::begin(&offers(&["login"]), &credentials).unwrap();
        assert_eq!(command, "AUTH LOGIN\r\n");
        assert_eq!(login.answer(&reply(334)), Next::Say("dGlt\r\n".into()));
        assert_eq!(login.answer(&reply(334)), Next::Say("dGFuc3RhYWZ0YW5zdGFhZg==\r\n".into()));
        assert_eq!(login.answer(&reply(535)), Next::Refused);

        // A server that never has enough is refused rather than answered for ever.
        let (mut plain, _) = Exchange::begin(&offers(&["PLAIN"]), &credentials).unwrap();
        assert_eq!(plain.answer(&reply(334)), Next::Refused);

        assert!(Exchange::begin(&offers(&["GSSAPI", "CRAM-MD5"]), &credentials).is_none());
        assert!(!format!("{credentials:?}").contains("tanstaaf"));
    }

    /// What the server hears: a challenge it asks on with, name and password, or a code.
    fn heard(arguments: &str, lines: &[&str]) -> String {
        let mut heard = Hearing::begin(arguments.as_bytes());
        let mut lines = lines.iter();
        loop {
            match heard {
                Ok(Heard::More(hearing, challenge)) => match lines.next() {
                    Some(line) => heard = hearing.hear(line.as_bytes()),
                    None => return format!("334 {challenge}"),
                },
                Ok(Heard::Whole(credentials)) => return format!("{}/{}", credentials.username, credentials.password),
                Ok(Heard::ForAnother) => return "for another".to_owned(),
                Err(reply) => return reply.code.to_string(),
            }
        }
    }

    #[test]
    fn a_server_hears_what_a_client_says() {
        let encode = |text: &str| STANDARD.encode(text);
        for (arguments, lines, expected) in [
            ("PLAIN", &[][..], "334 "),
            ("plain AHRpbQB0YW5zdGFhZnRhbnN0YWFm", &[], "tim/tanstaaftanstaaf"),
            ("PLAIN", &["AHRpbQB0YW5zdGFhZnRhbnN0YWFm \t"], "tim/tanstaaftanstaaf"),
            // Whom to act as: the example of RFC 4616 section 4 wants to be somebody else.
            ("PLAIN VXJzZWwAS3VydAB4aXBqMzBwbXhq", &[], "for another"),
            ("PLAIN", &[&*encode("tim\0tim\0x")], "tim/x"),
            ("PLAIN", &[&*encode("tim\0x")], "501"),
            ("PLAIN", &[&*encode("\0tim\0x\0")], "501"),
            ("PLAIN", &[&*encode("\0\0")], "/"),
            ("PLAIN", &[&*encode("\0J\u{fc}rgen\0gr\u{fc}n: $ \u{1f511}")], "J\u{fc}rgen/gr\u{fc}n: $ \u{1f511}"),
            ("PLAIN =", &[], "501"),
            ("PLAIN AA", &[], "501"),
            ("PLAIN A===", &[], "501"),
            ("PLAIN", &["AHRpbQB0 YW5z"], "501"),
            ("LOGIN", &[], "334 VXNlcm5hbWU6"),
            ("login dGlt", &[], "334 UGFzc3dvcmQ6"),
            ("LOGIN", &["dGlt", "eA=="], "tim/x"),
            ("LOGIN =", &[""], "/"),
            ("LOGIN", &["*"], "501"),
            ("LOGIN", &["dGlt", "*"], "501"),
            ("LOGIN", &["/w=="], "501"),
            ("", &[], "501"),
            ("PLAINER", &[], "504"),
            ("PLAIN a b", &[], "501"),
        ] {
            assert_eq!(heard(arguments, lines), expected, "{arguments:?} {lines:?}");
        }
        assert!(!format!("{:?}", Hearing::begin(b"PLAIN AHRpbQB0YW5zdGFhZnRhbnN0YWFm")).contains("tanstaaf"));
    }

    /// Our client is understood by our server, whatever name and password are.
    #[test]
    fn client_and_server_understand_each_other() {
        for (username, password) in [("tim", "tanstaaf"), ("a b", " "), ("J\u{fc}rgen", "\u{1f511}=*")] {
            for mechanism in ["PLAIN", "LOGIN"] {
                let credentials = Credentials { username: username.into(), password: password.into() };
                let (mut exchange, command) = Exchange::begin(&[mechanism.into()], &credentials).unwrap();
                let mut heard = Hearing::begin(command.strip_prefix("AUTH ").unwrap().trim_end().as_bytes()).unwrap();
                while let Heard::More(hearing, _) = heard {
                    let Next::Say(line) = exchange.answer(&reply(334)) else { panic!("{mechanism}") };
                    heard = hearing.hear(line.trim_end().as_bytes()).unwrap();
                }
                let Heard::Whole(heard) = heard else { panic!("{mechanism}") };
                assert_eq!((&*heard.username, &*heard.password), (username, password), "{mechanism}");
            }
        }
    }
}
