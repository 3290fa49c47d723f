//! What rows a snapshot had, kept beside the node that shipped it: so much of each as tells whether it is still the same.
//!
//! A snapshot taken with the index of an earlier one ships what changed since, and reads nothing back. An index that is
//! lost, damaged or of another snapshot costs time and bytes, and never rows.
//!
//! ```text
//! file:   magic 8 | cluster 16 | incarnation u64 | group u32 | index u64 | row* | END u8 | root 32 | BLAKE3 of all before 32
//! row:    family u8, 128 more where the payload lies apart | bytes of the key before this one that it begins with u16 | length of the rest u32 | rest | print 16
//! ```
//! The print of a row is half of the BLAKE3 of its value: 128 bits, so that no change that ever happens goes unseen.
//!
//! Invariants:
//! - A file has its name only once it is whole; nothing of it is believed before the hash at its end was checked.
//! - It is used against the one snapshot whose root it ends with.

use std::fs::File;
use std::io::{BufReader, BufWriter, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use holdfast_model::id::GroupId;

use crate::layout::{LineageId, hex};
use crate::payloads;
use crate::rows::PatchRow;

const MAGIC: [u8; 8] = *b"HOLDROW2";
/// In place of a family: no row follows.
const END: u8 = u8::MAX;
/// Added to the family of a record whose payload lies apart. Payloads have no rows here: a record's row tells when they
/// change.
const APART: u8 = 1 << 7;
const HEADER_BYTES: usize = 8 + 16 + 8 + 4 + 8;
const FOOTER_BYTES: u64 = 1 + 32 + 32;
const BUFFER_BYTES: usize = 1 << 18;
/// Longer keys are not ours: a damaged length must not make a reader allocate.
const KEY_BYTES_MAX: u32 = 1 << 20;

/// Tells values of one row apart.
pub(crate) type Print = [u8; 16];

/// Of a row's value.
pub(crate) fn print(value: &[u8]) -> Print {
    let mut print = [0; 16];
    print.copy_from_slice(&blake3::hash(value).as_bytes()[..16]);
    print
}

/// The indexes in one folder.
#[derive(Debug, Clone)]
pub struct RowIndexes {
    dir: PathBuf,
}

impl RowIndexes {
    /// Those in `dir`, which is made when the first is written.
    pub fn new(dir: PathBuf) -> Self {
        Self { dir }
    }

    /// Forgets all but those of these snapshots, and of newer ones: another backup may be under way.
    ///
    /// # Errors
    /// When the folder cannot be listed, or a file in it not removed.
    pub fn keep(&self, group: GroupId, indices: &[u64]) -> std::io::Result<()> {
        let newest = indices.iter().max().copied().unwrap_or(0);
        let kept: Vec<PathBuf> = indices.iter().map(|index| self.path(group, *index)).collect();
        let listed = match std::fs::read_dir(&self.dir) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
            listed => listed?,
        };
        for found in listed {
            let path = found?.path();
            let name = path.file_stem().and_then(|name| name.to_str()).and_then(|name| name.split_once('-'));
            let index = name.and_then(|(_, index)| index.parse::<u64>().ok());
            if index.is_some_and(|index| index <= newest) && !kept.contains(&path) {
                std::fs::remove_file(path)?;
            }
        }
        Ok(())
    }

    fn path(&self, group: GroupId, index: u64) -> PathBuf {
        self.dir.join(format!("{}-{index:020}.rows", group.0))
    }

    /// The index of a snapshot, if it is here, whole, and of the state with this root.
    pub(crate) fn open(&self, lineage: &LineageId, group: GroupId, index: u64, root: &[u8; 32]) -> Option<RowReader> {
        let path = self.path(group, index);
        match RowReader::open(&path, &header(lineage, group, index), root) {
            Ok(reader) => Some(reader),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => None,
            Err(error) => {
                tracing::warn!(event = "backup.row_index", path = %path.display(), %error, "not used");
                None
            }
        }
    }

    /// An index is here under this name.
    pub(crate) fn has(&self, group: GroupId, index: u64) -> bool {
        self.path(group, index).is_file()
    }

    pub(crate) fn create(&self, lineage: &LineageId, group: GroupId, index: u64) -> std::io::Result<RowWriter> {
        std::fs::create_dir_all(&self.dir)?;
        RowWriter::create(self.path(group, index), &header(lineage, group, index))
    }
}

fn header(lineage: &LineageId, group: GroupId, index: u64) -> Vec<u8> {
    let mut header = MAGIC.to_vec();
    header.extend_from_slice(&lineage.cluster_id);
    header.extend_from_slice(&lineage.incarnation.0.to_be_bytes());
    header.extend_from_slice(&group.0.to_be_bytes());
    header.extend_from_slice(&index.to_be_bytes());
    header
}

/// Writes an index row by row.
#[derive(Debug)]
pub(crate) struct RowWriter {
    out: BufWriter<File>,
    hasher: blake3::Hasher,
    path: PathBuf,
    temporary: PathBuf,
    last_key: Vec<u8>,
    is_done: bool,
}

impl RowWriter {
    fn create(path: PathBuf, header: &[u8]) -> std::io::Result<Self> {
        let temporary = path.with_extension("part");
        let out = BufWriter::with_capacity(BUFFER_BYTES, File::create(&temporary)?);
        let hasher = blake3::Hasher::new();
        let mut writer = Self { out, hasher, path, temporary, last_key: Vec::new(), is_done: false };
        writer.put(header)?;
        Ok(writer)
    }

    /// Adds a row; rows come in canonical order.
    pub(crate) fn push(&mut self, family: u8, apart: bool, key: &[u8], print: &Print) -> std::io::Result<()> {
        let shared = key.iter().zip(&self.last_key).take(u16::MAX.into()).take_while(|(a, b)| a == b).count();
        let rest = &key[shared..];
        let mut head = [if apart { family | APART } else { family }; 7];
        head[1..3].copy_from_slice(&(shared as u16).to_be_bytes());
        head[3..].copy_from_slice(&(rest.len() as u32).to_be_bytes());
        self.put(&head)?;
        self.put(rest)?;
        self.put(print)?;
        self.last_key.truncate(shared);
        self.last_key.extend_from_slice(rest);
        Ok(())
    }

    /// Adds rows that have values; rows come in canonical order. Payloads are left out.
    pub(crate) fn add(mut self, rows: impl Iterator<Item = PatchRow>) -> std::io::Result<Self> {
        for row in rows.filter(|row| row.family != payloads::FAMILY) {
            let apart = payloads::lies_apart(&row);
            self.push(row.family, apart, &row.key, &print(&row.value.unwrap_or_default()))?;
        }
        Ok(self)
    }

    /// Everything was added, and is the state with this root.
    pub(crate) fn finish(mut self, root: &[u8; 32]) -> std::io::Result<()> {
        self.put(&[END])?;
        self.put(root)?;
        let hash = *self.hasher.finalize().as_bytes();
        self.out.write_all(&hash)?;
        self.out.flush()?;
        std::fs::rename(&self.temporary, &self.path)?;
        self.is_done = true;
        Ok(())
    }

    fn put(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        self.hasher.update(bytes);
        self.out.write_all(bytes)
    }
}

impl Drop for RowWriter {
    fn drop(&mut self) {
        if !self.is_done {
            // What is left of it has no name that anybody reads, and is forgotten with the next that is kept.
            let _ = std::fs::remove_file(&self.temporary);
        }
    }
}

/// A row as an index has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Printed {
    pub(crate) family: u8,
    /// Its payload lies apart.
    pub(crate) apart: bool,
    pub(crate) key: Vec<u8>,
    pub(crate) print: Print,
}

/// Reads an index row by row.
#[derive(Debug)]
pub(crate) struct RowReader {
    rows: BufReader<File>,
    last_key: Vec<u8>,
}

impl RowReader {
    fn open(path: &Path, header: &[u8], root: &[u8; 32]) -> std::io::Result<Self> {
        let bad = |reason: &str| std::io::Error::new(std::io::ErrorKind::InvalidData, reason);
        let mut file = File::open(path)?;
        let length = file.metadata()?.len();
        let hashed = length.checked_sub(32).ok_or_else(|| bad("it is too short"))?;
        if hashed < HEADER_BYTES as u64 + FOOTER_BYTES - 32 {
            return Err(bad("it is too short"));
        }
        let mut hasher = blake3::Hasher::new();
        hash_first(&file, hashed, &mut hasher)?;
        let mut end = [0; FOOTER_BYTES as usize];
        file.seek(SeekFrom::Start(length - FOOTER_BYTES))?;
        file.read_exact(&mut end)?;
        if hasher.finalize().as_bytes()[..] != end[33..] {
            return Err(bad("its bytes do not match the hash at its end"));
        }
        if end[1..33] != root[..] {
            return Err(bad("it is of another state"));
        }
        file.seek(SeekFrom::Start(0))?;
        let mut rows = BufReader::with_capacity(BUFFER_BYTES, file);
        let mut found = [0; HEADER_BYTES];
        rows.read_exact(&mut found)?;
        if found[..] != header[..] {
            return Err(bad(&format!("it is of another snapshot: it begins with {}", hex(&found))));
        }
        Ok(Self { rows, last_key: Vec::new() })
    }

    /// The next row; `None` = that was the last.
    pub(crate) fn next(&mut self) -> std::io::Result<Option<Printed>> {
        let bad = |reason: &str| std::io::Error::new(std::io::ErrorKind::InvalidData, reason);
        let mut family = [0];
        self.rows.read_exact(&mut family)?;
        if family[0] == END {
            return Ok(None);
        }
        let (mut shared, mut rest) = ([0; 2], [0; 4]);
        self.rows.read_exact(&mut shared)?;
        self.rows.read_exact(&mut rest)?;
        let (shared, rest) = (usize::from(u16::from_be_bytes(shared)), u32::from_be_bytes(rest));
        if shared > self.last_key.len() || rest > KEY_BYTES_MAX {
            return Err(bad("a key has an impossible length"));
        }
        self.last_key.truncate(shared);
        self.last_key.resize(shared + rest as usize, 0);
        self.rows.read_exact(&mut self.last_key[shared..])?;
        let mut print = [0; 16];
        self.rows.read_exact(&mut print)?;
        let (family, apart) = (family[0] & !APART, family[0] & APART != 0);
        Ok(Some(Printed { family, apart, key: self.last_key.clone(), print }))
    }
}

fn hash_first(file: &File, bytes: u64, hasher: &mut blake3::Hasher) -> std::io::Result<()> {
    let mut rest = file.take(bytes);
    let mut buffer = vec![0; BUFFER_BYTES];
    loop {
        match rest.read(&mut buffer)? {
            0 => return Ok(()),
            read => hasher.update(&buffer[..read]),
        };
    }
}

#[cfg(test)]
mod tests;
