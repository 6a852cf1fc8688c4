//! The measured window, and what the server's processes and this one used in it.

use std::time::Duration;

use anyhow::Result;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};

use super::now::now;
use super::options::Common;
use super::process::{Usage, usage_of};
use super::tally::Tally;

/// How long answers are awaited after the window.
const GRACE: Duration = Duration::from_secs(5);
/// How often memory is looked at for its peak.
const SAMPLE: Duration = Duration::from_millis(250);

/// The time in which operations are counted.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Window {
    /// When counting begins.
    pub(crate) from: Instant,
    /// When counting and sending end.
    pub(crate) until: Instant,
    /// When missing answers are given up.
    pub(crate) deadline: Instant,
}

impl Window {
    /// Opens the window of a run that begins now with its warm-up.
    pub(crate) fn open(common: &Common) -> Result<Self> {
        let from = now() + common.warmup_length()?;
        let until = from + common.length()?;
        Ok(Window { from, until, deadline: until + GRACE })
    }

    /// Tells whether an operation that ended at `instant` counts.
    pub(crate) fn counts(&self, instant: Instant) -> bool {
        (self.from..=self.until).contains(&instant)
    }
}

/// What was used in the window.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Observation {
    /// Seconds of the window; shorter than asked for when all work was done before its end.
    pub(crate) seconds: f64,
    /// The server at the start; none without `--pid`.
    pub(crate) start: Option<Usage>,
    /// The server at the end.
    pub(crate) end: Option<Usage>,
    /// The highest resident memory seen.
    pub(crate) rss_peak_bytes: u64,
    /// CPU seconds of this process.
    pub(crate) tool_cpu_s: f64,
}

/// Watches the processes for the length of the window while `tasks` put the load on, then joins the tasks.
pub(crate) async fn observe(
    window: Window,
    pids: &[u32],
    mut tasks: JoinSet<Tally>,
) -> Result<(Observation, Tally)> {
    let own = [std::process::id()];
    let server = || if pids.is_empty() { Ok(None) } else { usage_of(pids).map(Some) };
    let mut total = Tally::new(window);
    sleep_until(window.from).await;
    let began = now();
    let (start, tool_start) = (server()?, usage_of(&own)?);
    let mut rss_peak_bytes = start.map_or(0, |usage| usage.rss_bytes);
    let mut working = !tasks.is_empty();
    while working && now() < window.until {
        let tick = (now() + SAMPLE).min(window.until);
        tokio::select! {
            () = sleep_until(tick) => {
                if let Some(usage) = server()? {
                    rss_peak_bytes = rss_peak_bytes.max(usage.rss_bytes);
                }
            }
            joined = tasks.join_next() => match joined {
                Some(tally) => total.merge(tally?),
                None => working = false,
            },
        }
    }
    let seconds = began.elapsed().as_secs_f64();
    let (end, tool_end) = (server()?, usage_of(&own)?);
    while let Some(tally) = tasks.join_next().await {
        total.merge(tally?);
    }
    let tool_cpu_s = tool_end.cpu_s - tool_start.cpu_s;
    Ok((Observation { seconds, start, end, rss_peak_bytes, tool_cpu_s }, total))
}
