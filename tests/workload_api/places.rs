//! Every call with every kind of endpoint.

use tower_spiffe::SpiffeId;

use crate::support::*;

/// The embedded agent rejects calls without exactly one `workload.spiffe.io: true`
/// (`tests/agent/rejected_calls.rs`), so each successful call has sent it.
#[tokio::test]
async fn ep5_all_calls_share_one_connection() {
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

        let validated = client.validate_jwt_svid(AUD, svid.token()).await.unwrap();
        assert_eq!(validated.spiffe_id(), svid.spiffe_id());

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
        // Clones share one connection, which closes with the last clone and stream.
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
async fn next_call_reconnects_after_a_restart() {
    for place in places().await {
        let client = place.client();
        let mut stream = client.fetch_jwt_bundles().await.unwrap();
        stream.message().await.unwrap().unwrap();
        place.agent.restart().await.unwrap();
        let broken = stream.message().await.unwrap_err();
        assert!(broken.to_string().contains(&place.name), "{broken}");
        assert_eq!(
            stream.message().await.unwrap(),
            None,
            "the stream has not ended"
        );

        client.fetch_jwt_svid(&request()).await.unwrap();
        let mut next = client.fetch_jwt_bundles().await.unwrap();
        next.message().await.unwrap().unwrap();
        assert_eq!(place.agent.counts().connections, 2);
    }
}
