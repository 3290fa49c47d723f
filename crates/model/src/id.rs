//! Identifiers. Each is a type of its own, valid by construction; nothing downstream checks them again.

use std::fmt;
use std::sync::Arc;

use crate::limits;

/// Why an identifier was refused. The text is meant for the caller.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IdError {
    /// Empty.
    #[error("must not be empty")]
    Empty,
    /// Too many bytes.
    #[error("is {len} bytes long, at most {max} are allowed")]
    TooLong {
        /// Bytes given.
        len: usize,
        /// Bytes allowed.
        max: usize,
    },
    /// Not a known collection.
    #[error("must be contacts, events, todos, notes, photos or start with x- (lower-case letters, digits, - and _)")]
    UnknownCollection,
    /// A control character where text is expected.
    #[error("must not contain control characters")]
    ControlCharacter,
    /// Not a UUID.
    #[error("must be a UUID such as 123e4567-e89b-12d3-a456-426614174000")]
    NotUuid,
}

fn checked_text(text: &str, max: usize) -> Result<&str, IdError> {
    if text.is_empty() {
        return Err(IdError::Empty);
    }
    if text.len() > max {
        return Err(IdError::TooLong { len: text.len(), max });
    }
    if text.chars().any(char::is_control) {
        return Err(IdError::ControlCharacter);
    }
    Ok(text)
}

macro_rules! text_id {
    ($(#[$meta:meta])* $name:ident, $max:expr) => {
        $(#[$meta])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(Arc<str>);

        impl $name {
            /// Checks length and characters.
            pub fn new(text: &str) -> Result<Self, IdError> {
                checked_text(text, $max).map(|text| Self(text.into()))
            }

            /// The text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                // Ids are a person's data; they stay out of logs and panics.
                write!(f, concat!(stringify!($name), "(#{})"), crate::redacted::tag(self.0.as_bytes()))
            }
        }
    };
}

text_id!(
    /// Owner of records: 1 to 128 bytes of UTF-8 without control characters.
    UserId,
    limits::USER_ID_BYTES_MAX
);
text_id!(
    /// Record inside a collection, chosen by the client: 1 to 128 bytes of UTF-8 without control characters.
    RecordId,
    limits::RECORD_ID_BYTES_MAX
);
text_id!(
    /// A registered device: 1 to 128 bytes of UTF-8 without control characters.
    DeviceId,
    limits::DEVICE_ID_BYTES_MAX
);

/// Collection of records: one of the well-known five or `x-…`, at most 64 bytes.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Collection(Arc<str>);

impl Collection {
    /// The well-known collections, in the order of restore: what people miss first comes first.
    pub const WELL_KNOWN: [&'static str; 5] = ["contacts", "events", "todos", "notes", "photos"];

    /// Checks the name.
    pub fn new(text: &str) -> Result<Self, IdError> {
        let text = checked_text(text, limits::COLLECTION_BYTES_MAX)?;
        let custom = text.strip_prefix("x-").is_some_and(|rest| {
            !rest.is_empty()
                && rest.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-' || b == b'_')
        });
        if custom || Self::WELL_KNOWN.contains(&text) { Ok(Self(text.into())) } else { Err(IdError::UnknownCollection) }
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Its stage of a restore.
    pub fn stage(&self) -> Stage {
        let place = Self::WELL_KNOWN.iter().position(|name| *name == self.as_str());
        Stage(place.unwrap_or(Self::WELL_KNOWN.len()) as u8)
    }
}

/// A stage of a restore: a well-known collection, or all custom ones together. Ordered as they are restored unless somebody
/// says otherwise: what people miss first comes first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Stage(u8);

impl Stage {
    /// All custom collections, by this name.
    const CUSTOM: &'static str = "x-*";

    /// All, in order.
    pub fn all() -> impl DoubleEndedIterator<Item = Self> {
        (0..=Collection::WELL_KNOWN.len() as u8).map(Self)
    }

    /// By its number.
    pub fn of_number(number: u8) -> Option<Self> {
        (usize::from(number) <= Collection::WELL_KNOWN.len()).then_some(Self(number))
    }

    /// By its name: that of a well-known collection, or `x-*`.
    pub fn of_name(name: &str) -> Option<Self> {
        Self::all().find(|stage| stage.name() == name)
    }

    /// Stable number; the order of stages is that of their numbers.
    pub fn number(self) -> u8 {
        self.0
    }

    /// Its name.
    pub fn name(self) -> &'static str {
        Collection::WELL_KNOWN.get(usize::from(self.0)).copied().unwrap_or(Self::CUSTOM)
    }
}

/// Identifies one record inside one user.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RecordKey {
    /// Collection.
    pub collection: Collection,
    /// Record.
    pub record_id: RecordId,
}

/// A request's UUID, chosen by the device, kept over all its retries.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RequestId(pub [u8; 16]);

impl RequestId {
    /// Reads the usual text form (hyphens optional). The nil UUID is refused: it is what a forgotten field looks like.
    pub fn parse(text: &str) -> Result<Self, IdError> {
        let digits: Vec<u8> = text.bytes().filter(|b| *b != b'-').collect();
        let hyphens_ok = match text.len() {
            32 => true,
            36 => [8, 13, 18, 23].iter().all(|i| text.as_bytes()[*i] == b'-'),
            _ => false,
        };
        if !hyphens_ok || digits.len() != 32 {
            return Err(IdError::NotUuid);
        }
        let mut out = [0u8; 16];
        for (byte, pair) in out.iter_mut().zip(digits.chunks_exact(2)) {
            let nibble = |c: u8| (c as char).to_digit(16).map(|d| d as u8).ok_or(IdError::NotUuid);
            *byte = nibble(pair[0])? << 4 | nibble(pair[1])?;
        }
        if out == [0; 16] { Err(IdError::NotUuid) } else { Ok(Self(out)) }
    }
}

/// Internal number of a user, allocated by the state machine: `epoch:16 | counter:48`; new after an erasure.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Uid(pub u64);

impl Uid {
    const COUNTER_BITS: u32 = 48;

    /// From its parts.
    pub fn new(epoch: u16, counter: u64) -> Self {
        debug_assert!(counter < 1 << Self::COUNTER_BITS);
        Self(u64::from(epoch) << Self::COUNTER_BITS | counter)
    }
}

/// Hash slot of a user, 16 bits of BLAKE3 over the user id; maps a user to a Raft group.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Slot(pub u16);

impl Slot {
    /// Slot of a user id.
    pub fn of(user: &UserId) -> Self {
        let hash = blake3::hash(user.as_str().as_bytes());
        Self(u16::from_be_bytes([hash.as_bytes()[0], hash.as_bytes()[1]]))
    }
}

/// Raft group. The first release serves group 0 only.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct GroupId(pub u32);

/// Raft node id, stable and never reused; 0 is no node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeId(pub u64);

/// Per-user commit number: `epoch:16 | counter:48`; strictly increasing, gap-free within an epoch. 0 = no commit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Version(pub u64);

impl Version {
    const COUNTER_BITS: u32 = 48;

    /// From its parts.
    pub fn new(epoch: u16, counter: u64) -> Self {
        debug_assert!(counter < 1 << Self::COUNTER_BITS);
        Self(u64::from(epoch) << Self::COUNTER_BITS | counter)
    }

    /// Epoch in the top 16 bits.
    pub fn epoch(self) -> u16 {
        (self.0 >> Self::COUNTER_BITS) as u16
    }

    /// Counter in the low 48 bits.
    pub fn counter(self) -> u64 {
        self.0 & ((1 << Self::COUNTER_BITS) - 1)
    }

    /// The version after this one in `epoch`: the first of a newer epoch, or one more in the same.
    pub fn next_in(self, epoch: u16) -> Self {
        if self.epoch() < epoch { Self::new(epoch, 1) } else { Self(self.0 + 1) }
    }
}

/// Random id of a history; replaced by every restore or forced recovery. Never 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Incarnation(pub u64);

/// First 16 bytes of BLAKE3 over everything the caller set on a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ContentHash(pub [u8; 16]);

/// A point in time, in milliseconds since the Unix epoch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Millis(pub u64);
