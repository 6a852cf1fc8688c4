//! The planted faults.

pub(crate) mod inputs;
pub(crate) mod outputs;
pub(crate) mod policies;

use driftline_conflict::{Change, Context, Decision, Policy, Record};

/// The merge with a fault.
pub(crate) type Faulty = dyn Fn(Option<&Record>, &Change, &Policy, &Context<'_>) -> Decision;

/// A planted fault.
pub(crate) struct Mutant {
    pub(crate) name: &'static str,
    /// The rule that it breaks.
    pub(crate) breaks: &'static str,
    /// The law that has to notice.
    pub(crate) law: &'static str,
    pub(crate) apply: Box<Faulty>,
}

impl Mutant {
    pub(crate) fn new(
        name: &'static str,
        breaks: &'static str,
        law: &'static str,
        apply: impl Fn(Option<&Record>, &Change, &Policy, &Context<'_>) -> Decision + 'static,
    ) -> Self {
        Self { name, breaks, law, apply: Box::new(apply) }
    }
}
