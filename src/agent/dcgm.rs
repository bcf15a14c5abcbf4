//! Readings of the GPUs from a DCGM exporter on the node. Owns the request: its address, and how long and how large an
//! answer may be. [`crate::k8s::dcgm_exporter`] owns what the answer means.
//!
//! Each reading is a connection of its own. The exporter collects every 30 seconds by default, so readings are rare.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, StatusCode, Uri, header};
use http_body_util::{BodyExt, Empty};
use hyper::client::conn::http1::handshake;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::reading::{GpuReading, Reading};
use crate::capacity::observation::Listing;
use crate::capacity::observation::report::Driver;
use crate::capacity::verdict::Unreadable;
use crate::k8s::dcgm_exporter::{ExportedGpu, Scan};

/// Time between two readings, unless another is configured.
pub const INTERVAL: Duration = Duration::from_secs(10);
/// Time within which the whole answer must have arrived.
const DEADLINE: Duration = Duration::from_secs(5);
/// The largest answer, in bytes. Of 16 GPUs with 20 pods each it has some 5 MiB. It is read in pieces, and not kept.
const MAX_BODY: usize = 32 << 20;
/// Path of the exporter's page, unless another is configured.
const PATH: &str = "/metrics";

/// Address of a DCGM exporter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Exporter {
    /// Name or address, without the brackets of an IPv6 address.
    host: String,
    port: u16,
    /// Host and port, as in the URL.
    authority: String,
    /// Path and query.
    target: String,
}

impl FromStr for Exporter {
    type Err = String;

    fn from_str(text: &str) -> Result<Exporter, String> {
        let url: Uri =
            text.parse().map_err(|error| format!("it is no URL ({error}); write http://HOST:PORT/metrics"))?;
        if url.scheme_str() != Some("http") {
            return Err("it must begin with http://, as in http://HOST:PORT/metrics; TLS is not supported".to_owned());
        }
        let authority = url.authority().map(ToString::to_string).unwrap_or_default();
        if authority.contains('@') {
            return Err("it must not name a user; passwords are not supported".to_owned());
        }
        let host = url.host().unwrap_or_default().trim_start_matches('[').trim_end_matches(']').to_owned();
        let Some(port) = url.port_u16().filter(|_| !host.is_empty()) else {
            return Err("it must name host and port, as in http://HOST:9400/metrics".to_owned());
        };
        let target = url.path_and_query().map(|target| target.as_str()).filter(|target| *target != "/");
        Ok(Exporter { host, port, authority, target: target.unwrap_or(PATH).to_owned() })
    }
}

impl fmt::Display for Exporter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "http://{}{}", self.authority, self.target)
    }
}

impl Exporter {
    /// Reads all GPUs.
    ///
    /// # Errors
    /// The exporter cannot be reached, does not answer in time, or tells something that cannot be used.
    pub async fn read(&self) -> Result<Reading, Unreadable> {
        let late = |_| self.unreachable(format_args!("no complete answer within {} s", DEADLINE.as_secs()));
        timeout(DEADLINE, self.fetch()).await.map_err(late)?
    }

    async fn fetch(&self) -> Result<Reading, Unreadable> {
        let address = (self.host.as_str(), self.port);
        let socket = TcpStream::connect(address).await.map_err(|error| self.unreachable(error))?;
        let (mut sender, connection) =
            handshake(TokioIo::new(socket)).await.map_err(|error| self.unreachable(error))?;
        // Dropped with this future, so that a reading that takes too long closes its connection.
        let mut tasks = JoinSet::new();
        tasks.spawn(connection);
        let request = Request::get(&self.target)
            .header(header::HOST, &self.authority)
            .header(header::ACCEPT, "text/plain;version=0.0.4")
            .body(Empty::<Bytes>::new())
            .map_err(|error| self.unreachable(error))?;
        let response = sender.send_request(request).await.map_err(|error| self.unreachable(error))?;
        if response.status() != StatusCode::OK {
            return Err(self.unreachable(format_args!("it answers with status {}", response.status())));
        }
        let (mut body, mut scan, mut size) = (response.into_body(), Scan::default(), 0);
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(|error| self.unreachable(error))?;
            let Some(piece) = frame.data_ref() else { continue };
            size += piece.len();
            if size > MAX_BODY {
                return Err(Unreadable::BadExposition(format!("it prints more than {} MiB", MAX_BODY >> 20)));
            }
            scan.feed(piece)?;
        }
        let exposition = scan.finish()?;
        let driver = exposition.driver.map(|version| Driver { version, cuda: None });
        Ok(Reading { driver, gpus: exposition.gpus.into_iter().map(reading).collect(), full: true })
    }

    fn unreachable(&self, why: impl fmt::Display) -> Unreadable {
        Unreadable::NoExporter(format!("{self}: {why}"))
    }
}

fn reading(gpu: ExportedGpu) -> GpuReading {
    let ExportedGpu { uuid, index, product, mig, memory } = gpu;
    GpuReading { uuid, index: index.into(), product, mig, mps: false, memory, processes: Listing::NotTold }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_names_host_and_port_and_has_the_usual_path_by_default() {
        let cases = [
            ("http://10.0.0.7:9400", "http://10.0.0.7:9400/metrics", "10.0.0.7"),
            ("http://10.0.0.7:9400/", "http://10.0.0.7:9400/metrics", "10.0.0.7"),
            ("http://dcgm.gpu.svc:80/own?a=b", "http://dcgm.gpu.svc:80/own?a=b", "dcgm.gpu.svc"),
            ("http://[fd00::7]:9400/metrics", "http://[fd00::7]:9400/metrics", "fd00::7"),
        ];
        for (text, is, host) in cases {
            let exporter: Exporter = text.parse().unwrap_or_else(|why| panic!("{text}: {why}"));
            assert_eq!((exporter.to_string().as_str(), exporter.host.as_str()), (is, host));
        }
    }

    #[test]
    fn an_address_that_cannot_be_read_is_refused_with_what_to_write() {
        for (text, why) in [
            ("https://10.0.0.7:9400/metrics", "TLS is not supported"),
            ("10.0.0.7:9400", "must begin with http://"),
            ("/metrics", "must begin with http://"),
            ("http://10.0.0.7/metrics", "must name host and port"),
            ("http://:9400/metrics", ""),
            ("http://me:secret@10.0.0.7:9400/", "must not name a user"),
            ("http://fd00::7:9400/metrics", ""),
            ("http://10.0.0.7:99999/metrics", ""),
            ("", ""),
        ] {
            let refused = text.parse::<Exporter>().expect_err(text);
            assert!(refused.contains(why) && !refused.contains("secret"), "{text}: {refused}");
        }
    }
}
