//! Scenarios: runs that are written down, one file each, with why they are there and how they must end.
//!
//! ```toml
//! why = "Leaders die and stall while everybody writes."
//! run = "-w register -n kill,pause --clients 8 --time-limit 45"   # as on the command line of `test`
//! # A planted bug, which one of these must find; without it the run must be valid. A checker, which may find it by any of
//! # its rows but those that say that the cluster limps, or better the one row that the bug must break.
//! planted = "stale-read"
//! caught_by = ["versioned: linearizable answers older than what was known when they began", "linear"]
//! # Seeds that are tried until it is found [1].
//! tries = 3
//! # A violation that is expected, because it is a limit that Holdfast states: the checker that finds it, and no other may.
//! limit = "set"
//! # Words that some node's log must hold: without them the run did not meet what it is there for, and proves nothing.
//! said = ["snapshot.received"]
//! # Always this one: a seed that once found something.
//! seed = 7
//! ```
//!
//! Invariant: a key that is not known here is an error. A scenario that asks for less than it seems to proves nothing.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, ensure};
use serde::Deserialize;

use crate::checker::{Verdict, harness, replicas};

/// A set of scenarios.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Profile {
    /// Two short runs, and the planted bugs: at most four minutes.
    Smoke,
    /// Faults and workloads in pairs, and the planted bugs: at most 25 minutes.
    Ci,
    /// All pairs, drawn for hours.
    Soak,
    /// What once found something, or has broken systems like this one.
    Regressions,
    /// Planted bugs alone.
    Planted,
}

/// One run and how it must end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Scenario {
    /// Name of its file.
    pub name: String,
    /// Why it is there.
    pub why: String,
    /// Arguments of `test`.
    pub run: Vec<String>,
    /// How it must end.
    pub wanted: Wanted,
    /// Seeds that are tried until it ends so.
    pub tries: u32,
    /// The only seed, if there is one.
    pub seed: Option<u64>,
    /// Words that some node's log must hold.
    pub said: Vec<String>,
}

/// How a run must end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Wanted {
    /// Nothing was broken.
    Valid,
    /// The planted bug was found by one of these.
    Caught {
        /// Which bug.
        bug: String,
        /// What may find it: `checker`, or `checker: row`.
        by: Vec<String>,
    },
    /// What Holdfast says that it cannot do: this checker finds it, and no other finds anything.
    Limit(String),
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    why: String,
    run: String,
    planted: Option<String>,
    #[serde(default)]
    caught_by: Vec<String>,
    tries: Option<u32>,
    limit: Option<String>,
    seed: Option<u64>,
    #[serde(default)]
    said: Vec<String>,
}

/// All files, in the program, so that it runs from anywhere.
const FILES: &[(Profile, &str, &str)] = &include!("../scenarios/list.in");

impl Scenario {
    /// Reads one.
    ///
    /// # Errors
    /// Says what is wrong with it.
    pub fn parse(name: &str, text: &str) -> anyhow::Result<Self> {
        let file: File = toml::from_str(text).with_context(|| format!("scenario {name}"))?;
        ensure!(!file.why.is_empty(), "scenario {name} says not why it is there");
        let wanted = match (file.planted, file.limit) {
            (None, None) => {
                ensure!(file.caught_by.is_empty(), "scenario {name}: caught_by goes with planted");
                Wanted::Valid
            }
            (Some(bug), None) => {
                ensure!(!file.caught_by.is_empty(), "scenario {name}: planted needs caught_by");
                Wanted::Caught { bug, by: file.caught_by }
            }
            (None, Some(limit)) => Wanted::Limit(limit),
            (Some(_), Some(_)) => anyhow::bail!("scenario {name}: a planted bug is no stated limit"),
        };
        Ok(Self {
            name: name.to_owned(),
            why: file.why,
            run: file.run.split_whitespace().map(str::to_owned).collect(),
            wanted,
            tries: file.tries.unwrap_or(1).max(1),
            seed: file.seed,
            said: file.said,
        })
    }

    /// Those of a profile, in the order of the list; planted bugs go with smoke, and both with ci.
    ///
    /// # Errors
    /// When one cannot be read.
    pub fn of(profile: Profile) -> anyhow::Result<Vec<Self>> {
        let wanted = |of: Profile| match profile {
            Profile::Ci => matches!(of, Profile::Ci | Profile::Smoke | Profile::Planted),
            Profile::Smoke => matches!(of, Profile::Smoke | Profile::Planted),
            _ => of == profile,
        };
        FILES.iter().filter(|(of, ..)| wanted(*of)).map(|(_, name, text)| Self::parse(name, text)).collect()
    }

    /// Reads one from a file of the user's own.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn read(path: &Path) -> anyhow::Result<Self> {
        let text = std::fs::read_to_string(path).with_context(|| format!("read {}", path.display()))?;
        let name = path.file_stem().unwrap_or_default().to_string_lossy();
        Self::parse(&name, &text)
    }

    /// It runs the binary with planted bugs.
    pub fn is_planted(&self) -> bool {
        matches!(self.wanted, Wanted::Caught { .. })
    }

    /// How long it says that its faults last; zero = it does not say.
    pub fn faults_last(&self) -> Duration {
        let value = self.run.iter().skip_while(|word| *word != "--time-limit").nth(1);
        Duration::from_secs(value.and_then(|seconds| seconds.parse().ok()).unwrap_or(0))
    }

    /// Whether a run ended as it must, by the rows that were broken, each as `checker: row`.
    pub fn is_met(&self, verdict: Verdict, broken: &[String]) -> bool {
        match &self.wanted {
            Wanted::Valid => verdict == Verdict::Valid,
            Wanted::Caught { .. } => verdict == Verdict::Invalid && !self.caught(broken).is_empty(),
            Wanted::Limit(by) => {
                let by_it = |row: &String| checker_of(row) == by;
                verdict == Verdict::Invalid && !broken.is_empty() && broken.iter().all(by_it)
            }
        }
    }

    /// Those of the broken rows that show the planted bug.
    pub fn caught(&self, broken: &[String]) -> Vec<String> {
        let Wanted::Caught { by, .. } = &self.wanted else { return Vec::new() };
        let shows = |row: &&String| by.iter().any(|by| by == *row || (by == checker_of(row) && !limps(row)));
        broken.iter().filter(shows).cloned().collect()
    }
}

/// The checker of a `checker: row`.
fn checker_of(row: &str) -> &str {
    row.split_once(": ").map_or(row, |(checker, _)| checker)
}

/// Says that the cluster does not come back, which is no sign of one bug rather than another: it counts only where a
/// scenario names it.
fn limps(row: &str) -> bool {
    [harness::SILENT, harness::DOWN, replicas::BEHIND].iter().any(|limping| row.ends_with(limping))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_scenarios_can_be_read_and_none_is_forgotten() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("scenarios");
        let mut files = Vec::new();
        for folder in std::fs::read_dir(&root).expect("folder").flatten().filter(|entry| entry.path().is_dir()) {
            for file in std::fs::read_dir(folder.path()).expect("folder").flatten() {
                let path = file.path();
                assert_eq!(path.extension().and_then(|end| end.to_str()), Some("toml"), "{}", path.display());
                files.push((folder.file_name().into_string().expect("name"), Scenario::read(&path).expect("reads")));
            }
        }
        let mut known = Vec::new();
        for profile in <Profile as clap::ValueEnum>::value_variants() {
            let of = |of: &&(Profile, &str, &str)| of.0 == *profile;
            for (_, name, text) in FILES.iter().filter(of) {
                let folder = format!("{profile:?}").to_lowercase();
                known.push((folder, Scenario::parse(name, text).expect("reads")));
            }
            assert!(Scenario::of(*profile).is_ok());
        }
        let sorted = |mut all: Vec<(String, Scenario)>| {
            all.sort_by(|a, b| (&a.0, &a.1.name).cmp(&(&b.0, &b.1.name)));
            all
        };
        assert_eq!(sorted(known), sorted(files), "scenarios/list.in names all files");
    }

    #[test]
    fn the_full_profile_takes_the_short_ones_along() {
        let names = |profile| Scenario::of(profile).expect("reads").into_iter().map(|one| one.name).collect::<Vec<_>>();
        let ci = names(Profile::Ci);
        let short = names(Profile::Smoke);
        assert!(short.iter().all(|name| ci.contains(name)) && ci.len() >= short.len() + 10, "{ci:?}");
        assert!(names(Profile::Planted).iter().all(|name| short.contains(name)));
        assert!(names(Profile::Regressions).iter().all(|name| !ci.contains(name)), "one name, one folder");
    }

    #[test]
    fn a_scenario_says_how_it_must_end() {
        let parse = |text: &str| Scenario::parse("x", &format!("why = 'because'\nrun = '-w set'\n{text}"));
        let verdicts = |text: &str| {
            let scenario = parse(text).expect("reads");
            [(Verdict::Valid, vec![]), (Verdict::Invalid, vec!["set: lost".to_owned()]), (Verdict::Unknown, vec![])]
                .map(|(verdict, broken)| scenario.is_met(verdict, &broken))
        };
        assert_eq!(verdicts(""), [true, false, false]);
        assert_eq!(verdicts("planted = 'stale-read'\ncaught_by = ['set', 'feed']"), [false, true, false]);
        assert_eq!(verdicts("planted = 'stale-read'\ncaught_by = ['feed']"), [false, false, false]);
        assert_eq!(verdicts("limit = 'set'"), [false, true, false]);
        assert_eq!(verdicts("limit = 'feed'"), [false, false, false]);
        assert_eq!(parse("").expect("reads").faults_last(), Duration::ZERO);
        let timed = Scenario::parse("x", "why = 'because'\nrun = '-w set --time-limit 45'").expect("reads");
        assert_eq!(timed.faults_last(), Duration::from_secs(45));
        let limit = parse("limit = 'set'").expect("reads");
        assert!(
            !limit.is_met(Verdict::Invalid, &["set: lost".into(), "harness: panics".into()]),
            "that much is no stated limit"
        );
        for wrong in
            ["planted = 'x'", "caught_by = ['set']", "planted = 'x'\ncaught_by = ['y']\nlimit = 'z'", "seeds = 1"]
        {
            assert!(parse(wrong).is_err(), "{wrong}");
        }
        assert!(Scenario::parse("x", "run = '-w set'").is_err(), "why is not optional");
    }

    #[test]
    fn a_bug_is_caught_by_the_row_that_it_must_break() {
        let caught = |by: &str, broken: &str| {
            let text = format!("why = 'because'\nrun = '-w set'\nplanted = 'x'\ncaught_by = ['{by}']");
            let scenario = Scenario::parse("x", &text).expect("reads");
            let broken = [broken.to_owned()];
            let met = scenario.is_met(Verdict::Invalid, &broken);
            assert_eq!(scenario.caught(&broken), if met { broken.to_vec() } else { Vec::new() });
            assert!(!scenario.is_met(Verdict::Unknown, &broken));
            met
        };
        assert!(caught("set: lost", "set: lost"));
        assert!(!caught("set: lost", "set: twice") && !caught("set: lost", "versioned: lost"));
        assert!(!caught("set: lost", "set: lost and found"));
        assert!(caught("set", "set: twice") && !caught("set", "settings: twice"));
        for limping in ["replicas: nodes at another index after healing", "harness: nodes that did not serve again"] {
            assert!(!caught(checker_of(limping), limping), "that says nothing of the bug");
            assert!(caught(limping, limping), "named it counts");
        }
        assert!(!caught("harness", "harness: kills after which no write was acknowledged"));
    }

    #[test]
    fn planted_bugs_name_rows_that_there_are() {
        let checkers = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/checker");
        for scenario in Scenario::of(Profile::Planted).expect("reads") {
            let Wanted::Caught { by, .. } = &scenario.wanted else { panic!("{} plants nothing", scenario.name) };
            for by in by {
                let (checker, row) = by.split_once(": ").unwrap_or_else(|| panic!("{by} names no row"));
                let source = std::fs::read_to_string(checkers.join(format!("{checker}.rs"))).expect("a checker");
                assert!(source.contains(&format!("\"{row}\"")), "{}: no row {row:?} in {checker}", scenario.name);
            }
        }
    }
}
