//! What stands between the gRPC stack and our handlers.
//!
//! Invariants: no error leaves without an `ErrorInfo`, also when the stack refused the request before a handler saw it
//! (too large, undecodable, no such method); a call whose deadline leaves no time for an answer is refused at once,
//! because the stack would end it with a bare CANCELLED, which says nothing about a write.

use std::future::{Ready, ready};
use std::task::{Context, Poll};
use std::time::Duration;

use futures::future::{Either, MapOk, TryFutureExt};
use holdfast_wire::status::{Refusal, explained};
use http::{Request, Response};
use tonic::Status;
use tonic::body::Body;
use tower::{Layer, Service};

use crate::grpc::parse_timeout;

/// Deadlines up to this are over before a timer can tell.
pub const DEADLINE_MIN: Duration = Duration::from_millis(3);

/// The layer, for all services of a listener.
#[derive(Debug, Clone, Copy)]
pub struct Edge;

impl<S> Layer<S> for Edge {
    type Service = EdgeService<S>;

    fn layer(&self, inner: S) -> EdgeService<S> {
        EdgeService(inner)
    }
}

/// A service behind the edge.
#[derive(Debug, Clone)]
pub struct EdgeService<S>(S);

type Explain = fn(Response<Body>) -> Response<Body>;

impl<S, B> Service<Request<B>> for EdgeService<S>
where
    S: Service<Request<B>, Response = Response<Body>>,
{
    type Response = Response<Body>;
    type Error = S::Error;
    type Future = Either<Ready<Result<Response<Body>, S::Error>>, MapOk<S::Future, Explain>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.0.poll_ready(context)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let timeout = request.headers().get("grpc-timeout").and_then(|value| parse_timeout(value.to_str().ok()?));
        if timeout.is_some_and(|timeout| timeout <= DEADLINE_MIN) {
            return Either::Left(ready(Ok(Status::from(Refusal::DeadlineTooShort).into_http())));
        }
        Either::Right(self.0.call(request).map_ok(explain as Explain))
    }
}

/// A refusal without a body has its status in the headers; one that follows a body is a handler's own.
fn explain(response: Response<Body>) -> Response<Body> {
    match Status::from_header_map(response.headers()) {
        Some(status) if status.code() != tonic::Code::Ok && status.details().is_empty() => {
            explained(status).into_http()
        }
        _ => response,
    }
}
