//! The self-managed certificate: a Secret that the leader creates and renews, and that every replica follows. Owns the
//! order of a rotation; issuing, reading and checking PEM is `tls`'s.
//!
//! A new certificate comes with a new CA, whose key is thrown away. So a rotation first has both CAs written into the webhook
//! configurations, waits until they have been seen there, and a while longer for the API servers to have seen them too; only
//! then is the Secret replaced, in one write, and with it what is served. The first CA of the Secret's `ca.crt` is always that
//! of its `tls.crt`, the second that of the one before. A rotation that is cut off leaves the Secret as it was.

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

/// How often the end of the certificate is looked at while the Secret does not change.
const CHECK: Duration = Duration::from_secs(3600);
/// For the webhook configurations to be seen with a new CA.
const ANNOUNCE_DEADLINE: Duration = Duration::from_secs(60);
/// API servers see a changed webhook configuration within a second or two; this is for slow ones.
const TRUST_SPREADS: Duration = Duration::from_secs(30);

/// A Secret with a certificate for these names.
#[derive(Clone)]
pub struct Kept {
    /// The cluster.
    pub client: Client,
    /// Namespace of the Secret.
    pub namespace: String,
    /// Name of the Secret.
    pub secret: String,
    /// DNS names and addresses.
    pub names: Vec<String>,
}

/// The keeper's side of [`super::webhook_configuration::Ca`].
pub struct Announce {
    /// Which CAs are to be trusted.
    pub wanted: watch::Sender<Option<String>>,
    /// Which are.
    pub seen: watch::Receiver<Trust>,
}

impl Kept {
    /// Serves what the Secret holds, on every replica, until cancelled.
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

    /// Creates and renews it, on the leader, until cancelled.
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
            // Nothing that anybody trusts is served: there is nobody to be gentle to.
            (Some(Err(error)), Some(secret)) => {
                tracing::error!("secret {:?} is replaced: {error:#}", self.secret);
                self.replace(secret, &issued, &issued.ca).await
            }
            // Gone. Replicas still serve what it held, so the CA of that stays trusted until they serve the new one.
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

    /// One write, refused if somebody else was faster. The watch brings it back, and what it says is announced then.
    async fn replace(&self, secret: &Secret, issued: &Issued, trusted: &str) -> anyhow::Result<()> {
        let secret = with(secret.clone(), issued, trusted);
        bounded(self.api().replace(&self.secret, &PostParams::default(), &secret)).await?;
        Ok(())
    }
}

impl Announce {
    /// Has a bundle trusted, and waits until it is.
    async fn announce(&mut self, bundle: &str) -> anyhow::Result<()> {
        self.wanted.send_replace(Some(bundle.to_owned()));
        let there = |seen: &Trust| *seen == Trust::Bundle(bundle.to_owned());
        let seen =
            tokio::time::timeout(ANNOUNCE_DEADLINE, self.seen.wait_for(there)).await.is_ok_and(|seen| seen.is_ok());
        ensure!(seen, "the webhook configurations do not carry the new CA yet");
        tokio::time::sleep(TRUST_SPREADS).await;
        Ok(())
    }

    /// What is trusted now; empty for nothing.
    async fn trusted(&mut self) -> anyhow::Result<String> {
        let known = tokio::time::timeout(ANNOUNCE_DEADLINE, self.seen.wait_for(|seen| *seen != Trust::Unseen)).await;
        match &*known.context("the webhook configurations have not been read yet")?? {
            Trust::Bundle(bundle) => Ok(bundle.clone()),
            Trust::Nobody | Trust::Unseen => Ok(String::new()),
        }
    }
}

/// The pair of a Secret, if its own CA vouches for it and it is made out to these names.
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

/// The first CA of one bundle, then the first of the other: the one in use, and the one that comes or that was.
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
