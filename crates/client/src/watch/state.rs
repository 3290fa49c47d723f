//! Who is watched, on which stream, and what waits for the caller.
//!
//! Invariants: a user is on exactly one lane; `ready` holds exactly the users with something pending; a lane's `todo`
//! is empty while it has no stream, because a new one is told of everybody.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use holdfast_wire::v1;
use tokio::sync::Notify;

use super::WatchEvent;
use crate::error::Error;

/// Collections of one user that are kept apart while nobody asks; with more of them, "look at all".
const COLLECTIONS_MAX: usize = 16;
/// Users named in one message.
const NAMED_MAX: usize = 1000;
/// Removals that may wait for a stream that takes none; then it is given up, since a new one needs none of them.
const REMOVALS_MAX: usize = 10_000;

#[derive(Debug, Default)]
pub(super) struct State {
    users: HashMap<Arc<str>, Watched>,
    ready: BTreeMap<u64, Arc<str>>,
    last_place: u64,
    lanes: Vec<LaneState>,
    failed: Option<Error>,
}

#[derive(Debug)]
struct Watched {
    lane: usize,
    token: String,
    pending: Option<Pending>,
    /// Key in `ready` while something is pending.
    place: u64,
}

#[derive(Debug)]
enum Pending {
    Hint { head_version: u64, collections: BTreeSet<String>, header: v1::ResponseHeader },
    Resync(v1::ResyncInfo),
}

#[derive(Debug, Default)]
struct LaneState {
    users: usize,
    connected: bool,
    /// Users that the stream must be told of: to be added if they are watched, to be removed otherwise.
    todo: BTreeSet<Arc<str>>,
    removals: usize,
    wake: Arc<Notify>,
}

impl State {
    /// Gives the number of the lane that must be started, if one must.
    pub(super) fn watch(&mut self, user: &str, token: &str, users_per_lane: usize) -> Option<usize> {
        let known = self.users.get_key_value(user).map(|(name, watched)| (name.clone(), watched.lane));
        let mut started = None;
        let (name, lane) = match known {
            Some((name, lane)) => {
                self.drop_pending(user);
                (name, lane)
            }
            None => {
                let room = self.lanes.iter().position(|lane| lane.users < users_per_lane);
                let lane = room.unwrap_or_else(|| {
                    self.lanes.push(LaneState::default());
                    started = Some(self.lanes.len() - 1);
                    self.lanes.len() - 1
                });
                self.lanes[lane].users += 1;
                (Arc::from(user), lane)
            }
        };
        self.users.insert(name.clone(), Watched { lane, token: token.to_owned(), pending: None, place: 0 });
        self.tell(lane, name, false);
        started
    }

    pub(super) fn unwatch(&mut self, user: &str) {
        self.drop_pending(user);
        if let Some((name, watched)) = self.users.remove_entry(user) {
            self.lanes[watched.lane].users -= 1;
            self.tell(watched.lane, name, true);
        }
    }

    pub(super) fn advance(&mut self, user: &str, token: &str) {
        if let Some(watched) = self.users.get_mut(user) {
            token.clone_into(&mut watched.token);
        }
    }

    pub(super) fn watched(&self) -> usize {
        self.users.len()
    }

    pub(super) fn wake_of(&self, lane: usize) -> Arc<Notify> {
        self.lanes[lane].wake.clone()
    }

    fn tell(&mut self, lane: usize, name: Arc<str>, removal: bool) {
        let lane = &mut self.lanes[lane];
        if lane.connected {
            lane.removals += usize::from(removal);
            lane.todo.insert(name);
        }
        lane.wake.notify_one();
    }

    fn drop_pending(&mut self, user: &str) {
        if let Some(watched) = self.users.get_mut(user)
            && watched.pending.take().is_some()
        {
            self.ready.remove(&watched.place);
        }
    }

    /// A stream is opened: it must be told of everybody. False = there is nobody.
    pub(super) fn connect(&mut self, lane: usize) -> bool {
        // A user that waits for a resync is not watched by anybody until the caller has dealt with it.
        let mine = |watched: &Watched| watched.lane == lane && !matches!(watched.pending, Some(Pending::Resync(_)));
        let todo: BTreeSet<_> =
            self.users.iter().filter(|(_, watched)| mine(watched)).map(|(name, _)| name.clone()).collect();
        let lane = &mut self.lanes[lane];
        lane.connected = !todo.is_empty();
        lane.removals = 0;
        lane.todo = todo;
        lane.connected
    }

    pub(super) fn disconnect(&mut self, lane: usize) {
        let lane = &mut self.lanes[lane];
        lane.connected = false;
        lane.todo.clear();
    }

    pub(super) fn has_todo(&self, lane: usize) -> bool {
        !self.lanes[lane].todo.is_empty()
    }

    /// So much waits to be told that a new stream is the shorter way.
    pub(super) fn is_stuck(&self, lane: usize) -> bool {
        self.lanes[lane].removals > REMOVALS_MAX
    }

    /// The next thing to tell the stream of a lane.
    pub(super) fn request(&mut self, lane: usize) -> v1::WatchRequest {
        let mut request = v1::WatchRequest::default();
        let lane = &mut self.lanes[lane];
        for _ in 0..NAMED_MAX {
            let Some(name) = lane.todo.pop_first() else { break };
            match self.users.get(&name) {
                Some(watched) => {
                    let sync_token = watched.token.clone();
                    request.adds.push(v1::WatchAdd { user_id: name.as_ref().to_owned(), sync_token });
                }
                None => request.remove_user_ids.push(name.as_ref().to_owned()),
            }
        }
        if lane.todo.is_empty() {
            lane.removals = 0;
        }
        request
    }

    /// Takes note of a hint. True = somebody should look.
    pub(super) fn hint(&mut self, hint: v1::WatchHint, header: v1::ResponseHeader) -> bool {
        let Some((name, watched)) = self.users.get_key_value(hint.user_id.as_str()) else { return false };
        let (name, was_pending) = (name.clone(), watched.pending.is_some());
        let Some(watched) = self.users.get_mut(&name) else { return false };
        match &mut watched.pending {
            None => {
                let collections = if hint.collections.len() > COLLECTIONS_MAX { Vec::new() } else { hint.collections };
                let collections = collections.into_iter().collect();
                watched.pending = Some(Pending::Hint { head_version: hint.head_version, collections, header });
            }
            Some(Pending::Hint { head_version, collections, header: newest }) => {
                merge(collections, hint.collections);
                *head_version = hint.head_version.max(*head_version);
                // Log positions compare only within one history; a later one replaces it.
                if newest.incarnation != header.incarnation || newest.applied_index <= header.applied_index {
                    *newest = header;
                }
            }
            // Says more than any hint.
            Some(Pending::Resync(_)) => {}
        }
        if !was_pending {
            self.make_ready(name);
        }
        !was_pending
    }

    pub(super) fn resync(&mut self, user: &str, info: v1::ResyncInfo) -> bool {
        self.drop_pending(user);
        let Some((name, _)) = self.users.get_key_value(user) else { return false };
        let name = name.clone();
        if let Some(watched) = self.users.get_mut(&name) {
            watched.pending = Some(Pending::Resync(info));
        }
        self.make_ready(name);
        true
    }

    fn make_ready(&mut self, name: Arc<str>) {
        self.last_place += 1;
        if let Some(watched) = self.users.get_mut(&name) {
            watched.place = self.last_place;
            self.ready.insert(self.last_place, name);
        }
    }

    pub(super) fn fail(&mut self, error: Error) {
        self.failed = Some(error);
    }

    /// What waited longest; then why there will be no more.
    pub(super) fn next(&mut self) -> Option<Result<WatchEvent, Error>> {
        let Some((_, name)) = self.ready.pop_first() else { return self.failed.clone().map(Err) };
        let user = name.as_ref().to_owned();
        match self.users.get_mut(&name)?.pending.take()? {
            Pending::Hint { head_version, collections, header } => {
                let collections = collections.into_iter().collect();
                Some(Ok(WatchEvent::Hint { user, head_version, collections, header }))
            }
            Pending::Resync(info) => {
                if let Some(watched) = self.users.remove(&name) {
                    let lane = &mut self.lanes[watched.lane];
                    lane.users -= 1;
                    // The node dropped it already.
                    lane.todo.remove(&name);
                }
                Some(Ok(WatchEvent::Resync { user, info }))
            }
        }
    }
}

/// Empty = not known, which stays so.
fn merge(collections: &mut BTreeSet<String>, more: Vec<String>) {
    if collections.is_empty() {
        return;
    }
    let unknown = more.is_empty();
    collections.extend(more.into_iter().take(COLLECTIONS_MAX + 1));
    if unknown || collections.len() > COLLECTIONS_MAX {
        collections.clear();
    }
}

#[cfg(test)]
mod tests;
