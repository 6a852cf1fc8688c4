//! What a user wants to change.

use driftline_model::{KindName, Limits, Object, RecordId};
use driftline_protocol::{ItemOp, object_of_text};
use thiserror::Error;

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
    /// The schema version that the fields were made for; 0: none.
    pub schema_version: u32,
}

impl Edit {
    /// Makes a record.
    #[must_use]
    pub fn create(kind: KindName, id: RecordId, fields: Object) -> Self {
        Self::new(kind, id, ItemOp::Create, fields)
    }

    /// Writes fields of a record that exists.
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
        Self { kind, id, op, fields, schema_version: 0 }
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
    #[error("the fields take {bytes} bytes, at most {max} fit into a message")]
    TooLarge {
        /// The bytes of the fields.
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

/// The text is not a JSON object that can be stored.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{0}")]
pub struct FieldsError(String);
