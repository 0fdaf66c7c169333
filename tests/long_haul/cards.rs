//! The troubles, one card each, dealt from a shuffled deck: every deck has all of them, in an order
//! of its own.

use fastrand::Rng;
use tower_spiffe::bundle::Algorithm;
use tower_spiffe::testing::{AgentCall, Fault};
use tower_spiffe::token::GrpcCode;

use crate::times::Times;

/// One step of trouble.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Card {
    // Faults, of all calls or of one, until something ends them.
    Refuse,
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
    FederateRubbish,
    ForeignRotates,
    // The stream's words.
    SendAgain,
    Replay,
    // Clocks.
    AgentsClock,
    WallSteps,
    // Clients that ping too often.
    Eager,
    // A better moment between two bad ones.
    Recover,
}

impl Card {
    pub(crate) const ALL: [Self; 38] = [
        Self::Refuse,
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
        Self::FederateRubbish,
        Self::ForeignRotates,
        Self::SendAgain,
        Self::Replay,
        Self::AgentsClock,
        Self::WallSteps,
        Self::Eager,
        Self::Recover,
    ];

    /// The fault that this card stands for.
    pub(crate) fn fault(self, times: &Times, rng: &mut Rng) -> Option<Fault> {
        Some(match self {
            Self::Refuse => Fault::Refuse(code(rng)),
            Self::Hang => Fault::Hang,
            Self::Slow => Fault::Slow(Times::draw(rng, &times.slow)),
            Self::HangUp => Fault::HangUp,
            Self::HangUpWith => Fault::HangUpWith(code(rng)),
            Self::Garbage => Fault::Garbage,
            Self::NotProtobuf => Fault::NotProtobuf,
            Self::NotHttp2 => Fault::NotHttp2,
            Self::HalfOpen => Fault::HalfOpen,
            // Beyond what a token may have, or beyond what one JWK Set may have.
            Self::Oversized => Fault::Oversized(*rng.choice(&[9_000, 70_000, 5 << 20]).unwrap()),
            Self::ServerAway => Fault::ServerAway,
            _ => return None,
        })
    }
}

/// The cards in the order in which they come.
pub(crate) struct Deck {
    left: Vec<Card>,
    /// Decks that were dealt to the last card.
    pub(crate) dealt: u64,
}

impl Deck {
    pub(crate) fn new() -> Self {
        Self {
            left: Vec::new(),
            dealt: 0,
        }
    }

    pub(crate) fn deal(&mut self, rng: &mut Rng) -> Card {
        if self.left.is_empty() {
            self.left = Card::ALL.to_vec();
            rng.shuffle(&mut self.left);
        }
        let card = self.left.pop().unwrap();
        if self.left.is_empty() {
            self.dealt += 1;
        }
        card
    }
}

/// Any status but OK.
fn code(rng: &mut Rng) -> GrpcCode {
    GrpcCode::from_i32(rng.i32(1..=16))
}

/// The one call that is to fail, or all of them.
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

/// What a stream says that no agent should: some of it is to be discarded as a whole, some in part,
/// some is a set like any other.
pub(crate) fn rubbish(rng: &mut Rng) -> Vec<(String, Vec<u8>)> {
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

/// So many steps of trouble at one time.
pub(crate) fn steps(rng: &mut Rng) -> usize {
    rng.usize(2..8)
}
