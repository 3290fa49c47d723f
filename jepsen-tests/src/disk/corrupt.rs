//! Damaged bytes: what a disk gives back that nobody wrote. For files of a stopped node, and for objects of an archive.
//!
//! Hard links share their bytes, as they do on a disk that rots: damage to a table of a checkpoint is damage to the table
//! of the state that it was made from.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, ensure};
use clap::ValueEnum;
use serde::{Deserialize, Serialize};

use crate::chance::Chance;

/// What happens to the bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Damage {
    /// One bit is the other one.
    Flip,
    /// The end is missing.
    Truncate,
    /// Two pieces have changed places.
    Swap,
    /// About half of all pieces are noise.
    Scramble,
}

/// Which files.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Part {
    /// Segments of the log.
    LogWal,
    /// Tables and value files of the state.
    StateTable,
    /// The list of the state's tables.
    StateManifest,
    /// The pointer to that list.
    StateCurrent,
    /// The pointer to the state in use.
    StatePointer,
    /// What the node says it once had fsynced.
    Floor,
    /// Tables and value files of a checkpoint.
    Snapshot,
    /// Offsite: a part of the log.
    Segment,
    /// Offsite: a part of a snapshot.
    Chunk,
    /// Offsite: the list of a snapshot's parts.
    SnapshotManifest,
    /// Offsite: which history this is.
    Lineage,
    /// All files with something in them.
    Any,
}

/// What was done to a file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Done {
    /// Which.
    pub file: PathBuf,
    /// What.
    pub damage: Damage,
    /// First byte that is another one than before, or is missing.
    pub at: u64,
    /// Bytes from there to the last one that may be another.
    pub bytes: u64,
}

/// Pieces that change places, or turn into noise.
const PIECE: usize = 4096;
/// Draws of a byte that is not zero, before a zero will do.
const TRIES: usize = 1000;
/// Never spoilt: nothing reads what is in them.
const EMPTY_OF_MEANING: [&str; 2] = ["RESERVE", "LOCK"];

impl Part {
    /// Whether a file belongs to it; `path` is relative to a node's directory or to a destination.
    fn holds(self, path: &Path) -> bool {
        let words: Vec<&str> = path.iter().filter_map(|word| word.to_str()).collect();
        let (Some(name), count) = (words.last().copied(), words.len()) else { return false };
        let ends = |ending: &[&str]| ending.iter().any(|ending| name.ends_with(ending));
        let in_log = words[0] == "raft" && count == 2;
        let in_state = words[0] == "state" && count == 4;
        // An archive lies in a folder of its cluster and its history.
        let offsite = |folder: &str| count > 3 && words[2] == folder;
        match self {
            Self::LogWal => in_log && ends(&[".log"]),
            Self::StateTable => in_state && ends(&[".sst", ".blob"]),
            Self::StateManifest => in_state && name.starts_with("MANIFEST-"),
            Self::StateCurrent => in_state && name == "CURRENT",
            Self::StatePointer => words[0] == "state" && count == 3 && name == "CURRENT",
            Self::Floor => count == 1 && name.starts_with("floor-"),
            Self::Snapshot => words[0] == "snapshots" && ends(&[".sst", ".blob"]),
            Self::Segment => offsite("log"),
            Self::Chunk => offsite("gen") && words.iter().any(|word| ["chunk", "patch"].contains(word)),
            Self::SnapshotManifest => offsite("snap") && name == "MANIFEST",
            Self::Lineage => count == 3 && name == "LINEAGE",
            Self::Any => !EMPTY_OF_MEANING.contains(&name),
        }
    }

    /// Its files under a directory that have something in them, sorted by name.
    ///
    /// # Errors
    /// When a directory cannot be listed.
    pub fn files(self, root: &Path) -> anyhow::Result<Vec<PathBuf>> {
        let mut found = Vec::new();
        let mut folders = vec![root.to_owned()];
        while let Some(folder) = folders.pop() {
            let list = || format!("list {}", folder.display());
            for entry in std::fs::read_dir(&folder).with_context(list)? {
                let entry = entry.with_context(list)?;
                let (path, kind) = (entry.path(), entry.file_type().with_context(list)?);
                if kind.is_dir() {
                    folders.push(path);
                } else if kind.is_file()
                    && entry.metadata().with_context(list)?.len() > 0
                    && self.holds(path.strip_prefix(root)?)
                {
                    found.push(path);
                }
            }
        }
        found.sort();
        Ok(found)
    }

    /// One of its files, by chance; `None` = there is none.
    ///
    /// # Errors
    /// As [`Part::files`].
    pub fn any_file(self, root: &Path, chance: &mut Chance) -> anyhow::Result<Option<PathBuf>> {
        let mut files = self.files(root)?;
        Ok((!files.is_empty()).then(|| files.swap_remove(chance.below(files.len()))))
    }
}

impl Damage {
    /// Damages a file, at a place by chance or at a given byte, durably.
    ///
    /// # Errors
    /// When the file is too small for it, or cannot be written.
    pub fn strike(self, file: &Path, at: Option<u64>, chance: &mut Chance) -> anyhow::Result<Done> {
        let open = File::options().read(true).write(true).open(file);
        let open = open.with_context(|| format!("open {}", file.display()))?;
        let length = open.metadata()?.len();
        ensure!(length > 0, "{} is empty: there is nothing to damage", file.display());
        ensure!(at.is_none_or(|at| at < length), "{} has {length} bytes, none at {at:?}", file.display());
        let at = match at {
            Some(at) => at,
            None => place(&open, length, chance)?,
        };
        let (at, bytes) = match self {
            Self::Flip => flip(&open, at, chance).map(|()| (at, 1)),
            Self::Truncate => open.set_len(at).map(|()| (at, length - at)),
            Self::Swap => swap(&open, at, length),
            Self::Scramble => scramble(&open, length, chance),
        }
        .and_then(|done| open.sync_all().map(|()| done))
        .with_context(|| format!("damage {}", file.display()))?;
        ensure!(bytes > 0, "{} is the same in all its pieces: choose another damage", file.display());
        Ok(Done { file: file.to_owned(), damage: self, at, bytes })
    }
}

/// A byte by chance that says something: files like the floor are mostly zeros, which nobody reads.
fn place(file: &File, length: u64, chance: &mut Chance) -> io::Result<u64> {
    let mut at = 0;
    for _ in 0..TRIES {
        at = chance.next_u64() % length;
        let mut byte = [0];
        file.read_exact_at(&mut byte, at)?;
        if byte != [0] {
            break;
        }
    }
    Ok(at)
}

fn flip(file: &File, at: u64, chance: &mut Chance) -> io::Result<()> {
    let mut byte = [0];
    file.read_exact_at(&mut byte, at)?;
    byte[0] ^= 1 << chance.below(8);
    file.write_all_at(&byte, at)
}

/// The piece at `at` and the next one that differs from it change places. Small files have small pieces.
fn swap(file: &File, at: u64, length: u64) -> io::Result<(u64, u64)> {
    let mut size = PIECE as u64;
    while size > 1 && length < 4 * size {
        size /= 2;
    }
    let pieces = length / size;
    let read = |n: u64| {
        let mut piece = vec![0; usize::try_from(size).unwrap_or(PIECE)];
        file.read_exact_at(&mut piece, n * size).map(|()| piece)
    };
    let first = (at / size).min(pieces - 1);
    let one = read(first)?;
    for step in 1..pieces {
        let second = (first + step) % pieces;
        let other = read(second)?;
        if one != other {
            file.write_all_at(&other, first * size)?;
            file.write_all_at(&one, second * size)?;
            let (low, high) = (first.min(second), first.max(second));
            return Ok((low * size, (high - low + 1) * size));
        }
    }
    Ok((at, 0))
}

fn scramble(file: &File, length: u64, chance: &mut Chance) -> io::Result<(u64, u64)> {
    let pieces = length.div_ceil(PIECE as u64);
    let sure = chance.next_u64() % pieces;
    let (mut low, mut high) = (u64::MAX, 0);
    for n in (0..pieces).filter(|n| *n == sure || chance.percent(50)).collect::<Vec<_>>() {
        let start = n * PIECE as u64;
        let end = length.min(start + PIECE as u64);
        let noise: Vec<u8> = (start..end).map(|_| chance.next_u64().to_le_bytes()[5]).collect();
        file.write_all_at(&noise, start)?;
        (low, high) = (low.min(start), high.max(end));
    }
    Ok((low, high - low))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with_file(bytes: &[u8], test: impl FnOnce(&Path)) {
        let dir = tempfile::tempdir().expect("tempdir");
        let file = dir.path().join("file");
        std::fs::write(&file, bytes).expect("written");
        test(&file);
    }

    fn varied(length: usize) -> Vec<u8> {
        let mut chance = Chance::new(1, 1);
        (0..length).map(|_| chance.next_u64().to_le_bytes()[0]).collect()
    }

    /// The only bytes that changed lie where it says.
    fn differing(before: &[u8], after: &[u8], done: &Done) -> usize {
        let (from, to) = (done.at as usize, (done.at + done.bytes) as usize);
        let changed: Vec<usize> = (0..before.len()).filter(|n| before.get(*n) != after.get(*n)).collect();
        assert!(changed.iter().all(|n| (from..to).contains(n)), "{done:?}: {changed:?}");
        assert_eq!(changed.first().copied(), Some(from), "{done:?}");
        changed.len()
    }

    #[test]
    fn each_damage_does_what_it_says_and_comes_back_with_its_seed() {
        let before = varied(40_000);
        for damage in Damage::value_variants() {
            for seed in 0..20 {
                let mut results = Vec::new();
                for _ in 0..2 {
                    with_file(&before, |file| {
                        let done = damage.strike(file, None, &mut Chance::new(seed, 0)).expect("damaged");
                        let after = std::fs::read(file).expect("read");
                        let changed = differing(&before, &after, &done);
                        match damage {
                            Damage::Flip => {
                                let bits = before[done.at as usize] ^ after[done.at as usize];
                                assert_eq!((changed, bits.count_ones(), after.len()), (1, 1, before.len()));
                            }
                            Damage::Truncate => assert_eq!(after.len() as u64, done.at),
                            Damage::Swap => {
                                let sorted = |bytes: &[u8]| {
                                    let mut bytes = bytes.to_vec();
                                    bytes.sort_unstable();
                                    bytes
                                };
                                assert_eq!(sorted(&before), sorted(&after));
                            }
                            Damage::Scramble => assert!(changed > 1000 && after.len() == before.len(), "{changed}"),
                        }
                        results.push((done.at, after));
                    });
                }
                assert_eq!(results[0], results[1]);
            }
        }
    }

    #[test]
    fn a_byte_that_says_something_is_hit_even_among_many_zeros() {
        let mut bytes = vec![0; 8192];
        bytes[4096..4175].copy_from_slice(&varied(79));
        for seed in 0..20 {
            with_file(&bytes, |file| {
                let done = Damage::Flip.strike(file, None, &mut Chance::new(seed, 0)).expect("damaged");
                assert!((4096..4175).contains(&done.at), "{done:?}");
            });
        }
    }

    #[test]
    fn small_and_uniform_files_are_damaged_or_refused() {
        for damage in Damage::value_variants() {
            with_file(b"MANIFEST-000005\n", |file| {
                damage.strike(file, None, &mut Chance::new(3, 0)).expect("damaged");
                assert_ne!(std::fs::read(file).expect("read"), b"MANIFEST-000005\n");
            });
            with_file(b"", |file| assert!(damage.strike(file, None, &mut Chance::new(3, 0)).is_err()));
        }
        with_file(&[7; 100], |file| assert!(Damage::Swap.strike(file, None, &mut Chance::new(3, 0)).is_err()));
        with_file(b"abc", |file| {
            assert_eq!(Damage::Flip.strike(file, Some(1), &mut Chance::new(3, 0)).expect("damaged").at, 1);
            assert!(Damage::Flip.strike(file, Some(3), &mut Chance::new(3, 0)).is_err(), "there is no fourth byte");
        });
    }

    #[test]
    fn parts_are_the_files_that_they_name() {
        let dir = tempfile::tempdir().expect("tempdir");
        let files = [
            ("raft/000004.log", Part::LogWal),
            ("state/0/db-1/000023.blob", Part::StateTable),
            ("state/0/db-1/000024.sst", Part::StateTable),
            ("state/0/db-1/MANIFEST-000012", Part::StateManifest),
            ("state/0/db-1/CURRENT", Part::StateCurrent),
            ("state/0/CURRENT", Part::StatePointer),
            ("floor-0", Part::Floor),
            ("snapshots/checkpoint-00000001/000015.sst", Part::Snapshot),
            ("c1/h1/log/0/L0/00000000000000000006", Part::Segment),
            ("c1/h1/gen/2969/chunk/03d3", Part::Chunk),
            ("c1/h1/gen/2969/patch/03d3", Part::Chunk),
            ("c1/h1/snap/0/00000000000000000067/MANIFEST", Part::SnapshotManifest),
            ("c1/h1/LINEAGE", Part::Lineage),
        ];
        let others = ["RESERVE", "LOCK", "IDENTITY", "state/0/db-1/LOG", "quarantine/raft-1/000004.log"];
        for name in files.iter().map(|(name, _)| *name).chain(others) {
            let path = dir.path().join(name);
            std::fs::create_dir_all(path.parent().expect("folder")).expect("created");
            std::fs::write(path, "x").expect("written");
        }
        std::fs::write(dir.path().join("raft/000001.log"), "").expect("written");
        for part in Part::value_variants().iter().filter(|part| **part != Part::Any) {
            let expected: Vec<PathBuf> =
                files.iter().filter(|(_, of)| of == part).map(|(name, _)| dir.path().join(name)).collect();
            assert_eq!(part.files(dir.path()).expect("listed"), expected, "{part:?}");
            assert!(!expected.is_empty(), "{part:?} is not tested");
        }
        let any = Part::Any.files(dir.path()).expect("listed");
        assert_eq!(any.len(), files.len() + others.len() - 2);
        assert!(any.iter().all(|file| !file.ends_with("RESERVE") && !file.ends_with("LOCK")));
    }
}
