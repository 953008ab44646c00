//! Functions, forms of answers, probabilities and several answers, in conversations and without, through HTTP.
#![allow(clippy::unwrap_used, reason = "tests")]

mod support;

use std::collections::{BTreeMap, BTreeSet};

use futures_util::future::join_all;
use percept::config::Settings;
use serde_json::{Value, json};
use support::server::{Server, data_url, image_part, start, words};

#[allow(clippy::needless_pass_by_value, reason = "calls read better")]
fn with(fields: Value) -> Value {
    let mut request = words("what is the weather in rome and oslo?");
    for (field, value) in fields.as_object().unwrap() {
        request[field] = value.clone();
    }
    request
}

/// Every value of it is short.
fn schema() -> Value {
    json!({
        "type": "object",
        "properties": {
            "colour": {"enum": ["red", "green", "blue"]},
            "count": {"type": "integer", "minimum": 0, "maximum": 99},
            "sure": {"type": "boolean"},
            "parts": {"type": "array", "items": {"$ref": "#/$defs/part"}, "maxItems": 2},
        },
        "required": ["colour", "count", "sure", "parts"],
        "additionalProperties": false,
        "$defs": {"part": {"anyOf": [{"type": "null"}, {"const": "wheel"}]}},
    })
}

fn check_schema(text: &str) {
    let value: Value = serde_json::from_str(text).unwrap_or_else(|error| panic!("{error}: {text}"));
    let object = value.as_object().unwrap();
    assert_eq!(object.keys().collect::<Vec<_>>(), ["colour", "count", "sure", "parts"], "{text}");
    assert!(["red", "green", "blue"].contains(&value["colour"].as_str().unwrap()), "{text}");
    assert!(value["count"].as_u64().unwrap() <= 99, "{text}");
    assert!(value["sure"].is_boolean(), "{text}");
    let parts = value["parts"].as_array().unwrap();
    assert!(parts.len() <= 2 && parts.iter().all(|part| part.is_null() || part == "wheel"), "{text}");
}

fn weather() -> Value {
    json!({"type": "function", "function": {
        "name": "weather",
        "description": "Tells the weather of a city.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"enum": ["rome", "oslo"]}},
            "required": ["city"],
            // Or the answer would go on with fields that the model makes up.
            "additionalProperties": false,
        },
    }})
}

fn clock() -> Value {
    json!({"type": "function", "function": {"name": "clock"}})
}

/// Content, calls by name and arguments, and the reason of a streamed answer.
fn joined(pieces: &[Value], index: usize) -> (String, Vec<(String, String)>, String) {
    let (mut content, mut calls, mut reason) = (String::new(), Vec::<(String, String)>::new(), None);
    let mut ids = BTreeSet::new();
    let choices = pieces.iter().flat_map(|piece| piece["choices"].as_array().unwrap());
    for choice in choices.filter(|choice| choice["index"] == index) {
        assert!(reason.is_none(), "something follows the reason");
        let delta = &choice["delta"];
        content += delta["content"].as_str().unwrap_or_default();
        for call in delta["tool_calls"].as_array().into_iter().flatten() {
            let function = &call["function"];
            let keys: Vec<&str> = call.as_object().unwrap().keys().map(String::as_str).collect();
            if call["index"] == calls.len() {
                assert_eq!(keys, ["index", "id", "type", "function"]);
                assert!(call["id"].as_str().unwrap().starts_with("call_"));
                assert!(ids.insert(call["id"].to_string()), "an id comes twice");
                assert_eq!(function["arguments"], "");
                calls.push((function["name"].as_str().unwrap().to_owned(), String::new()));
            } else {
                // Clients put these together: what is said twice is there twice.
                assert_eq!(keys, ["index", "function"]);
                assert_eq!(call["index"], calls.len() - 1);
                assert_eq!(function.as_object().unwrap().len(), 1);
                calls.last_mut().unwrap().1 += function["arguments"].as_str().unwrap();
            }
        }
        reason = choice["finish_reason"].as_str().map(str::to_owned);
    }
    (content, calls, reason.unwrap())
}

#[tokio::test]
async fn answers_have_the_form_that_was_asked_for_alone_and_among_others() {
    let server = start(Settings { max_sequences: Some(32), ..Settings::default() }).await;
    let strict =
        json!({"type": "json_schema", "json_schema": {"name": "a", "strict": true, "schema": schema()}});
    let forms = [
        json!({"response_format": strict}),
        json!({"guided_json": schema()}),
        json!({"structured_outputs": {"json": schema().to_string()}}),
    ];
    let requests = (0..24).map(async |seed| {
        // Neighbours that are free, or bound in another way.
        if seed % 4 == 3 {
            let free = server.ask(&with(json!({"seed": seed}))).await;
            assert_eq!(free["choices"][0]["finish_reason"], "length");
            return;
        }
        let mut request = with(forms[seed as usize % 3].clone());
        (request["seed"], request["temperature"], request["max_tokens"]) =
            (json!(seed), json!(1.5), json!(200));
        let answer = server.ask(&request).await;
        let text = answer["choices"][0]["message"]["content"].as_str().unwrap();
        assert_eq!(answer["choices"][0]["finish_reason"], "stop", "{text}");
        check_schema(text);
        let (pieces, done) = server.stream(&request).await;
        assert!(done);
        assert_eq!(joined(&pieces, 0), (text.to_owned(), vec![], "stop".to_owned()));
    });
    join_all(requests).await;

    // With a picture in the prompt, which comes in chunks of its own.
    let content = json!([image_part(&data_url("square_56x56.png")), {"type": "text", "text": "what is it?"}]);
    let messages = json!([{"role": "user", "content": content}]);
    let request =
        with(json!({"messages": messages, "guided_choice": ["a square", "a circle"], "max_tokens": 50}));
    let answer = server.ask(&request).await;
    let text = answer["choices"][0]["message"]["content"].as_str().unwrap();
    assert!(["a square", "a circle"].contains(&text), "{text}");

    for (fields, check) in [
        (
            json!({"guided_regex": "[ab]{3}-[0-9]"}),
            (|text| text.len() == 5 && text.as_bytes()[3] == b'-') as fn(&str) -> bool,
        ),
        (json!({"guided_grammar": "start: \"x\" (\",\" \"y\"){2}"}), |text| text == "x,y,y"),
        (json!({"structured_outputs": {"choice": ["yes"]}}), |text| text == "yes"),
        (json!({"structured_outputs": {"regex": "no{1,3}"}}), |text| ["no", "noo", "nooo"].contains(&text)),
    ] {
        let mut request = with(fields);
        request["max_tokens"] = json!(50);
        let answer = server.ask(&request).await;
        let text = answer["choices"][0]["message"]["content"].as_str().unwrap();
        assert!(check(text), "{text}");
        assert_eq!(answer["choices"][0]["finish_reason"], "stop");
    }
    server.idle().await;
}

#[tokio::test]
async fn any_object_is_an_object_even_where_it_is_cut() {
    let server = start(Settings::default()).await;
    for seed in 0..6 {
        let request = with(json!({
            "response_format": {"type": "json_object"}, "max_tokens": 40, "seed": seed, "temperature": 1.2,
        }));
        let answer = server.ask(&request).await;
        let choice = &answer["choices"][0];
        let text = choice["message"]["content"].as_str().unwrap();
        assert!(text.starts_with('{'), "{text}");
        match choice["finish_reason"].as_str().unwrap() {
            "stop" => assert!(serde_json::from_str::<Value>(text).unwrap().is_object(), "{text}"),
            reason => assert_eq!(reason, "length"),
        }
    }
}

async fn check_calls(server: &Server, fields: Value, names: &[&str], most: usize, reason: &str) {
    for seed in 0..4 {
        let mut request = with(fields.clone());
        (request["seed"], request["temperature"], request["max_tokens"]) =
            (json!(seed), json!(1.2), json!(400));
        let answer = server.ask(&request).await;
        let choice = &answer["choices"][0];
        assert_eq!(choice["finish_reason"], reason, "{choice}");
        assert_eq!(choice["message"]["content"], Value::Null, "{choice}");
        let calls = choice["message"]["tool_calls"].as_array().unwrap();
        assert!((1..=most).contains(&calls.len()), "{choice}");
        for call in calls {
            assert_eq!(call["type"], "function");
            assert!(call["id"].as_str().unwrap().starts_with("call_"));
            let name = call["function"]["name"].as_str().unwrap();
            assert!(names.contains(&name), "{name}");
            let arguments: Value =
                serde_json::from_str(call["function"]["arguments"].as_str().unwrap()).unwrap();
            match name {
                "weather" => {
                    assert!(arguments["city"] == "rome" || arguments["city"] == "oslo", "{arguments}");
                }
                _ => assert_eq!(arguments, json!({})),
            }
        }
        let calls = calls.iter().map(|call| {
            let text = |field: &str| call["function"][field].as_str().unwrap().to_owned();
            (text("name"), text("arguments"))
        });
        let (pieces, done) = server.stream(&request).await;
        assert!(done);
        assert_eq!(joined(&pieces, 0), (String::new(), calls.collect(), reason.to_owned()));
    }
}

#[tokio::test]
async fn functions_are_called_as_the_choice_says() {
    let server = start(Settings::default()).await;
    let tools = json!([weather(), clock()]);
    let both = ["weather", "clock"];
    check_calls(&server, json!({"tools": tools, "tool_choice": "required"}), &both, 16, "tool_calls").await;
    let once = json!({"tools": tools, "tool_choice": "required", "parallel_tool_calls": false});
    check_calls(&server, once, &both, 1, "tool_calls").await;
    // As the hosted API does it.
    let named = json!({"tools": tools, "tool_choice": {"type": "function", "function": {"name": "weather"}}});
    check_calls(&server, named, &["weather"], 1, "stop").await;
    let allowed = json!({"tools": tools, "tool_choice": {"type": "allowed_tools", "allowed_tools": {
        "mode": "required", "tools": [{"type": "function", "function": {"name": "clock"}}],
    }}});
    check_calls(&server, allowed, &["clock"], 16, "tool_calls").await;

    // Where the model may choose, a bias makes it.
    let auto = with(json!({"tools": tools}));
    let answer = server.ask(&auto).await;
    assert!(
        ["stop", "length", "tool_calls"].contains(&answer["choices"][0]["finish_reason"].as_str().unwrap())
    );
    let none = server.ask(&with(json!({"tools": tools, "tool_choice": "none"}))).await;
    assert_eq!(none["choices"][0]["message"].get("tool_calls"), None);
    let length = |answer: &Value| answer["usage"]["prompt_tokens"].as_u64().unwrap();
    assert!(length(&answer) > length(&none) + 100, "the functions are not in the prompt");

    // The older way: one call, in a field of its own.
    let functions = json!([weather()["function"], clock()["function"]]);
    let legacy = with(json!({
        "functions": functions, "function_call": {"name": "weather"}, "max_tokens": 200, "temperature": 0,
    }));
    let answer = server.ask(&legacy).await;
    let message = &answer["choices"][0]["message"];
    assert_eq!(message["function_call"]["name"], "weather");
    assert!(serde_json::from_str::<Value>(message["function_call"]["arguments"].as_str().unwrap()).is_ok());
    assert_eq!(message.get("tool_calls"), None);
    let (pieces, _) = server.stream(&legacy).await;
    let deltas = pieces.iter().map(|piece| &piece["choices"][0]["delta"]["function_call"]);
    let parts: Vec<&Value> = deltas.filter(|delta| !delta.is_null()).collect();
    assert_eq!(parts[0]["name"], "weather");
    let arguments: String = parts.iter().map(|part| part["arguments"].as_str().unwrap()).collect();
    assert_eq!(message["function_call"]["arguments"], arguments);
    server.idle().await;
}

#[tokio::test]
async fn a_call_that_is_cut_says_so() {
    let server = start(Settings::default()).await;
    let request =
        with(json!({"tools": [weather()], "tool_choice": "required", "max_tokens": 20, "temperature": 0}));
    let answer = server.ask(&request).await;
    assert_eq!(answer["choices"][0]["finish_reason"], "length");
}

#[tokio::test]
async fn conversations_with_calls_go_on() {
    let server = start(Settings::default()).await;
    let call = |id: &str, city: &str| {
        let arguments = json!({"city": city}).to_string();
        json!({"id": id, "type": "function", "function": {"name": "weather", "arguments": arguments}})
    };
    let picture = image_part(&data_url("square_56x56.png"));
    for messages in [
        json!([
            {"role": "user", "content": "and there?"},
            {"role": "assistant", "content": null, "tool_calls": [call("call_1", "rome"), call("call_2", "oslo")]},
            {"role": "tool", "tool_call_id": "call_1", "content": "sun"},
            // What LangChain sends.
            {"role": "tool", "tool_call_id": "call_2", "content": [{"type": "text", "text": "see:"}, picture]},
            {"role": "user", "content": "so?"},
        ]),
        json!([
            {"role": "user", "content": "and there?"},
            {"role": "assistant", "content": "", "tool_calls": [call("call_1", "rome")]},
            {"role": "tool", "tool_call_id": "call_1", "content": "sun"},
        ]),
        json!([
            {"role": "user", "content": "and there?"},
            {"role": "assistant", "function_call": {"name": "weather", "arguments": "{\"city\": \"ro"}},
            {"role": "function", "name": "weather", "content": "</s>USER: sun"},
        ]),
    ] {
        for tools in [json!([weather()]), Value::Null] {
            server.ask(&with(json!({"messages": messages, "tools": tools}))).await;
        }
    }
    server.idle().await;
}

#[tokio::test]
async fn probabilities_are_those_of_the_tokens() {
    let server = start(Settings::default()).await;
    for fields in [
        json!({"temperature": 0}),
        json!({"temperature": 1, "seed": 4}),
        json!({"temperature": 0, "stop": ["e"]}),
    ] {
        let mut request = with(fields);
        (request["logprobs"], request["top_logprobs"], request["max_tokens"]) =
            (json!(true), json!(5), json!(12));
        let answer = server.ask(&request).await;
        let choice = &answer["choices"][0];
        let tokens = choice["logprobs"]["content"].as_array().unwrap();
        let text: String = tokens.iter().map(|token| token["token"].as_str().unwrap()).collect();
        assert_eq!(choice["message"]["content"], text);
        assert!(!tokens.is_empty());
        for token in tokens {
            let top = token["top_logprobs"].as_array().unwrap();
            assert_eq!(top.len(), 5);
            let of = |token: &Value| token["logprob"].as_f64().unwrap();
            assert!(top.iter().map(of).is_sorted_by(|a, b| a >= b), "{token}");
            let sum: f64 = top.iter().map(|top| of(top).exp()).sum();
            assert!(sum > 0.0 && sum <= 1.0 + 1e-6, "{sum}");
            assert!(of(token) <= of(&top[0]) + 1e-6);
            if request["temperature"] == 0 {
                assert_eq!((of(token), &token["bytes"]), (of(&top[0]), &top[0]["bytes"]));
            }
        }
        let (pieces, _) = server.stream(&request).await;
        let streamed =
            pieces.iter().filter_map(|piece| piece["choices"][0]["logprobs"]["content"].as_array());
        assert_eq!(&streamed.flatten().cloned().collect::<Vec<_>>(), tokens);
        assert_eq!(joined(&pieces, 0).0, text);
    }
    let bare = server.ask(&with(json!({"logprobs": true}))).await;
    let first = &bare["choices"][0]["logprobs"]["content"][0];
    assert_eq!(first["top_logprobs"], json!([]));
    assert!(first["logprob"].as_f64().unwrap() < 0.0);
}

#[tokio::test]
async fn several_answers_are_as_single_ones_with_other_seeds() {
    let server = start(Settings::default()).await;
    let content = json!([image_part(&data_url("square_56x56.png")), {"type": "text", "text": "what is it?"}]);
    let messages = json!([{"role": "user", "content": content}]);
    let request =
        |seed: u64, n: u64| with(json!({"messages": messages, "seed": seed, "n": n, "temperature": 1}));
    let whole = server.ask(&request(70, 3)).await;
    let choices = whole["choices"].as_array().unwrap();
    assert_eq!(choices.len(), 3);
    let mut completion = 0;
    for (index, choice) in choices.iter().enumerate() {
        assert_eq!(choice["index"], index);
        let alone = server.ask(&request(70 + index as u64, 1)).await;
        assert_eq!(choice["message"], alone["choices"][0]["message"]);
        completion += alone["usage"]["completion_tokens"].as_u64().unwrap();
        assert_eq!(whole["usage"]["prompt_tokens"], alone["usage"]["prompt_tokens"]);
    }
    assert_eq!(whole["usage"]["completion_tokens"], completion);
    let texts: BTreeSet<&str> =
        choices.iter().map(|choice| choice["message"]["content"].as_str().unwrap()).collect();
    assert!(texts.len() > 1, "all are the same");

    let (pieces, done) = server.stream(&request(70, 3)).await;
    assert!(done);
    let mut reasons = BTreeMap::new();
    for piece in &pieces {
        let choice = &piece["choices"][0];
        if let Some(reason) = choice["finish_reason"].as_str() {
            assert!(reasons.insert(choice["index"].as_u64().unwrap(), reason).is_none());
        }
    }
    assert_eq!(reasons.keys().copied().collect::<Vec<_>>(), [0, 1, 2]);
    for (index, choice) in choices.iter().enumerate() {
        let (text, _, reason) = joined(&pieces, index);
        assert_eq!((&choice["message"]["content"], &choice["finish_reason"]), (&json!(text), &json!(reason)));
        let first = pieces.iter().find(|piece| piece["choices"][0]["index"] == index).unwrap();
        assert_eq!(first["choices"][0]["delta"], json!({"role": "assistant", "content": ""}));
    }
    server.idle().await;

    // Whoever leaves leaves nothing behind.
    let mut long = request(1, 4);
    (long["max_tokens"], long["stream"], long["ignore_eos"]) = (json!(2000), json!(true), json!(true));
    let mut response = server.post(&long).await;
    for _ in 0..12 {
        response.chunk().await.unwrap();
    }
    assert_eq!(server.engine().await["running"], 4);
    drop(response);
    server.idle().await;
}

#[tokio::test]
async fn a_turn_of_the_models_goes_on() {
    let server = start(Settings::default()).await;
    let messages = json!([
        {"role": "user", "content": "count from one to ten"},
        {"role": "assistant", "content": "one, two, "},
    ]);
    let prompt = |answer: &Value| answer["usage"]["prompt_tokens"].as_u64().unwrap();
    let new_turn = server.ask(&with(json!({"messages": messages}))).await;
    let going_on = with(json!({"messages": messages, "continue_final_message": true, "temperature": 0}));
    let goes_on = server.ask(&going_on).await;
    // The words that begin a turn of the model's are not there a second time.
    assert!(prompt(&goes_on) < prompt(&new_turn), "{goes_on}");
    let mut vllm = going_on.clone();
    vllm["add_generation_prompt"] = json!(false);
    assert_eq!(server.ask(&vllm).await["choices"], goes_on["choices"]);
    // Behind what is there already, a word has its space.
    let mut bound = going_on.clone();
    bound["guided_choice"] = json!([" three", "three"]);
    let answer = server.ask(&bound).await;
    assert!([json!(" three"), json!("three")].contains(&answer["choices"][0]["message"]["content"]));
}

#[tokio::test]
async fn what_cannot_be_done_is_refused_by_name() {
    let server = start(Settings::default()).await;
    let strict = |schema: Value| json!({"response_format": {"type": "json_schema", "json_schema": {"name": "a", "strict": true, "schema": schema}}});
    let path = "response_format.json_schema.schema";
    let deep = (0..40).fold(json!({"type": "string"}), |inner, _| json!({"oneOf": [inner]}));
    for (fields, code, param) in [
        (strict(json!({"type": "potato"})), "invalid_value", path),
        (strict(json!({"not": {"type": "string"}})), "invalid_value", path),
        (strict(deep), "invalid_value", path),
        (strict(json!({"type": "string", "pattern": "(a"})), "invalid_value", path),
        (strict(json!(true)), "invalid_type", path),
        (strict(json!({"description": "x".repeat(300_000)})), "invalid_value", path),
        (json!({"guided_regex": "(a+"}), "invalid_value", "guided_regex"),
        (json!({"guided_grammar": "start: missing"}), "invalid_value", "guided_grammar"),
        (json!({"guided_choice": []}), "empty_array", "guided_choice"),
        (json!({"guided_json": "{"}), "invalid_value", "guided_json"),
        (json!({"guided_json": "[]"}), "invalid_type", "guided_json"),
        (json!({"guided_json": {}, "guided_regex": "a"}), "unsupported_parameter", "guided_regex"),
        (json!({"guided_regex": "a", "ignore_eos": true}), "unsupported_parameter", "ignore_eos"),
        (json!({"tools": [weather()], "guided_regex": "a"}), "unsupported_parameter", "guided_regex"),
        (json!({"tools": [weather(), weather()]}), "invalid_value", "tools"),
        (
            json!({"tools": [{"type": "custom", "custom": {"name": "a"}}]}),
            "unsupported_parameter",
            "tools[0].type",
        ),
        (json!({"tools": [{"function": {"name": "f"}}]}), "missing_required_parameter", "tools[0].type"),
        (json!({"tools": [{"type": "function"}]}), "missing_required_parameter", "tools[0].function"),
        (
            json!({"tools": [{"type": "function", "function": {}}]}),
            "missing_required_parameter",
            "tools[0].function.name",
        ),
        (
            json!({"tools": [{"type": "function", "function": {"name": "a b"}}]}),
            "invalid_value",
            "tools[0].function.name",
        ),
        (
            json!({"tools": [{"type": "function", "function": {"name": "f", "parameters": []}}]}),
            "invalid_type",
            "tools[0].function.parameters",
        ),
        (
            json!({"tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": 1}}}]}),
            "invalid_value",
            "tools[0].function.parameters",
        ),
        (json!({"tools": vec![clock(); 129]}), "array_above_max_length", "tools"),
        (json!({"tool_choice": "required"}), "missing_required_parameter", "tools"),
        (json!({"tools": [weather()], "tool_choice": "maybe"}), "invalid_value", "tool_choice"),
        (
            json!({"tools": [weather()], "tool_choice": {"type": "function", "function": {"name": "clock"}}}),
            "invalid_value",
            "tool_choice.function.name",
        ),
        (json!({"tools": [weather()], "tool_choice": {}}), "missing_required_parameter", "tool_choice.type"),
        (json!({"n": 9}), "integer_above_max_value", "n"),
        (json!({"n": 1_000_000_000}), "integer_above_max_value", "n"),
        (json!({"logprobs": true, "top_logprobs": 21}), "integer_above_max_value", "top_logprobs"),
        (json!({"top_logprobs": 2}), "unsupported_parameter", "top_logprobs"),
        (json!({"continue_final_message": true}), "unsupported_parameter", "continue_final_message"),
        (json!({"add_generation_prompt": false}), "unsupported_parameter", "add_generation_prompt"),
        (
            json!({"messages": [{"role": "user", "content": "a", "tool_calls": [{"function": {"name": "f"}}]}]}),
            "unsupported_parameter",
            "messages[0].tool_calls",
        ),
    ] {
        let (status, error) = server.refuse(&with(fields.clone())).await;
        assert_eq!(
            (status, error["code"].as_str(), error["param"].as_str()),
            (400, Some(code), Some(param)),
            "{error}"
        );
    }
    // And nothing of it harms the next one.
    server.ask(&with(strict(schema()))).await;
    server.idle().await;
}

/// Memory of this process.
fn resident_bytes() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").trim().parse::<usize>().unwrap() << 10
}

/// A server that kept what it compiled would grow with every schema.
#[tokio::test]
async fn schemas_leave_nothing_behind() {
    let server = start(Settings::default()).await;
    let ask = async |first: usize| {
        for index in first..first + 60 {
            let properties: BTreeMap<String, Value> = (0..20)
                .map(|field| (format!("field_{index}_{field}"), json!({"type": "string", "maxLength": 90})))
                .collect();
            let form = json!({"guided_json": {"type": "object", "properties": properties}, "max_tokens": 2});
            server.ask(&with(form)).await;
        }
    };
    ask(0).await;
    let before = resident_bytes();
    ask(1000).await;
    let grown = resident_bytes().saturating_sub(before);
    // One of them compiled takes about a megabyte.
    assert!(grown < 30 << 20, "{} MB more", grown >> 20);
}

async fn complete(server: &Server, fields: Value) -> (u16, Value) {
    let mut body = json!({"model": "llava", "temperature": 0, "max_tokens": 6});
    for (field, value) in fields.as_object().unwrap() {
        body[field] = value.clone();
    }
    let request = reqwest::Client::new().post(server.path("/v1/completions")).json(&body);
    let response = request.send().await.unwrap();
    (response.status().as_u16(), response.json().await.unwrap())
}

#[tokio::test]
async fn texts_go_on_without_a_conversation() {
    let server = start(Settings::default()).await;
    let texts = |answer: &Value| -> Vec<String> {
        let choices = answer["choices"].as_array().unwrap().iter().enumerate();
        choices
            .map(|(index, choice)| {
                assert_eq!((&choice["index"], &choice["finish_reason"]), (&json!(index), &json!("length")));
                choice["text"].as_str().unwrap().to_owned()
            })
            .collect()
    };
    let (status, one) = complete(&server, json!({"prompt": "one two </s>"})).await;
    assert_eq!((status, &one["object"]), (200, &json!("text_completion")), "{one}");
    let [first] = <[String; 1]>::try_from(texts(&one)).unwrap();
    let (_, two) = complete(&server, json!({"prompt": "three"})).await;
    let [second] = <[String; 1]>::try_from(texts(&two)).unwrap();

    // Several prompts, several answers to each, in their order.
    let (_, both) = complete(&server, json!({"prompt": ["one two </s>", "three"], "n": 2})).await;
    assert_eq!(texts(&both), [first.clone(), first.clone(), second.clone(), second.clone()]);
    let tokens = |answer: &Value, kind: &str| answer["usage"][kind].as_u64().unwrap();
    assert_eq!(tokens(&both, "prompt_tokens"), tokens(&one, "prompt_tokens") + tokens(&two, "prompt_tokens"));
    assert_eq!(tokens(&both, "completion_tokens"), 24);
    let (_, echoed) = complete(&server, json!({"prompt": "three", "echo": true})).await;
    assert_eq!(texts(&echoed), [format!("three{second}")]);

    // Tokens of the model's own: those of the text.
    let tokenizer =
        tokenizers::Tokenizer::from_file(support::server::fixture("llava/tokenizer.json")).unwrap();
    let ids = tokenizer.encode("three", true).unwrap().get_ids().to_vec();
    for prompt in [json!(ids), json!([ids])] {
        let (_, answer) = complete(&server, json!({"prompt": prompt})).await;
        assert_eq!(texts(&answer), std::slice::from_ref(&second));
    }

    let (_, scored) = complete(&server, json!({"prompt": "three", "logprobs": 2})).await;
    let logprobs = &scored["choices"][0]["logprobs"];
    let parts: String =
        logprobs["tokens"].as_array().unwrap().iter().map(|token| token.as_str().unwrap()).collect();
    assert_eq!(parts, second);
    assert_eq!(logprobs["text_offset"][0], 0);
    assert!(
        logprobs["top_logprobs"].as_array().unwrap().iter().all(|top| top.as_object().unwrap().len() >= 2)
    );
    assert!(
        logprobs["token_logprobs"].as_array().unwrap().iter().all(|logprob| logprob.as_f64().unwrap() < 0.0)
    );

    let (_, bound) =
        complete(&server, json!({"prompt": "three", "guided_choice": ["four"], "max_tokens": 20})).await;
    assert_eq!(bound["choices"][0]["text"], "four");

    let stream = json!({"model": "llava", "prompt": ["one two </s>", "three"], "temperature": 0, "max_tokens": 6,
        "stream": true, "stream_options": {"include_usage": true}});
    let request = reqwest::Client::new().post(server.path("/v1/completions")).json(&stream);
    let text = request.send().await.unwrap().text().await.unwrap();
    let (pieces, done) = support::server::pieces(&text);
    assert!(done);
    let (last, pieces) = pieces.split_last().unwrap();
    assert_eq!((&last["choices"], &last["usage"]["completion_tokens"]), (&json!([]), &json!(12)));
    for (index, expected) in [first, second].iter().enumerate() {
        let choices =
            pieces.iter().map(|piece| &piece["choices"][0]).filter(|choice| choice["index"] == index);
        let text: String = choices.clone().map(|choice| choice["text"].as_str().unwrap()).collect();
        assert_eq!(text, *expected);
        assert_eq!(choices.filter(|choice| choice["finish_reason"] == "length").count(), 1);
    }

    for (fields, code, param) in [
        (json!({}), "missing_required_parameter", "prompt"),
        (json!({"prompt": []}), "empty_array", "prompt"),
        (json!({"prompt": ["a", 1]}), "invalid_type", "prompt"),
        (json!({"prompt": {}}), "invalid_type", "prompt"),
        (json!({"prompt": [480]}), "invalid_value", "prompt"),
        (json!({"prompt": [[1], [99_999]]}), "invalid_value", "prompt[1]"),
        (json!({"prompt": [[]]}), "empty_array", "prompt"),
        (json!({"prompt": vec!["a"; 129]}), "array_above_max_length", "prompt"),
        (json!({"prompt": vec!["a"; 2049]}), "array_above_max_length", "prompt"),
        (json!({"prompt": "word ".repeat(5000)}), "context_length_exceeded", "prompt"),
        (json!({"prompt": "a", "suffix": "b"}), "unsupported_parameter", "suffix"),
        (json!({"prompt": "a", "best_of": 2}), "unsupported_parameter", "best_of"),
        (json!({"prompt": "a", "echo": true, "logprobs": 1}), "unsupported_parameter", "echo"),
        (json!({"prompt": "a", "logprobs": 6}), "integer_above_max_value", "logprobs"),
        (json!({"prompt": "a", "n": 9}), "integer_above_max_value", "n"),
        (json!({"prompt": "a", "min_tokens": 1}), "unsupported_parameter", "min_tokens"),
    ] {
        let (status, body) = complete(&server, fields).await;
        support::server::check_error(&body);
        let error = &body["error"];
        assert_eq!(
            (status, error["code"].as_str(), error["param"].as_str()),
            (400, Some(code), Some(param)),
            "{error}"
        );
    }
    server.idle().await;
}
