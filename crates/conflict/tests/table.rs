//! The table of strategies and rules, row by row.
//!
//! Most rows start from a record that Ada created as version 1 at clock 10, with `a` and `b` of value 1. A step reads
//! `device n op base [part ...] @clock`, and a part is `field=value`, `was:field=value` for what the author saw before,
//! `inc:field=number`, `add:field=[...]`, `remove:field=[...]` or `lower`. The wanted text tells the outcome of the last
//! step, the record after it, and after `|` the account: `conflict`, `clamped`, per field `field:winner:rule(loser)`,
//! `exists:winner:rule`, and `review:reason[fields]`; or, for a change that is invalid, what is wrong.

mod rows;
