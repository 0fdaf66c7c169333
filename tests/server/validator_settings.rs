//! What a layer takes from its validator.

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use http::{Request, Response};
use tower::{Layer, ServiceExt, service_fn};
use tower_spiffe::metrics::{Admission, MetricsRecorder, Verification};
use tower_spiffe::server::{Allow, ValidateJwtSvidLayer};

use crate::support::{OPS, WEB, World};

#[derive(Default)]
struct Counts {
    admissions: AtomicUsize,
    verifications: AtomicUsize,
}

impl Counts {
    fn get(&self) -> (usize, usize) {
        let of = |count: &AtomicUsize| count.load(Ordering::Relaxed);
        (of(&self.admissions), of(&self.verifications))
    }
}

impl MetricsRecorder for Counts {
    fn record_admission(&self, _: &Admission<'_>) {
        self.admissions.fetch_add(1, Ordering::Relaxed);
    }

    fn record_verification(&self, _: &Verification<'_>) {
        self.verifications.fetch_add(1, Ordering::Relaxed);
    }
}

async fn send(layer: &ValidateJwtSvidLayer, world: &World) {
    for (id, status) in [(WEB, 200), (OPS, 403)] {
        let service = layer.layer(service_fn(async |_: Request<String>| {
            Ok::<_, Infallible>(Response::new(String::new()))
        }));
        let response = service.oneshot(world.request(id)).await.unwrap();
        assert_eq!(response.status(), status);
    }
}

#[tokio::test]
async fn layer_records_with_the_validators_recorder() {
    let inherited = Arc::new(Counts::default());
    let world = World::with(|builder| builder.metrics(inherited.clone()));
    let layer = ValidateJwtSvidLayer::required(world.validator.clone(), Allow::id(WEB).unwrap());
    send(&layer, &world).await;
    let admissions = inherited.get().0;
    assert!(admissions > 0);
    assert_eq!(inherited.get().1, 2);

    // A recorder of the layer replaces it for requests, not for tokens.
    let own = Arc::new(Counts::default());
    send(&layer.metrics(own.clone()), &world).await;
    assert_eq!(own.get(), (admissions, 0));
    assert_eq!(inherited.get(), (admissions, 4));
}
