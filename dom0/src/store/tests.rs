//! The store as its clients see it, request by request.

use super::{
    wire::{Assembler, Incoming, message},
    *,
};
use bulkhead_abi::xs_wire::*;
use std::{format, string::String, vec};

const A: DomId = DomId::new(1);
const B: DomId = DomId::new(2);

fn store() -> Store {
    let mut store = Store::new(Quota::GUEST);
    for domid in [A, B] {
        let home = format!("/local/domain/{}", domid.get());
        store.write_as(&home, "", Perms::private(DomId::DOM0).with(domid, Access::READ)).unwrap();
        store.write_as(&format!("{home}/data"), "", Perms::private(domid)).unwrap();
        store.introduce(domid);
    }
    store
}

fn ask_in(
    store: &mut Store,
    who: DomId,
    tx_id: u32,
    kind: u32,
    payload: &[u8],
) -> Result<Vec<u8>, String> {
    let header = XsMsg { kind, req_id: 77, tx_id, len: payload.len() as u32 };
    store.request(who, header, payload);
    let mut reply = None;
    while reply.is_none() {
        let bytes = store.take_output(who).expect("a reply");
        match Assembler::default().take(&mut &bytes[..]) {
            Some(Incoming::Request { header, .. }) if header.kind == XS_WATCH_EVENT => {}
            Some(Incoming::Request { header, payload }) => {
                assert_eq!((header.req_id, header.tx_id), (77, tx_id));
                reply = Some((header.kind, payload));
            }
            other => panic!("{other:?}"),
        }
    }
    let (got, payload) = reply.unwrap();
    if got == XS_ERROR {
        return Err(String::from_utf8(payload).unwrap().trim_end_matches('\0').into());
    }
    assert_eq!(got, kind);
    Ok(payload)
}

fn ask(store: &mut Store, who: DomId, kind: u32, payload: &[u8]) -> Result<Vec<u8>, String> {
    ask_in(store, who, 0, kind, payload)
}

fn events(store: &mut Store, who: DomId) -> Vec<String> {
    let mut events = Vec::new();
    while let Some(bytes) = store.take_output(who) {
        if let Some(Incoming::Request { header, payload }) =
            Assembler::default().take(&mut &bytes[..])
        {
            assert_eq!(header.kind, XS_WATCH_EVENT);
            events.push(String::from_utf8(payload).unwrap().replace('\0', " ").trim_end().into());
        }
    }
    events
}

#[test]
fn a_guest_reads_back_what_it_wrote() {
    let mut s = store();
    assert_eq!(ask(&mut s, A, XS_WRITE, b"data/x/y\0hello").unwrap(), b"OK\0");
    assert_eq!(ask(&mut s, A, XS_READ, b"/local/domain/1/data/x/y\0").unwrap(), b"hello");
    assert_eq!(ask(&mut s, A, XS_READ, b"data/x\0").unwrap(), b"");
    assert_eq!(ask(&mut s, A, XS_DIRECTORY, b"data\0").unwrap(), b"x\0");
}

#[test]
fn a_folder_listing_of_a_leaf_is_empty_and_of_nothing_is_enoent() {
    let mut s = store();
    ask(&mut s, A, XS_WRITE, b"data/x\0v").unwrap();
    assert_eq!(ask(&mut s, A, XS_DIRECTORY, b"data/x\0").unwrap(), b"");
    assert_eq!(ask(&mut s, A, XS_DIRECTORY, b"data/none\0").unwrap_err(), "ENOENT");
}

#[test]
fn domains_are_kept_out_of_what_is_not_theirs() {
    let mut s = store();
    assert_eq!(ask(&mut s, A, XS_WRITE, b"/local/domain/2/data/x\0v").unwrap_err(), "EACCES");
    assert_eq!(ask(&mut s, A, XS_READ, b"/local/domain/2/data/x\0").unwrap_err(), "EACCES");
    assert_eq!(ask(&mut s, A, XS_READ, b"/local/domain/2/data\0").unwrap_err(), "EACCES");
    assert_eq!(ask(&mut s, A, XS_RM, b"/local/domain/2/data\0").unwrap_err(), "EACCES");
    assert_eq!(ask(&mut s, A, XS_RM, b"/local/domain/1\0").unwrap_err(), "EACCES");
    assert_eq!(ask(&mut s, A, XS_MKDIR, b"/x\0").unwrap_err(), "EACCES");
    assert_eq!(ask(&mut s, A, XS_RM, b"/\0").unwrap_err(), "EINVAL");
    for kind in [XS_INTRODUCE, XS_RELEASE, XS_CONTROL, XS_SET_TARGET, XS_RESUME] {
        assert_eq!(ask(&mut s, A, kind, b"2\0").unwrap_err(), "EACCES");
    }
    assert_eq!(ask(&mut s, A, 99, b"").unwrap_err(), "ENOSYS");
}

#[test]
fn permissions_open_a_node_to_a_peer_and_only_the_owner_sets_them() {
    let mut s = store();
    ask(&mut s, A, XS_WRITE, b"data/x\0v").unwrap();
    assert_eq!(ask(&mut s, A, XS_SET_PERMS, b"data/x\0n1\0b2\0").unwrap(), b"OK\0");
    assert_eq!(ask(&mut s, A, XS_GET_PERMS, b"data/x\0").unwrap(), b"n1\0b2\0");
    assert_eq!(ask(&mut s, B, XS_READ, b"/local/domain/1/data/x\0").unwrap(), b"v");
    assert_eq!(ask(&mut s, B, XS_WRITE, b"/local/domain/1/data/x\0w").unwrap(), b"OK\0");
    assert_eq!(
        ask(&mut s, B, XS_SET_PERMS, b"/local/domain/1/data/x\0n2\0").unwrap_err(),
        "EACCES"
    );
    assert_eq!(ask(&mut s, A, XS_SET_PERMS, b"data/x\0n2\0").unwrap_err(), "EPERM");
    assert_eq!(ask(&mut s, A, XS_SET_PERMS, b"data/x\0\0").unwrap_err(), "EINVAL");
    assert_eq!(ask(&mut s, A, XS_SET_PERMS, b"data/x\0n1").unwrap_err(), "EINVAL");
    assert_eq!(
        ask(&mut s, A, XS_SET_PERMS, b"data/x\0n1\0r2\0r3\0r4\0r5\0r6\0").unwrap_err(),
        "ENOSPC"
    );
}

#[test]
fn removing_removes_what_is_below_and_is_content_with_nothing() {
    let mut s = store();
    ask(&mut s, A, XS_WRITE, b"data/x/y/z\0v").unwrap();
    ask(&mut s, A, XS_RM, b"data/x\0").unwrap();
    assert_eq!(ask(&mut s, A, XS_READ, b"data/x/y/z\0").unwrap_err(), "ENOENT");
    assert_eq!(ask(&mut s, A, XS_DIRECTORY, b"data\0").unwrap(), b"");
    assert_eq!(ask(&mut s, A, XS_RM, b"data/x\0").unwrap(), b"OK\0");
    assert_eq!(ask(&mut s, A, XS_RM, b"data/x/y\0").unwrap_err(), "ENOENT");
}

#[test]
fn malformed_requests_are_refused() {
    let mut s = store();
    for (kind, payload) in [
        (XS_READ, &b"data"[..]),
        (XS_READ, b""),
        (XS_READ, b"data\0data\0"),
        (XS_READ, b"data/\0"),
        (XS_WRITE, b"data"),
        (XS_MKDIR, b"a b\0"),
        (XS_WATCH, b"data\0"),
        (XS_WATCH, b"data\0token"),
        (XS_UNWATCH, b"data\0"),
        (XS_TRANSACTION_END, b"X\0"),
        (XS_GET_DOMAIN_PATH, b"x\0"),
        (XS_DIRECTORY_PART, b"data\0x\0"),
        (XS_DIRECTORY_PART, b"data\x001x\0"),
        (XS_SET_PERMS, b"data\0"),
    ] {
        assert_eq!(ask(&mut s, A, kind, payload).unwrap_err(), "EINVAL", "{kind} {payload:?}");
    }
}

#[test]
fn a_watch_fires_at_once_then_for_the_node_and_all_below_it() {
    let mut s = store();
    ask(&mut s, A, XS_WATCH, b"data\0tok\0").unwrap();
    assert_eq!(events(&mut s, A), ["data tok"]);
    ask(&mut s, A, XS_WATCH, b"/local/domain/1/data/x\0abs\0").unwrap();
    assert_eq!(events(&mut s, A), ["/local/domain/1/data/x abs"]);
    s.write("/local/domain/1/data/x/y", "v").unwrap();
    assert_eq!(events(&mut s, A), ["/local/domain/1/data/x/y abs", "data/x/y tok"]);
    s.write("/local/domain/1/data", "v").unwrap();
    assert_eq!(events(&mut s, A), ["data tok"]);
    ask(&mut s, A, XS_UNWATCH, b"data\0tok\0").unwrap();
    s.write("/local/domain/1/data", "v").unwrap();
    assert_eq!(events(&mut s, A), [""; 0]);
    assert_eq!(ask(&mut s, A, XS_UNWATCH, b"data\0tok\0").unwrap_err(), "ENOENT");
}

#[test]
fn a_watch_below_a_removed_folder_hears_of_its_own_node() {
    let mut s = store();
    s.write("/local/domain/1/data/x/y", "v").unwrap();
    ask(&mut s, A, XS_WATCH, b"data/x/y\0deep\0").unwrap();
    ask(&mut s, A, XS_WATCH, b"data\0high\0").unwrap();
    events(&mut s, A);
    s.remove("/local/domain/1/data/x").unwrap();
    assert_eq!(events(&mut s, A), ["data/x high", "data/x/y deep"]);
}

#[test]
fn nobody_hears_of_nodes_it_may_not_read() {
    let mut s = store();
    ask(&mut s, B, XS_WATCH, b"/local/domain/1\0t\0").unwrap();
    events(&mut s, B);
    ask(&mut s, A, XS_WRITE, b"data/x\0v").unwrap();
    assert_eq!(events(&mut s, B), [""; 0]);
    ask(&mut s, A, XS_SET_PERMS, b"data/x\0r1\0").unwrap();
    assert_eq!(events(&mut s, B), ["/local/domain/1/data/x t"]);
}

#[test]
fn watches_are_unique_counted_and_reset() {
    let mut s = store();
    ask(&mut s, A, XS_WATCH, b"data\0t\0").unwrap();
    assert_eq!(ask(&mut s, A, XS_WATCH, b"data\0t\0").unwrap_err(), "EEXIST");
    for n in 1..128 {
        ask(&mut s, A, XS_WATCH, format!("data\0{n}\0").as_bytes()).unwrap();
    }
    assert_eq!(ask(&mut s, A, XS_WATCH, b"data\0more\0").unwrap_err(), "E2BIG");
    ask(&mut s, A, XS_RESET_WATCHES, b"\0").unwrap();
    events(&mut s, A);
    s.write("/local/domain/1/data", "v").unwrap();
    assert_eq!(events(&mut s, A), [""; 0]);
    ask(&mut s, A, XS_WATCH, b"data\0t\0").unwrap();
}

#[test]
fn events_nobody_takes_are_merged_not_lost() {
    let mut s = store();
    ask(&mut s, A, XS_WATCH, b"data\0t\0").unwrap();
    for n in 0..600 {
        s.write(&format!("/local/domain/1/data/{n}"), "").unwrap();
        s.write(&format!("/local/domain/1/data/{n}"), "").unwrap();
    }
    let got = events(&mut s, A);
    assert!(got.len() <= Quota::GUEST.events + 1, "{}", got.len());
    assert!(got.contains(&"data t".into()), "the watched node stands for the rest");
}

#[test]
fn a_transaction_appears_at_once_or_not_at_all() {
    let mut s = store();
    ask(&mut s, A, XS_WATCH, b"data\0t\0").unwrap();
    events(&mut s, A);
    let id = ask(&mut s, A, XS_TRANSACTION_START, b"\0").unwrap();
    let id: u32 = core::str::from_utf8(&id[..id.len() - 1]).unwrap().parse().unwrap();
    ask_in(&mut s, A, id, XS_WRITE, b"data/x\0v").unwrap();
    ask_in(&mut s, A, id, XS_WRITE, b"data/y\0w").unwrap();
    assert_eq!(ask_in(&mut s, A, id, XS_READ, b"data/x\0").unwrap(), b"v");
    assert_eq!(ask(&mut s, A, XS_READ, b"data/x\0").unwrap_err(), "ENOENT");
    assert_eq!(events(&mut s, A), [""; 0]);
    assert_eq!(ask_in(&mut s, A, id, XS_TRANSACTION_START, b"\0").unwrap_err(), "EBUSY");
    ask_in(&mut s, A, id, XS_TRANSACTION_END, b"T\0").unwrap();
    assert_eq!(s.read("/local/domain/1/data/y").unwrap(), b"w");
    assert_eq!(events(&mut s, A), ["data/x t", "data/y t"]);
    assert_eq!(ask_in(&mut s, A, id, XS_READ, b"data/x\0").unwrap_err(), "ENOENT");
}

#[test]
fn a_transaction_over_stale_nodes_is_to_be_tried_again() {
    let mut s = store();
    s.write("/local/domain/1/data/x", "1").unwrap();
    let id = ask(&mut s, A, XS_TRANSACTION_START, b"\0").unwrap()[0] - b'0';
    ask_in(&mut s, A, id.into(), XS_READ, b"data/x\0").unwrap();
    ask_in(&mut s, A, id.into(), XS_WRITE, b"data/z\0gone").unwrap();
    s.write("/local/domain/1/data/x", "2").unwrap();
    assert_eq!(ask_in(&mut s, A, id.into(), XS_TRANSACTION_END, b"T\0").unwrap_err(), "EAGAIN");
    assert!(s.read("/local/domain/1/data/z").is_err());
}

#[test]
fn quotas_hold_inside_and_outside_of_transactions() {
    let mut s = store();
    assert_eq!(
        ask(&mut s, A, XS_WRITE, &[&b"data/big\0"[..], &[7; 2049]].concat()).unwrap_err(),
        "ENOSPC"
    );
    let deep = format!("data{}\0", "/d".repeat(70));
    assert_eq!(ask(&mut s, A, XS_WRITE, deep.as_bytes()).unwrap_err(), "ENOSPC");
    let id = ask(&mut s, A, XS_TRANSACTION_START, b"\0").unwrap()[0] - b'0';
    let mut created = 0;
    while ask_in(&mut s, A, id.into(), XS_WRITE, format!("data/t{created}\0").as_bytes()).is_ok() {
        created += 1;
        assert!(created < 2000);
    }
    let mut direct = 0;
    while ask(&mut s, A, XS_WRITE, format!("data/n{direct}\0").as_bytes()).is_ok() {
        direct += 1;
        assert!(direct < 2000);
    }
    assert_eq!(direct, 999, "`data` itself is the thousandth");
    assert!(ask_in(&mut s, A, id.into(), XS_TRANSACTION_END, b"T\0").is_err());
    assert_eq!(
        ask(&mut s, B, XS_WRITE, b"data/x\0v").unwrap(),
        b"OK\0",
        "others are not touched by it"
    );
    for _ in 0..10 {
        ask(&mut s, B, XS_TRANSACTION_START, b"\0").unwrap();
    }
    assert_eq!(ask(&mut s, B, XS_TRANSACTION_START, b"\0").unwrap_err(), "ENOSPC");
}

#[test]
fn a_long_folder_is_read_in_parts() {
    let mut s = store();
    let name = "n".repeat(100);
    let mut expected = Vec::new();
    for n in 0..90 {
        s.write(&format!("/local/domain/1/data/{name}{n:02}"), "").unwrap();
        expected.push(format!("{name}{n:02}"));
    }
    assert_eq!(ask(&mut s, A, XS_DIRECTORY, b"data\0").unwrap_err(), "E2BIG");
    let (mut got, mut list) = (Vec::new(), 0);
    loop {
        let reply =
            ask(&mut s, A, XS_DIRECTORY_PART, format!("data\0{list}\0").as_bytes()).unwrap();
        let end = reply.iter().position(|&b| b == 0).unwrap();
        let part = &reply[end + 1..];
        let is_last = part.last() == Some(&0) && (part.len() == 1 || part[part.len() - 2] == 0);
        let part = if is_last { &part[..part.len() - 1] } else { part };
        list += part.len();
        got.extend(
            part.split_inclusive(|&b| b == 0)
                .map(|n| String::from_utf8(n[..n.len() - 1].to_vec()).unwrap()),
        );
        if is_last {
            break;
        }
    }
    assert_eq!(got, expected);
}

#[test]
fn a_released_client_leaves_nothing_that_speaks() {
    let mut s = store();
    ask(&mut s, A, XS_WATCH, b"data\0t\0").unwrap();
    s.watch("@releaseDomain", "gone").unwrap();
    s.events();
    s.release(A);
    assert_eq!(s.events(), vec![("@releaseDomain".into(), b"gone".to_vec())]);
    s.write("/local/domain/1/data", "v").unwrap();
    assert!(s.take_output(A).is_none());
    s.request(A, XsMsg { kind: XS_READ, ..Default::default() }, b"data\0");
    assert!(s.take_output(A).is_none());
    assert_eq!(ask(&mut s, B, XS_IS_DOMAIN_INTRODUCED, b"1\0").unwrap(), b"F\0");
    assert_eq!(ask(&mut s, B, XS_IS_DOMAIN_INTRODUCED, b"2\0").unwrap(), b"T\0");
    assert_eq!(ask(&mut s, B, XS_GET_DOMAIN_PATH, b"12\0").unwrap(), b"/local/domain/12\0");
}

#[test]
fn messages_of_the_wire_carry_a_sixteen_byte_header() {
    let bytes = message(XS_READ, 0x01020304, 5, b"a\0");
    assert_eq!(bytes, [2, 0, 0, 0, 4, 3, 2, 1, 5, 0, 0, 0, 2, 0, 0, 0, b'a', 0]);
}
