//! Lets other terminals talk to Dom0 through the run that holds the link: requests are
//! renumbered on their way in, replies go back to who asked, events go to everybody.

use crate::wire::{self, Sender};
use bulkhead_link::{Event, FromDom0, Reply, ToDom0};
use std::{
    collections::{BTreeMap, VecDeque},
    io,
    os::unix::net::UnixListener,
    path::Path,
    sync::mpsc,
};

/// What a new terminal is shown of each console's past.
const PAST_BYTES: usize = 16 * 1024;

/// Who asked: a client's number, or the tool itself.
type ClientId = u32;

/// A message from a client, or its end.
pub type FromClient = (ClientId, Option<ToDom0>);

/// The clients of a run.
#[derive(Debug)]
pub struct Relay {
    listener: UnixListener,
    inbox: mpsc::Receiver<FromClient>,
    give: mpsc::Sender<FromClient>,
    clients: BTreeMap<ClientId, Sender>,
    /// Requests on their way: number towards Dom0, who asked, and their own number.
    asked: BTreeMap<u32, (ClientId, u32)>,
    past: BTreeMap<String, VecDeque<u8>>,
    next_client: ClientId,
}

impl Relay {
    /// Listens at a socket.
    ///
    /// # Errors
    /// If it cannot be made.
    pub fn listen(socket: &Path) -> io::Result<Self> {
        let listener = UnixListener::bind(socket)?;
        listener.set_nonblocking(true)?;
        let (give, inbox) = mpsc::channel();
        Ok(Self {
            listener,
            inbox,
            give,
            clients: BTreeMap::new(),
            asked: BTreeMap::new(),
            past: BTreeMap::new(),
            next_client: 0,
        })
    }

    /// Takes new clients in and gives the requests that came, renumbered from `next` on.
    pub fn requests(&mut self, next: &mut u32) -> Vec<ToDom0> {
        while let Ok((stream, _)) = self.listener.accept() {
            let (id, give) = (self.next_client, self.give.clone());
            self.next_client += 1;
            let opened = stream
                .set_nonblocking(false)
                .and_then(|()| wire::split(stream, move |m| give.send((id, m)).is_ok()));
            if let Ok(mut sender) = opened
                && self.show_past(&mut sender).is_ok()
            {
                self.clients.insert(id, sender);
            }
        }
        let mut requests = Vec::new();
        while let Ok((client, message)) = self.inbox.try_recv() {
            let Some(ToDom0 { number, request }) = message else {
                self.clients.remove(&client);
                continue;
            };
            *next += 1;
            self.asked.insert(*next, (client, number));
            requests.push(ToDom0 { number: *next, request });
        }
        requests
    }

    fn show_past(&self, sender: &mut Sender) -> io::Result<()> {
        for (domain, bytes) in &self.past {
            let bytes = bytes.iter().copied().collect();
            let event = Event::Console { domain: domain.clone(), bytes };
            sender.send(&FromDom0::Event(event))?;
        }
        Ok(())
    }

    /// Passes a message of Dom0 on to whom it concerns.
    pub fn pass(&mut self, message: &FromDom0) {
        match message {
            FromDom0::Reply { number, reply } => self.answer(*number, reply),
            FromDom0::Event(event) => {
                if let Event::Console { domain, bytes } = event {
                    remember(self.past.entry(domain.clone()).or_default(), bytes);
                }
                self.clients.retain(|_, client| client.send(message).is_ok());
            }
        }
    }

    fn answer(&mut self, number: u32, reply: &Reply) {
        let Some((client, own)) = self.asked.remove(&number) else {
            return;
        };
        let answer = FromDom0::Reply { number: own, reply: reply.clone() };
        let sent = self.clients.get_mut(&client).map(|c| c.send(&answer));
        if let Some(Err(_)) = sent {
            self.clients.remove(&client);
        }
    }
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
    use bulkhead_link::Request;
    use std::time::{Duration, Instant};

    const LIMIT: Duration = Duration::from_secs(20);

    fn wait_for(relay: &mut Relay, next: &mut u32, count: usize) -> Vec<ToDom0> {
        let (mut found, deadline) = (Vec::new(), Instant::now() + LIMIT);
        while found.len() < count && Instant::now() < deadline {
            found.extend(relay.requests(next));
            std::thread::sleep(Duration::from_millis(5));
        }
        found
    }

    #[test]
    fn each_client_gets_the_reply_to_its_own_request() {
        let folder = tempfile::tempdir().expect("a folder");
        let socket = folder.path().join("s");
        let (mut relay, mut next) = (Relay::listen(&socket).expect("listens"), 100);
        let mut one = Client::connect(&socket).expect("connects");
        let mut two = Client::connect(&socket).expect("connects");
        let kill = |domain: &str| Request::Kill { domain: domain.into() };
        assert_eq!(one.send(kill("a")).expect("sent"), two.send(kill("b")).expect("sent"));
        for request in wait_for(&mut relay, &mut next, 2) {
            assert!(request.number > 100);
            let Request::Kill { domain } = request.request else { panic!("a kill") };
            relay.pass(&FromDom0::Reply { number: request.number, reply: Reply::Error(domain) });
        }
        for (client, name) in [(&mut one, "a"), (&mut two, "b")] {
            let got = client.receive(LIMIT).expect("alive");
            assert_eq!(got, Some(FromDom0::Reply { number: 1, reply: Reply::Error(name.into()) }));
        }
    }

    #[test]
    fn a_new_client_sees_the_end_of_what_was_printed_before_it_came() {
        let folder = tempfile::tempdir().expect("a folder");
        let socket = folder.path().join("s");
        let (mut relay, mut next) = (Relay::listen(&socket).expect("listens"), 0);
        let bytes = vec![b'x'; PAST_BYTES + 5];
        let event = Event::Console { domain: "g".into(), bytes };
        relay.pass(&FromDom0::Event(event));
        let mut client = Client::connect(&socket).expect("connects");
        relay.requests(&mut next);
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
