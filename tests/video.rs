//! Videos as frames, against what PyTorch computed: rows and answers, through the API, alone and in company.
#![allow(clippy::unwrap_used, reason = "tests")]

mod support;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use candle_core::{DType, Tensor};
use futures_util::future::join_all;
use percept::config::Settings;
use percept_models::{Checkpoint, Features, Loaded, MediaSize, Medium, Task};
use serde::Deserialize;
use serde_json::{Value, json};
use support::{
    Case, Golden, fixtures, largest_difference, load, pattern, picture,
    server::{self, Server, data_url, data_url_of, fixture, image_part},
};

const MODELS: [&str; 2] = ["qwen2_5_vl", "qwen2_vl"];

/// A video of a case: frame `k` is the reference's picture, seen from `7 k` columns further to the right.
#[derive(Debug, Clone, Copy, Deserialize)]
struct Video {
    width: usize,
    height: usize,
    frames: usize,
    fps: f64,
}

impl Video {
    fn frames(self) -> Vec<Tensor> {
        let frame = |k: usize| pattern(self.width + 7 * k, self.height).narrow(1, 7 * k, self.width).unwrap();
        (0..self.frames).map(frame).collect()
    }

    /// Frames without a loss, whatever the URL calls them.
    fn files(self) -> Vec<Vec<u8>> {
        self.frames().iter().map(png).collect()
    }

    /// As vLLM takes them.
    fn joined(self) -> Value {
        let frames: Vec<_> = self.files().iter().map(|file| STANDARD.encode(file)).collect();
        let url = format!("data:video/jpeg;base64,{}", frames.join(","));
        json!({"type": "video_url", "video_url": {"url": url}, "fps": self.fps})
    }

    /// As Qwen's own service takes them.
    fn listed(self) -> Value {
        let frames: Vec<_> = self.files().iter().map(|file| data_url_of(file)).collect();
        json!({"type": "video", "video": frames, "fps": self.fps})
    }
}

fn png(pixels: &Tensor) -> Vec<u8> {
    let (height, width, _) = pixels.dims3().unwrap();
    let rgb = pixels.flatten_all().unwrap().to_vec1::<u8>().unwrap();
    let image = image::RgbImage::from_raw(width as u32, height as u32, rgb).unwrap();
    let mut file = std::io::Cursor::new(Vec::new());
    image.write_to(&mut file, image::ImageFormat::Png).unwrap();
    file.into_inner()
}

fn videos(case: &Case) -> Vec<Video> {
    serde_json::from_value(case.extra["videos"].clone()).unwrap()
}

/// A request for the greedy answer to a case.
fn request(model: &str, case: &Case, part_of: fn(Video) -> Value) -> Value {
    let mut images = case.images.iter();
    let mut videos = videos(case).into_iter();
    let mut messages = case.turns();
    for part in messages.iter_mut().flat_map(|message| message["content"].as_array_mut().unwrap()) {
        match part["type"].as_str().unwrap() {
            "image" => *part = image_part(&data_url(images.next().unwrap())),
            "video" => *part = part_of(videos.next().unwrap()),
            _ => {}
        }
    }
    json!({"model": model, "messages": messages, "temperature": 0, "repetition_penalty": 1, "max_tokens": 12})
}

async fn serve(models: &[&str]) -> Server {
    let model = models.iter().map(|name| format!("{name}={}", fixture(name).display())).collect();
    server::start(Settings { model, ..Settings::default() }).await
}

/// The text of what the reference drew.
fn expected(model: &str, golden: &Golden, case: &Case) -> String {
    let tokenizer = percept::text::Tokenizer::read(&Checkpoint::new(fixtures().join(model))).unwrap();
    let stops = &golden.manifest.stop_token_ids;
    let tokens: Vec<u32> =
        case.greedy_tokens.iter().copied().take_while(|token| !stops.contains(token)).collect();
    tokenizer.decode(&tokens).unwrap()
}

async fn check(server: &Server, model: &str, part_of: fn(Video) -> Value) {
    let golden = Golden::read(&format!("{model}_video"));
    let requests: Vec<_> = golden.prompts().map(|case| request(model, case, part_of)).collect();
    let answers = join_all(requests.iter().map(|request| server.ask(request))).await;
    assert_eq!(answers.len(), 5);
    for (case, answer) in golden.prompts().zip(answers) {
        let text = answer["choices"][0]["message"]["content"].as_str().unwrap();
        assert_eq!(text, expected(model, &golden, case), "{model} {}", case.name);
        assert_eq!(answer["usage"]["prompt_tokens"], case.input_ids.len(), "{model} {}", case.name);
    }
}

/// Moments of a case's media, ready to be encoded, with the rows that each takes.
fn features(loaded: &Loaded, case: &Case) -> Vec<Features> {
    let run = |medium: Medium<'_>, size| Features { tensor: loaded.preprocess.run(medium).unwrap(), size };
    let pictures = case.images.iter().map(|name| {
        let pixels = picture(name);
        let (height, width, _) = pixels.dims3().unwrap();
        run(Medium::Picture(&pixels), MediaSize::Image { width, height })
    });
    let Task::Chat(info) = &loaded.task else { unreachable!() };
    let frames = info.video.unwrap().frames;
    let moments = videos(case).into_iter().flat_map(|video| {
        let moment = |pixels: &[Tensor]| {
            let size = MediaSize::Moment { width: video.width, height: video.height };
            run(Medium::Moment(&Tensor::stack(pixels, 0).unwrap()), size)
        };
        video.frames().chunks(frames).map(moment).collect::<Vec<_>>()
    });
    pictures.chain(moments).collect()
}

#[test]
fn frames_become_the_references_pixels_and_rows() {
    for model in MODELS {
        let golden = Golden::read(&format!("{model}_video"));
        let loaded = load(fixtures().join(model), DType::F32, None);
        let mut compared = 0;
        for case in golden.prompts() {
            let features = features(&loaded, case);
            let encoded = loaded.model.encode(&features).unwrap();
            let difference = largest_difference(&encoded, golden.tensor(&case.name, "features").unwrap());
            assert!(difference <= golden.tolerance("features"), "{model} {}: {difference}", case.name);
            let Some(pixels) = golden.tensor(&case.name, "pixel_values_videos") else { continue };
            let found: Vec<_> = features.iter().map(|f| f.tensor.flatten_to(2).unwrap()).collect();
            let difference = largest_difference(&Tensor::cat(&found, 0).unwrap(), pixels);
            assert!(difference <= 1e-5, "{model} {}: {difference}", case.name);
            compared += 1;
        }
        assert_eq!(compared, 2);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn answers_to_videos_equal_the_reference() {
    let server = serve(&MODELS).await;
    for model in MODELS {
        check(&server, model, Video::joined).await;
        // Rows are in the cache now, whatever the form they come in.
        check(&server, model, Video::listed).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn chunks_and_company_change_nothing() {
    let model = format!("qwen2_5_vl={}", fixture("qwen2_5_vl").display());
    let settings = Settings { model: vec![model], step_rows: Some(7), ..Settings::default() };
    let server = server::start(Settings { max_sequences: Some(5), ..settings }).await;
    check(&server, "qwen2_5_vl", Video::joined).await;
    server.idle().await;
}

/// What is behind a video depends on how long it lasts, even if its frames are the same.
#[tokio::test(flavor = "multi_thread")]
async fn the_same_frames_at_another_rate_are_another_video() {
    let golden = Golden::read("qwen2_5_vl_video");
    let slow = golden.prompts().find(|case| case.name == "slow").unwrap();
    let mut fast = request("qwen2_5_vl", slow, Video::joined);
    fast["messages"][0]["content"][0]["fps"] = json!(30);
    let alone = serve(&["qwen2_5_vl"]).await.ask(&fast).await;
    let text = |answer: &Value| answer["choices"][0]["message"]["content"].as_str().unwrap().to_owned();
    assert_ne!(text(&alone), expected("qwen2_5_vl", &golden, slow), "the test sees no difference");

    let server = serve(&["qwen2_5_vl"]).await;
    let first = server.ask(&request("qwen2_5_vl", slow, Video::joined)).await;
    assert_eq!(text(&first), expected("qwen2_5_vl", &golden, slow));
    assert_eq!(text(&server.ask(&fast).await), text(&alone));
}

fn ask(model: &str, part: &Value) -> Value {
    json!({
        "model": model,
        "messages": [{"role": "user", "content": [part, {"type": "text", "text": "what is it?"}]}],
        "max_tokens": 1,
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn videos_that_cannot_be_taken_are_refused_by_name() {
    let model = ["qwen2_5_vl", "llava"].map(|name| format!("{name}={}", fixture(name).display()));
    let settings = Settings { model: model.into(), max_video_frames: Some(4), ..Settings::default() };
    let server = server::start(settings).await;
    let at = "messages[0].content[0]";
    let clip = |frames| Video { width: 56, height: 56, frames, fps: 2.0 };
    let url = |url: &str| json!({"type": "video_url", "video_url": {"url": url}});
    let list = |urls: Vec<String>| json!({"type": "video", "video": urls});
    let frame = |width| data_url_of(&png(&pattern(width, 56)));
    let with = |mut part: Value, key: &str, value: Value| {
        part[key] = value;
        part
    };
    for (part, param, words) in [
        (clip(5).joined(), "video_url", "at most 4 frames of videos, but got 5"),
        (clip(5).listed(), "video", "at most 4 frames of videos, but got 5"),
        (list(vec![frame(56), frame(84)]), "video[1]", "the frame is 84x56, the first one is 56x56"),
        (list(vec![frame(56), "data:image/png;base64,AAAA".into()]), "video[1]", "no picture in one of"),
        (list(Vec::new()), "video", "empty array"),
        (url("data:video/mp4;base64,AAAA"), "video_url", "video files are not decoded"),
        (url("https://example.com/a.mp4"), "video_url", "https URLs are not fetched"),
        (url("data:video/jpeg;base64,AAAA"), "video_url[0]", "no picture in one of"),
        (url("data:video/jpeg;base64,"), "video_url[0]", "no data"),
        (json!({"type": "video_url", "video_url": {}}), "video_url.url", "Missing"),
        (with(clip(1).joined(), "fps", json!(0)), "fps", "0.01"),
        (with(clip(1).joined(), "fps", json!(1e9)), "fps", "1000"),
    ] {
        let (status, error) = server.refuse(&ask("qwen2_5_vl", &part)).await;
        let message = error["message"].as_str().unwrap();
        assert_eq!((status, error["param"].as_str()), (400, Some(&*format!("{at}.{param}"))), "{message}");
        assert!(message.contains(words), "{message}");
    }
    let (status, error) = server.refuse(&ask("llava", &clip(1).joined())).await;
    assert_eq!((status, error["param"].as_str()), (400, Some("messages[0].content[0].video_url")));
    assert!(error["message"].as_str().unwrap().contains("pictures, and no videos"), "{error}");
    server.ask(&ask("qwen2_5_vl", &clip(4).joined())).await;
    server.ask(&ask("qwen2_5_vl", &with(clip(1).listed(), "fps", Value::Null))).await;
}

/// A template that has no place for videos is told apart from a model that has none.
#[tokio::test(flavor = "multi_thread")]
async fn a_template_without_videos_says_so() {
    let folder = support::copy_of("qwen2_5_vl", |_| true);
    support::edit(folder.path(), "chat_template.json", |config| {
        let template = config["chat_template"].as_str().unwrap().replace("'video'", "'never'");
        config["chat_template"] = template.into();
    });
    let model = vec![format!("qwen2_5_vl={}", folder.path().display())];
    let server = server::start(Settings { model, ..Settings::default() }).await;
    let video = Video { width: 56, height: 56, frames: 2, fps: 2.0 };
    let (status, error) = server.refuse(&ask("qwen2_5_vl", &video.joined())).await;
    assert_eq!((status, error["param"].as_str()), (400, Some("messages")));
    assert!(error["message"].as_str().unwrap().contains("0 of 1 pictures and videos"), "{error}");
}

/// Newer checkpoints have other limits of size for videos, in a file of their own or beside those of pictures.
#[test]
fn videos_have_limits_of_their_own_where_the_checkpoint_says_so() {
    let rows = |folder: &std::path::Path, size| {
        let preprocess = load(folder.to_owned(), DType::F32, None).preprocess;
        preprocess.footprint(size).unwrap().tokens.len()
    };
    let [picture, moment] =
        [MediaSize::Image { width: 168, height: 168 }, MediaSize::Moment { width: 168, height: 168 }];
    let plain = support::copy_of("qwen2_5_vl", |_| true);
    assert_eq!([rows(plain.path(), picture), rows(plain.path(), moment)], [36, 36]);
    let limits = json!({"size": {"shortest_edge": 784, "longest_edge": 7056}});
    std::fs::write(plain.path().join("video_preprocessor_config.json"), limits.to_string()).unwrap();
    assert_eq!([rows(plain.path(), picture), rows(plain.path(), moment)], [36, 9]);

    let newer = support::copy_of("qwen2_5_vl", |name| name != "preprocessor_config.json");
    let own: Value = Checkpoint::new(fixtures().join("qwen2_5_vl")).image_processor().unwrap();
    let both = json!({"image_processor": own, "video_processor": limits});
    std::fs::write(newer.path().join("processor_config.json"), both.to_string()).unwrap();
    assert_eq!([rows(newer.path(), picture), rows(newer.path(), moment)], [36, 9]);
}
