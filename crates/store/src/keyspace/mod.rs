//! Every key of the state database, in one registry: one family per column family, one file per family.
//!
//! Invariants:
//! - A tag is never reused; families that are planned keep their tag below.
//! - Byte order of keys is the order of the tuples they are made of.
//! - Families with a user begin with `slot:u16 | uid:u64`, big-endian ([`PREFIX_BYTES`]), the prefix of bloom filters.
//! - Text parts hold no control characters (`model::id`), so a zero byte ends one without escaping, and sorts first.

pub mod chg;
pub mod cur;
pub mod exp;
pub mod rec;
pub mod req;
pub mod sys;
pub mod uid;
pub mod usr;

use holdfast_model::id::{Slot, Uid};
use holdfast_model::state::UserRef;
use holdfast_wire::DecodeError;

/// Bytes of `slot | uid`.
pub const PREFIX_BYTES: usize = 10;

/// One kind of row: a column family.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Family {
    /// Group facts, applied position, jobs.
    Sys = 1,
    /// User id to number.
    Uid = 2,
    /// User rows.
    Usr = 3,
    /// Records.
    Rec = 4,
    /// Change feed.
    Chg = 5,
    // 6: his, retained older content.
    /// Remembered requests.
    Req = 7,
    /// Cursors of devices.
    Cur = 8,
    /// Expiry queue.
    Exp = 9,
    // 10: blb, attachments.
    // 11: in archives, large payloads apart from their records.
}

impl Family {
    /// All, by tag: the canonical order of a logical snapshot.
    pub const ALL: [Self; 8] = [Self::Sys, Self::Uid, Self::Usr, Self::Rec, Self::Chg, Self::Req, Self::Cur, Self::Exp];

    /// Stable number.
    pub fn tag(self) -> u8 {
        self as u8
    }

    /// Of a tag.
    pub fn of_tag(tag: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|family| family.tag() == tag)
    }

    /// Name of the column family.
    pub fn name(self) -> &'static str {
        match self {
            Self::Sys => "sys",
            Self::Uid => "uid",
            Self::Usr => "usr",
            Self::Rec => "rec",
            Self::Chg => "chg",
            Self::Req => "req",
            Self::Cur => "cur",
            Self::Exp => "exp",
        }
    }

    /// Keys begin with [`PREFIX_BYTES`] of a user.
    pub fn has_user_prefix(self) -> bool {
        match self {
            Self::Usr | Self::Rec | Self::Chg | Self::Req | Self::Cur => true,
            Self::Sys | Self::Uid | Self::Exp => false,
        }
    }
}

/// First bytes of a user's keys.
pub fn user_prefix(user: UserRef) -> [u8; PREFIX_BYTES] {
    let mut out = [0; PREFIX_BYTES];
    out[..2].copy_from_slice(&user.slot.0.to_be_bytes());
    out[2..].copy_from_slice(&user.uid.0.to_be_bytes());
    out
}

/// The user of a key, and what follows.
pub fn split_user<'a>(what: &'static str, key: &'a [u8]) -> Result<(UserRef, &'a [u8]), DecodeError> {
    let (slot, rest) = take::<2>(what, key)?;
    let (uid, rest) = take::<8>(what, rest)?;
    Ok((UserRef { slot: Slot(u16::from_be_bytes(slot)), uid: Uid(u64::from_be_bytes(uid)) }, rest))
}

/// First key after all that begin with `prefix`; `None` when there is none.
pub fn after_prefix(prefix: &[u8]) -> Option<Vec<u8>> {
    let kept = prefix.len() - prefix.iter().rev().take_while(|byte| **byte == u8::MAX).count();
    let mut out = prefix[..kept].to_vec();
    *out.last_mut()? += 1;
    Some(out)
}

fn take<'a, const N: usize>(what: &'static str, key: &'a [u8]) -> Result<([u8; N], &'a [u8]), DecodeError> {
    key.split_first_chunk::<N>()
        .map(|(head, rest)| (*head, rest))
        .ok_or_else(|| DecodeError::new(what, format!("key ends {} bytes early", N - key.len())))
}

fn ended(what: &'static str, rest: &[u8]) -> Result<(), DecodeError> {
    if rest.is_empty() { Ok(()) } else { Err(DecodeError::new(what, format!("key has {} bytes too many", rest.len()))) }
}

fn text<'a>(what: &'static str, bytes: &'a [u8]) -> Result<&'a str, DecodeError> {
    std::str::from_utf8(bytes).map_err(|error| DecodeError::new(what, error))
}

#[cfg(test)]
mod tests;
