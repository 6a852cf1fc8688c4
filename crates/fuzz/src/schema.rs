//! Schemas of record kinds.

use driftline_model::Limits;
use driftline_protocol::{KindSchema, Whole, object_of_text};

use crate::target::Verdict;

/// The most faults that are told of one change.
const FAULTS_MAX: usize = 32;

/// Compiles what stands before U+0000 and shows it the object that stands behind.
pub(crate) fn run(input: &[u8]) -> Verdict {
    let Ok(text) = std::str::from_utf8(input) else { return Verdict::Refused };
    let (schema, fields) = text.split_once('\0').unwrap_or((text, "{}"));
    let schema = match KindSchema::compile(schema) {
        Ok(schema) => schema,
        Err(error) => {
            assert!(!error.message.is_empty(), "a fault says what is wrong");
            return Verdict::Refused;
        }
    };
    let Ok(Ok(fields)) = object_of_text(fields, Limits::default().depth) else { return Verdict::Refused };
    let (create, patch) = (schema.check(&fields, Whole::Create), schema.check(&fields, Whole::Patch));
    let added = schema.check_elements(&fields);
    for faults in [&create, &patch, &added] {
        assert!(faults.len() <= FAULTS_MAX, "not too much is told");
        assert!(faults.iter().all(|fault| fault.pointer.starts_with('/')), "a fault has a place");
    }
    assert!(patch.len() <= create.len(), "what a patch may not write, a new record may not have");
    if fields.is_empty() {
        assert!(patch.is_empty() && added.is_empty(), "who writes nothing breaks nothing");
    }
    Verdict::Accepted
}
