//! What the tool says to a request that cannot be carried out: the thing, the place, the
//! remedy; exit code 2; nothing made and nothing left running.

use std::{
    fs,
    path::Path,
    process::{Command, Output},
};

const SETUP: &str = r#"
[driver.disk]
kernel = "disk"
[disk.sample]
image = "sample.raw"
[guest.reader]
kernel = "disk-check"
disks = ["sample"]
"#;

fn bulkhead(folder: &Path, arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_bulkhead"))
        .current_dir(folder)
        .env("XDG_RUNTIME_DIR", folder)
        .args(arguments)
        .output()
        .expect("the tool runs")
}

/// Runs a set-up that should be refused; gives what the tool said.
fn refused(text: &str, more: &[&str]) -> String {
    let folder = tempfile::tempdir().expect("a folder");
    fs::write(folder.path().join("x.toml"), text).expect("written");
    fs::write(folder.path().join("script"), "#!/bin/sh\n").expect("written");
    let arguments = [&["run", "x.toml"], more].concat();
    let out = bulkhead(folder.path(), &arguments);
    assert_eq!(out.status.code(), Some(2), "{arguments:?}");
    assert!(out.stdout.is_empty() || more.contains(&"--json"));
    let runs = fs::read_dir(folder.path().join("bulkhead")).map_or(0, Iterator::count);
    assert_eq!(runs, 0, "no run's folder is left");
    String::from_utf8(out.stderr).expect("text")
}

fn has(told: &str, parts: &[&str]) {
    for part in parts {
        assert!(told.contains(part), "{part:?} should be in:\n{told}");
    }
}

#[test]
fn a_set_up_that_is_not_there() {
    let folder = tempfile::tempdir().expect("a folder");
    let out = bulkhead(folder.path(), &["run", "none.toml"]);
    assert_eq!(out.status.code(), Some(2));
    has(&String::from_utf8_lossy(&out.stderr), &["none.toml", "examples/"]);
}

#[test]
fn text_that_is_no_toml() {
    has(&refused("[guest.reader\nkernel = 1\n", &[]), &["x.toml:1"]);
}

#[test]
fn an_unknown_key_and_an_unknown_device() {
    let told = refused(SETUP, &["--set", "guest.reader.memori=64M"]);
    has(&told, &["memori", "did you mean `memory`?"]);
    let told = refused(&SETUP.replace("[\"sample\"]", "[\"sampel\"]"), &[]);
    has(&told, &["there is no disk `sampel`", "did you mean `sample`?", "x.toml:8"]);
}

#[test]
fn a_missing_image_is_named_with_its_line() {
    let told = refused(SETUP, &[]);
    has(&told, &["sample.raw", "`sample`", "is not there", "x.toml:5"]);
    let told = refused(SETUP, &["--set", "guest.reader.disk=./mine.img"]);
    has(&told, &["mine.img", "is not there", "# from --set"]);
}

#[test]
fn too_little_memory_for_the_machine() {
    let told = refused(&format!("[machine]\nmemory = \"64M\"\n{SETUP}"), &[]);
    has(&told, &["64 MiB is too small", "memory = \"", "x.toml:2"]);
}

#[test]
fn a_kernel_that_is_none() {
    let told = refused(&SETUP.replace("\"disk-check\"", "\"./script\""), &[]);
    has(&told, &["script", "bzImage", "`reader`", "x.toml:7"]);
}

#[test]
fn a_request_in_json_is_refused_in_json() {
    let folder = tempfile::tempdir().expect("a folder");
    fs::write(folder.path().join("x.toml"), SETUP).expect("written");
    let out = bulkhead(folder.path(), &["run", "x.toml", "--json"]);
    assert_eq!(out.status.code(), Some(2));
    let told: serde_json::Value = serde_json::from_slice(&out.stdout).expect("one object");
    assert_eq!(told["outcome"], "bad-request");
    has(told["error"].as_str().expect("text"), &["sample.raw"]);
}

#[test]
fn verbs_that_need_a_running_machine_say_so() {
    let folder = tempfile::tempdir().expect("a folder");
    for arguments in [&["kill", "disk"][..], &["console", "reader"]] {
        let out = bulkhead(folder.path(), arguments);
        assert_eq!(out.status.code(), Some(2), "{arguments:?}");
        has(&String::from_utf8_lossy(&out.stderr), &["no machine is running", "bulkhead run"]);
    }
    let out = bulkhead(folder.path(), &["list", "--json"]);
    let told: serde_json::Value = serde_json::from_slice(&out.stdout).expect("one object");
    assert_eq!(told["runs"].as_array().map(Vec::len), Some(0));
}
