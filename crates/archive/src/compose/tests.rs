use std::collections::BTreeMap;

use holdfast_model::id::{GroupId, Millis};
use holdfast_store::LogPosition;
use proptest::prelude::*;

use super::*;
use crate::chunk::PlainChunk;
use crate::manifest::{ChunkRows, Layer};
use crate::object::tests::LINEAGE;

type State = BTreeMap<(u8, Vec<u8>), Vec<u8>>;
/// Rows of one layer, in objects of this many.
type Change = (BTreeMap<(u8, Vec<u8>), Option<Vec<u8>>>, usize);

fn key() -> impl Strategy<Value = (u8, Vec<u8>)> {
    (0u8..3, proptest::collection::vec(0u8..4, 1..3))
}

fn value() -> impl Strategy<Value = Vec<u8>> {
    proptest::collection::vec(any::<u8>(), 0..5)
}

fn cut(state: &State) -> Vec<PlainChunk> {
    let mut chunker = Chunker::default();
    let mut out = Vec::new();
    for ((family, key), value) in state {
        out.extend(chunker.push(*family, key, value).expect("in order"));
    }
    out.extend(chunker.finish());
    out
}

fn source(rows: Vec<PatchRow>, per_object: usize) -> Source {
    let (sender, objects) = mpsc::channel(100);
    let mut left = 0;
    for rows in rows.chunks(per_object) {
        let rows = rows.to_vec();
        assert!(sender.try_send(Ok(Box::new(rows.into_iter()) as RowsOf)).is_ok(), "there is room");
        left += 1;
    }
    Source { objects, left, rows: Box::new(std::iter::empty()), next: None }
}

fn row(key: &(u8, Vec<u8>), value: Option<&Vec<u8>>) -> PatchRow {
    PatchRow { family: key.0, key: key.1.clone().into(), value: value.map(|value| value.clone().into()) }
}

fn manifest(composed: Vec<ChunkRows>) -> Manifest {
    Manifest {
        lineage: LINEAGE,
        group: GroupId(0),
        applied: LogPosition { term: 1, node: 1, index: 9 },
        membership: bytes::Bytes::new(),
        entry_chain: [0; 32],
        effect_chain: [0; 32],
        now: Millis(0),
        rules: 1,
        chunks: Vec::new(),
        base_index: 1,
        layers: vec![Layer { index: 9, patches: Vec::new() }],
        composed,
        users: 0,
        records: 0,
        payload_bytes: 0,
        previous: None,
        witnesses: Vec::new(),
    }
}

/// What comes out of these sources, and how it ended.
fn composed(expected: &State, sources: Vec<Source>) -> (State, Result<(), ArchiveError>) {
    let (out, mut chunks) = mpsc::channel(100);
    let as_said = cut(expected).iter().map(PlainChunk::chunk_rows).collect();
    let end = compose(&manifest(as_said), sources, &out);
    drop(out);
    let mut found = State::new();
    while let Some(chunk) = chunks.blocking_recv() {
        let chunk = chunk.expect("a chunk").expect("no end yet");
        found.extend(chunk.rows().map(|row| ((row.family, row.key), row.value)));
    }
    (found, end)
}

/// Base and layers of a history of states, and the last state.
fn sources_of(base: &State, changes: &[Change]) -> (State, Vec<Source>) {
    let mut state = base.clone();
    let mut sources = vec![source(base.iter().map(|(key, value)| row(key, Some(value))).collect(), 3)];
    for (change, per_object) in changes {
        for (key, value) in change {
            match value {
                Some(value) => drop(state.insert(key.clone(), value.clone())),
                None => drop(state.remove(key)),
            }
        }
        let rows = change.iter().map(|(key, value)| row(key, value.as_ref())).collect();
        sources.push(source(rows, *per_object));
    }
    (state, sources)
}

proptest! {
    /// Layers over a base make what their changes make of its rows, one after the other.
    #[test]
    fn the_newest_of_each_row_counts(
        base in proptest::collection::btree_map(key(), value(), 0..30),
        changes in proptest::collection::vec(
            (proptest::collection::btree_map(key(), proptest::option::of(value()), 0..12), 1usize..5), 0..5,
        ),
    ) {
        let (state, sources) = sources_of(&base, &changes);
        let (found, end) = composed(&state, sources);
        end.expect("as said");
        prop_assert_eq!(found, state);
    }

    /// Anything else is found, and names the manifest; what was given out before is what it should be.
    #[test]
    fn other_rows_are_found(
        base in proptest::collection::btree_map(key(), value(), 1..30),
        change in proptest::collection::btree_map(key(), proptest::option::of(value()), 0..12),
        wrong in (key(), proptest::option::of(value())),
    ) {
        let (state, sources) = sources_of(&base, &[(change, 2)]);
        let mut other = state.clone();
        match &wrong.1 {
            Some(value) => drop(other.insert(wrong.0.clone(), value.clone())),
            None => drop(other.remove(&wrong.0)),
        }
        prop_assume!(other != state);
        let (found, end) = composed(&other, sources);
        let error = end.expect_err("not as said");
        prop_assert!(matches!(&error, ArchiveError::Corrupt { object, .. } if object.ends_with("MANIFEST")), "{}", error);
        for (key, value) in found {
            prop_assert_eq!(other.get(&key), Some(&value));
        }
    }
}

/// Objects whose rows overlap would be one layer with two orders.
#[test]
fn rows_out_of_order_are_found() {
    let key = |byte: u8| (1, vec![byte]);
    let value = vec![1];
    let rows = [3, 1].map(|byte| row(&key(byte), Some(&value))).to_vec();
    let state = State::from([(key(1), value.clone()), (key(3), value.clone())]);
    let (_, end) = composed(&state, vec![source(rows, 1)]);
    assert!(matches!(end, Err(ArchiveError::Corrupt { .. })), "{end:?}");
}

/// What feeds a layer died: what came so far must not pass for all of it.
#[test]
fn a_layer_that_breaks_off_is_no_end() {
    let state = State::from([((1, vec![1]), vec![1])]);
    let mut short = source(vec![row(&(1, vec![1]), Some(&vec![1]))], 1);
    short.left += 1;
    let (_, end) = composed(&state, vec![short]);
    assert!(matches!(end, Err(ArchiveError::Stopped { .. })), "{end:?}");
}
