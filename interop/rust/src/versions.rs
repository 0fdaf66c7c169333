//! The same rows for each version of the `spiffe` crate.

macro_rules! version {
    ($module:ident, $spiffe:ident, $name:literal, $fetch:ident, $fetch_with_id:ident) => {
        pub(crate) mod $module {
            use std::collections::HashSet;
            use std::time::Duration;

            use serde_json::{Value, json};
            use $spiffe::{JwtBundle, JwtBundleSet, JwtSource, JwtSvid};
            use $spiffe::{SpiffeId, TrustDomain, WorkloadApiClient, WorkloadApiError};

            use crate::driver::{Driver, Error, equal, row, text, until};
            use crate::{AUDIENCE, DOMAIN, OPS, WEB};

            /// This version does not support ES512.
            const ALGORITHMS: [&str; 8] =
                ["RS256", "RS384", "RS512", "ES256", "ES384", "PS256", "PS384", "PS512"];

            pub(crate) async fn run(driver: &mut Driver, cases: &[Value]) -> Result<bool, Error> {
                let mut passed = tokens(driver, cases)?;
                for transport in ["unix", "tcp"] {
                    passed &= agent(driver, transport).await?;
                }
                Ok(passed)
            }

            /// Verifies tokens of tower-spiffe with this version.
            fn tokens(driver: &mut Driver, cases: &[Value]) -> Result<bool, Error> {
                let issuer = concat!("tokens-", $name);
                driver.run(json!({ "do": "issuer", "issuer": issuer, "trust_domain": DOMAIN }))?;
                for algorithm in ALGORITHMS.iter().chain(&["ES512"]) {
                    driver.token(issuer, WEB, &json!({ "algorithm": algorithm }))?;
                }
                let keys = driver.run(json!({ "do": "keys", "issuer": issuer }))?;
                let jwks = text(&keys["jwks"]);
                let trust_domain = TrustDomain::new(DOMAIN)?;
                let bundle = JwtBundle::from_jwt_authorities(trust_domain, jwks.as_bytes())?;
                let found = bundle.jwt_authorities().count();
                let all = keys["kids"].as_array().map_or(0, Vec::len);
                let name = concat!("rust-", $name, "-bundle");
                let mut passed = row(name, "spiffe reads our JWKS", equal("keys", found, all));
                let mut set = JwtBundleSet::default();
                set.add_bundle(bundle);
                for case in cases {
                    let name = format!(concat!("rust-", $name, "-token-{}"), text(&case["case"]));
                    let result = token(driver, issuer, case, &set);
                    passed &= row(&name, "spiffe's result on our token", result);
                }
                Ok(passed)
            }

            fn token(
                driver: &mut Driver,
                issuer: &str,
                case: &Value,
                set: &JwtBundleSet,
            ) -> Result<(), Error> {
                let token = driver.token(issuer, WEB, &case["spec"])?;
                let differs = &case["differs"][concat!("spiffe-", $name)];
                let accepted = case["rejected"].is_null() != differs.is_string();
                match JwtSvid::parse_and_validate(&token, set, &[AUDIENCE]) {
                    Ok(svid) if accepted => {
                        let sub = case["spec"]["claims"]["sub"].as_str().unwrap_or(WEB);
                        equal("ID", svid.spiffe_id().to_string(), sub)
                    }
                    Ok(_) => Err("accepted, expected a rejection".into()),
                    Err(error) if accepted => Err(error.into()),
                    Err(_) => Ok(()),
                }
            }

            /// Runs this version's client and source on the embedded agent.
            async fn agent(driver: &mut Driver, transport: &str) -> Result<bool, Error> {
                let agent = format!(concat!("spiffe-", $name, "-{}"), transport);
                let agent = agent.as_str();
                let name = |row: &str| format!(concat!("rust-", $name, "-agent-{}-{}"), transport, row);
                let started = driver.run(json!({
                    "do": "agent", "agent": agent, "trust_domain": DOMAIN, "transport": transport,
                }))?;
                let endpoint = text(&started["endpoint"]);
                for (id, hint) in [(WEB, "internal"), (OPS, "external")] {
                    driver.change(agent, json!({ "what": "register", "id": id, "hint": hint }))?;
                }
                let source = JwtSource::builder()
                    .endpoint(&endpoint)
                    .reconnect_backoff(Duration::from_millis(20), Duration::from_millis(50))
                    .build()
                    .await;
                let started = source.as_ref().map(|_| ()).map_err(|error| error.to_string().into());
                let mut passed = row(&name("start"), "JwtSource starts on our agent", started);
                let source = source?;
                let client = WorkloadApiClient::connect_to(&endpoint).await?;
                let trust_domain = TrustDomain::new(DOMAIN)?;

                let verified = |token: &str, id: &str| -> Result<(), Error> {
                    let svid = JwtSvid::parse_and_validate(token, &source, &[AUDIENCE])?;
                    equal("ID", svid.spiffe_id().to_string(), id)
                };
                let fetched = async |id: Option<&str>, want: &str| -> Result<(), Error> {
                    let id = id.map(SpiffeId::new).transpose()?;
                    let svid = source.$fetch_with_id([AUDIENCE], id.as_ref()).await?;
                    verified(svid.token(), want)
                };
                passed &= row(
                    &name("fetch"),
                    "JwtSource's bundles verify a fetched token",
                    fetched(None, WEB).await,
                );
                passed &= row(
                    &name("fetch-id"),
                    "the SPIFFE ID selects the identity",
                    fetched(Some(OPS), OPS).await,
                );
                let hinted = async || -> Result<(), Error> {
                    let svid = client.fetch_jwt_svid_by_hint([AUDIENCE], None, "external").await?;
                    equal("ID", svid.spiffe_id().to_string(), OPS)
                };
                passed &= row(&name("fetch-hint"), "the hint selects the identity", hinted().await);
                let all = async || -> Result<(), Error> {
                    let all = client.fetch_all_jwt_svids([AUDIENCE], None).await?;
                    equal("number of tokens", all.len(), 2)
                };
                passed &= row(&name("fetch-all"), "each identity has a token", all().await);
                let unregistered = async || -> Result<(), Error> {
                    let id = SpiffeId::new("spiffe://example.org/unknown")?;
                    match client.fetch_jwt_svid([AUDIENCE], Some(&id)).await {
                        Err(WorkloadApiError::NoIdentityIssued) => Ok(()),
                        other => Err(format!("{:?}", other.map(|svid| svid.spiffe_id().to_string())).into()),
                    }
                };
                passed &= row(
                    &name("fetch-unregistered"),
                    "an unregistered ID is NoIdentityIssued",
                    unregistered().await,
                );
                for (case, spec, good) in [
                    ("good", json!({}), true),
                    ("expired", json!({ "exp_in": -120 }), false),
                    ("forged", json!({ "forged": true }), false),
                    ("other-audience", json!({ "claims": { "aud": ["other"] } }), false),
                ] {
                    let token = driver.token(agent, WEB, &spec)?;
                    let result = match client.validate_jwt_token(AUDIENCE, &token).await {
                        Ok(svid) if good => equal("ID", svid.spiffe_id().to_string(), WEB),
                        Ok(_) => Err("accepted, expected a rejection".into()),
                        Err(error) if good => Err(error.into()),
                        Err(_) => Ok(()),
                    };
                    let name = name(&format!("validate-{case}"));
                    passed &= row(&name, "validate_jwt_token's result from our agent", result);
                }

                let kids = || -> Result<HashSet<String>, Error> {
                    let bundle = source.try_bundle_for_trust_domain(&trust_domain);
                    let bundle = bundle.ok_or("the bundle is missing")?;
                    Ok(bundle.jwt_authorities().map(|key| key.key_id().to_owned()).collect())
                };
                for algorithm in ALGORITHMS {
                    let mut rotated = async || -> Result<(), Error> {
                        let old = source.$fetch([AUDIENCE]).await?;
                        let change = json!({ "what": "rotate", "algorithm": algorithm });
                        let kid = text(&driver.change(agent, change)?["kid"]);
                        until(async || equal("new key has arrived", kids()?.contains(&kid), true)).await?;
                        verified(old.token(), WEB)?;
                        let fresh = source.$fetch([AUDIENCE, algorithm]).await?;
                        equal("kid", fresh.key_id(), kid.as_str())?;
                        verified(fresh.token(), WEB)
                    };
                    let result = rotated().await;
                    let name = name(&format!("rotate-{algorithm}"));
                    passed &= row(&name, "the source follows a rotation, old tokens stay valid", result);
                }

                let faults = [
                    ("withdraw", json!({ "what": "withdraw" }), json!({ "what": "restore" }), true),
                    ("stop", json!({ "what": "stop" }), json!({ "what": "start" }), true),
                    ("restart", json!({ "what": "restart" }), Value::Null, false),
                    ("cut", json!({ "what": "cut" }), Value::Null, false),
                    (
                        "status-internal",
                        json!({ "what": "fail", "fault": "refuse", "code": 13 }),
                        json!({ "what": "recover" }),
                        true,
                    ),
                    (
                        "garbage",
                        json!({ "what": "fail", "fault": "garbage", "call": "fetch_svid" }),
                        json!({ "what": "recover" }),
                        true,
                    ),
                ];
                for (case, start, end, fails) in faults {
                    let recovered = async || -> Result<(), Error> {
                        driver.change(agent, start)?;
                        if fails && source.$fetch(["uncached"]).await.is_ok() {
                            return Err("a token was fetched".into());
                        }
                        if !end.is_null() {
                            driver.change(agent, end)?;
                        }
                        let kid = text(&driver.change(agent, json!({ "what": "rotate_now" }))?["kid"]);
                        until(async || equal("new key has arrived", kids()?.contains(&kid), true)).await?;
                        until(async || {
                            let svid = source.$fetch([AUDIENCE, case]).await?;
                            verified(svid.token(), WEB)
                        })
                        .await
                    };
                    let result = recovered().await;
                    passed &= row(&name(case), "the fault is reported, the source recovers", result);
                }
                source.shutdown().await;
                Ok(passed)
            }
        }
    };
}

version!(
    v0_13,
    spiffe_0_13,
    "0.13",
    get_jwt_svid,
    get_jwt_svid_with_id
);
version!(
    v0_19,
    spiffe_0_19,
    "0.19",
    fetch_jwt_svid,
    fetch_jwt_svid_with_id
);
