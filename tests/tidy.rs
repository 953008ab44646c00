//! What the sources and documents promise about themselves: borders between parts, names, paths.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::{
    fs,
    path::{Path, PathBuf},
};

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// Every file below a folder, or the file itself.
fn files(path: &Path, out: &mut Vec<PathBuf>) {
    if path.is_file() {
        return out.push(path.to_owned());
    }
    let mut entries: Vec<_> = fs::read_dir(path).unwrap().map(|entry| entry.unwrap().path()).collect();
    entries.sort();
    for entry in entries {
        let name = entry.file_name().unwrap().to_string_lossy().into_owned();
        let made = ["target", "__pycache__", "node_modules"].contains(&name.as_str());
        if !name.starts_with('.') && !made {
            files(&entry, out);
        }
    }
}

/// The files below some paths of the project that end in `ending`, as paths from its root, with their text.
fn sources(paths: &[&str], ending: &str) -> Vec<(String, String)> {
    let mut found = Vec::new();
    for path in paths {
        files(&root().join(path), &mut found);
    }
    let text = |file: PathBuf| {
        let name = file.strip_prefix(root()).unwrap().to_string_lossy().into_owned();
        name.ends_with(ending).then(|| (name, fs::read_to_string(&file).unwrap()))
    };
    let found: Vec<_> = found.into_iter().filter_map(text).collect();
    assert!(!found.is_empty(), "no {ending} in {paths:?}");
    found
}

/// The code of a file without comments and without its tests.
fn code(text: &str) -> String {
    let text = text.split("#[cfg(test)]\nmod tests").next().unwrap();
    text.lines().map(|line| line.split("//").next().unwrap()).collect::<Vec<_>>().join("\n")
}

fn words(text: &str) -> impl Iterator<Item = &str> {
    text.split(|char: char| !char.is_ascii_alphanumeric() && char != '_').filter(|word| !word.is_empty())
}

/// Asserts that only the files in `allowed` (or below those folders) have any of these words in their code.
fn only(paths: &[&str], allowed: &[&str], forbidden: &[&str]) {
    let mut seen = false;
    for (name, text) in sources(paths, ".rs") {
        let text = code(&text);
        let found: Vec<_> = words(&text).filter(|word| forbidden.contains(word)).collect();
        let may = allowed.iter().any(|path| name == *path || name.starts_with(&format!("{path}/")));
        assert!(may || found.is_empty(), "{name} names {found:?}");
        seen |= !found.is_empty();
    }
    assert!(seen || allowed.is_empty(), "nobody names {forbidden:?}: the test looks for the wrong thing");
}

#[test]
fn only_the_api_and_the_server_know_http() {
    only(&["src"], &["src/api", "src/server.rs"], &["axum"]);
    only(&["src"], &["src/api"], &["IntoResponse"]);
    // Commands are clients, which have headers of their own.
    only(&["src"], &["src/api", "src/cli/client.rs"], &["HeaderValue"]);
}

#[test]
fn only_the_engine_and_loading_know_tensors() {
    only(
        &["src"],
        &[
            "src/engine",
            "src/server.rs",
            "src/config.rs",
            "src/device.rs",
            "src/bench/offline.rs",
            "src/bench/offline",
            // Pages are drawn on a device as well, of another kind.
            "src/media/document/text.rs",
        ],
        &["Tensor", "Device", "DType", "candle_core"],
    );
}

#[test]
fn the_scheduler_knows_integers_only() {
    let pure = ["src/engine/scheduler.rs", "src/engine/pages.rs", "src/engine/sequence.rs"];
    only(
        &pure,
        &[],
        &[
            "candle_core",
            "percept_models",
            "Tensor",
            "Instant",
            "SystemTime",
            "Duration",
            "thread",
            "fs",
            "io",
            "net",
            "tokio",
            "tracing",
            "rand",
            "Mutex",
        ],
    );
}

#[test]
fn a_model_file_names_no_device_and_waits_for_nothing() {
    let general = ["lib", "batch", "cache", "checkpoint", "weights"].map(|name| format!("models/{name}.rs"));
    let mut models = 0;
    for (name, text) in sources(&["models"], ".rs") {
        if general.contains(&name) || name.matches('/').count() > 1 {
            continue;
        }
        models += 1;
        let text = code(&text);
        let forbidden =
            ["Device", "DType", "feature", "to_vec0", "to_vec1", "to_vec2", "to_vec3", "to_scalar"];
        let found: Vec<_> = words(&text).filter(|word| forbidden.contains(word)).collect();
        assert!(found.is_empty(), "{name} names {found:?}");
        let row = format!("{}::load", Path::new(&name).file_stem().unwrap().to_string_lossy());
        let registry = fs::read_to_string(root().join("models/lib.rs")).unwrap();
        assert!(registry.contains(&row), "{name} is in no row of ARCHITECTURES");
    }
    assert!(models > 0);
}

#[test]
fn models_are_named_in_one_file_and_one_row() {
    for (name, text) in sources(&["src", "kernels"], ".rs") {
        if name.starts_with("kernels/tests") {
            continue;
        }
        let lower = code(&text).to_lowercase();
        // Examples in help texts name a checkpoint.
        let lower = lower.replace("llava-hf/llava-1.5", "");
        assert!(!lower.contains("llava"), "{name} names a model");
    }
}

#[test]
fn kernels_are_reached_through_models_only() {
    only(&["src", "models"], &["models/nn", "models/batch.rs", "models/weights.rs"], &["percept_kernels"]);
    for crate_root in ["src/main.rs", "src/lib.rs", "models/lib.rs"] {
        let text = fs::read_to_string(root().join(crate_root)).unwrap();
        assert!(text.contains("#![forbid(unsafe_code)]"), "{crate_root}");
    }
    only(&["src", "models"], &["src/main.rs", "src/lib.rs", "models/lib.rs"], &["unsafe_code"]);
    let manifest = fs::read_to_string(root().join("Cargo.toml")).unwrap();
    let (_, dependencies) = manifest.split_once("\n[dependencies]").unwrap();
    let (dependencies, _) = dependencies.split_once("\n[").unwrap();
    assert!(!dependencies.contains("percept-kernels"), "the server depends on kernels");
}

#[test]
fn nothing_is_left_unfinished() {
    for (name, text) in sources(&["src", "models", "kernels", "tests", "benches"], ".rs") {
        let text = code(&text);
        for word in ["todo!(", "unimplemented!(", concat!("#[ig", "nore")] {
            assert!(!text.contains(word) || name == "tests/tidy.rs", "{name} has {word}");
        }
    }
}

#[test]
fn names_say_something() {
    let empty = ["utils", "util", "common", "helper", "helpers", "manager", "mixin", "inner", "misc"];
    for (name, text) in sources(&["src", "models", "kernels", "tests", "benches"], ".rs") {
        let stem = Path::new(&name).file_stem().unwrap().to_string_lossy().into_owned();
        assert!(!empty.contains(&stem.as_str()), "{name}");
        assert!(text.starts_with("//!"), "{name} does not say what it is");
    }
}

/// Words in backticks and link targets that look like paths exist, in every document.
#[test]
fn paths_in_documents_exist() {
    let known =
        ["src", "models", "kernels", "tests", "benches", "scripts", "docs", "ui", "assets", "deploy", ".ci"];
    let generated = ["models/<name>/"];
    let mut checked = 0;
    for (name, text) in sources(&["."], ".md") {
        let folder = root().join(&name).parent().unwrap().to_owned();
        let links = text.split("](").skip(1).map(|rest| rest.split(')').next().unwrap());
        for link in links.filter(|link| !link.starts_with("http")) {
            let file = link.split('#').next().unwrap();
            assert!(folder.join(file).exists(), "{name} links to {link}");
            checked += 1;
        }
        let quoted = text.split('`').skip(1).step_by(2).flat_map(str::split_whitespace);
        for path in quoted.filter(|path| path.contains('/') && !generated.contains(path)) {
            let path = path.trim_end_matches(['/', ',', '.', ')']);
            if known.contains(&path.split('/').next().unwrap()) && !path.contains(['*', '<', '{']) {
                assert!(root().join(path).exists(), "{name} names {path}");
                checked += 1;
            }
        }
    }
    assert!(checked > 20, "only {checked} paths were found");
}

/// Every name that the wire knows is in backticks in docs/api.md.
#[test]
fn the_api_document_names_every_field() {
    use percept::api::wire::{audio, chat, completions, embeddings, messages, realtime, responses};
    let document = fs::read_to_string(root().join("docs/api.md")).unwrap();
    let chat_fields: Vec<&str> = chat::HARMLESS.iter().chain(chat::HARMLESS_IN_MESSAGES).copied().collect();
    let audio_fields: Vec<&str> =
        audio::HARMLESS.iter().copied().chain(audio::REFUSED.iter().map(|(name, _)| *name)).collect();
    let messages_fields: Vec<&str> = messages::HARMLESS
        .iter()
        .chain(messages::HARMLESS_IN_BLOCKS)
        .chain(messages::HARMLESS_IN_TOOLS)
        .flat_map(|name| name.split('.'))
        .collect();
    let responses_fields: Vec<&str> = responses::HARMLESS
        .iter()
        .chain(responses::HARMLESS_IN_ITEMS)
        .flat_map(|name| name.split('.'))
        .collect();
    let realtime_fields: Vec<&str> = realtime::HARMLESS.iter().flat_map(|name| name.split('.')).collect();
    for (api, path, mut fields) in [
        ("chat", "POST /v1/chat/completions", chat_fields),
        ("responses", "POST /v1/responses", responses_fields),
        ("messages", "POST /v1/messages", messages_fields),
        ("completions", "POST /v1/completions", completions::HARMLESS.to_vec()),
        ("embeddings", "POST /v1/embeddings", embeddings::HARMLESS.to_vec()),
        ("audio", "POST /v1/audio/transcriptions", audio_fields),
        ("files", "POST /v1/files", Vec::new()),
        ("batches", "POST /v1/batches", Vec::new()),
        ("realtime", "GET /v1/realtime", realtime_fields),
    ] {
        let (_, section) = document.split_once(&format!("\n## `{path}`\n")).unwrap();
        // Some types are those of two endpoints that follow each other.
        let sections = if ["batches", "realtime", "responses"].contains(&api) { 2 } else { 1 };
        let section: String = section.split("\n## ").take(sections).collect();
        let quoted: String = section.split('`').skip(1).step_by(2).collect::<Vec<_>>().join(" ");
        let quoted: Vec<&str> = words(&quoted).collect();
        let wire = fs::read_to_string(root().join(format!("src/api/wire/{api}.rs"))).unwrap();
        let requests = wire.split_once("/// A whole answer.").map_or(wire.as_str(), |(requests, _)| requests);
        let tools = fs::read_to_string(root().join("src/api/wire/tools.rs")).unwrap();
        fields.extend(wire_fields(&tools).filter(|_| api == "chat"));
        fields.extend(wire_fields(requests));
        let least = match api {
            "embeddings" => 7,
            "files" => 10,
            _ => 30,
        };
        assert!(fields.len() > least, "only {} fields were found", fields.len());
        for field in fields {
            assert!(quoted.contains(&field), "docs/api.md does not name {field} under {path}");
        }
    }
}

/// The names of the fields of the types in a file.
fn wire_fields(text: &str) -> impl Iterator<Item = &str> {
    let fields = text.lines().filter_map(|line| line.trim().strip_prefix("pub ")?.split_once(": "));
    let fields =
        fields.filter(|(name, _)| name.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_'));
    fields.map(|(name, _)| if name == "kind" { "type" } else { name })
}

#[test]
fn options_in_documents_exist() {
    let commands: [&[&str]; 6] =
        [&["serve"], &["bench"], &["keys", "add"], &["usage"], &["audit", "verify"], &["audit", "export"]];
    let help = commands.map(|command| {
        let mut program = std::process::Command::new(env!("CARGO_BIN_EXE_percept"));
        let help = program.args(command).arg("--help").output();
        String::from_utf8(help.unwrap().stdout).unwrap()
    });
    let help = help.concat();
    let mut checked = 0;
    for (name, text) in sources(&["README.md", "docs"], ".md") {
        let quoted = text.split('`').skip(1).step_by(2).flat_map(str::split_whitespace);
        for option in quoted.filter(|word| word.starts_with("--") && word.len() > 2) {
            let of_other_commands =
                ["--help", "--image", "--locked", "--path", "--gpu", "--once", "--release", "--features"];
            if of_other_commands.contains(&option) {
                continue;
            }
            assert!(help.contains(option), "{name} names {option}, which no command of percept has");
            checked += 1;
        }
    }
    assert!(checked > 8, "only {checked} options were found");
}

#[test]
fn the_version_has_an_entry_in_the_changelog() {
    let changelog = fs::read_to_string(root().join("CHANGELOG.md")).unwrap();
    let version = concat!("\n## ", env!("CARGO_PKG_VERSION"));
    assert!(changelog.contains(version), "CHANGELOG.md has no {version}");
}

#[test]
fn scripts_can_be_run() {
    use std::os::unix::fs::PermissionsExt as _;
    for script in [".ci/run", "scripts/check.sh", "scripts/demo.sh"] {
        let mode = fs::metadata(root().join(script)).unwrap().permissions().mode();
        assert_eq!(mode & 0o111, 0o111, "{script} is not executable");
        let readme = fs::read_to_string(root().join("README.md")).unwrap();
        assert!(
            script == ".ci/run" || readme.contains(&format!("\n{script}\n")),
            "README.md does not name {script}"
        );
    }
    let ci = fs::read_to_string(root().join(".ci/run")).unwrap();
    assert!(ci.contains("exec scripts/check.sh\n"));
}
