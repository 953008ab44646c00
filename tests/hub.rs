//! Checkpoints of a hub: what is downloaded, resumed, kept and refused. The hub is one of our own.
#![allow(clippy::unwrap_used, reason = "tests")]

mod support;

use std::{
    collections::HashMap,
    fs,
    net::Ipv4Addr,
    path::Path,
    sync::{Arc, Mutex},
    time::Duration,
};

use axum::{
    Router,
    body::Body,
    extract::{Request, State},
    http::{HeaderMap, StatusCode, header::RANGE},
    response::{IntoResponse, Response},
};
use futures_util::{StreamExt, stream};
use percept::hub::{self, HubConfig, HubError, HubId, Source};
use serde_json::json;
use support::{fixtures, llava, sha256};
use tempfile::TempDir;
use tokio::net::TcpListener;

/// A hub with one repository, `owner/llava`, which wants a token.
#[derive(Default)]
struct Hub {
    commits: HashMap<String, HashMap<String, Vec<u8>>>,
    branches: HashMap<String, String>,
    /// Path, range and token of every request.
    asked: Vec<(String, Option<String>, Option<String>)>,
    /// Break off the next download of this file after so many bytes.
    breaks: Option<(String, usize)>,
}

type Shared = Arc<Mutex<Hub>>;

async fn start(hub: Hub) -> (String, Shared) {
    let hub = Arc::new(Mutex::new(hub));
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let routes = Router::new().fallback(answer).with_state(Arc::clone(&hub));
    tokio::spawn(async move { axum::serve(listener, routes).await });
    (url, hub)
}

async fn answer(State(hub): State<Shared>, headers: HeaderMap, request: Request) -> Response {
    let mut hub = hub.lock().unwrap();
    let path = request.uri().path().to_owned();
    let header = |name: &str| headers.get(name).map(|value| value.to_str().unwrap().to_owned());
    let token = header("authorization");
    hub.asked.push((path.clone(), header(RANGE.as_str()), token.clone()));
    if path.contains("/gated/") {
        return StatusCode::FORBIDDEN.into_response();
    }
    if token.as_deref() != Some("Bearer secret") {
        return StatusCode::UNAUTHORIZED.into_response();
    }
    if let Some(revision) = path.strip_prefix("/api/models/owner/llava/revision/") {
        let revision = revision.replace("%2F", "/");
        let commit = hub.branches.get(&revision).unwrap_or(&revision);
        let Some(files) = hub.commits.get(commit) else { return StatusCode::NOT_FOUND.into_response() };
        let mut names: Vec<_> = files.keys().collect();
        names.sort();
        let siblings: Vec<_> = names.iter().map(|name| json!({"rfilename": name})).collect();
        return axum::Json(json!({"sha": commit, "siblings": siblings})).into_response();
    }
    let Some((commit, name)) =
        path.strip_prefix("/owner/llava/resolve/").and_then(|rest| rest.split_once('/'))
    else {
        return StatusCode::NOT_FOUND.into_response();
    };
    let Some(file) = hub.commits.get(commit).and_then(|files| files.get(name)).cloned() else {
        return StatusCode::NOT_FOUND.into_response();
    };
    let range = header(RANGE.as_str()).unwrap();
    let (from, to) = range.strip_prefix("bytes=").unwrap().split_once('-').unwrap();
    let from: usize = from.parse().unwrap();
    let end = to.parse::<usize>().map_or(file.len(), |to| to + 1).min(file.len());
    let mut body: Vec<Result<Vec<u8>, std::io::Error>> = vec![Ok(file[from..end].to_vec())];
    if let Some((broken, after)) = hub.breaks.clone()
        && broken == name
        && end - from > after
    {
        hub.breaks = None;
        body = vec![Ok(file[from..from + after].to_vec()), Err(std::io::Error::other("the cable is cut"))];
    }
    // What is behind a piece that fails waits until the piece is sent.
    let body = stream::iter(body).then(async |piece| {
        if piece.is_err() {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        piece
    });
    Response::builder()
        .status(StatusCode::PARTIAL_CONTENT)
        .header("etag", format!("\"{}\"", sha256(&file)))
        .header("x-repo-commit", commit)
        .header("content-range", format!("bytes {from}-{}/{}", end - 1, file.len()))
        .header("content-length", end - from)
        .body(Body::from_stream(body))
        .unwrap()
}

/// The fixture's files, and some that nobody needs.
fn files() -> HashMap<String, Vec<u8>> {
    let mut files: HashMap<_, _> = fs::read_dir(llava())
        .unwrap()
        .map(|entry| {
            let entry = entry.unwrap();
            (entry.file_name().into_string().unwrap(), fs::read(entry.path()).unwrap())
        })
        .collect();
    for name in ["README.md", "pytorch_model.bin", "model.fp16.safetensors", "onnx/model.onnx"] {
        files.insert(name.into(), b"nobody needs this".to_vec());
    }
    files
}

fn one_commit(files: HashMap<String, Vec<u8>>) -> Hub {
    Hub {
        commits: HashMap::from([("c0ffee".into(), files)]),
        branches: HashMap::from([("main".into(), "c0ffee".into()), ("refs/pr/3".into(), "c0ffee".into())]),
        ..Hub::default()
    }
}

/// The branch gets another commit, with another `generation_config.json`.
fn move_on(hub: &Shared) {
    let mut hub = hub.lock().unwrap();
    let mut newer = files();
    newer.insert("generation_config.json".into(), b"{\"eos_token_id\": 3}".to_vec());
    hub.commits.insert("decaf".into(), newer);
    hub.branches.insert("main".into(), "decaf".into());
    hub.asked.clear();
}

fn config(url: &str, cache: &Path) -> HubConfig {
    HubConfig {
        cache: cache.to_owned(),
        endpoint: Some(url.to_owned()),
        token: Some("secret".into()),
        offline: false,
    }
}

fn id(revision: &str) -> HubId {
    HubId { repository: "owner/llava".into(), revision: revision.into() }
}

async fn pull(id: HubId, config: HubConfig) -> Result<std::path::PathBuf, HubError> {
    tokio::task::spawn_blocking(move || hub::pull(&id, &config, || ())).await.unwrap()
}

async fn resolve(id: HubId, config: HubConfig) -> Result<std::path::PathBuf, HubError> {
    let resolve = move || hub::resolve(&Source::Hub(id), &config, || ());
    let checkpoint = tokio::task::spawn_blocking(resolve).await.unwrap()?;
    Ok(checkpoint.folder().to_owned())
}

/// Names of the files whose content was asked for.
fn downloads(hub: &Shared) -> Vec<String> {
    let hub = hub.lock().unwrap();
    let contents =
        hub.asked.iter().filter(|(_, range, _)| range.as_ref().is_some_and(|range| range != "bytes=0-0"));
    let mut names: Vec<_> = contents.map(|(path, ..)| path.rsplit('/').next().unwrap().to_owned()).collect();
    names.sort();
    names.dedup();
    names
}

fn check(folder: &Path) {
    for entry in fs::read_dir(llava()).unwrap() {
        let entry = entry.unwrap();
        let name = entry.file_name();
        assert_eq!(fs::read(folder.join(&name)).unwrap(), fs::read(entry.path()).unwrap(), "{name:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn only_what_is_needed_is_downloaded_and_only_once() {
    let (url, hub) = start(one_commit(files())).await;
    let cache = TempDir::new().unwrap();
    let config = config(&url, cache.path());
    let folder = resolve(id("main"), config.clone()).await.unwrap();
    check(&folder);
    let mut needed: Vec<_> = fs::read_dir(llava())
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    needed.sort();
    assert_eq!(downloads(&hub), needed);
    assert!(hub.lock().unwrap().asked.iter().all(|asked| asked.2.as_deref() == Some("Bearer secret")));

    // From now on the cache has it: no request at all, also without a network.
    hub.lock().unwrap().asked.clear();
    assert_eq!(resolve(id("main"), config.clone()).await.unwrap(), folder);
    let offline = HubConfig { offline: true, endpoint: Some("http://127.0.0.1:1".into()), ..config.clone() };
    assert_eq!(resolve(id("main"), offline.clone()).await.unwrap(), folder);
    assert_eq!(pull(id("main"), offline.clone()).await.unwrap(), folder);
    assert_eq!(hub.lock().unwrap().asked, []);
    let error = resolve(id("other"), offline).await.unwrap_err().to_string();
    assert!(error.contains("owner/llava@other is not in the cache"), "{error}");
    // A server starts from it.
    let loaded = percept_models::load(
        &percept_models::Checkpoint::new(folder),
        percept_models::LoadOptions {
            device: candle_core::Device::Cpu,
            dtype: candle_core::DType::F32,
            fit: None,
            most_bytes: u64::MAX,
            progress: Box::new(|_, _| {}),
        },
    );
    assert!(loaded.is_ok());
}

/// How a vector is made is said by files in a folder of the repository.
#[tokio::test(flavor = "multi_thread")]
async fn an_embedding_model_comes_with_how_its_rows_are_pooled() {
    let fixture = fixtures().join("bert");
    let names = [
        "1_Pooling/config.json",
        "config.json",
        "model.safetensors",
        "modules.json",
        "sentence_bert_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
    ];
    let mut files: HashMap<String, Vec<u8>> =
        names.map(|name| (name.into(), fs::read(fixture.join(name)).unwrap())).into();
    files.insert("2_Normalize/README.md".into(), b"nobody needs this".to_vec());
    let (url, hub) = start(one_commit(files)).await;
    let cache = TempDir::new().unwrap();
    let config = config(&url, cache.path());
    let folder = resolve(id("main"), config.clone()).await.unwrap();
    for name in names {
        assert_eq!(fs::read(folder.join(name)).unwrap(), fs::read(fixture.join(name)).unwrap(), "{name}");
    }
    assert!(!folder.join("2_Normalize").exists());
    hub.lock().unwrap().asked.clear();
    assert_eq!(resolve(id("main"), config).await.unwrap(), folder);
    assert_eq!(hub.lock().unwrap().asked, []);
}

/// What would be served can be known before its weights are downloaded.
#[tokio::test(flavor = "multi_thread")]
async fn small_files_come_without_weights_and_the_weights_later() {
    let (url, hub) = start(one_commit(files())).await;
    let cache = TempDir::new().unwrap();
    let config = config(&url, cache.path());
    let small = |config: HubConfig| async move {
        let resolve = move || hub::resolve_small(&Source::Hub(id("main")), &config, || ());
        tokio::task::spawn_blocking(resolve).await.unwrap().map(|checkpoint| checkpoint.folder().to_owned())
    };
    let folder = small(config.clone()).await.unwrap();
    assert!(folder.join("config.json").exists() && !folder.join("model.safetensors").exists());
    assert!(!downloads(&hub).contains(&"model.safetensors".to_owned()));
    hub.lock().unwrap().asked.clear();
    let offline = HubConfig { offline: true, ..config.clone() };
    assert_eq!(small(offline.clone()).await.unwrap(), folder);
    assert_eq!(hub.lock().unwrap().asked, []);
    let error = resolve(id("main"), offline).await.unwrap_err().to_string();
    assert!(error.contains("is not in the cache"), "{error}");

    check(&resolve(id("main"), config.clone()).await.unwrap());
    assert_eq!(downloads(&hub), ["model.safetensors"]);
    // What is whole is looked at where it is.
    hub.lock().unwrap().asked.clear();
    assert_eq!(small(config).await.unwrap(), folder);
    assert_eq!(hub.lock().unwrap().asked, []);
}

#[tokio::test(flavor = "multi_thread")]
async fn revisions_share_files_and_an_update_brings_only_what_is_new() {
    let (url, hub) = start(one_commit(files())).await;
    let cache = TempDir::new().unwrap();
    let config = config(&url, cache.path());
    let folder = pull(id("main"), config.clone()).await.unwrap();
    assert_eq!(pull(id("refs/pr/3"), config.clone()).await.unwrap(), folder, "a branch with a slash");
    assert_eq!(pull(id("c0ffee"), config.clone()).await.unwrap(), folder, "a commit");

    move_on(&hub);
    assert_eq!(resolve(id("main"), config.clone()).await.unwrap(), folder, "serving does not update");
    let updated = pull(id("main"), config.clone()).await.unwrap();
    assert_ne!(updated, folder);
    assert_eq!(downloads(&hub), ["generation_config.json"]);
    assert_eq!(fs::read(updated.join("generation_config.json")).unwrap(), b"{\"eos_token_id\": 3}");
    assert_eq!(
        fs::read(updated.join("model.safetensors")).unwrap(),
        fs::read(llava().join("model.safetensors")).unwrap()
    );
    assert_eq!(resolve(id("main"), config.clone()).await.unwrap(), updated);
    check(&resolve(id("c0ffee"), config).await.unwrap());
}

/// Other tools leave out what they do not need. That is brought, and nothing newer.
#[tokio::test(flavor = "multi_thread")]
async fn small_files_that_are_missing_come_from_the_same_commit() {
    let (url, hub) = start(one_commit(files())).await;
    let cache = TempDir::new().unwrap();
    let config = config(&url, cache.path());
    let folder = pull(id("main"), config.clone()).await.unwrap();
    let lose = || {
        for name in ["preprocessor_config.json", "processor_config.json"] {
            fs::remove_file(folder.join(name)).unwrap();
        }
    };
    lose();
    move_on(&hub);
    assert_eq!(resolve(id("main"), config.clone()).await.unwrap(), folder);
    check(&folder);
    assert!(
        !downloads(&hub).iter().any(|name| name == "model.safetensors" || name == "generation_config.json")
    );

    // Without a network, what is there has to do.
    lose();
    let offline = HubConfig { offline: true, ..config.clone() };
    assert_eq!(resolve(id("main"), offline).await.unwrap(), folder);
    let gone = HubConfig { endpoint: Some("http://127.0.0.1:1".into()), ..config };
    assert_eq!(resolve(id("main"), gone).await.unwrap(), folder);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_interrupted_download_goes_on_where_it_stopped() {
    let mut hub = one_commit(files());
    hub.breaks = Some(("model.safetensors".into(), 300_000));
    let (url, hub) = start(hub).await;
    let cache = TempDir::new().unwrap();
    check(&pull(id("main"), config(&url, cache.path())).await.unwrap());
    let hub = hub.lock().unwrap();
    let ranges = hub.asked.iter().filter(|(path, ..)| path.ends_with("/model.safetensors"));
    let ranges: Vec<_> =
        ranges.filter_map(|(_, range, _)| range.clone()).filter(|range| range != "bytes=0-0").collect();
    assert_eq!(ranges[0], "bytes=0-");
    assert_ne!(ranges[1], "bytes=0-", "it began again: {ranges:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn shards_are_those_of_the_index() {
    let mut files = files();
    let weights = files.remove("model.safetensors").unwrap();
    files.insert("model-00001-of-00001.safetensors".into(), weights);
    let index = json!({"weight_map": {"a": "model-00001-of-00001.safetensors", "b": "model-00001-of-00001.safetensors"}});
    files.insert("model.safetensors.index.json".into(), index.to_string().into_bytes());
    let (url, hub) = start(one_commit(files)).await;
    let cache = TempDir::new().unwrap();
    let config = config(&url, cache.path());
    let folder = resolve(id("main"), config.clone()).await.unwrap();
    assert!(downloads(&hub).contains(&"model-00001-of-00001.safetensors".to_owned()));
    assert!(!downloads(&hub).contains(&"model.fp16.safetensors".to_owned()));
    // A shard that went missing is noticed, and brought back.
    fs::remove_file(folder.join("model-00001-of-00001.safetensors")).unwrap();
    resolve(id("main"), config).await.unwrap();
    assert!(folder.join("model-00001-of-00001.safetensors").exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_had_is_said() {
    let mut files = files();
    files.remove("model.safetensors");
    let (url, _) = start(one_commit(files)).await;
    let cache = TempDir::new().unwrap();
    let config = config(&url, cache.path());
    for (id, config, expected) in [
        (id("main"), config.clone(), "safetensors only"),
        (id("v9"), config.clone(), "owner/llava@v9 is not on the hub"),
        (HubId { repository: "a/b".into(), ..id("main") }, config.clone(), "a/b@main is not on the hub"),
        (HubId { repository: "gated/b".into(), ..id("main") }, config.clone(), "accept its terms"),
        (id("main"), HubConfig { token: None, ..config.clone() }, "set HF_TOKEN"),
        (
            id("main"),
            HubConfig { endpoint: Some("http://127.0.0.1:1".into()), ..config.clone() },
            "cannot fetch",
        ),
    ] {
        let error = resolve(id, config).await.unwrap_err().to_string();
        assert!(error.contains(expected), "{expected}: {error}");
    }
}
