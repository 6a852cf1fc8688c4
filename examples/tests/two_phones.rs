//! The story of two phones at a size for every run of the tests.

use driftline_examples::server::Embedded;
use driftline_examples::two_phones::{STRATEGIES, Size, Tables, folder, play};
use driftline_testkit::TempFolder;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_phones_and_a_late_third_agree_under_every_strategy() {
    let size = Size { movies: 3201, cars: 406, edits: 500 };
    let tables =
        Tables::read(&folder().expect("scripts/test installs the tables"), size).expect("the tables");
    assert_eq!(tables.len(), 3607);
    let data = TempFolder::new();
    let server = Embedded::start(data.path()).await.expect("a server");
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
