//! The control link: the second UART (a 16550 with FIFOs), or the fast lane with the UART
//! as its bell; bytes in and out. What they mean is the library's.

use crate::{lane::Lane, world::Handle};
use alloc::{format, vec::Vec};
use async_channel::Receiver;
use bulkhead_abi::archive::EXIT_OK;
use core::time::Duration;
use dom0::control::{Outbox, Server};
use domain_rt::{control, event, exec, io, time};

/// COM2 and its interrupt, as every PC has them.
const BASE: u16 = 0x2f8;
const PIRQ: u32 = 3;

/// Registers, by offset from [`BASE`].
const DATA: u16 = 0;
const INTERRUPT_ENABLE: u16 = 1;
const INTERRUPT_ID: u16 = 2;
const FIFO_CONTROL: u16 = 2;
const LINE_CONTROL: u16 = 3;
const MODEM_CONTROL: u16 = 4;
const LINE_STATUS: u16 = 5;

/// Line status: a byte waits; the transmit FIFO is empty; the wire is idle.
const DATA_READY: u8 = 1 << 0;
const TRANSMIT_EMPTY: u8 = 1 << 5;
const WIRE_IDLE: u8 = 1 << 6;
/// Bytes of the transmit FIFO.
const FIFO_BYTES: usize = 16;

/// Bytes moved before others get their turn.
pub const BURST: usize = 512;
/// The link is looked at this often even without an interrupt: an edge may get lost.
const LOOK: Duration = Duration::from_millis(20);
/// While the other side does not take bytes, it is asked this often.
const RETRY: Duration = Duration::from_millis(1);
/// How long the last reply may take to leave.
const FAREWELL_NS: u64 = 2_000_000_000;

/// The second UART.
pub struct Uart;

impl Uart {
    /// Sets 8 bits, FIFOs, the highest speed, and interrupts for what arrives.
    fn open() -> Self {
        let set = |register, value| io::outb(BASE + register, value);
        set(INTERRUPT_ENABLE, 0);
        set(LINE_CONTROL, 0x80);
        set(DATA, 1);
        set(INTERRUPT_ENABLE, 0);
        set(LINE_CONTROL, 0x03);
        set(FIFO_CONTROL, 0x07);
        // DTR, RTS, and OUT2, which lets interrupts through.
        set(MODEM_CONTROL, 0x0b);
        set(INTERRUPT_ENABLE, 0x01);
        Self
    }

    fn status(&self) -> u8 {
        io::inb(BASE + LINE_STATUS)
    }

    /// A byte that has arrived.
    fn read(&self) -> Option<u8> {
        let status = self.status();
        // A port that nobody answers reads all ones.
        (status != 0xff && status & DATA_READY != 0).then(|| io::inb(BASE + DATA))
    }

    /// What has arrived.
    pub fn read_some(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        while bytes.len() < BURST
            && let Some(byte) = self.read()
        {
            bytes.push(byte);
        }
        bytes
    }

    /// Whether a FIFO full of bytes may be written.
    fn is_ready(&self) -> bool {
        self.status() & TRANSMIT_EMPTY != 0
    }

    /// Writes bytes; no more than fit the FIFO.
    pub fn write(&self, bytes: &[u8]) {
        for &byte in bytes {
            io::outb(BASE + DATA, byte);
        }
    }

    /// Lowers the interrupt line, so that the next arrival is an edge again.
    fn acknowledge(&self) {
        for _ in 0..4 {
            if io::inb(BASE + INTERRUPT_ID) & 1 != 0 {
                return;
            }
        }
    }
}

/// Serves the link until the machine ends. `woken` tells that there is something to send.
/// `lane` is the PCI device with the fast lane's memory.
pub async fn serve(world: Handle, lane: Option<u32>, woken: Receiver<()>) {
    let uart = Uart::open();
    let lane = lane.and_then(|sbdf| match Lane::open(sbdf) {
        Ok(lane) => Some(lane),
        Err(why) => {
            world.borrow_mut().log(format!("the link is slow, it has no fast lane: {why}"));
            None
        }
    });
    let irq = event::bind_pirq(PIRQ);
    if let Err(errno) = &irq {
        log::warn!("the control link has no interrupt ({errno}); it is polled");
    }
    let mut server = Server::default();
    let mut deadline = None;
    loop {
        let (bytes, sent) = match &lane {
            None => (uart.read_some(), transmit(&uart, &world)),
            Some(lane) => (lane.read_some(&uart), lane.transmit(&uart, &world)),
        };
        serve_requests(&bytes, &world, &mut server);
        let is_pending = !world.borrow().outbox.is_empty();
        if world.borrow().is_shutting_down {
            let now = time::now().get();
            let deadline = *deadline.get_or_insert(now + FAREWELL_NS);
            let is_gone = !is_pending && uart.status() & WIRE_IDLE != 0;
            if is_gone || now >= deadline {
                // Only the control domain asks; should the core refuse, the link stays up.
                let _ = control::machine_shutdown(EXIT_OK);
            }
        }
        if !bytes.is_empty() || sent > 0 {
            exec::yield_now().await;
            continue;
        }
        uart.acknowledge();
        if lane.as_ref().is_some_and(|lane| !lane.may_sleep()) {
            continue;
        }
        let pause = time::sleep(if is_pending { RETRY } else { LOOK });
        let arrival = async {
            match &irq {
                Ok(irq) => {
                    irq.wait().await;
                    // Edge-triggered lines need no end of interrupt; others do.
                    let _ = event::eoi(PIRQ);
                }
                Err(_) => core::future::pending().await,
            }
        };
        let news = async {
            // With bytes pending already, more of them are no reason to hurry.
            match is_pending {
                true => core::future::pending().await,
                false => drop(woken.recv().await),
            }
        };
        exec::or(exec::or(arrival, news), pause).await;
    }
}

fn serve_requests(bytes: &[u8], world: &Handle, server: &mut Server) {
    let mut world = world.borrow_mut();
    for &byte in bytes {
        // Events that a request causes leave before its reply.
        let mut replies = Outbox::default();
        server.push(byte, &mut *world, &mut replies);
        world.outbox.append(replies);
    }
}

/// Sends what the UART takes; gives how many bytes.
fn transmit(uart: &Uart, world: &Handle) -> usize {
    let mut world = world.borrow_mut();
    let was_full = world.outbox.console_room() == 0;
    let mut sent = 0;
    while sent < BURST && !world.outbox.is_empty() && uart.is_ready() {
        let bytes = world.outbox.take(FIFO_BYTES);
        uart.write(&bytes);
        sent += bytes.len();
    }
    if was_full && world.outbox.console_room() > 0 {
        world.wake_consoles();
    }
    sent
}
