//! What crashes must not undo: acknowledged writes, and the unity of a batch. 1, 2.

pub mod field;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

use holdfast_client::{Client, Error};
use holdfast_wire::v1;
use jepsen_tests::cluster::contact;

use crate::case::{Case, batch, key, put};
use crate::device::Device;
use crate::failure::{Failure, Outcome};
use crate::{check, check_eq};

type Acknowledged = BTreeMap<String, u64>;

/// Writes until it is told to end; gives what was acknowledged.
async fn writer(client: Client, user: String, name: usize, end: Arc<AtomicBool>) -> Result<Acknowledged, Failure> {
    let mut acknowledged = Acknowledged::new();
    for n in 0.. {
        if end.load(Relaxed) {
            break;
        }
        let id = format!("w{name}-{n}");
        match client.put(contact(&user, &id), "text/plain", "x").await {
            Ok(answer) => drop(acknowledged.insert(id, answer.version)),
            // Not acknowledged, so nothing is promised.
            Err(Error::OutcomeUnknown { .. } | Error::Unavailable { .. }) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(acknowledged)
}

/// 1: An acknowledged write survives kill -9 of any single node, the leader included, and afterwards of all at once;
/// every node shows it, once, at the version that was acknowledged.
///
/// Break: `LogStore::append` (store/src/log.rs) acknowledges before its fsync; or a proposal is answered before commit.
pub async fn c01_an_acknowledged_write_survives_any_minority_crash(case: &Case) -> Outcome {
    let mut field = case.stage()?.field().await?;
    field.heal().await?;
    let (user, end) = (case.user("one"), Arc::new(AtomicBool::new(false)));
    let client = field.target.client().clone();
    let writers: Vec<_> =
        (0..6).map(|name| tokio::spawn(writer(client.clone(), user.clone(), name, end.clone()))).collect();
    let leader = field.leader().await;
    for victim in [leader, (leader + 1) % 3, (leader + 2) % 3] {
        tokio::time::sleep(Duration::from_millis(250)).await;
        let killed = field.kill(victim);
        let by = killed.signal.is_none_or(|signal| signal == libc::SIGKILL);
        check!(by, "expected node {} to end by SIGKILL, saw {killed:?}", victim + 1);
        tokio::time::sleep(Duration::from_millis(400)).await;
        field.restart(victim);
        field.status_becomes(victim, "a leader in sight", |status| status.groups[0].leader_id != 0).await?;
    }
    end.store(true, Relaxed);
    let mut acknowledged = Acknowledged::new();
    for writer in writers {
        acknowledged.extend(writer.await.map_err(|error| Failure::broken(error.to_string()))??);
    }
    check!(acknowledged.len() > 30, "expected writes to go on between crashes, saw {} only", acknowledged.len());
    field.restart_all().await?;
    let target = field.target.clone();
    let header = Device::new(&user).sync(target.client(), 0).await?.header;
    for (place, node) in target.nodes.iter().enumerate() {
        let mut device = Device::new(&user);
        let own = target.client_of(place)?;
        let synced = device.sync(&own, 0).await?;
        check!(
            synced.header.applied_index >= header.applied_index,
            "expected {} to be as new, saw it older",
            node.address
        );
        for (id, version) in &acknowledged {
            let found = device.records.get(&("contacts".to_owned(), id.clone())).map(|record| record.version);
            check_eq!(found, Some(*version), "acknowledged write {id} on {} after the crashes", node.address);
        }
    }
    case.note(format!("{} writes over 4 crashes", acknowledged.len()));
    Ok(())
}

/// 2: A batch commits whole or not at all, to every reader at every moment, also when the leader dies under it.
///
/// Break: `Writing::mutate` applied per mutation in a commit of its own (store/src/apply.rs: one RocksDB batch each).
pub async fn c02_a_batch_commits_whole_or_not_at_all(case: &Case) -> Outcome {
    let mut field = case.stage()?.field().await?;
    field.heal().await?;
    let (user, end) = (case.user("one"), Arc::new(AtomicBool::new(false)));
    let target = field.target.clone();
    let writers: Vec<_> = (0..4)
        .map(|writer| {
            let (client, user, end) = (target.client().clone(), user.clone(), end.clone());
            tokio::spawn(async move {
                for n in 0.. {
                    if end.load(Relaxed) {
                        break;
                    }
                    let payload = format!("{writer}-{n}");
                    // Whatever comes of it, readers see all or nothing.
                    let _ =
                        client.write(batch(&user, (0..5).map(|id| put(&format!("k{id}"), &payload)).collect())).await;
                }
            })
        })
        .collect();
    let readers: Vec<_> = (0..3)
        .map(|place| {
            let (target, user, end) = (target.clone(), user.clone(), end.clone());
            tokio::spawn(async move { reader(&target, place, &user, &end).await })
        })
        .collect();
    for _ in 0..2 {
        tokio::time::sleep(Duration::from_millis(500)).await;
        field.change_leader().await?;
    }
    tokio::time::sleep(Duration::from_millis(300)).await;
    end.store(true, Relaxed);
    for writer in writers {
        writer.await.map_err(|error| Failure::broken(error.to_string()))?;
    }
    let mut looked = 0;
    for reader in readers {
        looked += reader.await.map_err(|error| Failure::broken(error.to_string()))??;
    }
    check!(looked > 20, "expected many reads between the crashes, saw {looked}");
    field.restart_all().await?;
    let seen = reader(&field.target.clone(), 0, &user, &AtomicBool::new(true)).await?;
    check_eq!(seen, 1, "looks after the restart");
    case.note(format!("{looked} reads over 2 leader crashes"));
    Ok(())
}

/// Reads all five records again and again; they must always be of one batch. Gives how often it was answered.
async fn reader(target: &crate::target::Target, place: usize, user: &str, end: &AtomicBool) -> Result<u32, Failure> {
    let node = &target.nodes[place];
    let request = v1::BatchGetRecordsRequest {
        user_id: user.to_owned(),
        keys: (0..5).map(|id| key("contacts", &format!("k{id}"))).collect(),
        ..Default::default()
    };
    let (mut looked, mut newest) = (0, 0);
    loop {
        let last = end.load(Relaxed);
        let answer = if last { crate::target::settled(|| node.get(&request)).await } else { node.get(&request).await };
        if let Ok(answer) = answer {
            looked += 1;
            let first = answer.records.first().map(|record| (record.version, record.payload.clone()));
            let whole = answer.records.len() == 5 || answer.records.is_empty();
            let alike = answer.records.iter().all(|record| Some((record.version, record.payload.clone())) == first);
            check!(whole && alike, "expected five records of one batch, saw {:?}", answer.records);
            let version = first.map_or(0, |(version, _)| version);
            check!(version >= newest, "expected versions never to go back, saw {version:#x} after {newest:#x}");
            newest = version;
        } else {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        if last {
            return Ok(looked);
        }
    }
}
