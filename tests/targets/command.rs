//! The command grammar: verbs, paths, addresses, parameters, xtext, DSN fields, chunk sizes.
//!
//! A case is one line, as it stands between two CRLF.

use bytes::BytesMut;
use causeway::message::address::Syntax;
use causeway::message::{Address, BodyType, Domain, Notify, OriginalRecipient, Recipient, Ret};
use causeway::smtp::Reply;
use causeway::smtp::command::{self, Mail, Manners, Verb};

use super::is_printable;

/// As an internal listener with everything reads a line.
pub const FULL: Manners = Manners { extended: true, secure: true, auth: true, syntax: Syntax::Lenient, xoorg: true };

pub fn hostname() -> Domain {
    Domain::parse("mail.contoso.com").unwrap()
}

pub fn command(line: &[u8]) {
    let (verb, arguments) = Verb::of(line);
    let upper = line.to_ascii_uppercase();
    // But for the banner of SSH, which is no command, and always in capitals.
    assert!(Verb::of(&upper).0 == verb || upper.starts_with(b"SSH-"), "case matters");
    let padded = [line, b" \t "].concat();
    assert_eq!(Verb::of(&padded), (verb, arguments), "blanks at the end matter");
    let names = [Syntax::Lenient, Syntax::Strict].map(|syntax| command::hello_name(arguments, syntax).ok());
    for name in names.iter().flatten() {
        let clean = |octet: u8| octet.is_ascii_alphanumeric() || b"-._%[]:".contains(&octet);
        assert!((1..=3 * 255).contains(&name.len()) && name.bytes().all(clean), "{name}");
    }
    assert!(names[1].is_none() || names[0] == names[1], "a strict listener hears another name: {names:?}");
    if let Some((octets, last)) = command::parse_chunk(arguments) {
        let again = format!("{octets}{}", if last { " LAST" } else { "" });
        assert_eq!(command::parse_chunk(again.as_bytes()), Some((octets, last)));
    }
    // Whatever the verb says: the arguments are read as both.
    mail(arguments);
    recipient(arguments);
}

/// The error is one that may be said, and for good: the line will not be another one next time.
fn check_refusal(reply: &Reply) {
    assert!(reply.is_permanent() && reply.status.is_some_and(|status| status.0 == 5), "{reply:?}");
    assert!(reply.text.len() <= 1024 && is_printable(&reply.text), "{reply:?}");
    let mut wire = BytesMut::new();
    reply.write_to(&mut wire);
    assert!(wire.len() <= 512 * 4);
}

fn mail(arguments: &[u8]) {
    let full = Mail::parse(arguments, FULL, &hostname());
    for manners in [
        Manners { syntax: Syntax::Strict, ..FULL },
        Manners { extended: false, ..FULL },
        Manners { secure: false, xoorg: false, ..FULL },
        Manners { auth: false, ..FULL },
    ] {
        match (Mail::parse(arguments, manners, &hostname()), &full) {
            (Ok(mail), full) => assert_eq!(full.as_ref(), Ok(&mail), "what {manners:?} takes means something else"),
            (Err(reply), _) => check_refusal(&reply),
        }
    }
    let mail = match full {
        Ok(mail) => mail,
        Err(reply) => return check_refusal(&reply),
    };
    assert!(mail.smtputf8 || mail.sender.as_ref().is_none_or(Address::is_ascii));
    mail.sender.iter().for_each(check_address);
    assert!(mail.envid.as_ref().is_none_or(|envid| envid.len() <= 100 && is_printable(envid)));
    let said = say_mail(&mail);
    assert_eq!(Mail::parse(said.as_bytes(), FULL, &hostname()), Ok(mail), "{said}");
}

fn recipient(arguments: &[u8]) {
    for utf8 in [false, true] {
        let full = command::parse_recipient(arguments, FULL, utf8, &hostname());
        for manners in [Manners { syntax: Syntax::Strict, ..FULL }, Manners { extended: false, ..FULL }] {
            match (command::parse_recipient(arguments, manners, utf8, &hostname()), &full) {
                (Ok(recipient), full) => assert_eq!(full.as_ref(), Ok(&recipient), "{manners:?}"),
                (Err(reply), _) => check_refusal(&reply),
            }
        }
        let recipient = match full {
            Ok(recipient) => recipient,
            Err(reply) => {
                check_refusal(&reply);
                continue;
            }
        };
        assert!(utf8 || recipient.address.is_ascii());
        check_address(&recipient.address);
        if let Some(OriginalRecipient { kind, address }) = &recipient.orcpt {
            assert!(!kind.is_empty() && kind.bytes().all(|octet| octet.is_ascii_graphic() && octet != b';'));
            assert!(!address.chars().any(char::is_control), "{address:?}");
            assert!(kind.eq_ignore_ascii_case("utf-8") || address.is_ascii(), "{address:?}");
        }
        if let Notify::On { success, failure, delay } = recipient.notify {
            assert!(success || failure || delay, "NOTIFY that says nothing");
        }
        let said = say_recipient(&recipient);
        let again = command::parse_recipient(said.as_bytes(), FULL, utf8, &hostname());
        // As written it may be longer than ORCPT may be: `\x{…}` for every letter.
        if said.len() < 500 {
            assert_eq!(again.as_ref(), Ok(&recipient), "{said}");
        }
    }
}

/// What every checked address is, however it came.
pub fn check_address(address: &Address) {
    let (local, domain) = (address.local(), address.domain());
    assert!(local.len() <= 256 && !local.chars().any(char::is_control), "{address:?}");
    assert!(domain.as_str().len() <= 255 && domain.as_str().is_ascii());
    match domain.literal() {
        Some(ip) => assert_eq!(&Domain::from_ip(ip), domain),
        None => {
            assert!(!domain.as_str().contains(|c: char| c.is_ascii_uppercase() || "[]<>@\" ".contains(c)), "{domain}");
            assert!(domain.as_str().split('.').all(|label| (1..=63).contains(&label.len())), "{domain}");
        }
    }
    assert!(domain.is_within(domain));
    assert_eq!(Domain::parse(domain.as_str()).as_ref(), Ok(domain));
    let text = address.to_string();
    assert_eq!(Address::parse(&text).as_ref(), Ok(address), "{text}");
    assert!(!text.contains(['\r', '\n', '\0']));
    // The key is the same for all that are alike but for case, and names one mailbox only.
    assert_eq!(address.key(), Address::new(local, domain.clone()).unwrap().key());
    assert!(address.key().ends_with(&format!("@{domain}")));
}

/// An address by itself, as the configuration and the recipient files have it.
pub fn address(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    if let Ok(address) = Address::parse(text) {
        check_address(&address);
        let again = Address::new(address.local(), address.domain().clone());
        assert_eq!(again.as_ref(), Ok(&address));
        // Between angle brackets it is the same one, whole: no other place ends it.
        let recipient = command::parse_recipient(format!("TO:<{text}>").as_bytes(), FULL, true, &hostname());
        assert_eq!(recipient.map(|recipient| recipient.address), Ok(address));
    }
    if let Ok(domain) = Domain::parse(text) {
        assert_eq!(Domain::parse(domain.as_str()).as_ref(), Ok(&domain));
        assert_eq!(
            Domain::parse(&text.to_uppercase()).ok().filter(|_| text.is_ascii()),
            Some(domain).filter(|_| text.is_ascii())
        );
    }
}

fn xtext(text: &str) -> String {
    let escape = |octet: u8| match octet {
        b'!'..=b'~' if !matches!(octet, b'+' | b'=') => char::from(octet).to_string(),
        _ => format!("+{octet:02X}"),
    };
    text.bytes().map(escape).collect()
}

fn say_mail(mail: &Mail) -> String {
    let Mail { sender, size, body, smtputf8, ret, envid, requiretls, xoorg } = mail;
    let mut said = format!("FROM:<{}>", sender.as_ref().map(Address::to_string).unwrap_or_default());
    let mut say = |word: String| said.extend([" ", &word]);
    size.iter().for_each(|size| say(format!("SIZE={size}")));
    if *body == BodyType::EightBit {
        say("BODY=8BITMIME".to_owned());
    }
    if *smtputf8 {
        say("SMTPUTF8".to_owned());
    }
    ret.iter().for_each(|ret| say(format!("RET={}", if *ret == Ret::Full { "FULL" } else { "HDRS" })));
    envid.iter().for_each(|envid| say(format!("ENVID={}", xtext(envid))));
    if *requiretls {
        say("REQUIRETLS".to_owned());
    }
    xoorg.iter().for_each(|xoorg| say(format!("XOORG={xoorg}")));
    said
}

fn say_recipient(recipient: &Recipient) -> String {
    let Recipient { address, notify, orcpt } = recipient;
    let mut said = format!("TO:<{address}>");
    match *notify {
        Notify::Unsaid => {}
        Notify::Never => said.push_str(" NOTIFY=NEVER"),
        Notify::On { success, failure, delay } => {
            let words = [(success, "SUCCESS"), (failure, "FAILURE"), (delay, "DELAY")];
            let words: Vec<_> = words.into_iter().filter(|(on, _)| *on).map(|(_, word)| word).collect();
            said.extend([" NOTIFY=", &words.join(",")]);
        }
    }
    if let Some(OriginalRecipient { kind, address }) = orcpt {
        let letter = |letter: char| match letter {
            '!'..='~' if !"+=\\".contains(letter) => letter.to_string(),
            letter => format!("\\x{{{:02X}}}", u32::from(letter)),
        };
        let address =
            if kind.eq_ignore_ascii_case("utf-8") { address.chars().map(letter).collect() } else { xtext(address) };
        said.extend([" ORCPT=", kind, ";", &address]);
    }
    said
}
