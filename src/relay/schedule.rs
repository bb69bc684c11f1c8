//! Which copy is tried next, and when. No clock, no tasks, no I/O: instants and random fractions are arguments.
//!
//! Each next hop has a *lane*: a queue of what is ready, a count of workers, and a *window*, the most workers it may
//! have now. The window halves when the hop says that it has had enough, and grows again with the successes of workers
//! that use all of it, up to one less than was too many; whether that still is too many is asked every few seconds. A
//! hop that cannot be reached rests along the ladder of `retry`, is then probed by one worker, and gets 1, 2, 4… of
//! them while it answers. Lanes share nothing, so one that rests holds up nobody else. What is due later waits in one
//! heap ordered by time.
//!
//! All lanes together have a bound too: more connections than there are descriptors and memory for help nobody. Where it is
//! reached, lanes wait in line for places. While one without any worker waits, a lane gives up all of its own but one
//! as they come back for more, and that one after a few items; then it stands in line again. So a lane with a million
//! items and one with a single one both move, and none is passed over for ever.
//!
//! There are two lines. Hops that the configuration names are few and ours; hops that an MX names are as many as
//! strangers like, and each may hang for minutes. So those together never have all places, and the others go first.
//!
//! A connector's rate gives turns. Where the next one is not due, the lane pauses until it is: it keeps its items and has
//! no worker for them meanwhile. A lane has one turn at a time, so those of many domains come by turns.
//!
//! A worker is a task that takes an item, tries it, gives feedback and takes the next, until [`Schedule::take`] says
//! `None`. Every method that returns workers to start has counted them already.
//!
//! Not here: how long one copy waits after an attempt (`outcome::judge`).

use std::cmp::Reverse;
use std::collections::{BTreeSet, BinaryHeap, VecDeque};
use std::time::{Duration, Instant};

use crate::config::ConnectorName;
use crate::outcome::{Setback, jittered, ladder};
use crate::random::HashMap;
use crate::route::Hop;

/// Where a window starts, unless the connector allows less: Postfix's `default_destination_concurrency_limit`.
const FIRST_WINDOW: usize = 20;

/// So many lanes stay although nothing is in them, with what they learned of their hops. More are used again for
/// others: the domains of a spam run must not stay for ever.
const IDLE_LANES: usize = 4096;

/// So often in a row may a hop ask a single worker for less before it is left alone for a while like one that is down:
/// otherwise every message that waits would be tried against a server that answers 421 to all.
const PATIENCE: u16 = 3;

/// So many items are moved at a time. A million may be due at once, after a long night or when a connector is mended, and
/// nobody is to wait for the queue until all of them have moved.
const DUE_AT_ONCE: usize = 1000;

/// Room that a queue keeps although nothing is in it.
const KEPT_ROOM: usize = 256;

/// So many items a lane's only worker takes before another lane gets its place: one for each would cost a connection each.
const SLICE: usize = 10;

/// After so long a hop is asked whether as many connections as were too many still are: often enough that a limit that
/// was lifted is noticed, seldom enough that nobody minds one connection refused.
const ASK_AGAIN: Duration = Duration::from_secs(5);

/// One lane; a number that is cheap to keep with each item. It is good for as long as anything is in the lane or
/// works for it or [holds](Schedule::sweep) something of it, and from [`Schedule::lane`] to the [`ready`](Schedule::ready) or [`later`](Schedule::later) that
/// follows under the same lock.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct LaneId(u32);

/// Who makes a lane's hop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// The configuration.
    Ours,
    /// Whoever owns the domain that mail is for.
    Strange,
}

impl Kind {
    fn of(hop: &Hop) -> Self {
        match hop {
            Hop::SmartHosts => Self::Ours,
            Hop::Mx(_) => Self::Strange,
        }
    }
}

/// The lanes of one kind that would have more places, and how many they all have.
#[derive(Debug, Default)]
struct Line {
    active: usize,
    /// Those that have work and no worker.
    first: VecDeque<LaneId>,
    /// Those that have some, and would have more.
    more: VecDeque<LaneId>,
}

/// How far [`Schedule::glance`] is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Place {
    lane: usize,
    at: usize,
}

/// What an attempt says of the hop, whatever became of the message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Feedback {
    /// It answered.
    Ok,
    /// It wants fewer connections: 421, 4.7.x, a time-out (F-037). See `Setback::throttles`.
    Throttled,
    /// It took no further connection, and heard of no message: so many at a time are too many. See
    /// `Setback::is_crowded`.
    Crowded,
    /// None of its hosts can be used. See `Setback::concerns_hop`.
    Down,
}

impl Feedback {
    /// What a result says of the hop. A host that cannot be reached is down, whether it refuses or lets us wait.
    pub fn of(result: Result<(), &Setback>) -> Self {
        match result {
            Err(setback) if setback.concerns_hop() => Self::Down,
            Err(setback) if setback.is_crowded() => Self::Crowded,
            Err(setback) if setback.throttles() => Self::Throttled,
            _ => Self::Ok,
        }
    }
}

/// How a lane stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Depth {
    /// Items that could be tried now.
    pub ready: usize,
    /// Workers.
    pub active: usize,
    /// Items that wait for their time.
    pub later: usize,
    /// The most workers it may have now.
    pub window: usize,
    /// It rests until then.
    pub resting: Option<Instant>,
}

/// All lanes and what waits in them.
#[derive(Debug)]
pub struct Schedule<T> {
    lanes: Vec<Lane<T>>,
    names: HashMap<(ConnectorName, Hop), LaneId>,
    /// Places in `lanes` that nobody has.
    free: Vec<LaneId>,
    /// Past this many lanes, those that are empty are looked for. Doubles with those that are not, so that the search
    /// costs each new lane a constant.
    sweep_at: usize,
    later: BinaryHeap<Reverse<Later<T>>>,
    /// Numbers the entries of `later`: equal instants keep their order.
    sequence: u64,
    /// When lanes that rest are to be woken.
    wakes: BTreeSet<(Instant, LaneId)>,
    /// When the turns of lanes that pause are due.
    turns: BTreeSet<(Instant, LaneId)>,
    retry: Vec<Duration>,
    ready: usize,
    /// Workers of all lanes, and how many there may be.
    active: usize,
    bound: usize,
    /// By [`Kind`].
    lines: [Line; 2],
}

#[derive(Debug)]
struct Lane<T> {
    /// `None`: the place is free.
    name: Option<(ConnectorName, Hop)>,
    kind: Kind,
    ready: VecDeque<T>,
    later: usize,
    /// So many of these are not to be tried, and stay only since they cannot be found: see [`Schedule::pass_over`].
    passed: usize,
    active: usize,
    /// Workers that have not come for their first item: that one is theirs.
    fresh: usize,
    /// Items taken while others stood in line.
    streak: usize,
    /// The last that was heard of its hop was a success.
    answers: bool,
    /// It stands in line for its first worker, and for another.
    in_line: bool,
    wants_more: bool,
    /// Handed out by `lane`, and nothing put in yet.
    claims: usize,
    /// Taken out by `sweep`, and not let go yet.
    held: usize,
    max: usize,
    window: f64,
    /// Below it the window doubles in a round of attempts; above it grows by one.
    threshold: f64,
    /// Attempts that began before the window was last halved: what they say was answered by that already.
    stale: usize,
    /// So many workers were too many, and until then nobody asks whether they still are.
    too_many: Option<(usize, Instant)>,
    /// How often in a row its only worker was told that even one is too many.
    throttled: u16,
    /// How often in a row it was found down.
    failures: u16,
    resting: Option<Instant>,
    /// No item goes before its turn, which is then.
    paused: Option<Instant>,
    /// Its turn has come, and no item has gone for it yet.
    has_turn: bool,
    /// Why it rests, or is slow.
    last: Option<Setback>,
    /// Why the item waits that was last put off.
    deferral: Option<Box<Setback>>,
}

#[derive(Debug)]
struct Later<T> {
    at: Instant,
    sequence: u64,
    lane: LaneId,
    item: T,
}

impl<T> Schedule<T> {
    /// An empty schedule. A hop that is down rests along this ladder; its last rung repeats.
    pub fn new(retry: Vec<Duration>) -> Self {
        Self {
            lanes: Vec::new(),
            names: HashMap::default(),
            free: Vec::new(),
            sweep_at: IDLE_LANES,
            later: BinaryHeap::new(),
            sequence: 0,
            wakes: BTreeSet::new(),
            turns: BTreeSet::new(),
            retry,
            ready: 0,
            active: 0,
            bound: usize::MAX,
            lines: Default::default(),
        }
    }

    /// The most workers that all lanes may have together. Whoever sets it calls [`Schedule::fill`] after each
    /// [`Schedule::take`] that said `None` and each [`Schedule::abandoned`], under the same lock.
    #[must_use]
    pub fn bounded(self, bound: usize) -> Self {
        Self { bound: bound.max(1), ..self }
    }

    /// How many workers all lanes have, and how many lanes that have none stand in line for one.
    pub fn load(&self) -> (usize, usize) {
        (self.active, self.lines.iter().map(|line| line.first.len()).sum())
    }

    /// So many workers all lanes of a kind may have. What strangers make leaves a quarter to what is ours; that leaves
    /// them a little, so that nothing waits for ever.
    fn share(&self, kind: Kind) -> usize {
        match kind {
            Kind::Ours => self.bound - self.bound / 16,
            Kind::Strange => self.bound - self.bound / 4,
        }
    }

    /// How many places there are for lanes of a kind. The last are for those that have none: hops that hang could
    /// otherwise hold them all.
    fn room(&self, kind: Kind, first: bool) -> usize {
        let share = self.share(kind);
        let (most, all) = match first {
            true => (share, self.bound),
            false => (share - share / 4, self.bound - self.bound / 16),
        };
        most.saturating_sub(self.line(kind).active).min(all.saturating_sub(self.active))
    }

    /// From here on a lane has one worker until its hop has answered: one that hangs gives nothing back for minutes.
    fn is_scarce(&self) -> bool {
        self.active >= (self.bound - self.bound / 4) / 2
    }

    fn line(&self, kind: Kind) -> &Line {
        &self.lines[kind as usize]
    }

    /// Does a lane without any worker stand in line to whom one of this kind gives way?
    fn is_awaited(&self, kind: Kind) -> bool {
        let ours = self.line(Kind::Ours);
        match kind {
            Kind::Ours => !ours.first.is_empty(),
            Kind::Strange => {
                let use_it = ours.active < self.share(Kind::Ours);
                !self.line(kind).first.is_empty() || (use_it && !ours.first.is_empty())
            }
        }
    }

    /// Gives places that became free to those in line: a lane once for each worker to start.
    #[must_use = "workers that were counted have to be started"]
    pub fn fill(&mut self) -> Vec<LaneId> {
        let mut start = Vec::new();
        while let Some(id) = self.next_in_line() {
            let scarce = self.is_scarce();
            let lane = self.lane_mut(id);
            let wanted = lane.wants(lane.ready.len()).min(lane.may_have(scarce));
            if wanted > 0 {
                self.enter(id, 1);
                start.push(id);
            }
            if wanted > 1 {
                self.queue_up(id);
            }
        }
        start
    }

    fn next_in_line(&mut self) -> Option<LaneId> {
        for (kind, first) in [(Kind::Ours, true), (Kind::Ours, false), (Kind::Strange, true), (Kind::Strange, false)] {
            while self.room(kind, first) > 0 {
                let line = &mut self.lines[kind as usize];
                let next = if first { line.first.pop_front() } else { line.more.pop_front() };
                let Some(id) = next else { break };
                let lane = self.lane_mut(id);
                if lane.kind != kind {
                    // It was empty, and is another hop's by now.
                    continue;
                }
                match first {
                    true => lane.in_line = false,
                    false => lane.wants_more = false,
                }
                return Some(id);
            }
        }
        None
    }

    fn queue_up(&mut self, id: LaneId) {
        let lane = self.lane_mut(id);
        let (kind, first) = (lane.kind, lane.active == 0);
        let stands = if first { &mut lane.in_line } else { &mut lane.wants_more };
        if !std::mem::replace(stands, true) {
            let line = &mut self.lines[kind as usize];
            let end = if first { &mut line.first } else { &mut line.more };
            end.push_back(id);
        }
    }

    /// Counts as many new workers as there is work, window and place for; for the others the lane stands in line.
    fn recruit(&mut self, id: LaneId, work: usize) -> usize {
        let lane = &self.lanes[id.0 as usize];
        let wanted = lane.wants(work).min(lane.may_have(self.is_scarce()));
        if wanted == 0 {
            return 0;
        }
        let (kind, mut workers) = (lane.kind, 0);
        if !self.is_awaited(kind) {
            workers = usize::from(lane.active == 0 && self.room(kind, true) > 0);
            if self.line(kind).more.is_empty() && lane.active + workers > 0 {
                workers += (wanted - workers).min(self.room(kind, false).saturating_sub(workers));
            }
        }
        self.enter(id, workers);
        if workers < wanted {
            self.queue_up(id);
        }
        workers
    }

    /// So many workers of this lane begin.
    fn enter(&mut self, id: LaneId, workers: usize) {
        let lane = self.lane_mut(id);
        lane.active += workers;
        lane.fresh += workers;
        let kind = lane.kind;
        self.lines[kind as usize].active += workers;
        self.active += workers;
    }

    /// A worker of this lane is no more.
    fn leave(&mut self, id: LaneId) {
        let lane = self.lane_mut(id);
        lane.leave();
        let kind = lane.kind;
        let line = &mut self.lines[kind as usize];
        line.active = line.active.saturating_sub(1);
        self.active = self.active.saturating_sub(1);
    }

    /// After a reload: the ladder from now on. Lanes that rest already keep their time.
    pub fn set_retry(&mut self, retry: Vec<Duration>) {
        self.retry = retry;
    }

    /// The lane of this hop, made if there is none; `max` is the connector's `max_connections`. To be followed by
    /// `ready` or `later`.
    pub fn lane(&mut self, via: &ConnectorName, hop: &Hop, max: usize) -> LaneId {
        let name = (via.clone(), hop.clone());
        let max = max.max(1);
        if let Some(&id) = self.names.get(&name) {
            let lane = self.lane_mut(id);
            lane.claims += 1;
            if lane.max != max {
                lane.max = max;
                lane.window = lane.window.min(max as f64);
                lane.threshold = max as f64;
            }
            return id;
        }
        if self.names.len() >= self.sweep_at {
            self.recycle();
        }
        let lane = Lane::new(name.clone(), max);
        let id = match self.free.pop() {
            Some(id) => {
                *self.lane_mut(id) = lane;
                id
            }
            None => {
                self.lanes.push(lane);
                LaneId(u32::try_from(self.lanes.len() - 1).expect("memory ends before there are 2^32 lanes"))
            }
        };
        self.names.insert(name, id);
        id
    }

    /// The lane of this hop, if there is one: for those who only want to look.
    pub fn find(&self, via: &ConnectorName, hop: &Hop) -> Option<LaneId> {
        self.names.get(&(via.clone(), hop.clone())).copied()
    }

    /// Puts an item at the end of its lane. True: start a worker for the lane.
    #[must_use = "a worker that was counted has to be started"]
    pub fn ready(&mut self, id: LaneId, item: T) -> bool {
        self.ready += 1;
        let lane = self.lane_mut(id);
        lane.claims = lane.claims.saturating_sub(1);
        lane.ready.push_back(item);
        self.recruit(id, 1) == 1
    }

    /// Keeps an item until its time.
    pub fn later(&mut self, at: Instant, lane: LaneId, item: T) {
        let entry = self.lane_mut(lane);
        entry.claims = entry.claims.saturating_sub(1);
        entry.later += 1;
        self.sequence += 1;
        self.later.push(Reverse(Later { at, sequence: self.sequence, lane, item }));
    }

    /// Moves what is due to its lane, some at a time, and wakes lanes that have rested: a lane once for each worker to
    /// start. As long as [`Schedule::next_due`] is not in the future there is more.
    #[must_use = "workers that were counted have to be started"]
    pub fn due(&mut self, now: Instant) -> Vec<LaneId> {
        self.due_but(now, |_| false)
    }

    /// One of the items that wait for their time in this lane is not to be tried. It stays until then, since finding it
    /// among a million would hold up everybody, but it does not count from now on; [`Schedule::due_but`] drops it.
    pub fn pass_over(&mut self, lane: LaneId) {
        let lane = self.lane_mut(lane);
        lane.passed = (lane.passed + 1).min(lane.later);
    }

    /// As [`Schedule::due`]; what is due and was passed over, as `passed` tells, is dropped.
    #[must_use = "workers that were counted have to be started"]
    pub fn due_but(&mut self, now: Instant, mut passed: impl FnMut(&T) -> bool) -> Vec<LaneId> {
        let mut start = Vec::new();
        while let Some(&(_, id)) = self.wakes.first().filter(|(at, _)| *at <= now) {
            self.wake(id);
            let work = self.lane_mut(id).ready.len();
            let workers = self.recruit(id, work);
            start.extend(std::iter::repeat_n(id, workers));
        }
        while let Some((at, id)) = self.turns.first().copied().filter(|(at, _)| *at <= now) {
            self.turns.remove(&(at, id));
            let lane = self.lane_mut(id);
            // The place may be another hop's by now.
            if lane.paused == Some(at) {
                (lane.paused, lane.has_turn) = (None, true);
                let one = lane.ready.len().min(1);
                let workers = self.recruit(id, one);
                start.extend(std::iter::repeat_n(id, workers));
            }
        }
        for _ in 0..DUE_AT_ONCE {
            if self.later.peek().is_none_or(|Reverse(later)| later.at > now) {
                break;
            }
            let Some(Reverse(Later { lane: id, item, .. })) = self.later.pop() else { break };
            let is_passed = passed(&item);
            let lane = self.lane_mut(id);
            lane.later -= 1;
            lane.passed = lane.passed.saturating_sub(usize::from(is_passed)).min(lane.later);
            if is_passed {
                continue;
            }
            lane.ready.push_back(item);
            self.ready += 1;
            if self.recruit(id, 1) == 1 {
                start.push(id);
            }
        }
        // A million waited and do no more: their room goes back.
        if self.later.capacity() > KEPT_ROOM && self.later.len() < self.later.capacity() / 8 {
            self.later.shrink_to((self.later.len() * 2).max(KEPT_ROOM));
        }
        start
    }

    /// The connectors of which `changed` says yes are not what they were, so what was learned of their hops says nothing:
    /// lanes that rest are woken, and what waits for its time is due now. A lane once for each worker to start; as after
    /// [`Schedule::due`] there may be more.
    #[must_use = "workers that were counted have to be started"]
    pub fn wake_changed(&mut self, now: Instant, changed: impl Fn(&ConnectorName) -> bool) -> Vec<LaneId> {
        let is_changed = |lane: &Lane<T>| lane.name.as_ref().is_some_and(|(via, _)| changed(via));
        let lanes: Vec<bool> = self.lanes.iter().map(is_changed).collect();
        if !lanes.contains(&true) {
            return Vec::new();
        }
        for (index, _) in (0u32..).zip(&lanes).filter(|(_, changed)| **changed) {
            self.wake(LaneId(index));
            let lane = self.lane_mut(LaneId(index));
            (lane.failures, lane.throttled, lane.last, lane.too_many) = (0, 0, None, None);
            lane.deferral = None;
            // Its rate may be another.
            lane.has_turn = false;
            if let Some(at) = lane.paused.take() {
                self.turns.remove(&(at, LaneId(index)));
            }
        }
        let mut start = Vec::new();
        let mut later = std::mem::take(&mut self.later).into_vec();
        for Reverse(entry) in &mut later {
            if lanes[entry.lane.0 as usize] {
                // In their order, and no earlier than now: what is due already has its place before them.
                entry.at = entry.at.min(now);
            }
        }
        self.later = later.into();
        for (index, _) in (0u32..).zip(&lanes).filter(|(_, changed)| **changed) {
            let work = self.lane_mut(LaneId(index)).ready.len();
            let workers = self.recruit(LaneId(index), work);
            start.extend(std::iter::repeat_n(LaneId(index), workers));
        }
        start.extend(self.due(now));
        start
    }

    /// Ends the rest of a lane, if it rests: somebody wants it tried now. Returns how many workers to start.
    #[must_use = "workers that were counted have to be started"]
    pub fn rouse(&mut self, lane: LaneId) -> usize {
        let found = self.lane_mut(lane);
        if found.resting.is_some() {
            // Whoever asks before its time does not make it rest longer than it would have.
            found.failures = found.failures.saturating_sub(1);
        }
        self.wake(lane);
        let work = self.lane_mut(lane).ready.len();
        self.recruit(lane, work)
    }

    /// Why the lane rests or is slow: what its last attempt said of the hop.
    pub fn remember(&mut self, lane: LaneId, why: Setback) {
        self.lane_mut(lane).last = Some(why);
    }

    /// What [`Schedule::remember`] was told, unless the hop has answered since.
    pub fn last_setback(&self, lane: LaneId) -> Option<&Setback> {
        self.lanes[lane.0 as usize].last.as_ref()
    }

    /// Why the item waits that is about to be put off: its hop may be well, and have refused it alone.
    pub fn note_deferral(&mut self, lane: LaneId, why: Setback) {
        self.lane_mut(lane).deferral = Some(Box::new(why));
    }

    /// What [`Schedule::note_deferral`] was told last, as long as anything waits for its time.
    pub fn last_deferral(&self, lane: LaneId) -> Option<&Setback> {
        let lane = &self.lanes[lane.0 as usize];
        lane.deferral.as_deref().filter(|_| lane.later > 0)
    }

    /// When [`Schedule::due`] will next have something to do. It may be earlier than before after any call.
    pub fn next_due(&self) -> Option<Instant> {
        let later = self.later.peek().map(|Reverse(later)| later.at);
        let wake = self.wakes.first().map(|&(at, _)| at);
        let turn = self.turns.first().map(|&(at, _)| at);
        later.into_iter().chain(wake).chain(turn).min()
    }

    /// The turn that a lane paused for, if it has come: whoever asks has used it up.
    pub fn take_turn(&mut self, lane: LaneId) -> bool {
        std::mem::take(&mut self.lane_mut(lane).has_turn)
    }

    /// An item has gone for its turn, and others are behind it: somebody has to ask for the next one. Returns how many
    /// workers to start.
    #[must_use = "workers that were counted have to be started"]
    pub fn follow_up(&mut self, lane: LaneId) -> usize {
        let one = self.lane_mut(lane).ready.len().min(1);
        self.recruit(lane, one)
    }

    /// A worker's item has its turn at `at`. It goes back to the front of its lane, and the worker ends.
    pub fn pause(&mut self, id: LaneId, item: T, at: Instant) {
        self.ready += 1;
        let lane = &mut self.lanes[id.0 as usize];
        lane.ready.push_front(item);
        // Of two turns the lane waits for the earlier one.
        if lane.paused.is_none_or(|before| at < before) {
            let before = lane.paused.replace(at);
            if let Some(before) = before {
                self.turns.remove(&(before, id));
            }
            self.turns.insert((at, id));
        }
        self.leave(id);
    }

    /// A worker's next item. `None`: the worker ends, and is no longer counted.
    pub fn take(&mut self, lane: LaneId, now: Instant) -> Option<T> {
        if self.lane_mut(lane).resting.is_some_and(|until| until <= now) {
            self.wake(lane);
        }
        if let Some(at) = self.lane_mut(lane).paused.filter(|at| *at <= now) {
            self.turns.remove(&(at, lane));
            let entry = self.lane_mut(lane);
            (entry.paused, entry.has_turn) = (None, true);
        }
        let kind = self.lane_mut(lane).kind;
        let (line, more) = (self.is_awaited(kind), !self.line(kind).more.is_empty());
        let entry = self.lane_mut(lane);
        // The first item after a place was given is taken whoever waits, so every place is of use.
        let stays = entry.fresh > 0
            || match (entry.active, entry.streak < SLICE) {
                (..=1, true) => true,
                (..=1, false) => !line,
                (_, true) => !line,
                (_, false) => !line && !more,
            };
        entry.fresh = entry.fresh.saturating_sub(1);
        entry.streak = if line || more { entry.streak.saturating_add(1) } else { 0 };
        let may = stays && entry.resting.is_none() && entry.paused.is_none() && entry.active <= entry.workers();
        let item = if may { entry.ready.pop_front() } else { None };
        if entry.ready.is_empty() && entry.ready.capacity() > KEPT_ROOM {
            entry.ready = VecDeque::new();
        }
        match item {
            Some(_) => self.ready -= 1,
            None => {
                self.leave(lane);
                let entry = self.lane_mut(lane);
                entry.streak = 0;
                if entry.wants(entry.ready.len()) > 0 && !stays {
                    self.queue_up(lane);
                }
            }
        }
        item
    }

    /// What a worker's attempt says of the hop, before it takes its next item. `fraction` is random, from 0 to 1:
    /// hops that went down together are not probed together. Returns how many more workers to start for this lane.
    #[must_use = "workers that were counted have to be started"]
    pub fn feedback(&mut self, lane: LaneId, now: Instant, feedback: Feedback, fraction: f64) -> usize {
        self.lane_mut(lane).answers = feedback == Feedback::Ok;
        match feedback {
            Feedback::Ok => {
                if let Some(until) = self.lane_mut(lane).resting {
                    // Another worker found it down and this one did not: so it is up.
                    self.wakes.remove(&(until, lane));
                    self.wake(lane);
                }
                let entry = self.lane_mut(lane);
                entry.stale = entry.stale.saturating_sub(1);
                (entry.failures, entry.throttled) = (0, 0);
                entry.last = None;
                entry.widen(now);
                // This worker takes one of them itself.
                let work = entry.ready.len().saturating_sub(1);
                self.recruit(lane, work)
            }
            Feedback::Throttled | Feedback::Crowded => {
                let entry = self.lane_mut(lane);
                if entry.stale > 0 {
                    entry.stale -= 1;
                    return 0;
                }
                if entry.workers() == 1 {
                    entry.throttled += 1;
                    if entry.throttled >= PATIENCE {
                        // Once more after the rest is enough.
                        entry.throttled = PATIENCE - 1;
                        self.rest(lane, now, fraction);
                    }
                    return 0;
                }
                let active = entry.active.clamp(1, entry.workers());
                // Where connections are counted, it is those that there are; a message may be put off for other reasons.
                let bore = if feedback == Feedback::Crowded { active as f64 } else { entry.window };
                entry.window = (bore / 2.0).max(1.0);
                entry.threshold = entry.window;
                entry.stale = entry.active.saturating_sub(1);
                entry.too_many = Some((active, now + jittered(ASK_AGAIN, fraction)));
                0
            }
            Feedback::Down => {
                let entry = self.lane_mut(lane);
                entry.stale = entry.stale.saturating_sub(1);
                self.rest(lane, now, fraction);
                0
            }
        }
    }

    /// How often in a row a lane was found down, and what it is called.
    pub fn failures(&self, lane: LaneId) -> (u16, Option<&(ConnectorName, Hop)>) {
        let lane = &self.lanes[lane.0 as usize];
        (lane.failures, lane.name.as_ref())
    }

    /// A worker's item goes back to the front of its lane: the hop took no further connection and never heard of it.
    /// The worker goes on with feedback, and what it says narrows the window, so this cannot go round in circles.
    ///
    /// # Errors
    /// The item itself where the hop takes no connection at all: then it has been tried.
    pub fn put_back(&mut self, lane: LaneId, item: T) -> Result<(), T> {
        let entry = self.lane_mut(lane);
        if entry.active < 2 || entry.workers() < 2 || entry.resting.is_some() {
            return Err(item);
        }
        entry.ready.push_front(item);
        self.ready += 1;
        Ok(())
    }

    /// A worker ended without asking for its next item: it panicked. Returns how many workers to start in its place.
    #[must_use = "workers that were counted have to be started"]
    pub fn abandoned(&mut self, lane: LaneId) -> usize {
        self.leave(lane);
        let work = self.lane_mut(lane).ready.len();
        self.recruit(lane, work)
    }

    /// Takes out every ready item of which `keep` says no. For once a minute or so, since it looks at all of them: an
    /// item in a lane that rests for long, or is slow, would otherwise never be asked about its age. What waits for its
    /// time is not looked at: it is asked when that has come. The lane stays until each of them is
    /// [let go](Schedule::let_go).
    #[must_use = "each of them has to be let go"]
    pub fn sweep(&mut self, mut keep: impl FnMut(&T) -> bool) -> Vec<(LaneId, T)> {
        let mut out = Vec::new();
        for (index, lane) in (0u32..).zip(&mut self.lanes) {
            for _ in 0..lane.ready.len() {
                let Some(item) = lane.ready.pop_front() else { break };
                if keep(&item) {
                    lane.ready.push_back(item);
                } else {
                    lane.held += 1;
                    out.push((LaneId(index), item));
                }
            }
        }
        self.ready -= out.len();
        out
    }

    /// One that [`Schedule::sweep`] took out is done with, or was put back.
    pub fn let_go(&mut self, lane: LaneId) {
        let entry = self.lane_mut(lane);
        debug_assert!(entry.held > 0, "let go what nobody held");
        entry.held = entry.held.saturating_sub(1);
    }

    /// How many items wait, ready or for their time. Those that workers have are not among them.
    pub fn len(&self) -> usize {
        self.ready + self.later.len()
    }

    /// True if nothing waits.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// How a lane stands.
    pub fn depth(&self, lane: LaneId) -> Depth {
        self.lanes[lane.0 as usize].depth()
    }

    /// Every lane with its connector and hop, in no order.
    pub fn depths(&self) -> impl Iterator<Item = (&ConnectorName, &Hop, Depth)> {
        self.lanes.iter().filter_map(|lane| lane.name.as_ref().map(|(via, hop)| (via, hop, lane.depth())))
    }

    /// Looks at no more than `at_most` of the items that wait, from `place` on, and gives the place to go on from; `None`:
    /// those were the last. Of what moves in between some may be seen twice, or not at all.
    pub fn glance(&self, place: Place, at_most: usize, mut each: impl FnMut(LaneId, &T)) -> Option<Place> {
        let Place { mut lane, mut at } = place;
        let mut left = at_most;
        while let Some(of) = self.lanes.get(lane) {
            for item in of.ready.iter().skip(at).take(left) {
                each(LaneId(lane as u32), item);
                at += 1;
                left -= 1;
            }
            if left == 0 {
                return Some(Place { lane, at });
            }
            (lane, at) = (lane + 1, 0);
        }
        // New lanes are behind this number from now on; the last place of all stays the last.
        let later = self.later.as_slice().get(at..).unwrap_or_default();
        for Reverse(later) in later.iter().take(left) {
            each(later.lane, &later.item);
        }
        (later.len() > left).then(|| Place { lane: usize::MAX, at: at + left })
    }

    fn lane_mut(&mut self, lane: LaneId) -> &mut Lane<T> {
        &mut self.lanes[lane.0 as usize]
    }

    /// Begins a lane's rest. The others that were on their way find it down too: that is one fault, not many.
    fn rest(&mut self, id: LaneId, now: Instant, fraction: f64) {
        let rung = self.lane_mut(id).failures.saturating_add(1);
        let until = now + jittered(ladder(&self.retry, rung), fraction);
        let lane = self.lane_mut(id);
        if lane.resting.is_none() {
            if rung == 1 && lane.window > 1.0 {
                // What it bore before is where doubling ends: from there on it has to prove itself.
                lane.threshold = lane.window;
            }
            lane.failures = rung;
            lane.resting = Some(until);
            self.wakes.insert((until, id));
        }
    }

    /// Ends a lane's rest: one worker probes.
    fn wake(&mut self, id: LaneId) {
        if let Some(until) = self.lane_mut(id).resting.take() {
            self.wakes.remove(&(until, id));
            self.lane_mut(id).window = 1.0;
        }
    }

    /// Frees the lanes that nothing is in. What they learned is lost; those that rest stay, so that a dead hop is
    /// not probed for each message that comes for it.
    fn recycle(&mut self) {
        for (index, lane) in (0u32..).zip(&mut self.lanes) {
            let used = lane.later + lane.active + lane.claims + lane.held;
            let idle = lane.ready.is_empty() && used == 0;
            if idle
                && lane.resting.is_none()
                && let Some(name) = lane.name.take()
            {
                self.names.remove(&name);
                lane.ready = VecDeque::new();
                self.free.push(LaneId(index));
            }
        }
        self.sweep_at = (self.names.len() * 2).max(IDLE_LANES);
    }
}

impl<T> Lane<T> {
    fn new(name: (ConnectorName, Hop), max: usize) -> Self {
        Self {
            kind: Kind::of(&name.1),
            name: Some(name),
            ready: VecDeque::new(),
            later: 0,
            passed: 0,
            active: 0,
            fresh: 0,
            streak: 0,
            answers: false,
            in_line: false,
            wants_more: false,
            claims: 1,
            held: 0,
            max,
            window: max.min(FIRST_WINDOW) as f64,
            threshold: max as f64,
            stale: 0,
            too_many: None,
            throttled: 0,
            failures: 0,
            resting: None,
            paused: None,
            has_turn: false,
            last: None,
            deferral: None,
        }
    }

    /// The most workers it may have now.
    fn workers(&self) -> usize {
        // From 1 to `max`, so nothing is lost.
        self.window as usize
    }

    /// A success: more of them may be borne.
    fn widen(&mut self, now: Instant) {
        if self.active < self.workers() {
            // Of a window that is not used, no success says that it is borne.
            return;
        }
        if self.too_many.is_some_and(|(_, until)| until <= now) {
            self.too_many = None;
        }
        let most = self.too_many.map_or(self.max, |(workers, _)| (workers - 1).clamp(1, self.max));
        let step = if self.window < self.threshold { 1.0 } else { 1.0 / self.window };
        self.window = (self.window + step).min(self.window.max(most as f64));
    }

    /// How many more workers there is work and window for.
    fn wants(&self, work: usize) -> usize {
        if self.resting.is_some() || self.paused.is_some() {
            return 0;
        }
        work.min(self.workers().saturating_sub(self.active))
    }

    /// How many more workers it may have where places are scarce. Those it may not it asks for when its hop has answered.
    fn may_have(&self, scarce: bool) -> usize {
        match self.answers || !scarce {
            true => usize::MAX,
            false => 1usize.saturating_sub(self.active),
        }
    }

    fn leave(&mut self) {
        debug_assert!(self.active > 0, "a worker left that was never counted");
        self.active = self.active.saturating_sub(1);
        self.stale = self.stale.min(self.active);
        self.fresh = self.fresh.min(self.active);
    }

    fn depth(&self) -> Depth {
        Depth {
            ready: self.ready.len(),
            active: self.active,
            later: self.later.saturating_sub(self.passed),
            window: self.workers(),
            resting: self.resting,
        }
    }
}

impl<T> PartialEq for Later<T> {
    fn eq(&self, other: &Self) -> bool {
        (self.at, self.sequence) == (other.at, other.sequence)
    }
}

impl<T> Eq for Later<T> {}

impl<T> PartialOrd for Later<T> {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl<T> Ord for Later<T> {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.at, self.sequence).cmp(&(other.at, other.sequence))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use proptest::prelude::*;

    use super::*;
    use crate::message::Domain;

    const SECOND: Duration = Duration::from_secs(1);

    fn schedule() -> Schedule<u32> {
        Schedule::new([60, 300].map(Duration::from_secs).to_vec())
    }

    fn via() -> ConnectorName {
        ConnectorName(Arc::from("to-internet"))
    }

    fn hop(number: usize) -> Hop {
        Hop::Mx(Domain::parse(&format!("d{number}.example")).unwrap())
    }

    fn lane(schedule: &mut Schedule<u32>, number: usize, max: usize) -> LaneId {
        schedule.lane(&via(), &hop(number), max)
    }

    #[test]
    fn workers_start_up_to_the_window_and_items_keep_their_order() {
        let (mut schedule, now) = (schedule(), Instant::now());
        let id = lane(&mut schedule, 1, 2);
        let started: Vec<_> = (0..4).map(|item| schedule.ready(id, item)).collect();
        assert_eq!(started, [true, true, false, false]);
        assert_eq!([schedule.take(id, now), schedule.take(id, now)], [Some(0), Some(1)]);
        assert_eq!(schedule.feedback(id, now, Feedback::Ok, 0.5), 0);
        assert_eq!([schedule.take(id, now), schedule.take(id, now)], [Some(2), Some(3)]);
        assert_eq!((schedule.take(id, now), schedule.take(id, now)), (None, None));
        assert_eq!(schedule.depth(id), Depth { ready: 0, active: 0, later: 0, window: 2, resting: None });
    }

    #[test]
    fn a_glance_sees_each_item_once_however_few_at_a_time() {
        let (mut schedule, now) = (schedule(), Instant::now());
        for item in 0..20 {
            let id = lane(&mut schedule, item as usize % 3, 1);
            if item % 4 == 0 {
                schedule.later(now + SECOND, id, item);
            } else {
                let _ = schedule.ready(id, item);
            }
        }
        for at_most in [1, 3, 7, 20, 100] {
            let mut seen = Vec::new();
            let mut place = Some(Place::default());
            while let Some(from) = place {
                let before = seen.len();
                place = schedule.glance(from, at_most, |id, item| {
                    assert_eq!(schedule.find(&via(), &hop(*item as usize % 3)), Some(id));
                    seen.push(*item);
                });
                assert!(seen.len() - before <= at_most);
            }
            seen.sort_unstable();
            assert_eq!(seen, (0..20).collect::<Vec<u32>>(), "{at_most} at a time");
        }
    }

    #[test]
    fn a_lane_is_one_for_connector_and_hop() {
        let mut schedule = schedule();
        let one = lane(&mut schedule, 1, 9);
        assert_eq!(lane(&mut schedule, 1, 9), one);
        assert_ne!(lane(&mut schedule, 2, 9), one);
        assert_ne!(schedule.lane(&ConnectorName(Arc::from("other")), &hop(1), 9), one);
        assert_eq!(schedule.find(&via(), &hop(1)), Some(one));
        assert_eq!(schedule.find(&via(), &hop(7)), None);
    }

    /// F-037: eight workers are throttled by one event; the window halves once, not eight times.
    #[test]
    fn f037_throttling_halves_the_window_and_success_widens_it() {
        let (mut schedule, now) = (schedule(), Instant::now());
        let id = lane(&mut schedule, 1, 8);
        for item in 0..100 {
            let _ = schedule.ready(id, item);
        }
        for _ in 0..8 {
            schedule.take(id, now).unwrap();
        }
        for _ in 0..8 {
            assert_eq!(schedule.feedback(id, now, Feedback::Throttled, 0.5), 0);
            schedule.take(id, now);
        }
        assert_eq!((schedule.depth(id).window, schedule.depth(id).active), (4, 4));
        for _ in 0..4 {
            let _ = schedule.feedback(id, now, Feedback::Throttled, 0.5);
            schedule.take(id, now);
        }
        assert_eq!(schedule.depth(id).window, 2);
        // Two is what it bore and four was too many: three, until it is asked again.
        for _ in 0..40 {
            let _ = schedule.feedback(id, now, Feedback::Ok, 0.5);
            schedule.take(id, now).unwrap();
        }
        assert_eq!((schedule.depth(id).window, schedule.depth(id).active), (3, 3));
        let now = now + ASK_AGAIN;
        let mut started = 0;
        for _ in 0..40 {
            started += schedule.feedback(id, now, Feedback::Ok, 0.5);
            schedule.take(id, now).unwrap();
        }
        assert_eq!((schedule.depth(id).window, schedule.depth(id).active, started), (8, 8, 5));
    }

    /// F-037: a connection that was refused is a matter of how many there are, not of how many there might be; what
    /// it was for keeps its place.
    #[test]
    fn f037_what_a_crowded_hop_never_heard_of_goes_first() {
        let (mut schedule, now) = (schedule(), Instant::now());
        let id = lane(&mut schedule, 1, 20);
        for item in 0..6 {
            let _ = schedule.ready(id, item);
        }
        let mut taken: Vec<_> = (0..6).map(|_| schedule.take(id, now).unwrap()).collect();
        assert_eq!((schedule.depth(id).active, schedule.depth(id).window), (6, 20));
        let refused = taken.pop().unwrap();
        assert_eq!(schedule.put_back(id, refused), Ok(()));
        assert_eq!(schedule.feedback(id, now, Feedback::Crowded, 0.5), 0);
        assert_eq!(schedule.depth(id).window, 3, "half of the six there were");
        assert_eq!(schedule.take(id, now), None);
        while schedule.depth(id).active > 3 {
            let _ = schedule.feedback(id, now, Feedback::Ok, 0.5);
            assert_eq!(schedule.take(id, now), None);
        }
        assert_eq!((schedule.take(id, now), schedule.len()), (Some(5), 0));
    }

    /// Where no connection is taken at all, the message was tried.
    #[test]
    fn f037_a_lone_worker_puts_nothing_back() {
        let (mut schedule, now) = (schedule(), Instant::now());
        let id = lane(&mut schedule, 1, 20);
        assert!(schedule.ready(id, 7));
        assert_eq!(schedule.take(id, now), Some(7));
        assert_eq!(schedule.put_back(id, 7), Err(7));
        assert_eq!((schedule.depth(id).ready, schedule.len()), (0, 0));
    }

    /// A window that nobody uses does not widen: no success says that it would be borne.
    #[test]
    fn a_window_widens_only_where_it_is_used() {
        let (mut schedule, mut now) = (schedule(), Instant::now());
        let id = lane(&mut schedule, 1, 100);
        for _ in 0..500 {
            now += SECOND;
            assert!(schedule.ready(id, 0));
            schedule.take(id, now).unwrap();
            assert_eq!(schedule.feedback(id, now, Feedback::Ok, 0.5), 0);
            assert_eq!(schedule.take(id, now), None);
        }
        assert_eq!(schedule.depth(id).window, FIRST_WINDOW);
    }

    /// However often somebody asks whether a hop is back, it is looked at again when it would have been.
    #[test]
    fn f035_asking_by_hand_climbs_no_ladder() {
        let (mut schedule, now) = (schedule(), Instant::now());
        let id = lane(&mut schedule, 1, 1);
        for item in 0..10 {
            let _ = schedule.ready(id, item);
        }
        schedule.take(id, now).unwrap();
        assert_eq!(schedule.feedback(id, now, Feedback::Down, 0.5), 0);
        assert_eq!(schedule.take(id, now), None);
        for _ in 0..5 {
            assert_eq!(schedule.depth(id).resting, Some(now + 60 * SECOND));
            assert_eq!(schedule.rouse(id), 1);
            schedule.take(id, now).unwrap();
            assert_eq!(schedule.feedback(id, now, Feedback::Down, 0.5), 0);
            assert_eq!(schedule.take(id, now), None);
        }
        // What comes at its own time does.
        assert_eq!(schedule.due(now + 60 * SECOND), [id]);
        schedule.take(id, now).unwrap();
        assert_eq!(schedule.feedback(id, now, Feedback::Down, 0.5), 0);
        assert_eq!(schedule.depth(id).resting, Some(now + 300 * SECOND));
    }

    /// A lane whose next turn is not due keeps its items, and no worker: they go one by one, each at its turn.
    #[test]
    fn a_lane_that_waits_for_its_turn_has_no_worker() {
        let (mut schedule, now) = (schedule(), Instant::now());
        let (one, other) = (lane(&mut schedule, 1, 20), lane(&mut schedule, 2, 20));
        for item in 0..3 {
            assert_eq!(schedule.ready(one, item), item == 0 || schedule.depth(one).active > 1);
        }
        assert!(schedule.ready(other, 9));
        let active = schedule.depth(one).active;
        // All of its workers come, and hear that the next turn is in two seconds.
        let mut paused = 0;
        while let Some(item) = schedule.take(one, now) {
            schedule.pause(one, item, now + 2 * SECOND);
            paused += 1;
        }
        assert_eq!((paused, schedule.depth(one).ready), (1, 3), "nobody asks twice");
        assert_eq!(schedule.depth(one).active, active.saturating_sub(2), "each of them ends");
        for _ in 2..active {
            assert_eq!(schedule.take(one, now), None);
        }
        assert_eq!(schedule.depth(one).active, 0);
        assert!(!schedule.ready(one, 3), "nor does who comes meanwhile start one");
        assert_eq!(schedule.take(other, now), Some(9), "the others go on");
        assert_eq!(schedule.next_due(), Some(now + 2 * SECOND));
        assert_eq!(schedule.due(now + SECOND), []);
        assert!(!schedule.take_turn(one));
        let then = now + 2 * SECOND;
        assert_eq!(schedule.due(then), [one], "one worker for one turn");
        assert_eq!(schedule.take(one, then), Some(0), "the first goes first");
        assert!(schedule.take_turn(one) && !schedule.take_turn(one));
        // Somebody asks for the next turn while the first item is under way.
        assert_eq!(schedule.follow_up(one), 1);
        let item = schedule.take(one, then).unwrap();
        schedule.pause(one, item, then + 2 * SECOND);
        assert_eq!((schedule.depth(one).ready, schedule.depth(one).active), (3, 1));
        assert_eq!(schedule.feedback(one, then, Feedback::Ok, 0.5), 0);
        assert_eq!(schedule.take(one, then), None);
        // What was learned of the rate means nothing once the connector is another.
        assert_eq!(schedule.wake_changed(then, |_| true).iter().filter(|id| **id == one).count(), 3);
        assert_eq!((schedule.next_due(), schedule.take(one, then)), (None, Some(1)));
    }

    /// F-035: one probe first, then 1, 2, 4… up to the limit.
    #[test]
    fn f035_a_lane_that_was_down_is_probed_and_ramps() {
        let (mut schedule, mut now) = (schedule(), Instant::now());
        let id = lane(&mut schedule, 1, 8);
        let other = lane(&mut schedule, 2, 8);
        for item in 0..100 {
            let _ = schedule.ready(id, item);
        }
        for _ in 0..8 {
            schedule.take(id, now).unwrap();
        }
        for _ in 0..8 {
            // Eight workers find it down: that is one fault.
            assert_eq!(schedule.feedback(id, now, Feedback::Down, 0.5), 0);
            assert_eq!(schedule.take(id, now), None);
        }
        assert_eq!(schedule.depth(id).resting, Some(now + 60 * SECOND));
        assert!(!schedule.ready(id, 100), "nobody works for a lane that rests");
        assert!(schedule.ready(other, 0), "but for the others");
        assert_eq!(schedule.next_due(), Some(now + 60 * SECOND));
        assert_eq!(schedule.due(now + 59 * SECOND), []);
        // The probe fails: the next rung.
        now += 60 * SECOND;
        assert_eq!(schedule.due(now), [id]);
        assert!(schedule.take(id, now).is_some());
        assert_eq!(schedule.feedback(id, now, Feedback::Down, 0.5), 0);
        assert_eq!(schedule.take(id, now), None);
        assert_eq!(schedule.next_due(), Some(now + 300 * SECOND));
        // It is up again.
        now += 300 * SECOND;
        assert_eq!(schedule.due(now), [id]);
        assert!(schedule.take(id, now).is_some());
        let mut active = 1;
        let mut rounds = vec![active];
        for _ in 0..3 {
            for _ in 0..active {
                let started = schedule.feedback(id, now, Feedback::Ok, 0.5);
                for _ in 0..=started {
                    assert!(schedule.take(id, now).is_some());
                }
            }
            active = schedule.depth(id).active;
            rounds.push(active);
        }
        assert_eq!(rounds, [1, 2, 4, 8]);
    }

    #[test]
    fn a_hop_that_wants_less_than_one_is_left_alone() {
        let (mut schedule, now) = (schedule(), Instant::now());
        let id = lane(&mut schedule, 1, 1);
        for item in 0..10 {
            let _ = schedule.ready(id, item);
        }
        for _ in 0..PATIENCE {
            assert!(schedule.take(id, now).is_some());
            assert_eq!(schedule.feedback(id, now, Feedback::Throttled, 0.5), 0);
        }
        assert_eq!(schedule.take(id, now), None);
        assert_eq!(schedule.depth(id).resting, Some(now + 60 * SECOND));
        let then = now + 60 * SECOND;
        assert_eq!(schedule.due(then), [id]);
        assert!(schedule.take(id, then).is_some());
        let _ = schedule.feedback(id, then, Feedback::Throttled, 0.5);
        assert_eq!(schedule.depth(id).resting, Some(then + 300 * SECOND));
    }

    #[test]
    fn what_a_result_says_of_the_hop() {
        use crate::smtp::{Reply, Status};
        let host = || String::from("mx [192.0.2.1]:25");
        let answered = |command, code, status| Setback::Answered {
            host: host(),
            command,
            reply: Reply { code, status, text: "".into() },
        };
        for (setback, expected) in [
            (answered("RCPT", 550, None), Feedback::Ok),
            (answered("RCPT", 450, Some(Status(4, 7, 1))), Feedback::Throttled),
            (answered("the connection", 421, None), Feedback::Crowded),
            (answered("MAIL", 421, None), Feedback::Throttled),
            (answered("the connection", 554, None), Feedback::Down),
            (Setback::Unreachable { host: host(), why: "timed out".into() }, Feedback::Down),
            (Setback::Ambiguous { host: host(), why: "timed out".into() }, Feedback::Throttled),
            (Setback::TooBig { host: host(), limit: 1, size: 2 }, Feedback::Ok),
        ] {
            assert_eq!(Feedback::of(Err(&setback)), expected, "{setback}");
        }
        assert_eq!(Feedback::of(Ok(())), Feedback::Ok);
    }

    #[test]
    fn a_success_beside_a_failure_ends_the_rest() {
        let (mut schedule, now) = (schedule(), Instant::now());
        let id = lane(&mut schedule, 1, 8);
        for item in 0..10 {
            let _ = schedule.ready(id, item);
        }
        for _ in 0..2 {
            schedule.take(id, now).unwrap();
        }
        assert_eq!(schedule.feedback(id, now, Feedback::Down, 0.5), 0);
        let _ = schedule.feedback(id, now, Feedback::Ok, 0.5);
        assert_eq!((schedule.depth(id).resting, schedule.next_due()), (None, None));
    }

    #[test]
    fn later_comes_in_the_order_of_time() {
        let (mut schedule, now) = (schedule(), Instant::now());
        let id = lane(&mut schedule, 1, 1);
        for (seconds, item) in [(3, 3), (1, 1), (2, 2), (1, 10)] {
            schedule.later(now + seconds * SECOND, id, item);
        }
        assert_eq!((schedule.next_due(), schedule.len()), (Some(now + SECOND), 4));
        assert_eq!(schedule.due(now), []);
        assert_eq!(schedule.due(now + 2 * SECOND), [id], "one worker, the window is one");
        assert_eq!(std::iter::from_fn(|| schedule.take(id, now)).collect::<Vec<_>>(), [1, 10, 2]);
        assert_eq!(schedule.depth(id).later, 1);
    }

    /// Nobody waits for the queue until a whole night's mail has moved, and what it took is given back.
    #[test]
    fn a_long_queue_moves_some_at_a_time() {
        const MANY: usize = 20 * DUE_AT_ONCE;
        let (mut schedule, now) = (schedule(), Instant::now());
        let name = ConnectorName("other".into());
        for number in 0..MANY {
            let id = schedule.lane(&name, &hop(number % 10), 1);
            let number = number as u32;
            schedule.later(now + (number + 1) * SECOND, id, number);
        }
        let mut workers = schedule.wake_changed(now, |via| *via == name);
        let mut rounds = 1;
        while schedule.next_due().is_some_and(|at| at <= now) {
            let moved = schedule.ready;
            workers.extend(schedule.due(now));
            assert_eq!(schedule.ready, moved + DUE_AT_ONCE);
            rounds += 1;
        }
        assert_eq!((rounds, schedule.ready, schedule.next_due()), (MANY / DUE_AT_ONCE, MANY, None));
        assert!(schedule.later.capacity() <= MANY / 4, "{}", schedule.later.capacity());
        let order: Vec<u32> =
            workers.iter().flat_map(|id| std::iter::from_fn(|| schedule.take(*id, now)).collect::<Vec<_>>()).collect();
        assert_eq!(workers.len(), 10, "one probe for each lane");
        assert!(order.chunk_by(|a, b| a % 10 == b % 10).all(|lane| lane.is_sorted()), "each lane keeps its order");
        assert_eq!(order.len(), MANY);
        assert!(schedule.lanes.iter().all(|lane| lane.ready.capacity() <= KEPT_ROOM));
    }

    #[test]
    fn a_worker_that_panicked_is_replaced() {
        let (mut schedule, now) = (schedule(), Instant::now());
        let id = lane(&mut schedule, 1, 1);
        assert!(schedule.ready(id, 1));
        assert!(!schedule.ready(id, 2));
        schedule.take(id, now).unwrap();
        assert_eq!(schedule.abandoned(id), 1);
        assert_eq!((schedule.take(id, now), schedule.take(id, now)), (Some(2), None));
        assert_eq!(schedule.depth(id).active, 0);
    }

    #[test]
    fn sweeping_takes_out_what_is_over() {
        let (mut schedule, now) = (schedule(), Instant::now());
        let id = lane(&mut schedule, 1, 1);
        for item in 0..6 {
            if item % 2 == 0 {
                let _ = schedule.ready(id, item);
            } else {
                schedule.later(now + item * SECOND, id, item);
            }
        }
        let out = schedule.sweep(|item| ![2, 3].contains(item));
        assert_eq!(out, [(id, 2)], "what waits for its time is asked when that has come");
        assert_eq!((schedule.len(), schedule.depth(id).ready, schedule.depth(id).later), (5, 2, 3));
        assert_eq!([schedule.take(id, now), schedule.take(id, now)], [Some(0), Some(4)]);
        schedule.let_go(id);
    }

    /// After a reload: what waits for a connector that was changed is tried at once, with one worker first; the others'
    /// rests stay.
    #[test]
    fn f057_a_changed_connector_is_tried_at_once() {
        let (mut schedule, now) = (schedule(), Instant::now());
        let id = lane(&mut schedule, 1, 8);
        let name = ConnectorName("other".into());
        let other = schedule.lane(&name, &hop(1), 8);
        for lane in [id, other] {
            for item in 0..3 {
                let _ = schedule.ready(lane, item);
            }
            assert_eq!(schedule.take(lane, now), Some(0));
            let down = || Setback::Unreachable { host: "mx".into(), why: "connection refused".into() };
            assert_eq!(schedule.feedback(lane, now, Feedback::Down, 0.5), 0);
            schedule.remember(lane, down());
            schedule.later(now + 300 * SECOND, lane, 0);
            // Its other workers find it resting.
            while schedule.depth(lane).active > 0 {
                assert_eq!(schedule.take(lane, now), None);
            }
            assert_eq!(schedule.last_setback(lane), Some(&down()));
        }
        assert_eq!(schedule.wake_changed(now, |_| false), []);
        assert_eq!(schedule.wake_changed(now, |via| *via == name), [other], "one probe");
        let depth = schedule.depth(other);
        assert_eq!((depth.resting, depth.ready, depth.later, depth.active), (None, 3, 0, 1));
        assert_eq!(schedule.last_setback(other), None);
        let depth = schedule.depth(id);
        assert_eq!((depth.resting, depth.ready, depth.later), (Some(now + 60 * SECOND), 2, 1));
        let order: Vec<_> = std::iter::from_fn(|| {
            let item = schedule.take(other, now);
            item.inspect(|_| assert!(schedule.feedback(other, now, Feedback::Ok, 0.5) <= 2))
        })
        .collect();
        assert_eq!(order, [1, 2, 0]);
        assert_eq!(schedule.next_due(), Some(now + 60 * SECOND));
    }

    /// What was swept out can be put back, however many lanes came in between.
    #[test]
    fn a_lane_stays_while_something_of_it_is_held() {
        let (mut schedule, now) = (schedule(), Instant::now());
        let id = lane(&mut schedule, 0, 1);
        assert!(schedule.ready(id, 7));
        assert_eq!(schedule.sweep(|_| false), [(id, 7)]);
        assert_eq!(schedule.take(id, now), None);
        for number in 1..=2 * IDLE_LANES {
            let other = lane(&mut schedule, number, 1);
            assert_ne!(other, id, "the lane was given to another hop");
            assert!(schedule.ready(other, 0));
            assert!(schedule.take(other, now).is_some());
            assert_eq!(schedule.take(other, now), None);
        }
        assert_eq!(schedule.find(&via(), &hop(0)), Some(id));
        schedule.later(now, id, 7);
        schedule.let_go(id);
        assert_eq!(schedule.due(now), [id]);
        assert_eq!(schedule.take(id, now), Some(7));
    }

    #[test]
    fn lanes_of_strangers_do_not_grow_for_ever() {
        let (mut schedule, now) = (schedule(), Instant::now());
        let kept = lane(&mut schedule, 0, 1);
        schedule.later(now, kept, 7);
        for number in 1..=3 * IDLE_LANES {
            let id = lane(&mut schedule, number, 1);
            assert!(schedule.ready(id, 0));
            assert!(schedule.take(id, now).is_some());
            assert!(schedule.take(id, now).is_none());
        }
        assert!(schedule.lanes.len() <= IDLE_LANES + 1, "{} lanes", schedule.lanes.len());
        assert_eq!(schedule.find(&via(), &hop(0)), Some(kept), "a lane with something in it stays");
        assert_eq!(schedule.due(now), [kept]);
        assert_eq!(schedule.take(kept, now), Some(7));
    }

    /// Whoever has us write to a thousand domains of his, and lets all of them hang, does not stop what goes to our own
    /// servers: that has its places, and keeps them though thousands stand in line.
    #[test]
    fn what_strangers_make_hang_leaves_places_to_what_is_ours() {
        let (mut schedule, now) = (schedule().bounded(16), Instant::now());
        let mut started = Vec::new();
        for number in 0..5000 {
            let id = lane(&mut schedule, number, 20);
            if schedule.ready(id, 0) {
                started.push(id);
                assert!(schedule.take(id, now).is_some());
            }
        }
        assert_eq!((started.len(), schedule.load()), (12, (12, 4988)), "three quarters hang");
        let ours = schedule.lane(&ConnectorName("ours".into()), &Hop::SmartHosts, 20);
        let mut active = 0;
        for item in 0..100 {
            active += usize::from(schedule.ready(ours, item));
        }
        assert_eq!(active, 1, "places are scarce: one until it has answered");
        assert_eq!(schedule.take(ours, now), Some(0));
        for item in 1..100 {
            for _ in 0..schedule.feedback(ours, now, Feedback::Ok, 0.5) {
                active += 1;
            }
            let next = schedule.take(ours, now).or_else(|| {
                // It wants more places than there are, and gives one up for that; nobody else is asked first.
                assert_eq!(schedule.fill(), [ours]);
                schedule.take(ours, now)
            });
            assert_eq!(next, Some(item), "it is not sent to the end of a line of strangers");
        }
        assert_eq!(active, 3, "the last place is for another of ours");
        let other = schedule.lane(&ConnectorName("other".into()), &Hop::SmartHosts, 20);
        assert!(schedule.ready(other, 7));
        assert_eq!((schedule.take(other, now), schedule.load().0), (Some(7), 16));
        // A stranger gives his place up to one of ours before anybody else has it.
        let third = schedule.lane(&ConnectorName("third".into()), &Hop::SmartHosts, 20);
        assert!(!schedule.ready(third, 9));
        let _ = schedule.feedback(started[0], now, Feedback::Down, 0.5);
        assert_eq!(schedule.take(started[0], now), None);
        assert_eq!(schedule.fill(), [third]);
    }

    /// Nor does what is ours leave nothing to the others, however much there is of it.
    #[test]
    fn strangers_are_not_passed_over_for_ever() {
        let (mut schedule, now) = (schedule().bounded(16), Instant::now());
        let mut started = 0;
        for number in 0..40 {
            let id = schedule.lane(&ConnectorName(format!("ours-{number}").into()), &Hop::SmartHosts, 20);
            started += usize::from(schedule.ready(id, number));
        }
        assert_eq!(started, 15);
        let id = lane(&mut schedule, 1, 20);
        assert!(schedule.ready(id, 100));
        assert_eq!(schedule.take(id, now), Some(100));
        assert_eq!(schedule.take(id, now), None);
        assert_eq!(schedule.fill(), []);
    }

    #[test]
    fn an_entry_that_waits_is_small() {
        assert!(size_of::<Reverse<Later<()>>>() <= 64, "{}", size_of::<Reverse<Later<()>>>());
    }

    #[derive(Debug, Clone, Copy)]
    enum Act {
        Ready(usize),
        Later(usize, u64),
        Work(usize),
        Again(usize, u64),
        Tell(usize, u8),
        Back(usize),
        Pass(u64),
        Sweep(u32),
    }

    fn act() -> impl Strategy<Value = Act> {
        let lane = 0..4usize;
        prop_oneof![
            4 => lane.clone().prop_map(Act::Ready),
            2 => (lane.clone(), 0..100u64).prop_map(|(lane, wait)| Act::Later(lane, wait)),
            6 => any::<usize>().prop_map(Act::Work),
            2 => (any::<usize>(), 0..100u64).prop_map(|(worker, wait)| Act::Again(worker, wait)),
            5 => (any::<usize>(), 0..3u8).prop_map(|(worker, what)| Act::Tell(worker, what)),
            2 => any::<usize>().prop_map(Act::Back),
            3 => (0..200u64).prop_map(Act::Pass),
            1 => (2..9u32).prop_map(Act::Sweep),
        ]
    }

    proptest! {
        /// Nothing is lost or doubled, no lane has more workers than its limit, workers counted are workers started,
        /// and in the end, when time passes and hops answer, everything gets its turn.
        #[test]
        fn every_item_gets_its_turn_once(
            acts in prop::collection::vec(act(), 1..300),
            bound in prop::sample::select(vec![1, 2, 5, 16, usize::MAX]),
        ) {
            const MAX: usize = 3;
            let (mut schedule, mut now) = (schedule().bounded(bound), Instant::now());
            let name = |number: usize| match number % 2 {
                0 => (ConnectorName(format!("ours-{number}").into()), Hop::SmartHosts),
                _ => (via(), hop(number)),
            };
            let lane = |schedule: &mut Schedule<u32>, number: usize, max: usize| {
                let (via, hop) = name(number);
                schedule.lane(&via, &hop, max)
            };
            let mut put = 0u32;
            let mut done = Vec::new();
            // Each worker: its lane, and what it is at.
            let mut workers: Vec<(LaneId, Option<u32>)> = Vec::new();
            for act in acts {
                match act {
                    Act::Ready(number) => {
                        let id = lane(&mut schedule, number, MAX);
                        if schedule.ready(id, put) {
                            workers.push((id, None));
                        }
                        put += 1;
                    }
                    Act::Later(number, wait) => {
                        let id = lane(&mut schedule, number, MAX);
                        schedule.later(now + wait as u32 * SECOND, id, put);
                        put += 1;
                    }
                    Act::Pass(seconds) => now += seconds as u32 * SECOND,
                    Act::Sweep(modulus) => {
                        for (id, item) in schedule.sweep(|item| item % modulus != 1) {
                            done.push(item);
                            schedule.let_go(id);
                        }
                    }
                    Act::Work(worker) | Act::Again(worker, _) | Act::Tell(worker, _) | Act::Back(worker)
                        if !workers.is_empty() => {
                        let index = worker % workers.len();
                        let (id, item) = workers[index];
                        match (act, item) {
                            (Act::Back(_), Some(item)) => done.extend(schedule.put_back(id, item).err()),
                            (Act::Again(_, wait), Some(item)) => schedule.later(now + wait as u32 * SECOND, id, item),
                            (_, Some(item)) => done.push(item),
                            (_, None) => {}
                        }
                        if item.is_some() {
                            let feedback = match act {
                                Act::Tell(_, 1) => Feedback::Throttled,
                                Act::Tell(_, 2) => Feedback::Down,
                                Act::Back(_) => Feedback::Crowded,
                                _ => Feedback::Ok,
                            };
                            for _ in 0..schedule.feedback(id, now, feedback, 0.5) {
                                workers.push((id, None));
                            }
                        }
                        workers[index].1 = schedule.take(id, now);
                        if workers[index].1.is_none() {
                            workers.swap_remove(index);
                            workers.extend(schedule.fill().into_iter().map(|id| (id, None)));
                        }
                    }
                    Act::Work(_) | Act::Again(..) | Act::Tell(..) | Act::Back(_) => {}
                }
                workers.extend(schedule.due(now).into_iter().map(|id| (id, None)));
                for number in 0..4 {
                    let (via, hop) = name(number);
                    if let Some(id) = schedule.find(&via, &hop) {
                        let depth = schedule.depth(id);
                        let mine = workers.iter().filter(|(lane, _)| *lane == id).count();
                        prop_assert_eq!(depth.active, mine);
                        prop_assert!(depth.active <= MAX && (1..=MAX).contains(&depth.window));
                        let waits = depth.resting.is_some() || schedule.room(Kind::of(&hop), true) == 0;
                        prop_assert!(depth.ready == 0 || depth.active > 0 || waits, "{:?} is stuck", depth);
                    }
                }
                prop_assert!(workers.len() <= bound && workers.len() == schedule.load().0);
                let all: usize = schedule.lines.iter().map(|line| line.active).sum();
                prop_assert!(all == workers.len() && schedule.line(Kind::Strange).active <= bound - bound / 4);
                let held = workers.iter().filter(|(_, item)| item.is_some()).count();
                prop_assert_eq!(put as usize, done.len() + held + schedule.len());
            }
            // From here on all is well.
            for _ in 0..10_000 {
                if workers.is_empty() {
                    let Some(next) = schedule.next_due() else { break };
                    now = now.max(next);
                    workers.extend(schedule.due(now).into_iter().map(|id| (id, None)));
                    continue;
                }
                let (id, item) = workers.remove(0);
                if let Some(item) = item {
                    done.push(item);
                    let more = schedule.feedback(id, now, Feedback::Ok, 0.5);
                    workers.extend(std::iter::repeat_n((id, None), more));
                }
                match schedule.take(id, now) {
                    Some(item) => workers.push((id, Some(item))),
                    None => workers.extend(schedule.fill().into_iter().map(|id| (id, None))),
                }
            }
            done.sort_unstable();
            prop_assert_eq!(done, (0..put).collect::<Vec<_>>());
            prop_assert!(schedule.is_empty());
        }
    }
}
