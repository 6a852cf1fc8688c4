//! WebSocket frames from the client's side (RFC 6455 §5): heads are parsed, frames are written masked.

use anyhow::{Result, bail, ensure};

/// A server that announces a longer frame is refused.
const FRAME_BYTES_MAX: u64 = 64 << 20;

/// What a frame carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Opcode {
    Continuation,
    Text,
    Binary,
    Close,
    Ping,
    Pong,
}

/// The head of a received frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Head {
    pub(crate) opcode: Opcode,
    /// The message ends with this frame.
    pub(crate) last: bool,
    /// Bytes of the head itself.
    pub(crate) head_bytes: usize,
    /// Bytes of the payload behind it.
    pub(crate) payload_bytes: usize,
}

/// Parses the head of a server's frame; none while bytes of it are missing.
pub(crate) fn parse_head(bytes: &[u8]) -> Result<Option<Head>> {
    let [first, second, rest @ ..] = bytes else { return Ok(None) };
    ensure!(first & 0x70 == 0, "reserved bits are set");
    ensure!(second & 0x80 == 0, "the server masked a frame");
    let opcode = match first & 0x0F {
        0 => Opcode::Continuation,
        1 => Opcode::Text,
        2 => Opcode::Binary,
        8 => Opcode::Close,
        9 => Opcode::Ping,
        10 => Opcode::Pong,
        other => bail!("unknown opcode {other}"),
    };
    let (length, extra) = match (second & 0x7F, rest) {
        (126, [a, b, ..]) => (u64::from(u16::from_be_bytes([*a, *b])), 2),
        (127, [a, b, c, d, e, f, g, h, ..]) => (u64::from_be_bytes([*a, *b, *c, *d, *e, *f, *g, *h]), 8),
        (126 | 127, _) => return Ok(None),
        (short, _) => (u64::from(short), 0),
    };
    ensure!(length <= FRAME_BYTES_MAX, "a frame of {length} bytes");
    let payload_bytes = usize::try_from(length)?;
    Ok(Some(Head { opcode, last: first & 0x80 != 0, head_bytes: 2 + extra, payload_bytes }))
}

/// Appends the head of a server's text frame, which carries no mask.
pub(crate) fn write_server_head(payload_bytes: usize, out: &mut Vec<u8>) {
    out.push(0x81);
    match (u8::try_from(payload_bytes), u16::try_from(payload_bytes)) {
        (Ok(short), _) if short < 126 => out.push(short),
        (_, Ok(medium)) => {
            out.push(126);
            out.extend_from_slice(&medium.to_be_bytes());
        }
        _ => {
            out.push(127);
            out.extend_from_slice(&(payload_bytes as u64).to_be_bytes());
        }
    }
}

/// Appends a whole frame, masked with `mask` as clients must.
pub(crate) fn write_frame(opcode: Opcode, payload: &[u8], mask: [u8; 4], out: &mut Vec<u8>) {
    let code = match opcode {
        Opcode::Continuation => 0,
        Opcode::Text => 1,
        Opcode::Binary => 2,
        Opcode::Close => 8,
        Opcode::Ping => 9,
        Opcode::Pong => 10,
    };
    out.reserve(payload.len() + 14);
    out.push(0x80 | code);
    match (u8::try_from(payload.len()), u16::try_from(payload.len())) {
        (Ok(short), _) if short < 126 => out.push(0x80 | short),
        (_, Ok(medium)) => {
            out.push(0x80 | 126);
            out.extend_from_slice(&medium.to_be_bytes());
        }
        _ => {
            out.push(0x80 | 127);
            out.extend_from_slice(&(payload.len() as u64).to_be_bytes());
        }
    }
    out.extend_from_slice(&mask);
    let masked_at = out.len();
    out.extend_from_slice(payload);
    apply_mask(&mut out[masked_at..], mask);
}

/// Masks in words of 8 bytes, which is what makes a 50 KB batch cheap to send.
fn apply_mask(bytes: &mut [u8], mask: [u8; 4]) {
    let [a, b, c, d] = mask;
    let word = u64::from_ne_bytes([a, b, c, d, a, b, c, d]);
    let mut chunks = bytes.chunks_exact_mut(8);
    for chunk in &mut chunks {
        let mut eight = [0; 8];
        eight.copy_from_slice(chunk);
        chunk.copy_from_slice(&(u64::from_ne_bytes(eight) ^ word).to_ne_bytes());
    }
    for (byte, key) in chunks.into_remainder().iter_mut().zip(mask.iter().cycle()) {
        *byte ^= key;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Takes the mask off a written frame, as a server does.
    fn unmasked(mut frame: Vec<u8>) -> Vec<u8> {
        frame[1] &= 0x7F;
        let head = parse_head(&frame).expect("valid").expect("whole");
        let mask: Vec<u8> = frame.drain(head.head_bytes..head.head_bytes + 4).collect();
        for (index, byte) in frame[head.head_bytes..].iter_mut().enumerate() {
            *byte ^= mask[index % 4];
        }
        frame
    }

    #[test]
    fn written_frames_of_every_length_class_are_read_back() {
        for len in [0, 1, 7, 8, 125, 126, 127, 65_535, 65_536, 70_001] {
            let payload: Vec<u8> = (0..len).map(|i| b"driftline"[i % 9]).collect();
            let mut out = Vec::new();
            write_frame(Opcode::Text, &payload, [1, 2, 3, 4], &mut out);
            let frame = unmasked(out);
            let head = parse_head(&frame).expect("valid").expect("whole");
            assert_eq!((head.opcode, head.last, head.payload_bytes), (Opcode::Text, true, len));
            assert_eq!(&frame[head.head_bytes..], payload);
        }
    }

    #[test]
    fn heads_of_a_server_are_read_back() {
        for len in [0, 125, 126, 65_535, 65_536] {
            let mut out = Vec::new();
            write_server_head(len, &mut out);
            let head = parse_head(&out).expect("valid").expect("whole");
            assert_eq!((head.opcode, head.last, head.head_bytes), (Opcode::Text, true, out.len()));
            assert_eq!(head.payload_bytes, len);
        }
    }

    #[test]
    fn a_head_is_awaited_until_it_is_whole() {
        let head = [0x81, 126, 0x01, 0x00];
        for end in 0..head.len() {
            assert_eq!(parse_head(&head[..end]).expect("no fault yet"), None, "{end} bytes");
        }
        assert_eq!(parse_head(&head).expect("valid").expect("whole").payload_bytes, 256);
    }

    #[test]
    fn faulty_heads_are_refused() {
        for head in [&[0xC1, 0][..], &[0x81, 0x85], &[0x83, 0], &[0x82, 127, 1, 0, 0, 0, 0, 0, 0, 0]] {
            assert!(parse_head(head).is_err(), "{head:?}");
        }
    }
}
