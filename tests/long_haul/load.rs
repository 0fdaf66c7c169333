//! Callers that request tokens and send them. Each must get a response in time.

use std::fmt::Display;
use std::time::Duration;

use fastrand::Rng;
use http::{Request, Response, StatusCode};
use tokio::task::JoinHandle;
use tower::util::BoxCloneSyncService;
use tower::{Layer, ServiceExt, service_fn};
use tower_spiffe::client::BoxError;
use tower_spiffe::source::JwtSourceError;
use tower_spiffe::token::TokenState;
use tower_spiffe::token::{SvidRequest, TokenError};
use tower_spiffe::{AddJwtSvidLayer, Audience, SvidCache};

use crate::invariants::{Presented, Verdict, View, check_verdict, sent};
use crate::others::{newcomer, talker};
use crate::present::presenter;
use crate::times::Times;
use crate::world::{AUDIENCES, BATCH_HINT, Shared, WEB, status_of};

type Client = BoxCloneSyncService<Request<String>, Response<String>, BoxError>;

/// A signed path from a client of one source to a service of the other.
pub(crate) struct Path {
    pub(crate) name: String,
    /// The station of the client.
    from: usize,
    request: SvidRequest,
    client: Client,
}

/// Returns a caller's name, the same in every run.
pub(crate) fn who(what: &str, number: usize) -> String {
    format!("{what} {number}")
}

/// Starts all callers, each a task with its own seed.
pub(crate) fn spawn_callers(world: &Shared) -> Vec<JoinHandle<()>> {
    let mut seeds = Rng::with_seed(world.seed ^ 0x10ad);
    let mut rng = || seeds.fork();
    let mut tasks = Vec::new();
    for number in 0..4 {
        tasks.push(tokio::spawn(presenter(world.clone(), number, rng())));
    }
    for (number, path) in paths(world).into_iter().enumerate() {
        tasks.push(tokio::spawn(signer(world.clone(), number, path, rng())));
    }
    for number in 0..2 {
        tasks.push(tokio::spawn(asker(world.clone(), number, rng())));
        tasks.push(tokio::spawn(canceller(world.clone(), number, rng())));
    }
    tasks.push(tokio::spawn(talker(world.clone(), rng())));
    tasks.push(tokio::spawn(newcomer(world.clone(), rng())));
    tasks
}

/// Every kind of audience, from each source to a service of the other source.
pub(crate) fn paths(world: &Shared) -> Vec<Path> {
    let [reports, ledger, orders, stock] = AUDIENCES.map(|name| SvidRequest::new([name]).unwrap());
    let web = ledger.with_spiffe_id(WEB.parse().unwrap());
    let batch = orders.with_hint(BATCH_HINT).unwrap();
    let by_origin = Audience::from_origin(
        |origin| origin.host().split('.').next().map(str::to_owned),
        ["https://*.example.org"],
    );
    let fixed = |request: &SvidRequest| {
        Audience::from_request(request.clone())
            .any_origin()
            .unwrap()
    };
    let kinds = [
        ("any identity", fixed(&reports), reports, "reports"),
        ("an identity", fixed(&web), web, "ledger"),
        ("a hint", fixed(&batch), batch, "orders"),
        ("by origin", by_origin.unwrap(), stock, "stock"),
    ];
    let mut paths = Vec::new();
    for from in 0..world.stations.len() {
        for (name, audience, request, host) in kinds.clone() {
            let to = (from + 1) % world.stations.len();
            let name = format!("{} ({name})", world.stations[from].name);
            let client = client(world.clone(), name.clone(), (from, to), audience);
            let uri = format!("https://{host}.example.org/");
            let client = client.map_request(move |mut request: Request<String>| {
                *request.uri_mut() = uri.parse().unwrap();
                request
            });
            paths.push(Path {
                client: BoxCloneSyncService::new(client),
                from,
                request,
                name,
            });
        }
    }
    paths
}

/// The client layer, with an inner service that checks outgoing requests and their responses, and reads
/// the other source meanwhile.
fn client(world: Shared, name: String, (from, to): (usize, usize), audience: Audience) -> Client {
    let layer = AddJwtSvidLayer::new(&world.stations[from].source, audience);
    let wire = service_fn(move |request: Request<String>| {
        let (world, name) = (world.clone(), name.clone());
        async move {
            let station = &world.stations[to];
            let bearer = request.headers().get(http::header::AUTHORIZATION);
            let text = bearer.and_then(|value| value.to_str().ok()?.strip_prefix("Bearer "));
            let Some(text) = text else {
                world
                    .log
                    .broken(format_args!("{name}: a request without a token"));
                return Ok::<_, BoxError>(Response::new(String::new()));
            };
            let token = Presented::new(text.to_owned(), false);
            sent(&world, &name, &token);
            let before = View::before(&world, station);
            let status = status_of(&station.door, request).await;
            let after = View::after(&world, station);
            let verdict = Verdict::from(status);
            check_verdict(&world, station, &name, &token, (&before, &after), verdict);
            let mut response = Response::new(String::new());
            *response.status_mut() = status;
            Ok(response)
        }
    });
    BoxCloneSyncService::new(layer.layer(wire))
}

impl Path {
    /// Sends one request; returns its status, or a word for the error.
    pub(crate) async fn go(&self, world: &Shared) -> Result<StatusCode, &'static str> {
        let cache = SvidCache::from(&world.stations[self.from].source);
        // Enough lifetime for any clock step.
        let enough = Duration::from_secs(2 * world.times.skew.unsigned_abs() + 2);
        let held = cache.snapshot_of(&self.request).is_some_and(|held| {
            held.state != TokenState::Expired && held.expires_in.is_some_and(|left| left > enough)
        });
        drop(cache);
        let request = Request::new(String::new());
        let answer = self.client.clone().oneshot(request);
        let answer = tokio::time::timeout(world.times.answer, answer).await;
        let outcome = match answer {
            Ok(Ok(response)) => {
                world.tally.answered.up();
                Ok(response.status())
            }
            Ok(Err(error)) => {
                world.tally.failed.up();
                match TokenError::find(&*error) {
                    Some(error) if held => {
                        let name = &self.name;
                        world.log.broken(format_args!(
                            "{name}: failed although a token was cached: {error}"
                        ));
                        Err(error.reason().as_str())
                    }
                    Some(error) => Err(error.reason().as_str()),
                    None => {
                        let name = &self.name;
                        world
                            .log
                            .broken(format_args!("{name}: not a `TokenError`: {error}"));
                        Err("untyped")
                    }
                }
            }
            Err(_) => {
                lost(world, &self.name, world.times.answer);
                Err("lost")
            }
        };
        let line: &dyn Display = match &outcome {
            Ok(status) => status,
            Err(word) => word,
        };
        world.log.say(&self.name, line);
        outcome
    }
}

/// Reports a call without a response in time.
pub(crate) fn lost(world: &Shared, who: &str, within: Duration) {
    world
        .log
        .broken(format_args!("{who}: no response within {within:?}"));
}

/// Sends signed requests on one path.
async fn signer(world: Shared, number: usize, path: Path, mut rng: Rng) {
    let _ = number;
    loop {
        let rest = Times::draw(&mut rng, &world.times.think);
        world.gate.rest(rest).await;
        let Some(_inside) = world.gate.enter().await else {
            return;
        };
        let _ = path.go(&world).await;
    }
}

/// Fetches tokens without a layer, with or without the cache.
async fn asker(world: Shared, number: usize, mut rng: Rng) {
    let me = who("asker", number);
    loop {
        let rest = Times::draw(&mut rng, &world.times.think) * 2;
        world.gate.rest(rest).await;
        let Some(_inside) = world.gate.enter().await else {
            return;
        };
        let station = rng.choice(&world.stations).unwrap();
        let source = &station.source;
        // Some audiences of its own, to exceed the size of the cache.
        let audience = format!("{}-{}", rng.choice(AUDIENCES).unwrap(), rng.u8(..6));
        let kind = rng.u8(..8);
        let within = match kind {
            0 => world.times.call,
            _ => world.times.answer,
        };
        let web = WEB.parse().unwrap();
        let taken = async {
            match kind {
                0 => source.fetch_jwt_svid([&audience]).await,
                1 => source.get_jwt_svid_with_id([&audience], Some(&web)).await,
                2 => {
                    let header = source.authorization(&audience).await?;
                    let text = header.to_str().unwrap().trim_start_matches("Bearer ");
                    Ok(tower_spiffe::JwtSvid::parse_unverified(text, "").unwrap())
                }
                3 => source.get_jwt_svid([&audience, "another"]).await,
                _ => source.get_jwt_svid([&audience]).await,
            }
        };
        let taken: Result<Result<_, JwtSourceError>, _> = tokio::time::timeout(within, taken).await;
        let word = match &taken {
            Ok(Ok(svid)) => {
                // Without the cache, a token is returned as the agent sent it.
                if kind != 0 {
                    let token = Presented::new(svid.token().to_owned(), false);
                    sent(&world, &me, &token);
                }
                "ok".to_owned()
            }
            Ok(Err(error)) => format!("{:?}", error.reason()),
            Err(_) => {
                lost(&world, &me, within);
                "lost".to_owned()
            }
        };
        world.tally.calls.up();
        world.log.say(
            &me,
            format_args!("{} {audience} by way {kind}: {word}", station.name),
        );
    }
}

/// Starts requests, and cancels them.
async fn canceller(world: Shared, number: usize, mut rng: Rng) {
    let me = who("canceller", number);
    let paths = paths(&world);
    loop {
        let rest = Times::draw(&mut rng, &world.times.think) * 2;
        world.gate.rest(rest).await;
        let Some(_inside) = world.gate.enter().await else {
            return;
        };
        let patience = Times::draw(&mut rng, &world.times.think);
        let path = rng.choice(&paths).unwrap();
        let source = &world.stations[path.from].source;
        let left = match rng.bool() {
            true => {
                let asked = path.client.clone().oneshot(Request::new(String::new()));
                tokio::time::timeout(patience, asked).await.is_err()
            }
            false => {
                let asked = source.fetch_jwt_svid([AUDIENCES[0]]);
                tokio::time::timeout(patience, asked).await.is_err()
            }
        };
        if left {
            world.tally.abandoned.up();
        }
        world
            .log
            .say(&me, format_args!("{}: left {left}", path.name));
    }
}
