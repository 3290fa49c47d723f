//! What happens to packets between devices: each directed link has rules, and everything random follows from the seed.
//!
//! ```text
//! device of a node --read--> link's rules --write--> device of another node
//!                                 |   (at once)            ^
//!                                 +--> queue by time ------+   (delayed)
//! ```
//!
//! Invariants:
//! - A packet without a rule on its link goes on in the thread that read it.
//! - The queue is bounded; what does not fit is lost, as on any wire.
//! - Order on a link is kept, except where a rule is there to change it.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::chance::Chance;

/// Bytes that may wait in the queue, all links together.
const QUEUE_BYTES_MAX: usize = 64 << 20;
/// What waits longer for a slow link than this is lost: a buffer of that depth is worse than any that is built.
const RATE_WAIT_MAX: Duration = Duration::from_secs(2);
/// How late a packet comes that others are to overtake.
const OVERTAKEN: Duration = Duration::from_millis(10);
/// Packets are at most as large as the largest device allows.
const PACKET_MAX: usize = 65_536;

/// What is done to the packets of a link.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Rule {
    /// All are lost.
    pub cut: bool,
    /// So many of a thousand are lost.
    pub lost: u32,
    /// So many of a thousand arrive twice.
    pub doubled: u32,
    /// So many of a thousand are overtaken by those behind them.
    pub overtaken: u32,
    /// Each comes so much later,
    pub delay: Duration,
    /// and up to this more.
    pub jitter: Duration,
    /// Bytes a second.
    pub rate: Option<u64>,
}

/// What a link did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counts {
    /// Packets that were sent into it.
    pub sent: u64,
    /// That were lost by a rule.
    pub lost: u64,
    /// That were written twice.
    pub doubled: u64,
    /// That waited.
    pub delayed: u64,
}

/// A directed link.
#[derive(Debug)]
struct Link {
    rules: Vec<(u32, Rule)>,
    chance: Chance,
    counts: Counts,
    /// When the link is free for the next packet, by its rate.
    free: Option<Instant>,
    /// When its last packet arrives.
    last: Option<Instant>,
}

/// A packet that waits; the earliest first, those of one moment in their order.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Waiting {
    due: Instant,
    number: u64,
    to: usize,
    packet: Vec<u8>,
}

#[derive(Debug, Default)]
struct Queue {
    waiting: BinaryHeap<Reverse<Waiting>>,
    bytes: usize,
}

/// Gives the device that a packet is for, or none.
type Route = Box<dyn Fn(usize, &[u8]) -> Option<usize> + Send + Sync>;

struct Shared {
    devices: Vec<OwnedFd>,
    /// By sender, then receiver.
    links: Vec<Vec<Mutex<Link>>>,
    route: Route,
    queue: Mutex<Queue>,
    more: Condvar,
    number: AtomicU64,
    stop: AtomicBool,
    /// Readable once this is to end.
    wake: OwnedFd,
}

/// The wire between devices, as threads of this process.
pub(super) struct Wire {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

impl Wire {
    /// Begins to carry packets between `devices`; `route` says from the device it came from and the packet where one
    /// goes.
    pub(super) fn start(devices: Vec<OwnedFd>, seed: u64, route: Route) -> anyhow::Result<Self> {
        let count = devices.len();
        let link = |from: usize, to: usize| {
            let chance = Chance::new(seed, (from * count + to) as u64);
            Mutex::new(Link { rules: Vec::new(), chance, counts: Counts::default(), free: None, last: None })
        };
        let links = (0..count).map(|from| (0..count).map(|to| link(from, to)).collect()).collect();
        let shared = Arc::new(Shared {
            devices,
            links,
            route,
            queue: Mutex::default(),
            more: Condvar::new(),
            number: AtomicU64::new(0),
            stop: AtomicBool::new(false),
            wake: event()?,
        });
        // From here on the threads have an owner that ends them.
        let mut wire = Self { shared: shared.clone(), threads: Vec::new() };
        for from in 0..count {
            let shared = shared.clone();
            wire.threads
                .push(std::thread::Builder::new().name(format!("wire-{from}")).spawn(move || shared.read(from))?);
        }
        wire.threads.push(std::thread::Builder::new().name("wire-queue".to_owned()).spawn(move || shared.release())?);
        Ok(wire)
    }

    /// Puts a rule on a link, under a number by which it is taken away again; several rules add up.
    pub(super) fn add(&self, from: usize, to: usize, number: u32, rule: Rule) {
        self.shared.link(from, to).rules.push((number, rule));
    }

    /// Takes all rules of this number away.
    pub(super) fn remove(&self, number: u32) {
        for link in self.shared.links.iter().flatten() {
            let mut link = link.lock().unwrap_or_else(PoisonError::into_inner);
            link.rules.retain(|(of, _)| *of != number);
            if link.rules.is_empty() {
                (link.free, link.last) = (None, None);
            }
        }
    }

    /// The rules on a link, with their numbers.
    pub(super) fn rules(&self, from: usize, to: usize) -> Vec<(u32, Rule)> {
        self.shared.link(from, to).rules.clone()
    }

    /// What a link did so far.
    pub(super) fn counts(&self, from: usize, to: usize) -> Counts {
        self.shared.link(from, to).counts
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Release);
        let one = 1u64.to_ne_bytes();
        // SAFETY: a plain system call with eight bytes of ours; an event takes no other number.
        unsafe { libc::write(self.shared.wake.as_raw_fd(), one.as_ptr().cast(), one.len()) };
        drop(self.shared.queue());
        self.shared.more.notify_all();
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

impl std::fmt::Debug for Wire {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Wire").field("devices", &self.shared.devices.len()).finish_non_exhaustive()
    }
}

impl Shared {
    fn link(&self, from: usize, to: usize) -> MutexGuard<'_, Link> {
        self.links[from][to].lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Carries what one device sends, until the end.
    fn read(&self, from: usize) {
        let mut buffer = vec![0; PACKET_MAX];
        let device = self.devices[from].as_raw_fd();
        while !self.stop.load(Ordering::Acquire) {
            // SAFETY: the buffer is as long as is said, and ours.
            let read = unsafe { libc::read(device, buffer.as_mut_ptr().cast(), buffer.len()) };
            match usize::try_from(read) {
                Ok(length) => {
                    let packet = &buffer[..length];
                    if let Some(to) = (self.route)(from, packet) {
                        self.carry(from, to, packet);
                    }
                }
                Err(_) => match io::Error::last_os_error().kind() {
                    io::ErrorKind::WouldBlock => self.wait_for(device),
                    io::ErrorKind::Interrupted => {}
                    // The device is gone, which it is only with this process.
                    _ => return,
                },
            }
        }
    }

    /// Waits until a device has something, or this is to end.
    fn wait_for(&self, device: i32) {
        let poll = |fd| libc::pollfd { fd, events: libc::POLLIN, revents: 0 };
        let mut polled = [poll(device), poll(self.wake.as_raw_fd())];
        // SAFETY: two entries, as is said.
        unsafe { libc::poll(polled.as_mut_ptr(), polled.len() as libc::nfds_t, -1) };
    }

    /// Does to a packet what its link's rules say.
    fn carry(&self, from: usize, to: usize, packet: &[u8]) {
        let mut link = self.link(from, to);
        link.counts.sent += 1;
        if link.rules.is_empty() {
            drop(link);
            self.write(to, packet);
            return;
        }
        let now = Instant::now();
        let Some(fate) = link.fate(now, packet.len()) else { return };
        drop(link);
        for _ in 0..fate.copies {
            if fate.due <= now {
                self.write(to, packet);
            } else {
                self.hold(fate.due, to, packet);
            }
        }
    }

    fn write(&self, to: usize, packet: &[u8]) {
        // SAFETY: the packet is as long as is said. One that its device does not take is lost, as on any wire.
        unsafe { libc::write(self.devices[to].as_raw_fd(), packet.as_ptr().cast(), packet.len()) };
    }

    fn hold(&self, due: Instant, to: usize, packet: &[u8]) {
        let mut queue = self.queue();
        if queue.bytes + packet.len() > QUEUE_BYTES_MAX {
            return;
        }
        queue.bytes += packet.len();
        let number = self.number.fetch_add(1, Ordering::Relaxed);
        queue.waiting.push(Reverse(Waiting { due, number, to, packet: packet.to_vec() }));
        // Only a new earliest one changes what the other thread waits for.
        if queue.waiting.peek().is_some_and(|first| first.0.number == number) {
            self.more.notify_one();
        }
    }

    /// Carries what waited, until the end.
    fn release(&self) {
        let mut queue = self.queue();
        while !self.stop.load(Ordering::Acquire) {
            let now = Instant::now();
            let wait = queue.waiting.peek().map(|first| first.0.due.saturating_duration_since(now));
            queue = match wait {
                None => self.more.wait(queue).unwrap_or_else(PoisonError::into_inner),
                Some(wait) if !wait.is_zero() => {
                    self.more.wait_timeout(queue, wait).unwrap_or_else(PoisonError::into_inner).0
                }
                Some(_) => {
                    let Some(Reverse(first)) = queue.waiting.pop() else { continue };
                    queue.bytes -= first.packet.len();
                    drop(queue);
                    self.write(first.to, &first.packet);
                    self.queue()
                }
            };
        }
    }
}

/// When a packet arrives, and how often.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Fate {
    due: Instant,
    copies: u32,
}

impl Link {
    /// `None` = it is lost.
    fn fate(&mut self, now: Instant, length: usize) -> Option<Fate> {
        let (mut wait, mut copies, mut overtaken) = (Duration::ZERO, 1, false);
        for at in 0..self.rules.len() {
            let rule = self.rules[at].1;
            if rule.cut || self.happens(rule.lost) {
                self.counts.lost += 1;
                return None;
            }
            copies += u32::from(self.happens(rule.doubled));
            overtaken |= self.happens(rule.overtaken);
            wait += rule.delay;
            if !rule.jitter.is_zero() {
                let most = usize::try_from(rule.jitter.as_micros()).unwrap_or(usize::MAX);
                wait += Duration::from_micros(self.chance.below(most.max(1)) as u64);
            }
            if let Some(rate) = rule.rate {
                let free = self.free.unwrap_or(now).max(now);
                if free - now > RATE_WAIT_MAX {
                    self.counts.lost += 1;
                    return None;
                }
                let free = free + Duration::from_secs_f64(length as f64 / rate.max(1) as f64);
                self.free = Some(free);
                wait += free - now;
            }
        }
        let mut due = now + wait;
        if overtaken {
            due += OVERTAKEN;
        } else {
            due = due.max(self.last.unwrap_or(due));
            self.last = Some(due);
        }
        self.counts.delayed += u64::from(due > now);
        self.counts.doubled += u64::from(copies > 1);
        Some(Fate { due, copies })
    }

    fn happens(&mut self, of_a_thousand: u32) -> bool {
        of_a_thousand > 0 && self.chance.below(1000) < of_a_thousand as usize
    }
}

/// Something that can be waited for together with devices.
fn event() -> io::Result<OwnedFd> {
    use std::os::fd::FromRawFd;
    // SAFETY: a plain system call.
    let fd = unsafe { libc::eventfd(0, libc::EFD_CLOEXEC) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel just gave it to us, and to nobody else.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

#[cfg(test)]
mod tests {
    use super::*;

    const PACKETS: usize = 10_000;

    fn link(rules: &[Rule], seed: u64) -> Link {
        let rules = rules.iter().map(|rule| (1, *rule)).collect();
        Link { rules, chance: Chance::new(seed, 0), counts: Counts::default(), free: None, last: None }
    }

    fn fates(rules: &[Rule], seed: u64, now: Instant) -> (Link, Vec<Option<Fate>>) {
        let mut link = link(rules, seed);
        let fates = (0..PACKETS).map(|_| link.fate(now, 1000)).collect();
        (link, fates)
    }

    #[test]
    fn the_same_seed_loses_the_same_packets() {
        let now = Instant::now();
        let rule = Rule { lost: 100, doubled: 50, overtaken: 20, jitter: Duration::from_millis(5), ..Rule::default() };
        let (_, one) = fates(&[rule], 7, now);
        assert_eq!(one, fates(&[rule], 7, now).1);
        assert_ne!(one, fates(&[rule], 8, now).1);
    }

    #[test]
    fn rules_do_what_they_say_and_add_up() {
        let now = Instant::now();
        let (link, cut) = fates(&[Rule { cut: true, ..Rule::default() }], 1, now);
        assert!(cut.iter().all(Option::is_none));
        assert_eq!(link.counts.lost, PACKETS as u64);

        let (link, lossy) = fates(&[Rule { lost: 100, doubled: 200, ..Rule::default() }], 1, now);
        let lost = lossy.iter().filter(|fate| fate.is_none()).count();
        assert!((900..1100).contains(&lost), "{lost}");
        let doubled = lossy.iter().flatten().filter(|fate| fate.copies == 2).count();
        assert!((1600..2000).contains(&doubled), "{doubled}");
        assert_eq!((link.counts.lost, link.counts.doubled), (lost as u64, doubled as u64));

        let slow = |ms| Rule { delay: Duration::from_millis(ms), ..Rule::default() };
        let (_, slow) = fates(&[slow(20), slow(30)], 1, now);
        assert!(slow.iter().flatten().all(|fate| fate.due == now + Duration::from_millis(50) && fate.copies == 1));
    }

    #[test]
    fn jitter_keeps_the_order_and_only_overtaking_changes_it() {
        let now = Instant::now();
        let jitter = Rule { jitter: Duration::from_millis(20), ..Rule::default() };
        let dues = |rule| fates(&[rule], 3, now).1.into_iter().flatten().map(|fate| fate.due).collect::<Vec<_>>();
        assert!(dues(jitter).is_sorted());
        assert!(!dues(Rule { overtaken: 100, ..jitter }).is_sorted());
    }

    #[test]
    fn a_rate_spaces_packets_and_loses_what_would_wait_too_long() {
        let now = Instant::now();
        let (link, fates) = fates(&[Rule { rate: Some(1_000_000), ..Rule::default() }], 1, now);
        // A thousand bytes at a million a second: one packet a millisecond, and 2 s of them may wait.
        assert_eq!(fates[0].map(|fate| fate.due), Some(now + Duration::from_millis(1)));
        assert_eq!(fates[9].map(|fate| fate.due), Some(now + Duration::from_millis(10)));
        let carried = fates.iter().flatten().count();
        assert!((2_000..2_010).contains(&carried), "{carried}");
        assert_eq!(link.counts.lost as usize, PACKETS - carried);
    }
}
