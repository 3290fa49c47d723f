//! Takes one calendar apart: its own properties, its components, and what is
//! broken in it.
//!
//! Invariant: every line of the calendar that is not blank lies in its `begin`,
//! `header`, `end`, one of `components` or one of `broken`. A broken component
//! ends where the next one begins, so it harms no other.

use super::lines::{Delimiter, Line, PlainText, Source, logical_lines};
use super::split::Object;
use super::{calcard_entry, shown};
use calcard::Entry;
use calcard::icalendar::{ICalendarComponent, ICalendarParameterName, ICalendarProperty};
use std::collections::BTreeSet;
use std::ops::Range;

/// A calendar, taken apart.
pub(super) struct Calendar {
    pub(super) range: Range<usize>,
    pub(super) first_line: usize,
    pub(super) begin: Range<usize>,
    pub(super) end: Option<Range<usize>>,
    /// The calendar's own properties.
    pub(super) header: Vec<Range<usize>>,
    pub(super) components: Vec<Component>,
    /// Which of the components are VTIMEZONEs.
    pub(super) time_zones: Vec<usize>,
    pub(super) broken: Vec<Broken>,
}

pub(super) struct Component {
    pub(super) range: Range<usize>,
    pub(super) first_line: usize,
    /// In capitals.
    pub(super) name: String,
    pub(super) uid: Option<String>,
    /// The TZID parameters inside, or what a VTIMEZONE defines.
    pub(super) time_zones: BTreeSet<String>,
}

pub(super) struct Broken {
    pub(super) range: Range<usize>,
    pub(super) first_line: usize,
    pub(super) problem: String,
}

/// Components that never lie in another one: a `BEGIN` of theirs shows that
/// the component before was cut off.
fn is_outermost(name: &[u8]) -> bool {
    ["VEVENT", "VTODO", "VJOURNAL", "VFREEBUSY", "VTIMEZONE"].iter().any(|n| name.eq_ignore_ascii_case(n.as_bytes()))
}

/// Real calendars nest three deep. The limit keeps the search for the `BEGIN`
/// of an `END` short, whatever the file.
const MAX_DEPTH: usize = 32;

/// The component being read.
struct OpenComponent {
    start: usize,
    end: usize,
    first_line: usize,
    /// Names of the open components, outermost first.
    names: Vec<String>,
    /// How many more are open, deeper than [`MAX_DEPTH`].
    too_deep: usize,
    fault: Option<String>,
}

struct Reader<'a> {
    source: Source<'a>,
    calendar: Calendar,
    open: Option<OpenComponent>,
    /// Lines outside all components since the last component.
    loose: Vec<Line<'a>>,
    /// Such lines are remains of a broken component, not calendar properties.
    after_broken: bool,
}

/// Takes a calendar apart. `object` is one that the splitter found.
pub(super) fn read(source: Source<'_>, object: &Object) -> Calendar {
    let mut lines = source.lines(object.range.clone(), object.first_line);
    let begin = lines.next().map_or(object.range.clone(), |line| line.range.clone());
    let mut reader = Reader {
        source,
        calendar: Calendar {
            range: object.range.clone(),
            first_line: object.first_line,
            begin,
            end: None,
            header: Vec::new(),
            components: Vec::new(),
            time_zones: Vec::new(),
            broken: Vec::new(),
        },
        open: None,
        loose: Vec::new(),
        after_broken: false,
    };
    for line in lines {
        reader.step(line);
    }
    reader.cut_off();
    reader.settle_loose(None);
    reader.calendar
}

impl<'a> Reader<'a> {
    fn step(&mut self, line: Line<'a>) {
        let delimiter = if line.is_folded() { None } else { line.delimiter() };
        let is_calendar_end = matches!(
            delimiter, Some(Delimiter::End(name)) if name.eq_ignore_ascii_case(b"VCALENDAR")
        );
        match delimiter {
            _ if is_calendar_end => {
                self.cut_off();
                self.settle_loose(None);
                self.calendar.end = Some(line.range);
            }
            Some(Delimiter::Begin(name)) => {
                if is_outermost(name) {
                    self.cut_off();
                }
                let name = String::from_utf8_lossy(name).to_ascii_uppercase();
                if let Some(open) = &mut self.open {
                    open.end = line.range.end;
                    if open.names.len() < MAX_DEPTH {
                        open.names.push(name);
                    } else {
                        open.too_deep += 1;
                        open.fault.get_or_insert_with(|| {
                            format!("more than {MAX_DEPTH} components inside each other on line {}", line.number)
                        });
                    }
                } else {
                    self.settle_loose(None);
                    self.after_broken = false;
                    self.open = Some(OpenComponent {
                        start: line.range.start,
                        end: line.range.end,
                        first_line: line.number,
                        names: vec![name],
                        too_deep: 0,
                        fault: None,
                    });
                }
            }
            Some(Delimiter::End(name)) => self.end_component(&line, name),
            None => match &mut self.open {
                // Blank lines count only when more of the component follows.
                Some(_) if line.is_blank() => {}
                Some(open) => open.end = line.range.end,
                None => self.loose.push(line),
            },
        }
    }

    fn end_component(&mut self, line: &Line<'_>, name: &[u8]) {
        let name = String::from_utf8_lossy(name).to_ascii_uppercase();
        let Some(open) = &mut self.open else {
            self.settle_loose(Some((line, &name)));
            return;
        };
        open.end = line.range.end;
        if let Some(less) = open.too_deep.checked_sub(1) {
            open.too_deep = less;
            return;
        }
        let line_number = line.number;
        match open.names.iter().rposition(|n| *n == name) {
            Some(at) => {
                if at + 1 < open.names.len() {
                    let inner = open.names.last().cloned().unwrap_or_default();
                    open.fault.get_or_insert(format!(
                        "END:{name} on line {line_number} comes before the END:{inner} it needs"
                    ));
                }
                open.names.truncate(at);
            }
            None => {
                open.fault.get_or_insert(format!("END:{name} on line {line_number} has no BEGIN:{name}"));
            }
        }
        if open.names.is_empty()
            && let Some(open) = self.open.take()
        {
            self.finish(open, name);
        }
    }

    /// A component has ended: check and keep it.
    fn finish(&mut self, open: OpenComponent, name: String) {
        let range = open.start..open.end;
        let checked = match open.fault {
            Some(fault) => Err(fault),
            None => self.parse(&range, open.first_line),
        };
        match checked {
            Ok(parsed) => {
                let time_zones = if name == "VTIMEZONE" {
                    self.calendar.time_zones.push(self.calendar.components.len());
                    parsed.defines
                } else {
                    parsed.uses
                };
                self.calendar.components.push(Component {
                    range,
                    first_line: open.first_line,
                    name,
                    uid: parsed.uid,
                    time_zones,
                });
            }
            Err(problem) => self.push_broken(range, open.first_line, problem),
        }
    }

    /// The open component, if any, turns out to have no end.
    fn cut_off(&mut self) {
        if let Some(open) = self.open.take() {
            let name = open.names.last().cloned().unwrap_or_default();
            let problem = open.fault.unwrap_or_else(|| format!("BEGIN:{name} has no END:{name}"));
            self.push_broken(open.start..open.end, open.first_line, problem);
        }
    }

    fn push_broken(&mut self, range: Range<usize>, first_line: usize, problem: String) {
        self.after_broken = true;
        self.calendar.broken.push(Broken { range, first_line, problem });
    }

    /// Decides what the loose lines are: properties of the calendar, or
    /// remains of something broken. `stray_end` is an `END` right after them.
    fn settle_loose(&mut self, stray_end: Option<(&Line<'_>, &str)>) {
        let loose = std::mem::take(&mut self.loose);
        let mut remains: Option<Broken> = None;
        for logical in logical_lines(loose.into_iter()) {
            let text = self.source.slice(&logical.range);
            let problem = if !logical.is_property() {
                format!("not a property (name:value) of the calendar: {}", shown(text))
            } else if self.after_broken || stray_end.is_some() && !is_calendar_property(text) {
                "properties outside every component".to_owned()
            } else {
                self.calendar.header.push(logical.range);
                continue;
            };
            let remains =
                remains.get_or_insert(Broken { range: logical.range.clone(), first_line: logical.number, problem });
            // All that follows the first misfit is as doubtful as itself.
            remains.range.end = logical.range.end;
            self.after_broken = true;
        }
        if let Some((line, name)) = stray_end {
            let remains = remains.get_or_insert(Broken {
                range: line.range.clone(),
                first_line: line.number,
                problem: String::new(),
            });
            remains.range.end = line.range.end;
            remains.problem = format!("END:{name} on line {} has no BEGIN:{name}", line.number);
            self.after_broken = true;
        }
        self.calendar.broken.extend(remains);
    }

    fn parse(&self, range: &Range<usize>, first_line: usize) -> Result<Parsed, String> {
        for logical in logical_lines(self.source.lines(range.clone(), first_line)) {
            if !logical.is_property() {
                return Err(format!(
                    "line {} of the component is not a property (name:value): {}",
                    logical.number,
                    shown(self.source.slice(&logical.range))
                ));
            }
        }
        let mut text = PlainText::default();
        text.push(b"BEGIN:VCALENDAR");
        for line in self.source.lines(range.clone(), first_line) {
            text.push_line(&line);
        }
        text.push(b"END:VCALENDAR");
        let calendar = match calcard_entry(&text.into_string()) {
            Some(Entry::ICalendar(calendar)) => calendar,
            Some(_) => return Err("the component does not parse".to_owned()),
            None => return Err("the iCalendar parser failed on this component".to_owned()),
        };
        // The first component is the VCALENDAR put around it just now.
        let components = calendar.components.get(1..).unwrap_or_default();
        let outermost = components.first().ok_or("the component does not parse")?;
        Ok(Parsed {
            uid: outermost.uid().map(|uid| uid.trim().to_owned()),
            defines: time_zone_property(outermost),
            uses: time_zone_parameters(components),
        })
    }
}

struct Parsed {
    uid: Option<String>,
    defines: BTreeSet<String>,
    uses: BTreeSet<String>,
}

fn time_zone_property(component: &ICalendarComponent) -> BTreeSet<String> {
    component
        .property(&ICalendarProperty::Tzid)
        .and_then(|entry| entry.values.first())
        .and_then(|value| value.as_text())
        .map(|id| id.trim().to_owned())
        .into_iter()
        .collect()
}

fn time_zone_parameters(components: &[ICalendarComponent]) -> BTreeSet<String> {
    components
        .iter()
        .flat_map(|component| &component.entries)
        .flat_map(|entry| &entry.params)
        .filter(|parameter| parameter.name == ICalendarParameterName::Tzid)
        .filter_map(|parameter| parameter.value.as_text())
        .map(|id| id.trim().to_owned())
        .collect()
}

/// The properties RFC 5545 §3.6 gives a calendar itself.
fn is_calendar_property(text: &[u8]) -> bool {
    [b"VERSION".as_slice(), b"PRODID", b"CALSCALE", b"METHOD", b"X-"]
        .iter()
        .any(|name| text.get(..name.len()).is_some_and(|t| t.eq_ignore_ascii_case(name)))
}
