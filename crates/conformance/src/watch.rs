//! Watch streams. 41.

use std::collections::BTreeMap;
use std::time::Duration;

use holdfast_wire::status::details_of;
use holdfast_wire::v1;
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout};
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Endpoint;
use tonic::{Code, Status, Streaming};
use v1::sync_service_client::SyncServiceClient;
use v1::watch_response::Event;

use crate::case::{Case, batch, put};
use crate::device::Device;
use crate::failure::{Failure, Outcome};
use crate::target::{Target, may_retry, page_of};
use crate::{check, check_eq};

/// How long a hint may take, leader changes included.
const HINT_WITHIN: Duration = Duration::from_secs(8);
const USERS: usize = 24;

/// A stream that subscribes again when a node asks for it, and knows the newest head it heard of per user.
struct Watcher<'a> {
    target: &'a Target,
    place: usize,
    tokens: BTreeMap<String, String>,
    heads: BTreeMap<String, u64>,
    hints: usize,
    heartbeats: Vec<u32>,
    open: Option<(mpsc::Sender<v1::WatchRequest>, Streaming<v1::WatchResponse>)>,
    last_header: v1::ResponseHeader,
}

fn adds(tokens: &BTreeMap<String, String>) -> v1::WatchRequest {
    let add = |(user, token): (&String, &String)| v1::WatchAdd { user_id: user.clone(), sync_token: token.clone() };
    v1::WatchRequest { adds: tokens.iter().map(add).collect(), remove_user_ids: Vec::new() }
}

impl<'a> Watcher<'a> {
    fn new(target: &'a Target, place: usize, tokens: BTreeMap<String, String>) -> Self {
        let (heads, heartbeats, last_header) = Default::default();
        Self { target, place, tokens, heads, hints: 0, heartbeats, open: None, last_header }
    }

    /// The next event; opens the stream first where there is none.
    async fn next(&mut self) -> Result<Event, Failure> {
        let end = Instant::now() + HINT_WITHIN;
        loop {
            check!(Instant::now() < end, "expected an event within {HINT_WITHIN:?}, saw none");
            if self.open.is_none() {
                match open(&mut self.target.nodes[self.place].sync(), adds(&self.tokens)).await {
                    Ok(open) => self.open = Some(open),
                    Err(status) => self.lost(status).await?,
                }
                continue;
            }
            let Some((_, stream)) = self.open.as_mut() else { continue };
            match timeout(HINT_WITHIN, stream.message()).await {
                Err(_) => return Err(Failure::broken(format!("expected an event within {HINT_WITHIN:?}, saw none"))),
                Ok(Ok(None)) => self.open = None,
                Ok(Err(status)) => self.lost(status).await?,
                Ok(Ok(Some(v1::WatchResponse { header, event }))) => {
                    let event = event.ok_or_else(|| Failure::broken("expected an event in each answer, saw none"))?;
                    self.last_header =
                        header.ok_or_else(|| Failure::broken(format!("expected a header with {event:?}")))?;
                    match &event {
                        Event::Hint(hint) => {
                            self.hints += 1;
                            let head = self.heads.entry(hint.user_id.clone()).or_default();
                            *head = (*head).max(hint.head_version);
                        }
                        Event::Heartbeat(beat) => self.heartbeats.push(beat.watched_users),
                        Event::Resync(resync) => {
                            return Err(Failure::broken(format!(
                                "expected no resync of a current token, saw {resync:?}"
                            )));
                        }
                    }
                    return Ok(event);
                }
            }
        }
    }

    async fn lost(&mut self, status: Status) -> Outcome {
        self.open = None;
        if !may_retry(&status) {
            return Err(status.into());
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
        Ok(())
    }

    /// Reads until it has heard of a version.
    async fn hears_of(&mut self, user: &str, version: u64) -> Outcome {
        let end = Instant::now() + HINT_WITHIN;
        while self.heads.get(user).is_none_or(|head| *head < version) {
            let seen = self.heads.get(user).copied().unwrap_or(0);
            let place = self.place + 1;
            check!(
                Instant::now() < end,
                "expected a hint of {user} at {version:#x} from node {place} within {HINT_WITHIN:?}, saw {seen:#x}"
            );
            self.next().await?;
        }
        Ok(())
    }

    /// Everything that is not true may not be said either: no head above what was committed.
    fn invents_nothing(&self, versions: &BTreeMap<String, u64>) -> Outcome {
        for (user, head) in &self.heads {
            let newest = versions.get(user).copied().unwrap_or(0);
            check!(
                *head <= newest,
                "expected hints of committed versions only, saw {user} at {head:#x} over {newest:#x}"
            );
        }
        Ok(())
    }
}

type Opened = (mpsc::Sender<v1::WatchRequest>, Streaming<v1::WatchResponse>);

async fn open(
    client: &mut SyncServiceClient<tonic::transport::Channel>,
    first: v1::WatchRequest,
) -> Result<Opened, Status> {
    let (sender, requests) = mpsc::channel(16);
    let _ = sender.send(first).await;
    let answer = timeout(HINT_WITHIN, client.watch(ReceiverStream::new(requests))).await;
    let stream = answer.map_err(|_| Status::internal("no stream within the time for a hint"))??;
    Ok((sender, stream.into_inner()))
}

/// 41: A watch loses no wake-up: after each write every stream that watches the user hears of a head at least as new,
/// over leader changes; a watcher that reads nothing gets merged hints later; adding, adding again and removing users
/// do what they say.
///
/// Break: the stream registers a user after it looked at the head (server/src/grpc/watch.rs), so that a write between
/// is missed; or it queues a hint per write.
pub async fn c41_a_watch_loses_no_wake_up(case: &Case) -> Outcome {
    let target = &case.target;
    let users: Vec<String> = (0..USERS).map(|n| case.user(&format!("u{n}"))).collect();
    let mut versions: BTreeMap<String, u64> = BTreeMap::new();
    let mut tokens = BTreeMap::new();
    for user in &users {
        versions.insert(user.clone(), case.put(user, "a", "0").await?.version);
        tokens.insert(user.clone(), case.device(user).await?.token);
    }
    let mut watchers: Vec<Watcher> =
        (0..target.nodes.len()).map(|place| Watcher::new(target, place, tokens.clone())).collect();
    for watcher in &mut watchers {
        // Nothing is newer than the tokens: a sign of life comes, and no hint.
        let first = watcher.next().await?;
        let all = Event::Heartbeat(v1::WatchHeartbeat { watched_users: USERS as u32 });
        check!(first == all || watcher.heartbeats == vec![0], "expected a heartbeat with {USERS} users, saw {first:?}");
    }
    // One write at a time, each heard of on every stream; then bursts.
    let mut chance = case.chance();
    for n in 0..40 {
        let user = &users[chance.below(USERS)];
        let version = case.put(user, "a", &format!("one {n}")).await?.version;
        versions.insert(user.clone(), version);
        let heard = watchers.iter_mut().map(|watcher| watcher.hears_of(user, version));
        futures::future::join_all(heard).await.into_iter().collect::<Result<Vec<()>, Failure>>()?;
    }
    for burst in 0..3 {
        let writes = users.iter().map(|user| async move {
            let mut version = 0;
            for n in 0..3 {
                version = case.put(user, "a", &format!("burst {burst} {n}")).await?.version;
            }
            Ok::<_, Failure>((user.clone(), version))
        });
        for written in futures::future::join_all(writes).await {
            let (user, version) = written?;
            versions.insert(user, version);
        }
        for watcher in &mut watchers {
            for (user, version) in &versions {
                watcher.hears_of(user, *version).await?;
            }
            watcher.invents_nothing(&versions)?;
        }
    }
    hint_is_enough(case, &mut watchers[0], &users[0]).await?;
    drop(watchers);
    early_and_late(case, &users[0], versions[&users[0]]).await?;
    opening(case).await?;
    removal(case, &users[1], &users[2]).await?;
    slow(case).await?;
    refusals(case, &users[0]).await
}

/// The header of a hint is enough for a read of any other node.
async fn hint_is_enough(case: &Case, watcher: &mut Watcher<'_>, user: &str) -> Outcome {
    let mut device = case.device(user).await?;
    for n in 0..8 {
        let version = case.put(user, "a", &format!("enough {n}")).await?.version;
        watcher.hears_of(user, version).await?;
        let at = watcher.last_header;
        let level = v1::read_consistency::Level::AtLeast(v1::AtLeast {
            incarnation: at.incarnation,
            applied_index: at.applied_index,
            group_id: at.group_id,
        });
        let consistency = Some(v1::ReadConsistency { level: Some(level) });
        let question = v1::GetChangesRequest { consistency, ..device.question(0) };
        let other = case.target.client_of((n + 1) % case.target.nodes.len())?;
        let page = page_of(other.changes(question).await?.outcome)?;
        let seen = page.records.last().map(|one| one.version);
        check_eq!(seen, Some(version), "change read at_least the header of its hint, on another node");
        device.apply(&page);
    }
    Ok(())
}

/// An empty or old token: a hint at once. The same user again: its place is replaced.
async fn early_and_late(case: &Case, user: &str, version: u64) -> Outcome {
    let mut watcher = Watcher::new(&case.target, 0, BTreeMap::from([(user.to_owned(), String::new())]));
    watcher.hears_of(user, version).await.map_err(|failure| failure.at("an empty token, behind the head"))?;
    let token = case.device(user).await?.token;
    let again = v1::WatchAdd { user_id: user.to_owned(), sync_token: token };
    let Some((sender, _)) = &watcher.open else { return Ok(()) };
    let _ = sender.send(v1::WatchRequest { adds: vec![again], remove_user_ids: Vec::new() }).await;
    let version = case.put(user, "a", "after it was added again").await?.version;
    watcher.hears_of(user, version).await.map_err(|failure| failure.at("a user added twice"))?;
    // A user never seen is watched all the same.
    let nobody = case.user("nobody");
    let mut watcher =
        Watcher::new(&case.target, 1 % case.target.nodes.len(), BTreeMap::from([(nobody.clone(), String::new())]));
    watcher.next().await?;
    check_eq!(watcher.hints, 0, "hints of a user never seen");
    let version = case.put(&nobody, "a", "first").await?.version;
    watcher.hears_of(&nobody, version).await.map_err(|failure| failure.at("a user never seen before"))
}

/// Users change while a stream is opened for them: between the server's look at their heads and what it hears of them
/// there is no gap.
async fn opening(case: &Case) -> Outcome {
    let users: Vec<String> = (0..12).map(|n| case.user(&format!("opening{n}"))).collect();
    // Users of whom nobody has heard: looking for them takes the server a while.
    let crowd = (0..4000).map(|n| (case.user(&format!("crowd{n}")), String::new()));
    let mut tokens: BTreeMap<String, String> = crowd.collect();
    for round in 0..6 {
        for user in &users {
            tokens.insert(user.clone(), case.device(user).await?.token);
        }
        let mut watcher = Watcher::new(&case.target, round % case.target.nodes.len(), tokens.clone());
        let writes = (0u64..).zip(&users).map(|(n, user)| async move {
            tokio::time::sleep(Duration::from_millis(3 * n)).await;
            Ok::<_, Failure>(case.put(user, "a", &format!("opening {round}")).await?.version)
        });
        let (first, written) = tokio::join!(watcher.next(), futures::future::join_all(writes));
        first?;
        for (user, version) in users.iter().zip(written) {
            let heard = watcher.hears_of(user, version?).await;
            heard.map_err(|failure| failure.at("a write while the stream was opened"))?;
        }
    }
    Ok(())
}

async fn removal(case: &Case, kept: &str, removed: &str) -> Outcome {
    let mut tokens = BTreeMap::new();
    for user in [kept, removed] {
        tokens.insert(user.to_owned(), case.device(user).await?.token);
    }
    let mut watcher = Watcher::new(&case.target, 0, tokens);
    watcher.next().await?;
    let Some((sender, _)) = &watcher.open else { return Ok(()) };
    let remove = v1::WatchRequest { adds: Vec::new(), remove_user_ids: vec![removed.to_owned()] };
    let _ = sender.send(remove).await;
    watcher.tokens.remove(removed);
    let end = Instant::now() + HINT_WITHIN;
    while watcher.heartbeats.last() != Some(&1) {
        check!(
            Instant::now() < end,
            "expected a heartbeat with one user after a removal, saw {:?}",
            watcher.heartbeats
        );
        watcher.next().await?;
    }
    watcher.heads.remove(removed);
    case.put(removed, "a", "unheard").await?;
    let version = case.put(kept, "a", "heard").await?.version;
    watcher.hears_of(kept, version).await?;
    check_eq!(watcher.heads.get(removed), None, "hints of a removed user");
    Ok(())
}

/// A watcher that reads nothing while much happens: merged hints, and the newest head of each.
async fn slow(case: &Case) -> Outcome {
    let users: Vec<String> = (0..4).map(|n| case.user(&format!("slow{n}"))).collect();
    // A window of one frame: what the server has not merged it would have to keep.
    let endpoint = Endpoint::from_shared(format!("http://{}", case.node(0).address)).map_err(anyhow::Error::from)?;
    let channel = endpoint.initial_stream_window_size(1024).initial_connection_window_size(65_535).connect_lazy();
    let mut client = SyncServiceClient::new(channel);
    let tokens: BTreeMap<String, String> = users.iter().map(|user| (user.clone(), String::new())).collect();
    let end = Instant::now() + HINT_WITHIN;
    let (_sender, mut stream) = loop {
        match open(&mut client, adds(&tokens)).await {
            Ok(opened) => break opened,
            Err(status) if may_retry(&status) && Instant::now() < end => {
                tokio::time::sleep(Duration::from_millis(50)).await
            }
            Err(status) => return Err(status.into()),
        }
    };
    let mut versions = BTreeMap::new();
    let writes = 600;
    for round in 0..writes / users.len() / 2 {
        for pair in users.chunks(2) {
            let both = futures::future::join_all(pair.iter().map(|user| async move {
                case.put(user, "a", &format!("{round} a")).await?;
                Ok::<_, Failure>((user.clone(), case.put(user, "a", &format!("{round} b")).await?.version))
            }));
            for written in both.await {
                let (user, version) = written?;
                versions.insert(user, version);
            }
        }
    }
    let (mut hints, mut heads) = (0, BTreeMap::<String, u64>::new());
    let end = Instant::now() + HINT_WITHIN;
    while versions.iter().any(|(user, version)| heads.get(user).is_none_or(|head| head < version)) {
        check!(Instant::now() < end, "expected the newest heads after {hints} late hints, saw {heads:x?}");
        let next = timeout(HINT_WITHIN, stream.message()).await;
        match next {
            Ok(Ok(Some(answer))) => {
                if let Some(Event::Hint(hint)) = answer.event {
                    hints += 1;
                    let head = heads.entry(hint.user_id).or_default();
                    check!(
                        hint.head_version >= *head,
                        "expected heads never to go back, saw {:#x} after {head:#x}",
                        hint.head_version
                    );
                    *head = hint.head_version;
                }
            }
            Ok(Err(status)) if may_retry(&status) => {
                case.note("the slow stream was ended by its node; merging not judged");
                return Ok(());
            }
            other => return Err(Failure::broken(format!("expected a late hint, saw {other:?}"))),
        }
    }
    check!(hints < writes / 2, "expected {writes} writes merged into few hints, saw {hints}");
    case.note(format!("{writes} writes came as {hints} late hints"));
    Ok(())
}

/// What is no token and no user ends the stream.
async fn refusals(case: &Case, user: &str) -> Outcome {
    let token = Device::new(user).token + "no token";
    for (what, user, token, reason) in [
        ("a malformed token", user.to_owned(), token, "TOKEN_MALFORMED"),
        ("another user's token", case.user("other"), case.device(user).await?.token, "TOKEN_OTHER_USER"),
        ("an empty user id", String::new(), String::new(), "INVALID_FIELD"),
        ("a user id of 129 bytes", "u".repeat(129), String::new(), "INVALID_FIELD"),
    ] {
        let first = adds(&BTreeMap::from([(user, token)]));
        let status = match open(&mut case.node(0).sync(), first).await {
            Err(status) => status,
            Ok((_sender, mut stream)) => loop {
                match timeout(HINT_WITHIN, stream.message()).await {
                    Ok(Err(status)) => break status,
                    Ok(Ok(Some(_))) => {}
                    other => return Err(Failure::broken(format!("{what}: expected the stream to end, saw {other:?}"))),
                }
            },
        };
        let seen = details_of(&status).reason;
        check!(
            status.code() == Code::InvalidArgument && seen == reason,
            "{what}: expected INVALID_ARGUMENT/{reason}, saw {:?}/{seen}: {}",
            status.code(),
            status.message()
        );
    }
    case.client().write(batch(user, vec![put("a", "still there")])).await?;
    Ok(())
}
