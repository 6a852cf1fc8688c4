//! The rows, by what they are about.

mod deletes;
mod escalation;
mod reviews;
mod rules;
mod script;
mod whole;
