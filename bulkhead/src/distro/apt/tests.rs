use super::*;

#[test]
fn takes_the_hosts_own_mirrors_and_debians_where_it_has_none() {
    let host = "https://deb.nodesource.com/node_20.x/\nhttp://mirror.example/pub/debian/\n";
    assert_eq!(
        Mirrors::of(host.lines()),
        Mirrors {
            archive: "http://mirror.example/pub/debian".into(),
            security: "http://deb.debian.org/debian-security".into(),
        }
    );
}

#[test]
fn backports_come_from_a_list_of_their_own() {
    let mirrors = Mirrors::of(["http://m/debian/", "http://m/debian-security/"].into_iter());
    let stable = sources_of(Origin::Stable, &mirrors);
    assert!(stable.contains("http://m/debian bookworm main\n"), "{stable}");
    assert!(stable.contains("http://m/debian-security bookworm-security main\n"), "{stable}");
    assert!(!stable.contains("backports"));
    let backports = sources_of(Origin::Backports, &mirrors);
    assert!(backports.ends_with("http://m/debian bookworm-backports main\n"));
    assert_eq!(backports.lines().count(), 1);
}

#[test]
fn keeps_the_hosts_proxies_and_not_what_else_it_downloads() {
    let host = "Acquire \"\";\nAcquire::http::Proxy \"http://p:3128\";\n\
                Acquire::IndexTargets::deb::DEP-11::MetaKey \"x\";\nAcquire::AllowInsecureRepositories \"1\";\n\
                APT::Update::Post-Invoke:: \"rm\";\n";
    let text = configuration(Path::new("/c"), host);
    assert!(text.contains("Acquire::http::Proxy \"http://p:3128\";"));
    assert!(
        !text.contains("DEP-11") && !text.contains("Insecure") && !text.contains("Post-Invoke"),
        "{text}"
    );
    assert!(text.contains("Dir::State::lists \"/c/lists\";"));
}

#[test]
fn reads_what_apt_prints() {
    let about = "Package: linux-image-amd64\nDepends: linux-image-6.1.0-9-amd64 (= 6.1.27-1)\n";
    assert_eq!(depends_on_kernel(about).as_deref(), Some("linux-image-6.1.0-9-amd64"));
    assert_eq!(depends_on_kernel("Package: x\nDepends: libc6 (>= 2.36), y | z\n"), None);
    let uris = "'http://m/x_1_amd64.deb' x_1_amd64.deb 700 SHA256:ab\n";
    assert_eq!(file_and_size(uris), Some(("x_1_amd64.deb".into(), 700)));
    assert_eq!(file_and_size("'http://m/x' ../x.deb 700 SHA256:ab\n"), None);
    assert_eq!(status("dlstatus:1:42.5:Retrieving file 1 of 2 (3s remaining)"), Some(42.5));
    assert_eq!(status("pmstatus:x:1:y"), None);
}

#[test]
fn shows_the_first_error_of_many_lines() {
    let printed =
        "W: old\nErr:1 http://m bookworm\nE: Failed to fetch http://m  no route\nE: Some\n";
    assert_eq!(last(printed), "1 http://m bookworm");
    assert_eq!(last("W: x\nE: Unable to locate\n"), "Unable to locate");
    assert_eq!(last(""), "apt-get failed");
}
