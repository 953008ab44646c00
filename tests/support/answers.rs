//! Golden cases answered by an engine.

use std::sync::Arc;

use candle_core::Device;
use percept::{
    engine::{EngineConfig, Event, Handle, Key, Limits},
    media::Picture,
    request::{Media, Request, Source},
};

use super::{Case, picture};

/// Room for many requests of up to `context` tokens.
pub fn roomy(context: usize, vocabulary: usize) -> EngineConfig {
    EngineConfig {
        limits: Limits {
            sequences: 64,
            rows: 4096,
            chunk: 4096,
            encoded: context,
            spare: context / 8,
            encode: 1024,
        },
        pages: 1024,
        page_size: 16,
        queue: 256,
        context,
        vocabulary,
        look_ahead: true,
    }
}

/// The pictures of a case, decoded.
pub fn media(case: &Case) -> Vec<Media> {
    let media = |name: &String| {
        let pixels = picture(name);
        let (height, width, _) = pixels.dims3().unwrap();
        let rgb = pixels.to_device(&Device::Cpu).unwrap().flatten_all().unwrap().to_vec1().unwrap();
        Media {
            key: Key::of(name.as_bytes()),
            source: Source::Pixels(Arc::new(Picture::new(width, height, rgb))),
        }
    };
    case.images.iter().map(media).collect()
}

/// The tokens of an answer.
pub async fn answer(handle: &Handle, request: Request) -> Vec<u32> {
    let mut events = handle.submit(request).unwrap();
    let mut tokens = Vec::new();
    loop {
        match events.next().await {
            Event::Started { .. } => {}
            Event::Token(drawn) => tokens.push(drawn.id),
            Event::Probability(_) | Event::Aligned(_) | Event::Embedded(_) => {
                panic!("nobody asked for it")
            }
            Event::Finished { generated, .. } => {
                assert!(generated - tokens.len() <= 1);
                return tokens;
            }
            Event::Failed(error) => panic!("{error}"),
        }
    }
}
