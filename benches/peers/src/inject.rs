//! A request that is given its token on the way out.

use std::sync::Arc;

use http::{Request, StatusCode};
use tower::{Layer as _, ServiceExt as _};
use tower_http::auth::AddAuthorizationLayer;
use tower_spiffe::client::{AddJwtSvidLayer, Audience};
use tower_spiffe::{FetchSvid, JwtSvid, SvidCache, SvidRequest};

use crate::keys::{AUDIENCE, SUBJECT, Signer, now};
use crate::layer::pass;
use crate::measure::{Contest, Effort, prepare};
use crate::peers::Bare;
use crate::report::Table;
use crate::verify::OURS;

/// Many audiences are so many.
const MANY: usize = 10_000;

/// Signs whatever token is asked for.
pub struct Desk(pub Arc<Signer>);

impl FetchSvid for Desk {
    fn fetch_svid(&self, request: &SvidRequest) -> tower_spiffe::FetchSvidFuture {
        let audiences: Vec<&str> = request.audiences().iter().map(|name| &**name).collect();
        let token = self.0.token(&serde_json::json!({
            "sub": SUBJECT, "aud": audiences, "iat": now(), "exp": now() + 24 * 3600,
        }));
        Box::pin(async move { Ok(JwtSvid::parse_unverified(&token, "").unwrap()) })
    }
}

fn request() -> Request<()> {
    Request::get("https://reports.prod.example/v1/reports/7")
        .header("accept", "application/json")
        .header("user-agent", "peers/1")
        .header("x-request-id", "0123456789abcdef")
        .body(())
        .unwrap()
}

pub fn injection(effort: Effort) -> Table {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .unwrap();
    let _entered = runtime.enter();
    let many = if effort.quick { 100 } else { MANY };
    let signer = Arc::new(Signer::usual());
    let cache = || {
        SvidCache::builder(Desk(signer.clone()))
            .max_entries(many + 16)
            .rate(1_000_000)
            .build()
    };
    let (one, all) = (cache(), cache());
    let wanted = SvidRequest::new([AUDIENCE]).unwrap();
    let origin = |n: usize| match n {
        0 => "https://reports.prod.example".to_owned(),
        n => format!("https://service{n}.prod.example"),
    };
    let audience = |n: usize| match n {
        0 => AUDIENCE.to_owned(),
        n => format!("spiffe://prod.example/service{n}"),
    };
    let requests: Vec<_> = (0..many)
        .map(|n| SvidRequest::new([audience(n)]).unwrap())
        .collect();
    runtime.block_on(async {
        for request in &requests {
            all.header(request).await.unwrap();
        }
    });
    let header = runtime.block_on(one.header(&wanted)).unwrap();
    let token = header.to_str().unwrap().strip_prefix("Bearer ").unwrap();

    let fixed = Audience::fixed(AUDIENCE).for_origin(&origin(0)).unwrap();
    let mut fixed = AddJwtSvidLayer::new(one.clone(), fixed).layer(Bare::<String>::new());
    let map = Audience::map((0..many).map(|n| (origin(n), audience(n)))).unwrap();
    let mut map = AddJwtSvidLayer::new(all.clone(), map).layer(Bare::<String>::new());
    runtime.block_on(async {
        // The first one fetches.
        fixed.clone().oneshot(request()).await.unwrap();
        map.clone().oneshot(request()).await.unwrap();
    });
    let mut constant = AddAuthorizationLayer::bearer(token)
        .as_sensitive(true)
        .layer(Bare::<String>::new());
    let mut bare = Bare::<String>::new();
    let pinned = one.pin(wanted.clone());

    let requests_for = |count: usize| prepare(|| (0..count).map(|_| request()).collect());
    let outcomes = Contest::new(effort)
        .at_most(512)
        .batch("no layer at all", |count| {
            pass(&mut bare, requests_for(count), StatusCode::OK)
        })
        .batch(
            "tower-http 0.7 `AddAuthorization`, a header that never changes",
            |count| pass(&mut constant, requests_for(count), StatusCode::OK),
        )
        .batch(format!("{OURS}, `Audience::fixed`"), |count| {
            pass(&mut fixed, requests_for(count), StatusCode::OK)
        })
        .batch(
            format!("{OURS}, `Audience::map` of {many} origins"),
            |count| pass(&mut map, requests_for(count), StatusCode::OK),
        )
        .each(
            format!("{OURS}, `PinnedSvid::try_header`, no layer"),
            |_| pinned.try_header().unwrap(),
        )
        .each(
            format!("{OURS}, `SvidCache::try_header` among {many} audiences, no layer"),
            |n| all.try_header(&requests[n % many]).unwrap(),
        )
        .run();
    Table::contest("injection", "A request is given its token on the way out", outcomes).note(
        "The header that never changes is wrong as soon as its token expires. `spiffe` has no layer \
         and no cache: each token is a call to the agent, see below.",
    )
}
