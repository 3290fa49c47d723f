//! Deleting, for good: versions and all.
//!
//! Invariants: nothing is bypassed, so what a lock holds stays; an object is `Gone` when no version of it can be read any more.

use object_store::ObjectStoreExt;

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
            Ok(()) | Err(ArchiveError::Missing { .. }) => {
                if let Some(folder) = &self.destination.inner.folder {
                    folder.tidy(object);
                }
                Ok(Removal::Gone)
            }
            // Of other services the locks are not seen: a refusal may be one.
            Err(ArchiveError::Forbidden { .. }) => Ok(Removal::Held(None)),
            Err(error) => Err(error),
        }
    }

    async fn remove_versions(&self, versions: &Versions, object: &str) -> Result<Removal, ArchiveError> {
        let forbidden = |operation: &'static str, reason: String| ArchiveError::MayNotDelete {
            url: self.destination.config().url.clone(),
            object: object.to_owned(),
            operation,
            reason,
        };
        let failed = |operation, reason| ArchiveError::Destination { object: object.to_owned(), operation, reason };
        let ids = match versions.list(object).await {
            Answer::Done(ids) => ids,
            Answer::Missing => return Ok(Removal::Gone),
            Answer::Refused(said) => return Err(forbidden("list versions of", said)),
            Answer::Failed(reason) | Answer::Unsupported(reason) => return Err(failed("list versions of", reason)),
        };
        for id in &ids {
            match versions.delete_for_good(object, id).await {
                Answer::Done(()) | Answer::Missing => {}
                Answer::Refused(said) => {
                    return match versions.lock_of(object, id).await {
                        Answer::Done(Some(until_ms)) => Ok(Removal::Held(Some(until_ms))),
                        _ => Err(forbidden("delete", said)),
                    };
                }
                Answer::Failed(reason) | Answer::Unsupported(reason) => return Err(failed("delete", reason)),
            }
        }
        Ok(Removal::Gone)
    }
}
