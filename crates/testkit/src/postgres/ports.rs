//! Ports that stay free while a server is down.

use std::fs;
use std::net::{Ipv4Addr, TcpListener};
use std::process;
use std::sync::atomic::{AtomicU32, Ordering};

const FIRST: u32 = 10_240;

/// Finds a port of the loopback network that nobody listens on.
///
/// It lies below the ports that the system hands out by itself: a server that was killed finds its port free again,
/// however many connections were made meanwhile.
pub(super) fn free() -> u16 {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let end = first_of_the_system();
    // Processes that start at once begin to look in different places.
    let begin = process::id().wrapping_mul(37);
    loop {
        let step = NEXT.fetch_add(1, Ordering::Relaxed);
        assert!(step < 100_000, "no free port between {FIRST} and {end}");
        let port = FIRST + begin.wrapping_add(step) % (end - FIRST);
        let port = u16::try_from(port).expect("the system's first port is a port");
        if is_free(port) {
            return port;
        }
    }
}

/// Whether a server could listen on a port now.
pub(super) fn is_free(port: u16) -> bool {
    TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok()
}

fn first_of_the_system() -> u32 {
    let range = fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range").unwrap_or_default();
    let first = range.split_whitespace().next().and_then(|first| first.parse::<u16>().ok());
    // Where the system hands out almost all of them, one that is taken is tried again elsewhere.
    first.map(u32::from).filter(|first| *first > FIRST + 1_000).unwrap_or(32_768)
}
