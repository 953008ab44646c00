//! Speech that is written down while it is said, through a WebSocket.
#![allow(clippy::unwrap_used, reason = "tests")]

mod support;

use std::{num::NonZeroU32, time::Duration};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use futures_util::{SinkExt as _, StreamExt as _};
use percept::{
    access::{Area, KeyFile, Terms},
    config::Settings,
};
use serde_json::{Value, json};
use support::server::{Server, raw, start};
use tempfile::TempDir;
use tokio::{net::TcpStream, time::timeout};
use tokio_tungstenite::{
    MaybeTlsStream, WebSocketStream, connect_async,
    tungstenite::{Error, Message, client::IntoClientRequest as _, http::Response},
};

/// What the sample says, as the demonstration model hears it.
const TRANSCRIPTIONS: &str = "/v1/audio/transcriptions";

fn settings() -> Settings {
    let model = format!("whisper={}/assets/demo/percept-demo-whisper", env!("CARGO_MANIFEST_DIR"));
    Settings { model: vec![model], ..Settings::default() }
}

/// The sample, at 16 kHz.
fn speech() -> Vec<i16> {
    let path = format!("{}/assets/demo/samples/sentence.wav", env!("CARGO_MANIFEST_DIR"));
    let wav = std::fs::read(path).unwrap();
    wav[44..].chunks_exact(2).map(|pair| i16::from_le_bytes([pair[0], pair[1]])).collect()
}

fn silence(seconds: f64) -> Vec<i16> {
    vec![0; (seconds * 16_000.0) as usize]
}

/// As `audio/pcm`: between two samples of three at 24 kHz.
fn pcm(samples: &[i16]) -> Vec<u8> {
    let at = |place: f64| {
        let (index, part) = (place as usize, place.fract());
        let next = samples.get(index + 1).or(samples.last()).copied().unwrap_or(0);
        f64::from(samples[index]) * (1.0 - part) + f64::from(next) * part
    };
    let count = samples.len() * 3 / 2;
    (0..count).flat_map(|index| (at(index as f64 / 1.5) as i16).to_le_bytes()).collect()
}

/// As G.711 has it: the nearest of 256 levels, at 8 kHz.
fn mu_law(samples: &[i16]) -> Vec<u8> {
    let encode = |sample: i32| {
        let level = (sample.abs() + 132).min(32_767);
        let exponent = (7..15).rev().find(|bit| level >> bit & 1 == 1).unwrap_or(7) - 7;
        let sign = if sample < 0 { 0x80 } else { 0 };
        !(sign | exponent << 4 | level >> (exponent + 3) & 0xf) as u8
    };
    samples.chunks_exact(2).map(|pair| encode((i32::from(pair[0]) + i32::from(pair[1])) / 2)).collect()
}

struct Client {
    socket: WebSocketStream<MaybeTlsStream<TcpStream>>,
    response: Response<Option<Vec<u8>>>,
}

impl Client {
    /// Connects with these headers; the status and the body where that is refused.
    async fn connect(
        server: &Server,
        path: &str,
        headers: &[(&'static str, &str)],
    ) -> Result<Self, (u16, Value)> {
        let mut request = server.path(path).replace("http://", "ws://").into_client_request().unwrap();
        for (name, value) in headers {
            request.headers_mut().insert(*name, value.parse().unwrap());
        }
        match connect_async(request).await {
            Ok((socket, response)) => Ok(Self { socket, response }),
            Err(Error::Http(response)) => {
                let (status, body) = (response.status().as_u16(), response.into_body().unwrap_or_default());
                Err((status, serde_json::from_slice(&body).unwrap_or(Value::Null)))
            }
            Err(other) => panic!("{other}"),
        }
    }

    /// A session as it begins.
    async fn begin(server: &Server) -> Self {
        let mut client = Self::connect(server, "/v1/realtime?intent=transcription", &[]).await.ok().unwrap();
        let created = client.next().await;
        assert_eq!(created["type"], "session.created");
        client
    }

    async fn send(&mut self, event: &Value) {
        self.socket.send(Message::text(event.to_string())).await.unwrap();
    }

    /// The next event.
    async fn next(&mut self) -> Value {
        loop {
            let message = timeout(Duration::from_secs(120), self.socket.next()).await.expect("nothing comes");
            match message.expect("the server has left").unwrap() {
                Message::Text(text) => {
                    let event: Value = serde_json::from_str(&text).unwrap();
                    assert!(event["event_id"].as_str().unwrap().starts_with("event_"), "{event}");
                    return event;
                }
                Message::Ping(_) | Message::Pong(_) => {}
                other => panic!("{other:?}"),
            }
        }
    }

    /// The next event, which must be of this type.
    async fn expect(&mut self, kind: &str) -> Value {
        let event = self.next().await;
        assert_eq!(event["type"], kind, "{event}");
        event
    }

    /// Events up to the first of this type.
    async fn until(&mut self, kind: &str) -> Vec<Value> {
        let mut events = vec![self.next().await];
        while events.last().unwrap()["type"] != kind {
            events.push(self.next().await);
        }
        events
    }

    /// Events up to one of these ends of a transcription.
    async fn until_any(&mut self, ends: &[&str]) -> Vec<Value> {
        let mut events = Vec::new();
        loop {
            let event = self.next().await;
            let kind = event["type"].as_str().unwrap().to_owned();
            events.push(event);
            if ends.iter().any(|end| kind == format!("conversation.item.input_audio_transcription.{end}")) {
                return events;
            }
        }
    }

    /// How the server closes, behind its last event.
    async fn closed(&mut self) -> u16 {
        loop {
            match timeout(Duration::from_secs(60), self.socket.next()).await.unwrap() {
                Some(Ok(Message::Close(Some(frame)))) => return frame.code.into(),
                Some(Ok(Message::Ping(_) | Message::Pong(_))) => {}
                other => panic!("{other:?}"),
            }
        }
    }

    async fn append(&mut self, sound: &[u8]) {
        // As a microphone does, a tenth of a second at once.
        for piece in sound.chunks(4800) {
            self.send(&json!({"type": "input_audio_buffer.append", "audio": STANDARD.encode(piece)})).await;
        }
    }

    async fn update(&mut self, input: &Value) -> Value {
        let session = json!({"type": "transcription", "audio": {"input": input}});
        self.send(&json!({"type": "session.update", "session": session})).await;
        self.expect("session.updated").await["session"].clone()
    }

    async fn wrong(&mut self, event: &Value) -> Value {
        self.send(event).await;
        self.expect("error").await["error"].clone()
    }
}

fn kinds(events: &[Value]) -> Vec<&str> {
    let kinds = events.iter().map(|event| event["type"].as_str().unwrap());
    kinds.filter(|kind| !kind.ends_with(".delta")).collect()
}

fn deltas(events: &[Value]) -> String {
    let deltas = events.iter().filter(|event| event["type"].as_str().unwrap().ends_with(".delta"));
    deltas.map(|event| event["delta"].as_str().unwrap()).collect()
}

/// What the path for files says to the sample.
async fn said(server: &Server) -> String {
    let path = format!("{}/assets/demo/samples/sentence.wav", env!("CARGO_MANIFEST_DIR"));
    let form = reqwest::Client::new().post(server.path(TRANSCRIPTIONS));
    let boundary = "b0undary";
    let mut body = format!("--{boundary}\r\ncontent-disposition: form-data; name=\"model\"\r\n\r\nwhisper\r\n--{boundary}\r\ncontent-disposition: form-data; name=\"file\"; filename=\"a.wav\"\r\n\r\n").into_bytes();
    body.extend(std::fs::read(path).unwrap());
    body.extend(format!("\r\n--{boundary}--\r\n").into_bytes());
    let kind = format!("multipart/form-data; boundary={boundary}");
    let answer: Value =
        form.header("content-type", kind).body(body).send().await.unwrap().json().await.unwrap();
    let text = answer["text"].as_str().unwrap().to_owned();
    assert!(text.len() > 10, "{text}");
    text
}

#[tokio::test]
async fn turns_are_found_and_written_down() {
    let server = start(settings()).await;
    let said = said(&server).await;
    let mut client = Client::begin(&server).await;
    let mut sound = silence(1.0);
    for _ in 0..2 {
        sound.extend(speech());
        sound.extend(silence(1.5));
    }
    client.append(&pcm(&sound)).await;
    let completed = "conversation.item.input_audio_transcription.completed";
    let mut all = client.until(completed).await;
    all.extend(client.until(completed).await);
    let of = |kind: &str| -> Vec<&Value> { all.iter().filter(|event| event["type"] == kind).collect() };
    let mut previous = &Value::Null;
    for turn in 0..2 {
        let item = &of(completed)[turn]["item_id"];
        assert!(item.as_str().unwrap().starts_with("item_"));
        let of_item = |event: &&Value| event["item_id"] == *item || event["item"]["id"] == *item;
        let events: Vec<Value> = all.iter().filter(of_item).cloned().collect();
        let expected = [
            "input_audio_buffer.speech_started",
            "input_audio_buffer.speech_stopped",
            "input_audio_buffer.committed",
            "conversation.item.added",
            "conversation.item.done",
            completed,
        ];
        assert_eq!(kinds(&events), expected);
        assert_eq!(deltas(&events), said);
        let last = events.last().unwrap();
        assert_eq!((last["transcript"].as_str(), &last["content_index"]), (Some(&*said), &json!(0)));
        assert_eq!(last["usage"]["type"], "duration");
        assert_eq!(of("input_audio_buffer.committed")[turn]["previous_item_id"], *previous);
        previous = item;
    }
    // The sound begins with a second of silence; 300 ms in front of speech belong to it.
    let begins = of("input_audio_buffer.speech_started")[0]["audio_start_ms"].as_u64().unwrap();
    assert!((600..1500).contains(&begins), "{begins}");
    let ends = of("input_audio_buffer.speech_stopped")[0]["audio_end_ms"].as_u64().unwrap();
    assert!((begins + 2000..6000).contains(&ends), "{ends}");
    drop(client);
    server.idle().await;
}

#[tokio::test]
async fn what_is_said_is_told_while_it_is_said() {
    let server = start(settings()).await;
    let began = std::time::Instant::now();
    let said = said(&server).await;
    // A piece takes no longer than all of it, and then the server waits as long again.
    let enough = Duration::from_millis(1500).max(4 * began.elapsed());
    let mut client = Client::begin(&server).await;
    client.update(&json!({"turn_detection": null})).await;
    // Some of it at a time, and it is understood before more comes.
    let sound = pcm(&speech());
    let mut events = Vec::new();
    for piece in sound.chunks(36_000) {
        client.append(piece).await;
        if let Ok(event) = timeout(enough, client.next()).await {
            events.push(event);
        }
    }
    client.send(&json!({"type": "input_audio_buffer.commit"})).await;
    let before = events.len();
    events.extend(client.until("conversation.item.input_audio_transcription.completed").await);
    assert_eq!(events.last().unwrap()["transcript"], said.as_str());
    // What was told stays: all pieces are of one item, and make its text or the beginning of it.
    let item = &events.last().unwrap()["item_id"];
    let pieces: Vec<&Value> =
        events.iter().filter(|event| event["type"].as_str().unwrap().ends_with(".delta")).collect();
    assert!(pieces.iter().all(|piece| piece["item_id"] == *item && piece["content_index"] == 0));
    assert!(before > 0, "nothing was told while it was said");
    assert_eq!(deltas(&events), said);
    drop(client);
    server.idle().await;
}

#[tokio::test]
async fn every_format_and_both_shapes_are_taken() {
    let server = start(settings()).await;
    let said = said(&server).await;
    let mut client = Client::begin(&server).await;
    let session = client
        .update(&json!({
            "format": {"type": "audio/pcmu"},
            "transcription": {"model": "whisper", "language": "en", "prompt": "kitchen"},
            "turn_detection": null,
            "noise_reduction": {"type": "near_field"},
        }))
        .await;
    let input = &session["audio"]["input"];
    assert_eq!(
        (session["type"].as_str(), session["object"].as_str()),
        (Some("transcription"), Some("realtime.transcription_session"))
    );
    assert_eq!(input["format"], json!({"type": "audio/pcmu"}));
    assert_eq!(input["transcription"], json!({"model": "whisper", "language": "en", "prompt": "kitchen"}));
    assert_eq!((&input["turn_detection"], &input["noise_reduction"]), (&Value::Null, &Value::Null));
    // What is not said stays.
    let session = client.update(&json!({"transcription": {"language": "en"}})).await;
    assert_eq!(
        (&session["audio"]["input"]["format"]["type"], &session["audio"]["input"]["turn_detection"]),
        (&json!("audio/pcmu"), &Value::Null)
    );
    client.append(&mu_law(&speech())).await;
    client.send(&json!({"type": "input_audio_buffer.commit"})).await;
    let events = client.until("conversation.item.input_audio_transcription.completed").await;
    assert_eq!(
        kinds(&events)[..3],
        ["input_audio_buffer.committed", "conversation.item.added", "conversation.item.done"]
    );
    let heard = events.last().unwrap()["transcript"].as_str().unwrap();
    let same = heard.split(' ').zip(said.split(' ')).filter(|(a, b)| a == b).count();
    assert!(2 * same >= said.split(' ').count(), "{heard} is not {said}");

    // The older shape, with what the older client sends.
    let mut older = Client::connect(&server, "/v1/realtime?model=whisper", &[("openai-beta", "realtime=v1")])
        .await
        .ok()
        .unwrap();
    older.expect("session.created").await;
    let session = json!({
        "input_audio_format": "pcm16",
        "input_audio_transcription": {"model": "whisper", "language": "en"},
        "turn_detection": {"type": "server_vad", "threshold": 0.6, "prefix_padding_ms": 200, "silence_duration_ms": 400},
        "include": ["item.input_audio_transcription.logprobs"],
    });
    older.send(&json!({"type": "transcription_session.update", "session": session})).await;
    let updated = older.expect("transcription_session.updated").await["session"].clone();
    assert_eq!(updated["input_audio_format"], "pcm16");
    assert_eq!(updated["turn_detection"]["silence_duration_ms"], 400);
    assert_eq!(updated["include"], session["include"]);
    older.append(&pcm(&[speech(), silence(1.0)].concat())).await;
    let events = older.until("conversation.item.input_audio_transcription.completed").await;
    assert_eq!(
        kinds(&events),
        [
            "input_audio_buffer.speech_started",
            "input_audio_buffer.speech_stopped",
            "input_audio_buffer.committed",
            "conversation.item.created",
            "conversation.item.input_audio_transcription.completed"
        ]
    );
    let last = events.last().unwrap();
    assert_eq!(last["transcript"], said.as_str());
    let tokens: String =
        last["logprobs"].as_array().unwrap().iter().map(|token| token["token"].as_str().unwrap()).collect();
    assert_eq!(tokens.trim(), said);
    assert!(
        last["logprobs"].as_array().unwrap().iter().all(|token| token["logprob"].as_f64().unwrap() <= 0.0)
    );
}

#[tokio::test]
async fn what_is_wrong_is_told_and_the_session_goes_on() {
    let server = start(settings()).await;
    let mut client = Client::begin(&server).await;
    let update = |session: Value| json!({"type": "session.update", "session": session});
    let input = |input: Value| update(json!({"type": "transcription", "audio": {"input": input}}));
    for (event, code, param) in [
        (json!({}), Some("missing_required_parameter"), Some("type")),
        (json!({"type": 1}), Some("invalid_type"), Some("type")),
        (json!({"type": "input_audio_buffer.appendix"}), Some("invalid_value"), Some("type")),
        (json!({"type": "response.create"}), Some("unsupported_parameter"), Some("type")),
        (json!({"type": "conversation.item.create"}), Some("unsupported_parameter"), Some("type")),
        (json!({"type": "input_audio_buffer.append"}), Some("missing_required_parameter"), Some("audio")),
        (json!({"type": "input_audio_buffer.append", "audio": "!"}), Some("invalid_audio"), Some("audio")),
        (json!({"type": "input_audio_buffer.append", "audio": [1]}), Some("invalid_type"), Some("audio")),
        (json!({"type": "input_audio_buffer.commit"}), Some("input_audio_buffer_commit_empty"), None),
        (json!({"type": "session.update"}), Some("missing_required_parameter"), Some("session")),
        (update(json!({"type": "realtime"})), Some("invalid_value"), Some("session.type")),
        (update(json!({"include": ["x"]})), Some("invalid_value"), Some("session.include")),
        (
            update(json!({"input_audio_format": "mp3"})),
            Some("invalid_value"),
            Some("session.input_audio_format"),
        ),
        (
            input(json!({"format": {"type": "audio/mp3"}})),
            Some("invalid_value"),
            Some("session.audio.input.format.type"),
        ),
        (
            input(json!({"format": {"type": "audio/pcm", "rate": 16000}})),
            Some("invalid_value"),
            Some("session.audio.input.format.rate"),
        ),
        (input(json!({"transcription": {"model": "x"}})), Some("model_not_found"), Some("model")),
        (
            input(json!({"transcription": {"language": "klingon"}})),
            Some("invalid_value"),
            Some("session.audio.input.transcription.language"),
        ),
        (
            input(json!({"transcription": {"prompt": "a".repeat(70_000)}})),
            Some("string_above_max_length"),
            Some("session.audio.input.transcription.prompt"),
        ),
        (
            input(json!({"turn_detection": {"type": "semantic_vad"}})),
            Some("invalid_value"),
            Some("session.audio.input.turn_detection.type"),
        ),
        (
            input(json!({"turn_detection": {"threshold": 1.5}})),
            Some("decimal_above_max_value"),
            Some("session.audio.input.turn_detection.threshold"),
        ),
        (
            input(json!({"turn_detection": {"silence_duration_ms": -1}})),
            Some("integer_below_min_value"),
            Some("session.audio.input.turn_detection.silence_duration_ms"),
        ),
        (
            input(json!({"turn_detection": {"idle_timeout_ms": 5000}})),
            Some("unsupported_parameter"),
            Some("session.audio.input.turn_detection.idle_timeout_ms"),
        ),
    ] {
        let mut event = event;
        event["event_id"] = json!("mine");
        let error = client.wrong(&event).await;
        assert_eq!((error["code"].as_str(), error["param"].as_str()), (code, param), "{event}: {error}");
        assert_eq!(
            (&error["type"], &error["event_id"]),
            (&json!("invalid_request_error"), &json!("mine")),
            "{event}"
        );
        assert!(!error["message"].as_str().unwrap().is_empty());
    }
    for text in ["", "{", "[]", "null", "\"x\"", "{\"type\": \"input_audio_buffer.commit\"} x"] {
        client.socket.send(Message::text(text)).await.unwrap();
        let error = client.expect("error").await;
        assert_eq!(error["error"]["type"], "invalid_request_error", "{text}: {error}");
    }
    client.socket.send(Message::binary(vec![0; 100])).await.unwrap();
    client.expect("error").await;
    // One byte more than a message may have.
    client.socket.send(Message::text(" ".repeat((15 << 20) + 1))).await.unwrap();
    assert_eq!(client.expect("error").await["error"]["code"], "request_too_large");
    // More than a buffer holds, where nobody ends a turn.
    client.update(&json!({"format": {"type": "audio/pcma"}, "turn_detection": null})).await;
    let minutes = STANDARD.encode(vec![0xd5; 8000 * 60 * 6]);
    client.send(&json!({"type": "input_audio_buffer.append", "audio": minutes})).await;
    let error = client.wrong(&json!({"type": "input_audio_buffer.append", "audio": minutes})).await;
    assert_eq!(error["code"], "input_audio_buffer_full");
    client.send(&json!({"type": "input_audio_buffer.clear"})).await;
    client.expect("input_audio_buffer.cleared").await;
    assert_eq!(
        client.wrong(&json!({"type": "input_audio_buffer.commit"})).await["code"],
        "input_audio_buffer_commit_empty"
    );
    // It works as before.
    client.update(&json!({"format": {"type": "audio/pcm", "rate": 24000}})).await;
    client.append(&pcm(&speech())).await;
    client.send(&json!({"type": "input_audio_buffer.commit"})).await;
    client.until("conversation.item.input_audio_transcription.completed").await;
}

#[tokio::test]
async fn who_may_not_connect_is_told_in_http() {
    let keys = TempDir::new().unwrap();
    let file = keys.path().join("keys.toml");
    let add =
        |tenant: &str, terms: Terms| KeyFile::change(&file, |keys| keys.add(tenant, terms, None)).unwrap().0;
    let key = add("acme", Terms::default());
    let chat = add("chatty", Terms { endpoints: Some(vec![Area::Chat]), ..Terms::default() });
    let server = start(Settings { keys: Some(file), max_realtime_sessions: Some(2), ..settings() }).await;
    let bearer = format!("Bearer {key}");
    let status = |result: Result<Client, (u16, Value)>| {
        result.err().map(|(status, error)| (status, error["error"]["code"].as_str().map(str::to_owned)))
    };
    let path = "/v1/realtime?model=whisper";
    let with = |key: &str| format!("Bearer {key}");
    assert_eq!(
        status(Client::connect(&server, path, &[]).await),
        Some((401, Some("invalid_api_key".into())))
    );
    assert_eq!(
        status(Client::connect(&server, path, &[("authorization", &with(&chat))]).await),
        Some((403, Some("insufficient_permissions".into())))
    );
    assert_eq!(
        status(Client::connect(&server, "/v1/realtime?model=x", &[("authorization", &bearer)]).await),
        Some((404, Some("model_not_found".into())))
    );
    assert_eq!(
        status(
            Client::connect(&server, "/v1/realtime?intent=conversation", &[("authorization", &bearer)]).await
        ),
        Some((400, Some("invalid_value".into())))
    );
    let evil = [("authorization", &*bearer), ("origin", "https://evil.example")];
    assert_eq!(
        status(Client::connect(&server, path, &evil).await),
        Some((403, Some("insufficient_permissions".into())))
    );
    let plain = format!(
        "GET {path} HTTP/1.1\r\nhost: localhost\r\nauthorization: {bearer}\r\nconnection: close\r\n\r\n"
    );
    let (code, head, body) = raw(&server.url, plain.as_bytes()).await;
    assert!(
        code == 426 && head.contains("upgrade: websocket") && body.contains("WebSocket"),
        "{code} {body}"
    );

    // A key among the protocols, as browsers send it; one of them is answered.
    let offered = format!("realtime, openai-insecure-api-key.{key}, openai-beta.realtime-v1");
    let mut first =
        Client::connect(&server, path, &[("sec-websocket-protocol", &offered)]).await.ok().unwrap();
    assert_eq!(first.response.headers()["sec-websocket-protocol"], "realtime");
    assert!(first.response.headers().contains_key("x-request-id"));
    first.expect("session.created").await;
    let second = Client::connect(&server, path, &[("authorization", &bearer)]).await.ok().unwrap();
    assert!(!second.response.headers().contains_key("sec-websocket-protocol"));
    assert_eq!(
        status(Client::connect(&server, path, &[("authorization", &bearer)]).await),
        Some((429, Some("rate_limit_exceeded".into())))
    );
    drop(second);
    // As soon as the server has noticed.
    while Client::connect(&server, path, &[("authorization", &bearer)]).await.is_err() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Asks for a client secret, with a key where there is one.
async fn secret(server: &Server, key: Option<&str>, body: &Value) -> (u16, Value) {
    let mut request = reqwest::Client::new().post(server.path("/v1/realtime/client_secrets")).json(body);
    if let Some(key) = key {
        request = request.bearer_auth(key);
    }
    let response = request.send().await.unwrap();
    (response.status().as_u16(), response.json().await.unwrap())
}

#[tokio::test]
async fn pages_open_sessions_with_secrets_of_their_own() {
    let folder = TempDir::new().unwrap();
    let file = folder.path().join("keys.toml");
    let add =
        |tenant: &str, terms: Terms| KeyFile::change(&file, |keys| keys.add(tenant, terms, None)).unwrap();
    let (key, id) = add("acme", Terms::default());
    let (other, _) = add("other", Terms { endpoints: Some(vec![Area::Chat]), ..Terms::default() });
    let (third, _) = add("third", Terms { models: Some(vec!["else".into()]), ..Terms::default() });
    let audit = folder.path().join("audit");
    let operations = Settings { keys: Some(file.clone()), audit: Some(audit.clone()), ..settings() };
    let server = start(operations).await;
    let body = json!({
        "expires_after": {"anchor": "created_at", "seconds": 60},
        "session": {
            "type": "transcription",
            "audio": {"input": {
                "format": {"type": "audio/pcmu"},
                "noise_reduction": {"type": "near_field"},
                "transcription": {"model": "whisper-1", "language": "en"},
                "turn_detection": null,
            }},
        },
    });
    let (status, made) = secret(&server, Some(&key), &body).await;
    assert_eq!(status, 200, "{made}");
    let now = jiff::Timestamp::now().as_second();
    assert!((now + 50..=now + 60).contains(&made["expires_at"].as_i64().unwrap()), "{made}");
    let value = made["value"].as_str().unwrap();
    assert!(value.starts_with("ek_percept-") && value.len() > 64, "{value}");

    // Sessions begin as it says, and are the tenant's.
    let offered = format!("realtime, openai-insecure-api-key.{value}");
    let headers = [("sec-websocket-protocol", &*offered)];
    for _ in 0..2 {
        let mut client = Client::connect(&server, "/v1/realtime", &headers).await.ok().unwrap();
        let created = client.expect("session.created").await;
        assert_eq!(created["session"]["audio"], made["session"]["audio"]);
        let input = &created["session"]["audio"]["input"];
        assert_eq!(
            (&input["format"]["type"], &input["transcription"]["model"], &input["turn_detection"]),
            (&json!("audio/pcmu"), &json!("whisper-1"), &Value::Null)
        );
        client.append(&mu_law(&speech())).await;
        client.send(&json!({"type": "input_audio_buffer.commit"})).await;
        client.until("conversation.item.input_audio_transcription.completed").await;
        let metrics = reqwest::Client::new().get(server.path("/metrics")).bearer_auth(&key);
        let refused = metrics.send().await.unwrap();
        assert_eq!(refused.status(), 403, "the figures are not the tenant's");
        client.socket.close(None).await.unwrap();
    }
    let named = Client::connect(&server, "/v1/realtime?model=whisper", &headers).await;
    let created = named.ok().unwrap().expect("session.created").await;
    assert_eq!(created["session"]["audio"]["input"]["transcription"]["model"], "whisper");
    let used = async || -> f64 {
        let usage = reqwest::Client::new().get(server.path("/v1/usage")).bearer_auth(&key);
        let usage: Value = usage.send().await.unwrap().json().await.unwrap();
        usage["total"]["audio_seconds"].as_f64().unwrap()
    };
    while used().await < 5.0 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }

    // It opens nothing else, and makes no others.
    let get = async |path: &str| {
        reqwest::Client::new().get(server.path(path)).bearer_auth(value).send().await.unwrap().status()
    };
    for path in ["/v1/models", "/v1/usage", "/v1/realtimes", "/v1/files"] {
        assert_eq!(get(path).await, 401, "{path}");
    }
    // Without a WebSocket, only that is missing.
    assert_eq!(get("/v1/realtime/").await, 426);
    assert_eq!(secret(&server, Some(value), &body).await.0, 401);
    let both = [headers[0], ("authorization", &*format!("Bearer {other}"))];
    assert_eq!(Client::connect(&server, "/v1/realtime", &both).await.err().unwrap().0, 401);
    let wrong = offered.replace("ek_percept-", "ek_percept-0");
    let wrong = [("sec-websocket-protocol", &*wrong)];
    assert_eq!(Client::connect(&server, "/v1/realtime", &wrong).await.err().unwrap().0, 401);

    // Who may not use the API makes none; a model that may not be used is not found.
    assert_eq!(secret(&server, None, &body).await.0, 401);
    assert_eq!(secret(&server, Some(&other), &body).await.0, 403);
    assert_eq!(secret(&server, Some(&third), &json!({"session": body["session"]})).await.0, 400);
    for (change, status, param) in [
        (json!({"expires_after": {"seconds": 9}}), 400, "expires_after.seconds"),
        (json!({"expires_after": {"seconds": 7201}}), 400, "expires_after.seconds"),
        (json!({"expires_after": {"anchor": "now"}}), 400, "expires_after.anchor"),
        (json!({"session": {"type": "realtime"}}), 400, "session.type"),
        (
            json!({"session": {"audio": {"input": {"format": {"type": "x"}}}}}),
            400,
            "session.audio.input.format.type",
        ),
        (json!({"session": {"audio": {"input": {"transcription": {"model": "x"}}}}}), 404, "model"),
        (json!({"session": 1}), 400, "session"),
    ] {
        let (found, error) = secret(&server, Some(&key), &change).await;
        assert_eq!((found, error["error"]["param"].as_str()), (status, Some(param)), "{change}: {error}");
    }
    let (_, least) = secret(&server, Some(&key), &json!({})).await;
    assert!(least["expires_at"].as_i64().unwrap() >= now + 600, "{least}");

    // Gone with the key that it was made with.
    assert_eq!(KeyFile::change(&file, |keys| keys.revoke(&id)).unwrap(), 1);
    let again = async || Client::connect(&server, "/v1/realtime", &headers).await;
    while again().await.is_ok() {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(again().await.err().unwrap().0, 401);
    for entry in std::fs::read_dir(&audit).unwrap() {
        let text = std::fs::read_to_string(entry.unwrap().path()).unwrap_or_default();
        assert!(!text.contains(value), "it is in the audit log");
    }
}

#[tokio::test]
async fn secrets_are_bounded_and_need_no_keys() {
    let server = start(settings()).await;
    let long = json!({"session": {"audio": {"input": {"transcription": {"prompt": "a ".repeat(30_000)}}}}});
    let mut made = 0;
    let error = loop {
        let (status, answer) = secret(&server, None, &long).await;
        match status {
            200 => made += 1,
            _ => break (status, answer["error"]["code"].clone()),
        }
    };
    assert_eq!(error, (429, json!("rate_limit_exceeded")));
    assert_eq!(made, (4 << 20) / (60_000 + 1024 + "whisper".len()));
    let gauge = async || -> f64 {
        let text = reqwest::get(server.path("/metrics")).await.unwrap().text().await.unwrap();
        let line = text.lines().find(|line| line.starts_with("percept_realtime_sessions ")).unwrap();
        line.rsplit(' ').next().unwrap().parse().unwrap()
    };
    assert_eq!(gauge().await, 0.0);
    let mut client = Client::connect(&server, "/v1/realtime", &[]).await.ok().unwrap();
    client.expect("session.created").await;
    assert_eq!(gauge().await, 1.0);
    client.socket.close(None).await.unwrap();
    while gauge().await > 0.0 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let unknown = [("authorization", "Bearer ek_percept-00")];
    assert_eq!(Client::connect(&server, "/v1/realtime", &unknown).await.err().unwrap().0, 401);
}

#[tokio::test]
async fn sessions_are_counted_as_other_requests_are() {
    let folder = TempDir::new().unwrap();
    let file = folder.path().join("keys.toml");
    let terms = Terms { audio_seconds_per_minute: NonZeroU32::new(5), ..Terms::default() };
    let key = KeyFile::change(&file, |keys| keys.add("acme", terms, None)).unwrap().0;
    let audit = folder.path().join("audit");
    let server = start(Settings { keys: Some(file), audit: Some(audit.clone()), ..settings() }).await;
    let bearer = format!("Bearer {key}");
    let mut client =
        Client::connect(&server, "/v1/realtime", &[("authorization", &bearer)]).await.ok().unwrap();
    client.expect("session.created").await;
    client.update(&json!({"turn_detection": null})).await;
    client.append(&pcm(&speech())).await;
    client.send(&json!({"type": "input_audio_buffer.commit"})).await;
    client.until("conversation.item.input_audio_transcription.completed").await;
    // Another three seconds are more than five.
    client.append(&pcm(&speech())).await;
    client.send(&json!({"type": "input_audio_buffer.commit"})).await;
    let failed = client.until("conversation.item.input_audio_transcription.failed").await;
    assert_eq!(failed.last().unwrap()["error"]["code"], "rate_limit_exceeded");
    client.socket.close(None).await.unwrap();
    drop(client);
    let usage = async || -> Value {
        let request = reqwest::Client::new().get(server.path("/v1/usage")).bearer_auth(&key);
        request.send().await.unwrap().json().await.unwrap()
    };
    while usage().await["total"]["audio_seconds"] == 0.0 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let total = usage().await["total"].clone();
    let seconds = total["audio_seconds"].as_f64().unwrap();
    assert!((2.8..5.0).contains(&seconds), "{total}");
    assert!(total["completion_tokens"].as_f64().unwrap() > 0.0, "{total}");
    // It is written a little later than it is counted.
    let written = || -> Option<Value> {
        let files = std::fs::read_dir(&audit).unwrap();
        let lines = files.map(|entry| std::fs::read_to_string(entry.unwrap().path()).unwrap_or_default());
        let lines: String = lines.collect();
        let line = lines.lines().find(|line| line.contains("GET /v1/realtime"))?;
        serde_json::from_str(line).ok()
    };
    let line = loop {
        match written() {
            Some(line) => break line,
            None => tokio::time::sleep(Duration::from_millis(5)).await,
        }
    };
    assert_eq!((&line["status"], &line["tenant"]), (&json!(101), &json!("acme")), "{line}");
    assert!(
        line["request_bytes"].as_u64().unwrap() > 100_000 && line["response_bytes"].as_u64().unwrap() > 500,
        "{line}"
    );
}

#[tokio::test]
async fn a_session_ends_when_it_must() {
    let server = start(Settings { realtime_idle_seconds: Some(1), ..settings() }).await;
    let mut client = Client::begin(&server).await;
    assert_eq!(client.expect("error").await["error"]["code"], "session_idle");
    assert_eq!(client.closed().await, 1000);
    let server = start(Settings { max_realtime_seconds: Some(1), ..settings() }).await;
    let mut client = Client::begin(&server).await;
    assert_eq!(client.expect("error").await["error"]["code"], "session_expired");
    assert_eq!(client.closed().await, 1000);

    // A server that stops writes down what was said, and waits for that.
    let mut server = start(settings()).await;
    let said = said(&server).await;
    let mut client = Client::begin(&server).await;
    client.update(&json!({"turn_detection": null})).await;
    // Three turns, of which it can have begun one.
    for _ in 0..3 {
        client.append(&pcm(&speech())).await;
        client.send(&json!({"type": "input_audio_buffer.commit"})).await;
    }
    for _ in 0..3 {
        client.until("conversation.item.done").await;
    }
    let (events, ()) = tokio::join!(
        async {
            let events = client.until("error").await;
            (events, client.closed().await)
        },
        server.stop()
    );
    let (events, code) = events;
    assert_eq!(events.last().unwrap()["error"]["code"], "engine_overloaded");
    let written = events.iter().filter(|event| event["transcript"] == said.as_str());
    assert_eq!(written.count(), 3, "{events:?}");
    assert_eq!(code, 1001);
}

#[tokio::test]
async fn a_session_ends_with_its_key_and_its_budget() {
    let folder = TempDir::new().unwrap();
    let file = folder.path().join("keys.toml");
    let add =
        |tenant: &str, terms: Terms| KeyFile::change(&file, |keys| keys.add(tenant, terms, None)).unwrap();
    let minute = Terms { audio_minutes_per_day: NonZeroU32::new(1), ..Terms::default() };
    let (poor, _) = add("poor", minute);
    let logged = Terms { log_content: Some(true), ..Terms::default() };
    let (key, id) = add("acme", logged);
    let (watching, _) = add("watching", Terms { endpoints: Some(vec![Area::Metrics]), ..Terms::default() });
    let content = folder.path().join("content");
    let server =
        start(Settings { keys: Some(file.clone()), content_log: Some(content.clone()), ..settings() }).await;
    let open = async |key: &str| {
        let headers = [("authorization", &*format!("Bearer {key}"))];
        let mut client = Client::connect(&server, "/v1/realtime", &headers).await.ok().unwrap();
        client.expect("session.created").await;
        client.update(&json!({"format": {"type": "audio/pcmu"}, "turn_detection": null})).await;
        client
    };
    // Within a session, too, a budget is what it is.
    let mut client = open(&poor).await;
    let half = mu_law(&silence(30.0));
    for end in ["completed", "completed", "failed"] {
        client.append(&half).await;
        client.send(&json!({"type": "input_audio_buffer.commit"})).await;
        let kind = format!("conversation.item.input_audio_transcription.{end}");
        let events = client.until(&kind).await;
        if end == "failed" {
            assert_eq!(events.last().unwrap()["error"]["code"], "insufficient_quota");
        }
    }
    // While it is open, that counts for others.
    let headers = [("authorization", &*format!("Bearer {poor}"))];
    let (status, error) = Client::connect(&server, "/v1/realtime", &headers).await.err().unwrap();
    assert_eq!((status, &error["error"]["code"]), (429, &json!("insufficient_quota")));

    // A key that is taken away opens nothing, and what it opened ends with the next turn.
    let mut client = open(&key).await;
    client.append(&mu_law(&speech())).await;
    client.send(&json!({"type": "input_audio_buffer.commit"})).await;
    let events = client.until("conversation.item.input_audio_transcription.completed").await;
    let said = events.last().unwrap()["transcript"].clone();
    KeyFile::change(&file, |keys| keys.revoke(&id)).unwrap();
    loop {
        client.append(&mu_law(&speech())).await;
        client.send(&json!({"type": "input_audio_buffer.commit"})).await;
        let events = client.until_any(&["completed", "failed"]).await;
        if let Some(error) = events.last().unwrap().get("error") {
            assert_eq!(error["code"], "invalid_api_key");
            break;
        }
    }
    assert_eq!(client.expect("error").await["error"]["code"], "invalid_api_key");
    assert_eq!(client.closed().await, 1008);

    // What was said is in the content log, and no sound is.
    let read = || {
        let files = std::fs::read_dir(&content).unwrap();
        files.map(|file| std::fs::read_to_string(file.unwrap().path()).unwrap()).collect::<String>()
    };
    while read().lines().count() < 1 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let text = read();
    assert_eq!(text.lines().count(), 1, "{text}");
    let line: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(line["endpoint"], "GET /v1/realtime");
    let kinds = |events: &Value| -> Vec<String> {
        let events = events.as_array().unwrap().iter();
        events.map(|event| event["type"].as_str().unwrap().to_owned()).collect()
    };
    assert_eq!(kinds(&line["request"])[..2], ["session.update", "input_audio_buffer.commit"]);
    assert!(line["response"].as_array().unwrap().iter().any(|event| event["transcript"] == said));
    assert!(!text.contains(&STANDARD.encode(&mu_law(&speech())[..300])), "sound is written down");

    // A session is no answer that anyone waited for.
    let figures = reqwest::Client::new().get(server.path("/metrics")).bearer_auth(&watching);
    let figures = figures.send().await.unwrap().text().await.unwrap();
    assert!(figures.contains("endpoint=\"GET /v1/realtime\""), "{figures}");
    for name in ["percept_first_token_seconds_count", "percept_stage_seconds_count"] {
        assert!(!figures.contains(name), "{figures}");
    }
}

#[tokio::test]
async fn connections_that_became_sessions_are_connections() {
    let server = start(Settings { max_connections: Some(2), ..settings() }).await;
    let mut first = Client::begin(&server).await;
    let mut second = Client::begin(&server).await;
    let (status, _, _) =
        raw(&server.url, b"GET /health HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n").await;
    assert_eq!(status, 503);
    first.socket.close(None).await.unwrap();
    drop(first);
    loop {
        let (status, _, _) =
            raw(&server.url, b"GET /health HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n").await;
        if status == 200 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    second.send(&json!({"type": "input_audio_buffer.clear"})).await;
    second.expect("input_audio_buffer.cleared").await;
}
