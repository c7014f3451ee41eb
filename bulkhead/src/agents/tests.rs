//! Many clients, one line, and a guest that may say anything.

use super::*;
use bulkhead_link::agent::{End, Fault, Stream};
use proptest::prelude::*;

/// The agent's side of the line.
#[derive(Default)]
struct Peer {
    encoder: Encoder,
    reader: Reader<ToAgent>,
}

impl Peer {
    fn hello(&mut self) -> Vec<u8> {
        self.encoder.restart(&FromAgent::Hello { version: VERSION }).to_vec()
    }

    /// What the host tool says to this agent among `outs`.
    fn hears(&mut self, outs: &[Out]) -> Vec<std::result::Result<ToAgent, Fault>> {
        let mut heard = Vec::new();
        for out in outs {
            if let Out::Guest { domain, bytes } = out {
                assert_eq!(domain, "g");
                let mut bytes = &bytes[..];
                while let Some(found) = self.reader.next(&mut bytes) {
                    heard.push(found);
                }
            }
        }
        heard
    }
}

/// A guest `g` whose agent has said Hello.
fn ready() -> (Agents, Peer) {
    let (mut agents, mut peer) = (Agents::new(["g".to_owned()], None), Peer::default());
    let outs = agents.heard("g", &peer.hello());
    let state = AgentState::Ready;
    assert_eq!(outs, [Out::All(Tell::AgentState { domain: "g".into(), state })]);
    (agents, peer)
}

fn start(id: u32) -> ToAgent {
    ToAgent::Start { id, argv: vec![b"true".to_vec()], input: false }
}

fn started(heard: &[std::result::Result<ToAgent, Fault>]) -> u32 {
    match heard {
        [Ok(ToAgent::Start { id, .. })] => *id,
        other => panic!("{other:?}"),
    }
}

fn output(id: u32, count: usize) -> FromAgent {
    FromAgent::Output { id, stream: Stream::Stdout, bytes: vec![b'x'; count] }
}

fn to(client: ClientId, message: FromAgent) -> Out {
    Out::Client(client, Tell::Agent { domain: "g".into(), message })
}

#[test]
fn commands_of_two_clients_with_one_number_are_kept_apart() {
    let (mut agents, mut peer) = ready();
    let one = started(&peer.hears(&agents.ask(1, "g".into(), start(1))));
    let two = started(&peer.hears(&agents.ask(2, "g".into(), start(1))));
    assert_ne!(one, two);
    let outs = agents.heard("g", peer.encoder.encode(&output(two, 3)));
    assert_eq!(outs, [to(2, output(1, 3))]);
    let end = |id| FromAgent::Ended { id, end: End::Exited(0) };
    let outs = agents.heard("g", peer.encoder.encode(&end(one)));
    assert_eq!(outs, [to(1, end(1))]);
    // It is over for the first client, and not for the second.
    assert_eq!(agents.ask(1, "g".into(), ToAgent::InputEnd { id: 1 }), []);
    assert_eq!(
        peer.hears(&agents.ask(2, "g".into(), ToAgent::InputEnd { id: 1 })),
        [Ok(ToAgent::InputEnd { id: two })]
    );
}

#[test]
fn a_guest_without_an_agent_is_told_from_one_that_is_not_up_yet() {
    let mut agents = Agents::new(["g".to_owned()], None);
    for (domain, state) in [("g", AgentState::Silent), ("other", AgentState::None)] {
        let told = Tell::AgentState { domain: domain.into(), state };
        assert_eq!(agents.ask(5, domain.into(), start(1)), [Out::Client(5, told)]);
    }
    let mut encoder = Encoder::default();
    agents.heard("g", encoder.encode(&FromAgent::Hello { version: 77 }));
    assert_eq!(agents.state("g"), AgentState::OtherVersion(77));
    agents.ended("g");
    assert_eq!(agents.state("g"), AgentState::Silent);
}

#[test]
fn what_a_client_leaves_behind_is_killed_and_drained() {
    let (mut agents, mut peer) = ready();
    let id = started(&peer.hears(&agents.ask(1, "g".into(), start(1))));
    agents.heard("g", peer.encoder.encode(&output(id, 1000)));
    assert_eq!(
        peer.hears(&agents.left(1)),
        [Ok(ToAgent::Signal { id, signal: 9 }), Ok(ToAgent::Taken { id, bytes: 1000 })]
    );
    for _ in 0..40 {
        let outs = agents.heard("g", peer.encoder.encode(&output(id, 4096)));
        assert_eq!(peer.hears(&outs), [Ok(ToAgent::Taken { id, bytes: 4096 })]);
    }
    let end = FromAgent::Ended { id, end: End::Signalled(9) };
    assert_eq!(agents.heard("g", peer.encoder.encode(&end)), []);
    assert!(agents.guests["g"].commands.is_empty());
}

#[test]
fn a_guest_that_sends_more_than_its_window_loses_its_commands() {
    let (mut agents, mut peer) = ready();
    let id = started(&peer.hears(&agents.ask(1, "g".into(), start(1))));
    let full = output(id, OUTPUT_WINDOW as usize);
    assert_eq!(agents.heard("g", peer.encoder.encode(&full)).len(), 1);
    let outs = agents.heard("g", peer.encoder.encode(&output(id, 1)));
    assert!(matches!(&outs[0], Out::Client(1, Tell::AgentLost { id: 1, .. })), "{outs:?}");
    assert_eq!(peer.hears(&outs), [Ok(ToAgent::Reset)]);
    assert_eq!(agents.state("g"), AgentState::Silent);
    agents.heard("g", &peer.hello());
    assert_eq!(started(&peer.hears(&agents.ask(1, "g".into(), start(2)))), id + 1);
}

#[test]
fn a_window_that_is_taken_is_open_again() {
    let (mut agents, mut peer) = ready();
    let id = started(&peer.hears(&agents.ask(1, "g".into(), start(1))));
    for _ in 0..10 {
        let full = output(id, OUTPUT_WINDOW as usize);
        let outs = agents.heard("g", peer.encoder.encode(&full));
        assert_eq!(outs, [to(1, output(1, OUTPUT_WINDOW as usize))]);
        agents.ask(1, "g".into(), ToAgent::Taken { id: 1, bytes: OUTPUT_WINDOW });
    }
}

#[test]
fn somebody_else_on_the_line_is_noticed_once() {
    let (mut agents, mut peer) = ready();
    agents.ask(1, "g".into(), start(1));
    let outs = agents.heard("g", b"\0login: \0login: \0");
    assert!(matches!(&outs[0], Out::Client(1, Tell::AgentLost { .. })), "{outs:?}");
    assert_eq!(outs.len(), 2);
    assert_eq!(agents.heard("g", b"\0login: \0"), []);
    agents.heard("g", &peer.hello());
    assert_eq!(agents.state("g"), AgentState::Ready);
}

#[test]
fn more_commands_than_there_is_room_for_are_refused_here() {
    let (mut agents, mut peer) = ready();
    for id in 0..MOST_COMMANDS as u32 {
        started(&peer.hears(&agents.ask(1, "g".into(), start(id))));
    }
    let outs = agents.ask(2, "g".into(), start(5));
    let [Out::Client(2, Tell::Agent { message, .. })] = &outs[..] else { panic!("{outs:?}") };
    assert!(matches!(message, FromAgent::Refused { id: 5, .. }));
}

#[test]
fn a_client_may_not_reset_what_others_use() {
    let (mut agents, _) = ready();
    assert_eq!(agents.ask(1, "g".into(), ToAgent::Reset), []);
}

fn asking(question: u32) -> FromAgent {
    FromAgent::ClockWanted { question }
}

#[test]
fn an_agent_is_told_the_time_a_few_times_after_each_hello() {
    let mut agents = Agents::new(["g".to_owned()], Some(|| 42));
    let mut peer = Peer::default();
    for _ in 0..2 {
        agents.heard("g", &peer.hello());
        peer.reader = Reader::default();
        for question in 0..CLOCK_QUESTIONS {
            let outs = agents.heard("g", peer.encoder.encode(&asking(question)));
            assert_eq!(peer.hears(&outs), [Ok(ToAgent::Clock { question, unix_ns: 42 })]);
        }
        assert_eq!(agents.heard("g", peer.encoder.encode(&asking(99))), []);
        started(&peer.hears(&agents.ask(1, "g".into(), start(1))));
    }
}

#[test]
fn an_agent_is_not_told_the_time_where_guests_are_not_to_know_it() {
    let (mut agents, mut peer) = ready();
    assert_eq!(agents.heard("g", peer.encoder.encode(&asking(1))), []);
}

#[test]
fn an_agent_of_another_version_is_not_told_the_time() {
    let mut agents = Agents::new(["g".to_owned()], Some(|| 42));
    let mut encoder = Encoder::default();
    agents.heard("g", encoder.restart(&FromAgent::Hello { version: VERSION + 1 }));
    assert_eq!(agents.heard("g", encoder.encode(&asking(1))), []);
}

#[test]
fn a_client_may_not_tell_a_guest_the_time() {
    let (mut agents, _) = ready();
    assert_eq!(agents.ask(1, "g".into(), ToAgent::Clock { question: 0, unix_ns: 1 }), []);
}

proptest! {
    #[test]
    fn whatever_a_guest_says_reaches_only_those_who_asked(
        noise in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..200), 1..20),
        ids in prop::collection::vec(0u32..4, 1..20),
    ) {
        let (mut agents, mut peer) = ready();
        agents.ask(1, "g".into(), start(1));
        for (noise, id) in noise.iter().zip(ids) {
            for bytes in [noise.clone(), peer.encoder.encode(&output(id, 10)).to_vec(), peer.hello()] {
                for out in agents.heard("g", &bytes) {
                    let is_ours = matches!(&out, Out::Client(1, _) | Out::All(_) | Out::Guest { .. });
                    prop_assert!(is_ours, "{out:?}");
                }
            }
        }
        prop_assert_eq!(agents.state("g"), AgentState::Ready);
    }
}
