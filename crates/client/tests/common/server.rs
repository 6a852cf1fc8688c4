//! A server of a few rules, for histories at random: fields are won by whoever comes last, a delete beats a patch that
//! did not see it. Every connection has its own queue of deltas and its own queue of acks, so that they may overtake
//! each other and the pages.
#![allow(dead_code, clippy::unwrap_used, unreachable_pub, reason = "a part of tests")]

use std::collections::{BTreeMap, VecDeque};
use std::fmt::Write as _;

use driftline_model::Limits;
use driftline_protocol::{Inbound, Item, ItemOp, decode};

use crate::common::{SYNC_ID, ack, page, row};

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

    fn row(&self, id: &str, from: u64) -> String {
        match (self.deleted, self.put_fv > from) {
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
    results: BTreeMap<(usize, String), String>,
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
    items: u64,
}

impl Server {
    pub fn new(devices: usize, busy_every: u64) -> Self {
        let connections = (0..devices).map(|_| None).collect();
        Self { state: State::default(), epoch: 1, connections, busy_every, items: 0 }
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
        let message = decode(text.as_bytes(), &Limits::default()).unwrap();
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
                            "policies":{{}},"expires_at":""}}}}"#
                    ),
                );
            }
            Inbound::SyncData(push) => {
                let items = push.items.into_iter().map(Result::unwrap).enumerate();
                let results: Vec<_> = items.map(|(at, item)| self.decide(device, at, &item)).collect();
                let text = ack(push.batch_seq.unwrap(), self.state.seq, &results.join(","));
                self.connections[device].as_mut().unwrap().acks.push_back(text);
            }
            Inbound::RequestServerData(pull) => match self.resync(false, pull.cursor.as_deref()) {
                Some(resync) => self.tell(device, resync),
                None => self.page(device, pull.cursor.as_deref(), &reply_to),
            },
            _ => {}
        }
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
        let mut rows: Vec<_> = self.state.records.iter().filter(|(_, record)| record.version > at).collect();
        rows.sort_by_key(|(_, record)| record.version);
        let has_more = rows.len() > 2;
        rows.truncate(2);
        let at = rows.last().map_or(at, |(_, record)| record.version);
        let text: Vec<_> = rows.into_iter().map(|(id, record)| record.row(id, from)).collect();
        let seq = self.state.seq;
        let cursor = if has_more {
            format!("{}/{from}/{at}/{start}", self.epoch)
        } else {
            format!("{}/{seq}/{seq}/{seq}", self.epoch)
        };
        let text = page(&text.join(","), seq, &cursor, has_more);
        let reply = format!(r#"{{"reply_to":"{reply_to}","#);
        let connection = self.connections[device].as_mut().unwrap();
        connection.accounted = seq;
        connection.changes.retain(|(at, _)| *at > seq);
        connection.down.push_back(text.replacen('{', &reply, 1));
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
        connection.down.push_back(format!(
            r#"{{"type":"server_delta","prev_seq":{prev_seq},"seq":{seq},"cursor":"{epoch}/{seq}/{seq}/{seq}",
                "hlc":"000000000000-0000","changes":[{}]}}"#,
            rows.join(",")
        ));
    }

    /// Drops the tombstones, and with them the cursors that are older.
    pub fn purge(&mut self) {
        self.state.records.retain(|_, record| !record.deleted);
        self.state.floor = self.state.seq;
    }

    pub fn restore(&mut self, state: State) {
        self.state = state;
        self.epoch += 1;
        self.connections.iter_mut().for_each(|connection| *connection = None);
    }

    fn decide(&mut self, device: usize, at: usize, item: &Item) -> String {
        self.items += 1;
        if self.busy_every > 0 && self.items.is_multiple_of(self.busy_every) {
            return format!(r#"{{"index":{at},"code":"busy"}}"#);
        }
        let op = (device, item.op_id.as_ref().unwrap().to_string());
        if let Some(first) = self.state.results.get(&op) {
            return format!(r#"{{"index":{at},"duplicate":true,{first}}}"#);
        }
        let before = self.state.seq;
        let result = self.apply(device, item);
        if !result.contains("client_ahead") {
            self.state.results.insert(op, result.clone());
        }
        if self.state.seq > before {
            let id = item.id.as_str();
            let row = self.state.records[id].row(id, before);
            for (other, connection) in self.connections.iter_mut().enumerate() {
                if let Some(connection) = connection.as_mut().filter(|connection| connection.started) {
                    connection.changes.push_back((self.state.seq, (other != device).then(|| row.clone())));
                }
            }
        }
        format!(r#"{{"index":{at},{result}}}"#)
    }

    fn apply(&mut self, device: usize, item: &Item) -> String {
        let (base, n, seq) = (item.base_version.number(), item.n.unwrap(), self.state.seq + 1);
        let gone = r#""code":"gone""#.to_owned();
        let Some(record) = self.state.records.get_mut(item.id.as_str()) else {
            if item.op != ItemOp::Create {
                return gone;
            }
            let mut record = Record { version: seq, put_fv: seq, ..Record::default() };
            record.write(item, device, seq);
            self.state.records.insert(item.id.to_string(), record);
            self.state.seq = seq;
            return format!(r#""code":"applied","version":{seq}"#);
        };
        if base > record.version {
            return r#""code":"client_ahead""#.to_owned();
        }
        let known = record.version <= base || record.deleted && record.del_device == device;
        let overtaken = record.fields.values().any(|field| field.device == device && field.n > n);
        let concurrent = record.fields.values().any(|field| field.fv > base && field.device != device);
        let hidden = record.deleted && !record.fields.is_empty();
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
                record.write(item, device, seq);
            }
            (_, false) => record.write(item, device, seq),
        }
        (record.version, self.state.seq) = (seq, seq);
        let unexpected = overtaken || hidden && !known || item.op == ItemOp::Create && !known;
        // What others wrote to other fields reaches the device by pages and deltas too: the record may be left out.
        if unexpected || concurrent && seq.is_multiple_of(2) {
            return record.canonical("merged");
        }
        format!(r#""code":"{}","version":{seq}"#, if concurrent { "merged" } else { "applied" })
    }
}

impl Record {
    fn write(&mut self, item: &Item, device: usize, seq: u64) {
        let n = item.n.unwrap();
        for (name, value) in item.fields.iter() {
            let own_newer = self.fields.get(name).is_some_and(|field| field.device == device && field.n > n);
            if !own_newer {
                self.fields.insert(name.to_owned(), Field { value: value.to_owned(), fv: seq, device, n });
            }
        }
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
