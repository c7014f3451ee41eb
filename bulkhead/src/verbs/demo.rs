//! `demo` on the terminal: a picture that is drawn anew in its place where a person watches,
//! lines where a log does.

use super::{count_interrupts, print_json, refuse};
use crate::Demo;
use bulkhead::{
    demo::{self, Live, Options, Report, View},
    progress,
    setup::SetupError,
};
use std::{
    fs,
    io::{self, IsTerminal, Write},
    path::Path,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

/// Time between two lines in a log.
const LINE_EVERY: Duration = Duration::from_secs(5);
/// Where the terminal does not say.
const WIDTH: usize = 80;

pub fn demo(args: &Demo) -> u8 {
    let options = Options {
        length: Duration::from_secs(args.seconds.into()),
        every: args.every.into(),
        stretch: args.stretch.into(),
        guest: args.guest,
        accel: args.accel,
        interrupts: count_interrupts("Debian is asked to power off; once more to end at once"),
        show_build: io::stderr().is_terminal(),
    };
    let done = prepare(args.out.as_deref())
        .and_then(|()| demo::run(&options, Arc::new(Mutex::new(Screen::new()))))
        .and_then(|report| {
            args.out.as_deref().map_or(Ok(()), |folder| write(folder, &report))?;
            Ok(report)
        });
    match done {
        Ok(report) => {
            if args.json {
                print_json(&report);
            }
            let mut to: Box<dyn Write> =
                if args.json { Box::new(io::stderr()) } else { Box::new(io::stdout()) };
            let _ = write!(to, "{}", report.text());
            report.outcome.exit_code()
        }
        Err(error) => refuse(error, args.json),
    }
}

/// Makes the folder for the report, before minutes have gone into it.
fn prepare(folder: Option<&Path>) -> Result<(), SetupError> {
    folder.map_or(Ok(()), |folder| fs::create_dir_all(folder).map_err(|e| unwritable(folder, &e)))
}

fn unwritable(path: &Path, error: &io::Error) -> SetupError {
    SetupError::plain(format!("cannot write to {}: {error}", path.display()))
        .help("give --out a folder that you may write")
}

fn write(folder: &Path, report: &Report) -> Result<(), SetupError> {
    let command: Vec<_> = std::env::args().skip(1).collect();
    let page = report.page(&format!("cargo bulkhead {}", command.join(" ")));
    // Plain data with string keys: encoding it cannot fail.
    let json = serde_json::to_string_pretty(report).unwrap_or_default() + "\n";
    for (name, text) in [("report.json", json), ("report.html", page)] {
        let path = folder.join(name);
        fs::write(&path, text).map_err(|e| unwritable(&path, &e))?;
    }
    Ok(())
}

/// The standard error, and what stands on it.
struct Screen {
    is_terminal: bool,
    progress: progress::Progress,
    /// Lines of the picture that stands there.
    drawn: usize,
    line_due: Instant,
}

impl Screen {
    fn new() -> Self {
        Self {
            is_terminal: io::stderr().is_terminal(),
            progress: progress::Progress::on_stderr(),
            drawn: 0,
            line_due: Instant::now(),
        }
    }

    fn picture(&mut self, live: &Live) {
        let columns = rustix::termios::tcgetwinsize(io::stderr()).map_or(0, |size| size.ws_col);
        let width = if columns == 0 { WIDTH } else { usize::from(columns) - 1 };
        let lines = live.lines(width);
        let _ = io::stderr().write_all(frame(self.drawn, &lines).as_bytes());
        self.drawn = lines.len();
    }
}

/// What puts `lines` in the place of as many as `drawn` above the cursor.
fn frame(drawn: usize, lines: &[String]) -> String {
    let mut text = match drawn {
        0 => String::new(),
        above => format!("\x1b[{above}A"),
    };
    for line in lines {
        text += &format!("\r{line}\x1b[K\n");
    }
    text
}

impl View for Screen {
    fn say(&mut self, text: &str) {
        self.progress.aside(|| eprintln!("{text}"));
        // What stood there has scrolled up, and stays.
        self.drawn = 0;
    }

    fn progress(&self) -> progress::Progress {
        self.progress.clone()
    }

    fn live(&mut self, live: Option<&Live>) {
        match live {
            Some(live) if self.is_terminal => self.picture(live),
            Some(live) if Instant::now() >= self.line_due => {
                self.line_due = Instant::now() + LINE_EVERY;
                eprintln!("{}", live.line());
            }
            Some(_) => {}
            None => self.drawn = 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_picture_takes_the_place_of_the_one_before() {
        let lines = ["a".to_owned(), "b".to_owned()];
        assert_eq!(frame(0, &lines), "\ra\x1b[K\n\rb\x1b[K\n");
        assert!(frame(2, &lines).starts_with("\x1b[2A\ra"));
    }
}
