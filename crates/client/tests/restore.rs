//! Uploading again after a rollback, against a node that judges guards as the contract says.

mod fake;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use fake::{Node, Say};
use holdfast_client::resync::{Kept, Rollback};
use holdfast_client::{Client, Error, RetryBudget, v1};
use holdfast_model::id::Version;
use holdfast_model::outcome::{Conflict, Rejection};
use holdfast_wire::status::Refusal;
use tonic::Status;
use v1::mutation::Op;
use v1::precondition::Check;

const LONG: Duration = Duration::from_secs(20);
const COMMON: u64 = 10;

#[derive(Debug, Clone, PartialEq)]
struct Stored {
    version: u64,
    /// Under which lost version it was uploaded again.
    lost: Option<u64>,
    put: Option<v1::PutOp>,
}

#[derive(Debug, Default)]
struct Server {
    stored: BTreeMap<String, Stored>,
    head: u64,
}

impl Server {
    fn write(&mut self, request: &v1::BatchWriteRequest) -> Say<v1::BatchWriteResponse> {
        let mut conflicts = Vec::new();
        let mut changes = Vec::new();
        let mut results = Vec::new();
        for (index, mutation) in request.mutations.iter().enumerate() {
            let id = mutation.key.as_ref().expect("has a key").record_id.clone();
            let put = match mutation.op.as_ref().expect("has an op") {
                Op::Put(put) => Some(put.clone()),
                _ => None,
            };
            let Some(Check::Restore(guard)) = mutation.precondition.and_then(|it| it.check) else {
                panic!("unguarded: {mutation:?}");
            };
            assert_eq!((guard.common_version, guard.lost_incarnation), (COMMON, 7));
            let old = self.stored.get(&id);
            let same = old.is_some_and(|old| old.lost == Some(guard.lost_version) && old.put == put);
            let passes =
                old.is_none_or(|old| old.version <= COMMON || old.lost.is_some_and(|it| it < guard.lost_version));
            if !same && !passes {
                let current_version = Version(old.map_or(0, |old| old.version));
                conflicts.push(Conflict { index: index as u32, current_version, deleted: false, content_hash: None });
            }
            results.push(v1::MutationResult { changed: !same, version: 0 });
            if !same {
                changes.push((id, Stored { version: self.head + 1, lost: Some(guard.lost_version), put }));
            }
        }
        if !conflicts.is_empty() {
            conflicts.truncate(32);
            return Say::No(Refusal::Rejected(Rejection::VersionMismatch { conflicts, head: None }, None).into());
        }
        self.head += 1;
        self.stored.extend(changes);
        Say::Yes(v1::BatchWriteResponse { version: self.head, results, ..Default::default() })
    }

    /// What people see: the versions aside.
    fn contents(&self) -> BTreeMap<String, Option<v1::PutOp>> {
        self.stored.iter().map(|(id, stored)| (id.clone(), stored.put.clone())).collect()
    }
}

fn serve(node: &Node) -> Arc<Mutex<Server>> {
    let server = Arc::new(Mutex::new(Server { head: 100, ..Default::default() }));
    let behind = server.clone();
    node.said.write.by(move |request| behind.lock().unwrap().write(request));
    server
}

fn client(node: &Node) -> Client {
    Client::builder().endpoints([node.address.clone()]).deadline(LONG).attempt_timeout(LONG).build().expect("valid")
}

fn rollback() -> Rollback {
    let reason = v1::ResyncReason::RolledBack as i32;
    let info = v1::ResyncInfo { reason, common_version: COMMON, ..Default::default() };
    Rollback::new("ann", "phone", 7, &info).expect("a rollback")
}

fn kept(id: &str, version: u64, content: Option<&str>) -> Kept {
    let key = v1::RecordKey { collection: "notes".into(), record_id: id.into() };
    let put = content.map(|text| v1::PutOp { payload: text.as_bytes().to_vec().into(), ..Default::default() });
    Kept { key, version, put }
}

#[tokio::test]
async fn exactly_the_conflicting_records_are_left_out_and_reported() {
    let node = Node::start();
    let server = serve(&node);
    let all: Vec<Kept> = (0..700).map(|n| kept(&format!("n{n:03}"), 20 + n, Some("phone's"))).collect();
    // Written since the restore, more of them than one answer names.
    let newer: Vec<&Kept> = all.iter().step_by(7).collect();
    let theirs = v1::PutOp { payload: "theirs".into(), ..Default::default() };
    for kept in &newer {
        let stored = Stored { version: 90, lost: None, put: Some(theirs.clone()) };
        server.lock().unwrap().stored.insert(kept.key.record_id.clone(), stored);
    }
    let report = client(&node).restore(&rollback(), all.clone()).await.expect("uploaded");
    assert_eq!((report.applied, report.unchanged, report.conflicts.len()), (600, 0, 100));
    let left_out: Vec<&Kept> = report.conflicts.iter().map(|conflict| &conflict.kept).collect();
    assert_eq!(left_out, newer);
    assert!(report.conflicts.iter().all(|conflict| conflict.conflict.current_version == 90));
    for (n, (id, content)) in server.lock().unwrap().contents().iter().enumerate() {
        let expected = if n % 7 == 0 { Some(&theirs) } else { all[n].put.as_ref() };
        assert_eq!(content.as_ref(), expected, "{id}");
    }
    let calls = node.said.write.calls();
    assert!(calls.iter().all(|call| call.request.user_id == "ann" && call.request.device_id == "phone"));
    let mut ids: Vec<&str> = calls.iter().map(|call| call.request.request_id.as_str()).collect();
    ids.sort_unstable();
    ids.dedup();
    assert_eq!(ids.len(), calls.len(), "a batch with other mutations is another request");
    // Again, as after an error: nothing more happens.
    let again = client(&node).restore(&rollback(), all).await.expect("uploaded");
    assert_eq!((again.applied, again.unchanged, again.conflicts.len()), (0, 600, 100));
}

#[tokio::test]
async fn devices_reach_one_outcome_in_either_order() {
    let a = [
        kept("edited twice", 20, Some("older")),
        kept("deleted later", 21, Some("was here")),
        kept("brought back", 22, None),
        kept("both have it", 23, Some("same")),
        kept("only a", 24, Some("a")),
        kept("shared", COMMON, Some("known to the server")),
    ];
    let b = [
        kept("edited twice", 30, Some("newer")),
        kept("deleted later", 31, None),
        kept("brought back", 32, Some("again")),
        kept("both have it", 23, Some("same")),
        kept("only b", 33, None),
    ];
    let mut outcomes = Vec::new();
    for devices in [[&a[..], &b[..]], [&b[..], &a[..]]] {
        let node = Node::start();
        let server = serve(&node);
        for (device, other) in [(devices[0], devices[1]), (devices[1], devices[0])] {
            let report = client(&node).restore(&rollback(), device.to_vec()).await.expect("uploaded");
            let newer =
                |conflict: &Kept| other.iter().any(|it| it.key == conflict.key && it.version > conflict.version);
            assert!(report.conflicts.iter().all(|conflict| newer(&conflict.kept)), "{report:?}");
        }
        let contents = server.lock().unwrap().contents();
        outcomes.push(contents);
    }
    assert_eq!(outcomes[0], outcomes[1]);
    let text = |id: &str| outcomes[0][id].as_ref().map(|put| String::from_utf8(put.payload.to_vec()).expect("text"));
    assert_eq!(text("edited twice").as_deref(), Some("newer"));
    assert_eq!(text("deleted later"), None);
    assert_eq!(text("brought back").as_deref(), Some("again"));
    assert_eq!((text("only a").as_deref(), text("only b")), (Some("a"), None));
    assert!(!outcomes[0].contains_key("shared"));
}

#[tokio::test]
async fn a_lost_answer_is_asked_for_with_the_same_id_and_other_errors_end_it() {
    let node = Node::start();
    let server = serve(&node);
    let behind = server.clone();
    let mut lost = 2;
    node.said.write.by(move |request| {
        let answer = behind.lock().unwrap().write(request);
        lost -= 1;
        if lost >= 0 { Say::No(Refusal::OutcomeUnknown { deadline: true }.into()) } else { answer }
    });
    // No retry inside of a call: each ends with the outcome unknown.
    let budget = RetryBudget { percent: 0, per_second: 0, saved_max: 0 };
    let builder = Client::builder().endpoints([node.address.clone()]).deadline(LONG).attempt_timeout(LONG);
    let short = builder.retry_budget(budget).build().expect("valid");
    let report = short.restore(&rollback(), [kept("a", 20, Some("x"))]).await.expect("uploaded");
    assert_eq!(report.applied + report.unchanged, 1);
    let calls = node.said.write.calls();
    assert!(calls.len() == 3 && calls.iter().all(|call| call.request == calls[0].request), "one request");

    node.said.write.by(|_| Say::No(Refusal::Rejected(Rejection::IncarnationMismatch, None).into()));
    let error = client(&node).restore(&rollback(), [kept("a", 20, Some("x"))]).await.expect_err("refused");
    assert_eq!(error.reason(), "INCARNATION_MISMATCH");
    // A node that breaks its promise is not asked for ever.
    for conflicts in
        [Vec::new(), vec![Conflict { index: 5, current_version: Version(1), deleted: false, content_hash: None }]]
    {
        node.said.write.by(move |_| {
            let rejection = Rejection::VersionMismatch { conflicts: conflicts.clone(), head: None };
            Say::No(Status::from(Refusal::Rejected(rejection, None)))
        });
        let error = client(&node).restore(&rollback(), [kept("a", 20, Some("x"))]).await.expect_err("nonsense");
        assert!(matches!(error, Error::Internal { .. }), "{error:?}");
    }
    let none = client(&node).restore(&rollback(), [kept("a", COMMON, Some("x"))]).await.expect("nothing to do");
    assert_eq!(none, Default::default());
}
