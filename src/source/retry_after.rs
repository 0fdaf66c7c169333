//! The `Retry-After` of a response.

use std::time::{Duration, SystemTime};

use http::HeaderMap;
use http::header::RETRY_AFTER;

use crate::clock::UnixTime;

/// How long the server asks to wait, in seconds or until a date (RFC 9110 section 10.2.3).
pub(crate) fn retry_after(headers: &HeaderMap, now: UnixTime) -> Option<Duration> {
    let text = headers.get(RETRY_AFTER)?.to_str().ok()?.trim();
    if text.bytes().all(|byte| byte.is_ascii_digit()) && !text.is_empty() {
        // A number that is too large for the type is a long wait.
        return Some(Duration::from_secs(text.parse().unwrap_or(u64::MAX)));
    }
    let date: SystemTime = httpdate::parse_http_date(text).ok()?;
    Some(UnixTime::from(date).saturating_since(now))
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    #[test]
    fn h01_retry_after_is_seconds_or_a_date() {
        let now = UnixTime::from_secs(1_790_000_000);
        let read = |text: &str| {
            let value = HeaderValue::from_str(text).unwrap();
            retry_after(&HeaderMap::from_iter([(RETRY_AFTER, value)]), now)
        };
        let date = SystemTime::UNIX_EPOCH + Duration::from_secs(1_790_000_090);
        let past = SystemTime::UNIX_EPOCH;
        assert_eq!(read("120"), Some(Duration::from_secs(120)));
        assert_eq!(
            read(&httpdate::fmt_http_date(date)),
            Some(Duration::from_secs(90))
        );
        assert_eq!(read(&httpdate::fmt_http_date(past)), Some(Duration::ZERO));
        assert_eq!(
            read("99999999999999999999999"),
            Some(Duration::from_secs(u64::MAX))
        );
        for bad in ["", "-1", "1.5", "soon", "Mon"] {
            assert_eq!(read(bad), None, "{bad}");
        }
    }
}
