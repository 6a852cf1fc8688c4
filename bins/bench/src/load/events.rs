//! Events as the scenarios publish them: bodies of one length that carry a number, and how that number and the event's
//! id are found in what a server delivers without parsing it.

use std::io::Write as _;

use anyhow::{Result, ensure};

use super::options::Dialect;

/// Decimal digits of the number in a body.
const NUMBER_DIGITS: usize = 14;
/// A publisher's events are numbered below this.
const COUNTS: u64 = 1_000_000_000_000;
/// The most publishers of a run: the digits that are left for them.
pub(crate) const PUBLISHERS_MAX: u64 = 100;
/// What stands before the number in a body.
const NUMBER_MARK: &[u8] = br#""number":""#;
/// What stands before the position of an event.
const ID_MARK: &[u8] = br#""id":""#;
/// The name of the events.
const KIND: &str = "bench";

/// Who published an event, and how many it had published before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Number {
    pub(crate) publisher: u64,
    pub(crate) count: u64,
}

/// Bodies of one length.
#[derive(Debug, Clone)]
pub(crate) struct Bodies {
    padding: String,
}

impl Bodies {
    /// Makes bodies of `bytes` bytes.
    ///
    /// # Errors
    /// When the number does not fit.
    pub(crate) fn new(bytes: usize) -> Result<Self> {
        let mut bare = Vec::new();
        let mut bodies = Bodies { padding: String::new() };
        bodies.write(Number { publisher: 0, count: 0 }, &mut bare);
        ensure!(bytes >= bare.len(), "a body needs at least {} bytes", bare.len());
        bodies.padding = "driftline ".chars().cycle().take(bytes - bare.len()).collect();
        Ok(bodies)
    }

    /// Appends the body of a number, a JSON object.
    pub(crate) fn write(&self, number: Number, out: &mut Vec<u8>) {
        let digits = number.publisher * COUNTS + number.count % COUNTS;
        // Writing to memory does not fail.
        let _ = write!(out, r#"{{"number":"{digits:0NUMBER_DIGITS$}","text":"{}"}}"#, self.padding);
    }

    /// Appends the message that publishes a number on a topic.
    pub(crate) fn write_publish(&self, dialect: Dialect, topic: &str, number: Number, out: &mut Vec<u8>) {
        // Writing to memory does not fail.
        let _ = match dialect {
            Dialect::Driftline => {
                write!(
                    out,
                    r#"{{"type":"publish","id":"{}","payload":{{"topic":"{topic}","event_type":"{KIND}","data":"#,
                    number.count,
                )
            }
            Dialect::Plain => {
                write!(
                    out,
                    r#"{{"type":"publish","sync_id":"e","ts":1,"payload":{{"topic":"{topic}","body":"#
                )
            }
        };
        self.write(number, out);
        out.extend_from_slice(b"}}");
    }
}

/// Appends an event with the fields that the server gives it.
pub(crate) fn write_event(topic: &str, id: i64, at: &str, data: &str, out: &mut Vec<u8>) {
    // Writing to memory does not fail.
    let _ = write!(
        out,
        concat!(
            r#"{{"type":"bench","server_time":"{at}","id":"00000000-{id}","#,
            r#""topic":"{topic}","timestamp":"{at}","data":{data}}}"#
        ),
        at = at,
        id = id,
        topic = topic,
        data = data,
    );
}

/// Finds numbers and ids in delivered events.
#[derive(Debug)]
pub(crate) struct Finder {
    number: Mark,
    id: Mark,
}

impl Finder {
    /// Begins without knowing where anything stands.
    pub(crate) fn new() -> Self {
        Finder { number: Mark { bytes: NUMBER_MARK, at: 0 }, id: Mark { bytes: ID_MARK, at: 0 } }
    }

    /// Gives the number in a message; none in one that is no event of a run.
    pub(crate) fn number(&mut self, text: &[u8]) -> Option<Number> {
        let digits = self.number.behind(text)?.get(..NUMBER_DIGITS)?;
        let value = decimal(digits)?;
        Some(Number { publisher: value / COUNTS, count: value % COUNTS })
    }

    /// Gives the number of an event's position, `<epoch>-<n>`; none in an event without one.
    pub(crate) fn id(&mut self, text: &[u8]) -> Option<u64> {
        let position = self.id.behind(text)?;
        let position = &position[..position.iter().position(|&byte| byte == b'"')?];
        let dash = position.iter().rposition(|&byte| byte == b'-')?;
        decimal(&position[dash + 1..])
    }
}

/// Bytes that stand at the same place in one message after the other.
#[derive(Debug)]
struct Mark {
    bytes: &'static [u8],
    /// Where they were last.
    at: usize,
}

impl Mark {
    /// What follows the mark. The place where it was last is looked at first; a search through a few hundred bytes for
    /// every message would cost more than reading them from the socket.
    fn behind<'t>(&mut self, text: &'t [u8]) -> Option<&'t [u8]> {
        if let Some(rest) = text.get(self.at..).and_then(|tail| tail.strip_prefix(self.bytes)) {
            return Some(rest);
        }
        let at = text.windows(self.bytes.len()).position(|part| part == self.bytes)?;
        self.at = at;
        Some(&text[at + self.bytes.len()..])
    }
}

/// Reads a decimal number; none when there is anything but digits, or nothing, or too many of them.
fn decimal(digits: &[u8]) -> Option<u64> {
    if digits.is_empty() || digits.len() > 18 {
        return None;
    }
    digits.iter().try_fold(0, |value: u64, &digit| {
        digit.is_ascii_digit().then(|| value * 10 + u64::from(digit - b'0'))
    })
}

/// The order in which one subscriber must get the events of every publisher.
#[derive(Debug)]
pub(crate) struct Order {
    next: Vec<u64>,
    last_id: Option<u64>,
}

/// How an event may stand to those before it.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// It is the next one of its publisher, and its id is above that of all before.
    Next,
    /// It came before, or after one of its publisher that it should precede.
    Disordered,
    /// Its id is not above that of the event before it.
    IdFell,
    /// So many events of its publisher should have come before it.
    Gap(u64),
}

impl Order {
    /// Begins before the first event of each of the publishers.
    pub(crate) fn new(publishers: usize) -> Self {
        Order { next: vec![0; publishers], last_id: None }
    }

    /// Places the next event that came.
    pub(crate) fn place(&mut self, number: Number, id: Option<u64>) -> Place {
        let rises = id.is_none_or(|id| self.last_id.is_none_or(|last| id > last));
        if !rises {
            return Place::IdFell;
        }
        self.last_id = id.or(self.last_id);
        let publisher = usize::try_from(number.publisher).unwrap_or(usize::MAX);
        let Some(next) = self.next.get_mut(publisher) else { return Place::Disordered };
        let Some(missed) = number.count.checked_sub(*next) else { return Place::Disordered };
        *next = number.count + 1;
        if missed == 0 { Place::Next } else { Place::Gap(missed) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn number(publisher: u64, count: u64) -> Number {
        Number { publisher, count }
    }

    #[test]
    fn bodies_have_their_length_and_are_objects() {
        let bodies = Bodies::new(256).expect("long enough");
        let mut out = Vec::new();
        bodies.write(number(99, 123_456), &mut out);
        assert_eq!(out.len(), 256);
        let value: serde_json::Value = serde_json::from_slice(&out).expect("JSON");
        assert_eq!(value["number"], "99000000123456");
        assert!(Bodies::new(20).is_err());
    }

    #[test]
    fn publishing_messages_of_both_dialects_are_json() {
        let bodies = Bodies::new(256).expect("long enough");
        for (dialect, pointer) in
            [(Dialect::Driftline, "/payload/data/number"), (Dialect::Plain, "/payload/body/number")]
        {
            let mut out = Vec::new();
            bodies.write_publish(dialect, "t.1", number(1, 7), &mut out);
            let value: serde_json::Value = serde_json::from_slice(&out).expect("JSON");
            assert_eq!(value["payload"]["topic"], "t.1");
            assert_eq!(value.pointer(pointer), Some(&serde_json::json!("01000000000007")));
        }
    }

    #[test]
    fn numbers_and_ids_are_found_where_they_move() {
        let bodies = Bodies::new(100).expect("long enough");
        let mut finder = Finder::new();
        for (id, count) in [(9, 0), (10, 1), (1_000_000, 2), (7, 3)] {
            let (mut body, mut text) = (Vec::new(), Vec::new());
            bodies.write(number(3, count), &mut body);
            let body = String::from_utf8(body).expect("text");
            write_event("t.1", id, "2026-01-01T00:00:00.000Z", &body, &mut text);
            serde_json::from_slice::<serde_json::Value>(&text).expect("JSON");
            assert_eq!(finder.number(&text), Some(number(3, count)));
            assert_eq!(finder.id(&text), u64::try_from(id).ok());
        }
    }

    #[test]
    fn other_messages_have_neither_number_nor_id() {
        let mut finder = Finder::new();
        for text in [
            &br#"{"type":"heartbeat"}"#[..],
            br#"{"type":"x","id":"no","data":{"number":"12"}}"#,
            br#"{"type":"x","id":"a-","data":{"number":"0100000000000x"}}"#,
            br#"{"type":"x","id":"a-1"#,
            b"",
        ] {
            let shown = String::from_utf8_lossy(text);
            assert_eq!((finder.number(text), finder.id(text)), (None, None), "{shown}");
        }
    }

    #[test]
    fn order_is_kept_by_publisher_and_by_id() {
        let mut order = Order::new(2);
        assert_eq!(order.place(number(0, 0), Some(5)), Place::Next);
        assert_eq!(order.place(number(1, 0), Some(6)), Place::Next);
        assert_eq!(order.place(number(0, 3), Some(9)), Place::Gap(2));
        assert_eq!(order.place(number(0, 4), Some(9)), Place::IdFell);
        assert_eq!(order.place(number(1, 0), Some(10)), Place::Disordered, "a second time");
        assert_eq!(order.place(number(1, 1), None), Place::Next, "events without an id");
        assert_eq!(order.place(number(2, 0), None), Place::Disordered, "nobody's event");
    }
}
