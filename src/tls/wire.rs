//! Connections in memory, for a simulated network: the same to a reader and a writer as a socket, in held time.
//!
//! What is written arrives later, in pieces, in order; a full window holds up the writer. A connection ends in order,
//! by a reset, or because one machine lost its power: then what it had sent still arrives, and nothing more.
//!
//! Not here: who is there and how the network fares (`simulation`).

use std::collections::VecDeque;
use std::fmt;
use std::future::poll_fn;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::{Buf as _, Bytes};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep, sleep_until};

/// A connection that is being made.
pub type Connecting = Pin<Box<dyn Future<Output = io::Result<Wire>> + Send>>;

/// Who answers on this thread instead of the system.
type Dial = Arc<dyn Fn(SocketAddr) -> Connecting>;

thread_local! {
    static DIAL: std::cell::RefCell<Option<Dial>> = const { std::cell::RefCell::new(None) };
}

/// From now on connections of this thread go there; `None`: to the system.
pub fn redirect(dial: Option<Dial>) {
    DIAL.set(dial);
}

/// A connection to `address`, where connections are redirected.
pub fn connect(address: SocketAddr) -> Option<Connecting> {
    let dial = DIAL.with_borrow(Clone::clone)?;
    Some(dial(address))
}

/// How a connection fares.
#[derive(Debug, Clone, Copy)]
pub struct Weather {
    /// One way takes at least so long.
    pub latency: Duration,
    /// And at most so much longer.
    pub jitter: Duration,
    /// The longest piece that arrives at once.
    pub piece: usize,
    /// How much may be under way.
    pub window: usize,
}

/// Until when nothing passes between two places.
#[derive(Debug, Default)]
pub struct Partition(Mutex<Option<Instant>>);

impl Partition {
    /// Nothing passes until then. What was sent meanwhile arrives afterwards.
    pub fn close(&self, until: Option<Instant>) {
        *self.0.lock().unwrap() = until;
    }

    /// Until when nothing passes.
    pub fn closed(&self) -> Option<Instant> {
        self.0.lock().unwrap().filter(|until| *until > Instant::now())
    }
}

/// Has this machine no power any more?
pub type IsDead = Arc<dyn Fn() -> bool + Send + Sync>;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    InOrder,
    Reset,
}

#[derive(Default)]
struct State {
    under_way: VecDeque<(Instant, Bytes)>,
    bytes: usize,
    last: Option<Instant>,
    end: Option<(Instant, End)>,
    reader_gone: bool,
    read: u64,
    /// When how much had been read.
    reads: Vec<(u64, Instant)>,
    written: u64,
    reader: Option<Waker>,
    writer: Option<Waker>,
}

/// One direction.
struct Pipe {
    state: Mutex<State>,
    weather: Weather,
    partition: Arc<Partition>,
}

impl Pipe {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    fn due(&self, state: &mut State) -> Instant {
        let from = self.partition.closed().unwrap_or_else(Instant::now);
        let due = from + self.weather.latency + self.weather.jitter.mul_f64(fastrand::f64());
        let due = state.last.map_or(due, |last| last.max(due));
        state.last = Some(due);
        due
    }

    fn end(&self, how: End, after: Duration) {
        let mut state = self.state();
        if state.end.is_none_or(|(_, before)| before == End::InOrder && how == End::Reset) {
            let due = self.due(&mut state) + after;
            state.end = Some((due, how));
            if let Some(reader) = state.reader.take() {
                reader.wake();
            }
        }
    }

    /// Ready when there is something to read, be it the end.
    fn poll_readable(&self, cx: &mut Context<'_>, sleep: &mut Option<Pin<Box<Sleep>>>) -> Poll<()> {
        loop {
            let due = {
                let mut state = self.state();
                let next = state.under_way.front().map(|(due, _)| *due);
                let due = [next, state.end.map(|(due, _)| due)].into_iter().flatten().min();
                let Some(due) = due else {
                    state.reader = Some(cx.waker().clone());
                    return Poll::Pending;
                };
                if due <= Instant::now() {
                    return Poll::Ready(());
                }
                state.reader = Some(cx.waker().clone());
                due
            };
            let sleeping = sleep.get_or_insert_with(|| Box::pin(sleep_until(due)));
            if sleeping.deadline() != due || sleeping.is_elapsed() {
                sleeping.as_mut().reset(due);
            }
            if sleeping.as_mut().poll(cx).is_pending() {
                return Poll::Pending;
            }
        }
    }
}

/// One end of a connection.
pub struct Wire {
    incoming: Arc<Pipe>,
    outgoing: Arc<Pipe>,
    sleep: Option<Pin<Box<Sleep>>>,
    is_dead: Option<IsDead>,
}

impl fmt::Debug for Wire {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Wire")
    }
}

/// How much of what one end wrote the other has read.
#[derive(Clone)]
pub struct Heard(Arc<Pipe>, u64);

impl Heard {
    /// When it had read all that had been written when this was made; `None`: not yet.
    pub fn when(&self) -> Option<Instant> {
        self.0.state().reads.iter().find(|(read, _)| *read >= self.1).map(|(_, at)| *at)
    }
}

/// Ends a connection from outside.
#[derive(Clone)]
pub struct Cutter(Arc<Pipe>);

impl Cutter {
    /// What was sent arrives; `after` that the connection is reset.
    pub fn cut(&self, after: Duration) {
        self.0.end(End::Reset, after);
    }
}

/// Both ends of a connection; the machine at the first may lose its power.
pub fn pair(weather: Weather, partition: &Arc<Partition>, is_dead: IsDead) -> (Wire, Wire) {
    let pipe = || Arc::new(Pipe { state: Mutex::default(), weather, partition: Arc::clone(partition) });
    let (there, back) = (pipe(), pipe());
    let wire = |incoming: &Arc<Pipe>, outgoing: &Arc<Pipe>, is_dead| Wire {
        incoming: Arc::clone(incoming),
        outgoing: Arc::clone(outgoing),
        sleep: None,
        is_dead,
    };
    (wire(&back, &there, Some(is_dead)), wire(&there, &back, None))
}

impl Wire {
    /// Will tell whether the other end has read what was written so far.
    pub fn heard(&self) -> Heard {
        let written = self.outgoing.state().written;
        Heard(Arc::clone(&self.outgoing), written)
    }

    /// Ends what this end reads.
    pub fn cutter(&self) -> Cutter {
        Cutter(Arc::clone(&self.incoming))
    }

    /// Ends the connection so that the other end may lose what it has not read.
    pub fn reset(&self) {
        self.outgoing.end(End::Reset, Duration::ZERO);
    }

    /// Waits until a read would not.
    pub async fn readable(&self) {
        if self.is_dead() {
            std::future::pending::<()>().await;
        }
        let mut sleep = None;
        poll_fn(|cx| self.incoming.poll_readable(cx, &mut sleep)).await;
    }

    fn is_dead(&self) -> bool {
        self.is_dead.as_ref().is_some_and(|is_dead| is_dead())
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        let unread = {
            let mut state = self.incoming.state();
            state.reader_gone = true;
            if let Some(writer) = state.writer.take() {
                writer.wake();
            }
            !state.under_way.is_empty()
        };
        if !self.is_dead() {
            // As TCP does: who leaves bytes unread resets.
            self.outgoing.end(if unread { End::Reset } else { End::InOrder }, Duration::ZERO);
        }
    }
}

impl AsyncRead for Wire {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.is_dead() {
            return Poll::Pending;
        }
        if this.incoming.poll_readable(cx, &mut this.sleep).is_pending() {
            return Poll::Pending;
        }
        let mut state = this.incoming.state();
        let now = Instant::now();
        if matches!(state.end, Some((due, End::Reset)) if due <= now) {
            return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
        }
        let mut some = false;
        while buf.remaining() > 0
            && let Some((due, piece)) = state.under_way.front_mut()
            && *due <= now
        {
            let count = piece.len().min(buf.remaining());
            buf.put_slice(&piece[..count]);
            piece.advance(count);
            let is_over = piece.is_empty();
            if is_over {
                state.under_way.pop_front();
            }
            state.bytes -= count;
            state.read += count as u64;
            some = true;
        }
        if some {
            let read = state.read;
            state.reads.push((read, now));
        }
        if some && let Some(writer) = state.writer.take() {
            writer.wake();
        }
        // Nothing: the end, in order.
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Wire {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        if self.is_dead() {
            return Poll::Ready(Ok(bytes.len()));
        }
        let pipe = &self.outgoing;
        let mut state = pipe.state();
        if state.end.is_some() || state.reader_gone {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        let room = pipe.weather.window.saturating_sub(state.bytes);
        let count = bytes.len().min(room);
        if count == 0 && !bytes.is_empty() {
            state.writer = Some(cx.waker().clone());
            return Poll::Pending;
        }
        for piece in bytes[..count].chunks(pipe.weather.piece) {
            let due = pipe.due(&mut state);
            state.under_way.push_back((due, Bytes::copy_from_slice(piece)));
        }
        state.bytes += count;
        state.written += count as u64;
        if let Some(reader) = state.reader.take() {
            reader.wake();
        }
        Poll::Ready(Ok(count))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        if !self.is_dead() {
            self.outgoing.end(End::InOrder, Duration::ZERO);
        }
        Poll::Ready(Ok(()))
    }
}
