use holdfast_wire::status::Refusal;

use super::*;

fn write(rejection_is_final: bool) -> Effect<'static> {
    Effect::Write { request_id: "id-1", rejection_is_final }
}

fn conflict() -> Error {
    Error::Conflict { info: Box::default(), message: "guard".into() }
}

#[test]
fn a_write_that_may_have_happened_is_never_a_clean_failure() {
    let unavailable = || Error::unavailable("gone");
    assert!(
        matches!(conclude(write(true), true, unavailable()), Error::OutcomeUnknown { request_id, .. } if request_id == "id-1")
    );
    assert!(matches!(conclude(write(true), false, unavailable()), Error::Unavailable { .. }));
    assert!(matches!(conclude(Effect::Read, true, unavailable()), Error::Unavailable { .. }));
    assert!(matches!(conclude(write(true), true, conflict()), Error::Conflict { .. }));
    assert!(matches!(conclude(write(false), true, conflict()), Error::OutcomeUnknown { .. }));
    assert!(matches!(conclude(write(false), false, conflict()), Error::Conflict { .. }));
    let other_history = Error::Precondition { reason: "INCARNATION_MISMATCH".into(), message: "m".into() };
    assert!(matches!(conclude(write(false), true, other_history), Error::OutcomeUnknown { .. }));
    let full = || Error::Overloaded { reason: "DISK_FULL".into(), message: "m".into(), retry_after: None };
    assert!(matches!(conclude(write(true), true, full()), Error::OutcomeUnknown { .. }));
    assert!(matches!(conclude(write(true), false, full()), Error::Overloaded { .. }));
    assert!(matches!(conclude(write(true), true, Error::protocol("m")), Error::OutcomeUnknown { .. }));
    assert!(matches!(conclude(write(true), true, Error::invalid("m")), Error::Invalid { .. }));
}

#[test]
fn refusals_lead_to_the_next_step_they_ask_for() {
    let of = |refusal: Refusal| judge(&Status::from(refusal), "n");
    let unknown = of(Refusal::OutcomeUnknown { deadline: true });
    assert!(unknown.unknown && matches!(unknown.next, Next::After(_)));
    let overloaded = of(Refusal::Overloaded(Duration::from_millis(70)));
    assert!(!overloaded.unknown && matches!(overloaded.next, Next::Back(after) if after.as_millis() == 70));
    assert!(matches!(of(Refusal::Draining).next, Next::Elsewhere));
    assert!(matches!(of(Refusal::NoLeader).next, Next::After(_)));
    assert!(!of(Refusal::NoLeader).unknown);
    // Who is left alone, and for how long.
    assert_eq!((unknown.avoid, overloaded.avoid), (None, None));
    assert_eq!(of(Refusal::NoLeader).avoid, Some(Duration::ZERO));
    assert_eq!(of(Refusal::Draining).avoid, Some(AVOID_SLOW));
    assert_eq!(timed_out("n", Duration::ZERO).avoid, Some(AVOID_SLOW));
    assert!(matches!(of(Refusal::field("a", "b")).next, Next::Stop));
    for refusal in [Refusal::Corrupt("x".into()), Refusal::Internal("x".into())] {
        let failure = of(refusal);
        assert!(!failure.unknown && matches!(failure.next, Next::OtherCopy));
        assert_eq!(failure.avoid, Some(AVOID_SLOW));
    }
}

#[test]
fn a_refusal_without_a_pause_is_not_tried_again() {
    let with_details_of = |code, refusal: Refusal| {
        let details = Status::from(refusal).details().to_vec();
        judge(&Status::with_details(code, "", details.into()), "n")
    };
    // Out of quota: room must be made first.
    let quota = with_details_of(Code::ResourceExhausted, Refusal::Internal("x".into()));
    assert!(!quota.unknown && matches!(quota.next, Next::Stop));
    // A reason that this client does not know yet.
    let after = Duration::from_millis(70);
    let newer = with_details_of(Code::Unavailable, Refusal::Overloaded(after));
    assert!(!newer.unknown && matches!(newer.next, Next::After(pause) if pause == after));
    let newer = with_details_of(Code::FailedPrecondition, Refusal::Overloaded(after));
    assert!(matches!(newer.next, Next::Stop));
}

#[test]
fn what_no_node_said_may_have_been_sent() {
    let failure = judge(&Status::unknown("h2 protocol error"), "n");
    assert!(failure.unknown && !failure.slow && matches!(failure.next, Next::Elsewhere));
    for status in [Status::cancelled("Timeout expired"), Status::deadline_exceeded("late")] {
        let failure = judge(&status, "n");
        assert!(failure.unknown && failure.slow && matches!(failure.next, Next::Elsewhere), "{status}");
    }
}

#[test]
fn pauses_are_spread_around_their_length() {
    let pause = Duration::from_millis(100);
    let all: Vec<Duration> = (0..200).map(|_| jittered(pause)).collect();
    assert!(all.iter().all(|one| (50..=150).contains(&one.as_millis())));
    assert!(all.iter().any(|one| *one != all[0]));
    assert_eq!(jittered(Duration::ZERO), Duration::ZERO);
}

fn limits(deadline_ms: u64, attempt_ms: u64) -> Limits {
    Limits { deadline: Duration::from_millis(deadline_ms), attempt: Duration::from_millis(attempt_ms) }
}

fn two_nodes() -> Nodes {
    let channel = || tonic::transport::Endpoint::from_static("http://127.0.0.1:1").connect_lazy();
    Nodes::new(vec![("a".into(), channel()), ("b".into(), channel())], Default::default(), 8)
}

#[tokio::test]
async fn a_silent_node_costs_one_attempt() {
    let nodes = two_nodes();
    let asked = Cell::new(0);
    let call = |_, request: Request<u8>| {
        let attempt = asked.replace(asked.get() + 1);
        async move {
            if attempt == 0 {
                std::future::pending::<()>().await;
            }
            assert_eq!(*request.get_ref(), 7);
            Ok(Response::new(v1::BatchWriteResponse { version: 5, ..Default::default() }))
        }
    };
    let answer = run(&nodes, limits(60_000, 30), write(true), 7, call).await.expect("answers");
    assert_eq!((answer.version, asked.get()), (5, 2));
}

#[tokio::test]
async fn the_deadline_ends_a_call_that_nobody_answers() {
    let nodes = two_nodes();
    let call = |_, _: Request<()>| async { Err::<Response<v1::BatchWriteResponse>, _>(Refusal::NoLeader.into()) };
    let error = run(&nodes, limits(400, 100), write(true), (), call).await.expect_err("nobody leads");
    assert_eq!(error.reason(), "NO_LEADER");
}

#[tokio::test]
async fn silence_to_the_end_leaves_the_outcome_of_a_write_unknown() {
    let nodes = two_nodes();
    let call = |_, _: Request<()>| std::future::pending::<Result<Response<v1::BatchWriteResponse>, Status>>();
    let error = run(&nodes, limits(150, 50), write(true), (), call).await.expect_err("silence");
    assert!(matches!(&error, Error::OutcomeUnknown { request_id, .. } if request_id == "id-1"), "{error:?}");
    let error = run(&nodes, limits(150, 50), Effect::Read, (), call).await.expect_err("silence");
    assert!(matches!(error, Error::Unavailable { .. }), "{error:?}");
}
