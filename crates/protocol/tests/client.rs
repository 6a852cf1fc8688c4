//! The client's half of the wire: the server reads what a client writes.

use driftline_model::{ConflictId, KindName, Limits, Object, RecordId, ScopeName, Seq};
use driftline_protocol::{
    ClientMessage, Document, Encoding, Inbound, Item, Range, RequestChecksums, RequestServerData, Resolution,
    ResolveConflict, ResolvePost, SyncData, decode, object_of_text,
};

const SYNC_ID: &str = "0192f3a1-b2c3-7000-8000-00000000abcd";

fn sent(message: &ClientMessage<'_>) -> Inbound {
    let frame = message.encode_with_id("m1");
    let read = decode(Encoding::Json, frame.as_bytes(), &Limits::default())
        .unwrap_or_else(|fault| panic!("{fault}: {frame}"));
    assert_eq!(read.id.as_deref(), Some("m1"));
    read.body
}

fn object(text: &str) -> Object {
    object_of_text(text, 64).expect("JSON").expect("a good object")
}

fn range(after: Option<&str>, until: Option<&str>) -> Range {
    let record = |id: &str| RecordId::new(id).expect("a record");
    Range {
        kind: KindName::new("ticket").expect("a kind"),
        scope: ScopeName::new("group:site:\"7\"").expect("a scope"),
        after: after.map(record),
        until: until.map(record),
    }
}

#[test]
fn items_keep_what_they_ask() {
    let rests = [
        r#""fields":{"a":1}"#,
        r#""previous":{"p\"q":"low"},"flags":["deescalate"]"#,
        r#""increments":{"visits":-3,"p\"q":9007199254740992}"#,
        r#""add":{"tags":["roof"]},"append":{"log":[{"id":"l1"}]},"remove":{"tags":[1.5]}"#,
    ];
    let items: Vec<Item> = rests
        .into_iter()
        .map(|rest| {
            let text = format!(r#"{{"kind":"ticket","id":"t-1","op":"patch","base_version":5,{rest}}}"#);
            let document = Document::parse(text.as_bytes(), 64).expect("JSON");
            Item::read(document.root()).expect("an item")
        })
        .collect();
    assert!(items[1..].iter().all(|item| item.intents.is_some()));
    let message = ClientMessage::SyncData { sync_id: SYNC_ID, items: &items, batch_seq: 1, acked_n: 0 };
    let Inbound::SyncData(SyncData { items: read, .. }) = sent(&message) else { panic!("a batch") };
    assert_eq!(read, items.into_iter().map(Ok).collect::<Vec<_>>());
}

#[test]
fn ranges_keep_their_bounds() {
    for range in [range(None, None), range(Some("t-1"), Some("Zürich")), range(None, Some("t-9"))] {
        let message = ClientMessage::RequestChecksums { sync_id: SYNC_ID, range: &range, parts: 64 };
        let wanted = RequestChecksums { range: range.clone(), parts: 64 };
        assert_eq!(sent(&message), Inbound::RequestChecksums(wanted));
        let message = ClientMessage::RequestServerData {
            sync_id: SYNC_ID,
            data_types: &[],
            cursor: Some("AbC"),
            range: Some(&range),
        };
        let Inbound::RequestServerData(RequestServerData { range: read, cursor, .. }) = sent(&message) else {
            panic!("a request")
        };
        assert_eq!((read, cursor.as_deref()), (Some(range), Some("AbC")));
    }
}

#[test]
fn resolutions_bring_fields_only_when_merged() {
    let conflict_id = ConflictId::new("c-1").expect("a conflict");
    let fields = object(r#"{"priority":"high"}"#);
    for resolution in [Resolution::Client, Resolution::Server, Resolution::Merged] {
        let version = Some(Seq::new(7)).filter(|_| resolution != Resolution::Client);
        let message = ClientMessage::ResolveConflict {
            conflict_id: &conflict_id,
            resolution,
            fields: &fields,
            version,
        };
        let taken = if resolution == Resolution::Merged { fields.clone() } else { Object::empty() };
        let wanted = ResolveConflict { conflict_id: conflict_id.clone(), resolution, fields: taken, version };
        assert_eq!(sent(&message), Inbound::ResolveConflict(wanted));
    }
}

#[test]
fn a_resolution_over_http_follows_the_same_rules() {
    let read = |text: &str| ResolvePost::decode(Encoding::Json, text.as_bytes(), &Limits::default());
    let merged = read(r#"{"resolution":"merged","fields":{"a":1.0},"version":7}"#).expect("a resolution");
    assert_eq!((merged.resolution, merged.fields.as_str()), (Resolution::Merged, r#"{"a":1}"#));
    assert_eq!(merged.version, Some(Seq::new(7)));
    let table = [
        (r#"{}"#, "/resolution"),
        (r#"{"resolution":"both"}"#, "/resolution"),
        (r#"{"resolution":"merged"}"#, "/fields"),
        (r#"{"resolution":"server","fields":{}}"#, "/fields"),
        (r#"{"resolution":"merged","fields":{"a":{"b":"\u0000"}}}"#, "/fields/a/b"),
        (r#"{"resolution":"server","version":-1}"#, "/version"),
    ];
    for (text, pointer) in table {
        assert_eq!(read(text).expect_err(text).errors[0].pointer, pointer, "{text}");
    }
}
