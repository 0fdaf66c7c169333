//! The guide: one page for each task. The pages have no items; they exist in the documentation only.

/// Decisions, common mistakes, policies that wait, and migration.
#[doc = include_str!("../docs/guide/who-may-call.md")]
pub mod who_may_call {}

#[cfg(feature = "oauth")]
/// OAuth access tokens: settings, callers' tokens, errors, and an authorization server of your own.
#[doc = include_str!("../docs/guide/oauth.md")]
pub mod oauth {}
