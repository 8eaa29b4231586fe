//! The digest: the one hash that names a volume's full content, and the tree it grows on.
//!
//! | level | input | hash |
//! |---|---|---|
//! | leaf | 64 KiB of the volume; the last leaf may be shorter | BLAKE3 |
//! | node | the concatenated hashes of up to 1,024 children, left to right | BLAKE3 |
//! | root | size of the volume in bytes as `u64` little-endian, then the top node | BLAKE3, derive-key mode |
//!
//! Every volume has at least one level of nodes: a volume of at most 1,024 leaves has one node, and the node of an
//! empty volume hashes nothing. A node of the first level covers a segment. `docs/digest.md` says it for others.

mod compute;
mod tree;

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

pub use compute::{Source, digest_of};
pub use tree::{LeafTree, SegmentLeaves};

use crate::{LEAF, LEAVES_PER_SEGMENT};

/// Derive-key context of the root.
pub const ROOT_CONTEXT: &str = "zumastor volume digest v1";

/// BLAKE3 hash of a leaf or a node.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Hash(pub [u8; 32]);

impl Hash {
    /// The hash of a leaf's bytes.
    pub fn of_leaf(bytes: &[u8]) -> Self {
        Self(*blake3::hash(bytes).as_bytes())
    }

    /// The hash of a node over its children.
    pub fn of_node(children: &[Hash]) -> Self {
        let mut hasher = blake3::Hasher::new();
        children.iter().for_each(|child| {
            hasher.update(&child.0);
        });
        Self(*hasher.finalize().as_bytes())
    }

    /// The hash of a leaf of `length` zero bytes; the one of full length is computed once.
    pub fn of_zero_leaf(length: u64) -> Self {
        static FULL: std::sync::LazyLock<Hash> =
            std::sync::LazyLock::new(|| Hash::of_leaf(&[0; LEAF as usize]));
        if length == LEAF { *FULL } else { Self::of_leaf(&vec![0; length as usize]) }
    }
}

impl fmt::Debug for Hash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&blake3::Hash::from(self.0).to_hex()[..16])
    }
}

/// The digest of a volume: it names size and content.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(from = "DigestForm", into = "DigestForm")]
pub struct Digest(pub [u8; 32]);

impl Digest {
    /// The root over the nodes of the first level, one per segment.
    pub fn from_nodes(size: u64, mut nodes: Vec<Hash>) -> Self {
        if nodes.is_empty() {
            nodes.push(Hash::of_node(&[]));
        }
        while nodes.len() > 1 {
            nodes = nodes.chunks(LEAVES_PER_SEGMENT as usize).map(Hash::of_node).collect();
        }
        let mut hasher = blake3::Hasher::new_derive_key(ROOT_CONTEXT);
        hasher.update(&size.to_le_bytes()).update(&nodes[0].0);
        Self(*hasher.finalize().as_bytes())
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&blake3::Hash::from(self.0).to_hex())
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Digest {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        blake3::Hash::from_hex(text).map(|hash| Self(*hash.as_bytes())).map_err(|e| format!("no digest: {e}"))
    }
}

/// Digests are hexadecimal where people read, bytes where they do not.
struct DigestForm([u8; 32]);

impl From<Digest> for DigestForm {
    fn from(digest: Digest) -> Self {
        Self(digest.0)
    }
}

impl From<DigestForm> for Digest {
    fn from(form: DigestForm) -> Self {
        Self(form.0)
    }
}

impl Serialize for DigestForm {
    fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        if s.is_human_readable() { s.collect_str(&Digest(self.0)) } else { self.0.serialize(s) }
    }
}

impl<'de> Deserialize<'de> for DigestForm {
    fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        if d.is_human_readable() {
            let digest: Digest = String::deserialize(d)?.parse().map_err(serde::de::Error::custom)?;
            Ok(Self(digest.0))
        } else {
            <[u8; 32]>::deserialize(d).map(Self)
        }
    }
}
