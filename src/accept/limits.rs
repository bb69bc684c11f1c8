//! How many connections a receive connector and an address may hold at one time.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::config::{ConnectorName, ReceiveConnector};
use crate::smtp::Reply;

/// Counts of open connections. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub(super) struct Limits(Arc<Mutex<Counts>>);

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
    address: IpAddr,
}

impl Limits {
    /// Counts one connection from `peer` with `connector`.
    ///
    /// # Errors
    /// The reply to give before closing: the connector or the address has its fill.
    pub(super) fn enter(&self, connector: &ReceiveConnector, peer: IpAddr) -> Result<Slot, Reply> {
        let address = group(peer);
        let mut counts = self.lock();
        if counts.connectors.get(&connector.name).copied().unwrap_or(0) >= connector.max_connections {
            return Err(Reply::too_many_connections());
        }
        let key = (connector.name.clone(), address);
        if counts.addresses.get(&key).copied().unwrap_or(0) >= connector.max_connections_per_ip {
            return Err(Reply::too_many_connections_from_peer());
        }
        counts.add(&connector.name, address);
        Ok(Slot { limits: self.clone(), connector: connector.name.clone(), address })
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
    fn add(&mut self, connector: &ConnectorName, address: IpAddr) {
        *self.connectors.entry(connector.clone()).or_default() += 1;
        *self.addresses.entry((connector.clone(), address)).or_default() += 1;
    }

    fn remove(&mut self, connector: &ConnectorName, address: IpAddr) {
        if let Some(count) = self.connectors.get_mut(connector) {
            *count -= 1;
            if *count == 0 {
                self.connectors.remove(connector);
            }
        }
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
fn group(peer: IpAddr) -> IpAddr {
    match peer.to_canonical() {
        IpAddr::V4(v4) => IpAddr::V4(v4),
        IpAddr::V6(v6) => IpAddr::V6(Ipv6Addr::from(u128::from(v6) >> 64 << 64)),
    }
}
