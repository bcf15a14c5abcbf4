//! The open connections of a port, and which of them is closed to make room for a new one.
//!
//! Owns the caps and the choice. Sockets and protocols belong to [`super::server`].
//!
//! A connection is *proven* once it has carried a request. It is *at work* while a request is answered whose body has
//! arrived completely. Above a cap, one connection that is not at work is closed: the least recently active one of the
//! address that has the most of them. Idle connections therefore never keep a new one out, and one address cannot
//! displace all others. There is no fixed cap for an address, because behind a tunnel (konnectivity) all API servers
//! share one address.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

/// Upper bounds on the open connections of a port.
#[derive(Clone, Copy, Debug)]
pub(super) struct Caps {
    /// All connections.
    pub open: usize,
    /// Connections that are not proven yet.
    pub unproven: usize,
}

/// All open connections of a port.
#[derive(Debug)]
pub(super) struct Connections {
    caps: Caps,
    open: Mutex<HashMap<u64, Arc<Connection>>>,
    /// Logical clock that orders events on connections.
    steps: AtomicU64,
    /// Notifies that a connection closed or is no longer at work.
    changed: Notify,
}

/// An open connection.
#[derive(Debug)]
pub(super) struct Connection {
    id: u64,
    peer: IpAddr,
    /// Step of the last event on this connection.
    active: AtomicU64,
    proven: AtomicBool,
    working: AtomicUsize,
    /// Cancelled when the connection has to close.
    pub close_requested: CancellationToken,
}

impl Connection {
    fn is_at_work(&self) -> bool {
        self.working.load(Ordering::Relaxed) > 0
    }
}

/// A connection's place among the open ones, returned on drop.
#[derive(Debug)]
pub(super) struct Place {
    all: Arc<Connections>,
    connection: Arc<Connection>,
}

/// Result of [`Connections::admit`].
pub(super) struct Admitted {
    /// Place of the new connection.
    pub place: Place,
    /// Whether another connection has to close for it.
    pub displaced: bool,
}

impl Connections {
    /// Creates an empty set of connections.
    pub(super) fn new(caps: Caps) -> Connections {
        Connections { caps, open: Mutex::default(), steps: AtomicU64::new(0), changed: Notify::new() }
    }

    /// Waits until a place is free or can be freed. While all connections are at work, new ones wait in the kernel's
    /// queue.
    pub(super) async fn room(&self) {
        loop {
            let changed = self.changed.notified();
            let may_come = {
                let open = self.open.lock();
                open.len() < self.caps.open || open.values().any(|connection| !connection.is_at_work())
            };
            if may_come {
                return;
            }
            changed.await;
        }
    }

    /// Takes a place. Above a cap, another connection has to close.
    pub(super) fn admit(self: &Arc<Connections>, peer: IpAddr) -> Admitted {
        let id = self.step();
        let connection = Arc::new(Connection {
            id,
            peer,
            active: AtomicU64::new(id),
            proven: AtomicBool::new(false),
            working: AtomicUsize::new(0),
            close_requested: CancellationToken::new(),
        });
        let mut open = self.open.lock();
        let goes = if open.len() >= self.caps.open {
            displaced(open.values())
        } else {
            let unproven = || open.values().filter(|connection| !connection.proven.load(Ordering::Relaxed));
            if unproven().count() >= self.caps.unproven { displaced(unproven()) } else { None }
        };
        if let Some(goes) = &goes {
            // It no longer counts, although its task closes the socket only a moment later.
            open.remove(&goes.id);
            goes.close_requested.cancel();
        }
        open.insert(id, connection.clone());
        Admitted { place: Place { all: self.clone(), connection }, displaced: goes.is_some() }
    }

    fn step(&self) -> u64 {
        self.steps.fetch_add(1, Ordering::Relaxed)
    }
}

/// Chooses the connection to close: the least recently active one of the address with the most that are not at work.
fn displaced<'c>(open: impl Iterator<Item = &'c Arc<Connection>>) -> Option<Arc<Connection>> {
    let mut by_peer: HashMap<IpAddr, (usize, &Arc<Connection>)> = HashMap::new();
    for connection in open.filter(|connection| !connection.is_at_work()) {
        let (count, oldest) = by_peer.entry(connection.peer).or_insert((0, connection));
        *count += 1;
        if connection.active.load(Ordering::Relaxed) < oldest.active.load(Ordering::Relaxed) {
            *oldest = connection;
        }
    }
    let most = by_peer
        .into_values()
        .max_by_key(|(count, oldest)| (*count, std::cmp::Reverse(oldest.active.load(Ordering::Relaxed))));
    most.map(|(_, oldest)| oldest.clone())
}

impl Place {
    /// A token that is cancelled when another connection needs this place.
    pub(super) fn close_requested(&self) -> CancellationToken {
        self.connection.close_requested.clone()
    }

    /// Whether the connection has carried a request.
    pub(super) fn is_proven(&self) -> bool {
        self.connection.proven.load(Ordering::Relaxed)
    }

    /// Records that a request has begun. The connection is proven from now on.
    pub(super) fn exchange(&self) -> Exchange {
        self.connection.proven.store(true, Ordering::Relaxed);
        self.connection.active.store(self.all.step(), Ordering::Relaxed);
        Exchange { all: self.all.clone(), connection: self.connection.clone(), working: AtomicBool::new(false) }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.all.open.lock().remove(&self.connection.id);
        self.all.changed.notify_one();
    }
}

/// One request in progress; it ends on drop.
#[derive(Debug)]
pub(super) struct Exchange {
    all: Arc<Connections>,
    connection: Arc<Connection>,
    working: AtomicBool,
}

impl Exchange {
    /// Records that the whole body has arrived. The connection is at work from now on.
    pub(super) fn received(&self) {
        if !self.working.swap(true, Ordering::Relaxed) {
            self.connection.working.fetch_add(1, Ordering::Relaxed);
        }
    }
}

impl Drop for Exchange {
    fn drop(&mut self) {
        self.connection.active.store(self.all.step(), Ordering::Relaxed);
        if *self.working.get_mut() {
            self.connection.working.fetch_sub(1, Ordering::Relaxed);
            self.all.changed.notify_one();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    const MAX_CONNECTIONS: usize = 1024;
    const MAX_UNPROVEN: usize = 768;

    fn connections() -> Arc<Connections> {
        Arc::new(Connections::new(Caps { open: MAX_CONNECTIONS, unproven: MAX_UNPROVEN }))
    }

    fn peer(last: u8) -> IpAddr {
        Ipv4Addr::new(10, 0, 0, last).into()
    }

    fn fill(all: &Arc<Connections>, peer: IpAddr, count: usize) -> Vec<Place> {
        let admit = |_| {
            let Admitted { place, displaced } = all.admit(peer);
            assert!(!displaced);
            drop(place.exchange());
            place
        };
        (0..count).map(admit).collect()
    }

    fn closed(places: &[Place]) -> Vec<usize> {
        let told = places.iter().enumerate().filter(|(_, place)| place.close_requested().is_cancelled());
        told.map(|(index, _)| index).collect()
    }

    #[tokio::test]
    async fn the_least_recently_active_connection_makes_room() {
        let all = connections();
        let places = fill(&all, peer(1), MAX_CONNECTIONS);
        drop(places[0].exchange());
        all.room().await;
        assert!(all.admit(peer(2)).displaced);
        assert_eq!(closed(&places), [1]);
    }

    #[tokio::test]
    async fn a_connection_at_work_stays_and_one_whose_body_is_on_its_way_may_go() {
        let all = connections();
        let places = fill(&all, peer(1), MAX_CONNECTIONS);
        let exchanges: Vec<Exchange> = places.iter().map(Place::exchange).collect();
        exchanges.iter().skip(1).for_each(Exchange::received);
        let _new = all.admit(peer(2)).place;
        assert_eq!(closed(&places), [0]);
    }

    #[tokio::test]
    async fn new_connections_wait_while_all_are_at_work() {
        let all = connections();
        let places = fill(&all, peer(1), MAX_CONNECTIONS);
        let mut exchanges: Vec<Exchange> = places.iter().map(Place::exchange).collect();
        exchanges.iter().for_each(Exchange::received);
        let mut room = std::pin::pin!(all.room());
        assert!(futures::poll!(room.as_mut()).is_pending());
        exchanges.pop();
        assert!(futures::poll!(room.as_mut()).is_ready());
    }

    #[tokio::test]
    async fn the_address_with_the_most_connections_gives_one_up() {
        let all = connections();
        let few = fill(&all, peer(1), 10);
        let many = fill(&all, peer(2), MAX_CONNECTIONS - 10);
        let _new = (0..100).map(|_| all.admit(peer(1)).place).collect::<Vec<_>>();
        assert_eq!(closed(&few), [] as [usize; 0], "they came first");
        assert_eq!(closed(&many), (0..100).collect::<Vec<_>>());
    }

    #[tokio::test]
    async fn silent_connections_displace_each_other_and_none_that_is_proven() {
        let all = connections();
        let proven = fill(&all, peer(1), 100);
        let silent: Vec<Place> = (0..MAX_UNPROVEN + 50).map(|_| all.admit(peer(2)).place).collect();
        assert_eq!(closed(&proven), [] as [usize; 0]);
        assert_eq!(closed(&silent), (0..50).collect::<Vec<_>>());
        assert_eq!(all.open.lock().len(), 100 + MAX_UNPROVEN);
        drop((proven, silent));
        assert!(all.open.lock().is_empty());
    }
}
