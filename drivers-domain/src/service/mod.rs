//! The tasks of a driver domain: one per device, which does the work; one per virtual
//! disk, which talks with xenstore about it; one that sees new disks come.

mod device;
mod vbd;
mod wire;

pub use device::Service;
pub use wire::{Announced, read_announced};

use crate::ledger::LedgerPages;
use alloc::collections::{BTreeMap, BTreeSet};
use alloc::format;
use alloc::rc::Rc;
use alloc::string::String;
use core::cell::RefCell;
use domain_rt::exec;
use domain_rt::xenstore::{Error, Result, Xenstore};

/// The folder in which Dom0 announces disks, relative to our home.
const FOLDER: &str = "backend/vbd";

/// What all disks share.
pub struct Context {
    /// The store.
    pub store: Xenstore,
    /// The ledger.
    pub ledger: LedgerPages,
    /// By bus << 8 | device << 3 | function.
    pub services: BTreeMap<u32, Service>,
}

/// Serves every disk that is announced. Ends only when xenstore is gone.
pub async fn run(context: Context) -> Result<()> {
    let context = Rc::new(context);
    let served: Rc<RefCell<BTreeSet<String>>> = Rc::default();
    let watch = context.store.watch(FOLDER).await?;
    let (over, is_over) = async_channel::bounded(1);
    let mut first_look = true;
    loop {
        // A disk that is over may have been announced anew meanwhile, under the same name.
        let news = async { watch.next().await.is_some() };
        let freed = async { is_over.recv().await.is_ok() };
        if !exec::select(news, freed).await {
            return Err(Error::Broken);
        }
        watch.forget_waiting();
        let found = announced(&context.store, core::mem::take(&mut first_look)).await?;
        for path in found {
            if !served.borrow_mut().insert(path.clone()) {
                continue;
            }
            let (context, served, over) = (context.clone(), served.clone(), over.clone());
            exec::spawn(async move {
                vbd::serve(&context, &path).await;
                served.borrow_mut().remove(&path);
                // Full means that all are looked at again already.
                let _ = over.try_send(());
            })
            .detach();
        }
    }
}

/// The folders of all disks that there are.
async fn announced(store: &Xenstore, first_look: bool) -> Result<BTreeSet<String>> {
    let mut paths = BTreeSet::new();
    for front in children(store, FOLDER).await? {
        for device in children(store, &format!("{FOLDER}/{front}")).await? {
            let path = format!("{FOLDER}/{front}/{device}");
            if wire::wants_service(store, &path, first_look).await? {
                paths.insert(path);
            }
        }
    }
    Ok(paths)
}

/// Names below a folder; none if there is no folder.
async fn children(store: &Xenstore, path: &str) -> Result<alloc::vec::Vec<String>> {
    match store.directory(path).await {
        Err(Error::NotFound) => Ok(alloc::vec::Vec::new()),
        other => other,
    }
}
