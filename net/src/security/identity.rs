//! The Ed25519 key that a node is.

use std::{
    fmt, fs, io,
    os::unix::fs::{OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
    str::FromStr,
};

use data_encoding::HEXLOWER_PERMISSIVE;
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer};

/// A node's identity: an Ed25519 key pair, and the self-signed certificate that carries it.
pub struct NodeKey {
    pair: rcgen::KeyPair,
    public: PublicKey,
}

/// An Ed25519 public key: what a peer is, wherever it connects from.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PublicKey(pub [u8; 32]);

/// Why a node has no identity.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum IdentityError {
    /// The file cannot be read or written.
    #[error("{}: {source}", path.display())]
    Io {
        /// The key file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Others could read the key.
    #[error("{} can be read by others (mode {mode:o}): run `chmod 600` on it", path.display())]
    Exposed {
        /// The key file.
        path: PathBuf,
        /// Its permissions.
        mode: u32,
    },
    /// The file holds no Ed25519 key.
    #[error("{} holds no Ed25519 key in PKCS#8 PEM form: restore it, or remove it to get a new identity", path.display())]
    Damaged {
        /// The key file.
        path: PathBuf,
    },
}

/// What was written is no key.
#[derive(Debug, thiserror::Error)]
#[error("{0:?} is no public key: 64 hexadecimal digits are expected")]
pub struct InvalidKey(String);

impl NodeKey {
    /// A new identity.
    pub fn generate() -> Self {
        let pair = rcgen::KeyPair::generate_for(&rcgen::PKCS_ED25519).expect("the system has randomness");
        Self::from_pair(pair).expect("a generated key is an Ed25519 key")
    }

    /// Reads the identity from a file, which must be readable by its owner alone; makes one if there is none.
    pub fn load_or_create(path: &Path) -> Result<Self, IdentityError> {
        let failed = |source| IdentityError::Io { path: path.to_owned(), source };
        match fs::read_to_string(path) {
            Ok(pem) => {
                let mode = fs::metadata(path).map_err(failed)?.permissions().mode() & 0o777;
                if mode & 0o077 != 0 {
                    return Err(IdentityError::Exposed { path: path.to_owned(), mode });
                }
                let pair = rcgen::KeyPair::from_pkcs8_pem_and_sign_algo(&pem, &rcgen::PKCS_ED25519).ok();
                pair.and_then(Self::from_pair).ok_or_else(|| IdentityError::Damaged { path: path.to_owned() })
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let key = Self::generate();
                key.save(path).map_err(failed)?;
                Ok(key)
            }
            Err(error) => Err(failed(error)),
        }
    }

    /// The public half.
    pub fn public(&self) -> PublicKey {
        self.public
    }

    /// A key for this program's own use, which only this identity can derive.
    pub(crate) fn derive(&self, context: &str) -> [u8; 32] {
        blake3::derive_key(context, self.pair.serialized_der())
    }

    /// The certificate and private key for TLS.
    pub(crate) fn certificate(&self) -> (CertificateDer<'static>, PrivatePkcs8KeyDer<'static>) {
        let parameters =
            rcgen::CertificateParams::new(vec![TLS_NAME.into()]).expect("the name is a valid DNS name");
        let certificate = parameters.self_signed(&self.pair).expect("a key can sign its own certificate");
        (certificate.der().clone(), PrivatePkcs8KeyDer::from(self.pair.serialize_der()))
    }

    /// Writes to a new file first, so that a crash never leaves half a key, and never another's.
    fn save(&self, path: &Path) -> io::Result<()> {
        let temporary = path.with_extension("new");
        let _ = fs::remove_file(&temporary);
        let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&temporary)?;
        io::Write::write_all(&mut file, self.pair.serialize_pem().as_bytes())?;
        file.sync_all()?;
        fs::hard_link(&temporary, path)?;
        fs::remove_file(&temporary)?;
        zumastor_core::files::sync_dir(path.parent().unwrap_or(Path::new(".")))
    }

    fn from_pair(pair: rcgen::KeyPair) -> Option<Self> {
        let public = PublicKey(pair.public_key_raw().try_into().ok()?);
        Some(Self { pair, public })
    }
}

impl PublicKey {
    /// The first digits, enough for people to tell keys apart.
    pub fn short(&self) -> String {
        self.to_string()[..10].to_owned()
    }
}

impl fmt::Display for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&HEXLOWER_PERMISSIVE.encode(&self.0))
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.short())
    }
}

impl fmt::Debug for NodeKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "NodeKey({:?})", self.public)
    }
}

impl FromStr for PublicKey {
    type Err = InvalidKey;

    fn from_str(text: &str) -> Result<Self, InvalidKey> {
        let bytes = HEXLOWER_PERMISSIVE.decode(text.as_bytes()).ok().and_then(|bytes| bytes.try_into().ok());
        bytes.map(Self).ok_or_else(|| InvalidKey(text.to_owned()))
    }
}

/// The name in every certificate. It identifies nobody: the key does.
pub(crate) const TLS_NAME: &str = "zumastor";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_made_once_and_kept_private() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("node.key");
        let key = NodeKey::load_or_create(&path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(NodeKey::load_or_create(&path).unwrap().public(), key.public());
        assert_eq!(key.public().to_string().parse::<PublicKey>().unwrap(), key.public());
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
        assert!(matches!(NodeKey::load_or_create(&path), Err(IdentityError::Exposed { .. })));
        fs::write(&path, "rubbish").unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        assert!(matches!(NodeKey::load_or_create(&path), Err(IdentityError::Damaged { .. })));
        assert_eq!(fs::read_to_string(&path).unwrap(), "rubbish", "a damaged key is not overwritten");
    }
}
