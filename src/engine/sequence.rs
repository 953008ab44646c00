//! One request being generated: its tokens, how far they are computed, and the pages they are in.

use std::{ops::Range, sync::Arc};

use super::pages::{Key, Page};

/// Names a sequence. Smaller ones go first; requests that are accepted later have larger ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SeqId(pub u64);

/// Prompt rows that a medium takes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Span {
    /// Positions in the prompt.
    pub rows: Range<usize>,
    /// See [`percept_models::Footprint::grid`].
    pub grid: Option<(usize, usize)>,
    /// Of the medium's content.
    pub key: Key,
}

/// Rows that were encoded before the text began, and that all of the text attends to. Kept in pages of their own, which
/// sequences with the same memory share.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Memory {
    /// Of the medium's content.
    pub key: Key,
    /// Rows.
    pub rows: usize,
    /// Where they are, while the sequence runs.
    pub pages: Vec<Page>,
    /// Whether the pages hold them.
    pub written: bool,
}

impl Memory {
    /// A memory that is nowhere yet.
    pub fn new(key: Key, rows: usize) -> Self {
        Self { key, rows, pages: Vec::new(), written: false }
    }

    /// The key of page `index`. No page of text has it, since those have tokens.
    pub(super) fn page_key(&self, index: usize) -> Key {
        Key::chain(None, &[], std::iter::once((self.key, index)))
    }
}

/// A request, as the scheduler sees it.
#[derive(Debug)]
pub struct Sequence {
    /// Its name.
    pub id: SeqId,
    /// Prompt and answer so far.
    pub tokens: Vec<u32>,
    /// Tokens of the prompt.
    pub prompt: usize,
    /// Rows that are in the cache.
    pub computed: usize,
    /// Rows of the prompt that were in the cache when the sequence first ran.
    pub reused: Option<usize>,
    /// Where its rows are.
    pub pages: Vec<Page>,
    /// Media, in order.
    pub media: Vec<Span>,
    /// Which of them are encoded.
    pub encoded: Vec<bool>,
    /// What its text attends to besides itself.
    pub memory: Option<Memory>,
    /// Rows in front of this one may be found in the cache instead of being computed.
    pub reusable: usize,
    /// Whether all rows must be computed in one step.
    pub whole: bool,
    /// With more rows than this it is long; see [`percept_models::Positions::long`].
    pub long_behind: Option<usize>,
    /// Whether its rows are computed as those of a long sequence.
    pub long: bool,
    /// Most tokens of prompt and answer.
    pub most: usize,
    /// Ids that end the answer.
    pub stops: Arc<[u32]>,
    /// Keys of its full pages, as far as they were needed.
    keys: Vec<Key>,
    /// Pages that were offered for reuse by others.
    published: usize,
}

impl Sequence {
    /// A sequence of which nothing is computed.
    pub fn new(id: SeqId, prompt: Vec<u32>, media: Vec<Span>, most: usize, stops: Arc<[u32]>) -> Self {
        Self {
            id,
            prompt: prompt.len(),
            tokens: prompt,
            computed: 0,
            reused: None,
            pages: Vec::new(),
            encoded: vec![false; media.len()],
            media,
            memory: None,
            reusable: usize::MAX,
            whole: false,
            long_behind: None,
            long: false,
            most,
            stops,
            keys: Vec::new(),
            published: 0,
        }
    }

    /// The same with a memory.
    pub fn attending(self, memory: Option<Memory>) -> Self {
        Self { memory, ..self }
    }

    /// Pages that it needs at most, of `page_size` rows.
    pub fn most_pages(&self, page_size: usize) -> usize {
        let memory = self.memory.as_ref().map_or(0, |memory| memory.rows);
        self.most.div_ceil(page_size) + memory.div_ceil(page_size)
    }

    /// All pages it holds.
    #[cfg(test)]
    pub(super) fn all_pages(&self) -> impl Iterator<Item = Page> + '_ {
        self.pages.iter().chain(self.memory.iter().flat_map(|memory| &memory.pages)).copied()
    }

    /// Tokens generated.
    pub fn generated(&self) -> usize {
        self.tokens.len() - self.prompt
    }

    /// Rows that are not in the cache.
    pub fn missing(&self) -> usize {
        self.tokens.len() - self.computed
    }

    /// Whether the next row is the only one missing.
    pub fn decodes(&self) -> bool {
        self.missing() == 1
    }

    /// Prompt rows of all media.
    pub fn media_rows(&self) -> usize {
        self.media.iter().map(|span| span.rows.len()).sum()
    }

    /// Where a row is in time, height and width.
    pub(super) fn position(&self, row: usize) -> [usize; 3] {
        // How many positions less than rows there are.
        let mut saved = 0;
        for span in &self.media {
            let Some((rows, columns)) = span.grid else { continue };
            if row < span.rows.start {
                break;
            }
            if row < span.rows.end {
                let (start, index) = (span.rows.start - saved, row - span.rows.start);
                return [start, start + index / columns, start + index % columns];
            }
            saved += span.rows.len() - rows.max(columns);
        }
        [row - saved; 3]
    }

    /// Becomes long when it has so many rows, and gives up those of its text, which were computed as a short one's.
    /// Their pages are returned, the last first.
    pub(super) fn lengthen(&mut self) -> Vec<Page> {
        if self.long || self.long_behind.is_none_or(|most| self.tokens.len() <= most) {
            return Vec::new();
        }
        self.long = true;
        (self.computed, self.published) = (0, 0);
        self.keys.clear();
        let mut pages = std::mem::take(&mut self.pages);
        pages.reverse();
        pages
    }

    /// The key of full page `index`.
    pub(super) fn key(&mut self, index: usize, page_size: usize) -> Key {
        while self.keys.len() <= index {
            let rows = self.keys.len() * page_size..(self.keys.len() + 1) * page_size;
            let media = self.media.iter().filter_map(|span| {
                let first = rows.start.max(span.rows.start);
                (first < rows.end.min(span.rows.end)).then(|| (span.key, first - span.rows.start))
            });
            // What a row holds depends on the memory as well, and on the length.
            let before = self.keys.last().copied().or_else(|| {
                let memory = self.memory.as_ref().map(|memory| memory.key);
                let long = || Key::chain(memory, &[], std::iter::once((Key::of(b"long"), 0)));
                if self.long { Some(long()) } else { memory }
            });
            self.keys.push(Key::chain(before, &self.tokens[rows.clone()], media));
        }
        self.keys[index]
    }

    /// Full pages that are computed and not yet offered, with their keys.
    pub(super) fn publish(&mut self, page_size: usize) -> Vec<(Page, Key)> {
        let full = self.computed / page_size;
        let fresh = self.published.min(full)..full;
        self.published = full;
        fresh.map(|index| (self.pages[index], self.key(index, page_size))).collect()
    }

    /// Gives up all rows. Their pages are returned, the last first.
    pub(super) fn forget(&mut self) -> Vec<Page> {
        self.computed = 0;
        self.published = 0;
        let mut pages = std::mem::take(&mut self.pages);
        if let Some(memory) = &mut self.memory {
            memory.written = false;
            // In front, so that they are given up after the text's: they cost more to compute again.
            pages.splice(0..0, memory.pages.drain(..));
        }
        pages.reverse();
        pages
    }
}
