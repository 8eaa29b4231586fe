//! Devices of a store that a program which was killed left standing still, and that nobody opens now.

use uuid::Uuid;
use zumastor_core::StoreError;

use super::{
    below::{BELOW, named_after},
    header::{Content, Header},
};
use crate::{
    VolumeSpec,
    thin::{
        Access,
        kernel::{prefix, thin_line},
        lock::lock,
        mapper::{Mapped, Mapper},
    },
};

/// Lets the devices of a volume go on, as those of the store `expected` where its header cannot be read. Tells how many stood still.
///
/// # Errors
/// [`StoreError::Unsupported`] if another program has the store open, which sees to that itself, and where it is not known which of two
/// states of the volume a device would go on with; what the kernel refuses.
pub(crate) fn go_on(spec: &VolumeSpec, expected: Option<Uuid>) -> Result<usize, StoreError> {
    let mapper = Mapper::open()?;
    let still = standing_still(&mapper, spec.name.as_str())?;
    if still.is_empty() {
        return Ok(0);
    }
    // Locked as long as this lives.
    let header = Header::open(&spec.snapstore);
    if let Ok((header, _)) = &header {
        lock(header.file(), &spec.snapstore)?;
    }
    let content = header.as_ref().ok().and_then(|(_, content)| content.as_ref());
    let Some(store) = content.map(|content| content.catalogue.store).or(expected) else { return Ok(0) };
    let ours = prefix(store);
    let mut gone_on = 0;
    for (name, there) in still.iter().filter(|(_, there)| there.uuid.starts_with(&ours)) {
        if *name == spec.name.as_str() && there.loaded {
            decide(&mapper, name, there, &ours, content)?;
        } else {
            mapper.resume(name)?;
        }
        gone_on += 1;
    }
    Ok(gone_on)
}

/// What stands still of a volume: what others are made of comes first.
fn standing_still(mapper: &Mapper, volume: &str) -> Result<Vec<(String, Mapped)>, StoreError> {
    let below = BELOW.map(|what| format!("{volume}:{what}"));
    let mut names = named_after(mapper, volume)?;
    names.sort_by_key(|name| std::cmp::Reverse(below.iter().position(|below| below == name)));
    let mut still = Vec::new();
    for name in names {
        if let Some(there) = mapper.find(&name)?.filter(|there| there.suspended) {
            still.push((name, there));
        }
    }
    Ok(still)
}

/// A head that was to show something else: whether that came to pass is decided by the header.
fn decide(
    mapper: &Mapper,
    name: &str,
    there: &Mapped,
    ours: &str,
    content: Option<&Content>,
) -> Result<(), StoreError> {
    let Some(content) = content else {
        return Err(StoreError::Unsupported(format!(
            "{name} stands still in the middle of being made to show something else, and the header that says whether it does cannot be \
             read: make its snapshot store available"
        )));
    };
    let access = if there.read_only { Access::ReadOnly } else { Access::Writable };
    let line =
        thin_line(mapper, &format!("{name}:pool"), content.catalogue.head.thin, content.catalogue.head.size)?;
    mapper.ensure(name, ours, &[line], access).map(drop)
}
