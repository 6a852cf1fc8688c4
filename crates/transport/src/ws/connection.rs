//! The task of one connection, from its upgrade to its end.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use driftline_engine::Store;
use driftline_model::DeviceId;
use driftline_protocol::{ErrorMessage, Fault, Form, Head, Outbound};
use hyper::upgrade::{OnUpgrade, Upgraded};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWriteExt as _};

use super::door::{self, Door, Guest, Said, Threshold, close_code, guest_of};
use super::echo::{self, Echo};
use super::form::{frame_bytes, seal};
use super::frame::{write_close, write_frame};
use super::gate::Bounds;
use super::newcomer::{Newcomer, Origin};
use super::outbox::{FAREWELL, Outbox, Writer};
use super::pump::{Speaker, pump};
use super::reader::Reader;
use crate::app::App;
use crate::guard::Guard;
use crate::observe::{count_close, count_error};
use crate::request::Caller;

/// Who enters which door, or why not.
pub(super) enum Visit {
    /// Whoever a token names.
    User(Result<Entrance, Fault>),
    /// Whoever was found out before the upgrade.
    Known(Box<Guest>),
    /// Whoever says with the first message who it is.
    Newcomer(Origin),
    /// Whoever tries frames.
    Echo(Result<(), Fault>),
}

/// A token's bearer before a door.
pub(super) struct Entrance {
    pub(super) caller: Box<Caller>,
    pub(super) device: Option<DeviceId>,
    pub(super) door: Door,
    pub(super) said: Said,
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
            Visit::User(Ok(entrance)) => self.admit(early, entrance).await,
            Visit::Known(guest) => self.host(early, *guest).await,
            Visit::Newcomer(origin) => Ok(Box::pin(self.welcome(early, origin)).await),
            Visit::Echo(Ok(())) => Ok(Box::pin(self.echo(early)).await),
            Visit::User(Err(fault)) | Visit::Echo(Err(fault)) => Err(fault),
        };
        let code = match spoken {
            Ok(code) => code,
            Err(fault) => Box::pin(self.turn_away(&fault)).await,
        };
        count_close(code);
        tracing::info!(connection = %self.id, code, "disconnected");
        Box::pin(read_out(self.read)).await;
    }

    /// Lets a token's bearer in; gives the close code.
    async fn admit(&mut self, early: Bytes, entrance: Entrance) -> Result<u16, Fault> {
        let Entrance { caller, device, door, said } = entrance;
        let guest = Box::pin(guest_of(&self.app, *caller, device, door)).await?;
        let guest = Guest { said, ..guest };
        self.host(early, guest).await
    }

    /// Speaks with a guest; gives the close code.
    async fn host(&mut self, early: Bytes, guest: Guest) -> Result<u16, Fault> {
        let mut link = Box::pin(door::open(&self.app, guest, self.threshold(), None)).await?;
        Ok(self.speak(early, &mut link).await)
    }

    /// Waits for somebody to say who it is, and speaks with whoever it is; gives the close code.
    async fn welcome(&mut self, early: Bytes, origin: Origin) -> u16 {
        let mut newcomer = Newcomer::new(Arc::clone(&self.app), self.threshold(), origin);
        self.speak(early, &mut newcomer).await
    }

    fn threshold(&self) -> Threshold {
        Threshold { form: self.form, number: self.number, id: self.id.clone() }
    }

    async fn speak<P: Speaker>(&mut self, early: Bytes, speaker: &mut P) -> u16 {
        let limits = self.app.engine.limits();
        let bounds = Bounds { message_bytes: frame_bytes(self.form, limits), fragments: limits.fragments };
        let interval = Duration::from_secs(limits.heartbeat_s);
        let mut outbox =
            Outbox::new(limits.outbound_bytes + limits.page_bytes, Duration::from_millis(limits.write_ms));
        let reader = Reader::new(&mut self.read, early, bounds, Arc::clone(&self.app.inbound));
        pump(reader, &mut self.write, speaker, &mut outbox, interval).await
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
        let code = close_code(fault);
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
