//! The doors of Driftline: hyper drives the connections, axum routes, fastwebsockets reads frames.
//!
//! A handler translates and calls the engine; no SQL, no merge and no policy is known here. Mount [`router`] in
//! an axum service of your own, or let [`serve`] run a listener with bounded heads, bodies and connections.
//!
//! What the crate does not do: it stores nothing and decides nothing about records.

mod app;
mod auth;
mod budget;
mod coding;
mod guard;
mod handlers;
mod idempotency;
mod listener;
mod monitors;
mod negotiate;
mod observe;
mod parked;
mod rate;
mod reply;
mod request;
mod routes;
mod sessions;
mod sse;
mod system;
mod tickets;
mod traffic;
mod uploads;
mod ws;

pub use app::{Anonymous, App, Settings};
pub use auth::{AuthError, Authenticate, Claims, Grant, SharedSecret, names_groups};
pub use listener::{ServeError, serve};
pub use observe::{MetricsHandle, MetricsObserver, install_metrics};
pub use rate::Peer;
pub use routes::{Access, Door, ROUTES, Route, RouteId, router};
pub use system::{SystemClock, SystemRandom};

/// Compiles the examples of the readme.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
