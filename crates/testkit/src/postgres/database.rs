//! Databases of their own for tests.

use std::fmt;
use std::net::SocketAddr;
use std::process::{self, Command};
use std::sync::atomic::{AtomicU32, Ordering};

use super::cluster::Cluster;
use super::programs::{Programs, USER, output};

/// How to reach a cluster.
#[derive(Debug, Clone, Copy)]
pub(super) struct Access {
    pub(super) port: u16,
}

impl Access {
    fn url(self, database: &str) -> String {
        format!("postgres://{USER}@127.0.0.1:{}/{database}", self.port)
    }

    /// Runs statements, each in a transaction of its own, and returns what they print: columns between `|`.
    pub(super) fn sql(self, database: &str, statements: &[&str]) -> String {
        output(&mut self.psql(database, statements)).trim_end_matches('\n').to_owned()
    }

    fn psql(self, database: &str, statements: &[&str]) -> Command {
        let mut psql = Programs::installed().command("psql");
        psql.args(["-X", "-A", "-t", "-q", "-v", "ON_ERROR_STOP=1", "-h", "127.0.0.1"]);
        psql.args(["-p", &self.port.to_string(), "-U", USER, "-d", database]);
        for statement in statements {
            psql.args(["-c", statement]);
        }
        psql
    }
}

/// A filled database, of which every test gets a copy.
pub struct Template {
    name: String,
    fill: Box<dyn Fn(&str) + Send + Sync>,
}

impl Template {
    /// Names a template, in letters, digits and `_`, and says how it is filled: with the URL of an empty database.
    ///
    /// Whatever the function connects is cut off when it returns.
    #[must_use]
    pub fn new(name: &str, fill: impl Fn(&str) + Send + Sync + 'static) -> Self {
        assert!(name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_'), "{name}");
        Self { name: format!("template_{name}"), fill: Box::new(fill) }
    }
}

impl fmt::Debug for Template {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Template").field("name", &self.name).finish_non_exhaustive()
    }
}

impl Cluster {
    /// Makes a database that is a copy of a template; the first one of a name fills the template.
    ///
    /// # Panics
    /// When the cluster does not answer, or the template cannot be filled.
    #[must_use]
    pub fn database(&self, template: &Template) -> Database {
        self.fill(template);
        self.create(&format!("TEMPLATE {}", template.name))
    }

    /// Makes a database with nothing in it.
    ///
    /// # Panics
    /// When the cluster does not answer.
    #[must_use]
    pub fn empty_database(&self) -> Database {
        self.create("")
    }

    fn create(&self, how: &str) -> Database {
        static NEXT: AtomicU32 = AtomicU32::new(1);
        // No other process gives the name: if a cluster of another test takes the port of one that is gone, a late
        // drop finds nothing there.
        let name = format!("test_{}_{}", process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        self.access().sql("postgres", &[&format!("CREATE DATABASE {name} {how}")]);
        Database { access: self.access(), name }
    }

    fn fill(&self, template: &Template) {
        let Template { name, fill } = template;
        // Held while the template is filled: whoever wants a copy has to wait for that.
        let mut made = self.templates();
        if made.contains(name) {
            return;
        }
        // One may be left of an attempt that failed.
        let drop = format!("DROP DATABASE IF EXISTS {name} WITH (FORCE)");
        self.access().sql("postgres", &[&drop, &format!("CREATE DATABASE {name}")]);
        fill(&self.access().url(name));
        // A database to which somebody is connected cannot be copied.
        let close = format!("ALTER DATABASE {name} ALLOW_CONNECTIONS false");
        let cut = format!("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{name}'");
        self.access().sql("postgres", &[&close, &cut]);
        made.insert(name.clone());
    }
}

/// A database, dropped at the end if its cluster still answers.
#[derive(Debug)]
pub struct Database {
    access: Access,
    name: String,
}

impl Database {
    /// Returns where it is, as `postgres://user@127.0.0.1:port/name`.
    #[must_use]
    pub fn url(&self) -> String {
        self.access.url(&self.name)
    }

    /// Returns where it is behind other addresses: those of a [`Proxy`](crate::proxy::Proxy), or of several clusters
    /// that hold the same database, in the form of a URL with several hosts.
    #[must_use]
    pub fn url_through(&self, addresses: &[SocketAddr]) -> String {
        let hosts: Vec<String> = addresses.iter().map(SocketAddr::to_string).collect();
        format!("postgres://{USER}@{}/{}", hosts.join(","), self.name)
    }

    /// Returns its name in its cluster.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Runs SQL in one transaction and returns the rows, with `|` between columns.
    ///
    /// # Panics
    /// With what the database said, when it fails.
    pub fn sql(&self, sql: &str) -> String {
        self.access.sql(&self.name, &[sql])
    }
}

impl Drop for Database {
    fn drop(&mut self) {
        let drop = format!("DROP DATABASE IF EXISTS {} WITH (FORCE)", self.name);
        // The cluster may be gone by now, and then the database went with it.
        let _ = self.access.psql("postgres", &[&drop]).output();
    }
}
