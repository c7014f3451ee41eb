//! How far long work has come: bars on the standard error where a person watches, plain
//! lines where a log does, nothing on the standard output. It knows nothing of what is
//! being done, and nothing of the machine.

use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::{
    fmt,
    io::{self, IsTerminal, Read, Write},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

/// Time between two lines about the same work, so that a log stays readable.
const LINE_EVERY: Duration = Duration::from_secs(10);
/// Time between two pictures of a bar whose length is not known.
const TICK: Duration = Duration::from_millis(120);

/// Where progress is shown. Copies share the place.
#[derive(Clone, Default)]
pub struct Progress(Shown);

#[derive(Clone, Default)]
enum Shown {
    #[default]
    Nowhere,
    Bars(MultiProgress),
    Lines(Arc<dyn Fn(&str) + Send + Sync>),
}

impl fmt::Debug for Progress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match &self.0 {
            Shown::Nowhere => "nowhere",
            Shown::Bars(_) => "bars",
            Shown::Lines(_) => "lines",
        };
        f.debug_tuple("Progress").field(&kind).finish()
    }
}

/// How much there is to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Amount {
    Bytes(u64),
    Steps(u64),
    Unknown,
}

impl Progress {
    /// Bars on the standard error if that is a terminal, else lines there.
    pub fn on_stderr() -> Self {
        if io::stderr().is_terminal() {
            let target = ProgressDrawTarget::stderr();
            return Self(Shown::Bars(MultiProgress::with_draw_target(target)));
        }
        Self::lines(|line| {
            let _ = writeln!(io::stderr(), "{line}");
        })
    }

    /// Lines, each given to `sink`.
    pub fn lines(sink: impl Fn(&str) + Send + Sync + 'static) -> Self {
        Self(Shown::Lines(Arc::new(sink)))
    }

    /// Begins a piece of work, named like `copying the root file system`.
    pub fn begin(&self, name: impl Into<String>, amount: Amount) -> Task {
        let name = name.into();
        let view = match &self.0 {
            Shown::Nowhere => View::Nothing,
            Shown::Bars(all) => View::Bar(bar(all, &name, amount)),
            Shown::Lines(sink) => {
                sink(&name);
                View::Lines(Mutex::new(Lines::new(Arc::clone(sink), amount)))
            }
        };
        Task { name, view }
    }

    /// Runs `print` while no bar is drawn, so that its text and the bars do not mix.
    pub fn aside<T>(&self, print: impl FnOnce() -> T) -> T {
        match &self.0 {
            Shown::Bars(all) => all.suspend(print),
            _ => print(),
        }
    }
}

/// A piece of work that goes on. Dropping it ends it: its bar goes, without a word on
/// whether the work was completed.
#[derive(Debug)]
pub struct Task {
    name: String,
    view: View,
}

#[derive(Debug)]
enum View {
    Nothing,
    Bar(ProgressBar),
    Lines(Mutex<Lines>),
}

impl Task {
    /// Says how much there is to do, once that is known.
    pub fn set_amount(&self, amount: Amount) {
        match &self.view {
            View::Nothing => {}
            View::Bar(bar) => dress(bar, amount),
            View::Lines(lines) => locked(lines).amount = amount,
        }
    }

    /// More has been done, in the unit of the amount.
    pub fn advance(&self, by: u64) {
        match &self.view {
            View::Nothing => {}
            View::Bar(bar) => bar.inc(by),
            View::Lines(lines) => locked(lines).advance(&self.name, by),
        }
    }

    /// What is being done at the moment, in a few words.
    pub fn phase(&self, text: &str) {
        match &self.view {
            View::Nothing => {}
            View::Bar(bar) => bar.set_message(text.to_owned()),
            View::Lines(lines) => locked(lines).phase(&self.name, text),
        }
    }

    /// As [`Task::phase`], for what changes too often for a log: that gets the latest.
    pub fn note(&self, text: String) {
        match &self.view {
            View::Nothing => {}
            View::Bar(bar) => bar.set_message(text),
            View::Lines(lines) => locked(lines).phase = text,
        }
    }

    /// A reader that advances this work by what is read through it.
    pub fn reading<'a>(&'a self, from: impl Read + 'a) -> impl Read + 'a {
        Counted { from, task: self }
    }
}

impl Drop for Task {
    fn drop(&mut self) {
        if let View::Bar(bar) = &self.view {
            bar.finish_and_clear();
        }
    }
}

struct Counted<'a, R> {
    from: R,
    task: &'a Task,
}

impl<R: Read> Read for Counted<'_, R> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let read = self.from.read(into)?;
        self.task.advance(read as u64);
        Ok(read)
    }
}

fn bar(all: &MultiProgress, name: &str, amount: Amount) -> ProgressBar {
    let bar = all.add(ProgressBar::no_length().with_prefix(name.to_owned()));
    dress(&bar, amount);
    bar.enable_steady_tick(TICK);
    bar
}

fn dress(bar: &ProgressBar, amount: Amount) {
    let template = match amount {
        Amount::Bytes(_) => {
            "{prefix} [{bar:24}] {bytes}/{total_bytes} {bytes_per_sec} {wide_msg:.dim}"
        }
        Amount::Steps(_) => "{prefix} [{bar:24}] {pos}/{len} {elapsed} {wide_msg:.dim}",
        Amount::Unknown => "{prefix} {spinner} {elapsed} {wide_msg:.dim}",
    };
    let style = ProgressStyle::with_template(template)
        .unwrap_or_else(|_| ProgressStyle::default_bar())
        .progress_chars("=> ");
    bar.set_style(style);
    match amount {
        Amount::Bytes(n) | Amount::Steps(n) => bar.set_length(n),
        Amount::Unknown => bar.unset_length(),
    }
}

/// What a log is told of one piece of work.
struct Lines {
    sink: Arc<dyn Fn(&str) + Send + Sync>,
    amount: Amount,
    done: u64,
    phase: String,
    told: Instant,
}

impl fmt::Debug for Lines {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lines").field("amount", &self.amount).field("done", &self.done).finish()
    }
}

impl Lines {
    fn new(sink: Arc<dyn Fn(&str) + Send + Sync>, amount: Amount) -> Self {
        Self { sink, amount, done: 0, phase: String::new(), told: Instant::now() }
    }

    fn advance(&mut self, name: &str, by: u64) {
        self.done += by;
        if self.told.elapsed() >= LINE_EVERY {
            self.tell(name);
        }
    }

    /// Each phase is told once.
    fn phase(&mut self, name: &str, text: &str) {
        if self.phase != text {
            text.clone_into(&mut self.phase);
            self.tell(name);
        }
    }

    fn tell(&mut self, name: &str) {
        self.told = Instant::now();
        let far = match self.amount {
            Amount::Bytes(all) => format!("{} of {} MiB", self.done >> 20, all >> 20),
            Amount::Steps(all) => format!("{} of {all}", self.done),
            Amount::Unknown => String::new(),
        };
        let parts: Vec<_> =
            [self.phase.as_str(), &far].into_iter().filter(|p| !p.is_empty()).collect();
        (self.sink)(&format!("{name}: {}", parts.join(", ")));
    }
}

fn locked(lines: &Mutex<Lines>) -> std::sync::MutexGuard<'_, Lines> {
    lines.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn logged(work: impl FnOnce(&Progress)) -> Vec<String> {
        let told = Arc::new(Mutex::new(Vec::new()));
        let sink = Arc::clone(&told);
        work(&Progress::lines(move |line| sink.lock().expect("whole").push(line.to_owned())));
        std::mem::take(&mut told.lock().expect("whole"))
    }

    #[test]
    fn a_log_gets_the_name_and_each_phase_once() {
        let told = logged(|progress| {
            let task = progress.begin("building", Amount::Unknown);
            task.phase("packages");
            task.phase("packages");
            task.set_amount(Amount::Steps(4));
            task.advance(3);
            task.phase("image");
        });
        assert_eq!(told, ["building", "building: packages", "building: image, 3 of 4"]);
    }

    #[test]
    fn what_is_read_through_a_task_counts_and_arrives_whole() {
        let told = logged(|progress| {
            let task = progress.begin("copying", Amount::Bytes(5 << 20));
            let mut copy = Vec::new();
            let from = vec![7; 3 << 20];
            task.reading(&from[..]).read_to_end(&mut copy).expect("reads");
            assert_eq!(copy, from);
            task.phase("end");
        });
        assert_eq!(told.last().expect("a line"), "copying: end, 3 of 5 MiB");
    }

    #[test]
    fn every_kind_of_bar_has_a_template_that_is_understood() {
        let all = MultiProgress::with_draw_target(ProgressDrawTarget::hidden());
        let progress = Progress(Shown::Bars(all));
        for amount in [Amount::Bytes(9), Amount::Steps(9), Amount::Unknown] {
            let task = progress.begin("x", amount);
            task.advance(9);
            task.phase("y");
            assert_eq!(progress.aside(|| 3), 3);
        }
    }
}
