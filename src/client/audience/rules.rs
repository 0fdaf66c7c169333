//! Rules that are known in advance: an audience for each origin, or one for several.

use super::by_origin::ByOrigin;
use super::{AudienceError, Found};
use crate::client::Origin;
use crate::client::origin::Target;
use crate::token::SvidRequest;

#[derive(Clone)]
pub(super) struct Rules {
    pub(super) rules: Vec<Rule>,
    /// The rules by origin, if there are too many to scan.
    index: Option<ByOrigin<usize>>,
}

#[derive(Clone)]
pub(super) struct Rule {
    pub(super) bound: Bound,
    pub(super) request: SvidRequest,
}

#[derive(Clone)]
pub(super) enum Bound {
    Any,
    Origins(Vec<Origin>),
}

impl Rules {
    const FEW: usize = 4;

    pub(super) fn new(rules: Vec<Rule>) -> Result<Self, AudienceError> {
        let mut index = ByOrigin::new();
        for (at, rule) in rules.iter().enumerate() {
            let Bound::Origins(origins) = &rule.bound else {
                continue;
            };
            if origins.is_empty() {
                return Err(AudienceError::NoOrigin);
            }
            for origin in origins {
                if index.get(origin.target()).is_some() {
                    return Err(AudienceError::Twice(origin.clone()));
                }
                index.insert(origin.clone(), at);
            }
        }
        if rules.is_empty() {
            return Err(AudienceError::NoOrigin);
        }
        let index = (index.len() > Self::FEW).then_some(index);
        Ok(Self { rules, index })
    }

    pub(super) fn find(&self, target: Target<'_>) -> Found<'_> {
        let at = match &self.index {
            None => self
                .rules
                .iter()
                .position(|rule| rule.bound.matches(target)),
            Some(index) => index.get(target).copied(),
        };
        match at.and_then(|at| Some((at, self.rules.get(at)?))) {
            Some((at, rule)) => Found::Rule(at, &rule.request),
            None => Found::Nothing,
        }
    }

    /// Looks up an https URI by its authority as text, if there are few rules.
    #[inline]
    pub(super) fn find_as_written(&self, authority: &str) -> Option<(usize, &SvidRequest)> {
        if self.index.is_some() {
            return None;
        }
        let mut rules = self.rules.iter().enumerate();
        let (at, rule) = rules.find(|(_, rule)| match &rule.bound {
            Bound::Any => false,
            Bound::Origins(origins) => origins
                .iter()
                .any(|origin| origin.is_https_as_written(authority)),
        })?;
        Some((at, &rule.request))
    }
}

impl Bound {
    fn matches(&self, target: Target<'_>) -> bool {
        match self {
            Self::Any => true,
            Self::Origins(origins) => origins.iter().any(|origin| origin.target() == target),
        }
    }
}
