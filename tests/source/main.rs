//! The source and the Workload API client beneath it, by their rules and over every bad day that
//! the embedded agent can have. Calls and connections are counted at the agent, not here.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "tests"
)]

mod bars;
mod calls;
mod e08_runtimes;
mod e10_identities;
mod endpoints;
mod keepalive;
mod lifetime;
#[path = "../server/log.rs"]
#[allow(dead_code, unreachable_pub)]
mod log;
mod memory;
mod news;
mod raw_agent;
mod reconnect;
mod staleness;
mod start;
mod state;
mod stream;
mod support;
mod updates;
mod wire;
mod withdrawal;
mod worker;
