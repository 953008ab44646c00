//! Transcripts against those of openai/whisper: the whole program on the fixture, and the loop over windows on scripts.
#![allow(clippy::unwrap_used, reason = "tests")]

mod support;

use std::{
    collections::VecDeque,
    fs,
    sync::{Arc, Mutex},
};

use candle_core::DType;
use futures_util::future::join_all;
use percept::{
    engine::{self, EngineConfig, Limits},
    media::sound::Recording,
    speech::{
        Attempt, Clip, Decoded, Listen, Options, Segment, SpeechError, Step, Texts, Transcriber, Transcript,
        Update, Vocabulary, Walk, Window, words::WordTiming,
    },
};
use percept_models::{Checkpoint, SpeechInfo, Task};
use serde_json::Value;
use support::{fixtures, load, sound_pattern, speech, wav, whisper};

fn golden(name: &str) -> Vec<Value> {
    let file = fixtures().join("goldens/whisper").join(name);
    let golden: Value = serde_json::from_str(&fs::read_to_string(file).unwrap()).unwrap();
    golden["cases"].as_array().unwrap().clone()
}

fn info() -> SpeechInfo {
    SpeechInfo { context: 448, mels: 80, frames: 3000, vocabulary: 1917 }
}

fn vocabulary() -> Vocabulary {
    Vocabulary::read(&Checkpoint::new(whisper()), &info()).unwrap()
}

fn roomy() -> EngineConfig {
    EngineConfig {
        limits: Limits { sequences: 32, rows: 1024, chunk: 1024, encoded: 0, spare: 0, encode: 6000 },
        pages: 16_384,
        page_size: 16,
        queue: 256,
        context: 448,
        vocabulary: 1917,
        look_ahead: true,
    }
}

fn transcriber(config: EngineConfig) -> Arc<Transcriber> {
    let loaded = load(whisper(), DType::F32, None);
    let Task::Transcribe(info) = loaded.task.clone() else { panic!("it transcribes") };
    let handle = engine::spawn(loaded, config).unwrap();
    Arc::new(Transcriber::new(handle, vocabulary(), info, 600.0))
}

fn recording(sound: &Value) -> Recording {
    if let Some(file) = sound["file"].as_str() {
        return Recording::mono(wav(file));
    }
    let [from, samples] = ["from", "samples"].map(|key| sound[key].as_u64().unwrap() as usize);
    let mut all = sound_pattern(from + samples).split_off(from);
    for silent in sound["silent"].as_array().into_iter().flatten() {
        let [start, end] = [0, 1].map(|index| silent[index].as_u64().unwrap() as usize);
        all[start..end].fill(0);
    }
    Recording::mono(all)
}

/// The transcript, after checking that the updates on the way make it up.
async fn transcribe(transcriber: &Arc<Transcriber>, recording: Recording, options: Options) -> Transcript {
    let place = transcriber.handle().reserve().unwrap();
    let duration = recording.seconds();
    let mut transcription = transcriber.start(Arc::new(recording), options, place);
    let mut segments: Vec<Segment> = Vec::new();
    let mut language = None;
    let mut reached = 0.0;
    loop {
        match transcription.next().await.unwrap() {
            Update::Language { code, .. } => assert_eq!(language.replace(code), None, "told once"),
            Update::Segment(segment) => segments.push(segment),
            Update::Progress { seconds } => {
                assert!(seconds <= duration + 0.01, "{seconds} of {duration} s");
                reached = seconds;
            }
            Update::Finished(transcript) => {
                assert_eq!(transcript.segments, segments);
                assert_eq!(language.as_ref(), Some(&transcript.language));
                assert!(reached <= duration + 0.01);
                return transcript;
            }
        }
    }
}

fn check(case: &Value, found: &Transcript) {
    let name = case["name"].as_str().unwrap();
    assert_eq!(found.language, case["language"], "{name}");
    speech::check(name, &found.segments, &case["segments"], 0.01);
    // The reference writes out the names of languages where a model happens to draw one.
    let text = case["text"].as_str().unwrap();
    if !text.contains("<|") {
        assert_eq!(found.text, text, "{name}");
    }
}

#[tokio::test]
async fn transcripts_are_those_of_the_reference() {
    let transcriber = transcriber(roomy());
    let cases = golden("transcripts.json");
    assert!(cases.len() > 60);
    // All at once, which no transcript shows.
    let all = cases
        .iter()
        .map(|case| transcribe(&transcriber, recording(&case["sound"]), speech::options(&case["options"])));
    for (case, found) in cases.iter().zip(join_all(all).await) {
        check(case, &found);
    }
}

/// Answers from a script, after checking that the questions are those of the reference.
struct Script {
    name: String,
    windows: Mutex<VecDeque<Value>>,
    attempts: Mutex<usize>,
}

impl Script {
    fn new(case: &Value) -> Self {
        Self {
            name: case["name"].as_str().unwrap().to_owned(),
            windows: Mutex::new(case["windows"].as_array().unwrap().iter().cloned().collect()),
            attempts: Mutex::default(),
        }
    }

    fn window(&self) -> Value {
        self.windows
            .lock()
            .unwrap()
            .front()
            .unwrap_or_else(|| panic!("{}: too many windows", self.name))
            .clone()
    }
}

fn ids(value: &Value) -> Vec<u32> {
    value.as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect()
}

impl Listen for Script {
    type Heard = Window;

    async fn hear(&self, window: Window) -> Result<Window, SpeechError> {
        Ok(window)
    }

    async fn decode(
        &self,
        window: &Window,
        previous: &[u32],
        attempt: Attempt,
        _: Option<f64>,
    ) -> Result<Decoded, SpeechError> {
        let name = &self.name;
        // The one before had no words to ask for, or none were wanted.
        if attempt.index == 0 && *self.attempts.lock().unwrap() > 0 {
            let done = self.windows.lock().unwrap().pop_front().unwrap();
            let made = std::mem::take(&mut *self.attempts.lock().unwrap());
            assert_eq!(done["attempts"].as_array().unwrap().len(), made, "{name}: attempts of a window");
        }
        let script = self.window();
        assert_eq!(Some(window.seek as u64), script["seek"].as_u64(), "{name}");
        assert_eq!(Some(window.size as u64), script["size"].as_u64(), "{name} {window:?}");
        let kept = previous.len().saturating_sub(223);
        assert_eq!(&previous[kept..], ids(&script["prompt"]), "{name}: the prompt of {window:?}");
        let answer = &script["attempts"][attempt.index];
        let number = |key: &str| answer[key].as_f64().unwrap();
        assert_eq!(f64::from(attempt.temperature) as f32, number("temperature") as f32, "{name}");
        *self.attempts.lock().unwrap() += 1;
        let tokens = ids(&answer["tokens"]);
        Ok(Decoded {
            logprobs: vec![-0.5; tokens.len()],
            tokens,
            temperature: attempt.temperature,
            avg_logprob: number("avg_logprob"),
            compression_ratio: number("compression_ratio"),
            no_speech_prob: number("no_speech_prob"),
        })
    }

    async fn align(&self, _: &Window, _: Window, text: &[u32]) -> Result<Vec<WordTiming>, SpeechError> {
        let script = self.window();
        let words = script["alignment"].as_array().cloned().unwrap_or_default();
        let timings: Vec<WordTiming> = words
            .iter()
            .map(|word| WordTiming {
                word: word[0].as_str().unwrap().to_owned(),
                tokens: ids(&word[1]),
                start: word[2].as_f64().unwrap(),
                end: word[3].as_f64().unwrap(),
                probability: word[4].as_f64().unwrap(),
            })
            .collect();
        let of_words: Vec<u32> = timings.iter().flat_map(|timing| &timing.tokens).copied().collect();
        assert!(text.starts_with(&of_words), "{}: the text of a window", self.name);
        Ok(timings)
    }
}

async fn walk(file: &str) {
    let vocabulary = vocabulary();
    let cases = golden(file);
    assert!(cases.len() > 50);
    for case in cases {
        let script = Script::new(&case);
        let options = speech::options(&case["options"]);
        let frames = case["frames"].as_u64().unwrap() as usize;
        let texts = Texts::of(&options, &vocabulary).unwrap();
        let mut walk = Walk::new(&script, &vocabulary, &options, &texts.initial_prompt, (frames, 448));
        let mut segments = Vec::new();
        let tell = |step| {
            if let Step::Segment(segment) = step {
                segments.push(segment);
            }
        };
        walk.run(&Clip::of(&options.clips, frames), tell).await.unwrap();
        let left = script.windows.lock().unwrap().len();
        assert_eq!(
            left,
            usize::from(*script.attempts.lock().unwrap() > 0),
            "{}: windows are left",
            case["name"]
        );
        speech::check(&script.name, &segments, &case["segments"], 1e-9);
        assert_eq!(walk.text().unwrap(), case["text"], "{}", case["name"]);
    }
}

#[tokio::test]
async fn the_loop_over_windows_is_that_of_the_reference() {
    walk("loops.json").await;
}

#[tokio::test]
async fn the_loop_over_windows_with_words_is_that_of_the_reference() {
    walk("loops_words.json").await;
}
