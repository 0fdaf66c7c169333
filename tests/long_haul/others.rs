//! Workload API clients without a source, and short-lived sources.

use std::time::Duration;

use fastrand::Rng;
use tower_spiffe::BundleSource as _;
use tower_spiffe::token::SvidRequest;
use tower_spiffe::workload_api::{WorkloadApiClient, WorkloadApiClientBuilder};

use crate::load::lost;
use crate::times::Times;
use crate::world::{AUDIENCES, Shared, WEB, World};

/// A client of the Workload API without a source.
fn client(world: &World) -> WorkloadApiClientBuilder {
    let builder = match world.socket() {
        Some(endpoint) => WorkloadApiClient::builder(&endpoint.parse().unwrap()),
        None => WorkloadApiClient::with_connector(world.agent.connector()),
    };
    let within = world.times.call.mul_f64(0.9);
    builder
        .clock(world.clock.shared())
        .call_timeout(within)
        .first_message_timeout(within)
}

/// Makes the calls directly, with a new connection each time.
pub(crate) async fn talker(world: Shared, mut rng: Rng) {
    let me = "talker";
    loop {
        let rest = Times::draw(&mut rng, &world.times.think) * 8;
        world.gate.rest(rest).await;
        let Some(_inside) = world.gate.enter().await else {
            return;
        };
        let client = client(&world).build().unwrap();
        for _ in 0..rng.usize(1..4) {
            let kind = rng.u8(..3);
            let said = async {
                let ok = match kind {
                    0 => {
                        let request = SvidRequest::new([AUDIENCES[0]]).unwrap();
                        client.fetch_jwt_svids(&request).await.map(drop)
                    }
                    1 => {
                        let token = world.agent.token(WEB, AUDIENCES[0]);
                        let validated = client.validate_jwt_svid(AUDIENCES[0], &token).await;
                        validated.map(drop)
                    }
                    _ => match client.fetch_jwt_bundles().await {
                        Ok(mut stream) => stream.message().await.map(drop),
                        Err(error) => Err(error),
                    },
                };
                match ok {
                    Ok(()) => "ok".to_owned(),
                    Err(error) => format!("{:?}", error.reason()),
                }
            };
            // A stream is opened, then returns a message.
            let within = world.times.call * 2;
            let word = match tokio::time::timeout(within, said).await {
                Ok(word) => word,
                Err(_) => {
                    lost(&world, me, within);
                    "lost".to_owned()
                }
            };
            world.tally.calls.up();
            world.log.say(me, format_args!("call {kind}: {word}"));
        }
    }
}

/// Starts sources at any time, uses them, and ends them in every way.
pub(crate) async fn newcomer(world: Shared, mut rng: Rng) {
    let me = "newcomer";
    loop {
        let rest = Times::draw(&mut rng, &world.times.think) * 10;
        world.gate.rest(rest).await;
        let Some(_inside) = world.gate.enter().await else {
            return;
        };
        let start = world.times.start;
        let builder = world
            .source(rng.u64(..))
            .initial_sync_timeout(start.mul_f64(0.8));
        let source = if rng.bool() {
            let Ok(built) = tokio::time::timeout(start, builder.build()).await else {
                lost(&world, "newcomer's start", start);
                continue;
            };
            match built {
                Ok(source) if source.revision().is_ok() => source,
                Ok(_) => {
                    // The bundles may have been withdrawn since.
                    world.log.say(me, "started, bundles unavailable");
                    continue;
                }
                Err(error) => {
                    world.tally.starts_failed.up();
                    let word = error.reason();
                    world.log.say(me, format_args!("no start: {word:?}"));
                    continue;
                }
            }
        } else {
            builder.build_lazy().unwrap()
        };
        world.tally.starts.up();
        let asked = source.get_jwt_svid([AUDIENCES[0]]);
        let patience = Times::draw(&mut rng, &world.times.think);
        let ok = tokio::time::timeout(patience, asked).await;
        let ok = ok.map(|taken| taken.is_ok());
        let way = rng.u8(..3);
        world.log.say(
            me,
            format_args!("started; a token: {ok:?}; ends by way {way}"),
        );
        let within = Duration::from_secs(5);
        match way {
            0 => drop(source),
            1 => {
                let clone = source.clone();
                let both = tokio::time::timeout(within, async {
                    tokio::join!(source.shutdown(), clone.shutdown())
                });
                if both.await.is_err() {
                    lost(&world, "newcomer's shutdown", within);
                }
            }
            _ => {
                if source.shutdown_with_timeout(within).await.is_err() {
                    lost(&world, "newcomer's shutdown", within);
                }
            }
        }
    }
}
