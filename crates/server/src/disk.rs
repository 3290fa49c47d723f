//! When an operator should act on a disk.

use holdfast_replica::{Disk, DiskLevel};
use holdfast_store::Space;

/// Below this share of the whole, an operator should act: the log, flushes and compactions need room to work in.
const LOW_PERCENT: u64 = 10;
/// No disk with so much left is low, however large it is.
const LOW_BYTES: u64 = 20 << 30;

/// An operator should act: little is left, or so little that writes are refused.
pub fn is_low(space: Space, disk: Disk) -> bool {
    disk.level > DiskLevel::Ample || space.free < LOW_BYTES && space.free < space.size() / 100 * LOW_PERCENT
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn low_is_a_small_share_of_a_disk_that_is_not_huge_or_what_refuses_writes() {
        let gib = 1 << 30;
        let low = |used, free| is_low(Space { used, free }, Disk::default());
        assert!(low(95 * gib, 5 * gib));
        assert!(!low(85 * gib, 15 * gib));
        assert!(!low(10_000 * gib, 100 * gib));
        let refusing = Disk { level: DiskLevel::Low, ..Disk::default() };
        assert!(is_low(Space { used: 80 << 20, free: 20 << 20 }, refusing));
    }
}
