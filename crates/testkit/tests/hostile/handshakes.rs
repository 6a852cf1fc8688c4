//! Handshakes that are none, and who may not enter.

use std::sync::Arc;

use driftline_testkit::http::Request;
use driftline_testkit::socket::Handshake;
use tokio::sync::Barrier;

use crate::peer::{named, verdict};
use crate::scene::{Attack, Site, address};

const SOCKETS: usize = 64;
const MALFORMED: &str = "400 VALIDATION_ERROR";

/// An attack by a handshake that is right in everything but one thing.
fn handshake(name: &'static str, wanted: &'static str, spoil: fn(Handshake, usize) -> Handshake) -> Attack {
    Attack::new(name, SOCKETS, wanted, move |site, attacker| async move {
        match spoil(site.handshake(attacker), attacker).send(site.address).await {
            Ok((mut socket, _)) => verdict(&mut socket).await,
            Err(refused) => named(&refused),
        }
    })
}

/// Handshakes that are refused before the upgrade.
pub(crate) fn malformed() -> Vec<Attack> {
    vec![
        handshake("handshake by POST", "405 METHOD_NOT_ALLOWED", |right, _| right.method("POST")),
        handshake("handshake in HTTP/1.0", MALFORMED, |right, _| right.version("HTTP/1.0")),
        handshake("no key", MALFORMED, |right, _| right.header("sec-websocket-key", None)),
        handshake("key of a wrong length", MALFORMED, |right, attacker| {
            let keys = ["", "AAAA", "dGhlIHNhbXBsZSBub25jZQ", "dGhlIHNhbXBsZSBub25jZSE=", "?"];
            right.header("sec-websocket-key", Some(keys[attacker % keys.len()]))
        }),
        handshake("two keys", MALFORMED, |right, _| {
            right.doubled("sec-websocket-key", "AQIDBAUGBwgJCgsMDQ4PEA==")
        }),
        handshake("wrong version", MALFORMED, |right, attacker| {
            right.header("sec-websocket-version", [None, Some("8"), Some("12"), Some("130")][attacker % 4])
        }),
        handshake("no upgrade", MALFORMED, |right, attacker| match attacker % 3 {
            0 => right.header("upgrade", None),
            1 => right.header("connection", Some("keep-alive")),
            _ => right.header("upgrade", Some("h2c")),
        }),
        handshake("foreign origin", "403 ORIGIN_REFUSED", |right, attacker| {
            let origins = ["https://evil.example", "null", "", "http://127.0.0.1.evil.example"];
            right.header("origin", Some(origins[attacker % origins.len()]))
        }),
        handshake("unknown subprotocol", MALFORMED, |right, _| {
            right.header("sec-websocket-protocol", Some("driftline.v2.json, graphql-ws"))
        }),
        handshake("only a bearer as subprotocol", MALFORMED, |right, _| {
            right.header("sec-websocket-protocol", Some("bearer.e30.e30.e30"))
        }),
        handshake("two hosts", MALFORMED, |right, _| right.doubled("host", "other.example")),
    ]
}

/// Tokens that open nothing. Each attacker comes from an address of its own, so that none has failed before.
pub(crate) fn tokens() -> Vec<Attack> {
    vec![
        Attack::new("token of 12 KiB", SOCKETS, "UNAUTHORIZED 4001", |site, attacker| async move {
            let handshake =
                site.handshake(attacker).bearer(&"a".repeat(12 << 10)).source(address(1, attacker));
            match handshake.send(site.address).await {
                Ok((mut socket, _)) => verdict(&mut socket).await,
                Err(refused) => named(&refused),
            }
        }),
        Attack::new("token of 64 KiB", SOCKETS, "431", |site, attacker| async move {
            let handshake =
                site.handshake(attacker).bearer(&"a".repeat(64 << 10)).source(address(2, attacker));
            match handshake.send(site.address).await {
                Ok((mut socket, _)) => verdict(&mut socket).await,
                Err(refused) => named(&refused),
            }
        }),
    ]
}

/// Tokens that are tried one after the other from one address: some are told that they are none, the others to wait.
/// Who comes from elsewhere enters meanwhile.
pub(crate) fn guesses() -> Vec<Attack> {
    let over_sockets = Attack::new(
        "bad tokens from one address",
        SOCKETS,
        "UNAUTHORIZED 4001",
        |site, attacker| async move {
            let handshake = site.handshake(attacker).bearer("e30.e30.e30").source(address(3, 0));
            let verdict = match handshake.send(site.address).await {
                Ok((mut socket, _)) => verdict(&mut socket).await,
                Err(refused) => named(&refused),
            };
            let right = Request::get("/api/v1/records/good?limit=1").bearer(site.token(attacker));
            assert_eq!(right.send(site.address).await.status, 200);
            verdict
        },
    );
    let over_http = Attack::new("bad tokens over HTTP", SOCKETS, "401 UNAUTHORIZED", |site, _| async move {
        let request = Request::get("/api/v1/changes").bearer("e30.e30.e30");
        named(&request.send_from(address(4, 0), site.address).await)
    });
    vec![
        over_sockets.or(&[("UNAUTHORIZED 4001", 1), ("429 RATE_LIMITED", 1)]),
        over_http.or(&[("401 UNAUTHORIZED", 1), ("429 RATE_LIMITED", 1)]),
    ]
}

/// More connections of one user than one may have.
pub(crate) fn one_user() -> Attack {
    at_once("150 connections of one user", 150, |site, _| site.token(0).to_owned())
        .or(&[("429 RATE_LIMITED", 50), ("let in", 100)])
}

/// More sessions than the node has places for, of which the good client has one.
pub(crate) fn many_users(places: usize) -> Attack {
    const SESSIONS: usize = 100;
    at_once("100 sessions at once", SESSIONS, |site, attacker| site.token(attacker).to_owned())
        .or(&[("503 SERVER_DRAINING", SESSIONS - places + 1), ("let in", places - 1)])
}

/// Opens connections at once. Who is let in stays until everybody knows.
fn at_once(name: &'static str, sockets: usize, token: fn(&Site, usize) -> String) -> Attack {
    let together = Arc::new(Barrier::new(sockets));
    Attack::new(name, sockets, "", move |site, attacker| {
        let together = Arc::clone(&together);
        async move {
            let handshake = Handshake::new(&format!("/ws/mobile/sync?device_id=o-{attacker}"));
            let opened = handshake.bearer(&token(&site, attacker)).send(site.address).await;
            together.wait().await;
            opened.map_or_else(|refused| named(&refused), |_| "let in".into())
        }
    })
}
