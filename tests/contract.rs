//! What every API promises of an answer, whatever a network does: held by one without weights behind the real engine.
#![allow(clippy::unwrap_used, reason = "tests")]

mod support;

use std::{sync::Arc, time::Duration};

use futures_util::{StreamExt as _, future::join_all};
use serde_json::{Value, json};
use support::{
    fake::{END, Faults, NAN, serve},
    server::Server,
};
use tokio::time::timeout;

/// Characters of several bytes and of several characters: skins, families, flags, marks on letters.
const EMOJI: &str = "a😀🧒🏽 👩‍👩‍👧‍👦🇩🇪é ‰ नमस्ते 日本語 🏴󠁧󠁢󠁳󠁣󠁴󠁿z";

/// Tokens that are `our` and `▁we`.
const OUR: u32 = 455;
const WE: u32 = 457;

/// The ways to ask for an answer.
const APIS: [&str; 4] = ["/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages"];

/// A question, to be answered with so many tokens at most.
fn question(path: &str, tokens: usize) -> Value {
    let messages = json!([{"role": "user", "content": "hello"}]);
    let mut body = match path {
        "/v1/chat/completions" | "/v1/messages" => json!({"messages": messages, "max_tokens": tokens}),
        "/v1/completions" => json!({"prompt": "hello", "max_tokens": tokens}),
        "/v1/responses" => json!({"input": "hello", "max_output_tokens": tokens}),
        other => panic!("{other}"),
    };
    body["model"] = json!("llava");
    // What the network says is likely, and no more than that.
    body["temperature"] = json!(0);
    body
}

/// The tokens of a question.
fn prompt(answer: &Value) -> usize {
    let usage = &answer["usage"];
    usage["prompt_tokens"].as_u64().or(usage["input_tokens"].as_u64()).unwrap() as usize
}

/// The text of a whole answer, and why it ended.
fn whole(answer: &Value) -> (String, Value) {
    for (text, reason) in [
        ("/choices/0/message/content", "/choices/0/finish_reason"),
        ("/choices/0/text", "/choices/0/finish_reason"),
        ("/output/0/content/0/text", "/status"),
        ("/content/0/text", "/stop_reason"),
    ] {
        if let Some(text) = answer.pointer(text) {
            return (text.as_str().unwrap().to_owned(), answer.pointer(reason).unwrap().clone());
        }
    }
    panic!("{answer}");
}

/// The data of events, and whether the stream ended as one does that is complete.
fn events(text: &str) -> (Vec<Value>, bool) {
    let data = text.lines().filter_map(|line| line.strip_prefix("data: "));
    let (done, data): (Vec<&str>, Vec<&str>) = data.partition(|data| *data == "[DONE]");
    let events: Vec<Value> = data.iter().map(|data| serde_json::from_str(data).unwrap()).collect();
    let last = events.last().map(|event| event["type"].clone()).unwrap_or_default();
    (
        events,
        !done.is_empty()
            || ["message_stop", "response.completed", "response.incomplete"].iter().any(|end| last == *end),
    )
}

/// The pieces of text in events.
fn deltas(events: &[Value]) -> Vec<String> {
    let places = ["/choices/0/delta/content", "/choices/0/text", "/delta/text"];
    let text = |event: &Value| {
        let delta = (event["type"] == "response.output_text.delta").then_some(&event["delta"]);
        delta.or_else(|| places.iter().find_map(|place| event.pointer(place)))?.as_str().map(str::to_owned)
    };
    events.iter().filter_map(text).filter(|text| !text.is_empty()).collect()
}

async fn ask(server: &Server, path: &str, body: &Value) -> Value {
    let response = server.post_to(path, body).await;
    assert_eq!(response.status(), 200, "{path}");
    response.json().await.unwrap()
}

async fn stream(server: &Server, path: &str, body: &Value) -> String {
    let mut body = body.clone();
    body["stream"] = json!(true);
    let response = server.post_to(path, &body).await;
    assert_eq!(response.status(), 200, "{path}");
    response.text().await.unwrap()
}

/// Tokens that are single bytes.
fn bytes(text: &[u8]) -> Vec<u32> {
    text.iter().map(|byte| u32::from(*byte) + 3).collect()
}

/// Has the network say this to the question of an API.
async fn script(server: &Server, faults: &Faults, path: &str, says: Vec<u32>) {
    faults.always();
    let tokens = prompt(&ask(server, path, &question(path, 1)).await);
    *faults.script.lock().unwrap() = Some((tokens, says));
}

/// Each token is a byte: no piece of an answer has a part of a character, and together they are the answer.
#[tokio::test]
async fn characters_are_never_split() {
    let faults = Arc::<Faults>::default();
    let server = serve(&faults).await;
    for path in APIS {
        script(&server, &faults, path, bytes(EMOJI.as_bytes())).await;
        let body = question(path, 400);
        let (text, reason) = whole(&ask(&server, path, &body).await);
        assert_eq!(text, EMOJI, "{path}");
        assert!(["stop", "completed", "end_turn"].iter().any(|end| reason == *end), "{path}: {reason}");
        let all = join_all((0..4).map(|_| stream(&server, path, &body))).await;
        for text in all {
            let (events, complete) = events(&text);
            let deltas = deltas(&events);
            // Who is behind gets several tokens at once.
            assert!(complete && deltas.len() > 2, "{path}: {text}");
            assert!(deltas.iter().all(|delta| !delta.contains('\u{fffd}')), "{path}: {deltas:?}");
            assert_eq!(deltas.concat(), EMOJI, "{path}");
        }
        // Cut inside of the first one: the whole answer and the stream say the same. A run of bytes that is broken is
        // as unreadable as the reference has it.
        let body = question(path, 3);
        let (cut, reason) = whole(&ask(&server, path, &body).await);
        assert!(["length", "incomplete", "max_tokens"].iter().any(|end| reason == *end), "{path}: {reason}");
        assert_eq!(cut, "\u{fffd}".repeat(3), "{path}");
        let (events, _) = events(&stream(&server, path, &body).await);
        assert_eq!(deltas(&events).concat(), cut, "{path}");
    }
    // Bytes that are no character become what stands for such, and the words around them stay.
    let broken = [vec![OUR, WE], bytes(&EMOJI.as_bytes()[1..3]), vec![OUR, WE]].concat();
    for path in APIS {
        script(&server, &faults, path, broken.clone()).await;
        let body = question(path, 400);
        let (text, _) = whole(&ask(&server, path, &body).await);
        assert_eq!(text, "our we\u{fffd}\u{fffd}our we", "{path}");
        let (events, _) = events(&stream(&server, path, &body).await);
        assert_eq!(deltas(&events).concat(), text, "{path}");
    }
    server.idle().await;
}

/// The bytes of tokens, with their probabilities, are the text, whole and streamed, piece by piece.
#[tokio::test]
async fn probabilities_are_those_of_the_text() {
    let faults = Arc::<Faults>::default();
    let server = serve(&faults).await;
    let path = "/v1/chat/completions";
    script(&server, &faults, path, bytes(EMOJI.as_bytes())).await;
    let mut body = question(path, 400);
    body["logprobs"] = json!(true);
    let of = |content: &Value| -> Vec<u8> {
        let tokens = content.as_array().unwrap().iter();
        tokens
            .flat_map(|token| token["bytes"].as_array().unwrap())
            .map(|byte| byte.as_u64().unwrap() as u8)
            .collect()
    };
    let answer = ask(&server, path, &body).await;
    assert_eq!(of(&answer["choices"][0]["logprobs"]["content"]), EMOJI.as_bytes());
    let (events, _) = events(&stream(&server, path, &body).await);
    let (mut told, mut said) = (Vec::new(), String::new());
    for event in &events {
        let Some(content) = event.pointer("/choices/0/logprobs/content") else { continue };
        let text = event["choices"][0]["delta"]["content"].as_str().unwrap();
        said += text;
        told.extend(of(content));
        // Ahead of the text by the beginning of a character at most.
        assert!(told.starts_with(said.as_bytes()) && told.len() < said.len() + 4, "{event}");
    }
    assert_eq!(told, EMOJI.as_bytes());

    // In the older way as well: a piece has text and what belongs to it.
    let path = "/v1/completions";
    script(&server, &faults, path, [WE, OUR].repeat(8)).await;
    let mut body = question(path, 400);
    body["logprobs"] = json!(1);
    let (events, _) = self::events(&stream(&server, path, &body).await);
    let mut pieces = 0;
    for event in &events {
        let choice = &event["choices"][0];
        let text = choice["text"].as_str().unwrap();
        if choice["finish_reason"].is_null() {
            let tokens = choice["logprobs"]["tokens"].as_array().unwrap();
            assert_eq!(
                tokens.iter().map(|token| token.as_str().unwrap()).collect::<String>(),
                text,
                "{event}"
            );
            pieces += 1;
        } else {
            assert_eq!((text, &choice["logprobs"]), ("", &Value::Null));
        }
    }
    assert_eq!(pieces, 16);
}

/// What breaks in the middle ends with an error in the API's own shape, and never looks complete.
#[tokio::test]
async fn an_error_in_the_middle_is_told() {
    let faults = Arc::<Faults>::default();
    let server = serve(&faults).await;
    for path in APIS {
        // The last token is told, and what comes behind it is not.
        let says = [bytes(b"so far so good"), vec![NAN]].concat();
        script(&server, &faults, path, says).await;
        let body = question(path, 400);
        let response = server.post_to(path, &body).await;
        assert_eq!(response.status(), 500, "{path}");
        let error: Value = response.json().await.unwrap();
        let kind = if path == "/v1/messages" { "api_error" } else { "server_error" };
        assert_eq!(error["error"]["type"], kind, "{path}: {error}");

        let text = stream(&server, path, &body).await;
        let (events, complete) = events(&text);
        assert!(!complete && !text.contains("[DONE]"), "{path}: {text}");
        assert_eq!(deltas(&events).concat(), "so far so good small", "{path}");
        let last = events.last().unwrap();
        let told = match path {
            "/v1/responses" => {
                assert_eq!(last["type"], "response.failed", "{text}");
                &last["response"]["error"]
            }
            "/v1/messages" => {
                assert!(text.contains("event: error\ndata: "), "{text}");
                &last["error"]
            }
            _ => &last["error"],
        };
        assert!(told["message"].as_str().unwrap().contains("had an error"), "{path}: {last}");
        assert!(!text.contains("NaN") && !text.contains("finite"), "what went wrong is for the log: {text}");

        // Nobody else notices.
        faults.always();
        ask(&server, path, &question(path, 8)).await;
    }
    server.idle().await;
}

/// Where the first token takes long, the connection is kept alive, and leaving it ends the request.
#[tokio::test]
async fn a_slow_first_token_is_waited_for() {
    let faults = Arc::<Faults>::default();
    let server = serve(&faults).await;
    faults.always();
    faults.hold(true);
    let server_of_all = &server;
    let open = APIS.map(|path| async move {
        let mut body = question(path, 4);
        body["stream"] = json!(true);
        let response = server_of_all.post_to(path, &body).await;
        assert_eq!(response.status(), 200, "{path}");
        let mut pieces = response.bytes_stream();
        let mut text = String::new();
        // Comments, and the pings of the Anthropic API.
        while !text.contains(": keep-alive") && !text.contains("event: ping") {
            let piece = timeout(Duration::from_secs(60), pieces.next()).await.unwrap().unwrap().unwrap();
            text += std::str::from_utf8(&piece).unwrap();
        }
        assert!(deltas(&events(&text).0).is_empty(), "{path}: {text}");
        (pieces, text)
    });
    let mut open = join_all(open).await;
    // One leaves; the others get their answers.
    drop(open.pop());
    faults.hold(false);
    for (path, (mut pieces, mut text)) in APIS.into_iter().zip(open) {
        while let Some(piece) = pieces.next().await {
            text += std::str::from_utf8(&piece.unwrap()).unwrap();
        }
        let (events, complete) = events(&text);
        assert!(complete && !deltas(&events).is_empty(), "{path}: {text}");
    }
    server.idle().await;
}

/// Answers end where they should, whatever they are made of.
#[tokio::test]
async fn an_answer_can_be_empty() {
    let faults = Arc::<Faults>::default();
    let server = serve(&faults).await;
    for path in APIS {
        script(&server, &faults, path, vec![END]).await;
        let body = question(path, 8);
        let (text, reason) = whole(&ask(&server, path, &body).await);
        assert_eq!(text, "", "{path}");
        assert!(["stop", "completed", "end_turn"].iter().any(|end| reason == *end), "{path}: {reason}");
        let (events, complete) = events(&stream(&server, path, &body).await);
        assert!(complete && deltas(&events).is_empty(), "{path}");
    }
    server.idle().await;
}
