//! A program that looks at files before they are released.

use std::process::Stdio;
use std::time::Duration;

use driftline_engine::{Blobs, UploadRow, Verdict, Verify};
use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use tokio::io::AsyncWriteExt as _;
use tokio::process::ChildStdin;

/// A program that reads a file from its standard input and says with its exit code what it is: 0 releases the file, 1
/// refuses it, and anything else says that it could not look now. The first line that it prints is the reason.
#[derive(Debug)]
pub(crate) struct Command {
    program: String,
    arguments: Vec<String>,
    limit: Duration,
}

/// What a program is told of the server's surroundings.
const KEPT: [&str; 6] = ["PATH", "HOME", "LANG", "LC_ALL", "TMPDIR", "TZ"];

/// Bytes that are handed over at once.
const STEP: usize = 64 << 10;

/// The most of a reason that is told.
const REASON_CHARS: usize = 200;

impl Command {
    /// Takes a program and its arguments, and how long it may take for one file.
    pub(crate) fn new(words: &[String], limit: Duration) -> Option<Self> {
        let (program, arguments) = words.split_first().filter(|(program, _)| !program.is_empty())?;
        Some(Self { program: program.clone(), arguments: arguments.to_vec(), limit })
    }

    /// Logs why a file could not be looked at, which its uploader is not told.
    fn later(&self, row: &UploadRow, why: &str) -> Verdict {
        tracing::warn!(program = self.program, upload = %row.id, why, "a file was not verified");
        Verdict::Later("ask again later".into())
    }

    async fn run(&self, row: &UploadRow, blobs: &dyn Blobs) -> std::io::Result<Verdict> {
        let mut child = tokio::process::Command::new(&self.program)
            .args(&self.arguments)
            // The server's own settings, its secrets among them, are none of the program's business.
            .env_clear()
            .envs(std::env::vars_os().filter(|(name, _)| KEPT.iter().any(|kept| name == kept)))
            .env("DRIFTLINE_UPLOAD_ID", row.id.to_string())
            .env("DRIFTLINE_TENANT", row.tenant_id.as_str())
            .env("DRIFTLINE_OWNER", &*row.owner)
            .env("DRIFTLINE_FILE_NAME", &*row.file_name)
            .env("DRIFTLINE_CONTENT_TYPE", &*row.content_type)
            .env("DRIFTLINE_SIZE", row.upload.received.to_string())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn()?;
        let stdin = child.stdin.take();
        let fed = async {
            match stdin {
                Some(stdin) => feed(stdin, row, blobs).await,
                None => Ok(()),
            }
        };
        let (fed, output) = tokio::join!(fed, child.wait_with_output());
        let output = output?;
        let printed = String::from_utf8_lossy(&output.stdout);
        let first = printed.lines().next().unwrap_or_default();
        let reason: String = first.chars().filter(|letter| !letter.is_control()).take(REASON_CHARS).collect();
        Ok(match (output.status.code(), fed) {
            (_, Err(error)) => Verdict::Later(error),
            (Some(0), Ok(())) => Verdict::Released,
            (Some(1), Ok(())) => Verdict::Refused(reason),
            (code, Ok(())) => Verdict::Later(format!("the program ended with {code:?}: {reason}")),
        })
    }
}

/// Writes a file to a program. One that has seen enough may close its end.
async fn feed(mut stdin: ChildStdin, row: &UploadRow, blobs: &dyn Blobs) -> Result<(), String> {
    let mut at = 0;
    while at < row.upload.received {
        let piece = blobs.read(row.id, at, STEP).await.map_err(|error| error.to_string())?;
        if piece.is_empty() {
            return Err("the bytes of the file are not there".into());
        }
        at += piece.len() as u64;
        if stdin.write_all(&piece).await.is_err() {
            return Ok(());
        }
    }
    Ok(())
}

impl Verify for Command {
    fn verify<'a>(&'a self, row: &'a UploadRow, blobs: &'a dyn Blobs) -> BoxFuture<'a, Verdict> {
        async move {
            match tokio::time::timeout(self.limit, self.run(row, blobs)).await {
                Ok(Ok(Verdict::Later(why))) => self.later(row, &why),
                Ok(Ok(verdict)) => verdict,
                Ok(Err(error)) => self.later(row, &format!("it cannot be run: {error}")),
                Err(_) => self.later(row, &format!("it took longer than {:?}", self.limit)),
            }
        }
        .boxed()
    }
}
