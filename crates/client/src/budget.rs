//! How many retries a client may make: a cluster in trouble must not be asked many times as much as a healthy one.
//!
//! Invariants: a first attempt is never refused; all clones of a client draw on one budget; nothing here takes a lock.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// One retry, in the unit that is counted.
const RETRY_MILLI: u64 = 1000;

/// What retries may cost, for all clones of a client together. Every call earns a part of a retry, and time earns some;
/// what is not needed is saved up to a limit. A retry that cannot be paid for is not made: its call ends with the last
/// error it met.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RetryBudget {
    /// Retries earned by 100 calls, 0–10,000. Default 10.
    pub percent: u32,
    /// Retries earned by a second, so that a client that seldom calls can retry at all. Default 20.
    pub per_second: u32,
    /// Most retries that are saved up, and what a new client has: enough for all calls under way to survive one change
    /// of leader. Default 1000.
    pub saved_max: u32,
}

impl Default for RetryBudget {
    fn default() -> Self {
        Self { percent: 10, per_second: 20, saved_max: 1000 }
    }
}

/// The token bucket of a [`RetryBudget`], in thousandths of a retry.
#[derive(Debug)]
pub(crate) struct Budget {
    rules: RetryBudget,
    saved_milli: AtomicU64,
    /// Up to when time was paid for.
    paid_until_ms: AtomicU64,
}

impl Budget {
    pub(crate) fn new(rules: RetryBudget) -> Self {
        let saved_milli = u64::from(rules.saved_max) * RETRY_MILLI;
        Self { rules, saved_milli: AtomicU64::new(saved_milli), paid_until_ms: AtomicU64::new(0) }
    }

    /// A call begins.
    pub(crate) fn called(&self) {
        self.earn(u64::from(self.rules.percent) * RETRY_MILLI / 100);
    }

    /// Pays for one retry; false = there is none left. `now_ms` never goes back by more than the calls race.
    pub(crate) fn retry(&self, now_ms: u64) -> bool {
        let before_ms = self.paid_until_ms.fetch_max(now_ms, Relaxed);
        // One a second is a thousandth a millisecond.
        self.earn(now_ms.saturating_sub(before_ms).saturating_mul(self.rules.per_second.into()));
        let pay = |saved: u64| saved.checked_sub(RETRY_MILLI);
        self.saved_milli.fetch_update(Relaxed, Relaxed, pay).is_ok()
    }

    fn earn(&self, milli: u64) {
        let max = u64::from(self.rules.saved_max) * RETRY_MILLI;
        if milli == 0 || self.saved_milli.load(Relaxed) >= max {
            return;
        }
        let _ = self.saved_milli.fetch_update(Relaxed, Relaxed, |saved| Some(saved.saturating_add(milli).min(max)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn made(budget: &Budget, now_ms: u64) -> usize {
        std::iter::from_fn(|| budget.retry(now_ms).then_some(())).take(10_000).count()
    }

    #[test]
    fn calls_and_time_earn_retries_up_to_the_limit() {
        let budget = Budget::new(RetryBudget { percent: 10, per_second: 2, saved_max: 5 });
        assert_eq!(made(&budget, 0), 5, "what a new client has");
        for _ in 0..30 {
            budget.called();
        }
        assert_eq!(made(&budget, 0), 3, "a tenth of the calls");
        assert_eq!(made(&budget, 499), 0);
        assert_eq!(made(&budget, 500), 1, "two a second");
        assert_eq!(made(&budget, 400), 0, "an older clock earns nothing");
        assert_eq!(made(&budget, 60_000), 5, "no more than the limit is saved");
        for _ in 0..1000 {
            budget.called();
        }
        assert_eq!(made(&budget, 60_000), 5);
    }

    #[test]
    fn no_budget_means_no_retry() {
        let budget = Budget::new(RetryBudget { percent: 0, per_second: 0, saved_max: 0 });
        budget.called();
        assert_eq!(made(&budget, 1_000_000), 0);
    }

    #[test]
    fn threads_share_it_to_the_last_retry() {
        let budget = Budget::new(RetryBudget { percent: 0, per_second: 0, saved_max: 1000 });
        let count: usize = std::thread::scope(|scope| {
            let workers: Vec<_> = (0..4).map(|_| scope.spawn(|| made(&budget, 5))).collect();
            workers.into_iter().map(|worker| worker.join().expect("counts")).sum()
        });
        assert_eq!(count, 1000);
    }
}
