//! What a program that was killed left standing still of a store, whether that is opened then or not.

use std::path::PathBuf;

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
        kernel::{prefix, retire, thin_line},
        mapper::{Line, Mapped, Mapper, link, node},
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
    let _alone = match Header::alone(&spec.snapstore) {
        Err(error @ StoreError::Unsupported(_)) => return Err(error),
        // The device may be gone.
        alone => alone.ok(),
    };
    let header = Header::open(&spec.snapstore);
    let content = header.as_ref().ok().and_then(|(_, content)| content.as_ref());
    let Some(store) = content.map(|content| content.catalogue.store).or(expected) else { return Ok(0) };
    let ours = prefix(store);
    let still: Vec<_> = still.into_iter().filter(|(_, there)| there.uuid.starts_with(&ours)).collect();
    for (name, there) in &still {
        if *name == spec.name.as_str() {
            head_goes_on(&mapper, name, there, &ours, content)?;
        } else {
            mapper.resume(name)?;
        }
    }
    Ok(still.len())
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

/// It may have been about to show something else: whether that came to pass is decided by the header.
fn head_goes_on(
    mapper: &Mapper,
    name: &str,
    there: &Mapped,
    ours: &str,
    content: Option<&Content>,
) -> Result<(), StoreError> {
    if let Some(content) = content {
        let head = &content.catalogue.head;
        let line = thin_line(mapper, &format!("{name}:pool"), head.thin, head.size)?;
        let access = if there.read_only { Access::ReadOnly } else { Access::Writable };
        return show(mapper, name, ours, line, access).map(drop);
    }
    if there.loaded {
        return Err(StoreError::Unsupported(format!(
            "{name} stands still in the middle of being made to show something else, and the header that says whether it does cannot be \
             read: make its snapshot store available"
        )));
    }
    mapper.resume(name)
}

/// Makes the head of a volume the thin device of a line, and gives its path. Who has another one open there goes on with that, as where it
/// is replaced in use: a program that was killed in the middle of that did not come to it.
pub(super) fn show(
    mapper: &Mapper,
    volume: &str,
    prefix: &str,
    line: Line,
    access: Access,
) -> Result<PathBuf, StoreError> {
    if let Some(there) =
        mapper.find(volume)?.filter(|there| there.users > 0 && there.uuid.starts_with(prefix))
    {
        let table = mapper.table(volume)?;
        if table.first().is_some_and(|(.., parameters)| *parameters != line.parameters) {
            if there.loaded {
                mapper.unload(volume)?;
            }
            mapper.resume(volume)?;
            retire(mapper, volume, volume)?;
        }
    }
    let made = mapper.ensure(volume, prefix, &[line], access)?;
    link(volume, made.minor)?;
    Ok(node(volume))
}
