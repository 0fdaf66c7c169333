//! What is told in the log, once for each trouble.

use tracing::Level;

use crate::log::Log;
use crate::support::*;

/// The lines of this level that name any of these trust domains.
fn lines(log: &Log, level: &str) -> Vec<String> {
    let text = log.text();
    let lines = text.lines().filter(|line| {
        line.trim_start().starts_with(level)
            && (line.contains("one.test") || line.contains("two.test"))
    });
    lines.map(str::to_owned).collect()
}

#[tokio::test(start_paused = true)]
async fn each_trust_domain_in_trouble_is_a_warning_once_and_so_is_its_mending() {
    let log = Log::default();
    let _guard = log.begin(Level::DEBUG);
    let world = World::new().await;
    let source = world.source().await;
    let step = async |change: &dyn Fn()| {
        log.clear();
        change();
        tokio::time::sleep(secs(1)).await;
        (lines(&log, "WARN"), lines(&log, "INFO"))
    };
    let broken = |name: &str| world.agent.federate_raw(name, "no JWK Set").unwrap();

    let (warned, _) = step(&|| broken("one.test")).await;
    assert_eq!(warned.len(), 1, "{warned:?}");
    assert!(warned[0].contains("one.test"));
    // The second has the same kind of trouble, and is another matter.
    let (warned, _) = step(&|| broken("two.test")).await;
    assert_eq!(warned.len(), 1, "{warned:?}");
    assert!(warned[0].contains("two.test"));
    // What is known already is none.
    let (warned, told) = step(&|| world.agent.send_again()).await;
    assert!(warned.is_empty() && told.is_empty(), "{warned:?} {told:?}");
    // One mends while the other stays in trouble; then it is in trouble anew.
    let (warned, told) = step(&|| drop(world.agent.federate("one.test").unwrap())).await;
    assert!(warned.is_empty(), "{warned:?}");
    assert_eq!(told.len(), 1, "{told:?}");
    assert!(told[0].contains("one.test"));
    let (warned, _) = step(&|| broken("one.test")).await;
    assert_eq!(warned.len(), 1, "{warned:?}");
    assert!(warned[0].contains("one.test"));
    drop(source);
}
