//! Hostile peers against the real server: each is refused with its code, a good client is served meanwhile, and the
//! memory stays within its bound. `--nocapture` shows the figures.

mod documents;
mod frames;
mod good;
mod handshakes;
mod peer;
mod requests;
mod scene;
mod slow;

use crate::scene::Scene;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hostile_frames() {
    let mut scene = Scene::open("Frames", "").await;
    scene.suffer(frames::broken()).await;
    scene.suffer(frames::large()).await;
    scene.suffer(vec![frames::half_open()]).await;
    scene.suffer(frames::fast()).await;
    scene.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hostile_documents() {
    let mut scene = Scene::open("Documents", "").await;
    scene.suffer(documents::undecodable()).await;
    scene.suffer(documents::too_much()).await;
    scene.suffer(documents::compressed()).await;
    scene.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hostile_handshakes() {
    let mut scene = Scene::open("Handshakes", "").await;
    scene.suffer(handshakes::malformed()).await;
    scene.suffer(handshakes::tokens()).await;
    scene.suffer(handshakes::guesses()).await;
    scene.suffer(vec![handshakes::one_user()]).await;
    scene.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hostile_requests() {
    let mut scene = Scene::open("Requests", "").await;
    scene.suffer(requests::heads()).await;
    scene.suffer(requests::bodies()).await;
    scene.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn slow_requests() {
    let limits = "header_ms = 3000\nidle_ms = 1000\nbody_frame_ms = 1000\n";
    let mut scene = Scene::open("Slow requests", limits).await;
    scene.suffer(requests::slow()).await;
    scene.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn silent_sockets() {
    let mut scene = Scene::open("Silent sockets", "heartbeat_s = 4\n").await;
    scene.suffer(slow::silent()).await;
    scene.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn deaf_peers() {
    let mut scene = Scene::open("Deaf peers", "write_ms = 5000\n").await;
    slow::stock(&scene.site).await;
    scene.suffer(vec![requests::never_read()]).await;
    let attack = slow::never_read(&scene.site).await;
    scene.suffer(vec![attack]).await;
    scene.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn too_many_peers() {
    const PLACES: usize = 8;
    let limits = format!("connections = {PLACES}\nheader_ms = 1000\n");
    let mut scene = Scene::open("A crowd", &limits).await;
    scene.suffer(vec![requests::crowd(), handshakes::many_users(PLACES)]).await;
    scene.close().await;
}
