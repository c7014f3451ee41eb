//! The back end of guests' second consoles: connects what a front end offers in the
//! store, and moves bytes between its ring and the link. They are not looked at here.

use crate::world::{Handle, World};
use alloc::{
    format,
    string::{String, ToString},
};
use async_channel::{Receiver, Sender};
use bulkhead_abi::{DomId, Gref, Port, xs_wire};
use bulkhead_link::Event;
use core::time::Duration;
use dom0::{
    console::agent::{Line, Moved},
    devices::{self, AgentWish},
    shared::SharedPage,
};
use domain_rt::{
    event::{self, Channel},
    exec,
    grant::{self, GrantMapping},
    time,
};

/// Bytes in one event to the host tool.
const PIECE_BYTES: usize = 4096;
/// After a ring has moved, it is looked at again only after a while, and the guest's events
/// are not heard meanwhile. Linux signals every 256 bytes that it writes and every 16 that it
/// reads; a switch of domains each time costs more than the bytes do. The while is fitted to
/// the guest's speed, between these limits, so that a look finds half a ring.
const SHORTEST_WHILE: Duration = Duration::from_micros(100);
const LONGEST_WHILE: Duration = Duration::from_millis(2);
/// After so long without an event the guest's speed is not known any more.
const QUIET_NS: u64 = 10_000_000;
/// Bytes per look below which the while grows, and above which it shrinks.
const FEW_BYTES: usize = 512;
const MANY_BYTES: usize = 1536;

/// What the control domain keeps of a guest's second console.
pub struct Agent {
    name: String,
    line: Line,
    wake: Sender<()>,
    /// Dropping it ends the task, which has the page and the port.
    _task: exec::Task<()>,
}

/// The guest's page, and the port that goes with it.
struct End {
    page: GrantedPage,
    port: Channel,
}

impl End {
    fn connect(guest: DomId, gref: Gref, port: Port) -> Result<Self, String> {
        let page = grant::map_grants(guest, &[gref], false).map_err(|e| e.to_string())?;
        let port = event::bind_interdomain(guest, port).map_err(|e| format!("{port}: {e}"))?;
        Ok(Self { page: GrantedPage(page), port })
    }
}

/// A page that a guest has granted.
struct GrantedPage(GrantMapping);

impl SharedPage for GrantedPage {
    fn read_u32(&self, offset: usize) -> u32 {
        self.0.shared().load_u32(offset)
    }
    fn write_u32(&self, offset: usize, value: u32) {
        self.0.shared().store_u32(offset, value);
    }
    fn read_bytes(&self, offset: usize, into: &mut [u8]) {
        self.0.shared().copy_out(offset, into);
    }
    fn write_bytes(&self, offset: usize, from: &[u8]) {
        self.0.shared().copy_in(offset, from);
    }
}

impl World {
    /// Gives a guest a second console, which is served as soon as it has a front end for it.
    pub fn add_agent(this: &Handle, domid: DomId, name: &str) -> Result<(), String> {
        let (wake, woken) = async_channel::bounded(1);
        let task = exec::spawn(serve(this.clone(), domid, woken));
        let mut world = this.borrow_mut();
        let agent = Agent { name: name.into(), line: Line::default(), wake, _task: task };
        world.agents.insert(domid, agent);
        let state = devices::add_agent(&mut world.store, domid);
        let state = state.map_err(|e| format!("its second console: {e}"))?;
        let token = format!("agent {}", domid.get());
        let watched = world.store.watch(&state, &token);
        watched.map_err(|e| format!("its second console can not be watched: {e}"))
    }

    /// Looks after the second console that a watch is about, if it is about one.
    pub fn agent_moved(&self, token: &[u8]) {
        let domid = core::str::from_utf8(token).ok().and_then(|t| t.strip_prefix("agent "));
        if let Some(domid) = domid.and_then(|d| d.parse().ok()) {
            self.wake_agent(DomId::new(domid));
        }
    }

    fn wake_agent(&self, domid: DomId) {
        if let Some(agent) = self.agents.get(&domid) {
            // Full means that it is woken already.
            let _ = agent.wake.try_send(());
        }
    }

    /// Wakes all agents' tasks: the wire to the host tool has room again.
    pub fn wake_agents(&self) {
        self.agents.keys().for_each(|domid| self.wake_agent(*domid));
    }

    /// Queues bytes for a guest's agent.
    pub fn feed_agent(&mut self, domid: DomId, bytes: &[u8]) -> Result<(), String> {
        let agent = self.agents.get_mut(&domid);
        let agent = agent.ok_or("it has no second console")?;
        if !agent.line.feed(bytes) {
            return Err(format!("{} does not read its second console", agent.name));
        }
        self.wake_agent(domid);
        Ok(())
    }

    fn set_agent_state(&mut self, domid: DomId, state: u32) {
        if let Err(error) = devices::set_agent_state(&mut self.store, domid, state) {
            self.log(format!("{domid}: the state of its second console is not told: {error}"));
        }
        self.store_settled();
    }

    /// Does what the front end wants, if that is news.
    fn follow_front_end(&mut self, domid: DomId, end: &mut Option<End>, done: &mut AgentWish) {
        let wish = devices::agent_wish(&self.store, domid);
        if wish == *done {
            return;
        }
        *done = wish;
        // Its page is given back before it is told so.
        *end = None;
        match wish {
            AgentWish::Wait => {}
            AgentWish::Close => self.set_agent_state(domid, xs_wire::XENBUS_CLOSING),
            AgentWish::Closed => self.set_agent_state(domid, xs_wire::XENBUS_CLOSED),
            AgentWish::Connect(gref, port) => match End::connect(domid, gref, port) {
                Ok(connected) => {
                    *end = Some(connected);
                    if let Some(agent) = self.agents.get_mut(&domid) {
                        agent.line.reconnected();
                    }
                    self.set_agent_state(domid, xs_wire::XENBUS_CONNECTED);
                }
                Err(why) => {
                    self.log(format!("{domid}: its second console can not be served: {why}"));
                    self.set_agent_state(domid, xs_wire::XENBUS_CLOSED);
                }
            },
        }
    }

    /// Moves what can be moved; gives how many bytes that was.
    fn pump_agent(&mut self, domid: DomId, end: Option<&End>) -> usize {
        let Some(agent) = self.agents.get_mut(&domid) else {
            return 0;
        };
        let pumped = end.map_or(Ok(Moved::default()), |end| agent.line.pump(&end.page));
        if let (Ok(Moved { notify: true, .. }), Some(end)) = (&pumped, end) {
            // Refused only when the guest has closed its end: its loss.
            let _ = end.port.notify();
        }
        let domain = agent.name.clone();
        let bytes = pumped.as_ref().map_or(0, |moved| moved.bytes);
        if let Err(absurd) = pumped {
            self.log(format!("{domain}: its second console holds absurd indices ({absurd:?})"));
        }
        self.send_agent_output(domid, &domain);
        bytes
    }

    /// Passes on what the agent wrote, as far as the wire has room.
    fn send_agent_output(&mut self, domid: DomId, domain: &str) {
        loop {
            let room = self.outbox.console_room().min(PIECE_BYTES);
            let agent = self.agents.get_mut(&domid);
            let bytes = agent.map(|agent| agent.line.take(room)).unwrap_or_default();
            if bytes.is_empty() {
                return;
            }
            self.event(Event::Agent { domain: domain.into(), bytes });
        }
    }
}

/// Serves one guest's second console for as long as the guest is there.
async fn serve(world: Handle, domid: DomId, woken: Receiver<()>) {
    let mut end = None;
    let mut done = AgentWish::Wait;
    let mut pause = SHORTEST_WHILE;
    loop {
        world.borrow_mut().follow_front_end(domid, &mut end, &mut done);
        let moved = world.borrow_mut().pump_agent(domid, end.as_ref());
        pause = match moved {
            ..FEW_BYTES => (pause * 2).min(LONGEST_WHILE),
            FEW_BYTES..MANY_BYTES => pause,
            MANY_BYTES.. => (pause / 2).max(SHORTEST_WHILE),
        };
        if moved > 0 {
            time::sleep(pause).await;
            continue;
        }
        let since = time::now().get();
        let event = async {
            match &end {
                Some(end) => end.port.wait().await,
                None => core::future::pending().await,
            }
        };
        let waking = async {
            // The sender lives as long as this task.
            let _ = woken.recv().await;
        };
        exec::or(event, waking).await;
        if time::now().get() - since > QUIET_NS {
            pause = SHORTEST_WHILE;
        }
    }
}
