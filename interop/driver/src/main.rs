//! Runs tower-spiffe for the interop programs in other languages.
//!
//! Each line on standard input is a JSON object with the command in `do`. Each response is one line:
//! the result of the command, or `{"error": …}`. The driver ends when standard input is closed, so that
//! it ends with the program that started it.

mod agents;
mod calls;
mod servers;
mod sources;
mod tokens;

use std::collections::HashMap;
use std::io::Write as _;

use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt as _, BufReader, stdin};
use tower_spiffe::JwtSource;
use tower_spiffe::testing::{FakeAgent, Issuer};

type Error = Box<dyn std::error::Error + Send + Sync>;

/// The agents, issuers and sources that commands have created, by name.
#[derive(Default)]
struct Made {
    agents: HashMap<String, FakeAgent>,
    issuers: HashMap<String, Issuer>,
    sources: HashMap<String, JwtSource>,
}

impl Made {
    fn agent(&self, command: &Value) -> Result<&FakeAgent, Error> {
        let name = text(command, "agent")?;
        self.agents
            .get(name)
            .ok_or_else(|| format!("unknown agent {name:?}").into())
    }

    fn source(&self, command: &Value) -> Result<&JwtSource, Error> {
        let name = text(command, "source")?;
        self.sources
            .get(name)
            .ok_or_else(|| format!("unknown source {name:?}").into())
    }
}

#[tokio::main]
async fn main() -> Result<(), Error> {
    let mut made = Made::default();
    let mut lines = BufReader::new(stdin()).lines();
    while let Some(line) = lines.next_line().await? {
        let answer = match serde_json::from_str(&line) {
            Ok(command) => run(&mut made, &command).await,
            Err(error) => Err(error.into()),
        };
        let answer = answer.unwrap_or_else(|error| json!({ "error": error.to_string() }));
        let mut out = std::io::stdout().lock();
        writeln!(out, "{answer}")?;
        out.flush()?;
    }
    Ok(())
}

async fn run(made: &mut Made, command: &Value) -> Result<Value, Error> {
    match text(command, "do")? {
        "agent" => agents::start(made, command).await,
        "change" => agents::change(made.agent(command)?, command).await,
        "federate" => agents::federate(made, command),
        "counts" => Ok(agents::counts(made.agent(command)?)),
        "issuer" => tokens::issuer(made, command),
        "keys" => tokens::keys(made, command),
        "token" => tokens::sign(made, command),
        "validate" => tokens::validate(command),
        "serve" => servers::serve(made, command).await,
        "source" => sources::start(made, command).await,
        "state" => Ok(sources::state(made.source(command)?)),
        "fetch" => sources::fetch(made.source(command)?, command).await,
        "check" => sources::check(made.source(command)?, command),
        "poll" => sources::poll(command).await,
        "call" => calls::call(made.source(command)?, command).await,
        other => Err(format!("unknown command {other:?}").into()),
    }
}

/// Returns the string with this name.
fn text<'a>(command: &'a Value, name: &str) -> Result<&'a str, Error> {
    text_or_none(command, name).ok_or_else(|| format!("the command has no {name:?}").into())
}

fn text_or_none<'a>(command: &'a Value, name: &str) -> Option<&'a str> {
    command.get(name).and_then(Value::as_str)
}
