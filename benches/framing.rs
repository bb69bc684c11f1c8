//! What SMTP itself costs: receiving a message as DATA and as BDAT, and reading a server's replies.
//!
//!     cargo bench --bench framing

use std::hint::black_box;
use std::time::{Duration, Instant};

use bytes::BytesMut;
use causeway::message::{Domain, MessageId};
use causeway::smtp::Reply;
use causeway::smtp::reply::ReplyParser;
use causeway::smtp::server::{Answer, Question, Session, Step, Terms};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};

fn terms() -> Terms {
    Terms {
        hostname: Domain::parse("mail.contoso.com").expect("a name"),
        offer_starttls: false,
        require_tls: false,
        offer_auth: false,
        require_auth: false,
        max_message_size: None,
        max_recipients: 1000,
        max_errors: 10,
        strict: false,
        xoorg: false,
        command_timeout: Duration::from_secs(300),
        data_timeout: Duration::from_secs(180),
    }
}

/// Feeds `input` in pieces of `cut` bytes until it is used up, as a socket would; gives the bytes kept.
fn receive(session: &mut Session, mut input: &[u8], cut: usize) -> usize {
    let now = Instant::now();
    let mut kept = 0;
    loop {
        match session.step(now) {
            Step::Receive { .. } => {
                if input.is_empty() {
                    return kept;
                }
                let (piece, rest) = input.split_at(cut.min(input.len()));
                session.unread().extend_from_slice(piece);
                input = rest;
            }
            Step::Keep(piece) => kept += piece.len(),
            Step::Ask(Question::Message { .. }) => session.answer(Answer::Done(Reply::accepted(MessageId(1)))),
            Step::Ask(_) => session.answer(Answer::Go),
            Step::Send(bytes) => {
                black_box(bytes);
            }
            Step::Discard => {}
            Step::StartTls | Step::Close => return kept,
        }
    }
}

fn message(size: usize) -> Vec<u8> {
    let mut body = b"Subject: bench\r\n\r\n".to_vec();
    while body.len() < size {
        body.extend_from_slice(&[b'X'; 76]);
        body.extend_from_slice(b"\r\n");
    }
    body
}

fn receiving(c: &mut Criterion) {
    let mut group = c.benchmark_group("receive");
    for size in [1 << 10, 100 << 10, 1 << 20] {
        let body = message(size);
        let envelope = "MAIL FROM:<a@example.net>\r\nRCPT TO:<b@contoso.com>\r\n";
        let mut data = format!("{envelope}DATA\r\n").into_bytes();
        data.extend_from_slice(&body);
        data.extend_from_slice(b".\r\n");
        let mut bdat = format!("{envelope}BDAT {} LAST\r\n", body.len()).into_bytes();
        bdat.extend_from_slice(&body);
        group.throughput(Throughput::Bytes(body.len() as u64));
        for (name, input) in [("DATA", data), ("BDAT", bdat)] {
            group.bench_function(format!("{name} {} KiB", size >> 10), |b| {
                let mut session = Session::new(terms(), false, Instant::now());
                receive(&mut session, b"EHLO bench.example\r\n", 4096);
                b.iter(|| assert_eq!(receive(&mut session, black_box(&input), 64 << 10), body.len()));
            });
        }
    }
    group.finish();
}

fn replies(c: &mut Criterion) {
    let said =
        b"250 2.1.0 sender ok\r\n250 2.1.5 recipient ok\r\n354 go ahead\r\n250-2.0.0 queued\r\n250 2.0.0 as 1234\r\n";
    let mut group = c.benchmark_group("replies");
    group.throughput(Throughput::Elements(4));
    group.bench_function("four replies", |b| {
        b.iter(|| {
            let mut parser = ReplyParser::default();
            let mut unread = BytesMut::from(&said[..]);
            let mut count = 0;
            while let Ok(Some(reply)) = parser.next(&mut unread) {
                count += usize::from(reply.code > 0);
            }
            assert_eq!(count, 4);
        });
    });
    group.finish();
}

criterion_group!(benches, receiving, replies);
criterion_main!(benches);
