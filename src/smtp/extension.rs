//! What we offer in reply to EHLO, and what a server offered us.
//!
//! Both sides are tables: a keyword is offered if its row says so for this session, so none can be listed and
//! then refused. What a server offered holds until the next EHLO; after STARTTLS it is asked anew.
//!
//! Standards: RFC 5321 section 4.1.1.1, 1870 (SIZE), 2034 (ENHANCEDSTATUSCODES), 2920 (PIPELINING), 3030
//! (CHUNKING), 3207 (STARTTLS), 3461 (DSN), 4954 (AUTH), 6152 (8BITMIME), 6531 (SMTPUTF8), 8689 (REQUIRETLS),
//! 9422 (LIMITS). XOORG has none: it is what Exchange servers say among themselves.

use std::borrow::Cow;

use super::Reply;

/// What decides which keywords we offer.
#[derive(Debug, Clone, Copy)]
pub struct Offer {
    /// The session is in TLS.
    pub secure: bool,
    /// STARTTLS would be obeyed.
    pub starttls: bool,
    /// AUTH would be.
    pub auth: bool,
    /// The largest message taken, in octets.
    pub max_message_size: Option<u64>,
    /// The most recipients taken in one transaction.
    pub max_recipients: usize,
    /// XOORG would be believed: an internal connector.
    pub xoorg: bool,
}

/// One row: the parameter text behind the keyword, or `None` where it is not offered.
type Row = (&'static str, fn(&Offer) -> Option<Cow<'static, str>>);

/// The keywords in the order we list them. BINARYMIME is left out: it could not be sent on by DATA.
const OFFERS: &[Row] = &[
    ("PIPELINING", always),
    // Without a limit the keyword stands alone; SIZE=n on MAIL is still understood. RFC 1870 section 4.
    ("SIZE", |offer| Some(offer.max_message_size.map_or(Cow::Borrowed(""), |limit| limit.to_string().into()))),
    ("8BITMIME", always),
    ("SMTPUTF8", always),
    ("ENHANCEDSTATUSCODES", always),
    ("CHUNKING", always),
    ("DSN", always),
    ("STARTTLS", |offer| offer.starttls.then_some(Cow::Borrowed(""))),
    ("AUTH", |offer| offer.auth.then_some(Cow::Borrowed("PLAIN LOGIN"))),
    // RFC 8689 section 2: only in a session that is in TLS.
    ("REQUIRETLS", |offer| offer.secure.then_some(Cow::Borrowed(""))),
    // In the clear anybody on the way could say it.
    ("XOORG", |offer| (offer.secure && offer.xoorg).then_some(Cow::Borrowed(""))),
    ("LIMITS", |offer| Some(format!("RCPTMAX={}", offer.max_recipients).into())),
];

fn always(_: &Offer) -> Option<Cow<'static, str>> {
    Some(Cow::Borrowed(""))
}

impl Offer {
    /// The lines behind the first of our reply to EHLO.
    pub fn keywords(&self) -> impl Iterator<Item = Cow<'static, str>> {
        OFFERS.iter().filter_map(|(keyword, parameter)| {
            parameter(self).map(|parameter| match &*parameter {
                "" => Cow::Borrowed(*keyword),
                parameter => format!("{keyword} {parameter}").into(),
            })
        })
    }
}

/// What a server said it can do, in its reply to EHLO.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Offered {
    /// PIPELINING: commands may be sent in groups.
    pub pipelining: bool,
    /// CHUNKING: BDAT may be used.
    pub chunking: bool,
    /// SIZE: `None` if not offered, `Some(None)` if without a limit.
    pub size: Option<Option<u64>>,
    /// 8BITMIME.
    pub eightbitmime: bool,
    /// SMTPUTF8.
    pub smtputf8: bool,
    /// DSN: RET, ENVID, NOTIFY and ORCPT may be used.
    pub dsn: bool,
    /// STARTTLS.
    pub starttls: bool,
    /// REQUIRETLS.
    pub requiretls: bool,
    /// ENHANCEDSTATUSCODES.
    pub enhanced: bool,
    /// AUTH: the mechanisms, in upper case; empty if not offered.
    pub auth: Vec<Box<str>>,
    /// LIMITS RCPTMAX: the most recipients one transaction may have. RFC 9422.
    pub rcpt_max: Option<u64>,
    /// XOORG: the author's organization may be named on MAIL.
    pub xoorg: bool,
}

/// How many mechanisms of an AUTH line are kept; more do not exist.
const MECHANISMS: usize = 32;

impl Offered {
    /// Reads the reply to EHLO, as [`ReplyParser::next_hello`](super::reply::ReplyParser::next_hello) gives it.
    /// Keywords we do not know are passed over; of one that comes twice the first counts.
    pub fn parse(reply: &Reply) -> Self {
        let mut offered = Self::default();
        // The first line names the server.
        for line in reply.text.split('\n').skip(1) {
            // Some servers write "AUTH=LOGIN" beside or in place of "AUTH LOGIN".
            let (keyword, parameter) = line.split_once([' ', '=']).unwrap_or((line, ""));
            let mut words = parameter.split_ascii_whitespace();
            match keyword.to_ascii_uppercase().as_str() {
                "PIPELINING" => offered.pipelining = true,
                "CHUNKING" => offered.chunking = true,
                "SIZE" => {
                    // 0 is "no limit", and so is what cannot be read: the server will say so at MAIL. RFC 1870.
                    let limit = words.next().and_then(|word| word.parse().ok()).filter(|&limit| limit > 0);
                    offered.size.get_or_insert(limit);
                }
                "8BITMIME" => offered.eightbitmime = true,
                "SMTPUTF8" => offered.smtputf8 = true,
                "DSN" => offered.dsn = true,
                "STARTTLS" => offered.starttls = true,
                "REQUIRETLS" => offered.requiretls = true,
                "ENHANCEDSTATUSCODES" => offered.enhanced = true,
                "XOORG" => offered.xoorg = true,
                "AUTH" => {
                    for mechanism in words.map(|word| word.to_ascii_uppercase().into_boxed_str()) {
                        if offered.auth.len() < MECHANISMS && !offered.auth.contains(&mechanism) {
                            offered.auth.push(mechanism);
                        }
                    }
                }
                "LIMITS" => {
                    let limit = words.filter_map(|word| word.split_once('=')).find_map(|(name, value)| {
                        name.eq_ignore_ascii_case("RCPTMAX").then(|| value.parse().ok()).flatten()
                    });
                    offered.rcpt_max = offered.rcpt_max.or(limit.filter(|&limit| limit > 0));
                }
                _ => {}
            }
        }
        offered
    }
}

#[cfg(test)]
mod tests {
    use bytes::BytesMut;

    use super::*;
    use crate::smtp::reply::ReplyParser;

    fn parse(wire: &str) -> Offered {
        let mut unread = BytesMut::from(wire.as_bytes());
        Offered::parse(&ReplyParser::default().next_hello(&mut unread).unwrap().unwrap())
    }

    #[test]
    fn an_offer_is_understood() {
        let all = parse(
            "250-STARTTLS.example says hello\r\n250-pipelining\r\n250-SIZE 1000\r\n250-8BITMIME\r\n250-SMTPUTF8\r\n\
             250-CHUNKING\r\n250-DSN\r\n250-REQUIRETLS\r\n250-ENHANCEDSTATUSCODES\r\n250-AUTH plain LOGIN\r\n\
             250-AUTH=LOGIN\r\n250-LIMITS MAILMAX=9 RCPTMAX=50\r\n250-xoorg\r\n250-X-WHATEVER\r\n250 BINARYMIME\r\n",
        );
        let expected = Offered {
            pipelining: true,
            chunking: true,
            size: Some(Some(1000)),
            eightbitmime: true,
            smtputf8: true,
            dsn: true,
            // The first line is the server's name, whatever stands there.
            starttls: false,
            requiretls: true,
            enhanced: true,
            auth: vec!["PLAIN".into(), "LOGIN".into()],
            rcpt_max: Some(50),
            xoorg: true,
        };
        assert_eq!(all, expected);
        assert_eq!(parse("250 only.example\r\n"), Offered::default());
    }

    /// C262: nothing in an offer can do harm.
    #[test]
    fn a_strange_offer_is_read_as_far_as_it_goes() {
        for (keyword, size) in [
            ("SIZE", Some(None)),
            ("SIZE 0", Some(None)),
            ("SIZE x", Some(None)),
            ("SIZE -1", Some(None)),
            ("SIZE 99999999999999999999999", Some(None)),
            ("SIZE 5\r\n250-SIZE 6", Some(Some(5))),
            ("SIZES 5", None),
        ] {
            assert_eq!(parse(&format!("250-a\r\n250-{keyword}\r\n250 DSN\r\n")).size, size, "{keyword}");
        }
        let lines = "250-KEYWORD\r\n".repeat(1000);
        let long = "x".repeat(100_000);
        let offered = parse(&format!("250-a\r\n250-STARTTLS\r\n250-{long}\r\n{lines}250 DSN\r\n"));
        assert!(offered.starttls && !offered.dsn, "128 lines are read, and of each 4 KiB");
    }

    /// C015, C016: what we offer is what we would understand.
    #[test]
    fn our_offer_is_understood_by_ourselves() {
        for (secure, starttls, auth) in
            [(false, true, false), (false, false, false), (true, false, false), (true, false, true)]
        {
            let offer = Offer { secure, starttls, auth, max_message_size: Some(77), max_recipients: 5, xoorg: true };
            let domain = crate::message::Domain::parse("a.example").unwrap();
            let offered = Offered::parse(&Reply::extended_hello(&domain, offer.keywords()));
            assert!(offered.pipelining && offered.chunking && offered.dsn && offered.smtputf8 && offered.enhanced);
            assert_eq!((offered.starttls, offered.requiretls, offered.xoorg), (starttls, secure, secure));
            let not_internal = Offer { xoorg: false, ..offer };
            assert!(!not_internal.keywords().any(|keyword| keyword == "XOORG"));
            let mechanisms: Vec<&str> = offered.auth.iter().map(|mechanism| &**mechanism).collect();
            assert_eq!(mechanisms, if auth { &["PLAIN", "LOGIN"][..] } else { &[] });
            assert_eq!((offered.size, offered.rcpt_max), (Some(Some(77)), Some(5)));
        }
    }
}
