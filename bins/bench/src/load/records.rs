//! Bodies of records: 10 fields of mixed types, about 310 bytes of JSON, the same for the same seed.

use crate::rng::Rng;

const WORDS: [&str; 32] = [
    "valve", "meter", "roof", "pump", "north", "checked", "leak", "panel", "replaced", "broken", "cable",
    "tenant", "called", "waiting", "gate", "sensor", "filter", "access", "tight", "rusty", "floor",
    "reading", "early", "door", "spare", "noise", "tested", "hall", "clean", "again", "photo", "urgent",
];
const STATUSES: [&str; 4] = ["open", "in_progress", "resolved", "closed"];
const PRIORITIES: [&str; 4] = ["low", "normal", "high", "urgent"];
/// Length of the free text that fills a body up to its size.
const NOTE_BYTES: usize = 126;

/// Bodies made before the run, so that sending costs a copy.
#[derive(Debug)]
pub(crate) struct Bodies(Vec<String>);

impl Bodies {
    /// Makes `count` bodies, at least one.
    pub(crate) fn new(seed: u64, count: usize) -> Self {
        let mut rng = Rng::new(seed, 0xB0D1);
        Bodies((0..count.max(1)).map(|_| body(&mut rng)).collect())
    }

    /// Gives a body by a number that may exceed their count.
    pub(crate) fn at(&self, number: usize) -> &str {
        &self.0[number % self.0.len()]
    }
}

/// Makes one body: five strings, three numbers and two booleans.
fn body(rng: &mut Rng) -> String {
    let title = text(rng, 24);
    let note = text(rng, NOTE_BYTES);
    format!(
        concat!(
            r#"{{"title":"{}","status":"{}","priority":"{}","assignee":"user-{:05}","minutes":{},"#,
            r#""cost":{}.{:02},"reading":{},"on_site":{},"signed":{},"note":"{}"}}"#
        ),
        title,
        STATUSES[rng.below(STATUSES.len())],
        PRIORITIES[rng.below(PRIORITIES.len())],
        rng.below(100_000),
        rng.below(600),
        // A fraction that does not end in 0 is already written as canonical JSON writes it.
        10 + rng.below(9_990),
        11 + 10 * rng.below(9),
        1_000_000 + rng.below(9_000_000),
        rng.below(2) == 0,
        rng.below(2) == 0,
        note
    )
}

/// Words up to `bytes` bytes.
fn text(rng: &mut Rng, bytes: usize) -> String {
    let mut text = String::with_capacity(bytes + 16);
    while text.len() < bytes {
        if !text.is_empty() {
            text.push(' ');
        }
        text.push_str(WORDS[rng.below(WORDS.len())]);
    }
    text.truncate(bytes);
    text.truncate(text.trim_end().len());
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bodies_have_ten_fields_of_mixed_types() {
        for body in &Bodies::new(1, 200).0 {
            let value: serde_json::Value = serde_json::from_str(body).expect("valid JSON");
            let fields = value.as_object().expect("an object");
            let of = |test: fn(&serde_json::Value) -> bool| fields.values().filter(|v| test(v)).count();
            assert_eq!(
                (fields.len(), of(|v| v.is_string()), of(|v| v.is_number()), of(|v| v.is_boolean())),
                (10, 5, 3, 2)
            );
        }
    }

    #[test]
    fn bodies_are_about_310_bytes() {
        let bodies = Bodies::new(2, 500);
        let mean = bodies.0.iter().map(String::len).sum::<usize>() / bodies.0.len();
        assert!((290..=330).contains(&mean), "{mean} bytes");
    }

    #[test]
    fn a_seed_gives_the_same_bodies() {
        assert_eq!(Bodies::new(3, 50).0, Bodies::new(3, 50).0);
        assert_ne!(Bodies::new(3, 50).0, Bodies::new(4, 50).0);
        assert_eq!(Bodies::new(3, 50).at(53), Bodies::new(3, 50).at(3));
    }
}
