//! What a drill compares: what people have in a restored state, and what nodes serve of it.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use holdfast_archive::person::{Person, PersonRecord, read_person};
use holdfast_client::{Client, v1};
use holdfast_model::id::UserId;
use holdfast_store::{DataDir, StateStore};

use crate::commands::backup::GROUP;

/// A record that ends by itself within so long may be gone when it is read from the nodes.
const ENDING_MS: u64 = 10 * 60 * 1000;

/// So many people, spread over all of them, and what each has in the state at `path`.
pub fn people_in(path: &Path, wanted: usize) -> anyhow::Result<BTreeMap<UserId, Person>> {
    let mut chosen = Vec::new();
    {
        let data = DataDir::open(path)?;
        let state = StateStore::open(&data, GROUP)?;
        let view = state.view();
        // Every n-th, with n doubled whenever there are too many: one pass, whatever their number.
        let mut step = 1;
        for (n, user) in view.users()?.enumerate() {
            let (user, _) = user?;
            if n % step == 0 {
                chosen.push(user);
            }
            if wanted > 0 && chosen.len() > 2 * wanted {
                chosen = chosen.into_iter().step_by(2).collect();
                step *= 2;
            }
        }
    }
    if wanted > 0 {
        chosen.truncate(wanted.max(1));
    }
    let mut people = BTreeMap::new();
    for user in chosen {
        if let Some(person) = read_person(path, GROUP, &user)? {
            people.insert(user, person);
        }
    }
    Ok(people)
}

/// Live records that a node serves, by collection and id.
pub type Served = BTreeMap<String, BTreeMap<String, v1::Record>>;

/// What a node serves of somebody, in the collections that the archive has.
pub async fn served(client: &Client, user: &UserId, person: &Person) -> Result<Served, holdfast_client::Error> {
    let collections: BTreeSet<&str> = person.records.iter().map(|record| record.key.collection.as_str()).collect();
    let mut all = Served::new();
    for collection in collections {
        let request = v1::ListRecordsRequest {
            user_id: user.as_str().to_owned(),
            collection: collection.to_owned(),
            ..Default::default()
        };
        let listed = client.list_all(request).await?.into_iter();
        let by_id = listed.filter_map(|record| Some((record.key.clone()?.record_id, record)));
        all.insert(collection.to_owned(), by_id.collect());
    }
    Ok(all)
}

/// The first difference, in words that name nobody.
pub fn difference(person: &Person, served: &Served, now_ms: u64) -> Option<String> {
    let stays = |record: &&PersonRecord| record.expire_time.is_none_or(|at| at.0 > now_ms + ENDING_MS);
    let mut known = 0;
    for record in &person.records {
        let of = served.get(record.key.collection.as_str());
        let found = of.and_then(|of| of.get(record.key.record_id.as_str()));
        known += u64::from(found.is_some());
        match found {
            None if stays(&record) => return Some(format!("a record at version {} is missing", record.version.0)),
            None => {}
            Some(found) if found.version != record.version.0 => {
                return Some(format!("a record has version {}, not {}", found.version, record.version.0));
            }
            Some(found) if found.payload[..] != record.payload[..] || found.content_type != record.content_type => {
                return Some(format!("a record at version {} has other bytes", record.version.0));
            }
            Some(_) => {}
        }
    }
    let all: u64 = served.values().map(|of| of.len() as u64).sum();
    (all > known).then(|| format!("{} records are there that should not be", all - known))
}

#[cfg(test)]
mod tests {
    use holdfast_model::id::{Collection, Millis, RecordId, RecordKey, Version};

    use super::*;

    const NOW_MS: u64 = 1_000_000_000;

    fn record(id: &str, version: u64) -> PersonRecord {
        let key = RecordKey {
            collection: Collection::new("notes").expect("a collection"),
            record_id: RecordId::new(id).expect("an id"),
        };
        PersonRecord {
            key,
            version: Version(version),
            content_type: "text/plain".into(),
            payload: id.to_owned().into_bytes().into(),
            update_time: Millis(1),
            expire_time: None,
        }
    }

    fn shown(record: &PersonRecord) -> v1::Record {
        v1::Record {
            version: record.version.0,
            content_type: record.content_type.clone(),
            payload: record.payload.clone(),
            ..Default::default()
        }
    }

    #[test]
    fn every_difference_between_archive_and_nodes_is_seen() {
        let person = Person { head: Version(9), records: vec![record("a", 1), record("b", 2)] };
        let whole: BTreeMap<String, v1::Record> =
            person.records.iter().map(|one| (one.key.record_id.as_str().to_owned(), shown(one))).collect();
        let check = |change: &dyn Fn(&mut BTreeMap<String, v1::Record>)| {
            let mut of = whole.clone();
            change(&mut of);
            difference(&person, &Served::from([("notes".to_owned(), of)]), NOW_MS)
        };
        assert_eq!(check(&|_| {}), None);
        type Change = fn(&mut BTreeMap<String, v1::Record>);
        let cases: [(Change, &str); 5] = [
            (|of| drop(of.remove("b")), "is missing"),
            (|of| of.get_mut("b").expect("b").version = 3, "version 3, not 2"),
            (|of| of.get_mut("a").expect("a").payload = "x".into(), "other bytes"),
            (|of| of.get_mut("a").expect("a").content_type = "x".into(), "other bytes"),
            (|of| drop(of.insert("c".into(), v1::Record::default())), "1 records are there that should not be"),
        ];
        for (change, expected) in cases {
            let told = check(&change).expect(expected);
            assert!(told.contains(expected) && !told.contains("notes"), "{told}");
        }
        // One that ends by itself may be gone already.
        let ends = |at_ms| PersonRecord { expire_time: Some(Millis(at_ms)), ..record("a", 1) };
        let gone = |at_ms| {
            let person = Person { head: Version(9), records: vec![ends(at_ms)] };
            difference(&person, &Served::from([("notes".to_owned(), BTreeMap::new())]), NOW_MS)
        };
        assert_eq!((gone(NOW_MS + 1), gone(NOW_MS + ENDING_MS + 1).is_some()), (None, true));
    }
}
