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
//! Standards: RFC 5322 section 2.2.3 (folding), 4.5 (what old programs wrote). Interface section 9.

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
/// the empty line).
fn kept(head: &[u8]) -> (Vec<Range<usize>>, usize) {
    let mut kept: Vec<Range<usize>> = Vec::new();
    let mut at = 0;
    for field in header::all_fields(head) {
        let end = at + field.raw.len();
        if !is_organization(&field) {
            match kept.last_mut() {
                Some(last) if last.end == at => last.end = end,
                _ => kept.push(at..end),
            }
        }
        at = end;
    }
    (kept, at)
}

/// A message without organization headers. Borrowed if there are none.
pub fn cut(message: &[u8]) -> Cow<'_, [u8]> {
    let (mut kept, end) = kept(message);
    if kept == [0..end] || end == 0 {
        return Cow::Borrowed(message);
    }
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
    let (kept, end) = kept(&head);
    if kept == [0..end] || end == 0 {
        return Ok((Vec::new(), body));
    }
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
