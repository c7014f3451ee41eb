//! A kernel's modules: found by name in its `lib/modules/VERSION`, and put in an order in
//! which they can be loaded. What a module needs is read from the module itself: packages
//! come without the tables that `depmod` makes.

use crate::kernel_image::codec;
use elf::{ElfBytes, endian::LittleEndian};
use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    path::{Path, PathBuf},
};

/// Most bytes of one module, uncompressed.
const MOST_BYTES: u64 = 64 << 20;
/// Endings of modules, with the compressions that kernels take.
const ENDINGS: [&str; 4] = [".ko", ".ko.gz", ".ko.xz", ".ko.zst"];

/// Why modules cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ModulesError {
    #[error("cannot read {}: {why}", path.display())]
    Unreadable { path: PathBuf, why: io::Error },
    #[error("{} is no folder of a kernel's modules: there is none in it", .0.display())]
    Empty(PathBuf),
    #[error("{} has no module {name}, and the kernel has it not built in", folder.display())]
    Missing { folder: PathBuf, name: String },
    #[error("the module {} is damaged: {why}", path.display())]
    Damaged { path: PathBuf, why: String },
}

/// The modules of one kernel.
#[derive(Clone, Debug)]
pub struct Tree {
    folder: PathBuf,
    files: BTreeMap<String, PathBuf>,
    builtin: BTreeSet<String>,
}

impl Tree {
    /// Reads the names in a folder like `lib/modules/6.1.0-9-amd64`.
    ///
    /// # Errors
    /// If it cannot be read, or holds no module.
    pub fn open(folder: &Path) -> Result<Self, ModulesError> {
        let mut files = BTreeMap::new();
        collect(folder, &mut files)?;
        let text = fs::read_to_string(folder.join("modules.builtin")).unwrap_or_default();
        let builtin: BTreeSet<_> = text.lines().filter_map(name_of).collect();
        if files.is_empty() && builtin.is_empty() {
            return Err(ModulesError::Empty(folder.into()));
        }
        Ok(Self { folder: folder.into(), files, builtin })
    }

    /// The kernel's version, which is the folder's name.
    pub fn version(&self) -> Option<&str> {
        self.folder.file_name()?.to_str()
    }

    fn read(&self, path: &Path) -> Result<Vec<u8>, ModulesError> {
        let unreadable = |why| ModulesError::Unreadable { path: path.into(), why };
        let bytes = fs::read(path).map_err(unreadable)?;
        codec::plain(bytes, MOST_BYTES)
            .map_err(|e| ModulesError::Damaged { path: path.into(), why: e.to_string() })
    }
}

fn collect(folder: &Path, files: &mut BTreeMap<String, PathBuf>) -> Result<(), ModulesError> {
    let unreadable = |why| ModulesError::Unreadable { path: folder.into(), why };
    for entry in fs::read_dir(folder).map_err(unreadable)? {
        let entry = entry.map_err(unreadable)?;
        // `build` and `source` are links to somewhere large.
        if entry.file_type().map_err(unreadable)?.is_dir() {
            collect(&entry.path(), files)?;
        } else if let Some(name) = entry.file_name().to_str().and_then(name_of) {
            files.insert(name, entry.path());
        }
    }
    Ok(())
}

/// The module's name of a path, with `_` for `-` as the kernel has it.
fn name_of(path: &str) -> Option<String> {
    let file = path.trim().rsplit('/').next()?;
    let stem = ENDINGS.iter().find_map(|end| file.strip_suffix(end))?;
    Some(plain_name(stem))
}

fn plain_name(name: &str) -> String {
    name.replace('-', "_")
}

/// Modules in an order in which they can be loaded.
pub(super) struct Order<'a> {
    tree: &'a Tree,
    /// Those that are in, or on their way in.
    seen: BTreeSet<String>,
    order: Vec<(String, Vec<u8>)>,
}

impl<'a> Order<'a> {
    pub fn new(tree: &'a Tree) -> Self {
        Self { tree, seen: BTreeSet::new(), order: Vec::new() }
    }

    /// Adds a module after all that it needs, unless it is built in.
    pub fn add(&mut self, name: &str, is_required: bool) -> Result<(), ModulesError> {
        let name = plain_name(name);
        if self.tree.builtin.contains(&name) || self.seen.contains(&name) {
            return Ok(());
        }
        let Some(path) = self.tree.files.get(&name) else {
            return match is_required {
                true => Err(ModulesError::Missing { folder: self.tree.folder.clone(), name }),
                false => Ok(()),
            };
        };
        self.seen.insert(name.clone());
        let bytes = self.tree.read(path)?;
        let needs = needs(&bytes)
            .map_err(|why| ModulesError::Damaged { path: path.clone(), why: why.to_string() })?;
        for needed in &needs.hard {
            self.add(needed, true)?;
        }
        for wished in &needs.soft {
            self.add(wished, false)?;
        }
        self.order.push((name, bytes));
        Ok(())
    }

    pub fn finish(self) -> Vec<(String, Vec<u8>)> {
        self.order
    }
}

/// What a module asks to be loaded before it.
#[derive(Debug, Default, PartialEq, Eq)]
struct Needs {
    hard: Vec<String>,
    soft: Vec<String>,
}

/// Reads `depends=a,b` and `softdep=pre: c d post: e` of the section `.modinfo`.
fn needs(module: &[u8]) -> Result<Needs, elf::ParseError> {
    let file = ElfBytes::<LittleEndian>::minimal_parse(module)?;
    let mut needs = Needs::default();
    let Some(header) = file.section_header_by_name(".modinfo")? else {
        return Ok(needs);
    };
    let (data, _) = file.section_data(&header)?;
    for entry in data.split(|&b| b == 0).filter_map(|e| std::str::from_utf8(e).ok()) {
        if let Some(names) = entry.strip_prefix("depends=") {
            needs.hard.extend(names.split(',').filter(|n| !n.is_empty()).map(str::to_owned));
        } else if let Some(text) = entry.strip_prefix("softdep=") {
            let words = text.split_whitespace().skip_while(|w| *w != "pre:").skip(1);
            needs.soft.extend(words.take_while(|w| !w.ends_with(':')).map(str::to_owned));
        }
    }
    Ok(needs)
}
