//! Compares the checked-in Rust code of the Workload API with its definition.

use std::path::Path;
use std::{env, fs};

/// Needs no `protoc`: protox is pure Rust.
#[test]
fn generated_code_matches_its_definition() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let checked_in = root.join("src/workload_api/pb.rs");
    let out = Path::new(env!("CARGO_TARGET_TMPDIR")).join("workload-pb");
    fs::create_dir_all(&out).unwrap();

    let definition = protox::compile([root.join("proto/workload.proto")], [root.join("proto")])
        .expect("the definition compiles");
    tonic_prost_build::configure()
        .build_transport(false)
        .emit_rerun_if_changed(false)
        // Only tests need a server; the crate's users need the client.
        .server_mod_attribute(".", "#[cfg(feature = \"testing\")]")
        // Bundles can be large, so they are not copied out of the message.
        .bytes(".")
        // These contain tokens, so `Debug` is implemented by hand.
        .skip_debug([".JWTSVID", ".ValidateJWTSVIDRequest"])
        .out_dir(&out)
        .compile_fds(definition)
        .expect("the definition becomes Rust");
    let generated = fs::read_to_string(out.join("_.rs")).unwrap();
    fs::remove_dir_all(&out).unwrap();

    if env::var_os("UPDATE").is_some() {
        fs::write(&checked_in, &generated).unwrap();
    }
    let stands = fs::read_to_string(&checked_in).unwrap();
    assert!(
        stands == generated,
        "src/workload_api/pb.rs is not what proto/workload.proto gives; accept what it gives with\n\
         \n    UPDATE=1 cargo test --test repository\n"
    );
}
