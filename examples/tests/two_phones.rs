//! The story of two phones at a size for every run of the tests.

use std::path::PathBuf;

use driftline_examples::server::Embedded;
use driftline_examples::two_phones::{STRATEGIES, Size, Tables, play};
use driftline_testkit::TempFolder;

/// The folder of the real tables, which `scripts/test` installs and names.
fn tables() -> PathBuf {
    let cache = || {
        Some(
            PathBuf::from(std::env::var_os("HOME")?)
                .join(".cache/driftline/vega/node_modules/vega-datasets/data"),
        )
    };
    let folder = std::env::var_os("DRIFTLINE_VEGA").map(PathBuf::from).or_else(cache).expect("a folder");
    assert!(
        folder.join("movies.json").exists(),
        "run scripts/test, which installs the tables: {}",
        folder.display()
    );
    folder
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_phones_and_a_late_third_agree_under_every_strategy() {
    let size = Size { movies: 3201, cars: 406, edits: 500 };
    let tables = Tables::read(&tables(), size).expect("the tables");
    assert_eq!(tables.len(), 3607);
    let folder = TempFolder::new();
    let server = Embedded::start(folder.path()).await.expect("a server");
    for policy in STRATEGIES {
        let report = play(&server, &tables, policy, size, &mut |_| {}).await.expect(policy);
        assert_eq!(report.kept_a + report.kept_b, 500, "{policy}");
        match (report.strategy.as_str(), policy.contains("granularity")) {
            // The later arrival wins, and nothing else is lost.
            ("client_wins", _) => assert_eq!((report.kept_b, report.lost), (500, 500), "{policy}"),
            // Phone B's items are refused as a whole: its own note is lost too.
            ("server_wins", false) => assert_eq!((report.kept_a, report.lost), (500, 1000), "{policy}"),
            ("server_wins", true) => assert_eq!((report.kept_a, report.lost), (500, 500), "{policy}"),
            // Clocks decide, whoever arrives first; no note is lost.
            _ => {
                assert_eq!(report.lost, 500, "{policy}");
                assert!(report.kept_a > 0 && report.kept_b > 0, "{policy}: {report:?}");
            }
        }
    }
    server.stop().await.expect("a clean stop");
}
