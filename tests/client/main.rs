//! The client side: the token cache by its rules, the layer, and real clients over loopback.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing
)]
#![allow(unreachable_pub, missing_docs)]

mod bounds;
mod clients;
mod e06_fail_fast;
mod e09_removed_key;
mod e27_old_tokens;
mod existing;
mod hostile;
mod hostile_agent;
mod hostile_urls;
mod identity;
mod keys;
mod late;
mod layer;
#[path = "../server/log.rs"]
#[allow(dead_code)]
mod log;
mod net;
mod numbers;
mod options;
mod origins;
mod outage;
mod properties;
mod proxies;
#[path = "../source/raw_agent.rs"]
#[allow(dead_code)]
mod raw_agent;
mod recorder;
mod redirects;
mod refused;
mod rules;
mod stack;
mod support;
mod tonic_channel;
mod turns;
#[path = "../agent/wire.rs"]
#[allow(dead_code)]
mod wire;
