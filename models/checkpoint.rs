//! A checkpoint: configuration files as published, in a folder or in the program itself.

use std::{
    borrow::Cow,
    fs,
    path::{Path, PathBuf},
};

use serde::{Deserialize, de::DeserializeOwned};

use crate::LoadError;

/// `config.json`, tokenizer, processor files and weights.
#[derive(Debug, Clone)]
pub struct Checkpoint {
    folder: PathBuf,
    /// What is in it, where it is part of the program.
    files: Option<&'static [EmbeddedFile]>,
}

/// A file of a checkpoint that is part of the program: its name and its content.
pub type EmbeddedFile = (&'static str, &'static [u8]);

impl Checkpoint {
    /// A checkpoint in `folder`. Nothing is read yet.
    pub fn new(folder: impl Into<PathBuf>) -> Self {
        Self { folder: folder.into(), files: None }
    }

    /// A checkpoint that is part of the program.
    pub fn embedded(name: &str, files: &'static [EmbeddedFile]) -> Self {
        Self { folder: name.into(), files: Some(files) }
    }

    /// Where it is, for messages: a folder, or the name of one that is part of the program.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Whether it has a file of this name.
    pub fn has(&self, name: &str) -> bool {
        match self.files {
            Some(_) => self.in_program(name).is_some(),
            None => self.folder.join(name).is_file(),
        }
    }

    /// The content of a file, or `None` where there is none.
    ///
    /// # Errors
    /// When the file is there but cannot be read.
    pub fn bytes(&self, name: &str) -> Result<Option<Cow<'static, [u8]>>, LoadError> {
        if self.files.is_some() {
            return Ok(self.in_program(name).map(Cow::Borrowed));
        }
        let file = self.folder.join(name);
        match fs::read(&file) {
            Ok(bytes) => Ok(Some(Cow::Owned(bytes))),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(LoadError::Io { file, error }),
        }
    }

    /// The content of a file that is part of the program.
    pub(crate) fn in_program(&self, name: &str) -> Option<&'static [u8]> {
        let found = self.files?.iter().find(|(known, _)| *known == name);
        found.map(|(_, content)| *content)
    }

    /// The text of a file, or `None` where there is none.
    ///
    /// # Errors
    /// When the file is there but cannot be read.
    pub fn text(&self, name: &str) -> Result<Option<String>, LoadError> {
        let Some(bytes) = self.bytes(name)? else { return Ok(None) };
        let text = String::from_utf8(bytes.into_owned());
        text.map(Some).map_err(|error| LoadError::Io {
            file: self.folder.join(name),
            error: std::io::Error::new(std::io::ErrorKind::InvalidData, error),
        })
    }

    /// A JSON file, or `None` where there is none.
    ///
    /// # Errors
    /// When the file is there but is not what is expected.
    pub fn json<T: DeserializeOwned>(&self, name: &str) -> Result<Option<T>, LoadError> {
        let Some(text) = self.text(name)? else { return Ok(None) };
        let parsed = serde_json::from_str(&text);
        parsed.map(Some).map_err(|error| LoadError::Json { file: self.folder.join(name), error })
    }

    /// `config.json`.
    ///
    /// # Errors
    /// When it is missing or is not what is expected.
    pub fn config<T: DeserializeOwned>(&self) -> Result<T, LoadError> {
        const NAME: &str = "config.json";
        self.json(NAME)?.ok_or_else(|| LoadError::MissingFile { file: self.folder.join(NAME) })
    }

    /// The id of a token that `tokenizer.json` adds to its vocabulary, by its text; `None` where there is none.
    ///
    /// # Errors
    /// When the file is missing or is not what is expected.
    pub fn added_token(&self, text: &str) -> Result<Option<u32>, LoadError> {
        #[derive(Deserialize)]
        struct Tokenizer {
            #[serde(default)]
            added_tokens: Vec<Token>,
        }
        #[derive(Deserialize)]
        struct Token {
            id: u32,
            content: String,
        }
        const NAME: &str = "tokenizer.json";
        let tokenizer: Option<Tokenizer> = self.json(NAME)?;
        let tokenizer = tokenizer.ok_or_else(|| LoadError::MissingFile { file: self.folder.join(NAME) })?;
        Ok(tokenizer.added_tokens.into_iter().find(|token| token.content == text).map(|token| token.id))
    }

    /// What reads the texts that a network puts around media.
    ///
    /// # Errors
    /// When `tokenizer.json` is missing or broken.
    pub fn literals(&self) -> Result<Literals, LoadError> {
        const NAME: &str = "tokenizer.json";
        let file = self.folder.join(NAME);
        let Some(text) = self.text(NAME)? else { return Err(LoadError::MissingFile { file }) };
        let read = || {
            let mut tokenizer = tokenizers::Tokenizer::from_bytes(text)?;
            // Some files ask to cut or pad.
            tokenizer.with_truncation(None)?;
            tokenizer.with_padding(None);
            Ok(tokenizer)
        };
        match read() {
            Ok(tokenizer) => Ok(Literals { tokenizer, file }),
            Err(error) => Err(LoadError::tokenizer(&file, &error)),
        }
    }

    /// Like [`Self::added_token`] for one that the network cannot do without.
    ///
    /// # Errors
    /// When there is none.
    pub fn required_token(&self, text: &str) -> Result<u32, LoadError> {
        let missing = || LoadError::unsupported("a tokenizer without", text, "one that has this token");
        self.added_token(text)?.ok_or_else(missing)
    }

    /// The image processor: `preprocessor_config.json`, or its place in the newer `processor_config.json`.
    ///
    /// # Errors
    /// When neither file has it.
    pub fn image_processor<T: DeserializeOwned>(&self) -> Result<T, LoadError> {
        const NAME: &str = "preprocessor_config.json";
        self.processor(NAME, "image_processor")?
            .ok_or_else(|| LoadError::MissingFile { file: self.folder.join(NAME) })
    }

    /// What prepares videos, where that differs from pictures: `video_preprocessor_config.json`, or its place in the newer
    /// `processor_config.json`.
    ///
    /// # Errors
    /// When it is not what it should be.
    pub fn video_processor<T: DeserializeOwned>(&self) -> Result<Option<T>, LoadError> {
        self.processor("video_preprocessor_config.json", "video_processor")
    }

    /// A file of its own, or what the newer file has under `key`.
    fn processor<T: DeserializeOwned>(&self, file: &str, key: &str) -> Result<Option<T>, LoadError> {
        const NEWER: &str = "processor_config.json";
        if let Some(config) = self.json(file)? {
            return Ok(Some(config));
        }
        let newer: Option<serde_json::Map<String, serde_json::Value>> = self.json(NEWER)?;
        let config = newer.and_then(|mut newer| newer.remove(key)).filter(|config| !config.is_null());
        let Some(config) = config else { return Ok(None) };
        let file = || self.folder.join(NEWER);
        serde_json::from_value(config).map(Some).map_err(|error| LoadError::Json { file: file(), error })
    }
}

/// Reads fixed texts as ids, each by itself.
#[derive(Debug)]
pub struct Literals {
    tokenizer: tokenizers::Tokenizer,
    file: PathBuf,
}

impl Literals {
    /// The ids of a text, without those that begin or end one.
    ///
    /// # Errors
    /// When the tokenizer fails.
    pub fn ids(&self, text: &str) -> Result<Vec<u32>, LoadError> {
        match self.tokenizer.encode(text, false) {
            Ok(encoding) => Ok(encoding.get_ids().to_vec()),
            Err(error) => Err(LoadError::tokenizer(&self.file, &error)),
        }
    }
}
