//! Devices that write to several servers for as long as it takes, and note what was acknowledged.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use driftline_client::{Client, DeviceId, Edit, Endpoint, KindName, RecordId, Replica, fields};
use driftline_testkit::http::{Request, Response};
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;

/// How long a device waits before it sends again.
const AGAIN: Duration = Duration::from_millis(20);

#[allow(clippy::disallowed_methods, reason = "how long nothing is written is what is measured")]
pub(crate) fn now() -> Instant {
    Instant::now()
}

/// What all devices share.
pub(crate) struct Field {
    /// Where the servers listen.
    pub(crate) servers: Mutex<Vec<SocketAddr>>,
    pub(crate) token: String,
    over: AtomicBool,
    /// When each write was acknowledged, in the order of the acknowledgements.
    acknowledged: Mutex<Vec<Instant>>,
}

impl Field {
    pub(crate) fn new(servers: Vec<SocketAddr>, token: String) -> Arc<Self> {
        let (servers, acknowledged) = (Mutex::new(servers), Mutex::default());
        Arc::new(Self { servers, token, over: AtomicBool::new(false), acknowledged })
    }

    /// The devices are to stop once all that they have made is acknowledged.
    pub(crate) fn end(&self) {
        self.over.store(true, Ordering::SeqCst);
    }

    fn is_over(&self) -> bool {
        self.over.load(Ordering::SeqCst)
    }

    fn server(&self, number: usize) -> SocketAddr {
        let servers = self.servers.lock().unwrap_or_else(PoisonError::into_inner);
        servers[number % servers.len()]
    }

    fn note(&self) {
        self.acknowledged.lock().unwrap_or_else(PoisonError::into_inner).push(now());
    }

    /// How many writes were acknowledged.
    pub(crate) fn writes(&self) -> usize {
        self.acknowledged.lock().unwrap_or_else(PoisonError::into_inner).len()
    }

    /// The longest time without an acknowledged write that had not ended at a moment, or began later.
    pub(crate) fn stall_since(&self, moment: Instant) -> Duration {
        let times = self.acknowledged.lock().unwrap_or_else(PoisonError::into_inner);
        let gaps = times.windows(2).filter(|pair| pair[1] > moment).map(|pair| pair[1] - pair[0]);
        gaps.max().unwrap_or_default()
    }
}

/// What one device made, all of it acknowledged at its end.
#[derive(Debug, Default)]
pub(crate) struct Told {
    /// Every record with its version, where it was told.
    pub(crate) records: BTreeMap<String, Option<u64>>,
    /// The record that counts, and what it must have come to.
    pub(crate) counter: (String, u64),
    /// How many changes it made.
    pub(crate) changes: u64,
    /// How many answers said that the change was known before.
    pub(crate) duplicates: u64,
    /// How often it was told that the database is away.
    pub(crate) refused: u64,
    /// How often a server was gone.
    pub(crate) gone: u64,
}

impl Told {
    fn of(name: &str) -> Self {
        Self { counter: (format!("count-{name}"), 0), ..Self::default() }
    }
}

/// Writes by `POST /api/v1/sync`: with every batch a new record, and one more in a record that counts.
pub(crate) async fn over_http(field: Arc<Field>, number: usize) -> Told {
    let name = format!("http-{number}");
    let mut told = Told::of(&name);
    let mut server = number;
    loop {
        let last = field.is_over();
        let batch = next_batch(&name, &mut told);
        let body = json!({"batch": batch});
        let request = Request::post(&format!("/api/v1/sync?device_id={name}"), &body).bearer(&field.token);
        loop {
            match answer(&request, field.server(server)).await {
                Some(response) if response.status == 200 => {
                    take_in(&batch, &response.json()["ack"], &mut told);
                    break field.note();
                }
                Some(response) => {
                    check_refusal(&response);
                    told.refused += 1;
                }
                None => {
                    told.gone += 1;
                    server += 1;
                }
            }
            tokio::time::sleep(AGAIN).await;
        }
        if last {
            return told;
        }
    }
}

fn next_batch(name: &str, told: &mut Told) -> Vec<Value> {
    let item = |n: u64, id: &str, rest: &Value| {
        let mut item = json!({"op_id": format!("{name}-{n}"), "n": n, "kind": "note", "id": id});
        let more = rest.as_object().expect("an object").clone();
        item.as_object_mut().expect("an object").extend(more);
        item
    };
    let n = told.changes + 1;
    let counter = told.counter.0.clone();
    let counted = if told.changes == 0 {
        item(n, &counter, &json!({"op": "create", "fields": {"v": 1}}))
    } else {
        item(n, &counter, &json!({"op": "patch", "fields": {}, "increments": {"v": 1}}))
    };
    let made = item(n + 1, &format!("{name}-{n}"), &json!({"op": "create", "fields": {"title": "a"}}));
    told.changes += 2;
    told.counter.1 += 1;
    vec![counted, made]
}

fn take_in(batch: &[Value], ack: &Value, told: &mut Told) {
    assert_eq!((&ack["synced"], &ack["failed"]), (&json!(2), &json!(0)), "{ack}");
    for (item, result) in batch.iter().zip(ack["results"].as_array().expect("results")) {
        assert_eq!(result["op_id"], item["op_id"], "{ack}");
        told.duplicates += u64::from(result["duplicate"] == true);
    }
    let id = batch[1]["id"].as_str().expect("an id").to_owned();
    told.records.insert(id, ack["results"][1]["version"].as_u64());
}

/// Whoever is not served is told that it may come again, and when.
fn check_refusal(response: &Response) {
    assert_eq!(
        (response.status, response.code().as_str()),
        (503, "STORE_UNAVAILABLE"),
        "{}",
        response.text()
    );
    assert!(response.header("retry-after").is_some(), "{:?}", response.headers);
    assert!(response.json()["retry_after_ms"].as_u64().is_some(), "{}", response.text());
}

/// Sends a request; none when the server is gone.
async fn answer(request: &Request, to: SocketAddr) -> Option<Response> {
    let mut stream = TcpStream::connect(to).await.ok()?;
    stream.write_all(&request.encode(to)).await.ok()?;
    let response = Response::read(&mut stream, &mut Vec::new()).await?;
    let whole = response.header("content-length").is_none_or(|len| len == response.body.len().to_string());
    whole.then_some(response)
}

/// Writes over a WebSocket as the client library does, which keeps what is not acknowledged and sends it again.
pub(crate) async fn over_socket(field: Arc<Field>, number: usize) -> Told {
    let name = format!("socket-{number}");
    let mut told = Told::of(&name);
    let (mut replica, mut server) = (Replica::default(), number);
    loop {
        let device = DeviceId::new(&name).expect("a device");
        let endpoint = Endpoint::new(&field.server(server).to_string(), &field.token, device);
        match Client::connect(&endpoint.expect("an endpoint"), replica).await {
            Ok(mut client) => {
                if write(&field, &mut client, &name, &mut told).await {
                    assert!(client.replica().dead_letters().is_empty());
                    client.close().await;
                    return told;
                }
                replica = client.disconnect().await;
            }
            Err(error) => replica = *error.replica,
        }
        told.gone += 1;
        server += 1;
        tokio::time::sleep(AGAIN).await;
    }
}

/// Writes until all is over, or the connection is.
async fn write(field: &Field, client: &mut Client, name: &str, told: &mut Told) -> bool {
    const WITHIN: Duration = Duration::from_secs(30);
    loop {
        let last = field.is_over();
        if client.replica().queue_len() == 0 {
            edit(client, name, told);
        }
        if client.flush(WITHIN).await.is_err() {
            return false;
        }
        field.note();
        if last {
            return true;
        }
    }
}

fn edit(client: &mut Client, name: &str, told: &mut Told) {
    let kind = KindName::new("note").expect("a kind");
    let record = |id: &str| RecordId::new(id).expect("an id");
    let body = |text: &str| fields(text).expect("fields");
    let counter = record(&told.counter.0);
    let counted = if told.changes == 0 {
        Edit::create(kind.clone(), counter, body(r#"{"v":1}"#))
    } else {
        Edit::patch(kind.clone(), counter, body("{}")).increment("v", 1)
    };
    let id = format!("{name}-{}", told.changes);
    let made = Edit::create(kind, record(&id), body(r#"{"title":"a"}"#));
    for edit in [counted, made] {
        client.edit(edit).expect("queued");
    }
    told.records.insert(id, None);
    told.changes += 2;
    told.counter.1 += 1;
}
