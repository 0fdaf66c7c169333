//! The messages, compiled anew.

#[rustfmt::skip]
#[allow(missing_docs, unreachable_pub, dead_code, clippy::all, reason = "generated")]
#[path = "../../src/workload_api/pb.rs"]
pub(crate) mod pb;
#[path = "../../src/workload_api/redact.rs"]
mod redact;
