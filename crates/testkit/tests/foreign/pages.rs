//! Pages in a browser: served under an origin of their own, opened in a headless Chromium, and waited for.

use std::collections::HashMap;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::Duration;

use driftline_testkit::TempFolder;
use driftline_testkit::server::Server;
use serde_json::Value;

use super::tools::installed;

/// How long a browser may take from its start to the page's report. The pages bound their own time, and report then.
const PATIENCE: Duration = Duration::from_secs(90);

/// The files of a page, each with the path of its URL.
type Files = Arc<HashMap<&'static str, PathBuf>>;

/// Serves a page under an origin of its own, and hands on what it reports.
pub(crate) struct Pages {
    address: SocketAddr,
    reports: Receiver<Value>,
}

impl Pages {
    /// Serves files, of which the one at `/` is the page.
    pub(crate) fn start<const N: usize>(files: [(&'static str, PathBuf); N]) -> Self {
        let files: Files = Arc::new(files.into());
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port is free");
        let address = listener.local_addr().expect("it is bound");
        let (sender, reports) = channel();
        // Serves until the test's process ends.
        thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let (files, sender) = (Arc::clone(&files), sender.clone());
                // A browser opens connections ahead that it may never use.
                thread::spawn(move || {
                    let report = answer(stream, &files).and_then(|body| serde_json::from_slice(&body).ok());
                    // The test may have its report already.
                    report.map(|report| sender.send(report))
                });
            }
        });
        Self { address, reports }
    }

    pub(crate) fn origin(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Opens the page with a query and waits for its report; the server is the one that it speaks to.
    pub(crate) fn report(&self, query: &str, server: &Server) -> Value {
        let browser = Browser::open(&format!("{}/?{query}", self.origin()));
        let report = self.reports.recv_timeout(PATIENCE);
        let report = report.unwrap_or_else(|_| panic!("the page did not report in time\n{}", server.log()));
        drop(browser);
        report
    }
}

/// Answers one request: a file for `GET` of its path, and nothing for any other; gives the body that came.
fn answer(stream: TcpStream, files: &Files) -> Option<Vec<u8>> {
    let mut stream = BufReader::new(stream);
    let (mut line, mut first, mut len) = (String::new(), String::new(), 0);
    loop {
        line.clear();
        stream.read_line(&mut line).ok()?;
        match line.trim_end().split_once(": ") {
            _ if line.trim_end().is_empty() => break,
            Some((name, value)) if name.eq_ignore_ascii_case("content-length") => len = value.parse().ok()?,
            _ if first.is_empty() => first = line.clone(),
            _ => {}
        }
    }
    let mut body = vec![0; len];
    stream.read_exact(&mut body).ok()?;
    let path = first.strip_prefix("GET ").and_then(|rest| rest.split([' ', '?']).next());
    let file = path.and_then(|path| files.get(path));
    let page = file.map_or(Ok(Vec::new()), std::fs::read).ok()?;
    // A browser runs modules of this type only.
    let script = file.and_then(|file| file.extension()).is_some_and(|end| end == "js" || end == "mjs");
    let media = if script { "text/javascript" } else { "text/html" };
    let head = format!("HTTP/1.1 200 OK\r\ncontent-type: {media}\r\nconnection: close\r\n");
    write!(stream.get_mut(), "{head}content-length: {}\r\n\r\n", page.len()).ok()?;
    stream.get_mut().write_all(&page).ok()?;
    Some(body)
}

/// A running browser. It is killed at the end, with all the processes of its group.
struct Browser {
    child: Child,
    /// Its profile, which is removed when it has ended.
    _profile: TempFolder,
}

impl Browser {
    fn open(url: &str) -> Self {
        let profile = TempFolder::new();
        let mut command = Command::new(installed("DRIFTLINE_CHROMIUM", "/usr/bin/chromium"));
        command.args(["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]);
        command.args(["--no-first-run", "--no-proxy-server", "--disable-background-networking"]);
        command.args(["--disable-component-update", "--disable-breakpad"]);
        command.arg(format!("--user-data-dir={}", profile.path().display())).arg(url);
        let quiet = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let child = quiet.process_group(0).spawn().expect("the browser starts");
        Self { child, _profile: profile }
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        // The group has the number of its first process. All of it may have ended already.
        let _ = Command::new("sh").args(["-c", &format!("kill -KILL -{}", self.child.id())]).status();
        let _ = self.child.wait();
    }
}
