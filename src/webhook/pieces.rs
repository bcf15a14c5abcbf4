//! Sends long answers in pieces. A client that reads slowly, or not at all, holds memory and a permit for a bounded
//! time.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::http::header;
use axum::response::{IntoResponse, Response};
use futures::stream;
use parking_lot::Mutex;
use tokio::sync::OwnedSemaphorePermit;

/// Size of one piece, in bytes. Bytes that the client has not read are not copied into the connection's buffers.
const PIECE: usize = 64 << 10;

/// Returns `answer` as a response that is sent in pieces.
///
/// The answer is dropped and the permit `turn` returned once the client has read all of it, or after `within`.
pub fn chunked(answer: Bytes, turn: OwnedSemaphorePermit, within: Duration) -> Response {
    let length = answer.len();
    let left = Arc::new(Mutex::new(Some((answer, turn))));
    tokio::spawn({
        let left = Arc::downgrade(&left);
        async move {
            tokio::time::sleep(within).await;
            left.upgrade().and_then(|left| left.lock().take());
        }
    });
    let pieces = stream::iter(std::iter::from_fn(move || {
        let mut left = left.lock();
        let (bytes, _) = left.as_mut()?;
        let piece = bytes.split_to(PIECE.min(bytes.len()));
        if bytes.is_empty() {
            left.take();
        }
        (!piece.is_empty()).then_some(Ok::<Bytes, Infallible>(piece))
    }));
    // With this header the client notices an answer that was broken off.
    ([(header::CONTENT_LENGTH, length)], Body::from_stream(pieces)).into_response()
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt;
    use tokio::sync::Semaphore;

    use super::*;

    #[tokio::test]
    async fn an_answer_that_nobody_fetches_gives_its_turn_back() {
        const WITHIN: Duration = Duration::from_millis(100);
        let turns = Arc::new(Semaphore::new(1));
        let answer = |length: usize| {
            chunked(vec![b'x'; length].into(), turns.clone().try_acquire_owned().unwrap(), WITHIN).into_body()
        };
        let fetched = answer(3 * PIECE + 1).collect().await.unwrap().to_bytes();
        assert_eq!((fetched.len(), turns.available_permits()), (3 * PIECE + 1, 1));
        let mut left = answer(3 * PIECE + 1);
        assert_eq!(left.frame().await.unwrap().unwrap().into_data().unwrap().len(), PIECE);
        assert_eq!(turns.available_permits(), 0);
        let turn = tokio::time::timeout(Duration::from_secs(20), turns.acquire()).await;
        assert!(turn.expect("it is given back").is_ok());
        assert!(left.frame().await.is_none(), "it is broken off");
    }

    #[tokio::test]
    async fn an_answer_whose_connection_is_gone_gives_its_turn_back_at_once() {
        let turns = Arc::new(Semaphore::new(1));
        drop(chunked("x".into(), turns.clone().try_acquire_owned().unwrap(), Duration::from_secs(3600)));
        assert_eq!(turns.available_permits(), 1);
    }
}
