//! `agent`: an embedded SPIFFE agent for local work and for tests of other programs.

use std::io::{BufRead as _, IsTerminal as _, Write as _};
use std::process::ExitCode;
use std::time::Duration;

use clap::error::ErrorKind;
use clap::{Arg, ArgAction, ArgMatches, Command, FromArgMatches};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tower_spiffe::SpiffeId;
use tower_spiffe::testing::FakeAgent;

use crate::BoxError;
use crate::stop::Stop;

/// Run an agent for local work: serve the Workload API until ctrl-c or SIGTERM.
///
/// The first line of output is SPIFFE_ENDPOINT_SOCKET=<endpoint>, for other programs. Every process
/// that can connect gets all identities. File permissions restrict a Unix socket to this user; with
/// --tcp, every local user can connect. Use it for tests and local work only: callers are not attested.
///
/// SIGUSR1 or the line `rotate` on standard input rotates the signing key. If standard input is a
/// terminal, it is not read, so that the agent can run in the background: send SIGUSR1 instead.
#[derive(clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    #[command(flatten)]
    identities: Identities,
    /// The lifetime of tokens
    #[arg(long, value_name = "SECONDS", default_value = "300", value_parser = seconds)]
    token_life: Duration,
    /// Rotate the signing key this often
    #[arg(long, value_name = "SECONDS", value_parser = seconds)]
    rotate_every: Option<Duration>,
    /// Listen on a free TCP port of 127.0.0.1 instead of a Unix socket; always set on Windows
    #[arg(long)]
    tcp: bool,
    /// End after this time
    #[arg(long = "for", value_name = "SECONDS", value_parser = seconds)]
    duration: Option<Duration>,
}

const EXAMPLES: &str = "\
Examples:
  tower-spiffe agent --id spiffe://example.org/web --rotate-every 60
  tower-spiffe agent --id spiffe://example.org/web --id spiffe://example.org/cron --hint nightly
  tower-spiffe agent --tcp --for 600

Exit code: 0 at the end, 1 if the agent cannot start, 2 for an invalid command line.";

/// The identities in the order of the command line.
struct Identities(Vec<Identity>);

struct Identity {
    id: String,
    hint: String,
}

/// How long calls may continue when the agent stops.
const GRACE: Duration = Duration::from_secs(5);

const DEFAULT_ID: &str = "spiffe://example.org/workload";

/// Implemented by hand, because each `--hint` belongs to the `--id` before it.
impl clap::Args for Identities {
    fn augment_args(command: Command) -> Command {
        let id = Arg::new("id")
            .long("id")
            .value_name("SPIFFE_ID")
            .action(ArgAction::Append)
            .help(format!(
                "An identity to issue tokens for; may be repeated, in one trust domain \
                 [default: {DEFAULT_ID}]"
            ));
        let hint = Arg::new("hint")
            .long("hint")
            .value_name("HINT")
            .action(ArgAction::Append)
            .help("The hint of the --id before it");
        command.arg(id).arg(hint)
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

impl FromArgMatches for Identities {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let placed = |name| {
            let indices = matches.indices_of(name).into_iter().flatten();
            let values = matches.get_many::<String>(name).into_iter().flatten();
            indices.zip(values.cloned()).collect::<Vec<_>>()
        };
        let mut ids = placed("id");
        if ids.is_empty() {
            ids.push((0, DEFAULT_ID.to_owned()));
        }
        let mut hints: Vec<Option<String>> = vec![None; ids.len()];
        for (at, hint) in placed("hint") {
            let before = ids.iter().take_while(|(id, _)| *id < at).count();
            let invalid = |why| clap::Error::raw(ErrorKind::ArgumentConflict, why);
            let place = before.checked_sub(1).and_then(|n| hints.get_mut(n));
            let place = place.ok_or_else(|| {
                invalid("--hint comes before the first --id; put it after the --id it belongs to")
            })?;
            if place.replace(hint).is_some() {
                return Err(invalid(
                    "an --id has two hints; give one --hint for each --id",
                ));
            }
        }
        let identity = |((_, id), hint): ((usize, String), Option<String>)| Identity {
            id,
            hint: hint.unwrap_or_default(),
        };
        Ok(Self(ids.into_iter().zip(hints).map(identity).collect()))
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        *self = Self::from_arg_matches(matches)?;
        Ok(())
    }
}

fn seconds(text: &str) -> Result<Duration, String> {
    match text.parse() {
        Ok(seconds) if seconds > 0 => Ok(Duration::from_secs(seconds)),
        _ => Err("not a whole number of seconds above 0".to_owned()),
    }
}

#[tokio::main]
pub(crate) async fn run(args: &Args) -> ExitCode {
    match serve(args).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            warn!("agent: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn serve(args: &Args) -> Result<(), BoxError> {
    // Before the socket is created, so that a signal cannot leave it behind.
    let mut stop = Stop::new()?;
    let mut rotate_signal = RotateSignal::new()?;
    let agent = start(args).await?;
    if let Some(period) = args.rotate_every {
        agent.rotate_every(period);
    }
    let mut out = std::io::stdout();
    writeln!(out, "SPIFFE_ENDPOINT_SOCKET={}", agent.endpoint())?;
    out.flush()?;
    if cfg!(unix) {
        let process = std::process::id();
        warn!("agent: `kill -USR1 {process}` rotates the signing key, ctrl-c ends the agent");
    }

    let mut commands = commands();
    // A rotation waits for all open streams, so it runs in a task: signals are still handled.
    let mut rotations = JoinSet::new();
    let mut end = std::pin::pin!(async {
        match args.duration {
            Some(duration) => tokio::time::sleep(duration).await,
            None => std::future::pending().await,
        }
    });
    loop {
        tokio::select! {
            () = &mut end => break,
            () = stop.requested() => break,
            () = rotate_signal.next() => rotate(&agent, &mut rotations),
            Some(()) = commands.recv() => rotate(&agent, &mut rotations),
            Some(rotated) = rotations.join_next() => {
                say!("rotated the signing key: the new key is {}", rotated?);
            }
        }
    }
    rotations.shutdown().await;
    let counts = agent.counts();
    let _ = tokio::time::timeout(GRACE, agent.stop()).await;
    say!(
        "{} connections, {} bundle streams, {} token calls, {} validations",
        counts.connections,
        counts.fetch_jwt_bundles,
        counts.fetch_jwt_svid,
        counts.validate_jwt_svid
    );
    Ok(())
}

async fn start(args: &Args) -> Result<FakeAgent, BoxError> {
    let identities = &args.identities.0;
    let first = identities.first().map_or(DEFAULT_ID, |first| &first.id);
    let first: SpiffeId = first.parse().map_err(|why| format!("{first}: {why}"))?;
    let agent = FakeAgent::builder(first.trust_domain_name()).token_life(args.token_life);
    let agent = match args.tcp || cfg!(windows) {
        true => agent.start_tcp().await?,
        false => agent.start().await?,
    };
    for Identity { id, hint } in identities {
        agent
            .register(id, hint, args.token_life)
            .map_err(|error| format!("{id}: {error}"))?;
    }
    Ok(agent)
}

fn rotate(agent: &FakeAgent, rotations: &mut JoinSet<String>) {
    let agent = agent.clone();
    rotations.spawn(async move { agent.rotate().await });
}

/// Returns a channel with one `()` for each line `rotate` on standard input.
fn commands() -> mpsc::Receiver<()> {
    let (sender, receiver) = mpsc::channel(1);
    // The system stops a background process that reads its terminal.
    if cfg!(unix) && std::io::stdin().is_terminal() {
        return receiver;
    }
    // A thread, because tokio's stdin would delay the shutdown of the runtime.
    std::thread::spawn(move || {
        for line in std::io::stdin().lock().split(b'\n').map_while(Result::ok) {
            match line.trim_ascii() {
                b"rotate" if sender.blocking_send(()).is_err() => return,
                b"rotate" | b"" => {}
                _ => warn!("agent: unknown line on standard input; write `rotate`"),
            }
        }
    });
    receiver
}

/// SIGUSR1, on Unix.
#[cfg(unix)]
struct RotateSignal(tokio::signal::unix::Signal);

#[cfg(unix)]
impl RotateSignal {
    fn new() -> std::io::Result<Self> {
        use tokio::signal::unix::{SignalKind, signal};
        signal(SignalKind::user_defined1()).map(Self)
    }

    async fn next(&mut self) {
        let _ = self.0.recv().await;
    }
}

#[cfg(not(unix))]
struct RotateSignal;

#[cfg(not(unix))]
impl RotateSignal {
    fn new() -> std::io::Result<Self> {
        Ok(Self)
    }

    async fn next(&mut self) {
        std::future::pending().await
    }
}
