//! One request being generated: its tokens, how far they are computed, and the pages they are in.

use std::{ops::Range, sync::Arc};

use super::{
    Grid,
    pages::{Key, Page},
};
use crate::request::Priority;

/// Names a sequence. Smaller ones go first; requests that are accepted later have larger ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SeqId(pub u64);

impl SeqId {
    /// Bits of a name below the priority's.
    const BITS: u32 = 60;

    /// A name of this priority, in the order of `number`, which has 60 bits at most.
    pub fn new(priority: Priority, number: u64) -> Self {
        debug_assert!(number >> Self::BITS == 0);
        Self((priority as u64) << Self::BITS | number)
    }

    /// Those of a smaller class go first, whenever they come, and take the place of those that run.
    pub fn class(self) -> u64 {
        self.0 >> Self::BITS
    }
}

/// Prompt rows that a medium takes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Span {
    /// Positions in the prompt.
    pub rows: Range<usize>,
    /// See [`percept_models::Footprint::grid`].
    pub grid: Option<Grid>,
    /// See [`percept_models::Footprint::memory`].
    pub memory: usize,
    /// Of the medium's content.
    pub key: Key,
}

impl Span {
    /// Names what its rows hold in the cache: a later moment's depend on when it is, too.
    fn key_in_time(&self) -> Key {
        match self.grid.filter(|grid| grid.continues) {
            Some(grid) => Key::chain(Some(self.key), &[], std::iter::once((Key::of(b"later"), grid.time))),
            None => self.key,
        }
    }
}

/// Rows of media that text attends to besides itself: from the first medium's rows on up to the next memory, each row the
/// media that it is inside or behind of. Kept in pages of their own, which sequences with the same memory share.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Memory {
    /// Of the contents of its media.
    pub key: Key,
    /// Which of the sequence's media it is made of, one after another.
    pub media: Range<usize>,
    /// Rows.
    pub rows: usize,
    /// Where they are, while the sequence runs; nowhere when all text that attends to them is computed.
    pub pages: Vec<Page>,
}

impl Memory {
    /// The memories that media make, nowhere yet.
    fn all(media: &[Span]) -> Vec<Self> {
        let memory = |(media, rows, spans): (Range<usize>, usize, &[Span])| Self {
            key: Key::chain(None, &[], spans.iter().map(|span| (span.key, span.memory))),
            media,
            rows,
            pages: Vec::new(),
        };
        let found = together(media.iter().map(|span| (&span.rows, span.memory)));
        found.into_iter().map(|(range, rows)| memory((range.clone(), rows, &media[range]))).collect()
    }

    /// The key of page `index`. No page of text has it, since those have tokens.
    pub(super) fn page_key(&self, index: usize) -> Key {
        Key::chain(None, &[], std::iter::once((self.key, index)))
    }
}

/// Media that make a memory together, and its rows, out of the rows and the rows of memory of each: those without text
/// between them.
pub(super) fn together<'a>(
    media: impl Iterator<Item = (&'a Range<usize>, usize)>,
) -> Vec<(Range<usize>, usize)> {
    let mut found: Vec<(Range<usize>, usize)> = Vec::new();
    let mut end = None;
    for (index, (rows, memory)) in media.enumerate() {
        match found.last_mut().filter(|_| end == Some(rows.start)) {
            _ if memory == 0 => {}
            Some((range, sum)) => (range.end, *sum) = (index + 1, *sum + memory),
            None => found.push((index..index + 1, memory)),
        }
        end = (memory > 0).then_some(rows.end);
    }
    found
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
    /// Which of them are encoded and, where they belong to a memory, in its pages.
    pub encoded: Vec<bool>,
    /// What its text attends to besides itself, in order.
    pub memories: Vec<Memory>,
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
    /// Whether the last token is one that is still being drawn.
    pub(super) foreseen: bool,
    /// Whose pages it may find, and who may find its own: those of the same scope.
    pub scope: Option<Key>,
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
            memories: Memory::all(&media),
            media,
            reusable: usize::MAX,
            whole: false,
            long_behind: None,
            long: false,
            most,
            stops,
            foreseen: false,
            scope: None,
            keys: Vec::new(),
            published: 0,
        }
    }

    /// Pages that it needs at most, of `page_size` rows.
    pub fn most_pages(&self, page_size: usize) -> usize {
        let memories = self.memories.iter().map(|memory| memory.rows.div_ceil(page_size));
        self.most.div_ceil(page_size) + memories.sum::<usize>()
    }

    /// All pages it holds.
    pub(super) fn all_pages(&self) -> impl Iterator<Item = Page> + '_ {
        self.pages.iter().chain(self.memories.iter().flat_map(|memory| &memory.pages)).copied()
    }

    /// Whether a memory is seen by any row from `row` on.
    pub(super) fn is_seen(&self, memory: usize, row: usize) -> bool {
        let next = self.memories.get(memory + 1).map(|memory| &self.media[memory.media.start]);
        // What may become long computes all of its rows again.
        next.is_none_or(|next| next.rows.start > row) || self.long_behind.is_some()
    }

    /// Whether all of a memory is in its pages.
    pub(super) fn is_written(&self, memory: &Memory) -> bool {
        self.encoded[memory.media.clone()].iter().all(|&written| written)
    }

    /// The memory that a medium belongs to, and its rows there.
    pub(super) fn place(&self, medium: usize) -> Option<(&Memory, Range<usize>)> {
        let memory = self.memories.iter().find(|memory| memory.media.contains(&medium))?;
        let before = self.media[memory.media.start..medium].iter().map(|span| span.memory);
        let first = before.sum::<usize>();
        Some((memory, first..first + self.media[medium].memory))
    }

    /// Runs of `rows` that see the same: how many they are, what they attend to besides the text, and how many rows of
    /// it they see.
    pub(super) fn sights(&self, rows: Range<usize>) -> Vec<(usize, Option<(&Memory, usize)>)> {
        let mut runs = Vec::new();
        let mut at = rows.start;
        while at < rows.end {
            let begins = self.media.iter().filter(|span| span.memory > 0).map(|span| span.rows.start);
            let next = begins.filter(|&begin| begin > at).min().unwrap_or(rows.end).min(rows.end);
            runs.push((next - at, self.sees(at)));
            at = next;
        }
        runs
    }

    fn sees(&self, row: usize) -> Option<(&Memory, usize)> {
        let begun = |medium: usize| self.media[medium].rows.start <= row;
        let memory = self.memories.iter().rev().find(|memory| begun(memory.media.start))?;
        let seen = memory.media.clone().filter(|&medium| begun(medium));
        Some((memory, seen.map(|medium| self.media[medium].memory).sum()))
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

    /// Prompt rows of all media that are inside the text.
    pub fn media_rows(&self) -> usize {
        self.media.iter().filter(|span| span.memory == 0).map(|span| span.rows.len()).sum()
    }

    /// Where a row is in time, height and width.
    pub(super) fn position(&self, row: usize) -> [usize; 3] {
        // Where the first rows of text behind the media so far are, and which row of the sequence is the first of them.
        let (mut next, mut behind) = (0, 0);
        // Where the medium begins that a moment goes on with.
        let mut start = 0;
        for span in &self.media {
            let Some(grid) = span.grid else { continue };
            if row < span.rows.start {
                break;
            }
            if !grid.continues {
                start = next + span.rows.start - behind;
            }
            if row < span.rows.end {
                let index = row - span.rows.start;
                return [grid.time, index / grid.columns, index % grid.columns].map(|place| start + place);
            }
            next = start + grid.rows.max(grid.columns).max(grid.time + 1);
            behind = span.rows.end;
        }
        [next + row - behind; 3]
    }

    /// Whether it becomes long when it has so many tokens.
    pub(super) fn lengthens_at(&self, tokens: usize) -> bool {
        !self.long && self.long_behind.is_some_and(|most| tokens > most)
    }

    /// Becomes long when it has so many rows, and gives up those of its text, which were computed as a short one's.
    /// Their pages are returned, the last first.
    pub(super) fn lengthen(&mut self) -> Vec<Page> {
        if !self.lengthens_at(self.tokens.len()) {
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
                // What is heard has no rows of its own; what is seen from a row on changes what that row holds.
                let end = span.rows.end.max(span.rows.start + 1);
                (first < rows.end.min(end)).then(|| (span.key_in_time(), first - span.rows.start))
            });
            // What a row holds depends on the length as well.
            let long = || Key::chain(None, &[], std::iter::once((Key::of(b"long"), 0))).within(self.scope);
            let first = || if self.long { Some(long()) } else { self.scope };
            let before = self.keys.last().copied().or_else(first);
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
        let mut pages = Vec::new();
        for memory in &mut self.memories {
            self.encoded[memory.media.clone()].fill(false);
            // In front, so that they are given up after the text's: they cost more to compute again.
            pages.append(&mut memory.pages);
        }
        pages.append(&mut self.pages);
        pages.reverse();
        pages
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A sequence of `tokens` tokens with media: rows, and rows of memory.
    fn sequence(tokens: usize, media: &[(Range<usize>, usize)]) -> Sequence {
        let span = |(index, (rows, memory)): (usize, &(Range<usize>, usize))| Span {
            rows: rows.clone(),
            grid: None,
            memory: *memory,
            key: Key::of(&[index as u8]),
        };
        let media = media.iter().enumerate().map(span).collect();
        Sequence::new(SeqId(0), vec![1; tokens], media, tokens + 9, Arc::new([]))
    }

    /// Of each row: which memory it sees, and how many rows of it.
    fn seen(sequence: &Sequence, rows: Range<usize>) -> Vec<Option<(usize, usize)>> {
        let place = |memory: &Memory| sequence.memories.iter().position(|other| other == memory).unwrap();
        let sights = sequence.sights(rows);
        let run = |(count, sight): (usize, Option<(&Memory, usize)>)| {
            vec![sight.map(|(memory, seen)| (place(memory), seen)); count]
        };
        sights.into_iter().flat_map(run).collect()
    }

    #[test]
    fn rows_see_the_pictures_they_follow_up_to_the_next() {
        let pictures = [(2..3, 10), (3..4, 5), (6..7, 7), (8..9, 1)];
        let sequence = sequence(10, &pictures);
        let (both, third, fourth) = (Some((0, 15)), Some((1, 7)), Some((2, 1)));
        let expected = [None, None, Some((0, 10)), both, both, both, third, third, fourth, fourth];
        for from in 0..10 {
            for to in from..=10 {
                assert_eq!(seen(&sequence, from..to), expected[from..to], "{from}..{to}");
            }
        }
        // An answer sees what the prompt's end sees.
        assert_eq!(seen(&sequence, 12..13), [fourth]);
        assert_eq!(sequence.place(1).map(|(_, rows)| rows), Some(10..15));
        assert_eq!(sequence.most_pages(4), 5 + 4 + 2 + 1);
        let needed = |row| (0..3).filter(|&memory| sequence.is_seen(memory, row)).collect::<Vec<_>>();
        assert_eq!((needed(5), needed(6), needed(9)), (vec![0, 1, 2], vec![1, 2], vec![2]));
    }

    #[test]
    fn all_text_hears_what_has_no_rows_of_its_own() {
        let mut sequence = sequence(3, &[(0..0, 9)]);
        assert_eq!(seen(&sequence, 0..3), [Some((0, 9)); 3]);
        let mut other = self::sequence(3, &[(0..0, 9)]);
        other.media[0].key = Key::of(b"other");
        assert_ne!(sequence.key(0, 2), other.key(0, 2), "what is heard changes what rows hold");
    }

    #[test]
    fn media_inside_the_text_are_no_memory() {
        let sequence = sequence(9, &[(0..4, 0), (4..5, 3), (5..7, 0), (7..8, 3)]);
        assert_eq!(sequence.media_rows(), 6);
        assert_eq!(
            sequence.memories.iter().map(|memory| memory.media.clone()).collect::<Vec<_>>(),
            [1..2, 3..4]
        );
        assert!(sequence.place(0).is_none() && sequence.place(2).is_none());
    }
}
