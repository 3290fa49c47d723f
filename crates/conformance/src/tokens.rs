//! Tokens: whose they are, and where they hold. 21, 22, 23.

use std::time::Duration;

use holdfast_wire::status::details_of;
use holdfast_wire::v1;
use jepsen_tests::chance::Chance;
use tonic::{Code, Status};
use v1::get_changes_response::Outcome as Answered;

use crate::case::{Case, batch, put};
use crate::device::Device;
use crate::failure::{Failure, Outcome};
use crate::target::{Node, settled};
use crate::{check, check_eq};

/// Another character of the token's alphabet at a place.
pub fn flipped(token: &str, place: usize) -> String {
    let mut bytes = token.as_bytes().to_vec();
    bytes[place] = if bytes[place] == b'A' { b'B' } else { b'A' };
    String::from_utf8_lossy(&bytes).into_owned()
}

async fn refused(node: &Node, request: &v1::GetChangesRequest) -> Result<Status, Failure> {
    match settled(|| node.changes(request)).await {
        Err(status) => Ok(status),
        Ok(answer) => Err(Failure::broken(format!("expected a refusal, saw {answer:?}"))),
    }
}

/// 21: A token of another user, of another filter, or with any character changed is refused by kind, on every call
/// that takes one; page tokens likewise.
///
/// Break: `SyncToken::decode` (wire/src/token.rs) without `user_tag`, without `filter`, or `unseal` without the checksum.
pub async fn c21_a_wrong_token_is_refused_by_kind(case: &Case) -> Outcome {
    let (user, other) = (case.user("one"), case.user("other"));
    case.write(&user, vec![put("a", "1"), put("b", "1"), put("c", "1")]).await?;
    case.put(&other, "a", "1").await?;
    let token = case.device(&user).await?.token;
    let ask = |user: &str, token: &str, collections: &[&str]| v1::GetChangesRequest {
        user_id: user.to_owned(),
        sync_token: token.to_owned(),
        collections: collections.iter().map(|name| (*name).to_owned()).collect(),
        ..Default::default()
    };
    let mut wrong: Vec<(String, v1::GetChangesRequest, &str)> = vec![
        ("of another user".into(), ask(&other, &token, &[]), "TOKEN_OTHER_USER"),
        ("of a user never seen".into(), ask(&case.user("nobody"), &token, &[]), "TOKEN_OTHER_USER"),
        ("under another filter".into(), ask(&user, &token, &["contacts"]), "FILTER_CHANGED"),
        ("cut off".into(), ask(&user, &token[..token.len() - 4], &[]), "TOKEN_MALFORMED"),
        ("prolonged".into(), ask(&user, &format!("{token}AAAA"), &[]), "TOKEN_MALFORMED"),
        ("twice".into(), ask(&user, &format!("{token}{token}"), &[]), "TOKEN_MALFORMED"),
        ("with a space".into(), ask(&user, &format!("{token} "), &[]), "TOKEN_MALFORMED"),
        ("of one character".into(), ask(&user, "A", &[]), "TOKEN_MALFORMED"),
        ("of nothing but its alphabet".into(), ask(&user, &"A".repeat(token.len()), &[]), "TOKEN_MALFORMED"),
    ];
    for place in 0..token.len() {
        wrong.push((
            format!("with character {place} changed"),
            ask(&user, &flipped(&token, place), &[]),
            "TOKEN_MALFORMED",
        ));
    }
    for (index, (what, request, reason)) in wrong.iter().enumerate() {
        let status = refused(case.node(index), request).await.map_err(|failure| failure.at(what))?;
        expect(what, &status, reason)?;
    }
    // A filter's token is bound to the set, not to its order.
    let pair = ask(&user, "", &["contacts", "events"]);
    let page = crate::target::page_of(case.client().changes(pair).await?.outcome)?;
    let swapped = ask(&user, &page.next_sync_token, &["events", "contacts", "events"]);
    crate::target::page_of(case.client().changes(swapped).await?.outcome)?;
    expect(
        "of a smaller filter",
        &refused(case.node(0), &ask(&user, &page.next_sync_token, &["events"])).await?,
        "FILTER_CHANGED",
    )?;
    page_tokens(case, &user, &other, &token).await
}

fn expect(what: &str, status: &Status, reason: &str) -> Outcome {
    let seen = details_of(status);
    check!(
        status.code() == Code::InvalidArgument && seen.reason == reason && seen.retry_after.is_none(),
        "a token {what}: expected INVALID_ARGUMENT/{reason} without RetryInfo, saw {:?}/{}: {}",
        status.code(),
        seen.reason,
        status.message()
    );
    Ok(())
}

async fn page_tokens(case: &Case, user: &str, other: &str, sync_token: &str) -> Outcome {
    let list = v1::ListRecordsRequest {
        user_id: user.to_owned(),
        collection: "contacts".into(),
        page_size: 1,
        ..Default::default()
    };
    let first = settled(|| case.node(0).list(&list)).await?;
    let token = first.next_page_token;
    check!(!token.is_empty(), "expected a page token after one of three records, saw none");
    let with = |token: &str| v1::ListRecordsRequest { page_token: token.to_owned(), ..list.clone() };
    for (what, request, reason) in [
        (
            "of pages, for another user",
            v1::ListRecordsRequest { user_id: other.to_owned(), ..with(&token) },
            "FILTER_CHANGED",
        ),
        (
            "of pages, for another collection",
            v1::ListRecordsRequest { collection: "notes".into(), ..with(&token) },
            "FILTER_CHANGED",
        ),
        ("of pages, in another order", v1::ListRecordsRequest { order: 1, ..with(&token) }, "FILTER_CHANGED"),
        ("of pages, with tombstones", v1::ListRecordsRequest { show_deleted: true, ..with(&token) }, "FILTER_CHANGED"),
        ("of pages, changed", with(&flipped(&token, token.len() / 2)), "TOKEN_MALFORMED"),
        ("of a sync, for a listing", with(sync_token), "TOKEN_MALFORMED"),
    ] {
        match settled(|| case.node(1).list(&request)).await {
            Err(status) => expect(what, &status, reason)?,
            Ok(answer) => return Err(Failure::broken(format!("a token {what}: expected a refusal, saw {answer:?}"))),
        }
    }
    let as_sync = v1::GetChangesRequest { user_id: user.to_owned(), sync_token: token, ..Default::default() };
    expect("of pages, for a sync", &refused(case.node(0), &as_sync).await?, "TOKEN_MALFORMED")
}

/// 22: A token is valid on every node: after a leader change, after a snapshot install on the node that answers, after
/// restarts.
///
/// Break: `SyncToken::encode` (wire/src/token.rs) carries the node's id and `decode` checks it; or a snapshot leaves
/// `chg` rows out (store/src/load.rs).
pub async fn c22_a_token_is_valid_on_every_node(case: &Case) -> Outcome {
    let mut field = case.stage()?.field().await?;
    field.heal().await?;
    let (user, target) = (case.user("one"), field.target.clone());
    let client = target.client();
    for n in 0..8 {
        client.write(batch(&user, vec![put(&format!("k{n}"), "1")])).await?;
    }
    let mut device = Device::new(&user);
    device.step(client, 3).await?;
    let midway = device.clone();
    device.sync(client, 0).await?;
    client.write(batch(&user, vec![put("k0", "2"), crate::case::delete("k1")])).await?;
    let mut expected = device.clone();
    expected.sync(client, 0).await?;
    let everywhere = async |when: &str| -> Outcome {
        for (place, node) in target.nodes.iter().enumerate() {
            for (from, start) in [("an up-to-date", &device), ("a paging", &midway)] {
                // A node that was away may still lag; a token is no older for that.
                let mut device = start.linearizable();
                let own = target.client_of(place)?;
                let synced =
                    device.sync(&own, 2).await.map_err(|failure| failure.at(format!("{when}, {from} token")))?;
                check_eq!(device.records, expected.records, "{when}: state of {from} token on {}", node.address);
                device.agrees_with(synced.pages.last().unwrap_or(&v1::ChangesPage::default()))?;
            }
        }
        Ok(())
    };
    everywhere("at once").await?;
    field.change_leader().await?;
    everywhere("after a leader change").await?;
    field.install_snapshot(&case.run).await?;
    everywhere("after a snapshot install").await?;
    field.restart_all().await?;
    case.note("membership changes are not offered yet");
    everywhere("after a restart of all nodes").await
}

/// 23: A follower that lags behind a token waits for it or answers REPLICA_BEHIND; it never calls it one of the future
/// and never answers an older state.
///
/// Break: `changes` (server/src/grpc/changes.rs) without the refusal for `look.ahead`, or `Replica::read` without
/// `wait_applied`.
pub async fn c23_a_lagging_follower_waits_or_says_so(case: &Case) -> Outcome {
    let mut field = case.stage()?.field().await?;
    field.heal().await?;
    let (user, target) = (case.user("one"), field.target.clone());
    let client = target.client();
    let mut chance = Chance::new(case.seed, 23);
    let (mut waited, mut behind) = (0, 0);
    for round in 0..6 {
        let leader = field.leader().await;
        let follower = (leader + 1 + chance.below(2)) % 3;
        let stopped = field.stop(follower);
        let mut last = 0;
        for n in 0..15 {
            last = client.write(batch(&user, vec![put(&format!("k{n}"), &format!("{round}"))])).await?.version;
        }
        let mut device = Device::new(&user);
        let header = device.sync(client, 0).await?.header;
        let level = v1::read_consistency::Level::AtLeast(v1::AtLeast {
            incarnation: header.incarnation,
            applied_index: header.applied_index,
            group_id: header.group_id,
        });
        let explicit = Some(v1::ReadConsistency { level: Some(level) });
        let questions = (0..8).map(|n| {
            let (node, target, mut request) = (&target.nodes[follower], &target, device.question(0));
            if n % 2 == 1 {
                request.consistency = explicit;
            }
            let listing = v1::BatchGetRecordsRequest {
                user_id: user.clone(),
                keys: vec![crate::case::key("contacts", "k14")],
                consistency: explicit,
                ..Default::default()
            };
            async move {
                // Some wait at the door while the node is stopped, others come as it wakes up.
                tokio::time::sleep(Duration::from_millis(30 * n)).await;
                let _ = target;
                (node.changes(&request).await, node.get(&listing).await)
            }
        });
        let answers = tokio::join!(futures::future::join_all(questions), async {
            tokio::time::sleep(Duration::from_millis(100)).await;
            drop(stopped);
        });
        for (changes, read) in answers.0 {
            match changes {
                Ok(v1::GetChangesResponse { outcome: Some(Answered::Page(page)), .. }) => {
                    check!(page.records.is_empty(), "expected nothing new since the token, saw {page:?}");
                    waited += 1;
                }
                Ok(other) => return Err(Failure::broken(format!("expected a page or REPLICA_BEHIND, saw {other:?}"))),
                Err(status) => behind += told_to_retry(&status)?,
            }
            match read {
                Ok(answer) => {
                    let seen = answer.records.first().map(|record| record.version);
                    check_eq!(seen, Some(last), "version read at_least its own commit, round {round}");
                }
                Err(status) => behind += told_to_retry(&status)?,
            }
        }
    }
    case.note(format!("{waited} waited, {behind} told to retry"));
    check!(waited > 0, "expected some calls to be answered once the follower caught up, saw none");
    Ok(())
}

/// 1 when a refusal says that a retry helps; anything else is none that a lagging node may give.
fn told_to_retry(status: &Status) -> Result<u32, Failure> {
    let details = details_of(status);
    let known = ["REPLICA_BEHIND", "NO_LEADER"].contains(&details.reason.as_str()) && details.retry_after.is_some();
    // The stack's own: the node was stopped for longer than the call could wait.
    let unsaid = details.reason.is_empty()
        && matches!(status.code(), Code::Cancelled | Code::DeadlineExceeded | Code::Unavailable);
    check!(known || unsaid, "expected REPLICA_BEHIND with RetryInfo, saw {:?}/{}", status.code(), details.reason);
    Ok(1)
}
