//! Beginning to receive a snapshot, taking it up again, and giving it up.

use std::{
    collections::BTreeSet,
    fs::{self, OpenOptions, Permissions},
    io,
    os::unix::fs::PermissionsExt,
    path::Path,
    sync::{Arc, atomic::Ordering},
};

use zumastor_core::{StagePlan, StoreError, digest::LeafTree};

use super::{
    Mode,
    body::{Body, ImageBody, StagedReader},
    inner::{Inner, State},
    layered::LayerBody,
    layout::{Described, failed, sync_dir, sync_together},
    reflink::new_file,
    staging::{FileStaging, PlanFile, Progress, Staged},
};
use crate::bulk::BulkFile;

impl Inner {
    pub(crate) fn stage(self: &Arc<Self>, plan: StagePlan) -> Result<FileStaging, StoreError> {
        let number = plan.record.number();
        let known = |state: &State| state.staged.as_ref().is_some_and(|s| s.plan.plan == plan);
        // Computing the base's tree may take long, and must not keep others from the store.
        let fresh = !known(&self.state());
        let base = plan.base.filter(|_| fresh).map(|base| self.leaves(base)).transpose()?;
        let _control = self.control()?;
        let staged = {
            let state = self.state();
            if state.has(number) {
                return Err(StoreError::Exists { number });
            }
            state.staged.clone()
        };
        let staging = match staged {
            Some(staged) if staged.plan.plan == plan => self.take_up(staged.plan)?,
            Some(staged) => return Err(StoreError::StagingBusy { number: staged.plan.plan.record.number() }),
            None => self.begin_staging(plan, base.as_deref())?,
        };
        let mut state = self.state();
        state.staged = Some(Staged { plan: staging.plan_file().clone() });
        Ok(staging.of_generation(self.staging_generation.fetch_add(1, Ordering::AcqRel) + 1))
    }

    fn begin_staging(
        self: &Arc<Self>,
        plan: StagePlan,
        base: Option<&LeafTree>,
    ) -> Result<FileStaging, StoreError> {
        // What an earlier attempt left that failed in its last step.
        self.clear_staging()?;
        let dir = self.layout.fresh("staging")?;
        let (layer, parent) = match self.header.mode {
            Mode::Reflink => (None, None),
            Mode::Layered => {
                let parent = plan.base.map(|base| self.kept(base)).transpose()?.and_then(|kept| kept.layer);
                (Some(self.state().layers.allocate()), parent)
            }
        };
        let plan = PlanFile { plan, layer, parent };
        let begun = self.fill_staging(&dir, &plan, base).and_then(|()| self.take_up(plan));
        if begun.is_err() && !self.faults.stopped() {
            let _ = fs::remove_dir_all(&dir);
            let _ = self.clear_staging();
            let _ = layer.map(|layer| fs::remove_file(self.layout.data(layer)));
        }
        begun
    }

    /// Takes away a staging that nobody knows of.
    fn clear_staging(&self) -> Result<(), StoreError> {
        if !self.layout.staging().exists() {
            return Ok(());
        }
        self.layout.bury(&self.layout.staging(), "staging")?;
        self.layout.empty_grave("staging");
        Ok(())
    }

    fn fill_staging(&self, dir: &Path, plan: &PlanFile, base: Option<&LeafTree>) -> Result<(), StoreError> {
        let size = plan.plan.record.size;
        let body: Box<dyn Body> = match plan.layer {
            Some(layer) => {
                let path = self.layout.data(layer);
                let data = new_file(&path)?;
                data.set_len(size).map_err(failed("resizing", &path))?;
                let base = plan.parent.map(|parent| self.layer_chain(parent)).transpose()?;
                Box::new(LayerBody::new(data, path, size, base, None)?)
            }
            None => {
                let path = dir.join("image");
                let file = match plan.plan.base {
                    Some(base) => self.clone_snapshot(base, &path)?,
                    None => new_file(&path)?,
                };
                file.set_len(size).map_err(failed("resizing", &path))?;
                Box::new(ImageBody { file: BulkFile::new(file, &path), path })
            }
        };
        self.faults.at("stage: after cloning")?;
        let path = dir.join("leaves");
        let leaves = match base {
            Some(base) => {
                let leaves = base.copy(&path, size)?;
                leaves.rehash_end(base.size(), &StagedReader { body: &*body, size })?;
                leaves
            }
            None => LeafTree::create(&path, size)?,
        };
        body.sync()?;
        leaves.sync()?;
        let (progress_path, plan_path) = (dir.join("progress"), dir.join("plan"));
        let progress = Progress { finished: BTreeSet::new(), runs: body.runs() };
        let (progress, planned) = (progress.write_new(&progress_path)?, plan.write_new(&plan_path)?);
        let data_path = self.layout.data_dir();
        let data = fs::File::open(&data_path).map_err(failed("opening", &data_path))?;
        sync_together(dir, &[(&progress, &progress_path), (&planned, &plan_path), (&data, &data_path)])?;
        let place = self.layout.staging();
        self.faults.at("stage: before rename")?;
        fs::rename(dir, &place).map_err(failed("making", &place))?;
        self.faults.at("stage: after rename")?;
        sync_dir(self.layout.root())
    }

    /// Opens what is staged.
    fn take_up(self: &Arc<Self>, plan: PlanFile) -> Result<FileStaging, StoreError> {
        let dir = self.layout.staging();
        let damaged = |what: &str| StoreError::Damaged { path: dir.clone(), what: what.to_owned() };
        let size = plan.plan.record.size;
        let progress =
            Progress::load(&dir.join("progress"))?.ok_or_else(|| damaged("the progress is missing"))?;
        let path = dir.join("leaves");
        let mut leaves = LeafTree::open(&path)?;
        if leaves.digest().is_some() {
            // Sealed by a commit that did not come to its end.
            let copy = dir.join("leaves.new");
            leaves.copy(&copy, size)?.sync()?;
            fs::rename(&copy, &path).map_err(failed("making", &path))?;
            sync_dir(&dir)?;
            leaves = LeafTree::open(&path)?;
        }
        let open = |path: &Path| {
            let file = OpenOptions::new().read(true).write(true).open(path);
            file.map_err(failed("opening", path))
        };
        let body: Box<dyn Body> = match plan.layer {
            Some(layer) => {
                let path = self.layout.data(layer);
                let base = plan.parent.map(|parent| self.layer_chain(parent)).transpose()?;
                Box::new(LayerBody::new(open(&path)?, path, size, base, Some(&progress.runs))?)
            }
            None => {
                let path = dir.join("image");
                fs::set_permissions(&path, Permissions::from_mode(0o600))
                    .map_err(failed("opening", &path))?;
                Box::new(ImageBody { file: BulkFile::new(open(&path)?, &path), path })
            }
        };
        Ok(FileStaging::new(self.clone(), plan, leaves, body, progress))
    }

    pub(crate) fn discard_staged(&self) -> Result<(), StoreError> {
        let _control = self.control()?;
        let Some(staged) = self.state().staged.clone() else { return Ok(()) };
        self.faults.at("discard: before rename")?;
        self.or_broken(self.layout.bury(&self.layout.staging(), "staging"))?;
        self.state().staged = None;
        self.staging_generation.fetch_add(1, Ordering::AcqRel);
        self.faults.at("discard: after rename")?;
        self.layout.empty_grave("staging");
        if let Some(layer) = staged.plan.layer {
            // A commit that failed may have described the layer already. It must not outlive what it is built upon.
            let path = self.layout.layer(layer);
            match fs::remove_file(&path) {
                Err(e) if e.kind() != io::ErrorKind::NotFound => {
                    return self.or_broken(Err(failed("removing", &path)(e)));
                }
                _ => {}
            }
            self.remove_data(layer);
        }
        self.tidy_layers()
    }
}
