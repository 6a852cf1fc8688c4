//! Answers as they are remembered under the name of a request.
//!
//! The first byte tells what it is, the second the version of its form: an answer to a batch, an answer that somebody
//! keeps as it is, or bytes. Of a batch, each result stands as its code, flags that tell what follows, and its version
//! as the difference to the one before: three bytes for a plain change. The strategy that decided is not kept, only that
//! one did; what a reviewer's decision came to stands in the conflict. An answer to a batch that published events has a
//! version of its own, in which they stand behind the results.

use driftline_engine::{Answered, Published, Receipt, Remembered, StoreError, SubmissionResult};
use driftline_idempotency::{ANSWER_BYTES_MAX, Answer, Body};
use driftline_model::{ConflictId, Epoch, Hlc, Object, Seq};
use driftline_protocol::{FieldError, RecordView};

use super::{Reader, WINNERS, corrupt, decode_code, encode_code, number, text};

const RECEIPT: [u8; 2] = [b'r', 1];
const RECEIPT_WITH_EVENTS: [u8; 2] = [b'r', 2];
const ANSWER: [u8; 2] = [b'a', 1];
const BYTES: [u8; 2] = [b'b', 1];

/// The strategy of a result that was decided by one, when it is answered again.
const REPLAYED: &str = "replayed";

const VERSION: u64 = 1;
const DUPLICATE: u64 = 1 << 1;
const RECORD: u64 = 1 << 2;
const WINNERS_FOLLOW: u64 = 1 << 3;
const STRATEGY: u64 = 1 << 4;
const ERRORS: u64 = 1 << 5;
const CONFLICT: u64 = 1 << 6;
const CLAMPED: u64 = 1 << 7;
const COLLAPSED: u64 = 1 << 8;
const FLAGS_END: u64 = 1 << 9;

const KEPT: u64 = 1;
const DUPLICATE_EVENT: u64 = 1 << 1;
const LATE: u64 = 1 << 2;
const EVENT_FLAGS_END: u64 = 1 << 3;

const WHOLE: u8 = 0;
const REFERENCE: u8 = 1;
const LOST: u8 = 2;

/// The answer to a batch; nothing when it is larger than what is kept.
pub(crate) fn encode_receipt(receipt: &Receipt) -> Option<Vec<u8>> {
    let mut out = Vec::with_capacity(40 + receipt.results.len() * 4);
    out.extend_from_slice(if receipt.events.is_empty() { &RECEIPT } else { &RECEIPT_WITH_EVENTS });
    number(receipt.seq.number(), &mut out);
    out.extend_from_slice(&receipt.hlc.bits().to_be_bytes());
    out.extend_from_slice(&receipt.epoch.number().to_be_bytes());
    number(receipt.results.len() as u64, &mut out);
    let mut before = receipt.seq.number();
    for result in &receipt.results {
        encode_result(result, &mut before, &mut out);
        if out.len() > ANSWER_BYTES_MAX {
            return None;
        }
    }
    encode_events(&receipt.events, &mut out);
    (out.len() <= ANSWER_BYTES_MAX).then_some(out)
}

/// What became of events: flags and, of one that the log keeps, the difference of its number to the one before.
fn encode_events(events: &[Published], out: &mut Vec<u8>) {
    if events.is_empty() {
        return;
    }
    number(events.len() as u64, out);
    let mut before = 0;
    for event in events {
        let flags = [(event.id.is_some(), KEPT), (event.duplicate, DUPLICATE_EVENT), (event.late, LATE)];
        number(flags.into_iter().filter(|(set, _)| *set).fold(0, |sum, (_, flag)| sum | flag), out);
        if let Some(id) = event.id {
            step(id, &mut before, out);
        }
    }
}

fn decode_events(reader: &mut Reader<'_>) -> Result<Vec<Published>, StoreError> {
    let count = reader.number()?;
    let mut before = 0;
    let events = (0..count).map(|_| {
        let flags = reader.number()?;
        if flags >= EVENT_FLAGS_END {
            return Err(corrupt("answer"));
        }
        let id = if flags & KEPT == 0 { None } else { Some(read_step(reader, &mut before)?) };
        Ok(Published { id, duplicate: flags & DUPLICATE_EVENT != 0, late: flags & LATE != 0 })
    });
    events.collect()
}

/// An answer that somebody keeps as it is.
pub(crate) fn encode_answer(answer: &Answer) -> Vec<u8> {
    let mut out = Vec::with_capacity(answer.bytes() + 16);
    out.extend_from_slice(&ANSWER);
    number(u64::from(answer.status()), &mut out);
    number(answer.headers().len() as u64, &mut out);
    for (name, value) in answer.headers() {
        text(name, &mut out);
        number(value.len() as u64, &mut out);
        out.extend_from_slice(value);
    }
    let (kind, body) = match answer.body() {
        Body::Whole(bytes) => (WHOLE, &bytes[..]),
        Body::Reference(reference) => (REFERENCE, reference.as_bytes()),
        Body::Lost => (LOST, &[][..]),
    };
    out.push(kind);
    out.extend_from_slice(body);
    out
}

/// Bytes that are answered as they are.
pub(crate) fn encode_bytes(bytes: &[u8]) -> Vec<u8> {
    [&BYTES, bytes].concat()
}

/// What is remembered of an answer; one of which nothing is kept leaves it to its items to answer again.
pub(crate) fn decode_remembered(bytes: Option<&[u8]>) -> Result<Remembered, StoreError> {
    match bytes {
        None => Ok(Remembered::Items),
        Some(bytes) if bytes.starts_with(&RECEIPT) => {
            Ok(Remembered::Receipt(Box::new(receipt(Reader(&bytes[RECEIPT.len()..]), false)?)))
        }
        Some(bytes) if bytes.starts_with(&RECEIPT_WITH_EVENTS) => {
            Ok(Remembered::Receipt(Box::new(receipt(Reader(&bytes[RECEIPT.len()..]), true)?)))
        }
        Some(bytes) if bytes.starts_with(&ANSWER) || bytes.starts_with(&BYTES) => {
            Ok(Remembered::Bytes(bytes[BYTES.len()..].into()))
        }
        Some(_) => Err(corrupt("answer")),
    }
}

/// An answer that somebody keeps as it is; nothing when it is one of another sort.
pub(crate) fn decode_answer(bytes: Option<&[u8]>) -> Result<Option<Answer>, StoreError> {
    match bytes {
        Some(bytes) if bytes.starts_with(&ANSWER) => answer(Reader(&bytes[ANSWER.len()..])).map(Some),
        other => decode_remembered(other).map(|_| None),
    }
}

fn encode_result(result: &SubmissionResult, before: &mut u64, out: &mut Vec<u8>) {
    number(u64::from(encode_code(result.code).unsigned_abs()), out);
    number(flags_of(result), out);
    if let Some(version) = result.version {
        step(version.number(), before, out);
    }
    if let Some(record) = &result.record {
        step(record.version, before, out);
        out.push(u8::from(record.deleted));
        text(record.fields.as_str(), out);
    }
    if !result.winners.is_empty() {
        number(result.winners.len() as u64, out);
        for (name, winner) in &result.winners {
            text(name, out);
            let place = WINNERS.iter().position(|(known, _)| known == winner);
            number(place.unwrap_or_default() as u64, out);
        }
    }
    if !result.errors.is_empty() {
        number(result.errors.len() as u64, out);
        for error in &result.errors {
            text(&error.code, out);
            text(&error.pointer, out);
            text(&error.message, out);
        }
    }
    if let Some(conflict_id) = &result.conflict_id {
        text(conflict_id.as_str(), out);
    }
}

fn flags_of(result: &SubmissionResult) -> u64 {
    let flags = [
        (result.version.is_some(), VERSION),
        (result.duplicate, DUPLICATE),
        (result.record.is_some(), RECORD),
        (!result.winners.is_empty(), WINNERS_FOLLOW),
        (result.strategy.is_some(), STRATEGY),
        (!result.errors.is_empty(), ERRORS),
        (result.conflict_id.is_some(), CONFLICT),
        (result.clamped, CLAMPED),
        (result.collapsed, COLLAPSED),
    ];
    flags.into_iter().filter(|(set, _)| *set).fold(0, |sum, (_, flag)| sum | flag)
}

/// Writes the difference to the version before, small for a small step in either direction.
fn step(version: u64, before: &mut u64, out: &mut Vec<u8>) {
    let step = version.wrapping_sub(*before).cast_signed();
    number((step << 1 ^ step >> 63).cast_unsigned(), out);
    *before = version;
}

fn read_step(reader: &mut Reader<'_>, before: &mut u64) -> Result<u64, StoreError> {
    let folded = reader.number()?;
    let step = (folded >> 1) ^ (folded & 1).wrapping_neg();
    *before = before.wrapping_add(step);
    Ok(*before)
}

fn receipt(mut reader: Reader<'_>, with_events: bool) -> Result<Receipt, StoreError> {
    let seq = reader.number()?;
    let hlc = reader.bytes(8)?.try_into().map_err(|_| corrupt("hlc"))?;
    let epoch = reader.bytes(4)?.try_into().map_err(|_| corrupt("epoch"))?;
    let count = reader.number()?;
    let mut before = seq;
    let results = (0..count).map(|_| result(&mut reader, &mut before)).collect::<Result<_, _>>()?;
    let events = if with_events { decode_events(&mut reader)? } else { Vec::new() };
    if !reader.is_done() {
        return Err(corrupt("answer"));
    }
    Ok(Receipt {
        results,
        events,
        seq: Seq::new(seq),
        hlc: Hlc::from_bits(u64::from_be_bytes(hlc)),
        epoch: Epoch::new(u32::from_be_bytes(epoch)),
        answered: Answered::Applied,
    })
}

fn result(reader: &mut Reader<'_>, before: &mut u64) -> Result<SubmissionResult, StoreError> {
    let code = i32::try_from(reader.number()?).map_err(|_| corrupt("code"))?;
    let mut result = SubmissionResult::of(decode_code(code)?);
    let flags = reader.number()?;
    if flags >= FLAGS_END {
        return Err(corrupt("answer"));
    }
    let has = |flag| flags & flag != 0;
    (result.duplicate, result.clamped, result.collapsed) = (has(DUPLICATE), has(CLAMPED), has(COLLAPSED));
    result.strategy = has(STRATEGY).then_some(REPLAYED);
    if has(VERSION) {
        result.version = Some(Seq::new(read_step(reader, before)?));
    }
    if has(RECORD) {
        result.record = Some(record(reader, before)?);
    }
    if has(WINNERS_FOLLOW) {
        let count = reader.number()?;
        let winners = (0..count).map(|_| {
            let name = reader.text()?;
            let winner = WINNERS.get(reader.size()?).ok_or_else(|| corrupt("winners"))?;
            Ok((name, winner.0))
        });
        result.winners = winners.collect::<Result<_, StoreError>>()?;
    }
    if has(ERRORS) {
        let count = reader.number()?;
        let errors = (0..count).map(|_| {
            let (code, pointer) = (reader.text()?.into(), reader.text()?.into());
            Ok(FieldError { code, pointer, message: reader.text()?.into() })
        });
        result.errors = errors.collect::<Result<_, StoreError>>()?;
    }
    if has(CONFLICT) {
        result.conflict_id = Some(ConflictId::new(&reader.text()?).map_err(|_| corrupt("conflict_id"))?);
    }
    Ok(result)
}

fn record(reader: &mut Reader<'_>, before: &mut u64) -> Result<RecordView, StoreError> {
    let version = read_step(reader, before)?;
    let deleted = match reader.bytes(1)? {
        [0] => false,
        [1] => true,
        _ => return Err(corrupt("answer")),
    };
    let fields = Object::from_canonical(reader.text()?.into()).map_err(|_| corrupt("fields"))?;
    Ok(RecordView { version, deleted, fields })
}

fn answer(mut reader: Reader<'_>) -> Result<Answer, StoreError> {
    let status = u16::try_from(reader.number()?).map_err(|_| corrupt("status"))?;
    let count = reader.number()?;
    let headers = (0..count).map(|_| {
        let name = reader.text()?;
        let len = reader.size()?;
        Ok((name, reader.bytes(len)?.into()))
    });
    let headers: Vec<_> = headers.collect::<Result<_, StoreError>>()?;
    let kind = reader.bytes(1)?[0];
    let body = reader.0;
    let answer = match kind {
        WHOLE => Answer::whole(status, headers, body),
        REFERENCE => {
            Answer::reference(status, headers, std::str::from_utf8(body).map_err(|_| corrupt("answer"))?)
        }
        LOST if body.is_empty() && headers.is_empty() => Ok(Answer::lost(status)),
        _ => return Err(corrupt("answer")),
    };
    answer.map_err(|_| corrupt("answer"))
}

#[cfg(test)]
mod tests {
    use driftline_protocol::ItemCode;
    use driftline_testkit::Rng;

    use super::*;

    fn small(rng: &mut Rng) -> String {
        (*rng.pick(&["", "a", "é\\n", "title", "/fields/title", "{\"x\":1}"])).to_owned()
    }

    fn some_result(rng: &mut Rng) -> SubmissionResult {
        let mut result = SubmissionResult::of(*rng.pick(ItemCode::ALL));
        let version = *rng.pick(&[0, 1, 7, 1 << 40, u64::MAX]);
        result.version = rng.percent(70).then_some(Seq::new(version));
        result.duplicate = rng.percent(20);
        result.clamped = rng.percent(20);
        result.collapsed = rng.percent(20);
        result.strategy = rng.percent(20).then_some("field_merge");
        let fields = *rng.pick(&["{}", r#"{"a":1}"#, r#"{"a":"é","b":[1,{"c":null}]}"#]);
        let fields = Object::from_canonical(fields.to_owned()).expect("canonical");
        result.record =
            rng.percent(20).then(|| RecordView { version: rng.next(), deleted: rng.percent(50), fields });
        result.winners = (0..rng.below(3)).map(|_| (small(rng).into(), rng.pick(&WINNERS).0)).collect();
        let error = |rng: &mut Rng| FieldError { code: small(rng), pointer: small(rng), message: small(rng) };
        result.errors = (0..rng.below(3)).map(|_| error(rng)).collect();
        result.conflict_id = rng.percent(20).then(|| ConflictId::new("00c0ffee-12").expect("a name"));
        result
    }

    fn some_event(rng: &mut Rng) -> Published {
        let id = rng.percent(70).then(|| *rng.pick(&[0, 1, 7, 1 << 40, u64::MAX]));
        Published { id, duplicate: rng.percent(20), late: rng.percent(20) }
    }

    fn some_receipt(rng: &mut Rng) -> Receipt {
        let events = if rng.percent(50) { rng.below(8) } else { 0 };
        Receipt {
            results: (0..rng.below(12)).map(|_| some_result(rng)).collect(),
            events: (0..events).map(|_| some_event(rng)).collect(),
            seq: Seq::new(rng.next() >> rng.below(64)),
            hlc: Hlc::from_bits(rng.next()),
            epoch: Epoch::new(rng.next().to_le_bytes()[0].into()),
            answered: Answered::Applied,
        }
    }

    fn some_answer(rng: &mut Rng) -> Answer {
        let header = |rng: &mut Rng| (small(rng).into(), small(rng).into_bytes().into());
        let headers: Vec<_> = (0..rng.below(3)).map(|_| header(rng)).collect();
        let answer = match rng.below(3) {
            0 => Answer::whole(200, headers, small(rng).as_bytes()),
            1 => Answer::reference(u16::MAX, headers, &small(rng)),
            _ => Ok(Answer::lost(404)),
        };
        answer.expect("a small one")
    }

    /// A receipt as it comes back.
    fn replayed(mut receipt: Receipt) -> Remembered {
        for result in &mut receipt.results {
            result.strategy = result.strategy.map(|_| REPLAYED);
        }
        Remembered::Receipt(Box::new(receipt))
    }

    #[test]
    fn answers_round_trip() {
        for seed in 0..2000 {
            println!("seed {seed}");
            let rng = &mut Rng::new(seed);
            let receipt = some_receipt(rng);
            let bytes = encode_receipt(&receipt).expect("it is small");
            assert_eq!(decode_remembered(Some(&bytes)), Ok(replayed(receipt)));
            assert_eq!(decode_answer(Some(&bytes)), Ok(None));
            let answer = some_answer(rng);
            let kept = encode_answer(&answer);
            assert_eq!(decode_answer(Some(&kept)), Ok(Some(answer)));
            assert!(matches!(decode_remembered(Some(&kept)), Ok(Remembered::Bytes(_))));
            for cut in 0..bytes.len() {
                assert!(decode_remembered(Some(&bytes[..cut])).is_err(), "{cut}");
            }
        }
        assert_eq!(decode_remembered(None), Ok(Remembered::Items));
        assert_eq!(decode_remembered(Some(&encode_bytes(b"{}"))), Ok(Remembered::Bytes(b"{}"[..].into())));
    }

    #[test]
    fn foreign_bytes_are_corrupt_and_never_more() {
        let mut refused = 0;
        for seed in 0..4000 {
            println!("seed {seed}");
            let rng = &mut Rng::new(seed);
            let mut bytes = if rng.percent(70) {
                encode_receipt(&some_receipt(rng)).expect("it is small")
            } else {
                encode_answer(&some_answer(rng))
            };
            for _ in 0..rng.between(1, 4) {
                let at = rng.place(bytes.len());
                bytes[at] = rng.next().to_le_bytes()[0];
            }
            for decoded in [decode_remembered(Some(&bytes)).err(), decode_answer(Some(&bytes)).err()] {
                refused += u32::from(matches!(decoded, Some(StoreError::Corrupt(_))));
            }
        }
        assert!(refused > 1000, "{refused}");
        // A count beyond all bytes reserves nothing.
        let head = [&RECEIPT[..], &[0; 13], &[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f]].concat();
        assert!(decode_remembered(Some(&head)).is_err());
        for foreign in [&b""[..], b"r", b"r\x01", b"r\x02", b"r\x03", b"x", b"a"] {
            assert!(decode_remembered(Some(foreign)).is_err(), "{foreign:?}");
        }
    }

    /// Answers that were stored before events were, byte by byte.
    #[test]
    fn an_answer_without_events_keeps_its_bytes() {
        let mut stored = vec![b'r', 1];
        number(1_000_001, &mut stored);
        stored.extend_from_slice(&Hlc::new(1_763_692_496_007, 3).bits().to_be_bytes());
        stored.extend_from_slice(&[0, 0, 0, 7, 1]);
        number(u64::from(encode_code(ItemCode::Applied).unsigned_abs()), &mut stored);
        stored.extend_from_slice(&[1, 0]);
        assert_eq!(encode_receipt(&plain(1)), Some(stored.clone()));
        assert_eq!(decode_remembered(Some(&stored)), Ok(Remembered::Receipt(Box::new(plain(1)))));
    }

    fn plain(count: u64) -> Receipt {
        let plain = |at| SubmissionResult {
            version: Some(Seq::new(1_000_000 + at)),
            ..SubmissionResult::of(ItemCode::Applied)
        };
        Receipt {
            results: (1..=count).map(plain).collect(),
            events: Vec::new(),
            seq: Seq::new(1_000_000 + count),
            hlc: Hlc::new(1_763_692_496_007, 3),
            epoch: Epoch::new(7),
            answered: Answered::Applied,
        }
    }

    #[test]
    fn a_plain_change_takes_three_bytes() {
        let len = |count| encode_receipt(&plain(count)).expect("it is small").len();
        assert_eq!(len(60) - len(50), 30);
        assert!(len(100) < 330, "{}", len(100));
    }

    #[test]
    fn an_answer_is_kept_up_to_its_bound_to_the_byte() {
        let with = |len: usize| {
            let mut receipt = plain(1);
            let fields = Object::from_canonical(format!(r#"{{"a":"{}"}}"#, "x".repeat(len)));
            let fields = fields.expect("canonical");
            receipt.results[0].record = Some(RecordView { version: 1_000_001, deleted: false, fields });
            encode_receipt(&receipt)
        };
        let spare = ANSWER_BYTES_MAX - with(60_000).expect("it is small").len();
        assert_eq!(with(60_000 + spare).map(|bytes| bytes.len()), Some(ANSWER_BYTES_MAX));
        assert_eq!(with(60_000 + spare + 1), None);
    }
}
