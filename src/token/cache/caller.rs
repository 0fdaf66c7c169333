//! The verified caller of a request that is forwarded.
//!
//! The client layer must not send a caller's token on, and the caller is known to the server layer.
//! The two do not import each other: the server registers here how it leaves a caller in a request.

use std::sync::OnceLock;

use http::Extensions;

use crate::verify::VerifiedSvid;

type Find = fn(&Extensions) -> Option<&VerifiedSvid>;

static FIND: OnceLock<Find> = OnceLock::new();

/// Says how a caller is found. Registered by each server layer that is built, always the same.
#[cfg_attr(
    not(feature = "server"),
    allow(dead_code, reason = "only a server leaves callers")
)]
pub(crate) fn register(find: Find) {
    FIND.get_or_init(|| find);
}

/// The caller that a server layer verified, if this request came in through one.
#[inline]
pub(crate) fn verified(extensions: &Extensions) -> Option<&VerifiedSvid> {
    FIND.get().and_then(|find| find(extensions))
}
