//! Rules that are known in advance: an audience for each origin, or one for several.

use std::collections::HashMap;
use std::collections::hash_map::RandomState;
use std::hash::BuildHasher;

use super::{AudienceError, Found};
use crate::client::Origin;
use crate::client::origin::Target;
use crate::token::{Identity, SvidRequest};

pub(super) struct Rules {
    pub(super) rules: Vec<Rule>,
    /// The rules by the hash of the origin, if there are too many to scan.
    index: Option<HashMap<u64, Vec<usize>>>,
    hasher: RandomState,
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
        let hasher = RandomState::new();
        let mut index: HashMap<u64, Vec<usize>> = HashMap::new();
        let mut seen = std::collections::HashSet::new();
        for (at, rule) in rules.iter().enumerate() {
            let Bound::Origins(origins) = &rule.bound else {
                continue;
            };
            if origins.is_empty() {
                return Err(AudienceError::NoOrigin);
            }
            for origin in origins {
                if !seen.insert(origin) {
                    return Err(AudienceError::Twice(origin.clone()));
                }
                index
                    .entry(hasher.hash_one(origin.target()))
                    .or_default()
                    .push(at);
            }
        }
        if rules.is_empty() {
            return Err(AudienceError::NoOrigin);
        }
        let index = (seen.len() > Self::FEW).then_some(index);
        Ok(Self {
            rules,
            index,
            hasher,
        })
    }

    pub(super) fn find(&self, target: Target<'_>) -> Found<'_> {
        let found = match &self.index {
            None => self
                .rules
                .iter()
                .position(|rule| rule.bound.matches(target)),
            Some(index) => index
                .get(&self.hasher.hash_one(target))
                .into_iter()
                .flatten()
                .copied()
                .find(|at| {
                    self.rules
                        .get(*at)
                        .is_some_and(|rule| rule.bound.matches(target))
                }),
        };
        match found.and_then(|at| Some((at, self.rules.get(at)?))) {
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

    pub(super) fn requests(&self) -> Vec<&SvidRequest> {
        self.rules.iter().map(|rule| &rule.request).collect()
    }

    pub(super) fn identified(&self, identity: &Identity) -> Self {
        let mut rules = self.rules.clone();
        for rule in &mut rules {
            rule.request = rule.request.clone().with_identity(identity.clone());
        }
        Self {
            rules,
            index: self.index.clone(),
            hasher: self.hasher.clone(),
        }
    }

    pub(super) fn single_use(&self) -> Self {
        let mut rules = self.rules.clone();
        for rule in &mut rules {
            rule.request = rule.request.clone().single_use();
        }
        Self {
            rules,
            index: self.index.clone(),
            hasher: self.hasher.clone(),
        }
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
