//! Checks of the repository: imports, generated code, the README, and checked-in data.

mod architecture;
mod corpora;
mod guide;
mod proto;
mod readme;
mod spire;

fn repository_root() -> std::path::PathBuf {
    std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}
