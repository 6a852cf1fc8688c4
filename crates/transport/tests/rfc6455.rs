//! The frames of RFC 6455, as the public Autobahn test suite has them, under its numbers: groups 1 to 7, 9 and 10,
//! against the echo over a socket.
//!
//! Where the suite allows several outcomes, these are ours: what came before a breach is answered (3.2 to 3.4, 4.1.3 to
//! 4.2.5, 5.15), text that is broken is refused at the end of the frame that breaks it (strict in 6.4.1 and 6.4.2, not
//! strict in 6.4.3 and 6.4.4), close frames are answered with their own code (7.7), a message is answered before the close
//! frame behind it (7.1.6).

mod support;

use std::fmt::Write as _;

use driftline_testkit::socket::{Frame, Incoming, Socket};
use driftline_transport::Settings;
use support::{Harness, Setup, start};

/// How the bytes come.
#[derive(Clone, Copy)]
enum Chop {
    /// All at once.
    Whole,
    /// Frame by frame.
    Frames,
    /// So many at a time.
    Bytes(usize),
}

/// Who closes.
enum End {
    /// The client, with 1000, once it heard everything.
    Client,
    /// The server, or the client in what it sent: the code that comes.
    Code(u16),
}

struct Case {
    number: String,
    /// What is sent, and what is heard before more is sent.
    steps: Vec<(Vec<Frame>, Vec<Incoming>)>,
    chop: Chop,
    end: End,
}

impl Case {
    /// A case that goes well.
    fn good(number: impl Into<String>, sent: Vec<Frame>, heard: Vec<Incoming>) -> Self {
        Self { number: number.into(), steps: vec![(sent, heard)], chop: Chop::Whole, end: End::Client }
    }

    /// A case that ends with a close code.
    fn ends(number: impl Into<String>, sent: Vec<Frame>, heard: Vec<Incoming>, code: u16) -> Self {
        Self { end: End::Code(code), ..Self::good(number, sent, heard) }
    }

    fn chopped(self, chop: Chop) -> Self {
        Self { chop, ..self }
    }

    async fn run(&self, harness: &Harness) {
        let mut socket = Socket::connect(harness.address, "/ws/echo").await;
        let mut mask = 0x2f13_9ac5;
        for (sent, heard) in &self.steps {
            let encode = |frame: &Frame| {
                mask = u32::rotate_left(mask, 5) ^ 0x9e37_79b9;
                frame.encode(mask)
            };
            let frames: Vec<Vec<u8>> = sent.iter().map(encode).collect();
            let writes = match self.chop {
                Chop::Frames => frames,
                Chop::Whole => vec![frames.concat()],
                Chop::Bytes(bytes) => frames.concat().chunks(bytes).map(<[u8]>::to_vec).collect(),
            };
            for bytes in writes {
                socket.send_bytes(&bytes).await;
            }
            for wanted in heard {
                self.same(&socket.read().await, wanted);
            }
        }
        let code = match self.end {
            End::Code(code) => code,
            End::Client => {
                socket.send_frame(&Frame::close(1000, "")).await;
                1000
            }
        };
        match socket.read().await {
            Incoming::Close(closed, _) => assert_eq!(closed, code, "{}", self.number),
            other => panic!("{}: wanted a close frame, got {}", self.number, shown(&other)),
        }
        assert_eq!(socket.read().await, Incoming::End, "{}", self.number);
    }

    fn same(&self, got: &Incoming, wanted: &Incoming) {
        assert!(got == wanted, "{}: wanted {}, got {}", self.number, shown(wanted), shown(got));
    }
}

/// The beginning of what came, which may be many MiB.
fn shown(incoming: &Incoming) -> String {
    let mut text = String::new();
    let _ = write!(text, "{incoming:?}");
    text.chars().take(80).collect()
}

async fn run(cases: &[Case], count: usize) {
    assert_eq!(cases.len(), count, "the group has so many cases");
    let settings = Settings { echo: true, ..Settings::default() };
    let harness = start(Setup { settings, ..Setup::default() }).await;
    for case in cases {
        case.run(&harness).await;
    }
}

const HELLO: &str = "Hello, world!";

fn text(payload: impl Into<Vec<u8>>) -> Frame {
    Frame::last(Frame::TEXT, payload)
}

fn first(payload: impl Into<Vec<u8>>) -> Frame {
    Frame::part(Frame::TEXT, payload)
}

fn more(payload: impl Into<Vec<u8>>) -> Frame {
    Frame::part(Frame::CONTINUATION, payload)
}

fn last(payload: impl Into<Vec<u8>>) -> Frame {
    Frame::last(Frame::CONTINUATION, payload)
}

fn ping(payload: impl Into<Vec<u8>>) -> Frame {
    Frame::last(Frame::PING, payload)
}

fn pong(payload: impl Into<Vec<u8>>) -> Frame {
    Frame::last(Frame::PONG, payload)
}

/// A frame with reserved bits, or with an opcode of nobody.
fn odd(reserved: u8, opcode: u8, payload: impl Into<Vec<u8>>) -> Frame {
    Frame::last(reserved << 4 | opcode, payload)
}

fn said(payload: &str) -> Incoming {
    Incoming::Text(payload.into())
}

fn ponged(payload: &str) -> Incoming {
    Incoming::Pong(payload.into())
}

/// A message in frames of so many bytes; when they come out even, an empty one ends it, as the suite has it.
fn parts(opcode: u8, payload: &[u8], bytes: usize) -> Vec<Frame> {
    let mut frames: Vec<Frame> =
        payload.chunks(bytes).map(|part| Frame::part(Frame::CONTINUATION, part)).collect();
    if payload.len().is_multiple_of(bytes) {
        frames.push(more([]));
    }
    let end = frames.len() - 1;
    frames[end].head |= 0x80;
    frames[0].head |= opcode;
    frames
}

/// The payload, again and again.
fn cycle(payload: &[u8], bytes: usize) -> Vec<u8> {
    let mut all = payload.repeat(bytes / payload.len() + 1);
    all.truncate(bytes);
    all
}

/// What the echo says to a payload.
fn echoed(opcode: u8, payload: Vec<u8>) -> Incoming {
    match opcode {
        Frame::TEXT => Incoming::Text(String::from_utf8(payload).expect("the test sends text")),
        _ => Incoming::Binary(payload),
    }
}

fn echo(number: impl Into<String>, opcode: u8, payload: Vec<u8>) -> Case {
    Case::good(number, vec![Frame::last(opcode, payload.clone())], vec![echoed(opcode, payload)])
}

#[tokio::test]
async fn group_1_frames_of_all_lengths() {
    let mut cases = Vec::new();
    for (kind, opcode, byte) in [(1, Frame::TEXT, b'*'), (2, Frame::BINARY, 0xfe)] {
        for (at, len) in [0, 125, 126, 127, 128, 65_535, 65_536].into_iter().enumerate() {
            cases.push(echo(format!("1.{kind}.{}", at + 1), opcode, vec![byte; len]));
        }
        cases.push(echo(format!("1.{kind}.8"), opcode, vec![byte; 65_536]).chopped(Chop::Bytes(997)));
    }
    run(&cases, 16).await;
}

#[tokio::test]
async fn group_2_pings_and_pongs() {
    let answered = |number: &str, payload: &[u8]| {
        Case::good(number, vec![ping(payload)], vec![Incoming::Pong(payload.to_vec())])
    };
    let bye = || Frame::close(1000, "");
    let names: Vec<String> = (0..10).map(|n| format!("payload-{n}")).collect();
    let ten = |number: &str| {
        Case::good(
            number,
            names.iter().map(|name| ping(name.as_str())).collect(),
            names.iter().map(|name| ponged(name)).collect(),
        )
    };
    let cases = [
        answered("2.1", b""),
        answered("2.2", HELLO.as_bytes()),
        answered("2.3", b"\x00\xff\xfe\xfd\xfc\xfb\x00\xff"),
        answered("2.4", &[0xfe; 125]),
        Case::ends("2.5", vec![ping([0xfe; 126])], vec![], 1002),
        answered("2.6", &[0xfe; 125]).chopped(Chop::Bytes(1)),
        Case::ends("2.7", vec![pong([]), bye()], vec![], 1000),
        Case::ends("2.8", vec![pong("nobody asked"), bye()], vec![], 1000),
        Case::good("2.9", vec![pong("nobody asked"), ping("ping payload")], vec![ponged("ping payload")]),
        ten("2.10"),
        ten("2.11").chopped(Chop::Bytes(1)),
    ];
    run(&cases, 11).await;
}

/// A message, a frame that breaks the protocol, and a ping that is not answered.
fn after_hello(number: &str, frame: Frame) -> Case {
    Case::ends(number, vec![text(HELLO), frame, ping([])], vec![said(HELLO)], 1002)
}

#[tokio::test]
async fn group_3_reserved_bits() {
    let alone = |number, frame| Case::ends(number, vec![frame], vec![], 1002);
    let cases = [
        alone("3.1", odd(1, 0x1, HELLO)),
        after_hello("3.2", odd(2, 0x1, HELLO)),
        after_hello("3.3", odd(3, 0x1, HELLO)).chopped(Chop::Frames),
        after_hello("3.4", odd(4, 0x1, HELLO)).chopped(Chop::Bytes(1)),
        alone("3.5", odd(5, 0x2, *b"\x00\xff\xfe\xfd\xfc\xfb\x00\xff")),
        alone("3.6", odd(6, 0x9, HELLO)),
        alone("3.7", odd(7, 0x8, [])),
    ];
    run(&cases, 7).await;
}

#[tokio::test]
async fn group_4_opcodes_of_nobody() {
    let mut cases = Vec::new();
    for (kind, opcode) in [(1, 3), (2, 11)] {
        let of = |at: u8| format!("4.{kind}.{at}");
        cases.push(Case::ends(of(1), vec![odd(0, opcode, [])], vec![], 1002));
        cases.push(Case::ends(of(2), vec![odd(0, opcode + 1, "payload")], vec![], 1002));
        cases.push(after_hello(&of(3), odd(0, opcode + 2, [])));
        cases.push(after_hello(&of(4), odd(0, opcode + 3, HELLO)));
        cases.push(after_hello(&of(5), odd(0, opcode + 4, HELLO)).chopped(Chop::Bytes(1)));
    }
    run(&cases, 10).await;
}

#[tokio::test]
async fn group_5_messages_in_parts() {
    let chops = [Chop::Whole, Chop::Frames, Chop::Bytes(1)];
    let mut cases = vec![
        Case::ends("5.1", vec![Frame::part(Frame::PING, "one"), last("two")], vec![], 1002),
        Case::ends("5.2", vec![Frame::part(Frame::PONG, "one"), last("two")], vec![], 1002),
    ];
    for (at, chop) in (3..).zip(chops) {
        let case = Case::good(format!("5.{at}"), vec![first("one"), last("two")], vec![said("onetwo")]);
        cases.push(case.chopped(chop));
    }
    for (at, chop) in (6..).zip(chops) {
        let sent = vec![first("one"), ping("ping payload"), last("two")];
        let heard = vec![ponged("ping payload"), said("onetwo")];
        cases.push(Case::good(format!("5.{at}"), sent, heard).chopped(chop));
    }
    for (at, chop) in (9..).zip(chops) {
        let case = Case::ends(format!("5.{at}"), vec![last("nothing before"), text(HELLO)], vec![], 1002);
        cases.push(case.chopped(chop));
    }
    for (at, chop) in (12..).zip(chops) {
        let case = Case::ends(format!("5.{at}"), vec![more("nothing before"), text(HELLO)], vec![], 1002);
        cases.push(case.chopped(chop));
    }
    let sent = vec![first("one"), last("two"), more("three"), text("four")];
    cases.push(Case::ends("5.15", sent, vec![said("onetwo")], 1002));
    for (number, continued) in [("5.16", more("one")), ("5.17", last("one"))] {
        let sent = vec![continued, first("two"), last("three")];
        cases.push(Case::ends(number, [sent.clone(), sent].concat(), vec![], 1002));
    }
    cases.push(Case::ends("5.18", vec![first("one"), text("two")], vec![], 1002));
    for (number, chop) in [("5.19", Chop::Whole), ("5.20", Chop::Frames)] {
        let steps = vec![
            (vec![first("1"), more("2"), ping("one!")], vec![ponged("one!")]),
            (vec![more("3"), more("4"), ping("two!"), last("5")], vec![ponged("two!"), said("12345")]),
        ];
        cases.push(Case { number: number.into(), steps, chop, end: End::Client });
    }
    run(&cases, 20).await;
}

/// "kosme" in Greek letters with accents.
const KOSME: &[u8] = b"\xce\xba\xe1\xbd\xb9\xcf\x83\xce\xbc\xce\xb5";

#[tokio::test]
async fn group_6_text_in_parts() {
    let greeting = "Hello-\u{b5}@\u{df}\u{f6}\u{e4}\u{fc}\u{e0}\u{e1}-UTF-8!!";
    let (head, tail) = greeting.split_at("Hello-\u{b5}@\u{df}\u{f6}\u{e4}".len());
    let bytewise = |payload: &[u8]| {
        let mut frames: Vec<Frame> = payload.iter().map(|byte| more([*byte])).collect();
        frames[0].head |= Frame::TEXT;
        frames.push(last([]));
        frames
    };
    let kosme = String::from_utf8(KOSME.to_vec()).expect("it is text");
    let surrogate = [KOSME, b"\xed\xa0\x80edited"].concat();
    let beyond: Vec<u8> = [KOSME, b"\xf4\x90\x80\x80edited"].concat();
    // The frame after the one that breaks the text is never sent.
    let fast = |number: &str, good: &[u8], bad: &[u8]| Case {
        number: number.into(),
        steps: vec![(vec![first(good), ping("so far")], vec![ponged("so far")]), (vec![more(bad)], vec![])],
        chop: Chop::Whole,
        end: End::Code(1007),
    };
    let cases = [
        Case::good("6.1.1", vec![text("")], vec![said("")]),
        Case::good("6.1.2", vec![first(""), more(""), last("")], vec![said("")]),
        Case::good("6.1.3", vec![first(""), more("middle"), last("")], vec![said("middle")]),
        Case::good("6.2.1", vec![text(greeting)], vec![said(greeting)]),
        Case::good("6.2.2", vec![first(head), last(tail)], vec![said(greeting)]),
        Case::good("6.2.3", bytewise(greeting.as_bytes()), vec![said(greeting)]),
        Case::good("6.2.4", bytewise(KOSME), vec![said(&kosme)]),
        Case::ends("6.3.1", vec![text(surrogate.clone())], vec![], 1007),
        Case::ends("6.3.2", bytewise(&surrogate), vec![], 1007),
        fast("6.4.1", KOSME, &beyond[11..15]),
        fast("6.4.2", &beyond[..12], &beyond[12..13]),
        Case::ends("6.4.3", vec![text(beyond.clone())], vec![], 1007).chopped(Chop::Bytes(17)),
        Case::ends("6.4.4", vec![text(beyond.clone())], vec![], 1007).chopped(Chop::Bytes(18)),
    ];
    run(&cases, 13).await;
}

type Payloads = &'static [&'static [u8]];

/// Texts that are UTF-8, then those that are not, from 6.5 on; 6.6 stands for itself.
const TEXTS: &[(Payloads, Payloads)] = &[
    (
        &[
            b"hello\x24world",
            b"hello\xc2\xa2world",
            b"hello\xe2\x82\xacworld",
            b"hello\xf0\xa4\xad\xa2world",
            KOSME,
        ],
        &[],
    ),
    (&[], &[]),
    (&[b"\x00", b"\xc2\x80", b"\xe0\xa0\x80", b"\xf0\x90\x80\x80"], &[]),
    (&[], &[b"\xf8\x88\x80\x80\x80", b"\xfc\x84\x80\x80\x80\x80"]),
    (&[b"\x7f", b"\xdf\xbf", b"\xef\xbf\xbf", b"\xf4\x8f\xbf\xbf"], &[]),
    (&[], &[b"\xf7\xbf\xbf\xbf", b"\xfb\xbf\xbf\xbf\xbf", b"\xfd\xbf\xbf\xbf\xbf\xbf"]),
    (&[b"\xed\x9f\xbf", b"\xee\x80\x80", b"\xef\xbf\xbd", b"\xf4\x8f\xbf\xbf"], &[b"\xf4\x90\x80\x80"]),
    (
        &[],
        &[
            b"\x80",
            b"\xbf",
            b"\x80\xbf",
            b"\x80\xbf\x80",
            b"\x80\xbf\x80\xbf",
            b"\x80\xbf\x80\xbf\x80",
            b"\x80\xbf\x80\xbf\x80\xbf",
            b"\x80\x81\x82\x83\x84\x85\x86\x87\x88\x89\x8a\x8b\x8c\x8d\x8e\x8f\
            \x90\x91\x92\x93\x94\x95\x96\x97\x98\x99\x9a\x9b\x9c\x9d\x9e\x9f\
            \xa0\xa1\xa2\xa3\xa4\xa5\xa6\xa7\xa8\xa9\xaa\xab\xac\xad\xae\xaf\
            \xb0\xb1\xb2\xb3\xb4\xb5\xb6\xb7\xb8\xb9\xba\xbb\xbc\xbd\xbe",
        ],
    ),
    (
        &[],
        &[
            b"\xc0 \xc1 \xc2 \xc3 \xc4 \xc5 \xc6 \xc7 \xc8 \xc9 \xca \xcb \xcc \xcd \xce \xcf \
            \xd0 \xd1 \xd2 \xd3 \xd4 \xd5 \xd6 \xd7 \xd8 \xd9 \xda \xdb \xdc \xdd \xde ",
            b"\xe0 \xe1 \xe2 \xe3 \xe4 \xe5 \xe6 \xe7 \xe8 \xe9 \xea \xeb \xec \xed \xee ",
            b"\xf0 \xf1 \xf2 \xf3 \xf4 \xf5 \xf6 ",
            b"\xf8 \xf9 \xfa ",
            b"\xfc ",
        ],
    ),
    (
        &[],
        &[
            b"\xc0",
            b"\xe0\x80",
            b"\xf0\x80\x80",
            b"\xf8\x80\x80\x80",
            b"\xfc\x80\x80\x80\x80",
            b"\xdf",
            b"\xef\xbf",
            b"\xf7\xbf\xbf",
            b"\xfb\xbf\xbf\xbf",
            b"\xfd\xbf\xbf\xbf\xbf",
        ],
    ),
    (
        &[],
        &[b"\xc0\xe0\x80\xf0\x80\x80\xf8\x80\x80\x80\xfc\x80\x80\x80\x80\xdf\
            \xef\xbf\xf7\xbf\xbf\xfb\xbf\xbf\xbf\xfd\xbf\xbf\xbf\xbf"],
    ),
    (&[], &[b"\xfe", b"\xff", b"\xfe\xfe\xff\xff"]),
    (
        &[],
        &[
            b"\xc0\xaf",
            b"\xe0\x80\xaf",
            b"\xf0\x80\x80\xaf",
            b"\xf8\x80\x80\x80\xaf",
            b"\xfc\x80\x80\x80\x80\xaf",
        ],
    ),
    (
        &[],
        &[
            b"\xc1\xbf",
            b"\xe0\x9f\xbf",
            b"\xf0\x8f\xbf\xbf",
            b"\xf8\x87\xbf\xbf\xbf",
            b"\xfc\x83\xbf\xbf\xbf\xbf",
        ],
    ),
    (
        &[],
        &[
            b"\xc0\x80",
            b"\xe0\x80\x80",
            b"\xf0\x80\x80\x80",
            b"\xf8\x80\x80\x80\x80",
            b"\xfc\x80\x80\x80\x80\x80",
        ],
    ),
    (
        &[],
        &[
            b"\xed\xa0\x80",
            b"\xed\xad\xbf",
            b"\xed\xae\x80",
            b"\xed\xaf\xbf",
            b"\xed\xb0\x80",
            b"\xed\xbe\x80",
            b"\xed\xbf\xbf",
        ],
    ),
    (
        &[],
        &[
            b"\xed\xa0\x80\xed\xb0\x80",
            b"\xed\xa0\x80\xed\xbf\xbf",
            b"\xed\xad\xbf\xed\xb0\x80",
            b"\xed\xad\xbf\xed\xbf\xbf",
            b"\xed\xae\x80\xed\xb0\x80",
            b"\xed\xae\x80\xed\xbf\xbf",
            b"\xed\xaf\xbf\xed\xb0\x80",
            b"\xed\xaf\xbf\xed\xbf\xbf",
        ],
    ),
];

/// 6.22: the code points that stand for no character, which are UTF-8 all the same.
fn no_characters() -> Vec<char> {
    let planes = (1..=16_u32).flat_map(|plane| [plane << 16 | 0xfffe, plane << 16 | 0xffff]);
    [0xfffe, 0xffff].into_iter().chain(planes).filter_map(char::from_u32).collect()
}

#[tokio::test]
async fn group_6_texts_of_all_kinds() {
    let mut cases = Vec::new();
    for (group, (good, bad)) in (5..).zip(TEXTS) {
        let mut at = 0;
        for payload in *good {
            at += 1;
            cases.push(echo(format!("6.{group}.{at}"), Frame::TEXT, payload.to_vec()));
        }
        for payload in *bad {
            at += 1;
            cases.push(Case::ends(format!("6.{group}.{at}"), vec![text(*payload)], vec![], 1007));
        }
    }
    for len in 1..=KOSME.len() {
        let (number, payload) = (format!("6.6.{len}"), KOSME[..len].to_vec());
        cases.push(match len {
            2 | 5 | 7 | 9 | 11 => echo(number, Frame::TEXT, payload),
            _ => Case::ends(number, vec![text(payload)], vec![], 1007),
        });
    }
    for (at, nothing) in (1..).zip(no_characters()) {
        cases.push(echo(format!("6.22.{at}"), Frame::TEXT, nothing.to_string().into_bytes()));
    }
    for (at, special) in (1..).zip('\u{fff9}'..='\u{ffff}') {
        cases.push(echo(format!("6.23.{at}"), Frame::TEXT, special.to_string().into_bytes()));
    }
    run(&cases, 132).await;
}

#[tokio::test]
async fn group_7_closing() {
    let bye = || Frame::close(1000, "");
    let large = cycle(b"BAsd7&jh23", 256 << 10);
    let raw = |payload: &[u8]| vec![Frame::last(Frame::CLOSE, payload)];
    let broken_reason = [&[0x03, 0xe8], KOSME, b"\xed\xa0\x80edited"].concat();
    let mut cases = vec![
        Case::good("7.1.1", vec![text(HELLO)], vec![said(HELLO)]),
        Case::ends("7.1.2", vec![bye(), Frame::last(Frame::CLOSE, [])], vec![], 1000),
        Case::ends("7.1.3", vec![bye(), ping([])], vec![], 1000),
        Case::ends("7.1.4", vec![bye(), text(HELLO)], vec![], 1000),
        Case::ends("7.1.5", vec![first("one"), bye(), last("two")], vec![], 1000),
        Case::ends(
            "7.1.6",
            vec![text(large.clone()), text(HELLO), bye(), ping([])],
            vec![echoed(Frame::TEXT, large), said(HELLO)],
            1000,
        ),
        Case::ends("7.3.1", raw(&[]), vec![], 1005),
        Case::ends("7.3.2", raw(b"a"), vec![], 1002),
        Case::ends("7.3.3", vec![bye()], vec![], 1000),
        Case::ends("7.3.4", vec![Frame::close(1000, HELLO)], vec![], 1000),
        Case::ends("7.3.5", vec![Frame::close(1000, &"*".repeat(123))], vec![], 1000),
        Case::ends("7.3.6", vec![Frame::close(1000, &"*".repeat(124))], vec![], 1002),
        Case::ends("7.5.1", raw(&broken_reason), vec![], 1007),
    ];
    let good = [1000, 1001, 1002, 1003, 1007, 1008, 1009, 1010, 1011, 3000, 3999, 4000, 4999];
    for (at, code) in (1..).zip(good) {
        cases.push(Case::ends(format!("7.7.{at}"), vec![Frame::close(code, "")], vec![], code));
    }
    for (at, code) in (1..).zip([0, 999, 1004, 1005, 1006, 1016, 1100, 2000, 2999]) {
        cases.push(Case::ends(format!("7.9.{at}"), vec![Frame::close(code, "")], vec![], 1002));
    }
    for (at, code) in (1..).zip([5000, 65_535]) {
        cases.push(Case::ends(format!("7.13.{at}"), vec![Frame::close(code, "")], vec![], 1002));
    }
    run(&cases, 37).await;
}

/// Text and bytes for the large messages.
const KINDS: [(u8, &[u8]); 2] = [(Frame::TEXT, b"BAsd7&jh23"), (Frame::BINARY, b"\x00\xfe\x23\xfa\xf0")];

#[tokio::test]
async fn group_9_large_messages() {
    let mut cases = Vec::new();
    for (kind, (opcode, payload)) in (1..).zip(KINDS) {
        for (at, kib) in (1..).zip([64, 256, 1 << 10, 4 << 10, 8 << 10, 16 << 10]) {
            cases.push(echo(format!("9.{kind}.{at}"), opcode, cycle(payload, kib << 10)));
        }
    }
    run(&cases, 12).await;
}

#[tokio::test]
async fn group_9_large_messages_in_parts() {
    let mut cases = Vec::new();
    for (kind, (opcode, payload)) in (3..).zip(KINDS) {
        let payload = cycle(payload, 4 << 20);
        let sizes = [64, 256, 1 << 10, 4 << 10, 16 << 10, 64 << 10, 256 << 10, 1 << 20, 4 << 20];
        for (at, bytes) in (1..).zip(sizes) {
            let heard = vec![echoed(opcode, payload.clone())];
            cases.push(Case::good(format!("9.{kind}.{at}"), parts(opcode, &payload, bytes), heard));
        }
    }
    run(&cases, 18).await;
}

#[tokio::test]
async fn group_9_large_messages_in_chops() {
    let mut cases = Vec::new();
    for (kind, (opcode, payload)) in (5..).zip(KINDS) {
        for (at, chop) in (1..).zip([64, 128, 256, 512, 1024, 2048]) {
            let case = echo(format!("9.{kind}.{at}"), opcode, cycle(payload, 1 << 20));
            cases.push(case.chopped(Chop::Bytes(chop)));
        }
    }
    run(&cases, 12).await;
}

#[tokio::test]
async fn group_9_many_messages() {
    let mut cases = Vec::new();
    for (kind, (opcode, byte)) in (7..).zip([(Frame::TEXT, b'*'), (Frame::BINARY, 0xfe)]) {
        for (at, len) in (1..).zip([0, 16, 64, 256, 1024, 4096]) {
            let (sent, heard) = (Frame::last(opcode, vec![byte; len]), echoed(opcode, vec![byte; len]));
            let steps = (0..1000).map(|_| (vec![sent.clone()], vec![heard.clone()])).collect();
            cases.push(Case { number: format!("9.{kind}.{at}"), steps, chop: Chop::Whole, end: End::Client });
        }
    }
    run(&cases, 12).await;
}

#[tokio::test]
async fn group_10_parts_of_an_odd_size() {
    let payload = vec![b'*'; 65_536];
    let heard = vec![echoed(Frame::TEXT, payload.clone())];
    run(&[Case::good("10.1.1", parts(Frame::TEXT, &payload, 1300), heard)], 1).await;
}

/// What the suite does not ask: the bounds at the byte and at the part.
#[tokio::test]
async fn the_bounds_of_the_echo() {
    let in_parts = |count: usize| {
        let mut frames = vec![more("x"); count];
        frames[0].head |= Frame::TEXT;
        frames[count - 1].head |= 0x80;
        frames
    };
    let most = 16 << 20;
    let boast = Frame { head: 0x82, payload: vec![0; most + 1] };
    let cases = [
        Case::good("65536 parts", in_parts(65_536), vec![said(&"x".repeat(65_536))]),
        Case::ends("65537 parts", in_parts(65_537), vec![], 1009),
        Case::ends("a byte too many", vec![boast], vec![], 1009),
        Case::ends("a byte too many in parts", vec![first(vec![b'x'; most]), last("x")], vec![], 1009),
    ];
    run(&cases, 4).await;
}

/// Without the setting there is no such route.
#[tokio::test]
async fn the_echo_is_for_development() {
    let harness = start(Setup::default()).await;
    let handshake = driftline_testkit::socket::Handshake::new("/ws/echo");
    let refused = handshake.send(harness.address).await.expect_err("it is not there");
    assert_eq!((refused.status, refused.code().as_str()), (404, "NOT_FOUND"));
}
