//! Speech that is heard while it is said: turns of a speaker in a stream of samples, and how much of what was understood
//! so far will not change.
//!
//! Text is agreed on as by Macháček, Dabre and Bojar, "Turning Whisper into Real-Time Transcription System" (2023), with
//! their LocalAgreement-2: what two transcripts in a row begin with, of which the later has heard more.

use super::vad::{Detector, VadOptions};
use crate::media::sound::RATE;

/// How turns are told apart.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Turns {
    /// Probability from which there is speech.
    pub threshold: f32,
    /// What belongs to a turn in front of its speech, in milliseconds.
    pub padding_ms: u32,
    /// The silence that ends it, in milliseconds.
    pub silence_ms: u32,
}

impl Default for Turns {
    fn default() -> Self {
        Self { threshold: 0.5, padding_ms: 300, silence_ms: 500 }
    }
}

/// Shorter speech is none, in milliseconds. Less than in recordings: a speaker who says no more than "yes" waits for what
/// comes of it.
const LEAST_SPEECH_MS: u32 = 100;

impl Turns {
    fn vad(&self, longest_ms: u32) -> VadOptions {
        VadOptions {
            threshold: self.threshold,
            min_speech_ms: LEAST_SPEECH_MS,
            min_silence_ms: self.silence_ms,
            pad_ms: self.padding_ms,
            longest_ms,
        }
    }
}

/// What a listener notices.
#[derive(Debug, Clone, PartialEq)]
pub enum Heard {
    /// A turn has begun.
    Began {
        /// Its first sample, of all that was heard.
        at: usize,
    },
    /// It has ended.
    Ended {
        /// Behind its last sample.
        at: usize,
        /// All of it, at 16 kHz.
        samples: Vec<i16>,
    },
}

/// Hears a stream, and keeps what belongs to a turn until it has ended.
pub struct Listener {
    /// [`None`] where whoever speaks says when a turn ends.
    turns: Option<Turns>,
    longest_ms: u32,
    ears: Option<Detector>,
    /// The first sample that the ears heard.
    ears_from: usize,
    /// Where the turn began that goes on.
    began: Option<usize>,
    /// The last samples of all that was heard.
    kept: Vec<i16>,
    heard: usize,
}

impl Listener {
    /// Hears turns of at most so many milliseconds, where it tells them apart.
    pub fn new(turns: Option<Turns>, longest_ms: u32) -> Self {
        Self {
            ears: turns.map(|turns| Detector::new(&turns.vad(longest_ms))),
            turns,
            longest_ms,
            ears_from: 0,
            began: None,
            kept: Vec::new(),
            heard: 0,
        }
    }

    /// Tells turns apart in another way from now on.
    pub fn set_turns(&mut self, turns: Option<Turns>) {
        if self.turns != turns {
            self.turns = turns;
            self.listen_anew();
        }
    }

    /// How turns are told apart.
    pub fn turns(&self) -> Option<Turns> {
        self.turns
    }

    /// Samples that were heard in all.
    pub fn heard(&self) -> usize {
        self.heard
    }

    /// Samples that are kept.
    pub fn kept(&self) -> usize {
        self.kept.len()
    }

    /// What was heard of the turn that goes on: all that is kept, where no turns are told apart.
    pub fn turn(&self) -> Option<&[i16]> {
        match self.turns {
            None => (!self.kept.is_empty()).then_some(&self.kept),
            Some(_) => self.began.map(|began| &self.kept[began - self.first()..]),
        }
    }

    /// Hears what follows, at 16 kHz in `[-1, 1]`.
    pub fn push(&mut self, samples: &[f32]) -> Vec<Heard> {
        /// Samples between looks: a turn is noticed this soon, and two in a row are not taken for one.
        const STEP: usize = RATE / 20;
        let mut noticed = Vec::new();
        for samples in samples.chunks(STEP) {
            self.kept.extend(samples.iter().map(|sample| (sample * 32768.0) as i16));
            self.heard += samples.len();
            self.look(samples, &mut noticed);
        }
        noticed
    }

    fn look(&mut self, samples: &[f32], noticed: &mut Vec<Heard>) {
        let (Some(turns), Some(ears)) = (self.turns, &mut self.ears) else { return };
        ears.push(samples);
        let (ended, speaking) = (ears.ended(), ears.speaking());
        let (padding, silence) = (in_samples(turns.padding_ms), in_samples(turns.silence_ms));
        let from = self.ears_from;
        let whole = |at: usize| at + from;
        for span in ended {
            let (start, end) = (whole(span.start), whole(span.end));
            if self.began.is_none() {
                // Of what a turn has ended with already, nothing is left.
                if end <= self.first() {
                    continue;
                }
                noticed.push(self.begin(start.saturating_sub(padding)));
            }
            // Speech that was cut because it is long goes on where it was cut.
            let at = if speaking.is_some_and(|next| whole(next) < end + silence) { end } else { self.heard };
            noticed.extend(self.end(at.min(self.heard)));
        }
        match (self.began, speaking) {
            (None, Some(start)) => {
                let start = whole(start).saturating_sub(padding);
                noticed.push(self.begin(start));
            }
            // What was taken for the rest of a speech was none.
            (Some(_), None) if !self.ears.as_ref().is_some_and(Detector::is_open) => {
                noticed.extend(self.end(self.heard));
            }
            _ => {}
        }
        if self.began.is_none() {
            // A beginning is noticed some time after it.
            let wanted = padding + in_samples(LEAST_SPEECH_MS) + RATE / 2;
            let surplus = self.kept.len().saturating_sub(wanted);
            // Not at every step.
            if surplus > RATE {
                self.kept.drain(..surplus);
            }
        }
    }

    fn begin(&mut self, at: usize) -> Heard {
        let at = at.max(self.first());
        self.began = Some(at);
        Heard::Began { at }
    }

    fn end(&mut self, at: usize) -> Option<Heard> {
        let began = self.began.take()?;
        let first = self.first();
        let mut samples: Vec<i16> = self.kept.drain(..at - first).collect();
        samples.drain(..began - first);
        Some(Heard::Ended { at, samples })
    }

    /// Ends the turn here, whether or not it would: all that was heard of it, and nothing where nothing was.
    pub fn commit(&mut self) -> Vec<i16> {
        let samples = match (self.turns, self.began) {
            (Some(_), None) => std::mem::take(&mut self.kept),
            _ => self.turn().map(<[i16]>::to_vec).unwrap_or_default(),
        };
        self.listen_anew();
        samples
    }

    /// Forgets what is kept.
    pub fn clear(&mut self) {
        self.listen_anew();
    }

    fn listen_anew(&mut self) {
        self.kept.clear();
        self.began = None;
        self.ears = self.turns.map(|turns| Detector::new(&turns.vad(self.longest_ms)));
        self.ears_from = self.heard;
    }

    /// The number of the first sample that is kept.
    fn first(&self) -> usize {
        self.heard - self.kept.len()
    }
}

fn in_samples(milliseconds: u32) -> usize {
    (u64::from(milliseconds) * RATE as u64 / 1000) as usize
}

/// Words that transcripts of a turn agree on, while it goes on.
#[derive(Debug, Default)]
pub struct Agreement {
    /// The transcript before.
    last: Vec<String>,
    /// How much of what was told is agreed on, in words.
    told: Vec<String>,
}

impl Agreement {
    /// What is new in what this transcript and the one before agree on, but for the last word of either: the sound may
    /// have ended inside of it, and the full stop behind it is made up.
    pub fn hear(&mut self, transcript: &str) -> String {
        let words = words(transcript);
        let whole = |words: &[String]| words.len().saturating_sub(1);
        let common = words.iter().zip(&self.last).take_while(|(a, b)| a == b).count();
        let common = common.min(whole(&words)).min(whole(&self.last));
        let fresh =
            if is_begun(&words, &self.told) { &words[self.told.len().min(common)..common] } else { &[] };
        let fresh = fresh.to_vec();
        self.told.extend_from_slice(&fresh);
        self.last = words;
        fresh.concat()
    }

    /// What the last transcript of all has besides what was told; nothing, where it says otherwise.
    pub fn rest(self, transcript: &str) -> String {
        let words = words(transcript);
        if is_begun(&words, &self.told) { words[self.told.len()..].concat() } else { String::new() }
    }
}

fn is_begun(words: &[String], told: &[String]) -> bool {
    words.len() >= told.len() && words.iter().zip(told).all(|(a, b)| a == b)
}

/// Words with the space in front of them; together they are the text. Of scripts without spaces, each character is one.
fn words(text: &str) -> Vec<String> {
    let mut words: Vec<String> = Vec::new();
    let mut before = None;
    for character in text.trim().chars() {
        let begins = match before {
            None => true,
            Some(before) => character.is_whitespace() || is_word(character) || is_word(before),
        };
        match words.last_mut().filter(|_| !begins) {
            Some(word) => word.push(character),
            None => words.push(character.into()),
        }
        // The space begins the word, and what follows it goes on.
        before = Some(character);
    }
    words
}

/// Whether a character can be a word: kana, Chinese characters, Thai, Lao, Burmese, Khmer.
fn is_word(character: char) -> bool {
    matches!(
        character,
        '\u{e00}'..='\u{eff}' | '\u{1000}'..='\u{109f}' | '\u{1780}'..='\u{17ff}' | '\u{3040}'..='\u{30ff}'
            | '\u{3400}'..='\u{9fff}' | '\u{f900}'..='\u{faff}' | '\u{20000}'..='\u{3ffff}'
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two sentences of espeak-ng, from 0.50 to 1.14 and from 1.64 to 2.40 seconds, and then a second of silence.
    fn recording() -> Vec<f32> {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/sound/two_sentences.wav");
        let bytes = std::fs::read(path).unwrap();
        let sample = |pair: &[u8]| f32::from(i16::from_le_bytes([pair[0], pair[1]])) / 32768.0;
        bytes[44..].chunks_exact(2).map(sample).chain(vec![0.0; RATE]).collect()
    }

    fn seconds(samples: usize) -> f64 {
        samples as f64 / RATE as f64
    }

    #[test]
    fn two_sentences_are_two_turns() {
        let samples = recording();
        let mut listener = Listener::new(Some(Turns { silence_ms: 300, ..Turns::default() }), 30_000);
        let mut noticed = Vec::new();
        for piece in samples.chunks(777) {
            noticed.extend(listener.push(piece));
            assert_eq!(listener.turn().is_some(), noticed.len() % 2 == 1);
        }
        let [
            Heard::Began { at: a },
            Heard::Ended { at: b, samples: first },
            Heard::Began { at: c },
            Heard::Ended { at: d, samples: second },
        ] = &noticed[..]
        else {
            panic!("{noticed:?}");
        };
        // 300 ms in front, and the silence that ended it behind.
        for (found, expected) in [(a, 0.2), (b, 1.14 + 0.3), (c, 1.44), (d, 2.4 + 0.3)] {
            // As exact as the ears are, and as the looks follow each other.
            assert!((seconds(*found) - expected).abs() < 0.3, "{found} is not {expected} s");
        }
        let part = |from: usize, to: usize| -> Vec<i16> {
            samples[from..to].iter().map(|sample| (sample * 32768.0) as i16).collect()
        };
        assert_eq!((first, second), (&part(*a, *b), &part(*c, *d)));
        assert!(listener.kept() < 3 * RATE);
    }

    #[test]
    fn whoever_speaks_can_say_when_a_turn_ends() {
        let samples = recording();
        let mut listener = Listener::new(None, 30_000);
        assert_eq!(listener.push(&samples), []);
        assert_eq!(listener.turn().map(<[i16]>::len), Some(samples.len()));
        assert_eq!(listener.commit().len(), samples.len());
        assert_eq!(listener.turn(), None);
        assert!(listener.commit().is_empty());
        listener.push(&samples);
        listener.clear();
        assert!(listener.commit().is_empty());
        // A turn that was noticed ends there, too.
        listener.set_turns(Some(Turns::default()));
        let from = listener.heard();
        let noticed = listener.push(&samples[..RATE]);
        let [Heard::Began { at }] = noticed[..] else { panic!("{noticed:?}") };
        assert_eq!(listener.commit().len(), from + RATE - at);
        assert_eq!(listener.turn(), None);
    }

    #[test]
    fn a_long_speech_is_cut_and_nothing_of_it_is_lost() {
        let sentence = &recording()[RATE / 2..(1.14 * RATE as f64) as usize];
        let speech: Vec<f32> = sentence.iter().copied().cycle().take(25 * RATE).collect();
        let mut listener = Listener::new(Some(Turns { silence_ms: 2000, ..Turns::default() }), 5_000);
        let mut noticed = listener.push(&speech);
        noticed.extend(listener.push(&vec![0.0; 4 * RATE]));
        let mut end = None;
        let mut length = 0;
        for heard in &noticed {
            match heard {
                Heard::Began { at } => {
                    assert!(end.is_none_or(|end| *at >= end && *at < end + RATE / 2), "{at} {end:?}");
                }
                Heard::Ended { at, samples } => {
                    assert!(samples.len() <= 8 * RATE);
                    length += samples.len();
                    end = Some(*at);
                }
            }
        }
        assert!(noticed.len() >= 8, "{}", noticed.len());
        assert!(seconds(length) > 24.0, "{}", seconds(length));
        assert_eq!(listener.turn(), None);
    }

    /// Wherever speech is cut because it is long, and however it goes on: no turn is empty, and turns follow each other.
    #[test]
    fn no_turn_is_empty() {
        let sentence = &recording()[RATE / 2..(1.14 * RATE as f64) as usize];
        for (longest_ms, silence_ms) in [(2000, 20), (2000, 100), (3000, 160), (5000, 160)] {
            let turns = Turns { silence_ms, padding_ms: 0, ..Turns::default() };
            let mut listener = Listener::new(Some(turns), longest_ms);
            let mut last = 0;
            for round in 0..40 {
                let speech = sentence.iter().copied().cycle().take(RATE / 2 + round * 1511);
                let pause = std::iter::repeat_n(0.0, RATE / 20 + round * 397 % (RATE / 2));
                let samples: Vec<f32> = speech.chain(pause).collect();
                for heard in listener.push(&samples) {
                    match heard {
                        Heard::Began { at } => assert!(at >= last, "{at} is before {last}"),
                        Heard::Ended { at, samples } => {
                            assert!(!samples.is_empty(), "{longest_ms} {silence_ms} {round}");
                            last = at;
                        }
                    }
                }
            }
            assert!(last > 0);
        }
    }

    #[test]
    fn silence_is_not_kept() {
        let mut listener = Listener::new(Some(Turns::default()), 30_000);
        for _ in 0..60 {
            assert_eq!(listener.push(&vec![0.0; RATE]), []);
        }
        assert!(listener.kept() < 3 * RATE);
        assert_eq!(listener.heard(), 60 * RATE);
    }

    #[test]
    fn what_two_transcripts_agree_on_is_told_once() {
        let mut agreement = Agreement::default();
        let told: Vec<String> = [
            " the cat",
            " the cat sad",
            " the cat sat on the",
            "",
            " the cat sat on the mat",
            " the cat sat on the mat and",
        ]
        .iter()
        .map(|transcript| agreement.hear(transcript))
        .collect();
        assert_eq!(told, ["", "the", " cat", "", "", " sat on the"]);
        assert_eq!(agreement.rest("the cat sat on the mat and sang."), " mat and sang.");

        // As the demonstration model hears its sample, a few hundred milliseconds more each time.
        let mut agreement = Agreement::default();
        let heard = ["Turn on the kitchen?", "Turn on the kitchen?", "Turn on the kitchen light."];
        assert_eq!(heard.map(|transcript| agreement.hear(transcript)), ["", "Turn on the", ""]);
        assert_eq!(agreement.rest("Turn on the kitchen light please."), " kitchen light please.");

        let mut agreement = Agreement::default();
        agreement.hear("a b c");
        assert_eq!(agreement.hear("a b d"), "a b");
        // What was told is not taken back, and nothing is told that contradicts it.
        assert_eq!(agreement.hear("x b d e"), "");
        assert_eq!(agreement.hear("x b d e"), "");
        assert_eq!(agreement.hear("a b d e"), "");
        assert_eq!(agreement.hear("a b d f"), " d");
        assert_eq!(agreement.rest("x y"), "");
        assert_eq!(Agreement::default().rest(" all of it "), "all of it");
    }

    #[test]
    fn words_of_every_script_make_the_text() {
        for (text, expected) in [
            ("one  two, three", &["one", " ", " two,", " three"][..]),
            ("世界。and 日本", &["世", "界", "。and", " ", "日", "本"]),
            ("", &[]),
            ("   ", &[]),
        ] {
            let found = words(text);
            assert_eq!(found, expected, "{text}");
            assert_eq!(found.concat(), text.trim());
        }
    }
}
