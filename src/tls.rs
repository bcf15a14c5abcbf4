//! The serving certificate: reads, checks, issues and replaces it.
//!
//! Owns PEM, expiry and the last valid pair. Knows nothing of listening (`webhook::server`) or of Secrets in the
//! cluster (`controller::certificate`).

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use arc_swap::ArcSwapOption;
use jiff::{Span, Timestamp, tz::TimeZone};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
};
use rustls::RootCertStore;
use rustls::client::{verify_server_cert_signed_by_trust_anchor, verify_server_name};
use rustls::crypto::ring::sign::any_supported_type;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::{ClientHello, ParsedCertificate, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use tokio::sync::watch;

pub mod clients;

/// Interval at which the files are read; a change is served after at most this time.
const POLL: Duration = Duration::from_secs(1);

/// Validity of an issued certificate, in days. It is replaced when a third of that time is left.
pub const VALID_DAYS: i32 = 90;

/// A certificate chain and its private key, which are known to match.
#[derive(Debug)]
pub struct Pair {
    key: Arc<CertifiedKey>,
    /// Expiry of the first certificate of the chain.
    pub not_after: Timestamp,
}

impl Pair {
    /// Reads a certificate chain and its key from PEM.
    ///
    /// # Errors
    ///
    /// If either is not PEM, the chain is empty or cannot be parsed, the key cannot sign, or it does not belong to the
    /// first certificate of the chain.
    pub fn from_pem(chain: &[u8], key: &[u8]) -> anyhow::Result<Pair> {
        let chain: Vec<CertificateDer<'static>> =
            CertificateDer::pem_slice_iter(chain).collect::<Result<_, _>>().context("the certificate is not PEM")?;
        let first = chain.first().context("the certificate file holds no certificate")?;
        let not_after = not_after(first)?;
        let key = PrivateKeyDer::from_pem_slice(key).context("the key is not PEM")?;
        let key = any_supported_type(&key).context("the key is of a kind that cannot sign")?;
        let pair = CertifiedKey::new(chain, key);
        pair.keys_match().context("the key does not belong to the certificate")?;
        Ok(Pair { key: Arc::new(pair), not_after })
    }
}

fn not_after(certificate: &CertificateDer<'_>) -> anyhow::Result<Timestamp> {
    let (_, parsed) = x509_parser::parse_x509_certificate(certificate).context("the certificate cannot be read")?;
    Ok(Timestamp::from_second(parsed.validity().not_after.timestamp())?)
}

/// The pair that the server presents on new connections.
#[derive(Debug)]
pub struct CertificateStore {
    current: ArcSwapOption<Pair>,
    changed: watch::Sender<()>,
}

impl Default for CertificateStore {
    fn default() -> CertificateStore {
        CertificateStore { current: ArcSwapOption::empty(), changed: watch::Sender::new(()) }
    }
}

impl CertificateStore {
    /// Replaces the current pair unconditionally.
    pub fn set(&self, pair: Pair) {
        if pair.not_after <= Timestamp::now() {
            tracing::error!(not_after = %pair.not_after, "the serving certificate has ended: clients will refuse it");
        } else {
            tracing::info!(not_after = %pair.not_after, "serving certificate loaded");
        }
        self.current.store(Some(Arc::new(pair)));
        self.changed.send_replace(());
    }

    /// Replaces the current pair, unless `pair` has expired and the current one has not. `origin` names its source in
    /// the log.
    ///
    /// If there is no current pair, an expired one is served too: the errors of clients and the metric then name the
    /// cause.
    pub fn offer(&self, pair: Pair, origin: &str) {
        let now = Timestamp::now();
        let current = self.current.load();
        if current.as_ref().is_some_and(|current| current.key.cert == pair.key.cert) {
            return;
        }
        if pair.not_after <= now && current.as_ref().is_some_and(|current| current.not_after > now) {
            tracing::error!("{origin}: the certificate ended at {}; the last good pair stays", pair.not_after);
            return;
        }
        self.set(pair);
    }

    /// Expiry of the certificate that is served; `None` until one is loaded.
    pub fn not_after(&self) -> Option<Timestamp> {
        self.current.load().as_ref().map(|pair| pair.not_after)
    }

    /// Waits until a certificate is loaded.
    pub async fn ready(&self) {
        let mut changed = self.changed.subscribe();
        while self.current.load().is_none() {
            changed.changed().await.expect("the sender lives as long as the store");
        }
    }

    /// Follows `tls.crt` and `tls.key` in a directory, for ever. Files that cannot be used leave the last valid pair in
    /// place.
    pub async fn follow(&self, directory: PathBuf) {
        let (mut seen, mut complained) = (None, None);
        let mut ticks = tokio::time::interval(POLL);
        loop {
            ticks.tick().await;
            let owned = directory.clone();
            let files = tokio::task::spawn_blocking(move || read(&owned)).await.expect("reading files does not panic");
            match files {
                Ok(files) if seen.as_ref() == Some(&files) => complained = None,
                Ok(files) => {
                    complained = None;
                    match Pair::from_pem(&files.0, &files.1) {
                        Ok(pair) => self.offer(pair, &directory.display().to_string()),
                        // A rotation may have replaced only one of the files so far. Replacing the other one is a
                        // change too, and is read then.
                        Err(error) => tracing::error!("{}: {error:#}; the last good pair stays", directory.display()),
                    }
                    seen = Some(files);
                }
                // Logged once, not at every poll.
                Err(error) if complained.as_ref() != Some(&error.to_string()) => {
                    match self.not_after() {
                        Some(_) => tracing::error!("{error:#}; the last good pair stays"),
                        None => tracing::warn!("waiting for a certificate: {error:#}"),
                    }
                    complained = Some(error.to_string());
                }
                Err(_) => {}
            }
        }
    }
}

impl ResolvesServerCert for CertificateStore {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.current.load().as_ref().map(|pair| pair.key.clone())
    }
}

fn read(directory: &Path) -> anyhow::Result<(Vec<u8>, Vec<u8>)> {
    let file = |name: &str| {
        let path = directory.join(name);
        std::fs::read(&path).with_context(|| path.display().to_string())
    };
    Ok((file("tls.crt")?, file("tls.key")?))
}

/// An issued certificate with its key and CA, in PEM.
///
/// The key of the CA is not kept, so every new certificate comes with a new CA.
#[derive(Clone, Debug)]
pub struct Issued {
    /// Certificate of the CA, which clients have to trust.
    pub ca: String,
    /// Serving certificate.
    pub certificate: String,
    /// Private key of the serving certificate.
    pub key: String,
}

/// Issues a serving certificate for these DNS names and IP addresses, signed by a new CA.
///
/// # Errors
///
/// If a name is not valid in a certificate, or a key or signature cannot be made.
pub fn issue(names: &[String], now: Timestamp) -> anyhow::Result<Issued> {
    let today = now.to_zoned(TimeZone::UTC).date();
    // Valid from a day ago, because the clocks of the API server and of this server may differ.
    let from = today.checked_sub(Span::new().days(1))?;
    let until = today.checked_add(Span::new().days(VALID_DAYS))?;
    let day = |date: jiff::civil::Date| -> anyhow::Result<_> {
        Ok(rcgen::date_time_ymd(i32::from(date.year()), u8::try_from(date.month())?, u8::try_from(date.day())?))
    };
    let params = |names: &[String], common_name: &str| -> anyhow::Result<CertificateParams> {
        let mut params = CertificateParams::new(names)?;
        params.not_before = day(from)?;
        params.not_after = day(until)?;
        params.distinguished_name.push(DnType::CommonName, common_name);
        Ok(params)
    };
    let mut ca = params(&[], &format!("vramguard CA {today}"))?;
    ca.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    ca.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::DigitalSignature];
    let ca_key = KeyPair::generate()?;
    let ca_certificate = ca.self_signed(&ca_key)?;
    let mut serving = params(names, "vramguard")?;
    serving.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    serving.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    serving.use_authority_key_identifier_extension = true;
    let key = KeyPair::generate()?;
    let certificate = serving.signed_by(&key, &Issuer::new(ca, ca_key))?;
    Ok(Issued { ca: ca_certificate.pem(), certificate: certificate.pem(), key: key.serialize_pem() })
}

/// Checks that the first CA of a bundle signed a pair, and that the pair is valid at `now` for all `names`.
///
/// # Errors
///
/// If the bundle holds no CA in PEM, the chain does not verify at `now`, or the certificate lacks one of the names.
pub fn verify(pair: &Pair, bundle: &str, names: &[String], now: Timestamp) -> anyhow::Result<()> {
    let ca = CertificateDer::from_pem_slice(bundle.as_bytes()).context("ca.crt is not PEM")?;
    let mut roots = RootCertStore::empty();
    roots.add(ca).context("ca.crt holds no CA")?;
    let (leaf, chain) = pair.key.cert.split_first().context("there is no certificate")?;
    let leaf = ParsedCertificate::try_from(leaf)?;
    let seconds = u64::try_from(now.as_second()).context("the clock is before 1970")?;
    let algorithms = rustls::crypto::ring::default_provider().signature_verification_algorithms.all;
    let time = UnixTime::since_unix_epoch(Duration::from_secs(seconds));
    verify_server_cert_signed_by_trust_anchor(&leaf, &roots, chain, time, algorithms)
        .context("ca.crt does not vouch for tls.crt")?;
    for name in names {
        let server = ServerName::try_from(name.as_str()).with_context(|| format!("{name:?} is no name"))?;
        verify_server_name(&leaf, &server).with_context(|| format!("it is not made out to {name}"))?;
    }
    Ok(())
}

/// Whether a certificate that expires at `not_after` should be replaced at `now`.
pub fn is_due(not_after: Timestamp, now: Timestamp) -> bool {
    let left = not_after.duration_since(now);
    left < jiff::SignedDuration::from_hours(i64::from(VALID_DAYS) * 24 / 3)
}

/// Creates `tls.crt`, `tls.key` and `ca.crt` in a directory if the first two are missing.
///
/// # Errors
///
/// If only one of the first two files exists, the certificate cannot be issued, or a file cannot be written.
pub fn self_sign(directory: &Path, names: &[String], now: Timestamp) -> anyhow::Result<()> {
    match ["tls.crt", "tls.key"].map(|name| directory.join(name).exists()) {
        [true, true] => return Ok(()),
        [false, false] => {}
        // The one file may be the only copy of a key, so it is not overwritten.
        _ => anyhow::bail!("{}: only one of tls.crt and tls.key is there; move it away first", directory.display()),
    }
    std::fs::create_dir_all(directory).with_context(|| directory.display().to_string())?;
    let issued = issue(names, now)?;
    for (name, text) in [("ca.crt", issued.ca), ("tls.crt", issued.certificate), ("tls.key", issued.key)] {
        let path = directory.join(name);
        write_private(&path, &text).with_context(|| path.display().to_string())?;
    }
    tracing::info!("created a certificate for {} in {}", names.join(", "), directory.display());
    Ok(())
}

/// Writes a file that only its owner may read, because one of the files is the key.
fn write_private(path: &Path, text: &str) -> std::io::Result<()> {
    use std::io::Write;
    use std::os::unix::fs::OpenOptionsExt;
    let mut file = std::fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path)?;
    file.write_all(text.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn now() -> Timestamp {
        "2026-11-22T12:00:00Z".parse().unwrap()
    }

    fn issued() -> Issued {
        issue(&["localhost".to_owned(), "127.0.0.1".to_owned()], now()).unwrap()
    }

    #[test]
    fn an_issued_pair_is_valid_for_its_time() {
        let issued = issued();
        let pair = Pair::from_pem(issued.certificate.as_bytes(), issued.key.as_bytes()).unwrap();
        assert_eq!(pair.not_after.to_string(), "2027-02-20T00:00:00Z");
        assert!(!is_due(pair.not_after, now()));
        assert!(is_due(pair.not_after, "2027-01-25T00:00:00Z".parse().unwrap()));
    }

    #[test]
    fn a_key_of_another_certificate_is_refused() {
        let error = Pair::from_pem(issued().certificate.as_bytes(), issued().key.as_bytes()).unwrap_err();
        assert!(error.to_string().contains("does not belong"), "{error:#}");
        for (certificate, key) in [("", ""), ("garbage", "garbage")] {
            assert!(Pair::from_pem(certificate.as_bytes(), key.as_bytes()).is_err());
        }
    }

    #[test]
    fn a_pair_that_is_there_is_not_replaced_and_the_key_is_private() {
        use std::os::unix::fs::PermissionsExt;
        let directory = tempfile::tempdir().unwrap();
        let names = ["localhost".to_owned()];
        self_sign(directory.path(), &names, now()).unwrap();
        let first = read(directory.path()).unwrap();
        self_sign(directory.path(), &names, now()).unwrap();
        assert_eq!(read(directory.path()).unwrap(), first);
        let mode = std::fs::metadata(directory.path().join("tls.key")).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }

    #[tokio::test]
    async fn a_broken_rotation_leaves_the_last_good_pair() {
        let directory = tempfile::tempdir().unwrap();
        self_sign(directory.path(), &["localhost".to_owned()], now()).unwrap();
        let store = Arc::new(CertificateStore::default());
        let follower = tokio::spawn({
            let (store, directory) = (store.clone(), directory.path().to_owned());
            async move { store.follow(directory).await }
        });
        tokio::time::timeout(Duration::from_secs(20), store.ready()).await.unwrap();
        let mut changed = store.changed.subscribe();
        std::fs::write(directory.path().join("tls.key"), "half a key").unwrap();
        tokio::time::sleep(POLL * 2).await;
        assert!(!changed.has_changed().unwrap());
        let other = issued();
        std::fs::write(directory.path().join("tls.crt"), other.certificate).unwrap();
        std::fs::write(directory.path().join("tls.key"), other.key).unwrap();
        tokio::time::timeout(Duration::from_secs(20), changed.changed()).await.expect("the new pair").unwrap();
        follower.abort();
    }
}
