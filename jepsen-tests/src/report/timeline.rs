//! The timeline: a column for each client, time downwards, one box an operation; it opens at the first operation that
//! the evidence names. One file that needs nothing else.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt::Write as _;

use super::escaped;
use super::spans::{Run, Span};
use crate::history::{Process, Stage};

/// More boxes than this make browsers slow; those around what broke a rule are kept.
const BOXES_MAX: usize = 4_000;
/// Pixels of a millisecond, and of the shortest box.
const PIXELS_A_MS: f64 = 1.6;
const BOX_MIN: f64 = 12.0;
const COLUMN: usize = 116;
/// A pause of all clients longer than this is drawn as this.
const PAUSE_MS_MAX: f64 = 60.0;

const STYLE: &str = "body{font:12px system-ui,sans-serif;margin:0;color:#222}header{position:sticky;top:0;z-index:9;\
background:#fff;border-bottom:1px solid #ccc;padding:10px 16px;max-height:32vh;overflow:auto}h1{font-size:16px;margin:0 0 4px}\
#p{position:relative;margin:12px 16px 60px 74px}.o{position:absolute;width:108px;overflow:hidden;border-radius:3px;\
padding:0 3px;box-sizing:border-box;white-space:nowrap;line-height:12px;font-size:10px;border-left:3px solid}\
.ok{background:#d6e9f5;border-color:#0072b2}.info{background:#fbe9c4;border-color:#e69f00}\
.fail{background:#f8d9c8;border-color:#d55e00}.bad{outline:3px solid #c00;z-index:2}.o:hover{overflow:visible;z-index:5;\
white-space:pre-wrap;width:460px;height:auto!important;word-break:break-all}.n{position:absolute;left:-60px;right:0;\
border-top:1px dashed #b22;color:#922;font-size:10px}.k{position:absolute;left:-60px;color:#888}.e{color:#a00;margin:2px 0}\
.c{position:absolute;top:-2px;font-weight:600}a{color:#0072b2}.m{color:#666}";

/// The page.
pub fn html(title: &str, run: &Run<'_>, evidence: &[String]) -> String {
    let words: Vec<(String, String)> = run.spans.iter().map(Span::words).collect();
    let named = named(run, &words, evidence);
    let first = named.keys().next().copied();
    let shown = shown(run, first);
    let mut page = format!(
        "<!doctype html><html lang=\"en\"><meta charset=\"utf-8\"><title>{0}</title><style>{STYLE}</style>\n\
         <header><h1>{0}</h1>",
        escaped(title)
    );
    for (at, line) in evidence.iter().enumerate() {
        let target = named.iter().find(|(_, piece)| **piece == at).map(|(place, _)| place);
        let link = target.map_or(String::new(), |place| format!(" <a href=\"#o{place}\">show</a>"));
        let _ = writeln!(page, "<div class=\"e\">{}. {}{link}</div>", at + 1, escaped(line));
    }
    let left_out = run.spans.len() - shown.len();
    let _ = writeln!(
        page,
        "<div class=\"m\">{} operations{}; blue: took effect, yellow: nobody knows, red: had no effect; dashed: faults. \
         Point at a box for all of it; lines are those of history.jsonl.</div></header><div id=\"p\">",
        run.spans.len(),
        if left_out > 0 {
            format!(", {left_out} of them too far from what is to be seen and left out")
        } else {
            String::new()
        }
    );
    boxes(&mut page, run, &words, &named, &shown);
    page.push_str("</div>");
    if let Some(first) = first {
        let _ = write!(
            page,
            "<script>location.hash||document.getElementById('o{first}').scrollIntoView({{block:'center',inline:'center'}})\
             </script>"
        );
    }
    page + "</html>\n"
}

/// Spans that the evidence names, by request id or as `line N`, and by which piece of it.
fn named(run: &Run<'_>, words: &[(String, String)], evidence: &[String]) -> BTreeMap<usize, usize> {
    let mut ids: HashMap<&str, usize> = HashMap::new();
    let mut lines: HashMap<usize, usize> = HashMap::new();
    for (piece, text) in evidence.iter().enumerate() {
        let parts: Vec<&str> = text.split(|c: char| !c.is_ascii_alphanumeric() && c != '-').collect();
        for (at, part) in parts.iter().enumerate() {
            ids.entry(part).or_insert(piece);
            let is_line = at > 0 && parts[at - 1] == "line";
            if let Some(line) = part.parse().ok().filter(|_| is_line) {
                lines.entry(line).or_insert(piece);
            }
        }
    }
    let piece = |place: usize| {
        let id = words[place].1.split("\"request_id\":\"").nth(1).and_then(|rest| rest.split('"').next());
        lines.get(&run.spans[place].line).or_else(|| ids.get(id?)).copied()
    };
    (0..run.spans.len()).filter_map(|place| Some((place, piece(place)?))).collect()
}

/// Places of the spans that are drawn: all, or those nearest in time to what is to be seen.
fn shown(run: &Run<'_>, around: Option<usize>) -> Vec<usize> {
    let count = run.spans.len();
    if count <= BOXES_MAX {
        return (0..count).collect();
    }
    let middle = around.unwrap_or(BOXES_MAX / 2);
    let from = middle.saturating_sub(BOXES_MAX / 2).min(count - BOXES_MAX);
    (from..from + BOXES_MAX).collect()
}

fn boxes(
    page: &mut String,
    run: &Run<'_>,
    words: &[(String, String)],
    named: &BTreeMap<usize, usize>,
    shown: &[usize],
) {
    let processes: BTreeSet<Process> = shown.iter().map(|place| run.spans[*place].process).collect();
    let columns: BTreeMap<Process, usize> =
        processes.into_iter().enumerate().map(|(n, process)| (process, n)).collect();
    for (process, column) in &columns {
        let Process::Client(number) = process else { continue };
        let _ = writeln!(page, "<div class=\"c\" style=\"left:{}px\">client {number}</div>", column * COLUMN);
    }
    let scale = Scale::of(shown.iter().map(|place| &run.spans[*place]));
    let mut bottoms = vec![0.0f64; columns.len()];
    for place in shown {
        let span = &run.spans[*place];
        let column = columns[&span.process];
        let top = scale.y(span.begin_ns).max(bottoms[column]);
        let height = span.end_ns.map_or(BOX_MIN, |end| (scale.y(end) - top).max(BOX_MIN));
        bottoms[column] = top + height + 1.0;
        let kind = match span.stage {
            Stage::Ok => "ok",
            Stage::Fail => "fail",
            Stage::Info | Stage::Invoke => "info",
        };
        let bad = if named.contains_key(place) { " bad" } else { "" };
        let (name, all) = &words[*place];
        let took =
            span.end_ns.map_or("no end".to_owned(), |end| format!("{:.1} ms", (end - span.begin_ns) as f64 / 1e6));
        let _ = writeln!(
            page,
            "<div id=\"o{place}\" class=\"o {kind}{bad}\" style=\"left:{}px;top:{top:.0}px;height:{height:.0}px\">{name} · {took}\n\
             line {}, at {:.4} s\n{}</div>",
            column * COLUMN,
            span.line,
            span.begin_ns as f64 / 1e9,
            escaped(all)
        );
    }
    let mut marked = 0.0;
    for place in shown {
        let (at, y) = (run.spans[*place].begin_ns, scale.y(run.spans[*place].begin_ns));
        if y >= marked {
            marked = y + 60.0;
            let _ = writeln!(page, "<div class=\"k\" style=\"top:{y:.0}px\">{:.3} s</div>", at as f64 / 1e9);
        }
    }
    let (from, to) = scale.range();
    for band in run.bands.iter().filter(|band| band.end_ns >= from && band.begin_ns <= to) {
        for (ns, word) in [(band.begin_ns, "begins"), (band.end_ns, "ends")] {
            if (from..=to).contains(&ns) {
                let label = escaped(&band.label);
                let _ = writeln!(page, "<div class=\"n\" style=\"top:{:.0}px\">{label} {word}</div>", scale.y(ns));
            }
        }
    }
    let _ = writeln!(page, "<div style=\"height:{:.0}px\"></div>", bottoms.iter().copied().fold(0.0, f64::max));
}

/// Time to pixels, with long pauses of all clients cut short.
struct Scale {
    /// Moments and where they lie, ascending.
    marks: Vec<(u64, f64)>,
}

impl Scale {
    fn of<'a>(spans: impl Iterator<Item = &'a Span<'a>>) -> Self {
        let mut moments: Vec<u64> = spans.flat_map(|span| [Some(span.begin_ns), span.end_ns]).flatten().collect();
        moments.sort_unstable();
        moments.dedup();
        let mut marks: Vec<(u64, f64)> = Vec::with_capacity(moments.len());
        for at in moments {
            let y = marks
                .last()
                .map_or(20.0, |(before, y)| y + ((at - before) as f64 / 1e6).min(PAUSE_MS_MAX) * PIXELS_A_MS);
            marks.push((at, y));
        }
        Self { marks }
    }

    fn range(&self) -> (u64, u64) {
        (self.marks.first().map_or(0, |mark| mark.0), self.marks.last().map_or(0, |mark| mark.0))
    }

    fn y(&self, ns: u64) -> f64 {
        match self.marks.partition_point(|mark| mark.0 <= ns) {
            0 => 20.0,
            after => self.marks[after - 1].1,
        }
    }
}
