//! A restore of one collection before the others. 30.

use std::time::{Duration, Instant};

use holdfast_client::{Client, Error, SyncOutcome};
use holdfast_wire::v1;
use jepsen_tests::cluster::contact;

use crate::case::{Case, key};
use crate::disaster::scene::{ALBUM, How, Scene, photo};
use crate::failure::{Failure, Outcome};
use crate::target::Target;
use crate::{check, check_eq};

const STAGED: &str = "staged";
const PHOTOS: &str = "photos";
/// Long enough for nodes that have just been started to elect a leader and open their history.
const SERVES_WITHIN: Duration = Duration::from_secs(20);

/// 30: A collection that is still being restored is flagged, or its payloads are UNAVAILABLE, and it is never empty; others
/// are served meanwhile, and in the end it is whole.
///
/// Break: `page` (server/src/grpc/changes.rs) leaves out what is held back, or `get_records` (server/src/grpc/records.rs)
/// answers with an empty payload.
pub async fn c30_a_restoring_collection_is_never_empty(case: &Case) -> Outcome {
    let scene = &*case.stage()?.scene(&case.run).await?;
    let port_base = scene.port_base().await?;
    let ask = async |target: &Target| {
        let end = Instant::now() + SERVES_WITHIN;
        while target.client().get(contact(&scene.album, "c0")).await.is_err() {
            check!(
                Instant::now() < end,
                "expected contacts to be served within 20 s of a staged restore, saw them not"
            );
        }
        for place in 0..target.nodes.len() {
            let own = target.client_of(place)?.with_deadline(Duration::from_secs(2));
            restoring(scene, &own).await.map_err(|failure| failure.at(&target.nodes[place].address))?;
        }
        scene.end_staged(STAGED, port_base).await?;
        for place in 0..target.nodes.len() {
            let own = target.client_of(place)?;
            whole(scene, &own).await.map_err(|failure| failure.at(&target.nodes[place].address))?;
        }
        Ok(())
    };
    scene.instead(STAGED, How::Staged, &[0, 1, 2], |_| Ok(()), ask).await
}

/// One node, while photos are still to come.
async fn restoring(scene: &Scene, client: &Client) -> Outcome {
    let album = &scene.album;
    for n in 0..ALBUM {
        let found = client.get(contact(album, &format!("c{n}"))).await?.unwrap_or_default();
        check_eq!(found.payload.as_ref(), b"contact", "a contact");
        let read = v1::BatchGetRecordsRequest {
            user_id: album.clone(),
            keys: vec![key(PHOTOS, &format!("p{n}"))],
            ..Default::default()
        };
        unavailable("a photo", client.read(read.clone()).await)?;
        let known = client.read(v1::BatchGetRecordsRequest { metadata_only: true, ..read }).await?;
        check_eq!(known.records.len(), 1, "a photo's metadata");
    }
    let list = v1::ListRecordsRequest { user_id: album.clone(), collection: PHOTOS.into(), ..Default::default() };
    unavailable("a list of photos", client.list_all(list.clone()).await)?;
    let listed = client.list_all(v1::ListRecordsRequest { metadata_only: true, ..list }).await?;
    check_eq!(listed.len(), ALBUM, "photos that are listed without their payloads");
    let changes = |collections: &[&str], metadata_only| v1::GetChangesRequest {
        user_id: album.clone(),
        collections: collections.iter().map(|name| (*name).to_owned()).collect(),
        metadata_only,
        ..Default::default()
    };
    unavailable("changes with photos among them", client.changes(changes(&[], false)).await)?;
    let page = page_of(client, changes(&[], true)).await?;
    check_eq!(page.collections_restoring, vec![PHOTOS], "collections that a page of changes flags");
    check_eq!(page.records.len(), 2 * ALBUM, "records of that page");
    let page = page_of(client, changes(&["contacts"], false)).await?;
    check_eq!(page.collections_restoring, Vec::<String>::new(), "collections that a page of contacts flags");
    check_eq!(page.records.len(), ALBUM, "contacts in a page");
    Ok(())
}

/// One node, when all have come.
async fn whole(scene: &Scene, client: &Client) -> Outcome {
    let request = v1::GetChangesRequest { user_id: scene.album.clone(), ..Default::default() };
    let page = page_of(client, request).await?;
    check_eq!(page.collections_restoring, Vec::<String>::new(), "collections that are flagged in the end");
    check_eq!(page.records.len(), 2 * ALBUM, "records in the end");
    for n in 0..ALBUM {
        let name = format!("p{n}");
        let found = page.records.iter().find(|record| record.key.as_ref().is_some_and(|key| key.record_id == name));
        let payload = found.map(|record| record.payload.to_vec()).unwrap_or_default();
        check!(payload == photo(n).as_bytes(), "expected photo {name} as it was, saw {} other bytes", payload.len());
    }
    Ok(())
}

fn unavailable<T: std::fmt::Debug>(what: &str, answer: Result<T, Error>) -> Outcome {
    match answer {
        Err(Error::Unavailable { reason, .. }) => {
            check_eq!(reason, "COLLECTION_RESTORING", "reason for {what}");
            Ok(())
        }
        other => Err(Failure::broken(format!("expected {what} to be UNAVAILABLE, saw {other:?}"))),
    }
}

async fn page_of(client: &Client, request: v1::GetChangesRequest) -> Result<v1::ChangesPage, Failure> {
    match client.changes(request).await?.outcome {
        SyncOutcome::Page(page) => Ok(page),
        SyncOutcome::Resync(info) => Err(Failure::broken(format!("expected a page, saw a resync: {info:?}"))),
    }
}
