//! Finding and replacing rows that differ from the server's without a reason.
//!
//! A caught-up page tells what the reader must hold: per scope and kind a count and a sum. Where the device's own sums
//! differ, the range is cut into parts, and parts of parts, until a part is small; its rows are asked for whole and put
//! in the place of the device's. One range is examined at a time. When three repairs in a row have not led to equal
//! sums, everything is pulled anew, and after that the sums are only watched: a server that keeps disagreeing must not
//! keep its devices busy.

use std::collections::{BTreeMap, BTreeSet};

use driftline_model::{Hlc, KindName, RecordId, ScopeName, Seq};
use driftline_protocol::{Change, ChangeKind, Checksum, Checksums, ClientMessage, Range, Rows};

use crate::event::Event;
use crate::record::Telling;
use crate::replica::Replica;
use crate::session::Link;
use crate::sums::Sum;

/// The most rows of a part that are asked for whole.
const ROWS_MAX: u64 = 64;

/// Into how many parts a range is cut.
const PARTS: u64 = 16;

/// Repairs in a row after which everything is pulled anew.
const ROUNDS_MAX: u32 = 3;

/// The state of repairing.
#[derive(Debug, Clone, Default)]
pub(crate) struct Repair {
    job: Option<Job>,
    /// Repairs since the sums were equal.
    rounds: u32,
    /// Rows that were replaced in the device's life.
    repaired: u64,
}

/// One repair: what is still to be asked, the next at the end.
#[derive(Debug, Clone, Default)]
struct Job {
    questions: Vec<Question>,
    /// The message that carries the last question.
    in_flight: Option<u64>,
}

#[derive(Debug, Clone)]
enum Question {
    /// What do the parts of the range add up to?
    Sums(Range),
    /// What are the rows of the range?
    Rows(Range),
}

impl Repair {
    pub(crate) fn is_running(&self) -> bool {
        self.job.is_some()
    }

    /// Drops the repair under way; the next comparison finds what is left to be done.
    pub(crate) fn give_up_job(&mut self) {
        self.job = None;
    }

    /// Learns that a question was refused.
    pub(crate) fn fail(&mut self, id: u64) {
        if self.job.as_ref().is_some_and(|job| job.in_flight == Some(id)) {
            self.job = None;
        }
    }

    /// Takes the question that an answer belongs to.
    fn answered(&mut self, door: char, reply_to: Option<&str>) -> Option<Question> {
        let job = self.job.as_mut()?;
        let asked = job.in_flight?;
        let id = reply_to?.strip_prefix(door)?.parse::<u64>().ok()?;
        if id != asked {
            return None;
        }
        job.in_flight = None;
        job.questions.pop()
    }
}

impl Replica {
    /// Returns how many rows differed from the server's without a reason and were replaced, in the device's life.
    #[must_use]
    pub fn repairs(&self) -> u64 {
        self.repair.repaired
    }

    /// Compares what the device holds with what a caught-up page says that it must hold.
    pub(crate) fn compare(&mut self, told: &[Checksum], seq: Seq) {
        let busy = self.queue.in_flight_len() > 0 || self.records.acked_len() > 0;
        let ahead = self.pull.ahead > seq || !self.pull.own.is_empty();
        if told.is_empty() || busy || ahead || self.pull.wanted || self.repair.is_running() {
            return;
        }
        let differing = self.differing(told);
        if differing.is_empty() {
            self.repair.rounds = 0;
            return;
        }
        self.repair.rounds = self.repair.rounds.saturating_add(1);
        // A single HTTP request cannot ask for parts.
        let snapshot = self.session.link != Link::Open && self.repair.rounds <= ROUNDS_MAX;
        if snapshot || self.repair.rounds == ROUNDS_MAX + 1 {
            self.repair.rounds = ROUNDS_MAX + 1;
            self.records.forget_versions();
            self.pull.restart(self.pull.order);
        } else if self.repair.rounds <= ROUNDS_MAX {
            let whole = |(kind, scope)| Question::Sums(Range { kind, scope, after: None, until: None });
            let questions = differing.into_iter().map(whole).collect();
            self.repair.job = Some(Job { questions, in_flight: None });
        }
    }

    /// The kinds and scopes whose sums differ.
    ///
    /// The scope of an own write is known only once a pull has told it, so that only a kind whose rows differ in all
    /// is looked into; a row without a scope may be of any, or of none. What is not told of has no rows.
    fn differing(&self, told: &[Checksum]) -> Vec<(KindName, ScopeName)> {
        let sums = &self.records.sums;
        let mut of_kinds: BTreeMap<&KindName, Sum> = BTreeMap::new();
        let mut scopes: BTreeMap<(&KindName, &ScopeName), Sum> = BTreeMap::new();
        let pulled = |kind: &KindName| {
            !kind.as_str().starts_with('$') && (self.data_types.is_empty() || self.data_types.contains(kind))
        };
        let anywhere = ScopeName::tenant();
        for (kind, scope) in sums.scopes().filter(|(kind, _)| pulled(kind)) {
            of_kinds.entry(kind).or_default();
            scopes.entry((kind, scope.unwrap_or(&anywhere))).or_default();
        }
        for one in told {
            let sum = Sum { count: one.count, sum: one.sum };
            let of_kind = of_kinds.entry(&one.kind).or_default();
            *of_kind = of_kind.add(sum);
            scopes.insert((&one.kind, &one.scope), sum);
        }
        let differs = |kind: &KindName, scope: &ScopeName, sum: Sum| {
            let same = sums.of(kind, Some(scope)) == sum && sums.of(kind, None) == Sum::default();
            of_kinds.get(kind) != Some(&sums.of_kind(kind)) && !same
        };
        let differing = scopes.into_iter().filter(|((kind, scope), sum)| differs(kind, scope, *sum));
        differing.map(|((kind, scope), _)| (kind.clone(), scope.clone())).collect()
    }

    /// Returns the next question of a repair.
    pub(crate) fn next_repair(&mut self) -> Option<String> {
        let job = self.repair.job.as_mut().filter(|job| job.in_flight.is_none())?;
        let question = job.questions.last()?;
        let id = self.session.message_id();
        job.in_flight = Some(id);
        let sync_id = self.session.sync_id();
        Some(match question {
            Question::Sums(range) => ClientMessage::RequestChecksums { sync_id, range, parts: PARTS }
                .encode_with_id(&format!("k{id}")),
            Question::Rows(range) => {
                let data_types = std::slice::from_ref(&range.kind);
                let cursor = self.pull.cursor.as_deref();
                ClientMessage::RequestServerData { sync_id, data_types, cursor, range: Some(range) }
                    .encode_with_id(&format!("r{id}"))
            }
        })
    }

    pub(crate) fn handle_sums(&mut self, told: &Checksums, reply_to: Option<&str>) {
        let Some(Question::Sums(asked)) = self.repair.answered('k', reply_to) else { return };
        let Some(job) = &mut self.repair.job else { return };
        for part in told.parts.iter().rev() {
            let range = Range { after: part.after.clone(), until: part.until.clone(), ..asked.clone() };
            let own = self.records.sum_in(&range);
            if own == (Sum { count: part.count, sum: part.sum }) {
                continue;
            }
            // A part that is the whole cannot be cut any further.
            let small = part.count.max(own.count) <= ROWS_MAX || range == asked;
            job.questions.push(if small { Question::Rows(range) } else { Question::Sums(range) });
        }
        self.end_repair();
    }

    /// Ends a repair of which all was asked: the next comparison tells whether it was enough.
    fn end_repair(&mut self) {
        if self.repair.job.as_ref().is_some_and(|job| job.questions.is_empty()) {
            self.repair.job = None;
            self.pull.want();
        }
    }

    pub(crate) fn handle_range(&mut self, rows: Rows, reply_to: Option<&str>) {
        let Some(Question::Rows(mut range)) = self.repair.answered('r', reply_to) else { return };
        let last = rows.changes.last().map(|change| change.id.clone());
        if rows.has_more {
            let rest = Range { after: last.clone(), ..range.clone() };
            if let (Some(job), Some(_)) = (&mut self.repair.job, &last) {
                job.questions.push(Question::Rows(rest));
            }
            range.until = last.or(range.after.clone());
        }
        let replaced = self.replace_rows(&range, rows);
        if replaced > 0 {
            self.repair.repaired += replaced;
            let Range { kind, scope, .. } = range;
            self.events.push(Event::Repaired { kind, scope, rows: replaced });
        }
        self.end_repair();
    }

    /// Puts the server's rows of a range in the place of the device's; returns how many differed.
    fn replace_rows(&mut self, range: &Range, rows: Rows) -> u64 {
        let told: BTreeSet<RecordId> = rows.changes.iter().map(|change| change.id.clone()).collect();
        let here = self.records.in_range(range).map(|(id, _)| id.clone());
        let surplus: Vec<RecordId> = here.filter(|id| !told.contains(id)).collect();
        let mut replaced = 0;
        for id in surplus {
            replaced += self.replace_row(range, id, None, rows.seq);
        }
        for change in rows.changes.into_iter().filter(|change| change.kind == range.kind) {
            let id = change.id.clone();
            let telling = telling(change, rows.hlc);
            replaced += self.replace_row(range, id, Some(telling), rows.seq);
        }
        replaced
    }

    fn replace_row(&mut self, range: &Range, id: RecordId, told: Option<Telling>, seq: Seq) -> u64 {
        let key = (range.kind.clone(), id);
        if !self.records.replace(&key, told, seq) {
            return 0;
        }
        let (kind, id) = key;
        self.events.push(Event::Changed { kind, id });
        1
    }
}

fn telling(change: Change, hlc: Hlc) -> Telling {
    let Change { version, fields, scope, .. } = change;
    Telling { version, change: ChangeKind::Put, fields, scope: Some(scope), hlc }
}
