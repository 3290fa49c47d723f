//! `AckCursor`, `ListDevices`, `DropDevice`. All three may be called again without harm.

use std::sync::Arc;

use holdfast_model::command::Command;
use holdfast_model::outcome::{Outcome, Rejection};
use holdfast_replica::Applied;
use holdfast_wire::api::{self, Consistency};
use holdfast_wire::reply;
use holdfast_wire::status::Refusal;
use holdfast_wire::v1;
use tonic::Request;

use crate::grpc::{Shared, deadline_of, storage};

/// Answers an `AckCursor`.
pub async fn ack(
    shared: &Arc<Shared>,
    request: Request<v1::AckCursorRequest>,
) -> Result<v1::AckCursorResponse, Refusal> {
    shared.check_serving()?;
    let deadline = deadline_of(&request, shared.default_deadline());
    let bytes = holdfast_wire::encoded_len(request.get_ref());
    let ack = api::ack_cursor(request.into_inner())?;
    let applied = shared.propose(&ack.user.clone(), Command::AckCursor(ack), bytes, deadline).await?;
    Ok(v1::AckCursorResponse { header: Some(done(shared, applied)?) })
}

/// Answers a `DropDevice`.
pub async fn forget(
    shared: &Arc<Shared>,
    request: Request<v1::DropDeviceRequest>,
) -> Result<v1::DropDeviceResponse, Refusal> {
    shared.check_serving()?;
    let deadline = deadline_of(&request, shared.default_deadline());
    let bytes = holdfast_wire::encoded_len(request.get_ref());
    let drop = api::drop_device(request.into_inner())?;
    let applied = shared.propose(&drop.user.clone(), Command::DropDevice(drop), bytes, deadline).await?;
    Ok(v1::DropDeviceResponse { header: Some(done(shared, applied)?) })
}

/// Answers a `ListDevices`.
pub async fn list(
    shared: &Arc<Shared>,
    request: Request<v1::ListDevicesRequest>,
) -> Result<v1::ListDevicesResponse, Refusal> {
    shared.check_serving()?;
    let deadline = deadline_of(&request, shared.default_deadline());
    let query = api::list_devices(request.into_inner())?;
    let fresh = shared.read(Consistency::Linearizable, deadline).await?;
    let header = Some(shared.header_of(&fresh));
    let devices = shared.read_rows(move || {
        let Some(user) = fresh.view.uid(&query.user).map_err(storage)? else { return Ok(Vec::new()) };
        let devices = fresh.view.devices(user).map_err(storage)?;
        Ok(devices.iter().map(|(id, row)| reply::device(id, row)).collect())
    });
    Ok(v1::ListDevicesResponse { header, devices: devices.await? })
}

fn done(shared: &Shared, applied: Applied) -> Result<v1::ResponseHeader, Refusal> {
    let header = shared.header(&shared.replica.sys(), applied.index);
    match applied.outcome {
        Outcome::Done => Ok(header),
        Outcome::Rejected(rejection) => Err(Refusal::Rejected(rejection, Some(header))),
        Outcome::Written(_) => Err(Refusal::Rejected(Rejection::Poisoned, Some(header))),
    }
}
