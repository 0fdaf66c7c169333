//! Writes the figures into `docs/`: JSON, the generated parts of the page, and bar charts.

use std::path::{Path, PathBuf};

use svg::Document;
use svg::node::element::{Rectangle, Text, Title};

use crate::names::Role;
use crate::report::Report;
use crate::table::Unit;
use crate::{ahead, bars, claims};

const WIDTH: f64 = 820.0;
const LEFT: f64 = 390.0;
const RIGHT: f64 = 90.0;
const BAR: f64 = 22.0;
const GAP: f64 = 8.0;
const TOP: f64 = 64.0;

const OURS: &str = "#1f6feb";
const OTHERS: &str = "#b0b8c1";
const LIMIT: &str = "#57606a";
const INK: &str = "#1f2328";

/// One picture: a column of one table.
struct Picture {
    file: &'static str,
    title: &'static str,
    subtitle: &'static str,
    table: &'static str,
    column: &'static str,
}

const PICTURES: &[Picture] = &[
    Picture {
        file: "performance-seen.svg",
        title: "A known token: time to verify it",
        subtitle: "ES256, one thread",
        table: "repeated",
        column: "time",
    },
    Picture {
        file: "performance-new.svg",
        title: "A new token: time in addition to the bare signature check",
        subtitle: "ES256, one thread",
        table: "cold-above",
        column: "ES256",
    },
    Picture {
        file: "performance-server.svg",
        title: "An axum server: processor time per request",
        subtitle: "One ES256 token, sent repeatedly, HTTP/1.1 on loopback",
        table: "axum-seen",
        column: "server's processor time",
    },
];

/// Writes a complete run into this folder: the JSON, the generated parts of the page, the pictures.
/// Without `json` it uses the last measured run, or else the JSON in the folder.
pub fn draw(json: Option<PathBuf>, folder: &Path) -> Result<(), String> {
    let kept = folder.join("performance.json");
    let measured = crate::figures(false);
    let path = json.unwrap_or_else(|| match measured.exists() {
        true => measured,
        false => kept.clone(),
    });
    let report =
        Report::read(&path).ok_or(format!("cannot read {}; measure first", path.display()))?;
    if report.quick {
        return Err("a quick run has no meaningful figures; measure without --quick".into());
    }
    let missing: Vec<_> = crate::names()
        .into_iter()
        .filter(|name| !report.has(name))
        .collect();
    if !missing.is_empty() {
        return Err(format!(
            "{} is incomplete; `-- missing` measures {}, and `-- draw --json {}` uses the figures \
             in docs/",
            path.display(),
            missing.join(", "),
            kept.display()
        ));
    }
    eprintln!("from {}", path.display());
    report.write(&kept);
    eprintln!("{}", kept.display());
    let page = folder.join("performance.md");
    let text = std::fs::read_to_string(&page).unwrap();
    std::fs::write(&page, with_parts(&report, &text)).unwrap();
    eprintln!("{}", page.display());
    for picture in PICTURES {
        let bars = bars(&report, picture).ok_or(format!(
            "no figures for {}; measure its section",
            picture.file
        ))?;
        let path = folder.join(picture.file);
        svg::save(&path, &document(picture, &bars)).unwrap();
        eprintln!("{}", path.display());
    }
    let unexplained = ahead::unexplained(&ahead::ahead(&report));
    if unexplained > 0 {
        eprintln!(
            "{unexplained} better figures of other crates have no explanation; add it to ahead.rs"
        );
    }
    Ok(())
}

/// Replaces the parts of the page between the marks.
fn with_parts(report: &Report, page: &str) -> String {
    let figures = format!(
        "{}\n{}\n{}",
        report.about(),
        report.markdown(),
        report.footnotes()
    );
    let parts = [
        ("summary", claims::summary(report)),
        ("bars", bars::markdown(&bars::bars(report))),
        ("ahead", ahead::markdown(report, &ahead::ahead(report))),
        ("noise", claims::noise(report)),
        ("figures", figures),
    ];
    let mut text = page.to_owned();
    for (name, part) in parts {
        let begin = format!("<!-- Written by `-- draw`: {name}. -->\n");
        let end = format!("<!-- End of {name}. -->");
        let (before, rest) = text
            .split_once(&begin)
            .unwrap_or_else(|| panic!("the page has no start mark for \"{name}\""));
        let (_, after) = rest
            .split_once(&end)
            .unwrap_or_else(|| panic!("the page has no end mark for \"{name}\""));
        text = format!("{before}{begin}\n{}\n\n{end}{after}", part.trim_end());
    }
    text
}

struct Bar {
    name: String,
    value: f64,
    text: String,
    colour: &'static str,
}

fn bars(report: &Report, picture: &Picture) -> Option<Vec<Bar>> {
    let table = report.table(picture.table)?;
    let column = table
        .columns
        .iter()
        .position(|column| column.name == picture.column)?;
    let bars = table.rows.iter().filter_map(|row| {
        let cell = (*row.cells.get(column)?)?;
        assert!(cell.unit == Unit::Nanos, "charts show times only");
        // The second measurement of a baseline only shows the noise.
        if row.who.name.contains("once more") {
            return None;
        }
        let name = row.who.name.split(" [^").next()?.replace(['*', '`'], "");
        let colour = match row.who.role {
            Role::Ours => OURS,
            Role::Limit => LIMIT,
            Role::Peer => OTHERS,
        };
        Some(Bar {
            name,
            value: cell.value.max(0.0),
            text: cell.text(),
            colour,
        })
    });
    Some(bars.collect())
}

fn document(picture: &Picture, bars: &[Bar]) -> Document {
    let height = TOP + bars.len() as f64 * (BAR + GAP) + 16.0;
    let most = bars.iter().map(|bar| bar.value).fold(1.0, f64::max);
    let length = |value: f64| value / most * (WIDTH - LEFT - RIGHT);
    let mut document = Document::new()
        .set("viewBox", (0.0, 0.0, WIDTH, height))
        .set("width", WIDTH)
        .set("height", height)
        .set("font-family", "system-ui, sans-serif")
        .set("role", "img")
        .add(Title::new(picture.title))
        .add(
            Rectangle::new()
                .set("width", WIDTH)
                .set("height", height)
                .set("fill", "#ffffff"),
        )
        .add(label(picture.title, 16.0, 26.0, 17, "start").set("font-weight", 600))
        .add(label(picture.subtitle, 16.0, 47.0, 13, "start").set("fill", LIMIT));
    for (at, bar) in bars.iter().enumerate() {
        let y = TOP + at as f64 * (BAR + GAP);
        let long = length(bar.value).max(2.0);
        document = document
            .add(label(&bar.name, LEFT - 10.0, y + BAR * 0.7, 13, "end"))
            .add(
                Rectangle::new()
                    .set("x", LEFT)
                    .set("y", y)
                    .set("width", (long * 10.0).round() / 10.0)
                    .set("height", BAR)
                    .set("rx", 2)
                    .set("fill", bar.colour),
            )
            .add(label(
                &bar.text,
                LEFT + (long * 10.0).round() / 10.0 + 8.0,
                y + BAR * 0.7,
                13,
                "start",
            ));
    }
    document
}

fn label(text: &str, x: f64, y: f64, size: u32, anchor: &str) -> Text {
    Text::new(text)
        .set("x", x)
        .set("y", y)
        .set("font-size", size)
        .set("text-anchor", anchor)
        .set("fill", INK)
}
