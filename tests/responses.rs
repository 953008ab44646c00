//! The Responses API through HTTP.
#![allow(clippy::unwrap_used, reason = "tests")]

mod support;

use futures_util::future::join_all;
use percept::config::Settings;
use percept_models::Fit;
use serde_json::{Value, json};
use support::{
    Case, Golden,
    server::{self, Server, data_url, start, words},
};

const PATH: &str = "/v1/responses";

fn cases(golden: &Golden) -> Vec<&Case> {
    golden.prompts().filter(|case| case.fit() == Fit::Crop).collect()
}

fn image(name: &str) -> Value {
    json!({"type": "input_image", "image_url": data_url(name), "detail": "auto"})
}

/// A request for the greedy answer to a golden case.
fn golden_response(case: &Case) -> Value {
    let mut images = case.images.iter();
    let mut input = case.turns();
    for turn in &mut input {
        let spoken = if turn["role"] == "assistant" { "output_text" } else { "input_text" };
        let Some(parts) = turn["content"].as_array_mut() else { continue };
        for part in parts {
            match part["type"].as_str().unwrap() {
                "image" => *part = image(images.next().unwrap()),
                _ => part["type"] = json!(spoken),
            }
        }
    }
    json!({"model": "llava", "input": input, "temperature": 0, "max_output_tokens": 12})
}

fn say(input: &Value) -> Value {
    json!({"model": "llava", "input": input, "max_output_tokens": 8, "temperature": 0})
}

async fn ask(server: &Server, body: &Value) -> Value {
    let response = server.post_to(PATH, body).await;
    let status = response.status();
    let answer: Value = response.json().await.unwrap();
    assert_eq!(status, 200, "{answer}");
    answer
}

/// The events of a stream, each with its name and its number.
async fn stream(server: &Server, body: &Value) -> Vec<Value> {
    let mut body = body.clone();
    body["stream"] = json!(true);
    let response = server.post_to(PATH, &body).await;
    assert_eq!(response.status(), 200);
    assert_eq!(response.headers()["content-type"], "text/event-stream");
    let text = response.text().await.unwrap();
    let events = text.split("\n\n").filter(|event| !event.is_empty()).enumerate().map(|(number, event)| {
        let (name, data) = event.split_once('\n').unwrap();
        let data: Value = serde_json::from_str(data.strip_prefix("data: ").unwrap()).unwrap();
        assert_eq!(name.strip_prefix("event: ").unwrap(), data["type"], "{event}");
        assert_eq!(data["sequence_number"], number, "{event}");
        data
    });
    events.collect()
}

fn said(answer: &Value) -> &Value {
    &answer["output"][0]["content"][0]["text"]
}

#[tokio::test]
async fn answers_are_the_reference_texts_whole_and_streamed() {
    let golden = Golden::read("llava");
    let server = start(Settings::default()).await;
    let cases = cases(&golden);
    for case in &cases {
        let answer = ask(&server, &golden_response(case)).await;
        assert_eq!(said(&answer), &json!(case.greedy_text), "{}", case.name);
        assert_eq!(answer["status"], "incomplete");
        assert_eq!(answer["incomplete_details"], json!({"reason": "max_output_tokens"}));
        let (input, output) = (case.input_ids.len(), case.greedy_tokens.len());
        assert_eq!(answer["usage"]["input_tokens"], input);
        assert_eq!(answer["usage"]["output_tokens"], output);
        assert_eq!(answer["usage"]["total_tokens"], input + output);
    }
    let together = cases.iter().map(async |case| {
        let events = stream(&server, &golden_response(case)).await;
        let deltas: String = events.iter().filter_map(|event| event["delta"].as_str()).collect();
        assert_eq!(deltas, case.greedy_text);
        let last = events.last().unwrap();
        assert_eq!(last["type"], "response.incomplete");
        assert_eq!(said(&last["response"]), &json!(case.greedy_text));
    });
    join_all(together).await;
    server.idle().await;
}

#[tokio::test]
async fn tokens_of_a_prompt_are_counted_without_an_answer() {
    let server = start(Settings::default()).await;
    let golden = Golden::read("llava");
    for case in cases(&golden) {
        let mut body = golden_response(case);
        body["max_output_tokens"] = json!(1);
        let response = server.post_to("/v1/responses/input_tokens", &body).await;
        assert_eq!(response.status(), 200);
        let count: Value = response.json().await.unwrap();
        let expected = ask(&server, &body).await["usage"]["input_tokens"].clone();
        assert_eq!(
            count,
            json!({"object": "response.input_tokens", "input_tokens": expected}),
            "{}",
            case.name
        );
        assert_eq!(expected, case.input_ids.len(), "{}", case.name);
    }
    let long = say(&json!("a ".repeat(40_000)));
    let response = server.post_to("/v1/responses/input_tokens", &long).await;
    assert_eq!(response.status(), 400);
    let error: Value = response.json().await.unwrap();
    assert_eq!(
        (&error["error"]["param"], &error["error"]["code"]),
        (&json!("input"), &json!("context_length_exceeded"))
    );
}

#[tokio::test]
async fn a_whole_answer_has_the_shape_that_clients_check() {
    let server = start(Settings::default()).await;
    let mut body = say(&json!("hello"));
    for (field, value) in [
        ("instructions", json!("be brief")),
        ("metadata", json!({"a": "b"})),
        ("top_p", json!(0.5)),
        ("tool_choice", json!("none")),
        ("parallel_tool_calls", json!(false)),
        ("store", json!(true)),
        ("include", json!(["reasoning.encrypted_content"])),
        ("reasoning", json!({"effort": "low"})),
        ("text", json!({"format": {"type": "text"}, "verbosity": "low"})),
        ("truncation", json!("disabled")),
        ("tools", json!([])),
    ] {
        body[field] = value;
    }
    let response = server.post_to(PATH, &body).await;
    assert_eq!(response.headers()["x-ignored-params"], "reasoning, store, text.verbosity");
    let answer: Value = response.json().await.unwrap();
    assert!(answer["id"].as_str().unwrap().starts_with("resp_"));
    assert_eq!((&answer["object"], &answer["model"]), (&json!("response"), &json!("llava")));
    assert!(answer["created_at"].is_u64());
    for (field, value) in [
        ("background", json!(false)),
        ("error", Value::Null),
        ("instructions", json!("be brief")),
        ("max_output_tokens", json!(8)),
        ("metadata", json!({"a": "b"})),
        ("parallel_tool_calls", json!(false)),
        ("previous_response_id", Value::Null),
        ("store", json!(false)),
        ("temperature", json!(0.0)),
        ("text", json!({"format": {"type": "text"}})),
        ("tool_choice", json!("none")),
        ("tools", json!([])),
        ("top_p", json!(0.5)),
        ("truncation", json!("disabled")),
    ] {
        assert_eq!(answer[field], value, "{field}");
    }
    let item = &answer["output"][0];
    assert!(item["id"].as_str().unwrap().starts_with("msg_"));
    assert_eq!((&item["type"], &item["role"]), (&json!("message"), &json!("assistant")));
    assert_eq!(item["status"], answer["status"]);
    let part = &item["content"][0];
    assert_eq!(part["type"], "output_text");
    assert_eq!((&part["annotations"], &part["logprobs"]), (&json!([]), &json!([])));
    for path in ["/responses", "/v1/responses/"] {
        assert_eq!(server.post_to(path, &body).await.status(), 200, "{path}");
    }
}

#[tokio::test]
async fn a_stream_has_the_events_that_clients_check() {
    let golden = Golden::read("llava");
    let server = start(Settings::default()).await;
    let mut body =
        golden_response(cases(&golden).into_iter().find(|case| case.name == "one_square").unwrap());
    body["stop"] = json!(", a a");
    let events = stream(&server, &body).await;
    let names: Vec<_> = events.iter().map(|event| event["type"].as_str().unwrap()).collect();
    let (first, rest) = names.split_at(4);
    let expected = [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
    ];
    assert_eq!(first, expected);
    let (deltas, last) = rest.split_at(rest.len() - 4);
    let expected = [
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.completed",
    ];
    assert_eq!(last, expected);
    assert!(
        !deltas.is_empty() && deltas.iter().all(|name| *name == "response.output_text.delta"),
        "{names:?}"
    );

    let begun = &events[0]["response"];
    assert_eq!((&begun["status"], &begun["output"]), (&json!("in_progress"), &json!([])));
    assert_eq!(begun["usage"], Value::Null);
    let item = &events[2]["item"];
    assert_eq!((&item["status"], &item["content"]), (&json!("in_progress"), &json!([])));
    assert_eq!(events[3]["part"]["text"], "");
    for event in &events[3..names.len() - 2] {
        assert_eq!(event["item_id"], item["id"]);
        assert_eq!((&event["output_index"], &event["content_index"]), (&json!(0), &json!(0)));
    }
    let [text, part, done, completed] = &events[names.len() - 4..] else { panic!() };
    assert_eq!((&text["text"], &part["part"]["text"]), (&json!("sql"), &json!("sql")));
    assert_eq!(done["item"]["content"][0]["text"], "sql");
    assert_eq!(done["item"]["status"], "completed");
    let whole = &completed["response"];
    assert_eq!((&whole["id"], &whole["status"]), (&begun["id"], &json!("completed")));
    assert_eq!(whole["output"][0], done["item"]);
    assert_eq!(whole["incomplete_details"], Value::Null);
    assert!(whole["usage"]["output_tokens"].as_u64().unwrap() > 0);
}

/// What a conversation becomes is told by chat, whose texts are compared with the reference elsewhere.
#[tokio::test]
async fn items_become_the_prompt_that_they_should() {
    let server = start(Settings::default()).await;
    let turn = |role: &str, content: Value| json!({"role": role, "content": content});
    let text = |text: &str| json!([{"type": "input_text", "text": text}]);
    let picture = server::image_part(&data_url("tiny_31x17.png"));
    for (name, instructions, input, same) in [
        ("a string", Value::Null, json!("hello"), json!([turn("user", json!("hello"))])),
        (
            "instructions",
            json!("be brief"),
            json!([turn("user", text("hello"))]),
            json!([turn("system", json!("be brief")), turn("user", json!("hello"))]),
        ),
        (
            "a developer",
            Value::Null,
            json!([turn("developer", json!("be brief")), turn("user", json!("hello"))]),
            json!([turn("system", json!("be brief")), turn("user", json!("hello"))]),
        ),
        (
            "an answer that comes back",
            Value::Null,
            json!([
                turn("user", json!("hello")),
                {"type": "reasoning", "id": "rs_1", "summary": [], "encrypted_content": "x"},
                {
                    "type": "message",
                    "id": "msg_1",
                    "status": "completed",
                    "role": "assistant",
                    "content": [{"type": "output_text", "text": "hi", "annotations": [], "logprobs": []}],
                },
                turn("user", json!("again")),
            ]),
            json!([
                turn("user", json!("hello")),
                turn("assistant", json!("hi")),
                turn("user", json!("again"))
            ]),
        ),
        (
            "a picture",
            Value::Null,
            json!([turn("user", json!([image("tiny_31x17.png"), {"type": "input_text", "text": "what?"}]))]),
            json!([turn("user", json!([picture, {"type": "text", "text": "what?"}]))]),
        ),
    ] {
        let mut body = say(&input);
        body["instructions"] = instructions;
        let mut chat = words("");
        chat["temperature"] = json!(0);
        chat["messages"] = same;
        let chat = server.ask(&chat).await;
        let answer = ask(&server, &body).await;
        assert_eq!(answer["usage"]["input_tokens"], chat["usage"]["prompt_tokens"], "{name}");
        assert_eq!(said(&answer), &chat["choices"][0]["message"]["content"], "{name}");
    }
}

#[tokio::test]
async fn bad_requests_are_told_with_the_path_of_the_field() {
    let server = start(Settings { max_context: Some(64), page_size: Some(4), ..Settings::default() }).await;
    let with = |field: &str, value: Value| {
        let mut body = say(&json!("hello"));
        body[field] = value;
        body
    };
    let item = |item: Value| say(&json!([{"role": "user", "content": "a"}, item]));
    let part = |part: Value| say(&json!([{"role": "user", "content": [part]}]));
    for (body, code, param) in [
        (with("model", Value::Null), "missing_required_parameter", "model"),
        (with("input", Value::Null), "missing_required_parameter", "input"),
        (with("input", json!([])), "empty_array", "input"),
        (with("input", json!(1)), "invalid_type", "input"),
        (with("input", json!([{"type": "reasoning"}])), "invalid_value", "input"),
        (with("input", json!("word ".repeat(200))), "context_length_exceeded", "input"),
        (
            with("input", json!(vec![json!({"role": "user", "content": "a"}); 10_001])),
            "array_above_max_length",
            "input",
        ),
        (with("instructions", json!([])), "invalid_type", "instructions"),
        (with("max_output_tokens", json!(0)), "integer_below_min_value", "max_output_tokens"),
        (with("temperature", json!(2.5)), "decimal_above_max_value", "temperature"),
        (with("top_p", json!(-1)), "decimal_below_min_value", "top_p"),
        (with("stop", json!("")), "string_below_min_length", "stop"),
        (with("metadata", json!({"a": 1})), "invalid_type", "metadata.a"),
        (
            with(
                "metadata",
                (0..17).map(|key| (key.to_string(), json!("a"))).collect::<serde_json::Map<_, _>>().into(),
            ),
            "array_above_max_length",
            "metadata",
        ),
        (with("tools", json!([{"type": "web_search"}])), "unsupported_parameter", "tools[0].type"),
        (with("tools", json!([{"type": "function"}])), "missing_required_parameter", "tools[0].name"),
        (with("tool_choice", json!("required")), "missing_required_parameter", "tools"),
        (with("tool_choice", json!("some")), "invalid_value", "tool_choice"),
        (with("tool_choice", json!({"type": "function", "name": "f"})), "invalid_value", "tool_choice.name"),
        (
            with("text", json!({"format": {"type": "json_schema", "schema": {}}})),
            "missing_required_parameter",
            "text.format.name",
        ),
        (with("text", json!({"format": {"type": "xml"}})), "invalid_value", "text.format.type"),
        (with("include", json!(["message.output_text.logprobs"])), "unsupported_parameter", "include"),
        (with("top_logprobs", json!(2)), "unsupported_parameter", "top_logprobs"),
        (with("truncation", json!("auto")), "unsupported_parameter", "truncation"),
        (with("truncation", json!("some")), "invalid_value", "truncation"),
        (with("background", json!(true)), "unsupported_parameter", "background"),
        (with("conversation", json!("conv_1")), "unsupported_parameter", "conversation"),
        (with("prompt", json!({"id": "p"})), "unsupported_parameter", "prompt"),
        (
            with("previous_response_id", json!("resp_1")),
            "previous_response_not_found",
            "previous_response_id",
        ),
        (item(json!({"content": "a"})), "missing_required_parameter", "input[1].role"),
        (item(json!({"role": "robot", "content": "a"})), "invalid_value", "input[1].role"),
        (item(json!({"role": "user"})), "missing_required_parameter", "input[1].content"),
        (item(json!({"role": "user", "content": []})), "empty_array", "input[1].content"),
        (item(json!({"type": "item_reference", "id": "x"})), "unsupported_parameter", "input[1].type"),
        (
            item(json!({"type": "function_call", "name": "f"})),
            "missing_required_parameter",
            "input[1].call_id",
        ),
        (
            item(json!({"type": "function_call_output", "call_id": "c"})),
            "missing_required_parameter",
            "input[1].output",
        ),
        (item(json!({"type": "thing"})), "invalid_value", "input[1].type"),
        (part(json!({"type": "text", "text": "a"})), "invalid_value", "input[0].content[0].type"),
        (part(json!({"text": "a"})), "missing_required_parameter", "input[0].content[0].type"),
        (part(json!({"type": "input_text"})), "missing_required_parameter", "input[0].content[0].text"),
        (
            part(json!({"type": "input_file", "file_id": "f"})),
            "unsupported_parameter",
            "input[0].content[0].file_id",
        ),
        (
            part(json!({"type": "input_file", "filename": "a.pdf"})),
            "missing_required_parameter",
            "input[0].content[0].file_data",
        ),
        (
            part(json!({"type": "input_file", "file_url": "http://a.b/c.pdf"})),
            "invalid_file_url",
            "input[0].content[0].file_url",
        ),
        (part(json!({"type": "input_image"})), "missing_required_parameter", "input[0].content[0].image_url"),
        (
            part(json!({"type": "input_image", "file_id": "f"})),
            "unsupported_parameter",
            "input[0].content[0].file_id",
        ),
        (
            part(json!({"type": "input_image", "image_url": "http://a.b/c.png"})),
            "invalid_image_url",
            "input[0].content[0].image_url",
        ),
        (
            part(json!({"type": "input_image", "image_url": "data:,", "detail": "max"})),
            "invalid_value",
            "input[0].content[0].detail",
        ),
        (
            say(&json!([{"role": "user", "content": vec![image("tiny_31x17.png"); 17]}])),
            "array_above_max_length",
            "input",
        ),
    ] {
        let response = server.post_to(PATH, &body).await;
        let status = response.status();
        let error: Value = response.json().await.unwrap();
        server::check_error(&error);
        assert_eq!(status, 400, "{error}");
        assert_eq!(error["error"]["code"], code, "{error}");
        assert_eq!(error["error"]["param"], param, "{error}");
    }
    let response = server.post_to(PATH, &with("model", json!("gpt-5"))).await;
    assert_eq!(response.status(), 404);
    assert_eq!(response.json::<Value>().await.unwrap()["error"]["code"], "model_not_found");
    server.idle().await;
}

#[tokio::test]
async fn leaving_a_stream_ends_it() {
    let server = start(Settings::default()).await;
    let mut body = say(&json!("hello"));
    body["max_output_tokens"] = json!(4000);
    body["stream"] = json!(true);
    for _ in 0..5 {
        let mut response = server.post_to(PATH, &body).await;
        assert!(response.chunk().await.unwrap().is_some());
        drop(response);
    }
    server.idle().await;
}

fn weather() -> Value {
    json!({
        "type": "function",
        "name": "weather",
        "description": "Tells the weather of a city.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"enum": ["rome", "oslo"]}},
            "required": ["city"],
            "additionalProperties": false,
        },
        "strict": true,
    })
}

#[tokio::test]
async fn functions_are_called_as_they_may_be() {
    let server = start(Settings::default()).await;
    let clock = json!({"type": "function", "name": "clock", "parameters": null});
    for (choice, names) in [
        (json!("required"), &["weather", "clock"][..]),
        (json!({"type": "function", "name": "weather"}), &["weather"]),
        (
            json!({"type": "allowed_tools", "mode": "required", "tools": [{"type": "function", "name": "clock"}]}),
            &["clock"],
        ),
    ] {
        for seed in 0..3 {
            let mut body = say(&json!("what is the weather in rome?"));
            (body["tools"], body["tool_choice"]) = (json!([weather(), clock]), choice.clone());
            (body["seed"], body["temperature"], body["max_output_tokens"]) =
                (json!(seed), json!(1), json!(400));
            body["parallel_tool_calls"] = json!(false);
            let answer = ask(&server, &body).await;
            assert_eq!((&answer["status"], &answer["tool_choice"]), (&json!("completed"), &choice));
            assert_eq!(answer["tools"][0]["name"], "weather");
            let [call] = &answer["output"].as_array().unwrap()[..] else { panic!("{answer}") };
            assert_eq!((&call["type"], &call["status"]), (&json!("function_call"), &json!("completed")));
            assert!(call["id"].as_str().unwrap().starts_with("fc_"));
            assert!(call["call_id"].as_str().unwrap().starts_with("call_"));
            let name = call["name"].as_str().unwrap();
            assert!(names.contains(&name), "{name}");
            let arguments: Value = serde_json::from_str(call["arguments"].as_str().unwrap()).unwrap();
            assert!(name == "clock" || arguments["city"] == "rome" || arguments["city"] == "oslo", "{call}");

            let events = stream(&server, &body).await;
            let kinds: Vec<_> = events.iter().map(|event| event["type"].as_str().unwrap()).collect();
            assert_eq!(kinds[2], "response.output_item.added");
            assert_eq!(events[2]["item"]["arguments"], "");
            let last =
                ["response.function_call_arguments.done", "response.output_item.done", "response.completed"];
            assert_eq!(kinds[kinds.len() - 3..], last);
            let deltas = &events[3..events.len() - 3];
            assert!(deltas.iter().all(|event| event["type"] == "response.function_call_arguments.delta"));
            let joined: String = deltas.iter().map(|event| event["delta"].as_str().unwrap()).collect();
            assert_eq!(json!(joined), call["arguments"]);
            assert_eq!(events[events.len() - 2]["item"]["arguments"], call["arguments"]);
        }
    }
    server.idle().await;
}

/// What conversations with functions become is told by chat.
#[tokio::test]
async fn calls_and_outputs_become_the_prompt_that_they_should() {
    let server = start(Settings::default()).await;
    let call = |id: &str, arguments: &str| json!({"type": "function_call", "id": "fc_1", "call_id": id, "name": "weather", "arguments": arguments, "status": "completed"});
    let output =
        |id: &str, output: Value| json!({"type": "function_call_output", "call_id": id, "output": output});
    let mut body = say(&json!([
        {"role": "user", "content": "what is the weather?"},
        {"role": "assistant", "content": "let me see"},
        call("call_1", r#"{"city": "rome"}"#),
        call("call_2", r#"{"city": "oslo"}"#),
        output("call_1", json!("sunny")),
        output("call_2", json!([{"type": "input_text", "text": "rain"}])),
    ]));
    body["tools"] = json!([weather()]);
    let called = |id: &str, arguments: &str| json!({"id": id, "type": "function", "function": {"name": "weather", "arguments": arguments}});
    let mut chat = words("");
    chat["temperature"] = json!(0);
    chat["messages"] = json!([
        {"role": "user", "content": "what is the weather?"},
        {
            "role": "assistant",
            "content": "let me see",
            "tool_calls": [called("call_1", r#"{"city": "rome"}"#), called("call_2", r#"{"city": "oslo"}"#)],
        },
        {"role": "tool", "tool_call_id": "call_1", "content": "sunny"},
        {"role": "tool", "tool_call_id": "call_2", "content": "rain"},
    ]);
    let mut function = weather();
    let function = function.as_object_mut().unwrap();
    function.remove("type");
    chat["tools"] = json!([{"type": "function", "function": function}]);
    let chat = server.ask(&chat).await;
    let answer = ask(&server, &body).await;
    assert_eq!(answer["usage"]["input_tokens"], chat["usage"]["prompt_tokens"]);
}

#[tokio::test]
async fn an_answer_has_the_form_that_was_asked_for() {
    let server = start(Settings::default()).await;
    let format = json!({"type": "json_schema", "name": "a", "strict": true, "schema": {
        "type": "object",
        "properties": {"colour": {"enum": ["red", "green"]}},
        "required": ["colour"],
        "additionalProperties": false,
    }});
    let mut body = say(&json!("which colour?"));
    body["text"] = json!({"format": format});
    (body["temperature"], body["max_output_tokens"]) = (json!(1), json!(100));
    let answer = ask(&server, &body).await;
    assert_eq!((&answer["status"], &answer["text"]["format"]), (&json!("completed"), &format));
    let found: Value = serde_json::from_str(said(&answer).as_str().unwrap()).unwrap();
    assert!(found["colour"] == "red" || found["colour"] == "green", "{found}");
}
