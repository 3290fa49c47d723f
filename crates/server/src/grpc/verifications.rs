//! Verifications that are handed over: a verifier whose credentials only read has the cluster lay down what it found.
//!
//! Invariant: what is laid down is what was signed, under the name that was signed, and of this cluster; whether the key counts is
//! for the looker to say, as with what is found at a destination.

use holdfast_archive::destination::Put;
use holdfast_archive::{ArchiveError, Destination, DestinationConfig, Verification};
use holdfast_wire::status::Refusal;
use holdfast_wire::v1;

use super::admin::Admin;
use crate::config::Offsite;

impl Admin {
    pub(super) async fn record(&self, request: v1::RecordVerificationRequest) -> Result<(), Refusal> {
        let shared = &self.shared;
        let offsite = named(shared.shipper.destinations(), &request.destination)?;
        let bad = |field: &str, reason: String| Refusal::field(field, reason);
        Verification::open(&request.object, &request.evidence).map_err(|error| bad("evidence", error.to_string()))?;
        let sys = shared.replica.sys();
        let history = sys.history.as_ref().ok_or(Refusal::NotFounded)?;
        let cluster = format!("{}/", super::status::hex(&history.cluster_id));
        if !request.object.starts_with(&cluster) {
            return Err(bad("object", "it is of another cluster's archive".into()));
        }
        drop(sys);
        let destination = Destination::open(&DestinationConfig::from(offsite)).map_err(refused)?;
        match destination.put_checked(&request.object, &request.evidence).await.map_err(refused)? {
            Put::Created | Put::Same => Ok(()),
            Put::Lost(_) => Err(bad("object", "another verification lies under this name".into())),
        }
    }
}

fn named<'a>(all: &'a [Offsite], name: &str) -> Result<&'a Offsite, Refusal> {
    let names = || all.iter().map(|one| one.name.as_str()).collect::<Vec<_>>().join(", ");
    match all {
        [only] if name.is_empty() => Ok(only),
        _ => all.iter().find(|one| one.name == name).ok_or_else(|| {
            Refusal::field("destination", format!("{name:?} is none of this node's destinations: {}", names()))
        }),
    }
}

fn refused(error: ArchiveError) -> Refusal {
    Refusal::Precondition { reason: "DESTINATION_FAILED", message: error.to_string() }
}

#[cfg(test)]
mod tests {
    use holdfast_archive::doctor::Verdict;

    use super::*;

    fn offsite(name: &str) -> Offsite {
        Offsite {
            name: name.into(),
            url: format!("file:///{name}"),
            credentials_file: None,
            required: true,
            labels: Default::default(),
            expect: Verdict::Immutable,
        }
    }

    #[test]
    fn the_only_destination_need_not_be_named() {
        let of = |all: &[Offsite], name: &str| named(all, name).map(|one| one.name.clone()).ok();
        let (a, b) = (offsite("a"), offsite("b"));
        assert_eq!(of(std::slice::from_ref(&a), ""), Some("a".into()));
        assert_eq!(of(&[a.clone(), b.clone()], "b"), Some("b".into()));
        assert_eq!((of(&[a.clone(), b], ""), of(std::slice::from_ref(&a), "c"), of(&[], "")), (None, None, None));
    }
}
