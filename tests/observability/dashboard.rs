//! Checks the Grafana dashboard against the scrape.

use std::collections::BTreeSet;

use serde_json::Value;
use tower_spiffe::metrics::{METRICS, SOURCE_ERROR_KINDS, SvidCacheEvent};

use crate::promql;
use crate::scrape::Scrape;
use crate::week::WEEK;
use crate::words;

const FAULTS: [&str; 4] = [
    "the caller",
    "this service",
    "the agent",
    "the authorization server",
];

fn dashboard() -> Value {
    let text = include_str!("../../examples/observability/dashboard.json");
    serde_json::from_str(text).unwrap()
}

/// Returns the panels with data.
fn panels(dashboard: &Value) -> Vec<&Value> {
    let panels = dashboard["panels"].as_array().unwrap().iter();
    panels.filter(|panel| panel["type"] != "row").collect()
}

fn exprs(dashboard: &Value) -> Vec<&str> {
    panels(dashboard)
        .into_iter()
        .flat_map(|panel| panel["targets"].as_array().unwrap())
        .map(|target| target["expr"].as_str().unwrap())
        .collect()
}

#[test]
fn dashboard_can_be_imported() {
    let dashboard = dashboard();
    assert!(
        dashboard["uid"]
            .as_str()
            .is_some_and(|uid| !uid.is_empty() && uid.len() <= 40)
    );
    assert!(dashboard["title"].is_string());
    assert!(
        dashboard["schemaVersion"]
            .as_u64()
            .is_some_and(|version| version >= 36)
    );
    assert!(dashboard["id"].is_null(), "an exported ID must be removed");
    let variables = dashboard["templating"]["list"].as_array().unwrap();
    let datasource = &variables[0];
    assert_eq!(
        (
            &datasource["name"],
            &datasource["type"],
            &datasource["query"]
        ),
        (
            &"datasource".into(),
            &"datasource".into(),
            &"prometheus".into()
        )
    );
    let mut ids = BTreeSet::new();
    for panel in dashboard["panels"].as_array().unwrap() {
        assert!(ids.insert(panel["id"].as_u64().unwrap()), "{}", panel["id"]);
        let place = &panel["gridPos"];
        let [x, w] = ["x", "w"].map(|at| place[at].as_u64().unwrap());
        assert!(x + w <= 24, "{}", panel["title"]);
    }
}

#[test]
fn each_panel_names_its_cause_and_unit() {
    let dashboard = dashboard();
    let mut shown = BTreeSet::new();
    for panel in panels(&dashboard) {
        let title = panel["title"].as_str().unwrap();
        let description = panel["description"].as_str().expect(title);
        let fault = FAULTS.into_iter().find(|fault| {
            let begins = format!("Cause: {fault}.");
            description.starts_with(&begins)
        });
        shown.insert(fault.unwrap_or_else(|| panic!("{title}: {description}")));
        assert!(
            panel["fieldConfig"]["defaults"]["unit"].is_string(),
            "{title}"
        );
        let datasource = &panel["datasource"];
        assert_eq!(datasource["uid"], "${datasource}", "{title}");
        for target in panel["targets"].as_array().expect(title) {
            assert_eq!(&target["datasource"], datasource, "{title}");
        }
    }
    assert_eq!(shown, BTreeSet::from(FAULTS));
}

#[test]
fn dashboard_and_scrape_have_the_same_names() {
    let dashboard = dashboard();
    let mut used = BTreeSet::new();
    for expr in exprs(&dashboard) {
        used.extend(promql::metrics_of(expr).unwrap_or_else(|error| panic!("{error}: {expr}")));
    }
    for variable in dashboard["templating"]["list"].as_array().unwrap() {
        if variable["type"] == "query" {
            let query = variable["query"]["query"].as_str().unwrap();
            let inside = query.strip_prefix("label_values(").unwrap();
            let (metric, _label) = inside.split_once(',').unwrap();
            promql::metrics_of(metric).unwrap();
        }
    }
    let documented: BTreeSet<&str> = METRICS.iter().map(|metric| metric.name).collect();
    assert_eq!(used, documented);
    let scrape = Scrape::read(&WEEK.scrape);
    let scraped: BTreeSet<&str> = scrape
        .samples
        .iter()
        .filter_map(|sample| words::metric_of(&sample.name))
        .map(|metric| metric.name)
        .collect();
    assert_eq!(used, scraped);
}

#[test]
fn legends_use_labels_of_their_expression() {
    let dashboard = dashboard();
    for panel in panels(&dashboard) {
        for target in panel["targets"].as_array().unwrap() {
            let expr = target["expr"].as_str().unwrap();
            let legend = target["legendFormat"].as_str().unwrap();
            for label in legend.split("{{").skip(1) {
                let label = label.split_once("}}").unwrap().0.trim();
                assert!(keeps(expr, label), "{label} in {legend}: {expr}");
            }
        }
    }
}

/// Whether the outermost aggregation keeps this label; without an aggregation, all labels stay.
pub(crate) fn keeps(expr: &str, label: &str) -> bool {
    let grouped: Vec<&str> = expr.split(" by (").skip(1).collect();
    let kept = |group: &&str| {
        let labels = group.split_once(')').unwrap().0;
        labels.split(',').any(|kept| kept.trim() == label)
    };
    match grouped.first() {
        Some(group) => kept(group),
        None => !expr.contains("sum(") && !expr.contains("max(") && !expr.contains("count("),
    }
}

#[test]
fn dashboard_covers_every_reason_and_event() {
    let exprs = exprs(&dashboard()).join(" ");
    let shown: BTreeSet<&str> = exprs
        .split(|c: char| !c.is_ascii_lowercase() && c != '-')
        .collect();
    let events = SvidCacheEvent::ALL.iter().map(|event| event.as_str());
    for word in SOURCE_ERROR_KINDS.iter().copied().chain(events) {
        assert!(shown.contains(word), "{word}");
    }
}
