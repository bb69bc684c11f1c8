//! Socket <-> smtp::client.
//!
//! The message goes from where it lies to the socket in slices; only rustls copies it, to encrypt it. While we
//! write, we listen: a server may answer before it has read all, and may not read on before we have read that.

use std::future::poll_fn;
use std::io::{self, IoSlice};
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll, Waker, ready};
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::io::{AsyncReadExt as _, AsyncWrite as _};
use tokio::time::{Sleep, sleep_until};

use super::connect::{in_words, now};
use crate::message::downgrade::{Downgrade, downgrade};
use crate::message::{Body, BodyType, firewall, header};
use crate::outcome::Setback;
use crate::smtp::client::{BLOCK_WAIT, Delivery, Mail, Payload, Session, Settled, Step, Stuffer};
use crate::spool::Message;
use crate::spool::disk::blocking;
use crate::tls::{Proof, Stream};

/// A message in a file of at most so many bytes is read whole before it is sent.
const WHOLE: u64 = 256 * 1024;

/// How much of a longer one is read at a time.
const BLOCK: usize = 128 * 1024;

/// So many slices are collected before they are written: what one system call takes.
const SLICES: usize = 1024;

/// The least speed at which a message must leave, in bytes per second: a server that takes less is waiting for
/// something else.
const SLOWEST: u64 = 500;

/// How much a server may have said while it has not read what we say.
const UNREAD_LIMIT: usize = 512 * 1024;

/// How long a server that closes is listened to for its last words.
const LAST_WORDS: Duration = Duration::from_secs(5);

/// A connection and the session on it.
#[derive(Debug)]
pub struct Connection {
    /// The session.
    pub session: Session,
    /// As a person reads it: `mx1.example.net [192.0.2.1]:25`.
    pub host: String,
    /// The address that was connected to.
    pub address: SocketAddr,
    /// What the host proved.
    pub proof: Arc<Proof>,
    /// How many messages it has carried.
    pub carried: usize,
    stream: Stream,
    timer: Timer,
}

/// One timer per connection. Deadlines mostly move on; the timer stays where it is and looks again when it fires.
#[derive(Debug)]
struct Timer {
    sleep: Pin<Box<Sleep>>,
}

impl Timer {
    fn poll(&mut self, cx: &mut Context<'_>, until: Instant) -> Poll<()> {
        let until = tokio::time::Instant::from_std(until);
        if until < self.sleep.deadline() || self.sleep.is_elapsed() {
            self.sleep.as_mut().reset(until);
        }
        loop {
            ready!(self.sleep.as_mut().poll(cx));
            if self.sleep.deadline() >= until {
                return Poll::Ready(());
            }
            self.sleep.as_mut().reset(until);
        }
    }
}

/// A message as it is sent: our fields, then what came.
#[derive(Debug, Clone)]
pub struct Content {
    prefix: Bytes,
    /// What the header firewall left of the header of a message on disk; else empty.
    lead: Vec<Bytes>,
    body: Body,
    /// `lead` and `body`, which lies on disk, are converted to 7-bit while they are sent.
    convert: bool,
    /// Of all that is sent, in bytes.
    pub size: u64,
    /// The last bytes are CRLF.
    pub ends_in_crlf: bool,
    /// There are bytes above 127.
    pub eight_bit: bool,
    /// There are some in the header, and the message came as SMTPUTF8.
    pub utf8_header: bool,
}

/// Why a message did not leave.
enum SendError {
    Network(io::Error),
    Spool(io::Error),
}

impl Content {
    /// Looks at the message, and fetches it from disk if it is small. `mark`: a field that stands in front of this
    /// copy only. The organization headers go along to a connector that is `internal` if they are believed, and
    /// nowhere else.
    ///
    /// # Errors
    /// [`Setback::Spool`].
    pub async fn of(message: &Message, mark: Option<String>, internal: bool) -> Result<Self, Setback> {
        let cut = message.organization.must_be_cut(internal);
        let smtputf8 = message.envelope.smtputf8;
        let declared = message.envelope.body;
        let look = {
            let prefix = match mark {
                Some(mark) => [&message.prefix, mark.as_bytes()].concat().into(),
                None => message.prefix.clone(),
            };
            let body = message.content.clone();
            move || Self::look(prefix, body, cut, smtputf8, declared)
        };
        let looked = match &message.content {
            Body::Memory(_) => look(),
            Body::File { .. } => blocking(look).await.unwrap_or_else(|error| Err(error.into())),
        };
        looked.map_err(|error| spool(&message.content, &error))
    }

    /// The same for a host without 8BITMIME: what can be is converted, and the rest goes as it is. A message on disk is
    /// converted twice: here to know its size, and again while it is sent.
    ///
    /// # Errors
    /// [`Setback::Spool`].
    pub async fn to_seven_bit(&self) -> Result<Self, Setback> {
        let content = self.clone();
        let convert = move || content.convert();
        let converted = match &self.body {
            Body::Memory(_) => convert(),
            Body::File { .. } => blocking(convert).await.unwrap_or_else(|error| Err(error.into())),
        };
        converted.map_err(|error| spool(&self.body, &error))
    }

    fn convert(self) -> io::Result<Self> {
        let lead = || self.lead.iter().map(|piece| &piece[..]);
        let in_memory = matches!(self.body, Body::Memory(_));
        let (mut all, mut len, mut last) = (Vec::new(), 0, [0; 2]);
        downgrade(lead(), &self.body, |piece| {
            len += piece.len() as u64;
            for &byte in &piece[piece.len().saturating_sub(2)..] {
                last = [last[1], byte];
            }
            if in_memory {
                all.extend_from_slice(piece);
            }
        })?;
        let size = self.prefix.len() as u64 + len;
        let ends_in_crlf = if len == 0 { self.ends_in_crlf } else { last == *b"\r\n" };
        let converted = Self { size, ends_in_crlf, eight_bit: false, convert: !in_memory, ..self };
        Ok(match in_memory {
            true => Self { lead: Vec::new(), body: Body::from_bytes(all), ..converted },
            false => converted,
        })
    }

    fn look(prefix: Bytes, body: Body, cut: bool, smtputf8: bool, declared: BodyType) -> io::Result<Self> {
        let body = match body {
            Body::File { len, .. } if len <= WHOLE => Body::from_bytes(body.read(0, WHOLE as usize)?),
            body => body,
        };
        let (lead, body) = if cut { firewall::cut_body(body)? } else { (Vec::new(), body) };
        let len = body.len();
        let before = lead.last().unwrap_or(&prefix);
        let ends_in_crlf = match &body {
            _ if len == 0 => before.is_empty() || before.ends_with(b"\r\n"),
            Body::File { .. } => body.read(len.saturating_sub(2), 2)?.ends_with(b"\r\n"),
            Body::Memory(pieces) => {
                let mut last = pieces.iter().rev().flat_map(|piece| piece.iter().rev());
                last.next() == Some(&b'\n') && last.next() == Some(&b'\r')
            }
        };
        let ascii = |pieces: &[Bytes]| pieces.iter().all(|piece| piece.is_ascii());
        let utf8_header = smtputf8
            && match &lead[..] {
                [] => !prefix.is_ascii() || header::facts(&head(&body)?).eight_bit,
                lead => !prefix.is_ascii() || !ascii(lead),
            };
        // What has 8-bit content was marked when it came in. What says so may have none (C162), and is read to know.
        let eight_bit =
            !prefix.is_ascii() || (declared == BodyType::EightBit && (!ascii(&lead) || !body.is_seven_bit()?));
        let size = [&prefix].into_iter().chain(&lead).map(|piece| piece.len() as u64).sum::<u64>() + len;
        Ok(Self { size, prefix, lead, body, convert: false, ends_in_crlf, eight_bit, utf8_header })
    }
}

/// The first bytes, as many as a header may have.
fn head(body: &Body) -> io::Result<Bytes> {
    let first = body.read(0, header::HEADER_LIMIT)?;
    if first.len() as u64 == body.len() || first.len() == header::HEADER_LIMIT {
        return Ok(first);
    }
    let mut head = first.to_vec();
    while head.len() < header::HEADER_LIMIT {
        let piece = body.read(head.len() as u64, header::HEADER_LIMIT - head.len())?;
        if piece.is_empty() {
            break;
        }
        head.extend_from_slice(&piece);
    }
    Ok(head.into())
}

fn spool(body: &Body, error: &io::Error) -> Setback {
    let why = match body {
        Body::File { path, .. } => format!("{}: {error}", path.display()),
        Body::Memory(_) => error.to_string(),
    };
    Setback::Spool { why }
}

/// What came of one message on one session.
#[derive(Debug)]
pub struct Transmission {
    /// Who has an answer: all, unless the message could not be read.
    pub settled: Vec<Settled>,
    /// The session had ended before it said anything about the message.
    pub unheard: bool,
    /// It ended between BDAT and its answer.
    pub lost_chunk: bool,
    /// [`Setback::Spool`]: the message could not be read to its end. The connection is of no use then; what earlier
    /// transactions brought stands in `settled`.
    pub unread: Option<Setback>,
}

/// Sends one message over one session. Where it takes several transactions, `taken` hears of each recipient that one of
/// them was successful for before the next begins.
pub async fn transmit(
    connection: &mut Connection,
    mail: Mail<'_>,
    content: &Content,
    taken: &(dyn Fn(u16) + Sync),
) -> Transmission {
    let Connection { session, stream, timer, .. } = connection;
    let mut delivery = Delivery::new(session, mail);
    let mut told = 0;
    loop {
        match delivery.step(now()) {
            Step::Send(commands, payload) => {
                for (index, result) in &delivery.settled()[told..] {
                    if result.is_ok() {
                        taken(*index);
                    }
                }
                told = delivery.settled().len();
                let mut wire = Wire { stream, timer, session: delivery.session() };
                match wire.send(&commands, payload, content).await {
                    Ok(()) => delivery.sent(),
                    Err(SendError::Network(error)) => {
                        wire.last_words().await;
                        wire.session.closed(in_words(&error));
                    }
                    Err(SendError::Spool(error)) => {
                        let unread = Some(spool(&content.body, &error));
                        let settled = delivery.break_off();
                        return Transmission { settled, unheard: false, lost_chunk: false, unread };
                    }
                }
            }
            Step::Receive { until } => Wire { stream, timer, session: delivery.session() }.receive(until).await,
            Step::StartTls | Step::Done => break,
        }
    }
    let (unheard, lost_chunk) = (delivery.was_stale(), delivery.has_lost_chunk());
    Transmission { settled: delivery.into_settled(), unheard, lost_chunk, unread: None }
}

impl Connection {
    /// A session on `stream`.
    pub fn new(stream: Stream, session: Session, host: String, address: SocketAddr, proof: Arc<Proof>) -> Self {
        let timer = Timer { sleep: Box::pin(sleep_until(tokio::time::Instant::now() + BLOCK_WAIT)) };
        Self { session, host, address, proof, carried: 0, stream, timer }
    }

    /// The stream and the session, for TLS to come between.
    pub fn into_parts(self) -> (Stream, Session) {
        (self.stream, self.session)
    }

    /// Writes commands, and tells the session.
    pub async fn send(&mut self, commands: &[u8]) {
        let mut wire = self.wire();
        match wire.write(&mut [IoSlice::new(commands)]).await {
            Ok(()) => self.session.sent(),
            Err(error) => {
                wire.last_words().await;
                self.session.closed(in_words(&error));
            }
        }
    }

    /// Reads, and tells the session.
    pub async fn receive(&mut self, until: Instant) {
        self.wire().receive(until).await;
    }

    /// True if nothing came since the last reply, not even the end. Costs no system call where that is so.
    pub fn is_quiet(&mut self) -> bool {
        let reading = pin!(self.stream.read_buf(self.session.unread()));
        // Nobody is woken: who uses the connection next polls it again.
        reading.poll(&mut Context::from_waker(Waker::noop())).is_pending()
    }

    /// Says goodbye and closes. Takes five seconds at most (C276).
    pub async fn quit(mut self) {
        if !self.session.is_usable() || !self.is_quiet() {
            return;
        }
        self.session.quit();
        loop {
            match self.session.step(now()) {
                Step::Send(bytes, _) => {
                    if tokio::time::timeout(LAST_WORDS, self.send(&bytes)).await.is_err() {
                        return;
                    }
                }
                Step::Receive { until } => self.receive(until).await,
                Step::StartTls | Step::Done => return,
            }
        }
    }

    fn wire(&mut self) -> Wire<'_> {
        Wire { stream: &mut self.stream, timer: &mut self.timer, session: &mut self.session }
    }
}

/// The parts of a connection, for as long as something moves.
struct Wire<'a> {
    stream: &'a mut Stream,
    timer: &'a mut Timer,
    session: &'a mut Session,
}

impl Wire<'_> {
    async fn receive(&mut self, until: Instant) {
        // `None`: nothing came by then.
        let read = poll_fn(|cx| match self.poll_read(cx) {
            Poll::Ready(read) => Poll::Ready(Some(read)),
            Poll::Pending => self.timer.poll(cx, until).map(|()| None),
        })
        .await;
        match read {
            Some(Ok(0)) => self.session.closed("it closed the connection"),
            Some(Ok(_)) => {}
            Some(Err(error)) => self.session.closed(in_words(&error)),
            None => self.session.expired(),
        }
    }

    fn poll_read(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        let unread = self.session.unread();
        if unread.capacity() - unread.len() < 256 {
            unread.reserve(2048);
        }
        pin!(self.stream.read_buf(unread)).poll(cx)
    }

    /// Reads what is left to read from a server that does not take what we say: it may have said why.
    async fn last_words(&mut self) {
        let until = now() + LAST_WORDS;
        let ended = poll_fn(|cx| {
            loop {
                match self.poll_read(cx) {
                    Poll::Ready(Ok(0) | Err(_)) => return Poll::Ready(()),
                    Poll::Ready(Ok(_)) if self.session.unread().len() > UNREAD_LIMIT => return Poll::Ready(()),
                    Poll::Ready(Ok(_)) => {}
                    Poll::Pending => return self.timer.poll(cx, until),
                }
            }
        });
        ended.await;
    }

    /// Writes all of `slices`. Reads meanwhile, but only while writing has to wait.
    async fn write(&mut self, mut slices: &mut [IoSlice<'_>]) -> io::Result<()> {
        let began = now();
        let mut written = 0u64;
        IoSlice::advance_slices(&mut slices, 0);
        poll_fn(|cx| {
            loop {
                let pending = if slices.is_empty() {
                    match Pin::new(&mut *self.stream).poll_flush(cx) {
                        Poll::Ready(flushed) => return Poll::Ready(flushed),
                        Poll::Pending => true,
                    }
                } else {
                    match Pin::new(&mut *self.stream).poll_write_vectored(cx, slices) {
                        Poll::Ready(Ok(0)) => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                        Poll::Ready(Ok(count)) => {
                            written += count as u64;
                            IoSlice::advance_slices(&mut slices, count);
                            false
                        }
                        Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                        Poll::Pending => true,
                    }
                };
                if !pending {
                    continue;
                }
                if self.session.unread().len() < UNREAD_LIMIT {
                    match self.poll_read(cx) {
                        Poll::Ready(Ok(0)) => {
                            return Poll::Ready(Err(io::Error::other(
                                "it closed the connection while we were sending",
                            )));
                        }
                        Poll::Ready(Ok(_)) => continue,
                        Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                        Poll::Pending => {}
                    }
                }
                let until = began + BLOCK_WAIT + Duration::from_secs(written / SLOWEST);
                ready!(self.timer.poll(cx, until));
                return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
            }
        })
        .await
    }

    /// Writes commands and what of the message follows them: one system call where it all fits.
    async fn send(&mut self, commands: &[u8], payload: Option<Payload>, content: &Content) -> Result<(), SendError> {
        let mut slices = Vec::with_capacity(8);
        if !commands.is_empty() {
            slices.push(IoSlice::new(commands));
        }
        let Some(payload) = payload else {
            return self.write(&mut slices).await.map_err(SendError::Network);
        };
        let mut stuffer = match payload {
            Payload::Chunk { .. } => None,
            Payload::Stuffed => Some(Stuffer::default()),
        };
        if content.convert {
            cut(&mut stuffer, &content.prefix, &mut slices);
            return self.send_converted(slices, stuffer, payload, content).await;
        }
        for piece in [&content.prefix].into_iter().chain(&content.lead) {
            cut(&mut stuffer, piece, &mut slices);
        }
        match &content.body {
            Body::Memory(pieces) => {
                for piece in pieces.iter() {
                    cut(&mut stuffer, piece, &mut slices);
                    if slices.len() >= SLICES {
                        self.write(&mut slices).await.map_err(SendError::Network)?;
                        slices.clear();
                    }
                }
                slices.extend(end(payload, stuffer.as_ref()));
                self.write(&mut slices).await.map_err(SendError::Network)
            }
            Body::File { len, .. } => {
                // What stands before the file leaves with its first block.
                let mut before = slices;
                let mut offset = 0;
                while offset < *len {
                    let block = read_block(&content.body, offset).await.map_err(SendError::Spool)?;
                    offset += block.len() as u64;
                    let mut slices = std::mem::take(&mut before);
                    cut(&mut stuffer, &block, &mut slices);
                    self.write(&mut slices).await.map_err(SendError::Network)?;
                }
                before.extend(end(payload, stuffer.as_ref()));
                self.write(&mut before).await.map_err(SendError::Network)
            }
        }
    }

    /// Writes what is converted on its way from the disk, behind `before`.
    async fn send_converted(
        &mut self,
        before: Vec<IoSlice<'_>>,
        mut stuffer: Option<Stuffer>,
        payload: Payload,
        content: &Content,
    ) -> Result<(), SendError> {
        let mut before = before;
        let mut downgrade = Downgrade::default();
        let mut converted = Vec::new();
        for piece in &content.lead {
            downgrade.feed(piece, &mut converted);
        }
        let mut offset = 0;
        while offset < content.body.len() {
            let block = read_block(&content.body, offset).await.map_err(SendError::Spool)?;
            offset += block.len() as u64;
            downgrade.feed(&block, &mut converted);
            let mut slices = std::mem::take(&mut before);
            cut(&mut stuffer, &converted, &mut slices);
            self.write(&mut slices).await.map_err(SendError::Network)?;
            drop(slices);
            converted.clear();
        }
        downgrade.finish(&mut converted);
        cut(&mut stuffer, &converted, &mut before);
        before.extend(end(payload, stuffer.as_ref()));
        self.write(&mut before).await.map_err(SendError::Network)
    }
}

fn cut<'a>(stuffer: &mut Option<Stuffer>, piece: &'a [u8], slices: &mut Vec<IoSlice<'a>>) {
    match stuffer {
        Some(stuffer) => stuffer.cut(piece, slices),
        None if piece.is_empty() => {}
        None => slices.push(IoSlice::new(piece)),
    }
}

fn end(payload: Payload, stuffer: Option<&Stuffer>) -> Option<IoSlice<'static>> {
    match payload {
        Payload::Chunk { add_crlf } => add_crlf.then_some(IoSlice::new(b"\r\n")),
        Payload::Stuffed => stuffer.map(|stuffer| IoSlice::new(stuffer.end())),
    }
}

async fn read_block(body: &Body, offset: u64) -> io::Result<Bytes> {
    let body = body.clone();
    let block = blocking(move || body.read(offset, BLOCK)).await??;
    // A file that ends before its message does must not make the loop above endless.
    if block.is_empty() { Err(io::ErrorKind::UnexpectedEof.into()) } else { Ok(block) }
}
