//! Who wants to hear about which node. Finding those takes one look-up per
//! component of the changed path, whatever else is watched.

use super::{
    error::StoreError,
    ops::Change,
    path::{home, parent_of},
};
use alloc::{collections::BTreeMap, rc::Rc, string::String, vec::Vec};
use bulkhead_abi::DomId;

/// One registered watch.
#[derive(Debug)]
pub struct Watch {
    /// Never used twice.
    pub id: u64,
    pub client: DomId,
    /// Absolute path, or one that starts with `@`.
    pub path: Rc<str>,
    pub token: Vec<u8>,
    /// The client named it relative to its own folder, and gets events that way.
    pub is_relative: bool,
}

impl Watch {
    /// How this watch's client reads an absolute path.
    pub fn shown(&self, path: &str) -> String {
        if self.is_relative {
            let home = home(self.client);
            let below = path.strip_prefix(home.as_str());
            if let Some(relative) = below.and_then(|rest| rest.strip_prefix('/')) {
                return relative.into();
            }
        }
        path.into()
    }
}

/// All watches.
#[derive(Debug, Default)]
pub struct Watches {
    by_path: BTreeMap<Rc<str>, Vec<Rc<Watch>>>,
    held: BTreeMap<DomId, usize>,
    next_id: u64,
}

impl Watches {
    /// Watches that `client` holds.
    pub fn held(&self, client: DomId) -> usize {
        self.held.get(&client).copied().unwrap_or(0)
    }

    /// Registers a watch. Errors: `EEXIST` for the same path and token.
    pub fn add(
        &mut self,
        client: DomId,
        path: Rc<str>,
        token: &[u8],
        is_relative: bool,
    ) -> Result<Rc<Watch>, StoreError> {
        let here = self.by_path.entry(path.clone()).or_default();
        if here.iter().any(|w| w.client == client && w.token == token) {
            return Err(StoreError::EEXIST);
        }
        self.next_id += 1;
        let watch =
            Rc::new(Watch { id: self.next_id, client, path, token: token.to_vec(), is_relative });
        here.push(watch.clone());
        *self.held.entry(client).or_default() += 1;
        Ok(watch)
    }

    /// Takes a watch away. Errors: `ENOENT`.
    pub fn remove(&mut self, client: DomId, path: &str, token: &[u8]) -> Result<(), StoreError> {
        let here = self.by_path.get_mut(path).ok_or(StoreError::ENOENT)?;
        let before = here.len();
        here.retain(|w| w.client != client || w.token != token);
        if here.len() == before {
            return Err(StoreError::ENOENT);
        }
        if here.is_empty() {
            self.by_path.remove(path);
        }
        if let Some(held) = self.held.get_mut(&client) {
            *held = held.saturating_sub(1);
        }
        Ok(())
    }

    /// Takes all watches of a client away.
    pub fn remove_all(&mut self, client: DomId) {
        if self.held.remove(&client).is_none() {
            return;
        }
        self.by_path.retain(|_, here| {
            here.retain(|w| w.client != client);
            !here.is_empty()
        });
    }

    /// Those who may hear of `change` and want to.
    pub fn concerned(&self, change: &Change) -> Vec<Rc<Watch>> {
        let mut found = Vec::new();
        let mut at = Some(change.path.as_str());
        while let Some(path) = at {
            let here = self.by_path.get(path).into_iter().flatten();
            found.extend(here.filter(|w| change.perms.access(w.client).read).cloned());
            at = if change.is_exact { None } else { parent_of(path) };
        }
        found
    }

    /// Whether `client` watches a path or one above it.
    pub fn is_watched_by(&self, client: DomId, path: &str) -> bool {
        let mut at = Some(path);
        while let Some(path) = at {
            let mut here = self.by_path.get(path).into_iter().flatten();
            if here.any(|w| w.client == client) {
                return true;
            }
            at = parent_of(path);
        }
        false
    }

    /// Those of `client` who watch the event `name` (`@introduceDomain`, ..).
    pub fn special(&self, name: &str, client: DomId) -> Vec<Rc<Watch>> {
        let here = self.by_path.get(name).into_iter().flatten();
        here.filter(|w| w.client == client).cloned().collect()
    }
}
