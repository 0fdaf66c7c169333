//! Recognizes documents that are not sets of keys: users sometimes configure the wrong file.

use std::collections::HashMap;

use serde::de::IgnoredAny;
use serde_json::value::RawValue;

/// The bytes with which some editors begin a UTF-8 file. JSON does not allow them.
pub(crate) const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";

/// What was expected instead of the document.
#[derive(Clone, Copy, PartialEq, Eq)]
#[cfg_attr(
    not(any(feature = "server", feature = "client")),
    allow(dead_code, reason = "only sources expect maps")
)]
pub(crate) enum Expected {
    /// The keys of one trust domain.
    Keys,
    /// A map from trust domains to their keys.
    Map,
    /// An object whose names are trust domains.
    FlatMap,
    /// The output of `spire-agent api fetch jwt -output json`.
    AgentOutput,
}

/// What the document is, and what to use instead; `None` if it is not known. It repeats nothing of
/// the document.
pub(crate) fn wrong_kind(document: &[u8], expected: Expected) -> Option<&'static str> {
    if document.starts_with(b"\xff\xfe") || document.starts_with(b"\xfe\xff") {
        return Some("it is UTF-16, as PowerShell writes it; save it as UTF-8");
    }
    if let Some(rest) = document.strip_prefix(BYTE_ORDER_MARK) {
        return Some(wrong_kind(rest, expected).unwrap_or(
            "it begins with a UTF-8 byte order mark, which JSON does not allow; save it without one",
        ));
    }
    // Only the head: all kinds are recognized there.
    const HEAD: usize = 64 << 10;
    let head = String::from_utf8_lossy(document.get(..HEAD).unwrap_or(document));
    let text = head.trim_start();
    let has_line = |name: &str| text.lines().any(|line| line.starts_with(name));
    if has_line("apiVersion:") && has_line("kind:") {
        return Some(MANIFEST);
    }
    if text
        .lines()
        .any(|line| line.trim_start().starts_with("-----BEGIN "))
    {
        return Some(
            "it is PEM, not JSON; write the bundle with `spire-server bundle show -format spiffe`",
        );
    }
    if is_token(text.trim_end()) {
        return Some("it is a token, not a set of keys");
    }
    Names::read(std::str::from_utf8(document).ok()?)?.kind(expected)
}

const MANIFEST: &str = "it is a Kubernetes manifest; mount the ConfigMap as a volume and use the \
                        file of one key in it, or save that key's value as a file";

/// Whether it is a compact JWS or looks like one: three parts, and a header that is a JSON object.
fn is_token(text: &str) -> bool {
    let letter = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    text.starts_with("eyJ") && text.matches('.').count() == 2 && text.bytes().all(letter)
}

/// The names in a JSON document: at its top, or in the objects of a list.
#[derive(Default)]
struct Names {
    in_list: bool,
    tokens: bool,
    names: HashMap<String, IgnoredAny>,
}

impl Names {
    fn read(json: &str) -> Option<Self> {
        if !json.trim_start().starts_with('[') {
            let names = serde_json::from_str(json).ok()?;
            return Some(Self {
                names,
                ..Self::default()
            });
        }
        let mut all = Self {
            in_list: true,
            ..Self::default()
        };
        for element in serde_json::from_str::<Vec<&RawValue>>(json).ok()? {
            let raw = element.get();
            let text = raw
                .strip_prefix('"')
                .and_then(|text| text.strip_suffix('"'));
            all.tokens |= text.is_some_and(is_token);
            let names = serde_json::from_str::<HashMap<_, _>>(raw);
            all.names.extend(names.unwrap_or_default());
        }
        Some(all)
    }

    fn has(&self, name: &str) -> bool {
        self.names.contains_key(name)
    }

    fn kind(&self, expected: Expected) -> Option<&'static str> {
        if self.has("apiVersion") && self.has("kind") {
            return Some(MANIFEST);
        }
        if self.has("svids") || self.has("svid") {
            return Some(match self.has("bundles") {
                true => {
                    "it is JSON with tokens and bundles, as `spire-agent api fetch jwt` prints it \
                     with `-output json`; read it with `spire_agent`"
                }
                false => {
                    "it is JSON with tokens, as `spire-agent api fetch jwt` prints it; use the \
                     bundle, not the tokens"
                }
            });
        }
        if self.tokens || self.has("access_token") || self.has("id_token") {
            return Some("it is JSON with tokens, not with keys");
        }
        if self.has("jwks_uri") || self.has("authorization_endpoint") {
            return Some(
                "it is an OpenID discovery document; fetch the document that its `jwks_uri` names",
            );
        }
        if self.has("x509_authorities") || self.has("jwt_authorities") {
            return Some(
                "it is a bundle in SPIRE's own JSON; write it with `spire-server bundle show \
                 -format spiffe`",
            );
        }
        if self.has("kty") && !self.has("keys") {
            return Some(match self.in_list {
                true => "it is a list of JWKs; put it into an object: {\"keys\": [...]}",
                false => "it is a single JWK; put it into a set: {\"keys\": [{...}]}",
            });
        }
        match expected {
            Expected::Keys if self.has("trust_domains") => Some(
                "it is a map of several trust domains; read it with `bundle_map` or `jwks_map`",
            ),
            Expected::Map | Expected::FlatMap | Expected::AgentOutput if self.has("keys") => {
                Some("it has the keys of one trust domain; read it with `spiffe_bundle` or `jwks`")
            }
            Expected::FlatMap | Expected::AgentOutput if self.has("trust_domains") => {
                Some("it is a map with `trust_domains`; read it with `bundle_map` or `jwks_map`")
            }
            _ => None,
        }
    }
}
