//! Words that make a question of a given length.

use rand::{RngExt as _, SeedableRng as _};
use rand_pcg::Pcg64;

/// Ordinary English words. Most tokenizers have most of them, with the space in front, as one token.
pub const WORDS: [&str; 160] = [
    "about",
    "above",
    "across",
    "after",
    "again",
    "against",
    "air",
    "all",
    "almost",
    "along",
    "also",
    "always",
    "among",
    "animal",
    "answer",
    "any",
    "area",
    "around",
    "back",
    "base",
    "because",
    "become",
    "been",
    "before",
    "began",
    "behind",
    "being",
    "best",
    "better",
    "between",
    "big",
    "body",
    "book",
    "both",
    "box",
    "boy",
    "bring",
    "build",
    "call",
    "came",
    "car",
    "care",
    "center",
    "change",
    "city",
    "class",
    "close",
    "cold",
    "color",
    "common",
    "complete",
    "could",
    "country",
    "course",
    "cover",
    "cut",
    "dark",
    "day",
    "deep",
    "did",
    "different",
    "direct",
    "door",
    "down",
    "draw",
    "dry",
    "during",
    "early",
    "earth",
    "east",
    "easy",
    "end",
    "enough",
    "even",
    "ever",
    "every",
    "example",
    "eye",
    "face",
    "fact",
    "family",
    "far",
    "fast",
    "father",
    "feel",
    "few",
    "field",
    "figure",
    "final",
    "find",
    "fine",
    "fire",
    "first",
    "five",
    "follow",
    "food",
    "force",
    "form",
    "found",
    "four",
    "free",
    "friend",
    "front",
    "full",
    "game",
    "general",
    "girl",
    "give",
    "gold",
    "good",
    "government",
    "great",
    "green",
    "ground",
    "group",
    "grow",
    "half",
    "hand",
    "hard",
    "head",
    "hear",
    "heart",
    "heat",
    "help",
    "here",
    "high",
    "home",
    "horse",
    "hot",
    "hour",
    "house",
    "human",
    "idea",
    "interest",
    "island",
    "keep",
    "kind",
    "king",
    "know",
    "land",
    "language",
    "large",
    "last",
    "late",
    "learn",
    "leave",
    "left",
    "length",
    "letter",
    "level",
    "life",
    "light",
    "line",
    "list",
    "little",
    "long",
    "look",
    "low",
    "machine",
    "made",
];

/// A text of so many words. Different numbers differ from the first words on, so that no beginning is shared.
pub(super) fn text(words: usize, seed: u64, index: u64) -> String {
    let mut draws = Pcg64::seed_from_u64(seed ^ index.wrapping_mul(0x9e37_79b9_7f4a_7c15));
    let mut text = String::with_capacity(words * 8);
    for word in 0..words {
        if word > 0 {
            text.push(' ');
        }
        text.push_str(WORDS[draws.random_range(0..WORDS.len())]);
    }
    text
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn texts_have_their_length_and_begin_differently() {
        assert_eq!(text(20, 1, 0).split(' ').count(), 20);
        assert_eq!(text(20, 1, 5), text(20, 1, 5));
        let beginnings: HashSet<String> = (0..2000).map(|index| text(4, 1, index)).collect();
        assert!(beginnings.len() > 1995, "{}", beginnings.len());
        assert_ne!(text(20, 1, 0), text(20, 2, 0));
        let words: HashSet<_> = WORDS.iter().collect();
        assert_eq!(words.len(), WORDS.len());
    }
}
