//! How many connections a receive connector and an address may hold at one time, and all of them together: some
//! descriptors stay for deliveries and the spool.

use std::net::{IpAddr, Ipv6Addr};
use std::os::fd::RawFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use nix::sys::resource::{Resource, getrlimit};
use tracing::{info, warn};

use crate::config::{ConnectorName, ReceiveConnector};
use crate::random::HashMap;
use crate::smtp::Reply;

/// Counts of open connections. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub(super) struct Limits(Arc<Mutex<Counts>>);

/// So many descriptors no connection of a client gets, or a quarter of all where there are few (S-120).
const RESERVE: u64 = 64;

/// Whether there are descriptors for another client. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub(super) struct Descriptors(Arc<AtomicBool>);

impl Descriptors {
    /// Is this one, just made, among the last? The system gives the lowest number that is free, so it says how many are
    /// in use. Once they are short, half a reserve more has to be free before clients are let in again.
    pub(super) fn is_short(&self, newest: RawFd) -> bool {
        // It may be changed while we run: prlimit(1).
        let limit = getrlimit(Resource::RLIMIT_NOFILE).map_or(u64::MAX, |(soft, _)| soft);
        let was_short = self.0.load(Ordering::Relaxed);
        let is_short = is_short(was_short, newest, limit);
        if is_short != was_short && self.0.swap(is_short, Ordering::Relaxed) != is_short {
            if is_short {
                warn!(limit, "descriptors run out: new connections are refused, 421 4.3.2");
            } else {
                info!(limit, "there are descriptors again: new connections are taken");
            }
        }
        is_short
    }
}

fn is_short(was_short: bool, newest: RawFd, limit: u64) -> bool {
    let reserve = RESERVE.min(limit / 4);
    let kept = if was_short { reserve + reserve / 2 } else { reserve };
    u64::try_from(newest).is_ok_and(|newest| newest >= limit - kept)
}

/// The keys are bounded by the number of open connections: an entry goes when its count does.
#[derive(Debug, Default)]
struct Counts {
    connectors: HashMap<ConnectorName, usize>,
    addresses: HashMap<(ConnectorName, IpAddr), usize>,
}

/// A counted connection; not counted any more once this is dropped.
#[derive(Debug)]
pub(super) struct Slot {
    limits: Limits,
    connector: ConnectorName,
    /// `None` until a proxy has said whose connection it is.
    address: Option<IpAddr>,
}

impl Limits {
    /// Counts one connection from `peer` with `connector`.
    ///
    /// # Errors
    /// The reply to give before closing: the connector or the address has its fill.
    pub(super) fn enter(&self, connector: &ReceiveConnector, peer: IpAddr) -> Result<Slot, Reply> {
        let mut slot = self.enter_behind_proxy(connector)?;
        slot.come_from(connector, peer)?;
        Ok(slot)
    }

    /// Counts one connection with `connector` whose client is not known yet; [`Slot::come_from`] counts that too.
    ///
    /// # Errors
    /// The reply to give before closing: the connector has its fill.
    pub(super) fn enter_behind_proxy(&self, connector: &ReceiveConnector) -> Result<Slot, Reply> {
        let mut counts = self.lock();
        if counts.connectors.get(&connector.name).copied().unwrap_or(0) >= connector.max_connections {
            return Err(Reply::too_many_connections());
        }
        counts.add(&connector.name, None);
        drop(counts);
        Ok(Slot { limits: self.clone(), connector: connector.name.clone(), address: None })
    }

    /// How many connections are open.
    pub(super) fn open(&self) -> usize {
        self.lock().connectors.values().sum()
    }

    fn lock(&self) -> MutexGuard<'_, Counts> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Slot {
    /// The client of this connection is at `peer`.
    ///
    /// # Errors
    /// The reply to give before closing: the address has its fill.
    pub(super) fn come_from(&mut self, connector: &ReceiveConnector, peer: IpAddr) -> Result<(), Reply> {
        let address = group(peer);
        let mut counts = self.limits.lock();
        let key = (connector.name.clone(), address);
        if counts.addresses.get(&key).copied().unwrap_or(0) >= connector.max_connections_per_ip {
            return Err(Reply::too_many_connections_from_peer());
        }
        counts.remove(&self.connector, self.address);
        counts.add(&connector.name, Some(address));
        drop(counts);
        self.connector = key.0;
        self.address = Some(address);
        Ok(())
    }

    /// The connection turned out to be another connector's. It was let in already, so it is counted, not judged.
    pub(super) fn move_to(&mut self, connector: &ReceiveConnector) {
        if self.connector == connector.name {
            return;
        }
        let mut counts = self.limits.lock();
        counts.remove(&self.connector, self.address);
        counts.add(&connector.name, self.address);
        drop(counts);
        self.connector = connector.name.clone();
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.limits.lock().remove(&self.connector, self.address);
    }
}

impl Counts {
    fn add(&mut self, connector: &ConnectorName, address: Option<IpAddr>) {
        *self.connectors.entry(connector.clone()).or_default() += 1;
        if let Some(address) = address {
            *self.addresses.entry((connector.clone(), address)).or_default() += 1;
        }
    }

    fn remove(&mut self, connector: &ConnectorName, address: Option<IpAddr>) {
        if let Some(count) = self.connectors.get_mut(connector) {
            *count -= 1;
            if *count == 0 {
                self.connectors.remove(connector);
            }
        }
        let Some(address) = address else { return };
        let key = (connector.clone(), address);
        if let Some(count) = self.addresses.get_mut(&key) {
            *count -= 1;
            if *count == 0 {
                self.addresses.remove(&key);
            }
        }
    }
}

/// One customer has a whole IPv6 /64, so it counts as one address.
pub(super) fn group(peer: IpAddr) -> IpAddr {
    match peer.to_canonical() {
        IpAddr::V4(v4) => IpAddr::V4(v4),
        IpAddr::V6(v6) => IpAddr::V6(Ipv6Addr::from(u128::from(v6) >> 64 << 64)),
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::config;

    fn connectors() -> Vec<Arc<ReceiveConnector>> {
        let connector = |name: &str| {
            format!(
                "[[receive_connector]]\nname = \"{name}\"\nlisten = [\"127.0.0.1:0\"]\norigin = \"internet\"\n\
                 tls = \"off\"\nmax_connections = 3\nmax_connections_per_ip = 2\n"
            )
        };
        let text = format!(
            "hostname = \"mail.contoso.com\"\n[spool]\npath = \"/spool\"\n\
             [[accepted_domain]]\nname = \"contoso.com\"\ntype = \"external-relay\"\n{}{}\
             [[send_connector]]\nname = \"out\"\naddress_spaces = [\"*\"]\ntls = \"off\"\n",
            connector("one"),
            connector("two").replace("[\"127.0.0.1:0\"]", "[\"127.0.0.2:0\"]"),
        );
        config::parse(&text, Path::new("/causeway.toml")).unwrap().receive_connectors
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    /// Who came before, who comes, and the enhanced status of the answer.
    #[test]
    fn a_connector_and_an_address_have_their_fill() {
        let connectors = connectors();
        for (before, peer, expected) in [
            (&[][..], "192.0.2.1", None),
            (&["192.0.2.1"], "192.0.2.1", None),
            (&["192.0.2.1", "192.0.2.1"], "192.0.2.1", Some((4, 7, 0))),
            (&["192.0.2.1", "192.0.2.1"], "192.0.2.2", None),
            (&["192.0.2.1", "192.0.2.2", "192.0.2.3"], "192.0.2.4", Some((4, 3, 2))),
            // The same address, however it is written.
            (&["192.0.2.1", "::ffff:192.0.2.1"], "192.0.2.1", Some((4, 7, 0))),
            // A /64 is one customer, two are two.
            (&["2001:db8::1", "2001:db8::2:3"], "2001:db8:0:0:ffff::9", Some((4, 7, 0))),
            (&["2001:db8::1", "2001:db8::2"], "2001:db8:0:1::1", None),
        ] {
            let limits = Limits::default();
            let held: Vec<Slot> = before.iter().map(|peer| limits.enter(&connectors[0], ip(peer)).unwrap()).collect();
            let answer = limits.enter(&connectors[0], ip(peer));
            let said = answer.as_ref().err().map(|reply| {
                assert_eq!(reply.code, 421, "{reply}");
                let status = reply.status.unwrap();
                (status.0, status.1, status.2)
            });
            assert_eq!(said, expected, "{peer} after {before:?}");
            // The other connector has its own count.
            drop(limits.enter(&connectors[1], ip(peer)).unwrap());
            drop((held, answer));
            assert_eq!(limits.open(), 0);
            let counts = limits.lock();
            assert!(counts.connectors.is_empty() && counts.addresses.is_empty(), "what is over is forgotten");
        }
    }

    /// Whether they were short, the newest descriptor, the limit, whether they are short now.
    #[test]
    fn s120_the_last_descriptors_are_not_for_clients() {
        for (was, newest, limit, expected) in [
            (false, 900, 1024, false),
            (false, 959, 1024, false),
            (false, 960, 1024, true),
            (true, 959, 1024, true),
            (true, 928, 1024, true),
            (true, 927, 1024, false),
            (false, 47, 64, false),
            (false, 48, 64, true),
            (true, 39, 64, false),
            (false, 1_000_000, u64::MAX, false),
        ] {
            assert_eq!(is_short(was, newest, limit), expected, "{newest} of {limit}, short before: {was}");
        }
    }

    #[test]
    fn a_connection_that_proves_another_connector_is_counted_there() {
        let connectors = connectors();
        let limits = Limits::default();
        let mut slots: Vec<Slot> = (0..2).map(|_| limits.enter(&connectors[0], ip("192.0.2.1")).unwrap()).collect();
        assert!(limits.enter(&connectors[0], ip("192.0.2.1")).is_err());
        slots[0].move_to(&connectors[1]);
        slots[0].move_to(&connectors[1]);
        assert_eq!(limits.open(), 2);
        slots.push(limits.enter(&connectors[0], ip("192.0.2.1")).unwrap());
        slots.push(limits.enter(&connectors[1], ip("192.0.2.1")).unwrap());
        assert!(limits.enter(&connectors[1], ip("192.0.2.1")).is_err());
        drop(slots);
        assert_eq!(limits.open(), 0);
    }

    /// Behind a proxy the client counts, not the proxy; until it is known, only the connector's limit does.
    #[test]
    fn a_connection_behind_a_proxy_is_counted_by_its_client() {
        let connectors = connectors();
        let limits = Limits::default();
        let enter = |client: &str| {
            let mut slot = limits.enter_behind_proxy(&connectors[0])?;
            slot.come_from(&connectors[0], ip(client)).map(|()| slot)
        };
        let held: Vec<Slot> = ["192.0.2.1", "192.0.2.1"].map(|client| enter(client).unwrap()).into();
        assert_eq!(enter("192.0.2.1").unwrap_err().code, 421, "two from one client");
        assert_eq!(limits.open(), 2, "who was turned away is not counted");
        let nameless = limits.enter_behind_proxy(&connectors[0]).unwrap();
        assert!(limits.enter_behind_proxy(&connectors[0]).is_err(), "three with the connector");
        drop(nameless);
        let other = enter("192.0.2.2").unwrap();
        drop((held, other));
        let counts = limits.lock();
        assert!(counts.connectors.is_empty() && counts.addresses.is_empty(), "what is over is forgotten");
    }
}
