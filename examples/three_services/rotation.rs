//! A key rotation and an agent restart during calls.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use reqwest_middleware::ClientWithMiddleware;
use tower_spiffe::JwtSource;
use tower_spiffe::testing::FakeAgent;

use crate::{Error, call};

/// The result of the calls.
#[derive(Default)]
pub(crate) struct Calls {
    pub(crate) made: u32,
    pub(crate) lost: Vec<String>,
}

/// Sends requests continuously during a key rotation and an agent restart, until the old key is
/// removed and each source has a token that is signed by the new key.
pub(crate) async fn rotate_and_restart(
    agent: &FakeAgent,
    sources: &[(&JwtSource, &str, &str)],
    client: ClientWithMiddleware,
    url: String,
) -> Result<Calls, Error> {
    let done = Arc::new(AtomicBool::new(false));
    let caller = tokio::spawn({
        let done = done.clone();
        async move {
            let mut calls = Calls::default();
            while !done.load(Ordering::Relaxed) {
                calls.made += 1;
                match call(&client, &url).await {
                    Ok((200, _)) => {}
                    Ok((status, text)) => calls.lost.push(format!("{status} {text}")),
                    Err(error) => calls.lost.push(error.to_string()),
                }
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            calls
        }
    });

    let old = agent.issuer().signing_key_id();
    let new = agent.rotate().await;
    println!("  rotated from key {old} to {new}; calls continue until {old} is removed");
    agent.stop().await;
    tokio::time::sleep(Duration::from_millis(500)).await;
    agent.start_again().await?;
    println!("  the agent was stopped for half a second");

    // The old key is removed from the bundle one token lifetime after the rotation.
    let trust_domain = agent.issuer().trust_domain();
    for (source, me, audience) in sources {
        let mut updates = source.updated();
        let bundle = || source.bundle_for_trust_domain(trust_domain);
        while bundle()?.authority(&old).is_some() {
            updates.changed().await?;
        }
        let id = me.parse()?;
        let svid = source.get_jwt_svid_with_id([audience], Some(&id)).await?;
        if svid.key_id() != Some(&new) {
            return Err(format!("{me} still has a token signed by the removed key").into());
        }
    }
    println!("  {old} is removed, and all tokens are signed by {new}");
    tokio::time::sleep(Duration::from_millis(200)).await;
    done.store(true, Ordering::Relaxed);
    Ok(caller.await?)
}
