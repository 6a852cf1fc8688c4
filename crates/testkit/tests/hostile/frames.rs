//! Frames that RFC 6455 forbids, and messages that never end.

use std::sync::Arc;

use driftline_testkit::socket::{Frame, Incoming};
use tokio::sync::Barrier;

use crate::peer::{told, told_endlessly, verdict};
use crate::scene::{Attack, INBOUND, MIB, Site};

const SOCKETS: usize = 64;
const MASK: u32 = 0x5a5a_a5a5;
const TOO_LARGE: &str = "MESSAGE_TOO_LARGE 1009";

/// An attack by bytes behind the handshake, which may differ from one attacker to the next.
fn bytes(name: &'static str, wanted: &'static str, make: impl Fn(usize) -> Vec<u8> + 'static) -> Attack {
    Attack::new(name, SOCKETS, wanted, move |site, attacker| {
        let bytes = make(attacker);
        async move { told(site.open(attacker, None).await, &bytes).await }
    })
}

fn frame(head: u8, payload: &[u8]) -> Vec<u8> {
    Frame { head, payload: payload.to_vec() }.encode(MASK)
}

/// The head and the mask of a frame that declares a length as a number of 64 bits.
fn declared(head: u8, len: u64) -> Vec<u8> {
    [&[head, 0xff], &len.to_be_bytes()[..], &MASK.to_be_bytes()[..]].concat()
}

fn pick<T: Copy>(of: &[T], attacker: usize) -> T {
    of[attacker % of.len()]
}

/// Frames that are none.
pub(crate) fn broken() -> Vec<Attack> {
    vec![
        bytes("no mask", "1002", |_| b"\x81\x02{}".to_vec()),
        bytes("reserved bits", "1002", |n| frame(0x81 | pick(&[0x10, 0x20, 0x40, 0x70], n), b"{}")),
        bytes("reserved opcodes", "1002", |n| {
            frame(0x80 | pick(&[0x3, 0x4, 0x5, 0x6, 0x7, 0xb, 0xc, 0xd, 0xe, 0xf], n), b"")
        }),
        bytes("control frame of 126 bytes", "1002", |n| frame(pick(&[0x88, 0x89, 0x8a], n), &[b'x'; 126])),
        bytes("control frame of 2^63-1 bytes", "1002", |n| {
            declared(pick(&[0x88, 0x89, 0x8a], n), i64::MAX.cast_unsigned())
        }),
        bytes("control frame in parts", "1002", |n| frame(pick(&[0x08, 0x09, 0x0a], n), b"")),
        bytes("continuation of nothing", "1002", |n| frame(pick(&[0x00, 0x80], n), b"x")),
        bytes("message inside a message", "1002", |n| {
            [frame(0x01, b"{"), frame(pick(&[0x01, 0x81, 0x02, 0x82], n), b"}")].concat()
        }),
        bytes("length not in its shortest form", "1002", |n| match n % 3 {
            0 => [&[0x81, 0xfe, 0, 125], &MASK.to_be_bytes()[..]].concat(),
            1 => declared(0x81, 125),
            _ => declared(0x81, 65_535),
        }),
        bytes("text that is not UTF-8", "1007", |n| {
            frame(0x81, pick(&[b"\xff", b"\xc0", b"\xed\xa0\x80"], n))
        }),
        bytes("parts that are not UTF-8", "1007", |_| [frame(0x01, b"\xc3"), frame(0x80, b"(")].concat()),
        bytes("close with a code that is none", "1002", |n| {
            let code: u16 = pick(&[0, 999, 1004, 1005, 1006, 1015, 2999, 5000, 65_535], n);
            frame(0x88, &code.to_be_bytes())
        }),
        bytes("close of one byte", "1002", |_| frame(0x88, b"\x03")),
        bytes("close with a reason that is not UTF-8", "1007", |_| frame(0x88, b"\x03\xe8\xff")),
        bytes("another request behind the upgrade", "1002", |_| {
            b"GET / HTTP/1.1\r\nhost: x\r\n\r\n".to_vec()
        }),
        bytes("noise behind the upgrade", "1002", |n| {
            // The first bit set and the next three too, whatever follows.
            let noise = (0..4096_usize).map(|at| (at * 31 + n * 17).to_le_bytes()[0]);
            [0xff].into_iter().chain(noise).collect()
        }),
    ]
}

/// Messages that are larger than they may be, or come in more parts.
pub(crate) fn large() -> Vec<Attack> {
    let over = Arc::new(frame(0x81, &vec![b' '; MIB + 1]));
    let in_parts = Arc::new([frame(0x01, &vec![b' '; MIB]), frame(0x80, b"x")].concat());
    vec![
        bytes("declared 2^63", "1002", |_| declared(0x82, 1 << 63)),
        bytes("declared 2^63-1", TOO_LARGE, |_| declared(0x82, i64::MAX.cast_unsigned())),
        bytes("declared 2 GiB", TOO_LARGE, |n| declared(pick(&[0x81, 0x82, 0x01, 0x02], n), 2 << 30)),
        bytes("declared 1 MiB + 1", TOO_LARGE, |_| declared(0x81, MIB as u64 + 1)),
        Attack::new("sent 1 MiB + 1", 16, TOO_LARGE, move |site, attacker| {
            let over = Arc::clone(&over);
            async move { told(site.open(attacker, None).await, &over).await }
        }),
        Attack::new("sent 1 MiB + 1 in parts", 16, TOO_LARGE, move |site, attacker| {
            let in_parts = Arc::clone(&in_parts);
            async move { told(site.open(attacker, None).await, &in_parts).await }
        }),
        endless("endless empty parts", b""),
        endless("endless parts of one byte", b" "),
    ]
}

fn endless(name: &'static str, payload: &'static [u8]) -> Attack {
    Attack::new(name, SOCKETS, TOO_LARGE, move |site, attacker| async move {
        let parts = frame(0x00, payload).repeat(256);
        told_endlessly(site.open(attacker, None).await, &frame(0x01, payload), &parts).await
    })
}

/// Unfinished messages that together are more than the server may hold: it holds some and has no room for the others.
pub(crate) fn half_open() -> Attack {
    const LEAST_REFUSED: usize = 64 - INBOUND / MIB;
    let part = Arc::new([frame(0x02, &vec![0; MIB - 1]), frame(0x89, b"held")].concat());
    let together = Arc::new(Barrier::new(64));
    let play = move |site: Arc<Site>, attacker| {
        let (part, together) = (Arc::clone(&part), Arc::clone(&together));
        async move {
            let mut socket = site.open(attacker, None).await;
            socket.send_bytes(&part).await;
            // The pong stands for all bytes before it; who gets it goes on holding them until everybody knows.
            let held = match socket.read().await {
                Incoming::Pong(_) => None,
                Incoming::Close(code, _) => Some(code.to_string()),
                _ => Some(verdict(&mut socket).await),
            };
            together.wait().await;
            held.unwrap_or_else(|| "held".into())
        }
    };
    Attack::new("1 MiB each, never finished", 64, "1013", play).or(&[("1013", LEAST_REFUSED), ("held", 1)])
}

/// What comes faster than the rates allow.
pub(crate) fn fast() -> Vec<Attack> {
    let flood = |name, wanted, frame: Vec<u8>| {
        let frames = Arc::new(frame.repeat(50));
        Attack::new(name, SOCKETS, wanted, move |site, attacker| {
            let frames = Arc::clone(&frames);
            async move { told_endlessly(site.open(attacker, None).await, b"", &frames).await }
        })
    };
    vec![
        flood("endless pings", "1008", frame(0x89, b"are you there?")),
        flood("endless pongs", "1008", frame(0x8a, b"I am here")),
        flood("endless messages", "RATE_LIMITED 1008", frame(0x81, br#"{"type":"ping","timestamp":1}"#)),
    ]
}
