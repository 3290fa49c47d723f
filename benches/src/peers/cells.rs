//! All that can be measured, by name.

use crate::faults::Fault;
use crate::goals::GOALS;
use crate::load::{Shape, Work};
use crate::peer::Who;

/// What a cell does.
#[derive(Debug, Clone, Copy)]
pub enum Kind {
    /// Load on one peer after the other, in rounds; Holdfast by streams, or not.
    Load(Shape, bool),
    /// Counts what servers sync.
    Syncs,
    /// Faults under writers.
    Fault(Fault),
    /// A restart of each node in turn.
    Rolling,
    /// Many records of one user, and delta syncs of few of them.
    Stored,
    /// More than it can take.
    Overload,
    /// A follower that was away.
    CatchUp,
}

/// Something that is measured by itself.
#[derive(Debug, Clone)]
pub struct Cell {
    /// Its name, for people and files.
    pub slug: String,
    /// What it does.
    pub kind: Kind,
    /// Who takes part.
    pub peers: &'static [Who],
}

impl Cell {
    /// Some goal is judged by it.
    pub fn is_asked(&self) -> bool {
        GOALS.iter().any(|goal| goal.cell == self.slug)
    }
}

const CLIENTS: [usize; 4] = [1, 16, 64, 256];
const SIZES: [(&str, usize); 3] = [("128", 128), ("1k", 1 << 10), ("16k", 16 << 10)];
/// Those that bring a new leader by themselves.
const REPLICATED: &[Who] = &[Who::Holdfast, Who::Etcd];
const KIB: usize = 1 << 10;

fn load(slug: &str, work: Work, clients: usize, bytes: usize) -> Cell {
    other(slug, Kind::Load(Shape { work, clients, bytes }, false), &Who::ALL)
}

fn other(slug: &str, kind: Kind, peers: &'static [Who]) -> Cell {
    Cell { slug: slug.to_owned(), kind, peers }
}

/// In the order in which they are run: those that goals are judged by come first.
pub fn all() -> Vec<Cell> {
    let mut cells = vec![
        load("put-256-1k", Work::Put, 256, KIB),
        other("stream-256-1k", Kind::Load(Shape { work: Work::Put, clients: 256, bytes: KIB }, true), REPLICATED),
        load("batch-64-1k", Work::Batch(64), 64, KIB),
        load("put-1-1k", Work::Put, 1, KIB),
        load("get-256-1k", Work::Get, 256, KIB),
        other("fsync", Kind::Syncs, &Who::ALL),
        other("failover", Kind::Fault(Fault::Kill), REPLICATED),
        other("transfer", Kind::Fault(Fault::Transfer), REPLICATED),
        other("rolling", Kind::Rolling, &[Who::Holdfast]),
        other("overload", Kind::Overload, &[Who::Holdfast]),
        other("stored-1m", Kind::Stored, &[Who::Holdfast]),
        other("catch-up", Kind::CatchUp, REPLICATED),
        load("mixed-256-1k", Work::Mixed, 256, KIB),
        load("list-64-1k", Work::List, 64, KIB),
    ];
    for (name, bytes) in SIZES {
        let new = CLIENTS.map(|clients| load(&format!("put-{clients}-{name}"), Work::Put, clients, bytes));
        let new = new.into_iter().filter(|new| cells.iter().all(|cell| cell.slug != new.slug)).collect::<Vec<_>>();
        cells.extend(new);
    }
    cells.sort_by_key(|cell| !cell.is_asked());
    cells
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn names_are_unique() {
        let cells = all();
        let names: BTreeSet<&str> = cells.iter().map(|cell| cell.slug.as_str()).collect();
        assert_eq!(names.len(), cells.len());
        assert!(names.contains("put-16-16k"));
    }
}
