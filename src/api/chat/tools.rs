//! Functions and forms of answers: from the wire to what constrains an answer.

use std::collections::HashSet;

use serde_json::Value;

use super::parse::CallStyle;
use crate::{
    api::{
        check::{missing, unsupported, value},
        wire::{Items, Object, chat::ChatRequest, tools as wire},
    },
    request::InvalidRequest,
    text::{Call, CallSyntax, Grammar, Tool, ToolChoice},
};

/// Most characters of a function's name.
const LONGEST_NAME: usize = 64;

/// What an answer must be, and the field that says so.
#[derive(Debug, Clone)]
pub(in crate::api) struct Constrained {
    pub(in crate::api) grammar: Grammar,
    /// The field that says so. Behind `[]` is where each of several has its schema.
    pub(in crate::api) param: String,
}

/// Functions of a request, and how they are called.
#[derive(Debug, Clone)]
pub(in crate::api) struct Toolbox {
    pub(in crate::api) tools: Vec<Tool>,
    pub(in crate::api) choice: ToolChoice,
    /// Whether several may be called.
    pub(in crate::api) parallel: bool,
    /// Whether they were given the older way, and calls go back the same way.
    pub(in crate::api) legacy: bool,
    /// The field that they are in, and behind `[]` where each has its schema; without that, where not all are here.
    pub(in crate::api) schemas: &'static str,
}

impl Toolbox {
    /// The functions of a chat request; [`None`] where none may be called.
    pub(super) fn parse(request: &mut ChatRequest) -> Result<Option<Self>, InvalidRequest> {
        let Items(tools) = request.tools.take().unwrap_or_default();
        let Items(functions) = request.functions.take().unwrap_or_default();
        let legacy = tools.is_empty() && !functions.is_empty();
        let tools = if legacy {
            let named = |(index, Object(function)): (usize, Object<wire::Function>)| {
                tool(function, &format!("functions[{index}]"))
            };
            functions.into_iter().enumerate().map(named).collect::<Result<Vec<_>, _>>()?
        } else {
            let typed = |(index, Object(found)): (usize, Object<wire::Tool>)| {
                let path = format!("tools[{index}]");
                kind(found.kind.as_deref(), &path)?;
                let Object(function) = found.function.ok_or_else(|| missing(&format!("{path}.function")))?;
                tool(function, &format!("{path}.function"))
            };
            tools.into_iter().enumerate().map(typed).collect::<Result<Vec<_>, _>>()?
        };
        let field = if legacy { "functions" } else { "tools" };
        let mut names = HashSet::new();
        if let Some(twice) = tools.iter().find(|tool| !names.insert(tool.name.clone())) {
            return Err(value(field, &twice.name, "names that differ from each other"));
        }
        let (param, choice) = if legacy {
            ("function_call", request.function_call.take())
        } else {
            ("tool_choice", request.tool_choice.take())
        };
        let parallel = !legacy && request.parallel_tool_calls.unwrap_or(true);
        Self::choose(tools, choice, param, (parallel, legacy))
    }

    fn choose(
        tools: Vec<Tool>,
        choice: Option<wire::ToolChoice>,
        param: &str,
        (parallel, legacy): (bool, bool),
    ) -> Result<Option<Self>, InvalidRequest> {
        let known = |name: &str, path: &str| {
            if tools.iter().any(|tool| tool.name == name) {
                return Ok(());
            }
            let names: Vec<&str> = tools.iter().map(|tool| tool.name.as_str()).collect();
            Err(value(
                path,
                name,
                &if names.is_empty() { "none: there are no tools".into() } else { names.join(", ") },
            ))
        };
        let named = |name: Option<String>, path: &str| {
            let name = name.ok_or_else(|| missing(path))?;
            known(&name, path)?;
            Ok::<_, InvalidRequest>(name)
        };
        let mut allowed = None;
        let choice = match choice {
            None => ToolChoice::Auto,
            Some(wire::ToolChoice::Word(word)) => match word.as_str() {
                "none" => return Ok(None),
                "auto" => ToolChoice::Auto,
                "required" if tools.is_empty() => return Err(missing("tools")),
                "required" if param == "tool_choice" => ToolChoice::Required,
                other if param == "tool_choice" => {
                    return Err(value(param, other, "'none', 'auto', 'required' and an object"));
                }
                other => return Err(value(param, other, "'none', 'auto' and an object")),
            },
            Some(wire::ToolChoice::Which(which)) => {
                let wire::Which { kind, function, name, allowed_tools } = *which;
                match kind.as_deref() {
                    None if param == "function_call" => ToolChoice::Named(named(name, "function_call.name")?),
                    Some("function") => {
                        let path = format!("{param}.function.name");
                        let name = function.and_then(|Object(function)| function.name).or(name);
                        ToolChoice::Named(named(name, &path)?)
                    }
                    Some("allowed_tools") => {
                        let path = format!("{param}.allowed_tools");
                        let Object(found) = allowed_tools.ok_or_else(|| missing(&path))?;
                        let Items(list) = found.tools.ok_or_else(|| missing(&format!("{path}.tools")))?;
                        let mut names = HashSet::new();
                        for (index, Object(item)) in list.into_iter().enumerate() {
                            let path = format!("{path}.tools[{index}].function.name");
                            names.insert(named(
                                item.function.and_then(|Object(function)| function.name),
                                &path,
                            )?);
                        }
                        allowed = Some(names);
                        match found.mode.as_deref() {
                            None | Some("auto") => ToolChoice::Auto,
                            Some("required") => ToolChoice::Required,
                            Some(other) => {
                                return Err(value(&format!("{path}.mode"), other, "'auto' and 'required'"));
                            }
                        }
                    }
                    Some(other) => {
                        return Err(value(&format!("{param}.type"), other, "'function' and 'allowed_tools'"));
                    }
                    None => return Err(missing(&format!("{param}.type"))),
                }
            }
        };
        let schemas = match (legacy, &allowed) {
            (true, _) => "functions[].parameters",
            (false, None) => "tools[].function.parameters",
            (false, Some(_)) => "tools",
        };
        let tools: Vec<Tool> = match allowed {
            Some(names) => tools.into_iter().filter(|tool| names.contains(&tool.name)).collect(),
            None => tools,
        };
        Ok((!tools.is_empty()).then_some(Self { tools, choice, parallel, legacy, schemas }))
    }

    /// What an answer may be with these functions, where there are any, and how their calls are told; a text in `form`,
    /// where there is one.
    pub(in crate::api) fn bind(
        toolbox: Option<&Self>,
        form: Option<Constrained>,
    ) -> Result<(Option<Constrained>, Option<CallStyle>), InvalidRequest> {
        let Some(toolbox) = toolbox else { return Ok((form, None)) };
        let style =
            CallStyle { legacy: toolbox.legacy, named: matches!(toolbox.choice, ToolChoice::Named(_)) };
        Ok((Some(toolbox.grammar(form)?), Some(style)))
    }

    fn grammar(&self, form: Option<Constrained>) -> Result<Constrained, InvalidRequest> {
        let text = match form {
            None => None,
            Some(Constrained { grammar: Grammar::Json { schema, strict }, .. }) => Some((schema, strict)),
            Some(Constrained { param, .. }) => {
                return Err(unsupported(&param, "it cannot be combined with functions that may be called"));
            }
        };
        let grammar = Grammar::Calls {
            tools: self.tools.clone(),
            choice: self.choice.clone(),
            parallel: self.parallel,
            text,
        };
        Ok(Constrained { grammar, param: self.schemas.into() })
    }
}

fn kind(kind: Option<&str>, path: &str) -> Result<(), InvalidRequest> {
    let path = format!("{path}.type");
    match kind {
        Some("function") => Ok(()),
        Some("custom") => {
            Err(unsupported(&path, "only functions can be called; give the tool a JSON schema"))
        }
        Some(other) => Err(value(&path, other, "'function'")),
        None => Err(missing(&path)),
    }
}

/// A function that may be called.
pub(in crate::api) fn tool(function: wire::Function, path: &str) -> Result<Tool, InvalidRequest> {
    let name = function.name.ok_or_else(|| missing(&format!("{path}.name")))?;
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"_-.".contains(&byte);
    if name.is_empty() || name.len() > LONGEST_NAME || !name.bytes().all(plain) {
        let supported = format!("up to {LONGEST_NAME} letters, digits, '_', '-' and '.'");
        return Err(value(&format!("{path}.name"), &name, &supported));
    }
    let parameters = function.parameters.filter(|schema| !schema.is_null());
    if let Some(other) = parameters.as_ref().filter(|schema| !schema.is_object()) {
        return Err(type_error(&format!("{path}.parameters"), "an object", other));
    }
    let strict = function.strict.unwrap_or(false);
    Ok(Tool { name, description: function.description, parameters, strict })
}

pub(in crate::api) fn type_error(param: &str, expected: &str, found: &Value) -> InvalidRequest {
    let found = match found {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "an array",
        Value::Object(_) => "an object",
    };
    InvalidRequest::Type { param: param.into(), expected: expected.into(), found: found.into() }
}

/// A call of an earlier turn.
pub(in crate::api) fn call(
    id: Option<String>,
    called: wire::Called,
    path: &str,
) -> Result<Call, InvalidRequest> {
    let name = called.name.ok_or_else(|| missing(&format!("{path}.name")))?;
    let arguments = called.arguments.unwrap_or_default();
    let arguments = match serde_json::from_str(&arguments) {
        Ok(object @ Value::Object(_)) => object,
        _ if arguments.trim().is_empty() => Value::Object(serde_json::Map::new()),
        // What an answer was cut in.
        _ => Value::String(arguments),
    };
    Ok(Call { id: id.unwrap_or_else(|| name.clone()), name, arguments })
}

/// Fields that say what form an answer has.
#[derive(Debug, Default)]
pub(in crate::api) struct FormFields {
    pub(in crate::api) response_format: Option<Object<wire::ResponseFormat>>,
    pub(in crate::api) structured_outputs: Option<Object<wire::StructuredOutputs>>,
    pub(in crate::api) guided_json: Option<Value>,
    pub(in crate::api) guided_regex: Option<String>,
    pub(in crate::api) guided_choice: Option<Items<String, { wire::MOST_CHOICES }>>,
    pub(in crate::api) guided_grammar: Option<String>,
}

/// What form the answer has, however it is asked for.
pub(in crate::api) fn form(fields: FormFields) -> Result<Option<Constrained>, InvalidRequest> {
    let mut found = Vec::new();
    if let Some(Object(format)) = fields.response_format {
        found.extend(response_format(format, "response_format")?);
    }
    let Object(outputs) = fields.structured_outputs.unwrap_or_default();
    let wire::StructuredOutputs { json, regex, choice, grammar, json_object } = outputs;
    let names = |front: &str| ["json", "regex", "choice", "grammar"].map(|name| format!("{front}{name}"));
    let FormFields { guided_json, guided_regex, guided_choice, guided_grammar, .. } = fields;
    for (json, regex, choice, grammar, names) in [
        (json, regex, choice, grammar, names("structured_outputs.")),
        (guided_json, guided_regex, guided_choice, guided_grammar, names("guided_")),
    ] {
        let [json_name, regex_name, choice_name, grammar_name] = names;
        if let Some(schema) = json.filter(|schema| !schema.is_null()) {
            let grammar = Grammar::Json { schema: schema_of(schema, &json_name)?, strict: false };
            found.push(Constrained { grammar, param: json_name });
        }
        if let Some(pattern) = regex {
            found.push(Constrained { grammar: Grammar::Regex(pattern), param: regex_name });
        }
        if let Some(Items(texts)) = choice {
            if texts.is_empty() {
                return Err(InvalidRequest::EmptyArray { param: choice_name });
            }
            found.push(Constrained { grammar: Grammar::Choice(texts), param: choice_name });
        }
        if let Some(grammar) = grammar {
            found.push(Constrained { grammar: Grammar::Lark(grammar), param: grammar_name });
        }
    }
    if json_object == Some(true) {
        let param = "structured_outputs.json_object".into();
        found.push(Constrained { grammar: Grammar::any_object(), param });
    }
    if let [first, second, ..] = &found[..] {
        return Err(unsupported(
            &second.param,
            format!("the answer's form is given by {} already", first.param),
        ));
    }
    Ok(found.pop())
}

/// A JSON schema, or the text of one, as vLLM takes it.
fn schema_of(schema: Value, param: &str) -> Result<Value, InvalidRequest> {
    let schema = match schema {
        Value::String(text) => serde_json::from_str(&text)
            .map_err(|_| value(param, &text, "JSON schemas, as objects or as their texts"))?,
        other => other,
    };
    if schema.is_object() { Ok(schema) } else { Err(type_error(param, "an object", &schema)) }
}

/// What a `response_format` asks for; [`None`] for text.
pub(in crate::api) fn response_format(
    format: wire::ResponseFormat,
    path: &str,
) -> Result<Option<Constrained>, InvalidRequest> {
    match format.kind.as_deref() {
        Some("text") => Ok(None),
        Some("json_object") => {
            Ok(Some(Constrained { grammar: Grammar::any_object(), param: path.to_owned() }))
        }
        Some("json_schema") => {
            let path = format!("{path}.json_schema");
            let Object(named) = format.json_schema.ok_or_else(|| missing(&path))?;
            named_schema(named, &path).map(Some)
        }
        Some(other) => Err(value(&format!("{path}.type"), other, "'text', 'json_object' and 'json_schema'")),
        None => Err(missing(&format!("{path}.type"))),
    }
}

/// What a schema with a name asks for.
pub(in crate::api) fn named_schema(
    named: wire::NamedSchema,
    path: &str,
) -> Result<Constrained, InvalidRequest> {
    if named.name.is_none() {
        return Err(missing(&format!("{path}.name")));
    }
    let param = format!("{path}.schema");
    let schema = named.schema.filter(|schema| !schema.is_null()).ok_or_else(|| missing(&param))?;
    if !schema.is_object() {
        return Err(type_error(&param, "an object", &schema));
    }
    let grammar = Grammar::Json { schema, strict: named.strict.unwrap_or(false) };
    Ok(Constrained { grammar, param })
}

/// Whether a model that writes calls like this can tell them from an answer in JSON.
pub(in crate::api) fn tells_apart(syntax: &CallSyntax, constrained: &Constrained) -> bool {
    let (_, at_start) = syntax.trigger();
    !(at_start
        && matches!(&constrained.grammar, Grammar::Calls { text: Some(_), choice: ToolChoice::Auto, .. }))
}
