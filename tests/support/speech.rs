//! Options and segments as the reference writes them.

use percept::speech::{Options, Segment, Suppress, Task};
use serde_json::Value;

/// Keyword arguments of `whisper.transcribe`.
pub fn options(json: &Value) -> Options {
    let mut options = Options { language: None, ..Options::default() };
    for (key, value) in json.as_object().unwrap() {
        let number = || value.as_f64();
        let text = || value.as_str().map(str::to_owned);
        let truth = || value.as_bool().unwrap();
        let count = || value.as_u64().map(|count| count as usize);
        match key.as_str() {
            "language" => options.language = text(),
            "task" => {
                options.task = if value == "translate" { Task::Translate } else { Task::Transcribe };
            }
            "temperature" => {
                let list = value.as_array().cloned().unwrap_or_else(|| vec![value.clone()]);
                options.temperatures = list.iter().map(|value| value.as_f64().unwrap() as f32).collect();
            }
            "compression_ratio_threshold" => options.compression_ratio_threshold = number(),
            "logprob_threshold" => options.logprob_threshold = number(),
            "no_speech_threshold" => options.no_speech_threshold = number(),
            "condition_on_previous_text" => options.condition_on_previous_text = Some(truth()),
            "initial_prompt" => options.initial_prompt = text(),
            "carry_initial_prompt" => options.carry_initial_prompt = truth(),
            "word_timestamps" => options.words = truth(),
            "hallucination_silence_threshold" => options.hallucination_silence_threshold = number(),
            "without_timestamps" => options.without_timestamps = truth(),
            "max_initial_timestamp" => options.max_initial_timestamp = number(),
            "prefix" => options.prefix = text(),
            "suppress_blank" => options.suppress_blank = truth(),
            "suppress_tokens" => options.suppress = suppress(value),
            "best_of" => options.best_of = count().unwrap(),
            "beam_size" => options.beam_size = count().unwrap(),
            "patience" => options.patience = number().unwrap(),
            "length_penalty" => options.length_penalty = number(),
            "sample_len" => options.sample_len = count(),
            "seed" => options.seed = value.as_u64().unwrap(),
            "clip_timestamps" => options.clips = clips(value),
            other => panic!("the option {other} is not known"),
        }
    }
    options
}

fn numbers(value: &Value) -> Vec<f64> {
    match value {
        Value::String(list) => {
            list.split(',').filter(|part| !part.is_empty()).map(|part| part.parse().unwrap()).collect()
        }
        other => other.as_array().unwrap().iter().map(|value| value.as_f64().unwrap()).collect(),
    }
}

fn clips(value: &Value) -> Vec<(f64, Option<f64>)> {
    numbers(value).chunks(2).map(|pair| (pair[0], pair.get(1).copied())).collect()
}

fn suppress(value: &Value) -> Suppress {
    if value.as_str() == Some("-1") {
        return Suppress::NonSpeech;
    }
    let numbers = numbers(value);
    let ids: Vec<u32> = numbers.iter().filter(|&&id| id >= 0.0).map(|&id| id as u32).collect();
    match (numbers.contains(&-1.0), ids.is_empty()) {
        (true, _) => Suppress::NonSpeechAnd(ids),
        (false, true) => Suppress::Nothing,
        (false, false) => Suppress::Ids(ids),
    }
}

/// Compares segments; `probability` is how much probabilities may differ, as a share.
pub fn check(name: &str, found: &[Segment], expected: &Value, probability: f64) {
    let expected = expected.as_array().unwrap();
    let shown: Vec<(f64, f64, &str)> =
        found.iter().map(|segment| (segment.start, segment.end, segment.text.as_str())).collect();
    assert_eq!(found.len(), expected.len(), "{name}: {shown:#?}");
    for (found, expected) in found.iter().zip(expected) {
        let tokens: Vec<u32> =
            expected["tokens"].as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect();
        assert_eq!(found.tokens, tokens, "{name}: {found:?}");
        assert_eq!(found.text, expected["text"], "{name}");
        assert_eq!(found.logprobs.len(), found.tokens.len(), "{name}");
        let near = |key: &str, value: f64, tolerance: f64| {
            let expected = expected[key].as_f64().unwrap();
            assert!(
                (value - expected).abs() <= tolerance,
                "{name}: {key} is {value}, not {expected}: {found:?}"
            );
        };
        near("id", found.id as f64, 0.0);
        near("seek", found.seek as f64, 0.0);
        // In windows of three frames or fewer the reference's scores are no numbers, and its words come to nothing just
        // in front of the window; ours come to nothing at its start.
        let times = if found.text.is_empty() { 0.021 } else { 1e-6 };
        near("start", found.start, times);
        near("end", found.end, times);
        near("temperature", found.temperature.into(), 1e-6);
        near("avg_logprob", found.avg_logprob, 2e-3);
        near("compression_ratio", found.compression_ratio, 1e-3);
        let no_speech = expected["no_speech_prob"].as_f64().unwrap();
        near("no_speech_prob", found.no_speech_prob, (no_speech * probability).max(1e-6));
        let words = expected["words"].as_array().cloned().unwrap_or_default();
        assert_eq!(found.words.len(), words.len(), "{name}: {found:?}");
        for (word, expected) in found.words.iter().zip(&words) {
            assert_eq!(word.word, expected["word"], "{name}");
            let [start, end, of] = ["start", "end", "probability"].map(|key| expected[key].as_f64().unwrap());
            assert!(
                (word.start - start).abs() < 1e-6 && (word.end - end).abs() < 1e-6,
                "{name}: {word:?} {expected}"
            );
            assert!(
                (word.probability - of).abs() <= (of * probability).max(1e-6),
                "{name}: {word:?} {expected}"
            );
        }
    }
}
