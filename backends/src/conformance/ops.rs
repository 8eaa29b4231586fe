//! What may happen to a volume.

use proptest::prelude::*;

/// A write: where, how long, and what. Positions are cut to the volume.
pub type Write = (u64, u64, u8);

/// One step of a history. Snapshots are picked by position in the list, modulo its length.
#[derive(Debug, Clone)]
pub enum Op {
    /// The user writes to the head; a value of 0 punches a hole.
    Write(Write),
    /// A snapshot is taken.
    Snapshot,
    /// A snapshot is deleted.
    Delete(usize),
    /// A snapshot is deleted while somebody reads it.
    DeleteWhileRead(usize),
    /// The head is made to show a snapshot.
    Revert(usize),
    /// The head gets another size.
    Resize(u64),
    /// A snapshot is received.
    Receive(Receive),
    /// What is staged is discarded.
    Discard,
    /// The medium makes a snapshot another, and it is put right again.
    Repair(Damage),
    /// The store is closed and opened.
    Reopen,
    /// The store stops at the given one of the steps of an operation, and is opened anew.
    Crash(usize, Box<Op>),
}

/// What a medium does to a snapshot.
#[derive(Debug, Clone)]
pub struct Damage {
    /// Which snapshot.
    pub pick: usize,
    /// Where its content becomes another; nowhere if that is empty.
    pub write: Write,
    /// Where its leaf tree becomes another, if it does.
    pub tree: Option<u64>,
    /// Whether a head that shows it has the same bad bytes.
    pub head: bool,
}

/// A snapshot that is received: what it is built upon, and how it differs.
#[derive(Debug, Clone)]
pub struct Receive {
    /// The base, if there is one to pick.
    pub base: Option<usize>,
    /// The size it has.
    pub size: u64,
    /// What is written over the base's content.
    pub writes: Vec<Write>,
    /// How it comes.
    pub way: Way,
}

/// How a snapshot is received.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// All at once.
    Whole,
    /// In two parts, with the store opened anew between them.
    Resumed,
    /// The first part only: it stays staged.
    Broken,
    /// Committed under a wrong digest at first.
    WrongDigest,
}

const LARGEST: u64 = 600 << 10;

fn size() -> impl Strategy<Value = u64> {
    prop_oneof![
        2 => 0..LARGEST,
        1 => (0..LARGEST / 4096).prop_map(|pages| pages * 4096),
        1 => (0..LARGEST / 65_536).prop_map(|leaves| leaves * 65_536),
    ]
}

fn write() -> impl Strategy<Value = Write> {
    let place = prop_oneof![
        (0..LARGEST, 1u64..20_000),
        (0..LARGEST / 4096, 1u64..20).prop_map(|(page, pages)| (page * 4096, pages * 4096)),
        (0..LARGEST / 65_536, 1u64..3).prop_map(|(leaf, leaves)| (leaf * 65_536, leaves * 65_536)),
    ];
    (place, prop_oneof![1 => Just(0u8), 2 => any::<u8>()])
        .prop_map(|((at, length), value)| (at, length, value))
}

fn receive() -> impl Strategy<Value = Receive> {
    let way = prop_oneof![
        3 => Just(Way::Whole),
        2 => Just(Way::Resumed),
        1 => Just(Way::Broken),
        1 => Just(Way::WrongDigest),
    ];
    (
        prop::option::weighted(0.8, any::<usize>()),
        size(),
        prop::collection::vec(write(), 0..5),
        way,
        any::<bool>(),
    )
        .prop_map(|(base, size, writes, way, same)| Receive {
            base,
            // Most volumes keep their size: 0 stands for the base's.
            size: if same { 0 } else { size },
            writes,
            way,
        })
}

fn damage() -> impl Strategy<Value = Damage> {
    (any::<usize>(), write(), prop::option::weighted(0.4, any::<u64>()), any::<bool>())
        .prop_map(|(pick, write, tree, head)| Damage { pick, write, tree, head })
}

fn op() -> impl Strategy<Value = Op> {
    let simple = prop_oneof![
        6 => write().prop_map(Op::Write),
        5 => Just(Op::Snapshot),
        3 => any::<usize>().prop_map(Op::Delete),
        1 => any::<usize>().prop_map(Op::DeleteWhileRead),
        3 => any::<usize>().prop_map(Op::Revert),
        1 => size().prop_map(Op::Resize),
        4 => receive().prop_map(Op::Receive),
        1 => Just(Op::Discard),
        2 => damage().prop_map(Op::Repair),
        1 => Just(Op::Reopen),
    ];
    prop_oneof![
        4 => simple.clone(),
        1 => (0usize..20, simple).prop_map(|(step, op)| Op::Crash(step, Box::new(op))),
    ]
}

/// Histories of a volume that begins with a size.
pub fn history() -> impl Strategy<Value = Vec<Op>> {
    (size(), prop::collection::vec(op(), 1..24)).prop_map(|(size, mut ops)| {
        ops.insert(0, Op::Resize(size));
        ops
    })
}
