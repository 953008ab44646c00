//! The program as a user runs it.
#![allow(clippy::unwrap_used, clippy::print_stderr, reason = "tests")]

mod support;

use std::{
    fs,
    io::{BufRead, BufReader, Read, Write},
    net::TcpListener,
    process::{Child, Command, Output, Stdio},
    time::{Duration, Instant},
};

use serde_json::Value;
use support::{Golden, edit, fixtures, llava, server};
use tempfile::TempDir;

/// The program, in an environment that is nobody's.
fn percept(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_percept"));
    command.args(arguments).env_clear().env("HOME", "/nonexistent").stdin(Stdio::null());
    command
}

fn run(mut command: Command) -> Output {
    command.output().unwrap()
}

fn fails(command: Command) -> String {
    let output = run(command);
    assert!(!output.status.success());
    let error = String::from_utf8(output.stderr).unwrap();
    assert!(!error.contains("panicked"), "{error}");
    error
}

fn llava_path() -> String {
    llava().to_str().unwrap().to_owned()
}

/// The shell's own `kill`: a small system has no other.
fn signal(child: &Child, name: &str) {
    let kill = format!("kill -s {name} {}", child.id());
    assert!(Command::new("sh").args(["-c", &kill]).status().unwrap().success());
}

/// A server of its own process; ends with the test.
struct Serving {
    child: Child,
    url: String,
}

impl Serving {
    fn start(mut command: Command) -> Self {
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let mut first = String::new();
        BufReader::new(child.stdout.as_mut().unwrap()).read_line(&mut first).unwrap();
        let url = first.trim().rsplit(' ').next().unwrap().trim_end_matches("/v1").to_owned();
        assert!(url.starts_with("http://127.0.0.1:"), "{first}");
        Self { child, url }
    }

    fn get(&self, path: &str) -> Value {
        let mut response = ureq::get(format!("{}{path}", self.url)).call().unwrap();
        response.body_mut().read_json().unwrap()
    }

    fn signal(&self, name: &str) {
        signal(&self.child, name);
    }

    /// What it wrote to its log, once it has ended.
    fn end(mut self) -> (Option<i32>, String) {
        let mut log = String::new();
        self.child.stderr.take().unwrap().read_to_string(&mut log).unwrap();
        (self.child.wait().unwrap().code(), log)
    }

    fn resident_kib(&self) -> u64 {
        self.memory_kib("VmRSS:")
    }

    /// A line of `/proc/PID/status`.
    fn memory_kib(&self, name: &str) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap();
        line.trim().strip_suffix(" kB").unwrap().parse().unwrap()
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn help_teaches() {
    let text = |arguments: &[&str]| String::from_utf8(run(percept(arguments)).stdout).unwrap();
    let help = text(&["--help"]);
    for word in ["serve", "plan", "pull", "chat", "percept serve llava-hf/llava-1.5-7b-hf", "--gpu a10g"] {
        assert!(help.contains(word), "{word}");
    }
    let help = text(&["serve", "--help"]);
    for word in [
        "--memory",
        "[default: 64]",
        "PERCEPT_MAX_SEQUENCES",
        "max_sequences = 32",
        "HF_TOKEN",
        "--alias gpt-4o",
        "--hosted-names",
        "PERCEPT_MODEL=one,another",
        "percept serve large=",
        "--dummy-weights",
    ] {
        assert!(help.contains(word), "{word}");
    }
    assert!(text(&["demo", "--help"]).contains("--once"));
    let help = text(&["plan", "--help"]);
    for word in ["a10g", "h200", "--context", "--json", "exit code", "percept plan llava-hf"] {
        assert!(help.contains(word), "{word}");
    }
    assert!(text(&["--version"]).starts_with("percept 0."));
}

#[test]
fn mistakes_are_explained() {
    let folder = TempDir::new().unwrap();
    let file = |name: &str, text: &str| {
        let path = folder.path().join(name);
        fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let unknown = file("unknown.toml", "port = 9000\nmax_sequenzes = 3\n");
    let wrong = file("wrong.toml", "port = \"many\"\n");
    let broken = file("broken.toml", "port = \n");
    let fixture = llava_path();
    let second = format!("second={fixture}");
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    for (arguments, expected) in [
        (vec!["serve", "./nowhere"], "neither a folder nor a hub id"),
        (vec!["serve", "/tmp"], "config.json is missing"),
        (vec!["serve", "owner/model", "--offline"], "is not in the cache"),
        (vec!["serve", &fixture, "--memroy", "3"], "--memory"),
        (vec!["serve", &fixture, "--memory", "lots"], "neither a share"),
        (vec!["serve", &fixture, "--memory", "1MB"], "the smallest useful cache"),
        (vec!["serve", &fixture, "--memory", "100KB"], "the weights take"),
        (vec!["serve", &fixture, "--max-queue", "9223372036854775807"], "9223372036854775807"),
        (vec!["serve", &fixture, "--drain-seconds", "18446744073709551615"], "18446744073709551615"),
        (vec!["serve", &fixture, "--host", "example"], "example is no address"),
        (vec!["serve", &fixture, "--log", "loud"], "'loud' is no level"),
        (vec!["serve", &fixture, "--offline", "true"], "true is neither a folder nor a hub id"),
        (vec!["serve", &fixture, &fixture], "two models are named llava"),
        (vec!["serve", &fixture, &second, "--name", "x"], "write NAME=PATH_OR_HUB_ID for each"),
        (vec!["serve", &fixture, &second, "--alias", "second=llava"], "choose another alias"),
        (vec!["serve", &fixture, "--alias", "x=second"], "which is not served; served: llava"),
        (vec!["serve", &fixture, "other=/tmp"], "cannot serve other: /tmp/config.json is missing"),
        (vec!["serve", &fixture, &second, "--memory", "1MB"], "the weights take 1.4 MiB"),
        (vec!["serve", &fixture, &second, "--memory", "5MB"], "the smallest useful cache"),
        (vec!["pull", "owner/model", "--config", "/nowhere.toml"], "/nowhere.toml"),
        (vec!["serve", &fixture, "--max-sequences", "0"], "max_sequences must be at least 1"),
        (vec!["serve", &fixture, "--max-context", "1"], "max_context must be at least 2"),
        (vec!["serve", &fixture, "--dtype", "int4"], "possible values: f32, bf16"),
        (vec!["serve", &fixture, "--port", "70000"], "70000"),
        (vec!["serve", &fixture, "--port", &port], "choose another with --host or --port"),
        (vec!["serve", &fixture, "--log", "loud==3"], "level filter"),
        (vec!["serve", &fixture, "--chat-template", "/nowhere.jinja"], "/nowhere.jinja"),
        (vec!["serve", &fixture, "--config", &unknown], "unknown field `max_sequenzes`"),
        (vec!["serve", &fixture, "--config", &unknown], "line 2"),
        (vec!["serve", &fixture, "--config", &wrong], "wrong.toml"),
        (vec!["serve", &fixture, "--config", &broken], "broken.toml"),
        (vec!["serve", &fixture, "--config", "/nowhere.toml"], "/nowhere.toml"),
        (vec!["plan", "./nowhere"], "neither a folder nor a hub id"),
        (vec!["plan", "/tmp"], "/tmp/config.json is missing"),
        (vec!["plan", "owner/model", "--offline"], "is not in the cache"),
        (vec!["plan", &fixture, &fixture], "two models are named llava"),
        (
            vec!["plan", &fixture, "--gpu", "gtx970"],
            "(a10g, l4, rtx4090, rtx3090, a100-40, l40s, h100, a100, h200)",
        ),
        (vec!["plan", &fixture, "--gpu", "gtx970"], "such as 24GiB"),
        (vec!["plan", &fixture, "--dtype", "int4"], "possible values: f32, bf16"),
        (vec!["plan", &fixture, "--max-sequences", "0"], "max_sequences must be at least 1"),
        (vec!["chat", "hello", "--dummy-weights"], "--model"),
        (vec!["pull", &fixture], "is a folder already"),
        (vec!["pull", "percept-demo-vlm"], "is part of the program already"),
        (vec!["chat", "hello", "--url", "http://127.0.0.1:1"], "start one with percept serve"),
        (vec!["chat", "hello", "--model", &fixture, "-i", "/nowhere.png"], "cannot read /nowhere.png"),
        (vec!["chat", "hello", "--model", &fixture, "-t", "9"], "above maximum value"),
    ] {
        let error = fails(percept(&arguments));
        assert!(error.contains(expected), "{arguments:?}: {error}");
    }
    let mut command = percept(&["serve", &fixture]);
    command.env("PERCEPT_MAX_SEQUENZES", "3");
    let error = fails(command);
    assert!(error.contains("PERCEPT_MAX_SEQUENZES") && error.contains("max_sequences"), "{error}");
}

#[test]
fn a_question_is_answered_by_a_model_of_its_own_and_by_a_server() {
    let golden = Golden::read("llava");
    let case = golden.prompts().find(|case| case.name == "one_square").unwrap();
    let picture = fixtures().join("inputs/square_56x56.png");
    let question = [
        "chat",
        "what is shown in this image?",
        "-i",
        picture.to_str().unwrap(),
        "-t",
        "0",
        "--max-tokens",
        "12",
    ];
    let ask = |more: &[&str]| {
        let output = run(percept(&[&question, more].concat()));
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    };
    let expected = format!("{}\n", case.greedy_text);
    assert_eq!(ask(&["--model", &llava_path()]), expected);

    let serving = Serving::start(percept(&["serve", &llava_path(), "--port", "0", "--alias", "gpt-4o"]));
    assert_eq!(ask(&["--url", &serving.url]), expected);
    assert_eq!(ask(&["--url", &format!("{}/v1/", serving.url), "--name", "gpt-4o"]), expected);
    let error = fails(percept(&["chat", "hello", "--url", &serving.url, "--name", "gpt-5"]));
    assert!(error.contains("`gpt-5` does not exist"), "{error}");

    let mut command =
        percept(&["chat", "count:", "--stdin", "--url", &serving.url, "--system", "be brief", "--seed", "3"]);
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all("from one to ten".as_bytes()).unwrap();
    assert!(child.wait_with_output().unwrap().status.success());
}

/// What the program's own models say to the program's own samples, by a server that was given no model, without a
/// network, a home folder or a cache.
#[test]
fn without_a_model_two_of_its_own_are_served() {
    let serving = Serving::start(percept(&["serve", "--port", "0", "--alias", "gpt-4o"]));
    let list = serving.get("/v1/models");
    let names: Vec<_> =
        list["data"].as_array().unwrap().iter().map(|model| model["id"].as_str().unwrap()).collect();
    assert_eq!(names[..3], ["percept-demo-vlm", "gpt-4o", "percept-demo-whisper"]);
    assert!(names.contains(&"whisper-1"), "{names:?}");

    let samples = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("assets/demo/samples");
    let [picture, recording] =
        ["shapes.png", "sentence.wav"].map(|name| samples.join(name).to_str().unwrap().to_owned());
    let answer = |arguments: &[&str]| {
        let output = run(percept(arguments));
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    };
    let question = ["chat", percept::demo::QUESTION, "-i", &picture, "-t", "0"];
    let seen = answer(&[&question[..], &["--url", &serving.url]].concat());
    let heard = answer(&["transcribe", &recording, "--url", &serving.url]);
    // How much they get right is tests/clients/test_quality.py's to say.
    assert!(seen.contains("red circle"), "{seen}");
    assert!(heard.to_lowercase().contains("turn on the kitchen"), "{heard}");

    // The same from a folder, and by their names.
    let folder = samples.parent().unwrap().join("percept-demo-vlm");
    assert_eq!(answer(&[&question[..], &["--model", folder.to_str().unwrap()]].concat()), seen);
    assert_eq!(answer(&[&question[..], &["--model", "percept-demo-vlm"]].concat()), seen);
    assert_eq!(answer(&["transcribe", &recording, "--model", "percept-demo-whisper"]), heard);
    let (plan, code) = planned(&["percept-demo-vlm", "--gpu", "24GiB"]);
    assert_eq!((plan["models"][0]["name"].as_str(), code), (Some("percept-demo-vlm"), Some(0)), "{plan}");

    serving.signal("TERM");
    let (code, log) = serving.end();
    assert_eq!(code, Some(0), "{log}");
    assert!(log.contains("percept serve llava-hf/"), "what to type for a real model: {log}");
    assert!(log.contains("no model is named"), "{log}");
}

/// Every file of the checkpoints in `assets` is in the program, as it is, and no other.
#[test]
fn the_models_of_the_program_are_the_files_of_the_source() {
    for demo in percept::demo::Demo::ALL {
        let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("assets/demo").join(demo.name());
        let mut names: Vec<_> = fs::read_dir(&folder)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .filter(|name| name != "README.md")
            .collect();
        names.sort();
        let mut embedded: Vec<_> = demo.files().iter().map(|(name, _)| (*name).to_owned()).collect();
        embedded.sort();
        assert_eq!(embedded, names, "{}", demo.name());
        for (name, content) in demo.files() {
            assert!(fs::read(folder.join(name)).unwrap() == *content, "{name} of {}", demo.name());
            assert_eq!(demo.checkpoint().bytes(name).unwrap().unwrap(), *content);
        }
        assert!(demo.checkpoint().bytes("nothing.json").unwrap().is_none());
    }
}

#[test]
fn a_demo_shows_both_and_says_what_to_do_next() {
    // Its usual port may be taken.
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    let mut command = percept(&["demo", "--once", "--port", &port]);
    // What is set for servers means nothing to it.
    command.env("PERCEPT_MODEL", "/nowhere");
    let output = run(command);
    let [text, error] = [output.stdout, output.stderr].map(|bytes| String::from_utf8(bytes).unwrap());
    assert!(output.status.success(), "{error}");
    for expected in [
        percept::demo::QUESTION,
        percept::demo::PICTURE_SHOWS,
        "red circle",
        "tokens, the first after",
        "seconds of sound per second",
        "percept serve llava-hf/",
    ] {
        assert!(text.contains(expected), "{expected}: {text}");
    }
    assert!(text.to_lowercase().contains("turn on the kitchen"), "{text}");
    assert!(!text.contains('\u{1b}'), "no colours where there is no terminal: {text}");
    assert!(!text.contains(&format!("127.0.0.1:{port}")), "the port was taken: {text}");
}

#[test]
fn settings_come_from_flags_environment_and_file() {
    let folder = TempDir::new().unwrap();
    let file = folder.path().join("percept/config.toml");
    fs::create_dir(file.parent().unwrap()).unwrap();
    fs::write(
        &file,
        format!("model = {:?}\nname = \"file\"\nport = 1\nalias = [\"one\", \"two\"]\n", llava_path()),
    )
    .unwrap();
    let mut command = percept(&["serve", "--port", "0"]);
    command.env("XDG_CONFIG_HOME", folder.path()).env("PERCEPT_NAME", "environment");
    let serving = Serving::start(command);
    let list = serving.get("/v1/models");
    let names: Vec<_> =
        list["data"].as_array().unwrap().iter().map(|model| model["id"].as_str().unwrap()).collect();
    assert_eq!(names, ["environment", "one", "two"]);
}

#[test]
fn several_models_are_served_by_one_process() {
    let golden = Golden::read("llava");
    let case = golden.prompts().find(|case| case.name == "one_square").unwrap();
    let models = ["first", "second"].map(|name| format!("{name}={}", llava_path()));
    let mut command = percept(&["serve", "-p", "0", "--alias", "gpt-4o=second", "--alias", "gpt-4"]);
    command.env("PERCEPT_MODEL", models.join(","));
    let serving = Serving::start(command);

    let list = serving.get("/v1/models");
    let list = list["data"].as_array().unwrap().iter();
    let names: Vec<_> =
        list.map(|model| [&model["id"], &model["root"]].map(|name| name.as_str().unwrap())).collect();
    let expected = [["first", "first"], ["gpt-4", "first"], ["second", "second"], ["gpt-4o", "second"]];
    assert_eq!(names, expected);

    // Each request reaches the engine of its model, and no other.
    let steps = || {
        let health = serving.get("/health");
        assert_eq!(health["status"], "ok");
        let models = health["models"].as_array().unwrap();
        assert_eq!(models.iter().map(|model| &model["id"]).collect::<Vec<_>>(), ["first", "second"]);
        [0, 1].map(|index| models[index]["steps"].as_u64().unwrap())
    };
    for (model, index) in [("first", 0), ("gpt-4", 0), ("second", 1), ("gpt-4o", 1)] {
        let before = steps();
        let mut body = server::golden_request(case);
        body["model"] = model.into();
        let mut response =
            ureq::post(format!("{}/v1/chat/completions", serving.url)).send_json(&body).unwrap();
        let answer: Value = response.body_mut().read_json().unwrap();
        assert_eq!(answer["choices"][0]["message"]["content"], case.greedy_text);
        let after = steps();
        assert!(after[index] > before[index], "{model}");
        assert_eq!(after[1 - index], before[1 - index], "{model}");
    }
    let error = fails(percept(&["chat", "hello", "--url", &serving.url, "--name", "third"]));
    assert!(error.contains("first") && error.contains("second"), "what there is: {error}");
    serving.signal("TERM");
    let (code, log) = serving.end();
    assert_eq!(code, Some(0), "{log}");
    for model in ["first", "second"] {
        assert!(log.contains(&format!("engine{{model=\"{model}\"}}: engine ended")), "{log}");
    }
}

/// A copy of a fixture without its weights, with another network in it if one is given.
fn without_weights(name: &str, change: impl FnOnce(&mut Value)) -> TempDir {
    let folder = support::without_weights(name);
    edit(folder.path(), "config.json", change);
    folder
}

/// Seven billion weights in the text, and nothing in the folder.
fn seven_billion() -> TempDir {
    without_weights("llava", |config| {
        config["text_config"] = serde_json::json!({"max_position_embeddings": 4096, "vocab_size": 32064});
    })
}

/// What `percept plan` says as JSON, and its exit code.
fn planned(arguments: &[&str]) -> (Value, Option<i32>) {
    let output = run(percept(&[&["plan", "--json"], arguments].concat()));
    let error = String::from_utf8_lossy(&output.stderr);
    (serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{error}")), output.status.code())
}

#[test]
fn a_plan_is_made_without_weights_and_says_what_would_fit() {
    let folder = seven_billion();
    let path = folder.path().to_str().unwrap();
    let model = format!("large={path}");
    let (plan, code) = planned(&[&model, "--gpu", "A10G"]);
    assert_eq!(code, Some(0), "{plan}");
    assert_eq!(plan["memory"]["name"], "a10g");
    assert_eq!(plan["memory"]["total"], 23_028_u64 << 20);
    assert_eq!(plan["fits"], true);
    let row = &plan["models"][0];
    assert_eq!((&row["name"], &row["dtype"]), (&"large".into(), &"bf16".into()));
    assert_eq!(row["token_bytes"], 512 << 10);
    // 16 rows of a picture: keys, values, and the row itself.
    assert_eq!((&row["medium_rows"], &row["medium_bytes"]), (&16.into(), &(16 * (520 << 10)).into()));
    let weights = row["weights"].as_u64().unwrap();
    assert!((13_500_000_000..13_600_000_000).contains(&weights), "{weights}");
    let sum: u64 = ["weights", "workspace", "encoder_cache", "kv_cache"]
        .map(|part| row[part].as_u64().unwrap())
        .iter()
        .sum();
    let [used, budget] = [&plan["used"], &plan["memory"]["budget"]].map(|bytes| bytes.as_u64().unwrap());
    assert!(sum <= used && used <= budget && sum * 100 > budget * 99, "{sum} {used} {budget}");
    // A request of 16 rows and 500 tokens takes 33 pages of 16 rows.
    let rows = row["kv_cache"].as_u64().unwrap() / (512 << 10);
    assert_eq!(row["at_once"], rows / 16 / 33);
    assert!(row["at_once"].as_u64().unwrap() > 15);

    // In f32 the weights alone are too much.
    let (plan, code) = planned(&[&model, "--gpu", "a10g", "--dtype", "f32"]);
    assert_eq!((code, &plan["fits"], &plan["models"][0]["at_once"]), (Some(1), &false.into(), &Value::Null));
    let advice: Vec<_> =
        plan["advice"].as_array().unwrap().iter().map(|line| line.as_str().unwrap()).collect();
    assert_eq!(advice, ["it fits with --dtype bf16", "as it is, it fits on --gpu a100-40 (40.0 GiB)"]);
    let error = fails(percept(&["plan", &model, "--gpu", "a10g", "--dtype", "f32"]));
    assert!(
        error.contains("the weights take") && error.contains("\n  it fits with --dtype bf16\n"),
        "{error}"
    );
    // A context that is asked for is not made shorter silently.
    let arguments = [model.as_str(), "--gpu", "14GiB", "--memory", "1", "--context", "4096"];
    let (plan, code) = planned(&arguments);
    assert_eq!((code, &plan["fits"]), (Some(1), &false.into()), "{plan}");
    let context = plan["models"][0]["context"].to_string();
    assert_eq!(plan["advice"][0], "it fits with --max-context ".to_owned() + &context);
    let (plan, code) = planned(&[&arguments[..6], &[&context]].concat());
    assert_eq!((code, &plan["fits"]), (Some(0), &true.into()), "{plan}");
    // Without a wish it is the table that says so.
    let output = run(percept(&["plan", &model, "--gpu", "14GiB", "--memory", "1"]));
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success() && text.contains(&format!("{context} of 4096")), "{text}");
}

#[test]
fn a_plan_of_embedding_models_has_no_cache_of_text() {
    let models =
        ["bert", "clip"].map(|name| format!("{name}={}/tests/fixtures/{name}", env!("CARGO_MANIFEST_DIR")));
    let (plan, code) = planned(&[&models[0], &models[1], "--gpu", "a10g", "--dtype", "f32"]);
    assert_eq!((code, &plan["fits"]), (Some(0), &true.into()), "{plan}");
    let [reads, sees] = [&plan["models"][0], &plan["models"][1]];
    for row in [reads, sees] {
        assert_eq!((&row["task"], &row["kv_cache"]), (&"feature-extraction".into(), &0.into()), "{row}");
        assert_eq!((&row["token_bytes"], &row["at_once"]), (&0.into(), &64.into()), "{row}");
        assert!(row["workspace"].as_u64().unwrap() > 0);
    }
    assert_eq!((&reads["medium_rows"], &reads["encoder_cache"]), (&0.into(), &0.into()));
    // A step of a GPU's, and an eighth of that for pictures that come again, of 48 numbers each.
    assert_eq!((&sees["medium_rows"], &sees["encoder_cache"]), (&17.into(), &((1024 + 128) * 48 * 4).into()));
    let output = run(percept(&["plan", &models[0], &models[1], "--gpu", "a10g"]));
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(!text.contains("KV cache") && text.contains("encoder cache"), "{text}");
}

#[test]
fn the_table_of_a_plan_is_that_of_the_log() {
    let models = [format!("sees={}", llava_path()), format!("hears={}", whisper_path())];
    let [sees, hears] = models.each_ref().map(String::as_str);
    let output = run(percept(&["plan", sees, hears, "--memory", "200MB"]));
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{text}");
    let (table, last) = text.trim_end().rsplit_once('\n').unwrap();
    for line in ["sees", "weights", "KV cache", "a window of sound", "with a picture and 500 tokens"] {
        assert!(table.contains(line), "{line}: {text}");
    }
    assert!(
        last.starts_with("taken: ") && last.contains("of 190.7 MiB that may be used (free on this machine: ")
    );
    let serving = Serving::start(percept(&["serve", "-p", "0", sees, hears, "--memory", "200MB"]));
    serving.signal("TERM");
    let (_, log) = serving.end();
    assert!(log.contains(table), "{table}\n{log}");
}

/// Programs count on the names.
#[test]
fn the_names_of_a_plan_in_json_stay() {
    let (plan, code) = planned(&[&llava_path(), &whisper_path(), "--gpu", "1GiB"]);
    assert_eq!(code, Some(0));
    let names = |value: &Value| value.as_object().unwrap().keys().cloned().collect::<Vec<_>>().join(" ");
    assert_eq!(names(&plan), "memory fits used models advice");
    assert_eq!(names(&plan["memory"]), "name total budget");
    for (row, task) in
        plan["models"].as_array().unwrap().iter().zip(["image-text-to-text", "automatic-speech-recognition"])
    {
        assert_eq!(row["task"], task);
        assert_eq!(
            names(row),
            "name task dtype weights workspace workspace_measured least_cache token_bytes medium_rows medium_bytes \
             wanted_context encoder_cache kv_cache context sequences at_once"
        );
    }
    assert_eq!(plan["advice"], serde_json::json!([]));
    assert_eq!(plan["models"][1]["medium_rows"], 1500);
    assert_eq!(plan["models"][1]["at_once"], 64);
    let (none, _) = planned(&[&llava_path(), &whisper_path(), "--gpu", "1MiB"]);
    assert_eq!((names(&none), names(&none["models"][0])), (names(&plan), names(&plan["models"][0])));
}

#[test]
fn a_plan_is_made_for_what_the_file_names() {
    let folder = TempDir::new().unwrap();
    let file = folder.path().join("p.toml");
    fs::write(&file, format!("model = [\"a={0}\", \"b={0}\"]\nmemory = \"100MB\"\n", llava_path())).unwrap();
    let (plan, _) = planned(&["--config", file.to_str().unwrap()]);
    assert_eq!(plan["models"][1]["name"], "b");
    assert_eq!(plan["memory"]["budget"], 100_000_000);
}

#[test]
fn random_weights_answer_and_say_what_they_are() {
    let folder = without_weights("llava", |_| {});
    let path = folder.path().to_str().unwrap();
    let question = ["chat", "hello", "--model", path, "-t", "0", "--max-tokens", "6"];
    let ask = || run(percept(&[&question[..], &["--dummy-weights"]].concat()));
    let answer = ask();
    let log = String::from_utf8(answer.stderr.clone()).unwrap();
    assert!(answer.status.success() && log.contains("weights are random"), "{log}");
    assert_eq!(answer.stdout, ask().stdout);
    assert!(fails(percept(&question)).contains("has neither model.safetensors"));
    let whisper = without_weights("whisper", |_| {});
    let arguments = [
        "transcribe",
        &speech(),
        "--model",
        whisper.path().to_str().unwrap(),
        "--temperature",
        "0",
        "--dummy-weights",
    ];
    assert!(run(percept(&arguments)).status.success());
}

/// A hub that never answers, and its address.
fn silent_hub() -> (TcpListener, String) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    (listener, url)
}

#[test]
fn a_signal_ends_a_server_that_is_still_loading() {
    let (hub, url) = silent_hub();
    let cache = TempDir::new().unwrap();
    let mut command = percept(&["serve", "owner/model", "--port", "0"]);
    command.env("HF_ENDPOINT", url).env("HF_HUB_CACHE", cache.path());
    let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    // Now it waits for the hub.
    let connection = hub.accept().unwrap();
    signal(&child, "TERM");
    let ended = (0..600).any(|_| {
        std::thread::sleep(Duration::from_millis(50));
        child.try_wait().unwrap().is_some()
    });
    let _ = child.kill();
    assert!(ended, "it waits for the hub");
    drop(connection);
}

#[test]
fn nobody_need_listen() {
    // Nobody reads the line that says where it serves.
    let full = fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
    // Nobody else takes this port so soon.
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let mut command = percept(&["serve", &llava_path(), "--port", &port.to_string(), "--log", "error"]);
    let mut child = command.stdout(full).stderr(Stdio::null()).spawn().unwrap();
    let url = format!("http://127.0.0.1:{port}");
    while ureq::get(format!("{url}/health")).call().is_err() {
        assert!(child.try_wait().unwrap().is_none(), "it ended");
        std::thread::yield_now();
    }
    for _ in 0..10 {
        let answer = ureq::post(format!("{url}/v1/chat/completions")).send_json(server::words("hello"));
        assert_eq!(answer.unwrap().status(), 200);
    }
    assert!(child.try_wait().unwrap().is_none(), "it ended");
    child.kill().unwrap();
    child.wait().unwrap();
}

#[test]
fn a_proxy_does_not_stand_between_programs_of_one_machine() {
    let mut command =
        percept(&["chat", "hello", "--model", &llava_path(), "--seed", "-5", "--max-tokens", "3"]);
    command.env("HTTP_PROXY", "http://127.0.0.1:1").env("http_proxy", "http://127.0.0.1:1");
    let output = run(command);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn a_signal_lets_answers_end_and_a_short_patience_cuts_them() {
    let streaming = |serving: &Serving, tokens: u32| {
        let mut body = server::words("hello");
        body["stream"] = true.into();
        body["max_tokens"] = tokens.into();
        body["logit_bias"] = serde_json::json!({"2": -100});
        let mut response =
            ureq::post(format!("{}/v1/chat/completions", serving.url)).send_json(&body).unwrap();
        let (sender, receiver) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            let mut lines = BufReader::new(response.body_mut().as_reader()).lines();
            sender.send(lines.next().unwrap().unwrap()).unwrap();
            sender.send(lines.map_while(Result::ok).collect::<Vec<_>>().concat()).unwrap();
        });
        receiver.recv().unwrap();
        receiver
    };
    for (signal, json) in [("TERM", false), ("INT", true)] {
        let format = if json { "json" } else { "human" };
        let serving = Serving::start(percept(&["serve", &llava_path(), "-p", "0", "--log-format", format]));
        let rest = streaming(&serving, 300);
        serving.signal(signal);
        assert!(rest.recv().unwrap().ends_with("data: [DONE]"));
        let (code, log) = serving.end();
        assert_eq!(code, Some(0), "{log}");
        assert!(log.contains("finishing what is running"), "{log}");
        assert!(!log.contains("hello"), "content in the log: {log}");
        for line in log.lines().filter(|_| json) {
            let line: Value = serde_json::from_str(line).unwrap();
            assert!(line["timestamp"].is_string() && line["level"].is_string());
        }
    }
    let serving = Serving::start(percept(&["serve", &llava_path(), "-p", "0", "--drain-seconds", "0"]));
    let rest = streaming(&serving, 4000);
    serving.signal("TERM");
    let (code, log) = serving.end();
    assert!(!rest.recv().unwrap().ends_with("[DONE]"), "an answer that was cut must not look complete");
    assert_eq!(code, Some(0));
    assert!(log.contains("cut off"), "{log}");
}

fn whisper_path() -> String {
    fixtures().join("whisper").to_str().unwrap().to_owned()
}

fn speech() -> String {
    fixtures().join("inputs/speechlike_3s.wav").to_str().unwrap().to_owned()
}

#[test]
fn recordings_that_cannot_be_transcribed_are_told_why() {
    let folder = TempDir::new().unwrap();
    let folder = folder.path().to_str().unwrap();
    let nowhere = ["--url", "http://127.0.0.1:1"];
    let error = |arguments: &[&str]| fails(percept(&[&["transcribe"], arguments, &nowhere].concat()));
    assert!(error(&["none.wav"]).contains("cannot read none.wav"));
    assert!(error(&[folder]).contains("has no recordings"));
    assert!(error(&[&speech(), "-f", "txt,srt"]).contains("-o FOLDER"));
    assert!(error(&[&speech(), "-f", "all"]).contains("-o FOLDER"));
    assert!(error(&[&speech()]).contains("start one with percept serve"));
    assert!(error(&[&speech(), "-f", "doc"]).contains("possible values"));
    assert!(error(&[]).contains("required"));
    let chat = fails(percept(&["transcribe", &speech(), "--model", &llava_path()]));
    assert!(chat.contains("the server has no speech model"), "{chat}");
}

#[test]
fn recordings_become_files_of_every_format() {
    let model = fixtures().join("whisper");
    let serving = Serving::start(percept(&["serve", model.to_str().unwrap(), "-p", "0", "--log", "warn"]));
    let url = serving.url.as_str();
    let transcribe = |arguments: &[&str]| percept(&[&["transcribe", "--url", url], arguments].concat());
    let text = |command: Command| {
        let output = run(command);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    };
    let srt = text(transcribe(&[&speech(), "-f", "srt"]));
    let json: Value = serde_json::from_str(&text(transcribe(&[&speech(), "-f", "json", "--words"]))).unwrap();
    assert_eq!(json["duration"], 3.0);
    assert!(json["segments"][0]["words"].is_array() && json["words"].is_array(), "{json}");
    let mut stdin = transcribe(&["-", "-f", "srt"]);
    stdin.stdin(fs::File::open(speech()).unwrap());
    assert_eq!(text(stdin), srt);
    // A folder, one of whose recordings is none.
    let folder = TempDir::new().unwrap();
    let path = |name: &str| folder.path().join(name);
    fs::create_dir(path("in")).unwrap();
    fs::copy(speech(), path("in/a.wav")).unwrap();
    fs::copy(speech(), path("in/a.mp3")).unwrap();
    fs::write(path("in/b.ogg"), "this is no sound").unwrap();
    fs::write(path("in/notes.txt"), "").unwrap();
    let (from, to) = (path("in"), path("out/new"));
    let failed = fails(transcribe(&[from.to_str().unwrap(), "-f", "all", "-o", to.to_str().unwrap()]));
    assert!(failed.contains("b.ogg: Invalid file format"), "{failed}");
    assert!(failed.contains("1 of 3 recordings have no transcript"), "{failed}");
    assert!(failed.contains("x real time"), "{failed}");
    let mut written: Vec<_> =
        fs::read_dir(&to).unwrap().map(|file| file.unwrap().file_name().into_string().unwrap()).collect();
    written.sort();
    let expected = ["a.json", "a.srt", "a.tsv", "a.txt", "a.vtt"].map(str::to_owned).into_iter();
    let expected = expected.chain(["json", "srt", "tsv", "txt", "vtt"].map(|end| format!("a.wav.{end}")));
    assert_eq!(written, expected.collect::<Vec<_>>());
    assert_eq!(fs::read_to_string(to.join("a.srt")).unwrap(), srt);
    assert_eq!(
        text(percept(&["transcribe", "--model", model.to_str().unwrap(), &speech(), "-f", "srt"])),
        srt
    );
}

/// Two thousand requests with many pictures leave the process as large as five hundred did.
#[test]
fn memory_does_not_grow_with_uptime() {
    const ROUND: usize = 500;
    const CLIENTS: usize = 4;
    let arguments =
        ["serve", &llava_path(), "-p", "0", "--max-sequences", "8", "--max-context", "256", "--log", "warn"];
    let serving = Serving::start(percept(&arguments));
    let pictures =
        ["land_90x60.png", "wide_200x40.png", "photo_160x120.jpg", "rgba_64x48.png", "big_180x150.png"];
    let pictures = pictures.map(server::data_url);
    let mut sizes = Vec::new();
    for round in 0..6 {
        std::thread::scope(|scope| {
            for client in 0..CLIENTS {
                let (url, pictures) = (&serving.url, &pictures);
                scope.spawn(move || {
                    let agent = ureq::Agent::new_with_defaults();
                    for index in (client..ROUND).step_by(CLIENTS) {
                        let mut body = server::words(&format!("what is this? {round} {index}"));
                        let picture = server::image_part(&pictures[index % pictures.len()]);
                        let text = body["messages"][0]["content"].clone();
                        let text = serde_json::json!({"type": "text", "text": text});
                        body["messages"][0]["content"] = serde_json::json!([picture, text]);
                        body["stream"] = (index % 2 == 0).into();
                        let mut response =
                            agent.post(format!("{url}/v1/chat/completions")).send_json(&body).unwrap();
                        if index % 7 == 0 {
                            // This one leaves in the middle.
                            continue;
                        }
                        response.body_mut().read_to_string().unwrap();
                    }
                });
            }
        });
        sizes.push(serving.resident_kib());
    }
    // The first rounds fill the allocator's pools of each thread. A leak of a KiB per request would show after them.
    let growth = sizes[5].saturating_sub(sizes[1]);
    assert!(growth < 2048, "resident KiB after each {ROUND} requests: {sizes:?}");
    eprintln!("resident KiB after each {ROUND} requests: {sizes:?}");
}

/// A byte of G.711 µ-law for a sample.
fn mu_law(sample: i16) -> u8 {
    let sign = if sample < 0 { 0x80 } else { 0 };
    let magnitude = sample.unsigned_abs().min(32_635) + 132;
    let exponent = 7 - (magnitude | 0xff).leading_zeros().min(7);
    let mantissa = (magnitude >> (exponent + 3)) & 0x0f;
    !(sign | (exponent as u8) << 4 | mantissa as u8)
}

/// A telephone recording of so many minutes, in each of which somebody says two sentences.
fn telephone(minutes: usize) -> Vec<u8> {
    const RATE: u32 = 8000;
    let said = fs::read(fixtures().join("sound/two_sentences.wav")).unwrap();
    let samples = said[44..].chunks_exact(4).map(|pair| i16::from_le_bytes([pair[0], pair[1]]));
    let mut minute: Vec<u8> = samples.map(mu_law).collect();
    minute.resize(60 * RATE as usize, mu_law(0));
    let size = (minutes * minute.len()) as u32;
    let mut wav = Vec::with_capacity(44 + size as usize);
    wav.extend(b"RIFF");
    wav.extend((size + 36).to_le_bytes());
    wav.extend(b"WAVEfmt ");
    wav.extend(16u32.to_le_bytes());
    for field in [7u16, 1] {
        wav.extend(field.to_le_bytes());
    }
    for field in [RATE, RATE] {
        wav.extend(field.to_le_bytes());
    }
    for field in [1u16, 8] {
        wav.extend(field.to_le_bytes());
    }
    wav.extend(b"data");
    wav.extend(size.to_le_bytes());
    for _ in 0..minutes {
        wav.extend(&minute);
    }
    wav
}

#[test]
fn three_hours_of_sound_take_little_memory() {
    const MINUTES: usize = 180;
    let serving = Serving::start(percept(&["serve", &whisper_path(), "-p", "0", "--max-sequences", "16"]));
    let before = serving.resident_kib();
    let mut body = Vec::new();
    for (name, text) in [("model", "whisper"), ("max_new_tokens", "8"), ("temperatures", "0")] {
        body.extend(format!("--b\r\ncontent-disposition: form-data; name={name}\r\n\r\n{text}\r\n").bytes());
    }
    body.extend(b"--b\r\ncontent-disposition: form-data; name=response_format\r\n\r\nverbose_json\r\n");
    body.extend(b"--b\r\ncontent-disposition: form-data; name=file; filename=x\r\n\r\n");
    body.extend(telephone(MINUTES));
    body.extend(b"\r\n--b--\r\n");
    let mut response = ureq::post(format!("{}/v1/audio/transcriptions", serving.url))
        .header("content-type", "multipart/form-data; boundary=b")
        .send(&body)
        .unwrap();
    let answer: Value = response.body_mut().read_json().unwrap();
    assert_eq!(answer["duration"], (MINUTES * 60) as f64);
    let segments = answer["segments"].as_array().unwrap();
    let minutes: std::collections::BTreeSet<u64> =
        segments.iter().map(|segment| segment["seek"].as_u64().unwrap() / 6000).collect();
    assert!(minutes.len() > MINUTES * 9 / 10, "something is said in every minute: {minutes:?}");
    let growth = serving.memory_kib("VmHWM:").saturating_sub(before);
    assert!(growth < 400 * 1024, "{growth} KiB more than before");
    eprintln!("three hours took {growth} KiB more than the {before} KiB before");
}

#[test]
fn the_fixture_is_ready_soon() {
    let started = Instant::now();
    let serving = Serving::start(percept(&["serve", &llava_path(), "-p", "0"]));
    let ready = started.elapsed();
    assert_eq!(ureq::get(format!("{}/health", serving.url)).call().unwrap().status(), 200);
    // No clock decides here: the figure is for whoever reads the log.
    eprintln!("ready after {ready:?}");
    assert!(ready < Duration::from_secs(60), "it hangs");
}
