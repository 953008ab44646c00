//! The checkpoint's own chat template: messages to one text with placeholders.

use std::{
    borrow::Cow,
    io::{self, Write},
};

use minijinja::{
    Environment, Error, ErrorKind, Value, context,
    syntax::SyntaxConfig,
    value::{Kwargs, Serde},
};
use percept_models::{Checkpoint, LoadError};
use serde::Deserialize;

use super::tools::{self, Call, CallSyntax, Tool};

/// Who speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// The operator of the conversation; `developer` is the same.
    System,
    /// The one who asks.
    User,
    /// The model.
    Assistant,
    /// A function that the model called.
    Tool,
}

/// A turn of a conversation.
#[derive(Debug, Clone, PartialEq)]
pub struct Message {
    /// Who speaks.
    pub role: Role,
    /// What is said and shown, in order.
    pub parts: Vec<Part>,
    /// Functions that the model calls behind that.
    pub calls: Vec<Call>,
    /// The call whose result this is, by its id.
    pub answers: Option<String>,
}

impl Message {
    /// A turn of words, pictures and videos.
    pub fn new(role: Role, parts: Vec<Part>) -> Self {
        Self { role, parts, calls: Vec::new(), answers: None }
    }
}

/// A conversation that a model is to go on with.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Conversation {
    /// Its turns.
    pub messages: Vec<Message>,
    /// Functions that the model may call.
    pub tools: Vec<Tool>,
    /// Whether the last turn, one of the model's, is to go on, instead of being followed by another.
    pub continues: bool,
}

/// A part of a turn.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Part {
    /// Words.
    Text(String),
    /// The next of the request's media, a picture.
    Picture,
    /// The next of the request's media, a video.
    Video,
}

/// Texts of tokens that templates write.
#[derive(Debug, Clone, Default)]
pub struct Marks {
    /// Stands for a picture.
    pub picture: String,
    /// Stands for a video; empty where the model takes none.
    pub video: String,
    /// Begins a text.
    pub bos: String,
    /// Ends a text.
    pub eos: String,
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
    /// By [`Role`]: some templates want a list from the one who asks, and a string from others.
    content: [Content; 4],
    marks: Marks,
    /// Whether it takes system turns.
    takes_system: bool,
    /// How it writes calls of functions; [`None`] where it knows no functions.
    calls: Option<CallSyntax>,
}

/// Digits that no template has, to see what becomes of words.
const WORDS: &str = "5091720934";

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
    /// Compiles a template.
    ///
    /// # Errors
    /// When it is not a template, or drops what is said.
    pub fn new(source: &str, marks: Marks) -> Result<Self, TemplateError> {
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
        let content = [Content::Parts; 4];
        let mut template = Self { environment, content, marks, takes_system: false, calls: None };
        if !template.speaks(Role::User) {
            template.content = [Content::Text; 4];
            if !template.speaks(Role::User) {
                return Err(TemplateError::Broken("it drops the text of a user's turn".into()));
            }
        }
        for role in [Role::System, Role::Assistant] {
            let usual = template.content[role as usize];
            let forms = [usual, Content::Parts, Content::Text];
            let speaks = |form: &Content| {
                template.content[role as usize] = *form;
                template.speaks(role)
            };
            // One that takes no turns of that role at all says so when it gets one.
            let form = forms.into_iter().find(speaks);
            template.content[role as usize] = form.unwrap_or(usual);
            template.takes_system |= role == Role::System && form.is_some();
        }
        for form in [Content::Text, Content::Parts] {
            template.content[Role::Tool as usize] = form;
            template.calls = template.learn_calls();
            if template.calls.is_some() {
                break;
            }
        }
        Ok(template)
    }

    /// How the template writes calls of functions, where it shows functions, calls and results.
    fn learn_calls(&self) -> Option<CallSyntax> {
        let turn = |role, words: &str| Message::new(role, vec![Part::Text(words.into())]);
        let name = tools::PROBE_NAME.to_owned();
        let tool = Tool { name, description: Some("a".into()), parameters: None, strict: false };
        let ask = [turn(Role::User, "a")];
        let asked = self.try_render(&ask, std::slice::from_ref(&tool), true).ok()?;
        if !asked.contains(tools::PROBE_NAME) {
            return None;
        }
        let calling = |count: usize| {
            let calls = CallSyntax::probes(count);
            Message { calls, ..Message::new(Role::Assistant, Vec::new()) }
        };
        let [call] = CallSyntax::probes(1).try_into().ok()?;
        let result = Message { answers: Some(call.id), ..turn(Role::Tool, WORDS) };
        let [ask] = ask;
        let whole = [ask.clone(), calling(1), result];
        let whole = self.try_render(&whole, std::slice::from_ref(&tool), true).ok()?;
        if !whole.contains(WORDS) || whole.matches(tools::PROBE_NAME).count() < 2 {
            return None;
        }
        let end = self.after_answer();
        let calls = |count: usize| {
            let text =
                self.try_render(&[ask.clone(), calling(count)], std::slice::from_ref(&tool), false).ok()?;
            let calls = text.strip_prefix(asked.as_str())?;
            Some(end.as_deref().and_then(|end| calls.strip_suffix(end)).unwrap_or(calls).to_owned())
        };
        CallSyntax::learned(&calls(1)?, calls(2).as_deref())
    }

    /// How the model writes calls of functions.
    pub fn call_syntax(&self) -> CallSyntax {
        self.calls.clone().unwrap_or_else(CallSyntax::usual)
    }

    /// Whether the words of a role come through, and nothing of the structure around them.
    fn speaks(&self, role: Role) -> bool {
        let turn = |role, words: &str| Message::new(role, vec![Part::Text(words.into())]);
        let messages = match role {
            Role::System => vec![turn(role, WORDS), turn(Role::User, "a")],
            Role::User => vec![turn(role, WORDS)],
            Role::Assistant | Role::Tool => {
                vec![turn(Role::User, "a"), turn(role, WORDS), turn(Role::User, "b")]
            }
        };
        let structure = |text: &str| text.contains("'type'") || text.contains("\"type\"");
        self.try_render(&messages, &[], true).is_ok_and(|text| text.contains(WORDS) && !structure(&text))
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
    pub fn render(&self, conversation: &Conversation) -> Result<String, TemplateError> {
        let Conversation { messages, tools, continues } = conversation;
        let has_tools = |message: &Message| message.role == Role::Tool || !message.calls.is_empty();
        let (messages, tools) = match self.calls {
            None if !tools.is_empty() || messages.iter().any(has_tools) => {
                (Cow::Owned(tools::described(messages, tools, self.takes_system)), &[][..])
            }
            _ => (Cow::Borrowed(messages), tools.as_slice()),
        };
        self.go_on(&messages, tools, *continues).or_else(|error| {
            let regular = regular(&messages);
            if regular == *messages { Err(error) } else { self.go_on(&regular, tools, *continues) }
        })
    }

    /// Renders up to where the model goes on: in a turn of its own, or in the last one.
    fn go_on(&self, messages: &[Message], tools: &[Tool], continues: bool) -> Result<String, TemplateError> {
        if !continues {
            return self.try_render(messages, tools, true);
        }
        // So that its end is found, and no space in front of it is dropped.
        let mut marked = messages.to_vec();
        if let Some(last) = marked.last_mut() {
            last.parts.push(Part::Text(WORDS.into()));
        }
        let text = self.try_render(&marked, tools, false)?;
        let end = text.rfind(WORDS).ok_or_else(|| TemplateError::Refused("it drops the last turn".into()))?;
        Ok(text[..end].to_owned())
    }

    /// What follows the model's own words in a conversation that goes on.
    pub fn after_answer(&self) -> Option<String> {
        let turn = |role, words: &str| Message::new(role, vec![Part::Text(words.into())]);
        let messages = [turn(Role::User, "a"), turn(Role::Assistant, WORDS)];
        let text = self.try_render(&messages, &[], false).ok()?;
        text.split_once(WORDS).map(|(_, after)| after.to_owned())
    }

    /// Whether the text begins with the token that begins a text, so that the tokenizer must not add it.
    pub fn begins(&self, text: &str) -> bool {
        !self.marks.bos.is_empty() && text.starts_with(&self.marks.bos)
    }

    fn try_render(
        &self,
        messages: &[Message],
        tools: &[Tool],
        answer: bool,
    ) -> Result<String, TemplateError> {
        let parts = messages.iter().flat_map(|message| &message.parts);
        let input: usize = parts
            .map(|part| match part {
                Part::Text(text) => text.len(),
                Part::Picture => self.marks.picture.len(),
                Part::Video => self.marks.video.len(),
            })
            .sum();
        let tools: Vec<Value> = tools.iter().map(|tool| Value::from(Serde(tool.value()))).collect();
        let messages: Vec<Value> = messages.iter().map(|message| self.value(message)).collect();
        // Where there are none, a template finds nothing defined.
        let tools = if tools.is_empty() { Value::UNDEFINED } else { Value::from(tools) };
        let context = context! {
            messages,
            tools,
            add_generation_prompt => answer,
            bos_token => &self.marks.bos,
            eos_token => &self.marks.eos,
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
            Role::Tool => "tool",
        };
        let content = match self.content[message.role as usize] {
            Content::Parts => {
                let parts = message.parts.iter().map(|part| match part {
                    Part::Text(text) => context! { type => "text", text },
                    Part::Picture => context! { type => "image" },
                    Part::Video => context! { type => "video" },
                });
                Value::from(parts.collect::<Vec<_>>())
            }
            Content::Text => {
                let parts = message.parts.iter().map(|part| match part {
                    Part::Text(text) => text.clone(),
                    Part::Picture => format!("{}\n", self.marks.picture),
                    Part::Video => format!("{}\n", self.marks.video),
                });
                Value::from(parts.collect::<String>())
            }
        };
        if let Some(call) = &message.answers {
            return context! { role, content, tool_call_id => short_id(call) };
        }
        if message.calls.is_empty() {
            return context! { role, content };
        }
        let calls = message.calls.iter().map(|call| {
            let (name, arguments) = (&call.name, Value::from(Serde(&call.arguments)));
            context! { id => short_id(&call.id), type => "function", function => context! { name, arguments } }
        });
        context! { role, content, tool_calls => calls.collect::<Vec<_>>() }
    }
}

/// The id of a call as templates get it: some take nine letters and digits only.
fn short_id(id: &str) -> String {
    const LENGTH: usize = 9;
    if id.len() == LENGTH && id.bytes().all(|byte| byte.is_ascii_alphanumeric()) {
        return id.to_owned();
    }
    blake3::hash(id.as_bytes()).to_hex()[..LENGTH].to_owned()
}

/// System turns first, and no speaker twice in a row.
fn regular(messages: &[Message]) -> Vec<Message> {
    let (system, others): (Vec<_>, Vec<_>) =
        messages.iter().cloned().partition(|message| message.role == Role::System);
    let mut regular: Vec<Message> = Vec::new();
    for message in system.into_iter().chain(others) {
        let joins = |last: &&mut Message| {
            last.role == message.role
                && last.role != Role::Tool
                && last.calls.is_empty()
                && message.calls.is_empty()
        };
        match regular.last_mut().filter(joins) {
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
        // Behind the beginning: `{%}` is not a whole one.
        let Some(length) = rest[start + 2..].find("%}") else { break };
        let tag = &rest[start..start + length + 4];
        out.push_str(&rest[..start]);
        let word = tag[2..tag.len() - 2].trim_matches(['-', '+']).trim();
        match word {
            "generation" => out.push_str(&tag.replace("generation", "if true")),
            "endgeneration" => out.push_str(&tag.replace("endgeneration", "endif")),
            _ => out.push_str(tag),
        }
        rest = &rest[start + length + 4..];
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

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn turn(role: Role, parts: &[&str]) -> Message {
        let part = |part: &&str| if *part == "P" { Part::Picture } else { Part::Text((*part).into()) };
        Message::new(role, parts.iter().map(part).collect())
    }

    fn marks(picture: &str, bos: &str, eos: &str) -> Marks {
        Marks { picture: picture.into(), video: String::new(), bos: bos.into(), eos: eos.into() }
    }

    fn conversation(messages: &[Message]) -> Conversation {
        Conversation { messages: messages.to_vec(), ..Conversation::default() }
    }

    /// One turn, several, a system turn in front, two pictures.
    fn conversations() -> [Vec<Message>; 4] {
        let question = turn(Role::User, &["P", "what is it?"]);
        [
            vec![question.clone()],
            vec![question.clone(), turn(Role::Assistant, &["a cat"]), turn(Role::User, &["sure?"])],
            vec![turn(Role::System, &["be brief"]), question],
            vec![turn(Role::User, &["P", "P", "compare them"])],
        ]
    }

    /// Templates with the constructs that published checkpoints use, and what these make of conversations.
    fn check(source: &str, (placeholder, bos, eos): (&str, &str, &str), expected: [&str; 4]) {
        let template = ChatTemplate::new(source, marks(placeholder, bos, eos)).expect("a template");
        for (messages, expected) in conversations().iter().zip(expected) {
            let found =
                template.render(&conversation(messages)).unwrap_or_else(|error| format!("refused: {error}"));
            assert_eq!(found, expected);
        }
    }

    #[test]
    fn tags_that_are_none_are_left_alone() {
        for source in ["{%}", "{% %}", "a {%", "{%} x %}", "{%-%}", "é{%}é"] {
            assert_eq!(without_generation_tags(source), source);
        }
        assert_eq!(
            without_generation_tags("{%- generation %}a{% endgeneration -%}"),
            "{%- if true %}a{% endif -%}"
        );
    }

    #[test]
    fn vicuna_shouts_roles_and_shows_pictures_first() {
        // LLaVA-1.5 and LLaVA-NeXT with Vicuna.
        let source = "{% for message in messages %}{% if message['role'] != 'system' %}{{ message['role'].upper() + ': ' }}\
            {% endif %}{% for _ in message['content'] | selectattr('type', 'equalto', 'image') %}{{ '<image>\n' }}\
            {% endfor %}{% if message['role'] != 'assistant' %}\
            {% for part in message['content'] | selectattr('type', 'equalto', 'text') %}{{ part['text'] + ' ' }}\
            {% endfor %}{% else %}{% for part in message['content'] | selectattr('type', 'equalto', 'text') %}\
            {% generation %}{{ part['text'] + ' ' }}{% endgeneration %}{% endfor %}{% endif %}{% endfor %}\
            {% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}";
        check(
            source,
            ("<image>", "<s>", "</s>"),
            [
                "USER: <image>\nwhat is it? ASSISTANT:",
                "USER: <image>\nwhat is it? ASSISTANT: a cat USER: sure? ASSISTANT:",
                "be brief USER: <image>\nwhat is it? ASSISTANT:",
                "USER: <image>\n<image>\ncompare them ASSISTANT:",
            ],
        );
    }

    #[test]
    fn chatml_has_pictures_where_they_are() {
        // LLaVA-NeXT with Yi-34B.
        let source = "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' }}\
            {% for part in message['content'] | selectattr('type', 'equalto', 'image') %}{{ '<image>\n' }}{% endfor %}\
            {% for part in message['content'] | selectattr('type', 'equalto', 'text') %}{{ part['text'] }}{% endfor %}\
            {{ '<|im_end|>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}";
        check(
            source,
            ("<image>", "<s>", "<|im_end|>"),
            [
                "<|im_start|>user\n<image>\nwhat is it?<|im_end|>\n<|im_start|>assistant\n",
                "<|im_start|>user\n<image>\nwhat is it?<|im_end|>\n<|im_start|>assistant\na cat<|im_end|>\n\
                 <|im_start|>user\nsure?<|im_end|>\n<|im_start|>assistant\n",
                "<|im_start|>system\nbe brief<|im_end|>\n\
                 <|im_start|>user\n<image>\nwhat is it?<|im_end|>\n<|im_start|>assistant\n",
                "<|im_start|>user\n<image>\n<image>\ncompare them<|im_end|>\n<|im_start|>assistant\n",
            ],
        );
    }

    #[test]
    fn qwen_counts_pictures_and_adds_a_system_turn() {
        let source = "{% set pictures = namespace(value=0) %}{% for message in messages %}\
            {% if loop.first and message['role'] != 'system' %}<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n\
            {% endif %}<|im_start|>{{ message['role'] }}\n{% if message['content'] is string %}{{ message['content'] }}\
            <|im_end|>\n{% else %}{% for part in message['content'] %}\
            {% if part['type'] == 'image' or 'image' in part or 'image_url' in part %}\
            {% set pictures.value = pictures.value + 1 %}{% if add_vision_id %}Picture {{ pictures.value }}: {% endif %}\
            <|vision_start|><|image_pad|><|vision_end|>{% elif 'text' in part %}{{ part['text'] }}{% endif %}\
            {% endfor %}<|im_end|>\n{% endif %}{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}";
        let picture = "<|vision_start|><|image_pad|><|vision_end|>";
        let helpful = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n";
        let user = |text: &str| format!("<|im_start|>user\n{text}<|im_end|>\n");
        let asked = user(&format!("{picture}what is it?"));
        let end = "<|im_start|>assistant\n";
        check(
            source,
            ("<|image_pad|>", "", "<|im_end|>"),
            [
                &format!("{helpful}{asked}{end}"),
                &format!("{helpful}{asked}{end}a cat<|im_end|>\n{}{end}", user("sure?")),
                &format!("<|im_start|>system\nbe brief<|im_end|>\n{asked}{end}"),
                &format!("{helpful}{}{end}", user(&format!("{picture}{picture}compare them"))),
            ],
        );
    }

    #[test]
    fn llama_3_2_takes_its_system_turn_as_a_string_and_not_beside_pictures() {
        let source = "{{- bos_token }}{%- if messages[0]['role'] == 'system' %}\
            {%- set system = messages[0]['content'] | trim %}{%- set messages = messages[1:] %}{%- else %}\
            {%- set system = '' %}{%- endif %}{%- set seen = namespace(pictures=false) %}\
            {%- for message in messages %}{%- for part in message['content'] %}{%- if part['type'] == 'image' %}\
            {%- set seen.pictures = true %}{%- endif %}{%- endfor %}{%- endfor %}\
            {%- if seen.pictures and not system == '' %}\
            {{- raise_exception('Prompting with images is incompatible with system messages.') }}{%- endif %}\
            {%- if not seen.pictures %}{{- '<|start_header_id|>system<|end_header_id|>\n\n' + system + '<|eot_id|>' }}\
            {%- endif %}{%- for message in messages %}\
            {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' }}\
            {%- if message['content'] is string %}{{- message['content'] }}{%- else %}\
            {%- for part in message['content'] %}{%- if part['type'] == 'image' %}{{- '<|image|>' }}\
            {%- elif part['type'] == 'text' %}{{- part['text'] }}{%- endif %}{%- endfor %}{%- endif %}\
            {{- '<|eot_id|>' }}{%- endfor %}\
            {%- if add_generation_prompt %}{{- '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{%- endif %}";
        let tokens = ("<|image|>", "<|begin_of_text|>", "<|eot_id|>");
        let head = |role: &str| format!("<|start_header_id|>{role}<|end_header_id|>\n\n");
        let (user, end) = (head("user"), head("assistant"));
        let first = format!("<|begin_of_text|>{user}<|image|>what is it?<|eot_id|>{end}");
        check(
            source,
            tokens,
            [
                &first,
                &format!("{first}a cat<|eot_id|>{user}sure?<|eot_id|>{end}"),
                "refused: the model's chat template refuses this conversation: \
                 Prompting with images is incompatible with system messages.",
                &format!("<|begin_of_text|>{user}<|image|><|image|>compare them<|eot_id|>{end}"),
            ],
        );
        let (placeholder, bos, eos) = tokens;
        let template = ChatTemplate::new(source, marks(placeholder, bos, eos)).expect("a template");
        let words = [turn(Role::System, &["be brief"]), turn(Role::User, &["hello"])];
        let system = head("system");
        let expected = format!("<|begin_of_text|>{system}be brief<|eot_id|>{user}hello<|eot_id|>{end}");
        assert_eq!(template.render(&conversation(&words)).expect("a prompt"), expected);
    }

    #[test]
    fn mistral_adds_strings_to_strings() {
        // Pixtral's: strings from the system and the model, parts from the user.
        let source = "{%- if messages[0]['role'] == 'system' %}{%- set system = messages[0]['content'] %}\
            {%- set turns = messages[1:] %}{%- else %}{%- set turns = messages %}{%- endif %}{{- bos_token }}\
            {%- for message in turns %}{%- if message['role'] == 'user' %}{{- '[INST]' }}\
            {%- if loop.last and system is defined %}{{- system + '\n\n' }}{%- endif %}\
            {%- if message['content'] is not string %}{%- for part in message['content'] %}\
            {%- if part['type'] == 'text' %}{{- part['text'] }}{%- elif part['type'] == 'image' %}{{- '[IMG]' }}\
            {%- endif %}{%- endfor %}{%- else %}{{- message['content'] }}{%- endif %}{{- '[/INST]' }}\
            {%- elif message['role'] == 'assistant' %}{{- message['content'] + eos_token }}{%- endif %}{%- endfor %}";
        check(
            source,
            ("[IMG]", "<s>", "</s>"),
            [
                "<s>[INST][IMG]what is it?[/INST]",
                "<s>[INST][IMG]what is it?[/INST]a cat</s>[INST]sure?[/INST]",
                "<s>[INST]be brief\n\n[IMG]what is it?[/INST]",
                "<s>[INST][IMG][IMG]compare them[/INST]",
            ],
        );
    }

    fn weather() -> Tool {
        let parameters = json!({"type": "object", "properties": {"city": {"type": "string"}}});
        Tool {
            name: "weather".into(),
            description: Some("Tells it.".into()),
            parameters: Some(parameters),
            strict: false,
        }
    }

    const CITIES: [&str; 2] = ["Rome", "Oslo"];

    /// A question, two calls, two results.
    fn with_calls(count: usize) -> Conversation {
        let call = |index: usize| Call {
            id: format!("call_{index}"),
            name: "weather".into(),
            arguments: json!({"city": CITIES[index]}),
        };
        let calls =
            Message { calls: (0..count).map(call).collect(), ..turn(Role::Assistant, &["Let me see."]) };
        let result = |index: usize| Message {
            answers: Some(format!("call_{index}")),
            ..turn(Role::Tool, &[["sun", "rain"][index]])
        };
        let mut messages = vec![turn(Role::User, &["And there?"]), calls];
        messages.extend((0..count).map(result));
        Conversation { messages, tools: vec![weather()], continues: false }
    }

    const TOOL: &str = "{\"type\": \"function\", \"function\": {\"name\": \"weather\", \"description\": \"Tells it.\", \
        \"parameters\": {\"type\": \"object\", \"properties\": {\"city\": {\"type\": \"string\"}}}}}";

    #[test]
    fn functions_are_shown_as_a_template_that_knows_them_wants() {
        // As Qwen's text models have it.
        let source = "{%- if tools %}{{- '<|im_start|>system\n<tools>' }}{%- for tool in tools %}{{- '\n' + (tool | tojson) }}\
            {%- endfor %}{{- '\n</tools><|im_end|>\n' }}{%- endif %}{%- for message in messages %}\
            {%- if message.role == 'tool' %}{{- '<|im_start|>user\n<tool_response>\n' + message.content + '\n</tool_response>' }}\
            {{- '<|im_end|>\n' }}{%- else %}{{- '<|im_start|>' + message.role + '\n' + message.content }}\
            {%- for call in message.tool_calls or [] %}{%- if not loop.first or message.content %}{{- '\n' }}{%- endif %}\
            {{- '<tool_call>\n{\"name\": \"' + call.function.name + '\", \"arguments\": ' }}\
            {{- call.function.arguments | tojson }}{{- '}\n</tool_call>' }}{%- endfor %}{{- '<|im_end|>\n' }}{%- endif %}\
            {%- endfor %}{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{%- endif %}";
        let template = ChatTemplate::new(source, marks("<image>", "", "<|im_end|>")).expect("a template");
        assert_eq!(template.calls, Some(CallSyntax::usual()));
        let expected = format!(
            "<|im_start|>system\n<tools>\n{TOOL}\n</tools><|im_end|>\n<|im_start|>user\nAnd there?<|im_end|>\n\
             <|im_start|>assistant\nLet me see.\n\
             <tool_call>\n{{\"name\": \"weather\", \"arguments\": {{\"city\": \"Rome\"}}}}\n</tool_call>\n\
             <tool_call>\n{{\"name\": \"weather\", \"arguments\": {{\"city\": \"Oslo\"}}}}\n</tool_call><|im_end|>\n\
             <|im_start|>user\n<tool_response>\nsun\n</tool_response><|im_end|>\n\
             <|im_start|>user\n<tool_response>\nrain\n</tool_response><|im_end|>\n<|im_start|>assistant\n"
        );
        assert_eq!(template.render(&with_calls(2)).expect("a prompt"), expected);
    }

    #[test]
    fn the_syntax_of_calls_is_that_of_the_template() {
        // As Llama 3.2 has it: one call at most, called parameters, results from `ipython`.
        let llama = "{{- bos_token }}{%- for message in messages %}{%- if message.role == 'tool' %}\
            {{- '<|h|>ipython\n' + message.content + '<|eot|>' }}{%- elif message.tool_calls %}\
            {%- if message.tool_calls | length != 1 %}{{- raise_exception('one call at once!') }}{%- endif %}\
            {{- '<|h|>assistant\n{\"name\": \"' + message.tool_calls[0].function.name + '\", \"parameters\": ' }}\
            {{- message.tool_calls[0].function.arguments | tojson }}{{- '}<|eot|>' }}{%- else %}\
            {{- '<|h|>' + message.role + '\n' }}{%- if loop.first and tools %}{{- tools | tojson }}{%- endif %}\
            {{- message.content + '<|eot|>' }}{%- endif %}{%- endfor %}\
            {%- if add_generation_prompt %}{{- '<|h|>assistant\n' }}{%- endif %}";
        let template = ChatTemplate::new(llama, marks("<image>", "<s>", "<|eot|>")).expect("a template");
        let syntax = template.call_syntax();
        assert_eq!(
            (syntax.opening.as_str(), syntax.middle.as_str()),
            ("{\"name\": \"", "\", \"parameters\": ")
        );
        assert_eq!((syntax.between, syntax.closing.as_str()), (None, "}"));
        let found = template.render(&with_calls(1)).expect("a prompt");
        assert!(found.ends_with("<|h|>ipython\nsun<|eot|><|h|>assistant\n"), "{found}");
        let refused = template.render(&with_calls(2)).expect_err("two calls");
        assert!(refused.to_string().contains("one call at once!"), "{refused}");

        // As Mistral has it: ids of nine characters, which the model does not write.
        let mistral = "{{- bos_token }}{%- if tools %}{{- '[AVAILABLE_TOOLS]' + (tools | tojson) + '[/AVAILABLE_TOOLS]' }}{%- endif %}\
            {%- for message in messages %}{%- if message.role == 'user' %}{{- '[INST]' + message.content + '[/INST]' }}\
            {%- elif message.role == 'tool' %}{{- '[TOOL_RESULTS]' + message.content + '[/TOOL_RESULTS]' }}\
            {%- elif message.tool_calls %}{{- '[TOOL_CALLS][' }}{%- for call in message.tool_calls %}\
            {%- if call.id | length != 9 %}{{- raise_exception('nine!') }}{%- endif %}\
            {{- '{\"name\": \"' + call.function.name + '\", \"arguments\": ' + (call.function.arguments | tojson) }}\
            {{- ', \"id\": \"' + call.id + '\"}' }}{%- if not loop.last %}{{- ', ' }}{%- endif %}{%- endfor %}{{- ']' + eos_token }}\
            {%- else %}{{- message.content + eos_token }}{%- endif %}{%- endfor %}";
        let template = ChatTemplate::new(mistral, marks("[IMG]", "<s>", "</s>")).expect("a template");
        let syntax = template.call_syntax();
        assert_eq!(syntax.opening, "[TOOL_CALLS][{\"name\": \"");
        assert_eq!((syntax.between.as_deref(), syntax.closing.as_str()), (Some("}, {\"name\": \""), "}]"));
        assert!(
            template.render(&with_calls(2)).expect("a prompt").ends_with("[TOOL_RESULTS]rain[/TOOL_RESULTS]")
        );
    }

    #[test]
    fn functions_are_described_to_a_template_that_knows_none() {
        let source = "{%- for message in messages %}{{- message.role | upper + ': ' + message.content + '\n' }}{%- endfor %}\
            {%- if add_generation_prompt %}{{- 'ASSISTANT:' }}{%- endif %}";
        let template = ChatTemplate::new(source, marks("<image>", "<s>", "</s>")).expect("a template");
        assert_eq!(template.calls, None);
        let found = template.render(&with_calls(2)).expect("a prompt");
        let (system, rest) = found.split_once("USER: ").expect("a question");
        assert!(
            system.starts_with("SYSTEM: ")
                && system.contains(&TOOL.replace(": ", ":").replace(", \"", ",\"")),
            "{system}"
        );
        let expected = "And there?\nASSISTANT: Let me see.\n\
            <tool_call>\n{\"name\": \"weather\", \"arguments\": {\"city\":\"Rome\"}}\n</tool_call>\n\
            <tool_call>\n{\"name\": \"weather\", \"arguments\": {\"city\":\"Oslo\"}}\n</tool_call>\n\
            USER: <tool_response>\nsun\n</tool_response>\n<tool_response>\nrain\n</tool_response>\nASSISTANT:";
        assert_eq!(rest, expected);
    }

    #[test]
    fn a_last_turn_goes_on_where_it_stands() {
        let source = "{%- for message in messages %}{{- message.role + ': ' + (message.content | trim) + eos_token }}{%- endfor %}\
            {%- if add_generation_prompt %}{{- 'assistant: ' }}{%- endif %}";
        let template = ChatTemplate::new(source, marks("<image>", "<s>", "</s>")).expect("a template");
        let messages = vec![turn(Role::User, &["Count."]), turn(Role::Assistant, &["one, two, "])];
        let conversation = Conversation { messages, continues: true, ..Conversation::default() };
        let found = template.render(&conversation).expect("a prompt");
        assert_eq!(found, "user: Count.</s>assistant: one, two, ");
    }
}
