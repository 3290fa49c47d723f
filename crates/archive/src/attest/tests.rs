use std::sync::Mutex;

use futures::FutureExt;
use holdfast_model::id::Incarnation;

use super::*;
use crate::fixture::{Folder, GROUP, History, Node, run};
use crate::snapshot::{SnapshotOptions, list_snapshots, read_manifest, ship_attested};

/// The membership of these voters, and of learners besides.
fn membership(configs: &[&[u64]]) -> Bytes {
    let configs = configs.iter().map(|voters| pb::VoterConfig { voters: voters.to_vec() }).collect();
    let membership = Some(pb::Membership { configs, members: Vec::new() });
    holdfast_wire::encode(&pb::StoredMembership { log_id: None, membership })
}

fn key(node: u64) -> NodeKey {
    NodeKey::from_seed(&[node as u8; 32])
}

fn witness(node: u64, statement: &Statement) -> Witness {
    Witness { node: NodeId(node), key: key(node).public(), signature: key(node).sign(statement) }
}

#[test]
fn what_a_node_reads_in_its_checkpoint_is_what_another_one_ships() {
    let (folder, mut history) = (Folder::new(), History::found(5));
    let [ships, reads] = [Node::new(), Node::new()];
    let lineage = run(history.open(&folder.destination()));
    // A base with payloads that lie apart, then a layer: the same rows in another way.
    for round in 0..2 {
        let from = history.last().index + 1;
        let count = if round == 0 { 200 } else { 5 };
        (0..count).for_each(|n| history.put(&format!("user-{}", n % 3), &format!("record-{}", n + round), 30_000));
        history.stock(count, 300);
        let entries = history.range(if round == 0 { 0 } else { from }, u64::MAX);
        ships.apply(&entries);
        reads.apply(&entries);
        let said = Mutex::new(None);
        let attesting = |reading: Reading| {
            let witnesses = [1, 2].map(|node| witness(node, &reading.statement)).to_vec();
            *said.lock().expect("lock") = Some(reading);
            std::future::ready(Ok(witnesses)).boxed()
        };
        let options = ships.options();
        let checkpoint = ships.checkpoint();
        let shipped = ship_attested(&lineage, GROUP, &checkpoint, &options, &attesting, &|_, _| {});
        let report = run(shipped).expect("ships");
        let read = run(read_checkpoint(&reads.checkpoint(), GROUP, ReadLimit::NONE, Arc::new(|| true))).expect("reads");
        assert_eq!(Some(&read), said.lock().expect("lock").as_ref(), "round {round}, {} layers", report.layers);
        assert_eq!((read.statement.root, report.layers), (report.root, round));
        let (manifest, _) =
            run(read_manifest(&folder.destination(), lineage.id(), GROUP, report.index)).expect("its words are good");
        assert_eq!(manifest.witnesses.len(), 2);
    }
    // The same entries but for one byte of one payload: another root.
    let from = history.last().index + 1;
    let mut other = history.clone();
    history.put("user-1", "record-1", 299);
    other.put("user-1", "record-1", 300);
    ships.apply(&history.range(from, u64::MAX));
    reads.apply(&other.range(from, u64::MAX));
    let read = |node: &Node| {
        run(read_checkpoint(&node.checkpoint(), GROUP, ReadLimit::NONE, Arc::new(|| true))).expect("reads").statement
    };
    assert_eq!(read(&ships).applied, read(&reads).applied);
    let stopped = run(read_checkpoint(&ships.checkpoint(), GROUP, ReadLimit::NONE, Arc::new(|| false)));
    assert!(matches!(stopped, Err(ArchiveError::Stopped { .. })), "{stopped:?}");
    assert_ne!(read(&ships).root, read(&reads).root);
}

#[test]
fn a_snapshot_that_is_not_vouched_for_is_not_shipped_if_that_is_an_error() {
    let (folder, history, node) = (Folder::new(), History::found(5), Node::new());
    node.apply(&history.entries);
    let lineage = run(history.open(&folder.destination()));
    let outvoted = |_| std::future::ready(Err(ArchiveError::refused("outvoted"))).boxed();
    let options = SnapshotOptions::default();
    let shipped = run(ship_attested(&lineage, GROUP, &node.checkpoint(), &options, &outvoted, &|_, _| {}));
    assert!(shipped.expect_err("outvoted").to_string().contains("outvoted"));
    assert!(run(list_snapshots(&folder.destination(), lineage.id(), GROUP)).expect("lists").is_empty());
}

#[test]
fn a_majority_of_voters_attests_and_learners_do_not_count() {
    let (folder, history, node) = (Folder::new(), History::found(5), Node::new());
    node.apply(&history.entries);
    let lineage = run(history.open(&folder.destination()));
    let options = SnapshotOptions::default();
    let nobody = |_| std::future::ready(Ok(Vec::new())).boxed();
    let report = run(ship_attested(&lineage, GROUP, &node.checkpoint(), &options, &nobody, &|_, _| {})).expect("ships");
    let (manifest, _) = run(read_manifest(&folder.destination(), lineage.id(), GROUP, report.index)).expect("reads");
    assert!(!report.is_attested);
    let is_attested = |configs: &[&[u64]], signed: &[u64]| {
        let manifest = Manifest { membership: membership(configs), ..manifest.clone() };
        let witnesses = signed.iter().map(|node| witness(*node, &manifest.statement())).collect();
        Manifest { witnesses, ..manifest }.is_attested()
    };
    assert!(is_attested(&[&[1]], &[1]));
    assert!(is_attested(&[&[1, 2, 3]], &[1, 3]) && !is_attested(&[&[1, 2, 3]], &[2]));
    assert!(!is_attested(&[&[1, 2, 3]], &[1, 4, 5]), "learners");
    assert!(!is_attested(&[&[1, 2, 3, 4]], &[1, 2]), "half is no majority");
    assert!(!is_attested(&[&[1, 2, 3], &[3, 4, 5]], &[1, 2, 3]), "both sets are needed while voters change");
    assert!(is_attested(&[&[1, 2, 3], &[3, 4, 5]], &[1, 3, 4]));
    assert!(!is_attested(&[], &[1, 2, 3]), "no membership, no majority");
}

#[test]
fn a_signature_is_of_one_position_of_one_history() {
    let statement = Statement {
        lineage: LineageId { cluster_id: [1; 16], incarnation: Incarnation(2) },
        group: GROUP,
        applied: LogPosition { term: 3, node: 4, index: 5 },
        entry_chain: [6; 32],
        effect_chain: [7; 32],
        root: [8; 32],
    };
    // Frozen: an archive is verified by later builds, too.
    let hex: String = key(9).sign(&statement).iter().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!(
        hex,
        "3bd51ec821b30744cc3c3c4c665dc4a042015963d44ab2ec8981c11d44687488\
         d380876c1407015d77f42261ab5440edfa51ae06386ef1c386ccd32d394ecf08"
    );
    let signed = witness(9, &statement);
    assert!(signed.signed(&statement));
    let others = [
        Statement { lineage: LineageId { cluster_id: [0; 16], ..statement.lineage }, ..statement },
        Statement { lineage: LineageId { incarnation: Incarnation(3), ..statement.lineage }, ..statement },
        Statement { group: GroupId(1), ..statement },
        Statement { applied: LogPosition { term: 4, ..statement.applied }, ..statement },
        Statement { applied: LogPosition { node: 1, ..statement.applied }, ..statement },
        Statement { applied: LogPosition { index: 6, ..statement.applied }, ..statement },
        Statement { entry_chain: [7; 32], ..statement },
        Statement { effect_chain: [6; 32], ..statement },
        Statement { root: [9; 32], ..statement },
    ];
    assert!(others.iter().all(|other| !signed.signed(other)));
    assert!(!Witness { key: [255; 32], ..signed }.signed(&statement), "that is no key");
}
