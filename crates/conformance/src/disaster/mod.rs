//! After every node was lost: tokens, guards and re-uploads against restored clusters. 24 to 30.

pub mod scene;
pub mod staged;

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use holdfast_client::Error;
use holdfast_wire::status::details_of;
use holdfast_wire::v1;
use jepsen_tests::chance::Chance;
use scene::{How, Past, Scene};
use v1::precondition::Check;
use v1::read_consistency::Level;

use crate::case::{Case, batch, delete, guarded, key, put};
use crate::device::{Device, Key};
use crate::failure::{Failure, Outcome};
use crate::target::{Target, resync_of, settled};
use crate::{check, check_eq};

/// 24: A token at or below the fork continues without a resync, on every node, also from the middle of a sync.
///
/// Break: `judge` (server/src/resync.rs) answers RolledBack for `token.version >= common`, or knows no ancestors.
pub async fn c24_a_token_at_the_fork_continues(case: &Case) -> Outcome {
    let scene = &*case.stage()?.scene(&case.run).await?;
    let (target, past) = (scene.target().await?, &scene.pasts[0]);
    for (place, node) in target.nodes.iter().enumerate() {
        let own = target.client_of(place)?;
        let mut device = past.kept.clone();
        let synced = device.sync(&own, 0).await.map_err(|failure| failure.at(&node.address))?;
        check_eq!(synced.keys(), vec![], "changes since a token at the fork, on {}", node.address);
        device.agrees_with(&synced.pages[0])?;
    }
    // Below the fork, too: the rest of what was kept comes, and nothing else.
    let mut whole = Device::new(&past.user);
    whole.sync(target.client(), 0).await?;
    check_eq!(whole.contents(), past.kept.contents(), "state after the restore");
    check_eq!(whole.records.len(), 5, "records after the restore");
    let written = target.client().write(batch(&past.user, vec![put("k9", "after")])).await?;
    check!(written.version > past.common, "expected versions to rise over the fork, saw {:#x}", written.version);
    check_eq!(written.version >> 48, (past.common >> 48) + 1, "epoch after one restore");
    check_eq!(written.version & 0xffff_ffff_ffff, 1, "counter of the first commit in a new epoch");
    let mut device = past.kept.clone();
    let expected: Vec<Key> = vec![("contacts".into(), "k9".into())];
    check_eq!(
        device.sync(target.client(), 0).await?.keys(),
        expected,
        "changes after the restore, since the old token"
    );
    Ok(())
}

/// 25: A token beyond the fork is answered ROLLED_BACK with the exact common version, before and after new writes, on
/// every node; the resume token continues from there.
///
/// Break: `record_forks` (model/src/transition/writing.rs) records the head after the commit, or `judge`
/// (server/src/resync.rs) compares with the head only.
pub async fn c25_a_token_beyond_the_fork_is_rolled_back(case: &Case) -> Outcome {
    let scene = &*case.stage()?.scene(&case.run).await?;
    let (target, past) = (scene.target().await?, &scene.pasts[1]);
    let rolled_back = async |device: &Device, common: u64, when: &str| -> Result<v1::ResyncInfo, Failure> {
        let mut last = v1::ResyncInfo::default();
        for place in 0..target.nodes.len() {
            let answer = target.client_of(place)?.changes(device.question(0)).await?;
            last = resync_of(answer.outcome).map_err(|failure| failure.at(when))?;
            check_eq!(last.reason(), v1::ResyncReason::RolledBack, "{when}: reason of the resync");
            check_eq!(last.common_version, common, "{when}: common version");
            check!(!last.resume_token.is_empty(), "{when}: expected a resume token, saw none");
            check_eq!(last.collection_order.first().map(String::as_str), Some("contacts"), "{when}: what comes first");
            check!(last.start_after_ms < 60_000, "{when}: expected a start soon, saw {last:?}");
        }
        Ok(last)
    };
    for (name, device) in [("phone", &past.phone), ("laptop", &past.laptop)] {
        rolled_back(device, past.common, &format!("the {name}, before any write")).await?;
    }
    rolled_back(&scene.newcomer, 0, "a user whom only the lost part knew").await?;
    let info = rolled_back(&past.phone, past.common, "again").await?;
    let mut resumed = Device { token: info.resume_token, ..past.kept.clone() };
    check_eq!(resumed.sync(target.client(), 0).await?.keys(), vec![], "changes since the resume token");
    // As many commits as were lost, so that the counters meet.
    for n in 0..12 {
        target.client().write(batch(&past.user, vec![put("later", &format!("{n}"))])).await?;
    }
    rolled_back(&past.laptop, past.common, "the laptop, after new writes").await?;
    target.client().write(batch(&scene.newcomer.user, vec![put("later", "x")])).await?;
    rolled_back(&scene.newcomer, 0, "a newcomer who wrote again").await?;
    let expected: Vec<Key> = vec![("contacts".into(), "later".into())];
    check_eq!(resumed.sync(target.client(), 0).await?.keys(), expected, "new writes, since the resume token");
    let ack = v1::AckCursorRequest {
        user_id: past.user.clone(),
        device_id: "phone".into(),
        sync_token: past.phone.token.clone(),
    };
    let mut acks = target.nodes[0].sync();
    match acks.ack_cursor(ack).await {
        Ok(_) => Err(Failure::broken("expected an ack of a lost token to be refused, saw it taken")),
        Err(status) if details_of(&status).reason == "UNSUPPORTED" => {
            case.note("without AckCursor, which this server lacks");
            Ok(())
        }
        Err(status) => {
            check_eq!(details_of(&status).reason, "TOKEN_NOT_CURRENT", "reason for an ack of a lost token");
            Ok(())
        }
    }
}

/// 26: Two restores from one backup are told apart although their versions are equal numbers: by tokens, by guards, by
/// session reads.
///
/// Break: `restore run` (holdfast/src/commands/restore.rs) takes the incarnation from the archive instead of chance.
pub async fn c26_two_restores_are_told_apart(case: &Case) -> Outcome {
    let scene = &*case.stage()?.scene(&case.run).await?;
    let (first, past) = (scene.target().await?, &scene.pasts[2]);
    let of_first = first.client().write(batch(&past.user, vec![put("k0", "first")])).await?;
    let mut device = past.kept.clone();
    device.sync(first.client(), 0).await?;
    scene.restore_again("second").await?;
    let second = scene.target().await?;
    let of_second = second.client().write(batch(&past.user, vec![put("k0", "second")])).await?;
    check_eq!(of_second.version, of_first.version, "first version after each of two restores (the test's premise)");
    second.client().write(batch(&past.user, vec![put("k1", "second")])).await?;
    let (one, other) = (of_first.header.unwrap_or_default(), of_second.header.unwrap_or_default());
    check!(one.incarnation != other.incarnation, "expected two incarnations, saw {:#x} twice", one.incarnation);
    check!(
        ![one.incarnation, other.incarnation].contains(&scene.lost_incarnation),
        "expected an incarnation other than the lost one, saw it again"
    );
    for place in 0..second.nodes.len() {
        let answer = second.client_of(place)?.changes(device.question(0)).await?;
        let info =
            resync_of(answer.outcome).map_err(|failure| failure.at("the first restore's token at the second"))?;
        check_eq!(info.reason(), v1::ResyncReason::UnknownIncarnation, "reason for the other restore's token");
        check_eq!(info.common_version, 0, "common version with a history that is not known");
    }
    let guard = |incarnation| v1::BatchWriteRequest {
        if_incarnation: incarnation,
        ..batch(&past.user, vec![guarded(put("k0", "guarded"), Check::Version(of_first.version))])
    };
    let status = refused(&second, &guard(one.incarnation)).await?;
    check_eq!(details_of(&status).reason, "INCARNATION_MISMATCH", "reason for the other restore's guard");
    let by_head = v1::BatchWriteRequest {
        if_head: Some(of_first.version + 1),
        if_incarnation: one.incarnation,
        ..batch(&past.user, vec![put("k0", "guarded")])
    };
    let status = refused(&second, &by_head).await?;
    check_eq!(details_of(&status).reason, "INCARNATION_MISMATCH", "reason for the other restore's if_head");
    let level = Level::AtLeast(v1::AtLeast { incarnation: one.incarnation, applied_index: 1, group_id: 0 });
    let get = v1::BatchGetRecordsRequest {
        user_id: past.user.clone(),
        keys: vec![key("contacts", "k0")],
        consistency: Some(v1::ReadConsistency { level: Some(level) }),
        ..Default::default()
    };
    match settled(|| second.nodes[0].get(&get)).await {
        Ok(answer) => {
            return Err(Failure::broken(format!("expected a session of the other restore refused, saw {answer:?}")));
        }
        Err(status) => check_eq!(details_of(&status).reason, "INCARNATION_MISMATCH", "reason for the other's session"),
    }
    let kept = second.client().get(jepsen_tests::cluster::contact(&past.user, "k0")).await?.unwrap_or_default();
    check_eq!(kept.payload.as_ref(), b"second", "content after the refused guards");
    second.client().write(guard(other.incarnation)).await?;
    // A re-upload from the other restore names a history that this one does not descend from.
    let foreign = upload(&past.user, put("k1", "first"), of_first.version, past.common, one.incarnation);
    let status = refused(&second, &foreign).await?;
    skip_unsupported(&status)?;
    check_eq!(details_of(&status).reason, "INCARNATION_MISMATCH", "reason for a RestoreGuard of the other restore");
    Ok(())
}

async fn refused(target: &Target, request: &v1::BatchWriteRequest) -> Result<tonic::Status, Failure> {
    match settled(|| target.nodes[0].write(request)).await {
        Err(status) => Ok(status),
        Ok(answer) => Err(Failure::broken(format!("expected a refusal, saw a commit at {:#x}", answer.version))),
    }
}

fn skip_unsupported(status: &tonic::Status) -> Outcome {
    if details_of(status).reason == "UNSUPPORTED" {
        return Err(Failure::skipped(format!(
            "all but the RestoreGuard held; this server lacks it: {}",
            status.message()
        )));
    }
    Ok(())
}

/// 27: A restored node that was not moved to a new history does not serve: without its mark, with a damaged one, or
/// alone, when nobody could commit the new history; with the mark and a quorum it does.
///
/// Break: `Replica::is_opened` (replica/src/handle.rs) answers true, or `marker::read` (archive/src/marker.rs) takes a
/// missing mark of a restored directory for none needed.
pub async fn c27_a_restore_without_the_bump_does_not_serve(case: &Case) -> Outcome {
    let scene = &*case.stage()?.scene(&case.run).await?;
    let past = &scene.pasts[3];
    let mark = "RESTORE";
    let run = |name: &str| format!("bump-{name}");
    let serves = async |target: &Target| {
        let end = Instant::now() + Duration::from_secs(20);
        while answers(scene, past, target).await.is_none() {
            check!(Instant::now() < end, "expected restored nodes with their mark to serve within 20 s, saw them not");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        Ok(())
    };
    let found = std::sync::atomic::AtomicU32::new(0);
    let look = |data: &std::path::Path| {
        found.fetch_add(u32::from(data.join(mark).is_file()), std::sync::atomic::Ordering::Relaxed);
        Ok(())
    };
    scene.instead(&run("control"), How::Whole, &[0, 1, 2], look, serves).await?;
    check_eq!(found.into_inner(), 3, "folders with the mark of a restore (the test's premise)");
    let silent = async |target: &Target| {
        let end = Instant::now() + Duration::from_millis(3500);
        while Instant::now() < end {
            let seen = answers(scene, past, target).await;
            check!(
                seen.is_none(),
                "expected no answer from a history that was not bumped, saw {}",
                seen.unwrap_or_default()
            );
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        Ok(())
    };
    scene.instead(&run("alone"), How::Whole, &[0], |_| Ok(()), silent).await?;
    let remove = |data: &std::path::Path| std::fs::remove_file(data.join(mark));
    scene.instead(&run("mark-removed"), How::Whole, &[0, 1, 2], remove, silent).await?;
    let damage = |data: &std::path::Path| {
        let mut bytes = std::fs::read(data.join(mark))?;
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        std::fs::write(data.join(mark), bytes)
    };
    scene.instead(&run("mark-damaged"), How::Whole, &[0, 1, 2], damage, silent).await
}

/// What any node answers to any kind of read or write.
async fn answers(scene: &Scene, past: &Past, target: &Target) -> Option<String> {
    let get = |level| v1::BatchGetRecordsRequest {
        user_id: past.user.clone(),
        keys: vec![key("contacts", "k0")],
        consistency: Some(v1::ReadConsistency { level: Some(level) }),
        ..Default::default()
    };
    let old = v1::AtLeast { incarnation: scene.lost_incarnation, applied_index: 1, group_id: 0 };
    let levels = [Level::Linearizable(v1::Linearizable {}), Level::AtLeast(old), Level::MaxStalenessMs(u32::MAX)];
    let within = Duration::from_millis(300);
    for node in &target.nodes {
        for level in levels {
            let read = node.records().batch_get_records(crate::target::timed(get(level), within)).await;
            if let Ok(answer) = read {
                return Some(format!(
                    "BatchGetRecords {level:?} of {} answered {:?}",
                    node.address,
                    answer.get_ref().header
                ));
            }
        }
        let write = batch(&past.user, vec![put("k0", "kept")]);
        if let Ok(answer) = node.records().batch_write(crate::target::timed(write, within)).await {
            return Some(format!("BatchWrite of {} answered {:?}", node.address, answer.get_ref().header));
        }
        let changes = crate::target::timed(past.kept.question(0), within);
        if let Ok(answer) = node.sync().get_changes(changes).await {
            return Some(format!("GetChanges of {} answered {:?}", node.address, answer.get_ref().header));
        }
    }
    None
}

/// A mutation under a RestoreGuard.
fn upload(user: &str, mutation: v1::Mutation, lost: u64, common: u64, incarnation: u64) -> v1::BatchWriteRequest {
    let guard = v1::RestoreGuard { common_version: common, lost_version: lost, lost_incarnation: incarnation };
    batch(user, vec![guarded(mutation, Check::Restore(guard))])
}

/// What a device sends again: everything above the fork that it has or knows deleted, each in a batch of its own.
fn uploads(scene: &Scene, past: &Past, device: &Device) -> Vec<v1::BatchWriteRequest> {
    let above = device.records.iter().filter(|(_, record)| record.version > past.common);
    let puts = above.map(|((_, id), record)| (put(id, &String::from_utf8_lossy(&record.payload)), record.version));
    // The laptop saw k2, k3 and ghost go, in the last three commits before the loss.
    let deletes = ["k2", "k3", "ghost"].into_iter().zip(7..).map(|(id, n)| (delete(id), past.common + n));
    let gone = device.records.get(&("contacts".to_owned(), "new".to_owned())).map(|_| deletes);
    puts.chain(gone.into_iter().flatten())
        .map(|(mutation, lost)| upload(&past.user, mutation, lost, past.common, scene.lost_incarnation))
        .collect()
}

/// Sends one; true when it was taken, false when something newer is there.
async fn send(target: &Target, request: v1::BatchWriteRequest) -> Result<bool, Failure> {
    match target.client().write(request).await {
        Ok(_) => Ok(true),
        Err(Error::Conflict { .. }) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// 28: Devices send lost writes again in any order, and twice: one outcome, equal to what was there before the loss.
///
/// Break: `passes` (model/src/transition/write_batch.rs): `Guard::Restore` compares with `common_version` only, or
/// lets a larger stored lost version be overwritten.
pub async fn c28_devices_upload_again_in_any_order(case: &Case) -> Outcome {
    let scene = &*case.stage()?.scene(&case.run).await?;
    let target = scene.target().await?;
    let mut chance = Chance::new(case.seed, 28);
    let expected: BTreeMap<Key, (String, Vec<u8>)> = scene.pasts[4].laptop.contents();
    for (order, past) in scene.pasts[4..8].iter().enumerate() {
        let (phone, laptop) = (uploads(scene, past, &past.phone), uploads(scene, past, &past.laptop));
        check_eq!((phone.len(), laptop.len()), (4, 6), "uploads of both devices (the test's premise)");
        let mut sequence: Vec<v1::BatchWriteRequest> = match order {
            1 => laptop.into_iter().chain(phone).collect(),
            _ => phone.into_iter().chain(laptop).collect(),
        };
        if order >= 2 {
            for place in (1..sequence.len()).rev() {
                sequence.swap(place, chance.below(place + 1));
            }
        }
        let mut taken = 0;
        for request in &sequence {
            taken += u32::from(
                send(&target, request.clone()).await.map_err(|failure| failure.at(format!("order {order}")))?,
            );
        }
        check!(taken >= 6, "expected the six newest to be taken in order {order}, saw {taken}");
        let mut device = Device::new(&past.user);
        device.sync(target.client(), 0).await?;
        check_eq!(device.contents(), expected, "state after uploads in order {order}");
        // All of it once more, under new request ids: nothing changes.
        for request in sequence {
            let again = v1::BatchWriteRequest { request_id: uuid::Uuid::new_v4().to_string(), ..request };
            if let Ok(answer) = target.client().write(again).await {
                check!(!answer.results[0].changed, "expected a second upload to change nothing, saw {answer:?}");
            }
        }
        check_eq!(device.sync(target.client(), 0).await?.keys(), vec![], "feed after everything was uploaded twice");
    }
    refused_uploads(scene, &target, &scene.pasts[4]).await
}

/// Uploads that must not pass: over a later normal write, and with a wrong fork or history.
async fn refused_uploads(scene: &Scene, target: &Target, past: &Past) -> Outcome {
    let (user, common, lost) = (&past.user, past.common, scene.lost_incarnation);
    let written = target.client().write(batch(user, vec![put("k1", "after the restore")])).await?;
    let current = written.header.map_or(0, |header| header.incarnation);
    let late = upload(user, put("k1", "late"), common + 1000, common, lost);
    check!(!send(target, late).await?, "expected an upload over a later normal write to be refused, saw it taken");
    for (what, common, incarnation) in [
        ("a version above the fork as common", common + 1, lost),
        ("a version below the fork as common", common - 1, lost),
        ("a history that never was", common, lost ^ 1),
        ("the history that goes on", common, current),
        ("no history", common, 0),
    ] {
        let status = refused(target, &upload(user, put("fresh", "x"), common + 5, common, incarnation)).await;
        let status = status.map_err(|failure| failure.at(what))?;
        let reason = details_of(&status).reason;
        let fits = reason == "INCARNATION_MISMATCH" || (incarnation == 0 && reason == "INVALID_FIELD");
        check!(fits, "{what}: expected INCARNATION_MISMATCH, saw {:?}/{reason}: {}", status.code(), status.message());
    }
    // One failed guard takes the whole batch with it.
    let mut pair = upload(user, put("pair", "x"), common + 5, common, lost);
    pair.mutations.extend(upload(user, put("k1", "x"), common + 5, common, lost).mutations);
    check!(!send(target, pair).await?, "expected a batch with one failed RestoreGuard to be refused, saw it taken");
    let mut device = Device::new(user);
    device.sync(target.client(), 0).await?;
    let has = |id: &str| device.records.get(&("contacts".to_owned(), id.to_owned())).map(|one| one.payload.to_vec());
    check_eq!(has("k1"), Some(b"after the restore".to_vec()), "a later normal write, after all uploads");
    check_eq!((has("pair"), has("fresh")), (None, None), "records of refused uploads");
    Ok(())
}

/// Of 35: who is at the quota, and by re-uploads beyond it, gets back all that a rollback lost and can delete; whatever
/// else grows is refused.
pub async fn a_full_user_gets_back_what_was_lost(case: &Case) -> Outcome {
    let scene = &*case.stage()?.scene(&case.run).await?;
    let (target, past) = (scene.target().await?, &scene.pasts[9]);
    let (client, user) = (target.client(), &past.user);
    let usage = async |id: &str, payload: &str| -> Result<v1::Usage, Failure> {
        Ok(client.write(batch(user, vec![put(id, payload)])).await?.usage.unwrap_or_default())
    };
    // The leader's configuration becomes the group's a moment after the new history was opened.
    let end = Instant::now() + Duration::from_secs(10);
    let mut now = usage("filler", "0").await?;
    while now.quota_bytes == 0 {
        check!(Instant::now() < end, "expected a quota on the restored cluster within 10 s, saw none");
        tokio::time::sleep(Duration::from_millis(50)).await;
        now = usage("filler", &format!("{:?}", Instant::now())).await?;
    }
    for n in 0.. {
        let room = usize::try_from(now.quota_bytes.saturating_sub(now.used_bytes)).unwrap_or(0);
        if room == 0 {
            break;
        }
        now = usage(&format!("filler {n}"), &"f".repeat(room.min(1 << 20))).await?;
    }
    let full = async |when: &str| -> Outcome {
        match client.write(batch(user, vec![put("more", "x")])).await {
            Err(Error::Overloaded { reason, retry_after: None, .. }) if reason == "USER_QUOTA" => Ok(()),
            other => Err(Failure::broken(format!("{when}: expected a byte more refused as USER_QUOTA, saw {other:?}"))),
        }
    };
    full("filled to the last byte").await?;
    for request in uploads(scene, past, &past.laptop) {
        let taken = send(&target, request).await.map_err(|failure| failure.at("a re-upload of a full user"))?;
        check!(taken, "expected each re-upload of a full user to be taken, saw one refused");
    }
    let mut device = Device::new(user);
    device.sync(client, 0).await?;
    let mut found = device.contents();
    found.retain(|(_, id), _| !id.starts_with("filler"));
    check_eq!(found, past.laptop.contents(), "state of a full user after the re-uploads");
    full("beyond the quota by re-uploads").await?;
    let after = client.write(batch(user, vec![delete("k4")])).await?.usage.unwrap_or_default();
    check!(after.used_bytes > after.quota_bytes, "expected to be beyond the quota (the test's premise), saw {after:?}");
    Ok(())
}

/// 29: A lost delete that is sent again holds: against older content that comes later, after older content that came
/// before, and where nothing is stored.
///
/// Break: `Writing::mutate` (model/src/transition/writing.rs): `(Op::Delete, None) => unchanged` also under a
/// RestoreGuard.
pub async fn c29_lost_deletes_sent_again_hold(case: &Case) -> Outcome {
    let scene = &*case.stage()?.scene(&case.run).await?;
    let (target, past) = (scene.target().await?, &scene.pasts[8]);
    let (user, common, lost) = (&past.user, past.common, scene.lost_incarnation);
    let mut device = past.kept.clone();
    let deleted = |id: &str, n: u64| upload(user, delete(id), common + n, common, lost);
    let again = |id: &str, payload: &str, n: u64| upload(user, put(id, payload), common + n, common, lost);
    // k2: the delete first, then what it deleted.
    check!(send(&target, deleted("k2", 7)).await?, "expected a lost delete to be taken, saw it refused");
    check!(
        !send(&target, again("k2", "phone 2", 3)).await?,
        "expected older content refused after a delete, saw it taken"
    );
    // k3: nothing of it was lost but its delete.
    check!(
        send(&target, deleted("k3", 8)).await?,
        "expected a lost delete of kept content to be taken, saw it refused"
    );
    // ghost: made and deleted in the lost part; nothing is stored, and still the delete must hold.
    let ghost = target.client().write(deleted("ghost", 9)).await?;
    check!(ghost.results[0].changed, "expected a lost delete of nothing to leave a tombstone, saw {:?}", ghost.results);
    let older = past.ghost.version;
    let content = String::from_utf8_lossy(&past.ghost.payload).into_owned();
    let late = upload(user, put("ghost", &content), older, common, lost);
    check!(!send(&target, late).await?, "expected older content refused where nothing was stored, saw it taken");
    // k0: older content first, then a delete that is newer.
    check!(send(&target, again("k0", "phone 0", 1)).await?, "expected lost content to be taken, saw it refused");
    check!(send(&target, deleted("k0", 20)).await?, "expected a newer delete to be taken, saw it refused");
    let live = ["k2", "k3", "ghost", "k0"].map(|id| key("contacts", id));
    let get = v1::BatchGetRecordsRequest { user_id: user.clone(), keys: live.to_vec(), ..Default::default() };
    let found = target.client().read(get).await?.records;
    let tombstones: Vec<bool> = found.iter().map(|record| record.delete_time.is_some()).collect();
    check_eq!(tombstones, vec![true; 4], "tombstones of k2, k3, ghost and k0");
    // Devices hear of all of them.
    let synced = device.sync(target.client(), 0).await?;
    let told = synced.records().iter().filter(|record| record.delete_time.is_some()).count();
    check_eq!(told, 4, "tombstones in the feed since a token at the fork");
    let left: Vec<&str> = device.records.keys().map(|(_, id)| id.as_str()).collect();
    check_eq!(left, vec!["k1", "k4"], "records of a device at the end");
    Ok(())
}
