//! Languages by their codes, names and other names, as openai/whisper knows them.
//!
//! Source: `LANGUAGES` and `TO_LANGUAGE_CODE` of openai/whisper, `whisper/tokenizer.py`.

/// Codes and English names.
const LANGUAGES: [(&str, &str); 100] = [
    ("en", "english"),
    ("zh", "chinese"),
    ("de", "german"),
    ("es", "spanish"),
    ("ru", "russian"),
    ("ko", "korean"),
    ("fr", "french"),
    ("ja", "japanese"),
    ("pt", "portuguese"),
    ("tr", "turkish"),
    ("pl", "polish"),
    ("ca", "catalan"),
    ("nl", "dutch"),
    ("ar", "arabic"),
    ("sv", "swedish"),
    ("it", "italian"),
    ("id", "indonesian"),
    ("hi", "hindi"),
    ("fi", "finnish"),
    ("vi", "vietnamese"),
    ("he", "hebrew"),
    ("uk", "ukrainian"),
    ("el", "greek"),
    ("ms", "malay"),
    ("cs", "czech"),
    ("ro", "romanian"),
    ("da", "danish"),
    ("hu", "hungarian"),
    ("ta", "tamil"),
    ("no", "norwegian"),
    ("th", "thai"),
    ("ur", "urdu"),
    ("hr", "croatian"),
    ("bg", "bulgarian"),
    ("lt", "lithuanian"),
    ("la", "latin"),
    ("mi", "maori"),
    ("ml", "malayalam"),
    ("cy", "welsh"),
    ("sk", "slovak"),
    ("te", "telugu"),
    ("fa", "persian"),
    ("lv", "latvian"),
    ("bn", "bengali"),
    ("sr", "serbian"),
    ("az", "azerbaijani"),
    ("sl", "slovenian"),
    ("kn", "kannada"),
    ("et", "estonian"),
    ("mk", "macedonian"),
    ("br", "breton"),
    ("eu", "basque"),
    ("is", "icelandic"),
    ("hy", "armenian"),
    ("ne", "nepali"),
    ("mn", "mongolian"),
    ("bs", "bosnian"),
    ("kk", "kazakh"),
    ("sq", "albanian"),
    ("sw", "swahili"),
    ("gl", "galician"),
    ("mr", "marathi"),
    ("pa", "punjabi"),
    ("si", "sinhala"),
    ("km", "khmer"),
    ("sn", "shona"),
    ("yo", "yoruba"),
    ("so", "somali"),
    ("af", "afrikaans"),
    ("oc", "occitan"),
    ("ka", "georgian"),
    ("be", "belarusian"),
    ("tg", "tajik"),
    ("sd", "sindhi"),
    ("gu", "gujarati"),
    ("am", "amharic"),
    ("yi", "yiddish"),
    ("lo", "lao"),
    ("uz", "uzbek"),
    ("fo", "faroese"),
    ("ht", "haitian creole"),
    ("ps", "pashto"),
    ("tk", "turkmen"),
    ("nn", "nynorsk"),
    ("mt", "maltese"),
    ("sa", "sanskrit"),
    ("lb", "luxembourgish"),
    ("my", "myanmar"),
    ("bo", "tibetan"),
    ("tl", "tagalog"),
    ("mg", "malagasy"),
    ("as", "assamese"),
    ("tt", "tatar"),
    ("haw", "hawaiian"),
    ("ln", "lingala"),
    ("ha", "hausa"),
    ("ba", "bashkir"),
    ("jw", "javanese"),
    ("su", "sundanese"),
    ("yue", "cantonese"),
];

/// Other names, and codes that ISO 639-1 has where Whisper has another.
const OTHER_NAMES: [(&str, &str); 16] = [
    ("burmese", "my"),
    ("valencian", "ca"),
    ("flemish", "nl"),
    ("haitian", "ht"),
    ("letzeburgesch", "lb"),
    ("pushto", "ps"),
    ("panjabi", "pa"),
    ("moldavian", "ro"),
    ("moldovan", "ro"),
    ("sinhalese", "si"),
    ("castilian", "es"),
    ("mandarin", "zh"),
    ("jv", "jw"),
    ("nb", "no"),
    ("iw", "he"),
    ("fil", "tl"),
];

/// The English name of a language, such as `german` for `de`.
pub fn name(code: &str) -> Option<&'static str> {
    LANGUAGES.iter().find(|(known, _)| *known == code).map(|(_, name)| *name)
}

/// The code of a language, by its code, one with a region (`de-AT`), its name or another name; `None` where there is no
/// such language.
pub fn code(text: &str) -> Option<&'static str> {
    let text = text.trim().to_lowercase();
    let known = |text: &str| {
        let named =
            LANGUAGES.iter().find(|(code, name)| *code == text || *name == text).map(|(code, _)| *code);
        named.or_else(|| OTHER_NAMES.iter().find(|(other, _)| *other == text).map(|(_, code)| *code))
    };
    known(&text).or_else(|| known(text.split_once(['-', '_'])?.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_language_is_known_by_all_its_names() {
        for (text, expected) in [
            ("en", Some("en")),
            ("English", Some("en")),
            ("GERMAN", Some("de")),
            (" de ", Some("de")),
            ("en-US", Some("en")),
            ("pt_BR", Some("pt")),
            ("zh-Hant-TW", Some("zh")),
            ("mandarin", Some("zh")),
            ("castilian", Some("es")),
            ("Haitian Creole", Some("ht")),
            ("haitian", Some("ht")),
            ("yue", Some("yue")),
            ("jv", Some("jw")),
            ("hh", None),
            ("", None),
            ("-", None),
            ("englishh", None),
            ("<|en|>", None),
        ] {
            assert_eq!(code(text), expected, "{text}");
        }
    }

    #[test]
    fn no_name_means_two_languages() {
        let mut all: Vec<&str> = LANGUAGES.iter().flat_map(|(code, name)| [*code, *name]).collect();
        all.extend(OTHER_NAMES.iter().map(|(other, _)| *other));
        let count = all.len();
        all.sort_unstable();
        all.dedup();
        assert_eq!(all.len(), count);
        for (other, code) in OTHER_NAMES {
            assert!(name(code).is_some(), "{other}");
        }
    }
}
