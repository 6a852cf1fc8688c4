//! A network that fails: a TCP proxy that a test orders to cut, to stall, to delay.
//!
//! ```
//! use std::io::{Read as _, Write as _};
//! use std::net::{TcpListener, TcpStream};
//!
//! use driftline_testkit::proxy::Proxy;
//!
//! let server = TcpListener::bind("127.0.0.1:0").expect("a port");
//! let proxy = Proxy::start(server.local_addr().expect("it listens"));
//! let mut client = TcpStream::connect(proxy.address()).expect("it accepts");
//! let (mut served, _) = server.accept().expect("a connection");
//! client.write_all(b"hello").expect("sent");
//! let mut heard = [0; 5];
//! served.read_exact(&mut heard).expect("it comes through");
//!
//! proxy.cut();
//! assert!(matches!(client.read(&mut heard), Ok(0) | Err(_)), "the connection is gone");
//! ```

mod connection;
mod state;

use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use state::{Fault, Shared};

/// How many connections pass at once; more are closed.
pub const CONNECTIONS_MAX: usize = 128;

/// A way through the proxy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// From those who connected to where they want to go.
    ToServer,
    /// Back to those who connected.
    ToClient,
}

/// A TCP proxy on the loopback network. It passes everything on until it is told otherwise.
///
/// An order holds from the moment in which its function returns: not a byte that it forbids passes afterwards.
/// Everything ends when the proxy is dropped.
#[derive(Debug)]
pub struct Proxy {
    shared: Arc<Shared>,
    address: SocketAddr,
    acceptor: Option<JoinHandle<()>>,
}

impl Proxy {
    /// Starts a proxy in front of an address, at which nobody has to listen yet.
    ///
    /// # Panics
    /// When the system has no port or no thread left.
    #[must_use]
    pub fn start(upstream: SocketAddr) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("the system has a port");
        let address = listener.local_addr().expect("it listens");
        let shared = Arc::new(Shared::new(upstream));
        let accepting = Arc::clone(&shared);
        let acceptor = thread::spawn(move || accept(&listener, &accepting));
        Self { shared, address, acceptor: Some(acceptor) }
    }

    /// Returns where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Ends every fault: what was held back goes on, new connections are welcome.
    pub fn pass(&self) {
        self.shared.order(Fault::None);
    }

    /// Resets every connection, and each new one as soon as it is accepted.
    pub fn cut(&self) {
        self.shared.order(Fault::Cut);
        self.shared.close_all();
    }

    /// Holds everything back in both directions, the ends of connections too: nobody notices that the others are
    /// gone. New connections are accepted and get nowhere.
    pub fn stall(&self) {
        self.shared.order(Fault::Stall);
    }

    /// Passes one direction on and holds the other one back.
    pub fn one_way(&self, direction: Direction) {
        self.shared.order(Fault::OneWay(direction));
    }

    /// Lets everything from now on arrive so many milliseconds later, in each direction; zero for at once.
    pub fn delay(&self, ms: u64) {
        self.shared.delay(Duration::from_millis(ms));
    }

    /// Resets the first connection over which more than so many bytes would pass in one direction, counted from now on
    /// and for each connection alone. Exactly that many have passed then. The other connections, and later ones, pass.
    ///
    /// With 0 bytes to the client, the server gets a whole request, and its answer is lost.
    pub fn cut_after(&self, bytes: u64, direction: Direction) {
        self.shared.cut_after(bytes, direction);
    }

    /// Sends connections that are made from now on to another address.
    pub fn target(&self, upstream: SocketAddr) {
        self.shared.target(upstream);
    }

    /// Returns how many bytes passed in a direction since the start, over all connections. Whatever was received by
    /// now is counted; so is what is being written at this moment.
    #[must_use]
    pub fn passed(&self, direction: Direction) -> u64 {
        self.shared.passed(direction)
    }

    /// Returns how many connections [`Proxy::cut_after`] reset.
    #[must_use]
    pub fn cuts(&self) -> u64 {
        self.shared.cuts()
    }

    /// Returns how many connections there are.
    #[must_use]
    pub fn connections(&self) -> usize {
        self.shared.connections()
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.shared.order(Fault::Ended);
        // Wakes the acceptor, which then sees that it is over.
        let _ = TcpStream::connect(self.address);
        if let Some(acceptor) = self.acceptor.take() {
            let _ = acceptor.join();
        }
        self.shared.close_all();
    }
}

fn accept(listener: &TcpListener, shared: &Arc<Shared>) {
    for client in listener.incoming() {
        if shared.has_ended() {
            return;
        }
        // A connection may be gone before it is accepted.
        let Ok(client) = client else { continue };
        if shared.connections() >= CONNECTIONS_MAX {
            let _ = client.shutdown(Shutdown::Both);
        } else {
            connection::start(client, shared);
        }
    }
}
