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
    for refusal in [Refusal::field("a", "b"), Refusal::Corrupt("x".into()), Refusal::Internal("x".into())] {
        assert!(matches!(of(refusal).next, Next::Stop));
    }
}

#[test]
fn what_no_node_said_may_have_been_sent() {
    let failure = judge(&Status::unknown("h2 protocol error"), "n");
    assert!(failure.unknown && matches!(failure.next, Next::Elsewhere));
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
    Nodes::new(vec![("a".into(), channel()), ("b".into(), channel())])
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
