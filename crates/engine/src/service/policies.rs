//! The policies in force.

use std::collections::HashMap;
use std::sync::Arc;

use driftline_conflict::Policy;
use driftline_model::KindName;
use driftline_protocol::{ErrorCode, Fault, FieldError, PolicyDoc};

use super::{Engine, not_found, unavailable};
use crate::policies::{PolicyView, doc_of_policy, policy_of_doc};
use crate::ports::{Identity, Observer, Store};

impl<S: Store, O: Observer> Engine<S, O> {
    pub(super) async fn own_policies(
        &self,
        identity: &Identity,
        now_ms: u64,
    ) -> Result<Arc<HashMap<KindName, PolicyView>>, Fault> {
        let policies = self.hub.policies();
        if let Some(own) = policies.fresh(identity.tenant, now_ms) {
            return Ok(own);
        }
        let generation = policies.generation();
        let stored = self.store.policies(identity.tenant).await.map_err(|error| unavailable(&error))?;
        Ok(policies.load(identity.tenant, stored, generation, now_ms))
    }

    /// Lists the policies in force for the tenant's kinds, with their versions; version 0 is the declared one.
    ///
    /// # Errors
    /// `STORE_UNAVAILABLE`.
    pub async fn policies(
        &self,
        identity: &Identity,
        now_ms: u64,
    ) -> Result<Vec<(KindName, PolicyDoc, u64)>, Fault> {
        let own = self.own_policies(identity, now_ms).await?;
        let mut listed: Vec<_> =
            own.iter().map(|(kind, view)| (kind.clone(), view.doc.clone(), view.policy.version)).collect();
        for (kind, rule) in self.catalogue.declared().filter(|(kind, _)| !own.contains_key(*kind)) {
            listed.push((kind.clone(), doc_of_policy(&rule.policy), 0));
        }
        listed.sort_by(|(a, ..), (b, ..)| a.cmp(b));
        Ok(listed)
    }

    /// Finds the policy in force for a kind.
    ///
    /// # Errors
    /// `NOT_FOUND` for an undeclared kind; `STORE_UNAVAILABLE`.
    pub async fn policy(
        &self,
        identity: &Identity,
        kind: &KindName,
        now_ms: u64,
    ) -> Result<(PolicyDoc, u64), Fault> {
        let own = self.own_policies(identity, now_ms).await?;
        if let Some(view) = own.get(kind) {
            return Ok((view.doc.clone(), view.policy.version));
        }
        let rule = self.catalogue.kind(kind).ok_or_else(not_found)?;
        Ok((doc_of_policy(&rule.policy), 0))
    }

    /// Sets the tenant's own policy for a kind; gives its version.
    ///
    /// # Errors
    /// `VALIDATION_ERROR` with the place, `NOT_FOUND` for an undeclared kind, `STORE_UNAVAILABLE`.
    pub async fn set_policy(
        &self,
        identity: &Identity,
        kind: &KindName,
        doc: &PolicyDoc,
    ) -> Result<u64, Fault> {
        self.catalogue.kind(kind).ok_or_else(not_found)?;
        let checked: Result<Policy, _> = policy_of_doc(doc, 0);
        checked.map_err(|error| {
            let mut fault = Fault::new(ErrorCode::ValidationError, error.message.clone());
            fault.errors.push(FieldError {
                code: "invalid".into(),
                pointer: error.pointer,
                message: error.message,
            });
            fault
        })?;
        let version = self.store.set_policy(identity.tenant, kind, Some(doc.to_json())).await;
        self.hub.policies().forget(identity.tenant);
        version.map_err(|error| unavailable(&error))?.ok_or_else(not_found)
    }

    /// Removes the tenant's own policy for a kind, so that the declared one is in force again.
    ///
    /// # Errors
    /// `NOT_FOUND` when there is none; `STORE_UNAVAILABLE`.
    pub async fn remove_policy(&self, identity: &Identity, kind: &KindName) -> Result<(), Fault> {
        let removed = self.store.set_policy(identity.tenant, kind, None).await;
        self.hub.policies().forget(identity.tenant);
        removed.map_err(|error| unavailable(&error))?.map(|_| ()).ok_or_else(not_found)
    }
}
