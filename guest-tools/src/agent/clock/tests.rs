//! Clocks that are wrong in a known way, and answers that are late in a known way.

use super::*;
use proptest::prelude::*;

const SECOND: i64 = 1_000_000_000;
const MS: i64 = 1_000_000;

/// The guest's clock is `behind_ns` the host's; each question is `there_ns` under way and
/// its answer `back_ns`. Gives the steps, and how many questions there were.
fn compare(behind_ns: i64, ways: &[(i64, i64)]) -> (Vec<i64>, u32) {
    let (mut comparison, mut steps) = (Comparison::default(), Vec::new());
    let mut host_ns = 1_700_000_000 * SECOND;
    let reading = |host_ns: i64, steps: &[i64]| Reading {
        monotonic_ns: host_ns - 1_600_000_000 * SECOND,
        unix_ns: host_ns - behind_ns + steps.iter().sum::<i64>(),
    };
    comparison.begin();
    let mut question = comparison.ask(reading(host_ns, &steps));
    for (count, (there_ns, back_ns)) in (1..).zip(ways.iter().cycle()) {
        let taken_ns = host_ns + there_ns;
        host_ns = taken_ns + back_ns;
        let now = reading(host_ns, &steps);
        match comparison.answered(question, taken_ns as u64, now) {
            Next::Ask => question = comparison.ask(now),
            Next::Step { by_ns } => {
                steps.push(by_ns);
                return (steps, count);
            }
            Next::Nothing => return (steps, count),
        }
    }
    unreachable!("the ways are repeated for ever")
}

#[test]
fn a_clock_that_is_behind_or_ahead_is_stepped_once() {
    let ways = [(2 * MS, 2 * MS)];
    assert_eq!(compare(1340 * MS, &ways), (vec![1340 * MS], 1));
    assert_eq!(compare(-1340 * MS, &ways), (vec![-1340 * MS], 1));
}

#[test]
fn a_clock_that_is_nearly_right_is_left_alone() {
    for behind in [-TOLERATED_NS, -MS, 0, MS, TOLERATED_NS] {
        assert_eq!(compare(behind, &[(2 * MS, 2 * MS)]), (vec![], 1));
    }
}

#[test]
fn a_late_answer_is_asked_for_again_and_the_fastest_counts() {
    let ways = [(900 * MS, 0), (0, 700 * MS), (10 * MS, 10 * MS)];
    assert_eq!(compare(SECOND, &ways), (vec![SECOND], 3));
    let ways = [(0, 900 * MS), (60 * MS, 0)];
    assert_eq!(compare(SECOND, &ways), (vec![SECOND + 30 * MS], CLOCK_QUESTIONS));
}

#[test]
fn an_answer_to_another_question_is_none() {
    let now = Reading { monotonic_ns: 0, unix_ns: 0 };
    let mut comparison = Comparison::default();
    let old = comparison.ask(now);
    comparison.begin();
    let new = comparison.ask(now);
    assert_eq!(comparison.answered(old, 5 * SECOND as u64, now), Next::Nothing);
    assert_eq!(comparison.answered(new, 5 * SECOND as u64, now), Next::Step { by_ns: 5 * SECOND });
    assert_eq!(comparison.answered(new, 9 * SECOND as u64, now), Next::Nothing);
}

#[test]
fn a_date_before_1970_is_a_time_too() {
    assert_eq!(timespec(-1), Timespec { tv_sec: -1, tv_nsec: 999_999_999 });
}

proptest! {
    #[test]
    fn a_step_never_makes_a_clock_worse_and_fast_answers_make_it_right(
        behind_ns in -10 * SECOND..10 * SECOND,
        ways in prop::collection::vec((0..SECOND, 0..SECOND), 1..12),
        fast in any::<bool>(),
    ) {
        let ways: Vec<_> = match fast {
            true => ways.iter().map(|(there, back)| (there / 40, back / 40)).collect(),
            false => ways,
        };
        let (steps, count) = compare(behind_ns, &ways);
        let left_ns = behind_ns - steps.iter().sum::<i64>();
        prop_assert!(left_ns.abs() <= behind_ns.abs());
        prop_assert!(count <= CLOCK_QUESTIONS);
        // What cannot be told from a late answer is at most as much as it was late.
        let used = ways.iter().cycle().take(count as usize);
        let way_ns = used.map(|(there, back)| there + back).min().unwrap_or(0);
        prop_assert!(left_ns.abs() <= way_ns + TOLERATED_NS.max(way_ns / 2));
    }

    #[test]
    fn no_answer_is_too_absurd(
        unix_ns in any::<u64>(),
        asked in any::<(i64, i64)>(),
        now in any::<(i64, i64)>(),
    ) {
        let reading = |(monotonic_ns, unix_ns)| Reading { monotonic_ns, unix_ns };
        let mut comparison = Comparison::default();
        let question = comparison.ask(reading(asked));
        let _ = comparison.answered(question, unix_ns, reading(now));
    }
}
