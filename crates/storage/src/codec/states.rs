//! What fields that merge remember, and what decides beside the clocks whether a record is deleted, as stored.
//!
//! First the distinct marks, then the life, then each field with its rule's parts; a mark stands as its place among
//! the distinct ones.

use std::collections::HashMap;

use driftline_conflict::{Assertion, FieldState, Life, Mark, Parts};
use driftline_engine::StoreError;
use driftline_model::Seq;

use super::{Reader, corrupt, encode_mark, number, text};

const CLOCKS: u64 = 0;
const URGENT: u64 = 1;
const WRITES: u64 = 2;
const DELETES: u64 = 3;

const COUNTER: u64 = 0;
const SET: u64 = 1;
const LIST: u64 = 2;
const ORDERED: u64 = 3;

/// The life and the states of a record; nothing when neither says anything.
pub(crate) fn encode_states(life: &Life, states: &[(Box<str>, FieldState)]) -> Option<Vec<u8>> {
    if *life == Life::Clocks && states.is_empty() {
        return None;
    }
    let mut writer = Writer::default();
    writer.life(life);
    writer.number(states.len() as u64);
    for (name, state) in states {
        text(name, &mut writer.out);
        writer.number(state.others.number());
        writer.parts(&state.parts);
    }
    Some(writer.finish())
}

/// A record's life and states.
type LifeAndStates = (Life, Vec<(Box<str>, FieldState)>);

pub(crate) fn decode_states(bytes: Option<&[u8]>) -> Result<LifeAndStates, StoreError> {
    let Some(bytes) = bytes else { return Ok((Life::Clocks, Vec::new())) };
    let mut bytes = Reader::new(bytes);
    let count = bytes.number()?;
    let marks = (0..count).map(|_| bytes.mark()).collect::<Result<_, _>>()?;
    let mut reader = StateReader { bytes, marks };
    let life = reader.life()?;
    let count = reader.bytes.number()?;
    let states = (0..count).map(|_| reader.state()).collect::<Result<_, _>>()?;
    if reader.bytes.is_done() { Ok((life, states)) } else { Err(corrupt("states")) }
}

#[derive(Default)]
struct Writer {
    out: Vec<u8>,
    marks: Vec<Mark>,
    places: HashMap<Mark, u64>,
}

impl Writer {
    fn number(&mut self, value: u64) {
        number(value, &mut self.out);
    }

    fn mark(&mut self, mark: &Mark) {
        let next = self.marks.len() as u64;
        let place = *self.places.entry(*mark).or_insert(next);
        if place == next {
            self.marks.push(*mark);
        }
        self.number(place);
    }

    fn marks(&mut self, marks: &[Mark]) {
        self.number(marks.len() as u64);
        for mark in marks {
            self.mark(mark);
        }
    }

    fn life(&mut self, life: &Life) {
        match life {
            Life::Clocks => self.number(CLOCKS),
            Life::Urgent => self.number(URGENT),
            Life::Writes(marks) => {
                self.number(WRITES);
                self.marks(marks);
            }
            Life::Deletes(marks) => {
                self.number(DELETES);
                self.marks(marks);
            }
        }
    }

    fn parts(&mut self, parts: &Parts) {
        match parts {
            Parts::Counter => self.number(COUNTER),
            Parts::Set(elements) => {
                self.number(SET);
                self.number(elements.len() as u64);
                for marks in elements {
                    self.marks(marks);
                }
            }
            Parts::List(marks) => {
                self.number(LIST);
                self.marks(marks);
            }
            Parts::Ordered(assertions) => {
                self.number(ORDERED);
                self.number(assertions.len() as u64);
                for Assertion { value, mark, covered } in assertions {
                    text(value, &mut self.out);
                    self.mark(mark);
                    self.number(u64::from(*covered));
                }
            }
        }
    }

    fn finish(self) -> Vec<u8> {
        let mut out = Vec::with_capacity(self.out.len() + self.marks.len() * 16 + 2);
        number(self.marks.len() as u64, &mut out);
        for mark in &self.marks {
            encode_mark(mark, &mut out);
        }
        out.extend_from_slice(&self.out);
        out
    }
}

struct StateReader<'a> {
    bytes: Reader<'a>,
    marks: Vec<Mark>,
}

impl StateReader<'_> {
    fn mark(&mut self) -> Result<Mark, StoreError> {
        let place = self.bytes.size()?;
        self.marks.get(place).copied().ok_or_else(|| corrupt("states"))
    }

    fn marks(&mut self) -> Result<Vec<Mark>, StoreError> {
        let count = self.bytes.number()?;
        (0..count).map(|_| self.mark()).collect()
    }

    fn life(&mut self) -> Result<Life, StoreError> {
        Ok(match self.bytes.number()? {
            CLOCKS => Life::Clocks,
            URGENT => Life::Urgent,
            WRITES => Life::Writes(self.marks()?),
            DELETES => Life::Deletes(self.marks()?),
            _ => return Err(corrupt("life")),
        })
    }

    fn state(&mut self) -> Result<(Box<str>, FieldState), StoreError> {
        let name = self.bytes.text()?;
        let others = Seq::new(self.bytes.number()?);
        let parts = match self.bytes.number()? {
            COUNTER => Parts::Counter,
            SET => {
                let count = self.bytes.number()?;
                Parts::Set((0..count).map(|_| self.marks()).collect::<Result<_, _>>()?)
            }
            LIST => Parts::List(self.marks()?),
            ORDERED => {
                let count = self.bytes.number()?;
                Parts::Ordered((0..count).map(|_| self.assertion()).collect::<Result<_, _>>()?)
            }
            _ => return Err(corrupt("states")),
        };
        Ok((name, FieldState { others, parts }))
    }

    fn assertion(&mut self) -> Result<Assertion, StoreError> {
        let value = self.bytes.text()?;
        let mark = self.mark()?;
        let covered = match self.bytes.number()? {
            0 => false,
            1 => true,
            _ => return Err(corrupt("states")),
        };
        Ok(Assertion { value, mark, covered })
    }
}

#[cfg(test)]
mod tests {
    use driftline_model::{DeviceNo, Hlc};
    use driftline_testkit::Rng;

    use super::*;

    fn mark(rng: &mut Rng) -> Mark {
        let at = rng.below(6);
        let device = DeviceNo::new(u32::try_from(rng.below(3) * 70_000).expect("small"));
        Mark { fv: Seq::new(at * 1000), hlc: Hlc::new(1_763_692_496_007 + at, 3), device, n: at }
    }

    fn marks(rng: &mut Rng) -> Vec<Mark> {
        (0..rng.below(4)).map(|_| mark(rng)).collect()
    }

    fn life(rng: &mut Rng) -> Life {
        match rng.below(4) {
            0 => Life::Clocks,
            1 => Life::Urgent,
            2 => Life::Writes(marks(rng)),
            _ => Life::Deletes(marks(rng)),
        }
    }

    fn assertion(rng: &mut Rng) -> Assertion {
        let value = Box::from(*rng.pick(&["\"open\"", "\"closed\"", "null", "\"\\u0001é\""]));
        Assertion { value, mark: mark(rng), covered: rng.percent(50) }
    }

    fn state(rng: &mut Rng) -> FieldState {
        let parts = match rng.below(4) {
            0 => Parts::Counter,
            1 => Parts::Set((0..rng.below(5)).map(|_| marks(rng)).collect()),
            2 => Parts::List(marks(rng)),
            _ => Parts::Ordered((0..rng.below(4)).map(|_| assertion(rng)).collect()),
        };
        FieldState { others: Seq::new(rng.below(3) << 40), parts }
    }

    fn states(rng: &mut Rng) -> Vec<(Box<str>, FieldState)> {
        let names = ["", "a", "status", "é\\n"];
        names.into_iter().take(rng.place(5)).map(|name| (Box::from(name), state(rng))).collect()
    }

    #[test]
    fn states_round_trip() {
        let mut empty = 0;
        for seed in 0..500 {
            println!("seed {seed}");
            let rng = &mut Rng::new(seed);
            let (life, states) = (life(rng), states(rng));
            let bytes = encode_states(&life, &states);
            empty += u32::from(bytes.is_none());
            assert_eq!(decode_states(bytes.as_deref()), Ok((life, states)));
            let Some(mut bytes) = bytes else { continue };
            for cut in 0..bytes.len() {
                assert!(decode_states(Some(&bytes[..cut])).is_err(), "{cut}");
            }
            bytes.push(0);
            assert!(decode_states(Some(&bytes)).is_err(), "something is left over");
        }
        assert!((1..100).contains(&empty), "{empty} of 500 had nothing to store");
    }

    #[test]
    fn foreign_bytes_are_corrupt_and_never_more() {
        let mut refused = 0;
        for seed in 0..2000 {
            let rng = &mut Rng::new(seed);
            let Some(mut bytes) = encode_states(&life(rng), &states(rng)) else { continue };
            for _ in 0..rng.between(1, 4) {
                let at = rng.place(bytes.len());
                bytes[at] = rng.next().to_le_bytes()[0];
            }
            refused += u32::from(matches!(decode_states(Some(&bytes)), Err(StoreError::Corrupt(_))));
        }
        assert!(refused > 500, "{refused}");
        // A count beyond all bytes reserves nothing.
        assert!(decode_states(Some(&[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f])).is_err());
        assert!(decode_states(Some(&[0, 0, 0xff, 0xff, 0xff, 0xff, 0x7f])).is_err());
    }

    #[test]
    fn equal_marks_are_stored_once() {
        let rng = &mut Rng::new(1);
        let one = mark(rng);
        let set = |count| {
            let parts = Parts::Set(vec![vec![one]; count]);
            let bytes =
                encode_states(&Life::Clocks, &[(Box::from("a"), FieldState { others: Seq::ZERO, parts })]);
            bytes.expect("a state").len()
        };
        assert_eq!(set(90) - set(50), 80, "two bytes an element");
    }
}
