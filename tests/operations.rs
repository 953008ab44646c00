//! What is watched and kept of a server, and how it begins and ends: figures, times, usage, the audit log, limits of
//! connections.
#![allow(clippy::unwrap_used, reason = "tests")]

mod support;

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    io::{BufRead as _, BufReader, Write as _},
    num::NonZeroU64,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use percept::{
    access::{Area, KeyFile, Terms},
    config::Settings,
    operations::audit::{self, Event},
};
use reqwest::{Client, Response};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use support::{
    fixtures, llava,
    server::{self, Server, check_error, data_url, image_part, raw, start, words},
};
use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

/// A sample of figures: its name, its labels as they are written, its value.
fn samples(text: &str) -> BTreeMap<String, f64> {
    let mut typed = BTreeSet::new();
    let mut samples = BTreeMap::new();
    for line in text.lines() {
        if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, _) = rest.split_once(' ').unwrap();
            assert!(typed.insert(name.to_owned()), "{name} is there twice");
            continue;
        }
        if line.starts_with("# HELP ") {
            continue;
        }
        let (sample, value) = line.rsplit_once(' ').unwrap();
        let name = sample.split('{').next().unwrap();
        let known = ["", "_bucket", "_sum", "_count"]
            .iter()
            .any(|end| name.strip_suffix(end).is_some_and(|family| typed.contains(family)));
        assert!(known, "{name} has no type");
        assert!(
            samples.insert(sample.to_owned(), value.parse().unwrap()).is_none(),
            "{sample} is there twice"
        );
    }
    samples
}

async fn figures(server: &Server) -> BTreeMap<String, f64> {
    let response = server.get("/metrics").await;
    assert_eq!(response.status(), 200);
    assert_eq!(response.headers()["content-type"], "text/plain; version=0.0.4; charset=utf-8");
    samples(&response.text().await.unwrap())
}

/// Figures when one of them is what it should be: a request ends a little later than its last byte is read.
async fn figures_when(server: &Server, sample: &str, value: f64) -> BTreeMap<String, f64> {
    for _ in 0..400 {
        let figures = figures(server).await;
        if figures.get(sample) == Some(&value) {
            return figures;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    panic!("{sample} never is {value}: {:?}", figures(server).await.get(sample));
}

fn picture() -> Value {
    let content = json!([image_part(&data_url("gray_50x70.png")), {"type": "text", "text": "what is it"}]);
    json!({"model": "llava", "messages": [{"role": "user", "content": content}], "max_tokens": 4, "ignore_eos": true})
}

/// The price of a second is one.
fn priced() -> Settings {
    Settings { price_per_hour: Some(3600.0), ..Settings::default() }
}

#[tokio::test]
async fn figures_tell_what_was_done() {
    const DONE: &str = r#"percept_requests_total{endpoint="POST /v1/chat/completions",model="llava",outcome="ok",status="200"}"#;
    let server = start(priced()).await;
    let answers = [server.ask(&picture()).await, server.ask(&picture()).await];
    let mut nonsense = words("hello");
    nonsense["model"] = json!("a-model-that-somebody-made-up");
    server.refuse(&nonsense).await;
    nonsense = words("hello");
    nonsense["temperature"] = json!(9);
    server.refuse(&nonsense).await;
    let retried = Client::new().get(server.path("/v1/models")).header("x-stainless-retry-count", "1");
    retried.send().await.unwrap();
    let figures = figures_when(&server, DONE, 2.0).await;
    let sum =
        |field: &str| answers.iter().map(|answer| answer["usage"][field].as_f64().unwrap()).sum::<f64>();
    let of_model = |name: &str| figures[&format!("{name}{{model=\"llava\"}}")];
    let tokens = |kind: &str| figures[&format!("percept_tokens_total{{kind=\"{kind}\",model=\"llava\"}}")];
    assert_eq!(tokens("prompt"), sum("prompt_tokens"));
    assert_eq!(tokens("completion"), sum("completion_tokens"));
    let cached: f64 = answers
        .iter()
        .map(|answer| answer["usage"]["prompt_tokens_details"]["cached_tokens"].as_f64().unwrap())
        .sum();
    assert!(cached > 0.0);
    assert_eq!(tokens("cached"), cached);
    assert_eq!(of_model("percept_images_total"), 2.0);
    assert_eq!(of_model("percept_encoder_cache_hits_total"), 1.0, "the second is the same picture");
    assert_eq!(of_model("percept_encoder_cache_misses_total"), 2.0, "the warm-up's and the first");
    assert!(of_model("percept_prefix_cache_hits_total") >= cached);
    let steps = of_model("percept_steps_total");
    for histogram in ["percept_step_seconds", "percept_step_rows", "percept_step_sequences"] {
        assert_eq!(of_model(&format!("{histogram}_count")), steps, "{histogram}");
    }
    assert_eq!(of_model("percept_steps_replayed_total"), 0.0, "a CPU records nothing");
    assert_eq!(of_model("percept_steps_foreseen_total"), 0.0, "a CPU gains nothing by it");
    // Each answer has a token more than gaps.
    assert_eq!(of_model("percept_inter_token_seconds_count"), sum("completion_tokens") - 2.0);
    assert_eq!(of_model("percept_first_token_seconds_count"), 2.0);
    for (stage, count) in
        [("media", 2.0), ("queue", 2.0), ("prefill", 2.0), ("decode", 2.0), ("encode", 1.0), ("prepare", 1.0)]
    {
        assert_eq!(
            figures[&format!("percept_stage_seconds_count{{model=\"llava\",stage=\"{stage}\"}}")],
            count,
            "{stage}"
        );
    }
    let compute = of_model("percept_compute_seconds_total");
    assert!(compute > 0.0 && compute <= of_model("percept_step_seconds_sum"), "{compute}");
    assert!((of_model("percept_cost_total") - compute).abs() < 1e-6 * compute, "a second costs one");
    assert_eq!(of_model("percept_engine_alive"), 1.0);
    assert_eq!((of_model("percept_requests_running"), of_model("percept_requests_waiting")), (0.0, 0.0));
    assert_eq!(of_model("percept_cache_pages_used"), 0.0);
    assert!(of_model("percept_cache_pages") > 0.0);
    assert_eq!(figures["percept_retries_total"], 1.0);
    assert_eq!(figures["percept_connections_refused_total"], 0.0);
    assert!(figures["percept_connections"] >= 1.0);
    for error in ["model_not_found", "decimal_above_max_value"] {
        let sample =
            format!("percept_errors_total{{endpoint=\"POST /v1/chat/completions\",error=\"{error}\"}}");
        assert_eq!(figures[&sample], 1.0);
    }
    // What clients write makes no new figures.
    assert!(figures.keys().all(|sample| !sample.contains("made-up") && !sample.contains("what is it")));
    assert!(figures.keys().all(|sample| !sample.starts_with("vllm:")));
}

#[tokio::test]
async fn figures_have_other_names_for_other_dashboards_and_those_of_ours_exist() {
    let folder = fixtures();
    let model = ["llava", "whisper"].map(|name| folder.join(name).to_str().unwrap().to_owned());
    let server = start(Settings { model: model.into(), vllm_metrics: Some(true), ..priced() }).await;
    server.ask(&picture()).await;
    let mut nonsense = words("hello");
    nonsense["temperature"] = json!(9);
    server.refuse(&nonsense).await;
    let figures = figures_when(&server, r#"percept_first_token_seconds_count{model="llava"}"#, 1.0).await;
    for name in
        ["num_requests_running", "num_requests_waiting", "gpu_cache_usage_perc", "kv_cache_usage_perc"]
    {
        for model in ["llava", "whisper"] {
            assert_eq!(figures[&format!("vllm:{name}{{model_name=\"{model}\"}}")], 0.0, "{name}");
        }
    }
    let own = |sample: &str| figures[sample];
    for (theirs, ours) in [
        ("vllm:generation_tokens_total", r#"percept_tokens_total{kind="completion",model="llava"}"#),
        ("vllm:prompt_tokens_total", r#"percept_tokens_total{kind="prompt",model="llava"}"#),
        ("vllm:time_to_first_token_seconds_count", r#"percept_first_token_seconds_count{model="llava"}"#),
        (
            "vllm:request_prefill_time_seconds_sum",
            r#"percept_stage_seconds_sum{model="llava",stage="prefill"}"#,
        ),
    ] {
        assert_eq!(own(&format!("{theirs}{{model_name=\"llava\"}}")), own(ours), "{theirs}");
    }
    // Rules and dashboards ask for nothing that there is not. Energy is there where the machine tells it.
    let names: BTreeSet<&str> = figures.keys().map(|sample| sample.split('{').next().unwrap()).collect();
    let mut asked = 0;
    for file in ["deploy/prometheus/alerts.yaml", "deploy/grafana/percept.json"] {
        let text = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(file)).unwrap();
        let words = text.split(|char: char| !char.is_ascii_alphanumeric() && char != '_');
        for name in
            words.filter(|word| word.starts_with("percept_") && *word != "percept_energy_joules_total")
        {
            // A histogram is spoken of by the name of the whole.
            let known = names.contains(name) || names.contains(format!("{name}_count").as_str());
            assert!(known, "{file} asks for {name}");
            asked += 1;
        }
    }
    assert!(asked > 40, "{asked}");
}

/// Names and milliseconds of times.
fn times(text: &str) -> BTreeMap<String, f64> {
    let time = |part: &str| {
        let (name, time) = part.split_once(";dur=").unwrap();
        (name.to_owned(), time.parse().unwrap())
    };
    text.split(", ").map(time).collect()
}

#[tokio::test]
async fn a_request_tells_its_times_where_that_is_asked_for() {
    let server = start(Settings::default()).await;
    let ask = async |body: &Value, header: &str| -> Response {
        let request = Client::new().post(server.path("/v1/chat/completions")).json(body);
        request.header("x-percept-timing", header).send().await.unwrap()
    };
    let response = ask(&picture(), "1").await;
    let found = times(response.headers()["x-percept-timing"].to_str().unwrap());
    let stages = ["media", "queue", "prepare", "encode", "prefill", "decode"];
    for stage in stages.iter().chain(&["first-token", "total"]) {
        assert!(found[*stage] > 0.0, "{stage}: {found:?}");
    }
    let together: f64 = stages.iter().map(|stage| found[*stage]).sum();
    assert!(together <= found["total"] && found["first-token"] <= found["total"], "{found:?}");
    // The picture is known now.
    let response = ask(&picture(), "1").await;
    let found = times(response.headers()["x-percept-timing"].to_str().unwrap());
    assert!(!found.contains_key("encode") && found.contains_key("prefill"), "{found:?}");
    for off in ["0", "false", ""] {
        assert!(!ask(&words("hello"), off).await.headers().contains_key("x-percept-timing"), "{off}");
    }
    // Of a stream they are known at its end, and clients leave comments alone.
    let mut request = words("hello");
    request["stream"] = json!(true);
    let text = ask(&request, "1").await.text().await.unwrap();
    assert!(server::pieces(&text).1);
    let comment = text.lines().rev().find_map(|line| line.strip_prefix(": x-percept-timing: ")).unwrap();
    assert!(times(comment)["decode"] > 0.0, "{comment}");
    let text = ask(&request, "0").await.text().await.unwrap();
    assert!(!text.contains("percept-timing"));

    // What it costs is told where there is a price, and is what usage says.
    let priced =
        Settings { price_per_hour: Some(3600.0), currency: Some("EUR".into()), ..Settings::default() };
    let server = start(priced).await;
    let client = Client::new().post(server.path("/v1/chat/completions")).header("x-percept-timing", "1");
    let text = client.json(&request).send().await.unwrap().text().await.unwrap();
    let comment = text.lines().rev().find_map(|line| line.strip_prefix(": x-percept-timing: ")).unwrap();
    let (times_of, cost) = comment.split_once(", cost;desc=\"").unwrap();
    let cost: f64 = cost.strip_suffix(" EUR\"").unwrap().parse().unwrap();
    // A second costs one.
    assert!(cost > 0.0 && (1000.0 * cost - times(times_of)["compute"]).abs() < 0.002, "{comment}");
    let usage: Value = reqwest::get(server.path("/v1/usage")).await.unwrap().json().await.unwrap();
    assert!((usage["total"]["cost"].as_f64().unwrap() - cost).abs() < 1e-6, "{usage} {comment}");
}

/// A folder with keys and an audit log.
struct Place(TempDir);

impl Place {
    fn new() -> Self {
        Self(TempDir::new().unwrap())
    }

    fn keys(&self) -> PathBuf {
        self.0.path().join("keys.toml")
    }

    fn audit(&self) -> PathBuf {
        self.0.path().join("audit")
    }

    fn add(&self, tenant: &str, terms: Terms) -> String {
        KeyFile::change(&self.keys(), |keys| keys.add(tenant, terms, None)).unwrap().0
    }

    fn settings(&self) -> Settings {
        let (keys, audit) = (Some(self.keys()), Some(self.audit()));
        Settings { keys, audit, ..priced() }
    }

    /// The requests in the log when there are so many.
    async fn requests(&self, count: usize) -> Vec<Value> {
        for _ in 0..400 {
            let mut found = Vec::new();
            audit::lines(&self.audit(), None, |line, text| {
                if matches!(line.event, Event::Request(_)) {
                    found.push(serde_json::from_str(text).unwrap());
                }
            })
            .unwrap();
            if found.len() == count {
                return found;
            }
            assert!(found.len() < count, "{found:?}");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        panic!("there never are {count} requests in the log");
    }
}

fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

#[tokio::test]
async fn the_audit_log_tells_who_asked_and_never_what() {
    let place = Place::new();
    let key = place.add("acme", Terms::default());
    let server = start(place.settings()).await;
    let body = words("a secret question").to_string();
    let post = |key: &str, body: &str| {
        let request = Client::new().post(server.path("/v1/chat/completions")).bearer_auth(key);
        request.header("content-type", "application/json").body(body.to_owned()).send()
    };
    let response = post(&key, &body).await.unwrap();
    let id = response.headers()["x-request-id"].to_str().unwrap().to_owned();
    let answer = response.bytes().await.unwrap();
    let usage = serde_json::from_slice::<Value>(&answer).unwrap()["usage"].clone();
    place.requests(1).await;
    post("nobody", &body).await.unwrap();
    place.requests(2).await;
    post(&key, "{}").await.unwrap();
    place.requests(3).await;
    // One that leaves in the middle.
    let mut long = words("a secret question");
    long["max_tokens"] = json!(400);
    long["ignore_eos"] = json!(true);
    long["stream"] = json!(true);
    let mut leaving = post(&key, &long.to_string()).await.unwrap();
    leaving.chunk().await.unwrap();
    drop(leaving);
    let log = place.requests(4).await;
    let line = &log[0];
    assert_eq!(line["id"], id);
    assert_eq!((&line["tenant"], &line["model"]), (&json!("acme"), &json!("llava")));
    assert_eq!(line["endpoint"], "POST /v1/chat/completions");
    assert_eq!(
        (&line["status"], &line["outcome"], &line["error"]),
        (&json!(200), &json!("ok"), &Value::Null)
    );
    assert!(line["key"].as_str().unwrap().starts_with("key_"));
    assert_eq!(line["peer"], "127.0.0.1");
    assert_eq!(line["request_bytes"], body.len());
    assert_eq!(line["request_sha256"], sha256(body.as_bytes()));
    assert_eq!(line["response_bytes"], answer.len());
    assert_eq!(line["response_sha256"], sha256(&answer));
    for field in ["prompt_tokens", "completion_tokens"] {
        assert_eq!(line[field], usage[field]);
    }
    let (cost, seconds) = (line["cost"].as_f64().unwrap(), line["compute_seconds"].as_f64().unwrap());
    assert!(seconds > 0.0 && (cost - seconds).abs() < 1e-9);
    assert_eq!((&log[1]["tenant"], &log[1]["status"]), (&Value::Null, &json!(401)));
    assert_eq!(log[1]["error"], "invalid_api_key");
    assert_eq!((&log[2]["status"], &log[2]["outcome"]), (&json!(400), &json!("refused")));
    assert_eq!(log[2]["error"], "missing_required_parameter");
    assert_eq!((&log[3]["status"], &log[3]["outcome"]), (&json!(200), &json!("cancelled")));
    assert!(log[3]["completion_tokens"].as_u64().unwrap() < 400);
    let report = audit::verify(&place.audit(), None).unwrap();
    assert_eq!(report.requests, 4);
    let mut all = String::new();
    for file in fs::read_dir(place.audit()).unwrap() {
        all += &fs::read_to_string(file.unwrap().path()).unwrap();
    }
    for content in ["secret", "question", key.as_str()] {
        assert!(!all.contains(content), "the log has content");
    }
}

#[tokio::test]
async fn usage_is_told_to_whom_it_concerns() {
    let place = Place::new();
    let [acme, umbrella] = ["acme", "umbrella"].map(|name| place.add(name, Terms::default()));
    let admin =
        place.add("admin", Terms { endpoints: Some(vec![Area::Usage, Area::Admin]), ..Terms::default() });
    let server = start(place.settings()).await;
    let ask = |key: &str| {
        let request = Client::new().post(server.path("/v1/chat/completions")).bearer_auth(key);
        request.json(&picture()).send()
    };
    let mut tokens = 0;
    for key in [&acme, &acme, &umbrella] {
        let answer: Value = ask(key).await.unwrap().json().await.unwrap();
        tokens += answer["usage"]["prompt_tokens"].as_u64().unwrap();
    }
    place.requests(3).await;
    let usage = async |key: &str, query: &str| -> (u16, Value) {
        let request = Client::new().get(server.path(&format!("/v1/usage{query}"))).bearer_auth(key);
        let response = request.send().await.unwrap();
        (response.status().as_u16(), response.json().await.unwrap())
    };
    let (status, own) = usage(&acme, "").await;
    assert_eq!(status, 200);
    let days: Vec<&Value> =
        own["data"].as_array().unwrap().iter().filter(|day| day["model"] == "llava").collect();
    assert_eq!(days.len(), 1, "{own}");
    assert_eq!(
        (&days[0]["tenant"], &days[0]["requests"], &days[0]["images"]),
        (&json!("acme"), &json!(2), &json!(2))
    );
    assert!(days[0]["cost"].as_f64().unwrap() > 0.0);
    assert_eq!(own["currency"], "EUR");
    assert!(own["data"].as_array().unwrap().iter().all(|day| day["tenant"] == "acme"), "{own}");
    let (_, all) = usage(&admin, "").await;
    assert_eq!(all["total"]["prompt_tokens"], tokens);
    let (_, other) = usage(&admin, "?tenant=umbrella").await;
    assert_eq!(other["total"]["requests"], 1);
    let (_, none) = usage(&acme, "?from=2020-01-01&to=2020-12-31").await;
    assert_eq!((&none["data"], &none["total"]["requests"]), (&json!([]), &json!(0)));
    for (query, status) in [
        ("?tenant=umbrella", 403),
        ("?from=yesterday", 400),
        ("?to=2026-13-01", 400),
        ("?from=1&from=2", 400),
    ] {
        let (found, body) = usage(&acme, query).await;
        assert_eq!(found, status, "{query}");
        check_error(&body);
    }
}

/// A server of its own process.
struct Serving {
    child: Child,
    url: String,
}

impl Serving {
    fn start(place: &Place) -> Self {
        let mut child = Command::new(env!("CARGO_BIN_EXE_percept"))
            .env_clear()
            .env("HOME", "/nonexistent")
            .args(["serve", llava().to_str().unwrap(), "--port", "0", "--price-per-hour", "3600"])
            .args(["--max-sequences", "4", "--keys", place.keys().to_str().unwrap()])
            .args(["--audit", place.audit().to_str().unwrap()])
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut first = String::new();
        BufReader::new(child.stdout.as_mut().unwrap()).read_line(&mut first).unwrap();
        let url = first.trim().rsplit(' ').next().unwrap().trim_end_matches("/v1").to_owned();
        Self { child, url }
    }

    fn ask(&self, key: &str) -> impl Future<Output = reqwest::Result<Response>> + use<> {
        let request = Client::new().post(format!("{}/v1/chat/completions", self.url)).bearer_auth(key);
        request.json(&words("hello")).send()
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        // It may have ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn percept(arguments: &[&str]) -> (bool, String, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_percept"));
    let output = command.env_clear().env("HOME", "/nonexistent").args(arguments).output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (output.status.success(), text(output.stdout), text(output.stderr))
}

#[tokio::test]
async fn the_log_and_budgets_survive_an_end_by_force() {
    let place = Place::new();
    let key = place.add("acme", Terms { tokens_per_month: NonZeroU64::new(1), ..Terms::default() });
    let free = place.add("free", Terms::default());
    let folder = place.audit();
    let folder = folder.to_str().unwrap();
    let mut serving = Serving::start(&place);
    assert_eq!(serving.ask(&key).await.unwrap().status(), 200);
    place.requests(1).await;
    let (good, _, error) = percept(&["serve", llava().to_str().unwrap(), "--port", "0", "--audit", folder]);
    assert!(!good && error.contains("another server writes its audit log there"), "{error}");
    // In the middle of others.
    let running: Vec<_> = (0..8).map(|_| tokio::spawn(serving.ask(&free))).collect();
    serving.child.kill().unwrap();
    serving.child.wait().unwrap();
    for answer in running {
        drop(answer.await);
    }
    let mut files = fs::read_dir(folder).unwrap().map(|file| file.unwrap().path());
    let file = files.find(|file| file.extension().is_some_and(|end| end == "jsonl")).unwrap();
    fs::OpenOptions::new().append(true).open(&file).unwrap().write_all(b"{\"seq\":99,\"prev\":\"00").unwrap();

    let mut serving = Serving::start(&place);
    let refused = serving.ask(&key).await.unwrap();
    assert_eq!(refused.status(), 429, "the budget was forgotten");
    assert_eq!(refused.json::<Value>().await.unwrap()["error"]["code"], "insufficient_quota");
    assert_eq!(serving.ask(&free).await.unwrap().status(), 200);
    // As at SIGTERM: what has ended is on the disk.
    let kill = format!("kill -s TERM {}", serving.child.id());
    assert!(Command::new("sh").args(["-c", &kill]).status().unwrap().success());
    serving.child.wait().unwrap();
    let (good, text, error) = percept(&["audit", "verify", "--audit", folder, "--json"]);
    assert!(good, "{error}");
    let report: Value = serde_json::from_str(&text).unwrap();
    assert!(report["requests"].as_u64().unwrap() >= 3, "{report}");
    let head = report["head"].as_str().unwrap();
    assert!(percept(&["audit", "verify", "--audit", folder, "--expect", head]).0);
    let log = fs::read_to_string(&file).unwrap();
    assert_eq!(log.matches("\"event\":\"healed\"").count(), 1);
    assert_eq!(log.matches("\"event\":\"started\"").count(), 2);

    // The same usage, told by the log.
    let (good, text, error) = percept(&["usage", "--audit", folder, "--tenant", "acme", "--json"]);
    assert!(good, "{error}");
    let usage: Value = serde_json::from_str(&text).unwrap();
    assert_eq!((&usage["total"]["requests"], &usage["total"]["errors"]), (&json!(2), &json!(1)));
    let (good, table, _) =
        percept(&["audit", "export", "--audit", folder, "--tenant", "acme", "--format", "csv"]);
    assert!(good);
    let lines: Vec<&str> = table.lines().collect();
    assert_eq!(lines.len(), 3, "{table}");
    assert!(lines[0].starts_with("time,id,tenant") && lines[1].contains(",acme,key_"), "{table}");

    fs::write(&file, log.replace("\"acme\"", "\"free\"")).unwrap();
    let (good, _, error) = percept(&["audit", "verify", "--audit", folder]);
    assert!(!good && error.contains("was changed"), "{error}");
}

#[tokio::test]
async fn keys_are_made_shown_and_revoked_on_the_command_line() {
    let place = Place::new();
    let file = place.keys();
    let file = file.to_str().unwrap();
    let (good, secret, error) = percept(&[
        "keys",
        "add",
        "acme",
        "--keys",
        file,
        "--models",
        "llava,gpt-4o",
        "--endpoints",
        "chat,models",
        "--requests-per-minute",
        "60",
        "--money-per-month",
        "2.5",
        "--expires",
        "2100-01-01",
    ]);
    assert!(good, "{error}");
    let secret = secret.trim();
    let id = error.split(' ').next().unwrap();
    let (good, list, _) = percept(&["keys", "list", "--keys", file]);
    assert!(good && list.contains("requests_per_minute = 60") && list.contains(id), "{list}");
    assert!(!list.contains(secret));
    let (_, json, _) = percept(&["keys", "list", "--json", "--keys", file]);
    let list: Value = serde_json::from_str(&json).unwrap();
    assert_eq!(list["tenants"]["acme"]["models"], json!(["llava", "gpt-4o"]));
    assert_eq!(
        (&list["keys"][0]["id"], &list["keys"][0]["expires"]),
        (&json!(id), &json!("2100-01-01T00:00:00Z"))
    );
    let server = start(Settings { keys: Some(file.into()), ..Settings::default() }).await;
    let status = async |key: &str| {
        let request = Client::new().get(server.path("/v1/models")).bearer_auth(key);
        request.send().await.unwrap().status().as_u16()
    };
    assert_eq!((status(secret).await, status(id).await), (200, 401));
    assert!(percept(&["keys", "revoke", id, "--keys", file]).0);
    let (good, _, error) = percept(&["keys", "revoke", id, "--keys", file]);
    assert!(!good && error.contains("there is no key"), "{error}");
    for (arguments, expected) in [
        (vec!["keys", "add", "a b", "--keys", file], "no name of a tenant"),
        (vec!["keys", "add", "a", "--keys", file, "--requests-per-minute", "0"], "--requests-per-minute"),
        (vec!["keys", "add", "a", "--keys", file, "--money-per-month", "nan"], "no amount above 0"),
        (vec!["keys", "add", "a", "--keys", file, "--endpoints", "everything"], "everything"),
        (vec!["keys", "add", "a", "--keys", file, "--expires", "soon"], "no day"),
        (vec!["keys", "list"], "--keys FILE"),
        (vec!["serve", "--host", "0.0.0.0", "--port", "0"], "percept keys add"),
        (vec!["serve", "--host", "::", "--port", "0"], "--insecure-no-keys"),
        (vec!["serve", "--keys", "/nonexistent/keys.toml", "--port", "0"], "/nonexistent/keys.toml"),
    ] {
        let (good, _, error) = percept(&arguments);
        assert!(!good && error.contains(expected) && !error.contains("panicked"), "{arguments:?}: {error}");
    }
}

async fn connect(server: &Server) -> TcpStream {
    TcpStream::connect(server.url.strip_prefix("http://").unwrap()).await.unwrap()
}

/// What is left to read, until the connection is closed.
async fn rest(connection: &mut TcpStream) -> String {
    let mut text = Vec::new();
    // A connection that is reset is closed as well.
    let _ = connection.read_to_end(&mut text).await;
    String::from_utf8(text).unwrap()
}

const LIVE: &[u8] = b"GET /live HTTP/1.1\r\nHost: localhost\r\n\r\n";

#[tokio::test]
async fn there_are_so_many_connections_and_no_more() {
    let server = start(Settings { max_connections: Some(2), ..Settings::default() }).await;
    let mut open = Vec::new();
    for _ in 0..2 {
        let mut connection = connect(&server).await;
        connection.write_all(LIVE).await.unwrap();
        let mut start = [0; 12];
        connection.read_exact(&mut start).await.unwrap();
        assert_eq!(&start, b"HTTP/1.1 200");
        open.push(connection);
    }
    let (status, head, body) = raw(&server.url, LIVE).await;
    assert_eq!(status, 503);
    check_error(&serde_json::from_str(&body).unwrap());
    assert!(head.contains("retry-after: ") && head.contains("connection: close"), "{head}");
    drop(open.pop());
    for _ in 0..400 {
        let (status, ..) =
            raw(&server.url, b"GET /live HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").await;
        if status == 200 {
            return;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    panic!("the place is never free again");
}

#[tokio::test]
async fn who_sends_nothing_is_not_waited_for() {
    let settings = Settings { head_seconds: Some(1), idle_seconds: Some(1), ..Settings::default() };
    let server = start(settings).await;
    for begun in [&b""[..], b"G", b"GET /live HTTP/1.1\r\nHost: localhost\r\nX-A: "] {
        let mut connection = connect(&server).await;
        connection.write_all(begun).await.unwrap();
        assert_eq!(rest(&mut connection).await, "", "nothing is said to who asked nothing");
    }
    // Between requests, too, and in the head of the second.
    for begun in [&b""[..], b"GET /live"] {
        let mut connection = connect(&server).await;
        connection.write_all(LIVE).await.unwrap();
        connection.write_all(begun).await.unwrap();
        assert!(rest(&mut connection).await.starts_with("HTTP/1.1 200"));
    }
}

/// A client that asks and does not read takes a place, which is somebody else's after a while.
#[tokio::test]
async fn who_reads_nothing_is_not_waited_for() {
    let server = start(Settings { stalled_seconds: Some(1), ..Settings::default() }).await;
    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(4096).unwrap();
    let address = server.url.strip_prefix("http://").unwrap().parse().unwrap();
    let mut silent = socket.connect(address).await.unwrap();
    let page = b"GET /openapi.json HTTP/1.1\r\nHost: localhost\r\n\r\n";
    silent.write_all(&page.repeat(400)).await.unwrap();
    // Somebody who reads, slowly but all the time, is.
    let mut slow = connect(&server).await;
    slow.write_all(&page.repeat(2)).await.unwrap();
    let connections = async || figures(&server).await["percept_connections"];
    // The two, and the one that asks.
    assert!(connections().await >= 3.0);
    let mut read = 0;
    let mut buffer = vec![0; 1000];
    while connections().await >= 3.0 {
        read += slow.read(&mut buffer).await.unwrap();
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert!(read > 0, "who read was left before who did not");
    slow.write_all(b"GET /live HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").await.unwrap();
    let text = rest(&mut slow).await;
    assert!(text.ends_with("{\"status\":\"live\"}"), "{}", &text[text.len() - 100..]);
}

#[tokio::test]
async fn heads_have_a_size() {
    let server = start(Settings::default()).await;
    let head = |headers: usize, bytes: usize| {
        let mut head = "GET /live HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n".to_owned();
        for index in 2..headers {
            head += &format!("x-{index}: {}\r\n", "y".repeat(if index == 2 { bytes } else { 1 }));
        }
        head + "\r\n"
    };
    // Those three names and values are so long.
    let room = (64 << 10) - "/live".len() - "hostlocalhostconnectionclosex-2".len();
    for (name, head, expected) in [
        ("as many headers as there may be", head(100, 1), 200),
        ("one more", head(101, 1), 431),
        ("as many bytes as there may be", head(3, room), 200),
        ("one more", head(3, room + 1), 431),
    ] {
        let (status, head, body) = raw(&server.url, head.as_bytes()).await;
        assert_eq!(status, expected, "{name}");
        if expected == 431 {
            check_error(&serde_json::from_str(&body).unwrap());
            assert!(head.contains("x-request-id: req_"), "{head}");
        }
    }
    // What is not read to its end may not be told why: the connection is closed.
    for head in [head(3, 64 << 20), head(100_000, 1)] {
        let (status, ..) = raw(&server.url, head.as_bytes()).await;
        assert!([431, 0].contains(&status), "{status}");
    }
    // What is deep is refused, and the server goes on.
    for (depth, expected) in [(100, 400), (100_000, 400)] {
        let body =
            format!("{{\"model\": \"llava\", \"messages\": {}{}}}", "[".repeat(depth), "]".repeat(depth));
        let request = Client::new().post(server.path("/v1/chat/completions"));
        let response = request.header("content-type", "application/json").body(body).send().await.unwrap();
        assert_eq!(response.status(), expected);
        check_error(&response.json().await.unwrap());
    }
    server.ask(&words("hello")).await;
}

#[tokio::test]
async fn a_server_says_whether_it_lives_and_is_ready() {
    let config = server::config(Settings::default());
    let app = percept::api::App::new(config.api.clone());
    let mut server = server::start_app(std::sync::Arc::clone(&app), Duration::from_secs(5)).await;
    let status = async |path: &str| {
        let response = server.get(path).await;
        (response.status().as_u16(), response.json::<Value>().await.unwrap()["status"].clone())
    };
    for path in ["/live", "/livez", "/live/"] {
        assert_eq!(status(path).await, (200, json!("live")), "{path}");
    }
    assert_eq!(status("/ready").await, (503, json!("loading")));
    app.serve(percept::router::Router::new(server::load(&config)));
    for path in ["/ready", "/readyz"] {
        assert_eq!(status(path).await, (200, json!("ready")), "{path}");
    }
    // An engine that has ended: nothing but a new process helps.
    let handle = app.models().unwrap().models()[0].handle.clone();
    handle.drain();
    handle.ended().await;
    assert_eq!(status("/live").await, (503, json!("failed")));
    assert_eq!(status("/ready").await, (503, json!("failed")));
    app.stop();
    assert_eq!(status("/live").await, (200, json!("live")), "it ends as it should");
    assert_eq!(status("/ready").await, (503, json!("stopping")));
    server.stop().await;
}

#[tokio::test]
async fn a_drain_has_an_end() {
    let config = server::config(Settings::default());
    let mut server = server::start_with(server::load(&config), config.api, Duration::from_millis(50)).await;
    let mut long = words("hello");
    long["max_tokens"] = json!(100_000);
    long["ignore_eos"] = json!(true);
    long["stream"] = json!(true);
    // More than are computed at once, so that some wait.
    let mut running = Vec::new();
    for _ in 0..32 {
        running.push(server.post(&long).await);
    }
    server.stop().await;
    assert!(Client::new().get(server.path("/live")).send().await.is_err(), "it still listens");
}

/// A collector of traces: what it was sent, one body after another.
async fn collector() -> (String, tokio::sync::mpsc::UnboundedReceiver<Vec<u8>>) {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let (bodies, received) = tokio::sync::mpsc::unbounded_channel();
    tokio::spawn(async move {
        while let Ok((mut connection, _)) = listener.accept().await {
            let bodies = bodies.clone();
            tokio::spawn(async move {
                let mut bytes = Vec::new();
                loop {
                    let mut piece = [0; 4096];
                    let read = connection.read(&mut piece).await.unwrap_or(0);
                    bytes.extend_from_slice(&piece[..read]);
                    let Some(end) = bytes.windows(4).position(|four| four == b"\r\n\r\n") else {
                        if read == 0 {
                            return;
                        }
                        continue;
                    };
                    let head = String::from_utf8_lossy(&bytes[..end]).to_lowercase();
                    assert!(head.starts_with("post /v1/traces "), "{head}");
                    let length = head.split("content-length: ").nth(1).unwrap();
                    let length: usize = length.lines().next().unwrap().trim().parse().unwrap();
                    if bytes.len() < end + 4 + length {
                        continue;
                    }
                    bodies.send(bytes[end + 4..end + 4 + length].to_vec()).unwrap();
                    bytes.drain(..end + 4 + length);
                    connection.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await.unwrap();
                }
            });
        }
    });
    (url, received)
}

#[tokio::test(flavor = "multi_thread")]
async fn traces_tell_of_requests_and_never_of_their_content() {
    use opentelemetry_proto::tonic::{
        collector::trace::v1::ExportTraceServiceRequest, common::v1::any_value::Value as Any, trace::v1::Span,
    };
    use prost::Message as _;

    let (url, mut received) = collector().await;
    let mut server = start(Settings { otlp: Some(url), ..Settings::default() }).await;
    let (trace, span) = ("4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7");
    let request = Client::new().post(server.path("/v1/chat/completions")).json(&words("zyzzyva"));
    let answer = request.header("traceparent", format!("00-{trace}-{span}-01")).send().await.unwrap();
    let id = answer.headers()["x-request-id"].to_str().unwrap().to_owned();
    let answer: Value = answer.json().await.unwrap();
    let mut gone = words("a");
    gone["model"] = json!("gone");
    server.refuse(&gone).await;
    server.stop().await;
    let mut spans: Vec<Span> = Vec::new();
    while let Ok(body) = received.try_recv() {
        assert!(!body.windows(7).any(|seven| seven == b"zyzzyva"), "content is in a trace");
        let request = ExportTraceServiceRequest::decode(&body[..]).unwrap();
        for resource in request.resource_spans {
            let attributes = resource.resource.unwrap().attributes;
            assert!(attributes.iter().any(|pair| pair.key == "service.name"));
            spans.extend(resource.scope_spans.into_iter().flat_map(|scope| scope.spans));
        }
    }
    let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    let attribute = |span: &Span, name: &str| {
        let pair = span.attributes.iter().find(|pair| pair.key == name)?;
        Some(match pair.value.clone()?.value? {
            Any::StringValue(text) => json!(text),
            Any::IntValue(number) => json!(number),
            Any::DoubleValue(number) => json!(number),
            other => panic!("{other:?}"),
        })
    };
    let whole = spans.iter().find(|span| attribute(span, "percept.request.id") == Some(json!(id))).unwrap();
    assert_eq!((hex(&whole.trace_id), hex(&whole.parent_span_id)), (trace.to_owned(), span.to_owned()));
    assert_eq!(whole.name, "POST /v1/chat/completions");
    for (name, value) in [
        ("http.request.method", json!("POST")),
        ("http.route", json!("/v1/chat/completions")),
        ("http.response.status_code", json!(200)),
        ("percept.outcome", json!("ok")),
        ("gen_ai.request.model", json!("llava")),
        ("gen_ai.usage.input_tokens", answer["usage"]["prompt_tokens"].clone()),
        ("gen_ai.usage.output_tokens", answer["usage"]["completion_tokens"].clone()),
    ] {
        assert_eq!(attribute(whole, name), Some(value), "{name}");
    }
    let parts: Vec<&Span> = spans.iter().filter(|span| span.parent_span_id == whole.span_id).collect();
    let names: BTreeSet<&str> = parts.iter().map(|span| span.name.as_str()).collect();
    assert!(names.contains("prefill") && names.contains("decode"), "{names:?}");
    for part in parts {
        let within = whole.start_time_unix_nano..=whole.end_time_unix_nano;
        assert!(within.contains(&part.start_time_unix_nano) && within.contains(&part.end_time_unix_nano));
        assert_eq!(part.trace_id, whole.trace_id);
    }
    let refused = spans.iter().find(|span| attribute(span, "error.type").is_some()).unwrap();
    assert_eq!(attribute(refused, "error.type"), Some(json!("model_not_found")));
    assert_ne!(refused.trace_id, whole.trace_id);
    let (good, _, error) =
        percept(&["serve", llava().to_str().unwrap(), "--port", "0", "--otlp", "localhost:4318"]);
    assert!(!good && error.contains("http://localhost:4318"), "{error}");
}

#[tokio::test]
async fn content_is_written_down_where_operator_and_tenant_want_it() {
    let place = Place::new();
    let agreed = place.add("agreed", Terms { log_content: Some(true), ..Terms::default() });
    let silent = place.add("silent", Terms::default());
    let folder = place.0.path().join("content");
    let server = start(Settings {
        content_log: Some(folder.clone()),
        redact: vec!["zyz+yva".into()],
        ..place.settings()
    })
    .await;
    let mut body = words("ask a.b@example.com about zyzzyva");
    body["messages"][0]["content"] = json!([
        {"type": "text", "text": "ask a.b@example.com about zyzzyva and apples"},
        image_part(&data_url("land_90x60.png")),
    ]);
    let ask = |key: &str, stream: bool| {
        let mut body = body.clone();
        body["stream"] = json!(stream);
        let request = Client::new().post(server.path("/v1/chat/completions")).bearer_auth(key).json(&body);
        async move { request.send().await.unwrap().text().await.unwrap() }
    };
    let whole: Value = serde_json::from_str(&ask(&agreed, false).await).unwrap();
    let (pieces, _) = server::pieces(&ask(&agreed, true).await);
    ask(&silent, false).await;
    place.requests(3).await;
    let date = jiff::Timestamp::now().to_zoned(jiff::tz::TimeZone::UTC).date();
    let file = folder.join(format!("content-{date}.jsonl"));
    let mut text = String::new();
    for _ in 0..400 {
        text = fs::read_to_string(&file).unwrap();
        if text.lines().count() == 2 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let lines: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(lines.len(), 2, "{text}");
    for line in &lines {
        assert_eq!(
            (&line["tenant"], &line["model"], &line["status"]),
            (&json!("agreed"), &json!("llava"), &json!(200))
        );
        let parts = &line["request"]["messages"][0]["content"];
        assert_eq!(parts[0]["text"], "ask [redacted] about [redacted] and apples");
        assert!(parts[1]["image_url"]["url"].as_str().unwrap().starts_with("[a file"), "{parts}");
    }
    let said = |value: &Value| value["choices"][0]["message"]["content"].as_str().unwrap().to_owned();
    assert_eq!(said(&lines[0]["response"]), said(&whole));
    assert_eq!(lines[1]["response"].as_str().unwrap(), server::text(&pieces));
    use std::os::unix::fs::PermissionsExt as _;
    assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
    let (good, _, error) =
        percept(&["serve", llava().to_str().unwrap(), "--port", "0", "--content-log", "x", "--redact", "("]);
    assert!(!good && error.contains("content log"), "{error}");
}
