//! Transcripts as files: SRT, WebVTT, tab-separated values, plain text.
//!
//! As openai/whisper's `whisper/utils.py` writes them, but that what has no text gives no cue, and that no text can
//! break a file: breaks of lines inside text are spaces, and `-->` never stays.

use super::{Segment, Word, words::strip};

/// How text is put into cues. The limits are of use where segments have words.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Style {
    /// Most characters of a line; 0 is no limit, as in those below.
    pub max_line_width: Option<usize>,
    /// Most lines of a cue. With a width too, cues no longer follow segments, and a pause of 3 seconds ends one.
    pub max_line_count: Option<usize>,
    /// Most words of a cue, where there is no width.
    pub max_words_per_line: Option<usize>,
    /// Whether there is a cue for every word, which is underlined in it.
    pub highlight_words: bool,
    /// Who speaks on each channel, in front of what they say. Empty where that is not to be told.
    pub speakers: Vec<String>,
}

impl Style {
    fn speaker(&self, channel: usize) -> Option<String> {
        let name = self.speakers.get(channel)?;
        Some(one_line(strip(name))).filter(|name| !name.is_empty())
    }
}

/// SubRip.
pub fn srt(segments: &[Segment], style: &Style) -> String {
    let mut file = String::new();
    for (index, cue) in cues(segments, style, &Markup::Srt).iter().enumerate() {
        let (start, end) = (clock(cue.start, Hours::Always, ','), clock(cue.end, Hours::Always, ','));
        file += &format!("{}\n{start} --> {end}\n{}\n\n", index + 1, cue.text);
    }
    file
}

/// WebVTT.
pub fn vtt(segments: &[Segment], style: &Style) -> String {
    let mut file = String::from("WEBVTT\n\n");
    for cue in cues(segments, style, &Markup::Vtt) {
        let (start, end) = (clock(cue.start, Hours::IfAny, '.'), clock(cue.end, Hours::IfAny, '.'));
        file += &format!("{start} --> {end}\n{}\n\n", cue.text);
    }
    file
}

/// Start and end in milliseconds and the text of each segment, with a line of headings.
pub fn tsv(segments: &[Segment], style: &Style) -> String {
    let mut file = String::from("start\tend\ttext\n");
    for (segment, text) in lines(segments, style) {
        let text = text.replace('\t', " ");
        file += &format!("{}\t{}\t{text}\n", milliseconds(segment.start), milliseconds(segment.end));
    }
    file
}

/// A line for each segment.
pub fn txt(segments: &[Segment], style: &Style) -> String {
    lines(segments, style).map(|(_, text)| text + "\n").collect()
}

/// Segments that have text, and their text in one line.
fn lines<'a>(segments: &'a [Segment], style: &'a Style) -> impl Iterator<Item = (&'a Segment, String)> {
    segments.iter().filter_map(|segment| {
        let text = one_line(strip(&segment.text));
        if text.is_empty() {
            return None;
        }
        let speaker = style.speaker(segment.channel);
        Some((segment, speaker.map_or(text.clone(), |name| format!("{name}: {text}"))))
    })
}

/// What is shown for a while. Times are in milliseconds.
struct Cue {
    start: u64,
    end: u64,
    text: String,
}

/// What text may not contain besides `-->`.
enum Markup {
    /// Nothing more.
    Srt,
    /// `<`, which begins a tag.
    Vtt,
}

impl Markup {
    fn escape(&self, text: &str) -> String {
        match self {
            Self::Srt => text.to_owned(),
            Self::Vtt => text.replace('<', "&lt;"),
        }
    }
}

fn cues(segments: &[Segment], style: &Style, markup: &Markup) -> Vec<Cue> {
    let groups = Groups::of(segments, style);
    let mut cues = Vec::new();
    for group in groups {
        let words = group.words.iter().map(|word| markup.escape(&word.text)).collect();
        let speaker = style.speaker(group.channel).map(|name| markup.escape(&name));
        let shown = Shown { words, speaker };
        if style.highlight_words && group.has_words {
            highlighted(&group, &shown, &mut cues);
        } else if let (Some(first), Some(last)) = (group.words.first(), group.words.last()) {
            cues.push(Cue { start: first.start, end: last.end, text: shown.text(None) });
        }
    }
    cues
}

/// A cue for each word, and one for each pause between words.
fn highlighted(group: &Group, shown: &Shown, cues: &mut Vec<Cue>) {
    let mut last = group.words.first().map_or(0, |word| word.start);
    for (index, word) in group.words.iter().enumerate() {
        if last != word.start {
            cues.push(Cue { start: last, end: word.start, text: shown.text(None) });
        }
        cues.push(Cue { start: word.start, end: word.end, text: shown.text(Some(index)) });
        last = word.end;
    }
}

/// What a cue says.
struct Shown {
    words: Vec<String>,
    speaker: Option<String>,
}

impl Shown {
    fn text(&self, underlined: Option<usize>) -> String {
        let mut text = String::new();
        if let Some(speaker) = &self.speaker {
            text += &format!("{speaker}: ");
        }
        for (index, word) in self.words.iter().enumerate() {
            if underlined == Some(index) {
                let bare = word.trim_start();
                text += &format!("{}<u>{bare}</u>", &word[..word.len() - bare.len()]);
            } else {
                text += word;
            }
        }
        without_arrows(text.trim_end_matches('\n'))
    }
}

/// `-->` stands between two times and nowhere else.
fn without_arrows(text: &str) -> String {
    let mut text = text.to_owned();
    // A longer arrow leaves a shorter one.
    while text.contains("-->") {
        text = text.replace("-->", "->");
    }
    text
}

/// Text of which no reader makes two lines.
fn one_line(text: &str) -> String {
    let ends_line =
        |char: char| matches!(char, '\n'..='\r' | '\u{1C}'..='\u{1E}' | '\u{85}' | '\u{2028}' | '\u{2029}');
    let mut line = String::with_capacity(text.len());
    let mut pieces = text.split(ends_line).filter(|piece| !piece.is_empty());
    line.extend(pieces.next());
    pieces.for_each(|piece| {
        line.push(' ');
        line.push_str(piece);
    });
    line
}

/// A word as it is shown: with the space or the line break in front.
struct Placed {
    text: String,
    start: u64,
    end: u64,
}

/// Words that are shown together.
#[derive(Default)]
struct Group {
    words: Vec<Placed>,
    channel: usize,
    /// Whether these are words, and not one text.
    has_words: bool,
}

impl Group {
    fn has_text(&self) -> bool {
        self.words.iter().any(|word| !strip(&word.text).is_empty())
    }
}

/// Cuts words into lines and lines into groups.
struct Groups {
    done: Vec<Group>,
    group: Group,
    line_width: usize,
    lines: usize,
    last_start: f64,
    most_width: usize,
    most_lines: Option<usize>,
    most_words: usize,
    /// Whether a group ends with its segment.
    by_segment: bool,
    by_channel: bool,
}

impl Groups {
    fn of(segments: &[Segment], style: &Style) -> Vec<Group> {
        // Nobody makes such a line, so it is no limit.
        const MANY: usize = 1000;
        let limit = |limit: Option<usize>| limit.filter(|&limit| limit > 0);
        let (width, lines) = (limit(style.max_line_width), limit(style.max_line_count));
        let first_word = segments.iter().find_map(|segment| segment.words.first());
        let mut groups = Self {
            done: Vec::new(),
            group: Group::default(),
            line_width: 0,
            lines: 1,
            last_start: first_word.map_or(0.0, |word| word.start),
            most_width: width.unwrap_or(MANY),
            most_lines: lines,
            most_words: limit(style.max_words_per_line).unwrap_or(MANY),
            by_segment: width.is_none() || lines.is_none(),
            by_channel: !style.speakers.is_empty(),
        };
        for segment in segments {
            groups.add(segment);
        }
        groups.end();
        groups.done.retain(Group::has_text);
        groups.done
    }

    fn add(&mut self, segment: &Segment) {
        if segment.words.is_empty() {
            return self.add_whole(segment);
        }
        if self.by_channel && self.group.channel != segment.channel {
            self.end();
        }
        for words in segment.words.chunks(self.most_words) {
            for (index, word) in words.iter().enumerate() {
                let place = if index == 0 { Place::First } else { Place::Within };
                self.add_word(word, place);
                self.group.channel = segment.channel;
            }
        }
    }

    /// A segment of which no words are known is shown by itself.
    fn add_whole(&mut self, segment: &Segment) {
        let text = one_line(strip(&segment.text));
        if text.is_empty() {
            return;
        }
        self.end();
        let (start, end) = (milliseconds(segment.start), milliseconds(segment.end));
        let words = vec![Placed { text, start, end }];
        self.done.push(Group { words, channel: segment.channel, has_words: false });
    }

    fn end(&mut self) {
        let group = std::mem::take(&mut self.group);
        if !group.words.is_empty() {
            self.done.push(group);
        }
        self.line_width = 0;
        self.lines = 1;
    }

    fn add_word(&mut self, word: &Word, place: Place) {
        let mut text = one_line(&word.word);
        let width = text.chars().count();
        let begun = !self.group.words.is_empty();
        let pause = !self.by_segment && word.start - self.last_start > 3.0;
        let new_segment = place == Place::First && begun && self.by_segment;
        let fits = self.line_width > 0 && self.line_width + width <= self.most_width;
        if fits && !pause && !new_segment {
            self.line_width += width;
        } else {
            let bare = strip(&text);
            let bare_width = bare.chars().count();
            let full = self.most_lines.is_some_and(|most| pause || self.lines >= most);
            if begun && full || new_segment {
                text = bare.to_owned();
                self.end();
            } else if self.line_width > 0 {
                text = format!("\n{bare}");
                self.lines += 1;
            } else {
                text = bare.to_owned();
            }
            self.line_width = bare_width;
        }
        let (start, end) = (milliseconds(word.start), milliseconds(word.end));
        self.group.words.push(Placed { text, start, end });
        self.group.has_words = true;
        self.last_start = word.start;
    }
}

/// Where in its segment, or in the words that may be shown together, a word is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Place {
    First,
    Within,
}

/// Halves to the even number, as Python rounds.
fn milliseconds(seconds: f64) -> u64 {
    (seconds * 1000.0).round_ties_even() as u64
}

/// Whether a time of less than an hour has a place for hours.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Hours {
    Always,
    IfAny,
}

fn clock(milliseconds: u64, hours: Hours, point: char) -> String {
    let (seconds, millis) = (milliseconds / 1000, milliseconds % 1000);
    let rest = format!("{:02}:{:02}{point}{millis:03}", seconds / 60 % 60, seconds % 60);
    match (seconds / 3600, hours) {
        (0, Hours::IfAny) => rest,
        (count, _) => format!("{count:02}:{rest}"),
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use proptest::prelude::*;
    use serde_json::Value;

    use super::*;

    fn segment(start: f64, end: f64, text: &str) -> Segment {
        Segment {
            id: 0,
            seek: 0,
            start,
            end,
            text: text.to_owned(),
            tokens: Vec::new(),
            logprobs: Vec::new(),
            temperature: 0.0,
            avg_logprob: 0.0,
            compression_ratio: 1.0,
            no_speech_prob: 0.0,
            words: Vec::new(),
            channel: 0,
        }
    }

    fn word(word: &str, start: f64, end: f64) -> Word {
        Word { word: word.to_owned(), start, end, probability: 1.0 }
    }

    fn spoken(words: Vec<Word>) -> Segment {
        let text: String = words.iter().map(|word| word.word.as_str()).collect();
        let (start, end) = (words[0].start, words[words.len() - 1].end);
        Segment { words, ..segment(start, end, &text) }
    }

    /// Segments, limits, highlight, and what each of the reference's writers makes of them.
    type Case = (
        Vec<(f64, f64, String, Vec<(String, f64, f64)>)>,
        [Option<usize>; 3],
        bool,
        String,
        String,
        String,
        String,
    );

    #[test]
    fn files_are_those_of_the_reference() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/speech/subtitles.json");
        let cases: Vec<Value> = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
        assert!(cases.len() > 40);
        for case in cases {
            let (listed, [width, count, words], highlight_words, as_srt, as_vtt, as_tsv, as_txt): Case =
                serde_json::from_value(case).unwrap();
            let segments: Vec<Segment> = listed
                .into_iter()
                .map(|(start, end, text, words)| Segment {
                    words: words.iter().map(|(text, start, end)| word(text, *start, *end)).collect(),
                    ..segment(start, end, &text)
                })
                .collect();
            let style = Style {
                max_line_width: width,
                max_line_count: count,
                max_words_per_line: words,
                highlight_words,
                speakers: Vec::new(),
            };
            assert_eq!(srt(&segments, &style), as_srt, "{style:?}");
            assert_eq!(vtt(&segments, &style), as_vtt, "{style:?}");
            assert_eq!(tsv(&segments, &style), as_tsv);
            assert_eq!(txt(&segments, &style), as_txt);
        }
    }

    #[test]
    fn hours_are_shown_where_they_belong() {
        assert_eq!(clock(0, Hours::Always, ','), "00:00:00,000");
        assert_eq!(clock(3_599_999, Hours::IfAny, '.'), "59:59.999");
        assert_eq!(clock(3_600_000, Hours::IfAny, '.'), "01:00:00.000");
        assert_eq!(clock(400_000_001, Hours::Always, ','), "111:06:40,001");
        assert_eq!(milliseconds(1.0005), 1000);
        assert_eq!(milliseconds(1.0015), 1002);
        assert_eq!(milliseconds(-1.0), 0);
        assert_eq!(milliseconds(f64::NAN), 0);
    }

    #[test]
    fn what_has_no_text_gives_no_cue() {
        let segments = [segment(0.0, 1.0, ""), segment(1.0, 2.0, " one"), segment(2.0, 3.0, " \n")];
        assert_eq!(srt(&segments, &Style::default()), "1\n00:00:01,000 --> 00:00:02,000\none\n\n");
        assert_eq!(txt(&segments, &Style::default()), "one\n");
        assert_eq!(tsv(&segments, &Style::default()), "start\tend\ttext\n1000\t2000\tone\n");
        assert_eq!(vtt(&[], &Style::default()), "WEBVTT\n\n");
        let blank = [spoken(vec![word(" ", 0.0, 1.0)])];
        let highlight = Style { highlight_words: true, ..Style::default() };
        assert_eq!(srt(&blank, &highlight), "");
    }

    #[test]
    fn a_segment_without_words_is_not_lost_among_others() {
        let segments = [
            spoken(vec![word(" one", 0.0, 1.0)]),
            segment(1.0, 2.0, " two"),
            spoken(vec![word(" three", 2.0, 3.0)]),
        ];
        let style = Style {
            max_line_width: Some(40),
            max_line_count: Some(2),
            highlight_words: true,
            ..Style::default()
        };
        let file = srt(&segments, &style);
        let texts: Vec<&str> = file.lines().skip(2).step_by(4).collect();
        assert_eq!(texts, ["<u>one</u>", "two", "<u>three</u>"]);
    }

    #[test]
    fn speakers_are_named_and_never_share_a_cue() {
        let mut segments = [spoken(vec![word(" Hi", 0.0, 1.0)]), spoken(vec![word(" Ho", 1.0, 2.0)])];
        segments[1].channel = 1;
        let style = Style {
            max_line_width: Some(40),
            max_line_count: Some(2),
            speakers: vec![String::from("A"), String::from("B <x>")],
            ..Style::default()
        };
        assert_eq!(
            vtt(&segments, &style),
            "WEBVTT\n\n00:00.000 --> 00:01.000\nA: Hi\n\n00:01.000 --> 00:02.000\nB &lt;x>: Ho\n\n"
        );
        assert_eq!(txt(&segments, &style), "A: Hi\nB <x>: Ho\n");
        let together = Style { speakers: Vec::new(), ..style };
        assert_eq!(srt(&segments, &together), "1\n00:00:00,000 --> 00:00:02,000\nHi Ho\n\n");
    }

    #[test]
    fn text_cannot_break_a_file() {
        let text = "\n\n2\r\n00:00:00,000 --> 00:00:09,000\n\nevil ---> <v x>\u{2028}\u{85}end";
        let expected = "2 00:00:00,000 -> 00:00:09,000 evil -> ";
        let file = vtt(&[segment(0.0, 1.0, text)], &Style::default());
        assert_eq!(file, format!("WEBVTT\n\n00:00.000 --> 00:01.000\n{expected}&lt;v x> end\n\n"));
        let words = vec![word(" --", 0.0, 0.5), word(">\n\nx", 0.5, 1.0)];
        assert_eq!(srt(&[spoken(words)], &Style::default()), "1\n00:00:00,000 --> 00:00:01,000\n-> x\n\n");
    }

    /// A reader of SRT that knows nothing of the writer: blank lines end cues.
    fn read_srt(file: &str) -> Vec<String> {
        let blocks: Vec<&str> = file.split("\n\n").filter(|block| !block.is_empty()).collect();
        let mut texts = Vec::new();
        for (index, block) in blocks.iter().enumerate() {
            let mut lines = block.splitn(3, '\n');
            assert_eq!(lines.next(), Some((index + 1).to_string().as_str()), "{file:?}");
            assert_eq!(lines.next().unwrap().matches("-->").count(), 1, "{file:?}");
            let text = lines.next().unwrap();
            assert!(!text.contains("-->") && !strip(text).is_empty(), "{file:?}");
            texts.push(text.to_owned());
        }
        texts
    }

    /// Without what writing may change: white space and arrows, and without tags.
    fn essence(text: &str) -> String {
        let text = text.replace("<u>", "").replace("</u>", "");
        text.chars().filter(|&char| !char.is_whitespace() && char != '-' && char != '>').collect()
    }

    proptest! {
        #[test]
        fn any_text_survives(
            texts in prop::collection::vec(prop::collection::vec("( ?[a-c\u{e9}>\n\r\u{2028}\t-]{0,5})", 0..6), 0..5),
            limits in prop::array::uniform3(prop::option::of(0usize..12)),
            highlight_words in any::<bool>(),
            with_words in any::<bool>(),
        ) {
            let mut time = 0.0;
            let mut segments = Vec::new();
            for words in &texts {
                let place = |text: &String| {
                    time += 1.0;
                    word(text, time, time + 0.5)
                };
                let words: Vec<Word> = words.iter().map(place).collect();
                let text: String = words.iter().map(|word| word.word.as_str()).collect();
                let words = if with_words { words } else { Vec::new() };
                segments.push(Segment { words, ..segment(time, time + 1.0, &text) });
            }
            let [max_line_width, max_line_count, max_words_per_line] = limits;
            let style = Style {
                max_line_width, max_line_count, max_words_per_line, highlight_words, speakers: Vec::new(),
            };
            let shown = read_srt(&srt(&segments, &style));
            let all: String = texts.concat().concat();
            if highlight_words && with_words {
                let every = shown.concat();
                prop_assert!(essence(&all).chars().all(|char| every.contains(char)));
            } else {
                prop_assert_eq!(essence(&shown.concat()), essence(&all));
            }
            prop_assert_eq!(essence(&txt(&segments, &style)), essence(&all));
        }
    }
}
