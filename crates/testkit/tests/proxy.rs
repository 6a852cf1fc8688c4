//! The proxy does what it is ordered to, to the byte.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use driftline_testkit::proxy::{CONNECTIONS_MAX, Direction, Proxy};

const PATIENCE: Duration = Duration::from_secs(20);
/// How long nothing has to come for a test to say that it is held back.
const SILENCE: Duration = Duration::from_millis(60);

struct Scene {
    server: TcpListener,
    proxy: Proxy,
}

impl Scene {
    fn new() -> Self {
        let server = TcpListener::bind("127.0.0.1:0").expect("a port");
        let proxy = Proxy::start(server.local_addr().expect("it listens"));
        Self { server, proxy }
    }

    fn client(&self) -> TcpStream {
        let client = TcpStream::connect(self.proxy.address()).expect("it accepts");
        client.set_read_timeout(Some(PATIENCE)).expect("a timeout");
        client
    }

    /// A client and what the server sees of it.
    fn pair(&self) -> (TcpStream, TcpStream) {
        let client = self.client();
        let (served, _) = self.server.accept().expect("a connection");
        served.set_read_timeout(Some(PATIENCE)).expect("a timeout");
        (client, served)
    }
}

fn say(mut to: &TcpStream, text: &str) {
    to.write_all(text.as_bytes()).expect("sent");
}

fn hears(mut from: &TcpStream, text: &str) {
    let mut heard = vec![0; text.len()];
    from.read_exact(&mut heard).expect("it comes");
    assert_eq!(String::from_utf8_lossy(&heard), text);
}

fn hears_nothing(mut from: &TcpStream) {
    from.set_read_timeout(Some(SILENCE)).expect("a timeout");
    let kind = from.read(&mut [0]).map_err(|error| error.kind());
    assert!(matches!(kind, Err(ErrorKind::WouldBlock | ErrorKind::TimedOut)), "{kind:?}");
    from.set_read_timeout(Some(PATIENCE)).expect("a timeout");
}

fn is_reset(mut from: &TcpStream) {
    let kind = from.read(&mut [0]).map_err(|error| error.kind());
    assert_eq!(kind, Err(ErrorKind::ConnectionReset));
}

/// Everything that comes before the connection breaks.
fn rest(mut from: &TcpStream) -> Vec<u8> {
    let mut heard = Vec::new();
    let end = from.read_to_end(&mut heard).map_err(|error| error.kind());
    assert_eq!(end, Err(ErrorKind::ConnectionReset));
    heard
}

#[test]
fn passes_everything_on_and_the_end_of_each_direction() {
    let scene = Scene::new();
    let (client, mut served) = scene.pair();
    let many = vec![7; 1 << 20];
    let sent = many.clone();
    let sender = std::thread::spawn(move || {
        (&client).write_all(&sent).expect("sent");
        client.shutdown(Shutdown::Write).expect("it is open");
        client
    });
    let mut heard = Vec::new();
    served.read_to_end(&mut heard).expect("it ends");
    assert!(heard == many, "{} bytes", heard.len());
    let client = sender.join().expect("sent");
    say(&served, "still here");
    hears(&client, "still here");
    drop(served);
    assert_eq!((&client).read(&mut [0]).expect("the end"), 0);
    assert_eq!(
        (scene.proxy.passed(Direction::ToServer), scene.proxy.passed(Direction::ToClient)),
        (1 << 20, 10)
    );
}

#[test]
fn cut_resets_what_is_there_and_what_comes_until_it_passes_again() {
    let scene = Scene::new();
    let (client, served) = scene.pair();
    say(&client, "a");
    hears(&served, "a");
    scene.proxy.cut();
    assert_eq!(scene.proxy.connections(), 0);
    is_reset(&client);
    is_reset(&served);
    is_reset(&scene.client());
    scene.proxy.pass();
    let (client, served) = scene.pair();
    say(&served, "b");
    hears(&client, "b");
}

#[test]
fn stall_holds_everything_back_and_loses_nothing() {
    let scene = Scene::new();
    let (client, served) = scene.pair();
    scene.proxy.stall();
    say(&client, "up");
    say(&served, "down");
    served.shutdown(Shutdown::Write).expect("it is open");
    hears_nothing(&client);
    hears_nothing(&served);
    // A new connection is accepted, and the server hears nothing of it.
    let late = scene.client();
    say(&late, "late");
    hears_nothing(&late);
    scene.server.set_nonblocking(true).expect("a listener");
    assert_eq!(scene.server.accept().map_err(|error| error.kind()).err(), Some(ErrorKind::WouldBlock));
    scene.server.set_nonblocking(false).expect("a listener");
    scene.proxy.pass();
    hears(&served, "up");
    hears(&client, "down");
    assert_eq!((&client).read(&mut [0]).expect("the end"), 0);
    let (served, _) = scene.server.accept().expect("the late one");
    hears(&served, "late");
}

#[test]
fn a_stalled_connection_can_be_cut() {
    let scene = Scene::new();
    let (client, served) = scene.pair();
    scene.proxy.stall();
    say(&client, "lost");
    hears_nothing(&served);
    let late = scene.client();
    hears_nothing(&late);
    scene.proxy.cut();
    is_reset(&late);
    assert_eq!(rest(&served), b"");
}

#[test]
fn a_reset_is_passed_on_as_a_reset() {
    let scene = Scene::new();
    let (client, served) = scene.pair();
    say(&served, "unread");
    // What is closed while there is something to read is reset.
    let mut ready = [0];
    assert_eq!(client.peek(&mut ready).expect("it comes"), 1);
    drop(client);
    is_reset(&served);
}

#[test]
fn one_way_passes_one_direction_only() {
    for direction in [Direction::ToServer, Direction::ToClient] {
        let scene = Scene::new();
        let (client, served) = scene.pair();
        let (from, to) = match direction {
            Direction::ToServer => (&client, &served),
            Direction::ToClient => (&served, &client),
        };
        scene.proxy.one_way(direction);
        say(from, "there");
        hears(to, "there");
        say(to, "back");
        hears_nothing(from);
        scene.proxy.pass();
        hears(from, "back");
    }
}

#[test]
#[allow(clippy::disallowed_methods, reason = "a delay is what is measured here")]
fn delay_makes_everything_late_and_keeps_the_order() {
    const DELAY: Duration = Duration::from_millis(80);
    let scene = Scene::new();
    let (client, served) = scene.pair();
    scene.proxy.delay(80);
    let begun = Instant::now();
    say(&client, "a");
    say(&client, "b");
    hears(&served, "ab");
    assert!(begun.elapsed() >= DELAY);
    say(&served, "c");
    hears(&client, "c");
    assert!(begun.elapsed() >= DELAY * 2);
    scene.proxy.delay(0);
    say(&client, "d");
    hears(&served, "d");
}

#[test]
fn cut_after_cuts_at_the_byte() {
    for bytes in [0, 1, 3, 50_000] {
        let scene = Scene::new();
        let (client, served) = scene.pair();
        let (other, served_other) = scene.pair();
        say(&client, "before");
        hears(&served, "before");
        scene.proxy.cut_after(bytes, Direction::ToClient);
        say(&client, "question");
        hears(&served, "question");
        let answer: Vec<u8> = (0..bytes + 1).map(|at| at.to_le_bytes()[0]).collect();
        (&served).write_all(&answer).expect("sent");
        let heard = rest(&client);
        assert!(heard == answer[..answer.len() - 1], "{} of {bytes}", heard.len());
        is_reset(&served);
        assert_eq!(scene.proxy.cuts(), 1);
        // The other connection and a new one go on.
        say(&served_other, "other");
        hears(&other, "other");
        let (client, served) = scene.pair();
        say(&served, &"x".repeat(9));
        hears(&client, &"x".repeat(9));
        assert_eq!(scene.proxy.cuts(), 1);
    }
}

#[test]
fn cut_after_to_the_server_loses_the_end_of_a_request() {
    let scene = Scene::new();
    let (client, served) = scene.pair();
    scene.proxy.cut_after(4, Direction::ToServer);
    say(&client, "ab");
    hears(&served, "ab");
    say(&client, "cdef");
    assert_eq!(rest(&served), b"cd");
    is_reset(&client);
}

#[test]
fn target_moves_new_connections() {
    let scene = Scene::new();
    let (old, old_served) = scene.pair();
    let elsewhere = TcpListener::bind("127.0.0.1:0").expect("a port");
    scene.proxy.target(elsewhere.local_addr().expect("it listens"));
    let new = scene.client();
    let (new_served, _) = elsewhere.accept().expect("a connection");
    say(&new, "new");
    hears(&new_served, "new");
    say(&old, "old");
    hears(&old_served, "old");
}

#[test]
fn who_connects_to_a_server_that_is_down_is_reset() {
    let Scene { server, proxy } = Scene::new();
    drop(server);
    is_reset(&TcpStream::connect(proxy.address()).expect("it accepts"));
}

#[test]
fn its_connections_are_bounded_and_end_with_it() {
    let scene = Scene::new();
    let pairs: Vec<_> = (0..CONNECTIONS_MAX).map(|_| scene.pair()).collect();
    assert_eq!(scene.proxy.connections(), CONNECTIONS_MAX);
    assert!(matches!(scene.client().read(&mut [0]), Ok(0) | Err(_)), "one more is closed");
    let address = scene.proxy.address();
    drop(scene.proxy);
    // At once: another test may be given the port.
    let kind = TcpStream::connect(address).map_err(|error| error.kind()).err();
    assert_eq!(kind, Some(ErrorKind::ConnectionRefused));
    for (client, served) in &pairs {
        is_reset(client);
        is_reset(served);
    }
}
