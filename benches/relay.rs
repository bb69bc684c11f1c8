//! The whole relay in one process: the demo's world, with TLS and certificate names demanded on every hop.
//!
//!     cargo bench --bench relay
//!
//! Generator, relay and both servers share the machine, and the spool lies in the system's folder for temporary files:
//! where that is in memory, the disk costs nothing here. The figures to quote come from benches/peers.

use std::time::{Duration, Instant};

use causeway::demo::{Plan, World, client};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use tokio::runtime::Runtime;
use tokio::task::JoinSet;

const CONTENT: &str = "Subject: bench\r\n\r\nA line of text that is neither long nor short, as lines of text are.\r\n";

/// Sends `count` messages from `sessions` senders at a time and waits until all copies arrived.
async fn round(world: &mut World, count: usize, recipients: &'static [&'static str]) -> Duration {
    let began = Instant::now();
    let door = world.internet_door;
    let mut senders = JoinSet::new();
    for sender in 0..20 {
        let share = count / 20 + usize::from(sender < count % 20);
        senders.spawn(async move {
            for _ in 0..share {
                let sent = client::send(door, "bench@fabrikam.com", recipients, "", CONTENT).await.expect("a session");
                assert!(sent.message.is_some_and(|reply| reply.is_positive()), "the relay takes it");
            }
        });
    }
    for _ in 0..count * recipients.len() {
        world.arrivals.recv().await.expect("the world stands");
    }
    while senders.join_next().await.is_some() {}
    began.elapsed()
}

fn relay(c: &mut Criterion) {
    let runtime = Runtime::new().expect("a runtime");
    let folder = std::env::temp_dir().join(format!("causeway-bench-{}", std::process::id()));
    let mut world = runtime.block_on(World::start(Plan::new(&folder))).expect("the world starts");
    let mut group = c.benchmark_group("relay, a connection per message");
    group.sample_size(10).measurement_time(Duration::from_secs(10)).throughput(Throughput::Elements(1));
    for (name, recipients) in [
        ("one recipient", &["julie@contoso.com"][..]),
        ("two recipients, two hops", &["julie@contoso.com", "david@contoso.com"][..]),
    ] {
        group.bench_function(name, |b| {
            b.iter_custom(|count| runtime.block_on(round(&mut world, count as usize, recipients)));
        });
    }
    group.finish();
    runtime.block_on(world.stop());
    let _ = std::fs::remove_dir_all(folder);
}

criterion_group!(benches, relay);
criterion_main!(benches);
