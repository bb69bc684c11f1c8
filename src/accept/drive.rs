//! Socket <-> `smtp::server`: carries out what a session asks for, and nothing else.

use std::io;
use std::time::Duration;

use bytes::Bytes;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::sync::watch;
use tokio::time::{Instant, timeout, timeout_at};

use crate::smtp::server::{Answer, Question, Session, Step, Terms};
use crate::tls::Stream;

/// A reply that a client does not take for so long ends the connection.
const WRITE_TIMEOUT: Duration = Duration::from_secs(60);

/// A read into less room than this costs more than new room, in bytes.
const LEAST_READ: usize = 4096;

/// Who answers a session's questions and keeps its message.
pub trait Reception: Send {
    /// The answer to one question.
    fn answer(&mut self, question: Question) -> impl Future<Output = Answer> + Send;
    /// The next piece of the message.
    fn keep(&mut self, piece: Bytes) -> impl Future<Output = ()> + Send;
    /// The message under way will not be finished.
    fn discard(&mut self);
    /// Shakes hands and judges the client anew.
    fn start_tls(&mut self, stream: Stream) -> impl Future<Output = io::Result<(Stream, Terms)>> + Send;
}

/// Runs one session to its end. `stopping` becoming true lets it finish what is under way, then close.
///
/// # Errors
/// What the socket said.
pub async fn drive(
    mut stream: Stream,
    mut session: Session,
    reception: &mut impl Reception,
    mut stopping: watch::Receiver<bool>,
) -> io::Result<()> {
    let mut told = false;
    loop {
        if !told && *stopping.borrow() {
            session.shut_down();
            told = true;
        }
        match session.step(Instant::now().into_std()) {
            Step::Send(bytes) => {
                timeout(WRITE_TIMEOUT, stream.write_all(&bytes)).await.map_err(|_| io::ErrorKind::TimedOut)??;
                stream.flush().await?;
            }
            Step::Receive { until } => {
                let received = tokio::select! {
                    biased;
                    received = timeout_at(until.into(), receive(&mut stream, &mut session)) => received,
                    Ok(()) = stopping.changed(), if !told => continue,
                };
                match received {
                    Ok(Ok(0)) => return Ok(()),
                    Ok(Ok(_)) => {}
                    Ok(Err(error)) => return Err(error),
                    Err(_) => session.expired(),
                }
            }
            Step::Keep(piece) => reception.keep(piece).await,
            Step::Discard => reception.discard(),
            Step::Ask(question) => session.answer(reception.answer(question).await),
            Step::StartTls => {
                let (secured, terms) = reception.start_tls(stream).await?;
                stream = secured;
                session.secured(terms);
            }
            Step::Close => {
                let _ = timeout(WRITE_TIMEOUT, stream.shutdown()).await;
                return Ok(());
            }
        }
    }
}

/// Waits without a buffer, so that an idle connection holds none.
async fn receive(stream: &mut Stream, session: &mut Session) -> io::Result<usize> {
    stream.readable().await?;
    let wanted = session.wanted();
    let unread = session.unread();
    // Pieces of the message share the buffer they were read into: what is left of it is used up first, or every short
    // read would pin a whole one.
    if unread.capacity() - unread.len() < wanted.min(LEAST_READ) {
        unread.reserve(wanted);
    }
    stream.read_buf(unread).await
}
