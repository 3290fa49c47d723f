//! Checker F: a restored cluster shows what the model makes of the old one's history, folded up to the position that the
//! restore declared, and nothing else; and once everything was shipped, it shows all that was acknowledged.
//!
//! What the restore says of itself must be so, too: nothing is missing that was acknowledged before the time that it names,
//! and the new cluster's history is its own, so that tokens and versions of the old one are told apart.
//!
//! Which writes are up to there is told by the positions that clients were answered: what an isolated leader wrote and
//! nobody committed has none, and stands where others were acknowledged.

use std::collections::{BTreeSet, HashMap};

use crate::checker::Report;
use crate::checker::paired::Calls;
use crate::checker::timeline::{History, Request};
use crate::checker::versioned;
use crate::history::Stage;
use crate::history::calls::TokenSaid;

/// Nodes of a restored cluster.
const NODES: usize = 3;

/// Stamps of entries are in milliseconds, and so are ages.
const ROUNDED_NS: u64 = 50_000_000;

/// Exit codes of a restore from an object store that errs: it cannot be reached, or what it gives is damaged.
const ERRED: &[i32] = &[5, 9];

/// Judges all restores of a history. `told_time` = the nodes' clocks were left alone: then ages that they name can be
/// measured by the history's. `erring` = when the object store erred: a restore that met that may have been refused, and
/// a list of the past shows an earlier point than one before it did.
pub fn check(calls: &Calls<'_>, history: &History<'_>, told_time: bool, erring: &[(u64, u64)]) -> Report {
    let mut report = Report::new("restore");
    let (mut failed, mut contradicted, mut phantoms, mut undead, mut apart, mut lost) =
        (Vec::new(), Vec::new(), Vec::new(), Vec::new(), Vec::new(), Vec::new());
    let (mut during, mut at_the_end, mut covered, mut beyond) = (0usize, 0usize, 0usize, 0usize);
    let (mut furthest, mut back, mut refused) = (0, Vec::new(), 0usize);
    let (mut cut, mut old, mut unnamed, mut unlooked, mut outside) =
        (Vec::new(), Vec::new(), Vec::new(), BTreeSet::new(), Vec::new());
    let (mut histories, mut widest_ms) = (HashMap::new(), 0);
    let writers = writers(history);
    for call in &calls.restored {
        let restored = call.what;
        let name = format!("restore {}", restored.round);
        let erred = erring.iter().any(|(began, ended)| {
            *began < call.ended_ns.unwrap_or(u64::MAX) && call.began_ns < *ended && !restored.last
        });
        let Some(at) = restored.at.filter(|_| call.stage == Stage::Ok) else {
            match call.error {
                Some(_) if erred && restored.exit.is_some_and(|exit| ERRED.contains(&exit)) => refused += 1,
                Some(error) => failed.push(format!("{name}: {}", error.message)),
                None => cut.push(name),
            }
            continue;
        };
        let looked: BTreeSet<(&str, &str)> = restored
            .users
            .iter()
            .flat_map(|user| user.keys.iter().map(|key| (user.user.as_str(), key.as_str())))
            .collect();
        match restored.began {
            None => unnamed.push(name.clone()),
            Some(began) if began == at.incarnation => old.push(format!("{name}: it goes on with {began:x}")),
            Some(began) => {
                if let Some(other) = histories.insert(began, restored.round) {
                    old.push(format!("{name}: {began:x}, as restore {other}"));
                }
            }
        }
        *(if restored.last { &mut at_the_end } else { &mut during }) += 1;
        if at.index < furthest && !erred {
            back.push(format!("{name}: up to {}, an earlier one up to {furthest}", at.index));
        }
        furthest = furthest.max(at.index);
        if restored.digests != NODES {
            apart.push(format!("{name}: {} of {NODES} nodes have one digest", restored.digests));
        }
        for user in &restored.users {
            let broken = versioned::read(&history.users, &user.user, &user.keys, at.index, &user.records);
            contradicted.extend(broken.map(|broken| format!("{name}: {broken}")));
            for seen in &user.records {
                let Some(content) = &seen.payload else { continue };
                match writers.get(&(user.user.as_str(), seen.key.as_str(), content.as_str())) {
                    None => phantoms.push(format!("{name}: {} {seen:?}", user.user)),
                    Some(request) if request.refused => {
                        undead.push(format!("{name}: {} {seen:?}, of {}", user.user, request.name()));
                    }
                    Some(_) => {}
                }
            }
        }
        // Before the restore began: later ones may be in it, and need not.
        let earlier = history.requests.iter().filter_map(|request| {
            let (done, ended_ns) = request.done?;
            (ended_ns < call.began_ns).then_some((request, done.at.index, ended_ns))
        });
        for (request, index, ended_ns) in earlier {
            if index <= at.index {
                covered += 1;
                let keys =
                    request.batch.changes.iter().map(|change| (request.batch.user.as_str(), change.key.as_str()));
                unlooked.extend(
                    keys.filter(|key| !looked.contains(key)).map(|(user, key)| format!("{name}: {user} {key}")),
                );
            } else {
                beyond += 1;
                let age_ns = call.began_ns - ended_ns;
                widest_ms = widest_ms.max(age_ns / 1_000_000);
                if let Some(named_ms) = restored.loss_window_ms.filter(|_| told_time)
                    && age_ns > named_ms * 1_000_000 + ROUNDED_NS
                {
                    let (request, age_ms) = (request.name(), age_ns / 1_000_000);
                    outside.push(format!(
                        "{name}: {request}, acknowledged {age_ms} ms before it, which names {named_ms} ms"
                    ));
                }
                if restored.last {
                    lost.push(format!("{} at {index}, restored up to {}", request.name(), at.index));
                }
            }
        }
    }
    report.at_least("restores while clients wrote", during, 1);
    report.at_least("restores after everything was shipped", at_the_end, 1);
    let killed = calls.restored.iter().filter(|call| call.what.killed).count();
    report.at_least("restores that were killed half way, and run again", killed, usize::from(during + at_the_end > 2));
    let snapshots: BTreeSet<u64> = calls.restored.iter().map(|call| call.what.snapshot).filter(|at| *at > 0).collect();
    report.at_least("snapshots that restores began with", snapshots.len(), usize::from(during + at_the_end > 2));
    report.at_least("acknowledged writes that a restore must show", covered, 1);
    report.figure("restores that were refused while the object store erred", refused);
    report.figure("acknowledged writes that were not shipped yet", beyond);
    report.figure("age of the oldest of them when its restore began, in ms", widest_ms);
    report.doubtful("restores that never ended", cut);
    report.doubtful("acknowledged records that nobody looked for", unlooked.into_iter().collect());
    report.doubtful("restored clusters that name no history", unnamed);
    report.never("restored clusters without a history of their own", old);
    report.never("lost, though older than the restore says that anything lost can be", outside);
    report.never("restores that failed", failed);
    report.never("recovery points that went back", back);
    report.never("restored states that the history contradicts", contradicted);
    report.never("restored, never written", phantoms);
    report.never("restored, though reported as failed", undead);
    report.never("acknowledged, not offsite in the end", lost);
    report.never("restored clusters whose nodes differ", apart);
    devices(calls, &mut report);
    report
}

/// Devices go on where the restored cluster knows what they know, are told from where on it does not, and no request that
/// it knows takes effect once more.
fn devices(calls: &Calls<'_>, report: &mut Report) {
    let (mut known, mut lost, mut misled, mut forgotten) = (0usize, 0usize, Vec::new(), Vec::new());
    let met = calls.restored.iter().filter_map(|call| {
        let at = call.what.at.filter(|_| call.stage == Stage::Ok)?;
        Some((call.what.round, at.index, call.what.device.as_ref()?))
    });
    for (round, index, device) in met {
        let name = format!("restore {round}, up to {index}: {} wrote {:?}", device.user, device.kept);
        let there = device.kept.iter().filter(|kept| kept.index <= index).count();
        let common = there.checked_sub(1).map_or(0, |last| device.kept[last].version);
        let expected = (0..device.kept.len()).map(|token| match token < there {
            true => TokenSaid::Continues { records: there - 1 - token },
            false => TokenSaid::RolledBack { common },
        });
        let expected: Vec<TokenSaid> = expected.collect();
        known += there;
        lost += device.kept.len() - there;
        if expected != device.tokens {
            misled.push(format!("{name}; told {:?}, and not {expected:?}", device.tokens));
        }
        let knows = there == device.kept.len();
        let same = device.kept.last() == Some(&device.last_again);
        if device.replayed != knows || (knows && !same) {
            forgotten
                .push(format!("{name}; the last one again: {:?}, replayed: {}", device.last_again, device.replayed));
        }
    }
    report.figure("writes of devices that came back", known);
    report.figure("writes of devices that were lost", lost);
    report.never("devices that a restored cluster told wrongly from where to go on", misled);
    report.never("requests that a restored cluster should know, or should not", forgotten);
}

/// Who wrote which content.
fn writers<'a>(history: &'a History<'_>) -> HashMap<(&'a str, &'a str, &'a str), &'a Request<'a>> {
    let mut writers = HashMap::new();
    for request in &history.requests {
        for change in &request.batch.changes {
            if let Some(content) = &change.put {
                let key = (request.batch.user.as_str(), change.key.as_str(), content.as_str());
                writers.insert(key, request);
            }
        }
    }
    writers
}

#[cfg(test)]
mod tests;
