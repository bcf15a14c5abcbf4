//! gRPC calls over a unix socket. Owns connection, deadline and codecs.
//!
//! A [`Channel`] connects at its first call, and again after the other side has gone, to whatever then listens at its
//! path. So one channel outlives restarts of the kubelet.

use std::path::PathBuf;
use std::time::Duration;

use bytes::{Buf, BufMut, Bytes};
use http::uri::PathAndQuery;
use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Status, Streaming};
use tonic_prost::ProstCodec;

/// The largest message that is read, in bytes. A list of 500 pods with eight devices each takes less than 1 MiB.
pub const MAX_MESSAGE: usize = 16 << 20;

/// Opens a channel to the unix socket at `path`. It connects at the first call.
pub fn channel(path: PathBuf) -> Channel {
    let connector = tower::service_fn(move |_| {
        let path = path.clone();
        async move { UnixStream::connect(path).await.map(TokioIo::new) }
    });
    // The address is never resolved; it becomes the `:authority` of each call.
    Endpoint::from_static("http://localhost").connect_with_connector_lazy(connector)
}

/// Calls a unary method and waits at most `deadline` for the answer.
///
/// # Errors
/// The connection failed, the other side answered with an error, or the deadline passed.
pub async fn unary<Q, A>(channel: &Channel, path: &'static str, question: Q, deadline: Duration) -> Result<A, Status>
where
    Q: prost::Message + Default + Send + Sync + 'static,
    A: prost::Message + Default + Send + Sync + 'static,
{
    call(channel, path, question, ProstCodec::<Q, A>::default(), deadline).await
}

/// As [`unary`], with the encoded messages: nothing of them is lost, whatever fields they have.
///
/// # Errors
/// As [`unary`].
pub async fn unary_raw(
    channel: &Channel,
    path: &'static str,
    question: Bytes,
    deadline: Duration,
) -> Result<Bytes, Status> {
    call(channel, path, question, Raw, deadline).await
}

async fn call<C: Codec>(
    channel: &Channel,
    path: &'static str,
    question: C::Encode,
    codec: C,
    deadline: Duration,
) -> Result<C::Decode, Status>
where
    C::Encode: Send + Sync + 'static,
    C::Decode: Send + Sync + 'static,
{
    let mut grpc = tonic::client::Grpc::new(channel.clone()).max_decoding_message_size(MAX_MESSAGE);
    let answer = async {
        grpc.ready().await.map_err(|error| Status::unavailable(causes(&error)))?;
        grpc.unary(Request::new(question), PathAndQuery::from_static(path), codec).await
    };
    let late = |_| Status::deadline_exceeded(format!("no answer within {} ms", deadline.as_millis()));
    tokio::time::timeout(deadline, answer).await.map_err(late)?.map(tonic::Response::into_inner)
}

/// Opens a stream of encoded messages. The deadline is for its start, not for its messages.
///
/// # Errors
/// As [`unary`].
pub async fn stream_raw(
    channel: &Channel,
    path: &'static str,
    question: Bytes,
    deadline: Duration,
) -> Result<Streaming<Bytes>, Status> {
    let mut grpc = tonic::client::Grpc::new(channel.clone()).max_decoding_message_size(MAX_MESSAGE);
    let answer = async {
        grpc.ready().await.map_err(|error| Status::unavailable(causes(&error)))?;
        grpc.server_streaming(Request::new(question), PathAndQuery::from_static(path), Raw).await
    };
    let late = |_| Status::deadline_exceeded(format!("no answer within {} ms", deadline.as_millis()));
    tokio::time::timeout(deadline, answer).await.map_err(late)?.map(tonic::Response::into_inner)
}

/// The error with its causes. tonic's own text is only "transport error".
fn causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}

/// A codec that leaves messages encoded.
///
/// A message that was decoded and encoded again loses the fields that this program does not know. A device plugin may
/// use such fields.
#[derive(Clone, Copy, Debug, Default)]
pub struct Raw;

impl Codec for Raw {
    type Encode = Bytes;
    type Decode = Bytes;
    type Encoder = Raw;
    type Decoder = Raw;
    fn encoder(&mut self) -> Raw {
        Raw
    }
    fn decoder(&mut self) -> Raw {
        Raw
    }
}

impl Encoder for Raw {
    type Item = Bytes;
    type Error = Status;
    fn encode(&mut self, message: Bytes, buffer: &mut EncodeBuf<'_>) -> Result<(), Status> {
        buffer.put(message);
        Ok(())
    }
}

impl Decoder for Raw {
    type Item = Bytes;
    type Error = Status;
    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<Bytes>, Status> {
        Ok(Some(buffer.copy_to_bytes(buffer.remaining())))
    }
}
