//! Several nodes on one database and one folder: any of them takes any part of any upload.

mod support;

use std::fs;
use std::net::SocketAddr;

use driftline_testkit::TempFolder;
use driftline_testkit::http::{Request, Response, soon};
use driftline_testkit::postgres::{Cluster, Database};
use driftline_testkit::server::{Server, TokenFor};
use driftline_uploads::Digest;
use serde_json::json;
use support::files::{CHUNK_BYTES, Made, noise};
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;

struct Nodes {
    nodes: [Server; 2],
    token: String,
    folder: TempFolder,
    /// Dropped when the nodes are gone.
    _database: Database,
}

impl Nodes {
    fn start() -> Self {
        let (database, folder) = (Cluster::shared().empty_database(), TempFolder::new());
        let file = folder.path().join("uploads.toml");
        let shared = folder.path().join("shared");
        fs::write(&file, format!("[uploads]\ndir = {shared:?}\n")).expect("it is written");
        let arguments = ["--limits", "off", "--config", file.to_str().expect("the path is text")];
        let nodes = [0, 1].map(|_| Server::on(&database.url(), &arguments));
        let token = nodes[0].token(&TokenFor { sub: "ada", ..TokenFor::default() });
        Self { nodes, token, folder, _database: database }
    }

    fn address(&self, node: usize) -> SocketAddr {
        self.nodes[node % 2].address()
    }

    async fn ask(&self, node: usize, request: Request) -> Response {
        request.bearer(&self.token).send(self.address(node)).await
    }
}

#[tokio::test]
async fn chunks_of_one_file_go_to_any_node() {
    let nodes = Nodes::start();
    let (made, noise) = (Made { number: 1, chunks: 6 }, noise());
    let body = json!({"filename": "a", "size": made.size()});
    let opened = nodes.ask(0, Request::post("/api/v1/uploads/init", &body)).await.json();
    let id = opened["upload_id"].as_str().expect("an upload");
    for index in [3, 0, 5, 1, 4, 2] {
        let bytes = made.chunk(&noise, index);
        let put = Request::new("PUT", &format!("/api/v1/uploads/{id}/chunk/{index}"));
        let put = put.header("x-chunk-sha256", &Digest::hash(&bytes).to_string()).body(bytes);
        let answer = nodes.ask(index, put).await;
        assert_eq!(answer.status, 200, "{}", answer.text());
    }
    // Both finalize at once: one does it, and both tell of the same file.
    let finalize = || {
        Request::post(
            &format!("/api/v1/uploads/{id}/finalize"),
            &json!({"sha256": made.digest(&noise).to_string()}),
        )
    };
    let (one, other) = tokio::join!(nodes.ask(0, finalize()), nodes.ask(1, finalize()));
    for answer in [&one, &other] {
        assert!(matches!(answer.status, 200 | 202), "{} {}", answer.status, answer.text());
    }
    assert!(one.status == 200 || other.status == 200);
    for node in 0..2 {
        let file = soon("the file", nodes.ask(node, Request::get(&format!("/api/v1/files/{id}")))).await;
        assert_eq!((file.status, Digest::hash(&file.body)), (200, made.digest(&noise)));
    }
    let staging = nodes.folder.path().join("shared/staging");
    assert_eq!(fs::read_dir(staging).expect("it is there").count(), 0);
}

#[tokio::test]
async fn a_phone_that_comes_to_another_node_evicts_its_stale_request() {
    let nodes = Nodes::start();
    let bytes = Made { number: 2, chunks: 1 }.chunk(&noise(), 0);
    let tus = |method: &str, place: &str| Request::new(method, place).header("tus-resumable", "1.0.0");
    let created = nodes.ask(0, tus("POST", "/files").header("upload-length", &CHUNK_BYTES.to_string())).await;
    let place = created.header("location").expect("a place").to_owned();
    let patch = |offset: usize| {
        let patch = tus("PATCH", &place).header("upload-offset", &offset.to_string());
        patch.header("content-type", "application/offset+octet-stream").body(&bytes[offset..])
    };
    let mut stale = TcpStream::connect(nodes.address(0)).await.expect("it listens");
    let request = patch(0).encode(nodes.address(0));
    stale.write_all(&request[..request.len() - 1000]).await.expect("it reads");
    let kept = CHUNK_BYTES - 1000;
    let offset = soon("the offset, told by the other node", async {
        loop {
            let head = tus("HEAD", &place).send(nodes.address(1)).await;
            let told = head.header("upload-offset").and_then(|text| text.parse::<usize>().ok());
            // The first request may not have begun when the other node was asked.
            if let Some(told) = told.filter(|told| *told > 0) {
                break told;
            }
            assert!(matches!(head.status, 200 | 423), "{}", head.status);
        }
    })
    .await;
    assert!(offset <= kept, "{offset}");
    let rest = patch(offset).send(nodes.address(1)).await;
    assert_eq!(
        (rest.status, rest.header("upload-offset")),
        (204, Some(&*CHUNK_BYTES.to_string())),
        "{}",
        rest.text()
    );
    let file = nodes.ask(0, Request::get(&format!("/api/v1/files/{}", &place[7..39]))).await;
    assert_eq!(file.body, bytes);
}
