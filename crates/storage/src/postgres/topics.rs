//! Numbers of topics: found in the table, and given, as those of kinds and scopes are.
//!
//! There may be as many topics as there are devices and users, so that a node remembers some of them only.

use std::collections::{BTreeSet, HashMap};

use diesel::QueryResult;
use diesel::pg::Pg;
use diesel::query_builder::{AstPass, Query, QueryFragment, QueryId};
use diesel::sql_types::{Array, Integer, Text};
use diesel_async::{AsyncPgConnection, RunQueryDsl};
use driftline_engine::{EventWrite, StoreError, Submission};
use driftline_model::TenantNo;

use super::caches::Caches;
use super::sql::statement;
use super::store_error;
use crate::names::tenant_sql;

statement! {
    /// The numbers of topics.
    FindTopics<'a> { tenant_no: i32 => Integer, names: Vec<&'a str> => Array<Text> } =
    "SELECT topic_no, topic FROM topics WHERE tenant_no = " ? tenant_no: Integer
    " AND topic = ANY(" ? names: Array<Text>
    ")"
}

impl Query for FindTopics<'_> {
    type SqlType = (Integer, Text);
}

statement! {
    /// Gives numbers to topics, in the order of their names: two nodes that give some at once wait in one order.
    GiveTopics<'a> { tenant_no: i32 => Integer, names: Vec<&'a str> => Array<Text> } =
    "INSERT INTO topics (tenant_no, topic) SELECT " ? tenant_no: Integer
    ", name FROM unnest(" ? names: Array<Text>
    ") AS w(name) ON CONFLICT DO NOTHING"
}

/// The numbers of a tenant's topics, taken down at one moment.
pub(super) type TopicNumbers = HashMap<Box<str>, i32>;

/// The topics of the events that a group of one tenant brings to be kept.
pub(super) fn of_group(group: &[Submission]) -> BTreeSet<&str> {
    let kept = group.iter().flat_map(|submission| &submission.events).filter(|draft| draft.durable);
    kept.flat_map(|draft| &draft.topics).map(|topic| &**topic).collect()
}

/// Takes down the numbers of the topics of events of one tenant; fails with those that are not remembered.
pub(super) fn numbers(
    caches: &Caches,
    tenant: TenantNo,
    writes: &[EventWrite],
) -> Result<TopicNumbers, BTreeSet<Box<str>>> {
    let (mut numbers, mut unnamed) = (TopicNumbers::new(), BTreeSet::new());
    for topic in writes.iter().flat_map(|write| &write.event.topics) {
        if numbers.contains_key(topic) || unnamed.contains(topic) {
            continue;
        }
        match caches.topics.get(&(tenant, topic.clone())) {
            Some(number) => drop(numbers.insert(topic.clone(), number)),
            None => drop(unnamed.insert(topic.clone())),
        }
    }
    if unnamed.is_empty() { Ok(numbers) } else { Err(unnamed) }
}

/// Finds the numbers of topics; those that have none are left out.
pub(super) async fn find<'a>(
    caches: &Caches,
    pg: &AsyncPgConnection,
    tenant: TenantNo,
    topics: impl IntoIterator<Item = &'a str>,
) -> Result<TopicNumbers, StoreError> {
    let generation = caches.generation();
    let (mut known, mut unknown) = (TopicNumbers::new(), Vec::new());
    for topic in topics {
        match caches.topics.get(&(tenant, topic.into())) {
            Some(number) => drop(known.insert(topic.into(), number)),
            None => unknown.push(topic),
        }
    }
    if !unknown.is_empty() {
        for (number, topic) in look(pg, tenant, unknown).await.map_err(store_error)? {
            caches.keep_topic(generation, tenant, &topic, number);
            known.insert(topic.into(), number);
        }
    }
    Ok(known)
}

/// Returns the numbers of topics if all of them are remembered.
pub(super) fn remembered<'a>(
    caches: &Caches,
    tenant: TenantNo,
    topics: impl IntoIterator<Item = &'a str>,
) -> Option<TopicNumbers> {
    let numbered = |topic: &str| Some((topic.into(), caches.topics.get(&(tenant, topic.into()))?));
    topics.into_iter().map(numbered).collect()
}

/// Finds the numbers of topics, giving those that have none. Nothing may be open on the connection: a number is committed
/// before anything refers to it.
pub(super) async fn intern(
    caches: &Caches,
    mut pg: &AsyncPgConnection,
    tenant: TenantNo,
    topics: BTreeSet<&str>,
) -> Result<(), StoreError> {
    if topics.is_empty() {
        return Ok(());
    }
    let found = find(caches, pg, tenant, topics.iter().copied()).await?;
    let new: Vec<&str> = topics.into_iter().filter(|topic| !found.contains_key(*topic)).collect();
    if new.is_empty() {
        return Ok(());
    }
    let given = GiveTopics { tenant_no: tenant_sql(tenant), names: new.clone() };
    given.execute(&mut pg).await.map_err(store_error)?;
    find(caches, pg, tenant, new).await.map(drop)
}

async fn look(
    mut pg: &AsyncPgConnection,
    tenant: TenantNo,
    names: Vec<&str>,
) -> QueryResult<Vec<(i32, String)>> {
    FindTopics { tenant_no: tenant_sql(tenant), names }.load(&mut pg).await
}
