//! `SyncService`.

use std::pin::Pin;
use std::sync::Arc;

use futures::Stream;
use holdfast_wire::v1;
use holdfast_wire::v1::sync_service_server::SyncService;
use tonic::{Request, Response, Status, Streaming};

use crate::grpc::{Shared, changes, devices, manifest, watch};

/// Change delivery.
pub struct Sync {
    shared: Arc<Shared>,
}

impl Sync {
    /// Over this node.
    pub fn new(shared: Arc<Shared>) -> Self {
        Self { shared }
    }
}

/// Messages of a stream, or the status that ends it.
pub type ResponseStream<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl SyncService for Sync {
    async fn get_changes(
        &self,
        request: Request<v1::GetChangesRequest>,
    ) -> Result<Response<v1::GetChangesResponse>, Status> {
        let timer = self.shared.metrics.call("GetChanges");
        timer.end(changes::changes(&self.shared, request).await)
    }

    type GetManifestStream = ResponseStream<v1::GetManifestResponse>;

    async fn get_manifest(
        &self,
        request: Request<v1::GetManifestRequest>,
    ) -> Result<Response<Self::GetManifestStream>, Status> {
        let timer = self.shared.metrics.call("GetManifest");
        timer.end(manifest::manifest(&self.shared, request).await)
    }

    type WatchStream = ResponseStream<v1::WatchResponse>;

    async fn watch(
        &self,
        request: Request<Streaming<v1::WatchRequest>>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        let timer = self.shared.metrics.call("Watch");
        timer.end(watch::watch(&self.shared, request.into_inner()))
    }

    async fn ack_cursor(
        &self,
        request: Request<v1::AckCursorRequest>,
    ) -> Result<Response<v1::AckCursorResponse>, Status> {
        let timer = self.shared.metrics.call("AckCursor");
        timer.end(devices::ack(&self.shared, request).await)
    }

    async fn list_devices(
        &self,
        request: Request<v1::ListDevicesRequest>,
    ) -> Result<Response<v1::ListDevicesResponse>, Status> {
        let timer = self.shared.metrics.call("ListDevices");
        timer.end(devices::list(&self.shared, request).await)
    }

    async fn drop_device(
        &self,
        request: Request<v1::DropDeviceRequest>,
    ) -> Result<Response<v1::DropDeviceResponse>, Status> {
        let timer = self.shared.metrics.call("DropDevice");
        timer.end(devices::forget(&self.shared, request).await)
    }
}
