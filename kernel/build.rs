//! Links the binary that boots by its own script; host builds are left alone.

fn main() {
    println!("cargo:rerun-if-changed=link.ld");
    let is_machine = std::env::var("CARGO_CFG_TARGET_OS").is_ok_and(|os| os == "none");
    if is_machine {
        let here = std::env::var("CARGO_MANIFEST_DIR").expect("cargo sets it");
        println!("cargo:rustc-link-arg-bins=-T{here}/link.ld");
    }
}
