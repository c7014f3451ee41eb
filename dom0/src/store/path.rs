//! Paths of the store: the claim a client makes becomes a canonical absolute
//! path here, once.

use super::error::StoreError;
use alloc::{borrow::ToOwned, format, rc::Rc, string::String};
use bulkhead_abi::{
    DomId,
    xs_wire::{XENSTORE_ABS_PATH_MAX, XENSTORE_REL_PATH_MAX},
};
use core::{borrow::Borrow, fmt};

/// An absolute path without empty components or a trailing slash.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Path(Rc<str>);

/// The folder of a domain, to which its relative paths are.
pub fn home(domid: DomId) -> String {
    format!("/local/domain/{}", domid.get())
}

impl Path {
    /// The root of the store.
    pub fn root() -> Self {
        Self("/".into())
    }

    /// Makes a path of what a client sent (without its NUL).
    ///
    /// Shape: letters, digits and `-/_@`; absolute up to 3072 bytes, or relative up to
    /// 2048 to the client's own folder. Errors: `EINVAL`.
    pub fn parse(text: &[u8], client: DomId) -> Result<Self, StoreError> {
        let text = core::str::from_utf8(text).map_err(|_| StoreError::EINVAL)?;
        let is_allowed = |c: u8| c.is_ascii_alphanumeric() || b"-/_@".contains(&c);
        if text.is_empty() || !text.bytes().all(is_allowed) || text.contains("//") {
            return Err(StoreError::EINVAL);
        }
        if text == "/" {
            return Ok(Self::root());
        }
        if text.ends_with('/') {
            return Err(StoreError::EINVAL);
        }
        if text.starts_with('/') {
            if text.len() > XENSTORE_ABS_PATH_MAX {
                return Err(StoreError::EINVAL);
            }
            return Ok(Self(text.into()));
        }
        if text.len() > XENSTORE_REL_PATH_MAX {
            return Err(StoreError::EINVAL);
        }
        Ok(Self(format!("{}/{text}", home(client)).into()))
    }

    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The path as shared text.
    pub fn shared(&self) -> Rc<str> {
        self.0.clone()
    }

    /// The folder that holds it, `None` for the root.
    pub fn parent(&self) -> Option<Self> {
        parent_of(&self.0).map(|text| Self(text.into()))
    }

    /// Its last component, empty for the root.
    pub fn name(&self) -> &str {
        self.0.rsplit('/').next().unwrap_or("")
    }

    /// A node in this folder.
    pub fn child(&self, name: &str) -> Self {
        if &*self.0 == "/" {
            Self(format!("/{name}").into())
        } else {
            Self(format!("{}/{name}", self.0).into())
        }
    }

    /// Components below the root.
    pub fn depth(&self) -> usize {
        if &*self.0 == "/" { 0 } else { self.0.bytes().filter(|&b| b == b'/').count() }
    }
}

/// The text of the parent of an absolute path, `None` for the root.
pub fn parent_of(path: &str) -> Option<&str> {
    match path.rfind('/') {
        Some(0) if path.len() > 1 => Some("/"),
        Some(at) if at > 0 => Some(&path[..at]),
        _ => None,
    }
}

impl Borrow<str> for Path {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Path {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl From<&Path> for String {
    fn from(path: &Path) -> String {
        path.as_str().to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<String, StoreError> {
        Path::parse(text.as_bytes(), DomId::new(7)).map(|p| String::from(&p))
    }

    #[test]
    fn relative_paths_are_below_the_clients_own_folder() {
        assert_eq!(parse("device/vbd").unwrap(), "/local/domain/7/device/vbd");
        assert_eq!(parse("/a/b").unwrap(), "/a/b");
        assert_eq!(parse("/").unwrap(), "/");
    }

    #[test]
    fn refuses_what_is_not_a_path() {
        for bad in ["", "a/", "//", "/a//b", "a b", "/a\u{e9}", "/a.b", "/a/"] {
            assert_eq!(parse(bad), Err(StoreError::EINVAL), "{bad:?}");
        }
        let long = format!("/{}", "x".repeat(3072));
        assert!(parse(&long).is_err());
        assert!(parse(&long[..3072]).is_ok());
        assert!(parse(&long[1..2049]).is_ok());
        assert!(parse(&long[1..2050]).is_err());
    }

    #[test]
    fn knows_parents_and_names() {
        let path = Path::parse(b"/a/b", DomId::DOM0).unwrap();
        assert_eq!((path.name(), path.depth()), ("b", 2));
        let parent = path.parent().unwrap();
        assert_eq!(parent.as_str(), "/a");
        assert_eq!(parent.child("b"), path);
        assert_eq!(parent.parent().unwrap(), Path::root());
        assert_eq!(Path::root().parent(), None);
        assert_eq!(Path::root().child("a"), parent);
    }
}
