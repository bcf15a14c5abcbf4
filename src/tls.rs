//! The serving certificate: where it comes from, when it changes, when it ends. Owns PEM, expiry and the last good pair;
//! does not listen (`webhook::server` does) and does not talk to the cluster (`controller::certificate` does).

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

/// How soon changed files are served.
const POLL: Duration = Duration::from_secs(1);

/// How long an issued certificate is valid, in days. A third of that before its end it is replaced.
pub const VALID_DAYS: i32 = 90;

/// A certificate chain with its key, read and checked to belong together.
#[derive(Debug)]
pub struct Pair {
    key: Arc<CertifiedKey>,
    /// When the first certificate of the chain ends.
    pub not_after: Timestamp,
}

impl Pair {
    /// Reads PEM. Refuses a key that is not the certificate's.
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

/// The pair that new connections are served with.
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
    /// Serves this pair from now on.
    pub fn set(&self, pair: Pair) {
        if pair.not_after <= Timestamp::now() {
            tracing::error!(not_after = %pair.not_after, "the serving certificate has ended: clients will refuse it");
        } else {
            tracing::info!(not_after = %pair.not_after, "serving certificate loaded");
        }
        self.current.store(Some(Arc::new(pair)));
        self.changed.send_replace(());
    }

    /// Serves this pair in place of the current one, unless it has ended and the current one has not. Where there is none,
    /// one that has ended is served too: clients then say what is wrong, and so does the metric.
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

    /// When the certificate that is served ends; `None` before there is one.
    pub fn not_after(&self) -> Option<Timestamp> {
        self.current.load().as_ref().map(|pair| pair.not_after)
    }

    /// Waits until there is a certificate.
    pub async fn ready(&self) {
        let mut changed = self.changed.subscribe();
        while self.current.load().is_none() {
            changed.changed().await.expect("the sender lives as long as the store");
        }
    }

    /// Follows `tls.crt` and `tls.key` of a directory. What cannot be read leaves the last good pair in place.
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
                        // A rotation may be half done; the other half is a change of its own.
                        Err(error) => tracing::error!("{}: {error:#}; the last good pair stays", directory.display()),
                    }
                    seen = Some(files);
                }
                // Said once, not every second.
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

/// A certificate as issued, in PEM. The key of the CA is gone: a new certificate comes with a new CA.
#[derive(Clone, Debug)]
pub struct Issued {
    /// The CA that clients have to trust.
    pub ca: String,
    /// The serving certificate.
    pub certificate: String,
    /// Its key.
    pub key: String,
}

/// Issues a serving certificate for these names.
pub fn issue(names: &[String], now: Timestamp) -> anyhow::Result<Issued> {
    let today = now.to_zoned(TimeZone::UTC).date();
    // A day early: the clocks of API server and webhook need not agree.
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

/// Checks that the first CA of a bundle vouches for a pair, now and for these names.
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

/// Whether a certificate that ends then should be replaced now.
pub fn is_due(not_after: Timestamp, now: Timestamp) -> bool {
    let left = not_after.duration_since(now);
    left < jiff::SignedDuration::from_hours(i64::from(VALID_DAYS) * 24 / 3)
}

/// Creates `tls.crt`, `tls.key` and `ca.crt` in a directory, where the first two are missing.
pub fn self_sign(directory: &Path, names: &[String], now: Timestamp) -> anyhow::Result<()> {
    match ["tls.crt", "tls.key"].map(|name| directory.join(name).exists()) {
        [true, true] => return Ok(()),
        [false, false] => {}
        // Half a pair may be somebody's only copy of a key.
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

/// A file that its owner alone may read, the key above all.
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
