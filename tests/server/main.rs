//! The server layer, from one request to whole servers on loopback.
#![allow(
    missing_docs,
    unreachable_pub,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing
)]

mod axum;
mod config_errors;
mod costs;
mod e03_forwarding;
mod e11_rejected_bodies;
mod e12_anonymous;
mod e13_protocol;
mod e14_handler_rejections;
mod e15_last_check;
mod e16_end_at_expiry;
mod e18_uniform_answer;
mod e28_messages;
mod end_at_expiry;
mod extremes;
mod golden;
mod hyper;
mod live_source;
mod modes;
mod policy;
mod policy_async;
mod policy_claims;
mod policy_combinations;
mod policy_file;
mod policy_grpc_services;
mod policy_mistakes;
mod policy_opa;
mod policy_original_uri;
mod policy_own_rejections;
mod policy_token_headers;
mod raw;
mod rejections;
mod secrets;
mod small_rules;
mod support;
mod talk;
mod telemetry;
mod tonic;
mod tower_http;
mod validator_settings;
mod wait;

use tower_spiffe_test_support::{agent, log, loopback};
