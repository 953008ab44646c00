//! Transcripts on the wire: whole, or in pieces.

use std::{collections::VecDeque, sync::Arc};

use axum::{
    Json,
    http::header::CONTENT_TYPE,
    response::{IntoResponse, Response, sse::Event},
};

use super::parse::{Format, Reply};
use crate::{
    api::{ApiError, sse, wire::audio as wire},
    speech::{
        Segment, SpeechError, Task, Transcriber, Transcript, Transcription, Update, Word, languages,
        subtitles::{self, Style},
    },
};

/// Punctuation that openai/whisper counts to the word behind it.
const IN_FRONT: &[char] = &['"', '\'', '“', '¿', '(', '[', '{', '-'];
/// Punctuation that it counts to the word in front.
const BEHIND: &[char] =
    &['"', '\'', '.', '。', ',', '，', '!', '！', '?', '？', ':', '：', '”', ')', ']', '}', '、'];

/// All of a transcript.
pub(super) async fn collect(mut transcription: Transcription) -> Result<Transcript, SpeechError> {
    loop {
        if let Update::Finished(transcript) = transcription.next().await? {
            return Ok(transcript);
        }
    }
}

/// The whole answer.
pub(super) fn whole(reply: Reply, model: &Transcriber, transcript: &Transcript) -> Response {
    let text = transcript.text.trim();
    let file = |kind: &'static str, text: String| ([(CONTENT_TYPE, kind)], text).into_response();
    let style = Style::default();
    match reply.format {
        Format::Json => Json(wire::Transcription {
            text: text.to_owned(),
            logprobs: reply.logprobs.then(|| logprobs(model, &transcript.segments)),
            languages: spoken(reply, transcript),
            usage: usage(transcript),
        })
        .into_response(),
        Format::Text => file("text/plain; charset=utf-8", format!("{text}\n")),
        Format::Srt => file("text/plain; charset=utf-8", subtitles::srt(&transcript.segments, &style)),
        Format::Vtt => file("text/vtt; charset=utf-8", subtitles::vtt(&transcript.segments, &style)),
        Format::Tsv => {
            file("text/tab-separated-values; charset=utf-8", subtitles::tsv(&transcript.segments, &style))
        }
        Format::Verbose => Json(with_times(reply, transcript)).into_response(),
        Format::Diarized => Json(wire::DiarizedTranscription {
            task: task(reply),
            duration: rounded(transcript.duration),
            text: text.to_owned(),
            segments: transcript.segments.iter().filter_map(diarized).collect(),
            usage: usage(transcript),
        })
        .into_response(),
    }
}

/// The answer in pieces. Dropping the response cancels it.
pub(super) fn stream(
    reply: Reply,
    model: Arc<Transcriber>,
    transcription: Transcription,
    duration: f64,
) -> Response {
    sse::respond(Pieces {
        reply,
        model,
        transcription,
        duration: rounded(duration),
        text: Stripped::default(),
        all: String::new(),
        logprobs: Vec::new(),
        ready: VecDeque::new(),
        ended: false,
    })
}

struct Pieces {
    reply: Reply,
    model: Arc<Transcriber>,
    transcription: Transcription,
    duration: f64,
    text: Stripped,
    /// All text that was sent.
    all: String,
    /// All that were sent.
    logprobs: Vec<wire::LogProb>,
    ready: VecDeque<Event>,
    ended: bool,
}

impl sse::Pieces for Pieces {
    async fn next(&mut self) -> Option<Event> {
        loop {
            if let Some(event) = self.ready.pop_front() {
                return Some(event);
            }
            if self.ended {
                return None;
            }
            match self.transcription.next().await {
                // Channels are heard one after another, and their turns are known when all are.
                Ok(Update::Segment(_)) if self.reply.format == Format::Diarized => {}
                Ok(Update::Segment(segment)) => self.segment(&segment),
                Ok(Update::Finished(transcript)) => self.finish(&transcript),
                Ok(Update::Language { .. } | Update::Progress { .. }) => {}
                // An error behind a status of 200: the stream ends with it, and without its usual last line.
                Err(error) => {
                    self.ended = true;
                    self.ready.push_back(sse::json(&ApiError::from(error).body()));
                }
            }
        }
    }
}

impl Pieces {
    fn segment(&mut self, segment: &Segment) {
        let delta = self.text.push(&segment.text);
        self.all += &delta;
        let logprobs = self.reply.logprobs.then(|| logprobs(&self.model, std::slice::from_ref(segment)));
        self.logprobs.extend(logprobs.iter().flatten().cloned());
        let verbose = self.reply.format == Format::Verbose;
        let speaker = if self.reply.format == Format::Diarized { diarized(segment) } else { None };
        if delta.is_empty() && logprobs.as_ref().is_none_or(Vec::is_empty) && !verbose {
            return;
        }
        self.ready.push_back(sse::json(&wire::TextDelta {
            kind: "transcript.text.delta",
            delta,
            logprobs,
            segment_id: speaker.as_ref().map(|segment| segment.id.clone()),
            segment: verbose.then(|| timed(self.reply, segment)),
            duration: verbose.then_some(self.duration),
        }));
        self.ready.extend(speaker.map(|segment| sse::json(&segment)));
    }

    fn finish(&mut self, transcript: &Transcript) {
        self.ended = true;
        if self.reply.format == Format::Diarized {
            transcript.segments.iter().for_each(|segment| self.segment(segment));
        }
        let verbose = self.reply.format == Format::Verbose;
        self.ready.push_back(sse::json(&wire::TextDone {
            kind: "transcript.text.done",
            text: std::mem::take(&mut self.all),
            logprobs: self.reply.logprobs.then(|| std::mem::take(&mut self.logprobs)),
            languages: spoken(self.reply, transcript),
            transcription: verbose.then(|| with_times(self.reply, transcript)),
        }));
        self.ready.push_back(sse::done());
    }
}

/// Text that comes in pieces, without the white space around all of it.
#[derive(Debug, Default)]
struct Stripped {
    begun: bool,
    /// White space that may be the last.
    held: String,
}

impl Stripped {
    /// What can be told of the text so far, after another piece of it.
    fn push(&mut self, text: &str) -> String {
        let text = if self.begun { text } else { text.trim_start() };
        let body = text.trim_end();
        if body.is_empty() {
            if self.begun {
                self.held += text;
            }
            return String::new();
        }
        self.begun = true;
        let mut out = std::mem::take(&mut self.held);
        out += body;
        text[body.len()..].clone_into(&mut self.held);
        out
    }
}

fn with_times(reply: Reply, transcript: &Transcript) -> wire::VerboseTranscription {
    let segments = &transcript.segments;
    let words = || segments.iter().flat_map(|segment| &segment.words).map(word).collect();
    let code = if reply.task == Task::Translate { "en" } else { &transcript.language };
    wire::VerboseTranscription {
        task: task(reply),
        language: languages::name(code).unwrap_or(code).to_owned(),
        duration: rounded(transcript.duration),
        text: transcript.text.trim().to_owned(),
        words: reply.times.words.then(words),
        segments: reply
            .times
            .segments
            .then(|| segments.iter().map(|segment| timed(reply, segment)).collect()),
        usage: usage(transcript),
    }
}

fn timed(reply: Reply, segment: &Segment) -> wire::Segment {
    let word = |word: &Word| wire::SegmentWord {
        word: word.word.clone(),
        start: rounded(word.start),
        end: rounded(word.end),
        probability: word.probability,
    };
    wire::Segment {
        id: segment.id,
        seek: segment.seek,
        start: rounded(segment.start),
        end: rounded(segment.end),
        text: segment.text.clone(),
        tokens: segment.tokens.clone(),
        temperature: segment.temperature,
        avg_logprob: segment.avg_logprob,
        compression_ratio: segment.compression_ratio,
        no_speech_prob: segment.no_speech_prob,
        words: reply.times.segment_words.then(|| segment.words.iter().map(word).collect()),
    }
}

/// A word as the hosted API has it.
fn word(word: &Word) -> wire::Word {
    let whole = word.word.trim();
    let bare = whole.trim_start_matches(IN_FRONT).trim_end_matches(BEHIND);
    let word_or_sign = if bare.is_empty() { whole } else { bare };
    wire::Word { word: word_or_sign.to_owned(), start: rounded(word.start), end: rounded(word.end) }
}

/// A segment and who speaks; `None` where nobody does.
fn diarized(segment: &Segment) -> Option<wire::DiarizedSegment> {
    let text = segment.text.trim();
    (!text.is_empty()).then(|| wire::DiarizedSegment {
        kind: "transcript.text.segment",
        id: format!("seg_{}", segment.id),
        start: rounded(segment.start),
        end: rounded(segment.end),
        text: text.to_owned(),
        speaker: speaker(segment.channel),
    })
}

/// `A` for the first channel; behind `Z` comes `A1`.
fn speaker(channel: usize) -> String {
    let letter = char::from(b'A' + (channel % 26) as u8);
    match channel / 26 {
        0 => letter.to_string(),
        round => format!("{letter}{round}"),
    }
}

/// Tokens that are text, so no times.
pub(in crate::api) fn logprobs(model: &Transcriber, segments: &[Segment]) -> Vec<wire::LogProb> {
    let vocabulary = model.vocabulary();
    let drawn = segments.iter().flat_map(|segment| segment.tokens.iter().zip(&segment.logprobs));
    let text = drawn.filter(|(id, _)| **id < vocabulary.end);
    let logprob = |(id, logprob): (&u32, &f32)| {
        let bytes = vocabulary.bytes(*id);
        wire::LogProb { token: String::from_utf8_lossy(&bytes).into_owned(), logprob: *logprob, bytes }
    };
    text.map(logprob).collect()
}

fn spoken(reply: Reply, transcript: &Transcript) -> Option<[wire::Language; 1]> {
    reply.language.then(|| [wire::Language { code: transcript.language.clone() }])
}

fn usage(transcript: &Transcript) -> wire::Usage {
    wire::Usage { kind: "duration", seconds: transcript.duration.ceil() as u64 }
}

fn task(reply: Reply) -> &'static str {
    match reply.task {
        Task::Transcribe => "transcribe",
        Task::Translate => "translate",
    }
}

/// Milliseconds are exact enough, and sums of hundredths look like what they are.
fn rounded(seconds: f64) -> f64 {
    (seconds * 1000.0).round() / 1000.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_make_the_stripped_text() {
        for pieces in [
            &[" And so", " my fellow", " Americans. "][..],
            &["", "  ", " a ", "  ", "", " b", " "],
            &["a", "b"],
            &[" ", ""],
            &[],
        ] {
            let mut stripped = Stripped::default();
            let text: String = pieces.iter().map(|piece| stripped.push(piece)).collect();
            assert_eq!(text, pieces.concat().trim(), "{pieces:?}");
        }
    }

    #[test]
    fn words_stand_without_space_and_punctuation() {
        for (text, expected) in [
            (" Americans,", "Americans"),
            (" \"don't", "don't"),
            (" (well)", "well"),
            (" 3.5%", "3.5%"),
            (" --", "--"),
            (" ...", "..."),
            ("世界。", "世界"),
        ] {
            let found = word(&Word { word: text.into(), start: 0.1 + 0.2, end: 1.0, probability: 0.5 });
            assert_eq!((found.word.as_str(), found.start), (expected, 0.3), "{text}");
        }
    }

    #[test]
    fn speakers_are_letters() {
        assert_eq!([0, 1, 25, 26, 53].map(speaker), ["A", "B", "Z", "A1", "B2"]);
    }
}
