//! How rows are written one behind the other, in chunks and in patches.
//!
//! ```text
//! row: family u8 | key length u32 | value length u32, or all ones: the row is gone | key | value
//! ```

use bytes::{Buf, Bytes};

pub(crate) const ROW_HEADER_BYTES: usize = 9;
/// In place of a value's length: there is none. No value is that long.
const GONE: u32 = u32::MAX;

/// A row, or that one is gone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PatchRow {
    /// Tag of its family.
    pub family: u8,
    /// Key.
    pub key: Bytes,
    /// Value; `None` = the row is gone.
    pub value: Option<Bytes>,
}

impl PatchRow {
    /// Where it stands in canonical order.
    pub(crate) fn place(&self) -> (u8, &[u8]) {
        (self.family, &self.key)
    }
}

/// Appends a row.
pub(crate) fn put_row(out: &mut Vec<u8>, family: u8, key: &[u8], value: Option<&[u8]>) {
    out.push(family);
    out.extend_from_slice(&(key.len() as u32).to_be_bytes());
    out.extend_from_slice(&value.map_or(GONE, |value| value.len() as u32).to_be_bytes());
    out.extend_from_slice(key);
    out.extend_from_slice(value.unwrap_or_default());
}

/// Takes the next row; `None` = there is no more.
///
/// # Errors
/// When the bytes end inside it.
pub(crate) fn next_row(rest: &mut Bytes) -> Result<Option<PatchRow>, String> {
    if rest.is_empty() {
        return Ok(None);
    }
    let short = || "a row ends beyond the body".to_owned();
    if rest.len() < ROW_HEADER_BYTES {
        return Err(short());
    }
    let family = rest.get_u8();
    let key_bytes = rest.get_u32() as usize;
    let value_bytes = Some(rest.get_u32()).filter(|length| *length != GONE).map(|length| length as usize);
    if rest.len() < key_bytes.checked_add(value_bytes.unwrap_or(0)).ok_or_else(short)? {
        return Err(short());
    }
    let key = rest.split_to(key_bytes);
    let value = value_bytes.map(|length| rest.split_to(length));
    Ok(Some(PatchRow { family, key, value }))
}

/// Checks that the rows are as many as was said, at least one, strictly ascending, and such as fit.
///
/// # Errors
/// Says which row is wrong.
pub(crate) fn check_rows(plain: &Bytes, rows: u64, fits: impl Fn(&PatchRow) -> bool) -> Result<(), String> {
    let mut rest = plain.clone();
    let mut last: Option<PatchRow> = None;
    let mut found = 0;
    while let Some(row) = next_row(&mut rest)? {
        if last.is_some_and(|last| last.place() >= row.place()) {
            return Err(format!("row {found} is out of order"));
        }
        if !fits(&row) {
            return Err(format!("row {found} does not belong into it"));
        }
        last = Some(row);
        found += 1;
    }
    if found == rows && rows > 0 { Ok(()) } else { Err(format!("it has {found} rows, not {rows}")) }
}
