//! Escalations survive a week offline.
//!
//! A nurse escalates a ticket on a ward without network. While she is away, a colleague who saw the ticket merely open
//! lowers it and closes it. A week later her phone comes back.

use driftline_conflict::{
    Change, Context, Decision, DeviceTable, FieldRule, Op, Order, Outcome, Policy, Record, ReviewReason,
    Rights, Rule, Strategy, Winner, apply,
};
use driftline_model::{DeviceNo, Hlc, Object, Seq};

const NURSE: DeviceNo = DeviceNo::new(0);
const COLLEAGUE: DeviceNo = DeviceNo::new(1);
const SUPERVISOR: DeviceNo = DeviceNo::new(2);

const DAY_MS: u64 = 24 * 60 * 60 * 1_000;
const MONDAY_MS: u64 = 1_700_000_000_000;

/// The ward: one ticket, and the day it is.
struct Ward {
    policy: Policy,
    devices: DeviceTable,
    ticket: Option<Record>,
    day: u64,
}

/// A change as a phone queued it.
struct Queued {
    change: Change,
    rights: Rights,
}

impl Ward {
    fn new() -> Self {
        let values = ["closed", "resolved", "open", "in_progress", "escalated"];
        let urgency =
            Order { values: values.map(|value| format!("\"{value}\"").into()).to_vec(), urgent: Some(4) };
        let fields = vec![("state".into(), FieldRule::Ordered(urgency)), ("tags".into(), FieldRule::Set)];
        Self {
            policy: Policy { strategy: Strategy::PreserveEscalation { fields }, version: 1 },
            devices: DeviceTable::new(["nurse\u{1}phone", "colleague\u{1}phone", "supervisor\u{1}desk"]),
            ticket: None,
            day: 0,
        }
    }

    fn now_ms(&self) -> u64 {
        MONDAY_MS + self.day * DAY_MS
    }

    /// Queues a change on a phone, stamped by its clock today.
    fn queue(&self, device: DeviceNo, n: u64, op: Op, base: Seq, fields: &str) -> Queued {
        let change = Change {
            op,
            base,
            fields: object(fields),
            intents: None,
            hlc: Some(Hlc::new(self.now_ms() + n, 0)),
            device,
            n,
        };
        Queued { change, rights: Rights::default() }
    }

    /// Receives what a phone sends.
    fn receive(&mut self, queued: &Queued) -> Decision {
        let version = self.version();
        let context = Context {
            next: version.next(),
            received: Hlc::new(self.now_ms() + 1_000, 0),
            latest: Hlc::new(self.now_ms() + 61_000, 0),
            devices: &self.devices,
            rights: queued.rights,
        };
        let decision = apply(self.ticket.as_ref(), &queued.change, &self.policy, &context);
        if let Some(ticket) = &decision.record {
            self.ticket = Some(ticket.clone());
        }
        decision
    }

    fn version(&self) -> Seq {
        self.ticket.as_ref().map_or(Seq::ZERO, |ticket| ticket.version)
    }

    /// What everybody who pulls sees of a field; nothing of a deleted ticket.
    fn sees(&self, field: &str) -> Option<&str> {
        let ticket = self.ticket.as_ref().filter(|ticket| !ticket.is_deleted(&self.devices))?;
        ticket.fields.get(field)
    }
}

impl Queued {
    fn having_seen(mut self, previous: &str) -> Self {
        self.change.intents.get_or_insert_default().previous = object(previous);
        self
    }

    fn tagged(mut self, tags: &str) -> Self {
        self.change.intents.get_or_insert_default().add = object(tags);
        self
    }

    fn lowering(mut self) -> Self {
        self.change.intents.get_or_insert_default().deescalate = true;
        self
    }

    fn with_the_right(mut self) -> Self {
        self.rights.deescalate = true;
        self
    }
}

fn object(text: &str) -> Object {
    Object::from_canonical(text.to_owned()).expect("canonical")
}

fn winner(decision: &Decision, field: &str) -> Option<(Winner, Rule)> {
    let entry = decision.audit.as_ref()?.fields.iter().find(|entry| *entry.name == *field)?;
    Some((entry.winner, entry.rule))
}

#[test]
fn escalations_survive_a_week_offline() {
    let mut ward = Ward::new();

    // On Monday the ticket is open, and everybody has it.
    let create = ward.queue(
        COLLEAGUE,
        1,
        Op::Create,
        Seq::ZERO,
        r#"{"note":"pump beeps","state":"open","tags":["ward 3"]}"#,
    );
    assert_eq!(ward.receive(&create).outcome, Outcome::Applied);
    let monday = ward.version();

    // The nurse, in the basement without network, escalates it, tags it and writes down why.
    let escalate = ward
        .queue(NURSE, 1, Op::Patch, monday, r#"{"note":"patient at risk","state":"escalated"}"#)
        .having_seen(r#"{"state":"open"}"#)
        .tagged(r#"{"tags":["urgent pump"]}"#);

    // On Wednesday the colleague, who knows only the open ticket, closes it without more ado: that waits for a reviewer.
    ward.day = 2;
    let close = ward
        .queue(COLLEAGUE, 2, Op::Patch, monday, r#"{"note":"silent since Tuesday","state":"closed"}"#)
        .having_seen(r#"{"state":"open"}"#);
    let closed = ward.receive(&close);
    assert_eq!(closed.outcome, Outcome::Merged);
    assert_eq!(winner(&closed, "state"), Some((Winner::Held, Rule::Escalation)));
    let review = closed.review.expect("a row for the reviewer");
    assert_eq!((review.reason, review.fields), (ReviewReason::DeescalationHeld, vec!["state".into()]));
    assert_eq!(ward.sees("note"), Some(r#""silent since Tuesday""#), "the other field applies");

    // To say that it is meant needs a right that the colleague lacks.
    let insist = ward
        .queue(COLLEAGUE, 3, Op::Patch, ward.version(), r#"{"state":"closed"}"#)
        .having_seen(r#"{"state":"open"}"#)
        .lowering();
    assert_eq!(ward.receive(&insist).outcome, Outcome::Forbidden);

    // On Thursday the supervisor, who saw the ticket open, closes it with the right to.
    ward.day = 3;
    let lower = ward
        .queue(SUPERVISOR, 1, Op::Patch, ward.version(), r#"{"state":"closed"}"#)
        .having_seen(r#"{"state":"open"}"#)
        .lowering()
        .with_the_right();
    assert_eq!(winner(&ward.receive(&lower), "state"), Some((Winner::Client, Rule::Escalation)));
    assert_eq!(ward.sees("state"), Some(r#""closed""#));

    // On Friday the colleague tidies up and queues a delete of the closed ticket, which reaches the server next week.
    ward.day = 4;
    let tidy = ward.queue(COLLEAGUE, 4, Op::Delete, ward.version(), "{}");

    // A week later the nurse's phone finds a network. Her clock is the oldest of all, and still the urgent shows.
    ward.day = 7;
    let back = ward.receive(&escalate);
    assert_eq!(back.outcome, Outcome::Merged);
    assert_eq!(winner(&back, "state"), Some((Winner::Client, Rule::Escalation)));
    assert_eq!(ward.sees("state"), Some(r#""escalated""#));
    assert_eq!(ward.sees("tags"), Some(r#"["urgent pump","ward 3"]"#));

    // Of the note the later one stands; hers is in the account.
    assert_eq!(ward.sees("note"), Some(r#""silent since Tuesday""#));
    let audit = back.audit.expect("an account");
    let note = audit.fields.iter().find(|entry| &*entry.name == "note").expect("the note is accounted for");
    assert_eq!((note.winner, note.client.as_deref()), (Winner::Server, Some(r#""patient at risk""#)));

    // The delete arrives, from somebody who never saw the urgency: it is held, and the ticket stays.
    let tidied = ward.receive(&tidy);
    assert_eq!(tidied.outcome, Outcome::Merged);
    assert_eq!(tidied.review.map(|review| review.reason), Some(ReviewReason::DeleteHeld));
    assert_eq!(ward.sees("state"), Some(r#""escalated""#));

    // The supervisor has seen all of it by now, and lowers it with the right and with an account.
    ward.day = 8;
    let settle = ward
        .queue(SUPERVISOR, 2, Op::Patch, ward.version(), r#"{"note":"pump replaced","state":"resolved"}"#)
        .having_seen(r#"{"state":"escalated"}"#)
        .lowering()
        .with_the_right();
    let settled = ward.receive(&settle);
    assert_eq!(settled.outcome, Outcome::Applied);
    assert_eq!(winner(&settled, "state"), Some((Winner::Client, Rule::Escalation)));
    assert_eq!(ward.sees("state"), Some(r#""resolved""#));
    assert_eq!(ward.sees("note"), Some(r#""pump replaced""#));
}

#[test]
fn the_story_ends_the_same_when_the_delete_comes_first() {
    for nurse_first in [true, false] {
        let mut ward = Ward::new();
        let create = ward.queue(COLLEAGUE, 1, Op::Create, Seq::ZERO, r#"{"state":"open"}"#);
        ward.receive(&create);
        let monday = ward.version();
        let escalate = ward
            .queue(NURSE, 1, Op::Patch, monday, r#"{"state":"escalated"}"#)
            .having_seen(r#"{"state":"open"}"#);
        ward.day = 4;
        let tidy = ward.queue(COLLEAGUE, 2, Op::Delete, monday, "{}");
        ward.day = 7;
        let order = if nurse_first { [&escalate, &tidy] } else { [&tidy, &escalate] };
        for queued in order {
            ward.receive(queued);
        }
        assert_eq!(ward.sees("state"), Some(r#""escalated""#), "nurse first: {nurse_first}");
    }
}
