//! MAIL and RCPT as smtp-proto reads them, against our own reading.
//!
//! Two readers of one line that take it for different people are how mail goes astray. So for every line that both take:
//! sender or recipient and every parameter that both know are the same. Where we differ on purpose, [`DIFFERENCES`]
//! says where, and why.

use causeway::message::{Address, BodyType, Notify, Ret};
use causeway::smtp::command::{self, Mail, Verb};
use smtp_proto::{
    MAIL_BODY_7BIT, MAIL_BODY_8BITMIME, MAIL_REQUIRETLS, MAIL_RET_FULL, MAIL_RET_HDRS, MAIL_SMTPUTF8, MailFrom,
    RCPT_NOTIFY_DELAY, RCPT_NOTIFY_FAILURE, RCPT_NOTIFY_NEVER, RCPT_NOTIFY_SUCCESS, RcptTo, Request,
};

use super::command::{FULL, hostname};

/// A deliberate difference.
struct Difference {
    /// Why ours is as it is.
    reason: &'static str,
    /// Does it concern this line?
    concerns: fn(&Line<'_>) -> bool,
}

/// A line, and our refusal of it if we refuse it.
struct Line<'l> {
    text: &'l str,
    /// In upper case.
    upper: String,
    refusal: String,
    /// What we read otherwise.
    unlike: String,
}

/// Lines that both take and read differently.
const READ_DIFFERENTLY: &[Difference] = &[
    Difference {
        reason: "RFC 5321 section 4.1.2: in a quoted local part a backslash stands for what follows it, and quotes are not \
                 part of it. They keep or lose some of these, and take quotes in the middle of an atom",
        concerns: |line| line.text.contains(['"', '\\']),
    },
    Difference {
        reason: "an ENVID or ORCPT that cannot be used is left out, and decides nothing: they cut broken xtext short, and \
                 take what is too long or not ASCII",
        concerns: |line| {
            line.unlike.starts_with("ENVID: ours is None") || line.unlike.starts_with("ORCPT: ours is None")
        },
    },
];

/// Lines that they take and we refuse.
const STRICTER: &[Difference] = &[
    Difference {
        reason: "CR, LF and NUL on their own end nothing and belong nowhere: the session closes (S-001), and no line \
                 with them comes to the grammar",
        concerns: |line| line.text.contains(['\r', '\n', '\0']),
    },
    Difference {
        reason: "addresses are parsed, not only looked through for an @: a domain is a domain, a path has 256 octets, \
                 and the quotes of a local part stand around the whole of it",
        concerns: |line| line.refusal.starts_with("501 5.1."),
    },
    Difference {
        reason: "parameters of extensions that we do not offer (BY, HOLDFOR, RRVS, CONNEG, …) are 555, and so is \
                 BODY=BINARYMIME: RFC 5321 section 4.1.1.11",
        concerns: |line| line.refusal.starts_with("555 "),
    },
    Difference {
        reason: "a parameter given twice, with a value it cannot have or without one is 501: they take the last",
        concerns: |line| {
            line.refusal.starts_with("501 5.5.4 parameter ") || line.refusal.contains("malformed parameter")
        },
    },
    Difference {
        reason: "UTF-8 in an address needs SMTPUTF8: RFC 6531 section 3.4",
        concerns: |line| line.refusal.starts_with("553 5.6.7"),
    },
    Difference {
        reason: "blanks may stand before the path, and none within `FROM:` or `TO:` or around an address: they skip \
                 blanks anywhere, and what lies between an address and the next one",
        concerns: |line| line.refusal.starts_with("501 5.5.4 expected "),
    },
    Difference {
        reason: "a verb ends at a blank: they skip blanks before it, and take every other whitespace for one",
        concerns: |line| line.refusal == "no MAIL or RCPT",
    },
];

/// Lines that we take and they refuse.
const MORE_LENIENT: &[Difference] = &[
    Difference {
        reason: "XOORG is what Exchange servers say among themselves",
        concerns: |line| line.upper.contains("XOORG="),
    },
    Difference {
        reason: "any address type may stand in ORCPT (RFC 3461 section 4.2), utf-8 with a grammar of its own (RFC 6533), \
                 and RFC822 in small letters too",
        concerns: |line| line.upper.contains("ORCPT="),
    },
    Difference {
        reason: "an ENVID is 100 characters long as it is written (RFC 3461 section 4.4)",
        concerns: |line| line.upper.contains("ENVID="),
    },
    Difference {
        reason: "AUTH is read and ignored, however long within RFC 4954 section 3",
        concerns: |line| line.upper.contains("AUTH="),
    },
    Difference {
        reason: "what no number of ours can hold is larger than any limit: SIZE of twenty digits is 552, not 501",
        concerns: |line| line.upper.contains("SIZE="),
    },
    Difference {
        reason: "source routes and quoted local parts are read as RFC 5321 section 4.1.2 writes them, `<@a:b@c>` with \
                 literals in the route and `\"\"@d` among them",
        concerns: |line| line.text.contains("<@") || line.text.contains('"'),
    },
    Difference {
        reason: "an address literal, and whatever else RFC 5321 section 4.1.3 writes in brackets, is a domain too",
        concerns: |line| line.text.contains("@["),
    },
    Difference {
        reason: "blanks and tabs before a path, at the end of a line and between parameters do not count",
        concerns: |line| line.text.ends_with([' ', '\t']) || line.text.contains("  ") || line.text.contains('\t'),
    },
    Difference {
        reason: "a path may come without its brackets, as devices send it",
        concerns: |line| !line.text.contains('<'),
    },
    Difference {
        reason: "an address without a domain is of our host",
        concerns: |line| !line.text.split(['>', ' ']).any(|word| word.contains('@') && !word.contains("PT=")),
    },
    Difference {
        reason: "dots stand anywhere in a local part",
        concerns: |line| line.text.contains("..") || line.text.contains(".@") || line.text.contains("<."),
    },
    Difference {
        reason: "a local part may be as long as its path allows",
        concerns: |line| line.text.split('@').any(|part| part.len() > 64),
    },
    Difference { reason: "a word in NOTIFY may be given twice", concerns: |line| line.upper.contains("NOTIFY=") },
];

pub fn compare(data: &[u8]) {
    let wire = [data, b"\r\n"].concat();
    let theirs = Request::parse(&mut wire.iter());
    let (verb, arguments) = Verb::of(data);
    // Text that is no UTF-8 they would make into some; we refuse it.
    let Ok(text) = std::str::from_utf8(data) else { return };
    let utf8 = text.to_ascii_uppercase().contains(" SMTPUTF8");
    let mut line = Line { text, upper: text.to_ascii_uppercase(), refusal: String::new(), unlike: String::new() };
    // No reader of lines lets these through.
    let clean = !text.contains(['\r', '\n', '\0']);
    match verb {
        _ if !clean => line.refusal = "a bare control".to_owned(),
        Verb::Mail => match (Mail::parse(arguments, FULL, &hostname()), theirs) {
            (Ok(ours), Ok(Request::Mail { from })) => return agree(line, same_mail(&ours, &from)),
            (Ok(_), theirs) => return explain(&line, MORE_LENIENT, &format!("we take it, they say {theirs:?}")),
            (Err(reply), Ok(Request::Mail { .. })) => line.refusal = reply.to_string(),
            (Err(_), _) => return,
        },
        Verb::Rcpt => {
            // Whether UTF-8 may come is said at MAIL; they take it at any time.
            let ours = command::parse_recipient(arguments, FULL, utf8 || !text.is_ascii(), &hostname());
            match (ours, theirs) {
                (Ok(ours), Ok(Request::Rcpt { to })) => return agree(line, same_recipient(&ours, &to)),
                (Ok(_), theirs) => return explain(&line, MORE_LENIENT, &format!("we take it, they say {theirs:?}")),
                (Err(reply), Ok(Request::Rcpt { .. })) => line.refusal = reply.to_string(),
                (Err(_), _) => return,
            }
        }
        _ => match theirs {
            Ok(Request::Mail { .. } | Request::Rcpt { .. }) => line.refusal = "no MAIL or RCPT".to_owned(),
            _ => return,
        },
    }
    let what = format!("they take it, we say {}", line.refusal);
    explain(&line, STRICTER, &what);
}

fn agree(mut line: Line<'_>, same: Result<(), String>) {
    if let Err(what) = same {
        line.unlike = what;
        explain(&line, READ_DIFFERENTLY, &line.unlike);
    }
}

fn explain(line: &Line<'_>, differences: &[Difference], what: &str) {
    let known = differences.iter().any(|difference| (difference.concerns)(line));
    let reasons = || differences.iter().map(|difference| difference.reason).collect::<Vec<_>>();
    assert!(known, "{:?}: {what}; that is none of {:#?}", line.text, reasons());
}

fn same<T: PartialEq + std::fmt::Debug>(what: &str, ours: T, theirs: T) -> Result<(), String> {
    if ours == theirs { Ok(()) } else { Err(format!("{what}: ours is {ours:?}, theirs is {theirs:?}")) }
}

/// They leave an address as it is written, but for its quotes; domains have no case. One without a domain is of our host.
fn same_address(ours: &Address, theirs: &str) -> Result<(), String> {
    let Some((local, domain)) = theirs.rsplit_once('@') else {
        same("local part", ours.local(), theirs)?;
        return same("whose it is", ours.domain(), &hostname());
    };
    same("local part", ours.local(), local)?;
    let domain = causeway::message::Domain::parse(domain).map_err(|_| format!("their domain is {domain:?}"))?;
    same("domain", ours.domain(), &domain)
}

fn same_mail<T: AsRef<str>>(ours: &Mail, theirs: &MailFrom<T>) -> Result<(), String> {
    match &ours.sender {
        None => same("the null sender", "", theirs.address.as_ref())?,
        Some(sender) => same_address(sender, theirs.address.as_ref())?,
    }
    let has = |flag: u64| theirs.flags & flag != 0;
    same("SIZE", ours.size.unwrap_or(0), theirs.size as u64)?;
    same("BODY", ours.body == BodyType::EightBit, has(MAIL_BODY_8BITMIME))?;
    same("BODY=7BIT", false, has(MAIL_BODY_7BIT) && has(MAIL_BODY_8BITMIME))?;
    same("SMTPUTF8", ours.smtputf8, has(MAIL_SMTPUTF8))?;
    same("REQUIRETLS", ours.requiretls, has(MAIL_REQUIRETLS))?;
    same("RET=FULL", ours.ret == Some(Ret::Full), has(MAIL_RET_FULL))?;
    same("RET=HDRS", ours.ret == Some(Ret::Headers), has(MAIL_RET_HDRS))?;
    same("ENVID", ours.envid.as_deref(), theirs.env_id.as_ref().map(AsRef::as_ref))
}

fn same_recipient<T: AsRef<str>>(ours: &causeway::message::Recipient, theirs: &RcptTo<T>) -> Result<(), String> {
    match theirs.address.as_ref() {
        // `<postmaster>` without a domain.
        "" => {
            same("postmaster", true, ours.address.local().eq_ignore_ascii_case("postmaster"))?;
            same("whose postmaster", ours.address.domain(), &hostname())?;
        }
        theirs => same_address(&ours.address, theirs)?,
    }
    let has = |flag: u64| theirs.flags & flag != 0;
    same("NOTIFY=NEVER", ours.notify == Notify::Never, has(RCPT_NOTIFY_NEVER))?;
    let words = match ours.notify {
        Notify::On { success, failure, delay } => (success, failure, delay),
        _ => (false, false, false),
    };
    same("NOTIFY", words, (has(RCPT_NOTIFY_SUCCESS), has(RCPT_NOTIFY_FAILURE), has(RCPT_NOTIFY_DELAY)))?;
    let orcpt = ours.orcpt.as_ref().map(|orcpt| &*orcpt.address);
    same("ORCPT", orcpt, theirs.orcpt.as_ref().map(AsRef::as_ref))
}
