//! Every method that causes a fault has an example that shows its effect on a service.

use std::collections::BTreeMap;

/// All methods in these files control faults.
const WHOLE: [&str; 4] = [
    include_str!("../../src/testing/agent/fault.rs"),
    include_str!("../../src/testing/agent/life.rs"),
    include_str!("../../src/testing/agent/replay.rs"),
    include_str!("../../src/testing/agent/trouble.rs"),
];

/// In these files, only the methods in the table of faults.
const IN_PART: [&str; 3] = [
    include_str!("../../src/testing/agent/builder.rs"),
    include_str!("../../src/testing/agent/mod.rs"),
    include_str!("../../src/testing/issuer/mod.rs"),
];

/// The module with the table of faults.
const MODULE: &str = include_str!("../../src/testing/mod.rs");

/// Returns the documentation of each method and variant, by `Type::name`.
fn documented(file: &str) -> BTreeMap<String, String> {
    let (mut of, mut docs, mut found) = (None, String::new(), BTreeMap::new());
    for line in file.lines() {
        if let Some(head) = line
            .strip_prefix("impl ")
            .or(line.strip_prefix("pub enum "))
        {
            // Trait implementations are skipped.
            of = head.strip_suffix(" {").filter(|name| !name.contains(' '));
        }
        let Some(line) = line.strip_prefix("    ") else {
            docs.clear();
            continue;
        };
        if let Some(text) = line.strip_prefix("///") {
            docs.push_str(text);
            docs.push('\n');
        } else if !line.starts_with("#[") {
            let function = line
                .strip_prefix("pub fn ")
                .or(line.strip_prefix("pub async fn "));
            let item = function.unwrap_or(line);
            let name: String = item
                .chars()
                .take_while(|c| c.is_alphanumeric() || *c == '_')
                .collect();
            let variant = name.starts_with(|c: char| c.is_ascii_uppercase());
            if let Some(of) = of
                && (function.is_some() || variant)
            {
                found.insert(format!("{of}::{name}"), std::mem::take(&mut docs));
            }
            docs.clear();
        }
    }
    found
}

/// Whether the documentation has an example with an assertion.
fn has_example(docs: &str) -> bool {
    docs.split("```")
        .skip(1)
        .step_by(2)
        .any(|code| code.contains("assert"))
}

#[test]
fn each_fault_has_an_example_with_an_assertion() {
    let mut ways: BTreeMap<_, _> = WHOLE.into_iter().flat_map(documented).collect();
    // These are covered by the examples of `Fault::Svids` and `fail_call`.
    ways.retain(|name, _| !name.starts_with("AgentCall::") && name != "RawSvid::new");
    assert!(
        ways.keys()
            .filter(|name| name.starts_with("Fault::"))
            .count()
            >= 12
    );
    let table: String = MODULE
        .lines()
        .filter(|line| line.starts_with("//! |"))
        .collect();
    let named = |name: &str| {
        [format!("]({name})"), format!("[`{name}`]")]
            .iter()
            .any(|link| table.contains(link))
    };
    let rest = IN_PART.into_iter().flat_map(documented);
    ways.extend(rest.filter(|(name, _)| named(name)));
    assert!(ways.len() >= 35, "{:?}", ways.keys());

    let without: Vec<_> = ways
        .iter()
        .filter(|(_, docs)| !has_example(docs))
        .map(|(name, _)| name)
        .collect();
    assert!(without.is_empty(), "without an example: {without:?}");
    // The table names every fault.
    let unnamed: Vec<_> = ways
        .keys()
        .filter(|name| name.starts_with("Fault::") && !named(name))
        .collect();
    assert!(unnamed.is_empty(), "not in the table: {unnamed:?}");
}
