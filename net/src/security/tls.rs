//! TLS 1.3 with pinned keys both ways: no certificate authority, no trust on first use.

use std::{
    collections::HashMap,
    fmt,
    sync::{Arc, RwLock},
};

use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, Error, SignatureScheme,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    crypto::{CryptoProvider, WebPkiSupportedAlgorithms, aws_lc_rs, verify_tls13_signature},
    pki_types::{CertificateDer, ServerName, UnixTime},
    server::danger::{ClientCertVerified, ClientCertVerifier},
};
use zumastor_core::NodeName;

use super::{NodeKey, PublicKey};
use crate::wire::ALPN;

/// The keys that this node trusts.
#[derive(Debug, Default)]
pub(crate) struct Trust(RwLock<HashMap<PublicKey, NodeName>>);

impl Trust {
    pub fn set(&self, peers: impl Iterator<Item = (PublicKey, NodeName)>) {
        *self.0.write().expect("no panic while locked") = peers.collect();
    }

    pub fn name(&self, key: &PublicKey) -> Option<NodeName> {
        self.0.read().expect("no panic while locked").get(key).cloned()
    }
}

/// Accepts the nodes in `trust`.
pub(crate) fn server_config(key: &NodeKey, trust: Arc<Trust>) -> Result<QuicServerConfig, Error> {
    let (certificate, private) = key.certificate();
    let pinned = Pinned::new(Accept::Trusted(trust));
    let mut config = rustls::ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_client_cert_verifier(Arc::new(pinned))
        .with_single_cert(vec![certificate], private.into())?;
    config.alpn_protocols = vec![ALPN.to_vec()];
    // Every connection proves both keys anew.
    config.send_tls13_tickets = 0;
    config.max_early_data_size = 0;
    QuicServerConfig::try_from(config).map_err(|error| Error::General(error.to_string()))
}

/// Connects to exactly the node with this key.
pub(crate) fn client_config(key: &NodeKey, peer: PublicKey) -> Result<QuicClientConfig, Error> {
    let (certificate, private) = key.certificate();
    let mut config = rustls::ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Pinned::new(Accept::Only(peer))))
        .with_client_auth_cert(vec![certificate], private.into())?;
    config.alpn_protocols = vec![ALPN.to_vec()];
    config.resumption = rustls::client::Resumption::disabled();
    config.enable_early_data = false;
    QuicClientConfig::try_from(config).map_err(|error| Error::General(error.to_string()))
}

/// The Ed25519 key in a certificate, if that is what it holds.
pub(crate) fn peer_key(certificate: &CertificateDer<'_>) -> Option<PublicKey> {
    let parsed = webpki::EndEntityCert::try_from(certificate).ok()?;
    let spki = parsed.subject_public_key_info();
    spki.as_ref().strip_prefix(ED25519_SPKI).and_then(|key| key.try_into().ok()).map(PublicKey)
}

/// Checks a certificate by its key alone. The signature of the handshake proves that the peer has the private half.
struct Pinned {
    accept: Accept,
    algorithms: WebPkiSupportedAlgorithms,
}

enum Accept {
    Trusted(Arc<Trust>),
    Only(PublicKey),
}

impl Pinned {
    fn new(accept: Accept) -> Self {
        Self { accept, algorithms: provider().signature_verification_algorithms }
    }

    fn check(&self, certificate: &CertificateDer<'_>) -> Result<(), Error> {
        let key = peer_key(certificate).ok_or(CertificateError::BadEncoding)?;
        let known = match &self.accept {
            Accept::Trusted(trust) => trust.name(&key).is_some(),
            Accept::Only(peer) => key == *peer,
        };
        if known {
            return Ok(());
        }
        if let Accept::Trusted(_) = self.accept {
            tracing::warn!(%key, "refused a node whose key is not known here");
        }
        Err(CertificateError::ApplicationVerificationFailure.into())
    }

    fn signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, certificate, signature, &self.algorithms)
    }
}

impl fmt::Debug for Pinned {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Pinned")
    }
}

impl ServerCertVerifier for Pinned {
    fn verify_server_cert(
        &self,
        certificate: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _name: &ServerName<'_>,
        _ocsp: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        self.check(certificate).map(|()| ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(Error::General("only TLS 1.3 is spoken".into()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ED25519]
    }
}

impl ClientCertVerifier for Pinned {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        certificate: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        self.check(certificate).map(|()| ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(Error::General("only TLS 1.3 is spoken".into()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ED25519]
    }
}

/// AES-128-GCM first: the fastest where the processor has AES, which is everywhere that matters here.
fn provider() -> Arc<CryptoProvider> {
    let mut provider = aws_lc_rs::default_provider();
    provider.cipher_suites = vec![
        aws_lc_rs::cipher_suite::TLS13_AES_128_GCM_SHA256,
        aws_lc_rs::cipher_suite::TLS13_CHACHA20_POLY1305_SHA256,
    ];
    Arc::new(provider)
}

/// DER of an Ed25519 SubjectPublicKeyInfo before the key itself (RFC 8410, section 4).
const ED25519_SPKI: &[u8] = &[0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00];
