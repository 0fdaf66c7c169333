//! The client layer and the server layer end to end at full load: without layers, with fixed keys,
//! and with rotating keys.

use std::future::{Future, IntoFuture as _};
use std::time::{Duration, Instant};

use axum::extract::Request as AxumRequest;
use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt as _, Empty};
use hyper::body::Incoming;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use tower::{Layer as _, Service, ServiceExt as _};
use tower_spiffe::client::{AddJwtSvid, Audience, Plaintext};
use tower_spiffe::{JwtSource, Validator};

use crate::keys::{AUDIENCE, SUBJECT};
use crate::live::{Agent, our_source, single_thread};
use crate::loopback::{CONCURRENCY, Server, router};
use crate::measure::{Effort, Spread, quantile, shuffled};
use crate::names::{OURS, Who};
use crate::peers::our_layer;
use crate::table::{Better, Cell, Table};

const NO_LAYERS: Who = Who::limit("no layers");
const NO_LAYERS_AGAIN: Who = Who::limit("no layers, once more (the noise)");

/// The lifetime of tokens, and of keys after their rotation. The client's cache refreshes a token
/// within this time.
const LIFE: Duration = Duration::from_secs(4);
const ROTATION: Duration = Duration::from_millis(100);

type Plain = Client<HttpConnector, Empty<Bytes>>;

enum Entrant<'a> {
    Plain(Plain),
    Signed(AddJwtSvid<Plain>, &'a Agent, Keys),
}

#[derive(Clone, Copy, PartialEq)]
enum Keys {
    Stay,
    Rotate,
}

/// Returns a hyper client. Its pool has one connection for each concurrent request.
fn client() -> Plain {
    let mut connector = HttpConnector::new();
    connector.set_nodelay(true);
    Client::builder(TokioExecutor::new()).build(connector)
}

fn agent() -> Agent {
    let agent = Agent::start(1);
    let entered = agent.runtime.enter();
    agent.api.register(SUBJECT, "", LIFE).unwrap();
    drop(entered);
    agent
}

/// Starts a server and a client with one live source each. They share one agent.
async fn signed(agent: &Agent, keys: Keys) -> (Server, Entrant<'_>) {
    let endpoint = agent.api.endpoint().to_string();
    let source: JwtSource = our_source(&endpoint).await;
    let server = Server::start(async move |listener| {
        let source = our_source(&endpoint).await;
        let validator = Validator::builder(source).audience(AUDIENCE).build();
        let app = our_layer(validator.unwrap()).layer(router());
        let app = axum::ServiceExt::<AxumRequest>::into_make_service(app);
        axum::serve(listener, app).into_future().await.unwrap();
    });
    let origin = format!("http://{}", server.address);
    let audience = Audience::fixed(AUDIENCE).for_origin(&origin).unwrap();
    let client = AddJwtSvid::new(client(), source, audience).allow_plaintext(Plaintext::Loopback);
    (server, Entrant::Signed(client, agent, keys))
}

struct Slice {
    rate: f64,
    latencies: Vec<f64>,
}

impl Entrant<'_> {
    async fn slice(&self, url: &str, count: usize) -> Slice {
        match self {
            Self::Plain(client) => slice(client, url, count).await,
            Self::Signed(client, agent, keys) => {
                if *keys == Keys::Rotate {
                    agent.api.rotate_every(ROTATION);
                }
                let slice = slice(client, url, count).await;
                agent.api.stop_rotating();
                slice
            }
        }
    }
}

async fn slice<S, F>(client: &S, url: &str, count: usize) -> Slice
where
    S: Service<Request<Empty<Bytes>>, Response = Response<Incoming>, Future = F> + Clone,
    S::Error: std::fmt::Debug,
    F: Future<Output = Result<Response<Incoming>, S::Error>>,
{
    let share = count / CONCURRENCY;
    let work = (0..CONCURRENCY).map(|_| async {
        let mut client = client.clone();
        let mut latencies = Vec::with_capacity(share);
        for _ in 0..share {
            let request = Request::get(url).header("accept", "application/json");
            let request = request.body(Empty::new()).unwrap();
            let start = Instant::now();
            let response = client.ready().await.unwrap().call(request).await.unwrap();
            assert_eq!(response.status(), 200);
            response.into_body().collect().await.unwrap();
            latencies.push(start.elapsed().as_nanos() as f64);
        }
        latencies
    });
    let start = Instant::now();
    let latencies = futures_util::future::join_all(work).await.concat();
    Slice {
        rate: latencies.len() as f64 / start.elapsed().as_secs_f64(),
        latencies,
    }
}

pub fn run(effort: Effort) -> Table {
    // Agents have their own runtimes, which cannot be created inside another runtime.
    let agents = [agent(), agent()];
    single_thread().block_on(table(effort, &agents))
}

async fn table(effort: Effort, [stays, rotates]: &[Agent; 2]) -> Table {
    // Long enough for several rotations in each slice.
    let (count, rounds) = match effort.quick {
        true => (CONCURRENCY * 20, 2),
        false => (CONCURRENCY * 800, 40),
    };
    let plain = || (Server::axum(router()), Entrant::Plain(client()));
    let entrants = [
        (NO_LAYERS, plain()),
        (NO_LAYERS_AGAIN, plain()),
        (
            OURS.with(", client and server layer"),
            signed(stays, Keys::Stay).await,
        ),
        (
            OURS.with(", client and server layer, keys rotate 10 times a second"),
            signed(rotates, Keys::Rotate).await,
        ),
    ];
    let mut slices: Vec<Vec<Slice>> = entrants.iter().map(|_| Vec::new()).collect();
    // The first round is the warm-up.
    for round in 0..=rounds {
        for at in shuffled(entrants.len(), round) {
            let (server, entrant) = &entrants[at].1;
            let url = format!("http://{}/v1/reports/7", server.address);
            let slice = entrant.slice(&url, count).await;
            if round > 0 {
                slices[at].push(slice);
            }
        }
    }
    const RATIO: &str = "to no layers";
    let columns = ["requests", RATIO, "p50", "p99", "p99.9"];
    let title = format!(
        "The client layer and the server layer at full load: axum, HTTP/1.1 on loopback, \
         {CONCURRENCY} concurrent requests (ES256)"
    );
    let mut table = Table::new("full-load", &title, &columns)
        .better("requests", Better::More)
        .better(RATIO, Better::More);
    for ((who, _), own) in entrants.iter().zip(&slices) {
        let each = |of: &dyn Fn(&Slice) -> f64| {
            let values: Vec<f64> = own.iter().map(of).collect();
            Spread::of(&values)
        };
        let ratios = own.iter().zip(&slices[0]);
        let ratios: Vec<f64> = ratios.map(|(own, first)| own.rate / first.rate).collect();
        let latency = |q: f64| each(&|slice| quantile(slice.latencies.clone(), q));
        table.row(
            who.clone(),
            vec![
                Cell::rate(each(&|slice| slice.rate)),
                Cell::ratio(Spread::of(&ratios)),
                Cell::nanos(latency(0.5)),
                Cell::nanos(latency(0.99)),
                Cell::nanos(latency(0.999)),
            ],
        );
    }
    table.note(&format!(
        "One thread serves and one sends. The client is hyper's pooled client. The sources are \
         connected to an agent in the same process. Tokens live {} s. While keys rotate, new keys \
         arrive and old keys are removed during the load, and the client refreshes its token. \
         Latencies are medians of rounds of {count} requests. No request was rejected.",
        LIFE.as_secs()
    ))
}
