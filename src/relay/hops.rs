//! Hops of every temper in made-up time: what the schedule makes of hours of them is seen in milliseconds.
//!
//! Only time and hops are made up; the schedule is the relay's own, and the simulation does with it what a worker does:
//! take, try, hand back what was not tried, put off what was refused, give feedback, take again.
//!
//! F-035, F-036, F-037 of the faults that the relay is held to.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::schedule::{Depth, Feedback, LaneId, Schedule};
use crate::config::ConnectorName;
use crate::message::Domain;
use crate::outcome::{jittered, ladder};
use crate::route::Hop;

/// The most connections a connector allows by default.
const MAX: usize = 20;

/// How long a connection that is refused takes.
const REFUSAL: Duration = Duration::from_millis(1);

/// How long a client waits for a server that says nothing. RFC 5321 section 4.5.3.2.1.
const HANG: Duration = Duration::from_mins(5);

const MINUTE: Duration = Duration::from_mins(1);

/// How a hop behaves.
#[derive(Debug, Clone, Copy)]
enum Temper {
    /// It takes a message in this time.
    Takes(Duration),
    /// It takes a message in this time, and connections beyond so many are answered 421.
    Crowded(usize, Duration),
    /// The same, but the connection is taken, and the message on it is answered 451 4.7.1.
    Throttles(usize, Duration),
    /// Connections are refused.
    Refuses,
    /// It takes connections and says nothing.
    Hangs,
    /// Every message is put off: 450 4.2.0.
    PutsOff,
}

#[derive(Debug, Clone, Copy)]
struct Item {
    attempts: u16,
}

struct Place {
    lane: LaneId,
    hop: Hop,
    temper: Temper,
    /// Connections now, and the most there were.
    open: usize,
    most_open: usize,
    /// When messages were taken.
    taken: Vec<Duration>,
    /// When an attempt began, and how many others were under way.
    begun: Vec<(Duration, usize)>,
    /// Attempts that were answered with a wish for less.
    refused: Vec<Duration>,
    /// Messages that were put off by the ladder.
    put_off: usize,
    busy: usize,
    /// Workers by time, for their mean.
    worker_seconds: f64,
}

struct Simulation {
    start: Instant,
    now: Instant,
    schedule: Schedule<Item>,
    retry: Vec<Duration>,
    places: Vec<Place>,
    under_way: BinaryHeap<Reverse<Try>>,
    sequence: u64,
    rng: fastrand::Rng,
}

/// An attempt under way: when it ends, its number, the place, how often the item was tried before, and how it ends.
type Try = (Instant, u64, usize, u16, End);

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum End {
    Taken,
    Crowded,
    Throttled,
    PutOff,
    Down,
}

impl Simulation {
    /// All places together bear so many connections.
    fn bounded(tempers: &[Temper], bound: usize) -> Self {
        let mut simulation = Self::new(tempers);
        simulation.schedule = Schedule::new(simulation.retry.clone()).bounded(bound);
        for place in &mut simulation.places {
            place.lane = simulation.schedule.lane(&via(), &place.hop, MAX);
        }
        simulation
    }

    fn new(tempers: &[Temper]) -> Self {
        let retry: Vec<_> = [1, 5, 10, 20, 30].map(|minutes| minutes * MINUTE).to_vec();
        let start = Instant::now();
        let mut simulation = Self {
            start,
            now: start,
            schedule: Schedule::new(retry.clone()),
            retry,
            places: Vec::new(),
            under_way: BinaryHeap::new(),
            sequence: 0,
            rng: fastrand::Rng::with_seed(7),
        };
        for (number, &temper) in tempers.iter().enumerate() {
            let hop = Hop::Mx(Domain::parse(&format!("d{number}.example")).unwrap());
            let lane = simulation.schedule.lane(&via(), &hop, MAX);
            simulation.places.push(Place {
                lane,
                hop,
                temper,
                open: 0,
                most_open: 0,
                taken: Vec::new(),
                begun: Vec::new(),
                refused: Vec::new(),
                put_off: 0,
                busy: 0,
                worker_seconds: 0.0,
            });
        }
        simulation
    }

    /// So many messages come for a hop.
    fn put(&mut self, place: usize, count: usize) {
        for _ in 0..count {
            let lane = self.schedule.lane(&via(), &self.places[place].hop, MAX);
            if self.schedule.ready(lane, Item { attempts: 0 }) {
                self.take(place);
            }
        }
    }

    fn place_of(&self, lane: LaneId) -> usize {
        self.places.iter().position(|place| place.lane == lane).unwrap()
    }

    fn elapsed(&self) -> Duration {
        self.now - self.start
    }

    fn depth(&self, place: usize) -> Depth {
        self.schedule.depth(self.places[place].lane)
    }

    /// Until this time has passed since the start.
    fn run_until(&mut self, end: Duration) {
        let end = self.start + end;
        loop {
            let ends = self.under_way.peek().map(|Reverse((at, ..))| *at);
            let Some(at) = ends.into_iter().chain(self.schedule.next_due()).min().filter(|at| *at <= end) else {
                break;
            };
            self.pass(at.max(self.now));
            while let Some(Reverse((at, ..))) = self.under_way.peek()
                && *at <= self.now
            {
                let Some(Reverse((_, _, place, attempts, what))) = self.under_way.pop() else { break };
                self.end(place, Item { attempts }, what);
            }
            for lane in self.schedule.due(self.now) {
                let place = self.place_of(lane);
                self.take(place);
            }
        }
        self.pass(end);
    }

    fn pass(&mut self, at: Instant) {
        let passed = (at - self.now).as_secs_f64();
        for place in &mut self.places {
            place.worker_seconds += passed * place.busy as f64;
        }
        self.now = at;
    }

    /// A worker that was counted takes its next.
    fn take(&mut self, at: usize) {
        let Some(item) = self.schedule.take(self.places[at].lane, self.now) else {
            for lane in self.schedule.fill() {
                let place = self.place_of(lane);
                self.take(place);
            }
            return;
        };
        let since = self.now - self.start;
        let place = &mut self.places[at];
        place.begun.push((since, place.busy));
        place.busy += 1;
        place.open += 1;
        let (after, end) = match place.temper {
            Temper::Takes(service) => (service, End::Taken),
            Temper::Crowded(limit, _) if place.open > limit => (REFUSAL, End::Crowded),
            Temper::Throttles(limit, service) if place.open > limit => (service, End::Throttled),
            Temper::Crowded(_, service) | Temper::Throttles(_, service) => (service, End::Taken),
            Temper::Refuses => (REFUSAL, End::Down),
            Temper::Hangs => (HANG, End::Down),
            Temper::PutsOff => (REFUSAL, End::PutOff),
        };
        // One that is refused does not count as open where it was refused.
        if matches!(end, End::Crowded) || matches!(place.temper, Temper::Refuses) {
            place.open -= 1;
        }
        place.most_open = place.most_open.max(place.open);
        self.sequence += 1;
        self.under_way.push(Reverse((self.now + after, self.sequence, at, item.attempts, end)));
    }

    /// What a worker does with what came of an attempt.
    fn end(&mut self, at: usize, item: Item, end: End) {
        let (now, since) = (self.now, self.now - self.start);
        let place = &mut self.places[at];
        place.busy -= 1;
        if end != End::Crowded && !matches!(place.temper, Temper::Refuses) {
            place.open -= 1;
        }
        let lane = place.lane;
        let (feedback, untried) = match end {
            End::Taken => {
                place.taken.push(since);
                (Feedback::Ok, None)
            }
            End::Crowded => {
                place.refused.push(since);
                (Feedback::Crowded, self.schedule.put_back(lane, item).err())
            }
            End::Throttled => {
                place.refused.push(since);
                (Feedback::Throttled, Some(item))
            }
            End::PutOff => (Feedback::Ok, Some(item)),
            End::Down => (Feedback::Down, Some(item)),
        };
        if let Some(item) = untried {
            let attempts = item.attempts + 1;
            let wait = jittered(ladder(&self.retry, attempts), self.rng.f64());
            self.schedule.later(now + wait, lane, Item { attempts });
            self.places[at].put_off += 1;
        }
        let more = self.schedule.feedback(lane, now, feedback, self.rng.f64());
        for _ in 0..=more {
            self.take(at);
        }
    }
}

fn via() -> ConnectorName {
    ConnectorName(Arc::from("to-internet"))
}

const fn millis(count: u64) -> Duration {
    Duration::from_millis(count)
}

const fn seconds(count: u64) -> Duration {
    Duration::from_secs(count)
}

/// How many of these times fall into each second.
fn by_second(times: impl Iterator<Item = Duration>) -> Vec<usize> {
    let mut counts = Vec::new();
    for time in times {
        let second = time.as_secs() as usize;
        if counts.len() <= second {
            counts.resize(second + 1, 0);
        }
        counts[second] += 1;
    }
    counts
}

/// F-037: what is sent at a time settles just below what the hop refuses, and rises again when the limit is lifted. Where
/// the hop refuses connections, not one message is put off for that, and hardly a connection is refused.
#[test]
fn f037_concurrency_settles_near_the_limit_and_rises_again() {
    for limit in [1, 2, 3, 5, 10, 19] {
        for temper in [Temper::Crowded(limit, millis(20)), Temper::Throttles(limit, millis(20))] {
            let row = format!("{temper:?}");
            let mut simulation = Simulation::new(&[temper]);
            simulation.put(0, 200_000);
            simulation.run_until(seconds(20));
            let (before, refused) = (simulation.places[0].worker_seconds, simulation.places[0].refused.len());
            simulation.run_until(seconds(80));
            let place = &simulation.places[0];
            let mean = (place.worker_seconds - before) / 60.0;
            assert!((0.9 * limit as f64..=1.05 * limit as f64).contains(&mean), "{row}: {mean} at a time");
            // Asked every five seconds whether one more is still too many. A message that is refused keeps its connection
            // for as long as any, so that those that begin meanwhile are too many as well.
            let most = if matches!(temper, Temper::Crowded(..)) { 20 } else { 15 * (limit + 1) };
            let asked = place.refused.len() - refused;
            assert!((8..=most).contains(&asked), "{row}: refused {asked} times in a minute");
            assert!(refused <= 120, "{row}: refused {refused} times until it was known");
            if matches!(temper, Temper::Crowded(..)) {
                assert_eq!(place.put_off, 0, "{row}");
            }
            assert_eq!(place.most_open, if matches!(temper, Temper::Crowded(..)) { limit } else { MAX }, "{row}");
            simulation.places[0].temper = Temper::Takes(millis(20));
            simulation.run_until(seconds(95));
            assert_eq!(simulation.depth(0).active, MAX, "{row}: the limit was lifted");
        }
    }
}

/// After a restart everything is due at once. However many domains that is, no more connections are open than there may
/// be; every domain gets its turn early, a large one does not keep the small ones waiting, and one that hangs holds
/// no more than its places.
#[test]
fn a_restart_with_thousands_of_domains_opens_no_more_connections_than_may_be() {
    const BOUND: usize = 100;
    const SMALL: usize = 2000;
    let mut tempers = vec![Temper::Takes(millis(20)); SMALL + 1];
    tempers.extend([Temper::Hangs; 20]);
    tempers.extend([Temper::Refuses; 200]);
    let mut simulation = Simulation::bounded(&tempers, BOUND);
    let mut most = 0;
    // The large domain is the first, and has enough for all.
    simulation.put(0, 50_000);
    for place in 1..tempers.len() {
        simulation.put(place, if place % 2 == 0 { 3 } else { 12 });
    }
    for tick in 1..=3000 {
        simulation.run_until(millis(20 * tick));
        most = most.max(simulation.under_way.len());
    }
    assert_eq!(most, BOUND - BOUND / 4, "all places that MX may have are used, and no more");
    let small = &simulation.places[1..=SMALL];
    // 75 at 20 ms are 3750 a second, less what hangs: 15,000 messages, of which a slice each goes first.
    let first = small.iter().map(|place| place.taken[0]).max().unwrap();
    assert!(first < seconds(8), "the last of the small ones began after {first:?}");
    for (number, place) in small.iter().enumerate() {
        let all = if (number + 1) % 2 == 0 { 3 } else { 12 };
        assert_eq!(place.taken.len(), all, "place {}", number + 1);
    }
    let large = &simulation.places[0];
    assert!(large.taken.iter().any(|at| *at < seconds(1)), "the large one moves meanwhile");
    assert!(large.taken.len() > 20_000, "and then takes all that is left: {}", large.taken.len());
    assert!(large.most_open == MAX);
    simulation.run_until(90 * MINUTE);
    assert_eq!(simulation.places[0].taken.len(), 50_000);
    let (active, line) = simulation.schedule.load();
    assert!(active <= BOUND && line <= tempers.len(), "{active} {line}");
}

/// Somebody has us write reports to thousands of domains of his, whose MX take the connection and say nothing. Mail
/// to our own servers goes on meanwhile.
#[test]
fn domains_that_hang_do_not_stop_mail_to_our_own_servers() {
    let mut tempers = vec![Temper::Takes(millis(20))];
    tempers.extend([Temper::Hangs; 5000]);
    let mut simulation = Simulation::bounded(&tempers, 16);
    simulation.places[0].hop = Hop::SmartHosts;
    simulation.places[0].lane = simulation.schedule.lane(&via(), &Hop::SmartHosts, MAX);
    for place in 1..tempers.len() {
        simulation.put(place, 1);
    }
    simulation.run_until(seconds(1));
    simulation.put(0, 10_000);
    simulation.run_until(seconds(80));
    // Three places at 20 ms are 150 a second.
    assert_eq!(simulation.places[0].taken.len(), 10_000);
    assert_eq!(simulation.schedule.load().0, 12, "the others hang");
}

/// A hop that answers 421 to everything, because it ends or is full, is not asked for each message that waits.
#[test]
fn f037_a_hop_that_is_always_full_is_left_alone() {
    let mut simulation = Simulation::new(&[Temper::Crowded(0, millis(20))]);
    simulation.put(0, 10_000);
    simulation.run_until(10 * MINUTE);
    let place = &simulation.places[0];
    assert!(place.begun.len() <= 60, "{} attempts", place.begun.len());
    assert!(place.put_off <= 10, "{} messages put off", place.put_off);
    assert!(simulation.depth(0).resting.is_some());
    simulation.places[0].temper = Temper::Takes(millis(20));
    simulation.run_until(30 * MINUTE);
    assert_eq!(simulation.places[0].taken.len(), 10_000);
}

/// Beside a hop that throttles, one that is far away, one that hangs and one that is down, the healthy one gets each of
/// its messages at the very instant at which it gets it without them.
#[test]
fn healthy_hops_do_not_notice_the_others() {
    let tempers = [
        Temper::Takes(millis(1)),
        Temper::Takes(millis(20)),
        Temper::Crowded(3, millis(5)),
        Temper::Throttles(3, millis(5)),
        Temper::Hangs,
        Temper::Refuses,
        Temper::PutsOff,
    ];
    let taken = |tempers: &[Temper]| {
        let mut simulation = Simulation::new(tempers);
        for _ in 0..20 {
            for place in 0..tempers.len() {
                simulation.put(place, 500);
            }
            simulation.run_until(simulation.elapsed() + millis(100));
        }
        simulation.run_until(30 * MINUTE);
        let healthy = simulation.places.into_iter().take(2).map(|place| place.taken);
        healthy.collect::<Vec<_>>()
    };
    let (alone, beside) = (taken(&tempers[..2]), taken(&tempers));
    assert_eq!(alone.iter().map(Vec::len).collect::<Vec<_>>(), [10_000, 10_000]);
    assert!(alone == beside, "a healthy hop waits for another");
}

/// A hop that hangs costs its connections, once; then it is probed by one at a time, at the ladder's pace.
#[test]
fn a_hop_that_hangs_holds_no_more_than_its_connections_and_is_probed_alone() {
    let mut simulation = Simulation::new(&[Temper::Hangs]);
    simulation.put(0, 10_000);
    simulation.run_until(HANG + seconds(40));
    assert_eq!((simulation.places[0].begun.len(), simulation.places[0].most_open), (MAX, MAX));
    assert!(simulation.depth(0).resting.is_some());
    simulation.run_until(6 * 60 * MINUTE);
    let probes = &simulation.places[0].begun[MAX..];
    assert!(probes.iter().all(|(_, others)| *others == 0), "{probes:?}");
    assert!((8..=14).contains(&probes.len()), "{} probes in six hours", probes.len());
}

/// F-035, the recovery herd: 10,000 messages wait out an hour. Meanwhile the hop is probed by the ladder, with one
/// connection; when it is back it meets one, then 1, 2, 4… and never more than 20, and has all within a retry interval.
#[test]
fn f035_ten_thousand_messages_wait_out_an_hour() {
    let mut simulation = Simulation::new(&[Temper::Refuses, Temper::Takes(millis(10))]);
    for minute in 0..60 {
        simulation.put(0, if minute == 0 { 4100 } else { 100 });
        simulation.put(1, 100);
        simulation.run_until((minute + 1) * MINUTE);
    }
    let before = &simulation.places[0].begun;
    assert!(before.len() <= MAX + 8, "{} attempts while it was down", before.len());
    assert!(before[MAX..].iter().all(|(_, others)| *others == 0), "probed by more than one: {before:?}");
    assert_eq!(simulation.places[1].taken.len(), 6000);

    let probes = before.len();
    simulation.places[0].temper = Temper::Takes(millis(10));
    let hour = simulation.elapsed();
    simulation.run_until(hour + 37 * MINUTE);
    let place = &simulation.places[0];
    assert_eq!(place.taken.len(), 10_000, "drained within one interval of the ladder's last rung and its jitter");
    assert_eq!(place.most_open, MAX);
    // How many were at it while the first, the next two, the next four… were taken.
    let after = &place.begun[probes..];
    let mut round = after[0].0;
    let mut rounds = Vec::new();
    for _ in 0..7 {
        rounds.push(after.iter().filter(|(at, _)| *at == round).count());
        round += millis(10);
    }
    assert_eq!(rounds, [1, 2, 4, 8, 16, 20, 20]);
    let last = place.taken.last().unwrap();
    assert!(*last - after[0].0 < seconds(6), "10,000 messages at 20 every 10 ms");
}

/// F-035, jitter: what fell over together does not come back together. In the span in which a wave comes no second has
/// more than twice its mean; neither of messages that one hop put off, nor of hops that went down at the same moment.
#[test]
fn f035_no_second_has_more_than_twice_the_mean() {
    let mut one = Simulation::new(&[Temper::PutsOff]);
    one.put(0, 10_000);
    one.run_until(90 * MINUTE);
    let mut many = Simulation::new(&[Temper::Refuses; 2000]);
    for place in 0..2000 {
        many.put(place, 3);
    }
    many.run_until(90 * MINUTE);
    let of_all = |simulation: &Simulation| {
        by_second(simulation.places.iter().flat_map(|place| place.begun.iter().map(|(at, _)| *at)))
    };
    for (what, seconds) in [("messages", of_all(&one)), ("hops", of_all(&many))] {
        // The first retries: 48 to 72 s. The second: 240 to 360 s after them.
        for span in [48..72, 288..432] {
            let wave = &seconds[span.clone()];
            let mean = wave.iter().sum::<usize>() as f64 / wave.len() as f64;
            let most = *wave.iter().max().unwrap();
            assert!(mean > 1.0, "{what}: nothing is tried in {span:?}");
            assert!(most as f64 <= 2.0 * mean, "{what} {span:?}: {most} in a second, {mean} on average");
        }
        // Later waves only get flatter.
        let (first, later) = (seconds[48..72].iter().max(), seconds[432..].iter().max());
        assert!(later < first, "{what}: {later:?} {first:?}");
    }
}

/// F-036: a hop that comes and goes every second. Nothing spins: what finds it away rests as ever, so that each visit
/// costs at most one failure per connection, and the seconds in which it is there are used.
#[test]
fn f036_a_hop_that_flaps_is_not_stormed() {
    let mut simulation = Simulation::new(&[Temper::Takes(millis(5))]);
    simulation.put(0, 10_000);
    for second in 1..=3 * 3600 {
        simulation.run_until(seconds(second));
        simulation.places[0].temper = if second % 2 == 0 { Temper::Takes(millis(5)) } else { Temper::Refuses };
    }
    let place = &simulation.places[0];
    assert_eq!(place.taken.len(), 10_000);
    let failed = place.begun.len() - place.taken.len();
    assert!(failed <= 200, "{failed} attempts in vain");
    let tries = by_second(place.begun.iter().map(|(at, _)| *at));
    let taken = by_second(place.taken.iter().copied());
    for (second, tries) in tries.iter().enumerate() {
        let taken = taken.get(second).copied().unwrap_or(0);
        assert!(tries.saturating_sub(taken) <= 2 * MAX, "second {second}: {tries} attempts, {taken} messages taken");
    }
}
