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
        Rejection::UserQuota { wanted_bytes, quota_bytes } => {
            (message.wanted_bytes, message.quota_bytes) = (*wanted_bytes, *quota_bytes);
            9
        }
        Rejection::TokenNotCurrent => 10,
        Rejection::DeviceLimit => 11,
        Rejection::LineageFork => 12,
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
        9 => Rejection::UserQuota { wanted_bytes: message.wanted_bytes, quota_bytes: message.quota_bytes },
        10 => Rejection::TokenNotCurrent,
        11 => Rejection::DeviceLimit,
        12 => Rejection::LineageFork,
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
            Outcome::Rejected(Rejection::VersionMismatch {
                conflicts: vec![Conflict { content_hash: None, ..conflict }],
                head: None,
            }),
            Outcome::Rejected(Rejection::RequestIdReused),
            Outcome::Rejected(Rejection::RequestTooOld),
            Outcome::Rejected(Rejection::RequestFromFuture),
            Outcome::Rejected(Rejection::IncarnationMismatch),
            Outcome::Rejected(Rejection::NotFounded),
            Outcome::Rejected(Rejection::UnknownRules(9)),
            Outcome::Rejected(Rejection::Poisoned),
            Outcome::Rejected(Rejection::UserQuota { wanted_bytes: 11, quota_bytes: 10 }),
            Outcome::Rejected(Rejection::TokenNotCurrent),
            Outcome::Rejected(Rejection::DeviceLimit),
            Outcome::Rejected(Rejection::LineageFork),
        ];
        for outcome in outcomes {
            assert_eq!(decode_outcome(&encode_outcome(&outcome)).expect("decodes"), outcome);
        }
    }
    #[test]
    fn what_this_build_does_not_know_is_refused() {
        let rejected = |rejection| {
            decode_outcome(&encode(&pb::Outcome { result: Some(pb::outcome::Result::Rejected(rejection)) }))
        };
        let message = |reason| pb::Rejection { reason, ..Default::default() };
        assert!(rejected(message(12)).is_ok());
        for reason in [0, 13] {
            assert!(rejected(message(reason)).is_err(), "{reason}");
        }
        assert!(rejected(pb::Rejection { rules: 65_535, ..message(7) }).is_ok());
        assert!(rejected(pb::Rejection { rules: 65_536, ..message(7) }).is_err());
        let conflicts = vec![pb::Conflict { content_hash: vec![7; 15].into(), ..Default::default() }];
        assert!(rejected(pb::Rejection { conflicts, ..message(1) }).is_err());
        assert!(decode_outcome(&Bytes::new()).is_err());
    }

    /// Nodes of two versions answer each other during an upgrade.
    #[test]
    fn the_bytes_of_outcomes_are_frozen() {
        let hex = |outcome| encode_outcome(&outcome).iter().map(|byte| format!("{byte:02x}")).collect::<String>();
        let receipt = Receipt {
            version: Version(1),
            replayed: true,
            usage: Usage { used_bytes: 2, record_count: 3 },
            results: vec![MutationResult { changed: true, version: Version(4) }],
            commit_index: 5,
        };
        assert_eq!(hex(Outcome::Written(receipt)), "0a1008011001180220032a04080110043005");
        let conflict =
            Conflict { index: 1, current_version: Version(2), deleted: true, content_hash: Some(ContentHash([3; 16])) };
        let mismatch = Rejection::VersionMismatch { conflicts: vec![conflict], head: Some(Version(4)) };
        assert_eq!(
            hex(Outcome::Rejected(mismatch)),
            "1a1e080112180801100218012210030303030303030303030303030303031804"
        );
        assert_eq!(hex(Outcome::Rejected(Rejection::UnknownRules(9))), "1a0408072009");
    }
}
