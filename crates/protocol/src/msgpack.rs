//! MessagePack as the same flat list of nodes that a JSON text becomes, and back.
//!
//! The two encodings carry the same document: string keys, no binary and extension types, no NaN and no infinity.
//! What concerns a value alone is judged by the canonicaliser, as for JSON, so that the verdicts are the same.

use std::fmt;

use rmp_serde::decode::Error;
use serde::de::{DeserializeSeed, MapAccess, SeqAccess, Visitor};
use serde::ser::{SerializeMap as _, SerializeSeq as _};
use serde::{Deserialize as _, Deserializer, Serialize, Serializer};
use thiserror::Error;

use crate::json::{Document, Node, Raw, StrForm, small};

/// Why bytes are not an acceptable MessagePack document.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum MsgpackError {
    /// The bytes end early, go on too long, or hold a marker that means nothing.
    #[error("the message is not MessagePack")]
    Syntax,
    /// A string is not UTF-8.
    #[error("the message holds a string that is not UTF-8")]
    Utf8,
    /// A type that JSON does not have: binary, an extension, a key that is no string, NaN or an infinity.
    #[error("the message holds {0}, which has no place in a document")]
    Unsupported(&'static str),
    /// Arrays and maps are nested too deeply.
    #[error("the message is nested deeper than {max} levels")]
    Depth {
        /// The allowed depth.
        max: usize,
    },
    /// The message is 4 GiB or longer.
    #[error("the message is too long")]
    Length,
}

impl Document<'_> {
    /// Parses a MessagePack document of at most `depth` nested arrays and maps.
    ///
    /// Memory is taken for what is there, never for what a length claims: at most 17 bytes for a byte of the message
    /// (one of its text, 16 of a node), half as much again while the list grows, and 1 KiB.
    ///
    /// # Errors
    /// [`MsgpackError`] says what is wrong.
    pub fn parse_msgpack(bytes: &[u8], depth: usize) -> Result<Document<'static>, MsgpackError> {
        if u32::try_from(bytes.len()).is_err() {
            return Err(MsgpackError::Length);
        }
        let mut tape = Tape {
            text: String::with_capacity(bytes.len()),
            nodes: Vec::with_capacity(bytes.len() / 8 + 8),
            depth,
            refused: None,
        };
        let mut reader = rmp_serde::Deserializer::from_read_ref(bytes);
        // The tape counts the levels itself; the library's own bound lies above.
        reader.set_max_depth(depth.saturating_add(2));
        if let Err(error) = (Place { tape: &mut tape, level: 0 }).deserialize(&mut reader) {
            return Err(tape.cause(&error));
        }
        // Nothing may follow. One more value is asked for, of a type that has no parts: only then does a marker that
        // cannot be read mean the end, and not the end within an array that follows.
        match bool::deserialize(&mut reader) {
            Err(Error::InvalidMarkerRead(_)) => Ok(Document::from_parts(tape.text, tape.nodes)),
            _ => Err(MsgpackError::Syntax),
        }
    }
}

/// The document while it is read.
struct Tape {
    text: String,
    nodes: Vec<Raw>,
    depth: usize,
    /// Set before the library is told to stop, for its error can hold a text only.
    refused: Option<MsgpackError>,
}

impl Tape {
    fn string(&mut self, text: &str) {
        let start = small(self.text.len());
        self.text.push_str(text);
        let end = small(self.text.len());
        self.nodes.push(Raw::Str { start, end, form: form(text) });
    }

    /// Says why the reader stopped.
    fn cause(&self, error: &Error) -> MsgpackError {
        match error {
            // The library shows such a string as binary first, so that it counts as refused for that as well.
            Error::Utf8Error(_) => MsgpackError::Utf8,
            _ => self.refused.unwrap_or(MsgpackError::Syntax),
        }
    }

    fn refuse<E: serde::de::Error>(&mut self, error: MsgpackError) -> E {
        self.refused = Some(error);
        E::custom("refused")
    }

    fn open<E: serde::de::Error>(&mut self, level: usize) -> Result<(usize, u32), E> {
        if level > self.depth {
            return Err(self.refuse(MsgpackError::Depth { max: self.depth }));
        }
        self.nodes.push(Raw::Null);
        Ok((self.nodes.len() - 1, small(self.text.len())))
    }
}

/// Says how a string that stands for itself becomes JSON.
fn form(text: &str) -> StrForm {
    let mut form = StrForm::Plain;
    for byte in text.bytes() {
        match byte {
            0 => return StrForm::LiteralNul,
            b'"' | b'\\' | 0x01..0x20 => form = StrForm::Literal,
            _ => {}
        }
    }
    form
}

/// Where the next value goes.
struct Place<'t> {
    tape: &'t mut Tape,
    level: usize,
}

impl<'de> DeserializeSeed<'de> for Place<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Place<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value that JSON has as well")
    }

    fn visit_unit<E>(self) -> Result<(), E> {
        self.tape.nodes.push(Raw::Null);
        Ok(())
    }

    fn visit_bool<E>(self, value: bool) -> Result<(), E> {
        self.tape.nodes.push(Raw::Bool(value));
        Ok(())
    }

    fn visit_i64<E>(self, value: i64) -> Result<(), E> {
        self.tape.nodes.push(Raw::Int(value));
        Ok(())
    }

    fn visit_u64<E>(self, value: u64) -> Result<(), E> {
        self.tape.nodes.push(i64::try_from(value).map_or(Raw::Huge, Raw::Int));
        Ok(())
    }

    fn visit_f64<E: serde::de::Error>(self, value: f64) -> Result<(), E> {
        if !value.is_finite() {
            return Err(self.tape.refuse(MsgpackError::Unsupported("NaN or an infinity")));
        }
        self.tape.nodes.push(Raw::Float(value));
        Ok(())
    }

    fn visit_str<E>(self, value: &str) -> Result<(), E> {
        self.tape.string(value);
        Ok(())
    }

    fn visit_bytes<E: serde::de::Error>(self, _: &[u8]) -> Result<(), E> {
        Err(self.tape.refuse(MsgpackError::Unsupported("binary")))
    }

    fn visit_newtype_struct<D: Deserializer<'de>>(self, _: D) -> Result<(), D::Error> {
        Err(self.tape.refuse(MsgpackError::Unsupported("an extension type")))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut elements: A) -> Result<(), A::Error> {
        let Self { tape, level } = self;
        let (slot, start) = tape.open(level + 1)?;
        while elements.next_element_seed(Place { tape, level: level + 1 })?.is_some() {}
        tape.nodes[slot] = Raw::Array { start, end: small(tape.text.len()), next: small(tape.nodes.len()) };
        Ok(())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<(), A::Error> {
        let Self { tape, level } = self;
        let (slot, start) = tape.open(level + 1)?;
        while members.next_key_seed(Key(tape))?.is_some() {
            members.next_value_seed(Place { tape, level: level + 1 })?;
        }
        tape.nodes[slot] = Raw::Object { start, end: small(tape.text.len()), next: small(tape.nodes.len()) };
        Ok(())
    }
}

/// Where the next key goes.
struct Key<'t>(&'t mut Tape);

impl<'de> DeserializeSeed<'de> for Key<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        let Self(tape) = self;
        let before = tape.nodes.len();
        let level = tape.depth;
        let read = Place { tape, level }.deserialize(deserializer);
        match (read, &tape.nodes[before..]) {
            (Ok(()), [Raw::Str { .. }]) => Ok(()),
            (Err(error), _) if !matches!(tape.refused, Some(MsgpackError::Depth { .. })) => Err(error),
            _ => Err(tape.refuse(MsgpackError::Unsupported("a key that is no string"))),
        }
    }
}

/// The depth of texts that this crate writes lies far below; the stack holds this much of both parsers.
const OWN_DEPTH: usize = 512;

/// Writes a JSON text that this crate wrote as MessagePack: the same document in the other encoding.
///
/// # Panics
/// When the text is no JSON or nests deeper than 512 levels; texts that this crate wrote never do.
#[must_use]
pub fn msgpack_of_json(json: &str) -> Vec<u8> {
    let document = Document::parse(json.as_bytes(), OWN_DEPTH).expect("a text that this crate wrote is JSON");
    document.to_msgpack()
}

/// Writes a MessagePack document as JSON: the same document in the other encoding.
///
/// # Errors
/// As [`Document::parse_msgpack`].
pub fn json_of_msgpack(bytes: &[u8], depth: usize) -> Result<String, MsgpackError> {
    let document = Document::parse_msgpack(bytes, depth)?;
    Ok(document.root().to_json().into_owned())
}

impl Document<'_> {
    /// Writes the document as MessagePack, members in their order, whatever they are: it judges nothing.
    ///
    /// # Panics
    /// When the document was parsed with a bound of more than 1,000 levels and reaches beyond.
    #[must_use]
    pub fn to_msgpack(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(self.text_bytes());
        // Writing to a vector does not fail, and every length is known.
        self.root().serialize(&mut rmp_serde::Serializer::new(&mut out)).expect("documents serialise");
        out
    }
}

impl Serialize for Node<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.raw() {
            Raw::Null => serializer.serialize_unit(),
            Raw::Bool(bool) => serializer.serialize_bool(bool),
            Raw::Int(int) => serializer.serialize_i64(int),
            // Out of every range that is accepted, in both encodings.
            Raw::Huge => serializer.serialize_u64(u64::MAX),
            Raw::Float(float) => serializer.serialize_f64(float),
            Raw::Str { .. } => serializer.serialize_str(&self.as_str().unwrap_or_default()),
            Raw::Array { .. } => {
                let mut array = serializer.serialize_seq(Some(self.elements().count()))?;
                for element in self.elements() {
                    array.serialize_element(&element)?;
                }
                array.end()
            }
            Raw::Object { .. } => {
                let mut map = serializer.serialize_map(Some(self.members().count()))?;
                for (key, value) in self.members() {
                    map.serialize_entry(&key, &value)?;
                }
                map.end()
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::canonical::canonical_value;

    fn canonical(document: &Document<'_>) -> String {
        let mut out = String::new();
        canonical_value(document.root(), &mut out).expect("canonical");
        out
    }

    #[test]
    fn both_encodings_carry_the_same_document() {
        let text = r#"{"a":[1,-2,0.5,true,null,"x\"\\\n\u0001é😀"],"b\t":{"c":9007199254740992,"d":-9007199254740992},"e":"","f":[],"g":{}}"#;
        let packed = msgpack_of_json(text);
        let document = Document::parse_msgpack(&packed, 64).expect("MessagePack");
        let twin = Document::parse(text.as_bytes(), 64).expect("JSON");
        assert_eq!(canonical(&document), canonical(&twin));
        assert_eq!(document.to_msgpack(), packed);
    }

    #[test]
    fn what_json_does_not_have_is_refused() {
        use MsgpackError::{Syntax, Unsupported};
        let table: [(&[u8], MsgpackError); 23] = [
            (&[], Syntax),
            (&[0xc1], Syntax),
            (&[0x92, 0x01], Syntax),
            (&[0xcf, 0x01], Syntax),
            (&[0x81, 0xa1, b'a'], Syntax),
            (&[0x01, 0x01], Syntax),
            (&[0x01, 0xc0], Syntax),
            (&[0x01, 0x91], Syntax),
            (&[0x01, 0x81, 0xa1, b'a'], Syntax),
            (&[0x01, 0xcd], Syntax),
            (&[0x01, 0xd9], Syntax),
            (&[0xdd, 0xff, 0xff, 0xff, 0xff], Syntax),
            (&[0xdf, 0xff, 0xff, 0xff, 0xff], Syntax),
            (&[0xdb, 0xff, 0xff, 0xff, 0xff, b'x'], Syntax),
            (&[0xc6, 0xff, 0xff, 0xff, 0xff, b'x'], Syntax),
            (&[0xc4, 0x01, b'x'], Unsupported("binary")),
            (&[0xc4, 0x01, 0xff], Unsupported("binary")),
            (&[0xa1, 0xff], MsgpackError::Utf8),
            (&[0x81, 0xa3, 0xed, 0xa0, 0x80, 0xc0], MsgpackError::Utf8),
            (&[0xd4, 0x01, 0x00], Unsupported("an extension type")),
            (&[0x81, 0x01, 0x02], Unsupported("a key that is no string")),
            (&[0xca, 0x7f, 0xc0, 0x00, 0x00], Unsupported("NaN or an infinity")),
            (&[0x81, 0x91, 0x01, 0x02], Unsupported("a key that is no string")),
        ];
        for (bytes, wanted) in table {
            assert_eq!(Document::parse_msgpack(bytes, 64).err(), Some(wanted), "{bytes:02x?}");
        }
    }

    #[test]
    fn numbers_beyond_2_53_are_refused_one_by_one() {
        // The smallest i64 has no positive twin.
        for bytes in
            [[0xd3, 0x80, 0, 0, 0, 0, 0, 0, 0], [0xcf, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff]]
        {
            let document = Document::parse_msgpack(&bytes, 64).expect("MessagePack");
            assert!(canonical_value(document.root(), &mut String::new()).is_err(), "{bytes:02x?}");
            assert_eq!(document.root().as_u64(), None);
            let twin = document.root().to_json().into_owned();
            let twin = Document::parse(twin.as_bytes(), 64).expect("JSON");
            assert_eq!(twin.to_msgpack(), bytes);
        }
        // A number that no double holds has a twin that is refused alike.
        let document = Document::parse(b"[-1e400]", 64).expect("JSON");
        let twin = document.to_msgpack();
        let twin = Document::parse_msgpack(&twin, 64).expect("MessagePack");
        assert_eq!(document.root().elements().next().and_then(|node| node.as_i64()), None);
        assert_eq!(
            canonical_value(twin.root(), &mut String::new()).map_err(|error| error.pointer),
            Err("/0".into())
        );
    }

    #[test]
    fn doubles_survive_the_way_through_json() {
        for float in [1.5, 1e16, 1e20, -1.844_674_407_370_955_2e19, 1e21, f64::MAX, 5e-324] {
            let mut packed = vec![0xcb];
            packed.extend_from_slice(&f64::to_be_bytes(float));
            let json = json_of_msgpack(&packed, 1).expect("MessagePack");
            assert_eq!(msgpack_of_json(&json), packed, "{json}");
        }
    }

    #[test]
    fn memory_is_bounded_by_what_is_there() {
        let nils = 1_000_000_u32;
        let mut bytes = vec![0xdd];
        bytes.extend_from_slice(&nils.to_be_bytes());
        bytes.resize(5 + nils as usize, 0xc0);
        let document = Document::parse_msgpack(&bytes, 64).expect("MessagePack");
        assert_eq!(document.root().elements().count(), nils as usize);
        assert!(document.held_bytes() <= 17 * bytes.len() + 1024, "{} bytes", document.held_bytes());
        bytes.pop();
        assert_eq!(Document::parse_msgpack(&bytes, 64).err(), Some(MsgpackError::Syntax));
    }

    #[test]
    fn depth_is_bounded() {
        let nested = |levels: usize| {
            let mut bytes = vec![0x91; levels];
            bytes.push(0xc0);
            bytes
        };
        assert!(Document::parse_msgpack(&nested(64), 64).is_ok());
        let deep = Some(MsgpackError::Depth { max: 64 });
        assert_eq!(Document::parse_msgpack(&nested(65), 64).err(), deep);
        assert_eq!(Document::parse_msgpack(&nested(100_000), 64).err(), deep);
        assert!(Document::parse_msgpack(&nested(64), usize::MAX).is_ok());
    }
}
