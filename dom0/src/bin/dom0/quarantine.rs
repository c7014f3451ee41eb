//! Driver domains that are not restarted any more: what their guests get until somebody
//! lifts it, and which image a life runs: what answers with errors, one that was sent, or
//! that of the set-up.

use crate::{revive::Case, world::World};
use alloc::{format, rc::Rc, string::String, vec::Vec};
use bulkhead_abi::DomId;
use bulkhead_link::{Cause, DomainSpec, Event};
use core::ops::Deref;
use dom0::payload::Payload;
use domain_rt::{control, time};

/// The bytes of an image, wherever they are.
pub enum Image {
    Payload(&'static [u8]),
    Sent(Rc<Vec<u8>>),
}

impl Deref for Image {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        match self {
            Self::Payload(bytes) => bytes,
            Self::Sent(bytes) => bytes,
        }
    }
}

impl World {
    /// Gives a driver domain up, and tells. With `on-failure = "fail"` something else comes in
    /// its place, under the same domid, and answers its guests with errors.
    pub fn quarantine(&mut self, domid: DomId, reason: String) {
        // A life that hangs is a life that computes. What is gone needs no pause.
        let _ = control::pause_domain(domid);
        let Some(entry) = self.table.by_domid(domid) else {
            return;
        };
        entry.quarantine(reason.clone());
        let refuses = entry.care.refuser.is_some();
        (entry.refuses, entry.is_reviving) = (refuses, refuses);
        let domain = entry.name.clone();
        if refuses {
            let case =
                Case { domid, cause: Cause::Request, reason: String::new(), ended: time::now() };
            // The receiver lives as long as this domain.
            let _ = self.cases.try_send(case);
        }
        self.event(Event::Quarantined { domain, reason, refuses });
    }

    /// What answered with errors in place of a driver domain does so no more.
    pub fn deserted(&mut self, domid: DomId, why: &str) {
        let Some(entry) = self.table.by_domid(domid) else {
            return;
        };
        (entry.refuses, entry.is_reviving) = (false, false);
        entry.reason = format!("{}; what answered its guests with errors: {why}", entry.reason);
        let (domain, reason) = (entry.name.clone(), entry.reason.clone());
        self.event(Event::Quarantined { domain, reason, refuses: false });
    }

    /// The image for the next life of a driver domain, and whether that only refuses.
    pub fn next_image(
        &mut self,
        payload: &Payload<'static>,
        spec: &DomainSpec,
        domid: DomId,
    ) -> Result<(Image, bool), String> {
        let entry = self.table.by_domid(domid).ok_or("it is gone from the list")?;
        if entry.refuses {
            let refuser = spec.care.refuser.ok_or("nothing can answer in its place")?;
            return Ok((Image::Payload(payload.image(refuser)?), true));
        }
        let image = match &entry.update {
            Some(update) => Image::Sent(update.image.clone()),
            None => Image::Payload(payload.image(spec.kernel)?),
        };
        Ok((image, false))
    }
}
