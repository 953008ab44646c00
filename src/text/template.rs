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
    content: [Content; 3],
    marks: Marks,
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
        let mut template = Self { environment, content: [Content::Parts; 3], marks };
        if !template.speaks(Role::User) {
            template.content = [Content::Text; 3];
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
            let form = forms.into_iter().find(speaks).unwrap_or(usual);
            template.content[role as usize] = form;
        }
        Ok(template)
    }

    /// Whether the words of a role come through, and nothing of the structure around them.
    fn speaks(&self, role: Role) -> bool {
        const WORDS: &str = "5091720934";
        let turn = |role, words: &str| Message { role, parts: vec![Part::Text(words.into())] };
        let messages = match role {
            Role::System => vec![turn(role, WORDS), turn(Role::User, "a")],
            Role::User => vec![turn(role, WORDS)],
            Role::Assistant => vec![turn(Role::User, "a"), turn(role, WORDS), turn(Role::User, "b")],
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
        !self.marks.bos.is_empty() && text.starts_with(&self.marks.bos)
    }

    fn try_render(&self, messages: &[Message], answer: bool) -> Result<String, TemplateError> {
        let parts = messages.iter().flat_map(|message| &message.parts);
        let input: usize = parts
            .map(|part| match part {
                Part::Text(text) => text.len(),
                Part::Picture => self.marks.picture.len(),
                Part::Video => self.marks.video.len(),
            })
            .sum();
        let messages: Vec<Value> = messages.iter().map(|message| self.value(message)).collect();
        let context = context! {
            messages,
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
        };
        match self.content[message.role as usize] {
            Content::Parts => {
                let parts = message.parts.iter().map(|part| match part {
                    Part::Text(text) => context! { type => "text", text },
                    Part::Picture => context! { type => "image" },
                    Part::Video => context! { type => "video" },
                });
                context! { role, content => parts.collect::<Vec<_>>() }
            }
            Content::Text => {
                let parts = message.parts.iter().map(|part| match part {
                    Part::Text(text) => text.clone(),
                    Part::Picture => format!("{}\n", self.marks.picture),
                    Part::Video => format!("{}\n", self.marks.video),
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

#[cfg(test)]
mod tests {
    use super::*;

    fn turn(role: Role, parts: &[&str]) -> Message {
        let part = |part: &&str| if *part == "P" { Part::Picture } else { Part::Text((*part).into()) };
        Message { role, parts: parts.iter().map(part).collect() }
    }

    fn marks(picture: &str, bos: &str, eos: &str) -> Marks {
        Marks { picture: picture.into(), video: String::new(), bos: bos.into(), eos: eos.into() }
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
            let found = template.render(messages).unwrap_or_else(|error| format!("refused: {error}"));
            assert_eq!(found, expected);
        }
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
        assert_eq!(template.render(&words).expect("a prompt"), expected);
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
}
