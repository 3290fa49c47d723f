//! Waking those who wait for changes of users.
//!
//! Invariants: a waiter registers before it looks at the state, so a change between the look and the wait wakes it; what
//! a subscription holds is bounded by the users it names, not by their changes; who is dropped is forgotten.

use std::collections::{BTreeSet, HashMap, HashSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use holdfast_model::id::{Collection, UserId, Version};
use holdfast_model::state::Touched;
use tokio::sync::Notify;

/// Subscriptions ended under one hold of the lock.
const RELEASED_AT_ONCE: usize = 1000;
/// Places of removed users that an inbox keeps before it looks for them.
const ORDER_SLACK: usize = 1024;

/// Who waits for which user.
#[derive(Default)]
pub struct Feed(Mutex<Listeners>);

#[derive(Default)]
struct Listeners {
    users: HashMap<UserId, Interest>,
    inboxes: HashMap<u64, Arc<Inbox>>,
    last_inbox: u64,
    /// Users of all inboxes together.
    watched: usize,
}

/// Who wants to hear of one user.
#[derive(Default)]
struct Interest {
    notify: Arc<Notify>,
    waiters: usize,
    inboxes: HashSet<u64>,
}

/// A registered wait; forgotten when dropped.
pub struct Waiter {
    feed: Arc<Feed>,
    user: UserId,
    notify: Arc<Notify>,
}

impl Feed {
    /// Registers a wait for `user`.
    pub fn wait_for(self: &Arc<Self>, user: &UserId) -> Waiter {
        let mut listeners = self.locked();
        let interest = listeners.users.entry(user.clone()).or_default();
        interest.waiters += 1;
        Waiter { feed: self.clone(), user: user.clone(), notify: interest.notify.clone() }
    }

    /// Opens a subscription for any number of users.
    pub fn subscribe(self: &Arc<Self>) -> Subscription {
        let mut listeners = self.locked();
        listeners.last_inbox += 1;
        let number = listeners.last_inbox;
        let inbox = Arc::<Inbox>::default();
        listeners.inboxes.insert(number, inbox.clone());
        Subscription { feed: self.clone(), number, inbox, users: HashSet::new() }
    }

    /// Users of all subscriptions together.
    pub fn watched(&self) -> usize {
        self.locked().watched
    }

    /// Wakes all who wait for these users.
    pub fn touched(&self, users: &[Touched]) {
        if users.is_empty() {
            return;
        }
        let listeners = self.locked();
        if listeners.users.is_empty() {
            return;
        }
        for touched in users {
            let Some(interest) = listeners.users.get(&touched.user) else { continue };
            interest.notify.notify_waiters();
            for inbox in interest.inboxes.iter().filter_map(|number| listeners.inboxes.get(number)) {
                inbox.push(touched);
            }
        }
    }

    /// Wakes everyone: the whole state was replaced, or the node drains.
    pub fn wake_all(&self) {
        let listeners = self.locked();
        for interest in listeners.users.values() {
            interest.notify.notify_waiters();
        }
        for inbox in listeners.inboxes.values() {
            inbox.look_again();
        }
    }

    fn locked(&self) -> MutexGuard<'_, Listeners> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Listeners {
    fn unsubscribe(&mut self, user: &UserId, number: u64) {
        self.watched = self.watched.saturating_sub(1);
        self.release(user, |interest| {
            interest.inboxes.remove(&number);
        });
    }

    fn release(&mut self, user: &UserId, release: impl FnOnce(&mut Interest)) {
        if let Some(interest) = self.users.get_mut(user) {
            release(interest);
            if interest.waiters == 0 && interest.inboxes.is_empty() {
                self.users.remove(user);
            }
        }
    }
}

impl Waiter {
    /// A future that is armed from now on.
    pub fn armed(&self) -> tokio::sync::futures::Notified<'_> {
        self.notify.notified()
    }
}

impl Drop for Waiter {
    fn drop(&mut self) {
        self.feed.locked().release(&self.user, |interest| interest.waiters -= 1);
    }
}

/// What one subscription was told and has not taken yet: at most one entry a user, however long nobody takes.
#[derive(Default)]
struct Inbox {
    news: Mutex<News>,
    notify: Notify,
}

#[derive(Default)]
struct News {
    order: VecDeque<UserId>,
    hints: HashMap<UserId, Hint>,
    look_again: bool,
}

/// Changes of a user since the last hint that was taken.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Hint {
    /// Newest head heard of.
    pub head: Version,
    /// Collections touched.
    pub collections: BTreeSet<Collection>,
}

/// What a subscription has to say next.
#[derive(Debug, PartialEq, Eq)]
pub enum Next {
    /// A user changed.
    Hint(UserId, Hint),
    /// The whole state was replaced, or the node drains: look at everyone.
    LookAgain,
}

/// Hears of the changes of the users it names; forgotten when dropped.
pub struct Subscription {
    feed: Arc<Feed>,
    number: u64,
    inbox: Arc<Inbox>,
    users: HashSet<UserId>,
}

impl Subscription {
    /// From now on `user`'s changes are heard.
    pub fn add(&mut self, user: &UserId) {
        if self.users.insert(user.clone()) {
            let mut listeners = self.feed.locked();
            listeners.watched += 1;
            listeners.users.entry(user.clone()).or_default().inboxes.insert(self.number);
        }
    }

    /// `user`'s changes are not heard any more.
    pub fn remove(&mut self, user: &UserId) {
        if self.users.remove(user) {
            self.feed.locked().unsubscribe(user, self.number);
            self.inbox.locked().forget(user);
        }
    }

    /// Waits until [`Subscription::take`] has something. Cancel safe.
    pub async fn ready(&self) {
        loop {
            let notified = self.inbox.notify.notified();
            tokio::pin!(notified);
            notified.as_mut().enable();
            if self.inbox.locked().is_something() {
                return;
            }
            notified.await;
        }
    }

    /// The oldest news, merged per user to the present moment.
    pub fn take(&self) -> Option<Next> {
        let mut news = self.inbox.locked();
        if std::mem::take(&mut news.look_again) {
            return Some(Next::LookAgain);
        }
        while let Some(user) = news.order.pop_front() {
            // A user that was removed since left its place.
            if let Some(hint) = news.hints.remove(&user) {
                return Some(Next::Hint(user, hint));
            }
        }
        None
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        self.feed.locked().inboxes.remove(&self.number);
        let users: Vec<UserId> = self.users.drain().collect();
        // A few at a time: whoever applies a batch waits for this lock.
        for some in users.chunks(RELEASED_AT_ONCE) {
            let mut listeners = self.feed.locked();
            for user in some {
                listeners.unsubscribe(user, self.number);
            }
        }
    }
}

impl Inbox {
    fn push(&self, touched: &Touched) {
        let mut news = self.locked();
        if !news.hints.contains_key(&touched.user) {
            news.order.push_back(touched.user.clone());
        }
        let hint = news.hints.entry(touched.user.clone()).or_default();
        hint.head = hint.head.max(touched.head);
        hint.collections.extend(touched.collections.iter().cloned());
        drop(news);
        self.notify.notify_one();
    }

    fn look_again(&self) {
        self.locked().look_again = true;
        self.notify.notify_one();
    }

    fn locked(&self) -> MutexGuard<'_, News> {
        self.news.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl News {
    fn is_something(&self) -> bool {
        self.look_again || !self.hints.is_empty()
    }

    fn forget(&mut self, user: &UserId) {
        self.hints.remove(user);
        // Its place in the order stays until it is its turn, or until such places are the greater part.
        if self.order.len() > 2 * self.hints.len() + ORDER_SLACK {
            let hints = &self.hints;
            self.order.retain(|one| hints.contains_key(one));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn user(name: &str) -> UserId {
        UserId::new(name).expect("valid")
    }

    fn touched(name: &str, head: u64, collection: &str) -> Touched {
        let collections = [Collection::new(collection).expect("valid")].into();
        Touched { user: user(name), head: Version(head), collections }
    }

    #[tokio::test]
    async fn a_change_between_registration_and_wait_wakes() {
        let feed = Arc::new(Feed::default());
        let waiter = feed.wait_for(&user("alice"));
        {
            let armed = waiter.armed();
            tokio::pin!(armed);
            armed.as_mut().enable();
            feed.touched(&[touched("alice", 1, "notes")]);
            armed.await;
        }
        drop(waiter);
        assert!(feed.locked().users.is_empty(), "a wait that ended is forgotten");
    }

    #[tokio::test]
    async fn hints_of_one_user_are_merged_while_nobody_takes_them() {
        let feed = Arc::new(Feed::default());
        let mut subscription = feed.subscribe();
        subscription.add(&user("alice"));
        subscription.add(&user("bob"));
        for head in 1..=1000 {
            feed.touched(&[touched("alice", head, if head == 7 { "events" } else { "notes" })]);
        }
        feed.touched(&[touched("bob", 5, "notes"), touched("carol", 9, "notes")]);
        subscription.ready().await;
        let expected = Hint {
            head: Version(1000),
            collections: ["events", "notes"].map(|name| Collection::new(name).expect("valid")).into(),
        };
        assert_eq!(subscription.take(), Some(Next::Hint(user("alice"), expected)));
        assert!(matches!(subscription.take(), Some(Next::Hint(bob, _)) if bob == user("bob")));
        assert_eq!(subscription.take(), None, "nobody asked for carol");
    }

    /// Users who come and go while nobody takes the news leave nothing behind.
    #[test]
    fn what_is_kept_is_bounded_by_the_users_that_are_named() {
        let feed = Arc::new(Feed::default());
        let mut subscription = feed.subscribe();
        for round in 0..10_000 {
            subscription.add(&user("alice"));
            feed.touched(&[touched("alice", round + 1, "notes")]);
            assert_eq!(feed.watched(), 1);
            subscription.remove(&user("alice"));
        }
        let news = subscription.inbox.locked();
        assert!(news.order.len() <= ORDER_SLACK && news.hints.is_empty(), "{}", news.order.len());
    }

    #[tokio::test]
    async fn who_is_removed_or_dropped_is_forgotten() {
        let feed = Arc::new(Feed::default());
        let mut subscription = feed.subscribe();
        subscription.add(&user("alice"));
        feed.touched(&[touched("alice", 1, "notes")]);
        subscription.remove(&user("alice"));
        assert_eq!(subscription.take(), None, "also what was heard already");
        assert!(feed.locked().users.is_empty());
        subscription.add(&user("bob"));
        feed.wake_all();
        subscription.ready().await;
        assert_eq!(subscription.take(), Some(Next::LookAgain));
        drop(subscription);
        assert!(feed.locked().users.is_empty() && feed.locked().inboxes.is_empty());
        assert_eq!(feed.watched(), 0);
    }
}
