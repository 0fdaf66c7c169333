//! What is told in the log, once for each trouble.

use std::sync::{Arc, Mutex};

use tracing_subscriber::fmt::MakeWriter;

use crate::support::*;

/// What this thread logs, down to DEBUG.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl std::io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl MakeWriter<'_> for Log {
    type Writer = Self;

    fn make_writer(&self) -> Self {
        self.clone()
    }
}

impl Log {
    fn install(&self) -> tracing::subscriber::DefaultGuard {
        let subscriber = tracing_subscriber::fmt()
            .with_max_level(tracing::Level::DEBUG)
            .with_ansi(false)
            .without_time()
            .with_writer(self.clone())
            .finish();
        tracing::subscriber::set_default(subscriber)
    }

    /// The lines since the last look that name any of these trust domains and are of this level.
    fn take(&self, level: &str) -> Vec<String> {
        let text = String::from_utf8(self.0.lock().unwrap().clone()).unwrap();
        let lines = text.lines().filter(|line| {
            line.trim_start().starts_with(level)
                && (line.contains("one.test") || line.contains("two.test"))
        });
        lines.map(str::to_owned).collect()
    }

    fn clear(&self) {
        self.0.lock().unwrap().clear();
    }
}

#[tokio::test(start_paused = true)]
async fn each_trust_domain_in_trouble_is_a_warning_once_and_so_is_its_mending() {
    let log = Log::default();
    let _guard = log.install();
    let world = World::new().await;
    let source = world.source().await;
    let step = async |change: &dyn Fn()| {
        log.clear();
        change();
        tokio::time::sleep(secs(1)).await;
        (log.take("WARN"), log.take("INFO"))
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
