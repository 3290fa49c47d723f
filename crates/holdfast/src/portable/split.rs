//! Finds the top-level objects of a file, cards and calendars, and the stray
//! text between them.
//!
//! Invariants:
//! - The objects of [`objects`] are in source order and do not overlap; every
//!   line that is not blank lies in exactly one of them.
//! - A damaged object never takes the objects after it along: a `BEGIN` that
//!   cannot belong to the open object ends that object as unterminated.

use super::lines::{Delimiter, Line, Source};
use std::ops::Range;

/// What a top-level part of a file is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ObjectKind {
    Card,
    Calendar,
    /// Lines outside every card and calendar.
    Stray,
}

/// A top-level part of a file.
#[derive(Clone, Debug)]
pub(super) struct Object {
    pub(super) kind: ObjectKind,
    pub(super) range: Range<usize>,
    pub(super) first_line: usize,
    /// False for a card or calendar whose `END` is missing.
    pub(super) terminated: bool,
}

/// Follows a card line by line and tells nested cards (AGENT of vCard 2.1)
/// from a new card after an unterminated one: only an AGENT property without
/// a value of its own may be followed by a nested `BEGIN:VCARD`.
#[derive(Default)]
pub(super) struct CardDepth {
    nested: usize,
    agent: Agent,
}

/// How the line before, if an AGENT property, begins a nested card.
#[derive(Default)]
enum Agent {
    #[default]
    None,
    /// `AGENT:`, with `BEGIN:VCARD` to come on a line of its own.
    Empty,
    /// `AGENT:BEGIN:VCARD`; the card may also be folded into the value.
    Inline,
}

#[derive(Debug, PartialEq, Eq)]
pub(super) enum CardLine {
    /// A property of the card (`nested` false) or of a card inside it.
    Inside { nested: bool },
    /// `BEGIN` or `END` of a nested card.
    NestedDelimiter,
    /// The card's own `END`.
    End,
    /// A `BEGIN` that cannot belong to this card.
    Foreign,
}

impl CardDepth {
    pub(super) fn step(&mut self, line: &Line<'_>) -> CardLine {
        if line.is_blank() {
            return self.inside();
        }
        let agent = std::mem::take(&mut self.agent);
        if matches!(agent, Agent::Inline) && !line.is_folded() {
            self.nested += 1;
        }
        let delimiter = if line.is_folded() { None } else { line.delimiter() };
        match delimiter {
            Some(Delimiter::Begin(name)) if is_object(name) => {
                if matches!(agent, Agent::Empty) && name.eq_ignore_ascii_case(b"VCARD") {
                    self.nested += 1;
                    CardLine::NestedDelimiter
                } else {
                    CardLine::Foreign
                }
            }
            Some(Delimiter::End(name)) if name.eq_ignore_ascii_case(b"VCARD") => match self.nested.checked_sub(1) {
                Some(nested) => {
                    self.nested = nested;
                    CardLine::NestedDelimiter
                }
                None => CardLine::End,
            },
            _ => {
                self.agent = match agent_value(line.text) {
                    Some(b"") => Agent::Empty,
                    Some(value) if value.eq_ignore_ascii_case(b"BEGIN:VCARD") => Agent::Inline,
                    _ => Agent::None,
                };
                self.inside()
            }
        }
    }

    fn inside(&self) -> CardLine {
        CardLine::Inside { nested: self.nested > 0 }
    }
}

fn agent_value(text: &[u8]) -> Option<&[u8]> {
    let colon = text.iter().position(|&b| b == b':')?;
    let (head, value) = text.split_at(colon);
    let name = head.split(|&b| b == b';').next()?;
    let name = name.rsplit(|&b| b == b'.').next()?.trim_ascii();
    name.eq_ignore_ascii_case(b"AGENT").then(|| value.get(1..).unwrap_or_default().trim_ascii())
}

fn is_object(name: &[u8]) -> bool {
    object_kind(name).is_some()
}

fn object_kind(name: &[u8]) -> Option<ObjectKind> {
    if name.eq_ignore_ascii_case(b"VCARD") {
        Some(ObjectKind::Card)
    } else if name.eq_ignore_ascii_case(b"VCALENDAR") {
        Some(ObjectKind::Calendar)
    } else {
        None
    }
}

/// Splits a source into its top-level objects and the stray lines between.
pub(super) fn objects(source: Source<'_>) -> Vec<Object> {
    let mut found = Vec::new();
    let mut open: Option<Object> = None;
    let mut depth = CardDepth::default();
    for line in source.all_lines() {
        let kind = open.as_ref().map(|o| o.kind);
        let delimiter = line.delimiter();
        let (begins, ends) = match (kind, delimiter) {
            (Some(ObjectKind::Card), _) => match depth.step(&line) {
                CardLine::Foreign => (true, false),
                CardLine::End => (false, true),
                CardLine::Inside { .. } | CardLine::NestedDelimiter => (false, false),
            },
            (Some(ObjectKind::Calendar), Some(_)) if line.is_folded() => (false, false),
            (_, Some(Delimiter::Begin(name))) => (is_object(name), false),
            (Some(ObjectKind::Calendar), Some(Delimiter::End(name))) => {
                (false, name.eq_ignore_ascii_case(b"VCALENDAR"))
            }
            _ => (false, false),
        };
        if begins {
            found.extend(open.take());
            depth = CardDepth::default();
            if let Some(Delimiter::Begin(name)) = delimiter {
                open = Some(Object {
                    kind: object_kind(name).unwrap_or(ObjectKind::Stray),
                    range: line.text_start()..line.range.end,
                    first_line: line.number,
                    terminated: false,
                });
            }
        } else if !line.is_blank() {
            // Blank lines at the end of an object belong to nothing.
            let current = open.get_or_insert_with(|| Object {
                kind: ObjectKind::Stray,
                range: line.range.clone(),
                first_line: line.number,
                terminated: true,
            });
            current.range.end = line.range.end;
            if ends {
                current.terminated = true;
                found.extend(open.take());
            }
        }
    }
    found.extend(open);
    found
}
