//! What the docs show: the figures as tables, and some of them as bars.

use std::path::Path;

use svg::Document;
use svg::node::element::{Rectangle, Text, Title};

use crate::report::{Report, Unit};

const WIDTH: f64 = 760.0;
const LEFT: f64 = 330.0;
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
        title: "A token seen before: time to verify it",
        subtitle: "ES256, one thread",
        table: "repeated",
        column: "time",
    },
    Picture {
        file: "performance-new.svg",
        title: "A token never seen: time on top of the bare signature check",
        subtitle: "ES256, one thread",
        table: "cold-above",
        column: "ES256",
    },
    Picture {
        file: "performance-server.svg",
        title: "An axum server: processor time for each request",
        subtitle: "One ES256 token that comes again and again, HTTP/1.1 on loopback",
        table: "axum-seen",
        column: "server's processor time",
    },
];

/// Puts what there are figures for into this folder: pictures, and the tables of the page there.
pub fn draw(report: &Report, folder: &Path) {
    let page = folder.join("performance.md");
    let text = std::fs::read_to_string(&page).unwrap();
    std::fs::write(&page, with_tables(report, &text)).unwrap();
    eprintln!("{}", page.display());
    for picture in PICTURES {
        let Some(bars) = bars(report, picture) else {
            eprintln!("no figures for {}", picture.file);
            continue;
        };
        let path = folder.join(picture.file);
        svg::save(&path, &document(picture, &bars)).unwrap();
        eprintln!("{}", path.display());
    }
}

const BEGIN: &str = "<!-- The tables of one run begin: written by `-- draw`. -->\n";
const END: &str = "<!-- The tables end. -->";

fn with_tables(report: &Report, page: &str) -> String {
    let (before, rest) = page
        .split_once(BEGIN)
        .expect("the page has a place for tables");
    let (_, after) = rest.split_once(END).expect("and an end of it");
    let mut text = format!("{before}{BEGIN}\n{}", report.about());
    for table in &report.tables {
        text.push('\n');
        text.push_str(&table.markdown());
    }
    text.push('\n');
    text.push_str(END);
    text.push_str(after);
    text
}

struct Bar {
    name: String,
    value: f64,
    text: String,
    colour: &'static str,
}

fn bars(report: &Report, picture: &Picture) -> Option<Vec<Bar>> {
    let table = report
        .tables
        .iter()
        .find(|table| table.id == picture.table)?;
    let column = table
        .columns
        .iter()
        .position(|name| name == picture.column)?;
    let bars = table.rows.iter().filter_map(|row| {
        let cell = (*row.cells.get(column)?)?;
        assert!(cell.unit == Unit::Nanos, "bars are times");
        let name = row.name.split(" [^").next()?.replace(['*', '`'], "");
        let colour = if row.name.contains("**") {
            OURS
        } else if name.contains("alone") || name.contains("no layer") {
            LIMIT
        } else {
            OTHERS
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
