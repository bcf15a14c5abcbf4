//! Client certificates: a client needs one of a configured CA and, if names are configured, with one of these names.
//!
//! Owns the CA bundle, its reloads and the check. Refusing the connection is up to `webhook::server`.

use std::collections::BTreeSet;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use arc_swap::ArcSwap;
use rustls::client::danger::HandshakeSignatureValid;
use rustls::crypto::{CryptoProvider, ring};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, Error, OtherError, RootCertStore, SignatureScheme,
};
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

/// Interval at which the bundle is read; a change takes effect after at most this time.
const POLL: Duration = Duration::from_secs(1);

/// The clients that may connect.
#[derive(Debug)]
pub struct Clients {
    verifier: ArcSwap<Arc<dyn ClientCertVerifier>>,
    names: BTreeSet<String>,
    file: PathBuf,
    provider: Arc<CryptoProvider>,
}

/// Refusal of a certificate that a configured CA signed, but for a name that is not configured.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("its certificate is made out to {found}, and --client-name lists {listed}")]
pub struct OtherName {
    found: String,
    listed: String,
}

impl Clients {
    /// Accepts clients with a certificate of a CA in `file` and, unless `names` is empty, with one of these names.
    ///
    /// # Errors
    ///
    /// If `file` cannot be read, is not PEM, or holds no CA certificate.
    pub fn read(file: &Path, names: impl IntoIterator<Item = String>) -> anyhow::Result<Clients> {
        let provider = Arc::new(ring::default_provider());
        let bundle = std::fs::read(file).with_context(|| file.display().to_string())?;
        let verifier = verifier(&bundle, &provider).with_context(|| file.display().to_string())?;
        let verifier = ArcSwap::from_pointee(verifier);
        Ok(Clients { verifier, names: names.into_iter().collect(), file: file.to_owned(), provider })
    }

    /// Follows the file, for ever. A file that cannot be used leaves the last valid bundle in force.
    pub async fn follow(&self) {
        let (mut seen, mut complained) = (None, None);
        let mut ticks = tokio::time::interval(POLL);
        loop {
            ticks.tick().await;
            let file = self.file.clone();
            let read = tokio::task::spawn_blocking(move || std::fs::read(file)).await;
            let bundle = read.expect("reading a file does not panic");
            let changed = match bundle {
                Ok(bundle) if seen.as_ref() == Some(&bundle) => Ok(None),
                Ok(bundle) => {
                    let verifier = verifier(&bundle, &self.provider).map_err(|error| format!("{error:#}"));
                    seen = Some(bundle);
                    verifier.map(Some)
                }
                Err(error) => Err(error.to_string()),
            };
            match changed {
                Ok(None) => {}
                Ok(Some(verifier)) => {
                    complained = None;
                    self.verifier.store(Arc::new(verifier));
                    tracing::info!(file = %self.file.display(), "CA of clients loaded");
                }
                // Logged once, not at every poll.
                Err(error) if complained.as_ref() != Some(&error) => {
                    tracing::error!("{}: {error}; the last good CA of clients stays", self.file.display());
                    complained = Some(error);
                }
                Err(_) => {}
            }
        }
    }

    fn expect_name(&self, certificate: &CertificateDer<'_>) -> Result<(), Error> {
        if self.names.is_empty() {
            return Ok(());
        }
        let found = names(certificate).ok_or(Error::InvalidCertificate(CertificateError::BadEncoding))?;
        if found.iter().any(|name| self.names.contains(name)) {
            return Ok(());
        }
        let other = OtherName { found: listed(&found), listed: listed(&self.names) };
        Err(Error::InvalidCertificate(CertificateError::Other(OtherError(Arc::new(other)))))
    }
}

/// Names listed in one message at most.
const MAX_LISTED: usize = 8;

fn listed<'n>(names: impl IntoIterator<Item = &'n String>) -> String {
    let names: Vec<String> = names.into_iter().take(MAX_LISTED).map(|name| format!("{name:.64?}")).collect();
    if names.is_empty() { "nobody".to_owned() } else { names.join(", ") }
}

/// The common name and the DNS names of a certificate; `None` if it cannot be parsed.
fn names(certificate: &CertificateDer<'_>) -> Option<Vec<String>> {
    let (_, parsed) = X509Certificate::from_der(certificate).ok()?;
    let common = parsed.subject().iter_common_name().filter_map(|name| name.as_str().ok());
    let alternative = parsed.subject_alternative_name().ok()?;
    let alternative = alternative.iter().flat_map(|extension| &extension.value.general_names);
    let dns = alternative.filter_map(|name| match name {
        GeneralName::DNSName(name) => Some(*name),
        _ => None,
    });
    Some(common.chain(dns).map(str::to_owned).collect())
}

fn verifier(bundle: &[u8], provider: &Arc<CryptoProvider>) -> anyhow::Result<Arc<dyn ClientCertVerifier>> {
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(bundle) {
        roots.add(certificate.context("the CA is not PEM")?).context("it holds a certificate that is no CA")?;
    }
    let builder = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone());
    builder.build().context("it holds no CA")
}

impl ClientCertVerifier for Clients {
    /// Returns no hints: they would name the CAs in force when the handshake began, and Go's client needs none.
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        let verified = self.verifier.load().verify_client_cert(end_entity, intermediates, now)?;
        self.expect_name(end_entity)?;
        Ok(verified)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.verifier.load().verify_tls12_signature(message, certificate, signed)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.verifier.load().verify_tls13_signature(message, certificate, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

/// Why the certificate of a client was refused; `None` if the handshake failed for another reason.
pub fn refusal(error: &std::io::Error) -> Option<impl fmt::Display> {
    match error.get_ref()?.downcast_ref::<Error>()? {
        Error::NoCertificatesPresented => Some("it presents no certificate".to_owned()),
        Error::InvalidCertificate(CertificateError::Other(OtherError(other))) => Some(other.to_string()),
        Error::InvalidCertificate(error) => Some(format!("its certificate is not valid here: {error:?}")),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, DnType, KeyPair};

    use super::*;

    fn certificate(common_name: &str, dns: &[&str]) -> CertificateDer<'static> {
        let names: Vec<String> = dns.iter().map(|name| (*name).to_owned()).collect();
        let mut params = CertificateParams::new(names).unwrap();
        params.distinguished_name.push(DnType::CommonName, common_name);
        params.self_signed(&KeyPair::generate().unwrap()).unwrap().der().clone()
    }

    fn bundle(text: impl AsRef<[u8]>) -> (tempfile::TempDir, PathBuf) {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("ca.crt");
        std::fs::write(&file, text).unwrap();
        (directory, file)
    }

    #[test]
    fn a_name_is_the_common_name_or_a_dns_name() {
        let ca = crate::tls::issue(&["x".to_owned()], "2026-11-22T12:00:00Z".parse().unwrap()).unwrap().ca;
        let (_directory, file) = bundle(&ca);
        let clients = Clients::read(&file, ["kube-apiserver".to_owned(), "api.example".to_owned()]).unwrap();
        let expect = |certificate: &CertificateDer<'_>| clients.expect_name(certificate);
        assert_eq!(expect(&certificate("kube-apiserver", &[])), Ok(()));
        assert_eq!(expect(&certificate("other", &["one.example", "api.example"])), Ok(()));
        let error = expect(&certificate("kube-apiserver2", &["one.example"])).unwrap_err();
        let refused = refusal(&std::io::Error::other(error)).unwrap().to_string();
        let said = r#"its certificate is made out to "kube-apiserver2", "one.example", and --client-name lists "api.example", "kube-apiserver""#;
        assert_eq!(refused, said);
        let anybody = Clients::read(&file, []).unwrap();
        assert_eq!(anybody.expect_name(&certificate("other", &[])), Ok(()));
    }

    #[test]
    fn a_bundle_without_a_ca_is_an_error_that_names_the_file() {
        for text in ["", "garbage", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"] {
            let (_directory, file) = bundle(text);
            let error = format!("{:#}", Clients::read(&file, []).unwrap_err());
            assert!(error.starts_with(&file.display().to_string()), "{error}");
        }
        assert!(Clients::read(Path::new("/nonexistent"), []).is_err());
    }
}
