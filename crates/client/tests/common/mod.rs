//! A replica with a clock of its own, fed with frames written by hand.
#![allow(
    dead_code,
    unreachable_pub,
    clippy::unwrap_used,
    reason = "a part of tests, of which each uses a part"
)]

use driftline_client::{Edit, Event, KindName, OpId, RecordId, Replica, SyncId, fields};

pub const SYNC_ID: &str = "00000000-0000-4000-8000-000000000001";

pub struct Device {
    pub replica: Replica,
    pub now_ms: u64,
    ops: u64,
}

impl Device {
    /// A device that has never synced, offline.
    pub fn new() -> Self {
        Self { replica: Replica::default(), now_ms: 1_000, ops: 0 }
    }

    /// A device that is connected and caught up at seq 10 of epoch 00000001, with the given rows.
    pub fn synced(rows: &str) -> Self {
        let mut device = Self::new();
        device.connect("00000001", 10);
        device.sent();
        device.page(rows, 10, "c10");
        device.events();
        device
    }

    /// A device as [`synced`](Self::synced), whose server decides notes by this policy.
    pub fn synced_under(policy: &str, rows: &str) -> Self {
        let mut device = Self::new();
        device.greet("00000001");
        device.one();
        device.started_under("00000001", 10, 100, &format!(r#"{{"note":{policy}}}"#));
        device.sent();
        device.page(rows, 10, "c10");
        device.events();
        device
    }

    /// Connects up to the open session; returns `start_sync`.
    pub fn connect(&mut self, epoch: &str, seq: u64) -> String {
        self.greet(epoch);
        let start = self.one();
        self.started(epoch, seq);
        start
    }

    pub fn greet(&mut self, epoch: &str) {
        self.replica.handle_connected(SyncId::new(SYNC_ID).unwrap());
        assert_eq!(self.replica.poll_transmit(), None, "the greeting comes first");
        self.frame(&format!(
            r#"{{"type":"connection_established","message":"","connection_id":"c","user_id":"u","role":"staff",
                "roles":["staff"],"device_id":"d","tenant":"t","features":{{"encodings":["json"],"compression":[],
                "max_batch_items":100,"max_message_bytes":1048576}},"heartbeat_interval_s":25,
                "heartbeat_timeout_s":50,"epoch":"{epoch}","hlc":"000000000000-0000"}}"#
        ));
    }

    pub fn started(&mut self, epoch: &str, seq: u64) {
        self.started_with(epoch, seq, 100);
    }

    pub fn started_with(&mut self, epoch: &str, seq: u64, max_batch_items: u64) {
        self.started_under(epoch, seq, max_batch_items, "{}");
    }

    /// The session starts and tells the policies, a JSON object by kind.
    pub fn started_under(&mut self, epoch: &str, seq: u64, max_batch_items: u64, policies: &str) {
        self.frame(&format!(
            r#"{{"type":"sync_session_started","sync_id":"{SYNC_ID}","session_info":{{"sync_id":"{SYNC_ID}",
                "epoch":"{epoch}","seq":{seq},"acked_batches":[],"max_batch_items":{max_batch_items},
                "max_message_bytes":1048576,"policies":{policies},"expires_at":"2026-01-01T00:00:00.000Z"}}}}"#
        ));
    }

    pub fn frame(&mut self, text: &str) {
        self.replica
            .handle_frame(text.as_bytes(), self.now_ms)
            .unwrap_or_else(|fault| panic!("{fault}: {text}"));
    }

    /// A page, the last of its pull.
    pub fn page(&mut self, rows: &str, seq: u64, cursor: &str) {
        self.frame(&page(rows, seq, cursor, false));
    }

    pub fn page_with_more(&mut self, rows: &str, seq: u64, cursor: &str) {
        self.frame(&page(rows, seq, cursor, true));
    }

    pub fn delta(&mut self, prev_seq: u64, seq: u64, rows: &str) {
        self.frame(&format!(
            r#"{{"type":"server_delta","prev_seq":{prev_seq},"seq":{seq},"cursor":"c{seq}",
                "hlc":"000000000000-0000","changes":[{rows}]}}"#
        ));
    }

    pub fn ack(&mut self, batch_seq: u64, seq: u64, results: &str) {
        self.frame(&ack(batch_seq, seq, results));
    }

    pub fn edit(&mut self, edit: Edit) -> u64 {
        self.ops += 1;
        let op_id = OpId::new(&format!("op{}", self.ops)).unwrap();
        self.replica.edit(edit, op_id, self.now_ms).unwrap()
    }

    pub fn group(&mut self, edits: Vec<Edit>) -> u64 {
        let ops = &mut self.ops;
        let op_id = || {
            *ops += 1;
            OpId::new(&format!("op{ops}")).unwrap()
        };
        self.replica.edit_group(edits, op_id, self.now_ms).unwrap()
    }

    /// Everything that the replica wants to send now.
    pub fn sent(&mut self) -> Vec<String> {
        std::iter::from_fn(|| self.replica.poll_transmit()).collect()
    }

    /// The one message that the replica wants to send.
    #[track_caller]
    pub fn one(&mut self) -> String {
        let mut sent = self.sent();
        assert_eq!(sent.len(), 1, "{sent:?}");
        sent.remove(0)
    }

    #[track_caller]
    pub fn nothing_sent(&mut self) {
        assert_eq!(self.sent(), [] as [String; 0]);
    }

    pub fn events(&mut self) -> Vec<Event> {
        std::iter::from_fn(|| self.replica.poll_event()).collect()
    }

    /// The fields that the user sees of a record of the kind `note`.
    pub fn shown(&self, id: &str) -> Option<String> {
        self.replica.view("note", id).map(|view| view.fields.as_str().to_owned())
    }

    /// The version of the server's copy.
    pub fn version(&self, id: &str) -> u64 {
        self.replica.body("note", id).map_or(0, |body| body.version.number())
    }
}

pub fn page(rows: &str, seq: u64, cursor: &str, has_more: bool) -> String {
    format!(
        r#"{{"type":"server_data","changes":[{rows}],"cursor":"{cursor}","seq":{seq},"hlc":"000000000000-0000",
            "has_more":{has_more}}}"#
    )
}

/// A page that tells what the device must hold.
pub fn page_with_sums(rows: &str, seq: u64, cursor: &str, checksums: &str) -> String {
    page(rows, seq, cursor, false).replacen(
        "\"changes\"",
        &format!("\"checksums\":[{checksums}],\"changes\""),
        1,
    )
}

pub fn ack(batch_seq: u64, seq: u64, results: &str) -> String {
    format!(
        r#"{{"type":"ack","of":"sync_data","status":"ok","replayed":false,"batch_seq":{batch_seq},"synced":1,
            "failed":0,"conflicts":0,"seq":{seq},"hlc":"000000000000-0000","results":[{results}]}}"#
    )
}

pub fn result(index: u64, code: &str, version: u64, more: &str) -> String {
    format!(r#"{{"index":{index},"code":"{code}","version":{version}{more}}}"#)
}

pub fn row(id: &str, version: u64, change: &str, fields: &str) -> String {
    format!(
        r#"{{"kind":"note","id":"{id}","scope":"tenant","version":{version},"change":"{change}","fields":{fields}}}"#
    )
}

pub fn put(id: &str, version: u64, fields: &str) -> String {
    row(id, version, "put", fields)
}

pub fn note() -> KindName {
    KindName::new("note").unwrap()
}

pub fn record(id: &str) -> RecordId {
    RecordId::new(id).unwrap()
}

pub fn create(id: &str, json: &str) -> Edit {
    Edit::create(note(), record(id), fields(json).unwrap())
}

pub fn patch(id: &str, json: &str) -> Edit {
    Edit::patch(note(), record(id), fields(json).unwrap())
}

pub fn delete(id: &str) -> Edit {
    Edit::delete(note(), record(id))
}
