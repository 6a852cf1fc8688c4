//! What an idle connection costs, allocation by allocation.
//!
//! A server in this process holds connections that are authenticated, synced and silent. Every allocation that is still
//! alive is put down to the place that made it, divided by their number.
//!
//! `cargo bench -p driftline-benches --bench memory -- [CONNECTIONS]`

use std::collections::BTreeMap;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::sync::Arc;

use driftline_engine::{Catalogue, Clock, Engine, Hub, Listeners, Random};
use driftline_model::Limits;
use driftline_storage::{SqliteOptions, SqliteStore};
use driftline_testkit::TempFolder;
use driftline_transport::{
    App, Grant, MetricsObserver, Settings, SharedSecret, SystemClock, SystemRandom, serve,
};
use serde_json::Value;
use tokio::net::TcpListener;

#[global_allocator]
static ALLOCATED: dhat::Alloc = dhat::Alloc;

const SECRET: &[u8] = b"the secret of the server that is measured";

/// Connections that are opened before anything is counted, so that what is made once does not count.
const BEFORE: usize = 200;

fn main() {
    let asked = std::env::args().skip(1).find_map(|argument| argument.parse().ok());
    let connections: usize = asked.unwrap_or(1_000);
    let folder = TempFolder::new();
    let address = start(folder.path());
    let mut held: Vec<TcpStream> = (0..BEFORE).map(|number| connect(address, number)).collect();
    let file = folder.path().join("heap.json");
    let profiler = dhat::Profiler::builder().file_name(&file).trim_backtraces(None).build();
    let resident = resident_bytes();
    held.extend((BEFORE..BEFORE + connections).map(|number| connect(address, number)));
    let live = dhat::HeapStats::get();
    let grown = resident_bytes().saturating_sub(resident);
    // Writing the file ends the counting, with every connection still open.
    drop(profiler);
    let places = places(&file);
    println!("{connections} connections, authenticated and synced, silent\n");
    println!("| bytes | blocks | where |\n|---|---|---|");
    for (place, (bytes, blocks)) in &places {
        let (bytes, blocks) = (per(*bytes, connections), per(*blocks, connections));
        if bytes >= 8.0 {
            println!("| {bytes:.0} | {blocks:.2} | {place} |");
        }
    }
    let (bytes, blocks) = (per(live.curr_bytes, connections), per(live.curr_blocks, connections));
    println!("| **{bytes:.0}** | {blocks:.2} | **all that is allocated** |");
    println!(
        "\nresident memory grew by {:.0} bytes a connection (with the profiler's own books)",
        per(grown, connections)
    );
    drop(held);
}

#[expect(clippy::cast_precision_loss, reason = "figures for a table")]
fn per(count: usize, connections: usize) -> f64 {
    count as f64 / connections as f64
}

/// Starts the server as the bundled one is put together, on a thread of its own.
fn start(folder: &Path) -> SocketAddr {
    let (tell, told) = std::sync::mpsc::channel();
    let file = folder.join("driftline.db");
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        runtime.expect("a runtime").block_on(async {
            let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port is free");
            tell.send(listener.local_addr().expect("it is bound")).expect("the measuring thread waits");
            serve(listener, app(file)).await.expect("the listener stays");
        });
    });
    told.recv().expect("the server starts")
}

fn app(file: std::path::PathBuf) -> Arc<App<SqliteStore>> {
    let limits = Limits::default();
    let clock: Arc<dyn Clock> = Arc::new(SystemClock);
    let random: Arc<dyn Random> = Arc::new(SystemRandom);
    let hub = Arc::new(Hub::new(limits.pending_deltas));
    let store = SqliteStore::open(SqliteOptions {
        file,
        clock: Arc::clone(&clock),
        random: Arc::clone(&random),
        listeners: Arc::clone(&hub) as Arc<dyn Listeners>,
        fatal: Box::new(|reason| panic!("{reason}")),
        skew_ms_max: limits.skew_ms_max,
        record_bytes: limits.record_bytes,
        readers: 2,
        outbox_claims: Vec::new(),
    });
    let store = store.expect("the folder takes a database");
    let catalogue = Catalogue::default().allow_undeclared();
    let engine = Engine::new(store, hub, catalogue, limits, MetricsObserver::default());
    let auth = Box::new(SharedSecret::new(SECRET).expect("it is long enough"));
    Arc::new(App::new(engine, auth, clock, random, Settings { unlimited: true, ..Settings::default() }, None))
}

/// Opens a connection and a sync session on it; the stream takes nothing from the heap.
fn connect(address: SocketAddr, number: usize) -> TcpStream {
    let token = SharedSecret::new(SECRET).expect("it is long enough").mint(&Grant {
        tenant: "default".into(),
        sub: Value::from(format!("user-{number}")),
        roles: vec!["user".into()],
        device_id: None,
        expires_s: SystemClock.now_ms() / 1_000 + 3_600,
        claims: serde_json::Map::new(),
    });
    let mut stream = TcpStream::connect(address).expect("the server listens");
    let head = format!(
        "GET /ws/mobile/sync?device_id=phone-{number} HTTP/1.1\r\nhost: {address}\r\nconnection: upgrade\r\n\
         upgrade: websocket\r\nsec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\
         authorization: Bearer {token}\r\n\r\n"
    );
    stream.write_all(head.as_bytes()).expect("the server reads");
    await_text(&mut stream, "connection_established");
    let start = br#"{"type":"start_sync","data_types":[],"total_items":0}"#;
    // A masked text frame with a key of zeros (RFC 6455, section 5.2).
    let mut frame = vec![0x81, 0x80 | u8::try_from(start.len()).expect("a short message"), 0, 0, 0, 0];
    frame.extend_from_slice(start);
    stream.write_all(&frame).expect("the server reads");
    await_text(&mut stream, "sync_session_started");
    stream
}

fn await_text(stream: &mut TcpStream, wanted: &str) {
    let mut heard = Vec::new();
    let mut some = [0; 4_096];
    while !heard.windows(wanted.len()).any(|bytes| bytes == wanted.as_bytes()) {
        let count = stream.read(&mut some).expect("the server answers");
        assert!(count > 0, "closed before {wanted}: {}", String::from_utf8_lossy(&heard));
        heard.extend_from_slice(&some[..count]);
    }
}

/// Bytes and blocks that were still alive, by the place that made them, the largest first.
fn places(file: &Path) -> Vec<(String, (usize, usize))> {
    let text = std::fs::read_to_string(file).expect("the profiler wrote its file");
    let profile: Value = serde_json::from_str(&text).expect("JSON");
    let frames = profile["ftbl"].as_array().expect("a table of frames");
    let count = |point: &Value, name: &str| {
        usize::try_from(point[name].as_u64().unwrap_or_default()).expect("it fits into the memory")
    };
    let mut places: BTreeMap<String, (usize, usize)> = BTreeMap::new();
    for point in profile["pps"].as_array().expect("program points") {
        let stack = point["fs"].as_array().into_iter().flatten();
        let stack = stack.filter_map(|at| frames.get(usize::try_from(at.as_u64()?).ok()?)?.as_str());
        let place = places.entry(place(stack)).or_default();
        *place = (place.0 + count(point, "eb"), place.1 + count(point, "ebk"));
    }
    let mut places: Vec<_> = places.into_iter().collect();
    places.sort_by_key(|(_, (bytes, _))| std::cmp::Reverse(*bytes));
    places
}

/// Names the nearest frame of our own and the library below it.
fn place<'a>(stack: impl Iterator<Item = &'a str>) -> String {
    let mut below = "";
    for frame in stack {
        let name = frame.split_once(": ").map_or(frame, |(_, name)| name);
        let name = name.split(" (").next().unwrap_or(name);
        if name.contains("driftline") && !name.contains("driftline_benches") {
            return if below.is_empty() { name.to_owned() } else { format!("{name} < {below}") };
        }
        let plain = ["alloc::", "core::", "std::", "<alloc::", "<core::", "dhat", "<dhat", "__rustc"];
        if below.is_empty() && !plain.iter().any(|prefix| name.starts_with(prefix)) {
            below = name;
        }
    }
    format!("elsewhere < {below}")
}

fn resident_bytes() -> usize {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    let pages: usize = statm.split(' ').nth(1).and_then(|pages| pages.parse().ok()).unwrap_or_default();
    pages * 4_096
}
