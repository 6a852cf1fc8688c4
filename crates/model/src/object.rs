//! Canonical JSON objects as text with an index of their members.

use std::cmp::Ordering;
use std::fmt;

use thiserror::Error;

/// A JSON object in canonical form (RFC 8785), with its members found.
///
/// Member names and values are slices of the canonical text: a name as it stands between its quotes, a
/// value as it stands. Equality is byte equality. Members are in canonical order.
#[derive(Clone, PartialEq, Eq)]
pub struct Object {
    text: Box<str>,
    members: Vec<Member>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
struct Member {
    key: (u32, u32),
    value: (u32, u32),
}

impl Object {
    /// Makes the object without members.
    #[must_use]
    pub fn empty() -> Self {
        Self { text: Box::from("{}"), members: Vec::new() }
    }

    /// Takes over canonical text, as a store or [`ObjectBuilder`] gave it, and finds the members.
    ///
    /// The shape of the object is checked, the canonical form of its values is not: text from outside
    /// must pass the canonicaliser of the protocol crate first.
    ///
    /// # Errors
    /// [`NotCanonical`] when the text is not an object or its members are out of order.
    pub fn from_canonical(text: String) -> Result<Self, NotCanonical> {
        let members = split(text.as_bytes())?;
        let object = Self { text: text.into_boxed_str(), members };
        let sorted = object
            .members
            .windows(2)
            .all(|pair| key_cmp(object.slice(pair[0].key), object.slice(pair[1].key)) == Ordering::Less);
        if sorted { Ok(object) } else { Err(NotCanonical) }
    }

    /// Returns the canonical text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// Returns how many members there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.members.len()
    }

    /// Tells whether there are no members.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.members.is_empty()
    }

    /// Goes through names and values in canonical order.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = (&str, &str)> {
        self.members.iter().map(|member| (self.slice(member.key), self.slice(member.value)))
    }

    /// Returns the value of a member, by its name in canonical form.
    #[must_use]
    pub fn get(&self, key: &str) -> Option<&str> {
        let found = self.members.binary_search_by(|member| key_cmp(self.slice(member.key), key)).ok()?;
        Some(self.slice(self.members[found].value))
    }

    fn slice(&self, (start, end): (u32, u32)) -> &str {
        &self.text[start as usize..end as usize]
    }
}

impl fmt::Debug for Object {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl Default for Object {
    fn default() -> Self {
        Self::empty()
    }
}

/// Builds an [`Object`] of members that come in canonical order.
#[derive(Debug, Default)]
pub struct ObjectBuilder {
    text: String,
    members: Vec<(u32, u32, u32, u32)>,
}

impl ObjectBuilder {
    /// Starts an object and reserves room for its text.
    #[must_use]
    pub fn with_capacity(bytes: usize, members: usize) -> Self {
        let mut text = String::with_capacity(bytes.max(2));
        text.push('{');
        Self { text, members: Vec::with_capacity(members) }
    }

    /// Adds a member; name and value are canonical, and the name comes after the one before it.
    pub fn push(&mut self, key: &str, value: &str) {
        let written: Result<(), std::convert::Infallible> = self.push_with(key, |text| {
            text.push_str(value);
            Ok(())
        });
        written.unwrap_or_else(|never| match never {});
    }

    /// Adds a member whose value the closure appends to the text.
    ///
    /// # Errors
    /// What the closure returned; the builder must not be used further then.
    pub fn push_with<E>(
        &mut self,
        key: &str,
        value: impl FnOnce(&mut String) -> Result<(), E>,
    ) -> Result<(), E> {
        if self.text.is_empty() {
            self.text.push('{');
        }
        if !self.members.is_empty() {
            self.text.push(',');
        }
        self.text.push('"');
        let key_start = self.here();
        self.text.push_str(key);
        let key_end = self.here();
        self.text.push_str("\":");
        let value_start = self.here();
        value(&mut self.text)?;
        self.members.push((key_start, key_end, value_start, self.here()));
        Ok(())
    }

    /// Ends the object.
    #[must_use]
    pub fn finish(mut self) -> Object {
        if self.text.is_empty() {
            self.text.push('{');
        }
        self.text.push('}');
        let members =
            self.members.into_iter().map(|(a, b, c, d)| Member { key: (a, b), value: (c, d) }).collect();
        Object { text: self.text.into_boxed_str(), members }
    }

    fn here(&self) -> u32 {
        u32::try_from(self.text.len()).expect("a message is far below 4 GiB")
    }
}

/// The text is not a canonical JSON object.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("not a canonical JSON object")]
pub struct NotCanonical;

/// Orders member names as RFC 8785 §3.2.3 does: by the UTF-16 code units of the unescaped names.
///
/// Both names are in canonical form, as they stand between their quotes.
#[must_use]
pub fn key_cmp(a: &str, b: &str) -> Ordering {
    // Up to the first difference both read the same. Where no escape stands before it and it is between two ASCII
    // characters that stand for themselves, it decides.
    for (x, y) in a.bytes().zip(b.bytes()) {
        if x == b'\\' || y == b'\\' {
            return utf16(a).cmp(utf16(b));
        }
        if x != y {
            if x.is_ascii() && y.is_ascii() {
                return x.cmp(&y);
            }
            return utf16(a).cmp(utf16(b));
        }
    }
    // One is the beginning of the other.
    a.len().cmp(&b.len())
}

/// Splits a canonical JSON array into its elements; nothing when the text is no array.
#[must_use]
pub fn elements(array: &str) -> Option<Vec<&str>> {
    let text = array.as_bytes();
    if text.first() != Some(&b'[') || text.last() != Some(&b']') {
        return None;
    }
    let mut found = Vec::new();
    let mut at = 1;
    while at + 1 < text.len() {
        let end = value_end(text, at).ok()?;
        found.push(&array[at..end]);
        match text.get(end) {
            Some(b',') => at = end + 1,
            Some(b']') if end + 1 == text.len() => break,
            _ => return None,
        }
    }
    Some(found)
}

fn utf16(text: &str) -> impl Iterator<Item = u16> {
    let mut chars = text.chars();
    std::iter::from_fn(move || {
        let char = chars.next()?;
        if char != '\\' {
            return Some(char);
        }
        Some(match chars.next()? {
            'b' => '\u{8}',
            'f' => '\u{c}',
            'n' => '\n',
            'r' => '\r',
            't' => '\t',
            'u' => {
                let code = (0..4).try_fold(0, |code, _| Some(code * 16 + chars.next()?.to_digit(16)?))?;
                char::from_u32(code)?
            }
            other => other,
        })
    })
    .flat_map(|char| {
        let mut units = [0; 2];
        let len = char.encode_utf16(&mut units).len();
        units.into_iter().take(len)
    })
}

/// Finds the members of an object's text in one pass.
fn split(text: &[u8]) -> Result<Vec<Member>, NotCanonical> {
    if text.first() != Some(&b'{') || text.last() != Some(&b'}') || u32::try_from(text.len()).is_err() {
        return Err(NotCanonical);
    }
    if text.len() == 2 {
        return Ok(Vec::new());
    }
    let mut members = Vec::with_capacity(text.iter().filter(|&&b| b == b':').count().min(64));
    let mut at = 1;
    loop {
        let key_end = string_end(text, at)?;
        if text.get(key_end) != Some(&b':') {
            return Err(NotCanonical);
        }
        let value_end = value_end(text, key_end + 1)?;
        members.push(Member { key: span(at + 1, key_end - 1), value: span(key_end + 1, value_end) });
        match text.get(value_end) {
            Some(b',') => at = value_end + 1,
            Some(b'}') if value_end + 1 == text.len() => return Ok(members),
            _ => return Err(NotCanonical),
        }
    }
}

#[expect(clippy::cast_possible_truncation, reason = "split refuses texts of 4 GiB and more")]
fn span(start: usize, end: usize) -> (u32, u32) {
    (start as u32, end as u32)
}

/// Returns the place after the string that starts at `at`.
fn string_end(text: &[u8], at: usize) -> Result<usize, NotCanonical> {
    if text.get(at) != Some(&b'"') {
        return Err(NotCanonical);
    }
    let mut at = at + 1;
    loop {
        match text.get(at) {
            Some(b'"') => return Ok(at + 1),
            Some(b'\\') => at += 2,
            Some(_) => at += 1,
            None => return Err(NotCanonical),
        }
    }
}

/// Returns the place after the value that starts at `at`.
fn value_end(text: &[u8], at: usize) -> Result<usize, NotCanonical> {
    match text.get(at) {
        Some(b'"') => string_end(text, at),
        Some(b'{' | b'[') => {
            let (mut depth, mut at) = (0_usize, at);
            loop {
                match text.get(at) {
                    Some(b'"') => {
                        at = string_end(text, at)?;
                        continue;
                    }
                    Some(b'{' | b'[') => depth += 1,
                    Some(b'}' | b']') => depth -= 1,
                    Some(_) => {}
                    None => return Err(NotCanonical),
                }
                at += 1;
                if depth == 0 {
                    return Ok(at);
                }
            }
        }
        Some(_) => {
            let rest = &text[at..];
            let len = rest.iter().position(|b| matches!(b, b',' | b'}' | b']')).ok_or(NotCanonical)?;
            if len == 0 { Err(NotCanonical) } else { Ok(at + len) }
        }
        None => Err(NotCanonical),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn members_are_found_in_canonical_text() {
        let object = Object::from_canonical(r#"{"a":1,"b":{"c":[1,"}"]},"d":"x\"y"}"#.to_owned()).unwrap();
        let members: Vec<_> = object.iter().collect();
        assert_eq!(members, [("a", "1"), ("b", r#"{"c":[1,"}"]}"#), ("d", r#""x\"y""#)]);
        assert_eq!(object.get("b"), Some(r#"{"c":[1,"}"]}"#));
        assert_eq!(object.get("nope"), None);
    }

    #[test]
    fn a_builder_gives_what_a_parse_gives() {
        let mut builder = ObjectBuilder::with_capacity(32, 2);
        builder.push("a", "1");
        builder.push("b", "null");
        let built = builder.finish();
        assert_eq!(built, Object::from_canonical(r#"{"a":1,"b":null}"#.to_owned()).unwrap());
        assert_eq!(ObjectBuilder::default().finish(), Object::empty());
    }

    #[test]
    fn other_text_is_refused() {
        for bad in [
            "",
            "[]",
            "{",
            r#"{"a"}"#,
            r#"{"a":}"#,
            r#"{"b":1,"a":2}"#,
            r#"{"a":1,"a":1}"#,
            r#"{"a":1}x"#,
            r#"{"a":"}"#,
        ] {
            assert_eq!(Object::from_canonical(bad.to_owned()), Err(NotCanonical), "{bad}");
        }
    }

    #[test]
    fn an_array_is_split_into_its_elements() {
        let table: [(&str, &[&str]); 4] = [
            ("[]", &[]),
            ("[1]", &["1"]),
            (r#"[[1,"]"],{"a":[2]},"x,y",null]"#, &[r#"[1,"]"]"#, r#"{"a":[2]}"#, r#""x,y""#, "null"]),
            ("[true,-2.5]", &["true", "-2.5"]),
        ];
        for (text, wanted) in table {
            assert_eq!(elements(text).as_deref(), Some(wanted), "{text}");
        }
        for bad in ["", "[", "{}", "1", "[1", "[1,]x"] {
            assert_eq!(elements(bad), None, "{bad}");
        }
    }

    #[test]
    fn names_order_by_utf16_units() {
        // U+FB33 comes after U+1F600 in UTF-16 (surrogates start at D800) but before it in UTF-8.
        assert_eq!(key_cmp("\u{fb33}", "\u{1f600}"), Ordering::Greater);
        assert_eq!(key_cmp("\\n", "1"), Ordering::Less);
        assert_eq!(key_cmp("\\\"", "a"), Ordering::Less);
    }
}
