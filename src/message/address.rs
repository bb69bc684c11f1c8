//! Mail addresses and domains as checked values: what has one of these types has been parsed.
//!
//! A [`Domain`] is in A-label form, lower case, without a trailing dot, or an address literal. The local part
//! of an [`Address`] is kept byte for byte without its quotes; `Display` puts back the quoting that is needed. So an
//! unquoted `a..b@d`, which [`Syntax::Lenient`] takes, is written as `"a..b"@d`: the same mailbox, in the form that the
//! standard has for it and that strict servers take. Postfix writes it so too.
//!
//! The only limit of a local part is that of the whole path. The 64 octets of RFC 5321 section 4.5.3.1.1 are what must be
//! taken at least; VERP and SRS make longer ones.
//!
//! Standards: RFC 5321 section 4.1.2 (grammar) and 4.5.3.1 (lengths), 5890 (A-labels), 6531 (UTF-8 addresses).

use std::fmt::{self, Write as _};
use std::net::IpAddr;

/// The longest local part that an address may be given on its way through the relay. What a client says is bounded by
/// [`PATH_LIMIT`], which is less.
pub const LOCAL_LIMIT: usize = 256;
/// RFC 5321 section 4.5.3.1.2.
const DOMAIN_LIMIT: usize = 255;
/// RFC 1035 section 2.3.4.
const LABEL_LIMIT: usize = 63;
/// RFC 5321 section 4.5.3.1.3: a path has 256 octets, two of them the angle brackets.
const PATH_LIMIT: usize = 254;

/// How closely a client must follow the grammar of RFC 5321 section 4.1.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Syntax {
    /// As the standard writes it: a receive connector with `strict = true`.
    Strict,
    /// Also what devices and other relays send and Postfix takes, as long as it can mean one thing only: dots anywhere
    /// in an unquoted local part, and more that `smtp::command` lists.
    Lenient,
}

/// A domain name in A-label form (lower case, no trailing dot) or an address literal such as `[192.0.2.1]`.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Domain(Box<str>);

/// A mailbox: local part and domain.
///
/// Two addresses are equal if their local parts are equal byte for byte and their domains are. Look-ups that
/// ignore case use [`Address::key`].
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Address {
    local: Box<str>,
    domain: Domain,
}

/// Why a text is no address or domain.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    /// The local part breaks the grammar, or is empty or longer than any path.
    #[error("the local part is malformed")]
    Local,
    /// The domain breaks the grammar, or is longer than 255 octets.
    #[error("the domain is malformed")]
    Domain,
    /// There is no `@`.
    #[error("the domain is missing")]
    NoDomain,
    /// The whole is longer than a path may be.
    #[error("the address is longer than 254 octets")]
    TooLong,
}

impl Domain {
    /// Parses a domain name or an address literal; U-labels become A-labels.
    ///
    /// Underscores are taken: hosts with them exist. A trailing dot, an empty label, a label that begins or ends
    /// with a hyphen, and a name whose last label is all digits (an address without its brackets) are not.
    ///
    /// # Errors
    /// [`Malformed::Domain`] if it is neither.
    pub fn parse(text: &str) -> Result<Self, Malformed> {
        if let Some(inner) = text.strip_prefix('[') {
            return Self::parse_literal(inner.strip_suffix(']').ok_or(Malformed::Domain)?);
        }
        if !text.is_ascii() {
            // The mapping of UTS 46 makes one name of look-alike dots and widths before anything compares it.
            let ascii = idna::domain_to_ascii_strict(text).map_err(|_| Malformed::Domain)?;
            // A sign that is no dot on the wire must not become one behind the parser: `in\u{3002}d` stays foreign.
            if ascii.matches('.').count() != text.matches('.').count() {
                return Err(Malformed::Domain);
            }
            return Self::check_name(&ascii).map(|()| Self(ascii.into_boxed_str()));
        }
        Self::check_name(text)?;
        let mut name: Box<str> = text.into();
        name.make_ascii_lowercase();
        Ok(Self(name))
    }

    /// The domain that is this address's literal.
    pub fn from_ip(ip: IpAddr) -> Self {
        Self(match ip {
            IpAddr::V4(v4) => format!("[{v4}]").into_boxed_str(),
            IpAddr::V6(v6) => format!("[IPv6:{v6}]").into_boxed_str(),
        })
    }

    /// The domain as it is written on the wire.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The address of an address literal.
    pub fn literal(&self) -> Option<IpAddr> {
        let inner = self.0.strip_prefix('[')?.strip_suffix(']')?;
        match inner.strip_prefix("IPv6:") {
            Some(v6) => v6.parse().ok().map(IpAddr::V6),
            None => inner.parse().ok().map(IpAddr::V4),
        }
    }

    /// True if this name is `other` or lies below it.
    pub fn is_within(&self, other: &Self) -> bool {
        let (own, other) = (self.as_str(), other.as_str());
        own.strip_suffix(other).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
    }

    fn parse_literal(inner: &str) -> Result<Self, Malformed> {
        let ip = match inner.get(..5) {
            Some(tag) if tag.eq_ignore_ascii_case("IPv6:") => {
                IpAddr::V6(inner[5..].parse().map_err(|_| Malformed::Domain)?)
            }
            _ => IpAddr::V4(inner.parse().map_err(|_| Malformed::Domain)?),
        };
        Ok(Self::from_ip(ip))
    }

    fn check_name(text: &str) -> Result<(), Malformed> {
        if text.is_empty() || text.len() > DOMAIN_LIMIT {
            return Err(Malformed::Domain);
        }
        let mut last = "";
        for label in text.split('.') {
            let sound = !label.is_empty()
                && label.len() <= LABEL_LIMIT
                && !label.starts_with('-')
                && !label.ends_with('-')
                && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_');
            if !sound {
                return Err(Malformed::Domain);
            }
            last = label;
        }
        // No top-level domain is a number: 192.0.2.1, 2130706433 and 0x7f.1 are addresses in disguise.
        let numeric = last.bytes().all(|byte| byte.is_ascii_digit())
            || (last.len() > 2
                && last[..2].eq_ignore_ascii_case("0x")
                && last[2..].bytes().all(|b| b.is_ascii_hexdigit()));
        if numeric { Err(Malformed::Domain) } else { Ok(()) }
    }
}

impl Address {
    /// Parses `local@domain`, with or without quotes in the local part, without angle brackets: as an administrator or a
    /// lenient listener writes it.
    ///
    /// # Errors
    /// What of it is malformed.
    pub fn parse(text: &str) -> Result<Self, Malformed> {
        Self::parse_as(text, Syntax::Lenient, None)
    }

    /// The same by this syntax. An address without a domain is `home`'s, if there is one: Postfix's `myorigin`.
    ///
    /// # Errors
    /// What of it is malformed.
    pub fn parse_as(text: &str, syntax: Syntax, home: Option<&Domain>) -> Result<Self, Malformed> {
        let (local, rest) = Self::parse_local(text, syntax)?;
        let domain = match (rest.strip_prefix('@'), home) {
            (Some(domain), _) => Domain::parse(domain)?,
            (None, Some(home)) if rest.is_empty() => home.clone(),
            (None, _) if rest.is_empty() => return Err(Malformed::NoDomain),
            (None, _) => return Err(Malformed::Local),
        };
        if local.len() + 1 + domain.0.len() > PATH_LIMIT {
            return Err(Malformed::TooLong);
        }
        Ok(Self { local, domain })
    }

    /// The address made of these two parts; `local` is unquoted.
    ///
    /// # Errors
    /// [`Malformed::Local`] if no quoting could carry it (NUL, CR, LF, other controls, more than 256 octets).
    pub fn new(local: &str, domain: Domain) -> Result<Self, Malformed> {
        if local.len() > LOCAL_LIMIT || local.chars().any(char::is_control) {
            return Err(Malformed::Local);
        }
        Ok(Self { local: local.into(), domain })
    }

    /// Takes the local part off the front of `text`: unquoted, and what follows it (`@…`, or nothing).
    fn parse_local(text: &str, syntax: Syntax) -> Result<(Box<str>, &str), Malformed> {
        let (local, rest): (Box<str>, &str) = match text.strip_prefix('"') {
            Some(quoted) => {
                let mut local = String::new();
                let mut chars = quoted.char_indices();
                let end = loop {
                    match chars.next().ok_or(Malformed::Local)? {
                        (end, '"') => break end + 1,
                        (_, '\\') => match chars.next().ok_or(Malformed::Local)?.1 {
                            escaped @ ' '..='~' => local.push(escaped),
                            _ => return Err(Malformed::Local),
                        },
                        (_, character) if character.is_control() => return Err(Malformed::Local),
                        (_, character) => local.push(character),
                    }
                };
                (local.into_boxed_str(), &quoted[end..])
            }
            None => {
                let end = text.find('@').unwrap_or(text.len());
                let (local, rest) = text.split_at(end);
                let is_sound = match syntax {
                    Syntax::Strict => is_dot_string(local),
                    Syntax::Lenient => is_dotted(local),
                };
                if !is_sound {
                    return Err(Malformed::Local);
                }
                (local.into(), rest)
            }
        };
        Ok((local, rest))
    }

    /// The local part without quotes, case preserved.
    pub fn local(&self) -> &str {
        &self.local
    }

    /// The domain.
    pub fn domain(&self) -> &Domain {
        &self.domain
    }

    /// The same local part at another domain.
    pub fn at(&self, domain: Domain) -> Self {
        Self { local: self.local.clone(), domain }
    }

    /// The address in lower case, for comparisons without regard to case.
    pub fn key(&self) -> String {
        let mut key = String::with_capacity(self.local.len() + 1 + self.domain.0.len());
        if self.local.is_ascii() {
            key.push_str(&self.local);
            key.make_ascii_lowercase();
        } else {
            key.extend(self.local.chars().flat_map(char::to_lowercase));
        }
        key.push('@');
        key.push_str(&self.domain.0);
        key
    }

    /// True if the address can be said without SMTPUTF8.
    pub fn is_ascii(&self) -> bool {
        self.local.is_ascii()
    }
}

/// `Dot-string` of RFC 5321 section 4.1.2, with the UTF-8 of RFC 6531 section 3.3.
fn is_dot_string(local: &str) -> bool {
    is_dotted(local) && !local.starts_with('.') && !local.ends_with('.') && !local.contains("..")
}

/// The same with dots anywhere.
fn is_dotted(local: &str) -> bool {
    !local.is_empty()
        && local.chars().all(|c| {
            c.is_ascii_alphanumeric() || ".!#$%&'*+-/=?^_`{|}~".contains(c) || (!c.is_ascii() && !c.is_control())
        })
}

impl fmt::Display for Domain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Domain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if is_dot_string(&self.local) {
            f.write_str(&self.local)?;
        } else {
            f.write_char('"')?;
            for character in self.local.chars() {
                if matches!(character, '"' | '\\') {
                    f.write_char('\\')?;
                }
                f.write_char(character)?;
            }
            f.write_char('"')?;
        }
        write!(f, "@{}", self.domain)
    }
}

impl fmt::Debug for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn addresses_are_parsed_as_rfc_5321_writes_them() {
        for (text, expected) in [
            ("anna@contoso.com", Ok("anna@contoso.com")),
            ("Anna.Smith+tag@CONTOSO.com", Ok("Anna.Smith+tag@contoso.com")),
            ("\"a b\"@d.example", Ok("\"a b\"@d.example")),
            ("\"a\\\"b\"@d.example", Ok("\"a\\\"b\"@d.example")),
            ("\"a@b\"@d.example", Ok("\"a@b\"@d.example")),
            ("\"\"@d.example", Ok("\"\"@d.example")),
            ("\"abc\"@d.example", Ok("abc@d.example")), // C043: the same mailbox with and without quotes
            ("a@[192.0.2.1]", Ok("a@[192.0.2.1]")),
            ("a@[ipv6:::1]", Ok("a@[IPv6:::1]")),
            ("a@b_c.d", Ok("a@b_c.d")), // C047
            ("ä@münchen.example", Ok("ä@xn--mnchen-3ya.example")),
            ("u%out.d@in.d", Ok("u%out.d@in.d")),
            ("out.d!u@in.d", Ok("out.d!u@in.d")),
            ("a", Err(Malformed::NoDomain)),
            ("@b.c", Err(Malformed::Local)),
            (".a@d.e", Err(Malformed::Local)), // C045: unless leniently, below
            ("a.@d.e", Err(Malformed::Local)),
            ("a..b@d.e", Err(Malformed::Local)),
            (".@d.e", Err(Malformed::Local)),
            ("a b@d.e", Err(Malformed::Local)),
            ("a,b@d.e", Err(Malformed::Local)),
            ("\"a@d.e", Err(Malformed::Local)),
            ("\"a\"b@d.e", Err(Malformed::Local)),
            ("\"a\u{0}b\"@d.e", Err(Malformed::Local)),
            ("\"a\r\nb\"@d.e", Err(Malformed::Local)),
            ("a@", Err(Malformed::Domain)), // C046
            ("a@-b.c", Err(Malformed::Domain)),
            ("a@b-.c", Err(Malformed::Domain)),
            ("a@b..c", Err(Malformed::Domain)),
            ("a@.b", Err(Malformed::Domain)),
            ("a@b.c.", Err(Malformed::Domain)),
            ("a@b@c.d", Err(Malformed::Domain)),
            ("a@b.c:2525", Err(Malformed::Domain)),
            ("a@192.0.2.1", Err(Malformed::Domain)), // C048
            ("a@2130706433", Err(Malformed::Domain)),
            ("a@0x7f.1", Err(Malformed::Domain)),
            ("a@[192.0.2.999]", Err(Malformed::Domain)),
            ("a@[IPv6:zz]", Err(Malformed::Domain)),
            ("a@[x]", Err(Malformed::Domain)),
            ("u@in\u{3002}d.example", Err(Malformed::Domain)),
            ("u\u{ff20}out.d", Err(Malformed::NoDomain)),
        ] {
            let parsed = Address::parse_as(text, Syntax::Strict, None).map(|address| address.to_string());
            assert_eq!(parsed, expected.map(str::to_owned), "{text}");
        }
    }

    /// What only a lenient listener takes. It is written as the standard wants it, and names the same mailbox.
    #[test]
    fn dots_may_stand_anywhere_where_nobody_is_strict() {
        let home = Domain::parse("mail.contoso.com").unwrap();
        for (text, expected) in [
            ("a..b@d.e", Ok("\"a..b\"@d.e")),
            ("a.@d.e", Ok("\"a.\"@d.e")),
            (".a@d.e", Ok("\".a\"@d.e")),
            ("a.b@d.e", Ok("a.b@d.e")),
            ("root", Ok("root@mail.contoso.com")),
            ("\"a b\"", Ok("\"a b\"@mail.contoso.com")),
            ("", Err(Malformed::Local)),
            ("a b@d.e", Err(Malformed::Local)),
            ("a,b@d.e", Err(Malformed::Local)),
            ("\"a\"b@d.e", Err(Malformed::Local)),
            ("a@", Err(Malformed::Domain)),
            ("a@b..c", Err(Malformed::Domain)),
        ] {
            let parsed = Address::parse_as(text, Syntax::Lenient, Some(&home)).map(|address| address.to_string());
            assert_eq!(parsed, expected.map(str::to_owned), "{text}");
        }
        let quoted = Address::parse_as("\"a..b\"@d.e", Syntax::Strict, None);
        assert_eq!(Address::parse("a..b@d.e"), quoted);
        assert_eq!(Address::parse("root"), Err(Malformed::NoDomain));
    }

    /// RFC 5321 section 4.5.3.1: the path ends what the local part does not.
    #[test]
    fn lengths_end_where_the_standard_ends_them() {
        let label = "a".repeat(60);
        let domain = |len: usize| {
            let mut name = format!("{label}.{label}.{label}.{label}.");
            name.push_str(&"b".repeat(len - name.len()));
            name
        };
        for (text, sound) in [
            (format!("{}@d.e", "x".repeat(64)), true),
            (format!("{}@d.e", "x".repeat(65)), true),
            (format!("{}@d.e", "x".repeat(250)), true),
            (format!("{}@d.e", "x".repeat(251)), false), // the path would have 257 octets
            (format!("\"{}\"@d.e", " ".repeat(250)), true), // quotes are how it is written
            (format!("{}@d.e", "\u{fc}".repeat(125)), true),
            (format!("{}@d.e", "\u{fc}".repeat(126)), false),
            (format!("x@{}", domain(252)), true),
            (format!("x@{}", domain(253)), false), // the path would have 257 octets
            (format!("x@{}.e", "a".repeat(63)), true),
            (format!("x@{}.e", "a".repeat(64)), false),
        ] {
            assert_eq!(Address::parse(&text).is_ok(), sound, "{} octets: {text}", text.len());
        }
        let (d, long) = (Domain::parse("d.e").unwrap(), "x".repeat(256));
        assert!(Address::new(&long, d.clone()).is_ok() && Address::new(&format!("{long}x"), d).is_err());
        assert!(Domain::parse(&domain(255)).is_ok());
        assert!(Domain::parse(&format!("{}b", domain(255))).is_err());
    }

    #[test]
    fn a_domain_is_within_itself_and_those_above_it() {
        let domain = |text: &str| Domain::parse(text).unwrap();
        assert!(domain("contoso.com").is_within(&domain("Contoso.COM")));
        assert!(domain("a.b.contoso.com").is_within(&domain("contoso.com")));
        assert!(!domain("notcontoso.com").is_within(&domain("contoso.com")));
        assert!(!domain("com").is_within(&domain("contoso.com")));
    }

    proptest! {
        #[test]
        fn whatever_parses_is_written_so_that_it_parses_to_the_same(text in "\\PC{0,80}") {
            if let Ok(address) = Address::parse(&text) {
                prop_assert_eq!(Address::parse(&address.to_string()), Ok(address));
            }
        }

        #[test]
        fn any_printable_local_part_survives_its_quoting(local in "[ -~]{0,244}") {
            let address = Address::new(&local, Domain::parse("d.example").unwrap()).unwrap();
            prop_assert_eq!(Address::parse(&address.to_string()), Ok(address));
        }
    }
}
