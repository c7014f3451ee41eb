//! Runs commands for whoever is at the other end of a line, as
//! [`bulkhead_link::agent`] says. One thread waits for the line, the commands' pipes and
//! their ends at once. After each Hello the system's clock is compared with the host's. It does
//! not know that the line is a console.

pub mod clock;
mod command;
pub mod line;

use bulkhead_link::agent::{
    ARGUMENT_BYTES, Encoder, FromAgent, MOST_COMMANDS, Reader, ToAgent, VERSION,
};
use clock::{Clocks, Comparison, Next};
use command::Running;
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    io::Errno,
    process::Signal,
};
use std::{
    collections::BTreeMap,
    fs::File,
    io::{self, Read, Write},
    os::fd::OwnedFd,
};

/// The agent and its commands.
pub struct Agent {
    line: File,
    reader: Reader<ToAgent>,
    encoder: Encoder,
    /// Since the last Hello, a message has come that made sense.
    is_in_step: bool,
    commands: BTreeMap<u32, Running>,
    /// A buffer for output, used again and again.
    spare: Vec<u8>,
    /// Killed by a reset; nobody asks for them any more.
    doomed: Vec<Running>,
    clocks: Box<dyn Clocks>,
    comparison: Comparison,
}

impl Agent {
    /// An agent on an open line, which sets `clocks` right.
    pub fn new(line: OwnedFd, clocks: Box<dyn Clocks>) -> Self {
        Self {
            line: line.into(),
            reader: Reader::default(),
            encoder: Encoder::default(),
            is_in_step: false,
            commands: BTreeMap::new(),
            spare: Vec::new(),
            doomed: Vec::new(),
            clocks,
            comparison: Comparison::default(),
        }
    }

    /// Serves until the line is hung up; kills what is left then.
    ///
    /// # Errors
    /// If the line fails.
    pub fn serve(mut self) -> io::Result<()> {
        let served = self.hello().and_then(|()| self.run());
        self.kill_all();
        served
    }

    fn run(&mut self) -> io::Result<()> {
        loop {
            if self.wait()? && !self.listen()? {
                return Ok(());
            }
            let ids: Vec<u32> = self.commands.keys().copied().collect();
            for id in ids {
                self.attend(id)?;
            }
            self.doomed.retain_mut(|command| command.has_ended().is_none());
        }
    }

    /// Waits for something to do; whether it is on the line.
    fn wait(&self) -> io::Result<bool> {
        let mut wanted = vec![PollFd::new(&self.line, PollFlags::IN)];
        for command in self.commands.values() {
            command.interests(&mut wanted);
        }
        for command in &self.doomed {
            command.interests(&mut wanted);
        }
        // The rest of what such a command wrote is there already, if there is any.
        let at_once = self.commands.values().any(Running::is_to_be_told);
        let limit = at_once.then(Timespec::default);
        match poll(&mut wanted, limit.as_ref()) {
            Ok(_) => Ok(!wanted[0].revents().is_empty()),
            Err(Errno::INTR) => Ok(false),
            Err(e) => Err(e.into()),
        }
    }

    /// Reads the line once; `false` at its end.
    fn listen(&mut self) -> io::Result<bool> {
        let mut bytes = [0; 4096];
        let count = match self.line.read(&mut bytes) {
            Ok(0) => return Ok(false),
            Ok(count) => count,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => return Ok(true),
            Err(e) => return Err(e),
        };
        let mut bytes = &bytes[..count];
        while let Some(found) = self.reader.next(&mut bytes) {
            match found {
                Ok(message) => {
                    self.is_in_step = true;
                    self.obey(message)?;
                }
                Err(_) if self.is_in_step => self.reset()?,
                Err(_) => {}
            }
        }
        Ok(true)
    }

    fn say(&mut self, message: &FromAgent) -> io::Result<()> {
        self.line.write_all(self.encoder.encode(message))
    }

    fn hello(&mut self) -> io::Result<()> {
        self.is_in_step = false;
        self.line.write_all(self.encoder.restart(&FromAgent::Hello { version: VERSION }))?;
        self.comparison.begin();
        self.ask_for_time()
    }

    fn ask_for_time(&mut self) -> io::Result<()> {
        let question = self.comparison.ask(self.clocks.now());
        self.say(&FromAgent::ClockWanted { question })
    }

    fn compare_clocks(&mut self, question: u32, unix_ns: u64) -> io::Result<()> {
        match self.comparison.answered(question, unix_ns, self.clocks.now()) {
            Next::Ask => return self.ask_for_time(),
            // The guest goes on with the clock it has.
            Next::Step { by_ns } => drop(self.clocks.step(by_ns)),
            Next::Nothing => {}
        }
        Ok(())
    }

    fn reset(&mut self) -> io::Result<()> {
        self.kill_all();
        self.hello()
    }

    fn kill_all(&mut self) {
        for (_, mut command) in std::mem::take(&mut self.commands) {
            command.doom();
            self.doomed.push(command);
        }
    }

    fn obey(&mut self, message: ToAgent) -> io::Result<()> {
        match message {
            ToAgent::Reset => return self.reset(),
            ToAgent::Start { id, argv, input } => return self.start(id, &argv, input),
            ToAgent::Input { id, bytes } => {
                if let Some(command) = self.commands.get_mut(&id)
                    && !command.feed(&bytes)
                {
                    return self.reset();
                }
            }
            ToAgent::InputEnd { id } => {
                if let Some(command) = self.commands.get_mut(&id) {
                    command.end_input();
                }
            }
            ToAgent::Taken { id, bytes } => {
                if let Some(command) = self.commands.get_mut(&id) {
                    command.give_room(bytes);
                }
            }
            ToAgent::Signal { id, signal } => {
                let signal = Signal::from_named_raw(signal.into());
                if let (Some(command), Some(signal)) = (self.commands.get_mut(&id), signal) {
                    command.signal(signal);
                }
            }
            ToAgent::Clock { question, unix_ns } => return self.compare_clocks(question, unix_ns),
        }
        Ok(())
    }

    fn start(&mut self, id: u32, argv: &[Vec<u8>], input: bool) -> io::Result<()> {
        let refused = |errno, reason: String| FromAgent::Refused { id, errno, reason };
        if self.commands.contains_key(&id) {
            return self.reset();
        }
        if self.commands.len() >= MOST_COMMANDS {
            let reason = format!("{MOST_COMMANDS} commands run already");
            return self.say(&refused(0, reason));
        }
        if argv.iter().map(Vec::len).sum::<usize>() > ARGUMENT_BYTES {
            return self.say(&refused(0, "its arguments are too long".into()));
        }
        match Running::start(argv, input) {
            Ok(command) => {
                self.commands.insert(id, command);
                Ok(())
            }
            Err(e) => self.say(&refused(e.raw_os_error().unwrap_or(0), e.to_string())),
        }
    }

    /// Moves what can be moved of one command, and tells if it has ended.
    fn attend(&mut self, id: u32) -> io::Result<()> {
        let Some(command) = self.commands.get_mut(&id) else {
            return Ok(());
        };
        let taken = command.move_input();
        let end = command.has_ended();
        let output = command.output(&mut self.spare);
        let is_held_back = command.is_held_back();
        if taken > 0 {
            self.say(&FromAgent::Taken { id, bytes: taken })?;
        }
        match (output, end) {
            (Some((stream, bytes)), _) => {
                let message = FromAgent::Output { id, stream, bytes };
                let said = self.say(&message);
                if let FromAgent::Output { bytes, .. } = message {
                    self.spare = bytes;
                }
                said
            }
            (None, Some(end)) if !is_held_back => {
                self.commands.remove(&id);
                self.say(&FromAgent::Ended { id, end })
            }
            (None, _) => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests;
