//! What a domain finds in the store when it starts (abi-notes 8.4): its own
//! folder, its devices, and the back-end folders that driver domains find.

use crate::store::{Access, Perms, Store, StoreError, path::home};
use alloc::{format, string::String};
use bulkhead_abi::{DomId, Gref, Mfn, Port, shared_info::EVTCHN_2L_PORTS, xs_wire};

/// Major number of `xvd` devices, and the form for those past the sixteenth
/// (public xen-vbd-interface).
const XVD_MAJOR: u32 = 202;
const EXTENDED: u32 = 1 << 28;
/// Devices that the short form can number.
const SHORT_FORM: u32 = 16;
/// Most devices of a guest: what the extended form can number.
const MAX_INDEX: u32 = 1 << 20;

/// The number of a virtual disk by its name: `xvda` is 51712. `None` for other names.
pub fn vdev_number(name: &str) -> Option<u32> {
    let letters = name.strip_prefix("xvd")?;
    if letters.is_empty() {
        return None;
    }
    let mut index: u32 = 0;
    for letter in letters.bytes() {
        let digit = letter.checked_sub(b'a').filter(|d| *d < 26)?;
        index = index.checked_mul(26)?.checked_add(u32::from(digit) + 1)?;
    }
    let index = index - 1;
    match index {
        0..SHORT_FORM => Some(XVD_MAJOR << 8 | index << 4),
        SHORT_FORM..MAX_INDEX => Some(EXTENDED | index << 8),
        _ => None,
    }
}

/// What the store says of a domain.
#[derive(Clone, Copy, Debug)]
pub struct DomainFacts<'a> {
    pub domid: DomId,
    pub name: &'a str,
    /// Names it for its own kernel.
    pub uuid: [u8; 16],
    pub memory_kib: u64,
    pub vcpus: u32,
    pub store_port: Port,
    pub store_ring: Mfn,
    pub console_port: Port,
    pub console_ring: Mfn,
}

/// Writes the folder of a domain. It may read all of it, and write where the
/// interface wants it to.
pub fn add_domain(store: &mut Store, facts: &DomainFacts<'_>) -> Result<(), StoreError> {
    let home = home(facts.domid);
    let read_only = Perms::private(DomId::DOM0).with(facts.domid, Access::READ);
    let uuid = uuid_text(&facts.uuid);
    let machine = format!("/vm/{uuid}");
    store.write_as(&machine, "", read_only.clone())?;
    store.write(&format!("{machine}/uuid"), &uuid)?;
    store.write(&format!("{machine}/name"), facts.name)?;
    store.write_as(&home, "", read_only)?;
    let mut put = |key: &str, value: &str| store.write(&format!("{home}/{key}"), value);
    put("name", facts.name)?;
    put("vm", &machine)?;
    put("domid", &format!("{}", facts.domid.get()))?;
    put("memory/target", &format!("{}", facts.memory_kib))?;
    put("memory/static-max", &format!("{}", facts.memory_kib))?;
    for vcpu in 0..facts.vcpus {
        put(&format!("cpu/{vcpu}/availability"), "online")?;
    }
    put_rings(store, facts)?;
    let mut put = |key: &str, value: &str| store.write(&format!("{home}/{key}"), value);
    put("console/backend", &format!("/local/domain/0/backend/console/{}/0", facts.domid.get()))?;
    put("console/backend-id", "0")?;
    put("console/type", "xenconsoled")?;
    put("console/limit", "1048576")?;
    put("control", "")?;
    put("device", "")?;
    put("backend", "")?;
    for key in [
        "control/shutdown",
        "control/sysrq",
        "control/feature-poweroff",
        "control/feature-reboot",
        "control/feature-suspend",
        "data",
        "drivers",
        "error",
        "attr",
    ] {
        store.write_as(&format!("{home}/{key}"), "", Perms::private(facts.domid))?;
    }
    Ok(())
}

/// Writes where a domain's rings are: new ones in each of its lives.
pub fn put_rings(store: &mut Store, facts: &DomainFacts<'_>) -> Result<(), StoreError> {
    for (key, number) in [
        ("store/port", u64::from(facts.store_port.get())),
        ("store/ring-ref", facts.store_ring.get()),
        ("console/port", u64::from(facts.console_port.get())),
        ("console/ring-ref", facts.console_ring.get()),
    ] {
        store.write(&format!("{}/{key}", home(facts.domid)), &format!("{number}"))?;
    }
    Ok(())
}

/// A UUID as it is usually written, in 36 characters.
fn uuid_text(uuid: &[u8; 16]) -> String {
    let mut text = String::new();
    for (index, byte) in uuid.iter().enumerate() {
        if [4, 6, 8, 10].contains(&index) {
            text.push('-');
        }
        text.push_str(&format!("{byte:02x}"));
    }
    text
}

/// A virtual disk: where it comes from, and which part of it.
#[derive(Clone, Copy, Debug)]
pub struct VbdFacts<'a> {
    pub guest: DomId,
    pub driver: DomId,
    pub vdev: &'a str,
    /// Number of the PCI device that holds it.
    pub sbdf: u32,
    pub first_sector: u64,
    /// 0 for all that follow.
    pub sectors: u64,
    pub is_writable: bool,
    pub ledger_slot: usize,
}

impl VbdFacts<'_> {
    /// The front end's folder.
    pub fn frontend(&self, number: u32) -> String {
        format!("{}/device/vbd/{number}", home(self.guest))
    }

    /// The back end's folder.
    pub fn backend(&self, number: u32) -> String {
        let guest = self.guest.get();
        format!("{}/backend/vbd/{guest}/{number}", home(self.driver))
    }
}

/// Writes both folders of a virtual disk, the back end's first: it appears to the driver
/// domain when all about it is there. Gives the front end's folder.
///
/// Errors: `EINVAL` for a name that is no virtual disk's.
pub fn add_vbd(store: &mut Store, facts: &VbdFacts<'_>) -> Result<String, StoreError> {
    let number = vdev_number(facts.vdev).ok_or(StoreError::EINVAL)?;
    let (front, back) = (facts.frontend(number), facts.backend(number));
    let initialising = format!("{}", xs_wire::XENBUS_INITIALISING);
    let front_perms = Perms::private(facts.guest).with(facts.driver, Access::READ);
    store.write_as(&front, "", front_perms)?;
    let mut put = |key: &str, value: &str| store.write(&format!("{front}/{key}"), value);
    put("backend", &back)?;
    put("backend-id", &format!("{}", facts.driver.get()))?;
    put("virtual-device", &format!("{number}"))?;
    put("device-type", "disk")?;
    put("state", &initialising)?;
    let back_perms = Perms::private(facts.driver).with(facts.guest, Access::READ);
    store.write_as(&back, "", back_perms)?;
    let mut put = |key: &str, value: &str| store.write(&format!("{back}/{key}"), value);
    put("frontend", &front)?;
    put("frontend-id", &format!("{}", facts.guest.get()))?;
    put("online", "1")?;
    put("removable", "0")?;
    put("dev", facts.vdev)?;
    put("device", &format!("{}", facts.sbdf))?;
    put("first-sector", &format!("{}", facts.first_sector))?;
    put("sectors", &format!("{}", facts.sectors))?;
    put("mode", if facts.is_writable { "w" } else { "r" })?;
    put("ledger-slot", &format!("{}", facts.ledger_slot))?;
    put("state", &initialising)?;
    Ok(front)
}

/// The front end's folder of a guest's second console.
fn agent_front(guest: DomId) -> String {
    format!("{}/device/console/1", home(guest))
}

/// The back end's folder of a guest's second console.
fn agent_back(guest: DomId) -> String {
    format!("{}/backend/console/{}/1", home(DomId::DOM0), guest.get())
}

/// Writes both folders of the second console, for an agent. Gives the path of the front
/// end's state.
pub fn add_agent(store: &mut Store, guest: DomId) -> Result<String, StoreError> {
    let (front, back) = (agent_front(guest), agent_back(guest));
    let initialising = format!("{}", xs_wire::XENBUS_INITIALISING);
    store.write_as(&back, "", Perms::private(DomId::DOM0).with(guest, Access::READ))?;
    store.write(&format!("{back}/frontend"), &front)?;
    store.write(&format!("{back}/frontend-id"), &format!("{}", guest.get()))?;
    store.write(&format!("{back}/online"), "1")?;
    store.write(&format!("{back}/state"), &initialising)?;
    store.write_as(&front, "", Perms::private(guest))?;
    store.write(&format!("{front}/backend"), &back)?;
    store.write(&format!("{front}/backend-id"), "0")?;
    store.write(&format!("{front}/state"), &initialising)?;
    Ok(format!("{front}/state"))
}

/// What a guest's front end of the second console wants.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum AgentWish {
    /// Nothing yet, or nothing that makes sense.
    Wait,
    /// This page and this port are to be served.
    Connect(Gref, Port),
    /// Nothing any more. A kernel that shuts down only listens for the answer "closing".
    Close,
    /// Nothing; it has closed.
    Closed,
}

/// Reads the front end's folder. All of it is the guest's word.
pub fn agent_wish(store: &Store, guest: DomId) -> AgentWish {
    let front = agent_front(guest);
    let read = |key: &str| {
        let number = store.read_number(&format!("{front}/{key}"))?;
        u32::try_from(number).ok()
    };
    match read("state") {
        Some(xs_wire::XENBUS_INITIALISED | xs_wire::XENBUS_CONNECTED) => {
            let (gref, port) = (read("ring-ref"), read("port"));
            let both = gref.zip(port).filter(|(_, port)| *port < EVTCHN_2L_PORTS);
            both.map_or(AgentWish::Wait, |(gref, port)| {
                AgentWish::Connect(Gref::new(gref), Port::new(port))
            })
        }
        Some(xs_wire::XENBUS_CLOSING) => AgentWish::Close,
        Some(xs_wire::XENBUS_CLOSED) => AgentWish::Closed,
        _ => AgentWish::Wait,
    }
}

/// Tells the guest how the back end of its second console is, an `xs_wire::XENBUS_*`.
pub fn set_agent_state(store: &mut Store, guest: DomId, state: u32) -> Result<(), StoreError> {
    store.write(&format!("{}/state", agent_back(guest)), &format!("{state}"))
}

/// Takes a domain out of the store, but for the back ends that serve it.
pub fn remove_domain(store: &mut Store, domid: DomId) -> Result<(), StoreError> {
    let home = home(domid);
    // A domain that was abandoned half-way has no machine yet.
    if let Ok(machine) = store.read(&format!("{home}/vm"))
        && let Ok(machine) = core::str::from_utf8(&machine)
    {
        store.remove(machine)?;
    }
    store.remove(&home)
}

/// Whether each back end that serves a domain has let go of it, or is gone.
pub fn are_back_ends_closed(store: &Store, domid: DomId) -> bool {
    let closed = Some(u64::from(xs_wire::XENBUS_CLOSED));
    let folders = store.list("/local/domain").unwrap_or_default().into_iter();
    let mut folders = folders.map(|peer| back_ends(&peer, domid));
    folders.all(|folder| {
        let numbers = store.list(&folder).unwrap_or_default();
        numbers.iter().all(|n| store.read_number(&format!("{folder}/{n}/state")) == closed)
    })
}

/// The folder of the back ends by which `peer` serves a domain.
fn back_ends(peer: &str, domid: DomId) -> String {
    format!("/local/domain/{peer}/backend/vbd/{}", domid.get())
}

/// Takes the back ends that serve a domain out of the store.
pub fn remove_back_ends(store: &mut Store, domid: DomId) -> Result<(), StoreError> {
    for peer in store.list("/local/domain").unwrap_or_default() {
        store.remove(&back_ends(&peer, domid))?;
        store.remove(&format!("/local/domain/{peer}/backend/console/{}", domid.get()))?;
    }
    Ok(())
}

/// Tells a driver domain where its ledger is.
pub fn add_ledger(store: &mut Store, driver: DomId, grefs: &[Gref]) -> Result<(), StoreError> {
    let folder = format!("{}/bulkhead/ledger", home(driver));
    for (index, gref) in grefs.iter().enumerate() {
        store.write(&format!("{folder}/ref{index}"), &format!("{}", gref.get()))?;
    }
    store.write(&format!("{folder}/pages"), &format!("{}", grefs.len()))
}

/// Where the front end with this folder says what its back end did wrong.
pub fn complaint_node(front: &str) -> String {
    format!("{front}/bulkhead/violation")
}

/// Most characters of a complaint that are kept.
const COMPLAINT_CHARS: usize = 120;

/// Takes what a front end says that its back end did wrong; none if it says nothing. It is a
/// stranger's word: cut, and of printable characters.
pub fn take_complaint(store: &mut Store, front: &str) -> Option<String> {
    let node = complaint_node(front);
    let said = store.read(&node).ok()?;
    // Gone means taken: the guest may complain again.
    store.remove(&node).ok()?;
    let said = String::from_utf8_lossy(&said);
    let printable = said.chars().map(|c| if c.is_ascii_graphic() { c } else { ' ' });
    let said: String = printable.take(COMPLAINT_CHARS).collect();
    let said = said.trim();
    (!said.is_empty()).then(|| said.into())
}

/// Whether a front end says that it is connected to its back end.
pub fn is_connected(store: &Store, front: &str) -> bool {
    let connected = Some(u64::from(xs_wire::XENBUS_CONNECTED));
    store.read_number(&format!("{front}/state")) == connected
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::Quota;
    use std::{string::ToString, vec::Vec};

    #[test]
    fn virtual_disks_are_numbered_as_the_interface_says() {
        for (name, number) in [
            ("xvda", 51712),
            ("xvdb", 51728),
            ("xvdp", 51952),
            ("xvdq", (1 << 28) | (16 << 8)),
            ("xvdz", (1 << 28) | (25 << 8)),
            ("xvdaa", (1 << 28) | (26 << 8)),
        ] {
            assert_eq!(vdev_number(name), Some(number), "{name}");
        }
        for bad in ["", "xvd", "sda", "xvdA", "xvda1", "xvdzzzzzzzzzzz"] {
            assert_eq!(vdev_number(bad), None, "{bad}");
        }
    }

    const ONE: &str = "01010101-0101-0101-0101-010101010101";
    const TWO: &str = "02020202-0202-0202-0202-020202020202";

    fn built() -> (Store, VbdFacts<'static>) {
        let mut store = Store::new(Quota::GUEST);
        for (domid, name) in [(1, "disk"), (2, "reader")] {
            let facts = DomainFacts {
                domid: DomId::new(domid),
                name,
                uuid: [domid as u8; 16],
                memory_kib: 65536,
                vcpus: 1,
                store_port: Port::new(1),
                store_ring: Mfn::new(5),
                console_port: Port::new(2),
                console_ring: Mfn::new(6),
            };
            add_domain(&mut store, &facts).unwrap();
        }
        let facts = VbdFacts {
            guest: DomId::new(2),
            driver: DomId::new(1),
            vdev: "xvda",
            sbdf: 32,
            first_sector: 8,
            sectors: 0,
            is_writable: false,
            ledger_slot: 3,
        };
        assert_eq!(add_vbd(&mut store, &facts).unwrap(), "/local/domain/2/device/vbd/51712");
        (store, facts)
    }

    fn read(store: &Store, path: &str) -> String {
        String::from_utf8(store.read(path).unwrap()).unwrap()
    }

    #[test]
    fn both_ends_of_a_disk_find_each_other() {
        let (store, _) = built();
        let front = "/local/domain/2/device/vbd/51712";
        let back = read(&store, &(front.to_string() + "/backend"));
        assert_eq!(back, "/local/domain/1/backend/vbd/2/51712");
        assert_eq!(read(&store, &(back.clone() + "/frontend")), front);
        let keys =
            ["frontend-id", "device", "first-sector", "sectors", "mode", "ledger-slot", "state"];
        let values: Vec<_> = keys.iter().map(|k| read(&store, &format!("{back}/{k}"))).collect();
        assert_eq!(values, ["2", "32", "8", "0", "r", "3", "1"]);
        assert!(!is_connected(&store, front));
    }

    #[test]
    fn each_side_may_touch_its_own_end_only() {
        let (store, _) = built();
        let (guest, driver, stranger) = (DomId::new(2), DomId::new(1), DomId::new(9));
        for (path, who, access, expected) in [
            ("/local/domain/2/device/vbd/51712/state", guest, Access::BOTH, true),
            ("/local/domain/2/device/vbd/51712/state", driver, Access::READ, true),
            ("/local/domain/2/device/vbd/51712/state", driver, Access::WRITE, false),
            ("/local/domain/1/backend/vbd/2/51712/mode", guest, Access::READ, true),
            ("/local/domain/1/backend/vbd/2/51712/mode", guest, Access::WRITE, false),
            ("/local/domain/1/backend/vbd/2/51712/state", driver, Access::BOTH, true),
            ("/local/domain/1/backend/vbd/2/51712/state", stranger, Access::READ, false),
            ("/local/domain/2/name", guest, Access::READ, true),
            ("/local/domain/2/name", guest, Access::WRITE, false),
            ("/local/domain/2/name", driver, Access::READ, false),
            ("/local/domain/2/control/shutdown", guest, Access::BOTH, true),
            ("/local/domain/1/backend", driver, Access::READ, true),
            ("/local/domain/2/device", guest, Access::WRITE, false),
        ] {
            assert_eq!(store.may(who, path, access), expected, "{path} {who} {access:?}");
        }
    }

    #[test]
    fn a_removed_domain_leaves_only_its_back_ends_until_they_have_let_go() {
        let (mut store, _) = built();
        let guest = DomId::new(2);
        remove_domain(&mut store, guest).unwrap();
        assert_eq!(store.list("/local/domain").unwrap(), ["1"]);
        assert_eq!(store.list("/vm").unwrap(), [ONE]);
        let state = "/local/domain/1/backend/vbd/2/51712/state";
        for value in ["1", "4", "5", "", "x"] {
            store.write(state, value).unwrap();
            assert!(!are_back_ends_closed(&store, guest), "{value}");
        }
        store.write(state, "6").unwrap();
        assert!(are_back_ends_closed(&store, guest));
        remove_back_ends(&mut store, guest).unwrap();
        assert!(store.list("/local/domain/1/backend/vbd").unwrap().is_empty());
        assert!(are_back_ends_closed(&store, guest));
    }

    #[test]
    fn a_guest_finds_its_identity_and_no_other() {
        let (store, _) = built();
        let (guest, own) = (DomId::new(2), format!("/vm/{TWO}/uuid"));
        assert_eq!(read(&store, "/local/domain/2/vm"), format!("/vm/{TWO}"));
        assert_eq!(read(&store, &own), TWO);
        assert!(store.may(guest, &own, Access::READ));
        assert!(!store.may(guest, &own, Access::WRITE));
        assert!(!store.may(guest, &format!("/vm/{ONE}/uuid"), Access::READ));
    }

    #[test]
    fn a_guests_word_about_its_second_console_is_taken_if_it_makes_sense() {
        let (mut store, _) = built();
        let guest = DomId::new(2);
        let state = add_agent(&mut store, guest).unwrap();
        assert!(store.may(guest, &state, Access::BOTH));
        assert!(!store.may(DomId::new(1), &state, Access::READ));
        let back = read(&store, "/local/domain/2/device/console/1/backend");
        assert!(store.may(guest, &back, Access::READ) && !store.may(guest, &back, Access::WRITE));
        let front = "/local/domain/2/device/console/1";
        let connect = |gref, port| AgentWish::Connect(Gref::new(gref), Port::new(port));
        for (state, gref, port, wish) in [
            ("1", "8", "9", AgentWish::Wait),
            ("3", "8", "9", connect(8, 9)),
            ("4", "8", "9", connect(8, 9)),
            ("3", "", "9", AgentWish::Wait),
            ("3", "8", "4096", AgentWish::Wait),
            ("3", "4294967296", "9", AgentWish::Wait),
            ("3", "-8", "9", AgentWish::Wait),
            ("5", "8", "9", AgentWish::Close),
            ("6", "", "", AgentWish::Closed),
            ("x", "8", "9", AgentWish::Wait),
        ] {
            for (key, value) in [("state", state), ("ring-ref", gref), ("port", port)] {
                store.write(&format!("{front}/{key}"), value).unwrap();
            }
            assert_eq!(agent_wish(&store, guest), wish, "{state} {gref} {port}");
        }
        set_agent_state(&mut store, guest, xs_wire::XENBUS_CONNECTED).unwrap();
        assert_eq!(read(&store, &format!("{back}/state")), "4");
        remove_domain(&mut store, guest).unwrap();
        remove_back_ends(&mut store, guest).unwrap();
        assert_eq!(agent_wish(&store, guest), AgentWish::Wait);
        assert!(store.read(&back).is_err());
    }

    #[test]
    fn a_complaint_is_taken_once_cut_and_made_printable() {
        let (mut store, _) = built();
        let front = "/local/domain/2/device/vbd/51712";
        assert_eq!(take_complaint(&mut store, front), None);
        let node = complaint_node(front);
        assert!(store.may(DomId::new(2), front, Access::WRITE), "the guest can make it");
        store.write(&node, "an \u{1b}[31mid\n").unwrap();
        assert_eq!(take_complaint(&mut store, front).as_deref(), Some("an  [31mid"));
        assert_eq!(take_complaint(&mut store, front), None);
        store.write(&node, " ").unwrap();
        assert_eq!(take_complaint(&mut store, front), None);
        assert!(store.read(&node).is_err());
        store.write(&node, &"x".repeat(4000)).unwrap();
        assert_eq!(take_complaint(&mut store, front).map(|said| said.len()), Some(120));
    }

    #[test]
    fn the_ledger_is_announced_to_its_driver_only() {
        let (mut store, _) = built();
        add_ledger(&mut store, DomId::new(1), &[Gref::new(8), Gref::new(9)]).unwrap();
        let folder = "/local/domain/1/bulkhead/ledger";
        assert_eq!(read(&store, &format!("{folder}/pages")), "2");
        assert_eq!(read(&store, &format!("{folder}/ref1")), "9");
        assert!(store.may(DomId::new(1), folder, Access::READ));
        assert!(!store.may(DomId::new(1), folder, Access::WRITE));
        assert!(!store.may(DomId::new(2), folder, Access::READ));
    }
}
