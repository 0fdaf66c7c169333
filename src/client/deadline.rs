//! The deadline of a gRPC call. It limits the wait for its token.

use std::time::Duration;

use http::header::{CONTENT_TYPE, HeaderName};
use http::{HeaderMap, HeaderValue};

use crate::token::{Issue, SvidCache, TokenError, TokenErrorReason, Waiter};

static GRPC_TIMEOUT: HeaderName = HeaderName::from_static("grpc-timeout");

/// gRPC's limit for the number in `grpc-timeout`: 8 digits.
const MOST: u128 = 99_999_999;

/// When a gRPC call must have ended, on the monotonic clock.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Deadline(Duration);

impl Deadline {
    /// Returns the deadline of a request that begins now. `None` if the request is not gRPC, or has
    /// no valid `grpc-timeout`.
    pub(crate) fn of(headers: &HeaderMap, cache: &SvidCache) -> Option<Self> {
        let timeout = headers.get(&GRPC_TIMEOUT)?;
        let timeout = parse(timeout.as_bytes()).filter(|_| is_grpc(headers))?;
        Some(Self(cache.monotonic().saturating_add(timeout)))
    }

    /// The wait for a token, no longer than the deadline of the request allows.
    pub(super) fn limit(deadline: Option<Self>, waiter: Waiter, cache: &SvidCache) -> Issue {
        Issue::Wait(match deadline {
            Some(deadline) => waiter.within(deadline.left(cache)),
            None => waiter,
        })
    }

    fn left(self, cache: &SvidCache) -> Duration {
        self.0.saturating_sub(cache.monotonic())
    }

    /// Sets `grpc-timeout` to the time that is left after the wait: the inner service counts from
    /// now on.
    pub(crate) fn set_left(
        self,
        headers: &mut HeaderMap,
        cache: &SvidCache,
    ) -> Result<(), TokenError> {
        let left = self.left(cache);
        if left.is_zero() {
            return Err(TokenError::new(
                TokenErrorReason::DeadlineExceeded,
                "the request was not sent: its `grpc-timeout` ended while it waited for a token \
                 and for the inner service",
            ));
        }
        if let Some(value) = write(left)
            && let Some(timeout) = headers.get_mut(&GRPC_TIMEOUT)
        {
            *timeout = value;
        }
        Ok(())
    }
}

/// Whether the content type is `application/grpc` or `application/grpc-web`, with any suffix.
fn is_grpc(headers: &HeaderMap) -> bool {
    const GRPC: &[u8] = b"application/grpc";
    let Some(kind) = headers.get(CONTENT_TYPE) else {
        return false;
    };
    let split = kind.as_bytes().split_at_checked(GRPC.len());
    split.is_some_and(|(begin, rest)| {
        begin.eq_ignore_ascii_case(GRPC) && matches!(rest.first(), None | Some(b'+' | b';' | b'-'))
    })
}

/// Reads at most 8 digits and a unit.
fn parse(text: &[u8]) -> Option<Duration> {
    let (unit, digits) = text.split_last()?;
    if digits.is_empty() || digits.len() > 8 || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let value: u64 = str::from_utf8(digits).ok()?.parse().ok()?;
    match unit {
        b'H' => Some(Duration::from_secs(value * 3600)),
        b'M' => Some(Duration::from_secs(value * 60)),
        b'S' => Some(Duration::from_secs(value)),
        b'm' => Some(Duration::from_millis(value)),
        b'u' => Some(Duration::from_micros(value)),
        b'n' => Some(Duration::from_nanos(value)),
        _ => None,
    }
}

/// Writes the time in the finest unit with at most 8 digits; `None` if that is minutes or hours.
fn write(left: Duration) -> Option<HeaderValue> {
    let units = [
        (left.as_nanos(), 'n'),
        (left.as_micros(), 'u'),
        (left.as_millis(), 'm'),
        (u128::from(left.as_secs()), 'S'),
    ];
    let (value, unit) = units.into_iter().find(|(value, _)| *value <= MOST)?;
    HeaderValue::try_from(format!("{value}{unit}")).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn e05_all_units_are_read() {
        for (text, nanos) in [
            ("3H", 3 * 3_600_000_000_000),
            ("2M", 120_000_000_000),
            ("42S", 42_000_000_000),
            ("300m", 300_000_000),
            ("7u", 7_000),
            ("9n", 9),
            ("0n", 0),
            ("00000001m", 1_000_000),
            ("99999999n", 99_999_999),
            ("99999999H", 99_999_999 * 3_600_000_000_000),
        ] {
            let read = parse(text.as_bytes()).unwrap();
            assert_eq!(read.as_nanos(), nanos, "{text}");
        }
    }

    #[test]
    fn e05_malformed_timeouts_are_ignored() {
        for text in [
            &b""[..],
            b"m",
            b"300",
            b"300s",
            b"300h",
            b"300ms",
            b"-1m",
            b"+1m",
            b"1.5S",
            b" 1S",
            b"1 S",
            b"1S ",
            b"0x1S",
            b"123456789m",
            b"000000001m",
            b"\xb2S",
            b"1\xff",
            b"1S, 2S",
        ] {
            assert_eq!(parse(text), None, "{}", text.escape_ascii());
        }
    }

    #[test]
    fn e05_written_timeouts_have_8_digits() {
        for (text, written) in [
            ("99999999n", Some("99999999n")),
            ("300m", Some("300000u")),
            ("99S", Some("99000000u")),
            ("100S", Some("100000m")),
            ("30H", Some("108000S")),
            ("99999999S", Some("99999999S")),
            ("99999999M", None),
        ] {
            let value = write(parse(text.as_bytes()).unwrap());
            let value = value.as_ref().map(|value| value.to_str().unwrap());
            assert_eq!(value, written, "{text}");
        }
    }

    #[test]
    fn e05_only_grpc_content_types_count() {
        let is = |kind: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(CONTENT_TYPE, kind.parse().unwrap());
            is_grpc(&headers)
        };
        for kind in [
            "application/grpc",
            "application/grpc+proto",
            "application/grpc;charset=utf-8",
            "application/grpc-web+proto",
            "application/grpc-web-text",
            "Application/gRPC",
        ] {
            assert!(is(kind), "{kind}");
        }
        for kind in [
            "",
            "application/json",
            "application/grpcx",
            "application/gRP",
            "text/application/grpc",
            " application/grpc",
        ] {
            assert!(!is(kind), "{kind}");
        }
        assert!(!is_grpc(&HeaderMap::new()));
    }
}
