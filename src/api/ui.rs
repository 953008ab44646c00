//! Pages for browsers: the playground at `/` and the description of the API at `/docs`. They are part of the program, load
//! nothing from anywhere else, and know no more than any other client of the API. Their sources are in `ui`.

use std::sync::Arc;

use axum::{
    Router as Routes,
    body::Bytes,
    http::{
        HeaderMap, HeaderName, HeaderValue, StatusCode,
        header::{
            CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, ETAG, IF_NONE_MATCH, REFERRER_POLICY,
        },
    },
    response::{IntoResponse, Response},
    routing::get,
};

use super::App;
use crate::demo;

/// Nothing but what this server sends runs, is shown or is asked; pictures and recordings of the page's own are `blob:`.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; \
                      media-src 'self' blob:; connect-src 'self'; base-uri 'none'; form-action 'none'; \
                      frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'";
const PERMISSIONS_POLICY: HeaderName = HeaderName::from_static("permissions-policy");
/// What the page may ask its user for.
const PERMISSIONS: &str = "camera=(self), microphone=(self), geolocation=()";

/// A file of the pages: its path, its type and its content.
type Asset = (&'static str, &'static str, &'static [u8]);

macro_rules! page {
    ($file:literal) => {
        include_bytes!(concat!("../../assets/ui/", $file))
    };
}

const HTML: &str = "text/html; charset=utf-8";
const SCRIPT: &str = "text/javascript; charset=utf-8";
const ASSETS: &[Asset] = &[
    ("/", HTML, page!("index.html")),
    ("/docs", HTML, page!("docs.html")),
    ("/ui/app.js", SCRIPT, page!("app.js")),
    ("/ui/style.css", "text/css; charset=utf-8", page!("style.css")),
    ("/ui/icon.svg", "image/svg+xml", page!("icon.svg")),
    ("/ui/licences.txt", "text/plain; charset=utf-8", page!("licences.txt")),
    ("/ui/sample.png", "image/png", demo::PICTURE),
    ("/ui/sample.wav", "audio/wav", demo::RECORDING),
];

/// A route for each file.
pub(super) fn routes() -> Routes<Arc<App>> {
    ASSETS.iter().fold(Routes::new(), |routes, &(path, kind, content)| {
        let hash = blake3::hash(content).to_hex();
        let tag = HeaderValue::try_from(format!("\"{}\"", &hash[..16])).expect("hexadecimal digits");
        routes.route(path, get(move |headers: HeaderMap| async move { asset(kind, content, &tag, &headers) }))
    })
}

/// Their paths.
pub(super) fn paths() -> impl Iterator<Item = &'static str> {
    ASSETS.iter().map(|(path, ..)| *path)
}

fn asset(kind: &'static str, content: &'static [u8], tag: &HeaderValue, headers: &HeaderMap) -> Response {
    let known = headers.get(IF_NONE_MATCH) == Some(tag);
    let mut response = if known {
        StatusCode::NOT_MODIFIED.into_response()
    } else {
        ([(CONTENT_TYPE, kind)], Bytes::from_static(content)).into_response()
    };
    let headers = response.headers_mut();
    headers.insert(ETAG, tag.clone());
    // A newer program has newer pages.
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    headers.insert(CONTENT_SECURITY_POLICY, HeaderValue::from_static(POLICY));
    headers.insert(PERMISSIONS_POLICY, HeaderValue::from_static(PERMISSIONS));
    headers.insert(REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
    response
}
