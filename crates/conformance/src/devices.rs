//! What is forgotten, and when: tombstones, devices, records with a TTL. 31, 32, 33.

use std::time::{Duration, Instant};

use holdfast_wire::{Timestamp, v1};
use tonic::Response;
use v1::read_consistency::Level;

use crate::case::{Case, batch, delete, key, put};
use crate::device::{Device, content_hash, key_of};
use crate::failure::{Failure, Outcome};
use crate::target::{Node, Target, resync_of, settled, timed};
use crate::{check, check_eq};

/// Ages longer than this are not waited for.
const SHORT_MS: i64 = 5_000;
const PATIENCE: Duration = Duration::from_secs(15);

/// Milliseconds of a time.
fn ms(time: Option<Timestamp>) -> i64 {
    time.map_or(0, |time| time.seconds * 1000 + i64::from(time.nanos) / 1_000_000)
}

/// A cluster that forgets within seconds.
async fn brisk(case: &Case) -> Result<Target, Failure> {
    let target = match &case.stage {
        Some(stage) if !stage.knows("sync.tombstone_age_ms") => {
            return Err(Failure::skipped("the binary knows no sync.tombstone_age_ms"));
        }
        Some(stage) => stage.brisk().await?,
        None => case.target.clone(),
    };
    let user = case.user("age");
    target.client().write(batch(&user, vec![put("a", "1")])).await?;
    target.client().write(batch(&user, vec![delete("a")])).await?;
    let get = v1::BatchGetRecordsRequest { user_id: user, keys: vec![key("contacts", "a")], ..Default::default() };
    let found = target.client().read(get).await?.records;
    // Forgotten already: brisk enough.
    let Some(tombstone) = found.first() else { return Ok(target) };
    check!(tombstone.purge_time.is_some(), "expected purge_time on a tombstone, saw {tombstone:?}");
    let age = ms(tombstone.purge_time) - ms(tombstone.delete_time);
    if age > SHORT_MS {
        return Err(Failure::skipped(format!(
            "tombstones are kept for {} s here; start the cluster with --set sync.tombstone_age_ms=1000",
            age / 1000
        )));
    }
    Ok(target)
}

async fn ack(node: &Node, device: &Device, name: &str) -> Result<(), Failure> {
    let request = v1::AckCursorRequest {
        user_id: device.user.clone(),
        device_id: name.to_owned(),
        sync_token: device.token.clone(),
    };
    let call = || async { node.sync().ack_cursor(timed(request.clone(), Duration::from_secs(5))).await };
    settled(call).await?;
    Ok(())
}

async fn facts(node: &Node, user: &str) -> Result<v1::GetUserResponse, Failure> {
    let request = v1::GetUserRequest { user_id: user.to_owned(), consistency: None };
    Ok(settled(|| node.user(&request)).await?)
}

async fn listed(node: &Node, user: &str) -> Result<Vec<v1::Device>, Failure> {
    let request = v1::ListDevicesRequest { user_id: user.to_owned() };
    let call = || async { node.sync().list_devices(timed(request.clone(), Duration::from_secs(5))).await };
    Ok(settled(call).await?.into_inner().devices)
}

async fn stored(target: &Target, user: &str, id: &str) -> Result<Option<v1::Record>, Failure> {
    Ok(target.client().get(jepsen_tests::cluster::contact(user, id)).await?)
}

/// A user of test 31, and the highest horizon seen.
struct Watched<'a> {
    target: &'a Target,
    user: String,
    horizon: u64,
}

impl Watched<'_> {
    fn node(&self) -> &Node {
        &self.target.nodes[0]
    }

    /// The horizon, which never falls, whichever node says it.
    async fn horizon(&mut self) -> Result<u64, Failure> {
        for node in &self.target.nodes {
            let seen = facts(node, &self.user).await?.tombstone_horizon;
            check!(seen >= self.horizon, "expected the horizon never to fall below {:#x}, saw {seen:#x}", self.horizon);
            self.horizon = seen;
        }
        Ok(self.horizon)
    }

    /// The tombstone stays for longer than the age.
    async fn stays(&mut self, id: &str, version: u64, why: &str) -> Outcome {
        let end = Instant::now() + Duration::from_millis(2200);
        while Instant::now() < end {
            let found = stored(self.target, &self.user, id).await?;
            check!(
                found.is_some_and(|one| one.delete_time.is_some()),
                "expected the tombstone of {id} kept: {why}; saw it gone"
            );
            let horizon = self.horizon().await?;
            check!(horizon < version, "expected a horizon below {version:#x}: {why}; saw {horizon:#x}");
            tokio::time::sleep(Duration::from_millis(150)).await;
        }
        Ok(())
    }

    /// The tombstone goes, and the horizon says so.
    async fn goes(&mut self, id: &str, version: u64, why: &str) -> Outcome {
        let end = Instant::now() + PATIENCE;
        loop {
            let found = stored(self.target, &self.user, id).await?;
            let horizon = self.horizon().await?;
            check!(found.is_some() || horizon >= version, "expected no tombstone gone above the horizon {horizon:#x}");
            if found.is_none() {
                return Ok(());
            }
            check!(Instant::now() < end, "expected the tombstone of {id} forgotten: {why}; saw it after {PATIENCE:?}");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }
}

/// 31: A tombstone is kept until its age has passed and every device has acknowledged it, or was dropped, or was silent
/// for too long; the horizon never falls and covers whatever is gone.
///
/// Break: `expire::judge` (model/src/transition/expire.rs) purges by age without asking the devices, or sets
/// `tombstone_horizon` to the tombstone's version where it was higher.
pub async fn c31_a_tombstone_is_kept_until_age_and_acks(case: &Case) -> Outcome {
    let target = brisk(case).await?;
    let user = case.user("one");
    let client = target.client();
    let mut watched = Watched { target: &target, user: user.clone(), horizon: 0 };
    client.write(batch(&user, ["a", "b", "c", "keep"].map(|id| put(id, "1")).to_vec())).await?;
    let mut phone = Device::new(&user);
    phone.sync(client, 0).await?;
    let laptop = phone.clone();
    ack(watched.node(), &phone, "phone").await?;
    ack(watched.node(), &laptop, "laptop").await?;
    let gone = client.write(batch(&user, vec![delete("a")])).await?.version;
    let tombstone = stored(&target, &user, "a").await?.unwrap_or_default();
    check!(
        ms(tombstone.purge_time) > ms(tombstone.delete_time),
        "expected purge_time after delete_time, saw {tombstone:?}"
    );
    phone.sync(client, 0).await?;
    ack(watched.node(), &phone, "phone").await?;
    watched.stays("a", gone, "the laptop has not acknowledged it").await?;
    // Cursors, in order of the id; an older ack moves nothing back.
    ack(watched.node(), &laptop, "phone").await?;
    let devices = listed(watched.node(), &user).await?;
    let seen: Vec<(&str, bool)> =
        devices.iter().map(|one| (one.device_id.as_str(), one.acked_version >= gone)).collect();
    check_eq!(seen, vec![("laptop", false), ("phone", true)], "devices, and whether they acknowledged the tombstone");
    check!(devices.iter().all(|one| ms(one.ack_time) > 0), "expected the time of the last ack, saw {devices:?}");
    let old = laptop.clone();
    let mut laptop = laptop;
    let told = laptop.sync(client, 0).await?;
    check!(
        told.keys().contains(&("contacts".into(), "a".into())),
        "expected the laptop to be told, saw {:?}",
        told.keys()
    );
    ack(watched.node(), &laptop, "laptop").await?;
    watched.goes("a", gone, "everyone has acknowledged it").await?;
    let info = resync_of(client.changes(old.question(0)).await?.outcome)?;
    check_eq!(info.reason(), v1::ResyncReason::TokenExpired, "reason for a token below the horizon");
    check!(info.tombstone_horizon >= gone, "expected the horizon in the resync, saw {info:?}");
    // Dropped: a device that never acknowledges holds nothing any more.
    ack(watched.node(), &laptop, "old watch").await?;
    let gone = client.write(batch(&user, vec![delete("b")])).await?.version;
    phone.sync(client, 0).await?;
    laptop.sync(client, 0).await?;
    ack(watched.node(), &phone, "phone").await?;
    ack(watched.node(), &laptop, "laptop").await?;
    watched.stays("b", gone, "the old watch has not acknowledged it").await?;
    for _ in 0..2 {
        let drop = v1::DropDeviceRequest { user_id: user.clone(), device_id: "old watch".into() };
        let call = || async { watched.node().sync().drop_device(timed(drop.clone(), Duration::from_secs(5))).await };
        settled(call).await?;
    }
    watched.goes("b", gone, "whoever had not acknowledged it was dropped").await?;
    // Silent for too long: dropped by itself. Only with known ages.
    if case.stage.is_some() {
        let gone = client.write(batch(&user, vec![delete("c")])).await?.version;
        phone.sync(client, 0).await?;
        ack(watched.node(), &phone, "phone").await?;
        watched.goes("c", gone, "whoever had not acknowledged it was silent for too long").await?;
        let left = listed(watched.node(), &user).await?;
        check!(left.iter().all(|one| one.device_id != "laptop"), "expected the silent laptop dropped, saw {left:?}");
    }
    check!(stored(&target, &user, "keep").await?.is_some(), "expected a live record kept, saw it gone");
    Ok(())
}

async fn manifest(node: &Node, user: &str) -> Result<Vec<v1::GetManifestResponse>, Failure> {
    let request = v1::GetManifestRequest { user_id: user.to_owned(), ..Default::default() };
    let call = || async {
        let answer = node.sync().get_manifest(timed(request.clone(), Duration::from_secs(10))).await;
        let mut stream = answer.map(Response::into_inner)?;
        let mut chunks = Vec::new();
        while let Some(chunk) = stream.message().await? {
            chunks.push(chunk);
        }
        Ok(chunks)
    };
    Ok(settled(call).await?)
}

/// 32: An expired token leads to the manifest, and that gives the right verdict: deleted (absent, at or below the
/// horizon), kept (there), changed (there, other hash), lost by the server (absent, above the horizon).
///
/// Break: `judge` (server/src/resync.rs) without `Verdict::Expired`; or the manifest's horizon is the head.
pub async fn c32_an_expired_token_reconciles_by_manifest(case: &Case) -> Outcome {
    let target = brisk(case).await?;
    let (user, client, node) = (case.user("one"), target.client(), &target.nodes[1 % target.nodes.len()]);
    client.write(batch(&user, ["same", "changed", "deleted"].map(|id| put(id, "1")).to_vec())).await?;
    let mut away = Device::new(&user);
    away.sync(client, 0).await?;
    let gone = client.write(batch(&user, vec![delete("deleted")])).await?.version;
    let end = Instant::now() + PATIENCE;
    while stored(&target, &user, "deleted").await?.is_some() {
        check!(Instant::now() < end, "expected the tombstone forgotten within {PATIENCE:?}, saw it");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    // A device that has not acknowledged holds the next tombstone, so that the manifest shows it.
    let mut holder = Device::new(&user);
    holder.sync(client, 0).await?;
    ack(node, &holder, "holder").await?;
    let changed =
        client.write(batch(&user, vec![put("changed", "2"), put("new", "1"), put("brief", "1")])).await?.version;
    client.write(batch(&user, vec![delete("brief")])).await?;
    for place in 0..target.nodes.len() {
        let info = resync_of(target.client_of(place)?.changes(away.question(0)).await?.outcome)?;
        check_eq!(
            info.reason(),
            v1::ResyncReason::TokenExpired,
            "reason for a token from before a forgotten tombstone"
        );
        check!(
            info.tombstone_horizon >= gone && info.tombstone_horizon < changed,
            "expected the horizon between {gone:#x} and {changed:#x}, saw {info:?}"
        );
        check!(info.start_after_ms < 60_000, "expected a start soon for one user, saw {info:?}");
    }
    let chunks = manifest(node, &user).await?;
    let last = chunks.last().cloned().unwrap_or_default();
    check!(
        chunks.first().is_some_and(|chunk| chunk.header.is_some()),
        "expected a header in the first chunk, saw {chunks:?}"
    );
    check!(
        last.tombstone_horizon >= gone && last.tombstone_horizon < changed,
        "expected the horizon between {gone:#x} and {changed:#x}, saw {:#x}",
        last.tombstone_horizon
    );
    let records: Vec<&v1::Record> = chunks.iter().flat_map(|chunk| &chunk.records).collect();
    let versions: Vec<u64> = records.iter().map(|record| record.version).collect();
    check!(versions.is_sorted(), "expected the manifest in order of version, saw {versions:x?}");
    check!(records.iter().all(|record| record.payload.is_empty()), "expected no payloads, saw {records:?}");
    let of = |id: &str| records.iter().find(|record| key_of(record).1 == id);
    // Verdicts for each record that the device has, and for one that it never sent.
    for (id, verdict) in [("same", "kept"), ("changed", "changed"), ("deleted", "deleted")] {
        let own = &away.records[&("contacts".to_owned(), id.to_owned())];
        let seen = match of(id) {
            Some(theirs) if theirs.content_hash == own.content_hash => "kept",
            Some(_) => "changed",
            None if own.version <= last.tombstone_horizon => "deleted",
            None => "lost by the server",
        };
        check_eq!(seen, verdict, "verdict on {id}");
    }
    check!(of("never sent").is_none(), "expected nothing of a record that was never sent");
    check!(
        of("brief").is_some_and(|record| record.delete_time.is_some()),
        "expected the kept tombstone in the manifest, saw {records:?}"
    );
    check_eq!(
        of("new").map(|one| one.content_hash.to_vec()),
        Some(content_hash("text/plain", b"1", 0)),
        "hash of `new`"
    );
    // A record that the device holds above the horizon and that is absent would be one that the server lost.
    check!(
        changed > last.tombstone_horizon,
        "expected what was written last above the horizon, saw {:#x}",
        last.tombstone_horizon
    );
    // And from the manifest's token the feed goes on without a gap.
    client.write(batch(&user, vec![put("after", "1")])).await?;
    let mut device = Device { token: last.sync_token, ..Device::new(&user) };
    let expected: Vec<crate::device::Key> = vec![("contacts".into(), "after".into())];
    check_eq!(device.sync(client, 0).await?.keys(), expected, "changes since the manifest's token");
    let nobody = manifest(node, &case.user("nobody")).await?;
    check!(
        nobody.len() == 1 && nobody[0].records.is_empty() && !nobody[0].sync_token.is_empty(),
        "expected one empty chunk with a token for a user never seen, saw {nobody:?}"
    );
    Ok(())
}

fn with_ttl(id: &str, payload: &str, ttl_seconds: u32) -> v1::Mutation {
    let mut mutation = put(id, payload);
    if let Some(v1::mutation::Op::Put(put)) = &mut mutation.op {
        put.ttl_seconds = ttl_seconds;
    }
    mutation
}

/// 33: A TTL ends in a committed tombstone at a new version, the same on every replica, in the feed of everyone; not
/// before its time; a new TTL starts anew, and a put without one keeps the record.
///
/// Break: reads hide records whose `expire_time` has passed instead of `Expire` committing a tombstone
/// (model/src/transition/expire.rs), or the tombstone takes the record's old version.
pub async fn c33_a_ttl_ends_in_a_committed_tombstone(case: &Case) -> Outcome {
    let (user, client) = (case.user("one"), case.client());
    let request = v1::BatchWriteRequest {
        device_id: "phone".into(),
        ..batch(&user, vec![with_ttl("a", "1", 1), with_ttl("long", "1", 3600), with_ttl("freed", "1", 1)])
    };
    client.write(request).await?;
    let live = case.get(&user, "a").await?.unwrap_or_default();
    if live.delete_time.is_none() {
        let lasts = ms(live.expire_time) - ms(live.update_time);
        check!((500..=2000).contains(&lasts), "expected expire_time a second after update_time, saw {lasts} ms");
        check_eq!(
            live.content_hash.to_vec(),
            content_hash("text/plain", b"1", 1),
            "content hash, which covers the TTL"
        );
    }
    let mut device = case.device(&user).await?;
    let early = device.token.clone();
    let freed = case.put(&user, "freed", "1").await?;
    check!(freed.results[0].changed, "expected a put without TTL to be a change, saw {freed:?}");
    let again = client.write(batch(&user, vec![with_ttl("long", "1", 3600)])).await?;
    check!(again.results[0].changed, "expected the same TTL again to be a change, saw {again:?}");
    let end = Instant::now() + PATIENCE;
    let tombstone = loop {
        let found = case.get(&user, "a").await?.unwrap_or_default();
        if found.delete_time.is_some() {
            break found;
        }
        check!(Instant::now() < end, "expected the record to end within {PATIENCE:?} of its TTL of 1 s, saw {found:?}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    };
    check!(
        tombstone.version > again.version,
        "expected a version of its own, above {:#x}, saw {tombstone:?}",
        again.version
    );
    check!(
        ms(tombstone.delete_time) >= ms(live.expire_time),
        "expected no end before {:?}, saw {tombstone:?}",
        live.expire_time
    );
    let header = device.sync(client, 0).await?.header;
    let level = Level::AtLeast(v1::AtLeast {
        incarnation: header.incarnation,
        applied_index: header.applied_index,
        group_id: header.group_id,
    });
    let get = v1::BatchGetRecordsRequest {
        user_id: user.clone(),
        keys: vec![key("contacts", "a")],
        consistency: Some(v1::ReadConsistency { level: Some(level) }),
        ..Default::default()
    };
    for node in &case.target.nodes {
        let found = settled(|| node.get(&get)).await?.records;
        check_eq!(found, vec![tombstone.clone()], "the tombstone on {}", node.address);
    }
    // Nobody's own write: also who wrote the record hears of its end.
    let question = v1::GetChangesRequest {
        exclude_device_id: "phone".into(),
        sync_token: early,
        ..Device::new(&user).question(0)
    };
    let page = crate::target::page_of(client.changes(question).await?.outcome)?;
    let told = page.records.iter().any(|one| key_of(one).1 == "a" && one.delete_time.is_some());
    check!(told, "expected the tombstone in the feed of the device that wrote the record, saw {:?}", page.records);
    let left: Vec<&str> = device.records.keys().map(|(_, id)| id.as_str()).collect();
    check_eq!(left, vec!["freed", "long"], "live records after the end of `a`");
    tokio::time::sleep(Duration::from_millis(1500)).await;
    check!(case.get(&user, "freed").await?.is_some_and(|one| one.delete_time.is_none()), "expected `freed` to live on");
    Ok(())
}
