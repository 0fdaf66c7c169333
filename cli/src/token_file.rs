//! `token-file`: writes tokens to files and refreshes them.

use std::collections::BTreeSet;
use std::path::Path;
#[cfg(unix)]
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::time::Instant;
use tower_spiffe::token::SvidRequest;
use tower_spiffe::token_file::{TokenFile, TokenFileState};
use tower_spiffe::workload_api::Endpoint;
use tower_spiffe::{JwtSource, SpiffeId, SvidCache};

use crate::stop::Stop;
use crate::{BoxError, waiting};

/// Write tokens to files, and refresh them before they expire.
///
/// Uses the agent at SPIFFE_ENDPOINT_SOCKET. Each file contains only the token. It is replaced
/// atomically (temporary file, fsync, rename), with mode 0600 unless `--mode` is given. A symbolic
/// link at the path is replaced, not followed. On Windows a file inherits the permissions of its
/// directory. If a write fails, the old file stays, and the write is retried after 1 to 30 s. Ends
/// on ctrl-c, on SIGTERM, or after `--for SECONDS`.
#[derive(clap::Args)]
#[command(after_help = EXAMPLES, after_long_help = format!("{EXAMPLES}\n\n{DETAILS}"))]
pub(crate) struct Args {
    /// Write the token for this audience to this path; repeat it for more files
    #[arg(long = "file", num_args = 2, value_names = ["AUDIENCE", "PATH"], required = true)]
    files: Vec<String>,
    /// The identity to use, if the agent has several
    #[arg(long, value_name = "ID")]
    spiffe_id: Option<SpiffeId>,
    /// The permission bits of each file
    #[cfg(unix)]
    #[arg(long, value_name = "OCTAL", value_parser = octal, default_value = "0600")]
    mode: u32,
    /// The owner of each file, by number; needs privileges
    #[cfg(unix)]
    #[arg(long, value_name = "UID")]
    owner: Option<u32>,
    /// The group of each file, by number
    #[cfg(unix)]
    #[arg(long, value_name = "GID")]
    group: Option<u32>,
    /// Run this shell command after each write, 30 s at most; TOWER_SPIFFE_TOKEN_FILE has the path
    #[arg(long, value_name = "COMMAND")]
    command: Option<String>,
    /// Send this signal after each write: HUP, INT, TERM, USR1, USR2 or WINCH
    #[cfg(unix)]
    #[arg(long, value_name = "NAME", value_parser = signal, requires = "pid_file")]
    signal: Option<rustix::process::Signal>,
    /// The file with the ID of the process to signal; read after each write
    #[cfg(unix)]
    #[arg(long, value_name = "PATH", requires = "signal")]
    pid_file: Option<PathBuf>,
    /// Remove the files at the end
    #[arg(long, conflicts_with = "once")]
    remove_on_exit: bool,
    /// End after each file was written once, for an init container
    #[arg(long)]
    once: bool,
    /// End after this time; fractions are allowed
    #[arg(long = "for", value_name = "SECONDS", value_parser = crate::watch::seconds_from)]
    duration: Option<Duration>,
}

#[cfg(unix)]
const EXAMPLES: &str = "\
Examples:
  export SPIFFE_ENDPOINT_SOCKET=unix:///run/spire/agent.sock
  tower-spiffe token-file --file sts.amazonaws.com /run/tokens/aws
  tower-spiffe token-file --file vault /run/tokens/vault --file db /run/tokens/db --once
  tower-spiffe token-file --file db /run/tokens/db --signal HUP --pid-file /run/db.pid";

#[cfg(not(unix))]
const EXAMPLES: &str = "\
Examples:
  set SPIFFE_ENDPOINT_SOCKET=tcp://127.0.0.1:8081
  tower-spiffe token-file --file sts.amazonaws.com C:\\tokens\\aws
  tower-spiffe token-file --file vault C:\\tokens\\vault --file db C:\\tokens\\db --once";

const DETAILS: &str = "\
For an AWS SDK, set AWS_WEB_IDENTITY_TOKEN_FILE to the path and AWS_ROLE_ARN to the role.

Prints a line for each write to standard output, errors to standard error, never a token.

Exit code: 0 at the end, 1 if a file was never written, if an audience or a path cannot be used, if the
command or the signal failed with `--once`, or if the source cannot start; 2 for other errors in the
command line.";

/// How often the state of the files is checked.
const POLL_INTERVAL: Duration = Duration::from_millis(100);
/// The longest that `--command` may run.
const COMMAND_TIMEOUT: Duration = Duration::from_secs(30);

#[tokio::main]
pub(crate) async fn run(args: &Args) -> ExitCode {
    match keep(args).await {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            warn!("token-file: {error:#}");
            ExitCode::FAILURE
        }
    }
}

#[cfg(unix)]
fn octal(text: &str) -> Result<u32, String> {
    match u32::from_str_radix(text, 8) {
        Ok(mode) if mode <= 0o777 => Ok(mode),
        _ => Err("not an octal number from 0 to 777".to_owned()),
    }
}

#[cfg(unix)]
fn signal(name: &str) -> Result<rustix::process::Signal, String> {
    use rustix::process::Signal;
    match name.strip_prefix("SIG").unwrap_or(name) {
        "HUP" => Ok(Signal::HUP),
        "INT" => Ok(Signal::INT),
        "TERM" => Ok(Signal::TERM),
        "USR1" => Ok(Signal::USR1),
        "USR2" => Ok(Signal::USR2),
        "WINCH" => Ok(Signal::WINCH),
        _ => Err("not one of HUP, INT, TERM, USR1, USR2, WINCH".to_owned()),
    }
}

/// A token file, and the state that was last reported.
struct WrittenFile {
    file: TokenFile,
    request: SvidRequest,
    /// The number of successful actions after a write.
    acted: Arc<AtomicU64>,
    reported_writes: u64,
    reported: String,
}

/// Writes and refreshes the files until the command ends. Returns whether each was written.
async fn keep(args: &Args) -> Result<bool, BoxError> {
    // Before a file is created, so that a signal cannot leave it behind.
    let mut stop = Stop::new()?;
    let agent = Endpoint::from_env()?;
    let source = JwtSource::builder().build_lazy()?;
    let cache = SvidCache::from(&source);
    let mut files = start(args, &cache)?;
    let mut end = std::pin::pin!(async {
        match args.duration {
            Some(duration) => tokio::time::sleep(duration).await,
            None => std::future::pending().await,
        }
    });
    let started = Instant::now();
    let failed = loop {
        tokio::select! {
            () = &mut end => break false,
            () = stop.requested() => break false,
            () = tokio::time::sleep(POLL_INTERVAL) => {}
        }
        let mut states = Vec::with_capacity(files.len());
        for written in &mut files {
            let state = written.file.state();
            let waits = started.elapsed() >= waiting::REPORT_AFTER;
            report(written, &state, waits.then_some((&cache, &agent)));
            states.push(state);
        }
        if args.once {
            if states.iter().any(|state| state.after_write_error.is_some()) {
                break true;
            }
            let done = |(written, state): (&WrittenFile, &TokenFileState)| {
                state.writes > 0
                    && (!args.has_action() || written.acted.load(Ordering::Acquire) > 0)
            };
            if files.iter().zip(&states).all(done) {
                break false;
            }
        }
    };
    let mut all_written = true;
    for mut written in files {
        let state = written.file.state();
        report(&mut written, &state, None);
        all_written &= state.writes > 0;
        written.file.shutdown().await;
    }
    source.shutdown().await;
    Ok(all_written && !failed)
}

fn start(args: &Args, cache: &SvidCache) -> Result<Vec<WrittenFile>, BoxError> {
    let mut paths = BTreeSet::new();
    let mut files = Vec::new();
    for pair in args.files.chunks(2) {
        let [audience, path] = pair else {
            return Err("--file needs an audience and a path".into());
        };
        if !paths.insert(path) {
            return Err(
                format!("two files have the path {path:?}; use a different path for each").into(),
            );
        }
        let mut request =
            SvidRequest::new([audience]).map_err(|error| format!("{audience:?}: {error}"))?;
        if let Some(id) = &args.spiffe_id {
            request = request.with_spiffe_id(id.clone());
        }
        let acted = Arc::new(AtomicU64::new(0));
        let builder = TokenFile::builder(cache, request.clone(), path);
        let mut builder = builder.remove_on_exit(args.remove_on_exit);
        #[cfg(unix)]
        {
            builder = builder.mode(args.mode);
            if let Some(owner) = args.owner {
                builder = builder.owner(owner);
            }
            if let Some(group) = args.group {
                builder = builder.group(group);
            }
        }
        if args.has_action() {
            let (action, counted) = (Action::new(args), acted.clone());
            builder = builder.after_write(move |path| {
                action.run(path)?;
                counted.fetch_add(1, Ordering::AcqRel);
                Ok(())
            });
        }
        files.push(WrittenFile {
            file: builder.start()?,
            request,
            acted,
            reported_writes: 0,
            reported: String::new(),
        });
    }
    Ok(files)
}

/// Prints a write, an error, or a wait for the first token, if it is new.
fn report(
    written: &mut WrittenFile,
    state: &TokenFileState,
    waits: Option<(&SvidCache, &Endpoint)>,
) {
    let path = state.path.display();
    if state.writes > written.reported_writes {
        written.reported_writes = state.writes;
        let left = state.expires_in.unwrap_or_default().as_secs();
        say!(
            "wrote {path} for {:?}, expires in {left} s",
            written.request.audiences().collect::<Vec<_>>()
        );
    }
    let error = state
        .last_error
        .as_deref()
        .or(state.after_write_error.as_deref());
    let text = match (error, waits) {
        (Some(error), _) => error.to_owned(),
        (None, Some((cache, agent))) if state.writes == 0 => {
            let snapshot = cache.snapshot_of(&written.request);
            let why = snapshot.and_then(|snapshot| snapshot.last_error);
            let why = why.as_ref().and_then(|error| error.fetch_error());
            let why = why.map_or("no response yet".to_owned(), ToString::to_string);
            format!("waiting for the token of {path} from the agent at {agent}: {why}")
        }
        _ => String::new(),
    };
    if text != written.reported {
        if !text.is_empty() {
            warn!("token-file: {text}");
        }
        written.reported = text;
    }
}

impl Args {
    /// Whether there is a command or a signal after each write.
    fn has_action(&self) -> bool {
        #[cfg(unix)]
        if self.signal.is_some() {
            return true;
        }
        self.command.is_some()
    }
}

/// The command and the signal after each write.
struct Action {
    runtime: Handle,
    command: Option<String>,
    #[cfg(unix)]
    signal: Option<(rustix::process::Signal, PathBuf)>,
}

impl Action {
    fn new(args: &Args) -> Self {
        Self {
            runtime: Handle::current(),
            command: args.command.clone(),
            #[cfg(unix)]
            signal: args.signal.zip(args.pid_file.clone()),
        }
    }

    fn run(&self, path: &Path) -> Result<(), String> {
        if let Some(command) = &self.command {
            self.runtime.block_on(execute(command, path))?;
        }
        #[cfg(unix)]
        if let Some((signal, pid_file)) = &self.signal {
            send(*signal, pid_file)?;
        }
        Ok(())
    }
}

async fn execute(command: &str, path: &Path) -> Result<(), String> {
    let mut child = shell(command)
        .env("TOWER_SPIFFE_TOKEN_FILE", path)
        .stdin(std::process::Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .map_err(|error| format!("command {command:?} cannot be started: {error}"))?;
    match tokio::time::timeout(COMMAND_TIMEOUT, child.wait()).await {
        Ok(Ok(status)) if status.success() => Ok(()),
        Ok(Ok(status)) => Err(format!("command {command:?} failed: {status}")),
        Ok(Err(error)) => Err(format!("command {command:?} failed: {error}")),
        Err(_) => Err(format!(
            "command {command:?} failed: it ran longer than {} s and was killed",
            COMMAND_TIMEOUT.as_secs()
        )),
    }
}

#[cfg(unix)]
fn shell(command: &str) -> tokio::process::Command {
    let mut shell = tokio::process::Command::new("sh");
    shell.args(["-c", command]);
    shell
}

/// `/S` removes the outer quotes. `cmd` does not understand the usual escapes of quotes.
#[cfg(windows)]
fn shell(command: &str) -> tokio::process::Command {
    let mut shell = tokio::process::Command::new("cmd");
    shell.raw_arg(format!("/S /C \"{command}\""));
    shell
}

#[cfg(unix)]
fn send(signal: rustix::process::Signal, pid_file: &Path) -> Result<(), String> {
    use rustix::process::{Pid, kill_process};
    let failed = |why: &dyn std::fmt::Display| {
        format!("the signal cannot be sent: {why}; check the process ID in {pid_file:?}")
    };
    let text = std::fs::read_to_string(pid_file).map_err(|error| failed(&error))?;
    let id = text.trim().parse().ok().filter(|id| *id > 0);
    let process = id
        .and_then(Pid::from_raw)
        .ok_or_else(|| failed(&"not a process ID"))?;
    kill_process(process, signal).map_err(|error| failed(&error))
}
