//! The client of the store, over the ring that the domain was given at start.
//!
//! Any number of tasks may use it at once: replies are matched by request id, and what is
//! asked before anybody waits leaves together. Watches are streams. It must not know what the
//! nodes mean.

mod ring;
mod wire;

use crate::boot::Boot;
use crate::event::Channel;
use crate::exec;
use crate::shared::Shared;
use alloc::collections::{BTreeMap, VecDeque};
use alloc::format;
use alloc::rc::{Rc, Weak};
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use async_channel::{Receiver, Sender};
use bulkhead_abi::xs_wire as xs;
use core::cell::RefCell;
use core::fmt;
use wire::{Decoder, Message};

/// Why the store did not do what it was asked.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Error {
    /// No such node.
    NotFound,
    /// The transaction conflicted with somebody else's change.
    Again,
    /// Not permitted.
    Access,
    /// Exists already.
    Exists,
    /// The request or its path is not valid, or longer than a message may be.
    Invalid,
    /// Another error, by the name the store gave it.
    Other(String),
    /// A value that is there but is not what was asked for, such as a number.
    Malformed,
    /// The store broke the protocol; it cannot be used any more.
    Broken,
}

impl Error {
    fn from_name(name: &str) -> Self {
        match name {
            "ENOENT" => Self::NotFound,
            "EAGAIN" => Self::Again,
            "EACCES" | "EPERM" => Self::Access,
            "EEXIST" => Self::Exists,
            "EINVAL" | "E2BIG" => Self::Invalid,
            other => Self::Other(other.to_string()),
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotFound => f.write_str("no such node"),
            Self::Again => f.write_str("transaction conflict"),
            Self::Access => f.write_str("not permitted"),
            Self::Exists => f.write_str("exists already"),
            Self::Invalid => f.write_str("invalid request"),
            Self::Other(name) => f.write_str(name),
            Self::Malformed => f.write_str("malformed value"),
            Self::Broken => f.write_str("the store broke the protocol"),
        }
    }
}

impl core::error::Error for Error {}

/// Result of a request to the store.
pub type Result<T> = core::result::Result<T, Error>;

/// A handle on the store; clones share the connection.
#[derive(Clone)]
pub struct Xenstore {
    inner: Rc<Inner>,
}

struct Inner {
    page: Shared<'static>,
    channel: Channel,
    state: RefCell<State>,
    /// Tells the pump that there is something to send.
    posted: Sender<()>,
}

#[derive(Default)]
struct State {
    next_id: u32,
    outgoing: VecDeque<u8>,
    replies: BTreeMap<u32, Sender<Message>>,
    watches: BTreeMap<u32, Sender<String>>,
    decoder: Decoder,
    broken: bool,
}

/// Connects to the store over the ring of `boot`; `None` when there is none. Needs the
/// executor to run.
pub fn connect(boot: &Boot) -> Option<Xenstore> {
    let ring = boot.store?;
    let (posted, to_send) = async_channel::bounded(1);
    let inner = Rc::new(Inner {
        page: crate::mem::own_page(ring.mfn)?,
        channel: Channel::adopt(ring.port),
        state: RefCell::new(State::default()),
        posted,
    });
    let pump = inner.clone();
    exec::spawn(async move {
        while pump.transfer() {
            let posted = async {
                // The sender lives as long as this task.
                let _ = to_send.recv().await;
            };
            exec::or(pump.channel.wait(), posted).await;
        }
        log::error!("xenstore: the ring is broken");
        pump.give_up();
    })
    .detach();
    Some(Xenstore { inner })
}

impl Inner {
    /// Moves bytes both ways; `false` when the other side broke the protocol.
    fn transfer(&self) -> bool {
        let mut state = self.state.borrow_mut();
        let sent = ring::send(self.page, &mut state.outgoing);
        let received = ring::receive(self.page, &mut state.decoder);
        let (Some(sent), Some(received)) = (sent, received) else {
            return false;
        };
        if sent || received {
            // The store may be on its way out; then replies never come anyway.
            let _ = self.channel.notify();
        }
        loop {
            match state.decoder.next() {
                Ok(Some(message)) => state.deliver(message),
                Ok(None) => return true,
                Err(wire::Garbage) => return false,
            }
        }
    }

    /// Ends everybody's wait with an error.
    fn give_up(&self) {
        let mut state = self.state.borrow_mut();
        state.broken = true;
        state.replies.clear();
        state.watches.clear();
    }
}

impl State {
    fn deliver(&mut self, message: Message) {
        if message.header.kind == xs::XS_WATCH_EVENT {
            let (path, rest) = wire::split_string(&message.payload);
            let (token, _) = wire::split_string(rest);
            let watch = token.parse().ok().and_then(|id: u32| self.watches.get(&id));
            if let Some(sender) = watch {
                // Unbounded, so it fails only when the watch was just dropped.
                let _ = sender.try_send(path);
            }
        } else if let Some(sender) = self.replies.remove(&message.header.req_id) {
            // Fails only when whoever asked does not care any more.
            let _ = sender.try_send(message);
        }
    }

    fn fresh_id(&mut self) -> u32 {
        self.next_id = self.next_id.wrapping_add(1);
        self.next_id
    }
}

/// A request that will leave when its task waits.
struct Pending {
    kind: u32,
    reply: Receiver<Message>,
}

impl Pending {
    async fn reply(self) -> Result<Vec<u8>> {
        let reply = self.reply.recv().await.map_err(|_| Error::Broken)?;
        match reply.header.kind {
            xs::XS_ERROR => Err(Error::from_name(&wire::split_string(&reply.payload).0)),
            kind if kind == self.kind => Ok(reply.payload),
            _ => Err(Error::Broken),
        }
    }
}

impl Xenstore {
    fn post(&self, kind: u32, tx: u32, parts: &[&[u8]]) -> Result<Pending> {
        let (sender, reply) = async_channel::bounded(1);
        let mut state = self.inner.state.borrow_mut();
        if state.broken {
            return Err(Error::Broken);
        }
        let id = state.fresh_id();
        let bytes = wire::encode(kind, id, tx, parts).ok_or(Error::Invalid)?;
        state.outgoing.extend(bytes);
        state.replies.insert(id, sender);
        // Full means that the pump is called already.
        let _ = self.inner.posted.try_send(());
        Ok(Pending { kind, reply })
    }

    async fn request(&self, kind: u32, tx: u32, parts: &[&[u8]]) -> Result<Vec<u8>> {
        self.post(kind, tx, parts)?.reply().await
    }

    /// The same of many nodes, in one go.
    async fn request_all(&self, kind: u32, paths: &[&str]) -> Vec<Result<Vec<u8>>> {
        let post = |path: &&str| self.post(kind, 0, &[path.as_bytes(), b"\0"]);
        let pending: Vec<_> = paths.iter().map(post).collect();
        let mut replies = Vec::with_capacity(pending.len());
        for pending in pending {
            replies.push(match pending {
                Ok(pending) => pending.reply().await,
                Err(error) => Err(error),
            });
        }
        replies
    }

    /// Reads values, each as [`Self::read`] does, in the time of one.
    pub async fn read_all<const N: usize>(&self, paths: [&str; N]) -> [Result<String>; N] {
        let mut replies = self.request_all(xs::XS_READ, &paths).await.into_iter();
        core::array::from_fn(|_| replies.next().unwrap_or(Err(Error::Broken)).map(text))
    }

    /// Names of the children of these nodes, each as [`Self::directory`] gives them, in the
    /// time of one.
    pub async fn directory_all(&self, paths: &[&str]) -> Vec<Result<Vec<String>>> {
        let replies = self.request_all(xs::XS_DIRECTORY, paths).await.into_iter();
        replies.map(|reply| reply.map(|names| wire::strings(&names))).collect()
    }

    fn plain(&self) -> Transaction<'_> {
        Transaction { store: self, id: 0 }
    }

    /// Reads a value; bytes that are not UTF-8 are replaced.
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Error::Access`].
    pub async fn read(&self, path: &str) -> Result<String> {
        self.plain().read(path).await
    }

    /// Reads a decimal number.
    ///
    /// # Errors
    /// As for [`Self::read`], and [`Error::Malformed`].
    pub async fn read_u64(&self, path: &str) -> Result<u64> {
        self.plain().read_u64(path).await
    }

    /// Writes a value, making the node if needed.
    ///
    /// # Errors
    /// [`Error::Access`], or a quota.
    pub async fn write(&self, path: &str, value: &str) -> Result<()> {
        self.plain().write(path, value).await
    }

    /// Makes a node with an empty value; one that exists is left alone.
    ///
    /// # Errors
    /// [`Error::Access`], or a quota.
    pub async fn mkdir(&self, path: &str) -> Result<()> {
        self.plain().mkdir(path).await
    }

    /// Removes a node and all below it.
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Error::Access`].
    pub async fn rm(&self, path: &str) -> Result<()> {
        self.plain().rm(path).await
    }

    /// Names of the children.
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Error::Access`].
    pub async fn directory(&self, path: &str) -> Result<Vec<String>> {
        self.plain().directory(path).await
    }

    /// Sets permissions, as `n5`, `r0`, ..: the owner with what others may do, then
    /// exceptions.
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Error::Access`].
    pub async fn set_perms(&self, path: &str, perms: &[&str]) -> Result<()> {
        self.plain().set_perms(path, perms).await
    }

    /// Watches a node and all below it. The first event comes at once.
    ///
    /// # Errors
    /// [`Error::Invalid`], or a quota.
    pub async fn watch(&self, path: &str) -> Result<Watch> {
        let (sender, events) = async_channel::unbounded();
        let token = {
            let mut state = self.inner.state.borrow_mut();
            let token = state.fresh_id();
            state.watches.insert(token, sender);
            token
        };
        let watch =
            Watch { inner: Rc::downgrade(&self.inner), path: path.to_string(), token, events };
        let text = token.to_string();
        let parts: [&[u8]; 4] = [path.as_bytes(), b"\0", text.as_bytes(), b"\0"];
        self.request(xs::XS_WATCH, 0, &parts).await?;
        Ok(watch)
    }

    /// Runs `body` in a transaction; again from the start when it conflicted.
    ///
    /// # Errors
    /// What `body` returns; then nothing is changed.
    pub async fn transaction<T>(
        &self,
        body: impl AsyncFn(&Transaction<'_>) -> Result<T>,
    ) -> Result<T> {
        loop {
            let reply = self.request(xs::XS_TRANSACTION_START, 0, &[b"\0"]).await?;
            let id = wire::split_string(&reply).0.parse();
            let id = id.map_err(|_| Error::Malformed)?;
            let result = body(&Transaction { store: self, id }).await;
            let verdict: &[u8] = if result.is_ok() { b"T\0" } else { b"F\0" };
            let end = self.request(xs::XS_TRANSACTION_END, id, &[verdict]).await;
            match (result, end) {
                (Ok(_), Err(Error::Again)) => {}
                (Ok(value), Ok(_)) => return Ok(value),
                (Ok(_), Err(error)) | (Err(error), _) => return Err(error),
            }
        }
    }
}

/// A value as text.
fn text(value: Vec<u8>) -> String {
    String::from_utf8_lossy(&value).into_owned()
}

/// A value as a decimal number.
///
/// # Errors
/// That of the value, and [`Error::Malformed`].
pub fn number(value: Result<String>) -> Result<u64> {
    value?.trim().parse().map_err(|_| Error::Malformed)
}

/// Requests that take effect together; see [`Xenstore::transaction`].
pub struct Transaction<'a> {
    store: &'a Xenstore,
    id: u32,
}

impl Transaction<'_> {
    async fn on_path(&self, kind: u32, path: &str, rest: &[u8]) -> Result<Vec<u8>> {
        let parts: [&[u8]; 3] = [path.as_bytes(), b"\0", rest];
        self.store.request(kind, self.id, &parts).await
    }

    /// See [`Xenstore::read`].
    ///
    /// # Errors
    /// As there.
    pub async fn read(&self, path: &str) -> Result<String> {
        self.on_path(xs::XS_READ, path, b"").await.map(text)
    }

    /// See [`Xenstore::read_u64`].
    ///
    /// # Errors
    /// As there.
    pub async fn read_u64(&self, path: &str) -> Result<u64> {
        number(self.read(path).await)
    }

    /// See [`Xenstore::write`].
    ///
    /// # Errors
    /// As there.
    pub async fn write(&self, path: &str, value: &str) -> Result<()> {
        let done = self.on_path(xs::XS_WRITE, path, value.as_bytes()).await;
        done.map(drop)
    }

    /// See [`Xenstore::mkdir`].
    ///
    /// # Errors
    /// As there.
    pub async fn mkdir(&self, path: &str) -> Result<()> {
        self.on_path(xs::XS_MKDIR, path, b"").await.map(drop)
    }

    /// See [`Xenstore::rm`].
    ///
    /// # Errors
    /// As there.
    pub async fn rm(&self, path: &str) -> Result<()> {
        self.on_path(xs::XS_RM, path, b"").await.map(drop)
    }

    /// See [`Xenstore::directory`].
    ///
    /// # Errors
    /// As there.
    pub async fn directory(&self, path: &str) -> Result<Vec<String>> {
        let names = self.on_path(xs::XS_DIRECTORY, path, b"").await?;
        Ok(wire::strings(&names))
    }

    /// See [`Xenstore::set_perms`].
    ///
    /// # Errors
    /// As there.
    pub async fn set_perms(&self, path: &str, perms: &[&str]) -> Result<()> {
        let rest: String = perms.iter().map(|p| format!("{p}\0")).collect();
        let done = self.on_path(xs::XS_SET_PERMS, path, rest.as_bytes()).await;
        done.map(drop)
    }
}

/// Events of one watch; ends it when dropped.
pub struct Watch {
    inner: Weak<Inner>,
    path: String,
    token: u32,
    events: Receiver<String>,
}

impl Watch {
    /// The path that changed: the watched node or one below it. `None` once the store
    /// is broken.
    pub async fn next(&self) -> Option<String> {
        self.events.recv().await.ok()
    }

    /// Drops events that wait already: the caller is about to look at everything.
    pub fn forget_waiting(&self) {
        while self.events.try_recv().is_ok() {}
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        let Some(inner) = self.inner.upgrade() else {
            return;
        };
        let mut state = inner.state.borrow_mut();
        state.watches.remove(&self.token);
        let (id, text) = (state.fresh_id(), self.token.to_string());
        let parts: [&[u8]; 4] = [self.path.as_bytes(), b"\0", text.as_bytes(), b"\0"];
        if let Some(bytes) = wire::encode(xs::XS_UNWATCH, id, 0, &parts) {
            state.outgoing.extend(bytes);
        }
        drop(state);
        // Nobody waits for this reply; a broken ring is the pump's to report.
        inner.transfer();
    }
}
