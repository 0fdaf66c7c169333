//! Each problem is logged once.

use tracing::Level;

use crate::log::Log;
use crate::support::*;

/// Returns the lines of this level that name one of these trust domains.
fn lines(log: &Log, level: &str) -> Vec<String> {
    let text = log.text();
    let lines = text.lines().filter(|line| {
        line.trim_start().starts_with(level)
            && (line.contains("one.test") || line.contains("two.test"))
    });
    lines.map(str::to_owned).collect()
}

#[tokio::test(start_paused = true)]
async fn each_problem_and_its_end_is_logged_once() {
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
    // The second trust domain has the same problem, but is logged separately.
    let (warned, _) = step(&|| broken("two.test")).await;
    assert_eq!(warned.len(), 1, "{warned:?}");
    assert!(warned[0].contains("two.test"));
    // A known problem is not logged again.
    let (warned, informed) = step(&|| world.agent.send_again()).await;
    assert!(
        warned.is_empty() && informed.is_empty(),
        "{warned:?} {informed:?}"
    );
    // One is fixed while the other stays broken. Then it breaks again.
    let (warned, informed) = step(&|| drop(world.agent.federate("one.test").unwrap())).await;
    assert!(warned.is_empty(), "{warned:?}");
    assert_eq!(informed.len(), 1, "{informed:?}");
    assert!(informed[0].contains("one.test"));
    let (warned, _) = step(&|| broken("one.test")).await;
    assert_eq!(warned.len(), 1, "{warned:?}");
    assert!(warned[0].contains("one.test"));
    drop(source);
}
