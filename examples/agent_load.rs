//! How many calls your agents will get: a simulation, to size them by.
//!
//! ```text
//! cargo run --release --example agent_load                            # the usual questions
//! cargo run --release --example agent_load -- --seeds 1000            # the last table in full
//! cargo run --release --example agent_load -- --processes 40 --audiences 12 --life 900
//! ```
//!
//! Nothing of the cache is modelled: each process is a `SvidCache` of this crate, on a clock that
//! jumps from event to event. What is simulated is the agent, as SPIRE's behaves: it hands out its
//! own cached token until 45 to 55 % of the life is left (drawn anew for each call), then has the
//! server sign a new one; and the requests, at a steady rate from a random beginning. Requests for
//! a token that is fresh change nothing, so they are counted and not made.
//!
//! The columns: calls to the agent per token life, for one audience of one process (mean, and the
//! 5th, 50th and 95th percentile of the audiences, and the most); how many of all calls brought
//! nothing new; signings by the server per life and audience, for all processes together; and the
//! busiest second against the mean one.
#![allow(clippy::unwrap_used, clippy::print_stdout, clippy::indexing_slicing)]

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};
use std::process::ExitCode;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use tower_spiffe::svid::{FetchSvid, FetchSvidFuture};
use tower_spiffe::testing::PausedClock;
use tower_spiffe::{Clock, JwtSvid, SvidCache, SvidRequest, UnixTime};

/// What is asked.
#[derive(Clone, Copy)]
struct Question {
    processes: usize,
    audiences: usize,
    /// Seconds that a token lives.
    life: u64,
    /// Requests per second, for each audience of each process.
    rate: f64,
    /// Lives that are measured; one before them is not.
    lives: u64,
    seeds: u64,
}

/// What came of it, over all seeds.
#[derive(Default)]
struct Answer {
    /// Calls per life, of each audience of each process.
    calls: Vec<f64>,
    useless: u64,
    failed: u64,
    signed: f64,
    requests: f64,
    by_second: Vec<u64>,
}

fn main() -> ExitCode {
    let asked = match arguments() {
        Ok(asked) => asked,
        Err(help) => {
            println!("{help}");
            return ExitCode::from(2);
        }
    };
    println!(
        "{:>9} {:>9} {:>6} {:>6} | {:>5} {:>5} {:>5} {:>5} {:>5} | {:>7} {:>7} | {:>6}",
        "processes",
        "audiences",
        "life s",
        "seeds",
        "calls",
        "p5",
        "p50",
        "p95",
        "most",
        "useless",
        "signed",
        "peak"
    );
    let mut good = true;
    for (question, bar) in asked {
        let answer = simulate(question);
        let (mean, peak) = (answer.mean(), answer.peak());
        println!(
            "{:>9} {:>9} {:>6} {:>6} | {:>5.3} {:>5.2} {:>5.2} {:>5.2} {:>5.2} | {:>7} {:>7.3} | {:>5.2}x",
            question.processes,
            question.audiences,
            question.life,
            question.seeds,
            mean,
            answer.share(0.05),
            answer.share(0.50),
            answer.share(0.95),
            answer.share(1.0),
            answer.useless,
            answer.signed,
            peak,
        );
        if let Some(bar) = bar {
            let holds = mean <= bar && answer.useless == 0 && answer.failed == 0 && peak <= 3.0;
            good &= holds;
            let verdict = if holds { "holds" } else { "FAILS" };
            println!(
                "{:>33} | bar: at most {bar} calls, none useless, peak 3x: {verdict}",
                ""
            );
        }
    }
    println!(
        "\nTo size an agent: calls a second = processes x audiences x calls / life. For 20 processes\n\
         with 30 audiences each and tokens of 300 s that is 20 x 30 x 1.8 / 300 = 3.6; every call\n\
         attests its caller anew, and the agent keeps 1000 tokens by default."
    );
    if good {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

/// The questions, and the most calls per life that are allowed.
fn arguments() -> Result<Vec<(Question, Option<f64>)>, String> {
    let usual = Question {
        processes: 1,
        audiences: 200,
        life: 300,
        rate: 10.0,
        lives: 6,
        seeds: 3,
    };
    let (mut own, mut seeds, mut given) = (usual, None, false);
    let mut all = std::env::args().skip(1);
    while let Some(name) = all.next() {
        let value = all.next().and_then(|value| value.parse::<f64>().ok());
        let Some(value) = value.filter(|value| *value > 0.0) else {
            return Err(HELP.to_owned());
        };
        let whole = value as u64;
        match name.as_str() {
            "--processes" => own.processes = whole as usize,
            "--audiences" => own.audiences = whole as usize,
            "--life" => own.life = whole.max(10),
            "--rate" => own.rate = value,
            "--lives" => own.lives = whole.max(1),
            "--seeds" => seeds = Some(whole.max(1)),
            _ => return Err(HELP.to_owned()),
        }
        given |= name != "--seeds";
    }
    if given {
        return Ok(vec![(
            Question {
                seeds: seeds.unwrap_or(1),
                ..own
            },
            None,
        )]);
    }
    Ok(vec![
        (usual, Some(1.7)),
        (
            Question {
                processes: 100,
                audiences: 10,
                ..usual
            },
            Some(1.85),
        ),
        (
            Question {
                processes: 10,
                ..usual
            },
            None,
        ),
        (
            Question {
                life: 3600,
                ..usual
            },
            None,
        ),
        (
            Question {
                audiences: 10_000,
                lives: 3,
                seeds: seeds.unwrap_or(3),
                ..usual
            },
            Some(1.7),
        ),
    ])
}

const HELP: &str = "\
usage: agent_load [--processes N] [--audiences N] [--life SECONDS] [--rate PER_SECOND]
                  [--lives N] [--seeds N]
Without any but --seeds, the usual questions are answered.";

fn simulate(question: Question) -> Answer {
    let mut answer = Answer::default();
    answer
        .by_second
        .resize((question.life * question.lives) as usize, 0);
    for seed in 0..question.seeds {
        // All on this thread, so that a seed gives the same run again.
        fastrand::seed(seed);
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .start_paused(true)
            .build();
        runtime.unwrap().block_on(run(question, &mut answer));
    }
    answer.signed /= (question.audiences as u64 * question.seeds * question.lives) as f64;
    answer.calls.sort_by(f64::total_cmp);
    answer
}

async fn run(question: Question, answer: &mut Answer) {
    let clock = PausedClock::new(UnixTime::from_secs(1_790_000_000));
    let agent = Agent::new(&clock, question.life);
    let requests: Vec<_> = (0..question.audiences)
        .map(|n| SvidRequest::new([format!("spiffe://x/service-{n}")]).unwrap())
        .collect();
    let caches: Vec<_> = (0..question.processes)
        .map(|process| {
            let caller = Caller {
                agent: agent.clone(),
                process,
            };
            let cache = SvidCache::builder(caller).clock(clock.shared());
            cache.max_entries(question.audiences + 1).build()
        })
        .collect();

    // Each (process, audience) begins somewhere in the first life, and asks at its rate.
    let life = Duration::from_secs(question.life);
    let period = Duration::from_secs_f64(1.0 / question.rate);
    let mut heap = BinaryHeap::new();
    for process in 0..question.processes {
        for audience in 0..question.audiences {
            heap.push(Reverse((life.mul_f64(fastrand::f64()), process, audience)));
        }
    }
    let (from, until) = (life, life * u32::try_from(question.lives + 1).unwrap());
    let began = tokio::time::Instant::now();
    let mut measuring = false;
    while let Some(Reverse((at, process, audience))) = heap.pop() {
        if at >= until {
            break;
        }
        tokio::time::sleep_until(began + at).await;
        if !measuring && at >= from {
            measuring = true;
            agent.0.lock().unwrap().forget();
        }
        let (cache, request) = (&caches[process], &requests[audience]);
        let sent = cache.try_header(request).is_some();
        // The fetch, where one began, has its answer before the next request.
        while cache.snapshot_of(request).unwrap().fetching {
            tokio::task::yield_now().await;
        }
        let snapshot = cache.snapshot_of(request).unwrap();
        answer.failed += u64::from(measuring && !sent);
        // The first request that does anything: at or after the next refresh.
        let quiet = snapshot
            .refresh_in
            .unwrap()
            .max(snapshot.next_try_in.unwrap_or_default());
        let skipped = (quiet.as_secs_f64() / period.as_secs_f64()).ceil().max(1.0);
        answer.requests += skipped;
        heap.push(Reverse((at + period.mul_f64(skipped), process, audience)));
    }

    let desk = agent.0.lock().unwrap();
    let lives = question.lives as f64;
    for process in 0..question.processes {
        for request in &requests {
            let calls = desk
                .calls
                .get(&(process, request.clone()))
                .copied()
                .unwrap_or(0);
            answer.calls.push(calls as f64 / lives);
        }
    }
    answer.useless += caches
        .iter()
        .map(|cache| cache.stats().unchanged)
        .sum::<u64>();
    answer.signed += desk.signed as f64;
    for second in &desk.seconds {
        let second = second.saturating_sub(from.as_secs());
        if let Some(count) = answer.by_second.get_mut(second as usize) {
            *count += 1;
        }
    }
}

impl Answer {
    fn mean(&self) -> f64 {
        self.calls.iter().sum::<f64>() / self.calls.len() as f64
    }

    fn share(&self, share: f64) -> f64 {
        self.calls[((self.calls.len() - 1) as f64 * share).round() as usize]
    }

    /// The busiest second against the mean one; of few calls it says little.
    fn peak(&self) -> f64 {
        let all: u64 = self.by_second.iter().sum();
        if all < 10 * self.by_second.len() as u64 {
            return 0.0;
        }
        let most = self.by_second.iter().max().copied().unwrap_or(0);
        most as f64 * self.by_second.len() as f64 / all as f64
    }
}

/// An agent by SPIRE's rule.
#[derive(Clone)]
struct Agent(Arc<Mutex<AgentState>>);

struct AgentState {
    clock: PausedClock,
    life: u64,
    tokens: HashMap<SvidRequest, (i64, String)>,
    serial: u64,
    calls: HashMap<(usize, SvidRequest), u64>,
    signed: u64,
    /// When each call came, in seconds since the beginning.
    seconds: Vec<u64>,
}

impl Agent {
    fn new(clock: &PausedClock, life: u64) -> Self {
        Self(Arc::new(Mutex::new(AgentState {
            clock: clock.clone(),
            life,
            tokens: HashMap::new(),
            serial: 0,
            calls: HashMap::new(),
            signed: 0,
            seconds: Vec::new(),
        })))
    }
}

impl AgentState {
    fn forget(&mut self) {
        self.calls.clear();
        self.signed = 0;
        self.seconds.clear();
    }

    fn answer(&mut self, process: usize, request: &SvidRequest) -> String {
        *self.calls.entry((process, request.clone())).or_default() += 1;
        self.seconds.push(self.clock.monotonic().as_secs());
        let now = self.clock.now();
        let life = Duration::from_secs(self.life);
        if let Some((exp, token)) = self.tokens.get(request) {
            let left = UnixTime::from_secs(*exp).saturating_since(now);
            if left > life.mul_f64(0.45 + 0.10 * fastrand::f64()) {
                return token.clone();
            }
        }
        self.signed += 1;
        self.serial += 1;
        let (iat, exp) = (now.secs(), now.secs() + self.life as i64);
        let claims = format!(
            r#"{{"sub":"spiffe://x/web","aud":["{}"],"iat":{iat},"exp":{exp},"jti":"{}"}}"#,
            request.audiences()[0],
            self.serial,
        );
        let header = URL_SAFE_NO_PAD.encode(r#"{"alg":"ES256","kid":"1","typ":"JWT"}"#);
        let token = format!("{header}.{}.c2ln", URL_SAFE_NO_PAD.encode(claims));
        self.tokens.insert(request.clone(), (exp, token.clone()));
        token
    }
}

/// One process on the agent.
struct Caller {
    agent: Agent,
    process: usize,
}

impl FetchSvid for Caller {
    fn fetch_svid(&self, request: &SvidRequest) -> FetchSvidFuture {
        let token = self.agent.0.lock().unwrap().answer(self.process, request);
        Box::pin(async move { Ok(JwtSvid::parse_unverified(&token, "").unwrap()) })
    }
}
