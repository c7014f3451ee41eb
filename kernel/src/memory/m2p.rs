//! The machine-to-phys table: for each frame its owner's pfn, readable by guests at a fixed address.
