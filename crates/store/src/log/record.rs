//! How a segment of the log is laid out: records one behind the other, each of which proves itself.
//!
//! `crc u32 | length u32 | base u32 | group u32 | kind u8 | body`, numbers big-endian. The checksum is CRC32C over whose
//! segment it is and all behind it: bytes of another segment or another node, on a reused block or inside of what somebody
//! stored, are no record. `base` is where the write began that this record was part of. One write is fsynced before the
//! next one begins, so what is broken in front of a record of the same write may be a torn write, and what is broken in
//! front of a later one was fsynced once.

use std::ops::Range;

use bytes::{Buf, BufMut};
use holdfast_model::id::GroupId;

use crate::log::tail::Link;
use crate::log::types::{LogPosition, VoteRecord};
use crate::marker::Identity;

pub(crate) const HEADER_BYTES: usize = 17;
/// A longer record than any that there is: messages are bounded far below it.
const SEARCHED_BYTES_MAX: usize = 16 << 20;
/// Of a [`Kind::Start`].
pub(crate) const START_BYTES: usize = HEADER_BYTES + 4 + 8 + 8;
/// Of what a segment holds; an older one would say so.
pub(crate) const LAYOUT: u32 = 1;

/// Whose segments: every checksum in them begins with it. A secret to nobody who has the disk, and to everybody else.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Salt(u32);

impl Salt {
    pub(crate) fn of(identity: &Identity) -> Self {
        Self(crc32c::crc32c_append(crc32c::crc32c(&identity.node_id.to_be_bytes()), &identity.identity))
    }

    /// With what the checksums of a segment begin.
    pub(crate) fn seed(self, number: u64) -> Seed {
        Seed(crc32c::crc32c_append(self.0, &number.to_be_bytes()))
    }
}

/// With what the checksums of a segment begin.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Seed(u32);

/// What a record says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Kind {
    /// A segment begins: layout, its number, the number of the one before.
    Start = 1,
    /// A frame, see `frame`.
    Entry = 2,
    /// The vote.
    Vote = 3,
    /// The committed position, a hint.
    Committed = 4,
    /// All up to here is purged.
    Purged = 5,
    /// All behind this is dropped.
    Truncated = 6,
    /// Nothing: it covers what was damaged.
    Pad = 7,
}

impl Kind {
    fn of(byte: u8) -> Option<Self> {
        use Kind::{Committed, Entry, Pad, Purged, Start, Truncated, Vote};
        [Start, Entry, Vote, Committed, Purged, Truncated, Pad].into_iter().find(|kind| *kind as u8 == byte)
    }
}

/// A record that was read.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Record<'a> {
    pub(crate) kind: Kind,
    pub(crate) group: u32,
    pub(crate) base: u32,
    pub(crate) body: &'a [u8],
    /// Where it lies in the bytes that were read.
    pub(crate) at: Range<usize>,
}

/// Adds a record to what is to be written; `body` adds its body.
pub(crate) fn put<T>(
    out: &mut Vec<u8>,
    (seed, base, group): (Seed, u32, GroupId),
    kind: Kind,
    body: impl FnOnce(&mut Vec<u8>) -> T,
) -> T {
    let start = out.len();
    out.extend_from_slice(&[0; HEADER_BYTES]);
    let given = body(out);
    // Bodies are bounded far below 4 GiB by the limits of a batch.
    let length = (out.len() - start - HEADER_BYTES) as u32;
    let mut header = Vec::with_capacity(HEADER_BYTES);
    header.put_u32(length);
    header.put_u32(base);
    header.put_u32(group.0);
    header.put_u8(kind as u8);
    if let Some(place) = out.get_mut(start + 4..start + HEADER_BYTES) {
        place.copy_from_slice(&header);
    }
    let crc = crc32c::crc32c_append(seed.0, out.get(start + 4..).unwrap_or_default());
    if let Some(place) = out.get_mut(start..start + 4) {
        place.copy_from_slice(&crc.to_be_bytes());
    }
    given
}

/// The record at `at`, if there is a whole one. `origin` is where `bytes` lie in the segment.
pub(crate) fn at(bytes: &[u8], at: usize, origin: u32, seed: Seed) -> Option<Record<'_>> {
    let mut header = bytes.get(at..at.checked_add(HEADER_BYTES)?)?;
    let (crc, length, base, group) = (header.get_u32(), header.get_u32(), header.get_u32(), header.get_u32());
    let kind = Kind::of(header.get_u8())?;
    let end = at.checked_add(HEADER_BYTES)?.checked_add(length as usize)?;
    if u64::from(base) > u64::from(origin) + at as u64 || crc32c::crc32c_append(seed.0, bytes.get(at + 4..end)?) != crc
    {
        return None;
    }
    Some(Record { kind, group, base, body: bytes.get(at + HEADER_BYTES..end)?, at: at..end })
}

/// What a scan comes upon.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Item<'a> {
    /// A whole record.
    Record(Record<'a>),
    /// Something else, and a whole record behind it.
    Damage(Range<usize>),
    /// Something else up to the end; empty when all is well.
    End(Range<usize>),
}

/// Whether a record behind damage at `damaged` may begin at `start`: it is of the write that the last whole one was part of, or
/// of a later one. What is no record is told so by its header, or a search would read all behind each byte.
fn may_follow(bytes: &[u8], start: usize, damaged: usize, last_base: usize) -> bool {
    let word = |at: usize| bytes.get(start + at..)?.first_chunk::<4>().map(|word| u32::from_be_bytes(*word) as usize);
    let (Some(length), Some(base)) = (word(4), word(8)) else { return false };
    length <= SEARCHED_BYTES_MAX && (base == last_base || (damaged..=start).contains(&base))
}

/// Calls `f` with all of a segment, in order.
pub(crate) fn scan<'a>(bytes: &'a [u8], seed: Seed, mut f: impl FnMut(Item<'a>)) {
    // Zeros at the end were never written; a record never ends with as many as a header has.
    let written = bytes.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
    let limit = (written + HEADER_BYTES).min(bytes.len());
    let (mut next, mut last_base) = (0, 0);
    while next < written {
        if let Some(record) = at(bytes, next, 0, seed) {
            (next, last_base) = (record.at.end, record.base as usize);
            f(Item::Record(record));
            continue;
        }
        let may_be = |start: usize| may_follow(bytes, start, next, last_base) && at(bytes, start, 0, seed).is_some();
        let found = (next + 1..limit).find(|start| may_be(*start));
        match found {
            Some(start) => f(Item::Damage(next..start)),
            None => return f(Item::End(next..bytes.len())),
        }
        next = found.unwrap_or(bytes.len());
    }
    f(Item::End(next..next));
}

/// A record that covers `damaged` bytes of a segment; at least as many as a header has.
pub(crate) fn pad(seed: Seed, base: u32, group: GroupId, damaged: usize) -> Vec<u8> {
    let mut out = Vec::with_capacity(damaged);
    put(&mut out, (seed, base, group), Kind::Pad, |out| out.resize(damaged.max(HEADER_BYTES), 0));
    out
}

pub(crate) fn put_position(out: &mut Vec<u8>, position: LogPosition) {
    out.put_u64(position.term);
    out.put_u64(position.node);
    out.put_u64(position.index);
}

fn parse_position(value: &[u8]) -> Option<(LogPosition, &[u8])> {
    let (term, rest) = value.split_first_chunk::<8>()?;
    let (node, rest) = rest.split_first_chunk::<8>()?;
    let (index, rest) = rest.split_first_chunk::<8>()?;
    let [term, node, index] = [term, node, index].map(|bytes| u64::from_be_bytes(*bytes));
    Some((LogPosition { term, node, index }, rest))
}

/// A position that may not be there, alone.
pub(crate) fn parse_committed(body: &[u8]) -> Option<LogPosition> {
    parse_position(body).filter(|(_, rest)| rest.is_empty()).map(|(position, _)| position)
}

/// `crc u32`, and the position if there is one.
pub(crate) fn put_link(out: &mut Vec<u8>, link: Link) {
    out.put_u32(link.crc);
    if let Some(position) = link.position {
        put_position(out, position);
    }
}

pub(crate) fn parse_link(body: &[u8]) -> Option<Link> {
    let (crc, rest) = body.split_first_chunk::<4>()?;
    let crc = u32::from_be_bytes(*crc);
    let position = if rest.is_empty() { None } else { Some(parse_committed(rest)?) };
    Some(Link { position, crc })
}

pub(crate) fn put_vote(out: &mut Vec<u8>, vote: VoteRecord) {
    out.put_u64(vote.term);
    out.put_u64(vote.node);
    out.put_u8(vote.committed.into());
}

pub(crate) fn parse_vote(body: &[u8]) -> Option<VoteRecord> {
    let (term, rest) = body.split_first_chunk::<8>()?;
    let (node, rest) = rest.split_first_chunk::<8>()?;
    let [committed @ (0 | 1)] = *rest else { return None };
    Some(VoteRecord { term: u64::from_be_bytes(*term), node: u64::from_be_bytes(*node), committed: committed == 1 })
}

/// What a [`Kind::Start`] says: layout, number, and the number of the segment before it.
pub(crate) fn put_start(out: &mut Vec<u8>, number: u64, before: u64) {
    out.put_u32(LAYOUT);
    out.put_u64(number);
    out.put_u64(before);
}

/// Layout and the number of the segment before.
pub(crate) fn parse_start(body: &[u8]) -> Option<(u32, u64)> {
    let (layout, rest) = body.split_first_chunk::<4>()?;
    let (_, rest) = rest.split_first_chunk::<8>()?;
    let before: &[u8; 8] = rest.try_into().ok()?;
    Some((u32::from_be_bytes(*layout), u64::from_be_bytes(*before)))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const GROUP: GroupId = GroupId(3);
    const SEED: Seed = Seed(7);

    /// Three writes of some records each, and where each record begins.
    fn segment() -> (Vec<u8>, Vec<usize>) {
        let (mut out, mut starts) = (Vec::new(), Vec::new());
        for count in [3, 1, 4] {
            let base = out.len() as u32;
            for at in 0..count {
                starts.push(out.len());
                put(&mut out, (SEED, base, GROUP), Kind::Entry, |out| out.resize(out.len() + 5 + 40 * at, 0xa5));
            }
        }
        (out, starts)
    }

    fn scanned(bytes: &[u8], seed: Seed) -> (Vec<usize>, Vec<Range<usize>>, Range<usize>) {
        let (mut records, mut damage, mut end) = (Vec::new(), Vec::new(), 0..0);
        scan(bytes, seed, |item| match item {
            Item::Record(record) => records.push(record.at.start),
            Item::Damage(range) => damage.push(range),
            Item::End(range) => end = range,
        });
        (records, damage, end)
    }

    #[test]
    fn every_flipped_bit_breaks_one_record_and_leaves_the_others() {
        let (whole, starts) = segment();
        assert_eq!(scanned(&whole, SEED), (starts.clone(), Vec::new(), whole.len()..whole.len()));
        for bit in 0..whole.len() * 8 {
            let mut bytes = whole.clone();
            bytes[bit / 8] ^= 1 << (bit % 8);
            let hit = starts.partition_point(|start| *start <= bit / 8) - 1;
            let range = starts[hit]..starts.get(hit + 1).copied().unwrap_or(whole.len());
            let others: Vec<_> = starts.iter().copied().filter(|start| *start != starts[hit]).collect();
            let (records, damage, end) = scanned(&bytes, SEED);
            assert_eq!(records, others, "bit {bit}");
            if hit + 1 < starts.len() {
                assert_eq!((damage, end), (vec![range], whole.len()..whole.len()), "bit {bit}");
            } else {
                assert_eq!((damage, end), (Vec::new(), range), "bit {bit}");
            }
        }
        assert_eq!(scanned(&whole, Seed(8)).0, Vec::<usize>::new(), "records of another segment");
    }

    #[test]
    fn each_segment_of_each_directory_has_a_seed_of_its_own() {
        let identity = |node_id, byte| Identity { node_id, identity: [byte; 16], cluster_id: None };
        let salts = [identity(1, 5), identity(2, 5), identity(1, 6)].map(|identity| Salt::of(&identity));
        let mut seeds: Vec<u32> =
            salts.into_iter().flat_map(|salt| (1..100).map(move |number| salt.seed(number).0)).collect();
        seeds.sort_unstable();
        seeds.dedup();
        assert_eq!(seeds.len(), 3 * 99);
    }

    #[test]
    fn zeros_behind_the_last_record_are_its_end() {
        let (mut bytes, starts) = segment();
        let end = bytes.len();
        // A body that ends with zeros is whole all the same.
        put(&mut bytes, (SEED, end as u32, GROUP), Kind::Pad, |out| out.resize(out.len() + 100, 0));
        bytes.resize(bytes.len() + 5000, 0);
        let (records, damage, rest) = scanned(&bytes, SEED);
        assert_eq!((records.len(), damage), (starts.len() + 1, Vec::new()));
        assert_eq!(rest, end + HEADER_BYTES + 100..end + HEADER_BYTES + 100);
    }

    /// What somebody stored may look like a record, even with a seed that fits: behind damage only that counts which can follow.
    #[test]
    fn a_record_inside_of_what_was_stored_is_not_taken_for_one_of_the_log() {
        let (mut out, starts) = segment();
        let base = out.len() as u32;
        let mut inner = Vec::new();
        put(&mut inner, (SEED, starts[3] as u32, GROUP), Kind::Vote, |out| out.resize(17, 1));
        let outer = out.len();
        put(&mut out, (SEED, base, GROUP), Kind::Entry, |out| out.extend([&[9; 40][..], &inner, &[9; 40]].concat()));
        let next = out.len();
        put(&mut out, (SEED, base, GROUP), Kind::Entry, |out| out.resize(out.len() + 9, 3));
        assert!(at(&out, outer + HEADER_BYTES + 40, 0, SEED).is_some(), "by itself it is one");
        out[outer + 5] ^= 1;
        let (records, damage, _) = scanned(&out, SEED);
        assert_eq!((damage.first(), damage.len(), records.last()), (Some(&(outer..next)), 1, Some(&next)));
    }

    #[test]
    fn damage_is_covered_by_padding_of_its_size() {
        let (mut bytes, starts) = segment();
        bytes[starts[4] + 20] ^= 1;
        let damage = starts[4]..starts[5];
        bytes[damage.clone()].copy_from_slice(&pad(SEED, starts[4] as u32, GROUP, damage.len()));
        assert_eq!(scanned(&bytes, SEED), (starts, Vec::new(), bytes.len()..bytes.len()));
    }

    proptest! {
        #[test]
        fn any_bytes_are_scanned(bytes in prop::collection::vec(any::<u8>(), 0..600)) {
            let mut covered = 0;
            scan(&bytes, SEED, |item| match item {
                Item::Record(record) => { assert_eq!(record.at.start, covered); covered = record.at.end }
                Item::Damage(range) => { assert_eq!(range.start, covered); covered = range.end }
                Item::End(range) => assert_eq!(range.start, covered),
            });
            let _any = (parse_link(&bytes), parse_vote(&bytes), parse_start(&bytes), parse_committed(&bytes));
        }

        #[test]
        fn facts_come_back(term: u64, node: u64, index: u64, crc: u32, committed: bool, is_there: bool) {
            let position = LogPosition { term, node, index };
            let link = Link { position: is_there.then_some(position), crc };
            let (mut out, mut fact, mut start) = (Vec::new(), Vec::new(), Vec::new());
            put_link(&mut out, link);
            let back = parse_link(&out).expect("a link");
            prop_assert_eq!((back.position, back.crc), (link.position, link.crc));
            let vote = VoteRecord { term, node, committed };
            put_vote(&mut fact, vote);
            prop_assert_eq!(parse_vote(&fact), Some(vote));
            put_start(&mut start, term, node);
            prop_assert_eq!(parse_start(&start), Some((LAYOUT, node)));
        }
    }
}
