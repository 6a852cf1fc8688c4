//! How SQLite goes about the statements of the log: by an index to the rows that are wanted, and in their order.

use diesel::prelude::*;
use diesel::query_builder::QueryFragment;
use diesel::sql_query;
use diesel::sql_types::Text;
use diesel::sqlite::Sqlite;
use diesel_migrations::MigrationHarness as _;

use super::super::open::MIGRATIONS;
use super::{devices, outbox, read, trim, write};

#[derive(QueryableByName)]
struct Step {
    #[diesel(sql_type = Text)]
    detail: String,
}

fn plan(connection: &mut SqliteConnection, sql: &str) -> Vec<String> {
    let steps: Vec<Step> = sql_query(format!("EXPLAIN QUERY PLAN {sql}")).load(connection).expect("a plan");
    steps.into_iter().map(|step| step.detail).collect()
}

fn text(statement: &impl QueryFragment<Sqlite>) -> String {
    let text = diesel::debug_query::<Sqlite, _>(statement).to_string();
    text.split(" -- binds").next().unwrap_or_default().to_owned()
}

#[test]
fn every_statement_goes_straight_to_its_rows() {
    let mut connection = SqliteConnection::establish(":memory:").expect("a connection");
    connection.run_pending_migrations(MIGRATIONS).expect("the migrations");
    let (tenant_no, topic_no, above, through, limit) = (1, 1, 0, 9, 9);
    let any = String::new;
    let statements = [
        text(&read::LoadTopics { names: any(), tenant_no }),
        text(&read::OfTopic { tenant_no, topic_no, above, through, limit }),
        text(&read::RisingIds { topic_no, above, through, limit }),
        text(&read::FallingIds { topic_no, above, through, limit }),
        text(&read::ByIds { ids: any(), tenant_no }),
        text(&read::ByDedupe { tenant_no, key: any() }),
        text(&write::LoadDedupe { keys: any(), tenant_no }),
        text(&write::LoadVersions { things: any(), tenant_no }),
        text(&write::FindTopic { tenant_no, topic: any() }),
        text(&trim::LoadTopics { after: 0, limit }),
        text(&trim::FirstOfTopic { topic_no }),
        text(&trim::BehindNewest { topic_no, keep: 9 }),
        text(&trim::KeptFrom { tenant_no, from: 1 }),
        text(&trim::LastKept { tenant_no }),
        text(&trim::LoadStates { tenant_no, thing: any(), limit }),
        text(&devices::LoadFollowing { tenant_no, device_no: 1 }),
        text(&devices::LoadRead { ids: any(), tenant_no, sub: any() }),
        outbox::WAITING.to_owned(),
        outbox::CLEAN.to_owned(),
        super::watch::LOOK.to_owned(),
    ];
    for statement in &statements {
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
