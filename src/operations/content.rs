//! The content log: what was asked and answered, where an operator has switched it on and a tenant has agreed. Files that
//! requests carry are never in it, and what looks like a secret or a person's is taken out first.

use std::{
    borrow::Cow,
    fs::{self, File, OpenOptions},
    io::{self, Write as _},
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
    sync::{
        Mutex, PoisonError,
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
/// Lines that wait to be written; more are lost.
const QUEUE: usize = 1024;
/// What stands for what was taken out.
const REDACTED: &str = "[redacted]";
/// What is always taken out: addresses of mail, keys, tokens, numbers of cards and accounts, telephone numbers.
const USUAL: &[&str] = &[
    r"(?i)\b[a-z0-9._%+-]+@[a-z0-9-]+(?:\.[a-z0-9-]+)+\b",
    r"\b(?:sk|pk|rk|ghp|gho|xox[abp])[-_][A-Za-z0-9_-]{8,}",
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
    redaction: Redaction,
    lines: Mutex<SyncSender<(Date, String)>>,
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
        let writer = Writer { folder: folder.clone(), days: *days, file: None };
        thread::Builder::new()
            .name("content log".into())
            .spawn(move || writer.run(&received))
            .map_err(failed)?;
        Ok(Self { redaction, lines: Mutex::new(lines) })
    }

    /// Writes down what was asked and answered, as far as it was kept.
    pub fn write(&self, entry: &Entry, request: Option<&[u8]>, response: Option<&[u8]>) {
        let line = Line {
            time: entry.time,
            id: &entry.id,
            tenant: entry.tenant.as_deref(),
            endpoint: &entry.endpoint,
            model: entry.model.as_deref(),
            status: entry.status,
            request: self.redaction.body(request, entry.request_bytes),
            response: self.redaction.body(response, entry.response_bytes),
        };
        let Ok(line) = serde_json::to_string(&line) else { return };
        let lines = self.lines.lock().unwrap_or_else(PoisonError::into_inner);
        if lines.try_send((date_of(entry.time), line)).is_err() {
            warn!(id = entry.id, "a line of the content log is lost: the disk is too slow");
        }
    }
}

/// The thread that writes.
struct Writer {
    folder: PathBuf,
    days: u32,
    file: Option<(Date, File)>,
}

impl Writer {
    fn run(mut self, lines: &Receiver<(Date, String)>) {
        self.forget();
        for (date, line) in lines {
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

    /// A body, of which `kept` was kept.
    fn body(&self, kept: Option<&[u8]>, bytes: u64) -> Value {
        let Some(kept) = kept.filter(|kept| kept.len() as u64 == bytes) else {
            return format!("[{bytes} bytes]").into();
        };
        if kept.is_empty() {
            return Value::Null;
        }
        if let Ok(mut value) = serde_json::from_slice(kept) {
            self.value(&mut value);
            return value;
        }
        match std::str::from_utf8(kept) {
            Ok(text) if text.starts_with("data: ") || text.starts_with("event: ") => {
                self.text(&streamed(text)).into_owned().into()
            }
            // Forms have files in them.
            Ok(text) if !text.starts_with("--") => self.text(text).into_owned().into(),
            _ => format!("[{bytes} bytes]").into(),
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

/// The text of an answer that came in pieces, joined: what is to be taken out may be spread over several.
fn streamed(events: &str) -> String {
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
    let text = |piece: Value| {
        let found = PLACES.iter().find_map(|place| piece.pointer(place)?.as_str().map(str::to_owned));
        found.or_else(|| piece.get("error").map(Value::to_string))
    };
    pieces.filter_map(text).collect()
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
        let written = redaction.body(Some(&bytes), bytes.len() as u64).to_string();
        assert!(written.contains("what is it") && written.contains("a file"), "{written}");
        assert!(!written.contains("QUJD"), "{written}");
        assert_eq!(
            redaction.body(Some(&bytes[..10]), bytes.len() as u64),
            format!("[{} bytes]", bytes.len())
        );
        let form = b"--x\r\nContent-Disposition: form-data; name=file\r\n\r\nsecret\r\n--x--";
        assert_eq!(redaction.body(Some(form), form.len() as u64), format!("[{} bytes]", form.len()));
        assert_eq!(redaction.body(None, 7), "[7 bytes]");
    }

    #[test]
    fn pieces_are_joined_before_they_are_looked_at() {
        let redaction = Redaction::new(&[]).unwrap();
        let piece = |text: &str| format!("data: {}\n\n", json!({"choices": [{"delta": {"content": text}}]}));
        let events = ["write to a.b", "@exam", "ple.com, please"].map(piece).concat() + "data: [DONE]\n\n";
        let written = redaction.body(Some(events.as_bytes()), events.len() as u64);
        assert_eq!(written, "write to [redacted], please");
        let event =
            "event: content_block_delta\ndata: {\"delta\": {\"type\": \"text_delta\", \"text\": \"hi\"}}\n\n";
        assert_eq!(redaction.body(Some(event.as_bytes()), event.len() as u64), "hi");
    }
}
