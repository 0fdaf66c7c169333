//! Checks of the repository: imports, generated code, and what is checked in as data.

mod architecture;
mod corpora;
mod guide;
mod proto;
mod spire;
