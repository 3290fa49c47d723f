//! Names of objects. A name says whose object it is, of which kind and where it belongs, and nothing is ever renamed.
//!
//! ```text
//! <cluster>/<incarnation>/LINEAGE
//! <cluster>/<incarnation>/gen/<generation:04>/KEYS.age
//! <cluster>/<incarnation>/gen/<generation:04>/chunk/<blake3 of the rows, keyed where they are encrypted>
//! <cluster>/<incarnation>/gen/<generation:04>/patch/<the same>
//! <cluster>/<incarnation>/log/<group>/L0/<first_index:020>[.r<repair>]    a segment, a gap, or the fence behind the last
//! <cluster>/<incarnation>/log/<group>/L<level>/<first_index:020>-<last_index:020>    the entries of several segments
//! <cluster>/<incarnation>/snap/<group>/<index:020>/MANIFEST
//! <cluster>/<incarnation>/heartbeat/<group>/<at_ms:020>
//! <cluster>/<incarnation>/verify/<group>/<at_ms:020>-<first 8 bytes of the verifier's key>
//! <cluster>/<incarnation>/tombstone/<group>/<at_ms:020>-<first 8 bytes of the key of who prunes>    what is to go
//! <cluster>/<incarnation>/pruned/<group>/<at_ms:020>-<first 8 bytes of the key of who prunes>    what went
//! doctor/<at_ms:020>-<first 8 bytes of the verifier's key>/VERDICT    what a destination lets its clients do
//! doctor/<at_ms:020>-<first 8 bytes of the verifier's key>/CANARY-<n>    what that was tried on; of no other use
//! ```
//!
//! Invariants: a name parses to exactly the parts that print it, and anything else does not parse. Zero padding makes
//! the order of names the order of indices.

use holdfast_model::id::{GroupId, Incarnation, Millis};

/// Which history of which cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct LineageId {
    /// Cluster.
    pub cluster_id: [u8; 16],
    /// History.
    pub incarnation: Incarnation,
}

impl std::fmt::Display for LineageId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{:016x}", hex(&self.cluster_id), self.incarnation.0)
    }
}

impl LineageId {
    /// Reads `<cluster>/<incarnation>`.
    pub fn parse(text: &str) -> Option<Self> {
        let (cluster, incarnation) = text.split_once('/')?;
        Self::from_parts(cluster, incarnation)
    }

    /// The name could be that of a cluster's folder.
    pub fn is_cluster(name: &str) -> bool {
        unhex::<16>(name).is_some()
    }

    fn from_parts(cluster: &str, incarnation: &str) -> Option<Self> {
        let incarnation = u64::from_be_bytes(unhex(incarnation)?);
        Some(Self { cluster_id: unhex(cluster)?, incarnation: Incarnation(incarnation) })
    }

    /// Prefix of a group's segments of one level.
    pub fn log_prefix(&self, group: GroupId, level: u8) -> String {
        format!("{self}/log/{}/L{level}", group.0)
    }

    /// Prefix of a group's heartbeats.
    pub fn heartbeat_prefix(&self, group: GroupId) -> String {
        format!("{self}/heartbeat/{}", group.0)
    }

    /// Prefix of what was found by those who read a group's archive.
    pub fn verify_prefix(&self, group: GroupId) -> String {
        format!("{self}/verify/{}", group.0)
    }

    /// Prefix of the marks of what is to go of a group.
    pub fn tombstone_prefix(&self, group: GroupId) -> String {
        format!("{self}/tombstone/{}", group.0)
    }

    /// Prefix of what is told of deletions.
    pub fn pruned_prefix(&self, group: GroupId) -> String {
        format!("{self}/pruned/{}", group.0)
    }

    /// Prefix of the chunks and patches of a generation, and of its key.
    pub fn generation_prefix(&self, generation: u32) -> String {
        format!("{self}/gen/{generation:04}")
    }

    /// Prefix of a group's manifests.
    pub fn snapshot_prefix(&self, group: GroupId) -> String {
        format!("{self}/snap/{}", group.0)
    }
}

/// One object of a lineage.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ObjectName {
    /// Facts of the lineage.
    Lineage,
    /// Part of the log.
    Segment {
        /// Group.
        group: GroupId,
        /// Index of its first entry.
        first: u64,
        /// 0 = none; n = the n-th repair of a poisoned position.
        repair: u32,
    },
    /// The entries of several segments once more. Its name says how far it reaches: a list of names tells what it covers.
    Joined {
        /// Group.
        group: GroupId,
        /// 1 or more.
        level: u8,
        /// Index of its first entry.
        first: u64,
        /// Index of its last entry.
        last: u64,
    },
    /// Rows of the state.
    Chunk {
        /// Generation: without encryption the week of the log's time.
        generation: u32,
        /// Hash of the rows; keyed where they are encrypted.
        name: [u8; 32],
    },
    /// Rows that changed from one snapshot to a later one.
    Patch {
        /// Generation, as of a chunk.
        generation: u32,
        /// Hash of the rows; keyed where they are encrypted.
        name: [u8; 32],
    },
    /// The key of a generation, for its recipients.
    Keys {
        /// Generation.
        generation: u32,
    },
    /// Commit point of a snapshot.
    Manifest {
        /// Group.
        group: GroupId,
        /// Index of the last entry in it.
        index: u64,
    },
    /// A moment at which the log here was complete.
    Heartbeat {
        /// Group.
        group: GroupId,
        /// The moment, by the group's time: milliseconds since the Unix epoch.
        at_ms: u64,
    },
    /// What somebody saw who read the archive; signed.
    Verification {
        /// Group.
        group: GroupId,
        /// When that ended, by the clock of whoever did it: milliseconds since the Unix epoch.
        at_ms: u64,
        /// The first bytes of the key that signed it.
        key: [u8; 8],
    },
    /// What is to go, unless somebody stops it; signed.
    Tombstone {
        /// Group.
        group: GroupId,
        /// When it was marked, by the clock of whoever did it: milliseconds since the Unix epoch.
        at_ms: u64,
        /// The first bytes of the key that signed it.
        key: [u8; 8],
    },
    /// What went; signed.
    Pruned {
        /// Group.
        group: GroupId,
        /// When, by the clock of whoever deleted it: milliseconds since the Unix epoch.
        at_ms: u64,
        /// The first bytes of the key that signed it.
        key: [u8; 8],
    },
}

/// Folder of what was found of the destination itself, beside all clusters.
pub(crate) const DOCTOR: &str = "doctor";
const VERDICT: &str = "VERDICT";

/// One look at what a destination lets its clients do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct DoctorVisit {
    /// When, by the clock of whoever looked: milliseconds since the Unix epoch.
    pub at_ms: u64,
    /// The first bytes of the key that signs the verdict.
    pub key: [u8; 8],
}

impl DoctorVisit {
    /// Where its verdict lies.
    pub fn verdict(&self) -> String {
        format!("{}/{VERDICT}", self.prefix())
    }

    /// Where its `n`-th canary lies.
    pub(crate) fn canary(&self, n: u32) -> String {
        format!("{}/CANARY-{n}", self.prefix())
    }

    fn prefix(&self) -> String {
        format!("{DOCTOR}/{:020}-{}", self.at_ms, hex(&self.key))
    }

    fn parse(name: &str) -> Option<Self> {
        let (at_ms, key) = name.split_once('-')?;
        let visit = Self { at_ms: at_ms.parse().ok()?, key: unhex(key)? };
        (visit.prefix() == format!("{DOCTOR}/{name}")).then_some(visit)
    }

    /// Reads the name of a verdict.
    pub fn of_verdict(path: &str) -> Option<Self> {
        match path.split('/').collect::<Vec<_>>()[..] {
            [DOCTOR, visit, VERDICT] => Self::parse(visit),
            _ => None,
        }
    }
}

/// It was put there to be tampered with.
pub(crate) fn is_canary(path: &str) -> bool {
    match path.split('/').collect::<Vec<_>>()[..] {
        [DOCTOR, visit, file] => {
            let n = file.strip_prefix("CANARY-").and_then(|n| n.parse().ok());
            DoctorVisit::parse(visit).zip(n).is_some_and(|(visit, n)| visit.canary(n) == path)
        }
        _ => false,
    }
}

impl ObjectName {
    /// A segment as it is shipped.
    pub fn segment(group: GroupId, first: u64) -> Self {
        Self::Segment { group, first, repair: 0 }
    }

    /// Full name inside the destination.
    pub fn path(&self, lineage: &LineageId) -> String {
        match self {
            Self::Lineage => format!("{lineage}/LINEAGE"),
            Self::Segment { group, first, repair: 0 } => format!("{}/{first:020}", lineage.log_prefix(*group, 0)),
            Self::Segment { group, first, repair } => {
                format!("{}/{first:020}.r{repair}", lineage.log_prefix(*group, 0))
            }
            Self::Joined { group, level, first, last } => {
                format!("{}/{first:020}-{last:020}", lineage.log_prefix(*group, *level))
            }
            Self::Keys { generation } => format!("{}/KEYS.age", lineage.generation_prefix(*generation)),
            Self::Chunk { generation, name } => {
                format!("{}/chunk/{}", lineage.generation_prefix(*generation), hex(name))
            }
            Self::Patch { generation, name } => {
                format!("{}/patch/{}", lineage.generation_prefix(*generation), hex(name))
            }
            Self::Manifest { group, index } => format!("{}/{index:020}/MANIFEST", lineage.snapshot_prefix(*group)),
            Self::Heartbeat { group, at_ms } => format!("{}/{at_ms:020}", lineage.heartbeat_prefix(*group)),
            Self::Verification { group, at_ms, key } => evidence(lineage.verify_prefix(*group), *at_ms, key),
            Self::Tombstone { group, at_ms, key } => evidence(lineage.tombstone_prefix(*group), *at_ms, key),
            Self::Pruned { group, at_ms, key } => evidence(lineage.pruned_prefix(*group), *at_ms, key),
        }
    }

    /// Reads a full name; `None` = no object of ours has it.
    pub fn parse(path: &str) -> Option<(LineageId, Self)> {
        let parts: Vec<&str> = path.split('/').collect();
        let (lineage, rest) = match parts.as_slice() {
            [cluster, incarnation, rest @ ..] => (LineageId::from_parts(cluster, incarnation)?, rest),
            _ => return None,
        };
        let name = match rest {
            ["LINEAGE"] => Self::Lineage,
            ["log", group, "L0", file] => {
                let (first, repair) = match file.split_once(".r") {
                    Some((first, repair)) => (first, repair.parse().ok()?),
                    None => (*file, 0),
                };
                Self::Segment { group: GroupId(group.parse().ok()?), first: first.parse().ok()?, repair }
            }
            ["log", group, level, file] => {
                let level = level.strip_prefix('L')?.parse().ok()?;
                let (first, last) = file.split_once('-')?;
                let (first, last) = (first.parse().ok()?, last.parse().ok()?);
                if level == 0 || first > last {
                    return None;
                }
                Self::Joined { group: GroupId(group.parse().ok()?), level, first, last }
            }
            ["gen", generation, "KEYS.age"] => Self::Keys { generation: generation.parse().ok()? },
            ["gen", generation, "chunk", name] => {
                Self::Chunk { generation: generation.parse().ok()?, name: unhex(name)? }
            }
            ["gen", generation, "patch", name] => {
                Self::Patch { generation: generation.parse().ok()?, name: unhex(name)? }
            }
            ["snap", group, index, "MANIFEST"] => {
                Self::Manifest { group: GroupId(group.parse().ok()?), index: index.parse().ok()? }
            }
            ["heartbeat", group, at_ms] => {
                Self::Heartbeat { group: GroupId(group.parse().ok()?), at_ms: at_ms.parse().ok()? }
            }
            [kind @ ("verify" | "tombstone" | "pruned"), group, name] => {
                let (at_ms, key) = name.split_once('-')?;
                let (group, at_ms, key) = (GroupId(group.parse().ok()?), at_ms.parse().ok()?, unhex(key)?);
                match *kind {
                    "verify" => Self::Verification { group, at_ms, key },
                    "tombstone" => Self::Tombstone { group, at_ms, key },
                    _ => Self::Pruned { group, at_ms, key },
                }
            }
            _ => return None,
        };
        // One spelling only: `+1`, `01` or a missing zero is no name of ours.
        (name.path(&lineage) == path).then_some((lineage, name))
    }
}

/// Name of what somebody signed.
fn evidence(prefix: String, at_ms: u64, key: &[u8; 8]) -> String {
    format!("{prefix}/{at_ms:020}-{}", hex(key))
}

/// Who signed what lies under a name, by the first bytes of the key; `None` = nobody signs such a thing.
pub(crate) fn signer_of(path: &str) -> Option<[u8; 8]> {
    match ObjectName::parse(path) {
        Some((
            _,
            ObjectName::Verification { key, .. } | ObjectName::Tombstone { key, .. } | ObjectName::Pruned { key, .. },
        )) => Some(key),
        Some(_) => None,
        None => DoctorVisit::of_verdict(path).map(|visit| visit.key),
    }
}

/// Week of a point in log time: whole weeks since the Monday before the Unix epoch.
pub fn week_of(now: Millis) -> u32 {
    const DAY_MS: u64 = 24 * 60 * 60 * 1000;
    // 1970-01-01 was a Thursday, three days after its week's Monday.
    u32::try_from((now.0 / DAY_MS + 3) / 7).unwrap_or(u32::MAX)
}

/// Lower-case hex.
pub fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write;
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut out, byte| {
        let _ = write!(out, "{byte:02x}");
        out
    })
}

/// Reads lower-case hex.
pub fn unhex<const N: usize>(text: &str) -> Option<[u8; N]> {
    let text = text.as_bytes();
    if text.len() != 2 * N {
        return None;
    }
    let nibble = |c: u8| match c {
        b'0'..=b'9' => Some(c - b'0'),
        b'a'..=b'f' => Some(c - b'a' + 10),
        _ => None,
    };
    let mut out = [0; N];
    for (byte, pair) in out.iter_mut().zip(text.chunks_exact(2)) {
        *byte = nibble(pair[0])? << 4 | nibble(pair[1])?;
    }
    Some(out)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn name() -> impl Strategy<Value = ObjectName> {
        prop_oneof![
            Just(ObjectName::Lineage),
            (any::<u32>(), any::<u64>(), any::<u32>()).prop_map(|(group, first, repair)| ObjectName::Segment {
                group: GroupId(group),
                first,
                repair
            }),
            (any::<u32>(), 1u8.., any::<u64>(), any::<u64>()).prop_map(|(group, level, a, b)| ObjectName::Joined {
                group: GroupId(group),
                level,
                first: a.min(b),
                last: a.max(b)
            }),
            (0u32..99_999).prop_map(|generation| ObjectName::Keys { generation }),
            (0u32..99_999, any::<[u8; 32]>()).prop_map(|(generation, name)| ObjectName::Chunk { generation, name }),
            (0u32..99_999, any::<[u8; 32]>()).prop_map(|(generation, name)| ObjectName::Patch { generation, name }),
            (any::<u32>(), any::<u64>())
                .prop_map(|(group, index)| ObjectName::Manifest { group: GroupId(group), index }),
            (any::<u32>(), any::<u64>())
                .prop_map(|(group, at_ms)| ObjectName::Heartbeat { group: GroupId(group), at_ms }),
            (any::<u32>(), any::<u64>(), any::<[u8; 8]>()).prop_map(|(group, at_ms, key)| ObjectName::Verification {
                group: GroupId(group),
                at_ms,
                key
            }),
            (any::<u32>(), any::<u64>(), any::<[u8; 8]>()).prop_map(|(group, at_ms, key)| ObjectName::Tombstone {
                group: GroupId(group),
                at_ms,
                key
            }),
            (any::<u32>(), any::<u64>(), any::<[u8; 8]>()).prop_map(|(group, at_ms, key)| ObjectName::Pruned {
                group: GroupId(group),
                at_ms,
                key
            }),
        ]
    }

    proptest! {
        #[test]
        fn names_round_trip(cluster_id in any::<[u8; 16]>(), incarnation in any::<u64>(), name in name()) {
            let lineage = LineageId { cluster_id, incarnation: Incarnation(incarnation) };
            prop_assert_eq!(ObjectName::parse(&name.path(&lineage)), Some((lineage, name)));
            prop_assert_eq!(LineageId::parse(&lineage.to_string()), Some(lineage));
        }

        #[test]
        fn a_name_has_one_spelling(name in name(), at in any::<prop::sample::Index>(), byte in "[ -~]") {
            let lineage = LineageId { cluster_id: [0xab; 16], incarnation: Incarnation(7) };
            let path = name.path(&lineage);
            let mut other = path.clone();
            let at = at.index(path.len());
            other.replace_range(at..=at, &byte);
            if let Some((lineage, parsed)) = ObjectName::parse(&other) {
                prop_assert_eq!(parsed.path(&lineage), other);
            }
        }

        #[test]
        fn any_text_parses_or_not(text in "[0-9a-fA-Z/.+-]{0,90}") {
            if let Some((lineage, name)) = ObjectName::parse(&text) {
                prop_assert_eq!(name.path(&lineage), text);
            }
        }
    }

    #[test]
    fn canaries_and_verdicts_are_told_from_everything_else() {
        let visit = DoctorVisit { at_ms: 1_795_305_600_000, key: [0xab; 8] };
        assert_eq!(visit.verdict(), "doctor/00000001795305600000-abababababababab/VERDICT");
        assert_eq!(DoctorVisit::of_verdict(&visit.verdict()), Some(visit));
        assert!(is_canary(&visit.canary(0)) && is_canary(&visit.canary(17)) && !is_canary(&visit.verdict()));
        assert_eq!(DoctorVisit::of_verdict(&visit.canary(0)), None);
        let lineage = LineageId { cluster_id: [1; 16], incarnation: Incarnation(0xfeed) };
        for other in [
            ObjectName::segment(GroupId(0), 9).path(&lineage),
            visit.canary(1).replace("CANARY-1", "CANARY-01"),
            visit.canary(1).replace("CANARY-1", "CANARY-"),
            visit.canary(1).replace("doctor/0", "doctor/"),
            visit.canary(1).replace("abab", "ABab"),
            format!("x/{}", visit.canary(1)),
            format!("{}/x", visit.canary(1)),
        ] {
            assert!(!is_canary(&other), "{other}");
        }
    }

    #[test]
    fn names_are_frozen_and_sort_by_index() {
        let lineage = LineageId { cluster_id: [1; 16], incarnation: Incarnation(0xfeed) };
        let segment = |first| ObjectName::segment(GroupId(0), first).path(&lineage);
        assert_eq!(segment(9), "01010101010101010101010101010101/000000000000feed/log/0/L0/00000000000000000009");
        assert!(segment(9) < segment(10));
        let chunk = ObjectName::Chunk { generation: 2945, name: [0xff; 32] }.path(&lineage);
        assert!(chunk.ends_with(&format!("/000000000000feed/gen/2945/chunk/{}", "ff".repeat(32))), "{chunk}");
        let manifest = ObjectName::Manifest { group: GroupId(3), index: 12 }.path(&lineage);
        assert!(manifest.ends_with("/snap/3/00000000000000000012/MANIFEST"), "{manifest}");
    }

    #[test]
    fn other_spellings_are_no_names() {
        let id = "01010101010101010101010101010101/000000000000feed";
        let good = [format!("{id}/log/0/L0/00000000000000000009"), format!("{id}/log/0/L0/00000000000000000009.r2")];
        assert!(good.iter().all(|path| ObjectName::parse(path).is_some()));
        let bad = [
            "log/0/L0/+0000000000000000009",
            "log/0/L0/9",
            "log/00/L0/00000000000000000009",
            "log/0/L00/00000000000000000009",
            "log/0/L0/00000000000000000009.r0",
            "log/0/L0/00000000000000000009.r02",
            "log/0/L1/00000000000000000009",
            "log/0/L0/00000000000000000009-00000000000000000010",
            "log/0/L1/00000000000000000010-00000000000000000009",
            "gen/945/KEYS.age",
            "gen/02945/chunk/ffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff",
            "snap/0/12/MANIFEST",
            "heartbeat/0/1795305600000",
            "LINEAGE/",
        ];
        for rest in bad {
            assert_eq!(ObjectName::parse(&format!("{id}/{rest}")), None, "{rest}");
        }
    }

    #[test]
    fn weeks_begin_on_monday() {
        let day = |day: u64| Millis(day * 86_400_000);
        assert_eq!((week_of(day(0)), week_of(day(3)), week_of(day(4))), (0, 0, 1));
        // 2026-11-22 is a Sunday, the 23rd a Monday.
        assert_eq!(week_of(day(20_779)) + 1, week_of(day(20_780)));
        assert_eq!(week_of(Millis(u64::MAX)), u32::MAX);
    }
}
