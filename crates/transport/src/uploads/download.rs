//! Files, whole or in ranges (RFC 9110 §14).

use std::sync::Arc;

use axum::body::Body;
use axum::extract::Request;
use axum::http::{HeaderMap, HeaderValue, Method, Response, StatusCode, header};
use driftline_engine::{Store, UploadRow};
use driftline_protocol::{ErrorCode, Fault};
use futures_util::stream;

use super::{Refused, native};
use crate::app::App;
use crate::negotiate::Wishes;
use crate::reply::refused;
use crate::request::Pairs;
use crate::routes::Names;

/// Has a request for a file answered.
pub(super) async fn answer<S: Store>(
    app: &Arc<App<S>>,
    names: &Names,
    request: Request,
    correlation: &str,
    wishes: Wishes,
) -> Response<Body> {
    match file(app, names, request).await {
        Ok(response) => response,
        Err(refusal) => refused(*refusal, correlation).respond(wishes).await,
    }
}

async fn file<S: Store>(
    app: &Arc<App<S>>,
    names: &Names,
    request: Request,
) -> Result<Response<Body>, Refused> {
    let (parts, _) = request.into_parts();
    let identity = native::user(app, &parts, &Pairs::of(&parts.uri), false).await?;
    let id = names.iter().find(|(name, _)| name == "file_id").and_then(|(_, text)| text.parse().ok());
    let id = id.ok_or_else(|| Fault::new(ErrorCode::NotFound, "there is no such upload or file here"))?;
    let row = app.engine().file(&identity, id).await?;
    let (size, tag) = (row.upload.received, tag_of(&row));
    let is_head = parts.method == Method::HEAD;
    let (status, from, until) = match wanted(&parts.headers, size, &tag) {
        // A range is one of GET alone (RFC 9110 §14.2).
        Wanted::Part { .. } | Wanted::Beyond if is_head => (StatusCode::OK, 0, size),
        Wanted::Whole => (StatusCode::OK, 0, size),
        Wanted::Known => (StatusCode::NOT_MODIFIED, 0, 0),
        Wanted::Part { from, until } => (StatusCode::PARTIAL_CONTENT, from, until),
        Wanted::Beyond => (StatusCode::RANGE_NOT_SATISFIABLE, 0, 0),
    };
    let empty = is_head || from == until;
    let body = if empty { Body::empty() } else { bytes(app, &row, from, until).await? };
    let mut response = Response::new(body);
    *response.status_mut() = status;
    let headers = response.headers_mut();
    describe(headers, &row, &tag);
    match status {
        StatusCode::PARTIAL_CONTENT => {
            put(headers, header::CONTENT_RANGE, &format!("bytes {from}-{}/{size}", until - 1));
        }
        StatusCode::RANGE_NOT_SATISFIABLE => put(headers, header::CONTENT_RANGE, &format!("bytes */{size}")),
        _ => {}
    }
    match status {
        // Nothing, or what the whole file has (RFC 9110 §8.6).
        StatusCode::NOT_MODIFIED if is_head => headers.insert(header::CONTENT_LENGTH, size.into()),
        StatusCode::NOT_MODIFIED => None,
        _ => headers.insert(header::CONTENT_LENGTH, (until - from).into()),
    };
    Ok(response)
}

/// The file's digest is its strong validator: files never change.
fn tag_of(row: &UploadRow) -> String {
    format!("\"{}\"", row.digest.map(|digest| digest.to_string()).unwrap_or_default())
}

/// Says what the bytes are, and that a browser shall neither show nor guess.
fn describe(headers: &mut HeaderMap, row: &UploadRow, tag: &str) {
    put(headers, header::CONTENT_TYPE, &row.content_type);
    put(headers, header::ETAG, tag);
    put(headers, header::CONTENT_DISPOSITION, &disposition(&row.file_name));
    headers.insert(header::ACCEPT_RANGES, HeaderValue::from_static("bytes"));
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.insert(header::CONTENT_SECURITY_POLICY, HeaderValue::from_static("sandbox; default-src 'none'"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("private, no-cache"));
}

fn put(headers: &mut HeaderMap, name: header::HeaderName, value: &str) {
    if let Ok(value) = HeaderValue::from_str(value) {
        headers.insert(name, value);
    }
}

/// Names the file for whoever keeps it (RFC 6266): in ASCII for old programs, and as it is (RFC 8187).
fn disposition(name: &str) -> String {
    let plain = |letter: char| letter.is_ascii_alphanumeric() || " !#$&+-.^_`|~()[]{}@=,".contains(letter);
    let ascii: String = name.chars().map(|letter| if plain(letter) { letter } else { '_' }).collect();
    let mut encoded = String::new();
    for byte in name.bytes() {
        if byte.is_ascii_alphanumeric() || b"!#$&+-.^_`|~".contains(&byte) {
            encoded.push(byte.into());
        } else {
            encoded.push_str(&format!("%{byte:02X}"));
        }
    }
    format!("attachment; filename=\"{ascii}\"; filename*=UTF-8''{encoded}")
}

/// What of a file is wanted.
#[derive(Debug, PartialEq, Eq)]
enum Wanted {
    Whole,
    /// Nothing: the asker has it.
    Known,
    /// From a byte up to before another one.
    Part {
        from: u64,
        until: u64,
    },
    /// What is not there.
    Beyond,
}

fn wanted(headers: &HeaderMap, size: u64, tag: &str) -> Wanted {
    let all = |name| headers.get_all(name).iter().filter_map(|value: &HeaderValue| value.to_str().ok());
    let text = |name| all(name).next().map(str::trim);
    let weak = |known: &str| known == "*" || known.trim_start_matches("W/") == tag;
    if all(header::IF_NONE_MATCH).flat_map(|known| known.split(',')).map(str::trim).any(weak) {
        return Wanted::Known;
    }
    // A part is of use only to whoever has other parts of the same file.
    if text(header::IF_RANGE).is_some_and(|known| known != tag) {
        return Wanted::Whole;
    }
    if all(header::RANGE).count() > 1 {
        return Wanted::Whole;
    }
    text(header::RANGE).map_or(Wanted::Whole, |range| part(range, size))
}

/// Reads a single range; several are answered with the whole, as is what is no range of bytes.
fn part(range: &str, size: u64) -> Wanted {
    let Some((unit, range)) = range.split_once('=') else { return Wanted::Whole };
    if !unit.eq_ignore_ascii_case("bytes") {
        return Wanted::Whole;
    }
    let Some((first, last)) = range.trim().split_once('-').filter(|_| !range.contains(',')) else {
        return Wanted::Whole;
    };
    let digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
    if !digits(first) || !digits(last) || (first.is_empty() && last.is_empty()) {
        return Wanted::Whole;
    }
    let number = |text: &str| text.parse::<u64>().unwrap_or(u64::MAX);
    let (from, until) = match (first, last) {
        ("", last) => (size.saturating_sub(number(last)), size),
        (first, "") => (number(first), size),
        (first, last) if number(last) < number(first) => return Wanted::Whole,
        (first, last) => (number(first), number(last).saturating_add(1).min(size)),
    };
    if from >= until { Wanted::Beyond } else { Wanted::Part { from, until } }
}

/// Reads a file piece by piece, each when the last one was taken; the first one at once, so that a file which cannot be read
/// is refused, and not cut off.
async fn bytes<S: Store>(app: &Arc<App<S>>, row: &UploadRow, from: u64, until: u64) -> Result<Body, Refused> {
    let (app, id) = (Arc::clone(app), row.id);
    let most = app.engine().file_read_bytes();
    let step = move |at: u64| usize::try_from(until - at).unwrap_or(most).min(most);
    let first = app.engine().read_file(id, from, step(from)).await?;
    if first.is_empty() {
        return Err(Fault::new(ErrorCode::HandlerError, "the bytes of the file are not there").into());
    }
    Ok(Body::from_stream(stream::try_unfold((from, Some(first)), move |(at, read)| {
        let app = Arc::clone(&app);
        async move {
            let piece = match read {
                Some(piece) => piece,
                None if at == until => return Ok(None),
                None => app.engine().read_file(id, at, step(at)).await.map_err(std::io::Error::other)?,
            };
            if piece.is_empty() {
                return Err(std::io::Error::from(std::io::ErrorKind::UnexpectedEof));
            }
            let next = at + piece.len() as u64;
            Ok(Some((bytes::Bytes::from(piece), (next, None))))
        }
    })))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_cut_to_the_file() {
        let some = |from, until| Wanted::Part { from, until };
        let table = [
            ("bytes=0-", some(0, 10)),
            ("bytes=0-0", some(0, 1)),
            ("bytes=3-5", some(3, 6)),
            ("Bytes=3-5", some(3, 6)),
            ("bytes=9-99", some(9, 10)),
            ("bytes=-3", some(7, 10)),
            ("bytes=-99", some(0, 10)),
            ("bytes=10-", Wanted::Beyond),
            ("bytes=-0", Wanted::Beyond),
            ("bytes=99999999999999999999-", Wanted::Beyond),
            ("bytes=5-3", Wanted::Whole),
            ("bytes=0-1,3-4", Wanted::Whole),
            ("bytes=-", Wanted::Whole),
            ("bytes=a-b", Wanted::Whole),
            ("lines=0-1", Wanted::Whole),
        ];
        for (range, wanted) in table {
            assert_eq!(part(range, 10), wanted, "{range}");
        }
        assert_eq!(part("bytes=0-", 0), Wanted::Beyond);
    }

    #[test]
    fn a_name_is_told_twice_and_breaks_no_header() {
        assert_eq!(
            disposition("Stra\u{df}e \"1\"\\.txt"),
            "attachment; filename=\"Stra_e _1__.txt\"; filename*=UTF-8''Stra%C3%9Fe%20%221%22%5C.txt"
        );
    }
}
