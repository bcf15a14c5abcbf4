//! LIST and WATCH of one kind of object, without end: what to request, when to go on and when to start again. Owns time
//! limits, back-off and resource versions; [`super::json`] turns bytes into objects.
//!
//! kube's watcher reads each page of a list into memory as a whole, several times over. A page of 500 pods can be
//! gigabytes, and any tenant may write them. Here one object at a time is in memory.

use std::borrow::Cow;
use std::fmt::Debug;
use std::time::{Duration, Instant};

use futures::TryFutureExt;
use http_body_util::BodyExt;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::Client;
use kube::client::Body;
use kube::core::Request;
use kube::core::params::{ListParams, WatchParams};
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::json::{ListMeta, ListReader, Malformed, Status, WatchEvent, WatchReader};

/// Objects in one page of a LIST. It limits the API server's memory, which holds a whole page whatever the client does.
const PAGE: u32 = 500;
/// Duration of one watch. Its end is a sign of life. The next watch is cheap, because it needs no new list.
pub const WATCH: Duration = Duration::from_secs(60);
/// Time past its end that a watch may be silent before its connection counts as dead.
const GRACE: Duration = Duration::from_secs(10);
/// Time limit for the next bytes of a list: the API server's own request timeout.
const SILENCE: Duration = Duration::from_secs(60);
/// Pause between attempts: the first value, doubled up to the second while no attempt succeeds.
const BACK_OFF: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(10));
/// Bytes that are kept of the answer to a failed request.
const MAX_STATUS: usize = 64 << 10;

/// What happened to the objects of one kind.
#[derive(Debug, PartialEq, Eq)]
pub enum Event<K> {
    /// A list is about to be requested. This is no sign of life.
    ListBegins,
    /// An object of the list.
    Listed(K),
    /// The list is complete: an object that it did not name no longer exists.
    ListEnds,
    /// An object was created or changed.
    Applied(K),
    /// An object was deleted.
    Deleted(K),
    /// The API server answered or sent bytes: a sign of life, whether or not objects follow.
    Heard,
}

/// Why a list or a watch ended early.
#[derive(Debug, thiserror::Error)]
pub enum StreamError {
    /// The request could not be sent, or its connection broke.
    #[error(transparent)]
    Request(Box<dyn std::error::Error + Send + Sync>),
    /// The API server refused the request.
    #[error("the API server answers {code}: {message}", code = .0.code, message = .0.message)]
    Refused(Status),
    /// The answer is not what was requested.
    #[error("the answer {0}")]
    Malformed(#[from] Malformed),
    /// No bytes arrived within the time limit.
    #[error("nothing heard for {} s", .0.as_secs())]
    Silent(Duration),
}

impl StreamError {
    /// Whether the API server no longer has the version that a watch or page continues from (410 Gone).
    fn is_gone(&self) -> bool {
        matches!(self, StreamError::Refused(status) if status.code == 410)
    }

    /// Whether the API server does not serve this kind (404 Not Found).
    fn is_not_served(&self) -> bool {
        matches!(self, StreamError::Refused(status) if status.code == 404)
    }
}

/// A kind that can be listed and watched.
pub trait Watched: kube::Resource<DynamicType = ()> + DeserializeOwned + Debug {}
impl<K: kube::Resource<DynamicType = ()> + DeserializeOwned + Debug> Watched for K {}

/// All objects of one kind in the cluster or a namespace, or those of them that a field selector matches.
#[derive(Clone)]
pub struct Source {
    /// Client of the API server.
    pub client: Client,
    /// Namespace; `None` for all, and for kinds without one.
    pub namespace: Option<String>,
    /// Field selector; empty for all objects.
    pub fields: Cow<'static, str>,
    /// Duration of one watch. Its end is a sign of life; many clients should not renew their watches often.
    pub watch: Duration,
    /// Whether an API server that has never served this kind counts as one without objects of it.
    pub optional: bool,
}

impl Source {
    /// The objects that a field selector matches, with watches of [`WATCH`]. An empty selector matches all objects.
    pub fn new(client: Client, fields: impl Into<Cow<'static, str>>) -> Source {
        Source { client, namespace: None, fields: fields.into(), watch: WATCH, optional: false }
    }

    /// Lists and watches until cancelled. After an error the watch continues from the last version seen, or, if the API
    /// server no longer has that version, from a new list.
    pub async fn follow<K: Watched>(&self, mut tell: impl FnMut(Event<K>)) {
        let mut pause = BACK_OFF.0;
        let mut version: Option<String> = None;
        let (mut was_served, mut was_told) = (false, false);
        loop {
            let (went_on_from, started) = (version.clone(), Instant::now());
            let attempt = match &mut version {
                None => self.list(&mut tell).await.map(|listed| version = Some(listed)),
                Some(version) => self.watch(&mut tell, version).await,
            };
            if version != went_on_from || started.elapsed() > BACK_OFF.1 {
                pause = BACK_OFF.0;
            }
            match attempt {
                // A list leads to its watch, and one watch to the next. A watch that ends at once is treated as an
                // error.
                Ok(()) if version != went_on_from || started.elapsed() > BACK_OFF.1 => {
                    was_served = true;
                    continue;
                }
                Ok(()) => {}
                // Objects that have been listed may still exist, as when a version is no longer served. If they were
                // deleted with their definition, the watch has said so.
                Err(error) if self.optional && error.is_not_served() && !was_served => {
                    if !std::mem::replace(&mut was_told, true) {
                        let kind = K::kind(&());
                        tracing::warn!("{kind} is not served: its custom resource definition is not installed");
                    }
                    pause = self.watch / 6;
                    tell(Event::ListBegins);
                    tell(Event::ListEnds);
                }
                Err(error) => {
                    let kind = K::kind(&());
                    tracing::warn!("watching {kind}: {error}; going on in {} ms", pause.as_millis());
                    if error.is_gone() {
                        version = None;
                    }
                    // It has answered, so this replica is not cut off.
                    if self.optional && error.is_not_served() {
                        tell(Event::Heard);
                    }
                }
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(BACK_OFF.1);
        }
    }

    /// Lists once and passes on one object at a time.
    ///
    /// # Errors
    /// If the list breaks off. The objects passed on until then are not all objects.
    pub async fn once<K: Watched>(&self, mut each: impl FnMut(K)) -> Result<(), StreamError> {
        let mut tell = |event| {
            if let Event::Listed(object) = event {
                each(object);
            }
        };
        self.list(&mut tell).await.map(drop)
    }

    /// Lists the objects at a path of the API once, and passes on one at a time as untyped JSON.
    ///
    /// # Errors
    /// If the list breaks off. The objects passed on until then are not all objects.
    pub async fn values(&self, path: &str, mut each: impl FnMut(Value)) -> Result<(), StreamError> {
        let mut tell = |event| {
            if let Event::Listed(object) = event {
                each(object);
            }
        };
        let mut page = ListMeta::default();
        loop {
            page = self.page(path, &page.next, &mut tell).await?;
            if page.next.is_empty() {
                return Ok(());
            }
        }
    }

    /// Lists all pages, and returns the version of the list.
    async fn list<K: Watched>(&self, tell: &mut impl FnMut(Event<K>)) -> Result<String, StreamError> {
        tell(Event::ListBegins);
        let mut page = ListMeta::default();
        loop {
            page = self.page(&K::url_path(&(), self.namespace.as_deref()), &page.next, tell).await?;
            if page.next.is_empty() {
                break;
            }
        }
        tell(Event::ListEnds);
        Ok(page.resource_version)
    }

    async fn page<K: DeserializeOwned>(
        &self,
        path: &str,
        from: &str,
        tell: &mut impl FnMut(Event<K>),
    ) -> Result<ListMeta, StreamError> {
        let params = ListParams {
            field_selector: self.selector(),
            limit: Some(PAGE),
            continue_token: (!from.is_empty()).then(|| from.to_owned()),
            ..ListParams::default()
        };
        let request = Request::new(path).list(&params).map_err(request_error)?;
        let mut body = self.send(request).await?;
        let mut reader = ListReader::default();
        while let Some(bytes) = next_bytes(&mut body, SILENCE).await? {
            reader.feed(&bytes);
            while let Some(object) = reader.item()? {
                tell(Event::Listed(object));
            }
            tell(Event::Heard);
        }
        Ok(reader.finish()?)
    }

    /// Watches until the API server ends the watch. `version` advances with each event, so it is valid after an error
    /// too.
    async fn watch<K: Watched>(
        &self,
        tell: &mut impl FnMut(Event<K>),
        version: &mut String,
    ) -> Result<(), StreamError> {
        let params = WatchParams {
            field_selector: self.selector(),
            timeout: u32::try_from(self.watch.as_secs()).ok(),
            bookmarks: true,
            ..WatchParams::default()
        };
        let path = K::url_path(&(), self.namespace.as_deref());
        let request = Request::new(path).watch(&params, version).map_err(request_error)?;
        let mut body = self.send(request).await?;
        tell(Event::Heard);
        let mut reader = WatchReader::default();
        while let Some(bytes) = next_bytes(&mut body, self.watch + GRACE).await? {
            reader.feed(&bytes);
            tell(Event::Heard);
            while let Some(event) = reader.event::<K>()? {
                match event {
                    WatchEvent::Applied(object) => {
                        note_version(version, object.meta());
                        tell(Event::Applied(object));
                    }
                    WatchEvent::Deleted(object) => {
                        note_version(version, object.meta());
                        tell(Event::Deleted(object));
                    }
                    WatchEvent::Bookmark { version: seen } => *version = seen,
                    WatchEvent::Failed(status) => return Err(StreamError::Refused(status)),
                }
            }
        }
        Ok(())
    }

    fn selector(&self) -> Option<String> {
        (!self.fields.is_empty()).then(|| self.fields.clone().into_owned())
    }

    /// Sends a request, and returns the body of a successful answer.
    async fn send(&self, request: hyper::Request<Vec<u8>>) -> Result<Body, StreamError> {
        let answer = self.client.send(request.map(Body::from)).map_err(request_error);
        let answer = tokio::time::timeout(SILENCE, answer).await.map_err(|_| StreamError::Silent(SILENCE))??;
        let code = answer.status().as_u16();
        if answer.status().is_success() {
            return Ok(answer.into_body());
        }
        let mut text = Vec::new();
        let mut body = answer.into_body();
        while let Some(bytes) = next_bytes(&mut body, SILENCE).await? {
            text.extend_from_slice(&bytes[..bytes.len().min(MAX_STATUS - text.len())]);
        }
        // A proxy on the way may answer something other than a Status.
        let told = serde_json::from_slice::<Status>(&text).unwrap_or_default();
        Err(StreamError::Refused(Status { code, ..told }))
    }
}

fn note_version(version: &mut String, seen: &ObjectMeta) {
    if let Some(seen) = &seen.resource_version {
        version.clone_from(seen);
    }
}

async fn next_bytes(body: &mut Body, silence: Duration) -> Result<Option<hyper::body::Bytes>, StreamError> {
    loop {
        let frame = tokio::time::timeout(silence, body.frame()).await.map_err(|_| StreamError::Silent(silence))?;
        match frame.transpose().map_err(request_error)?.map(hyper::body::Frame::into_data) {
            None => return Ok(None),
            Some(Ok(bytes)) => return Ok(Some(bytes)),
            Some(Err(_trailers)) => {}
        }
    }
}

fn request_error(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> StreamError {
    StreamError::Request(error.into())
}

#[cfg(test)]
mod tests;
