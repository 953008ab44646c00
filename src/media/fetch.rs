//! The file in a data URL; [`remote`](super::remote) has those behind others.

use base64::{
    Engine as _, alphabet,
    engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig},
};

/// A file in memory.
pub type File = Vec<u8>;

/// Why there is no file.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FetchError {
    /// The URL is of a kind that is not read.
    #[error(
        "{scheme} URLs are not fetched by this server: send the picture as a data URL, data:image/jpeg;base64,…"
    )]
    Scheme {
        /// What it begins with.
        scheme: String,
    },
    /// It is no URL at all.
    #[error("it is not a URL: send the picture as a data URL, data:image/jpeg;base64,…")]
    NotUrl,
    /// It is a video file.
    #[error(
        "video files are not decoded by this server: send frames, data:video/jpeg;base64,…,… with a JPEG between commas"
    )]
    Video,
    /// The data URL is not one.
    #[error("the data URL has no comma between its type and its data")]
    NoComma,
    /// The data is written in another way.
    #[error("the data URL is not in base64: it must begin like data:image/jpeg;base64,")]
    NotBase64,
    /// The base64 is broken.
    #[error("its base64 is broken: {reason}")]
    BadBase64 {
        /// Where.
        reason: String,
    },
    /// The host is not one that files are fetched from.
    #[error(
        "this server fetches nothing from there: send the picture as a data URL, data:image/jpeg;base64,…"
    )]
    Refused,
    /// It could not be fetched.
    #[error("the file behind the URL could not be fetched")]
    Unreachable,
    /// It could not be fetched in time.
    #[error("the file behind the URL could not be fetched within {seconds} seconds")]
    Slow {
        /// How long that may take.
        seconds: u64,
    },
    /// There is something else.
    #[error("the file behind the URL could not be fetched: its server answered {status}")]
    Status {
        /// The status.
        status: u16,
    },
    /// It leads elsewhere too often.
    #[error("the URL leads elsewhere more than {limit} times")]
    Redirects {
        /// How often it may.
        limit: usize,
    },
    /// It is too long.
    #[error("the URL has more than {limit} bytes")]
    LongUrl {
        /// How many would do.
        limit: usize,
    },
    /// The data is empty.
    #[error("it has no data")]
    Empty,
    /// There is too much of it.
    #[error("the file has {bytes} bytes or more, the limit is {limit}")]
    TooLarge {
        /// At least.
        bytes: usize,
        /// At most.
        limit: usize,
    },
}

/// Base64 as clients write it: with or without padding, in either alphabet.
const LENIENT: GeneralPurposeConfig = GeneralPurposeConfig::new()
    .with_decode_padding_mode(DecodePaddingMode::Indifferent)
    .with_decode_allow_trailing_bits(true);
const STANDARD: GeneralPurpose = GeneralPurpose::new(&alphabet::STANDARD, LENIENT);
const URL_SAFE: GeneralPurpose = GeneralPurpose::new(&alphabet::URL_SAFE, LENIENT);

/// Reads the file that a URL holds, at most `limit` bytes of it. The media type it claims is not believed.
///
/// # Errors
/// When it holds none.
pub fn read_url(url: &str, limit: usize) -> Result<File, FetchError> {
    let (_, data) = base64_of(url)?;
    decode(data, limit)
}

/// The data of each frame of a video in a URL: what vLLM takes, `data:video/jpeg;base64,` and then pictures with commas in
/// between. For [`read_base64`].
///
/// # Errors
/// When it holds none.
pub fn video_frames(url: &str) -> Result<std::str::Split<'_, char>, FetchError> {
    let (kind, data) = base64_of(url)?;
    match kind.to_ascii_lowercase().as_str() {
        "video/jpeg" | "video/jpg" | "video/png" | "image/jpeg" => Ok(data.split(',')),
        _ => Err(FetchError::Video),
    }
}

/// Reads a file of which only the base64 is there, such as a frame of [`video_frames`], at most `limit` bytes of it.
///
/// # Errors
/// When it is not what it should be.
pub fn read_base64(data: &str, limit: usize) -> Result<File, FetchError> {
    decode(data, limit)
}

/// The media type of a data URL, and its data, which are in base64.
fn base64_of(url: &str) -> Result<(&str, &str), FetchError> {
    let url = url.trim_ascii();
    let (scheme, rest) = url.split_once(':').ok_or(FetchError::NotUrl)?;
    if !scheme.eq_ignore_ascii_case("data") {
        let plain = scheme.len() <= 10 && scheme.bytes().all(|byte| byte.is_ascii_alphanumeric());
        let elsewhere = rest.starts_with("//") || scheme.eq_ignore_ascii_case("blob");
        return Err(match plain && elsewhere {
            true => FetchError::Scheme { scheme: scheme.to_ascii_lowercase() },
            false => FetchError::NotUrl,
        });
    }
    let (kind, data) = rest.split_once(',').ok_or(FetchError::NoComma)?;
    // Parameters may stand between the type and `base64`, which is the last.
    let mark = kind.rsplit(';').next().unwrap_or("").trim_ascii();
    if !kind.contains(';') || !mark.eq_ignore_ascii_case("base64") {
        return Err(FetchError::NotBase64);
    }
    Ok((kind.split(';').next().unwrap_or("").trim_ascii(), data))
}

fn decode(data: &str, limit: usize) -> Result<File, FetchError> {
    // Checked before anything of that size is allocated.
    let least = data.len() / 4 * 3;
    if data.len() > limit.saturating_mul(2).saturating_add(4096) {
        return Err(FetchError::TooLarge { bytes: least / 2, limit });
    }
    let engine = if data.contains(['-', '_']) { &URL_SAFE } else { &STANDARD };
    // Line breaks are common; most data has none and is not copied.
    let broken = |error: base64::DecodeError| FetchError::BadBase64 {
        reason: error.to_string().trim_end_matches('.').into(),
    };
    let file = if data.bytes().any(|byte| byte.is_ascii_whitespace()) {
        engine
            .decode(data.bytes().filter(|byte| !byte.is_ascii_whitespace()).collect::<Vec<_>>())
            .map_err(broken)?
    } else {
        engine.decode(data).map_err(broken)?
    };
    if file.len() > limit {
        return Err(FetchError::TooLarge { bytes: file.len(), limit });
    }
    if file.is_empty() {
        return Err(FetchError::Empty);
    }
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn data_urls_are_read_as_clients_write_them() {
        for url in [
            "data:image/png;base64,aGVsbG8=",
            "data:image/png;base64,aGVsbG8",
            "DATA:IMAGE/PNG;BASE64,aGVsbG8=",
            "data:image/jpg;charset=utf-8;base64,aGVsbG8=",
            "data:;base64,aGVs\nbG8=\r\n",
            " data:image/png; base64,aGVsbG8= ",
            "data:application/octet-stream;name=a.png;base64,aGVsbG8=",
        ] {
            assert_eq!(read_url(url, 5).as_deref(), Ok(b"hello".as_slice()), "{url}");
        }
        assert_eq!(read_url("data:image/png;base64,-_8", 9), Ok(vec![0xfb, 0xff]));
    }

    #[test]
    fn whatever_else_is_refused_with_its_reason() {
        let too_large = |bytes| FetchError::TooLarge { bytes, limit: 4 };
        let elsewhere = |scheme: &str| FetchError::Scheme { scheme: scheme.into() };
        for (url, error) in [
            ("http://example.com/cat.png", elsewhere("http")),
            ("HTTPS://example.com/cat.png", elsewhere("https")),
            ("file:///etc/passwd", elsewhere("file")),
            ("s3://bucket/cat.png", elsewhere("s3")),
            ("blob:https://example.com/4f", elsewhere("blob")),
            ("/etc/passwd", FetchError::NotUrl),
            ("aGVsbG8=", FetchError::NotUrl),
            ("", FetchError::NotUrl),
            ("javascript:alert(1)", FetchError::NotUrl),
            ("data:image/png;base64", FetchError::NoComma),
            ("data:image/png,hello", FetchError::NotBase64),
            ("data:base64,aGVsbG8=", FetchError::NotBase64),
            ("data:image/png;base64,", FetchError::Empty),
            ("data:image/png;base64,aGVsbG8=", too_large(5)),
        ] {
            assert_eq!(read_url(url, 4), Err(error), "{url}");
        }
        let huge = format!("data:image/png;base64,{}", "A".repeat(20_000));
        assert!(matches!(read_url(&huge, 4), Err(FetchError::TooLarge { .. })));
        assert!(matches!(read_url("data:image/png;base64,!!!!", 9), Err(FetchError::BadBase64 { .. })));
    }
}
