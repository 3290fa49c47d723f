//! Admission: a budget for proposals in flight, of bytes and of time. What does not fit is refused before it is proposed.
//!
//! Memory alone is no measure: what it holds may take longer than callers wait, and then all that is done is done for
//! nobody. So no more is let in than ends within [`WAIT_MAX`] at the pace of the last moments (Little 1961: what is in a
//! queue is its rate times the wait).
//!
//! Invariant: `propose` takes only an [`Admitted`], and only this file makes one.
//! Order: what the cluster and its operators propose comes before what callers write.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// Users share this many parts of the budget by the hash of their names.
const PARTS: usize = 256;
/// One part's share of the budget, while others wait too: one user's upload leaves room for everybody else.
const SHARE: usize = 4;
/// What is let in ends within this time, at the present pace.
const WAIT_MAX: Duration = Duration::from_millis(300);
/// A proposal costs its bytes and this: work that does not depend on its size.
const COST_OF_ONE: usize = 1024;
/// So much may always wait, however slow the pace was: after a calm, or while there is no leader, it says nothing.
const COST_MIN: usize = 4 << 20;
/// The pace is taken so often, and follows within a few such spans.
const PACE_SPAN: Duration = Duration::from_millis(50);

/// The budget of one node.
#[derive(Debug, Clone)]
pub struct Admission {
    inflight: Arc<Inflight>,
    max_bytes: usize,
}

#[derive(Debug)]
struct Inflight {
    all: AtomicUsize,
    parts: [AtomicUsize; PARTS],
    cost: AtomicUsize,
    pace: Pace,
}

/// How fast proposals end.
#[derive(Debug)]
struct Pace {
    start: Instant,
    /// Cost of what ended since the pace was taken last.
    ended: AtomicU64,
    /// When that was, in nanoseconds after the start.
    taken: AtomicU64,
    /// Cost a second, smoothed.
    per_second: AtomicU64,
}

impl Pace {
    /// What may wait at `now`.
    fn limit(&self, now: Instant) -> usize {
        self.take(now);
        let per_second = self.per_second.load(Ordering::Relaxed) as f64;
        COST_MIN.max((per_second * WAIT_MAX.as_secs_f64()) as usize)
    }

    fn ended(&self, cost: usize, now: Instant) {
        self.ended.fetch_add(cost as u64, Ordering::Relaxed);
        self.take(now);
    }

    fn take(&self, now: Instant) {
        let nanos = now.saturating_duration_since(self.start).as_nanos() as u64;
        let before = self.taken.load(Ordering::Relaxed);
        let span = Duration::from_nanos(nanos.saturating_sub(before));
        if span < PACE_SPAN || self.taken.compare_exchange(before, nanos, Ordering::Relaxed, Ordering::Relaxed).is_err()
        {
            return;
        }
        let ended = self.ended.swap(0, Ordering::Relaxed) as f64 / span.as_secs_f64();
        let known = self.per_second.load(Ordering::Relaxed) as f64;
        // A longer span says more.
        let weight = (span.as_secs_f64() / (4.0 * PACE_SPAN.as_secs_f64())).min(1.0);
        self.per_second.store((known + (ended - known) * weight) as u64, Ordering::Relaxed);
    }
}

/// Too much is waiting; nothing was proposed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("too much is waiting; try again in {} ms", retry_after.as_millis())]
pub struct Overloaded {
    /// Worth waiting before a retry.
    pub retry_after: Duration,
    /// What is used up, for metrics: `inflight_bytes` of this node or of the user's share, `inflight_wait`, or `leader`: one of
    /// these at the node that leads.
    pub limit: &'static str,
}

/// Permission to propose so many bytes; given back when dropped.
#[derive(Debug)]
pub struct Admitted {
    inflight: Arc<Inflight>,
    part: Option<usize>,
    bytes: usize,
    /// It took effect; what was given up says nothing of the pace.
    done: bool,
}

impl Admitted {
    /// The proposal was applied.
    pub(crate) fn done(&mut self) {
        self.done = true;
    }
}

impl Admission {
    /// A budget of `max_bytes`.
    pub fn new(max_bytes: usize) -> Self {
        let parts = std::array::from_fn(|_| AtomicUsize::new(0));
        let pace = Pace {
            start: Instant::now(),
            ended: AtomicU64::new(0),
            taken: AtomicU64::new(0),
            per_second: AtomicU64::new(0),
        };
        let inflight = Inflight { all: AtomicUsize::new(0), parts, cost: AtomicUsize::new(0), pace };
        Self { inflight: Arc::new(inflight), max_bytes }
    }

    /// Takes `bytes` from the budget for a user. One proposal is always let through, however large, when nothing else
    /// waits; beyond that a user has a quarter of the budget.
    ///
    /// # Errors
    /// [`Overloaded`] when the budget, or the user's share of it, is used up.
    pub fn admit_user(&self, user: &str, bytes: usize) -> Result<Admitted, Overloaded> {
        let mut hasher = DefaultHasher::new();
        user.hash(&mut hasher);
        self.take(Some((hasher.finish() % PARTS as u64) as usize), bytes)
    }

    /// Takes `bytes` from the budget for a proposal that another node has admitted for its user.
    ///
    /// # Errors
    /// [`Overloaded`] when the budget is used up.
    pub fn admit(&self, bytes: usize) -> Result<Admitted, Overloaded> {
        self.take(None, bytes)
    }

    /// For operators and what the cluster does for itself: small, and never refused because callers write much.
    pub fn admit_first(&self, bytes: usize) -> Admitted {
        self.inflight.all.fetch_add(bytes, Ordering::AcqRel);
        self.inflight.cost.fetch_add(bytes + COST_OF_ONE, Ordering::AcqRel);
        Admitted { inflight: self.inflight.clone(), part: None, bytes, done: false }
    }

    fn take(&self, part: Option<usize>, bytes: usize) -> Result<Admitted, Overloaded> {
        let before = self.inflight.all.fetch_add(bytes, Ordering::AcqRel);
        let of_part = part.map(|part| self.inflight.parts[part].fetch_add(bytes, Ordering::AcqRel));
        let cost = self.inflight.cost.fetch_add(bytes + COST_OF_ONE, Ordering::AcqRel);
        let admitted = Admitted { inflight: self.inflight.clone(), part, bytes, done: false };
        let is_over = before + bytes > self.max_bytes;
        let is_greedy = of_part.is_some_and(|of_part| of_part + bytes > self.max_bytes / SHARE);
        let is_late = cost > self.inflight.pace.limit(Instant::now());
        if before > 0 && (is_over || is_greedy || is_late) {
            // Dropping it gives all of it back.
            let limit = if is_over || is_greedy { "inflight_bytes" } else { "inflight_wait" };
            return Err(Overloaded { retry_after: Duration::from_millis(50), limit });
        }
        Ok(admitted)
    }

    /// Bytes in flight now.
    pub fn inflight_bytes(&self) -> usize {
        self.inflight.all.load(Ordering::Acquire)
    }
}

impl Drop for Admitted {
    fn drop(&mut self) {
        self.inflight.all.fetch_sub(self.bytes, Ordering::AcqRel);
        if let Some(part) = self.part {
            self.inflight.parts[part].fetch_sub(self.bytes, Ordering::AcqRel);
        }
        let cost = self.bytes + COST_OF_ONE;
        self.inflight.cost.fetch_sub(cost, Ordering::AcqRel);
        if self.done {
            self.inflight.pace.ended(cost, Instant::now());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_budget_is_refused_and_given_back() {
        let admission = Admission::new(100);
        let first = admission.admit(80).expect("fits");
        assert!(admission.admit(30).is_err());
        assert_eq!(admission.inflight_bytes(), 80);
        drop(first);
        assert!(admission.admit(300).is_ok(), "a lone large proposal passes");
        assert_eq!(admission.inflight_bytes(), 0);
    }

    /// A put of 1 KiB costs 2 KiB: what may wait when the pace is not known, and when it is.
    #[test]
    fn no_more_waits_than_ends_in_time() {
        let admission = Admission::new(1 << 30);
        let admit_all = || {
            let mut waiting = Vec::new();
            while let Ok(admitted) = admission.admit(1024) {
                waiting.push(admitted);
            }
            waiting
        };
        let waiting = admit_all();
        assert_eq!(waiting.len(), COST_MIN / 2048 + 1);
        assert_eq!(admission.admit(1024).expect_err("too long a queue").limit, "inflight_wait");
        drop(waiting);
        let slow = admit_all().len();
        assert_eq!(slow, COST_MIN / 2048 + 1, "what was given up is no pace");
        // 200 MiB in a second: 60 of them may wait.
        let pace = &admission.inflight.pace;
        for step in 1..=20 {
            pace.ended(10 << 20, pace.start + step * PACE_SPAN);
        }
        let at = |spans| pace.limit(pace.start + spans * PACE_SPAN);
        let fast = at(20);
        assert!((58 << 20..61 << 20).contains(&fast), "{fast}");
        // Nothing ends any more.
        assert_eq!(at(60), COST_MIN);
    }

    #[test]
    fn one_user_leaves_room_for_the_others_and_operators_always_pass() {
        let admission = Admission::new(100);
        let own = admission.admit_user("ann", 20).expect("fits");
        let greedy = admission.admit_user("ann", 10).expect_err("a quarter is 25");
        assert_eq!(greedy.limit, "inflight_bytes");
        let mut others = Vec::new();
        while let Ok(other) = admission.admit_user(&format!("user-{}", others.len()), 10) {
            others.push(other);
        }
        assert!(admission.inflight_bytes() > 60, "{}", admission.inflight_bytes());
        let forwarded = admission.admit(100 - admission.inflight_bytes()).expect("the rest");
        assert!(admission.admit(1).is_err(), "used up");
        let first = admission.admit_first(1000);
        drop((own, others, forwarded, first));
        assert_eq!(admission.inflight_bytes(), 0);
        let other = admission.admit(10).expect("fits");
        assert!(admission.admit_user("ann", 25).is_ok(), "her share is hers again");
        drop(other);
        assert!(admission.admit_user("ann", 300).is_ok(), "a lone large proposal passes");
    }
}
