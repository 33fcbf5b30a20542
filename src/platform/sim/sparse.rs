//! The bytes of a large, mostly empty device. All-zero pages take no memory.
//!
//! This module knows nothing of sectors, caches or power.

use std::{collections::BTreeMap, ops::Range, sync::Arc};

const PAGE: u64 = 4096;
const PAGE_LENGTH: usize = 4096;
const ZEROS: [u8; PAGE_LENGTH] = [0; PAGE_LENGTH];

type Page = Arc<[u8; PAGE_LENGTH]>;

/// A sparse array of bytes. Clones share their pages.
#[derive(Clone, Default)]
pub(super) struct Sparse {
    pages: BTreeMap<u64, Page>,
}

/// Splits a byte range by pages: page, range within the page, offset in the whole range.
fn parts(offset: u64, length: u64) -> impl Iterator<Item = (u64, Range<usize>, usize)> {
    let end = offset + length;
    let mut at = offset;
    std::iter::from_fn(move || {
        if at >= end {
            return None;
        }
        let page = at / PAGE;
        let stop = end.min((page + 1) * PAGE);
        let part = ((at % PAGE) as usize)..((stop - page * PAGE) as usize);
        let from = (at - offset) as usize;
        at = stop;
        Some((page, part, from))
    })
}

impl Sparse {
    /// Fills `out` with the bytes at `offset`.
    pub(super) fn read(&self, offset: u64, out: &mut [u8]) {
        for (page, part, from) in parts(offset, out.len() as u64) {
            let target = &mut out[from..from + part.len()];
            match self.pages.get(&page) {
                Some(bytes) => target.copy_from_slice(&bytes[part]),
                None => target.fill(0),
            }
        }
    }

    /// Writes `bytes` at `offset`.
    pub(super) fn write(&mut self, offset: u64, bytes: &[u8]) {
        for (page, part, from) in parts(offset, bytes.len() as u64) {
            let source = &bytes[from..from + part.len()];
            // Compared as a whole: in a loop over bytes, simulated disks would spend most of their
            // time.
            let zeros = *source == ZEROS[..source.len()];
            if zeros && !self.pages.contains_key(&page) {
                continue;
            }
            let held = self.pages.entry(page).or_insert_with(|| Arc::new([0; PAGE_LENGTH]));
            Arc::make_mut(held)[part].copy_from_slice(source);
            if zeros && **held == ZEROS {
                self.pages.remove(&page);
            }
        }
    }

    /// Zeros a range. The cost depends on the stored pages in the range, not on its length.
    pub(super) fn zero(&mut self, offset: u64, length: u64) {
        let end = offset + length;
        let (first, last) = (offset.div_ceil(PAGE), end / PAGE);
        if first >= last {
            // The range contains no whole page: it covers at most the ends of two.
            for (page, part, _) in parts(offset, length) {
                self.write(page * PAGE + part.start as u64, &ZEROS[..part.len()]);
            }
            return;
        }
        self.write(offset, &ZEROS[..(first * PAGE - offset) as usize]);
        self.write(last * PAGE, &ZEROS[..(end - last * PAGE) as usize]);
        for page in self.stored(first * PAGE..last * PAGE) {
            self.pages.remove(&page);
        }
    }

    /// Makes every page that `range` touches equal to that of `source`, and shares it.
    pub(super) fn take_over(&mut self, source: &Sparse, range: Range<u64>) {
        let mut touched = self.stored(range.clone());
        touched.extend(source.stored(range));
        for page in touched {
            match source.pages.get(&page) {
                Some(bytes) => self.pages.insert(page, Arc::clone(bytes)),
                None => self.pages.remove(&page),
            };
        }
    }

    /// Ranges of whole pages in which the two differ, sorted.
    pub(super) fn differences(&self, other: &Sparse) -> Vec<Range<u64>> {
        let mut differing: Vec<u64> = self
            .pages
            .iter()
            .filter(|(page, bytes)| other.pages.get(page).is_none_or(|o| o != *bytes))
            .map(|(page, _)| *page)
            .chain(other.pages.keys().filter(|page| !self.pages.contains_key(page)).copied())
            .collect();
        differing.sort_unstable();
        let mut ranges: Vec<Range<u64>> = Vec::new();
        for page in differing {
            let start = page * PAGE;
            match ranges.last_mut() {
                Some(last) if last.end == start => last.end += PAGE,
                _ => ranges.push(start..start + PAGE),
            }
        }
        ranges
    }

    /// The first non-zero page within `range`, clipped to it.
    pub(super) fn next_stored(&self, range: Range<u64>) -> Option<Range<u64>> {
        if range.is_empty() {
            return None;
        }
        let (page, _) = self.pages.range(range.start / PAGE..=(range.end - 1) / PAGE).next()?;
        Some((page * PAGE).max(range.start)..((page + 1) * PAGE).min(range.end))
    }

    /// Memory that the pages take, in bytes.
    pub(super) fn stored_bytes(&self) -> u64 {
        self.pages.len() as u64 * PAGE
    }

    fn stored(&self, range: Range<u64>) -> Vec<u64> {
        if range.is_empty() {
            return Vec::new();
        }
        self.pages.range(range.start / PAGE..=(range.end - 1) / PAGE).map(|(page, _)| *page).collect()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::Sparse;

    const LENGTH: usize = 5 * 4096 + 77;

    #[derive(Debug, Clone)]
    enum Step {
        Write(usize, Vec<u8>),
        Zero(usize, usize),
    }

    fn step() -> impl Strategy<Value = Step> {
        let bytes = prop_oneof![
            prop::collection::vec(any::<u8>(), 0..600),
            (0..9000_usize).prop_map(|n| vec![0; n]),
            (0..9000_usize).prop_map(|n| vec![7; n])
        ];
        prop_oneof![
            (0..LENGTH, bytes).prop_map(|(at, b)| Step::Write(at, b)),
            (0..LENGTH, 0..LENGTH).prop_map(|(at, n)| Step::Zero(at, n))
        ]
    }

    proptest! {
        /// The store behaves like an array of bytes.
        #[test]
        fn behaves_like_an_array(steps in prop::collection::vec(step(), 1..20)) {
            let (mut store, mut model) = (Sparse::default(), vec![0_u8; LENGTH]);
            for step in steps {
                match step {
                    Step::Write(at, mut bytes) => {
                        bytes.truncate(LENGTH - at);
                        store.write(at as u64, &bytes);
                        model[at..at + bytes.len()].copy_from_slice(&bytes);
                    }
                    Step::Zero(at, n) => {
                        let n = n.min(LENGTH - at);
                        store.zero(at as u64, n as u64);
                        model[at..at + n].fill(0);
                    }
                }
                let mut read = vec![1; LENGTH];
                store.read(0, &mut read);
                prop_assert!(read == model);
            }
            let kept = model.chunks(4096).filter(|page| page.iter().any(|b| *b != 0)).count();
            prop_assert_eq!(store.stored_bytes(), kept as u64 * 4096);
        }
    }

    #[test]
    fn copies_are_independent_and_compared_by_page() {
        let mut a = Sparse::default();
        a.write(10, b"one");
        let mut b = a.clone();
        b.write(9000, b"two");
        assert_eq!(a.differences(&b), vec![8192_u64..12288]);
        a.take_over(&b, 9000..9001);
        assert!(a.differences(&b).is_empty());
    }
}
