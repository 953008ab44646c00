//! The chat endpoint through HTTP.
#![allow(clippy::unwrap_used, reason = "tests")]

mod support;

use std::{collections::BTreeSet, time::Duration};

use futures_util::{StreamExt, future::join_all};
use percept::{api::App, config::Settings, router::Router};
use percept_models::Fit;
use serde_json::{Value, json};
use support::{
    Case, Golden, fixtures,
    server::{self, data_url, golden_request, image_part, start, text, words},
};

fn cases(golden: &Golden) -> Vec<&Case> {
    golden.prompts().filter(|case| case.fit() == Fit::Crop).collect()
}

fn check_answer(case: &Case, answer: &Value) {
    assert_eq!(answer["choices"][0]["message"]["content"], case.greedy_text, "{}", case.name);
    assert_eq!(answer["usage"]["prompt_tokens"], case.input_ids.len(), "{}", case.name);
    assert_eq!(answer["usage"]["completion_tokens"], case.greedy_tokens.len(), "{}", case.name);
    assert_eq!(answer["choices"][0]["finish_reason"], "length", "{}", case.name);
}

#[tokio::test]
async fn answers_are_the_reference_texts_alone_and_among_others() {
    let golden = Golden::read("llava");
    let server = start(Settings { max_sequences: Some(64), ..Settings::default() }).await;
    let cases = cases(&golden);
    for case in &cases {
        check_answer(case, &server.ask(&golden_request(case)).await);
    }
    // 32 at once, whole and streamed, in every combination that comes about.
    let many = cases.iter().cycle().take(32).enumerate().map(async |(index, case)| {
        if index % 2 == 0 {
            check_answer(case, &server.ask(&golden_request(case)).await);
        } else {
            let (pieces, done) = server.stream(&golden_request(case)).await;
            assert_eq!(text(&pieces), case.greedy_text, "{}", case.name);
            assert!(done);
        }
    });
    join_all(many).await;
    server.idle().await;
}

#[tokio::test]
async fn padding_is_a_setting() {
    let golden = Golden::read("llava");
    let pad = percept::config::ImageFit::Pad;
    let server = start(Settings { image_fit: Some(pad), ..Settings::default() }).await;
    let padded: Vec<&Case> = golden.prompts().filter(|case| case.fit() == Fit::Pad).collect();
    assert_eq!(padded.len(), 2);
    for case in padded {
        check_answer(case, &server.ask(&golden_request(case)).await);
    }
}

#[tokio::test]
async fn a_stream_has_the_shape_that_clients_check() {
    let golden = Golden::read("llava");
    let server = start(Settings::default()).await;
    let mut request = golden_request(cases(&golden)[1]);
    let (pieces, done) = server.stream(&request).await;
    assert!(done);
    let keys = |piece: &Value| piece.as_object().unwrap().keys().cloned().collect::<BTreeSet<_>>();
    for piece in &pieces {
        for key in ["id", "created", "model", "system_fingerprint"] {
            assert_eq!(piece[key], pieces[0][key], "{key} differs between pieces");
        }
        assert_eq!(piece["object"], "chat.completion.chunk");
        assert!(piece["created"].is_u64());
        assert_eq!(piece["choices"].as_array().unwrap().len(), 1);
        assert_eq!(piece["choices"][0]["index"], 0);
        assert!(piece["choices"][0]["logprobs"].is_null());
        assert!(!keys(piece).contains("usage"), "usage was not asked for");
    }
    assert_eq!(pieces[0]["choices"][0]["delta"], json!({"role": "assistant", "content": ""}));
    let (last, others) = pieces.split_last().unwrap();
    assert_eq!(last["choices"][0]["delta"], json!({}));
    assert_eq!(last["choices"][0]["finish_reason"], "length");
    for piece in others {
        assert!(piece["choices"][0]["finish_reason"].is_null());
        assert!(piece["choices"][0]["delta"]["content"].is_string());
    }
    for piece in &others[1..] {
        assert_eq!(keys(&piece["choices"][0]["delta"]).len(), 1, "only content behind the first piece");
    }

    request["stream_options"] = json!({"include_usage": true});
    let (pieces, done) = server.stream(&request).await;
    assert!(done);
    let (last, others) = pieces.split_last().unwrap();
    assert_eq!(last["choices"], json!([]));
    assert_eq!(last["usage"]["completion_tokens"], 12);
    assert_eq!(last["usage"]["total_tokens"], 44 + 12);
    assert!(others.iter().all(|piece| keys(piece).contains("usage") && piece["usage"].is_null()));
}

#[tokio::test]
async fn a_whole_answer_has_the_shape_that_clients_check() {
    let server = start(Settings::default()).await;
    let response = server.post(&words("hello")).await;
    let headers = response.headers().clone();
    for header in ["x-request-id", "request-id", "openai-processing-ms", "openai-version"] {
        assert!(headers.contains_key(header), "{header}");
    }
    assert_eq!(headers["x-request-id"], headers["request-id"]);
    let answer: Value = response.json().await.unwrap();
    assert!(answer["id"].as_str().unwrap().starts_with("chatcmpl-"));
    assert_eq!(answer["object"], "chat.completion");
    assert_eq!(answer["model"], "llava");
    assert!(answer["system_fingerprint"].as_str().unwrap().starts_with("fp_"));
    let choice = &answer["choices"][0];
    assert_eq!(choice["index"], 0);
    assert_eq!(choice["logprobs"], Value::Null);
    assert_eq!(choice["message"]["role"], "assistant");
    assert_eq!(choice["message"]["refusal"], Value::Null);
    assert_eq!(choice["message"]["annotations"], json!([]));
    assert_eq!(choice["message"].get("tool_calls"), None);
    assert_eq!(answer["usage"]["completion_tokens_details"]["reasoning_tokens"], 0);
}

#[tokio::test]
async fn sampling_does_what_it_says() {
    let server = start(Settings::default()).await;
    let content = |answer: Value| answer["choices"][0]["message"]["content"].as_str().unwrap().to_owned();
    let with = |field: &str, value: Value| {
        let mut request = words("count from one to ten, please.");
        request[field] = value;
        request
    };
    // The same seed, the same text; without one, not always.
    let seeded = content(server.ask(&with("seed", json!(7))).await);
    assert_eq!(content(server.ask(&with("seed", json!(7))).await), seeded);
    let mut others = BTreeSet::new();
    for _ in 0..5 {
        others.insert(content(server.ask(&words("count from one to ten, please.")).await));
    }
    assert!(others.len() > 1, "without a seed, five answers are the same");
    assert_ne!(content(server.ask(&with("seed", json!(-8))).await), seeded);

    let greedy = content(server.ask(&with("temperature", json!(0))).await);
    for (field, value) in
        [("top_k", json!(1)), ("top_p", json!(0)), ("top_p", json!(1e-9)), ("min_p", json!(1))]
    {
        assert_eq!(content(server.ask(&with(field, value.clone())).await), greedy, "{field} {value}");
    }
    // Every token is the one that is pushed up, until the penalty for using it outweighs the push.
    let mut request = with("temperature", json!(0));
    request["logit_bias"] = json!({"414": 50});
    let comma = content(server.ask(&request).await);
    assert_eq!(comma, "l,".repeat(8));
    request["frequency_penalty"] = json!(2);
    request["logit_bias"] = json!({"414": 10});
    let penalised = content(server.ask(&request).await);
    assert!(penalised.starts_with("l,") && penalised != comma, "{penalised}");
    // With the push alone this token comes again and again; where the push is just enough, each penalty ends that.
    request["frequency_penalty"] = json!(0);
    assert_eq!(content(server.ask(&request).await), comma);
    for (penalty, strength) in [("presence_penalty", 2.0), ("repetition_penalty", 10.0)] {
        let mut changed = false;
        for push in 1..=20 {
            request["logit_bias"] = json!({"414": f64::from(push) / 2.0});
            request[penalty] = Value::Null;
            let without = content(server.ask(&request).await);
            request[penalty] = json!(strength);
            let penalised = content(server.ask(&request).await);
            let count = |text: &str| text.matches("l,").count();
            assert!(count(&penalised) <= count(&without), "{penalty}: {without} {penalised}");
            changed |= count(&penalised) < count(&without);
        }
        request[penalty] = Value::Null;
        assert!(changed, "{penalty} changes nothing");
    }

    let mut request = with("temperature", json!(0));
    request["max_completion_tokens"] = json!(3);
    request["max_tokens"] = json!(8);
    assert_eq!(server.ask(&request).await["usage"]["completion_tokens"], 3);
}

#[tokio::test]
async fn stop_texts_end_an_answer_also_across_tokens() {
    let golden = Golden::read("llava");
    let server = start(Settings::default()).await;
    let case = cases(&golden).into_iter().find(|case| case.name == "one_square").unwrap();
    assert_eq!(case.greedy_text, "sql, a a a a a a a a a");
    for (stop, expected, reason) in [
        (json!("l,"), "sq", "stop"),
        (json!(["q", "l, a"]), "s", "stop"),
        (json!(["l, a a a"]), "sq", "stop"),
        (json!(["a a b", "nothing"]), "sql, a a a a a a a a a", "length"),
        (json!(["a a a a a a a a a"]), "sql, ", "stop"),
        (json!([]), "sql, a a a a a a a a a", "length"),
        (Value::Null, "sql, a a a a a a a a a", "length"),
    ] {
        let mut request = golden_request(case);
        request["stop"] = stop.clone();
        let answer = server.ask(&request).await;
        assert_eq!(answer["choices"][0]["message"]["content"], expected, "{stop}");
        assert_eq!(answer["choices"][0]["finish_reason"], reason, "{stop}");
        let (pieces, done) = server.stream(&request).await;
        assert_eq!(text(&pieces), expected, "{stop}");
        assert!(done);
    }
    server.idle().await;
}

#[tokio::test]
async fn a_limit_beyond_the_context_is_what_is_left_of_it() {
    let settings = Settings { max_context: Some(64), page_size: Some(4), ..Settings::default() };
    let server = start(settings).await;
    let mut request = words("hello");
    request["max_tokens"] = json!(128_000);
    request["logit_bias"] = json!({"2": -100});
    let answer = server.ask(&request).await;
    assert_eq!(answer["usage"]["total_tokens"], 64);
    assert_eq!(answer["choices"][0]["finish_reason"], "length");
    request["max_tokens"] = Value::Null;
    assert_eq!(server.ask(&request).await["usage"]["total_tokens"], 64);

    request["messages"][0]["content"] = json!("one two three four five six seven eight nine ten ".repeat(4));
    let (status, error) = server.refuse(&request).await;
    assert_eq!((status, error["code"].as_str()), (400, Some("context_length_exceeded")));
    assert_eq!(error["param"], "messages");
    assert!(error["message"].as_str().unwrap().contains("64 tokens"), "{error}");
    // Four pictures of sixteen rows fill it alone.
    request["messages"][0]["content"] = json!(vec![image_part(&data_url("tiny_31x17.png")); 4]);
    assert_eq!(server.refuse(&request).await.1["code"], "context_length_exceeded");
}

/// Pictures that a text attends to are kept beside it, and both must fit.
#[tokio::test]
async fn pictures_that_leave_no_room_beside_them_are_refused() {
    let settings = Settings {
        model: vec![fixtures().join("mllama").display().to_string()],
        max_context: Some(64),
        max_sequences: Some(1),
        ..Settings::default()
    };
    let server = start(settings).await;
    // Four pages of text, and five of a picture of ordinary size twice.
    assert_eq!(server.app.models().unwrap().models()[0].handle.rows(), 14 * 16);
    let mut request = words("hello");
    request["model"] = json!("mllama");
    // Nothing ends an answer but the room that there is.
    request["max_tokens"] = Value::Null;
    request["logit_bias"] = json!({"474": -100, "478": -100, "479": -100});
    assert_eq!(server.ask(&request).await["usage"]["total_tokens"], 64);
    let picture = || image_part(&data_url("land_90x60.png"));
    request["messages"][0]["content"] = json!([picture(), picture()]);
    // Two pictures of four tiles take 136 rows, which is nine pages: five are left.
    assert_eq!(server.ask(&request).await["usage"]["total_tokens"], 64);
    request["messages"][0]["content"] = json!([picture(), picture(), picture()]);
    let (status, error) = server.refuse(&request).await;
    assert_eq!((status, error["code"].as_str()), (400, Some("context_length_exceeded")));
    assert_eq!(error["param"], "messages");
    let message = error["message"].as_str().unwrap();
    assert!(message.contains("room for 224 rows") && message.contains("208 rows of pictures"), "{message}");
    server.idle().await;
}

#[tokio::test]
async fn a_prompt_that_began_before_is_reused() {
    let golden = Golden::read("llava");
    let server = start(Settings::default()).await;
    let case = cases(&golden).into_iter().find(|case| case.name == "multi_turn").unwrap();
    let cached = |answer: &Value| answer["usage"]["prompt_tokens_details"]["cached_tokens"].as_u64().unwrap();
    let first = server.ask(&golden_request(case)).await;
    let second = server.ask(&golden_request(case)).await;
    assert_eq!((cached(&first), cached(&second)), (0, 80));
    check_answer(case, &second);
    // Another picture of the same size: the text before it is the same, and nothing behind.
    let mut other = golden_request(case);
    let url = data_url("port_48x120.png");
    for part in other["messages"][0]["content"].as_array_mut().unwrap() {
        if part["type"] == "image_url" {
            *part = image_part(&url);
        }
    }
    let other = server.ask(&other).await;
    assert_eq!(cached(&other), 0);
    assert_ne!(other["choices"][0]["message"]["content"], case.greedy_text);
}

#[tokio::test]
async fn roles_and_contents_as_clients_send_them() {
    let server = start(Settings::default()).await;
    let picture = data_url("square_56x56.png");
    let question = json!([{"type": "text", "text": "what is this?"}, image_part(&picture)]);
    let same = |messages: Value| {
        json!({
            "model": "llava", "messages": messages, "temperature": 0, "max_tokens": 6,
            "n": 1, "stop": null, "tools": null, "tool_choice": "auto", "response_format": {"type": "text"},
            "logprobs": false, "top_logprobs": null, "logit_bias": null, "seed": null, "stream": null, "user": "me",
            "modalities": ["text"], "functions": [], "parallel_tool_calls": true, "store": false,
        })
    };
    let plain = same(json!([
        {"role": "system", "content": "be brief."},
        {"role": "user", "content": question},
    ]));
    let expected = server.ask(&plain).await;
    for messages in [
        json!([{"role": "developer", "content": [{"type": "text", "text": "be brief."}]}, {"role": "user", "content": question}]),
        json!([{"role": "system", "content": "be brief.", "name": "boss"}, {"role": "user", "content": [
            {"type": "text", "text": "what is this?", "cache": 1},
            {"type": "image_url", "image_url": picture},
        ]}]),
        json!([{"role": "system", "content": "be brief."}, {"role": "user", "content": [
            {"type": "text", "text": "what is this?"},
            {"type": "image_url", "image_url": {"url": picture, "detail": "low"}},
        ]}]),
    ] {
        let answer = server.ask(&same(messages)).await;
        assert_eq!(answer["choices"][0]["message"]["content"], expected["choices"][0]["message"]["content"]);
        assert_eq!(answer["usage"]["prompt_tokens"], expected["usage"]["prompt_tokens"]);
    }
    // Several pictures in several turns, an empty text, a conversation that begins with the assistant.
    server.ask(&same(json!([
        {"role": "assistant", "content": "hello"},
        {"role": "user", "content": question},
        {"role": "assistant", "content": null, "refusal": "no"},
        {"role": "user", "content": ""},
        {"role": "user", "content": [image_part(&picture), {"type": "text", "text": "and"}, image_part(&picture)]},
    ]))).await;
    // The text of control tokens is text.
    let answer =
        server.ask(&same(json!([{"role": "user", "content": "what does <image> mean? </s><s>"}]))).await;
    assert!(answer["usage"]["prompt_tokens"].as_u64().unwrap() > 15);
}

#[tokio::test]
async fn fields_without_effect_are_named_and_unknown_ones_can_be_refused() {
    let mut request = words("hello");
    request["user"] = json!("me");
    request["num_ctx"] = json!(4096);
    request["chat_template"] = json!("{{ evil }}");
    let server = start(Settings::default()).await;
    let response = server.post(&request).await;
    assert_eq!(response.status(), 200);
    assert_eq!(response.headers()["x-ignored-params"], "chat_template, num_ctx, user");

    let strict = start(Settings { strict_params: Some(true), ..Settings::default() }).await;
    let (status, error) = strict.refuse(&request).await;
    assert_eq!(status, 400);
    assert_eq!(error["message"], "Unrecognized request argument supplied: num_ctx");
    request.as_object_mut().unwrap().remove("num_ctx");
    request.as_object_mut().unwrap().remove("chat_template");
    // What an answer of the API consists of can be sent back.
    request["messages"] = json!([
        {"role": "user", "content": "hello"},
        {"role": "assistant", "content": "hi", "refusal": null, "annotations": [], "audio": null, "tool_calls": null},
        {"role": "user", "content": [{"type": "text", "text": "again", "prompt_cache_breakpoint": {"mode": "explicit"}}]},
    ]);
    let response = strict.post(&request).await;
    assert_eq!(response.status(), 200);
    let ignored = response.headers()["x-ignored-params"].to_str().unwrap().to_owned();
    assert!(ignored.contains("messages[1].annotations"), "{ignored}");
    request["messages"][1]["mood"] = json!("glad");
    let (_, error) = strict.refuse(&request).await;
    assert_eq!(error["message"], "Unrecognized request argument supplied: messages[1].mood");

    // Not ignored by anyone: these would change the answer.
    for field in ["bad_words", "best_of", "stop_token_ids", "min_tokens"] {
        let mut request = words("hello");
        request[field] = json!(1);
        let (status, error) = server.refuse(&request).await;
        assert_eq!((status, error["param"].as_str()), (400, Some(field)));
        assert_eq!(error["code"], "unsupported_parameter");
        request[field] = Value::Null;
        strict.ask(&request).await;
    }
    // A strict server knows what it refuses.
    for (field, value) in
        [("audio", json!({"voice": "alloy"})), ("web_search_options", json!({})), ("bad_words", json!(["a"]))]
    {
        let mut request = words("hello");
        request[field] = value;
        let (_, error) = strict.refuse(&request).await;
        assert_eq!(
            (error["param"].as_str(), error["code"].as_str()),
            (Some(field), Some("unsupported_parameter"))
        );
    }
}

#[tokio::test]
async fn a_body_cannot_hold_more_items_than_make_sense() {
    let server = start(Settings::default()).await;
    let request = |field: &str, items: Value| {
        let mut request = words("hello");
        request[field] = items;
        request
    };
    let item = json!({"role": "user", "content": "a"});
    let part = json!({"type": "text", "text": ""});
    for (body, param, limit) in [
        (request("messages", json!(vec![item; 10_001])), "messages", "10000"),
        (
            request("messages", json!([{"role": "user", "content": vec![part; 1001]}])),
            "messages[0].content",
            "1000",
        ),
        (request("stop", json!(["a", "b", "c", "d", "e"])), "stop", "4"),
        (
            request("logit_bias", (0..1025).map(|id| (id.to_string(), json!(1))).collect()),
            "logit_bias",
            "1024",
        ),
        (request("modalities", json!(vec!["text"; 17])), "modalities", "16"),
    ] {
        let (status, error) = server.refuse(&body).await;
        assert_eq!((status, error["code"].as_str()), (400, Some("array_above_max_length")), "{param}");
        assert_eq!(error["param"], param);
        assert!(error["message"].as_str().unwrap().contains(limit), "{error}");
    }
    // Error texts are not mistaken for parts of what a client wrote.
    for text in ["x at line y", "a, expected b"] {
        let (_, error) = server.refuse(&request("temperature", json!(text))).await;
        assert_eq!(
            error["message"],
            "Invalid type for 'temperature': expected a number, but got a string instead."
        );
    }
    let long = "9".repeat(100_000);
    let (_, error) = server.refuse(&request("logit_bias", json!({long: "a"}))).await;
    assert!(error.to_string().len() < 1000);
}

#[tokio::test]
async fn requests_whose_pictures_wait_to_be_decoded_have_a_place_in_the_queue() {
    let settings = Settings {
        max_sequences: Some(1),
        max_queue: Some(3),
        // One picture at a time.
        image_memory: Some("64KiB".parse().unwrap()),
        ..Settings::default()
    };
    let server = start(settings).await;
    let asked = (0..30).map(|index| {
        let mut picture = image::RgbImage::new(300, 300);
        picture.put_pixel(0, 0, image::Rgb([index, 0, 0]));
        let mut file = std::io::Cursor::new(Vec::new());
        picture.write_to(&mut file, image::ImageFormat::Png).unwrap();
        let url = server::data_url_of(file.get_ref());
        let mut request = words("");
        request["messages"][0]["content"] = json!([image_part(&url)]);
        server.post(&request)
    });
    let statuses: Vec<u16> =
        join_all(asked).await.iter().map(|response| response.status().as_u16()).collect();
    let count = |status| statuses.iter().filter(|found| **found == status).count();
    assert_eq!(count(200) + count(429), 30, "{statuses:?}");
    assert!(count(200) >= 3 && count(429) >= 10, "{statuses:?}");
    server.idle().await;
}

#[tokio::test]
async fn streams_that_clients_leave_free_their_pages_and_harm_nobody() {
    let golden = Golden::read("llava");
    // Less than a third fit at once, and pages are short.
    let settings = Settings {
        max_sequences: Some(20),
        max_context: Some(256),
        memory: Some("4600KB".parse().unwrap()),
        ..Settings::default()
    };
    let server = start(settings).await;
    let cases = cases(&golden);
    let mut state = 1u32;
    let mut random = move || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        state >> 16
    };
    let streams = (0..64).map(|index| {
        let case = cases[index % cases.len()];
        let mut request = golden_request(case);
        request["stream"] = json!(true);
        let leaves_after = if index % 3 == 0 { Some(random() % 12) } else { None };
        if leaves_after.is_some() {
            request["max_tokens"] = json!(100);
        }
        (case, request, leaves_after)
    });
    let streams: Vec<_> = streams.collect();
    let served = streams.into_iter().map(async |(case, request, leaves_after)| {
        let mut body = server.post(&request).await.bytes_stream();
        let mut bytes = Vec::new();
        while let Some(piece) = body.next().await {
            bytes.extend_from_slice(&piece.unwrap());
            if leaves_after
                .is_some_and(|after| bytes.iter().filter(|&&byte| byte == b'\n').count() / 2 > after as usize)
            {
                return;
            }
        }
        if leaves_after.is_none() {
            let (pieces, done) = server::pieces(std::str::from_utf8(&bytes).unwrap());
            assert!(done);
            assert_eq!(text(&pieces), case.greedy_text, "{}", case.name);
        }
    });
    join_all(served).await;
    server.idle().await;
    assert!(server.engine().await["preemptions"].as_u64().unwrap() > 0, "pages were not short");
    for case in cases {
        check_answer(case, &server.ask(&golden_request(case)).await);
    }
}

#[tokio::test]
async fn a_full_queue_says_when_to_come_back() {
    let settings = Settings { max_sequences: Some(1), max_queue: Some(2), ..Settings::default() };
    let server = start(settings).await;
    let mut long = words("hello");
    long["max_tokens"] = json!(4000);
    long["logit_bias"] = json!({"2": -100});
    long["stream"] = json!(true);
    let mut open = Vec::new();
    let refused = loop {
        let response = server.post(&long).await;
        if response.status() != 200 {
            break response;
        }
        open.push(response);
        assert!(open.len() < 10, "nobody is refused");
    };
    assert!(open.len() >= 2, "two may wait");
    assert_eq!(refused.status(), 429);
    let seconds: u64 = refused.headers()["retry-after"].to_str().unwrap().parse().unwrap();
    assert!((1..=60).contains(&seconds));
    assert_eq!(refused.headers()["retry-after-ms"].to_str().unwrap(), (1000 * seconds).to_string());
    let body: Value = refused.json().await.unwrap();
    server::check_error(&body);
    assert_eq!(body["error"]["code"], "engine_overloaded");
    drop(open);
    server.idle().await;
    server.ask(&words("hello")).await;
}

#[tokio::test]
async fn models_are_listed_by_all_their_names() {
    let settings = Settings {
        name: Some("llava-hf/tiny".into()),
        alias: vec!["gpt-4o".into(), "gpt-4-vision-preview".into()],
        ..Settings::default()
    };
    let server = start(settings).await;
    for path in ["/v1/models", "/models"] {
        let list: Value = server.get(path).await.json().await.unwrap();
        assert_eq!(list["object"], "list");
        let names: Vec<_> =
            list["data"].as_array().unwrap().iter().map(|model| model["id"].as_str().unwrap()).collect();
        assert_eq!(names, ["llava-hf/tiny", "gpt-4o", "gpt-4-vision-preview"]);
    }
    for path in ["/v1/models/llava-hf/tiny", "/v1/models/llava-hf%2Ftiny", "/models/gpt-4o"] {
        let model: Value = server.get(path).await.json().await.unwrap();
        assert_eq!(model["object"], "model", "{path}");
        assert_eq!(model["root"], "llava-hf/tiny");
        assert!(model["created"].is_u64());
        assert_eq!(model["max_model_len"], 4096);
    }
    let response = server.get("/v1/models/nothing").await;
    assert_eq!(response.status(), 404);
    let body: Value = response.json().await.unwrap();
    server::check_error(&body);
    assert_eq!(body["error"]["code"], "model_not_found");

    let mut request = words("hello");
    for name in ["gpt-4o", "llava-hf/tiny"] {
        request["model"] = json!(name);
        assert_eq!(server.ask(&request).await["model"], "llava-hf/tiny");
    }
    request["model"] = json!("gpt-5");
    let (status, error) = server.refuse(&request).await;
    assert_eq!(
        (status, error["code"].as_str(), error["param"].as_str()),
        (404, Some("model_not_found"), Some("model"))
    );
    assert!(error["message"].as_str().unwrap().contains("`gpt-5`"));
}

#[tokio::test]
async fn every_path_answers_in_the_shape_of_the_api() {
    let server = start(Settings::default()).await;
    let client = reqwest::Client::new();
    for (method, path, status) in [
        ("GET", "/nothing", 404),
        ("GET", "/v1", 404),
        ("POST", "/v1/moderations", 404),
        ("POST", "/v1/v1/chat/completions", 404),
        ("GET", "/v1/chat/completions", 405),
        ("DELETE", "/v1/models/llava", 405),
        ("POST", "/health", 405),
        ("GET", "/v1/models/..%2f..%2fetc", 404),
        ("GET", "/v1/models/%FF", 404),
        ("GET", "/v1/models/nothing/", 404),
    ] {
        let method: reqwest::Method = method.parse().unwrap();
        let response = client.request(method.clone(), server.path(path)).send().await.unwrap();
        assert_eq!(response.status(), status, "{method} {path}");
        assert!(response.headers().contains_key("x-request-id"));
        server::check_error(&response.json().await.unwrap());
    }
    for path in ["/health/", "/models/", "/v1/models/", "/v1/models/llava/", "/models/llava"] {
        assert_eq!(server.get(path).await.status(), 200, "{path}");
    }
    let chat = client.post(server.path("/v1/chat/completions/")).json(&words("hello"));
    assert_eq!(chat.send().await.unwrap().status(), 200);
}

#[tokio::test]
async fn bodies_are_json_and_of_limited_size() {
    let settings = Settings { max_body: Some("2000".parse().unwrap()), ..Settings::default() };
    let server = start(settings).await;
    let client = reqwest::Client::new();
    let body = words("hello").to_string();
    let post = |body: reqwest::Body, headers: &[(&str, &str)]| {
        let mut request = client.post(server.path("/v1/chat/completions")).body(body);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        async move { request.send().await.unwrap() }
    };
    let chunked = |body: String| {
        let pieces: Vec<_> =
            body.into_bytes().chunks(7).map(|piece| Ok::<_, std::io::Error>(piece.to_vec())).collect();
        reqwest::Body::wrap_stream(futures_util::stream::iter(pieces))
    };
    let padded = |length: usize| {
        let mut request = words("hello");
        request["padding"] = json!("");
        let padding = length - request.to_string().len();
        request["padding"] = json!("x".repeat(padding));
        request.to_string()
    };
    assert_eq!(padded(2000).len(), 2000);
    let json = ("content-type", "application/json; charset=utf-8");
    for (name, body, headers, status) in [
        ("plain", body.clone().into(), vec![json], 200),
        // Any web page could send this.
        ("without a type", body.clone().into(), vec![], 415),
        ("chunked", chunked(body.clone()), vec![json], 200),
        ("at the limit", padded(2000).into(), vec![json], 200),
        ("over the limit", padded(2001).into(), vec![json], 413),
        ("chunked over the limit", chunked(padded(2001)), vec![json], 413),
        ("as text", body.clone().into(), vec![("content-type", "text/plain")], 415),
        ("as a form", body.clone().into(), vec![("content-type", "application/x-www-form-urlencoded")], 415),
        ("compressed", body.clone().into(), vec![json, ("content-encoding", "gzip")], 415),
        ("not compressed", body.clone().into(), vec![json, ("content-encoding", "identity")], 200),
        ("empty", "".into(), vec![json], 400),
        ("half", body[..body.len() / 2].to_owned().into(), vec![json], 400),
        ("twice", format!("{body}{body}").into(), vec![json], 400),
        ("not UTF-8", b"{\"model\": \"\xff\"}".to_vec().into(), vec![json], 400),
    ] {
        let response = post(body, &headers).await;
        assert_eq!(response.status(), status, "{name}");
        if status != 200 {
            server::check_error(&response.json().await.unwrap());
        }
    }
}

#[tokio::test]
async fn while_models_load_the_server_says_so() {
    let config = server::config(Settings::default());
    let app = App::new(config.api.clone());
    let server = server::start_app(std::sync::Arc::clone(&app), config.drain).await;
    let response = server.get("/health").await;
    assert_eq!(response.status(), 503);
    assert_eq!(response.json::<Value>().await.unwrap()["status"], "loading");
    let response = server.post(&words("hello")).await;
    assert_eq!(response.status(), 503);
    assert!(response.headers().contains_key("retry-after"));
    server::check_error(&response.json().await.unwrap());
    app.serve(Router::new(server::load(&config)));
    assert_eq!(server.get("/health").await.status(), 200);
    assert!(server.engine().await["steps"].as_u64().unwrap() > 0, "ready before a step has run");
    server.ask(&words("hello")).await;
}

#[tokio::test]
async fn stopping_finishes_what_runs_and_takes_nothing_new() {
    let mut server = start(Settings::default()).await;
    let mut request = words("hello");
    request["max_tokens"] = json!(400);
    request["logit_bias"] = json!({"2": -100});
    request["stream"] = json!(true);
    let running = server.post(&request).await;
    let handle = server.app.models().unwrap().models()[0].handle.clone();
    let reading = tokio::spawn(running.text());
    server.stop().await;
    let (pieces, done) = server::pieces(&reading.await.unwrap().unwrap());
    assert!(done, "the running answer was cut off");
    assert_eq!(pieces.last().unwrap()["choices"][0]["finish_reason"], "length");
    for _ in 0..200 {
        if !handle.status().alive() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert!(!handle.status().alive(), "the engine goes on");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_goes_on_behind_its_end_where_that_is_asked_for() {
    let server = start(Settings::default()).await;
    let mut request = words("hello");
    // The id that ends an answer, and nothing else.
    request["logit_bias"] = json!({"2": 100});
    request["temperature"] = json!(0);
    let answer = server.ask(&request).await;
    assert_eq!(answer["choices"][0]["finish_reason"], "stop");
    request["ignore_eos"] = json!(true);
    let answer = server.ask(&request).await;
    assert_eq!(answer["choices"][0]["finish_reason"], "length");
    assert_eq!(answer["usage"]["completion_tokens"], 8);
    request["ignore_eos"] = json!("yes");
    let (status, error) = server.refuse(&request).await;
    assert_eq!((status, error["param"].as_str()), (400, Some("ignore_eos")));
}

/// An HTTP server of three paths: a picture, a way to another host, and a canary.
async fn elsewhere(file: Vec<u8>) -> (u16, std::sync::Arc<std::sync::Mutex<Vec<String>>>) {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let listener = tokio::net::TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let asked = std::sync::Arc::new(std::sync::Mutex::new(Vec::new()));
    let paths = std::sync::Arc::clone(&asked);
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut request = vec![0; 4096];
            let length = stream.read(&mut request).await.unwrap();
            let request = String::from_utf8_lossy(&request[..length]).into_owned();
            let path = request.split(' ').nth(1).unwrap_or_default().to_owned();
            let answer = match path.as_str() {
                "/picture" => {
                    let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\nconnection: close\r\n\r\n", file.len());
                    [head.into_bytes(), file.clone()].concat()
                }
                "/away" => format!("HTTP/1.1 302 Found\r\nlocation: http://localhost:{port}/picture\r\ncontent-length: 0\r\n\r\n").into(),
                _ => b"HTTP/1.1 404 Not Found\r\ncontent-length: 6\r\n\r\nsecret".to_vec(),
            };
            paths.lock().unwrap().push(path);
            stream.write_all(&answer).await.unwrap();
        }
    });
    (port, asked)
}

#[tokio::test]
async fn pictures_are_fetched_from_where_the_operator_says_and_nowhere_else() {
    let name = "square_56x56.png";
    let (port, asked) = elsewhere(std::fs::read(fixtures().join("inputs").join(name)).unwrap()).await;
    let here = |path: &str| format!("http://127.0.0.1:{port}{path}");
    let ask = |url: &str, text: &str| {
        let content = json!([image_part(url), {"type": "text", "text": text}]);
        json!({"model": "llava", "messages": [{"role": "user", "content": content}], "temperature": 0, "max_tokens": 6})
    };
    let closed = start(Settings::default()).await;
    let (status, error) = closed.refuse(&ask(&here("/picture"), "what is it?")).await;
    assert_eq!((status, &error["code"]), (400, &json!("invalid_image_url")));
    assert!(error["message"].as_str().unwrap().contains("send the picture as a data URL"), "{error}");

    let policy = format!("127.0.0.1:{port},images.example").parse().unwrap();
    let server = start(Settings { fetch: Some(policy), ..Settings::default() }).await;
    let sent = server.ask(&ask(&data_url(name), "what is it?")).await;
    let fetched = server.ask(&ask(&here("/picture"), "what is it?")).await;
    assert_eq!(fetched["choices"], sent["choices"]);
    assert_eq!(fetched["usage"]["prompt_tokens"], sent["usage"]["prompt_tokens"]);
    assert_eq!(*asked.lock().unwrap(), ["/picture"]);
    for (url, part) in [
        (here("/away"), "fetches nothing from there"),
        (here("/missing"), "answered 404"),
        (format!("http://localhost:{port}/picture"), "fetches nothing from there"),
        (format!("http://user@127.0.0.1:{port}/picture"), "fetches nothing from there"),
        ("http://169.254.169.254/latest/meta-data".into(), "fetches nothing from there"),
        ("https://other.example/a.png".into(), "fetches nothing from there"),
        ("file:///etc/passwd".into(), "file URLs are not fetched"),
    ] {
        let (status, error) = server.refuse(&ask(&url, "what is it?")).await;
        let message = error["message"].as_str().unwrap();
        assert_eq!((status, &error["code"]), (400, &json!("invalid_image_url")), "{url}");
        assert!(
            message.contains(part) && !message.contains("secret") && !message.contains("127.0"),
            "{url}: {message}"
        );
    }
    // What a text mentions is not fetched.
    server.ask(&words(&format!("![a picture]({}) and {}", here("/canary"), here("/canary")))).await;
    assert_eq!(*asked.lock().unwrap(), ["/picture", "/away", "/missing"]);
}
