//! Admission: a budget of bytes for proposals in flight. What does not fit is refused before it is proposed.
//!
//! Invariant: `propose` takes only an [`Admitted`], and only this file makes one.
//! Order: what the cluster and its operators propose comes before what callers write.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

/// Users share this many parts of the budget by the hash of their names.
const PARTS: usize = 256;
/// One part's share of the budget, while others wait too: one user's upload leaves room for everybody else.
const SHARE: usize = 4;

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
}

/// Too much is waiting; nothing was proposed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("too much is waiting; try again in {} ms", retry_after.as_millis())]
pub struct Overloaded {
    /// Worth waiting before a retry.
    pub retry_after: Duration,
}

/// Permission to propose so many bytes; given back when dropped.
#[derive(Debug)]
pub struct Admitted {
    inflight: Arc<Inflight>,
    part: Option<usize>,
    bytes: usize,
}

impl Admission {
    /// A budget of `max_bytes`.
    pub fn new(max_bytes: usize) -> Self {
        let parts = std::array::from_fn(|_| AtomicUsize::new(0));
        Self { inflight: Arc::new(Inflight { all: AtomicUsize::new(0), parts }), max_bytes }
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
        Admitted { inflight: self.inflight.clone(), part: None, bytes }
    }

    fn take(&self, part: Option<usize>, bytes: usize) -> Result<Admitted, Overloaded> {
        let before = self.inflight.all.fetch_add(bytes, Ordering::AcqRel);
        let of_part = part.map(|part| self.inflight.parts[part].fetch_add(bytes, Ordering::AcqRel));
        let admitted = Admitted { inflight: self.inflight.clone(), part, bytes };
        let is_over = before + bytes > self.max_bytes;
        let is_greedy = of_part.is_some_and(|of_part| of_part + bytes > self.max_bytes / SHARE);
        if before > 0 && (is_over || is_greedy) {
            // Dropping it gives all of it back.
            return Err(Overloaded { retry_after: Duration::from_millis(50) });
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

    #[test]
    fn one_user_leaves_room_for_the_others_and_operators_always_pass() {
        let admission = Admission::new(100);
        let own = admission.admit_user("ann", 20).expect("fits");
        assert!(admission.admit_user("ann", 10).is_err(), "a quarter is 25");
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
