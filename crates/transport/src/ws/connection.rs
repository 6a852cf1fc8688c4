//! The task of one connection, from its upgrade to its end.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use driftline_engine::{Session, Store};
use driftline_model::DeviceId;
use driftline_protocol::{ErrorCode, ErrorMessage, Fault, Head, Outbound};
use hyper::upgrade::{OnUpgrade, Upgraded};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};

use super::frame::{Opcode, write_close, write_frame};
use super::link::Link;
use super::outbox::{FAREWELL, Outbox};
use super::pump::pump;
use super::reader::Reader;
use crate::app::App;
use crate::auth::Claims;
use crate::guard::Guard;
use crate::observe::{count_close, count_error};
use crate::request::identity;

/// Who enters, or why not.
pub(super) type Entrance = Result<(Box<Claims>, DeviceId), Fault>;

/// How long the peer's side of a closed connection is read out.
const LINGER: Duration = Duration::from_secs(1);

/// Runs a connection after its upgrade was answered.
pub(super) async fn run<S: Store>(app: Arc<App<S>>, upgraded: OnUpgrade, entrance: Entrance) {
    let upgraded = match upgraded.await {
        Ok(upgraded) => upgraded,
        Err(error) => return tracing::debug!(%error, "the upgrade did not happen"),
    };
    // A plain TCP stream splits without a lock; anything else goes through the general split. The times of requests
    // end with the upgrade.
    match upgraded.downcast::<TokioIo<Guard>>() {
        Ok(parts) => {
            let Some(stream) = parts.io.into_inner().into_stream() else { return };
            let (read, write) = stream.into_split();
            Box::pin(attend(app, read, write, parts.read_buf, entrance)).await;
        }
        Err(upgraded) => {
            let (read, write) = tokio::io::split(TokioIo::new(upgraded) as TokioIo<Upgraded>);
            Box::pin(attend(app, read, write, Bytes::new(), entrance)).await;
        }
    }
}

async fn attend<S: Store, R, W>(app: Arc<App<S>>, mut read: R, mut write: W, early: Bytes, entrance: Entrance)
where
    R: AsyncRead + Unpin + Send,
    W: AsyncWrite + Unpin + Send,
{
    let number = app.next_connection();
    let connection_id = format!("{:08x}-{number}", app.random_u128() >> 96);
    let (claims, device) = match entrance {
        Ok(entrance) => entrance,
        Err(fault) => return turn_away(&app, read, write, &fault, &connection_id).await,
    };
    let expires_s = claims.expires_s;
    let identity = match identity(&app, *claims, Some(device)).await {
        Ok(identity) => Arc::new(identity),
        Err(fault) => return turn_away(&app, read, write, &fault, &connection_id).await,
    };
    let head = match app.engine.head(&identity).await {
        Ok(head) => head,
        Err(fault) => return turn_away(&app, read, write, &fault, &connection_id).await,
    };
    let limits = Arc::clone(app.engine.limits());
    let (bytes_max, now_ms) = (limits.message_bytes, app.now_ms());
    let interval = Duration::from_secs(limits.heartbeat_s);
    let mut outbox = Outbox::new(limits.outbound_bytes + limits.page_bytes);
    let meter = app.engine.meter(&identity.tenant_id, &identity.user, now_ms);
    let (id, id_seed) = (connection_id.clone(), app.random_u128());
    let session = Session::new(Arc::clone(&identity), limits, meter, &head, id, id_seed, now_ms);
    let seat = identity.device.as_ref().map(|(device, _)| (identity.tenant, *device));
    let replaced = seat.map(|(tenant, device)| app.seat(tenant, device, number)).unwrap_or_default();
    tracing::info!(connection = %connection_id, tenant = %identity.tenant_id, "connected");
    let mut link = Link::new(Arc::clone(&app), identity, session, connection_id.clone(), replaced, expires_s);
    let reader = Reader::new(&mut read, early, bytes_max);
    let reason = pump(reader, &mut write, &mut link, &mut outbox, interval).await;
    if let Some((tenant, device)) = seat {
        app.unseat(tenant, device, number);
    }
    count_close(reason);
    tracing::info!(connection = %connection_id, code = reason, "disconnected");
    read_out(read).await;
}

/// Reads what the peer still sends, until it closes too: unread bytes would make the kernel reset the connection, and
/// a reset overtakes the close frame on its way.
async fn read_out<R: AsyncRead + Unpin>(mut read: R) {
    let rest = async {
        let mut scrap = vec![0; 8 << 10];
        while let Ok(1..) = read.read(&mut scrap).await {}
    };
    let _ = tokio::time::timeout(LINGER, rest).await;
}

/// Tells on the open socket why nobody is let in.
async fn turn_away<S: Store>(
    app: &App<S>,
    read: impl AsyncRead + Unpin,
    mut write: impl AsyncWrite + Unpin,
    fault: &Fault,
    connection_id: &str,
) {
    count_error(fault.code);
    // Our own failure while connecting closes 4000.
    let code = match (fault.code, fault.code.close()) {
        (_, Some(close)) => close.0,
        (ErrorCode::Forbidden, None) => 4503,
        // A device name that cannot be one is as good as none; coming back with it helps nobody.
        (ErrorCode::ValidationError, None) => 4502,
        (_, None) => 4000,
    };
    let message = Outbound::Error(ErrorMessage::new(fault, connection_id));
    let head = Head { now_ms: app.now_ms(), ..Head::default() };
    let mut out = Vec::new();
    write_frame(&mut out, Opcode::Text, message.encode(&head).as_bytes());
    write_close(&mut out, code, fault.code.as_str());
    count_close(code);
    tracing::info!(connection = %connection_id, code, error = %fault.code, "turned away");
    let farewell = async {
        // The peer may be gone already.
        let _ = write.write_all(&out).await;
        let _ = write.shutdown().await;
    };
    let _ = tokio::time::timeout(FAREWELL, farewell).await;
    read_out(read).await;
}
