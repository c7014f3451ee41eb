//! What the control domain asks of a guest's kernel by way of the store, in the words of
//! the interface (abi-notes 8.3): to power off or reboot, a key of its magic SysRq, another
//! size. A kernel obeys if it likes; whether it listens at all can be seen from its watches.

use crate::store::{Store, path::home};
use alloc::{format, string::String};
use bulkhead_abi::DomId;

/// Something that a guest's kernel may do when asked.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Wish {
    PowerOff,
    Reboot,
    /// A letter or digit of Linux' magic SysRq.
    Sysrq(u8),
    /// KiB of memory that it is to have.
    Memory(u64),
}

impl Wish {
    /// The node that says it, below the guest's folder.
    fn node(self) -> &'static str {
        match self {
            Self::PowerOff | Self::Reboot => "control/shutdown",
            Self::Sysrq(_) => "control/sysrq",
            Self::Memory(_) => "memory/target",
        }
    }

    /// The node in which a kernel says that it can.
    fn feature(self) -> Option<&'static str> {
        match self {
            Self::PowerOff => Some("control/feature-poweroff"),
            Self::Reboot => Some("control/feature-reboot"),
            Self::Sysrq(_) | Self::Memory(_) => None,
        }
    }

    fn value(self) -> String {
        match self {
            Self::PowerOff => "poweroff".into(),
            Self::Reboot => "reboot".into(),
            Self::Sysrq(key) => char::from(key).into(),
            Self::Memory(kib) => format!("{kib}"),
        }
    }

    /// For a person: "to power off".
    fn words(self) -> &'static str {
        match self {
            Self::PowerOff => "to power off",
            Self::Reboot => "to reboot",
            Self::Sysrq(_) => "to take SysRq keys",
            Self::Memory(_) => "to change its size",
        }
    }
}

/// Whether a guest listens for a wish. Errors are for a person to read.
pub fn check(store: &Store, guest: DomId, name: &str, wish: Wish) -> Result<(), String> {
    if let Wish::Sysrq(key) = wish
        && !key.is_ascii_alphanumeric()
    {
        return Err("a SysRq key is a letter or a digit; `h` lists them on the console".into());
    }
    let at = |node: &str| format!("{}/{node}", home(guest));
    let says_so = wish.feature().is_none_or(|node| store.read_number(&at(node)) == Some(1));
    if says_so && store.is_watched_by(guest, &at(wish.node())) {
        return Ok(());
    }
    Err(format!(
        "{name} can not be asked {}: its kernel does not listen for it, or not yet",
        wish.words()
    ))
}

/// Asks a guest, if it listens. Errors are those of [`check`]; nothing has changed then.
pub fn ask(store: &mut Store, guest: DomId, name: &str, wish: Wish) -> Result<(), String> {
    check(store, guest, name, wish)?;
    let path = format!("{}/{}", home(guest), wish.node());
    store.write(&path, &wish.value()).map_err(|error| format!("{path}: {error}"))
}

/// The node that a guest empties when it takes a request to power off or to reboot.
pub fn shutdown_node(guest: DomId) -> String {
    format!("{}/control/shutdown", home(guest))
}

/// Whether no such request waits.
pub fn is_taken(store: &Store, guest: DomId) -> bool {
    store.read(&shutdown_node(guest)).is_ok_and(|value| value.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        devices::{DomainFacts, add_domain},
        store::Quota,
    };
    use bulkhead_abi::{
        Mfn, Port,
        xs_wire::{XS_WATCH, XS_WRITE, XsMsg},
    };

    const GUEST: DomId = DomId::new(2);

    /// A guest whose kernel has watched and written some nodes.
    fn guest(watches: &[&str], writes: &[&str]) -> Store {
        let mut store = Store::new(Quota::GUEST);
        let facts = DomainFacts {
            domid: GUEST,
            name: "g",
            uuid: [1; 16],
            memory_kib: 65536,
            vcpus: 1,
            store_port: Port::new(1),
            store_ring: Mfn::new(5),
            console_port: Port::new(2),
            console_ring: Mfn::new(6),
        };
        add_domain(&mut store, &facts).unwrap();
        store.introduce(GUEST);
        for node in watches {
            send(&mut store, XS_WATCH, &format!("{node}\0token\0"));
        }
        for node in writes {
            send(&mut store, XS_WRITE, &format!("{node}\x001"));
        }
        while store.take_output(GUEST).is_some() {}
        store
    }

    fn send(store: &mut Store, kind: u32, payload: &str) {
        let header = XsMsg { kind, req_id: 1, tx_id: 0, len: payload.len() as u32 };
        store.request(GUEST, header, payload.as_bytes());
    }

    fn listening() -> Store {
        guest(
            &["control/shutdown", "control/sysrq", "memory/target"],
            &["control/feature-poweroff", "control/feature-reboot"],
        )
    }

    fn read(store: &Store, node: &str) -> String {
        let value = store.read(&format!("/local/domain/2/{node}")).unwrap();
        String::from_utf8(value).unwrap()
    }

    #[test]
    fn a_kernel_that_listens_finds_each_wish_in_its_node() {
        for (wish, node, value) in [
            (Wish::PowerOff, "control/shutdown", "poweroff"),
            (Wish::Reboot, "control/shutdown", "reboot"),
            (Wish::Sysrq(b'c'), "control/sysrq", "c"),
            (Wish::Memory(163_840), "memory/target", "163840"),
        ] {
            let mut store = listening();
            ask(&mut store, GUEST, "g", wish).unwrap();
            assert_eq!(read(&store, node), value);
            assert!(store.has_output(GUEST), "{wish:?} wakes it");
        }
    }

    #[test]
    fn a_request_to_power_off_waits_until_the_guest_empties_the_node() {
        let mut store = listening();
        assert!(is_taken(&store, GUEST));
        ask(&mut store, GUEST, "g", Wish::PowerOff).unwrap();
        assert!(!is_taken(&store, GUEST));
        send(&mut store, XS_WRITE, "control/shutdown\0");
        assert!(is_taken(&store, GUEST));
    }

    #[test]
    fn a_kernel_that_does_not_listen_is_named_and_nothing_changes() {
        let deaf = || guest(&[], &["control/feature-poweroff", "control/feature-reboot"]);
        let silent = || guest(&["control/shutdown"], &[]);
        let wishes = [Wish::PowerOff, Wish::Reboot, Wish::Sysrq(b's'), Wish::Memory(1)];
        for (mut store, wishes) in [(deaf(), &wishes[..]), (silent(), &wishes[..2])] {
            for &wish in wishes {
                let error = ask(&mut store, GUEST, "reader", wish).unwrap_err();
                assert!(error.contains("reader") && error.contains(wish.words()), "{error}");
            }
            assert_eq!(read(&store, "control/shutdown"), "");
            assert_eq!(read(&store, "control/sysrq"), "");
            assert_eq!(read(&store, "memory/target"), "65536");
        }
    }

    #[test]
    fn only_letters_and_digits_are_keys() {
        for key in [0, b' ', b'/', 0x80, 0xff] {
            assert!(ask(&mut listening(), GUEST, "g", Wish::Sysrq(key)).is_err(), "{key}");
        }
    }
}
