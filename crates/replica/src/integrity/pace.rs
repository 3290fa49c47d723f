//! The pace of all reading of the state for the sake of soundness: one for the whole node, whoever reads.
//!
//! Invariants: in no span of time do all readers together pass more bytes than the rate allows, but for the credit of a
//! moment; the oldest reading goes first, so that each one that began alone ends as soon as it would have alone; one that
//! hangs holds up nobody for long; who was given up stops within a fifth of a second.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Time that a reader spent with the disk counts, up to this much; else it would never reach its rate.
const CREDIT: Duration = Duration::from_millis(100);
/// Longest sleep between two looks whether it was given up.
const NAP: Duration = Duration::from_millis(200);
/// Between two looks whose turn it is.
const TURN_POLL: Duration = Duration::from_millis(20);
/// A reading without a sign of life for so long loses its turn until it has one.
const LATE: Duration = Duration::from_secs(5);

/// Signs of life of one reading, and whether it is still wanted.
pub struct Pulse {
    given_up: AtomicBool,
    beat: Mutex<Instant>,
}

impl Default for Pulse {
    fn default() -> Self {
        Self { given_up: AtomicBool::new(false), beat: Mutex::new(Instant::now()) }
    }
}

impl Pulse {
    /// It is not wanted any more.
    pub fn give_up(&self) {
        self.given_up.store(true, Ordering::Release);
    }

    /// Nobody wants it any more.
    pub fn is_given_up(&self) -> bool {
        self.given_up.load(Ordering::Acquire)
    }

    /// It goes on, or waits for its turn.
    pub fn beat(&self) {
        *self.beat.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
    }

    /// Since its last sign of life.
    pub fn idle(&self) -> Duration {
        self.beat.lock().unwrap_or_else(PoisonError::into_inner).elapsed()
    }
}

/// Lets all readers of a node pass so many bytes in a second, together.
pub struct Pacer {
    bytes_per_second: u64,
    /// Nothing is read any more.
    stopped: AtomicBool,
    /// When the bytes that passed so far are paid for.
    due: Mutex<Instant>,
    /// Readings under way, the oldest first.
    turns: Mutex<BTreeMap<u64, Arc<Pulse>>>,
}

/// A place among the readings under way.
struct Turn {
    pacer: Arc<Pacer>,
    number: u64,
    pulse: Arc<Pulse>,
}

impl Turn {
    fn has_come(&self) -> bool {
        let turns = self.pacer.turns.lock().unwrap_or_else(PoisonError::into_inner);
        let first = turns.iter().find(|(_, pulse)| !pulse.is_given_up() && pulse.idle() < LATE);
        first.is_none_or(|(number, _)| *number == self.number)
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        self.pacer.turns.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.number);
    }
}

impl Pacer {
    /// At most so many bytes a second.
    pub fn new(bytes_per_second: u64) -> Arc<Self> {
        Arc::new(Self {
            bytes_per_second: bytes_per_second.max(1),
            stopped: AtomicBool::new(false),
            due: Mutex::new(Instant::now()),
            turns: Mutex::default(),
        })
    }

    /// All reading is given up, now and later.
    pub fn stop(&self) {
        self.stopped.store(true, Ordering::Release);
    }

    /// All reading was given up.
    pub fn is_stopped(&self) -> bool {
        self.stopped.load(Ordering::Acquire)
    }

    /// The pace of one reading: it hears how many bytes were read, and sleeps until they are paid for. False: given up.
    pub fn pace(self: &Arc<Self>, pulse: Arc<Pulse>) -> impl FnMut(u64) -> bool + use<> {
        let number = {
            let mut turns = self.turns.lock().unwrap_or_else(PoisonError::into_inner);
            let number = turns.last_key_value().map_or(0, |(number, _)| number + 1);
            turns.insert(number, pulse.clone());
            number
        };
        let turn = Turn { pacer: self.clone(), number, pulse };
        move |bytes| turn.pacer.pass(bytes, &turn)
    }

    fn pass(&self, bytes: u64, turn: &Turn) -> bool {
        let pulse = &turn.pulse;
        pulse.beat();
        while !turn.has_come() {
            if pulse.is_given_up() || self.is_stopped() {
                return false;
            }
            std::thread::sleep(TURN_POLL);
            pulse.beat();
        }
        let cost = Duration::from_secs_f64(bytes as f64 / self.bytes_per_second as f64);
        let until = {
            let mut due = self.lock();
            let earliest = Instant::now().checked_sub(CREDIT).unwrap_or(*due);
            *due = (*due).max(earliest) + cost;
            *due
        };
        loop {
            pulse.beat();
            let left = until.saturating_duration_since(Instant::now());
            if pulse.is_given_up() || self.is_stopped() {
                // What it will not wait for, nobody else has to.
                let mut due = self.lock();
                *due = due.checked_sub(left.min(cost)).unwrap_or(*due);
                return false;
            }
            if left.is_zero() {
                return true;
            }
            std::thread::sleep(left.min(NAP));
        }
    }

    fn lock(&self) -> MutexGuard<'_, Instant> {
        self.due.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_readers_together_keep_to_one_rate() {
        let pacer = Pacer::new(1_000_000);
        let began = Instant::now();
        std::thread::scope(|threads| {
            for _ in 0..4 {
                let mut pace = pacer.pace(Arc::default());
                threads.spawn(move || (0..10).for_each(|_| assert!(pace(15_000), "nobody gave it up")));
            }
        });
        // 600 kB: 0.6 s, but for the credit.
        assert!(began.elapsed() >= Duration::from_millis(490), "{:?}", began.elapsed());
    }

    #[test]
    fn the_oldest_reading_goes_first_unless_nobody_wants_it() {
        let pacer = Pacer::new(1 << 40);
        let pulse = Arc::new(Pulse::default());
        let mut first = pacer.pace(pulse.clone());
        let (passed, passes) = std::sync::mpsc::sync_channel(64);
        std::thread::scope(|threads| {
            let mut second = pacer.pace(Arc::default());
            threads.spawn(move || {
                for _ in 0..2 {
                    assert!(second(1), "nobody gave it up");
                    passed.send(()).expect("counted");
                }
            });
            assert!(first(1 << 20));
            assert!(passes.try_recv().is_err(), "not before the first one is through");
            pulse.give_up();
            assert!((0..2).all(|_| passes.recv_timeout(Duration::from_secs(20)).is_ok()), "its turn never comes");
        });
        drop(first);
        assert!(pacer.pace(Arc::default())(1));
    }

    #[test]
    fn who_was_given_up_waits_no_longer_and_leaves_its_turn() {
        let pacer = Pacer::new(1);
        let pulse = Arc::new(Pulse::default());
        std::thread::scope(|threads| {
            let reader = threads.spawn(|| pacer.pace(pulse.clone())(1_000_000));
            let until = Instant::now() + Duration::from_secs(20);
            while *pacer.lock() < Instant::now() + Duration::from_secs(10) {
                assert!(Instant::now() < until, "what it took is not counted");
                std::thread::yield_now();
            }
            pulse.give_up();
            assert!(!reader.join().expect("it ends"));
        });
        assert!(*pacer.lock() < Instant::now() + Duration::from_secs(10), "nobody pays for it");
        pacer.stop();
        assert!(!pacer.pace(Arc::default())(1), "stopped for everybody");
    }
}
