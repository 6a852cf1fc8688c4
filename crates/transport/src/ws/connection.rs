//! The task of one connection, from its upgrade to its end.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use driftline_engine::{Session, Store};
use driftline_model::DeviceId;
use driftline_protocol::{ErrorCode, ErrorMessage, Fault, Form, Head, Outbound};
use hyper::upgrade::{OnUpgrade, Upgraded};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWriteExt as _};

use super::echo::{self, Echo};
use super::form::{frame_bytes, seal};
use super::frame::{write_close, write_frame};
use super::gate::Bounds;
use super::link::{Link, Visitor};
use super::outbox::{FAREWELL, Outbox, Writer};
use super::pump::pump;
use super::reader::Reader;
use crate::app::App;
use crate::auth::Claims;
use crate::guard::Guard;
use crate::observe::{count_close, count_error};
use crate::request::identity;

/// Who enters which door, or why not.
pub(super) enum Visit {
    /// A device that syncs.
    Sync(Result<(Box<Claims>, DeviceId), Fault>),
    /// Whoever tries frames.
    Echo(Result<(), Fault>),
}

/// How long the peer's side of a closed connection is read out.
const LINGER: Duration = Duration::from_secs(1);

/// Runs a connection after its upgrade was answered.
pub(super) async fn run<S: Store>(app: Arc<App<S>>, upgraded: OnUpgrade, form: Form, visit: Visit) {
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
            Box::pin(Connection::new(app, read, write, form).attend(parts.read_buf, visit)).await;
        }
        Err(upgraded) => {
            let (read, write) = tokio::io::split(TokioIo::new(upgraded) as TokioIo<Upgraded>);
            Box::pin(Connection::new(app, read, write, form).attend(Bytes::new(), visit)).await;
        }
    }
}

/// An open socket.
struct Connection<S: Store, R, W> {
    app: Arc<App<S>>,
    read: R,
    write: W,
    form: Form,
    number: u64,
    id: String,
}

impl<S: Store, R, W> Connection<S, R, W>
where
    R: AsyncRead + Unpin + Send,
    W: Writer,
{
    fn new(app: Arc<App<S>>, read: R, write: W, form: Form) -> Self {
        let number = app.next_connection();
        let id = format!("{:08x}-{number}", app.random_u128() >> 96);
        Self { app, read, write, form, number, id }
    }

    /// Speaks until the end; `early` are bytes that came with the handshake.
    async fn attend(mut self, early: Bytes, visit: Visit) {
        let spoken = match visit {
            Visit::Sync(Ok(entrance)) => self.sync(early, entrance).await,
            Visit::Echo(Ok(())) => Ok(Box::pin(self.echo(early)).await),
            Visit::Sync(Err(fault)) | Visit::Echo(Err(fault)) => Err(fault),
        };
        let code = match spoken {
            Ok(code) => code,
            Err(fault) => Box::pin(self.turn_away(&fault)).await,
        };
        count_close(code);
        tracing::info!(connection = %self.id, code, "disconnected");
        Box::pin(read_out(self.read)).await;
    }

    /// Syncs; gives the close code.
    async fn sync(&mut self, early: Bytes, (claims, device): (Box<Claims>, DeviceId)) -> Result<u16, Fault> {
        let app = &self.app;
        let expires_s = claims.expires_s;
        let numbering = app.engine.numbering();
        let identity = Arc::new(Box::pin(identity(app, *claims, Some(device))).await?);
        let head = Box::pin(app.engine.head(&identity)).await?;
        let (limits, now_ms) = (Arc::clone(app.engine.limits()), app.now_ms());
        let bounds = Bounds { message_bytes: frame_bytes(self.form, &limits), fragments: limits.fragments };
        let interval = Duration::from_secs(limits.heartbeat_s);
        let mut outbox =
            Outbox::new(limits.outbound_bytes + limits.page_bytes, Duration::from_millis(limits.write_ms));
        let meter = app.engine.meter(&identity.tenant_id, &identity.user, now_ms);
        let (id, seed) = (self.id.clone(), app.random_u128());
        let session = Session::new(Arc::clone(&identity), limits, meter, &head, id, seed, now_ms);
        let seat = identity.device.as_ref().map(|(device, _)| (identity.tenant, *device));
        let replaced = seat.map(|(tenant, device)| app.seat(tenant, device, self.number));
        tracing::info!(connection = %self.id, tenant = %identity.tenant_id, "connected");
        let visitor = Visitor {
            form: self.form,
            identity,
            connection_id: self.id.clone(),
            replaced: replaced.unwrap_or_default(),
            expires_s,
            numbering,
        };
        let mut link = Link::new(Arc::clone(app), session, visitor);
        let reader = Reader::new(&mut self.read, early, bounds, Arc::clone(&app.inbound));
        let code = pump(reader, &mut self.write, &mut link, &mut outbox, interval).await;
        if let Some((tenant, device)) = seat {
            self.app.unseat(tenant, device, self.number);
        }
        Ok(code)
    }

    /// Echoes; gives the close code.
    async fn echo(&mut self, early: Bytes) -> u16 {
        tracing::info!(connection = %self.id, "connected to the echo");
        let limits = self.app.engine.limits();
        let interval = Duration::from_secs(limits.heartbeat_s);
        let mut outbox = Outbox::new(echo::OUTBOUND_BYTES, Duration::from_millis(limits.write_ms));
        let mut echo = Echo::new(Arc::clone(&self.app));
        let reader = Reader::new(&mut self.read, early, echo::BOUNDS, Arc::clone(&self.app.inbound));
        pump(reader, &mut self.write, &mut echo, &mut outbox, interval).await
    }

    /// Tells on the open socket why nobody is let in; gives the close code.
    async fn turn_away(&mut self, fault: &Fault) -> u16 {
        count_error(fault.code);
        // Our own failure while connecting closes 4000.
        let code = match (fault.code, fault.code.close()) {
            (_, Some(close)) => close.0,
            (ErrorCode::Forbidden, None) => 4503,
            // A device name that cannot be one is as good as none; coming back with it helps nobody.
            (ErrorCode::ValidationError, None) => 4502,
            (_, None) => 4000,
        };
        let message = Outbound::Error(ErrorMessage::new(fault, &self.id));
        let head = Head { now_ms: self.app.now_ms(), ..Head::default() };
        let mut out = Vec::new();
        seal(self.form, &message.encode(&head), |opcode, payload| write_frame(&mut out, opcode, payload));
        write_close(&mut out, code, fault.code.as_str());
        tracing::info!(connection = %self.id, code, error = %fault.code, "turned away");
        let farewell = async {
            // The peer may be gone already.
            let _ = self.write.write_all(&out).await;
            let _ = self.write.shutdown().await;
        };
        if tokio::time::timeout(FAREWELL, farewell).await.is_err() {
            self.write.tear();
        }
        code
    }
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
