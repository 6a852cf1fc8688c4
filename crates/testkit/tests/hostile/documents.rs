//! Messages that are whole, and whose content is the attack.

use std::sync::Arc;

use driftline_testkit::socket::{Frame, Socket};
use flate2::{Compress, Compression, FlushCompress};
use serde_json::json;

use crate::peer::{told, told_and_served};
use crate::scene::{Attack, MIB};

const SOCKETS: usize = 64;
/// Attackers with a message of a whole MiB each, which all fit into what the server may hold.
const LARGE: usize = 16;
const DEPTH: usize = 100_000;
const MASK: u32 = 0x0f1e_2d3c;
const SYNC_ID: &str = "7c2e1d0a-9b8f-4e6d-8c5b-4a3f2e1d0c9b";

/// A stream of DEFLATE of at most this many bytes that becomes as large as it can: a thousandfold.
///
/// A full flush ends at a byte and forgets what was before, so that one block may stand any number of times.
pub fn bomb(bytes_max: usize) -> Vec<u8> {
    let mut block = Vec::with_capacity(MIB);
    let mut compress = Compress::new(Compression::best(), false);
    compress.compress_vec(&vec![0; MIB], &mut block, FlushCompress::Full).expect("zeros are compressed");
    let mut stream = block.repeat(bytes_max / block.len());
    // An empty last block of fixed codes.
    stream.extend([0x03, 0x00]);
    stream
}

/// An attack by one message in a form; the server goes on serving who sent it.
fn message(
    name: &'static str,
    wanted: &'static str,
    opcode: u8,
    make: impl Fn(usize) -> Vec<u8> + 'static,
) -> Attack {
    Attack::new(name, SOCKETS, wanted, move |site, attacker| {
        let frame = Frame::last(opcode, make(attacker)).encode(MASK);
        async move { told_and_served(site.open(attacker, None).await, &frame).await }
    })
}

/// An attack by one message in a compressed form, which ends the connection.
fn packed(name: &'static str, sockets: usize, wanted: &'static str, opcode: u8, payload: Vec<u8>) -> Attack {
    let frame = Arc::new(Frame::last(opcode, payload).encode(MASK));
    Attack::new(name, sockets, wanted, move |site, attacker| {
        let frame = Arc::clone(&frame);
        let form = ["driftline.v1.json+deflate", "driftline.v1.msgpack+deflate"][attacker % 2];
        async move { told(site.open(attacker, Some(form)).await, &frame).await }
    })
}

/// Documents that cannot be decoded.
pub fn undecodable() -> Vec<Attack> {
    let deep =
        |open: &str, close: &str| format!("{}{}", open.repeat(DEPTH), close.repeat(DEPTH)).into_bytes();
    let nested =
        [deep("[", "]"), deep(r#"{"a":"#, ""), format!(r#"{{"type":{}"#, "[".repeat(DEPTH)).into_bytes()];
    // A map of one pair whose value is an array of one, and so on; maps in maps; arrays in arrays.
    let packed = [[0x81, 0xa1, b'a'].repeat(DEPTH), vec![0x91; DEPTH], [0x81, 0x91].repeat(DEPTH)];
    vec![
        message("JSON 100,000 deep", "JSON_DECODE_ERROR", Frame::TEXT, move |n| nested[n % 3].clone()),
        message("MessagePack 100,000 deep", "MSGPACK_DECODE_ERROR", Frame::BINARY, move |n| {
            packed[n % 3].clone()
        }),
        message("MessagePack that claims 2^32-1 entries", "MSGPACK_DECODE_ERROR", Frame::BINARY, |n| {
            [&[[0xdf, 0xdd][n % 2]], &[0xff; 4][..], b"\xa4type\xa4ping"].concat()
        }),
        message(
            "MessagePack that claims 4 GiB of text, bytes, extension",
            "MSGPACK_DECODE_ERROR",
            Frame::BINARY,
            |n| [b"\x81\xa4type", &[[0xdb, 0xc6, 0xc9][n % 3]][..], &[0xff; 4], b"ping"].concat(),
        ),
        Attack::new(
            "ten messages that are no JSON",
            SOCKETS,
            "JSON_DECODE_ERROR 1007",
            |site, attacker| async move { ten_times(site.open(attacker, None).await, Frame::TEXT, b"[1,").await },
        ),
        Attack::new(
            "ten that are no MessagePack",
            SOCKETS,
            "MSGPACK_DECODE_ERROR 1007",
            |site, attacker| async move {
                ten_times(site.open(attacker, None).await, Frame::BINARY, b"\xc1").await
            },
        ),
    ]
}

async fn ten_times(socket: Socket, opcode: u8, payload: &[u8]) -> String {
    told(socket, &Frame::last(opcode, payload).encode(MASK).repeat(10)).await
}

/// Documents that can be decoded and are too much all the same.
pub fn too_much() -> Vec<Attack> {
    let items: Vec<_> = (1..=101)
        .map(|n| json!({"op_id": format!("op-{n}"), "n": n, "kind": "bad", "id": format!("b-{n}"), "op": "create", "fields": {}}))
        .collect();
    let batch = json!({"type": "sync_data", "sync_id": SYNC_ID, "payload": {"batch": items}}).to_string();
    let wide = Arc::new(Frame::last(Frame::TEXT, format!("[{}0]", "0,".repeat(MIB / 2 - 2))).encode(MASK));
    let empty = Arc::new(
        Frame::last(Frame::TEXT, format!("{{\"a\":[{}[]]}}", "[],".repeat(MIB / 3 - 4))).encode(MASK),
    );
    vec![
        Attack::new("batch of 101 items", SOCKETS, "BATCH_TOO_LARGE", move |site, attacker| {
            let frame = Frame::last(Frame::TEXT, batch.clone()).encode(MASK);
            async move {
                let mut socket = site.open(attacker, None).await;
                socket.start(SYNC_ID, &["bad"]).await;
                told_and_served(socket, &frame).await
            }
        }),
        Attack::new("half a million numbers in 1 MiB", LARGE, "JSON_DECODE_ERROR", move |site, attacker| {
            let frame = Arc::clone(&wide);
            async move { told_and_served(site.open(attacker, None).await, &frame).await }
        }),
        Attack::new("350,000 arrays in 1 MiB", LARGE, "VALIDATION_ERROR", move |site, attacker| {
            let frame = Arc::clone(&empty);
            async move { told_and_served(site.open(attacker, None).await, &frame).await }
        }),
    ]
}

/// What a compressed form must not be.
pub fn compressed() -> Vec<Attack> {
    let stream = [&[1], &bomb(MIB - 4096)[..]].concat();
    let half = [&[1], &bomb(4096)[..2048]].concat();
    vec![
        packed("text on +deflate", SOCKETS, "1003", Frame::TEXT, b"{}".to_vec()),
        packed("first byte 2 on +deflate", SOCKETS, "1007", Frame::BINARY, b"\x02{}".to_vec()),
        packed("nothing on +deflate", SOCKETS, "1007", Frame::BINARY, Vec::new()),
        packed("half a stream on +deflate", SOCKETS, "1007", Frame::BINARY, half[..64].to_vec()),
        packed("1 MiB that inflates to 1 GiB", LARGE, "MESSAGE_TOO_LARGE 1009", Frame::BINARY, stream),
        packed("2 KiB that inflate to 2 MiB", SOCKETS, "MESSAGE_TOO_LARGE 1009", Frame::BINARY, half),
    ]
}
