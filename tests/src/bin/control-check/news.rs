//! `VIRQ_DOM_EXC`: the core's word that a domain changed its state.

use crate::calls::info;
use core::time::Duration;
use domain_rt::abi::{
    DomId,
    control::{DomainInfo, STATE_SHUTDOWN},
    event::VIRQ_DOM_EXC,
};
use domain_rt::{event, exec, time};

/// Longest wait; a busy host that emulates the machine is slow.
const LIMIT: Duration = Duration::from_secs(30);

pub struct News(event::Channel);

impl News {
    pub fn bind() -> Self {
        Self(event::bind_virq(VIRQ_DOM_EXC).expect("Dom0 may bind it"))
    }

    /// Whether news comes within a span.
    pub async fn within(&self, span: Duration) -> bool {
        wait(&self.0, span).await
    }

    /// Forgets what has come.
    pub async fn forget(&mut self) {
        while self.within(Duration::ZERO).await {}
    }

    /// Waits for news that a domain has shut down; what the core then says of it.
    pub async fn of_the_end(&mut self, domid: DomId) -> Option<DomainInfo> {
        while self.within(LIMIT).await {
            let found = info(domid).ok()?;
            if found.state & STATE_SHUTDOWN != 0 {
                return Some(found);
            }
        }
        None
    }
}

/// Whether an event comes within a span.
pub async fn wait(channel: &event::Channel, span: Duration) -> bool {
    let came = async {
        channel.wait().await;
        true
    };
    let late = async {
        time::sleep(span).await;
        false
    };
    exec::select(came, late).await
}
