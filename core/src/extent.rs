//! Byte ranges of a volume and what they hold.

use std::ops::Range;

/// What a range of a changed volume holds now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ExtentKind {
    /// Bytes that must be read.
    Data,
    /// Nothing but zeros, known without reading.
    Zero,
}

/// A non-empty byte range of a volume.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Extent {
    /// The bytes, as positions in the volume.
    pub range: Range<u64>,
    /// What they hold.
    pub kind: ExtentKind,
}

impl Extent {
    /// A range whose bytes must be read.
    pub fn data(range: Range<u64>) -> Self {
        Self { range, kind: ExtentKind::Data }
    }

    /// A range of zeros.
    pub fn zero(range: Range<u64>) -> Self {
        Self { range, kind: ExtentKind::Zero }
    }

    /// Length in bytes.
    pub fn len(&self) -> u64 {
        self.range.end - self.range.start
    }

    /// Whether the range is empty, which no extent of a [`Changes`] is.
    pub fn is_empty(&self) -> bool {
        self.range.is_empty()
    }
}

/// Extents in ascending order, disjoint, none empty; neighbours of one kind are merged.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Changes(Vec<Extent>);

impl Changes {
    /// No change.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds an extent behind all others; an empty one is left out.
    ///
    /// # Panics
    /// When it begins before the end of the last one: extents come in ascending order.
    pub fn push(&mut self, extent: Extent) {
        if extent.is_empty() {
            return;
        }
        if let Some(last) = self.0.last_mut() {
            assert!(extent.range.start >= last.range.end, "extents out of order: {last:?} then {extent:?}");
            if last.range.end == extent.range.start && last.kind == extent.kind {
                last.range.end = extent.range.end;
                return;
            }
        }
        self.0.push(extent);
    }

    /// The extents.
    pub fn iter(&self) -> std::slice::Iter<'_, Extent> {
        self.0.iter()
    }

    /// Whether nothing changed.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Bytes that differ or may differ.
    pub fn bytes(&self) -> u64 {
        self.0.iter().map(Extent::len).sum()
    }

    /// The part of every extent that lies in `window`.
    pub fn within(&self, window: &Range<u64>) -> impl Iterator<Item = Extent> + use<'_> {
        let window = window.clone();
        let first = self.0.partition_point(|extent| extent.range.end <= window.start);
        self.0[first..].iter().take_while(move |extent| extent.range.start < window.end).map({
            let window = window.clone();
            move |extent| Extent {
                range: extent.range.start.max(window.start)..extent.range.end.min(window.end),
                kind: extent.kind,
            }
        })
    }
}

impl<'a> IntoIterator for &'a Changes {
    type Item = &'a Extent;
    type IntoIter = std::slice::Iter<'a, Extent>;
    fn into_iter(self) -> Self::IntoIter {
        self.0.iter()
    }
}

impl FromIterator<Extent> for Changes {
    fn from_iter<I: IntoIterator<Item = Extent>>(extents: I) -> Self {
        let mut changes = Self::new();
        extents.into_iter().for_each(|extent| changes.push(extent));
        changes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neighbours_merge_and_windows_cut() {
        let changes: Changes = [
            Extent::data(0..10),
            Extent::data(10..20),
            Extent::zero(20..30),
            Extent::data(40..50),
            Extent::data(50..50),
        ]
        .into_iter()
        .collect();
        assert_eq!(changes.iter().count(), 3);
        assert_eq!(changes.bytes(), 40);
        let cut: Vec<_> = changes.within(&(15..45)).collect();
        assert_eq!(cut, [Extent::data(15..20), Extent::zero(20..30), Extent::data(40..45)]);
        assert_eq!(changes.within(&(30..40)).count(), 0);
    }

    #[test]
    #[should_panic(expected = "out of order")]
    fn extents_come_in_order() {
        let mut changes = Changes::new();
        changes.push(Extent::data(10..20));
        changes.push(Extent::data(5..15));
    }
}
