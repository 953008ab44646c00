//! When each word was said: a path through the alignment of text and frames, words made of its tokens, and the
//! reference's corrections of both.
//!
//! Reference: openai/whisper, `whisper/timing.py`, `tokenizer.py` and `transcribe.py`. Its tests of membership are
//! Python's `in`, which finds a part of a text: the empty text is in every list of marks, and `!?` is in `.!?`. So it
//! is here.

mod adjust;
mod invented;
mod path;
mod split;
#[cfg(test)]
mod tests;

pub use adjust::{add_words, merge_punctuation};
pub use invented::{Next, Window, skip_hallucinations};
pub use path::dtw;
pub use split::split_words;

/// A word and its tokens. Times are in seconds from the beginning of the window.
#[derive(Debug, Clone, PartialEq)]
pub struct WordTiming {
    /// With the space in front.
    pub word: String,
    /// Its ids.
    pub tokens: Vec<u32>,
    /// In seconds.
    pub start: f64,
    /// In seconds.
    pub end: f64,
    /// Mean probability of its tokens.
    pub probability: f64,
}

/// Columns of an alignment per second.
const COLUMNS_PER_SECOND: f64 = 50.0;

/// Frames of a window's mel per second, which `seek` counts.
const FRAMES_PER_SECOND: f64 = 100.0;

/// Gives words their times, by the path through `matrix`.
///
/// - `matrix`: `[rows, columns]`: how much each token looks at each column of 20 ms, averaged over the alignment heads;
///   row `i` is where token `i` of the text is predicted, the last where its end is. So `rows` is one more than the
///   tokens of the text.
/// - `probabilities`: of each token of the text
/// - `words`: of [`split_words`] for the text and its end; the last, which is the end, is not returned
pub fn align(
    matrix: &[f32],
    rows: usize,
    columns: usize,
    probabilities: &[f32],
    words: &[(String, Vec<u32>)],
) -> Vec<WordTiming> {
    let Some((_end, words)) = words.split_last() else { return Vec::new() };
    let (text, time) = dtw(matrix, rows, columns);
    // The first column of each row.
    let starts: Vec<f64> = (0..text.len())
        .filter(|&step| step == 0 || text[step] != text[step - 1])
        .map(|step| time[step] as f64 / COLUMNS_PER_SECOND)
        .collect();
    let mut timings = Vec::with_capacity(words.len());
    let mut first = 0;
    for (word, tokens) in words {
        let end = first + tokens.len();
        let (Some(&start_time), Some(&end_time)) = (starts.get(first), starts.get(end)) else {
            debug_assert!(false, "{end} tokens of words for {rows} rows");
            break;
        };
        timings.push(WordTiming {
            word: word.clone(),
            tokens: tokens.clone(),
            start: start_time,
            end: end_time,
            probability: mean(probabilities.get(first..end).unwrap_or(&[])),
        });
        first = end;
    }
    timings
}

fn mean(values: &[f32]) -> f64 {
    values.iter().map(|&value| f64::from(value)).sum::<f64>() / values.len().max(1) as f64
}

/// Seconds as a number of frames, halves to the even one, as Python rounds.
fn frames(seconds: f64) -> usize {
    (seconds * FRAMES_PER_SECOND).round_ties_even() as usize
}

/// The second at which a frame begins.
fn seconds(frame: usize) -> f64 {
    frame as f64 / FRAMES_PER_SECOND
}

/// Text without white space around it, as Python's `strip` has it: the separators U+001C to U+001F count.
pub fn strip(text: &str) -> &str {
    text.trim_matches(|char: char| char.is_whitespace() || ('\u{1C}'..='\u{1F}').contains(&char))
}
