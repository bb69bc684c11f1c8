//! A million deferred messages, and fewer, for comparison: no step may take time that grows faster than the queue.
//!
//!     scripts/million [MESSAGES]...        (10000 100000 1000000)
//!
//! Prints a Markdown table, one column for each size. The spool is made where `TMPDIR` says: a figure from a spool in RAM
//! is none. What each row means stands in `tests/common/deep.rs`.

#![allow(clippy::unwrap_used)] // what goes wrong here ends the run

#[path = "../tests/common/mod.rs"]
mod common;

use std::time::Duration;

use common::deep::{Deep, Figures};

/// What a row shows of a run.
type Row = (&'static str, fn(&Figures) -> String);

const ROWS: &[Row] = &[
    ("put and deferred", |figures| seconds(figures.filled)),
    ("start to the first 220", |figures| seconds(figures.first_220)),
    ("start to all indexed", |figures| seconds(figures.indexed)),
    ("CPU for that", |figures| seconds(figures.index_cpu)),
    ("the same after kill -9, with new mail behind it: 220", |figures| seconds(figures.restart_220)),
    ("indexed", |figures| seconds(figures.restart_indexed)),
    ("resident when indexed", |figures| mib(figures.resident)),
    ("most until then", |figures| mib(figures.peak)),
    ("bytes a message", |figures| format!("{}", figures.resident * 1024 / u64::from(figures.messages))),
    ("CPU while nothing is due", |figures| format!("{:.2} %", figures.idle_cpu * 100.0)),
    ("new mail in and out, no queue", |figures| format!("{:.0}/s", figures.rate_empty)),
    ("new mail past the queue", |figures| format!("{:.0}/s", figures.rate_deep)),
    ("hops come back: first arrival", |figures| seconds(figures.first_back)),
    ("all arrived, each once", |figures| seconds(figures.drained)),
    ("messages a second", |figures| format!("{:.0}/s", figures.drain_rate())),
    ("CPU a message", |figures| {
        format!("{:.0} µs", figures.drain_cpu.as_secs_f64() * 1e6 / f64::from(figures.messages))
    }),
    ("most resident meanwhile", |figures| mib(figures.peak_drain)),
    ("resident afterwards", |figures| mib(figures.resident_end)),
];

fn seconds(time: Duration) -> String {
    format!("{:.2} s", time.as_secs_f64())
}

fn mib(kib: u64) -> String {
    format!("{:.0} MiB", kib as f64 / 1024.0)
}

fn main() {
    // `cargo bench` adds words of its own.
    let mut sizes: Vec<u32> = std::env::args().skip(1).filter_map(|word| word.parse().ok()).collect();
    if sizes.is_empty() {
        sizes = vec![10_000, 100_000, 1_000_000];
    }
    let (idle, load) = (Duration::from_secs(10), Duration::from_secs(5));
    let measure = |messages: u32| {
        let patience = Duration::from_secs(120) + Duration::from_millis(1) * messages;
        Deep { messages, idle, load, patience }.measure()
    };
    let runs: Vec<Figures> = sizes.into_iter().map(measure).collect();
    let header: String = runs.iter().map(|run| format!(" {} |", run.messages)).collect();
    println!("| deferred messages |{header}");
    println!("| --- |{}", " --- |".repeat(runs.len()));
    for (name, show) in ROWS {
        let cells: String = runs.iter().map(|run| format!(" {} |", show(run))).collect();
        println!("| {name} |{cells}");
    }
}
