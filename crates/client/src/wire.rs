//! Messages as they travel: the replica's JSON in the form that a connection has agreed on, and back.

use driftline_model::Limits;
use driftline_protocol::{
    Deflater, Encoding, Form, InflateError, Inflater, MsgpackError, json_of_msgpack, msgpack_of_json,
};
use fastwebsockets::OpCode;
use thiserror::Error;

/// The largest message that is read, whole, in fragments or inflated.
pub(crate) const MESSAGE_BYTES_MAX: usize = 16 << 20;

/// How much deeper an answer of a server may nest than what was sent to it.
const DEPTH_MORE: usize = 8;

/// Why a message of the server cannot be opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum Unreadable {
    /// A text frame where the agreed form has binary ones, or the other way round.
    #[error("a frame of the wrong kind")]
    Frame,
    /// It is compressed, and cannot be inflated.
    #[error("{0}")]
    Inflate(#[from] InflateError),
    /// It is not a MessagePack document.
    #[error("{0}")]
    MessagePack(#[from] MsgpackError),
}

impl Unreadable {
    /// The close code that tells the server.
    pub(crate) const fn close_code(self) -> u16 {
        match self {
            Self::Frame => 1003,
            Self::Inflate(InflateError::TooLarge { .. }) => 1009,
            Self::Inflate(_) | Self::MessagePack(_) => 1007,
        }
    }
}

/// Opens the messages of a server.
#[derive(Debug)]
pub(crate) struct Opener {
    form: Form,
    inflater: Inflater,
}

impl Opener {
    pub(crate) fn new(form: Form) -> Self {
        Self { form, inflater: Inflater::default() }
    }

    /// Makes JSON of a whole message, which came in text or in binary frames.
    pub(crate) fn open(&mut self, opcode: OpCode, message: Vec<u8>) -> Result<Vec<u8>, Unreadable> {
        if opcode != opcode_of(self.form) {
            return Err(Unreadable::Frame);
        }
        let message = if self.form.deflate {
            self.inflater.open(&message, MESSAGE_BYTES_MAX)?.into_owned()
        } else {
            message
        };
        match self.form.encoding {
            Encoding::Json => Ok(message),
            Encoding::MessagePack => {
                Ok(json_of_msgpack(&message, Limits::default().depth + DEPTH_MORE)?.into_bytes())
            }
        }
    }
}

/// Packs messages for a server.
#[derive(Debug)]
pub(crate) struct Packer {
    form: Form,
    deflater: Deflater,
}

impl Packer {
    pub(crate) fn new(form: Form) -> Self {
        Self { form, deflater: Deflater::default() }
    }

    /// Makes the payload of a frame, and says of which kind the frame is.
    pub(crate) fn pack(&mut self, json: String) -> (OpCode, Vec<u8>) {
        let message = match self.form.encoding {
            Encoding::Json => json.into_bytes(),
            Encoding::MessagePack => msgpack_of_json(&json),
        };
        let payload = if self.form.deflate {
            let mut packed = Vec::new();
            self.deflater.pack(&message, &mut packed);
            packed
        } else {
            message
        };
        (opcode_of(self.form), payload)
    }
}

const fn opcode_of(form: Form) -> OpCode {
    match form {
        Form { encoding: Encoding::Json, deflate: false } => OpCode::Text,
        _ => OpCode::Binary,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MESSAGE: &str = r#"{"type":"pong","timestamp":1.5,"more":["x",null,true,{}]}"#;

    #[test]
    fn every_form_is_packed_and_opened() {
        let long = format!(r#"{{"type":"pong","text":"{}"}}"#, "x".repeat(1_000));
        for form in Form::ALL {
            for json in [MESSAGE, &long] {
                let (opcode, payload) = Packer::new(form).pack(json.to_owned());
                assert_eq!(payload == json.as_bytes(), form == Form::default(), "{form:?}");
                let opened = Opener::new(form).open(opcode, payload).expect("a message");
                assert_eq!(String::from_utf8(opened).as_deref(), Ok(json), "{form:?}");
            }
        }
    }

    #[test]
    fn what_is_not_of_the_form_is_refused() {
        let form = |encoding, deflate| Form { encoding, deflate };
        let bomb = {
            let mut packed = Vec::new();
            Deflater::default().pack(&vec![b' '; MESSAGE_BYTES_MAX + 1], &mut packed);
            packed
        };
        let table = [
            (form(Encoding::Json, false), OpCode::Binary, MESSAGE.as_bytes(), 1003),
            (form(Encoding::MessagePack, false), OpCode::Text, MESSAGE.as_bytes(), 1003),
            (form(Encoding::Json, true), OpCode::Text, MESSAGE.as_bytes(), 1003),
            (form(Encoding::Json, true), OpCode::Binary, MESSAGE.as_bytes(), 1007),
            (form(Encoding::Json, true), OpCode::Binary, &[1, 0xff], 1007),
            (form(Encoding::Json, true), OpCode::Binary, &bomb, 1009),
            (form(Encoding::MessagePack, false), OpCode::Binary, &[0xc1], 1007),
            (form(Encoding::MessagePack, true), OpCode::Binary, &[0, 0xc1], 1007),
        ];
        for (form, opcode, payload, code) in table {
            let error = Opener::new(form).open(opcode, payload.to_vec()).expect_err("refused");
            assert_eq!(error.close_code(), code, "{form:?} {error}");
        }
    }
}
