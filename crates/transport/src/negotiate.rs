//! What form of answer a request asks for: `Accept` and `Accept-Encoding` (RFC 9110 §12.5).

use axum::http::{HeaderMap, HeaderName, header};
use driftline_protocol::Encoding;

use crate::coding::{Coding, is_gzip};

/// Bodies below this many bytes are sent as they are, if that is acceptable.
const CODED_BYTES_MIN: usize = 1 << 10;

/// What a request says of the form of its answer.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Wishes {
    /// The encoding of documents; JSON when nothing acceptable is named.
    pub(crate) encoding: Encoding,
    /// Weights in thousandths.
    gzip: u16,
    zstd: u16,
    /// The weight of a body as it is; nothing: acceptable, and less wanted than any coding.
    identity: Option<u16>,
}

impl Wishes {
    pub(crate) fn of(headers: &HeaderMap) -> Self {
        let codings = weights(headers, &header::ACCEPT_ENCODING);
        let find =
            |is: &dyn Fn(&str) -> bool| codings.iter().find(|(name, _)| is(name)).map(|(_, weight)| *weight);
        let any = find(&|name| name == "*");
        Self {
            encoding: encoding(&weights(headers, &header::ACCEPT)),
            gzip: find(&is_gzip).or(any).unwrap_or(0),
            zstd: find(&|name| name == "zstd").or(any).unwrap_or(0),
            // `*` leaves the body as it is acceptable, unless it forbids everything that is not named.
            identity: find(&|name| name == "identity").or(any.filter(|weight| *weight == 0)),
        }
    }

    /// Chooses the coding of a body of so many bytes.
    pub(crate) fn coding(&self, len: usize) -> Option<Coding> {
        let (coding, weight) =
            if self.gzip > self.zstd { (Coding::Gzip, self.gzip) } else { (Coding::Zstd, self.zstd) };
        let plain = weight == 0 || self.identity.is_some_and(|identity| identity > weight);
        let short = len < CODED_BYTES_MIN && self.takes_plain();
        (!plain && !short).then_some(coding)
    }

    /// Tells whether a body as it is would be acceptable.
    pub(crate) fn takes_plain(&self) -> bool {
        self.identity != Some(0)
    }
}

/// Reads a list of weighted names, in lower case and without their parameters. What cannot be read is left out.
fn weights(headers: &HeaderMap, name: &HeaderName) -> Vec<(String, u16)> {
    let values = headers.get_all(name).iter().filter_map(|value| value.to_str().ok());
    values.flat_map(|value| value.split(',')).filter_map(weighted).collect()
}

fn weighted(item: &str) -> Option<(String, u16)> {
    let mut parts = item.split(';').map(str::trim);
    let name = parts.next().filter(|name| !name.is_empty())?.to_ascii_lowercase();
    let weight = parts.find_map(|part| {
        let (key, value) = part.split_once('=')?;
        key.trim().eq_ignore_ascii_case("q").then(|| thousandths(value.trim()))
    });
    Some((name, weight.unwrap_or(Some(1000))?))
}

/// Reads a weight: `0` to `1` with at most three decimals.
fn thousandths(text: &str) -> Option<u16> {
    let (whole, decimals) = text.split_once('.').unwrap_or((text, ""));
    let digits = decimals.len() <= 3 && decimals.bytes().all(|byte| byte.is_ascii_digit());
    if !digits || !matches!(whole, "0" | "1") {
        return None;
    }
    let weight = format!("{whole}{decimals:0<3}").parse().ok()?;
    (weight <= 1000).then_some(weight)
}

const JSON: [&str; 2] = ["application/json", "application/problem+json"];
const MESSAGE_PACK: [&str; 4] = [
    "application/msgpack",
    "application/x-msgpack",
    "application/vnd.msgpack",
    "application/problem+msgpack",
];

/// Finds the encoding of a media type without its parameters.
pub(crate) fn encoding_of(essence: &str) -> Option<Encoding> {
    let is_one_of = |types: &[&str]| types.iter().any(|known| known.eq_ignore_ascii_case(essence));
    if is_one_of(&JSON[..1]) {
        return Some(Encoding::Json);
    }
    is_one_of(&MESSAGE_PACK[..3]).then_some(Encoding::MessagePack)
}

/// MessagePack when it weighs more than JSON, or as much and is named more precisely.
fn encoding(accepted: &[(String, u16)]) -> Encoding {
    let rank = |types: &[&str]| {
        let best = |precision: u8, is: &dyn Fn(&str) -> bool| {
            let weights = accepted.iter().filter(|(name, _)| is(name)).map(|(_, weight)| *weight);
            weights.max().map(|weight| (weight, precision))
        };
        // The most precise range that fits says the weight.
        let precise = best(2, &|name| types.contains(&name));
        precise
            .or_else(|| best(1, &|name| name == "application/*"))
            .or_else(|| best(0, &|name| name == "*/*"))
    };
    match (rank(&MESSAGE_PACK), rank(&JSON)) {
        (Some((0, _)) | None, _) => Encoding::Json,
        (Some(packed), json) if Some(packed) > json => Encoding::MessagePack,
        _ => Encoding::Json,
    }
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;

    use super::*;

    fn wishes(name: HeaderName, value: &str) -> Wishes {
        let mut headers = HeaderMap::new();
        headers.insert(name, HeaderValue::from_str(value).unwrap());
        Wishes::of(&headers)
    }

    #[test]
    fn accept_chooses_the_encoding() {
        let table = [
            ("", Encoding::Json),
            ("*/*", Encoding::Json),
            ("text/html", Encoding::Json),
            ("application/*", Encoding::Json),
            ("application/json", Encoding::Json),
            ("application/msgpack", Encoding::MessagePack),
            ("Application/X-MsgPack ; q=0.5", Encoding::MessagePack),
            ("application/vnd.msgpack, */*;q=0.1", Encoding::MessagePack),
            ("application/msgpack, */*", Encoding::MessagePack),
            ("application/msgpack, application/json", Encoding::Json),
            ("application/msgpack;q=0.9, application/json;q=0.8", Encoding::MessagePack),
            ("application/msgpack;q=0.8, application/json;q=0.9", Encoding::Json),
            ("application/msgpack;q=0.8, */*;q=0.9", Encoding::Json),
            ("application/msgpack;q=0", Encoding::Json),
            ("application/json;q=0, */*", Encoding::MessagePack),
            ("application/msgpack;q=2, application/json;q=0.1", Encoding::Json),
        ];
        for (accept, wanted) in table {
            assert_eq!(wishes(header::ACCEPT, accept).encoding, wanted, "{accept}");
        }
        assert_eq!(Wishes::of(&HeaderMap::new()), Wishes::default());
    }

    #[test]
    fn accept_encoding_chooses_the_coding() {
        let (gzip, zstd) = (Some(Coding::Gzip), Some(Coding::Zstd));
        let table = [
            ("", None, None),
            ("gzip", None, gzip),
            ("x-gzip", None, gzip),
            ("gzip, zstd", None, zstd),
            ("GZIP;q=1.0, zstd;q=0.999", None, gzip),
            ("*", None, zstd),
            ("zstd;q=0, *", None, gzip),
            ("br, deflate", None, None),
            ("identity", None, None),
            ("identity;q=0.9, gzip;q=0.5", None, None),
            ("identity;q=0.5, gzip;q=0.5", None, gzip),
            ("gzip;q=0, zstd;q=0", None, None),
            ("identity;q=0, gzip", gzip, gzip),
            ("*;q=0, zstd;q=0.1", zstd, zstd),
            ("*;q=0", None, None),
            ("gzip;q=0.0001, zstd;q=x", None, None),
        ];
        for (accept, short, long) in table {
            let wishes = wishes(header::ACCEPT_ENCODING, accept);
            assert_eq!((wishes.coding(1023), wishes.coding(1024)), (short, long), "{accept}");
        }
    }
}
