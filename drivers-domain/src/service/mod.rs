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
use alloc::vec::Vec;
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
    let store = &context.store;
    let (watch, fronts) = exec::join(store.watch(FOLDER), children(store, FOLDER)).await;
    let watch = watch?;
    // The list is not older than the first event.
    watch.forget_waiting();
    let mut found = devices_of(store, &fronts?).await?;
    let (over, is_over) = async_channel::bounded(1);
    loop {
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
        // A disk that is over may have been announced anew meanwhile, under the same name.
        let news = async { watch.next().await.is_some() };
        let freed = async { is_over.recv().await.is_ok() };
        if !exec::select(news, freed).await {
            return Err(Error::Broken);
        }
        watch.forget_waiting();
        found = waiting(store).await?;
    }
}

/// The folders of all disks that wait for us.
async fn waiting(store: &Xenstore) -> Result<BTreeSet<String>> {
    let mut paths = BTreeSet::new();
    for path in devices_of(store, &children(store, FOLDER).await?).await? {
        if wire::wants_service(store, &path).await? {
            paths.insert(path);
        }
    }
    Ok(paths)
}

/// The folders of all disks of these front ends.
async fn devices_of(store: &Xenstore, fronts: &[String]) -> Result<BTreeSet<String>> {
    let folders: Vec<_> = fronts.iter().map(|front| format!("{FOLDER}/{front}")).collect();
    let names = store.directory_all(&folders.iter().map(|f| &**f).collect::<Vec<_>>()).await;
    let mut paths = BTreeSet::new();
    for (folder, names) in folders.iter().zip(names) {
        paths.extend(any(names)?.iter().map(|name| format!("{folder}/{name}")));
    }
    Ok(paths)
}

/// Names below a folder; none if there is no folder.
async fn children(store: &Xenstore, path: &str) -> Result<Vec<String>> {
    any(store.directory(path).await)
}

fn any(names: Result<Vec<String>>) -> Result<Vec<String>> {
    match names {
        Err(Error::NotFound) => Ok(Vec::new()),
        other => other,
    }
}
