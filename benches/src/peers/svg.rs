//! A drawing of what was measured: bars by cell and peer, made of nothing but rectangles and words.

use std::fmt::Write as _;

use crate::figures::Outcome;
use crate::peer::Who;

const WIDTH: f64 = 960.0;
const MARGIN: f64 = 24.0;
/// Room for names to the left of bars.
const LABELS: f64 = 190.0;
/// Room for values to the right of the longest bar.
const VALUES: f64 = 110.0;
const BAR: f64 = 16.0;
const GAP: f64 = 12.0;
const FONT: &str = "font-family=\"system-ui, 'DejaVu Sans', sans-serif\"";

/// What is drawn of each cell: figure, head, unit.
const PANELS: &[(&str, &str, &str)] = &[
    ("ops_per_s", "Operations per second: more is better", ""),
    ("server_us", "Processor time of all three servers for an operation: less is better", " µs"),
    ("p99_ms", "99 of 100 calls were answered within: less is better", " ms"),
    ("silence_ms", "Longest time without an acknowledged write: less is better", " ms"),
];

fn color(who: Who) -> &'static str {
    match who {
        Who::Holdfast => "#1f6feb",
        Who::Etcd => "#8c959f",
        Who::Postgres => "#c9a26b",
    }
}

/// What has a meaning in XML is written as its name.
fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

/// Large numbers in groups, small ones with digits behind the point.
fn readable(value: f64) -> String {
    if value < 10.0 {
        return format!("{value:.2}");
    }
    let digits = format!("{value:.0}");
    let groups = digits.as_bytes().rchunks(3).rev().map(|group| String::from_utf8_lossy(group).into_owned());
    groups.collect::<Vec<_>>().join(",")
}

struct Drawing {
    body: String,
    y: f64,
}

impl Drawing {
    fn text(&mut self, x: f64, (size, weight, anchor): (u32, u32, &str), text: &str) {
        // Its middle beside that of a bar.
        let (y, text) = (self.y - 2.0, escaped(text));
        let _ = writeln!(
            self.body,
            r##"<text x="{x:.1}" y="{y:.1}" font-size="{size}" font-weight="{weight}" text-anchor="{anchor}" fill="#1f2328">{text}</text>"##
        );
    }

    fn bar(&mut self, width: f64, fill: &str) {
        let y = self.y - BAR + 3.0;
        let _ = writeln!(
            self.body,
            r#"<rect x="{:.1}" y="{y:.1}" width="{:.1}" height="{:.1}" rx="2" fill="{fill}"/>"#,
            MARGIN + LABELS,
            width.max(1.0),
            BAR - 2.0
        );
    }

    /// One figure of all cells that have it. Each cell has a scale of its own: cells differ by orders of magnitude, and what
    /// is compared stands beside each other.
    fn panel(&mut self, outcomes: &[&Outcome], (figure, head, unit): (&str, &str, &str)) {
        let has = |outcome: &&&Outcome| Who::ALL.iter().any(|who| outcome.median(*who, figure).is_some());
        let cells: Vec<&&Outcome> = outcomes.iter().filter(has).collect();
        if cells.is_empty() {
            return;
        }
        self.y += 34.0;
        self.text(MARGIN, (15, 600, "start"), head);
        self.y += 10.0;
        for outcome in cells {
            let values = Who::ALL.map(|who| (who, outcome.median(who, figure)));
            let most = values.iter().filter_map(|(_, value)| *value).fold(f64::MIN_POSITIVE, f64::max);
            self.y += GAP;
            for (place, (who, value)) in values.into_iter().filter_map(|(who, value)| Some((who, value?))).enumerate() {
                self.y += BAR;
                if place == 0 {
                    self.text(MARGIN + LABELS - 12.0, (13, 400, "end"), &outcome.cell);
                }
                let width = (WIDTH - 2.0 * MARGIN - LABELS - VALUES) * value / most;
                self.bar(width, color(who));
                let label = format!("{}{unit}", readable(value));
                self.text(MARGIN + LABELS + width.max(1.0) + 6.0, (12, 400, "start"), &label);
            }
        }
    }

    fn legend(&mut self) {
        self.y += 26.0;
        for (place, who) in Who::ALL.into_iter().enumerate() {
            let x = MARGIN + place as f64 * 120.0;
            let _ = writeln!(
                self.body,
                r#"<rect x="{x:.1}" y="{:.1}" width="14" height="14" rx="2" fill="{}"/>"#,
                self.y - 12.0,
                color(who)
            );
            self.text(x + 20.0, (13, 400, "start"), who.name());
        }
    }
}

/// The whole picture.
pub fn draw(outcomes: &[&Outcome]) -> String {
    let mut drawing = Drawing { body: String::new(), y: MARGIN + 12.0 };
    drawing.text(MARGIN, (20, 600, "start"), "Holdfast beside etcd and PostgreSQL");
    drawing.y += 22.0;
    let how = "Three processes each on one machine's loopback, fsync on, the same load in turn; medians over rounds. \
               Each cell has its own scale.";
    drawing.text(MARGIN, (12, 400, "start"), how);
    drawing.legend();
    PANELS.iter().for_each(|panel| drawing.panel(outcomes, *panel));
    let height = drawing.y + MARGIN;
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{WIDTH}\" height=\"{height:.0}\" \
         viewBox=\"0 0 {WIDTH} {height:.0}\" role=\"img\" {FONT}>\n<title>Holdfast beside etcd and PostgreSQL</title>\n\
         <rect width=\"100%\" height=\"100%\" fill=\"#ffffff\"/>\n{}</svg>\n",
        drawing.body
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::figures::tests::outcome;

    /// Every element is closed, in order, and every value of an attribute is quoted.
    fn is_well_formed(text: &str) -> bool {
        let (mut open, mut rest) = (Vec::new(), text);
        while let Some(at) = rest.find('<') {
            let Some(end) = rest[at..].find('>') else { return false };
            let (between, tag) = (&rest[..at], &rest[at + 1..at + end]);
            if between.contains('>') || tag.contains('<') || tag.matches('"').count() % 2 != 0 {
                return false;
            }
            let name = tag.trim_matches('/').split_whitespace().next().unwrap_or_default();
            match (tag.starts_with('/'), tag.ends_with('/')) {
                (true, _) if open.pop() != Some(name) => return false,
                (false, false) => open.push(name),
                _ => {}
            }
            rest = &rest[at + end + 1..];
        }
        open.is_empty()
    }

    #[test]
    fn a_drawing_is_well_formed_and_has_all_that_was_measured() {
        let one = outcome("put-<&\">", "ops_per_s", &[21_000.0], &[8_000.0]);
        let two = outcome("failover", "silence_ms", &[500.0, 600.0], &[]);
        let text = draw(&[&one, &two]);
        assert!(is_well_formed(&text), "{text}");
        assert!(text.contains("21,000") && text.contains("8,000") && text.contains("550 ms"), "{text}");
        assert!(text.contains("put-&lt;&amp;&quot;&gt;"));
        assert!(is_well_formed(&draw(&[])), "nothing was measured");
        assert!(!is_well_formed("<svg><g></svg>") && !is_well_formed("<svg a=\"></svg>"));
    }

    #[test]
    fn numbers_are_grouped() {
        let all = [0.5, 9.994, 12.0, 999.0, 1000.0, 1_234_567.0].map(readable);
        assert_eq!(all, ["0.50", "9.99", "12", "999", "1,000", "1,234,567"]);
    }
}
