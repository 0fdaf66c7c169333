//! Checks the log of the week against the documented list of spans and events.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Debug;
use std::sync::{Arc, Mutex};

use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Metadata, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::layer::Context;

use crate::week::WEEK;

/// A span or an event.
#[derive(Debug, Clone)]
pub(crate) struct Seen {
    /// The module in the crate.
    module: String,
    level: String,
    /// `span` and its name, or the message.
    what: String,
    declared: BTreeSet<&'static str>,
    /// The fields with a value, and their values.
    values: BTreeMap<&'static str, String>,
}

/// Records what this crate logs, at every level and on every thread.
#[derive(Clone, Default)]
pub(crate) struct Log(Arc<Mutex<Vec<Seen>>>);

impl Log {
    pub(crate) fn seen(&self) -> Vec<Seen> {
        self.0.lock().unwrap().clone()
    }

    fn keep(&self, metadata: &'static Metadata<'static>, values: Values) {
        let Values(mut values) = values;
        let what = if metadata.is_span() {
            format!("span `{}`", metadata.name())
        } else {
            values.remove("message").unwrap()
        };
        let fields = metadata.fields().iter().map(|field| field.name());
        let path = metadata.target().strip_prefix("tower_spiffe::").unwrap();
        self.0.lock().unwrap().push(Seen {
            module: path.split("::").next().unwrap().to_owned(),
            level: metadata.level().as_str().to_lowercase(),
            what,
            declared: fields.filter(|name| *name != "message").collect(),
            values,
        });
    }
}

#[derive(Default)]
struct Values(BTreeMap<&'static str, String>);

impl Visit for Values {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        self.0.insert(field.name(), format!("{value:?}"));
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.0.insert(field.name(), value.to_owned());
    }
}

impl<S: Subscriber> Layer<S> for Log {
    fn enabled(&self, metadata: &Metadata<'_>, _: Context<'_, S>) -> bool {
        metadata.target().starts_with("tower_spiffe::")
    }

    fn on_new_span(&self, attributes: &Attributes<'_>, _: &Id, _: Context<'_, S>) {
        let mut values = Values::default();
        attributes.record(&mut values);
        self.keep(attributes.metadata(), values);
    }

    fn on_record(&self, _: &Id, values: &Record<'_>, _: Context<'_, S>) {
        panic!("a span was changed later: {values:?}");
    }

    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let mut values = Values::default();
        event.record(&mut values);
        self.keep(event.metadata(), values);
    }
}

/// A row of the documented table.
#[derive(Debug)]
struct Row {
    module: &'static str,
    level: &'static str,
    /// Ends in `…` if more text follows.
    what: &'static str,
    fields: BTreeSet<&'static str>,
}

fn documented() -> Vec<Row> {
    let rows = include_str!("../../src/metrics/mod.rs").lines();
    rows.filter_map(|line| line.strip_prefix("//! | `"))
        .map(|row| {
            let row = row.strip_suffix('|').unwrap();
            let cells: Vec<&str> = row.split('|').map(str::trim).collect();
            let [module, level, what, fields, _] = cells[..] else {
                panic!("{row}");
            };
            let names = fields.split(", ").filter(|name| !name.is_empty());
            Row {
                module: module.strip_suffix('`').unwrap(),
                level,
                what,
                fields: names.map(|name| name.trim_matches('`')).collect(),
            }
        })
        .collect()
}

impl Row {
    fn is_of(&self, seen: &Seen) -> bool {
        let says = match self.what.strip_suffix('…') {
            Some(begins) => seen.what.starts_with(begins),
            None => seen.what == self.what,
        };
        says && self.module == seen.module && self.level == seen.level
    }
}

/// Tests cannot cause these. Their texts must be in the code.
const UNSEEN: [(&str, &str); 3] = [
    (
        "reading the bundle files panicked; their last good bundles stay",
        include_str!("../../src/source/file/task.rs"),
    ),
    (
        "reading the policy file panicked; its last good policy stays in use",
        include_str!("../../src/server/file_policy/follow.rs"),
    ),
    (
        "the task of this source panicked; the source is closed",
        include_str!("../../src/source/agent/supervisor.rs"),
    ),
];

/// Sources over https are tested in `tests/source/h_https`, not in the week.
const BY_HTTPS: [&str; 3] = [
    include_str!("../../src/source/https/shared.rs"),
    include_str!("../../src/source/https/poll.rs"),
    include_str!("../../src/source/https/state.rs"),
];

#[test]
fn logged_spans_and_events_are_documented() {
    let rows = documented();
    for seen in &WEEK.log {
        let row = rows.iter().find(|row| row.is_of(seen));
        let row = row.unwrap_or_else(|| panic!("undocumented: {seen:?}"));
        assert_eq!(seen.declared, row.fields, "{seen:?}");
    }
}

#[test]
fn documented_spans_and_events_are_logged() {
    for row in documented() {
        let seen = WEEK.log.iter().filter(|seen| row.is_of(seen));
        let mut seen = seen.peekable();
        if let Some((what, code)) = UNSEEN.iter().find(|(what, _)| *what == row.what) {
            assert!(seen.peek().is_none(), "{what}: it was logged");
            assert!(code.contains(&format!("\"{what}\"")), "{what}");
            continue;
        }
        let text = format!("\"{}\"", row.what);
        if seen.peek().is_none() && BY_HTTPS.iter().any(|code| code.contains(&text)) {
            continue;
        }
        // Asynchronous policies are tested in `tests/server/policy_async.rs`.
        if seen.peek().is_none() && row.what == "callers cannot be authorized" {
            continue;
        }
        assert!(seen.peek().is_some(), "never seen: {row:?}");
        let with_values: BTreeSet<&str> =
            seen.flat_map(|seen| seen.values.keys().copied()).collect();
        assert_eq!(with_values, row.fields, "{row:?}");
    }
}

#[test]
fn log_and_scrape_contain_no_token() {
    assert!(WEEK.tokens.len() >= 8);
    let log = format!("{:?}{}", WEEK.log, WEEK.scrape);
    // The first characters of the header and the claims of every token.
    assert!(!log.contains("eyJ"));
    for token in &WEEK.tokens {
        let signature = token.rsplit('.').next().unwrap();
        assert!(!log.contains(&signature[..20]), "{signature}");
    }
}

#[test]
fn repeated_events_are_not_warnings() {
    let warnings = WEEK.log.iter().filter(|seen| seen.level == "warn");
    assert!(warnings.clone().count() > 5);
    assert!(warnings.clone().all(|seen| !seen.what.ends_with("again")));
    // The agent was unavailable for minutes, with many retries.
    let again = WEEK
        .log
        .iter()
        .filter(|seen| seen.what.ends_with(", again"));
    assert!(again.count() > 5);
}
