//! What commands print: tables for people, JSON for programs, always on stdout.

use std::io::{self, Write};

use clap::ValueEnum;
use serde::Serialize;

/// How answers are printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// For people.
    Table,
    /// One versioned JSON object.
    Json,
    /// One JSON object per line.
    Jsonl,
}

/// Prints one line of JSON.
pub fn line(value: &impl Serialize) -> io::Result<()> {
    let mut out = io::stdout().lock();
    serde_json::to_writer(&mut out, value).map_err(io::Error::from)?;
    out.write_all(b"\n")
}

/// Prints a versioned JSON object on several lines.
pub fn object(value: &impl Serialize) -> io::Result<()> {
    let mut out = io::stdout().lock();
    serde_json::to_writer_pretty(&mut out, value).map_err(io::Error::from)?;
    out.write_all(b"\n")
}

/// Prints a line of text.
pub fn text(text: impl AsRef<str>) -> io::Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_ref().as_bytes())?;
    out.write_all(b"\n")
}

/// Prints a fact as JSON, or for people as the sentence that `sentence` makes of it.
pub fn answer(format: Format, value: &impl Serialize, sentence: impl FnOnce() -> String) -> io::Result<()> {
    match format {
        Format::Table => text(sentence()),
        Format::Json => object(value),
        Format::Jsonl => line(value),
    }
}

/// A table: columns as wide as their widest cell; columns of numbers to the right.
#[derive(Debug)]
pub struct Table {
    rows: Vec<Vec<String>>,
}

impl Table {
    /// With a head.
    pub fn new(head: &[&str]) -> Self {
        Self { rows: vec![head.iter().map(|cell| (*cell).to_owned()).collect()] }
    }

    /// Adds a row; it has as many cells as the head.
    pub fn row(&mut self, cells: impl IntoIterator<Item = String>) {
        self.rows.push(cells.into_iter().map(|cell| printable(&cell)).collect());
    }

    /// No row but the head.
    pub fn is_empty(&self) -> bool {
        self.rows.len() <= 1
    }

    /// Prints it.
    pub fn print(&self) -> io::Result<()> {
        let mut out = io::stdout().lock();
        self.lines().iter().try_for_each(|line| writeln!(out, "{line}"))
    }

    /// Its lines.
    pub fn lines(&self) -> Vec<String> {
        let columns = self.rows.iter().map(Vec::len).max().unwrap_or(0);
        let width = |column: usize| {
            self.rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max().unwrap_or(0)
        };
        let is_number = |cell: &String| {
            cell.starts_with(|c: char| c.is_ascii_digit() || c == '-')
                && cell.chars().all(|c| c.is_ascii_digit() || "-.,% ".contains(c))
        };
        let to_right = |column: usize| {
            let mut cells = self.rows.iter().skip(1).filter_map(|row| row.get(column));
            self.rows.len() > 1 && cells.all(&is_number)
        };
        let shape: Vec<(usize, bool)> = (0..columns).map(|column| (width(column), to_right(column))).collect();
        let line = |row: &Vec<String>| {
            let cells = row.iter().zip(&shape).map(|(cell, (width, to_right))| {
                let pad = " ".repeat(width - cell.chars().count());
                if *to_right { format!("{pad}{cell}") } else { format!("{cell}{pad}") }
            });
            cells.collect::<Vec<_>>().join("  ").trim_end().to_owned()
        };
        self.rows.iter().map(line).collect()
    }
}

/// Ids are people's: a control character in one must not command the terminal.
pub fn printable(cell: &str) -> String {
    cell.chars().map(|c| if c.is_control() { '\u{FFFD}' } else { c }).collect()
}

/// A version as people read it: `epoch:counter`.
pub fn version(version: u64) -> String {
    format!("{}:{}", version >> 48, version & ((1 << 48) - 1))
}

/// Bytes in a unit that fits.
pub fn bytes(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
    let mut value = bytes as f64;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    if unit == 0 { format!("{bytes} B") } else { format!("{value:.1} {}", UNITS[unit]) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up_and_numbers_stand_to_the_right() {
        let mut table = Table::new(&["id", "size", "note"]);
        table.row(["a".into(), "5".into(), "x\u{7}y".into()]);
        table.row(["größer".into(), "1234".into(), String::new()]);
        assert_eq!(table.lines(), ["id      size  note", "a          5  x\u{FFFD}y", "größer  1234"]);
        assert!(!table.is_empty());
    }

    #[test]
    fn bytes_and_versions_read_well() {
        assert_eq!((bytes(0), bytes(1023), bytes(1536)), ("0 B".into(), "1023 B".into(), "1.5 KiB".into()));
        assert_eq!(version((2 << 48) | 17), "2:17");
    }
}
