//! A file of another kind is named only if it is recognized.

use tower_spiffe_test_support::temp::{TempDir, replace};

use crate::h08_bundle_files::builder;

#[tokio::test]
async fn map_in_another_format_is_named() {
    let dir = TempDir::new();
    for format in ["spiffe_helper", "spire_agent"] {
        for (document, is_map) in [
            (r#"{"trust_domains": {}}"#, true),
            (r#"{"trust_domains": 7, "x": []}"#, true),
            (r#"{"trust_domain": {}}"#, false),
            (r#"{"x": [7]}"#, false),
            ("[7]", false),
        ] {
            let path = dir.join(format);
            replace(&path, document);
            let error = format!("{:#}", builder(format, &path).open().unwrap_err());
            let named = error.contains("it is a map with `trust_domains`");
            assert_eq!(named, is_map, "{document} as {format}: {error}");
        }
    }
}
