//! The control server's side of the link: requests in, replies and events out.
//! What the requests do to domains is behind [`Machine`]; the UART is not known here.

use crate::{uploads::ImagePart, wishes::Wish};
use alloc::{collections::VecDeque, format, string::String, vec::Vec};
use bulkhead_link::{
    Decoder, Event, FromDom0, Listing, NewImage, Reply, Request, Sched, ToDom0, VERSION, encode,
    injection::{Injection, Signs},
};

/// What requests ask for. Errors are for a person to read.
pub trait Machine {
    /// Everything there is to know.
    fn list(&mut self) -> Listing;
    /// Destroys a domain.
    fn kill(&mut self, domain: &str) -> Result<(), String>;
    /// Crashes a domain at whatever instruction it is.
    fn crash(&mut self, domain: &str) -> Result<(), String>;
    /// Restarts a driver domain under its guests.
    fn restart(&mut self, domain: &str) -> Result<(), String>;
    /// Has a driver domain go wrong.
    fn inject(&mut self, domain: &str, injection: &Injection) -> Result<(), String>;
    /// How a driver domain is.
    fn signs(&mut self, domain: &str) -> Result<Signs, String>;
    /// Takes an injection back.
    fn disarm(&mut self, domain: &str) -> Result<(), String>;
    /// Takes a part of an image in.
    fn image_part(&mut self, part: ImagePart) -> Result<(), String>;
    /// Restarts a driver domain with another image.
    fn update(&mut self, domain: &str, to: NewImage) -> Result<(), String>;
    /// Asks a domain's kernel for something.
    fn ask(&mut self, domain: &str, wish: Wish) -> Result<(), String>;
    /// Takes over the host's wall clock, ns since 1970.
    fn set_wall_clock(&mut self, unix_ns: u64);
    /// Stops a domain's vCPUs.
    fn pause(&mut self, domain: &str) -> Result<(), String>;
    /// Lets them run again.
    fn unpause(&mut self, domain: &str) -> Result<(), String>;
    /// Changes scheduling parameters.
    fn set_sched(&mut self, domain: &str, sched: Sched) -> Result<(), String>;
    /// Types on a domain's console; gives the bytes taken.
    fn console_input(&mut self, domain: &str, bytes: &[u8]) -> Result<usize, String>;
    /// Passes bytes on to a domain's agent.
    fn agent_input(&mut self, domain: &str, bytes: &[u8]) -> Result<(), String>;
    /// Destroys all domains; the machine ends once the reply is out.
    fn shutdown(&mut self);
}

/// Bytes waiting to leave beyond which consoles have to wait.
const CONSOLE_LIMIT: usize = 16 << 10;

/// Messages on their way to the host tool. Replies and events are never dropped;
/// their number is bounded by requests and domains. Consoles are held back instead,
/// in their rings.
#[derive(Debug, Default)]
pub struct Outbox {
    bytes: VecDeque<u8>,
}

impl Outbox {
    /// Queues an event.
    pub fn event(&mut self, event: Event) {
        self.bytes.extend(encode(&FromDom0::Event(event)));
    }

    /// Queues a reply.
    pub fn reply(&mut self, number: u32, reply: Reply) {
        self.bytes.extend(encode(&FromDom0::Reply { number, reply }));
    }

    /// Queues all that is in `other`.
    pub fn append(&mut self, mut other: Outbox) {
        self.bytes.append(&mut other.bytes);
    }

    /// Bytes of console output that may be queued now.
    pub fn console_room(&self) -> usize {
        CONSOLE_LIMIT.saturating_sub(self.bytes.len())
    }

    /// Whether all is gone.
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// The next bytes for the wire, some of them; they stay until they are taken.
    pub fn front(&self) -> &[u8] {
        self.bytes.as_slices().0
    }

    /// Takes the next bytes, at most `max`, off for the wire.
    pub fn take(&mut self, max: usize) -> Vec<u8> {
        let count = self.bytes.len().min(max);
        self.bytes.drain(..count).collect()
    }

    /// Drops the next `count` bytes, which are on the wire.
    pub fn sent(&mut self, count: usize) {
        self.bytes.drain(..count.min(self.bytes.len()));
    }
}

/// Reads requests from the wire.
#[derive(Default)]
pub struct Server {
    decoder: Decoder,
}

impl Server {
    /// Takes one byte; carries out the request that it completes. Noise is answered by a
    /// log line.
    pub fn push(&mut self, byte: u8, machine: &mut impl Machine, outbox: &mut Outbox) {
        match self.decoder.push::<ToDom0>(byte) {
            None => {}
            Some(Err(bytes)) => outbox.event(Event::Log {
                line: format!("dropped {bytes} bytes from the control link that are no request"),
            }),
            Some(Ok(ToDom0 { number, request })) => {
                let reply = answer(request, machine);
                outbox.reply(number, reply);
            }
        }
    }
}

fn answer(request: Request, machine: &mut impl Machine) -> Reply {
    let done = match request {
        Request::Hello { version } if version == VERSION => {
            return Reply::Hello { version: VERSION };
        }
        Request::Hello { version } => {
            Err(format!("the control link is version {VERSION} here and {version} there"))
        }
        Request::List => return Reply::List(machine.list()),
        Request::Kill { domain } => machine.kill(&domain),
        Request::Crash { domain } => machine.crash(&domain),
        Request::Restart { domain } => machine.restart(&domain),
        Request::Inject { domain, injection } => machine.inject(&domain, &injection),
        Request::Disarm { domain } => machine.disarm(&domain),
        Request::Signs { domain } => match machine.signs(&domain) {
            Ok(signs) => return Reply::Signs(signs),
            Err(text) => Err(text),
        },
        Request::ImagePart { upload, total, offset, bytes } => {
            machine.image_part(ImagePart { upload, total, offset, bytes })
        }
        Request::Update { domain, to } => machine.update(&domain, to),
        Request::PowerOff { domain } => machine.ask(&domain, Wish::PowerOff),
        Request::Reboot { domain } => machine.ask(&domain, Wish::Reboot),
        Request::Sysrq { domain, key } => machine.ask(&domain, Wish::Sysrq(key)),
        Request::SetMemory { domain, memory_kib } => machine.ask(&domain, Wish::Memory(memory_kib)),
        Request::SetWallClock { unix_ns } => {
            machine.set_wall_clock(unix_ns);
            Ok(())
        }
        Request::Pause { domain } => machine.pause(&domain),
        Request::Unpause { domain } => machine.unpause(&domain),
        Request::SetSched { domain, sched } => {
            check_sched(&sched).and_then(|()| machine.set_sched(&domain, sched))
        }
        Request::ConsoleInput { domain, bytes } => match machine.console_input(&domain, &bytes) {
            Ok(taken) => return Reply::Taken { bytes: taken as u32 },
            Err(text) => Err(text),
        },
        Request::AgentInput { domain, bytes } => machine.agent_input(&domain, &bytes),
        Request::Shutdown => {
            machine.shutdown();
            Ok(())
        }
    };
    match done {
        Ok(()) => Reply::Done,
        Err(text) => Reply::Error(text),
    }
}

/// The limits of `bulkhead_abi::control::SchedParams`.
fn check_sched(sched: &Sched) -> Result<(), String> {
    match sched.weight {
        1..=65535 => Ok(()),
        weight => Err(format!("weight {weight} is not within 1 to 65535")),
    }
}

/// "no domain NAME".
pub fn no_such_domain(name: &str) -> String {
    format!("there is no domain {name:?}")
}

/// "domain NAME has ended".
pub fn has_ended(name: &str) -> String {
    format!("domain {name:?} has ended")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::vec;

    #[derive(Default)]
    struct Recorder(Vec<String>);

    impl Recorder {
        fn note(&mut self, what: &str, domain: &str) -> Result<(), String> {
            self.0.push(format!("{what} {domain}"));
            match domain {
                "ghost" => Err(no_such_domain(domain)),
                _ => Ok(()),
            }
        }
    }

    impl Machine for Recorder {
        fn list(&mut self) -> Listing {
            self.0.push("list".into());
            Listing::default()
        }
        fn kill(&mut self, domain: &str) -> Result<(), String> {
            self.note("kill", domain)
        }
        fn crash(&mut self, domain: &str) -> Result<(), String> {
            self.note("crash", domain)
        }
        fn restart(&mut self, domain: &str) -> Result<(), String> {
            self.note("restart", domain)
        }
        fn inject(&mut self, domain: &str, injection: &Injection) -> Result<(), String> {
            self.note(&format!("{injection:?}"), domain)
        }
        fn signs(&mut self, domain: &str) -> Result<Signs, String> {
            self.note("signs", domain).map(|()| Signs::default())
        }
        fn disarm(&mut self, domain: &str) -> Result<(), String> {
            self.note("disarm", domain)
        }
        fn image_part(&mut self, part: ImagePart) -> Result<(), String> {
            self.note(&format!("part {} of {}", part.bytes.len(), part.total), "")
        }
        fn update(&mut self, domain: &str, to: NewImage) -> Result<(), String> {
            self.note(&format!("{to:?}"), domain)
        }
        fn ask(&mut self, domain: &str, wish: Wish) -> Result<(), String> {
            self.note(&format!("{wish:?}"), domain)
        }
        fn set_wall_clock(&mut self, unix_ns: u64) {
            self.0.push(format!("clock {unix_ns}"));
        }
        fn pause(&mut self, domain: &str) -> Result<(), String> {
            self.note("pause", domain)
        }
        fn unpause(&mut self, domain: &str) -> Result<(), String> {
            self.note("unpause", domain)
        }
        fn set_sched(&mut self, domain: &str, _: Sched) -> Result<(), String> {
            self.note("sched", domain)
        }
        fn console_input(&mut self, domain: &str, bytes: &[u8]) -> Result<usize, String> {
            self.note(&format!("input {}", bytes.len()), domain).map(|()| bytes.len() - 1)
        }
        fn agent_input(&mut self, domain: &str, bytes: &[u8]) -> Result<(), String> {
            self.note(&format!("agent {}", bytes.len()), domain)
        }
        fn shutdown(&mut self) {
            self.0.push("shutdown".into());
        }
    }

    fn ask(requests: Vec<Request>) -> (Vec<String>, Vec<FromDom0>) {
        let (mut server, mut recorder, mut outbox) = Default::default();
        for (number, request) in (10..).zip(requests) {
            for byte in encode(&ToDom0 { number, request }) {
                Server::push(&mut server, byte, &mut recorder, &mut outbox);
            }
        }
        let Recorder(calls) = recorder;
        (calls, decode(&mut outbox))
    }

    fn decode(outbox: &mut Outbox) -> Vec<FromDom0> {
        let mut decoder = Decoder::default();
        let bytes = outbox.take(usize::MAX).into_iter();
        bytes.filter_map(|b| decoder.push(b)).map(Result::unwrap).collect()
    }

    fn reply(number: u32, reply: Reply) -> FromDom0 {
        FromDom0::Reply { number, reply }
    }

    #[test]
    fn each_request_reaches_the_machine_and_is_answered() {
        let name = |n: &str| String::from(n);
        let (calls, replies) = ask(vec![
            Request::Hello { version: VERSION },
            Request::List,
            Request::Kill { domain: name("a") },
            Request::Restart { domain: name("r") },
            Request::PowerOff { domain: name("ghost") },
            Request::Pause { domain: name("b") },
            Request::Unpause { domain: name("b") },
            Request::ConsoleInput { domain: name("c"), bytes: vec![1, 2] },
            Request::SetSched { domain: name("d"), sched: Sched::default() },
            Request::SetSched { domain: name("d"), sched: Sched { weight: 0, ..Sched::default() } },
            Request::Shutdown,
            Request::Reboot { domain: name("e") },
            Request::Sysrq { domain: name("e"), key: b's' },
            Request::SetMemory { domain: name("e"), memory_kib: 7 },
            Request::SetWallClock { unix_ns: 8 },
            Request::Crash { domain: name("c") },
            Request::Inject { domain: name("r"), injection: Injection::Kill },
            Request::Disarm { domain: name("r") },
            Request::Signs { domain: name("r") },
            Request::ImagePart { upload: 1, total: 9, offset: 0, bytes: vec![1, 2] },
            Request::Update { domain: name("f"), to: NewImage::Original },
        ]);
        assert_eq!(
            calls,
            [
                "list",
                "kill a",
                "restart r",
                "PowerOff ghost",
                "pause b",
                "unpause b",
                "input 2 c",
                "sched d",
                "shutdown",
                "Reboot e",
                "Sysrq(115) e",
                "Memory(7) e",
                "clock 8",
                "crash c",
                "Kill r",
                "disarm r",
                "signs r",
                "part 2 of 9 ",
                "Original f"
            ]
        );
        assert_eq!(replies[0], reply(10, Reply::Hello { version: VERSION }));
        assert_eq!(replies[1], reply(11, Reply::List(Listing::default())));
        assert_eq!(replies[4], reply(14, Reply::Error("there is no domain \"ghost\"".into())));
        assert_eq!(replies[9], reply(19, Reply::Error("weight 0 is not within 1 to 65535".into())));
        assert_eq!(replies[10], reply(20, Reply::Done));
        assert_eq!(replies[18], reply(28, Reply::Signs(Signs::default())));
        assert_eq!(replies.len(), 21);
    }

    #[test]
    fn another_version_is_refused() {
        let (_, replies) = ask(vec![Request::Hello { version: 99 }]);
        assert!(
            matches!(&replies[0], FromDom0::Reply { reply: Reply::Error(text), .. } if text.contains("99"))
        );
    }

    #[test]
    fn consoles_wait_for_a_full_wire_and_events_do_not() {
        let mut outbox = Outbox::default();
        let mut rounds = 0;
        while outbox.console_room() > 0 {
            let bytes = vec![b'x'; outbox.console_room().min(1000)];
            outbox.event(Event::Console { domain: "a".into(), bytes });
            rounds += 1;
            assert!(rounds < 100);
        }
        outbox.event(Event::Ready { version: 1 });
        let all = decode(&mut outbox);
        assert_eq!(all.last(), Some(&FromDom0::Event(Event::Ready { version: 1 })));
        assert_eq!(all.len(), rounds + 1);
        assert!(outbox.console_room() > 0 && outbox.is_empty());
    }

    proptest! {
        #[test]
        fn noise_between_requests_is_reported_and_survived(noise in prop::collection::vec(any::<u8>(), 0..300)) {
            let (mut server, mut recorder, mut outbox) = (Server::default(), Recorder::default(), Outbox::default());
            let good = encode(&ToDom0 { number: 1, request: Request::Kill { domain: "z".into() } });
            for byte in noise.into_iter().chain([0]).chain(good) {
                server.push(byte, &mut recorder, &mut outbox);
            }
            prop_assert_eq!(recorder.0.last().map(String::as_str), Some("kill z"));
        }
    }
}
