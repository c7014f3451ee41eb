//! Makes `domain.ld` findable for every program that links this crate: such a
//! package's own build script passes `-Tdomain.ld` for its binaries.

fn main() {
    let here = std::env::var("CARGO_MANIFEST_DIR").expect("cargo sets it for build scripts");
    println!("cargo:rustc-link-search={here}");
    println!("cargo:rerun-if-changed=domain.ld");
}
