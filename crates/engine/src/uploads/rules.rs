//! What uploads may be, and who looks at them before they become files.

use std::collections::BTreeMap;
use std::sync::Arc;

use driftline_model::TenantId;
use driftline_uploads::{AllowList, Expiry};
use futures_util::future::BoxFuture;

use super::blobs::Blobs;
use super::rows::UploadRow;

/// What a tenant's uploads may be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TenantUploads {
    /// Bytes that uploads and files may take together.
    pub quota_bytes: u64,
    /// The content types that are taken.
    pub allowed: AllowList,
    /// Whether files are verified before they are released.
    pub verified: bool,
}

impl Default for TenantUploads {
    fn default() -> Self {
        Self { quota_bytes: 100 << 30, allowed: AllowList::default(), verified: false }
    }
}

/// What uploads may be.
#[derive(Clone)]
pub struct UploadRules {
    /// The most bytes of one file.
    pub size_max: u64,
    /// Uploads of one user that may be under way.
    pub open_max: u64,
    /// Bodies of one user that a node receives at once; more are sent later.
    pub bodies_max: u64,
    /// When an upload that nobody finishes goes.
    pub expiry: Expiry,
    /// Of tenants that have no rules of their own.
    pub tenant: TenantUploads,
    /// Of single tenants.
    pub tenants: BTreeMap<TenantId, TenantUploads>,
    /// Who looks at files before they are released, of tenants that want it.
    pub verifier: Option<Arc<dyn Verify>>,
}

impl std::fmt::Debug for UploadRules {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("UploadRules").field("size_max", &self.size_max).finish_non_exhaustive()
    }
}

impl Default for UploadRules {
    fn default() -> Self {
        Self {
            size_max: 10 << 30,
            open_max: 64,
            bodies_max: 256,
            expiry: Expiry::default(),
            tenant: TenantUploads::default(),
            tenants: BTreeMap::new(),
            verifier: None,
        }
    }
}

impl UploadRules {
    /// Returns the rules of a tenant.
    #[must_use]
    pub fn of(&self, tenant: &TenantId) -> &TenantUploads {
        self.tenants.get(tenant).unwrap_or(&self.tenant)
    }
}

/// What became of looking at a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// It may be released.
    Released,
    /// It is removed, for a reason that its uploader is told.
    Refused(String),
    /// Nobody could look at it now, for a reason that is logged.
    Later(String),
}

/// Looks at files before they are released.
pub trait Verify: Send + Sync + 'static {
    /// Looks at a file whose bytes are all there and have the right digest. The bytes are read from `blobs`.
    fn verify<'a>(&'a self, row: &'a UploadRow, blobs: &'a dyn Blobs) -> BoxFuture<'a, Verdict>;
}
