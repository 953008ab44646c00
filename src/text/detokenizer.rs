//! Ids to text, piece by piece: never half a character, never a stop string or what may become one.

use std::sync::Arc;

use super::tokenizer::{Tokenizer, TokenizerError};

/// Bytes that are held back at most, waiting for the rest of a character.
const MOST_BYTES: usize = 16;

/// Turns ids into text as they come. What it gives, put together, is what decoding all ids at once gives.
#[derive(Debug)]
pub struct Detokenizer {
    tokenizer: Arc<Tokenizer>,
    /// Ids that are not text yet.
    ids: Vec<u32>,
    /// Whether any were.
    begun: bool,
}

impl Detokenizer {
    /// At the start of an answer; where it is `begun`, its first word is not the first one.
    pub fn new(tokenizer: Arc<Tokenizer>, begun: bool) -> Self {
        Self { tokenizer, ids: Vec::new(), begun }
    }

    /// The text that one more id completes; often a word, sometimes nothing yet.
    ///
    /// # Errors
    /// When the tokenizer fails.
    pub fn push(&mut self, id: u32) -> Result<String, TokenizerError> {
        self.ids.push(id);
        // A run of byte tokens is decoded as a whole: one broken character makes all its bytes unreadable.
        if self.tokenizer.byte(id).is_some() {
            if self.ids.len() < MOST_BYTES {
                return Ok(String::new());
            }
            if let Some(count) = self.whole_characters() {
                return self.give(count);
            }
        }
        let text = self.tokenizer.decode_more(&self.ids, self.begun)?;
        if text.ends_with(char::REPLACEMENT_CHARACTER) && self.ids.len() < MOST_BYTES {
            return Ok(String::new());
        }
        self.given(self.ids.len());
        Ok(text)
    }

    /// Of a long run of bytes that is good so far, how many make up complete characters.
    fn whole_characters(&self) -> Option<usize> {
        let bytes: Vec<u8> = self.ids.iter().map(|&id| self.tokenizer.byte(id)).collect::<Option<_>>()?;
        match std::str::from_utf8(&bytes) {
            Ok(text) => Some(text.len()),
            Err(error) => error.error_len().is_none().then_some(error.valid_up_to()),
        }
    }

    /// The text of the first ids.
    fn give(&mut self, count: usize) -> Result<String, TokenizerError> {
        let text = self.tokenizer.decode_more(&self.ids[..count], self.begun)?;
        self.given(count);
        Ok(text)
    }

    fn given(&mut self, count: usize) {
        // A control token leaves the next word the first one.
        self.begun |= self.ids.drain(..count).any(|id| !self.tokenizer.is_special(id));
    }

    /// The text of whatever is held back.
    ///
    /// # Errors
    /// When the tokenizer fails.
    pub fn finish(mut self) -> Result<String, TokenizerError> {
        self.give(self.ids.len())
    }
}

/// Cuts text at the first stop string, wherever the pieces break.
#[derive(Debug)]
pub struct Stops {
    stops: Vec<String>,
    held: String,
}

/// What [`Stops`] makes of a piece.
#[derive(Debug, PartialEq, Eq)]
pub enum Cut {
    /// Text that certainly belongs to the answer.
    Open(String),
    /// The last text of the answer, and the stop string that followed.
    Stopped(String, String),
}

impl Stops {
    /// Ends at any of `stops`, none of which is empty.
    pub fn new(stops: Vec<String>) -> Self {
        Self { stops, held: String::new() }
    }

    /// Adds a piece.
    pub fn push(&mut self, piece: &str) -> Cut {
        if self.stops.is_empty() {
            return Cut::Open(piece.to_owned());
        }
        self.held.push_str(piece);
        let found = self.stops.iter().filter_map(|stop| Some((self.held.find(stop)?, stop)));
        if let Some((at, stop)) = found.min_by_key(|(at, _)| *at) {
            self.held.truncate(at);
            return Cut::Stopped(std::mem::take(&mut self.held), stop.clone());
        }
        let keep = self.stops.iter().map(|stop| overlap(&self.held, stop)).max().unwrap_or(0);
        let open = self.held.len() - keep;
        let rest = self.held.split_off(open);
        Cut::Open(std::mem::replace(&mut self.held, rest))
    }

    /// What was held back, now that no stop string will follow.
    pub fn finish(self) -> String {
        self.held
    }
}

/// The length of the longest end of `text` that is a beginning of `stop`.
pub(super) fn overlap(text: &str, stop: &str) -> usize {
    let longest = text.len().min(stop.len() - 1);
    (1..=longest).rev().find(|&length| text.as_bytes().ends_with(&stop.as_bytes()[..length])).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use percept_models::Checkpoint;
    use proptest::{collection::vec, prelude::*};

    use super::*;

    fn tokenizer() -> Arc<Tokenizer> {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/llava");
        Arc::new(Tokenizer::read(&Checkpoint::new(folder)).unwrap())
    }

    fn pieces(tokenizer: &Arc<Tokenizer>, ids: &[u32]) -> Vec<String> {
        let mut detokenizer = Detokenizer::new(Arc::clone(tokenizer), false);
        let mut pieces: Vec<String> = ids.iter().map(|&id| detokenizer.push(id).unwrap()).collect();
        pieces.push(detokenizer.finish().unwrap());
        pieces
    }

    #[test]
    fn a_character_of_several_bytes_comes_whole() {
        let tokenizer = tokenizer();
        // U+1F600 as four byte tokens, then a word.
        let word = tokenizer.encode("hello", false).unwrap();
        let ids: Vec<u32> = "😀".bytes().map(|byte| 3 + u32::from(byte)).chain(word).collect();
        let pieces = pieces(&tokenizer, &ids);
        assert!(pieces.iter().all(|piece| !piece.contains('\u{FFFD}')));
        assert_eq!(pieces[..4], ["", "", "", ""]);
        assert_eq!(pieces.concat(), "😀 hello");
    }

    #[test]
    fn a_long_run_of_bytes_is_not_held_for_ever() {
        let tokenizer = tokenizer();
        let text = "สวัสดีครับ สบายดีไหม";
        let ids: Vec<u32> = text.bytes().map(|byte| 3 + u32::from(byte)).collect();
        let pieces = pieces(&tokenizer, &ids);
        assert_eq!(pieces.concat(), text);
        assert!(pieces.iter().filter(|piece| !piece.is_empty()).count() >= 3);
    }

    /// Bytes, words or control tokens, and a word that ends a run of bytes.
    fn run() -> impl Strategy<Value = (Vec<u32>, u32)> {
        let text = vec(any::<char>(), 1..12).prop_map(String::from_iter);
        let good = text.prop_map(|text| text.bytes().map(|byte| 3 + u32::from(byte)).collect());
        (prop_oneof![vec(3u32..259, 1..8), good, vec(259u32..480, 1..4), vec(0u32..3, 1..3)], 259u32..480)
    }

    #[test]
    fn no_space_is_lost_behind_long_runs_and_control_tokens() {
        let tokenizer = tokenizer();
        let word = tokenizer.encode("the", false).unwrap();
        for front in
            [vec![3 + u32::from(b'A'); 16], vec![3 + u32::from(b' '); 20], [word.clone(), vec![0]].concat()]
        {
            let ids = [front, word.clone()].concat();
            assert_eq!(pieces(&tokenizer, &ids).concat(), tokenizer.decode(&ids).unwrap());
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        /// Runs of bytes are shorter than what is held back, or good.
        #[test]
        fn pieces_make_up_the_whole(ids in vec(run(), 0..8)) {
            let tokenizer = tokenizer();
            let mut all = Vec::new();
            for (run, word) in ids {
                all.extend(run);
                all.push(word);
            }
            prop_assert_eq!(pieces(&tokenizer, &all).concat(), tokenizer.decode(&all).unwrap());
        }
    }

    fn cut(stops: &[&str], pieces: &[&str]) -> (String, bool) {
        let mut stops = Stops::new(stops.iter().map(ToString::to_string).collect());
        let mut text = String::new();
        for piece in pieces {
            match stops.push(piece) {
                Cut::Open(open) => text += &open,
                Cut::Stopped(last, stop) => {
                    assert!(pieces.concat()[(text.len() + last.len())..].starts_with(&stop));
                    return (text + &last, true);
                }
            }
        }
        (text + &stops.finish(), false)
    }

    #[test]
    fn stop_strings_are_found_across_pieces() {
        for (stops, pieces, expected) in [
            (&["STOP"][..], &["one ST", "OP two"][..], ("one ", true)),
            (&["STOP"], &["one ST", "AR two"], ("one STAR two", false)),
            (&["STOP"], &["one ST"], ("one ST", false)),
            (&["\n\n"], &["a\n", "b\n", "\nc"], ("a\nb", true)),
            (&["aab"], &["aa", "ab"], ("a", true)),
            (&["b", "ab"], &["xab"], ("x", true)),
            (&["é"], &["caf", "é!"], ("caf", true)),
            (&["ö"], &["caf", "é!"], ("café!", false)),
            (&[], &["a", "b"], ("ab", false)),
        ] {
            assert_eq!(cut(stops, pieces), (expected.0.to_owned(), expected.1), "{stops:?} {pieces:?}");
        }
    }
}
