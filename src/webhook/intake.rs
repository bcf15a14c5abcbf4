//! Bodies on their way in: how many bytes of them are in memory, and what parsing may make of them. Owns the budget of the
//! HTTPS port, in two lanes that cannot take each other's room, and the deadline of a body.
//!
//! Nothing is reserved for what a client only claims. A body takes room as it arrives; where there is none it waits in the
//! kernel's buffers. Of the bodies that wait, one at a time may go on beyond the room, so that half of each is never all there is.

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

/// Reviews carry objects of up to about 3 MiB, old and new.
pub(super) const MAX_BODY: usize = 8 << 20;
/// What is small: reviews are tens of KiB. Larger bodies have a lane of their own.
const SMALL_BODY: usize = 256 << 10;
/// What nearly all reviews are smaller than. These are parsed without waiting for larger ones, which one by one may take some
/// ten milliseconds to judge.
const USUAL_BODY: usize = 32 << 10;
/// For the whole body of a request to arrive. API servers send one at once, and give up after 2 to 5 s.
const BODY_DEADLINE: Duration = Duration::from_secs(2);

/// Room is counted in KiB.
const KIB: usize = 1 << 10;
/// Room is taken in steps of this.
const STEP: usize = 4 * KIB;
/// Bodies of the small lane that are in memory at once: hundreds of reviews.
const SMALL_ROOM: usize = 8 << 20;
/// Bodies of the large lane that are in memory at once, and one more of [`MAX_BODY`] on its way.
const LARGE_ROOM: usize = 16 << 20;

/// What parsing makes of a byte in the worst case: an empty container of three bytes takes some hundred.
const AMPLIFICATION: usize = 48;
/// What it makes of a body in the worst case. `k8s::object::bounds` caps it; values of an affinity take 4/3 of their JSON.
const MAX_PARSED: usize = 12 << 20;
/// What all bodies of one lane are parsed to at once: many small ones, or a single large one, so that the other workers go on.
const PARSED_ROOM: usize = MAX_PARSED;

/// Room for the bodies of a server.
#[derive(Debug)]
pub struct Intake {
    /// KiB of what usual bodies are parsed to.
    usual: Arc<Semaphore>,
    small: Lane,
    large: Lane,
}

/// Room that only bodies of one kind can take.
#[derive(Debug)]
struct Lane {
    /// KiB of bodies.
    arriving: Arc<Semaphore>,
    /// Lets one body go on although there is no room.
    beyond: Arc<Semaphore>,
    /// KiB of what they are parsed to.
    parsed: Arc<Semaphore>,
    /// Answers that are as long as their question.
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

/// Room that a body has taken; it is given back when this is dropped.
#[derive(Debug, Default)]
pub struct Room {
    taken: Option<OwnedSemaphorePermit>,
    bytes: usize,
    beyond: Option<OwnedSemaphorePermit>,
}

impl Room {
    /// Takes room for a body of `bytes` in all.
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

/// A body that is all here, with the room that it takes.
#[derive(Debug)]
pub struct Received {
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

    /// Waits for room to parse it.
    pub(super) async fn room_to_parse(&self) -> OwnedSemaphorePermit {
        let parsed = self.bytes.len().saturating_mul(AMPLIFICATION).clamp(KIB, MAX_PARSED);
        let permits = u32::try_from(parsed / KIB).expect("at most 12 MiB");
        let usual = self.bytes.len() <= USUAL_BODY;
        let room = if usual { &self.intake.usual } else { &self.lane().parsed };
        room.clone().acquire_many_owned(permits).await.expect("the semaphore is never closed")
    }

    /// Waits for its turn to make an answer that is as long as it is.
    pub(super) async fn turn_to_answer(&self) -> OwnedSemaphorePermit {
        self.lane().answers.clone().acquire_owned().await.expect("the semaphore is never closed")
    }

    /// Drops the body and keeps its room, for what was read from it.
    pub(super) fn into_room(self) -> Room {
        self.room
    }
}

/// Why there is no body.
#[derive(Clone, Copy, Debug)]
pub struct NoBody(StatusCode, &'static str);

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
        // A body that claimed to be large and is small has room in the large lane; it is parsed as a small one.
        Ok(Received { bytes, room, intake: self })
    }
}

/// Reads what is a little too large to its end and keeps none of it: a client that is still sending when the connection closes
/// would not see why.
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

/// Appends in steps that double up to what was claimed: never twice what came, and a body of one frame is copied once.
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
