//! A conversation to a prompt: template, tokens, and a run of placeholders for every picture.

use std::{fs, path::Path, sync::Arc};

use percept_models::{Checkpoint, Footprint, LoadError, TextInfo, VideoInfo, ids};
use serde::Deserialize;
use serde_json::Value;

use super::{
    grammar::Grammars,
    template::{self, ChatTemplate, Conversation, Marks, Message, Part, TemplateError},
    tokenizer::{Tokenizer, TokenizerError},
    tools::{Call, CallSyntax, Tool},
};
use crate::request::{Prompt, Span};

/// The text side of a model: tokenizer, template and what ends an answer.
#[derive(Debug)]
pub struct TextModel {
    tokenizer: Arc<Tokenizer>,
    template: ChatTemplate,
    placeholder: u32,
    /// How videos are taken.
    video: Option<VideoInfo>,
    /// The text of the placeholder, where what is between placeholders is encoded each by itself.
    divider: Option<String>,
    stops: Arc<[u32]>,
    defaults: Defaults,
    grammars: Grammars,
}

/// Sampling that the checkpoint's authors suggest, where `generation_config.json` has it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Deserialize)]
pub struct Defaults {
    /// See [`crate::request::Sampling::temperature`].
    pub temperature: Option<f32>,
    /// See [`crate::request::Sampling::top_k`].
    pub top_k: Option<usize>,
    /// See [`crate::request::Sampling::top_p`].
    pub top_p: Option<f32>,
    /// See [`crate::request::Sampling::min_p`].
    pub min_p: Option<f32>,
    /// See [`crate::request::Sampling::repetition_penalty`].
    pub repetition_penalty: Option<f32>,
}

/// Why the text side of a model cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TextError {
    /// A file of the checkpoint.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// The tokenizer.
    #[error(transparent)]
    Tokenizer(#[from] TokenizerError),
    /// The template.
    #[error(transparent)]
    Template(#[from] TemplateError),
    /// The file that should hold the template.
    #[error("cannot read {file}: {error}")]
    TemplateFile {
        /// Which.
        file: String,
        /// Why.
        error: std::io::Error,
    },
    /// The tokenizer lacks a token that models of its kind have.
    #[error("the tokenizer has no token {name}")]
    NoToken {
        /// Its text.
        name: String,
    },
    /// Tokenizer and configuration disagree.
    #[error("the tokenizer has no token {id}, which config.json uses for pictures")]
    NoPlaceholder {
        /// Its id.
        id: u32,
    },
}

/// Why there is no prompt.
#[derive(Debug, thiserror::Error)]
pub enum PromptError {
    /// It is too long.
    #[error("the prompt has {tokens} tokens or more, the model's context is {limit}")]
    TooLong {
        /// At least.
        tokens: usize,
        /// Of prompt and answer together.
        limit: usize,
    },
    /// The template shows fewer pictures and videos than there are, or more.
    #[error(
        "the model's chat template shows {shown} of {sent} {}: send {} in user turns",
        if *videos { "pictures and videos" } else { "pictures" },
        if *videos { "them" } else { "pictures" }
    )]
    Media {
        /// Placeholders of the rendered text.
        shown: usize,
        /// Pictures and videos of the request.
        sent: usize,
        /// Whether videos are among them.
        videos: bool,
    },
    /// There is a video, and the model takes none.
    #[error("this model takes pictures, and no videos")]
    NoVideo,
    /// The template shows pictures and videos in another order than that of the request.
    #[error("the model's chat template changes the order of pictures and videos: send them in user turns")]
    Order,
    /// There is nothing to go on from.
    #[error("the model's chat template makes no prompt of them")]
    Empty,
    /// The template.
    #[error(transparent)]
    Template(#[from] TemplateError),
    /// The tokenizer.
    #[error(transparent)]
    Tokenizer(#[from] TokenizerError),
}

impl TextModel {
    /// Reads tokenizer, template and generation config of a checkpoint. A file in `template` comes before its own.
    ///
    /// # Errors
    /// When one of them is missing or broken.
    pub fn read(
        checkpoint: &Checkpoint,
        info: &TextInfo,
        template: Option<&Path>,
    ) -> Result<Self, TextError> {
        let config: GenerationConfig = checkpoint.json("generation_config.json")?.unwrap_or_default();
        let tokens: TokenizerConfig = checkpoint.json("tokenizer_config.json")?.unwrap_or_default();
        let tokenizer = Tokenizer::read(checkpoint)?;
        let source = match template {
            Some(file) => fs::read_to_string(file)
                .map_err(|error| TextError::TemplateFile { file: file.display().to_string(), error })?,
            None => match info.template.clone() {
                Some(template) => template,
                None => template::find(checkpoint)?.ok_or_else(|| TemplateError::Missing {
                    folder: checkpoint.folder().display().to_string(),
                })?,
            },
        };
        let id = info.placeholder;
        let placeholder = tokenizer.token(id).ok_or(TextError::NoPlaceholder { id })?;
        let divider = info.stretches.then(|| placeholder.clone());
        let eos = SpecialToken::text(tokens.eos_token);
        // A tokenizer may be older than the network's videos.
        let video = info.video.and_then(|video| Some((video, tokenizer.token(video.placeholder)?)));
        let (video, video_text) = video.unzip();
        let marks = Marks {
            picture: placeholder,
            video: video_text.unwrap_or_default(),
            bos: SpecialToken::text(tokens.bos_token),
            eos: eos.clone(),
        };
        let template = ChatTemplate::new(&source, marks)?;
        // What ends a turn in the template ends an answer, too.
        let after = template.after_answer();
        let turn_end = after.and_then(|after| tokenizer.control_at_start(after.trim_start()));
        let mut stops: Vec<u32> = ids(config.eos_token_id.as_ref())
            .chain(info.stops.iter().copied())
            .chain(tokenizer.id(&eos))
            .chain(turn_end)
            .collect();
        stops.sort_unstable();
        stops.dedup();
        let (tokenizer, stops) = (Arc::new(tokenizer), Arc::<[u32]>::from(stops));
        Ok(Self {
            grammars: Grammars::new(Arc::clone(&tokenizer), Arc::clone(&stops)),
            tokenizer,
            template,
            placeholder: id,
            video,
            divider,
            stops,
            defaults: config.defaults,
        })
    }

    /// The tokens of a conversation whose pictures, and moments of videos, take `footprints`. `context` bounds prompt and
    /// answer together, and an answer has at least one token.
    ///
    /// # Errors
    /// When it is too long, or the template refuses it.
    pub fn prompt(
        &self,
        conversation: &Conversation,
        footprints: &[Footprint],
        context: usize,
    ) -> Result<Prompt, PromptError> {
        let messages = &conversation.messages;
        let rows: usize = footprints.iter().map(|footprint| footprint.tokens.len()).sum();
        let check = |tokens: usize| {
            if tokens >= context { Err(PromptError::TooLong { tokens, limit: context }) } else { Ok(()) }
        };
        // Before anything long is worked on.
        check(rows + self.tokenizer.least_tokens(words(conversation)))?;
        let text = self.template.render(&self.marked(conversation))?;
        let ids = self.ids(&text)?;
        self.check_media(&ids, messages, footprints)?;
        if ids.is_empty() {
            return Err(PromptError::Empty);
        }
        let shown = ids.iter().filter(|&&id| self.stands_for_media(id)).count();
        check(ids.len() - shown + rows)?;
        let mut tokens = Vec::with_capacity(ids.len() - shown + rows);
        let mut spans = Vec::with_capacity(footprints.len());
        let mut footprints = footprints.iter().peekable();
        for id in ids {
            if !self.stands_for_media(id) {
                tokens.push(id);
                continue;
            }
            let mut next = footprints.next();
            while let Some(footprint) = next {
                let rows = tokens.len()..tokens.len() + footprint.tokens.len();
                spans.push(Span { rows, grid: footprint.grid, memory: footprint.memory });
                tokens.extend_from_slice(&footprint.tokens);
                next = footprints.next_if(|footprint| footprint.continues());
            }
        }
        Ok(Prompt { tokens, spans })
    }

    /// The tokens of a text without a conversation around it, none of which is a control token but the one that begins
    /// a text.
    ///
    /// # Errors
    /// When the tokenizer fails.
    pub fn bare_tokens(&self, text: &str) -> Result<Vec<u32>, TokenizerError> {
        self.tokenizer.encode(&self.tokenizer.mark(text), true)
    }

    /// Whether a token's place is taken by rows of a medium.
    pub fn stands_for_media(&self, id: u32) -> bool {
        id == self.placeholder || self.video.is_some_and(|video| id == video.placeholder)
    }

    /// Whether the rendered `ids` show what was sent, each in its place.
    fn check_media(
        &self,
        ids: &[u32],
        messages: &[Message],
        footprints: &[Footprint],
    ) -> Result<(), PromptError> {
        let shown: Vec<u32> = ids.iter().copied().filter(|&id| self.stands_for_media(id)).collect();
        let sent = footprints.iter().filter(|footprint| !footprint.continues()).count();
        let parts = messages.iter().flat_map(|message| &message.parts);
        let wanted = parts.filter_map(|part| match part {
            Part::Text(_) => None,
            Part::Picture => Some(Some(self.placeholder)),
            Part::Video => Some(self.video.map(|video| video.placeholder)),
        });
        let wanted: Vec<Option<u32>> = wanted.collect();
        if wanted.contains(&None) {
            return Err(PromptError::NoVideo);
        }
        if shown.len() != sent {
            let videos = wanted.iter().any(|&id| id != Some(self.placeholder));
            return Err(PromptError::Media { shown: shown.len(), sent, videos });
        }
        if shown.iter().ne(wanted.iter().flatten()) {
            return Err(PromptError::Order);
        }
        Ok(())
    }

    fn ids(&self, text: &str) -> Result<Vec<u32>, TokenizerError> {
        let encode = |text: &str| self.tokenizer.encode(text, !self.template.begins(text));
        let Some(divider) = self.divider.as_ref().filter(|divider| text.contains(divider.as_str())) else {
            return encode(text);
        };
        let mut ids = Vec::new();
        for (index, stretch) in text.split(divider).enumerate() {
            if index > 0 {
                ids.push(self.placeholder);
            }
            ids.extend(encode(stretch)?);
        }
        Ok(ids)
    }

    /// What turns tokens into text.
    pub fn tokenizer(&self) -> &Arc<Tokenizer> {
        &self.tokenizer
    }

    /// How videos are taken; [`None`] where they are not.
    pub fn video(&self) -> Option<VideoInfo> {
        self.video
    }

    /// Ids that end an answer.
    pub fn stops(&self) -> &Arc<[u32]> {
        &self.stops
    }

    /// What the checkpoint's authors suggest.
    pub fn defaults(&self) -> Defaults {
        self.defaults
    }

    /// What compiles grammars of answers.
    pub fn grammars(&self) -> &Grammars {
        &self.grammars
    }

    /// How the model writes calls of functions.
    pub fn call_syntax(&self) -> CallSyntax {
        self.template.call_syntax()
    }

    /// The conversation with marks in whatever would be read as a control token.
    fn marked(&self, conversation: &Conversation) -> Conversation {
        let mark = |text: &String| self.tokenizer.mark(text).into_owned();
        let part = |part: &Part| match part {
            Part::Text(text) => Part::Text(mark(text)),
            other => other.clone(),
        };
        let call = |call: &Call| Call {
            id: call.id.clone(),
            name: mark(&call.name),
            arguments: self.marked_json(&call.arguments),
        };
        let message = |message: &Message| Message {
            role: message.role,
            parts: message.parts.iter().map(part).collect(),
            calls: message.calls.iter().map(call).collect(),
            answers: message.answers.clone(),
        };
        let tool = |tool: &Tool| Tool {
            name: mark(&tool.name),
            description: tool.description.as_ref().map(mark),
            parameters: tool.parameters.as_ref().map(|schema| self.marked_json(schema)),
            strict: tool.strict,
        };
        Conversation {
            messages: conversation.messages.iter().map(message).collect(),
            tools: conversation.tools.iter().map(tool).collect(),
            continues: conversation.continues,
        }
    }

    fn marked_json(&self, value: &Value) -> Value {
        let mark = |text: &String| self.tokenizer.mark(text).into_owned();
        match value {
            Value::String(text) => Value::String(mark(text)),
            Value::Array(items) => items.iter().map(|item| self.marked_json(item)).collect(),
            Value::Object(fields) => {
                fields.iter().map(|(key, value)| (mark(key), self.marked_json(value))).collect()
            }
            other => other.clone(),
        }
    }
}

/// Bytes of text in a conversation, at least.
fn words(conversation: &Conversation) -> usize {
    let parts = conversation.messages.iter().flat_map(|message| &message.parts);
    parts.map(|part| if let Part::Text(text) = part { text.len() } else { 0 }).sum()
}

#[derive(Default, Deserialize)]
struct GenerationConfig {
    eos_token_id: Option<Value>,
    #[serde(flatten)]
    defaults: Defaults,
}

#[derive(Default, Deserialize)]
struct TokenizerConfig {
    bos_token: Option<SpecialToken>,
    eos_token: Option<SpecialToken>,
}

/// A token as older and newer files write it.
#[derive(Deserialize)]
#[serde(untagged)]
enum SpecialToken {
    Text(String),
    Added { content: String },
}

impl SpecialToken {
    fn text(token: Option<Self>) -> String {
        match token {
            Some(Self::Text(content) | Self::Added { content }) => content,
            None => String::new(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::text::Role;

    const PLACEHOLDER: u32 = 480;

    fn model() -> TextModel {
        let checkpoint = Checkpoint::new(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/llava"));
        let info = TextInfo::new(4096, PLACEHOLDER, Vec::new());
        TextModel::read(&checkpoint, &info, None).unwrap()
    }

    fn turn(role: Role, parts: &[&str]) -> Message {
        let part = |part: &&str| if *part == "P" { Part::Picture } else { Part::Text((*part).into()) };
        Message::new(role, parts.iter().map(part).collect())
    }

    fn conversation(messages: &[Message]) -> Conversation {
        Conversation { messages: messages.to_vec(), ..Conversation::default() }
    }

    #[test]
    fn placeholders_become_runs() {
        let model = model();
        let footprint = Footprint::line(vec![PLACEHOLDER; 16]);
        let messages = [turn(Role::User, &["P", "P", "compare the two images."])];
        let prompt =
            model.prompt(&conversation(&messages), &[footprint.clone(), footprint.clone()], 4096).unwrap();
        assert_eq!(prompt.tokens.len(), 66);
        assert_eq!(prompt.spans, [Span::line(8..24), Span::line(26..42)]);
        assert!(prompt.tokens[26..42].iter().all(|&id| id == PLACEHOLDER));

        let error =
            model.prompt(&conversation(&messages), &[footprint.clone(), footprint.clone()], 66).unwrap_err();
        assert!(matches!(error, PromptError::TooLong { tokens: 66, limit: 66 }), "{error}");
        assert!(model.prompt(&conversation(&messages), &[footprint.clone(), footprint], 67).is_ok());
        let error = model.prompt(&conversation(&messages), &[], 4096).unwrap_err();
        assert!(matches!(error, PromptError::Media { shown: 2, sent: 0, videos: false }), "{error}");
    }

    #[test]
    fn a_placeholder_in_user_text_takes_no_picture() {
        let messages = [turn(Role::User, &["what does <image> mean in HTML?"])];
        let prompt = model().prompt(&conversation(&messages), &[], 4096).unwrap();
        assert!(!prompt.tokens.contains(&PLACEHOLDER));
    }

    #[test]
    fn an_endless_text_is_refused_before_it_is_tokenized() {
        let messages = [turn(Role::User, &[&"word ".repeat(10_000_000)])];
        let error = model().prompt(&conversation(&messages), &[], 4096).unwrap_err();
        assert!(matches!(error, PromptError::TooLong { .. }), "{error}");
    }

    #[test]
    fn answers_end_at_every_token_that_says_so() {
        assert_eq!(model().stops()[..], [2]);
    }
}
