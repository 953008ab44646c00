//! Tokens to words.

/// Languages whose words have no spaces between them: every character that is whole is a word.
const WITHOUT_SPACES: [&str; 6] = ["zh", "ja", "th", "lo", "my", "yue"];

/// Python's `string.punctuation`.
const PUNCTUATION: &str = "!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~";

const REPLACEMENT: char = char::REPLACEMENT_CHARACTER;

/// Splits tokens into words. `decode` gives the text of some tokens, with U+FFFD for bytes that are no character;
/// ids from `eot` on are words of their own.
///
/// What is broken at the end of the text can be left out, as it is in the reference.
pub fn split_words(
    tokens: &[u32],
    decode: &dyn Fn(&[u32]) -> String,
    language: &str,
    eot: u32,
) -> Vec<(String, Vec<u32>)> {
    let pieces = split_characters(tokens, decode);
    if WITHOUT_SPACES.contains(&language) {
        return pieces;
    }
    let mut words: Vec<(String, Vec<u32>)> = Vec::with_capacity(pieces.len());
    for (piece, tokens) in pieces {
        let special = tokens.first().is_some_and(|&token| token >= eot);
        let begins = special || piece.starts_with(' ') || PUNCTUATION.contains(super::strip(&piece));
        match words.last_mut() {
            Some((word, of_word)) if !begins => {
                word.push_str(&piece);
                of_word.extend(tokens);
            }
            _ => words.push((piece, tokens)),
        }
    }
    words
}

/// Cuts wherever the tokens since the last cut are whole characters. A U+FFFD counts as one where the text as a whole
/// has it too.
fn split_characters(tokens: &[u32], decode: &dyn Fn(&[u32]) -> String) -> Vec<(String, Vec<u32>)> {
    let whole: Vec<char> = decode(tokens).chars().collect();
    let mut pieces = Vec::new();
    let mut first = 0;
    let mut offset = 0;
    for end in 1..=tokens.len() {
        let piece = decode(&tokens[first..end]);
        let broken = piece.chars().position(|char| char == REPLACEMENT);
        if broken.is_none_or(|place| whole.get(offset + place) == Some(&REPLACEMENT)) {
            offset += piece.chars().count();
            pieces.push((piece, tokens[first..end].to_vec()));
            first = end;
        }
    }
    pieces
}
