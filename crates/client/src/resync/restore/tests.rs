use proptest::prelude::*;

use super::*;

fn rollback(common_version: u64, order: &[&str]) -> Rollback {
    Rollback {
        user: "ann".into(),
        device: "phone".into(),
        lost_incarnation: 7,
        common_version,
        collection_order: order.iter().map(|name| name.to_string()).collect(),
    }
}

fn kept(collection: &str, id: &str, version: u64, bytes: Option<usize>) -> Kept {
    let key = v1::RecordKey { collection: collection.into(), record_id: id.into() };
    let put = bytes.map(|bytes| v1::PutOp { payload: vec![7; bytes].into(), ..Default::default() });
    Kept { key, version, put }
}

#[test]
fn only_a_rollback_is_answered_by_uploading() {
    for reason in 0..9 {
        let info = v1::ResyncInfo { reason, common_version: 3, ..Default::default() };
        let made = Rollback::new("ann", "phone", 7, &info);
        assert_eq!(made.is_ok(), reason == v1::ResyncReason::RolledBack as i32, "{reason}");
    }
}

#[test]
fn what_the_server_lacks_is_sent_with_the_version_it_had() {
    let all = [
        kept("notes", "old", 5, Some(1)),
        kept("notes", "n", 6, Some(1)),
        kept("x-a", "a", 9, Some(1)),
        kept("contacts", "c", 8, None),
        kept("notes", "n", 7, None),
        kept("notes", "n", 6, Some(3)),
    ];
    let batches = restore_batches(&rollback(5, &["contacts", "notes"]), all);
    assert_eq!(batches.len(), 1);
    let sent: Vec<Kept> = batches[0].iter().filter_map(kept_of).collect();
    let expected = [kept("contacts", "c", 8, None), kept("notes", "n", 7, None), kept("x-a", "a", 9, Some(1))];
    assert_eq!(sent, expected, "contacts first, the newest of each, nothing that is shared");
    let guard = v1::RestoreGuard { common_version: 5, lost_version: 8, lost_incarnation: 7 };
    assert_eq!(batches[0][0].precondition, Some(v1::Precondition { check: Some(Check::Restore(guard)) }));
    assert_eq!(batches[0][0].op, Some(Op::Delete(v1::DeleteOp {})));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn batches_keep_the_limits_and_lose_nothing(
        sizes in proptest::collection::vec(prop_oneof![Just(None), (0..2000usize).prop_map(Some), Just(Some(1 << 20))], 0..1200),
    ) {
        let all: Vec<Kept> =
            sizes.iter().enumerate().map(|(n, size)| kept("notes", &format!("n{n:05}"), 10 + n as u64, *size)).collect();
        let batches = restore_batches(&rollback(9, &[]), all.clone());
        for batch in &batches {
            let bytes: usize = batch.iter().map(holdfast_wire::encoded_len).sum();
            prop_assert!((1..=BATCH_MUTATIONS_MAX).contains(&batch.len()) && bytes <= BATCH_BYTES_MAX, "{bytes}");
        }
        let sent: Vec<Kept> = batches.iter().flatten().filter_map(kept_of).collect();
        prop_assert!(sent == all);
    }
}
