//! What a change makes of a record's fields, as the device expects it.

use std::borrow::Cow;
use std::cmp::Ordering;
use std::collections::BTreeSet;

use driftline_model::{Intents, Object, ObjectBuilder, elements, key_cmp};
use driftline_protocol::{Item, ItemOp};

use crate::policies::{Rule, Rules, rank};
use crate::seen::Seen;

/// The largest integer that every peer holds exactly.
const INTEGER_MAX: i64 = 1 << 53;

/// An own change, as it lies on top of a record.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Change<'a> {
    pub(crate) op: ItemOp,
    pub(crate) fields: &'a Object,
    pub(crate) intents: Option<&'a Intents>,
    /// What its author had before the eyes; none for a change that the server took: it stands as it is.
    pub(crate) seen: Option<&'a Seen>,
}

impl<'a> Change<'a> {
    /// A change that waits for the server's decision.
    pub(crate) fn waiting(item: &'a Item, seen: &'a Seen) -> Self {
        Self { op: item.op, fields: &item.fields, intents: item.intents.as_deref(), seen: Some(seen) }
    }

    /// What the change makes of a live record's fields; a patch makes nothing of nothing.
    pub(crate) fn effect(
        self,
        fields: Option<Cow<'a, Object>>,
        body: Option<&Object>,
        rules: &Rules,
    ) -> Option<Cow<'a, Object>> {
        let plain = rules.is_plain() && self.intents.is_none();
        match (self.op, fields) {
            (ItemOp::Delete, _) | (ItemOp::Patch, None) => None,
            (ItemOp::Create | ItemOp::Restore, None) if plain => Some(Cow::Borrowed(self.fields)),
            (_, fields) if plain => Some(Cow::Owned(merge(&fields.unwrap_or_default(), self.fields))),
            (_, fields) => Some(Cow::Owned(self.on(&fields.unwrap_or_default(), body, rules))),
        }
    }

    fn on(self, fields: &Object, body: Option<&Object>, rules: &Rules) -> Object {
        let mut written = Written { fields, over: Vec::new() };
        // What one change takes out and adds stays in.
        for (name, gone) in self.intents.iter().flat_map(|intents| intents.remove.iter()) {
            if let Some(left) = written.get(name).and_then(|array| without(array, gone)) {
                written.put(name, left);
            }
        }
        for (name, value) in self.fields.iter() {
            let value = self.whole(name, value, (written.get(name), body), rules);
            written.put(name, value);
        }
        if let Some(intents) = self.intents {
            for (name, by) in &intents.increments {
                if let Some(sum) = count(written.get(name), *by) {
                    written.put(name, sum);
                }
            }
            for (name, new) in intents.add.iter() {
                let array = written.get(name).unwrap_or("[]").to_owned();
                if let Some(all) = gather(&array, new, name, rules) {
                    written.put(name, all);
                }
            }
        }
        written.finish()
    }

    /// What a whole value makes of a field.
    fn whole(
        self,
        name: &str,
        value: &str,
        (shown, body): (Option<&str>, Option<&Object>),
        rules: &Rules,
    ) -> String {
        let value = match rules.rule(name) {
            Some(Rule::Set | Rule::Append) => {
                return gather(shown.unwrap_or("[]"), value, name, rules).unwrap_or_else(|| value.to_owned());
            }
            Some(Rule::Ordered(order)) => {
                let lowered = self.intents.is_some_and(|intents| intents.deescalate);
                let body = body.and_then(|body| body.get(name));
                // A lowering holds for what its author had seen, and for nothing above it.
                let stands =
                    self.seen.is_none_or(|seen| lowered && seen.highest(name, order) >= rank(order, body));
                match shown {
                    Some(shown) if !stands && rank(order, Some(shown)) > rank(order, Some(value)) => shown,
                    _ => value,
                }
            }
            _ => value,
        };
        value.to_owned()
    }
}

/// Fields with some written over.
struct Written<'f> {
    fields: &'f Object,
    over: Vec<(String, String)>,
}

impl Written<'_> {
    fn get(&self, name: &str) -> Option<&str> {
        let over = self.over.iter().find(|(known, _)| known == name);
        over.map(|(_, value)| value.as_str()).or_else(|| self.fields.get(name))
    }

    fn put(&mut self, name: &str, value: String) {
        match self.over.iter_mut().find(|(known, _)| known == name) {
            Some((_, old)) => *old = value,
            None => self.over.push((name.to_owned(), value)),
        }
    }

    fn finish(self) -> Object {
        merge(self.fields, &object(self.over))
    }
}

/// Makes an object of members in any order.
pub(crate) fn object<N: AsRef<str>, V: AsRef<str>>(mut members: Vec<(N, V)>) -> Object {
    members.sort_by(|a, b| key_cmp(a.0.as_ref(), b.0.as_ref()));
    let mut built = ObjectBuilder::default();
    for (name, value) in members {
        built.push(name.as_ref(), value.as_ref());
    }
    built.finish()
}

/// Writes the members of `over` into those of `base`.
pub(crate) fn merge(base: &Object, over: &Object) -> Object {
    let mut merged =
        ObjectBuilder::with_capacity(base.as_str().len() + over.as_str().len(), base.len() + over.len());
    let (mut base, mut over) = (base.iter().peekable(), over.iter().peekable());
    loop {
        let order = match (base.peek(), over.peek()) {
            (Some((below, _)), Some((above, _))) => key_cmp(below, above),
            (Some(_), None) => Ordering::Less,
            (None, Some(_)) => Ordering::Greater,
            (None, None) => return merged.finish(),
        };
        let below = if order == Ordering::Greater { None } else { base.next() };
        let above = if order == Ordering::Less { None } else { over.next() };
        if let Some((key, value)) = above.or(below) {
            merged.push(key, value);
        }
    }
}

/// Adds to a counter; nothing when the server would refuse it.
fn count(value: Option<&str>, by: i64) -> Option<String> {
    let count: i64 = value.unwrap_or("0").parse().ok()?;
    let sum = count.checked_add(by)?;
    (-INTEGER_MAX..=INTEGER_MAX).contains(&sum).then(|| sum.to_string())
}

/// Adds elements as the field's rule says; nothing when one of the two is no array.
fn gather(array: &str, new: &str, name: &str, rules: &Rules) -> Option<String> {
    match rules.rule(name) {
        Some(Rule::Append) => append(array, new),
        Some(Rule::Set) => unite(array, new),
        _ if rules.is_known() => unite(array, new),
        _ => extend(array, new),
    }
}

/// Unites two sets in the order of the elements' bytes.
fn unite(array: &str, new: &str) -> Option<String> {
    let all: BTreeSet<&str> = elements(array)?.into_iter().chain(elements(new)?).collect();
    Some(join(all))
}

/// Adds what is not there yet, in the order in which it comes.
fn extend(array: &str, new: &str) -> Option<String> {
    let mut all = elements(array)?;
    for element in elements(new)? {
        if !all.contains(&element) {
            all.push(element);
        }
    }
    Some(join(all))
}

/// Appends the objects whose ids are not there yet.
fn append(array: &str, new: &str) -> Option<String> {
    let mut all = elements(array)?;
    let mut ids: BTreeSet<String> = all.iter().filter_map(|element| element_id(element)).collect();
    for element in elements(new)? {
        if element_id(element).is_none_or(|id| ids.insert(id)) {
            all.push(element);
        }
    }
    Some(join(all))
}

fn without(array: &str, gone: &str) -> Option<String> {
    let gone: BTreeSet<&str> = elements(gone)?.into_iter().collect();
    Some(join(elements(array)?.into_iter().filter(|element| !gone.contains(element))))
}

/// Finds the id of a list's element, canonical JSON.
pub(crate) fn element_id(element: &str) -> Option<String> {
    Object::from_canonical(element.to_owned()).ok()?.get("id").map(str::to_owned)
}

/// Makes an array of canonical elements.
pub(crate) fn join<'e>(elements: impl IntoIterator<Item = &'e str>) -> String {
    let mut out = String::from("[");
    for element in elements {
        if out.len() > 1 {
            out.push(',');
        }
        out.push_str(element);
    }
    out.push(']');
    out
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use driftline_model::KindName;
    use driftline_protocol::PolicyDoc;

    use super::*;
    use crate::policies::Policies;

    fn parsed(text: &str) -> Object {
        Object::from_canonical(text.to_owned()).expect("canonical")
    }

    fn policies() -> Policies {
        let doc = r#"{"strategy":"field_merge","fields":{"n":{"rule":"counter"},"s":{"rule":"set"},
            "l":{"rule":"append"}}}"#;
        let doc = PolicyDoc::parse(doc).expect("a policy");
        Policies::told(&BTreeMap::from([("k".to_owned(), doc)]))
    }

    fn shown(policies: &Policies, fields: Option<&str>, over: &str, intents: &Intents) -> Option<String> {
        let rules = policies.of(&KindName::new("k").expect("a kind"));
        let (fields, over) = (fields.map(parsed), parsed(over));
        let change = Change { op: ItemOp::Patch, fields: &over, intents: Some(intents), seen: None };
        change.effect(fields.map(Cow::Owned), None, rules).map(|fields| fields.as_str().to_owned())
    }

    #[test]
    fn objects_merge_member_by_member() {
        let table = [
            ("{}", "{}", "{}"),
            (r#"{"a":1,"c":3}"#, r#"{"b":2}"#, r#"{"a":1,"b":2,"c":3}"#),
            (r#"{"a":1,"b":{"x":1}}"#, r#"{"b":{"y":2},"c":null}"#, r#"{"a":1,"b":{"y":2},"c":null}"#),
        ];
        for (base, over, wanted) in table {
            assert_eq!(merge(&parsed(base), &parsed(over)), parsed(wanted));
        }
    }

    #[test]
    fn counters_add_and_what_is_no_number_stays() {
        let by = |number| Intents { increments: vec![("n".into(), number)], ..Intents::default() };
        let table = [
            (r#"{"n":4}"#, 3, r#"{"n":7}"#),
            ("{}", -3, r#"{"n":-3}"#),
            (r#"{"n":"x"}"#, 3, r#"{"n":"x"}"#),
            (r#"{"n":9007199254740992}"#, 1, r#"{"n":9007199254740992}"#),
        ];
        for (fields, number, wanted) in table {
            assert_eq!(shown(&policies(), Some(fields), "{}", &by(number)).as_deref(), Some(wanted));
        }
        assert_eq!(shown(&policies(), None, "{}", &by(1)), None, "a patch makes nothing of nothing");
    }

    #[test]
    fn sets_unite_and_lose_and_lists_append_what_has_a_new_id() {
        let intents = Intents {
            add: parsed(r#"{"l":[{"id":1,"t":"again"},{"id":2}],"s":["b","a"]}"#),
            remove: parsed(r#"{"s":["c","a"]}"#),
            ..Intents::default()
        };
        let fields = r#"{"l":[{"id":1}],"s":["c","d"]}"#;
        let wanted = r#"{"l":[{"id":1},{"id":2}],"s":["a","b","d"]}"#;
        assert_eq!(shown(&policies(), Some(fields), "{}", &intents).as_deref(), Some(wanted));

        // Nobody told of the policies: what comes later stands later.
        let wanted = r#"{"l":[{"id":1},{"id":1,"t":"again"},{"id":2}],"s":["d","b","a"]}"#;
        assert_eq!(shown(&Policies::default(), Some(fields), "{}", &intents).as_deref(), Some(wanted));

        // What one change takes out and adds stays in.
        let both = Intents { remove: parsed(r#"{"s":["d","e"]}"#), ..Intents::default() };
        let wanted = r#"{"l":[{"id":1}],"s":["c","e"]}"#;
        assert_eq!(shown(&policies(), Some(fields), r#"{"s":["e"]}"#, &both).as_deref(), Some(wanted));

        // Whole values unite as well.
        let whole = r#"{"l":[{"id":3}],"s":["z","a"]}"#;
        let wanted = r#"{"l":[{"id":1},{"id":3}],"s":["a","c","d","z"]}"#;
        assert_eq!(shown(&policies(), Some(fields), whole, &Intents::default()).as_deref(), Some(wanted));
    }
}
