//! The driver domain of disks as fault injection wants it: it does wrong on order.
#![no_std]
#![no_main]

domain_rt::entry!(drivers_domain::disk::main);
