//! The task of one device: moves requests as long as there are any, and sleeps.

use crate::drive::Drive;
use crate::made_of;
use crate::platform::OnDomain;
use crate::virtio::Interrupt;
use alloc::collections::BTreeMap;
use alloc::rc::Rc;
use async_channel::{Receiver, Sender};
use blkback::{BlockDevice, DeviceFacts, EndReason, Server, Step, Vbd, VbdId};
use core::cell::RefCell;
use domain_rt::exec;

/// The service of a device; clones share it.
#[derive(Clone)]
pub struct Service {
    inner: Rc<Inner>,
}

struct Inner {
    server: RefCell<Server<OnDomain>>,
    /// Who wants to hear that a disk is over.
    ends: RefCell<BTreeMap<VbdId, Sender<EndReason>>>,
    wake: Sender<()>,
    woken: Receiver<()>,
}

impl Service {
    /// Starts the task of a device, woken by its interrupt if it has one.
    pub fn start(device: Drive, interrupt: Option<Interrupt>) -> Self {
        let (wake, woken) = async_channel::bounded(1);
        let service = Self {
            inner: Rc::new(Inner {
                server: RefCell::new(Server::new(made_of::device(device))),
                ends: RefCell::default(),
                wake,
                woken,
            }),
        };
        if let Some(interrupt) = interrupt {
            exec::spawn(service.clone().listen(interrupt)).detach();
        }
        let worker = service.clone();
        exec::spawn(async move { worker.work().await }).detach();
        service
    }

    async fn listen(self, interrupt: Interrupt) {
        loop {
            interrupt.wait().await;
            if !made_of::misses_interrupt() {
                self.wake();
            }
        }
    }

    /// What the device is.
    pub fn facts(&self) -> DeviceFacts {
        self.inner.server.borrow().device().facts()
    }

    /// Something may have come: looks at everything again.
    pub fn wake(&self) {
        // Full means that it is to be woken already.
        let _ = self.inner.wake.try_send(());
    }

    /// Takes a disk into service. The receiver hears, once, why it is over; its ring and
    /// all pages are unmapped then.
    pub fn add(&self, vbd: Vbd<OnDomain>) -> (VbdId, Receiver<EndReason>) {
        let (sender, receiver) = async_channel::bounded(1);
        let id = self.inner.server.borrow_mut().add(vbd);
        self.inner.ends.borrow_mut().insert(id, sender);
        self.wake();
        (id, receiver)
    }

    /// Ends a disk.
    pub fn close(&self, id: VbdId) {
        self.inner.server.borrow_mut().close(id);
        self.wake();
    }

    async fn work(&self) {
        loop {
            if made_of::at_work().await {
                self.wake();
            }
            let step = self.inner.server.borrow_mut().step();
            self.report_ends();
            if step == Step::More {
                // Others have their turn: the heartbeat, xenstore, other devices.
                exec::yield_now().await;
            } else if self.inner.server.borrow_mut().may_sleep()
                && made_of::sleep(&self.inner.woken, self.next_due()).await.is_err()
            {
                return;
            }
        }
    }

    /// When to look again even if nobody calls.
    fn next_due(&self) -> Option<u64> {
        made_of::next_due(self.inner.server.borrow().device())
    }

    fn report_ends(&self) {
        loop {
            let ended = self.inner.server.borrow_mut().take_ended();
            let Some(ended) = ended else { return };
            let (id, reason) = (ended.id, ended.reason);
            drop(ended);
            if let Some(sender) = self.inner.ends.borrow_mut().remove(&id) {
                // Nobody listens if the task of the disk was dropped.
                let _ = sender.try_send(reason);
            }
        }
    }
}
