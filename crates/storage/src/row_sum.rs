//! The hash of one live row in the sums of scopes.

use driftline_model::{KindName, RecordId, Seq};
use twox_hash::XxHash64;

/// XXH64 with seed 0 of the kind, U+001F, the id, U+001F and the version in decimal.
pub(crate) fn row_sum(kind: &KindName, id: &RecordId, version: Seq) -> u64 {
    XxHash64::oneshot(0, format!("{kind}\u{1f}{id}\u{1f}{version}").as_bytes())
}
