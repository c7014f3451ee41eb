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
use dom0::{
    console::agent::Line,
    devices::{self, AgentWish},
    shared::SharedPage,
};
use domain_rt::{
    event::{self, Channel},
    exec,
    grant::{self, GrantMapping},
};

/// Bytes in one event to the host tool.
const PIECE_BYTES: usize = 4096;

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
            AgentWish::Close => self.set_agent_state(domid, xs_wire::XENBUS_CLOSED),
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

    /// Moves what can be moved; whether something did.
    fn pump_agent(&mut self, domid: DomId, end: Option<&End>) -> bool {
        let room = self.outbox.console_room().min(PIECE_BYTES);
        let Some(agent) = self.agents.get_mut(&domid) else {
            return false;
        };
        let mut told = None;
        let mut has_moved = false;
        if let Some(end) = end {
            match agent.line.pump(&end.page) {
                Ok(notify) => {
                    has_moved = notify;
                    if notify {
                        // Refused only when the guest has closed its end: its loss.
                        let _ = end.port.notify();
                    }
                }
                Err(absurd) => told = Some(absurd),
            }
        }
        let bytes = agent.line.take(room);
        let domain = agent.name.clone();
        if let Some(absurd) = told {
            self.log(format!("{domain}: its second console holds absurd indices ({absurd:?})"));
        }
        if !bytes.is_empty() {
            has_moved = true;
            self.event(Event::Agent { domain, bytes });
        }
        has_moved
    }
}

/// Serves one guest's second console for as long as the guest is there.
async fn serve(world: Handle, domid: DomId, woken: Receiver<()>) {
    let mut end = None;
    let mut done = AgentWish::Wait;
    loop {
        world.borrow_mut().follow_front_end(domid, &mut end, &mut done);
        if world.borrow_mut().pump_agent(domid, end.as_ref()) {
            exec::yield_now().await;
            continue;
        }
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
    }
}
