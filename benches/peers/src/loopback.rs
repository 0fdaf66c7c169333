//! Complete servers on the loopback interface: the processor time that a layer adds to each request
//! in the server's thread, and the latency that the caller sees.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use axum::Router;
use axum::extract::Request;
use axum::middleware::from_extractor_with_state;
use axum::routing::get;
use axum::{ServiceExt as _, body::Body};
use bytes::Bytes;
use http::HeaderValue;
use http::header::AUTHORIZATION;
use http_body_util::{BodyExt as _, Empty};
use hyper_util::rt::TokioIo;
use tokio::net::{TcpListener, TcpStream};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_client::HealthClient;
use tower::{Layer as _, Service};
use tower_http::validate_request::ValidateRequestHeaderLayer;
use tower_spiffe::server::{Allow, GrpcPolicy, ValidateJwtSvidLayer};

use crate::keys::{AUDIENCE, Signer, TRUST_DOMAIN};
use crate::layer::{decoder, token_of};
use crate::measure::{Effort, Spread, quantile, shuffled};
use crate::names::{
    AXUM_JWT_AUTH, HAND_MADE, HAND_MADE_SPIFFE, NO_LAYER, NO_LAYER_AGAIN, OAUTH2, OURS, Who,
};
use crate::peers::{
    AxumJwtAuthClaims, Jsonwebtoken, bearer, oauth2_server, our_bundles, our_layer, spiffe_bundles,
    validator,
};
use crate::table::{Better, Cell, Table};

/// The number of concurrent requests.
pub const CONCURRENCY: usize = 16;

/// A server on its own thread.
pub struct Server {
    pub address: SocketAddr,
    /// The ID of the server's thread.
    id: String,
}

impl Server {
    pub fn start<F>(serve: impl FnOnce(TcpListener) -> F + Send + 'static) -> Self
    where
        F: Future<Output = ()>,
    {
        let (sender, receiver) = mpsc::channel();
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap();
            runtime.block_on(async {
                let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
                let link = std::fs::read_link("/proc/thread-self").unwrap();
                let id = link.file_name().unwrap().to_string_lossy().into_owned();
                sender.send((listener.local_addr().unwrap(), id)).unwrap();
                serve(listener).await;
            });
        });
        let (address, id) = receiver.recv().unwrap();
        Self { address, id }
    }

    pub fn axum<S>(app: S) -> Self
    where
        S: Service<Request, Response = axum::response::Response, Error = std::convert::Infallible>
            + Clone
            + Send
            + 'static,
        S::Future: Send,
    {
        Self::start(async move |listener| {
            axum::serve(listener, app.into_make_service())
                .await
                .unwrap();
        })
    }

    /// Returns the processor time of the thread in nanoseconds, as counted by the scheduler.
    fn processor_time(&self) -> u64 {
        let path = format!("/proc/self/task/{}/schedstat", self.id);
        let text = std::fs::read_to_string(path).unwrap();
        text.split(' ').next().unwrap().parse().unwrap()
    }
}

pub fn router() -> Router {
    Router::new().route("/v1/reports/{id}", get(async || "the report"))
}

/// Slow entrants run only in every sixth round.
const SLOW_INTERVAL: usize = 6;

/// Returns whether the first round took more than three times as long as that of the first entrant.
fn is_slow(own: &[Option<Slice>], first: &[Option<Slice>]) -> bool {
    let processor = |slices: &[Option<Slice>]| Some(slices.first()?.as_ref()?.processor);
    processor(own) > processor(first).map(|first| first * 3.0)
}

/// One slice of load: the cost for the server and the latency of each request.
struct Slice {
    processor: f64,
    rate: f64,
    latencies: Vec<f64>,
}

/// Sends one request per header over persistent connections.
async fn load_http(connections: &mut [Sender], headers: &[HeaderValue], count: usize) -> Vec<f64> {
    let share = count / connections.len();
    let work = connections.iter_mut().enumerate().map(|(at, sender)| {
        let mut latencies = Vec::with_capacity(share);
        async move {
            for n in 0..share {
                let request = Request::get("/v1/reports/7")
                    .header("host", "reports.prod.example")
                    .header("accept", "application/json")
                    .header(AUTHORIZATION, &headers[(at * share + n) % headers.len()])
                    .body(Empty::<Bytes>::new())
                    .unwrap();
                let start = Instant::now();
                let response = sender.send_request(request).await.unwrap();
                assert_eq!(response.status(), 200);
                response.into_body().collect().await.unwrap();
                latencies.push(start.elapsed().as_nanos() as f64);
            }
            latencies
        }
    });
    futures_util::future::join_all(work).await.concat()
}

type Sender = hyper::client::conn::http1::SendRequest<Empty<Bytes>>;

async fn connect(address: SocketAddr) -> Sender {
    let stream = TcpStream::connect(address).await.unwrap();
    stream.set_nodelay(true).unwrap();
    let (sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
        .await
        .unwrap();
    tokio::spawn(connection);
    sender
}

/// Sends one gRPC call per header. Each client has its own connection: on a shared connection the
/// cost of a call depends on how many frames the server happens to read at once, and stays at one
/// level or another for seconds.
async fn load_grpc(clients: &mut [GrpcClient], headers: &[HeaderValue], count: usize) -> Vec<f64> {
    let share = count / clients.len();
    let work = clients
        .iter_mut()
        .enumerate()
        .map(|(at, client)| async move {
            let mut latencies = Vec::with_capacity(share);
            for n in 0..share {
                let mut request = tonic::Request::new(HealthCheckRequest::default());
                let header = &headers[(at * share + n) % headers.len()];
                let value = header.to_str().unwrap().parse().unwrap();
                request.metadata_mut().insert("authorization", value);
                let start = Instant::now();
                client.check(request).await.unwrap();
                latencies.push(start.elapsed().as_nanos() as f64);
            }
            latencies
        });
    futures_util::future::join_all(work).await.concat()
}

type GrpcClient = HealthClient<tonic::transport::Channel>;

/// A server and the connections to it.
enum Entrant {
    Http(Server, Vec<Sender>),
    Grpc(Server, Vec<GrpcClient>),
}

impl Entrant {
    async fn http(server: Server) -> Self {
        let mut connections = Vec::new();
        for _ in 0..CONCURRENCY {
            connections.push(connect(server.address).await);
        }
        Self::Http(server, connections)
    }

    async fn grpc(server: Server) -> Self {
        let address = format!("http://{}", server.address);
        let endpoint = tonic::transport::Endpoint::try_from(address).unwrap();
        let mut clients = Vec::new();
        for _ in 0..CONCURRENCY {
            clients.push(HealthClient::new(endpoint.connect().await.unwrap()));
        }
        Self::Grpc(server, clients)
    }

    async fn slice(&mut self, headers: &[HeaderValue], count: usize) -> Slice {
        let server = match self {
            Self::Http(server, _) | Self::Grpc(server, _) => server,
        };
        let (id, address) = (server.id.clone(), server.address);
        let server = Server { address, id };
        let before = server.processor_time();
        let start = Instant::now();
        let latencies = match self {
            Self::Http(_, connections) => load_http(connections, headers, count).await,
            Self::Grpc(_, clients) => load_grpc(clients, headers, count).await,
        };
        let time = start.elapsed();
        // Includes work that the server does after the last response.
        tokio::time::sleep(Duration::from_millis(2)).await;
        let done = latencies.len() as f64;
        Slice {
            processor: (server.processor_time() - before) as f64 / done,
            rate: done / time.as_secs_f64(),
            latencies,
        }
    }
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap()
}

pub fn axum(effort: Effort) -> Vec<Table> {
    runtime().block_on(async {
        vec![
            axum_table(effort, "axum-seen", true).await,
            axum_table(effort, "axum-new", false).await,
        ]
    })
}

pub fn tonic(effort: Effort) -> Vec<Table> {
    runtime().block_on(async {
        vec![
            tonic_table(effort, "tonic-seen", true).await,
            tonic_table(effort, "tonic-new", false).await,
        ]
    })
}

fn title(server: &str, seen: bool) -> String {
    let tokens = if seen {
        "one repeated token"
    } else {
        "new tokens"
    };
    format!("{server} on loopback, {CONCURRENCY} concurrent requests, {tokens} (ES256)")
}

async fn axum_table(effort: Effort, id: &str, seen: bool) -> Table {
    let signer = Signer::usual();
    let jsonwebtoken = Arc::new(Jsonwebtoken::new(&signer).unwrap());
    let theirs = Arc::new(spiffe_bundles(&signer));
    let reject = || {
        let mut response = axum::response::Response::new(Body::empty());
        *response.status_mut() = http::StatusCode::UNAUTHORIZED;
        response
    };
    let by_hand = ValidateRequestHeaderLayer::custom(move |request: &mut Request| {
        let claims = token_of(request).and_then(|token| jsonwebtoken.verify_by_kid(token));
        request.extensions_mut().insert(claims.ok_or_else(reject)?);
        Ok(())
    });
    let by_hand_spiffe = ValidateRequestHeaderLayer::custom(move |request: &mut Request| {
        let verify = |token| spiffe::JwtSvid::parse_and_validate(token, &*theirs, &[AUDIENCE]).ok();
        let svid = token_of(request).and_then(verify);
        request.extensions_mut().insert(svid.ok_or_else(reject)?);
        Ok(())
    });
    let oauth2 = oauth2_server(&signer).unwrap().into_layer::<Body>();
    let extractor = from_extractor_with_state::<AxumJwtAuthClaims, _>(decoder(&signer));
    let ours = our_layer(validator(&our_bundles(&signer)));
    let entrants = vec![
        (NO_LAYER, Server::axum(router())),
        (NO_LAYER_AGAIN, Server::axum(router())),
        (OURS, Server::axum(ours.layer(router()))),
        (HAND_MADE, Server::axum(by_hand.layer(router()))),
        (
            HAND_MADE_SPIFFE,
            Server::axum(by_hand_spiffe.layer(router())),
        ),
        (OAUTH2, Server::axum(oauth2.layer(router()))),
        (AXUM_JWT_AUTH, Server::axum(extractor.layer(router()))),
    ];
    let mut connected = Vec::new();
    for (who, server) in entrants {
        connected.push((who, Entrant::http(server).await));
    }
    let table = table(id, &title("axum, HTTP/1.1", seen));
    compare(effort, table, &signer, seen, connected).await
}

/// Starts a server with a health service inside the layer `with`.
macro_rules! tonic_server {
    ($with:expr) => {{
        let with = $with;
        Server::start(async move |listener| {
            let (_, health) = tonic_health::server::health_reporter();
            let incoming =
                tonic::transport::server::TcpIncoming::from(listener).with_nodelay(Some(true));
            tonic::transport::Server::builder()
                .layer(with)
                .add_service(health)
                .serve_with_incoming(incoming)
                .await
                .unwrap();
        })
    }};
}

async fn tonic_table(effort: Effort, id: &str, seen: bool) -> Table {
    let signer = Signer::usual();
    let validator = validator(&our_bundles(&signer));
    let policy = GrpcPolicy::deny_by_default()
        .method(
            "/grpc.health.v1.Health/Check",
            Allow::trust_domain(TRUST_DOMAIN).unwrap(),
        )
        .build()
        .unwrap();
    let jsonwebtoken = Arc::new(Jsonwebtoken::new(&signer).unwrap());
    type GrpcRequest = http::Request<tonic::body::Body>;
    let by_hand = ValidateRequestHeaderLayer::custom(move |request: &mut GrpcRequest| {
        let claims = token_of(request).and_then(|token| jsonwebtoken.verify_by_kid(token));
        let reject = || tonic::Status::unauthenticated("").into_http::<tonic::body::Body>();
        request.extensions_mut().insert(claims.ok_or_else(reject)?);
        Ok(())
    });
    let none = tower::layer::util::Identity::new;
    let entrants = vec![
        (NO_LAYER, tonic_server!(none())),
        (NO_LAYER_AGAIN, tonic_server!(none())),
        (
            OURS,
            tonic_server!(ValidateJwtSvidLayer::required(validator, policy)),
        ),
        (HAND_MADE, tonic_server!(by_hand)),
    ];
    let mut connected = Vec::new();
    for (who, server) in entrants {
        connected.push((who, Entrant::grpc(server).await));
    }
    let table = table(id, &title("tonic", seen));
    compare(effort, table, &signer, seen, connected).await
}

fn table(id: &str, title: &str) -> Table {
    Table::new(
        id,
        title,
        &[
            "server's processor time",
            "above no layer",
            "requests",
            "to no layer",
            "p50",
            "p99",
            "p99.9",
        ],
    )
    .better("requests", Better::More)
    .better("to no layer", Better::More)
}

async fn compare(
    effort: Effort,
    mut table: Table,
    signer: &Signer,
    seen: bool,
    mut entrants: Vec<(Who, Entrant)>,
) -> Table {
    let (count, rounds) = match (effort.quick, seen) {
        (true, _) => (CONCURRENCY * 10, 2),
        (false, true) => (CONCURRENCY * 160, 300),
        (false, false) => (CONCURRENCY * 200, 15),
    };
    // By entrant, then by round. The first round is the warm-up.
    let mut slices: Vec<Vec<Option<Slice>>> = entrants.iter().map(|_| Vec::new()).collect();
    for round in 0..=rounds {
        let tokens = signer.tokens(if seen { 1 } else { count });
        let headers: Vec<_> = tokens.iter().map(|token| bearer(token)).collect();
        for own in &mut slices {
            own.push(None);
        }
        for at in shuffled(entrants.len(), round) {
            // Small differences need many rounds in a short time. Slow entrants would extend the
            // time between rounds, and their large differences need fewer rounds.
            if seen && round % SLOW_INTERVAL != 0 && is_slow(&slices[at], &slices[0]) {
                continue;
            }
            let slice = entrants[at].1.slice(&headers, count).await;
            slices[at][round] = Some(slice);
        }
    }
    let of_rounds = |values: Vec<f64>| Spread::of(&values);
    let against_first = |at: usize, of: fn(&Slice, &Slice) -> f64| {
        let pairs = slices[at].iter().zip(&slices[0]).skip(1);
        let both = pairs.filter_map(|(slice, first)| Some(of(slice.as_ref()?, first.as_ref()?)));
        of_rounds(both.collect())
    };
    for (at, (who, _)) in entrants.iter().enumerate() {
        let own: Vec<&Slice> = slices[at].iter().skip(1).flatten().collect();
        let each =
            |of: &dyn Fn(&Slice) -> f64| of_rounds(own.iter().map(|slice| of(slice)).collect());
        let latency = |q: f64| each(&|slice| quantile(slice.latencies.clone(), q));
        table.row(
            who.clone(),
            vec![
                Cell::nanos(each(&|slice| slice.processor)),
                Cell::nanos(against_first(at, |slice, first| {
                    slice.processor - first.processor
                })),
                Cell::rate(each(&|slice| slice.rate)),
                Cell::ratio(against_first(at, |slice, first| slice.rate / first.rate)),
                Cell::nanos(latency(0.5)),
                Cell::nanos(latency(0.99)),
                Cell::nanos(latency(0.999)),
            ],
        );
    }
    table
}
