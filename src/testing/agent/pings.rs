//! How often a client may ping: the defaults of a grpc-go server.

use std::collections::HashSet;
use std::time::Duration;

use super::frames::FrameHead;

/// While calls are open.
const WITH_STREAMS: Duration = Duration::from_secs(5 * 60);
/// While no call is open.
const WITHOUT_STREAMS: Duration = Duration::from_secs(2 * 60 * 60);
/// This many pings may be early; the next one ends the connection.
const FORGIVEN: u32 = 2;

/// ENHANCE_YOUR_CALM (RFC 9113 section 7).
const CALM: u32 = 0xb;

/// The pings of one connection.
///
/// A ping is early if it comes too soon after the previous one. Headers or data from the server in
/// between reset the count, and the next ping does not count.
#[derive(Debug, Default)]
pub(super) struct PingAccount {
    last: Option<Duration>,
    early: u32,
    sent_since: bool,
    open: HashSet<u32>,
    newest: u32,
}

impl PingAccount {
    /// Handles a frame from the client. Returns whether it has sent too many pings.
    pub(super) fn received(&mut self, frame: FrameHead, now: Duration) -> bool {
        match frame.kind {
            FrameHead::HEADERS if frame.stream > self.newest => {
                self.newest = frame.stream;
                self.open.insert(frame.stream);
            }
            FrameHead::RST_STREAM => {
                self.open.remove(&frame.stream);
            }
            FrameHead::PING if frame.flags & FrameHead::ACK == 0 => return self.ping(now),
            _ => {}
        }
        false
    }

    /// Handles a frame to the client.
    pub(super) fn sent(&mut self, frame: FrameHead) {
        match frame.kind {
            FrameHead::DATA | FrameHead::HEADERS => {
                self.sent_since = true;
                if frame.flags & FrameHead::END_STREAM != 0 {
                    self.open.remove(&frame.stream);
                }
            }
            FrameHead::RST_STREAM => {
                self.open.remove(&frame.stream);
            }
            _ => {}
        }
    }

    fn ping(&mut self, now: Duration) -> bool {
        let before = self.last.replace(now);
        if std::mem::take(&mut self.sent_since) {
            self.early = 0;
            return false;
        }
        let apart = if self.open.is_empty() {
            WITHOUT_STREAMS
        } else {
            WITH_STREAMS
        };
        if before.is_some_and(|before| now.saturating_sub(before) < apart) {
            self.early += 1;
        }
        self.early > FORGIVEN
    }

    /// The GOAWAY frame for a client with too many pings.
    pub(super) fn goaway(&self) -> Vec<u8> {
        const WHY: &[u8] = b"too_many_pings";
        let mut frame = vec![0, 0, 8 + WHY.len() as u8, FrameHead::GOAWAY, 0, 0, 0, 0, 0];
        frame.extend(self.newest.to_be_bytes());
        frame.extend(CALM.to_be_bytes());
        frame.extend(WHY);
        frame
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn frame(kind: u8, flags: u8, stream: u32) -> FrameHead {
        FrameHead {
            kind,
            flags,
            stream,
        }
    }

    const PING: FrameHead = frame(FrameHead::PING, 0, 0);
    const CALL: FrameHead = frame(FrameHead::HEADERS, 0, 1);

    /// Which ping, counted from 1, exceeds the limit.
    fn too_many(account: &mut PingAccount, every_secs: u64) -> Option<u64> {
        (1..=20).find(|n| account.received(PING, Duration::from_secs(n * every_secs)))
    }

    #[test]
    fn third_early_ping_exceeds_the_limit() {
        let mut account = PingAccount::default();
        account.received(CALL, Duration::ZERO);
        // The first ping has no previous one.
        assert_eq!(too_many(&mut account, 299), Some(4));
    }

    #[test]
    fn five_minutes_are_allowed_during_a_call() {
        let mut account = PingAccount::default();
        account.received(CALL, Duration::ZERO);
        assert_eq!(too_many(&mut account, 300), None);
    }

    #[test]
    fn two_hours_are_required_without_a_call() {
        assert_eq!(too_many(&mut PingAccount::default(), 7_199), Some(4));
        assert_eq!(too_many(&mut PingAccount::default(), 7_200), None);
        let mut ended = PingAccount::default();
        ended.received(CALL, Duration::ZERO);
        ended.sent(frame(FrameHead::HEADERS, FrameHead::END_STREAM, 1));
        // The response resets the count at the first ping. The second has a previous one.
        assert_eq!(too_many(&mut ended, 300), Some(4));
    }

    #[test]
    fn server_frames_reset_the_count() {
        let mut account = PingAccount::default();
        account.received(CALL, Duration::ZERO);
        for second in 1..100 {
            assert!(!account.received(PING, Duration::from_secs(second)));
            if second % 3 == 0 {
                account.sent(frame(FrameHead::DATA, 0, 1));
            }
        }
    }

    #[test]
    fn ping_response_does_not_count() {
        let mut account = PingAccount::default();
        for _ in 0..100 {
            assert!(!account.received(frame(FrameHead::PING, FrameHead::ACK, 0), Duration::ZERO));
        }
    }
}
