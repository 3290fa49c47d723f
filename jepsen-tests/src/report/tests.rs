use super::*;
use crate::history::{Action, Failure, FaultNote, Named, Process, Reply, Stage, Write};

fn op(process: Process, stage: Stage, ms: u64, action: Action) -> Op {
    Op { process, stage, time_ns: ms * 1_000_000, action, reply: None, error: None }
}

fn write(id: &str) -> Action {
    let text = |text: &str| text.to_owned();
    Action::Add(Write { user: text("u<1>"), key: text("k"), payload: text("p"), request_id: text(id), guard: None })
}

fn history() -> Vec<Op> {
    let client = Process::Client;
    let nemesis = Process::Named(Named::Nemesis);
    let note = FaultNote {
        round: 1,
        fault: "pause".into(),
        nodes: vec![2],
        installed: true,
        detail: String::new(),
        missed: None,
    };
    let mut ops = vec![
        op(client(0), Stage::Invoke, 0, write("request-1")),
        op(client(1), Stage::Invoke, 1, write("request-2")),
        op(nemesis, Stage::Info, 2, Action::Fault(note.clone())),
        op(client(0), Stage::Ok, 5, write("request-1")),
        op(client(1), Stage::Fail, 1500, write("request-2")),
        op(nemesis, Stage::Info, 1600, Action::Heal(note)),
        op(client(0), Stage::Invoke, 1700, write("request-3")),
    ];
    ops[3].reply = Some(Reply { commit_index: 1, version: 1, replayed: false, changed: true });
    ops[4].error = Some(Failure { reason: "NO_LEADER".into(), message: "</div>".into() });
    ops
}

#[test]
fn spans_and_bands_go_from_beginning_to_end() {
    let history = history();
    let run = spans::Run::of(&history);
    let spans: Vec<_> = run.spans.iter().map(|span| (span.begin_ns, span.end_ns, span.stage, span.line)).collect();
    let ms = 1_000_000;
    assert_eq!(
        spans,
        [(0, Some(5 * ms), Stage::Ok, 1), (ms, Some(1500 * ms), Stage::Fail, 2), (1700 * ms, None, Stage::Info, 7)]
    );
    assert_eq!(run.bands, [spans::Band { label: "pause 2".into(), begin_ns: 2 * ms, end_ns: 1600 * ms }]);
}

#[test]
fn plots_show_what_ended_how_and_which_fault_stood() {
    let history = history();
    let run = spans::Run::of(&history);
    let latency = plot::latency("set & kill", &run);
    for part in ["set &amp; kill", "ok (1)", "failed (1)", "unknown (0)", "1 never ended", ">pause 2<", "10 ms", "2 s"]
    {
        assert!(latency.contains(part), "{part}: {latency}");
    }
    let rate = plot::rate("set", &run);
    for part in ["in steps of 0.2 s", ">pause 2<", "polyline"] {
        assert!(rate.contains(part), "{part}: {rate}");
    }
    // A run in which nothing happened is drawn too.
    let nothing = spans::Run::default();
    assert!(plot::latency("", &nothing).ends_with("</svg>\n") && plot::rate("", &nothing).ends_with("</svg>\n"));
}

#[test]
fn the_timeline_opens_at_what_broke_a_rule_and_shows_text_as_text() {
    let history = history();
    let run = spans::Run::of(&history);
    let by_id = ["lost: u<1>/k request-2".to_owned()];
    let page = timeline::html("t", &run, &by_id);
    assert!(page.contains("id=\"o1\" class=\"o fail bad\""), "{page}");
    assert!(page.contains("getElementById('o1')") && page.contains("<a href=\"#o1\">show</a>"), "{page}");
    assert!(!page.contains("u<1>") && page.matches("</div>").count() > 3 && page.contains("&lt;/div&gt;"), "{page}");
    let by_line = timeline::html("t", &run, &["stale: line 7".to_owned()]);
    assert!(by_line.contains("getElementById('o2')"), "{by_line}");
    assert!(!timeline::html("t", &run, &[]).contains("<script>"));
}

#[test]
fn a_long_history_is_cut_around_what_broke_a_rule() {
    let mut history = Vec::new();
    for n in 0..10_000u64 {
        history.push(op(Process::Client(0), Stage::Invoke, 2 * n, write(&format!("request-{n:05}"))));
        history.push(op(Process::Client(0), Stage::Ok, 2 * n + 1, write(&format!("request-{n:05}"))));
    }
    let run = spans::Run::of(&history);
    let page = timeline::html("t", &run, &["lost: request-09990".to_owned()]);
    assert!(page.contains("10000 operations, 6000 of them"), "{}", &page[..2000]);
    assert!(page.contains("id=\"o9990\" class=\"o ok bad\"") && !page.contains("id=\"o10\""));
}

#[test]
fn a_run_is_drawn_into_its_folder() {
    let dir = tempfile::tempdir().expect("tempdir");
    write_into(dir.path());
    for (name, _) in FILES {
        assert!(std::fs::metadata(dir.path().join(name)).expect("written").len() > 100, "{name}");
    }
}

fn write_into(dir: &Path) {
    super::write(dir, "t", &history(), &[]).expect("written");
}
