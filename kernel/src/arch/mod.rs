//! Everything that needs the machine and nothing that needs judgement: boot,
//! descriptor tables, entry code, APIC, TSC, port I/O. On the host the functions rooms call are
//! stand-ins that record (`fake`).
