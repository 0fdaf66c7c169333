//! Rules of bundle maps that need a map that changes. `FileBundles` has tests for the others.

use std::path::PathBuf;
use std::time::Duration;

use serde_json::{Value, json};
use tower_spiffe::source::FileBundles;
use tower_spiffe_test_support::temp::replace;

use crate::support::es256;

/// A map file, deleted on drop.
struct Map(PathBuf);

impl Map {
    fn new(name: &str) -> Self {
        let name = format!("tower-spiffe-map-{}-{name}", std::process::id());
        Self(std::env::temp_dir().join(name))
    }

    /// Writes a temporary file and renames it, as publishers do.
    fn publish(&self, kid: &str, hint: &Value) {
        let mut jwk = es256().with_key_id(kid).jwk();
        jwk["use"] = json!("jwt-svid");
        let mut one = json!({ "keys": [jwk] });
        if !hint.is_null() {
            one["spiffe_refresh_hint"] = hint.clone();
        }
        let map = json!({ "trust_domains": { "td.test": one, "other.test": one } });
        replace(&self.0, &map.to_string());
    }

    fn open(&self) -> FileBundles {
        let files = FileBundles::builder().poll_interval(Duration::from_millis(5));
        files.bundle_map(&self.0).open().unwrap()
    }
}

impl Drop for Map {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

/// Returns the name of the key that both trust domains have, or `None` if they differ.
fn both(source: &FileBundles) -> Option<String> {
    let set = source.bundle_set().unwrap();
    let name = |trust_domain| {
        let mut keys = set.get(trust_domain).unwrap().authorities();
        let name = keys.next().unwrap().key_id().to_owned();
        assert!(keys.next().is_none());
        name
    };
    let (one, other) = (name("td.test"), name("other.test"));
    (one == other).then_some(one)
}

/// Waits for this key with a deadline; calls `each` meanwhile.
async fn until(source: &FileBundles, kid: &str, mut each: impl FnMut()) {
    let coming = async {
        while both(source).as_deref() != Some(kid) {
            each();
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    let waited = tokio::time::timeout(Duration::from_secs(10), coming).await;
    waited.unwrap_or_else(|_| panic!("{kid} did not come"));
}

#[tokio::test]
async fn tb_14_hint_in_a_map_does_not_change_polling() {
    let map = Map::new("hint");
    // Neither a long nor an invalid hint changes it.
    for (n, hint) in [json!(86_400), json!(0), json!(-1), json!("x")]
        .iter()
        .enumerate()
    {
        map.publish("before", hint);
        let source = map.open();
        assert_eq!(both(&source).as_deref(), Some("before"));
        let after = format!("after-{n}");
        map.publish(&after, hint);
        until(&source, &after, || {}).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tb_15_map_is_applied_as_a_whole() {
    let map = Map::new("whole");
    map.publish("key-0", &Value::Null);
    let source = map.open();
    for n in 1..=50 {
        let kid = format!("key-{n}");
        map.publish(&kid, &Value::Null);
        let torn = || assert!(both(&source).is_some(), "the map was applied partly");
        until(&source, &kid, torn).await;
    }
}
