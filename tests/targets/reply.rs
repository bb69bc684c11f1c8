//! What a server says: replies, and what it offers after EHLO.

use bytes::BytesMut;
use causeway::smtp::Reply;
use causeway::smtp::extension::Offered;
use causeway::smtp::reply::{Garbled, LINE_LIMIT, ReplyParser, TEXT_LIMIT};

use super::{Cuts, is_printable};

/// Every reply of a stream, how it ended, and whether it ended within one.
fn replies(data: &[u8], cuts: Cuts, hello: bool) -> (Vec<Reply>, Option<Garbled>, bool) {
    let (mut parser, mut unread, mut replies) = (ReplyParser::default(), BytesMut::new(), Vec::new());
    for piece in cuts.pieces(data) {
        unread.extend_from_slice(piece);
        loop {
            match if hello { parser.next_hello(&mut unread) } else { parser.next(&mut unread) } {
                Ok(Some(reply)) => replies.push(reply),
                Ok(None) => break,
                Err(garbled) => return (replies, Some(garbled), false),
            }
        }
        assert!(unread.len() <= 8192, "{} octets of a line are kept", unread.len());
    }
    let inside = parser.is_inside() || !unread.is_empty();
    (replies, None, inside)
}

pub fn reply(data: &[u8]) {
    for hello in [false, true] {
        let [whole, rest @ ..] = Cuts::of(data);
        let (seen, garbled, inside) = replies(data, whole, hello);
        for cuts in rest {
            assert_eq!(replies(data, cuts, hello), (seen.clone(), garbled, inside), "{cuts:?}");
        }
        for reply in &seen {
            check(reply, if hello { 16 * 1024 } else { TEXT_LIMIT });
            let offered = Offered::parse(reply);
            assert!(offered.size != Some(Some(0)) && offered.rcpt_max != Some(0), "0 is no limit");
            assert!(offered.auth.len() <= 32);
            assert!(offered.auth.iter().all(|name| !name.is_empty() && is_printable(name) && !name.contains(' ')));
        }
    }
}

fn check(reply: &Reply, limit: usize) {
    assert!((200..600).contains(&reply.code));
    assert!(reply.text.len() <= limit && reply.text.split('\n').all(is_printable), "{:?}", reply.text);
    assert!(reply.status.is_none_or(|status| status.0 == reply.code / 100), "another class: {reply:?}");
    assert_eq!(reply.status_or_class().0, reply.code / 100);
    assert!(!reply.to_string().contains('\r'));

    // Said again, as it is where a client waits for its next hop's word, it is a reply of the same meaning.
    let mut wire = BytesMut::new();
    reply.write_to(&mut wire);
    assert!(wire.ends_with(b"\r\n"));
    assert!(wire[..].split(|&octet| octet == b'\n').all(|line| line.len() < LINE_LIMIT));
    let heard = ReplyParser::default().next_hello(&mut wire).unwrap().unwrap();
    assert!(wire.is_empty(), "more than one reply");
    assert_eq!((heard.code, heard.status_or_class()), (reply.code, reply.status_or_class()));
    if reply.text.split('\n').all(|line| line.len() <= LINE_LIMIT - 18) && reply.text.split('\n').count() <= 128 {
        // A text that begins as a status does is taken for one where there was none.
        if reply.status.is_some() || heard.status.is_none() {
            assert_eq!(heard.text, reply.text);
        }
    }
}
