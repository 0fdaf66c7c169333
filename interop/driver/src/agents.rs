//! Embedded agents, their changes and faults.

use std::time::Duration;

use serde_json::{Value, json};
use tower_spiffe::bundle::Algorithm;
use tower_spiffe::testing::{AgentCall, FakeAgent, Fault, RawSvid};
use tower_spiffe::token::GrpcCode;

use crate::{Error, Made, text, text_or_none};

/// Starts an agent on a Unix socket, or on TCP if `transport` is `tcp`.
pub(crate) async fn start(made: &mut Made, command: &Value) -> Result<Value, Error> {
    let mut builder = FakeAgent::builder(text(command, "trust_domain")?);
    if let Some(algorithm) = text_or_none(command, "algorithm") {
        builder = builder.algorithm(algorithm.parse()?);
    }
    let agent = match text_or_none(command, "transport") {
        Some("tcp") => builder.start_tcp().await?,
        _ => builder.start().await?,
    };
    let endpoint = agent.endpoint().to_string();
    let issuer = agent.issuer().clone();
    let name = text(command, "agent")?.to_owned();
    made.issuers.insert(name.clone(), issuer);
    made.agents.insert(name, agent);
    Ok(json!({ "endpoint": endpoint }))
}

/// Applies the change `what` to the agent.
pub(crate) async fn change(agent: &FakeAgent, command: &Value) -> Result<Value, Error> {
    let mut answer = json!({});
    match text(command, "what")? {
        "register" => {
            let hint = text_or_none(command, "hint").unwrap_or_default();
            let life = command.get("life").and_then(Value::as_u64).unwrap_or(300);
            agent.register(text(command, "id")?, hint, Duration::from_secs(life))?;
        }
        "unregister" => agent.unregister(text(command, "id")?),
        "rotate" => answer = json!({ "kid": rotate(agent, command).await? }),
        "rotate_now" => answer = json!({ "kid": agent.rotate_now() }),
        "revoke" => answer = json!({ "was_there": agent.issuer().revoke(text(command, "kid")?) }),
        "taint" => agent.taint(text(command, "kid")?),
        "withdraw" => agent.withdraw(),
        "restore" => agent.restore(),
        "stop" => agent.stop().await,
        "start" => agent.start_again().await?,
        "restart" => agent.restart().await?,
        "cut" => agent.cut_connections().await,
        "send_again" => agent.send_again(),
        "federate_raw" => {
            let jwks = text(command, "jwks")?.as_bytes().to_vec();
            agent.federate_raw(text(command, "trust_domain")?, jwks)?;
        }
        "unfederate" => agent.unfederate(text(command, "trust_domain")?),
        "fail" => match text_or_none(command, "call") {
            None => agent.fail(fault(command)?),
            Some(call) => agent.fail_call(call_of(call)?, fault(command)?),
        },
        "recover" => agent.recover(),
        other => return Err(format!("unknown change {other:?}").into()),
    }
    Ok(answer)
}

async fn rotate(agent: &FakeAgent, command: &Value) -> Result<String, Error> {
    Ok(match text_or_none(command, "algorithm") {
        Some(algorithm) => agent.rotate_to(algorithm.parse::<Algorithm>()?).await,
        None => agent.rotate().await,
    })
}

/// Federates a trust domain. Its issuer gets the same name.
pub(crate) fn federate(made: &mut Made, command: &Value) -> Result<Value, Error> {
    let trust_domain = text(command, "trust_domain")?;
    let issuer = made.agent(command)?.federate(trust_domain)?;
    made.issuers.insert(trust_domain.to_owned(), issuer);
    Ok(json!({}))
}

fn call_of(name: &str) -> Result<AgentCall, Error> {
    Ok(match name {
        "fetch_svid" => AgentCall::FetchJwtSvid,
        "fetch_bundles" => AgentCall::FetchJwtBundles,
        "validate" => AgentCall::ValidateJwtSvid,
        other => return Err(format!("unknown call {other:?}").into()),
    })
}

fn fault(command: &Value) -> Result<Fault, Error> {
    let code = command.get("code").and_then(Value::as_i64).unwrap_or(14);
    let code = GrpcCode::from_i32(i32::try_from(code)?);
    Ok(match text(command, "fault")? {
        "refuse" => Fault::Refuse(code),
        "hang" => Fault::Hang,
        "hang_up" => Fault::HangUp,
        "hang_up_with" => Fault::HangUpWith(code),
        "garbage" => Fault::Garbage,
        "not_protobuf" => Fault::NotProtobuf,
        "not_http2" => Fault::NotHttp2,
        "svids" => Fault::Svids(svids(command)?),
        other => return Err(format!("unknown fault {other:?}").into()),
    })
}

fn svids(command: &Value) -> Result<Vec<RawSvid>, Error> {
    let all = command.get("svids").and_then(Value::as_array);
    all.into_iter()
        .flatten()
        .map(|svid| {
            let hint = text_or_none(svid, "hint").unwrap_or_default();
            Ok(RawSvid::new(text(svid, "id")?, text(svid, "token")?, hint))
        })
        .collect()
}

pub(crate) fn counts(agent: &FakeAgent) -> Value {
    let counts = agent.counts();
    json!({
        "open_streams": counts.open_streams,
        "fetch_bundles": counts.fetch_jwt_bundles,
        "fetch_svid": counts.fetch_jwt_svid,
        "too_many_pings": counts.too_many_pings,
    })
}
