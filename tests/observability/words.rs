//! The allowed label values.

use std::collections::BTreeSet;

use tower_spiffe::bundle::BundlesUnavailable;
use tower_spiffe::metrics::{
    DRY_RUN_OUTCOMES, EXCHANGE_OUTCOMES, KEY_WAIT_OUTCOMES, METRICS, SOURCE_ERROR_KINDS,
    SvidCacheEvent,
};
use tower_spiffe::server::{PolicyFailure, RejectionReason};
use tower_spiffe::token::TokenErrorReason;
use tower_spiffe::verify::ValidateReason;

const UNAVAILABLE: [BundlesUnavailable; 4] = [
    BundlesUnavailable::NotReady,
    BundlesUnavailable::Withdrawn,
    BundlesUnavailable::Stale,
    BundlesUnavailable::Closed,
];

const POLICY: [PolicyFailure; 3] = [
    PolicyFailure::Failed,
    PolicyFailure::TimedOut,
    PolicyFailure::TooManyInFlight,
];

const VALIDATE: [ValidateReason; 13] = [
    ValidateReason::TooLong,
    ValidateReason::Malformed,
    ValidateReason::Header,
    ValidateReason::Algorithm,
    ValidateReason::Claims,
    ValidateReason::Expired,
    ValidateReason::NotYetValid,
    ValidateReason::Audience,
    ValidateReason::TrustDomainUnknown,
    ValidateReason::KeyUnknown,
    ValidateReason::KeyUnfit,
    ValidateReason::Signature,
    ValidateReason::BundlesUnavailable(BundlesUnavailable::Stale),
];

const TOKEN: [TokenErrorReason; 17] = [
    TokenErrorReason::Unavailable,
    TokenErrorReason::Timeout,
    TokenErrorReason::DeadlineExceeded,
    TokenErrorReason::Denied,
    TokenErrorReason::InvalidRequest,
    TokenErrorReason::Unacceptable,
    TokenErrorReason::StaleToken,
    TokenErrorReason::ClockSkew,
    TokenErrorReason::Full,
    TokenErrorReason::Closed,
    TokenErrorReason::Panicked,
    TokenErrorReason::NoRuntime,
    TokenErrorReason::NoOrigin,
    TokenErrorReason::ForeignOrigin,
    TokenErrorReason::Plaintext,
    TokenErrorReason::HeaderPresent,
    TokenErrorReason::Other,
];

/// Returns the allowed values of a label; `None` if it is a name from an issuer.
pub(crate) fn of(metric: &str, label: &str) -> Option<BTreeSet<&'static str>> {
    let words: Vec<&'static str> = match (metric, label) {
        (_, "trust_domain") => return None,
        (_, "kind") => SOURCE_ERROR_KINDS.to_vec(),
        (_, "event") => SvidCacheEvent::ALL.iter().map(|e| e.as_str()).collect(),
        (_, "enforced" | "cached") => vec!["true", "false"],
        (_, "why") => {
            let why = UNAVAILABLE.iter().map(|why| why.as_str());
            let policy = POLICY.iter().map(|why| why.as_str());
            let policy = policy.filter(|_| metric == "spiffe_admissions_total");
            why.chain(policy).chain([""]).collect()
        }
        ("spiffe_token_file_writes_total", "outcome") => vec!["ok", "error"],
        ("spiffe_token_exchanges_total" | "spiffe_token_exchange_duration_seconds", "outcome") => {
            EXCHANGE_OUTCOMES.to_vec()
        }
        ("spiffe_unknown_key_waits_total", "outcome") => KEY_WAIT_OUTCOMES.to_vec(),
        ("spiffe_policy_dry_run_denials_total", "outcome") => DRY_RUN_OUTCOMES.to_vec(),
        ("spiffe_verifications_total", "outcome") => {
            let rejected = VALIDATE.iter().map(|reason| reason.as_str());
            rejected.chain(["ok"]).collect()
        }
        ("spiffe_admissions_total", "outcome") => {
            let token = VALIDATE.iter().map(|reason| reason.as_str());
            let others = [
                RejectionReason::Missing,
                RejectionReason::Malformed,
                RejectionReason::NotAllowed,
                RejectionReason::PolicyUnavailable(PolicyFailure::Failed),
                RejectionReason::NotWired,
            ];
            let others = others.iter().map(|reason| reason.as_str());
            let passed = ["verified", "anonymous"];
            token.chain(others).chain(passed).collect()
        }
        (_, "outcome") => {
            let failed = TOKEN.iter().map(|reason| reason.as_str());
            failed.chain(["ok"]).collect()
        }
        _ => panic!("{metric} has no label {label}"),
    };
    Some(words.into_iter().collect())
}

/// Returns the metric of a sample. A histogram has several samples.
pub(crate) fn metric_of(sample: &str) -> Option<&'static tower_spiffe::metrics::MetricInfo> {
    METRICS.iter().find(|metric| {
        let suffixes: &[&str] = match metric.kind {
            "histogram" => &["_bucket", "_sum", "_count"],
            _ => &[""],
        };
        let rest = sample.strip_prefix(metric.name);
        rest.is_some_and(|rest| suffixes.contains(&rest))
    })
}

/// Whether a recorder for one source adds the label `source`.
pub(crate) fn is_of_a_source(metric: &str) -> bool {
    metric.starts_with("spiffe_bundle_") || metric == "spiffe_source_errors_total"
}
