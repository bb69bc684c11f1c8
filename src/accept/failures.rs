//! Failed TLS handshakes in the log: who and why, and not more of them than an operator can read.
//!
//! Scanners fail handshakes all day, and a device that fails one tries again every minute. Of one address the log
//! names a few a minute, of all together some more; the others are counted.

use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tracing::info;

use crate::clock;
use crate::random::HashMap;

/// For so long failures are counted together.
const WINDOW: Duration = Duration::from_mins(1);

/// So many of one address are logged in a window.
const OF_ONE: u32 = 3;

/// And so many of all: as many addresses are told apart.
const OF_ALL: u32 = 30;

/// Counts failed handshakes over all listeners.
#[derive(Debug, Clone, Default)]
pub(super) struct FailedHandshakes(Arc<Mutex<Window>>);

#[derive(Debug, Default)]
struct Window {
    began: Option<Instant>,
    logged: HashMap<IpAddr, u32>,
    total: u32,
    left_out: u32,
}

/// What becomes of one failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verdict {
    /// It is logged, and so many that were left out in the window before are counted.
    Log {
        left_out: u32,
    },
    LeaveOut,
}

impl Window {
    fn judge(&mut self, peer: IpAddr, now: Instant) -> Verdict {
        let mut left_out = 0;
        if self.began.is_none_or(|began| now.saturating_duration_since(began) >= WINDOW) {
            left_out = self.left_out;
            *self = Self { began: Some(now), ..Self::default() };
        }
        let of_peer = self.logged.get(&peer).copied().unwrap_or(0);
        if self.total >= OF_ALL || of_peer >= OF_ONE {
            self.left_out = self.left_out.saturating_add(1);
            return Verdict::LeaveOut;
        }
        self.total += 1;
        self.logged.insert(peer, of_peer + 1);
        Verdict::Log { left_out }
    }
}

impl FailedHandshakes {
    /// Logs it, unless there are too many.
    pub(super) fn log(&self, peer: IpAddr, connector: &str, why: &str) {
        let verdict = self.0.lock().unwrap_or_else(PoisonError::into_inner).judge(peer, clock::now());
        let Verdict::Log { left_out } = verdict else { return };
        if left_out > 0 {
            info!(left_out, "more TLS handshakes failed a while ago than are logged");
        }
        info!(%peer, connector, why, "the TLS handshake failed");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_few_of_each_are_logged_and_the_others_counted() {
        let start = Instant::now();
        let at = |seconds: u64| start + Duration::from_secs(seconds);
        let peer = |n: u8| IpAddr::from([192, 0, 2, n]);
        let mut window = Window::default();
        for n in 0..5 {
            let expected = if n < OF_ONE { Verdict::Log { left_out: 0 } } else { Verdict::LeaveOut };
            assert_eq!(window.judge(peer(1), at(n.into())), expected, "{n}");
        }
        // Another address is not left out for its sake.
        assert_eq!(window.judge(peer(2), at(6)), Verdict::Log { left_out: 0 });
        let logged = (3..100).filter(|&n| window.judge(peer(n), at(7)) != Verdict::LeaveOut).count();
        assert_eq!(logged as u32, OF_ALL - OF_ONE - 1);
        assert!(window.logged.len() <= OF_ALL as usize);
        // A minute after the first; then nothing is left to be told.
        assert_eq!(window.judge(peer(1), at(60)), Verdict::Log { left_out: 2 + 97 - (OF_ALL - OF_ONE - 1) });
        assert_eq!(window.judge(peer(1), at(120)), Verdict::Log { left_out: 0 });
    }
}
