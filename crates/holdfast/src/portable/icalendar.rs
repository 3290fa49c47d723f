//! iCalendar (RFC 5545) and vCalendar 1.0: one record per collection and UID,
//! with all components of that UID and the time zones they use.
//!
//! A record's payload is a whole VCALENDAR. When a calendar makes just one
//! record, that is the calendar's exact source bytes. Otherwise it is the
//! calendar's `BEGIN` line, its own properties, the VTIMEZONEs used, the
//! components and its `END` line, each byte for byte from the source.
//!
//! A UID may occur in several calendars of one file. Calendars with the same
//! properties are merged; of others each adds a VCALENDAR to the payload
//! (RFC 5545 §3.4 allows several), so that no property is lost.

use super::calendar_reader::{Calendar, Component};
use super::lines::Source;
use super::{CALENDAR_COLLECTION, ContentId, IdSpace, ImportItem, id_of_uid, raw_item};
use std::collections::{BTreeSet, HashMap};

pub(super) const CONTENT_TYPE: &str = "text/calendar";
pub(super) const COLLECTIONS: [&str; 4] = ["events", "todos", "notes", CALENDAR_COLLECTION];

impl Component {
    fn is_time_zone(&self) -> bool {
        self.name == "VTIMEZONE"
    }

    fn collection(&self) -> &'static str {
        match self.name.as_str() {
            "VEVENT" => "events",
            "VTODO" => "todos",
            "VJOURNAL" => "notes",
            _ => CALENDAR_COLLECTION,
        }
    }
}

/// What becomes one record: components by calendar, both by index.
struct Group {
    collection: &'static str,
    uid: Option<String>,
    parts: Vec<(usize, Vec<usize>)>,
}

/// Makes the items of all calendars of a file.
pub(super) fn import(source: Source<'_>, calendars: &[Calendar], ids: &mut IdSpace) -> Vec<ImportItem> {
    let mut items = Vec::new();
    for calendar in calendars {
        items.extend(calendar.broken_items(source));
    }
    let groups = group(calendars);
    let mut groups_of_calendar = vec![0_usize; calendars.len()];
    for (calendar, _) in groups.iter().flat_map(|group| &group.parts) {
        if let Some(count) = groups_of_calendar.get_mut(*calendar) {
            *count += 1;
        }
    }
    for group in groups {
        let mut objects: Vec<Assembly<'_>> = Vec::new();
        let mut first_component = None;
        for (index, members) in &group.parts {
            let Some(calendar) = calendars.get(*index) else {
                continue;
            };
            let alone = groups_of_calendar.get(*index) == Some(&1);
            let assembly = Assembly::new(source, calendar, members, alone);
            first_component = first_component.or(assembly.components.first().copied());
            match objects.iter_mut().find(|o| o.header == assembly.header) {
                Some(same) => same.merge(assembly),
                None => objects.push(assembly),
            }
        }
        let payload = render(&objects);
        let content = ContentId::of(&payload);
        let base = group.uid.as_deref().and_then(id_of_uid);
        let base = base.unwrap_or_else(|| ContentId::of(first_component.unwrap_or(&payload)).record_id());
        if let Some(record_id) = ids.claim(group.collection, &base, &content) {
            items.push(ImportItem {
                collection: group.collection,
                record_id,
                content_type: CONTENT_TYPE.to_owned(),
                payload,
                line: objects.first().map_or(1, |object| object.first_line),
                problem: None,
            });
        }
    }
    items
}

impl Calendar {
    fn broken_items(&self, source: Source<'_>) -> Vec<ImportItem> {
        let mut items: Vec<_> =
            self.broken.iter().map(|b| raw_item(source.slice(&b.range), b.first_line, b.problem.clone())).collect();
        if self.end.is_none() {
            let mut opening = source.slice(&self.begin).to_vec();
            for property in &self.header {
                opening.extend_from_slice(source.slice(property));
            }
            let problem = "BEGIN:VCALENDAR has no END:VCALENDAR; whole components of it are \
                           imported, this is its beginning"
                .to_owned();
            items.push(raw_item(&opening, self.first_line, problem));
        }
        items
    }
}

/// Puts every component of every calendar into a group; time zones only if no
/// component uses them, as the others go along with their users.
fn group(calendars: &[Calendar]) -> Vec<Group> {
    let mut groups: Vec<Group> = Vec::new();
    let mut by_uid: HashMap<(&'static str, &str), usize> = HashMap::new();
    for (calendar_index, calendar) in calendars.iter().enumerate() {
        let before = groups.len();
        let mut joined = false;
        let used: BTreeSet<&str> = calendar
            .components
            .iter()
            .filter(|c| !c.is_time_zone())
            .flat_map(|c| c.time_zones.iter().map(String::as_str))
            .collect();
        for (index, component) in calendar.components.iter().enumerate() {
            if component.is_time_zone() && component.time_zones.iter().any(|id| used.contains(id.as_str())) {
                continue;
            }
            let collection = component.collection();
            let uid = component.uid.as_deref().filter(|uid| !uid.is_empty() && !component.is_time_zone());
            let known = uid.and_then(|uid| by_uid.get(&(collection, uid)).copied());
            if let Some(group) = known.and_then(|at| groups.get_mut(at)) {
                joined = true;
                match group.parts.last_mut() {
                    Some((last, members)) if *last == calendar_index => members.push(index),
                    _ => group.parts.push((calendar_index, vec![index])),
                }
                continue;
            }
            if let Some(uid) = uid {
                by_uid.insert((collection, uid), groups.len());
            }
            groups.push(Group { collection, uid: uid.map(str::to_owned), parts: vec![(calendar_index, vec![index])] });
        }
        // A calendar without any component: its properties are all it has.
        if groups.len() == before && !joined && calendar.end.is_some() {
            groups.push(Group {
                collection: CALENDAR_COLLECTION,
                uid: None,
                parts: vec![(calendar_index, Vec::new())],
            });
        }
    }
    groups
}

/// One VCALENDAR of a payload, as slices of the source.
struct Assembly<'a> {
    first_line: usize,
    begin: &'a [u8],
    header: Vec<&'a [u8]>,
    time_zones: Vec<&'a [u8]>,
    components: Vec<&'a [u8]>,
    end: Option<&'a [u8]>,
    /// The calendar as it stands in the source, if nothing is to be left out.
    whole: Option<&'a [u8]>,
}

impl<'a> Assembly<'a> {
    fn new(source: Source<'a>, calendar: &Calendar, members: &[usize], alone: bool) -> Self {
        let members: Vec<&Component> = members.iter().filter_map(|at| calendar.components.get(*at)).collect();
        let time_zones = calendar
            .time_zones
            .iter()
            .filter_map(|at| calendar.components.get(*at))
            .filter(|zone| members.iter().any(|m| !m.is_time_zone() && !m.time_zones.is_disjoint(&zone.time_zones)))
            .map(|zone| source.slice(&zone.range))
            .collect();
        let whole = alone && calendar.broken.is_empty() && calendar.end.is_some();
        let first_line = members.first().map_or(calendar.first_line, |m| m.first_line);
        Self {
            first_line: if whole { calendar.first_line } else { first_line },
            begin: source.slice(&calendar.begin),
            header: calendar.header.iter().map(|r| source.slice(r)).collect(),
            time_zones,
            components: members.iter().map(|m| source.slice(&m.range)).collect(),
            end: calendar.end.as_ref().map(|r| source.slice(r)),
            whole: whole.then(|| source.slice(&calendar.range)),
        }
    }

    /// Adds what a calendar with the same properties has on top.
    fn merge(&mut self, other: Self) {
        for (own, others) in [(&mut self.time_zones, other.time_zones), (&mut self.components, other.components)] {
            for slice in others {
                if !own.contains(&slice) {
                    own.push(slice);
                    self.whole = None;
                }
            }
        }
    }
}

fn render(objects: &[Assembly<'_>]) -> Vec<u8> {
    let mut payload = Vec::new();
    let line_end = objects.first().map_or(b"\r\n".as_slice(), |object| Source::line_end_of(object.begin));
    let append = |payload: &mut Vec<u8>, slice: &[u8]| {
        if !payload.is_empty() && payload.last() != line_end.last() {
            payload.extend_from_slice(line_end);
        }
        payload.extend_from_slice(slice);
    };
    for object in objects {
        if let Some(whole) = object.whole {
            append(&mut payload, whole);
            continue;
        }
        append(&mut payload, object.begin);
        for slice in [&object.header, &object.time_zones, &object.components].into_iter().flatten() {
            append(&mut payload, slice);
        }
        match object.end {
            Some(end) => append(&mut payload, end),
            None => {
                append(&mut payload, b"END:VCALENDAR");
                payload.extend_from_slice(line_end);
            }
        }
    }
    payload
}
