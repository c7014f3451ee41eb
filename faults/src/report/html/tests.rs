use super::*;
use crate::report::tests::sample;

fn about() -> About {
    About {
        subject: "driver domain <disk>".into(),
        command: "cargo bulkhead inject a.toml".into(),
        replay: "cargo bulkhead inject a.toml --replay".into(),
    }
}

#[test]
fn the_page_needs_nothing_from_elsewhere() {
    let page = page(&Report::new(&sample(500)), &about());
    for outside in ["http:", "https:", "src=", "@import", "url(", "<script", "<link"] {
        assert!(!page.contains(outside), "{outside}");
    }
}

#[test]
fn what_is_opened_is_closed() {
    let page = page(&Report::new(&sample(500)), &about());
    for tag in ["section", "svg", "table", "div", "details", "p", "g", "span", "text", "tr", "td"] {
        let opened =
            page.matches(&format!("<{tag}>")).count() + page.matches(&format!("<{tag} ")).count();
        assert_eq!(opened, page.matches(&format!("</{tag}>")).count(), "{tag}");
    }
}

#[test]
fn text_from_the_log_stays_text() {
    let mut log = sample(500);
    let record = log.records.values_mut().find(|r| r.outcome == Outcome::Escape).unwrap();
    record.seen.others = vec!["<img src=x> & 'more'\u{1b}".into()];
    let page = page(&Report::new(&log), &about());
    assert!(page.contains("&lt;img src=x&gt; &amp; 'more'\u{fffd}"), "escaped");
    assert!(!page.contains("<img"), "nowhere else");
}

#[test]
fn numbers_in_drawings_are_numbers() {
    for faults in [1, 3, 500] {
        let page = page(&Report::new(&sample(faults)), &about());
        assert!(!page.contains("NaN") && !page.contains("inf "), "{faults} faults");
    }
}

#[test]
fn each_fault_to_look_into_has_its_line() {
    let report = Report::new(&sample(500));
    let page = page(&report, &about());
    assert!(!report.escapes.is_empty());
    for record in report.escapes.iter().chain(&report.failures) {
        let line = crate::record::Line::Fault(Box::new(record.clone())).written();
        let quoted = line.replace('\'', "'\\''");
        assert!(page.contains(&text(&quoted)), "fault {}", record.number);
    }
}
