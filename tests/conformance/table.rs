//! The table of `docs/conformance.md` is complete: every row of the suite that applies, with its tests.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

const PAGE: &str = include_str!("../../docs/conformance.md");

/// The rows of the suite, and their levels.
const ROWS: &[(&str, &str)] = &[
    ("JB-5/missing-use", "OPT"),
    ("JB-3", "SHOULD"),
    ("JF-3", "OPT"),
    ("JF-4", "OPT"),
    ("EP-1", "MUST"),
    ("EP-2", "MUST"),
    ("EP-3", "SHOULD"),
    ("EP-4", "OPT"),
    ("EP-5", "SHOULD"),
    ("EP-6", "SHOULD"),
    ("EP-7", "SHOULD"),
    ("EP-8", "OPT"),
    ("WA-1", "SHOULD"),
    ("WA-2", "SHOULD"),
    ("WA-3", "MUST"),
    ("WA-4", "SHOULD"),
    ("JB-5/x509-svid-use", "MUST"),
];

/// The names of all rows with their levels, sorted.
fn expected() -> BTreeSet<(String, String)> {
    let must = |group: &str, numbers: &mut dyn Iterator<Item = u32>| -> Vec<(String, String)> {
        numbers
            .map(|n| (format!("{group}-{n}"), "MUST".to_owned()))
            .collect()
    };
    let mut rows: BTreeSet<_> = ROWS
        .iter()
        .map(|(row, level)| ((*row).to_owned(), (*level).to_owned()))
        .collect();
    rows.extend(must("JV", &mut (1..=25)));
    rows.extend(must("JB", &mut [1, 2, 4, 6, 7, 8].into_iter()));
    rows.extend(must("JF", &mut (1..=2)));
    rows.extend(must("ID", &mut (1..=2)));
    rows
}

/// The cells of each row of the table.
fn rows() -> Vec<Vec<&'static str>> {
    let lines = PAGE.lines().filter(|line| line.starts_with("| "));
    let rows = lines.map(|line| line.trim_matches('|').split('|').map(str::trim).collect());
    rows.filter(|row: &Vec<&str>| row.len() == 5 && row[0].contains('-') && row[0] != "---")
        .collect()
}

/// The names of the test functions of this suite.
fn tests() -> BTreeSet<String> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("conformance");
    let mut found = BTreeSet::new();
    for file in fs::read_dir(folder).unwrap() {
        let text = fs::read_to_string(file.unwrap().path()).unwrap();
        let lines: Vec<_> = text.lines().collect();
        for pair in lines.windows(2) {
            let name = pair[1].trim_start_matches("async ").strip_prefix("fn ");
            if let (true, Some(name)) = (pair[0].contains("test"), name) {
                found.insert(name.split('(').next().unwrap().to_owned());
            }
        }
    }
    found
}

#[test]
fn conformance_table_has_every_row() {
    let listed: BTreeSet<_> = rows()
        .iter()
        .map(|row| (row[0].to_owned(), row[1].to_owned()))
        .collect();
    assert_eq!(listed, expected());
    assert_eq!(listed.len(), rows().len(), "a row is listed twice");
}

#[test]
fn conformance_table_names_tests() {
    let tests = tests();
    let mut named = BTreeSet::new();
    for row in rows() {
        let name = row[4].trim_matches('`');
        assert!(tests.contains(name), "{}: no test {name}", row[0]);
        // `JV-22` and `JB-5/missing-use` have tests `jv_22_…` and `jb_05_…`.
        let (group, number) = row[0].split('/').next().unwrap().split_once('-').unwrap();
        let mut parts = name.split('_');
        assert_eq!(parts.next(), Some(&*group.to_lowercase()), "{}", row[0]);
        let code = parts.next().unwrap().trim_start_matches('0');
        assert_eq!(code, number, "{}", row[0]);
        named.insert(name);
    }
    let of_rows = tests.iter().filter(|test| {
        let group = test.split('_').next().unwrap();
        ["jv", "jb", "jf", "id", "ep", "wa"].contains(&group)
    });
    let missing: Vec<_> = of_rows
        .filter(|test| !named.contains(test.as_str()))
        .collect();
    assert_eq!(missing, Vec::<&String>::new(), "not in the table");
}

#[test]
fn every_must_row_passes() {
    for row in rows() {
        assert!(
            ["passes", "fails"].contains(&row[2]),
            "{}: {}",
            row[0],
            row[2]
        );
        assert!(row[1] != "MUST" || row[2] == "passes", "{} fails", row[0]);
    }
}

/// `interop/run.sh` runs the rows with the harness contract, and lists the rows that must fail.
#[test]
fn conformance_runs_expect_the_tables_results() {
    let script = include_str!("../../interop/run.sh");
    let lists = script.split("--fails ").skip(1);
    let lists: Vec<BTreeSet<&str>> = lists
        .map(|rest| rest.split_whitespace().next().unwrap().split(',').collect())
        .collect();
    for (column, list) in [(2, &lists[0]), (3, &lists[1])] {
        // A row fails if one of its cases does.
        let listed = |row: &str| {
            list.iter()
                .any(|id| *id == row || id.starts_with(&format!("{row}/")))
        };
        for row in rows() {
            assert_eq!(
                listed(row[0]),
                row[column] == "fails",
                "{}: {list:?}",
                row[0]
            );
        }
        for id in list {
            let row = rows().into_iter().find(|row| id.starts_with(row[0]));
            assert!(row.is_some(), "{id} is not in the table");
        }
    }
    assert_eq!(lists.len(), 2);
}
