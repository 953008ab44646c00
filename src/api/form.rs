//! Reads a form as it comes, part by part: texts into memory, a file onto the disk.

mod fields;
mod multipart;

use std::{
    fs,
    io::{Seek as _, SeekFrom},
};

use axum::{
    body::Body,
    http::{HeaderMap, header::CONTENT_TYPE},
};
use tokio::{fs::File, io::AsyncWriteExt as _};

pub(super) use self::fields::{Fields, split};
use self::multipart::{Head, Item, Malformed, Multipart, parameter};
use super::{
    ApiError,
    body::{Pieces, header},
};
use crate::request::InvalidRequest;

/// Most bytes of a text.
const LONGEST_TEXT: usize = 64 << 10;
/// Most bytes of everything but the file.
const MOST_TEXT: usize = 2 << 20;
/// Most parts.
const MOST_PARTS: usize = 512;
/// RFC 2046 has 70.
const LONGEST_BOUNDARY: usize = 200;

/// A form that is being read.
#[derive(Debug)]
pub(super) struct Form {
    pieces: Pieces,
    multipart: Multipart,
    parts: usize,
    /// Bytes of texts so far.
    texts: usize,
    /// Most bytes of a file.
    limit: usize,
    /// Of the part that was begun last.
    head: Head,
}

impl Form {
    /// A form whose file has at most `limit` bytes, none of which is read yet.
    pub(super) fn open(headers: &HeaderMap, body: Body, limit: usize) -> Result<Self, ApiError> {
        let found = header(headers, CONTENT_TYPE).unwrap_or_else(|| "(none)".into());
        let essence = found.split(';').next().unwrap_or("").trim();
        if !essence.eq_ignore_ascii_case("multipart/form-data") {
            let found = found.chars().take(100).collect();
            return Err(ApiError::ContentType {
                found,
                expected: "a form with 'Content-Type: multipart/form-data'",
            });
        }
        let boundary = parameter(&found, "boundary").filter(|boundary| !boundary.is_empty());
        let boundary = boundary.ok_or_else(|| {
            ApiError::NotForm(
                "'Content-Type: multipart/form-data' names no boundary; most clients do it by themselves"
                    .into(),
            )
        })?;
        if boundary.len() > LONGEST_BOUNDARY {
            return Err(ApiError::NotForm(format!("the boundary has more than {LONGEST_BOUNDARY} bytes")));
        }
        let pieces = Pieces::open(headers, body, limit + MOST_TEXT).map_err(|error| of_file(error, limit))?;
        Ok(Self {
            pieces,
            multipart: Multipart::new(&boundary),
            parts: 0,
            texts: 0,
            limit,
            head: Head::default(),
        })
    }

    /// The name of the next part; what is left of this one is skipped. `None` behind the last.
    pub(super) async fn part(&mut self) -> Result<Option<String>, ApiError> {
        loop {
            match self.item().await? {
                Item::Part(head) => {
                    self.parts += 1;
                    if self.parts > MOST_PARTS {
                        return Err(ApiError::NotForm(format!("it has more than {MOST_PARTS} parts")));
                    }
                    let name = head.name.clone();
                    self.head = head;
                    return Ok(Some(name));
                }
                Item::Data(_) | Item::PartEnd => {}
                Item::End => return Ok(None),
            }
        }
    }

    /// What the client calls the file that was begun.
    pub(super) fn filename(&self) -> Option<&str> {
        self.head.filename.as_deref()
    }

    /// What the client says that the file is that was begun.
    pub(super) fn mime(&self) -> Option<&str> {
        self.head.mime.as_deref()
    }

    /// The text of the part `name`, which was begun.
    pub(super) async fn text(&mut self, name: &str) -> Result<String, ApiError> {
        let mut bytes = Vec::new();
        while let Item::Data(data) = self.item().await? {
            bytes.extend(&data);
            self.texts += data.len();
            if bytes.len() > LONGEST_TEXT {
                let (param, found, limit) = (shown(name), bytes.len(), LONGEST_TEXT);
                return Err(InvalidRequest::StringLength { param, found, limit }.into());
            }
            if self.texts > MOST_TEXT {
                let reason =
                    format!("its fields have more than {MOST_TEXT} bytes together, besides the file");
                return Err(ApiError::NotForm(reason));
            }
        }
        String::from_utf8(bytes).map_err(|_| ApiError::NotForm(format!("'{}' is not UTF-8", shown(name))))
    }

    /// The content of the part that was begun, in a file without a name, at its beginning.
    pub(super) async fn file(&mut self) -> Result<fs::File, ApiError> {
        let failed =
            |error: std::io::Error| ApiError::internal(&format!("an upload could not be kept: {error}"));
        let mut file = File::from_std(tempfile::tempfile().map_err(failed)?);
        let mut length = 0;
        while let Item::Data(data) = self.item().await? {
            length += data.len();
            if length > self.limit {
                return Err(ApiError::BodyTooLarge { limit: self.limit });
            }
            file.write_all(&data).await.map_err(failed)?;
        }
        file.flush().await.map_err(failed)?;
        let mut file = file.into_std().await;
        file.seek(SeekFrom::Start(0)).map_err(failed)?;
        Ok(file)
    }

    /// Reads on for a while, for nothing; see [`Pieces::discard`].
    pub(super) fn discard(self) {
        self.pieces.discard();
    }

    async fn item(&mut self) -> Result<Item, ApiError> {
        loop {
            if let Some(item) =
                self.multipart.next().map_err(|error: Malformed| ApiError::NotForm(error.to_string()))?
            {
                return Ok(item);
            }
            match self.pieces.next().await.map_err(|error| of_file(error, self.limit))? {
                Some(piece) => self.multipart.push(&piece),
                None => {
                    return Err(ApiError::NotForm(
                        "it ends in the middle of a part, without its last boundary".into(),
                    ));
                }
            }
        }
    }
}

/// A name as a message shows it.
fn shown(name: &str) -> String {
    name.chars().take(200).collect()
}

/// The limit that a client can do something about is the file's.
fn of_file(error: ApiError, limit: usize) -> ApiError {
    match error {
        ApiError::BodyTooLarge { .. } => ApiError::BodyTooLarge { limit },
        other => other,
    }
}
