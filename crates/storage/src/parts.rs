//! A range of ids, cut into parts of about equally many rows.

use driftline_engine::{PartSum, SumQuery};
use driftline_model::RecordId;

/// Sums rows that come in the order of their ids.
#[derive(Debug)]
pub(crate) struct Parts {
    done: Vec<PartSum>,
    parts_max: u64,
    /// The most rows of a part.
    rows_max: u64,
    /// The part that is being filled, and the last row in it.
    part: PartSum,
    last: Option<RecordId>,
    until: Option<RecordId>,
}

impl Parts {
    pub(crate) fn new(query: &SumQuery) -> Self {
        Self {
            done: Vec::new(),
            parts_max: query.parts.max(1) as u64,
            rows_max: u64::MAX,
            part: PartSum { after: query.after.clone(), until: None, count: 0, sum: 0 },
            last: None,
            until: query.until.clone(),
        }
    }

    /// Tells how many rows will come.
    pub(crate) fn expect(&mut self, rows: u64) {
        self.rows_max = rows.div_ceil(self.parts_max).max(1);
    }

    /// Adds the next row.
    pub(crate) fn add(&mut self, sum: u64, id: RecordId) {
        if self.part.count >= self.rows_max {
            let next = PartSum { after: self.last.clone(), until: None, count: 0, sum: 0 };
            let full = std::mem::replace(&mut self.part, next);
            self.done.push(PartSum { until: self.last.take(), ..full });
        }
        self.part.count += 1;
        self.part.sum = self.part.sum.wrapping_add(sum);
        self.last = Some(id);
    }

    /// Ends the last part where the range ends.
    pub(crate) fn finish(mut self) -> Vec<PartSum> {
        self.part.until = self.until;
        self.done.push(self.part);
        self.done
    }
}
