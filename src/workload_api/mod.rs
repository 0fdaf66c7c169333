//! The Workload API: what an agent beside the workload answers (SPIFFE Workload API, section 6).

#[rustfmt::skip]
#[allow(
    missing_docs,
    unreachable_pub,
    rust_2018_idioms,
    clippy::all,
    clippy::disallowed_methods,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "generated from proto/workload.proto"
)]
#[allow(dead_code, reason = "a client uses one half of it, the embedded server the other")]
pub(crate) mod pb;
mod redact;
