//! A server of a few rules, for histories at random: fields are won by the later clock, counters add up, a delete beats
//! a patch that did not see it, and a record may be hidden from a device. Every connection has its own queue of deltas and its own queue of acks, so that they may overtake
//! each other and the pages.
#![allow(dead_code, clippy::unwrap_used, unreachable_pub, reason = "a part of tests")]

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fmt::Write as _;

use driftline_model::{Hlc, Limits, RecordId, Seq};
use driftline_protocol::{Encoding, Inbound, Item, ItemOp, Range, decode, row_sum};

use crate::common::{SYNC_ID, ack, note, page, page_with_sums, row};

/// How notes merge.
const POLICY: &str = r#"{"note":{"strategy":"field_merge","fields":{"n":{"rule":"counter"}}}}"#;

#[derive(Clone, Default)]
pub struct Record {
    pub version: u64,
    pub deleted: bool,
    del_fv: u64,
    del_device: usize,
    put_fv: u64,
    fields: BTreeMap<String, Field>,
}

#[derive(Clone)]
struct Field {
    value: String,
    fv: u64,
    device: usize,
    n: u64,
    hlc: Hlc,
}

impl Record {
    pub fn text(&self, from: u64) -> String {
        let mut out = String::from("{");
        for (name, field) in self.fields.iter().filter(|(_, field)| field.fv > from) {
            let comma = if out.len() > 1 { "," } else { "" };
            write!(out, r#"{comma}"{name}":{}"#, field.value).unwrap();
        }
        out.push('}');
        out
    }

    fn row(&self, id: &str, from: u64, entered: u64) -> String {
        match (self.deleted, self.put_fv.max(entered) > from) {
            (true, _) => row(id, self.version, "delete", "{}"),
            (false, true) => row(id, self.version, "put", &self.text(0)),
            (false, false) => row(id, self.version, "patch", &self.text(from)),
        }
    }
}

/// What a restore brings back.
#[derive(Clone, Default)]
pub struct State {
    pub seq: u64,
    pub records: BTreeMap<String, Record>,
    /// The number and the first answer by the device's name for the change.
    results: BTreeMap<(usize, String), (u64, String)>,
    /// Per device, the numbers that came, and up to which it has heard the answers.
    numbers: BTreeMap<usize, BTreeSet<u64>>,
    heard: BTreeMap<usize, u64>,
    /// Where a record left a device's scopes, and where it came back into them.
    left: BTreeMap<(usize, String), u64>,
    entered: BTreeMap<(usize, String), u64>,
    /// The highest clock of all writes.
    hlc: Hlc,
    /// Tombstones up to here are gone.
    floor: u64,
}

#[derive(Default)]
pub struct Connection {
    pub up: VecDeque<String>,
    pub down: VecDeque<String>,
    acks: VecDeque<String>,
    /// Changes that were not told: the seq, and the row unless it is the device's own.
    changes: VecDeque<(u64, Option<String>)>,
    accounted: u64,
    started: bool,
}

pub struct Server {
    pub state: State,
    pub epoch: u64,
    pub connections: Vec<Option<Connection>>,
    /// Every so many items one is `busy`; 0: none.
    pub busy_every: u64,
    /// Changes and results are told as whole records.
    pub whole_rows: bool,
    /// A field that every create has to write.
    pub required: Option<&'static str>,
    /// Where the epoch began, if pages tell it.
    pub begun: Option<u64>,
    items: u64,
}

impl Server {
    pub fn new(devices: usize, busy_every: u64) -> Self {
        let connections = (0..devices).map(|_| None).collect();
        let state = State::default();
        Self {
            state,
            epoch: 1,
            connections,
            busy_every,
            whole_rows: false,
            required: None,
            begun: None,
            items: 0,
        }
    }

    pub fn epoch_text(&self) -> String {
        format!("{:08x}", self.epoch)
    }

    pub fn connect(&mut self, device: usize) {
        self.connections[device] = Some(Connection::default());
    }

    /// Takes the next message of a device.
    pub fn receive(&mut self, device: usize) {
        let Some(connection) = &mut self.connections[device] else { return };
        let Some(text) = connection.up.pop_front() else { return };
        let message = decode(Encoding::Json, text.as_bytes(), &Limits::default()).unwrap();
        let reply_to = message.id.unwrap_or_default();
        match message.body {
            Inbound::StartSync(start) => {
                let stale_epoch = start.epoch.is_some_and(|epoch| epoch.to_string() != self.epoch_text());
                if let Some(resync) = self.resync(stale_epoch, start.cursor.as_deref()) {
                    return self.tell(device, resync);
                }
                let (epoch, seq) = (self.epoch_text(), self.state.seq);
                let connection = self.connections[device].as_mut().unwrap();
                (connection.started, connection.accounted) = (true, seq);
                connection.changes.clear();
                self.tell(
                    device,
                    format!(
                        r#"{{"type":"sync_session_started","session_info":{{"sync_id":"{SYNC_ID}","epoch":"{epoch}",
                            "seq":{seq},"acked_batches":[],"max_batch_items":3,"max_message_bytes":1048576,
                            "policies":{POLICY},"expires_at":""}}}}"#
                    ),
                );
            }
            Inbound::SyncData(push) => {
                self.hear(device, push.acked_n.unwrap());
                let items = push.items.into_iter().map(Result::unwrap).enumerate();
                let results: Vec<_> = items.map(|(at, item)| self.decide(device, at, &item)).collect();
                let text = ack(push.batch_seq.unwrap(), self.state.seq, &results.join(","));
                let text = self.with_clock(&text);
                self.connections[device].as_mut().unwrap().acks.push_back(text);
            }
            Inbound::RequestChecksums(asked) => self.sums(device, &asked.range, &reply_to),
            Inbound::RequestServerData(pull) if pull.range.is_some() => {
                self.range(device, &pull.range.unwrap(), &reply_to);
            }
            Inbound::RequestServerData(pull) => match self.resync(false, pull.cursor.as_deref()) {
                Some(resync) => self.tell(device, resync),
                None => self.page(device, pull.cursor.as_deref(), &reply_to),
            },
            _ => {}
        }
    }

    /// Learns up to which number a device has heard the answers; it cannot have heard any to what never came.
    fn hear(&mut self, device: usize, acked_n: u64) {
        let last_n = self.state.numbers.get(&device).and_then(|numbers| numbers.last().copied()).unwrap_or(0);
        let heard = self.state.heard.entry(device).or_default();
        *heard = acked_n.min(last_n).max(*heard);
    }

    fn tell(&mut self, device: usize, text: String) {
        self.connections[device].as_mut().unwrap().down.push_back(text);
    }

    fn resync(&self, stale_epoch: bool, cursor: Option<&str>) -> Option<String> {
        let (epoch, _, _, start) = cursor.map_or((self.epoch, 0, 0, u64::MAX), parse_cursor);
        let reason = if stale_epoch || epoch != self.epoch {
            "epoch_changed"
        } else if start < self.state.floor {
            "cursor_expired"
        } else {
            return None;
        };
        let epoch = self.epoch_text();
        Some(format!(
            r#"{{"type":"resync_required","reason":"{reason}","keep_queue":true,"first":"","epoch":"{epoch}"}}"#
        ))
    }

    fn page(&mut self, device: usize, cursor: Option<&str>, reply_to: &str) {
        let (_, from, at, start) = cursor.map_or((self.epoch, 0, 0, self.state.seq), parse_cursor);
        let mut rows = self.rows_after(device, from, at);
        let has_more = rows.len() > 2;
        rows.truncate(2);
        let at = rows.last().map_or(at, |(place, _)| *place);
        let text: Vec<_> = rows.into_iter().map(|(_, row)| row).collect();
        let seq = self.state.seq;
        let cursor = if has_more {
            format!("{}/{from}/{at}/{start}", self.epoch)
        } else {
            format!("{}/{seq}/{seq}/{seq}", self.epoch)
        };
        let text = match has_more {
            true => page(&text.join(","), seq, &cursor, true),
            false => page_with_sums(&text.join(","), seq, &cursor, &self.checksum(device)),
        };
        let begun = self.begun.map_or(String::new(), |begun| format!(r#""epoch_seq":{begun},"#));
        let reply = format!(r#"{{"reply_to":"{reply_to}",{begun}"#);
        let text = self.with_clock(&text);
        let connection = self.connections[device].as_mut().unwrap();
        connection.accounted = seq;
        connection.changes.retain(|(at, _)| *at > seq);
        connection.down.push_back(text.replacen('{', &reply, 1));
    }

    /// What a device that was caught up at `from` is told after `at`, by its place in the sequence.
    fn rows_after(&self, device: usize, from: u64, at: u64) -> Vec<(u64, String)> {
        let mut rows = Vec::new();
        for (id, record) in &self.state.records {
            let key = (device, id.clone());
            match self.state.left.get(&key) {
                Some(left) => rows.push((*left, row(id, *left, "evict", "{}"))),
                None => {
                    let entered = self.state.entered.get(&key).copied().unwrap_or(0);
                    let place = record.version.max(entered);
                    let entered = if self.whole_rows { u64::MAX } else { entered };
                    rows.push((place, record.row(id, from, entered)));
                }
            }
        }
        rows.retain(|(place, _)| *place > at);
        rows.sort();
        rows
    }

    pub fn is_hidden(&self, device: usize, id: &str) -> bool {
        self.state.left.contains_key(&(device, id.to_owned()))
    }

    /// Takes a record out of a device's scopes, or puts it back.
    pub fn toggle(&mut self, device: usize, id: &str) {
        if self.state.records.contains_key(id) {
            self.state.seq += 1;
            let key = (device, id.to_owned());
            if self.state.left.remove(&key).is_some() {
                self.state.entered.insert(key, self.state.seq);
            } else {
                self.state.left.insert(key, self.state.seq);
            }
        }
    }

    /// Forgets to tell a device of the newest change.
    pub fn lose_change(&mut self, device: usize) {
        if let Some(connection) = &mut self.connections[device] {
            connection
                .changes
                .iter_mut()
                .rev()
                .find(|(_, row)| row.is_some())
                .into_iter()
                .for_each(|change| change.1 = None);
        }
    }

    // Sums.

    fn visible(&self, device: usize) -> Vec<(&String, &Record)> {
        let live = self.state.records.iter().filter(|(_, record)| !record.deleted);
        live.filter(|(id, _)| !self.is_hidden(device, id)).collect()
    }

    fn sum(rows: &[(&String, &Record)]) -> String {
        let sum = |(id, record): &(&String, &Record)| {
            row_sum(&note(), &RecordId::new(id).unwrap(), Seq::new(record.version))
        };
        let total = rows.iter().map(sum).fold(0, u64::wrapping_add);
        format!(r#""count":{},"sum":"{total:016x}""#, rows.len())
    }

    fn checksum(&self, device: usize) -> String {
        format!(r#"{{"scope":"tenant","kind":"note",{}}}"#, Self::sum(&self.visible(device)))
    }

    fn in_range(&self, device: usize, range: &Range) -> Vec<(&String, &Record)> {
        let mut rows = self.visible(device);
        rows.retain(|(id, _)| {
            range.after.as_ref().is_none_or(|after| after.as_str() < id.as_str())
                && range.until.as_ref().is_none_or(|until| id.as_str() <= until.as_str())
        });
        rows
    }

    fn sums(&mut self, device: usize, range: &Range, reply_to: &str) {
        let rows = self.in_range(device, range);
        let (first, second) = rows.split_at(rows.len() / 2);
        let bound =
            |name: &str, id: Option<&str>| id.map_or(String::new(), |id| format!(r#""{name}":"{id}","#));
        let after = bound("after", range.after.as_ref().map(RecordId::as_str));
        let until = bound("until", range.until.as_ref().map(RecordId::as_str));
        let middle = first.last().map(|(id, _)| id.as_str());
        let parts = match middle {
            None => format!("{{{after}{until}{}}}", Self::sum(&rows)),
            Some(_) => format!(
                "{{{after}{}{}}},{{{}{until}{}}}",
                bound("until", middle),
                Self::sum(first),
                bound("after", middle),
                Self::sum(second)
            ),
        };
        let seq = self.state.seq;
        self.tell(
            device,
            format!(
                r#"{{"type":"checksums","reply_to":"{reply_to}","seq":{seq},"range":{{"kind":"note","scope":"tenant"}},
                    "parts":[{parts}]}}"#
            ),
        );
    }

    fn range(&mut self, device: usize, range: &Range, reply_to: &str) {
        let rows = self.in_range(device, range);
        let text: Vec<_> = rows.iter().take(2).map(|(id, record)| record.row(id, 0, 0)).collect();
        let text = page(&text.join(","), self.state.seq, "", rows.len() > 2);
        let reply = format!(r#"{{"reply_to":"{reply_to}","range":{{"kind":"note","scope":"tenant"}},"#);
        self.tell(device, text.replacen('{', &reply, 1));
    }

    /// Sends the oldest ack.
    pub fn send_ack(&mut self, device: usize) {
        let Some(connection) = &mut self.connections[device] else { return };
        connection.down.extend(connection.acks.pop_front());
    }

    /// Sends up to `count` changes as one delta.
    pub fn send_delta(&mut self, device: usize, count: usize) {
        let epoch = self.epoch;
        let Some(connection) = &mut self.connections[device] else { return };
        let changes: Vec<_> = connection.changes.drain(..count.min(connection.changes.len())).collect();
        let Some((seq, _)) = changes.last() else { return };
        let prev_seq = std::mem::replace(&mut connection.accounted, *seq);
        let rows: Vec<_> = changes.iter().filter_map(|(_, row)| row.clone()).collect();
        if rows.is_empty() {
            return;
        }
        let text = format!(
            r#"{{"type":"server_delta","prev_seq":{prev_seq},"seq":{seq},"cursor":"{epoch}/{seq}/{seq}/{seq}",
                "hlc":"000000000000-0000","changes":[{}]}}"#,
            rows.join(",")
        );
        let text = self.with_clock(&text);
        self.tell(device, text);
    }

    /// Puts the highest clock in the place of the one that messages have by themselves.
    fn with_clock(&self, text: &str) -> String {
        text.replace(&Hlc::ZERO.to_string(), &self.state.hlc.to_string())
    }

    /// Drops the tombstones, and with them the cursors that are older.
    pub fn purge(&mut self) {
        self.state.records.retain(|_, record| !record.deleted);
        self.state.floor = self.state.seq;
    }

    pub fn restore(&mut self, state: State) {
        self.begun = self.begun.map(|_| state.seq);
        self.state = state;
        self.epoch += 1;
        self.connections.iter_mut().for_each(|connection| *connection = None);
    }

    fn decide(&mut self, device: usize, at: usize, item: &Item) -> String {
        self.items += 1;
        if self.busy_every > 0 && self.items.is_multiple_of(self.busy_every) {
            return format!(r#"{{"index":{at},"code":"busy"}}"#);
        }
        let (op, n) = ((device, item.op_id.as_ref().unwrap().to_string()), item.n.unwrap());
        match self.state.results.get(&op) {
            Some((known, first)) if *known == n => {
                return format!(r#"{{"index":{at},"duplicate":true,{first}}}"#);
            }
            Some(_) => return format!(r#"{{"index":{at},"code":"device_id_reused"}}"#),
            None => {}
        }
        if self.state.numbers.get(&device).is_some_and(|numbers| numbers.contains(&n)) {
            return format!(r#"{{"index":{at},"code":"device_id_reused"}}"#);
        }
        if self.state.heard.get(&device).is_some_and(|heard| n <= *heard) {
            return format!(r#"{{"index":{at},"code":"too_old"}}"#);
        }
        let before = self.state.seq;
        let result = self.apply(device, item);
        if !result.contains("client_ahead") {
            self.state.results.insert(op, (n, result.clone()));
            self.state.numbers.entry(device).or_default().insert(n);
        }
        if self.state.seq > before {
            let id = item.id.as_str();
            let entered = if self.whole_rows { u64::MAX } else { 0 };
            let row = self.state.records[id].row(id, before, entered);
            for (other, connection) in self.connections.iter_mut().enumerate() {
                if let Some(connection) = connection.as_mut().filter(|connection| connection.started) {
                    let told = other != device && !self.state.left.contains_key(&(other, id.to_owned()));
                    connection.changes.push_back((self.state.seq, told.then(|| row.clone())));
                }
            }
        }
        format!(r#"{{"index":{at},{result}}}"#)
    }

    fn apply(&mut self, device: usize, item: &Item) -> String {
        let (n, seq) = (item.n.unwrap(), self.state.seq + 1);
        let base = if item.op == ItemOp::Create { 0 } else { item.base_version.number() };
        let gone = r#""code":"gone""#.to_owned();
        if item.op == ItemOp::Create && self.required.is_some_and(|name| item.fields.get(name).is_none()) {
            return r#""code":"invalid""#.to_owned();
        }
        self.state.hlc = self.state.hlc.max(item.hlc.unwrap());
        if self.is_hidden(device, item.id.as_str()) {
            return if item.op == ItemOp::Create { r#""code":"forbidden""#.to_owned() } else { gone };
        }
        let Some(record) = self.state.records.get_mut(item.id.as_str()) else {
            if item.op != ItemOp::Create {
                return gone;
            }
            let mut record = Record { version: seq, put_fv: seq, ..Record::default() };
            record.write(item, device, (seq, 0));
            let told = record.canonical("applied");
            self.state.records.insert(item.id.to_string(), record);
            self.state.seq = seq;
            if self.whole_rows {
                return told;
            }
            return format!(r#""code":"applied","version":{seq}"#);
        };
        if base > record.version {
            return r#""code":"client_ahead""#.to_owned();
        }
        let known = record.version <= base || record.deleted && record.del_device == device;
        let overtaken = record.fields.values().any(|field| field.device == device && field.n > n);
        let concurrent = record.fields.values().any(|field| field.fv > base && field.device != device);
        let hidden = record.deleted && !record.fields.is_empty();
        let mut lost = false;
        match (item.op, record.deleted) {
            (ItemOp::Patch, true) if base >= record.del_fv => return gone,
            (ItemOp::Delete, true) => return format!(r#""code":"noop","version":{}"#, record.version),
            (ItemOp::Patch, true) => return record.canonical("superseded"),
            (ItemOp::Delete, false) if overtaken => return record.canonical("superseded"),
            (ItemOp::Delete, false) => {
                (record.deleted, record.del_fv, record.del_device) = (true, seq, device);
            }
            (ItemOp::Create | ItemOp::Restore, true) => {
                (record.deleted, record.put_fv) = (false, seq);
                lost = record.write(item, device, (seq, base));
            }
            (_, false) => lost = record.write(item, device, (seq, base)),
        }
        (record.version, self.state.seq) = (seq, seq);
        let unexpected =
            self.whole_rows || lost || overtaken || hidden && !known || item.op == ItemOp::Create && !known;
        // What others wrote to other fields reaches the device by pages and deltas too: the record may be left out.
        if unexpected || concurrent && seq.is_multiple_of(2) {
            return record.canonical("merged");
        }
        format!(r#""code":"{}","version":{seq}"#, if concurrent { "merged" } else { "applied" })
    }
}

impl Record {
    /// Writes what an item may write; tells whether anything of it lost.
    fn write(&mut self, item: &Item, device: usize, (seq, base): (u64, u64)) -> bool {
        let (n, hlc) = (item.n.unwrap(), item.hlc.unwrap());
        let mut lost = false;
        for (name, value) in item.fields.iter() {
            let loses = self.fields.get(name).is_some_and(|field| match field.device == device {
                true => field.n > n,
                false => field.fv > base && (field.hlc, field.device) > (hlc, device),
            });
            lost |= loses;
            if !loses {
                let hlc = self.fields.get(name).map_or(hlc, |field| field.hlc.max(hlc));
                self.fields
                    .insert(name.to_owned(), Field { value: value.to_owned(), fv: seq, device, n, hlc });
            }
        }
        for (name, by) in item.intents.iter().flat_map(|asked| &asked.increments) {
            let count = self.fields.get(&**name).map_or(0, |field| field.value.parse::<i64>().unwrap()) + by;
            self.fields.insert(name.to_string(), Field { value: count.to_string(), fv: seq, device, n, hlc });
        }
        lost
    }

    fn canonical(&self, code: &str) -> String {
        let (version, deleted) = (self.version, self.deleted);
        let fields = if deleted { "{}".to_owned() } else { self.text(0) };
        format!(
            r#""code":"{code}","version":{version},"record":{{"version":{version},"deleted":{deleted},"fields":{fields}}}"#
        )
    }
}

fn parse_cursor(text: &str) -> (u64, u64, u64, u64) {
    let mut numbers = text.split('/').map(|number| number.parse().unwrap());
    let mut next = || numbers.next().unwrap();
    (next(), next(), next(), next())
}
