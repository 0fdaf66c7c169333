//! Many tokens, one JSON object per line, checked by the `Validator` of a server.

use std::collections::HashMap;
use std::io::{BufRead, Write};
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;
use serde_json::value::RawValue;
use serde_json::{Number, Value, json};
use tower_spiffe::bundle::{JwtBundle, JwtBundleSet};
use tower_spiffe::clock::{Clock, SystemClock, UnixTime};
use tower_spiffe::{MemoryBundles, TrustDomain, Validator};

use super::bundles::Members;
use super::clock::StillClock;
use crate::BoxError;

pub(crate) fn run(input: &mut impl BufRead, output: &mut impl Write) -> Result<(), BoxError> {
    let mut checker = Checker::default();
    let mut output = std::io::BufWriter::new(output);
    let mut line = Vec::new();
    loop {
        line.clear();
        if input.read_until(b'\n', &mut line)? == 0 {
            output.flush()?;
            return Ok(());
        }
        let result = checker.check(&line).unwrap_or_else(
            |error| json!({"ok": false, "reason": "usage", "error": error.to_string()}),
        );
        writeln!(output, "{result}")?;
        // The other program may wait for this result before it writes the next line.
        output.flush()?;
    }
}

/// One validator per audience and leeway. All of them share the source and the clock.
struct Checker {
    source: MemoryBundles,
    bundles: String,
    clock: Arc<StillClock>,
    validators: HashMap<(Vec<String>, u64), Validator>,
}

impl Default for Checker {
    fn default() -> Self {
        Self {
            source: MemoryBundles::default(),
            bundles: String::new(),
            clock: StillClock::at(UnixTime::from_secs(0)),
            validators: HashMap::new(),
        }
    }
}

#[derive(Deserialize)]
struct Case<'a> {
    token: Option<String>,
    token_b64: Option<String>,
    #[serde(borrow)]
    bundles: &'a RawValue,
    audience: Audience,
    now: Option<Number>,
    leeway: Option<u64>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Audience {
    One(String),
    Many(Vec<String>),
}

impl Checker {
    fn check(&mut self, line: &[u8]) -> Result<Value, BoxError> {
        // serde would also accept an array of the same values.
        if !line.trim_ascii_start().starts_with(b"{") {
            return Err("not a case: it is not a JSON object".into());
        }
        // serde's message may contain a part of the line, which may be a token.
        let case: Case<'_> = serde_json::from_slice(line).map_err(|error| {
            format!(
                "not a case (column {}): expected an object with token or token_b64, bundles, \
                 audience, now and leeway",
                error.column()
            )
        })?;
        let token = match (case.token, case.token_b64) {
            (Some(token), None) => token.into_bytes(),
            (None, Some(text)) => STANDARD
                .decode(text)
                .map_err(|_| "token_b64 is not valid base64")?,
            _ => return Err("a case needs either token or token_b64".into()),
        };
        self.replace_bundles(case.bundles.get())?;
        self.clock.set(match case.now {
            Some(now) => moment(&now).ok_or("now is out of range")?,
            None => SystemClock::shared().now(),
        });
        let audiences = match case.audience {
            Audience::One(audience) => vec![audience],
            Audience::Many(audiences) => audiences,
        };
        let validator = self.validator(audiences, case.leeway.unwrap_or(10))?;
        let token = match String::from_utf8(token) {
            Ok(token) => token,
            // Bytes that are not UTF-8: only their length is checked.
            Err(bytes) if bytes.as_bytes().len() > validator.max_token_len() => {
                return Ok(rejected("too-long"));
            }
            Err(_) => return Ok(rejected("malformed-token")),
        };
        Ok(match validator.validate(&token) {
            Ok(svid) => json!({"ok": true, "reason": "ok", "spiffe_id": svid.spiffe_id()}),
            Err(error) => rejected(error.reason().as_str()),
        })
    }

    fn validator(&mut self, audiences: Vec<String>, leeway: u64) -> Result<Validator, BoxError> {
        let key = (audiences, leeway);
        if let Some(validator) = self.validators.get(&key) {
            return Ok(validator.clone());
        }
        let validator = Validator::builder(self.source.clone())
            .audiences(&key.0)
            .leeway(Duration::from_secs(leeway))
            .clock(self.clock.clone())
            .build()?;
        self.validators.insert(key, validator.clone());
        Ok(validator)
    }

    fn replace_bundles(&mut self, bundles: &str) -> Result<(), BoxError> {
        if self.bundles == bundles {
            return Ok(());
        }
        let members: Members<'_> = serde_json::from_str(bundles)
            .map_err(|_| "bundles is not an object, or it has a duplicate name")?;
        let mut set: HashMap<TrustDomain, JwtBundle> = HashMap::new();
        for (name, raw) in &members.0 {
            let named = |why: &dyn std::fmt::Display| format!("bundle of {name:?}: {why}");
            let trust_domain = TrustDomain::parse(name).map_err(|why| named(&why))?;
            let bundle = JwtBundle::from_jwks(trust_domain.clone(), raw.get().as_bytes())
                .map_err(|why| named(&why))?;
            if set.insert(trust_domain, bundle).is_some() {
                return Err(named(&"duplicate trust domain").into());
            }
        }
        self.source
            .replace(set.into_values().collect::<JwtBundleSet>());
        bundles.clone_into(&mut self.bundles);
        Ok(())
    }
}

/// Reads whole seconds as an integer, because a double cannot represent all of them.
fn moment(now: &Number) -> Option<UnixTime> {
    match now.as_i64() {
        Some(secs) => Some(UnixTime::from_secs(secs)),
        None => now.as_f64().and_then(UnixTime::from_secs_f64),
    }
}

fn rejected(class: &str) -> Value {
    json!({"ok": false, "reason": class, "spiffe_id": null})
}
