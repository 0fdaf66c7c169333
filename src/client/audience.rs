//! Whom a token is for, by where the request goes.

use std::collections::HashMap;
use std::fmt;
use std::hash::{BuildHasher, RandomState};
use std::sync::{Arc, PoisonError, RwLock};

use super::origin::{Origin, OriginError, Target};
use crate::spiffe_id::SpiffeId;
use crate::svid::{Identity, SvidRequest, SvidRequestError};

/// Whom tokens are for, and to which origins they may go.
///
/// A token is good for whoever receives it, so an audience is always bound to where it may be
/// sent; a client that follows a redirect would else sign for every host.
///
/// ```
/// use tower_spiffe::client::{Audience, AudienceError};
///
/// // One service, in one place or in several.
/// Audience::fixed("spiffe://x/reports").for_origin("https://reports:8443")?;
/// Audience::fixed("spiffe://x/reports").for_origins(["https://a", "https://b"])?;
///
/// // Several services.
/// Audience::map([
///     ("https://reports:8443", "spiffe://x/reports"),
///     ("https://ledger", "spiffe://x/ledger"),
/// ])?;
///
/// // A rule, for the origins of an allow-list.
/// Audience::from_origin(
///     |origin| format!("spiffe://x/{}", origin.host().split('.').next().unwrap_or_default()),
///     ["https://*.svc.example.org"],
/// )?;
///
/// // Above a tonic channel, which shows no origin: a promise of where requests go.
/// Audience::fixed("spiffe://x/reports").assume_origin("https://reports:8443")?;
///
/// assert!(Audience::fixed("").any_origin().is_err());
/// # Ok::<(), AudienceError>(())
/// ```
///
/// Put into the extensions of a request, it takes the place of the layer's own for that request.
/// Where it names no identity, that of the layer stays.
#[derive(Clone)]
pub struct Audience {
    choice: Choice,
    assumed: Option<Origin>,
    /// Named for the whole of it, so for what a request brings along too.
    identity: Option<Identity>,
}

#[derive(Clone)]
enum Choice {
    Rules(Arc<Rules>),
    Dynamic(Arc<Dynamic>),
    /// Only what a request's extensions say.
    PerRequest,
}

/// An audience that is not bound to an origin yet.
#[must_use = "bind it with `for_origin`, `any_origin` or `assume_origin`"]
#[derive(Debug, Clone)]
pub struct UnboundAudience {
    request: Result<SvidRequest, SvidRequestError>,
}

/// Why there is no such [`Audience`].
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum AudienceError {
    /// An audience or a hint is missing or empty.
    Request(SvidRequestError),
    /// An origin is none.
    Origin {
        /// The text, as configured.
        origin: String,
        /// What is wrong with it.
        error: OriginError,
    },
    /// The same origin is named twice.
    Twice(Origin),
    /// No origin is named at all.
    NoOrigin,
}

/// What a request's origin leads to.
pub(crate) enum Found<'a> {
    /// The rule at this place of [`Audience::requests`].
    Rule(usize, &'a SvidRequest),
    Made(SvidRequest),
    Nothing,
}

impl Audience {
    /// One audience, still to be bound to where its tokens may go.
    pub fn fixed(audience: impl AsRef<str>) -> UnboundAudience {
        UnboundAudience {
            request: SvidRequest::new([audience]),
        }
    }

    /// What is asked for, in full, still to be bound to where its tokens may go: several
    /// audiences, a SPIFFE ID, a hint.
    pub fn of(request: SvidRequest) -> UnboundAudience {
        UnboundAudience {
            request: Ok(request),
        }
    }

    /// An audience for each origin.
    ///
    /// # Errors
    /// A text that is no origin, an origin named twice, an empty audience, or none at all.
    pub fn map<O: AsRef<str>, A: AsRef<str>>(
        entries: impl IntoIterator<Item = (O, A)>,
    ) -> Result<Self, AudienceError> {
        let mut rules = Vec::new();
        for (origin, audience) in entries {
            let origin = parse(origin.as_ref())?;
            rules.push(Rule {
                bound: Bound::Origins([origin].into()),
                request: SvidRequest::new([audience]).map_err(AudienceError::Request)?,
            });
        }
        Self::rules(rules)
    }

    /// The audience that `audience` makes of the origin, for the origins of an allow-list:
    /// `https://host[:port]`, or `https://*.domain[:port]` for every host below a domain.
    ///
    /// # Errors
    /// A text that is no origin, or none at all.
    pub fn from_origin<O: AsRef<str>>(
        audience: impl Fn(&Origin) -> String + Send + Sync + 'static,
        allowed: impl IntoIterator<Item = O>,
    ) -> Result<Self, AudienceError> {
        let allowed: Result<Vec<_>, _> = allowed
            .into_iter()
            .map(|origin| Allowed::parse(origin.as_ref()))
            .collect();
        let allowed = allowed?;
        if allowed.is_empty() {
            return Err(AudienceError::NoOrigin);
        }
        Ok(Self::of_choice(Choice::Dynamic(Arc::new(Dynamic {
            audience: Arc::new(audience),
            allowed,
            identity: None,
            known: RwLock::default(),
            hasher: RandomState::new(),
        }))))
    }

    /// None but what the extensions of each request say.
    pub fn per_request() -> Self {
        Self::of_choice(Choice::PerRequest)
    }

    /// Promises that requests which show no origin go to this one. A request that shows one is
    /// judged by that.
    ///
    /// # Errors
    /// The text is no origin.
    pub fn assume_origin(mut self, origin: &str) -> Result<Self, AudienceError> {
        self.assumed = Some(parse(origin)?);
        Ok(self)
    }

    /// As this identity. Where several are registered for a workload, SPIRE's order is arbitrary,
    /// so name the one that the callee admits.
    #[must_use]
    pub fn spiffe_id(self, id: SpiffeId) -> Self {
        self.identified(Identity::id(id))
    }

    /// As the identity with this hint.
    ///
    /// # Errors
    /// The hint is empty.
    pub fn hint(self, hint: &str) -> Result<Self, AudienceError> {
        let identity = Identity::hint(hint).map_err(AudienceError::Request)?;
        Ok(self.identified(identity))
    }

    fn of_choice(choice: Choice) -> Self {
        Self {
            choice,
            assumed: None,
            identity: None,
        }
    }

    fn rules(rules: Vec<Rule>) -> Result<Self, AudienceError> {
        Ok(Self::of_choice(Choice::Rules(Arc::new(Rules::new(rules)?))))
    }

    fn identified(self, identity: Identity) -> Self {
        let choice = match self.choice {
            Choice::Rules(rules) => Choice::Rules(Arc::new(rules.identified(&identity))),
            Choice::Dynamic(dynamic) => Choice::Dynamic(Arc::new(dynamic.identified(&identity))),
            Choice::PerRequest => Choice::PerRequest,
        };
        Self {
            choice,
            identity: Some(identity),
            ..self
        }
    }

    /// What the audience of one request asks for, as the identity that this one names, unless it
    /// names its own.
    pub(crate) fn identify(&self, request: SvidRequest) -> SvidRequest {
        match &self.identity {
            Some(identity) if !request.names_an_identity() => {
                request.with_identity(identity.clone())
            }
            _ => request,
        }
    }

    /// What may be asked for, as far as that is known beforehand.
    pub(crate) fn requests(&self) -> impl Iterator<Item = &SvidRequest> {
        let rules = match &self.choice {
            Choice::Rules(rules) => rules.rules.as_slice(),
            _ => &[],
        };
        rules.iter().map(|rule| &rule.request)
    }

    pub(crate) fn assumed(&self) -> Option<Target<'_>> {
        self.assumed.as_ref().map(Origin::target)
    }

    pub(crate) fn find(&self, target: Target<'_>) -> Found<'_> {
        match &self.choice {
            Choice::Rules(rules) => rules.find(target),
            Choice::Dynamic(dynamic) => dynamic.find(target).map_or(Found::Nothing, Found::Made),
            Choice::PerRequest => Found::Nothing,
        }
    }
}

impl UnboundAudience {
    /// As this identity.
    pub fn spiffe_id(mut self, id: SpiffeId) -> Self {
        self.request = self.request.map(|request| request.with_spiffe_id(id));
        self
    }

    /// As the identity with this hint.
    pub fn hint(mut self, hint: &str) -> Self {
        self.request = self.request.and_then(|request| request.with_hint(hint));
        self
    }

    /// Tokens go to this origin, and to no other.
    ///
    /// # Errors
    /// The audience is empty, or the text is no origin.
    pub fn for_origin(self, origin: &str) -> Result<Audience, AudienceError> {
        self.for_origins([origin])
    }

    /// Tokens go to these origins, and to no other.
    ///
    /// # Errors
    /// The audience is empty, a text is no origin, or there is none.
    pub fn for_origins<O: AsRef<str>>(
        self,
        origins: impl IntoIterator<Item = O>,
    ) -> Result<Audience, AudienceError> {
        let origins: Result<Vec<_>, _> = origins
            .into_iter()
            .map(|origin| parse(origin.as_ref()))
            .collect();
        self.bound(Bound::Origins(origins?))
    }

    /// Tokens go wherever requests go: whoever is named by a redirect or by a request's URI gets a
    /// token that it can use against the audience.
    ///
    /// # Errors
    /// The audience is empty.
    pub fn any_origin(self) -> Result<Audience, AudienceError> {
        self.bound(Bound::Any)
    }

    /// Tokens go to this origin, and requests that show none are promised to go there: those above
    /// a tonic `Channel`, or above one connection.
    ///
    /// # Errors
    /// The audience is empty, or the text is no origin.
    pub fn assume_origin(self, origin: &str) -> Result<Audience, AudienceError> {
        self.for_origin(origin)?.assume_origin(origin)
    }

    fn bound(self, bound: Bound) -> Result<Audience, AudienceError> {
        let request = self.request.map_err(AudienceError::Request)?;
        Audience::rules(vec![Rule { bound, request }])
    }
}

// === rules that are known beforehand ===

struct Rules {
    rules: Vec<Rule>,
    /// By the hash of the origin, where there are too many rules to try one after the other.
    index: Option<HashMap<u64, Vec<usize>>>,
    hasher: RandomState,
}

#[derive(Clone)]
struct Rule {
    bound: Bound,
    request: SvidRequest,
}

#[derive(Clone)]
enum Bound {
    Any,
    Origins(Vec<Origin>),
}

impl Rules {
    const FEW: usize = 4;

    fn new(rules: Vec<Rule>) -> Result<Self, AudienceError> {
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

    fn find(&self, target: Target<'_>) -> Found<'_> {
        let found = match &self.index {
            None => self.rules.iter().position(|rule| rule.bound.admits(target)),
            Some(index) => index
                .get(&self.hasher.hash_one(target))
                .into_iter()
                .flatten()
                .copied()
                .find(|at| {
                    self.rules
                        .get(*at)
                        .is_some_and(|rule| rule.bound.admits(target))
                }),
        };
        match found.and_then(|at| Some((at, self.rules.get(at)?))) {
            Some((at, rule)) => Found::Rule(at, &rule.request),
            None => Found::Nothing,
        }
    }

    fn requests(&self) -> Vec<&SvidRequest> {
        self.rules.iter().map(|rule| &rule.request).collect()
    }

    fn identified(&self, identity: &Identity) -> Self {
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
}

impl Bound {
    fn admits(&self, target: Target<'_>) -> bool {
        match self {
            Self::Any => true,
            Self::Origins(origins) => origins.iter().any(|origin| origin.target() == target),
        }
    }
}

// === rules that are made as requests come ===

struct Dynamic {
    audience: Arc<dyn Fn(&Origin) -> String + Send + Sync>,
    allowed: Vec<Allowed>,
    identity: Option<Identity>,
    /// What was made of an origin, by the origin's hash; made anew where too many are known.
    known: RwLock<HashMap<u64, Vec<(Origin, SvidRequest)>>>,
    hasher: RandomState,
}

/// Origins that are allowed: one, or all those of hosts below a domain.
#[derive(Clone)]
enum Allowed {
    One(Origin),
    Below(Origin),
}

impl Allowed {
    fn parse(text: &str) -> Result<Self, AudienceError> {
        let Some(at) = text.find("://*.") else {
            return parse(text).map(Self::One);
        };
        let domain = [
            text.get(..at).unwrap_or_default(),
            text.get(at + 5..).unwrap_or_default(),
        ];
        match domain.join("://").parse::<Origin>() {
            // Every host below a single label would be a whole top-level domain, an address none.
            Ok(origin) if !origin.host().contains('.') || ends_an_address(origin.host()) => {
                Err(AudienceError::Origin {
                    origin: text.to_owned(),
                    error: OriginError::Host,
                })
            }
            Ok(origin) => Ok(Self::Below(origin)),
            Err(error) => Err(AudienceError::Origin {
                origin: text.to_owned(),
                error,
            }),
        }
    }

    fn admits(&self, target: Target<'_>) -> bool {
        match self {
            Self::One(origin) => origin.target() == target,
            Self::Below(domain) => target.is_below(domain.target()),
        }
    }
}

impl Dynamic {
    const MAX_KNOWN: usize = 16 * 1024;

    fn find(&self, target: Target<'_>) -> Option<SvidRequest> {
        let hash = self.hasher.hash_one(target);
        let find = |known: &HashMap<u64, Vec<(Origin, SvidRequest)>>| {
            let same = known.get(&hash)?;
            let (_, request) = same.iter().find(|(origin, _)| origin.target() == target)?;
            Some(request.clone())
        };
        if let Some(request) = find(&self.known.read().unwrap_or_else(PoisonError::into_inner)) {
            return Some(request);
        }
        if !self.allowed.iter().any(|allowed| allowed.admits(target)) {
            return None;
        }
        let origin = target.to_origin();
        // An empty audience means: none for this origin.
        let request = SvidRequest::new([(self.audience)(&origin)]).ok()?;
        let request = match &self.identity {
            Some(identity) => request.with_identity(identity.clone()),
            None => request,
        };
        let mut known = self.known.write().unwrap_or_else(PoisonError::into_inner);
        if known.len() >= Self::MAX_KNOWN {
            known.clear();
        }
        known
            .entry(hash)
            .or_default()
            .push((origin, request.clone()));
        Some(request)
    }

    fn identified(&self, identity: &Identity) -> Self {
        Self {
            audience: self.audience.clone(),
            allowed: self.allowed.clone(),
            identity: Some(identity.clone()),
            known: RwLock::default(),
            hasher: self.hasher.clone(),
        }
    }
}

/// Whether what ends so is read as an address by some or by all: in brackets, or with a number for
/// its last label.
fn ends_an_address(host: &str) -> bool {
    let last = host.rsplit('.').next().unwrap_or_default();
    let hex = last.strip_prefix("0x");
    let digits = |text: &str, hex: bool| {
        text.bytes()
            .all(|byte| byte.is_ascii_digit() || hex && byte.is_ascii_hexdigit())
    };
    host.starts_with('[') || hex.map_or_else(|| digits(last, false), |hex| digits(hex, true))
}

fn parse(origin: &str) -> Result<Origin, AudienceError> {
    origin.parse().map_err(|error| AudienceError::Origin {
        origin: origin.to_owned(),
        error,
    })
}

impl fmt::Debug for Audience {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut out = f.debug_struct("Audience");
        match &self.choice {
            Choice::Rules(rules) => out.field("requests", &rules.requests()),
            Choice::Dynamic(_) => out.field("requests", &"made of the origin"),
            Choice::PerRequest => out.field("requests", &"in each request"),
        };
        out.field("assumed", &self.assumed).finish()
    }
}

impl fmt::Display for AudienceError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Request(error) => error.fmt(f),
            Self::Origin { origin, error } => write!(f, "{origin:?}: {error}"),
            Self::Twice(origin) => {
                write!(f, "{origin} is named twice; say which audience is meant")
            }
            Self::NoOrigin => f.write_str(
                "no origin is named; name those that tokens may go to, or say `any_origin()`",
            ),
        }
    }
}

impl std::error::Error for AudienceError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Request(error) => Some(error),
            Self::Origin { error, .. } => Some(error),
            Self::Twice(_) | Self::NoOrigin => None,
        }
    }
}

#[cfg(test)]
mod tests;
