//! Runs the `spiffe` crate, versions 0.13 and 0.19, against tower-spiffe in both directions.
//!
//! Prints one line per row: `ok|FAIL <row> <what>`. `INTEROP_DRIVER` names the driver,
//! `INTEROP_CASES` the table of tokens.

mod adapters;
mod driver;
mod together;
mod versions;

use std::process::ExitCode;

use driver::{Driver, Error};

const DOMAIN: &str = "example.org";
const WEB: &str = "spiffe://example.org/web";
const OPS: &str = "spiffe://example.org/ops";
const AUDIENCE: &str = "spiffe://example.org/reports";

#[tokio::main]
async fn main() -> Result<ExitCode, Error> {
    let cases = std::fs::read_to_string(std::env::var("INTEROP_CASES")?)?;
    let cases: Vec<serde_json::Value> = serde_json::from_str(&cases)?;
    let mut driver = Driver::start()?;
    let mut passed = true;
    passed &= versions::v0_13::run(&mut driver, &cases).await?;
    passed &= versions::v0_19::run(&mut driver, &cases).await?;
    passed &= together::run(&mut driver).await?;
    Ok(match passed {
        true => ExitCode::SUCCESS,
        false => ExitCode::FAILURE,
    })
}
