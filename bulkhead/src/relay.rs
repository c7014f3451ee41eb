//! Lets other terminals talk to Dom0 and to guests' agents through the run that holds the
//! link: requests are renumbered on their way in, replies go back to who asked, events go
//! to everybody.

use crate::{
    agents::{Agents, ClientId, Out},
    wire::{self, Ask, Sender, Tell},
};
use bulkhead_link::{Event, FromDom0, REBOOTING, Reply, Request, ToDom0};
use std::{
    collections::{BTreeMap, VecDeque},
    io,
    os::unix::net::{UnixListener, UnixStream},
    path::Path,
    sync::mpsc,
};

/// What a new terminal is shown of each console's past.
const PAST_BYTES: usize = 16 * 1024;

/// A message from a client, or its end.
pub type FromClient = (ClientId, Option<Ask>);

/// Starts to read a client's connection.
type Open = Box<dyn Fn(ClientId, UnixStream) -> io::Result<Sender> + Send>;

/// The clients of a run.
pub struct Relay {
    listener: UnixListener,
    open: Open,
    clients: BTreeMap<ClientId, Sender>,
    /// Requests on their way: number towards Dom0, who asked, and their own number.
    asked: BTreeMap<u32, (ClientId, u32)>,
    past: BTreeMap<String, VecDeque<u8>>,
    agents: Agents,
    next_client: ClientId,
}

impl Relay {
    /// Listens at a socket. What clients say goes to `inbox`, whose reader passes it to
    /// [`Relay::requests`].
    ///
    /// # Errors
    /// If it cannot be made.
    pub fn listen<T>(socket: &Path, inbox: mpsc::Sender<T>, agents: Agents) -> io::Result<Self>
    where
        T: From<FromClient> + Send + 'static,
    {
        let listener = UnixListener::bind(socket)?;
        listener.set_nonblocking(true)?;
        let open = move |id, stream| {
            let inbox = inbox.clone();
            wire::split(stream, move |m| inbox.send((id, m).into()).is_ok())
        };
        Ok(Self {
            listener,
            open: Box::new(open),
            clients: BTreeMap::new(),
            asked: BTreeMap::new(),
            past: BTreeMap::new(),
            agents,
            next_client: 0,
        })
    }

    /// Takes new clients in.
    pub fn accept(&mut self) {
        while let Ok((stream, _)) = self.listener.accept() {
            let id = self.next_client;
            self.next_client += 1;
            let opened = stream.set_nonblocking(false).and_then(|()| (self.open)(id, stream));
            if let Ok(mut sender) = opened
                && self.show_past(&mut sender).is_ok()
            {
                self.clients.insert(id, sender);
            }
        }
    }

    /// What a client's message asks of Dom0, renumbered from `next` on.
    pub fn requests(&mut self, (client, message): FromClient, next: &mut u32) -> Vec<ToDom0> {
        let Some(ask) = message else {
            self.clients.remove(&client);
            let outs = self.agents.left(client);
            return self.carry_out(outs, next);
        };
        match self.agents.answer(client, ask) {
            Ok(outs) => self.carry_out(outs, next),
            Err(Ask::Dom0(ToDom0 { number, request })) => {
                let request = numbered(request, next);
                self.asked.insert(request.number, (client, number));
                vec![request]
            }
            Err(_) => Vec::new(),
        }
    }

    fn show_past(&self, sender: &mut Sender) -> io::Result<()> {
        for (domain, bytes) in &self.past {
            let bytes = bytes.iter().copied().collect();
            let event = Event::Console { domain: domain.clone(), bytes };
            sender.send(&Tell::Dom0(FromDom0::Event(event)))?;
        }
        Ok(())
    }

    /// Passes a message of Dom0 on to whom it concerns; gives what Dom0 is to be asked
    /// because of it.
    pub fn pass(&mut self, message: &FromDom0, next: &mut u32) -> Vec<ToDom0> {
        let mut outs = Vec::new();
        match message {
            FromDom0::Reply { number, reply } => self.answer(*number, reply),
            FromDom0::Event(Event::Agent { domain, bytes }) => {
                outs = self.agents.heard(domain, bytes);
            }
            FromDom0::Event(event) => {
                match event {
                    Event::Console { domain, bytes } => {
                        remember(self.past.entry(domain.clone()).or_default(), bytes);
                    }
                    Event::Ended { domain, .. } => outs = self.agents.ended(domain),
                    Event::Progress { domain, step } if step == REBOOTING => {
                        outs = self.agents.ended(domain);
                    }
                    _ => {}
                }
                self.tell_all(&Tell::Dom0(message.clone()));
            }
        }
        self.carry_out(outs, next)
    }

    fn carry_out(&mut self, outs: Vec<Out>, next: &mut u32) -> Vec<ToDom0> {
        let mut requests = Vec::new();
        for out in outs {
            match out {
                Out::Guest { domain, bytes } => {
                    requests.push(numbered(Request::AgentInput { domain, bytes }, next));
                }
                Out::Client(client, told) => self.tell(client, &told),
                Out::All(told) => self.tell_all(&told),
            }
        }
        requests
    }

    fn tell_all(&mut self, told: &Tell) {
        let clients: Vec<ClientId> = self.clients.keys().copied().collect();
        clients.into_iter().for_each(|client| self.tell(client, told));
    }

    fn tell(&mut self, client: ClientId, told: &Tell) {
        if let Some(sender) = self.clients.get_mut(&client)
            && sender.send(told).is_err()
        {
            // Its reading thread ends, which tells that it has left.
            sender.close();
            self.clients.remove(&client);
        }
    }

    fn answer(&mut self, number: u32, reply: &Reply) {
        let Some((client, own)) = self.asked.remove(&number) else {
            return;
        };
        let answer = FromDom0::Reply { number: own, reply: reply.clone() };
        self.tell(client, &Tell::Dom0(answer));
    }
}

fn numbered(request: Request, next: &mut u32) -> ToDom0 {
    *next += 1;
    ToDom0 { number: *next, request }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.clients.values().for_each(Sender::close);
    }
}

fn remember(past: &mut VecDeque<u8>, bytes: &[u8]) {
    past.extend(bytes);
    let over = past.len().saturating_sub(PAST_BYTES);
    past.drain(..over);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::Client;
    use bulkhead_link::{
        Request,
        agent::{Encoder, FromAgent, ToAgent, VERSION},
    };
    use std::time::{Duration, Instant};

    const LIMIT: Duration = Duration::from_secs(20);

    /// A relay that listens, and what its clients say.
    fn listening(socket: &Path) -> (Relay, mpsc::Receiver<FromClient>) {
        let (give, inbox) = mpsc::channel();
        let agents = Agents::new(["g".to_owned()], Some(|| 42));
        (Relay::listen(socket, give, agents).expect("listens"), inbox)
    }

    /// Passes on what clients say until there are `count` requests.
    fn wait_for(
        relay: &mut Relay,
        inbox: &mpsc::Receiver<FromClient>,
        next: &mut u32,
        count: usize,
    ) -> Vec<ToDom0> {
        let (mut found, deadline) = (Vec::new(), Instant::now() + LIMIT);
        while found.len() < count && Instant::now() < deadline {
            relay.accept();
            if let Ok(said) = inbox.recv_timeout(Duration::from_millis(5)) {
                found.extend(relay.requests(said, next));
            }
        }
        found
    }

    #[test]
    fn each_client_gets_the_reply_to_its_own_request() {
        let folder = tempfile::tempdir().expect("a folder");
        let socket = folder.path().join("s");
        let (mut relay, inbox) = listening(&socket);
        let mut next = 100;
        let mut one = Client::connect(&socket).expect("connects");
        let mut two = Client::connect(&socket).expect("connects");
        let kill = |domain: &str| Request::Kill { domain: domain.into() };
        assert_eq!(one.send(kill("a")).expect("sent"), two.send(kill("b")).expect("sent"));
        for request in wait_for(&mut relay, &inbox, &mut next, 2) {
            assert!(request.number > 100);
            let Request::Kill { domain } = request.request else { panic!("a kill") };
            let reply = Reply::Error(domain);
            relay.pass(&FromDom0::Reply { number: request.number, reply }, &mut next);
        }
        for (client, name) in [(&mut one, "a"), (&mut two, "b")] {
            let got = client.receive(LIMIT).expect("alive");
            assert_eq!(got, Some(FromDom0::Reply { number: 1, reply: Reply::Error(name.into()) }));
        }
    }

    #[test]
    fn an_agent_that_asks_for_the_time_is_answered_by_way_of_dom0() {
        let folder = tempfile::tempdir().expect("a folder");
        let (mut relay, _inbox) = listening(&folder.path().join("s"));
        let (mut encoder, mut next) = (Encoder::default(), 7);
        let mut bytes = encoder.restart(&FromAgent::Hello { version: VERSION }).to_vec();
        bytes.extend(encoder.encode(&FromAgent::ClockWanted { question: 3 }));
        let event = Event::Agent { domain: "g".into(), bytes };
        let answer = ToAgent::Clock { question: 3, unix_ns: 42 };
        let bytes = Encoder::default().encode(&answer).to_vec();
        let request = Request::AgentInput { domain: "g".into(), bytes };
        let asked = relay.pass(&FromDom0::Event(event), &mut next);
        assert_eq!(asked, [ToDom0 { number: 8, request }]);
    }

    #[test]
    fn a_new_client_sees_the_end_of_what_was_printed_before_it_came() {
        let folder = tempfile::tempdir().expect("a folder");
        let socket = folder.path().join("s");
        let (mut relay, _inbox) = listening(&socket);
        let bytes = vec![b'x'; PAST_BYTES + 5];
        let event = Event::Console { domain: "g".into(), bytes };
        relay.pass(&FromDom0::Event(event), &mut 0);
        let mut client = Client::connect(&socket).expect("connects");
        relay.accept();
        match client.receive(LIMIT).expect("alive") {
            Some(FromDom0::Event(Event::Console { bytes, .. })) => {
                assert_eq!(bytes.len(), PAST_BYTES)
            }
            other => panic!("{other:?}"),
        }
        drop(relay);
        assert!(client.receive(LIMIT).is_err(), "the end of the run is the end of its clients");
    }
}
