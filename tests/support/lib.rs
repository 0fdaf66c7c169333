//! Support that the test suites and the benches share.
//!
//! | module | content |
//! | --- | --- |
//! | `agent` | an embedded agent with a socket that this system has |
//! | `bundles` | a bundle source that a test changes |
//! | `clock` | a clock that a test sets |
//! | `fetch` | an issuer for the token cache |
//! | `log` | log capture per thread |
//! | `loopback` | HTTP/1.1 and HTTP/2 over TCP and Unix sockets, requests to them |
//! | `net` | hosts on loopback with and without TLS, which record what they see; a CA |
//! | `raw_agent` | an agent with the exact responses that a test sets |
//! | `signer` | tokens signed with the keys of the conformance vectors, or with a new key |
//! | `temp` | a directory that is removed with the test; files that are replaced in one step |
//! | `tls_server` | a TLS server that answers exactly what a test sets; certificates for hosts and SPIFFE IDs |
//! | `wait` | polling with a deadline, yielding in paused time |
//! | `wire` | the messages and stubs of the Workload API |

#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "tests"
)]

pub mod agent;
pub mod bundles;
pub mod clock;
pub mod fetch;
pub mod log;
pub mod loopback;
pub mod net;
pub mod raw_agent;
pub mod signer;
pub mod temp;
pub mod tls_server;
pub mod wait;
pub mod wire;
