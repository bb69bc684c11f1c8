//! What it costs to make a message durable: alone, and among many at once.
//!
//!     cargo bench --bench spool
//!
//! The spool is made below `TMPDIR`, or else `/tmp`, which may be in RAM, and a figure for
//! `durable` that does not show the disk is none. *alone* is to be read beside *one fdatasync*.

use std::fs::OpenOptions;
use std::hint::black_box;
use std::os::unix::fs::FileExt as _;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use causeway::config::ConnectorName;
use causeway::message::{Address, BodyType, Envelope, Notify, OrganizationHeaders, Recipient};
use causeway::route::{CopyRecipient, Hop, HopCopy};
use causeway::spool::{End, NewMessage, Settings, Settlement, Spool};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use jiff::Timestamp;
use tokio::runtime::Runtime;

/// A spool in a folder that goes when this goes.
struct Bench {
    spool: Spool,
    runtime: Runtime,
    _folder: tempfile::TempDir,
}

impl Bench {
    fn new() -> Self {
        let folder = tempfile::tempdir().expect("a folder for the spool");
        let settings = Settings { path: folder.path().join("spool"), min_free_space: 0 };
        let (spool, recovery) = Spool::open(settings).expect("a new spool");
        recovery.run();
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
        Self { spool, runtime: runtime.expect("a runtime"), _folder: folder }
    }

    /// So many messages by so many sessions, each put and then settled.
    fn run(&self, sessions: u64, messages: u64, body: &Bytes) -> Duration {
        self.runtime.block_on(async {
            let start = Instant::now();
            let sessions: Vec<_> = (0..sessions)
                .map(|session| {
                    let (spool, body) = (self.spool.clone(), body.clone());
                    let share = messages / sessions + u64::from(session < messages % sessions);
                    tokio::spawn(async move {
                        for _ in 0..share {
                            one(&spool, &body).await;
                        }
                    })
                })
                .collect();
            for session in sessions {
                session.await.expect("a session that ends");
            }
            self.spool.flush().await;
            start.elapsed()
        })
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        self.runtime.block_on(self.spool.clone().close());
    }
}

async fn one(spool: &Spool, body: &Bytes) {
    let address = Address::parse("anna@contoso.com").expect("an address");
    let recipient = Recipient { address: address.clone(), notify: Notify::Unsaid, orcpt: None };
    let mut content = spool.draft();
    content.push(body.clone()).await.expect("a disk that works");
    let id = spool.next_id();
    let receipt = spool.put(NewMessage {
        id,
        accepted: Timestamp::now(),
        envelope: Envelope {
            sender: Some(address.clone()),
            recipients: Vec::new(),
            ret: None,
            envid: None,
            body: BodyType::SevenBit,
            smtputf8: false,
            requiretls: false,
        },
        connector: "internet".into(),
        message_id: Some("<20240101120000.1@example.com>".into()),
        prefix: Bytes::from_static(&[b'x'; 200]),
        organization: OrganizationHeaders::None,
        content,
        copies: vec![HopCopy {
            via: ConnectorName(Arc::from("to-cloud")),
            hop: Hop::SmartHosts,
            recipients: vec![CopyRecipient { asked: address, recipient }],
        }],
        settles: Vec::new(),
    });
    let receipt = receipt.await.expect("a disk that works");
    black_box(receipt.message.id);
    spool.settle(Settlement { id, copy: 0, recipient: 0, end: End::Delivered });
}

fn spool(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("spool");
    group.sample_size(20).measurement_time(Duration::from_secs(5));

    // What everything below is measured against: the disk itself, with blocks that were written before.
    group.bench_function("one fdatasync", |bencher| {
        let file = tempfile::NamedTempFile::new().expect("a file");
        let file = OpenOptions::new().write(true).open(file.path()).expect("a file");
        let block = [0; 1500];
        file.write_all_at(&vec![0; 16 << 20], 0).and_then(|()| file.sync_all()).expect("a disk that works");
        let mut at = 0;
        bencher.iter(|| {
            at = (at + block.len() as u64) % (15 << 20);
            file.write_all_at(&block, at).and_then(|()| file.sync_data()).expect("a disk that works");
        });
    });

    for (name, sessions, size) in [
        ("alone, 1 KiB", 1, 1 << 10),
        ("20 sessions, 1 KiB", 20, 1 << 10),
        ("200 sessions, 1 KiB", 200, 1 << 10),
        ("200 sessions, 10 KiB", 200, 10 << 10),
        ("20 sessions, 100 KiB", 20, 100 << 10),
        ("20 sessions, 4 MiB", 20, 4 << 20),
    ] {
        let bench = Bench::new();
        let body = Bytes::from(vec![b'x'; size]);
        group.throughput(Throughput::Elements(1));
        group.bench_function(name, |bencher| bencher.iter_custom(|messages| bench.run(sessions, messages, &body)));
    }
    group.finish();
}

criterion_group!(benches, spool);
criterion_main!(benches);
