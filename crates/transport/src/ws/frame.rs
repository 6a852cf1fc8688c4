//! Frames from server to client, formatted into the connection's own buffer (RFC 6455 §5.2).

/// The opcodes that a server writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Opcode {
    Text = 0x1,
    Binary = 0x2,
    Close = 0x8,
    Ping = 0x9,
    Pong = 0xa,
}

/// Appends one whole frame, unmasked as a server's frames are.
pub(super) fn write_frame(out: &mut Vec<u8>, opcode: Opcode, payload: &[u8]) {
    out.reserve(payload.len() + 10);
    out.push(0x80 | opcode as u8);
    match payload.len() {
        len @ 0..126 => out.push(u8::try_from(len).expect("below 126")),
        len @ 126..0x1_0000 => {
            out.push(126);
            out.extend_from_slice(&u16::try_from(len).expect("below 2^16").to_be_bytes());
        }
        len => {
            out.push(127);
            out.extend_from_slice(&(len as u64).to_be_bytes());
        }
    }
    out.extend_from_slice(payload);
}

/// Appends a close frame; a reason is cut to what a control frame holds.
pub(super) fn write_close(out: &mut Vec<u8>, code: u16, reason: &str) {
    let mut payload = code.to_be_bytes().to_vec();
    let mut end = reason.len().min(123);
    while !reason.is_char_boundary(end) {
        end -= 1;
    }
    payload.extend_from_slice(&reason.as_bytes()[..end]);
    write_frame(out, Opcode::Close, &payload);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_take_their_three_forms() {
        for (len, head) in [(0, 2), (125, 2), (126, 4), (65_535, 4), (65_536, 10)] {
            let mut out = Vec::new();
            write_frame(&mut out, Opcode::Text, &vec![b'x'; len]);
            assert_eq!(out.len(), len + head, "{len}");
            assert_eq!(out[0], 0x81);
        }
    }

    #[test]
    fn close_frames_hold_code_and_reason() {
        let mut out = Vec::new();
        write_close(&mut out, 4009, "HEARTBEAT_TIMEOUT");
        assert_eq!(&out[..4], &[0x88, 19, 0x0f, 0xa9]);
        out.clear();
        write_close(&mut out, 1000, &"é".repeat(100));
        assert_eq!(out[1], 124, "cut at a character's end");
    }
}
