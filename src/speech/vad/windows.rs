//! Spans of speech to windows that a model hears, with the silence between them: times need no correction.

use std::ops::RangeInclusive;

use super::{Span, VadOptions};
use crate::media::sound::RATE;

/// A window may be that much shorter, in samples, if it ends in a longer pause.
const SHORTER: usize = 5 * RATE;

/// A part of a recording to transcribe by itself, in samples.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Window {
    /// Where it begins.
    pub start: usize,
    /// Behind its last sample.
    pub end: usize,
    /// Behind its last sample of speech: nothing is missed if the text ends here.
    pub speech_end: usize,
}

/// Puts neighbouring spans into windows of at most `options.longest_ms`, which end in long pauses and do not overlap.
/// `spans`: in order of time, of a recording of `samples` samples. A span that is too long is cut anywhere: a
/// [`Detector`](super::Detector) with the same options gives none.
pub fn windows(spans: &[Span], samples: usize, options: &VadOptions) -> Vec<Window> {
    let longest = options.longest();
    let spans = pieces(spans, longest);
    let packing = Packing { spans: &spans, samples, longest, pad: options.pad() };
    let mut windows = Vec::new();
    let mut first = 0;
    while first < spans.len() {
        let last = packing.last(first);
        windows.push(packing.window(first..=last));
        first = last + 1;
    }
    windows
}

/// The spans, those that are too long in equal parts.
fn pieces(spans: &[Span], longest: usize) -> Vec<Span> {
    let split = |span: &Span| {
        let length = span.end - span.start;
        let (start, parts) = (span.start, length.div_ceil(longest));
        (0..parts).map(move |part| Span {
            start: start + length * part / parts,
            end: start + length * (part + 1) / parts,
        })
    };
    spans.iter().flat_map(split).collect()
}

struct Packing<'a> {
    spans: &'a [Span],
    samples: usize,
    longest: usize,
    pad: usize,
}

impl Packing<'_> {
    /// The last span of the window that begins with span `first`.
    fn last(&self, first: usize) -> usize {
        let fits =
            |&last: &usize| self.front(first) + self.length(first, last) + self.back(last) <= self.longest;
        let most = (first + 1..self.spans.len()).take_while(fits).last().unwrap_or(first);
        if most == self.spans.len() - 1 {
            return most;
        }
        let full = |&last: &usize| self.length(first, last) + SHORTER >= self.length(first, most);
        // Of pauses that are as long, the latest.
        (first..=most).filter(full).max_by_key(|&last| self.pause(last)).unwrap_or(most)
    }

    fn window(&self, range: RangeInclusive<usize>) -> Window {
        let (first, last) = range.into_inner();
        let room = self.longest - self.length(first, last);
        let front = self.front(first).min(room / 2);
        let back = self.back(last).min(room - front);
        let (start, speech_end) = (self.spans[first].start - front, self.spans[last].end);
        Window { start, end: speech_end + back, speech_end }
    }

    fn length(&self, first: usize, last: usize) -> usize {
        self.spans[last].end - self.spans[first].start
    }

    /// Silence behind a span.
    fn pause(&self, index: usize) -> usize {
        self.spans.get(index + 1).map_or(self.samples, |next| next.start) - self.spans[index].end
    }

    /// What a window has of the silence in front of its first span: of a pause, half.
    fn front(&self, first: usize) -> usize {
        let room = if first == 0 { self.spans[0].start } else { self.pause(first - 1) / 2 };
        room.min(self.pad)
    }

    /// What a window has of the silence behind its last span.
    fn back(&self, last: usize) -> usize {
        let pause = self.pause(last);
        let room = if last + 1 == self.spans.len() { pause } else { pause / 2 };
        room.min(self.pad)
    }
}
