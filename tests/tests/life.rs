//! Guests that are asked to power off or reboot, guests that reboot by themselves, and what
//! comes of their memory and disks.

mod common;

use bulkhead::{lifecycle, remote::RemoteError, report::Domain, watch::Outcome};
use common::{Background, ECHO, run_text};
use std::time::Duration;

const LIMIT: Option<Duration> = Some(Duration::from_secs(120));

/// Listens: its id, and the free frames of the machine.
fn listens(run: &Background, restarts: u32) -> (Option<u16>, u64) {
    run.wait_for(|listing| {
        let echo = listing.domains.iter().find(|d| d.name == "echo")?;
        let ready = echo.restarts == restarts && echo.state == "running";
        ready.then_some((echo.domid, listing.core.free_frames))
    })
}

/// Asks until the guest's kernel listens.
fn until_it_listens(mut ask: impl FnMut() -> Result<(), RemoteError>) {
    let done = common::wait(|| match ask() {
        Err(RemoteError::Refused(why)) if why.contains("not yet") => None,
        other => Some(other),
    });
    done.expect("it listens at last").expect("it obeys");
}

fn domain<'a>(domains: &'a [Domain], name: &str) -> &'a Domain {
    domains.iter().find(|d| d.name == name).expect("listed")
}

#[test]
fn a_guest_reboots_under_its_name_with_its_disk_and_powers_off_when_asked() {
    let folder = tempfile::tempdir().expect("a folder");
    let run = Background::start(folder.path(), ECHO);
    listens(&run, 0);
    let number = run.number();
    let lives: Vec<_> = (0..6)
        .map(|life| {
            let found = listens(&run, life);
            until_it_listens(|| lifecycle::reboot(Some(&number), "echo", LIMIT));
            found
        })
        .collect();
    listens(&run, 6);
    assert!(lives.is_sorted_by(|one, two| one.0 < two.0), "each life has a new id: {lives:?}");
    // In the first one the driver domain may not have all that it takes once.
    let frames: Vec<_> = lives.iter().skip(1).map(|life| life.1).collect();
    assert!(frames.iter().all(|&n| n == frames[0]), "all of an old life is free again: {frames:?}");
    until_it_listens(|| lifecycle::shutdown(Some(&number), "echo", LIMIT));
    let ran = run.finish();
    assert_eq!(ran.report.outcome, Outcome::Ok, "{}", ran.story());
    let echo = domain(&ran.report.domains, "echo");
    assert_eq!((echo.restarts, echo.exit), (6, Some("poweroff")), "{}", ran.story());
    assert!(echo.last_lines.is_empty(), "it ended well");
    assert_eq!(ran.console("echo").matches("echo: ready").count(), 7, "{}", ran.story());
    let steps = ran.log.join("\n");
    for step in ["rebooting", "shutting down"] {
        assert!(steps.contains(step), "{step}: {}", ran.story());
    }
}

#[test]
fn a_guest_that_only_reboots_is_given_up_and_one_that_is_not_to_restart_ends() {
    let folder = tempfile::tempdir().expect("a folder");
    let guest = |name: &str, more: &str| {
        format!(
            "[guest.{name}]\nkernel = \"echo\"\nmemory = \"16M\"\ncmdline = \"reboot=1\"\n{more}\n"
        )
    };
    let text = guest("again", "") + &guest("once", "on-reboot = \"destroy\"");
    let ran = run_text(folder.path(), &text);
    assert_eq!(ran.report.outcome, Outcome::GuestFailed, "{}", ran.story());
    let of = |name| domain(&ran.report.domains, name);
    assert_eq!((of("again").restarts, of("again").exit), (4, Some("reboot")), "{}", ran.story());
    assert!(of("again").reason.contains("5 times in a row"), "{}", ran.story());
    assert_eq!((of("once").restarts, of("once").exit), (0, Some("reboot")), "{}", ran.story());
    assert_eq!(of("once").last_lines, ["echo: ready"]);
}

#[test]
fn what_a_guest_can_not_do_is_refused_with_the_reason() {
    let folder = tempfile::tempdir().expect("a folder");
    let run = Background::start(folder.path(), ECHO);
    listens(&run, 0);
    let number = run.number();
    let run_id = Some(number.as_str());
    let size = |text: &str| text.parse().expect("a size");
    for (asked, told) in [
        (lifecycle::shutdown(run_id, "disk", None), "does not listen"),
        (lifecycle::sysrq(run_id, "echo", 's'), "does not listen"),
        (lifecycle::sysrq(run_id, "echo", '/'), "a letter or a digit"),
        (lifecycle::mem_set(run_id, "echo", size("8M"), None), "does not listen"),
        (lifecycle::reboot(run_id, "ghost", None), "there is no domain"),
    ] {
        let error = asked.expect_err("refused").to_string();
        assert!(error.contains(told), "{told}: {error}");
    }
    run.kill("echo");
    let ran = run.finish();
    assert_eq!(domain(&ran.report.domains, "echo").exit, Some("killed"), "{}", ran.story());
}
