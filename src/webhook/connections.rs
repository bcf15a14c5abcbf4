//! Who is connected, and who has to go when somebody else comes. Owns the caps and the choice; sockets and protocols are
//! [`super::server`]'s.
//!
//! A connection is *proven* once a request came over it, and *at work* while one is answered whose body is all here. Above a
//! cap, the least recently active connection that is not at work goes: of the address with the most of them first. So nobody who
//! only holds connections keeps a new one out, and one address cannot take the places of all others. There is no hard cap for
//! an address: behind a tunnel (konnectivity) all API servers have the same one.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

/// How many connections a port has open.
#[derive(Clone, Copy, Debug)]
pub struct Caps {
    /// In all.
    pub open: usize,
    /// Of those, not proven yet.
    pub unproven: usize,
}

/// All open connections of a port.
#[derive(Debug)]
pub struct Connections {
    caps: Caps,
    open: Mutex<HashMap<u64, Arc<Connection>>>,
    /// Orders what happens on connections; no clock.
    steps: AtomicU64,
    /// A connection closed, or is not at work any more.
    changed: Notify,
}

/// An open connection.
#[derive(Debug)]
pub struct Connection {
    id: u64,
    peer: IpAddr,
    /// The step at which something happened on it last.
    active: AtomicU64,
    proven: AtomicBool,
    working: AtomicUsize,
    /// Tells it to close.
    pub told_to_close: CancellationToken,
}

impl Connection {
    fn is_at_work(&self) -> bool {
        self.working.load(Ordering::Relaxed) > 0
    }
}

/// A connection's place, given back when this is dropped.
#[derive(Debug)]
pub struct Place {
    all: Arc<Connections>,
    connection: Arc<Connection>,
}

/// What became of a new connection.
pub struct Admitted {
    /// Its place.
    pub place: Place,
    /// Whether another one was told to close for it.
    pub displaced: bool,
}

impl Connections {
    /// None so far.
    pub fn new(caps: Caps) -> Connections {
        Connections { caps, open: Mutex::default(), steps: AtomicU64::new(0), changed: Notify::new() }
    }

    /// Waits until there is a place or one can be made: while all connections are at work, new ones wait in the kernel's queue.
    pub async fn room(&self) {
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

    /// Takes a place, from another connection where there is none left.
    pub fn admit(self: &Arc<Connections>, peer: IpAddr) -> Admitted {
        let id = self.step();
        let connection = Arc::new(Connection {
            id,
            peer,
            active: AtomicU64::new(id),
            proven: AtomicBool::new(false),
            working: AtomicUsize::new(0),
            told_to_close: CancellationToken::new(),
        });
        let mut open = self.open.lock();
        let goes = if open.len() >= self.caps.open {
            displaced(open.values())
        } else {
            let unproven = || open.values().filter(|connection| !connection.proven.load(Ordering::Relaxed));
            if unproven().count() >= self.caps.unproven { displaced(unproven()) } else { None }
        };
        if let Some(goes) = &goes {
            // It counts no more; what is left of it is closed within a moment.
            open.remove(&goes.id);
            goes.told_to_close.cancel();
        }
        open.insert(id, connection.clone());
        Admitted { place: Place { all: self.clone(), connection }, displaced: goes.is_some() }
    }

    fn step(&self) -> u64 {
        self.steps.fetch_add(1, Ordering::Relaxed)
    }
}

/// Who goes: of the address with the most connections that are not at work, the one on which nothing happened for longest.
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
    /// Cancelled when another connection needs this place.
    pub fn told_to_close(&self) -> CancellationToken {
        self.connection.told_to_close.clone()
    }

    /// Whether a request came over it.
    pub fn is_proven(&self) -> bool {
        self.connection.proven.load(Ordering::Relaxed)
    }

    /// A request came.
    pub fn exchange(&self) -> Exchange {
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

/// A request and its answer, until this is dropped.
#[derive(Debug)]
pub struct Exchange {
    all: Arc<Connections>,
    connection: Arc<Connection>,
    working: AtomicBool,
}

impl Exchange {
    /// The whole body is here: from now on the connection is at work.
    pub fn received(&self) {
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
        let told = places.iter().enumerate().filter(|(_, place)| place.told_to_close().is_cancelled());
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
