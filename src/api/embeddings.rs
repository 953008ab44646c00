//! `/v1/embeddings`.

use std::sync::Arc;

use axum::{
    Json,
    body::Body,
    extract::State,
    http::HeaderMap,
    response::{IntoResponse, Response},
};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use tiktoken_rs::cl100k_base_singleton;

use super::{
    ApiError, App,
    chat::{Files, MediaRef, blocking, media},
    check::{integer, missing, unsupported, value},
    json,
    models::embedding_model,
    params::Parsed,
    record::Record,
    wire::embeddings as wire,
};
use crate::{
    engine::{Event, Events, Place},
    request::{InvalidRequest, Prompt, Request, Span},
    router::{EmbeddingModel, Served},
    text::{TextLimit, TextTokensError},
};

/// `POST /v1/embeddings`
pub(super) async fn create(
    State(app): State<Arc<App>>,
    record: Record,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, ApiError> {
    app.models()?;
    let harmless = |path: &str| wire::HARMLESS.contains(&path);
    let Parsed { value, ignored } =
        json::request::<wire::EmbeddingRequest>(&app, &headers, body, harmless).await?;
    let ask = Ask::parse(value)?;
    let (served, model) = embedding_model(&app, &record, &ask.model)?;
    let form = ask.form.of(model)?;
    let place = record.reserve(served)?;
    let requests = requests(&app, &record, (served, model), ask.inputs, ask.truncate).await?;
    let tokens = requests.iter().map(|request| request.prompt.tokens.len()).sum();
    record.prompt(tokens)?;
    let vectors = compute(place, requests).await?;
    let usage = wire::EmbeddingUsage { prompt_tokens: tokens, total_tokens: tokens };
    let name = served.id.clone();
    // Millions of numbers take a while to be written.
    let answer = move || {
        let vectors = vectors.into_iter().enumerate();
        let data = vectors.map(|(index, vector)| wire::Embedding {
            object: "embedding",
            index,
            embedding: form.numbers(vector),
        });
        Json(wire::EmbeddingList { object: "list", data: data.collect(), model: name, usage }).into_response()
    };
    let response = blocking(answer).await?;
    Ok(ignored.with(response))
}

/// What becomes a vector.
enum Input {
    Text(String),
    /// Of `cl100k_base`.
    Tokens(Vec<u32>),
    Picture(Files),
}

/// A request that is valid as far as it can be told without a model.
struct Ask {
    model: String,
    /// Each with the path of its field.
    inputs: Vec<(String, Input)>,
    form: AskedForm,
    /// Tokens that texts are cut to, where they are; -1 for all that the model takes.
    truncate: Option<i64>,
}

/// How vectors are wanted.
struct AskedForm {
    base64: bool,
    dimensions: Option<usize>,
}

impl Ask {
    fn parse(request: wire::EmbeddingRequest) -> Result<Self, InvalidRequest> {
        let model = request.model.ok_or_else(|| missing("model"))?;
        let inputs = match request.input.ok_or_else(|| missing("input"))? {
            wire::EmbeddingInput::One(item) => vec![input(item, "input".into())?],
            wire::EmbeddingInput::Several(items) if items.is_empty() => {
                return Err(value("input", "an empty array", "one input to 2048"));
            }
            wire::EmbeddingInput::Several(items) => {
                let inputs = items.into_iter().enumerate();
                inputs
                    .map(|(index, item)| input(item, format!("input[{index}]")))
                    .collect::<Result<_, _>>()?
            }
        };
        let base64 = match request.encoding_format.as_deref() {
            None | Some("float") => false,
            Some("base64") => true,
            Some(other) => return Err(value("encoding_format", other, "'float' and 'base64'")),
        };
        let dimensions =
            request.dimensions.map(|count| integer("dimensions", count, 1, i64::MAX)).transpose()?;
        let form = AskedForm { base64, dimensions: dimensions.map(|count| count as usize) };
        Ok(Self { model, inputs, form, truncate: request.truncate_prompt_tokens })
    }
}

fn input(item: wire::EmbeddingItem, param: String) -> Result<(String, Input), InvalidRequest> {
    let empty = |param: &str, found: &str| value(param, found, "anything that is not empty");
    let (param, input) = match item {
        wire::EmbeddingItem::Text(text) => (param, Input::Text(text)),
        wire::EmbeddingItem::Tokens(ids) => (param, Input::Tokens(ids)),
        wire::EmbeddingItem::Part(wire::EmbeddingPart { text, image }) => match (text, image) {
            (Some(text), None) => (format!("{param}.text"), Input::Text(text)),
            (None, Some(image)) => {
                let files = match image.contains(':') {
                    true => Files::Picture(image),
                    false => Files::Base64(image),
                };
                (format!("{param}.image"), Input::Picture(files))
            }
            (None, None) => return Err(missing(&format!("{param}.text"))),
            (Some(_), Some(_)) => {
                let reason = "an input is a text or a picture; send two inputs for two vectors";
                return Err(unsupported(&format!("{param}.image"), reason));
            }
        },
    };
    match &input {
        Input::Text(text) if text.is_empty() => Err(empty(&param, "an empty string")),
        Input::Tokens(ids) if ids.is_empty() => Err(empty(&param, "an empty array")),
        _ => Ok((param, input)),
    }
}

/// What fuzzing enters.
#[cfg(fuzzing)]
pub(super) fn fuzz(request: wire::EmbeddingRequest) -> Result<(), ApiError> {
    Ok(Ask::parse(request).map(drop)?)
}

impl AskedForm {
    /// The form that vectors of a model get.
    fn of(self, model: &EmbeddingModel) -> Result<Form, InvalidRequest> {
        let whole = model.info.dimensions;
        let shorter = self.dimensions.filter(|&count| count != whole);
        if let Some(count) = shorter.filter(|&count| count > whole || !model.info.shorter.allows(count)) {
            let reason = format!(
                "{count} numbers of a vector mean nothing in this model, whose vectors have {}",
                model.info.shorter.describe(whole)
            );
            return Err(unsupported("dimensions", reason));
        }
        Ok(Form { base64: self.base64, shorter })
    }
}

/// How vectors are written.
struct Form {
    base64: bool,
    /// Numbers, where these are not all.
    shorter: Option<usize>,
}

impl Form {
    fn numbers(&self, mut vector: Vec<f32>) -> wire::Numbers {
        if let Some(count) = self.shorter {
            vector.truncate(count);
            let length =
                vector.iter().map(|number| number * number).sum::<f32>().sqrt().max(f32::MIN_POSITIVE);
            vector.iter_mut().for_each(|number| *number /= length);
        }
        if self.base64 {
            let bytes: Vec<u8> = vector.iter().flat_map(|number| number.to_le_bytes()).collect();
            return wire::Numbers::Base64(STANDARD.encode(bytes));
        }
        wire::Numbers::Floats(vector)
    }
}

/// A request for each input.
async fn requests(
    app: &App,
    record: &Record,
    (served, model): (&Served, &Arc<EmbeddingModel>),
    inputs: Vec<(String, Input)>,
    truncate: Option<i64>,
) -> Result<Vec<Request>, ApiError> {
    let (mut texts, mut pictures, mut order) = (Vec::new(), Vec::new(), Vec::with_capacity(inputs.len()));
    for (param, input) in inputs {
        order.push(matches!(input, Input::Picture(_)));
        match input {
            Input::Picture(_) if model.info.pictures.is_none() => {
                let reason = "this model reads texts, it does not see pictures";
                return Err(unsupported(&param, reason).into());
            }
            Input::Picture(files) => pictures.push(MediaRef { param, files }),
            other => texts.push((param, other)),
        }
    }
    let context = served.handle.context();
    let limit = limit(model, truncate, context)?;
    let own = Arc::clone(model);
    let mut texts = blocking(move || texts_to_requests(&own, texts, limit, context)).await??.into_iter();
    let mut pictures = pictures_to_requests(app, record, (served, model), pictures).await?.into_iter();
    let next = |picture: bool| if picture { pictures.next() } else { texts.next() };
    Ok(order.into_iter().filter_map(next).collect())
}

/// How long texts may be.
fn limit(model: &EmbeddingModel, truncate: Option<i64>, context: usize) -> Result<TextLimit, InvalidRequest> {
    match truncate {
        None => Ok(TextLimit::Refuse(context)),
        Some(-1) => Ok(TextLimit::Cut(context)),
        Some(most) => {
            let least = model.text.around() as i64 + 1;
            let most = integer("truncate_prompt_tokens", most, least, context as i64)?;
            Ok(TextLimit::Cut(most as usize))
        }
    }
}

fn texts_to_requests(
    model: &EmbeddingModel,
    texts: Vec<(String, Input)>,
    limit: TextLimit,
    context: usize,
) -> Result<Vec<Request>, ApiError> {
    let request = |(param, input): (String, Input)| {
        let text = match input {
            Input::Text(text) => text,
            Input::Tokens(ids) => text_of(&ids, &param)?,
            Input::Picture(_) => String::new(),
        };
        let tokens = model.text.tokens(&text, limit, context).map_err(|error| match error {
            TextTokensError::TooLong { tokens, limit } => {
                ApiError::from(InvalidRequest::TextLength { param, tokens, limit })
            }
            TextTokensError::Tokenizer(error) => ApiError::internal(&error),
        })?;
        Ok(Request::embedding(Prompt { tokens, spans: Vec::new() }, Vec::new()))
    };
    texts.into_iter().map(request).collect()
}

/// The text of tokens of `cl100k_base`, in which LangChain sends texts. A list may begin or end within a character.
fn text_of(ids: &[u32], param: &str) -> Result<String, InvalidRequest> {
    let vocabulary = cl100k_base_singleton();
    let unknown = |id: u32| {
        let param = ids.iter().position(|known| *known == id).map(|at| format!("{param}[{at}]"));
        let supported = "ids of cl100k_base, 0 to 100276, as OpenAI's embedding models have them";
        value(&param.unwrap_or_default(), &id.to_string(), supported)
    };
    let bytes = vocabulary.decode_bytes(ids).map_err(|error| unknown(error.token))?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

async fn pictures_to_requests(
    app: &App,
    record: &Record,
    (served, model): (&Served, &EmbeddingModel),
    pictures: Vec<MediaRef>,
) -> Result<Vec<Request>, ApiError> {
    if pictures.is_empty() {
        return Ok(Vec::new());
    }
    let opened = record.media(media::open(app, record, None, pictures)).await?;
    record.images(opened.iter().map(media::Opened::files).sum())?;
    let footprint = |medium: &media::Opened| medium.footprint(&*model.preprocess);
    let footprints = opened.iter().map(footprint).collect::<Result<Vec<_>, _>>()?;
    let decoded = record.media(media::decode(app, record, served, opened)).await?;
    let request = |(footprint, medium): (percept_models::Footprint, _)| {
        let spans = vec![Span::line(0..footprint.tokens.len())];
        Request::embedding(Prompt { tokens: footprint.tokens, spans }, vec![medium])
    };
    Ok(footprints.into_iter().zip(decoded).map(request).collect())
}

/// The vectors of all requests, in order. They are computed together, and with those of other clients, as far as a step
/// has room; dropping the future cancels those that are not.
async fn compute(place: Place, requests: Vec<Request>) -> Result<Vec<Vec<f32>>, ApiError> {
    // Kept until all are done: one request has one place in the queue.
    let turn = place.turn();
    let submitted = requests.into_iter().map(|request| turn.submit(request));
    let events = submitted.collect::<Result<Vec<Events>, _>>()?;
    let mut vectors = Vec::with_capacity(events.len());
    for mut events in events {
        let mut found = None;
        loop {
            match events.next().await {
                Event::Embedded(vector) => found = Some(vector),
                Event::Finished { .. } => break,
                Event::Failed(error) => return Err(error.into()),
                Event::Started { .. } | Event::Token(_) | Event::Probability(_) | Event::Aligned(_) => {}
            }
        }
        vectors.push(found.ok_or_else(|| ApiError::internal(&"an engine gave no vector"))?);
    }
    Ok(vectors)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_of_the_hosted_vocabulary_are_text() {
        // `tiktoken.get_encoding("cl100k_base").encode("tiktoken is great!")`, as its README has it.
        assert_eq!(text_of(&[83, 1609, 5963, 374, 2294, 0], "input").unwrap(), "tiktoken is great!");
        // Half of a character.
        assert_eq!(text_of(&[9468], "input").unwrap(), "\u{fffd}");
        let error = text_of(&[83, 200_000], "input[3]").unwrap_err().to_string();
        assert!(error.contains("'input[3][1]'") && error.contains("200000"), "{error}");
    }

    #[test]
    fn shorter_vectors_have_length_one_again() {
        let form = Form { base64: false, shorter: Some(2) };
        let wire::Numbers::Floats(numbers) = form.numbers(vec![3.0, 4.0, 12.0]) else { panic!() };
        assert_eq!(numbers, [0.6, 0.8]);
        let form = Form { base64: true, shorter: None };
        let wire::Numbers::Base64(text) = form.numbers(vec![1.0, -2.0]) else { panic!() };
        assert_eq!(STANDARD.decode(text).unwrap(), [0, 0, 128, 63, 0, 0, 0, 192]);
    }
}
