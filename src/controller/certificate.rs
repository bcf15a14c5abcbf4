//! The self-managed certificate: a Secret that the leader creates and renews, and that every replica follows. Owns the
//! order of a rotation; issuing and reading PEM is `tls`'s.
//!
//! A new certificate comes with a new CA, whose key is thrown away. So a rotation first makes the API servers trust both CAs
//! (the Secret's `ca.crt` becomes old + new, and with it `caBundle`), waits until they have seen that, and only then serves the
//! new certificate.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use futures::StreamExt;
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use kube::api::{ObjectMeta, PostParams};
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, Client};
use tokio::sync::watch;

use super::{RETRY, now};
use crate::tls::{self, CertificateStore, Issued, Pair};

/// How often the end of the certificate is looked at.
const CHECK: Duration = Duration::from_secs(3600);
/// API servers see a changed webhook configuration within a second or two; this is for slow ones.
const TRUST_SPREADS: Duration = Duration::from_secs(30);
/// CAs in `caBundle`: the one in use, the one before it, and one of a rotation that was cut off.
const KEPT_CAS: usize = 3;

/// A Secret with a certificate for these names.
#[derive(Clone)]
pub struct Kept {
    /// The cluster.
    pub client: Client,
    /// Namespace of the Secret.
    pub namespace: String,
    /// Name of the Secret.
    pub secret: String,
    /// DNS names.
    pub names: Vec<String>,
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
                    Ok(pair) => store.set(pair),
                    Err(error) => tracing::error!("secret {secret:?}: {error:#}; the last good pair stays"),
                },
                Err(error) => tracing::warn!("watching secret {secret:?}: {error}; trying again"),
            }
        }
    }

    /// Creates and renews it, on the leader, until cancelled; tells which CAs are to be trusted.
    pub async fn keep(self, ca: watch::Sender<Option<String>>) {
        loop {
            match self.settle(&ca).await {
                Ok(()) => tokio::time::sleep(CHECK).await,
                Err(error) => {
                    tracing::warn!("secret {:?}: {error:#}; trying again", self.secret);
                    tokio::time::sleep(RETRY).await;
                }
            }
        }
    }

    fn api(&self) -> Api<Secret> {
        Api::namespaced(self.client.clone(), &self.namespace)
    }

    async fn settle(&self, ca: &watch::Sender<Option<String>>) -> anyhow::Result<()> {
        let Some(current) = self.api().get_opt(&self.secret).await? else {
            let issued = tls::issue(&self.names, now())?;
            let metadata = ObjectMeta {
                name: Some(self.secret.clone()),
                ..ObjectMeta::default()
            };
            let secret = Secret {
                metadata,
                type_: Some("kubernetes.io/tls".into()),
                ..Secret::default()
            };
            let secret = with(secret, &issued, &issued.ca);
            self.api().create(&PostParams::default(), &secret).await?;
            ca.send_replace(Some(issued.ca));
            return Ok(());
        };
        let trusted = text(&current, "ca.crt").unwrap_or_default();
        let pair = pair(&current);
        if let Ok(pair) = &pair
            && !trusted.is_empty()
            && !tls::is_due(pair.not_after, now())
        {
            ca.send_replace(Some(trusted));
            return Ok(());
        }
        let issued = tls::issue(&self.names, now())?;
        let both = newest_first(&issued.ca, &trusted);
        match pair {
            Ok(pair) => {
                tracing::info!(not_after = %pair.not_after, "renewing the serving certificate");
                let mut announced = current.clone();
                announced
                    .data
                    .get_or_insert_default()
                    .insert("ca.crt".into(), ByteString(both.clone().into_bytes()));
                let announced = self
                    .api()
                    .replace(&self.secret, &PostParams::default(), &announced)
                    .await?;
                ca.send_replace(Some(both.clone()));
                tokio::time::sleep(TRUST_SPREADS).await;
                self.api()
                    .replace(&self.secret, &PostParams::default(), &with(announced, &issued, &both))
                    .await?;
            }
            // Nothing that could be served: there is nobody to be gentle to.
            Err(error) => {
                tracing::error!("secret {:?} is replaced: {error:#}", self.secret);
                self.api()
                    .replace(&self.secret, &PostParams::default(), &with(current, &issued, &both))
                    .await?;
                ca.send_replace(Some(both));
            }
        }
        Ok(())
    }
}

fn with(mut secret: Secret, issued: &Issued, trusted: &str) -> Secret {
    let data = secret.data.get_or_insert_default();
    for (key, text) in [
        ("tls.crt", issued.certificate.as_str()),
        ("tls.key", &issued.key),
        ("ca.crt", trusted),
    ] {
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

/// The new CA and as many of the old ones as are worth keeping.
fn newest_first(new: &str, old: &str) -> String {
    const END: &str = "-----END CERTIFICATE-----";
    let old = old
        .split_inclusive(END)
        .map(str::trim)
        .filter(|block| block.ends_with(END));
    let all = std::iter::once(new.trim()).chain(old).take(KEPT_CAS);
    all.map(|block| format!("{block}\n")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn block(name: &str) -> String {
        format!("-----BEGIN CERTIFICATE-----\n{name}\n-----END CERTIFICATE-----\n")
    }

    #[test]
    fn the_bundle_keeps_the_newest_cas() {
        let mut bundle = String::new();
        for name in ["a", "b", "c", "d"] {
            bundle = newest_first(&block(name), &bundle);
        }
        assert_eq!(bundle, block("d") + &block("c") + &block("b"));
        assert_eq!(newest_first(&block("a"), "garbage"), block("a"));
    }
}
