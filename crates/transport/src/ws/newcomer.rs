//! A connection on which nobody has said yet who it is.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use driftline_engine::{Store, hash_digest};
use driftline_protocol::{Auth, ErrorCode, ErrorMessage, Fault, Head, Inbound, Outbound};
use futures_util::future::BoxFuture;
use tokio::sync::watch;
use tokio::time::{Sleep, sleep};

use super::door::{self, Door, Guest, Said, Threshold, close_code, guest_of};
use super::form::{Misfit, open, seal};
use super::link::{self, Link};
use super::outbox::Outbox;
use super::pump::{Message, Speaker};
use crate::app::{App, drained};
use crate::observe::count_error;
use crate::rate::{self, Peer};
use crate::request::{Caller, device, unauthorized};

/// Whoever enters without a token: the first message says who it is, in time, or the connection ends.
pub(super) struct Newcomer<S: Store> {
    app: Arc<App<S>>,
    threshold: Threshold,
    origin: Origin,
    state: State<S>,
    patience: Pin<Box<Sleep>>,
    draining: watch::Receiver<bool>,
}

/// Where a newcomer comes from.
#[derive(Debug, Clone, Default)]
pub(super) struct Origin {
    pub(super) peer: Option<Peer>,
    /// The device that the URL names.
    pub(super) device: Option<String>,
}

enum State<S: Store> {
    /// Nothing was said.
    Waiting,
    /// It is being found out whether what was said is true.
    Asking(BoxFuture<'static, Answered<S>>),
    /// Not let in; it is still to be told.
    Refused(Box<Turned>),
    /// Not let in, and told so.
    Gone,
    /// Let in.
    In(Box<Link<S>>),
}

type Answered<S> = Result<Box<Link<S>>, Box<Turned>>;

/// Why somebody is not let in, and the message that asked.
#[derive(Debug)]
pub(super) struct Turned {
    fault: Fault,
    reply_to: Option<String>,
}

/// What happens beside the socket of a newcomer.
pub(super) enum Event<S: Store> {
    Late,
    Drain,
    Answered(Answered<S>),
    Link(link::Event),
}

impl<S: Store> Newcomer<S> {
    pub(super) fn new(app: Arc<App<S>>, threshold: Threshold, origin: Origin) -> Self {
        let patience = Box::pin(sleep(Duration::from_millis(app.engine.limits().auth_ms)));
        Self { draining: app.draining(), app, threshold, origin, state: State::Waiting, patience }
    }

    fn refuse(&mut self, fault: Fault, reply_to: Option<String>) {
        self.state = State::Refused(Box::new(Turned { fault, reply_to }));
    }

    fn greeted(&mut self, auth: Auth, id: Option<String>) {
        let (app, threshold, origin) = (Arc::clone(&self.app), self.threshold.clone(), self.origin.clone());
        self.state = State::Asking(Box::pin(async move {
            let reply_to = id.clone();
            let entered = async {
                let guest = admit(&app, auth, &origin).await?;
                door::open(&app, guest, threshold, reply_to).await
            };
            let entered = entered.await.map(Box::new);
            entered.map_err(|fault| Box::new(Turned { fault: counted(&app, &origin, fault), reply_to: id }))
        }));
    }

    /// Says why nobody is let in.
    fn turn_away(&self, turned: &Turned, outbox: &mut Outbox) {
        let Turned { fault, reply_to } = turned;
        count_error(fault.code);
        tracing::info!(connection = %self.threshold.id, error = %fault.code, "turned away");
        let message = Outbound::Error(ErrorMessage::new(fault, &self.threshold.id));
        let head = Head { now_ms: self.app.now_ms(), reply_to: reply_to.clone(), sync_id: None };
        let told =
            seal(self.threshold.form, &message.encode(&head), |opcode, payload| outbox.push(opcode, payload));
        match told {
            Ok(()) => outbox.close(close_code(fault), fault.code.as_str()),
            Err(_) => outbox.abandon(),
        }
    }
}

/// What does not say who it is.
fn nobody() -> Fault {
    Fault::new(ErrorCode::Unauthorized, "the first message must be auth, with a token or a device_hash")
}

/// Finds out who a newcomer is, and takes a place among the user's connections.
async fn admit<S: Store>(app: &App<S>, auth: Auth, origin: &Origin) -> Result<Guest, Fault> {
    let mut guest = match auth {
        Auth::Token { token, device_id } => {
            let claims = app.auth.authenticate(&token, app.now_ms()).map_err(unauthorized)?;
            let device = device(&claims, origin.device.as_deref(), device_id.as_deref())?;
            let missing =
                || Fault::new(ErrorCode::MissingDeviceId, "neither token nor message names a device");
            guest_of(app, Caller::of(claims), Some(device.ok_or_else(missing)?), Door::Ingest).await?
        }
        Auth::DeviceHash(hash) => {
            let numbering = app.engine.numbering();
            let identity = app.engine.identify_by_hash(&hash).await?;
            Guest {
                identity,
                door: Door::Ingest,
                expires_s: None,
                digest: Some(hash_digest(&hash)),
                numbering,
                place: None,
                said: Said::default(),
            }
        }
    };
    let user = (&guest.identity.tenant_id, &guest.identity.user);
    app.engine.meter(user.0, user.1, app.now_ms()).take(app.now_ms()).map_err(Fault::throttled)?;
    guest.place = Some(rate::connect(app, user)?);
    Ok(guest)
}

/// Counts a failed authentication on its address; there may be too many.
fn counted<S: Store>(app: &App<S>, origin: &Origin, fault: Fault) -> Fault {
    if fault.code != ErrorCode::Unauthorized {
        return fault;
    }
    rate::failed(app, origin.peer).err().unwrap_or(fault)
}

impl<S: Store> Speaker for Newcomer<S> {
    type Event = Event<S>;

    fn collect(&mut self, outbox: &mut Outbox) {
        if let State::In(link) = &mut self.state {
            return link.collect(outbox);
        }
        if matches!(self.state, State::Refused(_))
            && let State::Refused(turned) = std::mem::replace(&mut self.state, State::Gone)
        {
            self.turn_away(&turned, outbox);
        }
    }

    fn listens(&self, outbox: &Outbox) -> bool {
        match &self.state {
            State::Waiting => true,
            State::In(link) => link.listens(outbox),
            State::Asking(_) | State::Refused(_) | State::Gone => false,
        }
    }

    async fn event(&mut self) -> Event<S> {
        match &mut self.state {
            State::Waiting => tokio::select! {
                biased;
                () = drained(&mut self.draining) => Event::Drain,
                () = self.patience.as_mut() => Event::Late,
            },
            State::Asking(answer) => Event::Answered(answer.await),
            State::In(link) => Event::Link(link.event().await),
            State::Refused(_) | State::Gone => std::future::pending().await,
        }
    }

    fn handle(&mut self, event: Event<S>) {
        match event {
            Event::Late => {
                let fault = Fault::new(ErrorCode::Unauthorized, "nobody said in time who it is");
                self.refuse(fault, None);
            }
            Event::Drain => {
                self.refuse(Fault::new(ErrorCode::ServerDraining, "the server shuts down"), None);
            }
            Event::Answered(Ok(link)) => self.state = State::In(link),
            Event::Answered(Err(turned)) => self.state = State::Refused(turned),
            Event::Link(event) => {
                if let State::In(link) = &mut self.state {
                    link.handle(event);
                }
            }
        }
    }

    fn heard(&mut self) {
        if let State::In(link) = &mut self.state {
            link.heard();
        }
    }

    /// Nobody is answered who has not said who it is.
    fn control(&mut self) -> bool {
        match &mut self.state {
            State::In(link) => link.control(),
            _ => false,
        }
    }

    fn message(&mut self, message: Message, outbox: &mut Outbox) {
        if let State::In(link) = &mut self.state {
            return link.message(message, outbox);
        }
        self.app.counts.messages_in.increment(1);
        self.app.counts.bytes_in.increment(message.len() as u64);
        match open(self.threshold.form, &message, self.app.engine.limits()) {
            Err(Misfit(code, reason)) => outbox.close(code, reason),
            Ok(Ok(message)) => match message.body {
                Inbound::Auth(auth) => self.greeted(auth, message.id),
                _ => self.refuse(nobody(), message.id),
            },
            Ok(Err(fault)) => self.refuse(nobody(), fault.reply_to),
        }
    }

    fn too_large(&mut self, outbox: &mut Outbox) {
        match &mut self.state {
            State::In(link) => link.too_large(outbox),
            _ => self.refuse(Fault::new(ErrorCode::MessageTooLarge, "the message is too large"), None),
        }
    }

    fn overflow(&mut self, outbox: &mut Outbox) {
        match &mut self.state {
            State::In(link) => link.overflow(outbox),
            _ => outbox.abandon(),
        }
    }

    fn tick(&mut self, outbox: &mut Outbox) -> Duration {
        match &mut self.state {
            State::In(link) => link.tick(outbox),
            _ => Duration::from_secs(self.app.engine.limits().heartbeat_s),
        }
    }
}
