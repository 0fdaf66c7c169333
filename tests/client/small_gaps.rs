//! Conversions for custom fetchers.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tower_spiffe::clock::UnixTime;
use tower_spiffe::token::{FetchSvidReason, GrpcCode};

#[test]
fn grpc_codes_become_fetch_reasons() {
    for code in 0..=17 {
        let expected = match code {
            3 | 12 => FetchSvidReason::InvalidRequest,
            4 => FetchSvidReason::Timeout,
            7 => FetchSvidReason::Denied,
            14 => FetchSvidReason::Unavailable,
            _ => FetchSvidReason::Other,
        };
        assert_eq!(FetchSvidReason::from(GrpcCode::from_i32(code)), expected);
    }
}

#[test]
fn unix_time_converts_both_ways() {
    for time in [
        UNIX_EPOCH,
        UNIX_EPOCH + Duration::new(1_790_000_000, 1),
        UNIX_EPOCH - Duration::new(3, 999_999_999),
        UNIX_EPOCH - Duration::from_secs(7),
    ] {
        assert_eq!(UnixTime::from(time).to_system_time(), Some(time));
    }
    // Extreme values do not panic on any platform.
    for end in [UnixTime::MIN, UnixTime::MAX] {
        let there = end.to_system_time();
        assert!(there.is_none_or(|time| UnixTime::from(time) == end));
    }
    #[allow(clippy::disallowed_methods, reason = "the clock itself is tested")]
    let machine = SystemTime::now;
    let before = machine();
    let now = UnixTime::now().to_system_time().unwrap();
    assert!((before..=machine()).contains(&now));
}
