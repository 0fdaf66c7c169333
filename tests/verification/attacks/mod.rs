//! The attacks on validators of bearer tokens, each with the cases that are known of it, without a
//! cache and with a warm one.
//!
//! Those of transport (A18 to A20, A27), of logs (A28) and of the wait for keys (A23) have their
//! tests where those things stand, in the server's tests.

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

/// A good token of this signer, its header another.
fn with_header(signer: &Signer, header: &Value) -> String {
    signer.sign_texts(&header.to_string(), &claims().to_string())
}

fn header_with(signer: &Signer, name: &str, value: Value) -> Value {
    let mut header = signer.header();
    header[name] = value;
    header
}
