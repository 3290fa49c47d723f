//! One watcher for any number of users, over one stream or a few, that outlives the nodes it listens to.
//!
//! Invariants:
//! - A wake-up is never lost: whenever a stream is opened, every user is named in it with the newest token known, and
//!   the node hints at once where something newer exists. A wake-up may come twice.
//! - What waits for the caller is merged per user: memory is bounded by the number of users, not by what happens.
//! - Dropping the watcher ends its tasks and streams.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use holdfast_model::id::UserId;
use holdfast_wire::token::{SyncToken, TokenError};
use holdfast_wire::v1;
use tokio::sync::Notify;
use tokio::task::JoinSet;
use uuid::Uuid;

use crate::client::Client;
use crate::error::Error;
use lane::Lane;
use state::State;

mod lane;
mod state;

/// How to watch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WatchOptions {
    /// How often nodes send a sign of life (`sync.watch_heartbeat_ms` of the cluster); after three times this without
    /// a word, another node is asked. At least 1 ms. Default 5 s.
    pub heartbeat: Duration,
    /// Users on one stream before another one is opened, 1–100,000 (what a node takes). Default 50,000.
    pub users_per_stream: usize,
}

impl Default for WatchOptions {
    fn default() -> Self {
        Self { heartbeat: Duration::from_secs(5), users_per_stream: 50_000 }
    }
}

/// What a watcher tells.
#[derive(Debug, Clone, PartialEq)]
pub enum WatchEvent {
    /// The user has changes: call [`Client::changes`], then [`Watcher::advance`]. May come again for the same changes,
    /// and stands for any number of them.
    Hint {
        /// Whose.
        user: String,
        /// Newest version that was heard of.
        head_version: u64,
        /// Collections touched since the last hint; empty = not known, look at all.
        collections: Vec<String>,
        /// Where the newest of the merged hints was evaluated: any node that has applied this much has the changes.
        header: v1::ResponseHeader,
    },
    /// The token cannot be continued, and the user is watched no more: do what [`Client::changes`] orders, then watch
    /// the user again.
    Resync {
        /// Whose.
        user: String,
        /// Why, and what to do. Never means "wipe".
        info: v1::ResyncInfo,
    },
}

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    /// Something waits for `next`.
    event: Notify,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Watches users. Its methods may be called from several tasks at once.
#[derive(Debug)]
pub struct Watcher {
    client: Client,
    options: WatchOptions,
    shared: Arc<Shared>,
    /// Dropped, it ends them.
    tasks: Mutex<JoinSet<()>>,
    /// Watchers spread over the nodes: any of them serves a watch.
    start: usize,
}

impl Client {
    /// A watcher of nobody yet. Must be called inside a tokio runtime, and is of use only as long as that runs.
    pub fn watcher(&self, options: WatchOptions) -> Watcher {
        let options = WatchOptions {
            heartbeat: options.heartbeat.max(Duration::from_millis(1)),
            users_per_stream: options.users_per_stream.clamp(1, 100_000),
        };
        let shared = Shared { state: Mutex::default(), event: Notify::new() };
        Watcher {
            client: self.clone(),
            options,
            shared: Arc::new(shared),
            tasks: Mutex::default(),
            start: usize::from(Uuid::new_v4().as_bytes()[0]),
        }
    }
}

impl Watcher {
    /// Watches a user from a token on; empty = from the beginning. A user that is watched already goes on from this
    /// token, and what still waited for it is dropped: if there is news after the token, there will be a hint. A token
    /// that cannot be read counts as empty here: the hint comes at once, and [`Client::changes`] says what is wrong.
    ///
    /// # Errors
    /// `Invalid` when no user can have this id, or the token is another user's: with it, a node would end the stream of
    /// all users.
    pub fn watch(&self, user: &str, sync_token: &str) -> Result<(), Error> {
        let sync_token = readable(user, sync_token)?;
        let mut state = self.shared.lock();
        if let Some(number) = state.watch(user, sync_token, self.options.users_per_stream) {
            let lane = Lane {
                number,
                nodes: self.client.nodes.clone(),
                shared: self.shared.clone(),
                wake: state.wake_of(number),
                silence: self.options.heartbeat * 3,
                answer: self.client.limits.attempt,
            };
            let start = self.start.wrapping_add(number);
            self.tasks.lock().unwrap_or_else(PoisonError::into_inner).spawn(lane.run(start));
        }
        Ok(())
    }

    /// Watches a user no more. What waited for it is dropped.
    pub fn unwatch(&self, user: &str) {
        self.shared.lock().unwatch(user);
    }

    /// Says how far the user was synced: the next stream goes on from here, so that it does not hint at what is known.
    /// Of no effect for a user that is not watched.
    ///
    /// # Errors
    /// As [`Watcher::watch`].
    pub fn advance(&self, user: &str, sync_token: &str) -> Result<(), Error> {
        let sync_token = readable(user, sync_token)?;
        self.shared.lock().advance(user, sync_token);
        Ok(())
    }

    /// Users that are watched.
    pub fn watched(&self) -> usize {
        self.shared.lock().watched()
    }

    /// Waits for the next event. May be cancelled and called again without losing one.
    ///
    /// # Errors
    /// When every node refused the watch for a reason that no repetition helps (`Unsupported`, `Forbidden`): fall back
    /// on [`Client::changes`], or correct what is wrong and make a new watcher. An unreachable cluster is not an error
    /// here: the watcher goes on trying.
    pub async fn next(&self) -> Result<WatchEvent, Error> {
        loop {
            let woken = self.shared.event.notified();
            let next = self.shared.lock().next();
            if let Some(next) = next {
                // Others may wait for what is left.
                self.shared.event.notify_one();
                if let (Ok(WatchEvent::Hint { header, .. }), Some(seen)) = (&next, &self.client.seen) {
                    seen.observe(Some(header));
                }
                return next;
            }
            woken.await;
        }
    }
}

/// What a node is told for a token. One that a node cannot read would end the stream of all users, and devices send what
/// they like: such a user is watched from the beginning, and the call that the hint leads to says what is wrong with the
/// token. So is one with a token of a newer server's, which this client cannot tell from damage.
fn readable<'a>(user: &str, sync_token: &'a str) -> Result<&'a str, Error> {
    let id = UserId::new(user).map_err(|error| Error::invalid(format!("user id {user:?}: {error}")))?;
    match SyncToken::decode(sync_token, &id, 0) {
        Ok(_) | Err(TokenError::FilterChanged) => Ok(sync_token),
        Err(TokenError::Malformed) => Ok(""),
        Err(TokenError::OtherUser) => {
            let message = format!("the token given for user {user:?} is another user's; give the one of this user");
            Err(Error::Invalid { reason: "TOKEN_OTHER_USER".to_owned(), message })
        }
    }
}
