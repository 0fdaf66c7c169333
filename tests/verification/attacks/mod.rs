//! Attacks on validators of bearer tokens, with their known variants, without a cache and with a warm
//! cache.
//!
//! Attacks on transport (A18 to A20, A27), logs (A28) and waits for keys (A23) are tested with the
//! server.

mod forms;
mod keys;
mod state;

use serde_json::Value;

use crate::signer::{Signer, claims};
use crate::support::Fixture;

fn warm_fixture(signers: &[&Signer]) -> Fixture {
    let fixture = Fixture::new(signers);
    for signer in signers {
        fixture.accepts(&signer.token());
    }
    fixture
}

/// Returns a valid token of this signer with another header.
fn with_header(signer: &Signer, header: &Value) -> String {
    signer.sign_texts(&header.to_string(), &claims().to_string())
}

fn header_with(signer: &Signer, name: &str, value: Value) -> Value {
    let mut header = signer.header();
    header[name] = value;
    header
}
