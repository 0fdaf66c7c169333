//! The audience of a token, by the origin of the request.

mod by_origin;
mod dynamic;
mod rules;

use std::fmt;
use std::sync::Arc;

use self::dynamic::{Allowed, Dynamic};
use self::rules::{Bound, Rule, Rules};
use super::origin::{Origin, OriginError, Target};
use crate::identity::SpiffeId;
use crate::token::{Identity, SvidRequest, SvidRequestError, TokenError};

/// The audience of tokens, and the origins that they may be sent to.
///
/// A server that receives a token can use it, so an audience is always bound to origins. Otherwise
/// a client that follows redirects would send tokens to every host.
///
/// ```
/// use tower_spiffe::client::{Audience, AudienceError};
///
/// // One service, at one origin or at several.
/// Audience::fixed("spiffe://x/reports").for_origin("https://reports:8443")?;
/// Audience::fixed("spiffe://x/reports").for_origins(["https://a", "https://b"])?;
///
/// // Several services.
/// Audience::map([
///     ("https://reports:8443", "spiffe://x/reports"),
///     ("https://ledger", "spiffe://x/ledger"),
/// ])?;
///
/// // A rule for the origins of an allow-list. The audience contains everything that the wildcard matched.
/// Audience::from_origin(
///     |origin| match origin.host().strip_suffix(".svc.example.org") {
///         Some(service) => Some(format!("spiffe://x/{service}")),
///         None => None, // no token
///     },
///     ["https://*.svc.example.org"],
/// )?;
///
/// // For a tonic channel, whose requests have no origin: states where they go.
/// Audience::fixed("spiffe://x/reports").assume_origin("https://reports:8443")?;
///
/// assert!(Audience::fixed("").any_origin().is_err());
/// # Ok::<(), AudienceError>(())
/// ```
///
/// An `Audience` in the extensions of a request replaces the audience of the layer for this
/// request. If it has no identity, the identity of the layer is used.
#[derive(Clone)]
pub struct Audience {
    choice: Choice,
    assumed: Option<Origin>,
    /// Also applies to the audience in a request's extensions.
    identity: Option<Identity>,
    single_use: bool,
    #[cfg(feature = "oauth")]
    on_behalf_of_caller: bool,
}

#[derive(Clone)]
enum Choice {
    Rules(Arc<Rules>),
    Dynamic(Arc<Dynamic>),
    /// Only the audience in a request's extensions.
    PerRequest,
}

/// An audience that is not bound to an origin yet. Bind it before you set an identity or single-use
/// tokens.
#[must_use = "bind it with `for_origin`, `any_origin` or `assume_origin`"]
#[derive(Debug, Clone)]
pub struct UnboundAudience {
    request: Result<SvidRequest, SvidRequestError>,
}

/// Why an [`Audience`] cannot be built.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum AudienceError {
    /// An audience or a hint is missing or empty.
    Request(SvidRequestError),
    /// An origin is invalid.
    Origin {
        /// The text, as configured.
        origin: String,
        /// Why it is invalid.
        error: OriginError,
    },
    /// The same origin is listed twice.
    Twice(Origin),
    /// There are no origins.
    NoOrigin,
}

/// The result of a look-up by origin.
pub(crate) enum Found<'a> {
    /// The rule at this index of [`Audience::requests`].
    Rule(usize, &'a SvidRequest),
    Made(SvidRequest),
    /// The audience that [`Audience::from_origin`] derived from the origin is invalid.
    Invalid(TokenError),
    Nothing,
}

impl Audience {
    /// Creates one audience. Bind it to the origins of its tokens next.
    pub fn fixed(audience: impl AsRef<str>) -> UnboundAudience {
        UnboundAudience {
            request: SvidRequest::new([audience]),
        }
    }

    /// Creates an audience from a whole request (several audiences, a SPIFFE ID, a hint). Bind it
    /// to the origins of its tokens next.
    pub fn from_request(request: SvidRequest) -> UnboundAudience {
        UnboundAudience {
            request: Ok(request),
        }
    }

    /// Creates an audience from pairs of an origin and its audience.
    ///
    /// # Errors
    /// An origin is invalid or listed twice, an audience is empty, or there are no pairs.
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

    /// Creates the audience from the origin, for the origins of an allow-list:
    /// `https://host[:port]`, or `https://*.domain[:port]`.
    ///
    /// As in TLS, `*` stands for exactly one label: `https://*.svc.example.org` matches
    /// `https://reports.svc.example.org`, but not `https://a.reports.svc.example.org` or
    /// `https://svc.example.org`. For several labels write one `*` for each, leftmost only:
    /// `https://*.*.svc.example.org`. The domain has two labels or more. A pattern that ends with a
    /// dot matches absolute host names only. A pattern without the dot does not match them.
    ///
    /// If `audience` returns `None`, requests to this origin get no token. If it returns an invalid
    /// audience (empty, or with white space at an end), they fail with
    /// [`InvalidRequest`](crate::token::TokenErrorReason::InvalidRequest).
    ///
    /// **Derive the audience from all parts that vary in the allowed hosts.** Take
    /// `https://*.*.svc.example.org` with the hosts `reports.team-a` and `reports.team-b`. If the
    /// audience is made from the first label only, each of these hosts gets tokens that the other
    /// one accepts.
    ///
    /// # Errors
    /// Returns an error if a text is not an origin, or if the list is empty.
    pub fn from_origin<O: AsRef<str>>(
        audience: impl Fn(&Origin) -> Option<String> + Send + Sync + 'static,
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
        Ok(Self::of_choice(Choice::Dynamic(Arc::new(Dynamic::new(
            Box::new(audience),
            allowed,
        )))))
    }

    /// Uses only the audience in the extensions of each request.
    pub fn per_request() -> Self {
        Self::of_choice(Choice::PerRequest)
    }

    /// States that requests without an origin go to this one. If a request has an origin, its own
    /// origin is used.
    ///
    /// # Errors
    /// The origin is invalid.
    pub fn assume_origin(mut self, origin: &str) -> Result<Self, AudienceError> {
        self.assumed = Some(parse(origin)?);
        Ok(self)
    }

    /// Requests tokens of this identity, also for audiences in the extensions of requests that have no
    /// identity. If several identities are registered for a workload, SPIRE's order is arbitrary and
    /// may change: name the identity that the called service allows.
    #[must_use]
    pub fn spiffe_id(self, id: SpiffeId) -> Self {
        self.identified(Identity::id(id))
    }

    /// Requests tokens of the identity with this hint, as [`spiffe_id`](Self::spiffe_id) does.
    ///
    /// # Errors
    /// The hint is empty.
    pub fn hint(self, hint: &str) -> Result<Self, AudienceError> {
        let identity = Identity::hint(hint).map_err(AudienceError::Request)?;
        Ok(self.identified(identity))
    }

    /// Fetches a separate token for each request ([`SvidRequest::single_use`]), even if its
    /// audience is in the request's extensions.
    ///
    /// Requests through an interceptor fail, because it cannot wait. Put retries outside the layer,
    /// so that each attempt gets another token.
    ///
    /// ```
    /// use tower_spiffe::Audience;
    ///
    /// Audience::fixed("https://keycloak/realms/main").for_origin("https://keycloak")?.single_use();
    /// # Ok::<(), tower_spiffe::client::AudienceError>(())
    /// ```
    #[must_use]
    pub fn single_use(self) -> Self {
        Self {
            single_use: true,
            ..self.each(SvidRequest::single_use)
        }
    }

    /// Exchanges the token of the caller for an access token, for each request. Needs
    /// [`AccessTokens`](crate::oauth::AccessTokens) as the source, with
    /// [`token_exchange`](crate::oauth::AccessTokensBuilder::token_exchange).
    ///
    /// The subject token is the [`SubjectToken`](crate::oauth::SubjectToken) in the extensions of
    /// the request. Without one, it is the token of the verified caller. For this, the request must
    /// be a forwarded request of that caller and still have its `authorization` header, which a
    /// `ValidateJwtSvidLayer` with `keep_credential` keeps. Otherwise the request fails with
    /// [`InvalidRequest`](crate::token::TokenErrorReason::InvalidRequest): it is never sent with a
    /// token of this workload. A `reqwest::Request` has no extensions, so it fails; requests of
    /// `reqwest_middleware` have them.
    ///
    /// By default only requests with a `SubjectToken` are on behalf of a caller.
    #[cfg(feature = "oauth")]
    #[must_use]
    pub fn on_behalf_of_caller(self) -> Self {
        Self {
            on_behalf_of_caller: true,
            ..self
        }
    }

    #[cfg(feature = "oauth")]
    pub(crate) fn is_on_behalf_of_caller(&self) -> bool {
        self.on_behalf_of_caller
    }

    fn of_choice(choice: Choice) -> Self {
        Self {
            choice,
            assumed: None,
            identity: None,
            single_use: false,
            #[cfg(feature = "oauth")]
            on_behalf_of_caller: false,
        }
    }

    fn rules(rules: Vec<Rule>) -> Result<Self, AudienceError> {
        Ok(Self::of_choice(Choice::Rules(Arc::new(Rules::new(rules)?))))
    }

    fn identified(self, identity: Identity) -> Self {
        let audience = self.each(|request| request.with_identity(identity.clone()));
        Self {
            identity: Some(identity),
            ..audience
        }
    }

    /// Changes each request that is known in advance.
    fn each(mut self, change: impl Fn(SvidRequest) -> SvidRequest) -> Self {
        if let Choice::Rules(rules) = &mut self.choice {
            for rule in &mut Arc::make_mut(rules).rules {
                rule.request = change(rule.request.clone());
            }
        }
        self
    }

    /// Applies the identity and the single-use mark of this audience to a request that is not known
    /// in advance.
    pub(crate) fn identify(&self, request: SvidRequest) -> SvidRequest {
        let request = match &self.identity {
            Some(identity) if !request.names_an_identity() => {
                request.with_identity(identity.clone())
            }
            _ => request,
        };
        if self.single_use {
            request.single_use()
        } else {
            request
        }
    }

    /// The requests that are known in advance.
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

    /// Looks up an https URI by its authority as text. If nothing is found, use
    /// [`find`](Self::find).
    #[inline]
    pub(crate) fn find_as_written(&self, authority: &str) -> Option<(usize, &SvidRequest)> {
        match &self.choice {
            Choice::Rules(rules) => rules.find_as_written(authority),
            _ => None,
        }
    }

    pub(crate) fn find(&self, target: Target<'_>) -> Found<'_> {
        match &self.choice {
            Choice::Rules(rules) => rules.find(target),
            Choice::Dynamic(dynamic) => match dynamic.find(target) {
                Found::Made(request) => Found::Made(self.identify(request)),
                other => other,
            },
            Choice::PerRequest => Found::Nothing,
        }
    }
}

impl UnboundAudience {
    /// Allows tokens for this origin only.
    ///
    /// # Errors
    /// The audience is empty, or the origin is invalid.
    pub fn for_origin(self, origin: &str) -> Result<Audience, AudienceError> {
        self.for_origins([origin])
    }

    /// Allows tokens for these origins only.
    ///
    /// # Errors
    /// The audience is empty, an origin is invalid, or there are no origins.
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

    /// Allows tokens for every origin, including absolute host names: every server that a redirect
    /// or the URI of a request names gets a token that it can use against the audience. A `Host`
    /// header must still match the URI.
    ///
    /// # Errors
    /// The audience is empty.
    pub fn any_origin(self) -> Result<Audience, AudienceError> {
        self.bound(Bound::Any)
    }

    /// Allows tokens for this origin only, and states that requests without an origin go there:
    /// requests of a tonic `Channel`, or of a single connection.
    ///
    /// # Errors
    /// The audience is empty, or the origin is invalid.
    pub fn assume_origin(self, origin: &str) -> Result<Audience, AudienceError> {
        self.for_origin(origin)?.assume_origin(origin)
    }

    fn bound(self, bound: Bound) -> Result<Audience, AudienceError> {
        let request = self.request.map_err(AudienceError::Request)?;
        let single_use = request.is_single_use();
        let audience = Audience::rules(vec![Rule { bound, request }])?;
        Ok(Audience {
            single_use,
            ..audience
        })
    }
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
            Choice::Rules(_) => out.field("requests", &self.requests().collect::<Vec<_>>()),
            Choice::Dynamic(_) => out.field("requests", &"derived from the origin"),
            Choice::PerRequest => out.field("requests", &"in each request"),
        };
        out.field("assumed", &self.assumed).finish()
    }
}

impl fmt::Display for AudienceError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Request(error) => error.fmt(f),
            Self::Origin { origin, error } => {
                write!(f, "{origin:?} is not a valid origin: {error}")?;
                if origin.contains('*') {
                    f.write_str(
                        "; wildcards are allowed in `Audience::from_origin` only, each as a whole \
                         label in front of a domain of two labels or more: \
                         `https://*.example.org`, `https://*.*.example.org`",
                    )?;
                }
                Ok(())
            }
            Self::Twice(origin) => {
                write!(f, "{origin} is listed twice; keep one audience for it")
            }
            Self::NoOrigin => f.write_str(
                "there are no origins; list the origins that tokens may be sent to, or call `any_origin()`",
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
