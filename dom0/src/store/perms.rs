//! Who may read and write a node: an owner, what everybody else may, and a list
//! of exceptions. Knows nothing of the tree.

use super::error::StoreError;
use alloc::{format, string::String, vec::Vec};
use bulkhead_abi::DomId;

/// What a domain may do with a node.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Access {
    pub read: bool,
    pub write: bool,
}

impl Access {
    pub const NONE: Self = Self { read: false, write: false };
    pub const READ: Self = Self { read: true, write: false };
    pub const WRITE: Self = Self { read: false, write: true };
    pub const BOTH: Self = Self { read: true, write: true };

    /// Whether all of `wanted` is in here.
    pub fn covers(self, wanted: Self) -> bool {
        (self.read || !wanted.read) && (self.write || !wanted.write)
    }

    fn from_letter(letter: u8) -> Option<Self> {
        match letter {
            b'n' => Some(Self::NONE),
            b'r' => Some(Self::READ),
            b'w' => Some(Self::WRITE),
            b'b' => Some(Self::BOTH),
            _ => None,
        }
    }

    fn letter(self) -> char {
        match (self.read, self.write) {
            (false, false) => 'n',
            (true, false) => 'r',
            (false, true) => 'w',
            (true, true) => 'b',
        }
    }
}

/// The permissions of one node.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Perms {
    /// May do everything, and change these permissions.
    pub owner: DomId,
    /// What a domain may that is not in `acl`.
    pub others: Access,
    /// The first entry that names a domain decides.
    pub acl: Vec<(DomId, Access)>,
}

impl Perms {
    /// Only the owner (and the control domain) has access.
    pub fn private(owner: DomId) -> Self {
        Self { owner, others: Access::NONE, acl: Vec::new() }
    }

    /// The same with `domid` allowed `access`.
    pub fn with(mut self, domid: DomId, access: Access) -> Self {
        self.acl.push((domid, access));
        self
    }

    /// What `domid` may do. The control domain may do everything.
    pub fn access(&self, domid: DomId) -> Access {
        if domid == DomId::DOM0 || domid == self.owner {
            return Access::BOTH;
        }
        let exception = self.acl.iter().find(|(id, _)| *id == domid);
        exception.map_or(self.others, |(_, access)| *access)
    }

    /// Reads the strings of `XS_SET_PERMS`: `n5`, `r0`, ..
    ///
    /// Errors: `EINVAL` for an empty list or a malformed entry.
    pub fn parse<'a>(entries: impl Iterator<Item = &'a [u8]>) -> Result<Self, StoreError> {
        let mut parsed = entries.map(parse_entry);
        let (owner, others) = parsed.next().ok_or(StoreError::EINVAL)??;
        Ok(Self { owner, others, acl: parsed.collect::<Result<_, _>>()? })
    }

    /// The strings of `XS_GET_PERMS`, each with its NUL.
    pub fn to_wire(&self) -> Vec<u8> {
        let owner = core::iter::once((self.owner, self.others));
        let mut text = String::new();
        for (domid, access) in owner.chain(self.acl.iter().copied()) {
            text.push_str(&format!("{}{}\0", access.letter(), domid.get()));
        }
        text.into_bytes()
    }
}

fn parse_entry(entry: &[u8]) -> Result<(DomId, Access), StoreError> {
    let (&letter, digits) = entry.split_first().ok_or(StoreError::EINVAL)?;
    let access = Access::from_letter(letter).ok_or(StoreError::EINVAL)?;
    let domid = parse_decimal(digits).ok_or(StoreError::EINVAL)?;
    let domid = u16::try_from(domid).map_err(|_| StoreError::EINVAL)?;
    Ok((DomId::new(domid), access))
}

/// A decimal number of digits only, `None` for anything else.
pub fn parse_decimal(digits: &[u8]) -> Option<u32> {
    if digits.is_empty() || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    core::str::from_utf8(digits).ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_wire_form_is_read_back() {
        let text: &[&[u8]] = &[b"n5", b"r0", b"b7", b"w9"];
        let perms = Perms::parse(text.iter().copied()).unwrap();
        assert_eq!(perms.to_wire(), b"n5\0r0\0b7\0w9\0");
        assert_eq!(perms.access(DomId::new(5)), Access::BOTH);
        assert_eq!(perms.access(DomId::new(7)), Access::BOTH);
        assert_eq!(perms.access(DomId::new(9)), Access::WRITE);
        assert_eq!(perms.access(DomId::new(1)), Access::NONE);
        assert_eq!(perms.access(DomId::DOM0), Access::BOTH);
    }

    #[test]
    fn malformed_permissions_are_refused() {
        for bad in [&b"x1"[..], b"", b"r", b"r-1", b"r70000", b"r1x", b"r+1"] {
            assert!(Perms::parse([bad].into_iter()).is_err(), "{bad:?}");
        }
        assert!(Perms::parse(core::iter::empty()).is_err());
    }
}
