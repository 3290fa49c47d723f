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
        Self { numbers: Recent::new(|_| 1), rows: Recent::new(|row| 1 + row.collections.len() + row.forks.len()) }
    }
}

/// Two generations: what is asked for moves into the young one, and when that is full the old one is forgotten.
struct Recent<K, V> {
    young: HashMap<K, V>,
    old: HashMap<K, V>,
    /// Of the young one.
    weight: usize,
    weigh: fn(&V) -> usize,
}

impl<K: Hash + Eq + Clone, V: Clone> Recent<K, V> {
    fn new(weigh: fn(&V) -> usize) -> Self {
        Self { young: HashMap::new(), old: HashMap::new(), weight: 0, weigh }
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
        self.old.remove(&key);
        self.weight += (self.weigh)(&value);
        if let Some(replaced) = self.young.insert(key, value) {
            self.weight -= (self.weigh)(&replaced);
        }
        if self.weight > WEIGHT_MAX {
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
    use holdfast_model::id::{Slot, Version};

    use super::*;

    fn user(number: u64) -> UserRef {
        UserRef { slot: Slot(0), uid: Uid::new(1, number) }
    }

    fn row(head: u64) -> Arc<UserRow> {
        Arc::new(UserRow { head: Version(head), ..UserRow::default() })
    }

    #[test]
    fn the_newest_row_is_told_and_memory_is_bounded() {
        let users = Users::default();
        users.learn([], [(user(0), row(1))]);
        let mut found = 0;
        for number in 1..=10 * WEIGHT_MAX as u64 {
            users.learn([], [(user(number), row(number))]);
            if number.is_multiple_of(1000) {
                users.learn([], [(user(0), row(number))]);
            }
            // Whoever is asked for stays.
            assert_eq!(users.row(user(0)).map(|row| row.head.0), Some((number / 1000 * 1000).max(1)), "after {number}");
            let known = users.lock();
            found = found.max(known.rows.young.len() + known.rows.old.len());
        }
        assert!(found <= 2 * WEIGHT_MAX + 1, "{found} rows");
        assert_eq!(users.row(user(1)), None, "it was forgotten");
    }

    /// A row that moved to the old generation must not come back after a newer one was forgotten.
    #[test]
    fn an_old_row_never_outlives_a_newer_one() {
        let users = Users::default();
        users.learn([], [(user(0), row(1))]);
        let fill = |from: u64| users.learn([], (from..from + WEIGHT_MAX as u64).map(|number| (user(number), row(0))));
        fill(1);
        users.learn([], [(user(0), row(2))]);
        for round in 1..4 {
            let known = users.lock();
            let told = known.rows.young.get(&user(0)).or(known.rows.old.get(&user(0))).map(|row| row.head);
            drop(known);
            assert!(told.is_none_or(|head| head == Version(2)), "round {round}: {told:?}");
            fill(round * 100_000);
        }
    }
}
