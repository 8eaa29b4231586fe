//! Two walks at once, for what differs; one walk, for what is there.

use std::cmp::{Ordering, Reverse};

use super::{
    ThinMetadataError,
    cursor::{Cursor, Head},
    format::data_block,
};

/// How two devices differ at a run of virtual blocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Difference {
    /// Both are mapped, to different data blocks. What these hold may be equal.
    Different,
    /// Only the left one is mapped.
    LeftOnly,
    /// Only the right one is mapped.
    RightOnly,
}

/// A run of virtual blocks at which two devices differ in one way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DiffRun {
    /// The first virtual block.
    pub begin: u64,
    /// How many; never 0.
    pub length: u64,
    /// How they differ.
    pub kind: Difference,
}

/// A run of virtual blocks that are mapped to data blocks in the same order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MappedRun {
    /// The first virtual block.
    pub begin: u64,
    /// The data block that it is mapped to.
    pub data: u64,
    /// How many; never 0.
    pub length: u64,
}

/// Where two devices differ: ascending, disjoint runs, as long as can be. Ends after an error.
#[derive(Debug)]
pub struct Diff<'a> {
    pub(super) left: Cursor<'a>,
    pub(super) right: Cursor<'a>,
    pub(super) run: Option<DiffRun>,
}

impl Diff<'_> {
    /// The next virtual block that differs.
    fn step(&mut self) -> Result<Option<(u64, Difference)>, ThinMetadataError> {
        loop {
            let (left, right) = (self.left.head(), self.right.head());
            let order = match (left, right) {
                (None, None) => return Ok(None),
                // Nodes are never changed in place, so all below is equal.
                (Some(Head::Node { block: a, .. }), Some(Head::Node { block: b, .. })) if a == b => {
                    self.left.skip();
                    self.right.skip();
                    continue;
                }
                (Some(left), Some(right)) => left.rank().cmp(&right.rank()),
                (Some(_), None) => Ordering::Less,
                (None, Some(_)) => Ordering::Greater,
            };
            match (left.filter(|_| order.is_le()), right.filter(|_| order.is_ge())) {
                (Some(Head::Entry { key, mapping }), Some(Head::Entry { mapping: other, .. })) => {
                    self.left.skip();
                    self.right.skip();
                    if data_block(mapping) != data_block(other) {
                        return Ok(Some((key, Difference::Different)));
                    }
                }
                (Some(Head::Entry { key, .. }), None) => {
                    self.left.skip();
                    return Ok(Some((key, Difference::LeftOnly)));
                }
                (None, Some(Head::Entry { key, .. })) => {
                    self.right.skip();
                    return Ok(Some((key, Difference::RightOnly)));
                }
                (left, right) => {
                    if left.is_some() {
                        self.left.enter(Some(&self.right))?;
                    }
                    if right.is_some() {
                        self.right.enter(Some(&self.left))?;
                    }
                }
            }
        }
    }

    fn next_run(&mut self) -> Result<Option<DiffRun>, ThinMetadataError> {
        while let Some((block, kind)) = self.step()? {
            match &mut self.run {
                Some(run) if run.kind == kind && run.begin + run.length == block => run.length += 1,
                run => {
                    if let Some(done) = run.replace(DiffRun { begin: block, length: 1, kind }) {
                        return Ok(Some(done));
                    }
                }
            }
        }
        Ok(self.run.take())
    }
}

impl Head {
    /// What comes first is taken first: the lower, then the taller; both where they are equal.
    fn rank(self) -> (u64, Reverse<u32>) {
        match self {
            Self::Node { low, height, .. } => (low, Reverse(height + 1)),
            Self::Entry { key, .. } => (key, Reverse(0)),
        }
    }
}

impl Iterator for Diff<'_> {
    type Item = Result<DiffRun, ThinMetadataError>;

    fn next(&mut self) -> Option<Self::Item> {
        let next = self.next_run();
        if next.is_err() {
            self.run = None;
            self.left.end();
            self.right.end();
        }
        next.transpose()
    }
}

/// What a device is mapped to: ascending, disjoint runs, as long as can be. Ends after an error.
#[derive(Debug)]
pub struct Mappings<'a> {
    pub(super) cursor: Cursor<'a>,
    pub(super) run: Option<MappedRun>,
}

impl Mappings<'_> {
    fn next_run(&mut self) -> Result<Option<MappedRun>, ThinMetadataError> {
        loop {
            match self.cursor.head() {
                None => return Ok(self.run.take()),
                Some(Head::Node { .. }) => self.cursor.enter(None)?,
                Some(Head::Entry { key, mapping }) => {
                    self.cursor.skip();
                    let data = data_block(mapping);
                    match &mut self.run {
                        Some(run) if run.begin + run.length == key && run.data + run.length == data => {
                            run.length += 1;
                        }
                        run => {
                            if let Some(done) = run.replace(MappedRun { begin: key, data, length: 1 }) {
                                return Ok(Some(done));
                            }
                        }
                    }
                }
            }
        }
    }
}

impl Iterator for Mappings<'_> {
    type Item = Result<MappedRun, ThinMetadataError>;

    fn next(&mut self) -> Option<Self::Item> {
        let next = self.next_run();
        if next.is_err() {
            self.run = None;
            self.cursor.end();
        }
        next.transpose()
    }
}
