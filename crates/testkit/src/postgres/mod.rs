//! A private PostgreSQL from the installed programs: on a free port of the loopback network, in a folder of its own.
//!
//! Nothing has to run or be set up before: a test that wants a database asks the cluster of its process for one.
//!
//! ```no_run
//! use driftline_testkit::postgres::{Cluster, Template};
//!
//! let notes = Template::new("notes", |url| {
//!     // Here a store would connect to `url` and migrate; this happens once for all tests of the process.
//!     assert!(url.starts_with("postgres://"));
//! });
//! let database = Cluster::shared().database(&notes);
//! assert_eq!(database.sql("SELECT 1 + 1"), "2");
//! ```
//!
//! A test that stops, kills, pauses or restores its PostgreSQL starts one with [`Cluster::own`]. It may hide it behind a
//! [`Proxy`](crate::proxy::Proxy), which is a network that fails.
//!
//! | variable | meaning |
//! |---|---|
//! | `DRIFTLINE_PG_BIN` | the folder with `postgres`, `initdb` and `psql`; else the newest of `/usr/lib/postgresql/*/bin`, else what is found in `PATH` |
//!
//! The programs refuse to run as root, so a test of root runs them as the user `postgres`, or `nobody` where there is none.
//! Everything is stopped and removed with the process of the test, however that ends.

mod backup;
mod certificates;
mod cluster;
mod database;
mod keeper;
mod ports;
mod programs;
mod seed;

pub use backup::Backup;
pub use cluster::{Cluster, Options};
pub use database::{Database, Template};
pub use programs::command;
