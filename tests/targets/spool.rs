//! The spool's own files, as damage, a crash or another life of the disk may leave them: single records, and what a
//! start makes of a whole segment.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{self, IoSlice};
use std::sync::Arc;

use bytes::Bytes;
use causeway::config::ConnectorName;
use causeway::message::{
    Address, Body, BodyType, Domain, Envelope, MessageId, Notify, OrganizationHeaders, OriginalRecipient, Recipient,
};
use causeway::route::{CopyRecipient, Hop, HopCopy};
use causeway::spool::disk::DiskFile;
use causeway::spool::format::{
    self, Content, Decoded, Kind, RECORD_HEAD, RECORD_MARK, RecordHead, SEGMENT_HEAD, Salt, SegmentHead, VERSION,
};
use causeway::spool::recover::survey;
use causeway::spool::{Deferral, End, Message, Settlement};
use jiff::Timestamp;

use super::command::check_address;

const SEGMENT: u32 = 7;

fn salt() -> Salt {
    Salt::of_record(&[RECORD_MARK, 0x5a, 0x17, 0xee, 1, 0xd4, 0x9b, 0x33]).expect("it begins as a record")
}

/// One record's payload: the first octet says of which kind. What can be read is written so that it is read again.
pub fn record(data: &[u8]) {
    heads(data);
    let Some((&kind, payload)) = data.split_first() else { return };
    let behind = |record: Vec<u8>| record[RECORD_HEAD..].to_vec();
    match kind {
        b'M' => {
            if let Ok(decoded) = format::decode_message(payload, payload.len() as u64) {
                message(&decoded, payload);
            }
            let _ = format::message_head_len(payload);
        }
        b'S' => {
            if let Ok(settled) = format::decode_settled(payload) {
                assert_eq!(format::decode_settled(&behind(format::encode_settled(&settled))), Ok(settled));
            }
        }
        b'D' => {
            if let Ok(deferred) = format::decode_deferred(payload) {
                assert_eq!(format::decode_deferred(&behind(format::encode_deferred(&deferred))), Ok(deferred));
            }
        }
        b'R' => {
            if let Ok(removed) = format::decode_removed(payload) {
                assert!(removed.len() * 8 < payload.len(), "more than there is room for");
                assert_eq!(format::decode_removed(&behind(format::encode_removed(&removed))), Ok(removed));
            }
        }
        _ => {
            if let Ok((segment, end)) = format::decode_mark(payload) {
                assert_eq!(behind(format::encode_mark(segment, end)), payload);
            }
        }
    }
}

fn heads(data: &[u8]) {
    if let Some(head) = SegmentHead::decode(data) {
        assert_eq!(head.encode()[..36], data[..36]);
        assert_eq!(SegmentHead::decode(&head.encode()), Some(head));
    }
    if let Some(salt) = Salt::of_record(data)
        && let Some(head) = RecordHead::decode(data, salt, SEGMENT, SEGMENT_HEAD)
    {
        assert_eq!(head.encode(salt)[..], data[..RECORD_HEAD]);
        assert!(head.batch <= head.offset && head.segment == SEGMENT);
    }
}

fn message(decoded: &Decoded, payload: &[u8]) {
    decoded.envelope.sender.iter().for_each(check_address);
    let recipients = decoded.copies.iter().flat_map(|copy| &copy.recipients);
    recipients.clone().for_each(|one| {
        check_address(&one.asked);
        check_address(&one.recipient.address);
    });
    // No list is longer than its bytes: a length in a damaged record costs no memory.
    assert!(recipients.count() + decoded.settles.len() + decoded.deferred.len() <= payload.len());
    let prefix = &payload[decoded.prefix_at..decoded.prefix_at + decoded.prefix_len];
    let message = Message {
        id: decoded.id,
        accepted: decoded.accepted,
        envelope: decoded.envelope.clone(),
        connector: decoded.connector.clone(),
        message_id: decoded.message_id.clone(),
        prefix: Bytes::copy_from_slice(prefix),
        organization: decoded.organization,
        content: Body::from_bytes(Bytes::new()),
        copies: decoded.copies.clone(),
    };
    let record = format::encode_message(&message, &decoded.settles, &decoded.deferred, decoded.content);
    let content = &payload[decoded.prefix_at + decoded.prefix_len..];
    let again = [&record[RECORD_HEAD..], content].concat();
    assert!(again.len() <= payload.len(), "there is no shorter way to write it than ours");
    let reread = format::decode_message(&again, again.len() as u64).expect("we wrote it");
    assert_eq!(&again[reread.prefix_at..][..reread.prefix_len], prefix);
    let shown = |decoded: &Decoded| {
        let Decoded { id, accepted, envelope, connector, message_id, organization, copies, .. } = decoded;
        let Decoded { settles, deferred, content, prefix_len, .. } = decoded;
        let message = (id, accepted, envelope, connector, message_id, organization, copies);
        format!("{message:?} {settles:?} {deferred:?} {content:?} {prefix_len}")
    };
    assert_eq!(shown(&reread), shown(decoded));
}

/// A file in memory that nobody writes to.
#[derive(Debug)]
struct Image(Vec<u8>);

impl DiskFile for Image {
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        let rest = usize::try_from(offset).ok().and_then(|offset| self.0.get(offset..)).unwrap_or_default();
        let length = rest.len().min(buffer.len());
        buffer[..length].copy_from_slice(&rest[..length]);
        Ok(length)
    }

    fn write_at(&self, _: &[IoSlice<'_>], _: u64) -> io::Result<usize> {
        Err(io::ErrorKind::ReadOnlyFilesystem.into())
    }

    fn sync(&self) -> io::Result<()> {
        Err(io::ErrorKind::ReadOnlyFilesystem.into())
    }

    fn allocate(&self, _: u64) -> io::Result<()> {
        Err(io::ErrorKind::ReadOnlyFilesystem.into())
    }

    fn length(&self) -> io::Result<u64> {
        Ok(self.0.len() as u64)
    }

    fn file(&self) -> Option<Arc<File>> {
        None
    }

    fn is_shared(&self) -> bool {
        false
    }
}

/// What one record of the case does.
#[derive(Debug, Clone)]
enum Act {
    Put { id: u64, recipients: Vec<u16>, settles: Option<Settlement> },
    Settle(Settlement),
    Defer(Deferral),
    Remove(u64),
    Cancel(u64),
    Mark,
}

/// A record in the image.
#[derive(Debug)]
struct Written {
    act: Act,
    from: usize,
    to: usize,
    batch: u32,
}

/// A case is a list, one line each: `put 5 2 1` (message 5, copies with two recipients and with one), `report 9 5 0 1`
/// (message 9, which settles recipient 1 of copy 0 of message 5), `settle 5 0 1`, `defer 5 0 3`, `remove 5`, `cancel 5`,
/// `mark`; `sync` begins a batch. Then what happens to the file: `room 100` (zeros behind), `cut 300` (it ends there),
/// `flip 300 12345678` (these bits of four octets are changed; the last one counts). A case that begins as a segment
/// does is one.
pub fn segment(data: &[u8]) {
    if data.starts_with(b"CwaySeg\n") {
        return whatever(data);
    }
    let mut image = SegmentHead { version: VERSION, number: SEGMENT, generation: 1, salt: salt() }.encode().to_vec();
    let mut records: Vec<Written> = Vec::new();
    let mut batch = SEGMENT_HEAD;
    let (mut room, mut cut, mut flip) = (0, None, None);
    for line in String::from_utf8_lossy(data).lines().take(300) {
        let words: Vec<&str> = line.split_ascii_whitespace().collect();
        let [verb, numbers @ ..] = &words[..] else { continue };
        let number = |index: usize| numbers.get(index).and_then(|word| word.parse::<u64>().ok());
        let small = |index: usize| number(index).map(|number| (number % 200) as u16);
        let settlement = |from: usize| {
            let (id, copy, recipient) = (MessageId(number(from)?), small(from + 1)?, small(from + 2)?);
            Some(Settlement { id, copy, recipient, end: if copy == 0 { End::Delivered } else { End::Failed } })
        };
        let act = match (*verb, number(0)) {
            ("put", Some(id)) => {
                Some(Act::Put { id, recipients: (1..numbers.len().min(6)).filter_map(small).collect(), settles: None })
            }
            ("report", Some(id)) => Some(Act::Put { id, recipients: vec![1], settles: settlement(1) }),
            ("settle", _) => settlement(0).map(Act::Settle),
            ("defer", Some(id)) => {
                let attempts = small(2).unwrap_or(1);
                let until = Timestamp::from_second(1_700_000_000 + i64::from(attempts)).expect("it is a time");
                let copy = small(1).unwrap_or(0);
                Some(Act::Defer(Deferral {
                    id: MessageId(id),
                    copy,
                    until,
                    attempts,
                    warned: attempts > 5,
                    held: attempts % 2 == 1,
                    panics: (attempts / 2 % 4) as u8,
                }))
            }
            ("remove", Some(id)) => Some(Act::Remove(id)),
            ("cancel", Some(id)) => Some(Act::Cancel(id)),
            ("mark", _) => Some(Act::Mark),
            ("sync", _) => {
                batch = image.len() as u32;
                None
            }
            ("room", Some(octets)) => {
                room = octets % 200_000;
                None
            }
            ("cut", Some(at)) => {
                cut = Some(at as usize);
                None
            }
            ("flip", Some(at)) => {
                let bits = numbers.get(1).and_then(|word| u32::from_str_radix(word, 16).ok()).unwrap_or(1);
                flip = Some((at as usize, bits));
                None
            }
            _ => None,
        };
        if let Some(act) = act {
            let from = image.len();
            append(&mut image, &act, batch);
            records.push(Written { act, from, to: image.len(), batch });
        }
    }
    let end = image.len();
    check(&image, &records, &[], end);

    // The same file, damaged: one stretch of at most 32 bits, which CRC-32C always sees, or a sudden end.
    image.resize(end + room as usize, 0);
    let mut broken = Vec::new();
    if let Some((at, bits)) = flip.filter(|_| !image.is_empty()) {
        let at = at % image.len();
        for (octet, bits) in image[at..].iter_mut().zip(bits.to_le_bytes()) {
            *octet ^= bits;
        }
        let changed = bits.to_le_bytes().into_iter().zip(at..).filter(|(bits, _)| *bits != 0).map(|(_, at)| at);
        let changed: Vec<usize> = changed.collect();
        broken.extend(
            (0..records.len())
                .filter(|&index| changed.iter().any(|at| (records[index].from..records[index].to).contains(at))),
        );
    }
    if let Some(cut) = cut {
        image.truncate(cut.max(SEGMENT_HEAD as usize));
        broken.extend((0..records.len()).filter(|&index| records[index].to > image.len()));
    }
    check(&image, &records, &broken, end);
}

fn append(image: &mut Vec<u8>, act: &Act, batch: u32) {
    let (kind, mut record) = match act {
        Act::Put { id, recipients, settles } => {
            let content = b"Subject: x\r\n\r\n\xc5\x5a\x17\xee\x01 not a record\r\n";
            let message = new_message(*id, recipients);
            let settles: Vec<_> = settles.iter().copied().collect();
            let content_is = Content::Inline { len: content.len() as u64 };
            let mut record = format::encode_message(&message, &settles, &[], content_is);
            record.extend_from_slice(content);
            (Kind::Message, record)
        }
        Act::Settle(settlement) => (Kind::Settled, format::encode_settled(&[*settlement])),
        Act::Defer(deferral) => (Kind::Deferred, format::encode_deferred(&[*deferral])),
        Act::Remove(id) => (Kind::Removed, format::encode_removed(&[MessageId(*id)])),
        Act::Cancel(id) => (Kind::Cancelled, format::encode_removed(&[MessageId(*id)])),
        Act::Mark => (Kind::Mark, format::encode_mark(SEGMENT, image.len() as u32)),
    };
    let head = RecordHead {
        kind,
        segment: SEGMENT,
        offset: image.len() as u32,
        batch,
        length: (record.len() - RECORD_HEAD) as u32,
        crc: format::checksum(&record[RECORD_HEAD..]),
    };
    record[..RECORD_HEAD].copy_from_slice(&head.encode(salt()));
    image.extend_from_slice(&record);
}

fn new_message(id: u64, recipients: &[u16]) -> Message {
    let address = |text: &str| Address::parse(text).expect("it is an address");
    let recipient = |number: u16| CopyRecipient {
        asked: address("anna@contoso.com"),
        recipient: Recipient {
            address: address(&format!("r{number}@fabrikam.com")),
            notify: Notify::On { success: true, failure: number.is_multiple_of(2), delay: false },
            orcpt: Some(OriginalRecipient { kind: "rfc822".into(), address: "erin@fabrikam.com".into() }),
        },
    };
    let copy = |(number, count): (usize, &u16)| HopCopy {
        via: ConnectorName("to-cloud".into()),
        hop: if number == 0 { Hop::SmartHosts } else { Hop::Mx(Domain::parse("fabrikam.com").expect("it is one")) },
        recipients: (0..*count).map(recipient).collect(),
    };
    Message {
        id: MessageId(id),
        accepted: Timestamp::from_second(1_700_000_000).expect("it is a time"),
        envelope: Envelope {
            sender: Some(address("erin@fabrikam.com")),
            recipients: Vec::new(),
            ret: None,
            envid: Some("x".into()),
            body: BodyType::EightBit,
            smtputf8: false,
            requiretls: false,
        },
        connector: "internet".into(),
        message_id: Some("<a@b>".into()),
        prefix: Bytes::from_static(b"Received: x\r\n"),
        organization: OrganizationHeaders::None,
        content: Body::from_bytes(Bytes::new()),
        copies: recipients.iter().enumerate().map(copy).collect(),
    }
}

/// What a message comes to, by the words of the records alone.
#[derive(Debug, PartialEq, Eq)]
struct Expected {
    offset: u32,
    open: Vec<BTreeSet<u16>>,
    attempts: Vec<u16>,
}

fn expected(records: &[Written], broken: &[usize]) -> BTreeMap<u64, Expected> {
    let mut messages: BTreeMap<u64, Expected> = BTreeMap::new();
    let (mut later, mut cancelled) = (Vec::new(), BTreeSet::new());
    let settle = |messages: &mut BTreeMap<u64, Expected>, one: &Settlement| {
        let Some(message) = messages.get_mut(&one.id.0) else { return };
        if let Some(open) = message.open.get_mut(usize::from(one.copy)) {
            open.remove(&one.recipient);
        }
        if message.open.iter().all(BTreeSet::is_empty) {
            messages.remove(&one.id.0);
        }
    };
    for (index, Written { act, from, .. }) in records.iter().enumerate() {
        if broken.contains(&index) {
            continue;
        }
        match act {
            Act::Put { id, recipients, settles } => {
                let offset = *from as u32;
                match messages.get_mut(id) {
                    Some(message) => message.offset = offset,
                    None if recipients.iter().any(|count| *count > 0) => {
                        let open = recipients.iter().map(|count| (0..*count).collect()).collect();
                        messages.insert(*id, Expected { offset, open, attempts: vec![0; recipients.len()] });
                    }
                    None => {}
                }
                match settles {
                    Some(own) if own.id.0 == *id => settle(&mut messages, own),
                    Some(other) => later.push((*id, *other)),
                    None => {}
                }
            }
            Act::Settle(settlement) => settle(&mut messages, settlement),
            Act::Defer(deferral) => {
                let message = messages.get_mut(&deferral.id.0);
                if let Some(attempts) = message.and_then(|message| message.attempts.get_mut(usize::from(deferral.copy)))
                {
                    *attempts = deferral.attempts;
                }
            }
            Act::Remove(id) => drop(messages.remove(id)),
            Act::Cancel(id) => {
                messages.remove(id);
                cancelled.insert(*id);
            }
            Act::Mark => {}
        }
    }
    for (by, settlement) in later {
        if !cancelled.contains(&by) {
            settle(&mut messages, &settlement);
        }
    }
    messages
}

/// P1, P2, P4: every message whose records can be read is there as they say, nothing else is, and damage is told from
/// what a crash leaves.
fn check(image: &[u8], records: &[Written], broken: &[usize], end: usize) {
    let survey = survey(SEGMENT, Arc::new(Image(image.to_vec()))).expect("memory can be read");
    let found: BTreeMap<u64, Expected> = survey
        .messages
        .iter()
        .map(|message| {
            let open = message.open.iter().map(|open| open.iter().copied().collect()).collect();
            let mut attempts = vec![0; message.open.len()];
            for waiting in &message.copies {
                assert!(!message.open[usize::from(waiting.copy)].is_empty());
                attempts[usize::from(waiting.copy)] = waiting.attempts;
            }
            (message.id.0, Expected { offset: message.offset, open, attempts })
        })
        .collect();
    let mut expected = expected(records, broken);
    // How often a copy was tried that nobody waits for is nobody's business.
    for message in expected.values_mut() {
        for (open, attempts) in message.open.iter().zip(&mut message.attempts) {
            *attempts = if open.is_empty() { 0 } else { *attempts };
        }
    }
    assert_eq!(found, expected, "broken: {broken:?}, {survey:?}");

    // Up to here it had surely been synced, so what is broken in front is no torn write.
    let sound = || records.iter().enumerate().filter(|(index, _)| !broken.contains(index)).map(|(_, record)| record);
    let synced = sound()
        .map(|record| if matches!(record.act, Act::Mark) { record.from as u32 } else { record.batch })
        .max()
        .unwrap_or(0);
    let is_damage = broken.iter().any(|&index| (records[index].from as u32) < synced);
    assert_eq!(!survey.damaged.is_empty(), is_damage, "broken: {broken:?}, synced: {synced}, {survey:?}");
    for (from, to, reason) in &survey.damaged {
        assert!(from < to && *from >= SEGMENT_HEAD && !reason.is_empty(), "{survey:?}");
    }
    if broken.is_empty() {
        assert_eq!((survey.end as usize, survey.torn), (end, 0));
    }
}

/// A segment that somebody else made up.
fn whatever(image: &[u8]) {
    let survey = survey(SEGMENT, Arc::new(Image(image.to_vec()))).expect("memory can be read");
    assert!(survey.end >= SEGMENT_HEAD && survey.end as usize <= image.len().max(SEGMENT_HEAD as usize));
    for message in &survey.messages {
        let at = message.offset as usize;
        let head = RecordHead::decode(
            &image[at..],
            Salt::of_record(&image[at..]).expect("it begins so"),
            SEGMENT,
            message.offset,
        );
        let head = head.expect("a message stands where its record does");
        let payload = &image[at + RECORD_HEAD..][..head.length as usize];
        assert_eq!(format::checksum(payload), head.crc);
        let decoded = format::decode_message(payload, payload.len() as u64).expect("it was read");
        assert_eq!((decoded.id, decoded.copies.len()), (message.id, message.open.len()));
    }
    for (from, to, _) in &survey.damaged {
        assert!(from < to && *from >= SEGMENT_HEAD);
    }
}
