//! The format of multipart/form-data, without input or output: bytes go in, parts come out (RFC 7578, RFC 2046).
//!
//! Beside the bytes it was given last it holds a part's headers at most, and those are bounded: the usual parsers let a
//! client fill the memory with one long header.

use memchr::memmem;

/// Most bytes of a part's headers.
const MOST_HEADERS: usize = 16 << 10;

/// What comes next in a form.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Item {
    /// A part begins.
    Part(Head),
    /// More bytes of it.
    Data(Vec<u8>),
    /// It ends.
    PartEnd,
    /// The form ends.
    End,
}

/// What is said of a part in front of it.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Head {
    pub(super) name: String,
    /// What the client calls the file, where it is one.
    pub(super) filename: Option<String>,
    /// What the client says that it is.
    pub(super) mime: Option<String>,
}

/// What is wrong with a form.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum Malformed {
    #[error("a boundary is followed by something else than a line break")]
    Boundary,
    #[error("the headers of a part have more than {MOST_HEADERS} bytes")]
    Headers,
    #[error("a part has no name, as in 'Content-Disposition: form-data; name=\"file\"'")]
    Nameless,
}

/// Takes a form apart.
#[derive(Debug)]
pub(super) struct Multipart {
    /// A line break, two hyphens, the boundary.
    delimiter: Vec<u8>,
    held: Vec<u8>,
    /// How much of `held` is done with.
    done: usize,
    stage: Stage,
}

/// What `held` begins with.
#[derive(Debug, Clone, Copy)]
enum Stage {
    Preamble,
    /// What follows a boundary.
    Headers,
    Data,
    /// As in `Headers`, but the part in front has not been ended yet.
    PartEnd,
    Epilogue,
}

impl Multipart {
    pub(super) fn new(boundary: &str) -> Self {
        let delimiter = format!("\r\n--{boundary}").into_bytes();
        // A boundary at the very beginning has no line break in front.
        Self { delimiter, held: b"\r\n".to_vec(), done: 0, stage: Stage::Preamble }
    }

    /// Takes more bytes.
    pub(super) fn push(&mut self, bytes: &[u8]) {
        self.held.drain(..self.done);
        self.done = 0;
        self.held.extend_from_slice(bytes);
    }

    /// The next item; `None` where more bytes are needed.
    pub(super) fn next(&mut self) -> Result<Option<Item>, Malformed> {
        loop {
            match self.stage {
                Stage::Preamble => {
                    if self.data(Stage::Headers).is_none() {
                        return Ok(None);
                    }
                }
                Stage::Headers => {
                    let rest = &self.held[self.done..];
                    if rest.starts_with(b"--") {
                        self.stage = Stage::Epilogue;
                        continue;
                    }
                    let end = memmem::find(rest, b"\r\n\r\n");
                    if end.unwrap_or(rest.len()) > MOST_HEADERS {
                        return Err(Malformed::Headers);
                    }
                    let Some(end) = end else { return Ok(None) };
                    let head = Head::read(&rest[..end])?;
                    self.done += end + 4;
                    self.stage = Stage::Data;
                    return Ok(Some(Item::Part(head)));
                }
                Stage::Data => match self.data(Stage::PartEnd) {
                    Some(data) if data.is_empty() => {}
                    data => return Ok(data.map(Item::Data)),
                },
                Stage::PartEnd => {
                    self.stage = Stage::Headers;
                    return Ok(Some(Item::PartEnd));
                }
                Stage::Epilogue => {
                    self.done = self.held.len();
                    return Ok(Some(Item::End));
                }
            }
        }
    }

    /// Bytes that are certainly in front of the next boundary; behind it, the stage is `next`.
    fn data(&mut self, next: Stage) -> Option<Vec<u8>> {
        let rest = &self.held[self.done..];
        if let Some(length) = memmem::find(rest, &self.delimiter) {
            let data = rest[..length].to_vec();
            self.done += length + self.delimiter.len();
            self.stage = next;
            return Some(data);
        }
        // The end may be the beginning of a boundary.
        let length = rest.len().saturating_sub(self.delimiter.len() - 1);
        let data = rest[..length].to_vec();
        self.done += length;
        Some(data).filter(|data| !data.is_empty())
    }
}

impl Head {
    /// From what lies between a part's boundary and its data.
    fn read(headers: &[u8]) -> Result<Self, Malformed> {
        let headers = String::from_utf8_lossy(headers);
        let mut lines = headers.split("\r\n");
        // Blanks are allowed behind a boundary.
        if lines.next().is_none_or(|rest| !rest.trim_matches([' ', '\t']).is_empty()) {
            return Err(Malformed::Boundary);
        }
        let mut head = None;
        let mut mime = None;
        for (header, value) in lines.filter_map(|line| line.split_once(':')) {
            let header = header.trim();
            if header.eq_ignore_ascii_case("content-disposition") && head.is_none() {
                let filename = parameter(value, "filename");
                head = parameter(value, "name").map(|name| Self { name, filename, mime: None });
            } else if header.eq_ignore_ascii_case("content-type") && mime.is_none() {
                mime = Some(value.trim().to_owned());
            }
        }
        head.map(|head| Self { mime, ..head }).ok_or(Malformed::Nameless)
    }
}

/// A parameter of a header's value, such as `name` in `form-data; name="file"; filename="a;b.mp3"`.
pub(super) fn parameter(mut value: &str, wanted: &str) -> Option<String> {
    loop {
        let (_, parameters) = value.split_once(';')?;
        let (before, rest) = parameters.split_once('=')?;
        // Parameters without a value may be in front.
        let name = before.rsplit(';').next().unwrap_or(before).trim();
        let (found, rest) = token_or_quoted(rest.trim_start());
        if name.eq_ignore_ascii_case(wanted) {
            return Some(found);
        }
        value = rest;
    }
}

/// A value, unquoted, and what follows it.
fn token_or_quoted(text: &str) -> (String, &str) {
    let Some(quoted) = text.strip_prefix('"') else {
        let end = text.find(';').unwrap_or(text.len());
        return (text[..end].trim_end().to_owned(), &text[end..]);
    };
    let mut value = String::new();
    let mut chars = quoted.char_indices();
    while let Some((index, char)) = chars.next() {
        match char {
            '"' => return (value, &quoted[index + 1..]),
            '\\' => value.extend(chars.next().map(|(_, escaped)| escaped)),
            other => value.push(other),
        }
    }
    (value, "")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The parts of a form that comes in pieces of `size` bytes, and whether it had an end.
    /// Names and contents, and whether the form is complete.
    type Read = (Vec<(String, Vec<u8>)>, bool);

    fn parts(form: &[u8], size: usize) -> Result<Read, Malformed> {
        let mut multipart = Multipart::new("XyZ");
        let mut parts: Vec<(String, Vec<u8>)> = Vec::new();
        let mut open = false;
        for piece in form.chunks(size) {
            multipart.push(piece);
            while let Some(item) = multipart.next()? {
                match item {
                    Item::Part(head) => {
                        assert!(!std::mem::replace(&mut open, true));
                        parts.push((head.name, Vec::new()));
                    }
                    Item::Data(data) => {
                        assert!(open && !data.is_empty());
                        parts.last_mut().unwrap().1.extend(data);
                    }
                    Item::PartEnd => assert!(std::mem::replace(&mut open, false)),
                    Item::End => {
                        assert!(!open);
                        return Ok((parts, true));
                    }
                }
            }
        }
        Ok((parts, false))
    }

    fn part(name: &str, data: &str) -> (String, Vec<u8>) {
        (name.into(), data.as_bytes().to_vec())
    }

    const FORM: &str = "to be skipped\r\n--XyZ \t\r\n\
        content-disposition: form-data; filename=\"a\\\"; name=b\"; name=\"file\"\r\n\
        Content-Type: audio/wav\r\n\r\n\
        RIFF\r\n--XyY\r\n--Xy\r\n\r\n\r\n--XyZ\r\n\
        Content-Disposition: form-data; name=model\r\n\r\n\
        whisper\r\n--XyZ\r\n\
        Content-Disposition: form-data; Name=\"prompt\"\r\n\r\n\
        \r\n--XyZ--\r\nto be skipped, too";

    #[test]
    fn a_form_is_the_same_in_pieces_of_any_size() {
        let expected =
            [part("file", "RIFF\r\n--XyY\r\n--Xy\r\n\r\n"), part("model", "whisper"), part("prompt", "")];
        for size in 1..=FORM.len() {
            assert_eq!(parts(FORM.as_bytes(), size).unwrap(), (expected.to_vec(), true), "{size}");
        }
    }

    #[test]
    fn a_file_has_a_name_and_a_type() {
        let mut multipart = Multipart::new("XyZ");
        multipart.push(FORM.as_bytes());
        let first = loop {
            if let Some(Item::Part(head)) = multipart.next().unwrap() {
                break head;
            }
        };
        let expected = Head {
            name: "file".into(),
            filename: Some("a\"; name=b".into()),
            mime: Some("audio/wav".into()),
        };
        assert_eq!(first, expected);
    }

    #[test]
    fn a_form_that_is_cut_has_no_end() {
        let end = FORM.find("--XyZ--").unwrap() + "--XyZ--".len();
        for length in 0..end {
            for size in [1, 7, FORM.len()] {
                assert!(!parts(&FORM.as_bytes()[..length], size).unwrap().1, "{length}");
            }
        }
        assert!(parts(&FORM.as_bytes()[..end], 1).unwrap().1);
    }

    #[test]
    fn what_is_wrong_is_said() {
        let headers = |headers: &str| parts(format!("--XyZ\r\n{headers}\r\n\r\nx\r\n--XyZ--").as_bytes(), 5);
        assert_eq!(headers(""), Err(Malformed::Nameless));
        assert_eq!(headers("Content-Type: text/plain"), Err(Malformed::Nameless));
        assert_eq!(headers("Content-Disposition: form-data"), Err(Malformed::Nameless));
        assert_eq!(headers("Content-Disposition: form-data; filename=a"), Err(Malformed::Nameless));
        assert_eq!(headers("Content-Disposition form-data; name=a"), Err(Malformed::Nameless));
        assert_eq!(parts(b"--XyZabc\r\n\r\n\r\n", 5), Err(Malformed::Boundary));
        assert_eq!(parts(b"--XyZ-\r\n\r\n\r\n", 5), Err(Malformed::Boundary));
        let name = |length| headers(&format!("Content-Disposition: form-data; name={}", "n".repeat(length)));
        assert_eq!(name(10_000).unwrap().0[0].0.len(), 10_000);
        assert_eq!(name(20_000), Err(Malformed::Headers));
        // Without an end, it is told before everything was read.
        let mut endless = b"--XyZ\r\nContent-Disposition: form-data; name=".to_vec();
        endless.resize(MOST_HEADERS + 100, b'n');
        assert_eq!(parts(&endless, 1000), Err(Malformed::Headers));
    }

    #[test]
    fn parameters_are_found_however_they_are_written() {
        for (value, name) in [
            ("form-data; name=\"a b\"", Some("a b")),
            ("form-data;name=a", Some("a")),
            ("form-data; name = a ; x=y", Some("a")),
            ("form-data; NAME=\"\"", Some("")),
            ("form-data; flag; name=a", Some("a")),
            ("form-data; filename=\"name=b; name=c\"; name=\"a\"", Some("a")),
            ("form-data; filename=\"\\\\\"; name=\"a\\\"b\"", Some("a\"b")),
            ("form-data; name=\"unclosed", Some("unclosed")),
            ("form-data; name=\"\u{4f60}\"", Some("\u{4f60}")),
            ("form-data; filename*=UTF-8''a; name=a", Some("a")),
            ("form-data; username=a", None),
            ("name=a", None),
            ("", None),
        ] {
            assert_eq!(parameter(value, "name").as_deref(), name, "{value}");
        }
    }

    proptest! {
        #[test]
        fn any_data_comes_back(
            data in proptest::collection::vec(prop_oneof!["[\r\n-]", "XyZ?", "\r\n--XyA"], 0..40),
            size in 1usize..50,
        ) {
            let data = data.concat();
            prop_assume!(!data.contains("\r\n--XyZ"));
            let form = format!("--XyZ\r\nContent-Disposition: form-data; name=a\r\n\r\n{data}\r\n--XyZ--");
            prop_assert_eq!(parts(form.as_bytes(), size), Ok((vec![part("a", &data)], true)));
        }

        #[test]
        fn no_bytes_are_too_strange(bytes in proptest::collection::vec(any::<u8>(), 0..200), size in 1usize..50) {
            let _ = parts(&bytes, size);
            let _ = parts(&[b"--XyZ\r\n".to_vec(), bytes].concat(), size);
        }
    }
}
