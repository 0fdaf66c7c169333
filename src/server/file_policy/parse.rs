//! The rules of a document, read from its tables.

use std::ops::Range;

use http::Method;
use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::error::{FilePolicyError, FilePolicyErrorReason as Reason};
use super::pattern::Pattern;
use super::table::{Table, Value, bounded, shown};
use crate::identity::{SpiffeId, TrustDomain};
use crate::presentable::presentable;
use crate::server::grpc_policy::{is_method_path, is_service_name};
use crate::server::{Claim, ClaimValue, PolicyError};

/// A rule with more methods is an error.
const MAX_METHODS: usize = 16;

/// A rule as written in the file.
#[derive(Debug)]
pub(super) struct Rule {
    pub(super) at: Range<usize>,
    pub(super) line: usize,
    pub(super) name: Option<Box<str>>,
    pub(super) pattern: Pattern,
    pub(super) verbs: Verbs,
    pub(super) callers: Callers,
    /// All of them are required. Sorted by name.
    pub(super) claims: Claims,
}

/// Claims by name.
type Claims = Box<[(Box<str>, Claim)]>;

/// The methods of a rule.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Verbs {
    /// All but `CONNECT`.
    Any,
    /// `GET` includes `HEAD`.
    Listed(Box<[Method]>),
    /// `POST` to the path of a gRPC method.
    Grpc,
}

/// The callers of a rule.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Callers {
    /// With or without a token.
    Public,
    AnyTrustDomain,
    Listed {
        ids: Box<[SpiffeId]>,
        /// These IDs and every ID under them. The ID of a trust domain has no path.
        prefixes: Box<[SpiffeId]>,
    },
}

impl Verbs {
    pub(super) fn allow(&self, method: &Method, path: &str) -> bool {
        match self {
            Self::Any => method != Method::CONNECT,
            Self::Listed(methods) => {
                methods.contains(method)
                    || (method == Method::HEAD && methods.contains(&Method::GET))
            }
            Self::Grpc => method == Method::POST && is_method_path(path),
        }
    }
}

/// Reads the rules of a document, in its order.
pub(super) fn rules(text: &str) -> Result<Vec<Rule>, FilePolicyError> {
    let table = DeTable::parse(text).map_err(|error| {
        let at = error.span().map_or(0, |span| span.start);
        // Quotes need no escape here.
        let why = presentable(error.message())
            .replace("\\\"", "\"")
            .replace("\\'", "'");
        let why = format!("this is not TOML: {why}");
        FilePolicyError::at(Reason::Syntax, text, at, why)
    })?;
    let table = Table {
        document: text,
        // A byte order mark is skipped by the parser.
        at: 0..0,
        entries: table.get_ref(),
    };
    table.keys(&["rule"])?;
    let mut rules = Vec::new();
    if let Some(value) = table.get("rule") {
        let DeValue::Array(items) = value.get_ref() else {
            return Err(table.wrong(value, "`rule` is not a list of tables; write `[[rule]]`"));
        };
        let (mut line, mut counted) = (1, 0);
        for item in items.iter() {
            let item = table.inner(item, "a rule")?;
            // Reads each byte once: a file may have many rules.
            let passed = text.as_bytes().get(counted..item.at.start);
            line += passed
                .unwrap_or_default()
                .iter()
                .filter(|b| **b == b'\n')
                .count();
            counted = item.at.start;
            rules.push(item.rule(line)?);
        }
    }
    if rules.is_empty() {
        let why = "the file has no rule, so it denies everything; add a `[[rule]]`";
        return Err(
            FilePolicyError::at(Reason::Invalid, text, 0, why).caused_by(PolicyError::Empty)
        );
    }
    Ok(rules)
}

impl Table<'_> {
    fn rule(&self, line: usize) -> Result<Rule, FilePolicyError> {
        self.keys(&[
            "name",
            "path",
            "methods",
            "grpc_service",
            "grpc_method",
            "public",
            "any_trust_domain",
            "trust_domains",
            "path_prefixes",
            "ids",
            "claims",
        ])?;
        let name = self.text("name")?.map(|name| (*name.get_ref()).into());
        let (pattern, verbs) = self.requests()?;
        let callers = self.callers()?;
        let claims = self.claims()?;
        if let (Callers::Public, Some(value)) = (&callers, self.get("claims")) {
            let why = "a public rule allows callers without a token, which have no claims; remove \
                       `public` or `claims`";
            return Err(self.wrong(value, why));
        }
        Ok(Rule {
            at: self.at.clone(),
            line,
            name,
            pattern,
            verbs,
            callers,
            claims,
        })
    }

    /// Which requests the rule is for.
    fn requests(&self) -> Result<(Pattern, Verbs), FilePolicyError> {
        let (path, service, method) = (
            self.text("path")?,
            self.text("grpc_service")?,
            self.text("grpc_method")?,
        );
        if let (None, Some(value)) = (&path, self.get("methods")) {
            let why = "`methods` needs a `path`; gRPC requests are always POST";
            return Err(self.wrong(value, why));
        }
        let (pattern, verbs) = match (path, service, method) {
            (Some(path), None, None) => (path, self.verbs()?),
            (None, Some(service), None) => {
                if !is_service_name(service.get_ref()) {
                    return Err(self.invalid(
                        &service,
                        PolicyError::ServiceName(bounded(service.get_ref(), 80)),
                        "is not the full name of a gRPC service; write `package.Service`",
                    ));
                }
                let text = format!("/{}/{{method}}", service.get_ref());
                return Ok((self.pattern(&text, service.span())?, Verbs::Grpc));
            }
            (None, None, Some(method)) => {
                if !is_method_path(method.get_ref()) {
                    return Err(self.invalid(
                        &method,
                        PolicyError::MethodPath(bounded(method.get_ref(), 80)),
                        "is not the path of a gRPC method; write `/package.Service/Method`, or \
                         `grpc_service` for all methods",
                    ));
                }
                (method, Verbs::Grpc)
            }
            (None, None, None) => {
                let why =
                    "the rule matches no request; add `path`, `grpc_service` or `grpc_method`";
                return Err(self.error(why));
            }
            _ => {
                let why = "a rule has one of `path`, `grpc_service` and `grpc_method`; write one \
                           rule for each";
                return Err(self.error(why));
            }
        };
        Ok((self.pattern(pattern.get_ref(), pattern.span())?, verbs))
    }

    fn pattern(&self, text: &str, at: Range<usize>) -> Result<Pattern, FilePolicyError> {
        Pattern::parse(text).map_err(|why| {
            let why = format!("{} is not a path pattern: {why}", shown(text));
            self.error_at(at.start, why)
        })
    }

    fn verbs(&self) -> Result<Verbs, FilePolicyError> {
        let Some(value) = self.get("methods") else {
            let why =
                "the rule has no `methods`; write `methods = [\"GET\"]`, or `methods = \"any\"`";
            return Err(self.error(why));
        };
        if value.get_ref().as_str() == Some("any") {
            return Ok(Verbs::Any);
        }
        let texts = self.texts("methods")?;
        if texts.len() > MAX_METHODS {
            let why =
                "`methods` has more than 16 entries; write `methods = \"any\"`, or a second rule";
            return Err(self.wrong(value, why));
        }
        let methods = texts.iter().map(|text| {
            let is_upper = |b: u8| b.is_ascii_uppercase() || b == b'-';
            let is_method = text.get_ref().bytes().all(is_upper);
            let method = Method::from_bytes(text.get_ref().as_bytes());
            method.ok().filter(|_| is_method).ok_or_else(|| {
                let text_shown = shown(text.get_ref());
                let why =
                    format!("{text_shown} is not a method; write it in upper case, as in \"GET\"");
                self.wrong(text, why)
            })
        });
        Ok(Verbs::Listed(methods.collect::<Result<_, _>>()?))
    }

    fn ids(&self, key: &str) -> Result<Vec<SpiffeId>, FilePolicyError> {
        let ids = self.texts(key)?.into_iter().map(|text| {
            SpiffeId::parse(text.get_ref()).map_err(|error| {
                let why = format!("is not a SPIFFE ID: {error}");
                let text_shown = bounded(text.get_ref(), 80);
                let source = PolicyError::SpiffeId {
                    text: text_shown,
                    error,
                };
                self.invalid(&text, source, &why)
            })
        });
        ids.collect()
    }

    /// Which callers the rule allows.
    fn callers(&self) -> Result<Callers, FilePolicyError> {
        let (public, any) = (self.flag("public")?, self.flag("any_trust_domain")?);
        let ids: Box<[SpiffeId]> = self.ids("ids")?.into();
        let mut prefixes = self.ids("path_prefixes")?;
        for text in self.texts("trust_domains")? {
            let domain = TrustDomain::parse(text.get_ref()).map_err(|error| {
                let wrong = error.to_string();
                let source = PolicyError::TrustDomain {
                    text: bounded(text.get_ref(), 80),
                    error,
                };
                self.invalid(&text, source, &format!("is not a trust domain: {wrong}"))
            })?;
            prefixes.push(domain.to_spiffe_id());
        }
        match (public, any, ids.is_empty() && prefixes.is_empty()) {
            (true, false, true) => Ok(Callers::Public),
            (false, true, true) => Ok(Callers::AnyTrustDomain),
            (false, false, false) => Ok(Callers::Listed {
                ids,
                prefixes: prefixes.into(),
            }),
            (false, false, true) => {
                let why = "the rule names no callers; add `ids`, `path_prefixes`, `trust_domains`, \
                           `any_trust_domain = true` or `public = true`";
                Err(self.error(why).caused_by(PolicyError::Empty))
            }
            _ => {
                let why = "`public` and `any_trust_domain` allow other callers as well; remove them, \
                           or the other callers";
                Err(self.error(why))
            }
        }
    }

    fn claims(&self) -> Result<Claims, FilePolicyError> {
        let Some(value) = self.get("claims") else {
            return Ok(Box::default());
        };
        let table = self.inner(value, "`claims`")?;
        if table.entries.is_empty() {
            let why = "`claims` is empty; leave it out if no claim is required";
            return Err(self.wrong(value, why));
        }
        // The table is sorted by name.
        let claims = table.entries.iter().map(|(name, value)| {
            let claim = match value.get_ref() {
                DeValue::Table(_) => table.inner(value, "a claim")?.claim()?,
                _ => Claim::equals(self.scalar(value)?),
            };
            Ok((name.get_ref().as_ref().into(), claim))
        });
        claims.collect()
    }

    /// One operator and its operand.
    fn claim(&self) -> Result<Claim, FilePolicyError> {
        self.keys(&["equals", "one_of", "contains", "contains_any"])?;
        let mut entries = self.entries.iter();
        let (Some((operator, value)), None) = (entries.next(), entries.next()) else {
            let why = "a claim needs one of `equals`, `one_of`, `contains` and `contains_any`";
            return Err(self.error(why));
        };
        match operator.get_ref().as_ref() {
            "equals" => Ok(Claim::equals(self.scalar(value)?)),
            "contains" => Ok(Claim::contains(self.scalar(value)?)),
            operator => {
                let items = value.get_ref().as_array().filter(|items| !items.is_empty());
                let Some(items) = items else {
                    let why = format!("`{operator}` needs a list of values");
                    return Err(self.wrong(value, why));
                };
                let values = items.iter().map(|item| self.scalar(item));
                let values: Vec<ClaimValue> = values.collect::<Result<_, _>>()?;
                let claim = match operator {
                    "one_of" => Claim::one_of(values),
                    _ => Claim::contains_any(values),
                };
                claim.map_err(|error| self.wrong(value, error.to_string()))
            }
        }
    }

    fn scalar(&self, value: &Value<'_>) -> Result<ClaimValue, FilePolicyError> {
        let scalar = match value.get_ref() {
            DeValue::String(text) => Some(ClaimValue::from(text.as_ref())),
            DeValue::Boolean(boolean) => Some(ClaimValue::from(*boolean)),
            DeValue::Integer(integer) => i64::from_str_radix(integer.as_str(), integer.radix())
                .ok()
                .map(ClaimValue::from),
            _ => None,
        };
        let why = "the value of a claim is not a string, a boolean or an integer of 64 bits";
        scalar.ok_or_else(|| self.wrong(value, why))
    }

    fn invalid(&self, text: &Spanned<&str>, source: PolicyError, why: &str) -> FilePolicyError {
        let why = format!("{} {why}", shown(text.get_ref()));
        self.wrong(text, why).caused_by(source)
    }
}
