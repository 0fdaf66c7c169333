//! One recorder that is set on the source only.

use std::sync::{Arc, Mutex};

use tower::{Layer, ServiceExt, service_fn};
use tower_spiffe::metrics::{Admission, MetricsRecorder, Verification};
use tower_spiffe::testing::FakeAgent;
use tower_spiffe::token::SvidRequest;
use tower_spiffe::token_file::TokenFile;
use tower_spiffe::{
    Allow, EndAtExpiryLayer, JwtSource, SvidCache, ValidateJwtSvidLayer, Validator,
};
use tower_spiffe_test_support::temp::TempDir;

#[derive(Default)]
struct Counts(Mutex<Vec<&'static str>>);

impl MetricsRecorder for Counts {
    fn record_update(&self) {
        self.0.lock().unwrap().push("update");
    }
    fn record_verification(&self, _: &Verification<'_>) {
        self.0.lock().unwrap().push("verification");
    }
    fn record_admission(&self, _: &Admission<'_>) {
        self.0.lock().unwrap().push("admission");
    }
    fn record_token_file(&self, _: &'static str) {
        self.0.lock().unwrap().push("token file");
    }
}

impl Counts {
    fn take(&self) -> Vec<&'static str> {
        std::mem::take(&mut *self.0.lock().unwrap())
    }
}

async fn call(layer: ValidateJwtSvidLayer, token: &str) {
    let inner = service_fn(async |_: http::Request<String>| {
        Ok::<_, std::convert::Infallible>(http::Response::new(String::new()))
    });
    let request = http::Request::get("/")
        .header("authorization", format!("Bearer {token}"))
        .body(String::new())
        .unwrap();
    layer.layer(inner).oneshot(request).await.unwrap();
}

#[tokio::test]
async fn recorder_of_the_source_is_inherited() {
    let agent = FakeAgent::start_in_memory("example.org").await.unwrap();
    let counts = Arc::new(Counts::default());
    let source = JwtSource::builder()
        .connector(agent.connector())
        .metrics(counts.clone())
        .build()
        .await
        .unwrap();
    assert_eq!(counts.take(), ["update"]);
    let token = agent.token("spiffe://example.org/web", "reports");
    let allow = || Allow::trust_domain("example.org").unwrap();

    // An `Arc` of a source forwards it.
    let validator = Validator::builder(Arc::new(source.clone()))
        .audience("reports")
        .build()
        .unwrap();
    let layer = ValidateJwtSvidLayer::required(validator.clone(), allow());
    call(layer.clone(), &token).await;
    assert_eq!(counts.take(), ["verification", "admission"]);
    let _ = EndAtExpiryLayer::new(&validator);

    let dir = TempDir::new();
    let file = TokenFile::builder(
        &SvidCache::from(&source),
        SvidRequest::new(["a"]).unwrap(),
        dir.join("token"),
    )
    .start()
    .unwrap();
    file.written().await.unwrap();
    file.shutdown().await;
    assert_eq!(counts.take(), ["token file"]);

    // Its own recorder replaces the inherited one.
    let other = Arc::new(Counts::default());
    call(layer.clone().metrics(other.clone()), &token).await;
    assert_eq!(counts.take(), ["verification"]);
    assert_eq!(other.take(), ["admission"]);
    call(layer.metrics(Arc::new(())), &token).await;
    assert_eq!(counts.take(), ["verification"]);
    let validator = Validator::builder(source)
        .audience("reports")
        .metrics(other.clone())
        .build()
        .unwrap();
    call(ValidateJwtSvidLayer::required(validator, allow()), &token).await;
    assert_eq!(other.take(), ["verification", "admission"]);
    assert!(counts.take().is_empty());
}

#[tokio::test]
async fn source_without_a_recorder_records_nothing() {
    let agent = FakeAgent::start_in_memory("example.org").await.unwrap();
    let source = agent.source().await.unwrap();
    assert!(tower_spiffe::BundleSource::metrics(&source).is_none());
}
