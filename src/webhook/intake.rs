//! Memory budget for request bodies: the bytes that have arrived, and what parsing may allocate for them.
//!
//! Owns the budget of the HTTPS port and the deadline of a body. The budget has two lanes, for small and for large
//! bodies, which cannot use each other's room.
//!
//! A `Content-Length` reserves nothing. A body takes room as its bytes arrive; if there is none, it waits in the
//! kernel's buffers. Of the bodies that wait in a lane, one at a time may continue without room. Otherwise a lane full
//! of half bodies would be a deadlock.

use std::ops::Deref;
use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::extract::{FromRequest, Request};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use http_body_util::BodyExt;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::connections::Exchange;

/// Largest body, in bytes. A review carries an old and a new object of up to about 3 MiB each.
pub(super) const MAX_BODY: usize = 8 << 20;
/// Largest body of the small lane, in bytes. Reviews are tens of KiB; larger bodies use the large lane.
const SMALL_BODY: usize = 256 << 10;
/// Size that nearly all reviews stay below, in bytes.
///
/// These are parsed without waiting for larger ones, each of which may take some ten milliseconds to judge.
const USUAL_BODY: usize = 32 << 10;
/// Time limit for a whole body to arrive. API servers send a body at once, and give up after 2 to 5 s.
const BODY_DEADLINE: Duration = Duration::from_secs(2);

/// Bytes in a KiB, the unit of a permit.
const KIB: usize = 1 << 10;
/// Room is taken in multiples of this, in bytes.
const STEP: usize = 4 * KIB;
/// Bytes of bodies of the small lane in memory at the same time: hundreds of reviews.
const SMALL_ROOM: usize = 8 << 20;
/// Bytes of bodies of the large lane in memory at the same time. One more body of up to [`MAX_BODY`] may be arriving.
const LARGE_ROOM: usize = 16 << 20;

/// Bytes allocated for each byte of JSON in the worst case: an empty container of three bytes takes some hundred.
const AMPLIFICATION: usize = 48;
/// Bytes allocated for one body in the worst case. `k8s::object::bounds` caps it; values of an affinity take 4/3 of
/// their JSON.
const MAX_PARSED: usize = 12 << 20;
/// Bytes allocated for all parsed bodies of a lane at the same time.
///
/// This fits many small bodies or a single large one, so that other threads can keep answering.
const PARSED_ROOM: usize = MAX_PARSED;

/// Memory budget for the bodies of a server.
#[derive(Debug)]
pub(super) struct Intake {
    /// KiB that parsed bodies of up to [`USUAL_BODY`] may take.
    usual: Arc<Semaphore>,
    small: Lane,
    large: Lane,
}

/// The part of the budget that only small, or only large, bodies use.
#[derive(Debug)]
struct Lane {
    /// KiB that unparsed bodies may take.
    arriving: Arc<Semaphore>,
    /// A single permit for one body to continue without room.
    beyond: Arc<Semaphore>,
    /// KiB that parsed bodies may take.
    parsed: Arc<Semaphore>,
    /// Number of answers in memory that are as long as their request.
    answers: Arc<Semaphore>,
}

impl Lane {
    fn new(room: usize, answers: usize) -> Lane {
        Lane {
            arriving: Arc::new(Semaphore::new(room / KIB)),
            beyond: Arc::new(Semaphore::new(1)),
            parsed: Arc::new(Semaphore::new(PARSED_ROOM / KIB)),
            answers: Arc::new(Semaphore::new(answers)),
        }
    }
}

impl Default for Intake {
    fn default() -> Intake {
        let usual = Arc::new(Semaphore::new(PARSED_ROOM / KIB));
        Intake { usual, small: Lane::new(SMALL_ROOM, 4), large: Lane::new(LARGE_ROOM, 1) }
    }
}

/// The room that a body has taken; it is returned on drop.
#[derive(Debug, Default)]
pub(super) struct Room {
    taken: Option<OwnedSemaphorePermit>,
    bytes: usize,
    beyond: Option<OwnedSemaphorePermit>,
}

impl Room {
    /// Extends the room to a total of `bytes`.
    async fn grow(&mut self, lane: &Lane, bytes: usize) {
        let bytes = bytes.next_multiple_of(STEP);
        if self.beyond.is_some() || bytes <= self.bytes {
            return;
        }
        let more = u32::try_from((bytes - self.bytes) / KIB).expect("a body is at most 8 MiB");
        tokio::select! {
            biased;
            permit = lane.arriving.clone().acquire_many_owned(more) => {
                let permit = permit.expect("the semaphore is never closed");
                match &mut self.taken {
                    Some(taken) => taken.merge(permit),
                    None => self.taken = Some(permit),
                }
                self.bytes = bytes;
            }
            permit = lane.beyond.clone().acquire_owned() => {
                self.beyond = Some(permit.expect("the semaphore is never closed"));
            }
        }
    }
}

/// A body that has arrived completely, with the room that it takes.
#[derive(Debug)]
pub(super) struct Received {
    bytes: Vec<u8>,
    room: Room,
    intake: Arc<Intake>,
}

impl Deref for Received {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        &self.bytes
    }
}

impl Received {
    fn lane(&self) -> &Lane {
        if self.bytes.len() > SMALL_BODY { &self.intake.large } else { &self.intake.small }
    }

    /// Waits for room to parse the body.
    pub(super) async fn room_to_parse(&self) -> OwnedSemaphorePermit {
        let parsed = self.bytes.len().saturating_mul(AMPLIFICATION).clamp(KIB, MAX_PARSED);
        let permits = u32::try_from(parsed / KIB).expect("at most 12 MiB");
        let usual = self.bytes.len() <= USUAL_BODY;
        let room = if usual { &self.intake.usual } else { &self.lane().parsed };
        room.clone().acquire_many_owned(permits).await.expect("the semaphore is never closed")
    }

    /// Waits for a permit for an answer as long as the body.
    pub(super) async fn answer_permit(&self) -> OwnedSemaphorePermit {
        self.lane().answers.clone().acquire_owned().await.expect("the semaphore is never closed")
    }

    /// Drops the body and keeps its room for the parsed object.
    pub(super) fn into_room(self) -> Room {
        self.room
    }
}

/// Response to a request whose body could not be received.
#[derive(Clone, Copy, Debug)]
pub(super) struct NoBody(StatusCode, &'static str);

const TOO_LARGE: NoBody = NoBody(StatusCode::PAYLOAD_TOO_LARGE, "the body is larger than 8 MiB\n");
const TOO_SLOW: NoBody = NoBody(StatusCode::REQUEST_TIMEOUT, "the body did not arrive within 2 s\n");
const BROKEN_OFF: NoBody = NoBody(StatusCode::BAD_REQUEST, "the body ended before it was whole\n");

impl IntoResponse for NoBody {
    fn into_response(self) -> Response {
        (self.0, self.1).into_response()
    }
}

impl<S: Sync> FromRequest<S> for Received {
    type Rejection = NoBody;

    async fn from_request(request: Request, _: &S) -> Result<Received, NoBody> {
        let (parts, body) = request.into_parts();
        let intake = parts.extensions.get::<Arc<Intake>>().expect("`limited` puts it there").clone();
        let claimed = parts.headers.get(header::CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse().ok());
        let received = tokio::time::timeout(BODY_DEADLINE, intake.receive(claimed, body)).await;
        let received = received.unwrap_or(Err(TOO_SLOW))?;
        if let Some(exchange) = parts.extensions.get::<Arc<Exchange>>() {
            exchange.received();
        }
        Ok(received)
    }
}

impl Intake {
    async fn receive(self: Arc<Intake>, claimed: Option<usize>, mut body: Body) -> Result<Received, NoBody> {
        let claimed = claimed.unwrap_or(0);
        if claimed > MAX_BODY {
            return Err(too_large(body).await);
        }
        let mut lane = if claimed > SMALL_BODY { &self.large } else { &self.small };
        let mut bytes = Vec::new();
        let mut room = Room::default();
        while let Some(frame) = body.frame().await {
            let Ok(data) = frame.map_err(|_| BROKEN_OFF)?.into_data() else { continue };
            let length = bytes.len() + data.len();
            if length > MAX_BODY {
                drop((bytes, room));
                return Err(too_large(body).await);
            }
            if length > SMALL_BODY && std::ptr::eq(lane, &self.small) {
                lane = &self.large;
                room = Room::default();
            }
            room.grow(lane, length).await;
            append(&mut bytes, &data, claimed);
        }
        // A body whose Content-Length was large, but which is small, has room in the large lane and is parsed in the
        // small one.
        Ok(Received { bytes, room, intake: self })
    }
}

/// Reads and discards a body that is too large, up to a bound.
///
/// A client that is still sending when the connection closes does not see the response.
async fn too_large(mut body: Body) -> NoBody {
    let mut left = 2 * MAX_BODY;
    while let Some(Ok(frame)) = body.frame().await {
        left = left.saturating_sub(frame.data_ref().map_or(0, Bytes::len));
        if left == 0 {
            break;
        }
    }
    TOO_LARGE
}

/// Appends a frame. The capacity doubles, up to the `Content-Length` in `claimed`.
///
/// The capacity therefore stays below twice the bytes that arrived, and a body of one frame is copied once.
fn append(bytes: &mut Vec<u8>, data: &Bytes, claimed: usize) {
    let length = bytes.len() + data.len();
    if length > bytes.capacity() {
        let most = if claimed < length { MAX_BODY } else { claimed };
        let capacity = (2 * bytes.capacity()).clamp(length, most);
        bytes.reserve_exact(capacity - bytes.len());
    }
    bytes.extend_from_slice(data);
}

#[cfg(test)]
mod tests;
