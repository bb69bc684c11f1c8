//! The header firewall: organization headers found and cut, every other byte as it came.
//!
//! `X-MS-Exchange-Organization-*`, `X-MS-Exchange-Forest-*` and `X-MS-Exchange-CrossPremises-*` say within one
//! organization who wrote a message and what was found about it. Whoever can forge them is an insider; whoever gets
//! them reads what was not meant for him. What comes is kept as it came; the cut is made on what leaves, by
//! leaving out stretches of bytes: nothing is copied.
//!
//! A field is judged as the most lenient reader might read it: blanks, control characters and folds inside a name hide
//! nothing. When in doubt it is cut. The value of another field is never looked at, folded or not.
//!
//! Not here: whether a message came in as internal (`route::trust`), whether a header block is short enough to be
//! judged at all ([`Facts::is_judged`](super::header::Facts::is_judged)).
//!
//! Standards: RFC 5322 section 2.2.3 (folding), 4.5 (what old programs wrote).

use std::borrow::Cow;
use std::io;
use std::ops::Range;

use bytes::{Bytes, BytesMut};

use super::body::{BLOCK, Body};
use super::header::{self, Field, HEADER_LIMIT};

/// How their names begin.
pub const PREFIXES: [&str; 3] =
    ["X-MS-Exchange-Organization-", "X-MS-Exchange-Forest-", "X-MS-Exchange-CrossPremises-"];

/// What becomes of a message's organization headers. Decided once, when it comes in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum OrganizationHeaders {
    /// There are none: nobody has to look.
    None,
    /// There are some, and the message came in as internal: internal send connectors pass them on.
    Believed,
    /// There may be some, and nobody vouches for them: they are cut wherever the message goes. So it is with
    /// what was spooled before anybody looked.
    #[default]
    Cut,
}

impl OrganizationHeaders {
    /// Of a message that has some or not, and came in as internal or not.
    pub fn of(present: bool, internal: bool) -> Self {
        match (present, internal) {
            (false, _) => Self::None,
            (true, true) => Self::Believed,
            (true, false) => Self::Cut,
        }
    }

    /// Must they be cut on the way to a connector that is `internal`, or not?
    pub fn must_be_cut(self, internal: bool) -> bool {
        match self {
            Self::None => false,
            Self::Believed => !internal,
            Self::Cut => true,
        }
    }
}

/// Is it an organization header, to anybody who may read it?
pub fn is_organization(field: &Field<'_>) -> bool {
    PREFIXES.iter().any(|prefix| {
        // Of what comes, only what can stand in a name counts: no blank, fold, control or 8-bit octet hides one.
        let mut graphic = field.raw.iter().filter(|byte| byte.is_ascii_graphic());
        prefix.bytes().all(|wanted| graphic.next().is_some_and(|byte| byte.eq_ignore_ascii_case(&wanted)))
    })
}

/// The stretches of the header block in `head` that stay, in order and not empty, and where the block ends (in front of
/// the empty line). `None`: all of it stays.
fn kept(head: &[u8]) -> Option<(Vec<Range<usize>>, usize)> {
    let mut kept: Vec<Range<usize>> = Vec::new();
    let (mut at, mut found) = (0, false);
    for field in header::all_fields(head) {
        let end = at + field.raw.len();
        if is_organization(&field) {
            found = true;
        } else {
            match kept.last_mut() {
                Some(last) if last.end == at => last.end = end,
                _ => kept.push(at..end),
            }
        }
        at = end;
    }
    found.then_some((kept, at))
}

/// A message without organization headers. Borrowed if there are none.
pub fn cut(message: &[u8]) -> Cow<'_, [u8]> {
    let Some((mut kept, end)) = kept(message) else { return Cow::Borrowed(message) };
    kept.push(end..message.len());
    Cow::Owned(kept.into_iter().flat_map(|range| &message[range]).copied().collect())
}

/// A message's body without organization headers: what stays of its header, and what follows. For a body in memory all
/// is in the second, in slices of its pieces; of one on disk only the header block is read. Blocking where the bytes lie
/// on disk.
///
/// # Errors
/// What the file system says.
pub fn cut_body(body: Body) -> io::Result<(Vec<Bytes>, Body)> {
    let head = head(&body)?;
    let Some((kept, end)) = kept(&head) else { return Ok((Vec::new(), body)) };
    match body {
        Body::Memory(pieces) => {
            let total = pieces.iter().map(Bytes::len).sum();
            let rest = (end < total).then_some(end..total);
            Ok((Vec::new(), Body::Memory(slices(&pieces, kept.into_iter().chain(rest)).into())))
        }
        Body::File { file, path, offset, len } => {
            let rest = Body::File { file, path, offset: offset + end as u64, len: len - end as u64 };
            Ok((kept.into_iter().map(|range| head.slice(range)).collect(), rest))
        }
    }
}

/// These stretches of what `pieces` are together.
fn slices(pieces: &[Bytes], ranges: impl Iterator<Item = Range<usize>>) -> Vec<Bytes> {
    let mut slices = Vec::with_capacity(pieces.len() + 4);
    let (mut index, mut start) = (0, 0);
    for range in ranges {
        let mut at = range.start;
        while at < range.end
            && let Some(piece) = pieces.get(index)
        {
            let end = start + piece.len();
            if at < end {
                slices.push(piece.slice(at - start..range.end.min(end) - start));
                at = range.end.min(end);
            }
            if at >= end {
                (index, start) = (index + 1, end);
            }
        }
    }
    slices
}

/// The first bytes of a body, the whole header block among them if it is within the limit. Not copied where the
/// first piece has it.
fn head(body: &Body) -> io::Result<Bytes> {
    let first = body.read(0, HEADER_LIMIT.min(BLOCK))?;
    if first.len() as u64 == body.len() || header::block_len(&first).is_some() {
        return Ok(first);
    }
    let mut head = BytesMut::from(first);
    while head.len() < HEADER_LIMIT {
        let piece = body.read(head.len() as u64, (HEADER_LIMIT - head.len()).min(BLOCK))?;
        // The empty line may lie across two pieces.
        let from = head.len().saturating_sub(3);
        head.extend_from_slice(&piece);
        if piece.is_empty() || memchr::memmem::find(&head[from..], b"\n\r\n").is_some() {
            break;
        }
    }
    Ok(head.freeze())
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;
    use std::sync::Arc;

    use proptest::prelude::*;

    use super::*;

    /// One row: a message, and what is left of it.
    #[test]
    fn organization_headers_are_cut_whatever_they_look_like() {
        let subject = "Subject: x\r\n";
        for (what, forged) in [
            ("plain", "X-MS-Exchange-Organization-AuthAs: Internal\r\n"),
            ("the second family", "X-MS-Exchange-Forest-RulesExecuted: ex1\r\n"),
            ("the third family", "X-MS-Exchange-CrossPremises-SCL: -1\r\n"),
            ("lower case", "x-ms-exchange-organization-scl: -1\r\n"),
            ("mixed case", "x-MS-eXCHANGE-oRGANIZATION-SCL: -1\r\n"),
            ("no value", "X-MS-Exchange-Organization-:\r\n"),
            ("no blank behind the colon", "X-MS-Exchange-Organization-SCL:-1\r\n"),
            ("a blank before the colon", "X-MS-Exchange-Organization-SCL : -1\r\n"),
            ("a tab before the colon", "X-MS-Exchange-Organization-AuthAs\t: Internal\r\n"),
            ("no colon", "X-MS-Exchange-Organization-AuthAs Internal\r\n"),
            ("folded", "X-MS-Exchange-Organization-AuthAs: a\r\n\tb\r\n c\r\n"),
            ("folded behind the name", "X-MS-Exchange-Organization-AuthAs\r\n : Internal\r\n"),
            ("folded inside the name", "X-MS-Exchange-Organiz\r\n ation-AuthAs: Internal\r\n"),
            ("folded with an empty line of blanks", "X-MS-Exchange-Organization-AuthAs: a\r\n \t \r\n b\r\n"),
            ("a blank inside the name", "X-MS-Exchange- Organization-AuthAs: Internal\r\n"),
            ("a control character in front", "\u{b}X-MS-Exchange-Organization-AuthAs: Internal\r\n"),
            ("a byte order mark in front", "\u{feff}X-MS-Exchange-Organization-AuthAs: Internal\r\n"),
            ("a no-break space inside", "X-MS-Exchange-\u{a0}Organization-AuthAs: Internal\r\n"),
        ] {
            for (before, behind) in [
                (subject, ""),
                ("", subject),
                (subject, subject),
                ("", ""),
                // What is wrong with other lines hides nothing.
                ("no colon here\r\n", subject),
                (" a first line with a blank\r\n", subject),
                (": no name\r\n", ""),
            ] {
                for body in ["", "\r\n", "\r\nX-MS-Exchange-Organization-AuthAs: in the body\r\n"] {
                    let message = format!("{before}{forged}{behind}{forged}{forged}{body}");
                    let left = format!("{before}{behind}{body}");
                    let shown = || format!("{what}: {message:?}");
                    assert_eq!(String::from_utf8_lossy(&cut(message.as_bytes())), left, "{}", shown());
                    assert!(header::facts(message.as_bytes()).organization, "{}", shown());
                    assert!(!header::facts(left.as_bytes()).organization, "{}", shown());
                }
            }
        }
        // A blank in front makes it a field only on the first line; further down it is part of the field before.
        let first = " X-MS-Exchange-Organization-AuthAs: Internal\r\nTo: x\r\n";
        assert_eq!(cut(first.as_bytes()), &b"To: x\r\n"[..]);
        // The last line without its end.
        assert_eq!(cut(b"To: x\r\nX-MS-Exchange-Forest-A: b"), &b"To: x\r\n"[..]);
    }

    #[test]
    fn what_only_resembles_them_stays() {
        for message in [
            "X-MS-Exchange-Organization: x\r\n\r\n",
            "X-MS-Exchange-CrossTenant-Id: x\r\n\r\n",
            "X-MS-Exchange-Transport-CrossTenantHeadersStamped: x\r\n\r\n",
            "X-X-MS-Exchange-Organization-SCL: -1\r\n\r\n",
            "X-OriginatorOrg: contoso.com\r\n\r\n",
            "Subject: X-MS-Exchange-Organization-SCL: -1\r\n\r\n",
            // Folded names are not names.
            "Subject: x\r\n X-MS-Exchange-Organization-SCL: -1\r\n\tX-MS-Exchange-Forest-X: y\r\n\r\n",
            "\r\nX-MS-Exchange-Organization-AuthAs: in the body\r\n",
            "",
            "X",
            "\r\n",
        ] {
            assert!(
                matches!(cut(message.as_bytes()), Cow::Borrowed(same) if same == message.as_bytes()),
                "{message:?}"
            );
            assert!(!header::facts(message.as_bytes()).organization, "{message:?}");
        }
    }

    fn file(content: &[u8]) -> Body {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(b"before").unwrap();
        file.write_all(content).unwrap();
        file.write_all(b"behind").unwrap();
        Body::File { file: Arc::new(file), path: Arc::new("x".into()), offset: 6, len: content.len() as u64 }
    }

    fn read(lead: &[Bytes], body: &Body) -> Vec<u8> {
        let mut bytes = lead.concat();
        let before = bytes.len();
        while let block = body.read((bytes.len() - before) as u64, 1 << 16).unwrap()
            && !block.is_empty()
        {
            bytes.extend_from_slice(&block);
        }
        bytes
    }

    fn in_pieces(message: &[u8], size: usize) -> Body {
        Body::Memory(message.chunks(size).map(Bytes::copy_from_slice).collect())
    }

    /// In memory, in pieces of any size, and on disk: the same is cut, and nothing else is touched or copied.
    #[test]
    fn a_body_is_cut_wherever_it_lies() {
        let forged = "X-MS-Exchange-Organization-AuthAs: Internal\r\n\tfolded\r\n";
        let body = "line\r\n".repeat(30_000);
        let long = format!("X-Long: {}\r\n", "y".repeat(100_000));
        for message in [
            format!("{forged}A: b\r\n{forged}{forged}C: d\r\n\r\n{body}"),
            format!("A: b\r\n{long}{forged}\r\n{body}"),
            format!("A: b\r\n{forged}"),
            forged.to_owned(),
            format!("{forged}\r\n"),
            format!("A: b\r\n\r\n{body}"),
            body.clone(),
        ] {
            let left = cut(message.as_bytes());
            for size in [1 << 20, 8192, 1000, 77] {
                let (lead, rest) = cut_body(in_pieces(message.as_bytes(), size)).unwrap();
                assert!(lead.is_empty());
                assert!(read(&lead, &rest) == *left, "pieces of {size}: {:?}…", &message[..40]);
            }
            let (lead, rest) = cut_body(file(message.as_bytes())).unwrap();
            assert!(read(&lead, &rest) == *left, "on disk: {:?}…", &message[..40]);
            assert!(matches!(rest, Body::File { .. }), "a file stays a file");
            assert_eq!(lead.iter().map(Bytes::len).sum::<usize>() as u64 + rest.len(), left.len() as u64);
        }
        // One piece is shared, not copied.
        let piece = Bytes::from(format!("{forged}A: b\r\n\r\nbody"));
        let (_, rest) = cut_body(Body::from_bytes(piece.clone())).unwrap();
        let Body::Memory(pieces) = rest else { panic!("it was in memory") };
        assert!(pieces.iter().all(|slice| piece.as_ptr_range().contains(&slice.as_ptr())));
    }

    /// S-123: a header full of them, up to the limit.
    #[test]
    fn s123_a_mebibyte_of_them_takes_no_quadratic_time() {
        for forged in [
            "X-MS-Exchange-Organization-SCL: -1\r\n".to_owned(),
            "X-MS-Exchange-Forest-A:\r\nA: b\r\n".to_owned(),
            format!("X-MS-Exchange-Organization-A: {}\r\n", " b\r\n".repeat(250_000)),
            format!("X-MS-Exchange-Organization{}", " \r\n\t".repeat(250_000)),
        ] {
            let message = forged.repeat((HEADER_LIMIT - 2) / forged.len()) + "\r\nbody";
            let started = std::time::Instant::now();
            let left = cut(message.as_bytes());
            assert!(!header::facts(&left).organization);
            let (_, rest) = cut_body(in_pieces(message.as_bytes(), 997)).unwrap();
            assert_eq!(rest.len(), left.len() as u64);
            assert!(started.elapsed() < std::time::Duration::from_secs(20), "{:?}…", &forged[..20]);
        }
    }

    /// By another way than the code's: lines of text, without regard to anything that is not in a name.
    fn naive(message: &[u8]) -> (Vec<u8>, bool) {
        let (mut left, mut found, mut cutting, mut inside) = (Vec::new(), false, false, true);
        for line in message.split_inclusive(|byte| *byte == b'\n') {
            inside &= !matches!(line, b"\r\n" | b"\n");
            let continues = line.starts_with(b" ") || line.starts_with(b"\t");
            if inside && (!continues || left.is_empty() && !found) {
                // The whole field: this line and those that continue it.
                let rest = &message[line.as_ptr() as usize - message.as_ptr() as usize..];
                let mut field = line.to_vec();
                for more in rest.split_inclusive(|byte| *byte == b'\n').skip(1) {
                    if !(more.starts_with(b" ") || more.starts_with(b"\t")) {
                        break;
                    }
                    field.extend_from_slice(more);
                }
                field.retain(|byte| (b'!'..=b'~').contains(byte));
                let field = String::from_utf8(field).unwrap().to_lowercase();
                cutting = PREFIXES.iter().any(|prefix| field.starts_with(&prefix.to_lowercase()));
                found |= cutting;
            }
            if !inside || !cutting {
                left.extend_from_slice(line);
            }
        }
        (left, found)
    }

    fn piece() -> impl Strategy<Value = Vec<u8>> {
        prop_oneof![
            3 => prop::sample::select(PREFIXES.to_vec()).prop_map(|text| text.as_bytes().to_vec()),
            1 => prop::sample::select(PREFIXES.to_vec()).prop_map(|text| text.to_uppercase().into_bytes()),
            4 => prop::sample::select(vec!["\r\n", " ", "\t", ":", "\r\n ", "\r\n\t", "A: b\r\n", "x-ms-", "X-MS-Exchange-",
                "Organization-", "\r\n\r\n", "\u{b}"]).prop_map(|text| text.as_bytes().to_vec()),
            1 => prop::collection::vec(any::<u8>(), 0..4),
        ]
    }

    proptest! {
        /// No organization field is left, all other bytes are, in order; cutting again changes nothing.
        #[test]
        fn nothing_is_left_and_nothing_else_is_lost(
            pieces in prop::collection::vec(piece(), 0..30), size in 1usize..50,
        ) {
            let message = pieces.concat();
            let left = cut(&message);
            let (expected, found) = naive(&message);
            prop_assert_eq!(String::from_utf8_lossy(&left), String::from_utf8_lossy(&expected));
            prop_assert_eq!(matches!(left, Cow::Owned(_)), found);
            prop_assert_eq!(header::facts(&message).organization, found);
            // What is left may begin with what was a continuation only where the message did.
            let again = cut(&left);
            prop_assert_eq!(&again, &left);
            let (_, rest) = cut_body(in_pieces(&message, size)).unwrap();
            prop_assert_eq!(read(&[], &rest), left.to_vec());
        }
    }
}
