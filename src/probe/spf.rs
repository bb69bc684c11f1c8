//! SPF records, read for what is wrong with them. Pure.
//!
//! The classics are told by name: `ip4: 192.0.2.1` with a blank (it stands in printed examples, and people paste it),
//! `ipv4:`, two records, no `all`. A record that does not parse is worth nothing: receivers answer permerror, and many
//! then treat the mail as forged.
//!
//! Not here: whether the record names the hosts that really send, which only they know.
//!
//! Standard: RFC 7208.

use std::net::{Ipv4Addr, Ipv6Addr};

/// Look-ups that one record may cost. RFC 7208 section 4.6.4.
pub const LOOKUPS: usize = 10;

/// What the TXT records of a domain say about SPF.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Spf {
    /// The record; `None`: there is none, or nobody could say which one holds.
    pub record: Option<String>,
    /// What is wrong, with the cure.
    pub mistakes: Vec<String>,
    /// Look-ups that its own terms cost.
    pub lookups: usize,
    /// Other records that it takes in, each worth one of the look-ups: `include:` and `redirect=`.
    pub includes: Vec<String>,
}

/// Finds the SPF record among the TXT records of a domain, and reads it.
pub fn read(texts: &[String]) -> Spf {
    let mut spf = Spf { record: None, mistakes: Vec::new(), lookups: 0, includes: Vec::new() };
    let records: Vec<&String> = texts.iter().filter(|text| is_record(text)).collect();
    match records.as_slice() {
        [] => {
            let near = texts.iter().find(|text| {
                let text = text.trim_start().to_ascii_lowercase();
                text.starts_with("v=spf")
                    || text.starts_with("spf1")
                    || text.starts_with("v =spf")
                    || text.starts_with("\"v=spf")
            });
            if let Some(near) = near {
                spf.mistakes.push(format!("\"{}\" is no SPF record: one begins with \"v=spf1 \"", shown(near)));
            }
        }
        [record] => {
            spf.record = Some((*record).clone());
            terms(record, &mut spf);
        }
        several => {
            spf.mistakes.push(format!(
                "there are {} SPF records, so none holds (permerror); make one of them: {}",
                several.len(),
                several.iter().map(|record| format!("\"{}\"", shown(record))).collect::<Vec<_>>().join(" and ")
            ));
        }
    }
    spf
}

/// Section 4.5: the version ends at a blank or at the end of the record.
fn is_record(text: &str) -> bool {
    let version = text.split(' ').next().unwrap_or_default();
    version.eq_ignore_ascii_case("v=spf1")
}

fn terms(record: &str, spf: &mut Spf) {
    let words: Vec<&str> = record.split(' ').filter(|word| !word.is_empty()).skip(1).collect();
    let mut all = None;
    let mut redirect = false;
    let mut skip = false;
    for (number, word) in words.iter().enumerate() {
        if std::mem::take(&mut skip) {
            continue;
        }
        let (qualifier, term) = match word.as_bytes()[0] {
            b'+' | b'-' | b'~' | b'?' => word.split_at(1),
            _ => ("", *word),
        };
        let next = words.get(number + 1).copied();
        let at = term.find([':', '=', '/']).unwrap_or(term.len());
        let (name, rest) = term.split_at(at);
        let name = name.to_ascii_lowercase();
        let value = rest.get(1..).unwrap_or_default();
        let colon = rest.starts_with(':');
        match name.as_str() {
            "all" if rest.is_empty() => {
                all.get_or_insert(qualifier);
                if qualifier == "+" || qualifier.is_empty() {
                    spf.mistakes
                        .push(format!("\"{word}\" lets everybody send in this name; end with \"-all\" or \"~all\""));
                }
                if let Some(next) = next.filter(|next| !next.contains('=')) {
                    spf.mistakes.push(format!(
                        "what follows \"{word}\" is never looked at, from \"{}\" on; move it in front",
                        shown(next)
                    ));
                }
            }
            "all" => spf.mistakes.push(format!("\"{}\": \"all\" takes nothing behind it", shown(word))),
            "ip4" | "ip6" if colon && value.is_empty() => {
                skip = next.is_some_and(|next| is_network(&name, next));
                spf.mistakes.push(match next.filter(|_| skip) {
                    Some(next) => {
                        format!("\"{word} {next}\" has a blank in it, which ends the term; write \"{word}{next}\"")
                    }
                    None => format!("\"{word}\" names no address"),
                });
            }
            "ip4" | "ip6" if colon => {
                if !is_network(&name, value) {
                    spf.mistakes.push(format!(
                        "\"{}\": expected an {} address or network, such as \"{}\"",
                        shown(word),
                        if name == "ip4" { "IPv4" } else { "IPv6" },
                        if name == "ip4" { "ip4:192.0.2.0/24" } else { "ip6:2001:db8::/32" }
                    ));
                }
            }
            "ip4" | "ip6" => {
                spf.mistakes.push(format!("\"{}\": an address stands behind a colon: \"{name}:…\"", shown(word)));
            }
            "ipv4" | "ipv6" | "ip" => {
                let right = if name == "ipv6" || value.contains(':') { "ip6" } else { "ip4" };
                skip = value.is_empty() && next.is_some_and(|next| is_network(right, next));
                let value = if skip { next.unwrap_or_default() } else { value };
                spf.mistakes.push(format!("there is no \"{name}:\"; write \"{right}:{}\"", shown(value)));
            }
            "include" | "redirect" if (name == "include") == colon && !value.is_empty() => {
                redirect |= name == "redirect";
                spf.lookups += 1;
                // A macro stands for what only a message has.
                if !value.contains('%') {
                    spf.includes.push(value.trim_end_matches('.').to_owned());
                }
            }
            "include" | "redirect" => spf.mistakes.push(format!(
                "\"{}\": expected {}",
                shown(word),
                if name == "include" { "\"include:example.com\"" } else { "\"redirect=example.com\"" }
            )),
            "a" | "mx" if rest.is_empty() || rest.starts_with('/') || (colon && !value.is_empty()) => spf.lookups += 1,
            "exists" if colon && !value.is_empty() => spf.lookups += 1,
            "ptr" if rest.is_empty() || (colon && !value.is_empty()) => {
                spf.lookups += 1;
                spf.mistakes.push(format!("\"{}\" is slow and not to be used (RFC 7208 section 5.5)", shown(word)));
            }
            "exp" if rest.starts_with('=') => {}
            _ if rest.starts_with('=') && is_name(&name) => {} // an unknown modifier is passed over: section 6
            _ if is_network("ip4", term) || is_network("ip6", term) => {
                let right = if term.contains(':') { "ip6" } else { "ip4" };
                spf.mistakes.push(format!(
                    "\"{}\" is an address without its kind; write \"{right}:{}\"",
                    shown(word),
                    shown(term)
                ));
            }
            _ => spf.mistakes.push(format!("\"{}\" is no SPF term (permerror)", shown(word))),
        }
    }
    if all.is_none() && !redirect {
        spf.mistakes.push("it does not end with \"all\": whoever else sends is neither allowed nor refused; end with \"-all\" or \"~all\"".to_owned());
    }
    if spf.lookups > LOOKUPS {
        spf.mistakes.push(format!(
            "it costs {} DNS look-ups, and receivers stop at {LOOKUPS} (permerror); name networks by ip4: and ip6: instead",
            spf.lookups
        ));
    }
}

/// Section 12: a modifier's name.
fn is_name(name: &str) -> bool {
    name.starts_with(|first: char| first.is_ascii_alphabetic())
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'))
}

/// An address, or a network with its length.
fn is_network(kind: &str, text: &str) -> bool {
    let (address, length) = match text.split_once('/') {
        Some((address, length)) => (address, Some(length)),
        None => (text, None),
    };
    let longest = if kind == "ip4" { 32 } else { 128 };
    let right = match kind {
        "ip4" => address.parse::<Ipv4Addr>().is_ok(),
        _ => address.parse::<Ipv6Addr>().is_ok(),
    };
    right && length.is_none_or(|length| length.parse::<u8>().is_ok_and(|length| length <= longest))
}

/// A stranger's text, short and printable.
pub(super) fn shown(text: &str) -> String {
    const MOST: usize = 120;
    let mut shown: String = text.chars().take(MOST).map(|sign| if sign.is_control() { '?' } else { sign }).collect();
    if text.chars().nth(MOST).is_some() {
        shown.push('…');
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_wrong_is_named() {
        for (texts, expected) in [
            (&["v=spf1 ip4:192.0.2.1 include:spf.protection.outlook.com -all"][..], &[][..]),
            (&["V=SPF1 a mx ip6:2001:db8::/32 a:mail.contoso.com/24 ~ALL", "google-site-verification=x"], &[]),
            (&["v=spf1 redirect=_spf.contoso.com"], &[]),
            (&["v=spf1 exists:%{i}._spf.contoso.com exp=why.contoso.com later=x -all"], &[]),
            (&["v=spf1 -all"], &[]),
            (&["another text"], &[]),
            (
                &["v=spf1 ip4: 131.107.21.231 include:spf.protection.outlook.com -all"],
                &["\"ip4: 131.107.21.231\" has a blank in it, which ends the term; write \"ip4:131.107.21.231\""],
            ),
            (&["v=spf1 ipv4:131.107.21.231 -all"], &["there is no \"ipv4:\"; write \"ip4:131.107.21.231\""]),
            (&["v=spf1 ipv4: 131.107.21.231 -all"], &["there is no \"ipv4:\"; write \"ip4:131.107.21.231\""]),
            (&["v=spf1 131.107.21.231 -all"], &["is an address without its kind; write \"ip4:131.107.21.231\""]),
            (&["v=spf1 ip4:131.107.21 -all"], &["\"ip4:131.107.21\": expected an IPv4 address or network"]),
            (&["v=spf1 ip4:131.107.21.0/33 -all"], &["expected an IPv4 address or network"]),
            (&["v=spf1 ip6:131.107.21.1 -all"], &["expected an IPv6 address or network"]),
            (&["v=spf1 ip4 -all"], &["an address stands behind a colon"]),
            (&["v=spf1 include: -all"], &["expected \"include:example.com\""]),
            (&["v=spf1 inculde:contoso.com -all"], &["\"inculde:contoso.com\" is no SPF term"]),
            (&["v=spf1 ip4:192.0.2.1"], &["it does not end with \"all\""]),
            (&["v=spf1 +all"], &["lets everybody send"]),
            (&["v=spf1 -all ip4:192.0.2.1"], &["what follows \"-all\" is never looked at"]),
            (&["v=spf1 ptr -all"], &["is slow and not to be used"]),
            (&["v=spf1 -all", "v=spf1 ip4:192.0.2.1 -all"], &["there are 2 SPF records"]),
            (&["spf1 ip4:192.0.2.1 -all"], &["is no SPF record: one begins with \"v=spf1 \""]),
            (&["v=spf1;ip4:192.0.2.1;-all"], &["is no SPF record"]),
            (
                &[
                    "v=spf1 a a:b.example a:c.example a:d.example mx mx:e.example include:f.example exists:g.example a:h.example a:i.example a:j.example -all",
                ],
                &["it costs 11 DNS look-ups"],
            ),
        ] {
            let texts: Vec<String> = texts.iter().map(|text| (*text).to_owned()).collect();
            let spf = read(&texts);
            assert_eq!(spf.mistakes.len(), expected.len(), "{texts:?}: {:?}", spf.mistakes);
            for (mistake, expected) in spf.mistakes.iter().zip(expected) {
                assert!(mistake.contains(expected), "{texts:?}: {mistake}");
            }
        }
    }

    #[test]
    fn no_record_makes_the_reader_stumble() {
        let words =
            ["v=spf1", "ip4:", "/", ":", "=", "+", "-", "a/", "mx/99", "ip6:::1", "é", "\u{0}", "include:%{d}", "all:"];
        for one in words {
            for two in words {
                let _ = read(&[format!("v=spf1 {one} {two}"), format!("{one}{two}")]);
            }
        }
    }
}
