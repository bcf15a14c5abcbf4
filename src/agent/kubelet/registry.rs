//! The endpoint at which a device plugin registers: the one method `v1beta1.Registration/Register`, over HTTP/2.
//!
//! NVIDIA's plugin is written with grpc-go, which sends the path of the socket as `:authority`, escaped:
//! `%2Fvar%2Flib%2F…`. The HTTP/2 server below tonic refuses that before any of our code is asked, and has no option for
//! it. This endpoint therefore reads frames itself, and skips the headers unread. What a call is for follows from its
//! message: see `decode`. Everything that a client can make large is bounded.

use std::io;
use std::time::Duration;

use prost::Message as _;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use super::messages::RegisterRequest;

/// The version of the device plugin API.
pub const API_VERSION: &str = "v1beta1";

/// The bytes with which every HTTP/2 client begins.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// The largest payload of a frame, in bytes. HTTP/2 forbids larger ones unless a server offers more.
const MAX_FRAME: usize = 16_384;
/// The largest message, in bytes. A registration takes about 60.
const MAX_MESSAGE: usize = 4_096;
/// The largest number of frames on one connection. A registration takes about ten.
const MAX_FRAMES: usize = 1_000;
/// Time limit for one connection. A plugin closes it as soon as it is registered.
pub const DEADLINE: Duration = Duration::from_secs(10);

/// Types of frames.
mod kind {
    pub(super) const DATA: u8 = 0;
    pub(super) const HEADERS: u8 = 1;
    pub(super) const SETTINGS: u8 = 4;
    pub(super) const PING: u8 = 6;
    pub(super) const GO_AWAY: u8 = 7;
}

/// Flags of frames. The same bit has two meanings, depending on the type.
mod flag {
    pub(super) const END_STREAM: u8 = 1;
    pub(super) const ACK: u8 = 1;
    pub(super) const END_HEADERS: u8 = 4;
    pub(super) const PADDED: u8 = 8;
}

/// Status codes of gRPC.
mod status {
    pub(super) const OK: u8 = 0;
    pub(super) const INVALID_ARGUMENT: u8 = 3;
}

/// Why a connection was closed.
#[derive(Debug, thiserror::Error)]
pub enum RegistryError {
    /// The connection broke.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// The client does not speak HTTP/2.
    #[error("the client does not begin with the preface of HTTP/2")]
    Preface,
    /// A frame is larger than `MAX_FRAME`.
    #[error("a frame of {0} bytes, and at most {MAX_FRAME} are allowed")]
    FrameTooLarge(usize),
    /// A message is larger than `MAX_MESSAGE`.
    #[error("a message of more than {MAX_MESSAGE} bytes")]
    MessageTooLarge,
    /// The padding of a frame is longer than the frame.
    #[error("a frame whose padding is longer than the frame")]
    Padding,
    /// The client sent more than `MAX_FRAMES` frames.
    #[error("more than {MAX_FRAMES} frames")]
    TooManyFrames,
    /// Data of a call that has no headers.
    #[error("data of a stream that was not opened")]
    Stream,
    /// The client took longer than [`DEADLINE`].
    #[error("not finished within {} s", .0.as_secs())]
    Late(Duration),
}

/// Serves one connection until the client closes it. `register` is called for each registration; its error is the
/// message that the client gets.
///
/// # Errors
/// The client is no HTTP/2 client, exceeds a bound, or breaks the connection.
pub async fn serve<C>(
    connection: C,
    register: impl FnMut(RegisterRequest) -> Result<(), String>,
) -> Result<(), RegistryError>
where
    C: AsyncRead + AsyncWrite + Unpin,
{
    serve_within(DEADLINE, connection, register).await
}

async fn serve_within<C>(
    deadline: Duration,
    connection: C,
    mut register: impl FnMut(RegisterRequest) -> Result<(), String>,
) -> Result<(), RegistryError>
where
    C: AsyncRead + AsyncWrite + Unpin,
{
    let mut connection = Connection(connection);
    tokio::time::timeout(deadline, connection.serve(&mut register)).await.map_err(|_| RegistryError::Late(deadline))?
}

struct Connection<C>(C);

struct Frame {
    kind: u8,
    flags: u8,
    stream: u32,
    payload: Vec<u8>,
}

impl<C: AsyncRead + AsyncWrite + Unpin> Connection<C> {
    async fn serve(
        &mut self,
        register: &mut impl FnMut(RegisterRequest) -> Result<(), String>,
    ) -> Result<(), RegistryError> {
        let mut preface = [0; PREFACE.len()];
        self.0.read_exact(&mut preface).await?;
        if preface != PREFACE {
            return Err(RegistryError::Preface);
        }
        self.write(kind::SETTINGS, 0, 0, &[]).await?;
        // One call at a time: a plugin makes one, waits for its answer, and leaves.
        let mut call: Option<(u32, Vec<u8>)> = None;
        for _ in 0..MAX_FRAMES {
            let Some(frame) = self.read().await? else { return Ok(()) };
            match frame.kind {
                kind::SETTINGS | kind::PING if frame.flags & flag::ACK == 0 => {
                    let echo = if frame.kind == kind::PING { frame.payload.as_slice() } else { &[] };
                    self.write(frame.kind, flag::ACK, 0, echo).await?;
                }
                kind::GO_AWAY => return Ok(()),
                kind::HEADERS => call = Some((frame.stream, Vec::new())),
                kind::DATA => {
                    let Some((stream, message)) = &mut call else { return Err(RegistryError::Stream) };
                    if *stream != frame.stream {
                        return Err(RegistryError::Stream);
                    }
                    message.extend_from_slice(unpadded(&frame)?);
                    // So no window of flow control is ever used up.
                    if message.len() > MAX_MESSAGE {
                        return Err(RegistryError::MessageTooLarge);
                    }
                }
                // Window updates, priorities, resets, further headers, acknowledgements, and what is not known.
                _ => continue,
            }
            let is_call = matches!(frame.kind, kind::HEADERS | kind::DATA);
            if is_call
                && frame.flags & flag::END_STREAM != 0
                && let Some((stream, message)) = call.take()
            {
                let answer = decode(&message).map_err(str::to_owned).and_then(&mut *register);
                self.answer(stream, answer).await?;
            }
        }
        Err(RegistryError::TooManyFrames)
    }

    /// Reads a frame. `None` if the client closed the connection between two frames.
    async fn read(&mut self) -> Result<Option<Frame>, RegistryError> {
        let mut head = [0; 9];
        let first = self.0.read(&mut head).await?;
        if first == 0 {
            return Ok(None);
        }
        self.0.read_exact(&mut head[first..]).await?;
        let [a, b, c, kind, flags, stream @ ..] = head;
        let length = u32::from_be_bytes([0, a, b, c]) as usize;
        if length > MAX_FRAME {
            return Err(RegistryError::FrameTooLarge(length));
        }
        let mut payload = vec![0; length];
        self.0.read_exact(&mut payload).await?;
        // The first bit of a stream's number is reserved.
        Ok(Some(Frame { kind, flags, stream: u32::from_be_bytes(stream) & (u32::MAX >> 1), payload }))
    }

    async fn write(&mut self, kind: u8, flags: u8, stream: u32, payload: &[u8]) -> io::Result<()> {
        let length = u32::try_from(payload.len()).map_err(io::Error::other)?.to_be_bytes();
        let mut frame = length[1..].to_vec();
        frame.extend([kind, flags]);
        frame.extend(stream.to_be_bytes());
        frame.extend(payload);
        self.0.write_all(&frame).await
    }

    async fn answer(&mut self, stream: u32, answer: Result<(), String>) -> io::Result<()> {
        let (status, message) = match answer {
            Ok(()) => (status::OK, String::new()),
            Err(message) => (status::INVALID_ARGUMENT, message),
        };
        let mut head = vec![STATUS_200];
        literal(&mut head, "content-type", "application/grpc");
        self.write(kind::HEADERS, flag::END_HEADERS, stream, &head).await?;
        if status == status::OK {
            // A message without fields: not compressed, length 0.
            self.write(kind::DATA, 0, stream, &[0; 5]).await?;
        }
        let mut trailers = Vec::new();
        literal(&mut trailers, "grpc-status", &status.to_string());
        literal(&mut trailers, "grpc-message", &message);
        self.write(kind::HEADERS, flag::END_HEADERS | flag::END_STREAM, stream, &trailers).await
    }
}

/// `:status: 200` in the static table of HPACK.
const STATUS_200: u8 = 0x80 | 8;

/// Appends a header in the plainest form of HPACK: neither indexed nor compressed. Texts longer than 126 bytes, which
/// would need a longer length, are cut.
fn literal(block: &mut Vec<u8>, name: &str, value: &str) {
    block.push(0);
    for text in [name, value] {
        // gRPC allows printable ASCII in its messages.
        let text: Vec<u8> =
            text.bytes().filter(|byte| (b' '..=b'~').contains(byte) && *byte != b'%').take(126).collect();
        block.push(u8::try_from(text.len()).expect("at most 126"));
        block.extend(text);
    }
}

/// The payload of a frame without its padding.
fn unpadded(frame: &Frame) -> Result<&[u8], RegistryError> {
    if frame.flags & flag::PADDED == 0 {
        return Ok(&frame.payload);
    }
    let (padding, rest) = frame.payload.split_first().ok_or(RegistryError::Padding)?;
    let length = rest.len().checked_sub(usize::from(*padding)).ok_or(RegistryError::Padding)?;
    Ok(&rest[..length])
}

/// Reads the one message of a call. The path of the call was not read, so the message must show that it is a
/// registration: by the version of the API, and by the name of a socket without its directory.
fn decode(body: &[u8]) -> Result<RegisterRequest, &'static str> {
    let [compressed, a, b, c, d, message @ ..] = body else { return Err("a call without a message") };
    if *compressed != 0 {
        return Err("a compressed message");
    }
    if u32::from_be_bytes([*a, *b, *c, *d]) as usize != message.len() {
        return Err("not exactly one message");
    }
    let request = RegisterRequest::decode(message).map_err(|_| "the message is no RegisterRequest")?;
    if request.version != API_VERSION {
        return Err("only version v1beta1 of the device plugin API is served");
    }
    if request.endpoint.is_empty() || request.endpoint.contains('/') || request.endpoint.starts_with('.') {
        return Err("endpoint must be the file name of a socket in the directory of this one");
    }
    if !request.resource_name.contains('/') {
        return Err("resource_name must be an extended resource such as example.com/name");
    }
    Ok(request)
}

#[cfg(test)]
mod tests;
