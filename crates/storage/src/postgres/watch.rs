//! What other nodes commit, by comparing heads.

use std::collections::HashMap;
use std::sync::{Arc, Weak};
use std::time::Duration;

use diesel::QueryableByName;
use diesel::sql_query;
use diesel::sql_types::{Array, BigInt, Integer};
use diesel_async::RunQueryDsl;
use driftline_engine::StoreError;
use driftline_model::{Hlc, Seq, TenantNo};
use tokio::time::timeout;

use super::connect::Lease;
use super::tell::{Seen, tell_seen};
use super::{Shared, store_error};
use crate::names::{tenant_of, tenant_sql};

/// After which time a database that did not answer counts as one that hangs.
const HANGS: Duration = Duration::from_secs(5);

#[derive(QueryableByName)]
struct Stood {
    #[diesel(sql_type = Integer)]
    tenant_no: i32,
    #[diesel(sql_type = BigInt)]
    seq: i64,
    #[diesel(sql_type = BigInt)]
    hlc: i64,
    #[diesel(sql_type = BigInt)]
    event_id: i64,
    #[diesel(sql_type = BigInt)]
    policies_version: i64,
}

/// Looks at the heads until the store is gone. Whoever listens to a tenant whose head moved elsewhere is told of the
/// new head without its changes, and pulls them; and of the events, which are read from the log.
pub(super) async fn watch(shared: Weak<Shared>, every: Duration) {
    let mut policies: HashMap<TenantNo, i64> = HashMap::new();
    let mut away = false;
    loop {
        tokio::time::sleep(every).await;
        let Some(shared) = shared.upgrade() else { return };
        match look(&shared, &mut policies).await {
            Ok(()) => away = false,
            Err(error) => {
                // Once per time that it is away.
                if !away {
                    tracing::warn!(%error, "the heads cannot be compared");
                }
                away = true;
            }
        }
    }
}

async fn look(shared: &Arc<Shared>, policies: &mut HashMap<TenantNo, i64>) -> Result<(), StoreError> {
    let tenants: Vec<i32> = shared.caches.tellers.watched().into_iter().map(tenant_sql).collect();
    if tenants.is_empty() {
        return Ok(());
    }
    let forgotten = shared.caches.tellers.forgotten();
    let lease = shared.reader().await?;
    let Ok(heads) = timeout(HANGS, heads(&lease, tenants)).await else {
        // The next look makes a connection. Where it leads to another timeline, what still waits for this one ends.
        shared.readers.doubt();
        return Err(StoreError::Unavailable("the database did not answer in time".into()));
    };
    let heads = heads?;
    lease.done();
    for head in heads {
        let tenant = tenant_of(head.tenant_no);
        let known = policies.insert(tenant, head.policies_version);
        // Of a tenant that was never looked at, policies may have been read before somebody else changed them.
        if known != Some(head.policies_version) {
            shared.listeners.policies_changed(tenant);
        }
        let unsigned = |stored: i64| u64::try_from(stored).unwrap_or_default();
        let (seq, hlc) = (Seq::new(unsigned(head.seq)), Hlc::from_bits(unsigned(head.hlc)));
        tell_seen(shared, tenant, Seen { seq, hlc, event: unsigned(head.event_id), forgotten });
    }
    Ok(())
}

async fn heads(lease: &Lease, tenants: Vec<i32>) -> Result<Vec<Stood>, StoreError> {
    sql_query(
        "SELECT tenant_no, seq, hlc, event_id, policies_version FROM stream_head WHERE tenant_no = ANY($1)",
    )
    .bind::<Array<Integer>, _>(tenants)
    .load(&mut lease.pg())
    .await
    .map_err(store_error)
}
