//! The incidents in shuffled order: each shuffle has all of them.

use fastrand::Rng;
use tower_spiffe::bundle::Algorithm;
use tower_spiffe::testing::{AgentCall, Fault};
use tower_spiffe::token::GrpcCode;

use crate::times::Times;

/// One incident.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Incident {
    // Faults of all calls or of one, until they end.
    ErrorStatus,
    Hang,
    Slow,
    HangUp,
    HangUpWith,
    Garbage,
    NotProtobuf,
    NotHttp2,
    HalfOpen,
    Oversized,
    ServerAway,
    // Connections.
    HalfOpenNow,
    Cut,
    // The agent.
    Stop,
    StartAgain,
    Restart,
    ForgetTokens,
    // Identities.
    Withdraw,
    Restore,
    Unregister,
    Register,
    // Keys.
    Rotate,
    RotateTo,
    RotateNow,
    RotateEvery,
    StopRotating,
    TaintAndRevoke,
    Revoke,
    // Federation.
    Federate,
    Unfederate,
    FederateInvalid,
    ForeignRotates,
    // Raw stream messages.
    SendAgain,
    Replay,
    // Clocks.
    AgentsClock,
    WallSteps,
    // Clients that ping too often.
    Eager,
    // Ends all faults.
    Recover,
}

impl Incident {
    pub(crate) const ALL: [Self; 38] = [
        Self::ErrorStatus,
        Self::Hang,
        Self::Slow,
        Self::HangUp,
        Self::HangUpWith,
        Self::Garbage,
        Self::NotProtobuf,
        Self::NotHttp2,
        Self::HalfOpen,
        Self::Oversized,
        Self::ServerAway,
        Self::HalfOpenNow,
        Self::Cut,
        Self::Stop,
        Self::StartAgain,
        Self::Restart,
        Self::ForgetTokens,
        Self::Withdraw,
        Self::Restore,
        Self::Unregister,
        Self::Register,
        Self::Rotate,
        Self::RotateTo,
        Self::RotateNow,
        Self::RotateEvery,
        Self::StopRotating,
        Self::TaintAndRevoke,
        Self::Revoke,
        Self::Federate,
        Self::Unfederate,
        Self::FederateInvalid,
        Self::ForeignRotates,
        Self::SendAgain,
        Self::Replay,
        Self::AgentsClock,
        Self::WallSteps,
        Self::Eager,
        Self::Recover,
    ];

    /// Returns the fault of this incident.
    pub(crate) fn fault(self, times: &Times, rng: &mut Rng) -> Option<Fault> {
        Some(match self {
            Self::ErrorStatus => Fault::Refuse(code(rng)),
            Self::Hang => Fault::Hang,
            Self::Slow => Fault::Slow(Times::draw(rng, &times.slow)),
            Self::HangUp => Fault::HangUp,
            Self::HangUpWith => Fault::HangUpWith(code(rng)),
            Self::Garbage => Fault::Garbage,
            Self::NotProtobuf => Fault::NotProtobuf,
            Self::NotHttp2 => Fault::NotHttp2,
            Self::HalfOpen => Fault::HalfOpen,
            // Larger than a token may be, or larger than a JWK Set may be.
            Self::Oversized => Fault::Oversized(*rng.choice(&[9_000, 70_000, 5 << 20]).unwrap()),
            Self::ServerAway => Fault::ServerAway,
            _ => return None,
        })
    }
}

/// The incidents in their order.
pub(crate) struct Shuffle {
    left: Vec<Incident>,
    /// The number of completed shuffles.
    pub(crate) dealt: u64,
}

impl Shuffle {
    pub(crate) fn new() -> Self {
        Self {
            left: Vec::new(),
            dealt: 0,
        }
    }

    pub(crate) fn deal(&mut self, rng: &mut Rng) -> Incident {
        if self.left.is_empty() {
            self.left = Incident::ALL.to_vec();
            rng.shuffle(&mut self.left);
        }
        let incident = self.left.pop().unwrap();
        if self.left.is_empty() {
            self.dealt += 1;
        }
        incident
    }
}

/// Returns any status except OK.
fn code(rng: &mut Rng) -> GrpcCode {
    GrpcCode::from_i32(rng.i32(1..=16))
}

/// Returns the one call that fails, or `None` for all.
pub(crate) fn scope(rng: &mut Rng) -> Option<AgentCall> {
    let calls = [
        AgentCall::FetchJwtSvid,
        AgentCall::FetchJwtBundles,
        AgentCall::ValidateJwtSvid,
    ];
    rng.bool().then(|| *rng.choice(&calls).unwrap())
}

pub(crate) fn algorithm(rng: &mut Rng) -> Algorithm {
    let all = [
        Algorithm::ES256,
        Algorithm::ES384,
        Algorithm::ES512,
        Algorithm::RS256,
    ];
    *rng.choice(&all).unwrap()
}

/// Returns raw stream messages. A source discards some completely and some in part; others are valid.
/// No agent should send them.
pub(crate) fn raw_messages(rng: &mut Rng) -> Vec<(String, Vec<u8>)> {
    let own = || "spiffe://example.org".to_owned();
    let empty = br#"{"keys": []}"#;
    match rng.u8(..5) {
        0 => Vec::new(),
        1 => vec![(own(), b"{".to_vec())],
        2 => vec![(own(), empty.to_vec())],
        3 => vec![
            ("not a trust domain".to_owned(), empty.to_vec()),
            (
                "spiffe://example.org/with/a/path".to_owned(),
                empty.to_vec(),
            ),
        ],
        _ => (0..250)
            .map(|n| (format!("spiffe://td{n}.test"), empty.to_vec()))
            .collect(),
    }
}

/// Returns the number of incidents at one time.
pub(crate) fn steps(rng: &mut Rng) -> usize {
    rng.usize(2..8)
}
