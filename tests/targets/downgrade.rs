//! 8-bit messages for hosts that take 7 bits: what is converted, and that nothing else is.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use causeway::message::Body;
use causeway::message::downgrade::{Downgrade, downgrade as downgrade_body};
use causeway::message::header;

use super::Cuts;

/// A message as anybody may send it.
pub fn downgrade(message: &[u8]) {
    let converted = convert([message]);
    for cuts in Cuts::of(message) {
        let pieces = convert(cuts.pieces(message));
        assert!(pieces == converted, "{cuts:?}: {} and {}", pieces.escape_ascii(), converted.escape_ascii());
    }
    let mut of_body = Vec::new();
    let body = Body::from_bytes(message.to_vec());
    downgrade_body([], &body, |piece| of_body.extend_from_slice(piece)).unwrap();
    assert!(of_body == converted);
    // Once is enough, and what is nowhere called 8-bit or binary stays as it is.
    assert!(convert([&converted[..]]) == converted, "twice: {}", converted.escape_ascii());
    let lower = message.to_ascii_lowercase();
    let has = |word: &str| lower.windows(word.len()).any(|found| found == word.as_bytes());
    // A comment may stand inside of the word.
    if !has("8bit") && !has("binary") && !message.contains(&b'(') && !message.contains(&b'\n') {
        assert!(converted == message);
    }
    // The header's own fields, but for one that says how the body is encoded.
    let fields = |message: &[u8]| -> Vec<Vec<u8>> {
        let fields = header::fields(message).filter(|field| !field.is("Content-Transfer-Encoding"));
        fields.map(|field| field.raw.to_vec()).collect()
    };
    assert_eq!(fields(message), fields(&converted));

    as_a_body(message);
}

/// The same octets as the body of a part: a reader gets them back.
fn as_a_body(octets: &[u8]) {
    let header = |kind: &str, encoding: &str| {
        format!("Content-Type: {kind}\r\nContent-Transfer-Encoding: {encoding}\r\n\r\n").into_bytes()
    };
    let quoted = convert([&header("text/plain", "8bit")[..], octets]);
    let quoted = quoted.strip_prefix(&header("text/plain", "quoted-printable")[..]).unwrap();
    assert!(quoted.is_ascii() && quoted.split(|&octet| octet == b'\n').all(|line| line.len() <= 77));
    assert!(unquoted(quoted) == octets, "{}", quoted.escape_ascii());
    let encoded = convert([&header("a/b", "binary")[..], octets]);
    let encoded = encoded.strip_prefix(&header("a/b", "base64")[..]).unwrap();
    assert!(encoded.split(|&octet| octet == b'\n').all(|line| line.len() <= 77));
    let text: Vec<u8> = encoded.iter().copied().filter(|octet| !matches!(octet, b'\r' | b'\n')).collect();
    assert!(BASE64.decode(text).unwrap() == octets);
}

fn convert<'a>(pieces: impl IntoIterator<Item = &'a [u8]>) -> Vec<u8> {
    let (mut out, mut downgrade) = (Vec::new(), Downgrade::default());
    pieces.into_iter().for_each(|piece| downgrade.feed(piece, &mut out));
    downgrade.finish(&mut out);
    out
}

/// RFC 2045 section 6.7, and nothing that it lets a reader forgive.
fn unquoted(text: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    let mut rest = text;
    while let Some((&first, after)) = rest.split_first() {
        rest = match (first, after) {
            (b'=', [b'\r', b'\n', after @ ..]) => after,
            (b'=', [high, low, after @ ..]) => {
                let hex = |octet: u8| char::from(octet).to_digit(16).expect("hexadecimal") as u8;
                out.push(hex(*high) << 4 | hex(*low));
                after
            }
            (octet, after) => {
                assert!(matches!(octet, b' '..=b'~' | b'\t' | b'\r' | b'\n'));
                out.push(octet);
                after
            }
        };
    }
    out
}
