//! Pictures and videos of a conversation: from URLs to what an engine takes.

use std::sync::Arc;

use futures_util::future::try_join_all;
use percept_models::{Footprint, MediaSize, Preprocess, VideoInfo};

use super::parse::{Files, MediaRef};
use crate::{
    api::{ApiError, App, files, record::Record},
    engine::{Key, Pin},
    media::{self, FetchError, File, Header, MediaLimits, remote::Fetcher},
    request::{InvalidRequest, Media, Source},
    router::Served,
};

/// A picture, or a moment of a video, whose headers were read.
pub(in crate::api) struct Opened {
    param: String,
    files: Vec<(File, Header)>,
    size: MediaSize,
    /// Positions of time behind the first moment of its video, for later ones.
    later: Option<usize>,
    key: Key,
}

impl Opened {
    /// Pictures or frames.
    pub(in crate::api) fn files(&self) -> usize {
        self.files.len()
    }

    /// What it takes in the prompt.
    pub(in crate::api) fn footprint(&self, preprocess: &dyn Preprocess) -> Result<Footprint, InvalidRequest> {
        let footprint = preprocess.footprint(self.size);
        let mut footprint =
            footprint.map_err(|error| InvalidRequest::PictureSize { param: self.param.clone(), error })?;
        footprint.grid = footprint.grid.map(|grid| self.later.map_or(grid, |time| grid.later(time)));
        Ok(footprint)
    }
}

/// The file in base64 or in a data URL.
pub(in crate::api) fn base64_or_url(data: &str, limit: usize) -> Result<File, FetchError> {
    match data.get(..5) {
        Some(scheme) if scheme.eq_ignore_ascii_case("data:") => media::read_url(data, limit),
        _ => media::read_base64(data, limit),
    }
}

/// Reads the files behind the URLs, and what their headers say. `video` is how the model takes videos, if it does.
pub(in crate::api) async fn open(
    app: &App,
    record: &Record,
    video: Option<VideoInfo>,
    media: Vec<MediaRef>,
) -> Result<Vec<Opened>, ApiError> {
    if media.is_empty() {
        return Ok(Vec::new());
    }
    let media = try_join_all(media.into_iter().map(async |medium| fetch(app, record, medium).await)).await?;
    let mut reader = Reader { limits: app.config.media, video, pixels: 0, frames: 0 };
    let opened = app.decoders.run(move || {
        let mut opened = Vec::with_capacity(media.len());
        for medium in media {
            match medium.files {
                Files::Picture(url) => {
                    opened.push(reader.picture(medium.param, |most| media::read_url(&url, most))?);
                }
                Files::Base64(data) => {
                    opened.push(reader.picture(medium.param, |most| media::read_base64(&data, most))?);
                }
                // It was read before.
                Files::Kept(_) => {}
                Files::Fetched(file) => opened.push(reader.picture(medium.param, |_| Ok(file))?),
                Files::FetchedFrames { files, rate } => {
                    let video = reader.count(&medium.param, files.len())?;
                    let files = files.into_iter().map(Ok);
                    opened.extend(reader.moments(&medium.param, files, video, rate)?);
                }
                Files::Frames { urls, rate } => opened.extend(reader.frames(&medium.param, urls, rate)?),
                Files::Video { url, rate } => opened.extend(reader.video(&medium.param, &url, rate)?),
            }
        }
        Ok::<_, InvalidRequest>(opened)
    });
    Ok(opened.await.map_err(|error| ApiError::internal(&error))??)
}

/// Fetches the files of a medium that are elsewhere, where this server may.
async fn fetch(app: &App, record: &Record, medium: MediaRef) -> Result<MediaRef, ApiError> {
    let MediaRef { param, files } = medium;
    let limits = app.config.media;
    let file = async |param: String, url: String| {
        let file = match Fetcher::is_remote(&url) {
            true => app.fetcher.fetch(&url, limits.image_bytes).await,
            false => media::read_url(&url, limits.image_bytes),
        };
        file.map_err(|error| InvalidRequest::PictureUrl { param, error })
    };
    let files = match files {
        Files::Picture(url) if Fetcher::is_remote(&url) => Files::Fetched(file(param.clone(), url).await?),
        Files::Kept(id) => Files::Fetched(files::read(app, record, &param, &id, limits.image_bytes).await?),
        Files::Frames { urls, rate } if urls.iter().any(|url| Fetcher::is_remote(url)) => {
            // Before any of so many is fetched; what the model says to videos comes later.
            if urls.len() > limits.video_frames {
                let (found, limit) = (urls.len().to_string(), limits.video_frames);
                return Err(
                    InvalidRequest::ArrayTooLong { param, items: "frames of videos", found, limit }.into()
                );
            }
            let frames = urls.into_iter().enumerate();
            let files = frames.map(|(index, url)| file(format!("{param}[{index}]"), url));
            Files::FetchedFrames { files: try_join_all(files).await?, rate }
        }
        other => other,
    };
    Ok(MediaRef { param, files })
}

/// Reads files of a request, and counts what they take together.
struct Reader {
    limits: MediaLimits,
    video: Option<VideoInfo>,
    pixels: usize,
    frames: usize,
}

impl Reader {
    /// A picture whose file of at most so many bytes `read` reads.
    fn picture(
        &mut self,
        param: String,
        read: impl FnOnce(usize) -> Result<File, FetchError>,
    ) -> Result<Opened, InvalidRequest> {
        let file = read(self.limits.image_bytes)
            .map_err(|error| InvalidRequest::PictureUrl { param: param.clone(), error })?;
        let header = self.header(&param, &file)?;
        let (width, height) = header.size();
        let (key, size) = (Key::of(&file), MediaSize::Image { width, height });
        Ok(Opened { param, files: vec![(file, header)], size, later: None, key })
    }

    /// A video of a list of pictures.
    fn frames(&mut self, param: &str, urls: Vec<String>, rate: f64) -> Result<Vec<Opened>, InvalidRequest> {
        let video = self.count(param, urls.len())?;
        let most = self.limits.image_bytes;
        let files = urls.into_iter().map(|url| media::read_url(&url, most));
        self.moments(param, files, video, rate)
    }

    /// A video of pictures in one URL.
    fn video(&mut self, param: &str, url: &str, rate: f64) -> Result<Vec<Opened>, InvalidRequest> {
        let failed = |error| InvalidRequest::PictureUrl { param: param.into(), error };
        let frames = media::video_frames(url).map_err(failed)?;
        let video = self.count(param, frames.clone().count())?;
        let most = self.limits.image_bytes;
        let files = frames.map(|data| media::read_base64(data, most));
        self.moments(param, files, video, rate)
    }

    fn count(&mut self, param: &str, frames: usize) -> Result<VideoInfo, InvalidRequest> {
        let video = self.video.ok_or_else(|| InvalidRequest::Unsupported {
            param: param.into(),
            reason: "this model takes pictures, and no videos".into(),
        })?;
        self.frames += frames;
        if self.frames > self.limits.video_frames {
            return Err(InvalidRequest::ArrayTooLong {
                param: param.into(),
                items: "frames of videos",
                found: self.frames.to_string(),
                limit: self.limits.video_frames,
            });
        }
        Ok(video)
    }

    /// The moments that frames make, in order.
    fn moments(
        &mut self,
        param: &str,
        files: impl Iterator<Item = Result<File, FetchError>>,
        video: VideoInfo,
        rate: f64,
    ) -> Result<Vec<Opened>, InvalidRequest> {
        let mut moments: Vec<Opened> = Vec::new();
        let mut first = None;
        for (index, file) in files.enumerate() {
            let frame = format!("{param}[{index}]");
            let file = file.map_err(|error| InvalidRequest::PictureUrl { param: frame.clone(), error })?;
            let header = self.header(&frame, &file)?;
            let (width, height) = header.size();
            let first = *first.get_or_insert((width, height));
            if (width, height) != first {
                return Err(InvalidRequest::FrameSize { param: frame, found: (width, height), first });
            }
            let key = Key::of(&file);
            match moments.last_mut().filter(|moment| moment.files.len() < video.frames) {
                Some(moment) => {
                    moment.key = Key::chain(Some(moment.key), &[], std::iter::once((key, 0)));
                    moment.files.push((file, header));
                }
                None => {
                    let moment = moments.len();
                    moments.push(Opened {
                        param: frame,
                        files: vec![(file, header)],
                        size: MediaSize::Moment { width, height },
                        later: (moment > 0).then(|| video.time(moment, rate)),
                        // A picture of the same file may have other limits of size.
                        key: Key::chain(Some(Key::of(b"moment")), &[], std::iter::once((key, 0))),
                    });
                }
            }
        }
        Ok(moments)
    }

    fn header(&mut self, param: &str, file: &File) -> Result<Header, InvalidRequest> {
        let limits = self.limits;
        let header = Header::read(file, limits.image_edge, limits.image_pixels)
            .map_err(|error| InvalidRequest::Picture { param: param.into(), error })?;
        self.pixels += header.pixels();
        if self.pixels > limits.request_pixels {
            let (param, found, limit) = (param.into(), self.pixels, limits.request_pixels);
            return Err(InvalidRequest::Pixels { param, found, limit });
        }
        Ok(header)
    }
}

/// Decodes media, but for those whose rows are still in the encoder cache.
pub(in crate::api) async fn decode(
    app: &App,
    record: &Record,
    model: &Served,
    opened: Vec<Opened>,
) -> Result<Vec<Media>, ApiError> {
    let scope = record.scope();
    let mut media = Vec::with_capacity(opened.len());
    let mut files = Vec::new();
    let mut params = Vec::new();
    for medium in opened {
        let pin = model.handle.pin(&medium.key.within(scope));
        let count = if pin.is_none() { medium.files.len() } else { 0 };
        params.extend(vec![medium.param; count]);
        files.extend(medium.files.into_iter().take(count));
        media.push((medium.key, medium.size, pin, count));
    }
    let decoded = app.decoders.decode(files).await.map_err(|(index, error)| {
        let param = params.swap_remove(index);
        InvalidRequest::Picture { param, error }
    })?;
    let mut decoded = decoded.into_iter();
    let mut source = |size: MediaSize, pin: Option<Pin>, count: usize| match (pin, size) {
        (Some(pin), _) => Some(Source::Encoded(Arc::new(pin))),
        (None, MediaSize::Moment { .. }) => Some(Source::Moment(decoded.by_ref().take(count).collect())),
        (None, _) => decoded.next().map(|picture| Source::Pixels(Arc::new(picture))),
    };
    let media: Option<Vec<Media>> = media
        .into_iter()
        .map(|(key, size, pin, count)| Some(Media { key, source: source(size, pin, count)? }))
        .collect();
    media.ok_or_else(|| ApiError::internal(&"a picture was lost while it was decoded"))
}
