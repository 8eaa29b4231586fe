//! What other machines are offered of a volume by NFS and Samba, as the mounts of it come and go.

use uuid::Uuid;

use crate::{
    exports::{self, Client, Export, Own, Share},
    mounts::{Plan, Report, Shown, Snapshot},
};

/// What other machines are offered of a volume.
#[derive(Debug, Clone, Default)]
pub struct Offer {
    /// Who may mount it by NFS.
    pub clients: Vec<Client>,
    /// What NFS knows the volume itself by.
    pub fsid: Option<Uuid>,
    /// Whether Samba shares it.
    pub samba: bool,
    /// Whether it is a replica.
    pub replica: bool,
    /// What was exported of it.
    pub done: Vec<Export>,
}

impl Offer {
    fn own<'a>(&self, plan: &'a Plan) -> Own<'a> {
        Own { snappath: &plan.snappath, fsid: self.fsid }
    }

    /// What is exported of what is mounted.
    pub fn exports(&self, plan: &Plan, report: &Report) -> Vec<Export> {
        if self.clients.is_empty() {
            return Vec::new();
        }
        let volume = report.shown.and(self.fsid).map(|fsid| Export { path: plan.mountpoint.clone(), fsid });
        let mounted = plan.snapshots.iter().filter(|snapshot| report.mounted.contains_key(&snapshot.number));
        let snapshot = |snapshot: &Snapshot| Export { path: plan.place(snapshot), fsid: snapshot.guid.0 };
        volume.into_iter().chain(mounted.map(snapshot)).collect()
    }

    /// Takes back what is not to be mounted any more, so that it can be unmounted.
    pub fn prune(&self, plan: &Plan) {
        let all = plan.snapshots.iter().map(|snapshot| (snapshot.number, plan.place(snapshot))).collect();
        let report = Report { shown: plan.shown.as_ref().map(|_| None), mounted: all, ..Report::default() };
        let planned = self.exports(plan, &report);
        self.withdraw(plan, &planned, self.clients.len());
    }

    /// Takes back everything.
    pub fn take_back(&self, plan: &Plan) {
        self.withdraw(plan, &[], 0);
    }

    fn withdraw(&self, plan: &Plan, wanted: &[Export], clients: usize) {
        if let Err(error) = exports::take_back(wanted, clients, &self.own(plan)) {
            tracing::warn!("{error}");
        }
    }

    /// What Samba shares.
    pub fn share(&self, plan: &Plan, report: &Report) -> Option<Share> {
        (self.samba && report.shown.is_some()).then(|| Share {
            name: plan.volume.to_string(),
            path: plan.mountpoint.clone(),
            snappath: plan.snappath.clone(),
            writable: matches!(plan.shown, Some(Shown::Head(_))) && !plan.options.read_only,
        })
    }
}
