//! `kill -9` around the commit of requests that carry a name: sent again under the same one, each has had its effect once,
//! and the second answer is the first.
//!
//! `DRIFTLINE_TEST_STORE=postgres` runs them on PostgreSQL.

mod file;
mod keyed;
mod scene;

use std::fs;
use std::time::Duration;

use driftline_testkit::Rng;
use driftline_testkit::http::soon;
use driftline_testkit::postgres::Cluster;
use driftline_testkit::proxy::{Direction, Proxy};
use tokio::task::JoinSet;

use keyed::{Heard, Keyed, Sort};
use scene::Scene;

/// How often the server is killed at a random moment.
const KILLS: u64 = 40;
/// How often it is killed while it writes a commit.
const KILLS_INSIDE: u64 = 12;
/// How many requests are under way when it is killed at a random moment.
const REQUESTS: usize = 5;
/// The latest random moment, in microseconds after the first request is sent.
const MOMENT_US_MAX: u64 = 10_000;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_at_random_moments() {
    let seed = 0x5afe;
    println!("seed {seed:#x}");
    let mut rng = Rng::new(seed);
    let mut scene = Scene::new();
    for round in 0..KILLS {
        let sorts = Sort::ALL.into_iter().cycle().take(REQUESTS);
        let first = round * REQUESTS as u64;
        let requests: Vec<Keyed> =
            (first..).zip(sorts).map(|(number, sort)| Keyed::new(sort, number)).collect();
        let mut under_way = JoinSet::new();
        let mut lines = Vec::new();
        for request in &requests {
            lines.push(request.open(scene.server.address(), &scene.caller).await);
        }
        for (at, (request, line)) in requests.iter().copied().zip(lines).enumerate() {
            let caller = scene.caller.clone();
            under_way.spawn(async move { (at, request.ask(line, &caller).await) });
        }
        tokio::time::sleep(Duration::from_micros(rng.below(MOMENT_US_MAX))).await;
        scene.server.kill9();
        let mut heard: Vec<Option<Heard>> = vec![None; requests.len()];
        while let Some(ended) = soon("the end of a request", under_way.join_next()).await {
            let (at, answer) = ended.expect("a request ends well");
            heard[at] = answer;
        }
        scene.server.restart();
        for (request, first) in requests.iter().zip(heard) {
            scene.settle(request, first).await;
        }
    }
    let told = &scene.told;
    assert!(told.heard > 0 && told.lost > 0, "the kills come in time: {told:?}");
    scene.check_store();
}

/// The last byte of the request is held back: nothing was done.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_before_the_request_is_whole() {
    let mut scene = Scene::new();
    let proxy = Proxy::start(scene.server.address());
    for (number, sort) in (0..).zip(Sort::ALL) {
        let request = Keyed::new(sort, number);
        proxy.target(scene.server.address());
        let line = request.open(proxy.address(), &scene.caller).await;
        let bytes = request.bytes(proxy.address(), &scene.caller).len() as u64;
        proxy.cut_after(bytes - 1, Direction::ToServer);
        let answer = request.ask(line, &scene.caller).await;
        assert_eq!((answer, proxy.cuts()), (None, number + 1), "{request:?}");
        scene.server.kill9();
        scene.server.restart();
        assert!(!scene.settle(&request, None).await, "{request:?} was never whole");
    }
    scene.check_store();
}

/// The first byte of the answer is lost: everything was done.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_between_the_commit_and_the_answer() {
    let mut scene = Scene::new();
    let proxy = Proxy::start(scene.server.address());
    for (number, sort) in (0..).zip(Sort::ALL) {
        let request = Keyed::new(sort, number);
        proxy.target(scene.server.address());
        let line = request.open(proxy.address(), &scene.caller).await;
        proxy.cut_after(0, Direction::ToClient);
        let answer = request.ask(line, &scene.caller).await;
        assert_eq!((answer, proxy.cuts()), (None, number + 1), "{request:?}");
        scene.server.kill9();
        scene.server.restart();
        assert!(scene.settle(&request, None).await, "{request:?} was answered, so that it was committed");
    }
    scene.check_store();
}

/// The server has written so many bytes of a commit: it is in the middle of it, or was a moment ago.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_while_the_commit_is_written() {
    let mut scene = Scene::new();
    if !scene.is_on_a_file() {
        // The database writes its commits elsewhere: `killed_at_points_of_the_talk_with_the_database` cuts those.
        return;
    }
    for number in 0..KILLS_INSIDE {
        let sort = [Sort::Samples, Sort::Post, Sort::Batch][usize::try_from(number % 3).expect("small")];
        // Many pages, so that writing them takes a while.
        let request = Keyed { text_bytes: 8_000, items: 90, ..Keyed::new(sort, number) };
        let line = request.open(scene.server.address(), &scene.caller).await;
        let (caller, pid) = (scene.caller.clone(), scene.server.pid());
        let before = written_bytes(pid);
        let asked = tokio::spawn(async move { request.ask(line, &caller).await });
        // Later in each turn, up to about all of it.
        let wanted = before + 60_000 + 200_000 * (number / 3);
        while written_bytes(pid) < wanted && !asked.is_finished() {
            tokio::task::yield_now().await;
        }
        scene.server.kill9();
        let first = soon("the end of a request", asked).await.expect("it ends well");
        scene.server.restart();
        scene.settle(&request, first).await;
    }
    assert!(scene.told.lost > 0, "no commit was cut in the middle: {:?}", scene.told);
    scene.check_store();
}

/// How many bytes a process has written, to files and elsewhere.
fn written_bytes(pid: u32) -> u64 {
    let io = fs::read_to_string(format!("/proc/{pid}/io")).expect("the process runs");
    let line = io.lines().find_map(|line| line.strip_prefix("wchar: ")).expect("it is counted");
    line.trim().parse().expect("a number")
}

/// The talk between server and database is cut ever nearer to its end: at last the final byte of the `COMMIT` is held back,
/// or that of the answer to it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_at_points_of_the_talk_with_the_database() {
    let proxy = Proxy::start(Cluster::shared().address());
    let mut scene = Scene::on(Some(Cluster::shared().empty_database()), Some(proxy.address()));
    let mut numbers = 0..;
    for sort in [Sort::Samples, Sort::Batch, Sort::Device] {
        for direction in [Direction::ToServer, Direction::ToClient] {
            // Cut after `cut` bytes, a request is not answered; after `whole` bytes it is.
            let (mut cut, mut whole) = (0, None);
            let mut last = None;
            while whole.is_none_or(|whole| whole > cut + 1) {
                let mut next = || Keyed::new(sort, numbers.next().expect("there are enough"));
                // The first request of a server prepares its statements, the second shows how much is said.
                let length = length_of(&mut scene, &proxy, direction, [next(), next()]).await;
                let at = whole.map_or(length / 2, |whole| u64::midpoint(cut, whole));
                let (was_cut, there) = killed_at(&mut scene, &proxy, (direction, at), next()).await;
                if was_cut {
                    (cut, last) = (at, Some(there));
                    whole = whole.or(Some(length + 1));
                } else {
                    whole = Some(at);
                }
            }
            // What is missing is the end of the `COMMIT`, or the end of the answer to it.
            let committed = direction == Direction::ToClient;
            assert_eq!(last, Some(committed), "{sort:?}, {direction:?}, {cut} bytes");
        }
    }
    scene.check_store();
}

/// How many bytes pass in a direction for a request like another one.
async fn length_of(scene: &mut Scene, proxy: &Proxy, direction: Direction, like: [Keyed; 2]) -> u64 {
    let mut length = 0;
    for request in like {
        let line = request.open(scene.server.address(), &scene.caller).await;
        let passed = proxy.passed(direction);
        let answer = request.ask(line, &scene.caller).await;
        length = proxy.passed(direction) - passed;
        scene.settle(&request, answer).await;
    }
    length
}

/// Cuts the talk with the database and kills the server; tells whether there was something to cut, and whether the effect
/// was there afterwards.
async fn killed_at(
    scene: &mut Scene,
    proxy: &Proxy,
    (direction, bytes): (Direction, u64),
    request: Keyed,
) -> (bool, bool) {
    let line = request.open(scene.server.address(), &scene.caller).await;
    let (caller, cuts) = (scene.caller.clone(), proxy.cuts());
    proxy.cut_after(bytes, direction);
    let asked = tokio::spawn(async move { request.ask(line, &caller).await });
    while proxy.cuts() == cuts && !asked.is_finished() {
        tokio::task::yield_now().await;
    }
    let was_cut = proxy.cuts() > cuts;
    scene.server.kill9();
    let answer = soon("the end of a request", asked).await.expect("it ends well");
    proxy.pass();
    scene.server.restart();
    (was_cut, scene.settle(&request, answer).await)
}
