//! Adding a token to an outgoing request.

use std::sync::Arc;

use http::{Request, StatusCode};
use tokio::runtime::Runtime;
use tower::{Layer as _, ServiceExt as _};
use tower_http::auth::AddAuthorizationLayer;
use tower_spiffe::client::{AddJwtSvid, AddJwtSvidLayer, Audience};
use tower_spiffe::token::{FetchSvid, SvidRequest};
use tower_spiffe::{JwtSvid, SvidCache};

use crate::keys::{AUDIENCE, SUBJECT, Signer, now};
use crate::layer::pass;
use crate::measure::{Contest, Effort, Outcome, prepare};
use crate::names::{NO_LAYER, NO_LAYER_AGAIN, OURS, Who};
use crate::peers::Bare;
use crate::table::{Cell, TIME, Table};

/// The number of audiences of a client with many audiences.
pub const MANY: usize = 10_000;

const CONSTANT: Who =
    Who::limit("tower-http 0.7 `AddAuthorization`, a header that never changes [^constant]");

/// The number of requests that are created at a time.
const REQUESTS: usize = 512;

/// Signs tokens for every requested audience.
pub struct SigningFetcher(pub Arc<Signer>);

impl FetchSvid for SigningFetcher {
    fn fetch_svid(&self, request: &SvidRequest) -> tower_spiffe::token::FetchSvidFuture {
        let audiences: Vec<&str> = request.audiences().collect();
        let token = self.0.token(&serde_json::json!({
            "sub": SUBJECT, "aud": audiences, "iat": now(), "exp": now() + 24 * 3600,
        }));
        Box::pin(async move { Ok(JwtSvid::parse_unverified(&token, "").unwrap()) })
    }
}

fn origin(n: usize) -> String {
    match n {
        0 => "https://reports.prod.example".to_owned(),
        n => format!("https://service{n}.prod.example"),
    }
}

fn audience(n: usize) -> String {
    match n {
        0 => AUDIENCE.to_owned(),
        n => format!("spiffe://prod.example/service{n}"),
    }
}

fn request(origin: &str) -> Request<String> {
    Request::get(format!("{origin}/v1/reports/7"))
        .header("accept", "application/json")
        .header("user-agent", "peers/1")
        .header("x-request-id", "0123456789abcdef")
        .body(String::new())
        .unwrap()
}

/// Returns each number below `len` in turn, in an order without locality, across batches.
pub fn stride(len: usize) -> impl FnMut() -> usize {
    let mut next = 0;
    move || {
        // A prime that divides none of the lengths.
        next = (next + 7919) % len;
        next
    }
}

pub fn runtime() -> Runtime {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .unwrap()
}

/// A cache with tokens for many audiences, and a layer that maps one origin to each.
struct Filled {
    cache: SvidCache,
    requests: Vec<SvidRequest>,
    service: AddJwtSvid<Bare<String>>,
    origins: Vec<String>,
}

impl Filled {
    fn new(runtime: &Runtime, signer: &Arc<Signer>, many: usize) -> Self {
        let cache = SvidCache::builder(SigningFetcher(signer.clone()))
            .max_entries(many + 16)
            .rate(1_000_000)
            .build();
        let wanted = |n| SvidRequest::new([audience(n)]).unwrap();
        let requests: Vec<_> = (0..many).map(wanted).collect();
        runtime.block_on(async {
            for request in &requests {
                cache.header(request).await.unwrap();
            }
        });
        let map = Audience::map((0..many).map(|n| (origin(n), audience(n)))).unwrap();
        Self {
            service: AddJwtSvidLayer::new(cache.clone(), map).layer(Bare::new()),
            origins: (0..many).map(origin).collect(),
            cache,
            requests,
        }
    }

    /// Adds an entrant that sends requests to each origin in turn through the layer.
    fn by_layer<'a>(&self, contest: Contest<'a>, who: Who) -> Contest<'a> {
        let (mut service, origins) = (self.service.clone(), self.origins.clone());
        let mut next = stride(origins.len());
        contest.at_most(REQUESTS).batch(who, move |count| {
            let requests = prepare(|| (0..count).map(|_| request(&origins[next()])).collect());
            pass(&mut service, requests, StatusCode::OK)
        })
    }

    /// Adds an entrant that reads the token of each audience in turn from the cache.
    fn by_cache<'a>(&'a self, contest: Contest<'a>, who: Who) -> Contest<'a> {
        let mut next = stride(self.requests.len());
        contest.each(who, move |_| {
            self.cache.try_header(&self.requests[next()]).unwrap()
        })
    }
}

pub fn injection(effort: Effort) -> Table {
    let runtime = runtime();
    let _entered = runtime.enter();
    let many = if effort.quick { 100 } else { MANY };
    let signer = Arc::new(Signer::usual());
    let one = SvidCache::builder(SigningFetcher(signer.clone())).build();
    let wanted = SvidRequest::new([AUDIENCE]).unwrap();
    let header = runtime.block_on(one.header(&wanted)).unwrap();
    let token = header.to_str().unwrap().strip_prefix("Bearer ").unwrap();
    let all = Filled::new(&runtime, &signer, many);

    let fixed = Audience::fixed(AUDIENCE).for_origin(&origin(0)).unwrap();
    let mut fixed = AddJwtSvidLayer::new(one.clone(), fixed).layer(Bare::<String>::new());
    runtime.block_on(async {
        // The first request fetches the token.
        fixed.clone().oneshot(request(&origin(0))).await.unwrap();
    });
    let mut constant = AddAuthorizationLayer::bearer(token)
        .as_sensitive(true)
        .layer(Bare::<String>::new());
    let mut bare = Bare::<String>::new();
    let mut bare_again = Bare::<String>::new();
    let pinned = one.pin(wanted.clone());

    let requests_for = |count: usize| prepare(|| (0..count).map(|_| request(&origin(0))).collect());
    let contest = Contest::new(effort)
        .at_most(REQUESTS)
        .batch(NO_LAYER, |count| {
            pass(&mut bare, requests_for(count), StatusCode::OK)
        })
        .batch(NO_LAYER_AGAIN, |count| {
            pass(&mut bare_again, requests_for(count), StatusCode::OK)
        })
        .batch(CONSTANT, |count| {
            pass(&mut constant, requests_for(count), StatusCode::OK)
        })
        .batch(OURS.with(", `Audience::fixed`"), |count| {
            pass(&mut fixed, requests_for(count), StatusCode::OK)
        });
    let map = format!(", `Audience::map` of {many} origins, each in turn");
    let contest = all
        .by_layer(contest, OURS.with(&map))
        .at_most(usize::MAX)
        .each(OURS.with(", `PinnedSvid::try_header`, no layer"), |_| {
            pinned.try_header().unwrap()
        });
    let among = format!(", `SvidCache::try_header` among {many} audiences, no layer");
    let outcomes = all.by_cache(contest, OURS.with(&among)).run();
    Table::contest(
        "injection",
        "Adding a token to an outgoing request",
        &outcomes,
    )
    .note(
        "`spiffe` has no client layer and no token cache. Each token is a call to the agent; see \
           below.",
    )
}

/// The cost with more audiences in use.
pub fn growth(effort: Effort) -> Table {
    const SIZES: [usize; 3] = [1, 100, MANY];
    let runtime = runtime();
    let _entered = runtime.enter();
    let signer = Arc::new(Signer::usual());
    let filled = SIZES.map(|size| {
        let size = if effort.quick { size.min(200) } else { size };
        Filled::new(&runtime, &signer, size)
    });
    let layer = OURS.with(", a layer with `Audience::map`, above no layer");
    let cache = OURS.with(", `SvidCache::try_header`");
    // Requests to different origins cost more than requests to one origin, even without a layer.
    // The baseline therefore gets the same requests.
    let mut contest = Contest::new(effort);
    for (filled, size) in filled.iter().zip(SIZES) {
        let (origins, mut next) = (filled.origins.clone(), stride(filled.origins.len()));
        let mut bare = Bare::<String>::new();
        contest = contest
            .at_most(REQUESTS)
            .batch(NO_LAYER.with(&size.to_string()), move |count| {
                let requests = prepare(|| (0..count).map(|_| request(&origins[next()])).collect());
                pass(&mut bare, requests, StatusCode::OK)
            })
            .against_last();
        contest = filled.by_layer(contest, layer.with(&size.to_string()));
        contest = contest.at_most(usize::MAX);
        contest = filled.by_cache(contest, cache.with(&size.to_string()));
    }
    let outcomes = contest.run();
    let mut table = Table::new(
        "growth-audiences",
        "More audiences in use by one client, each in turn",
        &SIZES
            .map(|size| size.to_string())
            .each_ref()
            .map(String::as_str),
    );
    let of = |who: &Who, size: usize| -> Option<&Outcome> {
        let who = who.with(&size.to_string());
        outcomes.iter().find(|outcome| outcome.who == who)
    };
    let over_base = |outcome: &Outcome| Cell::nanos(outcome.over_base);
    let row = |who: &Who, cell: &dyn Fn(&Outcome) -> Option<Cell>| {
        SIZES.iter().map(|&size| cell(of(who, size)?)).collect()
    };
    table.row(layer.clone(), row(&layer, &over_base));
    table.row(cache.clone(), row(&cache, &TIME));
    table.note("None of the other crates caches tokens by audience.")
}
