//! One function per request of the wire protocol: decode, do, and the payload of
//! the reply. What is not offered to domains (introducing others, control) is `EACCES`.

use super::{
    Store, StoreError, event_limit,
    ops::{self, Change, Client},
    path::{Path, home},
    perms::{Perms, parse_decimal},
    tree::Space,
    wire::{first_string, message, one_string, two_strings},
};
use alloc::{collections::BTreeSet, format, rc::Rc, string::ToString, vec::Vec};
use bulkhead_abi::{DomId, xs_wire::*};

type Answer = Result<Vec<u8>, StoreError>;

/// Carries out a request and queues the reply, then the events it causes.
pub fn serve(store: &mut Store, domid: DomId, header: XsMsg, payload: &[u8]) {
    if !store.is_introduced(domid) {
        return;
    }
    let mut effects = Effects::default();
    let answer =
        dispatch(store, domid, header, payload, &mut effects).and_then(|reply| {
            match reply.len() <= XENSTORE_PAYLOAD_MAX {
                true => Ok(reply),
                false => Err(StoreError::E2BIG),
            }
        });
    let bytes = match &answer {
        Ok(reply) => message(header.kind, header.req_id, header.tx_id, reply),
        Err(error) => refusal(header, *error),
    };
    if let Some(connection) = store.connections.get_mut(&domid) {
        connection.reply(bytes);
        if let Some(watch) = effects.first_event {
            let limit = event_limit(domid, &store.quota);
            connection.event(&watch, &watch.path, limit);
        }
    }
    store.fire(&effects.changes);
}

/// The reply that refuses a request.
pub fn refusal(header: XsMsg, error: StoreError) -> Vec<u8> {
    let text = format!("{}\0", error.name());
    message(XS_ERROR, header.req_id, header.tx_id, text.as_bytes())
}

#[derive(Default)]
struct Effects {
    changes: Vec<Change>,
    /// A watch fires once when it is registered.
    first_event: Option<Rc<super::watch::Watch>>,
}

fn dispatch(
    store: &mut Store,
    domid: DomId,
    header: XsMsg,
    payload: &[u8],
    effects: &mut Effects,
) -> Answer {
    match header.kind {
        XS_DIRECTORY | XS_DIRECTORY_PART | XS_READ | XS_GET_PERMS | XS_WRITE | XS_MKDIR | XS_RM
        | XS_SET_PERMS => on_nodes(store, domid, header, payload, effects),
        XS_WATCH => watch(store, domid, payload, effects),
        XS_UNWATCH => unwatch(store, domid, payload),
        XS_TRANSACTION_START => transaction_start(store, domid, header),
        XS_TRANSACTION_END => transaction_end(store, domid, header, payload, effects),
        XS_GET_DOMAIN_PATH => {
            let text = home(domid_of(payload)?);
            Ok(format!("{text}\0").into_bytes())
        }
        XS_IS_DOMAIN_INTRODUCED => {
            let answer = match store.is_introduced(domid_of(payload)?) {
                true => b"T\0",
                false => b"F\0",
            };
            Ok(answer.to_vec())
        }
        XS_RESET_WATCHES => {
            store.watches.remove_all(domid);
            if let Some(connection) = store.connections.get_mut(&domid) {
                connection.transactions.clear();
            }
            ok()
        }
        XS_CONTROL | XS_INTRODUCE | XS_RELEASE | XS_RESUME | XS_SET_TARGET => {
            Err(StoreError::EACCES)
        }
        _ => Err(StoreError::ENOSYS),
    }
}

fn ok() -> Answer {
    Ok(b"OK\0".to_vec())
}

fn domid_of(payload: &[u8]) -> Result<DomId, StoreError> {
    let number = one_string(payload).and_then(parse_decimal);
    let number = number.and_then(|n| u16::try_from(n).ok());
    number.map(DomId::new).ok_or(StoreError::EINVAL)
}

/// Requests about nodes, in the transaction that the header names or directly.
fn on_nodes(
    store: &mut Store,
    domid: DomId,
    header: XsMsg,
    payload: &[u8],
    effects: &mut Effects,
) -> Answer {
    let client = store.client(domid);
    if header.tx_id == 0 {
        let (reply, changes) = node_request(&mut store.tree, client, header.kind, payload)?;
        effects.changes = changes;
        return Ok(reply);
    }
    let connection = store.connections.get_mut(&domid);
    let connection = connection.ok_or(StoreError::ENOENT)?;
    if let Some(quota) = client.quota
        && connection.touched() > quota.touched
    {
        return Err(StoreError::ENOSPC);
    }
    let transaction = connection.transactions.get_mut(&header.tx_id);
    let transaction = transaction.ok_or(StoreError::ENOENT)?;
    let mut view = transaction.view(&store.tree);
    let (reply, changes) = node_request(&mut view, client, header.kind, payload)?;
    transaction.note(changes);
    Ok(reply)
}

fn node_request(
    space: &mut impl Space,
    client: Client,
    kind: u32,
    payload: &[u8],
) -> Result<(Vec<u8>, Vec<Change>), StoreError> {
    let path = |text: &[u8]| Path::parse(text, client.domid);
    let only_path = || one_string(payload).ok_or(StoreError::EINVAL).and_then(path);
    let split = || first_string(payload).ok_or(StoreError::EINVAL);
    let silent = |reply: Vec<u8>| Ok((reply, Vec::new()));
    let done = |changes| Ok((b"OK\0".to_vec(), changes));
    match kind {
        XS_READ => silent(ops::read(space, client, &only_path()?)?.value.clone()),
        XS_DIRECTORY => silent(names(&ops::read(space, client, &only_path()?)?.children)),
        XS_DIRECTORY_PART => {
            let (at, offset) = two_strings(payload).ok_or(StoreError::EINVAL)?;
            let offset = parse_decimal(offset).ok_or(StoreError::EINVAL)?;
            silent(part(&*ops::read(space, client, &path(at)?)?, offset as usize)?)
        }
        XS_GET_PERMS => silent(ops::read(space, client, &only_path()?)?.perms.to_wire()),
        XS_WRITE => {
            let (at, value) = split()?;
            done(ops::write(space, client, &path(at)?, value)?)
        }
        XS_MKDIR => done(ops::mkdir(space, client, &only_path()?)?),
        XS_RM => done(ops::rm(space, client, &only_path()?)?),
        _ => {
            let (at, list) = split()?;
            let (&last, list) = list.split_last().ok_or(StoreError::EINVAL)?;
            if last != 0 {
                return Err(StoreError::EINVAL);
            }
            let perms = Perms::parse(list.split(|&b| b == 0))?;
            done(ops::set_perms(space, client, &path(at)?, perms)?)
        }
    }
}

fn names(children: &BTreeSet<Rc<str>>) -> Vec<u8> {
    let mut list = Vec::new();
    for name in children {
        list.extend_from_slice(name.as_bytes());
        list.push(0);
    }
    list
}

/// One piece of a long folder: its generation, then names from byte `offset` of the
/// list on; an empty name marks the end.
fn part(node: &super::tree::Node, offset: usize) -> Answer {
    let list = names(&node.children);
    if offset > list.len() {
        return Err(StoreError::EINVAL);
    }
    let mut reply = node.generation.to_string().into_bytes();
    reply.push(0);
    let room = XENSTORE_PAYLOAD_MAX - reply.len();
    let rest = &list[offset..];
    if rest.len() < room {
        reply.extend_from_slice(rest);
        reply.push(0);
        return Ok(reply);
    }
    let end = rest[..room].iter().rposition(|&b| b == 0);
    reply.extend_from_slice(&rest[..end.map_or(0, |end| end + 1)]);
    Ok(reply)
}

/// What may be watched: a node, there or not, or an event whose name starts with `@`.
fn watch_target(text: &[u8], domid: DomId) -> Result<(Rc<str>, bool), StoreError> {
    if text.first() == Some(&b'@') {
        let name = core::str::from_utf8(text).map_err(|_| StoreError::EINVAL)?;
        if name.len() > XENSTORE_REL_PATH_MAX {
            return Err(StoreError::EINVAL);
        }
        return Ok((name.into(), false));
    }
    let is_relative = text.first() != Some(&b'/');
    Ok((Path::parse(text, domid)?.shared(), is_relative))
}

fn watch(store: &mut Store, domid: DomId, payload: &[u8], effects: &mut Effects) -> Answer {
    let (target, token) = two_strings(payload).ok_or(StoreError::EINVAL)?;
    let (path, is_relative) = watch_target(target, domid)?;
    if let Some(quota) = store.client(domid).quota
        && (store.watches.held(domid) >= quota.watches || token.len() > quota.token_bytes)
    {
        return Err(StoreError::E2BIG);
    }
    effects.first_event = Some(store.watches.add(domid, path, token, is_relative)?);
    ok()
}

fn unwatch(store: &mut Store, domid: DomId, payload: &[u8]) -> Answer {
    let (target, token) = two_strings(payload).ok_or(StoreError::EINVAL)?;
    let (path, _) = watch_target(target, domid)?;
    store.watches.remove(domid, &path, token)?;
    ok()
}

fn transaction_start(store: &mut Store, domid: DomId, header: XsMsg) -> Answer {
    if header.tx_id != 0 {
        return Err(StoreError::EBUSY);
    }
    let quota = store.client(domid).quota;
    let connection = store.connections.get_mut(&domid);
    let connection = connection.ok_or(StoreError::ENOENT)?;
    if quota.is_some_and(|quota| connection.transactions.len() >= quota.transactions) {
        return Err(StoreError::ENOSPC);
    }
    Ok(format!("{}\0", connection.open_transaction()).into_bytes())
}

fn transaction_end(
    store: &mut Store,
    domid: DomId,
    header: XsMsg,
    payload: &[u8],
    effects: &mut Effects,
) -> Answer {
    let is_success = match payload {
        b"T\0" => true,
        b"F\0" => false,
        _ => return Err(StoreError::EINVAL),
    };
    let max_nodes = store.client(domid).quota.map(|quota| quota.nodes);
    let connection = store.connections.get_mut(&domid);
    let connection = connection.ok_or(StoreError::ENOENT)?;
    let transaction = connection.transactions.remove(&header.tx_id);
    let transaction = transaction.ok_or(StoreError::ENOENT)?;
    if is_success {
        effects.changes = transaction.commit(&mut store.tree, domid, max_nodes)?;
    }
    ok()
}
