//! Runs the program with embedded agents.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test"
)]

mod agent;
mod agent_load;
mod call;
mod command_line;
mod e29_explain;
mod explain;
mod h13_explain_https;
mod policy;
mod support;
mod token_file;
mod watch;
