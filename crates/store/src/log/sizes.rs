//! How many bytes the log holds behind an entry, without reading it.
//!
//! Invariant: what is told is the sum of the entries' bytes behind a mark at or before the entry that was asked for: never
//! less than what lies behind that entry, and at most [`MARK_BYTES`] and one entry more. After a truncation it may be
//! that much less.

use std::collections::VecDeque;

/// Bytes from one mark to the next.
const MARK_BYTES: u64 = 256 << 10;

/// Running sums of the bytes of entries, at some of them.
#[derive(Debug, Default)]
pub(crate) struct Sizes {
    /// Index, and bytes of all entries up to it that were seen; ascending.
    marks: VecDeque<(u64, u64)>,
    total: u64,
}

impl Sizes {
    /// Entry `index` follows, with so many bytes.
    pub(crate) fn push(&mut self, index: u64, bytes: usize) {
        if self.marks.is_empty() {
            // Whatever lies before it is not counted.
            self.marks.push_back((index.saturating_sub(1), self.total));
        }
        self.total += bytes as u64;
        if self.marks.back().is_some_and(|(_, marked)| self.total - marked >= MARK_BYTES) {
            self.marks.push_back((index, self.total));
        }
    }

    /// Entries from `end` on are gone.
    pub(crate) fn truncate(&mut self, end: u64) {
        while self.marks.len() > 1 && self.marks.back().is_some_and(|(index, _)| *index >= end) {
            self.marks.pop_back();
        }
        match self.marks.back() {
            Some((index, total)) if *index < end => self.total = *total,
            _ => self.clear(),
        }
    }

    /// Entries before `first` are gone.
    pub(crate) fn purge(&mut self, first: u64) {
        // The last mark before it stays: what follows is measured from there.
        while self.marks.get(1).is_some_and(|(index, _)| *index < first) {
            self.marks.pop_front();
        }
    }

    /// All entries are gone.
    pub(crate) fn clear(&mut self) {
        *self = Self::default();
    }

    /// Bytes of the entries behind `index`.
    pub(crate) fn after(&self, index: u64) -> u64 {
        let behind = self.marks.partition_point(|(marked, _)| *marked <= index);
        let before = behind.checked_sub(1).and_then(|at| self.marks.get(at)).or(self.marks.front());
        before.map_or(0, |(_, marked)| self.total - marked)
    }

    /// The lowest marked entry behind which no more than `bytes` lie; `None` = there is no such mark.
    pub(crate) fn leaving(&self, bytes: u64) -> Option<u64> {
        let at = self.marks.partition_point(|(_, marked)| self.total - marked > bytes);
        self.marks.get(at).map(|(index, _)| *index)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[derive(Debug, Clone)]
    enum Step {
        Push(usize),
        Truncate(usize),
        Purge(usize),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            8 => (0usize..200_000).prop_map(Step::Push),
            1 => (0usize..20).prop_map(Step::Truncate),
            1 => (0usize..60).prop_map(Step::Purge),
        ]
    }

    proptest! {
        #[test]
        fn it_tells_what_lies_behind_an_entry(steps in prop::collection::vec(step(), 1..200)) {
            // First index, sizes of the entries from there on, and how much a truncation may have hidden.
            let (mut first, mut log, mut slack) = (1u64, Vec::<usize>::new(), 0u64);
            let mut sizes = Sizes::default();
            for step in steps {
                match step {
                    Step::Push(bytes) => {
                        sizes.push(first + log.len() as u64, bytes);
                        log.push(bytes);
                    }
                    Step::Truncate(count) => {
                        log.truncate(log.len().saturating_sub(count));
                        sizes.truncate(first + log.len() as u64);
                        slack += MARK_BYTES + 200_000;
                    }
                    Step::Purge(count) => {
                        let count = count.min(log.len());
                        log.drain(..count);
                        first += count as u64;
                        sizes.purge(first);
                    }
                }
                for after in (first.saturating_sub(2)..first + log.len() as u64 + 2).step_by(3) {
                    let from = (after + 1).saturating_sub(first).min(log.len() as u64) as usize;
                    let real: u64 = log[from..].iter().map(|bytes| *bytes as u64).sum();
                    let told = sizes.after(after);
                    prop_assert!(told + slack >= real, "{told} behind {after}, in truth {real}");
                    prop_assert!(told <= real + MARK_BYTES + 200_000, "{told} behind {after}, in truth {real}");
                    if let Some(index) = sizes.leaving(real) {
                        prop_assert!(sizes.after(index) <= real);
                    }
                }
            }
        }
    }

    #[test]
    fn a_budget_leaves_the_newest_entries() {
        let mut sizes = Sizes::default();
        assert_eq!((sizes.after(0), sizes.leaving(10)), (0, None));
        (1..=100).for_each(|index| sizes.push(index, 100 << 10));
        assert_eq!(sizes.after(0), 100 * (100 << 10));
        assert_eq!(sizes.leaving(u64::MAX), Some(0), "all of it");
        let kept = sizes.leaving(1 << 20).expect("a mark");
        assert!((90..=99).contains(&kept), "{kept}");
        assert!(sizes.after(kept) <= 1 << 20);
        sizes.clear();
        assert_eq!(sizes.after(0), 0);
    }
}
