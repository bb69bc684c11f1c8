//! What travels beside a message: its sender, its recipients and what they asked for.
//!
//! Standards: RFC 5321 (MAIL, RCPT), 1870 (SIZE), 3461 (RET, ENVID, NOTIFY, ORCPT), 6152 (8BITMIME), 6531
//! (SMTPUTF8), 8689 (REQUIRETLS).

use std::fmt;

use super::Address;

/// The spool's number of a message: unique for the life of a spool, and how logs, `Received:` fields and
/// tracking events name it.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct MessageId(pub u64);

impl fmt::Display for MessageId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:012X}", self.0)
    }
}

impl fmt::Debug for MessageId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The envelope of one message as its sender gave it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Envelope {
    /// MAIL FROM; `None` is the null reverse-path `<>`.
    pub sender: Option<Address>,
    /// RCPT TO, in order. An address stands there twice only with different wishes for reports.
    pub recipients: Vec<Recipient>,
    /// What a failure report returns of the message. RFC 3461 section 4.3.
    pub ret: Option<Ret>,
    /// The sender's own name for this transaction, decoded from xtext. RFC 3461 section 4.4.
    pub envid: Option<Box<str>>,
    /// What BODY declared.
    pub body: BodyType,
    /// SMTPUTF8 was given: addresses and header fields may be in UTF-8.
    pub smtputf8: bool,
    /// REQUIRETLS was given: every further hop must be proved. RFC 8689.
    pub requiretls: bool,
}

/// One recipient as RCPT named it, or as routing made it of one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Recipient {
    /// Where to.
    pub address: Address,
    /// When the sender wants to be told. RFC 3461 section 4.1.
    pub notify: Notify,
    /// The address the sender first gave, if it said so. RFC 3461 section 4.2.
    pub orcpt: Option<OriginalRecipient>,
}

/// The value of NOTIFY.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Notify {
    /// NOTIFY was not given: failure, and delay where the relay warns.
    #[default]
    Unsaid,
    /// NOTIFY=NEVER.
    Never,
    /// NOTIFY lists at least one of these.
    On {
        /// Delivered, or relayed to where no report can come from.
        success: bool,
        /// Could not be delivered.
        failure: bool,
        /// Is late.
        delay: bool,
    },
}

impl Notify {
    /// Is a failure to be reported?
    pub fn failure(self) -> bool {
        matches!(self, Self::Unsaid | Self::On { failure: true, .. })
    }

    /// Is a delay to be reported?
    pub fn delay(self) -> bool {
        matches!(self, Self::Unsaid | Self::On { delay: true, .. })
    }

    /// Is a success to be reported?
    pub fn success(self) -> bool {
        matches!(self, Self::On { success: true, .. })
    }
}

/// The value of ORCPT: address type and decoded address. RFC 3461 section 4.2, RFC 6533 for `utf-8`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OriginalRecipient {
    /// `rfc822`, `utf-8`, …, as given.
    pub kind: Box<str>,
    /// The address, decoded; without control characters.
    pub address: Box<str>,
}

/// The value of RET.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ret {
    /// The whole message.
    Full,
    /// Its header only.
    Headers,
}

/// The value of BODY. BINARYMIME is not offered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum BodyType {
    /// 7BIT, or not given.
    #[default]
    SevenBit,
    /// 8BITMIME.
    EightBit,
}
