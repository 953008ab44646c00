//! Recordings over HTTP: every format of an answer, whole and in pieces, and everything that a form can have wrong.
#![allow(clippy::unwrap_used, reason = "tests")]

mod support;

use std::time::Duration;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use futures_util::{StreamExt as _, stream};
use percept::config::Settings;
use serde_json::{Value, json};
use support::{
    fixtures,
    server::{self, Server, check_error, start, words},
};

const BOUNDARY: &str = "a-boundary";

/// A part of a form.
#[derive(Clone)]
struct Part {
    name: String,
    content: Vec<u8>,
}

fn field(name: &str, text: &str) -> Part {
    Part { name: name.into(), content: text.as_bytes().to_vec() }
}

fn file(content: &[u8]) -> Part {
    Part { name: "file".into(), content: content.to_vec() }
}

fn body(parts: &[Part]) -> Vec<u8> {
    let mut body = Vec::new();
    for Part { name, content } in parts {
        body.extend(format!("--{BOUNDARY}\r\nContent-Disposition: form-data; name=\"{name}\"").bytes());
        if name == "file" {
            // Nothing depends on what a file is called.
            body.extend(b"; filename=\"../../upload; $(id)\"\r\nContent-Type: image/png");
        }
        body.extend(b"\r\n\r\n");
        body.extend(content);
        body.extend(b"\r\n");
    }
    body.extend(format!("--{BOUNDARY}--\r\n").bytes());
    body
}

fn speech() -> Vec<u8> {
    std::fs::read(fixtures().join("inputs/speechlike_3s.wav")).unwrap()
}

/// The same on two channels, one of them backwards.
fn stereo() -> Vec<u8> {
    let mono = speech();
    let samples: Vec<[u8; 2]> = mono[44..].chunks_exact(2).map(|sample| [sample[0], sample[1]]).collect();
    let data: Vec<u8> =
        samples.iter().zip(samples.iter().rev()).flat_map(|(left, right)| [*left, *right].concat()).collect();
    let mut wav = mono[..44].to_vec();
    wav[22] = 2;
    wav[28..32].copy_from_slice(&64_000u32.to_le_bytes());
    wav[32] = 4;
    wav[4..8].copy_from_slice(&(data.len() as u32 + 36).to_le_bytes());
    wav[40..44].copy_from_slice(&(data.len() as u32).to_le_bytes());
    wav.extend(data);
    wav
}

/// A request that is quick with any weights, with more fields.
fn quick(more: &[(&str, &str)]) -> Vec<Part> {
    let mut parts =
        vec![field("model", "whisper"), field("max_new_tokens", "24"), field("temperatures", "0")];
    parts.extend(more.iter().map(|(name, text)| field(name, text)));
    parts.push(file(&speech()));
    parts
}

fn settings() -> Settings {
    Settings { model: vec![support::whisper().to_str().unwrap().to_owned()], ..Settings::default() }
}

async fn send(server: &Server, path: &str, parts: &[Part]) -> reqwest::Response {
    send_bytes(server, path, &format!("multipart/form-data; boundary={BOUNDARY}"), body(parts).into()).await
}

async fn send_bytes(server: &Server, path: &str, kind: &str, body: reqwest::Body) -> reqwest::Response {
    let request = reqwest::Client::new().post(server.path(path)).header("content-type", kind);
    request.body(body).send().await.unwrap()
}

const TRANSCRIPTIONS: &str = "/v1/audio/transcriptions";
const TRANSLATIONS: &str = "/v1/audio/translations";

async fn text(server: &Server, path: &str, more: &[(&str, &str)]) -> (String, String) {
    let response = send(server, path, &quick(more)).await;
    let (status, kind) = (response.status(), response.headers()["content-type"].to_str().unwrap().to_owned());
    let text = response.text().await.unwrap();
    assert_eq!(status, 200, "{more:?}: {text}");
    (kind, text)
}

async fn ask(server: &Server, path: &str, more: &[(&str, &str)]) -> Value {
    let (kind, text) = text(server, path, more).await;
    assert_eq!(kind, "application/json");
    serde_json::from_str(&text).unwrap()
}

async fn refuse(server: &Server, parts: &[Part]) -> (u16, Value) {
    refused(send(server, TRANSCRIPTIONS, parts).await).await
}

async fn refused(response: reqwest::Response) -> (u16, Value) {
    let status = response.status().as_u16();
    assert!(response.headers()["x-request-id"].to_str().unwrap().starts_with("req_"));
    let body: Value = response.json().await.unwrap();
    check_error(&body);
    (status, body["error"].clone())
}

fn keys(value: &Value) -> Vec<&str> {
    value.as_object().unwrap().keys().map(String::as_str).collect()
}

const USAGE: &str = r#"{"type":"duration","seconds":3}"#;

#[tokio::test]
async fn every_format_has_its_shape() {
    let server = start(settings()).await;
    let json = ask(&server, TRANSCRIPTIONS, &[]).await;
    assert_eq!(keys(&json), ["text", "usage"]);
    assert_eq!(json["usage"].to_string(), USAGE);
    let said = json["text"].as_str().unwrap();
    assert_eq!(said, said.trim());

    let (kind, plain) = text(&server, TRANSCRIPTIONS, &[("response_format", "text")]).await;
    assert_eq!((kind.as_str(), plain), ("text/plain; charset=utf-8", format!("{said}\n")));
    let (kind, srt) = text(&server, TRANSCRIPTIONS, &[("response_format", "srt")]).await;
    assert_eq!(kind, "text/plain; charset=utf-8");
    assert!(srt.is_empty() || srt.starts_with("1\n00:00:0") && srt.contains(" --> "), "{srt}");
    let (kind, vtt) = text(&server, TRANSCRIPTIONS, &[("response_format", "vtt")]).await;
    assert_eq!(kind, "text/vtt; charset=utf-8");
    assert!(vtt.starts_with("WEBVTT\n\n"), "{vtt}");
    let (kind, tsv) = text(&server, TRANSCRIPTIONS, &[("response_format", "tsv")]).await;
    assert_eq!(kind, "text/tab-separated-values; charset=utf-8");
    assert!(tsv.starts_with("start\tend\ttext\n"), "{tsv}");

    let verbose =
        ask(&server, TRANSCRIPTIONS, &[("response_format", "verbose_json"), ("language", "German")]).await;
    assert_eq!(keys(&verbose), ["task", "language", "duration", "text", "segments", "usage"]);
    assert_eq!((&verbose["task"], &verbose["language"]), (&json!("transcribe"), &json!("german")));
    assert_eq!(verbose["duration"], json!(3.0));
    let mut joined = String::new();
    for (id, segment) in verbose["segments"].as_array().unwrap().iter().enumerate() {
        assert_eq!(
            keys(segment),
            [
                "id",
                "seek",
                "start",
                "end",
                "text",
                "tokens",
                "temperature",
                "avg_logprob",
                "compression_ratio",
                "no_speech_prob"
            ]
        );
        assert_eq!(segment["id"], id);
        assert!(segment["start"].as_f64().unwrap() <= segment["end"].as_f64().unwrap());
        assert_eq!(segment["temperature"], json!(0.0));
        joined += segment["text"].as_str().unwrap();
    }
    assert_eq!(joined.trim(), verbose["text"]);
}

#[tokio::test]
async fn words_come_where_they_are_asked_for() {
    let server = start(settings()).await;
    let verbose = |more: &'static [(&str, &str)]| {
        let server = &server;
        let fields = [&[("response_format", "verbose_json")], more].concat();
        async move { ask(server, TRANSCRIPTIONS, &fields).await }
    };
    let words = verbose(&[("timestamp_granularities[]", "word")]).await;
    assert_eq!(keys(&words), ["task", "language", "duration", "text", "words", "usage"]);
    for word in words["words"].as_array().unwrap() {
        assert_eq!(keys(word), ["word", "start", "end"]);
        let text = word["word"].as_str().unwrap();
        assert!(!text.is_empty() && text == text.trim(), "{word}");
    }
    let both =
        verbose(&[("timestamp_granularities[]", "segment"), ("timestamp_granularities[]", "word")]).await;
    assert_eq!(both["words"], words["words"]);
    assert!(both["segments"].is_array());
    let inside = verbose(&[("word_timestamps", "true")]).await;
    assert!(inside.get("words").is_none());
    let of_segments = inside["segments"].as_array().unwrap().iter().map(|segment| &segment["words"]);
    let of_segments: Vec<&Value> = of_segments.flat_map(|words| words.as_array().unwrap()).collect();
    assert_eq!(of_segments.len(), words["words"].as_array().unwrap().len());
    for word in of_segments {
        assert_eq!(keys(word), ["word", "start", "end", "probability"]);
    }
}

#[tokio::test]
async fn tokens_have_probabilities() {
    let server = start(settings()).await;
    let fields = [("include[]", "logprobs"), ("languages[]", "en"), ("languages[]", "de")];
    let answer = ask(&server, TRANSCRIPTIONS, &fields).await;
    assert_eq!(keys(&answer), ["text", "logprobs", "languages", "usage"]);
    let code = answer["languages"][0]["code"].as_str().unwrap();
    assert!(["en", "de"].contains(&code), "{code}");
    let mut bytes = Vec::new();
    for token in answer["logprobs"].as_array().unwrap() {
        assert_eq!(keys(token), ["token", "logprob", "bytes"]);
        assert!(token["logprob"].as_f64().unwrap() <= 0.0);
        assert!(token["token"].is_string());
        bytes.extend(token["bytes"].as_array().unwrap().iter().map(|byte| byte.as_u64().unwrap() as u8));
    }
    assert!(!bytes.is_empty());
    let mut fields = quick(&fields);
    fields.push(field("stream", "true"));
    let response = send(&server, TRANSCRIPTIONS, &fields).await;
    let (pieces, _) = server::pieces(&response.text().await.unwrap());
    let (done, deltas) = pieces.split_last().unwrap();
    assert_eq!(done["logprobs"], answer["logprobs"]);
    assert_eq!(done["languages"], answer["languages"]);
    let all: Vec<&Value> = deltas.iter().flat_map(|piece| piece["logprobs"].as_array().unwrap()).collect();
    assert_eq!(all, answer["logprobs"].as_array().unwrap().iter().collect::<Vec<_>>());
}

#[tokio::test]
async fn pieces_make_the_whole() {
    let server = start(settings()).await;
    for (path, format) in [
        (TRANSCRIPTIONS, "json"),
        (TRANSCRIPTIONS, "text"),
        (TRANSCRIPTIONS, "verbose_json"),
        (TRANSLATIONS, "json"),
    ] {
        let whole = ask(&server, path, &[("response_format", "verbose_json")]).await;
        let response = send(&server, path, &quick(&[("stream", "True"), ("response_format", format)])).await;
        assert_eq!(response.status(), 200);
        assert_eq!(response.headers()["content-type"], "text/event-stream");
        assert_eq!(response.headers()["x-accel-buffering"], "no");
        let (pieces, complete) = server::pieces(&response.text().await.unwrap());
        assert!(complete);
        let (done, deltas) = pieces.split_last().unwrap();
        let text: String = deltas.iter().map(|piece| piece["delta"].as_str().unwrap()).collect();
        assert_eq!(json!(text), whole["text"]);
        assert_eq!((&done["type"], &done["text"]), (&json!("transcript.text.done"), &whole["text"]));
        assert!(deltas.iter().all(|piece| piece["type"] == "transcript.text.delta"));
        if format == "verbose_json" {
            assert_eq!(done["transcription"], whole);
            let segments: Vec<&Value> = deltas.iter().map(|piece| &piece["segment"]).collect();
            assert_eq!(segments, whole["segments"].as_array().unwrap().iter().collect::<Vec<_>>());
            assert!(deltas.iter().all(|piece| piece["duration"] == whole["duration"]));
        } else {
            assert_eq!(keys(done), ["type", "text"]);
            assert!(deltas.iter().all(|piece| keys(piece) == ["type", "delta"]));
        }
    }
    server.idle().await;
}

#[tokio::test]
async fn speakers_are_told_by_their_channels() {
    let server = start(settings()).await;
    let request = |wav: &[u8], more: &[(&str, &str)]| {
        let mut parts = quick(more);
        parts.push(field("response_format", "diarized_json"));
        parts.retain(|part| part.name != "file");
        parts.push(file(wav));
        parts
    };
    let response = send(&server, TRANSCRIPTIONS, &request(&stereo(), &[])).await;
    assert_eq!(response.status(), 200);
    let answer: Value = response.json().await.unwrap();
    assert_eq!(keys(&answer), ["task", "duration", "text", "segments", "usage"]);
    assert_eq!(answer["duration"], json!(3.0));
    let segments = answer["segments"].as_array().unwrap();
    for segment in segments {
        assert_eq!(keys(segment), ["type", "id", "start", "end", "text", "speaker"]);
        assert_eq!(segment["type"], "transcript.text.segment");
        assert!(["A", "B"].contains(&segment["speaker"].as_str().unwrap()), "{segment}");
    }
    let response = send(&server, TRANSCRIPTIONS, &request(&stereo(), &[("stream", "true")])).await;
    let (pieces, _) = server::pieces(&response.text().await.unwrap());
    let spoken: Vec<&Value> =
        pieces.iter().filter(|piece| piece["type"] == "transcript.text.segment").collect();
    assert_eq!(spoken, segments.iter().collect::<Vec<_>>());
    let (status, error) = refuse(&server, &request(&speech(), &[])).await;
    assert_eq!((status, &error["param"]), (400, &json!("response_format")));
    assert!(error["message"].as_str().unwrap().contains("channels"), "{error}");
    for name in ["known_speaker_names[]", "known_speaker_references[]", "diarize"] {
        let (status, error) = refuse(&server, &quick(&[(name, "Anna")])).await;
        assert_eq!((status, &error["code"]), (400, &json!("unsupported_parameter")), "{name}");
        assert_eq!(error["param"], name.trim_end_matches("[]"));
    }
}

#[tokio::test]
async fn translations_are_english() {
    let server = start(settings()).await;
    let json = ask(&server, TRANSLATIONS, &[]).await;
    assert_eq!(keys(&json), ["text", "usage"]);
    let fields = [("response_format", "verbose_json"), ("language", "de")];
    let verbose = ask(&server, TRANSLATIONS, &fields).await;
    assert_eq!((&verbose["task"], &verbose["language"]), (&json!("translate"), &json!("english")));
    let by_task = ask(&server, TRANSCRIPTIONS, &[&fields[..], &[("task", "translate")]].concat()).await;
    assert_eq!(by_task, verbose);
}

/// Clients put the file first, last, or anywhere, and their lists in many forms.
#[tokio::test]
async fn a_form_is_taken_in_any_order_and_in_any_pieces() {
    let server = start(settings()).await;
    let expected = ask(&server, TRANSCRIPTIONS, &[("response_format", "verbose_json")]).await;
    let parts = quick(&[("response_format", "verbose_json"), ("prompt", ""), ("stream", "false")]);
    for rotation in 0..parts.len() {
        let mut rotated = parts.clone();
        rotated.rotate_left(rotation);
        let response = send(&server, TRANSCRIPTIONS, &rotated).await;
        assert_eq!(response.json::<Value>().await.unwrap(), expected, "{rotation}");
    }
    // Without a length, in pieces that end anywhere, and with boundaries in quotes.
    let whole = body(&parts);
    for size in [1009, 7] {
        let end = whole.len().min(size * 5000);
        let mut pieces: Vec<Vec<u8>> = whole[..end].chunks(size).map(<[u8]>::to_vec).collect();
        pieces.push(whole[end..].to_vec());
        let pieces = stream::iter(pieces.into_iter().map(Ok::<_, std::io::Error>));
        let kind = format!("Multipart/Form-Data; charset=utf-8; boundary=\"{BOUNDARY}\"");
        let body = reqwest::Body::wrap_stream(pieces);
        let response = send_bytes(&server, TRANSCRIPTIONS, &kind, body).await;
        assert_eq!(response.json::<Value>().await.unwrap(), expected, "{size}");
    }
}

#[tokio::test]
async fn what_is_wrong_with_a_request_is_said() {
    let server = start(settings()).await;
    for (more, code, param) in [
        (("model", "gpt-5"), "model_not_found", "model"),
        (("response_format", "xml"), "invalid_value", "response_format"),
        (("language", "hh"), "invalid_value", "language"),
        (("languages[]", "hh"), "invalid_value", "languages"),
        (("temperature", "2"), "decimal_above_max_value", "temperature"),
        (("temperature", "hot"), "invalid_type", "temperature"),
        (("stream", "perhaps"), "invalid_type", "stream"),
        (("timestamp_granularities[]", "word"), "unsupported_parameter", "timestamp_granularities"),
        (("include[]", "everything"), "invalid_value", "include"),
        (("beam_size", "0"), "integer_below_min_value", "beam_size"),
        (("chunking_strategy[type]", "x"), "invalid_value", "chunking_strategy.type"),
        (("chunking_strategy", "{}"), "missing_required_parameter", "chunking_strategy.type"),
        (("prompt", &"x".repeat(70_000)), "string_above_max_length", "prompt"),
        (("repetition_penalty", "2"), "unsupported_parameter", "repetition_penalty"),
        (("max_new_tokens", "5"), "invalid_value", "max_new_tokens"),
        (("file", "again"), "invalid_value", "file"),
    ] {
        let mut parts = quick(&[more]);
        if more.0 == "model" {
            parts.remove(0);
        }
        for _ in 0..2 {
            let (status, error) = refuse(&server, &parts).await;
            assert_eq!(status, if code == "model_not_found" { 404 } else { 400 }, "{more:?}: {error}");
            assert_eq!((&error["code"], &error["param"]), (&json!(code), &json!(param)), "{more:?}: {error}");
            assert_eq!(error["type"], "invalid_request_error");
            assert!(error["message"].as_str().unwrap().len() < 600);
            // The file may come before anything is known to be wrong.
            parts.reverse();
        }
    }
    for missing in ["model", "file"] {
        let mut parts = quick(&[]);
        parts.retain(|part| part.name != missing);
        let (status, error) = refuse(&server, &parts).await;
        assert_eq!((status, &error["code"]), (400, &json!("missing_required_parameter")));
        assert_eq!(error["param"], missing);
    }
    for (content, code) in [(&b""[..], "invalid_audio"), (b"hello, this is no sound", "invalid_audio_format")]
    {
        let mut parts = quick(&[]);
        parts.retain(|part| part.name != "file");
        parts.push(file(content));
        let (status, error) = refuse(&server, &parts).await;
        assert_eq!((status, &error["code"], &error["param"]), (400, &json!(code), &json!("file")));
    }
    server.idle().await;
    ask(&server, TRANSCRIPTIONS, &[]).await;
}

#[tokio::test]
async fn broken_forms_are_refused_and_harm_nobody() {
    let server = start(settings()).await;
    let form = format!("multipart/form-data; boundary={BOUNDARY}");
    let whole = body(&quick(&[]));
    let long_name =
        format!("--{BOUNDARY}\r\nContent-Disposition: form-data; name=\"{}\"", "n".repeat(1 << 20));
    let many: Vec<Part> = (0..600).map(|index| field(&format!("keywords[{index}]"), "x")).collect();
    for (kind, body, status) in [
        (form.as_str(), whole[..whole.len() - 10].to_vec(), 400),
        (&form, whole[..200].to_vec(), 400),
        (&form, Vec::new(), 400),
        (&form, b"no form at all".to_vec(), 400),
        (&form, long_name.into_bytes(), 400),
        (&form, body(&many), 400),
        ("multipart/form-data; boundary=another", whole.clone(), 400),
        ("multipart/form-data", whole.clone(), 400),
        ("multipart/form-data; boundary=", whole.clone(), 400),
        (&format!("multipart/form-data; boundary={}", "b".repeat(300)), whole.clone(), 400),
        ("multipart/mixed; boundary=a-boundary", whole.clone(), 415),
        ("application/json", b"{\"model\": \"whisper\"}".to_vec(), 400),
        ("application/x-www-form-urlencoded", b"model=whisper".to_vec(), 415),
    ] {
        let (status_found, error) =
            refused(send_bytes(&server, TRANSCRIPTIONS, kind, body.into()).await).await;
        assert_eq!(status_found, status, "{kind}: {error}");
        assert_eq!(error["type"], "invalid_request_error");
    }
    let (status, _) = refused(server.get(TRANSCRIPTIONS).await).await;
    assert_eq!(status, 405);
    server.idle().await;
}

#[tokio::test]
async fn limits_hold_at_their_value_and_not_beyond() {
    let limited = |bytes: usize, seconds| Settings {
        max_audio_bytes: Some(bytes.to_string().parse().unwrap()),
        max_audio_seconds: Some(seconds),
        ..settings()
    };
    let size = speech().len();
    let exact = start(limited(size, 3)).await;
    ask(&exact, TRANSCRIPTIONS, &[]).await;
    let small = start(limited(size - 1, 3)).await;
    let (status, error) = refuse(&small, &quick(&[])).await;
    assert_eq!((status, &error["code"]), (413, &json!("request_too_large")));
    assert!(error["message"].as_str().unwrap().contains(&(size - 1).to_string()), "{error}");
    // Told by the length that the body says it has, and while a body without one is read.
    let mut large = quick(&[]);
    large.push(file(&vec![0; 5 << 20]));
    assert_eq!(refuse(&small, &large).await.0, 413);
    let pieces = stream::iter(body(&large).chunks(1 << 16).map(<[u8]>::to_vec).collect::<Vec<_>>());
    let endless = reqwest::Body::wrap_stream(pieces.map(Ok::<_, std::io::Error>));
    let kind = format!("multipart/form-data; boundary={BOUNDARY}");
    assert_eq!(refused(send_bytes(&small, TRANSCRIPTIONS, &kind, endless).await).await.0, 413);
    let short = start(limited(size, 2)).await;
    let (status, error) = refuse(&short, &quick(&[])).await;
    assert_eq!((status, &error["code"], &error["param"]), (400, &json!("audio_too_long"), &json!("file")));
    assert!(error["message"].as_str().unwrap().contains("2 seconds"), "{error}");
}

#[tokio::test]
async fn fields_without_effect_are_named_or_refused() {
    let server = start(settings()).await;
    let fields = quick(&[("user", "me"), ("filter_length", "3"), ("foo[bar]", "1")]);
    let response = send(&server, TRANSCRIPTIONS, &fields).await;
    assert_eq!(response.status(), 200);
    assert_eq!(response.headers()["x-ignored-params"], "filter_length, foo, user");
    let strict = start(Settings { strict_params: Some(true), ..settings() }).await;
    let (status, error) = refuse(&strict, &fields).await;
    assert_eq!((status, &error["code"]), (400, &Value::Null));
    assert!(error["message"].as_str().unwrap().contains("filter_length"), "{error}");
    assert_eq!(send(&strict, TRANSCRIPTIONS, &quick(&[("user", "me")])).await.status(), 200);
}

#[tokio::test]
async fn models_do_what_they_are_for() {
    let both = [support::llava(), support::whisper()].map(|folder| folder.to_str().unwrap().to_owned());
    let server =
        start(Settings { model: both.into(), hosted_names: Some(false), ..Settings::default() }).await;
    let list: Value = server.get("/v1/models").await.json().await.unwrap();
    let tasks: Vec<(&str, &str)> = list["data"]
        .as_array()
        .unwrap()
        .iter()
        .map(|model| (model["id"].as_str().unwrap(), model["task"].as_str().unwrap()))
        .collect();
    assert_eq!(tasks, [("llava", "image-text-to-text"), ("whisper", "automatic-speech-recognition")]);
    let mut parts = quick(&[]);
    parts[0] = field("model", "llava");
    let (status, error) = refuse(&server, &parts).await;
    assert_eq!(
        (status, &error["code"], &error["param"]),
        (400, &json!("model_not_supported"), &json!("model"))
    );
    let message = error["message"].as_str().unwrap();
    assert!(message.contains("`llava` is a chat model; it cannot transcribe") && message.contains("whisper"));
    let mut request = words("hello");
    request["model"] = json!("whisper");
    let (status, error) = server.refuse(&request).await;
    assert_eq!(
        (status, &error["code"], &error["param"]),
        (400, &json!("model_not_supported"), &json!("model"))
    );
    ask(&server, TRANSCRIPTIONS, &[]).await;
    server.ask(&words("hello")).await;
}

#[tokio::test]
async fn a_file_among_others_has_the_text_that_it_has_alone() {
    let server = start(settings()).await;
    let fields = [("response_format", "verbose_json"), ("word_timestamps", "1")];
    let alone = ask(&server, TRANSCRIPTIONS, &fields).await;
    let all = (0..16).map(|_| ask(&server, TRANSCRIPTIONS, &fields));
    for answer in futures_util::future::join_all(all).await {
        assert_eq!(answer, alone);
    }
    server.idle().await;
}

#[tokio::test]
async fn leaving_ends_the_work() {
    let server = start(settings()).await;
    let long: Vec<u8> = {
        let mut wav = speech();
        let data = wav[44..].repeat(100);
        wav.truncate(44);
        wav[4..8].copy_from_slice(&(data.len() as u32 + 36).to_le_bytes());
        wav[40..44].copy_from_slice(&(data.len() as u32).to_le_bytes());
        wav.extend(data);
        wav
    };
    let parts = |stream: &str| {
        let slow = [("model", "whisper"), ("beam_size", "8"), ("best_of", "8"), ("stream", stream)];
        let mut parts: Vec<Part> = slow.iter().map(|(name, text)| field(name, text)).collect();
        parts.push(file(&long));
        parts
    };
    // A stream that is read once, and an answer that is not waited for.
    let mut response = send(&server, TRANSCRIPTIONS, &parts("true")).await;
    assert_eq!(response.status(), 200);
    let _ = tokio::time::timeout(Duration::from_millis(200), response.chunk()).await;
    drop(response);
    let whole = parts("false");
    let waiting = send(&server, TRANSCRIPTIONS, &whole);
    assert!(tokio::time::timeout(Duration::from_millis(300), waiting).await.is_err());
    server.idle().await;
    ask(&server, TRANSCRIPTIONS, &[]).await;
}

#[tokio::test]
async fn a_full_queue_is_told_before_the_file_is_sent() {
    let server = start(Settings { max_queue: Some(1), ..settings() }).await;
    let places: Vec<_> = {
        let models = server.app.models().unwrap();
        let speech = models.models()[0].speech().unwrap();
        std::iter::from_fn(|| speech.handle().reserve().ok()).collect()
    };
    assert!(!places.is_empty());
    // The file never comes.
    let head = format!(
        "--{BOUNDARY}\r\nContent-Disposition: form-data; name=\"model\"\r\n\r\nwhisper\r\n--{BOUNDARY}"
    );
    let response = send_bytes(
        &server,
        TRANSCRIPTIONS,
        &format!("multipart/form-data; boundary={BOUNDARY}"),
        reqwest::Body::wrap_stream(
            stream::once(async { Ok::<_, std::io::Error>(head) }).chain(stream::pending()),
        ),
    )
    .await;
    assert!(response.headers().contains_key("retry-after"));
    let (status, error) = refused(response).await;
    assert_eq!((status, &error["code"]), (429, &json!("engine_overloaded")));
    drop(places);
    ask(&server, TRANSCRIPTIONS, &[]).await;
}

/// A picture, a question that is spoken and written words, in one request.
#[tokio::test]
async fn what_is_said_in_a_conversation_is_as_if_it_were_written() {
    let model = |name: &str| format!("{name}={}/assets/demo/percept-demo-{name}", env!("CARGO_MANIFEST_DIR"));
    let settings = Settings { model: vec![model("vlm"), model("whisper")], ..Settings::default() };
    let server = start(settings).await;
    let sample = |name: &str| {
        std::fs::read(format!("{}/assets/demo/samples/{name}", env!("CARGO_MANIFEST_DIR"))).unwrap()
    };
    let wav = sample("sentence.wav");
    let parts = [field("model", "whisper"), file(&wav)];
    let transcript: Value = send(&server, TRANSCRIPTIONS, &parts).await.json().await.unwrap();
    let said = transcript["text"].as_str().unwrap();
    assert!(said.len() > 10, "{said}");

    let picture = server::image_part(&server::data_url_of(&sample("shapes.png")));
    let ask = |first: Value| {
        let content = json!([picture, first, {"type": "text", "text": " How many shapes are there?"}]);
        json!({"model": "vlm", "messages": [{"role": "user", "content": content}], "temperature": 0, "max_tokens": 20})
    };
    let recording =
        |data: String| json!({"type": "input_audio", "input_audio": {"data": data, "format": "mp3"}});
    let written = server.ask(&ask(json!({"type": "text", "text": said}))).await;
    let base64 = STANDARD.encode(&wav);
    for data in [base64.clone(), format!("data:audio/wav;base64,{base64}")] {
        let spoken = server.ask(&ask(recording(data))).await;
        assert_eq!(spoken["choices"][0]["message"], written["choices"][0]["message"]);
        assert_eq!(spoken["usage"]["prompt_tokens"], written["usage"]["prompt_tokens"]);
    }
    for (data, code) in [
        (STANDARD.encode(sample("shapes.png")), "invalid_audio_format"),
        ("!".to_owned(), "invalid_audio"),
        (String::new(), "invalid_audio"),
    ] {
        let (status, error) = server.refuse(&ask(recording(data))).await;
        let param = "messages[0].content[1].input_audio";
        assert_eq!((status, error["code"].as_str(), error["param"].as_str()), (400, Some(code), Some(param)));
    }
    server.idle().await;
}
