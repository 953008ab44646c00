//! Transcription in company: the same segments alone, among others, in any cache, and in parallel.
#![allow(clippy::unwrap_used, reason = "tests")]

mod support;

use std::{
    collections::{HashSet, VecDeque},
    fs,
    path::PathBuf,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use candle_core::{DType, Tensor};
use futures_util::future::join_all;
use percept::{
    engine::{self, EngineConfig, Limits},
    media::sound::{RATE, Recording},
    speech::{
        Attempt, Clip, Decoded, Listen, Mode, Options, Segment, SpeechError, Step, Task, Transcriber,
        Transcript, Transcription, Update, Vocabulary, Walk, Window, words::WordTiming,
    },
};
use percept_models::{
    Aligned, Batch, CacheShape, Checkpoint, Features, KvCache, Loaded, Model, SpeechInfo, Task as Purpose,
};
use support::{fixtures, load, sound_pattern, whisper};

fn config() -> EngineConfig {
    EngineConfig {
        limits: Limits { sequences: 32, rows: 1024, chunk: 1024, encoded: 0, spare: 0, encode: 6000 },
        pages: 4096,
        page_size: 16,
        queue: 256,
        context: 448,
        vocabulary: 1917,
        look_ahead: true,
    }
}

/// The fixture behind a new engine. Recordings of 20 seconds are long.
fn start(config: EngineConfig) -> Arc<Transcriber> {
    start_of(whisper(), config)
}

/// The same of a copy.
fn start_of(folder: PathBuf, config: EngineConfig) -> Arc<Transcriber> {
    let loaded = load(folder.clone(), DType::F32, None);
    let Purpose::Transcribe(info) = loaded.task.clone() else { panic!("it transcribes") };
    let vocabulary = Vocabulary::read(&Checkpoint::new(folder), &info).unwrap();
    let handle = engine::spawn(loaded, config).unwrap();
    Arc::new(Transcriber::new(handle, vocabulary, info, 20.0))
}

fn begin(transcriber: &Arc<Transcriber>, samples: &[i16], options: &Options) -> Transcription {
    let place = transcriber.handle().reserve().unwrap();
    transcriber.start(Arc::new(Recording::mono(samples.to_vec())), options.clone(), place)
}

/// The transcript, after checking that the updates on the way make it up and come in order.
async fn finish(mut transcription: Transcription) -> Transcript {
    let mut segments: Vec<Segment> = Vec::new();
    let mut language = None;
    let mut reached = 0.0;
    loop {
        match transcription.next().await.unwrap() {
            Update::Language { code, .. } => {
                assert!(segments.is_empty() && reached == 0.0);
                assert_eq!(language.replace(code), None, "told once");
            }
            Update::Segment(segment) => {
                assert_eq!(segment.id, segments.len());
                segments.push(segment);
            }
            Update::Progress { seconds } => {
                assert!(seconds >= reached, "{seconds} behind {reached}");
                reached = seconds;
            }
            Update::Finished(transcript) => {
                assert_eq!(transcript.segments, segments);
                assert_eq!(language.as_ref(), Some(&transcript.language));
                assert!(reached <= transcript.duration + 0.01);
                return transcript;
            }
        }
    }
}

async fn transcribe(transcriber: &Arc<Transcriber>, samples: &[i16], options: &Options) -> Transcript {
    finish(begin(transcriber, samples, options)).await
}

/// Quick, in English, at temperature 0.
fn quick() -> Options {
    Options {
        language: Some("en".into()),
        temperatures: vec![0.0],
        // The fixture doubts whatever it hears.
        logprob_threshold: None,
        no_speech_threshold: None,
        sample_len: Some(16),
        mode: Mode::Sequential,
        ..Options::default()
    }
}

/// Words need their text in one step.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Words {
    Some,
    None,
}

/// Authors say in a checkpoint's files whether windows are to know what was said before; a request may say otherwise.
#[tokio::test]
async fn windows_know_of_each_other_as_the_checkpoint_says() {
    let folder = tempfile::tempdir().unwrap();
    for file in fs::read_dir(whisper()).unwrap() {
        let file = file.unwrap();
        fs::copy(file.path(), folder.path().join(file.file_name())).unwrap();
    }
    let path = folder.path().join("generation_config.json");
    let mut generation: serde_json::Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    generation["condition_on_prev_tokens"] = false.into();
    fs::write(&path, generation.to_string()).unwrap();

    let samples = sound_pattern(70 * RATE);
    let [without, with] = [false, true].map(Some);
    let (usual, other) = (start(config()), start_of(folder.path().to_owned(), config()));
    let mut texts = Vec::new();
    for (transcriber, asked) in
        [(&usual, None), (&usual, with), (&usual, without), (&other, None), (&other, with), (&other, without)]
    {
        let options = Options { condition_on_previous_text: asked, ..quick() };
        texts.push(transcribe(transcriber, &samples, &options).await.text);
    }
    assert_ne!(texts[1], texts[2], "the text in front changes nothing");
    let [yes, no] = [&texts[1], &texts[2]];
    assert_eq!(texts.iter().collect::<Vec<_>>(), [yes, yes, no, no, yes, no]);
}

/// Recordings of all lengths and options, no two alike.
fn cases(words: Words) -> Vec<(Vec<i16>, Options)> {
    let all = sound_pattern(60 * RATE);
    let case = |index: usize| {
        let from = index * 9_001 % (20 * RATE);
        let length = match index % 8 {
            7 => 31 * RATE + index * 1_111,
            0 => 200 + index,
            _ => RATE / 2 + index * 4_007,
        };
        let language = [None, Some("en"), Some("de"), Some("zh"), Some("ja")][index % 5];
        let fallback = index % 3 == 1;
        let options = Options {
            language: language.map(Into::into),
            task: if index % 11 == 3 { Task::Translate } else { Task::Transcribe },
            // No text of the fixture's is that probable: all temperatures are tried.
            temperatures: if fallback { vec![0.0, 0.4, 1.0] } else { vec![0.0] },
            logprob_threshold: fallback.then_some(-0.01),
            seed: index as u64,
            best_of: 1 + index % 3,
            beam_size: if index % 4 == 2 { 3 } else { 1 },
            words: words == Words::Some && index % 4 == 3,
            without_timestamps: index % 7 == 5,
            initial_prompt: (index % 6 == 2).then(|| "hello world".into()),
            sample_len: Some(6 + index % 12),
            ..quick()
        };
        (all[from..from + length].to_vec(), options)
    };
    (0..32).map(case).collect()
}

async fn alone(cases: &[(Vec<i16>, Options)]) -> Vec<Transcript> {
    let mut transcripts = Vec::new();
    for (samples, options) in cases {
        // Nobody was there before.
        transcripts.push(transcribe(&start(EngineConfig { pages: 512, ..config() }), samples, options).await);
    }
    // They hear different things, or nothing could be mixed up.
    let texts: HashSet<&str> = transcripts.iter().map(|transcript| transcript.text.as_str()).collect();
    assert!(2 * texts.len() > cases.len(), "there is little to compare: {texts:?}");
    transcripts
}

/// So many cases, and what each of them gives by itself.
async fn prepared(words: Words, count: usize) -> (Vec<(Vec<i16>, Options)>, Vec<Transcript>) {
    let cases = cases(words).into_iter().take(count).collect::<Vec<_>>();
    let expected = alone(&cases).await;
    (cases, expected)
}

/// Cases of tests that are not about their number.
const FEW: usize = 8;

/// All cases at once, each compared with what it gave alone.
async fn check(
    transcriber: &Arc<Transcriber>,
    (cases, expected): &(Vec<(Vec<i16>, Options)>, Vec<Transcript>),
) {
    let all = cases.iter().map(|(samples, options)| transcribe(transcriber, samples, options));
    let found = join_all(all).await;
    for (index, (found, expected)) in found.iter().zip(expected).enumerate() {
        assert_eq!(found, expected, "case {index}: {:?}", cases[index].1);
    }
    idle(transcriber).await;
}

/// Waits until nobody holds anything any more.
async fn idle(transcriber: &Transcriber) {
    let handle = transcriber.handle();
    let busy = || (handle.waiting(), handle.status().running(), handle.status().pages().0);
    for _ in 0..20_000 {
        if busy() == (0, 0, 0) {
            return;
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    panic!("places, sequences and pages are not given back: {:?}", busy());
}

#[tokio::test]
async fn a_recording_among_others_reads_as_it_does_alone() {
    let transcriber = start(config());
    let prepared = prepared(Words::Some, 32).await;
    check(&transcriber, &prepared).await;
    // Again, with memories and prompts that are in the cache already.
    check(&transcriber, &prepared).await;
    assert_eq!(transcriber.handle().status().preemptions(), 0);
}

#[tokio::test]
async fn chunks_do_not_matter() {
    let prepared = prepared(Words::None, FEW).await;
    for chunk in [7, 1] {
        let limits = Limits { chunk, rows: 40, ..config().limits };
        check(&start(EngineConfig { limits, ..config() }), &prepared).await;
    }
}

#[tokio::test]
async fn pages_of_any_size_hold_what_is_heard() {
    let prepared = prepared(Words::Some, FEW).await;
    for page_size in [1, 7] {
        let pages = 60_000 / page_size;
        check(&start(EngineConfig { page_size, pages, ..config() }), &prepared).await;
    }
}

#[tokio::test]
async fn short_of_pages_memories_are_heard_again() {
    let heard = |page_size: usize| 1500_usize.div_ceil(page_size);
    let longest = |page_size: usize| 448_usize.div_ceil(page_size);
    let prepared = prepared(Words::Some, FEW).await;
    // One sequence that is as long as any, or two that have just begun, and one or the other must go.
    let mut preemptions = 0;
    for (page_size, pages) in [(16, longest(16) + heard(16)), (4, 2 * heard(4) + 8), (1, 2 * heard(1) + 16)] {
        let transcriber = start(EngineConfig { page_size, pages, ..config() });
        check(&transcriber, &prepared).await;
        preemptions += transcriber.handle().status().preemptions();
    }
    assert!(preemptions > 0, "pages were never short");
}

#[tokio::test]
async fn whoever_leaves_takes_nothing_along() {
    let transcriber = start(EngineConfig { pages: 1024, ..config() });
    let prepared = prepared(Words::Some, FEW).await;
    let mut all: Vec<Transcription> =
        prepared.0.iter().map(|(samples, options)| begin(&transcriber, samples, options)).collect();
    for transcription in all.iter_mut().step_by(2) {
        transcription.next().await.unwrap();
    }
    // Some have not begun, some are on their way, and one stays.
    let stays = all.swap_remove(7);
    drop(all);
    assert_eq!(finish(stays).await, prepared.1[7]);
    idle(&transcriber).await;
    check(&transcriber, &prepared).await;
}

#[tokio::test]
async fn a_seed_decides_what_is_drawn() {
    let transcriber = start(config());
    let samples = &sound_pattern(3 * RATE)[..];
    let options = |seed| Options { temperatures: vec![1.0], seed, best_of: 2, ..quick() };
    // Neighbouring seeds share samples of `best_of`.
    let again = [7, 7, 1000, 2000].map(|seed| (seed, options(seed)));
    let all = again.iter().map(|(_, options)| transcribe(&transcriber, samples, options));
    let texts: Vec<_> = join_all(all).await.into_iter().map(|transcript| transcript.segments).collect();
    assert_eq!(texts[0], texts[1]);
    assert!(texts[2] != texts[0] && texts[3] != texts[0] && texts[2] != texts[3]);
}

/// Two sentences of espeak-ng within three seconds, from 0.5 s to 2.4 s.
fn speech() -> Vec<i16> {
    let bytes = fs::read(fixtures().join("sound/two_sentences.wav")).unwrap();
    bytes[44..].chunks_exact(2).map(|pair| i16::from_le_bytes([pair[0], pair[1]])).collect()
}

/// Silence of so many seconds with speech at some of them.
fn talk(seconds: usize, at: &[usize]) -> Vec<i16> {
    let speech = speech();
    let mut samples = vec![0; seconds * RATE];
    for second in at {
        samples[second * RATE..][..speech.len()].copy_from_slice(&speech);
    }
    samples
}

fn parallel() -> Options {
    Options { mode: Mode::Parallel, ..quick() }
}

const TALK: [usize; 9] = [2, 5, 8, 50, 54, 100, 103, 106, 136];

#[tokio::test]
async fn windows_in_parallel_keep_to_what_is_said() {
    let samples = talk(140, &TALK);
    let options = Options { words: true, sample_len: Some(40), ..parallel() };
    let transcript = transcribe(&start(config()), &samples, &options).await;
    // Speech begins and ends half a second inside, and has 0.4 s around it. Two that are near share a window.
    let spans = [(2.0, 11.0), (50.0, 57.0), (100.0, 109.0), (136.0, 139.0)];
    for span in spans {
        let inside = |segment: &&Segment| span.0 <= segment.start && segment.end <= span.1;
        assert!(transcript.segments.iter().any(|segment| inside(&segment)), "nobody hears {span:?}");
    }
    let mut before = 0.0;
    for segment in &transcript.segments {
        assert!(segment.start >= before, "{segment:?} is behind one that starts at {before}");
        before = segment.start;
        assert!(segment.start <= segment.end && segment.end <= transcript.duration, "{segment:?}");
        let span = spans.iter().find(|span| span.0 <= segment.start && segment.end <= span.1);
        let (start, end) = span.unwrap_or_else(|| panic!("nothing is said at {segment:?}"));
        for word in &segment.words {
            let inside = *start <= word.start && word.start <= word.end && word.end <= *end;
            assert!(inside, "{word:?} of {segment:?}");
        }
    }
    assert!(transcript.segments.iter().any(|segment| !segment.words.is_empty()), "no words");
    let text: String = transcript.segments.iter().map(|segment| segment.text.as_str()).collect();
    assert!(!text.is_empty());
}

#[tokio::test]
async fn windows_in_parallel_do_not_know_how_many_there_are_at_once() {
    let samples = talk(140, &TALK);
    let options = Options { temperatures: vec![0.0, 0.5], logprob_threshold: Some(-0.01), ..parallel() };
    let mut all = Vec::new();
    for sequences in [1, 3, 32] {
        let limits = Limits { sequences, ..config().limits };
        all.push(transcribe(&start(EngineConfig { limits, ..config() }), &samples, &options).await);
    }
    assert_eq!(all[0], all[2]);
    assert_eq!(all[1], all[2]);
}

#[tokio::test]
async fn a_recording_of_silence_has_no_text_in_parallel() {
    let transcript = transcribe(&start(config()), &talk(70, &[]), &parallel()).await;
    assert_eq!((transcript.text.as_str(), transcript.segments.len()), ("", 0));
}

#[tokio::test]
async fn the_mode_is_chosen_by_length_unless_more_is_said() {
    let transcriber = start(config());
    let long = talk(50, &[1, 40]);
    let check = async |samples: &[i16], options: Options, expected: Mode| {
        let with = |mode| Options { mode, ..options.clone() };
        let [auto, sequential, parallel] = [with(Mode::Auto), with(Mode::Sequential), with(Mode::Parallel)]
            .map(|options| {
                let transcriber = &transcriber;
                async move { transcribe(transcriber, samples, &options).await }
            });
        let (auto, sequential, parallel) = tokio::join!(auto, sequential, parallel);
        assert_ne!(sequential, parallel, "it cannot be told apart");
        assert_eq!(auto, if expected == Mode::Parallel { parallel } else { sequential });
    };
    check(&long, quick(), Mode::Parallel).await;
    check(&long[..20 * RATE], quick(), Mode::Parallel).await;
    check(&long[..20 * RATE - 1], quick(), Mode::Sequential).await;
    check(&long, Options { clips: vec![(0.0, Some(45.0))], ..quick() }, Mode::Sequential).await;
    check(&long, Options { prefix: Some("hello".into()), ..quick() }, Mode::Sequential).await;
}

/// Answers one window after the other, and notes which they were.
struct Script {
    answers: Mutex<VecDeque<Vec<u32>>>,
    heard: Mutex<Vec<(usize, usize)>>,
}

impl Listen for Script {
    type Heard = Window;

    async fn hear(&self, window: Window) -> Result<Window, SpeechError> {
        Ok(window)
    }

    async fn decode(
        &self,
        window: &Window,
        _: &[u32],
        attempt: Attempt,
        _: Option<f64>,
    ) -> Result<Decoded, SpeechError> {
        self.heard.lock().unwrap().push((window.seek, window.size));
        let tokens = self.answers.lock().unwrap().pop_front().expect("a window too many");
        Ok(Decoded {
            logprobs: vec![-0.1; tokens.len()],
            tokens,
            temperature: attempt.temperature,
            avg_logprob: -0.1,
            compression_ratio: 1.0,
            no_speech_prob: 0.0,
        })
    }

    async fn align(&self, _: &Window, _: Window, _: &[u32]) -> Result<Vec<WordTiming>, SpeechError> {
        panic!("nobody wants words")
    }
}

/// The windows of a clip whose speech ends at frame 2500, whose answers end at some second each.
async fn walk(ends: &[f64]) -> Vec<(usize, usize)> {
    let info = SpeechInfo { context: 448, mels: 80, frames: 3000, vocabulary: 1917 };
    let vocabulary = Vocabulary::read(&Checkpoint::new(whisper()), &info).unwrap();
    let mark = |seconds: f64| vocabulary.marks.start + (seconds / 0.02).round() as u32;
    let answer = |&end: &f64| vec![mark(0.0), 300, mark(end), mark(end)];
    let script = Script { answers: Mutex::new(ends.iter().map(answer).collect()), heard: Mutex::default() };
    let options = quick();
    let mut walk = Walk::new(&script, &vocabulary, &options, &[], (10_000, 448));
    let clip = Clip { start: 100, end: 3000, speech_end: 2500 };
    let mut segments = 0;
    walk.run(&[clip], |step| segments += usize::from(matches!(step, Step::Segment(_)))).await.unwrap();
    assert_eq!(segments, ends.len());
    script.heard.into_inner().unwrap()
}

#[tokio::test]
async fn a_model_that_stops_early_is_asked_again_where_speech_is_left() {
    // Speech is left.
    assert_eq!(walk(&[5.0, 20.0]).await, [(100, 2900), (600, 2400)]);
    assert_eq!(walk(&[23.98, 1.0]).await, [(100, 2900), (2498, 502)]);
    // Only silence is.
    assert_eq!(walk(&[24.0]).await, [(100, 2900)]);
    assert_eq!(walk(&[26.5]).await, [(100, 2900)]);
}

/// The fixture, whose alignments fail, and which counts the windows that it encodes.
struct Broken {
    network: Box<dyn Model>,
    encoded: Arc<AtomicUsize>,
}

impl Model for Broken {
    fn cache_shape(&self) -> CacheShape {
        self.network.cache_shape()
    }

    fn encode(&self, media: &[Features]) -> candle_core::Result<Tensor> {
        self.encoded.fetch_add(media.len(), Relaxed);
        self.network.encode(media)
    }

    fn forward(&self, batch: &Batch, cache: &KvCache) -> candle_core::Result<Tensor> {
        self.network.forward(batch, cache)
    }

    fn remember(&self, encoded: &Tensor, slots: &Tensor, cache: &KvCache) -> candle_core::Result<()> {
        self.network.remember(encoded, slots, cache)
    }

    fn align(&self, _: &Batch, _: usize, _: &KvCache) -> candle_core::Result<Aligned> {
        candle_core::bail!("nothing follows time")
    }
}

fn broken() -> (Arc<Transcriber>, Arc<AtomicUsize>) {
    let loaded = load(whisper(), DType::F32, None);
    let Purpose::Transcribe(info) = loaded.task.clone() else { panic!("it transcribes") };
    let vocabulary = Vocabulary::read(&Checkpoint::new(whisper()), &info).unwrap();
    let encoded = Arc::<AtomicUsize>::default();
    let model = Box::new(Broken { network: loaded.model, encoded: Arc::clone(&encoded) });
    let handle = engine::spawn(Loaded { model, ..loaded }, config()).unwrap();
    encoded.store(0, Relaxed);
    (Arc::new(Transcriber::new(handle, vocabulary, info, 20.0)), encoded)
}

#[tokio::test]
async fn an_alignment_that_fails_changes_no_other_text() {
    let (transcriber, _) = broken();
    let samples = sound_pattern(6 * RATE);
    let cases: Vec<Options> = (0..12)
        .map(|index| Options {
            temperatures: vec![if index % 2 == 0 { 0.0 } else { 1.0 }],
            seed: index * 1000,
            sample_len: Some(40 + index as usize),
            words: index % 3 == 2,
            ..quick()
        })
        .collect();
    let mut alone = Vec::new();
    for options in &cases {
        let without = Options { words: false, ..options.clone() };
        alone.push(transcribe(&transcriber, &samples, &without).await);
    }
    for _ in 0..3 {
        let all = cases.iter().map(|options| {
            let mut transcription = begin(&transcriber, &samples, options);
            async move {
                loop {
                    match transcription.next().await {
                        Ok(Update::Finished(transcript)) => return Some(transcript),
                        Ok(_) => {}
                        Err(_) => return None,
                    }
                }
            }
        });
        for ((found, alone), options) in join_all(all).await.into_iter().zip(&alone).zip(&cases) {
            assert_eq!(found.as_ref(), (!options.words).then_some(alone), "{options:?}");
        }
    }
    idle(&transcriber).await;
}

#[tokio::test]
async fn samples_beams_and_attempts_share_what_was_encoded() {
    let (transcriber, encoded) = broken();
    let options = Options {
        temperatures: vec![0.0, 0.5, 1.0],
        logprob_threshold: Some(-0.01),
        best_of: 8,
        beam_size: 4,
        ..quick()
    };
    let mut windows = 0;
    for from in [0, 1] {
        // One window, whatever is said in it.
        let samples = &sound_pattern(4 * RATE)[from * RATE..][..2 * RATE];
        let clip = Options { clips: vec![(0.0, Some(2.0))], without_timestamps: true, ..options.clone() };
        transcribe(&transcriber, samples, &clip).await;
        windows += 1;
    }
    assert_eq!(encoded.load(Relaxed), windows);
}

/// A short recording that comes later has its turn before a long one ends, however many windows that has.
#[tokio::test]
async fn a_long_recording_leaves_room_for_a_short_one() {
    let limits = Limits { sequences: 4, ..config().limits };
    let long = talk(150, &(0..30).map(|index| index * 5).collect::<Vec<_>>());
    let short = sound_pattern(2 * RATE);
    // More samples than sequences, too.
    for attempts in [1, 5, 16] {
        let transcriber = start(EngineConfig { limits, ..config() });
        let hard = Options {
            temperatures: vec![0.0, 0.5],
            logprob_threshold: Some(-0.01),
            best_of: attempts,
            // Each window by itself.
            vad: percept::speech::vad::VadOptions { longest_ms: 5000, ..Default::default() },
            ..parallel()
        };
        let mut slow = begin(&transcriber, &long, &hard);
        let count = Arc::new(AtomicUsize::new(0));
        let counter = Arc::clone(&count);
        let slow = tokio::spawn(async move {
            loop {
                match slow.next().await.unwrap() {
                    Update::Progress { .. } => counter.fetch_add(1, Relaxed),
                    Update::Finished(_) => return,
                    _ => continue,
                };
            }
        });
        // It is under way.
        while count.load(Relaxed) == 0 {
            tokio::task::yield_now().await;
        }
        transcribe(&transcriber, &short, &quick()).await;
        let meanwhile = count.load(Relaxed);
        slow.await.unwrap();
        let all = count.load(Relaxed);
        assert!(all >= 15, "{all} windows are not many");
        assert!(meanwhile <= all / 2, "{meanwhile} of {all} windows went first");
    }
}
