//! Which bodies get room, and when the room is returned.

use std::convert::Infallible;
use std::task::Poll;

use futures::future::join_all;
use futures::{poll, stream};
use tokio::sync::mpsc;

use super::*;

/// A body whose bytes arrive when the test sends them.
fn body() -> (mpsc::Sender<usize>, Body) {
    let (bytes, arriving) = mpsc::channel::<usize>(64);
    let frames = stream::unfold(arriving, async |mut arriving| {
        let length = arriving.recv().await?;
        Some((Ok::<Bytes, Infallible>(Bytes::from(vec![b'x'; length])), arriving))
    });
    (bytes, Body::from_stream(frames))
}

/// Free KiB in both lanes.
fn free(intake: &Intake) -> (usize, usize) {
    (intake.small.arriving.available_permits(), intake.large.arriving.available_permits())
}

const ALL: (usize, usize) = (SMALL_ROOM / KIB, LARGE_ROOM / KIB);

#[tokio::test]
async fn a_claim_takes_no_room_and_what_arrived_does_until_it_is_dropped() {
    let intake = Arc::new(Intake::default());
    let (bytes, body) = body();
    let mut receiving = std::pin::pin!(intake.clone().receive(Some(MAX_BODY), body));
    assert!(poll!(receiving.as_mut()).is_pending());
    assert_eq!(free(&intake), ALL, "nothing arrived");
    bytes.send(1000).await.unwrap();
    assert!(poll!(receiving.as_mut()).is_pending());
    assert_eq!(free(&intake), (ALL.0, ALL.1 - 4));
    bytes.send(300 << 10).await.unwrap();
    assert!(poll!(receiving.as_mut()).is_pending());
    assert_eq!(free(&intake), (ALL.0, ALL.1 - 304));
    drop(bytes);
    let Poll::Ready(Ok(received)) = poll!(receiving.as_mut()) else { panic!("it is whole") };
    assert_eq!(received.len(), (300 << 10) + 1000);
    let room = received.into_room();
    assert_eq!(free(&intake), (ALL.0, ALL.1 - 304));
    drop(room);
    assert_eq!(free(&intake), ALL);
}

#[tokio::test]
async fn a_body_that_grows_large_leaves_the_small_lane() {
    let intake = Arc::new(Intake::default());
    let (bytes, body) = body();
    let mut receiving = std::pin::pin!(intake.clone().receive(None, body));
    bytes.send(SMALL_BODY).await.unwrap();
    assert!(poll!(receiving.as_mut()).is_pending());
    assert_eq!(free(&intake), (ALL.0 - 256, ALL.1));
    bytes.send(1).await.unwrap();
    assert!(poll!(receiving.as_mut()).is_pending());
    assert_eq!(free(&intake), (ALL.0, ALL.1 - 260));
}

#[tokio::test]
async fn a_small_body_passes_large_ones_that_wait() {
    let intake = Arc::new(Intake::default());
    let slow: Vec<_> = (0..8).map(|_| body()).collect();
    let (senders, bodies): (Vec<_>, Vec<_>) = slow.into_iter().unzip();
    let mut waiting: Vec<_> =
        bodies.into_iter().map(|body| Box::pin(intake.clone().receive(Some(MAX_BODY), body))).collect();
    for (sender, receiving) in senders.iter().zip(&mut waiting) {
        sender.send(MAX_BODY - 1).await.unwrap();
        assert!(poll!(receiving).is_pending());
    }
    assert!(free(&intake).1 < MAX_BODY / KIB, "the large lane is full");
    let small = intake.clone().receive(Some(3), Body::from("abc")).await.unwrap();
    assert_eq!(&*small, b"abc");
    let _room = small.room_to_parse().await;
}

#[tokio::test]
async fn bodies_that_have_all_the_room_together_end_one_after_the_other() {
    let intake = Arc::new(Intake::default());
    let (senders, bodies): (Vec<_>, Vec<_>) = (0..8).map(|_| body()).unzip();
    let sent = async {
        // One piece of each body in turn, so that half bodies fill the room.
        for _ in 0..8 {
            for sender in &senders {
                sender.send(1 << 20).await.unwrap();
            }
        }
        drop(senders);
    };
    let received = join_all(bodies.into_iter().map(async |body| {
        let received = intake.clone().receive(Some(MAX_BODY), body).await.unwrap();
        received.len()
    }));
    let (received, ()) = tokio::time::timeout(Duration::from_secs(20), async { tokio::join!(received, sent) })
        .await
        .expect("they do not wait for each other for ever");
    assert_eq!(received, [MAX_BODY; 8]);
    assert_eq!(free(&intake), ALL);
}

#[tokio::test]
async fn one_large_body_is_parsed_at_a_time_and_many_usual_ones_beside_it() {
    let intake = Arc::new(Intake::default());
    let receive = async |length: usize| intake.clone().receive(None, Body::from(vec![b'x'; length])).await.unwrap();
    let (first, second) = (receive(3 << 20).await, receive(3 << 20).await);
    let parsing = first.room_to_parse().await;
    let mut waits = std::pin::pin!(second.room_to_parse());
    assert!(poll!(waits.as_mut()).is_pending());
    let small = join_all((0..20).map(|_| receive(10 << 10))).await;
    let _parsing = join_all(small.iter().map(Received::room_to_parse)).await;
    // Many bodies just below the size of the small lane do not delay usual ones either.
    let flood = join_all((0..20).map(|_| receive(250 << 10))).await;
    let mut flood: Vec<_> = flood.iter().map(|body| Box::pin(body.room_to_parse())).collect();
    let mut parsed = Vec::new();
    for waits in &mut flood {
        if let Poll::Ready(room) = poll!(waits) {
            parsed.push(room);
        }
    }
    assert_eq!(parsed.len(), 1);
    let usual = receive(10 << 10).await;
    let _usual = usual.room_to_parse().await;
    drop(parsing);
    assert!(poll!(waits.as_mut()).is_ready());
}

#[tokio::test]
async fn more_than_8_mib_is_refused_claimed_or_not() {
    let intake = Arc::new(Intake::default());
    let refused = intake.clone().receive(Some(MAX_BODY + 1), Body::empty()).await.unwrap_err();
    assert_eq!(refused.0, StatusCode::PAYLOAD_TOO_LARGE);
    let refused = intake.clone().receive(None, Body::from(vec![b'x'; MAX_BODY + 1])).await.unwrap_err();
    assert_eq!(refused.0, StatusCode::PAYLOAD_TOO_LARGE);
    assert_eq!(free(&intake), ALL);
}
