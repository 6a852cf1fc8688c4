//! Publishing, from sockets, requests and the outbox.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use driftline_model::{DeviceId, DeviceKey, DeviceNo, ObjectBuilder, TenantId, TenantNo};
use driftline_protocol::{
    Document, ErrorCode, EventPublished, Fault, FieldError, Publish, PublishAck, event_id, format_millis,
    object_of_text,
};
use driftline_realtime::Verdict;

use super::{Engine, judged, unavailable};
use crate::events::{EventDraft, quoted};
use crate::group::{Once, Submission};
use crate::log::{Drained, OutboxRouter, OutboxRow};
use crate::ports::{Identity, Observer, Store};
use crate::registry::DeviceQuery;
use crate::rules::{EventRules, PUBLISHER_ROLES};

/// By what right somebody publishes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Authority {
    /// By that of each topic.
    Topics,
    /// By one of the roles that may publish everywhere.
    Roles,
}

/// What came of publishing.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Outcome {
    /// The event's id; none: the log does not keep it.
    pub id: Option<String>,
    /// Whether an event of the same key came before.
    pub duplicate: bool,
    /// Whether a later state came before.
    pub late: bool,
    /// How many connections of this node got it.
    pub reached: u32,
    /// Whether this is the answer of an earlier request.
    pub replayed: bool,
}

impl Outcome {
    /// Returns the answer to a message.
    #[must_use]
    pub fn ack(self) -> PublishAck {
        PublishAck {
            of: "publish".into(),
            event_id: self.id,
            duplicate: self.duplicate,
            late: self.late,
            reached: self.reached,
            replayed: self.replayed,
        }
    }

    /// Returns the answer to a request.
    #[must_use]
    pub fn published(self) -> EventPublished {
        let Self { id, duplicate, late, reached, .. } = self;
        EventPublished { id, duplicate, late, reached, nodes: 1 }
    }
}

/// Where notifications go that name nobody.
pub(super) const NOTICES: &str = "notifications";

/// What the keys begin with by which notifications are known.
const NOTICE: &str = "notification:";

/// The key by which a notification is known.
pub(super) fn notice_key(id: &str) -> Box<str> {
    format!("{NOTICE}{id}").into()
}

/// Reads the id of a notification: a text, or an integer as it is written.
pub(super) fn notice_id(value: &str) -> Option<String> {
    let document = Document::parse(value.as_bytes(), 1).ok()?;
    let (text, number) = (document.root().as_str(), document.root().as_i64());
    text.map(std::borrow::Cow::into_owned).or_else(|| number.map(|number| number.to_string()))
}

impl<S: Store, O: Observer> Engine<S, O> {
    /// Publishes an event. `seed` is a random number, for a notification without an id.
    ///
    /// # Errors
    /// `FORBIDDEN`, `NOT_FOUND` for a topic that there is not, `VALIDATION_ERROR`, `IDEMPOTENCY_KEY_REUSED`,
    /// `STORE_UNAVAILABLE`.
    #[expect(clippy::too_many_arguments, reason = "each is what its name says, and none belongs to another")]
    pub async fn publish(
        &self,
        identity: &Identity,
        publish: Publish,
        authority: Authority,
        once: Option<Once>,
        seed: u128,
        now_ms: u64,
        correlation: &str,
    ) -> Result<Outcome, Fault> {
        let draft = self.drafted(identity, publish, authority, seed, now_ms).await?;
        self.publish_draft(identity, draft, once, now_ms, correlation).await
    }

    /// Makes the draft of an event, if it may be published.
    pub(super) async fn drafted(
        &self,
        identity: &Identity,
        mut publish: Publish,
        authority: Authority,
        seed: u128,
        now_ms: u64,
    ) -> Result<EventDraft, Fault> {
        if &*publish.kind == "notification" {
            let addressed = self.rules.has_route(&publish.kind);
            address_notice(&mut publish, addressed, seed, now_ms)?;
        } else if publish.dedupe_key.as_ref().is_some_and(|key| key.starts_with(NOTICE)) {
            return Err(wrong(
                "dedupe_key",
                format!("keys that begin with {NOTICE} are those of notifications"),
            ));
        }
        let draft =
            self.rules.draft(&publish, &[], now_ms).map_err(|(field, message)| wrong(field, message))?;
        self.authorize(identity, draft, authority).await
    }

    /// Publishes a draft that needs no further right.
    pub(super) async fn publish_draft(
        &self,
        identity: &Identity,
        draft: EventDraft,
        once: Option<Once>,
        now_ms: u64,
        correlation: &str,
    ) -> Result<Outcome, Fault> {
        if !draft.durable && once.is_none() {
            let reached = self.hub.tell_now(identity.tenant, &draft);
            return Ok(Outcome { reached, ..Outcome::default() });
        }
        let reached = Arc::clone(&draft.reached);
        let user = identity.user.to_string();
        let mut submission = publication(identity.tenant, &user, vec![draft], correlation);
        submission.once = once.into_iter().collect();
        let receipt = self.commit(identity, submission, now_ms).await.map_err(|error| unavailable(&error))?;
        let replayed = judged(receipt.answered)?;
        let published = receipt.events.first().copied().unwrap_or_default();
        Ok(Outcome {
            id: published.id.map(|id| event_id(receipt.epoch, id)),
            duplicate: published.duplicate,
            late: published.late,
            reached: reached.load(Ordering::Relaxed),
            replayed,
        })
    }

    async fn authorize(
        &self,
        identity: &Identity,
        mut draft: EventDraft,
        authority: Authority,
    ) -> Result<EventDraft, Fault> {
        let everywhere = PUBLISHER_ROLES.iter().any(|role| identity.has_role(role));
        if authority == Authority::Roles && !everywhere {
            return Err(Fault::new(ErrorCode::Forbidden, "the role publisher, staff or admin is needed"));
        }
        let mut owners: Vec<Option<DeviceKey>> = Vec::new();
        for topic in &draft.topics {
            match self.rules.may_publish(topic, identity) {
                Verdict::Unknown => {
                    return Err(Fault::new(ErrorCode::NotFound, format!("there is no topic {topic:?}")));
                }
                Verdict::Forbidden if authority == Authority::Topics && !super::is_staff(identity) => {
                    let message = format!("to publish on {topic:?} is not your right");
                    return Err(Fault::new(ErrorCode::Forbidden, message));
                }
                Verdict::Forbidden | Verdict::Allowed => {}
            }
            let Some(device) = self.rules.device_of(topic) else { continue };
            let own = identity
                .device
                .as_ref()
                .filter(|(_, key)| key.device() == device)
                .map(|(_, key)| key.clone());
            owners.push(match own {
                Some(key) => Some(key),
                None if everywhere || super::is_staff(identity) => self.only_device(identity, device).await?,
                None => {
                    let message = format!("to publish on {topic:?} is its device's right");
                    return Err(Fault::new(ErrorCode::Forbidden, message));
                }
            });
        }
        owners.dedup();
        if owners.len() > 1 {
            return Err(wrong("topics", "an event concerns the device of one user".into()));
        }
        draft.owner = owners.pop().flatten();
        Ok(draft)
    }

    /// Finds the device of a name, if there is one.
    async fn only_device(&self, identity: &Identity, device: &str) -> Result<Option<DeviceKey>, Fault> {
        let Ok(device_id) = DeviceId::new(device) else { return Ok(None) };
        let query = DeviceQuery { device_id: Some(device_id), owner: None, after: None, rows: 2 };
        let rows = self.store.devices(identity.tenant, query).await.map_err(|error| unavailable(&error))?;
        if rows.len() > 1 {
            return Err(wrong("topic", format!("several users have a device {device:?}")));
        }
        Ok(rows.into_iter().next().map(|row| row.key))
    }

    /// Publishes what other programs wrote into the outbox, at most `batch` rows.
    ///
    /// # Errors
    /// `STORE_UNAVAILABLE`.
    pub async fn drain_outbox(&self, batch: usize) -> Result<Drained, Fault> {
        let router = Arc::new(Router(Arc::clone(&self.rules)));
        let drained =
            self.store.log().drain_outbox(batch, router).await.map_err(|error| unavailable(&error))?;
        self.observer.drained(drained.processed, drained.failed);
        Ok(drained)
    }

    /// Waits until rows may have come into the outbox. Dropping the future loses nothing.
    pub async fn outbox_waits(&self) {
        self.store.log().outbox_waits().await;
    }
}

/// Makes events a submission of nobody's device.
pub(super) fn publication(
    tenant: TenantNo,
    user: &str,
    events: Vec<EventDraft>,
    correlation: &str,
) -> Submission {
    Submission {
        tenant,
        device: DeviceNo::new(0),
        user: user.into(),
        scopes: Vec::new(),
        epoch: None,
        acked_n: None,
        batch: None,
        once: Vec::new(),
        correlation: correlation.into(),
        entries: Vec::new(),
        events,
    }
}

fn wrong(field: &'static str, message: String) -> Fault {
    let error = FieldError { code: "invalid".into(), pointer: format!("/{field}"), message: message.clone() };
    Fault { errors: vec![error], ..Fault::new(ErrorCode::ValidationError, message) }
}

/// Gives a notification what every one has, and its place: those who are named, else everybody, unless it is addressed
/// by its route or by claims.
fn address_notice(publish: &mut Publish, addressed: bool, seed: u128, now_ms: u64) -> Result<(), Fault> {
    let given = publish.data.get("id").map(|id| {
        notice_id(id).ok_or_else(|| wrong("data", "a notification's id is a text or an integer".into()))
    });
    let id = match (given.transpose()?, &publish.dedupe_key) {
        (Some(_), Some(_)) => {
            let message = "a notification is known by its id: it has no dedupe_key beside";
            return Err(wrong("dedupe_key", message.into()));
        }
        (Some(id), None) => id,
        (None, Some(key)) => key.to_string(),
        (None, None) => format!("{seed:032x}"),
    };
    if id.is_empty() || id.len() > 128 || id.contains(char::is_control) {
        return Err(wrong("data", "a notification's id has 1 to 128 bytes".into()));
    }
    const OWN: [&str; 3] = ["created_at", "id", "is_read"];
    let (created, quoted_id) = (format!("\"{}\"", format_millis(now_ms)), quoted(&id));
    let mut members: Vec<(&str, &str)> =
        publish.data.iter().filter(|(name, _)| !OWN.contains(name)).collect();
    members.extend([("created_at", created.as_str()), ("id", quoted_id.as_str()), ("is_read", "false")]);
    members.sort_by(|one, other| driftline_model::key_cmp(one.0, other.0));
    let mut data = ObjectBuilder::default();
    for (name, value) in members {
        data.push(name, value);
    }
    publish.data = data.finish();
    publish.dedupe_key = Some(notice_key(&id));
    if !addressed && publish.topics.is_empty() && publish.users.is_empty() && publish.roles.is_empty() {
        publish.topics.push(NOTICES.into());
    }
    Ok(())
}

/// Makes events of rows of the outbox.
struct Router(Arc<EventRules>);

impl OutboxRouter for Router {
    fn route(&self, row: &OutboxRow, now_ms: u64) -> Result<(TenantId, EventDraft), String> {
        let tenant = TenantId::new(&row.tenant).map_err(|error| format!("tenant: {error}"))?;
        let kind = row.kind.as_deref().filter(|kind| !kind.is_empty()).ok_or("event_type: is required")?;
        let kind =
            driftline_protocol::event_kind(kind).map_err(|_| "event_type: cannot be the type of an event")?;
        let data = match row.payload.as_deref() {
            None => driftline_model::Object::empty(),
            Some(payload) => object_of_text(payload, 64)
                .map_err(|error| format!("payload: {error}"))?
                .map_err(|error| format!("payload: {error}"))?,
        };
        if data.as_str().len() > Publish::DATA_BYTES {
            return Err("payload: an event may carry 64 KiB".into());
        }
        if row.dedupe_key.as_ref().is_some_and(|key| key.is_empty() || key.len() > Publish::KEY_BYTES) {
            return Err("dedupe_key: must have 1 to 255 bytes".into());
        }
        let of =
            |text: &Option<String>| text.iter().map(|text| text.as_str().into()).collect::<Vec<Box<str>>>();
        let mut publish = Publish {
            topics: of(&row.topic),
            users: of(&row.user),
            roles: of(&row.role),
            kind,
            data,
            durable: None,
            dedupe_key: row.dedupe_key.as_deref().map(Box::from),
            version: None,
        };
        let at_ms = row.created_ms.unwrap_or(now_ms).min(now_ms);
        if &*publish.kind == "notification" {
            // A notification is known by its id.
            if publish.data.get("id").is_some() {
                publish.dedupe_key = None;
            }
            let addressed = !row.claims.is_empty() || self.0.has_route(&publish.kind);
            let seed = u128::from(row.id.unsigned_abs());
            address_notice(&mut publish, addressed, seed, at_ms).map_err(|fault| fault.message)?;
        }
        let draft = self
            .0
            .draft(&publish, &row.claims, at_ms)
            .map_err(|(field, message)| format!("{field}: {message}"))?;
        if let Some(topic) = draft.topics.iter().find(|topic| self.0.rule(topic).is_none()) {
            return Err(format!("topic: there is no topic {topic:?}"));
        }
        Ok((tenant, draft))
    }

    fn device_of(&self, draft: &EventDraft) -> Option<DeviceId> {
        // On other topics everybody hears of it who may listen there.
        let mut devices = draft.topics.iter().map(|topic| self.0.device_of(topic));
        let first = devices.next()??;
        devices.all(|device| device == Some(first)).then(|| DeviceId::new(first).ok())?
    }
}
