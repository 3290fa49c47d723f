//! A network between nodes of which this process is the wire.
//!
//! ```text
//!            this process's namespace (10.78.0.254)
//!                  | control: never faulted, nothing but it and one node at a time
//!     +------------+-------------+
//!   node 0       node 1        node 2        a namespace each: control 10.78.0.N, peers 10.77.0.N
//!     +---- peers: every directed link with rules of its own ----+
//! ```
//!
//! Nodes reach one another only over `peers`; clients, operators and probes of the harness use `control`, so that a fault
//! between nodes is not one between a node and those who watch it. All devices are TUN devices whose other end is here
//! (see `wire`), and no namespace has a name (see `namespace`): with this process all of it is gone.

mod namespace;
mod wire;

use std::net::{IpAddr, Ipv4Addr, SocketAddrV4, UdpSocket};
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};

use crate::cluster::Seat;
use namespace::{Device, enter_new, in_new, tun};
use wire::Wire;
pub use wire::{Counts, Rule};

/// Nodes that fit: their addresses end in a number from 1.
pub const SEATS_MAX: usize = 64;
/// Address of this process in the control network.
const HARNESS: u8 = 254;
/// Ethernet's, so that packets of nodes are cut as on a real network.
const PEERS_MTU: i32 = 1500;
/// Control traffic is not under test: large packets cost less of the machine.
const CONTROL_MTU: i32 = 32_768;
/// Where probes are sent to. (Not a port of Holdfast.)
const PROBE_PORT: u16 = 4_700;

/// The network. Dropped, or with its process, it is gone, and whatever is still in it can reach nobody.
#[derive(Debug)]
pub struct Network {
    wire: Wire,
    seats: Vec<Place>,
    /// That of this process, which would otherwise end with the thread that made it.
    _own: OwnedFd,
}

#[derive(Debug)]
struct Place {
    namespace: Arc<OwnedFd>,
    /// In the node's namespace, on its address among its peers.
    probe: UdpSocket,
}

/// What became of probes from one place to another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Probed {
    /// How many arrived.
    pub arrived: u32,
    /// How long the fastest took; 0 = none arrived.
    pub fastest: Duration,
}

/// Probes of all places to all others: by sender, then receiver.
pub type Probes = Vec<Vec<Probed>>;

impl Network {
    /// Makes a network for so many nodes. The calling thread moves into it for good, and with it every thread and
    /// process that it starts from then on: call it before the runtime is built.
    ///
    /// # Errors
    /// When the machine lacks what it takes: root, network namespaces, /dev/net/tun.
    pub fn create(seats: usize, seed: u64) -> anyhow::Result<Self> {
        ensure!((1..=SEATS_MAX).contains(&seats), "a network has 1 to {SEATS_MAX} seats");
        let made = (1..=seats).map(|number| {
            let number = u8::try_from(number)?;
            in_new(|| {
                let control = tun(Device { name: "control", address: control_of(number), mtu: CONTROL_MTU })?;
                let peers = tun(Device { name: "peers", address: peers_of(number), mtu: PEERS_MTU })?;
                let probe = UdpSocket::bind((peers_of(number), PROBE_PORT)).context("bind a probe")?;
                probe.set_nonblocking(true)?;
                Ok((control, peers, probe))
            })
        });
        let made = made.collect::<anyhow::Result<Vec<_>>>()?;
        let own = enter_new()?;
        // The harness' own device is the first, then come the nodes' for control, then those among peers.
        let mut devices = vec![tun(Device { name: "control", address: control_of(HARNESS), mtu: CONTROL_MTU })?];
        let (mut places, mut among_peers) = (Vec::new(), Vec::new());
        for (namespace, (control, peers, probe)) in made {
            devices.push(control);
            among_peers.push(peers);
            places.push(Place { namespace: Arc::new(namespace), probe });
        }
        devices.extend(among_peers);
        let wire = Wire::start(devices, seed, Box::new(move |from, packet| route(seats, from, packet)))?;
        Ok(Self { wire, seats: places, _own: own })
    }

    /// Where nodes reach this process.
    pub fn harness() -> IpAddr {
        IpAddr::V4(control_of(HARNESS))
    }

    /// How many nodes fit.
    pub fn len(&self) -> usize {
        self.seats.len()
    }

    /// Never: a network has a seat.
    pub fn is_empty(&self) -> bool {
        self.seats.is_empty()
    }

    /// A seat for each node, in the order of their places.
    pub fn seats(&self) -> Vec<Seat> {
        let seat = |(at, place): (usize, &Place)| {
            let control = |port: u16| SocketAddrV4::new(control_of(at as u8 + 1), port).to_string();
            Seat {
                client: control(7470),
                peer: SocketAddrV4::new(peers_of(at as u8 + 1), 7471).to_string(),
                admin: control(7472),
                http: control(7473),
                network: Some(place.namespace.clone()),
            }
        };
        self.seats.iter().enumerate().map(seat).collect()
    }

    /// Puts a rule on directed links between places, under a number by which [`Network::clear`] takes it away. Rules of
    /// several numbers add up.
    pub fn set(&self, number: u32, links: impl IntoIterator<Item = (usize, usize)>, rule: Rule) {
        for (from, to) in links {
            self.wire.add(self.peer(from), self.peer(to), number, rule);
        }
    }

    /// Takes all rules of this number away.
    pub fn clear(&self, number: u32) {
        self.wire.remove(number);
    }

    /// The rules that stand on a link, with their numbers.
    pub fn rules(&self, from: usize, to: usize) -> Vec<(u32, Rule)> {
        self.wire.rules(self.peer(from), self.peer(to))
    }

    /// What a link did so far.
    pub fn counts(&self, from: usize, to: usize) -> Counts {
        self.wire.counts(self.peer(from), self.peer(to))
    }

    /// Runs `work` on a thread in a node's namespace.
    ///
    /// # Errors
    /// When the namespace cannot be entered, and those of `work`.
    pub fn inside<T: Send>(&self, place: usize, work: impl FnOnce() -> anyhow::Result<T> + Send) -> anyhow::Result<T> {
        let namespace = self.seats[place].namespace.clone();
        std::thread::scope(|scope| {
            let thread = scope.spawn(move || {
                // SAFETY: a plain system call on a descriptor that is open; it concerns this thread alone.
                let entered = unsafe { libc::setns(namespace.as_raw_fd(), libc::CLONE_NEWNET) };
                ensure!(entered == 0, "enter a network namespace: {}", std::io::Error::last_os_error());
                work()
            });
            thread.join().unwrap_or_else(|_| anyhow::bail!("the thread in a network namespace panicked"))
        })
    }

    /// Sends so many packets from each of these places to each other one, over the same links as the nodes' own, and waits
    /// for those that arrive: until all are there, or `wait` is over. Gives a row for every seat.
    ///
    /// # Errors
    /// When a socket fails.
    pub fn probe(&self, places: &[usize], each: u32, wait: Duration) -> anyhow::Result<Probes> {
        let mut probes: Probes = vec![vec![Probed::default(); self.seats.len()]; self.seats.len()];
        let run = uuid::Uuid::new_v4().into_bytes();
        let began = Instant::now();
        let mut left = 0u32;
        let pairs = || places.iter().flat_map(|from| places.iter().map(move |to| (*from, *to)));
        for _ in 0..each {
            for (from, to) in pairs().filter(|(from, to)| from != to) {
                let mut packet = run.to_vec();
                packet.push(u8::try_from(from)?);
                packet.extend(began.elapsed().as_nanos().to_be_bytes());
                let target = (peers_of(u8::try_from(to + 1)?), PROBE_PORT);
                // A full queue loses packets, too; the count tells.
                let _ = self.seats[from].probe.send_to(&packet, target);
                left += 1;
            }
            // In between, so that a socket need not hold them all.
            left = left.saturating_sub(self.receive(places, &run, began, &mut probes));
        }
        while left > 0 && began.elapsed() < wait {
            let arrived = self.receive(places, &run, began, &mut probes);
            left = left.saturating_sub(arrived);
            if arrived == 0 {
                std::thread::sleep(Duration::from_millis(1));
            }
        }
        Ok(probes)
    }

    /// Counts what has arrived of these probes; gives how many did.
    fn receive(&self, places: &[usize], run: &[u8; 16], began: Instant, probes: &mut Probes) -> u32 {
        let mut arrived = 0;
        for to in places {
            let mut packet = [0; 64];
            while let Ok(length) = self.seats[*to].probe.recv(&mut packet) {
                let sent = packet.get(17..33).and_then(|bytes| bytes.try_into().ok()).map(u128::from_be_bytes);
                let Some(sent) = sent.and_then(|sent| u64::try_from(sent).ok()) else { continue };
                // One of an earlier call that was still under way.
                if length != 33 || packet[..16] != *run {
                    continue;
                }
                let took = began.elapsed().saturating_sub(Duration::from_nanos(sent));
                let probed = &mut probes[usize::from(packet[16])][*to];
                probed.fastest = if probed.arrived == 0 { took } else { probed.fastest.min(took) };
                probed.arrived += 1;
                arrived += 1;
            }
        }
        arrived
    }

    /// Which device a place has among its peers.
    fn peer(&self, place: usize) -> usize {
        1 + self.seats.len() + place
    }
}

fn control_of(number: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 78, 0, number)
}

fn peers_of(number: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 77, 0, number)
}

/// The device that a packet is for: another node's among peers; by control only between this process and a node.
fn route(seats: usize, from: usize, packet: &[u8]) -> Option<usize> {
    let (version, target) = (packet.first()? >> 4, packet.get(16..20)?);
    let [10, network, 0, number] = *target else { return None };
    let number = usize::from(number);
    let to = match network {
        78 if from == 0 => number,
        78 if from <= seats && number == usize::from(HARNESS) => return (version == 4).then_some(0),
        77 if from > seats => seats + number,
        _ => return None,
    };
    (version == 4 && (1..=seats).contains(&number)).then_some(to)
}

#[cfg(test)]
mod tests;
