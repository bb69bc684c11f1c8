//! What everybody said and heard, and the judge of it.
//!
//! Who is asked: the clients (what they sent, and what they were answered) and the next hops (what they took, and whether
//! the relay read their answer). The relay is not asked. An *attempt* is one transaction of a client; its number
//! stands in its sender, its recipients and its header, so that nothing can be mixed up unseen.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::time::Duration;

use tokio::time::Instant;

use crate::tls::wire::Heard;

/// What a client knows of one attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Nothing was answered to its end.
    Unknown,
    /// 250.
    Accepted,
    /// 4yz or 5yz.
    Refused(u16),
}

/// One transaction of a client.
#[derive(Debug)]
pub struct Attempt {
    /// `None`: the null sender.
    pub sender: Option<String>,
    /// Those that were accepted at RCPT, and whether somebody is to be told of their failure.
    pub recipients: BTreeMap<String, bool>,
    /// As it was sent, before dots were stuffed.
    pub content: Vec<u8>,
    /// What the client heard.
    pub verdict: Verdict,
    /// The end of the content was handed to the network.
    pub complete: bool,
    /// The relay may have tried the next hops before it kept the message.
    pub early: bool,
    /// It was refused while no disk could be written, and the relay ended before one could: the refusal is nowhere.
    pub excused: bool,
    /// When MAIL was said.
    pub began: Instant,
    /// When the answer was read.
    pub answered: Option<Instant>,
}

/// A next hop took a message.
pub struct Delivery {
    /// The attempt; a report: the one whose sender it is for.
    pub attempt: usize,
    /// For whom.
    pub to: BTreeSet<String>,
    /// When.
    pub at: Instant,
    /// When its MAIL was read, and by which life of the relay it was said.
    pub began: (Instant, u64),
    /// Known once 250 was said: has the relay read it?
    pub answer: Option<Heard>,
    /// It is a report.
    pub report: Option<Report>,
}

/// What a report said.
#[derive(Debug)]
pub struct Report {
    /// Its own name.
    pub message_id: String,
    /// Recipients of which it says so.
    pub failed: BTreeSet<String>,
}

/// What an operator takes away.
pub enum Taken {
    /// The message of this sender.
    Message(String),
    /// The reports for this one.
    Report(String),
}

/// The relay ended without being asked to.
#[derive(Debug, Clone, Copy)]
pub struct Cut {
    /// When.
    pub at: Instant,
    /// Which life it was.
    pub life: u64,
    /// All that had been said by then was durable.
    pub calm: Instant,
}

/// What must be hit by the fixed seeds, each at least once.
pub type Counts = BTreeMap<&'static str, u64>;

/// See the module.
pub struct Oracle {
    pub attempts: Vec<Attempt>,
    pub deliveries: Vec<Delivery>,
    pub cuts: Vec<Cut>,
    /// A next hop said 5yz of this address.
    pub rejected: BTreeSet<String>,
    /// An operator returned what was left of these attempts.
    returned: BTreeSet<usize>,
    /// An operator took away what was left of this sender's, or what was for him.
    removed: BTreeSet<String>,
    pub counts: Counts,
    /// The wall clock was behind at some time.
    pub was_behind: bool,
    /// A start may have taken messages to be older than they were.
    pub ages_unknown: bool,
    /// What was wrong at the moment it happened.
    pub faults: Vec<String>,
    /// Of everything, in order: two runs of one seed must agree.
    pub digest: u64,
    began: Instant,
    pub log: Option<String>,
}

/// What was heard is written down so soon, where the disk works.
pub const RECORDED: Duration = Duration::from_secs(2);

impl Oracle {
    pub fn new(log: bool) -> Self {
        Self {
            attempts: Vec::new(),
            deliveries: Vec::new(),
            cuts: Vec::new(),
            rejected: BTreeSet::new(),
            returned: BTreeSet::new(),
            removed: BTreeSet::new(),
            counts: BTreeMap::new(),
            was_behind: false,
            ages_unknown: false,
            faults: Vec::new(),
            digest: 0xcbf2_9ce4_8422_2325,
            began: Instant::now(),
            log: log.then(String::new),
        }
    }

    pub fn count(&mut self, what: &'static str) {
        *self.counts.entry(what).or_default() += 1;
    }

    /// Something happened.
    pub fn note(&mut self, what: std::fmt::Arguments<'_>) {
        let line = format!("{:>12.4} {what}\n", self.began.elapsed().as_secs_f64());
        for byte in line.bytes() {
            self.digest = (self.digest ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        }
        if let Some(log) = &mut self.log {
            log.push_str(&line);
        }
    }

    pub fn fault(&mut self, what: String) {
        self.note(format_args!("FAULT {what}"));
        self.faults.push(what);
    }

    /// A message was taken for these by a hop; gives its number.
    pub fn deliver(
        &mut self,
        hop: &str,
        from: &str,
        to: BTreeSet<String>,
        content: &[u8],
        began: (Instant, u64),
    ) -> usize {
        let number = self.deliveries.len();
        self.note(format_args!("{hop} took #{number} from <{from}> for {to:?}, {} bytes", content.len()));
        let (attempt, report) = if from.is_empty() && to.iter().all(|to| to.starts_with('s')) {
            self.count("a report was delivered");
            (self.report_about(&to), Some(self.read_report(content)))
        } else {
            (self.check(from, &to, content), None)
        };
        self.deliveries.push(Delivery { attempt, to, at: Instant::now(), began, answer: None, report });
        number
    }

    /// What was taken was taken twice.
    pub fn repeat(&mut self, number: usize) {
        let Delivery { attempt, ref to, at, began: (_, life), ref answer, .. } = self.deliveries[number];
        let later = (at + Duration::from_secs(60), life);
        let again = Delivery { attempt, to: to.clone(), at, began: later, answer: answer.clone(), report: None };
        self.deliveries.push(again);
    }

    /// The relay ends, and since `since` it could write nothing: not that it refused what it refused, either.
    pub fn excuse(&mut self, since: Instant) {
        for attempt in self.attempts.iter_mut().filter(|attempt| attempt.answered.is_none_or(|at| at >= since)) {
            attempt.excused = true;
        }
    }

    /// An operator takes something away: a message, or the reports about one.
    pub fn take_away(&mut self, silently: bool) -> Option<Taken> {
        let recent = self.attempts.len().checked_sub(1)? - fastrand::usize(..self.attempts.len().min(8));
        let sender = self.attempts[recent].sender.clone()?;
        if !silently {
            self.returned.insert(recent);
            return Some(Taken::Message(sender));
        }
        if fastrand::bool() {
            self.removed.insert(format!("to {sender}"));
            return Some(Taken::Report(sender));
        }
        self.removed.insert(format!("from {sender}"));
        Some(Taken::Message(sender))
    }

    fn report_about(&mut self, to: &BTreeSet<String>) -> usize {
        let to = to.first().map(String::as_str).unwrap_or_default();
        let number = to.strip_prefix('s').and_then(|rest| rest.split('@').next()?.parse().ok());
        match number.filter(|number| *number < self.attempts.len()) {
            Some(number) => number,
            None => {
                self.fault(format!("a report for <{to}>, whom nobody is"));
                0
            }
        }
    }

    fn read_report(&mut self, content: &[u8]) -> Report {
        let text = String::from_utf8_lossy(content);
        let mut report = Report { message_id: String::new(), failed: BTreeSet::new() };
        let mut recipient = String::new();
        for line in text.lines() {
            let Some((name, value)) = line.split_once(':') else { continue };
            let value = value.trim();
            match name.to_ascii_lowercase().as_str() {
                // The first one; the original's comes behind it.
                "message-id" if report.message_id.is_empty() => report.message_id = value.to_owned(),
                "final-recipient" => recipient = value.split(';').next_back().unwrap_or_default().trim().to_owned(),
                "action" if value == "failed" => {
                    report.failed.insert(std::mem::take(&mut recipient));
                }
                "action" if value == "delayed" => self.count("a delay was reported"),
                _ => {}
            }
        }
        if report.message_id.is_empty() {
            self.fault("a report without a Message-ID".into());
        }
        report
    }

    /// P4, P5: bytes and envelope are those of one attempt.
    fn check(&mut self, from: &str, to: &BTreeSet<String>, content: &[u8]) -> usize {
        let head = String::from_utf8_lossy(&content[..content.len().min(2048)]).into_owned();
        let token = head.lines().find_map(|line| line.strip_prefix("X-Attempt: ")).and_then(|text| text.parse().ok());
        let Some(attempt) = token.filter(|number: &usize| *number < self.attempts.len()) else {
            self.fault(format!("a hop took a message that nobody sent: {head:?}"));
            return 0;
        };
        let known = &self.attempts[attempt];
        let mut wrong = Vec::new();
        if known.sender.as_deref().unwrap_or_default() != from {
            wrong.push(format!("attempt {attempt} left with sender <{from}>"));
        }
        wrong.extend(
            to.iter()
                .filter(|to| !known.recipients.contains_key(*to))
                .map(|to| format!("attempt {attempt} went to <{to}>, who is none of its recipients")),
        );
        // Behind one Received field of ours stands what came.
        let ours = own_field(content);
        if ours == 0 || content[ours..] != known.content[..] {
            wrong.push(format!("attempt {attempt} changed on its way: {head:?}"));
        }
        for wrong in wrong {
            self.fault(wrong);
        }
        attempt
    }

    /// Is there nothing of this attempt that has not ended?
    fn ended(&self, number: usize, to: &str) -> Ends {
        let mut ends = Ends::default();
        for (index, delivery) in self.deliveries.iter().enumerate() {
            match &delivery.report {
                None if delivery.attempt == number && delivery.to.contains(to) => ends.taken.push(index),
                Some(report) if delivery.attempt == number && report.failed.contains(to) => ends.reported.push(index),
                _ => {}
            }
        }
        ends
    }

    /// May the relay not know, or have forgotten, that this was taken?
    fn is_ambiguous(&self, index: usize) -> bool {
        let Some(heard) = self.deliveries[index].answer.as_ref().and_then(Heard::when) else { return true };
        self.cuts.iter().any(|cut| cut.at >= heard && heard + RECORDED >= cut.calm)
    }

    /// The end: what was promised is held against what happened. `lifetime`: what is older may have been given up.
    pub fn judge(&mut self, lifetime: Duration, report_lifetime: Duration) {
        let mut faults = Vec::new();
        let mut counts: Vec<&'static str> = Vec::new();
        let mut reports: BTreeMap<String, Vec<usize>> = BTreeMap::new();
        for (index, delivery) in self.deliveries.iter().enumerate() {
            if let Some(report) = &delivery.report {
                reports.entry(report.message_id.clone()).or_default().push(index);
            }
            if self.is_ambiguous(index) {
                counts.push("an end was ambiguous");
            }
        }
        // A report is a message like any other: no second copy without an ambiguous end.
        for (name, copies) in &reports {
            self.check_copies(&format!("report {name}"), copies, &mut faults, &mut counts);
        }
        for (number, attempt) in self.attempts.iter().enumerate() {
            let late = |ends: &Ends| match attempt.answered {
                Some(answered) => ends.taken.iter().any(|index| self.deliveries[*index].at > answered),
                None => false,
            };
            let mut before = 0;
            let mut after = 0;
            for (to, tell) in &attempt.recipients {
                let ends = self.ended(number, to);
                let what = format!("attempt {number} for <{to}>");
                let names: BTreeSet<&str> = ends.reported.iter().map(|index| self.name_of(*index)).collect();
                self.check_copies(&what, &ends.taken, &mut faults, &mut counts);
                if late(&ends) {
                    after += 1
                } else {
                    before += usize::from(!ends.taken.is_empty())
                }
                if !attempt.complete && (!ends.taken.is_empty() || !ends.reported.is_empty()) {
                    faults.push(format!("P2 ghost: {what} was never sent to its end, and went out"));
                }
                if let Verdict::Refused(code) = attempt.verdict {
                    if !names.is_empty() && !attempt.excused {
                        faults.push(format!("P2 ghost: {what} was refused with {code} and reported as failed"));
                    }
                    if !ends.taken.is_empty() {
                        counts.push(match (attempt.early, attempt.excused) {
                            (true, _) => "early: a hop took what the spool refused",
                            (false, _) => "a refusal was forgotten with its disk",
                        });
                        if !attempt.early && !attempt.excused {
                            faults.push(format!("P2 ghost: {what} was refused with {code} and delivered"));
                        }
                    }
                }
                if names.len() > 1 {
                    faults.push(format!("{what}: two reports say that it failed: {names:?}"));
                }
                if !names.is_empty() && ends.taken.iter().any(|index| !self.is_ambiguous(*index)) {
                    faults.push(format!("{what} was delivered, and reported as failed"));
                }
                let rejected = self.rejected.contains(to) || self.returned.contains(&number);
                let reported = ends.reported.iter().map(|index| self.deliveries[*index].at).min();
                let life = reported.map(|at| at.duration_since(attempt.began));
                if let Some(life) = life
                    && !rejected
                {
                    counts.push("a life was over");
                    // The last attempt begins at the end of the life, or a moment before it.
                    if life + Duration::from_secs(90) < lifetime && !self.ages_unknown {
                        faults
                            .push(format!("{what} was reported as failed after {life:?}, and nobody had rejected it"));
                    }
                }
                if attempt.verdict != Verdict::Accepted {
                    if attempt.verdict == Verdict::Unknown && !ends.taken.is_empty() {
                        counts.push("delivered, and its client never heard");
                    }
                    continue;
                }
                if ends.taken.is_empty() && ends.reported.is_empty() {
                    // Nobody was told: because nobody was to be, or could be.
                    let is_removed = |way: &str| {
                        let sender = attempt.sender.as_ref();
                        sender.is_some_and(|sender| self.removed.contains(&format!("{way} {sender}")))
                    };
                    if is_removed("from") {
                        counts.push("nothing is left of what an operator removed");
                        continue;
                    }
                    let silent = !tell || attempt.sender.is_none() || is_removed("to");
                    let deaf = attempt.sender.as_ref().is_some_and(|sender| self.rejected.contains(sender));
                    let old = attempt.began.elapsed();
                    let failed = rejected || old >= lifetime || self.ages_unknown;
                    let untold = silent || deaf || old >= report_lifetime || self.ages_unknown;
                    if failed && untold {
                        counts.push("nobody was to be told of a failure");
                    } else {
                        faults.push(format!("P1 loss: {what} was acknowledged, and ended nowhere"));
                    }
                }
            }
            if attempt.verdict == Verdict::Accepted && attempt.early {
                match (before, after) {
                    (1.., 0) => counts.push("early: delivered before it was acknowledged"),
                    (1.., 1..) => counts.push("early: kept half"),
                    _ => {}
                }
            }
        }
        for fault in faults {
            self.fault(fault);
        }
        counts.into_iter().for_each(|what| self.count(what));
    }

    fn name_of(&self, index: usize) -> &str {
        self.deliveries[index].report.as_ref().map_or("", |report| &report.message_id)
    }

    /// P3: once the relay has read that it was taken, and written it down, it does not begin again.
    fn check_copies(&self, what: &str, copies: &[usize], faults: &mut Vec<String>, counts: &mut Vec<&'static str>) {
        if copies.len() > 1 {
            counts.push("a second copy after an ambiguous end");
        }
        for index in copies {
            let Some(heard) = self.deliveries[*index].answer.as_ref().and_then(Heard::when) else { continue };
            // What a life had said that was over by then may still have been under way.
            let is_later = |other: &&usize| {
                let (began, life) = self.deliveries[**other].began;
                began > heard && !self.cuts.iter().any(|cut| cut.life == life && cut.at <= heard)
            };
            if copies.iter().any(|other| is_later(&other)) && !self.is_ambiguous(*index) {
                faults.push(format!("P3 duplicate: {what}: #{index} was answered, heard and recorded, and came again"));
            }
        }
    }

    /// How many recipients were acknowledged.
    pub fn acknowledged(&self) -> usize {
        let accepted = self.attempts.iter().filter(|attempt| attempt.verdict == Verdict::Accepted);
        accepted.map(|attempt| attempt.recipients.len()).sum()
    }

    /// All that is wrong, as a person reads it.
    pub fn findings(&self) -> String {
        self.faults.iter().fold(String::new(), |mut text, fault| {
            let _ = writeln!(text, "  {fault}");
            text
        })
    }
}

/// How a recipient ended: which deliveries, which reports.
#[derive(Default)]
struct Ends {
    taken: Vec<usize>,
    reported: Vec<usize>,
}

/// The length of the first field, if it is ours.
fn own_field(content: &[u8]) -> usize {
    if !content.starts_with(b"Received: ") {
        return 0;
    }
    let mut from = 0;
    while let Some(at) = memchr::memchr(b'\n', &content[from..]) {
        from += at + 1;
        if !matches!(content.get(from), Some(b' ' | b'\t')) {
            return from;
        }
    }
    0
}
