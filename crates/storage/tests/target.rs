//! How a database is reached: TLS, passwords, several hosts.

mod support;

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::Path;
use std::time::{Duration, Instant};

use driftline_engine::Store as _;
use driftline_model::TenantId;
use driftline_storage::{PostgresError, PostgresOptions, PostgresStore, PostgresTarget};
use driftline_testkit::postgres::{Cluster, Options};
use driftline_testkit::proxy::Proxy;
use driftline_testkit::{TempFolder, World, block_on};

const CONNECT_MS: u64 = 6_000;

fn open(url: &str, tls_ca: Option<&Path>) -> Result<PostgresStore, PostgresError> {
    let world = World::new(1);
    PostgresStore::open(PostgresOptions {
        target: PostgresTarget {
            url: url.to_owned(),
            tls_ca: tls_ca.map(Path::to_owned),
            connect_ms: CONNECT_MS,
        },
        wait_ms: 10_000,
        ..support::postgres_options(&world)
    })
}

fn refused(url: &str, tls_ca: Option<&Path>) -> String {
    let Err(error) = open(url, tls_ca) else { panic!("{url} is accepted") };
    let told = format!("{error} {error:?}");
    assert!(!told.contains("sesame"), "{url}: {told}");
    error.to_string()
}

const TLS_OF_APP: &str = "SELECT bool_and(s.ssl) FROM pg_stat_ssl AS s JOIN pg_stat_activity AS a USING (pid) WHERE application_name = 'driftline'";

#[test]
fn a_certificate_is_verified_whatever_the_mode() {
    let cluster = Cluster::own(&Options { tls: true, ..Options::default() });
    let database = cluster.empty_database();
    let url = database.url();
    let (ca, other) = (cluster.ca(), cluster.other_ca());
    let pairs = url
        .replace("postgres://driftline@127.0.0.1:", "user=driftline host=127.0.0.1 port=")
        .replace('/', " dbname=");
    for (url, tls_ca) in [
        (format!("{url}?sslmode=require"), Some(ca)),
        (url.clone(), Some(ca)),
        (format!("{url}?sslmode=verify-full&sslrootcert={}", ca.display()), None),
        (format!("{url}?sslmode=verify-ca&sslrootcert={}", other.display()), Some(ca)),
        (format!("{pairs} sslmode=verify-full sslrootcert='{}'", ca.display()), None),
        (format!("{}?sslmode=require", url.replace("127.0.0.1", "localhost")), Some(ca)),
    ] {
        let store = open(&url, tls_ca).unwrap_or_else(|error| panic!("{url}: {error}"));
        assert_eq!(database.sql(TLS_OF_APP), "t", "{url}");
        drop(store);
    }
    for url in [format!("{url}?sslmode=require"), url.clone(), format!("{url}?sslmode=verify-full")] {
        for tls_ca in [Some(other), None] {
            let told = refused(&url, tls_ca);
            assert!(told.contains("invalid peer certificate") && told.contains("tls_ca"), "{told}");
        }
    }
    let elsewhere = cluster.address().port();
    let told = refused(
        &format!(
            "host=db.example hostaddr=127.0.0.1 port={elsewhere} user=driftline dbname={} sslmode=require",
            database.name()
        ),
        Some(ca),
    );
    assert!(told.contains("not valid for name"), "{told}");
    let told = refused(&format!("{url}?sslmode=disable"), None);
    assert!(told.contains("no encryption"), "{told}");
}

#[test]
fn without_tls_on_the_other_side_only_who_requires_it_is_refused() {
    let database = Cluster::shared().empty_database();
    let url = database.url();
    for mode in ["disable", "prefer", "allow"] {
        drop(open(&format!("{url}?sslmode={mode}"), None).unwrap_or_else(|error| panic!("{mode}: {error}")));
    }
    for mode in ["require", "verify-ca", "verify-full"] {
        let told = refused(&format!("{url}?sslmode={mode}&password=sesame"), None);
        assert!(told.contains("server does not support TLS"), "{told}");
    }
    let folder = TempFolder::new();
    let file = folder.path().join("ca.pem");
    assert!(refused(&url, Some(&file)).contains("cannot use the certificates in"));
    std::fs::write(&file, "nothing").expect("writable");
    assert!(refused(&url, Some(&file)).contains("it holds no certificate"));
    let named = format!("{url}?sslrootcert={}", file.display());
    assert!(refused(&named, None).contains("it holds no certificate"));
}

#[test]
fn a_password_opens_and_is_never_shown() {
    let cluster = Cluster::own(&Options {
        settings: vec!["password_encryption=scram-sha-256".into()],
        ..Options::default()
    });
    let database = cluster.empty_database();
    cluster.sql("CREATE ROLE app LOGIN PASSWORD 's?e@s/a%me sesame'");
    cluster.sql(&format!("ALTER DATABASE {} OWNER TO app", database.name()));
    let hba = cluster.data().join("pg_hba.conf");
    let before = std::fs::read_to_string(&hba).expect("it is there");
    std::fs::write(&hba, format!("host all app 127.0.0.1/32 scram-sha-256\n{before}")).expect("writable");
    cluster.sql("SELECT pg_reload_conf()");
    let (host, name) = (cluster.address(), database.name());
    let url = |password: &str| format!("postgres://app:{password}@{host}/{name}");
    let pairs =
        format!("user=app host=127.0.0.1 port={} dbname={name} password='s?e@s/a%me sesame'", host.port());
    for right in [url("s%3Fe%40s%2Fa%25me%20sesame"), pairs] {
        let store = open(&right, None).expect("the password is right");
        assert!(!format!("{store:?}").contains("sesame"));
    }
    let told = refused(&url("sesame"), None);
    assert!(told.contains("password authentication failed for user \"app\""), "{told}");
    let told = refused(&url("sesame").replace(":sesame", ""), None);
    assert!(told.contains("password missing"), "{told}");
    let target = PostgresTarget { url: url("sesame"), tls_ca: None, connect_ms: 1 };
    assert!(!format!("{target:?}").contains("sesame"));
    let world = World::new(1);
    let options = PostgresOptions { target, ..support::postgres_options(&world) };
    assert!(!format!("{options:?}").contains("sesame"));
}

#[test]
fn the_host_that_takes_writes_is_found() {
    let primary = Cluster::own(&Options::default());
    let database = primary.empty_database();
    let standby = Cluster::standby_of(&primary);
    let hole = Proxy::start(primary.address());
    hole.stall();
    let dead = {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port");
        listener.local_addr().expect("it listens")
    };
    let (primary, standby, hole) = (primary.address(), standby.address(), hole.address());
    let limit = Duration::from_millis(CONNECT_MS);
    let table: [(&str, Vec<SocketAddr>); 5] = [
        ("the first is dead", vec![dead, primary]),
        ("the first is a standby", vec![standby, primary]),
        ("the first does not answer", vec![hole, primary]),
        ("none but the last serves", vec![hole, dead, standby, hole, primary]),
        ("only the first serves", vec![primary, hole, dead]),
    ];
    for (case, hosts) in table {
        let url = database.url_through(&hosts);
        let begun = now();
        let store = open(&url, None).unwrap_or_else(|error| panic!("{case}: {error}"));
        println!("{case}: opened in {} ms", begun.elapsed().as_millis());
        // Migrations, the secret and the pool each connect; the search is made once.
        assert!(begun.elapsed() < limit, "{case}: {:?}", begun.elapsed());
        let begun = now();
        block_on(store.tenant(&TenantId::new("acme").expect("a name"))).expect("a tenant");
        println!("{case}: a further answer in {} ms", begun.elapsed().as_millis());
    }
    for (hosts, wanted) in [
        (vec![standby], vec!["database does not allow writes"]),
        (
            vec![dead, standby],
            vec!["127.0.0.1: error connecting to server", "; 127.0.0.1: ", "does not allow writes"],
        ),
        (vec![hole], vec!["it did not answer in time"]),
        (vec![hole, dead], vec!["it did not answer in time; 127.0.0.1: error connecting"]),
    ] {
        let begun = now();
        let told = refused(&format!("{}?password=sesame", database.url_through(&hosts)), None);
        assert!(wanted.iter().all(|part| told.contains(part)), "{hosts:?}: {told}");
        assert!(begun.elapsed() < limit + limit, "{hosts:?}: {:?}", begun.elapsed());
    }
}

#[allow(clippy::disallowed_methods, reason = "how long it takes is what is looked at")]
fn now() -> Instant {
    Instant::now()
}
