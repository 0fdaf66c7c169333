//! Every call over every place.

use tower_spiffe::SpiffeId;

use crate::support::*;

/// The embedded agent turns down whatever carries `workload.spiffe.io: true` not exactly once
/// (`tests/agent/refusals.rs`): each call that is answered here has carried it.
#[tokio::test]
async fn ep5_every_call_of_every_place_is_answered_over_one_connection() {
    for place in places().await {
        let Place { agent, name } = &place;
        let client = place.client();

        let svid = client.fetch_jwt_svid(&request()).await.unwrap();
        assert_eq!(svid.spiffe_id().as_str(), WEB, "{name}");
        let all = client.fetch_jwt_svids(&request()).await.unwrap();
        let hints: Vec<&str> = all.iter().map(|svid| svid.hint()).collect();
        assert_eq!(hints, ["external", "internal"]);
        let by_hint = request().with_hint("internal").unwrap();
        let by_id = request().with_spiffe_id(SpiffeId::parse(OPS).unwrap());
        for request in [by_hint, by_id] {
            let svid = client.fetch_jwt_svid(&request).await.unwrap();
            assert_eq!(svid.spiffe_id().as_str(), OPS);
        }

        let judged = client.validate_jwt_svid(AUD, svid.token()).await.unwrap();
        assert_eq!(judged.spiffe_id(), svid.spiffe_id());

        let mut stream = client.fetch_jwt_bundles().await.unwrap();
        let message = stream.message().await.unwrap().unwrap();
        let (trust_domain, jwks) = message.iter().next().unwrap();
        assert_eq!(trust_domain, "spiffe://example.org");
        assert_eq!(jwks, agent.issuer().jwks());

        let counts = agent.counts();
        assert_eq!(
            [
                counts.fetch_jwt_svid,
                counts.validate_jwt_svid,
                counts.fetch_jwt_bundles,
                counts.connections,
            ],
            [4, 1, 1, 1],
            "{name}"
        );
        // A clone is the same client; with the last one, and the stream, the connection goes.
        let clone = client.clone();
        drop(client);
        clone.fetch_jwt_svid(&request()).await.unwrap();
        assert_eq!(agent.counts().connections, 1);
        drop(clone);
        assert!(format!("{stream:?}").contains(name.as_str()));
        drop(stream);
        eventually("the connection ends", || {
            agent.counts().open_connections == 0
        })
        .await;
    }
}

#[tokio::test]
async fn after_a_restart_of_the_agent_the_next_call_connects_anew() {
    for place in places().await {
        let client = place.client();
        let mut stream = client.fetch_jwt_bundles().await.unwrap();
        stream.message().await.unwrap().unwrap();
        place.agent.restart().await.unwrap();
        let broken = stream.message().await.unwrap_err();
        assert!(broken.to_string().contains(&place.name), "{broken}");
        assert_eq!(stream.message().await.unwrap(), None, "it has ended");

        client.fetch_jwt_svid(&request()).await.unwrap();
        let mut next = client.fetch_jwt_bundles().await.unwrap();
        next.message().await.unwrap().unwrap();
        assert_eq!(place.agent.counts().connections, 2);
    }
}
