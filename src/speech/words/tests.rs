//! Against what openai-whisper makes of the same (`scripts/reference/whisper_words.py`, `whisper_goldens.py`), and
//! against straight definitions.

use std::{collections::HashMap, fs, path::Path};

use proptest::prelude::*;
use serde_json::Value;

use super::*;
use crate::speech::{Segment, Word};

fn fixture(path: &str) -> Value {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(path);
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

/// A section of the reference's answers.
fn cases(section: &str) -> Vec<Value> {
    let Value::Array(cases) = fixture("speech/words.json")[section].take() else { panic!("no {section}") };
    assert!(cases.len() > 10, "{section}");
    cases
}

fn from<T: serde::de::DeserializeOwned>(value: &Value) -> T {
    serde_json::from_value(value.clone()).unwrap()
}

fn assert_near(found: f64, expected: f64, what: &str) {
    assert!((found - expected).abs() < 1e-9, "{what}: {found}, not {expected}");
}

// Paths.

#[test]
fn paths_are_the_references_where_sums_are_equal() {
    for case in cases("paths") {
        let (matrix, text, time): (Vec<Vec<f32>>, Vec<usize>, Vec<usize>) = from(&case);
        assert_eq!(dtw(&matrix.concat(), matrix.len(), matrix[0].len()), (text, time), "{matrix:?}");
    }
}

/// Every monotonic path, by its sum.
fn best_sum(matrix: &[f32], columns: usize, (row, column): (usize, usize)) -> f64 {
    let rows = matrix.len() / columns;
    let here = f64::from(matrix[row * columns + column]);
    if (row, column) == (rows - 1, columns - 1) {
        return here;
    }
    let next = [(row + 1, column + 1), (row + 1, column), (row, column + 1)];
    let inside = next.into_iter().filter(|&(row, column)| row < rows && column < columns);
    here + inside.map(|next| best_sum(matrix, columns, next)).fold(f64::NEG_INFINITY, f64::max)
}

proptest! {
    #[test]
    fn no_path_has_a_larger_sum(
        (rows, columns, matrix) in (1usize..6, 1usize..6).prop_flat_map(|(rows, columns)| {
            (Just(rows), Just(columns), prop::collection::vec(-1f32..1.0, rows * columns))
        })
    ) {
        let (text, time) = dtw(&matrix, rows, columns);
        prop_assert_eq!((text[0], time[0]), (0, 0));
        prop_assert_eq!((*text.last().unwrap(), *time.last().unwrap()), (rows - 1, columns - 1));
        for (text, time) in text.windows(2).zip(time.windows(2)) {
            prop_assert!(matches!((text[1] - text[0], time[1] - time[0]), (0, 1) | (1, 0) | (1, 1)));
        }
        let sum: f64 = text.iter().zip(&time).map(|(row, column)| f64::from(matrix[row * columns + column])).sum();
        prop_assert!((sum - best_sum(&matrix, columns, (0, 0))).abs() < 1e-6);
    }
}

#[test]
fn paths_of_nothing_and_of_no_numbers_end() {
    assert_eq!(dtw(&[], 0, 5), (vec![], vec![]));
    assert_eq!(dtw(&[], 2, 0), (vec![0, 1], vec![0, 0]));
    for odd in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        let (text, time) = dtw(&[odd; 12], 3, 4);
        assert_eq!((text.last(), time.last()), (Some(&2), Some(&3)));
        assert!(text.is_sorted() && time.is_sorted());
    }
}

// Words.

/// Decodes as a tokenizer of bytes does.
fn decoder() -> impl Fn(&[u32]) -> String {
    let pieces: HashMap<u32, String> = from(&fixture("speech/words.json")["pieces"]);
    let byte = |hex: &[u8]| u8::from_str_radix(std::str::from_utf8(hex).unwrap(), 16).unwrap();
    let pieces: HashMap<u32, Vec<u8>> =
        pieces.into_iter().map(|(id, hex)| (id, hex.as_bytes().chunks(2).map(byte).collect())).collect();
    move |tokens: &[u32]| {
        let bytes: Vec<u8> = tokens.iter().flat_map(|token| pieces[token].clone()).collect();
        String::from_utf8_lossy(&bytes).into_owned()
    }
}

fn eot() -> u32 {
    from(&fixture("speech/words.json")["eot"])
}

#[test]
fn words_are_split_as_the_reference_splits_them() {
    let (decode, eot) = (decoder(), eot());
    for case in cases("splits") {
        type Case = (String, Vec<u32>, Vec<(String, usize)>, Vec<u32>);
        let (language, tokens, words, pieces): Case = from(&case);
        let found = split_words(&tokens, &decode, &language, eot);
        let counted: Vec<(String, usize)> =
            found.iter().map(|(word, tokens)| (word.clone(), tokens.len())).collect();
        assert_eq!(counted, words, "{language} {tokens:?}");
        assert_eq!(found.into_iter().flat_map(|(_, tokens)| tokens).collect::<Vec<_>>(), pieces);
    }
}

#[test]
fn a_broken_character_inside_a_word_is_found_by_characters() {
    // Of the reference's own tests: 8404 871 287 6 246 526 3210 20378.
    let tokens = [8404, 871, 287, 6, 246, 526, 3210, 20378];
    let words = |language| -> Vec<String> {
        let words = split_words(&tokens, &decoder(), language, eot());
        words.into_iter().map(|(word, _)| word).collect()
    };
    assert_eq!(words("ja"), [" elle", " est", " l", "'", "\u{FFFD}", "é", "rit", "oire"]);
    assert_eq!(words("en"), [" elle", " est", " l", "'\u{FFFD}éritoire"]);
}

#[test]
fn a_decoder_that_leaves_the_end_out_changes_nothing() {
    let (decode, eot) = (decoder(), eot());
    let silent = |tokens: &[u32]| {
        let text: Vec<u32> = tokens.iter().copied().filter(|&token| token < eot).collect();
        decode(&text)
    };
    for case in cases("splits") {
        let (language, tokens): (String, Vec<u32>) = (from(&case[0]), from(&case[1]));
        let [full, silent] = [&decode as &dyn Fn(&[u32]) -> String, &silent]
            .map(|decode| split_words(&tokens, decode, &language, eot));
        let before_end = |words: &[(String, Vec<u32>)]| words.split_last().map(|(_, words)| words.to_vec());
        assert_eq!(before_end(&full), before_end(&silent), "{language} {tokens:?}");
    }
}

#[test]
fn words_get_the_references_times() {
    let (decode, eot) = (decoder(), eot());
    for case in cases("alignments") {
        type Case = (String, Vec<u32>, Vec<Vec<f32>>, Vec<f32>, Vec<(String, usize, f64, f64, f64)>);
        let (language, mut tokens, matrix, probabilities, expected): Case = from(&case);
        tokens.push(eot);
        let words = split_words(&tokens, &decode, &language, eot);
        let found = align(&matrix.concat(), matrix.len(), matrix[0].len(), &probabilities, &words);
        assert_eq!(found.len(), expected.len());
        for (found, (word, count, start, end, probability)) in found.iter().zip(expected) {
            assert_eq!((&found.word, found.tokens.len()), (&word, count));
            assert_near(found.start, start, &word);
            assert_near(found.end, end, &word);
            assert_near(found.probability, probability, &word);
        }
    }
}

#[test]
fn no_words_have_no_times() {
    assert_eq!(align(&[0.0; 4], 1, 4, &[], &[(String::from("<|endoftext|>"), vec![9])]), []);
    assert_eq!(align(&[], 0, 0, &[], &[]), []);
}

// The tiny checkpoint.

/// Name, matrix, rows and columns of each run whose matrix was kept whole.
fn golden_matrices() -> Vec<(Value, Vec<f32>, usize, usize)> {
    let manifest = fixture("goldens/whisper/manifest.json");
    let path = "tests/fixtures/goldens/whisper/tensors.safetensors";
    let file = fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join(path)).unwrap();
    let tensors = safetensors::SafeTensors::deserialize(&file).unwrap();
    let whole = |run: &&Value| run["matrix_column_step"] == 1;
    let runs = manifest["timing"]["runs"].as_array().unwrap().iter().filter(whole);
    let read = |run: &Value| {
        let tensor = tensors.tensor(&format!("timing/{}_matrix", run["name"].as_str().unwrap())).unwrap();
        let (numbers, rest) = tensor.data().as_chunks::<4>();
        assert!(rest.is_empty());
        let matrix = numbers.iter().map(|&bytes| f32::from_le_bytes(bytes)).collect();
        (run.clone(), matrix, tensor.shape()[0], tensor.shape()[1])
    };
    runs.map(read).collect()
}

fn golden_words(run: &Value) -> Vec<WordTiming> {
    let timing = |word: &Value| WordTiming {
        word: from(&word["word"]),
        tokens: from(&word["tokens"]),
        start: from(&word["start"]),
        end: from(&word["end"]),
        probability: from(&word["probability"]),
    };
    run["words"].as_array().unwrap().iter().map(timing).collect()
}

#[test]
fn the_tiny_checkpoints_words_get_the_references_times() {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/whisper/tokenizer.json");
    let tokenizer = tokenizers::Tokenizer::from_file(file).unwrap();
    let decode = |tokens: &[u32]| tokenizer.decode(tokens, false).unwrap();
    let eot = tokenizer.token_to_id("<|endoftext|>").unwrap();
    let runs = golden_matrices();
    assert_eq!(runs.len(), 2);
    for (run, matrix, rows, columns) in runs {
        let path = dtw(&matrix, rows, columns);
        assert_eq!(path, (from(&run["path_text"]), from(&run["path_time"])));
        let expected = golden_words(&run);
        // Of each token the mean of its word: their mean is that again.
        let of_token = |word: &WordTiming| vec![word.probability as f32; word.tokens.len()];
        let probabilities: Vec<f32> = expected.iter().flat_map(of_token).collect();
        let mut tokens: Vec<u32> = from(&run["text_tokens"]);
        tokens.push(eot);
        let words = split_words(&tokens, &decode, run["language"].as_str().unwrap(), eot);
        let mut found = align(&matrix, rows, columns, &probabilities, &words);
        for (found, expected) in found.iter_mut().zip(&expected) {
            assert!((found.probability - expected.probability).abs() <= 1e-6 * expected.probability);
            found.probability = expected.probability;
        }
        assert_eq!(found, expected);
    }
}

#[test]
fn the_tiny_checkpoints_segment_is_the_references() {
    let manifest = fixture("goldens/whisper/manifest.json");
    let timing = &manifest["timing"];
    let expected = &timing["segment_words"][0];
    let mut segments = [segment(0, 0.0, 3.0, from::<Vec<u32>>(&expected["tokens"]))];
    // Every id is text here: the end is not among them.
    add_words(&mut segments, golden_words(&timing["runs"][0]), u32::MAX, 0.0);
    assert_near(segments[0].start, from(&expected["start"]), "start");
    assert_near(segments[0].end, from(&expected["end"]), "end");
    let words = expected["words"].as_array().unwrap();
    assert_eq!(segments[0].words.len(), words.len());
    for (found, expected) in segments[0].words.iter().zip(words) {
        assert_eq!(found.word, expected["word"].as_str().unwrap());
        assert_near(found.start, from(&expected["start"]), &found.word);
        assert_near(found.end, from(&expected["end"]), &found.word);
        assert_near(found.probability, from(&expected["probability"]), &found.word);
    }
}

// Corrections.

#[test]
fn punctuation_is_merged_as_the_reference_merges_it() {
    let mut merged = 0;
    for case in cases("punctuation") {
        type Case = (Vec<String>, Vec<usize>, Vec<(String, Vec<u32>)>);
        let (words, counts, expected): Case = from(&case);
        let mut next = 0;
        let mut timings: Vec<WordTiming> = Vec::new();
        for (word, count) in words.iter().zip(counts) {
            let tokens = (next..next + count as u32).collect();
            next += count as u32;
            timings.push(timing(word, tokens, 0.0, 0.0));
        }
        merge_punctuation(&mut timings);
        let found: Vec<(String, Vec<u32>)> =
            timings.into_iter().map(|timing| (timing.word, timing.tokens)).collect();
        assert_eq!(found, expected, "{words:?}");
        merged += expected.iter().filter(|(_, tokens)| tokens.is_empty()).count();
    }
    assert!(merged > 100);
}

fn timing(word: &str, tokens: Vec<u32>, start: f64, end: f64) -> WordTiming {
    WordTiming { word: word.to_owned(), tokens, start, end, probability: 0.5 }
}

fn segment(seek: usize, start: f64, end: f64, tokens: Vec<u32>) -> Segment {
    Segment {
        id: 0,
        seek,
        start,
        end,
        text: String::from(" text"),
        logprobs: vec![0.0; tokens.len()],
        tokens,
        temperature: 0.0,
        avg_logprob: 0.0,
        compression_ratio: 1.0,
        no_speech_prob: 0.0,
        words: Vec::new(),
        channel: 0,
    }
}

/// Start, end and words of a segment.
type Spoken = (f64, f64, Vec<(String, f64, f64, f64)>);

fn assert_spoken(found: &Segment, (start, end, words): &Spoken) {
    assert_near(found.start, *start, "start");
    assert_near(found.end, *end, "end");
    assert_eq!(found.words.len(), words.len());
    for (found, (word, start, end, probability)) in found.words.iter().zip(words) {
        assert_eq!(&found.word, word);
        assert_near(found.start, *start, word);
        assert_near(found.end, *end, word);
        assert_near(found.probability, *probability, word);
    }
}

/// Start, end and text tokens of segments.
type Before = Vec<(f64, f64, usize)>;
/// Word, number of tokens, start, end and probability.
type Timings = Vec<(String, usize, f64, f64, f64)>;

fn segments(seek: usize, before: &Before) -> Vec<Segment> {
    let segment = |&(start, end, count): &(f64, f64, usize)| {
        // Times are no text.
        segment(seek, start, end, [vec![60_000], vec![1; count], vec![60_050]].concat())
    };
    before.iter().map(segment).collect()
}

fn timings(timings: &Timings) -> Vec<WordTiming> {
    let timing = |(word, count, start, end, probability): &(String, usize, f64, f64, f64)| WordTiming {
        probability: *probability,
        ..timing(word, vec![1; *count], *start, *end)
    };
    timings.iter().map(timing).collect()
}

#[test]
fn times_are_corrected_as_the_reference_corrects_them() {
    for case in cases("corrections") {
        type Case = (usize, f64, Before, Timings, Vec<Spoken>);
        let (seek, last_speech, before, words, after): Case = from(&case);
        let mut segments = segments(seek, &before);
        add_words(&mut segments, timings(&words), 50_257, last_speech);
        segments.iter().zip(&after).for_each(|(found, expected)| assert_spoken(found, expected));
    }
}

#[test]
fn half_a_second_is_how_far_words_may_go_beyond_their_segment() {
    let corrected = |start: f64, end: f64| {
        let words = vec![timing(" a", vec![1], 0.0, 0.8), timing(" b", vec![1], 0.8, 1.6)];
        let mut segments = [segment(0, start, end, vec![1, 1])];
        add_words(&mut segments, words, 9, 0.0);
        let [segment] = segments;
        (segment.start, segment.words[0].start, segment.words[1].end, segment.end)
    };
    assert_eq!(corrected(0.45, 1.15), (0.0, 0.0, 1.6, 1.6));
    let (start, first, last, end) = corrected(0.55, 1.05);
    assert_eq!((start, end), (0.55, 1.05));
    assert_near(first, 0.1, "a median before its end");
    assert_near(last, 1.5, "a median after its start");
}

/// One window of the reference's loop.
#[derive(serde::Deserialize)]
struct Step {
    seek: usize,
    size: usize,
    single_end: bool,
    next: usize,
    last_speech: f64,
    before: Before,
    timings: Timings,
    after: Vec<Spoken>,
    kept: bool,
    left: usize,
    /// None at the end of the recording.
    following: Option<usize>,
}

#[test]
fn a_recording_goes_the_way_of_the_references_loop() {
    let (mut discarded, mut cut) = (0, 0);
    for case in cases("loops") {
        let content: usize = from(&case["content"]);
        let threshold: Option<f64> = from(&case["threshold"]);
        let steps: Vec<Step> = from(&case["windows"]);
        let mut last_speech = 0.0;
        for step in &steps {
            assert_near(last_speech, step.last_speech, "end of speech");
            let mut segments = segments(step.seek, &step.before);
            add_words(&mut segments, timings(&step.timings), 50_257, last_speech);
            segments.iter().zip(&step.after).for_each(|(found, expected)| assert_spoken(found, expected));
            let window = Window {
                seek: step.seek,
                size: step.size,
                full: 3000,
                content,
                single_end: step.single_end,
                next: step.next,
            };
            let seek = match skip_hallucinations(&window, threshold, last_speech, &mut segments) {
                Next::Keep { seek, last_speech: heard } => {
                    assert!(step.kept);
                    assert_eq!(segments.len(), step.left);
                    cut += usize::from(segments.len() < step.before.len());
                    last_speech = heard;
                    seek
                }
                Next::Discard { seek } => {
                    assert!(!step.kept);
                    discarded += 1;
                    seek
                }
            };
            match step.following {
                Some(following) => assert_eq!(seek, following),
                None => assert!(seek >= content, "{seek} of {content}"),
            }
        }
    }
    assert!(discarded > 5 && cut > 5, "{discarded} discarded, {cut} cut");
}

fn spoken(start: f64, end: f64, probability: f64) -> Segment {
    let word = Word { word: String::from(" so"), start, end, probability };
    Segment { words: vec![word], ..segment(0, start, end, vec![1]) }
}

#[test]
fn the_loop_never_stays_where_it_is() {
    let window = Window { seek: 100, size: 500, full: 3000, content: 9000, single_end: false, next: 100 };
    // The word ends less than half a frame after the window's start.
    let mut segments = vec![spoken(1.0, 1.004, 0.9)];
    let next = skip_hallucinations(&window, None, 0.0, &mut segments);
    assert_eq!(next, Next::Keep { seek: 600, last_speech: 1.004 });
    let mut segments = vec![spoken(1.001, 1.002, 0.1)];
    let next = skip_hallucinations(&window, Some(0.0), 0.0, &mut segments);
    assert_eq!(next, Next::Discard { seek: 600 });
}

#[test]
fn invented_text_between_silences_is_cut_off() {
    let window = Window { seek: 0, size: 3000, full: 3000, content: 9000, single_end: true, next: 3000 };
    let check = |window: Window, threshold: f64, given: &[(f64, f64, f64)], seek: usize, left: usize| {
        let mut segments: Vec<Segment> =
            given.iter().map(|&(start, end, probability)| spoken(start, end, probability)).collect();
        let next = skip_hallucinations(&window, Some(threshold), 0.0, &mut segments);
        let Next::Keep { seek: found, .. } = next else { panic!("{given:?} was discarded") };
        assert_eq!((found, segments.len()), (seek, left), "{given:?}");
    };
    const SURE: f64 = 0.9;
    const UNSURE: f64 = 0.1;
    // Silence before: longer than the threshold, or so near the start of the recording or of the window.
    check(window, 4.0, &[(3.0, 3.5, UNSURE), (9.0, 9.5, SURE)], 300, 0);
    check(Window { seek: 1000, ..window }, 4.0, &[(13.0, 13.5, UNSURE), (19.0, 19.5, SURE)], 1300, 0);
    check(window, 2.0, &[(0.0, 5.0, SURE), (6.0, 6.5, UNSURE), (9.0, 9.5, SURE)], 100, 0);
    check(window, 2.0, &[(3.0, 4.9, SURE), (6.0, 6.5, UNSURE), (9.0, 9.5, SURE)], 3000, 3);
    check(window, 2.0, &[(3.0, 4.9, SURE), (7.0, 7.5, UNSURE), (10.0, 10.5, SURE)], 700, 1);
    // Silence after: longer than the threshold, or more of its kind, or so near the end of the window.
    check(window, 2.0, &[(3.0, 4.9, SURE), (7.0, 7.5, UNSURE), (9.0, 9.5, SURE)], 3000, 3);
    check(window, 2.0, &[(3.0, 4.9, SURE), (7.0, 7.5, UNSURE), (9.0, 9.5, UNSURE)], 700, 1);
    check(window, 3.0, &[(3.0, 4.9, SURE), (28.0, 28.5, UNSURE), (29.0, 29.5, SURE)], 2800, 1);
    check(window, 3.0, &[(3.0, 4.9, SURE), (27.0, 27.9, UNSURE), (29.0, 29.5, SURE)], 3000, 3);
    // What is left of the recording is shorter than the threshold.
    let last = Window { content: 2950, size: 2950, ..window };
    check(last, 2.0, &[(3.0, 4.9, SURE), (28.0, 28.5, UNSURE)], 2950, 1);
}

#[test]
fn eight_words_tell_whether_a_segment_was_invented() {
    let window = Window { seek: 0, size: 3000, full: 3000, content: 9000, single_end: true, next: 3000 };
    let left = |unsure: std::ops::Range<usize>| {
        let word = |index: usize| Word {
            word: String::from(" so"),
            start: 5.0 + index as f64 * 0.3,
            end: 5.2 + index as f64 * 0.3,
            probability: if unsure.contains(&index) { 0.1 } else { 0.9 },
        };
        // A mark by itself is none of the eight.
        let mark = Word { word: String::from(","), start: 5.0, end: 9.0, probability: 0.0 };
        let words: Vec<Word> = std::iter::once(mark).chain((0..12).map(word)).collect();
        let mut segments = vec![Segment { words, ..segment(0, 5.0, 8.8, vec![1; 13]) }];
        match skip_hallucinations(&window, Some(2.0), 0.0, &mut segments) {
            Next::Keep { .. } => segments.len(),
            Next::Discard { .. } => 0,
        }
    };
    assert_eq!(left(0..3), 0);
    assert_eq!(left(5..8), 0);
    assert_eq!(left(6..12), 1);
}

#[test]
fn without_a_threshold_the_next_window_begins_after_the_last_word() {
    let window = Window { seek: 0, size: 3000, full: 3000, content: 9000, single_end: false, next: 3000 };
    let check = |window: Window, threshold, end: f64, expected: usize| {
        let mut segments = vec![spoken(0.5, 1.5, 0.9), spoken(end - 0.5, end, 0.9)];
        let next = skip_hallucinations(&window, threshold, 0.0, &mut segments);
        assert_eq!(next, Next::Keep { seek: expected, last_speech: end });
        assert_eq!(segments.len(), 2);
    };
    check(window, None, 12.34, 1234);
    check(window, Some(2.0), 12.34, 1234);
    check(window, Some(2.0), 28.5, 3000);
    check(Window { single_end: true, ..window }, None, 12.34, 3000);
    // Halves go to the even number.
    check(window, None, 12.125, 1212);
}

#[test]
fn nothing_said_keeps_the_window_as_it_is() {
    let window = Window { seek: 300, size: 3000, full: 3000, content: 9000, single_end: false, next: 1000 };
    let next = skip_hallucinations(&window, Some(1.0), 2.5, &mut Vec::new());
    assert_eq!(next, Next::Keep { seek: 1000, last_speech: 2.5 });
    add_words(&mut [], vec![timing(" a", vec![1], 0.0, 1.0)], 9, 0.0);
    let mut one = [segment(0, 1.0, 2.0, vec![1])];
    add_words(&mut one, Vec::new(), 9, 0.0);
    assert_eq!((one[0].start, one[0].end, one[0].words.len()), (1.0, 2.0, 0));
}

#[test]
fn white_space_is_pythons() {
    assert_eq!(strip("\u{1c}\u{3000} \n a b\u{85}\u{1f}"), "a b");
    assert_eq!(strip("\u{200b}"), "\u{200b}");
    assert_eq!(strip(" \t"), "");
}
