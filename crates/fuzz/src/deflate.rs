//! Messages of the compressed forms.

use std::borrow::Cow;
use std::cell::RefCell;

use driftline_protocol::{Deflater, InflateError, Inflater};

use crate::target::Verdict;

/// Sizes that a message may have, from none to more than any input becomes.
const BYTES_MAX: [usize; 6] = [0, 1, 200, 4 << 10, 64 << 10, 1 << 20];

thread_local! {
    // As in a server, one serves all messages; what one message leaves behind must not reach the next. The other one
    // has another past. They are made once: a quarter of a MiB, asked for and given back with every input, would be
    // scattered among what libFuzzer keeps, and be mistaken for a leak.
    static DEFLATER: RefCell<Deflater> = RefCell::default();
    static INFLATER: RefCell<Inflater> = RefCell::default();
    static OTHER: RefCell<Deflater> = RefCell::default();
}

/// Opens the input under several bounds.
pub(crate) fn open(input: &[u8]) -> Verdict {
    let mut smaller: Option<Vec<u8>> = None;
    let mut broken = false;
    for bytes_max in BYTES_MAX {
        match inflate(input, bytes_max) {
            Ok(message) => {
                assert!(message.len() <= bytes_max, "the bound holds");
                if let Cow::Owned(message) = &message {
                    assert!(message.capacity() <= 2 * bytes_max + 1, "no more than twice the bound is held");
                }
                assert!(!broken, "more room does not mend a stream");
                if let Some(smaller) = &smaller {
                    assert_eq!(message, &smaller[..], "the bound does not change the message");
                }
                smaller = Some(message.into_owned());
            }
            Err(InflateError::TooLarge { bytes_max: told }) => {
                assert!(told == bytes_max && smaller.is_none() && !broken, "more room lets more in");
            }
            Err(_) => {
                assert!(smaller.is_none(), "more room does not break a stream");
                broken = true;
            }
        }
    }
    if let Some(message) = &smaller {
        assert_eq!(packed_and_opened(message), &message[..], "what was opened can be packed");
    }
    Verdict::of(smaller.is_some())
}

/// Packs the input and opens it again. Every input is accepted under a bound of its size, and refused under a smaller.
pub(crate) fn pack(input: &[u8]) -> Verdict {
    assert_eq!(packed_and_opened(input), input, "what was packed is opened");
    let payload = packed(input);
    assert!(payload.len() <= input.len() + 1, "packing adds one byte at most");
    assert_eq!(packed(input), payload, "messages do not depend on those before");
    assert_eq!(packed_after_another(input), payload, "whatever they were");
    if let Some(bytes_max) = input.len().checked_sub(1) {
        assert_eq!(inflate(&payload, bytes_max), Err(InflateError::TooLarge { bytes_max }));
    }
    Verdict::of(payload[0] == 1)
}

fn packed(message: &[u8]) -> Vec<u8> {
    let mut payload = Vec::new();
    DEFLATER.with_borrow_mut(|deflater| deflater.pack(message, &mut payload));
    payload
}

/// Packs a message where a long one of other content went before.
fn packed_after_another(message: &[u8]) -> Vec<u8> {
    let (mut before, mut payload) = (Vec::new(), Vec::new());
    OTHER.with_borrow_mut(|deflater| {
        deflater.pack(&[b'{'; 300], &mut before);
        deflater.pack(message, &mut payload);
    });
    payload
}

fn packed_and_opened(message: &[u8]) -> Vec<u8> {
    inflate(&packed(message), message.len()).expect("a packed message opens").into_owned()
}

fn inflate(payload: &[u8], bytes_max: usize) -> Result<Cow<'_, [u8]>, InflateError> {
    INFLATER.with_borrow_mut(|inflater| inflater.open(payload, bytes_max))
}
