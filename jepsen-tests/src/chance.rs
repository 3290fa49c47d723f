//! Chance that comes back: everything random in a run follows from its seed.

/// SplitMix64 (Steele, Lea, Flood 2014): enough to choose operations, and small enough to hold here.
#[derive(Debug, Clone)]
pub struct Chance(u64);

impl Chance {
    /// A stream of its own for each `stream` of a seed.
    pub fn new(seed: u64, stream: u64) -> Self {
        let mut chance = Self(seed);
        let mixed = chance.next_u64();
        Self(mixed ^ stream.wrapping_mul(0x9e37_79b9_7f4a_7c15))
    }

    /// Any number.
    pub fn next_u64(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut x = self.0;
        x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        x ^ (x >> 31)
    }

    /// A number below `bound`, which is not 0.
    pub fn below(&mut self, bound: usize) -> usize {
        (self.next_u64() % bound as u64) as usize
    }

    /// True in `percent` of all cases.
    pub fn percent(&mut self, percent: usize) -> bool {
        self.below(100) < percent
    }

    /// Brings a list into any order (Fisher and Yates).
    pub fn shuffle<T>(&mut self, list: &mut [T]) {
        for last in (1..list.len()).rev() {
            list.swap(last, self.below(last + 1));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_gives_the_same_numbers_and_streams_differ() {
        let numbers = |seed, stream| {
            let mut chance = Chance::new(seed, stream);
            (0..8).map(|_| chance.next_u64()).collect::<Vec<_>>()
        };
        assert_eq!(numbers(7, 1), numbers(7, 1));
        assert_ne!(numbers(7, 1), numbers(7, 2));
        assert_ne!(numbers(7, 1), numbers(8, 1));
        let mut chance = Chance::new(1, 1);
        let hits = (0..10_000).filter(|_| chance.percent(30)).count();
        assert!((2_700..3_300).contains(&hits), "{hits}");
        let mut orders = std::collections::BTreeSet::new();
        for _ in 0..1_000 {
            let mut list = [1, 2, 3];
            chance.shuffle(&mut list);
            orders.insert(list);
        }
        assert_eq!(orders.len(), 6);
    }
}
