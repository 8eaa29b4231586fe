//! Mount options as people write them: `noatime,nosuid,commit=30`.

use rustix::mount::MountAttrFlags;

/// Options that were understood.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    /// What concerns the mount and not the file system.
    pub attributes: MountAttrFlags,
    /// Whether it is to be read only.
    pub read_only: bool,
    /// What the file system is told.
    pub parameters: Vec<(String, Option<String>)>,
}

impl Default for Options {
    fn default() -> Self {
        Self { attributes: MountAttrFlags::empty(), read_only: false, parameters: Vec::new() }
    }
}

/// Options that cannot be.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("{option:?} cannot be a mount option of a volume: {why}")]
pub struct InvalidOptions {
    option: String,
    why: &'static str,
}

impl Options {
    /// Reads options as `mount -o` takes them.
    pub fn parse(text: &str) -> Result<Self, InvalidOptions> {
        let mut options = Self::default();
        for option in text.split(',').map(str::trim).filter(|option| !option.is_empty()) {
            options.add(option)?;
        }
        Ok(options)
    }

    fn add(&mut self, option: &str) -> Result<(), InvalidOptions> {
        let refuse = |why| Err(InvalidOptions { option: option.to_owned(), why });
        if option.chars().any(|c| c.is_control() || c == '"') {
            return refuse("it holds a character that options do not have");
        }
        let atime = MountAttrFlags::MOUNT_ATTR__ATIME;
        let attributes = &mut self.attributes;
        match option {
            "ro" => self.read_only = true,
            "rw" => self.read_only = false,
            "nosuid" => attributes.insert(MountAttrFlags::MOUNT_ATTR_NOSUID),
            "suid" => attributes.remove(MountAttrFlags::MOUNT_ATTR_NOSUID),
            "nodev" => attributes.insert(MountAttrFlags::MOUNT_ATTR_NODEV),
            "dev" => attributes.remove(MountAttrFlags::MOUNT_ATTR_NODEV),
            "noexec" => attributes.insert(MountAttrFlags::MOUNT_ATTR_NOEXEC),
            "exec" => attributes.remove(MountAttrFlags::MOUNT_ATTR_NOEXEC),
            "nosymfollow" => attributes.insert(MountAttrFlags::MOUNT_ATTR_NOSYMFOLLOW),
            "symfollow" => attributes.remove(MountAttrFlags::MOUNT_ATTR_NOSYMFOLLOW),
            "nodiratime" => attributes.insert(MountAttrFlags::MOUNT_ATTR_NODIRATIME),
            "diratime" => attributes.remove(MountAttrFlags::MOUNT_ATTR_NODIRATIME),
            "noatime" => {
                attributes.remove(atime);
                attributes.insert(MountAttrFlags::MOUNT_ATTR_NOATIME);
            }
            "strictatime" => {
                attributes.remove(atime);
                attributes.insert(MountAttrFlags::MOUNT_ATTR_STRICTATIME);
            }
            "relatime" | "atime" => attributes.remove(atime),
            // What only mount(8) and service managers go by.
            "defaults" | "auto" | "noauto" | "nofail" | "_netdev" | "loop" | "nouser" => {}
            "remount" | "bind" | "rbind" | "move" | "user" | "users" | "owner" | "group" => {
                return refuse("how a volume is mounted is not for options to say");
            }
            _ if option.starts_with("x-") || option.starts_with("X-") || option.starts_with("comment=") => {}
            _ => {
                let (key, value) = match option.split_once('=') {
                    Some((key, value)) => (key, Some(value.to_owned())),
                    None => (option, None),
                };
                if key.is_empty() || key == "source" {
                    return refuse("it names nothing that a file system could be told");
                }
                self.parameters.push((key.to_owned(), value));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_told_apart() {
        let options =
            Options::parse("noatime, nosuid,defaults,x-systemd.automount,commit=30,discard,ro,rw").unwrap();
        let attributes = MountAttrFlags::MOUNT_ATTR_NOATIME | MountAttrFlags::MOUNT_ATTR_NOSUID;
        assert_eq!((options.attributes, options.read_only), (attributes, false));
        let parameters: Vec<_> =
            options.parameters.iter().map(|(key, value)| (key.as_str(), value.as_deref())).collect();
        assert_eq!(parameters, [("commit", Some("30")), ("discard", None)]);
        assert_eq!(Options::parse("").unwrap(), Options::default());
        for bad in ["bind", "a\nb", "=3", "source=/dev/sda", "remount,ro"] {
            assert!(Options::parse(bad).is_err(), "{bad:?} was taken for options");
        }
    }
}
