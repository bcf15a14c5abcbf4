use std::sync::Arc;

use parking_lot::Mutex;
use tokio::net::UnixListener;

use super::*;
use crate::agent::kubelet::messages::DevicePluginOptions;
use crate::agent::kubelet::{KubeletDirectory, device_plugin};

/// What grpc-go 1.72 sends when a plugin registers at `/var/lib/kubelet/device-plugins/vramguard.sock` with a dialer of
/// its own, as NVIDIA's does. Its headers hold `:authority: %2Fvar%2Flib%2F…`, in Huffman code.
const RECORDED: &str = include_str!("tests/grpc-go.hex");

fn recorded() -> Vec<u8> {
    let digits: Vec<u8> = RECORDED.bytes().filter(u8::is_ascii_hexdigit).collect();
    let byte = |pair: &[u8]| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap();
    digits.chunks(2).map(byte).collect()
}

fn plugin() -> RegisterRequest {
    let options = DevicePluginOptions { pre_start_required: false, get_preferred_allocation_available: true };
    RegisterRequest {
        version: "v1beta1".into(),
        endpoint: "nvidia-gpu.sock".into(),
        resource_name: "nvidia.com/gpu".into(),
        options: Some(options),
    }
}

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

/// A message with the prefix of gRPC.
fn message(request: &RegisterRequest) -> Vec<u8> {
    let message = request.encode_to_vec();
    [&[0][..], &u32::try_from(message.len()).unwrap().to_be_bytes(), &message].concat()
}

/// A call whose headers are none: they are not read.
fn call(payload: &[u8]) -> Vec<u8> {
    [PREFACE, &frame(4, 0, 0, &[]), &frame(1, 4, 1, b"unread"), &frame(0, 1, 1, payload)].concat()
}

/// What came of the bytes of a client: the end, the registrations, and the reply.
async fn talk(bytes: &[u8]) -> (Result<(), RegistryError>, Vec<RegisterRequest>, Vec<u8>) {
    let (mut client, server) = tokio::io::duplex(1 << 20);
    client.write_all(bytes).await.unwrap();
    client.shutdown().await.unwrap();
    let mut registered = Vec::new();
    let register = |request: RegisterRequest| {
        registered.push(request);
        if registered.len() > 1 { Err("one is enough, 100%".to_owned()) } else { Ok(()) }
    };
    let ended = serve(server, register).await;
    let mut reply = Vec::new();
    client.read_to_end(&mut reply).await.unwrap();
    (ended, registered, reply)
}

fn contains(reply: &[u8], text: &str) -> bool {
    reply.windows(text.len()).any(|window| window == text.as_bytes())
}

#[tokio::test]
async fn a_call_of_grpc_go_with_an_escaped_authority_is_served() {
    let (ended, registered, reply) = talk(&recorded()).await;
    ended.unwrap();
    assert_eq!(registered, [plugin()]);
    assert!(contains(&reply, "grpc-status\x010"), "{reply:?}");
}

#[tokio::test]
async fn a_client_with_a_usual_authority_is_served() {
    let folder = tempfile::tempdir().unwrap();
    let kubelet = KubeletDirectory::new(folder.path());
    std::fs::create_dir_all(kubelet.device_plugins()).unwrap();
    let listener = UnixListener::bind(kubelet.registration_socket()).unwrap();
    let registered = Arc::new(Mutex::new(Vec::new()));
    let seen = registered.clone();
    tokio::spawn(async move {
        loop {
            let (connection, _) = listener.accept().await.unwrap();
            let seen = seen.clone();
            let register = move |request: RegisterRequest| {
                seen.lock().push(request);
                if seen.lock().len() > 1 { Err("already registered".to_owned()) } else { Ok(()) }
            };
            tokio::spawn(serve(connection, register));
        }
    });
    device_plugin::register(&kubelet, plugin(), DEADLINE).await.unwrap();
    let refused = device_plugin::register(&kubelet, plugin(), DEADLINE).await.unwrap_err();
    assert_eq!((refused.code(), refused.message()), (tonic::Code::InvalidArgument, "already registered"));
    assert_eq!(*registered.lock(), [plugin(), plugin()]);
}

#[tokio::test]
async fn padding_and_pings_are_no_part_of_the_message() {
    let whole = message(&plugin());
    let (first, second) = whole.split_at(10);
    let padded = [&[3][..], second, &[0; 3]].concat();
    let bytes = [
        PREFACE,
        &frame(4, 0, 0, &[0, 3, 0, 0, 0, 9]),
        &frame(1, 4, 1, b"unread"),
        &frame(6, 0, 0, b"12345678"),
        &frame(0, 0, 1, first),
        &frame(8, 0, 0, &[0, 0, 0, 1]),
        &frame(0, 1 | 8, 1, &padded),
    ]
    .concat();
    let (ended, registered, reply) = talk(&bytes).await;
    ended.unwrap();
    assert_eq!(registered, [plugin()]);
    assert!(contains(&reply, std::str::from_utf8(&frame(6, 1, 0, b"12345678")).unwrap()), "the ping is echoed");
}

#[tokio::test]
async fn a_refusal_is_told_in_printable_ascii() {
    let second = [frame(1, 4, 3, b"unread"), frame(0, 1, 3, &message(&plugin()))].concat();
    let (ended, registered, reply) = talk(&[call(&message(&plugin())), second].concat()).await;
    ended.unwrap();
    assert_eq!(registered.len(), 2);
    assert!(contains(&reply, "grpc-status\x013") && contains(&reply, "one is enough, 100"), "{reply:?}");
    assert!(!contains(&reply, "100%"));
}

#[tokio::test]
async fn a_message_that_is_no_registration_is_refused_in_words() {
    let other = |change: fn(&mut RegisterRequest)| {
        let mut request = plugin();
        change(&mut request);
        message(&request)
    };
    for (payload, expected) in [
        (Vec::new(), "without a message"),
        (vec![0, 0, 0, 0, 9, 1], "not exactly one message"),
        (vec![1, 0, 0, 0, 0], "compressed"),
        (vec![0, 0, 0, 0, 2, 0xff, 0xff], "no RegisterRequest"),
        (other(|request| request.version = "v1alpha1".into()), "version v1beta1"),
        (other(|request| request.endpoint = "../kubelet.sock".into()), "file name"),
        (other(|request| request.endpoint = String::new()), "file name"),
        (other(|request| request.resource_name = "gpu".into()), "extended resource"),
    ] {
        let (ended, registered, reply) = talk(&call(&payload)).await;
        ended.unwrap();
        assert!(registered.is_empty());
        assert!(contains(&reply, expected), "{expected}: {}", String::from_utf8_lossy(&reply));
    }
}

#[tokio::test]
async fn what_a_client_can_make_large_is_bounded() {
    let headers = [PREFACE, &frame(1, 4, 1, b"")].concat();
    let with = |rest: Vec<u8>| [headers.clone(), rest].concat();
    let large = frame(0, 0, 1, &[0; MAX_MESSAGE + 1]);
    assert!(matches!(talk(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n").await.0, Err(RegistryError::Preface)));
    assert!(matches!(talk(&with(large)).await.0, Err(RegistryError::MessageTooLarge)));
    assert!(matches!(talk(&with(vec![0xff; 9])).await.0, Err(RegistryError::FrameTooLarge(_))));
    assert!(matches!(talk(&with(frame(0, 8, 1, &[9, 0]))).await.0, Err(RegistryError::Padding)));
    assert!(matches!(talk(&with(frame(0, 8, 1, &[]))).await.0, Err(RegistryError::Padding)));
    assert!(matches!(talk(&with(frame(0, 1, 3, &[]))).await.0, Err(RegistryError::Stream)));
    assert!(matches!(talk(&with(frame(99, 0, 0, &[]).repeat(MAX_FRAMES))).await.0, Err(RegistryError::TooManyFrames)));
    // A client that ends in the middle of a frame.
    assert!(matches!(talk(&with(vec![0, 0, 9])).await.0, Err(RegistryError::Io(_))));
}

#[tokio::test]
async fn a_client_that_falls_silent_is_dropped() {
    let (mut client, server) = tokio::io::duplex(1 << 10);
    client.write_all(PREFACE).await.unwrap();
    let ended = serve_within(Duration::from_millis(50), server, |_| Ok(())).await;
    assert!(matches!(ended, Err(RegistryError::Late(_))), "{ended:?}");
}
