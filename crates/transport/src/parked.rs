//! What clients asked for that went: the same client takes it back when it comes again soon.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use driftline_engine::{Identity, Subscribed};
use driftline_model::TenantNo;

/// For how many milliseconds a client may take its subscriptions back.
const PARKED_MS: u64 = 300_000;

/// Clients whose subscriptions are kept at once.
const PARKED_MAX: usize = 10_000;

/// Clients of one user whose subscriptions are kept at once; the longest kept one gives way.
const OF_USER_MAX: usize = 16;

/// A user of a tenant.
type User = (TenantNo, Box<str>);

/// The clients of a user by the names that they gave themselves: what each asked for, and until when it is kept.
type Clients = HashMap<Box<str>, (Vec<Subscribed>, u64)>;

/// The subscriptions of clients that went, on this node.
#[derive(Debug, Default)]
pub(crate) struct Parked {
    /// The lock is held for one insertion or removal.
    users: Mutex<Users>,
}

#[derive(Debug, Default)]
struct Users {
    clients: HashMap<User, Clients>,
    /// How many clients there are.
    count: usize,
}

fn user(identity: &Identity) -> User {
    (identity.tenant, identity.user.to_string().into())
}

impl Parked {
    /// Keeps what a client had asked for when it went, instead of what was kept before.
    pub(crate) fn keep(&self, identity: &Identity, client_id: &str, asked: Vec<Subscribed>, now_ms: u64) {
        let (mut users, user) = (self.users(), user(identity));
        if asked.is_empty() {
            users.take(&user, client_id);
        } else {
            users.keep(user, client_id, asked, now_ms);
        }
    }

    /// Takes what a client had asked for before, if it comes in time.
    pub(crate) fn take(&self, identity: &Identity, client_id: &str, now_ms: u64) -> Vec<Subscribed> {
        let kept = self.users().take(&user(identity), client_id);
        kept.filter(|(_, until_ms)| now_ms < *until_ms).map(|(asked, _)| asked).unwrap_or_default()
    }

    fn users(&self) -> MutexGuard<'_, Users> {
        self.users.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Users {
    fn keep(&mut self, user: User, client_id: &str, asked: Vec<Subscribed>, now_ms: u64) {
        self.take(&user, client_id);
        if self.count >= PARKED_MAX {
            for clients in self.clients.values_mut() {
                clients.retain(|_, (_, until_ms)| now_ms < *until_ms);
            }
            self.clients.retain(|_, clients| !clients.is_empty());
            self.count = self.clients.values().map(HashMap::len).sum();
        }
        let known = self.clients.get(&user);
        let longest = known.filter(|clients| clients.len() >= OF_USER_MAX);
        let longest = longest.and_then(|clients| clients.iter().min_by_key(|(_, (_, until_ms))| *until_ms));
        if let Some(client_id) = longest.map(|(client_id, _)| client_id.clone()) {
            self.take(&user, &client_id);
        }
        if self.count < PARKED_MAX {
            self.clients.entry(user).or_default().insert(client_id.into(), (asked, now_ms + PARKED_MS));
            self.count += 1;
        }
    }

    fn take(&mut self, user: &User, client_id: &str) -> Option<(Vec<Subscribed>, u64)> {
        let clients = self.clients.get_mut(user)?;
        let kept = clients.remove(client_id);
        if clients.is_empty() {
            self.clients.remove(user);
        }
        self.count -= usize::from(kept.is_some());
        kept
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(topic: &str) -> Vec<Subscribed> {
        vec![Subscribed { topic: topic.into(), filter: None }]
    }

    #[test]
    fn a_user_has_few_places_and_all_together_have_many() {
        let (mut users, ada) = (Users::default(), (TenantNo::new(1), Box::from("ada")));
        for number in 0..=OF_USER_MAX as u64 {
            users.keep(ada.clone(), &number.to_string(), asked("a"), number);
        }
        assert_eq!(users.count, OF_USER_MAX);
        assert_eq!(users.take(&ada, "0"), None, "the longest kept one gave way");
        assert_eq!(users.take(&ada, "1"), Some((asked("a"), 1 + PARKED_MS)));
        users.keep(ada.clone(), "2", asked("b"), 9);
        assert_eq!(
            (users.take(&ada, "2"), users.count),
            (Some((asked("b"), 9 + PARKED_MS)), OF_USER_MAX - 2)
        );

        let other = |number: usize| (TenantNo::new(2), number.to_string().into_boxed_str());
        for number in users.count..PARKED_MAX {
            users.keep(other(number), "phone", asked("a"), 0);
        }
        users.keep(other(0), "late", asked("a"), 0);
        assert_eq!((users.count, users.take(&other(0), "late")), (PARKED_MAX, None));
        // What is kept no more makes room.
        users.keep(other(0), "later", asked("a"), PARKED_MS + OF_USER_MAX as u64 + 1);
        assert_eq!((users.count, users.clients.len()), (1, 1));
    }
}
