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
                say(&mut stream, &bytes, WRITE_TIMEOUT).await?;
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

/// In TLS it is the flush that waits for the client: what was written may lie in a buffer of ours.
async fn say(stream: &mut Stream, bytes: &[u8], patience: Duration) -> io::Result<()> {
    let said = async {
        stream.write_all(bytes).await?;
        stream.flush().await
    };
    timeout(patience, said).await.map_err(|_| io::ErrorKind::TimedOut)?
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

#[cfg(test)]
mod tests {
    use socket2::SockRef;
    use tokio::net::{TcpListener, TcpStream};

    use super::*;
    use crate::tls::authority::Authority;
    use crate::tls::{Acceptor, Connector, Demand};

    /// A client that never reads is not waited for, in TLS either: there the replies are in a buffer of ours
    /// before they go out, and it is the flush that waits.
    #[tokio::test]
    async fn a_client_that_takes_no_reply_is_given_up() {
        for secure in [false, true] {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let (client, accepted) =
                tokio::join!(TcpStream::connect(listener.local_addr().unwrap()), listener.accept());
            let (client, server) = (client.unwrap(), accepted.unwrap().0);
            SockRef::from(&server).set_send_buffer_size(4096).unwrap();
            SockRef::from(&client).set_recv_buffer_size(4096).unwrap();
            let deadline = Instant::now() + Duration::from_secs(30);
            let (mut server, mut client) = if secure {
                let authority = Authority::new("Root");
                let acceptor = Acceptor::new(&authority.identity(&["mail.contoso.com"]), false);
                let connector = Connector::new(None);
                let (accepted, connected) = tokio::join!(
                    acceptor.accept(server, deadline),
                    connector.connect(client, "mail.contoso.com", &Demand::Nothing, deadline)
                );
                (accepted.unwrap().stream, connected.unwrap().0)
            } else {
                (Stream::Plain(server), Stream::Plain(client))
            };
            let reply = b"250 2.1.5 OK\r\n".repeat(1000);
            let (client, patience) = (&mut client, Duration::from_millis(100));
            let all = async {
                loop {
                    if let Err(error) = say(&mut server, &reply, patience).await {
                        return error;
                    }
                }
            };
            let ended = timeout(Duration::from_secs(30), all).await.expect("it waits for ever");
            assert_eq!(ended.kind(), io::ErrorKind::TimedOut, "in TLS: {secure}");
            assert!(client.write_all(b"NOOP\r\n").await.is_ok(), "the client is there all the time");
        }
    }
}
