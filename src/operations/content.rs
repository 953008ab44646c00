//! The content log: what was asked and answered, where an operator has switched it on and a tenant has agreed. Files that
//! requests carry are never in it, and what looks like a secret or a person's is taken out first.

use std::{
    borrow::Cow,
    collections::BTreeMap,
    fs::{self, File, OpenOptions},
    io::{self, Write as _},
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering::Relaxed},
        mpsc::{self, Receiver, SyncSender},
    },
    thread,
};

use jiff::{ToSpan as _, civil::Date};
use regex::Regex;
use serde::Serialize;
use serde_json::Value;
use tracing::{error, warn};

use super::{Entry, date_of};
use crate::access::today;

/// Most bytes of a request or an answer that are kept; of longer ones it is only said how long they are.
pub const MOST_BYTES: usize = 1 << 20;
/// Texts from this length on that are nothing but base64 are files.
const FILE: usize = 256;
/// Lines that wait to be written, and most bytes of them; more are lost.
const QUEUE: usize = 1024;
const MOST_WAITING: usize = 64 << 20;
/// What stands for what was taken out.
const REDACTED: &str = "[redacted]";
/// What is always taken out: addresses of mail, keys, tokens, numbers of cards and accounts, telephone numbers.
const USUAL: &[&str] = &[
    r"(?i)\b[a-z0-9._%+-]+@[a-z0-9-]+(?:\.[a-z0-9-]+)+\b",
    r"\b(?:sk|pk|rk|ek|ghp|gho|xox[abp])[-_][A-Za-z0-9_-]{8,}",
    r"\beyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+",
    r"(?i)\bbearer\s+[a-z0-9._~+/=-]{8,}",
    r"\b[A-Z]{2}\d{2}(?: ?[A-Z0-9]{4}){2,7}(?: ?[A-Z0-9]{1,4})?\b",
    r"\b\d(?:[ -]?\d){12,18}\b",
    r"\+\d{1,3}(?:[ ./()-]*\d){6,14}\b",
];

/// What is written down.
#[derive(Debug, Clone, PartialEq)]
pub struct ContentConfig {
    /// Where.
    pub folder: PathBuf,
    /// For how many days.
    pub days: u32,
    /// What is taken out besides the usual.
    pub redact: Vec<String>,
}

/// Why there is no content log.
#[derive(Debug, thiserror::Error)]
pub enum ContentError {
    /// The folder cannot be used.
    #[error("{}: {error}", folder.display())]
    Io {
        /// Which.
        folder: PathBuf,
        /// Why.
        error: io::Error,
    },
    /// What is to be taken out means nothing.
    #[error("{0}")]
    Pattern(#[from] regex::Error),
}

/// Takes out what must not be written down.
#[derive(Debug)]
struct Redaction(Vec<Regex>);

/// Where content is written down: a file for each day (UTC), a line of JSON for each request.
#[derive(Debug)]
pub struct Content {
    lines: Mutex<SyncSender<Said>>,
    /// Bytes that wait.
    waiting: Arc<AtomicUsize>,
}

/// What was asked and answered. What must not be written down is still in it: a thread of its own takes that out.
struct Said {
    entry: Entry,
    request: Option<Vec<u8>>,
    response: Option<Vec<u8>>,
}

impl Said {
    fn bytes(&self) -> usize {
        [&self.request, &self.response].into_iter().flatten().map(Vec::len).sum()
    }
}

/// A line.
#[derive(Debug, Serialize)]
struct Line<'a> {
    time: jiff::Timestamp,
    id: &'a str,
    tenant: Option<&'a str>,
    endpoint: &'a str,
    model: Option<&'a str>,
    status: u16,
    request: Value,
    response: Value,
}

impl Content {
    /// Goes on in a folder, which its owner alone can read.
    ///
    /// # Errors
    /// When it cannot be used, or a pattern means nothing.
    pub fn open(config: &ContentConfig) -> Result<Self, ContentError> {
        let ContentConfig { folder, days, redact } = config;
        let redaction = Redaction::new(redact)?;
        let failed = |error| ContentError::Io { folder: folder.clone(), error };
        fs::DirBuilder::new().recursive(true).mode(0o700).create(folder).map_err(failed)?;
        // So that it is known now, and not at the first line.
        open(folder, today()).map_err(failed)?;
        warn!(folder = %folder.display(), days, "content of requests is written down");
        let (lines, received) = mpsc::sync_channel(QUEUE);
        let waiting = Arc::new(AtomicUsize::new(0));
        let writer = Writer {
            redaction,
            waiting: Arc::clone(&waiting),
            folder: folder.clone(),
            days: *days,
            file: None,
        };
        thread::Builder::new()
            .name("content log".into())
            .spawn(move || writer.run(&received))
            .map_err(failed)?;
        Ok(Self { lines: Mutex::new(lines), waiting })
    }

    /// Writes down what was asked and answered, where it was kept.
    pub fn write(&self, entry: &Entry, request: Option<Vec<u8>>, response: Option<Vec<u8>>) {
        let said = Said { entry: entry.clone(), request, response };
        let bytes = said.bytes();
        let fits = self.waiting.fetch_add(bytes, Relaxed) + bytes <= MOST_WAITING;
        let lines = self.lines.lock().unwrap_or_else(PoisonError::into_inner);
        if !fits || lines.try_send(said).is_err() {
            self.waiting.fetch_sub(bytes, Relaxed);
            warn!(id = entry.id, "a line of the content log is lost: it is written too slowly");
        }
    }
}

/// The thread that writes.
struct Writer {
    redaction: Redaction,
    waiting: Arc<AtomicUsize>,
    folder: PathBuf,
    days: u32,
    file: Option<(Date, File)>,
}

impl Writer {
    fn run(mut self, lines: &Receiver<Said>) {
        self.forget();
        for said in lines {
            let bytes = said.bytes();
            let date = date_of(said.entry.time);
            let line = self.redaction.line(&said);
            drop(said);
            self.waiting.fetch_sub(bytes, Relaxed);
            let Ok(line) = line else { continue };
            if let Err(error) = self.write(date, &line) {
                error!(%error, "a line of the content log is not written");
            }
        }
    }

    fn write(&mut self, date: Date, line: &str) -> io::Result<()> {
        if self.file.as_ref().is_none_or(|(open, _)| *open != date) {
            self.file = Some((date, open(&self.folder, date)?));
            self.forget();
        }
        match &mut self.file {
            Some((_, file)) => file.write_all(format!("{line}\n").as_bytes()),
            None => Ok(()),
        }
    }

    /// Removes files whose days are over.
    fn forget(&self) {
        let oldest = today().saturating_sub(i64::from(self.days).days());
        let entries = fs::read_dir(&self.folder).into_iter().flatten().flatten();
        for path in entries.map(|entry| entry.path()) {
            let name = path.file_name().and_then(|name| name.to_str()).unwrap_or("");
            let date = name.strip_prefix("content-").and_then(|name| name.strip_suffix(".jsonl"));
            let is_over = date.and_then(|date| date.parse::<Date>().ok()).is_some_and(|date| date < oldest);
            if is_over && let Err(error) = fs::remove_file(&path) {
                error!(%error, file = name, "content that is too old cannot be removed");
            }
        }
    }
}

fn open(folder: &Path, date: Date) -> io::Result<File> {
    let file = folder.join(format!("content-{date}.jsonl"));
    OpenOptions::new().append(true).create(true).mode(0o600).open(file)
}

impl Redaction {
    fn new(more: &[String]) -> Result<Self, regex::Error> {
        let patterns = USUAL.iter().copied().chain(more.iter().map(String::as_str));
        patterns.map(Regex::new).collect::<Result<_, _>>().map(Self)
    }

    fn line(&self, said: &Said) -> serde_json::Result<String> {
        let Said { entry, request, response } = said;
        let speaks = entry.endpoint.starts_with("POST /v1/audio/");
        // What is kept and given back as it came is a file, whatever is in it.
        let is_file =
            [" /v1/files/{id}/content", "/{id}/results"].iter().any(|end| entry.endpoint.ends_with(end));
        let response = response.as_deref().filter(|_| !is_file);
        serde_json::to_string(&Line {
            time: entry.time,
            id: &entry.id,
            tenant: entry.tenant.as_deref(),
            endpoint: &entry.endpoint,
            model: entry.model.as_deref(),
            status: entry.status,
            request: self.body(request.as_deref(), entry.request_bytes, false),
            response: self.body(response, entry.response_bytes, speaks),
        })
    }

    /// A body of so many bytes, where it was kept. Only what is understood is written down: JSON, one value or several;
    /// answers in pieces; and, where `is_text` says so, text. Of anything else nobody knows what files are in it.
    fn body(&self, kept: Option<&[u8]>, bytes: u64, is_text: bool) -> Value {
        let unknown = || format!("[{bytes} bytes]").into();
        let Some(kept) = kept else { return unknown() };
        if kept.is_empty() {
            return if bytes == 0 { Value::Null } else { unknown() };
        }
        let values = serde_json::Deserializer::from_slice(kept).into_iter::<Value>();
        if let Ok(mut values) = values.collect::<Result<Vec<_>, _>>()
            && !values.is_empty()
        {
            values.iter_mut().for_each(|value| self.value(value));
            return if values.len() == 1 { values.remove(0) } else { values.into() };
        }
        match std::str::from_utf8(kept) {
            Ok(text) if text.starts_with("data: ") || text.starts_with("event: ") => {
                self.text(&streamed(text)).into_owned().into()
            }
            Ok(text) if is_text => self.text(text).into_owned().into(),
            _ => unknown(),
        }
    }

    fn value(&self, value: &mut Value) {
        match value {
            Value::String(text) => {
                let redacted = if is_file(text) {
                    Cow::Owned(format!("[a file, {} characters]", text.len()))
                } else {
                    self.text(text)
                };
                if let Cow::Owned(redacted) = redacted {
                    *text = redacted;
                }
            }
            Value::Array(items) => items.iter_mut().for_each(|item| self.value(item)),
            Value::Object(fields) => fields.values_mut().for_each(|field| self.value(field)),
            Value::Null | Value::Bool(_) | Value::Number(_) => {}
        }
    }

    fn text<'a>(&self, text: &'a str) -> Cow<'a, str> {
        self.0.iter().fold(Cow::Borrowed(text), |text, pattern| match pattern.replace_all(&text, REDACTED) {
            Cow::Owned(redacted) => Cow::Owned(redacted),
            Cow::Borrowed(_) => text,
        })
    }
}

/// Whether a text is a file: a data URL, or long and nothing but base64.
fn is_file(text: &str) -> bool {
    let base64 = |byte: u8| byte.is_ascii_alphanumeric() || b"+/=-_\r\n".contains(&byte);
    text.starts_with("data:") || text.len() >= FILE && text.bytes().all(base64)
}

/// The text of an answer that came in pieces, joined: what is to be taken out may be spread over several. Where there are
/// several answers at once, they follow each other.
fn streamed(events: &str) -> String {
    const INDICES: [&str; 3] = ["/choices/0/index", "/output_index", "/index"];
    const PLACES: [&str; 6] = [
        "/choices/0/delta/content",
        "/choices/0/text",
        "/delta/text",
        "/delta/partial_json",
        "/delta",
        "/error",
    ];
    let data = events.lines().filter_map(|line| line.strip_prefix("data: "));
    let pieces = data.filter_map(|data| serde_json::from_str::<Value>(data).ok());
    let mut answers: BTreeMap<u64, String> = BTreeMap::new();
    for piece in pieces {
        let found = PLACES.iter().find_map(|place| piece.pointer(place)?.as_str().map(str::to_owned));
        let Some(text) = found.or_else(|| piece.get("error").map(Value::to_string)) else { continue };
        let index = INDICES.iter().find_map(|place| piece.pointer(place)?.as_u64()).unwrap_or(0);
        *answers.entry(index).or_default() += &text;
    }
    answers.into_values().collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_is_a_secret_or_a_persons_is_taken_out() {
        let redaction = Redaction::new(&["(?i)project x".into()]).unwrap();
        for (text, expected) in [
            ("mail a.b+c@example.co.uk, now", "mail [redacted], now"),
            ("key sk-percept-0a1B2c3D4e", "key [redacted]"),
            ("for a page: ek_percept-0a1B2c3D4e", "for a page: [redacted]"),
            ("Authorization: Bearer abcdef.123456", "Authorization: [redacted]"),
            ("4111 1111 1111 1111", "[redacted]"),
            ("4111-1111-1111-1111.", "[redacted]."),
            ("IBAN DE89 3704 0044 0532 0130 00 it is", "IBAN [redacted] it is"),
            ("call +49 (30) 123456-78", "call [redacted]"),
            ("about Project X", "about [redacted]"),
            ("12 shapes, 3 of them red; 1234567", "12 shapes, 3 of them red; 1234567"),
            ("a@b", "a@b"),
        ] {
            assert_eq!(redaction.text(text), expected);
        }
        assert!(Redaction::new(&["(".into()]).is_err());
    }

    #[test]
    fn files_are_never_written_down() {
        let redaction = Redaction::new(&[]).unwrap();
        let data = "QUJD".repeat(100);
        let body = json!({"messages": [{"content": [
            {"type": "text", "text": "what is it"},
            {"type": "image_url", "image_url": {"url": format!("data:image/png;base64,{data}")}},
            {"type": "input_audio", "input_audio": {"data": data, "format": "wav"}},
        ]}]});
        let bytes = body.to_string().into_bytes();
        let written = redaction.body(Some(&bytes), bytes.len() as u64, true).to_string();
        assert!(written.contains("what is it") && written.contains("a file"), "{written}");
        assert!(!written.contains("QUJD"), "{written}");
        // Cut off, or with a comma too much, it is no JSON any more.
        for broken in [&bytes[..bytes.len() - 2], &[&bytes[..], b","].concat()] {
            let length = broken.len() as u64;
            assert_eq!(redaction.body(Some(broken), length, false), format!("[{length} bytes]"));
        }
        let form = b"--x\r\nContent-Disposition: form-data; name=file\r\n\r\nsecret\r\n--x--";
        for form in [&form[..], &[b"preamble\r\n", &form[..]].concat()] {
            let length = form.len() as u64;
            assert_eq!(redaction.body(Some(form), length, false), format!("[{length} bytes]"));
        }
        assert_eq!(redaction.body(None, 7, true), "[7 bytes]");
        let lines = b"{\"a\": 1}\n{\"b\": \"x@example.com\"}\n";
        assert_eq!(redaction.body(Some(lines), 30, false), json!([{"a": 1}, {"b": "[redacted]"}]));
    }

    #[test]
    fn pieces_are_joined_before_they_are_looked_at() {
        let redaction = Redaction::new(&[]).unwrap();
        let piece = |text: &str| format!("data: {}\n\n", json!({"choices": [{"delta": {"content": text}}]}));
        let events = ["write to a.b", "@exam", "ple.com, please"].map(piece).concat() + "data: [DONE]\n\n";
        let written = redaction.body(Some(events.as_bytes()), events.len() as u64, false);
        assert_eq!(written, "write to [redacted], please");
        // Of two answers at once, pieces come in turns.
        let piece = |index: u32, text: &str| {
            format!("data: {}\n\n", json!({"choices": [{"index": index, "delta": {"content": text}}]}))
        };
        let events =
            [(0, "a@exa"), (1, "b"), (0, "mple.com"), (1, "ye")].map(|(index, text)| piece(index, text));
        let events = events.concat();
        let written = redaction.body(Some(events.as_bytes()), events.len() as u64, false);
        assert_eq!(written, "[redacted]\nbye");
        let event =
            "event: content_block_delta\ndata: {\"delta\": {\"type\": \"text_delta\", \"text\": \"hi\"}}\n\n";
        assert_eq!(redaction.body(Some(event.as_bytes()), event.len() as u64, false), "hi");
    }
}
