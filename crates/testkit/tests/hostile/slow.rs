//! Sockets that are let in and then say nothing, too little, or hear nothing.

use std::sync::Arc;
use std::time::Duration;

use driftline_testkit::http::soon;
use driftline_testkit::socket::Frame;
use serde_json::json;
use tokio::sync::Barrier;

use crate::peer::{Ear, verdict};
use crate::scene::{Attack, Site};

const SOCKETS: usize = 64;
/// Readers that do not read, as many as the bound of memory counts.
const READERS: usize = 16;
const MASK: u32 = 0x1122_3344;
const SILENT: &str = "HEARTBEAT_TIMEOUT 4009";
const SYNC_ID: &str = "3f1f7f0e-0f6f-4f38-9d1e-1d3a2f4b5c6d";

/// Who gives no sign of life that counts.
pub(crate) fn silent() -> Vec<Attack> {
    vec![
        Attack::new("silent socket", 128, SILENT, |site, attacker| async move {
            verdict(&mut site.open(attacker, None).await).await
        }),
        trickle("only pings and pongs", &[Frame::PING, Frame::PONG]),
        trickle("message by a byte each 100 ms", &[]),
    ]
}

/// Sends a control frame each 100 ms, or the next byte of a message that never ends.
fn trickle(name: &'static str, opcodes: &'static [u8]) -> Attack {
    Attack::new(name, SOCKETS, SILENT, move |site, attacker| async move {
        let mut socket = site.open(attacker, None).await;
        // Short enough to take nothing from the memory that messages share.
        let endless = Frame::part(Frame::TEXT, " ".repeat(8 << 10)).encode(MASK);
        let mut pace = tokio::time::interval(Duration::from_millis(100));
        let mut ear = Ear::default();
        for byte in endless {
            pace.tick().await;
            match opcodes {
                [] => socket.send_bytes(&[byte]).await,
                opcodes => {
                    for opcode in opcodes {
                        socket.send_frame(&Frame::last(*opcode, "")).await;
                    }
                }
            }
            if let Some(told) = ear.hear_now(&mut socket) {
                return told;
            }
        }
        "nothing".into()
    })
}

/// Who asks for page after page and reads none. What was cut before is counted before the first of them comes.
pub(crate) async fn never_read(site: &Site) -> Attack {
    let cuts = "driftline_slow_consumers_total";
    let before = site.counted(cuts).await;
    let all = Arc::new(Barrier::new(READERS));
    let play = move |site: Arc<Site>, attacker| {
        let all = Arc::clone(&all);
        async move {
            let handshake = site.handshake(attacker).receive_bytes(4096);
            let (mut socket, _) = handshake.send(site.address).await.expect("the handshake is right");
            socket.read().await;
            socket.start(SYNC_ID, &["large"]).await;
            let pull = json!({"type": "request_server_data", "sync_id": SYNC_ID, "payload": {"limit": 500}});
            let pulls = Frame::last(Frame::TEXT, pull.to_string()).encode(MASK).repeat(40);
            // Who was cut has only so long to read why, and none begins to read before all are cut.
            soon("all readers", all.wait()).await;
            socket.send_bytes(&pulls).await;
            // Who began to read before it was cut would not be cut.
            site.until_counted(cuts, before + READERS as u64).await;
            verdict(&mut socket).await
        }
    };
    Attack::new("pages that are never read", READERS, "SLOW_CONSUMER 4008", play)
}

/// Puts 1 MiB of records in place, for those who read much.
pub(crate) async fn stock(site: &Site) {
    let mut socket = site.open(0, None).await;
    socket.start(SYNC_ID, &["large"]).await;
    let text = "x".repeat(16 << 10);
    let items: Vec<_> = (1..=50)
        .map(|n| {
            json!({"op_id": format!("large-{n}"), "n": n, "kind": "large", "id": format!("l-{n}"), "op": "create",
                   "fields": {"text": text}})
        })
        .collect();
    let batch = json!({"type": "sync_data", "sync_id": SYNC_ID, "payload": {"batch": items, "batch_seq": 1}});
    let ack = socket.ask(&batch, "ack").await;
    assert_eq!(ack["synced"], 50, "{ack}");
}
