//! Drives the guest and the kills while another thread runs the machine: it talks to both
//! as any other terminal would, through the run's socket.

use super::{
    View,
    dmesg::{self, Dmesg},
    fio::{self, Job},
    live::Live,
    schedule::Schedule,
    series::{Sample, Series},
    setup::{DATA, DRIVER, GUEST},
};
use crate::{
    exec::{self, Collected, Command, Finished},
    remote::RemoteError,
    wire::Client,
};
use bulkhead_link::{Cause, Listing, Reply, Request, Restart};
use std::{
    path::PathBuf,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU32, Ordering},
        mpsc::Receiver,
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

/// How long the guest may take until its agent is there; TCG on a busy host is slow.
const BOOT_LIMIT: Duration = Duration::from_secs(300);
/// How long a command may take that has not much to do.
const COMMAND_LIMIT: Duration = Duration::from_secs(120);
/// How long Dom0 may take to reply.
const REPLY_LIMIT: Duration = Duration::from_secs(10);
/// How often the disk's counters are looked at.
const LOOK_EVERY: Duration = Duration::from_millis(100);
/// How often the picture is drawn.
const DRAW_EVERY: Duration = Duration::from_millis(200);
/// The load runs so long before anything is measured.
const WARM_UP: Duration = Duration::from_secs(2);
/// The load goes on for so long afterwards, so that it does not end before.
const SLACK: Duration = Duration::from_secs(3);
/// How long a restart is waited for once the last kill is done.
const LAST_WORD: Duration = Duration::from_secs(3);

/// Why the demonstration was not completed.
#[derive(Debug, thiserror::Error)]
pub enum Failed {
    #[error("interrupted")]
    Interrupted,
    #[error("{0}")]
    Remote(#[from] RemoteError),
    #[error("{0}")]
    Told(String),
}

impl From<std::io::Error> for Failed {
    fn from(e: std::io::Error) -> Self {
        RemoteError::from(e).into()
    }
}

/// All that was seen; what was not reached is none.
#[derive(Debug, Default)]
pub struct Seen {
    /// `uname -sr` of the guest.
    pub kernel: String,
    /// When each kill was done, counted from the first stretch.
    pub kills: Vec<Duration>,
    /// Kills that came while it was dead.
    pub refused: usize,
    pub restarts: Vec<Restart>,
    pub series: Series,
    pub load: Option<Job>,
    /// Bytes that the driver domain counted for it.
    pub counted: Option<u64>,
    pub audit: Option<Job>,
    pub dmesg: Option<Dmesg>,
}

/// What the director needs.
pub struct Director {
    pub socket: PathBuf,
    /// Of QEMU.
    pub process: u32,
    pub schedule: Schedule,
    /// Restarts as Dom0 tells of them.
    pub restarts: Receiver<Restart>,
    pub interrupts: Arc<AtomicU32>,
    pub view: Arc<Mutex<dyn View + Send>>,
    pub seen: Seen,
}

impl Director {
    /// Goes through the whole programme and has the guest power off; gives what was seen, also
    /// if it came to nothing.
    pub fn direct(mut self) -> (Seen, Result<(), Failed>) {
        let done = self.programme();
        self.hear();
        (self.seen, done)
    }

    fn programme(&mut self) -> Result<(), Failed> {
        self.say("waiting for Debian to come up");
        self.sh("until systemctl is-system-running 2>&1 | grep -Eq 'running|degraded'; do sleep 0.5; done")?;
        self.seen.kernel = self.sh("uname -sr")?.trim().to_owned();
        let warnings = self.sh(WARNINGS)?;
        self.say("filling the data disk");
        let filled = self.fio(fio::fill())?;
        if !filled.is_clean() {
            return Err(Failed::Told(format!("the data disk can not be filled: {}", filled.said)));
        }
        let done = self.disturb();
        // What the guest says is of interest above all if it went wrong.
        match done {
            Err(Failed::Interrupted) => done,
            done => {
                let questioned = self.question(&warnings);
                done.and(questioned)
            }
        }
    }

    /// Kills under load.
    fn disturb(&mut self) -> Result<(), Failed> {
        let mut client = Client::connect(&self.socket)?;
        let before = self.look(&mut client)?;
        let load = self.start(fio::load(WARM_UP + self.schedule.length() + SLACK));
        let measured = self.measure(&mut client, &load);
        self.draw(None);
        if let Err(failed) = measured {
            if load.is_finished() {
                // Its own word tells more.
                self.seen.load = Some(join(load)?);
            }
            return Err(failed);
        }
        self.seen.load = Some(join(load)?);
        self.seen.counted = self.look(&mut client)?.checked_sub(before);
        Ok(())
    }

    fn measure(&mut self, client: &mut Client, load: &Load) -> Result<(), Failed> {
        let began = Instant::now();
        let idle = self.look(client)?;
        while self.look(client)? < idle + (1 << 20) {
            self.check(load)?;
            if began.elapsed() > COMMAND_LIMIT {
                return Err(Failed::Told("the load does not begin".into()));
            }
            thread::sleep(LOOK_EVERY);
        }
        let warm = Instant::now() + WARM_UP;
        while Instant::now() < warm {
            self.check(load)?;
            thread::sleep(LOOK_EVERY);
        }
        // The first look is the beginning of time.
        let (start, bytes) = self.timed_look(client)?;
        let cpu = cpu_time(self.process);
        self.seen.series.add(Sample { at: Duration::ZERO, bytes, cpu });
        let end = start + self.schedule.length();
        let mut kills: Vec<_> =
            self.schedule.kills().into_iter().rev().map(|k| start + k).collect();
        let (mut look, mut draw) = (Instant::now(), Instant::now());
        while Instant::now() < end {
            self.check(load)?;
            if let Some(&due) = kills.last()
                && Instant::now() >= due
            {
                kills.pop();
                self.kill(client, start)?;
            }
            if Instant::now() >= look {
                look = Instant::now() + LOOK_EVERY;
                self.sample(client, start)?;
            }
            if Instant::now() >= draw {
                draw = Instant::now() + DRAW_EVERY;
                self.hear();
                self.draw(Some(start));
            }
            let next = kills.last().map_or(look, |&kill| kill.min(look)).min(draw);
            thread::sleep(next.saturating_duration_since(Instant::now()));
        }
        self.sample(client, start)?;
        let limit = Instant::now() + LAST_WORD;
        while self.deaths() < self.seen.kills.len() && Instant::now() < limit {
            thread::sleep(LOOK_EVERY);
            self.hear();
        }
        Ok(())
    }

    fn kill(&mut self, client: &mut Client, start: Instant) -> Result<(), Failed> {
        let at = start.elapsed();
        match client.ask(Request::Crash { domain: DRIVER.into() }, REPLY_LIMIT)? {
            // It is not back yet from the kill before.
            Reply::Error(_) => self.seen.refused += 1,
            _ => self.seen.kills.push(at),
        }
        Ok(())
    }

    /// Restarts after a death, as far as they were told.
    fn deaths(&self) -> usize {
        self.seen.restarts.iter().filter(|restart| restart.cause == Cause::Crash).count()
    }

    /// Bytes that the data disk has moved.
    fn look(&self, client: &mut Client) -> Result<u64, Failed> {
        let listing = list(client)?;
        let mut disks = listing.disks.iter();
        let disk = disks.find(|disk| disk.guest == GUEST && disk.device == DATA);
        Ok(disk.map_or(0, |disk| disk.read_bytes.saturating_add(disk.written_bytes)))
    }

    /// The same with when it was so: between the question and the answer.
    fn timed_look(&self, client: &mut Client) -> Result<(Instant, u64), Failed> {
        let asked = Instant::now();
        let bytes = self.look(client)?;
        Ok((asked + asked.elapsed() / 2, bytes))
    }

    fn sample(&mut self, client: &mut Client, start: Instant) -> Result<(), Failed> {
        let (read, bytes) = self.timed_look(client)?;
        let at = read.saturating_duration_since(start);
        self.seen.series.add(Sample { at, bytes, cpu: cpu_time(self.process) });
        Ok(())
    }

    /// Whether there is a reason not to go on.
    fn check(&self, load: &Load) -> Result<(), Failed> {
        if self.interrupts.load(Ordering::Relaxed) > 0 {
            return Err(Failed::Interrupted);
        }
        match load.is_finished() {
            true => Err(Failed::Told("the load ended before its time".into())),
            false => Ok(()),
        }
    }

    /// Takes what Dom0 has told meanwhile.
    fn hear(&mut self) {
        self.seen.restarts.extend(self.restarts.try_iter());
    }

    /// After the load: the whole disk once more, and what the kernel has said.
    fn question(&mut self, warnings_before: &str) -> Result<(), Failed> {
        let (all, warnings) = (self.sh("dmesg")?, self.sh(WARNINGS)?);
        self.seen.dmesg = Some(dmesg::sort(&all, warnings_before, &warnings));
        self.say("reading the whole data disk once more");
        self.seen.audit = Some(self.fio(fio::audit())?);
        self.say("switching Debian off");
        let mut client = Client::connect(&self.socket)?;
        match client.ask(Request::PowerOff { domain: GUEST.into() }, REPLY_LIMIT)? {
            Reply::Error(why) => {
                Err(Failed::Told(format!("the guest can not be switched off: {why}")))
            }
            _ => Ok(()),
        }
    }

    fn start(&self, argv: Vec<String>) -> Load {
        let (socket, interrupts) = (self.socket.clone(), Arc::clone(&self.interrupts));
        let limit = WARM_UP + self.schedule.length() + SLACK + 2 * COMMAND_LIMIT;
        thread::spawn(move || {
            let (exit, collected) = run(&socket, argv, limit, &interrupts)?;
            let (stdout, stderr) = texts(&collected);
            fio::read(exit, &stdout, &stderr).map_err(Failed::Told)
        })
    }

    fn fio(&self, argv: Vec<String>) -> Result<Job, Failed> {
        join(self.start(argv))
    }

    /// What a script printed; one that fails is an error.
    fn sh(&self, script: &str) -> Result<String, Failed> {
        let argv = ["sh", "-c", script].map(String::from).to_vec();
        let (exit, collected) = run(&self.socket, argv, COMMAND_LIMIT, &self.interrupts)?;
        let (stdout, stderr) = texts(&collected);
        match exit {
            0 => Ok(stdout),
            code => Err(Failed::Told(format!("`{script}` failed in the guest ({code}): {stderr}"))),
        }
    }

    fn say(&self, text: &str) {
        self.view.lock().unwrap_or_else(PoisonError::into_inner).say(text);
    }

    /// Draws the state, with times from `start` on, or takes the picture away.
    fn draw(&self, start: Option<Instant>) {
        let live = start.map(|start| Live::new(start.elapsed(), &self.schedule, &self.seen));
        let mut view = self.view.lock().unwrap_or_else(PoisonError::into_inner);
        view.live(live.as_ref());
    }
}

/// CPU time that a process has had, with all its threads.
fn cpu_time(process: u32) -> Option<Duration> {
    let stat = std::fs::read_to_string(format!("/proc/{process}/stat")).ok()?;
    // Behind the name, which may hold anything: fields 3 and up of proc(5); 14 and 15 are ticks.
    let (_, fields) = stat.rsplit_once(')')?;
    let mut fields = fields.split_ascii_whitespace().skip(11);
    let mut ticks = || fields.next()?.parse::<f64>().ok();
    let total = ticks()? + ticks()?;
    Some(Duration::from_secs_f64(total / rustix::param::clock_ticks_per_second() as f64))
}

/// A job that runs.
type Load = JoinHandle<Result<Job, Failed>>;

/// What the kernel thinks is worth a warning.
const WARNINGS: &str = "dmesg --level=emerg,alert,crit,err,warn";

fn join(load: Load) -> Result<Job, Failed> {
    load.join().unwrap_or_else(|_| Err(Failed::Told("the load's thread panicked".into())))
}

fn list(client: &mut Client) -> Result<Listing, Failed> {
    match client.ask(Request::List, REPLY_LIMIT)? {
        Reply::List(listing) => Ok(listing),
        other => Err(Failed::Told(format!("Dom0 does not list: {other:?}"))),
    }
}

/// Runs a command in the guest; gives its exit code and what it printed.
fn run(
    socket: &std::path::Path,
    argv: Vec<String>,
    limit: Duration,
    interrupts: &AtomicU32,
) -> Result<(u8, Collected), Failed> {
    let shown = argv.join(" ");
    let mut command = Command::new(argv);
    (command.wait, command.timeout) = (BOOT_LIMIT, Some(limit));
    let mut collected = Collected::default();
    let finished = exec::exec(socket, GUEST, command, interrupts, &mut collected)?;
    if interrupts.load(Ordering::Relaxed) > 0 {
        return Err(Failed::Interrupted);
    }
    match finished {
        Finished::Ended(end) => Ok((end.code(), collected)),
        Finished::Interrupted => Err(Failed::Interrupted),
        Finished::TimedOut => {
            let limit = limit.as_secs();
            Err(Failed::Told(format!("`{shown}` has not ended after {limit} s in the guest")))
        }
        Finished::Refused { reason, .. } => {
            Err(Failed::Told(format!("the guest can not run `{shown}`: {reason}")))
        }
    }
}

fn texts(collected: &Collected) -> (String, String) {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (text(&collected.stdout), text(&collected.stderr))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpu_time_is_had_by_who_computes_and_unknown_of_who_is_not_there() {
        let before = cpu_time(std::process::id()).expect("we are there");
        let busy_until = Instant::now() + Duration::from_secs(10);
        while cpu_time(std::process::id()).expect("we are there") == before {
            assert!(Instant::now() < busy_until, "ten seconds without any");
        }
        assert_eq!(cpu_time(u32::MAX), None);
    }
}
