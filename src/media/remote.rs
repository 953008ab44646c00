//! Files behind http and https URLs, for those servers that may fetch them: a request must not reach what only the server
//! can reach. One parser reads a URL for its check and for its use; a name is resolved once, every address that it has is
//! checked, and the connection goes to an address that was; redirects are followed by hand, each checked as the first.

use std::{
    future::Future,
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    pin::Pin,
    str::FromStr,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use http_body_util::{BodyExt as _, Empty};
use hyper::{Request, Response, Uri, body::Bytes, body::Incoming, header};
use hyper_rustls::HttpsConnectorBuilder;
use hyper_util::{
    client::legacy::Client,
    rt::{TokioExecutor, TokioIo},
};
use tokio::{net::TcpStream, sync::Semaphore, time::timeout};
use tower_service::Service;
use url::{Host, Url};

use super::{FetchError, File};

/// Most redirects of a file.
const REDIRECTS: usize = 3;
/// Most time for a file, from its name to its last byte.
const TIME: Duration = Duration::from_secs(10);
/// Most files that are fetched at once, for all requests.
const AT_ONCE: usize = 32;
/// Longest URL.
const LONGEST_URL: usize = 8_000;

/// From where files are fetched.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum FetchPolicy {
    /// From nowhere.
    #[default]
    Off,
    /// From these hosts.
    Hosts(Vec<Allowed>),
    /// From every public address.
    Public,
}

/// A host that files are fetched from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Allowed {
    /// A name, in lower case and in ASCII, or an address.
    host: Host<String>,
    /// Whether names below it are meant, and not it itself.
    below: bool,
    /// The port, where it is not that of the scheme.
    port: Option<u16>,
}

fn no_host(text: &str) -> String {
    format!(
        "'{text}' is no host to fetch from: give off, public, or hosts such as images.example.com, *.example.com or \
         10.0.0.5:8080, with commas in between"
    )
}

impl FromStr for FetchPolicy {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.trim() {
            "off" => Ok(Self::Off),
            "public" => Ok(Self::Public),
            list => list.split(',').map(Allowed::from_str).collect::<Result<_, _>>().map(Self::Hosts),
        }
    }
}

impl FromStr for Allowed {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let text = text.trim();
        let wrong = || no_host(text);
        let (below, rest) = text.strip_prefix("*.").map_or((false, text), |rest| (true, rest));
        // Read as it is when it is used.
        let url = Url::parse(&format!("http://{rest}")).map_err(|_| wrong())?;
        let plain = url.path() == "/" && url.query().is_none() && url.fragment().is_none();
        let host = url.host().map(|host| host.to_owned()).ok_or_else(wrong)?;
        let dotted = matches!(&host, Host::Domain(name) if !name.is_empty()) || !below;
        if rest.is_empty() || rest.contains(['/', '@', '*']) || !plain || !dotted {
            return Err(wrong());
        }
        Ok(Self { host: without_dot(host), below, port: url.port() })
    }
}

impl std::fmt::Display for Allowed {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let below = if self.below { "*." } else { "" };
        write!(formatter, "{below}{}", self.host)?;
        self.port.map_or(Ok(()), |port| write!(formatter, ":{port}"))
    }
}

impl std::fmt::Display for FetchPolicy {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Off => formatter.write_str("off"),
            Self::Public => formatter.write_str("public"),
            Self::Hosts(hosts) => {
                let hosts: Vec<String> = hosts.iter().map(ToString::to_string).collect();
                formatter.write_str(&hosts.join(","))
            }
        }
    }
}

impl Allowed {
    fn matches(&self, host: &Host<String>, port: Option<u16>) -> bool {
        let named = match (&self.host, host) {
            (Host::Domain(allowed), Host::Domain(name)) if self.below => name
                .strip_suffix(allowed.as_str())
                .is_some_and(|front| front.len() > 1 && front.ends_with('.')),
            (allowed, host) => !self.below && allowed == host,
        };
        named && self.port == port
    }
}

/// How names become addresses.
pub trait Resolve: std::fmt::Debug + Send + Sync {
    /// All addresses of a name.
    fn resolve(
        &self,
        name: &str,
        port: u16,
    ) -> Pin<Box<dyn Future<Output = io::Result<Vec<SocketAddr>>> + Send + '_>>;
}

/// As the system does it.
#[derive(Debug)]
struct System;

impl Resolve for System {
    fn resolve(
        &self,
        name: &str,
        port: u16,
    ) -> Pin<Box<dyn Future<Output = io::Result<Vec<SocketAddr>>> + Send + '_>> {
        let name = name.to_owned();
        Box::pin(async move { Ok(tokio::net::lookup_host((name, port)).await?.collect()) })
    }
}

/// Fetches files.
#[derive(Debug, Clone)]
pub struct Fetcher {
    policy: Arc<FetchPolicy>,
    places: Arc<Semaphore>,
    resolver: Arc<dyn Resolve>,
}

impl Fetcher {
    /// Fetches what a policy allows.
    pub fn new(policy: FetchPolicy) -> Self {
        Self::resolving(policy, Arc::new(System))
    }

    fn resolving(policy: FetchPolicy, resolver: Arc<dyn Resolve>) -> Self {
        Self { policy: Arc::new(policy), places: Arc::new(Semaphore::new(AT_ONCE)), resolver }
    }

    /// Whether a URL is one that would be fetched, if that is allowed: an http or https URL.
    pub fn is_remote(url: &str) -> bool {
        let url = url.trim_ascii();
        ["http:", "https:"]
            .iter()
            .any(|scheme| url.get(..scheme.len()).is_some_and(|front| front.eq_ignore_ascii_case(scheme)))
    }

    /// The file behind a URL, at most `limit` bytes of it. No credentials are sent, and no proxy is asked.
    ///
    /// # Errors
    /// When it may not be fetched, or is not there. What is told says nothing of addresses and of what answered.
    pub async fn fetch(&self, url: &str, limit: usize) -> Result<File, FetchError> {
        if *self.policy == FetchPolicy::Off {
            let scheme = url.trim_ascii().split(':').next().unwrap_or_default().to_ascii_lowercase();
            return Err(FetchError::Scheme { scheme });
        }
        if url.len() > LONGEST_URL {
            return Err(FetchError::LongUrl { limit: LONGEST_URL });
        }
        let url = Url::parse(url.trim_ascii()).map_err(|_| FetchError::NotUrl)?;
        let place = self.places.acquire().await;
        let fetched = timeout(TIME, self.follow(url, limit)).await;
        drop(place);
        fetched.unwrap_or(Err(FetchError::Slow { seconds: TIME.as_secs() }))
    }

    async fn follow(&self, mut url: Url, limit: usize) -> Result<File, FetchError> {
        for _ in 0..=REDIRECTS {
            let address = self.check(&url).await?;
            let response = request(&url, address).await?;
            let status = response.status();
            if !status.is_redirection() {
                if !status.is_success() {
                    return Err(FetchError::Status { status: status.as_u16() });
                }
                return body(response.into_body(), limit).await;
            }
            let location =
                response.headers().get(header::LOCATION).and_then(|location| location.to_str().ok());
            url = location.and_then(|location| url.join(location).ok()).ok_or(FetchError::Unreachable)?;
        }
        Err(FetchError::Redirects { limit: REDIRECTS })
    }

    /// An address behind a URL, if it may be fetched.
    async fn check(&self, url: &Url) -> Result<SocketAddr, FetchError> {
        if !matches!(url.scheme(), "http" | "https") || !url.username().is_empty() || url.password().is_some()
        {
            return Err(FetchError::Refused);
        }
        let host = without_dot(url.host().ok_or(FetchError::Refused)?.to_owned());
        let port = url.port_or_known_default().ok_or(FetchError::Refused)?;
        let listed = match &*self.policy {
            FetchPolicy::Off => return Err(FetchError::Refused),
            FetchPolicy::Public if url.port().is_some() => return Err(FetchError::Refused),
            FetchPolicy::Public => false,
            FetchPolicy::Hosts(hosts) => {
                if !hosts.iter().any(|allowed| allowed.matches(&host, url.port())) {
                    return Err(FetchError::Refused);
                }
                true
            }
        };
        let addresses = match &host {
            // An operator who lists an address means it, whatever kind it is of.
            Host::Ipv4(address) if listed => return Ok((*address, port).into()),
            Host::Ipv6(address) if listed => return Ok((*address, port).into()),
            Host::Ipv4(address) => vec![(*address, port).into()],
            Host::Ipv6(address) => vec![(*address, port).into()],
            Host::Domain(name) => {
                self.resolver.resolve(name, port).await.map_err(|_| FetchError::Unreachable)?
            }
        };
        if addresses.iter().any(|address| !is_public(address.ip())) {
            return Err(FetchError::Refused);
        }
        addresses.first().copied().ok_or(FetchError::Unreachable)
    }
}

/// `localhost.` is `localhost`.
fn without_dot(host: Host<String>) -> Host<String> {
    match host {
        Host::Domain(name) => Host::Domain(name.trim_end_matches('.').to_ascii_lowercase()),
        other => other,
    }
}

/// Connects to an address that was checked, whatever the URL says.
#[derive(Debug, Clone)]
struct Pinned(SocketAddr);

impl Service<Uri> for Pinned {
    type Response = TokioIo<TcpStream>;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<Self::Response>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Uri) -> Self::Future {
        let address = self.0;
        Box::pin(async move { TcpStream::connect(address).await.map(TokioIo::new) })
    }
}

async fn request(url: &Url, address: SocketAddr) -> Result<Response<Incoming>, FetchError> {
    let connector = HttpsConnectorBuilder::new()
        .with_webpki_roots()
        .https_or_http()
        .enable_http1()
        .wrap_connector(Pinned(address));
    // A client for one request: no connection is shared between requests.
    let client = Client::builder(TokioExecutor::new()).pool_max_idle_per_host(0).build(connector);
    let request = Request::get(url.as_str())
        .header(header::ACCEPT, "image/*, application/pdf, text/*")
        .header(header::USER_AGENT, concat!("percept/", env!("CARGO_PKG_VERSION")))
        .body(Empty::<Bytes>::new())
        .map_err(|_| FetchError::NotUrl)?;
    client.request(request).await.map_err(|_| FetchError::Unreachable)
}

/// A body, whatever length it claims.
async fn body(mut body: Incoming, limit: usize) -> Result<File, FetchError> {
    let mut file = Vec::new();
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|_| FetchError::Unreachable)?;
        let Ok(data) = frame.into_data() else { continue };
        if file.len() + data.len() > limit {
            return Err(FetchError::TooLarge { bytes: file.len() + data.len(), limit });
        }
        file.extend_from_slice(&data);
    }
    if file.is_empty() { Err(FetchError::Empty) } else { Ok(file) }
}

/// Whether an address belongs to the public internet, and to nothing inside another address that does not. The IANA
/// registries of special-purpose addresses, RFC 6890.
fn is_public(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => is_public_v4(address),
        IpAddr::V6(address) => is_public_v6(address),
    }
}

fn is_public_v4(address: Ipv4Addr) -> bool {
    let [a, b, c, _] = address.octets();
    let special = matches!(
        (a, b, c),
        (0 | 10 | 127 | 224..=255, ..)          // this network, private, loopback, multicast and reserved
            | (100, 64..=127, _)                // shared by carriers
            | (169, 254, _)                     // link-local, and where clouds keep their secrets
            | (172, 16..=31, _)                 // private
            | (192, 0, 0 | 2)                   // protocol assignments, documentation
            | (192, 88, 99)                     // 6to4 relays
            | (192, 168, _)                     // private
            | (198, 18..=19, _)                 // measurement
            | (198, 51, 100)                    // documentation
            | (203, 0, 113) // documentation
    );
    !special
}

fn is_public_v6(address: Ipv6Addr) -> bool {
    let parts = address.segments();
    let inner = |high: u16, low: u16| Ipv4Addr::from(u32::from(high) << 16 | u32::from(low));
    match parts {
        // Unspecified, loopback, and IPv4 inside: mapped and the older compatible.
        [0, 0, 0, 0, 0, 0, ..] => false,
        [0, 0, 0, 0, 0, 0xffff, high, low] => is_public_v4(inner(high, low)),
        // NAT64: well known, and local.
        [0x64, 0xff9b, 0, 0, 0, 0, high, low] => is_public_v4(inner(high, low)),
        [0x64, 0xff9b, 1, ..] => false,
        // Teredo, benchmarks, ORCHID, documentation.
        [0x2001, 0..=0x1ff, ..] | [0x2001, 0xdb8, ..] => false,
        [0x3fff, 0..=0xfff, ..] => false,
        [0x2002, high, low, ..] => is_public_v4(inner(high, low)),
        // Global unicast is all in here: no unique local, link-local, site-local or multicast addresses.
        [0x2000..=0x3fff, ..] => true,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{
        Mutex,
        atomic::{AtomicUsize, Ordering::SeqCst},
    };

    use tokio::{
        io::{AsyncReadExt as _, AsyncWriteExt as _},
        net::TcpListener,
    };

    use super::*;

    /// A server that answers each connection with the next of some answers, and counts them.
    struct Canary {
        port: u16,
        seen: Arc<AtomicUsize>,
        asked: Arc<Mutex<Vec<String>>>,
    }

    async fn canary(answers: Vec<String>) -> Canary {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let (seen, asked) = (Arc::new(AtomicUsize::new(0)), Arc::new(Mutex::new(Vec::new())));
        let canary = Canary { port, seen: Arc::clone(&seen), asked: Arc::clone(&asked) };
        tokio::spawn(async move {
            loop {
                let (mut stream, _) = listener.accept().await.unwrap();
                let answer =
                    answers.get(seen.fetch_add(1, SeqCst)).or(answers.last()).cloned().unwrap_or_default();
                let asked = Arc::clone(&asked);
                tokio::spawn(async move {
                    let mut request = vec![0; 4096];
                    let length = stream.read(&mut request).await.unwrap_or(0);
                    asked.lock().unwrap().push(String::from_utf8_lossy(&request[..length]).into_owned());
                    let _ = stream.write_all(answer.as_bytes()).await;
                });
            }
        });
        canary
    }

    fn found(body: &str) -> String {
        format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}", body.len())
    }

    fn moved(to: &str) -> String {
        format!("HTTP/1.1 302 Found\r\nlocation: {to}\r\ncontent-length: 0\r\nconnection: close\r\n\r\n")
    }

    /// What every name means.
    #[derive(Debug)]
    struct Names(Vec<IpAddr>, AtomicUsize);

    impl Resolve for Names {
        fn resolve(
            &self,
            _: &str,
            port: u16,
        ) -> Pin<Box<dyn Future<Output = io::Result<Vec<SocketAddr>>> + Send + '_>> {
            self.1.fetch_add(1, SeqCst);
            let addresses = self.0.iter().map(|&address| SocketAddr::new(address, port)).collect();
            Box::pin(async move { Ok(addresses) })
        }
    }

    #[tokio::test]
    async fn a_listed_host_is_fetched_and_nothing_is_told_to_it() {
        let canary = canary(vec![found("hello"), moved("/there"), found("again")]).await;
        let fetcher = Fetcher::new(format!("127.0.0.1:{}", canary.port).parse().unwrap());
        let url = format!("http://127.0.0.1:{}/a.png?b=c", canary.port);
        assert_eq!(fetcher.fetch(&url, 5).await, Ok(b"hello".to_vec()));
        // A redirect within the host.
        assert_eq!(fetcher.fetch(&url, 5).await, Ok(b"again".to_vec()));
        let asked = canary.asked.lock().unwrap().clone();
        assert!(asked[0].starts_with("GET /a.png?b=c HTTP/1.1\r\n") && asked[2].starts_with("GET /there "));
        for asked in asked.iter().map(|asked| asked.to_ascii_lowercase()) {
            assert!(!asked.contains("authorization") && !asked.contains("cookie"), "{asked}");
        }
        let error = fetcher.fetch(&url, 4).await.unwrap_err();
        assert_eq!(error, FetchError::TooLarge { bytes: 5, limit: 4 });
    }

    #[tokio::test]
    async fn bodies_and_redirects_have_bounds() {
        // A length that lies, and one without end.
        let endless =
            format!("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n{}", "5\r\nhello\r\n".repeat(100));
        let canary =
            canary(vec![endless, moved("/again"), moved("/again"), moved("/again"), moved("/again")]).await;
        let fetcher = Fetcher::new(format!("127.0.0.1:{}", canary.port).parse().unwrap());
        let url = format!("http://127.0.0.1:{}/", canary.port);
        assert!(matches!(fetcher.fetch(&url, 20).await, Err(FetchError::TooLarge { .. })));
        assert_eq!(fetcher.fetch(&url, 20).await, Err(FetchError::Redirects { limit: REDIRECTS }));
        assert_eq!(canary.seen.load(SeqCst), 1 + 1 + REDIRECTS);
        let long = format!("{url}{}", "a".repeat(LONGEST_URL));
        assert_eq!(fetcher.fetch(&long, 20).await, Err(FetchError::LongUrl { limit: LONGEST_URL }));
    }

    #[tokio::test]
    async fn redirects_are_checked_as_the_first_url() {
        let secret = canary(vec![found("secret")]).await;
        let targets = [
            format!("http://127.0.0.1:{}/", secret.port),
            format!("//localhost:{}/", secret.port),
            "http://169.254.169.254/latest/meta-data/".into(),
            "file:///etc/passwd".into(),
            "gopher://127.0.0.1/".into(),
        ];
        for target in targets {
            let open = canary(vec![moved(&target)]).await;
            let fetcher = Fetcher::new(format!("127.0.0.1:{}", open.port).parse().unwrap());
            let url = format!("http://127.0.0.1:{}/", open.port);
            assert_eq!(fetcher.fetch(&url, 99).await, Err(FetchError::Refused), "{target}");
        }
        assert_eq!(secret.seen.load(SeqCst), 0);
    }

    /// Every way to write an address that is not public, and to make a parser see another host than the connection.
    #[tokio::test]
    async fn nothing_inside_is_reached() {
        let canary = canary(vec![found("secret")]).await;
        let port = canary.port;
        let loopback: Arc<Names> = Arc::new(Names(vec![Ipv4Addr::LOCALHOST.into()], AtomicUsize::new(0)));
        let hosts = [
            "127.0.0.1",
            "127.1",
            "2130706433",
            "0x7f000001",
            "0177.0.0.1",
            "0.0.0.0",
            "0",
            "localhost",
            "localhost.",
            "LOCALHOST",
            "canary.local",
            "[::1]",
            "[::]",
            "[::ffff:127.0.0.1]",
            "[::127.0.0.1]",
            "[64:ff9b::7f00:1]",
            "[64:ff9b:1::1]",
            "[2002:7f00:1::]",
            "[2001:0:1::1]",
            "[fe80::1]",
            "[fc00::1]",
            "[fec0::1]",
            "[ff02::1]",
            "[2001:db8::1]",
            "10.1.2.3",
            "172.16.0.1",
            "172.31.255.255",
            "192.168.0.1",
            "169.254.169.254",
            "100.64.0.1",
            "192.0.0.1",
            "192.0.2.1",
            "198.18.0.1",
            "198.51.100.1",
            "203.0.113.1",
            "224.0.0.1",
            "240.0.0.1",
            "255.255.255.255",
            "\u{ff11}\u{ff12}\u{ff17}.0.0.1",
            "127\u{3002}0\u{3002}0\u{3002}1",
            "user@127.0.0.1",
            "ok.test@127.0.0.1",
            "ok.test\\@127.0.0.1",
            "127.0.0.1#@ok.test",
            "127.0.0.1?@ok.test",
        ];
        for policy in ["public", "ok.test"] {
            let fetcher = Fetcher::resolving(policy.parse().unwrap(), loopback.clone());
            for host in hosts {
                for url in [
                    format!("http://{host}/"),
                    format!("http://{host}:{port}/"),
                    format!("ht\ntp://{host}:{port}/x"),
                ] {
                    let error = fetcher.fetch(&url, 99).await.unwrap_err();
                    assert!(
                        matches!(error, FetchError::Refused | FetchError::NotUrl),
                        "{policy} {url}: {error:?}"
                    );
                    assert!(!error.to_string().contains("127"), "{error}");
                }
            }
            for url in
                ["file:///etc/passwd", "ftp://ok.test/", "//ok.test/", "/etc/passwd", "http:///", "http://"]
            {
                assert!(fetcher.fetch(url, 99).await.is_err(), "{url}");
            }
        }
        // A name on the list that leads inside is still not followed.
        let listed = Fetcher::resolving(format!("ok.test:{port}").parse().unwrap(), loopback.clone());
        assert_eq!(listed.fetch(&format!("http://ok.test:{port}/"), 99).await, Err(FetchError::Refused));
        // One address inside among others is enough.
        let mixed = Names(
            vec![Ipv4Addr::new(93, 184, 215, 14).into(), Ipv4Addr::LOCALHOST.into()],
            AtomicUsize::new(0),
        );
        let mixed = Arc::new(mixed);
        let fetcher = Fetcher::resolving(FetchPolicy::Public, mixed.clone());
        assert_eq!(fetcher.fetch("http://ok.test/", 99).await, Err(FetchError::Refused));
        assert_eq!(mixed.1.load(SeqCst), 1, "a name is resolved once");
        assert_eq!(canary.seen.load(SeqCst), 0);
    }

    #[test]
    fn public_addresses_are_told_from_others() {
        for public in [
            "8.8.8.8",
            "93.184.215.14",
            "172.15.0.1",
            "172.32.0.1",
            "100.128.0.1",
            "2606:4700::1111",
            "2a00::1",
        ] {
            assert!(is_public(public.parse().unwrap()), "{public}");
        }
        for inside in ["64:ff9b::a00:1", "2002:a00:1::", "::ffff:10.0.0.1", "::a00:1", "3fff::1", "5f00::1"] {
            assert!(!is_public(inside.parse().unwrap()), "{inside}");
        }
    }

    #[test]
    fn policies_are_read_and_written() {
        for text in ["off", "public", "a.example,*.b.example,10.0.0.5:8080,[::1]:80"] {
            let policy: FetchPolicy = text.parse().unwrap();
            assert_eq!(policy.to_string(), text.replace("[::1]:80", "[::1]"));
        }
        for wrong in ["", "a b", "http://a", "*", "*.", "a/b", "u@a", "a,,b", "*.1.2.3.4", "a.*.b"] {
            assert!(wrong.parse::<FetchPolicy>().is_err(), "{wrong}");
        }
        let below: Allowed = "*.b.example".parse().unwrap();
        let host = |name: &str| Host::Domain(name.to_owned());
        assert!(below.matches(&host("a.b.example"), None) && below.matches(&host("x.a.b.example"), None));
        for other in ["b.example", "ab.example", ".b.example", "b.example.evil"] {
            assert!(!below.matches(&host(other), None), "{other}");
        }
        assert!(!below.matches(&host("a.b.example"), Some(8080)));
    }
}
