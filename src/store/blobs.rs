//! Contents of files: on the disk, or in any store that speaks S3.

use std::{
    fs, io,
    ops::Range,
    path::PathBuf,
    str::FromStr,
    sync::Arc,
    time::{Duration, SystemTime},
};

use bytes::Bytes;
use futures_util::{StreamExt as _, TryStreamExt as _, stream::BoxStream};
use http_body_util::BodyExt as _;
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::{
    client::legacy::Client as Pool,
    rt::{TokioExecutor, TokioTimer},
};
use object_store::{
    ClientOptions, GetOptions, GetRange, ObjectStore, ObjectStoreExt as _, WriteMultipart,
    aws::AmazonS3Builder,
    client::{
        HttpClient, HttpConnector, HttpError, HttpErrorKind, HttpRequest, HttpRequestBody, HttpResponse,
        HttpResponseBody, HttpService,
    },
    local::LocalFileSystem,
    path::Path,
    prefix::PrefixStore,
};
use tokio::io::AsyncReadExt as _;

use super::StoreError;

/// Pieces in which content goes to a store; S3 takes none smaller but the last.
const PIECE: usize = 8 << 20;
/// How long a bucket's server may take to accept a connection, and to answer a request.
const CONNECT: Duration = Duration::from_secs(10);
const PATIENCE: Duration = Duration::from_secs(120);
/// Pieces that are on their way at once.
const AT_ONCE: usize = 4;

/// Where contents are kept that are not kept on the disk: `s3://BUCKET/PREFIX`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bucket {
    name: String,
    prefix: String,
}

impl FromStr for Bucket {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let rest = text.strip_prefix("s3://").ok_or("it is no URL as s3://BUCKET or s3://BUCKET/PREFIX")?;
        let (name, prefix) = rest.split_once('/').unwrap_or((rest, ""));
        if name.is_empty() {
            return Err("it names no bucket: write s3://BUCKET or s3://BUCKET/PREFIX".into());
        }
        Ok(Self { name: name.to_owned(), prefix: prefix.trim_matches('/').to_owned() })
    }
}

impl std::fmt::Display for Bucket {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "s3://{}/{}", self.name, self.prefix)
    }
}

/// Contents by name. Names are ours, never a client's.
#[derive(Debug, Clone)]
pub(super) struct Blobs(Arc<dyn ObjectStore>);

impl Blobs {
    /// In a folder. What was written is on the disk, not only on its way there.
    pub(super) fn in_folder(folder: PathBuf) -> Result<Self, StoreError> {
        fs::create_dir_all(&folder)?;
        remove_unfinished(&folder)?;
        Ok(Self(Arc::new(LocalFileSystem::new_with_prefix(folder)?.with_fsync(true))))
    }

    /// In a bucket; where it is and who we are is in the environment, as AWS's own tools have it (`AWS_ENDPOINT_URL`,
    /// `AWS_REGION`, `AWS_ACCESS_KEY_ID`, `AWS_SECRET_ACCESS_KEY` and so on).
    pub(super) fn in_bucket(bucket: &Bucket) -> Result<Self, StoreError> {
        let store = AmazonS3Builder::from_env().with_http_connector(Connector);
        let store = store.with_bucket_name(&bucket.name).build()?;
        Ok(match bucket.prefix.as_str() {
            "" => Self(Arc::new(store)),
            prefix => Self(Arc::new(PrefixStore::new(store, prefix))),
        })
    }

    /// Keeps the content of a file under a name; says how many bytes it has.
    pub(super) async fn put(&self, name: &str, content: fs::File) -> Result<u64, StoreError> {
        let mut content = tokio::fs::File::from_std(content);
        let mut writer = self.writer(name).await?;
        let mut length = 0;
        let mut piece = vec![0; 1 << 20];
        loop {
            let read = content.read(&mut piece).await?;
            if read == 0 {
                break;
            }
            length += read as u64;
            writer.write(&piece[..read]).await?;
        }
        writer.finish().await?;
        Ok(length)
    }

    /// What takes the content of a name.
    pub(super) async fn writer(&self, name: &str) -> Result<Writer, StoreError> {
        let upload = self.0.put_multipart(&Path::from(name)).await?;
        Ok(Writer { upload: WriteMultipart::new_with_chunk_size(upload, PIECE), length: 0 })
    }

    /// The content of a name, or a part of it.
    pub(super) async fn read(
        &self,
        name: &str,
        range: Option<Range<u64>>,
    ) -> Result<BoxStream<'static, io::Result<Bytes>>, StoreError> {
        let options = GetOptions { range: range.map(GetRange::Bounded), ..GetOptions::default() };
        let found = self.0.get_opts(&Path::from(name), options).await?;
        Ok(found.into_stream().map_err(io::Error::other).boxed())
    }

    /// Names whose contents were written before a time.
    pub(super) async fn before(&self, time: SystemTime) -> Result<Vec<String>, StoreError> {
        let all = self.0.list(None).try_filter_map(async |found| {
            Ok((SystemTime::from(found.last_modified) < time).then(|| found.location.to_string()))
        });
        Ok(all.try_collect().await?)
    }

    /// Forgets a name, if there is one.
    pub(super) async fn delete(&self, name: &str) -> Result<(), StoreError> {
        match self.0.delete(&Path::from(name)).await {
            Ok(()) | Err(object_store::Error::NotFound { .. }) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}

/// Reaches a bucket by the HTTP client that the program has already.
#[derive(Debug)]
struct Connector;

impl HttpConnector for Connector {
    fn connect(&self, _: &ClientOptions) -> object_store::Result<HttpClient> {
        let mut tcp = hyper_util::client::legacy::connect::HttpConnector::new();
        tcp.enforce_http(false);
        tcp.set_connect_timeout(Some(CONNECT));
        let connector = HttpsConnectorBuilder::new()
            .with_webpki_roots()
            .https_or_http()
            .enable_http1()
            .wrap_connector(tcp);
        let pool = Pool::builder(TokioExecutor::new()).pool_timer(TokioTimer::new()).build(connector);
        Ok(HttpClient::new(Requests(pool)))
    }
}

#[derive(Debug)]
struct Requests(Pool<HttpsConnector<hyper_util::client::legacy::connect::HttpConnector>, HttpRequestBody>);

#[async_trait::async_trait]
impl HttpService for Requests {
    async fn call(&self, request: HttpRequest) -> Result<HttpResponse, HttpError> {
        let answered = tokio::time::timeout(PATIENCE, self.0.request(request)).await;
        let answered = answered.map_err(|error| HttpError::new(HttpErrorKind::Timeout, error))?;
        let response = answered.map_err(|error| {
            let kind = if error.is_connect() { HttpErrorKind::Connect } else { HttpErrorKind::Request };
            HttpError::new(kind, error)
        })?;
        let cut = |error| HttpError::new(HttpErrorKind::Interrupted, error);
        Ok(response.map(|body| HttpResponseBody::new(body.map_err(cut))))
    }
}

/// Removes what was being written when the process ended by force. `LocalFileSystem` writes to `NAME#1` and renames that;
/// it neither lists nor deletes such names, so that nobody else finds them.
fn remove_unfinished(folder: &std::path::Path) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        // Names of ours have no such sign.
        if entry.file_name().as_encoded_bytes().contains(&b'#') {
            fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

/// Takes a content in pieces. It is there as a whole when it is finished, or not at all.
pub struct Writer {
    upload: WriteMultipart,
    length: u64,
}

impl Writer {
    /// Takes more.
    ///
    /// # Errors
    /// When the store takes no more.
    pub async fn write(&mut self, piece: &[u8]) -> Result<(), StoreError> {
        self.upload.wait_for_capacity(AT_ONCE).await?;
        self.upload.write(piece);
        self.length += piece.len() as u64;
        Ok(())
    }

    /// Ends the content; says how many bytes it has.
    ///
    /// # Errors
    /// When the store does not keep it.
    pub async fn finish(self) -> Result<u64, StoreError> {
        let Self { upload, length } = self;
        upload.finish().await?;
        Ok(length)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_are_named_by_urls() {
        let of = |text: &str| text.parse::<Bucket>().map(|bucket| (bucket.name, bucket.prefix));
        assert_eq!(of("s3://a"), Ok(("a".into(), String::new())));
        assert_eq!(of("s3://a/b/c/"), Ok(("a".into(), "b/c".into())));
        for wrong in ["a", "s3://", "s3:///b", "https://a/b"] {
            assert!(of(wrong).is_err(), "{wrong}");
        }
    }
}
