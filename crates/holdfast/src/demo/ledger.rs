//! What clients were promised: every acknowledged record, and when.
//!
//! Invariant: an entry is made after the answer was in the client's hands, never before.

use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use holdfast_archive::layout::hex;
use serde::Serialize;

use crate::atomic_file;
use crate::clock;
use crate::demo::load::people_in_order;

/// An acknowledged record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ack {
    /// Its number in the sequence of made-up records.
    pub number: u64,
    /// SHA-256 of the payload that was sent.
    pub sha256: [u8; 32],
    /// Log index at which it took effect.
    pub commit_index: u64,
    /// When the answer came, by the wall clock.
    pub at: SystemTime,
    /// The same moment, by a clock that never jumps.
    pub moment: Instant,
}

/// All acknowledgements, in the order of their arrival.
#[derive(Debug, Default)]
pub struct Ledger {
    acks: Mutex<Vec<Ack>>,
}

#[derive(Serialize)]
struct Line<'a> {
    user: &'a str,
    collection: &'a str,
    id: &'a str,
    sha256: String,
    commit_index: u64,
    time: String,
}

impl Ledger {
    /// Notes an acknowledgement.
    pub fn add(&self, ack: Ack) {
        self.locked().push(ack);
    }

    /// How many there are.
    pub fn count(&self) -> u64 {
        self.locked().len() as u64
    }

    /// All of them, by their number.
    pub fn acknowledged(&self) -> Vec<Ack> {
        let mut acks = self.locked().clone();
        acks.sort_unstable_by_key(|ack| ack.number);
        acks
    }

    /// Longest time in which no client got an answer.
    pub fn longest_silence(&self) -> Duration {
        let mut moments: Vec<Instant> = self.locked().iter().map(|ack| ack.moment).collect();
        moments.sort_unstable();
        moments.windows(2).map(|pair| pair[1] - pair[0]).max().unwrap_or_default()
    }

    /// Writes one JSON line per record.
    pub fn write(&self, path: &Path, seed: u64) -> anyhow::Result<()> {
        let mut text = Vec::new();
        for (ack, (user, record)) in people_in_order(seed, &self.acknowledged()) {
            let line = Line {
                user: &user,
                collection: record.collection,
                id: &record.record_id,
                sha256: hex(&ack.sha256),
                commit_index: ack.commit_index,
                time: clock::rfc3339(clock::unix_ms(ack.at)),
            };
            serde_json::to_writer(&mut text, &line)?;
            text.push(b'\n');
        }
        atomic_file::write(path, &text)
    }

    fn locked(&self) -> MutexGuard<'_, Vec<Ack>> {
        // Only whole entries are pushed: a panic elsewhere leaves nothing half done.
        self.acks.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
pub mod tests {
    use super::*;

    /// An acknowledgement `ms` after `start`.
    pub fn ack(number: u64, commit_index: u64, start: (SystemTime, Instant), ms: u64) -> Ack {
        let after = Duration::from_millis(ms);
        Ack { number, sha256: [0; 32], commit_index, at: start.0 + after, moment: start.1 + after }
    }

    #[test]
    fn the_longest_silence_is_over_all_clients_and_in_any_order() {
        let ledger = Ledger::default();
        assert_eq!(ledger.longest_silence(), Duration::ZERO);
        let start = (SystemTime::now(), Instant::now());
        for (number, ms) in [(2, 400), (0, 0), (1, 10), (3, 410)] {
            ledger.add(ack(number, 1, start, ms));
        }
        assert_eq!(ledger.longest_silence(), Duration::from_millis(390));
        assert_eq!(ledger.acknowledged().iter().map(|ack| ack.number).collect::<Vec<_>>(), [0, 1, 2, 3]);
    }

    #[test]
    fn the_ledger_is_written_line_by_line() {
        let dir = tempfile::tempdir().expect("temp");
        let path = dir.path().join("acknowledged.jsonl");
        let ledger = Ledger::default();
        let start = (SystemTime::UNIX_EPOCH, Instant::now());
        ledger.add(ack(1, 9, start, 5));
        ledger.add(ack(30, 11, start, 7));
        ledger.write(&path, 7).expect("writes");
        let text = std::fs::read_to_string(&path).expect("reads");
        let lines: Vec<serde_json::Value> =
            text.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
        assert_eq!(lines.len(), 2);
        let (_, (user, record)) = people_in_order(7, &ledger.acknowledged()).next().expect("a record");
        assert_eq!(
            (lines[0]["user"].as_str(), lines[0]["id"].as_str()),
            (Some(&user[..]), Some(&record.record_id[..]))
        );
        assert_eq!(lines[0]["commit_index"], 9);
        assert_eq!(lines[0]["time"], "1970-01-01T00:00:00.005Z");
        let keys: Vec<&str> = ["user", "collection", "id", "sha256", "commit_index", "time"].into();
        assert!(keys.iter().all(|key| lines[1].get(key).is_some()), "{}", lines[1]);
    }
}
