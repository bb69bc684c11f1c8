//! Reports to senders: failure, delay, success, as multipart/report with three parts: words for a person, fields
//! for a program, and what came back of the message.
//!
//! A [`Report`] is facts; [`Report::write`] makes an ordinary message from `<>` of them, with no I/O. What strangers
//! said (replies, header fields) is escaped or cut before it stands in a field, and every line ends in CRLF and fits
//! in 998 octets, whatever the original was like.
//!
//! A report to a sender whose address is ASCII is ASCII too where the original was internationalized: the way back may
//! offer neither SMTPUTF8 nor 8BITMIME, and a report that cannot leave is lost. (8-bit content of an ordinary original is
//! returned as it came; `deliver` converts it where it must.)
//!
//! Not here: when a report is due (`outcome::judge`), and where it goes (it is routed as any message).
//!
//! Standards: RFC 3461 (who is told what), 3462/6522 (multipart/report), 3464 (the fields), 3834 (Auto-Submitted),
//! 6533 (UTF-8 addresses), 8689 section 5 (REQUIRETLS).

use std::fmt::{self, Write as _};

use jiff::Timestamp;
use memchr::memmem;

use super::Setback;
use crate::message::downgrade::quoted_printable;
use crate::message::received::date;
use crate::message::{Address, BodyType, Domain, Envelope, MessageId, Notify, Recipient, Ret, firewall, header};
use crate::smtp::{Reply, Status};

/// The longest original that is returned whole, in bytes (C190).
pub const FULL_LIMIT: u64 = 1 << 20;

/// The longest that is returned whole though nobody asked for it by RET: Postfix's `bounce_size_limit`.
pub const UNASKED_LIMIT: u64 = 50_000;

/// The longest diagnostic, in bytes (C194).
const DIAGNOSTIC_LIMIT: usize = 1024;

/// The most that is returned of a header block: some mail programs show all of it.
const RETURNED_HEADER_LIMIT: usize = 64 << 10;

/// RFC 5322 section 2.1.1: what a line should not exceed, without CRLF.
const LINE: usize = 76;

/// And what it must not.
const HARD_LINE: usize = 998;

/// What is reported.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// It could not be delivered and will not be.
    Failure,
    /// It has not been delivered yet.
    Delay {
        /// Until when it is tried.
        retry_until: Timestamp,
    },
    /// It went to a host that reports nothing itself (C187).
    Relayed,
}

/// What became of one recipient.
#[derive(Debug, Clone, Copy)]
pub enum End<'a> {
    /// This came of the last attempt. For failures and delays.
    Setback(&'a Setback),
    /// This host took it, with this reply. For relayed ones.
    Accepted {
        /// Which host, as in [`Setback`].
        host: &'a str,
        /// What it said.
        reply: &'a Reply,
    },
}

/// One recipient of a report.
#[derive(Debug, Clone, Copy)]
pub struct Told<'a> {
    /// The address the message's sender named.
    pub asked: &'a Address,
    /// The recipient as its next hop was told, with NOTIFY and ORCPT.
    pub recipient: &'a Recipient,
    /// What became of it.
    pub end: End<'a>,
    /// When it was last tried.
    pub last_attempt: Timestamp,
}

/// The facts of one report: everything that one attempt has to say to one sender (C191).
#[derive(Debug, Clone)]
pub struct Report<'a> {
    /// What is reported.
    pub kind: Kind,
    /// The relay's name: Reporting-MTA.
    pub hostname: &'a Domain,
    /// Whom the report comes from, and whom to ask.
    pub postmaster: &'a Address,
    /// The report's own number.
    pub id: MessageId,
    /// Now.
    pub now: Timestamp,
    /// The original's number.
    pub original_id: MessageId,
    /// The original's envelope: sender, RET, ENVID, SMTPUTF8, REQUIRETLS.
    pub original: &'a Envelope,
    /// When the original came in.
    pub arrived: Timestamp,
    /// The original's length in bytes.
    pub size: u64,
    /// The recipients; those whose NOTIFY does not want such a report are left out.
    pub recipients: Vec<Told<'a>>,
    /// The original's first bytes, its header block among them as far as it is known.
    pub head: &'a [u8],
    /// The whole original, header and all, where [`Report::wants_whole`].
    pub whole: Option<&'a [u8]>,
}

impl Report<'_> {
    /// Should the caller read the whole original for [`Report::whole`]? RET asked for it, or said nothing and it is
    /// small. Only failures return content: RFC 3461 section 4.3. REQUIRETLS returns none: RFC 8689 section 5.
    pub fn wants_whole(kind: Kind, original: &Envelope, size: u64) -> bool {
        let limit = match original.ret {
            Some(Ret::Full) => FULL_LIMIT,
            Some(Ret::Headers) => return false,
            None => UNASKED_LIMIT,
        };
        kind == Kind::Failure && !original.requiretls && size <= limit
    }

    /// The report: its envelope, from `<>` to the original's sender, and its content. `None`: nobody is to be told,
    /// since the original came from `<>` (C192) or no recipient's NOTIFY asks for it (C188).
    pub fn write(&self) -> Option<(Envelope, Vec<u8>)> {
        let sender = self.original.sender.as_ref()?;
        let told: Vec<_> = self.recipients.iter().filter(|told| self.is_wanted(told.recipient.notify)).collect();
        if told.is_empty() {
            return None;
        }
        let returned = self.returned();
        let form = match (self.is_utf8(sender, &told, &returned), sender.is_ascii()) {
            (false, _) => Form::Plain,
            (true, true) => Form::Encoded,
            (true, false) => Form::Utf8,
        };
        let utf8 = form != Form::Plain;
        let words = Part::text(form, self.words(&told, utf8).into_bytes());
        let fields = Part::as_is(self.fields(&told, form).into_bytes());
        let (whole, description) = (returned.whole, returned.description);
        let returned = Part::text(form, returned.bytes);
        let parts = [&words, &fields, &returned];
        let boundary = self.boundary(&parts.map(|part| &part.bytes[..]));

        let mut out = Vec::with_capacity(4096 + parts.iter().map(|part| part.bytes.len()).sum::<usize>());
        let eight_bit = parts.iter().any(|part| part.encoding == "8bit");
        out.extend_from_slice(self.header(sender, &boundary, eight_bit).as_bytes());
        out.extend_from_slice(b"\r\nThis is a report in MIME format.\r\n");
        let words_type = if utf8 { "text/plain; charset=utf-8" } else { "text/plain; charset=us-ascii" };
        words.put(&mut out, &boundary, "Notification", words_type);
        let status_type = if form == Form::Utf8 { "message/global-delivery-status" } else { "message/delivery-status" };
        fields.put(&mut out, &boundary, "Delivery report", status_type);
        let returned_type = match (whole, utf8) {
            (true, false) => "message/rfc822",
            (true, true) => "message/global",
            (false, false) => "text/rfc822-headers",
            (false, true) => "message/global-headers",
        };
        returned.put(&mut out, &boundary, description, returned_type);
        out.extend_from_slice(format!("\r\n--{boundary}--\r\n").as_bytes());

        let envelope = Envelope {
            sender: None,
            // A report about a report would go in circles: RFC 3461 section 6.1.
            recipients: vec![Recipient { address: sender.clone(), notify: Notify::Never, orcpt: None }],
            ret: None,
            envid: None,
            body: if out.is_ascii() { BodyType::SevenBit } else { BodyType::EightBit },
            smtputf8: form == Form::Utf8,
            // It is redacted instead, so that it arrives: C213.
            requiretls: false,
        };
        Some((envelope, out))
    }

    fn is_wanted(&self, notify: Notify) -> bool {
        match self.kind {
            Kind::Failure => notify.failure(),
            Kind::Delay { .. } => notify.delay(),
            Kind::Relayed => notify.success(),
        }
    }

    /// Has the report something to say in UTF-8? Only if an address in it is not ASCII, or the original's header came in
    /// UTF-8 (C169).
    fn is_utf8(&self, sender: &Address, told: &[&Told<'_>], returned: &Returned) -> bool {
        let orcpt = |told: &Told<'_>| told.recipient.orcpt.as_ref().is_none_or(|orcpt| orcpt.address.is_ascii());
        let addresses = sender.is_ascii()
            && self.postmaster.is_ascii()
            && told.iter().all(|told| told.asked.is_ascii() && told.recipient.address.is_ascii() && orcpt(told));
        !addresses || self.original.smtputf8 && header::facts(&returned.bytes).eight_bit
    }

    fn header(&self, sender: &Address, boundary: &str, eight_bit: bool) -> String {
        let mut text = String::new();
        let subject = match self.kind {
            Kind::Failure => "Undelivered: your message could not be delivered",
            Kind::Delay { .. } => "Delayed: your message is still on its way",
            Kind::Relayed => "Relayed: your message was passed on",
        };
        let now = date(self.now);
        // The time makes it unique even if a spool is made anew and counts from the start.
        let message_id = format!("{}.{:x}@{}", self.id, self.now.as_microsecond(), self.hostname);
        let postmaster = match self.postmaster {
            // The way to an ASCII sender may not know SMTPUTF8, and this address is read everywhere: RFC 5321 section 4.5.1.
            address if sender.is_ascii() && !address.is_ascii() => format!("postmaster@{}", address.domain()),
            address => address.to_string(),
        };
        let from = one_or_two_lines("From: Mail Delivery System", &format!("<{postmaster}>"));
        let named = one_or_two_lines("Message-ID:", &format!("<{message_id}>"));
        // Writing to a String cannot fail.
        let _ = write!(text, "Date: {now}\r\n{from}To: <{sender}>\r\nSubject: {subject}\r\n{named}");
        // The mail program then shows the report beside the message. RFC 5322 section 3.6.4.
        if let Some(original) = header::facts(self.head).message_id.filter(|id| id.is_ascii() && id.len() < 900) {
            text.push_str(&one_or_two_lines("In-Reply-To:", &original));
            text.push_str(&one_or_two_lines("References:", &original));
        }
        let _ = write!(
            text,
            "Auto-Submitted: auto-replied\r\nMIME-Version: 1.0\r\n\
             Content-Type: multipart/report; report-type=delivery-status;\r\n boundary=\"{boundary}\"\r\n\
             Content-Transfer-Encoding: {}\r\n",
            if eight_bit { "8bit" } else { "7bit" }
        );
        text
    }

    /// The first part, for the sender and for the administrator whom the sender asks.
    fn words(&self, told: &[&Told<'_>], utf8: bool) -> String {
        let mut words = Words::new(utf8);
        words.paragraph("", &format!("This is the mail relay {}.", self.hostname));
        let (who, whom) = if told.len() == 1 { ("this recipient", "it") } else { ("these recipients", "them") };
        words.paragraph(
            "",
            &match self.kind {
                Kind::Failure => {
                    format!("Your message could not be delivered to {who}, and will not be tried again for {whom}:")
                }
                Kind::Delay { retry_until } => format!(
                    "Your message could not be delivered to {who} yet. It is being tried again until {}. You need not \
                     send it again; if it fails in the end you will be told.",
                    date(retry_until)
                ),
                Kind::Relayed => format!(
                    "Your message was passed on for {who} to a mail server that does not report deliveries. There \
                     may be no further news, even if it fails there:"
                ),
            },
        );
        for told in told {
            words.paragraph("  ", &format!("<{}>", told.asked));
            if told.asked != &told.recipient.address {
                words.item("Sent on as:", &format!("<{}>", told.recipient.address));
            }
            match told.end {
                End::Setback(setback) => {
                    words.item("Expected:", &format!("{}.", setback.expected()));
                    words.item("What came:", &capped(&setback.came(), DIAGNOSTIC_LIMIT, utf8));
                    // Not cut short because the other side said much.
                    if let Some(here) = setback.beside() {
                        words.item("While:", &capped(here, DIAGNOSTIC_LIMIT, utf8));
                    }
                    if let Some(command) = setback.see() {
                        words.verbatim("See:", &capped(command, DIAGNOSTIC_LIMIT, utf8));
                    }
                    words.item("Status:", &setback.status().to_string());
                    words.item("What to do:", setback.advice());
                }
                End::Accepted { host, reply } => {
                    words.item("Passed on to:", &capped(host, DIAGNOSTIC_LIMIT, utf8));
                    words.item("It answered:", &capped(&reply.to_string(), DIAGNOSTIC_LIMIT, utf8));
                }
            }
        }
        words.paragraph(
            "",
            &format!(
                "The message came in on {} and has the number {} in the log of {}. If you need help, forward this \
                 whole report to <{}>.",
                date(self.arrived),
                self.original_id,
                self.hostname,
                self.postmaster
            ),
        );
        if self.original.requiretls {
            words.paragraph(
                "",
                "The message demanded TLS all the way (REQUIRETLS); this report does not, so it shows little of it.",
            );
        } else if self.kind == Kind::Failure && self.original.ret == Some(Ret::Full) && self.whole.is_none() {
            let note = format!("The message has {} bytes. Only its header is returned.", self.size);
            words.paragraph("", &note);
        }
        words.text
    }

    /// The second part. RFC 3464 sections 2.2 and 2.3.
    fn fields(&self, told: &[&Told<'_>], form: Form) -> String {
        let mut text = String::new();
        let utf8 = form == Form::Utf8;
        // The field is not xtext although the parameter is: RFC 3461 section 6.3 has the MTA decode it.
        if let Some(envid) = &self.original.envid {
            field(&mut text, "Original-Envelope-Id", &capped(envid, DIAGNOSTIC_LIMIT, utf8));
        }
        field(&mut text, "Reporting-MTA", &format!("dns; {}", self.hostname));
        field(&mut text, "X-Causeway-Message", &self.original_id.to_string());
        field(&mut text, "Arrival-Date", &date(self.arrived));
        for told in told {
            text.push_str("\r\n");
            let recipient = told.recipient;
            if let Some(orcpt) = recipient.orcpt.as_ref().filter(|orcpt| !utf8 && !orcpt.address.is_ascii()) {
                field(&mut text, "Original-Recipient", &format!("utf-8;{}", address_xtext(&orcpt.address)));
            } else if let Some(orcpt) = &recipient.orcpt {
                let kind = capped(&orcpt.kind, 64, false);
                let address = capped(&orcpt.address, DIAGNOSTIC_LIMIT, utf8);
                field(&mut text, "Original-Recipient", &format!("{kind};{address}"));
            } else if told.asked != &recipient.address {
                field(&mut text, "Original-Recipient", &typed(told.asked, utf8));
            }
            field(&mut text, "Final-Recipient", &typed(&recipient.address, utf8));
            let (action, status) = match (self.kind, told.end) {
                (Kind::Failure, End::Setback(setback)) => ("failed", setback.status()),
                // What is tried again is temporary whatever was said: an absent domain is asked for twice.
                (Kind::Delay { .. }, End::Setback(setback)) => {
                    let Status(_, subject, detail) = setback.status();
                    ("delayed", Status(4, subject, detail))
                }
                (Kind::Relayed, End::Accepted { reply, .. }) => ("relayed", reply.status_or_class()),
                (Kind::Failure, End::Accepted { .. }) => ("failed", Status(5, 0, 0)),
                (Kind::Delay { .. }, End::Accepted { .. }) => ("delayed", Status(4, 0, 0)),
                (Kind::Relayed, End::Setback(_)) => ("relayed", Status(2, 0, 0)),
            };
            field(&mut text, "Action", action);
            field(&mut text, "Status", &status.to_string());
            let (remote, diagnostic) = match told.end {
                End::Setback(setback) => (setback.remote_mta(), setback.diagnostic()),
                End::Accepted { host, reply } => (host.split(' ').next(), format!("smtp; {reply}")),
            };
            if let Some(remote) = remote {
                field(&mut text, "Remote-MTA", &format!("dns; {}", capped(remote, 255, false)));
            }
            field(&mut text, "Diagnostic-Code", &capped(&diagnostic, DIAGNOSTIC_LIMIT, utf8));
            field(&mut text, "Last-Attempt-Date", &date(told.last_attempt));
            if let Kind::Delay { retry_until } = self.kind {
                field(&mut text, "Will-Retry-Until", &date(retry_until));
            }
        }
        text
    }

    /// The third part: the whole, or the header, without what the organization keeps to itself.
    fn returned(&self) -> Returned {
        let whole = self.whole.filter(|whole| {
            Self::wants_whole(self.kind, self.original, self.size.max(whole.len() as u64)) && can_travel(whole)
        });
        if let Some(whole) = whole {
            let bytes = firewall::cut(whole).into_owned();
            return Returned { whole: true, description: "Undelivered message", bytes };
        }
        let mut bytes = Vec::new();
        for field in header::fields(self.head) {
            let withheld = self.original.requiretls && !SHOWN_IN_SPITE_OF_REQUIRETLS.iter().any(|name| field.is(name));
            // A line without a name is no header field; it might be the body of a message without a header.
            if firewall::is_organization(&field) || withheld || field.name().is_empty() {
                continue;
            }
            if bytes.len() + field.raw.len() > RETURNED_HEADER_LIMIT {
                break;
            }
            push_tidy(&mut bytes, field.raw);
        }
        Returned { whole: false, description: "Header of the message", bytes }
    }

    /// A boundary that stands in none of these. The time in it was not known when the message was written, so the
    /// loop is there for certainty only.
    fn boundary(&self, parts: &[&[u8]]) -> String {
        let mut boundary = format!("=_{}.{:x}", self.id, self.now.as_nanosecond());
        while parts.iter().any(|part| memmem::find(part, boundary.as_bytes()).is_some()) {
            boundary.push('_');
        }
        boundary
    }
}

/// What is shown of a message with REQUIRETLS: enough for its sender to know which one it was.
const SHOWN_IN_SPITE_OF_REQUIRETLS: [&str; 4] = ["Date", "From", "Message-ID", "Received"];

/// The third part.
struct Returned {
    whole: bool,
    description: &'static str,
    bytes: Vec<u8>,
}

/// Can it be sent again as it is? No bare CR or LF, no NUL, no line that is too long for a report.
fn can_travel(content: &[u8]) -> bool {
    let mut rest = content;
    while !rest.is_empty() {
        let end = memchr::memchr(b'\n', rest).unwrap_or(rest.len());
        let line = &rest[..end];
        let line = match line.split_last() {
            // The last line may lack its CRLF, but not half of it.
            _ if end == rest.len() => line,
            Some((b'\r', line)) => line,
            _ => return false,
        };
        if line.len() > HARD_LINE || memchr::memchr2(b'\r', 0, line).is_some() {
            return false;
        }
        rest = rest.get(end + 1..).unwrap_or_default();
    }
    true
}

/// Copies a header field with CRLF at every line end, without CR, LF and NUL elsewhere, and cut into lines that fit.
fn push_tidy(out: &mut Vec<u8>, field: &[u8]) {
    // A field whose last line lacks its end gets one.
    for line in field.strip_suffix(b"\n").unwrap_or(field).split(|&byte| byte == b'\n') {
        let line: Vec<u8> = line.iter().copied().filter(|byte| !matches!(byte, b'\r' | 0)).collect();
        for (index, chunk) in line.chunks(HARD_LINE - 100).enumerate() {
            if index > 0 {
                out.push(b' ');
            }
            out.extend_from_slice(chunk);
            out.extend_from_slice(b"\r\n");
        }
    }
}

/// How a report says what is not ASCII.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Form {
    /// There is nothing of the kind. 8-bit content of the original is returned as it came.
    Plain,
    /// In encodings that every hop passes: RFC 6533 allows them for its types, and has a form of addresses in ASCII.
    Encoded,
    /// As it is, with SMTPUTF8: the sender's own address demands that.
    Utf8,
}

/// The content of one part, as it travels.
struct Part {
    bytes: Vec<u8>,
    encoding: &'static str,
}

impl Part {
    fn as_is(bytes: Vec<u8>) -> Self {
        let encoding = if bytes.is_ascii() { "7bit" } else { "8bit" };
        Self { bytes, encoding }
    }

    fn text(form: Form, bytes: Vec<u8>) -> Self {
        match form {
            Form::Encoded if !bytes.is_ascii() => {
                Self { bytes: quoted_printable(&bytes), encoding: "quoted-printable" }
            }
            _ => Self::as_is(bytes),
        }
    }

    fn put(&self, out: &mut Vec<u8>, boundary: &str, description: &str, content_type: &str) {
        let encoding = self.encoding;
        out.extend_from_slice(
            format!(
                "\r\n--{boundary}\r\nContent-Description: {description}\r\nContent-Type: {content_type}\r\n\
                 Content-Transfer-Encoding: {encoding}\r\n\r\n"
            )
            .as_bytes(),
        );
        out.extend_from_slice(&self.bytes);
    }
}

/// Type and address: `rfc822; anna@contoso.com`, or `utf-8; …` for what RFC 6533 section 3 is needed for, there in UTF-8
/// or in ASCII.
fn typed(address: &Address, utf8: bool) -> String {
    match address.is_ascii() {
        true => format!("rfc822; {address}"),
        false if utf8 => format!("utf-8; {address}"),
        false => format!("utf-8; {}", address_xtext(&address.to_string())),
    }
}

/// `utf-8-addr-xtext` of RFC 6533 section 3: ASCII, with `\x{…}` for what is none, and for what xtext would have to encode.
fn address_xtext(address: &str) -> String {
    let mut text = String::with_capacity(address.len() + 16);
    for c in address.chars() {
        match c {
            '+' | '=' | '\\' => drop(write!(text, "\\x{{{:X}}}", u32::from(c))),
            '!'..='~' => text.push(c),
            // Writing to a String cannot fail.
            _ => drop(write!(text, "\\x{{{:X}}}", u32::from(c))),
        }
    }
    text
}

/// A field whose last word cannot be folded: on a line of its own only if it does not fit on one. RFC 5322 section 2.1.1.
fn one_or_two_lines(start: &str, word: &str) -> String {
    let fold = if start.len() + 1 + word.len() > LINE { "\r\n" } else { "" };
    format!("{start}{fold} {word}\r\n")
}

/// Appends a field, folded at blanks; a word that is too long for any line is cut.
fn field(text: &mut String, name: &str, value: &str) {
    text.push_str(name);
    text.push(':');
    let mut column = name.len() + 1;
    for word in value.split(' ').filter(|word| !word.is_empty()) {
        if column + 1 + word.len() > LINE && column > 1 {
            text.push_str("\r\n");
            column = 0;
        }
        text.push(' ');
        column += 1;
        for c in word.chars() {
            if column + c.len_utf8() > HARD_LINE - 2 {
                text.push_str("\r\n ");
                column = 1;
            }
            text.push(c);
            column += c.len_utf8();
        }
    }
    text.push_str("\r\n");
}

/// A stranger's text on one line: what is not printable is written as `\u{…}`, and it is cut at `limit` bytes.
fn capped(text: &str, limit: usize, utf8: bool) -> String {
    let mut out = String::with_capacity(text.len().min(limit));
    for c in text.chars() {
        let before = out.len();
        match c {
            ' '..='~' => out.push(c),
            '\t' | '\n' => out.push(' '),
            _ if utf8 && c.is_alphanumeric() => out.push(c),
            // Writing to a String cannot fail.
            _ => drop(write!(out, "\\u{{{:x}}}", u32::from(c))),
        }
        if out.len() > limit - " [cut]".len() {
            out.truncate(before);
            out.push_str(" [cut]");
            break;
        }
    }
    out
}

/// Paragraphs in lines of a terminal's width.
struct Words {
    text: String,
    utf8: bool,
}

impl Words {
    fn new(utf8: bool) -> Self {
        Self { text: String::new(), utf8 }
    }

    /// A paragraph of its own, each line behind `indent`.
    fn paragraph(&mut self, indent: &str, words: &str) {
        if !self.text.is_empty() {
            self.text.push_str("\r\n");
        }
        self.wrap(indent, indent, words);
    }

    /// `What came:   …`, in two columns.
    fn item(&mut self, label: &str, words: &str) {
        self.wrap(&format!("    {label:<13} "), &" ".repeat(18), words);
    }

    /// An item that is to be copied, so it stays on one line, if a line can be that long.
    fn verbatim(&mut self, label: &str, text: &str) {
        match text.len() > HARD_LINE - 100 {
            true => self.item(label, text),
            false => self.line(&format!("    {label:<13} {text}")),
        }
    }

    fn wrap(&mut self, first: &str, others: &str, words: &str) {
        let mut line = String::from(first);
        let mut empty = true;
        for word in words.split_ascii_whitespace() {
            let mut word = word;
            if !empty && line.chars().count() + 1 + word.chars().count() > LINE {
                self.line(&line);
                line = String::from(others);
                empty = true;
            }
            if !empty {
                line.push(' ');
            }
            // A word longer than a line may be is cut; one longer than a line should be stays whole.
            while word.len() > HARD_LINE - 100 {
                let (start, rest) = word.split_at(word.floor_char_boundary(HARD_LINE - 100));
                self.line(&format!("{line}{start}"));
                line = String::from(others);
                word = rest;
            }
            line.push_str(word);
            empty = false;
        }
        self.line(&line);
    }

    fn line(&mut self, line: &str) {
        debug_assert!(self.utf8 || line.is_ascii(), "a report in ASCII is made of ASCII: {line}");
        self.text.push_str(line.trim_end());
        self.text.push_str("\r\n");
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Failure => "failure",
            Self::Delay { .. } => "delay",
            Self::Relayed => "relayed",
        })
    }
}

#[cfg(test)]
mod tests {
    use mail_parser::{Message, MessageParser, MimeHeaders, PartType};
    use proptest::prelude::*;

    use super::*;
    use crate::message::OriginalRecipient;

    const HEAD: &[u8] = b"Received: from a by b; now\r\nDate: Tue, 1 Jul 2025 10:00:00 +0000\r\nFrom: anna@contoso.com\r\n\
        To: bob@example.net\r\nX-MS-Exchange-Organization-SCL: -1\r\n folded\r\nSubject: secret\r\nMessage-ID: <orig@contoso.com>\r\n\r\n";

    fn address(text: &str) -> Address {
        Address::parse(text).unwrap()
    }

    fn at(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    fn recipient(text: &str, notify: Notify) -> Recipient {
        Recipient { address: address(text), notify, orcpt: None }
    }

    fn envelope(sender: Option<&str>) -> Envelope {
        Envelope {
            sender: sender.map(address),
            recipients: Vec::new(),
            ret: None,
            envid: None,
            body: BodyType::SevenBit,
            smtputf8: false,
            requiretls: false,
        }
    }

    fn refused(text: &str) -> Setback {
        Setback::Answered {
            host: "mx1.example.net [192.0.2.1]:25".into(),
            command: "RCPT",
            reply: Reply { code: 550, status: Some(Status(5, 1, 1)), text: text.into() },
        }
    }

    /// What a report is made of, owned.
    struct World {
        kind: Kind,
        hostname: Domain,
        postmaster: Address,
        original: Envelope,
        asked: Address,
        recipients: Vec<Recipient>,
        setback: Setback,
        head: Vec<u8>,
        whole: Option<Vec<u8>>,
        size: u64,
    }

    impl World {
        fn new() -> Self {
            Self {
                kind: Kind::Failure,
                hostname: Domain::parse("mail.contoso.com").unwrap(),
                postmaster: address("postmaster@contoso.com"),
                original: envelope(Some("anna@contoso.com")),
                asked: address("bob@example.net"),
                recipients: vec![recipient("bob@example.net", Notify::Unsaid)],
                setback: refused("no such user"),
                head: HEAD.to_vec(),
                whole: None,
                size: 5000,
            }
        }

        fn write(&self) -> Option<(Envelope, Vec<u8>)> {
            let end = End::Setback(&self.setback);
            let last_attempt = at("2025-07-01T12:00:00Z");
            Report {
                kind: self.kind,
                hostname: &self.hostname,
                postmaster: &self.postmaster,
                id: MessageId(43),
                now: at("2025-07-01T12:00:01Z"),
                original_id: MessageId(42),
                original: &self.original,
                arrived: at("2025-07-01T11:00:00Z"),
                size: self.size,
                recipients: self
                    .recipients
                    .iter()
                    .map(|recipient| Told { asked: &self.asked, recipient, end, last_attempt })
                    .collect(),
                head: &self.head,
                whole: self.whole.as_deref(),
            }
            .write()
        }
    }

    fn text<'x>(message: &'x Message<'_>, index: u32) -> &'x str {
        match &message.parts[index as usize].body {
            PartType::Text(text) | PartType::Html(text) => text,
            PartType::Binary(bytes) | PartType::InlineBinary(bytes) => str::from_utf8(bytes).unwrap(),
            other => panic!("part {index} is {other:?}"),
        }
    }

    /// Parses it, and checks what holds for all of them: three parts, one of each field, lines that fit.
    fn check(bytes: &[u8]) -> Message<'_> {
        for line in bytes.strip_suffix(b"\r\n").unwrap().split(|&byte| byte == b'\n') {
            let line = line.strip_suffix(b"\r").unwrap_or(line);
            assert!(line.len() <= HARD_LINE, "{} octets: {:.60}", line.len(), String::from_utf8_lossy(line));
            assert!(!line.contains(&b'\r') && !line.contains(&0));
        }
        assert_eq!(memchr::memchr_iter(b'\n', bytes).count(), memmem::find_iter(bytes, b"\r\n").count(), "a bare LF");
        for name in ["Message-ID", "Date", "From", "To", "Subject", "Auto-Submitted", "MIME-Version"] {
            assert_eq!(header::fields(bytes).filter(|field| field.is(name)).count(), 1, "{name}");
        }
        let message = MessageParser::default().parse(bytes).unwrap();
        let content_type = message.content_type().unwrap();
        assert_eq!((content_type.ctype(), content_type.subtype()), ("multipart", Some("report")));
        assert_eq!(content_type.attribute("report-type"), Some("delivery-status"));
        assert_eq!(message.parts[0].sub_parts().map(<[u32]>::len), Some(3));
        assert!(message.date().is_some() && message.message_id().is_some());
        message
    }

    #[test]
    fn a_field_is_folded_only_where_it_has_to_be() {
        for (word, expected) in [
            ("<1@contoso.com>".to_owned(), "Message-ID: <1@contoso.com>\r\n".to_owned()),
            (format!("<{}@b>", "a".repeat(200)), format!("Message-ID:\r\n <{}@b>\r\n", "a".repeat(200))),
        ] {
            assert_eq!(one_or_two_lines("Message-ID:", &word), expected);
        }
    }

    fn type_of(message: &Message<'_>, index: usize) -> String {
        let content_type = message.parts[index].content_type().unwrap();
        format!("{}/{}", content_type.ctype(), content_type.subtype().unwrap())
    }

    /// C193, and what a person finds in it.
    #[test]
    fn c193_a_failure_report_has_all_its_parts() {
        let mut world = World::new();
        world.original.envid = Some("QQ+314 159".into());
        world.recipients[0].orcpt =
            Some(OriginalRecipient { kind: "rfc822".into(), address: "bob+x@example.net".into() });
        let (envelope, bytes) = world.write().unwrap();
        assert_eq!((envelope.sender, envelope.smtputf8, envelope.body), (None, false, BodyType::SevenBit));
        assert_eq!(envelope.recipients, [recipient("anna@contoso.com", Notify::Never)]);
        let message = check(&bytes);
        assert_eq!(message.from().unwrap().first().unwrap().address(), Some("postmaster@contoso.com"));
        assert_eq!(message.to().unwrap().first().unwrap().address(), Some("anna@contoso.com"));
        assert_eq!(message.header_raw("Auto-Submitted").map(str::trim), Some("auto-replied"));
        assert_eq!(message.in_reply_to().as_text(), Some("orig@contoso.com"));
        assert_eq!(
            [1, 2, 3].map(|index| type_of(&message, index)),
            ["text/plain", "message/delivery-status", "text/rfc822-headers"]
        );
        let words = text(&message, 1).split_ascii_whitespace().collect::<Vec<_>>().join(" ");
        for part in [
            "mail.contoso.com",
            "<bob@example.net>",
            "What came:",
            "550 5.1.1 no such user",
            "spelled correctly",
            "00000000002A",
        ] {
            assert!(words.contains(part), "{part:?} in {words}");
        }
        assert_eq!(
            text(&message, 2).replace("\r\n", "\n").trim_end(),
            "Original-Envelope-Id: QQ+314 159\n\
             Reporting-MTA: dns; mail.contoso.com\n\
             X-Causeway-Message: 00000000002A\n\
             Arrival-Date: Tue, 1 Jul 2025 11:00:00 +0000\n\
             \n\
             Original-Recipient: rfc822;bob+x@example.net\n\
             Final-Recipient: rfc822; bob@example.net\n\
             Action: failed\n\
             Status: 5.1.1\n\
             Remote-MTA: dns; mx1.example.net\n\
             Diagnostic-Code: smtp; 550 5.1.1 no such user\n\
             Last-Attempt-Date: Tue, 1 Jul 2025 12:00:00 +0000"
        );
        let returned = text(&message, 3);
        assert!(returned.contains("Subject: secret\r\nMessage-ID: <orig@contoso.com>\r\n"), "{returned}");
        assert!(!returned.contains("Organization") && !returned.contains("folded"), "{returned}");
    }

    #[test]
    fn delays_say_until_when_and_successes_who_took_it() {
        let mut world = World::new();
        world.kind = Kind::Delay { retry_until: at("2025-07-03T11:00:00Z") };
        world.setback = Setback::NoDomain { domain: Domain::parse("example.net").unwrap() };
        let (_, bytes) = world.write().unwrap();
        let message = check(&bytes);
        let fields = text(&message, 2);
        for line in ["Action: delayed\r\n", "Status: 4.1.2\r\n", "Will-Retry-Until: Thu, 3 Jul 2025 11:00:00 +0000\r\n"]
        {
            assert!(fields.contains(line), "{line} in {fields}");
        }
        assert!(!fields.contains("Remote-MTA"), "nobody said anything");

        let (hostname, postmaster) = (world.hostname.clone(), world.postmaster.clone());
        let reply = Reply { code: 250, status: Some(Status(2, 1, 5)), text: "fine".into() };
        let wanted = recipient("bob@example.net", Notify::On { success: true, failure: false, delay: false });
        let (_, bytes) = Report {
            kind: Kind::Relayed,
            hostname: &hostname,
            postmaster: &postmaster,
            id: MessageId(1),
            now: at("2025-07-01T12:00:01Z"),
            original_id: MessageId(2),
            original: &world.original,
            arrived: at("2025-07-01T11:00:00Z"),
            size: 10,
            recipients: vec![Told {
                asked: &world.asked,
                recipient: &wanted,
                end: End::Accepted { host: "mx9.example.net [192.0.2.9]:25", reply: &reply },
                last_attempt: at("2025-07-01T12:00:00Z"),
            }],
            head: HEAD,
            whole: Some(b"A: b\r\n\r\nwhole"),
        }
        .write()
        .unwrap();
        let message = check(&bytes);
        let fields = text(&message, 2);
        for line in [
            "Action: relayed\r\n",
            "Status: 2.1.5\r\n",
            "Remote-MTA: dns; mx9.example.net\r\n",
            "Diagnostic-Code: smtp; 250 2.1.5 fine\r\n",
        ] {
            assert!(fields.contains(line), "{line} in {fields}");
        }
        assert_eq!(type_of(&message, 3), "text/rfc822-headers", "RET is for failures: RFC 3461 section 4.3");
    }

    /// C188, C192.
    #[test]
    fn c188_only_those_who_want_it_are_told() {
        let on = |success, failure, delay| Notify::On { success, failure, delay };
        let delay = Kind::Delay { retry_until: at("2025-07-03T11:00:00Z") };
        for (kind, notify, expected) in [
            (Kind::Failure, Notify::Unsaid, true),
            (Kind::Failure, on(false, true, false), true),
            (Kind::Failure, Notify::Never, false),
            (Kind::Failure, on(true, false, false), false),
            (Kind::Failure, on(false, false, true), false),
            (delay, Notify::Unsaid, true),
            (delay, on(false, true, false), false),
            (delay, on(false, false, true), true),
            (Kind::Relayed, Notify::Unsaid, false),
            (Kind::Relayed, on(true, false, false), true),
            (Kind::Relayed, Notify::Never, false),
        ] {
            let mut world = World::new();
            (world.kind, world.recipients[0].notify) = (kind, notify);
            assert_eq!(world.write().is_some(), expected, "{kind} {notify:?}");
            world.original.sender = None;
            assert!(world.write().is_none(), "C192: {kind} {notify:?}");
        }
    }

    /// C191, C196: one report for all who failed, and only for them.
    #[test]
    fn c191_one_report_lists_all() {
        let mut world = World::new();
        world.recipients = vec![
            recipient("bob@example.net", Notify::Unsaid),
            recipient("eve@example.net", Notify::Never),
            recipient("kim@example.net", Notify::Unsaid),
        ];
        let (_, bytes) = world.write().unwrap();
        let message = check(&bytes);
        let found: Vec<_> =
            text(&message, 2).lines().filter_map(|line| line.strip_prefix("Final-Recipient: rfc822; ")).collect();
        assert_eq!(found, ["bob@example.net", "kim@example.net"]);
        // C186: the hybrid routing address is ours, the sender knows the one that was asked for.
        assert!(
            text(&message, 2)
                .contains("Original-Recipient: rfc822; bob@example.net\r\nFinal-Recipient: rfc822; kim@example.net")
        );
    }

    /// C190.
    #[test]
    fn c190_what_is_returned_follows_ret_and_size() {
        const MIB: u64 = 1 << 20;
        for (ret, size, expected, note) in [
            (Some(Ret::Headers), 100, "text/rfc822-headers", false),
            (Some(Ret::Full), MIB, "message/rfc822", false),
            (Some(Ret::Full), MIB + 1, "text/rfc822-headers", true),
            (None, UNASKED_LIMIT, "message/rfc822", false),
            (None, UNASKED_LIMIT + 1, "text/rfc822-headers", false),
        ] {
            let mut world = World::new();
            (world.original.ret, world.size) = (ret, size);
            let wants = Report::wants_whole(Kind::Failure, &world.original, size);
            assert_eq!(wants, expected == "message/rfc822", "{ret:?} {size}");
            world.whole = wants.then(|| [HEAD, b"The body.\r\n--x\r\n"].concat());
            let (_, bytes) = world.write().unwrap();
            let message = check(&bytes);
            assert_eq!(type_of(&message, 3), expected, "{ret:?} {size}");
            assert_eq!(text(&message, 1).contains("Only its header is returned"), note, "{ret:?} {size}");
            if let PartType::Message(inner) = &message.parts[3].body {
                assert_eq!(
                    (inner.subject(), inner.body_text(0).as_deref()),
                    (Some("secret"), Some("The body.\r\n--x\r\n"))
                );
                assert!(inner.header("X-MS-Exchange-Organization-SCL").is_none());
            }
        }
    }

    /// C213.
    #[test]
    fn c213_requiretls_shows_little() {
        let mut world = World::new();
        (world.original.requiretls, world.original.ret) = (true, Some(Ret::Full));
        world.whole = Some([HEAD, b"body"].concat());
        let (envelope, bytes) = world.write().unwrap();
        assert!(!envelope.requiretls);
        let message = check(&bytes);
        let returned = text(&message, 3);
        assert!(
            returned.contains("Message-ID") && !returned.contains("secret") && !returned.contains("To:"),
            "{returned}"
        );
        assert!(text(&message, 1).contains("REQUIRETLS"));
    }

    /// C169: and to an ASCII sender the report is ASCII, so that any hop takes it.
    #[test]
    fn c169_utf8_only_where_it_is_needed() {
        use Form::{Encoded, Plain, Utf8};
        for (sender, to, subject, smtputf8, form) in [
            ("anna@contoso.com", "bob@example.net", "x", true, Plain),
            ("anna@contoso.com", "b\u{f6}b@example.net", "x", true, Encoded),
            ("\u{e4}nna@contoso.com", "bob@example.net", "x", true, Utf8),
            ("\u{e4}nna@contoso.com", "b\u{f6}b@example.net", "gr\u{fc}n", true, Utf8),
            ("anna@contoso.com", "bob@example.net", "gr\u{fc}n", true, Encoded),
            ("anna@contoso.com", "bob@example.net", "gr\u{fc}n", false, Plain),
        ] {
            let mut world = World::new();
            world.original = Envelope { smtputf8, ..envelope(Some(sender)) };
            world.recipients = vec![recipient(to, Notify::Unsaid)];
            world.asked = address(to);
            world.setback = refused("unbekannter Empf\u{e4}nger");
            world.head = format!("Subject: {subject}\r\n\r\n").into();
            let (report, bytes) = world.write().unwrap();
            let what = format!("{sender} {to} {subject}");
            assert_eq!(report.smtputf8, form == Utf8, "{what}");
            assert_eq!(report.body == BodyType::EightBit, !bytes.is_ascii(), "{what}");
            assert!(form != Encoded || bytes.is_ascii(), "{what}");
            let message = check(&bytes);
            let types = match form {
                Plain => ["message/delivery-status", "text/rfc822-headers"],
                Encoded => ["message/delivery-status", "message/global-headers"],
                Utf8 => ["message/global-delivery-status", "message/global-headers"],
            };
            assert_eq!([2, 3].map(|index| type_of(&message, index)), types, "{what}");
            let fields = text(&message, 2);
            let named = match (form, to) {
                (Encoded, "b\u{f6}b@example.net") => "b\\x{F6}b@example.net",
                _ => to,
            };
            assert!(fields.contains(&format!("; {named}")) && (form == Utf8 || fields.is_ascii()), "{what}: {fields}");
            assert_eq!(fields.contains("Final-Recipient: utf-8; "), !to.is_ascii(), "{what}: {fields}");
            // A person reads both as they are.
            assert!(text(&message, 1).contains(to), "{what}: {}", text(&message, 1));
            assert!(text(&message, 3).contains(&format!("Subject: {subject}")), "{what}: {}", text(&message, 3));
        }
    }

    /// RFC 6533 section 3.
    #[test]
    fn addresses_in_ascii() {
        for (address, expected) in [
            ("b\u{f6}b@example.net", "b\\x{F6}b@example.net"),
            ("b+x=\u{1f600}@example.net", "b\\x{2B}x\\x{3D}\\x{1F600}@example.net"),
            ("a\\b@example.net", "a\\x{5C}b@example.net"),
        ] {
            assert_eq!(address_xtext(address), expected);
        }
        let mut world = World::new();
        world.original.smtputf8 = true;
        world.recipients[0].orcpt =
            Some(OriginalRecipient { kind: "utf-8".into(), address: "b\u{f6}b@example.net".into() });
        world.postmaster = address("p\u{f6}st@contoso.com");
        let (envelope, bytes) = world.write().unwrap();
        assert!(!envelope.smtputf8 && bytes.is_ascii());
        let message = check(&bytes);
        assert!(text(&message, 2).contains("Original-Recipient: utf-8;b\\x{F6}b@example.net\r\n"));
        assert_eq!(message.from().unwrap().first().unwrap().address(), Some("postmaster@contoso.com"));
        assert!(text(&message, 1).contains("p\u{f6}st@contoso.com"));
        // The whole of an internationalized message.
        world.whole = Some("Subject: gr\u{fc}n\r\n\r\nGr\u{fc}\u{df}e\r\n".into());
        let (envelope, bytes) = world.write().unwrap();
        assert!(!envelope.smtputf8 && bytes.is_ascii());
        let message = MessageParser::default().parse(&bytes).unwrap();
        assert_eq!(type_of(&message, 3), "message/global");
        assert!(String::from_utf8_lossy(&bytes).contains("Gr=C3=BC=C3=9Fe\r\n"));
    }

    /// C194.
    #[test]
    fn c194_hostile_diagnostics_are_escaped_and_cut() {
        let long = "x".repeat(65_536);
        for said in [
            "a\rb\0c",
            "\u{1b}[31m",
            "--=_00000000002B.",
            "\u{202e}",
            &long,
            "a\nFinal-Recipient: rfc822; eve@x",
            &" ".repeat(5000),
        ] {
            let mut world = World::new();
            world.setback = refused(said);
            let (_, bytes) = world.write().unwrap();
            let message = check(&bytes);
            assert!(bytes.is_ascii() && !bytes.contains(&0x1b));
            let fields = text(&message, 2);
            assert_eq!(fields.lines().filter(|line| line.starts_with("Final-Recipient:")).count(), 1, "{fields}");
            assert!(fields.len() < 2 * DIAGNOSTIC_LIMIT, "{} bytes", fields.len());
        }
    }

    #[test]
    fn an_original_that_cannot_travel_comes_as_its_header() {
        let long = "y".repeat(5000);
        for (body, expected) in [
            ("fine\r\n".to_owned(), true),
            ("fine without an end".into(), true),
            ("bare\nline\r\n".into(), false),
            ("bare\rreturn\r\n".into(), false),
            ("nul\0\r\n".into(), false),
            (long.clone(), false),
        ] {
            let mut world = World::new();
            world.head = format!("Subject: {long}\nX-Bare: a\rb\0c\r\n\r\n").into();
            world.whole = Some(format!("Subject: x\r\n\r\n{body}").into());
            let (_, bytes) = world.write().unwrap();
            let message = check(&bytes);
            assert_eq!(type_of(&message, 3) == "message/rfc822", expected, "{body:.20?}");
        }
    }

    #[test]
    fn a_boundary_stands_in_no_part() {
        let mut world = World::new();
        let (_, bytes) = world.write().unwrap();
        let boundary = |bytes: &[u8]| {
            let message = MessageParser::default().parse(bytes).unwrap();
            message.content_type().unwrap().attribute("boundary").unwrap().to_owned()
        };
        let first = boundary(&bytes);
        world.whole = Some(format!("A: b\r\n\r\n--{first}--\r\n--{first}_\r\n").into());
        let (_, bytes) = world.write().unwrap();
        assert_eq!(boundary(&bytes), format!("{first}__"));
        check(&bytes);
    }

    proptest! {
        #[test]
        fn any_original_and_any_reply_make_a_report(
            head in prop::collection::vec(prop_oneof![Just(b'\n'), Just(b'\r'), Just(b':'), Just(b'-'), any::<u8>()], 0..400),
            said in any::<String>(), envid in "[ -~]{1,100}", full: bool, smtputf8: bool,
        ) {
            let mut world = World::new();
            world.original = Envelope {
                ret: full.then_some(Ret::Full), envid: Some(envid.into()), smtputf8, ..envelope(Some("anna@contoso.com"))
            };
            world.setback = refused(&said);
            world.whole = Some(head.clone());
            world.head = head;
            let (envelope, bytes) = world.write().unwrap();
            prop_assert_eq!(envelope.body == BodyType::SevenBit, bytes.is_ascii());
            check(&bytes);
        }
    }
}
