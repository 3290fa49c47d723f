//! A comparison: every member reads its state at one index, and one of them judges what they found.
//!
//! Members are asked side by side, this node first of all, and each for itself: who does not answer in time is unknown to
//! this comparison, and holds up nobody else.

use std::collections::BTreeMap;
use std::hash::{BuildHasher, RandomState};
use std::time::Duration;

use futures::StreamExt;
use futures::stream::FuturesUnordered;
use holdfast_wire::internal::v1 as pb;
use tokio::time::{Instant, sleep, timeout};

use crate::handle::Replica;
use crate::integrity::ASK_TIMEOUT;
use crate::integrity::examine::{Findings, Question, Stage};
use crate::integrity::verdict::{Verdict, judge};
use crate::transport::client::Peer;

/// Attempts to have all members at one index; in every other one the index is so many entries ahead, and more each time.
const ATTEMPTS: u32 = 7;
const AHEAD: u64 = 32;
/// For an index ahead to be reached.
const REACH_TIMEOUT: Duration = Duration::from_millis(1500);
const POLL: Duration = Duration::from_millis(20);
const READING_POLL: Duration = Duration::from_millis(200);
/// A member that reads and does not answer any more is left out.
const SILENCE_MAX: Duration = Duration::from_secs(10);
/// Why a fenced member is not compared.
const FENCED: &str = "its state is being reinstalled";

impl Replica {
    /// A majority found other rows in their states, at an index that this `installation` of this node's state was at: it is
    /// set aside and reinstalled.
    pub fn outvoted(&self, installation: u64, reason: String) {
        self.integrity().outvoted(installation, reason);
    }

    /// Replicas found different rows in their states, this installation of this node's among them, and no side is proved right.
    pub fn in_doubt(&self, installation: u64, reason: String) {
        self.integrity().judged(installation, None, Some(reason));
    }
}

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
#[derive(Debug, Clone, PartialEq, Eq)]
enum Answer {
    Stage(Stage),
    /// Why there is none.
    Not(String),
}

/// Who is asked; `None` = this node itself.
type Members = BTreeMap<u64, Option<Peer>>;

/// Number of a comparison, or of a reading of one's own.
pub fn new_round() -> u64 {
    RandomState::new().hash_one(0).max(1)
}

fn array(bytes: &[u8]) -> [u8; 32] {
    bytes.try_into().unwrap_or_default()
}

fn answer_of(reply: pb::ExamineReply) -> Answer {
    let findings = Findings {
        installation: reply.installation,
        heads: array(&reply.heads),
        entry_chain: array(&reply.entry_chain),
        effect_chain: array(&reply.effect_chain),
        digest: array(&reply.digest),
        families: reply.families.iter().map(|hash| array(hash)).collect(),
        fault_count: reply.fault_count,
        faults: reply.faults.clone(),
    };
    match reply.examination() {
        _ if reply.fenced => Answer::Not(FENCED.into()),
        pb::Examination::Waiting => Answer::Stage(Stage::Waiting),
        pb::Examination::Reading => Answer::Stage(Stage::Reading(findings)),
        pb::Examination::Done => Answer::Stage(Stage::Done(findings)),
        pb::Examination::Missed => Answer::Stage(Stage::Missed),
        pb::Examination::Failed => Answer::Stage(Stage::Failed(reply.failure)),
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
    let question = Question { index: request.index, rows: request.rows, round: request.round };
    let (examination, findings) = match integrity.exams.ask(question, replica.state()) {
        Stage::Waiting => (pb::Examination::Waiting, None),
        Stage::Missed => (pb::Examination::Missed, None),
        Stage::Reading(findings) => (pb::Examination::Reading, Some(findings)),
        Stage::Done(findings) => (pb::Examination::Done, Some(findings)),
        Stage::Failed(why) => {
            reply.failure = why;
            (pb::Examination::Failed, None)
        }
    };
    reply.examination = examination.into();
    if let Some(findings) = findings {
        let bytes = |hash: [u8; 32]| bytes::Bytes::copy_from_slice(&hash);
        reply.installation = findings.installation;
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

async fn ask(replica: &Replica, client: Option<Peer>, request: pb::ExamineRequest) -> Answer {
    let Some(mut client) = client else { return answer_of(reply(replica, &request)) };
    match timeout(ASK_TIMEOUT, client.examine(request)).await {
        Ok(Ok(reply)) => answer_of(reply.into_inner()),
        Ok(Err(status)) => Answer::Not(format!("it does not answer: {}", status.message())),
        Err(_) => Answer::Not("it does not answer".into()),
    }
}

async fn ask_all(replica: &Replica, members: &Members, request: pb::ExamineRequest) -> BTreeMap<u64, Answer> {
    // First of all this node: under load its state is soon beyond the index.
    let own = members.iter().filter(|(_, client)| client.is_none());
    let others = members.iter().filter(|(_, client)| client.is_some());
    let calls = own.chain(others).map(|(id, client)| async move { (*id, ask(replica, client.clone(), request).await) });
    futures::future::join_all(calls).await.into_iter().collect()
}

/// Asks a member until it has read its rows, or does not answer any more.
async fn follow(replica: &Replica, client: Option<Peer>, request: pb::ExamineRequest, first: Answer) -> Answer {
    let mut last = first;
    let mut heard = Instant::now();
    while matches!(last, Answer::Stage(Stage::Reading(_))) && !replica.is_stopping() {
        sleep(READING_POLL).await;
        match ask(replica, client.clone(), request).await {
            // It may answer again; what it has read so far is not lost with one call.
            Answer::Not(why) if why != FENCED && heard.elapsed() < SILENCE_MAX => {}
            answer => {
                heard = Instant::now();
                last = answer;
            }
        }
    }
    last
}

/// Compares all members that answer at one index. With `rows`, every row is read.
pub async fn compare(replica: &Replica, rows: bool) -> Comparison {
    let configs = replica.status().configs;
    let (request, mut answers) = meet(replica, rows).await;
    let index = request.index;
    let is_reading = |answer: &Answer| matches!(answer, Answer::Stage(Stage::Reading(_)));
    if answers.values().any(is_reading) {
        // What is kept of the whole is known long before the rows are.
        tell(replica, &concluded(index, &configs, &answers, true), false).await;
    }
    let mut clients = members(replica);
    let reading = answers.iter().filter(|(_, answer)| is_reading(answer)).filter_map(|(id, answer)| {
        // Nothing for who is no member any more.
        let (id, client, answer) = (*id, clients.remove(id)?, answer.clone());
        Some(async move { (id, follow(replica, client, request, answer).await) })
    });
    let mut reading: FuturesUnordered<_> = reading.collect();
    while let Some((id, answer)) = reading.next().await {
        answers.insert(id, answer);
        if !reading.is_empty() {
            // A majority proves a third one wrong, also while a fourth one still reads.
            tell(replica, &concluded(index, &configs, &answers, !rows), false).await;
        }
    }
    // A member may have read its rows at this index for another comparison; here they are not compared.
    concluded(index, &configs, &answers, !rows)
}

fn members(replica: &Replica) -> Members {
    let own = std::iter::once((replica.node_id(), None));
    replica.peers().all().into_iter().map(|(id, client)| (id, Some(client))).chain(own).collect()
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
            Answer::Stage(Stage::Failed(why)) => {
                comparison.missing.insert(*id, format!("its rows could not be read: {why}"));
            }
            Answer::Not(why) => drop(comparison.missing.insert(*id, why.clone())),
        }
    }
    comparison.verdict = judge(index, configs, &comparison.found);
    // Who is here and only was not at that index, or has not read its rows yet, may make a majority.
    let may_tell = |stage: &Stage| match stage {
        Stage::Waiting | Stage::Missed => true,
        Stage::Reading(_) => !heads_only,
        Stage::Done(_) | Stage::Failed(_) => false,
    };
    if answers.values().any(|answer| matches!(answer, Answer::Stage(stage) if may_tell(stage))) {
        comparison.verdict.doubt = None;
    }
    comparison
}

/// Finds an index that all members who answer read their state at.
async fn meet(replica: &Replica, rows: bool) -> (pb::ExamineRequest, BTreeMap<u64, Answer>) {
    let mut request = pb::ExamineRequest { group_id: replica.group_id().0, index: 0, rows, round: new_round() };
    let mut members = members(replica);
    let mut silent: BTreeMap<u64, Answer> = BTreeMap::new();
    let mut answers = BTreeMap::new();
    'attempts: for attempt in 0..ATTEMPTS {
        // Where nothing is written all stand at one index; under load nobody stands still, and one ahead is met.
        let ahead = if attempt % 2 == 0 { 0 } else { AHEAD << attempt };
        request.index = replica.state().applied().index() + ahead;
        let mut end = Instant::now() + REACH_TIMEOUT;
        loop {
            answers = ask_all(replica, &members, request).await;
            // Who does not answer is unknown to this comparison: asked again, it would hold up the others each time.
            let is_gone = |answer: &Answer| matches!(answer, Answer::Not(_));
            let gone: Vec<u64> = answers.iter().filter(|(_, one)| is_gone(one)).map(|(id, _)| *id).collect();
            if !gone.is_empty() {
                members.retain(|id, _| !gone.contains(id));
                silent.extend(gone.iter().filter_map(|id| answers.remove_entry(id)));
                end = Instant::now() + REACH_TIMEOUT;
            }
            let any = |stage: &Stage| answers.values().any(|one| matches!(one, Answer::Stage(at) if at == stage));
            let (waiting, missed) = (any(&Stage::Waiting), any(&Stage::Missed));
            if replica.is_stopping() || !waiting && !missed {
                break 'attempts;
            }
            if missed || Instant::now() >= end {
                break;
            }
            sleep(POLL).await;
        }
    }
    answers.append(&mut silent);
    (request, answers)
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
    let installation = |id: &u64| comparison.found.get(id).map_or(0, |found| found.installation);
    if comparison.found.contains_key(&own) && (rows || diverged.contains_key(&own) || doubt.is_some()) {
        replica.integrity().judged(installation(&own), diverged.get(&own).cloned(), doubt.clone());
        replica.update_elect();
    }
    let calls = replica.peers().all().into_iter().filter(|(id, _)| comparison.found.contains_key(id));
    let calls = calls.map(|(id, mut client)| async move {
        let request = pb::VerdictRequest {
            group_id: replica.group_id().0,
            index,
            diverged: diverged.get(&id).cloned().unwrap_or_default(),
            doubt: doubt.clone().unwrap_or_default(),
            installation: installation(&id),
        };
        if rows || !request.diverged.is_empty() || !request.doubt.is_empty() {
            // Who does not hear it is told by the next comparison.
            drop(timeout(ASK_TIMEOUT, client.verdict(request)).await);
        }
    });
    futures::future::join_all(calls).await;
}
