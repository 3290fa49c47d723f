use std::os::unix::fs::PermissionsExt;

use proptest::prelude::*;
use serde::Deserialize;

use super::*;
use crate::object::tests::every_flip_is_found;

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Seen {
    v: u32,
    what: String,
}

fn key() -> VerifierKey {
    VerifierKey::from_seed(&[3; 32])
}

fn seen(what: &str) -> Seen {
    Seen { v: 1, what: what.to_owned() }
}

#[test]
fn evidence_is_what_was_signed_under_its_name() {
    let bytes = sign("the/object", &key(), &seen("a\nb")).expect("signed");
    assert_eq!(open::<Seen>("the/object", &bytes).expect("opens"), (seen("a\nb"), key().public()));
    assert!(open::<Seen>("another/object", &bytes).is_err_and(|error| error.is_integrity()), "moved");
    every_flip_is_found(&bytes, |object, bytes| open::<Seen>(object, bytes).map(|_| ()));
}

#[test]
fn what_is_signed_has_one_reading() {
    // Name and words are told apart: a byte that goes from one to the other is another message.
    assert_ne!(signed("ab", "c"), signed("a", "bc"));
    let bytes = sign("o", &key(), &seen("x")).expect("signed");
    let doubled: Bytes = [&bytes[..], &bytes[..]].concat().into();
    assert!(open::<Seen>("o", &doubled).is_err_and(|error| error.is_integrity()));
    let other: Bytes = String::from_utf8(bytes.to_vec()).expect("text").replace("\"v\":1", "\"v\": 1").into();
    assert!(open::<Seen>("o", &other).is_err_and(|error| error.is_integrity()));
}

proptest! {
    #[test]
    fn any_bytes_are_evidence_or_not(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        let read = open::<Seen>("o", &bytes.into());
        prop_assert!(read.is_err_and(|error| error.is_integrity()));
    }

    #[test]
    fn any_words_are_read_back(what in ".{0,80}") {
        let bytes = sign("o", &key(), &seen(&what)).expect("signed");
        prop_assert_eq!(open::<Seen>("o", &bytes).expect("opens").0, seen(&what));
    }
}

#[test]
fn a_verifiers_key_is_made_once_and_for_its_owner_alone() {
    let dir = tempfile::tempdir().expect("directory");
    let path = dir.path().join("deep/verifier.key");
    let made = VerifierKey::read_or_create(&path).expect("made");
    assert_eq!(VerifierKey::read_or_create(&path).expect("read").public(), made.public());
    assert_eq!(std::fs::metadata(&path).expect("there").permissions().mode() & 0o777, 0o600);
    assert_eq!(
        std::fs::read_dir(path.parent().expect("a folder")).expect("reads").count(),
        1,
        "nothing is left beside it"
    );
    let text = std::fs::read_to_string(&path).expect("text");
    for cut in 0..text.len() {
        std::fs::write(&path, &text[..cut]).expect("cut");
        let said = VerifierKey::read_or_create(&path).expect_err("cut").to_string();
        assert!(said.contains("verifier.key"), "{said}");
    }
}
