//! Batches in a few words.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;

use driftline_conflict::{Op, Policy, Rights};
use driftline_engine::{Announcing, Append, Apply, Entry, Placement, Resolve, Store, Submission, Task};
use driftline_model::{
    ConflictId, DeviceId, DeviceKey, DeviceNo, Hlc, Intents, KindName, Object, OpId, RecordId, ScopeName,
    Seq, TenantId, TenantNo, UserId,
};
use driftline_protocol::{FieldError, ItemCode, Resolution};

use crate::wait::block_on;

/// Makes an object of canonical text.
///
/// # Panics
/// When the text is no canonical object.
#[must_use]
pub fn object(text: &str) -> Object {
    Object::from_canonical(text.to_owned()).expect("canonical text")
}

/// A device of a user, with the store's numbers.
#[derive(Debug, Clone)]
pub struct Author {
    /// The tenant.
    pub tenant: TenantNo,
    /// The device.
    pub device: DeviceNo,
    /// The user.
    pub user: UserId,
}

impl Author {
    /// Names a device by its numbers.
    ///
    /// # Panics
    /// When the user's name is none.
    #[must_use]
    pub fn new(tenant: TenantNo, device: DeviceNo, user: &str) -> Self {
        Self { tenant, device, user: UserId::text(user).expect("a user's name") }
    }

    /// Registers a device of a user of a tenant.
    ///
    /// # Panics
    /// When the store fails or a name is none.
    #[must_use]
    pub fn join(store: &impl Store, tenant: &str, user: &str, device: &str) -> Self {
        let tenant = TenantId::new(tenant).expect("a tenant's name");
        let tenant = block_on(store.tenant(&tenant)).expect("a tenant");
        let mut author = Self::new(tenant, DeviceNo::new(0), user);
        let key = DeviceKey::new(&author.user, &DeviceId::new(device).expect("a device's name"));
        author.device = block_on(store.device(tenant, &key)).expect("a device");
        author
    }

    /// Returns the scopes that the user reads and writes.
    #[must_use]
    pub fn scopes(&self) -> Vec<ScopeName> {
        vec![ScopeName::tenant(), ScopeName::owner(&self.user)]
    }

    /// Makes a batch.
    #[must_use]
    pub fn batch(&self, drafts: impl IntoIterator<Item = Draft>) -> Submission {
        Submission {
            tenant: self.tenant,
            device: self.device,
            user: self.user.to_string().into(),
            scopes: self.scopes(),
            epoch: None,
            acked_n: None,
            batch: None,
            once: Vec::new(),
            correlation: "test".into(),
            entries: drafts.into_iter().map(|draft| draft.entry(&self.user)).collect(),
            events: Vec::new(),
        }
    }
}

/// An item as a test writes it: of kind `note`, in the tenant's scope, without a clock, under the default policy.
#[derive(Debug, Clone)]
pub struct Draft {
    op: Op,
    kind: KindName,
    id: RecordId,
    base: Seq,
    fields: Object,
    n: Option<u64>,
    op_id: Option<OpId>,
    hlc: Option<Hlc>,
    schema_version: u32,
    group: Option<Box<str>>,
    place: Place,
    intents: Option<Box<Intents>>,
    rights: Rights,
    policy: Arc<Policy>,
    refuse: Option<ItemCode>,
    resolve: Option<(ConflictId, Resolution, Option<Seq>)>,
    sample: Option<Sampled>,
    announce: Option<Announcing>,
}

/// When a sample was taken and sent, and whether a later one takes its place.
#[derive(Debug, Clone, Default)]
struct Sampled {
    at_ms: Option<u64>,
    sent_ms: Option<u64>,
    keyed: bool,
}

/// Where a test keeps a record.
#[derive(Debug, Clone)]
enum Place {
    Tenant,
    Owner,
    Group(Box<str>),
}

fn draft(op: Op, id: &str, base: u64, fields: &str) -> Draft {
    Draft {
        op,
        kind: KindName::new("note").expect("a kind's name"),
        id: RecordId::new(id).expect("an id"),
        base: Seq::new(base),
        fields: object(fields),
        n: None,
        op_id: None,
        hlc: None,
        schema_version: 0,
        group: None,
        place: Place::Tenant,
        intents: None,
        rights: Rights::default(),
        policy: Arc::new(Policy::field_merge()),
        refuse: None,
        resolve: None,
        sample: None,
        announce: None,
    }
}

/// Drafts a record.
#[must_use]
pub fn create(id: &str, fields: &str) -> Draft {
    draft(Op::Create, id, 0, fields)
}

/// Drafts a write to a record of which this version was seen.
#[must_use]
pub fn patch(id: &str, base: u64, fields: &str) -> Draft {
    draft(Op::Patch, id, base, fields)
}

/// Drafts the end of a record of which this version was seen.
#[must_use]
pub fn delete(id: &str, base: u64) -> Draft {
    draft(Op::Delete, id, base, "{}")
}

/// Drafts the return of a record of which this version was seen.
#[must_use]
pub fn restore(id: &str, base: u64, fields: &str) -> Draft {
    draft(Op::Restore, id, base, fields)
}

/// Drafts a reviewer's decision on a conflict of a record; the fields are those of a merge.
///
/// # Panics
/// When the conflict's name is none.
#[must_use]
pub fn resolve(id: &str, conflict_id: &str, resolution: Resolution, fields: &str) -> Draft {
    let conflict_id = ConflictId::new(conflict_id).expect("a conflict's name");
    Draft { resolve: Some((conflict_id, resolution, None)), ..patch(id, 0, fields) }
}

/// Drafts an item that was refused before it came to the store.
#[must_use]
pub fn refused(id: &str, code: ItemCode) -> Draft {
    Draft { refuse: Some(code), ..create(id, "{}") }
}

/// Drafts a sample, of kind `reading`, which tells of the time of its receipt.
#[must_use]
pub fn sample(id: &str, fields: &str) -> Draft {
    Draft { sample: Some(Sampled::default()), ..create(id, fields) }.kind("reading")
}

impl Draft {
    /// Sets the time that a sample tells of, in Unix milliseconds.
    #[must_use]
    pub fn at(mut self, at_ms: u64) -> Self {
        self.sample.get_or_insert_default().at_ms = Some(at_ms);
        self
    }

    /// Sets a sample's time of sending, in Unix milliseconds.
    #[must_use]
    pub fn sent(mut self, sent_ms: u64) -> Self {
        self.sample.get_or_insert_default().sent_ms = Some(sent_ms);
        self
    }

    /// Has a later sample of the same id take the place of this one.
    #[must_use]
    pub fn keyed(mut self) -> Self {
        self.sample.get_or_insert_default().keyed = true;
        self
    }

    /// Has it publish an event once it is accepted.
    #[must_use]
    pub fn announce(mut self, announcing: Announcing) -> Self {
        self.announce = Some(announcing);
        self
    }

    /// Sets the device's number of the change.
    #[must_use]
    pub fn n(mut self, n: u64) -> Self {
        self.n = Some(n);
        self
    }

    /// Sets the device's name for the change.
    ///
    /// # Panics
    /// When the name is none.
    #[must_use]
    pub fn op_id(mut self, op_id: &str) -> Self {
        self.op_id = Some(OpId::new(op_id).expect("a name"));
        self
    }

    /// Sets the kind.
    ///
    /// # Panics
    /// When the name is none.
    #[must_use]
    pub fn kind(mut self, kind: &str) -> Self {
        self.kind = KindName::new(kind).expect("a kind's name");
        self
    }

    /// Sets the version that was seen.
    #[must_use]
    pub fn base(mut self, base: u64) -> Self {
        self.base = Seq::new(base);
        self
    }

    /// Sets the author's clock.
    #[must_use]
    pub fn hlc(mut self, hlc: Hlc) -> Self {
        self.hlc = Some(hlc);
        self
    }

    /// Sets the schema version.
    #[must_use]
    pub fn schema(mut self, version: u32) -> Self {
        self.schema_version = version;
        self
    }

    /// Puts the item into a group.
    #[must_use]
    pub fn group(mut self, label: &str) -> Self {
        self.group = Some(label.into());
        self
    }

    /// Makes the record its author's own.
    #[must_use]
    pub fn owned(mut self) -> Self {
        self.place = Place::Owner;
        self
    }

    /// Keeps the record in the scope of the group that a field names.
    #[must_use]
    pub fn grouped(mut self, field: &str) -> Self {
        self.place = Place::Group(field.into());
        self
    }

    /// Asks for something beside whole values.
    #[must_use]
    pub fn intents(mut self, intents: Intents) -> Self {
        self.intents = Some(Box::new(intents));
        self
    }

    /// Gives the author rights beyond writing.
    #[must_use]
    pub fn rights(mut self, rights: Rights) -> Self {
        self.rights = rights;
        self
    }

    /// Sets the policy.
    #[must_use]
    pub fn policy(mut self, policy: &Arc<Policy>) -> Self {
        self.policy = Arc::clone(policy);
        self
    }

    /// Sets the record's version that a reviewer had before the eyes.
    #[must_use]
    pub fn seen(mut self, version: u64) -> Self {
        if let Some((.., seen)) = &mut self.resolve {
            *seen = Some(Seq::new(version));
        }
        self
    }

    /// Makes the entry of a batch of a user.
    #[must_use]
    pub fn entry(self, user: &UserId) -> Entry {
        let hash = self.intent();
        let (kind, id) = (Some(self.kind.clone()), Some(self.id.clone()));
        let placement = match self.place {
            Place::Tenant => Placement::Fixed(ScopeName::tenant()),
            Place::Owner => Placement::Fixed(ScopeName::owner(user)),
            Place::Group(field) => Placement::Group(field),
        };
        let task = match (self.refuse, self.resolve, self.sample) {
            (None, None, Some(sample)) => Task::Append(Append {
                fields: self.fields,
                hash,
                at_ms: sample.at_ms,
                sent_ms: sample.sent_ms,
                keyed: sample.keyed,
                announce: self.announce.clone(),
            }),
            (Some(code), ..) => Task::Refuse(
                code,
                vec![FieldError { code: "test".into(), pointer: "/x".into(), message: "is wrong".into() }],
            ),
            (None, Some((conflict_id, resolution, version)), _) => Task::Resolve(Resolve {
                conflict_id,
                resolution,
                fields: self.fields,
                version,
                placement,
                policy: self.policy,
                announce: self.announce.clone(),
            }),
            (None, None, None) => Task::Apply(Apply {
                kind: self.kind,
                id: self.id,
                op: self.op,
                base: self.base,
                fields: self.fields,
                intents: self.intents,
                hlc: self.hlc,
                schema_version: self.schema_version,
                placement,
                rights: self.rights,
                policy: self.policy,
                announce: self.announce.clone(),
            }),
        };
        Entry { op_id: self.op_id, n: self.n, hash, kind, id, group: self.group, task }
    }

    /// What the item wants, whatever its number, name and base are.
    fn intent(&self) -> u64 {
        let mut hasher = DefaultHasher::new();
        if self.sample.is_some() {
            // A sample is its content.
            self.fields.as_str().hash(&mut hasher);
            return hasher.finish();
        }
        (&self.kind, &self.id, self.fields.as_str(), self.hlc, self.schema_version, &self.group)
            .hash(&mut hasher);
        format!("{:?}{:?}{:?}{:?}", self.op, self.refuse, self.intents, self.resolve).hash(&mut hasher);
        hasher.finish()
    }
}
