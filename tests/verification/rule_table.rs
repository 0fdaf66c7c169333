//! The test of each SPIFFE rule, or the reason why it has none.
//!
//! | rule | test, or the reason |
//! | --- | --- |
//! | JWT-1 | `jwt_01_compact_serialisation_only` |
//! | JWT-2 | `jwt_02_jwe_is_rejected` |
//! | JWT-3 | `jwt_03_only_alg_kid_and_typ_are_allowed` |
//! | JWT-4 | `jwt_04_only_the_nine_algorithms` |
//! | JWT-5 | `jwt_05_algorithm_is_checked_first` |
//! | JWT-6 | `jwt_06_kid_is_optional` |
//! | JWT-7 | `jwt_07_typ_is_missing_or_jwt_or_jose` |
//! | JWT-8 | `jwt_08_sub_is_a_spiffe_id` |
//! | JWT-9 | `jwt_09_aud_must_contain_the_audience` |
//! | JWT-10 | advice to issuers and their users: one audience; any number must be accepted (`jwt_09_aud_must_contain_the_audience`) |
//! | JWT-11 | advice to users: an audience of a single service |
//! | JWT-12 | `jwt_12_exp_is_required` |
//! | JWT-13 | `jwt_13_token_expires_at_exp` |
//! | JWT-14 | `jwt_14_default_leeway_is_ten_seconds` |
//! | JWT-15 | `jwt_15_validator_needs_an_audience` |
//! | JWT-16 | `jwt_16_other_claims_are_kept` |
//! | JWT-17 | `jwt_17_nbf_is_checked_but_not_iat_iss_jti` |
//! | JWT-18 | `jwt18_bearer_scheme_allows_any_case_and_spaces` |
//! | JWT-19 | `jwt_19_all_four_kinds_of_calls_are_protected` |
//! | JWT-20 | `jwt_20_spiffe_bundle_marks_jwt_keys` |
//! | JWT-21 | `jwt_21_only_jwt_entries_are_used` |
//! | TB-1 | `tb_01_bundle_is_selected_by_trust_domain_of_sub` |
//! | TB-2 | defines the meaning of a bundle |
//! | TB-3 | `tb_03_a_bundle_is_a_jwk_set` |
//! | TB-4 | `tb_04_other_members_are_ignored` |
//! | TB-5 | `tb_05_any_sequence_number_is_accepted` |
//! | TB-6 | `tb_06_any_refresh_hint_is_accepted` |
//! | TB-7 | `tb_07_keys_is_one_list` |
//! | TB-8 | `tb_08_only_unknown_elements_are_ignored` |
//! | TB-9 | `tb_09_without_usable_keys_every_token_is_rejected` |
//! | TB-10 | binds publishers; extra members are harmless: `tb_04_other_members_are_ignored` |
//! | TB-11 | `tb_11_kty_is_required` |
//! | TB-12 | `tb_12_use_is_required_in_a_spiffe_bundle` |
//! | TB-13 | `tb13_map_has_a_bundle_per_trust_domain`, `tb13_malformed_or_duplicate_map_is_rejected` |
//! | TB-14 | `tb_14_hint_in_a_map_does_not_change_polling` |
//! | TB-15 | `tb_15_map_is_applied_as_a_whole` |
//! | TB-16 | `h01_without_a_hint_polls_every_five_minutes` |
//! | TB-17 | `tb_17_shared_key_works_for_both_domains` |
//! | ID-1 | `id_1_scheme_is_spiffe` |
//! | ID-2 | `id_2_id_5_trust_domain_is_not_empty` |
//! | ID-3 | `id_3_no_query_or_fragment` |
//! | ID-4 | `id_4_path_is_optional` |
//! | ID-5 | `id_2_id_5_trust_domain_is_not_empty` |
//! | ID-6 | `id_6_no_userinfo_or_port` |
//! | ID-7 | `id_7_id_20_upper_case_is_rejected` |
//! | ID-8 | `id_8_trust_domain_charset` |
//! | ID-9 | `id_9_id_12_no_percent_encoding` |
//! | ID-10 | `id_10_ipv4_is_a_name_ipv6_is_not` |
//! | ID-11 | `id_11_name_may_not_be_a_dns_name` |
//! | ID-12 | `id_9_id_12_no_percent_encoding` |
//! | ID-13 | `id_13_no_empty_or_dot_segments` |
//! | ID-14 | `id_14_no_trailing_slash` |
//! | ID-15 | `id_15_path_charset` |
//! | ID-16 | `id_16_paths_may_be_hierarchies` |
//! | ID-17 | `id_17_id_18_at_most_2048_bytes` |
//! | ID-18 | `id_17_id_18_at_most_2048_bytes` |
//! | ID-19 | `id_19_trust_domain_has_at_most_255_bytes` |
//! | ID-20 | `id_20_path_is_case_sensitive` |
//! | ID-21 | binds the operator of a trust domain |
//! | ID-22 | a JWS signs `sub` by its form (`jwt_01_compact_serialisation_only`) |
//! | ID-23 | names the document types; other documents are rejected (`jwt_02_jwe_is_rejected`) |
//! | ID-24 | advice to readers of other claims |
//! | WA-1 | binds servers of the API |
//! | WA-2 | binds servers of the API |
//! | WA-3 | `wa3_healthy_stream_reconnects_at_once`, `wa3_short_stream_reconnects_with_backoff` |
//! | WA-4 | `wa4_wa8_each_message_replaces_the_whole_set` |
//! | WA-5 | binds servers of the API; a server without it is in `wa5_stream_without_first_message_times_out` |
//! | WA-6 | binds servers of the API |
//! | WA-7 | `wa7_an_empty_key_set_trusts_no_key` |
//! | WA-8 | `wa8_missing_trust_domain_is_removed`, `wa4_wa8_each_message_replaces_the_whole_set` |
//! | WA-9 | `wa9_an_empty_map_is_discarded_and_counted`, `wa9_message_without_bundles_is_discarded` |
//! | WA-10 | `wa_10_wa_32_unknown_trust_domain_is_rejected` |
//! | WA-11 | `wa21_all_identities_keep_the_agents_order` |
//! | WA-12 | `wa12_missing_or_invalid_hints_are_ignored` |
//! | WA-20 | `wa20_invalid_requests_fail_without_a_call`, `wa20_token_has_exactly_the_requested_audiences` |
//! | WA-21 | `wa21_without_an_id_every_identity_gets_a_token` |
//! | WA-22 | `wa22_response_without_mandatory_fields_is_rejected` |
//! | WA-23 | `wa23_first_of_equal_hints_counts` |
//! | WA-24 | `wa24_unauthorized_identity_is_denied_and_retryable` |
//! | WA-25 | `wa25_stream_sends_the_whole_set_each_time` |
//! | WA-26 | `wa_26_trust_domain_is_an_id_or_a_name`, `wa26_name_is_a_spiffe_id_or_bare` |
//! | WA-27 | `wa_27_keys_for_other_uses_are_ignored` |
//! | WA-28 | `ep12_to_ep14_statuses_fail_or_retry_a_start` |
//! | WA-29 | `wa29_immediate_withdrawal_stops_validation_until_restored`, `wa29_denied_reconnect_withdraws` |
//! | WA-30 | `wa30_agent_validates_a_token_and_returns_claims` |
//! | WA-31 | advice to validate through the agent. The layers validate locally; the crate's docs say why |
//! | WA-32 | `wa_10_wa_32_unknown_trust_domain_is_rejected` |
//! | A-30 | `a30_token_without_kid_tries_at_most_four_keys` |

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

/// Collects the names of all test functions in this directory.
fn tests_in(dir: &Path, found: &mut BTreeSet<String>) {
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            tests_in(&path, found);
        } else if path.extension().is_some_and(|kind| kind == "rs") {
            let text = fs::read_to_string(&path).unwrap();
            let mut is_test = false;
            for line in text.lines().map(str::trim_start) {
                is_test |= line.starts_with("#[test]") || line.starts_with("#[tokio::test");
                let line = line.strip_prefix("async ").unwrap_or(line);
                if let Some(rest) = line.strip_prefix("fn ") {
                    let name = rest.split(['(', '<']).next().unwrap();
                    if std::mem::take(&mut is_test) {
                        found.insert(name.to_owned());
                    }
                }
            }
        }
    }
}

/// Returns the rows of the table above: the rule and the second column.
fn rows() -> Vec<(&'static str, &'static str)> {
    let lines = include_str!("rule_table.rs").lines();
    let rows = lines.filter_map(|line| line.strip_prefix("//! | "));
    let rows = rows.filter_map(|row| row.strip_suffix(" |")?.split_once(" | "));
    rows.filter(|(rule, _)| rule.contains('-') && *rule != "---")
        .collect()
}

#[test]
fn each_rule_has_a_row() {
    let areas = [
        ("JWT", 1..=21),
        ("TB", 1..=17),
        ("ID", 1..=24),
        ("WA", 1..=12),
        ("WA", 20..=32),
        // The attacks A1 to A29 are listed in `tests/README.md` and in the names of their tests.
        ("A", 30..=30),
    ];
    let all = areas
        .into_iter()
        .flat_map(|(area, numbers)| numbers.map(move |n| format!("{area}-{n}")));
    let rules: Vec<_> = rows().into_iter().map(|(rule, _)| rule).collect();
    assert_eq!(rules, all.collect::<Vec<_>>());
}

#[test]
fn each_name_in_the_table_is_a_test() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let mut tests = BTreeSet::new();
    for dir in ["src", "tests"] {
        tests_in(&root.join(dir), &mut tests);
    }
    assert!(tests.contains("each_name_in_the_table_is_a_test"));
    for (rule, row) in rows() {
        let names: Vec<_> = row.split('`').skip(1).step_by(2).collect();
        let is_all_names = row.starts_with('`');
        assert!(is_all_names || row.contains(' '), "{rule}: no reason");
        for name in names.into_iter().filter(|name| *name != "sub") {
            assert!(tests.contains(name), "{rule}: no test {name}");
        }
    }
}
