//! Batches in a few words.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;

use driftline_conflict::{Op, Policy};
use driftline_engine::{Apply, Entry, ScopeRule, Store, Submission, Task};
use driftline_model::{
    DeviceId, DeviceKey, DeviceNo, Hlc, KindName, Object, OpId, RecordId, ScopeName, Seq, TenantId, TenantNo,
    UserId,
};
use driftline_protocol::{FieldError, ItemCode};

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
            correlation: "test".into(),
            entries: drafts.into_iter().map(|draft| draft.entry(&self.user)).collect(),
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
    scope: ScopeRule,
    policy: Arc<Policy>,
    refuse: Option<ItemCode>,
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
        scope: ScopeRule::Tenant,
        policy: Arc::new(Policy::field_merge()),
        refuse: None,
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

/// Drafts an item that was refused before it came to the store.
#[must_use]
pub fn refused(id: &str, code: ItemCode) -> Draft {
    Draft { refuse: Some(code), ..create(id, "{}") }
}

impl Draft {
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
        self.scope = ScopeRule::Owner;
        self
    }

    /// Sets the policy.
    #[must_use]
    pub fn policy(mut self, policy: &Arc<Policy>) -> Self {
        self.policy = Arc::clone(policy);
        self
    }

    /// Makes the entry of a batch of a user.
    #[must_use]
    pub fn entry(self, user: &UserId) -> Entry {
        let hash = self.intent();
        let (kind, id) = (Some(self.kind.clone()), Some(self.id.clone()));
        let task = match self.refuse {
            Some(code) => Task::Refuse(
                code,
                vec![FieldError { code: "test".into(), pointer: "/x".into(), message: "is wrong".into() }],
            ),
            None => Task::Apply(Apply {
                kind: self.kind,
                id: self.id,
                op: self.op,
                base: self.base,
                fields: self.fields,
                hlc: self.hlc,
                schema_version: self.schema_version,
                scope: self.scope.of(user),
                policy: self.policy,
            }),
        };
        Entry { op_id: self.op_id, n: self.n, hash, kind, id, group: self.group, task }
    }

    /// What the item wants, whatever its number, name and base are.
    fn intent(&self) -> u64 {
        let mut hasher = DefaultHasher::new();
        (&self.kind, &self.id, self.fields.as_str(), self.hlc, self.schema_version, &self.group)
            .hash(&mut hasher);
        format!("{:?}{:?}", self.op, self.refuse).hash(&mut hasher);
        hasher.finish()
    }
}
