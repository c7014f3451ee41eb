//! The store for the control domain itself: direct calls, no ring, no quota.

use super::{
    Store, StoreError, ops,
    path::Path,
    perms::{Access, Perms},
    tree::Space,
};
use alloc::{rc::Rc, string::String, vec::Vec};
use bulkhead_abi::DomId;

impl Store {
    /// The value of a node.
    pub fn read(&self, path: &str) -> Result<Vec<u8>, StoreError> {
        let path = local_path(path)?;
        let node = self.tree.look(&path).ok_or(StoreError::ENOENT)?;
        Ok(node.value.clone())
    }

    /// The value of a node as a decimal number; `None` where it is not there or no number.
    pub fn read_number(&self, path: &str) -> Option<u64> {
        let value = self.read(path).ok()?;
        core::str::from_utf8(&value).ok()?.trim().parse().ok()
    }

    /// Names of the nodes below one.
    pub fn list(&self, path: &str) -> Result<Vec<String>, StoreError> {
        let path = local_path(path)?;
        let node = self.tree.look(&path).ok_or(StoreError::ENOENT)?;
        Ok(node.children.iter().map(|name| String::from(&**name)).collect())
    }

    /// Sets a value; what is created inherits the permissions of the folder above.
    pub fn write(&mut self, path: &str, value: &str) -> Result<(), StoreError> {
        let (path, client) = (local_path(path)?, self.client(DomId::DOM0));
        let changes = ops::write(&mut self.tree, client, &path, value.as_bytes())?;
        self.fire(&changes);
        Ok(())
    }

    /// Sets a value and permissions.
    pub fn write_as(&mut self, path: &str, value: &str, perms: Perms) -> Result<(), StoreError> {
        let (at, client) = (local_path(path)?, self.client(DomId::DOM0));
        let mut changes = ops::write(&mut self.tree, client, &at, value.as_bytes())?;
        // One event tells it all: the node with its final permissions.
        changes.clear();
        changes.extend(ops::set_perms(&mut self.tree, client, &at, perms)?);
        self.fire(&changes);
        Ok(())
    }

    /// Removes a node with all below it, if it is there.
    pub fn remove(&mut self, path: &str) -> Result<(), StoreError> {
        let (path, client) = (local_path(path)?, self.client(DomId::DOM0));
        if self.tree.get(&path).is_none() {
            return Ok(());
        }
        let changes = ops::rm(&mut self.tree, client, &path)?;
        self.fire(&changes);
        Ok(())
    }

    /// Watches a node; its events come from [`Store::events`], the first at once.
    pub fn watch(&mut self, path: &str, token: &str) -> Result<(), StoreError> {
        let path: Rc<str> = match path.starts_with('@') {
            true => path.into(),
            false => local_path(path)?.shared(),
        };
        let watch = self.watches.add(DomId::DOM0, path.clone(), token.as_bytes(), false)?;
        if let Some(own) = self.connections.get_mut(&DomId::DOM0) {
            own.event(&watch, &path, usize::MAX);
        }
        Ok(())
    }

    /// Ends a watch; does nothing if there is none.
    pub fn unwatch(&mut self, path: &str, token: &str) {
        let removed = local_path(path)
            .and_then(|path| self.watches.remove(DomId::DOM0, path.as_str(), token.as_bytes()));
        debug_assert!(matches!(removed, Ok(()) | Err(StoreError::ENOENT)));
    }

    /// Whether a client waits for news of a node, by a watch on it or on a folder above it.
    pub fn is_watched_by(&self, domid: DomId, path: &str) -> bool {
        let watched = |path: Path| self.watches.is_watched_by(domid, path.as_str());
        local_path(path).is_ok_and(watched)
    }

    /// The control domain's events since the last call: path and token.
    pub fn events(&mut self) -> Vec<(String, Vec<u8>)> {
        let own = self.connections.get_mut(&DomId::DOM0);
        own.map(|own| own.take_events()).unwrap_or_default()
    }

    /// Whether `domid` may do `access` with a node that is there.
    pub fn may(&self, domid: DomId, path: &str, access: Access) -> bool {
        let node = local_path(path).ok();
        let node = node.and_then(|path| self.tree.look(&path));
        node.is_some_and(|node| node.perms.access(domid).covers(access))
    }
}

fn local_path(path: &str) -> Result<Path, StoreError> {
    Path::parse(path.as_bytes(), DomId::DOM0)
}
