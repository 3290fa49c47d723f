//! How long nothing was acknowledged.

use std::time::{Duration, Instant};

/// The longest time without an acknowledgement that touches `[from, to]`. Acknowledgements in order.
pub fn silence(acks: &[Instant], from: Instant, to: Instant) -> Duration {
    let start = acks.partition_point(|ack| *ack < from).saturating_sub(1);
    let end = (acks.partition_point(|ack| *ack <= to) + 1).min(acks.len());
    acks[start..end].windows(2).map(|pair| pair[1] - pair[0]).max().unwrap_or(to - from)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn silence_is_the_longest_gap_that_touches_the_time() {
        let start = Instant::now();
        let at = |ms: u64| start + Duration::from_millis(ms);
        let acks: Vec<Instant> = [0, 500, 510, 600, 620, 900].map(at).to_vec();
        let of = |from, to| silence(&acks, at(from), at(to)).as_millis();
        assert_eq!(of(505, 605), 90, "from the ack before it to the one after");
        assert_eq!(of(515, 550), 90, "it lies in the gap");
        assert_eq!(of(605, 700), 280, "what has not ended by then counts until it ends");
        assert_eq!(of(100, 400), 500);
    }
}
