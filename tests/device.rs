//! A program that was built with CUDA, where there is no GPU: it starts and says so, and on a device that is emulated
//! thread by thread it answers what it answers on the CPU.
#![cfg(feature = "cuda")]
#![allow(missing_docs, clippy::print_stdout, clippy::unwrap_used, reason = "tests")]

use std::{
    fs,
    io::{BufRead as _, BufReader, Read as _},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use futures_util::future::join_all;
use percept_kernels_emulation::DRIVER;
use serde_json::{Value, json};

fn percept() -> Command {
    let mut percept = Command::new(env!("CARGO_BIN_EXE_percept"));
    percept.env_clear().args(["serve", "--port", "0"]);
    percept
}

fn fixture(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(path)
}

struct Server {
    child: Child,
    url: String,
}

impl Server {
    fn start(percept: &mut Command) -> Self {
        let mut child = percept.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let Some((_, address)) = line.trim().rsplit_once("http://") else {
            let log = Self { child, url: String::new() }.end();
            panic!("it did not start: {line}{log}")
        };
        Self { child, url: format!("http://{}", address.trim_end_matches("/v1")) }
    }

    /// Serves a checkpoint in little memory, on the emulated device or on the CPU.
    fn of(checkpoint: &Path, emulated: bool) -> Self {
        let mut percept = percept();
        percept.arg(checkpoint).args(["--max-sequences", "3", "--max-context", "256"]);
        percept.args([
            "--memory",
            "40MB",
            "--dtype",
            "f32",
            "--device",
            if emulated { "cuda" } else { "cpu" },
        ]);
        if emulated {
            percept.env("LD_LIBRARY_PATH", DRIVER);
        }
        // What the largest step takes, thread by thread.
        percept.args(["--max-image-pixels", "40000", "--step-rows", "64"]);
        Self::start(&mut percept)
    }

    /// Ends it; its log.
    fn end(mut self) -> String {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
        let mut log = String::new();
        self.child.stderr.take().unwrap().read_to_string(&mut log).unwrap();
        log
    }

    async fn metric(&self, name: &str) -> f64 {
        let text = reqwest::get(format!("{}/metrics", self.url)).await.unwrap().text().await.unwrap();
        let of = |line: &str| {
            line.starts_with(&format!("{name}{{")).then(|| line.rsplit_once(' ').unwrap().1.parse())
        };
        text.lines().find_map(of).unwrap().unwrap()
    }
}

fn has_gpu() -> bool {
    let has = Path::new("/dev/nvidiactl").exists();
    if has {
        println!("skipped: this machine has a GPU");
    }
    has
}

#[test]
fn it_computes_on_the_cpu_and_says_so() {
    if has_gpu() {
        return;
    }
    let log = Server::start(&mut percept()).end();
    assert!(log.contains("no GPU can be used: computing on the CPU"), "{log}");
    assert!(log.contains("there is no NVIDIA driver here"), "{log}");
}

#[test]
fn it_refuses_a_gpu_that_is_not_there() {
    if has_gpu() {
        return;
    }
    let output = percept().args(["--device", "cuda:1"]).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success() && output.stdout.is_empty(), "{said}");
    assert!(said.contains("cuda:1 cannot be used: there is no NVIDIA driver here"), "{said}");
}

/// Questions of all kinds, about a picture or none, all of which can be asked at once.
fn questions(model: &str) -> Vec<Value> {
    let picture = STANDARD.encode(fs::read(fixture("inputs/square_56x56.png")).unwrap());
    let url = format!("data:image/png;base64,{picture}");
    let ways = [
        json!({"temperature": 0}),
        json!({"temperature": 0, "logprobs": true, "top_logprobs": 3}),
        json!({"temperature": 1.0, "seed": 5}),
        json!({"temperature": 0.8, "seed": 6, "top_p": 0.9, "frequency_penalty": 0.5}),
        json!({"temperature": 0, "structured_outputs": {"regex": "[a-c]{3,9}"}}),
    ];
    let mut questions = Vec::new();
    for (index, way) in ways.into_iter().enumerate() {
        let text = json!({"type": "text", "text": format!("What is it, {}?", "please ".repeat(index % 4))});
        let image = json!({"type": "image_url", "image_url": {"url": url}});
        let content = if index < 2 { json!([image, text]) } else { json!([text]) };
        let mut question = json!({
            "model": model,
            "messages": [{"role": "user", "content": content}],
            "max_tokens": 4 + index,
        });
        question.as_object_mut().unwrap().extend(way.as_object().unwrap().clone());
        questions.push(question);
    }
    questions
}

async fn post(server: &Server, path: &str, body: &Value) -> Value {
    let url = format!("{}/v1/{path}", server.url);
    let answer = reqwest::Client::new().post(url).json(body).send().await.unwrap();
    let status = answer.status();
    let answer: Value = answer.json().await.unwrap();
    assert!(status.is_success(), "{answer}");
    answer
}

async fn ask(server: &Server, question: &Value) -> Value {
    post(server, "chat/completions", question).await["choices"][0].take()
}

/// Equal but for the last digits of numbers.
fn same(what: &str, found: &Value, expected: &Value, apart: f64) {
    match (found, expected) {
        (Value::Number(found), Value::Number(expected)) => {
            let (found, expected) = (found.as_f64().unwrap(), expected.as_f64().unwrap());
            assert!((found - expected).abs() <= apart, "{what}: {found}, not {expected}");
        }
        (Value::Array(found), Value::Array(expected)) if found.len() == expected.len() => {
            found.iter().zip(expected).for_each(|(found, expected)| same(what, found, expected, apart));
        }
        (Value::Object(found), Value::Object(expected)) if found.len() == expected.len() => {
            for (key, found) in found {
                same(&format!("{what} {key}"), found, &expected[key], apart);
            }
        }
        _ => assert_eq!(found, expected, "{what}"),
    }
}

#[tokio::test]
async fn answers_on_an_emulated_device_are_those_of_the_cpu() {
    for checkpoint in [
        "llava",
        "llava_next",
        "phi3_v",
        "internvl2",
        "pixtral",
        "qwen2_vl",
        "qwen2_5_vl",
        "smolvlm",
        "mllama",
    ] {
        let (host, device) = [false, true].map(|emulated| Server::of(&fixture(checkpoint), emulated)).into();
        let questions = questions(checkpoint);
        let found = join_all(questions.iter().map(|question| ask(&device, question))).await;
        for (index, (found, question)) in found.iter().zip(&questions).enumerate() {
            same(&format!("{checkpoint} {index}"), found, &ask(&host, question).await, 2e-3);
        }
        let encodings = (checkpoint == "llava").then_some("percept_encodings_replayed_total");
        for figure in
            ["percept_steps_replayed_total", "percept_steps_foreseen_total"].into_iter().chain(encodings)
        {
            assert!(device.metric(figure).await > 0.0, "{checkpoint} {figure}");
            assert_eq!(host.metric(figure).await, 0.0, "{checkpoint} {figure}");
        }
        let [host, device] = [host, device].map(Server::end);
        assert!(!device.contains("WARN") && !device.contains("ERROR"), "{checkpoint}: {device}");
        assert!(device.contains("the largest step was done once"), "{checkpoint}: {device}");
        // In the table of both, by what it was found.
        let measured = |log: &str| {
            log.lines().find(|line| line.starts_with("workspace of a step")).unwrap().contains("measured")
        };
        assert!(measured(&device) && !measured(&host), "{checkpoint}: {device} {host}");
    }
}

#[tokio::test]
async fn vectors_on_an_emulated_device_are_those_of_the_cpu() {
    let picture = STANDARD.encode(fs::read(fixture("inputs/land_90x60.png")).unwrap());
    let picture = json!({"image": format!("data:image/png;base64,{picture}")});
    let texts = [json!("a cat"), json!("two red squares and a blue circle"), json!("12")];
    for (checkpoint, sees) in [("bert", false), ("xlm_roberta", false), ("clip", true), ("siglip", true)] {
        let (host, device) = [false, true].map(|emulated| Server::of(&fixture(checkpoint), emulated)).into();
        let input: Vec<_> = texts.iter().chain(sees.then_some(&picture)).collect();
        let body = json!({"model": checkpoint, "input": input});
        let (found, expected) =
            (post(&device, "embeddings", &body).await, post(&host, "embeddings", &body).await);
        assert_eq!(found["data"].as_array().unwrap().len(), input.len());
        same(checkpoint, &found["data"], &expected["data"], 1e-5);
        let replayed = device.metric("percept_encodings_replayed_total").await;
        assert_eq!(replayed > 0.0, sees, "{checkpoint}: {replayed}");
        host.end();
        let log = device.end();
        let bad =
            |line: &&str| line.contains("ERROR") || line.contains("WARN") && !line.contains("the context is");
        assert_eq!(log.lines().find(bad), None, "{checkpoint}");
    }
}
