//! SASL PLAIN and LOGIN as a client says them (RFC 4954, 4616). The server side comes with client submission.
//!
//! Not here: whether a password may be said at all. The session asks for TLS first, whatever the server offers.

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use super::Reply;

/// A name and its password. The password is never shown.
#[derive(Clone)]
pub struct Credentials {
    /// The name.
    pub username: String,
    /// The password.
    pub password: String,
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
}
