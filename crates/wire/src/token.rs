//! Sync tokens and page tokens: opaque to callers, checked in full here, and they carry no authority.
//!
//! A sync token is base64url of {format, incarnation, user tag, uid, version, filter hash, issued, start of a sync from
//! zero, head of the page's state} and a checksum, so that a flipped character, another user's token and another filter are each told apart.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use holdfast_model::id::{Collection, Incarnation, Millis, RecordId, Uid, UserId, Version};

const FORMAT: u8 = 2;
const PAGE_FORMAT: u8 = 0x41;
const CHECKSUM_BYTES: usize = 8;
/// Longest token that is looked at.
const TOKEN_BYTES_MAX: usize = 1024;

/// Why a token was refused before the state was even asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// Not a token of this format, or damaged.
    #[error("the token is damaged or not one of this service")]
    Malformed,
    /// It belongs to another user.
    #[error("the token belongs to another user")]
    OtherUser,
    /// It was issued for other collections.
    #[error("the token was issued for another set of collections")]
    FilterChanged,
}

/// Where a device stands in a user's change feed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SyncToken {
    /// History that issued it.
    pub incarnation: Incarnation,
    /// Hash of the user id.
    pub user_tag: u64,
    /// Number of the user; 0 = had none yet.
    pub uid: Uid,
    /// Everything at or below this was delivered.
    pub version: Version,
    /// Hash of the collection filter; 0 = all.
    pub filter: u64,
    /// Server time of issue.
    pub issued: Millis,
    /// Head when this sync began from zero, while it is still paging: the device never had what was deleted at or
    /// below it. 0 = not such a sync.
    pub fresh_until: Version,
    /// Head of the state that the last page came from, while there are more; 0 = there are none. A record that moved to a
    /// later version in that state was passed over at its old place: only a state at least as new may continue.
    pub seen: Version,
}

impl SyncToken {
    /// Text form.
    pub fn encode(&self) -> String {
        let mut bytes = Vec::with_capacity(73);
        bytes.push(FORMAT);
        for field in [
            self.incarnation.0,
            self.user_tag,
            self.uid.0,
            self.version.0,
            self.filter,
            self.issued.0,
            self.fresh_until.0,
            self.seen.0,
        ] {
            bytes.extend_from_slice(&field.to_be_bytes());
        }
        seal(bytes)
    }

    /// Reads a token and checks that it is `user`'s and was issued for `filter`.
    pub fn decode(text: &str, user: &UserId, filter: u64) -> Result<Self, TokenError> {
        let token = Self::decode_any_filter(text, user)?;
        if token.filter == filter { Ok(token) } else { Err(TokenError::FilterChanged) }
    }

    /// Reads a token and checks that it is `user`'s.
    pub fn decode_any_filter(text: &str, user: &UserId) -> Result<Self, TokenError> {
        let body = unseal(text, FORMAT)?;
        let mut fields = body[1..].chunks_exact(8);
        if body.len() != 1 + 8 * 8 {
            return Err(TokenError::Malformed);
        }
        let mut next = || {
            let mut field = [0; 8];
            if let Some(chunk) = fields.next() {
                field.copy_from_slice(chunk);
            }
            u64::from_be_bytes(field)
        };
        let token = Self {
            incarnation: Incarnation(next()),
            user_tag: next(),
            uid: Uid(next()),
            version: Version(next()),
            filter: next(),
            issued: Millis(next()),
            fresh_until: Version(next()),
            seen: Version(next()),
        };
        if token.user_tag == user_tag(user) { Ok(token) } else { Err(TokenError::OtherUser) }
    }
}

/// Hash of a user id, as tokens carry it.
pub fn user_tag(user: &UserId) -> u64 {
    first_u64(blake3::hash(user.as_str().as_bytes()))
}

/// Hash of a set of collections, order and repetition aside; 0 = all of them.
pub fn filter_hash(collections: &[Collection]) -> u64 {
    if collections.is_empty() {
        return 0;
    }
    let mut names: Vec<&str> = collections.iter().map(Collection::as_str).collect();
    names.sort_unstable();
    names.dedup();
    let mut hasher = blake3::Hasher::new();
    for name in names {
        hasher.update(&(name.len() as u64).to_be_bytes());
        hasher.update(name.as_bytes());
    }
    first_u64(hasher.finalize()).max(1)
}

/// Where a listing goes on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PageToken {
    /// Hash over the call's other arguments, which must not change.
    pub arguments: u64,
    /// Sync token of the first page.
    pub sync_token: String,
    /// Place.
    pub after: PagePlace,
}

/// Place in a listing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PagePlace {
    /// After this record id.
    RecordId(RecordId),
    /// Before this version and ordinal, newest first.
    Newest(Version, u16),
}

impl PageToken {
    /// Text form.
    pub fn encode(&self) -> String {
        let mut bytes = vec![PAGE_FORMAT];
        bytes.extend_from_slice(&self.arguments.to_be_bytes());
        bytes.extend_from_slice(&(self.sync_token.len() as u16).to_be_bytes());
        bytes.extend_from_slice(self.sync_token.as_bytes());
        match &self.after {
            PagePlace::RecordId(id) => {
                bytes.push(0);
                bytes.extend_from_slice(id.as_str().as_bytes());
            }
            PagePlace::Newest(version, ordinal) => {
                bytes.push(1);
                bytes.extend_from_slice(&version.0.to_be_bytes());
                bytes.extend_from_slice(&ordinal.to_be_bytes());
            }
        }
        seal(bytes)
    }

    /// Reads a page token issued for the same arguments.
    pub fn decode(text: &str, arguments: u64) -> Result<Self, TokenError> {
        let body = unseal(text, PAGE_FORMAT)?;
        let parse = || -> Option<Self> {
            let (head, rest) = body.get(1..)?.split_first_chunk::<8>()?;
            let (len, rest) = rest.split_first_chunk::<2>()?;
            let (sync_token, rest) = rest.split_at_checked(u16::from_be_bytes(*len).into())?;
            let (kind, rest) = rest.split_first()?;
            let after = match kind {
                0 => PagePlace::RecordId(RecordId::new(std::str::from_utf8(rest).ok()?).ok()?),
                1 => {
                    let (version, ordinal) = rest.split_first_chunk::<8>()?;
                    let ordinal: [u8; 2] = ordinal.try_into().ok()?;
                    PagePlace::Newest(Version(u64::from_be_bytes(*version)), u16::from_be_bytes(ordinal))
                }
                _ => return None,
            };
            let sync_token = std::str::from_utf8(sync_token).ok()?.to_owned();
            Some(Self { arguments: u64::from_be_bytes(*head), sync_token, after })
        };
        let token = parse().ok_or(TokenError::Malformed)?;
        if token.arguments == arguments { Ok(token) } else { Err(TokenError::FilterChanged) }
    }
}

/// Hash over the arguments of a listing, for its page tokens.
pub fn arguments_hash(parts: &[&[u8]]) -> u64 {
    let mut hasher = blake3::Hasher::new();
    for part in parts {
        hasher.update(&(part.len() as u64).to_be_bytes());
        hasher.update(part);
    }
    first_u64(hasher.finalize())
}

fn first_u64(hash: blake3::Hash) -> u64 {
    let mut out = [0; 8];
    out.copy_from_slice(&hash.as_bytes()[..8]);
    u64::from_be_bytes(out)
}

fn checksum(body: &[u8]) -> [u8; CHECKSUM_BYTES] {
    first_u64(blake3::hash(body)).to_be_bytes()
}

fn seal(mut bytes: Vec<u8>) -> String {
    let sum = checksum(&bytes);
    bytes.extend_from_slice(&sum);
    URL_SAFE_NO_PAD.encode(bytes)
}

fn unseal(text: &str, format: u8) -> Result<Vec<u8>, TokenError> {
    if text.len() > TOKEN_BYTES_MAX {
        return Err(TokenError::Malformed);
    }
    let mut bytes = URL_SAFE_NO_PAD.decode(text).map_err(|_| TokenError::Malformed)?;
    let body_len = bytes.len().checked_sub(CHECKSUM_BYTES).ok_or(TokenError::Malformed)?;
    let sum = bytes.split_off(body_len);
    if sum != checksum(&bytes) || bytes.first() != Some(&format) {
        return Err(TokenError::Malformed);
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn user() -> UserId {
        UserId::new("alice").expect("valid")
    }

    fn token() -> SyncToken {
        SyncToken {
            incarnation: Incarnation(7),
            user_tag: user_tag(&user()),
            uid: Uid(3),
            version: Version::new(1, 5),
            filter: 0,
            issued: Millis(1234),
            fresh_until: Version(0),
            seen: Version(0),
        }
    }

    #[test]
    fn another_user_and_another_filter_are_told_apart() {
        let text = token().encode();
        assert_eq!(SyncToken::decode(&text, &user(), 0), Ok(token()));
        assert_eq!(SyncToken::decode(&text, &UserId::new("bob").expect("valid"), 0), Err(TokenError::OtherUser));
        assert_eq!(SyncToken::decode(&text, &user(), 5), Err(TokenError::FilterChanged));
    }

    #[test]
    fn every_flipped_bit_is_found() {
        let text = token().encode();
        for at in 0..text.len() {
            for bit in 0..8 {
                let mut bytes = text.clone().into_bytes();
                bytes[at] ^= 1 << bit;
                if let Ok(damaged) = String::from_utf8(bytes) {
                    assert_eq!(SyncToken::decode(&damaged, &user(), 0), Err(TokenError::Malformed), "{damaged}");
                }
            }
        }
    }

    #[test]
    fn a_page_token_is_not_a_sync_token() {
        let page = PageToken {
            arguments: 9,
            sync_token: token().encode(),
            after: PagePlace::RecordId(RecordId::new("c1").expect("valid")),
        };
        assert_eq!(PageToken::decode(&page.encode(), 9), Ok(page.clone()));
        assert_eq!(PageToken::decode(&page.encode(), 8), Err(TokenError::FilterChanged));
        assert_eq!(SyncToken::decode(&page.encode(), &user(), 0), Err(TokenError::Malformed));
        let newest = PageToken { after: PagePlace::Newest(Version(4), 2), ..page };
        assert_eq!(PageToken::decode(&newest.encode(), 9), Ok(newest));
    }

    /// Devices keep tokens for months. If this fails, all of them must sync again: change the code, not the test.
    #[test]
    fn tokens_that_devices_hold_stay_readable() {
        let names = ["notes", "x-a"].map(|name| Collection::new(name).expect("valid"));
        let token = SyncToken { filter: filter_hash(&names), fresh_until: Version(6), seen: Version(8), ..token() };
        let text = "AgAAAAAAAAAHcbJ489xDREcAAAAAAAAAAwABAAAAAAAFp8XElQilF2gAAAAAAAAE0gAAAAAAAAAGAAAAAAAAAAhm52mKVBbW0A";
        assert_eq!(token.encode(), text);
        assert_eq!(SyncToken::decode(text, &user(), filter_hash(&names)), Ok(token));
    }

    #[test]
    fn another_format_or_length_is_malformed() {
        let body = unseal(&token().encode(), FORMAT).expect("good");
        let mut other = body.clone();
        other[0] = FORMAT + 1;
        assert_eq!(SyncToken::decode(&seal(other), &user(), 0), Err(TokenError::Malformed));
        let longer = [&body[..], &[0; 8]].concat();
        assert_eq!(SyncToken::decode(&seal(longer), &user(), 0), Err(TokenError::Malformed));
        assert_eq!(SyncToken::decode(&seal(body[..49].to_vec()), &user(), 0), Err(TokenError::Malformed));
        let after = PagePlace::Newest(Version(4), 2);
        let page = |sync_token: String| PageToken { arguments: 9, sync_token, after: after.clone() }.encode();
        assert!(PageToken::decode(&page("s".repeat(100)), 9).is_ok());
        assert_eq!(PageToken::decode(&page("s".repeat(TOKEN_BYTES_MAX)), 9), Err(TokenError::Malformed));
    }

    #[test]
    fn the_arguments_of_a_listing_do_not_run_into_each_other() {
        assert_ne!(arguments_hash(&[b"ab", b"c"]), arguments_hash(&[b"a", b"bc"]));
        let name = |text: &str| Collection::new(text).expect("valid");
        assert_ne!(filter_hash(&[name("x-ax-b")]), filter_hash(&[name("x-a"), name("x-b")]));
    }

    #[test]
    fn the_filter_ignores_order_and_repetition() {
        let name = |text: &str| Collection::new(text).expect("valid");
        assert_eq!(
            filter_hash(&[name("notes"), name("contacts"), name("notes")]),
            filter_hash(&[name("contacts"), name("notes")])
        );
        assert_ne!(filter_hash(&[name("notes")]), filter_hash(&[name("contacts")]));
        assert_eq!(filter_hash(&[]), 0);
    }

    proptest! {
        #[test]
        fn arbitrary_text_never_panics(text in ".{0,100}") {
            let _ = SyncToken::decode(&text, &user(), 0);
            let _ = PageToken::decode(&text, 0);
        }

        #[test]
        fn arbitrary_sealed_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..80), format in prop_oneof![Just(FORMAT), Just(PAGE_FORMAT)]) {
            let mut body = vec![format];
            body.extend(bytes);
            let text = seal(body);
            let _ = SyncToken::decode(&text, &user(), 0);
            let _ = PageToken::decode(&text, 0);
        }
    }
}
