//! The client side: the rules of the token cache, the layer, and real clients over loopback.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing
)]
#![allow(unreachable_pub, missing_docs)]

mod bounds;
mod clients;
mod e01_host_header;
mod e02_wildcards;
mod e04_absolute_names;
mod e05_grpc_deadline;
mod e06_fail_fast;
mod e07_peer_status;
mod e09_removed_key;
mod e27_old_tokens;
mod entry_waits;
mod exact_limits;
mod existing;
mod from_origin;
mod hostile;
mod hostile_agent;
mod hostile_urls;
mod identity;
mod keys;
mod late;
mod layer;
mod numbers;
mod options;
mod origins;
mod outage;
mod properties;
mod proxies;
mod recorder;
mod redirects;
mod rejected_tokens;
mod rules;
mod small_gaps;
mod stack;
mod support;
mod t01_refresh_events;
mod t03_token_file;
mod t04_file_tokens;
mod t05_single_use;
mod tonic_channel;
mod turns;
mod x01_callers;
mod x01_error_texts;
mod x01_oauth;
mod x01_oauth_http;

use tower_spiffe_test_support::{agent, log, net, raw_agent};
