//! The only road into guest memory: a software walk of the guest's own tables, then the map of physical memory.
