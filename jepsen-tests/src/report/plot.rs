//! The two plots, as SVG that needs nothing else.

use std::collections::BTreeSet;
use std::fmt::Write as _;

use super::escaped;
use super::spans::{Band, Run};
use crate::history::Stage;

const WIDTH: f64 = 1000.0;
const HEIGHT: f64 = 420.0;
const LEFT: f64 = 70.0;
const RIGHT: f64 = 20.0;
const TOP: f64 = 62.0;
const BOTTOM: f64 = 46.0;
/// Colours that are told apart by people who see fewer (Okabe and Ito, *Color Universal Design*).
const KINDS: [(Stage, &str, &str); 3] =
    [(Stage::Ok, "ok", "#0072b2"), (Stage::Info, "unknown", "#e69f00"), (Stage::Fail, "failed", "#d55e00")];
const STYLE: &str = "text{font:12px system-ui,sans-serif;fill:#222}.a{stroke:#999;stroke-width:1}.g{stroke:#e4e4e4}\
.b{fill:#b22;fill-opacity:.10}.bl{font-size:10px;fill:#922}.t{font-size:15px;font-weight:600}.m{fill:#666}";

/// Latency of each operation over the time at which it began; both in the scale that shows most.
pub fn latency(title: &str, run: &Run<'_>) -> String {
    let spans = || run.spans.iter().filter_map(|span| Some((span, span.end_ns?.saturating_sub(span.begin_ns).max(1))));
    let slowest = spans().map(|(_, ns)| ns as f64 / 1e6).fold(10.0, f64::max);
    let fastest = spans().map(|(_, ns)| ns as f64 / 1e6).fold(1.0, f64::min);
    let (low, high) = (fastest.log10().floor(), slowest.log10().ceil());
    let y = |ms: f64| TOP + plot_height() * (1.0 - (ms.log10() - low) / (high - low));
    let mut svg = frame(title, "latency of each operation, by the time at which it began", run);
    for decade in low as i32..=high as i32 {
        let ms = 10f64.powi(decade);
        let text = if ms >= 1000.0 { format!("{} s", ms / 1000.0) } else { format!("{ms} ms") };
        grid_line(&mut svg, y(ms), &text);
    }
    for (at, (kind, name, colour)) in KINDS.into_iter().enumerate() {
        // One dot for all that would lie upon each other.
        let mut dots = BTreeSet::new();
        let mut count = 0;
        for (span, ns) in spans().filter(|(span, _)| span.stage == kind) {
            count += 1;
            dots.insert((x(run, span.begin_ns).round() as i64, y(ns as f64 / 1e6).round() as i64));
        }
        let _ =
            write!(svg, "<path fill=\"none\" stroke=\"{colour}\" stroke-width=\"2.4\" stroke-linecap=\"round\" d=\"");
        for (x, y) in dots {
            let _ = write!(svg, "M{x} {y}h0");
        }
        svg.push_str("\"/>\n");
        legend(&mut svg, at, colour, &format!("{name} ({count})"));
    }
    let open = run.spans.iter().filter(|span| span.end_ns.is_none()).count();
    if open > 0 {
        note(&mut svg, &format!("{open} never ended and are not drawn"));
    }
    svg + "</svg>\n"
}

/// Operations that ended in each interval, a second.
pub fn rate(title: &str, run: &Run<'_>) -> String {
    let seconds = run.end_ns as f64 / 1e9;
    // At most two hundred steps, of whole tenths of a second.
    let step = (seconds / 200.0 * 10.0).ceil().max(2.0) / 10.0;
    let steps = (seconds / step).floor() as usize + 1;
    let mut counts = [vec![0u64; steps], vec![0u64; steps], vec![0u64; steps]];
    for span in &run.spans {
        let Some(kind) = KINDS.iter().position(|(stage, ..)| *stage == span.stage) else { continue };
        let end = span.end_ns.unwrap_or(run.end_ns);
        let at = ((end as f64 / 1e9 / step) as usize).min(steps - 1);
        counts[kind][at] += 1;
    }
    let most = counts.iter().flatten().max().copied().unwrap_or(0) as f64 / step;
    let top = nice(most.max(1.0));
    let y = |rate: f64| TOP + plot_height() * (1.0 - rate / top);
    let mut svg = frame(title, &format!("operations that ended, a second, in steps of {step:.1} s"), run);
    for part in 0..=4 {
        let rate = top * f64::from(part) / 4.0;
        grid_line(&mut svg, y(rate), &format!("{rate}"));
    }
    for (at, (_, name, colour)) in KINDS.into_iter().enumerate() {
        let _ = write!(svg, "<polyline fill=\"none\" stroke=\"{colour}\" stroke-width=\"1.6\" points=\"");
        for (place, count) in counts[at].iter().enumerate() {
            let ns = ((place as f64 + 0.5) * step * 1e9) as u64;
            let _ = write!(svg, "{:.1},{:.1} ", x(run, ns.min(run.end_ns)), y(*count as f64 / step));
        }
        svg.push_str("\"/>\n");
        legend(&mut svg, at, colour, name);
    }
    svg + "</svg>\n"
}

fn plot_height() -> f64 {
    HEIGHT - TOP - BOTTOM
}

fn x(run: &Run<'_>, ns: u64) -> f64 {
    LEFT + (WIDTH - LEFT - RIGHT) * ns as f64 / run.end_ns.max(1) as f64
}

/// The next of 1, 2, 4, 5 × 10ⁿ (four grid lines each) that is not smaller.
fn nice(most: f64) -> f64 {
    let unit = 10f64.powf(most.log10().floor());
    [1.0, 2.0, 4.0, 5.0, 10.0].iter().map(|step| step * unit).find(|top| *top >= most).unwrap_or(most)
}

fn frame(title: &str, what: &str, run: &Run<'_>) -> String {
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" width=\"{WIDTH}\" role=\"img\">\n\
         <title>{0}: {what}</title><style>{STYLE}</style>\n<rect width=\"100%\" height=\"100%\" fill=\"#fff\"/>\n\
         <text class=\"t\" x=\"{LEFT}\" y=\"22\">{0}</text><text class=\"m\" x=\"{LEFT}\" y=\"40\">{what}</text>\n",
        escaped(title)
    );
    bands(&mut svg, run);
    let (bottom, end) = (HEIGHT - BOTTOM, WIDTH - RIGHT);
    let seconds = run.end_ns as f64 / 1e9;
    let step = nice((seconds / 10.0).max(0.1));
    let mut at = 0.0;
    while at <= seconds {
        let place = x(run, (at * 1e9) as u64);
        let _ = writeln!(
            svg,
            "<line class=\"a\" x1=\"{place:.1}\" x2=\"{place:.1}\" y1=\"{bottom}\" y2=\"{}\"/>\
             <text text-anchor=\"middle\" x=\"{place:.1}\" y=\"{}\">{} s</text>",
            bottom + 4.0,
            bottom + 18.0,
            (at * 10.0).round() / 10.0
        );
        at += step;
    }
    let _ = writeln!(svg, "<line class=\"a\" x1=\"{LEFT}\" x2=\"{end}\" y1=\"{bottom}\" y2=\"{bottom}\"/>");
    svg
}

/// Faults behind the plot; labels in the first row that is free there.
fn bands(svg: &mut String, run: &Run<'_>) {
    let mut rows = [0.0f64; 6];
    for Band { label, begin_ns, end_ns } in &run.bands {
        let (from, to) = (x(run, *begin_ns), x(run, *end_ns));
        let _ = write!(
            svg,
            "<rect class=\"b\" x=\"{from:.1}\" y=\"{TOP}\" width=\"{:.1}\" height=\"{}\"><title>{} {:.2}–{:.2} s</title></rect>",
            (to - from).max(1.0),
            plot_height(),
            escaped(label),
            *begin_ns as f64 / 1e9,
            *end_ns as f64 / 1e9
        );
        let length = label.chars().count() as f64 * 5.6 + 6.0;
        // Near the right edge a label goes before its band's beginning.
        let at = from.min(WIDTH - RIGHT - length);
        if let Some(row) = rows.iter().position(|used| *used <= at) {
            rows[row] = at + length;
            let y = TOP + 11.0 + 11.0 * row as f64;
            let _ = writeln!(svg, "<text class=\"bl\" x=\"{:.1}\" y=\"{y}\">{}</text>", at + 2.0, escaped(label));
        }
    }
}

fn grid_line(svg: &mut String, y: f64, text: &str) {
    let end = WIDTH - RIGHT;
    let _ = writeln!(
        svg,
        "<line class=\"g\" x1=\"{LEFT}\" x2=\"{end}\" y1=\"{y:.1}\" y2=\"{y:.1}\"/>\
         <text text-anchor=\"end\" x=\"{}\" y=\"{:.1}\">{text}</text>",
        LEFT - 6.0,
        y + 4.0
    );
}

fn legend(svg: &mut String, place: usize, colour: &str, text: &str) {
    let x = WIDTH - RIGHT - 360.0 + 130.0 * place as f64;
    let _ = writeln!(
        svg,
        "<circle cx=\"{x}\" cy=\"18\" r=\"4\" fill=\"{colour}\"/><text x=\"{}\" y=\"22\">{text}</text>",
        x + 9.0
    );
}

fn note(svg: &mut String, text: &str) {
    let (x, y) = (WIDTH - RIGHT, HEIGHT - 8.0);
    let _ = writeln!(svg, "<text class=\"m\" text-anchor=\"end\" x=\"{x}\" y=\"{y}\">{text}</text>");
}
