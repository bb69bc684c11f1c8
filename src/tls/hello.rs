//! A name (SNI) in a ClientHello that is not one host name is ignored, as Postfix ignores it.
//!
//! rustls ends the handshake at such a name and offers no way around that. The relay has one certificate for all
//! names, so it does not need the name: [`hide_bad_name`] gives the extension a number that means nothing, before
//! rustls reads the message. Both sides must hash the same octets, so the hash functions of the accepting side
//! ([`provider`]) put the number back in what they hash. The edit keeps every length and can be undone without
//! knowing more than the message; a client that sends the number on its own account spoils only its own handshake.
//!
//! Not yet: the second ClientHello, after a HelloRetryRequest. rustls reads that itself, and ends the handshake.
//!
//! Standards: RFC 6066 section 3 (SNI), RFC 8446 sections 4.1.2 (ClientHello), 4.4.1 (transcript hash), 5.1 (records).

use std::borrow::Cow;
use std::ops::Range;
use std::sync::{Arc, LazyLock};

use rustls::crypto::hash::{Context, Hash, HashAlgorithm, Output};
use rustls::crypto::{CipherSuiteCommon, CryptoProvider};
use rustls::pki_types::ServerName;
use rustls::{SupportedCipherSuite, Tls12CipherSuite, Tls13CipherSuite};

/// The number of the extension with the name.
const SERVER_NAME: [u8; 2] = [0, 0];

/// The number it gets instead: for private use (RFC 8447 section 7), and nobody is known to use it.
const HIDDEN: [u8; 2] = [0xff, 0x53];

/// The length of a record's header, in octets.
const RECORD_HEADER: usize = 5;

/// The longest record, in octets, without its header. RFC 5246 section 6.2.3.
const RECORD_LIMIT: usize = (1 << 14) + 2048;

/// The longest ClientHello, in octets: what rustls takes.
const HELLO_LIMIT: usize = 0xffff;

/// The most records of a ClientHello in which a bad name is looked for: honest clients need one or two, and each
/// further one has all of them read again.
const RECORDS: usize = 8;

const HANDSHAKE: u8 = 22;
const CLIENT_HELLO: u8 = 1;

/// How much of a ClientHello has come.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Progress {
    /// With so many octets more there will be one more header, or one more record.
    Needs(usize),
    /// It is whole, or it is none, or it is not looked into: rustls is to judge it.
    Ready,
}

/// How many octets are missing until the header of the record that `octets` begin with is there, or until the record
/// is; 0: it is there, or it is no record.
pub(super) fn missing(octets: &[u8]) -> usize {
    match *octets {
        [HANDSHAKE, _, _, high, low, ref payload @ ..] => {
            let length = usize::from(u16::from_be_bytes([high, low]));
            if length > RECORD_LIMIT { 0 } else { length.saturating_sub(payload.len()) }
        }
        [HANDSHAKE, ..] | [] => RECORD_HEADER - octets.len(),
        // It is not TLS, or an alert: what has come suffices to say so.
        _ => RECORD_HEADER.saturating_sub(octets.len()),
    }
}

/// Looks at the records that have come so far.
pub(super) fn progress(records: &[u8]) -> Progress {
    let mut at = 0;
    let mut message = 0;
    let mut wanted = None;
    for _ in 0..RECORDS {
        let rest = &records[at..];
        match missing(rest) {
            0 if rest[0] != HANDSHAKE => return Progress::Ready,
            0 => {}
            needed => return Progress::Needs(needed),
        }
        let length = usize::from(u16::from_be_bytes([rest[3], rest[4]]));
        // The header is missing no more; the record may be.
        if length == 0 || length > RECORD_LIMIT {
            return Progress::Ready;
        }
        if message == 0 {
            // A ClientHello whose own header is in pieces is not looked into.
            let &[_, _, _, _, _, CLIENT_HELLO, a, b, c, ..] = rest else { return Progress::Ready };
            wanted = Some(4 + u32::from_be_bytes([0, a, b, c]) as usize).filter(|&wanted| wanted <= HELLO_LIMIT);
        }
        message += length;
        at += RECORD_HEADER + length;
        if wanted.is_none_or(|wanted| message >= wanted) {
            return Progress::Ready;
        }
    }
    Progress::Ready
}

/// Hides the name in these records if it is not one host name. True: it is hidden now.
pub(super) fn hide_bad_name(records: &mut [u8]) -> bool {
    // Where each octet of the message stands.
    let mut places = Vec::with_capacity(records.len());
    let mut at = 0;
    while let Some(&[HANDSHAKE, _, _, high, low]) = records.get(at..at + RECORD_HEADER) {
        let start = at + RECORD_HEADER;
        at = start + usize::from(u16::from_be_bytes([high, low]));
        if at > records.len() {
            return false;
        }
        places.extend(start..at);
    }
    let message: Vec<u8> = places.iter().map(|&place| records[place]).collect();
    let Some((number, content)) = extension(&message, SERVER_NAME) else { return false };
    if is_one_host_name(&message[content]) {
        return false;
    }
    for (offset, octet) in HIDDEN.into_iter().enumerate() {
        records[places[number + offset]] = octet;
    }
    true
}

/// Where the number of this extension stands in a ClientHello, and its content. A message that was cut off behind it,
/// as it is for a PSK binder, is read as far as it goes.
fn extension(hello: &[u8], wanted: [u8; 2]) -> Option<(usize, Range<usize>)> {
    let long = |at: usize| Some(usize::from(u16::from_be_bytes([*hello.get(at)?, *hello.get(at + 1)?])));
    if hello.first() != Some(&CLIENT_HELLO) {
        return None;
    }
    // Type, length, version and random stand in front of what has a length of its own.
    let mut at = 4 + 2 + 32;
    at += 1 + usize::from(*hello.get(at)?); // the session
    at += 2 + long(at)?; // cipher suites
    at += 1 + usize::from(*hello.get(at)?); // compression
    at += 2; // the length of all extensions
    loop {
        let number = [*hello.get(at)?, *hello.get(at + 1)?];
        let content = at + 4..at + 4 + long(at + 2)?;
        if number == wanted {
            return (content.end <= hello.len()).then_some((at, content));
        }
        at = content.end;
    }
}

/// Is this a list of one name, and does rustls take it? (Addresses it ignores itself.)
fn is_one_host_name(content: &[u8]) -> bool {
    let [list_high, list_low, 0, high, low, name @ ..] = content else { return false };
    let (list, length) = (u16::from_be_bytes([*list_high, *list_low]), u16::from_be_bytes([*high, *low]));
    usize::from(length) == name.len() && usize::from(list) == name.len() + 3 && ServerName::try_from(name).is_ok()
}

/// A ClientHello as the client sent it. Whatever else is hashed is left as it is.
pub(super) fn restored(data: &[u8]) -> Cow<'_, [u8]> {
    match extension(data, HIDDEN) {
        Some((at, _)) => {
            let mut data = data.to_vec();
            data[at..at + 2].copy_from_slice(&SERVER_NAME);
            Cow::Owned(data)
        }
        None => Cow::Borrowed(data),
    }
}

/// The provider of cryptography for the accepting side.
pub(super) fn provider() -> &'static Arc<CryptoProvider> {
    static PROVIDER: LazyLock<Arc<CryptoProvider>> = LazyLock::new(|| {
        let provider = super::handshake::provider();
        let cipher_suites = provider.cipher_suites.iter().map(restoring).collect();
        Arc::new(CryptoProvider { cipher_suites, ..CryptoProvider::clone(provider) })
    });
    &PROVIDER
}

/// The suite with a hash that restores. rustls wants suites that live for ever; there is one set of them in a process.
fn restoring(suite: &SupportedCipherSuite) -> SupportedCipherSuite {
    let common = |common: &CipherSuiteCommon| CipherSuiteCommon {
        suite: common.suite,
        hash_provider: Box::leak(Box::new(Restoring(common.hash_provider))),
        confidentiality_limit: common.confidentiality_limit,
    };
    match *suite {
        SupportedCipherSuite::Tls13(suite) => SupportedCipherSuite::Tls13(Box::leak(Box::new(Tls13CipherSuite {
            common: common(&suite.common),
            ..*suite
        }))),
        SupportedCipherSuite::Tls12(suite) => SupportedCipherSuite::Tls12(Box::leak(Box::new(Tls12CipherSuite {
            common: common(&suite.common),
            ..*suite
        }))),
    }
}

/// A hash function that hashes a ClientHello as it was sent: rustls gives it each message by itself.
struct Restoring(&'static dyn Hash);

struct RestoringContext(Box<dyn Context>);

impl Hash for Restoring {
    fn start(&self) -> Box<dyn Context> {
        Box::new(RestoringContext(self.0.start()))
    }

    fn hash(&self, data: &[u8]) -> Output {
        self.0.hash(data)
    }

    fn output_len(&self) -> usize {
        self.0.output_len()
    }

    fn algorithm(&self) -> HashAlgorithm {
        self.0.algorithm()
    }

    fn fips(&self) -> bool {
        self.0.fips()
    }
}

impl Context for RestoringContext {
    fn fork_finish(&self) -> Output {
        self.0.fork_finish()
    }

    fn fork(&self) -> Box<dyn Context> {
        Box::new(Self(self.0.fork()))
    }

    fn finish(self: Box<Self>) -> Output {
        self.0.finish()
    }

    fn update(&mut self, data: &[u8]) {
        self.0.update(&restored(data));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sized(bytes: &[u8]) -> Vec<u8> {
        [&u16::try_from(bytes.len()).unwrap().to_be_bytes(), bytes].concat()
    }

    /// A ClientHello with this SNI extension (as it stands, content and all) between two others.
    fn message(server_name: Option<&[u8]>) -> Vec<u8> {
        let other = [&[0x00, 0x17][..], &sized(b"")].concat();
        let name = server_name.map(|content| [&SERVER_NAME[..], &sized(content)].concat()).unwrap_or_default();
        let last = [&[0xff, 0x01][..], &sized(&[0])].concat();
        let extensions = sized(&[other, name, last].concat());
        let body = [&[3, 3][..], &[7; 32], &[2, 1, 2], &sized(&[0xc0, 0x2b]), &[1, 0], &extensions].concat();
        [&[CLIENT_HELLO, 0][..], &sized(&body)].concat()
    }

    fn records(message: &[u8], length: usize) -> Vec<u8> {
        message.chunks(length).flat_map(|piece| [&[HANDSHAKE, 3, 1][..], &sized(piece)].concat()).collect()
    }

    fn list(name: &[u8]) -> Vec<u8> {
        sized(&[&[0][..], &sized(name)].concat())
    }

    #[test]
    fn only_a_name_that_rustls_would_refuse_is_hidden() {
        let two = sized(&[&[0][..], &sized(b"a.example"), &[0], &sized(b"b.example")].concat());
        for (what, content, bad) in [
            ("none", None, false),
            ("a host name", Some(list(b"mail.contoso.com")), false),
            ("one label", Some(list(b"mail")), false),
            ("an underscore", Some(list(b"_mail.contoso.com")), false),
            ("an address, which rustls ignores itself", Some(list(b"192.0.2.1")), false),
            ("a hyphen in front", Some(list(b"-bad-.lab")), true),
            ("8-bit", Some(list(b"b\xfcro.example")), true),
            ("UTF-8", Some(list("büro.example".as_bytes())), true),
            ("a blank", Some(list(b"mail contoso")), true),
            ("an empty name", Some(list(b"")), true),
            ("an empty list", Some(sized(b"")), true),
            ("nothing at all", Some(Vec::new()), true),
            ("two names", Some(two), true),
            ("another kind of name", Some(sized(&[&[1][..], &sized(b"x")].concat())), true),
            ("an octet too many", Some([&list(b"mail.contoso.com")[..], b"x"].concat()), true),
        ] {
            let message = message(content.as_deref());
            for length in [message.len(), 60, 40] {
                let sent = records(&message, length);
                assert_eq!(progress(&sent), Progress::Ready, "{what}");
                let mut edited = sent.clone();
                assert_eq!(hide_bad_name(&mut edited), bad, "{what} in records of {length}");
                assert_eq!(edited != sent, bad, "{what}");
                let joined: Vec<u8> =
                    edited.chunks(length + RECORD_HEADER).flat_map(|record| &record[5..]).copied().collect();
                assert_eq!(*restored(&joined), *message, "{what}");
                // Cut off behind the name, as for a PSK binder.
                assert_eq!(*restored(&joined[..joined.len() - 3]), message[..message.len() - 3], "{what}");
            }
        }
    }

    #[test]
    fn a_clienthello_is_waited_for_and_nothing_else() {
        let message = message(Some(&list(b"mail.contoso.com")));
        let whole = records(&message, 50);
        for end in 0..whole.len() {
            let Progress::Needs(needed) = progress(&whole[..end]) else { panic!("{end} octets are no ClientHello") };
            assert!(needed > 0 && end + needed <= whole.len(), "{end}: {needed} more");
        }
        for (what, octets) in [
            ("the whole", &whole[..]),
            ("plain text", b"EHLO client.example\r\n"),
            ("an alert", b"\x15\x03\x03\x00\x02\x02\x28"),
            ("SSL 2", b"\x80\x2e\x01\x00\x02"),
            ("another message", b"\x16\x03\x01\x00\x04\x02\x00\x00\x00"),
            ("an empty record", b"\x16\x03\x01\x00\x00"),
            ("a record that is too long", b"\x16\x03\x01\xff\xff"),
            ("a message that is too long", b"\x16\x03\x01\x00\x04\x01\xff\xff\xff"),
            ("a header in pieces", b"\x16\x03\x01\x00\x02\x01\x00"),
            ("more records than anybody needs", &records(&message, 5)),
        ] {
            assert_eq!(progress(octets), Progress::Ready, "{what}");
        }
    }

    #[test]
    fn what_is_no_clienthello_is_hashed_as_it_is() {
        for data in [&b""[..], b"\x01", b"\x01\0\0\x02xx", b"\x02\0\0\0", &[CLIENT_HELLO; 300], &[0xff; 300]] {
            assert!(matches!(restored(data), Cow::Borrowed(same) if same == data));
            assert!(!hide_bad_name(&mut data.to_vec()));
        }
    }

    proptest::proptest! {
        #[test]
        fn any_octets_are_looked_at(octets in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..300)) {
            let mut edited = octets.clone();
            hide_bad_name(&mut edited);
            let framed = records(&octets, 100);
            for bytes in [&octets, &framed] {
                if let Progress::Needs(needed) = progress(bytes) {
                    proptest::prop_assert!(needed > 0);
                }
            }
            let _ = restored(&octets);
        }
    }
}
