//! `FillPayloads`: payloads that a restore held back, into the log.

use holdfast_model::command::Command;
use holdfast_model::outcome::Outcome;
use holdfast_wire::api;
use holdfast_wire::status::Refusal;
use holdfast_wire::v1;
use tonic::Request;

use crate::grpc::admin::Admin;
use crate::grpc::deadline_of;

impl Admin {
    pub(super) async fn fill(
        &self,
        request: Request<v1::FillPayloadsRequest>,
    ) -> Result<v1::FillPayloadsResponse, Refusal> {
        let shared = &self.shared;
        let deadline = deadline_of(&request, shared.default_deadline());
        let bytes = holdfast_wire::encoded_len(request.get_ref());
        let fill = api::fill_payloads(request.into_inner())?;
        // Those who are served come first: under load the restore asks again.
        let admitted = shared.replica.admission().admit(bytes);
        let admitted = admitted.map_err(|error| Refusal::Overloaded(error.retry_after))?;
        let applied = shared.propose_admitted(Command::FillPayloads(fill), admitted, deadline).await?;
        match applied.outcome {
            Outcome::Rejected(rejection) => Err(Refusal::Rejected(rejection, None)),
            Outcome::Done | Outcome::Written(_) => Ok(v1::FillPayloadsResponse {}),
        }
    }
}
