//! A program that looks at files before they are released.

use std::num::NonZero;
use std::process::Stdio;
use std::time::Duration;

use driftline_engine::{Blobs, UploadRow, Verdict, Verify};
use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use rustix::process::{Pid, Signal, kill_process_group};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::process::{Child, ChildStdin, ChildStdout};
use tokio::sync::Semaphore;

/// A program that reads a file from its standard input and says with its exit code what it is: 0 releases the file, 1
/// refuses it, and anything else says that it could not look now. The first line that it prints is the reason.
#[derive(Debug)]
pub(crate) struct Command {
    program: String,
    arguments: Vec<String>,
    limit: Duration,
    /// Programs that run at once; more wait.
    turns: Semaphore,
}

/// What a program is told of the server's surroundings.
const KEPT: [&str; 6] = ["PATH", "HOME", "LANG", "LC_ALL", "TMPDIR", "TZ"];

/// Bytes of what a program prints that are kept; the rest is read and forgotten.
const PRINTED: u64 = 4096;

/// The most of a reason that is told.
const REASON_CHARS: usize = 200;

impl Command {
    /// Takes a program and its arguments, and how long it may take for one file.
    pub(crate) fn new(words: &[String], limit: Duration) -> Option<Self> {
        let (program, arguments) = words.split_first().filter(|(program, _)| !program.is_empty())?;
        let turns = Semaphore::new(std::thread::available_parallelism().map_or(1, NonZero::get));
        Some(Self { program: program.clone(), arguments: arguments.to_vec(), limit, turns })
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
            // What it starts ends with it when its time is over.
            .process_group(0)
            .kill_on_drop(true)
            .spawn()?;
        let group = Group::of(&child);
        let (stdin, stdout) = (child.stdin.take(), child.stdout.take());
        let fed = async {
            match stdin {
                Some(stdin) => feed(stdin, row, blobs).await,
                None => Ok(()),
            }
        };
        let (fed, printed, status) = tokio::join!(fed, printed(stdout), child.wait());
        group.has_ended();
        let (printed, status) = (printed?, status?);
        let printed = String::from_utf8_lossy(&printed);
        let first = printed.lines().next().unwrap_or_default();
        let reason: String = first.chars().filter(|letter| !letter.is_control()).take(REASON_CHARS).collect();
        Ok(match (status.code(), fed) {
            (_, Err(error)) => Verdict::Later(error),
            (Some(0), Ok(())) => Verdict::Released,
            (Some(1), Ok(())) => Verdict::Refused(reason),
            (code, Ok(())) => Verdict::Later(format!("the program ended with {code:?}: {reason}")),
        })
    }
}

/// A program with whatever it started and did not part from. Dropping it kills all of them.
struct Group(Option<Pid>);

impl Group {
    fn of(leader: &Child) -> Self {
        Self(leader.id().and_then(|id| Pid::from_raw(id.cast_signed())))
    }

    /// Leaves it alone: its name may be another's by now.
    fn has_ended(mut self) {
        self.0 = None;
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        if let Some(group) = self.0 {
            // It may have ended at this moment.
            let _ = kill_process_group(group, Signal::KILL);
        }
    }
}

/// Reads what a program prints, to its end.
async fn printed(stdout: Option<ChildStdout>) -> std::io::Result<Vec<u8>> {
    let mut printed = Vec::new();
    if let Some(mut stdout) = stdout {
        (&mut stdout).take(PRINTED).read_to_end(&mut printed).await?;
        tokio::io::copy(&mut stdout, &mut tokio::io::sink()).await?;
    }
    Ok(printed)
}

/// Writes a file to a program. One that has seen enough may close its end.
async fn feed(mut stdin: ChildStdin, row: &UploadRow, blobs: &dyn Blobs) -> Result<(), String> {
    let mut at = 0;
    while at < row.upload.received {
        let piece = blobs.read(row.id, at, blobs.read_bytes()).await.map_err(|error| error.to_string())?;
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
            // It is never closed.
            let _turn = self.turns.acquire().await;
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

#[cfg(test)]
mod tests {
    use driftline_engine::{Joining, UploadRow};
    use driftline_model::{TenantId, TenantNo};
    use driftline_storage::LocalBlobs;
    use driftline_uploads::{
        Bytes as _, Durability, Expiry, Form, MemoryShell, Shell as _, Upload, UploadId,
    };

    use super::*;

    const ID: UploadId = UploadId::of([7; 16]);

    fn row(received: u64) -> UploadRow {
        let upload = Upload::open(Form::Stream { size: Some(received) }, 0, &Expiry::default());
        UploadRow {
            id: ID,
            tenant: TenantNo::new(1),
            tenant_id: TenantId::new("acme").unwrap(),
            owner: "ada".into(),
            upload: Upload { received, ..upload },
            reserved: received,
            file_name: "a.txt".into(),
            content_type: "text/plain".into(),
            metadata: None,
            announced: None,
            digest: None,
            running: None,
            staged: None,
            record: None,
            joining: Joining::Alone,
            fault: None,
            changed_ms: 0,
        }
    }

    /// Has a shell's script look at a file.
    fn looked(script: &str, file: &[u8], limit: Duration) -> Verdict {
        let shell = MemoryShell::default();
        shell.create(&ID).unwrap();
        shell.stage(&ID).unwrap().write_at(0, file).unwrap();
        let blobs = LocalBlobs::new(shell, Durability::Os, 8);
        let command = Command::new(&["sh", "-c", script].map(str::to_owned), limit).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(command.verify(&row(file.len() as u64), &blobs))
    }

    #[test]
    fn the_exit_code_decides_and_the_first_line_says_why() {
        let long = vec![b'x'; 300_000];
        let minute = Duration::from_secs(60);
        let refused = |why: &str| Verdict::Refused(why.into());
        let later = Verdict::Later("ask again later".into());
        assert_eq!(looked("test $(wc -c) = 300000", &long, minute), Verdict::Released);
        assert_eq!(looked("echo it bites; echo no; exit 1", b"x", minute), refused("it bites"));
        assert_eq!(looked("exit 0", &long, minute), Verdict::Released, "it need not read to the end");
        assert_eq!(looked("exit 2", b"x", minute), later);
        assert_eq!(looked("kill -9 $$", b"x", minute), later);
        assert_eq!(looked("sleep 60", b"x", Duration::from_millis(50)), later);
        // Much more than is kept, behind which it ends, and a first line that is cut.
        let much = "head -c 300000 /dev/zero | tr '\\0' x; exit 1";
        assert_eq!(looked(much, b"x", minute), refused(&"x".repeat(REASON_CHARS)));
        let told = "echo $DRIFTLINE_TENANT $DRIFTLINE_OWNER $DRIFTLINE_FILE_NAME $DRIFTLINE_SIZE; exit 1";
        assert_eq!(looked(told, b"xyz", minute), refused("acme ada a.txt 3"));
        // Cargo tells every test the name of its package; the program is told nothing of the sort.
        assert_eq!(looked("echo [$CARGO_PKG_NAME]; exit 1", b"x", minute), refused("[]"));
        assert!(std::env::var_os("CARGO_PKG_NAME").is_some());
    }

    #[test]
    fn as_many_run_at_once_as_there_are_cores() {
        let folder = std::env::temp_dir().join(format!("driftline-verifiers-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let path = folder.display();
        let script = format!("touch {path}/$$; ls {path} | wc -l; sleep 0.05; rm {path}/$$; exit 1");
        let blobs = LocalBlobs::new(MemoryShell::default(), Durability::Os, 8);
        let command = Command::new(&["sh".into(), "-c".into(), script], Duration::from_secs(60)).unwrap();
        let cores = std::thread::available_parallelism().unwrap().get();
        let empty = row(0);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let all = (0..cores * 4).map(|_| command.verify(&empty, &blobs));
        let verdicts = runtime.block_on(futures_util::future::join_all(all));
        std::fs::remove_dir_all(folder).unwrap();
        for verdict in verdicts {
            let Verdict::Refused(running) = verdict else { panic!("{verdict:?}") };
            assert!(running.parse::<usize>().unwrap() <= cores, "{running} at once");
        }
    }

    #[test]
    fn what_a_program_started_ends_with_its_time() {
        let file = std::env::temp_dir().join(format!("driftline-verify-{}", std::process::id()));
        let path = file.display();
        // It ends at once, and what it started holds what it prints to.
        let script = format!("sh -c 'echo $$ >{path}.new; mv {path}.new {path}; exec sleep 600' & exit 0");
        assert_eq!(looked(&script, b"x", Duration::from_secs(5)), Verdict::Later("ask again later".into()));
        let pid: i32 = std::fs::read_to_string(&file).unwrap().trim().parse().unwrap();
        std::fs::remove_file(&file).unwrap();
        let pid = Pid::from_raw(pid).unwrap();
        // Whoever inherited it may take a moment to hear of its end.
        let ended = || {
            let status = std::fs::read_to_string(format!("/proc/{}/status", pid.as_raw_nonzero()));
            status.map_or(true, |status| status.contains("State:\tZ"))
        };
        assert!((0..500).any(|_| {
            std::thread::sleep(Duration::from_millis(10));
            ended()
        }));
    }
}
