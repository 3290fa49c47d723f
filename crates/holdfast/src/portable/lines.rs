//! Byte-level reading of vCard and iCalendar text: physical lines and logical
//! (unfolded) lines.
//!
//! calcard parses values but gives no byte offsets, and this project must give
//! every source byte back. So lines and boundaries are found here and in
//! [`super::split`], and calcard only judges what lies between them.
//!
//! Invariants:
//! - Ranges are byte offsets into the whole source, never into a part of it.
//! - A part of a source that begins and ends with a delimiter has the same
//!   lines, read alone, as within the source.

use std::ops::Range;

const BOM: &[u8] = b"\xEF\xBB\xBF";

/// A source text and the byte that ends its lines.
#[derive(Clone, Copy)]
pub(super) struct Source<'a> {
    bytes: &'a [u8],
    line_end: u8,
}

impl<'a> Source<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        // Files of the classic Mac OS end lines with a lone CR.
        let line_end = if bytes.contains(&b'\n') { b'\n' } else { b'\r' };
        Self { bytes, line_end }
    }

    pub(super) fn slice(&self, range: &Range<usize>) -> &'a [u8] {
        self.bytes.get(range.clone()).unwrap_or_default()
    }

    /// The lines of `range`, which starts on line `first_line` of the source.
    pub(super) fn lines(&self, range: Range<usize>, first_line: usize) -> Lines<'a> {
        let end = range.end.min(self.bytes.len());
        Lines { source: *self, position: range.start, end, number: first_line, checked_until: 0, packed_until: 0 }
    }

    pub(super) fn all_lines(&self) -> Lines<'a> {
        self.lines(0..self.bytes.len(), 1)
    }

    /// The line end at the end of `line`, or CRLF if it has none.
    pub(super) fn line_end_of(line: &'a [u8]) -> &'a [u8] {
        let length = line.iter().rposition(|b| !matches!(b, b'\r' | b'\n')).map_or(0, |at| at + 1);
        match line.get(length..) {
            Some(line_end) if !line_end.is_empty() => line_end,
            _ => b"\r\n",
        }
    }
}

/// Text as calcard wants it: UTF-8, lines ended by LF.
#[derive(Default)]
pub(super) struct PlainText {
    bytes: Vec<u8>,
}

impl PlainText {
    pub(super) fn push(&mut self, text: &[u8]) {
        self.bytes.extend_from_slice(text);
        self.bytes.push(b'\n');
    }

    /// Folding by bytes may cut a character in two (RFC 5545 §3.1). Its halves
    /// come together again, or no id with such a cut could be read.
    pub(super) fn push_line(&mut self, line: &Line<'_>) {
        match line.text {
            [b' ' | b'\t', rest @ ..] if matches!(rest, [0x80..=0xBF, ..]) => {
                self.bytes.pop();
                self.push(rest);
            }
            text => self.push(text),
        }
    }

    /// vCard 2.1 may use any charset: bytes that are not UTF-8 are taken for
    /// Latin-1, so that different ids stay different.
    pub(super) fn into_string(self) -> String {
        let mut text = String::with_capacity(self.bytes.len());
        for chunk in self.bytes.utf8_chunks() {
            text.push_str(chunk.valid());
            text.extend(chunk.invalid().iter().map(|&byte| char::from(byte)));
        }
        text
    }
}

/// One physical line.
#[derive(Clone, Debug)]
pub(super) struct Line<'a> {
    /// Where the line lies in the source, its line end included.
    pub(super) range: Range<usize>,
    /// 1-based line number in the source.
    pub(super) number: usize,
    /// The line without its line end (LF, CRLF, CR CR LF, …).
    pub(super) text: &'a [u8],
}

/// A `BEGIN:name` or `END:name` line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Delimiter<'a> {
    Begin(&'a [u8]),
    End(&'a [u8]),
}

impl<'a> Line<'a> {
    /// Nothing but white space; NUL and Ctrl-Z pad the end of some old files.
    pub(super) fn is_blank(&self) -> bool {
        without_bom(self.text).iter().all(|b| b.is_ascii_whitespace() || matches!(b, 0 | 0x0B | 0x1A))
    }

    /// Continues the line before it (RFC 5545 §3.1, RFC 6350 §3.2).
    pub(super) fn is_folded(&self) -> bool {
        matches!(self.text.first(), Some(b' ' | b'\t'))
    }

    /// Reads a delimiter. vCard 2.1 allows white space around the colon, and
    /// files in the wild put it at the end of the line.
    pub(super) fn delimiter(&self) -> Option<Delimiter<'a>> {
        delimiter_in(self.text)
    }

    /// Where the text proper starts, after a byte-order mark and white space.
    pub(super) fn text_start(&self) -> usize {
        let trimmed = without_bom(self.text).trim_ascii_start();
        self.range.start + (self.text.len() - trimmed.len())
    }
}

fn delimiter_in(text: &[u8]) -> Option<Delimiter<'_>> {
    let text = without_bom(text).trim_ascii();
    let colon = text.iter().position(|&b| b == b':')?;
    let (keyword, rest) = text.split_at(colon);
    let name = rest.get(1..)?.trim_ascii();
    if name.is_empty() || !name.iter().all(u8::is_ascii_graphic) {
        return None;
    }
    let keyword = keyword.trim_ascii();
    if keyword.eq_ignore_ascii_case(b"BEGIN") {
        Some(Delimiter::Begin(name))
    } else if keyword.eq_ignore_ascii_case(b"END") {
        Some(Delimiter::End(name))
    } else {
        None
    }
}

fn without_bom(text: &[u8]) -> &[u8] {
    text.strip_prefix(BOM).unwrap_or(text)
}

/// Iterator over physical lines.
pub(super) struct Lines<'a> {
    source: Source<'a>,
    position: usize,
    end: usize,
    number: usize,
    /// Up to here it is known whether lines are packed.
    checked_until: usize,
    /// Up to here lines end in a lone CR, whatever ends the others.
    packed_until: usize,
}

impl Lines<'_> {
    /// Length of the line at the start of `rest`, its line end included.
    fn line_length(&mut self, rest: &[u8]) -> usize {
        let up_to = |end: u8| rest.iter().position(|&b| b == end).map_or(rest.len(), |at| at + 1);
        if self.position < self.packed_until {
            return up_to(b'\r');
        }
        let length = up_to(self.source.line_end);
        if self.position >= self.checked_until {
            let packed = packed_length(rest.get(..length).unwrap_or_default());
            self.checked_until = self.position + length;
            self.packed_until = self.position + packed;
            if packed > 0 {
                return up_to(b'\r');
            }
        }
        length
    }
}

/// Joining a file of the classic Mac OS with others puts many of its lines into
/// one; returns where the last of them starts that a delimiter shows to be one.
/// A lone CR elsewhere is part of a value.
fn packed_length(line: &[u8]) -> usize {
    let text = line.trim_ascii_end();
    if !text.contains(&b'\r') {
        return 0;
    }
    let mut packed = 0;
    let mut start = 0;
    for piece in text.split(|&b| b == b'\r') {
        let next = start + piece.len() + 1;
        if delimiter_in(piece).is_some() {
            packed = if next < text.len() { next } else { start };
        }
        start = next;
    }
    packed
}

impl<'a> Iterator for Lines<'a> {
    type Item = Line<'a>;

    fn next(&mut self) -> Option<Line<'a>> {
        let rest = self.source.bytes.get(self.position..self.end)?;
        if rest.is_empty() {
            return None;
        }
        let number = self.number;
        let length = self.line_length(rest);
        let whole = rest.get(..length)?;
        // A part glued to the next line keeps the number of the line.
        let length = match glued_end(whole) {
            Some(at) => at,
            None => {
                self.number += 1;
                length
            }
        };
        let line = whole.get(..length)?;
        let start = self.position;
        self.position += length;
        let text_length = line.iter().rposition(|b| !matches!(b, b'\r' | b'\n')).map_or(0, |at| at + 1);
        Some(Line { range: start..self.position, number, text: line.get(..text_length)? })
    }
}

/// Joining files whose last line has no line end makes `END:VCARDBEGIN:VCARD`;
/// returns where the second half starts.
fn glued_end(line: &[u8]) -> Option<usize> {
    for end in [b"END:VCARD".as_slice(), b"END:VCALENDAR"] {
        let (head, tail) = line.split_at_checked(end.len())?;
        let tail = without_bom(tail);
        if head.eq_ignore_ascii_case(end) && tail.get(..6).is_some_and(|t| t.eq_ignore_ascii_case(b"BEGIN:")) {
            return Some(end.len());
        }
    }
    None
}

/// One logical line: a property with all its continuation lines.
#[derive(Debug)]
pub(super) struct LogicalLine {
    pub(super) range: Range<usize>,
    pub(super) number: usize,
    /// Name and parameters, unfolded, up to the colon before the value.
    head: Vec<u8>,
    /// The head ends inside a quoted parameter value.
    quoted: bool,
    has_colon: bool,
}

impl LogicalLine {
    fn start(line: &Line<'_>) -> Self {
        let mut logical =
            Self { range: line.range.clone(), number: line.number, head: Vec::new(), quoted: false, has_colon: false };
        logical.extend_head(line.text);
        logical
    }

    fn extend_head(&mut self, text: &[u8]) {
        if self.has_colon {
            return;
        }
        for &byte in text {
            match byte {
                b'"' => self.quoted = !self.quoted,
                b':' if !self.quoted => {
                    self.has_colon = true;
                    return;
                }
                _ => {}
            }
            self.head.push(byte);
        }
    }

    /// Whether this is `name[;parameters]:value`, as opposed to stray text.
    ///
    /// Some programs write names with spaces, commas or letters beyond ASCII
    /// (`X-GOOGLE TALK`), which the standards forbid and every reader takes.
    pub(super) fn is_property(&self) -> bool {
        // An unbalanced quotation mark hides the colon: still a property.
        let has_colon = self.has_colon || self.head.contains(&b':');
        let name = self.head.split(|b| matches!(b, b';' | b':')).next().unwrap_or_default();
        has_colon
            && name.first().is_some_and(|&b| b.is_ascii_alphanumeric() || b == b'_' || !b.is_ascii())
            && name.iter().all(|&b| b.is_ascii_graphic() || matches!(b, b' ' | b'\t') || !b.is_ascii())
    }

    /// Whether the name is `BEGIN` or `END`. What is no delimiter for all that,
    /// as `END:VCARD;` or `item1.END:VCARD`, has likely joined two cards.
    pub(super) fn is_spoilt_delimiter(&self) -> bool {
        let name = self.head.split(|b| matches!(b, b';' | b':')).next().unwrap_or_default();
        let name = name.rsplit(|&b| b == b'.').next().unwrap_or_default().trim_ascii();
        name.eq_ignore_ascii_case(b"BEGIN") || name.eq_ignore_ascii_case(b"END")
    }

    /// Whether a parameter (`ENCODING=x`, or the bare `x` of vCard 2.1) names
    /// one of `encodings`.
    fn has_encoding(&self, encodings: &[&[u8]]) -> bool {
        self.head.split(|&b| b == b';').skip(1).any(|parameter| {
            let value = parameter.rsplit(|&b| b == b'=').next().unwrap_or_default();
            let value = value.trim_ascii();
            encodings.iter().any(|e| value.eq_ignore_ascii_case(e))
        })
    }
}

/// Joins physical lines into logical ones: folding, and the two continuations
/// of vCard 2.1 and vCalendar 1.0, quoted-printable soft line breaks and
/// base64 lines that are not indented. Blank lines are left out.
pub(super) fn logical_lines<'a>(lines: impl Iterator<Item = Line<'a>>) -> Vec<LogicalLine> {
    let mut logical: Vec<LogicalLine> = Vec::new();
    let mut soft_break = false;
    for line in lines {
        let ends_in_equals = line.text.trim_ascii_end().ends_with(b"=");
        if line.is_blank() {
            soft_break = false;
            continue;
        }
        match logical.last_mut() {
            Some(open) if soft_break || line.is_folded() || continues_base64(open, &line) => {
                if !soft_break {
                    open.extend_head(line.text.get(1..).unwrap_or_default());
                }
                open.range.end = line.range.end;
                soft_break = ends_in_equals && open.has_encoding(&[b"QUOTED-PRINTABLE"]);
            }
            _ => {
                let open = LogicalLine::start(&line);
                soft_break = ends_in_equals && open.has_encoding(&[b"QUOTED-PRINTABLE"]);
                logical.push(open);
            }
        }
    }
    logical
}

fn continues_base64(open: &LogicalLine, line: &Line<'_>) -> bool {
    open.has_colon
        && open.has_encoding(&[b"BASE64", b"B"])
        && line.text.trim_ascii().iter().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'+' | b'/' | b'='))
}
