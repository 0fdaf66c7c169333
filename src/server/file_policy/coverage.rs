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
    let claims_of = rules.iter().map(|rule| {
        let next = claims_known.len() + 1;
        match &*rule.claims {
            [] => 0,
            claims => *claims_known.entry(format!("{claims:?}")).or_insert(next),
        }
    });
    let claims_of: Vec<usize> = claims_of.collect();
    let all = || {
        routes.iter().enumerate().flat_map(|(route, it)| {
            it.rules.iter().filter_map({
                let claims_of = &claims_of;
                move |at| Some((*at, grants(route, rules.get(*at)?, *claims_of.get(*at)?)))
            })
        })
    };
    let mut first: HashMap<Grant<'_>, usize> = HashMap::new();
    for (at, grants) in all() {
        for grant in grants {
            first.entry(grant).or_insert(at);
        }
    }
    // Reports the last one in the file: of two equal rules, the second.
    let covered = all().filter_map(|(at, mut grants)| {
        let mut others = Vec::new();
        let is_covered = grants.all(|grant| {
            let known = wider(grant).filter_map(|wider| first.get(&wider));
            let other = known.copied().find(|other| *other != at);
            others.extend(other);
            other.is_some()
        });
        is_covered.then_some((at, others))
    });
    let found = covered.max_by_key(|(at, _)| *at).and_then(|(at, others)| {
        let by = others.first()?;
        let alone = others.iter().all(|other| other == by);
        Some((rules.get(at)?, rules.get(*by)?, alone))
    });
    let Some((rule, by, alone)) = found else {
        return Ok(());
    };
    let (others, verb) = match alone {
        true => ("the rule", "allows"),
        false => ("other rules, such as that", "allow"),
    };
    let why = format!(
        "the rule has no effect: {others} in line {} {verb} all of its requests; remove it",
        by.line
    );
    let at = rule.at.start;
    Err(FilePolicyError::at(Reason::Invalid, text, at, why))
}

/// The grants of a rule on one pattern.
fn grants(route: usize, rule: &Rule, claims: usize) -> impl Iterator<Item = Grant<'_>> {
    let verbs: Vec<Verb<'_>> = match &rule.verbs {
        Verbs::Any => vec![Verb::Any],
        Verbs::Grpc => vec![Verb::Grpc],
        Verbs::Listed(methods) => methods.iter().map(Verb::One).collect(),
    };
    let callers: Vec<Caller<'_>> = match &rule.callers {
        Callers::Public => vec![Caller::Public],
        Callers::AnyTrustDomain => vec![Caller::Any],
        Callers::Listed { ids, prefixes } => {
            let prefixes = prefixes.iter().map(|prefix| Caller::Under(prefix.as_str()));
            let ids = ids.iter().map(|id| Caller::Id(id.as_str()));
            ids.chain(prefixes).collect()
        }
    };
    verbs.into_iter().flat_map(move |verb| {
        callers.clone().into_iter().map(move |caller| Grant {
            route,
            verb,
            caller,
            claims,
        })
    })
}

/// The grants that include this one, and itself.
fn wider(grant: Grant<'_>) -> impl Iterator<Item = Grant<'_>> {
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
    let any = (caller != Caller::Public).then_some(Caller::Any);
    let under = match caller {
        Caller::Public | Caller::Any => None,
        Caller::Id(id) | Caller::Under(id) => Some(above(id, usize::MAX).map(Caller::Under)),
    };
    let callers = [caller, Caller::Public].into_iter().chain(any);
    let callers = callers.chain(under.into_iter().flatten());
    callers.flat_map(move |caller| {
        verbs.into_iter().flatten().flat_map(move |verb| {
            let claims = claims.into_iter().flatten();
            claims.map(move |claims| Grant {
                verb,
                caller,
                claims,
                ..grant
            })
        })
    })
}
