//! Transactions: what a client saw and changed, kept apart until it ends. A
//! transaction succeeds if every node it touched is as it found it; then its
//! changes appear at once.

use super::{
    error::StoreError,
    ops::Change,
    path::Path,
    tree::{Node, Space, Tree},
};
use alloc::{collections::BTreeMap, rc::Rc, vec::Vec};
use bulkhead_abi::DomId;

#[derive(Debug)]
struct Touched {
    /// Generation at first sight, `None` if the node was not there.
    seen: Option<u64>,
    /// What it is in this transaction.
    now: Option<Rc<Node>>,
    is_changed: bool,
}

/// One open transaction.
#[derive(Debug, Default)]
pub struct Transaction {
    touched: BTreeMap<Path, Touched>,
    /// Owned nodes gained or lost, by domain.
    owned: BTreeMap<DomId, isize>,
    changes: Vec<Change>,
}

impl Transaction {
    /// Nodes it keeps a copy of.
    pub fn touched(&self) -> usize {
        self.touched.len()
    }

    /// Notes changes to be told to watchers when it succeeds.
    pub fn note(&mut self, changes: Vec<Change>) {
        for change in changes {
            if !self.changes.contains(&change) {
                self.changes.push(change);
            }
        }
    }

    /// The store as this transaction sees it.
    pub fn view<'a>(&'a mut self, tree: &'a Tree) -> View<'a> {
        View { tree, transaction: self }
    }

    /// Carries it out. On error nothing has changed.
    ///
    /// Errors: `EAGAIN` on a conflict; `ENOSPC` if `client` (with a quota of nodes)
    /// would own too many.
    pub fn commit(
        self,
        tree: &mut Tree,
        client: DomId,
        max_nodes: Option<usize>,
    ) -> Result<Vec<Change>, StoreError> {
        let is_as_seen = |(path, touched): (&Path, &Touched)| {
            tree.look(path).map(|node| node.generation) == touched.seen
        };
        if !self.touched.iter().all(is_as_seen) {
            return Err(StoreError::EAGAIN);
        }
        let gained = self.owned.get(&client).copied().unwrap_or(0);
        if let Some(max) = max_nodes
            && gained > 0
            && tree.owned(client).saturating_add_signed(gained) > max
        {
            return Err(StoreError::ENOSPC);
        }
        for (path, touched) in self.touched {
            if touched.is_changed {
                tree.set(&path, touched.now.map(Rc::unwrap_or_clone));
            }
        }
        Ok(self.changes)
    }
}

/// A transaction together with the tree it is on.
pub struct View<'a> {
    tree: &'a Tree,
    transaction: &'a mut Transaction,
}

impl View<'_> {
    fn touch(&mut self, path: &Path) -> &mut Touched {
        let tree = self.tree;
        self.transaction.touched.entry(path.clone()).or_insert_with(|| {
            let now = tree.look(path).cloned();
            Touched { seen: now.as_ref().map(|node| node.generation), now, is_changed: false }
        })
    }
}

impl Space for View<'_> {
    fn get(&mut self, path: &Path) -> Option<Rc<Node>> {
        self.touch(path).now.clone()
    }

    fn set(&mut self, path: &Path, node: Option<Node>) {
        let gained = node.as_ref().map(|n| n.perms.owner);
        let touched = self.touch(path);
        let lost = touched.now.as_ref().map(|n| n.perms.owner);
        touched.now = node.map(Rc::new);
        touched.is_changed = true;
        if let Some(owner) = lost {
            *self.transaction.owned.entry(owner).or_default() -= 1;
        }
        if let Some(owner) = gained {
            *self.transaction.owned.entry(owner).or_default() += 1;
        }
    }

    fn owned(&self, domid: DomId) -> usize {
        let gained = self.transaction.owned.get(&domid).copied().unwrap_or(0);
        self.tree.owned(domid).saturating_add_signed(gained)
    }
}
