//! CPU time and memory of a process tree, read from `/proc`.

use std::collections::{BTreeSet, HashMap};
use std::fs;

use anyhow::{Context, Result, ensure};

/// Clock ticks a second in `/proc/PID/stat` (`USER_HZ`, 100 on every Linux this runs on).
const TICKS_PER_S: f64 = 100.0;

/// What a process tree has used so far.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(crate) struct Usage {
    /// CPU seconds in user and kernel mode, children that ended included.
    pub(crate) cpu_s: f64,
    /// Resident memory now, in bytes.
    pub(crate) rss_bytes: u64,
    /// Processes in the tree.
    pub(crate) processes: usize,
}

/// Reads the usage of the trees below `roots`; a process in two trees counts once.
///
/// # Errors
/// When a root is not a live process.
pub(crate) fn usage_of(roots: &[u32]) -> Result<Usage> {
    let stats: HashMap<u32, Stat> = fs::read_dir("/proc")
        .context("cannot read /proc")?
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        // A process may end between the listing and the reading.
        .filter_map(|pid| Some((pid, parse_stat(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)?)))
        .collect();
    for root in roots {
        ensure!(stats.contains_key(root), "process {root} is not running");
    }
    let tree = tree_of(roots, &stats);
    let mut usage = Usage { processes: tree.len(), ..Usage::default() };
    for pid in tree {
        usage.cpu_s += stats[&pid].ticks as f64 / TICKS_PER_S;
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        usage.rss_bytes += parse_rss_bytes(&status).unwrap_or(0);
    }
    Ok(usage)
}

/// Files that are open besides the connections.
const OTHER_FILES: u64 = 64;

/// Makes sure that this process may hold so many connections.
///
/// # Errors
/// When it may open fewer files, in words that say what to do.
pub(crate) fn ensure_connections(connections: u64) -> Result<()> {
    let needed = connections + OTHER_FILES;
    ensure!(
        open_files_max().is_none_or(|max| max >= needed),
        "this process may open too few files: run `ulimit -n {needed}` first (the server needs as many)"
    );
    Ok(())
}

/// Reads how many files this process may open (the soft limit); none when it is unlimited.
fn open_files_max() -> Option<u64> {
    parse_open_files(&fs::read_to_string("/proc/self/limits").ok()?)
}

/// The parts of `/proc/PID/stat` that matter here.
#[derive(Debug, PartialEq, Eq)]
struct Stat {
    parent: u32,
    ticks: u64,
}

/// Parses `/proc/PID/stat` (proc_pid_stat(5)): the name in brackets may hold blanks and brackets itself.
fn parse_stat(text: &str) -> Option<Stat> {
    let fields: Vec<&str> = text[text.rfind(')')? + 1..].split_ascii_whitespace().collect();
    let number = |index: usize| fields.get(index)?.parse::<u64>().ok();
    // Field 3 of the manual page is the first after the name: 4 is ppid, 14 to 17 the four times.
    let ticks = number(11)? + number(12)? + number(13)? + number(14)?;
    Some(Stat { parent: fields.get(1)?.parse().ok()?, ticks })
}

/// Parses `VmRSS` of `/proc/PID/status`.
fn parse_rss_bytes(status: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    Some(line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()? * 1024)
}

/// Parses the soft limit of `Max open files` of `/proc/PID/limits`.
fn parse_open_files(limits: &str) -> Option<u64> {
    let line = limits.lines().find_map(|line| line.strip_prefix("Max open files"))?;
    line.split_ascii_whitespace().next()?.parse().ok()
}

/// The roots and everything below them.
fn tree_of(roots: &[u32], stats: &HashMap<u32, Stat>) -> BTreeSet<u32> {
    let mut tree: BTreeSet<u32> = roots.iter().copied().collect();
    loop {
        let before = tree.len();
        let children: Vec<u32> =
            stats.iter().filter(|(_, stat)| tree.contains(&stat.parent)).map(|(pid, _)| *pid).collect();
        tree.extend(children);
        if tree.len() == before {
            return tree;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stat_is_parsed_behind_a_hostile_name() {
        let text = "42 (a) b (c)) S 7 42 42 0 -1 4194560 1 2 3 4 100 20 3 4 20 0 1 0 99 1000 50 18446744073709551615";
        assert_eq!(parse_stat(text), Some(Stat { parent: 7, ticks: 127 }));
        assert_eq!(parse_stat("42 (short) S 7"), None);
        assert_eq!(parse_stat(""), None);
    }

    #[test]
    fn status_and_limits_are_parsed() {
        assert_eq!(parse_rss_bytes("Name:\tx\nVmRSS:\t    1024 kB\nThreads:\t1\n"), Some(1 << 20));
        assert_eq!(parse_rss_bytes("Name:\tkthread\n"), None);
        let limits = "Limit  Soft Limit  Hard Limit  Units\nMax open files            1024   4096   files\n";
        assert_eq!(parse_open_files(limits), Some(1024));
        assert_eq!(parse_open_files("Max open files  unlimited unlimited files\n"), None);
    }

    #[test]
    fn a_tree_holds_grandchildren_and_no_strangers() {
        let stat = |parent| Stat { parent, ticks: 0 };
        let stats = HashMap::from([(1, stat(0)), (5, stat(1)), (6, stat(5)), (7, stat(6)), (8, stat(1))]);
        assert_eq!(tree_of(&[5], &stats), BTreeSet::from([5, 6, 7]));
        assert_eq!(tree_of(&[6, 8], &stats), BTreeSet::from([6, 7, 8]));
    }

    #[test]
    fn this_process_is_found_and_a_dead_one_is_refused() {
        let usage = usage_of(&[std::process::id()]).expect("own process");
        assert!(usage.rss_bytes > 0 && usage.processes >= 1);
        assert!(usage_of(&[u32::MAX]).is_err());
    }
}
