//! What a service that admits callers has in memory: a source, a validator, a layer, and the
//! tokens that came.

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

/// So many callers come, each with a token of its own.
const TOKENS: usize = 1000;

const EMPTY: &str = "no source";

/// When a process says what it has.
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
    // What each said at each moment, in each round.
    let mut said: [Vec<Vec<Memory>>; 2] = [vec![Vec::new()], vec![Vec::new()]];
    for round in 0..rounds {
        for who in shuffled(all.len(), round) {
            said[who][0].push(Process::start(all[who].1, "", 0).says());
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
        for said in &mut said {
            said.extend(MOMENTS.map(|_| Vec::new()));
        }
        for round in 0..rounds {
            for who in shuffled(all.len(), round) {
                let life = life(&agent, &tokens, all[who].1, size);
                let at = said[who].len() - life.len();
                for (values, value) in said[who][at..].iter_mut().zip(life) {
                    values.push(value);
                }
            }
        }
    }
    let table = |id, title, of: fn(&Memory) -> f64| {
        // The first is one program, whoever it will be.
        let mut table = Table::new(id, title, &titles).better(EMPTY, Better::Neither);
        for ((who, _), said) in all.iter().zip(&said) {
            let cells = said.iter().map(|values| {
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
            "A process of its own for each, of this one program, which has every peer linked into \
             it: the first column is what it has before it does anything. {KEYS} keys in each \
             trust domain. `served` is after {TOKENS} requests with as many tokens, which \
             tower-spiffe keeps in its cache (at most 8 MiB unless told otherwise), `updated` \
             after ten more messages, each with all bundles, one of them changed."
        )),
        table(
            "memory-own",
            "The same without what is read from the program's file: heap and stacks",
            |memory| memory.own,
        ),
    ]
}

/// In bytes.
#[derive(Clone, Copy)]
struct Memory {
    resident: f64,
    /// Without pages of files, such as the program's own.
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

    fn says(&mut self) -> Memory {
        let line = self.lines.next().unwrap().unwrap();
        let (resident, own) = line.split_once(' ').expect("two numbers");
        Memory {
            resident: resident.parse().unwrap(),
            own: own.parse().unwrap(),
        }
    }

    fn tell(&mut self, text: &str) {
        let stdin = self.child.stdin.as_mut().expect("it listens");
        writeln!(stdin, "{text}").unwrap();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        drop(self.child.stdin.take());
        let _ = self.child.wait();
    }
}

/// Takes one process through its life; what it says at each moment.
fn life(agent: &Agent, tokens: &[String], who: &str, size: usize) -> [Memory; 3] {
    let mut service = Process::start(who, &agent.api.endpoint().to_string(), size);
    let ready = service.says();
    service.tell(&tokens.join("\n"));
    service.tell("");
    let served = service.says();
    for _ in 0..10 {
        let _entered = agent.runtime.enter();
        let changed = Signer::usual().jwks();
        agent.api.federate_raw("changing.example", changed).unwrap();
        std::thread::sleep(Duration::from_millis(60));
    }
    agent.api.unfederate("changing.example");
    std::thread::sleep(Duration::from_millis(60));
    service.tell("");
    [ready, served, service.says()]
}

fn say_resident() {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let field = |name: &str| {
        let line = status.lines().find(|line| line.starts_with(name));
        let kib = line.unwrap().split_whitespace().nth(1).unwrap();
        kib.parse::<u64>().unwrap() * 1024
    };
    println!("{} {}", field("VmRSS:"), field("RssAnon:"));
}

/// What such a process does: says how much memory it has, takes tokens as requests until an empty
/// line, says it again, and once more after the next line.
pub fn be_child(arguments: &[String]) {
    let [who, size, endpoint] = arguments else {
        panic!("--child WHO SIZE ENDPOINT");
    };
    let size: usize = size.parse().unwrap();
    if size == 0 {
        return say_resident();
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
    say_resident();
    loop {
        let token = line().await;
        if token.trim().is_empty() {
            break;
        }
        let request = request(Some(&bearer(token.trim())));
        let response = service.ready().await.unwrap().call(request).await.unwrap();
        assert_eq!(response.status(), StatusCode::OK);
    }
    say_resident();
    line().await;
    say_resident();
}
