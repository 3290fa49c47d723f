//! Room on the disks of the group: what this node measured of its own, and what the others said of theirs.
//!
//! Writes that add data are refused before they are proposed, while there is room for all that leads out again: deletes,
//! changes of members, facts. A follower without any room takes no entries, and keeps its vote.
//!
//! Invariants:
//! - What a disk holds until it is measured again is guessed from the bytes that were taken meanwhile, and guessed high.
//! - A disk that was nearly full counts as that until a quarter more than its mark is left: what is refused does not
//!   come and go with every flush.
//! - Nothing is refused for want of room when a quorum is missing anyway: then its absence is the reason.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use holdfast_store::{Left, Marks};
use holdfast_wire::internal::v1 as pb;

/// What was heard longer ago says nothing.
const HEARD_MAX: Duration = Duration::from_secs(2);
/// Log, its tables, and the rows of the state: what a proposal may take of a disk, in its own bytes.
const TAKES: u64 = 3;
/// Besides its payload, a proposal leaves frames, keys and rows of bookkeeping.
const TAKES_AT_LEAST: u64 = 512;
/// Rows of bookkeeping that writes leave which share an entry: as many as may (`propose::fold`), some 400 bytes each.
const SHARED_ROWS_BYTES: u64 = 100 << 10;
/// How long a leader whose disk alone is nearly full goes on taking writes while another one is to take over.
const HAND_OVER_MAX: Duration = Duration::from_secs(3);

/// How a disk is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub enum DiskLevel {
    /// There is room.
    #[default]
    Ample,
    /// Nothing is taken that adds data.
    Low,
    /// Nothing is taken.
    Full,
}

/// One disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Disk {
    /// How it is.
    pub level: DiskLevel,
    /// Bytes that are left, with what is held back and without what memory still has to write and the state has yet to take
    /// from the log.
    pub left: u64,
    /// With less it is nearly full, in bytes; 0 = not said.
    pub headroom: u64,
    /// With less it is full, in bytes.
    pub floor: u64,
}

/// What a command does to disks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Weight {
    /// It adds data.
    Adds,
    /// A caller's, and it frees data or adds next to none.
    Frees,
    /// The group's own: small, bounded, and needed to come out of trouble.
    Own,
}

/// What a leader does with a proposal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// There is room for it.
    Take,
    /// There is none; the evidence, for people.
    Refuse(String),
}

/// The disks of a group, as one node knows them.
#[derive(Default)]
pub struct Rooms(Mutex<Known>);

#[derive(Default)]
struct Known {
    own: Disk,
    own_at: u64,
    /// What they said, how much this node had taken by then, and when.
    peers: BTreeMap<u64, (Disk, u64, Instant)>,
    /// Bytes that this node has taken so far, guessed high.
    taken: u64,
    /// Since when this node leads with a disk that is nearly full.
    leads_low: Option<Instant>,
}

impl Disk {
    fn after(self, bytes: u64) -> Self {
        let left = self.left.saturating_sub(bytes);
        let level = match left {
            _ if self.headroom == 0 => DiskLevel::Ample,
            left if left < self.floor => DiskLevel::Full,
            left if left < self.headroom => DiskLevel::Low,
            _ => DiskLevel::Ample,
        };
        Self { left, level: level.max(self.level), ..self }
    }
}

impl Rooms {
    /// This node's disk was measured; `owed` bytes are not on it yet and will be. Gives the disk as it was known before,
    /// and as it is.
    pub fn measured(&self, left: Left, owed: u64, marks: Marks) -> (Disk, Disk) {
        let mut known = self.lock();
        let before = known.own;
        let left = left.total().saturating_sub(owed);
        let beyond = |mark: u64| left >= mark + mark / 4;
        let level = match before.level {
            _ if left < marks.floor => DiskLevel::Full,
            DiskLevel::Full if !beyond(marks.floor) => DiskLevel::Full,
            _ if left < marks.headroom => DiskLevel::Low,
            DiskLevel::Low | DiskLevel::Full if !beyond(marks.headroom) => DiskLevel::Low,
            _ => DiskLevel::Ample,
        };
        known.own = Disk { level, left, headroom: marks.headroom, floor: marks.floor };
        known.own_at = known.taken;
        (before, known.own)
    }

    /// A peer said this of its disk just now.
    pub fn heard(&self, peer: u64, disk: Option<pb::DiskRoom>) {
        let Some(disk) = disk else { return };
        let level = match disk.level {
            0 => DiskLevel::Ample,
            1 => DiskLevel::Low,
            _ => DiskLevel::Full,
        };
        let disk = Disk { level, left: disk.left_bytes, headroom: disk.headroom_bytes, floor: disk.floor_bytes };
        let mut known = self.lock();
        let taken = known.taken;
        known.peers.insert(peer, (disk, taken, Instant::now()));
    }

    /// This node's disk as of now.
    pub fn own(&self) -> Disk {
        self.lock().own_now()
    }

    /// What to tell a leader.
    pub fn report(&self) -> Option<pb::DiskRoom> {
        let own = self.own();
        let level = match own.level {
            DiskLevel::Ample => 0,
            DiskLevel::Low => 1,
            DiskLevel::Full => 2,
        };
        (own.headroom > 0).then_some(pb::DiskRoom {
            level,
            left_bytes: own.left,
            headroom_bytes: own.headroom,
            floor_bytes: own.floor,
        })
    }

    /// As a follower: how many entries of these sizes, from the first on, there is room for; they are taken. Entries of
    /// no size cost nothing.
    pub fn takes(&self, sizes: &[usize]) -> usize {
        let mut known = self.lock();
        let own = known.own_now();
        let (mut bytes, mut count) = (0, 0);
        for size in sizes {
            let more = bytes + size;
            if more > 0 && own.after(cost(more)).level == DiskLevel::Full {
                break;
            }
            (bytes, count) = (more, count + 1);
        }
        known.taken += if bytes > 0 { cost(bytes) } else { 0 };
        count
    }

    /// As the leader: judges a command of so many bytes, and counts it when it is taken.
    pub fn judge(&self, own: u64, configs: &[BTreeSet<u64>], weight: Weight, bytes: usize) -> Verdict {
        let mut known = self.lock();
        let refused = match weight {
            Weight::Own => None,
            Weight::Adds => known.refusal(own, configs, DiskLevel::Low),
            Weight::Frees => known.refusal(own, configs, DiskLevel::Full),
        };
        match refused {
            Some(evidence) => Verdict::Refuse(evidence),
            None => {
                known.taken += cost(bytes);
                Verdict::Take
            }
        }
    }

    /// As the leader: why nothing is taken now that adds data; `None` = it is.
    pub fn refuses(&self, own: u64, configs: &[BTreeSet<u64>]) -> Option<String> {
        self.lock().refusal(own, configs, DiskLevel::Low)
    }

    /// Called now and then by who leads: the voters that may take over from a leader whose disk is nearly full, when
    /// they have room.
    pub fn successors(&self, own: u64, voters: &[u64], leads: bool) -> Vec<u64> {
        let mut known = self.lock();
        if !leads || known.own_now().level == DiskLevel::Ample {
            known.leads_low = None;
            return Vec::new();
        }
        known.leads_low.get_or_insert_with(Instant::now);
        voters.iter().copied().filter(|voter| *voter != own && known.is_roomy(*voter)).collect()
    }

    fn lock(&self) -> MutexGuard<'_, Known> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn cost(bytes: usize) -> u64 {
    TAKES * (bytes as u64 + TAKES_AT_LEAST)
}

/// What the state is going to take of a disk for so many entries that the log holds by now. A large record takes its own
/// size, a small one rows that are larger than it is; and small ones share entries, nobody counts how many.
pub fn cost_of_applying(entries: u64, bytes: u64) -> u64 {
    let rows = entries.saturating_mul(SHARED_ROWS_BYTES).min(TAKES * bytes);
    bytes + rows + entries * (TAKES - 1) * TAKES_AT_LEAST
}

impl Known {
    fn own_now(&self) -> Disk {
        self.own.after(self.taken - self.own_at)
    }

    /// A peer's disk as of now; `None` = it said nothing lately.
    fn peer_now(&self, peer: u64) -> Option<Disk> {
        let (disk, at, heard) = self.peers.get(&peer)?;
        (heard.elapsed() <= HEARD_MAX).then(|| disk.after(self.taken.saturating_sub(*at)))
    }

    fn is_roomy(&self, voter: u64) -> bool {
        self.peer_now(voter).is_some_and(|disk| disk.level == DiskLevel::Ample)
    }

    /// Why nothing of a kind that needs a disk better than `level` can be taken; `None` = it can.
    fn refusal(&self, own: u64, configs: &[BTreeSet<u64>], level: DiskLevel) -> Option<String> {
        let own_disk = self.own_now();
        let handing_over = || {
            let voters = configs.iter().flatten();
            let someone = voters.copied().any(|voter| voter != own && self.is_roomy(voter));
            someone && self.leads_low.is_none_or(|since| since.elapsed() < HAND_OVER_MAX)
        };
        if own_disk.level >= level && (own_disk.level == DiskLevel::Full || !handing_over()) {
            return Some(told(&[(own, own_disk)], level));
        }
        for voters in configs {
            let quorum = voters.len() / 2 + 1;
            let mut short = Vec::new();
            let mut able = 0;
            for voter in voters {
                match self.peer_now(*voter) {
                    _ if *voter == own => able += 1,
                    Some(disk) if disk.level >= level => short.push((*voter, disk)),
                    Some(_) => able += 1,
                    // A peer that never said anything may have room; one that fell silent takes no part.
                    None => able += usize::from(!self.peers.contains_key(voter)),
                }
            }
            if able < quorum && able + short.len() >= quorum {
                return Some(told(&short, level));
            }
        }
        None
    }
}

fn told(short: &[(u64, Disk)], level: DiskLevel) -> String {
    const MIB: u64 = 1 << 20;
    let one = |(node, disk): &(u64, Disk)| {
        format!("node {node} has {} MiB left of the {} MiB that are kept free", disk.left / MIB, disk.headroom / MIB)
    };
    let taken = if level == DiskLevel::Full { "nothing more is taken" } else { "deletes are still taken" };
    format!("{}; {taken}", short.iter().map(one).collect::<Vec<_>>().join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;
    const MARKS: Marks = Marks { headroom: 16 * MIB, floor: 4 * MIB };

    fn measured(rooms: &Rooms, left_mib: u64) -> DiskLevel {
        rooms.measured(Left { free: left_mib * MIB, held: 0 }, 0, MARKS).1.level
    }

    fn peer(rooms: &Rooms, id: u64, left_mib: u64) {
        let of = Rooms::default();
        measured(&of, left_mib);
        rooms.heard(id, of.report());
    }

    fn three() -> Vec<BTreeSet<u64>> {
        vec![BTreeSet::from([1, 2, 3])]
    }

    fn takes(rooms: &Rooms, weight: Weight) -> bool {
        rooms.judge(1, &three(), weight, 0) == Verdict::Take
    }

    #[test]
    fn a_disk_counts_as_nearly_full_until_clearly_more_is_left() {
        let rooms = Rooms::default();
        let levels = [17, 15, 19, 20, 15, 3, 4, 5, 17, 20].map(|left| measured(&rooms, left));
        use DiskLevel::{Ample, Full, Low};
        assert_eq!(levels, [Ample, Low, Low, Ample, Low, Full, Full, Low, Low, Ample]);
        let (_, disk) = rooms.measured(Left { free: 18 * MIB, held: 8 * MIB }, 12 * MIB, MARKS);
        assert_eq!((disk.left, disk.level), (14 * MIB, Low), "what is held counts, and what memory has to write");
    }

    #[test]
    fn what_was_taken_since_the_measurement_counts() {
        let rooms = Rooms::default();
        measured(&rooms, 20);
        assert_eq!(rooms.takes(&[5 << 20]), 1, "five of twenty");
        assert_eq!(rooms.own().level, DiskLevel::Low);
        assert_eq!(rooms.takes(&[1 << 20]), 0, "nothing would be left above the floor");
        measured(&rooms, 20);
        assert_eq!(rooms.takes(&[1 << 20]), 1);
    }

    #[test]
    fn what_the_log_took_and_the_state_did_not_is_still_to_be_paid() {
        assert_eq!(cost_of_applying(0, 0), 0);
        let [large, small] = [5 << 20, 1].map(|bytes| cost_of_applying(1, bytes));
        assert!((5 << 20..6 << 20).contains(&large), "its size once more, not the guess of a moment: {large}");
        assert!(small > 512, "a small one leaves rows: {small}");
        assert_eq!(cost_of_applying(1000, 1000), 1000 * small);
        let [tiny, usual] = [40 << 10, 250 << 10].map(|bytes| cost_of_applying(1, bytes));
        assert!(
            tiny > 140 << 10 && usual > 350 << 10,
            "hundreds that share an entry leave hundreds of rows: {tiny} {usual}"
        );
    }

    #[test]
    fn of_entries_that_do_not_all_fit_the_first_are_taken() {
        let rooms = Rooms::default();
        measured(&rooms, 10);
        assert_eq!(rooms.takes(&[0, 1 << 20, 0, 1 << 19, 1 << 20, 0]), 4, "less than two of six above the floor");
        assert_eq!(rooms.takes(&[1 << 20, 0]), 0);
        assert_eq!(rooms.takes(&[0, 0, 1 << 20]), 2, "what has no size is always taken");
    }

    #[test]
    fn writes_need_a_quorum_with_room_and_deletes_one_that_is_not_full() {
        let rooms = Rooms::default();
        measured(&rooms, 100);
        peer(&rooms, 2, 100);
        peer(&rooms, 3, 10);
        assert!(takes(&rooms, Weight::Adds), "one of three may be short");
        peer(&rooms, 2, 10);
        peer(&rooms, 3, 10);
        let Verdict::Refuse(evidence) = rooms.judge(1, &three(), Weight::Adds, 0) else { panic!("taken") };
        assert_eq!(
            evidence,
            "node 2 has 10 MiB left of the 16 MiB that are kept free, node 3 has 10 MiB left of the 16 MiB that are kept \
             free; deletes are still taken"
        );
        assert_eq!(rooms.refuses(1, &three()), Some(evidence), "it says so before anybody asks");
        assert!(takes(&rooms, Weight::Frees));
        peer(&rooms, 2, 1);
        peer(&rooms, 3, 1);
        assert!(!takes(&rooms, Weight::Frees));
        assert!(takes(&rooms, Weight::Own));
        peer(&rooms, 2, 100);
        assert!(takes(&rooms, Weight::Adds), "a peer's word replaces the one before");
        assert_eq!(rooms.refuses(1, &three()), None);
    }

    #[test]
    fn a_leader_short_of_room_hands_over_to_who_has_some() {
        let rooms = Rooms::default();
        measured(&rooms, 10);
        peer(&rooms, 2, 100);
        peer(&rooms, 3, 10);
        assert!(rooms.successors(1, &[1, 2, 3], false).is_empty(), "a follower hands nothing over");
        assert_eq!(rooms.successors(1, &[1, 2, 3], true), [2]);
        assert!(takes(&rooms, Weight::Adds), "meanwhile it goes on");
        let long_ago = Instant::now().checked_sub(HAND_OVER_MAX * 2);
        rooms.lock().leads_low = Some(long_ago.expect("the machine runs longer than that"));
        assert!(!takes(&rooms, Weight::Adds), "nobody took over in time");
        rooms.lock().leads_low = None;
        measured(&rooms, 1);
        assert!(!takes(&rooms, Weight::Adds), "not into the last of it");
        measured(&rooms, 10);
        peer(&rooms, 2, 10);
        assert!(rooms.successors(1, &[1, 2, 3], true).is_empty());
        assert!(!takes(&rooms, Weight::Adds));
    }

    #[test]
    fn a_leader_counts_what_it_takes_until_it_measures_again() {
        let rooms = Rooms::default();
        measured(&rooms, 20);
        let large = |weight| rooms.judge(1, &[BTreeSet::from([1])], weight, 2 << 20);
        assert_eq!(large(Weight::Adds), Verdict::Take);
        assert!(matches!(large(Weight::Adds), Verdict::Refuse(_)), "three times two of four are gone");
        measured(&rooms, 20);
        assert_eq!(large(Weight::Adds), Verdict::Take);
    }

    #[test]
    fn silence_is_no_want_of_room() {
        let rooms = Rooms::default();
        measured(&rooms, 100);
        assert!(takes(&rooms, Weight::Adds), "a new leader has heard nobody yet");
        peer(&rooms, 2, 10);
        assert!(takes(&rooms, Weight::Adds), "node 3 may have room");
        let long_ago = Instant::now().checked_sub(HEARD_MAX * 2).expect("the machine runs longer than that");
        let silence = |id: u64| {
            let mut known = rooms.lock();
            let (disk, at, _) = known.peers[&id];
            known.peers.insert(id, (disk, at, long_ago));
        };
        peer(&rooms, 3, 100);
        silence(3);
        assert!(!takes(&rooms, Weight::Adds), "only node 2 is there, and it has none");
        silence(2);
        assert!(takes(&rooms, Weight::Adds), "nobody is there: not a matter of disks");
    }
}
