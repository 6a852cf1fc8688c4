//! Queries whose conditions depend on what is asked. They are prepared anew each time, so none is on the hot path.

use diesel::pg::Pg;
use diesel::query_builder::{BoxedSqlQuery, SqlQuery};
use diesel::sql_query;
use diesel::sql_types::{Array, BigInt, Integer, Text};

/// A query that is made of conditions, all of which must hold.
pub(super) struct Filter {
    sql: String,
    conditions: usize,
    binds: Vec<Bind>,
}

enum Bind {
    Number(i64),
    Numbers(Vec<i32>),
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
        let place = self.bind(Bind::Number(number));
        self.holds(&format!("{compared} {place}"));
    }

    /// Adds a comparison with a text.
    pub(super) fn text(&mut self, compared: &str, text: &str) {
        let place = self.bind(Bind::Text(text.to_owned()));
        self.holds(&format!("{compared} {place}"));
    }

    /// Adds a comparison with a number and a text.
    pub(super) fn pair(&mut self, compared: &str, (number, text): (i64, &str)) {
        let (number, text) = (self.bind(Bind::Number(number)), self.bind(Bind::Text(text.to_owned())));
        self.holds(&format!("{compared} ({number}, {text})"));
    }

    /// Has a column be one of some numbers.
    pub(super) fn among(&mut self, column: &str, values: impl Iterator<Item = i32>) {
        let place = self.bind(Bind::Numbers(values.collect()));
        self.holds(&format!("{column} = ANY({place})"));
    }

    /// Orders the rows and bounds their number.
    pub(super) fn limit(&mut self, order: &str, rows: usize) {
        let place = self.bind(Bind::Number(i64::try_from(rows).unwrap_or(i64::MAX)));
        self.sql.push_str(&format!(" {order} {place}"));
    }

    pub(super) fn query(self) -> BoxedSqlQuery<'static, Pg, SqlQuery> {
        self.binds.into_iter().fold(sql_query(self.sql).into_boxed(), |query, bind| match bind {
            Bind::Number(number) => query.bind::<BigInt, _>(number),
            Bind::Numbers(numbers) => query.bind::<Array<Integer>, _>(numbers),
            Bind::Text(text) => query.bind::<Text, _>(text),
        })
    }

    /// Takes note of a value; gives how the query names it.
    fn bind(&mut self, value: Bind) -> String {
        self.binds.push(value);
        format!("${}", self.binds.len())
    }
}
