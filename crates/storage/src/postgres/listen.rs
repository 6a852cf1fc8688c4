//! An ear for the outbox: a connection of its own hears of rows as they are committed, and a look every now and then
//! finds what it did not hear.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::timeout;

use super::Shared;
use super::connect::Listening;

/// What the trigger of the outbox rings.
const CHANNEL: &str = "driftline_outbox";
/// How often somebody looks while nothing can be heard.
const DEAF: Duration = Duration::from_secs(1);
/// How often somebody looks while the ear is open: rows that another session held are not told of again. So often it is
/// seen whether the connection still stands, too.
const OPEN: Duration = Duration::from_secs(5);

/// Rings when rows may have come into the outbox.
#[derive(Default)]
pub(super) struct Bell {
    rings: Arc<Notify>,
    /// Whether somebody listens to the database. Nobody does for those who never ask.
    listens: AtomicBool,
}

/// Waits until rows may have come. It ends at once the first time.
pub(super) async fn waits(shared: Arc<Shared>) {
    let bell = &shared.bell;
    if !bell.listens.swap(true, Ordering::SeqCst) {
        bell.rings.notify_one();
        shared.runtime.spawn(listen(Arc::downgrade(&shared)));
    }
    let rings = Arc::clone(&bell.rings);
    drop(shared);
    rings.notified().await;
}

/// Listens until the store is gone.
async fn listen(shared: Weak<Shared>) {
    let mut away = false;
    while let Some(here) = shared.upgrade() {
        let rings = Arc::clone(&here.bell.rings);
        let connector = here.writers.connector();
        drop(here);
        let heard = Arc::clone(&rings);
        match connector.listen(CHANNEL, move || heard.notify_one()).await {
            Ok(ear) => {
                away = false;
                hear(&shared, &ear, &rings).await;
            }
            Err(error) => {
                // Once per time that it is away.
                if !away {
                    tracing::warn!(%error, "the outbox cannot be listened to, looking every second");
                }
                away = true;
            }
        }
        rings.notify_one();
        tokio::time::sleep(DEAF).await;
    }
}

/// Looks every now and then for as long as the connection stands.
async fn hear(shared: &Weak<Shared>, ear: &Listening, rings: &Notify) {
    while shared.strong_count() > 0 {
        // What came before somebody listened was not heard.
        rings.notify_one();
        tokio::select! {
            () = ear.ended() => return,
            () = tokio::time::sleep(OPEN) => {}
        }
        if !matches!(timeout(OPEN, ear.answers()).await, Ok(true)) {
            return;
        }
    }
}
