//! Explains a decision rule by rule.

use std::fmt;

use http::Method;

use super::parse::{Callers, Rule, Verbs};
use super::rules::{Route, Rules};
use super::table::bounded;
use crate::presentable::presentable;
use crate::server::Decision;
use crate::verify::VerifiedSvid;

/// The explanation of one decision: a line for each rule whose pattern matches the path, in the order
/// of the file. Its text has several lines.
#[derive(Debug, Clone)]
pub struct PolicyExplanation {
    decision: Decision,
    pattern: Option<String>,
    is_ambiguous: bool,
    rules: Vec<RuleExplanation>,
    others: usize,
}

/// The outcome of one rule for a request.
#[derive(Debug, Clone)]
pub struct RuleExplanation {
    line: usize,
    name: Option<String>,
    outcome: RuleOutcome,
}

/// The outcome of one rule.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum RuleOutcome {
    /// The rule allows the request.
    Allows,
    /// Its pattern matches, but another matching pattern is more specific.
    LessSpecific {
        /// The more specific pattern.
        pattern: String,
    },
    /// The rule is for other methods.
    OtherMethods {
        /// The methods of the rule.
        methods: String,
    },
    /// The rule is for verified callers, and this caller is anonymous.
    TokenRequired,
    /// The rule is for other callers.
    OtherCallers,
    /// A claim that the rule requires is missing, or has another value.
    Claim {
        /// The name of the claim and the required value.
        required: String,
    },
}

impl PolicyExplanation {
    pub(super) fn new(
        rules: &Rules,
        caller: Option<&VerifiedSvid>,
        method: &Method,
        path: &str,
    ) -> Self {
        let decision = rules.decide(caller, method, path);
        let route = rules.route(path);
        let outcome = |at: usize, rule: &Rule, route: &Route| {
            if !rule.verbs.allow(method, path) {
                let methods = rule.verbs.to_string();
                return RuleOutcome::OtherMethods { methods };
            }
            match (&rule.callers, caller) {
                (Callers::Public, _) => RuleOutcome::Allows,
                (_, None) => RuleOutcome::TokenRequired,
                (_, Some(caller)) if !route.candidates(caller).any(|other| *other == at) => {
                    RuleOutcome::OtherCallers
                }
                (_, Some(caller)) => match rule.missing_claim(caller) {
                    Some((name, claim)) => RuleOutcome::Claim {
                        required: bounded(&format!("{name:?} {claim:?}"), 200),
                    },
                    None => RuleOutcome::Allows,
                },
            }
        };
        let explain = |(at, rule): (usize, &Rule)| {
            let outcome = match route {
                Some(route) if route.rules.contains(&at) => outcome(at, rule, route),
                _ if rule.matches(path) => RuleOutcome::LessSpecific {
                    pattern: rule.pattern.text.to_string(),
                },
                _ => return None,
            };
            Some(RuleExplanation {
                line: rule.line,
                name: rule.name.as_deref().map(presentable),
                outcome,
            })
        };
        let explained: Vec<_> = match route {
            Some(_) => rules.rules.iter().enumerate().filter_map(explain).collect(),
            // No pattern decides, even if one matches an ambiguous path.
            None => Vec::new(),
        };
        Self {
            decision,
            pattern: route.map(|route| route.pattern.text.to_string()),
            is_ambiguous: route.is_none() && rules.rules.iter().any(|rule| rule.matches(path)),
            others: rules.rules.len() - explained.len(),
            rules: explained,
        }
    }

    /// Returns the decision; [`Policy::decide`](crate::server::Policy::decide) returns the same.
    pub fn decision(&self) -> Decision {
        self.decision
    }

    /// Returns the pattern that decided: the most specific one that matches the path.
    pub fn pattern(&self) -> Option<&str> {
        self.pattern.as_deref()
    }

    /// Returns the rules whose pattern matches the path, in the order of the file.
    pub fn rules(&self) -> &[RuleExplanation] {
        &self.rules
    }
}

impl RuleExplanation {
    /// Returns the line of the rule in the file.
    pub fn line(&self) -> usize {
        self.line
    }

    /// Returns the name of the rule, if it has one.
    pub fn name(&self) -> Option<&str> {
        self.name.as_deref()
    }

    /// Returns the outcome of the rule.
    pub fn outcome(&self) -> &RuleOutcome {
        &self.outcome
    }
}

impl Rule {
    /// Whether this pattern alone matches the path.
    fn matches(&self, path: &str) -> bool {
        let mut alone = matchit::Router::new();
        alone.insert(&*self.pattern.text, ()).is_ok() && alone.at(path).is_ok()
    }
}

impl fmt::Display for Verbs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Any => f.write_str("any but CONNECT"),
            Self::Grpc => f.write_str("POST of gRPC methods"),
            Self::Listed(methods) => {
                let names: Vec<&str> = methods.iter().map(Method::as_str).collect();
                f.write_str(&presentable(&names.join(", ")))
            }
        }
    }
}

impl fmt::Display for RuleOutcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Allows => f.write_str("allows the request"),
            Self::LessSpecific { pattern } => {
                write!(f, "does not count: its pattern {pattern} is less specific")
            }
            Self::OtherMethods { methods } => write!(f, "is for other methods: {methods}"),
            Self::TokenRequired => f.write_str("is for callers with a token"),
            Self::OtherCallers => f.write_str("is for other callers"),
            Self::Claim { required } => write!(f, "requires another claim: {required}"),
        }
    }
}

impl fmt::Display for RuleExplanation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "line {}", self.line)?;
        if let Some(name) = &self.name {
            write!(f, " ({name})")?;
        }
        write!(f, ": {}", self.outcome)
    }
}

impl fmt::Display for PolicyExplanation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.pattern {
            Some(pattern) => writeln!(f, "pattern: {pattern}")?,
            None if self.is_ambiguous => {
                f.write_str(
                    "pattern: none, because programs may read this path in several ways\n",
                )?;
            }
            None => f.write_str("pattern: none matches the path\n")?,
        }
        for rule in &self.rules {
            writeln!(f, "{rule}")?;
        }
        match self.others {
            _ if self.is_ambiguous => {}
            0 => {}
            1 => f.write_str("1 rule is for other paths\n")?,
            others => writeln!(f, "{others} rules are for other paths")?,
        }
        f.write_str(match self.decision {
            Decision::Allow => "decision: allowed",
            Decision::AuthenticationRequired => "decision: a token is required",
            _ => "decision: denied",
        })?;
        match self.decision.reason() {
            Some(reason) => write!(f, ", {reason}"),
            None => Ok(()),
        }
    }
}
