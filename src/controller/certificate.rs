//! The self-managed certificate: a Secret that the leader creates and renews, and that every replica follows. Owns the
//! order of a rotation; `tls` issues certificates and reads and checks PEM.
//!
//! A new certificate comes with a new CA, whose key is discarded. So a rotation takes three steps. First, both CAs are
//! written into the webhook configurations. Then the leader waits until its watch reports them there, and a while
//! longer, until the API servers have got them too. Only then does one write replace the Secret, and with it the
//! certificate that is served.
//!
//! In the Secret's `ca.crt`, the first CA is always that of its `tls.crt`, and the second is that of the certificate
//! before. An interrupted rotation leaves the Secret as it was.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, ensure};
use futures::StreamExt;
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use k8s_openapi::jiff::Timestamp;
use kube::api::{ObjectMeta, PostParams};
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, Client};
use tokio::sync::watch;

use super::webhook_configuration::Trust;
use super::{RETRY, bounded, now};
use crate::tls::{self, CertificateStore, Issued, Pair};

/// Interval at which the expiry of the certificate is checked while the Secret does not change.
const CHECK: Duration = Duration::from_secs(3600);
/// Time limit for a new CA to appear in the webhook configurations.
const ANNOUNCE_DEADLINE: Duration = Duration::from_secs(60);
/// Time for slow API servers to get a changed webhook configuration. Usually they get it within a second or two.
const TRUST_SPREADS: Duration = Duration::from_secs(30);

/// A Secret that holds a serving certificate for some names.
#[derive(Clone)]
pub struct CertificateSecret {
    /// Client of the cluster's API server.
    pub client: Client,
    /// Namespace of the Secret.
    pub namespace: String,
    /// Name of the Secret.
    pub secret: String,
    /// DNS names and IP addresses of the certificate.
    pub names: Vec<String>,
}

/// The counterpart of [`super::webhook_configuration::Ca`], held by the task that keeps the certificate.
pub struct Announce {
    /// The CA bundle (PEM) that the API servers are to trust; `None` until it is known.
    pub wanted: watch::Sender<Option<String>>,
    /// The CA bundle that the webhook configurations carry now.
    pub seen: watch::Receiver<Trust>,
}

impl CertificateSecret {
    /// Serves the certificate of the Secret, until cancelled. Runs on every replica.
    pub async fn follow(self, store: Arc<CertificateStore>) {
        let secret = &self.secret;
        let mut seen = watcher::watch_object(self.api(), secret).default_backoff().boxed();
        while let Some(object) = seen.next().await {
            match object {
                Ok(None) => tracing::info!("waiting for secret {secret:?}, which the leader creates"),
                Ok(Some(object)) => match pair(&object) {
                    Ok(pair) => store.offer(pair, &format!("secret {secret:?}")),
                    Err(error) => tracing::error!("secret {secret:?}: {error:#}; the last good pair stays"),
                },
                Err(error) => tracing::warn!("watching secret {secret:?}: {error}; trying again"),
            }
        }
    }

    /// Creates and renews the Secret, until cancelled. Runs on the leader.
    pub async fn keep(self, mut announce: Announce) {
        let mut seen = watcher::watch_object(self.api(), &self.secret).default_backoff().boxed();
        let mut current: Option<Option<Secret>> = None;
        loop {
            let mut pause = CHECK;
            if let Some(current) = &current
                && let Err(error) = self.settle(current.as_ref(), &mut announce).await
            {
                tracing::warn!("secret {:?}: {error:#}; trying again", self.secret);
                pause = RETRY;
            }
            tokio::select! {
                Some(event) = seen.next() => match event {
                    Ok(object) => current = Some(object),
                    Err(error) => tracing::warn!("watching secret {:?}: {error}; trying again", self.secret),
                },
                () = tokio::time::sleep(pause) => {}
            }
        }
    }

    fn api(&self) -> Api<Secret> {
        Api::namespaced(self.client.clone(), &self.namespace)
    }

    async fn settle(&self, current: Option<&Secret>, announce: &mut Announce) -> anyhow::Result<()> {
        let usable = current.map(|secret| usable(secret, &self.names, now()));
        if let (Some(Ok(pair)), Some(secret)) = (&usable, current)
            && !tls::is_due(pair.not_after, now())
        {
            announce.wanted.send_replace(text(secret, "ca.crt"));
            return Ok(());
        }
        let issued = tls::issue(&self.names, now())?;
        match (usable, current) {
            (Some(Ok(pair)), Some(secret)) => {
                tracing::info!(not_after = %pair.not_after, "renewing the serving certificate");
                let old = text(secret, "ca.crt").unwrap_or_default();
                announce.announce(&in_use_first(&old, &issued.ca)).await?;
                self.replace(secret, &issued, &in_use_first(&issued.ca, &old)).await
            }
            // No API server trusts what is served now, so no gradual rotation is needed.
            (Some(Err(error)), Some(secret)) => {
                tracing::error!("secret {:?} is replaced: {error:#}", self.secret);
                self.replace(secret, &issued, &issued.ca).await
            }
            // The Secret was deleted. Replicas still serve its certificate, so its CA stays trusted until they serve
            // the new one.
            _ => {
                let trusted = announce.trusted().await?;
                if !trusted.is_empty() {
                    announce.announce(&in_use_first(&trusted, &issued.ca)).await?;
                }
                let metadata = ObjectMeta { name: Some(self.secret.clone()), ..ObjectMeta::default() };
                let secret = Secret { metadata, type_: Some("kubernetes.io/tls".into()), ..Secret::default() };
                let secret = with(secret, &issued, &in_use_first(&issued.ca, &trusted));
                bounded(self.api().create(&PostParams::default(), &secret)).await?;
                Ok(())
            }
        }
    }

    /// Replaces the Secret in one write, which fails if another writer was first. The watch then delivers the new
    /// Secret, and its CAs are announced.
    async fn replace(&self, secret: &Secret, issued: &Issued, trusted: &str) -> anyhow::Result<()> {
        let secret = with(secret.clone(), issued, trusted);
        bounded(self.api().replace(&self.secret, &PostParams::default(), &secret)).await?;
        Ok(())
    }
}

impl Announce {
    /// Announces a CA bundle, and waits until the API servers trust it.
    async fn announce(&mut self, bundle: &str) -> anyhow::Result<()> {
        self.wanted.send_replace(Some(bundle.to_owned()));
        let there = |seen: &Trust| *seen == Trust::Bundle(bundle.to_owned());
        let seen =
            tokio::time::timeout(ANNOUNCE_DEADLINE, self.seen.wait_for(there)).await.is_ok_and(|seen| seen.is_ok());
        ensure!(seen, "the webhook configurations do not carry the new CA yet");
        tokio::time::sleep(TRUST_SPREADS).await;
        Ok(())
    }

    /// The CA bundle that the webhook configurations carry now; empty if there is none.
    async fn trusted(&mut self) -> anyhow::Result<String> {
        let known = tokio::time::timeout(ANNOUNCE_DEADLINE, self.seen.wait_for(|seen| *seen != Trust::Unknown)).await;
        match &*known.context("the webhook configurations have not been read yet")?? {
            Trust::Bundle(bundle) => Ok(bundle.clone()),
            Trust::Untrusted | Trust::Unknown => Ok(String::new()),
        }
    }
}

/// The certificate pair of a Secret, if the Secret's CA signed it and it is valid for these names now.
fn usable(secret: &Secret, names: &[String], now: Timestamp) -> anyhow::Result<Pair> {
    let pair = pair(secret)?;
    let ca = text(secret, "ca.crt").context("it holds no ca.crt")?;
    tls::verify(&pair, &ca, names, now)?;
    Ok(pair)
}

fn with(mut secret: Secret, issued: &Issued, trusted: &str) -> Secret {
    let data = secret.data.get_or_insert_default();
    for (key, text) in [("tls.crt", issued.certificate.as_str()), ("tls.key", &issued.key), ("ca.crt", trusted)] {
        data.insert(key.to_owned(), ByteString(text.as_bytes().to_vec()));
    }
    secret
}

fn text(secret: &Secret, key: &str) -> Option<String> {
    String::from_utf8(secret.data.as_ref()?.get(key)?.0.clone()).ok()
}

fn pair(secret: &Secret) -> anyhow::Result<Pair> {
    let data = secret.data.as_ref().context("it holds nothing")?;
    let part = |key: &str| data.get(key).with_context(|| format!("it holds no {key}"));
    Pair::from_pem(&part("tls.crt")?.0, &part("tls.key")?.0)
}

/// Bundles the first CA in `in_use` and the first CA in `other` (the next CA, or the previous one).
fn in_use_first(in_use: &str, other: &str) -> String {
    const END: &str = "-----END CERTIFICATE-----";
    let first = |bundle: &str| bundle.find(END).map(|end| format!("{}\n", bundle[..end + END.len()].trim()));
    [first(in_use), first(other)].into_iter().flatten().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn block(name: &str) -> String {
        format!("-----BEGIN CERTIFICATE-----\n{name}\n-----END CERTIFICATE-----\n")
    }

    #[test]
    fn a_bundle_is_the_ca_in_use_and_one_other() {
        let bundle = in_use_first(&(block("a") + &block("older")), &(block("b") + &block("c")));
        assert_eq!(bundle, block("a") + &block("b"));
        assert_eq!(in_use_first(&block("a"), "garbage"), block("a"));
        assert_eq!(in_use_first("", &block("b")), block("b"));
    }

    #[test]
    fn a_secret_whose_ca_does_not_vouch_for_its_certificate_is_not_usable() {
        let now: Timestamp = "2026-11-22T12:00:00Z".parse().unwrap();
        let names = ["vramguard.vramguard-system.svc".to_owned(), "127.0.0.1".to_owned()];
        let (issued, other) = (tls::issue(&names, now).unwrap(), tls::issue(&names, now).unwrap());
        let secret = |ca: &str| with(Secret::default(), &issued, ca);
        let error =
            |secret: &Secret, names: &[String]| usable(secret, names, now).err().map(|error| format!("{error:#}"));
        assert_eq!(error(&secret(&issued.ca), &names), None);
        assert_eq!(error(&secret(&(issued.ca.clone() + &other.ca)), &names), None);
        assert!(error(&secret(&other.ca), &names).is_some());
        assert!(error(&secret(""), &names).is_some());
        assert!(error(&secret(&issued.ca), &["elsewhere.svc".to_owned()]).unwrap().contains("elsewhere.svc"));
        assert!(usable(&secret(&issued.ca), &names, "2028-01-01T00:00:00Z".parse().unwrap()).is_err());
    }
}
