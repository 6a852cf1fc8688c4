//! A deployment as its users meet it: the server's own program with a file of `examples/deployments`, people with
//! tokens, and their phones.
#![allow(dead_code, unreachable_pub, reason = "every story takes the part that it needs")]

pub mod feed;
pub mod files;
pub mod ingest;
pub mod programs;
pub mod roads;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use driftline_client::{
    Acknowledged, Client, DeviceId, Edit, Elements, Endpoint, Event, KindName, RecordId, Replica, World,
    elements, fields,
};
use driftline_testkit::TempFolder;
use driftline_testkit::http::{Request, Response};
use driftline_testkit::server::{Server, TokenFor, program};
use driftline_testkit::socket::Socket;
use serde_json::Value;

/// How long a phone may take for one sync.
pub const WITHIN: Duration = Duration::from_secs(20);

/// A running server.
pub struct Deployment {
    server: Server,
    /// The changed copy of its file, which lasts as long as it does.
    copy: Option<TempFolder>,
}

/// Somebody with a token.
pub struct Person {
    token: String,
}

impl Deployment {
    /// Starts the server with a file of `examples/deployments`.
    pub fn start(file: &str) -> Self {
        let file = folder().join(file);
        let file = file.to_str().expect("the path is text");
        Self { server: Server::with(&program(), &["--config", file]), copy: None }
    }

    /// Starts the server with a copy of a file of `examples/deployments` in which some lines are replaced. Schemas are
    /// found all the same.
    pub fn start_with(file: &str, lines: &[(&str, &str)]) -> Self {
        let text = std::fs::read_to_string(folder().join(file)).expect("the file can be read");
        let beside = format!("schema_file = \"{}/", folder().display());
        let mut text = text.replace("schema_file = \"", &beside);
        for (line, other) in lines {
            assert!(text.contains(line), "{file} has no line {line:?}");
            text = text.replace(line, other);
        }
        Self::start_as(&text)
    }

    /// Starts the server with the text of a file.
    pub fn start_as(text: &str) -> Self {
        let copy = TempFolder::new();
        let file = copy.path().join("driftline.toml");
        std::fs::write(&file, text).expect("the folder can be written");
        let server = Server::with(&program(), &["--config", file.to_str().expect("the path is text")]);
        Self { server, copy: Some(copy) }
    }

    /// Returns the server.
    pub fn server(&self) -> &Server {
        &self.server
    }

    /// Returns where it listens.
    pub fn address(&self) -> SocketAddr {
        self.server.address()
    }

    /// Prepares a command of the server's program for this deployment's data.
    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(program());
        command.args(arguments).arg("--data-dir").arg(self.server.data_dir()).stdin(Stdio::null());
        command
    }

    /// Prepares the command that drains the outbox, on the database of this deployment.
    pub fn drain_command(&self) -> Command {
        let mut command = Command::new(program());
        command.args(["outbox", "drain", "--config"]).arg(self.file()).stdin(Stdio::null());
        command.arg("--data-dir").arg(self.server.data_dir());
        if let Some(url) = self.server.store_url() {
            command.env("DRIFTLINE_STORE_URL", url);
        }
        command
    }

    /// Returns the changed copy of the deployment's file.
    fn file(&self) -> PathBuf {
        self.copy.as_ref().expect("it has a copy").path().join("driftline.toml")
    }

    /// Stops the server as an operator does, has something done, and starts it again; its address is another one then.
    pub fn while_stopped(&mut self, work: impl FnOnce(&Self)) {
        assert_eq!(self.server.terminate().code(), Some(0), "{}", self.server.log());
        work(self);
        self.server.restart();
    }

    /// Has the server's command make a token; claims are `name=value`.
    pub fn person(&self, tenant: &str, sub: &str, role: &str, claims: &[&str]) -> Person {
        let token = TokenFor { tenant, sub, role, claims, ..TokenFor::default() };
        Person { token: self.server.token(&token) }
    }

    /// Hands somebody a new phone.
    pub fn phone(&self, person: &Person, device: &str) -> Phone {
        let device = DeviceId::new(device).expect("a device");
        let endpoint = self.endpoint(person, &device);
        Phone { device, endpoint, replica: Replica::default() }
    }

    fn endpoint(&self, person: &Person, device: &DeviceId) -> Endpoint {
        let address = self.server.address().to_string();
        Endpoint::new(&address, &person.token, device.clone()).expect("an endpoint")
    }

    /// Gives a phone the token that somebody has got since.
    pub fn sign_in(&self, phone: &mut Phone, person: &Person) {
        phone.endpoint = self.endpoint(person, &phone.device);
    }

    /// Opens a bare socket, for a device that does not use the client library, and takes the greeting.
    pub async fn socket(&self, person: &Person, device: &str) -> Socket {
        let target = format!("/ws/mobile/sync?device_id={device}&token={}", person.token);
        let mut socket = Socket::connect(self.server.address(), &target).await;
        socket.expect("connection_established").await;
        socket
    }

    /// Sends a request with somebody's token.
    pub async fn ask(&self, person: &Person, request: Request) -> Response {
        request.bearer(&person.token).send(self.server.address()).await
    }

    /// Reads what the API shows somebody, who must be let in.
    pub async fn read(&self, person: &Person, path: &str) -> Value {
        let answer = self.ask(person, Request::get(&format!("/api/v1/{path}"))).await;
        assert_eq!(answer.status, 200, "{path}: {}", answer.text());
        answer.json()
    }

    /// Reads a list of the API.
    pub async fn list(&self, person: &Person, path: &str) -> Vec<Value> {
        self.read(person, path).await["items"].as_array().expect("a list").clone()
    }
}

impl Person {
    /// Returns the token.
    pub fn token(&self) -> &str {
        &self.token
    }
}

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("deployments")
}

/// A phone that is offline but while it syncs.
pub struct Phone {
    device: DeviceId,
    endpoint: Endpoint,
    replica: Replica,
}

impl Phone {
    /// Does something offline, which shows at once.
    pub fn edit(&mut self, edit: Edit) {
        World::system().edit(&mut self.replica, edit).expect("the edit is within the limits");
    }

    /// Finds the network, syncs, and loses it again.
    pub async fn sync(&mut self) {
        let mut client = self.connect().await;
        client.sync(WITHIN).await.expect("a sync");
        self.replica = client.close().await;
    }

    /// Connects for longer; [`Phone::hang_up`] ends it.
    pub async fn connect(&mut self) -> Client {
        let replica = std::mem::take(&mut self.replica);
        Client::connect(&self.endpoint, replica).await.expect("a connection")
    }

    /// Ends a connection and keeps what it brought.
    pub async fn hang_up(&mut self, client: Client) {
        self.replica = client.close().await;
    }

    /// What the phone shows of a record; null when there is none.
    pub fn shows(&self, kind: &str, id: &str) -> Value {
        shown(&self.replica, kind, id)
    }

    /// What the server made of the edits since the last question.
    pub fn outcomes(&mut self) -> Vec<Acknowledged> {
        let acknowledged = |event| match event {
            Event::Acknowledged(acknowledged) => Some(acknowledged),
            _ => None,
        };
        self.events().into_iter().filter_map(acknowledged).collect()
    }

    /// What happened since the last question.
    pub fn events(&mut self) -> Vec<Event> {
        std::iter::from_fn(|| self.replica.poll_event()).collect()
    }

    /// Edits that the server refused for good, with the places of their faults.
    pub fn refused(&self) -> Vec<(&'static str, Vec<&str>)> {
        let letters = self.replica.dead_letters().iter();
        letters
            .map(|letter| {
                let places = letter.errors.iter().map(|error| error.pointer.as_str());
                (letter.code.as_str(), places.collect())
            })
            .collect()
    }
}

/// What a replica shows of a record; null when there is none.
pub fn shown(replica: &Replica, kind: &str, id: &str) -> Value {
    let view = replica.view(kind, id);
    view.map_or(Value::Null, |view| serde_json::from_str(view.fields.as_str()).expect("fields are JSON"))
}

/// Makes a record.
pub fn create(kind: &str, id: &str, values: &Value) -> Edit {
    Edit::create(kind_of(kind), id_of(id), fields(&values.to_string()).expect("fields"))
}

/// Changes a record.
pub fn patch(kind: &str, id: &str, values: &Value) -> Edit {
    Edit::patch(kind_of(kind), id_of(id), fields(&values.to_string()).expect("fields"))
}

/// Deletes a record.
pub fn delete(kind: &str, id: &str) -> Edit {
    Edit::delete(kind_of(kind), id_of(id))
}

/// Elements of a set or a list.
pub fn all(values: &Value) -> Elements {
    elements(&values.to_string()).expect("an array")
}

fn kind_of(kind: &str) -> KindName {
    KindName::new(kind).expect("a kind")
}

fn id_of(id: &str) -> RecordId {
    RecordId::new(id).expect("an id")
}
