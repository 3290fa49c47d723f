//! Keys and values of the log's database.

use bytes::BufMut;
use holdfast_model::id::GroupId;

use crate::log::tail::Link;
use crate::log::types::{LogPosition, VoteRecord};

pub(crate) fn entry_key(group: GroupId, index: u64) -> [u8; 12] {
    let mut key = [0; 12];
    key[..4].copy_from_slice(&group.0.to_be_bytes());
    key[4..].copy_from_slice(&index.to_be_bytes());
    key
}

pub(crate) fn parse_entry_key(key: &[u8]) -> Option<u64> {
    key.get(4..)?.try_into().ok().map(u64::from_be_bytes)
}

pub(crate) fn fact_key(group: GroupId, tag: u8) -> [u8; 5] {
    let [a, b, c, d] = group.0.to_be_bytes();
    [a, b, c, d, tag]
}

pub(crate) fn put_position(out: &mut Vec<u8>, position: LogPosition) {
    out.put_u64(position.term);
    out.put_u64(position.node);
    out.put_u64(position.index);
}

pub(crate) fn parse_position(value: &[u8]) -> Option<(LogPosition, &[u8])> {
    let (term, rest) = value.split_first_chunk::<8>()?;
    let (node, rest) = rest.split_first_chunk::<8>()?;
    let (index, rest) = rest.split_first_chunk::<8>()?;
    let [term, node, index] = [term, node, index].map(|bytes| u64::from_be_bytes(*bytes));
    Some((LogPosition { term, node, index }, rest))
}

pub(crate) fn parse_purged(value: &[u8]) -> Option<Link> {
    let (position, crc) = parse_position(value)?;
    Some(Link { position: Some(position), crc: u32::from_be_bytes(crc.try_into().ok()?) })
}

pub(crate) fn parse_vote(value: &[u8]) -> Option<VoteRecord> {
    let (term, rest) = value.split_first_chunk::<8>()?;
    let (node, rest) = rest.split_first_chunk::<8>()?;
    let [committed @ (0 | 1)] = *rest else { return None };
    Some(VoteRecord { term: u64::from_be_bytes(*term), node: u64::from_be_bytes(*node), committed: committed == 1 })
}
