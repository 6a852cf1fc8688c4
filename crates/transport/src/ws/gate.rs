//! The judge of frame heads, ahead of the frame parser.

use std::collections::VecDeque;
use std::sync::Arc;

use crate::budget::{Budget, Share};

/// What one message may be.
#[derive(Debug, Clone, Copy)]
pub(super) struct Bounds {
    /// Bytes of one message.
    pub(super) message_bytes: usize,
    /// Parts of one message. A last part without bytes only says that the message ends, and is not counted.
    pub(super) fragments: usize,
}

/// What a frame breaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Breach {
    /// The rules of RFC 6455 §5.
    Protocol,
    /// The bounds of one message.
    TooLarge,
    /// The memory that all messages on their way share.
    Memory,
}

impl Breach {
    /// Returns the close code that says so.
    pub(super) const fn code(self) -> u16 {
        match self {
            Self::Protocol => 1002,
            Self::TooLarge => 1009,
            Self::Memory => 1013,
        }
    }
}

/// Bytes of a message that take nothing from the shared memory.
const FREE_BYTES: usize = Share::FREE_BYTES;

/// The length of the mask, which every frame of a client has.
const MASK_BYTES: u64 = 4;

/// Follows the frames in a stream of bytes and judges each by its head, before anybody else sees it.
///
/// The frame parser reserves room for whatever a head declares, and knows neither masks that are missing nor lengths
/// that are written too long. What has passed the gate is a frame within all bounds.
#[derive(Debug)]
pub(super) struct Gate {
    bounds: Bounds,
    budget: Arc<Budget>,
    /// What has come of a head, up to its length.
    head: [u8; 10],
    head_bytes: usize,
    /// Bytes of the mask and the payload that are still to come.
    rest: u64,
    /// Whole frames that passed.
    frames: u64,
    /// The message whose last part is still to come.
    open: Option<Open>,
    /// Messages whose last head passed, and those that were taken.
    begun: u64,
    taken: u64,
    /// What messages that are not taken yet were granted, by their number.
    grants: VecDeque<(u64, Share)>,
    breach: Option<Breach>,
}

/// A message in parts.
#[derive(Debug, Clone, Copy, Default)]
struct Open {
    bytes: usize,
    fragments: usize,
    granted: usize,
}

impl Gate {
    /// Makes a gate that takes the memory of large messages from a budget.
    pub(super) fn new(bounds: Bounds, budget: Arc<Budget>) -> Self {
        Self {
            bounds,
            budget,
            head: [0; 10],
            head_bytes: 0,
            rest: 0,
            frames: 0,
            open: None,
            begun: 0,
            taken: 0,
            grants: VecDeque::new(),
            breach: None,
        }
    }

    /// Follows the next bytes; returns how many of them may pass. After a breach none do.
    pub(super) fn admit(&mut self, bytes: &[u8]) -> usize {
        let mut at = 0;
        while at < bytes.len() && self.breach.is_none() {
            if self.rest > 0 {
                let passing = usize::try_from(self.rest).unwrap_or(usize::MAX).min(bytes.len() - at);
                at += passing;
                self.rest -= passing as u64;
                self.frames += u64::from(self.rest == 0);
                continue;
            }
            self.head[self.head_bytes] = bytes[at];
            self.head_bytes += 1;
            at += 1;
            if let Err(breach) = self.judge() {
                self.breach = Some(breach);
                // The part of the head that passed with earlier bytes does no harm: a frame is nothing without its end.
                return at.saturating_sub(self.head_bytes);
            }
        }
        if self.breach.is_some() { 0 } else { at }
    }

    /// Returns what was broken, if anything was.
    pub(super) fn breach(&self) -> Option<Breach> {
        self.breach
    }

    /// Tells whether nothing but this many whole frames has passed.
    pub(super) fn passed_only(&self, frames: u64) -> bool {
        self.frames == frames && self.head_bytes == 0 && self.rest == 0
    }

    /// Gives back what the next message was granted, once it was taken.
    pub(super) fn settle(&mut self) {
        self.taken += 1;
        while self.grants.front().is_some_and(|(message, _)| *message < self.taken) {
            self.grants.pop_front();
        }
    }

    /// Judges what there is of a head after each of its bytes.
    fn judge(&mut self) -> Result<(), Breach> {
        let [first, second, ..] = self.head;
        let extended = match second & 0x7f {
            126 => 2,
            127 => 8,
            _ => 0,
        };
        match self.head_bytes {
            1 => return self.judge_first(first),
            2 => judge_second(first, second)?,
            _ => {}
        }
        if self.head_bytes < 2 + extended {
            return Ok(());
        }
        let len = length(second & 0x7f, &self.head[2..2 + extended])?;
        if first & 0x08 == 0 {
            self.judge_message(first, len)?;
        }
        self.head_bytes = 0;
        self.rest = MASK_BYTES + len;
        Ok(())
    }

    /// Reserved bits and opcodes, control frames in parts, parts of no message, messages inside messages.
    fn judge_first(&self, first: u8) -> Result<(), Breach> {
        let (last, reserved) = (first & 0x80 != 0, first & 0x70 != 0);
        let fits = match first & 0x0f {
            0x0 => self.open.is_some(),
            0x1 | 0x2 => self.open.is_none(),
            0x8..=0xa => last,
            _ => false,
        };
        if fits && !reserved { Ok(()) } else { Err(Breach::Protocol) }
    }

    /// The bytes and parts of a message, and its memory. That is taken for what is declared, before it comes: the parser
    /// reserves as much, and what a heap has once touched it keeps, however little of it is in use.
    fn judge_message(&mut self, first: u8, len: u64) -> Result<(), Breach> {
        let last = first & 0x80 != 0;
        let mut open = self.open.unwrap_or_default();
        let len = usize::try_from(len).map_err(|_| Breach::TooLarge)?;
        open.bytes = open.bytes.checked_add(len).ok_or(Breach::TooLarge)?;
        open.fragments += usize::from(!last || len > 0 || open.fragments == 0);
        if open.bytes > self.bounds.message_bytes || open.fragments > self.bounds.fragments {
            return Err(Breach::TooLarge);
        }
        if open.bytes > FREE_BYTES {
            if open.granted == 0 {
                self.grants.push_back((self.begun, self.budget.share()));
            }
            let granted = self.grants.back_mut().map(|(_, share)| share.grow(open.bytes - open.granted));
            if granted != Some(true) {
                return Err(Breach::Memory);
            }
            open.granted = open.bytes;
        }
        self.open = (!last).then_some(open);
        self.begun += u64::from(last);
        Ok(())
    }
}

/// The mask, and the length of control frames.
fn judge_second(first: u8, second: u8) -> Result<(), Breach> {
    let (masked, control) = (second & 0x80 != 0, first & 0x08 != 0);
    if masked && !(control && second & 0x7f > 125) { Ok(()) } else { Err(Breach::Protocol) }
}

/// Reads a length, which has to be in its shortest form.
fn length(short: u8, extended: &[u8]) -> Result<u64, Breach> {
    let len = extended.iter().fold(0, |len: u64, byte| (len << 8) | u64::from(*byte));
    match extended.len() {
        0 => Ok(u64::from(short)),
        2 if len >= 126 => Ok(len),
        8 if (1 << 16..1 << 63).contains(&len) => Ok(len),
        _ => Err(Breach::Protocol),
    }
}

#[cfg(test)]
mod reference;

#[cfg(test)]
mod tests {
    use super::*;

    const BOUNDS: Bounds = Bounds { message_bytes: 100_000, fragments: 3 };

    fn gate(budget: usize) -> Gate {
        Gate::new(BOUNDS, Budget::new(budget))
    }

    /// The head and mask of a frame whose length is in its shortest form.
    fn head(first: u8, len: usize) -> Vec<u8> {
        let mut head = vec![first];
        match len {
            0..126 => head.push(0x80 | u8::try_from(len).unwrap()),
            126..0x1_0000 => {
                head.push(0xfe);
                head.extend_from_slice(&u16::try_from(len).unwrap().to_be_bytes());
            }
            _ => {
                head.push(0xff);
                head.extend_from_slice(&(len as u64).to_be_bytes());
            }
        }
        head.extend_from_slice(&[0; 4]);
        head
    }

    fn frame(first: u8, len: usize) -> Vec<u8> {
        [head(first, len), vec![b'x'; len]].concat()
    }

    #[test]
    fn a_breach_stops_the_stream_at_its_frame_however_it_is_chopped() {
        let good = [frame(0x01, 3), frame(0x89, 125), frame(0x80, 70_000), frame(0x82, 300)].concat();
        let table: &[(&[u8], Breach)] = &[
            (&[0xc1], Breach::Protocol),
            (&[0x83], Breach::Protocol),
            (&[0x8b], Breach::Protocol),
            (&[0x80], Breach::Protocol),
            (&[0x09], Breach::Protocol),
            (&[0x81, 0x05], Breach::Protocol),
            (&[0x8a, 0xfe], Breach::Protocol),
            (&[0x81, 0xfe, 0, 125], Breach::Protocol),
            (&[0x81, 0xff, 0, 0, 0, 0, 0, 0, 0xff, 0xff], Breach::Protocol),
            (&[0x81, 0xff, 0x80, 0, 0, 0, 0, 0, 0, 0], Breach::Protocol),
            (&[0x81, 0xff, 0x7f, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff], Breach::TooLarge),
            (&[0x81, 0xff, 0, 0, 0, 0, 0x80, 0, 0, 0], Breach::TooLarge),
            (&[0x81, 0xff, 0, 0, 0, 0, 0, 1, 0x86, 0xa1], Breach::TooLarge),
            (&[&frame(0x01, 99_999)[..], &[0x81]].concat(), Breach::Protocol),
            (&[&frame(0x01, 99_999)[..], &head(0x80, 2)].concat(), Breach::TooLarge),
        ];
        for (bad, breach) in table {
            let stream = [&good[..], bad, &[0xaa; 20]].concat();
            for chop in [1, 2, 3, 7, 997, stream.len()] {
                let mut gate = gate(1 << 20);
                let passed: usize = stream.chunks(chop).map(|bytes| gate.admit(bytes)).sum();
                assert_eq!(gate.breach(), Some(*breach), "{:02x?}", &bad[..bad.len().min(20)]);
                assert!(passed >= good.len() && passed < good.len() + bad.len(), "{passed}");
            }
        }
    }

    #[test]
    fn parts_are_counted_but_for_an_empty_last_one() {
        let parts = |lens: &[usize]| {
            let mut gate = gate(0);
            for (at, len) in lens.iter().enumerate() {
                let first = u8::from(at == 0) | if at + 1 == lens.len() { 0x80 } else { 0 };
                gate.admit(&frame(first, *len));
            }
            gate.breach()
        };
        assert_eq!(parts(&[1, 1, 1]), None);
        assert_eq!(parts(&[1, 1, 1, 0]), None);
        assert_eq!(parts(&[1, 1, 1, 1]), Some(Breach::TooLarge));
        assert_eq!(parts(&[0, 0, 0, 0, 0]), Some(Breach::TooLarge));
    }

    #[test]
    fn large_messages_share_a_budget_until_they_are_taken() {
        let mut gate = gate(40_000);
        for first in [0x01, 0x00] {
            gate.admit(&frame(first, 10_000));
        }
        gate.admit(&frame(0x80, 10_000));
        assert_eq!((gate.breach(), gate.passed_only(3)), (None, true));
        gate.admit(&head(0x82, 16 << 10));
        assert_eq!(gate.breach(), None, "a small message costs nothing");
        gate.admit(&[0; 16 << 10]);
        gate.settle();
        gate.settle();
        gate.admit(&frame(0x82, 40_000));
        assert_eq!(gate.breach(), None, "what was taken is given back");
        assert_eq!(gate.admit(&head(0x82, 20_000)), 0);
        assert_eq!(gate.breach(), Some(Breach::Memory));
    }
}
