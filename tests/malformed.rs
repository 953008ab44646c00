//! Bad requests of every kind: each gets a 4xx in the API's shape that names the field, and harms nobody.
#![allow(clippy::unwrap_used, reason = "tests")]

mod support;

use percept::config::Settings;
use serde_json::{Value, json};
use support::server::{self, Server, data_url, data_url_of, image_part, start, words};

/// A request, the status, code and parameter of its error.
struct Bad {
    request: Value,
    status: u16,
    code: Option<&'static str>,
    param: Option<String>,
}

/// A valid request with one field changed.
fn with(field: &str, value: Value) -> Value {
    let mut request = words("hello");
    request[field] = value;
    request
}

fn bad(request: Value, code: &'static str, param: &str) -> Bad {
    Bad { request, status: 400, code: Some(code), param: Some(param.into()) }
}

/// Top-level fields with values of the wrong type, below and above their range.
fn fields() -> Vec<Bad> {
    let mut table = Vec::new();
    let not_numbers = [json!("1"), json!(true), json!([]), json!({}), json!([1])];
    let decimals = [
        ("temperature", -0.1, 2.1),
        ("top_p", -0.1, 1.1),
        ("min_p", -0.5, 1.5),
        ("frequency_penalty", -2.5, 2.5),
        ("presence_penalty", -3.0, 3.0),
        ("repetition_penalty", 0.0, 11.0),
    ];
    for (field, low, high) in decimals {
        table.extend(not_numbers.iter().map(|value| bad(with(field, value.clone()), "invalid_type", field)));
        table.push(bad(with(field, json!(low)), "decimal_below_min_value", field));
        table.push(bad(with(field, json!(high)), "decimal_above_max_value", field));
        table.push(bad(with(field, json!(-1e300)), "decimal_below_min_value", field));
        table.push(bad(with(field, json!(1e300)), "decimal_above_max_value", field));
    }
    for field in ["max_tokens", "max_completion_tokens", "n", "top_k", "seed", "top_logprobs"] {
        table.extend(not_numbers.iter().map(|value| bad(with(field, value.clone()), "invalid_type", field)));
        table.push(bad(with(field, json!(1.5)), "invalid_type", field));
        table.push(bad(with(field, json!(u64::MAX)), "invalid_value", field));
    }
    for (field, low) in
        [("max_tokens", 0), ("max_tokens", -1), ("max_completion_tokens", 0), ("n", 0), ("top_k", -2)]
    {
        table.push(bad(with(field, json!(low)), "integer_below_min_value", field));
    }
    for field in ["stream", "logprobs"] {
        for value in [json!("true"), json!(1), json!([]), json!({})] {
            table.push(bad(with(field, value), "invalid_type", field));
        }
    }
    for (field, values) in [
        ("model", vec![json!(1), json!(true), json!(["llava"]), json!({})]),
        ("messages", vec![json!("hello"), json!({"role": "user"}), json!(1), json!(true)]),
        ("stop", vec![json!(1), json!({}), json!(true)]),
        ("stream_options", vec![json!(true), json!("usage"), json!(1)]),
        ("logit_bias", vec![json!([]), json!("1"), json!(1)]),
        ("tools", vec![json!({}), json!("tool")]),
        ("functions", vec![json!({})]),
        ("response_format", vec![json!("json"), json!(1)]),
        ("modalities", vec![json!("text"), json!(1)]),
    ] {
        table.extend(values.into_iter().map(|value| bad(with(field, value), "invalid_type", field)));
    }
    table.push(bad(with("model", Value::Null), "missing_required_parameter", "model"));
    table.push(bad(with("messages", Value::Null), "missing_required_parameter", "messages"));
    table.push(bad(with("messages", json!([])), "empty_array", "messages"));
    table.push(bad(with("stop", json!("")), "string_below_min_length", "stop"));
    table.push(bad(with("stop", json!(["a", ""])), "string_below_min_length", "stop"));
    table.push(bad(with("stop", json!("x".repeat(1001))), "string_above_max_length", "stop"));
    table.push(bad(with("stop", json!(["a", "b", "c", "d", "e"])), "array_above_max_length", "stop"));
    table.push(bad(with("stop", json!(["a", 1])), "invalid_type", "stop[1]"));
    table.push(bad(with("logit_bias", json!({"hello": 1})), "invalid_value", "logit_bias"));
    table.push(bad(with("logit_bias", json!({"-1": 1})), "invalid_value", "logit_bias"));
    table.push(bad(with("logit_bias", json!({"1.5": 1})), "invalid_value", "logit_bias"));
    table.push(bad(with("logit_bias", json!({"482": 1})), "invalid_value", "logit_bias"));
    table.push(bad(with("logit_bias", json!({"99999999999": 1})), "invalid_value", "logit_bias"));
    table.push(bad(with("logit_bias", json!({"5": 101})), "decimal_above_max_value", "logit_bias"));
    table.push(bad(with("logit_bias", json!({"5": -101})), "decimal_below_min_value", "logit_bias"));
    table.push(bad(with("logit_bias", json!({"5": "1"})), "invalid_type", "logit_bias.5"));
    let biases: serde_json::Map<String, Value> = (0..1025).map(|id| (id.to_string(), json!(1))).collect();
    table.push(bad(with("logit_bias", biases.into()), "array_above_max_length", "logit_bias"));
    table.push(bad(
        with("stream_options", json!({"include_usage": "yes"})),
        "invalid_type",
        "stream_options.include_usage",
    ));
    table.push(Bad { status: 404, ..bad(with("model", json!("gpt-5")), "model_not_found", "model") });
    table.push(Bad { status: 404, ..bad(with("model", json!("")), "model_not_found", "model") });
    table
}

/// Features that would change the answer and are not there.
fn unsupported() -> Vec<Bad> {
    let mut table: Vec<Bad> =
        [("top_logprobs", json!(1)), ("audio", json!({"voice": "alloy"})), ("web_search_options", json!({}))]
            .into_iter()
            .map(|(field, value)| bad(with(field, value), "unsupported_parameter", field))
            .collect();
    table.push(bad(with("response_format", json!({"type": "xml"})), "invalid_value", "response_format.type"));
    table.push(bad(with("response_format", json!({})), "missing_required_parameter", "response_format.type"));
    table.push(bad(with("modalities", json!(["text", "audio"])), "invalid_value", "modalities"));
    table
}

/// Messages and their parts.
fn messages() -> Vec<Bad> {
    let turn = |message: Value| with("messages", json!([message]));
    let part = |part: Value| turn(json!({"role": "user", "content": [{"type": "text", "text": "a"}, part]}));
    let mut table = Vec::new();
    for (message, code, param) in [
        (json!({}), "missing_required_parameter", "messages[0].role"),
        (json!({"content": "hello"}), "missing_required_parameter", "messages[0].role"),
        (json!({"role": null, "content": "a"}), "missing_required_parameter", "messages[0].role"),
        (json!({"role": "robot", "content": "a"}), "invalid_value", "messages[0].role"),
        (json!({"role": "User", "content": "a"}), "invalid_value", "messages[0].role"),
        (json!({"role": 1, "content": "a"}), "invalid_type", "messages[0].role"),
        (json!({"role": "user"}), "missing_required_parameter", "messages[0].content"),
        (json!({"role": "user", "content": null}), "missing_required_parameter", "messages[0].content"),
        (json!({"role": "system"}), "missing_required_parameter", "messages[0].content"),
        (json!({"role": "assistant"}), "missing_required_parameter", "messages[0].content"),
        (json!({"role": "user", "content": 1}), "invalid_type", "messages[0].content"),
        (json!({"role": "user", "content": true}), "invalid_type", "messages[0].content"),
        (json!({"role": "user", "content": {"type": "text"}}), "invalid_type", "messages[0].content"),
        (json!({"role": "user", "content": []}), "empty_array", "messages[0].content"),
        (json!({"role": "user", "content": ["a"]}), "invalid_type", "messages[0].content[0]"),
        (json!({"role": "user", "content": [null]}), "invalid_type", "messages[0].content[0]"),
        (json!({"role": "user", "content": "a", "name": 1}), "invalid_type", "messages[0].name"),
        (json!({"role": "user", "content": "a", "refusal": []}), "invalid_type", "messages[0].refusal"),
        (json!({"role": "tool", "tool_call_id": "x"}), "missing_required_parameter", "messages[0].content"),
        (
            json!({"role": "assistant", "content": null, "tool_calls": [{"id": "a"}]}),
            "missing_required_parameter",
            "messages[0].tool_calls[0].function",
        ),
        (
            json!({"role": "assistant", "tool_calls": [{"type": "custom", "function": {"name": "f"}}]}),
            "invalid_value",
            "messages[0].tool_calls[0].type",
        ),
        (
            json!({"role": "assistant", "function_call": {}}),
            "missing_required_parameter",
            "messages[0].function_call.name",
        ),
        (
            json!({"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": {}}}]}),
            "invalid_type",
            "messages[0].tool_calls[0].function.arguments",
        ),
        (
            json!({"role": "assistant", "content": "a", "tool_calls": {}}),
            "invalid_type",
            "messages[0].tool_calls",
        ),
        (json!("hello"), "invalid_type", "messages[0]"),
        (json!(["user", "hello"]), "invalid_type", "messages[0]"),
        (json!(null), "invalid_type", "messages[0]"),
        (json!(1), "invalid_type", "messages[0]"),
    ] {
        table.push(bad(turn(message), code, param));
    }
    let here = "messages[0].content[1]";
    for (value, code, field) in [
        (json!({}), "missing_required_parameter", ".type"),
        (json!({"text": "a"}), "missing_required_parameter", ".type"),
        (json!({"type": null}), "missing_required_parameter", ".type"),
        (json!({"type": 1}), "invalid_type", ".type"),
        (json!({"type": "image"}), "invalid_value", ".type"),
        (json!({"type": "video_url", "video_url": {}}), "missing_required_parameter", ".video_url.url"),
        (json!({"type": "movie", "movie": {}}), "invalid_value", ".type"),
        (json!({"type": "input_text", "text": "a"}), "invalid_value", ".type"),
        (json!({"type": "text"}), "missing_required_parameter", ".text"),
        (json!({"type": "text", "text": null}), "missing_required_parameter", ".text"),
        (json!({"type": "text", "text": 1}), "invalid_type", ".text"),
        (json!({"type": "text", "text": ["a"]}), "invalid_type", ".text"),
        (json!({"type": "refusal"}), "missing_required_parameter", ".refusal"),
        (json!({"type": "image_url"}), "missing_required_parameter", ".image_url"),
        (json!({"type": "image_url", "image_url": null}), "missing_required_parameter", ".image_url"),
        (json!({"type": "image_url", "image_url": 1}), "invalid_type", ".image_url"),
        (json!({"type": "image_url", "image_url": []}), "invalid_type", ".image_url"),
        (json!({"type": "image_url", "image_url": {}}), "missing_required_parameter", ".image_url.url"),
        (
            json!({"type": "image_url", "image_url": {"url": null}}),
            "missing_required_parameter",
            ".image_url.url",
        ),
        (json!({"type": "image_url", "image_url": {"url": 1}}), "invalid_type", ".image_url.url"),
        (
            json!({"type": "image_url", "image_url": {"url": "data:,", "detail": "max"}}),
            "invalid_value",
            ".image_url.detail",
        ),
        (
            json!({"type": "image_url", "image_url": {"url": "data:,", "detail": 1}}),
            "invalid_type",
            ".image_url.detail",
        ),
        (
            json!({"type": "input_audio", "input_audio": {"data": "", "format": "wav"}}),
            "unsupported_parameter",
            ".input_audio",
        ),
        (json!({"type": "input_audio"}), "missing_required_parameter", ".input_audio"),
        (
            json!({"type": "input_audio", "input_audio": {}}),
            "missing_required_parameter",
            ".input_audio.data",
        ),
        (json!({"type": "input_audio", "input_audio": "UklGRg=="}), "invalid_type", ".input_audio"),
        (json!({"type": "file", "file": {"file_data": ""}}), "invalid_file_url", ".file.file_data"),
        (json!({"type": "file", "file": {}}), "missing_required_parameter", ".file.file_data"),
        (json!({"type": "file", "file": {"file_id": "f"}}), "unsupported_parameter", ".file.file_id"),
        (json!({"type": "file", "file": "JVBERi0="}), "invalid_type", ".file"),
        (json!({"type": "file"}), "missing_required_parameter", ".file"),
    ] {
        table.push(bad(part(value), code, &format!("{here}{field}")));
    }
    // The place is that of the second turn.
    let second = json!([{"role": "user", "content": "a"}, {"role": "user", "content": [{"type": "x"}]}]);
    table.push(bad(with("messages", second), "invalid_value", "messages[1].content[0].type"));
    let many = vec![json!({"role": "user", "content": "a"}); 10_001];
    table.push(bad(with("messages", json!(many)), "array_above_max_length", "messages"));
    let parts = vec![json!({"type": "text", "text": "a"}); 1001];
    table.push(bad(
        turn(json!({"role": "user", "content": parts})),
        "array_above_max_length",
        "messages[0].content",
    ));
    table.push(bad(words(&"word ".repeat(5000)), "context_length_exceeded", "messages"));
    table
}

/// Pictures that are none, and URLs that lead nowhere.
fn pictures() -> Vec<Bad> {
    let at = "messages[0].content[0].image_url";
    let picture = |url: &str| with("messages", json!([{"role": "user", "content": [image_part(url)]}]));
    let mut table = Vec::new();
    for url in [
        "",
        "cat.png",
        "http://example.com/cat.png",
        "https://example.com/cat.png",
        "http://127.0.0.1:1/cat.png",
        "http://169.254.169.254/latest/meta-data",
        "file:///etc/passwd",
        "//example.com/cat.png",
        "/etc/passwd",
        "ftp://example.com/cat.png",
        "javascript:alert(1)",
        "iVBORw0KGgoAAAANSUhEUg==",
        "data:",
        "data:image/png",
        "data:image/png;base64",
        "data:image/png;base64,",
        "data:image/png,abc",
        "data:image/svg+xml;utf8,<svg/>",
        "data:image/png;base64,@@@@",
        "data:image/png;base64,AAAAA",
        "blob:http://example.com/1",
    ] {
        table.push(bad(picture(url), "invalid_image_url", at));
    }
    let png = std::fs::read(server::fixture("inputs/tiny_31x17.png")).unwrap();
    let jpeg = std::fs::read(server::fixture("inputs/photo_160x120.jpg")).unwrap();
    let mut broken = png.clone();
    broken[60] ^= 0xff;
    for file in [
        // Text.
        b"hello".to_vec(),
        // Svg.
        b"<svg xmlns='http://www.w3.org/2000/svg'/>".to_vec(),
        // Pdf.
        b"%PDF-1.7 ...".to_vec(),
        // Avif.
        b"\0\0\0\x1cftypavif\0\0\0\0avifmif1miaf".to_vec(),
        // Heic.
        b"\0\0\0\x18ftypheic\0\0\0\0mif1heic".to_vec(),
        // Ico.
        b"\0\0\x01\0\x01\0\x10\x10\0\0\x01\0\x20\0".to_vec(),
        // Farbfeld.
        b"farbfeld\0\0\0\x01\0\0\0\x01\0\0\0\0\0\0\0\0".to_vec(),
        // Only a PNG signature.
        b"\x89PNG\r\n\x1a\n".to_vec(),
        // Only a JPEG signature.
        b"\xff\xd8\xff\xe0".to_vec(),
        // Only a GIF signature.
        b"GIF89a".to_vec(),
        // Only a BMP signature.
        b"BM".to_vec(),
        // Only a TIFF signature.
        b"II*\0".to_vec(),
        // Only a WebP signature.
        b"RIFF\0\0\0\0WEBPVP8 ".to_vec(),
        // A cut PNG.
        png[..png.len() / 2].to_vec(),
        // A JPEG cut in its header.
        jpeg[..100].to_vec(),
        // A broken PNG.
        broken,
    ] {
        let case = bad(picture(&data_url_of(&file)), "invalid_image_format", at);
        table.push(case);
    }
    let many = vec![image_part(&data_url("tiny_31x17.png")); 17];
    let many = with("messages", json!([{"role": "user", "content": many}]));
    table.push(bad(many, "array_above_max_length", "messages"));
    // What headers claim, with nothing behind them.
    for (width, height) in [(50_000, 50_000), (1, 40_000_001), (6_400, 6_400)] {
        table.push(bad(picture(&data_url_of(&png_header(width, height))), "image_too_large", at));
    }
    let widest = png_header(u32::MAX >> 1, 1);
    table.push(bad(picture(&data_url_of(&widest)), "invalid_image_format", at));
    table.push(bad(picture(&data_url_of(&gif_header(65_535, 65_535))), "image_too_large", at));
    table.push(bad(picture(&data_url_of(&bmp_header(30_000, 30_000))), "image_too_large", at));
    table
}

fn png_header(width: u32, height: u32) -> Vec<u8> {
    let mut chunk = b"IHDR".to_vec();
    chunk.extend(width.to_be_bytes());
    chunk.extend(height.to_be_bytes());
    chunk.extend([8, 2, 0, 0, 0]);
    let mut file = b"\x89PNG\r\n\x1a\n\0\0\0\x0d".to_vec();
    file.extend(&chunk);
    file.extend(crc32(&chunk).to_be_bytes());
    file.extend(b"\0\0\0\0IDAT\x35\xaf\x06\x1e");
    file
}

fn crc32(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0u32, |mut crc, &byte| {
        crc ^= u32::from(byte);
        for _ in 0..8 {
            crc = crc >> 1 ^ if crc & 1 == 1 { 0xedb8_8320 } else { 0 };
        }
        crc
    })
}

fn gif_header(width: u16, height: u16) -> Vec<u8> {
    let mut file = b"GIF89a".to_vec();
    file.extend(width.to_le_bytes());
    file.extend(height.to_le_bytes());
    file.extend([0x80, 0, 0, 0, 0, 0, 255, 255, 255]);
    file.extend(b"\x2c\0\0\0\0\x01\0\x01\0\0\x02\x02D\x01\0\x3b");
    file
}

fn bmp_header(width: u32, height: u32) -> Vec<u8> {
    let mut file = b"BM\x36\0\0\0\0\0\0\0\x36\0\0\0\x28\0\0\0".to_vec();
    file.extend(width.to_le_bytes());
    file.extend(height.to_le_bytes());
    file.extend([1, 0, 24, 0, 0, 0, 0, 0]);
    file.extend([0; 20]);
    file
}

/// Bodies that are no requests at all.
const BODIES: &[&str] = &[
    "",
    " ",
    "hello",
    "null",
    "1",
    "true",
    "\"hello\"",
    "[]",
    "[{}]",
    "{",
    "{]",
    "{\"model\"}",
    "{\"model\": }",
    "{model: \"llava\"}",
    "{'model': 'llava'}",
    "{\"model\": \"llava\",}",
    "{\"model\": \"llava\", \"model\": \"llava\"}",
    "{\"model\": \"llava\", \"temperature\": NaN}",
    "{\"model\": \"llava\", \"temperature\": Infinity}",
    "{\"model\": \"llava\", \"temperature\": 1e400}",
    "{\"model\": \"llava\", \"seed\": 99999999999999999999999}",
    "{\"model\": \"\\ud800\"}",
    "{\"model\": \"\u{1}\"}",
];

async fn check(server: &Server, case: &Bad) {
    let name: String = case.request.to_string().chars().take(300).collect();
    let (status, error) = server.refuse(&case.request).await;
    assert_eq!(status, case.status, "{name}: {error}");
    assert_eq!(error["type"], "invalid_request_error", "{name}");
    assert_eq!(error["code"].as_str(), case.code, "{name}: {error}");
    assert_eq!(error["param"].as_str(), case.param.as_deref(), "{name}: {error}");
    let message = error["message"].as_str().unwrap();
    assert!(message.len() < 600, "{message}");
    // A message that is about a field names it, and a limit.
    if !matches!(case.code, Some("model_not_found" | "context_length_exceeded")) {
        assert!(message.contains(case.param.as_deref().unwrap()), "{name}: {message}");
    }
}

#[tokio::test]
async fn two_hundred_malformed_requests_are_refused_in_shape() {
    let server = start(Settings::default()).await;
    let table: Vec<Bad> = [fields(), unsupported(), messages(), pictures()].into_iter().flatten().collect();
    assert!(table.len() >= 200, "only {}", table.len());
    for case in &table {
        check(&server, case).await;
        // Nobody is harmed, and a stream is refused before it begins.
        let mut request = case.request.clone();
        if request.get("stream").is_none() {
            request["stream"] = json!(true);
            assert_eq!(server.refuse(&request).await.0, case.status);
        }
    }
    let client = reqwest::Client::new();
    let deep = format!("{{\"model\": \"llava\", \"tools\": {}{}}}", "[".repeat(5000), "]".repeat(5000));
    for body in BODIES.iter().copied().chain([deep.as_str()]) {
        let request =
            client.post(server.path("/v1/chat/completions")).header("content-type", "application/json");
        let response = request.body(body.to_owned()).send().await.unwrap();
        assert_eq!(response.status(), 400, "{body}");
        server::check_error(&response.json().await.unwrap());
    }
    server.idle().await;
    server.ask(&words("hello")).await;
}

/// A value of two bytes takes many times as much in memory: there are only so many in all schemas of a body together.
#[tokio::test]
async fn schemas_have_only_so_many_values() {
    let server = start(Settings::default()).await;
    let many = |count: usize| json!({"type": "object", "enum": vec![0; count]});
    let tool = |schema: Value| json!({"type": "function", "function": {"name": "f", "parameters": schema}});
    let one = with("tools", json!([tool(many(600_000))]));
    let two = with("tools", json!([tool(many(300_000)), tool(many(300_000))]));
    let other = with(
        "response_format",
        json!({"type": "json_schema", "json_schema": {"name": "a", "schema": many(600_000)}}),
    );
    for (body, param) in [
        (&one, "tools[0].function.parameters.enum[524285]"),
        (&two, "tools[1].function.parameters.enum[224282]"),
        (&other, "response_format.json_schema.schema.enum[524285]"),
    ] {
        let (status, error) = server.refuse(body).await;
        assert_eq!((status, &error["code"]), (400, &json!("array_above_max_length")), "{error}");
        assert_eq!(error["param"], param);
        assert!(error["message"].as_str().unwrap().contains("524288"), "{error}");
    }
    // One body's do not count for the next.
    for _ in 0..3 {
        let (status, error) = server.refuse(&with("tools", json!([tool(many(400_000))]))).await;
        assert_eq!((status, &error["code"]), (400, &json!("context_length_exceeded")), "{error}");
    }
    let input = json!({"type": "tool_use", "id": "toolu_1", "name": "f", "input": {"a": vec![0; 600_000]}});
    let message = json!({
        "model": "llava",
        "max_tokens": 1,
        "messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": [input]}],
    });
    let response = server.post_to("/v1/messages", &message).await;
    assert_eq!(response.status(), 400);
    let error: Value = response.json().await.unwrap();
    assert!(error["error"]["message"].as_str().unwrap().contains("524288"), "{error}");
}

#[tokio::test]
async fn limits_hold_at_their_value_and_not_beyond() {
    let file = std::fs::read(server::fixture("inputs/land_90x60.png")).unwrap();
    let settings = |bytes: usize, pixels, all, images| Settings {
        max_image_bytes: Some(bytes.to_string().parse().unwrap()),
        max_image_edge: Some(90),
        max_image_pixels: Some(pixels),
        max_request_pixels: Some(all),
        max_images: Some(images),
        ..Settings::default()
    };
    let pictures = |count| {
        let parts = vec![image_part(&data_url_of(&file)); count];
        with("messages", json!([{"role": "user", "content": parts}]))
    };
    let size = 90 * 60;
    let exact = start(settings(file.len(), size, 3 * size, 3)).await;
    exact.ask(&pictures(3)).await;
    let short = Settings { max_image_edge: Some(89), ..settings(file.len(), size, 3 * size, 3) };
    for (limits, code, limit) in [
        (settings(file.len() - 1, size, 3 * size, 3), "invalid_image_url", file.len() as u32 - 1),
        (settings(file.len(), size - 1, 3 * size, 3), "image_too_large", size - 1),
        (settings(file.len(), size, 3 * size - 1, 3), "image_too_large", 3 * size - 1),
        (settings(file.len(), size, 3 * size, 2), "array_above_max_length", 2),
        (short, "image_too_large", 89),
    ] {
        let server = start(limits).await;
        let (status, error) = server.refuse(&pictures(3)).await;
        assert_eq!((status, error["code"].as_str()), (400, Some(code)));
        assert!(error["message"].as_str().unwrap().contains(&limit.to_string()), "{error}");
    }
}
