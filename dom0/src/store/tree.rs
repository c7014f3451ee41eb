//! The nodes of the store, and how many each domain owns. Neither permissions nor
//! quotas are enforced here.

use super::{path::Path, perms::Perms};
use alloc::{
    collections::{BTreeMap, BTreeSet},
    rc::Rc,
    vec::Vec,
};
use bulkhead_abi::DomId;

/// One node: a value and a folder at once.
#[derive(Clone, Debug)]
pub struct Node {
    pub value: Vec<u8>,
    pub perms: Perms,
    /// Names of the nodes below it. Shared, so that a copy of the node is cheap.
    pub children: Rc<BTreeSet<Rc<str>>>,
    /// When it was last set: the tree's count of changes.
    pub generation: u64,
}

impl Node {
    /// An empty node.
    pub fn new(perms: Perms) -> Self {
        Self { value: Vec::new(), perms, children: Rc::default(), generation: 0 }
    }
}

/// What requests work on: the tree itself, or a transaction on top of it.
pub trait Space {
    /// Looks a node up.
    fn get(&mut self, path: &Path) -> Option<Rc<Node>>;
    /// Puts a node there, or takes it away. Keeping parents' lists of children in
    /// step is the caller's duty.
    fn set(&mut self, path: &Path, node: Option<Node>);
    /// Nodes that `domid` owns.
    fn owned(&self, domid: DomId) -> usize;
}

/// All committed nodes.
#[derive(Debug)]
pub struct Tree {
    nodes: BTreeMap<Path, Rc<Node>>,
    owned: BTreeMap<DomId, usize>,
    generation: u64,
}

impl Tree {
    /// A tree with a root that everybody may read.
    pub fn new() -> Self {
        let mut tree = Self { nodes: BTreeMap::new(), owned: BTreeMap::new(), generation: 0 };
        let mut perms = Perms::private(DomId::DOM0);
        perms.others = super::perms::Access::READ;
        tree.set(&Path::root(), Some(Node::new(perms)));
        tree
    }

    /// Looks a node up without the right to change anything.
    pub fn look(&self, path: &Path) -> Option<&Rc<Node>> {
        self.nodes.get(path)
    }
}

impl Default for Tree {
    fn default() -> Self {
        Self::new()
    }
}

impl Space for Tree {
    fn get(&mut self, path: &Path) -> Option<Rc<Node>> {
        self.nodes.get(path).cloned()
    }

    fn set(&mut self, path: &Path, node: Option<Node>) {
        self.generation += 1;
        let owner = node.as_ref().map(|n| n.perms.owner);
        let old = match node {
            Some(mut node) => {
                node.generation = self.generation;
                self.nodes.insert(path.clone(), Rc::new(node))
            }
            None => self.nodes.remove(path),
        };
        if let Some(old) = old
            && let Some(count) = self.owned.get_mut(&old.perms.owner)
        {
            *count = count.saturating_sub(1);
        }
        if let Some(owner) = owner {
            *self.owned.entry(owner).or_default() += 1;
        }
    }

    fn owned(&self, domid: DomId) -> usize {
        self.owned.get(&domid).copied().unwrap_or(0)
    }
}
