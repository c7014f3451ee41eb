//! The driver domain of disks.
#![no_std]
#![no_main]

domain_rt::entry!(drivers_domain::disk::main);
