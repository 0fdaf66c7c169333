//! How many calls your agents will get: a simulation, to size them by.
//!
//! ```text
//! cargo run --release --example agent_load                            # the usual questions
//! cargo run --release --example agent_load -- --seeds 1000            # 10,000 audiences 1,000 times
//! cargo run --release --example agent_load -- --processes 40 --audiences 12 --life 900
//! ```
//!
//! Nothing of the cache is modelled: each process is a `SvidCache` of this crate, on a clock that
//! jumps from event to event. What is simulated is the agent, as SPIRE's behaves: it hands out its
//! own cached token until 45 to 55 % of the life is left (drawn anew for each call), then has the
//! server sign a new one; and the requests, at a steady rate from a random beginning. Requests for
//! a token that is fresh change nothing, so they are counted and not made.
//!
//! The columns of the first table: calls to the agent per token life, for one audience of one
//! process (mean; 5th, 50th and 95th percentile of the audiences; the most); how many of all calls
//! brought nothing new; signings by the server per life and audience, for all processes together;
//! and the busiest second, of all seeds together, against the mean one.
//!
//! The second table is an agent that is away until every token has expired: when the first request
//! failed, what calls came to the agent once all were expired, and when the last request failed
//! after it was back. The worst of all seeds.
#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    clippy::indexing_slicing,
    reason = "a program"
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

const HELP: &str = "\
usage: agent_load [--processes N] [--audiences N] [--life SECONDS] [--rate PER_SECOND]
                  [--lives N] [--seeds N] [--together] [--quick]
Without any but --seeds, the usual questions are answered, and the exit code is 0 only if what is
promised of them holds; --quick asks them of fewer audiences. With --together all processes begin
with an audience at about the same time, and the audiences one after the other.";

/// What is promised of a question.
#[derive(Clone, Copy)]
struct Bar {
    /// The most calls per life and audience.
    calls: f64,
    /// The busiest second, against the mean one.
    peak: Option<f64>,
}

fn main() -> ExitCode {
    if std::env::args_os().skip(1).eq(["--help"]) {
        println!("{HELP}");
        return ExitCode::SUCCESS;
    }
    let asked = match Asked::read(std::env::args().skip(1)) {
        Ok(asked) => asked,
        Err(help) => {
            println!("{help}");
            return ExitCode::from(2);
        }
    };
    let mut good = lives(&asked.questions);
    if !asked.outages.is_empty() {
        good &= outages(&asked.outages);
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

fn lives(questions: &[(Question, Option<Bar>)]) -> bool {
    println!(
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
        println!(
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
        println!("{:>42} | {text}: {}", "", verdict(holds));
        good &= holds;
    }
    good
}

fn outages(outages: &[(Outage, Option<Duration>)]) -> bool {
    println!(
        "\nthe agent  audiences  seeds | first failure | then at once  calls/s | last failure"
    );
    let mut good = true;
    for (outage, recovered) in outages {
        let course = outage::simulate(*outage);
        let away = match outage.away {
            Away::Refuses => "refuses",
            Away::Hangs => "hangs",
        };
        println!(
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
        println!("{:>27} | {text}: {}", "", verdict(holds));
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
    fn read(mut all: impl Iterator<Item = String>) -> Result<Self, String> {
        let mut own = USUAL;
        let (mut seeds, mut given, mut quick) = (None, false, false);
        while let Some(name) = all.next() {
            match name.as_str() {
                "--quick" => {
                    quick = true;
                    continue;
                }
                "--together" => {
                    own.begin = Begin::Together;
                    given = true;
                    continue;
                }
                _ => {}
            }
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
            own.seeds = seeds.unwrap_or(1);
            return Ok(Self {
                questions: vec![(own, None)],
                outages: Vec::new(),
            });
        }
        Ok(Self::usual(seeds, quick))
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
