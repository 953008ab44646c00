//! The checkpoint's own chat template: messages to one text with placeholders.

use std::io::{self, Write};

use minijinja::{Environment, Error, ErrorKind, Value, context, syntax::SyntaxConfig, value::Kwargs};
use percept_models::{Checkpoint, LoadError};
use serde::Deserialize;

/// Who speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// The operator of the conversation; `developer` is the same.
    System,
    /// The one who asks.
    User,
    /// The model.
    Assistant,
}

/// A turn of a conversation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    /// Who speaks.
    pub role: Role,
    /// What is said and shown, in order.
    pub parts: Vec<Part>,
}

/// A part of a turn.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Part {
    /// Words.
    Text(String),
    /// The next of the request's pictures.
    Picture,
}

/// Why a template cannot be used, or refuses a conversation.
#[derive(Debug, thiserror::Error)]
pub enum TemplateError {
    /// The checkpoint has none.
    #[error(
        "{folder} has no chat template (chat_template.jinja, chat_template.json, or in processor_config.json or \
         tokenizer_config.json): give one with --chat-template FILE"
    )]
    Missing {
        /// Where it was looked for.
        folder: String,
    },
    /// It is not a template.
    #[error("the chat template is broken: {0}")]
    Broken(String),
    /// It says no.
    #[error("the model's chat template refuses this conversation: {0}")]
    Refused(String),
}

/// How a template wants a turn's content.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Content {
    /// `[{"type": "image"}, {"type": "text", "text": "…"}]`.
    Parts,
    /// One string, with the placeholder's text where pictures are.
    Text,
}

/// A chat template, compiled.
#[derive(Debug)]
pub struct ChatTemplate {
    environment: Environment<'static>,
    content: Content,
    /// Some take the operator's words out as one text, whatever the others' turns are.
    system: Content,
    placeholder: String,
    bos: String,
    eos: String,
}

const NAME: &str = "chat_template";
/// Steps that a rendering may take: far more than a long conversation needs, about a second at most.
const FUEL: u64 = 5_000_000;
/// Bytes that a rendering may give beyond four times its input.
const OUTPUT: usize = 1 << 20;

/// Reads the template of a checkpoint; [`None`] where it has none.
///
/// # Errors
/// When a file is there but broken.
pub fn find(checkpoint: &Checkpoint) -> Result<Option<String>, LoadError> {
    #[derive(Deserialize)]
    struct Holder {
        chat_template: Option<Template>,
    }
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Template {
        One(String),
        Several(Vec<Named>),
    }
    #[derive(Deserialize)]
    struct Named {
        name: String,
        template: String,
    }
    if let Some(text) = checkpoint.text("chat_template.jinja")? {
        return Ok(Some(text));
    }
    for file in ["chat_template.json", "processor_config.json", "tokenizer_config.json"] {
        let template = checkpoint.json::<Holder>(file)?.and_then(|holder| holder.chat_template);
        match template {
            Some(Template::One(text)) => return Ok(Some(text)),
            Some(Template::Several(list)) => {
                let default = list.into_iter().find(|template| template.name == "default");
                if let Some(default) = default {
                    return Ok(Some(default.template));
                }
            }
            None => {}
        }
    }
    Ok(None)
}

impl ChatTemplate {
    /// Compiles a template. `placeholder` is the text of the token that stands for a picture.
    ///
    /// # Errors
    /// When it is not a template, or drops what is said.
    pub fn new(source: &str, placeholder: String, bos: String, eos: String) -> Result<Self, TemplateError> {
        let mut environment = Environment::new();
        // As transformers compiles them.
        let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
        environment.set_syntax(syntax.map_err(|error| TemplateError::Broken(error.to_string()))?);
        environment.set_fuel(Some(FUEL));
        environment.set_recursion_limit(100);
        environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        environment.add_filter("tojson", to_json);
        environment.add_function("raise_exception", |message: String| -> Result<Value, Error> {
            Err(Error::new(ErrorKind::InvalidOperation, message))
        });
        environment.add_function("strftime_now", |format: String| -> Result<String, Error> {
            jiff::fmt::strtime::format(&format, &jiff::Zoned::now())
                .map_err(|error| Error::new(ErrorKind::InvalidOperation, error.to_string()))
        });
        environment
            .add_template_owned(NAME, without_generation_tags(source))
            .map_err(|error| TemplateError::Broken(error.to_string()))?;
        let content = Content::Parts;
        let mut template = Self { environment, content, system: content, placeholder, bos, eos };
        if !template.speaks(Role::User) {
            (template.content, template.system) = (Content::Text, Content::Text);
            if !template.speaks(Role::User) {
                return Err(TemplateError::Broken("it drops the text of a user's turn".into()));
            }
        }
        if !template.speaks(Role::System) {
            template.system = Content::Text;
            if !template.speaks(Role::System) {
                template.system = template.content;
            }
        }
        Ok(template)
    }

    /// Whether someone's words come through, and nothing of the structure around them.
    fn speaks(&self, role: Role) -> bool {
        const WORDS: &str = "5091720934";
        let turn = |role, words: &str| Message { role, parts: vec![Part::Text(words.into())] };
        let messages = match role {
            Role::System => vec![turn(role, WORDS), turn(Role::User, "a")],
            Role::User | Role::Assistant => vec![turn(role, WORDS)],
        };
        let structure = |text: &str| text.contains("'type'") || text.contains("\"type\"");
        self.try_render(&messages, true).is_ok_and(|text| text.contains(WORDS) && !structure(&text))
    }

    /// The text of a conversation, ready for the model to answer. Words must be [marked] first.
    ///
    /// A template that demands turns in alternation gets them: system turns are moved to the front and joined, and
    /// so are turns of one speaker that follow each other.
    ///
    /// [marked]: super::tokenizer::Tokenizer::mark
    ///
    /// # Errors
    /// When the template refuses the conversation.
    pub fn render(&self, messages: &[Message]) -> Result<String, TemplateError> {
        self.try_render(messages, true).or_else(|error| {
            let regular = regular(messages);
            if regular == messages { Err(error) } else { self.try_render(&regular, true) }
        })
    }

    /// What follows the model's own words in a conversation that goes on.
    pub fn after_answer(&self) -> Option<String> {
        const WORDS: &str = "5091720934";
        let turn = |role, words: &str| Message { role, parts: vec![Part::Text(words.into())] };
        let messages = [turn(Role::User, "a"), turn(Role::Assistant, WORDS)];
        let text = self.try_render(&messages, false).ok()?;
        text.split_once(WORDS).map(|(_, after)| after.to_owned())
    }

    /// Whether the text begins with the token that begins a text, so that the tokenizer must not add it.
    pub fn begins(&self, text: &str) -> bool {
        !self.bos.is_empty() && text.starts_with(&self.bos)
    }

    fn try_render(&self, messages: &[Message], answer: bool) -> Result<String, TemplateError> {
        let parts = messages.iter().flat_map(|message| &message.parts);
        let input: usize = parts
            .map(|part| match part {
                Part::Text(text) => text.len(),
                Part::Picture => self.placeholder.len(),
            })
            .sum();
        let messages: Vec<Value> = messages.iter().map(|message| self.value(message)).collect();
        let context = context! {
            messages,
            add_generation_prompt => answer,
            bos_token => &self.bos,
            eos_token => &self.eos,
        };
        let mut output = Bounded { bytes: Vec::new(), left: 4 * input + OUTPUT };
        let template = self.environment.get_template(NAME).map_err(|error| refused(&error))?;
        template.render_captured_to(context, &mut output).map_err(|error| refused(&error))?;
        String::from_utf8(output.bytes).map_err(|error| TemplateError::Refused(error.to_string()))
    }

    fn value(&self, message: &Message) -> Value {
        let role = match message.role {
            Role::System => "system",
            Role::User => "user",
            Role::Assistant => "assistant",
        };
        let content = if message.role == Role::System { self.system } else { self.content };
        match content {
            Content::Parts => {
                let parts = message.parts.iter().map(|part| match part {
                    Part::Text(text) => context! { type => "text", text },
                    Part::Picture => context! { type => "image" },
                });
                context! { role, content => parts.collect::<Vec<_>>() }
            }
            Content::Text => {
                let parts = message.parts.iter().map(|part| match part {
                    Part::Text(text) => text.clone(),
                    Part::Picture => format!("{}\n", self.placeholder),
                });
                context! { role, content => parts.collect::<String>() }
            }
        }
    }
}

/// System turns first, and no speaker twice in a row.
fn regular(messages: &[Message]) -> Vec<Message> {
    let (system, others): (Vec<_>, Vec<_>) =
        messages.iter().cloned().partition(|message| message.role == Role::System);
    let mut regular: Vec<Message> = Vec::new();
    for message in system.into_iter().chain(others) {
        match regular.last_mut().filter(|last| last.role == message.role) {
            Some(last) => {
                last.parts.push(Part::Text("\n".into()));
                last.parts.extend(message.parts);
            }
            None => regular.push(message),
        }
    }
    regular
}

/// `{% generation %}` marks the model's words for training; its body is rendered as it is.
fn without_generation_tags(source: &str) -> String {
    let mut out = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(start) = rest.find("{%") {
        let Some(length) = rest[start..].find("%}") else { break };
        let tag = &rest[start..start + length + 2];
        out.push_str(&rest[..start]);
        let word = tag[2..tag.len() - 2].trim_matches(['-', '+']).trim();
        match word {
            "generation" => out.push_str(&tag.replace("generation", "if true")),
            "endgeneration" => out.push_str(&tag.replace("endgeneration", "endif")),
            _ => out.push_str(tag),
        }
        rest = &rest[start + length + 2..];
    }
    out + rest
}

/// Python's `json.dumps`, which templates are written for: spaces behind commas and colons, nothing escaped for HTML.
#[expect(clippy::needless_pass_by_value, reason = "what a filter's signature must be")]
fn to_json(value: &Value, kwargs: Kwargs) -> Result<Value, Error> {
    struct Python;
    impl serde_json::ser::Formatter for Python {
        fn begin_array_value<W: ?Sized + Write>(&mut self, writer: &mut W, first: bool) -> io::Result<()> {
            if first { Ok(()) } else { writer.write_all(b", ") }
        }

        fn begin_object_key<W: ?Sized + Write>(&mut self, writer: &mut W, first: bool) -> io::Result<()> {
            if first { Ok(()) } else { writer.write_all(b", ") }
        }

        fn begin_object_value<W: ?Sized + Write>(&mut self, writer: &mut W) -> io::Result<()> {
            writer.write_all(b": ")
        }
    }
    use serde::Serialize as _;
    let mut out = Vec::new();
    let indent: Option<usize> = kwargs.get("indent")?;
    let written = match indent {
        None => value.serialize(&mut serde_json::Serializer::with_formatter(&mut out, Python)),
        Some(width) => {
            let spaces = " ".repeat(width.min(16));
            let formatter = serde_json::ser::PrettyFormatter::with_indent(spaces.as_bytes());
            value.serialize(&mut serde_json::Serializer::with_formatter(&mut out, formatter))
        }
    };
    let failed = |error: &dyn std::fmt::Display| Error::new(ErrorKind::BadSerialization, error.to_string());
    written.map_err(|error| failed(&error))?;
    String::from_utf8(out).map(Value::from_safe_string).map_err(|error| failed(&error))
}

/// The message alone: an error of the template is told to a client, who has no use for line numbers.
fn refused(error: &Error) -> TemplateError {
    let detail = error.detail().map_or_else(|| error.kind().to_string(), str::to_owned);
    TemplateError::Refused(detail)
}

/// A buffer that takes so much and no more.
struct Bounded {
    bytes: Vec<u8>,
    left: usize,
}

impl Write for Bounded {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.left =
            self.left.checked_sub(bytes.len()).ok_or_else(|| io::Error::other("the text is too long"))?;
        self.bytes.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
