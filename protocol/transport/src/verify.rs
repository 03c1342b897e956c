//! Who is on the other side: a raw public key, compared and made to sign.

use std::fmt;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{WebPkiSupportedAlgorithms, verify_tls13_signature_with_raw_key};
use rustls::pki_types::{CertificateDer, ServerName, SubjectPublicKeyInfoDer, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{CertificateError, DigitallySignedStruct, DistinguishedName, PeerIncompatible, SignatureScheme};
use vsync_protocol::id::MachineKey;
use vsync_protocol::wire::spki;

/// Lets in clients whose raw key `admit` takes, once they prove to hold it.
pub(crate) struct AdmittedKeys<F> {
    admit: F,
    algorithms: WebPkiSupportedAlgorithms,
}

impl<F> AdmittedKeys<F> {
    pub(crate) const fn new(admit: F, algorithms: WebPkiSupportedAlgorithms) -> Self {
        Self { admit, algorithms }
    }
}

impl<F> fmt::Debug for AdmittedKeys<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("AdmittedKeys")
    }
}

/// Accepts one server: the one that holds the pinned key.
#[derive(Debug)]
pub(crate) struct PinnedServer {
    key: MachineKey,
    algorithms: WebPkiSupportedAlgorithms,
}

impl PinnedServer {
    pub(crate) const fn new(key: MachineKey, algorithms: WebPkiSupportedAlgorithms) -> Self {
        Self { key, algorithms }
    }
}

/// What both verifiers do alike: no TLS 1.2, raw keys only, and the signature must be by
/// the key that was presented.
macro_rules! raw_key_signatures {
    () => {
        fn verify_tls12_signature(
            &self,
            _message: &[u8],
            _cert: &CertificateDer<'_>,
            _dss: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, rustls::Error> {
            Err(PeerIncompatible::Tls12NotOffered.into())
        }

        fn verify_tls13_signature(
            &self,
            message: &[u8],
            cert: &CertificateDer<'_>,
            dss: &DigitallySignedStruct,
        ) -> Result<HandshakeSignatureValid, rustls::Error> {
            verify_tls13_signature_with_raw_key(
                message,
                &SubjectPublicKeyInfoDer::from(cert.as_ref()),
                dss,
                &self.algorithms,
            )
        }

        fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
            vec![SignatureScheme::ED25519]
        }

        fn requires_raw_public_keys(&self) -> bool {
            true
        }
    };
}

impl<F: Fn(MachineKey) -> bool + Send + Sync> ClientCertVerifier for AdmittedKeys<F> {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        match spki::decode(end_entity) {
            Some(key) if (self.admit)(key) => Ok(ClientCertVerified::assertion()),
            _ => Err(CertificateError::ApplicationVerificationFailure.into()),
        }
    }

    raw_key_signatures!();
}

impl ServerCertVerifier for PinnedServer {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _name: &ServerName<'_>,
        _ocsp: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        if spki::decode(end_entity) == Some(self.key) {
            Ok(ServerCertVerified::assertion())
        } else {
            Err(CertificateError::ApplicationVerificationFailure.into())
        }
    }

    raw_key_signatures!();
}
