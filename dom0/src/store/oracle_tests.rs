//! The store against a naive oracle: one flat map of text, scanned from end to end
//! for every question, without transactions. A transaction that the store lets
//! succeed must be explained by running it in one go at its end: every reply the
//! client got on the way must be what the oracle says then.

use super::{
    wire::{Assembler, Incoming},
    *,
};
use bulkhead_abi::xs_wire::*;
use proptest::prelude::*;
use std::{
    collections::BTreeMap,
    format,
    string::{String, ToString},
};

type Reply = Result<Vec<u8>, String>;

/// Nodes by path.
#[derive(Clone, Default, PartialEq, Debug)]
struct Oracle(BTreeMap<String, Known>);

/// Value, owner, others' letter, exceptions.
type Known = (Vec<u8>, u16, char, Vec<(u16, char)>);

impl Oracle {
    fn allows(&self, path: &str, who: u16, wanted: char) -> bool {
        let (_, owner, others, list) = &self.0[path];
        let letter = match list.iter().find(|(id, _)| *id == who) {
            _ if who == 0 || who == *owner => 'b',
            Some((_, letter)) => *letter,
            None => *others,
        };
        letter == 'b' || letter == wanted
    }

    fn above(&self, path: &str) -> String {
        let folders = self.0.keys().filter(|p| *p == "/" || path.starts_with(&format!("{p}/")));
        folders.max_by_key(|p| p.len()).unwrap().clone()
    }

    fn check(&self, path: &str, who: u16, wanted: char) -> Result<(), String> {
        if self.0.contains_key(path) {
            return match self.allows(path, who, wanted) {
                true => Ok(()),
                false => Err("EACCES".into()),
            };
        }
        match self.allows(&self.above(path), who, wanted) {
            true => Err("ENOENT".into()),
            false => Err("EACCES".into()),
        }
    }

    fn make(&mut self, path: &str, who: u16) {
        let (_, owner, others, list) = self.0[&self.above(path)].clone();
        let owner = if who == 0 { owner } else { who };
        let mut at = String::new();
        for part in path[1..].split('/') {
            at = format!("{at}/{part}");
            let fresh = (Vec::new(), owner, others, list.clone());
            self.0.entry(at.clone()).or_insert(fresh);
        }
    }

    fn ask(&mut self, who: u16, kind: u32, path: &str, rest: &[u8]) -> Reply {
        let done = || Ok(b"OK\0".to_vec());
        match kind {
            XS_READ => self.check(path, who, 'r').map(|()| self.0[path].0.clone()),
            XS_DIRECTORY => {
                self.check(path, who, 'r')?;
                let prefix = if path == "/" { "/".to_string() } else { format!("{path}/") };
                let below = self.0.keys().filter_map(|p| p.strip_prefix(&prefix));
                let names = below.filter(|n| !n.is_empty() && !n.contains('/'));
                Ok(names.flat_map(|n| [n.as_bytes(), b"\0"].concat()).collect())
            }
            XS_WRITE | XS_MKDIR => {
                match self.check(path, who, 'w') {
                    Err(e) if e == "ENOENT" => self.make(path, who),
                    other => other?,
                }
                if kind == XS_WRITE {
                    self.0.get_mut(path).unwrap().0 = rest.to_vec();
                }
                done()
            }
            XS_RM => {
                if path == "/" {
                    return Err("EINVAL".into());
                }
                let parent = match path.rfind('/').unwrap() {
                    0 => "/",
                    at => &path[..at],
                };
                match self.check(path, who, 'w') {
                    Err(e) if e == "ENOENT" && self.0.contains_key(parent) => return done(),
                    other => other?,
                }
                self.0.retain(|p, _| p != path && !p.starts_with(&format!("{path}/")));
                done()
            }
            _ => {
                self.check(path, who, 'w')?;
                let letter = rest[0] as char;
                let node = self.0.get_mut(path).unwrap();
                if who != 0 && node.1 != who {
                    return Err("EACCES".into());
                }
                node.2 = letter;
                node.3.clear();
                done()
            }
        }
    }
}

#[derive(Clone, Debug)]
enum Step {
    Node { who: u16, in_tx: bool, kind: u32, path: usize, value: u8 },
    Start { who: u16 },
    End { who: u16, commit: bool },
}

const PATHS: [&str; 9] = ["/", "/a", "/a/b", "/a/b/c", "/a/d", "/p", "/p/q", "/p/q/r/s", "/z/y"];
const LETTERS: &[u8] = b"nrwb";

fn step() -> impl Strategy<Value = Step> {
    let kinds = prop::sample::select(std::vec![
        XS_READ,
        XS_DIRECTORY,
        XS_WRITE,
        XS_WRITE,
        XS_MKDIR,
        XS_RM,
        XS_SET_PERMS
    ]);
    prop_oneof![
        8 => (0u16..3, any::<bool>(), kinds, 0..PATHS.len(), any::<u8>()).prop_map(
            |(who, in_tx, kind, path, value)| Step::Node { who, in_tx, kind, path, value }),
        1 => (0u16..3).prop_map(|who| Step::Start { who }),
        2 => (0u16..3, any::<bool>()).prop_map(|(who, c)| Step::End { who, commit: c }),
    ]
}

struct Open {
    id: u32,
    log: Vec<(u32, String, Vec<u8>, Reply)>,
    /// Requests that may have changed something, up to its start.
    writes_before: usize,
}

fn send(store: &mut Store, who: u16, tx_id: u32, kind: u32, payload: &[u8]) -> Reply {
    let who = DomId::new(who);
    store.request(who, XsMsg { kind, req_id: 1, tx_id, len: payload.len() as u32 }, payload);
    let bytes = store.take_output(who).unwrap();
    let Some(Incoming::Request { header, payload }) = Assembler::default().take(&mut &bytes[..])
    else {
        panic!("no message");
    };
    match header.kind == XS_ERROR {
        true => Err(String::from_utf8(payload).unwrap().trim_end_matches('\0').into()),
        false => Ok(payload),
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(600))]
    #[test]
    fn every_history_is_one_the_oracle_can_explain(steps in prop::collection::vec(step(), 1..80)) {
        let mut store = Store::new(Quota::GUEST);
        let mut oracle = Oracle::default();
        oracle.0.insert("/".into(), (Vec::new(), 0, 'r', Vec::new()));
        for (path, owner, letter) in [("/a", 1, 'r'), ("/p", 2, 'b')] {
            let mut perms = Perms::private(DomId::new(owner));
            perms.others = if letter == 'r' { Access::READ } else { Access::BOTH };
            store.write_as(path, "", perms).unwrap();
            oracle.0.insert(path.into(), (Vec::new(), owner, letter, Vec::new()));
        }
        for who in 1..3 {
            store.introduce(DomId::new(who));
        }
        store.events();
        let mut open: BTreeMap<u16, Open> = BTreeMap::new();
        let mut writes = 0;
        for step in steps {
            match step {
                Step::Node { who, in_tx, kind, path, value } => {
                    let path = PATHS[path];
                    let rest = match kind {
                        XS_WRITE => std::vec![value],
                        XS_SET_PERMS => {
                            // Only the owner is spared a change of hands.
                            let owner = oracle.0.get(path).map_or(who, |n| n.1);
                            let owner = if who == 0 { owner } else { who };
                            format!("{}{owner}\0", LETTERS[value as usize % 4] as char).into_bytes()
                        }
                        _ => Vec::new(),
                    };
                    let payload = [path.as_bytes(), b"\0", &rest].concat();
                    match open.get_mut(&who).filter(|_| in_tx && kind != XS_SET_PERMS) {
                        Some(tx) => {
                            let reply = send(&mut store, who, tx.id, kind, &payload);
                            tx.log.push((kind, path.into(), rest, reply));
                        }
                        None => {
                            let reply = send(&mut store, who, 0, kind, &payload);
                            writes += usize::from(!matches!(kind, XS_READ | XS_DIRECTORY));
                            prop_assert_eq!(reply, oracle.ask(who, kind, path, &rest));
                        }
                    }
                }
                Step::Start { who } => {
                    open.entry(who).or_insert_with(|| {
                        let id = send(&mut store, who, 0, XS_TRANSACTION_START, b"\0").unwrap();
                        let id = core::str::from_utf8(&id[..id.len() - 1]).unwrap();
                        Open { id: id.parse().unwrap(), log: Vec::new(), writes_before: writes }
                    });
                }
                Step::End { who, commit } => {
                    let Some(tx) = open.remove(&who) else { continue };
                    let word: &[u8] = if commit { b"T\0" } else { b"F\0" };
                    let reply = send(&mut store, who, tx.id, XS_TRANSACTION_END, word);
                    if !commit {
                        prop_assert!(reply.is_ok());
                    } else if reply.is_ok() {
                        for (kind, path, rest, got) in tx.log {
                            prop_assert_eq!(oracle.ask(who, kind, &path, &rest), got);
                        }
                        writes += 1;
                    } else {
                        prop_assert_eq!(reply, Err("EAGAIN".into()));
                        prop_assert_ne!(tx.writes_before, writes, "a conflict needs a second party");
                    }
                }
            }
        }
        for path in PATHS {
            prop_assert_eq!(store.read(path).ok(), oracle.0.get(path).map(|n| n.0.clone()));
        }
    }
}
