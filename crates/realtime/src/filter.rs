//! Which events of its topics a subscriber wants.

use thiserror::Error;

/// How many types a filter may name.
pub const FILTER_TYPES_MAX: usize = 64;

/// How many fields a filter may name.
pub const FILTER_FIELDS_MAX: usize = 16;

/// How many values a filter may name for one field.
pub const FILTER_VALUES_MAX: usize = 64;

/// Lets events pass by their type and by top-level fields of their data.
///
/// Names and values are canonical JSON text and are compared to the byte: a name as it stands between its quotes, a value
/// with its quotes if it has any. The default lets everything pass.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Filter {
    /// The types that pass; none: all.
    pub types: Vec<Box<str>>,
    /// Names of fields and the values that pass: every field must have one of its values.
    pub fields: Vec<(Box<str>, Vec<Box<str>>)>,
}

impl Filter {
    /// Makes a filter within the bounds.
    ///
    /// # Errors
    /// [`FilterError`] when there are too many types, fields or values, or a field without values, which nothing passes.
    pub fn new(types: Vec<Box<str>>, fields: Vec<(Box<str>, Vec<Box<str>>)>) -> Result<Self, FilterError> {
        if types.len() > FILTER_TYPES_MAX {
            return Err(FilterError::Types);
        }
        if fields.len() > FILTER_FIELDS_MAX {
            return Err(FilterError::Fields);
        }
        for (name, values) in &fields {
            if values.is_empty() {
                return Err(FilterError::NoValue(name.clone()));
            }
            if values.len() > FILTER_VALUES_MAX {
                return Err(FilterError::Values(name.clone()));
            }
        }
        Ok(Self { types, fields })
    }

    /// Tells whether an event of this type passes; `field` returns the value of a field by its name.
    ///
    /// A field that the event does not have has no value, not even `null`.
    pub fn passes<'v>(&self, kind: &str, mut field: impl FnMut(&str) -> Option<&'v str>) -> bool {
        let of_type = self.types.is_empty() || self.types.iter().any(|passing| **passing == *kind);
        of_type
            && self.fields.iter().all(|(name, values)| {
                field(name).is_some_and(|value| values.iter().any(|passing| **passing == *value))
            })
    }
}

/// The filter is out of its bounds.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum FilterError {
    /// There are more than [`FILTER_TYPES_MAX`] types.
    #[error("a filter names at most {FILTER_TYPES_MAX} types")]
    Types,
    /// There are more than [`FILTER_FIELDS_MAX`] fields.
    #[error("a filter names at most {FILTER_FIELDS_MAX} fields")]
    Fields,
    /// A field has more than [`FILTER_VALUES_MAX`] values.
    #[error("a filter names at most {FILTER_VALUES_MAX} values of the field {0}")]
    Values(Box<str>),
    /// A field has no value, so that nothing would pass.
    #[error("the filter names no value of the field {0}")]
    NoValue(Box<str>),
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(texts: &[&str]) -> Vec<Box<str>> {
        texts.iter().map(|text| (*text).into()).collect()
    }

    fn filter(types: &[&str], fields: &[(&str, &[&str])]) -> Result<Filter, FilterError> {
        let fields = fields.iter().map(|(name, values)| ((*name).into(), texts(values))).collect();
        Filter::new(texts(types), fields)
    }

    #[test]
    fn types_and_every_field_have_to_fit() {
        let grade = |name: &str| match name {
            "course" => Some("\"maths\""),
            "points" => Some("12"),
            "note" => Some("null"),
            _ => None,
        };
        for (types, fields, expected) in [
            (&[][..], &[][..], true),
            (&["grade"], &[], true),
            (&["exam", "grade"], &[], true),
            (&["exam"], &[], false),
            (&["Grade"], &[], false),
            (&[], &[("course", &["\"art\"", "\"maths\""][..])], true),
            (&[], &[("course", &["maths"])], false),
            (&["grade"], &[("course", &["\"maths\""]), ("points", &["12", "13"])], true),
            (&["grade"], &[("course", &["\"maths\""]), ("points", &["13"])], false),
            (&[], &[("note", &["null"])], true),
            (&[], &[("absent", &["null"])], false),
            (&["exam"], &[("points", &["12"])], false),
        ] {
            let filter = filter(types, fields).expect("within the bounds");
            assert_eq!(filter.passes("grade", grade), expected, "{filter:?}");
        }
        assert!(Filter::default().passes("anything", |_| None));
    }

    #[test]
    fn bounds_are_reached_and_kept() {
        let names: Vec<String> = (0..65).map(|number| number.to_string()).collect();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        let fields = |many: usize, values: usize| -> Vec<(&str, &[&str])> {
            names[..many].iter().map(|name| (*name, &names[..values])).collect()
        };
        assert!(filter(&names[..64], &fields(16, 64)).is_ok());
        assert_eq!(filter(&names, &[]), Err(FilterError::Types));
        assert_eq!(filter(&[], &fields(17, 1)), Err(FilterError::Fields));
        assert_eq!(filter(&[], &fields(1, 65)), Err(FilterError::Values("0".into())));
        assert_eq!(filter(&[], &fields(1, 0)), Err(FilterError::NoValue("0".into())));
    }
}
