//! The queue as workers and operators share it: the schedule, what workers have in hand, and what operators said.
//!
//! The schedule does not know its items by name, and looking for one among a million would hold up everybody. So what an
//! operator says of a copy is noted here, and counts when the copy's turn comes: one that is held is then laid aside, and
//! one that was given a new place in the schedule is known by its *turn*, so that the old place means nothing. All of it
//! changes under the queue's one lock, in which a worker also takes its next item: a copy is in the schedule, in one pair
//! of hands, or laid aside, and never in two of them.

use std::ops::{Deref, DerefMut};
use std::time::{Duration, Instant};

use super::Relay;
use super::schedule::{LaneId, Schedule};
use super::work::{Item, Tried, max_connections};
use crate::clock;
use crate::config::ConnectorName;
use crate::message::MessageId;
use crate::random::{HashMap, HashSet};
use crate::route::Hop;
use crate::spool::{CopyStanding, Known, Message, Standing};

/// What was taken out of the schedule and is put back has its turn after this.
const LATER: Duration = Duration::from_secs(60);

/// A copy: its message, and its index there.
pub(super) type Key = (MessageId, u16);

/// The schedule and all hands on it.
#[derive(Debug)]
pub(super) struct Queue {
    schedule: Schedule<Item>,
    /// What workers, reports and operators have in hand at this moment.
    /// Counted: one that is put back may be taken up by the next before the last has let go.
    trying: HashMap<Key, u8>,
    /// What operators said, as long as it matters.
    orders: HashMap<Key, Order>,
    /// Recipients that are done with, of copies whose others are not. The spool is told too, but knows it only from when it
    /// is durable; on a disk that hangs or fails the next attempt may come first, and must not go to those who have it.
    done: HashMap<Key, HashSet<u16>>,
}

#[derive(Debug, Default)]
struct Order {
    held: bool,
    /// Which of its places in the schedule counts.
    turn: u16,
    /// How many others are still there.
    stale: u16,
    /// One of these was only taken to be there: whoever is tried has no place, and is gone without one.
    unsure: bool,
    /// One of these is still to be said to the schedule.
    unsaid: bool,
    /// The one that counts stays there though its copy may go.
    left: bool,
    /// It came to its turn while it was held.
    aside: Option<Item>,
}

/// A copy that somebody has in hand; let go when this is dropped.
#[derive(Debug)]
pub(super) struct InHand {
    relay: Relay,
    key: Key,
}

impl Drop for InHand {
    fn drop(&mut self) {
        self.relay.queue().let_down(self.key);
    }
}

/// A copy that was taken out of the schedule, and is in hand. However what it was taken for ends, in the middle too, it is
/// let go when this is dropped, and then has a place in the schedule again, a while from there. It has none before: what
/// is done with it may take longer than any while, and a worker would have it in hand as well.
#[derive(Debug)]
pub(super) struct Grasped {
    relay: Relay,
    key: Key,
    /// `None`: it needs no place.
    place: Option<Place>,
    mine: bool,
}

/// Where it waits, and as what.
#[derive(Debug)]
struct Place {
    via: ConnectorName,
    hop: Hop,
    item: Item,
}

impl Place {
    /// A lane that all its mail was laid aside from may be gone.
    fn lane(&self, queue: &mut Queue, max: usize) -> LaneId {
        queue.find(&self.via, &self.hop).unwrap_or_else(|| queue.lane(&self.via, &self.hop, max))
    }
}

impl Grasped {
    /// Nobody of it waits any more, whether or not the spool knows that yet.
    pub(super) fn gone(&mut self) {
        self.place = None;
    }

    /// Somebody else lets it go; it has a place.
    pub(super) fn pass_on(mut self) {
        self.mine = false;
    }

    /// The copy with its message, for those who settle it without an attempt; `None`: nobody of it is open.
    pub(super) fn tried<'a>(&self, message: &'a Message) -> Option<Tried<'a>> {
        let place = self.place()?;
        let max = max_connections(&self.relay.snapshot().config, &place.via);
        let lane = place.lane(&mut self.relay.queue(), max);
        Some(Tried { message, item: place.item, lane })
    }

    /// As the spool knows the copy by now.
    fn place(&self) -> Option<Place> {
        let Place { via, hop, item } = self.place.as_ref()?;
        let Known { attempts, warned, .. } = self.relay.0.spool.copy(self.key.0, self.key.1)?;
        Some(Place { via: via.clone(), hop: hop.clone(), item: Item { attempts, warned, ..item.clone() } })
    }
}

impl Drop for Grasped {
    fn drop(&mut self) {
        if !self.mine {
            return;
        }
        let place = self.place();
        let snapshot = self.relay.snapshot();
        let mut queue = self.relay.queue();
        queue.let_down(self.key);
        let Some(place) = place else { return };
        let lane = place.lane(&mut queue, max_connections(&snapshot.config, &place.via));
        queue.later(clock::now() + LATER, lane, place.item);
        queue.leave_place(self.key);
        drop(queue);
        self.relay.0.wake.notify_one();
    }
}

/// What becomes of a copy that an operator wants to take away.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Grasp {
    /// It is ours until [`Queue::let_down`].
    Ours,
    /// Somebody tries it at this moment.
    Busy,
}

impl Deref for Queue {
    type Target = Schedule<Item>;

    fn deref(&self) -> &Self::Target {
        &self.schedule
    }
}

impl DerefMut for Queue {
    fn deref_mut(&mut self) -> &mut Self::Target {
        &mut self.schedule
    }
}

impl Queue {
    pub(super) fn new(schedule: Schedule<Item>) -> Self {
        Self { schedule, trying: HashMap::default(), orders: HashMap::default(), done: HashMap::default() }
    }

    /// A worker's next item, which it has in hand from then on. `None`: the worker ends.
    pub(super) fn next(&mut self, lane: LaneId, now: Instant) -> Option<Item> {
        loop {
            let item = self.schedule.take(lane, now)?;
            if let Some(item) = self.admit(item) {
                return Some(item);
            }
        }
    }

    /// An item that a worker has just been given has its turn, by its connector's rate, at `at`. It waits for that in its
    /// lane, and in nobody's hand; the worker ends.
    pub(super) fn wait_for_turn(&mut self, lane: LaneId, item: Item, at: Instant) {
        self.let_down(item.key());
        self.schedule.pause(lane, item, at);
    }

    /// What is due goes to its lane, but for old places. A lane once for each worker to start.
    #[must_use = "workers that were counted have to be started"]
    pub(super) fn due(&mut self, now: Instant) -> Vec<LaneId> {
        let Self { schedule, orders, .. } = self;
        if orders.is_empty() {
            return schedule.due(now);
        }
        schedule.due_but(now, |item| match orders.get_mut(&item.key()) {
            Some(order) if order.turn != item.turn => {
                order.stale = order.stale.saturating_sub(1);
                true
            }
            _ => false,
        })
    }

    /// What was grasped waited for its time in this lane.
    pub(super) fn pass_over(&mut self, key: Key, lane: LaneId) {
        if self.orders.get_mut(&key).is_some_and(|order| std::mem::take(&mut order.unsaid)) {
            self.schedule.pass_over(lane);
        }
    }

    /// An item that came out of the schedule, if it is to be looked at now; then it is in hand.
    pub(super) fn admit(&mut self, item: Item) -> Option<Item> {
        let key = item.key();
        if !self.orders.is_empty()
            && let Some(order) = self.orders.get_mut(&key)
        {
            if order.turn != item.turn {
                order.stale = order.stale.saturating_sub(1);
                self.tidy(key);
                return None;
            }
            order.left = false;
            if order.held {
                // What is held may stay so for long: the message itself is read again.
                order.aside = Some(Item { resident: None, ..item });
                return None;
            }
        }
        self.take_up(key);
        Some(item)
    }

    /// It is in nobody's hand any more.
    pub(super) fn let_down(&mut self, key: Key) {
        if let Some(hands) = self.trying.get_mut(&key) {
            *hands -= 1;
            if *hands == 0 {
                self.trying.remove(&key);
            }
        }
    }

    fn take_up(&mut self, key: Key) {
        let hands = self.trying.entry(key).or_default();
        *hands = hands.saturating_add(1);
    }

    pub(super) fn is_tried(&self, key: Key) -> bool {
        self.trying.contains_key(&key)
    }

    pub(super) fn is_held(&self, key: Key) -> bool {
        self.orders.get(&key).is_some_and(|order| order.held)
    }

    /// How many copies are held.
    pub(super) fn held(&self) -> usize {
        self.orders.values().filter(|order| order.held).count()
    }

    /// The copies that were laid aside because they are held.
    pub(super) fn aside(&self) -> impl Iterator<Item = &Item> {
        self.orders.values().filter_map(|order| order.aside.as_ref())
    }

    /// A copy that was held when the relay ended.
    pub(super) fn lay_aside(&mut self, item: Item) {
        let order = self.orders.entry(item.key()).or_default();
        if order.turn != item.turn {
            order.stale = order.stale.saturating_sub(1);
            return;
        }
        order.held = true;
        order.aside = Some(item);
    }

    /// From now on it is not tried. One that is being tried at this moment is held when it comes back.
    pub(super) fn hold(&mut self, key: Key) {
        self.orders.entry(key).or_default().held = true;
    }

    /// From now on it is tried again: gives it back if it was laid aside. Else it still has its place in the schedule.
    pub(super) fn release(&mut self, key: Key) -> Option<Item> {
        let order = self.orders.get_mut(&key)?;
        order.held = false;
        let aside = order.aside.take();
        self.tidy(key);
        aside
    }

    /// Takes a copy out of the schedule, wherever in it it is, or from where it was laid aside. Its next place, if it is to
    /// have one, has the turn that [`Queue::turn`] says; it has none before it is let go.
    pub(super) fn grasp(&mut self, key: Key) -> Grasp {
        if self.is_tried(key) {
            return Grasp::Busy;
        }
        self.take_up(key);
        let order = self.orders.entry(key).or_default();
        let left = std::mem::take(&mut order.left);
        (order.unsure, order.unsaid) = (false, false);
        if order.aside.take().is_none() {
            (order.unsure, order.unsaid) = (!left, true);
            order.turn = order.turn.wrapping_add(1);
            order.stale = order.stale.saturating_add(1);
        }
        Grasp::Ours
    }

    /// What was grasped was gone before: delivered a moment ago, or taken away by another. So it had no place that stays
    /// behind, unless one was left.
    pub(super) fn let_slip(&mut self, key: Key) {
        if let Some(order) = self.orders.get_mut(&key) {
            order.stale = order.stale.saturating_sub(u16::from(std::mem::take(&mut order.unsure)));
            if order.stale == 0 {
                order.turn = 0;
            }
        }
        self.forget_hold(key);
    }

    /// What was grasped has its place again, and keeps it if it goes another way meanwhile.
    pub(super) fn leave_place(&mut self, key: Key) {
        if let Some(order) = self.orders.get_mut(&key) {
            order.left = true;
        }
    }

    /// The turn of a copy's place in the schedule.
    pub(super) fn turn(&self, key: Key) -> u16 {
        self.orders.get(&key).map_or(0, |order| order.turn)
    }

    /// These recipients of a copy are done with, and others are not.
    pub(super) fn note_done(&mut self, key: Key, recipients: impl IntoIterator<Item = u16>) {
        let mut recipients = recipients.into_iter().peekable();
        if recipients.peek().is_some() {
            self.done.entry(key).or_default().extend(recipients);
        }
    }

    /// Keeps those that are not done with.
    pub(super) fn leave_out_done(&self, key: Key, open: &mut Vec<u16>) {
        if let Some(done) = self.done.get(&key) {
            open.retain(|recipient| !done.contains(recipient));
        }
    }

    /// Whoever is open no more for the spool either need not be known here.
    pub(super) fn forget_done(&mut self, is_open: impl Fn(Key, u16) -> bool) {
        self.done.retain(|key, recipients| {
            recipients.retain(|recipient| is_open(*key, *recipient));
            !recipients.is_empty()
        });
    }

    /// The copy is gone: nobody holds it.
    pub(super) fn forget_hold(&mut self, key: Key) {
        if let Some(order) = self.orders.get_mut(&key) {
            order.held = false;
            order.aside = None;
            self.tidy(key);
        }
    }

    /// What says nothing any more is not kept. A turn other than the first says something as long as its item may come.
    fn tidy(&mut self, key: Key) {
        let is_spent = |order: &Order| !order.held && order.stale == 0 && order.turn == 0 && order.aside.is_none();
        if self.orders.get(&key).is_some_and(is_spent) {
            self.orders.remove(&key);
        }
    }

    /// How many copies something is known of.
    #[cfg(test)]
    pub(super) fn orders(&self) -> usize {
        self.orders.len()
    }

    /// The copies of which something was said that no item in the schedule waits for.
    pub(super) fn ordered(&self) -> Vec<Key> {
        self.orders.iter().filter(|(_, order)| order.stale == 0).map(|(key, _)| *key).collect()
    }

    /// Drops what was said of these, which are not in the spool any more. An item with an old turn may carry the message
    /// itself, and must find its order.
    pub(super) fn forget(&mut self, gone: &[Key]) {
        for key in gone {
            if self.orders.get(key).is_some_and(|order| order.stale == 0) {
                self.orders.remove(key);
            }
        }
    }
}

impl Relay {
    /// Counts a copy as in hand that somebody has taken already.
    pub(super) fn in_hand(&self, key: Key) -> InHand {
        InHand { relay: self.clone(), key }
    }

    /// Counts a copy as in hand that [`Queue::grasp`] said is ours.
    pub(super) fn grasped(&self, queue: &Queue, message: &Standing, copy: &CopyStanding) -> Grasped {
        let key = (message.id, copy.number);
        let known = Known { until: copy.until, attempts: copy.attempts, warned: copy.warned };
        let item = Item { turn: queue.turn(key), ..Item::standing(message, copy.number, known) };
        let place = Place { via: copy.plan.via.clone(), hop: copy.plan.hop.clone(), item };
        Grasped { relay: self.clone(), key, place: Some(place), mine: true }
    }
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;

    use super::*;

    const KEY: Key = (MessageId(1), 0);

    fn item(turn: u16) -> Item {
        Item {
            id: KEY.0,
            copy: KEY.1,
            attempts: 0,
            warned: false,
            turn,
            panics: 0,
            accepted: Timestamp::UNIX_EPOCH,
            absent_since: None,
            resident: None,
            early: None,
        }
    }

    fn queue() -> (Queue, LaneId) {
        let mut queue = Queue::new(Schedule::new(vec![Duration::from_secs(60)]));
        let lane = queue.lane(&ConnectorName("out".into()), &Hop::SmartHosts, 5);
        (queue, lane)
    }

    #[test]
    fn what_is_held_is_laid_aside_and_comes_back_once() {
        let (mut queue, lane) = queue();
        queue.hold(KEY);
        assert!(queue.ready(lane, item(0)));
        assert!(queue.next(lane, Instant::now()).is_none());
        assert_eq!((queue.held(), queue.is_tried(KEY)), (1, false));
        let back = queue.release(KEY).expect("it was laid aside");
        assert!(queue.release(KEY).is_none());
        let lane = queue.lane(&ConnectorName("out".into()), &Hop::SmartHosts, 5);
        assert!(queue.ready(lane, back));
        assert!(queue.next(lane, Instant::now()).is_some());
        assert!(queue.is_tried(KEY) && queue.orders.is_empty());
    }

    #[test]
    fn one_that_is_grasped_leaves_nothing_behind_that_is_tried() {
        let (mut queue, lane) = queue();
        assert!(queue.ready(lane, item(0)));
        assert_eq!(queue.grasp(KEY), Grasp::Ours);
        assert_eq!(queue.grasp(KEY), Grasp::Busy, "one pair of hands");
        queue.let_down(KEY);
        let turn = queue.turn(KEY);
        let same = queue.lane(&ConnectorName("out".into()), &Hop::SmartHosts, 5);
        let _ = queue.ready(same, item(turn));
        assert_eq!(queue.next(lane, Instant::now()).map(|item| item.turn), Some(turn), "the old place is passed over");
        assert_eq!(queue.grasp(KEY), Grasp::Busy, "a worker has it");
    }

    /// What is tried now does not count as waiting for its time, too; nor when that has come, and others with it.
    #[test]
    fn an_old_place_does_not_count() {
        let (mut queue, lane) = queue();
        let (now, other) = (Instant::now(), (MessageId(2), 0));
        let due = now + Duration::from_secs(60);
        queue.later(due, lane, item(0));
        queue.later(due, lane, Item { id: other.0, ..item(0) });
        let depth = |queue: &Queue| (queue.depth(lane).ready, queue.depth(lane).later);
        assert_eq!(queue.grasp(KEY), Grasp::Ours);
        queue.pass_over(KEY, lane);
        queue.pass_over(KEY, lane);
        assert_eq!(depth(&queue), (0, 1), "said once");
        let again = item(queue.turn(KEY));
        queue.let_down(KEY);
        let _ = queue.ready(lane, again);
        assert_eq!(depth(&queue), (1, 1));
        let _ = queue.due(now);
        assert_eq!(depth(&queue), (1, 1), "nothing is due");
        let _ = queue.due(due);
        assert_eq!((depth(&queue), queue.ordered()), ((2, 0), vec![KEY]), "the old place went, and is not waited for");
        // One that is laid aside has no place.
        queue.hold(other);
        assert_eq!(queue.next(lane, now).map(|item| item.key()), Some(KEY));
        assert!(queue.next(lane, now).is_none());
        let lane = queue.lane(&ConnectorName("out".into()), &Hop::SmartHosts, 5);
        queue.later(due, lane, Item { id: MessageId(3), ..item(0) });
        assert_eq!(queue.grasp(other), Grasp::Ours);
        queue.pass_over(other, lane);
        assert_eq!(queue.depth(lane).later, 1);
    }

    /// Delivered a moment before an operator reaches for it, it has no place that could ever come and be counted off.
    #[test]
    fn what_slips_away_leaves_nothing_behind() {
        let (mut queue, lane) = queue();
        assert!(queue.ready(lane, item(0)));
        assert!(queue.next(lane, Instant::now()).is_some());
        queue.let_down(KEY);
        for held in [false, true] {
            assert_eq!(queue.grasp(KEY), Grasp::Ours);
            if held {
                queue.hold(KEY);
            }
            queue.let_slip(KEY);
            queue.let_down(KEY);
            assert!(queue.orders.is_empty() && queue.trying.is_empty(), "{:?}", queue.orders);
        }

        // Taken away by one, and then by another: the place is still there, and must not be tried when its time comes.
        let _ = queue.ready(lane, item(0));
        assert_eq!(queue.grasp(KEY), Grasp::Ours);
        queue.let_down(KEY);
        assert_eq!(queue.grasp(KEY), Grasp::Ours);
        queue.let_slip(KEY);
        queue.let_down(KEY);
        assert!(queue.ordered().is_empty(), "it waits for the place");
        // The same where the first left a new one.
        assert_eq!(queue.grasp(KEY), Grasp::Ours);
        let turn = queue.turn(KEY);
        queue.let_slip(KEY);
        queue.let_down(KEY);
        assert!(queue.admit(item(0)).is_none());
        assert_eq!((queue.ordered(), queue.turn(KEY)), (vec![KEY], turn));
        queue.forget(&[KEY]);
        assert!(queue.orders.is_empty());
    }

    /// A return to the sender gives the copy a place before it takes the copy away.
    #[test]
    fn a_place_that_was_left_is_counted() {
        let (mut queue, _) = queue();
        assert_eq!(queue.grasp(KEY), Grasp::Ours);
        queue.leave_place(KEY);
        let first = queue.turn(KEY);
        queue.let_down(KEY);
        assert_eq!(queue.grasp(KEY), Grasp::Ours);
        queue.let_slip(KEY);
        queue.let_down(KEY);
        for turn in [first, 0] {
            assert!(queue.ordered().is_empty(), "{turn}");
            assert!(queue.admit(item(turn)).is_none(), "{turn}");
        }
        assert_eq!(queue.ordered(), [KEY]);
    }

    #[test]
    fn what_is_gone_is_forgotten() {
        let (mut queue, _) = queue();
        queue.hold(KEY);
        queue.lay_aside(item(0));
        assert_eq!((queue.held(), queue.ordered()), (1, vec![KEY]));
        queue.forget(&[KEY]);
        assert_eq!(queue.held(), 0);
        assert!(queue.release(KEY).is_none());
        assert_eq!(queue.grasp(KEY), Grasp::Ours);
        queue.forget(&[KEY]);
        assert!(queue.ordered().is_empty());
        assert!(queue.admit(item(0)).is_none(), "what was taken away while it had its place is never tried");
    }
}
