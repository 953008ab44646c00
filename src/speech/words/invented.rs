//! Where the next window begins when words have times, and what to do with text that was probably invented.

use super::{frames, seconds};
use crate::speech::{Segment, Word};

/// Marks that are no words.
const PUNCTUATION: &str = "\"'“¿([{-\"'.。,，!！?？:：”)]}、";

/// A window that was transcribed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Window {
    /// Its first frame (10 ms).
    pub seek: usize,
    /// Frames of the recording, or of the clip, that are in it.
    pub size: usize,
    /// Frames of a window, whether the recording goes on that long or not.
    pub full: usize,
    /// Frames of the whole recording.
    pub content: usize,
    /// Whether its tokens end with text and one time: nothing was said after that.
    pub single_end: bool,
    /// Where the next window begins by the tokens alone.
    pub next: usize,
}

/// What follows a window.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Next {
    /// The segments that are left are part of the transcript.
    Keep {
        /// First frame of the next window.
        seek: usize,
        /// Where speech ended, in seconds; for the next window.
        last_speech: f64,
    },
    /// Nothing of the window counts: not its segments, not the temperature it took, not the end of its speech.
    Discard {
        /// First frame of the next window.
        seek: usize,
    },
}

/// Decides where to go on after a window whose segments have words, and cuts off segments that look invented and are
/// surrounded by silence.
///
/// - `threshold`: silences longer than this, in seconds, around such segments are skipped; `None` leaves them
/// - `last_speech`: as before the window, in seconds
///
/// The next window always begins after this one did.
pub fn skip_hallucinations(
    window: &Window,
    threshold: Option<f64>,
    last_speech: f64,
    segments: &mut Vec<Segment>,
) -> Next {
    let mut seek = window.after_last_word(threshold, segments);
    if let Some(threshold) = threshold {
        if let Some(seek) = window.after_leading_silence(threshold, segments) {
            return Next::Discard { seek: window.forward(seek) };
        }
        if let Some((first, again)) = window.first_invented(threshold, last_speech, segments) {
            segments.truncate(first);
            seek = again;
        }
    }
    let last_speech = end_of_speech(segments).unwrap_or(last_speech);
    Next::Keep { seek: window.forward(seek), last_speech }
}

impl Window {
    fn start(&self) -> f64 {
        seconds(self.seek)
    }

    fn end(&self) -> f64 {
        seconds(self.seek + self.full)
    }

    /// The reference can stay where it is, for ever.
    fn forward(&self, seek: usize) -> usize {
        if seek > self.seek { seek } else { self.seek + self.size.max(1) }
    }

    fn after_last_word(&self, threshold: Option<f64>, segments: &[Segment]) -> usize {
        let end = end_of_speech(segments).filter(|&end| !self.single_end && end > self.start());
        match (end, threshold) {
            (None, _) => self.next,
            // What is left is silence at most, or too short to hold a pause.
            (Some(end), Some(threshold)) if self.end() - end <= threshold => self.seek + self.size,
            (Some(end), _) => frames(end),
        }
    }

    /// Where to go on if the first words look invented and come after a silence.
    fn after_leading_silence(&self, threshold: f64, segments: &[Segment]) -> Option<usize> {
        let first = segments.iter().find(|segment| !segment.words.is_empty())?;
        let gap = first.start - self.start();
        (looks_invented(first) && gap > threshold).then(|| self.seek + frames(gap))
    }

    /// The first segment that looks invented and stands between silences or other invented text, and where to go on.
    fn first_invented(
        &self,
        threshold: f64,
        last_speech: f64,
        segments: &[Segment],
    ) -> Option<(usize, usize)> {
        let mut last_end = last_speech;
        for (index, segment) in segments.iter().enumerate() {
            if segment.words.is_empty() {
                continue;
            }
            if looks_invented(segment) {
                let next = segments[index + 1..].iter().find(|next| !next.words.is_empty());
                let next_start = next.map_or(self.start() + seconds(self.size), |next| next.words[0].start);
                let silence_before = segment.start - last_end > threshold
                    || segment.start < threshold
                    || segment.start - self.start() < 2.0;
                let silence_after = next_start - segment.end > threshold
                    || next.is_some_and(looks_invented)
                    || self.end() - segment.end < 2.0;
                if silence_before && silence_after {
                    let rest = seconds(self.content) - segment.end;
                    let again = frames(segment.start.max(self.start() + 1.0));
                    return Some((index, if rest < threshold { self.content } else { again }));
                }
            }
            last_end = segment.end;
        }
        None
    }
}

/// The end of the last word; without words, of the last segment.
fn end_of_speech(segments: &[Segment]) -> Option<f64> {
    let word = segments.iter().rev().find_map(|segment| segment.words.last());
    word.map(|word| word.end).or_else(|| segments.last().map(|segment| segment.end))
}

/// Whether the first words of a segment with words are as improbable, as short or as long as those of text that nobody
/// said.
fn looks_invented(segment: &Segment) -> bool {
    let words = segment.words.iter().filter(|word| !PUNCTUATION.contains(word.word.as_str())).take(8);
    let (count, score) = words.fold((0, 0.0), |(count, score), word| (count + 1, score + strangeness(word)));
    score >= 3.0 || score + 0.01 >= f64::from(count)
}

fn strangeness(word: &Word) -> f64 {
    let duration = word.end - word.start;
    let improbable = if word.probability < 0.15 { 1.0 } else { 0.0 };
    let short = if duration < 0.133 { (0.133 - duration) * 15.0 } else { 0.0 };
    let long = if duration > 2.0 { duration - 2.0 } else { 0.0 };
    improbable + short + long
}
