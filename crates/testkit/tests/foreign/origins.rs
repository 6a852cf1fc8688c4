//! Pages of other origins: what a browser is told that they may do with uploads.

use driftline_testkit::http::{Request, Response};
use driftline_testkit::server::Server;
use serde_json::json;

use super::tools::{configured, token};
use super::uploads::file_of;

const LISTED: &str = "https://app.example.org";

/// What a page has to read of answers, some here and some there.
const READ: &str = "location,upload-offset,upload-length,upload-defer-length,upload-concat,upload-metadata,upload-expires,\
                    tus-resumable,tus-version,tus-extension,tus-max-size,tus-checksum-algorithm,retry-after,etag,\
                    accept-ranges,content-range,content-disposition";

/// Finds what a list in a header has not of what is wanted.
fn lacks<'a>(answer: &Response, header: &str, wanted: &'a str) -> Vec<&'a str> {
    let list: Vec<_> = answer.header(header).unwrap_or_default().split(',').map(str::trim).collect();
    let has = |name: &&str| list.iter().any(|own| own.eq_ignore_ascii_case(name));
    wanted.split(',').filter(|name| !has(name)).collect()
}

/// A page that uploads.
struct Page<'a> {
    server: &'a Server,
    token: &'a str,
    origin: &'a str,
}

impl Page<'_> {
    /// Asks, and checks the status and what a browser is told of the origin.
    async fn ask(&self, request: Request, status: u16) -> Response {
        let answer = request.clone().header("origin", self.origin).send(self.server.address()).await;
        let told = format!("{request:?}\n{} {:?}\n{}", answer.status, answer.headers, answer.text());
        assert_eq!(answer.status, status, "{told}");
        let mut vary = answer.headers.iter().filter(|(name, _)| name == "vary");
        assert!(vary.any(|(_, names)| names.eq_ignore_ascii_case("origin")), "{told}");
        let allowed = answer.headers.iter().filter(|(name, _)| name.starts_with("access-control-"));
        if self.origin == LISTED {
            let origins = allowed.filter(|(name, _)| name == "access-control-allow-origin");
            assert_eq!(origins.map(|(_, origin)| origin.as_str()).collect::<Vec<_>>(), [LISTED], "{told}");
            assert_eq!(answer.header("access-control-allow-credentials"), None, "{told}");
            assert_eq!(lacks(&answer, "access-control-expose-headers", READ), [""; 0], "{told}");
        } else {
            assert_eq!(allowed.count(), 0, "{told}");
        }
        answer
    }

    /// Asks the tus front; its every answer says which version it speaks.
    async fn tus(&self, request: Request, status: u16) -> Response {
        let answer = self.ask(request.header("tus-resumable", "1.0.0"), status).await;
        assert_eq!(answer.header("tus-resumable"), Some("1.0.0"), "{:?}", answer.headers);
        answer
    }

    fn create(&self, size: &str) -> Request {
        Request::new("POST", "/files").bearer(self.token).header("upload-length", size)
    }

    /// Goes through everything that tus knows, rightly and wrongly.
    async fn uploads(&self) {
        let nowhere = format!("/files/{}", "0".repeat(64));
        let head = |url: &str| Request::new("HEAD", url);
        let append = |url: &str, offset: &str| {
            let request = Request::new("PATCH", url).header("upload-offset", offset).body("bytes");
            request.header("content-type", "application/offset+octet-stream")
        };
        self.ask(Request::new("OPTIONS", "/files"), 204).await;
        self.ask(Request::new("OPTIONS", &nowhere), 204).await;
        self.tus(Request::new("PUT", "/files"), 405).await;
        self.tus(Request::get(&nowhere), 405).await;
        self.ask(self.create("10"), 412).await;
        self.tus(Request::new("POST", "/files").header("upload-length", "10"), 401).await;
        self.tus(self.create("ten"), 400).await;
        self.tus(self.create("9007199254740991"), 413).await;
        let created = self.tus(self.create("10"), 201).await;
        let url = created.header("location").expect("it is told").to_owned();
        self.tus(head(&nowhere), 404).await;
        self.tus(append(&nowhere, "0"), 404).await;
        self.ask(append(&url, "0"), 412).await;
        self.tus(Request::new("PATCH", &url).header("upload-offset", "0").body("bytes"), 415).await;
        self.tus(append(&url, "1"), 409).await;
        self.tus(append(&url, "0").header("upload-checksum", "sha1 AAAA"), 460).await;
        self.tus(append(&url, "0"), 204).await;
        let told = self.tus(head(&url), 200).await;
        assert_eq!(told.header("upload-offset"), Some("5"));
        self.tus(append(&url, "5"), 204).await;
        let file = format!("/api/v1/files/{}", file_of(&url));
        self.ask(Request::get(&file), 401).await;
        self.ask(Request::get(&file).bearer(self.token), 200).await;
        self.ask(Request::post(&file, &json!({})).bearer(self.token), 405).await;
        self.tus(Request::new("DELETE", &url), 204).await;
        self.ask(Request::get(&file).bearer(self.token), 404).await;
        let created = self.tus(self.create("10"), 201).await;
        let url = created.header("location").expect("it is told").to_owned();
        self.tus(Request::new("DELETE", &url), 204).await;
        self.tus(head(&url), 410).await;
    }

    /// Asks the native front.
    async fn chunks(&self) {
        let init = |body| Request::post("/api/v1/uploads/init", &body);
        self.ask(Request::new("OPTIONS", "/api/v1/uploads/init"), 204).await;
        self.ask(init(json!({"filename": "a", "size": 5})), 401).await;
        self.ask(init(json!({"filename": 1, "size": 5})).bearer(self.token), 422).await;
        self.ask(Request::new("PUT", "/api/v1/uploads/init"), 405).await;
        let opened = self.ask(init(json!({"filename": "a", "size": 5})).bearer(self.token), 201).await;
        let url = opened.header("location").expect("it is told").to_owned();
        let chunk = Request::new("PUT", &format!("{url}/chunk/0")).bearer(self.token).body("bytes");
        self.ask(chunk, 400).await;
        self.ask(Request::get(&url).bearer(self.token), 200).await;
        self.ask(Request::new("DELETE", &url).bearer(self.token), 204).await;
        self.ask(Request::get("/api/v1/uploads/none").bearer(self.token), 404).await;
    }
}

#[tokio::test]
async fn every_answer_says_whether_a_page_may_read_it() {
    let server = configured(&format!("[server]\norigins = [{LISTED:?}]\n"));
    let token = token(&server, "");
    // The last ones are like the listed one, and are others.
    let others = [
        "http://app.example.org",
        "https://app.example.org:8443",
        "https://app.example.org.evil.example",
        "null",
    ];
    for origin in [LISTED, "https://evil.example"].into_iter().chain(others) {
        let page = Page { server: &server, token: &token, origin };
        page.uploads().await;
        page.chunks().await;
    }
}

#[tokio::test]
async fn a_browser_is_told_beforehand_what_a_page_may_send() {
    let server = configured(&format!("[server]\norigins = [{LISTED:?}]\n"));
    let page = Page { server: &server, token: "", origin: LISTED };
    let tus = "authorization,content-type,tus-resumable,upload-checksum,upload-concat,upload-defer-length,upload-length,\
               upload-metadata,upload-offset,x-http-method-override,x-request-id";
    let chunks = "authorization,content-digest,content-type,idempotency-key,x-chunk-sha256,x-upload-token";
    let files = "authorization,if-none-match,if-range,range";
    let id = "0".repeat(32);
    let preflights = [
        ("/files".into(), "POST", tus),
        (format!("/files/{id}{id}"), "POST,HEAD,PATCH,DELETE", tus),
        ("/api/v1/uploads/init".into(), "POST", chunks),
        (format!("/api/v1/uploads/{id}"), "GET,DELETE", chunks),
        (format!("/api/v1/uploads/{id}/chunk/0"), "PUT", chunks),
        (format!("/api/v1/uploads/{id}/finalize"), "POST", chunks),
        (format!("/api/v1/files/{id}"), "GET,HEAD,DELETE", files),
    ];
    for (path, methods, headers) in preflights {
        for method in methods.split(',') {
            let preflight = Request::new("OPTIONS", &path).header("access-control-request-method", method);
            let preflight = preflight.header("access-control-request-headers", headers);
            let answer = page.ask(preflight, 204).await;
            assert_eq!(lacks(&answer, "access-control-allow-methods", method), [""; 0], "{path}");
            assert_eq!(lacks(&answer, "access-control-allow-headers", headers), [""; 0], "{path}");
        }
    }
}
