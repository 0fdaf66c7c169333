//! Memory of a service that verifies callers: a source, a validator, a layer, and cached tokens.

use std::io::{BufRead as _, BufReader, Lines, Write as _};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::Duration;

use http::{Request, Response, StatusCode};
use tower::{Layer as _, Service, ServiceExt as _};
use tower_http::validate_request::ValidateRequestHeaderLayer;
use tower_spiffe::Validator;

use crate::keys::{AUDIENCE, SUBJECT, Signer};
use crate::layer::{token_of, unauthorized};
use crate::live::{Agent, KEYS, SIZES, our_source, single_thread, spiffe_source};
use crate::measure::{Effort, Spread, shuffled};
use crate::names::{OURS, Who};
use crate::peers::{Bare, bearer, our_layer, request};
use crate::table::{Better, Cell, Table};

const SPIFFE: Who = Who::peer("spiffe 0.19 `JwtSource`, tower-http 0.7 `custom` [^spiffe]");

/// The number of callers, each with its own token.
const TOKENS: usize = 1000;

const EMPTY: &str = "no source";

/// The moments when a process reports its memory.
const MOMENTS: [&str; 3] = ["ready", "served", "updated"];

pub fn memory(effort: Effort) -> Vec<Table> {
    let rounds = if effort.quick { 1 } else { 5 };
    let titles: Vec<String> = std::iter::once(EMPTY.to_owned())
        .chain(
            SIZES
                .iter()
                .flat_map(|size| MOMENTS.map(|moment| format!("{size} {moment}"))),
        )
        .collect();
    let titles: Vec<&str> = titles.iter().map(String::as_str).collect();
    let all = [
        (OURS.with(" `JwtSource`, validator and layer"), "ours"),
        (SPIFFE, "spiffe"),
    ];
    // By entrant, then by moment, then by round.
    let mut reports: [Vec<Vec<Memory>>; 2] = [vec![Vec::new()], vec![Vec::new()]];
    for round in 0..rounds {
        for who in shuffled(all.len(), round) {
            reports[who][0].push(Process::start(all[who].1, "", 0).read_memory());
        }
    }
    for size in SIZES {
        let agent = Agent::start(size);
        let tokens: Vec<String> = {
            let _entered = agent.runtime.enter();
            let issuer = agent.api.issuer();
            let token = |n| {
                let subject = format!("{SUBJECT}/{n}");
                let token = issuer.token(&subject, AUDIENCE);
                token.expires_in(Duration::from_secs(6 * 3600)).sign()
            };
            (0..TOKENS).map(token).collect()
        };
        for moments in &mut reports {
            moments.extend(MOMENTS.map(|_| Vec::new()));
        }
        for round in 0..rounds {
            for who in shuffled(all.len(), round) {
                let new = measure_process(&agent, &tokens, all[who].1, size);
                let at = reports[who].len() - new.len();
                for (values, value) in reports[who][at..].iter_mut().zip(new) {
                    values.push(value);
                }
            }
        }
    }
    let table = |id, title, of: fn(&Memory) -> f64| {
        // The first column is the same program for all entrants.
        let mut table = Table::new(id, title, &titles).better(EMPTY, Better::Neither);
        for ((who, _), moments) in all.iter().zip(&reports) {
            let cells = moments.iter().map(|values| {
                let values: Vec<f64> = values.iter().map(of).collect();
                Cell::bytes(Spread::of(&values))
            });
            table.row(who.clone(), cells.collect());
        }
        table
    };
    vec![
        table(
            "memory",
            "Resident memory of a service, by trust domains",
            |memory| memory.resident,
        )
        .note(&format!(
            "Each figure is from a new process of the same program, which links all peers. *no \
             source* is its memory at start. Each trust domain has {KEYS} keys. *served* is after \
             {TOKENS} requests with different tokens, which tower-spiffe caches (at most 8 MiB by \
             default). *updated* is after ten more messages with all bundles, one of them changed."
        )),
        table(
            "memory-own",
            "The same: anonymous memory only (heap and stacks)",
            |memory| memory.own,
        ),
    ]
}

/// In bytes.
#[derive(Clone, Copy)]
struct Memory {
    resident: f64,
    /// Anonymous memory: without pages of files, such as the program's code.
    own: f64,
}

/// A process with a service in it.
struct Process {
    child: Child,
    lines: Lines<BufReader<ChildStdout>>,
}

impl Process {
    fn start(who: &str, endpoint: &str, size: usize) -> Self {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["--child", who, &size.to_string(), endpoint]);
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        Self { child, lines }
    }

    fn read_memory(&mut self) -> Memory {
        let line = self.lines.next().unwrap().unwrap();
        let (resident, own) = line.split_once(' ').expect("two numbers");
        Memory {
            resident: resident.parse().unwrap(),
            own: own.parse().unwrap(),
        }
    }

    fn send(&mut self, text: &str) {
        let stdin = self.child.stdin.as_mut().expect("stdin is piped");
        writeln!(stdin, "{text}").unwrap();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        drop(self.child.stdin.take());
        let _ = self.child.wait();
    }
}

/// Runs one process and returns its memory at each moment.
fn measure_process(agent: &Agent, tokens: &[String], who: &str, size: usize) -> [Memory; 3] {
    let mut service = Process::start(who, &agent.api.endpoint().to_string(), size);
    let ready = service.read_memory();
    service.send(&tokens.join("\n"));
    service.send("");
    let served = service.read_memory();
    for _ in 0..10 {
        let _entered = agent.runtime.enter();
        let changed = Signer::usual().jwks();
        agent.api.federate_raw("changing.example", changed).unwrap();
        std::thread::sleep(Duration::from_millis(60));
    }
    agent.api.unfederate("changing.example");
    std::thread::sleep(Duration::from_millis(60));
    service.send("");
    [ready, served, service.read_memory()]
}

fn print_memory() {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let field = |name: &str| {
        let line = status.lines().find(|line| line.starts_with(name));
        let kib = line.unwrap().split_whitespace().nth(1).unwrap();
        kib.parse::<u64>().unwrap() * 1024
    };
    println!("{} {}", field("VmRSS:"), field("RssAnon:"));
}

/// Runs such a process. It prints its memory, verifies one token per line up to an empty line,
/// prints its memory, and prints it again after the next line.
pub fn run_child(arguments: &[String]) {
    let [who, size, endpoint] = arguments else {
        panic!("usage: --child WHO SIZE ENDPOINT");
    };
    let size: usize = size.parse().unwrap();
    if size == 0 {
        return print_memory();
    }
    single_thread().block_on(async {
        if who == "ours" {
            let source = our_source(endpoint).await;
            assert_eq!(source.bundle_set().unwrap().len(), size);
            let validator = Validator::builder(source)
                .audience(AUDIENCE)
                .build()
                .unwrap();
            serve(our_layer(validator).layer(Bare::<String>::new())).await;
        } else {
            let source = spiffe_source(endpoint).await;
            assert_eq!(source.bundle_set().unwrap().len(), size);
            let layer = ValidateRequestHeaderLayer::custom(move |request: &mut Request<String>| {
                let verify =
                    |token| spiffe::JwtSvid::parse_and_validate(token, &source, &[AUDIENCE]).ok();
                let svid = token_of(request).and_then(verify);
                request
                    .extensions_mut()
                    .insert(svid.ok_or_else(unauthorized)?);
                Ok(())
            });
            serve(layer.layer(Bare::<String>::new())).await;
        }
    });
}

async fn serve<S>(mut service: S)
where
    S: Service<Request<String>, Response = Response<String>>,
    S::Error: std::fmt::Debug,
{
    let line = async || {
        let read = || {
            let mut line = String::new();
            std::io::stdin().read_line(&mut line).unwrap();
            line
        };
        tokio::task::spawn_blocking(read).await.unwrap()
    };
    print_memory();
    loop {
        let token = line().await;
        if token.trim().is_empty() {
            break;
        }
        let request = request(Some(&bearer(token.trim())));
        let response = service.ready().await.unwrap().call(request).await.unwrap();
        assert_eq!(response.status(), StatusCode::OK);
    }
    print_memory();
    line().await;
    print_memory();
}
