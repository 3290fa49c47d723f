//! What the survey says of clusters that everyone can picture, and what must hold of any.

use std::collections::{BTreeMap, BTreeSet};

use holdfast_survey::{
    Answer, Check, CheckId, Copy, CopyId, Domain, Facts, Fork, Freshness, Keys, Kind, Limits, Loss, Recovery, Running,
    Severity, checks, scenarios, scenarios_of_two, survive,
};
use proptest::prelude::*;

fn labels(text: &str) -> BTreeMap<String, String> {
    let pairs = text.split(',').filter_map(|pair| pair.split_once('='));
    pairs.map(|(key, value)| (key.to_owned(), value.to_owned())).collect()
}

fn domain(text: &str) -> Domain {
    text.parse().expect("a domain")
}

/// Voters with these labels, all up to index 100 and committed there, led by the first.
fn cluster(nodes: &[&str]) -> Facts {
    let copies: Vec<Copy> =
        (1..).zip(nodes).map(|(id, text)| Copy::node(id, Kind::Voter, labels(text), Some(100))).collect();
    let voters = (1..=copies.len() as u64).collect();
    Facts {
        copies,
        configs: vec![voters],
        leader: Some(1),
        commit_index: Some(100),
        lineage_fork: None,
        restoring: Vec::new(),
    }
}

fn with_archive(mut facts: Facts, text: &str, index: Option<u64>) -> Facts {
    facts.copies.push(Copy::archive("vault", labels(text), index));
    facts
}

fn found(facts: &Facts) -> Vec<Check> {
    checks(facts, &Limits::default())
}

fn of(facts: &Facts, id: CheckId) -> Option<Check> {
    found(facts).into_iter().find(|check| check.id == id)
}

const THREE: [&str; 3] = ["array=a1,site=x", "array=a2,site=x", "array=a3,site=x"];
const ONE_ARRAY: [&str; 3] = ["array=san-07,site=x"; 3];

#[test]
fn one_array_and_an_archive_in_the_same_site_is_what_happened_in_2009() {
    let facts = with_archive(cluster(&ONE_ARRAY), "site=x", Some(100));
    let check = of(&facts, CheckId::AllCopiesOneDomain).expect("found");
    assert_eq!(check.severity, Severity::Error);
    for part in ["array=san-07", "node 1, node 2, node 3", "vault does not count: it shares site=x with node 1"] {
        assert!(check.evidence.contains(part), "{}", check.evidence);
    }
    assert!(!check.remedy.is_empty());
}

#[test]
fn three_arrays_and_another_site_are_fine() {
    let facts = with_archive(cluster(&THREE), "site=y", Some(100));
    let errors: Vec<Check> = found(&facts).into_iter().filter(|check| check.severity != Severity::Warning).collect();
    assert!(errors.is_empty(), "{errors:?}");
    // The nodes still share a site: no error, because nothing asked for more, but said.
    assert!(of(&facts, CheckId::QuorumOneDomain).expect("said").evidence.contains("site=x holds 3 of 3 voters"));
}

#[test]
fn a_missing_label_counts_as_one_domain_with_every_other_missing_one() {
    let unlabelled = with_archive(cluster(&["", "", ""]), "", Some(100));
    let check = of(&unlabelled, CheckId::AllCopiesOneDomain).expect("nothing says that they differ");
    assert!(
        check.evidence.contains("array=? and site=?") || check.evidence.contains("site=? and array=?"),
        "{check:?}"
    );
    let arrays_only = with_archive(cluster(&["array=a", "array=b", "array=c"]), "", Some(100));
    let check = of(&arrays_only, CheckId::AllCopiesOneDomain).expect("the archive may stand beside them");
    assert!(check.evidence.contains("site=?") && !check.evidence.contains("array="), "{}", check.evidence);
    assert!(
        of(&arrays_only, CheckId::LabelMissing)
            .expect("said")
            .evidence
            .contains("no label \"site\" on node 1, node 2, node 3, vault")
    );
    let elsewhere = with_archive(cluster(&["array=a", "array=b", "array=c"]), "site=y", Some(100));
    assert_eq!(of(&elsewhere, CheckId::AllCopiesOneDomain), None, "what is known to be y is not among the unknown");
}

#[test]
fn custody_counts_once_anyone_is_labelled_with_it() {
    let mut facts = with_archive(cluster(&ONE_ARRAY), "site=y", Some(100));
    assert_eq!(of(&facts, CheckId::AllCopiesOneDomain), None);
    for copy in &mut facts.copies {
        copy.labels.insert("custody".into(), "ops".into());
    }
    let check = of(&facts, CheckId::AllCopiesOneDomain).expect("one credential deletes all");
    assert!(check.evidence.contains("custody=ops"), "{}", check.evidence);
}

#[test]
fn an_archive_that_was_not_verified_does_not_count() {
    let mut facts = with_archive(cluster(&ONE_ARRAY), "site=y", None);
    facts.copies[3].freshness = Freshness::Stale("nothing was shipped yet".into());
    assert!(of(&facts, CheckId::AllCopiesOneDomain).expect("found").evidence.contains("nothing was shipped yet"));
    assert_eq!(of(&facts, CheckId::OffsiteUnverified).expect("found").severity, Severity::Error);
    facts.copies[3].freshness = Freshness::Unknown;
    assert_eq!(of(&facts, CheckId::OffsiteUnverified).expect("found").severity, Severity::Unknown);
}

#[test]
fn copies_are_counted_by_what_they_hold() {
    // Entries up to 100 are on nodes 1 and 2; node 3 was cut off at 60.
    let mut facts = cluster(&THREE);
    facts.copies[2].index = Some(60);
    let two = survive(&facts, &[domain("array=a1"), domain("array=a2")]);
    assert_eq!((two.writes, two.loss), (Answer::No, Loss::Entries(40)));
    assert_eq!((two.copies_left, two.recovery), (vec![CopyId::Node(3)], Recovery::Recover(CopyId::Node(3))));
    let one = survive(&facts, &[domain("array=a1")]);
    assert_eq!((one.writes, one.loss, one.recovery), (Answer::Yes, Loss::Entries(0), Recovery::Election));
    let all = survive(&facts, &[domain("site=x")]);
    assert_eq!((all.writes, all.loss, all.recovery), (Answer::No, Loss::Everything, Recovery::Impossible));

    let facts = with_archive(facts, "site=y", Some(97));
    let all = survive(&facts, &[domain("site=x")]);
    assert_eq!((all.loss, all.recovery), (Loss::Entries(3), Recovery::Restore(CopyId::Destination("vault".into()))));
    let two = survive(&facts, &[domain("array=a1"), domain("array=a2")]);
    assert_eq!(two.loss, Loss::Entries(3), "the archive is newer than the node");
}

#[test]
fn what_is_not_known_is_said_to_be_unknown() {
    let mut facts = with_archive(cluster(&THREE), "site=y", Some(97));
    facts.commit_index = None;
    facts.leader = None;
    assert_eq!(survive(&facts, &[domain("site=x")]).loss, Loss::Unknown);
    assert_eq!(survive(&facts, &[domain("array=a1")]).loss, Loss::Entries(0), "a majority has it all");
    assert!(of(&facts, CheckId::NoLeader).is_some());

    let mut facts = cluster(&THREE);
    facts.copies[1].index = None;
    let lost = [domain("array=a1"), domain("array=a3")];
    assert_eq!(survive(&facts, &lost).loss, Loss::Unknown, "nothing is known of node 2");
    facts.copies[1].index = Some(70);
    assert_eq!(survive(&facts, &lost).loss, Loss::Entries(30));
    facts.copies[1].is_heard_only = true;
    assert_eq!(survive(&facts, &lost).loss, Loss::Heard(30), "it may hold what was on its way");
    facts.copies[1].index = Some(100);
    assert_eq!(survive(&facts, &lost).loss, Loss::Entries(0), "there is no more than that");
    (facts.copies[1].index, facts.copies[1].is_heard_only) = (None, false);
    facts.copies[2].index = Some(90);
    facts.copies.push(Copy::node(4, Kind::Learner, labels("array=a4"), Some(80)));
    assert_eq!(survive(&facts, &lost).loss, Loss::AtMost(20), "node 2 may hold more than node 4");
    facts.copies[1].running = Running::Unknown;
    assert_eq!(survive(&facts, &[domain("array=a3")]).writes, Answer::Unknown);
    facts.copies[1].running = Running::Down;
    assert_eq!(survive(&facts, &[domain("array=a3")]).writes, Answer::No);
    assert_eq!(survive(&facts, &[domain("array=a3")]).loss, Loss::Entries(0), "a disk at rest holds what it holds");
}

#[test]
fn while_voters_change_both_configurations_need_a_majority() {
    let mut facts = cluster(&["array=a1", "array=a2", "array=a3", "array=a4", "array=a5"]);
    facts.configs = vec![BTreeSet::from([1, 2, 3]), BTreeSet::from([3, 4, 5])];
    assert_eq!(survive(&facts, &[domain("array=a1")]).writes, Answer::Yes);
    assert_eq!(survive(&facts, &[domain("array=a4"), domain("array=a5")]).writes, Answer::No);
}

#[test]
fn nodes_and_destinations_that_are_behind_or_down_or_differ_are_named() {
    let mut facts = with_archive(cluster(&THREE), "site=y", Some(90));
    facts.commit_index = Some(20_000);
    facts.copies[0].index = Some(20_000);
    facts.copies[1].running = Running::Down;
    facts.copies[3].lag_ms = Some(5001);
    facts.copies[0].digest = Some((90, vec![1; 32]));
    facts.copies[2].digest = Some((90, vec![2; 32]));
    let evidence = |facts: &Facts, id| of(facts, id).expect("found").evidence;
    assert!(evidence(&facts, CheckId::OffsiteLag).contains("vault is 5001 ms behind"));
    facts.copies[3].lag_ms = None;
    assert!(evidence(&facts, CheckId::OffsiteLag).contains("nobody could say how far vault is behind"));
    assert!(evidence(&facts, CheckId::Diverged).contains("at index 90 the states differ: node 1 against node 3"));
    let lagging: Vec<Check> = found(&facts).into_iter().filter(|check| check.id == CheckId::ReplicaLag).collect();
    assert_eq!(lagging.len(), 2, "{lagging:?}");
    assert!(lagging[0].evidence.contains("node 2 does not answer"));
    assert!(lagging[1].evidence.contains("node 3 is 19900 entries behind"));
    facts.copies[2].digest = Some((91, vec![2; 32]));
    assert_eq!(of(&facts, CheckId::Diverged), None, "different indices are not compared");
}

#[test]
fn a_fork_is_an_error_that_comes_first() {
    let fork = Fork { destination: "vault".into(), evidence: "it is ahead".into() };
    let restored =
        Facts { restoring: vec!["photos".into(), "x-*".into()], ..cluster(&["array=a1", "array=a2", "array=a3"]) };
    let found = checks(&restored, &Limits::default());
    let found = found.iter().find(|check| check.id == CheckId::Restoring).expect("it is said");
    assert!(found.severity == Severity::Warning && found.evidence.contains("photos, x-*"), "{found:?}");
    let facts = Facts { lineage_fork: Some(fork), ..cluster(&["array=a1", "array=a1", "array=a3"]) };
    let found = checks(&facts, &Limits::default());
    assert_eq!((found[0].id, found[0].severity), (CheckId::LineageFork, Severity::Error), "{found:?}");
    assert!(found[0].evidence.starts_with("vault: it is ahead"), "{}", found[0].evidence);
    assert_eq!(found[0].id.as_str(), "LINEAGE_FORK");
}

#[test]
fn one_firmware_is_a_warning_also_when_all_is_well() {
    let text = |n: u8| format!("array=a{n},site=s{n},firmware=7.2");
    let (a, b, c) = (text(1), text(2), text(3));
    let facts = with_archive(cluster(&[&a, &b, &c]), "site=y", Some(100));
    let check = of(&facts, CheckId::FirmwareMonoculture).expect("said");
    assert_eq!(check.severity, Severity::Warning);
    let other = text(3).replace("7.2", "7.1");
    assert_eq!(of(&cluster(&[&a, &b, &other]), CheckId::FirmwareMonoculture), None);
}

#[test]
fn a_configured_key_makes_a_crowded_domain_an_error() {
    let limits = Limits { placement_keys: vec!["site".into()], ..Limits::default() };
    let facts = with_archive(cluster(&THREE), "site=y", Some(100));
    let check = checks(&facts, &limits).into_iter().find(|check| check.id == CheckId::QuorumOneDomain);
    assert_eq!(check.expect("found").severity, Severity::Error);
}

#[test]
fn every_domain_is_a_scenario_and_pairs_only_where_they_lose_more() {
    let facts = with_archive(cluster(&THREE), "site=y", Some(100));
    let keys = Keys::of(&facts, []);
    let all: Vec<String> = scenarios(&facts, &keys).iter().map(ToString::to_string).collect();
    assert_eq!(all, ["site=x", "site=y", "array=?", "array=a1", "array=a2", "array=a3"]);
    let pairs: Vec<String> = scenarios_of_two(&facts, &keys).iter().map(|[a, b]| format!("{a}+{b}")).collect();
    assert!(pairs.contains(&"array=a1+array=a2".to_owned()) && pairs.contains(&"site=x+site=y".to_owned()));
    assert!(!pairs.contains(&"site=x+array=a1".to_owned()), "a1 is in x already");
}

fn any_labels() -> impl Strategy<Value = BTreeMap<String, String>> {
    let label =
        |key: &'static str| proptest::option::of((0..3u8).prop_map(move |n| (key.to_owned(), format!("{key}{n}"))));
    (label("array"), label("site"), label("power"))
        .prop_map(|(array, site, power)| array.into_iter().chain(site).chain(power).collect())
}

fn any_copy(id: u64) -> impl Strategy<Value = Copy> {
    let kind = prop_oneof![4 => Just(Kind::Voter), 1 => Just(Kind::Learner), 2 => Just(Kind::Archive)];
    let running = prop_oneof![4 => Just(Running::Up), 1 => Just(Running::Down), 1 => Just(Running::Unknown)];
    let fresh = prop_oneof![
        4 => Just(Freshness::Verified),
        1 => Just(Freshness::Stale("why".into())),
        1 => Just(Freshness::Unknown)
    ];
    (kind, any_labels(), running, fresh, proptest::option::weighted(0.8, 0..100u64)).prop_map(
        move |(kind, labels, running, freshness, index)| {
            let copy = Copy::node(id, kind, labels, index);
            match kind.is_node() {
                true => Copy { running, ..copy },
                false => Copy { id: CopyId::Destination(format!("d{id}")), freshness, ..copy },
            }
        },
    )
}

fn any_facts() -> impl Strategy<Value = Facts> {
    let copies = (1..7usize).prop_flat_map(|count| (1..=count as u64).map(any_copy).collect::<Vec<_>>());
    (copies, proptest::option::weighted(0.8, 50..150u64)).prop_map(|(copies, commit_index)| {
        let voters: BTreeSet<u64> = copies
            .iter()
            .filter(|copy| copy.kind == Kind::Voter)
            .filter_map(|copy| match copy.id {
                CopyId::Node(id) => Some(id),
                CopyId::Destination(_) => None,
            })
            .collect();
        Facts {
            copies,
            leader: voters.first().copied(),
            configs: vec![voters],
            commit_index,
            lineage_fork: None,
            restoring: Vec::new(),
        }
    })
}

/// How bad, as a number: worse is larger. What is unknown compares with nothing.
fn cost(loss: Loss) -> Option<u64> {
    match loss {
        Loss::Entries(count) | Loss::Heard(count) | Loss::AtMost(count) => Some(count),
        Loss::Everything => Some(u64::MAX),
        Loss::Unknown => None,
    }
}

proptest! {
    /// A copy in domains of its own, up and up to date, is never a reason for a scenario to be worse.
    #[test]
    fn an_independent_copy_never_makes_a_scenario_worse(
        facts in any_facts(),
        voter in any::<bool>(),
        behind in 0..50u64,
        picks in proptest::collection::vec(any::<prop::sample::Index>(), 1..3),
    ) {
        let keys = Keys::of(&facts, []);
        let all = scenarios(&facts, &keys);
        let lost: Vec<Domain> = picks.iter().map(|pick| pick.get(&all).clone()).collect();
        let own: BTreeMap<String, String> = keys.iter().map(|key| (key.to_owned(), "its-own".to_owned())).collect();
        let index = facts.commit_index.map(|commit| commit.saturating_sub(behind));
        let mut more = facts.clone();
        if voter {
            // A voter is promoted once it has caught up.
            more.copies.push(Copy::node(99, Kind::Voter, own, facts.commit_index));
            more.configs[0].insert(99);
        } else {
            more.copies.push(Copy::archive("new", own, index));
        }
        let (before, after) = (survive(&facts, &lost), survive(&more, &lost));
        match before.writes {
            Answer::Yes => prop_assert_eq!(after.writes, Answer::Yes),
            Answer::Unknown => prop_assert_ne!(after.writes, Answer::No),
            Answer::No => {}
        }
        match (cost(before.loss), cost(after.loss)) {
            (Some(before), Some(after)) => prop_assert!(after <= before, "{before} became {after}"),
            // Where nothing is left, everything is lost for sure; a copy that is left makes that a question.
            (Some(cost), None) => prop_assert_eq!(cost, u64::MAX),
            (None, _) => {}
        }
        prop_assert!(after.copies_left.len() == before.copies_left.len() + 1);
        if facts.voters().next().is_some() && of(&facts, CheckId::AllCopiesOneDomain).is_none() {
            prop_assert_eq!(of(&more, CheckId::AllCopiesOneDomain), None);
        }
    }

    /// Losing more is never better.
    #[test]
    fn a_larger_loss_is_never_better(facts in any_facts(), picks in proptest::collection::vec(any::<prop::sample::Index>(), 2..4)) {
        let all = scenarios(&facts, &Keys::of(&facts, []));
        let lost: Vec<Domain> = picks.iter().map(|pick| pick.get(&all).clone()).collect();
        let (less, more) = (survive(&facts, &lost[..1]), survive(&facts, &lost));
        if less.writes == Answer::No {
            prop_assert_eq!(more.writes, Answer::No);
        }
        if more.writes == Answer::Yes {
            prop_assert_eq!(less.writes, Answer::Yes);
        }
        // A bound says less than a number: only numbers compare.
        if let (Loss::Entries(less), Loss::Entries(more)) = (less.loss, more.loss) {
            prop_assert!(less <= more);
        }
        if more.loss.is_nothing() {
            prop_assert!(less.loss.is_nothing(), "{:?}", less.loss);
        }
        prop_assert_eq!(less.copies_lost.len() + less.copies_left.len(), facts.copies.len());
    }

    /// A label that is missing from two copies is a domain that they share.
    #[test]
    fn missing_labels_are_shared(facts in any_facts()) {
        for key in Keys::of(&facts, []).iter() {
            let unknown = Domain { key: key.to_owned(), value: None };
            let lost = survive(&facts, std::slice::from_ref(&unknown)).copies_lost;
            let without: Vec<CopyId> = facts.copies.iter()
                .filter(|copy| !copy.labels.contains_key(key)).map(|copy| copy.id.clone()).collect();
            prop_assert_eq!(lost, without);
        }
    }

    /// Taking every label away never makes a check disappear that all copies share a domain.
    #[test]
    fn labels_only_help(facts in any_facts()) {
        let mut bare = facts.clone();
        bare.copies.iter_mut().for_each(|copy| copy.labels.clear());
        if facts.voters().next().is_some() {
            prop_assert!(of(&bare, CheckId::AllCopiesOneDomain).is_some());
        }
    }
}
