use holdfast_model::command::{Member, NewMember};

use super::*;

fn labels(array: &str, site: &str) -> BTreeMap<String, String> {
    [("array".to_owned(), array.to_owned()), ("site".to_owned(), site.to_owned())].into()
}

/// Led by 1; all members answer and hold everything up to 5000.
fn status(configs: &[&[u64]], members: &[u64]) -> ReplicaStatus {
    let configs: Vec<BTreeSet<u64>> = configs.iter().map(|voters| voters.iter().copied().collect()).collect();
    let others = || members.iter().copied().filter(|id| *id != 1);
    ReplicaStatus {
        is_leader: true,
        leader_id: 1,
        committed_index: 5000,
        matched: others().map(|id| (id, 5000)).collect(),
        silence: others().map(|id| (id, Duration::from_millis(10))).collect(),
        voters: configs.iter().flatten().copied().collect::<BTreeSet<_>>().into_iter().collect(),
        members: members.iter().map(|id| (*id, Member::default())).collect(),
        configs,
        ..ReplicaStatus::default()
    }
}

fn newcomer(id: u64, array: &str, site: &str) -> NewMember {
    NewMember { id: NodeId(id), member: Member { labels: labels(array, site), ..Member::default() } }
}

fn adding(id: u64) -> MemberChange {
    MemberChange { add: Some(newcomer(id, "a9", "x")), ..MemberChange::default() }
}

fn removing(id: u64) -> MemberChange {
    MemberChange { remove: Some(NodeId(id)), ..MemberChange::default() }
}

fn voters(ids: &[u64]) -> Step {
    Step::SetVoters(ids.iter().copied().collect())
}

#[test]
fn a_node_joins_as_a_learner_and_votes_once_it_has_caught_up() {
    assert_eq!(next(&adding(4), &status(&[&[1, 2, 3]], &[1, 2, 3]), 1), Step::AddLearner(4));
    let mut joined = status(&[&[1, 2, 3]], &[1, 2, 3, 4]);
    joined.matched.insert(4, 3999);
    assert_eq!(next(&adding(4), &joined, 1), Step::CatchUp { node: 4, at: 3999, of: 5000 });
    joined.matched.remove(&4);
    assert_eq!(next(&adding(4), &joined, 1), Step::CatchUp { node: 4, at: 0, of: 5000 });
    joined.matched.insert(4, 4000);
    assert_eq!(next(&adding(4), &joined, 1), voters(&[1, 2, 3, 4]));
    let stays = MemberChange { keep_learner: true, ..adding(4) };
    assert_eq!(next(&stays, &joined, 1), Step::Done);
    joined.matched.insert(4, 0);
    assert_eq!(next(&stays, &joined, 1), Step::Done, "who does not vote holds nothing up");
    assert_eq!(next(&adding(4), &status(&[&[1, 2, 3, 4]], &[1, 2, 3, 4]), 1), Step::Done);
}

#[test]
fn a_replacement_joins_before_the_other_goes() {
    let change = MemberChange { remove: Some(NodeId(3)), ..adding(4) };
    assert_eq!(next(&change, &status(&[&[1, 2, 3]], &[1, 2, 3]), 1), Step::AddLearner(4));
    let mut joined = status(&[&[1, 2, 3]], &[1, 2, 3, 4]);
    joined.silence.remove(&3);
    assert_eq!(next(&change, &joined, 1), voters(&[1, 2, 4]), "in one step: never two of four");
    assert_eq!(next(&change, &status(&[&[1, 2, 4]], &[1, 2, 3, 4]), 1), Step::RemoveLearner(3));
    assert_eq!(next(&change, &status(&[&[1, 2, 4]], &[1, 2, 4]), 1), Step::Done);
}

#[test]
fn a_change_that_its_leader_left_halfway_is_brought_to_its_end() {
    let change = MemberChange { remove: Some(NodeId(3)), ..adding(4) };
    assert_eq!(next(&change, &status(&[&[1, 2, 3], &[1, 2, 4]], &[1, 2, 3, 4]), 1), voters(&[1, 2, 4]));
}

#[test]
fn a_leader_that_is_to_go_hands_over_first() {
    assert_eq!(next(&removing(1), &status(&[&[1, 2, 3]], &[1, 2, 3]), 1), Step::HandOver);
    assert_eq!(next(&removing(3), &status(&[&[1, 2, 3]], &[1, 2, 3]), 1), voters(&[1, 2]));
}

#[test]
fn voters_change_only_while_a_majority_of_the_new_ones_answers() {
    let mut quiet = status(&[&[1, 2, 3]], &[1, 2, 3, 4]);
    quiet.silence.insert(2, Duration::from_secs(3));
    quiet.silence.remove(&4);
    let change = MemberChange { remove: Some(NodeId(3)), ..adding(4) };
    assert_eq!(next(&change, &quiet, 1), Step::WaitFor(vec![2, 4]));
    quiet.silence.insert(4, Duration::from_millis(5));
    assert_eq!(next(&change, &quiet, 1), voters(&[1, 2, 4]));
}

fn facts(nodes: &[(u64, &str, &str)], archive_site: Option<&str>) -> Facts {
    let node = |(id, array, site): &(u64, &str, &str)| Copy::node(*id, Kind::Voter, labels(array, site), Some(5000));
    let archive = archive_site.map(|site| Copy::archive("vault", labels("-", site), Some(5000)));
    Facts {
        copies: nodes.iter().map(node).chain(archive).collect(),
        configs: vec![nodes.iter().map(|(id, _, _)| *id).collect()],
        leader: Some(1),
        commit_index: Some(5000),
        lineage_fork: None,
        restoring: Vec::new(),
    }
}

const SPREAD: [(u64, &str, &str); 3] = [(1, "a1", "x"), (2, "a2", "x"), (3, "a3", "x")];

fn reason(
    change: &MemberChange,
    fewer: bool,
    status: &ReplicaStatus,
    facts: &Facts,
    limits: &Limits,
) -> Option<(&'static str, String)> {
    match judge(change, fewer, status, 1, facts, limits) {
        Ok(()) => None,
        Err(Refusal::Precondition { reason, message }) => Some((reason, message)),
        Err(other) => panic!("{other:?}"),
    }
}

#[test]
fn what_would_leave_too_little_is_refused_with_its_evidence() {
    let limits = Limits::default();
    let three = status(&[&[1, 2, 3]], &[1, 2, 3]);
    let spread = facts(&SPREAD, Some("y"));
    assert_eq!(reason(&adding(4), false, &three, &spread, &limits), None);
    let (id, message) = reason(&removing(3), false, &three, &spread, &limits).expect("refused");
    assert_eq!(id, "TOO_FEW_COPIES");
    assert!(message.contains("2 voters") && message.contains("node replace"), "{message}");
    assert_eq!(reason(&removing(3), true, &three, &spread, &limits), None, "it was accepted");

    let mut quiet = three.clone();
    quiet.silence.insert(2, Duration::from_secs(60));
    let (id, message) = reason(&removing(3), true, &quiet, &spread, &limits).expect("refused");
    assert_eq!(id, "NO_QUORUM_LEFT");
    assert!(message.contains("nodes 2 do not answer"), "{message}");
    // The dead node itself may go for another one.
    let replacing = MemberChange { remove: Some(NodeId(2)), ..adding(4) };
    assert_eq!(reason(&replacing, false, &quiet, &spread, &limits), None);
    let one = status(&[&[1]], &[1]);
    assert_eq!(reason(&removing(1), true, &one, &spread, &limits).expect("refused").0, "TOO_FEW_COPIES");
}

#[test]
fn what_would_put_all_copies_into_one_domain_is_refused() {
    let limits = Limits::default();
    let three = status(&[&[1, 2, 3]], &[1, 2, 3]);
    // Nodes 1 and 2 on one array, node 3 on another; nothing offsite counts.
    let facts = facts(&[(1, "a1", "x"), (2, "a1", "y"), (3, "a2", "z")], None);
    let same = MemberChange { add: Some(newcomer(4, "a1", "w")), remove: Some(NodeId(3)), ..MemberChange::default() };
    let (id, message) = reason(&same, false, &three, &facts, &limits).expect("refused");
    assert_eq!(id, "ALL_COPIES_ONE_DOMAIN");
    assert!(message.contains("array=a1"), "{message}");
    let other = MemberChange { add: Some(newcomer(4, "a3", "w")), remove: Some(NodeId(3)), ..MemberChange::default() };
    assert_eq!(reason(&other, false, &three, &facts, &limits), None);
}

#[test]
fn a_configured_key_keeps_majorities_apart() {
    let limits = Limits { placement_keys: vec!["array".into()], ..Limits::default() };
    let three = status(&[&[1, 2, 3]], &[1, 2, 3]);
    let spread = facts(&SPREAD, Some("y"));
    let crowded =
        MemberChange { add: Some(newcomer(4, "a1", "x")), remove: Some(NodeId(3)), ..MemberChange::default() };
    let (id, message) = reason(&crowded, false, &three, &spread, &limits).expect("refused");
    assert_eq!(id, "QUORUM_ONE_DOMAIN");
    assert!(message.contains("array=a1 holds 2 of 3 voters"), "{message}");
    // What was crowded before is no reason to refuse what makes it no worse.
    let crowded_before = facts(&[(1, "a1", "x"), (2, "a1", "x"), (3, "a3", "x")], Some("y"));
    assert_eq!(reason(&adding(4), false, &three, &crowded_before, &limits), None);
    let moved = MemberChange { remove: Some(NodeId(3)), ..adding(4) };
    assert_eq!(reason(&moved, false, &three, &crowded_before, &limits), None);
}

#[test]
fn steps_are_told_before_they_are_done() {
    let three = status(&[&[1, 2, 3]], &[1, 2, 3]);
    let change = MemberChange { remove: Some(NodeId(3)), ..adding(4) };
    assert_eq!(
        steps(&change, &three),
        [
            "add node 4 as a learner",
            "wait until node 4 has caught up",
            "nodes 1, 2, 4 vote, all others do not",
            "node 3 is a member no more"
        ]
    );
    let learner = MemberChange { keep_learner: true, ..adding(4) };
    assert_eq!(steps(&learner, &three), ["add node 4 as a learner"]);
}
