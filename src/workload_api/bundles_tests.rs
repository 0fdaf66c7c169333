use std::collections::HashMap;
use std::pin::pin;

use allocation_counter::measure;
use bytes::{BufMut as _, Bytes, BytesMut};
use futures_util::StreamExt as _;
use http_body_util::Full;
use prost::Message as _;
use prost::encoding::encode_varint;
use tonic::{Code, Streaming};

use super::super::pb::JwtBundlesResponse;
use super::*;

fn read(wire: &[u8]) -> Option<HashMap<String, Bytes>> {
    let message = JwtBundlesMessage::read(Bytes::copy_from_slice(wire)).ok()?;
    Some(message.into_bundles())
}

fn generated(wire: &[u8]) -> Option<HashMap<String, Bytes>> {
    Some(JwtBundlesResponse::decode(wire).ok()?.bundles)
}

/// A field of a length and so many bytes.
fn delimited(tag: u8, value: &[u8]) -> Vec<u8> {
    let mut wire = vec![tag << 3 | 2];
    encode_varint(value.len() as u64, &mut wire);
    wire.extend(value);
    wire
}

#[test]
fn e22_decoding_matches_the_generated_code() {
    let x = [delimited(1, b"spiffe://x"), delimited(2, b"{}")].concat();
    let entry = |fields: &[Vec<u8>]| delimited(1, &fields.concat());
    let group = [vec![3 << 3 | 3], delimited(9, b"?"), vec![3 << 3 | 4]].concat();
    let messages = [
        vec![],
        delimited(1, &x),
        [delimited(1, &x), delimited(1, &x)].concat(),
        // The last of two values, of two names, of two entries.
        entry(&[x.clone(), delimited(2, b"last")]),
        entry(&[x.clone(), delimited(1, b"y")]),
        [delimited(1, &x), entry(&[delimited(1, b"spiffe://x")])].concat(),
        // A value, a name, and both at their defaults.
        entry(&[delimited(2, b"{}")]),
        entry(&[delimited(1, b"spiffe://x")]),
        entry(&[]),
        // The other order, and unknown fields.
        entry(&[delimited(2, b"{}"), delimited(1, b"spiffe://x")]),
        entry(&[x.clone(), delimited(7, b"more"), group.clone()]),
        [group.clone(), delimited(1, &x), delimited(2, &x)].concat(),
        [vec![5 << 3, 0x80, 0x01], vec![6 << 3 | 5, 0, 0, 0, 0]].concat(),
        // Malformed: types, lengths, text, groups, varints.
        vec![1 << 3, 1],
        entry(&[vec![1 << 3, 1]]),
        entry(&[x.clone(), vec![2 << 3 | 5, 0, 0, 0, 0]]),
        vec![1 << 3 | 2, 5, 0],
        vec![
            1 << 3 | 2,
            0xff,
            0xff,
            0xff,
            0xff,
            0xff,
            0xff,
            0xff,
            0xff,
            0xff,
            0x01,
        ],
        entry(&[vec![1 << 3 | 2, 200, 1, b'x']]),
        entry(&[delimited(1, b"spiffe://\xff")]),
        group[..group.len() - 1].to_vec(),
        vec![3 << 3 | 4],
        vec![0x80],
        vec![0, 0],
        [3 << 3 | 3].repeat(200),
    ];
    let mut unreadable = 0;
    for wire in &messages {
        assert_eq!(read(wire), generated(wire), "{wire:?}");
        unreadable += usize::from(read(wire).is_none());
        // And cut short anywhere.
        for end in 0..wire.len() {
            assert_eq!(
                read(&wire[..end]),
                generated(&wire[..end]),
                "{wire:?} to {end}"
            );
        }
    }
    assert_eq!(unreadable, 12);
}

#[test]
fn e22_random_bytes_match_the_generated_code() {
    let mut random = fastrand::Rng::with_seed(22);
    let mut good = 0;
    for _ in 0..20_000 {
        let mut wire = delimited(
            1,
            &[delimited(1, b"spiffe://x"), delimited(2, b"{}")].concat(),
        );
        for _ in 0..random.usize(0..4) {
            let at = random.usize(0..wire.len());
            wire[at] = random.u8(..);
        }
        wire.truncate(random.usize(0..=wire.len()));
        assert_eq!(read(&wire), generated(&wire), "{wire:?}");
        good += usize::from(read(&wire).is_some());
    }
    assert!((1_000..19_000).contains(&good), "{good}");
}

#[test]
fn e22_equal_messages_may_differ_in_order() {
    let entry = |name: &str| delimited(1, &delimited(1, name.as_bytes()));
    let message = |names: [&str; 2]| {
        let wire = names.map(entry).concat();
        JwtBundlesMessage::read(wire.into()).expect("a message")
    };
    assert_eq!(message(["x", "y"]), message(["y", "x"]));
    assert_ne!(message(["x", "y"]), message(["x", "z"]));
    let names: Vec<_> = message(["y", "x"])
        .iter()
        .map(|(name, _)| name.to_owned())
        .collect();
    assert_eq!(names, ["y", "x"]);
}

/// The first message of a stream with these bytes, as tonic hands it over.
async fn received(wire: &[u8], limit: usize) -> Result<JwtBundlesMessage, Status> {
    let mut frame = BytesMut::with_capacity(wire.len() + 5);
    frame.put_u8(0);
    frame.put_u32(u32::try_from(wire.len()).expect("short"));
    frame.put_slice(wire);
    let body = Full::new(frame.freeze());
    let status = http::StatusCode::OK;
    let stream = Streaming::new_response(BundlesDecoder, body, status, None, Some(limit));
    pin!(stream).next().await.expect("a message or an error")
}

#[tokio::test]
async fn e22_byte_limit_is_checked_before_decoding() {
    // Not one field in it can be read.
    let wire = vec![0xff; 1001];
    let error = received(&wire, 1000).await.expect_err("too large");
    assert_eq!(error.code(), Code::OutOfRange);
    let error = received(&wire, 1001).await.expect_err("malformed");
    assert_eq!(error.code(), Code::Internal);
    assert!(
        error
            .message()
            .starts_with("failed to decode Protobuf message")
    );
}

/// Two million tiny entries took 434 MB as a map; now they take their own bytes only.
#[test]
fn e22_entries_are_counted_without_a_map() {
    const ENTRIES: u32 = 2_000_000;
    let mut wire = Vec::new();
    for n in 0..ENTRIES {
        wire.extend(delimited(
            1,
            &delimited(1, &n.to_be_bytes().map(|byte| byte & 0x7f)),
        ));
    }
    let size = wire.len() as u64;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .build()
        .expect("a runtime");
    let counted = measure(|| {
        let message = runtime
            .block_on(received(&wire, 64 << 20))
            .expect("a message");
        assert_eq!(message.len(), ENTRIES as usize);
    });
    // The sent frame of this test, and the buffer of the received one while it grows.
    let most = 3 * size + (1 << 20);
    assert!(counted.bytes_max <= most, "{counted:?}, {size} bytes");
    let wire = Bytes::from(wire);
    let counted = measure(|| assert!(JwtBundlesMessage::read(wire.clone()).is_ok()));
    assert_eq!(counted.count_total, 0, "{counted:?}");
}
