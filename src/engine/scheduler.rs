//! Who runs next. Integers only: no tensor, no clock, no input or output.

use std::collections::VecDeque;

use super::{
    pages::{Key, Page, Pages},
    sequence::{Memory, SeqId, Sequence},
};

/// What a step may hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Most sequences at once.
    pub sequences: usize,
    /// Most rows of one step. At least `sequences`, so that a decode row is never refused.
    pub rows: usize,
    /// Most prompt rows of one sequence in one step.
    pub chunk: usize,
    /// Encoded rows that all running sequences together may hold.
    pub encoded: usize,
    /// Encoded rows that are kept besides, of media that may come again or belong to requests that wait.
    pub spare: usize,
    /// Encoded rows that one step may compute when nobody waits for a decode row; at least one medium always fits.
    pub encode: usize,
}

/// The work of one step. A prompt chunk and a decode step differ only in number.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// Media to encode first: sequence and index.
    pub encode: Vec<(SeqId, usize)>,
    /// Media to encode first and write to the pages of a memory: sequence and index.
    pub remember: Vec<(SeqId, usize)>,
    /// How many new rows each sequence computes.
    pub parts: Vec<(SeqId, usize)>,
}

/// Why an answer ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FinishReason {
    /// The model said so.
    Stop,
    /// There was no room for more.
    Length,
}

/// What became of a sequence's draw.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// A token of the answer.
    Token(u32),
    /// The answer is complete, after so many tokens, the one that ended it included. The token that filled it is
    /// part of the text, one that only ended it is not.
    Finished(Option<u32>, FinishReason, usize),
    /// The network gave no usable numbers.
    Failed,
}

/// Of one priority it is first come, first served, without starvation: older sequences are served first, and when pages
/// run out the youngest one gives up its rows and computes them again later. A sequence of a higher priority does not
/// wait for one of a lower: that one gives up its rows.
#[derive(Debug)]
pub struct Scheduler {
    limits: Limits,
    pages: Pages,
    page_size: usize,
    /// Sorted by name.
    running: Vec<Sequence>,
    /// Sorted by name. Those that gave up their rows are in front, being older.
    waiting: VecDeque<Sequence>,
    /// Encoded rows that sequences hold or are entitled to.
    encoded: usize,
    preemptions: u64,
    /// Whether one that waits may find room now that found none before.
    changed: bool,
}

impl Scheduler {
    /// A scheduler over `pages` free pages of `page_size` rows.
    pub fn new(limits: Limits, pages: usize, page_size: usize) -> Self {
        debug_assert!(limits.rows >= limits.sequences && limits.chunk > 0 && page_size > 0);
        Self {
            limits,
            pages: Pages::new(pages),
            page_size,
            running: Vec::new(),
            waiting: VecDeque::new(),
            encoded: 0,
            preemptions: 0,
            changed: false,
        }
    }

    /// Whether a sequence can ever run: its pages suffice, its media fit, and what must be computed in one step does.
    pub fn fits(&self, sequence: &Sequence) -> bool {
        let whole = !sequence.whole
            || sequence.tokens.len() <= self.limits.chunk.min(self.limits.rows - (self.limits.sequences - 1));
        whole
            && sequence.most_pages(self.page_size) <= self.pages.total()
            && sequence.media_rows() <= self.limits.encoded
            && (1..sequence.most).contains(&sequence.tokens.len())
    }

    /// Adds a sequence behind all with smaller names. It must [fit](Self::fits), and its name be its own.
    pub fn submit(&mut self, mut sequence: Sequence) {
        debug_assert!(self.fits(&sequence));
        // It has no pages yet.
        sequence.lengthen();
        debug_assert!(self.names().all(|id| id != sequence.id), "a name is given twice");
        self.changed = true;
        self.wait(sequence);
    }

    fn wait(&mut self, sequence: Sequence) {
        let at = self.waiting.partition_point(|other| other.id < sequence.id);
        self.waiting.insert(at, sequence);
    }

    /// Removes a sequence and frees its pages.
    pub fn remove(&mut self, id: SeqId) {
        self.changed = true;
        if let Ok(index) = self.running.binary_search_by_key(&id, |sequence| sequence.id) {
            let mut sequence = self.running.remove(index);
            self.encoded -= sequence.media_rows();
            self.free(&mut sequence);
        } else if let Ok(index) = self.waiting.binary_search_by_key(&id, |sequence| sequence.id)
            && let Some(sequence) = self.waiting.remove(index)
            && sequence.reused.is_some()
        {
            self.encoded -= sequence.media_rows();
        }
    }

    /// A running sequence.
    pub fn sequence(&self, id: SeqId) -> Option<&Sequence> {
        self.index(id).map(|index| &self.running[index])
    }

    /// Notes that a medium is encoded, and written where it belongs to a memory. Others find the memory when all of it is.
    pub fn encoded(&mut self, id: SeqId, medium: usize) {
        let Some(index) = self.index(id) else { return };
        self.changed = true;
        self.running[index].encoded[medium] = true;
        let sequence = &self.running[index];
        let Some((memory, _)) = sequence.place(medium).filter(|(memory, _)| sequence.is_written(memory))
        else {
            return;
        };
        for (index, &page) in memory.pages.iter().enumerate() {
            self.pages.publish(page, memory.page_key(index));
        }
    }

    /// All sequences.
    pub fn names(&self) -> impl Iterator<Item = SeqId> + '_ {
        self.running.iter().chain(&self.waiting).map(|sequence| sequence.id)
    }

    /// Sequences that have pages.
    pub fn running(&self) -> usize {
        self.running.len()
    }

    /// Pages in use, and pages there are.
    pub fn pages(&self) -> (usize, usize) {
        (self.pages.total() - self.pages.available(), self.pages.total())
    }

    /// How often a sequence gave up its rows.
    pub fn preemptions(&self) -> u64 {
        self.preemptions
    }

    /// Whether there is nothing to do.
    pub fn is_idle(&self) -> bool {
        self.running.is_empty() && self.waiting.is_empty()
    }

    /// Plans a step.
    pub fn schedule(&mut self) -> Plan {
        let preemptions = self.preemptions;
        for sequence in &mut self.running {
            for page in sequence.lengthen() {
                self.pages.release(page);
            }
        }
        self.grow();
        // Those that gave up their rows wait for the next step.
        self.changed = self.preemptions != preemptions;
        if !self.changed {
            self.admit();
        }
        self.plan()
    }

    /// Plans the step behind that of `parts` before its tokens are known: all that draw there go on by one row each, but for
    /// those that end with the token in any case. Nothing where anything else could come between, such as another sequence
    /// or the end of a prompt. Until the step is [complete](Self::complete), the last token of each is a 0.
    ///
    /// Those that turn out to have ended leave the parts; for the others the plan is as [`Self::schedule`] would have made
    /// it.
    pub fn foresee(&mut self, parts: &[(SeqId, usize)]) -> Option<Vec<(SeqId, usize)>> {
        if parts.len() != self.running.len() || (self.changed && !self.waiting.is_empty()) {
            return None;
        }
        // Parts are in the order of the sequences.
        let both = || self.running.iter().zip(parts);
        let draws = |(sequence, &(id, rows)): (&Sequence, &(SeqId, usize))| {
            sequence.id == id && sequence.missing() == rows && !sequence.foreseen
        };
        if !both().all(draws) {
            return None;
        }
        let next = |sequence: &Sequence| sequence.tokens.len() + 1;
        let goes_on = |sequence: &Sequence| next(sequence) < sequence.most;
        let going = || self.running.iter().filter(|sequence| goes_on(sequence));
        let lacks = |sequence: &&Sequence| sequence.pages.len() * self.page_size < next(sequence);
        if going().any(|sequence| sequence.lengthens_at(next(sequence)))
            || going().filter(lacks).count() > self.pages.available()
        {
            return None;
        }
        let mut next_parts = Vec::with_capacity(parts.len());
        for (sequence, &(_, rows)) in self.running.iter_mut().zip(parts) {
            if !goes_on(sequence) {
                continue;
            }
            sequence.computed += rows;
            sequence.tokens.push(0);
            sequence.foreseen = true;
            next_parts.push((sequence.id, 1));
        }
        // There are pages for all of them, so nobody gives up any.
        self.grow();
        (!next_parts.is_empty()).then_some(next_parts)
    }

    /// Forgets what was [foreseen](Self::foresee) behind a step that failed.
    pub fn recall(&mut self, parts: &[(SeqId, usize)]) {
        for &(id, rows) in parts {
            let Some(index) = self.index(id) else { continue };
            let sequence = &mut self.running[index];
            if std::mem::take(&mut sequence.foreseen) {
                sequence.tokens.pop();
                sequence.computed -= rows;
            }
        }
    }

    /// Gives every running sequence, the oldest first, the page for its next row.
    fn grow(&mut self) {
        let mut index = 0;
        while index < self.running.len() {
            if self.running[index].pages.len() * self.page_size >= self.running[index].tokens.len() {
                index += 1;
            } else if let Some(page) = self.pages.take() {
                self.running[index].pages.push(page);
            } else {
                self.preempt_youngest();
            }
        }
    }

    fn preempt_youngest(&mut self) {
        let Some(mut sequence) = self.running.pop() else { return };
        self.free(&mut sequence);
        self.preemptions += 1;
        self.wait(sequence);
    }

    /// Starts waiting sequences in order, as long as all their rows have pages.
    fn admit(&mut self) {
        let mut next = 0;
        // What one in front could not use is not taken from those behind it twice.
        let mut may_take = true;
        while let Some(mut sequence) = self.waiting.remove(next) {
            let id = sequence.id;
            let room = if self.running.len() < self.limits.sequences {
                self.start(&mut sequence)
            } else if self.is_held_up(&sequence) {
                Room::Later
            } else {
                Room::None { lacking: 0 }
            };
            if room == Room::Found {
                let at = self.running.partition_point(|other| other.id < id);
                self.running.insert(at, sequence);
                next = 0;
                continue;
            }
            self.waiting.insert(next, sequence);
            if let Room::None { lacking } = room {
                if may_take && self.held_below(id).is_some_and(|pages| pages >= lacking) {
                    self.preempt_youngest();
                    continue;
                }
                if self.running.len() >= self.limits.sequences {
                    return;
                }
            }
            may_take = false;
            // One behind it, which gave up its rows, may hold the encoded rows that it waits for.
            let holds = |sequence: &Sequence| sequence.reused.is_some();
            match self.waiting.iter().skip(next).position(holds) {
                Some(ahead) if ahead > 0 => next += ahead,
                _ => return,
            }
        }
    }

    /// Pages of those that run and have a lower priority, where there are any.
    fn held_below(&self, id: SeqId) -> Option<usize> {
        let lower = self.running.iter().rev().take_while(|other| other.id.class() > id.class());
        lower.map(|other| other.all_pages().count()).reduce(|sum, pages| sum + pages)
    }

    /// Whether a sequence waits for encoded rows that others hold.
    fn is_held_up(&self, sequence: &Sequence) -> bool {
        sequence.reused.is_none() && self.encoded + sequence.media_rows() > self.limits.encoded
    }

    fn start(&mut self, sequence: &mut Sequence) -> Room {
        let fresh = sequence.reused.is_none();
        if self.is_held_up(sequence) {
            return Room::Later;
        }
        // The last row is always computed: its logits are needed.
        let reusable = (sequence.tokens.len() - 1).min(sequence.reusable) / self.page_size;
        let mut found = Vec::new();
        for index in 0..reusable {
            let Some(page) = self.pages.find(&sequence.key(index, self.page_size)) else { break };
            found.push(page);
        }
        let computed = found.len() * self.page_size;
        let seen = (0..sequence.memories.len()).filter(|&memory| sequence.is_seen(memory, computed));
        let seen: Vec<usize> = seen.collect();
        // What another is about to write is found there soon.
        if seen.iter().any(|&memory| self.is_being_written(sequence.memories[memory].key)) {
            return Room::Later;
        }
        let known: Vec<Vec<Page>> =
            seen.iter().map(|&memory| self.find(&sequence.memories[memory])).collect();
        let count = |memory: &Memory| memory.rows.div_ceil(self.page_size);
        let all = sequence.tokens.len().div_ceil(self.page_size)
            + seen.iter().map(|&memory| count(&sequence.memories[memory])).sum::<usize>();
        let wanted = all - found.len() - known.iter().map(Vec::len).sum::<usize>();
        let known_pages = || found.iter().chain(known.iter().flatten());
        let revived = known_pages().filter(|&&page| self.pages.is_free(page)).count();
        // Room to grow for those that run, or the newcomer would soon be thrown out again.
        let spare = self.running.len().min(self.pages.total() / 100 + 1);
        let needed = wanted + revived + spare;
        if self.pages.available() < needed {
            return Room::None { lacking: needed - self.pages.available() };
        }
        for &page in known_pages() {
            self.pages.share(page);
        }
        sequence.computed = computed;
        sequence.pages = found;
        for (index, known) in seen.into_iter().zip(known) {
            let memory = &mut sequence.memories[index];
            sequence.encoded[memory.media.clone()].fill(!known.is_empty());
            memory.pages = known;
            self.fill(&mut memory.pages, memory.rows.div_ceil(self.page_size));
        }
        self.fill(&mut sequence.pages, sequence.tokens.len().div_ceil(self.page_size));
        if fresh {
            self.encoded += sequence.media_rows();
            sequence.reused = Some(sequence.computed);
        }
        Room::Found
    }

    fn is_being_written(&self, key: Key) -> bool {
        let by = |other: &Sequence| {
            let mut unwritten = other.memories.iter().filter(|memory| !other.is_written(memory));
            unwritten.any(|memory| memory.key == key && !memory.pages.is_empty())
        };
        self.running.iter().any(by)
    }

    /// The pages that hold a memory, all of them or none.
    fn find(&self, memory: &Memory) -> Vec<Page> {
        let pages =
            (0..memory.rows.div_ceil(self.page_size)).map(|index| self.pages.find(&memory.page_key(index)));
        pages.collect::<Option<_>>().unwrap_or_default()
    }

    /// Takes free pages until there are `count`.
    fn fill(&mut self, pages: &mut Vec<Page>, count: usize) {
        while pages.len() < count {
            let Some(page) = self.pages.take() else { return };
            pages.push(page);
        }
    }

    /// Shares a step's rows: a row for everyone who decodes, the rest to prompts in order.
    fn plan(&self) -> Plan {
        let mut plan = Plan::default();
        let decoding = self.running.iter().filter(|sequence| sequence.decodes()).count();
        let mut left = self.limits.rows - decoding;
        let mut encoding = Encoding {
            rows: 0,
            // A large picture must not stall those who stream.
            most: if decoding > 0 { 0 } else { self.limits.encode },
        };
        for sequence in &self.running {
            let allowed = if sequence.decodes() { 1 } else { left.min(self.limits.chunk) };
            if sequence.whole && allowed < sequence.missing() {
                continue;
            }
            let rows = self.reach(sequence, allowed, &mut encoding, &mut plan) - sequence.computed;
            if rows == 0 {
                continue;
            }
            if !sequence.decodes() {
                left -= rows;
            }
            plan.parts.push((sequence.id, rows));
        }
        plan
    }

    /// How far a sequence gets with `allowed` rows: not into a medium that is not encoded by then.
    fn reach(&self, sequence: &Sequence, allowed: usize, encoding: &mut Encoding, plan: &mut Plan) -> usize {
        let end = sequence.computed + allowed.min(sequence.missing());
        for (index, span) in sequence.media.iter().enumerate() {
            let memory = sequence.place(index).map(|(memory, _)| memory);
            let passed = match memory {
                Some(memory) => memory.pages.is_empty(),
                None => span.rows.end <= sequence.computed,
            };
            if sequence.encoded[index] || passed {
                continue;
            }
            if span.rows.start >= end {
                break;
            }
            let (rows, list) = match memory {
                Some(_) => (span.memory, &mut plan.remember),
                None => (span.rows.len(), &mut plan.encode),
            };
            if !encoding.takes(rows) {
                return span.rows.start.max(sequence.computed);
            }
            list.push((sequence.id, index));
        }
        end
    }

    /// Whether a part brings its sequence to the end of its tokens, so that a token is drawn.
    pub fn draws(&self, part: (SeqId, usize)) -> bool {
        self.sequence(part.0).is_some_and(|sequence| sequence.missing() == part.1)
    }

    /// Notes what a step computed. `drawn` has one entry, a token or `None` for unusable numbers, for each part
    /// that [draws](Self::draws), in order.
    pub fn complete(
        &mut self,
        parts: &[(SeqId, usize)],
        drawn: impl IntoIterator<Item = Option<u32>>,
    ) -> Vec<(SeqId, Outcome)> {
        let mut drawn = drawn.into_iter();
        let mut outcomes = Vec::with_capacity(parts.len());
        for &(id, rows) in parts {
            let Some(index) = self.index(id) else { continue };
            let sequence = &mut self.running[index];
            if std::mem::take(&mut sequence.foreseen) {
                // Its rows are counted already; the token takes the place that was kept for it.
                sequence.tokens.pop();
            } else {
                sequence.computed += rows;
            }
            let token = if sequence.missing() == 0 { drawn.next() } else { None };
            if token != Some(None) {
                for (page, key) in sequence.publish(self.page_size) {
                    self.pages.publish(page, key);
                }
            }
            let Some(token) = token else { continue };
            let outcome = self.running[index].accept(token);
            if !matches!(outcome, Outcome::Token(_)) {
                self.remove(id);
            }
            outcomes.push((id, outcome));
        }
        outcomes
    }

    fn index(&self, id: SeqId) -> Option<usize> {
        self.running.binary_search_by_key(&id, |sequence| sequence.id).ok()
    }

    fn free(&mut self, sequence: &mut Sequence) {
        for page in sequence.forget() {
            self.pages.release(page);
        }
    }

    /// Panics unless pages and counts agree.
    #[cfg(test)]
    fn check(&self) {
        self.pages.check(self.running.iter().flat_map(Sequence::all_pages));
        assert!(
            self.waiting.iter().all(|sequence| sequence.all_pages().count() == 0 && sequence.computed == 0)
        );
        assert!(self.running.is_sorted_by_key(|sequence| sequence.id));
        assert!(self.waiting.iter().is_sorted_by_key(|sequence| sequence.id));
        assert!(self.running.len() <= self.limits.sequences);
        let started =
            self.running.iter().chain(self.waiting.iter().filter(|waiting| waiting.reused.is_some()));
        assert_eq!(self.encoded, started.map(Sequence::media_rows).sum::<usize>());
        assert!(self.encoded <= self.limits.encoded);
    }
}

/// Whether a sequence can start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Room {
    /// It has.
    Found,
    /// When those that run have got further.
    Later,
    /// When those that run give up so many pages more, or their places.
    None {
        /// Pages.
        lacking: usize,
    },
}

/// Encoding that a step has taken on.
struct Encoding {
    rows: usize,
    most: usize,
}

impl Encoding {
    fn takes(&mut self, rows: usize) -> bool {
        if self.rows > 0 && self.rows + rows > self.most {
            return false;
        }
        self.rows += rows;
        true
    }
}

impl Sequence {
    fn accept(&mut self, token: Option<u32>) -> Outcome {
        let Some(token) = token else { return Outcome::Failed };
        self.tokens.push(token);
        if self.stops.contains(&token) {
            Outcome::Finished(None, FinishReason::Stop, self.generated())
        } else if self.tokens.len() >= self.most {
            Outcome::Finished(Some(token), FinishReason::Length, self.generated())
        } else {
            Outcome::Token(token)
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{
        collections::{BTreeMap, HashMap},
        sync::Arc,
    };

    use proptest::{collection::vec, prelude::*};

    use super::*;
    use crate::{
        engine::{pages::Key, sequence::Span},
        request::Priority,
    };

    const STOP: u32 = 0;

    #[derive(Debug, Clone)]
    struct Asked {
        arrives: usize,
        priority: Priority,
        prompt: Vec<u32>,
        /// Length and content of a medium in front of the prompt.
        medium: Option<(usize, u8)>,
        /// Content of what is heard.
        heard: Option<u8>,
        /// Pictures that the text attends to: in front of which token of the prompt, and content.
        pictures: Vec<(usize, u8)>,
        answer: usize,
        leaves: Option<usize>,
    }

    #[derive(Debug, Clone)]
    struct Scene {
        limits: Limits,
        pages: usize,
        page_size: usize,
        asked: Vec<Asked>,
        /// Of each step, in turns: whether the one behind is foreseen, and whether that is recalled.
        ahead: Vec<(bool, bool)>,
    }

    fn scene() -> impl Strategy<Value = Scene> {
        // Few tokens, so that prompts begin alike.
        let prompt = vec(1u32..4, 1..20);
        let asked = (
            (0usize..30, prop::sample::select(vec![Priority::High, Priority::Normal, Priority::Low])),
            prompt,
            prop::option::of((1usize..8, 0u8..2)),
            (prop::option::of(0u8..3), vec((0usize..20, 0u8..3), 0..4)),
            1usize..12,
            prop::option::of(0usize..40),
        )
            .prop_map(|((arrives, priority), prompt, medium, (heard, pictures), answer, leaves)| Asked {
                arrives,
                priority,
                prompt,
                medium,
                heard,
                pictures,
                answer,
                leaves,
            });
        let limits = (1usize..6, 0usize..12, 1usize..9, 8usize..20, 0usize..12).prop_map(
            |(sequences, rows, chunk, encoded, encode)| Limits {
                sequences,
                rows: sequences + rows,
                chunk,
                encoded,
                spare: 0,
                encode,
            },
        );
        let ahead = vec((prop::bool::weighted(0.8), prop::bool::weighted(0.2)), 1..5);
        (limits, 1usize..5, 0usize..10, vec(asked, 1..12), ahead).prop_map(
            |(limits, page_size, spare, asked, ahead)| {
                // The longest request fits, and not much more.
                let most = asked.iter().map(|asked| asked.sequence(0).most_pages(page_size)).max();
                Scene { limits, pages: most.unwrap_or(1) + spare, page_size, asked, ahead }
            },
        )
    }

    impl Asked {
        fn length(&self) -> usize {
            self.prompt.len() + self.medium.map_or(0, |(rows, _)| rows) + self.pictures.len()
        }

        fn name(&self, number: usize) -> SeqId {
            SeqId::new(self.priority, number as u64)
        }

        fn sequence(&self, number: usize) -> Sequence {
            let mut tokens = Vec::new();
            let mut media = Vec::new();
            let span = |rows, memory, kind: &[u8], content| {
                let key = Key::of(&[kind, &[content]].concat());
                Span { rows, grid: None, memory, key }
            };
            if let Some(content) = self.heard {
                media.push(span(0..0, 7, b"heard", content));
            }
            if let Some((rows, content)) = self.medium {
                tokens.resize(rows, 9);
                media.push(span(0..rows, 0, b"medium", content));
            }
            for (index, &token) in self.prompt.iter().enumerate() {
                let here = |place: usize| place % self.prompt.len() == index;
                for &(_, content) in self.pictures.iter().filter(|(place, _)| here(*place)) {
                    let at = tokens.len();
                    media.push(span(at..at + 1, 3 + content as usize, b"picture", content));
                    tokens.push(8);
                }
                tokens.push(token);
            }
            let most = tokens.len() + self.answer;
            Sequence::new(self.name(number), tokens, media, most, Arc::new([STOP]))
        }
    }

    /// What the rows of a memory hold.
    fn remembered(sequence: &Sequence, memory: &Memory) -> Vec<u64> {
        use std::hash::{DefaultHasher, Hash, Hasher};
        let row = |key: Key, row: usize| {
            let mut hasher = DefaultHasher::new();
            (key, row, "memory").hash(&mut hasher);
            hasher.finish()
        };
        let spans = &sequence.media[memory.media.clone()];
        spans.iter().flat_map(|span| (0..span.memory).map(move |index| row(span.key, index))).collect()
    }

    /// What a row holds: a digest of all tokens and media up to it.
    fn content(sequence: &Sequence, row: usize) -> u64 {
        content_of(&sequence.tokens, sequence, row)
    }

    /// The same with other tokens.
    fn content_of(tokens: &[u32], sequence: &Sequence, row: usize) -> u64 {
        use std::hash::{DefaultHasher, Hash, Hasher};
        let mut hasher = DefaultHasher::new();
        tokens[..=row].hash(&mut hasher);
        for span in sequence.media.iter().filter(|span| span.rows.start <= row) {
            span.key.hash(&mut hasher);
        }
        hasher.finish()
    }

    /// The token that a network would draw from what the last row holds.
    fn token(content: u64) -> u32 {
        (content % 10) as u32
    }

    /// The answer of a request that runs alone.
    fn answer(asked: &Asked) -> Vec<u32> {
        let mut sequence = asked.sequence(0);
        loop {
            let token = token(content(&sequence, sequence.tokens.len() - 1));
            sequence.tokens.push(token);
            if token == STOP || sequence.generated() == asked.answer {
                return sequence.tokens[sequence.prompt..].to_vec();
            }
        }
    }

    /// Runs a scene with a cache whose slots hold digests, checking every row that is read. Returns how many rows were
    /// foreseen.
    fn play(scene: &Scene) -> usize {
        let mut foreseen = 0;
        let mut scheduler = Scheduler::new(scene.limits, scene.pages, scene.page_size);
        let mut slots: HashMap<usize, u64> = HashMap::new();
        let mut answers: BTreeMap<SeqId, Vec<u32>> = BTreeMap::new();
        let mut finished = 0;
        let work: usize = scene.asked.iter().map(|asked| asked.length() + asked.answer + 1).sum();
        // Recomputation costs at most the whole work again for each step that the oldest sequence makes.
        let patience = 40 + 4 * work * scene.asked.len();
        let mut asked: Vec<&Asked> = scene.asked.iter().collect();
        asked.sort_by_key(|asked| asked.arrives);
        let mut arrived = 0;
        let mut begun: Vec<(SeqId, usize)> = Vec::new();
        for step in 0.. {
            assert!(step < patience, "somebody starves");
            while arrived < asked.len() && asked[arrived].arrives <= step {
                scheduler.submit(asked[arrived].sequence(arrived));
                answers.insert(asked[arrived].name(arrived), Vec::new());
                arrived += 1;
            }
            for (index, asked) in asked.iter().enumerate().take(arrived) {
                if asked.leaves.is_some_and(|after| asked.arrives + after == step) {
                    scheduler.remove(asked.name(index));
                    scheduler.check();
                }
            }
            if arrived == asked.len() && scheduler.is_idle() {
                break;
            }
            begun.retain(|part| scheduler.sequence(part.0).is_some());
            let is_begun = !begun.is_empty();
            let plan = match is_begun {
                true => Plan { parts: std::mem::take(&mut begun), ..Plan::default() },
                false => scheduler.schedule(),
            };
            scheduler.check();
            let busy = !plan.parts.is_empty() || !plan.remember.is_empty();
            assert!(scheduler.is_idle() || busy, "nothing runs although somebody could");
            assert!(plan.parts.iter().map(|part| part.1).sum::<usize>() <= scene.limits.rows);
            let decoding = plan.parts.iter().any(|part| scheduler.sequence(part.0).unwrap().decodes());
            if decoding {
                let media = plan.encode.len() + plan.remember.len();
                assert!(media <= 1, "streams wait for {media} media");
            }
            let slot_in = |pages: &[Page], row: usize| {
                pages[row / scene.page_size] as usize * scene.page_size + row % scene.page_size
            };
            for &(id, medium) in &plan.remember {
                let sequence = scheduler.sequence(id).unwrap();
                assert!(!sequence.encoded[medium], "written twice");
                let (memory, rows) = sequence.place(medium).unwrap();
                let content = remembered(sequence, memory);
                for row in rows {
                    slots.insert(slot_in(&memory.pages, row), content[row]);
                }
                scheduler.encoded(id, medium);
            }
            for &(id, medium) in &plan.encode {
                assert!(!scheduler.sequence(id).unwrap().encoded[medium], "encoded twice");
                scheduler.encoded(id, medium);
            }
            let mut drawn = Vec::new();
            for &part in &plan.parts {
                let sequence = scheduler.sequence(part.0).unwrap();
                assert!(part.1 == 1 || part.1 <= scene.limits.chunk);
                let slot = |row: usize| slot_in(&sequence.pages, row);
                for (_, sight) in sequence.sights(sequence.computed..sequence.computed + part.1) {
                    let Some((memory, seen)) = sight else { continue };
                    let content = remembered(sequence, memory);
                    for row in 0..seen {
                        let found = slots.get(&slot_in(&memory.pages, row));
                        assert_eq!(found, Some(&content[row]), "row {row} of a memory of {sequence:?}");
                    }
                }
                for row in 0..sequence.computed {
                    assert_eq!(
                        slots.get(&slot(row)),
                        Some(&content(sequence, row)),
                        "row {row} of {sequence:?}"
                    );
                }
                for row in sequence.computed..sequence.computed + part.1 {
                    for (index, span) in sequence.media.iter().enumerate() {
                        assert!(
                            !span.rows.contains(&row) || sequence.encoded[index],
                            "row {row} is not encoded"
                        );
                    }
                    if is_begun {
                        assert_eq!(slots.get(&slot(row)), Some(&content(sequence, row)), "it was computed");
                    }
                    slots.insert(slot(row), content(sequence, row));
                }
                if scheduler.draws(part) {
                    drawn.push(Some(token(content(sequence, sequence.tokens.len() - 1))));
                }
            }
            let (foresees, recalls) = scene.ahead[step % scene.ahead.len()];
            if foresees && let Some(next) = scheduler.foresee(&plan.parts) {
                scheduler.check();
                for (id, rows) in &next {
                    let sequence = scheduler.sequence(*id).unwrap();
                    assert_eq!((sequence.missing(), *rows), (1, 1));
                    // The network gets the tokens that were drawn.
                    let place = plan.parts.iter().position(|part| part.0 == *id).unwrap();
                    let mut tokens = sequence.tokens.clone();
                    *tokens.last_mut().unwrap() = drawn[place].unwrap();
                    let row = tokens.len() - 1;
                    slots.insert(slot_in(&sequence.pages, row), content_of(&tokens, sequence, row));
                }
                foreseen += next.len();
                if recalls {
                    scheduler.recall(&plan.parts);
                    scheduler.check();
                } else {
                    begun = next;
                }
            }
            for (id, outcome) in scheduler.complete(&plan.parts, drawn) {
                let answer = answers.get_mut(&id).unwrap();
                match outcome {
                    Outcome::Token(token) => answer.push(token),
                    Outcome::Finished(token, reason, generated) => {
                        answer.extend(token);
                        if reason == FinishReason::Stop {
                            answer.push(STOP);
                        }
                        let place = (0..asked.len()).find(|&place| asked[place].name(place) == id).unwrap();
                        let alone = self::answer(asked[place]);
                        assert_eq!(*answer, alone);
                        assert_eq!(generated, alone.len());
                        finished += 1;
                    }
                    Outcome::Failed => panic!("nothing fails here"),
                }
            }
            scheduler.check();
        }
        assert_eq!(scheduler.pages().0, 0, "pages leaked");
        let stayed = asked.iter().filter(|asked| asked.leaves.is_none()).count();
        assert!(finished >= stayed, "{finished} of {stayed} finished");
        foreseen
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 10_000, failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn random_schedules_finish_and_leak_nothing(scene in scene()) {
            play(&scene);
        }
    }

    /// Nothing stands between the tokens of answers that run alone, however many wait, and so all but the first are foreseen.
    #[test]
    fn what_only_writes_is_foreseen() {
        let limits = Limits { sequences: 2, rows: 16, chunk: 16, encoded: 0, spare: 0, encode: 0 };
        let asked = |answer| Asked {
            arrives: 0,
            priority: Priority::Normal,
            prompt: vec![1, 2],
            medium: None,
            heard: None,
            pictures: Vec::new(),
            answer,
            leaves: None,
        };
        let scene = |asked| Scene { limits, pages: 64, page_size: 2, asked, ahead: vec![(true, false)] };
        let alone = answer(&asked(11)).len();
        assert!(alone > 3, "{alone}");
        // The last token of an answer that is full is known to be the last; that of one that stops is not.
        let full = usize::from(alone == 11);
        assert_eq!(play(&scene(vec![asked(11)])), alone - full);
        // Two at a time; when those end, what waits comes in between.
        assert_eq!(play(&scene(vec![asked(11); 4])), 4 * (alone - full));
    }

    #[test]
    fn a_failed_draw_removes_only_its_sequence() {
        let limits = Limits { sequences: 4, rows: 16, chunk: 16, encoded: 0, spare: 0, encode: 0 };
        let mut scheduler = Scheduler::new(limits, 8, 4);
        for id in 0..2 {
            scheduler.submit(Sequence::new(SeqId(id), vec![id as u32 + 1; 5], Vec::new(), 9, Arc::new([])));
        }
        let plan = scheduler.schedule();
        let outcomes = scheduler.complete(&plan.parts, [None, Some(7)]);
        assert_eq!(outcomes, [(SeqId(0), Outcome::Failed), (SeqId(1), Outcome::Token(7))]);
        assert_eq!(scheduler.names().collect::<Vec<_>>(), [SeqId(1)]);
        // Rows that came out broken are not offered to others.
        scheduler.submit(Sequence::new(SeqId(2), vec![1; 5], Vec::new(), 9, Arc::new([])));
        scheduler.schedule();
        assert_eq!(scheduler.sequence(SeqId(2)).unwrap().reused, Some(0));
    }

    /// Rows in front of the second picture are found, and so the first is not needed.
    #[test]
    fn pictures_that_no_missing_row_sees_are_not_encoded_again() {
        let limits = Limits { sequences: 4, rows: 64, chunk: 64, encoded: 0, spare: 0, encode: 64 };
        let mut scheduler = Scheduler::new(limits, 20, 4);
        let sequence = |id, second: &[u8]| {
            let span = |at, key: &[u8]| Span { rows: at..at + 1, grid: None, memory: 5, key: Key::of(key) };
            let media = vec![span(1, b"first"), span(8, second)];
            Sequence::new(SeqId(id), (1..=12).collect(), media, 14, Arc::new([]))
        };
        let mut run = |sequence: Sequence| {
            let id = sequence.id;
            scheduler.submit(sequence);
            let plan = scheduler.schedule();
            for &(id, medium) in &plan.remember {
                scheduler.encoded(id, medium);
            }
            let pages = scheduler.sequence(id).unwrap().memories.iter().map(|memory| memory.pages.len());
            let pages: Vec<_> = pages.collect();
            scheduler.complete(&plan.parts, [Some(5)]);
            scheduler.remove(id);
            scheduler.check();
            (plan.remember.into_iter().map(|(_, medium)| medium).collect::<Vec<_>>(), plan.parts[0].1, pages)
        };
        assert_eq!(run(sequence(0, b"second")), (vec![0, 1], 12, vec![2, 2]));
        assert_eq!(
            run(sequence(1, b"other")),
            (vec![1], 4, vec![0, 2]),
            "the last page sees another picture"
        );
        assert_eq!(run(sequence(2, b"second")), (vec![], 4, vec![0, 2]), "the memory is still there");
    }

    #[test]
    fn a_prompt_that_began_before_is_reused() {
        let limits = Limits { sequences: 4, rows: 32, chunk: 32, encoded: 0, spare: 0, encode: 0 };
        let mut scheduler = Scheduler::new(limits, 8, 4);
        let prompt: Vec<u32> = (1..=12).collect();
        scheduler.submit(Sequence::new(SeqId(0), prompt.clone(), Vec::new(), 13, Arc::new([])));
        let plan = scheduler.schedule();
        assert_eq!(plan.parts, [(SeqId(0), 12)]);
        scheduler.complete(&plan.parts, [Some(5)]);
        scheduler.submit(Sequence::new(SeqId(1), prompt, Vec::new(), 14, Arc::new([])));
        // Two pages of three: the last row must be computed for its logits.
        assert_eq!(scheduler.schedule().parts, [(SeqId(1), 4)]);
    }

    #[test]
    fn a_higher_priority_takes_the_place_of_a_lower_at_once() {
        let limits = Limits { sequences: 2, rows: 16, chunk: 8, encoded: 8, spare: 0, encode: 8 };
        let ask = |priority, number, media: Vec<Span>| {
            Sequence::new(SeqId::new(priority, number), vec![number as u32 + 1; 8], media, 16, Arc::new([]))
        };
        let picture = |key: &[u8]| vec![Span { rows: 0..6, grid: None, memory: 0, key: Key::of(key) }];
        // Two rows of two places; and pages for two of three.
        for (sequences, pages) in [(2, 30), (4, 8)] {
            let mut scheduler = Scheduler::new(Limits { sequences, ..limits }, pages, 4);
            let mut step = |arrivals: Vec<Sequence>| {
                arrivals.into_iter().for_each(|sequence| scheduler.submit(sequence));
                let plan = scheduler.schedule();
                scheduler.check();
                let drawing = plan.parts.iter().filter(|part| scheduler.draws(**part)).count();
                scheduler.complete(&plan.parts, vec![Some(3); drawing]);
                plan.parts.iter().map(|part| part.0).collect::<Vec<_>>()
            };
            let low = [0, 1].map(|number| SeqId::new(Priority::Low, number));
            let normal = SeqId::new(Priority::Normal, 5);
            let both = step(low.iter().map(|id| ask(Priority::Low, id.0 & 7, Vec::new())).collect());
            assert_eq!(both, low);
            assert_eq!(step(vec![ask(Priority::Normal, 5, Vec::new())]), [normal, low[0]], "{sequences}");
            // Of one priority, those that run stay.
            assert_eq!(step(vec![ask(Priority::Normal, 4, Vec::new())])[0], SeqId::new(Priority::Normal, 4));
            let highest = step(vec![ask(Priority::High, 9, Vec::new()), ask(Priority::High, 8, Vec::new())]);
            assert_eq!(highest[..2], [8, 9].map(|number| SeqId::new(Priority::High, number)));
        }
        // Who holds encoded rows keeps its place: giving it up would not help.
        let mut scheduler = Scheduler::new(Limits { sequences: 1, ..limits }, 30, 4);
        scheduler.submit(ask(Priority::Low, 0, picture(b"a")));
        scheduler.schedule();
        scheduler.submit(ask(Priority::High, 1, picture(b"b")));
        scheduler.schedule();
        assert_eq!((scheduler.preemptions(), scheduler.running()), (0, 1));
    }

    /// One that comes late with an early name waits in front of one that gave up its rows and holds what it needs.
    #[test]
    fn who_holds_encoded_rows_goes_first() {
        let limits = Limits { sequences: 4, rows: 32, chunk: 32, encoded: 8, spare: 0, encode: 8 };
        let mut scheduler = Scheduler::new(limits, 6, 4);
        let seeing = |id: u64| {
            let span = Span { rows: 0..6, grid: None, memory: 0, key: Key::of(&id.to_le_bytes()) };
            Sequence::new(SeqId(id), vec![1; 8], vec![span], 20, Arc::new([]))
        };
        let plain = Sequence::new(SeqId(1), vec![2; 8], Vec::new(), 24, Arc::new([]));
        scheduler.submit(plain);
        scheduler.submit(seeing(7));
        let mut late = Some(seeing(5));
        for _ in 0..200 {
            let plan = scheduler.schedule();
            for (id, medium) in plan.encode {
                scheduler.encoded(id, medium);
            }
            let drawing = plan.parts.iter().filter(|part| scheduler.draws(**part)).count();
            scheduler.complete(&plan.parts, vec![Some(3); drawing]);
            if scheduler.preemptions() > 0
                && let Some(late) = late.take()
            {
                scheduler.submit(late);
            }
            if late.is_none() && scheduler.is_idle() {
                return;
            }
        }
        panic!("somebody waits for ever, after {} preemptions", scheduler.preemptions());
    }
}
