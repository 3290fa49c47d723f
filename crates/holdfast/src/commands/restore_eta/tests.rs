use super::*;

const WORK: Work = Work {
    chunk_bytes: 2e8,
    load_bytes: 6e8,
    records: 2e5,
    is_composed: true,
    log_bytes: 1e8,
    entries: 20_000.0,
    changes: 1e5,
    directories: 3.0,
    processors: 2.0,
    drilled: NEVER_DRILLED,
};
const NOTHING: Work = Work {
    chunk_bytes: 0.0,
    load_bytes: 0.0,
    records: 0.0,
    is_composed: false,
    log_bytes: 0.0,
    entries: 0.0,
    changes: 0.0,
    directories: 3.0,
    processors: 2.0,
    drilled: NEVER_DRILLED,
};

fn at(stage: RestoreStage, share: f64, elapsed_ms: f64, in_stage_ms: f64) -> f64 {
    let ms = |ms: f64| Duration::from_secs_f64(ms / 1000.0);
    let now = Now { stage, share, elapsed: ms(elapsed_ms), in_stage: ms(in_stage_ms) };
    left(&WORK, now).as_secs_f64() * 1000.0
}

#[test]
fn a_machine_that_is_thrice_as_slow_takes_thrice_as_long() {
    let known = STAGES.map(|stage| WORK.known_ms(stage));
    for times in [1.0 / 3.0, 1.0, 3.0] {
        let total: f64 = known.iter().sum::<f64>() * times;
        let mut elapsed = 0.0;
        for (stage, known) in STAGES.into_iter().zip(known) {
            for share in [0.2, 0.5, 1.0] {
                let in_stage = WORK.done_ms(stage, share) * times;
                let left = at(stage, share, elapsed + in_stage, in_stage);
                let expected = total - elapsed - in_stage;
                let off = if times == 1.0 { 1.0 } else { expected * 0.15 };
                assert!((left - expected).abs() <= off, "{stage:?} {share}: {left} and not {expected}");
            }
            elapsed += known * times;
        }
    }
    let known: f64 = known.iter().sum();
    assert!((at(RestoreStage::Verify, 0.0, 5.0, 5.0) - known).abs() < 1.0, "nothing is done yet that would tell");
}

#[test]
fn a_stage_that_is_slower_than_the_others_says_so_itself() {
    let [verify, load, replay] = STAGES.map(|stage| WORK.known_ms(stage));
    // It took thrice what it should.
    let half = 0.5 + WORK.load_ahead();
    let left = at(RestoreStage::Load, half, verify + load * 1.5, load * 1.5);
    let times = times(Duration::from_secs_f64((verify + load * 1.5) / 1000.0), verify + load * 0.5, USUAL_SPREAD);
    assert!((1.5..3.0).contains(&times), "{times}");
    let rest = left - replay * times;
    assert!((rest - load * 0.5 * (3.0 + times) / 2.0).abs() < 1.0, "half by what was seen, half by what was before");
    let handed_over = WORK.done_ms(RestoreStage::Load, 1.0);
    let at_end = at(RestoreStage::Load, 1.0, verify + handed_over * 3.0, handed_over * 3.0);
    assert!(at_end > (load - handed_over) * 2.0, "more by what was seen: {at_end}");
}

#[test]
fn a_plan_that_was_read_tells_what_a_restore_takes() {
    let verify = WORK.known_ms(RestoreStage::Verify);
    let total: f64 = STAGES.into_iter().map(|stage| WORK.known_ms(stage)).sum();
    let told = WORK.estimate(Duration::from_secs_f64(verify * 3.0 / 1000.0));
    assert!((told.as_secs_f64() * 1000.0 - total * 3.0).abs() < total * 0.3);
    // A stage that goes a little slower than usual tells little of the others.
    let told = WORK.estimate(Duration::from_secs_f64(verify * 1.2 / 1000.0));
    assert!((told.as_secs_f64() * 1000.0 - total).abs() < total * 0.1);
    // Opening three files takes as long as reading megabytes, and tells nothing of the rest.
    let small = Work { chunk_bytes: 2000.0, load_bytes: 3000.0, log_bytes: 1000.0, entries: 8.0, ..NOTHING };
    let told = small.estimate(Duration::from_millis(3)).as_secs_f64() * 1000.0;
    let usual: f64 = STAGES.into_iter().map(|stage| small.usual_ms(stage)).sum();
    assert!((told - usual).abs() < 5.0, "{told} and not {usual}");
}

#[test]
fn what_a_drill_took_is_what_the_next_restore_takes() {
    let known = STAGES.map(|stage| WORK.known_ms(stage) as u64);
    let took = [known[0], known[1] * 3, known[2] * 2];
    let drill = DrillTimes { verify_ms: took[0], load_ms: took[1], replay_ms: took[2], ..DrillTimes::default() };
    let once = WORK.at_pace_of(&[(&drill, &WORK.recorded())]);
    let next = WORK.at_pace_of(&[(&drill, &WORK.recorded()); 5]);
    let told = next.estimate(Duration::from_millis(took[0])).as_secs_f64() * 1000.0;
    let total = took.iter().sum::<u64>() as f64;
    assert!((told - total).abs() < total * 0.12, "{told} and not {total}");
    // One drill alone may have met a slow hour.
    let load = |work: Work| work.known_ms(RestoreStage::Load);
    assert!(load(WORK) * 1.5 < load(once) && load(once) * 1.1 < load(next), "{once:?} {next:?}");
    // Of twice as much it is twice as long, and on one directory less than on three.
    let twice = Work { load_bytes: WORK.load_bytes * 2.0, records: WORK.records * 2.0, ..next };
    assert!(twice.known_ms(RestoreStage::Load) > next.known_ms(RestoreStage::Load) * 1.9);
    // Where one look was thrice as slow for once, that is no other machine.
    let slow = next.estimate(Duration::from_millis(took[0] * 3)).as_secs_f64() * 1000.0;
    assert!(told < slow && slow < told * 1.4, "{slow} and not {told}");
    // A stage that a drill hardly had says nothing of it, and goes as the others went.
    let nothing = WORK.at_pace_of(&[(&DrillTimes { replay_ms: 0, ..drill.clone() }, &NOTHING.recorded())]);
    assert!(nothing.drilled.iter().all(|times| *times < PACE_MAX), "{nothing:?}");
    let log_left_out = RestoreWork { log_bytes: 0, entries: 0, changes: 0, ..WORK.recorded() };
    let without_log = WORK.at_pace_of(&[(&DrillTimes { replay_ms: 40, ..drill }, &log_left_out)]);
    assert!((1.5..3.0).contains(&without_log.drilled[2]), "{without_log:?}");
    // Whoever may write there may write nonsense.
    let forged = DrillTimes { load_ms: u64::MAX, replay_ms: u64::MAX, ..DrillTimes::default() };
    let told = WORK.at_pace_of(&[(&forged, &WORK.recorded())]).estimate(Duration::from_millis(took[0]));
    assert!(told < Duration::from_secs(600), "{told:?}");
}

#[test]
fn a_short_restore_takes_what_a_short_drill_took() {
    // A thousand records: what takes its time is to open three directories twice, and how long is the machine's own affair.
    let small =
        Work { chunk_bytes: 1e5, load_bytes: 3e5, records: 1e3, log_bytes: 1e4, entries: 50.0, changes: 50.0, ..WORK };
    for times in [0.3, 1.0, 4.0] {
        let took = STAGES.map(|stage| small.usual_ms(stage) * times);
        let [verify_ms, load_ms, replay_ms] = took.map(|ms| ms.round() as u64);
        let drill = DrillTimes { verify_ms, load_ms, replay_ms, ..DrillTimes::default() };
        let total: f64 = took.iter().sum();
        let told = |work: Work, drilled: Work| {
            let work = work.at_pace_of(&[(&drill, &drilled.recorded())]);
            work.estimate(Duration::from_millis(verify_ms)).as_secs_f64() * 1000.0
        };
        let next = told(small, small);
        assert!((next - total).abs() < total * 0.2, "{times}: {next} and not {total}");
        // What came since is beside it, and a point before takes less.
        let more = told(Work { log_bytes: 2e4, entries: 100.0, changes: 100.0, ..small }, small);
        assert!(next < more && more < next * 1.2, "{times}: {more} after {next}");
        let less = told(Work { log_bytes: 0.0, entries: 0.0, changes: 0.0, ..small }, small);
        assert!(next * 0.5 < less && less < next, "{times}: {less} before {next}");
    }
}

#[test]
fn a_long_log_of_small_changes_is_sorted_again() {
    let replay = |work: Work| work.known_ms(RestoreStage::Replay);
    let small = Work { log_bytes: 2e8, changes: 2e5, ..NOTHING };
    let ten_times = Work { log_bytes: 2e9, changes: 2e6, ..NOTHING };
    assert!(replay(ten_times) > replay(small) * 12.0, "{} of {}", replay(ten_times), replay(small));
    let large = |log_bytes: f64| Work { log_bytes, changes: log_bytes / 2e4, ..NOTHING };
    assert!(replay(large(2e9)) < replay(large(2e8)) * 10.0, "payloads in files of their own are not");
    // Its second half takes longer than its first.
    let half = ten_times.done_ms(RestoreStage::Replay, 0.5);
    assert!(half * 2.0 < ten_times.done_ms(RestoreStage::Replay, 1.0), "{half}");
}

#[test]
fn times_are_said_as_people_say_them() {
    let said = [0, 4, 99, 100, 200, 5400, 7800].map(|seconds| rounded(Duration::from_secs(seconds)));
    assert_eq!(said, ["1 s", "4 s", "99 s", "2 min", "3 min", "90 min", "2 h 10 min"]);
}
