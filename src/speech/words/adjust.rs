//! The reference's corrections of word times, and words put into their segments.

use super::{WordTiming, seconds, strip};
use crate::speech::{Segment, Word};

/// Marks that belong to the word after them.
const PREPENDED: &str = "\"'“¿([{-";
/// Marks that belong to the word before them.
const APPENDED: &str = "\"'.。,，!！?？:：”)]}、";
const SENTENCE_ENDS: &str = ".。!！?？";

/// Puts punctuation marks to the words they belong to. What was merged stays as an empty word without tokens.
pub fn merge_punctuation(timings: &mut [WordTiming]) {
    let mut following = timings.len().saturating_sub(1);
    for previous in (0..following).rev() {
        let word = &timings[previous].word;
        if word.starts_with(' ') && PREPENDED.contains(strip(word)) {
            join(timings, previous, following, following);
        } else {
            following = previous;
        }
    }
    let mut previous = 0;
    for following in 1..timings.len() {
        if !timings[previous].word.ends_with(' ') && APPENDED.contains(timings[following].word.as_str()) {
            join(timings, previous, following, previous);
        } else {
            previous = following;
        }
    }
}

/// Writes two words behind each other into the one at `into`, and empties the other.
fn join(timings: &mut [WordTiming], first: usize, second: usize, into: usize) {
    let mut word = std::mem::take(&mut timings[first].word);
    word.push_str(&std::mem::take(&mut timings[second].word));
    let mut tokens = std::mem::take(&mut timings[first].tokens);
    tokens.append(&mut timings[second].tokens);
    timings[into].word = word;
    timings[into].tokens = tokens;
}

/// How long words are in a window.
#[derive(Clone, Copy)]
struct Durations {
    median: f64,
    /// Longer words are thought to have a pause in them.
    most: f64,
}

impl Durations {
    /// `None` where no word takes any time.
    fn of(timings: &[WordTiming]) -> Option<Self> {
        let mut durations: Vec<f64> = timings.iter().map(|timing| timing.end - timing.start).collect();
        durations.retain(|&duration| duration != 0.0);
        durations.sort_by(f64::total_cmp);
        let upper = *durations.get(durations.len() / 2)?;
        let lower = durations[(durations.len() - 1) / 2];
        let median = f64::midpoint(lower, upper).min(0.7);
        Some(Self { median, most: median * 2.0 })
    }
}

/// Gives the segments of one window their words, and their start and end where words know better.
///
/// - `timings`: of the text of all segments together, from [`align`](super::align)
/// - `eot`: the first id that is no text
/// - `last_speech`: where the last word before the window ended, in seconds of the recording
pub fn add_words(segments: &mut [Segment], mut timings: Vec<WordTiming>, eot: u32, last_speech: f64) {
    let Some(offset) = segments.first().map(|segment| seconds(segment.seek)) else { return };
    let durations = Durations::of(&timings);
    if let Some(durations) = durations {
        shorten_at_sentence_ends(&mut timings, durations.most);
    }
    merge_punctuation(&mut timings);
    let durations = durations.unwrap_or(Durations { median: 0.0, most: 0.0 });
    let mut timings = timings.into_iter();
    let mut last_speech = last_speech;
    for segment in segments {
        segment.words = take_words(&mut timings, segment, eot, offset);
        if !segment.words.is_empty() {
            shorten_after_pause(&mut segment.words, durations, last_speech);
            fit_start(segment, durations.median);
            fit_end(segment, durations.median);
            last_speech = segment.end;
        }
    }
}

fn shorten_at_sentence_ends(timings: &mut [WordTiming], most: f64) {
    for index in 1..timings.len() {
        if timings[index].end - timings[index].start <= most {
            continue;
        }
        if SENTENCE_ENDS.contains(timings[index].word.as_str()) {
            timings[index].end = timings[index].start + most;
        } else if SENTENCE_ENDS.contains(timings[index - 1].word.as_str()) {
            timings[index].start = timings[index].end - most;
        }
    }
}

/// The words of as many tokens as the segment has.
fn take_words(
    timings: &mut impl Iterator<Item = WordTiming>,
    segment: &Segment,
    eot: u32,
    offset: f64,
) -> Vec<Word> {
    let wanted = segment.tokens.iter().filter(|&&token| token < eot).count();
    let mut taken = 0;
    let mut words = Vec::new();
    while taken < wanted
        && let Some(timing) = timings.next()
    {
        taken += timing.tokens.len();
        if !timing.word.is_empty() {
            words.push(Word {
                word: timing.word,
                start: hundredths(offset + timing.start),
                end: hundredths(offset + timing.end),
                probability: timing.probability,
            });
        }
    }
    words
}

/// Rounded as numpy rounds.
fn hundredths(seconds: f64) -> f64 {
    (seconds * 100.0).round_ties_even() / 100.0
}

/// The first two words after a pause are not longer than `durations.most`.
fn shorten_after_pause(words: &mut [Word], durations: Durations, last_speech: f64) {
    let (first, rest) = words.split_first_mut().expect("asked of segments with words only");
    let most = durations.most;
    let mut second = rest.first_mut();
    let pause = first.end - last_speech > durations.median * 4.0;
    let long = first.end - first.start > most
        || second.as_ref().is_some_and(|second| second.end - first.start > most * 2.0);
    if !(pause && long) {
        return;
    }
    if let Some(second) = &mut second
        && second.end - second.start > most
    {
        let boundary = (second.end / 2.0).max(second.end - most);
        first.end = boundary;
        second.start = boundary;
    }
    first.start = (first.end - most).max(0.0);
}

/// The start of a segment and of its first word: the segment's, where the word is too long.
fn fit_start(segment: &mut Segment, median: f64) {
    let first = &mut segment.words[0];
    if segment.start < first.end && segment.start - 0.5 > first.start {
        first.start = (first.end - median).min(segment.start).max(0.0);
    } else {
        segment.start = first.start;
    }
}

/// The end of a segment and of its last word: the segment's, where the word is too long.
fn fit_end(segment: &mut Segment, median: f64) {
    let last = segment.words.last_mut().expect("asked of segments with words only");
    if segment.end > last.start && segment.end + 0.5 < last.end {
        last.end = (last.start + median).max(segment.end);
    } else {
        segment.end = last.end;
    }
}
