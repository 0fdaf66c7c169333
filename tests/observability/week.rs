//! A week of a service, with and without faults, in paused time: its metrics and its log.

use std::convert::Infallible;
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use bytes::Bytes;
use http::header::{AUTHORIZATION, HOST, WWW_AUTHENTICATE};
use http::{HeaderValue, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::Frame;
use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};
use tokio::time::sleep;
use tower::{Layer, Service, ServiceExt, service_fn};
use tower_spiffe::clock::UnixTime;
use tower_spiffe::metrics::{FacadeRecorder, METRICS, MetricsRecorder};
use tower_spiffe::oauth::AccessTokens;
use tower_spiffe::server::{FilePolicy, TokenExpired, UnknownKeyWait};
use tower_spiffe::source::JwtSourceBuilder;
use tower_spiffe::source::WithdrawalPolicy;
use tower_spiffe::testing::{
    AgentCall, FakeAgent, FakeAuthorizationServer, Fault, Issuer, PausedClock, TokenEndpointFault,
};
use tower_spiffe::token::{GrpcCode, SvidRequest};
use tower_spiffe::token_file::{FileTokens, TokenFile};
use tower_spiffe::{
    AddJwtSvidLayer, Allow, AllowCallersLayer, Audience, EndAtExpiryLayer, FileBundles, JwtSource,
    SvidCache, TrustDomain, ValidateJwtSvidLayer, Validator,
};
use tower_spiffe_test_support::temp::TempDir;
use tracing_subscriber::layer::SubscriberExt;

use crate::log::{Log, Seen};

pub(crate) const TRUST_DOMAIN: &str = "example.org";
pub(crate) const PARTNER: &str = "partner.test";

const SELF: &str = "spiffe://example.org/workload";
const REPORTS: &str = "spiffe://example.org/reports";
const ORIGIN: &str = "https://reports.example.org";
const LIFE: Duration = Duration::from_secs(300);

/// The results of the week.
pub(crate) struct Week {
    /// The last scrape.
    pub(crate) scrape: String,
    pub(crate) scrape_while_well: String,
    pub(crate) scrape_while_withdrawn: String,
    pub(crate) log: Vec<Seen>,
    /// Every token that was used.
    pub(crate) tokens: Vec<String>,
}

/// One per process, because the exporter and the log are global.
pub(crate) static WEEK: LazyLock<Week> = LazyLock::new(Week::live);

impl Week {
    fn live() -> Self {
        let log = Log::default();
        let subscriber = tracing_subscriber::registry().with(log.clone());
        tracing::subscriber::set_global_default(subscriber).unwrap();
        let exporter = exporter();
        let mut world = World {
            handle: exporter.handle(),
            recorder: {
                metrics::set_global_recorder(exporter).unwrap();
                Arc::new(FacadeRecorder::new())
            },
            tokens: Vec::new(),
            scrape_while_well: String::new(),
            scrape_while_withdrawn: String::new(),
        };
        let runtime = || {
            tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .start_paused(true)
                .build()
                .unwrap()
        };
        runtime().block_on(world.week());
        // A source whose runtime ends first.
        let brief = runtime();
        let source = brief.block_on(async {
            let agent = FakeAgent::start_in_memory(TRUST_DOMAIN).await.unwrap();
            agent.source().await.unwrap()
        });
        drop(brief);
        drop(source);
        Self {
            scrape: world.handle.render(),
            scrape_while_well: world.scrape_while_well,
            scrape_while_withdrawn: world.scrape_while_withdrawn,
            log: log.seen(),
            tokens: world.tokens,
        }
    }
}

/// The setup of the example's README.
fn exporter() -> metrics_exporter_prometheus::PrometheusRecorder {
    let histograms = METRICS.iter().filter(|metric| !metric.buckets.is_empty());
    histograms
        .fold(PrometheusBuilder::new(), |builder, metric| {
            let name = Matcher::Full(metric.name.to_owned());
            builder
                .set_buckets_for_metric(name, metric.buckets)
                .unwrap()
        })
        .build_recorder()
}

struct World {
    handle: PrometheusHandle,
    recorder: Arc<dyn MetricsRecorder>,
    tokens: Vec<String>,
    scrape_while_well: String,
    scrape_while_withdrawn: String,
}

/// The parts of an observed service.
struct Watched {
    agent: FakeAgent,
    clock: PausedClock,
    source: JwtSource,
    layer: ValidateJwtSvidLayer,
    validator: Validator,
}

async fn hello(_: Request<String>) -> Result<Response<String>, Infallible> {
    Ok(Response::new(String::new()))
}

fn request(bearer: Option<&str>) -> Request<String> {
    let mut request = Request::get(ORIGIN).body(String::new()).unwrap();
    if let Some(token) = bearer {
        let value = HeaderValue::try_from(format!("Bearer {token}")).unwrap();
        request.headers_mut().insert(AUTHORIZATION, value);
    }
    request
}

async fn send<S>(service: S, request: Request<String>) -> StatusCode
where
    S: Service<Request<String>, Response = Response<String>>,
    S::Error: std::fmt::Debug,
{
    service.oneshot(request).await.unwrap().status()
}

fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

impl World {
    async fn week(&mut self) {
        let service = self.service().await;
        self.callers(&service).await;
        self.scrape_while_well = self.handle.render();
        self.policy_file(&service).await;
        self.unknown_keys(&service).await;
        self.stream_outlives_its_token(&service).await;
        self.own_tokens(&service).await;
        self.token_files(&service).await;
        self.access_tokens(&service).await;
        self.agent_faults(&service).await;
        self.withdrawal(&service).await;
        self.unavailable_bundles(&service).await;
        self.files().await;
        self.miswired(&service).await;
        service.source.shutdown().await;
        self.reject_without_bundles(&service.validator).await;
    }

    fn source(&self, agent: &FakeAgent, clock: &PausedClock) -> JwtSourceBuilder {
        JwtSource::builder()
            .connector(agent.connector())
            .clock(clock.shared())
            .metrics(self.recorder.clone())
    }

    fn validator(&self, source: JwtSource, clock: &PausedClock) -> Validator {
        Validator::builder(source)
            .audience(REPORTS)
            .clock(clock.shared())
            .metrics(self.recorder.clone())
            .build()
            .unwrap()
    }

    async fn service(&self) -> Watched {
        let clock = PausedClock::new(UnixTime::from_secs(1_790_000_000));
        let agent = FakeAgent::builder(TRUST_DOMAIN)
            .clock(clock.shared())
            .start_in_memory()
            .await
            .unwrap();
        agent.federate(PARTNER).unwrap();
        let source = self.source(&agent, &clock).build().await.unwrap();
        let validator = self.validator(source.clone(), &clock);
        let layer = ValidateJwtSvidLayer::required(
            validator.clone(),
            Allow::id(SELF).unwrap().because("only this service"),
        )
        .metrics(self.recorder.clone());
        Watched {
            agent,
            clock,
            source,
            layer,
            validator,
        }
    }

    fn token(&mut self, token: String) -> String {
        self.tokens.push(token.clone());
        token
    }

    /// Callers that are allowed, and callers that are not.
    async fn callers(&mut self, service: &Watched) {
        let required = service.layer.layer(service_fn(hello));
        let issuer = service.agent.issuer();
        let good = self.token(issuer.token(SELF, REPORTS).sign());
        for _ in 0..2 {
            assert_eq!(send(required.clone(), request(Some(&good))).await, 200);
        }
        let elsewhere = Issuer::with_clock(TRUST_DOMAIN, service.clock.shared()).unwrap();
        let partner = service.agent.token("spiffe://partner.test/web", REPORTS);
        let bad = [
            issuer.token(SELF, REPORTS).expired(seconds(60)).sign(),
            issuer.token(SELF, "spiffe://example.org/other").sign(),
            issuer.token(SELF, REPORTS).signed_by(&elsewhere).sign(),
            issuer.token(SELF, REPORTS).header("kid", "made-up").sign(),
            issuer.token(SELF, REPORTS).header("alg", "none").sign(),
            issuer.token("spiffe://nowhere.test/web", REPORTS).sign(),
        ];
        for token in bad {
            let token = self.token(token);
            assert_eq!(send(required.clone(), request(Some(&token))).await, 401);
        }
        let partner = self.token(partner);
        assert_eq!(send(required.clone(), request(Some(&partner))).await, 403);
        assert_eq!(send(required.clone(), request(None)).await, 401);
        let mut two = request(Some(&good));
        two.headers_mut()
            .append(AUTHORIZATION, HeaderValue::from_static("Basic eA=="));
        assert_eq!(send(required, two).await, 400);

        let allow = || Allow::id(SELF).unwrap();
        let optional = ValidateJwtSvidLayer::optional(service.validator.clone(), Allow::anyone())
            .metrics(self.recorder.clone());
        assert_eq!(
            send(optional.layer(service_fn(hello)), request(None)).await,
            200
        );
        let audit = ValidateJwtSvidLayer::audit(service.validator.clone(), allow())
            .metrics(self.recorder.clone());
        assert_eq!(
            send(audit.layer(service_fn(hello)), request(None)).await,
            200
        );
    }

    async fn unknown_keys(&mut self, service: &Watched) {
        let wait = UnknownKeyWait::new(seconds(2));
        let waiting = service.layer.clone().wait_for_unknown_keys(wait);
        let waiting = waiting.layer(service_fn(hello));
        let issuer = service.agent.issuer();
        let unknown = issuer.token(SELF, REPORTS).header("kid", "made-up").sign();
        for _ in 0..2 {
            assert_eq!(send(waiting.clone(), request(Some(&unknown))).await, 401);
        }
        sleep(seconds(11)).await;
        // Signed with a key that is not published yet.
        issuer.rotate_now();
        let new = self.token(issuer.token(SELF, REPORTS).sign());
        assert_eq!(send(waiting, request(Some(&new))).await, 200);
    }

    async fn stream_outlives_its_token(&mut self, service: &Watched) {
        let layer = service.layer.clone();
        let layer = layer.on_reject(|_: &_, _: &http::request::Parts| unreachable!());
        let ends = EndAtExpiryLayer::new(&service.validator).metrics(self.recorder.clone());
        let endless = service_fn(|_: Request<String>| async {
            let frames = tokio_stream::pending::<Result<Frame<Bytes>, Infallible>>();
            Ok::<_, Infallible>(Response::new(StreamBody::new(frames)))
        });
        let token = service.agent.issuer().token(SELF, REPORTS).sign();
        let token = self.token(token);
        let service = layer.layer(ends.layer(endless));
        let answer = service.oneshot(request(Some(&token))).await.unwrap();
        let error = answer.into_body().collect().await.unwrap_err();
        assert!(error.is::<TokenExpired>());
    }

    /// Tokens that are fetched, late, rejected or missing.
    async fn own_tokens(&mut self, service: &Watched) {
        let Watched { agent, source, .. } = service;
        let audience = Audience::fixed(REPORTS).for_origin(ORIGIN).unwrap();
        let client = AddJwtSvidLayer::new(source.clone(), audience.clone());
        let client = client.layer(service.layer.layer(service_fn(hello)));
        for _ in 0..2 {
            assert_eq!(send(client.clone(), request(None)).await, 200);
        }
        let mut foreign = request(None);
        *foreign.uri_mut() = "https://elsewhere.test/".parse().unwrap();
        assert_eq!(send(client.clone(), foreign).await, 401);
        let mut forwarded = request(None);
        let host = HeaderValue::from_static("elsewhere.test");
        forwarded.headers_mut().insert(HOST, host);
        assert_eq!(send(client.clone(), forwarded).await, 401);
        let mut unknown = request(None);
        *unknown.uri_mut() = "/".parse().unwrap();
        assert!(client.clone().oneshot(unknown).await.is_err());

        // A refresh is due: the next request starts it in the background.
        sleep(seconds(200)).await;
        for _ in 0..2 {
            assert_eq!(send(client.clone(), request(None)).await, 200);
            sleep(seconds(1)).await;
        }

        // It expires while the agent returns no other token.
        agent.fail_call(
            AgentCall::FetchJwtSvid,
            Fault::Refuse(GrpcCode::Unavailable),
        );
        sleep(LIFE - seconds(20)).await;
        assert_eq!(send(client.clone(), request(None)).await, 200);
        sleep(seconds(30)).await;
        assert!(client.clone().oneshot(request(None)).await.is_err());
        agent.recover();
        sleep(seconds(10)).await;
        assert_eq!(send(client, request(None)).await, 200);

        // A service rejects it.
        let strange = service_fn(|_: Request<String>| async {
            let rejected = Response::builder()
                .status(StatusCode::UNAUTHORIZED)
                .header(WWW_AUTHENTICATE, "Bearer error=\"invalid_token\"");
            Ok::<_, Infallible>(rejected.body(String::new()).unwrap())
        });
        let client = AddJwtSvidLayer::new(source.clone(), audience).layer(strange);
        assert_eq!(send(client, request(None)).await, 401);

        // The agent hangs: no request gets a token, and the breaker opens.
        agent.fail_call(AgentCall::FetchJwtSvid, Fault::Hang);
        let tokens = ["a", "b", "c"].map(|audience| source.get_jwt_svid([audience]));
        let (a, b, c) = {
            let [a, b, c] = tokens;
            tokio::join!(a, b, c)
        };
        assert!(a.is_err() && b.is_err() && c.is_err());
        sleep(seconds(60)).await;
        agent.recover();
        sleep(seconds(60)).await;
        let token = source.get_jwt_svid(["a"]).await.unwrap();
        self.token(token.token().to_owned());
    }

    /// A token file whose directory is missing for some time, and whose action always fails.
    async fn token_files(&mut self, service: &Watched) {
        let dir = TempDir::new();
        let folder = dir.join("tokens");
        let path = folder.join("token");
        std::fs::create_dir(&folder).unwrap();
        let request = SvidRequest::new([REPORTS]).unwrap();
        let cache = SvidCache::from(service.source.clone());
        let file = TokenFile::builder(&cache, request.clone(), &path)
            .remove_on_exit(true)
            .after_write(|_| Err("as scripted".to_owned()))
            .metrics(self.recorder.clone())
            .start()
            .unwrap();
        file.written().await.unwrap();
        sleep(LIFE).await;
        self.token(std::fs::read_to_string(&path).unwrap());
        std::fs::remove_dir_all(&folder).unwrap();
        sleep(LIFE).await;
        std::fs::create_dir(&folder).unwrap();
        sleep(seconds(60)).await;
        self.token(std::fs::read_to_string(&path).unwrap());
        // A file in place of the directory: the token can be neither read nor removed.
        std::fs::remove_dir_all(&folder).unwrap();
        std::fs::write(&folder, "").unwrap();
        let files = FileTokens::builder().file([REPORTS], &path);
        let files = files.clock(service.clock.shared()).open().unwrap();
        assert!(SvidCache::from(files).get(&request).await.is_err());
        file.shutdown().await;
    }

    /// Access tokens of a server with faults.
    async fn access_tokens(&mut self, service: &Watched) {
        const ISSUER: &str = "https://as.example.org";
        let server = FakeAuthorizationServer::builder(service.source.clone())
            .issuer(ISSUER)
            .clock(service.clock.shared())
            .build();
        let tokens = AccessTokens::builder(service.source.clone())
            .issuer(ISSUER)
            .token_endpoint(server.token_endpoint())
            .http_client(server.service())
            .metrics(self.recorder.clone())
            .build()
            .unwrap();
        let cache = SvidCache::from(&tokens);
        let get = async |audience: &str| {
            let request = SvidRequest::new([audience]).unwrap();
            cache.get(&request).await
        };
        self.token(get("api").await.unwrap().token().to_owned());
        server.fail(TokenEndpointFault::Echo);
        assert!(get("b").await.is_err());
        server.fail(TokenEndpointFault::TooManyRequests(1));
        assert!(get("c").await.is_err());
        let agent = &service.agent;
        agent.fail_call(
            AgentCall::FetchJwtSvid,
            Fault::Refuse(GrpcCode::Unavailable),
        );
        sleep(LIFE).await;
        assert!(get("d").await.is_err());
        agent.recover();
        sleep(seconds(60)).await;
        for body in server.bodies() {
            let assertion = body.split("client_assertion=").nth(1).unwrap();
            let assertion = assertion.split('&').next().unwrap();
            self.token(assertion.to_owned());
        }
    }

    async fn agent_faults(&mut self, service: &Watched) {
        let agent = &service.agent;
        agent.rotate().await;
        sleep(seconds(60)).await;
        agent.cut_connections().await;
        sleep(seconds(60)).await;
        for fault in [Fault::HangUp, Fault::Refuse(GrpcCode::Unavailable)] {
            agent.fail(fault);
            agent.cut_connections().await;
            sleep(seconds(60)).await;
        }
        agent.recover();
        sleep(seconds(60)).await;
        let unreadable = "no JWK Set";
        agent.federate_raw("broken.test", unreadable).unwrap();
        sleep(seconds(60)).await;
        agent.unfederate("broken.test");
        agent.stop().await;
        sleep(seconds(60)).await;
        agent.start_again().await.unwrap();
        sleep(seconds(60)).await;
        // A recorder of the user panics.
        let panics: Arc<dyn MetricsRecorder> = Arc::new(Panics);
        let source = self.source(agent, &service.clock).metrics(panics);
        drop(source.build().await.unwrap());
        service.clock.step_wall(2);
        sleep(seconds(60)).await;
    }

    async fn withdrawal(&mut self, service: &Watched) {
        let Watched { agent, clock, .. } = service;
        let later = self
            .source(agent, clock)
            .withdrawal(WithdrawalPolicy::After(seconds(30)))
            .build()
            .await
            .unwrap();
        agent.withdraw();
        sleep(seconds(60)).await;
        self.reject_without_bundles(&service.validator).await;
        self.scrape_while_withdrawn = self.handle.render();
        agent.restore();
        sleep(seconds(60)).await;
        later.shutdown().await;
    }

    /// No bundles yet, and stale bundles.
    async fn unavailable_bundles(&mut self, service: &Watched) {
        let Watched { agent, clock, .. } = service;
        let stale = self.source(agent, clock).max_staleness(seconds(60));
        let stale = stale.build().await.unwrap();
        agent.stop().await;
        let lazy = self.source(agent, clock).build_lazy().unwrap();
        sleep(seconds(90)).await;
        for source in [stale, lazy] {
            let validator = self.validator(source, clock);
            self.reject_without_bundles(&validator).await;
        }
        agent.start_again().await.unwrap();
        sleep(seconds(60)).await;
    }

    async fn reject_without_bundles(&self, validator: &Validator) {
        let token = Issuer::new(TRUST_DOMAIN)
            .unwrap()
            .token(SELF, REPORTS)
            .expires_at(UnixTime::from_secs(4_000_000_000))
            .sign();
        let layer = ValidateJwtSvidLayer::required(validator.clone(), Allow::any_trust_domain())
            .metrics(self.recorder.clone());
        let status = send(layer.layer(service_fn(hello)), request(Some(&token))).await;
        assert_eq!(status, 503);
    }

    async fn files(&self) {
        let dir = TempDir::new();
        let issuer = Issuer::new(PARTNER).unwrap();
        let path = dir.join("partner.json");
        std::fs::write(&path, issuer.spiffe_bundle()).unwrap();
        // For the other kind of source: its keys have no `use`.
        let mistaken = dir.join("mistaken.json");
        std::fs::write(&mistaken, Issuer::new("mistaken.test").unwrap().jwks()).unwrap();
        let domain = |name: &str| name.parse::<TrustDomain>().unwrap();
        let bundles = FileBundles::builder()
            .spiffe_bundle(domain(PARTNER), &path)
            .spiffe_bundle(domain("mistaken.test"), &mistaken)
            .metrics(self.recorder.clone())
            .open()
            .unwrap();
        issuer.rotate_now();
        for contents in [issuer.spiffe_bundle(), b"half a bund".to_vec()] {
            std::fs::write(&path, contents).unwrap();
            sleep(seconds(10)).await;
        }
        assert!(!bundles.state().is_healthy());
    }

    /// A policy file that becomes invalid and recovers, and one in a dry run.
    async fn policy_file(&mut self, service: &Watched) {
        let dir = TempDir::new();
        let path = dir.join("policy.toml");
        let rule =
            "[[rule]]\npath = \"/\"\nmethods = [\"GET\"]\nids = [\"spiffe://example.org/ops\"]\n";
        std::fs::write(&path, rule).unwrap();
        let followed = FilePolicy::builder(&path)
            .metrics(self.recorder.clone())
            .open()
            .unwrap();
        let changed = format!("{rule}name = \"operators\"\n");
        for content in ["[[rule]]\n", &changed] {
            std::fs::write(&path, content).unwrap();
            sleep(seconds(12)).await;
        }
        assert!(followed.is_healthy());
        let dry_run = FilePolicy::builder(&path).dry_run(true).open().unwrap();
        let layer = ValidateJwtSvidLayer::required(service.validator.clone(), dry_run);
        let token = self.token(service.agent.token(SELF, REPORTS));
        for bearer in [Some(token.as_str()), None] {
            let layer = layer.clone().metrics(self.recorder.clone());
            assert_eq!(
                send(layer.layer(service_fn(hello)), request(bearer)).await,
                200
            );
        }
    }

    /// Layers in places where they cannot work.
    async fn miswired(&self, service: &Watched) {
        let narrow = AllowCallersLayer::new(Allow::id(SELF).unwrap());
        let narrow = narrow.metrics(self.recorder.clone());
        assert_eq!(
            send(narrow.layer(service_fn(hello)), request(None)).await,
            500
        );
        let ends = EndAtExpiryLayer::new(&service.validator);
        let inner = service_fn(|_: Request<String>| async {
            Ok::<_, Infallible>(Response::new(Full::<Bytes>::default()))
        });
        ends.layer(inner).oneshot(request(None)).await.unwrap();
    }
}

struct Panics;

impl MetricsRecorder for Panics {
    fn record_update(&self) {
        panic!("an intended panic of a recorder");
    }
}
