//! Commands and their parameters: one line in, one checked value out.
//!
//! A line is first given its [`Verb`]; the session then asks whether that verb may come now, and only then are
//! the arguments read. Source routes are read and dropped; `%`, `!` and their like are ordinary characters of a
//! local part: nobody behind this file sees anything but local part and domain.
//!
//! With [`Syntax::Lenient`] it also takes what devices and other relays send and Postfix takes by default, as long as it
//! can mean one thing only: blanks and tabs where one blank is due, a path without its brackets, a local part without a
//! domain (it gets our host name), any client name. A parameter about reports does not decide over the mail: an ENVID or
//! ORCPT that cannot be used is left out, and so is AUTH.
//!
//! Not here: what ends a line (`framing`), what may follow what (`server`).
//!
//! Standards: RFC 5321 sections 4.1.1 and 4.1.2, 1870 (SIZE), 3030 (BDAT), 3461 (RET, ENVID, NOTIFY, ORCPT), 4954
//! (AUTH), 6152 (BODY), 6531 (SMTPUTF8), 6533 (ORCPT in UTF-8), 8689 (REQUIRETLS). XOORG:
//! what Exchange says to Exchange, as docs/configuration.md has it.

use super::Reply;
use crate::message::address::Syntax;
use crate::message::received::clean_name;
use crate::message::{Address, BodyType, Domain, Notify, OriginalRecipient, Recipient, Ret};

/// The most hosts in a source route. The standard sets no number; nobody has sent one in earnest for decades.
const ROUTE_LIMIT: usize = 100;

/// The longest ENVID, as written. RFC 3461 section 4.4.
const ENVID_LIMIT: usize = 100;

/// The longest ORCPT, as written. RFC 3461 section 4.2.
const ORCPT_LIMIT: usize = 500;

/// The longest AUTH of MAIL, as written. RFC 4954 section 3.
const SUBMITTER_LIMIT: usize = 500;

/// SIZE has at most this many digits. RFC 1870 section 4.
const SIZE_DIGITS: usize = 20;

/// The longest name a client may give itself; of a longer one a lenient listener takes so much. RFC 5321 section
/// 4.5.3.1.2.
const HELLO_LIMIT: usize = 255;

/// The first word of a line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verb {
    /// EHLO.
    Ehlo,
    /// HELO.
    Helo,
    /// MAIL.
    Mail,
    /// RCPT.
    Rcpt,
    /// DATA.
    Data,
    /// BDAT.
    Bdat,
    /// RSET.
    Rset,
    /// NOOP.
    Noop,
    /// HELP.
    Help,
    /// VRFY.
    Vrfy,
    /// QUIT.
    Quit,
    /// STARTTLS.
    StartTls,
    /// AUTH.
    Auth,
    /// A command the standards know and we do not carry out.
    Off,
    /// Another protocol's first line: an HTTP request, an SSH banner.
    Foreign,
    /// Anything else.
    Unknown,
}

const VERBS: &[(&str, Verb)] = &[
    ("MAIL", Verb::Mail),
    ("RCPT", Verb::Rcpt),
    ("DATA", Verb::Data),
    ("BDAT", Verb::Bdat),
    ("EHLO", Verb::Ehlo),
    ("HELO", Verb::Helo),
    ("RSET", Verb::Rset),
    ("NOOP", Verb::Noop),
    ("HELP", Verb::Help),
    ("VRFY", Verb::Vrfy),
    ("QUIT", Verb::Quit),
    ("STARTTLS", Verb::StartTls),
    ("AUTH", Verb::Auth),
    ("EXPN", Verb::Off),
    ("ETRN", Verb::Off),
    ("ATRN", Verb::Off),
    ("TURN", Verb::Off),
    ("SEND", Verb::Off),
    ("SOML", Verb::Off),
    ("SAML", Verb::Off),
    // A browser can be made to send these to our port, with a message in the body. RFC 9110 section 9.
    ("GET", Verb::Foreign),
    ("HEAD", Verb::Foreign),
    ("POST", Verb::Foreign),
    ("PUT", Verb::Foreign),
    ("DELETE", Verb::Foreign),
    ("CONNECT", Verb::Foreign),
    ("OPTIONS", Verb::Foreign),
    ("TRACE", Verb::Foreign),
    ("PATCH", Verb::Foreign),
    ("PRI", Verb::Foreign),
];

impl Verb {
    /// The verb of a line, and what follows the space behind it; blanks at the end of the line do not count.
    /// RFC 5321 section 4.1.1.
    pub fn of(line: &[u8]) -> (Self, &[u8]) {
        let end = line.iter().rposition(|byte| !matches!(byte, b' ' | b'\t')).map_or(0, |last| last + 1);
        let line = &line[..end];
        let end = memchr::memchr(b' ', line).unwrap_or(line.len());
        let (word, arguments) = (&line[..end], line.get(end + 1..).unwrap_or_default());
        let known = VERBS.iter().find(|(name, _)| word.eq_ignore_ascii_case(name.as_bytes())).map(|&(_, verb)| verb);
        let verb = known.unwrap_or(if word.starts_with(b"SSH-") { Self::Foreign } else { Self::Unknown });
        (verb, arguments)
    }
}

/// Arguments as text: UTF-8 or nothing.
///
/// # Errors
/// 501 5.5.2.
pub fn text(arguments: &[u8]) -> Result<&str, Reply> {
    std::str::from_utf8(arguments).map_err(|_| Reply::bad_syntax("not UTF-8"))
}

/// Refuses arguments behind a command that has none.
///
/// # Errors
/// 501 5.5.4.
pub fn check_none(arguments: &[u8]) -> Result<(), Reply> {
    if arguments.is_empty() { Ok(()) } else { Err(Reply::bad_argument("this command has no arguments")) }
}

/// What the client calls itself in EHLO or HELO, cleaned up by [`clean_name`]: whatever was sent, it is ASCII without
/// blanks.
///
/// It need not be a domain: what the name says is never a reason to refuse (RFC 5321 section 4.1.4), and half of the
/// devices in an office give none. A strict listener wants one printable word; a lenient one also takes blanks and octets
/// outside ASCII, in whatever character set, but no control characters.
///
/// # Errors
/// 501 5.5.4, and 501 5.5.2 where a strict listener hears octets that are not UTF-8.
pub fn hello_name(arguments: &[u8], syntax: Syntax) -> Result<String, Reply> {
    let name = match syntax {
        Syntax::Strict => text(arguments)?.as_bytes(),
        Syntax::Lenient => trim_blanks(arguments),
    };
    let is_sound = match syntax {
        Syntax::Strict => name.len() <= HELLO_LIMIT && name.iter().all(u8::is_ascii_graphic),
        Syntax::Lenient => !name.iter().any(u8::is_ascii_control),
    };
    match name {
        [] => Err(Reply::bad_argument("who are you? a domain or address literal is missing")),
        name if is_sound => Ok(clean_name(&name[..name.len().min(HELLO_LIMIT)])),
        _ => Err(Reply::bad_argument("that is no domain or address literal")),
    }
}

/// Without the blanks and tabs in front.
fn trim_blanks(text: &[u8]) -> &[u8] {
    let from = text.iter().position(|octet| !is_blank(*octet)).unwrap_or(text.len());
    &text[from..]
}

fn is_blank(octet: u8) -> bool {
    matches!(octet, b' ' | b'\t')
}

/// What decides how MAIL and RCPT are read.
#[derive(Debug, Clone, Copy)]
pub struct Manners {
    /// EHLO was said: there are parameters.
    pub extended: bool,
    /// The session is in TLS.
    pub secure: bool,
    /// There are users who may log in, and they may do so here.
    pub auth: bool,
    /// How closely the grammar is followed.
    pub syntax: Syntax,
    /// XOORG was offered.
    pub xoorg: bool,
}

/// The arguments of MAIL.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Mail {
    /// `None` is the null reverse-path.
    pub sender: Option<Address>,
    /// SIZE.
    pub size: Option<u64>,
    /// BODY.
    pub body: BodyType,
    /// SMTPUTF8.
    pub smtputf8: bool,
    /// RET.
    pub ret: Option<Ret>,
    /// ENVID, decoded.
    pub envid: Option<Box<str>>,
    /// REQUIRETLS.
    pub requiretls: bool,
    /// XOORG: the author's organization.
    pub xoorg: Option<Domain>,
}

impl Mail {
    /// Reads `FROM:<path> parameters`. A sender without a domain is of `hostname`, unless the listener is strict.
    ///
    /// # Errors
    /// The reply that says what is wrong.
    pub fn parse(arguments: &[u8], manners: Manners, hostname: &Domain) -> Result<Self, Reply> {
        let Manners { syntax, .. } = manners;
        let path = Path::parse(text(arguments)?, "FROM:", syntax)?;
        let mut mail = Self::default();
        let mut body = None;
        let (mut submitter, mut envid) = (None, None);
        for parameter in Parameter::all(path.parameters, manners, false) {
            let parameter = parameter?;
            match parameter.name.to_ascii_uppercase().as_str() {
                "SIZE" => parameter.once(&mut mail.size, size)?,
                // Known, but not offered: the message could not be sent on by DATA.
                "BODY" if parameter.is("BINARYMIME") => return Err(Reply::unknown_parameter(parameter.name)),
                "BODY" => parameter.once(&mut body, |value| match value {
                    _ if value.eq_ignore_ascii_case("7BIT") => Some(BodyType::SevenBit),
                    _ if value.eq_ignore_ascii_case("8BITMIME") => Some(BodyType::EightBit),
                    _ => None,
                })?,
                "SMTPUTF8" => parameter.flag(&mut mail.smtputf8)?,
                "RET" => parameter.once(&mut mail.ret, |value| match value {
                    _ if value.eq_ignore_ascii_case("FULL") => Some(Ret::Full),
                    _ if value.eq_ignore_ascii_case("HDRS") => Some(Ret::Headers),
                    _ => None,
                })?,
                "ENVID" => parameter.once_about_reports(&mut envid, syntax, |value| {
                    let value = decode_xtext(value, syntax).filter(|_| value.len() <= ENVID_LIMIT)?;
                    Some(value).filter(|value| !value.is_empty())
                })?,
                "REQUIRETLS" => {
                    parameter.flag(&mut mail.requiretls)?;
                    if !manners.secure {
                        return Err(Reply::requiretls_needs_tls());
                    }
                }
                "XOORG" if manners.xoorg => parameter.once(&mut mail.xoorg, |value| {
                    Domain::parse(value).ok().filter(|domain| domain.literal().is_none())
                })?,
                // Read, as it must be where AUTH is offered, and ignored: we trust nobody to say who somebody else is.
                // RFC 4954 section 5. Relays say it where it is not offered, too.
                "AUTH" if manners.auth || syntax == Syntax::Lenient => {
                    parameter.once_about_reports(&mut submitter, syntax, |value| {
                        if value.len() > SUBMITTER_LIMIT {
                            None
                        } else if value == "<>" {
                            Some(())
                        } else {
                            decode_xtext(value, syntax).map(|_| ())
                        }
                    })?
                }
                _ => return Err(Reply::unknown_parameter(parameter.name)),
            }
        }
        mail.body = body.unwrap_or_default();
        mail.envid = envid.flatten();
        if !path.is_ascii && !mail.smtputf8 {
            return Err(Reply::utf8_not_declared());
        }
        let home = Some(hostname).filter(|_| syntax == Syntax::Lenient);
        mail.sender = match path.mailbox {
            "" if !path.routed => None,
            mailbox => {
                let sender = Address::parse_as(mailbox, syntax, home);
                Some(sender.map_err(|why| Reply::bad_sender(&why.to_string()))?)
            }
        };
        Ok(mail)
    }
}

/// Reads `TO:<path> parameters` of RCPT. `utf8`: the transaction has SMTPUTF8.
///
/// `<postmaster>`, which needs no domain, becomes postmaster at `hostname`: the stages behind then have an
/// address like any other, and the one domain that is surely ours. RFC 5321 section 4.5.1. Unless the listener is strict,
/// any other recipient without a domain is of `hostname` too.
///
/// # Errors
/// The reply that says what is wrong.
pub fn parse_recipient(arguments: &[u8], manners: Manners, utf8: bool, hostname: &Domain) -> Result<Recipient, Reply> {
    let Manners { syntax, .. } = manners;
    let path = Path::parse(text(arguments)?, "TO:", syntax)?;
    let (mut notify, mut orcpt) = (None, None);
    for parameter in Parameter::all(path.parameters, manners, utf8) {
        let parameter = parameter?;
        match parameter.name.to_ascii_uppercase().as_str() {
            "NOTIFY" => parameter.once(&mut notify, |value| parse_notify(value, syntax))?,
            "ORCPT" => {
                parameter.once_about_reports(&mut orcpt, syntax, |value| parse_original_recipient(value, syntax))?
            }
            _ => return Err(Reply::unknown_parameter(parameter.name)),
        }
    }
    if !path.is_ascii && !utf8 {
        return Err(Reply::utf8_not_declared());
    }
    let is_postmaster = path.mailbox.trim_matches('"').eq_ignore_ascii_case("postmaster");
    let home = Some(hostname).filter(|_| is_postmaster || syntax == Syntax::Lenient);
    let address = Address::parse_as(path.mailbox, syntax, home);
    Ok(Recipient {
        address: address.map_err(|why| Reply::bad_recipient(&why.to_string()))?,
        notify: notify.unwrap_or_default(),
        orcpt: orcpt.flatten(),
    })
}

/// The arguments of BDAT: octets, and whether the chunk is the last. `None`: malformed, and nobody knows where
/// in the stream the next command begins. RFC 3030 section 2.
pub fn parse_chunk(arguments: &[u8]) -> Option<(u64, bool)> {
    let arguments = text(arguments).ok()?;
    let (octets, last) = match arguments.split_once(' ') {
        Some((octets, last)) if last.eq_ignore_ascii_case("LAST") => (octets, true),
        Some(_) => return None,
        None => (arguments, false),
    };
    // `parse` alone would take a plus sign.
    let digits = !octets.is_empty() && octets.bytes().all(|byte| byte.is_ascii_digit());
    Some((octets.parse().ok().filter(|_| digits)?, last))
}

/// A path taken apart, its mailbox not looked at yet.
struct Path<'a> {
    mailbox: &'a str,
    /// A source route stood before the mailbox.
    routed: bool,
    is_ascii: bool,
    parameters: &'a str,
}

impl<'a> Path<'a> {
    fn parse(arguments: &'a str, keyword: &str, syntax: Syntax) -> Result<Self, Reply> {
        let malformed = || Reply::bad_argument(&format!("expected {keyword}<address>"));
        let arguments = trimmed(arguments, syntax);
        let (word, rest) = arguments.split_at_checked(keyword.len()).ok_or_else(malformed)?;
        if !word.eq_ignore_ascii_case(keyword) {
            return Err(malformed());
        }
        // RFC 5321 section 3.3 permits no space here; many a device sends one all the same.
        let rest = trimmed(rest, syntax);
        let Some(path) = rest.strip_prefix('<') else {
            return match syntax {
                Syntax::Strict => Err(malformed()),
                Syntax::Lenient => Self::bare(rest).ok_or_else(malformed),
            };
        };
        let routed = path.starts_with('@');
        let mailbox = if routed { skip_route(path).ok_or_else(malformed)? } else { path };
        let end = end_of_quotes(mailbox).and_then(|from| Some(from + mailbox[from..].find('>')?));
        let end = end.ok_or_else(malformed)?;
        let parameters = &mailbox[end + 1..];
        let is_apart = match syntax {
            Syntax::Strict => parameters.starts_with(' '),
            Syntax::Lenient => parameters.starts_with([' ', '\t']),
        };
        if !parameters.is_empty() && !is_apart {
            return Err(malformed());
        }
        let is_ascii = path[..path.len() - parameters.len()].is_ascii();
        Ok(Self { mailbox: &mailbox[..end], routed, is_ascii, parameters })
    }

    /// A mailbox without brackets, which ends at a blank. Nothing is not the null reverse-path, a single bracket not half
    /// a path, and `FROM: SIZE=1000` has no sender.
    fn bare(text: &'a str) -> Option<Self> {
        let from = end_of_quotes(text)?;
        let end = text[from..].find([' ', '\t']).map_or(text.len(), |end| from + end);
        let (mailbox, parameters) = text.split_at(end);
        let unquoted = &mailbox[from..];
        let is_parameter = unquoted.contains('=') && !mailbox.contains('@');
        if mailbox.is_empty() || mailbox.starts_with('@') || unquoted.contains(['<', '>']) || is_parameter {
            return None;
        }
        Some(Self { mailbox, routed: false, is_ascii: mailbox.is_ascii(), parameters })
    }
}

/// Without the blanks in front that are forgiven.
fn trimmed(text: &str, syntax: Syntax) -> &str {
    match syntax {
        Syntax::Strict => text,
        Syntax::Lenient => text.trim_start_matches([' ', '\t']),
    }
}

/// What follows a source route: read, as it must be, and ignored. RFC 5321 section 3.6.1 and appendix C.
fn skip_route(mut text: &str) -> Option<&str> {
    for _ in 0..ROUTE_LIMIT {
        let hop = text.strip_prefix('@')?;
        // The colons of an IPv6 literal end no route.
        let from = if hop.starts_with('[') { hop.find(']')? } else { 0 };
        let end = from + hop[from..].find([',', ':'])?;
        Domain::parse(&hop[..end]).ok()?;
        text = &hop[end + 1..];
        if hop.as_bytes()[end] == b':' {
            return Some(text);
        }
    }
    None
}

/// Where the quotes end that a local part stands in: behind them a blank or bracket is one. 0 where there are none; `None`
/// where they are not closed.
fn end_of_quotes(text: &str) -> Option<usize> {
    if !text.starts_with('"') {
        return Some(0);
    }
    let mut bytes = text.bytes().enumerate().skip(1);
    loop {
        match bytes.next()? {
            (index, b'"') => return Some(index),
            (_, b'\\') => drop(bytes.next()?),
            _ => {}
        }
    }
}

/// One parameter of MAIL or RCPT.
struct Parameter<'a> {
    name: &'a str,
    value: Option<&'a str>,
    /// The value keeps to the grammar of all values. RFC 5321 section 4.1.2.
    is_sound: bool,
}

impl<'a> Parameter<'a> {
    fn all(text: &'a str, manners: Manners, utf8: bool) -> impl Iterator<Item = Result<Self, Reply>> {
        let tabs = manners.syntax == Syntax::Lenient;
        let words = text.split(move |c| c == ' ' || (tabs && c == '\t')).filter(|word| !word.is_empty());
        words.map(move |word| {
            let parameter = Self::parse(word, utf8).ok_or_else(malformed_parameter)?;
            // After HELO there is no parameter we know. RFC 5321 section 4.1.1.11.
            match manners.extended {
                true => Ok(parameter),
                false if parameter.is_sound => Err(Reply::unknown_parameter(parameter.name)),
                false => Err(malformed_parameter()),
            }
        })
    }

    fn parse(word: &'a str, utf8: bool) -> Option<Self> {
        let (name, value) = match word.split_once('=') {
            Some((name, value)) => (name, Some(value)),
            None => (word, None),
        };
        let name_is_sound = name.as_bytes().first().is_some_and(u8::is_ascii_alphanumeric)
            && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-');
        let is_sound = value.is_none_or(|value| {
            !value.is_empty()
                && value.bytes().all(|byte| byte != b'=' && (byte.is_ascii_graphic() || (utf8 && byte >= 128)))
        });
        name_is_sound.then_some(Self { name, value, is_sound })
    }

    fn is(&self, value: &str) -> bool {
        self.value.is_some_and(|own| own.eq_ignore_ascii_case(value))
    }

    fn once<T>(&self, slot: &mut Option<T>, read: impl FnOnce(&str) -> Option<T>) -> Result<(), Reply> {
        if slot.is_some() {
            return Err(Reply::bad_parameter(self.name, "given twice"));
        }
        if !self.is_sound {
            return Err(malformed_parameter());
        }
        let value = self.value.ok_or_else(|| Reply::bad_parameter(self.name, "its value is missing"))?;
        *slot = Some(read(value).ok_or_else(|| Reply::bad_parameter(self.name, "bad value"))?);
        Ok(())
    }

    /// The same for a parameter without which the message can do: unless the listener is strict, `Some(None)` is one
    /// whose value cannot be used.
    fn once_about_reports<T>(
        &self,
        slot: &mut Option<Option<T>>,
        syntax: Syntax,
        read: impl FnOnce(&str) -> Option<T>,
    ) -> Result<(), Reply> {
        match syntax {
            Syntax::Strict => self.once(slot, |value| read(value).map(Some)),
            Syntax::Lenient if slot.is_some() => Err(Reply::bad_parameter(self.name, "given twice")),
            Syntax::Lenient => {
                *slot = Some(self.value.and_then(read));
                Ok(())
            }
        }
    }

    fn flag(&self, slot: &mut bool) -> Result<(), Reply> {
        if !self.is_sound {
            return Err(malformed_parameter());
        }
        if self.value.is_some() {
            return Err(Reply::bad_parameter(self.name, "has no value"));
        }
        if std::mem::replace(slot, true) {
            return Err(Reply::bad_parameter(self.name, "given twice"));
        }
        Ok(())
    }
}

fn malformed_parameter() -> Reply {
    Reply::bad_argument("malformed parameter")
}

/// The value of SIZE; what no number of ours can hold is larger than any limit.
fn size(value: &str) -> Option<u64> {
    let digits = value.len() <= SIZE_DIGITS && value.bytes().all(|byte| byte.is_ascii_digit());
    digits.then(|| value.parse().unwrap_or(u64::MAX))
}

/// RFC 3461 section 4.1. A word given twice is a word, as with Postfix; nonsense stays nonsense, as with Postfix: it would
/// decide whether the sender hears of a failure.
fn parse_notify(value: &str, syntax: Syntax) -> Option<Notify> {
    if value.eq_ignore_ascii_case("NEVER") {
        return Some(Notify::Never);
    }
    let (mut success, mut failure, mut delay) = (false, false, false);
    for word in value.split(',') {
        let slot = match word {
            _ if word.eq_ignore_ascii_case("SUCCESS") => &mut success,
            _ if word.eq_ignore_ascii_case("FAILURE") => &mut failure,
            _ if word.eq_ignore_ascii_case("DELAY") => &mut delay,
            _ => return None,
        };
        if std::mem::replace(slot, true) && syntax == Syntax::Strict {
            return None;
        }
    }
    Some(Notify::On { success, failure, delay })
}

/// RFC 3461 section 4.2, and RFC 6533 section 3 for the type `utf-8`.
fn parse_original_recipient(value: &str, syntax: Syntax) -> Option<OriginalRecipient> {
    let (kind, address) = value.split_once(';').filter(|_| value.len() <= ORCPT_LIMIT)?;
    let atom = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-/?^_`{|}~".contains(&byte);
    if kind.is_empty() || address.is_empty() || !kind.bytes().all(atom) {
        return None;
    }
    let address = match kind.eq_ignore_ascii_case("utf-8") {
        true => decode_utf8_address(address, syntax)?,
        false => decode_xtext(address, syntax)?,
    };
    Some(OriginalRecipient { kind: kind.into(), address })
}

/// The text behind xtext: `+HH` is an octet. Octets that are no ASCII, or control characters, have no business
/// in an identifier or address, and would later stand in a header field. RFC 3461 section 4.
fn decode_xtext(xtext: &str, syntax: Syntax) -> Option<Box<str>> {
    let mut decoded = String::with_capacity(xtext.len());
    let mut bytes = xtext.bytes();
    while let Some(byte) = bytes.next() {
        let byte = if byte == b'+' { hex_octet(bytes.next()?, bytes.next()?, syntax)? } else { byte };
        match byte {
            b' '..=b'~' => decoded.push(char::from(byte)),
            _ => return None,
        }
    }
    Some(decoded.into())
}

/// Two digits of `+HH`; small letters are not in the grammar, and can mean nothing else.
fn hex_octet(high: u8, low: u8, syntax: Syntax) -> Option<u8> {
    let digit = |byte: u8| match byte {
        b'0'..=b'9' => Some(byte - b'0'),
        b'A'..=b'F' => Some(byte - b'A' + 10),
        b'a'..=b'f' if syntax == Syntax::Lenient => Some(byte - b'a' + 10),
        _ => None,
    };
    Some(digit(high)? * 16 + digit(low)?)
}

/// The address behind `utf-8;`: UTF-8 as it is, `\x{HEX}` for a character, and xtext's `+HH` for ASCII.
fn decode_utf8_address(text: &str, syntax: Syntax) -> Option<Box<str>> {
    let mut decoded = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(character) = rest.chars().next() {
        let character = match character {
            '\\' => {
                let (digits, behind) = rest.strip_prefix("\\x{")?.split_once('}')?;
                let sound = matches!(digits.len(), 2..=6) && digits.bytes().all(|digit| digit.is_ascii_hexdigit());
                rest = behind;
                char::from_u32(u32::from_str_radix(digits, 16).ok().filter(|_| sound)?)?
            }
            '+' => {
                let octet = rest.as_bytes().get(1..3)?;
                let octet = hex_octet(octet[0], octet[1], syntax).filter(u8::is_ascii)?;
                rest = &rest[3..];
                char::from(octet)
            }
            character => {
                rest = &rest[character.len_utf8()..];
                character
            }
        };
        if character.is_control() {
            return None;
        }
        decoded.push(character);
    }
    Some(decoded.into())
}
