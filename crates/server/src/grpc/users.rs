//! `UserService`.

use std::sync::Arc;

use holdfast_wire::api;
use holdfast_wire::reply;
use holdfast_wire::status::Refusal;
use holdfast_wire::v1;
use holdfast_wire::v1::user_service_server::UserService;
use tonic::{Request, Response, Status};

use crate::grpc::sync::ResponseStream;
use crate::grpc::{Shared, deadline_of, storage};

/// Account-level calls.
pub struct Users {
    shared: Arc<Shared>,
}

impl Users {
    /// Over this node.
    pub fn new(shared: Arc<Shared>) -> Self {
        Self { shared }
    }

    /// A user never seen is one without records: nothing tells them apart from outside.
    async fn get(&self, request: Request<v1::GetUserRequest>) -> Result<v1::GetUserResponse, Refusal> {
        let shared = &self.shared;
        shared.check_serving()?;
        let deadline = deadline_of(&request, shared.default_deadline());
        let query = api::user(request.into_inner())?;
        let fresh = shared.read(query.consistency, deadline).await?;
        let (view, sys) = (&fresh.view, fresh.view.sys());
        let row = match view.uid(&query.user).map_err(storage)? {
            Some(user) => view.user(user).map_err(storage)?.unwrap_or_default(),
            None => Default::default(),
        };
        Ok(v1::GetUserResponse {
            header: Some(shared.header_of(&fresh)),
            usage: Some(reply::usage(&row.usage, &sys.policy)),
            head_version: row.head.0,
            tombstone_horizon: row.tombstone_horizon.0,
            backed_up_version: row.backed_up(sys).0,
        })
    }
}

#[tonic::async_trait]
impl UserService for Users {
    async fn get_user(&self, request: Request<v1::GetUserRequest>) -> Result<Response<v1::GetUserResponse>, Status> {
        let timer = self.shared.metrics.call("GetUser");
        timer.end(self.get(request).await)
    }

    type ExportUserStream = ResponseStream<v1::ExportUserResponse>;

    async fn export_user(
        &self,
        _request: Request<v1::ExportUserRequest>,
    ) -> Result<Response<Self::ExportUserStream>, Status> {
        Err(Refusal::Unsupported("ExportUser").into())
    }

    async fn erase_user(
        &self,
        _request: Request<v1::EraseUserRequest>,
    ) -> Result<Response<v1::EraseUserResponse>, Status> {
        Err(Refusal::Unsupported("EraseUser").into())
    }

    async fn get_operation(
        &self,
        _request: Request<v1::GetOperationRequest>,
    ) -> Result<Response<v1::GetOperationResponse>, Status> {
        Err(Refusal::Unsupported("GetOperation").into())
    }
}
