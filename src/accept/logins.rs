//! How often somebody may try a password: verifications at one time, and failures of one address.
//!
//! A verification costs a core some tens of milliseconds and 19 MiB or more, so two run at one time over the whole daemon,
//! on threads of their own, and the others wait. A user who logged in from the same address before waits only for what is
//! under way, however many strangers guess. A failure is answered late, later with each from the same address;
//! after [`LOCK_AFTER`] of them within [`WINDOW`] no password from there is looked at.
//!
//! Not here: what a user is (`directory::users`), how many logins may fail in one session (`smtp::server`).

use std::collections::{HashMap, VecDeque};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
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

/// Users with an address whose last login succeeded, as far as they are remembered: about two MiB. Beyond, the one whose
/// login is the longest ago is forgotten.
const KNOWN: usize = 10_000;

/// Logins of all listeners and configurations. Cheap to clone.
#[derive(Debug, Clone)]
pub(super) struct Logins(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    turns: Turns,
    failures: Mutex<Failures>,
    known: Mutex<Known>,
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
        let (turns, failures, known) = (Turns::new(), Mutex::default(), Mutex::default());
        Self(Arc::new(Inner { turns, failures, known, memory }))
    }

    /// Judges one login from `client`.
    pub(super) async fn judge(&self, client: IpAddr, users: Arc<Users>, credentials: Credentials) -> Verdict {
        let address = group(client);
        if self.failures().is_locked(address, Instant::now()) {
            return Verdict::Locked;
        }
        let who: Login = (address, credentials.username.as_str().into());
        let is_known = self.known().has(&who);
        let Ok(Some(turn)) = timeout(PATIENCE, self.0.turns.take(is_known)).await else {
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
            Ok((Some(true), _)) => {
                self.known().remember(who, Instant::now());
                Verdict::Welcome
            }
            Ok((None, _)) => Verdict::Busy,
            Ok((Some(false), turn)) => {
                let noted = self.failures().note(address, Instant::now());
                self.known().forget(&who, noted.newly_locked);
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

    fn known(&self) -> MutexGuard<'_, Known> {
        self.0.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The queue for verifications, first come, first served; of those who are not known no more stand in it, or are served,
/// than verifications run at one time. The others wait in a queue before it. So a known login never waits for more than
/// those, and a stranger's turn comes however many known ones there are.
#[derive(Debug)]
struct Turns {
    verifications: Arc<Semaphore>,
    strangers: Arc<Semaphore>,
}

/// One verification's place, given back when it is dropped.
#[derive(Debug)]
struct Turn {
    _verification: OwnedSemaphorePermit,
    _stranger: Option<OwnedSemaphorePermit>,
}

impl Turns {
    fn new() -> Self {
        let places = || Arc::new(Semaphore::new(AT_ONE_TIME));
        Self { verifications: places(), strangers: places() }
    }

    /// Waits for a turn. There always is one in the end: `None` is for semaphores that were closed.
    async fn take(&self, is_known: bool) -> Option<Turn> {
        let stranger = match is_known {
            true => None,
            false => Some(Arc::clone(&self.strangers).acquire_owned().await.ok()?),
        };
        let verification = Arc::clone(&self.verifications).acquire_owned().await.ok()?;
        Some(Turn { _verification: verification, _stranger: stranger })
    }
}

/// Who logs in: an address, and the name of a user.
type Login = (IpAddr, Box<str>);

/// Logins that succeeded, with the time of the last one. The name belongs to it: who has one password and guesses others
/// from the same address is served like any stranger with these.
#[derive(Debug, Default)]
struct Known(HashMap<Login, Instant>);

impl Known {
    fn has(&self, who: &Login) -> bool {
        self.0.contains_key(who)
    }

    /// The name is that of a user: nobody fills the memory with names of his own.
    fn remember(&mut self, who: Login, now: Instant) {
        if self.0.len() >= KNOWN && !self.0.contains_key(&who) {
            // Goes through all of them: the verification before it cost a thousand times as much.
            let oldest = self.0.iter().min_by_key(|(_, at)| **at).map(|(who, _)| who.clone());
            oldest.and_then(|who| self.0.remove(&who));
        }
        self.0.insert(who, now);
    }

    /// After a failure; with the address, if that is locked.
    fn forget(&mut self, who: &Login, address_too: bool) {
        self.0.remove(who);
        if address_too {
            self.0.retain(|(address, _), _| *address != who.0);
        }
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
    use std::pin::Pin;
    use std::task::{Context, Poll, Waker};

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

    /// Two of 250 guesses are under way when a user comes who is known: the next turn is his. The one after that is a
    /// stranger's again, and theirs come in the order in which they asked.
    #[test]
    fn a_known_login_waits_only_for_what_is_under_way() {
        type Taking<'a> = Pin<Box<dyn Future<Output = Option<Turn>> + 'a>>;
        let turns = Turns::new();
        let mut context = Context::from_waker(Waker::noop());
        let mut under_way: VecDeque<(String, Turn)> = VecDeque::new();
        let mut waiting: Vec<(String, Taking<'_>)> = Vec::new();
        for guess in 0..250 {
            waiting.push((format!("guess {guess}"), Box::pin(turns.take(false))));
        }
        let mut served = Vec::new();
        let mut pass = |waiting: &mut Vec<(String, Taking<'_>)>, under_way: &mut VecDeque<(String, Turn)>| {
            waiting.retain_mut(|(name, taking)| match taking.as_mut().poll(&mut context) {
                Poll::Ready(turn) => {
                    served.push(name.clone());
                    under_way.push_back((name.clone(), turn.unwrap()));
                    false
                }
                Poll::Pending => true,
            });
            assert!(under_way.len() <= AT_ONE_TIME);
        };
        pass(&mut waiting, &mut under_way);
        for user in ["tim", "tina", "tom"] {
            waiting.push((user.to_owned(), Box::pin(turns.take(true))));
        }
        pass(&mut waiting, &mut under_way);
        for _ in 0..7 {
            under_way.pop_front();
            // Whoever has got on in one queue lines up in the other.
            pass(&mut waiting, &mut under_way);
            pass(&mut waiting, &mut under_way);
        }
        assert_eq!(
            served,
            ["guess 0", "guess 1", "tim", "tina", "tom", "guess 2", "guess 3", "guess 4", "guess 5"],
            "three users are served before 248 guesses that came before them"
        );
    }

    /// However many known logins there are, a stranger's turn comes.
    #[test]
    fn known_logins_keep_no_stranger_waiting_for_ever() {
        let turns = Turns::new();
        let mut context = Context::from_waker(Waker::noop());
        let mut take = |is_known: bool| {
            let mut taking = Box::pin(turns.take(is_known));
            let turn = taking.as_mut().poll(&mut context);
            (taking, turn)
        };
        let (_, Poll::Ready(first)) = take(true) else { panic!("it is free") };
        let (_, Poll::Ready(second)) = take(true) else { panic!("it is free") };
        let (mut stranger, turn) = take(false);
        assert!(turn.is_pending());
        let (mut later, turn) = take(true);
        assert!(turn.is_pending());
        drop((first, second));
        let mut context = Context::from_waker(Waker::noop());
        assert!(later.as_mut().poll(&mut context).is_ready() && stranger.as_mut().poll(&mut context).is_ready());
    }

    #[test]
    fn known_logins_are_few_and_lose_it_by_a_failure() {
        let (mut known, start) = (Known::default(), Instant::now());
        let who = |number: usize| -> Login {
            (IpAddr::from(u32::try_from(number % 100).unwrap().to_be_bytes()), format!("user{number}").into())
        };
        for number in 0..KNOWN {
            known.remember(who(number), start + Duration::from_millis(number as u64));
        }
        // The first one comes again, so the second is the oldest.
        known.remember(who(0), start + 11 * SECOND);
        known.remember(who(KNOWN), start + 12 * SECOND);
        assert_eq!(known.0.len(), KNOWN);
        assert!(known.has(&who(0)) && !known.has(&who(1)) && known.has(&who(2)) && known.has(&who(KNOWN)));
        let elsewhere: Login = (ip("198.51.100.1"), "user2".into());
        assert!(!known.has(&elsewhere), "another address is another login");
        known.forget(&who(2), false);
        assert!(!known.has(&who(2)) && known.has(&who(102)), "others behind that address are not to blame");
        known.forget(&who(2), true);
        assert!(!known.has(&who(102)) && known.has(&who(103)), "a locked address has no known logins");
    }

    #[tokio::test]
    async fn a_login_is_judged() {
        let (logins, users) = (Logins::default(), Arc::new(users(&[("tim", "tanstaaf")])));
        let client = ip("192.0.2.1");
        let who: Login = (client, "tim".into());
        assert!(!logins.known().has(&who));
        assert_eq!(logins.judge(client, Arc::clone(&users), login("tanstaaf")).await, Verdict::Welcome);
        assert!(logins.known().has(&who), "the next one is served before strangers");
        let wrong = logins.judge(client, Arc::clone(&users), login("x")).await;
        assert_eq!(wrong, Verdict::Wrong { delay: SECOND });
        assert!(!logins.known().has(&who), "until it succeeds again");
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
