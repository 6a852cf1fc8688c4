//! Fields of samples as devices send them: about 120 bytes of JSON, the same for the same seed but for their time.

use std::io::Write as _;

use crate::rng::Rng;

const CHANNELS: [&str; 8] = [
    "pump-inlet",
    "pump-outlet",
    "roof-north",
    "roof-south",
    "meter-hall",
    "gate-camera",
    "valve-07",
    "panel-12",
];
const UNITS: [&str; 4] = ["celsius", "pascal", "percent", "volt"];

/// Appends the fields of one sample that tells of a time in Unix milliseconds.
pub(crate) fn write_fields(at_ms: u64, rng: &mut Rng, out: &mut Vec<u8>) {
    // Writing to memory does not fail.
    let _ = write!(
        out,
        concat!(
            r#"{{"timestamp":{},"channel":"{}","value":{}.{},"unit":"{}","battery":{},"#,
            r#""charging":{},"count":{}}}"#
        ),
        at_ms,
        CHANNELS[rng.below(CHANNELS.len())],
        rng.below(10_000),
        // A fraction that does not end in 0 is already written as canonical JSON writes it.
        1 + rng.below(9),
        UNITS[rng.below(UNITS.len())],
        rng.below(101),
        rng.below(2) == 0,
        1_000_000 + rng.below(9_000_000),
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_are_objects_of_100_to_150_bytes() {
        let mut rng = Rng::new(1, 2);
        for _ in 0..1_000 {
            let mut out = Vec::new();
            write_fields(1_767_225_600_000, &mut rng, &mut out);
            assert!((100..=150).contains(&out.len()), "{} bytes", out.len());
            let value: serde_json::Value = serde_json::from_slice(&out).expect("valid JSON");
            assert_eq!(value.as_object().map(serde_json::Map::len), Some(7));
        }
    }
}
