//! The driver as a child process, and the output of rows.

use std::io::{BufRead as _, BufReader, Write as _};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::Duration;

use serde_json::{Value, json};

pub(crate) type Error = Box<dyn std::error::Error + Send + Sync>;

/// The driver, which runs tower-spiffe.
pub(crate) struct Driver {
    child: Child,
    input: Option<ChildStdin>,
    output: BufReader<ChildStdout>,
}

impl Driver {
    pub(crate) fn start() -> Result<Self, Error> {
        let mut child = Command::new(std::env::var("INTEROP_DRIVER")?)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let input = child.stdin.take();
        let output = child.stdout.take().ok_or("the driver has no output")?;
        let output = BufReader::new(output);
        Ok(Self {
            child,
            input,
            output,
        })
    }

    /// Runs a command. Blocks until the response, which takes little time.
    pub(crate) fn run(&mut self, command: Value) -> Result<Value, Error> {
        let input = self.input.as_mut().ok_or("the driver has no input")?;
        writeln!(input, "{command}")?;
        let mut line = String::new();
        self.output.read_line(&mut line)?;
        let answer: Value = serde_json::from_str(&line)?;
        match answer["error"].as_str() {
            Some(error) => Err(format!("driver: {error}").into()),
            None => Ok(answer),
        }
    }

    pub(crate) fn token(&mut self, issuer: &str, id: &str, spec: &Value) -> Result<String, Error> {
        let answer = self.run(json!({
            "do": "token", "issuer": issuer, "id": id, "audience": super::AUDIENCE, "spec": spec,
        }))?;
        Ok(text(&answer["token"]))
    }

    pub(crate) fn change(&mut self, agent: &str, mut change: Value) -> Result<Value, Error> {
        change["do"] = "change".into();
        change["agent"] = agent.into();
        self.run(change)
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        // The driver ends when its input is closed.
        self.input = None;
        let _ = self.child.wait();
    }
}

pub(crate) fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

pub(crate) fn equal<T: PartialEq<U> + std::fmt::Debug, U: std::fmt::Debug>(
    what: &str,
    got: T,
    want: U,
) -> Result<(), Error> {
    if got == want {
        return Ok(());
    }
    Err(format!("{what} is {got:?}, expected {want:?}").into())
}

/// Prints the line of a row. Returns whether it passed.
pub(crate) fn row(name: &str, what: &str, result: Result<(), Error>) -> bool {
    match &result {
        Ok(()) => println!("ok {name} {what}"),
        Err(error) => println!(
            "FAIL {name} {what}: {}",
            error.to_string().replace('\n', " ")
        ),
    }
    result.is_ok()
}

/// Polls a condition until it holds.
pub(crate) async fn until<F>(mut condition: impl FnMut() -> F) -> Result<(), Error>
where
    F: Future<Output = Result<(), Error>>,
{
    for _ in 0..1000 {
        if condition().await.is_ok() {
            return Ok(());
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    condition().await
}
