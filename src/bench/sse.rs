//! Server-sent events as they are received: pieces of bytes to pieces of an answer, with little work for each.

use std::borrow::Cow;

use serde::{Deserialize, de::IgnoredAny};

use super::client::Usage;

/// Longest line that is taken; a server that sends a longer one is broken.
const MOST_LINE: usize = 16 << 20;

/// What a line of a stream says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Said {
    /// Some text.
    Text,
    /// How many tokens there were; with some text in the same piece, or without.
    Usage {
        /// The tokens.
        usage: Usage,
        /// Whether there is text, too.
        text: bool,
    },
    /// It is complete.
    Done,
    /// The server failed after it had begun.
    Error(String),
    /// No event as it should be.
    Strange(String),
}

/// Cuts a stream into lines and reads them.
#[derive(Debug, Default)]
pub struct Reader {
    /// The beginning of a line whose end has not come.
    open: Vec<u8>,
    /// What the server says changes when its answers may.
    pub fingerprint: Option<String>,
}

impl Reader {
    /// Reads some bytes and tells what they say, in order.
    pub fn push(&mut self, bytes: &[u8], mut said: impl FnMut(Said)) {
        let mut rest = bytes;
        while let Some(end) = memchr::memchr(b'\n', rest) {
            let (line, behind) = (&rest[..end], &rest[end + 1..]);
            if self.open.is_empty() {
                self.line(line, &mut said);
            } else {
                let mut whole = std::mem::take(&mut self.open);
                whole.extend_from_slice(line);
                self.line(&whole, &mut said);
            }
            rest = behind;
        }
        if self.open.len() + rest.len() > MOST_LINE {
            self.open.clear();
            return said(Said::Strange(format!("a line of more than {MOST_LINE} bytes")));
        }
        self.open.extend_from_slice(rest);
    }

    fn line(&mut self, line: &[u8], said: &mut impl FnMut(Said)) {
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        // Comments, and names of events: what an event is can be told by what is in it.
        let Some(data) = line.strip_prefix(b"data:") else { return };
        let data = data.trim_ascii();
        if data == b"[DONE]" {
            return said(Said::Done);
        }
        match serde_json::from_slice::<Piece<'_>>(data) {
            Ok(piece) => self.piece(&piece, data, said),
            Err(error) => said(Said::Strange(format!("an event that cannot be read: {error}"))),
        }
    }

    fn piece(&mut self, piece: &Piece<'_>, data: &[u8], said: &mut impl FnMut(Said)) {
        if piece.error.is_some() {
            return said(Said::Error(error_message(data)));
        }
        if let (None, Some(fingerprint)) = (&self.fingerprint, &piece.system_fingerprint) {
            self.fingerprint = Some(fingerprint.clone().into_owned());
        }
        let text = piece.choices.iter().any(Choice::has_text);
        match &piece.usage {
            Some(usage) => said(Said::Usage { usage: usage.into(), text }),
            None if text => said(Said::Text),
            None => {}
        }
    }
}

/// What is looked at of an event; the rest is skipped.
#[derive(Deserialize)]
struct Piece<'a> {
    #[serde(borrow, default)]
    choices: Vec<Choice<'a>>,
    usage: Option<WireUsage>,
    error: Option<IgnoredAny>,
    #[serde(borrow)]
    system_fingerprint: Option<Cow<'a, str>>,
}

#[derive(Deserialize)]
struct Choice<'a> {
    #[serde(borrow)]
    delta: Option<Delta<'a>>,
}

/// Models that think aloud have their thoughts under one of two names.
#[derive(Deserialize)]
struct Delta<'a> {
    #[serde(borrow)]
    content: Option<Cow<'a, str>>,
    #[serde(borrow)]
    reasoning_content: Option<Cow<'a, str>>,
    #[serde(borrow)]
    reasoning: Option<Cow<'a, str>>,
}

impl Choice<'_> {
    fn has_text(&self) -> bool {
        let Some(delta) = &self.delta else { return false };
        let texts = [&delta.content, &delta.reasoning_content, &delta.reasoning];
        texts.into_iter().flatten().any(|text| !text.is_empty())
    }
}

/// Tokens as chats and transcripts count them.
#[derive(Deserialize)]
pub(super) struct WireUsage {
    #[serde(alias = "input_tokens")]
    prompt_tokens: Option<u64>,
    #[serde(alias = "output_tokens")]
    completion_tokens: Option<u64>,
    prompt_tokens_details: Option<PromptDetails>,
}

#[derive(Deserialize)]
struct PromptDetails {
    cached_tokens: Option<u64>,
}

impl WireUsage {
    /// Whether it counts tokens; transcripts may count seconds instead.
    pub(super) fn counts(&self) -> bool {
        self.completion_tokens.is_some()
    }
}

impl From<&WireUsage> for Usage {
    fn from(usage: &WireUsage) -> Self {
        let details = usage.prompt_tokens_details.as_ref();
        Self {
            prompt: usage.prompt_tokens.unwrap_or(0),
            cached: details.and_then(|details| details.cached_tokens).unwrap_or(0),
            completion: usage.completion_tokens.unwrap_or(0),
        }
    }
}

/// The message of an error, in the forms that servers have for it; else the beginning of what they sent.
pub(super) fn error_message(body: &[u8]) -> String {
    const MOST: usize = 300;
    let json: serde_json::Value = serde_json::from_slice(body).unwrap_or_default();
    let places = [&json["error"]["message"], &json["error"], &json["message"], &json["detail"]];
    let message = places.into_iter().find_map(|place| place.as_str().map(str::to_owned));
    let message = message.unwrap_or_else(|| String::from_utf8_lossy(body).trim().to_owned());
    match message.char_indices().nth(MOST) {
        Some((end, _)) => format!("{}…", &message[..end]),
        None if message.is_empty() => "no message".into(),
        None => message,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(pieces: &[&[u8]]) -> Vec<Said> {
        let (mut reader, mut all) = (Reader::default(), Vec::new());
        for piece in pieces {
            reader.push(piece, |said| all.push(said));
        }
        all
    }

    const STREAM: &str = concat!(
        ": keep-alive\n\n",
        "event: message\r\ndata: {\"choices\":[{\"delta\":{\"role\":\"assistant\",\"content\":\"\"}}],\"usage\":null}\r\n\r\n",
        "data:{\"choices\":[{\"delta\":{\"content\":\"a \\\"b\\\"\"}}],\"error\":null}\n\n",
        "data: {\"choices\":[{\"delta\":{\"content\":null,\"reasoning_content\":\"hm\"}}]}\n\n",
        "data: {\"choices\":[{\"delta\":{},\"finish_reason\":\"stop\"}]}\n\n",
        "data: {\"choices\":[],\"usage\":{\"prompt_tokens\":7,\"completion_tokens\":2,",
        "\"prompt_tokens_details\":{\"cached_tokens\":3}}}\n\n",
        "data: [DONE]\n\n",
    );

    #[test]
    fn a_stream_says_the_same_however_it_is_cut() {
        let usage = Said::Usage { usage: Usage { prompt: 7, cached: 3, completion: 2 }, text: false };
        let expected = vec![Said::Text, Said::Text, usage, Said::Done];
        assert_eq!(read(&[STREAM.as_bytes()]), expected);
        for size in [1, 2, 7, 64] {
            assert_eq!(read(&STREAM.as_bytes().chunks(size).collect::<Vec<_>>()), expected, "{size}");
        }
    }

    #[test]
    fn what_is_wrong_is_told() {
        let error = b"data: {\"error\":{\"message\":\"out of pages\"}}\n";
        assert_eq!(read(&[error]), [Said::Error("out of pages".into())]);
        assert!(matches!(&read(&[b"data: {\"choices\"\n"])[..], [Said::Strange(_)]));
        let long = vec![b'x'; MOST_LINE + 1];
        assert!(matches!(&read(&[&long])[..], [Said::Strange(_)]));
    }

    #[test]
    fn messages_are_found_where_servers_put_them() {
        for (body, expected) in [
            (r#"{"error":{"message":"a"}}"#, "a"),
            (r#"{"error":"b"}"#, "b"),
            (r#"{"object":"error","message":"c"}"#, "c"),
            (r#"{"detail":"Not Found"}"#, "Not Found"),
            ("<html>", "<html>"),
            ("", "no message"),
        ] {
            assert_eq!(error_message(body.as_bytes()), expected);
        }
        assert_eq!(error_message("ä".repeat(1000).as_bytes()).chars().count(), 301);
    }
}
