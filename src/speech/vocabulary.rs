//! What the ids of a speech model mean: text, control and marks of time, found by their text in `tokenizer.json`.
//!
//! Reference: openai/whisper, `whisper/tokenizer.py`.

use std::{collections::BTreeSet, ops::Range, sync::Arc};

use percept_models::{Checkpoint, SpeechInfo};
use serde::Deserialize;

use super::{Suppress, seek::FRAMES_PER_MARK};
use crate::text::{TextError, Tokenizer, TokenizerError};

/// Seconds from one mark of time to the next.
pub const MARK_SECONDS: f64 = 0.02;

/// A speech model's ids.
#[derive(Debug)]
pub struct Vocabulary {
    tokenizer: Tokenizer,
    /// Ends an answer. Smaller ids are text.
    pub end: u32,
    /// Begins an answer.
    pub start: u32,
    /// Asks for English.
    pub translate: u32,
    /// Asks for the language that is spoken.
    pub transcribe: u32,
    /// In front of the text of earlier windows.
    pub previous: u32,
    /// Says that nobody speaks.
    pub no_speech: u32,
    /// Asks for no marks of time.
    pub no_timestamps: u32,
    /// Marks of time.
    pub marks: Range<u32>,
    /// Frames of a window: what the marks can tell apart.
    pub window: usize,
    /// Whether windows are to know the text of those before: transformers' `condition_on_prev_tokens`, by which authors say
    /// that a model did not learn to. Where a checkpoint says nothing they do, as in the reference.
    pub conditions: bool,
    /// Codes and ids, in the order of the ids; none where the model knows English only.
    languages: Vec<(String, u32)>,
    /// Ids that are no speech.
    non_speech: Vec<u32>,
    /// Control ids that are never drawn, the one for no marks left aside.
    control: Vec<u32>,
    /// Ids that do not begin an answer.
    blank: Arc<[u32]>,
    /// Ids are smaller.
    size: u32,
}

#[derive(Debug, Default, Deserialize)]
struct GenerationConfig {
    is_multilingual: Option<bool>,
    condition_on_prev_tokens: Option<bool>,
}

impl Vocabulary {
    /// Reads the tokenizer of a checkpoint.
    ///
    /// # Errors
    /// When it is missing, or lacks a token that every speech model has.
    pub fn read(checkpoint: &Checkpoint, info: &SpeechInfo) -> Result<Self, TextError> {
        let tokenizer = Tokenizer::read(checkpoint)?;
        let config: GenerationConfig = checkpoint.json("generation_config.json")?.unwrap_or_default();
        let id = |names: &[&str]| {
            let found = names.iter().find_map(|name| tokenizer.id(name));
            found.ok_or_else(|| TextError::NoToken { name: names[0].to_owned() })
        };
        let end = id(&["<|endoftext|>"])?;
        let no_timestamps = id(&["<|notimestamps|>"])?;
        // Files of the first checkpoints do not list the marks, which follow directly.
        let first_mark = tokenizer.id("<|0.00|>").unwrap_or(no_timestamps + 1);
        let marks = (info.frames / FRAMES_PER_MARK) as u32 + 1;
        let size = (tokenizer.size().max((first_mark + marks) as usize)).min(info.vocabulary) as u32;
        // English-only checkpoints have ids for languages as well, and never learned them. They are known by a text
        // vocabulary that is one token shorter.
        const ENGLISH_END: u32 = 50_256;
        let multilingual = config.is_multilingual.unwrap_or(end != ENGLISH_END);
        let [start, translate, transcribe] =
            [id(&["<|startoftranscript|>"])?, id(&["<|translate|>"])?, id(&["<|transcribe|>"])?];
        let [model, previous] = [id(&["<|startoflm|>"])?, id(&["<|startofprev|>"])?];
        let no_speech = id(&["<|nospeech|>", "<|nocaptions|>"])?;
        let languages = if multilingual { languages(&tokenizer) } else { Vec::new() };
        if multilingual && languages.is_empty() {
            return Err(TextError::NoToken { name: "<|en|>".into() });
        }
        let blank = text_ids(&tokenizer, " ")?.into_iter().chain([end]).collect();
        Ok(Self {
            non_speech: non_speech(&tokenizer)?,
            control: vec![transcribe, translate, start, previous, model, no_speech],
            marks: first_mark..(first_mark + marks).min(size),
            window: info.frames,
            conditions: config.condition_on_prev_tokens.unwrap_or(true),
            end,
            start,
            translate,
            transcribe,
            previous,
            no_speech,
            no_timestamps,
            languages,
            blank,
            size,
            tokenizer,
        })
    }

    /// Ids are smaller than this.
    pub fn size(&self) -> usize {
        self.size as usize
    }

    /// The codes of the languages that the model knows, none where it knows English only.
    pub fn languages(&self) -> impl Iterator<Item = &str> {
        self.languages.iter().map(|(code, _)| code.as_str())
    }

    /// The id of a language's code.
    pub fn language(&self, code: &str) -> Option<u32> {
        self.languages.iter().find(|(known, _)| known == code).map(|(_, id)| *id)
    }

    /// The code of a language's id.
    pub fn code(&self, id: u32) -> Option<&str> {
        self.languages.iter().find(|(_, known)| *known == id).map(|(code, _)| code.as_str())
    }

    /// The ids of plain text, whatever is in it.
    ///
    /// # Errors
    /// When the tokenizer fails.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>, TokenizerError> {
        text_ids(&self.tokenizer, text)
    }

    /// The text of ids; those that are no text are left out, and bytes that are no character become U+FFFD.
    ///
    /// # Errors
    /// When the tokenizer fails.
    pub fn decode(&self, ids: &[u32]) -> Result<String, TokenizerError> {
        let text: Vec<u32> = ids.iter().copied().filter(|&id| id < self.end).collect();
        self.tokenizer.decode(&text)
    }

    /// The text of ids in front of the marks of time, control ids by their names: what the reference's rule for
    /// repetition sees.
    pub fn decode_control(&self, ids: &[u32]) -> String {
        let bytes: Vec<u8> =
            ids.iter().filter(|&&id| !self.is_mark(id)).flat_map(|&id| self.bytes(id)).collect();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// The bytes of an id that is text; of others their name.
    pub fn bytes(&self, id: u32) -> Vec<u8> {
        let token = self.tokenizer.token(id).unwrap_or_default();
        let bytes: Option<Vec<u8>> = token.chars().map(byte_of).collect();
        bytes.filter(|_| id < self.end).unwrap_or_else(|| token.into_bytes())
    }

    /// Ids that are never drawn, in rising order: those asked for, and with any of them those that control.
    pub fn suppressed(&self, suppress: &Suppress) -> Arc<[u32]> {
        let (non_speech, listed) = match suppress {
            Suppress::NonSpeech => (self.non_speech.as_slice(), [].as_slice()),
            Suppress::NonSpeechAnd(ids) => (self.non_speech.as_slice(), ids.as_slice()),
            Suppress::Ids(ids) => ([].as_slice(), ids.as_slice()),
            Suppress::Nothing => return Arc::default(),
        };
        let all: BTreeSet<u32> = non_speech.iter().chain(listed).chain(&self.control).copied().collect();
        all.into_iter().collect()
    }

    /// Ids that do not begin an answer: a space alone, and the end.
    pub fn blank(&self) -> &Arc<[u32]> {
        &self.blank
    }

    /// Whether an id is a mark of time.
    pub fn is_mark(&self, id: u32) -> bool {
        id >= self.marks.start
    }

    /// Of a mark, how many marks lie in front of it. Without marks in the prompt nothing keeps a model from writing text
    /// where one should be: that is less than none, as in the reference.
    pub fn mark(&self, id: u32) -> i64 {
        i64::from(id) - i64::from(self.marks.start)
    }
}

fn text_ids(tokenizer: &Tokenizer, text: &str) -> Result<Vec<u32>, TokenizerError> {
    tokenizer.encode(&tokenizer.mark(text), false)
}

/// Ids whose text is `<|xx|>` or `<|xxx|>`. Fine-tunes add some behind all others.
fn languages(tokenizer: &Tokenizer) -> Vec<(String, u32)> {
    let code = |id: u32| {
        let token = tokenizer.token(id)?;
        let code = token.strip_prefix("<|")?.strip_suffix("|>")?;
        let fits = (2..=3).contains(&code.len()) && code.bytes().all(|byte| byte.is_ascii_lowercase());
        fits.then(|| (code.to_owned(), id))
    };
    (0..tokenizer.size() as u32).filter_map(code).collect()
}

/// Ids of annotations and musical notes, which occur in subtitles where nobody speaks.
fn non_speech(tokenizer: &Tokenizer) -> Result<Vec<u32>, TokenizerError> {
    const SINGLE: &str = "\"#()*+/:;<=>@[\\]^_`{|}~「」『』";
    const SEVERAL: [&str; 17] = [
        "<<", ">>", "<<<", ">>>", "--", "---", "-(", "-[", "('", "(\"", "((", "))", "(((", ")))", "[[", "]]",
        "{{",
    ];
    const MORE: [&str; 3] = ["}}", "♪♪", "♪♪♪"];
    // Of these the first id counts where they have several.
    const NOTES: &str = "♩♪♫♬♭♮♯";
    let mut ids = BTreeSet::new();
    // Inside words they are speech, in front of them they are not.
    for sign in [" -", " '"] {
        ids.extend(text_ids(tokenizer, sign)?.first().copied());
    }
    let plain = SINGLE.chars().map(String::from).chain(SEVERAL.iter().chain(&MORE).map(ToString::to_string));
    let notes = NOTES.chars().map(String::from);
    let symbols = plain.map(|symbol| (symbol, false)).chain(notes.map(|note| (note, true)));
    for (symbol, first_counts) in symbols {
        for text in [symbol.clone(), format!(" {symbol}")] {
            let found = text_ids(tokenizer, &text)?;
            if let (Some(&first), true) = (found.first(), found.len() == 1 || first_counts) {
                ids.insert(first);
            }
        }
    }
    Ok(ids.into_iter().collect())
}

/// The byte that a character of a byte-level token stands for: GPT-2's table, `bytes_to_unicode`.
fn byte_of(char: char) -> Option<u8> {
    let printable = |byte: u8| matches!(byte, 33..=126 | 161..=172 | 174..=255);
    match u32::from(char) {
        code @ 0..=255 if printable(code as u8) => Some(code as u8),
        code @ 256.. => (0..=255).filter(|byte| !printable(*byte)).nth(code as usize - 256),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn vocabulary() -> Vocabulary {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/whisper");
        let info = SpeechInfo { context: 448, mels: 80, frames: 3000, vocabulary: 1917 };
        Vocabulary::read(&Checkpoint::new(folder), &info).unwrap()
    }

    #[test]
    fn ids_are_found_by_their_text() {
        let vocabulary = vocabulary();
        assert_eq!((vocabulary.end, vocabulary.start, vocabulary.previous), (400, 401, 413));
        assert_eq!(vocabulary.marks, 416..1917);
        let languages: Vec<&str> = vocabulary.languages().collect();
        assert_eq!(languages, ["en", "zh", "de", "es", "ru", "ko", "fr", "ja"]);
        assert_eq!(vocabulary.language("fr"), Some(408));
        assert_eq!(vocabulary.code(408), Some("fr"));
    }

    #[test]
    fn what_is_no_speech_is_the_published_list() {
        #[derive(Deserialize)]
        struct Published {
            suppress_tokens: Vec<u32>,
            begin_suppress_tokens: Vec<u32>,
        }
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/whisper");
        let published: Published = Checkpoint::new(folder).json("generation_config.json").unwrap().unwrap();
        let vocabulary = vocabulary();
        assert_eq!(*vocabulary.suppressed(&Suppress::NonSpeech), *published.suppress_tokens);
        assert_eq!(**vocabulary.blank(), *published.begin_suppress_tokens);
        assert_eq!(*vocabulary.suppressed(&Suppress::Ids(vec![7])), [7, 401, 410, 411, 412, 413, 414]);
    }

    #[test]
    fn control_tokens_in_text_are_text() {
        let vocabulary = vocabulary();
        let ids = vocabulary.encode(" say <|endoftext|> and <|en|>").unwrap();
        assert!(ids.iter().all(|&id| id < vocabulary.end));
        assert_eq!(vocabulary.decode(&ids).unwrap(), " say <|endoftext|> and <|en|>");
        let bytes: Vec<u8> = ids.iter().flat_map(|&id| vocabulary.bytes(id)).collect();
        assert_eq!(bytes, b" say <|endoftext|> and <|en|>");
        assert_eq!(vocabulary.bytes(402), b"<|en|>");
    }
}
