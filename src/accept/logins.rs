//! How often somebody may try a password: verifications at one time, and failures of one address.
//!
//! A verification costs a core some tens of milliseconds and 19 MiB or more, so two run at one time over the whole daemon,
//! on threads of their own, and the others wait. A failure is answered late, later with each from the same address;
//! after [`LOCK_AFTER`] of them within [`WINDOW`] no password from there is looked at.
//!
//! Not here: what a user is (`directory::users`), how many logins may fail in one session (`smtp::server`).

use std::collections::{HashMap, VecDeque};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Semaphore;
use tokio::task::spawn_blocking;
use tokio::time::{Instant, timeout};
use tracing::warn;

use super::limits::group;
use crate::directory::users::Users;
use crate::relay::pressure::HashMemory;
use crate::smtp::auth::Credentials;

/// Verifications at one time: each may need 256 MiB.
const AT_ONE_TIME: usize = 2;

/// A login that could not be looked at for so long is told to come again: clients do not wait for ever either.
const PATIENCE: Duration = Duration::from_secs(30);

/// Failures from one address that are forgiven within [`WINDOW`]; with the next one it is locked.
const LOCK_AFTER: usize = 10;

/// How long a failure counts.
const WINDOW: Duration = Duration::from_secs(600);

/// The reply to a first failure waits so long, to each further one twice as long…
const FIRST_DELAY: Duration = Duration::from_secs(1);

/// …up to this.
const LONGEST_DELAY: Duration = Duration::from_secs(8);

/// Addresses whose failures are remembered: about four MiB. Beyond, the one that was quiet for longest is forgotten.
const ADDRESSES: usize = 10_000;

/// Logins of all listeners and configurations. Cheap to clone.
#[derive(Debug, Clone)]
pub(super) struct Logins(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    turns: Arc<Semaphore>,
    failures: Mutex<Failures>,
    memory: Arc<HashMemory>,
}

/// What became of a login.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    /// The password is right.
    Welcome,
    /// It is not, or nobody has that name; the reply waits so long.
    Wrong {
        /// The wait.
        delay: Duration,
    },
    /// It was not looked at: too many from this address were wrong.
    Locked,
    /// It was not looked at: too many wait for that, or there is not enough memory for its hash.
    Busy,
}

impl Default for Logins {
    fn default() -> Self {
        Self::within(Arc::default())
    }
}

impl Logins {
    /// Logins whose hashes keep to this memory.
    pub(super) fn within(memory: Arc<HashMemory>) -> Self {
        let turns = Arc::new(Semaphore::new(AT_ONE_TIME));
        Self(Arc::new(Inner { turns, failures: Mutex::default(), memory }))
    }

    /// Judges one login from `client`.
    pub(super) async fn judge(&self, client: IpAddr, users: Arc<Users>, credentials: Credentials) -> Verdict {
        let address = group(client);
        if self.failures().is_locked(address, Instant::now()) {
            return Verdict::Locked;
        }
        let Ok(Ok(turn)) = timeout(PATIENCE, Arc::clone(&self.0.turns).acquire_owned()).await else {
            return Verdict::Busy;
        };
        // A hundred connections may have guessed at one time; the failures of the first count for the last.
        if self.failures().is_locked(address, Instant::now()) {
            return Verdict::Locked;
        }
        // The thread holds the turn: it goes on to its end even if the session is cut off meanwhile.
        let memory = Arc::clone(&self.0.memory);
        let verify = move || {
            let room = memory.take(users.memory(&credentials.username));
            let verified = room.as_ref().map(|_| users.verify(&credentials.username, &credentials.password));
            drop(room);
            (verified, turn)
        };
        match spawn_blocking(verify).await {
            Ok((Some(true), _)) => Verdict::Welcome,
            Ok((None, _)) => Verdict::Busy,
            Ok((Some(false), turn)) => {
                let noted = self.failures().note(address, Instant::now());
                drop(turn);
                if noted.newly_locked {
                    warn!(
                        peer = %address,
                        "more than {LOCK_AFTER} logins failed within {WINDOW:?}; no password from there is looked at for a while"
                    );
                }
                Verdict::Wrong { delay: noted.delay }
            }
            // The verification panicked. Nobody gets in by that.
            Err(_) => Verdict::Busy,
        }
    }

    fn failures(&self) -> MutexGuard<'_, Failures> {
        self.0.failures.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Failures by address, under a clock that is passed in.
#[derive(Debug, Default)]
struct Failures(HashMap<IpAddr, Record>);

#[derive(Debug, Default)]
struct Record {
    /// The latest failures, oldest first; never more than lock the address.
    recent: VecDeque<Instant>,
    warned: bool,
}

/// What follows from a failure.
#[derive(Debug, PartialEq, Eq)]
struct Noted {
    delay: Duration,
    /// The operator has not been told of this address yet.
    newly_locked: bool,
}

impl Failures {
    fn is_locked(&mut self, address: IpAddr, now: Instant) -> bool {
        let Some(record) = self.0.get_mut(&address) else { return false };
        record.forget(now);
        if record.recent.is_empty() {
            self.0.remove(&address);
            return false;
        }
        record.recent.len() > LOCK_AFTER
    }

    fn note(&mut self, address: IpAddr, now: Instant) -> Noted {
        if self.0.len() >= ADDRESSES && !self.0.contains_key(&address) {
            self.make_room(now);
        }
        let record = self.0.entry(address).or_default();
        record.forget(now);
        if record.recent.len() > LOCK_AFTER {
            record.recent.pop_front();
        }
        record.recent.push_back(now);
        let doublings = u32::try_from(record.recent.len() - 1).unwrap_or(u32::MAX).min(8);
        let newly_locked = record.recent.len() > LOCK_AFTER && !record.warned;
        record.warned |= newly_locked;
        Noted { delay: (FIRST_DELAY * 2_u32.pow(doublings)).min(LONGEST_DELAY), newly_locked }
    }

    /// Goes through all of them: the verification before it cost a thousand times as much.
    fn make_room(&mut self, now: Instant) {
        self.0.retain(|_, record| {
            record.forget(now);
            !record.recent.is_empty()
        });
        if self.0.len() >= ADDRESSES {
            let quietest = self.0.iter().min_by_key(|(_, record)| record.recent.back().copied());
            if let Some(address) = quietest.map(|(address, _)| *address) {
                self.0.remove(&address);
            }
        }
    }
}

impl Record {
    fn forget(&mut self, now: Instant) {
        while self.recent.front().is_some_and(|then| now.saturating_duration_since(*then) >= WINDOW) {
            self.recent.pop_front();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::directory::users::tests::users;

    const SECOND: Duration = Duration::from_secs(1);

    fn ip(text: &str) -> IpAddr {
        group(text.parse().unwrap())
    }

    fn login(password: &str) -> Credentials {
        Credentials { username: "tim".into(), password: password.into() }
    }

    #[test]
    fn each_failure_is_answered_later_until_none_is_looked_at() {
        let (mut failures, start) = (Failures::default(), Instant::now());
        let delays: Vec<u64> =
            (0..11).map(|at| failures.note(ip("192.0.2.1"), start + at * SECOND).delay.as_secs()).collect();
        assert_eq!(delays, [1, 2, 4, 8, 8, 8, 8, 8, 8, 8, 8]);
        for (address, after, expected) in [
            ("192.0.2.1", 11, true),
            ("::ffff:192.0.2.1", 11, true),
            ("192.0.2.2", 11, false),
            ("192.0.2.1", 599, true),
            // The first of the eleven is ten minutes old.
            ("192.0.2.1", 600, false),
        ] {
            assert_eq!(failures.is_locked(ip(address), start + after * SECOND), expected, "{address} after {after} s");
        }
        // One more, and it is locked again; all are old, and it is forgotten.
        assert_eq!(failures.note(ip("192.0.2.1"), start + 601 * SECOND).delay, LONGEST_DELAY);
        assert!(!failures.is_locked(ip("192.0.2.1"), start + 602 * SECOND), "ten are forgiven");
        assert!(!failures.is_locked(ip("192.0.2.1"), start + 2000 * SECOND));
        assert!(failures.0.is_empty());
    }

    #[test]
    fn ten_failures_are_forgiven_and_the_operator_is_told_once() {
        let (mut failures, start) = (Failures::default(), Instant::now());
        let address = ip("2001:db8::1");
        let told: Vec<usize> = (1..40)
            .filter(|at| {
                let now = start + u32::try_from(*at).unwrap() * SECOND;
                assert_eq!(failures.is_locked(address, now), *at > 11, "before failure {at}");
                failures.note(address, now).newly_locked
            })
            .collect();
        assert_eq!(told, [11], "at the eleventh, and never again");
        assert!(failures.is_locked(ip("2001:db8::ffff:1"), start + 40 * SECOND), "a /64 is one customer");
        assert!(!failures.is_locked(ip("2001:db8:0:1::1"), start + 40 * SECOND));
        assert_eq!(failures.0[&address].recent.len(), 11, "bounded");
        // Quiet for long enough, and then again.
        let later = start + 2000 * SECOND;
        assert!(!failures.is_locked(address, later));
        assert!((0..11).filter(|_| failures.note(address, later).newly_locked).count() == 1);
    }

    #[test]
    fn the_quietest_address_is_forgotten_first() {
        let (mut failures, start) = (Failures::default(), Instant::now());
        let number = |number: usize| IpAddr::from(u32::try_from(number).unwrap().to_be_bytes());
        for at in 0..ADDRESSES {
            failures.note(number(at), start + Duration::from_millis(at as u64));
        }
        // The first one is heard of again, so the second is the quietest.
        let now = start + 11 * SECOND;
        failures.note(number(0), now);
        failures.note(ip("198.51.100.1"), now);
        assert_eq!(failures.0.len(), ADDRESSES);
        assert!(failures.0.contains_key(&number(0)) && !failures.0.contains_key(&number(1)));
        // Those that no longer count make room first.
        failures.note(ip("198.51.100.2"), start + 605 * SECOND);
        assert_eq!(failures.0.len(), ADDRESSES - 4_999 + 1);
    }

    #[tokio::test]
    async fn a_login_is_judged() {
        let (logins, users) = (Logins::default(), Arc::new(users(&[("tim", "tanstaaf")])));
        let client = ip("192.0.2.1");
        assert_eq!(logins.judge(client, Arc::clone(&users), login("tanstaaf")).await, Verdict::Welcome);
        let wrong = logins.judge(client, Arc::clone(&users), login("x")).await;
        assert_eq!(wrong, Verdict::Wrong { delay: SECOND });
        // A right password takes nothing back: whoever has one account may still be guessing at others.
        assert_eq!(logins.judge(client, Arc::clone(&users), login("tanstaaf")).await, Verdict::Welcome);
        let wrong = logins.judge(client, users, login("x")).await;
        assert_eq!(wrong, Verdict::Wrong { delay: 2 * SECOND });
    }

    /// A hundred guesses at one time are no better than one after the other, and the right one among the last does not help.
    #[tokio::test(flavor = "multi_thread", worker_threads = 4)]
    async fn guesses_at_one_time_are_counted_like_guesses_in_turn() {
        let (logins, users) = (Logins::default(), Arc::new(users(&[("tim", "tanstaaf")])));
        let mut guesses = tokio::task::JoinSet::new();
        for _ in 0..100 {
            let (logins, users) = (logins.clone(), Arc::clone(&users));
            guesses.spawn(async move { logins.judge(ip("192.0.2.1"), users, login("x")).await });
        }
        let verdicts = guesses.join_all().await;
        let looked_at = verdicts.iter().filter(|verdict| matches!(verdict, Verdict::Wrong { .. })).count();
        let locked = verdicts.iter().filter(|verdict| matches!(verdict, Verdict::Locked)).count();
        assert!((LOCK_AFTER + 1..=LOCK_AFTER + AT_ONE_TIME).contains(&looked_at), "{looked_at} were looked at");
        assert_eq!(looked_at + locked, 100);
        assert_eq!(logins.judge(ip("192.0.2.1"), Arc::clone(&users), login("tanstaaf")).await, Verdict::Locked);
        assert_eq!(logins.judge(ip("192.0.2.9"), users, login("tanstaaf")).await, Verdict::Welcome, "others are not");
    }
}
