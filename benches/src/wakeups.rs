//! Whether each write woke whoever watches its user, and how long that took.
//!
//! Hints may be merged, so that one hint answers for all versions up to its own. But a hint that only a *later* write
//! caused would hide that an earlier one was forgotten: see [`Judgement::lost`].

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// A wake-up that came later than this after the acknowledgement, and only with the next write of the user, was the next
/// write's: its own was lost. Users must be written to less often than this for that to be seen.
pub const OWN_WITHIN: Duration = Duration::from_secs(5);

/// A write that was acknowledged.
#[derive(Debug, Clone, Copy)]
pub struct Write {
    /// Whose record.
    pub user: u32,
    /// As the answer says.
    pub version: u64,
    /// When the call began.
    pub sent: Instant,
    /// When the answer was there.
    pub acked: Instant,
}

/// A hint that arrived on the stream that watches its user.
#[derive(Debug, Clone, Copy)]
pub struct Heard {
    /// Of whom.
    pub user: u32,
    /// `head_version` of the hint.
    pub head: u64,
    /// When it arrived.
    pub at: Instant,
}

/// What came out.
#[derive(Debug, Default)]
pub struct Judgement {
    /// Writes that nobody was woken for, at all or only by the next write (see [`OWN_WITHIN`]).
    pub lost: u64,
    /// From acknowledgements to hints, sorted; zero where the hint was faster than the answer.
    pub after_ack: Vec<Duration>,
    /// From the beginnings of calls to hints, sorted.
    pub after_send: Vec<Duration>,
    /// From the beginnings of calls to acknowledgements, sorted.
    pub acks: Vec<Duration>,
    /// Writes whose hint was faster than their answer.
    pub before_ack: u64,
    /// Hints that arrived.
    pub hints: u64,
    /// Hints that said nothing new.
    pub repeated: u64,
    /// Hints with an older version than one before.
    pub went_back: u64,
}

/// Judges all writes by all that was heard. `heard` of one user must be in the order of arrival.
pub fn judge(writes: &[Write], heard: &[Heard]) -> Judgement {
    let mut users: BTreeMap<u32, (Vec<&Write>, Vec<&Heard>)> = BTreeMap::new();
    for write in writes {
        users.entry(write.user).or_default().0.push(write);
    }
    for heard in heard {
        users.entry(heard.user).or_default().1.push(heard);
    }
    let mut judgement = Judgement { hints: heard.len() as u64, ..Default::default() };
    judgement.acks = writes.iter().map(|write| write.acked - write.sent).collect();
    for (mut writes, heard) in users.into_values() {
        writes.sort_unstable_by_key(|write| write.version);
        judgement.judge_user(&writes, &heard);
    }
    for samples in [&mut judgement.after_ack, &mut judgement.after_send, &mut judgement.acks] {
        samples.sort_unstable();
    }
    judgement
}

impl Judgement {
    fn judge_user(&mut self, writes: &[&Write], heard: &[&Heard]) {
        let (mut head, mut waiting) = (0, writes);
        for hint in heard {
            self.repeated += u64::from(hint.head == head);
            self.went_back += u64::from(hint.head < head);
            head = head.max(hint.head);
            while let Some((write, later)) = waiting.split_first().filter(|(write, _)| write.version <= head) {
                self.woken(write, later.first().is_some_and(|next| next.version <= head), hint.at);
                waiting = later;
            }
        }
        self.lost += waiting.len() as u64;
    }

    fn woken(&mut self, write: &Write, with_next: bool, at: Instant) {
        let after_ack = at.saturating_duration_since(write.acked);
        if with_next && after_ack > OWN_WITHIN {
            self.lost += 1;
            return;
        }
        self.before_ack += u64::from(at < write.acked);
        self.after_ack.push(after_ack);
        self.after_send.push(at.saturating_duration_since(write.sent));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    struct Clock(Instant);

    impl Clock {
        fn write(&self, user: u32, version: u64, sent_ms: u32) -> Write {
            let sent = self.0 + MS * sent_ms;
            Write { user, version, sent, acked: sent + MS * 10 }
        }

        fn heard(&self, user: u32, head: u64, at_ms: u32) -> Heard {
            Heard { user, head, at: self.0 + MS * at_ms }
        }
    }

    #[test]
    fn one_hint_answers_for_all_versions_up_to_its_own() {
        let clock = Clock(Instant::now());
        // In the order of answers, which is not that of versions.
        let writes = [clock.write(1, 8, 5), clock.write(1, 7, 0), clock.write(2, 3, 0)];
        let heard = [clock.heard(1, 8, 12), clock.heard(2, 3, 40), clock.heard(2, 3, 50), clock.heard(2, 2, 60)];
        let judgement = judge(&writes, &heard);
        assert_eq!((judgement.lost, judgement.hints, judgement.before_ack), (0, 4, 1));
        assert_eq!((judgement.repeated, judgement.went_back), (1, 1));
        assert_eq!(judgement.after_ack, [Duration::ZERO, MS * 2, MS * 30]);
        assert_eq!(judgement.after_send, [MS * 7, MS * 12, MS * 40]);
        assert_eq!(judgement.acks, [MS * 10; 3]);
    }

    #[test]
    fn a_write_without_a_hint_is_lost() {
        let clock = Clock(Instant::now());
        let writes = [clock.write(1, 7, 0), clock.write(1, 8, 5), clock.write(2, 7, 0)];
        let judgement = judge(&writes, &[clock.heard(1, 7, 12)]);
        assert_eq!((judgement.lost, judgement.after_ack.len()), (2, 1));
    }

    #[test]
    fn a_hint_of_the_next_write_does_not_hide_a_lost_one() {
        let clock = Clock(Instant::now());
        let writes = [clock.write(1, 7, 0), clock.write(1, 8, 10_000)];
        assert_eq!(judge(&writes, &[clock.heard(1, 8, 10_020)]).lost, 1);
        // Late, but its own.
        assert_eq!(judge(&writes, &[clock.heard(1, 7, 9_000), clock.heard(1, 8, 10_020)]).lost, 0);
    }
}
