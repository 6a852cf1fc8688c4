//! Publishing what other programs write into the outbox.

use std::sync::Arc;
use std::time::Duration;

use driftline_engine::{Drained, Engine, Observer, Store};
use driftline_protocol::Fault;
use driftline_storage::AnyStore;
use driftline_transport::App;

use crate::realtime::Outbox;

/// Rows of one transaction.
pub(crate) const BATCH: usize = 100;

/// How long a failed look is waited after, at first and at most.
const BACK_OFF: Duration = Duration::from_millis(100);
const BACK_OFF_MAX: Duration = Duration::from_secs(10);

/// Publishes rows as they come, until it is aborted. Aborting loses nothing: a row is marked in the transaction that
/// publishes it.
pub(crate) async fn keep_drained(app: Arc<App<AnyStore>>, outbox: Outbox) {
    if !outbox.enabled {
        return;
    }
    let engine = app.engine();
    let mut back_off = None;
    loop {
        match drain(engine, BATCH).await {
            Ok(_) => {
                if back_off.take().is_some() {
                    tracing::info!("the outbox is processed again");
                }
                // A row that was missed by every doorbell waits no longer than this.
                let _ = tokio::time::timeout(outbox.poll, engine.outbox_waits()).await;
            }
            Err(fault) => {
                // The same trouble is not told again with every try.
                if back_off.is_none() {
                    tracing::warn!(error = fault.message, "the outbox cannot be processed, trying again");
                }
                let wait = back_off.map_or(BACK_OFF, |last: Duration| (last * 2).min(BACK_OFF_MAX));
                back_off = Some(wait);
                tokio::time::sleep(wait).await;
            }
        }
    }
}

/// Publishes everything that waits, so many rows at a time; gives what came of it.
pub(crate) async fn drain<S: Store, O: Observer>(
    engine: &Engine<S, O>,
    batch: usize,
) -> Result<Drained, Fault> {
    let mut whole = Drained::default();
    loop {
        let drained = engine.drain_outbox(batch).await?;
        whole.processed += drained.processed;
        whole.failed += drained.failed;
        if drained.failed > 0 {
            tracing::warn!(
                rows = drained.failed,
                "rows of the outbox make no event; their column error says why"
            );
        }
        if drained.processed == 0 {
            return Ok(whole);
        }
    }
}
