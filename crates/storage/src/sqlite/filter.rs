//! Queries whose conditions depend on what is asked. They are prepared anew each time, so none is on the hot path.

use diesel::query_builder::{BoxedSqlQuery, SqlQuery};
use diesel::sql_query;
use diesel::sql_types::{BigInt, Text};
use diesel::sqlite::Sqlite;

use super::pages::numbers;

/// A query that is made of conditions, all of which must hold.
pub(super) struct Filter {
    sql: String,
    conditions: usize,
    binds: Vec<Bind>,
}

enum Bind {
    Number(i64),
    Text(String),
}

impl Filter {
    /// Starts with what is selected from which tables.
    pub(super) fn new(select: &str) -> Self {
        Self { sql: select.to_owned(), conditions: 0, binds: Vec::new() }
    }

    /// Adds a condition without values.
    pub(super) fn holds(&mut self, condition: &str) {
        self.sql.push_str(if self.conditions == 0 { " WHERE " } else { " AND " });
        self.sql.push_str(condition);
        self.conditions += 1;
    }

    /// Adds a comparison with a number.
    pub(super) fn number(&mut self, compared: &str, number: i64) {
        self.holds(&format!("{compared} ?"));
        self.binds.push(Bind::Number(number));
    }

    /// Adds a comparison with a text.
    pub(super) fn text(&mut self, compared: &str, text: &str) {
        self.holds(&format!("{compared} ?"));
        self.binds.push(Bind::Text(text.to_owned()));
    }

    /// Adds a comparison with a number and a text.
    pub(super) fn pair(&mut self, compared: &str, (number, text): (i64, &str)) {
        self.holds(&format!("{compared} (?, ?)"));
        self.binds.extend([Bind::Number(number), Bind::Text(text.to_owned())]);
    }

    /// Has a column be one of some numbers. A single one is compared, so that an index which goes on with another
    /// column serves.
    pub(super) fn among(&mut self, column: &str, values: impl Iterator<Item = i32>) {
        let values: Vec<i32> = values.collect();
        if let [one] = values[..] {
            self.number(&format!("{column} ="), i64::from(one));
            return;
        }
        self.holds(&format!("{column} IN (SELECT value FROM json_each(?))"));
        self.binds.push(Bind::Text(numbers(&values)));
    }

    /// Orders the rows and bounds their number.
    pub(super) fn limit(&mut self, order: &str, rows: usize) {
        self.sql.push_str(&format!(" {order} ?"));
        self.binds.push(Bind::Number(i64::try_from(rows).unwrap_or(i64::MAX)));
    }

    pub(super) fn query(self) -> BoxedSqlQuery<'static, Sqlite, SqlQuery> {
        self.binds.into_iter().fold(sql_query(self.sql).into_boxed(), |query, bind| match bind {
            Bind::Number(number) => query.bind::<BigInt, _>(number),
            Bind::Text(text) => query.bind::<Text, _>(text),
        })
    }
}
