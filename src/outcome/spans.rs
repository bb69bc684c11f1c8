//! What a message spent its time on: spans, for whoever collects traces.
//!
//! A stage says [`tell`] when it is over. In a build without the feature `otlp` that is nothing at all: no clock is read and
//! nothing is kept. With it, and if somebody watches, the span goes into a bounded queue; where that is full it is
//! dropped and counted, so a collector that is slow or gone costs no mail.
//!
//! No address, subject or reply text is ever in a span: collectors are often somebody else's.
//!
//! Not here: how spans leave the process (`daemon::otlp`). What an operator looks a message up by is `tracking`.

use crate::message::MessageId;

/// What is known of a span beside its times.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Facts {
    /// Names and values.
    pub attributes: Vec<(&'static str, String)>,
    /// The stage did not reach its end.
    pub failed: bool,
}

/// A stage that is over.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Span {
    /// `receive`, `resolve`, `commit`, `attempt`.
    pub name: &'static str,
    /// The same for all spans of a message, on both premises where it bears a `Message-ID`.
    pub trace: u128,
    /// The message here.
    pub id: MessageId,
    /// When it began.
    pub begun: std::time::SystemTime,
    /// When it ended.
    pub ended: std::time::SystemTime,
    /// What else is known.
    pub facts: Facts,
}

#[cfg(feature = "otlp")]
pub use on::{Begun, Trace, drain_dropped, tell, watch};

#[cfg(not(feature = "otlp"))]
pub use off::{Begun, Trace, tell};

#[cfg(feature = "otlp")]
mod on {
    use std::sync::OnceLock;
    use std::sync::atomic::{AtomicU64, Ordering};
    use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
    use std::time::SystemTime;

    use super::{Facts, Span};
    use crate::message::MessageId;

    static WATCHER: OnceLock<SyncSender<Span>> = OnceLock::new();
    static DROPPED: AtomicU64 = AtomicU64::new(0);

    /// When a stage began.
    #[derive(Debug, Clone, Copy)]
    pub struct Begun(Option<SystemTime>);

    impl Begun {
        /// Now, if anybody wants to know.
        pub fn now() -> Self {
            Self(WATCHER.get().map(|_| SystemTime::now()))
        }
    }

    /// Which trace a message's spans belong to.
    #[derive(Debug, Clone, Copy)]
    pub struct Trace(u128);

    impl Trace {
        /// By its `Message-ID`, else by its number.
        pub fn of(message_id: Option<&str>, id: MessageId) -> Self {
            match (WATCHER.get(), message_id) {
                (None, _) => Self(0),
                (Some(_), Some(message_id)) => Self(hash(message_id.as_bytes())),
                (Some(_), None) => Self(hash(&id.0.to_be_bytes())),
            }
        }
    }

    /// FNV-1a. Whoever chooses a `Message-ID` may put a message into another's trace, which does no harm.
    fn hash(bytes: &[u8]) -> u128 {
        const BASIS: u128 = 0x6c62_272e_07bb_0142_62b8_2175_6295_c58d;
        const PRIME: u128 = 0x0000_0000_0100_0000_0000_0000_0000_013b;
        // All zeros is no trace.
        bytes.iter().fold(BASIS, |hash, byte| (hash ^ u128::from(*byte)).wrapping_mul(PRIME)).max(1)
    }

    /// A stage of a message is over. `facts` is asked only if somebody watches.
    pub fn tell(begun: Begun, trace: Trace, id: MessageId, name: &'static str, facts: impl FnOnce() -> Facts) {
        let (Some(watcher), Some(begun)) = (WATCHER.get(), begun.0) else { return };
        let span = Span { name, trace: trace.0, id, begun, ended: SystemTime::now(), facts: facts() };
        if watcher.try_send(span).is_err() {
            DROPPED.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// From now on spans are kept for the caller, up to `limit`. `None`: somebody else has them.
    pub fn watch(limit: usize) -> Option<Receiver<Span>> {
        let (sender, receiver) = sync_channel(limit);
        WATCHER.set(sender).ok().map(|()| receiver)
    }

    /// How many were dropped since this was asked last.
    pub fn drain_dropped() -> u64 {
        DROPPED.swap(0, Ordering::Relaxed)
    }

    #[cfg(test)]
    mod tests {
        use super::*;

        /// One test for all: there is one watcher in a process.
        #[test]
        fn what_nobody_takes_is_dropped_and_counted() {
            let id = MessageId(7);
            tell(Begun::now(), Trace::of(None, id), id, "early", || panic!("nobody watches"));
            let spans = watch(2).unwrap();
            assert!(watch(2).is_none());
            let trace = Trace::of(Some("<a@b>"), id);
            assert_ne!(trace.0, Trace::of(None, id).0);
            assert_eq!(
                trace.0,
                Trace::of(Some("<a@b>"), MessageId(8)).0,
                "the other premises has another number for it"
            );
            for _ in 0..5 {
                tell(Begun::now(), trace, id, "receive", Facts::default);
            }
            // Other tests of this process may tell of their messages meanwhile.
            assert!(drain_dropped() >= 3);
            let first = spans.recv().unwrap();
            assert!(first.begun <= first.ended);
            assert_eq!(spans.try_iter().count(), 1);
        }
    }
}

#[cfg(not(feature = "otlp"))]
mod off {
    use super::Facts;
    use crate::message::MessageId;

    /// Nothing: this build does not tell.
    #[derive(Debug, Clone, Copy)]
    pub struct Begun;

    impl Begun {
        /// Nothing.
        #[inline]
        pub fn now() -> Self {
            Self
        }
    }

    /// Nothing.
    #[derive(Debug, Clone, Copy)]
    pub struct Trace;

    impl Trace {
        /// Nothing.
        #[inline]
        pub fn of(_: Option<&str>, _: MessageId) -> Self {
            Self
        }
    }

    /// Does nothing, and asks for nothing.
    #[inline]
    pub fn tell(_: Begun, _: Trace, _: MessageId, _: &'static str, _: impl FnOnce() -> Facts) {}
}
