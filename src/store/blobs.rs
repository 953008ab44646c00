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
    ClientOptions, GetOptions, GetRange, MultipartUpload, ObjectStore, ObjectStoreExt as _, WriteMultipart,
    aws::AmazonS3Builder,
    client::{
        HttpClient, HttpConnector, HttpError, HttpErrorKind, HttpRequest, HttpRequestBody, HttpResponse,
        HttpResponseBody, HttpService,
    },
    local::LocalFileSystem,
    path::Path,
    prefix::PrefixStore,
};
use tokio::{io::AsyncReadExt as _, runtime::Handle};
use tracing::warn;

use super::StoreError;

/// Pieces in which content goes to a store; S3 takes none smaller but the last.
const PIECE: usize = 8 << 20;
/// How long a bucket's server may take to accept a connection, and to answer a request.
const CONNECT: Duration = Duration::from_secs(10);
const PATIENCE: Duration = Duration::from_secs(120);
/// Pieces that are on their way at once.
const AT_ONCE: usize = 4;
/// How far a bucket's clock may be from this machine's.
const SKEW: Duration = Duration::from_secs(3600);

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
pub(super) struct Blobs {
    objects: Arc<dyn ObjectStore>,
    /// What stands in front of the names of new contents, where there may be those of others.
    part: Option<Arc<str>>,
    /// What is older is not ours.
    since: SystemTime,
    /// How far the clock of what keeps them may be from ours.
    skew: Duration,
}

impl Blobs {
    /// In a folder that had nothing of ours before `since`. What was written is on the disk, not only on its way there.
    pub(super) fn in_folder(folder: PathBuf, since: SystemTime) -> Result<Self, StoreError> {
        fs::create_dir_all(&folder)?;
        remove_unfinished(&folder)?;
        let objects = Arc::new(LocalFileSystem::new_with_prefix(folder)?.with_fsync(true));
        Ok(Self { objects, part: None, since, skew: Duration::ZERO })
    }

    /// In a bucket, where `store` tells ours from those of others; where it is and who we are is in the environment, as
    /// AWS's own tools have it (`AWS_ENDPOINT_URL`, `AWS_REGION`, `AWS_ACCESS_KEY_ID`, `AWS_SECRET_ACCESS_KEY` and so on).
    pub(super) fn in_bucket(bucket: &Bucket, store: String) -> Result<Self, StoreError> {
        let objects = AmazonS3Builder::from_env().with_http_connector(Connector);
        let objects = objects.with_bucket_name(&bucket.name).build()?;
        let objects: Arc<dyn ObjectStore> = match bucket.prefix.as_str() {
            "" => Arc::new(objects),
            prefix => Arc::new(PrefixStore::new(objects, prefix)),
        };
        Ok(Self::shared(objects, store))
    }

    /// Among those of others.
    pub(super) fn shared(objects: Arc<dyn ObjectStore>, store: String) -> Self {
        Self { objects, part: Some(store.into()), since: SystemTime::UNIX_EPOCH, skew: SKEW }
    }

    /// How the content of a new file is called.
    pub(super) fn name(&self, id: &str) -> String {
        self.part.as_ref().map_or_else(|| id.to_owned(), |part| format!("{part}/{id}"))
    }

    /// Writes the content of a file under a name. It is there when the writer is finished.
    pub(super) async fn put(&self, name: &str, content: fs::File) -> Result<Writer, StoreError> {
        let mut content = tokio::fs::File::from_std(content);
        let mut writer = self.writer(name).await?;
        let mut piece = vec![0; 1 << 20];
        loop {
            let read = content.read(&mut piece).await?;
            if read == 0 {
                return Ok(writer);
            }
            writer.write(&piece[..read]).await?;
        }
    }

    /// What takes the content of a name.
    pub(super) async fn writer(&self, name: &str) -> Result<Writer, StoreError> {
        Ok(Writer::new(self.objects.put_multipart(&Path::from(name)).await?))
    }

    /// The content of a name, or a part of it.
    pub(super) async fn read(
        &self,
        name: &str,
        range: Option<Range<u64>>,
    ) -> Result<BoxStream<'static, io::Result<Bytes>>, StoreError> {
        let options = GetOptions { range: range.map(GetRange::Bounded), ..GetOptions::default() };
        let found = self.objects.get_opts(&Path::from(name), options).await?;
        Ok(found.into_stream().map_err(io::Error::other).boxed())
    }

    /// Names of ours whose contents were written before a time, by any clock.
    pub(super) async fn written_before(&self, time: SystemTime) -> Result<Vec<String>, StoreError> {
        let (since, until) = (self.since, time - self.skew);
        let part = self.part.as_deref().map(Path::from);
        let ours = self.objects.list(part.as_ref()).try_filter_map(async |found| {
            let id = found.location.filename().unwrap_or("");
            let name = found.location.to_string();
            let is_ours = is_id(id) && name == self.name(id);
            let written = SystemTime::from(found.last_modified);
            Ok((is_ours && (since..until).contains(&written)).then_some(name))
        });
        Ok(ours.try_collect().await?)
    }

    /// Forgets a name, if there is one.
    pub(super) async fn delete(&self, name: &str) -> Result<(), StoreError> {
        match self.objects.delete(&Path::from(name)).await {
            Ok(()) | Err(object_store::Error::NotFound { .. }) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}

/// Whether a name is one that we give to files. Whatever else is there is somebody else's.
fn is_id(name: &str) -> bool {
    let digits = name.strip_prefix("file-").or_else(|| name.strip_prefix("file_"));
    let is_digit = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
    digits.is_some_and(|digits| digits.len() == 32 && digits.bytes().all(is_digit))
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
        let name = entry.file_name();
        let known = name.to_str().and_then(|name| name.split_once('#'));
        if known.is_some_and(|(id, _)| is_id(id)) {
            fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

/// Takes a content in pieces. It is there as a whole when it is finished, or not at all: what is dropped before is given
/// up, or a bucket would keep its pieces for ever.
pub struct Writer {
    /// There is none once it is finished.
    upload: Option<WriteMultipart>,
    length: u64,
}

impl Writer {
    fn new(upload: Box<dyn MultipartUpload>) -> Self {
        Self { upload: Some(WriteMultipart::new_with_chunk_size(upload, PIECE)), length: 0 }
    }

    /// Takes more.
    ///
    /// # Errors
    /// When the store takes no more.
    pub async fn write(&mut self, piece: &[u8]) -> Result<(), StoreError> {
        if let Some(upload) = &mut self.upload {
            upload.wait_for_capacity(AT_ONCE).await?;
            upload.write(piece);
            self.length += piece.len() as u64;
        }
        Ok(())
    }

    /// Ends the content; says how many bytes it has.
    ///
    /// # Errors
    /// When the store does not keep it.
    pub async fn finish(mut self) -> Result<u64, StoreError> {
        if let Some(upload) = self.upload.take() {
            // It gives up by itself what fails.
            upload.finish().await?;
        }
        Ok(self.length)
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        if let (Some(upload), Ok(runtime)) = (self.upload.take(), Handle::try_current()) {
            runtime.spawn(async move {
                if let Err(error) = upload.abort().await {
                    warn!(%error, "pieces of a content that was given up are left");
                }
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

    use object_store::{Extensions, PutPayload, PutResult, UploadPart};

    use super::*;

    /// An upload that counts how often it is given up.
    #[derive(Debug)]
    struct Counting(Arc<AtomicUsize>);

    #[async_trait::async_trait]
    impl MultipartUpload for Counting {
        fn put_part(&mut self, _: PutPayload) -> UploadPart {
            Box::pin(async { Ok(()) })
        }

        async fn complete(&mut self) -> object_store::Result<PutResult> {
            Ok(PutResult { e_tag: None, version: None, extensions: Extensions::new() })
        }

        async fn abort(&mut self) -> object_store::Result<()> {
            self.0.fetch_add(1, Relaxed);
            Ok(())
        }
    }

    #[tokio::test]
    async fn an_upload_that_is_dropped_is_given_up() {
        let count = Arc::new(AtomicUsize::new(0));
        let begin = || Writer::new(Box::new(Counting(Arc::clone(&count))));
        let mut finished = begin();
        finished.write(b"all of it").await.unwrap();
        assert_eq!(finished.finish().await.unwrap(), 9);
        let mut dropped = begin();
        dropped.write(&vec![0; PIECE + 1]).await.unwrap();
        drop(dropped);
        while count.load(Relaxed) == 0 {
            tokio::task::yield_now().await;
        }
        assert_eq!(count.load(Relaxed), 1);
    }

    #[test]
    fn names_of_ours_are_known() {
        let digits = "0123456789abcdef0123456789abcdef";
        for ours in [format!("file-{digits}"), format!("file_{digits}")] {
            assert!(is_id(&ours), "{ours}");
        }
        for other in
            ["", digits, "file-", "file-0123", &format!("batch_{digits}"), &format!("file-{digits}#1")]
        {
            assert!(!is_id(other), "{other}");
        }
    }

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
