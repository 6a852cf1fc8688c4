//! How SQLite goes about statements: by an index to the rows that are wanted, and in their order.

use diesel::prelude::*;
use diesel::query_builder::QueryFragment;
use diesel::sql_query;
use diesel::sql_types::Text;
use diesel::sqlite::Sqlite;
use diesel_migrations::MigrationHarness as _;

use super::open::MIGRATIONS;

#[derive(QueryableByName)]
struct Step {
    #[diesel(sql_type = Text)]
    detail: String,
}

fn plan(connection: &mut SqliteConnection, sql: &str) -> Vec<String> {
    let steps: Vec<Step> = sql_query(format!("EXPLAIN QUERY PLAN {sql}")).load(connection).expect("a plan");
    steps.into_iter().map(|step| step.detail).collect()
}

/// The text of a statement.
pub(super) fn text(statement: &impl QueryFragment<Sqlite>) -> String {
    let text = diesel::debug_query::<Sqlite, _>(statement).to_string();
    text.split(" -- binds").next().unwrap_or_default().to_owned()
}

/// Checks that every statement goes straight to its rows.
pub(super) fn check(statements: &[String]) {
    let mut connection = SqliteConnection::establish(":memory:").expect("a connection");
    connection.run_pending_migrations(MIGRATIONS).expect("the migrations");
    for statement in statements {
        let steps = plan(&mut connection, statement);
        assert!(steps.iter().any(|step| step.contains("USING")), "{statement}: {steps:#?}");
        for step in &steps {
            // An array that stands in the statement is gone through; tables are not.
            let scans =
                step.starts_with("SCAN") && !step.contains("VIRTUAL TABLE") && !step.contains("USING");
            assert!(!scans && !step.contains("TEMP B-TREE"), "{statement}: {steps:#?}");
        }
    }
    let sorted = plan(&mut connection, "SELECT event_id FROM events ORDER BY at");
    assert!(
        sorted.iter().any(|step| step.contains("TEMP B-TREE")),
        "a plan that sorts is noticed: {sorted:#?}"
    );
}
