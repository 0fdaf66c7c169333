//! The source and the Workload API client, tested against their rules and the faults of the
//! embedded agent. Calls and connections are counted by the agent.

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
mod e19_empty_value;
mod e20_heartbeat;
mod e21_suspend;
mod e22_message_limit;
mod e23_bad_names;
mod e24_contact;
mod e25_denied_agent;
mod e26_runtime_end;
mod e28_messages;
mod endpoints;
mod error_chain;
mod file_formats;
mod h08_bundle_files;
mod h_https;
mod keepalive;
mod late_files;
mod lifetime;
mod memory;
mod memory_bundles;
mod merged_bundles;
#[cfg(windows)]
mod named_pipe;
mod problem_log;
mod reconnect;
mod recorded_changes;
mod staleness;
mod start;
mod state;
mod stream;
mod support;
mod updates;
mod withdrawal;
mod worker;
mod wrong_files;

use tower_spiffe_test_support::{agent, log, raw_agent, wire};
