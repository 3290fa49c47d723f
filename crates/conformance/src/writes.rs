//! Batches: one version, distinct keys, no change without a change. 3, 11, 12.

use holdfast_client::SyncOutcome;
use holdfast_wire::status::details_of;
use tonic::Code;

use crate::case::{Case, batch, delete, put};
use crate::device::{Device, content_hash};
use crate::failure::Outcome;
use crate::{check, check_eq};

/// 3: One version per batch; strictly increasing, gap-free within an epoch, also under concurrent writers.
///
/// Break: `Version::next_in` (model/src/id.rs) adds 2, or `Writing::mutate` gives each ordinal a version of its own.
pub async fn c03_a_batch_takes_one_version_without_gaps(case: &Case) -> Outcome {
    let user = case.user("one");
    let first = case.put(&user, "a", "0").await?;
    check_eq!(first.version & 0xffff_ffff_ffff, 1, "counter of a user's first version");
    check!(first.version >> 48 >= 1, "expected an epoch above 0, saw version {:#x}", first.version);
    let batched = case.write(&user, vec![put("b", "1"), put("c", "1"), delete("a")]).await?;
    check_eq!(batched.version, first.version + 1, "version of the second commit, a batch of three");
    for (index, result) in batched.results.iter().enumerate() {
        check!(
            result.changed && result.version == batched.version,
            "expected result {index} changed at {:#x}, saw {result:?}",
            batched.version
        );
    }
    check_eq!(batched.results.len(), 3, "results, one per mutation");
    // Concurrent writers share one sequence: every counter once, none left out.
    let writers = (0..8).map(|writer| {
        let user = user.clone();
        async move {
            let mut versions = Vec::new();
            for n in 0..5 {
                versions.push(case.put(&user, &format!("w{writer}"), &format!("{n}")).await?.version);
            }
            check!(versions.is_sorted_by(|a, b| a < b), "expected one writer's versions to rise, saw {versions:x?}");
            Ok(versions)
        }
    });
    let written: Result<Vec<Vec<u64>>, crate::failure::Failure> =
        futures::future::join_all(writers).await.into_iter().collect();
    let mut versions: Vec<u64> = written?.into_iter().flatten().collect();
    versions.sort_unstable();
    let expected: Vec<u64> = (1..=40).map(|n| batched.version + n).collect();
    check_eq!(versions, expected, "versions of 40 concurrent commits");
    // Another user has a sequence of its own.
    let other = case.put(&case.user("other"), "a", "0").await?;
    check_eq!(other.version, first.version, "first version of another user");
    Ok(())
}

/// 11: A key twice in a batch is refused, whatever is done to it, and nothing of the batch is applied.
///
/// Break: `api::batch_write` (wire/src/api.rs) without `keys.insert`.
pub async fn c11_a_key_twice_in_a_batch_is_refused(case: &Case) -> Outcome {
    let user = case.user("one");
    let head = case.put(&user, "there", "0").await?.version;
    for (what, mutations) in [
        ("two puts", vec![put("a", "1"), put("b", "1"), put("a", "2")]),
        ("two equal puts", vec![put("a", "1"), put("a", "1")]),
        ("put and delete", vec![put("there", "1"), delete("there")]),
        ("two deletes", vec![delete("there"), delete("there")]),
    ] {
        let status = case.refused_write(&batch(&user, mutations)).await.map_err(|failure| failure.at(what))?;
        let reason = details_of(&status).reason;
        check!(
            status.code() == Code::InvalidArgument && reason == "INVALID_FIELD",
            "{what}: expected INVALID_ARGUMENT/INVALID_FIELD, saw {:?}/{reason}: {}",
            status.code(),
            status.message()
        );
    }
    let device = case.device(&user).await?;
    check_eq!(device.records.len(), 1, "records after refused batches");
    check_eq!(case.put(&user, "next", "0").await?.version, head + 1, "next version after refused batches");
    // The same id in two collections is two keys.
    let two = case.write(&user, vec![put("same", "1"), crate::case::put_in("notes", "same", "1")]).await?;
    check!(two.results.iter().all(|result| result.changed), "expected two changes, saw {:?}", two.results);
    Ok(())
}

/// 12: An identical put changes nothing: no version, no feed entry; in a batch only what differs counts.
///
/// Break: `Writing::mutate` (model/src/transition/writing.rs) without the comparison of content hashes.
pub async fn c12_an_identical_put_changes_nothing(case: &Case) -> Outcome {
    let user = case.user("one");
    let first = case.write(&user, vec![put("a", "same"), put("b", "old")]).await?;
    let mut device = Device::new(&user);
    device.sync(case.client(), 0).await?;
    let again = case.put(&user, "a", "same").await?;
    check!(!again.replayed, "expected a new request to be judged, saw a replay");
    check!(!again.results[0].changed, "expected changed = false for an identical put, saw {:?}", again.results);
    check_eq!(again.results[0].version, first.version, "version of a record that did not change");
    check_eq!(again.version, first.version, "version of a batch that changed nothing");
    let synced = device.sync(case.client(), 0).await?;
    check_eq!(synced.keys(), vec![], "feed after an identical put");
    // A delete of nothing changes nothing either.
    let nothing = case.delete(&user, "never").await?;
    check!(!nothing.results[0].changed, "expected changed = false for a delete of nothing, saw {:?}", nothing.results);
    let mixed = case.write(&user, vec![put("a", "same"), put("b", "new")]).await?;
    let changed: Vec<bool> = mixed.results.iter().map(|result| result.changed).collect();
    check_eq!(changed, vec![false, true], "changes of a batch with one identical put");
    check_eq!(mixed.version, first.version + 1, "version of the next change");
    let expected = vec![("contacts".to_owned(), "b".to_owned())];
    check_eq!(device.sync(case.client(), 0).await?.keys(), expected, "feed after a half-identical batch");
    // Another media type is another content, and its hash is the one the API defines.
    let typed = case.client().put(jepsen_tests::cluster::contact(&user, "a"), "text/vcard", "same").await?;
    check!(typed.results[0].changed, "expected another media type to be a change, saw {:?}", typed.results);
    let stored = case.get(&user, "a").await?.unwrap_or_default();
    let expected = content_hash("text/vcard", b"same", 0);
    check_eq!(stored.content_hash.to_vec(), expected, "content hash, recomputed");
    // After a delete the same content is a change again.
    case.delete(&user, "a").await?;
    let back = case.client().put(jepsen_tests::cluster::contact(&user, "a"), "text/vcard", "same").await?;
    check!(back.results[0].changed, "expected a put on a tombstone to be a change, saw {:?}", back.results);
    let answer = case.client().changes(device.question(0)).await?;
    check!(matches!(answer.outcome, SyncOutcome::Page(_)), "expected a page, saw {:?}", answer.outcome);
    Ok(())
}
