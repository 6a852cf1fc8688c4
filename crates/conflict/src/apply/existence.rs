//! Whether a record lives: updates against deletes.

use std::borrow::Cow;

use crate::change::{Context, Op};
use crate::custom::{Arriving, Clash, Side};
use crate::decision::{ReviewReason, Rule, Winner};
use crate::policy::{DeletedRecord, Granularity, Policy, Strategy};
use crate::record::{Life, Mark, Record};

use super::escalation::covered;
use super::{LifeRule, Merge};

/// Gives a record whose existence was decided under another kind of policy the clocks that say the same.
pub(super) fn suited<'r>(record: &'r Record, policy: &Policy, context: &Context<'_>) -> Cow<'r, Record> {
    let suits = match (&record.life, LifeRule::of(policy)) {
        (Life::Clocks, _)
        | (Life::Urgent, LifeRule::Urgent)
        | (Life::Writes(_), LifeRule::Writes)
        | (Life::Deletes(_), LifeRule::Deletes) => true,
        // A delete that was held up and took effect later: the clocks say the same.
        (Life::Deletes(_), LifeRule::Urgent) => record.del_is_newer(context.devices),
        (Life::Urgent | Life::Writes(_) | Life::Deletes(_), _) => false,
    };
    if suits {
        return match LifeRule::of(policy) {
            LifeRule::Urgent if record.is_deleted(context.devices) => covered(record, policy),
            _ => Cow::Borrowed(record),
        };
    }
    let deleted = record.is_deleted(context.devices);
    let mut record = record.clone();
    record.life = Life::Clocks;
    if record.is_deleted(context.devices) != deleted {
        let (live, del) = (record.live, record.del.unwrap_or(record.live));
        if deleted {
            record.del = Some(Mark { hlc: live.hlc.successor(), ..del });
        } else {
            record.live = Mark { hlc: del.hlc.successor(), ..live };
        }
    }
    Cow::Owned(record)
}

impl Merge<'_> {
    // What the author knew.

    /// Whether the author knew of the delete: by its base, or because it is its own earlier one.
    pub(super) fn saw_delete(&self) -> bool {
        let saw = |del: &Mark| {
            !self.own_newer(del) && (del.fv <= self.change.base || del.device == self.change.device)
        };
        match (&self.record.life, self.record.del) {
            // The device that made a delete knows that it was held up, once it has seen what became of it.
            (Life::Deletes(fallen), Some(del)) if LifeRule::of(self.policy) == LifeRule::Urgent => {
                let unaware = |fallen: &Mark| fallen.fv > self.base && del.fv <= self.base;
                fallen.iter().any(|fallen| saw(fallen) && !unaware(fallen))
            }
            (Life::Deletes(standing), _) => standing.iter().any(saw),
            _ => self.record.del.as_ref().is_some_and(saw),
        }
    }

    /// Whether the change says that the record lives: by a write, or because that is what it asks for.
    fn asserts_existence(&self) -> bool {
        let wrote = !self.writes.is_empty() || !self.states.is_empty() || self.touched;
        match self.change.op {
            Op::Restore => true,
            Op::Create => wrote || self.change.fields.is_empty(),
            Op::Patch | Op::Delete => wrote,
        }
    }

    /// Raises the clock of the last write by this change.
    fn raise_live(&mut self) {
        let live = self.record.live;
        if self.own_newer(&live) {
            return;
        }
        let mut raised = if self.concurrent(&live) { self.mark } else { self.after(&live) };
        // Whoever writes to a living record with its delete before the eyes wants it to live.
        if let Some(del) = self.record.del.filter(|del| self.seen(del)) {
            let after = self.after(&del);
            raised = if self.newer(&after, &raised) { after } else { raised };
        }
        if self.newer(&raised, &live) {
            self.live = raised;
        }
        self.life_of_write();
    }

    // The operations.

    /// Writes to a record that is not deleted.
    pub(super) fn update(&mut self) {
        let whole = self.policy.strategy.granularity() == Granularity::Record && self.any_concurrent();
        match &self.policy.strategy {
            Strategy::ServerWins { .. } if whole => {
                self.conflict = true;
                return self.account_touched(Winner::Server, Rule::ServerWins);
            }
            Strategy::Manual if self.contested() => return self.set_all_aside(),
            _ => {}
        }
        self.conflict |= whole;
        self.write_fields();
        if self.asserts_existence() {
            self.raise_live();
        }
    }

    /// Whether another device wrote another value to a touched field, unseen.
    fn contested(&self) -> bool {
        self.change.fields.iter().any(|(name, value)| {
            let stored = self.record.fields.get(name).zip(self.record.mark(name));
            stored.is_some_and(|(stored, mark)| {
                stored != value && !self.own_newer(&mark) && self.concurrent_field(name, &mark)
            })
        })
    }

    fn set_all_aside(&mut self) {
        self.conflict = true;
        self.account_touched(Winner::Held, Rule::Manual);
        self.set_aside(ReviewReason::Manual, None);
    }

    /// Brings back a record whose delete the author had seen.
    pub(super) fn restore(&mut self) {
        self.write_fields();
        let live = self.record.live;
        let raised = if self.own_newer(&live) { live } else { self.after(&live) };
        self.live = raised;
        if let Some(del) = self.record.del.filter(|del| !self.newer(&self.live, del)) {
            self.live = self.after(&del);
        }
        self.life_of_write();
        match &self.record.life {
            // Others deleted it as well, unseen.
            _ if LifeRule::of(self.policy) == LifeRule::Deletes && self.hidden() => {
                self.conflict = true;
                self.account_hidden(Rule::DeleteWins);
                let del = self.record.del.unwrap_or(live);
                self.settle_existence(del, Winner::Server, Rule::DeleteWins, true);
            }
            _ => self.visible = true,
        }
    }

    /// Writes to a record that another device deleted, unseen by the author, or that its own later delete removed.
    pub(super) fn update_deleted(&mut self) {
        let Some(del) = self.record.del else { return };
        if self.own_newer(&del) {
            return self.update_below_own_delete(&del);
        }
        self.conflict = true;
        match &self.policy.strategy {
            Strategy::ServerWins { .. } => {
                self.settle_existence(del, Winner::Server, Rule::ServerWins, true);
                return self.account_touched(Winner::Server, Rule::ServerWins);
            }
            Strategy::Manual => {
                self.settle_existence(del, Winner::Held, Rule::Manual, true);
                return self.set_all_aside();
            }
            Strategy::ClientWins { deleted: DeletedRecord::StaysDeleted, .. } => {
                self.write_fields();
                self.account_hidden(Rule::ServerWins);
                return self.settle_existence(del, Winner::Server, Rule::ServerWins, true);
            }
            _ => {}
        }
        self.write_fields();
        let (rule, undelete) = self.undelete(&del);
        if self.asserts_existence() {
            if undelete == Some(false) {
                self.raise_live_below(&del);
            } else {
                self.raise_live();
            }
            if undelete == Some(true) && !self.newer(&self.live, &del) {
                self.live = self.after(&del);
            }
        }
        self.settle_life();
        if self.hidden() {
            self.account_hidden(rule);
            self.settle_existence(del, Winner::Server, rule, true);
        } else {
            self.visible = true;
            let rule = if self.life == Some(Life::Urgent) { Rule::Escalation } else { rule };
            self.settle_existence(del, Winner::Client, rule, false);
        }
    }

    fn update_below_own_delete(&mut self, del: &Mark) {
        self.write_fields();
        self.lost = true;
        // Its own later delete stands, also when the device's clock went back in between.
        if self.asserts_existence() && self.newer(del, &self.mark) {
            self.raise_live();
        }
        if !self.hidden() {
            self.visible = true;
        }
    }

    /// The rule by which an update is weighed against a delete, and whether it brings the record back whatever the
    /// clocks say, never does, or does by what the clocks or the seen say.
    fn undelete(&self, del: &Mark) -> (Rule, Option<bool>) {
        match &self.policy.strategy {
            Strategy::ClientWins { .. } => (Rule::ClientWins, Some(true)),
            Strategy::Custom(custom) => {
                let delete_is_newer = self.newer(del, &self.mark);
                let side = custom.0.existence(&Clash { arriving: Arriving::Update, delete_is_newer });
                (Rule::Custom(custom.0.name()), Some(side == Side::Client))
            }
            _ => match LifeRule::of(self.policy) {
                LifeRule::Writes => (Rule::UpdateWins, None),
                LifeRule::Deletes => (Rule::DeleteWins, None),
                LifeRule::Clocks | LifeRule::Urgent => (Rule::MostRecent, None),
            },
        }
    }

    /// Raises the clock of the last write as far as the record stays deleted.
    fn raise_live_below(&mut self, del: &Mark) {
        if self.newer(del, &self.mark) {
            self.raise_live();
        }
    }

    pub(super) fn delete(&mut self) {
        let live = self.record.live;
        let overtaken = self.record.all_marks().any(|mark| self.own_newer(&mark));
        let clash = self.any_concurrent() || self.leaves_unseen_writes();
        self.conflict = clash;
        if !overtaken && self.cover_urgent() {
            return self.hold_delete();
        }
        let (rule, wanted) = match self.weigh_delete(overtaken, clash) {
            Weighed::Refused(rule) => return self.settle_existence(live, Winner::Server, rule, false),
            Weighed::SetAside => {
                self.settle_existence(live, Winner::Held, Rule::Manual, false);
                return self.set_aside(ReviewReason::Manual, None);
            }
            Weighed::By(rule, wanted) => (rule, wanted),
        };
        self.raise_del(wanted);
        self.life_of_delete();
        self.settle_life();
        if !clash && !overtaken {
            return;
        }
        if self.hidden() {
            self.account_deleted(rule);
            self.settle_existence(live, Winner::Client, rule, true);
        } else {
            self.settle_existence(live, Winner::Server, rule, false);
        }
    }

    fn weigh_delete(&self, overtaken: bool, clash: bool) -> Weighed {
        let live = self.record.live;
        let after = self.after(&live);
        if overtaken {
            // The device's later change stands, also when its clock went back in between or it has none.
            let stands = self.newer(&self.mark, &live) || LifeRule::of(self.policy) != LifeRule::Clocks;
            return if stands {
                Weighed::Refused(Rule::OwnNewer)
            } else {
                Weighed::By(Rule::OwnNewer, self.mark)
            };
        }
        if !clash {
            return Weighed::By(Rule::ClientWins, after);
        }
        match &self.policy.strategy {
            Strategy::ServerWins { .. } => Weighed::Refused(Rule::ServerWins),
            Strategy::ClientWins { .. } => Weighed::By(Rule::ClientWins, after),
            Strategy::Manual => Weighed::SetAside,
            Strategy::Custom(custom) => {
                let delete_is_newer = self.newer(&self.mark, &live);
                let rule = Rule::Custom(custom.0.name());
                match custom.0.existence(&Clash { arriving: Arriving::Delete, delete_is_newer }) {
                    Side::Client => Weighed::By(rule, after),
                    Side::Server => Weighed::Refused(rule),
                }
            }
            _ => match LifeRule::of(self.policy) {
                LifeRule::Writes => Weighed::By(Rule::UpdateWins, self.mark),
                LifeRule::Deletes => Weighed::By(Rule::DeleteWins, self.mark),
                LifeRule::Clocks | LifeRule::Urgent => Weighed::By(Rule::MostRecent, self.mark),
            },
        }
    }

    /// Remembers a delete of an urgent record whose author had not seen that it is urgent.
    fn hold_delete(&mut self) {
        self.conflict = true;
        self.raise_del(self.mark);
        self.settle_existence(self.record.live, Winner::Held, Rule::Escalation, false);
        self.set_aside(ReviewReason::DeleteHeld, None);
    }

    /// Deletes what is deleted: only the clock may move.
    pub(super) fn delete_again(&mut self) {
        let Some(del) = self.record.del else { return };
        if self.own_newer(&del) {
            return;
        }
        self.cover_urgent();
        let wanted = if self.concurrent(&del) { self.mark } else { self.after(&del) };
        self.raise_del(wanted);
        self.life_of_delete();
    }

    fn raise_del(&mut self, wanted: Mark) {
        if self.record.del.is_none_or(|del| self.newer(&wanted, &del)) {
            self.del = Some(wanted);
        }
    }

    // Beside the clocks.

    /// Takes a write into what decides about existence.
    fn life_of_write(&mut self) {
        match LifeRule::of(self.policy) {
            LifeRule::Writes => {
                let mut unseen = self.unseen_writes();
                // A later delete of the same device had seen this write.
                if self.record.del.is_none_or(|del| !self.own_newer(&del)) {
                    unseen.push(self.mark);
                }
                self.life = Some(Life::Writes(self.sorted(unseen)));
            }
            LifeRule::Deletes if matches!(self.change.op, Op::Restore | Op::Create) && self.saw_delete() => {
                let mut standing = self.standing_deletes();
                standing.retain(|delete| !self.seen(delete));
                self.life = Some(Life::Deletes(self.sorted(standing)));
            }
            _ => {}
        }
    }

    /// Takes a delete into what decides about existence.
    fn life_of_delete(&mut self) {
        match LifeRule::of(self.policy) {
            LifeRule::Writes => {
                let unseen = self.unseen_writes();
                if unseen.is_empty() && !self.record.is_deleted(self.context.devices) {
                    // This is the delete that readers get to know, whatever the clock of an earlier one.
                    let hlc = self.record.del.map_or(self.mark.hlc, |del| self.mark.hlc.max(del.hlc));
                    self.del = Some(Mark { hlc, ..self.mark });
                }
                self.life = Some(Life::Writes(unseen));
            }
            LifeRule::Deletes => {
                let mut standing = self.standing_deletes();
                standing.retain(|delete| !self.seen(delete));
                standing.push(self.mark);
                self.life = Some(Life::Deletes(self.sorted(standing)));
            }
            LifeRule::Clocks | LifeRule::Urgent => {}
        }
    }

    /// Writes that neither the author nor any delete had seen.
    fn unseen_writes(&self) -> Vec<Mark> {
        let mut unseen = match &self.record.life {
            Life::Writes(unseen) => unseen.clone(),
            _ if self.record.is_deleted(self.context.devices) => Vec::new(),
            _ => vec![self.record.live],
        };
        unseen.retain(|write| !self.seen(write));
        unseen
    }

    /// Whether there are writes that the author had not seen, though they may have lost every field.
    fn leaves_unseen_writes(&self) -> bool {
        LifeRule::of(self.policy) == LifeRule::Writes
            && self.unseen_writes().iter().any(|write| self.concurrent(write))
    }

    fn standing_deletes(&self) -> Vec<Mark> {
        match &self.record.life {
            Life::Deletes(standing) => standing.clone(),
            _ if self.record.is_deleted(self.context.devices) => self.record.del.into_iter().collect(),
            _ => Vec::new(),
        }
    }

    /// Brings marks into an order that does not depend on that of their arrival.
    fn sorted(&self, mut marks: Vec<Mark>) -> Vec<Mark> {
        marks.sort_by(|a, b| a.order(b, self.context.devices));
        marks
    }

    /// Leaves existence to the clocks wherever they say the same.
    pub(super) fn settle_life(&mut self) {
        let by_clocks = self.del.is_some_and(|del| self.newer(&del, &self.live));
        let life = match LifeRule::of(self.policy) {
            LifeRule::Urgent if by_clocks && self.is_urgent() => Life::Urgent,
            LifeRule::Urgent if by_clocks => self.life_of_deleted(),
            LifeRule::Urgent | LifeRule::Clocks => Life::Clocks,
            LifeRule::Writes => match self.life.take().unwrap_or_else(|| self.record.life.clone()) {
                Life::Writes(unseen) if unseen.is_empty() && by_clocks => Life::Clocks,
                Life::Writes(unseen) if unseen == [self.live] && !by_clocks => Life::Clocks,
                life => life,
            },
            LifeRule::Deletes => match self.life.take().unwrap_or_else(|| self.life_before()) {
                Life::Deletes(standing) if standing.is_empty() && !by_clocks => Life::Clocks,
                Life::Deletes(standing) if by_clocks && self.del.is_some_and(|del| standing == [del]) => {
                    Life::Clocks
                }
                life => life,
            },
        };
        self.life = Some(life);
    }

    /// Dates a delete that an urgent value had held up by the version in which it takes effect: until then, readers saw
    /// the record alive.
    fn life_of_deleted(&self) -> Life {
        let Some(del) = self.del else { return Life::Clocks };
        if self.record.is_deleted(self.context.devices) {
            let same = self.record.del == self.del;
            return if same { self.record.life.clone() } else { Life::Clocks };
        }
        if del.fv == self.context.next {
            return Life::Clocks;
        }
        Life::Deletes(vec![Mark { fv: self.context.next, ..del }])
    }

    /// The deletes that stood before, told apart from the clocks: a write may have moved those.
    fn life_before(&self) -> Life {
        match self.record.life {
            Life::Clocks => Life::Deletes(self.standing_deletes()),
            _ => self.record.life.clone(),
        }
    }

    /// Whether the record is deleted after the change.
    pub(super) fn hidden(&self) -> bool {
        match self.life.as_ref().unwrap_or(&self.record.life) {
            Life::Clocks => self.del.is_some_and(|del| self.newer(&del, &self.live)),
            Life::Urgent => false,
            Life::Writes(unseen) => unseen.is_empty(),
            Life::Deletes(standing) => !standing.is_empty(),
        }
    }
}

/// What a delete comes to before the clocks are looked at.
enum Weighed {
    /// It does not happen.
    Refused(Rule),
    /// A reviewer decides.
    SetAside,
    /// It gets this mark, and the rule decides.
    By(Rule, Mark),
}
