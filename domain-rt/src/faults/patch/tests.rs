use super::*;
use proptest::prelude::*;
use std::cell::{Cell, RefCell};

const TEXT: u64 = 0x1000;

/// Text and a table in plain memory.
struct Fake {
    text: RefCell<Vec<u8>>,
    entries: Vec<[u8; at::BYTES]>,
    noted: RefCell<Vec<usize>>,
    writes: Cell<u32>,
}

impl Fake {
    fn new(entries: Vec<[u8; at::BYTES]>) -> Self {
        let text = RefCell::new((0..64).collect());
        Self { text, entries, noted: RefCell::default(), writes: Cell::new(0) }
    }
    fn text(&self, va: u64, bytes: usize) -> Vec<u8> {
        let at = (va - TEXT) as usize;
        self.text.borrow()[at..at + bytes].to_vec()
    }
}

impl Machine for Fake {
    fn count(&self) -> usize {
        self.entries.len()
    }
    fn word(&self, entry: usize, word: usize) -> u64 {
        if word == at::ACTIVATED_NS / 8 && self.noted.borrow().contains(&entry) {
            return 77;
        }
        u64::from_le_bytes(self.entries[entry][8 * word..][..8].try_into().unwrap())
    }
    fn note(&self, entry: usize) {
        self.noted.borrow_mut().push(entry);
    }
    fn write(&self, va: u64, byte: u8) -> bool {
        self.writes.set(self.writes.get() + 1);
        match va.checked_sub(TEXT).and_then(|at| usize::try_from(at).ok()) {
            Some(at) if at < 64 => {
                self.text.borrow_mut()[at] = byte;
                true
            }
            _ => false,
        }
    }
}

fn entry(va: u64, kind: u32, length: u32, register: u32, bit: u32) -> [u8; at::BYTES] {
    let mut bytes = [0; at::BYTES];
    let mut put = |offset: usize, value: &[u8]| {
        bytes[offset..offset + value.len()].copy_from_slice(value);
    };
    put(at::VA, &va.to_le_bytes());
    put(at::KIND, &kind.to_le_bytes());
    put(at::LENGTH, &length.to_le_bytes());
    put(at::OLD, &[0xaa; 16]);
    put(at::NEW, &core::array::from_fn::<u8, 16, _>(|i| 0xb0 + i as u8));
    put(at::REGISTER, &register.to_le_bytes());
    put(at::BIT, &bit.to_le_bytes());
    bytes
}

/// A frame whose registers are all unlike each other, after a breakpoint at `va`.
fn frame(va: u64) -> Frame {
    let [rax, rcx, rdx, rbx, rsp, rbp, rsi, rdi] = core::array::from_fn(|i| 1000 + i as u64);
    let [r8, r9, r10, r11, r12, r13, r14, r15] = core::array::from_fn(|i| 2000 + i as u64);
    Frame {
        r15,
        r14,
        r13,
        r12,
        rbp,
        rbx,
        r10,
        r9,
        r8,
        rdx,
        rsi,
        rdi,
        vector: 3,
        rax,
        r11,
        rcx,
        error_code: 0,
        rip: va + 1,
        cs: 0xe030,
        rflags: 0x202,
        rsp,
        ss: 0xe02b,
    }
}

#[test]
fn new_code_is_written_and_run_once_it_is_reached() {
    let fake = Fake::new(vec![entry(TEXT + 9, 1, 2, 0, 0), entry(TEXT + 5, 1, 16, 0, 0)]);
    let mut frame = frame(TEXT + 5);
    assert!(on_trap(&mut frame, &fake));
    assert_eq!(frame.rip, TEXT + 5);
    assert_eq!(fake.text(TEXT + 5, 16), (0xb0..0xc0).collect::<Vec<u8>>());
    assert_eq!((fake.text(TEXT + 4, 1), fake.text(TEXT + 21, 1)), (vec![4], vec![21]));
    assert_eq!(*fake.noted.borrow(), [1]);
    frame.rip = TEXT + 6;
    assert!(!on_trap(&mut frame, &fake), "the second time it is a breakpoint of the code's own");
}

#[test]
fn a_register_changes_by_one_bit_and_the_code_is_as_it_was() {
    for number in 0..18 {
        let fake = Fake::new(vec![entry(TEXT, 2, 3, number, 5)]);
        let (mut expected, mut after) = (frame(TEXT), frame(TEXT));
        assert!(on_trap(&mut after, &fake));
        assert_eq!(fake.text(TEXT, 3), [0xaa; 3]);
        expected.rip = TEXT;
        *register(&mut expected, number) ^= 1 << 5;
        assert_eq!(format!("{expected:?}"), format!("{after:?}"));
    }
}

#[test]
fn registers_have_the_numbers_of_instructions() {
    let mut frame = frame(0);
    let numbers = [0, 1, 2, 3, 4, 5, 6, 7, 8, 15].map(|number| *register(&mut frame, number));
    assert_eq!(numbers, [1000, 1001, 1002, 1003, 1004, 1005, 1006, 1007, 2000, 2007]);
    assert_eq!((*register(&mut frame, 16), *register(&mut frame, 17)), (0x202, 1));
}

#[test]
fn other_traps_and_other_breakpoints_are_left_alone() {
    let fake = Fake::new(vec![entry(TEXT, 1, 1, 0, 0)]);
    let mut other = frame(TEXT + 1);
    assert!(!on_trap(&mut other, &fake));
    let mut fault = Frame { vector: 14, ..frame(TEXT) };
    assert!(!on_trap(&mut fault, &fake));
    assert_eq!(fake.writes.get(), 0);
}

proptest! {
    #[test]
    fn no_entry_makes_the_handler_panic_or_write_past_its_length(
        va in prop_oneof![TEXT..TEXT + 64, any::<u64>()],
        kind in 0_u32..4, length in prop_oneof![0_u32..20, any::<u32>()],
        register: u32, bit: u32,
    ) {
        let fake = Fake::new(vec![entry(va, kind, length, register % 20, bit % 70)]);
        let mut frame = frame(va.wrapping_sub(1));
        frame.rip = va.wrapping_add(1);
        let done = on_trap(&mut frame, &fake);
        prop_assert!(fake.writes.get() <= 16);
        prop_assert_eq!(done, fake.noted.borrow().len() == 1);
        let may = (kind == 1 || kind == 2 && register % 20 < 18 && bit % 70 < 64)
            && (1..=16).contains(&length)
            && va >= TEXT && va.checked_add(length.into()).is_some_and(|end| end <= TEXT + 64);
        prop_assert_eq!(done, may);
    }
}
