//! Writes outcomes, effects and rows the way the scripts show them.

use holdfast_model::command::Content;
use holdfast_model::digest::Sum;
use holdfast_model::id::{Incarnation, Millis, RecordKey, RequestId, Uid, Version};
use holdfast_model::memory::MemoryState;
use holdfast_model::outcome::{Conflict, MutationResult, Outcome, Rejection, Usage};
use holdfast_model::state::{Effect, Effects, ExpiryItem, Places, RecordRow, Sys, UserRef, UserRow};

pub fn outcome(outcome: &Outcome) -> Vec<String> {
    match outcome {
        Outcome::Done => vec!["done".into()],
        Outcome::Written(receipt) => vec![format!(
            "{} {} index={} {} results=[{}]",
            if receipt.replayed { "replayed" } else { "written" },
            version(receipt.version),
            receipt.commit_index,
            usage(receipt.usage),
            results(&receipt.results),
        )],
        Outcome::Rejected(Rejection::VersionMismatch { conflicts, head }) => {
            let head = head.map(|head| format!(" head={}", version(head))).unwrap_or_default();
            let mut lines = vec![format!("rejected VersionMismatch{head}")];
            lines.extend(conflicts.iter().map(conflict));
            lines
        }
        Outcome::Rejected(rejection) => vec![format!("rejected {rejection:?}")],
    }
}

pub fn effects(before: &Sys, effects: &Effects, after: &MemoryState) -> Vec<String> {
    let mut lines: Vec<String> = effects.rows.iter().map(|row| effect(row, after)).collect();
    if let Some(sys) = &effects.sys {
        let old = sys_fields(before);
        let moved: Vec<String> = sys_fields(sys).into_iter().filter(|field| !old.contains(field)).collect();
        lines.push(format!("sys {}", moved.join(" ")));
    }
    lines.extend(effects.touched.iter().map(|touched| {
        let collections: Vec<&str> = touched.collections.iter().map(|name| name.as_str()).collect();
        format!("wake {} at {} in {}", touched.user.as_str(), version(touched.head), collections.join(" "))
    }));
    if effects.barrier {
        lines.push("checkpoint".into());
    }
    lines
}

pub fn sys_lines(sys: &Sys) -> Vec<String> {
    sys_fields(sys)
}

pub fn user_row(row: &UserRow) -> String {
    let mut text = format!("head={} {}", version(row.head), usage(row.usage));
    for (collection, digest) in &row.collections {
        text += &format!(" {}={}:{}", collection.as_str(), digest.count, sum(digest.sum));
    }
    for fork in &row.forks {
        text += &format!(" fork({})={}", incarnation(fork.incarnation), version(fork.common));
    }
    if row.tombstone_horizon > Version(0) {
        text += &format!(" horizon={}", version(row.tombstone_horizon));
    }
    let Places { head_index, mark, mark_index, settled } = row.places;
    text += &format!(" at={head_index}");
    if mark_index > 0 {
        text += &format!(" mark={}@{mark_index}", version(mark));
    }
    if settled > Version(0) {
        text += &format!(" settled={}", version(settled));
    }
    text
}

pub fn version(version: Version) -> String {
    match version {
        Version(0) => "0".into(),
        _ => format!("{}.{}", version.epoch(), version.counter()),
    }
}

fn effect(effect: &Effect, after: &MemoryState) -> String {
    let name = |user: &UserRef| name(*user, after);
    match effect {
        Effect::PutUid(user, Uid(uid)) => format!("+ uid {} = {}", user.as_str(), version(Version(*uid))),
        Effect::PutUser(user, row) => format!("+ user {} {}", name(user), user_row(row)),
        Effect::PutRecord(user, id, row, content) => {
            format!("+ record {} {} {}", name(user), key(id), record(row, content.as_ref()))
        }
        Effect::PutChange(user, at, ordinal, row) => format!(
            "+ change {} {}#{ordinal} {} {}{}{}",
            name(user),
            version(*at),
            key(&row.key),
            hex(&row.content_hash.0),
            if row.deleted { " deleted" } else { "" },
            row.device.as_ref().map(|device| format!(" device={}", device.as_str())).unwrap_or_default(),
        ),
        Effect::DeleteChange(user, at, ordinal) => format!("- change {} {}#{ordinal}", name(user), version(*at)),
        Effect::PutRequest(user, id, row) => format!(
            "+ request {} {} {} index={} {} results=[{}] until {}",
            name(user),
            request(*id),
            version(row.version),
            row.commit_index,
            usage(row.usage),
            results(&row.results),
            time(row.expires),
        ),
        Effect::DeleteRequest(user, id) => format!("- request {} {}", name(user), request(*id)),
        Effect::DeleteRecord(user, id) => format!("- record {} {}", name(user), key(id)),
        Effect::PutDevice(user, device, row) => format!(
            "+ device {} {} acked={} at {} until {}",
            name(user),
            device.as_str(),
            version(row.acked),
            time(row.ack_time),
            time(row.expires),
        ),
        Effect::DeleteDevice(user, device) => format!("- device {} {}", name(user), device.as_str()),
        Effect::PutExpiry(at, item) => format!("+ due {} {}", time(*at), due(item, after)),
        Effect::DeleteExpiry(at, item) => format!("- due {} {}", time(*at), due(item, after)),
        Effect::PutOperation(operation) => format!(
            "+ operation {} stage={}{}",
            operation.id,
            operation.stage,
            if operation.done { " done" } else { "" }
        ),
    }
}

fn due(item: &ExpiryItem, state: &MemoryState) -> String {
    match item {
        ExpiryItem::Request(user, id) => format!("request {} {}", name(*user, state), request(*id)),
        ExpiryItem::Record(user, id) => format!("record {} {}", user.as_str(), key(id)),
        ExpiryItem::Tombstone(user, id) => format!("tombstone {} {}", name(*user, state), key(id)),
        ExpiryItem::Device(user, device) => format!("device {} {}", name(*user, state), device.as_str()),
    }
}

fn sys_fields(sys: &Sys) -> Vec<String> {
    let Sys {
        now,
        rules,
        history,
        ancestors,
        uid_counter,
        digest,
        totals,
        offsite,
        barrier_index,
        policy,
        archive_keys,
        lineage_fork,
        restoring,
        attested,
    } = sys;
    let mut fields = vec![format!("now={}", time(*now)), format!("rules={rules}")];
    if let Some(history) = history {
        let parent = history.parent.as_ref().map(|parent| format!(" parent={}", incarnation(parent.incarnation)));
        fields.push(format!(
            "history=(inc={} epoch={} index={}{})",
            incarnation(history.incarnation),
            history.epoch,
            history.genesis_index,
            parent.unwrap_or_default(),
        ));
    }
    let ancestors: Vec<String> =
        ancestors.iter().map(|ended| format!("{}:{}", incarnation(ended.incarnation), ended.epoch)).collect();
    fields.push(format!("ancestors=[{}]", ancestors.join(" ")));
    fields.push(format!("uids={uid_counter}"));
    fields.push(format!("digest={}", sum(*digest)));
    fields.push(format!("totals={}users/{}rec/{}B", totals.users, totals.records, totals.bytes));
    let offsite: Vec<String> =
        offsite.iter().map(|(name, fact)| format!("{name}:{}:by{}", fact.index, fact.verifier.0)).collect();
    fields.push(format!("offsite=[{}]", offsite.join(" ")));
    fields.push(format!("barrier={barrier_index}"));
    fields.push(format!(
        "policy=(age={} silence={} quota={})",
        time(Millis(policy.tombstone_age_ms)),
        time(Millis(policy.device_expiry_ms)),
        policy.user_quota_bytes
    ));
    if let Some(keys) = archive_keys {
        let (generation, by, since) = (keys.generation, keys.key_id[0], time(keys.since));
        fields.push(format!("keys={generation}:by{by} of inc={} since {since}", incarnation(keys.incarnation)));
    }
    if let Some(fork) = lineage_fork {
        let (at, by, since) = (fork.index, fork.verifier.0, time(fork.since));
        fields.push(format!("fork={}:{at}:by{by} since {since}", fork.destination));
    }
    if let Some(restoring) = restoring {
        let left: Vec<&str> = restoring.left.iter().map(|stage| stage.name()).collect();
        fields.push(format!("restoring={}:through={}", left.join(","), String::from_utf8_lossy(&restoring.through)));
    }
    if !attested.words.is_empty() {
        let keys: Vec<String> = attested.keys.iter().map(|(node, key)| format!("{}:{}", node.0, key[0])).collect();
        let said = attested.words.iter().map(|(index, words)| {
            let words: Vec<String> = words.iter().map(|(node, word)| format!("{}:{}", node.0, word.root[0])).collect();
            format!("{index}=({})", words.join(" "))
        });
        fields.push(format!("attested=(keys {}) {}", keys.join(" "), said.collect::<Vec<_>>().join(" ")));
    }
    fields
}

fn conflict(conflict: &Conflict) -> String {
    let Conflict { index, current_version, deleted, content_hash } = conflict;
    format!(
        "conflict {index}: {}{}{}",
        version(*current_version),
        content_hash.map(|hash| format!(" {}", hex(&hash.0))).unwrap_or_default(),
        if *deleted { " deleted" } else { "" },
    )
}

fn record(row: &RecordRow, content: Option<&Content>) -> String {
    let place = format!("{}#{} {}", version(row.version), row.ordinal, hex(&row.content_hash.0));
    let lost = row.lost.map(|lost| format!(" lost={}", version(lost))).unwrap_or_default();
    match (content, row.delete_time) {
        (Some(content), None) => {
            let (payload, bytes, at) = (&content.payload, row.payload_len, time(row.update_time));
            let expires = row.expire_time.map(|at| format!(" until {}", time(at))).unwrap_or_default();
            format!("{place} {} {payload:?} {bytes}B at {at}{expires}{lost}", row.content_type)
        }
        (None, Some(deleted)) => {
            let purge = row.purge_time.map(time).unwrap_or_default();
            format!("{place} tombstone at {} until {purge}{lost}", time(deleted))
        }
        (Some(_), Some(_)) | (None, None) => panic!("neither a record nor a tombstone"),
    }
}

fn results(results: &[MutationResult]) -> String {
    let each: Vec<String> = results
        .iter()
        .map(|result| format!("{}{}", if result.changed { "" } else { "same " }, version(result.version)))
        .collect();
    each.join(", ")
}

fn name(user: UserRef, state: &MemoryState) -> String {
    state.uids.iter().find(|(_, uid)| **uid == user.uid).map_or("?".into(), |(name, _)| name.as_str().into())
}

fn key(key: &RecordKey) -> String {
    format!("{}/{}", key.collection.as_str(), key.record_id.as_str())
}

fn request(id: RequestId) -> String {
    format!("req={}", u64::from_be_bytes(id.0[8..].try_into().unwrap()))
}

fn usage(usage: Usage) -> String {
    format!("usage={}rec/{}B", usage.record_count, usage.used_bytes)
}

fn incarnation(incarnation: Incarnation) -> String {
    incarnation.0.to_string()
}

fn sum(sum: Sum) -> String {
    hex(&sum.0)
}

/// The first three bytes: enough to see that it moved, and which moved alike.
fn hex(bytes: &[u8]) -> String {
    bytes[..3].iter().map(|byte| format!("{byte:02x}")).collect()
}

fn time(Millis(mut rest): Millis) -> String {
    let mut text = String::new();
    for (unit, factor) in [("h", 3_600_000), ("m", 60_000), ("s", 1000), ("ms", 1)] {
        if rest >= factor {
            text += &format!("{}{unit}", rest / factor);
            rest %= factor;
        }
    }
    if text.is_empty() { "0ms".into() } else { text }
}
