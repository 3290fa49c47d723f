//! A rollback that no living peer can tell of: the node forgets what it acknowledged, those who saw it are dead, and with
//! those who never had the writes it would make a majority. With its floor on another device it must not vote.

use std::path::Path;

use crate::chance::Chance;
use crate::cluster::comes_true;
use crate::nemesis::array::{mark, roll_back};
use crate::nemesis::disks::cut_power;
use crate::nemesis::drive::{RECOVER_WITHIN, serves};
use crate::nemesis::{Fault, Harm, Struck, World};

/// Acknowledgements that the rolled-back node gave, and that will be forgotten.
const FORGOTTEN: usize = 50;
/// What the rolled-back node says when it knows that it forgot something, and does not vote.
const KNOWS: &str = "log.recovering";
/// Linearizable reads of each node that nobody may answer then; each waits for longer than an election takes.
const ASKED: usize = 4;

/// Rolls one node back beside nodes that lack its last writes, and watches whether anything is acknowledged.
pub(super) async fn strike(world: &mut World, fault: Fault, chance: &mut Chance) -> anyhow::Result<Option<Struck>> {
    let mut members = world.cluster.members();
    if world.whole() != members || members.len() < 3 {
        return Ok(None);
    }
    chance.shuffle(&mut members);
    if fault == Fault::RollbackBlind {
        keep_with_lowest_ids(&mut members, chance, |place| world.cluster.nodes[place].id);
    }
    let absent: Vec<usize> = members[..(members.len() - 1) / 2].to_vec();
    let forgetful = members[absent.len()];
    let keepers: Vec<usize> = members[absent.len() + 1..].to_vec();
    let ids = |places: &[usize]| places.iter().map(|place| world.cluster.nodes[*place].id).collect::<Vec<u64>>();
    let plan = format!("absent {:?}, rolled back {:?}, dead {:?}", ids(&absent), ids(&[forgetful]), ids(&keepers));
    let mut struck = world.begin(fault, members.clone(), Harm::Taken, plan.as_str());
    world.disk(forgetful)?.set_aside(&world.copy_of(forgetful)?)?;
    mark(world.disk(forgetful)?.at())?;
    world.cluster.kill_together(&absent);
    world.recorder.mark();
    let loaded = comes_true(RECOVER_WITHIN, async || world.recorder.progress().since_mark >= FORGOTTEN).await;
    cut_power(world, &[forgetful])?;
    world.cluster.kill_together(&members[absent.len()..]);
    let gone = roll_back(world, forgetful)?;
    // Whatever is acknowledged from now on is acknowledged by nodes that lack what was acknowledged before.
    world.recorder.mark();
    let log = world.cluster.log(forgetful);
    let said = std::fs::metadata(&log).map_or(0, |log| log.len());
    let started: Vec<usize> = absent.iter().copied().chain([forgetful]).collect();
    for place in &started {
        world.start(*place);
    }
    let answer = comes_true(RECOVER_WITHIN, async || world.cluster.status(forgetful).await.is_some()).await;
    // Either it knows, and then nobody may be elected however often one asks, or it helps to elect somebody.
    let (mut acknowledged, mut knows) = (0, false);
    let decided = comes_true(RECOVER_WITHIN, async || {
        acknowledged = world.recorder.progress().since_mark;
        knows = says_since(&log, said, KNOWS);
        acknowledged > 0 || knows
    });
    let decided = decided.await;
    let mut answered = 0;
    if knows {
        for place in started.repeat(ASKED) {
            answered += usize::from(serves(&world.cluster, place).await);
        }
        acknowledged = world.recorder.progress().since_mark;
    }
    struck.installed = loaded && gone && answer && decided;
    let did = format!(
        "{acknowledged} writes acknowledged and {answered} reads answered by those who forgot or never had the last writes"
    );
    struck.missed = is_broken(fault, acknowledged, answered).then(|| did.clone());
    let knows = if knows { "it says that it does not vote" } else { "it does not say that it forgot anything" };
    struck.detail = format!("{plan}; {knows}; {did}");
    Ok(Some(struck))
}

/// Those who forgot may elect a second leader of a term that the keepers led. Consensus takes one of two such leaders for the
/// later one, by its id; with a keeper as that one, its log wins over longer ones and nodes abort, which is more than the
/// limit that is to be shown. So the keepers are those with the lowest ids.
fn keep_with_lowest_ids(members: &mut [usize], chance: &mut Chance, id: impl Fn(usize) -> u64) {
    members.sort_by_key(|place| std::cmp::Reverse(id(*place)));
    let keepers = members.len() - (members.len() - 1) / 2 - 1;
    let others = members.len() - keepers;
    chance.shuffle(&mut members[..others]);
}

/// With the floor on another device it must know that it forgot, and without its vote nobody can acknowledge or answer
/// anything. With the floor on the same disk it cannot know: that is the limit.
fn is_broken(fault: Fault, acknowledged: usize, answered: usize) -> bool {
    fault == Fault::RollbackAlone && acknowledged + answered > 0
}

/// A log holds a word behind so many bytes.
fn says_since(log: &Path, since: u64, word: &str) -> bool {
    let bytes = std::fs::read(log).unwrap_or_default();
    let since = usize::try_from(since).unwrap_or(usize::MAX).min(bytes.len());
    String::from_utf8_lossy(&bytes[since..]).contains(word)
}

/// Starts those who remember.
pub(super) async fn heal(world: &mut World, struck: &mut Struck) -> anyhow::Result<()> {
    let mut started = Vec::new();
    for place in struck.places.clone() {
        if !world.restarted.contains(&place) {
            world.start(place);
            started.push(world.cluster.nodes[place].id);
        }
    }
    struck.installed = false;
    struck.detail = format!("started again: {started:?}");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn those_who_forgot_acknowledge_and_answer_nothing_but_beyond_the_limit() {
        assert!(!is_broken(Fault::RollbackAlone, 0, 0));
        assert!(is_broken(Fault::RollbackAlone, 1, 0) && is_broken(Fault::RollbackAlone, 0, 1));
        assert!(!is_broken(Fault::RollbackBlind, 9, 9));
    }

    #[test]
    fn only_what_is_said_afterwards_counts() {
        let dir = tempfile::tempdir().expect("tempdir");
        let log = dir.path().join("log");
        assert!(!says_since(&log, 0, KNOWS), "no log yet");
        std::fs::write(&log, "log.recovering\n").expect("written");
        assert!(says_since(&log, 0, KNOWS) && !says_since(&log, 15, KNOWS) && !says_since(&log, 99, KNOWS));
        std::fs::write(&log, b"log.recovering\n\xff log.recovering\n").expect("written");
        assert!(says_since(&log, 15, KNOWS));
    }

    #[test]
    fn who_saw_what_is_forgotten_has_a_lower_id_than_whoever_may_lead_without_it() {
        for seed in 0..50 {
            for count in 3..=7 {
                let mut members: Vec<usize> = (0..count).collect();
                let mut chance = Chance::new(seed, 0);
                chance.shuffle(&mut members);
                keep_with_lowest_ids(&mut members, &mut chance, |place| place as u64 + 1);
                let others = (count - 1) / 2 + 1;
                let lowest = members[..others].iter().min();
                assert!(members[others..].iter().all(|keeper| Some(keeper) < lowest), "{members:?}");
            }
        }
    }
}
