//! A message as a flat list of nodes, made of a JSON text in one pass.
//!
//! The pass settles what concerns the whole message: UTF-8, grammar (RFC 8259) and depth. Duplicate keys,
//! U+0000 and number range are judged later, value by value, by the canonicaliser.

use std::borrow::Cow;

use thiserror::Error;

use crate::form::Encoding;
use crate::write::{write_integer, write_json_string, write_number};

/// A parsed message.
#[derive(Debug)]
pub struct Document<'a> {
    text: Cow<'a, str>,
    nodes: Vec<Raw>,
    encoding: Encoding,
}

#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Raw {
    Null,
    Bool(bool),
    /// An integer literal that fits.
    Int(i64),
    /// A number beyond what an `i64`, or written with a point or an exponent a double, holds.
    Huge,
    /// Always finite.
    Float(f64),
    Str {
        start: u32,
        end: u32,
        form: StrForm,
    },
    Array {
        start: u32,
        end: u32,
        next: u32,
    },
    Object {
        start: u32,
        end: u32,
        next: u32,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum StrForm {
    /// Without escapes: canonical as it stands.
    Plain,
    Escaped,
    /// Escaped, and U+0000 is among the characters.
    Nul,
    /// Every character stands for itself, also those that JSON has to escape.
    Literal,
    /// As it stands, and U+0000 is among the characters.
    LiteralNul,
}

/// Why a text is not an acceptable JSON document.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum JsonError {
    /// The bytes are not UTF-8.
    #[error("the message is not UTF-8")]
    Utf8,
    /// The text breaks the JSON grammar at the given byte.
    #[error("the message is not JSON: unexpected input at byte {at}")]
    Syntax {
        /// Where, in bytes.
        at: usize,
    },
    /// Arrays and objects are nested too deeply.
    #[error("the message is nested deeper than {max} levels")]
    Depth {
        /// The allowed depth.
        max: usize,
    },
    /// The text is 4 GiB or longer.
    #[error("the message is too long")]
    Length,
}

impl<'a> Document<'a> {
    /// Parses a JSON text of at most `depth` nested arrays and objects.
    ///
    /// # Errors
    /// [`JsonError`] says what is wrong and where.
    pub fn parse(bytes: &'a [u8], depth: usize) -> Result<Self, JsonError> {
        if u32::try_from(bytes.len()).is_err() {
            return Err(JsonError::Length);
        }
        let text = std::str::from_utf8(bytes).map_err(|_| JsonError::Utf8)?;
        let mut parser =
            Parser { bytes, text, at: 0, nodes: Vec::with_capacity(bytes.len() / 12 + 8), depth };
        parser.space();
        parser.value(0)?;
        parser.space();
        if parser.at != bytes.len() {
            return Err(parser.unexpected());
        }
        Ok(Self { text: Cow::Borrowed(text), nodes: parser.nodes, encoding: Encoding::Json })
    }

    /// Puts together what was read from MessagePack.
    pub(crate) fn from_parts(text: String, nodes: Vec<Raw>) -> Document<'static> {
        Document { text: Cow::Owned(text), nodes, encoding: Encoding::MessagePack }
    }

    /// Returns how many bytes of text the document holds.
    pub(crate) fn text_bytes(&self) -> usize {
        self.text.len()
    }

    /// Returns how many bytes of memory the document holds beside those that it was parsed from.
    #[cfg(test)]
    pub(crate) fn held_bytes(&self) -> usize {
        let text = if let Cow::Owned(text) = &self.text { text.capacity() } else { 0 };
        text + self.nodes.capacity() * size_of::<Raw>()
    }

    /// Returns the outermost value.
    #[must_use]
    pub fn root(&self) -> Node<'_> {
        Node { document: self, at: 0 }
    }
}

struct Parser<'a> {
    bytes: &'a [u8],
    text: &'a str,
    at: usize,
    nodes: Vec<Raw>,
    depth: usize,
}

impl Parser<'_> {
    fn unexpected(&self) -> JsonError {
        JsonError::Syntax { at: self.at }
    }

    fn peek(&self) -> Option<u8> {
        self.bytes.get(self.at).copied()
    }

    fn space(&mut self) {
        while let Some(b' ' | b'\n' | b'\r' | b'\t') = self.peek() {
            self.at += 1;
        }
    }

    fn value(&mut self, depth: usize) -> Result<(), JsonError> {
        match self.peek() {
            Some(b'"') => self.string(),
            Some(b'{') => self.object(depth + 1),
            Some(b'[') => self.array(depth + 1),
            Some(b'-' | b'0'..=b'9') => self.number(),
            Some(b't') => self.literal("true", Raw::Bool(true)),
            Some(b'f') => self.literal("false", Raw::Bool(false)),
            Some(b'n') => self.literal("null", Raw::Null),
            _ => Err(self.unexpected()),
        }
    }

    fn literal(&mut self, word: &str, node: Raw) -> Result<(), JsonError> {
        if !self.bytes[self.at..].starts_with(word.as_bytes()) {
            return Err(self.unexpected());
        }
        self.at += word.len();
        self.nodes.push(node);
        Ok(())
    }

    fn object(&mut self, depth: usize) -> Result<(), JsonError> {
        let (slot, start) = self.open(depth)?;
        if self.peek() == Some(b'}') {
            self.at += 1;
        } else {
            loop {
                if self.peek() != Some(b'"') {
                    return Err(self.unexpected());
                }
                self.string()?;
                self.space();
                if self.peek() != Some(b':') {
                    return Err(self.unexpected());
                }
                self.at += 1;
                self.space();
                self.value(depth)?;
                if self.close(b'}')? {
                    break;
                }
            }
        }
        self.nodes[slot] = Raw::Object { start, end: small(self.at), next: small(self.nodes.len()) };
        Ok(())
    }

    fn array(&mut self, depth: usize) -> Result<(), JsonError> {
        let (slot, start) = self.open(depth)?;
        if self.peek() == Some(b']') {
            self.at += 1;
        } else {
            loop {
                self.value(depth)?;
                if self.close(b']')? {
                    break;
                }
            }
        }
        self.nodes[slot] = Raw::Array { start, end: small(self.at), next: small(self.nodes.len()) };
        Ok(())
    }

    fn open(&mut self, depth: usize) -> Result<(usize, u32), JsonError> {
        if depth > self.depth {
            return Err(JsonError::Depth { max: self.depth });
        }
        let slot = self.nodes.len();
        self.nodes.push(Raw::Null);
        let start = small(self.at);
        self.at += 1;
        self.space();
        Ok((slot, start))
    }

    /// Reads what follows a member or element; tells whether it was the closing bracket.
    fn close(&mut self, bracket: u8) -> Result<bool, JsonError> {
        self.space();
        match self.peek() {
            Some(b',') => {
                self.at += 1;
                self.space();
                Ok(false)
            }
            Some(byte) if byte == bracket => {
                self.at += 1;
                Ok(true)
            }
            _ => Err(self.unexpected()),
        }
    }

    fn string(&mut self) -> Result<(), JsonError> {
        self.at += 1;
        let start = self.at;
        let mut form = StrForm::Plain;
        loop {
            match self.peek() {
                Some(b'"') => break,
                Some(b'\\') => {
                    let nul = self.escape()?;
                    form = if nul || form == StrForm::Nul { StrForm::Nul } else { StrForm::Escaped };
                }
                Some(0x20..) => self.at += 1,
                _ => return Err(self.unexpected()),
            }
        }
        self.nodes.push(Raw::Str { start: small(start), end: small(self.at), form });
        self.at += 1;
        Ok(())
    }

    /// Reads one escape sequence; tells whether it is U+0000.
    fn escape(&mut self) -> Result<bool, JsonError> {
        self.at += 1;
        match self.peek() {
            Some(b'"' | b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't') => {
                self.at += 1;
                Ok(false)
            }
            Some(b'u') => {
                let unit = self.hex4()?;
                match unit {
                    0xd800..=0xdbff => {
                        if self.peek() != Some(b'\\') || self.bytes.get(self.at + 1) != Some(&b'u') {
                            return Err(self.unexpected());
                        }
                        self.at += 1;
                        let low = self.hex4()?;
                        if (0xdc00..=0xdfff).contains(&low) { Ok(false) } else { Err(self.unexpected()) }
                    }
                    0xdc00..=0xdfff => Err(self.unexpected()),
                    _ => Ok(unit == 0),
                }
            }
            _ => Err(self.unexpected()),
        }
    }

    /// Reads `u` and four hexadecimal digits.
    fn hex4(&mut self) -> Result<u16, JsonError> {
        let digits = self.bytes.get(self.at + 1..self.at + 5).ok_or(self.unexpected())?;
        let mut unit = 0_u16;
        for digit in digits {
            let digit = match digit {
                b'0'..=b'9' => digit - b'0',
                b'a'..=b'f' => digit - b'a' + 10,
                b'A'..=b'F' => digit - b'A' + 10,
                _ => return Err(self.unexpected()),
            };
            unit = unit << 4 | u16::from(digit);
        }
        self.at += 5;
        Ok(unit)
    }

    fn number(&mut self) -> Result<(), JsonError> {
        let start = self.at;
        let negative = self.peek() == Some(b'-');
        self.at += usize::from(negative);
        let digits = self.at;
        let mut magnitude = Some(0_u64);
        while let Some(digit @ b'0'..=b'9') = self.peek() {
            magnitude =
                magnitude.and_then(|so_far| so_far.checked_mul(10)?.checked_add(u64::from(digit - b'0')));
            self.at += 1;
        }
        let count = self.at - digits;
        if count == 0 || (count > 1 && self.bytes[digits] == b'0') {
            return Err(self.unexpected());
        }
        let mut integer = true;
        if self.peek() == Some(b'.') {
            integer = false;
            self.at += 1;
            self.digits()?;
        }
        if let Some(b'e' | b'E') = self.peek() {
            integer = false;
            self.at += 1;
            if let Some(b'+' | b'-') = self.peek() {
                self.at += 1;
            }
            self.digits()?;
        }
        self.nodes.push(if integer {
            let int = magnitude.and_then(|magnitude| {
                if negative { 0_i64.checked_sub_unsigned(magnitude) } else { i64::try_from(magnitude).ok() }
            });
            int.map_or(Raw::Huge, Raw::Int)
        } else {
            let float: f64 = self.text[start..self.at].parse().map_err(|_| self.unexpected())?;
            if float.is_finite() { Raw::Float(float) } else { Raw::Huge }
        });
        Ok(())
    }

    fn digits(&mut self) -> Result<(), JsonError> {
        let start = self.at;
        while let Some(b'0'..=b'9') = self.peek() {
            self.at += 1;
        }
        if self.at == start { Err(self.unexpected()) } else { Ok(()) }
    }
}

#[expect(clippy::cast_possible_truncation, reason = "Document::parse refuses texts of 4 GiB and more")]
pub(crate) fn small(at: usize) -> u32 {
    at as u32
}

/// One value of a [`Document`].
#[derive(Debug, Clone, Copy)]
pub struct Node<'d> {
    document: &'d Document<'d>,
    at: usize,
}

impl<'d> Node<'d> {
    pub(crate) fn raw(&self) -> Raw {
        self.document.nodes[self.at]
    }

    pub(crate) fn slice(&self, start: u32, end: u32) -> &'d str {
        &self.document.text[start as usize..end as usize]
    }

    /// Returns the value as JSON: the source text where there is one, else one of the same members in the same order.
    #[must_use]
    pub fn to_json(&self) -> Cow<'d, str> {
        match self.raw() {
            Raw::Array { start, end, .. } | Raw::Object { start, end, .. }
                if self.document.encoding == Encoding::Json =>
            {
                Cow::Borrowed(self.slice(start, end))
            }
            _ => {
                let mut out = String::new();
                self.write_json(&mut out);
                Cow::Owned(out)
            }
        }
    }

    /// Appends the value as JSON, members in their order, whatever they are: it judges nothing.
    pub(crate) fn write_json(&self, out: &mut String) {
        match self.raw() {
            Raw::Null => out.push_str("null"),
            Raw::Bool(bool) => out.push_str(if bool { "true" } else { "false" }),
            Raw::Int(int) => write_integer(out, int),
            // The digits are not kept; any number that is out of range says the same.
            Raw::Huge => write_number(out, u64::MAX),
            // All its digits would be read as another number, an integer that may not even fit.
            Raw::Float(float) if (DOUBLE_INTEGER_MAX..1e21).contains(&float.abs()) => {
                out.push_str(&format!("{float:e}"));
            }
            Raw::Float(float) => out.push_str(ryu_js::Buffer::new().format_finite(float)),
            Raw::Str { .. } => write_json_string(out, &self.as_str().unwrap_or_default()),
            Raw::Array { .. } => {
                out.push('[');
                for (at, element) in self.elements().enumerate() {
                    if at > 0 {
                        out.push(',');
                    }
                    element.write_json(out);
                }
                out.push(']');
            }
            Raw::Object { .. } => {
                out.push('{');
                for (at, (key, value)) in self.members().enumerate() {
                    if at > 0 {
                        out.push(',');
                    }
                    key.write_json(out);
                    out.push(':');
                    value.write_json(out);
                }
                out.push('}');
            }
        }
    }

    /// Returns about how many bytes an array or object takes.
    pub(crate) fn weight(&self) -> usize {
        match self.raw() {
            Raw::Array { start, end, next } | Raw::Object { start, end, next } => {
                let marks = match self.document.encoding {
                    Encoding::Json => 0,
                    Encoding::MessagePack => 4 * (next as usize - self.at),
                };
                (end - start) as usize + marks
            }
            _ => 0,
        }
    }

    fn next(&self) -> usize {
        match self.raw() {
            Raw::Array { next, .. } | Raw::Object { next, .. } => next as usize,
            _ => self.at + 1,
        }
    }

    /// Tells whether the value is `null`.
    #[must_use]
    pub fn is_null(&self) -> bool {
        self.raw() == Raw::Null
    }

    /// Tells whether the value is a number.
    #[must_use]
    pub fn is_number(&self) -> bool {
        matches!(self.raw(), Raw::Int(_) | Raw::Huge | Raw::Float(_))
    }

    /// Tells whether the value is an object.
    #[must_use]
    pub fn is_object(&self) -> bool {
        matches!(self.raw(), Raw::Object { .. })
    }

    /// Tells whether the value is an array.
    #[must_use]
    pub fn is_array(&self) -> bool {
        matches!(self.raw(), Raw::Array { .. })
    }

    /// Returns a string's characters.
    #[must_use]
    pub fn as_str(&self) -> Option<Cow<'d, str>> {
        match self.raw() {
            Raw::Str { start, end, form: StrForm::Escaped | StrForm::Nul } => {
                Some(Cow::Owned(unescape(self.slice(start, end))))
            }
            Raw::Str { start, end, .. } => Some(Cow::Borrowed(self.slice(start, end))),
            _ => None,
        }
    }

    /// Returns an integer that fits 64 bits. How it is written does not matter: `7.0` and `70e-1` are 7, because
    /// some writers of MessagePack know only doubles.
    #[must_use]
    pub fn as_i64(&self) -> Option<i64> {
        match self.raw() {
            Raw::Int(int) => Some(int),
            Raw::Float(float) => integer(float),
            _ => None,
        }
    }

    /// Returns a non-negative integer within 2^53.
    #[must_use]
    pub fn as_u64(&self) -> Option<u64> {
        self.as_i64().and_then(|int| u64::try_from(int).ok()).filter(|&int| int <= 1 << 53)
    }

    /// Returns a number as the nearest double, if it is finite.
    #[must_use]
    pub fn as_f64(&self) -> Option<f64> {
        match self.raw() {
            // Integers beyond 2^53 lose digits, which is all that is asked of a measured value.
            #[expect(
                clippy::cast_precision_loss,
                reason = "a measured value needs no more than a double's digits"
            )]
            Raw::Int(int) => Some(int as f64),
            Raw::Float(float) => Some(float),
            _ => None,
        }
    }

    /// Returns a boolean.
    #[must_use]
    pub fn as_bool(&self) -> Option<bool> {
        match self.raw() {
            Raw::Bool(bool) => Some(bool),
            _ => None,
        }
    }

    /// Goes through the members of an object in the order of the text; nothing for other values.
    pub fn members(&self) -> impl Iterator<Item = (Node<'d>, Node<'d>)> + use<'d> {
        let (mut at, end) = match self.raw() {
            Raw::Object { next, .. } => (self.at + 1, next as usize),
            _ => (0, 0),
        };
        let document = self.document;
        std::iter::from_fn(move || {
            if at >= end {
                return None;
            }
            let (key, value) = (Node { document, at }, Node { document, at: at + 1 });
            at = value.next();
            Some((key, value))
        })
    }

    /// Goes through the elements of an array; nothing for other values.
    pub fn elements(&self) -> impl Iterator<Item = Node<'d>> + use<'d> {
        let (mut at, end) = match self.raw() {
            Raw::Array { next, .. } => (self.at + 1, next as usize),
            _ => (0, 0),
        };
        let document = self.document;
        std::iter::from_fn(move || {
            if at >= end {
                return None;
            }
            let node = Node { document, at };
            at = node.next();
            Some(node)
        })
    }

    /// Returns the first member of that name.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<Node<'d>> {
        self.members().find(|(key, _)| key.is_str(name)).map(|(_, value)| value)
    }

    /// Tells whether the value is exactly this string.
    #[must_use]
    pub fn is_str(&self, text: &str) -> bool {
        match self.raw() {
            Raw::Str { start, end, form: StrForm::Plain } => self.slice(start, end) == text,
            Raw::Str { .. } => self.as_str().is_some_and(|own| own == text),
            _ => false,
        }
    }
}

/// 2^53: up to it a double holds every integer.
const DOUBLE_INTEGER_MAX: f64 = 9_007_199_254_740_992.0;

/// Returns the integer that a double within 2^53 is, if it is one.
#[expect(clippy::cast_possible_truncation, reason = "the double is whole and within 2^53")]
fn integer(float: f64) -> Option<i64> {
    let exact = float.fract() == 0.0 && float.abs() <= DOUBLE_INTEGER_MAX;
    exact.then_some(float as i64)
}

/// Resolves the escapes of a string that the parser has accepted.
pub(crate) fn unescape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('\\') {
        out.push_str(&rest[..at]);
        let (char, len) = match rest.as_bytes()[at + 1] {
            b'b' => ('\u{8}', 2),
            b'f' => ('\u{c}', 2),
            b'n' => ('\n', 2),
            b'r' => ('\r', 2),
            b't' => ('\t', 2),
            b'u' => {
                let unit = |from: usize| u32::from_str_radix(&rest[from..from + 4], 16).unwrap_or(0xfffd);
                let high = unit(at + 2);
                if (0xd800..0xdc00).contains(&high) {
                    let code = 0x1_0000 + ((high - 0xd800) << 10) + (unit(at + 8) - 0xdc00);
                    (char::from_u32(code).unwrap_or(char::REPLACEMENT_CHARACTER), 12)
                } else {
                    (char::from_u32(high).unwrap_or(char::REPLACEMENT_CHARACTER), 6)
                }
            }
            other => (char::from(other), 2),
        };
        out.push(char);
        rest = &rest[at + len..];
    }
    out.push_str(rest);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Document<'_>, JsonError> {
        Document::parse(text.as_bytes(), 64)
    }

    #[test]
    fn values_are_found() {
        let document =
            parse(r#" {"a" : [1, -2.5, "x\u00e9\ud83d\ude00"], "b":{"c":null,"d":true}} "#).unwrap();
        let root = document.root();
        let array: Vec<_> = root.get("a").unwrap().elements().collect();
        assert_eq!(array[0].as_i64(), Some(1));
        assert_eq!(array[2].as_str().unwrap(), "xé😀");
        assert!(root.get("b").unwrap().get("c").unwrap().is_null());
        assert_eq!(root.get("b").unwrap().get("d").unwrap().as_bool(), Some(true));
        assert_eq!(root.get("b").unwrap().to_json(), r#"{"c":null,"d":true}"#);
    }

    #[test]
    fn integers_are_what_they_mean() {
        let table = [
            ("7.0", Some(7)),
            ("70e-1", Some(7)),
            ("-0.0", Some(0)),
            ("9007199254740992.0", Some(1 << 53)),
            ("9223372036854775807", Some(i64::MAX)),
            ("-9223372036854775808", Some(i64::MIN)),
            ("7.5", None),
            ("1e16", None),
            ("9223372036854775808", None),
            ("-9223372036854775809", None),
            ("1e400", None),
            ("-1e400", None),
        ];
        for (text, wanted) in table {
            let document = parse(text).unwrap();
            assert_eq!(document.root().as_i64(), wanted, "{text}");
            assert!(document.root().is_number(), "{text}");
        }
    }

    #[test]
    fn the_grammar_is_kept() {
        for bad in [
            "",
            "{",
            "[1,]",
            "01",
            "-",
            "1.",
            "1e",
            "tru",
            "\"\u{1}\"",
            r#""\x""#,
            r#""\ud800""#,
            r#""\udc00""#,
            "{} {}",
            "{\"a\" 1}",
            "nul",
            "+1",
            ".5",
        ] {
            assert!(matches!(parse(bad), Err(JsonError::Syntax { .. })), "{bad}");
        }
        assert_eq!(Document::parse(b"\"\xff\"", 64).unwrap_err(), JsonError::Utf8);
    }

    #[test]
    fn depth_is_bounded() {
        let nested = |levels: usize| format!("{}{}", "[".repeat(levels), "]".repeat(levels));
        assert!(parse(&nested(64)).is_ok());
        assert_eq!(parse(&nested(65)).unwrap_err(), JsonError::Depth { max: 64 });
        assert_eq!(parse(&nested(100_000)).unwrap_err(), JsonError::Depth { max: 64 });
    }
}
