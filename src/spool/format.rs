//! A record as bytes: version, kind, length, checksum, payload.
//!
//! A segment starts with a head of [`SEGMENT_HEAD`] bytes and is then a row of records without gaps. A record
//! says in which segment and at which offset it stands, so what an older life of the file left behind, or a block
//! that landed in the wrong place, is never taken for one. It also says where its batch began: everything before
//! that was synced when it was written, which is how recovery tells a torn write from damage. And it carries the
//! salt of its segment, which nobody outside knows: a mail that holds the image of a record stays a mail.
//!
//! All numbers are little-endian; all texts carry their length, so no value can become a field. Decoding goes
//! forward only, allocates no more than the input is long, checks every address again, and never panics.

use bytes::Bytes;
use crc_fast::{CrcAlgorithm, Digest, crc32_iscsi};
use jiff::Timestamp;

use super::{Deferral, End, Message, Settlement};
use crate::config::ConnectorName;
use crate::message::{
    Address, BodyType, Domain, Envelope, MessageId, Notify, OrganizationHeaders, OriginalRecipient, Recipient, Ret,
    address,
};
use crate::route::{CopyRecipient, Hop, HopCopy};

/// The version of the format that is written, and the newest that is read. Version 2 has copies that are held, version 3
/// counts attempts that ended inside the relay; all of the versions before means the same in it.
pub const VERSION: u32 = 3;
/// Bytes before the first record of a segment.
pub const SEGMENT_HEAD: u32 = 64;
/// Bytes before the payload of a record.
pub const RECORD_HEAD: usize = 32;
/// How a segment begins, in every version there will ever be.
const SEGMENT_MAGIC: [u8; 8] = *b"CwaySeg\n";
/// How a record begins; the first byte of every [`Salt`]. It is rare in mail, so that a search for it is quick.
pub const RECORD_MARK: u8 = 0xC5;

/// Why bytes are no record. The text goes to `corrupt/` beside them.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    /// There are fewer bytes than the lengths in it promise.
    #[error("it ends in the middle of {0}")]
    Short(&'static str),
    /// There are more.
    #[error("{0} bytes are left over")]
    Long(usize),
    /// A field holds what it may not hold.
    #[error("{0} has the unknown value {1}")]
    Value(&'static str, u64),
    /// A text is not UTF-8.
    #[error("{0} is not UTF-8")]
    Text(&'static str),
    /// An address would not be accepted from a client either.
    #[error("an address in it is malformed: {0}")]
    Address(#[from] address::Malformed),
}

/// CRC-32C.
pub fn checksum(bytes: &[u8]) -> u32 {
    crc32_iscsi(bytes)
}

/// CRC-32C of bytes that come in pieces.
pub struct Checksum(Digest);

impl Checksum {
    /// Of nothing yet.
    pub fn new() -> Self {
        Self(Digest::new(CrcAlgorithm::Crc32Iscsi))
    }

    /// And of these.
    pub fn update(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    /// Of all so far.
    pub fn value(&self) -> u32 {
        // The algorithm has 32 bits; the crate answers in 64 for all of them.
        self.0.finalize() as u32
    }
}

impl Default for Checksum {
    fn default() -> Self {
        Self::new()
    }
}

impl std::fmt::Debug for Checksum {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Checksum({:08x})", self.value())
    }
}

/// A random number in each record of one segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Salt([u8; 7]);

impl Salt {
    /// Of a new segment.
    pub fn random() -> Self {
        let [_, a, b, c, d, e, f, _] = crate::random::number().to_le_bytes();
        Self([RECORD_MARK, a, b, c, d, e, f])
    }

    /// As the record that begins here has it, if one does.
    pub fn of_record(bytes: &[u8]) -> Option<Self> {
        let [a, b, c, d, _, e, f, g, ..] = *bytes else { return None };
        (a == RECORD_MARK).then_some(Self([a, b, c, d, e, f, g]))
    }
}

/// What stands at the start of a segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SegmentHead {
    /// The version of the format.
    pub version: u32,
    /// Its place in the log. Never used twice.
    pub number: u32,
    /// The start of the daemon that made it.
    pub generation: u64,
    /// In each of its records.
    pub salt: Salt,
}

impl SegmentHead {
    /// As bytes.
    pub fn encode(&self) -> [u8; SEGMENT_HEAD as usize] {
        let mut bytes = [0; SEGMENT_HEAD as usize];
        bytes[..8].copy_from_slice(&SEGMENT_MAGIC);
        bytes[8..12].copy_from_slice(&self.version.to_le_bytes());
        bytes[12..16].copy_from_slice(&self.number.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.generation.to_le_bytes());
        bytes[24..31].copy_from_slice(&self.salt.0);
        let crc = checksum(&bytes[..32]);
        bytes[32..36].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    /// From bytes; `None` if they are damaged or were never written. These 36 bytes mean the same in every version,
    /// so that an older daemon can tell a newer spool from a damaged one.
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let bytes = bytes.get(..36)?;
        let crc = u32_at(bytes, 32)?;
        if bytes[..8] != SEGMENT_MAGIC || checksum(&bytes[..32]) != crc {
            return None;
        }
        let generation = u64::from(u32_at(bytes, 16)?) | u64::from(u32_at(bytes, 20)?) << 32;
        let salt = Salt(bytes[24..31].try_into().ok()?);
        Some(Self { version: u32_at(bytes, 8)?, number: u32_at(bytes, 12)?, generation, salt })
    }
}

/// What a record is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A message: envelope, plan, prefix, and body or the name of its file.
    Message,
    /// Recipients that are done with.
    Settled,
    /// Copies that are tried later.
    Deferred,
    /// Messages that are gone.
    Removed,
    /// Messages that were refused after their records may have reached the disk: they, and what they would have
    /// settled, never were.
    Cancelled,
    /// Up to where the segment before this one was synced; or that this one was, at the end of a run.
    Mark,
}

impl Kind {
    fn from_byte(byte: u8) -> Option<Self> {
        Some(match byte {
            1 => Self::Message,
            2 => Self::Settled,
            3 => Self::Deferred,
            4 => Self::Removed,
            5 => Self::Mark,
            6 => Self::Cancelled,
            _ => return None,
        })
    }

    fn byte(self) -> u8 {
        match self {
            Self::Message => 1,
            Self::Settled => 2,
            Self::Deferred => 3,
            Self::Removed => 4,
            Self::Mark => 5,
            Self::Cancelled => 6,
        }
    }
}

/// What stands before the payload of a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RecordHead {
    /// What it is about.
    pub kind: Kind,
    /// The segment it was written to.
    pub segment: u32,
    /// Where in it.
    pub offset: u32,
    /// Where the batch it was written with began.
    pub batch: u32,
    /// Length of the payload.
    pub length: u32,
    /// CRC-32C of the payload.
    pub crc: u32,
}

impl RecordHead {
    /// As bytes.
    pub fn encode(&self, salt: Salt) -> [u8; RECORD_HEAD] {
        let mut bytes = [0; RECORD_HEAD];
        bytes[..4].copy_from_slice(&salt.0[..4]);
        bytes[4] = self.kind.byte();
        bytes[5..8].copy_from_slice(&salt.0[4..]);
        for (at, number) in [(8, self.segment), (12, self.offset), (16, self.batch), (20, self.length), (24, self.crc)]
        {
            bytes[at..at + 4].copy_from_slice(&number.to_le_bytes());
        }
        let crc = checksum(&bytes[..28]);
        bytes[28..].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    /// From bytes that were read at `offset` of `segment`; `None` if no record was written there.
    pub fn decode(bytes: &[u8], salt: Salt, segment: u32, offset: u32) -> Option<Self> {
        let bytes = bytes.get(..RECORD_HEAD)?;
        if Salt::of_record(bytes) != Some(salt) || u32_at(bytes, 28)? != checksum(&bytes[..28]) {
            return None;
        }
        let head = Self {
            kind: Kind::from_byte(bytes[4])?,
            segment: u32_at(bytes, 8)?,
            offset: u32_at(bytes, 12)?,
            batch: u32_at(bytes, 16)?,
            length: u32_at(bytes, 20)?,
            crc: u32_at(bytes, 24)?,
        };
        (head.segment == segment && head.offset == offset && head.batch <= offset).then_some(head)
    }

    /// Head and payload.
    pub fn size(&self) -> u64 {
        RECORD_HEAD as u64 + u64::from(self.length)
    }
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

/// Where the content of a message stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Content {
    /// Behind the prefix, in the record.
    Inline {
        /// Length in bytes.
        len: u64,
    },
    /// In a file of its own.
    Own {
        /// The number in the file's name.
        number: u64,
        /// Length in bytes.
        len: u64,
        /// CRC-32C of the whole.
        crc: u32,
    },
}

/// A message record as it was read, its content still on disk.
#[derive(Debug)]
pub struct Decoded {
    /// Its number.
    pub id: MessageId,
    /// When it was accepted.
    pub accepted: Timestamp,
    /// Without recipients.
    pub envelope: Envelope,
    /// The receive connector.
    pub connector: Box<str>,
    /// The `Message-ID` field.
    pub message_id: Option<Box<str>>,
    /// What becomes of its organization headers.
    pub organization: OrganizationHeaders,
    /// The plan.
    pub copies: Vec<HopCopy>,
    /// What it settles by existing; in a record that was copied, also what of itself was settled before.
    pub settles: Vec<Settlement>,
    /// In a record that was copied: when its copies are tried again.
    pub deferred: Vec<Deferral>,
    /// Where the content stands.
    pub content: Content,
    /// Where in the payload the prefix begins.
    pub prefix_at: usize,
    /// How long the prefix is; the content follows.
    pub prefix_len: usize,
}

/// The start of a message record: room for its head, then everything of the payload but the content.
///
/// `settles` and `deferred` also carry what happened to the message itself when its record is copied to the front of
/// the log: in one record, because the records that first said so stand in segments that go before this one.
pub fn encode_message(message: &Message, settles: &[Settlement], deferred: &[Deferral], content: Content) -> Vec<u8> {
    let mut w = Writer(Vec::with_capacity(RECORD_HEAD + 256 + message.prefix.len()));
    w.0.resize(RECORD_HEAD + 4, 0);
    w.u64(message.id.0);
    w.u64(message.accepted.as_second().cast_unsigned());
    w.u32(message.accepted.subsec_nanosecond().cast_unsigned());

    let envelope = &message.envelope;
    let ret = match envelope.ret {
        None => 0,
        Some(Ret::Full) => 1,
        Some(Ret::Headers) => 2,
    };
    let eight_bit = u8::from(envelope.body == BodyType::EightBit);
    // 0 is also what was written before anybody looked for them.
    let organization = match message.organization {
        OrganizationHeaders::Cut => 0,
        OrganizationHeaders::None => 1,
        OrganizationHeaders::Believed => 2,
    };
    let (smtputf8, requiretls) = (u8::from(envelope.smtputf8), u8::from(envelope.requiretls));
    w.u8(ret | eight_bit << 2 | smtputf8 << 3 | requiretls << 4 | organization << 5);
    w.option(envelope.sender.as_ref(), Writer::address);
    w.option(envelope.envid.as_deref(), Writer::text);
    w.text(&message.connector);
    w.option(message.message_id.as_deref(), Writer::text);

    w.count(settles.len());
    for settlement in settles {
        w.settlement(settlement);
    }
    w.count(deferred.len());
    for deferral in deferred {
        w.deferral(deferral);
    }
    w.count(message.copies.len());
    for copy in &message.copies {
        w.text(&copy.via.0);
        match &copy.hop {
            Hop::SmartHosts => w.u8(0),
            Hop::Mx(domain) => {
                w.u8(1);
                w.text(domain.as_str());
            }
        }
        w.count(copy.recipients.len());
        for recipient in &copy.recipients {
            w.recipient(recipient);
        }
    }
    match content {
        Content::Inline { len } => {
            w.u8(0);
            w.u64(len);
        }
        Content::Own { number, len, crc } => {
            w.u8(1);
            w.u64(number);
            w.u64(len);
            w.u32(crc);
        }
    }
    w.count(message.prefix.len());
    let head = (w.0.len() - RECORD_HEAD - 4) as u32;
    w.0[RECORD_HEAD..RECORD_HEAD + 4].copy_from_slice(&head.to_le_bytes());
    w.0.extend_from_slice(&message.prefix);
    w.0
}

/// How many bytes from the start of a payload [`decode_message`] needs; `None` if not even that can be read.
pub fn message_head_len(payload: &[u8]) -> Option<usize> {
    (u32_at(payload, 0)? as usize).checked_add(4)
}

/// Reads a message record. `payload` may end before prefix and content; `total` is the length of the whole payload.
///
/// # Errors
/// What is wrong with it.
pub fn decode_message(payload: &[u8], total: u64) -> Result<Decoded, Malformed> {
    let head = message_head_len(payload).ok_or(Malformed::Short("the message"))?;
    let mut r = Reader(payload.get(4..head).ok_or(Malformed::Short("the message"))?);
    let id = MessageId(r.u64("the number")?);
    let accepted = timestamp(r.u64("the time")?.cast_signed(), r.u32("the time")?.cast_signed())?;
    let flags = r.u8("the flags")?;
    let organization = match flags >> 5 {
        0 => OrganizationHeaders::Cut,
        1 => OrganizationHeaders::None,
        2 => OrganizationHeaders::Believed,
        _ => return Err(Malformed::Value("the flags", flags.into())),
    };
    let ret = match flags & 3 {
        0 => None,
        1 => Some(Ret::Full),
        2 => Some(Ret::Headers),
        other => return Err(Malformed::Value("RET", other.into())),
    };
    let envelope = Envelope {
        sender: r.option(|r| r.address("the sender"))?,
        recipients: Vec::new(),
        ret,
        envid: r.option(|r| r.text("ENVID").map(Box::from))?,
        body: if flags & 4 != 0 { BodyType::EightBit } else { BodyType::SevenBit },
        smtputf8: flags & 8 != 0,
        requiretls: flags & 16 != 0,
    };
    let connector = r.text("the connector")?.into();
    let message_id = r.option(|r| r.text("the Message-ID").map(Box::from))?;
    let settles = r.list("the settlements", Reader::settlement)?;
    let deferred = r.list("the deferrals", Reader::deferral)?;
    let copies = r.list("the copies", |r| {
        let via = ConnectorName(r.text("the send connector")?.into());
        let hop = match r.u8("the hop")? {
            0 => Hop::SmartHosts,
            1 => Hop::Mx(Domain::parse(r.text("the hop")?)?),
            other => return Err(Malformed::Value("the hop", other.into())),
        };
        Ok(HopCopy { via, hop, recipients: r.list("the recipients", Reader::recipient)? })
    })?;
    let content = match r.u8("the content")? {
        0 => Content::Inline { len: r.u64("the content")? },
        1 => Content::Own { number: r.u64("the content")?, len: r.u64("the content")?, crc: r.u32("the content")? },
        other => return Err(Malformed::Value("the content", other.into())),
    };
    let prefix_len = r.count("the prefix")?;
    r.end()?;

    let inline = match content {
        Content::Inline { len } => len,
        Content::Own { .. } => 0,
    };
    let needed = (head as u64).checked_add(prefix_len as u64).and_then(|sum| sum.checked_add(inline));
    match needed {
        Some(needed) if needed == total => {}
        Some(needed) if needed < total => return Err(Malformed::Long((total - needed) as usize)),
        _ => return Err(Malformed::Short("the content")),
    }
    Ok(Decoded {
        id,
        accepted,
        envelope,
        connector,
        message_id,
        organization,
        copies,
        settles,
        deferred,
        content,
        prefix_at: head,
        prefix_len,
    })
}

/// The payload of a *settled* record, behind room for its head.
pub fn encode_settled(settlements: &[Settlement]) -> Vec<u8> {
    list(settlements, 13, Writer::settlement)
}

/// Reads the payload of a *settled* record.
///
/// # Errors
/// What is wrong with it.
pub fn decode_settled(payload: &[u8]) -> Result<Vec<Settlement>, Malformed> {
    whole(payload, Reader::settlement)
}

/// The payload of a *deferred* record, behind room for its head.
pub fn encode_deferred(deferrals: &[Deferral]) -> Vec<u8> {
    list(deferrals, 25, Writer::deferral)
}

/// Reads the payload of a *deferred* record.
///
/// # Errors
/// What is wrong with it.
pub fn decode_deferred(payload: &[u8]) -> Result<Vec<Deferral>, Malformed> {
    whole(payload, Reader::deferral)
}

/// The payload of a *removed* or *cancelled* record, behind room for its head.
pub fn encode_removed(ids: &[MessageId]) -> Vec<u8> {
    list(ids, 8, |w, id| w.u64(id.0))
}

/// Reads the payload of a *removed* or *cancelled* record.
///
/// # Errors
/// What is wrong with it.
pub fn decode_removed(payload: &[u8]) -> Result<Vec<MessageId>, Malformed> {
    whole(payload, |r| r.u64("a number").map(MessageId))
}

/// The payload of a *mark*, behind room for its head: all of `segment` before `end` was synced.
pub fn encode_mark(segment: u32, end: u32) -> Vec<u8> {
    let mut w = Writer(vec![0; RECORD_HEAD]);
    w.u32(segment);
    w.u32(end);
    w.0
}

/// Reads the payload of a *mark*.
///
/// # Errors
/// What is wrong with it.
pub fn decode_mark(payload: &[u8]) -> Result<(u32, u32), Malformed> {
    let mut r = Reader(payload);
    let mark = (r.u32("a mark")?, r.u32("a mark")?);
    r.end()?;
    Ok(mark)
}

fn timestamp(second: i64, nanosecond: i32) -> Result<Timestamp, Malformed> {
    Timestamp::new(second, nanosecond).map_err(|_| Malformed::Value("a time", second.cast_unsigned()))
}

fn list<T>(items: &[T], each: usize, mut write: impl FnMut(&mut Writer, &T)) -> Vec<u8> {
    let mut w = Writer(Vec::with_capacity(RECORD_HEAD + 5 + items.len() * each));
    w.0.resize(RECORD_HEAD, 0);
    w.count(items.len());
    for item in items {
        write(&mut w, item);
    }
    w.0
}

fn whole<'a, T>(
    payload: &'a [u8],
    read: impl FnMut(&mut Reader<'a>) -> Result<T, Malformed>,
) -> Result<Vec<T>, Malformed> {
    let mut r = Reader(payload);
    let items = r.list("the list", read)?;
    r.end()?;
    Ok(items)
}

struct Writer(Vec<u8>);

impl Writer {
    fn u8(&mut self, value: u8) {
        self.0.push(value);
    }

    fn u16(&mut self, value: u16) {
        self.0.extend_from_slice(&value.to_le_bytes());
    }

    fn u32(&mut self, value: u32) {
        self.0.extend_from_slice(&value.to_le_bytes());
    }

    fn u64(&mut self, value: u64) {
        self.0.extend_from_slice(&value.to_le_bytes());
    }

    /// Seven bits a byte, lowest first: most lengths are below 128.
    fn count(&mut self, mut value: usize) {
        while value >= 0x80 {
            self.0.push(value as u8 | 0x80);
            value >>= 7;
        }
        self.0.push(value as u8);
    }

    fn text(&mut self, text: &str) {
        self.count(text.len());
        self.0.extend_from_slice(text.as_bytes());
    }

    fn option<T>(&mut self, value: Option<T>, write: impl FnOnce(&mut Self, T)) {
        match value {
            None => self.u8(0),
            Some(value) => {
                self.u8(1);
                write(self, value);
            }
        }
    }

    fn address(&mut self, address: &Address) {
        self.text(address.local());
        self.text(address.domain().as_str());
    }

    fn settlement(&mut self, settlement: &Settlement) {
        self.u64(settlement.id.0);
        self.u16(settlement.copy);
        self.u16(settlement.recipient);
        self.u8(match settlement.end {
            End::Delivered => 0,
            End::Failed => 1,
        });
    }

    fn deferral(&mut self, deferral: &Deferral) {
        self.u64(deferral.id.0);
        self.u16(deferral.copy);
        self.u64(deferral.until.as_second().cast_unsigned());
        self.u32(deferral.until.subsec_nanosecond().cast_unsigned());
        self.u16(deferral.attempts);
        self.u8(u8::from(deferral.warned) | u8::from(deferral.held) << 1 | deferral.panics.min(3) << 2);
    }

    fn recipient(&mut self, recipient: &CopyRecipient) {
        let CopyRecipient { asked, recipient: Recipient { address, notify, orcpt } } = recipient;
        // One byte: the value of NOTIFY in the low bits; whether the next hop is told the address that was asked for.
        let notify = match *notify {
            Notify::Unsaid => 0,
            Notify::Never => 1,
            Notify::On { success, failure, delay } => {
                2 | u8::from(success) << 2 | u8::from(failure) << 3 | u8::from(delay) << 4
            }
        };
        let same = asked == address;
        self.u8(notify | u8::from(same) << 5);
        self.address(asked);
        if !same {
            self.address(address);
        }
        self.option(orcpt.as_ref(), |w, orcpt| {
            w.text(&orcpt.kind);
            w.text(&orcpt.address);
        });
    }
}

struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, len: usize, what: &'static str) -> Result<&'a [u8], Malformed> {
        let (taken, rest) = self.0.split_at_checked(len).ok_or(Malformed::Short(what))?;
        self.0 = rest;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self, what: &'static str) -> Result<[u8; N], Malformed> {
        self.take(N, what)?.try_into().map_err(|_| Malformed::Short(what))
    }

    fn u8(&mut self, what: &'static str) -> Result<u8, Malformed> {
        self.array(what).map(|[byte]| byte)
    }

    fn u16(&mut self, what: &'static str) -> Result<u16, Malformed> {
        self.array(what).map(u16::from_le_bytes)
    }

    fn u32(&mut self, what: &'static str) -> Result<u32, Malformed> {
        self.array(what).map(u32::from_le_bytes)
    }

    fn u64(&mut self, what: &'static str) -> Result<u64, Malformed> {
        self.array(what).map(u64::from_le_bytes)
    }

    fn count(&mut self, what: &'static str) -> Result<usize, Malformed> {
        let mut value = 0;
        // Four bytes carry 28 bits, more than a segment is long.
        for shift in [0, 7, 14, 21] {
            let byte = self.u8(what)?;
            value |= usize::from(byte & 0x7F) << shift;
            if byte < 0x80 {
                return Ok(value);
            }
        }
        Err(Malformed::Value(what, value as u64))
    }

    fn text(&mut self, what: &'static str) -> Result<&'a str, Malformed> {
        let len = self.count(what)?;
        std::str::from_utf8(self.take(len, what)?).map_err(|_| Malformed::Text(what))
    }

    fn option<T>(&mut self, read: impl FnOnce(&mut Self) -> Result<T, Malformed>) -> Result<Option<T>, Malformed> {
        match self.u8("an option")? {
            0 => Ok(None),
            1 => read(self).map(Some),
            other => Err(Malformed::Value("an option", other.into())),
        }
    }

    fn list<T>(
        &mut self,
        what: &'static str,
        mut read: impl FnMut(&mut Self) -> Result<T, Malformed>,
    ) -> Result<Vec<T>, Malformed> {
        let count = self.count(what)?;
        // Each item takes at least one byte: a count that lies cannot make us reserve more than that.
        if count > self.0.len() {
            return Err(Malformed::Short(what));
        }
        // No more than a few at once: an item in memory may be much larger than the byte it takes here.
        let mut items = Vec::with_capacity(count.min(64));
        for _ in 0..count {
            items.push(read(self)?);
        }
        Ok(items)
    }

    fn address(&mut self, what: &'static str) -> Result<Address, Malformed> {
        let local = self.text(what)?;
        let domain = Domain::parse(self.text(what)?)?;
        Ok(Address::new(local, domain)?)
    }

    fn settlement(&mut self) -> Result<Settlement, Malformed> {
        Ok(Settlement {
            id: MessageId(self.u64("a settlement")?),
            copy: self.u16("a settlement")?,
            recipient: self.u16("a settlement")?,
            end: match self.u8("a settlement")? {
                0 => End::Delivered,
                1 => End::Failed,
                other => return Err(Malformed::Value("a settlement", other.into())),
            },
        })
    }

    fn deferral(&mut self) -> Result<Deferral, Malformed> {
        let deferral = Deferral {
            id: MessageId(self.u64("a deferral")?),
            copy: self.u16("a deferral")?,
            until: timestamp(self.u64("a deferral")?.cast_signed(), self.u32("a deferral")?.cast_signed())?,
            attempts: self.u16("a deferral")?,
            warned: false,
            held: false,
            panics: 0,
        };
        match self.u8("a deferral")? {
            flags @ 0..16 => {
                Ok(Deferral { warned: flags & 1 != 0, held: flags & 2 != 0, panics: flags >> 2, ..deferral })
            }
            other => Err(Malformed::Value("a deferral", other.into())),
        }
    }

    fn recipient(&mut self) -> Result<CopyRecipient, Malformed> {
        let flags = self.u8("a recipient")?;
        let notify = match flags & 0x1F {
            0 => Notify::Unsaid,
            1 => Notify::Never,
            on if on & 3 == 2 => Notify::On { success: on & 4 != 0, failure: on & 8 != 0, delay: on & 16 != 0 },
            other => return Err(Malformed::Value("NOTIFY", other.into())),
        };
        if flags >= 1 << 6 {
            return Err(Malformed::Value("NOTIFY", flags.into()));
        }
        let asked = self.address("a recipient")?;
        let address = if flags & 32 != 0 { asked.clone() } else { self.address("a recipient")? };
        let orcpt =
            self.option(|r| Ok(OriginalRecipient { kind: r.text("ORCPT")?.into(), address: r.text("ORCPT")?.into() }))?;
        Ok(CopyRecipient { asked, recipient: Recipient { address, notify, orcpt } })
    }

    fn end(&self) -> Result<(), Malformed> {
        match self.0.len() {
            0 => Ok(()),
            left => Err(Malformed::Long(left)),
        }
    }
}

impl Decoded {
    /// The message with this prefix and content.
    pub fn into_message(self, prefix: Bytes, content: crate::message::Body) -> Message {
        Message {
            id: self.id,
            accepted: self.accepted,
            envelope: self.envelope,
            connector: self.connector,
            message_id: self.message_id,
            prefix,
            organization: self.organization,
            content,
            copies: self.copies,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn s091_no_bytes_make_a_decoder_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300), total in any::<u64>()) {
            let salt = Salt::random();
            let _ = SegmentHead::decode(&bytes);
            let _ = RecordHead::decode(&bytes, salt, 1, 64);
            let _ = decode_settled(&bytes);
            let _ = decode_deferred(&bytes);
            let _ = decode_removed(&bytes);
            let _ = decode_mark(&bytes);
            let _ = decode_message(&bytes, total);
            let _ = decode_message(&bytes, bytes.len() as u64);
            // And with a length at the front that leads further in.
            let mut framed = (bytes.len() as u32).to_le_bytes().to_vec();
            framed.extend_from_slice(&bytes);
            let _ = decode_message(&framed, framed.len() as u64);
        }

        #[test]
        fn lists_are_read_as_they_were_written(
            items in proptest::collection::vec((any::<u64>(), any::<u16>(), any::<u16>(), any::<bool>(), 0i64..4_000_000_000), 0..400)
        ) {
            let settled: Vec<_> = items.iter().map(|&(id, copy, recipient, failed, _)| Settlement {
                id: MessageId(id), copy, recipient, end: if failed { End::Failed } else { End::Delivered },
            }).collect();
            prop_assert_eq!(decode_settled(&encode_settled(&settled)[RECORD_HEAD..]), Ok(settled));
            let deferred: Vec<_> = items.iter().map(|&(id, copy, attempts, warned, second)| Deferral {
                id: MessageId(id), copy, attempts, warned, until: Timestamp::from_second(second).unwrap(), held: attempts & 1 == 1,
                panics: (attempts >> 1 & 3) as u8,
            }).collect();
            prop_assert_eq!(decode_deferred(&encode_deferred(&deferred)[RECORD_HEAD..]), Ok(deferred));
            let ids: Vec<_> = items.iter().map(|item| MessageId(item.0)).collect();
            prop_assert_eq!(decode_removed(&encode_removed(&ids)[RECORD_HEAD..]), Ok(ids));
        }
    }

    #[test]
    fn p4_every_field_of_an_envelope_comes_back_as_it_went() {
        let address = |text: &str| Address::parse(text).unwrap();
        let senders = [
            None,
            Some(address("a@example.com")),
            Some(address("\"a b\"@example.com")),
            Some(address("é@example.com")),
        ];
        let notifies = [
            Notify::Unsaid,
            Notify::Never,
            Notify::On { success: true, failure: false, delay: false },
            Notify::On { success: false, failure: true, delay: true },
        ];
        let orcpts = [
            None,
            Some(OriginalRecipient { kind: "rfc822".into(), address: "x@y".into() }),
            Some(OriginalRecipient { kind: "utf-8".into(), address: "ü, \0 and \r\n".into() }),
        ];
        for number in 0..4 * 4 * 3 * 3 * 8 {
            let flags = number % 8;
            let recipient = CopyRecipient {
                asked: address("r@example.com"),
                recipient: Recipient {
                    address: address(if flags & 1 == 0 { "r@example.com" } else { "other@[192.0.2.1]" }),
                    notify: notifies[number / 8 % 4],
                    orcpt: orcpts[number / 32 % 3].clone(),
                },
            };
            let hop = if flags & 2 == 0 { Hop::SmartHosts } else { Hop::Mx(Domain::parse("mx.example").unwrap()) };
            let message = Message {
                id: MessageId(number as u64),
                accepted: Timestamp::new(number as i64 * 1_000_000, 999_999_999).unwrap(),
                envelope: Envelope {
                    sender: senders[number / 96 % 4].clone(),
                    recipients: Vec::new(),
                    ret: [None, Some(Ret::Full), Some(Ret::Headers)][number / 384 % 3],
                    envid: (flags & 1 == 0).then(|| "id with \r\n in it".into()),
                    body: if flags & 1 == 0 { BodyType::SevenBit } else { BodyType::EightBit },
                    smtputf8: flags & 2 == 0,
                    requiretls: flags & 4 == 0,
                },
                connector: "".into(),
                message_id: (flags & 4 == 0).then(|| "<x@y>".into()),
                prefix: Bytes::from_static(b"Received: x\r\n"),
                organization: [OrganizationHeaders::Cut, OrganizationHeaders::None, OrganizationHeaders::Believed]
                    [number / 8 % 3],
                content: crate::message::Body::from_bytes("body"),
                copies: vec![HopCopy { via: ConnectorName("to".into()), hop, recipients: vec![recipient; number % 3] }],
            };
            let content = if flags & 1 == 0 {
                Content::Inline { len: 4 }
            } else {
                Content::Own { number: 9, len: 1 << 33, crc: 7 }
            };
            let mut bytes = encode_message(&message, &[], &[], content).split_off(RECORD_HEAD);
            if flags & 1 == 0 {
                bytes.extend_from_slice(b"body");
            }
            let total = bytes.len() as u64;
            let decoded = decode_message(&bytes, total).unwrap();
            assert_eq!(decoded.content, content);
            assert_eq!(&bytes[decoded.prefix_at..][..decoded.prefix_len], b"Received: x\r\n");
            assert_eq!((decoded.id, decoded.accepted), (message.id, message.accepted));
            assert_eq!(decoded.envelope, message.envelope);
            assert_eq!(decoded.organization, message.organization);
            assert_eq!((decoded.connector, decoded.message_id), (message.connector, message.message_id));
            assert_eq!(decoded.copies, message.copies);
            for cut in 0..bytes.len() {
                assert!(decode_message(&bytes[..cut], cut as u64).is_err(), "cut at {cut}");
            }
            bytes.push(0);
            assert_eq!(decode_message(&bytes, total + 1).unwrap_err(), Malformed::Long(1));
        }
    }
}
