//! A deep queue in short: what `scripts/million` measures with a million messages, with bounds that hold on a busy machine
//! and without optimization.

use std::time::Duration;

use crate::common::deep::Deep;

/// F-053, F-057: all of it is found again after a kill -9, waits for next to nothing, and arrives exactly once when its
/// hops are back.
#[test]
fn twenty_thousand_deferred_messages_cost_little_and_drain_once() {
    let (idle, load) = (Duration::from_secs(2), Duration::from_millis(1500));
    let deep = Deep { messages: 20_000, idle, load, patience: Duration::from_secs(120) };
    let figures = deep.measure();
    println!("{figures:#?}");
    let second = Duration::from_secs(1);
    assert!(figures.first_220 < 5 * second && figures.restart_220 < 5 * second, "doors open before all is read");
    assert!(figures.indexed < 30 * second && figures.restart_indexed < 30 * second);
    // 40 MiB for the daemon itself, and 1 KiB for each that waits: less than the message.
    assert!(figures.peak < 40 * 1024 + u64::from(figures.messages), "{} KiB", figures.peak);
    // What it does without a queue is some of it; a tick or two are the clock's own grain.
    assert!(figures.idle_cpu < 0.05, "{}", figures.idle_cpu);
    assert!(figures.rate_deep > figures.rate_empty / 3.0, "{figures:?}");
}
