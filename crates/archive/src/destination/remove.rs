//! Deleting, for good: versions and all.
//!
//! Invariants: nothing is bypassed, so what a lock holds stays; an object is `Gone` when it was looked for and not found.

use object_store::ObjectStoreExt;

use super::versions::Held;
use super::{Answer, Destination, Versions};
use crate::error::ArchiveError;

/// What became of an object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Removal {
    /// It is not there any more.
    Gone,
    /// A lock holds it until then, in milliseconds since the Unix epoch; `None` = until nobody knows when.
    Held(Option<u64>),
}

/// May delete at one destination.
pub(crate) struct Remover<'a> {
    destination: &'a Destination,
    versions: Option<Versions>,
}

impl<'a> Remover<'a> {
    /// With the destination's credentials.
    ///
    /// # Errors
    /// When there are none.
    pub(crate) async fn of(destination: &'a Destination) -> Result<Self, ArchiveError> {
        Ok(Self { destination, versions: destination.versions().await? })
    }

    /// Deletes an object.
    ///
    /// # Errors
    /// When the destination fails, or these credentials may not delete.
    pub(crate) async fn remove(&self, object: &str) -> Result<Removal, ArchiveError> {
        match &self.versions {
            Some(versions) => self.remove_versions(versions, object).await,
            None => self.remove_plain(object).await,
        }
    }

    async fn remove_plain(&self, object: &str) -> Result<Removal, ArchiveError> {
        let path = self.destination.path(object)?;
        match self.destination.within("delete", object, self.destination.inner.store.delete(&path)).await {
            Ok(()) | Err(ArchiveError::Missing { .. }) => {}
            // Of other services the locks are not seen: a refusal may be one.
            Err(ArchiveError::Forbidden { .. }) if self.versions.is_none() => return Ok(Removal::Held(None)),
            Err(ArchiveError::Forbidden { reason, .. }) => return Err(self.may_not(object, "delete", reason)),
            Err(error) => return Err(error),
        }
        if let Some(folder) = &self.destination.inner.folder {
            folder.tidy(object);
        }
        self.see(object).await
    }

    async fn remove_versions(&self, versions: &Versions, object: &str) -> Result<Removal, ArchiveError> {
        let failed = |operation, reason| ArchiveError::Destination { object: object.to_owned(), operation, reason };
        let ids = match versions.list(object).await {
            Answer::Done(ids) => ids,
            // It keeps none, or does not say so.
            Answer::Missing | Answer::Unsupported(_) => Vec::new(),
            Answer::Refused(said) => return Err(self.may_not(object, "list versions of", said)),
            Answer::Failed(reason) => return Err(failed("list versions of", reason)),
        };
        if ids.is_empty() {
            return self.remove_plain(object).await;
        }
        for id in &ids {
            match versions.delete_for_good(object, id).await {
                Answer::Done(()) | Answer::Missing => {}
                Answer::Refused(said) => {
                    return match versions.lock_of(object, id).await {
                        Answer::Done(Held::Until(until_ms)) => Ok(Removal::Held(Some(until_ms))),
                        Answer::Done(Held::Legally) => Ok(Removal::Held(None)),
                        _ => Err(self.may_not(object, "delete", said)),
                    };
                }
                Answer::Failed(reason) | Answer::Unsupported(reason) => return Err(failed("delete", reason)),
            }
        }
        self.see(object).await
    }

    /// It is not there any more, whatever was said.
    async fn see(&self, object: &str) -> Result<Removal, ArchiveError> {
        match self.destination.length(object).await? {
            None => Ok(Removal::Gone),
            Some(_) => Err(ArchiveError::Destination {
                object: object.to_owned(),
                operation: "delete",
                reason: "the destination said that it is gone, and it is there".into(),
            }),
        }
    }

    fn may_not(&self, object: &str, operation: &'static str, reason: String) -> ArchiveError {
        let (url, object) = (self.destination.config().url.clone(), object.to_owned());
        ArchiveError::MayNotDelete { url, object, operation, reason }
    }
}
