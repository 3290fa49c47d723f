//! Golden scripts: what commands do to the state, in a form that a reviewer can read. See `scripts/README.md`.
//!
//! `UPDATE_SCRIPTS=1 cargo test -p holdfast-model --test scripts` rewrites the expectations; the diff is the review.

#[path = "scripts/parse.rs"]
mod parse;
#[path = "scripts/render.rs"]
mod render;

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::path::PathBuf;
use std::sync::Arc;

use holdfast_model::command::Proposal;
use holdfast_model::id::{DeviceId, Millis, RecordKey, RequestId, Uid, UserId};
use holdfast_model::memory::MemoryState;
use holdfast_model::outcome::{Outcome, Rejection};
use holdfast_model::state::{DeviceRow, Effects, ExpiryItem, RecordRow, RequestRow, StateRead, Sys, UserRef, UserRow};
use holdfast_model::transition::transition_guarded;

use parse::Line;

macro_rules! scripts {
    ($($name:ident),* $(,)?) => {
        $(#[test] fn $name() { run(stringify!($name)); })*

        #[test]
        fn every_script_is_run() {
            let mut found: Vec<String> = fs::read_dir(directory())
                .unwrap()
                .filter_map(|entry| entry.unwrap().file_name().to_str()?.strip_suffix(".txt").map(String::from))
                .collect();
            found.sort();
            assert_eq!(found, [$(stringify!($name)),*]);
        }
    };
}

scripts!(
    archive_keys,
    attest,
    backed_up,
    clock,
    dedup,
    dedup_window,
    devices,
    expire,
    fill,
    genesis,
    guards,
    lineage_fork,
    mixed_batch,
    offsite,
    operations_and_barriers,
    poisoned,
    quota,
    records,
    restore,
    restore_guard,
    tombstones,
    ttl,
    unknown_rules,
    users,
);

fn directory() -> PathBuf {
    // Asked when the test runs: a binary that another clone left in a shared target directory names that clone's files.
    let manifest = std::env::var_os("CARGO_MANIFEST_DIR").unwrap_or_else(|| env!("CARGO_MANIFEST_DIR").into());
    PathBuf::from(manifest).join("tests/scripts")
}

fn run(name: &str) {
    let path = directory().join(format!("{name}.txt"));
    let script = fs::read_to_string(&path).unwrap();
    let played = Player::default().play(&script);
    if std::env::var_os("UPDATE_SCRIPTS").is_some() {
        fs::write(&path, &played).unwrap();
        return;
    }
    for (number, (wanted, got)) in (1..).zip(script.lines().zip(played.lines())) {
        assert_eq!(got, wanted, "{name}.txt, line {number}: the rules say otherwise");
    }
    assert_eq!(played, script, "{name}.txt: the rules say more or less");
}

/// Plays a script and writes it anew, with what really happened after each line.
#[derive(Default)]
struct Player {
    state: MemoryState,
    index: u64,
    stamp: Millis,
    saved: BTreeMap<String, (u64, MemoryState)>,
}

impl Player {
    fn play(mut self, script: &str) -> String {
        let mut out = String::new();
        for block in parse::blocks(script) {
            out.push_str(&block.text);
            for line in self.play_line(&block.line) {
                writeln!(out, "> {line}").unwrap();
            }
            out.push_str(&block.after);
        }
        out
    }

    fn play_line(&mut self, line: &Line) -> Vec<String> {
        match line {
            Line::Nothing => vec![],
            Line::At(stamp) => {
                self.stamp = *stamp;
                vec![]
            }
            Line::Save(name) => {
                self.saved.insert(name.clone(), (self.index, self.state.clone()));
                vec![]
            }
            Line::Load(name) => {
                (self.index, self.state) = self.saved[name].clone();
                vec![]
            }
            Line::ShowSys => render::sys_lines(&self.state.sys),
            Line::ShowUser(user) => match self.state.user_row(user) {
                Some(row) => vec![render::user_row(row)],
                None => vec!["unknown".into()],
            },
            Line::BackedUp(user) => {
                let row = self.state.user_row(user).cloned().unwrap_or_default();
                vec![render::version(row.backed_up(&self.state.sys))]
            }
            Line::Common(user, incarnation) => {
                let row = self.state.user_row(user).cloned().unwrap_or_default();
                vec![match row.common_with(&self.state.sys, *incarnation) {
                    Some(version) => render::version(version),
                    None => "unknown incarnation".into(),
                }]
            }
            Line::Entry { rules, poison, command } => {
                let proposal = Proposal { rules: *rules, stamp: self.stamp, command: command.clone() };
                self.play_entry(&proposal, *poison)
            }
        }
    }

    fn play_entry(&mut self, proposal: &Proposal, poison: bool) -> Vec<String> {
        self.index += 1;
        let before = self.state.clone();
        let (outcome, effects) = if poison {
            let Ok(answer) = transition_guarded(&Poison(&before), self.index, proposal);
            answer
        } else {
            before.judge(self.index, proposal)
        };
        self.state.perform(effects.clone());
        assert_eq!(self.state.violations(), [], "after entry {}", self.index);
        if let Outcome::Rejected(rejection) = &outcome {
            let moved = Sys { now: self.state.sys.now, ..before.sys.clone() };
            assert_eq!(self.state, MemoryState { sys: moved, ..before.clone() }, "a trace of {rejection:?}");
            assert_eq!(poison, *rejection == Rejection::Poisoned, "poisoned by itself at entry {}", self.index);
        }
        let mut lines = render::outcome(&outcome);
        lines.extend(render::effects(&before.sys, &effects, &self.state));
        lines
    }
}

/// A state on which the rules fail: stands for a defect that only some entry brings to light.
struct Poison<'a>(&'a MemoryState);

impl StateRead for Poison<'_> {
    type Error = std::convert::Infallible;

    fn sys(&self) -> &Sys {
        &self.0.sys
    }

    fn uid(&self, _: &UserId) -> Result<Option<Uid>, Self::Error> {
        panic!("poison, as the script asked")
    }

    fn user(&self, _: UserRef) -> Result<Option<Arc<UserRow>>, Self::Error> {
        panic!("poison, as the script asked")
    }

    fn record(&self, _: UserRef, _: &RecordKey) -> Result<Option<RecordRow>, Self::Error> {
        panic!("poison, as the script asked")
    }

    fn request(&self, _: UserRef, _: RequestId) -> Result<Option<RequestRow>, Self::Error> {
        panic!("poison, as the script asked")
    }

    fn devices(&self, _: UserRef) -> Result<BTreeMap<DeviceId, DeviceRow>, Self::Error> {
        panic!("poison, as the script asked")
    }

    fn due(&self, _: Millis, _: usize) -> Result<Vec<(Millis, ExpiryItem)>, Self::Error> {
        panic!("poison, as the script asked")
    }
}

#[test]
fn a_storage_error_is_no_outcome() {
    struct Broken(Sys);
    impl StateRead for Broken {
        type Error = &'static str;
        fn sys(&self) -> &Sys {
            &self.0
        }
        fn uid(&self, _: &UserId) -> Result<Option<Uid>, Self::Error> {
            Err("disk")
        }
        fn user(&self, _: UserRef) -> Result<Option<Arc<UserRow>>, Self::Error> {
            Err("disk")
        }
        fn record(&self, _: UserRef, _: &RecordKey) -> Result<Option<RecordRow>, Self::Error> {
            Err("disk")
        }
        fn request(&self, _: UserRef, _: RequestId) -> Result<Option<RequestRow>, Self::Error> {
            Err("disk")
        }
        fn devices(&self, _: UserRef) -> Result<BTreeMap<DeviceId, DeviceRow>, Self::Error> {
            Err("disk")
        }
        fn due(&self, _: Millis, _: usize) -> Result<Vec<(Millis, ExpiryItem)>, Self::Error> {
            Err("disk")
        }
    }
    let mut founded = MemoryState::default();
    let entry = |line: &str| match parse::blocks(line).remove(1).line {
        Line::Entry { rules, command, .. } => Proposal { rules, stamp: Millis(1), command },
        _ => panic!("not an entry: {line}"),
    };
    assert_eq!(founded.apply(1, &entry("genesis inc=10 epoch=1")), Outcome::Done);
    let broken = Broken(founded.sys);
    for line in ["put alice notes/n1 \"x\" req=1", "expire"] {
        assert_eq!(transition_guarded(&broken, 2, &entry(line)), Err("disk"), "{line}");
    }
    let done: Result<(Outcome, Effects), _> = transition_guarded(&broken, 2, &entry("barrier snap-1"));
    assert_eq!(done.map(|(outcome, _)| outcome), Ok(Outcome::Done));
}
