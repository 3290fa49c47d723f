//! Clients that add records no one else writes, and now and then do what would show a request that took effect twice:
//! send an answered request again, put known content under a new id, replace a record under a guard, or without one.
//!
//! Invariants, on which the checker builds:
//! - A request id stands for one content, over all its repetitions.
//! - A record has one writer. One that is written more than once is not written again before the end of the last write
//!   is known.
//! - All payloads of a record differ, except where a client puts known content on purpose.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, bail};
use holdfast_client::{Client, Error, SyncOutcome, v1};
use tokio::time::Instant;

use crate::chance::Chance;
use crate::history::{Action, Failure, Found, Process, Reply, Stage, Write};
use crate::workload::Pace;
use crate::workload::Shared;

/// Clients that share a user: their writes compete for its versions.
const CLIENTS_PER_USER: u32 = 4;
const COLLECTION: &str = "notes";
const CONTENT_TYPE: &str = "text/plain";
/// For a write at the end, when everything is healed.
const LAST_DEADLINE: Duration = Duration::from_secs(30);
/// A client gives up knowing the end of its last writes after this.
const RESOLVE_WITHIN: Duration = Duration::from_secs(60);
/// Answered requests that a client remembers in order to send them again.
const REMEMBERED: usize = 64;
/// Of those, how many it sends again when everything is healed: after every node was down.
const SENT_AGAIN_AT_THE_END: usize = 4;
const PAGE: i32 = 1000;
/// Longer messages say nothing more.
const MESSAGE_CHARS: usize = 200;

/// Name of a client's user.
fn user_of(client: u32) -> String {
    format!("u{}", client / CLIENTS_PER_USER)
}

/// All users that these clients write to.
pub fn users(clients: Range<u32>) -> Vec<String> {
    let mut users: Vec<String> = clients.map(user_of).collect();
    users.dedup();
    users
}

/// How a write ended.
enum End {
    Ok(Reply),
    /// It took no effect; `final_` = and no earlier attempt did.
    Fail {
        final_: bool,
    },
    Unknown,
}

/// A write and what its end means to the writer.
#[derive(Debug, Clone)]
enum Task {
    Add(Write),
    Same(Write),
    Bump(Write),
    Over(Write),
}

impl Task {
    fn write(&self) -> &Write {
        match self {
            Self::Add(write) | Self::Same(write) | Self::Bump(write) | Self::Over(write) => write,
        }
    }

    fn action(&self) -> Action {
        match self.clone() {
            Self::Add(write) => Action::Add(write),
            Self::Same(write) => Action::Same(write),
            Self::Bump(write) => Action::Bump(write),
            Self::Over(write) => Action::Over(write),
        }
    }
}

/// One client.
pub struct Writer {
    shared: Shared,
    number: u32,
    client: Client,
    chance: Chance,
    user: String,
    /// Counts payloads, so that no two are alike.
    written: u64,
    /// Version of the guarded record; `None` = not written yet.
    guarded: Option<u64>,
    remembered: VecDeque<Write>,
    adds: VecDeque<Write>,
    /// Must be known before anything else is written.
    pending: Option<Task>,
}

impl Writer {
    /// A client with the number `number`.
    pub fn new(shared: Shared, number: u32, client: Client) -> Self {
        Self {
            chance: Chance::new(shared.seed, number.into()),
            user: user_of(number),
            shared,
            number,
            client,
            written: 0,
            guarded: None,
            remembered: VecDeque::new(),
            adds: VecDeque::new(),
            pending: None,
        }
    }

    /// Writes until it is told to stop; then finds out the end of what it is not sure of.
    pub async fn run(mut self, stop: Arc<AtomicBool>) {
        let mut pace = Pace::of(&self.shared);
        while !stop.load(Ordering::Acquire) {
            self.step().await;
            pace.wait().await;
        }
        self.client = self.client.with_deadline(LAST_DEADLINE);
        let end = Instant::now() + RESOLVE_WITHIN;
        while self.pending.is_some() && Instant::now() < end {
            self.step().await;
        }
        for write in self.remembered.iter().rev().take(SENT_AGAIN_AT_THE_END).cloned().collect::<Vec<_>>() {
            self.send(Action::Resend(write)).await;
        }
    }

    /// One write from its beginning to its end.
    async fn step(&mut self) {
        if let Some(task) = self.pending.take() {
            let end = self.send(Action::Resend(task.write().clone())).await;
            // Only that nobody could be asked leaves open what an earlier attempt did.
            let open = matches!(end, End::Unknown | End::Fail { final_: false });
            if open {
                self.pending = Some(task);
            } else {
                self.learn(&task, &end);
            }
            return;
        }
        let task = match self.chance.below(100) {
            0..10 => self.bump(),
            10..20 => self.over(),
            20..28 if !self.remembered.is_empty() => {
                let place = self.chance.below(self.remembered.len());
                self.send(Action::Resend(self.remembered[place].clone())).await;
                return;
            }
            28..32 if !self.adds.is_empty() => self.same(),
            _ => self.add(),
        };
        let end = self.send(task.action()).await;
        if matches!(end, End::Unknown) && self.must_know(&task) {
            self.pending = Some(task);
        } else {
            self.learn(&task, &end);
        }
    }

    /// What is written once may stay unknown, and half of it does; a record that is written again must not.
    fn must_know(&mut self, task: &Task) -> bool {
        match task {
            Task::Bump(_) | Task::Over(_) => true,
            Task::Add(_) => self.chance.percent(50),
            Task::Same(_) => false,
        }
    }

    fn learn(&mut self, task: &Task, end: &End) {
        let End::Ok(reply) = end else { return };
        match task {
            Task::Bump(_) => self.guarded = Some(reply.version),
            Task::Add(write) => remember(&mut self.adds, write),
            Task::Over(_) | Task::Same(_) => {}
        }
        remember(&mut self.remembered, task.write());
    }

    fn add(&mut self) -> Task {
        let key = format!("a{}-{}", self.number, self.written + 1);
        Task::Add(self.fresh(key, None))
    }

    fn bump(&mut self) -> Task {
        Task::Bump(self.fresh(format!("k{}", self.number), self.guarded))
    }

    fn over(&mut self) -> Task {
        Task::Over(self.fresh(format!("o{}", self.number), None))
    }

    fn same(&mut self) -> Task {
        let place = self.chance.below(self.adds.len());
        let request_id = self.request_id();
        Task::Same(Write { request_id, ..self.adds[place].clone() })
    }

    /// New content under a new id.
    fn fresh(&mut self, key: String, guard: Option<u64>) -> Write {
        self.written += 1;
        let payload = format!("{}-{} {:016x}", self.number, self.written, self.chance.next_u64());
        Write { user: self.user.clone(), key, payload, request_id: self.request_id(), guard }
    }

    fn request_id(&mut self) -> String {
        let (high, low) = (self.chance.next_u64(), self.chance.next_u64());
        let bytes = ((u128::from(high) << 64) | u128::from(low)).to_be_bytes();
        uuid::Builder::from_random_bytes(bytes).into_uuid().to_string()
    }

    async fn send(&self, action: Action) -> End {
        let Some(write) = action.write() else { return End::Unknown };
        let (recorder, process) = (&self.shared.recorder, Process::Client(self.number));
        let request = request(write, self.shared.incarnation);
        let began_ns = recorder.invoke(process, action.clone());
        match self.client.write(request).await {
            Ok(answer) => match reply_of(&answer) {
                Some(reply) => {
                    recorder.ok(process, began_ns, action, reply);
                    End::Ok(reply)
                }
                None => {
                    // The checker of the harness knows no such reason, and so refuses the run.
                    let failure = Failure { reason: "MALFORMED_ANSWER".into(), message: format!("{answer:?}") };
                    recorder.end(process, Stage::Info, action, failure);
                    End::Unknown
                }
            },
            Err(error) => {
                let message = error.to_string().chars().take(MESSAGE_CHARS).collect();
                let failure = Failure { reason: error.reason().to_owned(), message };
                let unknown = matches!(error, Error::OutcomeUnknown { .. });
                recorder.end(process, if unknown { Stage::Info } else { Stage::Fail }, action, failure);
                if unknown { End::Unknown } else { End::Fail { final_: settles(&error) } }
            }
        }
    }
}

/// The failure of a repetition that also tells what became of the attempts before it.
fn settles(error: &Error) -> bool {
    match error {
        Error::Unavailable { .. } | Error::Overloaded { .. } | Error::Internal { .. } => false,
        Error::Invalid { .. }
        | Error::Conflict { .. }
        | Error::NotFound { .. }
        | Error::Precondition { .. }
        | Error::Forbidden { .. }
        | Error::OutcomeUnknown { .. }
        | Error::Corrupt { .. }
        | Error::Unsupported { .. } => true,
    }
}

fn remember(list: &mut VecDeque<Write>, write: &Write) {
    if list.len() == REMEMBERED {
        list.pop_front();
    }
    list.push_back(write.clone());
}

fn request(write: &Write, incarnation: u64) -> v1::BatchWriteRequest {
    let put = v1::PutOp {
        content_type: CONTENT_TYPE.to_owned(),
        payload: write.payload.clone().into_bytes().into(),
        ..Default::default()
    };
    let guard = |version| v1::Precondition { check: Some(v1::precondition::Check::Version(version)) };
    let mutation = v1::Mutation {
        key: Some(v1::RecordKey { collection: COLLECTION.to_owned(), record_id: write.key.clone() }),
        op: Some(v1::mutation::Op::Put(put)),
        precondition: write.guard.map(guard),
    };
    v1::BatchWriteRequest {
        user_id: write.user.clone(),
        request_id: write.request_id.clone(),
        mutations: vec![mutation],
        if_incarnation: if write.guard.is_some() { incarnation } else { 0 },
        ..Default::default()
    }
}

/// `None` = an answer that the API does not know: not one result, no index, or two versions for one change.
fn reply_of(answer: &v1::BatchWriteResponse) -> Option<Reply> {
    let [result] = &answer.results[..] else { return None };
    // A record that did not change has its own version, and the batch that of the user.
    let fits = answer.commit_index != 0 && (result.version == answer.version || !result.changed);
    let (commit_index, replayed) = (answer.commit_index, answer.replayed);
    fits.then_some(Reply { commit_index, version: result.version, replayed, changed: result.changed })
}

/// All records of a user, from zero; also who answered last. `at_least` = from that node's own state, once it has
/// applied this index; else linearizable.
///
/// # Errors
/// When it cannot be read, or the feed orders a resync of a client that has nothing.
pub async fn read_back(
    client: &Client,
    user: &str,
    at_least: Option<v1::AtLeast>,
) -> anyhow::Result<(Vec<Found>, u64)> {
    let level = at_least.map(v1::read_consistency::Level::AtLeast);
    let mut request = v1::GetChangesRequest {
        user_id: user.to_owned(),
        page_size: PAGE,
        consistency: Some(v1::ReadConsistency { level }),
        ..Default::default()
    };
    let mut found = Vec::new();
    loop {
        let answer = client.changes(request.clone()).await.with_context(|| format!("read {user}"))?;
        let page = match answer.outcome {
            SyncOutcome::Page(page) => page,
            SyncOutcome::Resync(info) => bail!("{user}: a resync from zero: {info:?}"),
        };
        for record in page.records {
            let key = record.key.context("a record without a key")?.record_id;
            let payload = String::from_utf8_lossy(&record.payload).into_owned();
            found.push(Found { key, version: record.version, payload });
        }
        if !page.more {
            return Ok((found, answer.header.node_id));
        }
        request.sync_token = page.next_sync_token;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_client_has_a_user_that_is_read_back() {
        for clients in [4, 5, 64] {
            let users = users(3..clients);
            assert!((3..clients).all(|client| users.contains(&user_of(client))), "{clients}");
        }
    }

    #[test]
    fn answers_that_contradict_themselves_are_no_answers() {
        let answer = |version, changed, commit_index| v1::BatchWriteResponse {
            version: 7,
            commit_index,
            results: vec![v1::MutationResult { changed, version }],
            ..Default::default()
        };
        let reply = Reply { commit_index: 5, version: 7, replayed: false, changed: true };
        assert_eq!(reply_of(&answer(7, true, 5)), Some(reply));
        assert_eq!(reply_of(&answer(6, true, 5)), None);
        assert_eq!(reply_of(&answer(7, true, 0)), None);
        assert_eq!(reply_of(&answer(6, false, 5)).map(|reply| reply.version), Some(6));
        assert_eq!(reply_of(&v1::BatchWriteResponse { results: Vec::new(), ..answer(7, true, 5) }), None);
    }
}
