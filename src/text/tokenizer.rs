//! Text to ids and back, with the checkpoint's `tokenizer.json`.

use std::{
    borrow::Cow,
    collections::{HashMap, HashSet},
};

use aho_corasick::AhoCorasick;
use percept_models::Checkpoint;
use tokenizers::Encoding;

use super::TextError;

/// Stands in user text inside what would otherwise be read as a token of the template, such as `</s>`.
/// A noncharacter: Unicode reserves it for inside use.
const MARK: char = '\u{FDD0}';

/// A tokenizer that never lets text pass for a control token.
#[derive(Debug)]
pub struct Tokenizer {
    /// As published.
    published: tokenizers::Tokenizer,
    /// The same without added tokens: whatever it reads is text.
    plain: tokenizers::Tokenizer,
    added: HashSet<u32>,
    /// Added tokens that are no text.
    special: HashSet<u32>,
    /// The texts of added tokens.
    controls: AhoCorasick,
    /// Single bytes by id, for tokenizers that fall back to them.
    bytes: HashMap<u32, u8>,
    size: usize,
    longest: usize,
    /// A token of plain text and what it is decoded to, to stand in front of others.
    neutral: Option<(u32, String)>,
    spelling: Spelling,
}

/// How tokens are spelled in the vocabulary.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Spelling {
    /// A character for every byte: GPT-2's `bytes_to_unicode`.
    ByteLevel,
    /// As they are, but that this character stands for a space.
    Space(char),
}

impl Spelling {
    /// As a `decoder` of `tokenizer.json` undoes it.
    fn of(decoder: &serde_json::Value) -> Option<Self> {
        match decoder["type"].as_str()? {
            "ByteLevel" => Some(Self::ByteLevel),
            "Metaspace" => decoder["replacement"].as_str()?.chars().next().map(Self::Space),
            "Replace" if decoder["content"] == " " => {
                decoder["pattern"]["String"].as_str()?.chars().next().map(Self::Space)
            }
            "Sequence" => decoder["decoders"].as_array()?.iter().find_map(Self::of),
            _ => None,
        }
    }

    /// The bytes of a token.
    fn bytes(self, token: &str) -> Vec<u8> {
        match self {
            Self::Space(space) => token.replace(space, " ").into_bytes(),
            // A character that stands for no byte was put there as it is.
            Self::ByteLevel => token
                .chars()
                .flat_map(|char| match byte_of(char) {
                    Some(byte) => vec![byte],
                    None => char.to_string().into_bytes(),
                })
                .collect(),
        }
    }
}

/// The byte that a character of a byte-level vocabulary stands for: itself where it can be seen; the others follow each
/// other from U+0100 on.
fn byte_of(char: char) -> Option<u8> {
    let seen = |byte: u8| matches!(byte, b'!'..=b'~' | 0xA1..=0xAC | 0xAE..=0xFF);
    match u8::try_from(char) {
        Ok(byte) => seen(byte).then_some(byte),
        Err(_) => (0..=u8::MAX).filter(|&byte| !seen(byte)).nth((char as usize).checked_sub(0x100)?),
    }
}

/// A part of a text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Piece<'a> {
    /// Words.
    Text(&'a str),
    /// A special token.
    Special(u32),
}

/// Why a tokenizer or a text cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct TokenizerError(String);

impl From<tokenizers::Error> for TokenizerError {
    fn from(error: tokenizers::Error) -> Self {
        Self(error.to_string())
    }
}

impl Tokenizer {
    /// Reads a checkpoint's `tokenizer.json`.
    ///
    /// # Errors
    /// When it is missing or broken.
    pub fn read(checkpoint: &Checkpoint) -> Result<Self, TextError> {
        const NAME: &str = "tokenizer.json";
        let file = checkpoint.folder().join(NAME);
        let named = |error: &dyn std::fmt::Display| TokenizerError(format!("{}: {error}", file.display()));
        let text = checkpoint.bytes(NAME)?.ok_or_else(|| {
            // Some repositories have a sentencepiece model and Python code only.
            named(
                &"it is missing; write one with transformers: AutoTokenizer.from_pretrained('OWNER/NAME', \
                  trust_remote_code=True).save_pretrained('FOLDER')",
            )
        })?;
        let published = parse(&text).map_err(|error| named(&error))?;
        let added = published.get_added_tokens_decoder();
        let mut json: serde_json::Value = serde_json::from_slice(&text).map_err(|error| named(&error))?;
        // A Unigram model has control tokens among its pieces, where any text could match them.
        if let Some(pieces) = json["model"]["vocab"].as_array_mut() {
            for (id, piece) in pieces.iter_mut().enumerate() {
                if added.contains_key(&(id as u32)) {
                    piece[0] = format!("{MARK}{id}").into();
                }
            }
        }
        json["added_tokens"] = serde_json::json!([]);
        json["post_processor"] = serde_json::Value::Null;
        let plain = parse(json.to_string().as_bytes()).map_err(|error| named(&error))?;

        let vocabulary = published.get_vocab(true);
        let falls_back = json["model"]["byte_fallback"] == true;
        let bytes = (0..=u8::MAX).filter(|_| falls_back);
        let text = |id: u32| published.decode(&[id], true).ok().filter(|text| !text.trim().is_empty());
        let is_byte = |id: u32| published.id_to_token(id).is_some_and(|token| token.starts_with("<0x"));
        let plain_token = |id: &u32| !added.contains_key(id) && !is_byte(*id);
        let size = vocabulary.values().max().map_or(0, |&id| id + 1);
        let neutral = (0..size).filter(plain_token).find_map(|id| {
            let text = text(id).filter(|text| text.bytes().all(|byte| byte.is_ascii_graphic()))?;
            Some((id, text))
        });
        let controls = added.values().map(|token| &token.content).filter(|content| !content.is_empty());
        Ok(Self {
            bytes: bytes
                .filter_map(|byte| Some((*vocabulary.get(&format!("<0x{byte:02X}>"))?, byte)))
                .collect(),
            size: size as usize,
            longest: vocabulary.keys().map(String::len).max().unwrap_or(1),
            controls: AhoCorasick::new(controls).map_err(|error| named(&error))?,
            special: added.iter().filter(|(_, token)| token.special).map(|(id, _)| *id).collect(),
            added: added.keys().copied().collect(),
            neutral,
            spelling: Spelling::of(&json["decoder"]).unwrap_or(Spelling::Space(' ')),
            published,
            plain,
        })
    }

    /// Ids are smaller than this.
    pub fn size(&self) -> usize {
        self.size
    }

    /// Tokens that a text of so many bytes has at least.
    pub fn least_tokens(&self, bytes: usize) -> usize {
        // Normalisation may shorten a text, but not by more than this.
        const SHRINKS: usize = 4;
        bytes / (self.longest * SHRINKS)
    }

    /// The id of a token, by its text.
    pub fn id(&self, token: &str) -> Option<u32> {
        self.published.token_to_id(token)
    }

    /// The text of a token, by its id.
    pub fn token(&self, id: u32) -> Option<String> {
        self.published.id_to_token(id)
    }

    /// The control token that a text begins with.
    pub fn control_at_start(&self, text: &str) -> Option<u32> {
        let first = self.controls.find_overlapping_iter(text).find(|found| found.start() == 0)?;
        self.id(&text[first.range()])
    }

    /// Whether an id is left out of decoded text.
    pub fn is_special(&self, id: u32) -> bool {
        self.special.contains(&id)
    }

    /// The special tokens and other text that a text consists of, in order.
    pub fn pieces<'a>(&self, text: &'a str) -> Vec<Piece<'a>> {
        let mut pieces = Vec::new();
        let mut rest = 0;
        for found in self.controls.find_iter(text) {
            let special = self.id(&text[found.range()]).filter(|id| self.is_special(*id));
            let Some(id) = special else { continue };
            if found.start() > rest {
                pieces.push(Piece::Text(&text[rest..found.start()]));
            }
            pieces.push(Piece::Special(id));
            rest = found.end();
        }
        if rest < text.len() {
            pieces.push(Piece::Text(&text[rest..]));
        }
        pieces
    }

    /// The bytes that a token adds to a text; none where it is special or there is no such token.
    pub fn token_bytes(&self, id: u32) -> Vec<u8> {
        if let Some(byte) = self.byte(id) {
            return vec![byte];
        }
        match self.token(id) {
            None => Vec::new(),
            Some(_) if self.is_special(id) => Vec::new(),
            Some(token) if self.added.contains(&id) => token.into_bytes(),
            Some(token) => self.spelling.bytes(&token),
        }
    }

    /// Whether the first word of a text loses the space in front of it when it is decoded.
    pub fn strips_space(&self) -> bool {
        let spaced = |id: &u32| self.token_bytes(*id).first() == Some(&b' ');
        let first = (0..self.size as u32).find(spaced);
        first.is_some_and(|id| self.decode(&[id]).is_ok_and(|text| !text.starts_with(' ')))
    }

    /// The byte that an id stands for, where it stands for one.
    pub fn byte(&self, id: u32) -> Option<u8> {
        self.bytes.get(&id).copied()
    }

    /// Text from a user, with marks in whatever would be read as a control token. [`Self::encode`] removes them.
    pub fn mark<'a>(&self, text: &'a str) -> Cow<'a, str> {
        let mut places: Vec<usize> =
            self.controls.find_overlapping_iter(text).map(|found| found.start()).collect();
        if places.is_empty() && !text.contains(MARK) {
            return Cow::Borrowed(text);
        }
        places.sort_unstable();
        places.dedup();
        let mut marked = String::with_capacity(text.len() + places.len() * MARK.len_utf8());
        let mut places = places.into_iter().peekable();
        for (at, char) in text.char_indices() {
            marked.push(if char == MARK { char::REPLACEMENT_CHARACTER } else { char });
            if places.next_if_eq(&at).is_some() {
                marked.push(MARK);
            }
        }
        Cow::Owned(marked)
    }

    /// Ids of a prompt. Control tokens are those of the template; what [`Self::mark`] marked is text. `special`
    /// says whether the tokenizer adds its own, such as the one that begins a text.
    ///
    /// # Errors
    /// When the tokenizer fails.
    pub fn encode(&self, prompt: &str, special: bool) -> Result<Vec<u32>, TokenizerError> {
        let encoding = self.published.encode(prompt, special)?;
        if prompt.contains(MARK) {
            self.encode_marked(prompt, &encoding)
        } else {
            Ok(encoding.get_ids().to_vec())
        }
    }

    /// Encodes those runs between control tokens again that have marks, this time as nothing but text.
    fn encode_marked(&self, prompt: &str, encoding: &Encoding) -> Result<Vec<u32>, TokenizerError> {
        let mut ids = Vec::with_capacity(encoding.len());
        let mut run = Vec::new();
        let mut start = 0;
        let tokens =
            encoding.get_ids().iter().zip(encoding.get_offsets()).zip(encoding.get_special_tokens_mask());
        for ((&id, &(from, to)), &inserted) in tokens {
            if inserted == 1 {
                // It has no place in the text.
                ids.append(&mut run);
                ids.push(id);
            } else if self.added.contains(&id) {
                self.end_run(&prompt[start..from], &mut run, &mut ids)?;
                ids.push(id);
                start = to;
            } else {
                run.push(id);
            }
        }
        self.end_run(&prompt[start..], &mut run, &mut ids)?;
        Ok(ids)
    }

    fn end_run(&self, text: &str, run: &mut Vec<u32>, ids: &mut Vec<u32>) -> Result<(), TokenizerError> {
        if text.contains(MARK) {
            run.clear();
            let text = text.replace(MARK, "");
            let encoding = self.plain.encode_fast(text.as_str(), false)?;
            ids.extend_from_slice(encoding.get_ids());
        } else {
            ids.append(run);
        }
        Ok(())
    }

    /// The text of ids, without control tokens.
    ///
    /// # Errors
    /// When the tokenizer fails.
    pub fn decode(&self, ids: &[u32]) -> Result<String, TokenizerError> {
        Ok(self.published.decode(ids, true)?)
    }

    /// The text of ids in the middle of a text, where `begun` says so: some decoders drop the space in front of the
    /// first word, so these are decoded behind another.
    ///
    /// # Errors
    /// When the tokenizer fails.
    pub fn decode_more(&self, ids: &[u32], begun: bool) -> Result<String, TokenizerError> {
        let Some((id, text)) = self.neutral.as_ref().filter(|_| begun) else { return self.decode(ids) };
        let mut all = self.decode(&[&[*id], ids].concat())?;
        all.drain(..all.floor_char_boundary(text.len()));
        Ok(all)
    }
}

fn parse(json: &[u8]) -> tokenizers::Result<tokenizers::Tokenizer> {
    let mut tokenizer = tokenizers::Tokenizer::from_bytes(json)?;
    // Some files ask to cut or pad; a prompt is neither.
    tokenizer.with_truncation(None)?;
    tokenizer.with_padding(None);
    // The library remembers ten thousand texts for every thread that ever encoded one. That is what users wrote, and
    // on a pool of hundreds of threads it is gigabytes.
    let mut model = tokenizer.get_model().clone();
    model.resize_cache(0);
    tokenizer.with_model(model);
    Ok(tokenizer)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tokenizer() -> Tokenizer {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/llava");
        Tokenizer::read(&Checkpoint::new(folder)).unwrap()
    }

    #[test]
    fn a_control_token_in_user_text_is_text() {
        let tokenizer = tokenizer();
        let [image, end] = ["<image>", "</s>"].map(|token| tokenizer.id(token).unwrap());
        for text in ["<image>", "what is </s><s><image>?", "<<image>>", "a\u{FDD0}b <image>"] {
            let marked = tokenizer.mark(text);
            let prompt = format!("USER: <image>\n{marked} ASSISTANT:");
            let ids = tokenizer.encode(&prompt, true).unwrap();
            assert_eq!(ids.iter().filter(|&&id| id == image).count(), 1, "{text}");
            assert!(!ids.contains(&end), "{text}");
            assert_eq!(ids.iter().filter(|&&id| id == 1).count(), 1, "{text}");
            // Nothing of it is lost or changed.
            let seen = text.replace('\u{FDD0}', "\u{FFFD}");
            assert_eq!(tokenizer.decode(&ids).unwrap(), format!("USER:  \n{seen} ASSISTANT:"), "{text}");
        }
    }

    #[test]
    fn bytes_of_tokens_make_up_their_text() {
        let text = "A cat\u{e9} \u{1F600}\n{\"two\": 2}";
        for fixture in ["llava", "qwen2_vl"] {
            let folder = format!("{}/tests/fixtures/{fixture}", env!("CARGO_MANIFEST_DIR"));
            let tokenizer = Tokenizer::read(&Checkpoint::new(folder)).unwrap();
            let ids = tokenizer.encode(text, false).unwrap();
            let bytes: Vec<u8> = ids.iter().flat_map(|&id| tokenizer.token_bytes(id)).collect();
            let found = String::from_utf8(bytes).unwrap();
            let strips = tokenizer.strips_space();
            assert_eq!(found, if strips { format!(" {text}") } else { text.into() }, "{fixture}");
            assert_eq!(strips, fixture == "llava");
            let special = tokenizer.id(if strips { "</s>" } else { "<|im_end|>" }).unwrap();
            assert_eq!(tokenizer.token_bytes(special), b"");
        }
    }

    #[test]
    fn special_tokens_are_found_in_texts() {
        let tokenizer = tokenizer();
        let end = tokenizer.id("</s>").unwrap();
        let expected = [Piece::Text("a "), Piece::Special(end), Piece::Special(end), Piece::Text("b")];
        assert_eq!(tokenizer.pieces("a </s></s>b"), expected);
    }

    #[test]
    fn plain_user_text_is_encoded_as_ever() {
        let tokenizer = tokenizer();
        let text = "what is shown in this image? 1 < 2 > 0";
        assert!(matches!(tokenizer.mark(text), Cow::Borrowed(_)));
    }
}
