//! A demo that stays up: what people send is told in full, the trickle on one line.
//!
//! On a terminal that line is written over, and stands below everything else; a pipe gets it once in a while.

use std::io::{self, IsTerminal as _, Write as _};
use std::time::{Duration, Instant};

use anstream::{print, println};

use super::{DIM, End, heading, show_arrival, tell};
use crate::demo::hops::Place;
use crate::demo::{Arrival, Arrivals, Console, trickle};
use crate::message::header;
use crate::outcome::tracking::Record;

/// How often it looks for news.
const LOOK: Duration = Duration::from_millis(200);

/// A pipe gets the line that often.
const WHILE: Duration = Duration::from_secs(30);

/// What is shown.
pub(super) struct Screen {
    /// The name that the cloud's arrivals are shown with.
    cloud: &'static str,
    terminal: bool,
    /// The trickle's line is the last one, without an end.
    open: bool,
    /// What it says is new since it was shown.
    changed: bool,
    /// When it was shown to a pipe.
    shown: Option<Instant>,
    sum: Sum,
}

/// What became of the trickle.
#[derive(Debug, Default, PartialEq, Eq)]
struct Sum {
    messages: usize,
    delivered: usize,
    deferred: usize,
    refused: usize,
}

impl Sum {
    /// Takes note of one event. Of two relays that hand a message on both tell; what has arrived is counted by
    /// [`Sum::arrived`].
    fn note(&mut self, record: &Record) {
        match record.event.as_str() {
            "RECEIVE" => self.messages += 1,
            "DEFER" => self.deferred += record.to.len(),
            "FAIL" => self.refused += record.to.len(),
            _ => {}
        }
    }

    fn arrived(&mut self, arrival: &Arrival) {
        self.delivered += arrival.envelope.recipients.len();
    }

    fn line(&self) -> String {
        let Self { messages, delivered, deferred, refused } = self;
        format!(
            "trickle: {messages} messages received, {refused} refused; {delivered} recipients delivered, {deferred} deferrals"
        )
    }
}

impl Screen {
    pub(super) fn new(cloud: &'static str) -> Self {
        let terminal = io::stdout().is_terminal();
        Self { cloud, terminal, open: false, changed: false, shown: None, sum: Sum::default() }
    }

    /// Tells what happens, until the demo is ended. `news`: what the relays did since it was asked last.
    pub(super) async fn follow(
        mut self,
        arrivals: &mut Arrivals,
        mut news: impl FnMut() -> Vec<(Option<Place>, Record)>,
    ) -> io::Result<()> {
        let mut end = End::new()?;
        loop {
            let arrival = tokio::select! {
                () = end.wait() => break,
                Some(arrival) = arrivals.recv() => Some(arrival),
                () = tokio::time::sleep(LOOK) => None,
            };
            // First what led to it.
            for (relay, record) in news() {
                self.event(relay, &record);
            }
            if let Some(arrival) = arrival {
                self.arrival(&arrival);
            }
            self.refresh();
        }
        self.clear();
        println!();
        Ok(())
    }

    /// What a relay did.
    fn event(&mut self, relay: Option<Place>, record: &Record) {
        if trickle::is_ours(record) {
            self.sum.note(record);
            self.changed = true;
        } else {
            self.clear();
            tell(relay, record);
        }
    }

    /// What arrived.
    fn arrival(&mut self, arrival: &Arrival) {
        if is_ours(arrival) {
            self.sum.arrived(arrival);
            self.changed = true;
        } else {
            self.clear();
            show_arrival(arrival, self.cloud);
        }
    }

    /// The trickle's line, if there is news.
    fn refresh(&mut self) {
        if !self.changed && (self.open || !self.terminal) || self.sum == Sum::default() {
            return;
        }
        let line = self.sum.line();
        if self.terminal {
            let columns = crate::cli::page::columns().unwrap_or(80) - 1;
            let line: String = line.chars().take(columns).collect();
            self.clear();
            print!("{DIM}{line}{DIM:#}");
            let _ = io::stdout().flush();
            self.open = true;
        } else if self.shown.is_none_or(|shown| shown.elapsed() >= WHILE) {
            println!("{}", line.trim_end());
            self.shown = Some(Instant::now());
        }
        self.changed = false;
    }

    /// The last line is free again.
    fn clear(&mut self) {
        if std::mem::take(&mut self.open) {
            print!("\r\x1b[2K");
        }
    }
}

fn is_ours(arrival: &Arrival) -> bool {
    let mut ids = header::fields(&arrival.content).filter(|field| field.is("Message-ID"));
    ids.any(|id| trickle::is_our_id(String::from_utf8_lossy(id.value()).trim()))
}

/// Where the pages are.
pub(super) fn consoles(consoles: &[(&str, &Console)]) {
    if consoles.is_empty() {
        return;
    }
    heading("The console: open it in a browser");
    for (whose, console) in consoles {
        println!("    {console}{}{DIM}{whose}{DIM:#}", if whose.is_empty() { "" } else { "   " });
    }
    println!();
}
