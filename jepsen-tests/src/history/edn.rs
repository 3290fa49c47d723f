//! A history in Clojure's notation (EDN), in the shape of Jepsen's operations, so that others can put Knossos or Elle on
//! it. Batches and reads are transactions of micro-operations, as Elle has them: `[:w k v]` and `[:r k v]` for registers,
//! `[:append k e]` and `[:r k [e …]]` for lists; `k` is `"user/collection/id"`.

use std::collections::{BTreeSet, HashSet};
use std::fmt::Write as _;
use std::fs::File;
use std::io::{BufWriter, Write as _};
use std::path::Path;

use anyhow::Context;

use crate::history::calls::{Batch, Page, Read};
use crate::history::{Action, Named, Op, Process, Stage};

/// Writes a history.
///
/// # Errors
/// When the file cannot be written.
pub fn write(history: &[Op], file: &Path) -> anyhow::Result<()> {
    let write = || -> std::io::Result<()> {
        let mut out = BufWriter::new(File::create(file)?);
        let mut requests = Requests::default();
        for (index, op) in history.iter().enumerate() {
            writeln!(out, "{}", line(index, op, requests.is_again(op)))?;
        }
        out.flush()
    };
    write().with_context(|| format!("write {}", file.display()))
}

/// Requests up to some place of a history.
#[derive(Default)]
struct Requests<'a> {
    /// By their ids.
    begun: HashSet<&'a str>,
    /// Clients at a request that was sent before.
    again: BTreeSet<Process>,
}

impl<'a> Requests<'a> {
    /// This belongs to a request that was sent before. It takes effect at most once, under its first call, which nobody
    /// knows the end of until then; to those who read a history it does nothing that they must look for.
    fn is_again(&mut self, op: &'a Op) -> bool {
        let Action::Batch(batch) = &op.action else { return false };
        if op.stage != Stage::Invoke {
            return self.again.remove(&op.process);
        }
        let is_again = !self.begun.insert(&batch.request_id);
        if is_again {
            self.again.insert(op.process);
        }
        is_again
    }
}

fn line(index: usize, op: &Op, is_again: bool) -> String {
    let process = match op.process {
        // Told, and not asked for: clients' calls have a beginning.
        Process::Client(_) if matches!(op.action, Action::Hint(_) | Action::Follow(_)) => ":watch".to_owned(),
        Process::Client(number) => number.to_string(),
        Process::Named(Named::Nemesis) => ":nemesis".to_owned(),
        Process::Named(Named::Reader) => ":reader".to_owned(),
        Process::Named(Named::Observer) => ":observer".to_owned(),
        Process::Named(Named::Restorer) => ":restorer".to_owned(),
    };
    let stage = match op.stage {
        Stage::Invoke => "invoke",
        Stage::Ok => "ok",
        Stage::Fail => "fail",
        Stage::Info => "info",
    };
    let (f, value) = match &op.action {
        Action::Batch(batch) if is_again => ("again", text(&batch.request_id)),
        action => function(action, op.stage),
    };
    let time = op.time_ns;
    let mut line =
        format!("{{:process {process}, :type :{stage}, :f :{f}, :value {value}, :time {time}, :index {index}");
    if let Some(error) = &op.error {
        let _ = write!(line, ", :error [:{} {}]", keyword(&error.reason), text(&error.message));
    }
    line.push('}');
    line
}

fn function(action: &Action, stage: Stage) -> (&'static str, String) {
    match action {
        Action::Add(write)
        | Action::Same(write)
        | Action::Bump(write)
        | Action::Over(write)
        | Action::Resend(write) => {
            let f = match action {
                Action::Add(_) => "add",
                Action::Same(_) => "same",
                Action::Bump(_) => "bump",
                Action::Over(_) => "over",
                _ => "resend",
            };
            (f, format!("[{} {}]", text(&format!("{}/{}", write.user, write.key)), text(&write.payload)))
        }
        Action::Batch(batch) => ("txn", transaction(batch)),
        Action::Read(read) => ("txn", reads(read, stage)),
        Action::Lease(lease) => {
            let key = text(&format!("{}/{}", lease.user, lease.key));
            ("lease", format!("[{key} {} {}]", text(&lease.content), lease.ttl_seconds))
        }
        Action::Held(held) => {
            let found = held.found.as_deref().map_or("nil".to_owned(), text);
            ("held", format!("[{} {found}]", text(&format!("{}/{}", held.user, held.key))))
        }
        Action::Page(page) => ("page", page_of(page)),
        Action::Follow(follow) => ("follow", text(&follow.user)),
        Action::Hint(hint) => ("hint", format!("{{:user {}, :head {}}}", text(&hint.user), hint.head)),
        Action::Feed(feed) => {
            let found = feed.records.iter().map(|found| text(&format!("{}/{}", feed.user, found.key)));
            ("read", format!("#{{{}}}", found.collect::<Vec<_>>().join(" ")))
        }
        Action::Kill(kill) => ("kill", nodes(kill.targets.iter().map(|target| target.node))),
        Action::Restart(restart) => ("start", nodes([restart.node])),
        Action::Recovered(recovered) => ("recovered", recovered.writes.to_string()),
        Action::Fault(note) => ("fault", format!("[:{} {}]", note.fault, nodes(note.nodes.iter().copied()))),
        Action::Heal(note) => ("heal", format!("[:{} {}]", note.fault, nodes(note.nodes.iter().copied()))),
        Action::NodeFeed(own) => ("node-read", format!("[{} {}]", own.node, own.records)),
        Action::Replica(replica) => ("digest", format!("[{} {}]", replica.node, replica.digest_index)),
        Action::Restored(restored) => {
            ("restore", format!("[{} {}]", restored.round, restored.at.map_or(0, |at| at.index)))
        }
        Action::Term(seen) => ("term", format!("[{} {}]", seen.node, seen.term)),
    }
}

fn transaction(batch: &Batch) -> String {
    let micro = batch.changes.iter().map(|change| {
        let key = text(&format!("{}/{}", batch.user, change.key));
        match &change.put {
            None => format!("[:w {key} nil]"),
            Some(content) if is_list(&batch.user) => {
                format!("[:append {key} {}]", text(content.rsplit(' ').next().unwrap_or(content)))
            }
            Some(content) => format!("[:w {key} {}]", text(content)),
        }
    });
    format!("[{}]", micro.collect::<Vec<_>>().join(" "))
}

fn reads(read: &Read, stage: Stage) -> String {
    let micro = read.keys.iter().map(|key| {
        let name = text(&format!("{}/{key}", read.user));
        let seen = read.got.iter().flat_map(|got| &got.records).find(|seen| seen.key == *key);
        let value = match seen.and_then(|seen| seen.payload.as_ref()) {
            Some(content) if is_list(&read.user) => {
                format!("[{}]", content.split(' ').map(text).collect::<Vec<_>>().join(" "))
            }
            Some(content) => text(content),
            None if stage == Stage::Ok && is_list(&read.user) => "[]".to_owned(),
            None => "nil".to_owned(),
        };
        format!("[:r {name} {value}]")
    });
    format!("[{}]", micro.collect::<Vec<_>>().join(" "))
}

fn page_of(page: &Page) -> String {
    let Some(turned) = &page.turned else { return format!("{{:user {}}}", text(&page.user)) };
    let seen = turned.records.iter().map(|seen| {
        format!("[{} {} {}]", text(&seen.key), seen.version, seen.payload.as_deref().map_or("nil".to_owned(), text))
    });
    let seen = seen.collect::<Vec<_>>().join(" ");
    format!("{{:user {}, :records [{seen}], :more {}, :kept {}}}", text(&page.user), turned.more, turned.kept)
}

/// Users whose records are lists, as the append workload names them.
pub fn is_list(user: &str) -> bool {
    user.starts_with('l')
}

fn nodes(nodes: impl IntoIterator<Item = u64>) -> String {
    format!("[{}]", nodes.into_iter().map(|node| node.to_string()).collect::<Vec<_>>().join(" "))
}

fn keyword(reason: &str) -> String {
    if reason.is_empty() { "unreachable".to_owned() } else { reason.to_lowercase().replace('_', "-") }
}

/// EDN's strings are escaped as JSON's are, but for characters beyond printable ones.
fn text(content: &str) -> String {
    let mut quoted = String::with_capacity(content.len() + 2);
    quoted.push('"');
    for c in content.chars() {
        match c {
            '"' => quoted.push_str("\\\""),
            '\\' => quoted.push_str("\\\\"),
            '\n' => quoted.push_str("\\n"),
            '\r' => quoted.push_str("\\r"),
            '\t' => quoted.push_str("\\t"),
            c if c.is_control() => {
                let _ = write!(quoted, "\\u{:04x}", u32::from(c));
            }
            c => quoted.push(c),
        }
    }
    quoted.push('"');
    quoted
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::history::Failure;
    use crate::history::calls::{Change, Got, Level, Point, Seen};

    fn op(action: Action, stage: Stage) -> Op {
        Op { process: Process::Client(3), stage, time_ns: 8, action, reply: None, error: None }
    }

    fn batch(user: &str, put: Option<&str>) -> Action {
        let change = Change { key: "notes/k".into(), put: put.map(str::to_owned), guard: None };
        let request_id = "r".into();
        Action::Batch(Batch { user: user.into(), request_id, changes: vec![change], done: None, refused: None })
    }

    #[test]
    fn operations_have_jepsens_shape() {
        let mut write = op(batch("r0-0", Some("a \"b\"\n")), Stage::Info);
        write.error = Some(Failure { reason: "OUTCOME_UNKNOWN".into(), message: "?".into() });
        assert_eq!(
            line(5, &write, false),
            r#"{:process 3, :type :info, :f :txn, :value [[:w "r0-0/notes/k" "a \"b\"\n"]], :time 8, :index 5, :error [:outcome-unknown "?"]}"#
        );
        let append = op(batch("l0-0", Some("1.1 2.1")), Stage::Invoke);
        assert!(
            line(0, &append, false).contains(r#":value [[:append "l0-0/notes/k" "2.1"]]"#),
            "{}",
            line(0, &append, false)
        );
        assert!(line(0, &op(batch("r", None), Stage::Ok), false).contains(r#"[[:w "r/notes/k" nil]]"#));
    }

    #[test]
    fn a_request_that_is_sent_again_is_no_second_transaction() {
        let mut requests = Requests::default();
        let first = op(batch("l0-0", Some("1.1")), Stage::Invoke);
        let other = Op { process: Process::Client(4), ..first.clone() };
        let (open, done) = (Op { stage: Stage::Info, ..first.clone() }, Op { stage: Stage::Ok, ..first.clone() });
        let again = [&first, &open, &first, &done, &other].map(|op| requests.is_again(op));
        assert_eq!(again, [false, false, true, true, true]);
        let shown = line(2, &done, true);
        assert!(shown.contains(r#":f :again, :value "r""#), "{shown}");
    }

    #[test]
    fn reads_show_lists_and_what_is_not_there() {
        let seen = Seen { key: "notes/k".into(), version: 1, payload: Some("1.1 2.1".into()) };
        let at = Point { incarnation: 1, group: 0, index: 9 };
        let got = Some(Got { at, node: 1, staleness_ms: None, records: vec![seen] });
        let keys = vec!["notes/k".into(), "notes/m".into()];
        let read = |user: &str| {
            Action::Read(Read {
                user: user.into(),
                keys: Vec::clone(&keys),
                level: Level::Linearizable,
                got: got.clone(),
            })
        };
        let lists = line(0, &op(read("l0-0"), Stage::Ok), false);
        assert!(lists.contains(r#"[[:r "l0-0/notes/k" ["1.1" "2.1"]] [:r "l0-0/notes/m" []]]"#), "{lists}");
        let registers = line(0, &op(read("r0-0"), Stage::Ok), false);
        assert!(registers.contains(r#"[[:r "r0-0/notes/k" "1.1 2.1"] [:r "r0-0/notes/m" nil]]"#), "{registers}");
    }
}
