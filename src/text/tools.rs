//! Functions that a model may call: how their calls are written, and found in what it writes.

use serde_json::{Map, Value, json};

use super::{
    detokenizer::overlap,
    template::{Message, Part, Role},
};

/// A function that the model may call.
#[derive(Debug, Clone, PartialEq)]
pub struct Tool {
    /// Its name: letters, digits, `_`, `-`, `.`.
    pub name: String,
    /// What it does.
    pub description: Option<String>,
    /// The JSON schema of its arguments, an object.
    pub parameters: Option<Value>,
    /// Whether what the schema cannot enforce is refused, instead of ignored.
    pub strict: bool,
}

impl Tool {
    /// As templates expect it.
    pub(super) fn value(&self) -> Value {
        let mut function = Map::new();
        function.insert("name".into(), self.name.as_str().into());
        function.insert("description".into(), self.description.as_deref().unwrap_or_default().into());
        function.insert("parameters".into(), self.schema());
        json!({"type": "function", "function": function})
    }

    /// The schema of its arguments. A function without one takes none.
    pub fn schema(&self) -> Value {
        let Some(Value::Object(schema)) = &self.parameters else {
            return json!({"type": "object", "properties": {}, "additionalProperties": false});
        };
        let mut schema = schema.clone();
        if !["type", "$ref", "anyOf", "oneOf", "allOf"].iter().any(|key| schema.contains_key(*key)) {
            schema.insert("type".into(), "object".into());
        }
        Value::Object(schema)
    }
}

/// A call that the model made.
#[derive(Debug, Clone, PartialEq)]
pub struct Call {
    /// Names it, so that its result can.
    pub id: String,
    /// Of the function.
    pub name: String,
    /// An object; a string where the client had something else.
    pub arguments: Value,
}

/// Whether functions are called.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ToolChoice {
    /// As the model likes.
    Auto,
    /// One at least.
    Required,
    /// This one, once.
    Named(String),
}

/// How calls are written: `opening NAME middle ARGUMENTS [between NAME middle ARGUMENTS]… closing`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CallSyntax {
    /// In front of the first name.
    pub opening: String,
    /// Behind a name, in front of its arguments.
    pub middle: String,
    /// Behind arguments, in front of the next name; [`None`] where there is one call at most.
    pub between: Option<String>,
    /// Behind the last arguments.
    pub closing: String,
}

/// Names that probes of templates use, which nobody else does.
pub(super) const PROBE_NAME: &str = "probe_50917";
const PROBE_SECOND: &str = "probe_20934";
const PROBE_ARGUMENT: &str = "7720934";
/// Some templates take ids of nine characters only.
const PROBE_IDS: [&str; 2] = ["a5091720b", "c4093472d"];

impl CallSyntax {
    /// How calls are written where the model's template does not say: as Hermes and Qwen do.
    pub fn usual() -> Self {
        Self {
            opening: "<tool_call>\n{\"name\": \"".into(),
            middle: "\", \"arguments\": ".into(),
            between: Some("}\n</tool_call>\n<tool_call>\n{\"name\": \"".into()),
            closing: "}\n</tool_call>".into(),
        }
    }

    /// Calls that a template is asked to write, to see how.
    pub(super) fn probes(count: usize) -> Vec<Call> {
        let names = [PROBE_NAME, PROBE_SECOND];
        let call = |index: usize| Call {
            id: PROBE_IDS[index].into(),
            name: names[index].into(),
            arguments: json!({"key": PROBE_ARGUMENT.parse::<u32>().unwrap_or_default()}),
        };
        (0..count).map(call).collect()
    }

    /// What a template wrote for one call, and, where it takes them, for two.
    pub(super) fn learned(one: &str, two: Option<&str>) -> Option<Self> {
        let [opening, middle, closing] = Self::parts::<3>(one)?;
        let two = two.and_then(Self::parts::<5>);
        let (between, closing) = match two {
            Some([first, inner, between, again, last])
                if first == opening && inner == middle && again == middle =>
            {
                (Some(between), last)
            }
            _ => (None, closing),
        };
        Some(Self { opening, middle, between, closing })
    }

    /// The text between names and arguments, without the ids of calls: those are not the model's to choose.
    fn parts<const N: usize>(text: &str) -> Option<[String; N]> {
        let arguments = format!("{{\"key\": {PROBE_ARGUMENT}}}");
        let marks = [PROBE_NAME, &arguments, PROBE_SECOND, &arguments];
        let mut parts = Vec::with_capacity(N);
        let mut rest = text;
        for mark in &marks[..N - 1] {
            let (part, behind) = rest.split_once(mark)?;
            parts.push(without_ids(part)?);
            rest = behind;
        }
        parts.push(without_ids(rest)?);
        parts.try_into().ok()
    }

    /// What in an answer says that calls follow, and whether it does so only at the answer's start.
    pub fn trigger(&self) -> (&str, bool) {
        let begin = self.opening.trim_start();
        let close = match begin.chars().next() {
            Some('<') => begin.find('>'),
            Some('[') => begin.find(']'),
            _ => None,
        };
        match close {
            Some(at) => (&begin[..=at], false),
            None => (begin, true),
        }
    }

    /// What follows the trigger, in front of the first name.
    pub fn behind_trigger(&self) -> &str {
        let (trigger, _) = self.trigger();
        &self.opening.trim_start()[trigger.len()..]
    }

    /// Calls, as the model would have written them.
    fn write(&self, calls: &[Call]) -> String {
        let between = self.between.clone().unwrap_or_else(|| format!("{}\n{}", self.closing, self.opening));
        let calls: Vec<String> = calls
            .iter()
            .map(|call| {
                let arguments = match &call.arguments {
                    Value::String(text) => text.clone(),
                    other => other.to_string(),
                };
                format!("{}{}{arguments}", call.name, self.middle)
            })
            .collect();
        format!("{}{}{}", self.opening, calls.join(&between), self.closing)
    }
}

fn without_ids(part: &str) -> Option<String> {
    let mut part = part.to_owned();
    for id in PROBE_IDS {
        part = part.replace(&format!(", \"id\": \"{id}\""), "");
        if part.contains(id) {
            return None;
        }
    }
    Some(part)
}

/// A conversation with functions for a template that knows none: they are described in words, calls are the model's
/// text and results the user's.
pub(super) fn described(messages: &[Message], tools: &[Tool], takes_system: bool) -> Vec<Message> {
    let syntax = CallSyntax::usual();
    let mut out: Vec<Message> = Vec::with_capacity(messages.len() + 1);
    let mut answering = false;
    for message in messages {
        let mut message = message.clone();
        let answers = message.role == Role::Tool;
        if answers {
            message.role = Role::User;
            message.parts.insert(0, Part::Text("<tool_response>\n".into()));
            message.parts.push(Part::Text("\n</tool_response>".into()));
        }
        let calls = std::mem::take(&mut message.calls);
        if !calls.is_empty() {
            if !message.parts.is_empty() {
                message.parts.push(Part::Text("\n".into()));
            }
            message.parts.push(Part::Text(syntax.write(&calls)));
        }
        message.answers = None;
        match out.last_mut().filter(|_| answers && answering) {
            Some(last) => {
                last.parts.push(Part::Text("\n".into()));
                last.parts.extend(message.parts);
            }
            None => out.push(message),
        }
        answering = answers;
    }
    if tools.is_empty() {
        return out;
    }
    let tools: Vec<String> = tools.iter().map(|tool| tool.value().to_string()).collect();
    let words = format!(
        "You can call functions. These are their signatures, one JSON object per line:\n<tools>\n{}\n</tools>\n\
         To call a function, answer with its name and arguments as JSON between tags, once for each call:\n\
         <tool_call>\n{{\"name\": \"NAME\", \"arguments\": {{…}}}}\n</tool_call>",
        tools.join("\n")
    );
    let place = if takes_system { Role::System } else { Role::User };
    match out.iter_mut().find(|message| message.role == place) {
        Some(message) if takes_system => message.parts.push(Part::Text(format!("\n\n{words}"))),
        Some(message) => message.parts.insert(0, Part::Text(format!("{words}\n\n"))),
        None => out.insert(0, Message::new(place, vec![Part::Text(words)])),
    }
    out
}

/// A step of an answer that may have calls in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Found {
    /// Text in front of calls.
    Text(String),
    /// A call of this function begins.
    Call(String),
    /// More of its arguments, as JSON.
    Arguments(String),
}

/// Finds calls in an answer, wherever its pieces break.
#[derive(Debug)]
pub struct CallReader {
    syntax: CallSyntax,
    state: State,
    /// What is not decided yet.
    held: String,
    /// Whether there was text that was not a space.
    begun: bool,
}

#[derive(Debug)]
enum State {
    /// Text, or the first of calls.
    Text,
    /// The rest of what is in front of the first name.
    Opening,
    Name,
    Arguments(Json),
    /// Behind arguments.
    Behind,
    /// Nothing of interest follows.
    Done,
}

impl CallReader {
    /// At the start of an answer.
    pub fn new(syntax: CallSyntax) -> Self {
        Self { syntax, state: State::Text, held: String::new(), begun: false }
    }

    /// Adds text.
    pub fn push(&mut self, text: &str) -> Vec<Found> {
        self.held.push_str(text);
        let mut found = Vec::new();
        while self.step(&mut found) {}
        found
    }

    /// What was held back, now that nothing follows.
    pub fn finish(&mut self) -> Vec<Found> {
        let rest = std::mem::take(&mut self.held);
        match self.state {
            State::Text if !rest.is_empty() => vec![Found::Text(rest)],
            _ => Vec::new(),
        }
    }

    /// Whether there was a call.
    pub fn called(&self) -> bool {
        matches!(self.state, State::Arguments(_) | State::Behind | State::Done)
    }

    /// Moves on as far as it can; false when it needs more text.
    fn step(&mut self, found: &mut Vec<Found>) -> bool {
        match &mut self.state {
            State::Text => self.text(found),
            State::Opening => {
                let length = self.syntax.behind_trigger().len();
                if self.held.len() < length {
                    return false;
                }
                self.held.drain(..length);
                self.state = State::Name;
                true
            }
            State::Name => {
                let Some((name, rest)) = self.held.split_once(&self.syntax.middle) else { return false };
                found.push(Found::Call(name.to_owned()));
                self.held = rest.to_owned();
                self.state = State::Arguments(Json::default());
                true
            }
            State::Arguments(json) => {
                let (length, complete) = json.push(&self.held);
                let mut part: String = self.held.drain(..length).collect();
                if !json.shown {
                    // White space in front of the object belongs to nothing.
                    part = part.trim_start().to_owned();
                    json.shown = !part.is_empty();
                }
                if !part.is_empty() {
                    found.push(Found::Arguments(part));
                }
                if complete {
                    self.state = State::Behind;
                }
                complete
            }
            State::Behind => {
                let Some(between) = &self.syntax.between else {
                    self.state = State::Done;
                    return true;
                };
                // White space that the grammar leaves to the model.
                let start = self.held.len() - self.held.trim_start_matches([' ', '\n']).len();
                let drop = if between.starts_with([' ', '\n']) { 0 } else { start };
                self.held.drain(..drop);
                if self.held.starts_with(between.as_str()) {
                    self.held.drain(..between.len());
                    self.state = State::Name;
                    return true;
                }
                if !between.starts_with(self.held.as_str()) {
                    self.state = State::Done;
                    return true;
                }
                false
            }
            State::Done => {
                self.held.clear();
                false
            }
        }
    }

    fn text(&mut self, found: &mut Vec<Found>) -> bool {
        let (trigger, at_start) = self.syntax.trigger();
        let at = match (at_start, self.begun) {
            (true, true) => None,
            (true, false) => {
                let space = self.held.len() - self.held.trim_start().len();
                self.held[space..].starts_with(trigger).then_some(space)
            }
            (false, _) => self.held.find(trigger),
        };
        if let Some(at) = at {
            let rest = self.held.split_off(at + trigger.len());
            self.held.truncate(at);
            let text = std::mem::replace(&mut self.held, rest);
            // A line's end in front of calls is theirs.
            let text = text.trim_end();
            if !text.is_empty() {
                found.push(Found::Text(text.to_owned()));
            }
            self.state = State::Opening;
            return true;
        }
        let undecided = if at_start && self.begun {
            0
        } else if at_start {
            let trimmed = self.held.trim_start();
            if trigger.starts_with(trimmed) { self.held.len() } else { 0 }
        } else {
            // White space in front of what may become the trigger waits with it.
            let keep = overlap(&self.held, trigger);
            let before = &self.held[..self.held.len() - keep];
            keep + before.len() - before.trim_end().len()
        };
        let rest = self.held.split_off(self.held.len() - undecided);
        let text = std::mem::replace(&mut self.held, rest);
        self.begun |= !text.trim().is_empty();
        if !text.is_empty() {
            found.push(Found::Text(text));
        }
        false
    }
}

/// Where in a JSON value a text ends.
#[derive(Debug, Default)]
struct Json {
    depth: usize,
    in_string: bool,
    escaped: bool,
    begun: bool,
    /// Whether any of it was given on.
    shown: bool,
}

impl Json {
    /// How many bytes of a text belong to the value, and whether it is complete.
    fn push(&mut self, text: &str) -> (usize, bool) {
        for (at, byte) in text.bytes().enumerate() {
            match byte {
                _ if self.escaped => self.escaped = false,
                b'\\' if self.in_string => self.escaped = true,
                b'"' => self.in_string = !self.in_string,
                b'{' | b'[' if !self.in_string => {
                    self.depth += 1;
                    self.begun = true;
                }
                b'}' | b']' if !self.in_string => self.depth = self.depth.saturating_sub(1),
                _ => {}
            }
            if self.begun && self.depth == 0 {
                return (at + 1, true);
            }
        }
        (text.len(), false)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn llama() -> CallSyntax {
        CallSyntax {
            opening: "{\"name\": \"".into(),
            middle: "\", \"parameters\": ".into(),
            between: None,
            closing: "}".into(),
        }
    }

    fn mistral() -> CallSyntax {
        CallSyntax {
            opening: "[TOOL_CALLS][{\"name\": \"".into(),
            middle: "\", \"arguments\": ".into(),
            between: Some("}, {\"name\": \"".into()),
            closing: "}]".into(),
        }
    }

    /// Text and calls of an answer, whose pieces are so many characters long.
    fn read(syntax: &CallSyntax, answer: &str, size: usize) -> (String, Vec<(String, String)>) {
        let mut reader = CallReader::new(syntax.clone());
        let characters: Vec<char> = answer.chars().collect();
        let mut found: Vec<Found> = characters
            .chunks(size)
            .flat_map(|piece| reader.push(&piece.iter().collect::<String>()))
            .collect();
        found.extend(reader.finish());
        let (mut text, mut calls) = (String::new(), Vec::<(String, String)>::new());
        for found in found {
            match found {
                Found::Text(more) => text += &more,
                Found::Call(name) => calls.push((name, String::new())),
                Found::Arguments(more) => calls.last_mut().unwrap().1 += &more,
            }
        }
        (text, calls)
    }

    /// A call as long as any answer, piece by piece: what took the square of it would never end.
    #[test]
    fn a_long_call_is_read_once() {
        let arguments = format!("{{\"a\": \"{}\"}}", "</tool_cal{\\\"l> ".repeat(60_000));
        let text = format!("<tool_call>\n{{\"name\": \"f\", \"arguments\": {arguments}}}\n</tool_call>");
        for text in [text.clone(), text.replace("</tool_call>", ""), "<tool_cal {".repeat(100_000)] {
            let mut reader = CallReader::new(CallSyntax::usual());
            let mut told = 0;
            let mut count = |found: Vec<Found>| {
                for found in found {
                    told += match found {
                        Found::Text(text) | Found::Arguments(text) => text.len(),
                        Found::Call(_) => 0,
                    };
                }
            };
            for byte in text.as_bytes() {
                count(reader.push(std::str::from_utf8(&[*byte]).unwrap()));
            }
            count(reader.finish());
            assert!(told >= 800_000, "{told}");
        }
    }

    #[test]
    fn calls_are_found_wherever_pieces_break() {
        let call = |name: &str, arguments: &str| (name.to_owned(), arguments.to_owned());
        let tricky = r#"{"a": "}\"] \\", "b": [{"c": "</tool_call>"}], "ö": "😀"}"#;
        let one = format!("<tool_call>\n{{\"name\": \"f\", \"arguments\": {tricky}}}\n</tool_call>");
        let two = format!("Let me see.\n{one}\n{}", one.replace("\"f\"", "\"g_2\""));
        for size in [1, 2, 3, 7, 1000] {
            let usual = CallSyntax::usual();
            assert_eq!(read(&usual, &one, size), (String::new(), vec![call("f", tricky)]), "{size}");
            let expected = ("Let me see.".to_owned(), vec![call("f", tricky), call("g_2", tricky)]);
            assert_eq!(read(&usual, &two, size), expected, "{size}");
            assert_eq!(read(&usual, "1 < 2 \n <tool", size), ("1 < 2 \n <tool".to_owned(), vec![]), "{size}");

            let answer = format!("{{\"name\": \"f\", \"parameters\":  {tricky}}}");
            assert_eq!(read(&llama(), &answer, size), (String::new(), vec![call("f", tricky)]), "{size}");
            let text = format!("It is {answer}");
            assert_eq!(read(&llama(), &text, size), (text.clone(), vec![]), "{size}");
            assert_eq!(read(&llama(), "{\"nam", size), ("{\"nam".to_owned(), vec![]), "{size}");

            let answer = format!(
                "[TOOL_CALLS][{{\"name\": \"f\", \"arguments\": {tricky}}}, {{\"name\": \"g\", \"arguments\": {{}}}}]"
            );
            let expected = (String::new(), vec![call("f", tricky), call("g", "{}")]);
            assert_eq!(read(&mistral(), &answer, size), expected, "{size}");
        }
    }

    #[test]
    fn an_answer_that_is_cut_keeps_what_it_has() {
        let cut = "<tool_call>\n{\"name\": \"f\", \"arguments\": {\"a\": [1, ";
        let expected = (String::new(), vec![("f".to_owned(), "{\"a\": [1, ".to_owned())]);
        assert_eq!(read(&CallSyntax::usual(), cut, 4), expected);
    }

    #[test]
    fn a_syntax_is_learned_from_what_a_template_writes() {
        let [first, second] = CallSyntax::probes(2).try_into().unwrap();
        let call = |call: &Call| {
            format!(
                "{{\"name\": \"{}\", \"arguments\": {{\"key\": 7720934}}, \"id\": \"{}\"}}",
                call.name, call.id
            )
        };
        let one = format!("[TOOL_CALLS][{}]", call(&first));
        let two = format!("[TOOL_CALLS][{}, {}]", call(&first), call(&second));
        assert_eq!(CallSyntax::learned(&one, Some(&two)), Some(mistral()));
        let usual = CallSyntax::usual();
        let [one, two] =
            [1, 2].map(|count| usual.write(&CallSyntax::probes(count)).replace("\"key\":", "\"key\": "));
        assert_eq!(CallSyntax::learned(&one, Some(&two)), Some(usual.clone()));
        assert_eq!(CallSyntax::learned(&one, None), Some(CallSyntax { between: None, ..usual }));
        assert_eq!(CallSyntax::learned("f(1)", None), None);
    }
}
