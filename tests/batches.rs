//! Files and batches: what is promised of them, also when the program ends at any point.
#![allow(clippy::unwrap_used, reason = "tests")]

mod support;

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    io::{BufRead as _, BufReader},
    num::{NonZeroU32, NonZeroU64},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use percept::{
    access::{KeyFile, Terms},
    api::App,
    config::Settings,
    operations::Operations,
    router::Router,
    store::{KEPT_SECONDS, NewBatch, NewFile, Owner, Store},
};
use reqwest::{
    Client, Method, Response,
    multipart::{Form, Part},
};
use serde_json::{Value, json};
use support::{
    llava,
    server::{Server, check_error, config, load, start, start_app, words},
};
use tempfile::TempDir;

/// A folder for a server's files, and its settings.
fn settings(folder: &Path) -> Settings {
    Settings { files: Some(folder.to_owned()), ..Settings::default() }
}

/// A client of a server.
#[derive(Clone)]
struct Caller {
    url: String,
    key: String,
    anthropic: bool,
}

impl Caller {
    fn of(server: &Server) -> Self {
        Self { url: server.url.clone(), key: String::new(), anthropic: false }
    }

    fn with(&self, key: &str) -> Self {
        Self { key: key.to_owned(), ..self.clone() }
    }

    fn anthropic(&self) -> Self {
        Self { anthropic: true, ..self.clone() }
    }

    fn request(&self, method: Method, path: &str) -> reqwest::RequestBuilder {
        let request = Client::new().request(method, format!("{}{path}", self.url));
        let request = if self.key.is_empty() { request } else { request.bearer_auth(&self.key) };
        if self.anthropic { request.header("anthropic-version", "2023-06-01") } else { request }
    }

    async fn json(response: Response) -> (u16, Value) {
        let status = response.status().as_u16();
        let text = response.text().await.unwrap();
        (status, serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}")))
    }

    async fn get(&self, path: &str) -> (u16, Value) {
        Self::json(self.request(Method::GET, path).send().await.unwrap()).await
    }

    async fn delete(&self, path: &str) -> (u16, Value) {
        Self::json(self.request(Method::DELETE, path).send().await.unwrap()).await
    }

    async fn post(&self, path: &str, body: &Value) -> (u16, Value) {
        Self::json(self.request(Method::POST, path).json(body).send().await.unwrap()).await
    }

    async fn upload(&self, form: Form) -> (u16, Value) {
        Self::json(self.request(Method::POST, "/v1/files").multipart(form).send().await.unwrap()).await
    }

    /// The id of a file of this content.
    async fn file(&self, content: &str) -> String {
        let part = Part::text(content.to_owned()).file_name("in.jsonl");
        let (status, file) = self.upload(Form::new().text("purpose", "batch").part("file", part)).await;
        assert_eq!(status, 200, "{file}");
        file["id"].as_str().unwrap().to_owned()
    }

    async fn content(&self, id: &str) -> String {
        let response = self.request(Method::GET, &format!("/v1/files/{id}/content")).send().await.unwrap();
        assert_eq!(response.status(), 200);
        response.text().await.unwrap()
    }

    /// The id of a batch of these lines.
    async fn batch(&self, lines: &[String]) -> String {
        let input = self.file(&lines.join("\n")).await;
        let (status, batch) = self.post("/v1/batches", &batch_of(&input)).await;
        assert_eq!(status, 200, "{batch}");
        assert_eq!((&batch["status"], &batch["object"]), (&json!("validating"), &json!("batch")));
        batch["id"].as_str().unwrap().to_owned()
    }

    /// A batch when it has one of these states.
    async fn until(&self, id: &str, states: &[&str]) -> Value {
        for _ in 0..3000 {
            let (status, batch) = self.get(&format!("/v1/batches/{id}")).await;
            assert_eq!(status, 200, "{batch}");
            if states.contains(&batch["status"].as_str().unwrap()) {
                return batch;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        panic!("the batch never is {states:?}");
    }

    /// The lines of a batch's output and of its errors, by their names: each has one.
    async fn outcome(&self, batch: &Value) -> BTreeMap<String, Value> {
        let mut lines = BTreeMap::new();
        for field in ["output_file_id", "error_file_id"] {
            let Some(id) = batch[field].as_str() else { continue };
            for line in self.content(id).await.lines() {
                let line: Value = serde_json::from_str(line).unwrap();
                let expected = if field == "output_file_id" { "200" } else { "4" };
                let status = line["response"]["status_code"].to_string();
                assert!(line["response"].is_null() || status.starts_with(expected), "{line}");
                assert!(line["id"].as_str().unwrap().starts_with("batch_req_"));
                let name = line["custom_id"].as_str().unwrap().to_owned();
                assert!(lines.insert(name.clone(), line).is_none(), "{name} is there twice");
            }
        }
        lines
    }
}

fn batch_of(input: &str) -> Value {
    json!({"input_file_id": input, "endpoint": "/v1/chat/completions", "completion_window": "24h"})
}

fn line(name: &str, body: &Value) -> String {
    json!({"custom_id": name, "method": "POST", "url": "/v1/chat/completions", "body": body}).to_string()
}

/// A request whose answer is the same each time, and long.
fn long(text: &str, tokens: usize) -> Value {
    let mut body = words(text);
    body["temperature"] = json!(0);
    body["max_tokens"] = json!(tokens);
    body["ignore_eos"] = json!(true);
    body
}

#[tokio::test]
async fn files_are_kept_listed_and_removed() {
    let folder = TempDir::new().unwrap();
    let mut server = start(settings(folder.path())).await;
    let caller = Caller::of(&server);
    let bytes = [b"\0\r\n--x\xff".as_slice(), &[7; 100_000]].concat();
    let upload = |name: &'static str, purpose: &'static str| {
        let part = Part::bytes(bytes.clone()).file_name(name);
        // The file is last in Python, and first in other clients.
        caller.upload(Form::new().part("file", part).text("purpose", purpose))
    };
    let (status, first) = upload("../../ä b.bin", "user_data").await;
    assert_eq!(status, 200, "{first}");
    let id = first["id"].as_str().unwrap();
    assert!(id.starts_with("file-"));
    let created = first["created_at"].as_i64().unwrap();
    let expected = json!({
        "id": id, "object": "file", "bytes": bytes.len(), "created_at": created, "expires_at": null,
        "filename": "../../ä b.bin", "purpose": "user_data", "status": "processed", "status_details": null,
    });
    assert_eq!(first, expected);
    let response = caller.request(Method::GET, &format!("/v1/files/{id}/content")).send().await.unwrap();
    assert_eq!(
        response.headers()["content-disposition"],
        "attachment; filename*=UTF-8''..%2F..%2F%C3%A4%20b.bin"
    );
    assert_eq!(response.headers()["x-content-type-options"], "nosniff");
    assert_eq!(response.bytes().await.unwrap(), bytes);
    let second = upload("b", "vision").await.1["id"].as_str().unwrap().to_owned();
    let third = upload("c", "user_data").await.1["id"].as_str().unwrap().to_owned();

    let ids = |list: &Value| {
        let data = list["data"].as_array().unwrap().iter();
        data.map(|file| file["id"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    for (query, expected, more) in [
        ("", vec![third.as_str(), &second, id], false),
        ("?order=asc", vec![id, &second, &third], false),
        ("?limit=2", vec![&third, &second], true),
        (&format!("?limit=2&after={second}"), vec![id], false),
        ("?purpose=user_data&order=asc", vec![id, &third], false),
        ("?purpose=evals", vec![], false),
    ] {
        let (status, list) = caller.get(&format!("/v1/files{query}")).await;
        assert_eq!(
            (status, ids(&list), &list["has_more"]),
            (200, expected.iter().map(|id| (*id).to_owned()).collect(), &json!(more)),
            "{query}"
        );
        assert_eq!(list["first_id"].as_str(), expected.first().copied());
        assert_eq!(list["last_id"].as_str(), expected.last().copied());
    }
    // As clients of the Anthropic API see them.
    let anthropic = caller.anthropic();
    let (status, list) = anthropic.get("/v1/files?limit=1").await;
    assert_eq!((status, ids(&list), &list["has_more"]), (200, vec![third.clone()], &json!(true)));
    assert_eq!(list["data"][0]["size_bytes"], bytes.len());
    // In pages, as newer clients turn them.
    let (mut page, mut turned) = (Some(String::new()), Vec::new());
    while let Some(cursor) = page {
        let (status, list) = anthropic.get(&format!("/v1/files?limit=1{cursor}")).await;
        assert_eq!(status, 200, "{list}");
        turned.extend(list["data"].as_array().unwrap().iter().map(|file| file["id"].clone()));
        page = list["next_page"].as_str().map(|page| format!("&page={page}"));
    }
    let (_, all) = anthropic.get("/v1/files?limit=1000").await;
    let all: Vec<Value> = all["data"].as_array().unwrap().iter().map(|file| file["id"].clone()).collect();
    assert!(turned == all && all.len() > 1, "{turned:?} {all:?}");
    let wanted =
        format!("ids[]={}&ids[]=file_nope&ids[]={}", all[1].as_str().unwrap(), all[1].as_str().unwrap());
    let (_, some) = anthropic.get(&format!("/v1/files?{wanted}")).await;
    assert_eq!((&some["data"][0]["id"], some["data"].as_array().unwrap().len()), (&all[1], 1), "{some}");
    assert_eq!(some["next_page"], Value::Null);
    let many: String = (0..101).map(|id| format!("ids=file_{id}&")).collect();
    for wrong in ["page=x", &format!("{wanted}&limit=1"), &many, "limit=0"] {
        let (status, _) = anthropic.get(&format!("/v1/files?{wrong}")).await;
        assert_eq!(status, 400, "{wrong}");
    }
    for (seconds, expected) in [("3600", 200), ("3599", 400), ("7776000", 200), ("7776001", 400)] {
        let part = Part::bytes(b"text".to_vec()).file_name("a.txt");
        let form = Form::new().text("expires_in_seconds", seconds).part("file", part);
        let (status, file) = anthropic.upload(form).await;
        assert_eq!(status, expected, "{file}");
        if status == 200 {
            let expires: jiff::Timestamp = file["expires_at"].as_str().unwrap().parse().unwrap();
            let created: jiff::Timestamp = file["created_at"].as_str().unwrap().parse().unwrap();
            assert_eq!((expires.as_second() - created.as_second()).to_string(), seconds, "{file}");
            anthropic.delete(&format!("/v1/files/{}", file["id"].as_str().unwrap())).await;
        } else {
            assert!(file["error"]["message"].as_str().unwrap().contains("expires_in_seconds"), "{file}");
        }
    }
    let (_, before) = anthropic.get(&format!("/v1/files?limit=1&before_id={id}")).await;
    assert_eq!(ids(&before), std::slice::from_ref(&second));
    let part = Part::text("x").file_name("x.txt").mime_str("text/plain").unwrap();
    let (status, theirs) = anthropic.upload(Form::new().part("file", part)).await;
    assert_eq!(status, 200, "{theirs}");
    assert!(theirs["id"].as_str().unwrap().starts_with("file_"));
    let expected = (&json!("file"), &json!("text/plain"), &json!(1));
    assert_eq!((&theirs["type"], &theirs["mime_type"], &theirs["size_bytes"]), expected);

    // A restart changes nothing.
    server.stop().await;
    drop(server);
    let server = start(settings(folder.path())).await;
    let caller = Caller::of(&server);
    let path = format!("/v1/files/{id}");
    assert_eq!(caller.get(&path).await, (200, first.clone()));
    assert_eq!(caller.delete(&path).await, (200, json!({"id": id, "object": "file", "deleted": true})));
    for path in [path.clone(), format!("{path}/content")] {
        let (status, error) = caller.get(&path).await;
        assert_eq!((status, &error["error"]["code"]), (404, &json!("not_found")), "{path}");
    }
    assert_eq!(caller.delete(&path).await.0, 404);
    let (status, error) = caller.anthropic().delete(&path).await;
    assert_eq!((status, &error["error"]["type"]), (404, &json!("not_found_error")));
    let names = fs::read_dir(folder.path().join("files")).unwrap().count();
    assert_eq!(names, 3, "the content of a file that is gone is there");
}

#[tokio::test]
async fn wrong_files_are_refused_and_leave_nothing() {
    let folder = TempDir::new().unwrap();
    let limited = Settings { max_file_bytes: Some("1000".parse().unwrap()), ..settings(folder.path()) };
    let server = start(limited).await;
    let caller = Caller::of(&server);
    let file = |bytes: usize| Part::bytes(vec![b'x'; bytes]).file_name("x");
    let form = |bytes: usize| Form::new().part("file", file(bytes));
    let with = |name: &'static str, value: &'static str| form(1).text("purpose", "batch").text(name, value);
    assert_eq!(caller.upload(form(1000).text("purpose", "batch")).await.0, 200);
    for (form, status, param, code) in [
        (form(1001).text("purpose", "batch"), 413, json!(null), "request_too_large"),
        (form(1), 400, json!("purpose"), "missing_required_parameter"),
        (form(1).text("purpose", "fun"), 400, json!("purpose"), "invalid_value"),
        (Form::new().text("purpose", "batch"), 400, json!("file"), "missing_required_parameter"),
        (form(1).part("file", file(1)), 400, json!("file"), "invalid_value"),
        (
            with("expires_after[seconds]", "3600"),
            400,
            json!("expires_after.anchor"),
            "missing_required_parameter",
        ),
        (
            with("expires_after[anchor]", "created_at").text("expires_after[seconds]", "3599"),
            400,
            json!("expires_after.seconds"),
            "integer_below_min_value",
        ),
        (
            with("expires_after[anchor]", "created_at").text("expires_after[seconds]", "2592001"),
            400,
            json!("expires_after.seconds"),
            "integer_above_max_value",
        ),
        (with("expires_after[anchor]", "x"), 400, json!("expires_after.anchor"), "invalid_value"),
    ] {
        let (found, error) = caller.upload(form).await;
        check_error(&error);
        let error = &error["error"];
        assert_eq!(
            (found, &error["param"], error["code"].as_str().unwrap()),
            (status, &param, code),
            "{error}"
        );
    }
    let kept = with("expires_after[anchor]", "created_at").text("expires_after[seconds]", "3600");
    let (_, kept) = caller.upload(kept).await;
    let times = [&kept["expires_at"], &kept["created_at"]].map(|time| time.as_i64().unwrap());
    assert!((3600..3605).contains(&(times[0] - times[1])));
    assert_eq!(fs::read_dir(folder.path().join("files")).unwrap().count(), 2, "something was kept");
    // Names that are none of ours lead nowhere.
    for name in ["..%2f..%2fetc%2fpasswd", "file-%00", "%2e%2e", "file-x", "percept.sqlite", "file-a.b"] {
        for path in
            [format!("/v1/files/{name}"), format!("/v1/files/{name}/content"), format!("/v1/batches/{name}")]
        {
            assert_eq!(caller.get(&path).await.0, 404, "{path}");
        }
        assert_eq!(caller.delete(&format!("/v1/files/{name}")).await.0, 404, "{name}");
    }
    for query in ["?limit=0", "?limit=10001", "?limit=x", "?order=up"] {
        assert_eq!(caller.get(&format!("/v1/files{query}")).await.0, 400, "{query}");
    }
    assert_eq!(caller.get("/v1/files?after=file-0").await.0, 404);
    // Without a folder there are no files.
    let server = start(Settings::default()).await;
    let caller = Caller::of(&server);
    for (status, error) in [caller.get("/v1/files").await, caller.post("/v1/batches", &json!({})).await] {
        check_error(&error);
        assert_eq!((status, &error["error"]["code"]), (404, &json!("files_not_kept")));
        assert!(error["error"]["message"].as_str().unwrap().contains("--files"));
    }
}

#[tokio::test]
async fn a_folder_is_one_servers() {
    let folder = TempDir::new().unwrap();
    let config = config(settings(folder.path())).store.unwrap();
    let first = Store::open(&config).unwrap();
    let error = Store::open(&config).unwrap_err().to_string();
    assert!(error.contains("in use by another server"), "{error}");
    drop(first);
    Store::open(&config).unwrap();
}

#[tokio::test]
async fn tenants_do_not_see_each_others_files() {
    let folder = TempDir::new().unwrap();
    let keys = folder.path().join("keys.toml");
    let add = |tenant: &str, terms| KeyFile::change(&keys, |keys| keys.add(tenant, terms, None)).unwrap().0;
    let terms = Terms { file_bytes: NonZeroU64::new(2000), ..Terms::default() };
    let (acme, other) = (add("acme", terms), add("other", Terms::default()));
    let only_chat = Terms { endpoints: Some(vec![percept::access::Area::Chat]), ..Terms::default() };
    let chat = add("chat", only_chat);
    let files = folder.path().join("files");
    let server = start(Settings { keys: Some(keys), ..settings(&files) }).await;
    let caller = Caller::of(&server);
    let (acme, other, chat) = (caller.with(&acme), caller.with(&other), caller.with(&chat));
    assert_eq!(caller.get("/v1/files").await.0, 401);
    assert_eq!(chat.get("/v1/files").await.0, 403);
    assert_eq!(chat.post("/v1/batches", &json!({})).await.0, 403);

    let lines: Vec<String> = (0..3).map(|index| line(&format!("l{index}"), &words("a b"))).collect();
    let input = acme.file(&lines.join("\n")).await;
    assert_eq!(other.get(&format!("/v1/files/{input}")).await.0, 404);
    assert_eq!(other.delete(&format!("/v1/files/{input}")).await.0, 404);
    assert_eq!(other.get("/v1/files").await.1["data"], json!([]));
    assert_eq!(other.post("/v1/batches", &batch_of(&input)).await.0, 404);
    let (_, batch) = acme.post("/v1/batches", &batch_of(&input)).await;
    let id = batch["id"].as_str().unwrap();
    for path in [format!("/v1/batches/{id}"), format!("/v1/messages/batches/{id}")] {
        assert_eq!(other.get(&path).await.0, 404, "{path}");
    }
    assert_eq!(acme.get(&format!("/v1/messages/batches/{id}")).await.0, 404, "it is of the other API");
    assert_eq!(other.post(&format!("/v1/batches/{id}/cancel"), &json!({})).await.0, 404);
    let batch = acme.until(id, &["completed"]).await;
    assert_eq!(other.get(&format!("/v1/files/{}", batch["output_file_id"].as_str().unwrap())).await.0, 404);
    assert_eq!(acme.outcome(&batch).await.len(), 3);
    // What it takes is the tenant's.
    let (_, usage) = acme.get("/v1/usage").await;
    assert_eq!(usage["total"]["prompt_tokens"], batch["usage"]["input_tokens"]);
    assert_eq!(usage["total"]["completion_tokens"], batch["usage"]["output_tokens"]);
    assert_eq!(other.get("/v1/usage").await.1["total"]["prompt_tokens"], 0);
    // And so is the room.
    let part = Part::bytes(vec![b'x'; 1500]).file_name("x");
    let (status, error) = acme.upload(Form::new().text("purpose", "batch").part("file", part)).await;
    assert_eq!((status, &error["error"]["code"]), (400, &json!("storage_limit_exceeded")), "{error}");
}

#[tokio::test]
async fn each_line_has_the_answer_that_a_client_gets() {
    let folder = TempDir::new().unwrap();
    let server = start(settings(folder.path())).await;
    let caller = Caller::of(&server);
    let mut lines = Vec::new();
    for index in 0..6 {
        lines.push(line(&format!("good {index}"), &long(&format!("words {index}"), 5 + index)));
    }
    let mut streamed = words("a");
    streamed["stream"] = json!(true);
    lines.push(line("streamed", &streamed));
    let mut gone = words("a");
    gone["model"] = json!("gone");
    lines.push(line("wrong", &json!({"model": "llava", "messages": "none"})));
    lines.push(line("unknown", &gone));
    lines.push(line(
        "ssrf",
        &json!({"model": "llava", "messages": [{"role": "user", "content": [
        {"type": "image_url", "image_url": {"url": "http://127.0.0.1:1/x.png"}}]}]}),
    ));
    let id = caller.batch(&lines).await;
    let batch = caller.until(&id, &["completed", "failed"]).await;
    assert_eq!(batch["status"], "completed", "{batch}");
    assert_eq!(batch["request_counts"], json!({"total": 10, "completed": 6, "failed": 4}));
    for (field, is_set) in [
        ("in_progress_at", true),
        ("finalizing_at", true),
        ("completed_at", true),
        ("failed_at", false),
        ("expired_at", false),
        ("cancelling_at", false),
        ("errors", false),
        ("metadata", false),
    ] {
        assert_eq!(batch[field].is_null(), !is_set, "{field}");
    }
    let outcome = caller.outcome(&batch).await;
    assert_eq!(outcome.len(), 10);
    let mut tokens = 0;
    for index in 0..6 {
        let answer = server.ask(&long(&format!("words {index}"), 5 + index)).await;
        let line = &outcome[&format!("good {index}")];
        assert_eq!(line["response"]["body"]["choices"], answer["choices"], "{line}");
        assert_eq!(
            line["response"]["body"]["usage"]["completion_tokens"],
            answer["usage"]["completion_tokens"]
        );
        assert!(
            line["error"].is_null() && line["response"]["request_id"].as_str().unwrap().starts_with("req_")
        );
        tokens += answer["usage"]["completion_tokens"].as_u64().unwrap();
    }
    assert_eq!(batch["usage"]["output_tokens"], tokens);
    for (name, status, code) in [
        ("streamed", 400, "unsupported_parameter"),
        ("wrong", 400, "invalid_type"),
        ("unknown", 404, "model_not_found"),
        ("ssrf", 400, "invalid_image_url"),
    ] {
        let response = &outcome[name]["response"];
        check_error(&response["body"]);
        assert_eq!(
            (&response["status_code"], &response["body"]["error"]["code"]),
            (&json!(status), &json!(code)),
            "{response}"
        );
    }
    // The input of a batch that has ended is its owner's again.
    let input = batch["input_file_id"].as_str().unwrap();
    assert_eq!(caller.delete(&format!("/v1/files/{input}")).await.0, 200);
    server.idle().await;
}

#[tokio::test]
async fn other_endpoints_have_batches_too() {
    let folder = TempDir::new().unwrap();
    let server = start(settings(folder.path())).await;
    let caller = Caller::of(&server);
    for (endpoint, body, text) in [
        ("/v1/completions", json!({"model": "llava", "prompt": "a b", "max_tokens": 4}), "/choices/0/text"),
        (
            "/v1/responses",
            json!({"model": "llava", "input": "a b", "max_output_tokens": 16}),
            "/output/0/content/0/text",
        ),
    ] {
        let line = json!({"custom_id": "x", "method": "POST", "url": endpoint, "body": body});
        let input = caller.file(&line.to_string()).await;
        let mut request = batch_of(&input);
        request["endpoint"] = json!(endpoint);
        request["metadata"] = json!({"a": "b"});
        request["output_expires_after"] = json!({"anchor": "created_at", "seconds": 7200});
        let (_, batch) = caller.post("/v1/batches", &request).await;
        assert_eq!(batch["metadata"], json!({"a": "b"}));
        let batch = caller.until(batch["id"].as_str().unwrap(), &["completed"]).await;
        assert!(batch["usage"]["input_tokens"].as_u64().unwrap() > 0, "{batch}");
        let outcome = caller.outcome(&batch).await;
        assert!(outcome["x"]["response"]["body"].pointer(text).unwrap().is_string(), "{outcome:?}");
        let (_, output) =
            caller.get(&format!("/v1/files/{}", batch["output_file_id"].as_str().unwrap())).await;
        assert_eq!(output["purpose"], "batch_output");
        assert!(output["expires_at"].as_i64().unwrap() > output["created_at"].as_i64().unwrap() + 7100);
    }
}

#[tokio::test]
async fn what_is_wrong_with_a_batch_is_told() {
    let folder = TempDir::new().unwrap();
    let server = start(settings(folder.path())).await;
    let caller = Caller::of(&server);
    let input =
        caller.file(&format!("{}\nnonsense\n{}", line("a", &words("a")), line("a", &words("b")))).await;
    for (change, status, param, code) in [
        (json!({"endpoint": null}), 400, "endpoint", "missing_required_parameter"),
        (json!({"endpoint": "/v1/files"}), 400, "endpoint", "invalid_value"),
        (json!({"completion_window": "1h"}), 400, "completion_window", "invalid_value"),
        (json!({"input_file_id": null}), 400, "input_file_id", "missing_required_parameter"),
        (json!({"input_file_id": "file-0"}), 404, "id", "not_found"),
        (json!({"input_file_id": "../x"}), 404, "id", "not_found"),
        (json!({"metadata": {"a": "x".repeat(513)}}), 400, "metadata.a", "string_above_max_length"),
        (json!({"metadata": {"a": 1}}), 400, "metadata.a", "invalid_type"),
        (
            json!({"output_expires_after": {"anchor": "created_at", "seconds": 1}}),
            400,
            "output_expires_after.seconds",
            "integer_below_min_value",
        ),
    ] {
        let mut request = batch_of(&input);
        for (name, value) in change.as_object().unwrap() {
            request[name] = value.clone();
        }
        let (found, error) = caller.post("/v1/batches", &request).await;
        check_error(&error);
        let error = &error["error"];
        let expected = (status, Some(param), Some(code));
        assert_eq!((found, error["param"].as_str(), error["code"].as_str()), expected, "{error}");
    }
    let (_, batch) = caller.post("/v1/batches", &batch_of(&input)).await;
    let batch = caller.until(batch["id"].as_str().unwrap(), &["failed"]).await;
    let problems = batch["errors"]["data"].as_array().unwrap();
    let problems: Vec<_> =
        problems.iter().map(|it| (it["code"].as_str().unwrap(), it["line"].as_u64())).collect();
    assert_eq!(problems, [("invalid_json_line", Some(2)), ("duplicate_custom_id", Some(3))]);
    assert!(batch["failed_at"].is_i64() && batch["output_file_id"].is_null());
    let (status, error) =
        caller.post(&format!("/v1/batches/{}/cancel", batch["id"].as_str().unwrap()), &json!({})).await;
    assert_eq!((status, &error["error"]["code"]), (409, &json!("conflict")));
    let empty = caller.file(" \n\n").await;
    let (_, batch) = caller.post("/v1/batches", &batch_of(&empty)).await;
    let batch = caller.until(batch["id"].as_str().unwrap(), &["failed"]).await;
    assert_eq!(batch["errors"]["data"][0]["code"], "empty_file");
    let (_, list) = caller.get("/v1/batches?limit=1").await;
    assert_eq!((&list["data"][0]["id"], &list["has_more"]), (&batch["id"], &json!(true)));
    let (_, rest) = caller.get(&format!("/v1/batches?after={}", batch["id"].as_str().unwrap())).await;
    assert_eq!((rest["data"].as_array().unwrap().len(), &rest["has_more"]), (1, &json!(false)));
}

#[tokio::test]
async fn batches_take_turns_at_being_read() {
    let folder = TempDir::new().unwrap();
    let server = start(settings(folder.path())).await;
    let caller = Caller::of(&server);
    let good = caller.file(&line("a", &long("words", 2))).await;
    let wrong = caller.file(&"nonsense\n".repeat(90)).await;
    let mut batches = Vec::new();
    for number in 0..24 {
        let (input, end) = [(&good, "completed"), (&wrong, "failed")][number % 2];
        let (status, batch) = caller.post("/v1/batches", &batch_of(input)).await;
        assert_eq!(status, 200, "{batch}");
        let id = batch["id"].as_str().unwrap().to_owned();
        // Some leave while they wait for their turn, if there is time.
        if number % 6 == 4 {
            caller.post(&format!("/v1/batches/{id}/cancel"), &json!({})).await;
            batches.push((id, vec!["cancelled", end]));
        } else {
            batches.push((id, vec![end]));
        }
    }
    for (id, ends) in batches {
        caller.until(&id, &ends).await;
    }
    server.idle().await;
}

/// Many lines, each of which takes a while.
fn many(count: usize, tokens: usize) -> Vec<String> {
    (0..count).map(|index| line(&format!("l{index}"), &long(&format!("words {index}"), tokens))).collect()
}

#[tokio::test]
async fn a_client_does_not_wait_for_a_batch() {
    let folder = TempDir::new().unwrap();
    // The batch could fill every place there is.
    let few = Settings { max_sequences: Some(2), batch_requests: Some(8), ..settings(folder.path()) };
    let server = start(few).await;
    let caller = Caller::of(&server);
    let id = caller.batch(&many(30, 100)).await;
    caller.until(&id, &["in_progress"]).await;
    while server.engine().await["running"] != 2 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let done =
        || async { caller.get(&format!("/v1/batches/{id}")).await.1["request_counts"]["completed"].as_u64() };
    let before = done().await.unwrap();
    for _ in 0..3 {
        server.ask(&long("a client", 20)).await;
    }
    let after = done().await.unwrap();
    // Each of its answers is a fifth of a line; without a way past, it would come behind eight of them.
    assert!(after - before <= 8, "{} lines were answered meanwhile", after - before);
    assert!(server.engine().await["preemptions"].as_u64().unwrap() > 0, "nobody made room");
    let batch = caller.until(&id, &["completed"]).await;
    let outcome = caller.outcome(&batch).await;
    assert_eq!(outcome.len(), 30);
    let alone = server.ask(&long("words 3", 100)).await;
    assert_eq!(
        outcome["l3"]["response"]["body"]["choices"], alone["choices"],
        "giving way changed an answer"
    );
    server.idle().await;
}

#[tokio::test]
async fn a_batch_that_is_cancelled_keeps_what_it_has() {
    let folder = TempDir::new().unwrap();
    let server = start(Settings { batch_requests: Some(2), ..settings(folder.path()) }).await;
    let caller = Caller::of(&server);
    let id = caller.batch(&many(200, 60)).await;
    let input = caller.until(&id, &["in_progress"]).await["input_file_id"].as_str().unwrap().to_owned();
    let (status, error) = caller.delete(&format!("/v1/files/{input}")).await;
    assert_eq!((status, &error["error"]["code"]), (409, &json!("conflict")), "{error}");
    while caller.get(&format!("/v1/batches/{id}")).await.1["request_counts"]["completed"].as_u64() < Some(3) {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let (status, batch) = caller.post(&format!("/v1/batches/{id}/cancel"), &json!({})).await;
    assert_eq!(status, 200, "{batch}");
    assert!(batch["cancelling_at"].is_i64(), "{batch}");
    let batch = caller.until(&id, &["cancelled"]).await;
    let completed = batch["request_counts"]["completed"].as_u64().unwrap();
    assert!((3..200).contains(&completed), "{batch}");
    let outcome = caller.outcome(&batch).await;
    assert_eq!(outcome.len(), 200);
    let cancelled = outcome.values().filter(|line| line["error"]["code"] == "batch_cancelled").count() as u64;
    assert_eq!(cancelled + completed, 200);
    // Once more does no harm.
    assert_eq!(caller.post(&format!("/v1/batches/{id}/cancel"), &json!({})).await.0, 200);
    server.idle().await;
}

#[tokio::test]
async fn a_batch_whose_time_runs_out_keeps_what_it_has() {
    let folder = TempDir::new().unwrap();
    let config = config(Settings { batch_requests: Some(2), ..settings(folder.path()) });
    let store = Store::open(config.store.as_ref().unwrap()).unwrap();
    let app = App::guarded(config.api.clone(), Operations::default(), Some(store.clone()));
    app.serve(Router::new(load(&config)));
    let server = start_app(app, config.drain).await;
    let caller = Caller::of(&server);
    let input = caller.file(&many(2000, 60).join("\n")).await;
    let new = NewBatch {
        prefix: "batch_",
        endpoint: "/v1/chat/completions".into(),
        window: "24h".into(),
        metadata: None,
        output_expires: None,
        seconds: 2,
        total: 0,
        most_open: 100,
    };
    let id = store.add_batch(&Owner { tenant: None, key: None }, &input, new).await.unwrap().unwrap().id;
    // Whoever makes one wakes the rest.
    let other = caller.batch(&[line("x", &words("a"))]).await;
    let batch = caller.until(&id, &["expired"]).await;
    assert!(batch["expired_at"].is_i64() && batch["completed_at"].is_null(), "{batch}");
    let outcome = caller.outcome(&batch).await;
    assert_eq!(outcome.len(), 2000);
    let expired = outcome.values().filter(|line| line["error"]["code"] == "batch_expired").count() as u64;
    assert_eq!(expired + batch["request_counts"]["completed"].as_u64().unwrap(), 2000);
    assert!(expired > 0);
    caller.until(&other, &["completed"]).await;
}

/// A line that is refused for a while is tried again, by a limit that clients have as well.
#[tokio::test]
async fn limits_make_a_batch_slow_and_budgets_end_it() {
    let folder = TempDir::new().unwrap();
    let keys = folder.path().join("keys.toml");
    let add = |tenant: &str, terms| KeyFile::change(&keys, |keys| keys.add(tenant, terms, None)).unwrap().0;
    let slow = Terms { requests_per_minute: NonZeroU32::new(600), ..Terms::default() };
    let poor = Terms { tokens_per_month: NonZeroU64::new(30), ..Terms::default() };
    let (slow, poor) = (add("slow", slow), add("poor", poor));
    let server =
        start(Settings { keys: Some(keys), batch_requests: Some(1), ..settings(&folder.path().join("f")) })
            .await;
    let caller = Caller::of(&server);
    let slow = caller.with(&slow);
    // More than there are at once; the rest comes back with time.
    for _ in 0..598 {
        slow.post("/v1/chat/completions", &json!({})).await;
    }
    let errors = async || slow.get("/v1/usage").await.1["total"]["errors"].clone();
    let before = errors().await;
    let id = slow.batch(&many(8, 2)).await;
    let batch = slow.until(&id, &["completed"]).await;
    assert_eq!(batch["request_counts"], json!({"total": 8, "completed": 8, "failed": 0}));
    assert_eq!(errors().await, before, "lines that wait are written down as requests that failed");

    let poor = caller.with(&poor);
    let id = poor.batch(&many(8, 10)).await;
    let batch = poor.until(&id, &["completed"]).await;
    let outcome = poor.outcome(&batch).await;
    let codes: BTreeSet<&str> =
        outcome.values().filter_map(|line| line["response"]["body"]["error"]["code"].as_str()).collect();
    assert_eq!(codes, ["insufficient_quota"].into(), "{outcome:?}");
    assert!(batch["request_counts"]["completed"].as_u64().unwrap() > 0);
}

/// What all answers took, whosever they are.
async fn used(server: &Server) -> Value {
    server.get("/v1/usage").await.json::<Value>().await.unwrap()["total"].clone()
}

/// Puts another content in the place of a file's, at once.
fn replace(folder: &Path, id: &str, content: &[u8]) {
    fs::write(folder.join("next"), content).unwrap();
    fs::rename(folder.join("next"), folder.join("files").join(id)).unwrap();
}

#[tokio::test]
async fn lines_wait_for_models_and_are_not_refused() {
    let folder = TempDir::new().unwrap();
    let config = config(settings(folder.path()));
    let store = Store::open(config.store.as_ref().unwrap()).unwrap();
    let app = App::guarded(config.api.clone(), Operations::default(), Some(store));
    let server = start_app(app.clone(), config.drain).await;
    let caller = Caller::of(&server);
    let id = caller.batch(&many(20, 2)).await;
    caller.until(&id, &["in_progress"]).await;
    app.serve(Router::new(load(&config)));
    let batch = caller.until(&id, &["completed"]).await;
    assert_eq!(batch["request_counts"], json!({"total": 20, "completed": 20, "failed": 0}));
    assert_eq!(used(&server).await["errors"], 0, "lines were begun before there was a model");
}

#[tokio::test]
async fn a_batch_is_counted_as_a_request() {
    let folder = TempDir::new().unwrap();
    let keys = folder.path().join("keys.toml");
    let terms = Terms { requests_per_minute: NonZeroU32::new(2), ..Terms::default() };
    let key = KeyFile::change(&keys, |keys| keys.add("slow", terms, None)).unwrap().0;
    let server = start(Settings { keys: Some(keys), ..settings(&folder.path().join("f")) }).await;
    let caller = Caller::of(&server).with(&key);
    let input = caller.file("nonsense").await;
    for _ in 0..2 {
        assert_eq!(caller.post("/v1/batches", &batch_of(&input)).await.0, 200);
    }
    let (status, error) = caller.post("/v1/batches", &batch_of(&input)).await;
    check_error(&error);
    assert_eq!((status, &error["error"]["code"]), (429, &json!("rate_limit_exceeded")));
    let params = json!({"model": "llava", "max_tokens": 1, "messages": []});
    let requests = json!({"requests": [{"custom_id": "a", "params": params}]});
    let (status, error) = caller.anthropic().post("/v1/messages/batches", &requests).await;
    assert_eq!((status, &error["error"]["type"]), (429, &json!("rate_limit_error")));
}

#[tokio::test]
async fn a_failing_disk_costs_no_answer() {
    let folder = TempDir::new().unwrap();
    drop(Store::open(config(settings(folder.path())).store.as_ref().unwrap()).unwrap());
    let database = rusqlite::Connection::open(folder.path().join("percept.sqlite")).unwrap();
    let until: i64 = database.query_row("SELECT strftime('%s', 'now') + 6", (), |row| row.get(0)).unwrap();
    let full = format!(
        "CREATE TRIGGER is_full BEFORE UPDATE ON lines WHEN strftime('%s', 'now') + 0 < {until} \
         BEGIN SELECT RAISE(ABORT, 'database or disk is full'); END"
    );
    database.execute_batch(&full).unwrap();
    drop(database);
    let server = start(Settings { batch_requests: Some(4), ..settings(folder.path()) }).await;
    let caller = Caller::of(&server);
    let id = caller.batch(&many(12, 20)).await;
    let batch = caller.until(&id, &["completed"]).await;
    assert_eq!(batch["request_counts"], json!({"total": 12, "completed": 12, "failed": 0}));
    assert_eq!(batch["usage"]["output_tokens"], 12 * 20);
    assert_eq!(used(&server).await["completion_tokens"], 12 * 20, "answers were computed again");
}

#[tokio::test]
async fn lines_that_cannot_be_read_take_no_others_with_them() {
    let folder = TempDir::new().unwrap();
    let server = start(Settings { batch_requests: Some(4), ..settings(folder.path()) }).await;
    let caller = Caller::of(&server);
    let lines = many(12, 100);
    let id = caller.batch(&lines).await;
    let batch = caller.until(&id, &["in_progress"]).await;
    let input = batch["input_file_id"].as_str().unwrap();
    while server.engine().await["running"] == 0 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    replace(folder.path(), input, b"");
    server.idle().await;
    replace(folder.path(), input, lines.join("\n").as_bytes());
    let batch = caller.until(&id, &["completed"]).await;
    assert_eq!(batch["request_counts"], json!({"total": 12, "completed": 12, "failed": 0}));
    assert_eq!(used(&server).await["completion_tokens"], 12 * 100, "answers were computed again");

    // What is lost for good is said to be, line by line.
    let id = caller.batch(&lines).await;
    let batch = caller.until(&id, &["in_progress"]).await;
    while server.engine().await["running"] == 0 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    fs::remove_file(folder.path().join("files").join(batch["input_file_id"].as_str().unwrap())).unwrap();
    let batch = caller.until(&id, &["completed"]).await;
    let counts = &batch["request_counts"];
    assert!(counts["completed"].as_u64() > Some(0) && counts["failed"].as_u64() > Some(0), "{batch}");
    let errors = caller.content(batch["error_file_id"].as_str().unwrap()).await;
    for line in errors.lines().map(|line| serde_json::from_str::<Value>(line).unwrap()) {
        check_error(&line["response"]["body"]);
        assert_eq!(line["response"]["status_code"], 500, "{line}");
    }
}

#[tokio::test]
async fn a_line_is_read_when_it_has_a_place() {
    let folder = TempDir::new().unwrap();
    let few = Settings { max_sequences: Some(1), batch_requests: Some(1), ..settings(folder.path()) };
    let server = start(few).await;
    let caller = Caller::of(&server);
    // A line has the one place, and waits for clients.
    let clients: Vec<_> = (0..4).map(|_| tokio::spawn(server.post(&long("a client", 150)))).collect();
    let queue = async || server.engine().await["waiting"].as_u64();
    while queue().await < Some(3) {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let first = caller.batch(&many(1, 2)).await;
    caller.until(&first, &["in_progress"]).await;
    for _ in 0..100 {
        if queue().await > Some(3) {
            break;
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let line = |word: &str| line("x", &long(word, 4));
    let second = caller.batch(&[line("before")]).await;
    let batch = caller.until(&second, &["in_progress"]).await;
    replace(folder.path(), batch["input_file_id"].as_str().unwrap(), line("behind").as_bytes());
    for client in clients {
        assert_eq!(client.await.unwrap().status(), 200);
    }
    caller.until(&first, &["completed"]).await;
    let batch = caller.until(&second, &["completed"]).await;
    let answer = server.ask(&long("behind", 4)).await;
    let outcome = caller.outcome(&batch).await;
    assert_eq!(outcome["x"]["response"]["body"]["choices"], answer["choices"], "it was read before");
}

#[tokio::test]
async fn batches_are_forgotten_a_month_after_their_end() {
    let folder = TempDir::new().unwrap();
    let mut server = start(settings(folder.path())).await;
    let caller = Caller::of(&server);
    let id = caller.batch(&many(1, 1)).await;
    let batch = caller.until(&id, &["completed"]).await;
    server.stop().await;
    drop(server);
    let database = rusqlite::Connection::open(folder.path().join("percept.sqlite")).unwrap();
    database.execute("UPDATE batches SET ended = ended - ?1", (KEPT_SECONDS + 1,)).unwrap();
    drop(database);
    let server = start(settings(folder.path())).await;
    let caller = Caller::of(&server);
    while caller.get(&format!("/v1/batches/{id}")).await.0 != 404 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert_eq!(caller.get("/v1/batches").await.1["data"], json!([]));
    // Its files are files as others are.
    assert!(!caller.content(batch["output_file_id"].as_str().unwrap()).await.is_empty());
}

/// Requests are kept as they came; a batch that fails as a whole says why.
#[tokio::test]
async fn message_batches_say_why_they_fail() {
    let folder = TempDir::new().unwrap();
    let config = config(Settings { max_body: Some("100000".parse().unwrap()), ..settings(folder.path()) });
    let store = Store::open(config.store.as_ref().unwrap()).unwrap();
    let app = App::guarded(config.api.clone(), Operations::default(), Some(store.clone()));
    app.serve(Router::new(load(&config)));
    let server = start_app(app, config.drain).await;
    let caller = Caller::of(&server).anthropic();
    let until = async |id: &str| loop {
        let (_, batch) = caller.get(&format!("/v1/messages/batches/{id}")).await;
        if batch["processing_status"] == "ended" {
            break batch;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    };
    let ask = r#"{"model": "llava", "max_tokens": 2, "messages": [{"role": "user", "content": "a"}]"#;
    let numbers = vec!["1e15"; 15_000].join(",");
    let requests = format!(
        r#"{{"requests": [{{"custom_id": "good", "params": {ask}}}}},
                          {{"custom_id": "long", "params": {ask}, "more": [{numbers}]}}}}]}}"#
    );
    let request = caller.request(Method::POST, "/v1/messages/batches");
    let request = request.header("content-type", "application/json").body(requests);
    let (status, batch) = Caller::json(request.send().await.unwrap()).await;
    assert_eq!(status, 200, "{batch}");
    let batch = until(batch["id"].as_str().unwrap()).await;
    // A request is as long as it came, and says what it said: as a float, each of these is 18 characters.
    let counts = json!({"processing": 0, "succeeded": 2, "errored": 0, "canceled": 0, "expired": 0});
    assert_eq!(batch["request_counts"], counts, "{batch}");
    for wrong in ["[]", "1", "null", r#"{"stream": true}"#] {
        let requests = format!(r#"{{"requests": [{{"custom_id": "a", "params": {wrong}}}]}}"#);
        let request = caller.request(Method::POST, "/v1/messages/batches");
        let request = request.header("content-type", "application/json").body(requests);
        let (status, error) = Caller::json(request.send().await.unwrap()).await;
        assert_eq!(status, 400, "{wrong}: {error}");
        assert!(error["error"]["message"].as_str().unwrap().contains("requests.0.params"), "{error}");
    }

    // Where nothing can be read at all, there is no line that could say so.
    let mut lines = tempfile::tempfile().unwrap();
    std::io::Write::write_all(&mut lines, b"nonsense").unwrap();
    std::io::Seek::rewind(&mut lines).unwrap();
    let input = NewFile { prefix: "file_", hidden: true, ..NewFile::default() };
    let new = NewBatch {
        prefix: "msgbatch_",
        endpoint: "/v1/messages".into(),
        window: "24h".into(),
        metadata: None,
        output_expires: None,
        seconds: 3600,
        total: 2,
        most_open: 100,
    };
    let everyone = Owner { tenant: None, key: None };
    let id = store.add_batch_of(&everyone, input, lines, new).await.unwrap().id;
    // Whoever makes one wakes the rest.
    Caller::of(&server).batch(&[line("x", &words("a"))]).await;
    let batch = until(&id).await;
    assert_eq!(
        (&batch["request_counts"]["errored"], &batch["request_counts"]["processing"]),
        (&json!(2), &json!(0))
    );
    let (status, error) = caller.get(batch["results_url"].as_str().unwrap()).await;
    let message = error["error"]["message"].as_str().unwrap();
    assert!(status == 409 && message.contains("request 1: This line is not parseable"), "{error}");
}

#[tokio::test]
async fn message_batches_are_answered_too() {
    let folder = TempDir::new().unwrap();
    let server = start(settings(folder.path())).await;
    let caller = Caller::of(&server).anthropic();
    let ask = |text: &str| json!({"model": "llava", "max_tokens": 6, "temperature": 0, "messages": [{"role": "user", "content": text}]});
    let item = |name: &str, params: Value| json!({"custom_id": name, "params": params});
    let requests = json!({"requests": [
        item("one", ask("a b")),
        item("two", ask("c d")),
        item("wrong", json!({"model": "llava", "messages": []})),
    ]});
    let (status, batch) = caller.post("/v1/messages/batches", &requests).await;
    assert_eq!(status, 200, "{batch}");
    let id = batch["id"].as_str().unwrap();
    assert!(id.starts_with("msgbatch_"));
    assert_eq!(
        (&batch["processing_status"], &batch["type"]),
        (&json!("in_progress"), &json!("message_batch"))
    );
    assert_eq!(
        batch["request_counts"],
        json!({"processing": 3, "succeeded": 0, "errored": 0, "canceled": 0, "expired": 0})
    );
    assert!(batch["results_url"].is_null());
    let path = format!("/v1/messages/batches/{id}");
    let batch = loop {
        let (_, batch) = caller.get(&path).await;
        if batch["processing_status"] == "ended" {
            break batch;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    };
    assert_eq!(
        batch["request_counts"],
        json!({"processing": 0, "succeeded": 2, "errored": 1, "canceled": 0, "expired": 0})
    );
    assert_eq!(batch["results_url"], format!("{path}/results"));
    let response = caller.request(Method::GET, &format!("{path}/results")).send().await.unwrap();
    assert_eq!(response.headers()["content-type"], "application/x-jsonl");
    let results: BTreeMap<String, Value> = response
        .text()
        .await
        .unwrap()
        .lines()
        .map(|line| {
            let line: Value = serde_json::from_str(line).unwrap();
            (line["custom_id"].as_str().unwrap().to_owned(), line["result"].clone())
        })
        .collect();
    assert_eq!(results.len(), 3);
    let (_, alone) = caller.post("/v1/messages", &ask("c d")).await;
    assert_eq!(results["two"]["message"]["content"], alone["content"]);
    assert_eq!(results["two"]["type"], "succeeded");
    let error = &results["wrong"];
    assert_eq!((&error["type"], &error["error"]["type"]), (&json!("errored"), &json!("error")));
    assert_eq!(error["error"]["error"]["type"], "invalid_request_error");
    // Its files are its own, and are not listed.
    assert_eq!(caller.get("/v1/files").await.1["data"], json!([]));
    assert_eq!(caller.get("/v1/messages/batches").await.1["data"][0]["id"], *id);
    assert_eq!(Caller::of(&server).get("/v1/batches").await.1["data"], json!([]));
    assert_eq!(caller.delete(&path).await, (200, json!({"id": id, "type": "message_batch_deleted"})));
    assert_eq!(caller.get(&path).await.0, 404);
    assert_eq!(fs::read_dir(folder.path().join("files")).unwrap().count(), 0, "something is left");

    for (requests, message) in [
        (json!([]), "requests"),
        (json!([{"params": {}}]), "requests.0.custom_id: Field required"),
        (json!([item("a b", ask("x"))]), "requests.0.custom_id"),
        (json!([item(&"x".repeat(65), ask("x"))]), "requests.0.custom_id"),
        (json!([item("a", ask("x")), item("a", ask("x"))]), "requests.1.custom_id"),
        (json!([{"custom_id": "a"}]), "requests.0.params: Field required"),
    ] {
        let (status, error) = caller.post("/v1/messages/batches", &json!({"requests": requests})).await;
        let found = error["error"]["message"].as_str().unwrap();
        assert!(status == 400 && found.starts_with(message), "{error}");
    }
    // One that runs is not deleted but cancelled.
    let slow: Vec<Value> = (0..50)
        .map(|index| {
            item(&format!("l{index}"), {
                let mut ask = ask("a");
                ask["max_tokens"] = json!(400);
                ask
            })
        })
        .collect();
    let (_, batch) = caller.post("/v1/messages/batches", &json!({"requests": slow})).await;
    let path = format!("/v1/messages/batches/{}", batch["id"].as_str().unwrap());
    let (status, error) = caller.delete(&path).await;
    assert_eq!((status, &error["error"]["type"]), (409, &json!("conflict_error")), "{error}");
    let (status, batch) = caller.post(&format!("{path}/cancel"), &json!({})).await;
    assert_eq!((status, batch["cancel_initiated_at"].is_string()), (200, true), "{batch}");
    server.idle().await;
}

/// A server as a process.
struct Process {
    child: Child,
    url: String,
}

impl Process {
    fn start(folder: &Path) -> Self {
        let mut child = Command::new(env!("CARGO_BIN_EXE_percept"))
            .args(["serve", llava().to_str().unwrap(), "--port", "0", "--offline", "--no-ui"])
            .args(["--max-sequences", "4", "--batch-requests", "4", "--files", folder.to_str().unwrap()])
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let url = line.trim().rsplit(' ').next().unwrap().trim_end_matches("/v1").to_owned();
        Self { child, url }
    }

    fn caller(&self) -> Caller {
        Caller { url: self.url.clone(), key: String::new(), anthropic: false }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // As the kernel does it when there is no memory: at any point.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn no_line_is_lost_or_answered_twice_whenever_the_program_is_killed() {
    let folder = TempDir::new().unwrap();
    let mut process = Process::start(folder.path());
    let lines = many(60, 30);
    let ids = [process.caller().batch(&lines).await, process.caller().batch(&lines[..20]).await];
    let mut counts = Vec::new();
    for round in 0_u64..12 {
        tokio::time::sleep(Duration::from_millis(20 + 37 * round % 150)).await;
        drop(process);
        process = Process::start(folder.path());
        let batch = process.caller().get(&format!("/v1/batches/{}", ids[0])).await.1;
        counts.push(batch["request_counts"]["completed"].as_u64().unwrap());
    }
    assert!(counts.is_sorted(), "answers were lost: {counts:?}");
    let caller = process.caller();
    for (id, count) in ids.iter().zip([60, 20]) {
        let batch = caller.until(id, &["completed"]).await;
        assert_eq!(batch["request_counts"], json!({"total": count, "completed": count, "failed": 0}));
        let outcome = caller.outcome(&batch).await;
        assert_eq!(outcome.len(), count);
        let (_, alone) = caller.post("/v1/chat/completions", &long("words 7", 30)).await;
        assert_eq!(outcome["l7"]["response"]["body"]["choices"], alone["choices"]);
        for line in outcome.values() {
            assert_eq!(line["response"]["body"]["usage"]["completion_tokens"], 30);
        }
    }
    // Nothing is left of what was begun and not ended: two inputs, two outputs.
    drop(process);
    // A kill in the middle of writing a content leaves this.
    fs::write(folder.path().join("files/file-0123456789abcdef0123456789abcdef#1"), "not all of").unwrap();
    let process = Process::start(folder.path());
    for _ in 0..200 {
        if fs::read_dir(folder.path().join("files")).unwrap().count() == 4 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let left: Vec<PathBuf> =
        fs::read_dir(folder.path().join("files")).unwrap().map(|entry| entry.unwrap().path()).collect();
    assert_eq!(left.len(), 4, "{left:?}");
    drop(process);
}

#[tokio::test]
async fn requests_name_files_that_are_kept() {
    let folder = TempDir::new().unwrap();
    let server = start(settings(folder.path())).await;
    let caller = Caller::of(&server);
    let picture = fs::read(support::fixtures().join("inputs/land_90x60.png")).unwrap();
    let url = support::server::data_url_of(&picture);
    let upload = async |bytes: Vec<u8>| {
        let part = Part::bytes(bytes).file_name("x");
        let (_, file) = caller.upload(Form::new().text("purpose", "user_data").part("file", part)).await;
        file["id"].as_str().unwrap().to_owned()
    };
    let (kept, text) = (upload(picture.clone()).await, upload(b"some plain text".to_vec()).await);
    let ask = |part: Value| {
        json!({"model": "llava", "temperature": 0, "max_output_tokens": 16, "input": [{"role": "user", "content": [
            {"type": "input_text", "text": "what"}, part]}]})
    };
    let said = async |path: &str, body: Value, place: &str| {
        let (status, answer) = caller.post(path, &body).await;
        assert_eq!(status, 200, "{answer}");
        answer.pointer(place).unwrap().as_str().unwrap().to_owned()
    };
    let output = "/output/0/content/0/text";
    let by_id = said("/v1/responses", ask(json!({"type": "input_image", "file_id": kept})), output).await;
    let by_url = said("/v1/responses", ask(json!({"type": "input_image", "image_url": url})), output).await;
    assert_eq!(by_id, by_url);
    let by_id = said("/v1/responses", ask(json!({"type": "input_file", "file_id": text})), output).await;
    let data = json!({"type": "input_file", "file_data": "c29tZSBwbGFpbiB0ZXh0"});
    assert_eq!(by_id, said("/v1/responses", ask(data), output).await);
    let messages = |source: Value| {
        json!({"model": "llava", "temperature": 0, "max_tokens": 6, "messages": [{"role": "user", "content": [
            {"type": "image", "source": source}]}]})
    };
    let anthropic = "/content/0/text";
    let by_id = said("/v1/messages", messages(json!({"type": "file", "file_id": kept})), anthropic).await;
    let data = url.split_once(',').unwrap().1;
    let by_data = messages(json!({"type": "base64", "media_type": "image/png", "data": data}));
    assert_eq!(by_id, said("/v1/messages", by_data, anthropic).await);
    for (id, status) in [("file-0", 404), ("../x", 404), (text.as_str(), 400)] {
        let (found, error) =
            caller.post("/v1/responses", &ask(json!({"type": "input_image", "file_id": id}))).await;
        check_error(&error);
        assert_eq!(found, status, "{error}");
    }
}
