//! The schema of a record kind: a JSON Schema that judges single fields.
//!
//! Changes of one record arrive from several devices in any order, and each brings only some fields. So that the
//! verdict on a change does not depend on what arrived before it, a schema may say what each field must be and which
//! fields a new record needs, but not how fields go together.

use std::collections::BTreeSet;
use std::fmt;

use driftline_model::{Object, elements};
use jsonschema::{PatternOptions, ValidationError, Validator};
use serde_json::{Map, Value};
use thiserror::Error;

use crate::canonical::{object_of_text, pointer_segment, segment};
use crate::envelope::{FieldError, add_error};
use crate::item::{Item, ItemOp};
use crate::json::unescape;

/// Nesting of arrays and objects in one schema.
const DEPTH: usize = 64;

/// The most faults that are told of one change.
pub(crate) const FAULTS_MAX: usize = 32;

/// The member under which elements to add are shown to the validator. No field has U+0000 in its name.
const ADDED: &str = "\u{0}add";

/// What may stand at the top of a schema.
const TOP: [&str; 12] = [
    "type",
    "properties",
    "required",
    "additionalProperties",
    "title",
    "description",
    "$schema",
    "$id",
    "$defs",
    "$comment",
    "examples",
    "default",
];

/// Whether a change brings a whole record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Whole {
    /// The record is made: every required field has to come along.
    Create,
    /// Some fields of a record are written.
    Patch,
}

/// Compiles a schema that fetches nothing.
pub(crate) fn validator(schema: &Value) -> Result<Validator, SchemaError> {
    jsonschema::options()
        .offline()
        .with_pattern_options(PatternOptions::regex())
        .should_validate_formats(true)
        .should_ignore_unknown_formats(false)
        .build(schema)
        .map_err(|error| SchemaError::new(error.instance_path().as_str(), error.to_string()))
}

/// Adds what is wrong with an instance.
pub(crate) fn judge(
    validator: &Validator,
    instance: &Value,
    place: impl Fn(&str) -> String,
    faults: &mut Vec<FieldError>,
) {
    if validator.is_valid(instance) {
        return;
    }
    let told = validator.iter_errors(instance).take(FAULTS_MAX).map(|error: ValidationError<'_>| {
        // Values stay out of the text, which may end up in a log.
        let message = error.masked_with("the value").to_string();
        FieldError::new(error.kind().keyword(), place(error.instance_path().as_str()), message)
    });
    faults.extend(told);
}

/// Reads a schema's text.
pub(crate) fn schema_of_text(text: &str) -> Result<Map<String, Value>, SchemaError> {
    let document = object_of_text(text, DEPTH).map_err(|error| SchemaError::new("", error.to_string()))?;
    let document = document.map_err(|error| SchemaError::new(error.pointer, error.kind.to_string()))?;
    serde_json::from_str(document.as_str()).map_err(|error| SchemaError::new("", error.to_string()))
}

/// Why a text is not the schema of a record kind.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{message} at {pointer:?}")]
pub struct SchemaError {
    /// Where in the schema, as a JSON Pointer (RFC 6901).
    pub pointer: String,
    /// What is wrong, for a person.
    pub message: String,
}

impl SchemaError {
    fn new(pointer: impl Into<String>, message: impl Into<String>) -> Self {
        Self { pointer: pointer.into(), message: message.into() }
    }
}

/// The compiled schema of a record kind.
pub struct KindSchema {
    /// Judges an object of fields by the sub-schemas of those that it has, and elements under [`ADDED`].
    validator: Validator,
    /// The fields that have a sub-schema.
    fields: BTreeSet<String>,
    required: Vec<String>,
    /// Whether fields without a sub-schema are taken.
    open: bool,
}

impl fmt::Debug for KindSchema {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KindSchema")
            .field("fields", &self.fields)
            .field("required", &self.required)
            .field("open", &self.open)
            .finish_non_exhaustive()
    }
}

impl KindSchema {
    /// Compiles a JSON Schema. Nothing is fetched: references stay within the text.
    ///
    /// # Errors
    /// [`SchemaError`] says what the text breaks, and where.
    pub fn compile(text: &str) -> Result<Self, SchemaError> {
        let mut root = schema_of_text(text)?;
        refuse_cross_field(&root)?;
        refuse_foreign_references(&Value::Object(root.clone()))?;
        let (fields, required, open) = shape(&root)?;
        for outer in ["required", "additionalProperties", "$id", "examples", "default"] {
            root.remove(outer);
        }
        show_elements(&mut root);
        let validator = validator(&Value::Object(root))?;
        Ok(Self { validator, fields, required, open })
    }

    /// Judges an item: its fields, what it asks beside them, and whether a new record has what it needs.
    #[must_use]
    pub fn check_item(&self, item: &Item) -> Vec<FieldError> {
        if item.op == ItemOp::Delete {
            return Vec::new();
        }
        let mut faults = self.check(&item.fields, Whole::Patch);
        if let Some(intents) = &item.intents {
            faults.extend(self.check_elements(&intents.add));
            let increments = intents.increments.iter().map(|(name, _)| &**name);
            self.check_names("increments", increments, &mut faults);
            self.check_names("remove", intents.remove.iter().map(|(name, _)| name), &mut faults);
        }
        if item.op == ItemOp::Create {
            // A counter or a set comes into being by what is asked of it.
            let brings = |name: &str| match &item.intents {
                Some(intents) => {
                    intents.increments.iter().any(|(field, _)| unescape(field) == name)
                        || intents.add.iter().any(|(field, _)| unescape(field) == name)
                }
                None => false,
            };
            self.check_required(&item.fields, brings, &mut faults);
        }
        faults.truncate(FAULTS_MAX);
        faults
    }

    /// Judges fields that are written: each that comes along by its own sub-schema.
    #[must_use]
    pub fn check(&self, fields: &Object, whole: Whole) -> Vec<FieldError> {
        let mut faults = Vec::new();
        self.check_names("fields", fields.iter().map(|(name, _)| name), &mut faults);
        // Canonical text is JSON; were it not, the record could not be judged and must not pass.
        let instance = serde_json::from_str(fields.as_str()).unwrap_or_default();
        self.judge(&instance, |path| format!("/fields{path}"), &mut faults);
        if whole == Whole::Create {
            self.check_required(fields, |_| false, &mut faults);
        }
        faults.truncate(FAULTS_MAX);
        faults
    }

    /// Judges elements to add, each by the sub-schema of its array's elements.
    #[must_use]
    pub fn check_elements(&self, add: &Object) -> Vec<FieldError> {
        let mut faults = Vec::new();
        if add.is_empty() {
            return faults;
        }
        self.check_names("add", add.iter().map(|(name, _)| name), &mut faults);
        for (name, value) in add.iter() {
            if elements(value).is_none() {
                let pointer = || format!("/add{}", pointer_segment(name));
                add_error(&mut faults, || FieldError::new("type", pointer(), "must be an array"));
            }
        }
        let added: Value = serde_json::from_str(add.as_str()).unwrap_or_default();
        let instance = Value::Object(Map::from_iter([(ADDED.to_owned(), added)]));
        let under = format!("/{ADDED}");
        let place = |path: &str| format!("/add{}", path.strip_prefix(&under).unwrap_or(path));
        self.judge(&instance, place, &mut faults);
        faults.truncate(FAULTS_MAX);
        faults
    }

    fn judge(&self, instance: &Value, place: impl Fn(&str) -> String, faults: &mut Vec<FieldError>) {
        judge(&self.validator, instance, place, faults);
    }

    fn check_names<'a>(
        &self,
        member: &str,
        names: impl Iterator<Item = &'a str>,
        faults: &mut Vec<FieldError>,
    ) {
        if self.open {
            return;
        }
        for name in names.filter(|name| !self.fields.contains(&unescape(name))) {
            let pointer = format!("/{member}{}", pointer_segment(name));
            add_error(faults, || {
                FieldError::new("additionalProperties", pointer, "the kind has no such field")
            });
        }
    }

    fn check_required(&self, fields: &Object, brings: impl Fn(&str) -> bool, faults: &mut Vec<FieldError>) {
        let comes = |name: &str| fields.iter().any(|(field, _)| unescape(field) == name) || brings(name);
        for name in self.required.iter().filter(|name| !comes(name)) {
            let pointer = format!("/fields{}", segment(name));
            add_error(faults, || FieldError::new("required", pointer, "a new record needs the field"));
        }
    }
}

fn refuse_cross_field(root: &Map<String, Value>) -> Result<(), SchemaError> {
    match root.keys().find(|key| !TOP.contains(&key.as_str())) {
        None => Ok(()),
        Some(key) => Err(SchemaError::new(
            segment(key),
            "may not stand at the top of a record kind's schema: whether a change is valid may not depend on other fields",
        )),
    }
}

/// Reads what is said about the record as a whole: its fields, those that it needs, and whether it may have others.
fn shape(root: &Map<String, Value>) -> Result<(BTreeSet<String>, Vec<String>, bool), SchemaError> {
    if root.get("type").is_some_and(|kind| kind != "object") {
        return Err(SchemaError::new("/type", "a record is an object"));
    }
    let fields = match root.get("properties") {
        None => BTreeSet::new(),
        Some(Value::Object(fields)) => fields.keys().cloned().collect(),
        Some(_) => return Err(SchemaError::new("/properties", "must be an object")),
    };
    let open = match root.get("additionalProperties") {
        None => true,
        Some(Value::Bool(open)) => *open,
        Some(_) => return Err(SchemaError::new("/additionalProperties", "must be true or false")),
    };
    let required = match root.get("required") {
        None => Vec::new(),
        Some(Value::Array(names)) => names
            .iter()
            .enumerate()
            .map(|(at, name)| {
                required_name(name, open, &fields)
                    .map_err(|message| SchemaError::new(format!("/required/{at}"), message))
            })
            .collect::<Result<_, _>>()?,
        Some(_) => return Err(SchemaError::new("/required", "must be an array of names")),
    };
    Ok((fields, required, open))
}

fn required_name(name: &Value, open: bool, fields: &BTreeSet<String>) -> Result<String, &'static str> {
    let name = name.as_str().ok_or("must be a field's name")?;
    if open || fields.contains(name) {
        Ok(name.to_owned())
    } else {
        Err("is required but not among the properties, and no others are allowed")
    }
}

/// Adds a member that judges elements to add by the `items` of their fields.
fn show_elements(root: &mut Map<String, Value>) {
    let Some(Value::Object(fields)) = root.get_mut("properties") else { return };
    let mut arrays = Map::new();
    for (name, schema) in fields.iter() {
        if matches!(schema.get("items"), Some(Value::Object(_) | Value::Bool(_))) {
            let items = format!("#/properties{}/items", fragment(&segment(name)));
            arrays.insert(name.clone(), serde_json::json!({"items": {"$ref": items}}));
        }
    }
    fields.insert(ADDED.to_owned(), serde_json::json!({"properties": arrays}));
}

/// Refuses references that lead out of the text, to nowhere in it, or to the whole of it.
pub(crate) fn refuse_foreign_references(root: &Value) -> Result<(), SchemaError> {
    let mut open = vec![(String::new(), root)];
    while let Some((at, schema)) = open.pop() {
        match schema {
            Value::Array(schemas) => {
                open.extend(
                    schemas.iter().enumerate().map(|(index, schema)| (format!("{at}/{index}"), schema)),
                );
            }
            Value::Object(members) => {
                for (key, value) in members {
                    let at = format!("{at}{}", segment(key));
                    match (key.as_str(), value) {
                        ("$ref" | "$dynamicRef" | "$recursiveRef", Value::String(target)) => {
                            refuse_reference(root, target)
                                .map_err(|message| SchemaError::new(at, message))?;
                        }
                        // These hold values, in which nothing is a reference.
                        ("const" | "enum" | "default" | "examples", _) => {}
                        // Names of schemas, among which may be any of the above.
                        (
                            "properties" | "patternProperties" | "$defs" | "definitions" | "dependentSchemas",
                            Value::Object(named),
                        ) => open.extend(
                            named.iter().map(|(name, schema)| (format!("{at}{}", segment(name)), schema)),
                        ),
                        _ => open.push((at, value)),
                    }
                }
            }
            _ => {}
        }
    }
    Ok(())
}

fn refuse_reference(root: &Value, target: &str) -> Result<(), &'static str> {
    match target.strip_prefix('#') {
        None => Err("a reference must stay within the schema and start with #: nothing is fetched"),
        Some("") => Err("a reference may not lead to the whole schema, which only tells of records"),
        Some(path) if path.starts_with('/') && !path.contains('%') && root.pointer(path).is_none() => {
            Err("the reference leads to nothing in the schema")
        }
        Some(_) => Ok(()),
    }
}

/// Escapes a JSON Pointer for the fragment of a URI.
fn fragment(pointer: &str) -> String {
    let mut out = String::with_capacity(pointer.len());
    for byte in pointer.bytes() {
        if byte.is_ascii_alphanumeric() || b"/-._~".contains(&byte) {
            out.push(char::from(byte));
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
    }
    out
}
