//! The messages of the Workload API, with client and server stubs.

pub use tower_spiffe::testing::internals::messages as pb;
