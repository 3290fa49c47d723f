//! Requests of `SyncService` and `UserService`.

use std::time::Duration;

use holdfast_model::command::{AckCursor, DropDevice};
use holdfast_model::id::{Collection, DeviceId, UserId};
use holdfast_model::limits;

use super::{Consistency, Reader};
use crate::status::Refusal;
use crate::token::{SyncToken, filter_hash};
use crate::v1;

/// `GetChanges`, checked.
#[derive(Debug, Clone, PartialEq)]
pub struct ChangesQuery {
    /// Owner.
    pub user: UserId,
    /// Where the device stands; `None` = at zero.
    pub token: Option<SyncToken>,
    /// Collections; empty = all.
    pub collections: Vec<Collection>,
    /// Hash of the collections, as tokens carry it.
    pub filter: u64,
    /// Most records in the page (one commit is never split).
    pub page_records: usize,
    /// Leave payloads out.
    pub metadata_only: bool,
    /// Hold the call this long when nothing changed.
    pub wait: Duration,
    /// Skip what this device wrote.
    pub exclude_device: Option<DeviceId>,
    /// Freshness; `None` = any replica at least as new as the token, linearizable without one.
    pub consistency: Option<Consistency>,
}

/// `GetManifest`, checked.
#[derive(Debug, Clone, PartialEq)]
pub struct ManifestQuery {
    /// Owner.
    pub user: UserId,
    /// Collections; empty = all.
    pub collections: Vec<Collection>,
    /// Hash of the collections, as tokens carry it.
    pub filter: u64,
    /// Freshness.
    pub consistency: Consistency,
}

/// `ListDevices`, checked.
#[derive(Debug, Clone, PartialEq)]
pub struct DevicesQuery {
    /// Owner.
    pub user: UserId,
}

/// `GetUser`, checked.
#[derive(Debug, Clone, PartialEq)]
pub struct UserQuery {
    /// Owner.
    pub user: UserId,
    /// Freshness.
    pub consistency: Consistency,
}

/// `WatchRequest`, checked.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct WatchChange {
    /// Users to watch from a token on; `None` = from zero.
    pub adds: Vec<(UserId, Option<SyncToken>)>,
    /// Users to watch no longer.
    pub removes: Vec<UserId>,
}

/// Reads a `GetChanges`.
pub fn changes(request: v1::GetChangesRequest) -> Result<ChangesQuery, Refusal> {
    let mut reader = Reader::default();
    let user = reader.take("user_id", UserId::new(&request.user_id));
    let collections = reader.collections(&request.collections);
    let page_records = reader.page_records(request.page_size);
    if u64::from(request.wait_ms) > limits::LONG_POLL_MS_MAX {
        reader.bad("wait_ms", format!("must be at most {}", limits::LONG_POLL_MS_MAX));
    }
    let exclude_device = match request.exclude_device_id.as_str() {
        "" => None,
        device => reader.take("exclude_device_id", DeviceId::new(device)),
    };
    let consistency = reader.consistency(request.consistency);
    let (user, consistency) = reader.finish(user.zip(consistency))?;
    let filter = filter_hash(&collections);
    let token = match request.sync_token.as_str() {
        "" => None,
        text => Some(SyncToken::decode(text, &user, filter).map_err(Refusal::Token)?),
    };
    Ok(ChangesQuery {
        user,
        token,
        collections,
        filter,
        page_records,
        metadata_only: request.metadata_only,
        wait: Duration::from_millis(request.wait_ms.into()),
        exclude_device,
        consistency,
    })
}

/// Reads a `GetManifest`.
pub fn manifest(request: v1::GetManifestRequest) -> Result<ManifestQuery, Refusal> {
    let mut reader = Reader::default();
    let user = reader.take("user_id", UserId::new(&request.user_id));
    let collections = reader.collections(&request.collections);
    let consistency = reader.consistency(request.consistency);
    let query = user.zip(consistency).map(|(user, consistency)| ManifestQuery {
        user,
        filter: filter_hash(&collections),
        collections,
        consistency: consistency.unwrap_or(Consistency::Linearizable),
    });
    reader.finish(query)
}

/// Reads an `AckCursor`.
pub fn ack_cursor(request: v1::AckCursorRequest) -> Result<AckCursor, Refusal> {
    let mut reader = Reader::default();
    let user = reader.take("user_id", UserId::new(&request.user_id));
    let device = reader.take("device_id", DeviceId::new(&request.device_id));
    if request.sync_token.is_empty() {
        reader.bad("sync_token", "is required: the token that the device has persisted");
    }
    let (user, device) = reader.finish(user.zip(device))?;
    let token = SyncToken::decode_any_filter(&request.sync_token, &user).map_err(Refusal::Token)?;
    Ok(AckCursor { user, device, incarnation: token.incarnation, version: token.version })
}

/// Reads a `ListDevices`.
pub fn list_devices(request: v1::ListDevicesRequest) -> Result<DevicesQuery, Refusal> {
    let mut reader = Reader::default();
    let user = reader.take("user_id", UserId::new(&request.user_id));
    reader.finish(user.map(|user| DevicesQuery { user }))
}

/// Reads a `DropDevice`.
pub fn drop_device(request: v1::DropDeviceRequest) -> Result<DropDevice, Refusal> {
    let mut reader = Reader::default();
    let user = reader.take("user_id", UserId::new(&request.user_id));
    let device = reader.take("device_id", DeviceId::new(&request.device_id));
    reader.finish(user.zip(device).map(|(user, device)| DropDevice { user, device }))
}

/// Reads a `GetUser`.
pub fn user(request: v1::GetUserRequest) -> Result<UserQuery, Refusal> {
    let mut reader = Reader::default();
    let user = reader.take("user_id", UserId::new(&request.user_id));
    let consistency = reader.consistency(request.consistency);
    let query = user
        .zip(consistency)
        .map(|(user, consistency)| UserQuery { user, consistency: consistency.unwrap_or(Consistency::Linearizable) });
    reader.finish(query)
}

/// Reads a `WatchRequest`. A token that is not one of its user ends the stream: it is a defect of the caller, not a state of the user.
pub fn watch(request: v1::WatchRequest) -> Result<WatchChange, Refusal> {
    let mut reader = Reader::default();
    if request.adds.len() + request.remove_user_ids.len() > limits::WATCH_CHANGES_MAX {
        reader
            .bad("adds", format!("and remove_user_ids together have more than {} entries", limits::WATCH_CHANGES_MAX));
        return reader.finish(None);
    }
    let mut change = WatchChange::default();
    for (index, add) in request.adds.into_iter().enumerate() {
        let Some(user) = reader.take(format!("adds[{index}].user_id"), UserId::new(&add.user_id)) else { continue };
        let token = match add.sync_token.as_str() {
            "" => None,
            text => Some(SyncToken::decode_any_filter(text, &user).map_err(Refusal::Token)?),
        };
        change.adds.push((user, token));
    }
    for (index, user) in request.remove_user_ids.iter().enumerate() {
        change.removes.extend(reader.take(format!("remove_user_ids[{index}]"), UserId::new(user)));
    }
    reader.finish(Some(change))
}

#[cfg(test)]
mod tests;
