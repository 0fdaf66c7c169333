//! Finds rules without effect.

use std::collections::HashMap;

use http::Method;

use super::above;
use super::error::{FilePolicyError, FilePolicyErrorReason as Reason};
use super::parse::{Callers, Rule, Verbs};
use super::rules::Route;

/// One method and one caller that a rule allows, on one pattern.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
struct Grant<'a> {
    route: usize,
    verb: Verb<'a>,
    caller: Caller<'a>,
    /// Zero means no required claims.
    claims: usize,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash)]
enum Verb<'a> {
    Any,
    Grpc,
    One(&'a Method),
}

#[derive(Clone, Copy, PartialEq, Eq, Hash)]
enum Caller<'a> {
    Public,
    Any,
    Under(&'a str),
    Id(&'a str),
}

/// Returns an error if other rules allow everything that a rule allows.
pub(super) fn check(text: &str, rules: &[Rule], routes: &[Route]) -> Result<(), FilePolicyError> {
    let mut claims_known: HashMap<String, usize> = HashMap::new();
    let mut claims_of = vec![0; rules.len()];
    for (claims, rule) in claims_of.iter_mut().zip(rules) {
        if !rule.claims.is_empty() {
            let next = claims_known.len() + 1;
            let key = format!("{:?}", rule.claims);
            *claims = *claims_known.entry(key).or_insert(next);
        }
    }
    let mut first: HashMap<Grant<'_>, usize> = HashMap::new();
    let all = || {
        routes.iter().enumerate().flat_map(|(route, it)| {
            let rules_of = it.rules.iter();
            rules_of.filter_map(move |at| Some((route, *at, rules.get(*at)?)))
        })
    };
    let claims_of = |at: usize| claims_of.get(at).copied().unwrap_or_default();
    for (route, at, rule) in all() {
        each(route, rule, claims_of(at), &mut |grant| {
            first.entry(grant).or_insert(at);
            true
        });
    }
    let mut covered = None;
    for (route, at, rule) in all() {
        let mut by: Option<(usize, bool)> = None;
        let is_covered = each(route, rule, claims_of(at), &mut |grant| {
            let other = covering(grant, &mut |wider| {
                first.get(&wider).copied().filter(|other| *other != at)
            });
            by = match (by, other) {
                (None, Some(other)) => Some((other, true)),
                (Some((first, alone)), Some(other)) => Some((first, alone && first == other)),
                (by, None) => by,
            };
            other.is_some()
        });
        // Reports the last one in the file: of two equal rules, the second.
        if let (true, Some(by)) = (is_covered, by)
            && covered.is_none_or(|(last, _)| at > last)
        {
            covered = Some((at, by));
        }
    }
    let found = covered.and_then(|(at, (by, alone))| Some((rules.get(at)?, rules.get(by)?, alone)));
    let Some((rule, by, alone)) = found else {
        return Ok(());
    };
    let others = if alone {
        "the rule"
    } else {
        "other rules, such as that"
    };
    let verb = if alone { "allows" } else { "allow" };
    let why = format!(
        "the rule has no effect: {others} in line {} {verb} all of its requests; remove it",
        by.line
    );
    Err(FilePolicyError::at(
        Reason::Invalid,
        text,
        rule.at.start,
        why,
    ))
}

/// Visits the grants of a rule, while `visit` returns `true`. Returns whether all were visited.
fn each<'a>(
    route: usize,
    rule: &'a Rule,
    claims: usize,
    visit: &mut dyn FnMut(Grant<'a>) -> bool,
) -> bool {
    let mut of_verb = |verb| {
        let mut of_caller = |caller| {
            visit(Grant {
                route,
                verb,
                caller,
                claims,
            })
        };
        match &rule.callers {
            Callers::Public => of_caller(Caller::Public),
            Callers::AnyTrustDomain => of_caller(Caller::Any),
            Callers::Listed { ids, prefixes } => {
                ids.iter().all(|id| of_caller(Caller::Id(id.as_str())))
                    && prefixes
                        .iter()
                        .all(|prefix| of_caller(Caller::Under(prefix.as_str())))
            }
        }
    };
    match &rule.verbs {
        Verbs::Any => of_verb(Verb::Any),
        Verbs::Grpc => of_verb(Verb::Grpc),
        Verbs::Listed(methods) => methods.iter().all(|method| of_verb(Verb::One(method))),
    }
}

/// Finds another rule with a grant that includes this one.
fn covering<'a>(
    grant: Grant<'a>,
    find: &mut dyn FnMut(Grant<'a>) -> Option<usize>,
) -> Option<usize> {
    let Grant {
        verb,
        caller,
        claims,
        ..
    } = grant;
    let connect = Verb::One(&Method::CONNECT);
    let verbs = [
        Some(verb),
        (verb != connect).then_some(Verb::Any),
        (verb == Verb::One(&Method::HEAD)).then_some(Verb::One(&Method::GET)),
        (verb == Verb::Grpc).then_some(Verb::One(&Method::POST)),
    ];
    let claims = [Some(claims), (claims != 0).then_some(0)];
    let mut with = |caller| {
        let mut pairs = verbs.into_iter().flatten().flat_map(|verb| {
            claims
                .into_iter()
                .flatten()
                .map(move |claims| (verb, claims))
        });
        pairs.find_map(|(verb, claims)| {
            find(Grant {
                verb,
                caller,
                claims,
                ..grant
            })
        })
    };
    let found = with(caller).or_else(|| with(Caller::Public)).or_else(|| {
        (caller != Caller::Public)
            .then(|| with(Caller::Any))
            .flatten()
    });
    match caller {
        Caller::Public | Caller::Any => found,
        Caller::Id(id) | Caller::Under(id) => {
            found.or_else(|| above(id, usize::MAX).find_map(|prefix| with(Caller::Under(prefix))))
        }
    }
}
