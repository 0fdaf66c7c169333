//! `agent-load`: simulates how many calls agents get, to size them.
//!
//! Each process is a real `SvidCache` on a clock that jumps from event to event. The agent is
//! simulated. It behaves like SPIRE's: it returns its cached token until 45 to 55 % of the lifetime is
//! left (a random share for each call), then the server signs a new one. Requests come at a steady
//! rate from a random start. Requests that find a fresh token change nothing, so they are skipped.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a bug in the simulation must not look like a result"
)]

mod agent;
mod lives;
mod outage;

use std::process::ExitCode;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use agent::Failure;
use lives::{Begin, Scenario};
use outage::Outage;

/// Simulate how many calls agents get from the token cache, to size them.
///
/// With no options, or only --seeds and --quick, runs a default set of scenarios and checks the
/// results against the limits that the library documents.
#[derive(clap::Args)]
#[command(after_help = EXAMPLES, after_long_help = format!("{EXAMPLES}\n\n{COLUMNS}"))]
pub(crate) struct Args {
    /// Processes that share one agent [default: 1]
    #[arg(long, value_name = "N", value_parser = count())]
    processes: Option<u64>,
    /// Audiences that each process uses [default: 200]
    #[arg(long, value_name = "N", value_parser = count())]
    audiences: Option<u64>,
    /// Lifetime of a token; at least 10 [default: 300]
    #[arg(long, value_name = "SECONDS", value_parser = count())]
    life: Option<u64>,
    /// Requests per second for each audience of each process [default: 10]
    #[arg(long, value_name = "PER_SECOND", value_parser = rate)]
    rate: Option<f64>,
    /// Token lifetimes to measure [default: 6]
    #[arg(long, value_name = "N", value_parser = count())]
    lives: Option<u64>,
    /// Runs with different random numbers [default: 3; 1 for a scenario of your own]
    #[arg(long, value_name = "N", value_parser = count())]
    seeds: Option<u64>,
    /// All processes start to use an audience at about the same time, one audience after another
    #[arg(long)]
    together: bool,
    /// Use fewer audiences in the default scenarios
    #[arg(long)]
    quick: bool,
}

const EXAMPLES: &str = "\
Examples:
  tower-spiffe agent-load
  tower-spiffe agent-load --seeds 1000
  tower-spiffe agent-load --processes 40 --audiences 12 --life 900

Exit code: 0 if the results are within the documented limits, 1 if not, 2 for an invalid command line.";

const COLUMNS: &str = "\
The first table has one line per scenario:
  calls    calls to the agent per token lifetime, for one audience of one process: the mean, the
           5th, 50th and 95th percentile of the audiences, and the highest
  useless  calls that returned no new token
  signed   tokens that the server signs per lifetime and audience, for all processes together
  peak     calls in the busiest second, divided by the mean
The second table simulates an outage that lasts until every token has expired. It shows the time from
the start of the outage to the first failed request, the calls after all tokens had expired, and the
time from the end of the outage to the last failed request. Each value is the worst of all seeds.";

fn count() -> clap::builder::RangedU64ValueParser {
    clap::value_parser!(u64).range(1..)
}

fn rate(text: &str) -> Result<f64, String> {
    let rate = text.parse().ok();
    rate.filter(|rate: &f64| rate.is_finite() && *rate > 0.0)
        .ok_or_else(|| "not a number above 0".to_owned())
}

/// The documented limits for a scenario.
#[derive(Clone, Copy)]
struct Limit {
    /// Calls per lifetime and audience.
    calls: f64,
    /// Calls in the busiest second, divided by the mean.
    peak: Option<f64>,
}

pub(crate) fn run(args: &Args) -> ExitCode {
    let all = Scenarios::new(args);
    let mut good = lives(&all.scenarios);
    if !all.outages.is_empty() {
        good &= outages(&all.outages);
    }
    say!(
        "\nTo size an agent: calls per second = processes x audiences x calls / life. For 20\n\
         processes with 30 audiences each and tokens of 300 s this is 20 x 30 x 1.8 / 300 = 3.6. The agent\n\
         attests the caller of each call, and caches 1000 tokens by default."
    );
    if good {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

fn lives(scenarios: &[(Scenario, Option<Limit>)]) -> bool {
    say!(
        "processes audiences    begin life s  seeds | calls    p5   p50   p95  most | useless  \
         signed |   peak"
    );
    let mut good = true;
    for (scenario, limit) in scenarios {
        let results = lives::simulate(*scenario);
        let begin = match scenario.begin {
            Begin::Apart => "apart",
            Begin::Together => "together",
        };
        let peak = results.peak();
        say!(
            "{:>9} {:>9} {begin:>8} {:>6} {:>6} | {:>5.3} {:>5.2} {:>5.2} {:>5.2} {:>5.2} | {:>7} \
             {:>7.3} | {:>6}",
            scenario.processes,
            scenario.audiences,
            scenario.life,
            scenario.seeds,
            results.mean(),
            results.share(0.05),
            results.share(0.50),
            results.share(0.95),
            results.share(1.0),
            results.useless,
            results.signed,
            peak.map_or("n/a".to_owned(), |peak| format!("{peak:.2}x")),
        );
        let Some(limit) = limit else { continue };
        let mut holds =
            results.mean() <= limit.calls && results.useless == 0 && results.failed == 0;
        let mut text = format!("at most {} calls, none useless", limit.calls);
        if let Some(most) = limit.peak {
            holds &= peak.is_some_and(|peak| peak <= most);
            text += &format!(", peak {most}x");
        }
        say!("{:>42} | {text}: {}", "", outcome(holds));
        good &= holds;
    }
    good
}

fn outages(outages: &[(Outage, Option<Duration>)]) -> bool {
    say!("\n  the agent  audiences  seeds | first failure | at once  calls/s | last failure");
    let mut good = true;
    for (outage, recovered) in outages {
        let results = outage::simulate(*outage);
        let failure = match outage.failure {
            Failure::Unreachable => "unreachable",
            Failure::Hangs => "hangs",
        };
        say!(
            "{failure:>11} {:>10} {:>6} | {:>11.1} s | {:>7} {:>8.2} | {:>10.1} s",
            outage.audiences,
            outage.seeds,
            results.first_failure.as_secs_f64(),
            results.most,
            results.calls,
            results.recovered.as_secs_f64(),
        );
        // 35 % of the lifetime, minus the last 2 s, in which a token is not used.
        let lasts = Duration::from_secs(outage.life).mul_f64(0.35) - Duration::from_secs(2);
        let mut holds = results.first_failure >= lasts && results.most == 1;
        let mut text = format!(
            "{} s without a failure, one call at a time",
            lasts.as_secs()
        );
        if let Some(most) = recovered {
            holds &= results.recovered <= *most;
            text += &format!(", recovered after {} s", most.as_secs());
        }
        say!("{:>29} | {text}: {}", "", outcome(holds));
        good &= holds;
    }
    good
}

fn outcome(holds: bool) -> &'static str {
    if holds { "holds" } else { "FAILS" }
}

struct Scenarios {
    scenarios: Vec<(Scenario, Option<Limit>)>,
    /// Each with the longest time that requests may fail after the outage.
    outages: Vec<(Outage, Option<Duration>)>,
}

impl Scenarios {
    fn new(args: &Args) -> Self {
        let own = Scenario {
            processes: args.processes.map_or(DEFAULT.processes, |n| n as usize),
            audiences: args.audiences.map_or(DEFAULT.audiences, |n| n as usize),
            life: args.life.map_or(DEFAULT.life, |life| life.max(10)),
            rate: args.rate.unwrap_or(DEFAULT.rate),
            lives: args.lives.unwrap_or(DEFAULT.lives),
            seeds: args.seeds.unwrap_or(1),
            begin: match args.together {
                true => Begin::Together,
                false => DEFAULT.begin,
            },
        };
        let counts = [args.processes, args.audiences, args.life, args.lives];
        let given = counts.iter().any(Option::is_some) || args.rate.is_some() || args.together;
        if given {
            return Self {
                scenarios: vec![(own, None)],
                outages: Vec::new(),
            };
        }
        Self::defaults(args.seeds, args.quick)
    }

    fn defaults(seeds: Option<u64>, quick: bool) -> Self {
        let limit = |calls, peak| Some(Limit { calls, peak });
        let many = if quick { 1_000 } else { 10_000 };
        let one = DEFAULT;
        let hundred = Scenario {
            processes: 100,
            audiences: if quick { 3 } else { 10 },
            ..DEFAULT
        };
        let one_by_one = Scenario {
            processes: 100,
            audiences: if quick { 60 } else { 200 },
            begin: Begin::Together,
            seeds: 1,
            ..DEFAULT
        };
        let ten = Scenario {
            processes: 10,
            ..DEFAULT
        };
        let an_hour = Scenario {
            life: 3600,
            ..DEFAULT
        };
        let thousands = Scenario {
            audiences: many,
            lives: 3,
            seeds: seeds.unwrap_or(3),
            ..DEFAULT
        };
        let mut scenarios = vec![
            (one, limit(1.7, None)),
            (hundred, limit(1.85, None)),
            (one_by_one, limit(1.85, Some(3.0))),
            (ten, None),
            (an_hour, None),
            (thousands, limit(1.7, Some(3.0))),
        ];
        if quick {
            scenarios.retain(|(_, limit)| limit.is_some());
        }
        let outage = |failure, audiences, seeds| Outage {
            audiences,
            life: DEFAULT.life,
            failure,
            seeds,
        };
        let (few, crowd) = if quick { (3, 300) } else { (20, many) };
        let soon = Some(Duration::from_secs(6));
        Self {
            scenarios,
            outages: vec![
                (outage(Failure::Unreachable, 30, few), soon),
                (outage(Failure::Hangs, 30, few), None),
                (outage(Failure::Unreachable, crowd, 1), None),
                (outage(Failure::Hangs, crowd, 1), None),
            ],
        }
    }
}

const DEFAULT: Scenario = Scenario {
    processes: 1,
    audiences: 200,
    life: 300,
    rate: 10.0,
    lives: 6,
    seeds: 3,
    begin: Begin::Apart,
};

/// Runs `work` for each seed and returns the results in order of the seeds. Each run has paused time
/// and a single-threaded runtime, so that a seed always gives the same result.
fn for_each_seed<T: Send, F: Future<Output = T>>(
    seeds: u64,
    work: impl Fn() -> F + Sync,
) -> Vec<T> {
    let work = |seed| {
        fastrand::seed(seed);
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .start_paused(true)
            .build();
        runtime.unwrap().block_on(work())
    };
    let next = AtomicU64::new(0);
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let mut all: Vec<(u64, T)> = std::thread::scope(|scope| {
        let run = || {
            let mut done = Vec::new();
            loop {
                let seed = next.fetch_add(1, Ordering::Relaxed);
                if seed >= seeds {
                    return done;
                }
                done.push((seed, work(seed)));
            }
        };
        let threads: Vec<_> = (0..threads).map(|_| scope.spawn(run)).collect();
        let all = threads
            .into_iter()
            .flat_map(|thread| thread.join().unwrap());
        all.collect()
    });
    all.sort_by_key(|(seed, _)| *seed);
    all.into_iter().map(|(_, results)| results).collect()
}
