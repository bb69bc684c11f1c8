//! The signals that the daemon obeys: SIGHUP reloads, SIGTERM and SIGINT stop it.
//!
//! The kernel accepts connections from the moment a port is bound, or from before the start where the service manager
//! binds it, and the handlers need the runtime, which must not exist before the daemon has become its user. A signal
//! without a handler would end the process. So the first thing that a start does is to hold these signals back: what
//! arrives meanwhile waits in the kernel until the handlers are there, and is obeyed then.

use std::io;

use nix::sys::signal::{SigSet, Signal as Number};
use tokio::signal::unix::{Signal, SignalKind, signal};

/// Signals that wait in the kernel.
#[derive(Debug)]
pub(super) struct Held(SigSet);

/// What arrives, from [`Signals::catch`] on.
#[derive(Debug)]
pub(super) struct Signals {
    pub term: Signal,
    pub int: Signal,
    pub hup: Signal,
}

/// Blocks the signals in this thread, and in those that it starts from now on.
///
/// # Errors
/// What the system says.
pub(super) fn hold() -> io::Result<Held> {
    let mut set = SigSet::empty();
    for signal in [Number::SIGHUP, Number::SIGTERM, Number::SIGINT] {
        set.add(signal);
    }
    set.thread_block()?;
    Ok(Held(set))
}

impl Signals {
    /// Installs the handlers, then lets this thread have the signals: those that waited, and all that come. A signal is for
    /// the process, and the kernel gives it to a thread that does not block it: this one, for as long as it lives. It must
    /// be the thread that held them back, in the runtime.
    ///
    /// # Errors
    /// What the system says.
    pub(super) fn catch(held: Held) -> io::Result<Self> {
        let signals = Self {
            term: signal(SignalKind::terminate())?,
            int: signal(SignalKind::interrupt())?,
            hup: signal(SignalKind::hangup())?,
        };
        held.0.thread_unblock()?;
        Ok(signals)
    }
}
