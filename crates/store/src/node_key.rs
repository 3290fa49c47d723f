//! The key with which a node signs what it found in its own state. It never leaves the data directory.

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use crate::error::{Part, StoreError};
use crate::files;

const NODE_KEY: &str = "NODE_KEY";
const HEAD: &str = "holdfast node key 1";

/// The key in `dir`; made of `fresh`, which has to be random, where there is none.
pub(crate) fn read_or_create(dir: &Path, fresh: [u8; 32]) -> Result<[u8; 32], StoreError> {
    let path = dir.join(NODE_KEY);
    match fs::read_to_string(&path) {
        Ok(text) => parse(&text).ok_or_else(|| StoreError::Corrupt {
            what: "the key with which this node attests snapshots".into(),
            path: path.clone(),
            reason: "it is not what was written".into(),
            part: Part::Marker,
        }),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => create(&path, fresh),
        Err(error) => Err(StoreError::io("read", &path)(error)),
    }
}

/// Nobody else may read it, not even for a moment.
fn create(path: &Path, fresh: [u8; 32]) -> Result<[u8; 32], StoreError> {
    let tmp = path.with_extension("tmp");
    let hex: String = fresh.iter().map(|byte| format!("{byte:02x}")).collect();
    files::remove_file(&tmp)?;
    let opened = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&tmp);
    let written = opened
        .and_then(|mut file| file.write_all(format!("{HEAD}\n{hex}\n").as_bytes()).and_then(|()| file.sync_all()));
    written.map_err(StoreError::io("write", &tmp))?;
    files::rename(&tmp, path)?;
    Ok(fresh)
}

fn parse(text: &str) -> Option<[u8; 32]> {
    let hex = text.strip_prefix(HEAD)?.strip_prefix('\n')?.strip_suffix('\n')?;
    let is_hex = hex.len() == 64 && hex.bytes().all(|byte| byte.is_ascii_hexdigit());
    let mut key = [0; 32];
    for (byte, digits) in key.iter_mut().zip(is_hex.then_some(hex)?.as_bytes().chunks(2)) {
        *byte = u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()?;
    }
    Some(key)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_key_stays_is_private_and_is_never_made_anew_over_another() {
        let dir = tempfile::tempdir().expect("temporary directory");
        assert_eq!(read_or_create(dir.path(), [0xa7; 32]).expect("made"), [0xa7; 32]);
        assert_eq!(read_or_create(dir.path(), [8; 32]).expect("read"), [0xa7; 32]);
        let path = dir.path().join(NODE_KEY);
        assert_eq!(fs::metadata(&path).expect("there").permissions().mode() & 0o777, 0o600);
        let text = fs::read_to_string(&path).expect("text");
        for cut in 0..text.len() {
            fs::write(&path, &text[..cut]).expect("cut");
            let said = read_or_create(dir.path(), [8; 32]).expect_err("cut").to_string();
            assert!(said.contains("NODE_KEY"), "{said}");
        }
        fs::write(&path, text.replace("a7", "+7")).expect("no hex");
        read_or_create(dir.path(), [8; 32]).expect_err("no hex");
    }
}
