//! Socket <-> `smtp::server`: carries out what a session asks for, and nothing else.
//!
//! A step may take long: a commit, a disk, a tarpit, a filter. The client does not wait for the replies to its earlier
//! commands meanwhile: the driver sends them while the step is under way. A step that is done at once, or within
//! [`GATHERING`], costs no write of its own, so a pipeline whose answers are at hand gets one.

use std::future::poll_fn;
use std::io;
use std::pin::{Pin, pin};
use std::task::Poll;
use std::time::Duration;

use bytes::Bytes;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::sync::watch;
use tokio::time::{Instant, timeout, timeout_at};

use crate::smtp::server::{Answer, Question, Session, Step, Terms};
use crate::tls::Stream;

/// A reply that a client does not take for so long ends the connection.
const WRITE_TIMEOUT: Duration = Duration::from_secs(60);

/// So long the replies that are due wait for further ones while a step is under way. Most commits are faster. The client
/// gets them together then, which saves a system call on both sides; nobody notices so short a delay.
const GATHERING: Duration = Duration::from_millis(5);

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
    let mut gathering = Gathering(None);
    loop {
        if !told && *stopping.borrow() {
            session.shut_down();
            told = true;
        }
        match session.step(Instant::now().into_std()) {
            Step::Send(bytes) => {
                gathering = Gathering(None);
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
            Step::Keep(piece) => {
                let keeping = pin!(reception.keep(piece));
                gathering.wait_for(keeping, &mut session, &mut stream).await?;
            }
            Step::Discard => reception.discard(),
            Step::Ask(question) => {
                let answering = pin!(reception.answer(question));
                let answer = gathering.wait_for(answering, &mut session, &mut stream).await?;
                session.answer(answer);
            }
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

/// Until when the replies that are due may wait for further ones; `None`: no step has made them wait yet.
struct Gathering(Option<Instant>);

impl Gathering {
    /// Waits for `step`, and sends the replies that are due before it if it is not done soon.
    ///
    /// # Errors
    /// What the socket said. The step is carried out to its end even then: the message that it commits may be durable
    /// already, and the relay has to learn of it.
    async fn wait_for<T>(
        &mut self,
        mut step: Pin<&mut impl Future<Output = T>>,
        session: &mut Session,
        stream: &mut Stream,
    ) -> io::Result<T> {
        if let Poll::Ready(done) = poll_fn(|context| Poll::Ready(step.as_mut().poll(context))).await {
            return Ok(done);
        }
        if session.has_pending() {
            // In a box: thousands of sessions have nothing to wait for, and no room for it.
            Box::pin(self.wait_or_send(step, session, stream)).await
        } else {
            Ok(step.await)
        }
    }

    async fn wait_or_send<T>(
        &mut self,
        mut step: Pin<&mut impl Future<Output = T>>,
        session: &mut Session,
        stream: &mut Stream,
    ) -> io::Result<T> {
        let until = *self.0.get_or_insert_with(|| Instant::now() + GATHERING);
        if let Ok(done) = timeout_at(until, step.as_mut()).await {
            return Ok(done);
        }
        self.0 = None;
        let due = session.pending();
        let (done, sent) = tokio::join!(step, say(stream, &due, WRITE_TIMEOUT));
        sent.map(|()| done)
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
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU64, Ordering};

    use socket2::SockRef;
    use tokio::net::{TcpListener, TcpStream};
    use tokio::task::yield_now;
    use tokio::time::sleep;

    use super::*;
    use crate::message::{Domain, MessageId};
    use crate::smtp::Reply;
    use crate::tls::authority::Authority;
    use crate::tls::wire::{self, Weather, Wire};
    use crate::tls::{Acceptor, Connector, Demand};

    const MILLISECOND: Duration = Duration::from_millis(1);

    /// A relay that takes its time.
    #[derive(Default)]
    struct Slow {
        /// For a commit.
        commit: Duration,
        /// For a piece of the message.
        disk: Duration,
        /// How many messages it has.
        committed: Arc<AtomicU64>,
    }

    impl Reception for Slow {
        async fn answer(&mut self, question: Question) -> Answer {
            match question {
                Question::Login(_) | Question::Sender { .. } => Answer::Go,
                Question::Recipient(recipient) => match recipient.address.local() {
                    "nobody" => {
                        sleep(2000 * MILLISECOND).await;
                        Answer::Refuse(Reply::unknown_recipient(&recipient.address))
                    }
                    "group" => {
                        yield_now().await;
                        Answer::Go
                    }
                    _ => Answer::Go,
                },
                Question::Message { .. } => {
                    if !self.commit.is_zero() {
                        sleep(self.commit).await;
                    }
                    Answer::Done(Reply::accepted(MessageId(self.committed.fetch_add(1, Ordering::Relaxed))))
                }
            }
        }

        async fn keep(&mut self, _: Bytes) {
            if !self.disk.is_zero() {
                sleep(self.disk).await;
            }
        }

        fn discard(&mut self) {}

        async fn start_tls(&mut self, _: Stream) -> io::Result<(Stream, Terms)> {
            Err(io::ErrorKind::Unsupported.into())
        }
    }

    fn terms() -> Terms {
        Terms {
            hostname: Domain::parse("mail.contoso.com").unwrap(),
            offer_starttls: false,
            require_tls: false,
            offer_auth: false,
            require_auth: false,
            max_message_size: None,
            max_recipients: 1000,
            max_errors: 1000,
            strict: false,
            xoorg: false,
            command_timeout: Duration::from_secs(300),
            data_timeout: Duration::from_secs(180),
        }
    }

    /// The client's end of a session that has said EHLO, and the task that drives it.
    async fn greeted(reception: Slow) -> (Wire, tokio::task::JoinHandle<io::Result<()>>) {
        let weather =
            Weather { latency: Duration::ZERO, jitter: Duration::ZERO, piece: usize::MAX, window: usize::MAX };
        let (theirs, mut ours) = wire::pair(weather, &Arc::default(), Arc::new(|| false));
        let session = Session::new(terms(), false, Instant::now().into_std());
        let driven = tokio::spawn(async move {
            let (_stopping, stopping) = watch::channel(false);
            let mut reception = reception;
            drive(Stream::Simulated(theirs), session, &mut reception, stopping).await
        });
        ours.write_all(b"EHLO client.example\r\n").await.unwrap();
        let mut said = String::new();
        while !said.contains("\r\n250 ") {
            said.push_str(&read(&mut ours).await);
        }
        (ours, driven)
    }

    async fn read(wire: &mut Wire) -> String {
        let mut buffer = vec![0; 64 * 1024];
        let count = wire.read(&mut buffer).await.unwrap();
        String::from_utf8(buffer[..count].to_vec()).unwrap()
    }

    /// Which writes a pipeline brings: when, and the codes in each.
    async fn writes(reception: Slow, pipeline: &str) -> Vec<String> {
        let (mut client, driven) = greeted(reception).await;
        let begun = Instant::now();
        client.write_all(pipeline.as_bytes()).await.unwrap();
        let mut writes = Vec::new();
        loop {
            let said = read(&mut client).await;
            if said.is_empty() {
                break;
            }
            let codes: Vec<&str> = said.lines().map(|line| &line[..3]).collect();
            writes.push(format!("{} ms: {}", begun.elapsed().as_millis(), codes.join(" ")));
        }
        driven.await.unwrap().unwrap();
        writes
    }

    /// A pipeline gets one write, unless something takes long: then what is due leaves before.
    #[tokio::test(start_paused = true)]
    async fn replies_that_are_due_leave_before_anything_waits() {
        let message = |recipients: &[&str]| {
            let recipients: String =
                recipients.iter().map(|name| format!("RCPT TO:<{name}@contoso.com>\r\n")).collect();
            format!("MAIL FROM:<erin@fabrikam.com>\r\n{recipients}BDAT 4 LAST\r\nhi\r\n")
        };
        let plain = message(&["julie"]);
        let unknown = message(&["julie", "nobody"]);
        let slow =
            |commit: u32, disk: u32| Slow { commit: commit * MILLISECOND, disk: disk * MILLISECOND, ..Slow::default() };
        for (what, commit, disk, pipeline, expected) in [
            ("nothing waits", 0, 0, plain.repeat(3), vec!["0 ms: 250 250 250 250 250 250 250 250 250 221"]),
            (
                "who lets others have their turn does not wait",
                0,
                0,
                message(&["group", "group"]),
                vec!["0 ms: 250 250 250 250 221"],
            ),
            ("a commit as it is", 3, 0, plain.clone(), vec!["3 ms: 250 250 250 221"]),
            (
                "several of them: no reply is held up by all",
                3,
                0,
                plain.repeat(3),
                vec!["5 ms: 250 250 250 250 250", "9 ms: 250 250 250 250 221"],
            ),
            ("a commit that takes a minute", 60_000, 0, plain.clone(), vec!["5 ms: 250 250", "60000 ms: 250 221"]),
            (
                "a disk that does not answer for a minute",
                0,
                60_000,
                plain.clone(),
                vec!["5 ms: 250 250", "60000 ms: 250 221"],
            ),
            (
                "a tarpit, behind messages that are durable",
                0,
                0,
                unknown.repeat(3),
                vec!["5 ms: 250 250", "2005 ms: 550 250 250 250", "4005 ms: 550 250 250 250", "6000 ms: 550 250 221"],
            ),
        ] {
            assert_eq!(writes(slow(commit, disk), &format!("{pipeline}QUIT\r\n")).await, expected, "{what}");
        }
    }

    /// A client that goes while its message is committed: the driver notices when it sends the replies that are due. The
    /// message is a message all the same, and the relay has to be told so.
    #[tokio::test(start_paused = true)]
    async fn a_step_is_carried_out_though_its_client_is_gone() {
        let committed = Arc::default();
        let slow = Slow { commit: Duration::from_secs(60), committed: Arc::clone(&committed), ..Slow::default() };
        let (mut client, driven) = greeted(slow).await;
        let pipeline = "MAIL FROM:<erin@fabrikam.com>\r\nRCPT TO:<julie@contoso.com>\r\nBDAT 4 LAST\r\nhi\r\n";
        client.write_all(pipeline.as_bytes()).await.unwrap();
        // The clock goes on when the session waits for its commit.
        sleep(MILLISECOND).await;
        drop(client);
        assert_eq!(driven.await.unwrap().unwrap_err().kind(), io::ErrorKind::BrokenPipe);
        assert_eq!(committed.load(Ordering::Relaxed), 1);
    }

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
