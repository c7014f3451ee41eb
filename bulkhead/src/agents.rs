//! The agents of guests, as the run that holds the link sees them: many clients' commands
//! share one line to each guest. Numbers are translated on their way, what a guest says is
//! held to the rules, and who is to hear of it is said. Agents are told the time when they ask
//! for it. Nothing is sent here.

use crate::wire::{AgentState, Ask, Tell};
use bulkhead_link::agent::{
    CLOCK_QUESTIONS, Encoder, FromAgent, MOST_COMMANDS, OUTPUT_WINDOW, Reader, ToAgent, VERSION,
};
use std::collections::BTreeMap;

/// A client's number.
pub type ClientId = u32;

/// SIGKILL, for commands that nobody waits for any more.
const KILL: u8 = 9;

/// Tells the host's wall clock, ns since 1970.
pub type WallClock = fn() -> u64;

/// What is to be sent, and to whom.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Out {
    /// Bytes for a guest's agent.
    Guest { domain: String, bytes: Vec<u8> },
    /// One client.
    Client(ClientId, Tell),
    /// All of them.
    All(Tell),
}

/// The agents of a run.
#[derive(Debug, Default)]
pub struct Agents {
    guests: BTreeMap<String, Guest>,
    clock: Option<WallClock>,
}

#[derive(Debug, Default)]
struct Guest {
    reader: Reader<FromAgent>,
    encoder: Encoder,
    /// Version in its Hello; none before, or after it went wrong.
    version: Option<u32>,
    commands: BTreeMap<u32, Command>,
    next: u32,
    /// Questions for the time since its Hello.
    clock_questions: u32,
}

#[derive(Debug)]
struct Command {
    /// None once it has left.
    client: Option<ClientId>,
    /// The client's number for it.
    own: u32,
    /// Bytes of output that the client has not taken yet.
    under_way: u32,
}

impl Agents {
    /// `domains` are those that have a second console. With `clock`, they are told the time.
    pub fn new(domains: impl IntoIterator<Item = String>, clock: Option<WallClock>) -> Self {
        let guests = domains.into_iter().map(|name| (name, Guest::default())).collect();
        Self { guests, clock }
    }

    /// How a guest's agent is.
    pub fn state(&self, domain: &str) -> AgentState {
        match self.guests.get(domain) {
            None => AgentState::None,
            Some(Guest { version: None, .. }) => AgentState::Silent,
            Some(Guest { version: Some(VERSION), .. }) => AgentState::Ready,
            Some(Guest { version: Some(other), .. }) => AgentState::OtherVersion(*other),
        }
    }

    /// Takes what a client wants of an agent.
    pub fn ask(&mut self, client: ClientId, domain: String, mut message: ToAgent) -> Vec<Out> {
        let state = self.state(&domain);
        let Some(guest) = self.guests.get_mut(&domain).filter(|_| state == AgentState::Ready)
        else {
            return vec![Out::Client(client, Tell::AgentState { domain, state })];
        };
        let Some(own) = message.id_mut().map(|id| *id) else {
            // A reset would end the commands of others, and the time is not for clients to tell.
            return Vec::new();
        };
        let is_start = matches!(message, ToAgent::Start { .. });
        let id = match is_start {
            true if guest.commands.len() >= MOST_COMMANDS => {
                let reason = format!("{MOST_COMMANDS} commands run there already");
                let message = FromAgent::Refused { id: own, errno: 0, reason };
                return vec![Out::Client(client, Tell::Agent { domain, message })];
            }
            true => guest.add(client, own),
            false => match guest.find(client, own) {
                Some(id) => id,
                // It has ended meanwhile.
                None => return Vec::new(),
            },
        };
        if let Some(place) = message.id_mut() {
            *place = id;
        }
        if let (ToAgent::Taken { bytes, .. }, Some(command)) =
            (&message, guest.commands.get_mut(&id))
        {
            command.under_way = command.under_way.saturating_sub(*bytes);
        }
        vec![Out::Guest { bytes: guest.encoder.encode(&message).to_vec(), domain }]
    }

    /// Takes bytes that a guest's agent wrote.
    pub fn heard(&mut self, domain: &str, mut bytes: &[u8]) -> Vec<Out> {
        let mut outs = Vec::new();
        let clock = self.clock;
        let Some(guest) = self.guests.get_mut(domain) else {
            return outs;
        };
        while let Some(found) = guest.reader.next(&mut bytes) {
            match found {
                Ok(FromAgent::ClockWanted { question }) => {
                    guest.tell_time(domain, question, clock, &mut outs);
                }
                Ok(message) => guest.take(domain, message, &mut outs),
                // Before the first Hello it is noise.
                Err(_) if guest.version.is_some() => {
                    guest.start_over(domain, "something else wrote on its line", &mut outs);
                }
                Err(_) => {}
            }
        }
        outs
    }

    /// Kills what a client left behind.
    pub fn left(&mut self, client: ClientId) -> Vec<Out> {
        let mut outs = Vec::new();
        for (domain, guest) in &mut self.guests {
            let commands = guest.commands.iter_mut();
            for (&id, command) in commands.filter(|(_, c)| c.client == Some(client)) {
                command.client = None;
                let bytes = std::mem::take(&mut command.under_way);
                // With room for the rest of its output, so that it can be told to have ended.
                for message in [ToAgent::Signal { id, signal: KILL }, ToAgent::Taken { id, bytes }]
                {
                    let bytes = guest.encoder.encode(&message).to_vec();
                    outs.push(Out::Guest { domain: domain.clone(), bytes });
                }
            }
        }
        outs
    }

    /// A guest has ended; it may start again.
    pub fn ended(&mut self, domain: &str) -> Vec<Out> {
        let mut outs = Vec::new();
        if let Some(guest) = self.guests.get_mut(domain) {
            guest.version = None;
            guest.reader = Reader::default();
            guest.lose(domain, "the guest has ended", &mut outs);
        }
        outs
    }
}

impl Guest {
    fn add(&mut self, client: ClientId, own: u32) -> u32 {
        while self.commands.contains_key(&self.next) {
            self.next = self.next.wrapping_add(1);
        }
        let id = self.next;
        self.next = self.next.wrapping_add(1);
        self.commands.insert(id, Command { client: Some(client), own, under_way: 0 });
        id
    }

    fn find(&self, client: ClientId, own: u32) -> Option<u32> {
        let mut commands = self.commands.iter();
        commands.find(|(_, c)| c.client == Some(client) && c.own == own).map(|(id, _)| *id)
    }

    fn take(&mut self, domain: &str, mut message: FromAgent, outs: &mut Vec<Out>) {
        if let FromAgent::Hello { version } = message {
            self.lose(domain, "the agent began anew", outs);
            self.version = Some(version);
            self.encoder = Encoder::default();
            self.clock_questions = 0;
            let state = match version {
                VERSION => AgentState::Ready,
                other => AgentState::OtherVersion(other),
            };
            outs.push(Out::All(Tell::AgentState { domain: domain.into(), state }));
            return;
        }
        let Some(command) = message.id_mut().and_then(|id| self.commands.get_mut(id)) else {
            return;
        };
        if let FromAgent::Output { id, bytes, .. } = &message {
            if command.client.is_none() {
                let taken = ToAgent::Taken { id: *id, bytes: bytes.len() as u32 };
                let bytes = self.encoder.encode(&taken).to_vec();
                return outs.push(Out::Guest { domain: domain.into(), bytes });
            }
            command.under_way = command.under_way.saturating_add(bytes.len() as u32);
            if command.under_way > OUTPUT_WINDOW {
                return self.start_over(domain, "it sent more than there was room for", outs);
            }
        }
        let (client, own) = (command.client, command.own);
        let is_end = matches!(message, FromAgent::Ended { .. } | FromAgent::Refused { .. });
        if let Some(place) = message.id_mut() {
            let id = std::mem::replace(place, own);
            if is_end {
                self.commands.remove(&id);
            }
        }
        if let Some(client) = client {
            outs.push(Out::Client(client, Tell::Agent { domain: domain.into(), message }));
        }
    }

    /// Answers an agent of this version, a few times after each Hello: more would only be
    /// a way to keep the host busy.
    fn tell_time(
        &mut self,
        domain: &str,
        question: u32,
        clock: Option<WallClock>,
        outs: &mut Vec<Out>,
    ) {
        if let Some(clock) = clock
            && self.version == Some(VERSION)
            && self.clock_questions < CLOCK_QUESTIONS
        {
            self.clock_questions += 1;
            let told = ToAgent::Clock { question, unix_ns: clock() };
            let bytes = self.encoder.encode(&told).to_vec();
            outs.push(Out::Guest { domain: domain.into(), bytes });
        }
    }

    /// All commands are lost; asks the agent to kill them and to begin anew.
    fn start_over(&mut self, domain: &str, why: &str, outs: &mut Vec<Out>) {
        self.version = None;
        self.lose(domain, why, outs);
        let bytes = self.encoder.restart(&ToAgent::Reset).to_vec();
        outs.push(Out::Guest { domain: domain.into(), bytes });
    }

    fn lose(&mut self, domain: &str, why: &str, outs: &mut Vec<Out>) {
        for (_, Command { client, own, .. }) in std::mem::take(&mut self.commands) {
            let lost = Tell::AgentLost { domain: domain.into(), id: own, why: why.into() };
            outs.extend(client.map(|client| Out::Client(client, lost)));
        }
    }
}

impl Agents {
    /// As [`Agents::ask`], for whatever a client asks of agents; `Err` gives back what is
    /// not for them.
    pub fn answer(&mut self, client: ClientId, ask: Ask) -> Result<Vec<Out>, Ask> {
        match ask {
            Ask::Agent { domain, message } => Ok(self.ask(client, domain, message)),
            Ask::AgentState { domain } => {
                let state = self.state(&domain);
                Ok(vec![Out::Client(client, Tell::AgentState { domain, state })])
            }
            other => Err(other),
        }
    }
}

#[cfg(test)]
mod tests;
