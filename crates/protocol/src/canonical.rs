//! Values as canonical bytes (RFC 8785).

use std::borrow::Cow;
use std::cmp::Ordering;

use driftline_model::{Object, ObjectBuilder, key_cmp};
use thiserror::Error;

use crate::json::{Document, JsonError, Node, Raw, StrForm, unescape};
use crate::write::{write_escaped, write_json_string};

/// The largest integer, either way from zero, that every peer holds exactly.
const INTEGER_MAX: u64 = 1 << 53;

/// A value that cannot be stored as it is.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{kind} at {pointer:?}")]
pub struct ValueError {
    /// What is wrong.
    pub kind: ValueErrorKind,
    /// Where, as a JSON Pointer (RFC 6901) from the value that was canonicalised.
    pub pointer: String,
}

/// What is wrong with a value.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum ValueErrorKind {
    /// An object names a member twice.
    #[error("duplicate key")]
    DuplicateKey,
    /// A string or a name holds U+0000.
    #[error("a string may not hold U+0000")]
    Nul,
    /// An integer beyond 2^53 either way, or a number beyond what a double holds.
    #[error("integers beyond 2^53 must be sent as strings")]
    NumberRange,
    /// Not an object where one is needed.
    #[error("must be an object")]
    NotAnObject,
}

impl ValueError {
    fn new(kind: ValueErrorKind) -> Self {
        Self { kind, pointer: String::new() }
    }

    fn under(mut self, segment: &str) -> Self {
        self.pointer.insert_str(0, &pointer_segment(segment));
        self
    }
}

/// Makes the segment of a JSON Pointer that a member's name in canonical escapes stands for, with its slash.
pub(crate) fn pointer_segment(name: &str) -> String {
    segment(&unescape(name))
}

/// Makes the segment of a JSON Pointer that a member's name stands for, with its slash.
pub(crate) fn segment(name: &str) -> String {
    format!("/{}", name.replace('~', "~0").replace('/', "~1"))
}

/// Appends the canonical text of a value.
///
/// # Errors
/// [`ValueError`] for duplicate keys, U+0000 and numbers out of range.
pub fn canonical_value(node: Node<'_>, out: &mut String) -> Result<(), ValueError> {
    match node.raw() {
        Raw::Null => out.push_str("null"),
        Raw::Bool(bool) => out.push_str(if bool { "true" } else { "false" }),
        Raw::Int(int) if int.unsigned_abs() <= INTEGER_MAX => out.push_str(itoa::Buffer::new().format(int)),
        Raw::Int(_) | Raw::Huge => return Err(ValueError::new(ValueErrorKind::NumberRange)),
        Raw::Float(float) => write_float(float, out)?,
        Raw::Str { start, end, form: StrForm::Plain } => {
            out.push('"');
            out.push_str(node.slice(start, end));
            out.push('"');
        }
        Raw::Str { form: StrForm::Nul | StrForm::LiteralNul, .. } => {
            return Err(ValueError::new(ValueErrorKind::Nul));
        }
        Raw::Str { .. } => write_json_string(out, &node.as_str().unwrap_or_default()),
        Raw::Array { .. } => {
            out.push('[');
            for (at, element) in node.elements().enumerate() {
                if at > 0 {
                    out.push(',');
                }
                canonical_value(element, out).map_err(|error| error.under(&at.to_string()))?;
            }
            out.push(']');
        }
        Raw::Object { .. } => {
            out.push('{');
            for (at, (key, value)) in sorted_members(node)?.into_iter().enumerate() {
                if at > 0 {
                    out.push(',');
                }
                out.push('"');
                out.push_str(&key);
                out.push_str("\":");
                canonical_value(value, out).map_err(|error| error.under(&key))?;
            }
            out.push('}');
        }
    }
    Ok(())
}

/// Makes the canonical object of a value.
///
/// # Errors
/// As [`canonical_value`], and when the value is not an object.
pub fn canonical_object(node: Node<'_>) -> Result<Object, ValueError> {
    if !node.is_object() {
        return Err(ValueError::new(ValueErrorKind::NotAnObject));
    }
    let members = sorted_members(node)?;
    let mut built = ObjectBuilder::with_capacity(node.weight(), members.len());
    for (key, value) in members {
        built.push_with(&key, |out| canonical_value(value, out)).map_err(|error| error.under(&key))?;
    }
    Ok(built.finish())
}

/// Parses and canonicalises a JSON text that is an object.
///
/// # Errors
/// [`JsonError`] as the first, [`ValueError`] as the second layer.
pub fn object_of_text(text: &str, depth: usize) -> Result<Result<Object, ValueError>, JsonError> {
    let document = Document::parse(text.as_bytes(), depth)?;
    Ok(canonical_object(document.root()))
}

/// Writes a number as ECMAScript does (RFC 8785 §3.2.2.3).
fn write_float(float: f64, out: &mut String) -> Result<(), ValueError> {
    let magnitude = float.abs();
    // From 2^53 to 10^21 the canonical form has the look of an integer, which every peer must hold exactly.
    let as_integer = magnitude > 9_007_199_254_740_992.0 && magnitude < 1e21;
    if !float.is_finite() || as_integer {
        return Err(ValueError::new(ValueErrorKind::NumberRange));
    }
    out.push_str(ryu_js::Buffer::new().format_finite(float));
    Ok(())
}

type Members<'d> = Vec<(Cow<'d, str>, Node<'d>)>;

/// Collects the members in canonical order; names are in canonical escapes.
fn sorted_members(node: Node<'_>) -> Result<Members<'_>, ValueError> {
    let mut members: Members<'_> = Vec::with_capacity(12);
    let mut sorted = true;
    for (key, value) in node.members() {
        let name = match key.raw() {
            Raw::Str { start, end, form: StrForm::Plain } => Cow::Borrowed(key.slice(start, end)),
            Raw::Str { form: StrForm::Nul | StrForm::LiteralNul, .. } => {
                return Err(ValueError::new(ValueErrorKind::Nul));
            }
            _ => {
                let mut name = String::new();
                write_escaped(&mut name, &key.as_str().unwrap_or_default());
                Cow::Owned(name)
            }
        };
        sorted &= members.last().is_none_or(|(last, _)| key_cmp(last, &name) == Ordering::Less);
        members.push((name, value));
    }
    if !sorted {
        members.sort_by(|(a, _), (b, _)| key_cmp(a, b));
        if let Some(twice) = members.windows(2).find(|pair| pair[0].0 == pair[1].0) {
            return Err(ValueError::new(ValueErrorKind::DuplicateKey).under(&twice[0].0));
        }
    }
    Ok(members)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn canonical(text: &str) -> Result<String, ValueErrorKind> {
        let document = Document::parse(text.as_bytes(), 64).expect("JSON");
        let mut out = String::new();
        canonical_value(document.root(), &mut out).map_err(|error| error.kind)?;
        Ok(out)
    }

    #[test]
    fn values_take_the_canonical_form() {
        let table = [
            (r#"{"b":1,"a":2}"#, r#"{"a":2,"b":1}"#),
            (
                r#"[1.0,-0,-0.0,1e2,0.1,1E-7,1e21,1e300,123.456e3]"#,
                "[1,0,0,100,0.1,1e-7,1e+21,1e+300,123456]",
            ),
            ("9007199254740992", "9007199254740992"),
            ("-9007199254740992", "-9007199254740992"),
            (r#""\u0041\/\u00e9\u000a\u001F""#, "\"A/é\\n\\u001f\""),
            (
                r#"{"\u20ac":1,"\r":2,"1":3,"\u00f6":4,"\ud83d\ude00":5,"\ufb33":6}"#,
                "{\"\\r\":2,\"1\":3,\"ö\":4,\"€\":1,\"😀\":5,\"\u{fb33}\":6}",
            ),
        ];
        for (text, wanted) in table {
            assert_eq!(canonical(text).as_deref(), Ok(wanted), "{text}");
            assert_eq!(canonical(wanted).as_deref(), Ok(wanted), "canonical text is its own canonical form");
        }
    }

    #[test]
    fn what_cannot_be_kept_exactly_is_refused() {
        let table = [
            ("9007199254740993", ValueErrorKind::NumberRange),
            ("-9007199254740993", ValueErrorKind::NumberRange),
            ("-9223372036854775808", ValueErrorKind::NumberRange),
            ("18446744073709551616", ValueErrorKind::NumberRange),
            ("1e16", ValueErrorKind::NumberRange),
            ("1e400", ValueErrorKind::NumberRange),
            (r#"{"a":1,"b":{},"a":2}"#, ValueErrorKind::DuplicateKey),
            (r#"{"a":1,"\u0061":2}"#, ValueErrorKind::DuplicateKey),
            (r#"["x\u0000"]"#, ValueErrorKind::Nul),
            (r#"{"\u0000":1}"#, ValueErrorKind::Nul),
        ];
        for (text, wanted) in table {
            assert_eq!(canonical(text), Err(wanted), "{text}");
        }
    }

    #[test]
    fn the_least_integer_of_messagepack_is_out_of_range() {
        // JSON has no literal that becomes it: there the digits are read before the sign.
        let packed = [0xd3, 0x80, 0, 0, 0, 0, 0, 0, 0];
        let document = Document::parse_msgpack(&packed, 1).expect("MessagePack");
        let error = canonical_value(document.root(), &mut String::new()).expect_err("beyond 2^53");
        assert_eq!(error.kind, ValueErrorKind::NumberRange);
    }

    #[test]
    fn errors_point_at_the_value() {
        let document = Document::parse(br#"{"a/b":[0,{"c\n":"\u0000"}]}"#, 64).expect("JSON");
        let error = canonical_object(document.root()).expect_err("U+0000");
        assert_eq!(error.pointer, "/a~1b/1/c\n");
    }
}
