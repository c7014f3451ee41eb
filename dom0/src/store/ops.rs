//! What a client may do to nodes: permissions, quotas and effects of each
//! request, the same inside and outside of a transaction. Watches and the wire
//! are not known here; what changed comes back as [`Change`]s.

use super::{
    error::StoreError,
    path::Path,
    perms::{Access, Perms},
    quota::Quota,
    tree::{Node, Space},
};
use alloc::{rc::Rc, vec, vec::Vec};
use bulkhead_abi::DomId;

/// Who asks, and under which limits.
#[derive(Clone, Copy, Debug)]
pub struct Client {
    pub domid: DomId,
    /// `None` for the control domain.
    pub quota: Option<Quota>,
}

/// A node that changed, for those who watch it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Change {
    pub path: Path,
    /// Only watches on this very node hear of it: it went along with a folder
    /// above it, and watches further up hear of that one.
    pub is_exact: bool,
    /// Who may know: the node's permissions, or those it had.
    pub perms: Perms,
}

impl Change {
    fn of(path: &Path, perms: &Perms) -> Self {
        Self { path: path.clone(), is_exact: false, perms: perms.clone() }
    }
}

/// Finds a node for a client that needs `wanted` access to it.
///
/// Errors: `ENOENT`; `EACCES` instead where the nearest folder that is there does not
/// grant `wanted` either, so that nobody learns what exists where he may not look.
pub fn find(
    space: &mut impl Space,
    client: Client,
    path: &Path,
    wanted: Access,
) -> Result<Rc<Node>, StoreError> {
    if let Some(node) = space.get(path) {
        return match node.perms.access(client.domid).covers(wanted) {
            true => Ok(node),
            false => Err(StoreError::EACCES),
        };
    }
    let (above, _) = nearest(space, path);
    match above.perms.access(client.domid).covers(wanted) {
        true => Err(StoreError::ENOENT),
        false => Err(StoreError::EACCES),
    }
}

/// The nearest folder above `path` that exists, and how many nodes (with `path`
/// itself) are missing below it.
fn nearest(space: &mut impl Space, path: &Path) -> (Rc<Node>, usize) {
    let mut missing = 1;
    let mut at = path.parent();
    while let Some(folder) = at {
        if let Some(node) = space.get(&folder) {
            return (node, missing);
        }
        missing += 1;
        at = folder.parent();
    }
    // The root can not be removed; were it gone, nobody but the control domain has access.
    (Rc::new(Node::new(Perms::private(DomId::DOM0))), missing)
}

/// Creates `path` and the folders it lacks; permissions come from the folder above,
/// and what an unprivileged client creates is its own.
fn create(
    space: &mut impl Space,
    client: Client,
    path: &Path,
    value: &[u8],
) -> Result<Change, StoreError> {
    let (above, missing) = nearest(space, path);
    if !above.perms.access(client.domid).write {
        return Err(StoreError::EACCES);
    }
    let mut perms = above.perms.clone();
    if let Some(quota) = client.quota {
        if path.depth() > quota.depth || space.owned(client.domid) + missing > quota.nodes {
            return Err(StoreError::ENOSPC);
        }
        perms.owner = client.domid;
    }
    let mut node = Node::new(perms);
    let change = Change::of(path, &node.perms);
    node.value = value.to_vec();
    let folder = Node { value: Vec::new(), ..node.clone() };
    let mut below = path.clone();
    let mut next = node;
    while let Some(parent) = below.parent() {
        space.set(&below, Some(next));
        let name: Rc<str> = below.name().into();
        if let Some(existing) = space.get(&parent) {
            let mut existing = Node::clone(&existing);
            Rc::make_mut(&mut existing.children).insert(name);
            space.set(&parent, Some(existing));
            break;
        }
        next = folder.clone();
        Rc::make_mut(&mut next.children).insert(name);
        below = parent;
    }
    Ok(change)
}

/// The value of a node.
pub fn read(space: &mut impl Space, client: Client, path: &Path) -> Result<Rc<Node>, StoreError> {
    find(space, client, path, Access::READ)
}

/// Sets the value of a node, creating it where it is not.
pub fn write(
    space: &mut impl Space,
    client: Client,
    path: &Path,
    value: &[u8],
) -> Result<Vec<Change>, StoreError> {
    if client.quota.is_some_and(|quota| value.len() > quota.value_bytes) {
        return Err(StoreError::ENOSPC);
    }
    match find(space, client, path, Access::WRITE) {
        Ok(node) => {
            let mut node = Node::clone(&node);
            node.value = value.to_vec();
            let change = Change::of(path, &node.perms);
            space.set(path, Some(node));
            Ok(vec![change])
        }
        Err(StoreError::ENOENT) => Ok(vec![create(space, client, path, value)?]),
        Err(error) => Err(error),
    }
}

/// Creates an empty node; nothing happens where there is one.
pub fn mkdir(
    space: &mut impl Space,
    client: Client,
    path: &Path,
) -> Result<Vec<Change>, StoreError> {
    match find(space, client, path, Access::WRITE) {
        Ok(_) => Ok(Vec::new()),
        Err(StoreError::ENOENT) => Ok(vec![create(space, client, path, &[])?]),
        Err(error) => Err(error),
    }
}

/// Removes a node with all below it. A node that is not there is removed already,
/// provided its folder exists.
pub fn rm(space: &mut impl Space, client: Client, path: &Path) -> Result<Vec<Change>, StoreError> {
    let Some(parent) = path.parent() else {
        return Err(StoreError::EINVAL);
    };
    match find(space, client, path, Access::WRITE) {
        Ok(_) => {}
        Err(StoreError::ENOENT) if space.get(&parent).is_some() => return Ok(Vec::new()),
        Err(error) => return Err(error),
    }
    let mut changes = Vec::new();
    let mut left = vec![path.clone()];
    while let Some(at) = left.pop() {
        let Some(node) = space.get(&at) else { continue };
        left.extend(node.children.iter().rev().map(|name| at.child(name)));
        let is_exact = !changes.is_empty();
        changes.push(Change { is_exact, ..Change::of(&at, &node.perms) });
        space.set(&at, None);
    }
    if let Some(folder) = space.get(&parent) {
        let mut folder = Node::clone(&folder);
        Rc::make_mut(&mut folder.children).remove(path.name());
        space.set(&parent, Some(folder));
    }
    Ok(changes)
}

/// Changes permissions: for the owner, who can not give the node away.
pub fn set_perms(
    space: &mut impl Space,
    client: Client,
    path: &Path,
    perms: Perms,
) -> Result<Vec<Change>, StoreError> {
    let node = find(space, client, path, Access::WRITE)?;
    if let Some(quota) = client.quota {
        if node.perms.owner != client.domid {
            return Err(StoreError::EACCES);
        }
        if perms.owner != node.perms.owner {
            return Err(StoreError::EPERM);
        }
        if perms.acl.len() >= quota.perms {
            return Err(StoreError::ENOSPC);
        }
    }
    let mut node = Node::clone(&node);
    node.perms = perms;
    let change = Change::of(path, &node.perms);
    space.set(path, Some(node));
    Ok(vec![change])
}
