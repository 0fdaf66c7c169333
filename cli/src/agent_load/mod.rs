//! `agent-load`: simulates how many calls agents get, to size them.
//!
//! The cache is not modelled: each process is a `SvidCache` on a clock that jumps from event to
//! event. The agent is simulated. It behaves like SPIRE's: it returns its own cached token until 45
//! to 55 % of the lifetime is left (drawn for each call), then has the server sign a new one. The
//! requests come at a steady rate from a random start. Requests for a token that is fresh change
//! nothing, so they are skipped.
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

use agent::Away;
use lives::{Begin, Question};
use outage::Outage;

/// Simulate how many calls agents get from the token cache, to size them.
///
/// Without options other than --seeds and --quick, answers the usual questions and checks the
/// results against what the library promises.
#[derive(clap::Args)]
#[command(after_help = EXAMPLES, after_long_help = format!("{EXAMPLES}\n\n{COLUMNS}"))]
pub(crate) struct Args {
    /// Processes that share one agent [default: 1]
    #[arg(long, value_name = "N", value_parser = count())]
    processes: Option<u64>,
    /// Audiences that each process uses [default: 200]
    #[arg(long, value_name = "N", value_parser = count())]
    audiences: Option<u64>,
    /// Lifetime of a token; less than 10 counts as 10 [default: 300]
    #[arg(long, value_name = "SECONDS", value_parser = count())]
    life: Option<u64>,
    /// Requests per second for each audience of each process [default: 10]
    #[arg(long, value_name = "PER_SECOND", value_parser = rate)]
    rate: Option<f64>,
    /// Token lifetimes to measure [default: 6]
    #[arg(long, value_name = "N", value_parser = count())]
    lives: Option<u64>,
    /// Runs with different random numbers
    #[arg(long, value_name = "N", value_parser = count())]
    seeds: Option<u64>,
    /// Begin with an audience in all processes at about the same time, one audience after another
    #[arg(long)]
    together: bool,
    /// Use fewer audiences for the usual questions
    #[arg(long)]
    quick: bool,
}

const EXAMPLES: &str = "\
Examples:
  tower-spiffe agent-load
  tower-spiffe agent-load --seeds 1000
  tower-spiffe agent-load --processes 40 --audiences 12 --life 900

Exit code: 0 if the results are within what the library promises, 1 if not, 2 for an invalid command
line.";

const COLUMNS: &str = "\
The first table has one line per question:
  calls    calls to the agent per token lifetime, for one audience of one process: the mean, the
           5th, 50th and 95th percentile of the audiences, and the highest
  useless  calls that returned no new token
  signed   tokens that the server signs per lifetime and audience, for all processes together
  peak     calls in the busiest second, divided by the mean
The second table has an agent that is unavailable until every token has expired. It shows when the
first request failed, the calls after all tokens had expired, and when the last request failed after
the agent was back. Each value is the worst of all seeds.";

fn count() -> clap::builder::RangedU64ValueParser {
    clap::value_parser!(u64).range(1..)
}

fn rate(text: &str) -> Result<f64, String> {
    let rate = text.parse().ok();
    rate.filter(|rate: &f64| rate.is_finite() && *rate > 0.0)
        .ok_or_else(|| "not a number above 0".to_owned())
}

/// What is promised of a question.
#[derive(Clone, Copy)]
struct Bar {
    /// The most calls per life and audience.
    calls: f64,
    /// The busiest second, against the mean one.
    peak: Option<f64>,
}

pub(crate) fn run(args: &Args) -> ExitCode {
    let asked = Asked::new(args);
    let mut good = lives(&asked.questions);
    if !asked.outages.is_empty() {
        good &= outages(&asked.outages);
    }
    say!(
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

fn lives(questions: &[(Question, Option<Bar>)]) -> bool {
    say!(
        "processes audiences    begin life s  seeds | calls    p5   p50   p95  most | useless  \
         signed |   peak"
    );
    let mut good = true;
    for (question, bar) in questions {
        let answer = lives::simulate(*question);
        let begin = match question.begin {
            Begin::Apart => "apart",
            Begin::Together => "together",
        };
        let peak = answer.peak();
        say!(
            "{:>9} {:>9} {begin:>8} {:>6} {:>6} | {:>5.3} {:>5.2} {:>5.2} {:>5.2} {:>5.2} | {:>7} \
             {:>7.3} | {:>6}",
            question.processes,
            question.audiences,
            question.life,
            question.seeds,
            answer.mean(),
            answer.share(0.05),
            answer.share(0.50),
            answer.share(0.95),
            answer.share(1.0),
            answer.useless,
            answer.signed,
            peak.map_or("n/a".to_owned(), |peak| format!("{peak:.2}x")),
        );
        let Some(bar) = bar else { continue };
        let mut holds = answer.mean() <= bar.calls && answer.useless == 0 && answer.failed == 0;
        let mut text = format!("at most {} calls, none useless", bar.calls);
        if let Some(most) = bar.peak {
            holds &= peak.is_some_and(|peak| peak <= most);
            text += &format!(", peak {most}x");
        }
        say!("{:>42} | {text}: {}", "", verdict(holds));
        good &= holds;
    }
    good
}

fn outages(outages: &[(Outage, Option<Duration>)]) -> bool {
    say!("\nthe agent  audiences  seeds | first failure | then at once  calls/s | last failure");
    let mut good = true;
    for (outage, recovered) in outages {
        let course = outage::simulate(*outage);
        let away = match outage.away {
            Away::Refuses => "refuses",
            Away::Hangs => "hangs",
        };
        say!(
            "{away:>9} {:>10} {:>6} | {:>7.1} s off | {:>12} {:>8.2} | {:>6.1} s on",
            outage.audiences,
            outage.seeds,
            course.first_failure.as_secs_f64(),
            course.most,
            course.calls,
            course.recovered.as_secs_f64(),
        );
        // 35 % of the life, less the last 2 s, which are never used.
        let lasts = Duration::from_secs(outage.life).mul_f64(0.35) - Duration::from_secs(2);
        let mut holds = course.first_failure >= lasts && course.most == 1;
        let mut text = format!("{} s without a failure, one call at once", lasts.as_secs());
        if let Some(most) = recovered {
            holds &= course.recovered <= *most;
            text += &format!(", well after {} s", most.as_secs());
        }
        say!("{:>27} | {text}: {}", "", verdict(holds));
        good &= holds;
    }
    good
}

fn verdict(holds: bool) -> &'static str {
    if holds { "holds" } else { "FAILS" }
}

struct Asked {
    questions: Vec<(Question, Option<Bar>)>,
    /// Each with the longest that a request may fail after the agent is back.
    outages: Vec<(Outage, Option<Duration>)>,
}

impl Asked {
    fn new(args: &Args) -> Self {
        let own = Question {
            processes: args.processes.map_or(USUAL.processes, |n| n as usize),
            audiences: args.audiences.map_or(USUAL.audiences, |n| n as usize),
            life: args.life.map_or(USUAL.life, |life| life.max(10)),
            rate: args.rate.unwrap_or(USUAL.rate),
            lives: args.lives.unwrap_or(USUAL.lives),
            seeds: args.seeds.unwrap_or(1),
            begin: match args.together {
                true => Begin::Together,
                false => USUAL.begin,
            },
        };
        let counts = [args.processes, args.audiences, args.life, args.lives];
        let given = counts.iter().any(Option::is_some) || args.rate.is_some() || args.together;
        if given {
            return Self {
                questions: vec![(own, None)],
                outages: Vec::new(),
            };
        }
        Self::usual(args.seeds, args.quick)
    }

    fn usual(seeds: Option<u64>, quick: bool) -> Self {
        let bar = |calls, peak| Some(Bar { calls, peak });
        let many = if quick { 1_000 } else { 10_000 };
        let one = USUAL;
        let hundred = Question {
            processes: 100,
            audiences: if quick { 3 } else { 10 },
            ..USUAL
        };
        let one_by_one = Question {
            processes: 100,
            audiences: if quick { 60 } else { 200 },
            begin: Begin::Together,
            seeds: 1,
            ..USUAL
        };
        let ten = Question {
            processes: 10,
            ..USUAL
        };
        let an_hour = Question {
            life: 3600,
            ..USUAL
        };
        let thousands = Question {
            audiences: many,
            lives: 3,
            seeds: seeds.unwrap_or(3),
            ..USUAL
        };
        let mut questions = vec![
            (one, bar(1.7, None)),
            (hundred, bar(1.85, None)),
            (one_by_one, bar(1.85, Some(3.0))),
            (ten, None),
            (an_hour, None),
            (thousands, bar(1.7, Some(3.0))),
        ];
        if quick {
            questions.retain(|(_, bar)| bar.is_some());
        }
        let outage = |away, audiences, seeds| Outage {
            audiences,
            life: USUAL.life,
            away,
            seeds,
        };
        let (few, crowd) = if quick { (3, 300) } else { (20, many) };
        let soon = Some(Duration::from_secs(6));
        Self {
            questions,
            outages: vec![
                (outage(Away::Refuses, 30, few), soon),
                (outage(Away::Hangs, 30, few), None),
                (outage(Away::Refuses, crowd, 1), None),
                (outage(Away::Hangs, crowd, 1), None),
            ],
        }
    }
}

const USUAL: Question = Question {
    processes: 1,
    audiences: 200,
    life: 300,
    rate: 10.0,
    lives: 6,
    seeds: 3,
    begin: Begin::Apart,
};

/// What `work` gives for each seed, in their order, each in paused time on one thread of its own,
/// so that a seed gives the same run again.
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
    all.into_iter().map(|(_, answer)| answer).collect()
}
