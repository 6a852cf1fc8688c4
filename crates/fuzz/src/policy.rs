//! Documents of conflict policies.

use driftline_engine::policy_of_doc;
use driftline_protocol::PolicyDoc;

use crate::target::Verdict;

/// Reads the body of `PUT /api/v1/policies/{kind}` and makes the policy of it.
pub(crate) fn run(input: &[u8]) -> Verdict {
    let Ok(text) = std::str::from_utf8(input) else { return Verdict::Refused };
    let Ok(doc) = PolicyDoc::parse(text) else { return Verdict::Refused };
    let written = doc.to_json();
    assert_eq!(PolicyDoc::parse(&written).as_ref(), Ok(&doc), "a policy that was written is read: {written}");
    match policy_of_doc(&doc, 7) {
        Ok(policy) => {
            assert_eq!((policy.version, policy.strategy.name()), (7, doc.strategy.as_str()));
            Verdict::Accepted
        }
        Err(error) => {
            assert!(error.pointer.is_empty() || error.pointer.starts_with('/'), "a fault has a place");
            Verdict::Refused
        }
    }
}
