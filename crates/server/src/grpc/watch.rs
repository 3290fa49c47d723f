//! `Watch`: hints that users changed, for any number of users on one stream.
//!
//! Invariants:
//! - A user is subscribed before the state is looked at, so no change falls between.
//! - A hint is told for every head above the last one told; hints of one user are merged while the caller reads nothing.
//! - What a stream holds is bounded by the users it watches.
//! - A stream that cannot hear of changes any more ends, and does not fall silent.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use holdfast_model::id::{Collection, UserId, Version};
use holdfast_model::limits;
use holdfast_replica::Fresh;
use holdfast_wire::api::{self, Consistency, WatchChange};
use holdfast_wire::status::Refusal;
use holdfast_wire::token::SyncToken;
use holdfast_wire::v1;
use holdfast_wire::v1::watch_response::Event;
use tokio::sync::mpsc;
use tokio::time::{Instant, MissedTickBehavior, interval, timeout};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming};

use crate::feed::{Hint, Next, Subscription};
use crate::grpc::changes::token_at;
use crate::grpc::sync::ResponseStream;
use crate::grpc::{Shared, blocking, storage};
use crate::resync::{Verdict, judge, resume_at};

/// Messages made before the caller takes them. More would only age.
const OUTGOING_MAX: usize = 16;
/// A node that did not hear from a leader for so long may miss changes.
const UNCONFIRMED_MAX: Duration = Duration::from_secs(5);
/// Time for a caller to take the reason why its stream ends.
const LAST_WORD_MAX: Duration = Duration::from_secs(5);
/// Users watched on all streams of a node together: each costs some hundred bytes.
const WATCHED_MAX: usize = 1_000_000;
/// When to come back to a node that watches enough.
const WATCHED_PAUSE: Duration = Duration::from_secs(5);
/// Changes looked at to name the collections of a first hint.
const CHANGES_LOOKED_AT: usize = 256;

/// One stream.
struct Stream {
    shared: Arc<Shared>,
    subscription: Subscription,
    /// Newest head told of each watched user.
    watched: HashMap<UserId, Version>,
    out: mpsc::Sender<Result<v1::WatchResponse, Status>>,
}

/// Why a stream ends.
enum End {
    /// The caller went away, or said all.
    Caller,
    /// For this reason.
    Refused(Status),
}

impl From<Refusal> for End {
    fn from(refusal: Refusal) -> Self {
        Self::Refused(refusal.into())
    }
}

/// What a user's state says against the caller's token.
struct Look {
    user: UserId,
    verdict: Verdict,
    head: Version,
    collections: BTreeSet<Collection>,
    resync: Option<v1::ResyncInfo>,
}

/// Answers a `Watch`.
pub fn watch(
    shared: &Arc<Shared>,
    requests: Streaming<v1::WatchRequest>,
) -> Result<ResponseStream<v1::WatchResponse>, Refusal> {
    shared.check_serving()?;
    let (out, answers) = mpsc::channel(OUTGOING_MAX);
    let subscription = shared.feed.subscribe();
    let stream = Stream { shared: shared.clone(), subscription, watched: HashMap::new(), out };
    tokio::spawn(stream.run(requests));
    Ok(Box::pin(ReceiverStream::new(answers)))
}

impl Stream {
    async fn run(mut self, mut requests: Streaming<v1::WatchRequest>) {
        let out = self.out.clone();
        let ended = self.serve(&mut requests).await;
        // Nothing is heard for a caller that does not even take the reason.
        drop(self);
        if let Err(End::Refused(status)) = ended {
            // The caller may be gone.
            let _ = timeout(LAST_WORD_MAX, out.send(Err(status))).await;
        }
    }

    async fn serve(&mut self, requests: &mut Streaming<v1::WatchRequest>) -> Result<(), End> {
        let mut heartbeat = interval(Duration::from_millis(self.shared.config.watch_heartbeat_ms));
        heartbeat.set_missed_tick_behavior(MissedTickBehavior::Delay);
        // A caller may close its side and still listen.
        let mut requests_open = true;
        loop {
            tokio::select! {
                request = requests.message(), if requests_open => match request {
                    Ok(Some(request)) => self.change(api::watch(request)?).await?,
                    Ok(None) => requests_open = false,
                    Err(status) => return Err(End::Refused(holdfast_wire::status::explained(status))),
                },
                () = self.subscription.ready() => self.tell().await?,
                _ = heartbeat.tick() => {
                    self.check_hearing()?;
                    let watched_users = self.watched.len() as u32;
                    self.send(Event::Heartbeat(v1::WatchHeartbeat { watched_users })).await?;
                }
                () = self.out.closed() => return Err(End::Caller),
            }
        }
    }

    /// A node that may miss changes must not look as if nothing happened.
    fn check_hearing(&self) -> Result<(), Refusal> {
        if self.shared.draining.load(Ordering::Acquire) {
            return Err(Refusal::Draining);
        }
        if self.shared.replica.is_fenced() {
            return Err(Refusal::Diverged);
        }
        let hears = self.shared.replica.confirmed_ago().is_some_and(|ago| ago < UNCONFIRMED_MAX);
        if hears { Ok(()) } else { Err(Refusal::ReplicaBehind) }
    }

    async fn change(&mut self, change: WatchChange) -> Result<(), End> {
        for user in &change.removes {
            self.subscription.remove(user);
            self.watched.remove(user);
        }
        for (user, token) in &change.adds {
            self.subscription.add(user);
            self.watched.insert(user.clone(), token.map_or(Version(0), |token| token.version));
        }
        if self.watched.len() > limits::WATCH_USERS_MAX {
            return Err(Refusal::WatchLimit.into());
        }
        if self.shared.feed.watched() > WATCHED_MAX {
            self.shared.metrics.rejected("watched_users");
            return Err(Refusal::Overloaded(WATCHED_PAUSE).into());
        }
        if change.adds.is_empty() {
            return Ok(());
        }
        let deadline = Instant::now() + self.shared.default_deadline();
        let local = self.shared.read_local(deadline).await?;
        let (done, unsure): (Vec<_>, Vec<_>) =
            self.look(local, change.adds).await?.into_iter().partition(|(look, _)| look.resync.is_none());
        for (look, _) in done {
            self.tell_look(look).await?;
        }
        if unsure.is_empty() {
            return Ok(());
        }
        // Only a quorum's state may say that a token cannot be continued.
        let confirmed = self.shared.read(Consistency::Linearizable, deadline).await?;
        let again = unsure.into_iter().map(|(look, token)| (look.user, token)).collect();
        for (look, _) in self.look(confirmed, again).await? {
            self.tell_look(look).await?;
        }
        Ok(())
    }

    async fn look(
        &self,
        fresh: Fresh,
        adds: Vec<(UserId, Option<SyncToken>)>,
    ) -> Result<Vec<(Look, Option<SyncToken>)>, Refusal> {
        let pace = self.shared.config.resync_users_per_second;
        blocking(move || {
            let look =
                |(user, token): (UserId, Option<SyncToken>)| Ok((look(&fresh, user, token.as_ref(), pace)?, token));
            adds.into_iter().map(look).collect()
        })
        .await
    }

    async fn tell_look(&mut self, look: Look) -> Result<(), End> {
        let Look { user, verdict, head, collections, resync } = look;
        match (verdict, resync) {
            (Verdict::Continue(after), _) => {
                if head > after {
                    self.hint(user, Hint { head, collections }).await?;
                }
            }
            (_, Some(info)) => {
                self.subscription.remove(&user);
                self.watched.remove(&user);
                let user_id = user.as_str().to_owned();
                self.send(Event::Resync(v1::WatchResync { user_id, info: Some(info) })).await?;
            }
            (_, None) => {}
        }
        Ok(())
    }

    /// Tells what was heard. Takes one piece of news when there is room for it, so that the rest merges meanwhile.
    async fn tell(&mut self) -> Result<(), End> {
        let room = self.out.clone().reserve_owned().await.map_err(|_| End::Caller)?;
        drop(room);
        match self.subscription.take() {
            None => Ok(()),
            Some(Next::Hint(user, hint)) => self.hint(user, hint).await,
            Some(Next::LookAgain) => {
                self.check_hearing()?;
                let view = self.shared.read_local(Instant::now() + self.shared.default_deadline()).await?;
                let users: Vec<UserId> = self.watched.keys().cloned().collect();
                for (look, _) in self.look(view, users.into_iter().map(|user| (user, None)).collect()).await? {
                    let hint = Hint { head: look.head, collections: Default::default() };
                    self.hint(look.user, hint).await?;
                }
                Ok(())
            }
        }
    }

    /// Tells of a head, if it is news.
    async fn hint(&mut self, user: UserId, hint: Hint) -> Result<(), End> {
        match self.watched.get_mut(&user) {
            Some(told) if *told < hint.head => *told = hint.head,
            Some(_) | None => return Ok(()),
        }
        let collections = hint.collections.iter().map(|name| name.as_str().to_owned()).collect();
        let user_id = user.as_str().to_owned();
        self.send(Event::Hint(v1::WatchHint { user_id, head_version: hint.head.0, collections })).await
    }

    /// The header is that of the moment: whatever is told was applied before.
    async fn send(&self, event: Event) -> Result<(), End> {
        let replica = &self.shared.replica;
        let header = self.shared.header(&replica.sys(), replica.state().applied().index());
        let message = v1::WatchResponse { header: Some(header), event: Some(event) };
        self.out.send(Ok(message)).await.map_err(|_| End::Caller)
    }
}

fn look(fresh: &Fresh, name: UserId, token: Option<&SyncToken>, pace: u64) -> Result<Look, Refusal> {
    let view = &fresh.view;
    let sys = view.sys();
    let user = view.uid(&name).map_err(storage)?;
    let row = match user {
        Some(user) => view.user(user).map_err(storage)?,
        None => None,
    };
    let head = row.as_ref().map_or(Version(0), |row| row.head);
    let verdict = token.map_or(Verdict::Continue(Version(0)), |token| judge(token, sys, row.as_ref()));
    let mut collections = BTreeSet::new();
    if let (Verdict::Continue(after), Some(user)) = (verdict, user)
        && after > Version(0)
        && after < head
    {
        let changes = view.changes(user, after, CHANGES_LOOKED_AT, usize::MAX).map_err(storage)?;
        if !changes.more {
            collections = changes.rows.into_iter().map(|(.., row)| row.key.collection).collect::<BTreeSet<_>>();
        }
    }
    let resync = match verdict.resync(sys, &name, row.as_ref(), pace) {
        None => None,
        Some(info) => {
            let filter = token.map_or(0, |token| token.filter);
            Some(v1::ResyncInfo {
                resume_token: token_at(&name, filter, sys, user, resume_at(&info))?.encode(),
                ..info
            })
        }
    };
    Ok(Look { user: name, verdict, head, collections, resync })
}
