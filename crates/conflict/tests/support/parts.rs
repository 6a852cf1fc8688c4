//! The parts of random changes: whole values and intents, each where its field takes it.

use driftline_conflict::Strategy;
use driftline_model::{Intents, Object, ObjectBuilder};

use super::policies::{Content, order};
use super::rng::Rng;

/// A change's parts while they are collected.
#[derive(Debug, Clone, Default)]
pub(crate) struct Parts {
    pub(crate) fields: Vec<(String, String)>,
    pub(crate) previous: Vec<(String, String)>,
    pub(crate) increments: Vec<(Box<str>, i64)>,
    pub(crate) add: Vec<(String, String)>,
    pub(crate) remove: Vec<(String, String)>,
    pub(crate) deescalate: bool,
}

impl Parts {
    /// Sorts the parts into the form that a change has.
    pub(crate) fn finish(mut self) -> (Object, Option<Box<Intents>>) {
        self.increments.sort();
        let intents = Intents {
            previous: object(self.previous),
            increments: self.increments,
            add: object(self.add),
            remove: object(self.remove),
            deescalate: self.deescalate,
        };
        (object(self.fields), (!intents.is_empty()).then(|| Box::new(intents)))
    }

    /// Touches a field that merges by its own rule, in a way that the rule takes.
    pub(crate) fn touch(&mut self, rng: &mut Rng, strategy: &Strategy, name: &str, unique: &mut u64) {
        match Content::of(strategy, name) {
            Content::Plain => self.fields.push((name.to_owned(), plain(rng, unique))),
            Content::Number => self.fields.push((name.to_owned(), number(rng))),
            Content::Counter => self.increments.push((name.into(), step(rng))),
            Content::Set => self.touch_set(rng, name),
            Content::List => self.touch_list(rng, name, unique),
            Content::Ordered => {
                let values = &order(strategy, name).expect("an ordered field").values;
                self.fields.push((name.to_owned(), rng.pick(values).to_string()));
            }
            Content::Open => match rng.below(10) {
                0 => self.increments.push((name.into(), step(rng))),
                1 => self.touch_set(rng, name),
                2 => self.fields.push((name.to_owned(), rng.below(4).to_string())),
                _ => self.fields.push((name.to_owned(), plain(rng, unique))),
            },
        }
    }

    fn touch_set(&mut self, rng: &mut Rng, name: &str) {
        let elements = list(rng.between(1, 2), || element(rng));
        match rng.below(10) {
            0 | 1 => self.fields.push((name.to_owned(), elements)),
            2..5 => self.remove.push((name.to_owned(), elements)),
            _ => {
                self.add.push((name.to_owned(), elements));
                if rng.percent(15) {
                    let others = list(1, || element(rng));
                    self.remove.push((name.to_owned(), others));
                }
            }
        }
    }

    fn touch_list(&mut self, rng: &mut Rng, name: &str, unique: &mut u64) {
        let entries = list(rng.between(1, 2), || {
            *unique += 1;
            // Now and then two devices give one id.
            let id = if rng.percent(15) { format!("x{}", rng.below(2)) } else { format!("e{unique}") };
            format!(r#"{{"id":"{id}","text":"t{unique}"}}"#)
        });
        let part = if rng.percent(20) { &mut self.fields } else { &mut self.add };
        part.push((name.to_owned(), entries));
    }

    /// Touches a field in a way that its rule refuses.
    pub(crate) fn spoil(&mut self, rng: &mut Rng, strategy: &Strategy, name: &str) {
        match Content::of(strategy, name) {
            Content::Plain if rng.percent(50) => self.add.push((name.to_owned(), "[1]".to_owned())),
            Content::Plain | Content::Ordered | Content::Set => self.increments.push((name.into(), 1)),
            Content::Number => self.fields.push((name.to_owned(), "\"many\"".to_owned())),
            Content::Counter => self.fields.push((name.to_owned(), "7".to_owned())),
            Content::List => self.remove.push((name.to_owned(), r#"[{"id":"x0"}]"#.to_owned())),
            Content::Open => self.add.push((name.to_owned(), "3".to_owned())),
        }
    }
}

fn object(mut members: Vec<(String, String)>) -> Object {
    members.sort();
    let mut built = ObjectBuilder::with_capacity(64, members.len());
    for (name, value) in &members {
        built.push(name, value);
    }
    built.finish()
}

/// Most values occur once in a history, some several times.
fn plain(rng: &mut Rng, unique: &mut u64) -> String {
    *unique += 1;
    match rng.below(10) {
        0 => "null".to_owned(),
        1 | 2 => rng.below(3).to_string(),
        _ => format!("\"v{unique}\""),
    }
}

/// Numbers whose order as texts is another than their order as numbers.
fn number(rng: &mut Rng) -> String {
    let special = ["-7", "-10", "0.5", "-2.5", "1e+21", "9", "10", "100", "1e-7"];
    if rng.percent(40) { (*rng.pick(&special)).to_owned() } else { rng.below(40).to_string() }
}

fn step(rng: &mut Rng) -> i64 {
    *rng.pick(&[1, 1, 1, 2, 5, 10, -1, -3])
}

fn element(rng: &mut Rng) -> String {
    let pool = ["\"roof\"", "\"old\"", "\"x\"", "3", "null"];
    (*rng.pick(&pool)).to_owned()
}

fn list(count: usize, mut one: impl FnMut() -> String) -> String {
    let mut elements: Vec<String> = Vec::new();
    for _ in 0..count {
        let element = one();
        if !elements.contains(&element) {
            elements.push(element);
        }
    }
    format!("[{}]", elements.join(","))
}
