//! `percept bench`, from its command line to its files: against a server that follows a script, so that what it must
//! measure is known, and against a real one.
#![allow(clippy::unwrap_used, reason = "tests")]

mod support;

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
    time::Duration,
};

use percept::config::Settings;
use serde_json::{Value, json};
use support::{
    fixtures, llava,
    scripted::{End, Reply, Scripted, answer_of, end, event, text},
    server, whisper, without_weights,
};
use tempfile::TempDir;

/// The program, in an environment that is nobody's.
fn bench(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_percept"));
    command.arg("bench").args(arguments).env_clear().env("HOME", "/nonexistent").stdin(Stdio::null());
    command
}

async fn run(mut command: Command) -> Output {
    tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap()
}

/// What it measures of a server, and what it prints.
async fn measure(url: &str, arguments: &[&str]) -> (Value, String) {
    let folder = TempDir::new().unwrap();
    let file = folder.path().join("report.json");
    let all = [&["--url", url, "--no-energy", "--json", file.to_str().unwrap()], arguments].concat();
    let output = run(bench(&all)).await;
    let error = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success(), "{error}");
    let report = serde_json::from_slice(&fs::read(&file).unwrap()).unwrap();
    (report, String::from_utf8(output.stdout).unwrap())
}

async fn fails(arguments: &[&str]) -> String {
    let output = run(bench(arguments)).await;
    assert!(!output.status.success(), "{arguments:?}");
    let error = String::from_utf8(output.stderr).unwrap();
    assert!(!error.contains("panicked"), "{error}");
    error
}

fn level(report: &Value) -> &Value {
    assert_eq!(report["served"]["levels"].as_array().unwrap().len(), 1);
    &report["served"]["levels"][0]
}

fn number(value: &Value) -> f64 {
    value.as_f64().unwrap_or_else(|| panic!("{value} is no number"))
}

const fn milliseconds(count: u64) -> Duration {
    Duration::from_millis(count)
}

/// Texts of 60, 90, 120 and 150 ms, of seven tokens, behind an event without one.
fn paced() -> Reply {
    let role = event(&json!({"choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}}]}));
    let mut pieces = vec![(Duration::ZERO, role), (milliseconds(60), text("a"))];
    pieces.extend(["b", "c", "d"].map(|piece| (milliseconds(30), text(piece))));
    pieces.push((Duration::ZERO, end(Some((11, 4, 7)))));
    Reply::Stream(pieces, End::Closed)
}

#[tokio::test(flavor = "multi_thread")]
async fn times_and_tokens_are_those_of_the_server() {
    let server = Scripted::start(1000, |_, _| paced()).await;
    let arguments = ["--requests", "6", "-c", "3", "--warm-up", "1", "--seed", "9", "--max-tokens", "70"];
    let (report, printed) = measure(&server.url, &arguments).await;
    let level = level(&report);
    assert_eq!(level["requests"], json!({"sent": 6, "completed": 6, "busy": 0, "failed": 0, "cut_off": 0}));
    let tokens = json!({"prompt": 66, "cached": 24, "completion": 42, "counted_by": "usage"});
    assert_eq!(level["tokens"], tokens);
    let latency = &level["latency"];
    let mean = |name: &str| number(&latency[name]["mean"]);
    // An event without text is no token. Pauses can be longer than they should be, and never shorter.
    assert!(mean("first_token") >= 0.060 && mean("inter_token") >= 0.029, "{latency:#}");
    assert!(mean("end_to_end") >= 0.150, "{latency:#}");
    assert_eq!(latency["first_token"]["count"], 6);
    assert_eq!(latency["inter_token"]["count"], 6 * 3);
    // Three gaps between four pieces are six tokens behind the first.
    let spent = 3.0 * mean("inter_token");
    assert!((6.0 * mean("per_output_token") - spent).abs() < 1e-4 * spent, "{latency:#}");
    assert!(mean("first_token") + spent <= mean("end_to_end") + 1e-6, "{latency:#}");
    for times in latency.as_object().unwrap().values() {
        let order = ["p50", "p95", "p99", "max"].map(|name| number(&times[name]));
        assert!(order.is_sorted(), "{times}");
    }
    let per_second = number(&level["throughput"]["output_tokens"]);
    assert!((per_second * number(&level["duration"]) - 42.0).abs() < 1e-6, "{per_second}");
    assert_eq!(report["served"]["server"]["owned_by"], "somebody");
    assert_eq!(report["served"]["server"]["version"], "1.2.3");
    assert_eq!(report["served"]["server"]["fingerprint"], "fp_1");
    assert_eq!(report["served"]["server"]["model"], "eyes");
    assert!(printed.contains("first token (TTFT)") && printed.contains("3 at once"), "{printed}");

    let asked = server.asked();
    // Two to learn what words are in tokens, one to warm up.
    assert_eq!(asked.len(), 2 + 1 + 6);
    let bodies: BTreeSet<&[u8]> = asked.iter().map(|asked| &asked.body[..]).collect();
    assert_eq!(bodies.len(), asked.len(), "requests repeat");
    let body = asked.last().unwrap().json();
    assert_eq!(body["stream"], true);
    assert_eq!(body["stream_options"]["include_usage"], true);
    assert_eq!(body["max_tokens"], 70);
    assert!(body.get("ignore_eos").is_none() && body.get("temperature").is_none(), "{body}");
    assert_eq!(asked[0].header("authorization"), None);

    // The same seed asks the same.
    let (_, _) = measure(&server.url, &arguments).await;
    let again: BTreeSet<Vec<u8>> = server.asked()[9..].iter().map(|asked| asked.body.to_vec()).collect();
    assert_eq!(again, bodies.into_iter().map(<[u8]>::to_vec).collect());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_goes_wrong_is_counted_by_its_kind() {
    let server = Scripted::start(1000, |index, _| {
        let half = || vec![(Duration::ZERO, text("half"))];
        // The first three are for words and for warming up.
        match index.checked_sub(3).map(|index| index % 10) {
            Some(0) => {
                Reply::Status(429, vec![("retry-after-ms", "1")], "{\"error\":{\"message\":\"full\"}}".into())
            }
            Some(1) => Reply::Status(500, Vec::new(), "{\"error\":{\"message\":\"sorry\"}}".into()),
            Some(2) => Reply::Status(503, Vec::new(), "not yet".into()),
            Some(3) => Reply::Stream(half(), End::Broken),
            // Without its last line.
            Some(4) => Reply::Stream(half(), End::Closed),
            Some(5) => Reply::Stream(half(), End::Open),
            Some(6) => {
                let failed = event(&json!({"error": {"message": "out of pages"}}));
                Reply::Stream(vec![(Duration::ZERO, text("half") + &failed)], End::Closed)
            }
            Some(7) => Reply::Stream(vec![(Duration::ZERO, "data: {broken\n\n".into())], End::Closed),
            _ => answer_of(&["a", "b"], Some((5, 0, 2))),
        }
    })
    .await;
    let arguments = ["--requests", "20", "-c", "2", "--warm-up", "1", "--timeout", "3"];
    let (report, printed) = measure(&server.url, &arguments).await;
    let level = level(&report);
    assert_eq!(level["requests"], json!({"sent": 20, "completed": 4, "busy": 2, "failed": 14, "cut_off": 0}));
    let errors = json!({
        "broken answer": 4, "error in a stream": 2, "status 500": 2, "status 503": 2, "strange answer": 2, "timeout": 2,
    });
    assert_eq!(level["errors"], errors);
    assert!(level["error_examples"]["status 500"].as_str().unwrap().contains("sorry"));
    // What failed has no part in the figures.
    assert_eq!(level["tokens"]["completion"], 8);
    assert_eq!(level["latency"]["end_to_end"]["count"], 4);
    assert!(number(&level["latency"]["end_to_end"]["max"]) < 3.0);
    for words in ["told to come again (429)", "14 of 20 requests failed", "out of pages", "status 503"] {
        assert!(printed.contains(words), "{words}: {printed}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_counts_nothing_is_counted_by_pieces() {
    let server = Scripted::start(1000, |_, _| answer_of(&["a", "b", "c"], None)).await;
    let (report, printed) =
        measure(&server.url, &["--requests", "2", "-c", "1", "--prompt-tokens", "20"]).await;
    let tokens = json!({"prompt": 0, "cached": 0, "completion": 6, "counted_by": "pieces"});
    assert_eq!(level(&report)["tokens"], tokens);
    assert!(printed.contains("pieces of answers were counted"), "{printed}");
    assert!(printed.contains("words were taken for tokens"), "{printed}");
    let body = server.asked().last().unwrap().json();
    assert_eq!(body["messages"][0]["content"].as_str().unwrap().split(' ').count(), 20);
}

#[tokio::test(flavor = "multi_thread")]
async fn prompts_have_as_many_tokens_as_was_asked_for() {
    // Three tokens for each two words, and 17 around them.
    let server = Scripted::start(1000, |_, asked| {
        let text = asked.json()["messages"][0]["content"].as_str().unwrap().to_owned();
        let tokens = 17 + 3 * text.split(' ').count() as u64 / 2;
        answer_of(&["a"], Some((tokens, 0, 1)))
    })
    .await;
    let arguments = ["--requests", "4", "-c", "1", "--prompt-tokens", "200", "--warm-up", "0"];
    let (report, _) = measure(&server.url, &arguments).await;
    assert_eq!(report["served"]["workload"]["words"], 122);
    assert_eq!(level(&report)["tokens"]["prompt"], 4 * 200);
    let (report, printed) =
        measure(&server.url, &["--requests", "1", "-c", "1", "--prompt-tokens", "9"]).await;
    assert_eq!(report["served"]["workload"]["words"], 1);
    assert!(printed.contains("too short for this model"), "{printed}");
}

/// One answer at a time, 50 ms each, and a request each 25 ms: the last one waits for all before it. A client that
/// counted from when it could send would not see that.
#[tokio::test(flavor = "multi_thread")]
async fn requests_that_wait_for_a_slow_server_count_from_when_they_were_meant() {
    let reply = |_: usize, _: &support::scripted::Asked| {
        let pieces = vec![(milliseconds(50), text("a")), (Duration::ZERO, end(Some((1, 0, 1))))];
        Reply::Stream(pieces, End::Closed)
    };
    let server = Scripted::start(1, reply).await;
    let arguments = ["--rate", "40", "--requests", "12", "--warm-up", "0"];
    let (report, printed) = measure(&server.url, &arguments).await;
    let level = level(&report);
    assert_eq!(level["load"], json!({"kind": "open", "rate": 40.0, "arrivals": "even"}));
    assert_eq!(level["requests"]["completed"], 12);
    // The last one ends 600 ms after the first was meant to be sent, and was itself meant to be sent 275 ms after it.
    assert!(number(&level["latency"]["end_to_end"]["max"]) >= 0.325, "{level:#}");
    assert!(number(&level["duration"]) >= 0.6, "{level:#}");
    assert!(printed.contains("sent late"), "{printed}");
    let (report, _) = measure(&server.url, &["--rate", "400", "--poisson", "--requests", "5"]).await;
    assert_eq!(report["served"]["levels"][0]["load"]["arrivals"], "poisson");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_sent_is_what_was_asked_for() {
    let server = Scripted::start(1000, |_, _| answer_of(&["a"], Some((9, 0, 1)))).await;
    let arguments = [
        "--requests",
        "4",
        "-c",
        "2",
        "--warm-up",
        "0",
        "--pictures",
        "40x30,64x48",
        "--per-request",
        "3",
        "--ignore-eos",
        "--temperature",
        "0.5",
        "--top-p",
        "0.9",
        "--extra-body",
        "{\"top_k\": 7}",
        "--api-key",
        "secret",
        "--model",
        "mine",
    ];
    let (report, printed) = measure(&server.url, &arguments).await;
    let text = report.to_string() + &printed;
    assert!(!text.contains("secret"), "{text}");
    assert!(report["command"].as_str().unwrap().contains("--api-key …"), "{}", report["command"]);
    let sent = json!({"max_tokens": 128, "temperature": 0.5, "top_p": 0.9, "ignore_eos": true, "top_k": 7});
    assert_eq!(report["served"]["workload"]["sent"], sent);
    let pictures = number(&level(&report)["throughput"]["pictures"]) * number(&level(&report)["duration"]);
    assert!((pictures - 12.0).abs() < 1e-9, "{pictures}");
    let mut pictures = BTreeSet::new();
    for asked in &server.asked()[2..] {
        assert_eq!(asked.header("authorization"), Some("Bearer secret"));
        let body = asked.json();
        for (name, value) in sent.as_object().unwrap() {
            assert_eq!(&body[name], value, "{name}");
        }
        assert_eq!(body["model"], "mine");
        let parts = body["messages"][0]["content"].as_array().unwrap();
        assert_eq!(parts.iter().map(|part| &part["type"]).filter(|kind| *kind == "image_url").count(), 3);
        for part in &parts[..3] {
            let url = part["image_url"]["url"].as_str().unwrap();
            assert!(url.starts_with("data:image/jpeg;base64,"));
            pictures.insert(url.to_owned());
        }
    }
    assert_eq!(pictures.len(), 12, "pictures repeat");

    let (report, printed) = measure(&server.url, &["--requests", "4", "--repeat", "2", "-c", "1"]).await;
    assert_eq!(report["served"]["workload"]["repeat"], 2);
    assert!(printed.contains("2 of them are different"), "{printed}");
    let asked = server.asked();
    let last: BTreeSet<&[u8]> = asked[asked.len() - 4..].iter().map(|asked| &asked.body[..]).collect();
    assert_eq!(last.len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn recordings_are_sent_as_forms() {
    let answer = "{\"text\": \"well\", \"usage\": {\"type\": \"duration\", \"seconds\": 2}}";
    let server = Scripted::start(1000, move |_, _| {
        Reply::Status(200, vec![("content-type", "application/json")], answer.into())
    })
    .await;
    let arguments = [
        "--requests",
        "6",
        "-c",
        "2",
        "--sound",
        "2,0.5",
        "--extra-body",
        "{\"language\": \"en\"}",
        "--price",
        "3.6",
    ];
    let (report, printed) = measure(&server.url, &arguments).await;
    let level = level(&report);
    assert_eq!(report["served"]["server"]["model"], "ears");
    assert_eq!(level["tokens"]["counted_by"], "nobody");
    assert_eq!(level["latency"]["first_token"], Value::Null);
    let (duration, cost) = (number(&level["duration"]), &level["cost"]);
    assert!((number(&level["throughput"]["sound_seconds"]) * duration - 7.5).abs() < 1e-9);
    // 3.60 an hour is a thousandth a second.
    assert!((number(&cost["total"]) - duration * 1e-3).abs() < 1e-12);
    assert!((number(&cost["per_audio_hour"]) * 7.5 / 3600.0 - number(&cost["total"])).abs() < 1e-12);
    assert!(printed.contains("RTFx") && printed.contains("USD per hour of sound"), "{printed}");
    let asked = server.asked();
    assert_eq!(asked.len(), 2 + 6, "there are no words to count");
    let form = String::from_utf8_lossy(&asked[0].body);
    assert!(form.contains("name=\"language\"\r\n\r\nen\r\n") && form.contains("RIFF"), "{}", &form[..400]);
    assert!(asked[0].path.ends_with("/audio/transcriptions"));
}

#[tokio::test(flavor = "multi_thread")]
async fn stopping_tells_what_there_is() {
    let server = Scripted::start(1000, |index, _| {
        // Some are answered, the others never are.
        if index < 9 { answer_of(&["a"], Some((1, 0, 1))) } else { Reply::Stream(Vec::new(), End::Open) }
    })
    .await;
    let folder = TempDir::new().unwrap();
    let file = folder.path().join("report.json");
    let arguments = ["--url", &server.url, "--no-energy", "-c", "2,4", "--seconds", "600", "--json"];
    let mut command = bench(&[&arguments[..], &[file.to_str().unwrap()]].concat());
    let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    while server.asked().len() < 11 {
        tokio::time::sleep(milliseconds(5)).await;
    }
    let kill = format!("kill -s INT {}", child.id());
    assert!(Command::new("sh").args(["-c", &kill]).status().unwrap().success());
    let output = tokio::task::spawn_blocking(move || child.wait_with_output().unwrap()).await.unwrap();
    let (printed, error) =
        (String::from_utf8(output.stdout).unwrap(), String::from_utf8(output.stderr).unwrap());
    assert_eq!(output.status.code(), Some(1), "{error}");
    assert!(error.contains("stopped: these are the figures"), "{error}");
    assert!(
        printed.contains("requests answered") && printed.contains("2 requests were given up"),
        "{printed}"
    );
    let report: Value = serde_json::from_slice(&fs::read(&file).unwrap()).unwrap();
    let level = level(&report);
    assert_eq!(level["requests"], json!({"sent": 7, "completed": 5, "busy": 0, "failed": 0, "cut_off": 2}));
    assert_eq!(level["interrupted"], true);
}

/// Names of all that is in a document, whatever the figures.
fn names(value: &Value, path: &str, out: &mut BTreeSet<String>) {
    match value {
        Value::Object(fields) => {
            for (name, value) in fields {
                names(value, &format!("{path}.{name}"), out);
            }
        }
        Value::Array(items) => items.iter().for_each(|item| names(item, &format!("{path}[]"), out)),
        _ => {
            out.insert(path.to_owned());
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn names_of_figures_stay_what_they_are() {
    let server = Scripted::start(1000, |_, _| paced()).await;
    let arguments = ["--requests", "3", "-c", "1", "--price", "1", "--pictures", "8x8"];
    let (report, _) = measure(&server.url, &arguments).await;
    let mut found = BTreeSet::new();
    names(&report, "", &mut found);
    let known = fs::read_to_string(fixtures().join("bench/names.txt")).unwrap();
    let known: BTreeSet<String> = known.lines().map(str::to_owned).collect();
    // There or not.
    found.retain(|name| !name.starts_with(".machine.gpus") && !name.starts_with(".warnings"));
    let lost: Vec<_> = known.difference(&found).collect();
    let new: Vec<_> = found.difference(&known).collect();
    assert!(lost.is_empty() && new.is_empty(), "lost: {lost:#?}\nnew: {new:#?}");
    assert_eq!(report["schema"], 1);
}

/// Every element ends, and in the right order; fails where it is not well formed.
fn check_elements(text: &str) -> usize {
    const VOID: [&str; 3] = ["!doctype", "meta", "br"];
    let mut open = Vec::new();
    let mut count = 0;
    for part in text.split('<').skip(1) {
        let (tag, _) = part.split_once('>').unwrap_or_else(|| panic!("no end: {part}"));
        if let Some(name) = tag.strip_prefix('/') {
            assert_eq!(open.pop(), Some(name), "{part}");
        } else {
            let name = tag.split([' ', '/']).next().unwrap();
            count += 1;
            if !tag.ends_with('/') && !VOID.contains(&name) {
                open.push(name);
            }
        }
    }
    assert!(open.is_empty(), "{open:?}");
    count
}

#[tokio::test(flavor = "multi_thread")]
async fn pages_need_nothing_else_and_runs_are_compared() {
    let server = Scripted::start(1000, |_, _| answer_of(&["a", "b"], Some((5, 0, 2)))).await;
    let slow = Scripted::start(1000, |_, _| paced()).await;
    let folder = TempDir::new().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let (page, picture) = (path("page.html"), path("picture.svg"));
    for (server, json) in [(&server, path("fast.json")), (&slow, path("slow.json"))] {
        let arguments = [
            "--url",
            &server.url,
            "--no-energy",
            "--requests",
            "4",
            "-c",
            "1,2",
            "--json",
            &json,
            "--html",
            &page,
            "--svg",
            &picture,
            "--model",
            "<eyes> & \"ears\"",
        ];
        let output = run(bench(&arguments)).await;
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
    let page = fs::read_to_string(page).unwrap();
    let picture = fs::read_to_string(picture).unwrap();
    assert!(check_elements(&page) > 100 && check_elements(&picture) > 50);
    assert!(page.contains("&lt;eyes&gt; &amp; &quot;ears&quot;") && !page.contains("<eyes>"));
    for outside in ["src=", "href=", "@import", "url(", "<link", "https://"] {
        assert!(!page.contains(outside) && !picture.contains(outside), "{outside}");
    }
    let data = page.split("id=\"report\">").nth(1).unwrap().split("</script>").next().unwrap();
    let data: Value = serde_json::from_str(data).unwrap();
    assert_eq!(data["served"]["server"]["model"], "<eyes> & \"ears\"");
    assert_eq!(picture.matches("<circle").count(), 2 * 3 * 2, "levels, percentiles, charts");

    let output = run(bench(&["compare", &path("fast.json"), &path("slow.json")])).await;
    let printed = String::from_utf8(output.stdout).unwrap();
    assert!(
        output.status.success() && printed.contains("1 at once: a") && printed.contains("2 at once: a"),
        "{printed}"
    );
    let line = printed.lines().find(|line| line.starts_with("first token (TTFT) p50")).unwrap();
    assert!(line.contains("worse"), "{line}");
    let (fast, slow) = ("fast.json", "slow.json");
    let read = |name: &str| -> Value { serde_json::from_slice(&fs::read(path(name)).unwrap()).unwrap() };
    let p50 = |name: &str| number(&read(name)["served"]["levels"][0]["latency"]["first_token"]["p50"]);
    assert!(line.contains(&format!("{:.2}", p50(slow) / p50(fast))), "{line}");

    let mut newer = read("fast.json");
    newer["schema"] = json!(99);
    fs::write(path("newer.json"), newer.to_string()).unwrap();
    fs::write(path("other.json"), "{}").unwrap();
    for (file, expected) in [("newer.json", "its schema is 99"), ("other.json", "no report of percept bench")]
    {
        let error = fails(&["compare", &path("fast.json"), &path(file)]).await;
        assert!(error.contains(expected) && error.contains(file), "{error}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn mistakes_are_explained() {
    let server = Scripted::start(1000, |_, _| {
        Reply::Status(400, Vec::new(), "{\"error\":{\"message\":\"ignore_eos is not supported\"}}".into())
    })
    .await;
    let image = fixtures().join("inputs/land_90x60.png");
    let image = image.to_str().unwrap();
    for (arguments, expected) in [
        (vec!["--url", "ftp://x"], "ftp://x is no URL"),
        (vec!["--url", "http://127.0.0.1:1"], "for its models: connection refused"),
        (vec!["--url", "http://127.0.0.1:1", "--model", "m"], "connection refused"),
        (vec!["--url", &server.url, "--ignore-eos"], "status 400: ignore_eos is not supported"),
        (vec!["--pictures", "40"], "40 is no size of a picture"),
        (vec!["--pictures", "0x9"], "0x9 is no size of a picture"),
        (vec!["--pictures", "8x8", "--sound", "3"], "cannot be used with"),
        (vec!["--sound", "0"], "0 is no length in seconds"),
        (vec!["--rate", "0"], "0 is no number of requests a second"),
        (vec!["--rate", "2", "--concurrency", "2"], "cannot be used with"),
        (vec!["--poisson"], "--rate"),
        (vec!["--concurrency", "0"], "0 is not in 1.."),
        (vec!["--requests", "3", "--seconds", "3"], "cannot be used with"),
        (vec!["--requests", "0"], "0 is not in 1.."),
        (vec!["--extra-body", "[1]"], "no object"),
        (vec!["--url", &server.url, "--image", "/nowhere.png"], "cannot read /nowhere.png"),
        (vec!["--url", &server.url, "--audio", image], "land_90x60.png: the file is no sound"),
        (vec!["--json", "/nowhere/report.json"], "cannot write /nowhere/report.json"),
        (vec!["--currency", "EUR"], "--price"),
        (vec!["--gpu", "0", "--no-energy"], "cannot be used with"),
        (vec!["--offline", "./nowhere"], "neither a folder nor a hub id"),
        (vec!["--offline", "/tmp"], "config.json is missing"),
        (vec!["--dtype", "bf16"], "--offline"),
        (vec!["--offline", "x", "--rate", "3"], "cannot be used with"),
        (vec!["compare", "/nowhere.json", "/nowhere.json"], "cannot read /nowhere.json"),
    ] {
        let error = fails(&arguments).await;
        assert!(error.contains(expected), "{arguments:?}: {error}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn help_teaches() {
    let output = run(bench(&["--help"])).await;
    let help = String::from_utf8(output.stdout).unwrap();
    for word in [
        "vLLM",
        "percept bench compare",
        "--rate 2,5,10 --poisson",
        "--offline",
        "--ignore-eos",
        "--price 1.20",
        "meant to be sent",
        "[default: 1,8,32]",
        "OPENAI_API_KEY",
        "include_usage",
    ] {
        assert!(help.contains(word), "{word}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_real_server_is_measured() {
    let models = vec![llava().to_str().unwrap().to_owned(), whisper().to_str().unwrap().to_owned()];
    let mut server = server::start(Settings { model: models, ..Settings::default() }).await;
    let short = ["--max-tokens", "6", "--prompt-tokens", "120", "--temperature", "0"];
    let with = |more: &[&'static str]| [&short[..], more].concat();

    let (report, _) = measure(&server.url, &with(&["--requests", "6", "-c", "3"])).await;
    let text = level(&report);
    assert_eq!(text["requests"]["completed"], 6, "{text:#}");
    assert_eq!(text["tokens"]["counted_by"], "usage");
    assert!((1..=36).contains(&text["tokens"]["completion"].as_u64().unwrap()), "{text:#}");
    let prompt = number(&text["tokens"]["prompt"]) / 6.0;
    assert!((90.0..150.0).contains(&prompt), "{prompt} tokens instead of 120");
    assert!(report["served"]["server"]["fingerprint"].as_str().unwrap().starts_with("fp_"));
    assert_eq!(report["served"]["server"]["here"], true);

    let pictures = ["--requests", "4", "-c", "2", "--pictures", "90x60,56x56"];
    let (report, _) = measure(&server.url, &with(&pictures)).await;
    let different = level(&report);
    assert_eq!(different["requests"]["completed"], 4, "{different:#}");
    let cached = |level: &Value| number(&level["tokens"]["cached"]) / number(&level["tokens"]["prompt"]);
    assert!(cached(different) < 0.2, "a cache helped: {different:#}");
    let (report, _) = measure(&server.url, &with(&[&pictures[..], &["--repeat"]].concat())).await;
    assert!(cached(level(&report)) > 0.7, "no cache helped: {:#}", level(&report));

    let (report, _) = measure(&server.url, &["--requests", "2", "-c", "1", "--sound", "1.5"]).await;
    assert_eq!(level(&report)["requests"]["completed"], 2);
    assert_eq!(report["served"]["server"]["model"], "whisper");
    let talk = fixtures().join("inputs/speechlike_3s.wav");
    let arguments = ["--requests", "2", "-c", "1", "--audio", talk.to_str().unwrap()];
    let (report, printed) = measure(&server.url, &arguments).await;
    let level = level(&report);
    let seconds = number(&level["throughput"]["sound_seconds"]) * number(&level["duration"]);
    assert!((seconds - 6.0).abs() < 1e-3, "{seconds}");
    assert!(printed.contains("1 of them are different"), "{printed}");
    server.stop().await;
}

/// Stages of a network that is timed without a server.
async fn stages(folder: &Path, arguments: &[&str]) -> Vec<Value> {
    let out = TempDir::new().unwrap();
    let file = out.path().join("report.json");
    let fixed = ["--each", "0.001", "--batch", "1,3", "--context", "40", "--pictures", "90x60"];
    let named = ["--offline", folder.to_str().unwrap(), "--json", file.to_str().unwrap()];
    let output = run(bench(&[&named[..], &fixed[..], arguments].concat())).await;
    let error = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success(), "{error}");
    let report: Value = serde_json::from_slice(&fs::read(&file).unwrap()).unwrap();
    let offline = &report["offline"];
    assert!(
        number(&offline["limits"]["bytes_per_second"]) > 1e6 && number(&offline["limits"]["flops"]) > 1e6
    );
    assert!(offline["text_weight_bytes"].as_u64() < offline["weight_bytes"].as_u64(), "{offline:#}");
    offline["stages"].as_array().unwrap().clone()
}

#[tokio::test(flavor = "multi_thread")]
async fn networks_are_timed_without_a_server() {
    let named = |stages: &[Value]| -> Vec<String> {
        stages.iter().map(|stage| stage["name"].as_str().unwrap().to_owned()).collect()
    };
    // A memory beside the text, positions in planes, and the ordinary case.
    for name in ["llava", "mllama", "qwen2_5_vl", "phi3_v"] {
        let stages = stages(&fixtures().join(name), &[]).await;
        let expected = [
            "decode a JPEG of 90x60",
            "resize and normalise 90x60",
            "encode 90x60",
            "prefill 40 tokens",
            "decode 1 sequence",
            "decode 3 sequences",
        ];
        assert_eq!(named(&stages), expected, "{name}");
        for stage in &stages[3..] {
            assert!(number(&stage["limit"]["seconds"]) > 0.0 && stage["runs"].as_u64() >= Some(3), "{stage}");
            assert!(number(&stage["least"]) <= number(&stage["median"]), "{stage}");
        }
    }
    let folder = without_weights("whisper");
    let stages = stages(folder.path(), &["--dummy-weights", "--dtype", "bf16"]).await;
    let found = named(&stages);
    assert!(
        found[0].starts_with("log-mel spectrum of 30 s") && found[1].starts_with("encode 30 s"),
        "{found:?}"
    );
    assert!(found[2].starts_with("prefill") && found.len() == 5, "{found:?}");
}

/// What is left of a run on a GPU, which here is one on the CPU, becomes one file and one table.
#[tokio::test(flavor = "multi_thread")]
async fn figures_of_a_gpu_become_a_table_beside_their_goals() {
    let results = TempDir::new().unwrap();
    let at = |name: &str| results.path().join(name).to_str().unwrap().to_owned();
    fs::write(at("host.log"), "0123abcd\nNVIDIA Nothing 1, 1.2.3, 4 MiB\nLinux 0\n").unwrap();
    let whisper_folder = without_weights("whisper");
    for (name, folder) in
        [("llava-7b", llava()), ("whisper-large", whisper_folder.path().into()), ("llava-next-34b", llava())]
    {
        let json = at(&format!("layers-{name}.json"));
        let fixed = ["--each", "0.001", "--batch", "1,64", "--context", "40", "--dummy-weights"];
        let named = ["--offline", folder.to_str().unwrap(), "--json", &json];
        let pictures = ["--pictures", "336x336,1920x1080"];
        let output = run(bench(&[&named[..], &fixed[..], &pictures[..]].concat())).await;
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
    let model = vec![llava().to_str().unwrap().to_owned()];
    let mut server = server::start(Settings { model, ..Settings::default() }).await;
    let json = at("load-first-token.json");
    let arguments =
        ["--url", &server.url, "--requests", "3", "-c", "1", "--max-tokens", "2", "--json", &json];
    let output =
        run(bench(&[&arguments[..], &["--pictures", "336x336", "--prompt-tokens", "40"]].concat())).await;
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    server.stop().await;

    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/gpu/summary.py");
    let output = Command::new("python3").arg(script).arg(results.path()).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let table = String::from_utf8(output.stdout).unwrap();
    let files: Vec<_> = fs::read_dir(results.path()).unwrap().map(|entry| entry.unwrap().path()).collect();
    let of = |extension: &str| {
        let is = |path: &&PathBuf| path.to_str().unwrap().contains("nvidia-nothing-1-20");
        files.iter().find(|path| is(path) && path.extension().unwrap() == extension).unwrap()
    };
    assert_eq!(fs::read_to_string(of("md")).unwrap(), table);
    let whole: Value = serde_json::from_slice(&fs::read(of("json")).unwrap()).unwrap();
    assert_eq!(whole["reports"].as_object().unwrap().len(), 4);
    assert_eq!(whole["host"]["commit"], "0123abcd");
    let goals = whole["goals"].as_array().unwrap();
    let measured = goals.iter().filter(|goal| goal["reached"].is_boolean()).count();
    assert_eq!((goals.len(), measured), (6, 5), "{table}");
    assert!(table.contains("not measured: layers-whisper-turbo is missing"), "{table}");

    // By hand: what a step takes at least, beside what it took.
    let stages = whole["reports"]["layers-llava-7b"]["offline"]["stages"].as_array().unwrap();
    let step = stages.iter().find(|stage| stage["name"] == "decode 1 sequence").unwrap();
    let share = number(&step["limit"]["seconds"]) / number(&step["median"]);
    assert_eq!(goals[0]["measured"], format!("{share:.2} of the limit"));
    assert_eq!(goals[0]["reached"], share >= 0.85);
}
