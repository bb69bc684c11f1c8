//! Idle connections, limits per host, rates.
//!
//! A place is one address as one send connector uses it: the connector fixes our certificate, our name and our
//! source, so none of them can be mixed up. Within a place a connection is used again only for the same host name and,
//! where that is part of what was demanded, the same recipient domain: never for an address alone.
//!
//! A permit is a connection in use. Idle ones give theirs back, so that whoever waits gets them; an idle one is
//! closed before a new one would exceed the limit.
//!
//! A place that failed rests: other addresses of the hop go first, and one attempt at a time asks whether it is back. That
//! it failed is remembered until it answers, so that a later attempt goes on with those that were not tried.
//!
//! The pool outlives configurations. A send connector is in it under an [`Owner`], which a reload keeps as long as nothing
//! changes about the connector's connections, and retires otherwise.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinSet;

use super::connect::now;
use super::drive::Connection;
use super::hosts::{Known, Standing};
use crate::config::Rate;
use crate::message::Domain;
use crate::random::{HashMap, HashSet};
use crate::route::Hop;

/// How long a connection is kept without work: servers are asked to wait five minutes, and many wait ten seconds.
pub const IDLE: Duration = Duration::from_secs(8);

/// How many idle connections are kept in all: each is a descriptor, here and there.
const IDLE_CONNECTIONS: usize = 500;

/// How many places are remembered while nothing happens at them; as many again that failed.
const PLACES: usize = 10_000;

/// How many hops are remembered that get DATA since a session ended at BDAT. Past them all are forgotten.
const UNCHUNKED: usize = 1_000;

/// How often idle connections are looked through, while there are any.
const SWEEP: Duration = Duration::from_secs(1);

/// So long is an address left for others of its hop after it failed: one that lets callers wait would otherwise cost
/// half of the messages that time, each anew.
pub const REST: Duration = Duration::from_secs(60);

/// What a connection was opened for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Purpose {
    /// The host's name.
    pub host: Option<Domain>,
    /// The recipients' domain, where the certificate was to name it.
    pub domain: Option<Domain>,
}

/// One send connector, as long as nothing changes about its connections.
#[derive(Debug)]
pub struct Owner {
    number: u64,
    /// Its connections are closed rather than kept.
    retired: AtomicBool,
}

impl Owner {
    /// Another than all before.
    pub fn unique() -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        Self { number: NEXT.fetch_add(1, Ordering::Relaxed), retired: AtomicBool::new(false) }
    }

    fn is_retired(&self) -> bool {
        self.retired.load(Ordering::Relaxed)
    }
}

/// All connections of the relay. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Pool {
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    /// Connections that are saying goodbye.
    leaving: Mutex<JoinSet<()>>,
}

#[derive(Debug, Default)]
struct State {
    places: HashMap<(u64, SocketAddr), Arc<Place>>,
    /// At so many places those that say nothing are looked for.
    sweep_at: usize,
    /// Sessions with a host of these ended at BDAT.
    unchunked: HashSet<(u64, Hop)>,
    idle: usize,
    sweeping: bool,
    closed: bool,
}

/// One address as one connector uses it.
#[derive(Debug)]
pub struct Place {
    owner: Arc<Owner>,
    permits: Arc<Semaphore>,
    limit: usize,
    idle: Mutex<Vec<Idle>>,
    /// BDAT failed here although it is offered.
    no_chunking: AtomicBool,
    /// Nothing could be done with it, and it has not answered since.
    failed: Mutex<Option<Failed>>,
}

#[derive(Debug, Clone, Copy)]
struct Failed {
    at: Instant,
    /// Until then others go first.
    rests_until: Instant,
}

#[derive(Debug)]
struct Idle {
    purpose: Purpose,
    connection: Connection,
    since: Instant,
}

/// The right to have one connection in use.
#[derive(Debug)]
pub struct Lease {
    pool: Pool,
    place: Arc<Place>,
    purpose: Purpose,
    permit: OwnedSemaphorePermit,
}

impl Pool {
    /// Waits until `owner` may use another connection to `address`.
    pub async fn lease(&self, owner: &Arc<Owner>, address: SocketAddr, limit: usize, purpose: Purpose) -> Lease {
        let place = {
            let mut state = self.state();
            if state.places.len() >= PLACES.max(state.sweep_at) {
                let is_used = |place: &Arc<Place>| Arc::strong_count(place) > 1 || !lock(&place.idle).is_empty();
                state.places.retain(|_, place| is_used(place) || lock(&place.failed).is_some());
                if state.places.len() >= 2 * PLACES {
                    let now = now();
                    let rests = |place: &Arc<Place>| lock(&place.failed).is_some_and(|failed| failed.rests_until > now);
                    state.places.retain(|_, place| is_used(place) || rests(place));
                }
                // Not for each lease, where most of them stay.
                state.sweep_at = state.places.len() + PLACES / 2;
            }
            let place = state.places.entry((owner.number, address)).or_insert_with(|| {
                Arc::new(Place {
                    owner: Arc::clone(owner),
                    permits: Arc::new(Semaphore::new(limit.max(1))),
                    limit: limit.max(1),
                    idle: Mutex::default(),
                    no_chunking: AtomicBool::new(false),
                    failed: Mutex::default(),
                })
            });
            Arc::clone(place)
        };
        let permit = Arc::clone(&place.permits).acquire_owned().await.expect("the semaphore is never closed");
        Lease { pool: self.clone(), place, purpose, permit }
    }

    /// What is known of the addresses of a connector's hosts.
    pub fn known<'a>(&'a self, owner: &'a Owner) -> Addresses<'a> {
        Addresses { pool: self, owner }
    }

    fn place(&self, owner: &Owner, address: SocketAddr) -> Option<Arc<Place>> {
        self.state().places.get(&(owner.number, address)).map(Arc::clone)
    }

    fn standing(&self, owner: &Owner, address: SocketAddr, now: Instant) -> Standing {
        let Some(place) = self.place(owner, address) else { return Standing::Good };
        let failed = *lock(&place.failed);
        match failed {
            None => Standing::Good,
            Some(Failed { at, rests_until }) if rests_until > now => Standing::Resting(at),
            Some(Failed { at, .. }) => Standing::Failed(at),
        }
    }

    /// An address that failed is about to be tried again; the others wait for what comes of that: one connection probes it.
    /// F-036.
    fn probe(&self, owner: &Owner, address: SocketAddr, now: Instant) -> bool {
        let Some(place) = self.place(owner, address) else { return true };
        let mut failed = lock(&place.failed);
        let Some(failed) = &mut *failed else { return true };
        let may = failed.rests_until <= now;
        if may {
            failed.rests_until = now + REST;
        }
        may
    }

    /// May BDAT be used with hosts of this hop?
    pub fn may_chunk(&self, owner: &Owner, hop: &Hop) -> bool {
        let state = self.state();
        state.unchunked.is_empty() || !state.unchunked.contains(&(owner.number, hop.clone()))
    }

    /// A session with a host of this hop ended at BDAT. The firewall that does so may stand before all of them.
    pub fn never_chunk(&self, owner: &Owner, hop: &Hop) {
        let mut state = self.state();
        if state.unchunked.len() >= UNCHUNKED {
            state.unchunked.clear();
        }
        state.unchunked.insert((owner.number, hop.clone()));
    }

    /// Says goodbye on all idle connections, keeps none from now on, and waits until all are closed.
    pub async fn close(&self) {
        let places: Vec<_> = {
            let mut state = self.state();
            state.closed = true;
            state.idle = 0;
            state.places.values().cloned().collect()
        };
        for place in places {
            for idle in std::mem::take(&mut *lock(&place.idle)) {
                self.leave(idle.connection);
            }
        }
        let mut leaving = std::mem::take(&mut *lock(&self.shared.leaving));
        while leaving.join_next().await.is_some() {}
    }

    /// Says goodbye on the idle connections of `owner`, and keeps none of its connections from now on. Attempts that are
    /// under way, or still begin by the former configuration, end as they would have.
    pub fn retire(&self, owner: &Owner) {
        let mut idle = Vec::new();
        {
            let mut state = self.state();
            // Under the lock: whoever gives a connection back either comes before, or sees it.
            owner.retired.store(true, Ordering::Relaxed);
            state.places.retain(|_, place| {
                if !place.owner.is_retired() {
                    return true;
                }
                idle.append(&mut lock(&place.idle));
                // One in use still counts for its limit.
                Arc::strong_count(place) > 1
            });
            state.idle = state.idle.saturating_sub(idle.len());
        }
        for idle in idle {
            self.leave(idle.connection);
        }
    }

    /// Says goodbye without letting anybody wait for it.
    fn leave(&self, connection: Connection) {
        let mut leaving = lock(&self.shared.leaving);
        // Those that have left are forgotten.
        while leaving.try_join_next().is_some() {}
        leaving.spawn(connection.quit());
    }

    fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.shared.state)
    }

    /// Closes what was idle too long. False: nothing is left to look after.
    pub(super) fn sweep(&self, now: Instant) -> bool {
        let mut old = Vec::new();
        let keep = {
            let mut state = self.state();
            for place in state.places.values() {
                let mut idle = lock(&place.idle);
                // The oldest stand first.
                let count = idle.iter().take_while(|idle| now.saturating_duration_since(idle.since) >= IDLE).count();
                old.extend(idle.drain(..count));
            }
            state.idle = state.idle.saturating_sub(old.len());
            state.sweeping = state.idle > 0;
            state.sweeping
        };
        for idle in old {
            self.leave(idle.connection);
        }
        keep
    }
}

/// See [`Pool::known`].
#[derive(Debug)]
pub struct Addresses<'a> {
    pool: &'a Pool,
    owner: &'a Owner,
}

impl Known for Addresses<'_> {
    fn standing(&self, address: SocketAddr) -> Standing {
        self.pool.standing(self.owner, address, now())
    }

    fn probe(&self, address: SocketAddr) -> bool {
        self.pool.probe(self.owner, address, now())
    }
}

impl Lease {
    /// A connection that was kept and is still open.
    pub fn take(&self) -> Option<Connection> {
        loop {
            let idle = {
                let mut state = self.pool.state();
                let mut idle = lock(&self.place.idle);
                // The one used last is the likeliest to be open.
                let at = idle.iter().rposition(|idle| idle.purpose == self.purpose)?;
                state.idle = state.idle.saturating_sub(1);
                idle.remove(at)
            };
            let Idle { mut connection, since, .. } = idle;
            if now().saturating_duration_since(since) < IDLE && connection.session.is_usable() && connection.is_quiet()
            {
                return Some(connection);
            }
        }
    }

    /// Makes room for a new connection: one that is idle for another purpose goes if there would be too many.
    pub fn make_room(&self) {
        let surplus = {
            let mut state = self.pool.state();
            let mut idle = lock(&self.place.idle);
            let in_use = self.place.limit.saturating_sub(self.place.permits.available_permits());
            (in_use + idle.len() > self.place.limit && !idle.is_empty()).then(|| {
                state.idle = state.idle.saturating_sub(1);
                idle.remove(0)
            })
        };
        if let Some(idle) = surplus {
            self.pool.leave(idle.connection);
        }
    }

    /// Gives back a connection that is open and in order, to be kept.
    pub fn keep(self, connection: Connection) {
        let kept = {
            let mut state = self.pool.state();
            if state.closed || self.place.owner.is_retired() || state.idle >= IDLE_CONNECTIONS {
                Err(connection)
            } else {
                state.idle += 1;
                if !std::mem::replace(&mut state.sweeping, true) {
                    tokio::spawn(sweep(Arc::downgrade(&self.pool.shared)));
                }
                lock(&self.place.idle).push(Idle { purpose: self.purpose, connection, since: now() });
                Ok(())
            }
        };
        if let Err(connection) = kept {
            self.pool.leave(connection);
        }
        // Only now may another one look for it.
        drop(self.permit);
    }

    /// Nothing can be done with this address now.
    pub fn rest(&self, now: Instant) {
        *lock(&self.place.failed) = Some(Failed { at: now, rests_until: now + REST });
    }

    /// This message got nowhere here, as others may: those that failed later, or not at all, go first.
    pub fn note_failure(&self, now: Instant) {
        *lock(&self.place.failed) = Some(Failed { at: now, rests_until: now });
    }

    /// It answers.
    pub fn wake(&self) {
        *lock(&self.place.failed) = None;
    }

    /// Gives back a connection that has carried enough.
    pub fn retire(self, connection: Connection) {
        self.pool.leave(connection);
    }

    /// May BDAT be used here, if it is offered?
    pub fn may_chunk(&self) -> bool {
        !self.place.no_chunking.load(Ordering::Relaxed)
    }

    /// It may not, whatever is offered.
    pub fn never_chunk(&self) {
        self.place.no_chunking.store(true, Ordering::Relaxed);
    }
}

/// Ends by itself when nothing is idle, or when the pool is gone.
async fn sweep(shared: Weak<Shared>) {
    loop {
        tokio::time::sleep(SWEEP).await;
        let Some(shared) = shared.upgrade() else { return };
        if !(Pool { shared }).sweep(now()) {
            return;
        }
    }
}

/// No panic can leave the maps half changed, so a poisoned lock is as good as another.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// `rate`: turns given out one by one, evenly; a pause saves up at most a second's worth.
#[derive(Debug)]
pub struct Turns {
    /// Between two messages.
    interval: Duration,
    /// When the next turn would be if none had been saved up.
    next: Mutex<Option<Instant>>,
}

impl Turns {
    /// At this rate.
    pub fn new(rate: Rate) -> Self {
        Self { interval: rate.per / rate.count.max(1), next: Mutex::new(None) }
    }

    /// Do the turns of both come at the same rate?
    pub fn is_as_fast_as(&self, other: &Self) -> bool {
        self.interval == other.interval
    }

    /// When the message that asks at `now` may go.
    pub fn take(&self, now: Instant) -> Instant {
        let mut next = lock(&self.next);
        let saved = Duration::from_secs(1).saturating_sub(self.interval);
        let due = next.unwrap_or(now).max(now.checked_sub(saved).unwrap_or(now));
        *next = Some(due + self.interval);
        due.max(now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// F-036: when the rest of an address is over, one asks whether it is back, and the others go elsewhere until it said
    /// so.
    #[tokio::test]
    async fn f036_an_address_that_failed_is_probed_by_one_at_a_time() {
        let pool = Pool::default();
        let owner = Arc::new(Owner::unique());
        let address: SocketAddr = "127.0.0.1:1".parse().unwrap();
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let rests = |seconds| match pool.standing(&owner, address, at(seconds)) {
            Standing::Good => false,
            Standing::Failed(since) | Standing::Resting(since) if since != start => panic!("{since:?}"),
            Standing::Failed(_) => !pool.probe(&owner, address, at(seconds)),
            Standing::Resting(_) => true,
        };
        assert_eq!(pool.standing(&owner, address, start), Standing::Good, "nothing is known of it");
        let lease = pool.lease(&owner, address, 1, Purpose { host: None, domain: None }).await;
        lease.rest(start);
        assert_eq!([rests(0), rests(59), rests(60), rests(60), rests(119)], [true, true, false, true, true]);
        assert_eq!([rests(120), rests(121)], [false, true], "the probe said nothing; so the next one asks");
        assert!(!pool.probe(&owner, address, at(121)), "two that saw it rested: one of them asks");
        assert_eq!(pool.standing(&owner, address, at(100_000)), Standing::Failed(start), "till it answers");
        lease.wake();
        assert_eq!(pool.standing(&owner, address, at(121)), Standing::Good);
        lease.note_failure(at(122));
        assert_eq!(pool.standing(&owner, address, at(122)), Standing::Failed(at(122)), "it need not rest");
    }

    #[test]
    fn turns_come_evenly_and_a_pause_saves_a_second_at_most() {
        let start = Instant::now();
        let at =
            |turns: &Turns, millis| turns.take(start + Duration::from_millis(millis)).duration_since(start).as_millis();

        let slow = Turns::new(Rate { count: 30, per: Duration::from_mins(1) });
        assert_eq!([at(&slow, 0), at(&slow, 0), at(&slow, 0)], [0, 2_000, 4_000]);
        assert_eq!([at(&slow, 60_000), at(&slow, 60_000)], [60_000, 62_000], "nothing is saved up below one a second");

        let fast = Turns::new(Rate { count: 600, per: Duration::from_mins(1) });
        let given: Vec<_> = (0..3).map(|_| at(&fast, 0)).collect();
        assert_eq!(given, [0, 100, 200]);
        let after_a_pause = (0..20).filter(|_| at(&fast, 60_000) == 60_000).count();
        assert_eq!(after_a_pause, 10, "a second's worth at once");
    }
}
