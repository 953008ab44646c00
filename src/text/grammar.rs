//! What an answer must be: grammars over a model's tokens, with llguidance (<https://github.com/guidance-ai/llguidance>).

use std::{
    fmt,
    sync::{Arc, OnceLock},
};

use llguidance::{
    Matcher, ParserFactory,
    api::TopLevelGrammar,
    toktrie::{ApproximateTokEnv, TokEnv, TokRxInfo, TokTrie},
};
use serde_json::{Value, json};

use super::{
    tokenizer::{Piece, Tokenizer},
    tools::{CallSyntax, Tool, ToolChoice},
};
use crate::request::{Constraint, ConstraintError};

/// Most bytes of a schema, a pattern or a grammar.
pub const LONGEST_GRAMMAR: usize = 256 << 10;
/// Most levels of objects and arrays inside each other in a schema.
pub const DEEPEST_SCHEMA: usize = 64;
/// Most calls of an answer.
const MOST_CALLS: usize = 16;
/// White space that JSON may have between its parts: a space, or a line's end and an indentation. A model that may write
/// more sometimes writes nothing else.
const WHITE_SPACE: &str = r"( |\n {0,24})";
/// Most characters of an error that a client is told.
const LONGEST_ERROR: usize = 500;

/// What an answer must be.
#[derive(Debug, Clone, PartialEq)]
pub enum Grammar {
    /// JSON that follows a schema.
    Json {
        /// A JSON schema.
        schema: Value,
        /// Whether what cannot be enforced is refused, instead of ignored.
        strict: bool,
    },
    /// A text that a regular expression matches as a whole.
    Regex(String),
    /// One of these texts.
    Choice(Vec<String>),
    /// What a grammar in llguidance's dialect of Lark says.
    Lark(String),
    /// Calls of functions, or a text where there is a choice.
    Calls {
        /// The functions.
        tools: Vec<Tool>,
        /// Whether they are called.
        choice: ToolChoice,
        /// Whether several may be.
        parallel: bool,
        /// The schema of a text instead, and whether it is strict; any text where there is none.
        text: Option<(Value, bool)>,
    },
}

impl Grammar {
    /// A JSON object, of any kind.
    pub fn any_object() -> Self {
        Self::Json { schema: json!({"type": "object"}), strict: false }
    }
}

/// Why a grammar cannot be followed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum GrammarError {
    /// It is too long.
    #[error("it has {found} bytes; the limit is {LONGEST_GRAMMAR}")]
    TooLong {
        /// Its length.
        found: usize,
    },
    /// It is nested too deeply.
    #[error("it is nested more than {DEEPEST_SCHEMA} levels deep")]
    TooDeep,
    /// It takes too long to compile.
    #[error("it takes more than {seconds} seconds to compile")]
    TooSlow {
        /// How long it may take.
        seconds: u64,
    },
    /// It is wrong, or asks for what is not done.
    #[error("{0}")]
    Refused(String),
    /// The schema of a function's arguments is.
    #[error("of '{name}': {error}")]
    Tool {
        /// Which of the functions.
        index: usize,
        /// Its name.
        name: String,
        /// What is wrong with it.
        error: Box<GrammarError>,
    },
    /// The model's tokens are not known well enough.
    #[error("this model's tokenizer allows no grammar: {0}")]
    Tokenizer(String),
}

/// Compiles grammars for a model.
pub struct Grammars {
    tokenizer: Arc<Tokenizer>,
    stops: Arc<[u32]>,
    /// Made when it is first needed.
    factory: OnceLock<Result<ParserFactory, String>>,
}

impl fmt::Debug for Grammars {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Grammars").field("stops", &self.stops).finish_non_exhaustive()
    }
}

impl Grammars {
    /// For answers of `tokenizer`'s tokens that end at any of `stops`.
    pub fn new(tokenizer: Arc<Tokenizer>, stops: Arc<[u32]>) -> Self {
        Self { tokenizer, stops, factory: OnceLock::new() }
    }

    /// Compiles a grammar, with calls written as in `syntax`. `begun` says whether the answer goes on with a text. Can
    /// take as long as a second.
    ///
    /// # Errors
    /// When it is too large, wrong, or asks for what is not done.
    pub fn compile(
        &self,
        grammar: &Grammar,
        syntax: &CallSyntax,
        begun: bool,
    ) -> Result<Box<dyn Constraint>, GrammarError> {
        self.compiled(grammar, syntax, begun).map_err(|error| {
            let Grammar::Calls { tools, choice, .. } = grammar else { return error };
            let asked = |tool: &Tool| !matches!(choice, ToolChoice::Named(name) if *name != tool.name);
            let tools = tools.iter().enumerate().filter(|(_, tool)| asked(tool));
            // What is wrong with one is wrong without the others, too, and is told in words of its schema.
            let mut alone = tools.filter_map(|(index, tool)| {
                let schema = Grammar::Json { schema: tool.schema(), strict: tool.strict };
                let error = Box::new(self.compiled(&schema, syntax, begun).err()?);
                Some(GrammarError::Tool { index, name: tool.name.clone(), error })
            });
            alone.next().unwrap_or(error)
        })
    }

    fn compiled(
        &self,
        grammar: &Grammar,
        syntax: &CallSyntax,
        begun: bool,
    ) -> Result<Box<dyn Constraint>, GrammarError> {
        let factory = self.factory.get_or_init(|| self.factory());
        let factory = factory.as_ref().map_err(|error| GrammarError::Tokenizer(error.clone()))?;
        // Decoders of this kind drop a space in front of the first word, which models of their kind write.
        let space = self.tokenizer.strips_space() && !begun;
        let lark = self.lark(grammar, syntax, space)?;
        let parser = factory.create_parser(TopLevelGrammar::from_lark(lark));
        let mut matcher = Matcher::new(parser);
        match matcher.get_error() {
            Some(error) => Err(GrammarError::Refused(shortened(&error))),
            // Some things that cannot work show up only here.
            None => match matcher.compute_mask() {
                Ok(_) => Ok(Box::new(Matching { matcher, stops: Arc::clone(&self.stops) })),
                Err(error) => Err(GrammarError::Refused(shortened(&error.to_string()))),
            },
        }
    }

    fn factory(&self) -> Result<ParserFactory, String> {
        let Some(&end) = self.stops.first() else { return Err("no token ends an answer".into()) };
        let size = self.tokenizer.size() as u32;
        let word = |id: u32| {
            let bytes = self.tokenizer.token_bytes(id);
            if !bytes.is_empty() {
                return bytes;
            }
            // Never text, and named only by its number.
            let mut name = vec![TokTrie::SPECIAL_TOKEN_MARKER];
            name.extend(self.tokenizer.token(id).unwrap_or_else(|| format!("<[{id}]>")).into_bytes());
            name
        };
        let words: Vec<Vec<u8>> = (0..size).map(word).collect();
        let known = words.iter().filter(|word| word.len() == 1).count();
        if known < 64 {
            return Err(format!("only {known} of its tokens are single bytes"));
        }
        let trie = TokTrie::from(&TokRxInfo::new(size, end), &words).with_eos_tokens(&self.stops);
        let environment: TokEnv = Arc::new(ApproximateTokEnv::new(trie));
        let mut factory = ParserFactory::new_simple(&environment).map_err(|error| error.to_string())?;
        factory.quiet();
        let limits = factory.limits_mut();
        // 100 MB at most for one answer, where the default would be 500.
        limits.max_lexer_states = 50_000;
        limits.verbose_errors = false;
        Ok(factory)
    }

    fn lark(&self, grammar: &Grammar, syntax: &CallSyntax, space: bool) -> Result<String, GrammarError> {
        let start = if space { "start: \" \"? answer" } else { "start: answer" };
        Ok(match grammar {
            Grammar::Json { schema, strict } => {
                format!("{start}\nanswer: %json {}\n", json_rule(schema, *strict)?)
            }
            Grammar::Regex(pattern) => {
                check_length(pattern.len())?;
                format!("{start}\nanswer: {}\n", regex(pattern))
            }
            Grammar::Choice(texts) => {
                check_length(texts.iter().map(String::len).sum())?;
                let texts: Vec<String> = texts.iter().map(|text| literal(text)).collect();
                format!("{start}\nanswer: {}\n", texts.join(" | "))
            }
            Grammar::Lark(lark) => {
                check_length(lark.len())?;
                lark.clone()
            }
            Grammar::Calls { tools, choice, parallel, text } => {
                let mut rules = self.calls(tools, choice, *parallel, syntax)?;
                let (trigger, _) = syntax.trigger();
                let marked = self.sequence(trigger);
                let answer = match (choice, text) {
                    (ToolChoice::Required | ToolChoice::Named(_), _) => format!("answer: {marked} calls\n"),
                    (ToolChoice::Auto, Some((schema, strict))) => {
                        let schema = json_rule(schema, *strict)?;
                        format!("answer: text | {marked} calls\ntext: %json {schema}\n")
                    }
                    (ToolChoice::Auto, None) => self.text_or_calls(syntax, &marked),
                };
                rules += &format!("{start}\n{answer}");
                rules
            }
        })
    }

    /// The rules of calls behind what begins them.
    fn calls(
        &self,
        tools: &[Tool],
        choice: &ToolChoice,
        parallel: bool,
        syntax: &CallSyntax,
    ) -> Result<String, GrammarError> {
        let mut rules = String::new();
        let mut names = Vec::new();
        let mut length = 0;
        for (index, tool) in tools.iter().enumerate() {
            if matches!(choice, ToolChoice::Named(name) if *name != tool.name) {
                continue;
            }
            let schema = json_rule(&tool.schema(), tool.strict)?;
            length += schema.to_string().len();
            let front = self.sequence(&format!("{}{}", tool.name, syntax.middle));
            rules += &format!("call_{index}: {front} arguments_{index}\narguments_{index}: %json {schema}\n");
            names.push(format!("call_{index}"));
        }
        check_length(length)?;
        rules += &format!("call: {}\n", names.join(" | "));
        let closing = self.sequence(&syntax.closing);
        let more = match (&syntax.between, choice) {
            (Some(between), ToolChoice::Auto | ToolChoice::Required) if parallel => {
                format!("({} call){{0,{}}}", self.sequence(between), MOST_CALLS - 1)
            }
            _ => String::new(),
        };
        let behind = self.sequence(syntax.behind_trigger());
        rules += &format!("calls: {behind} call {more} {closing}\n");
        Ok(rules)
    }

    /// The rule of an answer that is a text, with or without calls behind it.
    fn text_or_calls(&self, syntax: &CallSyntax, marked: &str) -> String {
        let (trigger, at_start) = syntax.trigger();
        if matches!(self.tokenizer.pieces(trigger)[..], [Piece::Special(_)]) {
            // Special tokens are in no text.
            return format!("answer: TEXT? | TEXT? {marked} calls\nTEXT: /(?s:.+)/\n");
        }
        if at_start {
            let other = regex(&format!("{}(?s:.*)", escaped(trigger)));
            return format!("answer: OTHER | {marked} calls\nOTHER: /(?s:.*)/ & ~{other}\n");
        }
        let other = regex(&format!("(?s:.*){}(?s:.*)", escaped(trigger)));
        let trigger = literal(trigger);
        format!(
            "answer: OTHER | words calls\nwords[suffix={trigger}]: /(?s:.*)/\nOTHER: /(?s:.*)/ & ~{other}\n"
        )
    }

    /// A text as a grammar has it, with special tokens by their numbers.
    fn sequence(&self, text: &str) -> String {
        let pieces = self.tokenizer.pieces(text).into_iter().map(|piece| match piece {
            Piece::Text(text) => literal(text),
            Piece::Special(id) => format!("<[{id}]>"),
        });
        pieces.collect::<Vec<_>>().join(" ")
    }
}

/// A schema as `%json` takes it.
fn json_rule(schema: &Value, strict: bool) -> Result<Value, GrammarError> {
    if depth(schema) > DEEPEST_SCHEMA {
        return Err(GrammarError::TooDeep);
    }
    let mut schema = schema.clone();
    let Value::Object(fields) = &mut schema else {
        return Err(GrammarError::Refused("a schema is an object".into()));
    };
    // A client cannot choose these.
    fields.insert(
        "x-guidance".into(),
        json!({"whitespace_flexible": true, "whitespace_pattern": WHITE_SPACE, "lenient": !strict}),
    );
    check_length(schema.to_string().len())?;
    Ok(schema)
}

fn depth(value: &Value) -> usize {
    match value {
        Value::Array(items) => 1 + items.iter().map(depth).max().unwrap_or(0),
        Value::Object(fields) => 1 + fields.values().map(depth).max().unwrap_or(0),
        _ => 0,
    }
}

fn check_length(found: usize) -> Result<(), GrammarError> {
    if found > LONGEST_GRAMMAR { Err(GrammarError::TooLong { found }) } else { Ok(()) }
}

fn literal(text: &str) -> String {
    Value::from(text).to_string()
}

/// A pattern between slashes.
fn regex(pattern: &str) -> String {
    format!("/{}/", llguidance::regex_to_lark(pattern, ""))
}

/// A pattern that matches a text and nothing else.
fn escaped(text: &str) -> String {
    let mut pattern = String::with_capacity(text.len());
    for char in text.chars() {
        match char {
            '\n' => pattern.push_str("\\n"),
            char => {
                // Behind a backslash, angle brackets are the ends of words.
                if char.is_ascii_punctuation() && !['<', '>'].contains(&char) {
                    pattern.push('\\');
                }
                pattern.push(char);
            }
        }
    }
    pattern
}

fn shortened(error: &str) -> String {
    /// In front of what is wrong with a schema; around it is what we made of it.
    const SCHEMA: &str = "failed to compile JSON schema: ";
    if let Some((_, error)) = error.split_once(SCHEMA) {
        return error.lines().next().unwrap_or(error).chars().take(LONGEST_ERROR).collect();
    }
    let first: Vec<&str> = error.lines().map(str::trim).filter(|line| !line.is_empty()).take(2).collect();
    let first = first.join(" ");
    first.trim_end_matches('.').chars().take(LONGEST_ERROR).collect()
}

/// An answer that is followed through a grammar.
struct Matching {
    matcher: Matcher,
    stops: Arc<[u32]>,
}

impl fmt::Debug for Matching {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Matching").finish_non_exhaustive()
    }
}

impl Constraint for Matching {
    fn allowed(&mut self) -> Result<Vec<u32>, ConstraintError> {
        let mask = self.matcher.compute_mask_or_eos().map_err(failed)?;
        let mask = mask.as_slice();
        if mask.iter().all(|&word| word == 0) {
            return Err(ConstraintError("no token may follow".into()));
        }
        Ok(mask.to_vec())
    }

    fn accept(&mut self, id: u32) -> Result<(), ConstraintError> {
        // Nothing follows those.
        if self.stops.contains(&id) { Ok(()) } else { self.matcher.consume_token(id).map_err(failed) }
    }
}

fn failed(error: impl fmt::Display) -> ConstraintError {
    ConstraintError(shortened(&error.to_string()))
}

#[cfg(test)]
mod tests {
    use percept_models::Checkpoint;

    use super::*;

    fn grammars(fixture: &str) -> Grammars {
        let folder = format!("{}/tests/fixtures/{fixture}", env!("CARGO_MANIFEST_DIR"));
        let tokenizer = Tokenizer::read(&Checkpoint::new(folder)).unwrap();
        let end = tokenizer.id(if fixture == "llava" { "</s>" } else { "<|im_end|>" }).unwrap();
        Grammars::new(Arc::new(tokenizer), Arc::new([end]))
    }

    fn has(mask: &[u32], id: u32) -> bool {
        mask.get(id as usize / 32).is_some_and(|word| word >> (id % 32) & 1 == 1)
    }

    /// Whether an answer may be this text, token by token, and then end; else where it may not go on.
    fn follow(grammars: &Grammars, grammar: &Grammar, syntax: &CallSyntax, text: &str) -> Result<(), String> {
        let mut constraint = grammars.compile(grammar, syntax, true).map_err(|error| error.to_string())?;
        let tokenizer = &grammars.tokenizer;
        // Single bytes and special tokens: every text can be put together of those.
        let byte =
            |byte: u8| (0..tokenizer.size() as u32).find(|&id| tokenizer.token_bytes(id) == [byte]).unwrap();
        let mut done = String::new();
        for piece in tokenizer.pieces(text) {
            let ids: Vec<(u32, String)> = match piece {
                Piece::Special(id) => vec![(id, tokenizer.token(id).unwrap())],
                Piece::Text(text) => text.bytes().map(|b| (byte(b), char::from(b).to_string())).collect(),
            };
            for (id, shown) in ids {
                let mask = constraint.allowed().map_err(|error| error.to_string())?;
                assert_eq!(mask.len(), tokenizer.size().div_ceil(32));
                if !has(&mask, id) {
                    return Err(format!("{done}|{shown}"));
                }
                constraint.accept(id).unwrap();
                done += &shown;
            }
        }
        let mask = constraint.allowed().map_err(|error| error.to_string())?;
        if has(&mask, grammars.stops[0]) { Ok(()) } else { Err(format!("{done}|")) }
    }

    fn json(schema: Value) -> Grammar {
        Grammar::Json { schema, strict: true }
    }

    #[test]
    fn answers_follow_schemas() {
        let schema = json(json!({
            "type": "object",
            "properties": {
                "name": {"type": "string", "maxLength": 5},
                "age": {"anyOf": [{"type": "integer", "minimum": 0, "maximum": 150}, {"type": "null"}]},
                "next": {"$ref": "#"},
            },
            "required": ["name", "age"],
            "additionalProperties": false,
        }));
        for fixture in ["llava", "qwen2_vl"] {
            let grammars = grammars(fixture);
            let check = |text: &str| follow(&grammars, &schema, &CallSyntax::usual(), text);
            assert_eq!(check(r#"{"name": "Ada", "age": 36}"#), Ok(()));
            assert_eq!(check("{\n    \"name\":\"\u{f6}\u{1F600}\",\n    \"age\": null\n}"), Ok(()));
            assert_eq!(check(r#"{"name": "A", "age": 1, "next": {"name": "", "age": 2}}"#), Ok(()));
            assert_eq!(check(r#"{"name": "Ada"}"#), Err(r#"{"name": "Ada"|}"#.into()));
            assert_eq!(check(r#"{"name": "Ada", "age": 151}"#), Err(r#"{"name": "Ada", "age": 15|1"#.into()));
            assert_eq!(check(r#"{"name": "Adelaide"#), Err(r#"{"name": "Adela|i"#.into()));
            assert_eq!(check("[]"), Err("|[".into()));
            assert_eq!(check("{  "), Err("{ | ".into()), "white space without end");
        }
    }

    #[test]
    fn answers_follow_patterns_choices_and_grammars() {
        let grammars = grammars("llava");
        let check = |grammar: &Grammar, text: &str| follow(&grammars, grammar, &CallSyntax::usual(), text);
        let pattern = Grammar::Regex("(a/b|[0-9]{3})+".into());
        assert_eq!(check(&pattern, "a/b123a/b"), Ok(()));
        assert_eq!(check(&pattern, "a/b12"), Err("a/b12|".into()));
        let choice = Grammar::Choice(vec!["yes".into(), "no, \"never\"\n".into()]);
        assert_eq!(check(&choice, "yes"), Ok(()));
        assert_eq!(check(&choice, "no, \"never\"\n"), Ok(()));
        assert_eq!(check(&choice, "nope"), Err("no|p".into()));
        let lark = Grammar::Lark("start: item (\",\" item)*\nitem: /[a-z]+/\n".into());
        assert_eq!(check(&lark, "a,bc"), Ok(()));
        assert_eq!(check(&lark, "a,,"), Err("a,|,".into()));
        assert_eq!(check(&Grammar::any_object(), r#"{"a": [1, {}]}"#), Ok(()));
    }

    fn tools(choice: ToolChoice, parallel: bool, text: Option<(Value, bool)>) -> Grammar {
        let city =
            json!({"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]});
        let tool =
            |name: &str, parameters| Tool { name: name.into(), description: None, parameters, strict: false };
        Grammar::Calls {
            tools: vec![tool("get", None), tool("get_weather", Some(city))],
            choice,
            parallel,
            text,
        }
    }

    #[test]
    fn answers_are_texts_or_calls() {
        let grammars = grammars("qwen2_vl");
        let syntax = CallSyntax::usual();
        let check = |grammar: &Grammar, text: &str| follow(&grammars, grammar, &syntax, text);
        let call = |name: &str, arguments: &str| {
            format!("<tool_call>\n{{\"name\": \"{name}\", \"arguments\": {arguments}}}\n</tool_call>")
        };
        let rome = call("get_weather", r#"{"city": "Rome"}"#);
        let two = format!("{rome}\n{}", call("get", "{}"));

        let auto = tools(ToolChoice::Auto, true, None);
        for text in ["", "Hello, 1 < 2!", &rome, &format!("Let me see.\n{rome}"), &two] {
            assert_eq!(check(&auto, text), Ok(()), "{text}");
        }
        assert_eq!(check(&auto, &call("get_time", "{}")), Err("<tool_call>\n{\"name\": \"get_|t".into()));
        let wrong = check(&auto, &call("get", r#"{"a": 1}"#));
        assert_eq!(wrong, Err("<tool_call>\n{\"name\": \"get\", \"arguments\": {|\"".into()));
        assert!(check(&auto, &format!("{rome} and more")).is_err());

        let once = tools(ToolChoice::Auto, false, None);
        assert_eq!(check(&once, &rome), Ok(()));
        assert_eq!(check(&once, &two), Err(format!("{rome}|\n")));

        let required = tools(ToolChoice::Required, true, None);
        assert_eq!(check(&required, &two), Ok(()));
        assert_eq!(check(&required, "Hello"), Err("|H".into()));

        let named = tools(ToolChoice::Named("get".into()), true, None);
        assert_eq!(check(&named, &call("get", "{}")), Ok(()));
        assert!(
            check(&named, &rome).is_err() && check(&named, &format!("{0}\n{0}", call("get", "{}"))).is_err()
        );

        let typed = tools(ToolChoice::Auto, true, Some((json!({"type": "object"}), false)));
        assert_eq!(check(&typed, "{\"a\": 1}"), Ok(()));
        assert_eq!(check(&typed, &rome), Ok(()));
        assert_eq!(check(&typed, "Hello"), Err("|H".into()));
    }

    #[test]
    fn calls_begin_as_the_model_writes_them() {
        let llama = CallSyntax {
            opening: "{\"name\": \"".into(),
            middle: "\", \"parameters\": ".into(),
            between: None,
            closing: "}".into(),
        };
        // A special token in front, as Mistral has it.
        let special = CallSyntax {
            opening: "<|vision_start|>[{\"name\": \"".into(),
            closing: "}]".into(),
            ..llama.clone()
        };
        let grammars = grammars("qwen2_vl");
        let auto = tools(ToolChoice::Auto, true, None);
        let call = r#"{"name": "get", "parameters": {}}"#;
        assert_eq!(follow(&grammars, &auto, &llama, call), Ok(()));
        assert_eq!(follow(&grammars, &auto, &llama, "{\"nam"), Ok(()));
        assert_eq!(follow(&grammars, &auto, &llama, "{\"name\": \"x"), Err("{\"name\": \"|x".into()));
        let marked = format!("<|vision_start|>[{call}]");
        for text in [&marked, &format!("I see.{marked}"), "I see."] {
            assert_eq!(follow(&grammars, &auto, &special, text), Ok(()), "{text}");
        }
        let required = tools(ToolChoice::Required, false, None);
        assert_eq!(follow(&grammars, &required, &special, &marked), Ok(()));
        assert!(follow(&grammars, &required, &special, call).is_err());
    }

    #[test]
    fn a_space_in_front_is_the_decoders_business() {
        let grammars = grammars("llava");
        let space = (0..480).find(|&id| grammars.tokenizer.token_bytes(id) == b" ").unwrap();
        let any = Grammar::any_object();
        for begun in [false, true] {
            let mask = grammars.compile(&any, &CallSyntax::usual(), begun).unwrap().allowed().unwrap();
            assert_eq!(has(&mask, space), !begun);
        }
    }

    #[test]
    fn what_cannot_be_followed_is_refused() {
        let grammars = grammars("llava");
        let refused = |grammar: &Grammar| {
            grammars.compile(grammar, &CallSyntax::usual(), false).map(|_| ()).unwrap_err().to_string()
        };
        assert!(refused(&json(json!({"type": "potato"}))).contains("potato"));
        assert!(refused(&json(json!({"not": {"type": "string"}}))).contains("not"));
        assert!(refused(&Grammar::Regex("(a".into())).contains('('));
        assert!(refused(&Grammar::Lark("start: missing".into())).contains("missing"));
        let mut deep = json!({"type": "string"});
        for _ in 0..40 {
            deep = json!({"oneOf": [deep]});
        }
        assert_eq!(refused(&json(deep)), "it is nested more than 64 levels deep");
        let long = "a".repeat(LONGEST_GRAMMAR + 1);
        assert_eq!(refused(&Grammar::Regex(long)), "it has 262145 bytes; the limit is 262144");
        for error in
            [refused(&json(json!({"type": "potato"}))), refused(&Grammar::Lark("start: missing".into()))]
        {
            assert!(!error.contains('\n') && error.len() <= LONGEST_ERROR, "{error}");
        }
        // A client knows nothing of the grammar that is made of its schemas.
        let wrong = json!({"type": "object", "properties": {"a": "bar"}});
        assert_eq!(refused(&json(wrong.clone())), "schema must be an object or boolean");
        let tool = |name: &str, schema: &Value| Tool {
            name: name.into(),
            description: None,
            parameters: Some(schema.clone()),
            strict: false,
        };
        let calls = Grammar::Calls {
            tools: vec![tool("good", &json!({"type": "object"})), tool("bad", &wrong)],
            choice: ToolChoice::Auto,
            parallel: true,
            text: None,
        };
        let error = grammars.compile(&calls, &CallSyntax::usual(), false).map(|_| ()).unwrap_err();
        let expected = Box::new(GrammarError::Refused("schema must be an object or boolean".into()));
        assert_eq!(error, GrammarError::Tool { index: 1, name: "bad".into(), error: expected });
        // What cannot be enforced is ignored where nobody insists.
        let lenient = Grammar::Json { schema: json!({"not": {"type": "string"}}), strict: false };
        assert!(grammars.compile(&lenient, &CallSyntax::usual(), false).is_ok());
    }

    #[test]
    fn hostile_patterns_end_soon() {
        let grammars = grammars("llava");
        let nested = format!("{}a{}", "(".repeat(5_000), ")".repeat(5_000));
        for pattern in ["(a+)+b", "((a{1,500}){1,500}){1,500}", &nested, "[a-z]{1,100000}x"] {
            // Whether it is refused or followed does not matter.
            if let Ok(mut constraint) =
                grammars.compile(&Grammar::Regex(pattern.into()), &CallSyntax::usual(), false)
            {
                let _ = constraint.allowed();
            }
        }
        let recursive = json(json!({"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/a"}}}));
        let _ = grammars.compile(&recursive, &CallSyntax::usual(), false);
    }
}
