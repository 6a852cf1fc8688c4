//! Real tables as telemetry: the weather of Seattle, a row a day, and ten thousand birds that met aircraft, over both doors
//! and then once more over the other one.

mod support;

use std::collections::BTreeMap;
use std::path::Path;

use driftline_examples::two_phones::folder;
use driftline_testkit::http::Request;
use driftline_testkit::socket::Socket;
use serde_json::{Map, Value, json};
use support::{Deployment, Person};

/// What the tables hold, as kinds of telemetry.
const KINDS: &str = r#"
[server]
allow_undeclared = false

[limits]
message_rate = { per_s = 1000, burst = 1000 }
user_rate = { per_s = 2000, burst = 2000 }

[[kind]]
name = "weather"
mode = "telemetry"
key = ["date"]
time = "date"

[kind.schema]
required = ["date", "precipitation", "temp_max", "temp_min", "wind", "weather"]
additionalProperties = false

[kind.schema.properties]
date = { type = "string", format = "date" }
precipitation = { type = "number", minimum = 0 }
temp_max = { type = "number", minimum = -60, maximum = 60 }
temp_min = { type = "number", minimum = -60, maximum = 60 }
wind = { type = "number", minimum = 0 }
weather = { enum = ["drizzle", "rain", "sun", "snow", "fog"] }

[[kind]]
name = "birdstrike"
mode = "telemetry"
time = "Flight Date"

[kind.schema]
required = ["Flight Date", "Wildlife Species"]

[kind.schema.properties]
"Flight Date" = { type = "string", format = "date" }
"Wildlife Size" = { enum = ["Small", "Medium", "Large"] }
"Cost Total $" = { type = "number", minimum = 0 }
"#;

/// Samples of one message.
const BATCH: usize = 100;

/// Reads a table of comma-separated values (RFC 4180), with numbers where the values are numbers; empty values are left
/// out.
fn table(file: &str) -> Vec<Value> {
    let folder = folder().expect("the tables are installed");
    let text = std::fs::read_to_string(Path::new(&folder).join(file)).expect("the table can be read");
    let mut lines = text.lines();
    let names = cells(lines.next().expect("a head"));
    let row = |line: &str| {
        let cells = cells(line);
        assert_eq!(cells.len(), names.len(), "{line}");
        let pairs = names.iter().cloned().zip(cells).filter(|(_, cell)| !cell.is_empty());
        Value::Object(pairs.map(|(name, cell)| (name, value(&cell))).collect::<Map<_, _>>())
    };
    lines.filter(|line| !line.is_empty()).map(row).collect()
}

fn cells(line: &str) -> Vec<String> {
    let mut cells = vec![String::new()];
    let mut quoted = false;
    let mut letters = line.chars().peekable();
    while let Some(letter) = letters.next() {
        let cell = cells.last_mut().expect("there is one");
        match letter {
            '"' if quoted && letters.peek() == Some(&'"') => cell.extend(letters.next()),
            '"' => quoted = !quoted,
            ',' if !quoted => cells.push(String::new()),
            other => cell.push(other),
        }
    }
    cells
}

/// A whole number is written without a point, as it comes back.
fn value(cell: &str) -> Value {
    match (cell.parse::<i64>(), cell.parse::<f64>()) {
        (Ok(whole), _) => whole.into(),
        (_, Ok(number)) if number.fract() == 0.0 => {
            format!("{number:.0}").parse::<i64>().map_or(Value::Null, Value::from)
        }
        (_, Ok(number)) => number.into(),
        _ => cell.into(),
    }
}

/// A message for each hundred rows, with the key under which it may come again.
fn messages(kind: &str, rows: &[Value]) -> Vec<Value> {
    let message = |(at, rows): (usize, &[Value])| json!({"type": kind, "idempotency_key": format!("{kind}-{at}"), "payload": {"items": rows}});
    rows.chunks(BATCH).enumerate().map(message).collect()
}

struct Station {
    town: Deployment,
    ada: Person,
    socket: Socket,
}

impl Station {
    async fn start() -> Self {
        let town = Deployment::start_as(KINDS);
        let ada = town.person("acme", "ada", "user", &[]);
        let socket = town.socket(&ada, "station").await;
        Self { town, ada, socket }
    }

    /// Sends messages over the WebSocket: how many samples were accepted, known, and answered again.
    async fn by_socket(&mut self, messages: &[Value]) -> Counts {
        let mut counts = Counts::default();
        for message in messages {
            counts.add(&self.socket.ask(message, "ack").await);
        }
        counts
    }

    /// Sends messages over HTTP.
    async fn by_http(&self, messages: &[Value]) -> Counts {
        let mut counts = Counts::default();
        for message in messages {
            let request = Request::post("/api/ingest?device_id=station", message);
            let answer = self.town.ask(&self.ada, request).await;
            assert_eq!(answer.status, 200, "{}", answer.text());
            counts.add(&answer.json());
        }
        counts
    }
}

#[derive(Debug, Default, PartialEq, Eq)]
struct Counts {
    accepted: usize,
    duplicates: usize,
    replayed: usize,
}

impl Counts {
    fn add(&mut self, ack: &Value) {
        let number =
            |name: &str| ack[name].as_u64().and_then(|count| usize::try_from(count).ok()).expect("a count");
        assert_eq!(ack["rejected"], json!([]), "{ack}");
        self.accepted += number("accepted");
        self.duplicates += number("duplicates");
        self.replayed += usize::from(ack["replayed"] == true);
    }
}

/// How often each row is there.
fn tally(rows: &[Value]) -> BTreeMap<String, usize> {
    let mut tally = BTreeMap::new();
    for row in rows {
        // The members of an object are in the order of their names on both sides.
        let sorted: BTreeMap<_, _> = row.as_object().expect("a row").iter().collect();
        *tally.entry(serde_json::to_string(&sorted).expect("JSON")).or_insert(0) += 1;
    }
    tally
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn real_tables_pass_both_doors_and_come_again_over_the_other_one() {
    let mut station = Station::start().await;
    for (kind, file, count) in
        [("weather", "seattle-weather.csv", 1_461), ("birdstrike", "birdstrikes.csv", 10_000)]
    {
        let rows = table(file);
        assert_eq!(rows.len(), count, "{file}");
        let messages = messages(kind, &rows);
        let (first, second) = messages.split_at(messages.len() / 2);
        let sent = |messages: &[Value], replayed: usize| {
            let samples = |message: &Value| message["payload"]["items"].as_array().map_or(0, Vec::len);
            Counts { accepted: messages.iter().map(samples).sum(), duplicates: 0, replayed }
        };
        assert_eq!(station.by_socket(first).await, sent(first, 0), "{kind}");
        assert_eq!(station.by_http(second).await, sent(second, 0), "{kind}");
        let stored = station.town.samples(&station.ada, kind, 500).await;
        assert!(tally(&stored) == tally(&rows), "{kind}: {} of {} rows", stored.len(), rows.len());

        // Once more, over the other door: each message is answered as it was, and nothing doubles.
        assert_eq!(station.by_http(first).await, sent(first, first.len()), "{kind}");
        assert_eq!(station.by_socket(second).await, sent(second, second.len()), "{kind}");
        let again = station.town.samples(&station.ada, kind, 500).await;
        assert!(again == stored, "{kind}: {} after {}", again.len(), stored.len());
    }
    // Days are known by their dates, whatever message brings them.
    let unkeyed = |rows: &[Value]| -> Vec<Value> {
        rows.chunks(BATCH).map(|rows| json!({"type": "weather", "payload": {"items": rows}})).collect()
    };
    let rows = table("seattle-weather.csv");
    let counts = station.by_http(&unkeyed(&rows)).await;
    assert_eq!(counts, Counts { accepted: 0, duplicates: rows.len(), replayed: 0 });
    // A window of time: one February, of a leap year.
    let february = station
        .town
        .samples(&station.ada, "weather?from=2012-02-01T00:00:00Z&to=2012-03-01T00:00:00Z", 10)
        .await;
    assert_eq!(february.len(), 29);
    assert!(february.iter().all(|day| day["date"].as_str().is_some_and(|date| date.starts_with("2012-02-"))));
}
