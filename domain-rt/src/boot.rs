//! What a domain was told at its start.

use bulkhead_abi::start_info::{self, StartInfo};
use bulkhead_abi::{Maddr, Mfn, PAGE_SIZE, Pfn, Port};
use core::str;

/// A page shared with a service, and the port that signals it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Ring {
    /// Its frame, one of the domain's own.
    pub mfn: Mfn,
    /// This domain's end of the event channel.
    pub port: Port,
}

/// Facts of `start_info`, copied once before anything else runs.
#[derive(Clone, Debug)]
pub struct Boot {
    /// Frames of the domain.
    pub nr_frames: usize,
    /// Whether this is the control domain.
    pub is_dom0: bool,
    /// Ring of the store; none in the control domain of Bulkhead.
    pub store: Option<Ring>,
    /// Ring of the console; the control domain has none.
    pub console: Option<Ring>,
    /// First frame and bytes of the ramdisk.
    pub ramdisk: Option<(Pfn, usize)>,
    pub(crate) shared_info: Maddr,
    pub(crate) pt_base: u64,
    pub(crate) nr_pt_frames: usize,
    pub(crate) p2m: u64,
    cmdline: [u8; 1024],
    cmdline_bytes: usize,
}

impl Boot {
    /// Decodes what the builder wrote; `None` if the magic is wrong.
    pub(crate) fn decode(info: &StartInfo, virt_base: u64) -> Option<Self> {
        if !info.magic.starts_with(start_info::MAGIC) {
            return None;
        }
        let is_dom0 = info.flags & start_info::SIF_INITDOMAIN != 0;
        let ring = |mfn: u64, port: u32| {
            (mfn != 0 && port != 0).then(|| Ring { mfn: Mfn::new(mfn), port: Port::new(port) })
        };
        let ramdisk_pfn = if info.flags & start_info::SIF_MOD_START_PFN != 0 {
            info.mod_start
        } else {
            info.mod_start.wrapping_sub(virt_base) / PAGE_SIZE as u64
        };
        let cmdline = info.cmd_line;
        let cmdline_bytes = cmdline.iter().position(|&b| b == 0).unwrap_or(1024);
        Some(Self {
            nr_frames: info.nr_pages as usize,
            is_dom0,
            store: ring(info.store_mfn, info.store_evtchn),
            // For the first domain the union holds where a video console is.
            console: (!is_dom0).then(|| ring(info.console_mfn, info.console_evtchn)).flatten(),
            ramdisk: (info.mod_len != 0).then(|| (Pfn::new(ramdisk_pfn), info.mod_len as usize)),
            shared_info: Maddr::new(info.shared_info),
            pt_base: info.pt_base,
            nr_pt_frames: info.nr_pt_frames as usize,
            p2m: info.mfn_list,
            cmdline,
            cmdline_bytes,
        })
    }

    /// The command line; what is not UTF-8 ends it.
    pub fn cmdline(&self) -> &str {
        let bytes = &self.cmdline[..self.cmdline_bytes];
        match str::from_utf8(bytes) {
            Ok(text) => text,
            Err(e) => str::from_utf8(&bytes[..e.valid_up_to()]).unwrap_or(""),
        }
    }

    /// The value of option `name=value`.
    pub fn option(&self, name: &str) -> Option<&str> {
        option(self.cmdline(), name)
    }
}

fn option<'a>(cmdline: &'a str, name: &str) -> Option<&'a str> {
    cmdline
        .split_ascii_whitespace()
        .filter_map(|word| word.split_once('='))
        .filter(|(key, _)| *key == name)
        .map(|(_, value)| value)
        .next_back()
}

#[cfg(test)]
mod tests {
    use super::*;
    use zerocopy::FromZeros;

    fn info() -> StartInfo {
        let mut info = StartInfo::new_zeroed();
        info.magic[..14].copy_from_slice(start_info::MAGIC);
        info
    }

    #[test]
    fn the_last_of_two_options_counts() {
        assert_eq!(option("a=1 bb=2 a=3 a", "a"), Some("3"));
        assert_eq!(option("bb=2", "b"), None);
    }

    #[test]
    fn a_foreign_magic_is_refused() {
        assert!(Boot::decode(&StartInfo::new_zeroed(), 0).is_none());
    }

    #[test]
    fn a_command_line_that_fills_its_field_is_whole() {
        let mut info = info();
        info.cmd_line = [b'x'; 1024];
        let boot = Boot::decode(&info, 0).expect("good magic");
        assert_eq!(boot.cmdline().len(), 1024);
    }

    #[test]
    fn a_ramdisk_is_found_by_pfn_or_by_address() {
        let mut info = info();
        (info.mod_start, info.mod_len) = (7, 100);
        info.flags = start_info::SIF_MOD_START_PFN;
        let found = |info: &StartInfo| Boot::decode(info, 0x10_0000).expect("good magic").ramdisk;
        assert_eq!(found(&info), Some((Pfn::new(7), 100)));
        (info.flags, info.mod_start) = (0, 0x10_0000 + 0x3000);
        assert_eq!(found(&info), Some((Pfn::new(3), 100)));
    }
}
