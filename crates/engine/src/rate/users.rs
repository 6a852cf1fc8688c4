//! What a user uses up, on all connections and requests together.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use driftline_model::{Limits, Rate, TenantId, UserId};
use driftline_protocol::{Throttle, ThrottleScope};

use super::bucket::{Bucket, Level};
use super::kept::Kept;

/// The meters of everybody who is here or was here a moment ago.
#[derive(Debug)]
pub(crate) struct Users {
    limits: Arc<Limits>,
    /// The lock is held to find or make one meter; now and then, to look for idle ones.
    kept: Mutex<Kept<(TenantId, UserId), Arc<UserMeter>>>,
    /// The meter of those who find no place.
    crowd: Arc<UserMeter>,
}

impl Users {
    pub(crate) fn new(limits: &Arc<Limits>) -> Self {
        // Everybody who is connected, and as many who only send requests.
        let most = limits.connections.saturating_mul(2);
        let crowd = Arc::new(UserMeter::new(limits));
        Self { limits: Arc::clone(limits), kept: Mutex::new(Kept::new(most)), crowd }
    }

    /// Finds or makes the meter of a user. Somebody for whom there is no room shares one with others.
    pub(crate) fn meter(&self, tenant: &TenantId, user: &UserId, now_ms: u64) -> Arc<UserMeter> {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        // Nobody else can take hold of a meter while the lock is held, so one holder is the map alone.
        let is_idle = |meter: &Arc<UserMeter>| Arc::strong_count(meter) == 1 && meter.is_idle(now_ms);
        let make = || Arc::new(UserMeter::new(&self.limits));
        let meter = kept.find_or_make((tenant.clone(), user.clone()), now_ms, is_idle, make);
        Arc::clone(meter.unwrap_or(&self.crowd))
    }
}

/// The buckets of one user, and the number of the user's connections. A connection holds it; taking needs no lock.
#[derive(Debug)]
pub struct UserMeter {
    limits: Arc<Limits>,
    messages: Bucket,
    /// One for each of the limits' types.
    types: Box<[Bucket]>,
    connections: AtomicUsize,
}

impl UserMeter {
    /// Makes the meter of a user who did nothing yet. [`crate::Engine::meter`] gives the one that is shared.
    #[must_use]
    pub fn new(limits: &Arc<Limits>) -> Self {
        Self {
            limits: Arc::clone(limits),
            messages: Bucket::default(),
            types: limits.type_rates.iter().map(|_| Bucket::default()).collect(),
            connections: AtomicUsize::new(0),
        }
    }

    pub(super) fn limits(&self) -> &Limits {
        &self.limits
    }

    /// Takes a message or request of the user.
    ///
    /// # Errors
    /// [`Throttle`] says which limit was reached and when to come back; nothing was taken.
    pub fn take(&self, now_ms: u64) -> Result<(), Throttle> {
        take(&self.messages, self.limits.user_rate, ThrottleScope::User, now_ms)
    }

    /// Takes a message of a type, which has a rate of its own or not.
    ///
    /// # Errors
    /// As [`UserMeter::take`].
    pub fn take_type(&self, kind: &str, now_ms: u64) -> Result<(), Throttle> {
        match self.of_type(kind) {
            Some((bucket, rate)) => take(bucket, rate, ThrottleScope::Type, now_ms),
            None => Ok(()),
        }
    }

    /// Returns how much the user may do now.
    #[must_use]
    pub fn level(&self, now_ms: u64) -> Level {
        self.messages.level(self.limits.user_rate, now_ms)
    }

    /// Returns how many messages of a type the user may send now, if the type has a rate of its own.
    #[must_use]
    pub fn type_level(&self, kind: &str, now_ms: u64) -> Option<(Rate, Level)> {
        self.of_type(kind).map(|(bucket, rate)| (rate, bucket.level(rate, now_ms)))
    }

    /// Takes a place for one more connection of the user.
    ///
    /// # Errors
    /// [`Throttle`] when the user has as many as one may have.
    pub fn connect(self: &Arc<Self>) -> Result<Connected, Throttle> {
        let most = self.limits.user_connections;
        let one_more = |taken: usize| (taken < most).then_some(taken + 1);
        match self.connections.fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_more) {
            Ok(_) => Ok(Connected(Arc::clone(self))),
            Err(_) => Err(Throttle {
                // Nobody knows when a connection ends; one whose device is gone does by then.
                retry_after_ms: 2 * self.limits.heartbeat_s * 1000,
                limit: format!("{most} connections"),
                scope: ThrottleScope::User,
            }),
        }
    }

    fn of_type(&self, kind: &str) -> Option<(&Bucket, Rate)> {
        let mut rates = self.limits.type_rates.iter().zip(&self.types);
        rates.find(|((name, _), _)| **name == *kind).map(|((_, rate), bucket)| (bucket, *rate))
    }

    fn is_idle(&self, now_ms: u64) -> bool {
        let mut types = self.limits.type_rates.iter().zip(&self.types);
        self.messages.is_idle(self.limits.user_rate, now_ms)
            && types.all(|((_, rate), bucket)| bucket.is_idle(*rate, now_ms))
    }
}

/// A connection's place among those of its user, given back when dropped.
#[derive(Debug)]
pub struct Connected(Arc<UserMeter>);

impl Connected {
    /// Returns the user's meter.
    #[must_use]
    pub fn meter(&self) -> &Arc<UserMeter> {
        &self.0
    }
}

impl Drop for Connected {
    fn drop(&mut self) {
        self.0.connections.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Takes from a bucket; a refusal says what a client needs to know.
pub(super) fn take(bucket: &Bucket, rate: Rate, scope: ThrottleScope, now_ms: u64) -> Result<(), Throttle> {
    let refusal = |retry_after_ms| Throttle { retry_after_ms, limit: rate.to_string(), scope };
    bucket.take(rate, now_ms).map_err(refusal)
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW_MS: u64 = 1_767_225_600_000;

    fn users(change: impl FnOnce(&mut Limits)) -> Users {
        let mut limits = Limits::default();
        change(&mut limits);
        Users::new(&Arc::new(limits))
    }

    fn meter(users: &Users, user: i64, now_ms: u64) -> Arc<UserMeter> {
        users.meter(&TenantId::new("acme").unwrap(), &UserId::Number(user), now_ms)
    }

    fn kept(users: &Users) -> usize {
        users.kept.lock().unwrap().len()
    }

    #[test]
    fn a_user_has_one_meter_and_another_user_another() {
        let users = users(|limits| limits.user_rate = Rate { per_s: 10, burst: 1 });
        meter(&users, 1, NOW_MS).take(NOW_MS).unwrap();
        let refused = meter(&users, 1, NOW_MS).take(NOW_MS).unwrap_err();
        assert_eq!((refused.retry_after_ms, refused.limit.as_str()), (100, "10/s, burst 1"));
        assert_eq!(refused.scope, ThrottleScope::User);
        meter(&users, 2, NOW_MS).take(NOW_MS).unwrap();
        let elsewhere = users.meter(&TenantId::new("other").unwrap(), &UserId::Number(1), NOW_MS);
        elsewhere.take(NOW_MS).unwrap();
        // The text "1" and the number 1 are two users.
        users
            .meter(&TenantId::new("acme").unwrap(), &UserId::text("1").unwrap(), NOW_MS)
            .take(NOW_MS)
            .unwrap();
    }

    #[test]
    fn types_have_buckets_of_their_own() {
        let users =
            users(|limits| limits.type_rates = vec![("sync_data".into(), Rate { per_s: 20, burst: 1 })]);
        let meter = meter(&users, 1, NOW_MS);
        meter.take_type("sync_data", NOW_MS).unwrap();
        let refused = meter.take_type("sync_data", NOW_MS).unwrap_err();
        assert_eq!((refused.retry_after_ms, refused.scope), (50, ThrottleScope::Type));
        for _ in 0..1000 {
            meter.take_type("ping", NOW_MS).unwrap();
        }
        let level = meter.type_level("sync_data", NOW_MS).unwrap().1;
        assert_eq!((level.remaining, meter.type_level("ping", NOW_MS)), (0, None));
    }

    #[test]
    fn users_are_forgotten_who_left_and_whose_buckets_are_full() {
        let users = users(|limits| limits.connections = 2);
        let connected = meter(&users, 1, NOW_MS).connect().unwrap();
        meter(&users, 2, NOW_MS).take_type("sync_data", NOW_MS).unwrap();
        for user in 3..=4 {
            meter(&users, user, NOW_MS).take(NOW_MS).unwrap();
        }
        assert_eq!(kept(&users), 4);
        let crowd = meter(&users, 5, NOW_MS);
        assert!(Arc::ptr_eq(&crowd, &meter(&users, 6, NOW_MS)) && kept(&users) == 4, "there is no room");
        // After five milliseconds the buckets of users are full again, after fifty that of the type.
        let later_ms = NOW_MS + 1005;
        assert!(!Arc::ptr_eq(&crowd, &meter(&users, 5, later_ms)));
        let there = |user: i64| {
            let key = (TenantId::new("acme").unwrap(), UserId::Number(user));
            users.kept.lock().unwrap().find(&key).is_some()
        };
        assert!(there(1) && !there(2) && !there(3) && !there(4), "who is connected is kept");
        drop(connected);
    }

    #[test]
    fn a_user_has_so_many_connections() {
        let users = users(|limits| limits.user_connections = 2);
        let mut open: Vec<_> = (0..2).map(|_| meter(&users, 1, NOW_MS).connect().unwrap()).collect();
        let refused = meter(&users, 1, NOW_MS).connect().unwrap_err();
        assert_eq!((refused.retry_after_ms, refused.limit.as_str()), (50_000, "2 connections"));
        meter(&users, 2, NOW_MS).connect().unwrap();
        open.pop();
        open.push(meter(&users, 1, NOW_MS).connect().unwrap());
        assert_eq!(open[0].meter().connections.load(Ordering::Relaxed), 2);
    }
}
