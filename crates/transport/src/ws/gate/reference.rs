//! The gate beside a plain parser that has the whole stream before it.

use driftline_testkit::Rng;

use super::{Bounds, Breach, FREE_BYTES, Gate};
use crate::budget::Budget;

const BOUNDS: Bounds = Bounds { message_bytes: 70_000, fragments: 3 };

/// Streams in a run of the test.
const STREAMS: u64 = 600;

/// A stream goes on until it is this long.
const STREAM_BYTES: usize = 80_000;

/// Lengths at which a form, the free bytes or a bound ends.
const LENGTHS: [u64; 14] =
    [0, 1, 2, 125, 126, 127, 300, 16_383, 16_384, 16_385, 65_535, 65_536, 70_000, 70_001];

/// What is wrong with a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Fault {
    /// Where the frame begins.
    frame: usize,
    /// The byte that decides.
    at: usize,
    breach: Breach,
}

/// What a stream is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Story {
    /// Frames that are there whole.
    frames: u64,
    /// Whether the stream ends with a frame.
    whole: bool,
    fault: Option<Fault>,
}

#[test]
fn the_gate_judges_as_a_parser_of_the_whole_stream_however_it_is_chopped() {
    let mut seen = std::collections::BTreeMap::<String, u32>::new();
    for seed in 0..STREAMS {
        let mut rng = Rng::new(seed);
        let stream = if rng.percent(10) { noise(&mut rng) } else { frames(&mut rng) };
        let budget_bytes = *rng.pick(&[0, 25_000, 60_000, 80_000]);
        let story = read(&stream, budget_bytes);
        *seen.entry(format!("{:?}", story.fault.map(|fault| fault.breach))).or_default() += 1;
        for longest in [1, 16, 3_000, stream.len() as u64] {
            let chunks = chop(&mut rng, &stream, longest);
            assert_judged(&chunks, budget_bytes, story, seed);
        }
    }
    let least = seen.values().min();
    assert!(seen.len() == 4 && least > Some(&25), "every verdict is frequent: {seen:?}");
}

/// Asserts that the gate says of the chunks what the story says of the stream.
fn assert_judged(chunks: &[&[u8]], budget_bytes: usize, story: Story, seed: u64) {
    let mut gate = Gate::new(BOUNDS, Budget::new(budget_bytes));
    let mut begin = 0;
    for chunk in chunks {
        let end = begin + chunk.len();
        // Of the frame that is at fault only the bytes pass that came with earlier chunks.
        let passing = story.fault.map_or(end, |fault| if fault.at < end { fault.frame } else { end });
        let passing = passing.max(begin) - begin;
        assert_eq!(gate.admit(chunk), passing, "seed {seed}: bytes {begin} to {end}, {story:?}");
        begin = end;
    }
    assert_eq!(gate.breach(), story.fault.map(|fault| fault.breach), "seed {seed}: {story:?}");
    if story.fault.is_none() {
        assert_eq!(gate.passed_only(story.frames), story.whole, "seed {seed}: {story:?}");
        assert!(!gate.passed_only(story.frames + 1), "seed {seed}: {story:?}");
    }
}

/// Reads a stream of which no message is ever taken.
fn read(stream: &[u8], budget_bytes: usize) -> Story {
    let (mut start, mut frames, mut held) = (0, 0, 0);
    let mut parts: Vec<u64> = Vec::new();
    while let Some(&first) = stream.get(start) {
        let cut = Story { frames, whole: false, fault: None };
        let bad = |at, breach| Story { fault: Some(Fault { frame: start, at: start + at, breach }), ..cut };
        let (last, reserved, opcode) = (first >= 0x80, first / 0x10 % 8, first % 0x10);
        let known = match opcode {
            0 => !parts.is_empty(),
            1 | 2 => parts.is_empty(),
            8..=10 => last,
            _ => false,
        };
        if reserved > 0 || !known {
            return bad(0, Breach::Protocol);
        }
        let Some(&second) = stream.get(start + 1) else { return cut };
        if second < 0x80 || (opcode >= 8 && second > 0x80 + 125) {
            return bad(1, Breach::Protocol);
        }
        let width = [2, 8].get(usize::from(second).wrapping_sub(0x80 + 126)).copied().unwrap_or(0);
        let Some(wide) = stream.get(start + 2..start + 2 + width) else { return cut };
        let Some(len) = shortest(second - 0x80, wide) else { return bad(1 + width, Breach::Protocol) };
        if opcode < 8 {
            parts.push(len);
            let bytes: u128 = parts.iter().map(|len| u128::from(*len)).sum();
            let counted = parts.len() - usize::from(last && len == 0 && parts.len() > 1);
            if bytes > BOUNDS.message_bytes as u128 || counted > BOUNDS.fragments {
                return bad(1 + width, Breach::TooLarge);
            }
            let large = if bytes > FREE_BYTES as u128 { bytes } else { 0 };
            if large > 0 && held + large > budget_bytes as u128 {
                return bad(1 + width, Breach::Memory);
            }
            if last {
                held += large;
                parts.clear();
            }
        }
        let payload = start + 2 + width + 4;
        let len = usize::try_from(len).expect("a length within the bounds");
        if payload + len > stream.len() {
            return cut;
        }
        start = payload + len;
        frames += 1;
    }
    Story { frames, whole: true, fault: None }
}

/// Returns a length that is written in its shortest form.
fn shortest(short: u8, wide: &[u8]) -> Option<u64> {
    let len = match *wide {
        [] => u64::from(short),
        [high, low] => u64::from(u16::from_be_bytes([high, low])),
        _ => u64::from_be_bytes(wide.try_into().ok()?),
    };
    let width = match len {
        0..=125 => 0,
        126..=0xffff => 2,
        0x1_0000..=0x7fff_ffff_ffff_ffff => 8,
        _ => return None,
    };
    (wide.len() == width).then_some(len)
}

/// Bytes of no meaning.
fn noise(rng: &mut Rng) -> Vec<u8> {
    (0..rng.below(64)).map(|_| rng.next().to_be_bytes()[0]).collect()
}

/// Frames that are mostly good, and often the beginning of one that is cut.
fn frames(rng: &mut Rng) -> Vec<u8> {
    let (mut stream, mut open) = (Vec::new(), false);
    let (long_percent, bad_percent) = (*rng.pick(&[0, 0, 40]), *rng.pick(&[0, 5, 30]));
    while stream.len() < STREAM_BYTES && !rng.percent(4) {
        let control = rng.percent(20);
        let last = control || rng.percent(60);
        let opcode = match (control, open) {
            (true, _) => 8 + rng.below(3),
            (false, true) => 0,
            (false, false) => 1 + rng.below(2),
        };
        open = if control { open } else { !last };
        let first = u8::try_from(opcode).expect("four bits") | if last { 0x80 } else { 0 };
        let long = !control && rng.percent(long_percent);
        let len = if long { *rng.pick(&LENGTHS) } else { rng.below(126) * rng.below(5).min(1) };
        if rng.percent(bad_percent) {
            bad_frame(rng, &mut stream, first, len);
        } else {
            push_frame(&mut stream, first, 0x80, len, form_of(len));
        }
    }
    if rng.percent(30) {
        stream.truncate(rng.place(stream.len() + 1));
    }
    stream
}

/// A frame with something changed, by which it may be bad.
fn bad_frame(rng: &mut Rng, stream: &mut Vec<u8>, first: u8, len: u64) {
    let wide =
        *rng.pick(&[0, 125, 126, 0xffff, 0x1_0000, 1 << 31, 1 << 62, (1 << 63) - 1, 1 << 63, u64::MAX]);
    match rng.below(5) {
        0 => push_frame(stream, first ^ (1 << rng.below(8)), 0x80, len, form_of(len)),
        1 => push_frame(
            stream,
            0x80 | u8::try_from(rng.below(16)).expect("four bits"),
            0x80,
            len,
            form_of(len),
        ),
        2 => push_frame(stream, first, 0, len, form_of(len)),
        _ => push_frame(stream, first, 0x80, wide, rng.between(form_of(wide), 2)),
    }
}

/// Returns how often the shortest form of a length is made longer.
fn form_of(len: u64) -> u64 {
    u64::from(len > 125) + u64::from(len > 0xffff)
}

fn push_frame(stream: &mut Vec<u8>, first: u8, masked: u8, len: u64, form: u64) {
    stream.push(first);
    match form {
        0 => stream.push(masked | u8::try_from(len).expect("a short length")),
        1 => {
            stream.push(masked | 126);
            stream.extend_from_slice(&u16::try_from(len).expect("two bytes").to_be_bytes());
        }
        _ => {
            stream.push(masked | 127);
            stream.extend_from_slice(&len.to_be_bytes());
        }
    }
    // A payload beyond every bound is never read.
    let payload = usize::try_from(len).ok().filter(|len| *len <= BOUNDS.message_bytes).unwrap_or(0);
    stream.resize(stream.len() + 4 + payload, 0xa5);
}

/// Chops a stream into chunks of none to so many bytes.
fn chop<'a>(rng: &mut Rng, stream: &'a [u8], longest: u64) -> Vec<&'a [u8]> {
    let (mut chunks, mut rest) = (Vec::new(), stream);
    while !rest.is_empty() {
        let bytes = usize::try_from(rng.between(0, longest)).expect("a length").min(rest.len());
        let (chunk, behind) = rest.split_at(bytes);
        chunks.push(chunk);
        rest = behind;
    }
    chunks
}
