//! A log that a test reads.

use std::collections::HashSet;
use std::io::Write;
use std::sync::{Arc, LazyLock, Mutex};

use tracing::{Dispatch, Level};
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::fmt::format::FmtSpan;

/// Where the log goes.
#[derive(Clone, Default)]
pub struct Log(Arc<Mutex<Vec<u8>>>);

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for Log {
    type Writer = Self;

    fn make_writer(&'a self) -> Self {
        self.clone()
    }
}

/// With one subscriber in the process, a place that logs asks the first thread that comes by, and
/// where that is one of another test, which has none, it is off for everybody. With two it asks all.
static SECOND: LazyLock<Dispatch> = LazyLock::new(|| Dispatch::new(tracing_subscriber::registry()));

impl Log {
    pub fn begin(&self, level: Level) -> tracing::subscriber::DefaultGuard {
        LazyLock::force(&SECOND);
        let subscriber = tracing_subscriber::fmt()
            .with_max_level(level)
            .with_span_events(FmtSpan::FULL)
            .with_ansi(false)
            .with_writer(self.clone())
            .finish();
        tracing::subscriber::set_default(subscriber)
    }

    pub fn text(&self) -> String {
        String::from_utf8(self.0.lock().unwrap().clone()).unwrap()
    }

    pub fn lines_with(&self, part: &str) -> usize {
        self.text()
            .lines()
            .filter(|line| line.contains(part))
            .count()
    }
}

/// How much of a token in a row is found again; less is the same in tokens of different secrets.
const WINDOW: usize = 16;

/// What of these tokens stands in this text.
pub fn leak_of(tokens: &[String], text: &str) -> Option<String> {
    let segments = tokens.iter().flat_map(|token| token.split('.'));
    let secret: HashSet<_> = segments
        .flat_map(|segment| segment.as_bytes().windows(WINDOW))
        .collect();
    let leaked = text.as_bytes().windows(WINDOW);
    let mut leaked = leaked.filter(|window| secret.contains(window));
    let found = leaked.next()?;
    Some(String::from_utf8_lossy(found).into_owned())
}

#[test]
fn a_leak_is_found_wherever_it_stands() {
    let token = "abcdefghijklmnopqrstuvwxyz.0123456789ABCDEFGHIJ.short".to_owned();
    let tokens = [token];
    for leak in ["abcdefghijklmnop", "x klmnopqrstuvwxyz", "456789ABCDEFGHIJ"] {
        assert!(leak_of(&tokens, leak).is_some(), "{leak}");
    }
    for none in ["", "short", "abcdefghijklmno", "uvwxyz.012345678"] {
        assert_eq!(leak_of(&tokens, none), None);
    }
}
