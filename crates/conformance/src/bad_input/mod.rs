//! Calls that no client should make: each is refused with a code and a reason, and the node serves on. 45, 47.
//!
//! Sent as bytes over gRPC (`raw`, `message`): typed clients cannot write half of them, and retry the rest.

mod message;
mod raw;
mod table;

use std::time::Duration;

use bytes::Bytes;
use holdfast_wire::v1;
use message::Message;
use raw::{Said, send, settled};
use tonic::Code;

use crate::case::{Case, key, put_in};
use crate::failure::{Failure, Outcome};
use crate::{check, check_eq};

/// Reasons that a retry helps against.
const RETRYABLE: &[&str] = &[
    "NO_LEADER",
    "REPLICA_BEHIND",
    "COLLECTION_RESTORING",
    "DRAINING",
    "NOT_FOUNDED",
    "OUTCOME_UNKNOWN",
    "TOO_SLOW",
    "OVERLOADED",
    "RATE_LIMITED",
    "DISK_FULL",
    "OUTBOX_FULL",
    "DEADLINE_TOO_SHORT",
];

/// A refusal is typed, and says to retry exactly where that helps.
fn is_typed(what: &str, said: &Said) -> Outcome {
    check!(said.code != Code::Ok, "{what}: expected a refusal, saw an answer");
    check!(!said.reason.is_empty(), "{what}: expected an ErrorInfo of domain holdfast, saw {said:?}");
    check!(!said.message.is_empty(), "{what}: expected a message for people, saw {said:?}");
    let retryable = RETRYABLE.contains(&said.reason.as_str());
    check_eq!(said.retry, retryable, "{what}: RetryInfo with {:?}/{}", said.code, said.reason);
    Ok(())
}

/// The node answers a good call.
async fn serves(case: &Case, place: usize, user: &str, after: &str) -> Outcome {
    let get =
        v1::BatchGetRecordsRequest { user_id: user.to_owned(), keys: vec![key("contacts", "a")], ..Default::default() };
    let node = case.node(place);
    let answer = crate::target::settled(|| node.get(&get)).await;
    let answer = answer.map_err(|status| Failure::from(status).at(format!("a good call after {after}")))?;
    check_eq!(answer.records.len(), 1, "records of a good call after {after}");
    Ok(())
}

/// 45: Every error has an ErrorInfo of domain `holdfast` and a message; RetryInfo wherever a retry helps, and nowhere
/// else: for every field of every request, for bytes that are none, for methods that are none; the node serves on.
///
/// Break: `Edge` (server/src/grpc/edge.rs) is left out; or `Refusal::parts` (wire/src/status.rs) gives NO_LEADER no
/// retry; or a handler returns `Status::internal("…")`.
pub async fn c45_every_error_says_why(case: &Case) -> Outcome {
    let user = case.user("one");
    let head = case.put(&user, "a", "1").await?.version;
    let place = usize::try_from(case.seed % 3).unwrap_or(0);
    let mut faults = Vec::new();
    let rows = table::rows(&user);
    for (index, row) in rows.iter().enumerate() {
        let said = settled(case.node(place), row.path, row.message.clone()).await;
        let what = &row.what;
        let fits = row.reasons.contains(&said.reason.as_str());
        // What a server does not offer yet is refused as that, whatever else is wrong with the call.
        let verdict = match (fits, said.reason.as_str()) {
            (true, _) | (_, "UNSUPPORTED") => is_typed(what, &said),
            _ => Err(Failure::broken(format!("{what}: expected {:?}, saw {said:?}", row.reasons))),
        };
        faults.extend(verdict.err());
        if index % 40 == 0 {
            serves(case, place, &user, what).await?;
        }
    }
    for path in table::UNKNOWN {
        faults.extend(is_typed(path, &send(case.node(place), path, Bytes::new()).await).err());
    }
    for timeout in
        [Duration::from_nanos(1), Duration::from_micros(500), Duration::from_millis(1), Duration::from_millis(5)]
    {
        let write = crate::case::batch(&user, vec![put_in("notes", "late", "x")]);
        let request = crate::target::timed(write, timeout);
        if let Err(status) = case.node(place).records().batch_write(request).await {
            let said = Said::of(&status);
            // The client's own clock ends some before the server can say anything.
            if !said.reason.is_empty() {
                faults.extend(is_typed(&format!("a write within {timeout:?}"), &said).err());
            }
        }
    }
    serves(case, place, &user, "all of them").await?;
    let next = case.put(&user, "a", "2").await?.version;
    check!(next <= head + 2, "expected no refused call to take a version, saw {next:#x} after {head:#x}");
    let texts: Vec<String> = faults.iter().map(Failure::to_string).collect();
    check!(texts.is_empty(), "{} of {} calls: {}", texts.len(), rows.len(), texts.join(" | "));
    case.note(format!("{} calls", rows.len() + table::UNKNOWN.len()));
    Ok(())
}

/// 47: Limits are enforced before anything is proposed: what is exactly as large as allowed is taken, one more is
/// refused, and takes no version.
///
/// Break: any `>` of `api::batch_write` (wire/src/api.rs) becomes `>=`, or a constant of model/src/limits.rs changes.
pub async fn c47_limits_are_enforced_before_propose(case: &Case) -> Outcome {
    let user = case.user("one");
    let head = case.put(&user, "a", "1").await?.version;
    let mib = 1usize << 20;
    let put = |collection: &str, id: &str, bytes: usize| put_in(collection, id, &"p".repeat(bytes));
    let within: Vec<(&str, Vec<v1::Mutation>)> = vec![
        ("a record id of 128 bytes", vec![put("contacts", &"r".repeat(128), 1)]),
        ("a record id of 128 bytes in 64 characters", vec![put("contacts", &"é".repeat(64), 1)]),
        ("a collection of 64 bytes", vec![put(&format!("x-{}", "c".repeat(62)), "c", 1)]),
        ("500 mutations", (0..500).map(|n| put("notes", &format!("n{n}"), 1)).collect()),
        ("a payload of 1 MiB", vec![put("photos", "p0", mib)]),
        ("payloads of 4 MiB", (0..4).map(|n| put("photos", &format!("p{n}"), mib)).collect()),
    ];
    let mut version = head;
    for (what, mutations) in within {
        let answer = case.write(&user, mutations).await.map_err(|failure| failure.at(what))?;
        version += 1;
        check_eq!(answer.version, version, "{what}: version");
        if what.starts_with("payloads") || what.starts_with("a payload") {
            let gone = answer
                .results
                .iter()
                .enumerate()
                .map(|(n, _)| v1::Mutation { key: Some(key("photos", &format!("p{n}"))), ..crate::case::delete("p") });
            case.write(&user, gone.collect()).await?;
            version += 1;
        }
    }
    let beyond: Vec<(&str, Vec<v1::Mutation>)> = vec![
        ("a record id of 129 bytes", vec![put("contacts", &"r".repeat(129), 1)]),
        ("a record id of 130 bytes in 65 characters", vec![put("contacts", &"é".repeat(65), 1)]),
        ("a collection of 65 bytes", vec![put(&format!("x-{}", "c".repeat(63)), "c", 1)]),
        ("501 mutations", (0..501).map(|n| put("notes", &format!("n{n}"), 1)).collect()),
        ("no mutation", Vec::new()),
        ("a payload of 1 MiB and a byte", vec![put("photos", "p0", mib + 1)]),
        (
            "payloads of 4 MiB and a byte",
            (0..5).map(|n| put("photos", &format!("p{n}"), if n < 4 { mib } else { 1 })).collect(),
        ),
    ];
    for (what, mutations) in beyond {
        let status =
            case.refused_write(&crate::case::batch(&user, mutations)).await.map_err(|failure| failure.at(what))?;
        let said = Said::of(&status);
        check!(
            said.code == Code::InvalidArgument && said.reason == "INVALID_FIELD",
            "{what}: expected INVALID_ARGUMENT/INVALID_FIELD, saw {said:?}"
        );
    }
    let huge = Message::default().bytes(1, &user).bytes(99, vec![0; 9 * mib]).done();
    let said = settled(case.node(0), table::WRITE, huge).await;
    check!(
        said.code == Code::ResourceExhausted && said.reason == "MESSAGE_TOO_LARGE",
        "a message of 9 MiB: expected RESOURCE_EXHAUSTED/MESSAGE_TOO_LARGE, saw {said:?}"
    );
    check_eq!(case.put(&user, "a", "2").await?.version, version + 1, "next version after refused calls");
    let long = format!("{:u<128}", case.user("long"));
    case.put(&long, "a", "1").await.map_err(|failure| failure.at("a user id of 128 bytes"))?;
    let status = case.refused_write(&crate::case::batch(&format!("{long}u"), vec![put("notes", "n", 1)])).await?;
    check_eq!(Said::of(&status).reason, "INVALID_FIELD", "reason for a user id of 129 bytes");
    devices(case, &user).await
}

/// 256 devices a user, and not one more; the ones that are there may go on.
async fn devices(case: &Case, user: &str) -> Outcome {
    let device = case.device(user).await?;
    let ack = |name: String| Message::default().bytes(1, user).bytes(2, name).bytes(3, &device.token).done();
    let acks = (0..256).map(|n| settled(case.node(n), table::ACK, ack(format!("device {n}"))));
    for said in futures::future::join_all(acks).await {
        if said.reason == "UNSUPPORTED" {
            case.note("without devices, which this server lacks");
            return Ok(());
        }
        check!(said.code == Code::Ok, "expected 256 devices to be taken, saw {said:?}");
    }
    let said = settled(case.node(0), table::ACK, ack("one more".into())).await;
    check!(
        said.code == Code::ResourceExhausted && said.reason == "DEVICE_LIMIT" && !said.retry,
        "device 257: expected RESOURCE_EXHAUSTED/DEVICE_LIMIT without RetryInfo, saw {said:?}"
    );
    let said = settled(case.node(1), table::ACK, ack("device 7".into())).await;
    check!(said.code == Code::Ok, "expected a device that is there to acknowledge on, saw {said:?}");
    Ok(())
}
