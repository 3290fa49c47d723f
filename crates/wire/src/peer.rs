//! Outcomes between nodes: what the leader answers to a forwarded proposal.

use bytes::Bytes;
use holdfast_model::id::{ContentHash, Version};
use holdfast_model::outcome::{Conflict, MutationResult, Outcome, Receipt, Rejection, Usage};

use crate::internal::v1 as pb;
use crate::{DecodeError, decode, encode, fixed, required};

/// Encodes an outcome.
pub fn encode_outcome(outcome: &Outcome) -> Bytes {
    let result = match outcome {
        Outcome::Written(receipt) => pb::outcome::Result::Written(pb::Receipt {
            version: receipt.version.0,
            replayed: receipt.replayed,
            used_bytes: receipt.usage.used_bytes,
            record_count: receipt.usage.record_count,
            results: receipt
                .results
                .iter()
                .map(|result| pb::MutationResult { changed: result.changed, version: result.version.0 })
                .collect(),
            commit_index: receipt.commit_index,
        }),
        Outcome::Done => pb::outcome::Result::Done(pb::Empty {}),
        Outcome::Rejected(rejection) => pb::outcome::Result::Rejected(rejection_to(rejection)),
    };
    encode(&pb::Outcome { result: Some(result) })
}

/// Decodes an outcome.
pub fn decode_outcome(bytes: &Bytes) -> Result<Outcome, DecodeError> {
    let message: pb::Outcome = decode("outcome", bytes.clone())?;
    Ok(match required("outcome", "result", message.result)? {
        pb::outcome::Result::Written(receipt) => Outcome::Written(Receipt {
            version: Version(receipt.version),
            replayed: receipt.replayed,
            usage: Usage { used_bytes: receipt.used_bytes, record_count: receipt.record_count },
            results: receipt
                .results
                .into_iter()
                .map(|result| MutationResult { changed: result.changed, version: Version(result.version) })
                .collect(),
            commit_index: receipt.commit_index,
        }),
        pb::outcome::Result::Done(_) => Outcome::Done,
        pb::outcome::Result::Rejected(rejection) => Outcome::Rejected(rejection_from(rejection)?),
    })
}

fn rejection_to(rejection: &Rejection) -> pb::Rejection {
    let mut message = pb::Rejection::default();
    message.reason = match rejection {
        Rejection::VersionMismatch { conflicts, head } => {
            message.head = head.map(|head| head.0);
            message.conflicts = conflicts
                .iter()
                .map(|conflict| pb::Conflict {
                    index: conflict.index,
                    current_version: conflict.current_version.0,
                    deleted: conflict.deleted,
                    content_hash: conflict.content_hash.map(|hash| Bytes::copy_from_slice(&hash.0)).unwrap_or_default(),
                })
                .collect();
            1
        }
        Rejection::RequestIdReused => 2,
        Rejection::RequestTooOld => 3,
        Rejection::RequestFromFuture => 4,
        Rejection::IncarnationMismatch => 5,
        Rejection::NotFounded => 6,
        Rejection::UnknownRules(rules) => {
            message.rules = (*rules).into();
            7
        }
        Rejection::Poisoned => 8,
    };
    message
}

fn rejection_from(message: pb::Rejection) -> Result<Rejection, DecodeError> {
    const WHAT: &str = "rejection";
    Ok(match message.reason {
        1 => Rejection::VersionMismatch {
            conflicts: message
                .conflicts
                .into_iter()
                .map(|conflict| {
                    Ok(Conflict {
                        index: conflict.index,
                        current_version: Version(conflict.current_version),
                        deleted: conflict.deleted,
                        content_hash: match conflict.content_hash.len() {
                            0 => None,
                            _ => Some(ContentHash(fixed(WHAT, "content_hash", &conflict.content_hash)?)),
                        },
                    })
                })
                .collect::<Result<_, DecodeError>>()?,
            head: message.head.map(Version),
        },
        2 => Rejection::RequestIdReused,
        3 => Rejection::RequestTooOld,
        4 => Rejection::RequestFromFuture,
        5 => Rejection::IncarnationMismatch,
        6 => Rejection::NotFounded,
        7 => Rejection::UnknownRules(
            u16::try_from(message.rules).map_err(|_| DecodeError::new(WHAT, "rules out of range"))?,
        ),
        8 => Rejection::Poisoned,
        other => return Err(DecodeError::new(WHAT, format!("unknown reason {other}"))),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_outcome_round_trips() {
        let conflict =
            Conflict { index: 3, current_version: Version(8), deleted: true, content_hash: Some(ContentHash([7; 16])) };
        let outcomes = [
            Outcome::Done,
            Outcome::Written(Receipt {
                version: Version(5),
                replayed: true,
                usage: Usage { used_bytes: 10, record_count: 2 },
                results: vec![MutationResult { changed: true, version: Version(5) }],
                commit_index: 77,
            }),
            Outcome::Rejected(Rejection::VersionMismatch { conflicts: vec![conflict], head: Some(Version(0)) }),
            Outcome::Rejected(Rejection::RequestIdReused),
            Outcome::Rejected(Rejection::RequestTooOld),
            Outcome::Rejected(Rejection::RequestFromFuture),
            Outcome::Rejected(Rejection::IncarnationMismatch),
            Outcome::Rejected(Rejection::NotFounded),
            Outcome::Rejected(Rejection::UnknownRules(9)),
            Outcome::Rejected(Rejection::Poisoned),
        ];
        for outcome in outcomes {
            assert_eq!(decode_outcome(&encode_outcome(&outcome)).expect("decodes"), outcome);
        }
    }
}
