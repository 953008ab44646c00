//! One request being generated: its tokens, how far they are computed, and the pages they are in.

use std::{ops::Range, sync::Arc};

use super::pages::{Key, Page};

/// Names a sequence. Later requests have larger numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SeqId(pub u64);

/// Prompt rows that a medium takes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Span {
    /// Positions in the prompt.
    pub rows: Range<usize>,
    /// Of the medium's content.
    pub key: Key,
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
            most,
            stops,
            keys: Vec::new(),
            published: 0,
        }
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

    /// The key of full page `index`.
    pub(super) fn key(&mut self, index: usize, page_size: usize) -> Key {
        while self.keys.len() <= index {
            let rows = self.keys.len() * page_size..(self.keys.len() + 1) * page_size;
            let media = self.media.iter().filter_map(|span| {
                let first = rows.start.max(span.rows.start);
                (first < rows.end.min(span.rows.end)).then(|| (span.key, first - span.rows.start))
            });
            self.keys.push(Key::chain(self.keys.last().copied(), &self.tokens[rows.clone()], media));
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
        pages.reverse();
        pages
    }
}
