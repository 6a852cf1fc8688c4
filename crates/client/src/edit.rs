//! What a user wants to change.

use driftline_model::{Intents, KindName, Limits, Object, RecordId, elements as split, key_cmp};
use driftline_protocol::{Document, ItemOp, canonical_value, object_of_text};
use thiserror::Error;

use crate::intents::{join, merge, object};
use crate::policies::canonical_name;

/// A wanted change of one record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Edit {
    /// The record's kind.
    pub kind: KindName,
    /// The record.
    pub id: RecordId,
    /// What to do.
    pub op: ItemOp,
    /// The fields to write; those that the user did not change are left out.
    pub fields: Object,
    /// What is asked beside that. What the user saw is filled in when the edit is sent.
    pub intents: Intents,
    /// The schema version that the fields were made for; 0: none.
    pub schema_version: u32,
}

impl Edit {
    /// Makes a record.
    #[must_use]
    pub fn create(kind: KindName, id: RecordId, fields: Object) -> Self {
        Self::new(kind, id, ItemOp::Create, fields)
    }

    /// Writes fields of a record that exists: all of these, also with the value that they have, which says it anew.
    /// [`View::changes`](crate::View::changes) finds what a user changed of a whole record.
    #[must_use]
    pub fn patch(kind: KindName, id: RecordId, fields: Object) -> Self {
        Self::new(kind, id, ItemOp::Patch, fields)
    }

    /// Deletes a record.
    #[must_use]
    pub fn delete(kind: KindName, id: RecordId) -> Self {
        Self::new(kind, id, ItemOp::Delete, Object::empty())
    }

    /// Brings a deleted record back, with some fields written.
    #[must_use]
    pub fn restore(kind: KindName, id: RecordId, fields: Object) -> Self {
        Self::new(kind, id, ItemOp::Restore, fields)
    }

    fn new(kind: KindName, id: RecordId, op: ItemOp, fields: Object) -> Self {
        Self { kind, id, op, fields, intents: Intents::default(), schema_version: 0 }
    }

    /// Adds to a counter.
    ///
    /// ```
    /// use driftline_client::{Edit, KindName, Object, RecordId, elements};
    ///
    /// let edit = Edit::patch(KindName::new("site")?, RecordId::new("s-1")?, Object::empty())
    ///     .increment("visits", 1)
    ///     .add("tags", &elements(r#"["roof"]"#)?)
    ///     .remove("tags", &elements(r#"["new"]"#)?);
    /// assert_eq!(edit.intents.add.as_str(), r#"{"tags":["roof"]}"#);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    #[must_use]
    pub fn increment(mut self, field: &str, by: i64) -> Self {
        let name = canonical_name(field);
        let increments = &mut self.intents.increments;
        match increments.binary_search_by(|(known, _)| key_cmp(known, &name)) {
            Ok(at) => increments[at].1 = increments[at].1.saturating_add(by),
            Err(at) => increments.insert(at, (name, by)),
        }
        self
    }

    /// Adds elements to a set, or appends them to a list; those of a list are objects with an `id` each.
    #[must_use]
    pub fn add(mut self, field: &str, elements: &Elements) -> Self {
        self.intents.add = with(&self.intents.add, field, elements);
        self
    }

    /// Takes elements out of a set. Those that others add meanwhile stay.
    #[must_use]
    pub fn remove(mut self, field: &str, elements: &Elements) -> Self {
        self.intents.remove = with(&self.intents.remove, field, elements);
        self
    }

    /// Says that the edit means to lower an ordered field, which takes a right of its own.
    #[must_use]
    pub fn deescalate(mut self) -> Self {
        self.intents.deescalate = true;
        self
    }

    /// About how many bytes the edit's values take in a message.
    pub(crate) fn bytes(&self) -> usize {
        let Intents { increments, add, remove, .. } = &self.intents;
        let names: usize = increments.iter().map(|(name, _)| name.len() + 24).sum();
        // What the user saw travels along and is about as large as what is written.
        self.fields.as_str().len() + add.as_str().len() + remove.as_str().len() + names
    }
}

fn with(arrays: &Object, field: &str, elements: &Elements) -> Object {
    let name = canonical_name(field);
    let known = arrays.get(&name).and_then(split).unwrap_or_default();
    let all = join(known.into_iter().chain(split(&elements.0).unwrap_or_default()));
    merge(arrays, &object(vec![(&*name, all)]))
}

/// Elements of a set or a list, in canonical form.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Elements(Box<str>);

impl Elements {
    /// Returns the canonical JSON array.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// Why an edit is not taken. Nothing was queued.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum EditError {
    /// As many edits wait as the device may hold.
    #[error("the queue holds {max} edits and is full")]
    QueueFull {
        /// The most edits that may wait.
        max: usize,
    },
    /// The fields would not fit into one message.
    #[error("the values take {bytes} bytes, at most {max} fit into a message")]
    TooLarge {
        /// The bytes of the values.
        bytes: usize,
        /// The most bytes.
        max: usize,
    },
    /// A group has to fit into one batch.
    #[error("the group holds {items} edits, a batch at most {max}")]
    GroupTooLarge {
        /// The edits of the group.
        items: usize,
        /// The most edits.
        max: usize,
    },
}

/// Reads fields from JSON text and brings them into canonical form.
///
/// # Errors
/// [`FieldsError`] when the text is not a JSON object that can be stored.
///
/// ```
/// let fields = driftline_client::fields(r#"{"state":"open", "count": 1.0}"#)?;
/// assert_eq!(fields.as_str(), r#"{"count":1,"state":"open"}"#);
/// # Ok::<(), driftline_client::FieldsError>(())
/// ```
pub fn fields(json: &str) -> Result<Object, FieldsError> {
    let parsed =
        object_of_text(json, Limits::default().depth).map_err(|error| FieldsError(error.to_string()))?;
    parsed.map_err(|error| FieldsError(error.to_string()))
}

/// Reads elements from the text of a JSON array and brings them into canonical form.
///
/// # Errors
/// [`FieldsError`] when the text is not a JSON array that can be stored.
///
/// ```
/// assert_eq!(driftline_client::elements(r#"[ "roof", 1.0 ]"#)?.as_str(), r#"["roof",1]"#);
/// assert!(driftline_client::elements("{}").is_err());
/// # Ok::<(), driftline_client::FieldsError>(())
/// ```
pub fn elements(json: &str) -> Result<Elements, FieldsError> {
    let document = Document::parse(json.as_bytes(), Limits::default().depth)
        .map_err(|error| FieldsError(error.to_string()))?;
    if !document.root().is_array() {
        return Err(FieldsError("must be an array".into()));
    }
    let mut canonical = String::with_capacity(json.len());
    canonical_value(document.root(), &mut canonical).map_err(|error| FieldsError(error.to_string()))?;
    Ok(Elements(canonical.into()))
}

/// The text is not a JSON object, or array, that can be stored.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{0}")]
pub struct FieldsError(String);
