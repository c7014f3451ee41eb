//! Event channels: ports and their bindings, pending and mask bits, upcalls. One bit
//! moves, someone may wake.

/// A domain's ports.
pub struct EventTable {}

/// stub
pub fn raise_pirq(_core: &mut crate::Core, _dom: bulkhead_abi::DomId, _pirq: u32) -> crate::sched::Wake {
    crate::sched::Wake::Nobody
}
