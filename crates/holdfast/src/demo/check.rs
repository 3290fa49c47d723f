//! The comparison: every acknowledged record is read back and compared, byte for byte, with what was sent.

use std::collections::{BTreeSet, HashMap};

use futures::{StreamExt, TryStreamExt};
use holdfast_client::{Client, v1};
use indicatif::ProgressBar;

use crate::demo::ledger::Ack;
use crate::demo::load::people_in_order;
use crate::portable::people::MadeRecord;

const READERS: usize = 8;

/// What a comparison found.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Compared {
    /// Records that are there with equal bytes.
    pub equal: u64,
    /// Numbers of records that are not there, or are different.
    pub missing: BTreeSet<u64>,
}

/// Compares `acks`, ascending by number, with what the cluster answers to linearizable reads.
pub async fn compare(client: &Client, acks: &[Ack], seed: u64, bar: &ProgressBar) -> anyhow::Result<Compared> {
    let checks = by_user(people_in_order(seed, acks)).map(|(user, records)| async move {
        let found = read(client, user, &records).await?;
        let missing: Vec<u64> = differing(&records, &found);
        bar.inc(records.len() as u64);
        anyhow::Ok((records.len() as u64, missing))
    });
    let all = futures::stream::iter(checks).buffer_unordered(READERS);
    let summed = all.try_fold(Compared::default(), |mut sum, (count, missing)| {
        sum.equal += count - missing.len() as u64;
        sum.missing.extend(missing);
        std::future::ready(Ok(sum))
    });
    summed.await
}

type Sent = (u64, MadeRecord);

/// Records of one person follow each other.
fn by_user(records: impl Iterator<Item = (Ack, (String, MadeRecord))>) -> impl Iterator<Item = (String, Vec<Sent>)> {
    let mut records = records.peekable();
    std::iter::from_fn(move || {
        let (ack, (user, first)) = records.next()?;
        let mut all = vec![(ack.number, first)];
        while let Some((ack, (_, record))) = records.next_if(|(_, (next, _))| *next == user) {
            all.push((ack.number, record));
        }
        Some((user, all))
    })
}

async fn read(client: &Client, user_id: String, records: &[Sent]) -> anyhow::Result<Vec<v1::Record>> {
    let key = |(_, record): &Sent| v1::RecordKey {
        collection: record.collection.to_owned(),
        record_id: record.record_id.clone(),
    };
    let keys = records.iter().map(key).collect();
    Ok(client.read_all(v1::BatchGetRecordsRequest { user_id, keys, ..Default::default() }).await?)
}

/// Numbers of what was sent and is not there with equal bytes.
fn differing(sent: &[Sent], found: &[v1::Record]) -> Vec<u64> {
    let by_key: HashMap<(&str, &str), &v1::Record> = found
        .iter()
        .filter_map(|record| record.key.as_ref().map(|key| ((key.collection.as_str(), key.record_id.as_str()), record)))
        .collect();
    let is_there = |record: &MadeRecord| {
        by_key.get(&(record.collection, record.record_id.as_str())).is_some_and(|found| {
            found.delete_time.is_none() && found.payload == record.payload && found.content_type == record.content_type
        })
    };
    sent.iter().filter(|(_, record)| !is_there(record)).map(|(number, _)| *number).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sent(number: u64, id: &str, payload: &[u8]) -> Sent {
        let record = MadeRecord {
            collection: "contacts",
            record_id: id.into(),
            content_type: "text/vcard",
            payload: payload.to_vec(),
        };
        (number, record)
    }

    fn found(id: &str, payload: &'static [u8]) -> v1::Record {
        v1::Record {
            key: Some(v1::RecordKey { collection: "contacts".into(), record_id: id.into() }),
            content_type: "text/vcard".into(),
            payload: payload.into(),
            ..Default::default()
        }
    }

    #[test]
    fn missing_deleted_and_different_records_are_all_found() {
        let sent = [sent(1, "a", b"1"), sent(2, "b", b"2"), sent(3, "c", b"3"), sent(4, "d", b"4"), sent(5, "e", b"5")];
        let deleted = v1::Record { delete_time: Some(Default::default()), ..found("c", b"3") };
        let other_type = v1::Record { content_type: "text/plain".into(), ..found("e", b"5") };
        let found = [found("a", b"1"), found("b", b"x"), deleted, other_type];
        assert_eq!(differing(&sent, &found), [2, 3, 4, 5]);
    }

    #[test]
    fn records_are_grouped_by_person_and_none_is_dropped() {
        let start = (std::time::SystemTime::now(), std::time::Instant::now());
        let acks: Vec<Ack> =
            (0..200).filter(|n| n % 3 != 0).map(|n| super::super::ledger::tests::ack(n, n, start, 0)).collect();
        let groups: Vec<(String, Vec<Sent>)> = by_user(people_in_order(7, &acks)).collect();
        assert_eq!(groups.iter().map(|(_, records)| records.len()).sum::<usize>(), acks.len());
        let users: BTreeSet<&String> = groups.iter().map(|(user, _)| user).collect();
        assert_eq!(users.len(), groups.len());
    }
}
