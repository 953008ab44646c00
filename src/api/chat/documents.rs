//! Documents of a conversation: their pages become pictures and text, each where the document was.

use std::collections::HashMap;

use percept_models::MediaSize;

use super::{
    media::base64_or_url,
    parse::{Files, MediaRef, Mention},
};
use crate::{
    api::{ApiError, App, files, record::Record},
    media::{
        self, DocumentLimits, File,
        document::{DocumentError, Kind, Page, ReadError},
        remote::Fetcher,
    },
    request::InvalidRequest,
    router::{ChatModel, Served},
    text::{Conversation, Part},
};

/// Pixels of a page's longer edge, the best first. More shows nothing that networks of today read; less is no longer
/// read by any.
const EDGES: [f32; 6] = [1568.0, 1344.0, 1120.0, 896.0, 672.0, 448.0];
/// The least edge where more would cost nothing.
const ENOUGH: f32 = 672.0;
/// Bytes of text that are a token, about.
const BYTES_PER_TOKEN: usize = 4;

/// A document that is still where it is.
pub(in crate::api) struct Document {
    /// Where the request has it.
    pub(in crate::api) param: String,
    pub(in crate::api) source: DocumentSource,
    /// What is known of it.
    pub(in crate::api) about: Vec<(&'static str, String)>,
}

/// Where a document is.
pub(in crate::api) enum DocumentSource {
    /// In the request: base64, or a data URL.
    Data(String),
    /// Behind a URL.
    Url(String),
    /// Among files that were sent before.
    Id(String),
}

/// A document that was read.
struct Read {
    param: String,
    about: Vec<(&'static str, String)>,
    content: Content,
}

enum Content {
    Text(String),
    Pages { file: File, pages: Vec<Page> },
}

/// The conversation with the pages of its documents in their places, and its media, among them pictures of pages.
pub(super) async fn unfold(
    app: &App,
    record: &Record,
    (served, model): (&Served, &ChatModel),
    conversation: Conversation,
    media: Vec<Mention>,
) -> Result<(Conversation, Vec<MediaRef>), ApiError> {
    let unfolded = async {
        let (others, documents) = read(app, record, media).await?;
        let sizes = sizes(app, served, model, &documents);
        let mut unfolded = Vec::with_capacity(documents.len());
        for (document, sizes) in documents.into_iter().zip(sizes) {
            unfolded.push(draw(app, document, sizes).await?);
        }
        Ok::<_, ApiError>((others, unfolded))
    };
    let (others, documents) = record.media(unfolded).await?;
    Ok(place(conversation, others, documents))
}

/// Reads the documents among media; [`None`] is where they were among the others.
async fn read(
    app: &App,
    record: &Record,
    media: Vec<Mention>,
) -> Result<(Vec<Option<MediaRef>>, Vec<Read>), ApiError> {
    let limits = app.config.media.document;
    let mut others = Vec::with_capacity(media.len());
    let (mut documents, mut count) = (Vec::new(), 0);
    for mention in media {
        let Document { param, source, about } = match mention {
            Mention::Document(document) => document,
            Mention::Medium(medium) => {
                others.push(Some(medium));
                continue;
            }
        };
        let file = file(app, record, &param, source, limits.bytes).await?;
        let refuse = |error| InvalidRequest::Document { param: param.clone(), error };
        let content = match Kind::of(&file).map_err(refuse)? {
            Kind::Text => Content::Text(String::from_utf8_lossy(&file).into_owned()),
            Kind::Pdf => {
                let left = limits.pages - count;
                let pages = app.documents.contents(&file, left, &limits).await;
                let pages = pages.map_err(|error| failed(&param, of_request(error, count, &limits)))?;
                count += pages.len();
                Content::Pages { file, pages }
            }
        };
        others.push(None);
        documents.push(Read { param, about, content });
    }
    Ok((others, documents))
}

/// The pages that are too many are those of all documents.
fn of_request(error: ReadError, before: usize, limits: &DocumentLimits) -> ReadError {
    match error {
        ReadError::Document(DocumentError::Pages { found, .. }) => {
            DocumentError::Pages { found: before + found, limit: limits.pages }.into()
        }
        other => other,
    }
}

fn failed(param: &str, error: ReadError) -> ApiError {
    match error {
        ReadError::Document(error) => InvalidRequest::Document { param: param.into(), error }.into(),
        ReadError::Start { .. } => ApiError::internal(&error),
    }
}

async fn file(
    app: &App,
    record: &Record,
    param: &str,
    source: DocumentSource,
    limit: usize,
) -> Result<File, ApiError> {
    let file = match source {
        DocumentSource::Url(url) if Fetcher::is_remote(&url) => app.fetcher.fetch(&url, limit).await,
        DocumentSource::Url(url) => media::read_url(&url, limit),
        DocumentSource::Data(data) => {
            let decoded = app.decoders.run(move || base64_or_url(&data, limit)).await;
            decoded.map_err(|error| ApiError::internal(&error))?
        }
        DocumentSource::Id(id) => return files::read(app, record, param, &id, limit).await,
    };
    Ok(file.map_err(|error| InvalidRequest::FileUrl { param: param.into(), error })?)
}

/// Columns and rows of the picture of each page of each document: as large as the model looks at, as its context has
/// room for, and as pictures of a request may be together.
fn sizes(app: &App, served: &Served, model: &ChatModel, documents: &[Read]) -> Vec<Vec<(u16, u16)>> {
    let pages = |document: &Read| match &document.content {
        Content::Text(_) => Vec::new(),
        Content::Pages { pages, .. } => pages.iter().map(|page| (page.width, page.height)).collect(),
    };
    let pages: Vec<Vec<(f32, f32)>> = documents.iter().map(pages).collect();
    let written = |document: &Read| match &document.content {
        Content::Text(text) => text.len(),
        Content::Pages { pages, .. } => pages.iter().map(|page| page.text.len()).sum(),
    };
    let text: usize = documents.iter().map(written).sum();
    // A question and its answer want room, too.
    let room = (served.handle.context() / 4 * 3).saturating_sub(text / BYTES_PER_TOKEN);
    let mut known = HashMap::new();
    let mut rows = |(width, height): (u16, u16)| {
        *known.entry((width, height)).or_insert_with(|| {
            let size = MediaSize::Image { width: width.into(), height: height.into() };
            // What the model does not take is refused where all pictures are.
            model.preprocess.footprint(size).map_or(0, |print| print.tokens.len() + print.memory)
        })
    };
    let mut cost = |edge: f32| {
        let sizes = pages.iter().flatten().map(|&page| picture(page, edge));
        sizes.fold((0, 0), |(all, pixels), size| {
            (all + rows(size), pixels + usize::from(size.0) * usize::from(size.1))
        })
    };
    let fits = |(rows, pixels): (usize, usize)| rows <= room && pixels <= app.config.media.request_pixels;
    let mut at = EDGES.iter().position(|&edge| fits(cost(edge))).unwrap_or(EDGES.len() - 1);
    // Of as many rows the smallest: the model sees no more of a larger one.
    while EDGES.get(at + 1).is_some_and(|&next| next >= ENOUGH && cost(next).0 == cost(EDGES[at]).0) {
        at += 1;
    }
    pages.into_iter().map(|pages| pages.into_iter().map(|page| picture(page, EDGES[at])).collect()).collect()
}

/// Columns and rows of a page whose longer edge has so many pixels.
fn picture((width, height): (f32, f32), edge: f32) -> (u16, u16) {
    let scale = edge / width.max(height);
    let pixels = |points: f32| (points * scale).round().clamp(1.0, edge) as u16;
    (pixels(width), pixels(height))
}

/// What a document becomes: parts of a turn, and media that they mention.
async fn draw(
    app: &App,
    document: Read,
    sizes: Vec<(u16, u16)>,
) -> Result<(Vec<Part>, Vec<MediaRef>), ApiError> {
    let Read { param, about, content } = document;
    let (mut parts, mut media) = (vec![Part::Text(opening("document", about))], Vec::new());
    match content {
        Content::Text(text) => add_text(&mut parts, text, ""),
        Content::Pages { file, pages } => {
            let pictures = app.documents.pictures(&file, sizes, &app.config.media.document).await;
            let pictures = pictures.map_err(|error| failed(&param, error))?;
            for (index, (page, picture)) in pages.into_iter().zip(pictures).enumerate() {
                add_text(&mut parts, format!("<page number=\"{}\">\n", index + 1), "\n");
                parts.push(Part::Picture);
                media.push(MediaRef { param: param.clone(), files: Files::Fetched(picture) });
                let end = if page.text.is_empty() { "" } else { "\n" };
                parts.push(Part::Text(format!("\n{}{end}</page>\n", page.text)));
            }
        }
    }
    add_text(&mut parts, "</document>".into(), "\n");
    Ok((parts, media))
}

/// Puts documents where they were.
fn place(
    mut conversation: Conversation,
    others: Vec<Option<MediaRef>>,
    documents: Vec<(Vec<Part>, Vec<MediaRef>)>,
) -> (Conversation, Vec<MediaRef>) {
    let mut others = others.into_iter();
    let mut documents = documents.into_iter();
    let mut media = Vec::new();
    for message in &mut conversation.messages {
        let parts = std::mem::take(&mut message.parts);
        let mut behind = false;
        for part in parts {
            match part {
                Part::Text(text) if behind => add_text(&mut message.parts, text, "\n"),
                Part::Text(_) => message.parts.push(part),
                Part::Picture | Part::Video => match others.next() {
                    Some(None) => {
                        let (pages, pictures) = documents.next().unwrap_or_default();
                        for page in pages {
                            match page {
                                Part::Text(text) => add_text(&mut message.parts, text, "\n"),
                                other => message.parts.push(other),
                            }
                        }
                        media.extend(pictures);
                        behind = true;
                    }
                    medium => {
                        media.extend(medium.flatten());
                        message.parts.push(part);
                    }
                },
            }
        }
    }
    (conversation, media)
}

/// The first lines of what becomes text.
pub(in crate::api) fn opening(tag: &str, about: impl IntoIterator<Item = (&'static str, String)>) -> String {
    let about = about.into_iter().map(|(name, text)| format!("<{name}>{text}</{name}>\n"));
    format!("<{tag}>\n{}", about.collect::<String>())
}

/// Adds text to parts, behind other text and `between` in one part: templates take parts apart in many ways.
pub(in crate::api) fn add_text(parts: &mut Vec<Part>, text: String, between: &str) {
    match parts.last_mut() {
        Some(Part::Text(last)) => {
            if !last.is_empty() && !last.ends_with('\n') {
                last.push_str(between);
            }
            last.push_str(&text);
        }
        _ => parts.push(Part::Text(text)),
    }
}
