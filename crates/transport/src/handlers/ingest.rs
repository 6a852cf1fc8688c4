//! Telemetry over HTTP: the twin of what a socket takes.

use axum::body::Body;
use axum::http::request::Parts;
use axum::http::{HeaderMap, StatusCode};
use driftline_engine::{Identity, Ingest, Once, Store};
use driftline_idempotency::Key;
use driftline_model::DeviceId;
use driftline_protocol::{ErrorCode, unknown_type};
use driftline_protocol::{
    Fault, Inbound, IngestPost, ItemCode, Message, Rejected, TelemetryAck, encode_flat_answer,
};

use crate::app::App;
use crate::auth::Claims;
use crate::idempotency::{fingerprint, key, mark_replayed};
use crate::rate::{self, Peer};
use crate::reply::{Answer, Refusal, json};
use crate::request::{Pairs, claims, device, identity, receive, token};
use crate::routes::Names;

/// What keys of this door are told apart by, whichever of its two paths was taken.
const ROUTE: &str = "POST /api/v1/ingest";

/// Takes one message or several.
pub(super) async fn ingest<S: Store>(
    app: &App<S>,
    parts: &Parts,
    pairs: Pairs,
    body: Body,
    correlation: &str,
) -> Result<Answer, Refusal> {
    let headers = &parts.headers;
    // Whoever brings a token is known before the body is read.
    let bearer = match token(headers, &pairs) {
        Some(_) => Some(claims(app, headers, &pairs)?),
        None => None,
    };
    if let Some(claims) = &bearer {
        rate::admit(app, &parts.extensions, (&claims.tenant, &claims.user), false)?;
    }
    let key = key(headers)?;
    let received = receive(app, headers, body).await?;
    let post = IngestPost::decode(
        received.encoding,
        &received.bytes,
        key.as_ref().map(Key::as_str),
        app.engine.limits(),
    );
    let identity = match bearer {
        Some(claims) => bearer_of(app, headers, &pairs, claims, &post).await?,
        None => device_of(app, parts, &post).await?,
    };
    app.engine.requested(&identity, app.now_ms());
    let print = fingerprint(ROUTE, &Names::new(), &pairs, headers, &received.bytes);
    let beside = key.map(|key| app.engine.once(&identity, key.as_str(), print));
    let taken = Taken { app, identity: &identity, correlation };
    let post = match post {
        Ok(post) => post,
        Err(fault) => return Err(taken.reused_or(beside.as_ref(), fault).await.into()),
    };
    if post.array { taken.all(post, beside).await } else { taken.single(post).await }
}

/// Finds the device of a token's bearer.
async fn bearer_of<S: Store>(
    app: &App<S>,
    headers: &HeaderMap,
    pairs: &Pairs,
    claims: Claims,
    post: &Result<IngestPost, Fault>,
) -> Result<Identity, Refusal> {
    let header = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
    let named = pairs.get("device_id").or_else(|| header("x-device-id"));
    let inner = post.as_ref().ok().and_then(|post| post.device_id.as_deref());
    let device: Option<DeviceId> = device(&claims, named, inner)?;
    let Some(device) = device else {
        let missing = Fault::new(ErrorCode::MissingDeviceId, "telemetry needs a device_id");
        return Err(post.as_ref().err().cloned().unwrap_or(missing).into());
    };
    let identity = identity(app, claims, Some(device)).await?;
    app.engine.require_admitted_lately(&identity, app.now_ms()).await?;
    Ok(identity)
}

/// Finds the device that a hash leads to. Hashes that lead nowhere are counted on their address.
async fn device_of<S: Store>(
    app: &App<S>,
    parts: &Parts,
    post: &Result<IngestPost, Fault>,
) -> Result<Identity, Refusal> {
    let header = parts.headers.get("x-device-hash").and_then(|value| value.to_str().ok());
    let inner = post.as_ref().ok().and_then(|post| post.device_hash.as_deref());
    let Some(hash) = header.or(inner) else {
        return Err(Fault::new(ErrorCode::Unauthorized, "a token or a device_hash is required").into());
    };
    match app.engine.identify_by_hash(hash).await {
        Ok(identity) => {
            rate::admit(app, &parts.extensions, (&identity.tenant_id, &identity.user), false)?;
            Ok(identity)
        }
        Err(fault) if fault.code == ErrorCode::Unauthorized => {
            rate::failed(app, parts.extensions.get::<Peer>().copied())?;
            Err(Refusal { status: Some(403), ..Refusal::from(fault) })
        }
        Err(fault) => Err(fault.into()),
    }
}

/// Refuses an array of which a message has the key that came beside it: a key names one request.
fn refuse_shared_key(post: &IngestPost, beside: Option<&Once>) -> Result<(), Fault> {
    let Some(driftline_engine::OnceKey::Request { key, .. }) = beside.map(|once| &once.key) else {
        return Ok(());
    };
    let shared = post
        .messages
        .iter()
        .flatten()
        .any(|message| message.key.as_ref().is_some_and(|own| *own.key == **key));
    if shared {
        let message = "a message has the key of the whole request: give each its own";
        return Err(Fault::new(ErrorCode::ValidationError, message));
    }
    Ok(())
}

/// Messages of a device that was let in.
struct Taken<'a, S: Store> {
    app: &'a App<S>,
    identity: &'a Identity,
    correlation: &'a str,
}

/// What became of one message.
enum Outcome {
    Samples(TelemetryAck),
    Noted { replayed: bool },
}

impl<S: Store> Taken<'_, S> {
    /// Says that the key was used before for another request, if it was, else what is wrong with this one.
    async fn reused_or(&self, once: Option<&Once>, fault: Fault) -> Fault {
        let Some(once) = once else { return fault };
        self.app.engine.is_known(self.identity, once, self.app.now_ms()).await.err().unwrap_or(fault)
    }

    fn admit(&self, kind: &'static str) -> Result<(), Fault> {
        rate::admit_type(self.app, (&self.identity.tenant_id, &self.identity.user), kind)
    }

    /// Answers a single message as a socket would.
    async fn single(&self, post: IngestPost) -> Result<Answer, Refusal> {
        let message = post.messages.into_iter().next();
        let missing = || Fault::new(ErrorCode::ValidationError, "there is no message");
        let message = message.ok_or_else(missing)??;
        self.admit(message.body.kind())?;
        let (of, reply_to) = (kind_of(&message), message.id.clone());
        let now_ms = self.app.now_ms();
        let (body, replayed) = match self.take(message).await? {
            Outcome::Samples(ack) => (driftline_protocol::to_json(&ack), ack.replayed),
            Outcome::Noted { replayed } => {
                (driftline_protocol::to_json(&driftline_protocol::BareAck { of, replayed }), replayed)
            }
        };
        let body = encode_flat_answer(now_ms, reply_to.as_deref(), &body);
        Ok(self.answer(body, replayed))
    }

    fn answer(&self, body: String, replayed: bool) -> Answer {
        let answer = json(StatusCode::OK, body);
        if !replayed {
            return answer;
        }
        self.app.counts.replays.increment(1);
        mark_replayed(answer)
    }

    /// Does what one message asks for.
    async fn take(&self, message: Message) -> Result<Outcome, Fault> {
        let Self { app, identity, correlation } = *self;
        let (of, now_ms) = (kind_of(&message), app.now_ms());
        let once = app.engine.once_of(identity, &of, message.sync_id.as_ref(), message.key.as_deref());
        match message.body {
            Inbound::Telemetry(telemetry) => {
                let ingest = Ingest {
                    messages: vec![(0, *telemetry)],
                    array: false,
                    once: once.into_iter().collect(),
                    batch_key: message.key.map(|key| key.key),
                    seed: app.random_u128(),
                };
                app.engine.ingest(identity, ingest, now_ms, correlation).await.map(Outcome::Samples)
            }
            Inbound::AnalyticsBatch(batch) => {
                let ack = app.engine.aggregate(identity, *batch, once, now_ms, correlation).await?;
                Ok(Outcome::Noted { replayed: ack.replayed })
            }
            Inbound::DeviceStatus(status) => {
                app.engine.report(identity, &status, now_ms, correlation).await?;
                Ok(Outcome::Noted { replayed: false })
            }
            _ => Err(unknown_type(&of)),
        }
    }

    /// Answers an array with one ack over all its messages.
    async fn all(&self, post: IngestPost, beside: Option<Once>) -> Result<Answer, Refusal> {
        self.bound(&post)?;
        refuse_shared_key(&post, beside.as_ref())?;
        let known = match &beside {
            Some(once) => self.app.engine.is_known(self.identity, once, self.app.now_ms()).await?,
            None => false,
        };
        let mut sum = Sum::new(&post);
        let (mut unkeyed, mut others) = (Vec::new(), Vec::new());
        for (position, message) in (0_u64..).zip(post.messages) {
            match message {
                Err(fault) => sum.refuse(position, None, &fault)?,
                Ok(Message { body: Inbound::Telemetry(telemetry), key: None, .. }) => {
                    unkeyed.push((position, *telemetry));
                }
                Ok(message) => others.push((position, message)),
            }
        }
        // The key beside the array is taken first: whoever used it for another array has no effect at all.
        let (keyed, mut replayed) = (beside.is_some(), None);
        if keyed || !unkeyed.is_empty() {
            let together = self.together(unkeyed, beside).await?;
            replayed = keyed.then_some(together.replayed);
            sum.join(together);
        }
        for (position, message) in others {
            let (id, member) = (message.id.clone(), member_of(&message));
            // What a device said of itself then is not how it is now.
            if known && matches!(message.body, Inbound::DeviceStatus(_)) {
                sum.add(position, member, Outcome::Noted { replayed: false });
                continue;
            }
            match self.take(message).await {
                Ok(Outcome::Noted { .. }) => sum.add(position, member, Outcome::Noted { replayed: false }),
                Ok(outcome) => sum.add(position, member, outcome),
                Err(fault) => sum.refuse(position, id, &fault)?,
            }
        }
        // The key that came beside the request says whether it is a replay.
        sum.replayed = replayed.or(sum.replayed);
        let ack = sum.finish();
        let body = encode_flat_answer(self.app.now_ms(), None, &driftline_protocol::to_json(&ack));
        Ok(self.answer(body, ack.replayed))
    }

    /// Refuses what is too much for one request, before any of it is done.
    fn bound(&self, post: &IngestPost) -> Result<(), Fault> {
        let mut kinds = Vec::new();
        let mut samples = 0;
        for message in post.messages.iter().flatten() {
            if !kinds.contains(&message.body.kind()) {
                kinds.push(message.body.kind());
            }
            if let Inbound::Telemetry(telemetry) = &message.body {
                samples += telemetry.samples.len();
            }
        }
        let most = self.app.engine.limits().batch_items;
        if samples > most {
            let message = format!("a request may hold {most} samples, this one holds {samples}: split it");
            return Err(Fault::new(ErrorCode::BatchTooLarge, message));
        }
        kinds.into_iter().try_for_each(|kind| self.admit(kind))
    }

    /// Appends the samples of messages without keys of their own, under the key that came beside them.
    async fn together(
        &self,
        messages: Vec<(u64, driftline_protocol::Telemetry)>,
        beside: Option<Once>,
    ) -> Result<TelemetryAck, Fault> {
        let Self { app, identity, correlation } = *self;
        let batch_key = beside.as_ref().and_then(|once| match &once.key {
            driftline_engine::OnceKey::Request { key, .. } => Some(key.to_string()),
            driftline_engine::OnceKey::Batch { .. } => None,
        });
        let ingest = Ingest {
            messages,
            array: true,
            once: beside.into_iter().collect(),
            batch_key,
            seed: app.random_u128(),
        };
        app.engine.ingest(identity, ingest, app.now_ms(), correlation).await
    }
}

/// The type of a message, as its sender named it.
fn kind_of(message: &Message) -> String {
    match &message.body {
        Inbound::Telemetry(telemetry) => telemetry.kind.to_string(),
        body => body.kind().to_owned(),
    }
}

/// The member of a message that holds its samples, if it holds several.
fn member_of(message: &Message) -> Option<&'static str> {
    match &message.body {
        Inbound::Telemetry(telemetry) => telemetry.member,
        _ => None,
    }
}

/// One ack over several messages.
struct Sum {
    ack: TelemetryAck,
    /// Whether what was answered so far was answered before.
    replayed: Option<bool>,
}

impl Sum {
    fn new(post: &IngestPost) -> Self {
        let kinds: Vec<String> = post.messages.iter().flatten().map(kind_of).collect();
        let common = kinds
            .first()
            .filter(|first| kinds.len() == post.messages.len() && kinds.iter().all(|kind| kind == *first));
        let of = common.cloned().unwrap_or_else(|| "ingest".to_owned());
        let ack = TelemetryAck {
            replayed: false,
            of,
            accepted: 0,
            duplicates: 0,
            rejected: Vec::new(),
            resend_recognised: None,
        };
        Self { ack, replayed: None }
    }

    /// Adds what became of a message with a key of its own; its places become those in the array.
    fn add(&mut self, position: u64, member: Option<&'static str>, outcome: Outcome) {
        let ack = match outcome {
            Outcome::Samples(ack) => ack,
            Outcome::Noted { replayed } => {
                let count = if replayed { &mut self.ack.duplicates } else { &mut self.ack.accepted };
                *count += 1;
                return self.replay(replayed);
            }
        };
        self.replay(ack.replayed);
        self.count(&ack);
        self.ack.rejected.extend(ack.rejected.into_iter().map(|mut rejected| {
            let under = member.map_or_else(String::new, |name| format!("/{name}/{}", rejected.index));
            rejected.index = position;
            rejected.pointer.insert_str(0, &under);
            for error in &mut rejected.errors {
                error.pointer.insert_str(0, &under);
            }
            rejected
        }));
    }

    fn count(&mut self, ack: &TelemetryAck) {
        self.ack.accepted += ack.accepted;
        self.ack.duplicates += ack.duplicates;
        self.ack.resend_recognised = self.ack.resend_recognised.or(ack.resend_recognised);
    }

    fn replay(&mut self, replayed: bool) {
        self.replayed = Some(self.replayed.unwrap_or(true) && replayed);
    }

    /// Adds the messages that were taken together.
    fn join(&mut self, together: TelemetryAck) {
        self.count(&together);
        self.replay(together.replayed);
        self.ack.rejected.extend(together.rejected);
    }

    /// Takes a message that is refused. What is no fault of the message fails the request, which may be sent again: the
    /// messages before are recognised by their keys.
    fn refuse(&mut self, position: u64, id: Option<String>, fault: &Fault) -> Result<(), Fault> {
        if fault.code.is_retryable() {
            return Err(fault.clone());
        }
        let code = match fault.code {
            ErrorCode::UnknownMessageType => ItemCode::UnknownKind,
            ErrorCode::Forbidden => ItemCode::Forbidden,
            ErrorCode::BatchTooLarge | ErrorCode::MessageTooLarge => ItemCode::TooLarge,
            _ => ItemCode::Invalid,
        };
        let first = fault.errors.first();
        self.ack.rejected.push(Rejected {
            index: position,
            id,
            code: code.as_str().to_owned(),
            pointer: first.map(|error| error.pointer.clone()).unwrap_or_default(),
            message: first.map_or_else(|| fault.message.clone(), |error| error.message.clone()),
            errors: if fault.errors.len() > 1 { fault.errors.clone() } else { Vec::new() },
        });
        Ok(())
    }

    fn finish(mut self) -> TelemetryAck {
        self.ack.rejected.sort_by_key(|rejected| rejected.index);
        self.ack.replayed = self.replayed.unwrap_or(false);
        self.ack
    }
}
