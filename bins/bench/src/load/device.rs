//! A device that pushes: it makes batches, remembers its rows and reads the acknowledgements.

use std::collections::VecDeque;
use std::io::Write;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Result, ensure};
use tokio::time::Instant;

use super::clock::{Clock, Uuid, write_stamp};
use super::dialect::Answer;
use super::drive::{Exchange, Settled};
use super::now::unix_ms;
use super::options::Dialect;
use super::records::Bodies;
use super::tally::Codes;
use crate::rng::Rng;

/// Result codes of items that the server took.
const DONE: [&str; 5] = ["applied", "merged", "noop", "superseded", "conflict_pending"];

/// A record that the device has created and may touch again.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Row {
    id: Uuid,
    /// Its version in the last acknowledgement.
    version: u64,
}

/// What is the same for all batches of a device.
#[derive(Debug, Clone)]
pub(crate) struct Profile {
    pub(crate) dialect: Dialect,
    pub(crate) kind: String,
    pub(crate) sync_id: String,
    /// Items in a batch.
    pub(crate) items: usize,
    pub(crate) bodies: Arc<Bodies>,
}

/// What an item of a batch in flight does.
#[derive(Debug, Clone, Copy)]
enum Touch {
    Create(Uuid),
    /// Patches the device's own row at this index.
    Patch(usize),
    /// Patches a shared row from a base that the other device has meanwhile passed.
    Contest,
}

/// A batch in flight.
#[derive(Debug)]
struct Batch {
    key: String,
    due: Instant,
    first_n: u64,
    touches: Vec<Touch>,
}

/// What the items of a batch do.
#[derive(Debug)]
enum Mix {
    /// All of them create.
    Creates,
    /// Half of them create, half patch an earlier row; a share of all is contested.
    Halves { contested: Arc<[Row]>, share: f64 },
}

/// A device and its unanswered batches.
#[derive(Debug)]
pub(crate) struct Device {
    profile: Profile,
    mix: Mix,
    rng: Rng,
    clock: Clock,
    rows: Vec<Row>,
    /// The last `n` given to an item; the next one is greater.
    last_n: u64,
    batch_seq: u64,
    in_flight: VecDeque<Batch>,
    patch_next: bool,
    contested_due: f64,
    contested_next: usize,
}

impl Device {
    /// Makes a device that only creates, until [`Device::mix`] gives it more to do.
    pub(crate) fn new(profile: Profile, rng: Rng) -> Self {
        Device {
            profile,
            mix: Mix::Creates,
            rng,
            clock: Clock::default(),
            rows: Vec::new(),
            last_n: 0,
            batch_seq: 0,
            in_flight: VecDeque::new(),
            patch_next: false,
            contested_due: 0.0,
            contested_next: 0,
        }
    }

    /// Gives up the rows, for others to contest.
    pub(crate) fn take_rows(&mut self) -> Arc<[Row]> {
        std::mem::take(&mut self.rows).into()
    }

    /// Lets half of the further items patch, and `share` of all items patch rows of `contested`.
    pub(crate) fn mix(&mut self, contested: Arc<[Row]>, share: f64) {
        self.mix = Mix::Halves { contested, share };
    }

    /// Chooses what the next item does: the row it touches, and that row's version.
    fn choose(&mut self, stamp: u64) -> (Touch, Row) {
        if let Mix::Halves { contested, share } = &self.mix {
            self.contested_due += share;
            if self.contested_due >= 1.0 && !contested.is_empty() {
                self.contested_due -= 1.0;
                self.contested_next = (self.contested_next + 1) % contested.len();
                return (Touch::Contest, contested[self.contested_next]);
            }
            self.patch_next = !self.patch_next;
            if self.patch_next && !self.rows.is_empty() {
                let index = self.rng.below(self.rows.len());
                return (Touch::Patch(index), self.rows[index]);
            }
        }
        let id = Uuid::new(stamp, &mut self.rng);
        (Touch::Create(id), Row { id, version: 0 })
    }

    /// Writes one item in the dialect's form; every item carries a whole body.
    fn write_item(&mut self, touch: Touch, row: Row, stamp: u64, out: &mut Vec<u8>) {
        let body = self.rng.below(usize::MAX);
        let body = self.profile.bodies.at(body);
        match self.profile.dialect {
            Dialect::Driftline => {
                out.extend_from_slice(br#"{"op_id":""#);
                Uuid::new(stamp, &mut self.rng).write(out);
                put(out, format_args!(r#"","n":{},"kind":"{}","id":""#, self.last_n, self.profile.kind));
                row.id.write(out);
                match touch {
                    Touch::Create(_) => out.extend_from_slice(br#"","op":"create","hlc":""#),
                    Touch::Patch(_) | Touch::Contest => {
                        let version = row.version;
                        put(out, format_args!(r#"","op":"patch","base_version":{version},"hlc":""#));
                    }
                }
                write_stamp(stamp, out);
                put(out, format_args!(r#"","fields":{body}}}"#));
            }
            Dialect::Plain => {
                out.extend_from_slice(br#"{"id":""#);
                row.id.write(out);
                // The stamp rises over all devices, so it serves as the version that must rise.
                put(out, format_args!(r#"","collection":"{}","ver":{stamp}"#, self.profile.kind));
                put(out, format_args!(r#","updated_at":{},"data":{body}}}"#, stamp >> 16));
            }
        }
    }

    /// The highest `n` that is acknowledged together with all before it.
    fn acked_n(&self) -> u64 {
        self.in_flight.front().map_or(self.last_n, |batch| batch.first_n - 1)
    }

    /// Takes the batch that a message answers: the one it names, or the oldest when it names none.
    fn take_batch(&mut self, answer: &Answer<'_>) -> Option<Batch> {
        let named = match self.profile.dialect {
            Dialect::Driftline => answer.reply_to.as_deref(),
            Dialect::Plain => answer.sync_id.as_deref(),
        };
        match named {
            Some(key) => {
                let at = self.in_flight.iter().position(|batch| batch.key == key)?;
                self.in_flight.remove(at)
            }
            None if answer.kind == "ack" => self.in_flight.pop_front(),
            None => None,
        }
    }

    /// Takes the versions of an acknowledged batch and counts its codes; gives the number of items done.
    fn settle(&mut self, batch: &Batch, answer: &Answer<'_>, results: &mut Codes) -> Result<u64> {
        let items = batch.touches.len();
        if self.profile.dialect == Dialect::Plain {
            let applied = answer.payload.as_ref().map_or(0, |payload| payload.applied);
            results.add("applied", applied);
            results.add("unchanged", (items as u64).saturating_sub(applied));
            let created = batch.touches.iter().filter_map(|touch| match touch {
                Touch::Create(id) => Some(Row { id: *id, version: 0 }),
                Touch::Patch(_) | Touch::Contest => None,
            });
            self.rows.extend(created);
            return Ok(items as u64);
        }
        ensure!(answer.results.len() == items, "{} results for {items} items", answer.results.len());
        let mut done = 0;
        for (touch, result) in batch.touches.iter().zip(&answer.results) {
            results.add(&result.code, 1);
            if !DONE.contains(&result.code.as_ref()) {
                continue;
            }
            done += 1;
            match (*touch, result.version) {
                (Touch::Create(id), Some(version)) => self.rows.push(Row { id, version }),
                (Touch::Patch(index), Some(version)) => {
                    self.rows[index].version = self.rows[index].version.max(version);
                }
                (Touch::Contest, _) | (_, None) => {}
            }
        }
        if let Some(hlc) = &answer.hlc {
            self.clock.observe(hlc);
        }
        Ok(done)
    }
}

impl Exchange for Device {
    fn request(&mut self, due: Instant, out: &mut Vec<u8>) {
        let now = unix_ms();
        let acked_n = self.acked_n();
        self.batch_seq += 1;
        let (seq, first_n) = (self.batch_seq, self.last_n + 1);
        let key = match self.profile.dialect {
            Dialect::Driftline => {
                let sync_id = &self.profile.sync_id;
                put(out, format_args!(r#"{{"type":"sync_data","id":"{seq}","sync_id":"{sync_id}","#));
                put(out, format_args!(r#""payload":{{"batch_seq":{seq},"acked_n":{acked_n},"batch":["#));
                seq.to_string()
            }
            Dialect::Plain => {
                let key = Uuid::new(self.clock.tick(now), &mut self.rng).text();
                put(out, format_args!(r#"{{"type":"batch","sync_id":"{key}","payload":{{"items":["#));
                key
            }
        };
        let mut touches = Vec::with_capacity(self.profile.items);
        for index in 0..self.profile.items {
            if index > 0 {
                out.push(b',');
            }
            self.last_n += 1;
            let stamp = self.clock.tick(now);
            let (touch, row) = self.choose(stamp);
            self.write_item(touch, row, stamp, out);
            touches.push(touch);
        }
        out.extend_from_slice(br#"]},"ts":"#);
        put(out, format_args!("{now}}}"));
        self.in_flight.push_back(Batch { key, due, first_n, touches });
    }

    fn in_flight(&self) -> usize {
        self.in_flight.len()
    }

    fn answer(&mut self, text: &[u8], results: &mut Codes) -> Result<Settled> {
        // Live changes of others are the bulk of what is not an answer; they are not worth a parse.
        if text.starts_with(br#"{"type":"server_delta""#) {
            return Ok(Settled::Nothing);
        }
        let answer = Answer::parse(text)?;
        if answer.kind != "ack" && answer.kind != "error" {
            return Ok(Settled::Nothing);
        }
        let batch = self.take_batch(&answer);
        match batch {
            Some(batch) if answer.kind == "ack" => {
                let items = self.settle(&batch, &answer, results)?;
                Ok(Settled::Done { due: batch.due, items })
            }
            None if answer.kind == "ack" => Ok(Settled::Nothing),
            batch => Ok(Settled::Refused {
                due: batch.map(|batch| batch.due),
                code: answer.fault().to_owned(),
                pause: answer.retry_after_ms.map(Duration::from_millis),
            }),
        }
    }
}

/// Appends formatted text; writing to memory does not fail.
fn put(out: &mut Vec<u8>, text: std::fmt::Arguments<'_>) {
    let _ = out.write_fmt(text);
}

#[cfg(test)]
#[path = "device_tests.rs"]
mod tests;
