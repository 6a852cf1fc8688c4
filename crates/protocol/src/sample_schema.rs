//! The schema of a telemetry kind: a JSON Schema that judges whole samples.

use std::fmt;

use driftline_model::Object;
use jsonschema::Validator;
use serde_json::Value;

use crate::envelope::FieldError;
use crate::schema::{FAULTS_MAX, SchemaError, judge, refuse_foreign_references, schema_of_text, validator};

/// The compiled schema of a telemetry kind. A sample comes whole and never changes, so that a schema may say how its
/// fields go together.
pub struct SampleSchema {
    validator: Validator,
}

impl fmt::Debug for SampleSchema {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SampleSchema").finish_non_exhaustive()
    }
}

impl SampleSchema {
    /// Compiles a JSON Schema. Nothing is fetched: references stay within the text.
    ///
    /// # Errors
    /// [`SchemaError`] says what the text breaks, and where.
    pub fn compile(text: &str) -> Result<Self, SchemaError> {
        let root = Value::Object(schema_of_text(text)?);
        refuse_foreign_references(&root)?;
        Ok(Self { validator: validator(&root)? })
    }

    /// Judges the fields of a sample; says everything that is wrong, up to 32 faults.
    #[must_use]
    pub fn check(&self, fields: &Object) -> Vec<FieldError> {
        let mut faults = Vec::new();
        // Canonical text is JSON; were it not, the sample could not be judged and must not pass.
        let instance = serde_json::from_str(fields.as_str()).unwrap_or_default();
        judge(&self.validator, &instance, str::to_owned, &mut faults);
        faults.truncate(FAULTS_MAX);
        faults
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::canonical::object_of_text;

    fn check(schema: &str, sample: &str) -> Vec<String> {
        let schema = SampleSchema::compile(schema).expect("a schema");
        let fields = object_of_text(sample, 8).expect("JSON").expect("canonical");
        schema.check(&fields).into_iter().map(|fault| format!("{} {}", fault.pointer, fault.code)).collect()
    }

    #[test]
    fn a_sample_is_judged_whole() {
        let schema = r#"{"required":["latitude"],"properties":{"latitude":{"type":"number","minimum":-90,"maximum":90},
            "at":{"type":"string","format":"date-time"}},"dependentRequired":{"at":["zone"]}}"#;
        assert_eq!(check(schema, r#"{"latitude":48.2}"#), Vec::<String>::new());
        assert_eq!(check(schema, r#"{"latitude":91}"#), ["/latitude maximum"]);
        assert_eq!(check(schema, "{}"), [" required"]);
        assert_eq!(check(schema, r#"{"latitude":1,"at":"yesterday"}"#).len(), 2);
    }

    #[test]
    fn references_stay_within_the_text() {
        assert!(SampleSchema::compile(r#"{"$ref":"https://example.com/schema"}"#).is_err());
        assert!(SampleSchema::compile(r#"{"type":7}"#).is_err());
    }
}
