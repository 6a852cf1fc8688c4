//! Orders of arrival.

use super::rng::Rng;
use super::sane::{Freedom, Item};

/// Every order of the items that is allowed, or a sample when there are too many.
pub(crate) fn orders<'a>(rng: &mut Rng, items: &'a [Item], freedom: Freedom) -> Vec<Vec<&'a Item>> {
    if items.len() <= 5 {
        let mut all = Vec::new();
        let mut rest: Vec<&Item> = items.iter().collect();
        extend(&mut Vec::new(), &mut rest, freedom, &mut all);
        return all;
    }
    (0..40).map(|_| shuffled(rng, items, freedom)).collect()
}

fn extend<'a>(
    taken: &mut Vec<&'a Item>,
    rest: &mut Vec<&'a Item>,
    freedom: Freedom,
    all: &mut Vec<Vec<&'a Item>>,
) {
    if rest.is_empty() {
        return all.push(taken.clone());
    }
    for at in 0..rest.len() {
        let item = rest[at];
        let first = rest.iter().all(|other| other.client != item.client || other.n >= item.n);
        if freedom == Freedom::PerDevice && !first {
            continue;
        }
        rest.remove(at);
        taken.push(item);
        extend(taken, rest, freedom, all);
        taken.pop();
        rest.insert(at, item);
    }
}

/// A random order; where each device's own is kept, its items take that device's places in sequence.
fn shuffled<'a>(rng: &mut Rng, items: &'a [Item], freedom: Freedom) -> Vec<&'a Item> {
    let mut order: Vec<&Item> = items.iter().collect();
    rng.shuffle(&mut order);
    if freedom == Freedom::PerDevice {
        let places: Vec<usize> = order.iter().map(|item| item.client).collect();
        let mut own: Vec<std::vec::IntoIter<&Item>> = Vec::new();
        for client in 0..=places.iter().copied().max().unwrap_or(0) {
            let mut mine: Vec<&Item> = items.iter().filter(|item| item.client == client).collect();
            mine.sort_by_key(|item| item.n);
            own.push(mine.into_iter());
        }
        order = places.iter().filter_map(|client| own[*client].next()).collect();
    }
    order
}
