//! Admission: a budget of bytes for proposals in flight. What does not fit is refused before it is proposed.
//!
//! Invariant: `propose` takes only an [`Admitted`], and only this file makes one.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

/// The budget of one node.
#[derive(Debug, Clone)]
pub struct Admission {
    inflight: Arc<AtomicUsize>,
    max_bytes: usize,
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
    inflight: Arc<AtomicUsize>,
    bytes: usize,
}

impl Admission {
    /// A budget of `max_bytes`.
    pub fn new(max_bytes: usize) -> Self {
        Self { inflight: Arc::default(), max_bytes }
    }

    /// Takes `bytes` from the budget. One proposal is always let through, however large, when nothing else waits.
    ///
    /// # Errors
    /// [`Overloaded`] when the budget is used up.
    pub fn admit(&self, bytes: usize) -> Result<Admitted, Overloaded> {
        let before = self.inflight.fetch_add(bytes, Ordering::AcqRel);
        if before > 0 && before + bytes > self.max_bytes {
            self.inflight.fetch_sub(bytes, Ordering::AcqRel);
            return Err(Overloaded { retry_after: Duration::from_millis(50) });
        }
        Ok(Admitted { inflight: self.inflight.clone(), bytes })
    }

    /// Bytes in flight now.
    pub fn inflight_bytes(&self) -> usize {
        self.inflight.load(Ordering::Acquire)
    }
}

impl Drop for Admitted {
    fn drop(&mut self) {
        self.inflight.fetch_sub(self.bytes, Ordering::AcqRel);
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
}
