//! The programs that a volume has run around its snapshots and its replication.

use std::{fmt, path::PathBuf, time::Duration};

use serde::{Deserialize, Serialize};

/// `[hooks]`: programs of the user's, run by the daemon. `docs/hooks.md` says what they are told and what is asked of them.
///
/// ```toml
/// [hooks]
/// pre_snapshot = "/etc/zumastor/hooks/quiesce"
/// post_snapshot = "/etc/zumastor/hooks/resume"
/// timeout = 30
/// ```
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HooksConfig {
    /// Run before a snapshot is taken; if it fails, none is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pre_snapshot: Option<PathBuf>,
    /// Run after that, whatever came of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub post_snapshot: Option<PathBuf>,
    /// Run after a snapshot was sent or received, or could not be.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub post_replicate: Option<PathBuf>,
    /// Seconds after which one that still runs is ended.
    #[serde(default, deserialize_with = "crate::every::seconds", skip_serializing_if = "Option::is_none")]
    pub timeout: Option<u64>,
}

impl HooksConfig {
    /// Seconds that a hook may take unless it is said otherwise.
    pub const TIMEOUT: u64 = 60;
    /// Most seconds that can be said.
    pub const MAX_TIMEOUT: u64 = 86_400;

    /// Whether nothing is said.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// The program for a hook.
    pub fn program(&self, hook: HookKind) -> Option<&PathBuf> {
        match hook {
            HookKind::PreSnapshot => self.pre_snapshot.as_ref(),
            HookKind::PostSnapshot => self.post_snapshot.as_ref(),
            HookKind::PostReplicate => self.post_replicate.as_ref(),
        }
    }

    /// Whether anything is run around snapshots.
    pub fn around_snapshots(&self) -> bool {
        self.pre_snapshot.is_some() || self.post_snapshot.is_some()
    }

    /// How long a hook may take.
    pub fn timeout(&self) -> Duration {
        Duration::from_secs(self.timeout.unwrap_or(Self::TIMEOUT))
    }

    /// What is wrong: the key, and the reason.
    pub fn problem(&self) -> Option<(&'static str, String)> {
        for hook in HookKind::ALL {
            if self.program(hook).is_some_and(|program| !program.is_absolute()) {
                return Some((hook.as_str(), "the path of a hook must be absolute".to_owned()));
            }
        }
        let most = Self::MAX_TIMEOUT;
        let good = self.timeout.is_none_or(|seconds| (1..=most).contains(&seconds));
        (!good).then(|| ("timeout", format!("a hook may take 1 to {most} seconds")))
    }
}

/// Which hook.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum HookKind {
    /// Before a snapshot.
    PreSnapshot,
    /// After a snapshot, or the attempt.
    PostSnapshot,
    /// After a replication, or the attempt.
    PostReplicate,
}

impl HookKind {
    /// All there are.
    pub const ALL: [Self; 3] = [Self::PreSnapshot, Self::PostSnapshot, Self::PostReplicate];

    /// Its key in the configuration.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::PreSnapshot => "pre_snapshot",
            Self::PostSnapshot => "post_snapshot",
            Self::PostReplicate => "post_replicate",
        }
    }
}

impl fmt::Display for HookKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hooks_are_read_and_checked() {
        let read = |text: &str| toml::from_str::<HooksConfig>(text);
        let hooks = read("pre_snapshot = '/a/b'\ntimeout = 5").unwrap();
        assert!(hooks.around_snapshots() && hooks.problem().is_none() && !hooks.is_empty());
        assert_eq!(
            (hooks.timeout(), HooksConfig::default().timeout().as_secs()),
            (Duration::from_secs(5), 60)
        );
        let (key, reason) = read("post_replicate = 'b'").unwrap().problem().unwrap();
        assert!(key == "post_replicate" && reason.contains("absolute"), "{reason}");
        assert_eq!(read("timeout = 0").unwrap().problem().unwrap().0, "timeout");
        assert!(read("pre_snapshots = '/a'").is_err());
    }
}
