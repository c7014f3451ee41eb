//! Numbers handed out in runs: frames, pages of the mapping area. One bit each,
//! next-fit. It knows nothing of what the numbers stand for.

/// A set of `0..len` in which a set bit is taken.
#[derive(Debug)]
pub struct Bitmap<W> {
    words: W,
    len: usize,
    free: usize,
    next: usize,
}

impl<W: AsMut<[u64]> + AsRef<[u64]>> Bitmap<W> {
    /// Everything free; `words` must hold at least `len` bits.
    pub fn new_empty(mut words: W, len: usize) -> Self {
        assert!(words.as_ref().len() * 64 >= len, "too few words");
        words.as_mut().fill(0);
        Self { words, len, free: len, next: 0 }
    }

    /// Takes this number, if it is free.
    pub fn reserve(&mut self, index: usize) {
        if !self.is_taken(index) {
            self.words.as_mut()[index / 64] |= 1 << (index % 64);
            self.free -= 1;
        }
    }

    /// Numbers that are free.
    pub const fn free(&self) -> usize {
        self.free
    }

    /// Whether `index` is taken; numbers past the end are.
    pub fn is_taken(&self, index: usize) -> bool {
        index >= self.len || self.words.as_ref()[index / 64] >> (index % 64) & 1 == 1
    }

    /// Gives back `count` numbers from `start`.
    ///
    /// # Panics
    /// When one of them is free already: two owners would follow.
    pub fn release(&mut self, start: usize, count: usize) {
        for index in start..start + count {
            assert!(index < self.len && self.is_taken(index), "{index} freed twice");
            self.words.as_mut()[index / 64] &= !(1 << (index % 64));
        }
        self.free += count;
        self.next = self.next.min(start);
    }

    /// Takes `count` numbers in a row that start at a multiple of `align`.
    pub fn take(&mut self, count: usize, align: usize) -> Option<usize> {
        if count == 0 || count > self.free {
            return None;
        }
        let start =
            self.search(self.next, count, align).or_else(|| self.search(0, count, align))?;
        for index in start..start + count {
            self.words.as_mut()[index / 64] |= 1 << (index % 64);
        }
        self.free -= count;
        self.next = start + count;
        Some(start)
    }

    fn search(&self, from: usize, count: usize, align: usize) -> Option<usize> {
        let mut start = from.next_multiple_of(align);
        while start.checked_add(count)? <= self.len {
            match (start..start + count).rev().find(|&i| self.is_taken(i)) {
                None => return Some(start),
                Some(taken) => start = self.skip(taken + 1).next_multiple_of(align),
            }
        }
        None
    }

    /// The first number from `index` on whose word is not full.
    fn skip(&self, mut index: usize) -> usize {
        let words = self.words.as_ref();
        while index.is_multiple_of(64) && index < self.len && words[index / 64] == u64::MAX {
            index += 64;
        }
        index
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    #[test]
    #[should_panic(expected = "freed twice")]
    fn freeing_twice_panics() {
        let mut map = Bitmap::new_empty(vec![0; 1], 10);
        map.reserve(3);
        map.release(3, 1);
        map.release(3, 1);
    }

    proptest! {
        #[test]
        fn agrees_with_a_set(len in 1usize..400, steps in prop::collection::vec((0u8..4, 1usize..40, 0u32..4), 1..60)) {
            let mut map = Bitmap::new_empty(vec![0; len.div_ceil(64)], len);
            let mut free: BTreeSet<usize> = (0..len).collect();
            let mut held: Vec<(usize, usize)> = Vec::new();
            for (kind, count, align) in steps {
                let align = 1 << align;
                if kind == 0 && !held.is_empty() {
                    let (start, count) = held.remove(count % held.len());
                    map.release(start, count);
                    free.extend(start..start + count);
                } else {
                    let possible = (0..len).step_by(align)
                        .any(|s| s + count <= len && (s..s + count).all(|i| free.contains(&i)));
                    let got = map.take(count, align);
                    prop_assert_eq!(got.is_some(), possible);
                    if let Some(start) = got {
                        prop_assert_eq!(start % align, 0);
                        for i in start..start + count {
                            prop_assert!(free.remove(&i));
                        }
                        held.push((start, count));
                    }
                }
                prop_assert_eq!(map.free(), free.len());
            }
        }
    }
}
