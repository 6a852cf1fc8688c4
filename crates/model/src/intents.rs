//! What a change asks beside writing whole values.

use crate::object::Object;

/// What a change asks beside writing whole values. An empty part asks for nothing.
///
/// Field names are canonical JSON text without quotes, as the members of an [`Object`] have them.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Intents {
    /// Per field, the value that the author saw before writing it.
    pub previous: Object,
    /// Per counter, what to add to it; in canonical order of the names.
    pub increments: Vec<(Box<str>, i64)>,
    /// Per set or list, the elements to add: JSON arrays.
    pub add: Object,
    /// Per set, the elements to take out: JSON arrays.
    pub remove: Object,
    /// Whether the author means to lower an ordered field.
    pub deescalate: bool,
}

impl Intents {
    /// Tells whether nothing is asked.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        !self.deescalate
            && self.increments.is_empty()
            && [&self.previous, &self.add, &self.remove].into_iter().all(Object::is_empty)
    }
}
