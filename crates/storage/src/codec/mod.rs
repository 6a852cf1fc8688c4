//! Marks, names of changes and codes as they are stored.

mod receipts;
mod states;

use driftline_conflict::{Mark, Winner};
use driftline_engine::{KnownMore, StoreError};
use driftline_model::{ConflictId, DeviceNo, Hlc, Object, OpId, Seq, elements};
use driftline_protocol::{Document, ItemCode, write_json_string};

pub(crate) use receipts::{decode_answer, decode_remembered, encode_answer, encode_bytes, encode_receipt};
pub(crate) use states::{decode_states, encode_states};

pub(crate) fn corrupt(what: &str) -> StoreError {
    StoreError::Corrupt(what.to_owned())
}

/// A mark: `fv`, the 8 bytes of the clock, device and `n`; numbers with seven bits a byte, low bits first.
pub(crate) fn encode_mark(mark: &Mark, out: &mut Vec<u8>) {
    number(mark.fv.number(), out);
    out.extend_from_slice(&mark.hlc.bits().to_be_bytes());
    number(u64::from(mark.device.number()), out);
    number(mark.n, out);
}

pub(crate) fn mark_bytes(mark: &Mark) -> Vec<u8> {
    let mut out = Vec::with_capacity(20);
    encode_mark(mark, &mut out);
    out
}

pub(crate) fn decode_mark(bytes: &[u8]) -> Result<Mark, StoreError> {
    let mut reader = Reader(bytes);
    reader.mark()
}

/// Marks of single fields: the distinct marks, then each name with the place of its mark.
pub(crate) fn encode_marks(marks: &[(Box<str>, Mark)]) -> Option<Vec<u8>> {
    if marks.is_empty() {
        return None;
    }
    let mut distinct: Vec<Mark> = Vec::new();
    let mut names = Vec::with_capacity(marks.len() * 12);
    number(marks.len() as u64, &mut names);
    for (name, mark) in marks {
        let at = distinct.iter().position(|known| known == mark).unwrap_or_else(|| {
            distinct.push(*mark);
            distinct.len() - 1
        });
        text(name, &mut names);
        number(at as u64, &mut names);
    }
    let mut out = Vec::with_capacity(names.len() + distinct.len() * 16 + 2);
    number(distinct.len() as u64, &mut out);
    for mark in &distinct {
        encode_mark(mark, &mut out);
    }
    out.extend_from_slice(&names);
    Some(out)
}

pub(crate) fn decode_marks(bytes: Option<&[u8]>) -> Result<Vec<(Box<str>, Mark)>, StoreError> {
    let Some(bytes) = bytes else { return Ok(Vec::new()) };
    let mut reader = Reader(bytes);
    let distinct = reader.number()?;
    let distinct = (0..distinct).map(|_| reader.mark()).collect::<Result<Vec<_>, _>>()?;
    let fields = reader.number()?;
    (0..fields)
        .map(|_| {
            let name = reader.text()?;
            Ok((name, *distinct.get(reader.size()?).ok_or_else(|| corrupt("marks"))?))
        })
        .collect()
}

/// A delete's mark behind a byte that tells whether it is in force.
pub(crate) fn encode_del(del: Option<&Mark>, deleted: bool) -> Option<Vec<u8>> {
    let del = del?;
    let mut out = Vec::with_capacity(20);
    out.push(u8::from(deleted));
    encode_mark(del, &mut out);
    Some(out)
}

pub(crate) fn decode_del(bytes: Option<&[u8]>) -> Result<(Option<Mark>, bool), StoreError> {
    match bytes {
        None => Ok((None, false)),
        Some([deleted, mark @ ..]) => Ok((Some(decode_mark(mark)?), *deleted == 1)),
        Some([]) => Err(corrupt("del")),
    }
}

/// A name of a change: UUIDs take 16 bytes, other texts their own.
pub(crate) fn encode_op(op_id: &OpId) -> Vec<u8> {
    let text = op_id.as_str();
    let mut out = Vec::with_capacity(17);
    if let Some(uuid) = uuid_bytes(text) {
        out.push(b'u');
        out.extend_from_slice(&uuid);
    } else {
        out.push(b't');
        out.extend_from_slice(text.as_bytes());
    }
    out
}

pub(crate) fn decode_op(bytes: &[u8]) -> Result<OpId, StoreError> {
    let text = match bytes {
        [b'u', uuid @ ..] if uuid.len() == 16 => uuid_text(uuid),
        [b't', text @ ..] => std::str::from_utf8(text).map_err(|_| corrupt("op_id"))?.to_owned(),
        _ => return Err(corrupt("op_id")),
    };
    OpId::new(&text).map_err(|_| corrupt("op_id"))
}

/// The bytes of a UUID in its hyphenated lower-case form; other forms stay texts, so that each comes back as it was.
fn uuid_bytes(text: &str) -> Option<[u8; 16]> {
    let text = text.as_bytes();
    if text.len() != 36 {
        return None;
    }
    let mut out = [0_u8; 16];
    let mut digits = 0;
    for (at, byte) in text.iter().enumerate() {
        let digit = match byte {
            b'-' if matches!(at, 8 | 13 | 18 | 23) => continue,
            _ if matches!(at, 8 | 13 | 18 | 23) => return None,
            b'0'..=b'9' => byte - b'0',
            b'a'..=b'f' => byte - b'a' + 10,
            _ => return None,
        };
        out[digits / 2] = out[digits / 2] << 4 | digit;
        digits += 1;
    }
    Some(out)
}

fn uuid_text(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    let mut out = String::with_capacity(36);
    for (at, byte) in bytes.iter().enumerate() {
        if matches!(at, 4 | 6 | 8 | 10) {
            out.push('-');
        }
        write!(out, "{byte:02x}").expect("writing to a string does not fail");
    }
    out
}

/// Names of fields, which are canonical JSON text already, as a JSON array.
pub(crate) fn join_names(names: &[Box<str>]) -> String {
    let mut out = String::from("[");
    for name in names {
        if out.len() > 1 {
            out.push(',');
        }
        out.push('"');
        out.push_str(name);
        out.push('"');
    }
    out.push(']');
    out
}

pub(crate) fn split_names(array: &str) -> Result<Vec<Box<str>>, StoreError> {
    let names = elements(array).ok_or_else(|| corrupt("names"))?;
    let bare = |name: &str| Some(Box::from(name.strip_prefix('"')?.strip_suffix('"')?));
    names.into_iter().map(|name| bare(name).ok_or_else(|| corrupt("names"))).collect()
}

const WINNERS: [(Winner, &str); 4] = [
    (Winner::Client, "client"),
    (Winner::Server, "server"),
    (Winner::Merged, "merged"),
    (Winner::Held, "held"),
];

/// The rarer half of an answer: a canonical object whose winners stand as names and winners by turns.
pub(crate) fn encode_more(more: &KnownMore) -> String {
    let mut out = String::from("{");
    if let Some(conflict_id) = &more.conflict_id {
        out.push_str("\"conflict_id\":");
        write_json_string(&mut out, conflict_id.as_str());
        out.push(',');
    }
    let winners = more.winners.iter().flat_map(|(name, winner)| {
        let known = WINNERS.iter().find(|(known, _)| known == winner);
        [name.clone(), known.map_or("", |(_, text)| text).into()]
    });
    out.push_str("\"winners\":");
    out.push_str(&join_names(&winners.collect::<Vec<_>>()));
    out.push('}');
    out
}

pub(crate) fn decode_more(text: &str) -> Result<KnownMore, StoreError> {
    let object = Object::from_canonical(text.to_owned()).map_err(|_| corrupt("more"))?;
    let conflict_id = object.get("conflict_id").map(|text| {
        let document = Document::parse(text.as_bytes(), 1).ok()?;
        ConflictId::new(&document.root().as_str()?).ok()
    });
    let conflict_id = match conflict_id {
        None => None,
        Some(found) => Some(found.ok_or_else(|| corrupt("conflict_id"))?),
    };
    let texts = split_names(object.get("winners").ok_or_else(|| corrupt("winners"))?)?;
    let winner = |pair: &[Box<str>]| {
        let [name, text] = pair else { return None };
        let known = WINNERS.iter().find(|(_, known)| **text == **known)?;
        Some((name.clone(), known.0))
    };
    let winners = texts.chunks(2).map(|pair| winner(pair).ok_or_else(|| corrupt("winners")));
    Ok(KnownMore { winners: winners.collect::<Result<_, _>>()?, conflict_id })
}

/// Stored numbers of item codes. They never change.
const CODES: [(ItemCode, i32); 19] = [
    (ItemCode::Applied, 1),
    (ItemCode::Merged, 2),
    (ItemCode::Noop, 3),
    (ItemCode::Superseded, 4),
    (ItemCode::ConflictPending, 5),
    (ItemCode::Invalid, 10),
    (ItemCode::Forbidden, 11),
    (ItemCode::Gone, 12),
    (ItemCode::TooLarge, 13),
    (ItemCode::UnknownKind, 14),
    (ItemCode::SchemaTooOld, 15),
    (ItemCode::DependencyFailed, 16),
    (ItemCode::DeviceIdReused, 17),
    (ItemCode::TooOld, 18),
    (ItemCode::RetryLater, 30),
    (ItemCode::Busy, 31),
    (ItemCode::RateLimited, 32),
    (ItemCode::ClientAhead, 40),
    (ItemCode::EpochChanged, 41),
];

pub(crate) fn encode_code(code: ItemCode) -> i32 {
    CODES.iter().find(|(known, _)| *known == code).map_or(0, |(_, number)| *number)
}

pub(crate) fn decode_code(number: i32) -> Result<ItemCode, StoreError> {
    let found = CODES.iter().find(|(_, known)| *known == number).map(|(code, _)| *code);
    found.ok_or_else(|| corrupt("code"))
}

pub(crate) fn number(mut number: u64, out: &mut Vec<u8>) {
    while number >= 0x80 {
        out.push((number & 0x7f) as u8 | 0x80);
        number >>= 7;
    }
    out.push((number & 0x7f) as u8);
}

/// A text behind its length.
pub(crate) fn text(text: &str, out: &mut Vec<u8>) {
    number(text.len() as u64, out);
    out.extend_from_slice(text.as_bytes());
}

/// Reads what the functions above wrote; whatever else it meets is corrupt.
pub(crate) struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    pub(crate) const fn new(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    /// Tells whether everything was read.
    pub(crate) const fn is_done(&self) -> bool {
        self.0.is_empty()
    }

    fn bytes(&mut self, count: usize) -> Result<&'a [u8], StoreError> {
        let (taken, rest) = self.0.split_at_checked(count).ok_or_else(|| corrupt("mark"))?;
        self.0 = rest;
        Ok(taken)
    }

    pub(crate) fn number(&mut self) -> Result<u64, StoreError> {
        let mut number = 0_u64;
        for shift in (0..64).step_by(7) {
            let byte = self.bytes(1)?[0];
            number |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Ok(number);
            }
        }
        Err(corrupt("mark"))
    }

    /// Reads a number that is a length or a place.
    pub(crate) fn size(&mut self) -> Result<usize, StoreError> {
        usize::try_from(self.number()?).map_err(|_| corrupt("length"))
    }

    /// Reads a text behind its length.
    pub(crate) fn text(&mut self) -> Result<Box<str>, StoreError> {
        let len = self.size()?;
        Ok(std::str::from_utf8(self.bytes(len)?).map_err(|_| corrupt("text"))?.into())
    }

    pub(crate) fn mark(&mut self) -> Result<Mark, StoreError> {
        let fv = Seq::new(self.number()?);
        let hlc = self.bytes(8)?.try_into().map_err(|_| corrupt("mark"))?;
        let device = u32::try_from(self.number()?).map_err(|_| corrupt("mark"))?;
        let n = self.number()?;
        Ok(Mark { fv, hlc: Hlc::from_bits(u64::from_be_bytes(hlc)), device: DeviceNo::new(device), n })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mark(n: u64) -> Mark {
        Mark { fv: Seq::new(n * 1000), hlc: Hlc::new(1_763_692_496_007, 3), device: DeviceNo::new(70_000), n }
    }

    #[test]
    fn marks_round_trip() {
        let marks =
            vec![(Box::from("a"), mark(1)), (Box::from("é\\n"), mark(1 << 40)), (Box::from("z"), mark(1))];
        let bytes = encode_marks(&marks).expect("there are marks");
        assert_eq!(decode_marks(Some(&bytes)), Ok(marks));
        assert_eq!(encode_marks(&[]), None);
        for deleted in [true, false] {
            assert_eq!(
                decode_del(encode_del(Some(&mark(2)), deleted).as_deref()),
                Ok((Some(mark(2)), deleted))
            );
        }
        for cut in 0..bytes.len() {
            assert!(decode_marks(Some(&bytes[..cut])).is_err(), "{cut}");
        }
    }

    #[test]
    fn answers_round_trip() {
        let table = [
            KnownMore::default(),
            KnownMore {
                winners: vec![("z".into(), Winner::Held), ("a".into(), Winner::Client)],
                conflict_id: None,
            },
            KnownMore {
                winners: vec![("".into(), Winner::Server), ("\\\",\\\"é".into(), Winner::Merged)],
                conflict_id: ConflictId::new("c\"1").ok(),
            },
        ];
        for more in table {
            assert_eq!(decode_more(&encode_more(&more)), Ok(more.clone()), "{more:?}");
        }
        for text in
            ["", "{}", "[]", r#"{"winners":["a"]}"#, r#"{"winners":["a","nobody"]}"#, r#"{"winners":[1,2]}"#]
        {
            assert!(decode_more(text).is_err(), "{text}");
        }
        assert!(decode_more(r#"{"conflict_id":1,"winners":[]}"#).is_err());
    }

    #[test]
    fn names_of_changes_round_trip() {
        for text in [
            "0192f3a1-b2c3-7d4e-8f90-123456789abc",
            "0192F3A1-B2C3-7D4E-8F90-123456789ABC",
            "op-1",
            "fifteen-letters",
        ] {
            let op_id = OpId::new(text).expect("a name");
            assert_eq!(decode_op(&encode_op(&op_id)), Ok(op_id), "{text}");
        }
    }

    #[test]
    fn every_code_has_a_number() {
        for code in ItemCode::ALL {
            assert_eq!(decode_code(encode_code(*code)), Ok(*code));
        }
    }
}
