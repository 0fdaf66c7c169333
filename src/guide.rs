#![doc = include_str!("../docs/guide/index.md")]

/// A server and a client in one program, without SPIRE.
#[doc = include_str!("../docs/guide/quick-start.md")]
pub mod quick_start {}

/// axum, tonic and hyper; nested routers, spans, Unix sockets, Windows and macOS.
#[doc = include_str!("../docs/guide/servers.md")]
pub mod servers {}

/// reqwest, hyper-util and tonic; audiences and origins.
#[doc = include_str!("../docs/guide/clients.md")]
pub mod clients {}

/// Services that verify callers and forward requests.
#[doc = include_str!("../docs/guide/gateways.md")]
pub mod gateways {}

/// Bundles by https, files or memory: serverless functions, gateways, partners.
#[doc = include_str!("../docs/guide/without-an-agent.md")]
pub mod without_an_agent {}

/// Policies: decisions, common mistakes, rules in files, asynchronous policies, and migration.
#[doc = include_str!("../docs/guide/who-may-call.md")]
pub mod who_may_call {}

/// OAuth access tokens: settings, callers' tokens, errors, and an authorization server of your own.
#[doc = include_str!("../docs/guide/oauth.md")]
pub mod oauth {}

/// Tokens for Kafka, NATS, Redis, Postgres, cloud SDKs, Vault, and files.
#[doc = include_str!("../docs/guide/outside-http.md")]
pub mod outside_http {}

/// Tests of a service without SPIRE.
#[doc = include_str!("../docs/guide/testing.md")]
pub mod testing {}

/// Startup, probes, rejections, logs, metrics, alerts and roll-out.
#[doc = include_str!("../docs/guide/operating.md")]
pub mod operating {}

/// Causes and fixes, by message and by symptom.
#[doc = include_str!("../docs/guide/troubleshooting.md")]
pub mod troubleshooting {}

/// Costs, sizes and measurements.
#[doc = include_str!("../docs/guide/performance.md")]
pub mod performance {}

/// What is trusted, which attacks are stopped, and which are not.
#[doc = include_str!("../docs/guide/threat-model.md")]
pub mod threat_model {}

/// From the `spiffe` crate, and from hand-written code.
#[doc = include_str!("../docs/guide/migrating.md")]
pub mod migrating {}
