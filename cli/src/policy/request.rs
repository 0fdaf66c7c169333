//! A request and its caller, from the command line or a file.

use http::request::Parts;
use http::{Method, Request, Uri};
use serde_json::{Map, Value};
use tower_spiffe::testing::verified_svid_with_claims;
use tower_spiffe::{SpiffeId, VerifiedSvid};

/// Reads `GET /reports/7`.
pub(super) fn request(text: &str) -> Result<Parts, String> {
    let fix = "write a method in upper case and a path, as in \"GET /reports/7\"";
    let Some((method, target)) = text.trim().split_once(' ') else {
        return Err(format!("{text:?} is not a request; {fix}"));
    };
    let is_upper = method.bytes().all(|b| b.is_ascii_uppercase() || b == b'-');
    let method = Method::from_bytes(method.as_bytes())
        .ok()
        .filter(|_| is_upper);
    let method = method.ok_or_else(|| format!("{text:?} has an invalid method; {fix}"))?;
    let uri = target.trim().parse::<Uri>();
    let uri = uri.map_err(|error| format!("{text:?} has an invalid path: {error}; {fix}"))?;
    Ok(parts(method, uri))
}

/// Reads `/package.Service/Method`.
pub(super) fn grpc(path: &str) -> Result<Parts, String> {
    let uri = path.parse::<Uri>().ok().filter(|uri| uri.path() == path);
    let is_method = path.starts_with('/') && path.matches('/').count() == 2;
    match uri.filter(|_| is_method) {
        Some(uri) => Ok(parts(Method::POST, uri)),
        None => Err(format!(
            "{path:?} is not the path of a gRPC method; write `/package.Service/Method`"
        )),
    }
}

fn parts(method: Method, uri: Uri) -> Parts {
    let mut parts = Request::new(()).into_parts().0;
    (parts.method, parts.uri) = (method, uri);
    parts
}

/// Returns a verified caller with this ID and these claims, without a token.
pub(super) fn caller(id: &str, claims: Map<String, Value>) -> Result<VerifiedSvid, String> {
    match SpiffeId::parse(id) {
        Ok(id) => Ok(verified_svid_with_claims(id.as_str(), claims)),
        Err(error) => Err(format!("{id:?} is not a SPIFFE ID: {error}")),
    }
}

/// Reads claims in JSON.
pub(super) fn claims(text: &str) -> Result<Map<String, Value>, String> {
    serde_json::from_str(text)
        .map_err(|_| "the claims are not a JSON object, as in {\"groups\": [\"ops\"]}".to_owned())
}
