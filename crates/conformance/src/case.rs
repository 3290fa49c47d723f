//! What a test gets: the cluster to ask, users of its own, and the calls that most tests make.

use std::sync::{Arc, Mutex, PoisonError};

use holdfast_client::Client;
use holdfast_wire::v1;
use jepsen_tests::chance::Chance;
use tonic::Status;

use crate::device::Device;
use crate::failure::Failure;
use crate::stage::Stage;
use crate::target::{Node, Target, settled};

/// One test's surroundings.
#[derive(Debug)]
pub struct Case {
    /// Number of the promise.
    pub number: u8,
    /// Makes user ids of this run its own.
    pub run: String,
    /// Everything random follows from it.
    pub seed: u64,
    /// The cluster to ask.
    pub target: Target,
    /// Clusters of its own, for faults and short ages; `None` = only public addresses were given.
    pub stage: Option<Arc<Stage>>,
    notes: Mutex<Vec<String>>,
}

/// A record as tests write it.
pub fn put(id: &str, payload: &str) -> v1::Mutation {
    put_in("contacts", id, payload)
}

/// A record in a collection of choice.
pub fn put_in(collection: &str, id: &str, payload: &str) -> v1::Mutation {
    let put = v1::PutOp {
        content_type: "text/plain".into(),
        payload: payload.as_bytes().to_vec().into(),
        ..Default::default()
    };
    v1::Mutation { key: Some(key(collection, id)), op: Some(v1::mutation::Op::Put(put)), precondition: None }
}

/// A delete.
pub fn delete(id: &str) -> v1::Mutation {
    let op = Some(v1::mutation::Op::Delete(v1::DeleteOp {}));
    v1::Mutation { key: Some(key("contacts", id)), op, precondition: None }
}

/// Name of a record.
pub fn key(collection: &str, id: &str) -> v1::RecordKey {
    v1::RecordKey { collection: collection.to_owned(), record_id: id.to_owned() }
}

/// A mutation under a guard.
pub fn guarded(mutation: v1::Mutation, check: v1::precondition::Check) -> v1::Mutation {
    v1::Mutation { precondition: Some(v1::Precondition { check: Some(check) }), ..mutation }
}

/// A batch with a request id of its own.
pub fn batch(user: &str, mutations: Vec<v1::Mutation>) -> v1::BatchWriteRequest {
    v1::BatchWriteRequest {
        user_id: user.to_owned(),
        request_id: uuid::Uuid::new_v4().to_string(),
        mutations,
        ..Default::default()
    }
}

impl Case {
    /// Surroundings of a test.
    pub fn new(number: u8, run: &str, seed: u64, target: Target, stage: Option<Arc<Stage>>) -> Self {
        Self { number, run: run.to_owned(), seed, target, stage, notes: Mutex::default() }
    }

    /// A user that no other test and no other run has.
    pub fn user(&self, name: &str) -> String {
        format!("c{:02}-{}-{name}", self.number, self.run)
    }

    /// The client of the cluster.
    pub fn client(&self) -> &Client {
        self.target.client()
    }

    /// The node at a place, counted around.
    pub fn node(&self, place: usize) -> &Node {
        &self.target.nodes[place % self.target.nodes.len()]
    }

    /// Chance of this test's own.
    pub fn chance(&self) -> Chance {
        Chance::new(self.seed, self.number.into())
    }

    /// Says something about how the test was made, shown beside its verdict.
    pub fn note(&self, text: impl Into<String>) {
        self.notes.lock().unwrap_or_else(PoisonError::into_inner).push(text.into());
    }

    /// All notes.
    pub fn notes(&self) -> String {
        self.notes.lock().unwrap_or_else(PoisonError::into_inner).join("; ")
    }

    /// Clusters of its own.
    ///
    /// # Errors
    /// Skips the test when there are none.
    pub fn stage(&self) -> Result<&Arc<Stage>, Failure> {
        self.stage.as_ref().ok_or_else(|| Failure::skipped("needs faults: run it with --holdfast PATH"))
    }

    /// Commits mutations.
    ///
    /// # Errors
    /// When they are not committed.
    pub async fn write(&self, user: &str, mutations: Vec<v1::Mutation>) -> Result<v1::BatchWriteResponse, Failure> {
        Ok(self.client().write(batch(user, mutations)).await?)
    }

    /// Commits one record.
    ///
    /// # Errors
    /// When it is not committed.
    pub async fn put(&self, user: &str, id: &str, payload: &str) -> Result<v1::BatchWriteResponse, Failure> {
        self.write(user, vec![put(id, payload)]).await
    }

    /// Commits a delete.
    ///
    /// # Errors
    /// When it is not committed.
    pub async fn delete(&self, user: &str, id: &str) -> Result<v1::BatchWriteResponse, Failure> {
        self.write(user, vec![delete(id)]).await
    }

    /// A contact, linearizable.
    ///
    /// # Errors
    /// When nobody answers.
    pub async fn get(&self, user: &str, id: &str) -> Result<Option<v1::Record>, Failure> {
        Ok(self.client().get(jepsen_tests::cluster::contact(user, id)).await?)
    }

    /// A device that has synced everything.
    ///
    /// # Errors
    /// When it cannot.
    pub async fn device(&self, user: &str) -> Result<Device, Failure> {
        let mut device = Device::new(user);
        device.sync(self.client(), 0).await?;
        Ok(device)
    }

    /// A write that is to be refused: what it was refused with, once the server asks for no retry.
    ///
    /// # Errors
    /// When it was committed.
    pub async fn refused_write(&self, request: &v1::BatchWriteRequest) -> Result<Status, Failure> {
        match settled(|| self.node(0).write(request)).await {
            Err(status) => Ok(status),
            Ok(answer) => {
                Err(Failure::broken(format!("expected a refusal, saw a commit at version {}", answer.version)))
            }
        }
    }
}
