//! Tests of what the machine and the configuration give the server.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::ErrorKind;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::Path;

use driftline_engine::Clock as _;
use driftline_model::Limits;
use driftline_transport::SystemClock;
use rustix::fs::statvfs;
use rustix::process::{Resource, getrlimit};

use super::Line;
use crate::config::Config;

const MIB: u64 = 1 << 20;

/// Below this much free space a server is about to stop.
const FREE_MIN_MIB: u64 = 256;
/// Descriptors that are none of connections: the database, its log, its readers, the listener, standard streams.
const DESCRIPTORS_OWN: u64 = 64;
/// A clock before 2026-01-01 was never set (Unix milliseconds).
const CLOCK_MIN_MS: u64 = 1_767_225_600_000;
/// Letters and digits by chance have more different ones among 32 than words that were typed.
const DISTINCT_MIN: usize = 8;

/// Tests the key that tokens are checked with; `served` tells that the configuration is meant for `serve`.
pub(super) fn key(config: &Config, served: bool) -> Line {
    const ABOUT: &str = "key";
    let mend =
        "set auth.secret or DRIFTLINE_AUTH_SECRET to 32 random bytes or more, such as openssl rand -hex 32";
    let Some(secret) = &config.auth.secret else {
        return if served {
            Line::bad(ABOUT, format!("none: serve refuses to start; {mend}"))
        } else {
            Line::note(ABOUT, "none: dev makes its own, and serve refuses to start")
        };
    };
    let distinct = secret.bytes().collect::<BTreeSet<_>>().len();
    if secret.len() < 16 {
        Line::bad(ABOUT, format!("{} bytes, at least 16 are needed; {mend}", secret.len()))
    } else if distinct < DISTINCT_MIN {
        Line::bad(ABOUT, format!("weak: {distinct} different characters only; {mend}"))
    } else if secret.len() < 32 {
        Line::note(ABOUT, format!("{} bytes; {mend}", secret.len()))
    } else {
        Line::ok(ABOUT, format!("{} bytes", secret.len()))
    }
}

/// Tests that the data folder can be written to and has room.
pub(super) fn folder(folder: &Path) -> Vec<Line> {
    const ABOUT: &str = "data folder";
    let there = folder.ancestors().find(|part| part.exists() || part.as_os_str().is_empty());
    let there = there.filter(|part| !part.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let probe = there.join(format!(".driftline-doctor-{}", std::process::id()));
    let written = File::create_new(&probe).and_then(|file| file.sync_all());
    let removed = fs::remove_file(&probe);
    let line = match written.and(removed) {
        Err(error) => Line::bad(
            ABOUT,
            format!("{} cannot be written: {error}; give it to the server's user", there.display()),
        ),
        Ok(()) if there == folder => Line::ok(ABOUT, format!("{} can be written", folder.display())),
        Ok(()) => {
            Line::note(ABOUT, format!("{} does not exist yet; the first start makes it", folder.display()))
        }
    };
    let free = statvfs(there).map(|system| system.f_bavail.saturating_mul(system.f_frsize));
    let used = fs::metadata(folder.join(crate::run::DATABASE)).map_or(0, |file| file.len());
    let space = match free {
        Ok(free) => space(free, used),
        Err(error) => Line::note("disk", format!("its free space is not known: {error}")),
    };
    vec![line, space]
}

/// Judges free bytes beside those of the database.
fn space(free: u64, used: u64) -> Line {
    const ABOUT: &str = "disk";
    let says = format!("{} MiB are free", free / MIB);
    if free < FREE_MIN_MIB * MIB {
        Line::bad(ABOUT, format!("{says}: make room, at least {FREE_MIN_MIB} MiB, or writes stop soon"))
    } else if free < used {
        Line::note(
            ABOUT,
            format!("{says}, less than the database has ({} MiB): a backup does not fit here", used / MIB),
        )
    } else {
        Line::ok(ABOUT, says)
    }
}

/// Tests the clock against what is stored.
pub(super) fn clock(config: &Config, hlc_ms: u64) -> Line {
    let skew_ms_max = config.limits().unwrap_or_else(|_| Limits::default()).skew_ms_max;
    judge_clock(SystemClock.now_ms(), hlc_ms, skew_ms_max)
}

fn judge_clock(now_ms: u64, hlc_ms: u64, skew_ms_max: u64) -> Line {
    const ABOUT: &str = "clock";
    let behind_ms = hlc_ms.saturating_sub(now_ms);
    if now_ms < CLOCK_MIN_MS {
        Line::bad(ABOUT, "it stands before 2026; set it, and keep it right with NTP")
    } else if behind_ms > skew_ms_max {
        // No stored clock is further ahead of its receipt than the skew.
        let says = format!("it is at least {} s behind", (behind_ms - skew_ms_max) / 1000);
        Line::bad(ABOUT, format!("{says}, as the database shows; set it, and keep it right with NTP"))
    } else {
        Line::ok(ABOUT, "not behind what is stored")
    }
}

/// Tests whether every allowed connection can have its descriptor.
pub(super) fn descriptors(config: &Config) -> Line {
    let limits = config.limits().unwrap_or_else(|_| Limits::default());
    judge_descriptors(getrlimit(Resource::Nofile).current, limits.connections as u64)
}

fn judge_descriptors(limit: Option<u64>, connections: u64) -> Line {
    const ABOUT: &str = "descriptors";
    let needed = connections + DESCRIPTORS_OWN;
    match limit {
        Some(limit) if limit < needed => Line::bad(
            ABOUT,
            format!(
                "{limit} may be open, {needed} are needed for limits.connections = {connections}; raise the limit \
                 (ulimit -n {needed}, or LimitNOFILE={needed} in the unit), or lower limits.connections"
            ),
        ),
        Some(limit) => Line::ok(ABOUT, format!("{limit} may be open, {needed} are needed")),
        None => Line::ok(ABOUT, "any number may be open"),
    }
}

/// Tests whether the address can be listened on; `in_use` tells that a server runs on the store.
pub(super) fn port(config: &Config, in_use: bool) -> Line {
    const ABOUT: &str = "port";
    let address = config.server.listen.unwrap_or(SocketAddr::from((Ipv4Addr::UNSPECIFIED, 8000)));
    match TcpListener::bind(address) {
        Ok(_) => Line::ok(ABOUT, format!("{address} is free")),
        Err(error) if error.kind() == ErrorKind::AddrInUse && in_use => {
            Line::ok(ABOUT, format!("{address} is taken, and a server runs on this database"))
        }
        Err(error) => Line::bad(
            ABOUT,
            format!("cannot listen on {address}: {error}; stop who does, or set server.listen to another"),
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::super::Level;
    use super::*;

    #[test]
    fn keys_are_judged_by_length_and_variety() {
        let table = [
            (None, true, Level::Bad),
            (None, false, Level::Note),
            (Some("short"), true, Level::Bad),
            (Some("aaaaaaaaaaaaaaaabbbbbbbbbbbbbbbbb"), true, Level::Bad),
            (Some("k3JdP0sq8Zx1Vb7M"), true, Level::Note),
            (Some("k3JdP0sq8Zx1Vb7Mk3JdP0sq8Zx1Vb7M"), true, Level::Ok),
        ];
        for (secret, served, level) in table {
            let mut config = Config::default();
            config.auth.secret = secret.map(str::to_owned);
            assert_eq!(key(&config, served).level, level, "{secret:?}");
        }
    }

    #[test]
    fn space_is_judged_beside_the_database() {
        assert_eq!(space(255 * MIB, 0).level, Level::Bad);
        assert_eq!(space(300 * MIB, 400 * MIB).level, Level::Note);
        assert_eq!(space(500 * MIB, 400 * MIB).level, Level::Ok);
    }

    #[test]
    fn a_clock_may_be_behind_by_what_devices_may_be_ahead() {
        let now_ms = CLOCK_MIN_MS + 1_000_000;
        assert_eq!(judge_clock(now_ms, now_ms + 60_000, 60_000).level, Level::Ok);
        let behind = judge_clock(now_ms, now_ms + 90_000, 60_000);
        assert_eq!((behind.level, behind.says.contains("30 s")), (Level::Bad, true));
        assert_eq!(judge_clock(1_000, 0, 60_000).level, Level::Bad);
    }

    #[test]
    fn every_connection_needs_a_descriptor() {
        assert_eq!(judge_descriptors(Some(1024), 20_000).level, Level::Bad);
        assert_eq!(judge_descriptors(Some(1024), 960).level, Level::Ok);
        assert_eq!(judge_descriptors(None, 20_000).level, Level::Ok);
    }
}
