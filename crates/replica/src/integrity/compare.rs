//! A comparison: every member reads its state at one index, and one of them judges what they found.

use std::collections::BTreeMap;
use std::time::Duration;

use holdfast_wire::internal::v1 as pb;
use tokio::time::{Instant, sleep, timeout};

use crate::handle::Replica;
use crate::integrity::ASK_TIMEOUT;
use crate::integrity::examine::{Findings, Stage};
use crate::integrity::verdict::{Verdict, judge};

/// Attempts to have all members at one index; in every other one the index is so many entries ahead, and more each time.
const ATTEMPTS: u32 = 7;
const AHEAD: u64 = 32;
/// For an index ahead to be reached.
const REACH_TIMEOUT: Duration = Duration::from_millis(1500);
const POLL: Duration = Duration::from_millis(20);
const READING_POLL: Duration = Duration::from_millis(200);
/// A member that reads and does not answer any more is left out.
const SILENCE_MAX: Duration = Duration::from_secs(10);

/// What came of a comparison.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Comparison {
    /// Index at which states were compared.
    pub index: u64,
    /// What they are, by node.
    pub found: BTreeMap<u64, Findings>,
    /// Members that could not be compared, and why.
    pub missing: BTreeMap<u64, String>,
    /// Whose is wrong.
    pub verdict: Verdict,
}

/// A member's answer.
#[derive(Clone)]
enum Answer {
    Stage(Stage),
    /// Why there is none.
    Not(String),
}

fn array(bytes: &[u8]) -> [u8; 32] {
    bytes.try_into().unwrap_or_default()
}

fn stage_of(reply: pb::ExamineReply) -> Answer {
    let findings = Findings {
        heads: array(&reply.heads),
        entry_chain: array(&reply.entry_chain),
        effect_chain: array(&reply.effect_chain),
        digest: array(&reply.digest),
        families: reply.families.iter().map(|hash| array(hash)).collect(),
        fault_count: reply.fault_count,
        faults: reply.faults.clone(),
    };
    match reply.examination() {
        _ if reply.fenced => Answer::Not("its state is being reinstalled".into()),
        pb::Examination::Waiting => Answer::Stage(Stage::Waiting),
        pb::Examination::Reading => Answer::Stage(Stage::Reading(findings)),
        pb::Examination::Done => Answer::Stage(Stage::Done(findings)),
        pb::Examination::Missed => Answer::Stage(Stage::Missed),
        pb::Examination::Unspecified => Answer::Not("it does not compare".into()),
    }
}

/// What this node answers to a peer.
pub fn reply(replica: &Replica, request: &pb::ExamineRequest) -> pb::ExamineReply {
    let integrity = replica.integrity();
    let mut reply = pb::ExamineReply {
        damaged: integrity.is_damaged(),
        fenced: integrity.is_fenced(),
        ..pb::ExamineReply::default()
    };
    if request.index == 0 || reply.fenced {
        return reply;
    }
    let (examination, findings) = match integrity.exams.ask(request.index, request.rows, replica.state()) {
        Stage::Waiting => (pb::Examination::Waiting, None),
        Stage::Missed => (pb::Examination::Missed, None),
        Stage::Reading(findings) => (pb::Examination::Reading, Some(findings)),
        Stage::Done(findings) => (pb::Examination::Done, Some(findings)),
    };
    reply.examination = examination.into();
    if let Some(findings) = findings {
        let bytes = |hash: [u8; 32]| bytes::Bytes::copy_from_slice(&hash);
        reply.heads = bytes(findings.heads);
        reply.entry_chain = bytes(findings.entry_chain);
        reply.effect_chain = bytes(findings.effect_chain);
        reply.digest = bytes(findings.digest);
        reply.families = findings.families.into_iter().map(bytes).collect();
        reply.fault_count = findings.fault_count;
        reply.faults = findings.faults;
    }
    reply
}

async fn ask_all(replica: &Replica, index: u64, rows: bool) -> BTreeMap<u64, Answer> {
    let request = pb::ExamineRequest { group_id: replica.group_id().0, index, rows };
    let calls = replica.peers().all().into_iter().map(|(id, mut client)| async move {
        let answer = match timeout(ASK_TIMEOUT, client.examine(request)).await {
            Ok(Ok(reply)) => stage_of(reply.into_inner()),
            Ok(Err(status)) => Answer::Not(format!("it does not answer: {}", status.message())),
            Err(_) => Answer::Not("it does not answer".into()),
        };
        (id, answer)
    });
    let mut answers: BTreeMap<u64, Answer> = futures::future::join_all(calls).await.into_iter().collect();
    answers.insert(replica.node_id(), stage_of(reply(replica, &request)));
    answers
}

/// Compares all members that answer at one index. With `rows`, every row is read.
pub async fn compare(replica: &Replica, rows: bool) -> Comparison {
    let configs = replica.status().configs;
    let (index, mut answers) = meet(replica, rows).await;
    let mut heard = Instant::now();
    let is_reading = |answer: &Answer| matches!(answer, Answer::Stage(Stage::Reading(_)));
    let mut heads_told = false;
    while answers.values().any(is_reading) && !replica.is_stopping() {
        sleep(READING_POLL).await;
        let silent_for = heard.elapsed();
        let mut all_answer = true;
        for (id, answer) in ask_all(replica, index, rows).await {
            match (&answer, answers.get(&id)) {
                // It may answer again; what it has read so far is not lost with one call.
                (Answer::Not(_), Some(Answer::Stage(Stage::Reading(_)))) if silent_for < SILENCE_MAX => {
                    all_answer = false;
                }
                (Answer::Not(_), Some(Answer::Stage(Stage::Done(_)))) => {}
                _ => drop(answers.insert(id, answer)),
            }
        }
        if all_answer {
            heard = Instant::now();
        }
        // What is kept of the whole is known long before the rows are.
        if !heads_told {
            heads_told = true;
            let early = concluded(index, &configs, &answers, true);
            tell(replica, &early, false).await;
        }
    }
    // A member may have read its rows at this index for another comparison; here they are not compared.
    concluded(index, &configs, &answers, !rows)
}

fn concluded(
    index: u64,
    configs: &[std::collections::BTreeSet<u64>],
    answers: &BTreeMap<u64, Answer>,
    heads_only: bool,
) -> Comparison {
    let mut comparison = Comparison { index, ..Comparison::default() };
    for (id, answer) in answers {
        match answer {
            Answer::Stage(Stage::Reading(findings) | Stage::Done(findings)) if heads_only => {
                let heads = Findings { families: Vec::new(), fault_count: 0, faults: Vec::new(), ..findings.clone() };
                comparison.found.insert(*id, heads);
            }
            Answer::Stage(Stage::Done(findings)) => drop(comparison.found.insert(*id, findings.clone())),
            Answer::Stage(Stage::Reading(_)) => drop(comparison.missing.insert(*id, "it is still reading".into())),
            Answer::Stage(Stage::Waiting) => drop(comparison.missing.insert(*id, "it is behind".into())),
            Answer::Stage(Stage::Missed) => drop(comparison.missing.insert(*id, "it was beyond that index".into())),
            Answer::Not(why) => drop(comparison.missing.insert(*id, why.clone())),
        }
    }
    comparison.verdict = judge(index, configs, &comparison.found);
    // Who is here and was only not at that index may make a majority: the next comparison tells.
    if answers.values().any(|answer| matches!(answer, Answer::Stage(Stage::Waiting | Stage::Missed))) {
        comparison.verdict.doubt = None;
    }
    comparison
}

/// Finds an index that all members who answer read their state at.
async fn meet(replica: &Replica, rows: bool) -> (u64, BTreeMap<u64, Answer>) {
    let mut last = (0, BTreeMap::new());
    for attempt in 0..ATTEMPTS {
        // Where nothing is written all stand at one index; under load nobody stands still, and one ahead is met.
        let ahead = if attempt % 2 == 0 { 0 } else { AHEAD << attempt };
        let index = replica.state().applied().index() + ahead;
        let end = Instant::now() + REACH_TIMEOUT;
        loop {
            let answers = ask_all(replica, index, rows).await;
            let any = |stage: &Stage| answers.values().any(|one| matches!(one, Answer::Stage(at) if at == stage));
            let (waiting, missed) = (any(&Stage::Waiting), any(&Stage::Missed));
            last = (index, answers);
            if !waiting && !missed {
                return last;
            }
            if missed || Instant::now() >= end || replica.is_stopping() {
                break;
            }
            sleep(POLL).await;
        }
    }
    last
}

/// Tells every member that took part. A comparison of less than all rows, or of less than a majority, tells bad news
/// only: it does not end a doubt.
pub async fn tell(replica: &Replica, comparison: &Comparison, rows: bool) {
    let Verdict { diverged, doubt, is_proved } = &comparison.verdict;
    let rows = rows && *is_proved;
    if !rows && diverged.is_empty() && doubt.is_none() {
        return;
    }
    let own = replica.node_id();
    let index = comparison.index;
    if comparison.found.contains_key(&own) && (rows || diverged.contains_key(&own) || doubt.is_some()) {
        replica.integrity().judged(index, diverged.get(&own).cloned(), doubt.clone());
    }
    let calls = replica.peers().all().into_iter().filter(|(id, _)| comparison.found.contains_key(id));
    let calls = calls.map(|(id, mut client)| async move {
        let request = pb::VerdictRequest {
            group_id: replica.group_id().0,
            index,
            diverged: diverged.get(&id).cloned().unwrap_or_default(),
            doubt: doubt.clone().unwrap_or_default(),
        };
        if rows || !request.diverged.is_empty() || !request.doubt.is_empty() {
            // Who does not hear it is told by the next comparison.
            drop(timeout(ASK_TIMEOUT, client.verdict(request)).await);
        }
    });
    futures::future::join_all(calls).await;
}
