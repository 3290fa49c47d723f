//! Keys of what is shipped: which seal now, and when a new generation begins.
//!
//! Invariants:
//! - Whether a history is encrypted, with which key and for whom, is in the log: every leader does the same, or nothing.
//! - A node that was given a secret ships nothing unencrypted, and one that lacks the secret of an encrypted history ships
//!   nothing at all.
//! - A generation ends with its week of log time: chunks are shared within one only. The same recipients can open the next.

use std::sync::Arc;
use std::time::Duration;

use holdfast_archive::layout::week_of;
use holdfast_archive::{ArchiveError, Compression, GenerationKey, Keyring, LineageId, Sealing, keys};
use holdfast_model::command::{ArchiveKeys, ArchiveRecipient, Command};
use holdfast_model::id::Millis;
use holdfast_model::state::{History, Sys};
use tokio::time::{Instant, sleep};

use super::{PROPOSE_TIMEOUT, Shipper};

/// From one look at the age of the keys to the next.
const TEND_PAUSE: Duration = Duration::from_secs(1);

/// How this node packs and encrypts what it ships.
#[derive(Debug, Clone)]
pub struct Encryption {
    /// The cluster's secret, if this node has it.
    pub keys: Arc<Keyring>,
    /// Packing.
    pub compression: Compression,
}

impl Encryption {
    /// How a history is sealed now.
    fn sealing(&self, sys: &Sys, history: &History) -> Result<Sealing, ArchiveError> {
        let refused =
            |what: &str, reason: &str| ArchiveError::Keys { what: what.to_owned(), reason: reason.to_owned() };
        let Some(keys) = &sys.archive_keys else {
            return match self.keys.is_empty() {
                true => Ok(Sealing::open_to_all(self.compression)),
                false => Err(refused(
                    "nothing is shipped yet",
                    "this node has ship.key_file, and nobody said for whom to encrypt: run `holdfast backup keys create`, \
                     or take the file out of the configuration of every node to ship unencrypted",
                )),
            };
        };
        let missing =
            "this history is encrypted, and this node lacks its secret: give it the ship.key_file of the others";
        if keys.incarnation != history.incarnation {
            return Err(match self.keys.is_empty() {
                true => refused("nothing is shipped", missing),
                false => refused("nothing is shipped yet", "keys of this history are being made"),
            });
        }
        let key = self.keys.key(&lineage_of(history), keys.generation, &keys.key_id);
        let key = key.map_err(|reason| match self.keys.is_empty() {
            true => refused("nothing is shipped", missing),
            false => refused(
                &format!("nothing is shipped with generation {} of keys", keys.generation),
                &format!("{reason}; ship.key_file must be the same on all nodes"),
            ),
        })?;
        Ok(Sealing::with_key(self.compression, key, keys.keys_age.clone()))
    }

    /// The generation that follows what is known.
    fn next(
        &self,
        sys: &Sys,
        history: &History,
        recipients: Vec<ArchiveRecipient>,
    ) -> Result<ArchiveKeys, ArchiveError> {
        let of_this = sys.archive_keys.as_ref().filter(|keys| keys.incarnation == history.incarnation);
        let generation = of_this.map_or(0, |keys| keys.generation.saturating_add(1)).max(week_of(sys.now));
        let lineage = lineage_of(history);
        let key: GenerationKey = self.keys.new_key(&lineage, generation).ok_or_else(|| ArchiveError::Keys {
            what: "no keys can be made".into(),
            reason:
                "this node has no secret: make one with `holdfast backup keys new`, put it on every node, and name it \
                     as ship.key_file"
                    .into(),
        })?;
        let to: Vec<String> = recipients.iter().map(|recipient| recipient.key.clone()).collect();
        Ok(ArchiveKeys {
            incarnation: history.incarnation,
            generation,
            key_id: key.id(),
            keys_age: keys::wrap(&key, &lineage, &to)?,
            recipients,
            since: Millis(0),
        })
    }

    /// The keys are of an ended history, or of a week that is over.
    fn is_due(sys: &Sys, history: &History) -> bool {
        sys.archive_keys
            .as_ref()
            .is_some_and(|keys| keys.incarnation != history.incarnation || week_of(sys.now) > week_of(keys.since))
    }
}

fn lineage_of(history: &History) -> LineageId {
    LineageId { cluster_id: history.cluster_id, incarnation: history.incarnation }
}

impl Shipper {
    /// How a history is sealed now.
    pub(super) fn sealing(&self, sys: &Sys, history: &History) -> Result<Sealing, ArchiveError> {
        self.encryption.sealing(sys, history)
    }

    /// The generation of keys that follows what is known, for these recipients.
    ///
    /// # Errors
    /// When this node lacks the secret, or the cluster is not founded.
    pub fn next_keys(&self, recipients: Vec<ArchiveRecipient>) -> Result<ArchiveKeys, ArchiveError> {
        let sys = self.replica.sys();
        let history = sys.history.as_ref().ok_or_else(|| ArchiveError::Keys {
            what: "no keys can be made".into(),
            reason: "the cluster is not founded; run `holdfast cluster init` first".into(),
        })?;
        self.encryption.next(&sys, history, recipients)
    }

    /// This node has the secret that these keys were made from.
    pub fn can_use(&self, keys: &ArchiveKeys, history: &History) -> bool {
        self.encryption.keys.key(&lineage_of(history), keys.generation, &keys.key_id).is_ok()
    }

    /// Begins a new generation when one is due, for the same recipients, while this node leads.
    pub(super) async fn tend_keys(&self) {
        // Without a secret, which is read at the start only, there is nothing to tend.
        while !self.encryption.keys.is_empty() {
            sleep(TEND_PAUSE).await;
            if !self.replica.is_leader() {
                continue;
            }
            let sys = self.replica.sys();
            let (Some(history), Some(keys)) = (&sys.history, &sys.archive_keys) else { continue };
            if sys.lineage_fork.is_some() || !Encryption::is_due(&sys, history) {
                continue;
            }
            let next = match self.encryption.next(&sys, history, keys.recipients.clone()) {
                Ok(next) => next,
                Err(error) => {
                    tracing::error!(event = "offsite.keys", %error, "no new generation of keys");
                    continue;
                }
            };
            let generation = next.generation;
            let deadline = Instant::now() + PROPOSE_TIMEOUT;
            match self.replica.propose_if_leader(Command::SetArchiveKeys(Box::new(next)), deadline).await {
                Ok(_) => tracing::info!(event = "offsite.keys", generation, "a new generation of keys"),
                Err(error) => tracing::debug!(event = "offsite.keys", %error, "tried again"),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use holdfast_model::id::Incarnation;

    use super::*;

    const WEEK_MS: u64 = 7 * 24 * 60 * 60 * 1000;

    fn history(incarnation: u64) -> History {
        History {
            cluster_id: [7; 16],
            cluster_name: "pine".into(),
            incarnation: Incarnation(incarnation),
            epoch: 1,
            parent: None,
            genesis_index: 1,
        }
    }

    fn sys(now: u64, keys: Option<ArchiveKeys>) -> Sys {
        Sys { now: Millis(now), archive_keys: keys.map(Arc::new), ..Sys::default() }
    }

    fn with_secret() -> Encryption {
        let keys = Keyring::new(vec![keys::Secret::random().expect("random")], Vec::new());
        Encryption { keys: Arc::new(keys), compression: Compression::Zstd }
    }

    fn without() -> Encryption {
        Encryption { keys: Arc::default(), compression: Compression::Zstd }
    }

    fn recipients() -> Vec<ArchiveRecipient> {
        vec![ArchiveRecipient { key: keys::Identity::generate().recipient(), drill: true }]
    }

    /// As the state machine keeps them.
    fn made(encryption: &Encryption, now: u64, before: Option<ArchiveKeys>) -> ArchiveKeys {
        let next = encryption.next(&sys(now, before), &history(1), recipients()).expect("keys");
        ArchiveKeys { since: Millis(now), ..next }
    }

    #[test]
    fn what_is_encrypted_stays_so_and_a_secret_alone_ships_nothing() {
        let (one, other) = (with_secret(), with_secret());
        let fresh = sys(5 * WEEK_MS, None);
        assert_eq!(without().sealing(&fresh, &history(1)).expect("plain").generation(), None);
        assert!(one.sealing(&fresh, &history(1)).is_err(), "nobody said for whom");
        let keys = made(&one, 5 * WEEK_MS, None);
        let encrypted = sys(5 * WEEK_MS, Some(keys.clone()));
        assert_eq!(one.sealing(&encrypted, &history(1)).expect("sealed").generation(), Some(keys.generation));
        for (encryption, why) in [(without(), "lacks its secret"), (other, "the same on all nodes")] {
            let error = encryption.sealing(&encrypted, &history(1)).expect_err(why).to_string();
            assert!(error.contains(why), "{error}");
        }
        // Restored: encrypted it was, and its own keys are not there yet.
        for (encryption, why) in [(&one, "being made"), (&without(), "lacks its secret")] {
            let error = encryption.sealing(&encrypted, &history(2)).expect_err(why).to_string();
            assert!(error.contains(why), "{error}");
        }
    }

    #[test]
    fn generations_follow_the_weeks_and_each_other() {
        let one = with_secret();
        let first = made(&one, 5 * WEEK_MS, None);
        assert_eq!(first.generation, week_of(Millis(5 * WEEK_MS)));
        assert!(!Encryption::is_due(&sys(5 * WEEK_MS, None), &history(1)), "nobody asked for it");
        assert!(!Encryption::is_due(&sys(5 * WEEK_MS + 1, Some(first.clone())), &history(1)));
        assert!(Encryption::is_due(&sys(6 * WEEK_MS, Some(first.clone())), &history(1)), "a new week");
        assert!(Encryption::is_due(&sys(5 * WEEK_MS, Some(first.clone())), &history(2)), "a new history");
        // Twice in a week, and then a week that has this number already.
        let second = made(&one, 5 * WEEK_MS + 1, Some(first.clone()));
        let third = made(&one, 6 * WEEK_MS, Some(second.clone()));
        assert_eq!((second.generation, third.generation), (first.generation + 1, first.generation + 2));
        let later = made(&one, 9 * WEEK_MS, Some(third));
        assert_eq!(later.generation, week_of(Millis(9 * WEEK_MS)));
        assert!(without().next(&sys(0, None), &history(1), recipients()).is_err(), "no secret");
    }
}
