//! Sources connected to a Workload API: start, fetching tokens, and verification while bundles
//! change.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use tokio::runtime::Runtime;
use tower_spiffe::source::ResourceLimits;
use tower_spiffe::testing::FakeAgent;
use tower_spiffe::{JwtSource, Validator};

use crate::growth::key_sets;
use crate::inject;
use crate::keys::{AUDIENCE, SUBJECT, Signer, TRUST_DOMAIN};
use crate::measure::{Contest, Effort, Spread, quantile, shuffled};
use crate::names::{OURS, Who};
use crate::table::{Better, Cell, Table};

const SPIFFE: Who = Who::peer("spiffe 0.19 `JwtSource` [^spiffe]");
pub const KEYS: usize = 2;

/// An agent on its own thread. Dropping it stops the agent.
pub struct Agent {
    pub api: FakeAgent,
    pub runtime: Runtime,
}

impl Agent {
    /// Starts an agent that serves this number of trust domains.
    pub fn start(trust_domains: usize) -> Self {
        let runtime = inject::runtime();
        let api = runtime.block_on(FakeAgent::start(TRUST_DOMAIN)).unwrap();
        let agent = Self { api, runtime };
        agent.federate(trust_domains);
        agent
    }

    /// Serves the federated trust domains with new keys.
    fn federate(&self, trust_domains: usize) {
        let signer = Signer::usual();
        let _entered = self.runtime.enter();
        for (name, jwks) in key_sets(&signer, trust_domains, KEYS).into_iter().skip(1) {
            self.api.federate_raw(&name, jwks).unwrap();
        }
    }
}

pub async fn our_source(endpoint: &str) -> JwtSource {
    JwtSource::builder()
        .endpoint(endpoint)
        .resource_limits(ResourceLimits::default().max_bundles(10_000))
        .build()
        .await
        .unwrap()
}

pub async fn spiffe_source(endpoint: &str) -> spiffe::JwtSource {
    spiffe::JwtSource::builder()
        .endpoint(endpoint)
        .resource_limits(spiffe::JwtResourceLimits::unlimited())
        .build()
        .await
        .unwrap()
}

pub fn single_thread() -> Runtime {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap()
}

pub const SIZES: [usize; 3] = [1, 200, 2000];

/// The time until a new source can verify tokens.
pub fn start(effort: Effort) -> Table {
    let titles = SIZES.map(|size| format!("trust domains: {size}"));
    let mut table = Table::new(
        "start",
        "Starting a source until it is ready, over a Unix socket",
        &titles.each_ref().map(String::as_str),
    );
    let rounds = if effort.quick { 2 } else { 21 };
    let mut rows = [Vec::new(), Vec::new()];
    for size in SIZES {
        let agent = Agent::start(size);
        let endpoint = agent.api.endpoint().to_string();
        let runtime = single_thread();
        let mut times = [Vec::new(), Vec::new()];
        for round in 0..rounds {
            for who in shuffled(2, round) {
                let time = runtime.block_on(async {
                    let start = Instant::now();
                    if who == 0 {
                        let source = our_source(&endpoint).await;
                        let time = start.elapsed();
                        assert_eq!(source.bundle_set().unwrap().len(), size);
                        source.shutdown().await;
                        time
                    } else {
                        let source = spiffe_source(&endpoint).await;
                        let time = start.elapsed();
                        assert_eq!(source.bundle_set().unwrap().len(), size);
                        source.shutdown().await;
                        time
                    }
                });
                times[who].push(time.as_nanos() as f64);
            }
        }
        for (row, times) in rows.iter_mut().zip(times) {
            row.push(Cell::nanos(Spread::of(&times)));
        }
    }
    let [ours, theirs] = rows;
    table.row(OURS.with(" `JwtSource`"), ours);
    table.row(SPIFFE, theirs);
    table.note(&format!(
        "Each trust domain has {KEYS} keys (P-256). tower-spiffe parses all keys at start, \
         `spiffe` parses a key at each verification. The agent runs in the same process."
    ))
}

/// Getting a token for an outgoing request.
pub fn own_token(effort: Effort) -> Table {
    let agent = Agent::start(1);
    {
        let _entered = agent.runtime.enter();
        let life = Duration::from_secs(3600);
        agent.api.register(SUBJECT, "", life).unwrap();
    }
    let endpoint = agent.api.endpoint().to_string();
    let runtime = single_thread();
    let ours = runtime.block_on(our_source(&endpoint));
    let theirs = runtime.block_on(spiffe_source(&endpoint));
    let outcomes = Contest::new(effort)
        .each(
            OURS.with(" `JwtSource::get_jwt_svid`, from its cache"),
            |_| runtime.block_on(ours.get_jwt_svid([AUDIENCE])).unwrap(),
        )
        .each(
            OURS.with(" `JwtSource::fetch_jwt_svid`, a call each time"),
            |_| runtime.block_on(ours.fetch_jwt_svid([AUDIENCE])).unwrap(),
        )
        .each(
            Who::peer("spiffe 0.19 `JwtSource::fetch_jwt_svid`, a call each time"),
            |_| runtime.block_on(theirs.fetch_jwt_svid([AUDIENCE])).unwrap(),
        )
        .run();
    runtime.block_on(async {
        ours.shutdown().await;
        theirs.shutdown().await;
    });
    Table::contest(
        "own-token",
        "Getting a token for an outgoing request",
        &outcomes,
    )
    .note(
        "The agent is `FakeAgent` of tower-spiffe's `testing`, in the same process, over a Unix \
         socket. It returns a token that it already has. A real agent attests the caller for each \
         call.",
    )
}

/// A verifier with its own source, used while bundles change.
enum Verifier {
    Ours(JwtSource, Validator),
    Spiffe(spiffe::JwtSource),
}

impl Verifier {
    async fn ours(endpoint: &str, cache: bool) -> Self {
        let source = our_source(endpoint).await;
        let builder = Validator::builder(source.clone()).audience(AUDIENCE);
        let builder = if cache { builder } else { builder.no_cache() };
        Self::Ours(source, builder.build().unwrap())
    }

    fn verify(&self, token: &str) {
        match self {
            Self::Ours(_, validator) => drop(validator.validate(token).unwrap()),
            Self::Spiffe(source) => {
                let svid = spiffe::JwtSvid::parse_and_validate(token, source, &[AUDIENCE]);
                drop(svid.unwrap());
            }
        }
    }

    /// Returns the number of updates that its source has processed.
    fn updates(&self) -> u64 {
        match self {
            Self::Ours(source, _) => source.state().revision,
            Self::Spiffe(source) => source.updated().last(),
        }
    }

    async fn shutdown(self) {
        match self {
            Self::Ours(source, _) => source.shutdown().await,
            Self::Spiffe(source) => source.shutdown().await,
        }
    }
}

/// Verification while bundles change.
pub fn update(effort: Effort) -> Table {
    const DOMAINS: usize = 200;
    let agent = Agent::start(DOMAINS);
    let endpoint = agent.api.endpoint().to_string();
    let token = {
        let _entered = agent.runtime.enter();
        agent
            .api
            .issuer()
            .token(SUBJECT, AUDIENCE)
            .expires_in(Duration::from_secs(6 * 3600))
            .sign()
    };
    // The source's tasks run on a separate thread.
    let runtime = inject::runtime();
    let (rounds, span) = match effort.quick {
        true => (2, Duration::from_millis(100)),
        false => (15, Duration::from_millis(400)),
    };
    let all = [
        OURS.with(", token seen before"),
        OURS.with(", each verified anew"),
        SPIFFE,
    ];
    let mut figures = vec![vec![Vec::new(); 7]; all.len()];
    for round in 0..rounds {
        for at in shuffled(all.len(), round) {
            // Only this source exists now, so no other source adds load.
            let verifier = runtime.block_on(async {
                match at {
                    0 => Verifier::ours(&endpoint, true).await,
                    1 => Verifier::ours(&endpoint, false).await,
                    _ => Verifier::Spiffe(spiffe_source(&endpoint).await),
                }
            });
            let mut next = figures[at].iter_mut();
            let mut put = |value| next.next().expect("a column").push(value);
            let mut seen = 0;
            for changing in [false, true] {
                let before = verifier.updates();
                let verify = || verifier.verify(&token);
                let times = while_changing(&agent, changing, || times(span, &verify));
                seen = verifier.updates() - before;
                for q in [0.5, 0.99, 0.999] {
                    put(quantile(times.clone(), q));
                }
            }
            put(seen as f64 / span.as_secs_f64());
            runtime.block_on(verifier.shutdown());
        }
    }
    const SEEN: &str = "updates applied";
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
            SEEN,
        ],
    )
    .better(SEEN, Better::Neither);
    for (who, mut figures) in all.into_iter().zip(figures) {
        let seen = figures.pop().expect("the last column");
        let mut cells: Vec<_> = figures
            .iter()
            .map(|values| Cell::nanos(Spread::of(values)))
            .collect();
        cells.push(Cell::rate(Spread::of(&seen)));
        table.row(who, cells);
    }
    table.note(
        "One source runs at a time. Each figure is the median of the rounds. The agent, the source \
         and the verifying thread share the cores, so p99.9 includes scheduling delays.",
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
    let (sender, receiver) = mpsc::channel();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let keys = [Signer::usual(), Signer::usual()].map(|signer| signer.jwks());
            sender.send(()).unwrap();
            let mut turn = 0;
            while !done.load(Ordering::Relaxed) {
                let _entered = agent.runtime.enter();
                let jwks = keys[turn % 2].clone();
                agent.api.federate_raw("td7.example", jwks).unwrap();
                turn += 1;
                std::thread::sleep(Duration::from_millis(20));
            }
        });
        receiver.recv().unwrap();
        let result = work();
        done.store(true, Ordering::Relaxed);
        result
    })
}
