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
/// How often at most, until some answer was heard and some request lost.
const KILLS_MAX: u64 = 120;
/// After so many kills the latest moment is looked at: a slow machine answers nothing before it, a fast one everything.
const KILLS_LIKE: u64 = 10;
/// How often it is killed while it writes a commit.
const KILLS_INSIDE: u64 = 12;
/// How often at most, until some came before the commit and some behind it.
const KILLS_INSIDE_MAX: u64 = 60;
/// How often a commit is looked for in a talk. Requests have an hour each, of which there are those of 90 days.
const LOOKS_MAX: usize = 16;
/// Bytes of a page of a database file.
const PAGE_BYTES: u64 = 4_096;
/// How many requests are under way when it is killed at a random moment.
const REQUESTS: usize = 5;
/// The latest random moment, in microseconds after the first request is sent, where nothing speaks against it.
const MOMENT_US: u64 = 10_000;
/// The latest one on any machine.
const MOMENT_US_MAX: u64 = 5_000_000;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_at_random_moments() {
    let seed = 0x5afe;
    println!("seed {seed:#x}");
    let mut rng = Rng::new(seed);
    let mut scene = Scene::new();
    let both = |scene: &Scene| scene.told.heard > 0 && scene.told.lost > 0;
    let mut latest_us = MOMENT_US;
    for round in 0..KILLS_MAX {
        if round >= KILLS && both(&scene) {
            break;
        }
        if round > 0 && round.is_multiple_of(KILLS_LIKE) {
            if scene.told.heard == 0 {
                latest_us = (latest_us * 2).min(MOMENT_US_MAX);
            }
            if scene.told.lost == 0 {
                latest_us = (latest_us / 2).max(1);
            }
        }
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
        tokio::time::sleep(Duration::from_micros(rng.below(latest_us))).await;
        scene.server.kill9();
        let mut heard: Vec<Option<Heard>> = vec![None; requests.len()];
        while let Some(ended) = soon("the end of a request", under_way.join_next()).await {
            let (at, answer) = ended.expect("a request ends well");
            heard[at] = answer;
        }
        scene.restart().await;
        for (request, first) in requests.iter().zip(heard) {
            scene.settle(request, first).await;
        }
    }
    assert!(both(&scene), "the kills come in time: {:?}", scene.told);
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
        scene.restart().await;
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
        scene.restart().await;
        assert!(scene.settle(&request, None).await, "{request:?} was answered, so that it was committed");
    }
    scene.check_store();
}

/// After how many pages of a commit the server is killed.
#[derive(Clone, Copy)]
struct Aim {
    pages: u64,
    step: u64,
    later: bool,
}

impl Aim {
    /// Aims later or earlier, by smaller steps each time that it turns.
    fn shift(&mut self, later: bool) {
        if later != self.later {
            self.step = (self.step / 2).max(1);
        }
        self.later = later;
        self.pages = if later { self.pages + self.step } else { self.pages.saturating_sub(self.step).max(1) };
    }
}

/// The server has written so many bytes of a commit: it is in the middle of it, or was a moment ago.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_while_the_commit_is_written() {
    let mut scene = Scene::new();
    if !scene.is_on_a_file() {
        // The database writes its commits elsewhere: `killed_at_points_of_the_talk_with_the_database` cuts those.
        return;
    }
    let enough = |scene: &Scene| scene.told.lost > 1 && scene.told.unheard > 1;
    let mut aims = [Aim { pages: 121, step: 40, later: true }; 3];
    for number in 0..KILLS_INSIDE_MAX {
        if number >= KILLS_INSIDE && enough(&scene) {
            break;
        }
        let which = usize::try_from(number % 3).expect("small");
        let (sort, aim) = ([Sort::Samples, Sort::Post, Sort::Batch][which], &mut aims[which]);
        // Many pages, so that writing them takes a while.
        let request = Keyed { text_bytes: 8_000, items: 90, ..Keyed::new(sort, number) };
        let line = request.open(scene.server.address(), &scene.caller).await;
        let (caller, pid) = (scene.caller.clone(), scene.server.pid());
        let before = written_bytes(pid);
        let asked = tokio::spawn(async move { request.ask(line, &caller).await });
        // Now at its beginning, now later; then where the kills come on both sides of the commit on this machine.
        let is_fixed = number < KILLS_INSIDE;
        let pages = if is_fixed { 1 + 40 * (number / 3 % 4) } else { aim.pages };
        let wanted = before + PAGE_BYTES * pages;
        while written_bytes(pid) < wanted && !asked.is_finished() {
            tokio::task::yield_now().await;
        }
        scene.server.kill9();
        let first = soon("the end of a request", asked).await.expect("it ends well");
        scene.restart().await;
        let heard = first.is_some();
        let there = scene.settle(&request, first).await;
        if is_fixed {
            continue;
        }
        if heard || (there && scene.told.lost <= 1) {
            aim.shift(false);
        } else if !there && scene.told.unheard <= 1 {
            aim.shift(true);
        }
    }
    assert!(enough(&scene), "the kills come on both sides of the commit: {:?}", scene.told);
    scene.check_store();
}

/// How many bytes a process has written, to files and elsewhere.
fn written_bytes(pid: u32) -> u64 {
    let io = fs::read_to_string(format!("/proc/{pid}/io")).expect("the process runs");
    let line = io.lines().find_map(|line| line.strip_prefix("wchar: ")).expect("it is counted");
    line.trim().parse().expect("a number")
}

/// The talk between server and database is cut ever nearer to the `COMMIT`: at last its final byte is held back, and the
/// first byte of the answer to it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_at_points_of_the_talk_with_the_database() {
    let proxy = Proxy::start(Cluster::shared().address());
    let mut scene = Scene::on(Some(Cluster::shared().empty_database()), Some(proxy.address()));
    let mut numbers = 0..;
    for sort in Sort::ALL {
        for direction in [Direction::ToServer, Direction::ToClient] {
            // A request by HTTP asks who is there over another connection first, whose talk may be the longer one.
            let by_socket = !matches!(sort, Sort::Post | Sort::Device);
            let unheard = by_socket && direction == Direction::ToClient;
            // Cut in the answer to the `COMMIT`, nobody hears of that. What the server writes down once a second may come
            // between, and be what was cut: then it is looked for again.
            let mut found = false;
            for _ in 0..LOOKS_MAX {
                let (lost, heard_kept) = commit_of(&mut scene, &proxy, (sort, direction), &mut numbers).await;
                println!("{sort:?}, {direction:?}: lost after {lost} bytes, heard {heard_kept:?}");
                assert!(lost > 0, "{sort:?}, {direction:?}: a talk has a beginning");
                found = !unheard || heard_kept == Some(false);
                if found {
                    break;
                }
            }
            assert!(found, "{sort:?}, {direction:?}");
        }
    }
    scene.check_store();
}

/// Looks for the commit in the talk about a request: cut after the bytes that are returned, it had no effect; after one
/// more it had, and whether it was answered then is returned too.
async fn commit_of(
    scene: &mut Scene,
    proxy: &Proxy,
    (sort, direction): (Sort, Direction),
    numbers: &mut impl Iterator<Item = u64>,
) -> (u64, Option<bool>) {
    let mut next = || Keyed::new(sort, numbers.next().expect("there are enough"));
    let (mut lost, mut kept) = (0, length_of(scene, proxy, direction, [next(), next()]).await);
    let mut heard_kept = None;
    while kept > lost + 1 {
        // The first request of a server prepares its statements.
        length_of(scene, proxy, direction, [next()]).await;
        let at = u64::midpoint(lost, kept);
        let (heard, there) = killed_at(scene, proxy, (direction, at), next()).await;
        if there {
            (kept, heard_kept) = (at, Some(heard));
        } else {
            lost = at;
        }
    }
    (lost, heard_kept)
}

/// Sends requests; gives how many bytes passed in a direction for the last of them.
async fn length_of<const N: usize>(
    scene: &mut Scene,
    proxy: &Proxy,
    direction: Direction,
    like: [Keyed; N],
) -> u64 {
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

/// Cuts the talk with the database and kills the server; tells whether the request was answered, and whether its effect was
/// there afterwards.
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
    scene.server.kill9();
    let answer = soon("the end of a request", asked).await.expect("it ends well");
    proxy.pass();
    scene.restart().await;
    let heard = answer.is_some();
    (heard, scene.settle(&request, answer).await)
}
