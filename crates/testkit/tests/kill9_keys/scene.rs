//! A server that is killed and started again on the same store.

use std::net::SocketAddr;

use driftline_testkit::TempFolder;
use driftline_testkit::postgres::{Cluster, Database};
use driftline_testkit::server::{Server, program};

use crate::keyed::{Caller, Heard, Keyed, Sort};

/// What is known of the requests so far.
#[derive(Debug, Default)]
pub(crate) struct Told {
    pub(crate) requests: u64,
    /// Whose first answer was heard.
    pub(crate) heard: u64,
    /// Whose effect was there, and the answer was lost.
    pub(crate) unheard: u64,
    /// That had no effect before they were sent again.
    pub(crate) lost: u64,
    samples: u64,
    changes: u64,
    counted: u64,
}

/// A server with its store.
pub(crate) struct Scene {
    pub(crate) server: Server,
    pub(crate) caller: Caller,
    pub(crate) told: Told,
    database: Option<Database>,
    _config: TempFolder,
}

impl Scene {
    /// Starts a server on the store that the environment names.
    pub(crate) fn new() -> Self {
        let postgres = std::env::var("DRIFTLINE_TEST_STORE").is_ok_and(|store| store == "postgres");
        Self::on(postgres.then(|| Cluster::shared().empty_database()), None)
    }

    /// Starts a server on a database that it reaches through something, or on a file.
    pub(crate) fn on(database: Option<Database>, through: Option<SocketAddr>) -> Self {
        let config = TempFolder::new();
        let file = config.path().join("driftline.toml");
        std::fs::write(&file, "[[kind]]\nname = \"reading\"\nmode = \"telemetry\"\n")
            .expect("a file is written");
        let arguments = ["--limits", "off", "--config", file.to_str().expect("a path of text")];
        let server = match &database {
            None => Server::with(&program(), &arguments),
            Some(database) => {
                let url = through.map_or_else(|| database.url(), |proxy| database.url_through(&[proxy]));
                Server::on(&url, &arguments)
            }
        };
        let caller = Caller::of(&server);
        Self { server, caller, told: Told::default(), database, _config: config }
    }

    pub(crate) fn is_on_a_file(&self) -> bool {
        self.database.is_none()
    }

    /// Sends a request that nothing happens to.
    pub(crate) async fn send(&self, request: &Keyed) -> Option<Heard> {
        let line = request.open(self.server.address(), &self.caller).await;
        request.ask(line, &self.caller).await
    }

    /// Sends a request again after the server came back, and judges what came of it. Gives whether its effect was there
    /// before.
    pub(crate) async fn settle(&mut self, request: &Keyed, first: Option<Heard>) -> bool {
        let before = request.effects(self.server.address(), &self.caller).await;
        assert!(before <= 1, "{request:?} had its effect {before} times");
        let there = before == 1;
        assert!(there || first.is_none(), "{request:?} was acknowledged and is gone: {first:?}");
        let again = self.send(request).await.expect("the server answers");
        assert_eq!(again.replayed, there, "{request:?} had its effect {before} times before: {again:?}");
        if let Some(first) = &first {
            assert!(!first.replayed, "{request:?}: {first:?}");
            assert_eq!(again.body, first.body, "{request:?}: the second answer is the first");
        }
        check_answer(request, &again);
        let third = self.send(request).await.expect("the server answers");
        assert_eq!(third, Heard { replayed: true, ..again }, "{request:?}");
        let after = request.effects(self.server.address(), &self.caller).await;
        assert_eq!(after, 1, "{request:?}");
        self.note(request, first.is_some(), there);
        there
    }

    fn note(&mut self, request: &Keyed, heard: bool, there: bool) {
        let told = &mut self.told;
        told.requests += 1;
        match (heard, there) {
            (true, _) => told.heard += 1,
            (false, true) => told.unheard += 1,
            (false, false) => told.lost += 1,
        }
        match request.sort {
            Sort::Samples | Sort::Post => told.samples += request.items as u64,
            Sort::Batch => told.changes += request.items as u64 + 1,
            Sort::Counts => told.counted += 1,
            Sort::Device => {}
        }
    }

    /// Counts what the store holds, beside the server.
    pub(crate) fn check_store(&mut self) {
        println!("{:?}", self.told);
        let log = self.server.log();
        assert!(!log.contains("panicked"), "{log}");
        self.server.kill9();
        let held = match &self.database {
            Some(database) => {
                let number = |sql: &str| database.sql(sql).parse().expect("a number");
                let seq =
                    "SELECT seq FROM stream_head h JOIN tenants t USING (tenant_no) WHERE t.tenant = 't1'";
                [
                    number("SELECT count(*) FROM samples"),
                    number("SELECT sum(counter)::bigint FROM series"),
                    number(seq),
                ]
            }
            None => crate::file::held(&self.server.data_dir().join("driftline.db")),
        };
        assert_eq!(
            held,
            [self.told.samples, self.told.counted, self.told.changes],
            "samples, counts, changes"
        );
    }
}

/// The answer says what the request did.
fn check_answer(request: &Keyed, answer: &Heard) {
    let body = &answer.body;
    match request.sort {
        Sort::Samples | Sort::Post => {
            assert_eq!(
                (&body["accepted"], &body["duplicates"]),
                (&request.items.into(), &0.into()),
                "{body}"
            );
            assert_eq!(body["rejected"][0]["index"], request.items, "{body}");
        }
        Sort::Batch => {
            assert_eq!(
                (&body["synced"], &body["failed"]),
                (&(request.items + 1).into(), &0.into()),
                "{body}"
            );
        }
        Sort::Counts => assert_eq!(body["of"], "analytics_batch", "{body}"),
        Sort::Device => assert!(body["device_hash"].is_string(), "{body}"),
    }
}
