//! Encryption: the keys of a generation, and how a packed body is sealed with them.
//!
//! One secret per cluster, from a file that every node has; from it one key per generation (a week, or less), and from
//! that separate keys for cipher, nonces, names of chunks, and the id that tells keys apart. All by BLAKE3's key
//! derivation (Aumasson et al., 2021, section 2.3).
//!
//! Invariants:
//! - A nonce is a keyed hash of exactly the bytes that are sealed under it, with what is authenticated beside them: two
//!   messages never share one, also where another version of zstd packed the same rows.
//! - A sealed body opens under its own full name only: an object that was moved to another place is found out.
//! - Secrets are in no `Debug` text.

use std::sync::Arc;

use bytes::Bytes;
use chacha20poly1305::aead::{Aead, KeyInit, Payload};
use chacha20poly1305::{XChaCha20Poly1305, XNonce};

use crate::layout::{LineageId, hex};

const GENERATION_CONTEXT: &str = "holdfast archive 2026-11-26 generation key";
const CIPHER_CONTEXT: &str = "holdfast archive 2026-11-26 cipher key";
const NONCE_CONTEXT: &str = "holdfast archive 2026-11-26 nonce key";
const NAME_CONTEXT: &str = "holdfast archive 2026-11-26 chunk name key";
const ID_CONTEXT: &str = "holdfast archive 2026-11-26 key id";

/// Bytes of a nonce of XChaCha20-Poly1305 (draft-irtf-cfrg-xchacha-03).
pub(crate) const NONCE_BYTES: usize = 24;
/// Bytes of a key's id.
pub const KEY_ID_BYTES: usize = 16;

/// How an object's body is packed before it is sealed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Compression {
    /// One zstd frame.
    #[default]
    Zstd,
    /// As it is.
    None,
}

/// The key of one generation of one history.
#[derive(Clone)]
pub struct GenerationKey {
    generation: u32,
    id: [u8; KEY_ID_BYTES],
    key: [u8; 32],
    cipher: XChaCha20Poly1305,
    nonces: [u8; 32],
    names: [u8; 32],
}

impl std::fmt::Debug for GenerationKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("GenerationKey")
            .field("generation", &self.generation)
            .field("id", &hex(&self.id))
            .finish_non_exhaustive()
    }
}

impl PartialEq for GenerationKey {
    fn eq(&self, other: &Self) -> bool {
        (self.generation, self.id) == (other.generation, other.id)
    }
}

impl Eq for GenerationKey {}

impl GenerationKey {
    /// From the secret of a cluster.
    pub fn derive(secret: &[u8; 32], lineage: &LineageId, generation: u32) -> Self {
        let mut hasher = blake3::Hasher::new_derive_key(GENERATION_CONTEXT);
        hasher.update(secret).update(&lineage.cluster_id).update(&lineage.incarnation.0.to_be_bytes());
        hasher.update(&generation.to_be_bytes());
        Self::of(generation, *hasher.finalize().as_bytes())
    }

    /// From the key itself, as KEYS.age holds it.
    pub(crate) fn of(generation: u32, key: [u8; 32]) -> Self {
        let mut id = [0; KEY_ID_BYTES];
        id.copy_from_slice(&blake3::derive_key(ID_CONTEXT, &key)[..KEY_ID_BYTES]);
        Self {
            generation,
            id,
            key,
            cipher: XChaCha20Poly1305::new(&blake3::derive_key(CIPHER_CONTEXT, &key).into()),
            nonces: blake3::derive_key(NONCE_CONTEXT, &key),
            names: blake3::derive_key(NAME_CONTEXT, &key),
        }
    }

    /// Which generation.
    pub fn generation(&self) -> u32 {
        self.generation
    }

    /// Tells keys apart, and says nothing of them.
    pub fn id(&self) -> [u8; KEY_ID_BYTES] {
        self.id
    }

    /// The key itself: what KEYS.age holds.
    pub(crate) fn bytes(&self) -> &[u8; 32] {
        &self.key
    }

    /// Name of a chunk: nobody without the key can tell from it what the chunk holds, not even by guessing.
    pub(crate) fn chunk_name(&self, plain_blake3: &[u8; 32]) -> [u8; 32] {
        *blake3::keyed_hash(&self.names, plain_blake3).as_bytes()
    }

    /// Seals a body together with what is said beside it; gives the nonce and what to store.
    pub(crate) fn seal(&self, beside: &[u8], body: &[u8]) -> Option<([u8; NONCE_BYTES], Vec<u8>)> {
        let nonce = self.nonce(beside, body);
        let sealed = self.cipher.encrypt(XNonce::from_slice(&nonce), Payload { msg: body, aad: beside }).ok()?;
        Some((nonce, sealed))
    }

    /// Opens a body; `None` = it was not sealed with this key, under this nonce, beside these words.
    pub(crate) fn open(&self, nonce: &[u8; NONCE_BYTES], beside: &[u8], sealed: &[u8]) -> Option<Bytes> {
        let body = self.cipher.decrypt(XNonce::from_slice(nonce), Payload { msg: sealed, aad: beside }).ok()?;
        // A writer that chose nonces in another way could have used one twice.
        (self.nonce(beside, &body) == *nonce).then(|| body.into())
    }

    fn nonce(&self, beside: &[u8], body: &[u8]) -> [u8; NONCE_BYTES] {
        let mut hasher = blake3::Hasher::new_keyed(&self.nonces);
        hasher.update(&(beside.len() as u64).to_be_bytes()).update(beside).update(body);
        let mut nonce = [0; NONCE_BYTES];
        hasher.finalize_xof().fill(&mut nonce);
        nonce
    }
}

/// How new objects of a history are packed and sealed.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Sealing {
    pub(crate) compression: Compression,
    pub(crate) keys: Option<SealingKeys>,
}

/// The key that seals, with the bytes of the KEYS.age that gives it back to its recipients.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct SealingKeys {
    pub(crate) key: Arc<GenerationKey>,
    pub(crate) keys_age: Bytes,
    pub(crate) keys_blake3: [u8; 32],
}

impl Sealing {
    /// Packed, and open to everybody who can read it.
    pub fn open_to_all(compression: Compression) -> Self {
        Self { compression, keys: None }
    }

    /// Encrypted; `keys_age` are the bytes of the generation's KEYS.age.
    pub fn with_key(compression: Compression, key: Arc<GenerationKey>, keys_age: Bytes) -> Self {
        let keys_blake3 = *blake3::hash(&keys_age).as_bytes();
        Self { compression, keys: Some(SealingKeys { key, keys_age, keys_blake3 }) }
    }

    /// The generation that it seals with; `None` = nothing is encrypted.
    pub fn generation(&self) -> Option<u32> {
        self.keys.as_ref().map(|keys| keys.key.generation())
    }

    /// Name of a chunk with these rows.
    pub(crate) fn chunk_name(&self, plain_blake3: &[u8; 32]) -> [u8; 32] {
        self.keys.as_ref().map_or(*plain_blake3, |keys| keys.key.chunk_name(plain_blake3))
    }
}

#[cfg(test)]
mod tests {
    use holdfast_model::id::Incarnation;
    use proptest::prelude::*;

    use super::*;

    const LINEAGE: LineageId = LineageId { cluster_id: [7; 16], incarnation: Incarnation(0xabcd) };

    fn key(generation: u32) -> GenerationKey {
        GenerationKey::derive(&[1; 32], &LINEAGE, generation)
    }

    proptest! {
        #[test]
        fn bodies_round_trip(beside in prop::collection::vec(any::<u8>(), 0..40), body in prop::collection::vec(any::<u8>(), 0..400)) {
            let (nonce, sealed) = key(3).seal(&beside, &body).expect("seals");
            prop_assert_eq!(sealed.len(), body.len() + 16);
            let opened = key(3).open(&nonce, &beside, &sealed);
            prop_assert_eq!(opened.as_deref(), Some(&body[..]));
        }

        /// Whatever is changed, nothing opens.
        #[test]
        fn anything_else_does_not_open(at in any::<prop::sample::Index>(), bit in 0u8..8, part in 0..3) {
            let (mut nonce, mut sealed) = key(3).seal(b"beside", b"body, body").expect("seals");
            let mut beside = b"beside".to_vec();
            let place: &mut [u8] = match part { 0 => &mut nonce, 1 => &mut sealed, _ => &mut beside };
            let at = at.index(place.len());
            place[at] ^= 1 << bit;
            prop_assert_eq!(key(3).open(&nonce, &beside, &sealed), None);
        }
    }

    #[test]
    fn keys_differ_by_secret_history_and_generation() {
        let other = LineageId { incarnation: Incarnation(1), ..LINEAGE };
        let keys = [
            key(3),
            key(4),
            GenerationKey::derive(&[2; 32], &LINEAGE, 3),
            GenerationKey::derive(&[1; 32], &other, 3),
            GenerationKey::derive(&[1; 32], &LineageId { cluster_id: [8; 16], ..LINEAGE }, 3),
        ];
        let (nonce, sealed) = keys[0].seal(b"", b"body").expect("seals");
        for (at, one) in keys.iter().enumerate() {
            assert_eq!(one.open(&nonce, b"", &sealed).is_some(), at == 0, "{one:?}");
            let same = keys.iter().filter(|other| other.id() == one.id() || other.bytes() == one.bytes());
            assert_eq!(same.count(), 1);
            let name = one.chunk_name(&[5; 32]);
            assert_eq!(keys.iter().filter(|other| other.chunk_name(&[5; 32]) == name).count(), 1);
        }
    }

    /// One nonce for two messages would give both away.
    #[test]
    fn another_body_or_another_place_has_another_nonce() {
        let nonce = |beside: &[u8], body: &[u8]| key(3).seal(beside, body).expect("seals").0;
        assert_eq!(nonce(b"a", b"body"), nonce(b"a", b"body"));
        assert_ne!(nonce(b"a", b"body"), nonce(b"a", b"bodz"));
        assert_ne!(nonce(b"a", b"body"), nonce(b"b", b"body"));
        assert_ne!(nonce(b"ab", b"ody"), nonce(b"a", b"body"));
    }

    /// A writer with another rule for nonces is refused: its messages may share one.
    #[test]
    fn a_nonce_of_another_rule_does_not_open() {
        let key = key(3);
        let nonce = [9; NONCE_BYTES];
        let sealed = key.cipher.encrypt(XNonce::from_slice(&nonce), Payload { msg: b"body", aad: b"" }).expect("seals");
        assert_eq!(key.open(&nonce, b"", &sealed), None);
    }

    #[test]
    fn derivation_is_frozen() {
        // Computed once by other implementations: the blake3 package and libsodium.
        let key = key(3);
        assert_eq!(hex(&key.id()), "9ccd1263b27a74536b6af18010074dcf");
        let (nonce, sealed) = key.seal(b"beside", b"body").expect("seals");
        assert_eq!(hex(&nonce), "882a76ab1690c7847c527bde694b2f182ae624f4b6fcac99");
        assert_eq!(hex(&sealed), "3e2a97b061ae719eaa39cd5dce17284f29dc7de8");
        assert_eq!(hex(&key.chunk_name(&[5; 32])), "4cf0289ccb2dd300a8f343abb91fd50b06acf61b5dbc21a5ea5453e086c5213c");
    }

    #[test]
    fn no_debug_text_holds_a_key() {
        let sealing = Sealing::with_key(Compression::Zstd, Arc::new(key(3)), Bytes::from_static(b"age"));
        let text = format!("{sealing:?}");
        assert!(text.contains("generation: 3") && !text.contains(&hex(key(3).bytes())), "{text}");
        assert!(!text.contains("key: ["), "{text}");
    }
}
