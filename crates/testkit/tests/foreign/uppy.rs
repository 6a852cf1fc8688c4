//! Uppy in a browser: the page `uppy.html` comes from another origin than the server's, and reports what it saw.

use super::pages::Pages;
use super::tools::{configured, installed, script, token};
use super::uploads::{NAMED, compare, download, staged};

#[tokio::test]
async fn uppy_pauses_cancels_and_learns_why_it_is_refused() {
    let uppy = installed("DRIFTLINE_NODE_MODULES", "foreign/node_modules").join("uppy/dist/uppy.min.mjs");
    assert!(uppy.exists(), "{} is missing; scripts/test installs it", uppy.display());
    let files = [("/", script("uppy.html")), ("/uppy.js", script("uppy.js")), ("/uppy.min.mjs", uppy)];
    let pages = Pages::start(files);
    let server = configured(&format!("[server]\norigins = [{:?}]\n", pages.origin()));
    let token = token(&server, "");
    let seen = pages.report(&format!("endpoint=http://{}/files&token={token}", server.address()), &server);

    let paused = &seen["paused"];
    assert!(paused["url"].is_string(), "{paused}\n{}", server.log());
    let file = compare(&server, &token, paused).await;
    assert_eq!(file.header("content-disposition"), Some(NAMED));
    // After the pause it asked where the server is, and could read the answer.
    let steps = paused["steps"].as_array().expect("it is told");
    let heads: Vec<_> = steps.iter().filter(|step| step["method"] == "HEAD").collect();
    assert!(heads.iter().any(|head| head["upload-offset"].is_string()), "{paused}");

    let cancelled = &seen["cancelled"];
    let gone = cancelled["gone"].as_u64();
    assert!(matches!(gone, Some(404 | 410)), "{cancelled}\n{}", server.log());
    let url = cancelled["url"].as_str().expect("it is told");
    assert_eq!(download(&server, &token, url).await.status, 404, "{cancelled}");

    // A page can read no refusal unless it is told that it may.
    assert_eq!(seen["refused"]["status"], 401, "{}", seen["refused"]);
    assert_eq!(staged(&server), Vec::<String>::new());
}
