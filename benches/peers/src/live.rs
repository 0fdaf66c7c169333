//! With a Workload API behind it: to the first bundles, a token of one's own, memory, and bundles
//! that change while tokens are verified.

use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use tokio::runtime::Runtime;
use tower_spiffe::testing::WorkloadApi;
use tower_spiffe::{JwtSource, ResourceLimits, Validator};

use crate::growth::key_sets;
use crate::keys::{AUDIENCE, SUBJECT, Signer, TRUST_DOMAIN};
use crate::measure::{Effort, quantile};
use crate::report::{Cell, Table};
use crate::verify::OURS;

const SPIFFE: &str = "spiffe 0.19 `JwtSource`";
const KEYS: usize = 2;

/// An agent on a thread of its own; it is gone with this.
struct Agent {
    api: WorkloadApi,
    runtime: Runtime,
}

impl Agent {
    /// One that serves so many trust domains.
    fn start(trust_domains: usize) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        let api = runtime.block_on(WorkloadApi::start(TRUST_DOMAIN)).unwrap();
        let agent = Self { api, runtime };
        agent.federate(trust_domains);
        agent
    }

    /// Serves the others anew, each with other keys than before.
    fn federate(&self, trust_domains: usize) {
        let signer = Signer::usual();
        let _entered = self.runtime.enter();
        for (name, jwks) in key_sets(&signer, trust_domains, KEYS).into_iter().skip(1) {
            self.api.federate_raw(&name, jwks).unwrap();
        }
    }
}

async fn our_source(endpoint: &str) -> JwtSource {
    JwtSource::builder()
        .endpoint(endpoint)
        .resource_limits(ResourceLimits::default().max_bundles(10_000))
        .build()
        .await
        .unwrap()
}

async fn spiffe_source(endpoint: &str) -> spiffe::JwtSource {
    spiffe::JwtSource::builder()
        .endpoint(endpoint)
        .resource_limits(spiffe::JwtResourceLimits::unlimited())
        .build()
        .await
        .unwrap()
}

fn single_thread() -> Runtime {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap()
}

const SIZES: [usize; 3] = [1, 200, 2000];

/// From nothing to bundles that tokens can be verified with.
pub fn start(effort: Effort) -> Table {
    let titles = SIZES.map(|size| format!("{size} trust domains"));
    let mut table = Table::new(
        "start",
        "From no source to one that is ready, over a Unix socket",
        &titles.each_ref().map(String::as_str),
    );
    let rounds = if effort.quick { 2 } else { 21 };
    let mut rows = [Vec::new(), Vec::new()];
    for size in SIZES {
        let agent = Agent::start(size);
        let endpoint = agent.api.endpoint();
        let runtime = single_thread();
        let mut times = [Vec::new(), Vec::new()];
        for _ in 0..rounds {
            runtime.block_on(async {
                let start = Instant::now();
                let source = our_source(&endpoint).await;
                times[0].push(start.elapsed().as_nanos() as f64);
                assert_eq!(source.bundle_set().unwrap().len(), size);
                source.shutdown().await;
                let start = Instant::now();
                let source = spiffe_source(&endpoint).await;
                times[1].push(start.elapsed().as_nanos() as f64);
                assert_eq!(source.bundle_set().unwrap().len(), size);
                source.shutdown().await;
            });
        }
        for (row, times) in rows.iter_mut().zip(times) {
            row.push(Cell::nanos(quantile(times, 0.5)));
        }
    }
    let [ours, theirs] = rows;
    table.row(format!("{OURS} `JwtSource`"), ours);
    table.row(SPIFFE, theirs);
    table.note(&format!(
        "{KEYS} keys (P-256) in each trust domain. tower-spiffe parses each key here, `spiffe` at \
         each verification."
    ))
}

/// A token of one's own, ready to be sent.
pub fn own_token(effort: Effort) -> Table {
    let agent = Agent::start(1);
    {
        let _entered = agent.runtime.enter();
        let life = Duration::from_secs(3600);
        agent.api.register(SUBJECT, "", life).unwrap();
    }
    let endpoint = agent.api.endpoint();
    let runtime = single_thread();
    let ours = runtime.block_on(our_source(&endpoint));
    let theirs = runtime.block_on(spiffe_source(&endpoint));
    let outcomes = crate::measure::Contest::new(effort)
        .each(
            format!("{OURS} `JwtSource::get_jwt_svid`, from its cache"),
            |_| runtime.block_on(ours.get_jwt_svid([AUDIENCE])).unwrap(),
        )
        .each(
            format!("{OURS} `JwtSource::fetch_jwt_svid`, a call each time"),
            |_| runtime.block_on(ours.fetch_jwt_svid([AUDIENCE])).unwrap(),
        )
        .each(
            "spiffe 0.19 `JwtSource::fetch_jwt_svid`, a call each time",
            |_| runtime.block_on(theirs.fetch_jwt_svid([AUDIENCE])).unwrap(),
        )
        .run();
    runtime.block_on(async {
        ours.shutdown().await;
        theirs.shutdown().await;
    });
    Table::contest("own-token", "A token of one's own, to be sent", outcomes).note(
        "The agent is the one of tower-spiffe's `testing`, in the same process and over a Unix \
         socket; it hands out the token that it has. A real one attests the caller each time.",
    )
}

/// What a process has in memory with a source in it.
pub fn memory(effort: Effort) -> Table {
    let rounds = if effort.quick { 1 } else { 5 };
    let titles: Vec<String> = ["no source", "1", "200", "2000"]
        .into_iter()
        .flat_map(|size| match size {
            "no source" => vec![size.to_owned()],
            size => vec![format!("{size} ready"), format!("{size} updated")],
        })
        .collect();
    let titles: Vec<&str> = titles.iter().map(String::as_str).collect();
    let mut table = Table::new("memory", "Resident memory, by trust domains", &titles);
    for (name, who) in [
        (format!("{OURS} `JwtSource`"), "ours"),
        (SPIFFE.to_owned(), "spiffe"),
    ] {
        let mut cells = vec![Cell::bytes(child(rounds, who, 0, None)[0])];
        for size in SIZES {
            let agent = Agent::start(size);
            let [ready, updated] = child(rounds, who, size, Some(&agent));
            cells.extend([Cell::bytes(ready), Cell::bytes(updated)]);
        }
        table.row(name, cells);
    }
    table.note(
        "A process of its own for each, of this one program, which has every peer linked into it: \
         the first column is what it has before it does anything. `updated` is after ten more \
         messages, each with all bundles, one of them changed.",
    )
}

/// The medians of what processes of their own say.
fn child(rounds: usize, who: &str, size: usize, agent: Option<&Agent>) -> [f64; 2] {
    let runs: Vec<[f64; 2]> = (0..rounds)
        .map(|_| {
            let mut command = Command::new(std::env::current_exe().unwrap());
            command.args(["--child", who, &size.to_string()]);
            command.stdin(std::process::Stdio::piped());
            command.stdout(std::process::Stdio::piped());
            command.arg(agent.map_or_else(String::new, |agent| agent.api.endpoint()));
            let mut child = command.spawn().unwrap();
            let mut lines =
                std::io::BufRead::lines(std::io::BufReader::new(child.stdout.take().unwrap()));
            let mut next = || lines.next().unwrap().unwrap().parse::<f64>().unwrap();
            let ready = next();
            if let Some(agent) = agent {
                for _ in 0..10 {
                    let _entered = agent.runtime.enter();
                    let signer = Signer::usual();
                    let changed = format!(r#"{{"keys":[{}]}}"#, signer.jwk());
                    agent.api.federate_raw("changing.example", changed).unwrap();
                    std::thread::sleep(Duration::from_millis(60));
                }
                agent.api.unfederate("changing.example");
                std::thread::sleep(Duration::from_millis(60));
            }
            drop(child.stdin.take());
            let updated = next();
            child.wait().unwrap();
            [ready, updated]
        })
        .collect();
    [0, 1].map(|at| quantile(runs.iter().map(|run| run[at]).collect(), 0.5))
}

/// What such a process does: says how much memory it has, and again when its input ends.
pub fn be_child(arguments: &[String]) {
    let [who, size, endpoint] = arguments else {
        panic!("--child WHO SIZE ENDPOINT");
    };
    let resident = || {
        let status = std::fs::read_to_string("/proc/self/status").unwrap();
        let line = status.lines().find(|line| line.starts_with("VmRSS:"));
        let kib = line.unwrap().split_whitespace().nth(1).unwrap();
        println!("{}", kib.parse::<u64>().unwrap() * 1024);
    };
    let until_told = || async {
        resident();
        tokio::task::spawn_blocking(|| std::io::stdin().read_line(&mut String::new()))
            .await
            .unwrap()
            .unwrap();
        resident();
    };
    let size: usize = size.parse().unwrap();
    single_thread().block_on(async {
        match (who.as_str(), size) {
            (_, 0) => until_told().await,
            ("ours", size) => {
                let source = our_source(endpoint).await;
                assert_eq!(source.bundle_set().unwrap().len(), size);
                until_told().await;
            }
            (_, size) => {
                let source = spiffe_source(endpoint).await;
                assert_eq!(source.bundle_set().unwrap().len(), size);
                until_told().await;
            }
        }
    });
}

/// Verifies while bundles change.
pub fn update(effort: Effort) -> Table {
    const DOMAINS: usize = 200;
    let agent = Agent::start(DOMAINS);
    let endpoint = agent.api.endpoint();
    let token = {
        let _entered = agent.runtime.enter();
        agent
            .api
            .issuer()
            .token(SUBJECT, AUDIENCE)
            .expires_in(Duration::from_secs(6 * 3600))
            .sign()
    };
    // The sources' own work has a thread of its own.
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .unwrap();
    let ours = runtime.block_on(our_source(&endpoint));
    let theirs = runtime.block_on(spiffe_source(&endpoint));
    let validator = Validator::builder(ours.clone())
        .audience(AUDIENCE)
        .build()
        .unwrap();
    let fresh = Validator::builder(ours.clone())
        .audience(AUDIENCE)
        .no_cache()
        .build()
        .unwrap();

    let span = if effort.quick {
        Duration::from_millis(200)
    } else {
        Duration::from_secs(4)
    };
    type Verify<'a> = Box<dyn Fn() + 'a>;
    let entrants: [(String, Verify<'_>); 3] = [
        (
            format!("{OURS}, token seen before"),
            Box::new(|| drop(validator.validate(&token).unwrap())),
        ),
        (
            format!("{OURS}, each verified anew"),
            Box::new(|| drop(fresh.validate(&token).unwrap())),
        ),
        (
            SPIFFE.to_owned(),
            Box::new(|| {
                let verdict = spiffe::JwtSvid::parse_and_validate(&token, &theirs, &[AUDIENCE]);
                drop(verdict.unwrap());
            }),
        ),
    ];
    let mut table = Table::new(
        "update",
        "Verifying while the bundles of 200 trust domains change 50 times a second (ES256)",
        &[
            "quiet p50",
            "p99",
            "p99.9",
            "changing p50",
            "p99 ",
            "p99.9 ",
            "updates seen",
        ],
    );
    for (name, verify) in &entrants {
        let mut cells = Vec::new();
        let updates = ours.state().revision();
        for changing in [false, true] {
            let times = while_changing(&agent, changing, || times(span, verify));
            for q in [0.5, 0.99, 0.999] {
                cells.push(Cell::nanos(quantile(times.clone(), q)));
            }
        }
        cells.push(Cell::count((ours.state().revision() - updates) as f64));
        table.row(name.as_str(), cells);
    }
    runtime.block_on(async {
        ours.shutdown().await;
        theirs.shutdown().await;
    });
    table.note(
        "Both sources take every update in, whoever verifies. The agent, both sources and the \
         verifying thread share two cores: p99.9 has the scheduler in it.",
    )
}

fn times(span: Duration, verify: &dyn Fn()) -> Vec<f64> {
    let mut times = Vec::new();
    let start = Instant::now();
    let mut last = start;
    while last - start < span {
        verify();
        let now = Instant::now();
        times.push((now - last).as_nanos() as f64);
        last = now;
    }
    times
}

fn while_changing<T>(agent: &Agent, changing: bool, work: impl FnOnce() -> T) -> T {
    let done = AtomicBool::new(!changing);
    let (tell, told) = mpsc::channel();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let keys = [Signer::usual(), Signer::usual()].map(|signer| signer.jwks());
            tell.send(()).unwrap();
            let mut turn = 0;
            while !done.load(Ordering::Relaxed) {
                let _entered = agent.runtime.enter();
                let jwks = keys[turn % 2].clone();
                agent.api.federate_raw("td7.example", jwks).unwrap();
                turn += 1;
                std::thread::sleep(Duration::from_millis(20));
            }
        });
        told.recv().unwrap();
        let result = work();
        done.store(true, Ordering::Relaxed);
        result
    })
}
