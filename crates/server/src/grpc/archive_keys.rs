//! Keys of the offsite archive: operators say for whom it is encrypted.

use std::collections::BTreeSet;
use std::time::Duration;

use holdfast_archive::{ArchiveError, keys};
use holdfast_model::command::{ArchiveKeys, ArchiveRecipient, Command};
use holdfast_wire::status::Refusal;
use holdfast_wire::v1;
use tokio::time::Instant;

use super::admin::Admin;
use crate::grpc::status::hex;

const TIMEOUT: Duration = Duration::from_secs(10);
/// The fewest recipients: one is online for drills, two are kept offline and in different places.
const DRILL_MIN: usize = 1;
const OFFLINE_MIN: usize = 2;
/// The most: they are kept in the group's facts, which every entry may rewrite.
const RECIPIENTS_MAX: usize = 16;

impl Admin {
    pub(super) async fn create_keys(
        &self,
        request: v1::CreateArchiveKeysRequest,
    ) -> Result<v1::CreateArchiveKeysResponse, Refusal> {
        let shared = &self.shared;
        shared.check_serving()?;
        let known = shared.replica.sys().archive_keys.clone();
        let recipients = match (&known, request.rotate, request.recipients.is_empty()) {
            (Some(known), false, _) => {
                return Err(Refusal::Precondition {
                    reason: "KEYS_EXIST",
                    message: format!(
                        "what is shipped is encrypted already, with generation {}; `backup keys rotate` goes on with \
                         another",
                        known.generation
                    ),
                });
            }
            (None, true, _) => {
                return Err(Refusal::Precondition {
                    reason: "NO_KEYS",
                    message: "what is shipped is not encrypted; begin with `backup keys create`".into(),
                });
            }
            (Some(known), true, true) => known.recipients.clone(),
            (Some(_), true, false) | (None, false, _) => recipients_of(request.recipients)?,
        };
        let made = shared.shipper.next_keys(recipients).map_err(refused)?;
        let deadline = Instant::now() + TIMEOUT;
        shared.propose_first(Command::SetArchiveKeys(Box::new(made.clone())), 1, deadline).await?;
        let sys = shared.replica.sys();
        match &sys.archive_keys {
            // No two files of keys are equal: these are the ones that were asked for.
            Some(keys) if keys.keys_age == made.keys_age => {
                Ok(v1::CreateArchiveKeysResponse { keys: Some(self.keys_to(keys)) })
            }
            Some(keys) if keys.generation >= made.generation => Err(Refusal::Precondition {
                reason: "KEYS_EXIST",
                message: format!(
                    "somebody else made generation {} at the same time, perhaps for others; see `backup keys show`, \
                     then `backup keys rotate`",
                    keys.generation
                ),
            }),
            Some(_) | None => Err(Refusal::ReplicaBehind),
        }
    }

    pub(super) fn archive_keys(&self) -> v1::GetArchiveKeysResponse {
        let sys = self.shared.replica.sys();
        let keys = sys.archive_keys.as_ref();
        let usable = keys.zip(sys.history.as_ref());
        v1::GetArchiveKeysResponse {
            keys: keys.map(|keys| self.keys_to(keys)),
            usable: usable.is_some_and(|(keys, history)| self.shared.shipper.can_use(keys, history)),
        }
    }

    fn keys_to(&self, keys: &ArchiveKeys) -> v1::ArchiveKeys {
        let sys = self.shared.replica.sys();
        let recipient =
            |recipient: &ArchiveRecipient| v1::ArchiveRecipient { key: recipient.key.clone(), drill: recipient.drill };
        v1::ArchiveKeys {
            generation: keys.generation,
            key_id: hex(&keys.key_id),
            recipients: keys.recipients.iter().map(recipient).collect(),
            since_ms: keys.since.0,
            current: sys.history.as_ref().is_some_and(|history| history.incarnation == keys.incarnation),
            keys_age: keys.keys_age.clone(),
        }
    }
}

/// At least one for drills and two offline, no two of them equal.
fn recipients_of(asked: Vec<v1::ArchiveRecipient>) -> Result<Vec<ArchiveRecipient>, Refusal> {
    if asked.len() > RECIPIENTS_MAX {
        let reason = format!("must be at most {RECIPIENTS_MAX}; {} were named", asked.len());
        return Err(Refusal::field("recipients", reason));
    }
    for (place, recipient) in asked.iter().enumerate() {
        let field = format!("recipients[{place}].key");
        keys::check_recipient(&recipient.key).map_err(|error| Refusal::field(field, error.to_string()))?;
    }
    let different: BTreeSet<&str> = asked.iter().map(|recipient| recipient.key.as_str()).collect();
    let drill = asked.iter().filter(|recipient| recipient.drill).count();
    let offline = asked.len() - drill;
    if drill < DRILL_MIN || offline < OFFLINE_MIN || different.len() < asked.len() {
        return Err(Refusal::Precondition {
            reason: "TOO_FEW_RECIPIENTS",
            message: format!(
                "{drill} for drills and {offline} offline, {} of them different: whoever loses the keys loses every \
                 backup, so name at least {DRILL_MIN} for drills and {OFFLINE_MIN} offline, all different",
                different.len()
            ),
        });
    }
    Ok(asked.into_iter().map(|recipient| ArchiveRecipient { key: recipient.key, drill: recipient.drill }).collect())
}

fn refused(error: ArchiveError) -> Refusal {
    Refusal::Precondition { reason: "NO_KEY_FILE", message: error.to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn too_few_recipients_are_refused() {
        let new = |drill| v1::ArchiveRecipient { key: keys::Identity::generate().recipient(), drill };
        let three = [new(true), new(false), new(false)];
        assert_eq!(recipients_of(three.to_vec()).expect("enough").len(), 3);
        let twice = vec![three[0].clone(), three[1].clone(), three[1].clone()];
        for few in [vec![], three[..2].to_vec(), three[1..].to_vec(), twice] {
            let refusal = recipients_of(few).expect_err("too few");
            assert_eq!(refusal.reason(), "TOO_FEW_RECIPIENTS");
        }
        let many = vec![three[0].clone(); RECIPIENTS_MAX + 1];
        assert_ne!(recipients_of(many).expect_err("too many").reason(), "TOO_FEW_RECIPIENTS");
        let wrong = vec![v1::ArchiveRecipient { key: "age1x".into(), drill: true }];
        assert_ne!(recipients_of(wrong).expect_err("no recipient").reason(), "TOO_FEW_RECIPIENTS");
    }
}
