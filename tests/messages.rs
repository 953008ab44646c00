//! The Anthropic API through HTTP: messages, counting, models, and its errors on every path.
#![allow(clippy::unwrap_used, reason = "tests")]

mod support;

use futures_util::future::join_all;
use percept::{api::App, config::Settings, router::Router};
use percept_models::Fit;
use serde_json::{Value, json};
use support::{
    Case, Golden,
    server::{self, Server, data_url, start, words},
};

const PATH: &str = "/v1/messages";
const COUNT: &str = "/v1/messages/count_tokens";

fn cases(golden: &Golden) -> Vec<&Case> {
    golden.prompts().filter(|case| case.fit() == Fit::Crop).collect()
}

fn image(name: &str) -> Value {
    let url = data_url(name);
    let (_, data) = url.split_once(',').unwrap();
    json!({"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": data}})
}

/// A request for the greedy answer to a golden case.
fn golden_message(case: &Case) -> Value {
    let mut images = case.images.iter();
    let mut messages = case.turns();
    for message in &mut messages {
        let Some(blocks) = message["content"].as_array_mut() else { continue };
        for block in blocks.iter_mut().filter(|block| block["type"] == "image") {
            *block = image(images.next().unwrap());
        }
    }
    json!({"model": "llava", "messages": messages, "temperature": 0, "max_tokens": 12})
}

fn say(content: &Value) -> Value {
    json!({
        "model": "llava",
        "messages": [{"role": "user", "content": content}],
        "max_tokens": 8,
        "temperature": 0,
    })
}

async fn ask(server: &Server, body: &Value) -> Value {
    let response = server.post_to(PATH, body).await;
    let status = response.status();
    let answer: Value = response.json().await.unwrap();
    assert_eq!(status, 200, "{answer}");
    answer
}

async fn count(server: &Server, body: &Value) -> u64 {
    let mut body = body.clone();
    body.as_object_mut().unwrap().remove("max_tokens");
    let response = server.post_to(COUNT, &body).await;
    let status = response.status();
    let answer: Value = response.json().await.unwrap();
    assert_eq!(status, 200, "{answer}");
    assert_eq!(answer.as_object().unwrap().len(), 1, "{answer}");
    answer["input_tokens"].as_u64().unwrap()
}

/// The events of a stream, each with its name.
async fn stream(server: &Server, body: &Value) -> Vec<Value> {
    let mut body = body.clone();
    body["stream"] = json!(true);
    let response = server.post_to(PATH, &body).await;
    assert_eq!(response.status(), 200);
    assert_eq!(response.headers()["content-type"], "text/event-stream");
    assert_eq!(response.headers()["x-accel-buffering"], "no");
    let text = response.text().await.unwrap();
    let events = text.split("\n\n").filter(|event| !event.is_empty()).map(|event| {
        let (name, data) = event.split_once('\n').unwrap();
        let data: Value = serde_json::from_str(data.strip_prefix("data: ").unwrap()).unwrap();
        assert_eq!(name.strip_prefix("event: ").unwrap(), data["type"], "{event}");
        data
    });
    events.collect()
}

fn streamed_text(events: &[Value]) -> String {
    events.iter().filter_map(|event| event["delta"]["text"].as_str()).collect()
}

/// The status, type and message of an error in this API's shape.
async fn error(response: reqwest::Response) -> (u16, String, String) {
    let status = response.status().as_u16();
    assert_eq!(response.headers()["content-type"], "application/json");
    assert_eq!(response.headers()["request-id"], response.headers()["x-request-id"]);
    let id = response.headers()["request-id"].to_str().unwrap().to_owned();
    let body: Value = response.json().await.unwrap();
    let keys: Vec<_> = body.as_object().unwrap().keys().collect();
    assert_eq!(keys, ["type", "error", "request_id"], "{body}");
    assert_eq!((&body["type"], body["request_id"].as_str()), (&json!("error"), Some(id.as_str())), "{body}");
    let keys: Vec<_> = body["error"].as_object().unwrap().keys().collect();
    assert_eq!(keys, ["type", "message"], "{body}");
    let text = |key: &str| body["error"][key].as_str().unwrap().to_owned();
    (status, text("type"), text("message"))
}

#[tokio::test]
async fn answers_are_the_reference_texts_whole_streamed_and_counted() {
    let golden = Golden::read("llava");
    let server = start(Settings::default()).await;
    let cases = cases(&golden);
    assert!(cases.iter().any(|case| !case.images.is_empty()));
    for case in &cases {
        let body = golden_message(case);
        let tokens = case.input_ids.len();
        assert_eq!(count(&server, &body).await, tokens as u64, "{}", case.name);
        let answer = ask(&server, &body).await;
        let content = json!([{"type": "text", "text": case.greedy_text, "citations": null}]);
        assert_eq!(answer["content"], content, "{}", case.name);
        assert_eq!(answer["stop_reason"], "max_tokens");
        assert_eq!(answer["usage"]["input_tokens"], tokens);
        assert_eq!(answer["usage"]["output_tokens"], case.greedy_tokens.len());
    }
    let together = cases.iter().map(async |case| {
        assert_eq!(streamed_text(&stream(&server, &golden_message(case)).await), case.greedy_text);
    });
    join_all(together).await;
    server.idle().await;
}

#[tokio::test]
async fn a_whole_answer_has_the_shape_that_clients_check() {
    let server = start(Settings::default()).await;
    let answer = ask(&server, &say(&json!("hello"))).await;
    let keys: Vec<_> = answer.as_object().unwrap().keys().collect();
    let expected = [
        "id",
        "type",
        "role",
        "model",
        "content",
        "stop_reason",
        "stop_sequence",
        "stop_details",
        "container",
        "diagnostics",
        "usage",
    ];
    assert_eq!(keys, expected);
    assert!(answer["id"].as_str().unwrap().starts_with("msg_"));
    assert_eq!((&answer["type"], &answer["role"]), (&json!("message"), &json!("assistant")));
    assert_eq!(answer["model"], "llava");
    assert_eq!(answer["stop_sequence"], Value::Null);
    assert_eq!(answer["usage"]["cache_creation_input_tokens"], 0);
    // The Anthropic API has a path of its own, and a query is nothing to it.
    for path in ["/messages", "/v1/messages/", "/v1/messages?beta=true"] {
        let response = server.post_to(path, &say(&json!("hello"))).await;
        assert_eq!(response.status(), 200, "{path}");
        assert_eq!(response.json::<Value>().await.unwrap()["content"], answer["content"]);
    }
}

#[tokio::test]
async fn a_stream_has_the_events_that_clients_check() {
    let golden = Golden::read("llava");
    let server = start(Settings::default()).await;
    let case = cases(&golden)[1];
    let events = stream(&server, &golden_message(case)).await;
    let names: Vec<_> = events.iter().map(|event| event["type"].as_str().unwrap()).collect();
    let (first, rest) = names.split_at(3);
    assert_eq!(first, ["message_start", "ping", "content_block_start"]);
    let (deltas, last) = rest.split_at(rest.len() - 3);
    assert_eq!(last, ["content_block_stop", "message_delta", "message_stop"]);
    assert!(deltas.len() > 3 && deltas.iter().all(|name| *name == "content_block_delta"), "{names:?}");

    let message = &events[0]["message"];
    assert_eq!(message["content"], json!([]));
    assert_eq!((&message["stop_reason"], &message["stop_sequence"]), (&Value::Null, &Value::Null));
    let tokens = case.input_ids.len();
    let usage = json!({
        "input_tokens": tokens,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": 0,
        "output_tokens": 0,
        "cache_creation": null,
        "inference_geo": null,
        "output_tokens_details": null,
        "server_tool_use": null,
        "service_tier": "standard",
    });
    assert_eq!(message["usage"], usage);
    assert_eq!(events[2]["content_block"], json!({"type": "text", "text": "", "citations": null}));
    for event in &events[3..names.len() - 3] {
        assert_eq!(event["index"], 0);
        assert_eq!(event["delta"]["type"], "text_delta");
    }
    let end = &events[names.len() - 2];
    let delta =
        json!({"stop_reason": "max_tokens", "stop_sequence": null, "stop_details": null, "container": null});
    assert_eq!(end["delta"], delta);
    assert_eq!((&end["usage"]["input_tokens"], &end["usage"]["output_tokens"]), (&json!(tokens), &json!(12)));
}

#[tokio::test]
async fn an_answer_tells_why_it_ended() {
    let golden = Golden::read("llava");
    let settings = Settings { max_context: Some(128), page_size: Some(4), ..Settings::default() };
    let server = start(settings).await;
    let case = cases(&golden).into_iter().find(|case| case.name == "one_square").unwrap();
    assert_eq!(case.greedy_text, "sql, a a a a a a a a a");
    for (stops, text, reason, stop) in [
        (json!(["l,"]), "sq", "stop_sequence", json!("l,")),
        (json!(["nothing", " a a", "l, a"]), "sq", "stop_sequence", json!("l, a")),
        (json!(["a a b"]), "sql, a a a a a a a a a", "max_tokens", Value::Null),
        (json!(["a a a a a a a a a"]), "sql, ", "stop_sequence", json!("a a a a a a a a a")),
        (json!([]), "sql, a a a a a a a a a", "max_tokens", Value::Null),
    ] {
        let mut body = golden_message(case);
        body["stop_sequences"] = stops.clone();
        let answer = ask(&server, &body).await;
        assert_eq!(answer["content"][0]["text"], text, "{stops}");
        assert_eq!((&answer["stop_reason"], &answer["stop_sequence"]), (&json!(reason), &stop), "{stops}");
        let events = stream(&server, &body).await;
        assert_eq!(streamed_text(&events), text, "{stops}");
        let end = &events[events.len() - 2]["delta"];
        let expected =
            json!({"stop_reason": reason, "stop_sequence": stop, "stop_details": null, "container": null});
        assert_eq!(end, &expected, "{stops}");
    }
    // Sooner or later the context is full, where the model does not end by itself.
    let mut body = say(&json!("hello"));
    body["max_tokens"] = json!(128_000);
    let answer = ask(&server, &body).await;
    let total = answer["usage"]["input_tokens"].as_u64().unwrap()
        + answer["usage"]["output_tokens"].as_u64().unwrap();
    let reason = if total == 128 { "model_context_window_exceeded" } else { "end_turn" };
    assert_eq!(answer["stop_reason"], reason, "{answer}");
    server.idle().await;
}

/// What a conversation becomes is told by chat, whose texts are compared with the reference elsewhere.
#[tokio::test]
async fn turns_and_blocks_become_the_prompt_that_they_should() {
    let server = start(Settings::default()).await;
    let text = |text: &str| json!({"type": "text", "text": text});
    let system = |content: Value| json!({"role": "system", "content": content});
    let user = |content: Value| json!({"role": "user", "content": content});
    let assistant = |content: Value| json!({"role": "assistant", "content": content});
    let document =
        |source: Value| json!({"type": "document", "source": source, "title": "T", "context": "C"});
    let plain = json!({"type": "text", "media_type": "text/plain", "data": "grass is green"});
    let blocks = json!({"type": "content", "content": [text("grass"), text("is green")]});
    let found = json!({
        "type": "search_result",
        "source": "https://a.b",
        "title": "T",
        "content": [text("grass is green")],
    });
    let picture = server::image_part(&data_url("tiny_31x17.png"));
    let about = "<document>\n<title>T</title>\n<context>C</context>\n";
    for (name, given_system, given, same) in [
        ("a string", Value::Null, json!([user(json!("hello"))]), json!([user(json!("hello"))])),
        (
            "a system text",
            json!("be brief"),
            json!([user(json!("hello"))]),
            json!([system(json!("be brief")), user(json!("hello"))]),
        ),
        (
            "system blocks",
            json!([text("be brief"), {"type": "text", "text": "be kind", "cache_control": {"type": "ephemeral"}}]),
            json!([user(json!("hello"))]),
            json!([system(json!("be brief\nbe kind")), user(json!("hello"))]),
        ),
        (
            "consecutive turns",
            Value::Null,
            json!([
                user(json!("one")),
                user(json!([text("two")])),
                assistant(json!("a")),
                assistant(json!("b")),
                user(json!("c"))
            ]),
            json!([user(json!("one\ntwo")), assistant(json!("a\nb")), user(json!("c"))]),
        ),
        (
            "an assistant's own words and thoughts",
            Value::Null,
            json!([
                user(json!("one")),
                assistant(json!([
                    {"type": "thinking", "thinking": "hm", "signature": "x"},
                    text("a"),
                    {"type": "text", "text": "b", "citations": null},
                    {"type": "redacted_thinking", "data": "x"},
                ])),
                assistant(json!([{"type": "thinking", "thinking": "hm", "signature": "x"}])),
                user(json!("c")),
            ]),
            json!([user(json!("one")), assistant(json!("ab")), user(json!("c"))]),
        ),
        (
            "a picture",
            Value::Null,
            json!([user(json!([image("tiny_31x17.png"), text("what?")]))]),
            json!([user(json!([picture, text("what?")]))]),
        ),
        (
            "a picture by a data URL",
            Value::Null,
            json!([user(
                json!([{"type": "image", "source": {"type": "url", "url": data_url("tiny_31x17.png")}}, text("what?")])
            )]),
            json!([user(json!([picture, text("what?")]))]),
        ),
        (
            "a document",
            Value::Null,
            json!([user(json!([document(plain), text("what?")]))]),
            json!([user(json!(format!("{about}grass is green\n</document>\nwhat?")))]),
        ),
        (
            "a document of blocks",
            Value::Null,
            json!([user(json!([text("look:"), document(blocks)]))]),
            json!([user(json!(format!("look:\n{about}grass\nis green\n</document>")))]),
        ),
        (
            "what a search found",
            Value::Null,
            json!([user(json!([found]))]),
            json!([user(json!(
                "<search_result>\n<source>https://a.b</source>\n<title>T</title>\ngrass is green\n</search_result>"
            ))]),
        ),
    ] {
        let mut body = say(&json!(""));
        body["messages"] = given;
        body["system"] = given_system;
        let mut chat = words("");
        chat["temperature"] = json!(0);
        chat["messages"] = same;
        let chat = server.ask(&chat).await;
        let answer = ask(&server, &body).await;
        // One of them asks for caching.
        let usage = |name: &str| answer["usage"][name].as_u64().unwrap();
        let tokens = usage("input_tokens") + usage("cache_read_input_tokens");
        assert_eq!(tokens, chat["usage"]["prompt_tokens"], "{name}");
        assert_eq!(answer["content"][0]["text"], chat["choices"][0]["message"]["content"], "{name}");
        assert_eq!(count(&server, &body).await, chat["usage"]["prompt_tokens"], "{name}");
    }
}

#[tokio::test]
async fn what_was_found_in_the_cache_is_told_to_who_asks_for_caching() {
    let server = start(Settings { page_size: Some(4), ..Settings::default() }).await;
    let long = "one two three four five six seven eight nine ten";
    let body = say(&json!(long));
    let usage = ask(&server, &body).await["usage"].clone();
    let total = usage["input_tokens"].as_u64().unwrap();
    assert_eq!(usage["cache_read_input_tokens"], 0);
    // The same again, and what is there is not told.
    assert_eq!(ask(&server, &body).await["usage"]["input_tokens"], total);
    let mut top = body.clone();
    top["cache_control"] = json!({"type": "ephemeral"});
    let block = say(&json!([{"type": "text", "text": long, "cache_control": {"type": "ephemeral"}}]));
    for body in [top, block] {
        let usage = ask(&server, &body).await["usage"].clone();
        let read = usage["cache_read_input_tokens"].as_u64().unwrap();
        assert!(read > 0 && read < total, "{usage}");
        assert_eq!(usage["input_tokens"].as_u64().unwrap() + read, total);
        let events = stream(&server, &body).await;
        for usage in [&events[0]["message"]["usage"], &events[events.len() - 2]["usage"]] {
            assert_eq!(usage["cache_read_input_tokens"], read);
            assert_eq!(usage["input_tokens"].as_u64().unwrap() + read, total);
        }
        assert_eq!(count(&server, &body).await, total);
    }
}

#[tokio::test]
async fn bad_requests_are_told_with_the_path_of_the_field() {
    let server = start(Settings::default()).await;
    let with = |field: &str, value: Value| {
        let mut body = say(&json!("hello"));
        body[field] = value;
        body
    };
    let block = |block: Value| say(&json!([{"type": "text", "text": "a"}, block]));
    let turn = |turn: Value| with("messages", json!([turn]));
    let source = |kind: &str, source: Value| block(json!({"type": kind, "source": source}));
    for (body, path, words) in [
        (with("model", Value::Null), "model", "Field required"),
        (with("max_tokens", Value::Null), "max_tokens", "Field required"),
        (with("max_tokens", json!(0)), "max_tokens", ">= 1"),
        (with("max_tokens", json!("1")), "max_tokens", "expected an integer"),
        (with("messages", Value::Null), "messages", "Field required"),
        (with("messages", json!([])), "messages", "minimum length 1"),
        (with("messages", json!("hello")), "messages", "expected an array"),
        (with("messages", json!(vec![json!({"role": "user", "content": "a"}); 10_001])), "messages", "10000"),
        (with("temperature", json!(1.5)), "temperature", "<= 1"),
        (with("top_p", json!(-1)), "top_p", ">= 0"),
        (with("top_k", json!(-2)), "top_k", ">= -1"),
        (with("seed", json!("x")), "seed", "expected an integer"),
        (with("stream", json!("yes")), "stream", "expected a boolean"),
        (with("system", json!(1)), "system", "expected a string or an array of blocks"),
        (
            with("system", json!([{"type": "image", "source": {"type": "base64", "data": "x"}}])),
            "system.0.type",
            "'text'",
        ),
        (with("stop_sequences", json!("x")), "stop_sequences", "expected an array"),
        (with("stop_sequences", json!([""])), "stop_sequences", "1 to 1000 bytes"),
        (with("stop_sequences", json!(vec!["x"; 65])), "stop_sequences", "64"),
        (with("tool_choice", json!({"type": "some"})), "tool_choice.type", "'auto'"),
        (with("container", json!("c_1")), "container", "runs no code"),
        (with("mcp_servers", json!([{"url": "x"}])), "mcp_servers", "calls no others"),
        (turn(json!({"content": "a"})), "messages.0.role", "Field required"),
        (turn(json!({"role": "robot", "content": "a"})), "messages.0.role", "'user'"),
        (turn(json!({"role": "user"})), "messages.0.content", "Field required"),
        (turn(json!({"role": "user", "content": []})), "messages.0.content", "minimum length 1"),
        (
            turn(json!({"role": "user", "content": 1})),
            "messages.0.content",
            "expected a string or an array of blocks",
        ),
        (turn(json!("hello")), "messages.0", "expected an object"),
        (
            turn(
                json!({"role": "system", "content": [{"type": "document", "source": {"type": "text", "data": "x"}}]}),
            ),
            "messages.0.content.0.type",
            "'text'",
        ),
        (block(json!({"text": "a"})), "messages.0.content.1.type", "Field required"),
        (block(json!({"type": "text"})), "messages.0.content.1.text", "Field required"),
        (
            block(json!({"type": "image_url", "image_url": {"url": "x"}})),
            "messages.0.content.1.type",
            "'text', 'image'",
        ),
        (
            block(json!({"type": "container_upload", "file_id": "x"})),
            "messages.0.content.1.type",
            "no tools of its own",
        ),
        (block(json!({"type": "image"})), "messages.0.content.1.source", "Field required"),
        (source("image", json!("x")), "messages.0.content.1.source", "expected an object"),
        (source("image", json!({})), "messages.0.content.1.source.type", "Field required"),
        (source("image", json!({"type": "base64"})), "messages.0.content.1.source.data", "Field required"),
        (
            source("image", json!({"type": "base64", "data": "@@@@"})),
            "messages.0.content.1.source.data",
            "base64 is broken",
        ),
        (
            source("image", json!({"type": "base64", "data": ""})),
            "messages.0.content.1.source.data",
            "no data",
        ),
        (
            source("image", json!({"type": "base64", "media_type": "image/png", "data": "aGVsbG8="})),
            "messages.0.content.1.source.data",
            "no picture",
        ),
        (source("image", json!({"type": "url"})), "messages.0.content.1.source.url", "Field required"),
        (
            source("image", json!({"type": "url", "url": "https://a.b/c.png"})),
            "messages.0.content.1.source.url",
            "not fetched",
        ),
        (
            source("image", json!({"type": "url", "url": "http://127.0.0.1:1/c.png"})),
            "messages.0.content.1.source.url",
            "not fetched",
        ),
        (
            source("image", json!({"type": "url", "url": "file:///etc/passwd"})),
            "messages.0.content.1.source.url",
            "not fetched",
        ),
        (
            source("image", json!({"type": "file", "file_id": "f"})),
            "messages.0.content.1.source.file_id",
            "keeps no files",
        ),
        (
            source(
                "document",
                json!({"type": "base64", "media_type": "application/pdf", "data": "JVBERi0="}),
            ),
            "messages.0.content.1.source.data",
            "cut off",
        ),
        (
            source("document", json!({"type": "url", "url": "https://a.b/c.pdf"})),
            "messages.0.content.1.source.url",
            "not fetched",
        ),
        (
            source("document", json!({"type": "file", "file_id": "f"})),
            "messages.0.content.1.source.file_id",
            "keeps no files",
        ),
        (source("document", json!({"type": "base64"})), "messages.0.content.1.source.data", "Field required"),
        (source("document", json!({"type": "text"})), "messages.0.content.1.source.data", "Field required"),
        (
            source("document", json!({"type": "content", "content": [{"type": "thinking"}]})),
            "messages.0.content.1.source.content.0.type",
            "'text' and 'image'",
        ),
        (
            block(json!({"type": "search_result", "source": {}, "content": []})),
            "messages.0.content.1.source",
            "expected a string",
        ),
        (say(&json!(vec![image("tiny_31x17.png"); 17])), "messages", "16 pictures"),
    ] {
        for path_of_request in [PATH, COUNT] {
            if path_of_request == COUNT && body.get("max_tokens") != Some(&json!(8)) {
                continue;
            }
            let sampled = ["temperature", "top_p", "top_k", "stop_sequences"].contains(&path);
            if path_of_request == COUNT && sampled {
                continue;
            }
            let (status, kind, message) = error(server.post_to(path_of_request, &body).await).await;
            assert_eq!((status, kind.as_str()), (400, "invalid_request_error"), "{path}: {message}");
            assert!(message.starts_with(&format!("{path}: ")), "{path}: {message}");
            assert!(message.contains(words), "{path}: {message}");
        }
    }
    let (status, kind, message) = error(server.post_to(PATH, &with("model", json!("claude-x"))).await).await;
    assert_eq!((status, kind.as_str()), (404, "not_found_error"));
    assert!(message.starts_with("model: ") && message.contains("claude-x"), "{message}");
    server.idle().await;
}

#[tokio::test]
async fn a_prompt_that_is_too_long_is_counted_and_not_answered() {
    let server = start(Settings { max_context: Some(64), page_size: Some(4), ..Settings::default() }).await;
    let body = say(&json!("one two three four five six seven eight nine ten ".repeat(4)));
    let tokens = count(&server, &body).await;
    assert!(tokens > 64);
    let (status, kind, message) = error(server.post_to(PATH, &body).await).await;
    assert_eq!((status, kind.as_str()), (400, "invalid_request_error"));
    assert_eq!(message, format!("prompt is too long: {tokens} tokens > 63 maximum"));
    // Beyond reason nothing is counted.
    let body = say(&json!("one two three four five six seven eight nine ten ".repeat(400)));
    let (status, _, message) = error(server.post_to(COUNT, &body).await).await;
    assert_eq!(status, 400);
    assert!(message.starts_with("prompt is too long: "), "{message}");
}

#[tokio::test]
async fn every_error_has_the_shape_of_the_client_s_api() {
    let settings = Settings { max_body: Some("2000".parse().unwrap()), ..Settings::default() };
    let server = start(settings).await;
    let client = reqwest::Client::new();
    let version = ("anthropic-version", "2023-06-01");
    let json = ("content-type", "application/json");
    let long = json!({"model": "x".repeat(2000)}).to_string();
    for (method, path, headers, body, status, kind) in [
        ("GET", "/v1/messages", vec![], "", 405, "invalid_request_error"),
        ("GET", "/v1/messages/batches", vec![], "", 404, "not_found_error"),
        ("POST", "/v1/messages/nothing", vec![json], "{}", 404, "not_found_error"),
        ("POST", "/v1/v1/messages", vec![version, json], "{}", 404, "not_found_error"),
        ("GET", "/v1/nothing", vec![version], "", 404, "not_found_error"),
        ("GET", "/v1/models/nothing", vec![version], "", 404, "not_found_error"),
        ("POST", "/v1/models", vec![version], "", 405, "invalid_request_error"),
        ("GET", "/v1/models?limit=0", vec![version], "", 400, "invalid_request_error"),
        ("GET", "/v1/models?limit=x", vec![version], "", 400, "invalid_request_error"),
        ("POST", "/v1/messages", vec![json], "{", 400, "invalid_request_error"),
        ("POST", "/v1/messages", vec![json], "[]", 400, "invalid_request_error"),
        ("POST", "/v1/messages", vec![json], "", 400, "invalid_request_error"),
        ("POST", "/v1/messages", vec![("content-type", "text/plain")], "{}", 415, "invalid_request_error"),
        (
            "POST",
            "/v1/messages",
            vec![json, ("content-encoding", "gzip")],
            "{}",
            415,
            "invalid_request_error",
        ),
        ("POST", "/v1/messages", vec![json], &long, 413, "request_too_large"),
        ("POST", "/v1/messages/count_tokens", vec![json], &long, 413, "request_too_large"),
        ("POST", "/v1/chat/completions", vec![json, version], "{}", 400, "invalid_request_error"),
    ] {
        let mut request = client.request(method.parse().unwrap(), server.path(path)).body(body.to_owned());
        for (name, value) in headers {
            request = request.header(name, value);
        }
        let (found, found_kind, message) = error(request.send().await.unwrap()).await;
        assert_eq!((found, found_kind.as_str()), (status, kind), "{method} {path}: {message}");
        if path.starts_with("/v1/v1") {
            assert!(message.contains("base_url must not end in /v1"), "{message}");
        }
    }
    // Others keep theirs.
    for path in ["/v1/nothing", "/v1/models/nothing", "/v1/v1/models"] {
        let response = server.get(path).await;
        assert_eq!(response.status(), 404);
        server::check_error(&response.json().await.unwrap());
    }
}

#[tokio::test]
async fn what_changes_nothing_is_ignored_and_named() {
    let server = start(Settings::default()).await;
    let mut body = say(&json!([{"type": "text", "text": "hello", "citations": []}]));
    let expected = ask(&server, &body).await["content"].clone();
    for (field, value) in [
        ("metadata", json!({"user_id": "me"})),
        ("thinking", json!({"type": "enabled", "budget_tokens": 1024})),
        ("service_tier", json!("auto")),
        ("output_config", json!({"effort": "low"})),
        ("context_management", json!({"edits": []})),
        ("tools", json!([])),
        ("tool_choice", json!({"type": "none"})),
        ("stop_sequences", Value::Null),
        ("temperature", json!(0)),
        ("foo", json!(1)),
    ] {
        body[field] = value;
    }
    let response = server.post_to(PATH, &body).await;
    assert_eq!(response.status(), 200);
    let ignored = response.headers()["x-ignored-params"].to_str().unwrap().to_owned();
    assert_eq!(
        ignored,
        "context_management, foo, messages[0].content[0].citations, metadata, output_config.effort, service_tier, thinking"
    );
    assert_eq!(response.json::<Value>().await.unwrap()["content"], expected);

    let strict = start(Settings { strict_params: Some(true), ..Settings::default() }).await;
    let (status, _, message) = error(strict.post_to(PATH, &body).await).await;
    assert_eq!((status, message.as_str()), (400, "foo: Extra inputs are not permitted"));
    body.as_object_mut().unwrap().remove("foo");
    assert_eq!(strict.post_to(PATH, &body).await.status(), 200);
}

#[tokio::test]
async fn a_full_queue_and_a_server_that_loads_are_overloaded() {
    let settings = Settings { max_sequences: Some(1), max_queue: Some(2), ..Settings::default() };
    let config = server::config(settings);
    let app = App::new(config.api.clone());
    let server = server::start_app(std::sync::Arc::clone(&app), config.drain).await;
    let overloaded = async |path: &str| {
        let response = server.post_to(path, &say(&json!("hello"))).await;
        let seconds: u64 = response.headers()["retry-after"].to_str().unwrap().parse().unwrap();
        assert!((1..=60).contains(&seconds));
        let (status, kind, message) = error(response).await;
        assert_eq!((status, kind.as_str()), (529, "overloaded_error"), "{message}");
    };
    overloaded(PATH).await;
    app.serve(Router::new(server::load(&config)));

    let mut long = words("hello");
    long["max_tokens"] = json!(4000);
    long["logit_bias"] = json!({"2": -100});
    long["stream"] = json!(true);
    let mut open = Vec::new();
    loop {
        let response = server.post(&long).await;
        if response.status() != 200 {
            assert_eq!(response.status(), 429);
            break;
        }
        open.push(response);
        assert!(open.len() < 10, "nobody is refused");
    }
    overloaded(PATH).await;
    overloaded(COUNT).await;
    drop(open);
    server.idle().await;
    ask(&server, &say(&json!("hello"))).await;
}

#[tokio::test]
async fn leaving_a_stream_ends_it() {
    let server = start(Settings::default()).await;
    let mut body = say(&json!("hello"));
    body["max_tokens"] = json!(4000);
    body["stream"] = json!(true);
    for _ in 0..5 {
        let mut response = server.post_to(PATH, &body).await;
        assert!(response.chunk().await.unwrap().is_some());
        drop(response);
    }
    server.idle().await;
}

#[tokio::test]
async fn models_are_listed_in_both_shapes() {
    let settings = Settings {
        name: Some("llava-hf/tiny".into()),
        alias: vec!["claude-sonnet-4-5".into(), "gpt-4o".into()],
        ..Settings::default()
    };
    let server = start(settings).await;
    let client = reqwest::Client::new();
    let get = async |path: &str| {
        let request = client.get(server.path(path)).header("anthropic-version", "2026-10-21");
        let response = request.send().await.unwrap();
        assert_eq!(response.status(), 200, "{path}");
        response.json::<Value>().await.unwrap()
    };
    let names = ["llava-hf/tiny", "claude-sonnet-4-5", "gpt-4o"];
    for (query, expected, has_more) in [
        ("", &names[..], false),
        ("?limit=2", &names[..2], true),
        ("?limit=2&after_id=claude-sonnet-4-5", &names[2..], false),
        ("?after_id=llava-hf%2Ftiny", &names[1..], false),
        ("?before_id=gpt-4o&limit=1", &names[1..2], true),
        ("?after_id=nothing", &[], false),
    ] {
        let list = get(&format!("/v1/models{query}")).await;
        let found: Vec<_> =
            list["data"].as_array().unwrap().iter().map(|model| model["id"].as_str().unwrap()).collect();
        assert_eq!(found, expected, "{query}");
        assert_eq!(list["has_more"], has_more, "{query}");
        assert_eq!(list["first_id"].as_str(), expected.first().copied(), "{query}");
        assert_eq!(list["last_id"].as_str(), expected.last().copied(), "{query}");
    }
    for path in ["/v1/models/llava-hf/tiny", "/v1/models/llava-hf%2Ftiny"] {
        let model = get(path).await;
        assert_eq!(model["id"], "llava-hf/tiny");
        assert_eq!((&model["type"], &model["lifecycle"]), (&json!("model"), &json!("active")));
        assert!(model["created_at"].as_str().unwrap().ends_with('Z'), "{model}");
        assert_eq!(model["max_input_tokens"], 4096);
    }
    // An alias is what a client with a name built in needs.
    let mut body = say(&json!("hello"));
    body["model"] = json!("claude-sonnet-4-5");
    assert_eq!(ask(&server, &body).await["model"], "llava-hf/tiny");
    // The other shape is as it was.
    let list: Value = server.get("/v1/models").await.json().await.unwrap();
    assert_eq!(list["object"], "list");
}

fn weather() -> Value {
    json!({
        "name": "weather",
        "description": "Tells the weather of a city.",
        "input_schema": {
            "type": "object",
            "properties": {"city": {"enum": ["rome", "oslo"]}},
            "required": ["city"],
            "additionalProperties": false,
        },
    })
}

fn clock() -> Value {
    json!({"type": "custom", "name": "clock", "input_schema": {"type": "object", "additionalProperties": false}})
}

/// Blocks of a streamed answer, put together as clients do it.
fn blocks(events: &[Value]) -> Vec<Value> {
    let mut blocks: Vec<Value> = Vec::new();
    let (mut open, mut input) = (false, String::new());
    for event in events {
        match event["type"].as_str().unwrap() {
            "content_block_start" => {
                assert!(!open, "a block begins inside of another");
                assert_eq!(event["index"], blocks.len());
                let block = event["content_block"].clone();
                assert!(block["type"] == "text" || block["input"] == json!({}), "{block}");
                blocks.push(block);
                (open, input) = (true, String::new());
            }
            "content_block_delta" => {
                assert!(open && event["index"] == blocks.len() - 1, "{event}");
                let block = blocks.last_mut().unwrap();
                match event["delta"]["type"].as_str().unwrap() {
                    "text_delta" => {
                        let text = block["text"].as_str().unwrap().to_owned();
                        block["text"] = json!(text + event["delta"]["text"].as_str().unwrap());
                    }
                    other => {
                        assert_eq!(other, "input_json_delta");
                        input += event["delta"]["partial_json"].as_str().unwrap();
                    }
                }
            }
            "content_block_stop" => {
                open = false;
                let block = blocks.last_mut().unwrap();
                if block["type"] == "tool_use" {
                    block["input"] = serde_json::from_str(&input).unwrap();
                }
            }
            _ => {}
        }
    }
    assert!(!open, "a block does not end");
    blocks
}

#[tokio::test]
async fn functions_are_called_as_they_may_be() {
    let server = start(Settings { max_sequences: Some(32), ..Settings::default() }).await;
    for (choice, names, most) in [
        (json!({"type": "any"}), &["weather", "clock"][..], 128),
        (json!({"type": "any", "disable_parallel_tool_use": true}), &["weather", "clock"], 1),
        (json!({"type": "tool", "name": "weather"}), &["weather"], 1),
        (json!({"type": "tool", "name": "clock"}), &["clock"], 1),
    ] {
        for seed in 0..3 {
            let mut body = say(&json!("what is the weather in rome and oslo?"));
            (body["tools"], body["tool_choice"]) = (json!([weather(), clock()]), choice.clone());
            (body["seed"], body["temperature"], body["max_tokens"]) = (json!(seed), json!(1), json!(400));
            let answer = ask(&server, &body).await;
            assert_eq!(
                (&answer["stop_reason"], &answer["stop_sequence"]),
                (&json!("tool_use"), &Value::Null),
                "{answer}"
            );
            let calls = answer["content"].as_array().unwrap();
            assert!((1..=most).contains(&calls.len()), "{answer}");
            for call in calls {
                assert_eq!(call["type"], "tool_use", "{answer}");
                assert!(call["id"].as_str().unwrap().starts_with("toolu_"));
                let name = call["name"].as_str().unwrap();
                assert!(names.contains(&name), "{name}");
                match name {
                    "weather" => {
                        assert!(call["input"]["city"] == "rome" || call["input"]["city"] == "oslo", "{call}");
                    }
                    _ => assert_eq!(call["input"], json!({})),
                }
            }
            let events = stream(&server, &body).await;
            let streamed = blocks(&events);
            assert_eq!(streamed.len(), calls.len());
            for (streamed, whole) in streamed.iter().zip(calls) {
                assert_eq!((&streamed["name"], &streamed["input"]), (&whole["name"], &whole["input"]));
            }
            assert_eq!(events[events.len() - 2]["delta"]["stop_reason"], "tool_use");
        }
    }
    // A call that is cut off has no input, and says why.
    let mut body = say(&json!("what is the weather?"));
    (body["tools"], body["tool_choice"]) = (json!([weather()]), json!({"type": "any"}));
    body["max_tokens"] = json!(1);
    let answer = ask(&server, &body).await;
    assert_eq!(answer["stop_reason"], "max_tokens");
    assert_eq!(answer["usage"]["output_tokens"], 1);
    server.idle().await;
}

/// What conversations with functions become is told by chat.
#[tokio::test]
async fn calls_and_results_become_the_prompt_that_they_should() {
    let server = start(Settings::default()).await;
    let parameters = weather()["input_schema"].clone();
    let described = json!({"type": "function", "function": {
        "name": "weather",
        "description": "Tells the weather of a city.",
        "parameters": parameters,
    }});
    let call = |id: &str, city: &str| json!({"type": "tool_use", "id": id, "name": "weather", "input": {"city": city}});
    let result =
        |id: &str, content: Value| json!({"type": "tool_result", "tool_use_id": id, "content": content});
    let mut body = say(&json!(""));
    body["tools"] = json!([weather()]);
    body["tool_choice"] = json!({"type": "auto"});
    body["messages"] = json!([
        {"role": "user", "content": "what is the weather?"},
        {"role": "assistant", "content": [{"type": "text", "text": "let me see"}, call("toolu_1", "rome"), call("toolu_2", "oslo")]},
        {"role": "user", "content": [
            result("toolu_1", json!("sunny")),
            {"type": "tool_result", "tool_use_id": "toolu_2", "content": [{"type": "text", "text": "no"}], "is_error": true},
            {"type": "text", "text": "and?"},
        ]},
    ]);
    let called = |id: &str, city: &str| json!({"id": id, "type": "function", "function": {"name": "weather", "arguments": json!({"city": city}).to_string()}});
    let mut chat = words("");
    (chat["tools"], chat["temperature"]) = (json!([described]), json!(0));
    chat["messages"] = json!([
        {"role": "user", "content": "what is the weather?"},
        {"role": "assistant", "content": "let me see", "tool_calls": [called("toolu_1", "rome"), called("toolu_2", "oslo")]},
        {"role": "tool", "tool_call_id": "toolu_1", "content": "sunny"},
        {"role": "tool", "tool_call_id": "toolu_2", "content": "Error:\nno"},
        {"role": "user", "content": "and?"},
    ]);
    let chat = server.ask(&chat).await;
    let answer = ask(&server, &body).await;
    assert_eq!(answer["usage"]["input_tokens"], chat["usage"]["prompt_tokens"]);
    assert_eq!(count(&server, &body).await, chat["usage"]["prompt_tokens"]);
    let text = chat["choices"][0]["message"]["content"].as_str().unwrap_or_default();
    assert_eq!(answer["content"][0]["text"].as_str().unwrap_or_default(), text);

    // A turn of the model's that goes on.
    let mut body = say(&json!("hello"));
    body["messages"] =
        json!([{"role": "user", "content": "hello"}, {"role": "assistant", "content": "the answer is"}]);
    let mut chat = words("");
    (chat["messages"], chat["temperature"]) = (body["messages"].clone(), json!(0));
    (chat["continue_final_message"], chat["add_generation_prompt"]) = (json!(true), json!(false));
    let chat = server.ask(&chat).await;
    let answer = ask(&server, &body).await;
    assert_eq!(answer["usage"]["input_tokens"], chat["usage"]["prompt_tokens"]);
    assert_eq!(answer["content"][0]["text"], chat["choices"][0]["message"]["content"]);
}

#[tokio::test]
async fn an_answer_has_the_form_that_was_asked_for() {
    let server = start(Settings::default()).await;
    let schema = json!({
        "type": "object",
        "properties": {"colour": {"enum": ["red", "green"]}, "sure": {"type": "boolean"}},
        "required": ["colour", "sure"],
        "additionalProperties": false,
    });
    for format in ["output_config", "output_format"] {
        let mut body = say(&json!("which colour?"));
        let form = json!({"type": "json_schema", "schema": schema});
        body[format] = if format == "output_config" { json!({"format": form}) } else { form };
        (body["temperature"], body["max_tokens"]) = (json!(1), json!(100));
        let answer = ask(&server, &body).await;
        assert_eq!(answer["stop_reason"], "end_turn", "{answer}");
        let found: Value = serde_json::from_str(answer["content"][0]["text"].as_str().unwrap()).unwrap();
        assert!(found["colour"] == "red" || found["colour"] == "green", "{found}");
        assert!(found["sure"].is_boolean(), "{found}");
    }
}

#[tokio::test]
async fn bad_functions_and_results_are_told_with_the_path_of_the_field() {
    let server = start(Settings::default()).await;
    let with = |fields: Value| {
        let mut body = say(&json!("hello"));
        for (field, value) in fields.as_object().unwrap() {
            body[field] = value.clone();
        }
        body
    };
    let tool = |tool: Value| with(json!({"tools": [tool]}));
    let chosen = |choice: Value| with(json!({"tools": [weather()], "tool_choice": choice}));
    let call = json!({"role": "assistant", "content": [{"type": "tool_use", "id": "toolu_1", "name": "f", "input": {}}]});
    let after = |blocks: Value| {
        with(
            json!({"messages": [{"role": "user", "content": "a"}, call, {"role": "user", "content": blocks}]}),
        )
    };
    let result = json!({"type": "tool_result", "tool_use_id": "toolu_2", "content": "a"});
    for (body, path, words) in [
        (tool(json!({"name": "f"})), "tools.0.input_schema", "Field required"),
        (tool(json!({"input_schema": {}})), "tools.0.name", "Field required"),
        (tool(json!({"name": "a b", "input_schema": {}})), "tools.0.name", "letters"),
        (tool(json!({"name": "f", "input_schema": []})), "tools.0.input_schema", "expected an object"),
        (
            tool(json!({"type": "web_search_20250305", "name": "web_search"})),
            "tools.0.type",
            "no tools of its own",
        ),
        (with(json!({"tools": [weather(), weather()]})), "tools.1.name", "differ"),
        (with(json!({"tools": vec![weather(); 129]})), "tools", "128"),
        (with(json!({"tool_choice": {"type": "any"}})), "tools", "Field required"),
        (chosen(json!({"type": "tool"})), "tool_choice.name", "Field required"),
        (chosen(json!({"type": "tool", "name": "g"})), "tool_choice.name", "weather"),
        (chosen(json!({})), "tool_choice.type", "Field required"),
        (
            with(json!({"output_config": {"format": {"type": "xml"}}})),
            "output_config.format.type",
            "json_schema",
        ),
        (
            with(json!({"output_config": {"format": {"type": "json_schema"}}})),
            "output_config.format.schema",
            "Field required",
        ),
        (after(json!([result])), "messages.2.content.0.tool_use_id", "toolu_2"),
        (after(json!([{"type": "tool_result"}])), "messages.2.content.0.tool_use_id", "Field required"),
        (
            after(json!([{"type": "tool_use", "id": "x", "name": "f", "input": {}}])),
            "messages.2.content.0.type",
            "only the assistant",
        ),
        (
            with(
                json!({"messages": [{"role": "assistant", "content": [{"type": "tool_use", "id": "x", "name": "f", "input": "a"}]}]}),
            ),
            "messages.0.content.0.input",
            "expected an object",
        ),
        (
            with(json!({"messages": [{"role": "user", "content": "a"}, call]})),
            "messages",
            "send their results",
        ),
    ] {
        let (status, kind, message) = error(server.post_to(PATH, &body).await).await;
        assert_eq!((status, kind.as_str()), (400, "invalid_request_error"), "{path}: {message}");
        assert!(message.starts_with(&format!("{path}: ")), "{path}: {message}");
        assert!(message.contains(words), "{path}: {message}");
    }
    server.idle().await;
}
