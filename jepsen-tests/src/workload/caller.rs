//! One client's calls, each written down before it is sent and when its end is known.

use std::time::Duration;

use anyhow::Context;
use holdfast_client::{Client, Error, SyncOutcome, v1};

use crate::chance::Chance;
use crate::history::calls::{
    Batch, Change, Changed, Clash, Done, Got, Guard, Held, Lease, Level, Page, Point, Read, Refused, Seen, Turned,
};
use crate::history::{Action, Failure, Process, Stage};
use crate::workload::Shared;

const CONTENT_TYPE: &str = "text/plain";
/// Longer messages say nothing more.
const MESSAGE_CHARS: usize = 200;

/// A client that writes down what it does.
#[derive(Debug)]
pub struct Caller {
    /// What all clients share.
    pub shared: Shared,
    /// Its number in the history.
    pub process: Process,
    /// Its connections.
    pub client: Client,
}

/// How a batch ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum End {
    /// It took effect.
    Done(Done),
    /// A guard failed.
    Refused,
    /// Nobody could take it now; what earlier attempts did is not known.
    Failed,
    /// Nobody knows.
    Unknown,
}

impl Caller {
    /// Sends a batch.
    pub async fn batch(&self, asked: &Batch) -> End {
        let began_ns = self.shared.recorder.invoke(self.process, Action::Batch(asked.clone()));
        let mut batch = asked.clone();
        let answer = self.client.write(request(asked, self.shared.incarnation)).await;
        let (stage, error, end) = match answer {
            Ok(answer) => match done_of(&answer, asked.changes.len()) {
                Some(done) => {
                    batch.done = Some(done.clone());
                    (Stage::Ok, None, End::Done(done))
                }
                // The checker of the harness knows no such reason, and so refuses the run.
                None => (Stage::Info, Some(malformed(&answer)), End::Unknown),
            },
            Err(error) => {
                let end = match &error {
                    Error::OutcomeUnknown { .. } => End::Unknown,
                    Error::Conflict { info, .. } => {
                        batch.refused = Some(refused_of(info));
                        End::Refused
                    }
                    _ => End::Failed,
                };
                (if end == End::Unknown { Stage::Info } else { Stage::Fail }, Some(failure(&error)), end)
            }
        };
        self.shared.recorder.answered(self.process, began_ns, stage, Action::Batch(batch), error);
        end
    }

    /// Reads records.
    pub async fn read(&self, asked: &Read) -> Option<Got> {
        let began_ns = self.shared.recorder.invoke(self.process, Action::Read(asked.clone()));
        let answer = self.client.read(read_request(asked)).await;
        let (stage, error, got) = match answer {
            Ok(answer) => match got_of(&answer, asked.level) {
                Some(got) => (Stage::Ok, None, Some(got)),
                None => (Stage::Info, Some(malformed(&answer)), None),
            },
            Err(error) => (Stage::Fail, Some(failure(&error)), None),
        };
        let read = Read { got: got.clone(), ..asked.clone() };
        self.shared.recorder.answered(self.process, began_ns, stage, Action::Read(read), error);
        got
    }

    /// Sends a put of a record that ends by itself.
    pub async fn lease(&self, asked: &Lease) -> End {
        let began_ns = self.shared.recorder.invoke(self.process, Action::Lease(asked.clone()));
        let put = Put { content: &asked.content, ttl_seconds: asked.ttl_seconds };
        let request = v1::BatchWriteRequest {
            user_id: asked.user.clone(),
            request_id: asked.request_id.clone(),
            mutations: vec![mutation(&asked.key, Some(put), None)],
            ..Default::default()
        };
        let (stage, error, end) = match self.client.write(request).await {
            Ok(answer) => match done_of(&answer, 1) {
                Some(done) => (Stage::Ok, None, End::Done(done)),
                None => (Stage::Info, Some(malformed(&answer)), End::Unknown),
            },
            Err(error) if matches!(error, Error::OutcomeUnknown { .. }) => {
                (Stage::Info, Some(failure(&error)), End::Unknown)
            }
            Err(error) => (Stage::Fail, Some(failure(&error)), End::Failed),
        };
        self.shared.recorder.answered(self.process, began_ns, stage, Action::Lease(asked.clone()), error);
        end
    }

    /// Looks at such a record, linearizable; `None` = nobody answered.
    pub async fn held(&self, asked: &Held) -> Option<Option<String>> {
        let began_ns = self.shared.recorder.invoke(self.process, Action::Held(asked.clone()));
        let (user, keys) = (asked.user.clone(), vec![asked.key.clone()]);
        let read = Read { user, keys, level: Level::Linearizable, got: None };
        let (stage, error, found) = match self.client.read(read_request(&read)).await {
            Ok(answer) => match got_of(&answer, read.level) {
                Some(got) => (Stage::Ok, None, Some(got.records.into_iter().find_map(|seen| seen.payload))),
                None => (Stage::Info, Some(malformed(&answer)), None),
            },
            Err(error) => (Stage::Fail, Some(failure(&error)), None),
        };
        let held = Held { found: found.clone().flatten(), ..asked.clone() };
        self.shared.recorder.answered(self.process, began_ns, stage, Action::Held(held), error);
        found
    }

    /// Asks for a page; `kept` = the consumer will save it.
    pub async fn page(&self, asked: &Page, size: i32, wait: Duration, kept: bool) -> Option<Turned> {
        let began_ns = self.shared.recorder.invoke(self.process, Action::Page(asked.clone()));
        let request = v1::GetChangesRequest {
            user_id: asked.user.clone(),
            sync_token: asked.from.clone(),
            collections: asked.collections.clone(),
            page_size: size,
            wait_ms: u32::try_from(wait.as_millis()).unwrap_or(u32::MAX),
            consistency: consistency(asked.level),
            ..Default::default()
        };
        let mut page = asked.clone();
        let (stage, error) = match self.client.changes(request).await {
            Ok(answer) => match answer.outcome {
                SyncOutcome::Page(turned) => match turned_of(&answer.header, turned, kept) {
                    Some(turned) => {
                        page.turned = Some(turned);
                        (Stage::Ok, None)
                    }
                    None => (Stage::Info, Some(malformed(&answer.header))),
                },
                SyncOutcome::Resync(info) => {
                    page.resync = Some(format!("{:?}", info.reason()));
                    (Stage::Fail, None)
                }
            },
            Err(error) => (Stage::Fail, Some(failure(&error))),
        };
        let turned = page.turned.clone();
        self.shared.recorder.answered(self.process, began_ns, stage, Action::Page(page), error);
        turned
    }
}

/// Reads records of a cluster whose history is not written down.
///
/// # Errors
/// When it does not answer, or not as the API says.
pub async fn look(client: &Client, asked: &Read) -> anyhow::Result<Got> {
    let answer = client.read(read_request(asked)).await?;
    got_of(&answer, asked.level).with_context(|| format!("an answer that the API does not know: {answer:?}"))
}

fn read_request(asked: &Read) -> v1::BatchGetRecordsRequest {
    v1::BatchGetRecordsRequest {
        user_id: asked.user.clone(),
        keys: asked.keys.iter().map(|key| key_of(key)).collect(),
        consistency: consistency(Some(asked.level)),
        ..Default::default()
    }
}

/// A request id that follows from the seed.
pub fn request_id(chance: &mut Chance) -> String {
    let (high, low) = (chance.next_u64(), chance.next_u64());
    let bytes = ((u128::from(high) << 64) | u128::from(low)).to_be_bytes();
    uuid::Builder::from_random_bytes(bytes).into_uuid().to_string()
}

fn failure(error: &Error) -> Failure {
    let message = error.to_string().chars().take(MESSAGE_CHARS).collect();
    Failure { reason: error.reason().to_owned(), message }
}

fn malformed(answer: &impl std::fmt::Debug) -> Failure {
    Failure { reason: "MALFORMED_ANSWER".into(), message: format!("{answer:?}") }
}

fn key_of(key: &str) -> v1::RecordKey {
    let (collection, record_id) = key.split_once('/').unwrap_or(("x-none", key));
    v1::RecordKey { collection: collection.to_owned(), record_id: record_id.to_owned() }
}

pub(crate) fn consistency(level: Option<Level>) -> Option<v1::ReadConsistency> {
    use v1::read_consistency::Level as Asked;
    let level = match level? {
        Level::Linearizable => Asked::Linearizable(v1::Linearizable {}),
        Level::AtLeast(Point { incarnation, group, index }) => {
            Asked::AtLeast(v1::AtLeast { incarnation, applied_index: index, group_id: group })
        }
        Level::Staleness(ms) => Asked::MaxStalenessMs(ms),
    };
    Some(v1::ReadConsistency { level: Some(level) })
}

/// What is put into a record.
pub(crate) struct Put<'a> {
    pub content: &'a str,
    /// 0 = it stays.
    pub ttl_seconds: u32,
}

/// A change as it is sent; nothing put = a delete.
pub(crate) fn mutation(key: &str, put: Option<Put<'_>>, guard: Option<&Guard>) -> v1::Mutation {
    use v1::precondition::Check;
    let op = match put {
        Some(Put { content, ttl_seconds }) => v1::mutation::Op::Put(v1::PutOp {
            content_type: CONTENT_TYPE.to_owned(),
            payload: content.to_owned().into_bytes().into(),
            ttl_seconds,
            ..Default::default()
        }),
        None => v1::mutation::Op::Delete(v1::DeleteOp {}),
    };
    let check = guard.map(|guard| match guard {
        Guard::Version { version, .. } => Check::Version(*version),
        Guard::Absent => Check::Absent(true),
        Guard::Exists => Check::Exists(true),
    });
    let precondition = check.map(|check| v1::Precondition { check: Some(check) });
    v1::Mutation { key: Some(key_of(key)), op: Some(op), precondition }
}

fn request(batch: &Batch, incarnation: u64) -> v1::BatchWriteRequest {
    let of_change = |change: &Change| {
        let put = change.put.as_deref().map(|content| Put { content, ttl_seconds: 0 });
        mutation(&change.key, put, change.guard.as_ref())
    };
    let guarded = batch.changes.iter().any(|change| matches!(change.guard, Some(Guard::Version { .. })));
    v1::BatchWriteRequest {
        user_id: batch.user.clone(),
        request_id: batch.request_id.clone(),
        mutations: batch.changes.iter().map(of_change).collect(),
        if_incarnation: if guarded { incarnation } else { 0 },
        ..Default::default()
    }
}

fn point(header: &v1::ResponseHeader) -> Point {
    Point { incarnation: header.incarnation, group: header.group_id, index: header.applied_index }
}

/// `None` = an answer that the API does not know: no header, no index, or not one result for each change.
fn done_of(answer: &v1::BatchWriteResponse, changes: usize) -> Option<Done> {
    let header = answer.header.as_ref()?;
    if answer.commit_index == 0 || answer.results.len() != changes {
        return None;
    }
    let results = answer.results.iter().map(|one| Changed { changed: one.changed, version: one.version });
    Some(Done {
        at: Point { index: answer.commit_index, ..point(header) },
        version: answer.version,
        replayed: answer.replayed,
        results: results.collect(),
        node: header.node_id,
    })
}

fn refused_of(info: &v1::ConflictInfo) -> Refused {
    let clash = |one: &v1::Conflict| Clash { place: one.index, version: one.current_version, deleted: one.deleted };
    Refused { at: info.header.as_ref().map(point), clashes: info.conflicts.iter().map(clash).collect() }
}

fn got_of(answer: &v1::BatchGetRecordsResponse, level: Level) -> Option<Got> {
    let header = answer.header.as_ref()?;
    // So few and small records fit into any answer.
    if !answer.remaining_keys.is_empty() {
        return None;
    }
    let staleness_ms = matches!(level, Level::Staleness(_)).then_some(header.staleness_ms);
    let records = answer.records.iter().map(seen_of).collect::<Option<_>>()?;
    Some(Got { at: point(header), node: header.node_id, staleness_ms, records })
}

fn turned_of(header: &v1::ResponseHeader, page: v1::ChangesPage, kept: bool) -> Option<Turned> {
    let records = page.records.iter().map(seen_of).collect::<Option<_>>()?;
    let (next, more) = (page.next_sync_token, page.more);
    Some(Turned { at: point(header), node: header.node_id, records, next, more, kept })
}

fn seen_of(record: &v1::Record) -> Option<Seen> {
    let key = record.key.as_ref()?;
    let payload = match record.delete_time {
        None => Some(String::from_utf8_lossy(&record.payload).into_owned()),
        Some(_) => None,
    };
    Some(Seen { key: format!("{}/{}", key.collection, key.record_id), version: record.version, payload })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_that_contradict_themselves_are_no_answers() {
        let answer = |results, commit_index, header| v1::BatchWriteResponse {
            header,
            version: 7,
            commit_index,
            results: vec![v1::MutationResult { changed: true, version: 7 }; results],
            ..Default::default()
        };
        let header = Some(v1::ResponseHeader { incarnation: 3, group_id: 1, node_id: 2, ..Default::default() });
        let done = done_of(&answer(2, 5, header), 2).expect("an answer");
        assert_eq!((done.at, done.node), (Point { incarnation: 3, group: 1, index: 5 }, 2));
        assert_eq!(done_of(&answer(1, 5, header), 2), None);
        assert_eq!(done_of(&answer(2, 0, header), 2), None);
        assert_eq!(done_of(&answer(2, 5, None), 2), None);
    }

    #[test]
    fn a_record_is_named_by_its_collection_and_a_tombstone_has_no_content() {
        let record = v1::Record { key: Some(key_of("notes/a/b")), version: 4, ..Default::default() };
        assert_eq!(seen_of(&record), Some(Seen { key: "notes/a/b".into(), version: 4, payload: Some(String::new()) }));
        let tombstone = v1::Record { delete_time: Some(Default::default()), ..record };
        assert_eq!(seen_of(&tombstone).and_then(|seen| seen.payload), None);
        assert_eq!(seen_of(&v1::Record::default()), None);
    }

    #[test]
    fn guards_of_versions_name_their_history() {
        let guard = Some(Guard::Version { version: 9, of: "x".into() });
        let change = crate::history::calls::Change { key: "notes/a".into(), put: None, guard };
        let mut batch =
            Batch { user: "u".into(), request_id: "r".into(), changes: vec![change], done: None, refused: None };
        assert_eq!(request(&batch, 5).if_incarnation, 5);
        batch.changes[0].guard = Some(Guard::Absent);
        assert_eq!(request(&batch, 5).if_incarnation, 0);
    }
}
