//! Checker D for lists, in the way of Elle: a list shows the order of all writes before it, so that what depended on what
//! need not be searched for.
//!
//! - Each acknowledged element is in its list, none is there that nobody added, none twice, and every list that was seen
//!   is the beginning of the longest one.
//! - *Cycles:* a write depends on the one whose element precedes its own, a read on the write of the last element it saw,
//!   and the write of the next element on that read; whatever began after something had ended depends on it, too. If
//!   operations depend on each other in a circle, no order of them explains what was seen (Tarjan's components).

use std::collections::{BTreeMap, HashMap};

use crate::checker::Report;
use crate::checker::paired::Calls;
use crate::history::Stage;
use crate::history::calls::Level;

/// Operations of a cycle that are shown.
const SHOWN_MAX: usize = 8;

/// One write or read, as a node of the graph.
struct Node {
    name: String,
    began_ns: u64,
    /// `None` = its end says nothing about time.
    ended_ns: Option<u64>,
    /// It answers what was true when it was asked.
    in_time: bool,
}

/// A list as somebody saw it, or left it.
struct Sight<'a> {
    node: usize,
    user: &'a str,
    key: &'a str,
    elements: Vec<&'a str>,
}

#[derive(Default)]
struct Graph<'a> {
    nodes: Vec<Node>,
    sights: Vec<Sight<'a>>,
    /// Who added which element: its node, and whether it was acknowledged or refused.
    owners: HashMap<(&'a str, &'a str, &'a str), (usize, Fate)>,
    edges: Vec<Vec<usize>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    Acknowledged,
    Refused,
    Unknown,
}

/// Judges the lists of those users.
pub fn check(calls: &Calls<'_>, is_list: impl Fn(&str) -> bool) -> Report {
    let mut report = Report::new("append");
    let mut graph = Graph::default();
    graph.writes(calls, &is_list);
    graph.reads(calls, &is_list);
    let longest = graph.longest();
    let acknowledged = graph.owners.values().filter(|(_, fate)| *fate == Fate::Acknowledged).count();
    report.at_least("acknowledged elements", acknowledged, 1);
    let (mut forked, mut twice, mut phantoms, mut refused) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for sight in &graph.sights {
        let list = &longest[&(sight.user, sight.key)];
        if !list.starts_with(&sight.elements) {
            forked.push(format!("{}: {}/{} {:?}", graph.nodes[sight.node].name, sight.user, sight.key, sight.elements));
        }
    }
    for ((user, key), list) in &longest {
        let mut seen = std::collections::BTreeSet::new();
        for element in list {
            if !seen.insert(element) {
                twice.push(format!("{user}/{key}: {element}"));
            }
            match graph.owners.get(&(*user, *key, *element)) {
                None => phantoms.push(format!("{user}/{key}: {element}")),
                Some((_, Fate::Refused)) => refused.push(format!("{user}/{key}: {element}")),
                Some(_) => {}
            }
        }
    }
    let lost = graph.owners.iter().filter(|(_, (_, fate))| *fate == Fate::Acknowledged);
    let lost =
        lost.filter(|((user, key, element), _)| longest.get(&(*user, *key)).is_none_or(|list| !list.contains(element)));
    let mut lost: Vec<String> = lost.map(|((user, key, element), _)| format!("{user}/{key}: {element}")).collect();
    lost.sort();
    report.never("acknowledged elements that are not there", lost);
    report.never("elements that nobody added", phantoms);
    report.never("elements whose write was refused", refused);
    report.never("elements twice", twice);
    report.never("lists that are not the beginning of the longest", forked);
    graph.depend(&longest);
    let cycles = graph.cycles();
    report.never("operations that depend on each other in a circle", cycles);
    report
}

type Lists<'a> = BTreeMap<(&'a str, &'a str), Vec<&'a str>>;

impl<'a> Graph<'a> {
    fn writes(&mut self, calls: &Calls<'a>, is_list: &impl Fn(&str) -> bool) {
        let mut requests: HashMap<&str, usize> = HashMap::new();
        for call in calls.batches.iter().filter(|call| is_list(&call.what.user)) {
            let batch = call.what;
            let node = *requests.entry(&batch.request_id).or_insert_with(|| {
                let name = format!(
                    "{:?} adds {:?}",
                    call.process,
                    batch
                        .changes
                        .iter()
                        .map(|one| {
                            let element = one.put.as_deref().map_or("", last);
                            format!("{}/{} {element}", batch.user, one.key)
                        })
                        .collect::<Vec<_>>()
                );
                self.nodes.push(Node { name, began_ns: call.began_ns, ended_ns: None, in_time: true });
                self.nodes.len() - 1
            });
            let fate = match call.stage {
                Stage::Ok => Fate::Acknowledged,
                Stage::Fail => Fate::Refused,
                Stage::Info | Stage::Invoke => Fate::Unknown,
            };
            if fate == Fate::Acknowledged {
                let ended_ns = self.nodes[node].ended_ns.unwrap_or(u64::MAX).min(call.ended_ns.unwrap_or(u64::MAX));
                self.nodes[node].ended_ns = Some(ended_ns);
            }
            for change in &batch.changes {
                let Some(list) = &change.put else { continue };
                let elements: Vec<&str> = list.split(' ').collect();
                let Some(element) = elements.last().copied() else { continue };
                let owner = self.owners.entry((&batch.user, &change.key, element)).or_insert((node, fate));
                // One attempt that may have worked is enough.
                owner.1 = match (owner.1, fate) {
                    (Fate::Acknowledged, _) | (_, Fate::Acknowledged) => Fate::Acknowledged,
                    (Fate::Unknown, _) | (_, Fate::Unknown) => Fate::Unknown,
                    (Fate::Refused, Fate::Refused) => Fate::Refused,
                };
                if fate == Fate::Acknowledged {
                    self.sights.push(Sight { node, user: &batch.user, key: &change.key, elements });
                }
            }
        }
    }

    fn reads(&mut self, calls: &Calls<'a>, is_list: &impl Fn(&str) -> bool) {
        for call in calls.reads.iter().filter(|call| is_list(&call.what.user)) {
            let Some(got) = &call.what.got else { continue };
            let node = self.nodes.len();
            let in_time = call.what.level == Level::Linearizable;
            let name = format!("{} reads {} at {}", call.who(), call.what.user, got.at.index);
            self.nodes.push(Node { name, began_ns: call.began_ns, ended_ns: call.ended_ns, in_time });
            for key in &call.what.keys {
                let seen = got.records.iter().find(|seen| seen.key == *key).and_then(|seen| seen.payload.as_deref());
                let elements = seen.map(|list| list.split(' ').collect()).unwrap_or_default();
                self.sights.push(Sight { node, user: &call.what.user, key, elements });
            }
        }
    }

    /// The longest list that anybody saw, for each key.
    fn longest(&self) -> Lists<'a> {
        let mut longest = Lists::new();
        for sight in &self.sights {
            let list = longest.entry((sight.user, sight.key)).or_default();
            if sight.elements.len() > list.len() {
                list.clone_from(&sight.elements);
            }
        }
        longest
    }

    fn depend(&mut self, longest: &Lists<'a>) {
        self.edges = vec![Vec::new(); self.nodes.len()];
        let mut edges = Vec::new();
        let owner = |user, key, element| self.owners.get(&(user, key, element)).map(|(node, _)| *node);
        for ((user, key), list) in longest {
            for pair in list.windows(2) {
                if let (Some(one), Some(next)) = (owner(*user, *key, pair[0]), owner(*user, *key, pair[1])) {
                    edges.push((one, next));
                }
            }
        }
        for sight in &self.sights {
            let (user, key) = (sight.user, sight.key);
            let list = &longest[&(user, key)];
            let mine = sight.elements.last().and_then(|element| owner(user, key, *element));
            edges.extend(mine.map(|write| (write, sight.node)));
            let next = list.get(sight.elements.len()).and_then(|element| owner(user, key, *element));
            edges.extend(next.map(|next| (sight.node, next)));
        }
        for (from, to) in edges {
            if from != to {
                self.edges[from].push(to);
            }
        }
        self.depend_on_time();
    }

    /// Moments stand between operations: what ended points to the moment of its end, each moment to the next, and the
    /// last one before a beginning to what begins.
    fn depend_on_time(&mut self) {
        let real = self.nodes.len();
        let mut ends: Vec<(u64, usize)> = Vec::new();
        for (place, node) in self.nodes.iter().enumerate() {
            ends.extend(node.ended_ns.map(|ended_ns| (ended_ns, place)));
        }
        ends.sort_unstable();
        for (moment, (_, node)) in ends.iter().enumerate() {
            self.edges.push(if moment + 1 < ends.len() { vec![real + moment + 1] } else { Vec::new() });
            self.edges[*node].push(real + moment);
        }
        for (place, node) in self.nodes.iter().enumerate().filter(|(_, node)| node.in_time) {
            let before = ends.partition_point(|(ended_ns, _)| *ended_ns < node.began_ns);
            if let Some(moment) = before.checked_sub(1) {
                self.edges[real + moment].push(place);
            }
        }
    }

    fn cycles(&self) -> Vec<String> {
        let shown = |component: Vec<usize>| {
            let mut real: Vec<usize> = component.into_iter().filter(|node| *node < self.nodes.len()).collect();
            real.sort_unstable();
            let names = real.iter().take(SHOWN_MAX).map(|node| self.nodes[*node].name.as_str());
            format!("{} operations: {}", real.len(), names.collect::<Vec<_>>().join("; "))
        };
        components(&self.edges).into_iter().map(shown).collect()
    }
}

fn last(list: &str) -> &str {
    list.rsplit(' ').next().unwrap_or(list)
}

/// Strongly connected components of more than one node (Tarjan 1972), without recursion: a history is deeper than a stack.
fn components(edges: &[Vec<usize>]) -> Vec<Vec<usize>> {
    const NEW: usize = usize::MAX;
    let (mut number, mut low) = (vec![NEW; edges.len()], vec![NEW; edges.len()]);
    let mut on_stack = vec![false; edges.len()];
    let (mut stack, mut found, mut count) = (Vec::new(), Vec::new(), 0);
    for root in 0..edges.len() {
        if number[root] != NEW {
            continue;
        }
        let mut path = vec![(root, 0)];
        while let Some((node, edge)) = path.last_mut() {
            let node = *node;
            if *edge == 0 {
                (number[node], low[node]) = (count, count);
                count += 1;
                stack.push(node);
                on_stack[node] = true;
            }
            if let Some(next) = edges[node].get(*edge).copied() {
                *edge += 1;
                if number[next] == NEW {
                    path.push((next, 0));
                } else if on_stack[next] {
                    low[node] = low[node].min(number[next]);
                }
                continue;
            }
            path.pop();
            if let Some((parent, _)) = path.last() {
                low[*parent] = low[*parent].min(low[node]);
            }
            if low[node] == number[node] {
                let mut component = Vec::new();
                while let Some(member) = stack.pop() {
                    on_stack[member] = false;
                    component.push(member);
                    if member == node {
                        break;
                    }
                }
                if component.len() > 1 {
                    found.push(component);
                }
            }
        }
    }
    found
}

#[cfg(test)]
mod tests;
