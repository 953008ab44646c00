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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn check(spans: &[(usize, usize)], samples: usize, expected: &[(usize, usize, usize)]) {
        let seconds = |at: usize| at * RATE;
        let spans: Vec<_> =
            spans.iter().map(|&(start, end)| Span { start: seconds(start), end: seconds(end) }).collect();
        let options = VadOptions { pad_ms: 1000, ..VadOptions::default() };
        let windows: Vec<_> = windows(&spans, seconds(samples), &options)
            .iter()
            .map(|window| (window.start / RATE, window.end / RATE, window.speech_end / RATE))
            .collect();
        assert_eq!(windows, expected, "{spans:?}");
    }

    #[test]
    fn neighbours_share_a_window_with_the_silence_between_them() {
        check(&[], 100, &[]);
        check(&[(5, 8), (12, 20), (22, 30)], 100, &[(4, 31, 30)]);
        check(&[(0, 10)], 10, &[(0, 10, 10)]);
        check(&[(5, 8), (50, 60)], 60, &[(4, 9, 8), (49, 60, 60)]);
    }

    #[test]
    fn a_window_ends_in_the_longest_pause_of_its_last_seconds() {
        check(&[(0, 10), (14, 24), (27, 28), (29, 40)], 40, &[(0, 25, 24), (26, 40, 40)]);
        // What would make it much shorter is no reason.
        check(&[(0, 10), (15, 27), (29, 40)], 40, &[(0, 28, 27), (28, 40, 40)]);
    }

    #[test]
    fn pads_share_a_short_pause_and_give_way_to_speech() {
        check(&[(1, 29), (31, 59)], 60, &[(0, 30, 29), (30, 60, 59)]);
        check(&[(1, 31)], 40, &[(1, 31, 31)]);
        check(&[(1, 61)], 70, &[(1, 31, 31), (31, 61, 61)]);
    }

    proptest! {
        #[test]
        fn windows_hold_all_speech_once_and_in_order(
            lengths in prop::collection::vec((0_usize..100_000, 1_usize..600_000), 0..40),
            behind in 0_usize..100_000,
            pad_ms in 0_u32..20_000,
            longest_ms in 0_u32..60_000,
        ) {
            let mut at = 0;
            let spans: Vec<_> = lengths.iter().map(|&(silence, speech)| {
                let start = at + silence;
                at = start + speech;
                Span { start, end: at }
            }).collect();
            let samples = at + behind;
            let options = VadOptions { pad_ms, longest_ms, ..VadOptions::default() };
            let windows = windows(&spans, samples, &options);
            let mut end = 0;
            for window in &windows {
                prop_assert!(end <= window.start && window.start < window.speech_end);
                prop_assert!(window.speech_end <= window.end && window.end <= samples);
                prop_assert!(window.end - window.start <= options.longest());
                prop_assert!(spans.iter().any(|span| span.start < window.end && window.start < span.end));
                end = window.end;
            }
            // They do not overlap, so that what they hold of a span adds up to it.
            for span in &spans {
                let held: usize = windows.iter()
                    .map(|window| window.end.min(span.end).saturating_sub(window.start.max(span.start))).sum();
                prop_assert_eq!(held, span.end - span.start);
            }
        }
    }
}
