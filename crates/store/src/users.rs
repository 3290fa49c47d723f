//! Numbers and rows of the users that were written last, in memory: every commit reads them.
//!
//! Invariants:
//! - What is here is what the newest batch left: a batch is learned once it is written, by the one writer. Nobody else adds
//!   anything, or a reader that was slow could bring back an old row.
//! - It belongs to one database, and goes with it.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use holdfast_model::id::{Uid, UserId};
use holdfast_model::state::{UserRef, UserRow};

/// Of a generation of rows: a row weighs one, and one more for each collection and fork. Some hundred bytes each.
const WEIGHT_MAX: usize = 32 << 10;

/// Users that were written last.
#[derive(Default)]
pub(crate) struct Users(Mutex<Known>);

struct Known {
    numbers: Recent<UserId, Uid>,
    rows: Recent<UserRef, Arc<UserRow>>,
}

impl Default for Known {
    fn default() -> Self {
        let of_row = |row: &Arc<UserRow>| 1 + row.collections.len() + row.forks.len();
        Self { numbers: Recent::new(WEIGHT_MAX, |_| 1), rows: Recent::new(WEIGHT_MAX, of_row) }
    }
}

/// Two generations: what is asked for or learned moves into the young one, and when that is full the old one is forgotten. What
/// the old one has left of a key is older than what the young one has, and never told while that is there.
struct Recent<K, V> {
    young: HashMap<K, V>,
    old: HashMap<K, V>,
    /// Of the young one.
    weight: usize,
    weight_max: usize,
    weigh: fn(&V) -> usize,
}

impl<K: Hash + Eq, V: Clone> Recent<K, V> {
    fn new(weight_max: usize, weigh: fn(&V) -> usize) -> Self {
        Self { young: HashMap::new(), old: HashMap::new(), weight: 0, weight_max, weigh }
    }

    fn get(&mut self, key: &K) -> Option<V> {
        if let Some(value) = self.young.get(key) {
            return Some(value.clone());
        }
        let (key, value) = self.old.remove_entry(key)?;
        self.insert(key, value.clone());
        Some(value)
    }

    fn insert(&mut self, key: K, value: V) {
        self.weight += (self.weigh)(&value);
        if let Some(replaced) = self.young.insert(key, value) {
            self.weight -= (self.weigh)(&replaced);
        }
        if self.weight > self.weight_max {
            self.old = std::mem::take(&mut self.young);
            self.weight = 0;
        }
    }
}

impl Users {
    /// Number of a user; `None` = the database must be asked.
    pub(crate) fn number(&self, user: &UserId) -> Option<Uid> {
        self.lock().numbers.get(user)
    }

    /// Row of a user; `None` = the database must be asked.
    pub(crate) fn row(&self, user: UserRef) -> Option<Arc<UserRow>> {
        self.lock().rows.get(&user)
    }

    /// Takes over what a batch read and wrote, now that it is written. By the writer alone.
    pub(crate) fn learn(
        &self,
        numbers: impl IntoIterator<Item = (UserId, Uid)>,
        rows: impl IntoIterator<Item = (UserRef, Arc<UserRow>)>,
    ) {
        let mut known = self.lock();
        for (user, number) in numbers {
            known.numbers.insert(user, number);
        }
        for (user, row) in rows {
            known.rows.insert(user, row);
        }
    }

    fn lock(&self) -> MutexGuard<'_, Known> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Whatever was asked and learned before: what is told is what was learned last, and no more is kept than is allowed.
        #[test]
        fn nothing_old_is_told(steps in prop::collection::vec((0u8..12, any::<bool>()), 0..200)) {
            let mut recent = Recent::new(4, |_| 1);
            let mut newest = HashMap::new();
            for (value, (key, learns)) in steps.into_iter().enumerate() {
                if learns {
                    recent.insert(key, value);
                    newest.insert(key, value);
                    prop_assert_eq!(recent.get(&key), Some(value));
                } else if let Some(told) = recent.get(&key) {
                    prop_assert_eq!(Some(&told), newest.get(&key));
                }
                prop_assert!(recent.young.len() <= 4 && recent.old.len() <= 5);
            }
        }
    }

    /// Whoever writes again and again is not forgotten for those who wrote once.
    #[test]
    fn what_is_asked_for_stays() {
        let mut recent = Recent::new(4, |_| 1);
        for other in 1..100 {
            recent.insert(0, other);
            recent.insert(other, other);
        }
        assert_eq!((recent.get(&0), recent.get(&1)), (Some(99), None));
    }
}
