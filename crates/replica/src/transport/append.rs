//! Appends as bytes: what the calling side sends, and what the answering side makes of it.

use bytes::Bytes;
use holdfast_wire::internal::v1 as pb;
use openraft::entry::RaftEntry;
use openraft::raft::AppendEntriesRequest;

use crate::types::{Entry, LogId, TypeConfig, log_id_from, log_id_to, vote_from, vote_to};

/// An append as it is sent by a leader that knows entries up to `known` to be committed.
///
/// Until a new leader has an entry of its own committed, openraft says of none that it is, and a follower that lags would
/// have to hold all that it lacks before it applied any of it. What an earlier leader committed stays so, and every later
/// leader's log has it: a follower may apply it as far as its log agrees with the leader's, which it looks at itself.
pub fn append_to(group: u32, request: AppendEntriesRequest<TypeConfig>, known: Option<LogId>) -> pb::AppendRequest {
    pb::AppendRequest {
        group_id: group,
        vote: Some(vote_to(&request.vote)),
        prev: request.prev_log_id.as_ref().map(log_id_to),
        committed: request.leader_commit.max(known).as_ref().map(log_id_to),
        entries: request.entries.into_iter().map(|entry| entry.into_stored().bytes).collect(),
    }
}

/// Reads an append request, whose entries follow its `prev` and one another: openraft takes their word for it, and a log
/// with a hole would end the node.
pub fn append_from(request: pb::AppendRequest) -> Result<AppendEntriesRequest<TypeConfig>, holdfast_wire::DecodeError> {
    let vote = request.vote.ok_or_else(|| holdfast_wire::DecodeError::new("append", "vote is missing"))?;
    let prev_log_id = request.prev.as_ref().map(log_id_from);
    let first = prev_log_id.as_ref().map_or(0, |prev| prev.index() + 1);
    let mut entries = Vec::with_capacity(request.entries.len());
    for (index, bytes) in (first..).zip(request.entries) {
        // Copied out of the receive buffer: a slice in the log cache would pin all of it.
        let entry = Entry::decode(Bytes::copy_from_slice(&bytes))?;
        if entry.log_id().index() != index {
            return Err(holdfast_wire::DecodeError::new("append", "its entries have a hole"));
        }
        entries.push(entry);
    }
    let leader_commit = request.committed.as_ref().map(log_id_from);
    Ok(AppendEntriesRequest { vote: vote_from(&vote), prev_log_id, leader_commit, entries })
}

#[cfg(test)]
mod tests {
    use holdfast_store::LogPosition;

    use super::*;
    use crate::types::{Vote, log_id_of};

    #[test]
    fn what_an_earlier_leader_committed_is_said_to_be_committed() {
        let at = |index: u64| log_id_of(LogPosition { term: 1, node: 1, index });
        let says = |told: Option<u64>, known: Option<u64>| {
            let leader_commit = told.map(at);
            let request =
                AppendEntriesRequest { vote: Vote::new(2, 2), prev_log_id: None, leader_commit, entries: Vec::new() };
            append_to(0, request, known.map(at)).committed.map(|id| id.index)
        };
        let cases = [(None, None), (None, Some(7)), (Some(5), Some(7)), (Some(9), Some(7)), (Some(9), None)];
        assert_eq!(cases.map(|(told, known)| says(told, known)), [None, Some(7), Some(7), Some(9), Some(9)]);
    }

    #[test]
    fn entries_that_leave_a_hole_are_no_request() {
        let read = |prev: Option<u64>, indexes: &[u64]| {
            let at = |index: u64| log_id_of(LogPosition { term: 1, node: 1, index });
            let entries = indexes.iter().map(|index| Entry::new_blank(at(*index)).into_stored().bytes).collect();
            let prev = prev.map(|index| log_id_to(&at(index)));
            let vote = Some(vote_to(&Vote::new(1, 1)));
            append_from(pb::AppendRequest { group_id: 0, vote, prev, committed: None, entries })
                .map(|request| request.entries.len())
                .map_err(|error| error.to_string())
        };
        assert_eq!([read(Some(7), &[8, 9]), read(None, &[0]), read(Some(7), &[])], [Ok(2), Ok(1), Ok(0)]);
        for (prev, indexes) in [(Some(7), &[9][..]), (Some(7), &[8, 10]), (Some(7), &[7]), (None, &[1])] {
            let error = read(prev, indexes).expect_err("a hole");
            assert!(error.contains("hole"), "{prev:?} {indexes:?}: {error}");
        }
    }
}
