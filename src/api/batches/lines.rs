//! The lines of an input: where each of them is, and what is wrong with them.

use std::collections::HashSet;

use bytes::Bytes;
use futures_util::{Stream, StreamExt as _};
use memchr::memchr;
use sha2::{Digest as _, Sha256};

use super::wire::{InputLine, Problem};
use crate::store::{NewLine, Place};

/// Most lines of a batch of OpenAI's.
pub(super) const MOST_LINES: usize = 50_000;
/// Most bytes of an input.
pub(super) const MOST_BYTES: u64 = 200_000_000;
/// Most problems that are told.
const MOST_PROBLEMS: usize = 100;
/// Most characters of a line's name.
const LONGEST_ID: usize = 512;

/// What lines may be.
#[derive(Debug, Clone, Copy)]
pub(super) struct Allowed<'a> {
    /// What each of them asks for.
    pub(super) endpoint: &'a str,
    /// Most lines.
    pub(super) lines: usize,
    /// Most bytes of a line.
    pub(super) bytes: usize,
}

/// Why there are no lines.
#[derive(Debug)]
pub(super) enum Unusable {
    /// They are not what they should be.
    Wrong(Vec<Problem>),
    /// They cannot be read.
    Unread(std::io::Error),
}

/// The lines of an input that comes in pieces.
pub(super) async fn read(
    mut content: impl Stream<Item = std::io::Result<Bytes>> + Unpin,
    allowed: Allowed<'_>,
) -> Result<Vec<NewLine>, Unusable> {
    let mut reader = Reader::new(allowed);
    let mut held: Vec<u8> = Vec::new();
    let mut start = 0;
    while let Some(piece) = content.next().await {
        let piece = piece.map_err(Unusable::Unread)?;
        let mut rest = &piece[..];
        while let Some(end) = memchr(b'\n', rest) {
            held.extend_from_slice(&rest[..end]);
            rest = &rest[end + 1..];
            reader.line(&held, start);
            start += held.len() as u64 + 1;
            held.clear();
            if reader.is_done() {
                return reader.finish();
            }
        }
        held.extend_from_slice(rest);
        if held.len() > allowed.bytes {
            reader.line(&held, start);
            return reader.finish();
        }
    }
    reader.line(&held, start);
    reader.finish()
}

struct Reader<'a> {
    allowed: Allowed<'a>,
    /// Hashes of the names that there were: names may be long, and the lines have them already.
    names: HashSet<[u8; 16]>,
    lines: Vec<NewLine>,
    problems: Vec<Problem>,
    /// Of the file, from 1 on.
    number: u64,
}

impl<'a> Reader<'a> {
    fn new(allowed: Allowed<'a>) -> Self {
        Self { allowed, names: HashSet::new(), lines: Vec::new(), problems: Vec::new(), number: 0 }
    }

    /// Whether more lines would not matter.
    fn is_done(&self) -> bool {
        self.problems.len() >= MOST_PROBLEMS || self.lines.len() > self.allowed.lines
    }

    fn line(&mut self, bytes: &[u8], start: u64) {
        self.number += 1;
        if bytes.trim_ascii().is_empty() {
            return;
        }
        match self.check(bytes) {
            Ok(custom_id) => {
                self.names.insert(hash(&custom_id));
                let place = Place { start, length: bytes.len() as u64 };
                self.lines.push(NewLine { custom_id, place });
            }
            Err(problem) => self.problems.push(problem),
        }
    }

    fn check(&self, bytes: &[u8]) -> Result<String, Problem> {
        let problem = |code: &str, param: Option<&str>, message: String| Problem {
            code: code.to_owned(),
            message,
            line: Some(self.number),
            param: param.map(str::to_owned),
        };
        if bytes.len() > self.allowed.bytes {
            let limit = self.allowed.bytes;
            return Err(problem("line_too_long", None, format!("The line has more than {limit} bytes.")));
        }
        let line: InputLine<'_> = serde_json::from_slice(bytes).map_err(|error| {
            problem("invalid_json_line", None, format!("This line is not parseable as valid JSON: {error}."))
        })?;
        let missing = |param: &str| {
            problem("missing_required_parameter", Some(param), format!("The field '{param}' is missing."))
        };
        let custom_id = line.custom_id.ok_or_else(|| missing("custom_id"))?;
        if custom_id.is_empty() || custom_id.chars().count() > LONGEST_ID {
            let message = format!("The field 'custom_id' must have 1 to {LONGEST_ID} characters.");
            return Err(problem("invalid_custom_id", Some("custom_id"), message));
        }
        match line.method.as_deref() {
            Some("POST") => {}
            Some(_) => {
                return Err(problem("invalid_method", Some("method"), "The method must be POST.".into()));
            }
            None => return Err(missing("method")),
        }
        let url = line.url.ok_or_else(|| missing("url"))?;
        if url != self.allowed.endpoint {
            let endpoint = self.allowed.endpoint;
            let message =
                format!("The URL provided for this request does not match the batch endpoint {endpoint}.");
            return Err(problem("url_mismatch", Some("url"), message));
        }
        let body = line.body.ok_or_else(|| missing("body"))?;
        if !body.get().starts_with('{') {
            return Err(problem("invalid_body", Some("body"), "The body must be an object.".into()));
        }
        if self.names.contains(&hash(&custom_id)) {
            let message = "The custom_id for this request is a duplicate of another request's.".into();
            return Err(problem("duplicate_custom_id", Some("custom_id"), message));
        }
        Ok(custom_id)
    }

    fn finish(mut self) -> Result<Vec<NewLine>, Unusable> {
        let of_file = |code: &str, message: String| Problem {
            code: code.to_owned(),
            message,
            line: None,
            param: Some("input_file_id".to_owned()),
        };
        if self.lines.len() > self.allowed.lines {
            let limit = self.allowed.lines;
            self.problems.push(of_file("too_many_tasks", format!("The file has more than {limit} lines.")));
        } else if self.lines.is_empty() && self.problems.is_empty() {
            self.problems.push(of_file("empty_file", "The file has no lines.".into()));
        }
        if self.problems.is_empty() { Ok(self.lines) } else { Err(Unusable::Wrong(self.problems)) }
    }
}

/// What tells names apart. Nobody finds two texts with one of these.
fn hash(name: &str) -> [u8; 16] {
    let mut short = [0; 16];
    short.copy_from_slice(&Sha256::digest(name)[..16]);
    short
}

#[cfg(test)]
mod tests {
    use futures_util::stream;

    use super::*;

    const ALLOWED: Allowed<'_> = Allowed { endpoint: "/v1/chat/completions", lines: 4, bytes: 200 };

    fn line(id: &str) -> String {
        format!(r#"{{"custom_id": "{id}", "method": "POST", "url": "/v1/chat/completions", "body": {{}}}}"#)
    }

    /// The lines of a text that comes in pieces of a size; or codes and lines of what is wrong.
    async fn read_in(text: &str, size: usize) -> Result<Vec<NewLine>, Vec<(String, Option<u64>)>> {
        let pieces = text.as_bytes().chunks(size).map(|piece| Ok(Bytes::copy_from_slice(piece)));
        let pieces: Vec<_> = pieces.collect();
        read(stream::iter(pieces), ALLOWED).await.map_err(|error| match error {
            Unusable::Wrong(problems) => problems.into_iter().map(|it| (it.code, it.line)).collect(),
            Unusable::Unread(error) => panic!("{error}"),
        })
    }

    #[tokio::test]
    async fn lines_are_found_in_pieces_of_any_size() {
        let text = format!("{}\r\n\n  \n{}\n{}", line("a"), line("\\u00e9"), line("c"));
        for size in [1, 7, 64, 1000] {
            let lines = read_in(&text, size).await.unwrap();
            assert_eq!(lines.iter().map(|line| line.custom_id.as_str()).collect::<Vec<_>>(), ["a", "é", "c"]);
            for found in lines {
                let Place { start, length } = found.place;
                let bytes = &text.as_bytes()[start as usize..(start + length) as usize];
                let parsed: InputLine<'_> = serde_json::from_slice(bytes).unwrap();
                assert_eq!(parsed.custom_id, Some(found.custom_id));
            }
        }
    }

    #[tokio::test]
    async fn what_is_wrong_with_a_line_is_told() {
        let wrong = [
            ("x".to_owned(), "invalid_json_line"),
            ("[1]".to_owned(), "invalid_json_line"),
            (line("b").replace("custom_id", "id"), "missing_required_parameter"),
            (line(""), "invalid_custom_id"),
            (line("b").replace("POST", "GET"), "invalid_method"),
            (line("b").replace("/v1/chat", "/v1/other"), "url_mismatch"),
            (line("b").replace("{}", "[]"), "invalid_body"),
            (line("a"), "duplicate_custom_id"),
            (line(&"y".repeat(300)), "line_too_long"),
        ];
        for (second, code) in wrong {
            let found = read_in(&format!("{}\n{second}\n{}", line("a"), line("c")), 50).await;
            assert_eq!(found.unwrap_err()[0], (code.to_owned(), Some(2)), "{second}");
        }
        assert_eq!(read_in("\n \n", 3).await.unwrap_err(), [("empty_file".to_owned(), None)]);
        let many = (0..5).map(|index| line(&index.to_string())).collect::<Vec<_>>().join("\n");
        assert_eq!(read_in(&many, 30).await.unwrap_err(), [("too_many_tasks".to_owned(), None)]);
        let endless = "{".repeat(1000);
        assert_eq!(read_in(&endless, 10).await.unwrap_err()[0].0, "line_too_long");
        assert_eq!(read_in(&"x\n".repeat(500), 30).await.unwrap_err().len(), MOST_PROBLEMS);
    }
}
