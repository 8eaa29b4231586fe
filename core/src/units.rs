//! The sizes that Zumastor counts in, and how people write them.

use std::{fmt, ops::Range};

use serde::{Deserialize, Serialize};

/// Bytes in a page: the finest unit that a transfer distinguishes.
pub const PAGE: u64 = 4 << 10;
/// Bytes in a leaf: the unit of the digest, whatever a backend's chunk size.
pub const LEAF: u64 = 64 << 10;
/// Bytes in a segment: the unit of scheduling and resumption.
pub const SEGMENT: u64 = 64 << 20;
/// Leaves in a segment, which is also the fan-out of the digest's tree.
pub const LEAVES_PER_SEGMENT: u64 = SEGMENT / LEAF;

/// The position of a leaf in a volume: leaf `i` starts at byte `i * LEAF`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct LeafIndex(pub u64);

impl LeafIndex {
    /// The leaf that holds the byte at `offset`.
    pub fn containing(offset: u64) -> Self {
        Self(offset / LEAF)
    }

    /// Number of leaves in a volume of `size` bytes; the last may be shorter than the others.
    pub fn count(size: u64) -> u64 {
        size.div_ceil(LEAF)
    }

    /// The bytes of this leaf in a volume of `size` bytes. Empty when the leaf lies beyond the end.
    pub fn range(self, size: u64) -> Range<u64> {
        clamp(self.0, LEAF, size)
    }

    /// The segment this leaf belongs to.
    pub fn segment(self) -> SegmentIndex {
        SegmentIndex(self.0 / LEAVES_PER_SEGMENT)
    }
}

/// The position of a segment in a volume: segment `i` starts at byte `i * SEGMENT`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct SegmentIndex(pub u64);

impl SegmentIndex {
    /// The segment that holds the byte at `offset`.
    pub fn containing(offset: u64) -> Self {
        Self(offset / SEGMENT)
    }

    /// Number of segments in a volume of `size` bytes; the last may be shorter than the others.
    pub fn count(size: u64) -> u64 {
        size.div_ceil(SEGMENT)
    }

    /// The bytes of this segment in a volume of `size` bytes. Empty when it lies beyond the end.
    pub fn range(self, size: u64) -> Range<u64> {
        clamp(self.0, SEGMENT, size)
    }

    /// The leaves of this segment in a volume of `size` bytes, as leaf positions in the volume.
    pub fn leaves(self, size: u64) -> Range<u64> {
        let start = self.0.saturating_mul(LEAVES_PER_SEGMENT);
        let count = LeafIndex::count(size);
        start.min(count)..start.saturating_add(LEAVES_PER_SEGMENT).min(count)
    }

    /// The position of the first leaf of this segment.
    pub fn first_leaf(self) -> u64 {
        self.0 * LEAVES_PER_SEGMENT
    }
}

fn clamp(index: u64, unit: u64, size: u64) -> Range<u64> {
    let start = index.saturating_mul(unit).min(size);
    start..start.saturating_add(unit).min(size)
}

/// Whether every byte is zero. Runs at memory speed: the compiler turns the inner loop into vector code.
pub fn is_zero(bytes: &[u8]) -> bool {
    bytes.chunks(1024).all(|chunk| chunk.iter().fold(0, |seen, byte| seen | byte) == 0)
}

/// A number of bytes, shown for people: `17 B`, `1.5 MiB`, `4.00 GiB`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HumanBytes(pub u64);

impl fmt::Display for HumanBytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const UNITS: [&str; 6] = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];
        let mut unit = 0;
        let mut value = self.0 as f64;
        while value >= 1024.0 && unit + 1 < UNITS.len() {
            value /= 1024.0;
            unit += 1;
        }
        let text = match (unit, value) {
            (0, _) => format!("{} B", self.0),
            (_, v) if v >= 99.95 => format!("{v:.0} {}", UNITS[unit]),
            (_, v) if v >= 9.995 => format!("{v:.1} {}", UNITS[unit]),
            (_, v) => format!("{v:.2} {}", UNITS[unit]),
        };
        f.pad(&text)
    }
}

/// What is wrong with a size of blocks or chunks.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("{bytes} is no size for blocks or chunks: it must be a power of two and larger than 512 bytes")]
pub struct InvalidChunk {
    /// The size.
    pub bytes: u64,
}

/// Checks a size of blocks or chunks.
pub fn check_chunk(bytes: u64) -> Result<u64, InvalidChunk> {
    match bytes.is_power_of_two() && bytes > 512 {
        true => Ok(bytes),
        false => Err(InvalidChunk { bytes }),
    }
}

/// A number of bytes as people write it in a file: read from a number or from a text such as `10G`, written as the shortest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct ByteSize(pub u64);

impl fmt::Display for ByteSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let units = [(40, "T"), (30, "G"), (20, "M"), (10, "K")];
        let whole = |(shift, _): &&(u32, &str)| self.0 >> shift > 0 && self.0.trailing_zeros() >= *shift;
        match units.iter().find(whole) {
            Some((shift, unit)) => f.pad(&format!("{}{unit}", self.0 >> shift)),
            None => self.0.fmt(f),
        }
    }
}

impl Serialize for ByteSize {
    fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for ByteSize {
    fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        struct Sized;

        impl serde::de::Visitor<'_> for Sized {
            type Value = ByteSize;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a size, such as 4096 or \"10G\"")
            }

            fn visit_u64<E: serde::de::Error>(self, bytes: u64) -> Result<ByteSize, E> {
                Ok(ByteSize(bytes))
            }

            fn visit_i64<E: serde::de::Error>(self, bytes: i64) -> Result<ByteSize, E> {
                u64::try_from(bytes).map(ByteSize).map_err(|_| E::custom("a size is not negative"))
            }

            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<ByteSize, E> {
                parse_size(text).map(ByteSize).map_err(E::custom)
            }
        }
        d.deserialize_any(Sized)
    }
}

/// Bytes that may be written as a [`ByteSize`] is.
pub(crate) fn bytes<'de, D: serde::Deserializer<'de>>(d: D) -> Result<Option<u64>, D::Error> {
    Ok(Option::<ByteSize>::deserialize(d)?.map(|ByteSize(bytes)| bytes))
}

/// What was written is no size.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("{text:?} is not a size: write bytes, or a number with K, M, G or T (powers of 1024), such as 512M")]
pub struct InvalidSize {
    /// What was written.
    pub text: String,
}

/// Reads a size as people write it: `4096`, `512M`, `1.5G`, `2TiB`. Units are powers of 1024.
pub fn parse_size(text: &str) -> Result<u64, InvalidSize> {
    let invalid = || InvalidSize { text: text.to_owned() };
    let trimmed = text.trim();
    let digits = trimmed.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(trimmed.len());
    let (number, unit) = trimmed.split_at(digits);
    let shift = match unit.trim().to_ascii_lowercase().as_str() {
        "" | "b" => 0,
        "k" | "kb" | "kib" => 10,
        "m" | "mb" | "mib" => 20,
        "g" | "gb" | "gib" => 30,
        "t" | "tb" | "tib" => 40,
        _ => return Err(invalid()),
    };
    if number.contains('.') {
        let value = number.parse::<f64>().map_err(|_| invalid())? * (1u64 << shift) as f64;
        return if value.is_finite() && value < u64::MAX as f64 { Ok(value as u64) } else { Err(invalid()) };
    }
    let value = number.parse::<u64>().map_err(|_| invalid())?;
    value.checked_mul(1 << shift).ok_or_else(invalid)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_as_people_write_them() {
        assert_eq!(parse_size("4096"), Ok(4096));
        assert_eq!(parse_size("512M"), Ok(512 << 20));
        assert_eq!(parse_size("1.5g"), Ok(3 << 29));
        assert_eq!(parse_size("2 TiB"), Ok(2 << 40));
        for bad in ["", "M", "12Q", "-1", "99999999999T", "1.2.3"] {
            assert!(parse_size(bad).is_err(), "{bad:?} was taken for a size");
        }
    }

    #[test]
    fn chunks_are_powers_of_two_larger_than_512() {
        for good in [1024, 4096, 1 << 30] {
            assert_eq!(check_chunk(good), Ok(good));
        }
        for bytes in [0, 1, 512, 513, 3000, (1 << 20) - 1] {
            assert_eq!(check_chunk(bytes), Err(InvalidChunk { bytes }));
        }
    }

    #[test]
    fn sizes_in_files_are_read_back_as_they_are_written() {
        for (bytes, text) in [
            (0, "0"),
            (1000, "1000"),
            (1024, "1K"),
            (512 << 20, "512M"),
            (10 << 30, "10G"),
            (1536 << 30, "1536G"),
        ] {
            assert_eq!(ByteSize(bytes).to_string(), text);
            assert_eq!(parse_size(text), Ok(bytes));
        }
    }

    #[test]
    fn sizes_are_shown_for_people() {
        for (bytes, shown) in [(0, "0 B"), (1023, "1023 B"), (1536, "1.50 KiB"), (4 << 30, "4.00 GiB")] {
            assert_eq!(HumanBytes(bytes).to_string(), shown);
        }
    }

    #[test]
    fn the_last_leaf_and_segment_are_short() {
        let size = SEGMENT + LEAF + 10;
        assert_eq!(LeafIndex::count(size), LEAVES_PER_SEGMENT + 2);
        assert_eq!(LeafIndex(LEAVES_PER_SEGMENT + 1).range(size), SEGMENT + LEAF..size);
        assert_eq!(SegmentIndex(1).range(size), SEGMENT..size);
        assert_eq!(SegmentIndex(1).leaves(size), LEAVES_PER_SEGMENT..LEAVES_PER_SEGMENT + 2);
        assert!(SegmentIndex(2).range(size).is_empty());
        assert!(SegmentIndex(u64::MAX).range(size).is_empty());
        assert!(SegmentIndex(u64::MAX).leaves(size).is_empty());
    }

    #[test]
    fn one_set_bit_is_not_zero() {
        let mut bytes = vec![0; 70_000];
        assert!(is_zero(&bytes) && is_zero(&[]));
        bytes[69_999] = 1;
        assert!(!is_zero(&bytes));
    }
}
