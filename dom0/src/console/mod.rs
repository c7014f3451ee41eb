//! Consoles of the domains: the back end of the console ring, and what a domain
//! said last. Where the bytes go is not known here.

pub mod agent;

use crate::shared::{AbsurdIndices, Lane, SharedPage};
use alloc::{collections::VecDeque, string::String, vec::Vec};
use bulkhead_abi::console as abi;

const OUT: Lane =
    Lane { buffer: abi::OUT_OFFSET, size: abi::OUT_SIZE, cons: abi::OUT_CONS, prod: abi::OUT_PROD };
const IN: Lane =
    Lane { buffer: abi::IN_OFFSET, size: abi::IN_SIZE, cons: abi::IN_CONS, prod: abi::IN_PROD };
/// Input kept for a domain that does not read.
pub const INPUT_BYTES: usize = 4096;
/// Output remembered for each domain.
const LOG_BYTES: usize = 8192;
/// Characters shown of a line.
const LINE_CHARS: usize = 200;

/// The back end of one domain's console.
#[derive(Debug, Default)]
pub struct Console {
    input: VecDeque<u8>,
    log: VecDeque<u8>,
    /// Input came that there was no room for.
    has_refused: bool,
    is_broken: bool,
}

/// What became of a pump.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
#[must_use]
pub struct Pumped {
    /// What the domain wrote.
    pub output: Vec<u8>,
    /// An index moved: the domain wants an event.
    pub notify: bool,
    /// There is room again for input, after some was refused.
    pub has_room: bool,
}

impl Console {
    /// Queues input, as much as there is room for; gives the bytes taken.
    pub fn feed(&mut self, bytes: &[u8]) -> usize {
        let count = bytes.len().min(INPUT_BYTES - self.input.len());
        self.input.extend(&bytes[..count]);
        self.has_refused |= count < bytes.len();
        count
    }

    /// Moves up to `max_output` bytes out of the ring, and input into it.
    ///
    /// Errors: the domain's indices are absurd. That is told once; afterwards its console is
    /// silent.
    pub fn pump(
        &mut self,
        page: &impl SharedPage,
        max_output: usize,
    ) -> Result<Pumped, AbsurdIndices> {
        if self.is_broken {
            return Ok(Pumped::default());
        }
        let result = self.try_pump(page, max_output);
        self.is_broken = result.is_err();
        result
    }

    fn try_pump(
        &mut self,
        page: &impl SharedPage,
        max_output: usize,
    ) -> Result<Pumped, AbsurdIndices> {
        let mut piece = [0; abi::OUT_SIZE];
        let room = max_output.min(piece.len());
        let count = OUT.take(page, &mut piece[..room])?;
        let output = piece[..count].to_vec();
        self.remember(&output);
        let moved = IN.put(page, self.input.make_contiguous())?;
        self.input.drain(..moved);
        let has_room = self.has_refused && self.input.len() <= INPUT_BYTES / 2;
        self.has_refused &= !has_room;
        Ok(Pumped { notify: count + moved > 0, output, has_room })
    }

    fn remember(&mut self, bytes: &[u8]) {
        self.log.extend(bytes);
        let excess = self.log.len().saturating_sub(LOG_BYTES);
        self.log.drain(..excess);
    }

    /// The last lines with text on them, at most `most`, oldest first, without control
    /// characters. A long line is cut.
    pub fn last_lines(&self, most: usize) -> Vec<String> {
        let bytes: Vec<u8> = self.log.iter().copied().collect();
        let lines = bytes.rsplit(|&b| b == b'\n' || b == b'\r').map(|line| {
            let text = String::from_utf8_lossy(line);
            let shown = text.chars().filter(|c| !c.is_control()).take(LINE_CHARS);
            String::from(shown.collect::<String>().trim_end())
        });
        let mut last: Vec<_> = lines.filter(|line| !line.is_empty()).take(most).collect();
        last.reverse();
        last
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shared::fake::FakePage;

    #[test]
    fn all_a_domain_writes_comes_out_in_order() {
        let (page, mut console) = (FakePage::new(), Console::default());
        let text: Vec<u8> = (0..9000u32).map(|i| (i % 250) as u8).collect();
        let (mut sent, mut got) = (0, Vec::new());
        for limit in (0..3000).step_by(70) {
            sent += OUT.put(&page, &text[sent..]).unwrap();
            got.extend(console.pump(&page, limit).unwrap().output);
        }
        assert_eq!(got, text);
    }

    #[test]
    fn input_waits_until_the_domain_reads_and_is_bounded() {
        let (page, mut console) = (FakePage::new(), Console::default());
        assert_eq!(console.feed(&[b'x'; 5000]), INPUT_BYTES);
        assert_eq!(console.feed(b"more"), 0);
        let (mut got, mut told) = (0, 0);
        for _ in 0..10 {
            told += u32::from(console.pump(&page, 100).unwrap().has_room);
            got += IN.take(&page, &mut [0; 1024]).unwrap();
        }
        assert_eq!((got, told), (INPUT_BYTES, 1), "room is told of once");
    }

    #[test]
    fn a_domain_that_lies_about_indices_loses_its_console_only() {
        for index in [abi::OUT_PROD, abi::OUT_CONS, abi::IN_PROD, abi::IN_CONS] {
            let (page, mut console) = (FakePage::new(), Console::default());
            page.write_u32(index, 0x7fff_0000);
            assert!(console.pump(&page, 4096).is_err());
            assert_eq!(console.pump(&page, 4096), Ok(Pumped::default()));
        }
    }

    #[test]
    fn the_last_lines_are_what_a_person_would_read() {
        let (page, mut console) = (FakePage::new(), Console::default());
        assert!(console.last_lines(20).is_empty());
        OUT.put(&page, b"first\n  second \x1b[m\r\n\r\nthi").unwrap();
        let _ = console.pump(&page, 4096).unwrap();
        assert_eq!(console.last_lines(20), ["first", "  second [m", "thi"]);
        assert_eq!(console.last_lines(2), ["  second [m", "thi"]);
    }

    #[test]
    fn a_line_without_end_is_cut() {
        let (page, mut console) = (FakePage::new(), Console::default());
        for _ in 0..10 {
            OUT.put(&page, &[b'x'; 2000]).unwrap();
            let _ = console.pump(&page, 4096).unwrap();
        }
        let lines = console.last_lines(20);
        assert_eq!((lines.len(), lines[0].len()), (1, LINE_CHARS));
    }
}
