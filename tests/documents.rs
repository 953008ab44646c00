//! Documents in conversations: what becomes of their pages, and what is refused.
#![allow(clippy::unwrap_used, reason = "tests")]

mod support;

use std::time::Duration;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use flate2::{Compress, Compression, FlushCompress};
use percept::{
    config::Settings,
    media::{
        DocumentLimits, Header, Picture, decode,
        document::{DocumentError, Page, ReadError, Readers},
    },
};
use serde_json::{Value, json};
use support::{
    pdf,
    server::{Server, check_error, data_url, data_url_of, image_part, start, words},
};

const LIMITS: DocumentLimits =
    DocumentLimits { bytes: 32_000_000, pages: 100, time: Duration::from_secs(60) };

fn readers() -> Readers {
    Readers::new(env!("CARGO_BIN_EXE_percept").into())
}

async fn contents(file: &[u8]) -> Result<Vec<Page>, DocumentError> {
    readers().contents(file, LIMITS.pages, &LIMITS).await.map_err(|error| match error {
        ReadError::Document(error) => error,
        ReadError::Start { .. } => panic!("{error}"),
    })
}

async fn picture(file: &[u8], size: (u16, u16)) -> (Vec<u8>, Picture) {
    let pictures = readers().pictures(file, vec![size], &LIMITS).await.unwrap();
    let header = Header::read(&pictures[0], 10_000, 10_000_000).unwrap();
    (pictures[0].clone(), decode(&pictures[0], header).unwrap())
}

fn pdf_url(file: &[u8]) -> String {
    format!("data:application/pdf;base64,{}", STANDARD.encode(file))
}

fn file_part(file: &[u8]) -> Value {
    json!({"type": "file", "file": {"filename": "a.pdf", "file_data": pdf_url(file)}})
}

fn chat(content: &Value) -> Value {
    json!({"model": "llava", "messages": [{"role": "user", "content": content}], "temperature": 0, "max_tokens": 8})
}

fn text(text: &str) -> Value {
    json!({"type": "text", "text": text})
}

#[tokio::test]
async fn what_is_written_is_read_as_it_stands_on_the_page() {
    let program = |program: &str| pdf::pages(&[pdf::stream("", program.as_bytes())], "", &[]);
    for (name, file, expected) in [
        ("a line", pdf::texts(&["Hello, world"]), "Hello, world"),
        ("two lines", program("BT /F 12 Tf 20 70 Td (first) Tj 0 -14 Td (second) Tj ET"), "first\nsecond"),
        (
            "two paragraphs",
            program("BT /F 12 Tf 20 90 Td (first) Tj 0 -40 Td (second) Tj ET"),
            "first\n\nsecond",
        ),
        // As TeX writes it: spaces are gaps, and letters are moved towards each other.
        (
            "gaps",
            program("BT /F 12 Tf 20 70 Td [(W) 80 (ords) -333 (without) -333 (spaces)] TJ ET"),
            "Words without spaces",
        ),
        ("an index", program("BT /F 12 Tf 20 70 Td (x) Tj /F 8 Tf 0 -3 Td ( ) Tj 6 0 Td (2) Tj ET"), "x 2"),
        // Filled and stroked, and twice for bold letters.
        ("bold", program("BT /F 12 Tf 2 Tr 20 70 Td (bold) Tj 0.2 0 Td (bold) Tj ET"), "bold"),
        ("a picture of text with its text", program("BT /F 12 Tf 3 Tr 20 70 Td (hidden) Tj ET"), "hidden"),
        ("turned", program("BT /F 12 Tf 0 1 -1 0 50 20 Tm (up) Tj ( and on) Tj ET"), "up and on"),
        ("no text", program("1 0 0 rg 0 0 100 100 re f"), ""),
    ] {
        let pages = contents(&file).await.unwrap();
        let expected = Page { width: 200.0, height: 100.0, text: expected.into() };
        assert_eq!(pages, [expected], "{name}");
    }
    let pages = contents(&pdf::texts(&["one", "two", "three"])).await.unwrap();
    assert_eq!(pages.iter().map(|page| &*page.text).collect::<Vec<_>>(), ["one", "two", "three"]);
}

#[tokio::test]
async fn pages_are_drawn_in_the_size_that_is_asked_for() {
    let image = pdf::stream(
        "/Subtype /Image /Width 2 /Height 1 /ColorSpace /DeviceRGB /BitsPerComponent 8",
        &[0, 0, 255, 0, 255, 0],
    );
    let program = pdf::stream("", b"1 0 0 rg 0 0 100 100 re f q 50 0 0 100 150 0 cm /I Do Q");
    let file = pdf::pages(&[program], "/XObject << /I 4 0 R >>", &[image]);
    for (width, height) in [(400, 200), (33, 17), (1568, 784)] {
        let (_, drawn) = picture(&file, (width, height)).await;
        let (width, height) = (usize::from(width), usize::from(height));
        assert_eq!((drawn.width, drawn.height), (width, height));
        let at = |x: f64, y: f64| {
            let at = 3 * ((y * height as f64) as usize * width + (x * width as f64) as usize);
            [drawn.rgb[at], drawn.rgb[at + 1], drawn.rgb[at + 2]]
        };
        assert_eq!(at(0.25, 0.5), [255, 0, 0]);
        assert_eq!(at(0.6, 0.5), [255, 255, 255]);
        assert_eq!((at(0.78, 0.9), at(0.97, 0.1)), ([0, 0, 255], [0, 255, 0]));
    }
    // Letters are dark on white, and where they should be.
    let (_, drawn) = picture(&pdf::texts(&["HHHHHH"]), (400, 200)).await;
    let dark: Vec<usize> = (0..drawn.rgb.len() / 3).filter(|pixel| drawn.rgb[3 * pixel] < 64).collect();
    assert!(dark.len() > 300, "only {} pixels are dark", dark.len());
    assert!(dark.iter().all(|pixel| (38..146).contains(&(pixel % 400)) && (35..65).contains(&(pixel / 400))));
}

/// The parts that a document of one page becomes.
async fn unfolded(file: &[u8], written: &str) -> Value {
    let (png, _) = picture(file, (672, 336)).await;
    let before = "<document>\n<title>a.pdf</title>\n<page number=\"1\">\n";
    json!([
        text(before),
        image_part(&data_url_of(&png)),
        text(&format!("\n{written}\n</page>\n</document>\nwhat is it?"))
    ])
}

#[tokio::test]
async fn a_page_is_its_picture_and_its_text_in_every_api() {
    let server = start(Settings::default()).await;
    let file = pdf::texts(&["a red house"]);
    let expected = server.ask(&chat(&unfolded(&file, "a red house").await)).await;
    let same = |answer: &Value, what: &str| {
        assert_eq!(answer["choices"], expected["choices"], "{what}");
        assert_eq!(answer["usage"]["prompt_tokens"], expected["usage"]["prompt_tokens"], "{what}");
    };
    let question = text("what is it?");
    same(&server.ask(&chat(&json!([file_part(&file), question]))).await, "a data URL");
    let bare = json!({"type": "file", "file": {"filename": "a.pdf", "file_data": STANDARD.encode(&file)}});
    same(&server.ask(&chat(&json!([bare, question]))).await, "base64");

    let said = &expected["choices"][0]["message"]["content"];
    let part = json!({"type": "input_file", "filename": "a.pdf", "file_data": pdf_url(&file)});
    let content = json!([part, {"type": "input_text", "text": "what is it?"}]);
    let body = json!({"model": "llava", "input": [{"role": "user", "content": content}], "temperature": 0, "max_output_tokens": 8});
    let answer: Value = server.post_to("/v1/responses", &body).await.json().await.unwrap();
    assert_eq!(&answer["output"][0]["content"][0]["text"], said);
    assert_eq!(answer["usage"]["input_tokens"], expected["usage"]["prompt_tokens"]);

    let source = json!({"type": "base64", "media_type": "application/pdf", "data": STANDARD.encode(&file)});
    let block =
        json!({"type": "document", "source": source, "title": "a.pdf", "citations": {"enabled": true}});
    let content = json!([block, question]);
    let mut body = json!({"model": "llava", "messages": [{"role": "user", "content": content}]});
    let counted: Value = server.post_to("/v1/messages/count_tokens", &body).await.json().await.unwrap();
    assert_eq!(counted["input_tokens"], expected["usage"]["prompt_tokens"]);
    body["max_tokens"] = json!(8);
    body["temperature"] = json!(0);
    let answer: Value = server.post_to("/v1/messages", &body).await.json().await.unwrap();
    assert_eq!(&answer["content"][0]["text"], said, "{answer}");

    // Another page is another prompt.
    let other =
        server.ask(&chat(&json!([file_part(&pdf::texts(&["a red house with a door"])), question]))).await;
    assert_ne!(other["usage"]["prompt_tokens"], expected["usage"]["prompt_tokens"]);
}

#[tokio::test]
async fn documents_and_pictures_keep_their_places_and_are_counted() {
    let server = start(Settings::default()).await;
    let photo = || image_part(&data_url("square_56x56.png"));
    let two = pdf::texts(&["one", "two"]);
    let sizes = vec![(672, 336); 2];
    let pages = readers().pictures(&two, sizes, &LIMITS).await.unwrap();
    let by_hand = json!([
        text("first"),
        photo(),
        text("<document>\n<title>a.pdf</title>\n<page number=\"1\">\n"),
        image_part(&data_url_of(&pages[0])),
        text("\none\n</page>\n<page number=\"2\">\n"),
        image_part(&data_url_of(&pages[1])),
        text("\ntwo\n</page>\n</document>\n<document>\nplain text\n</document>"),
        photo(),
        text("last"),
    ]);
    let plain = json!({"type": "file", "file": {"file_data": STANDARD.encode("plain text")}});
    let sent = json!([text("first"), photo(), file_part(&two), plain, photo(), text("last")]);
    let (expected, answer) = (server.ask(&chat(&by_hand)).await, server.ask(&chat(&sent)).await);
    assert_eq!(answer["choices"], expected["choices"]);
    assert_eq!(answer["usage"]["prompt_tokens"], expected["usage"]["prompt_tokens"]);
    // Each page is a picture for whoever counts them.
    let usage: Value = server.get("/v1/usage").await.json().await.unwrap();
    assert_eq!(usage["total"]["images"], 8, "{usage}");
}

#[tokio::test]
async fn what_cannot_be_read_is_told_with_its_field() {
    let server =
        start(Settings { max_document_bytes: Some("100kB".parse().unwrap()), ..Settings::default() }).await;
    let good = pdf::texts(&["good"]);
    let locked = {
        let key = "/Filter /Standard /V 1 /R 2 /P -4 /Length 40";
        let secret = "00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff";
        let lock = format!("/Encrypt << {key} /O <{secret}> /U <{secret}> >> /ID [<00> <00>]");
        let objects =
            [b"<< /Type /Catalog /Pages 2 0 R >>".to_vec(), b"<< /Type /Pages /Count 0 /Kids [] >>".to_vec()];
        pdf::file(&objects, &lock)
    };
    let empty = pdf::file(
        &[b"<< /Type /Catalog /Pages 2 0 R >>".to_vec(), b"<< /Type /Pages /Count 0 /Kids [] >>".to_vec()],
        "",
    );
    let png = std::fs::read(support::fixtures().join("inputs/square_56x56.png")).unwrap();
    let here = "messages[0].content[0].file.";
    for (name, file, code, part) in [
        ("empty", Vec::new(), "invalid_file_url", "no data"),
        ("a picture", png, "invalid_file", "no PDF"),
        ("cut", good[..good.len() / 2].to_vec(), "invalid_file", "cut off"),
        ("a header", b"%PDF-1.7 ...".to_vec(), "invalid_file", "cut off"),
        ("nothing between", b"%PDF-1.7\nstartxref\n0\n%%EOF".to_vec(), "invalid_file", "broken"),
        ("locked", locked, "invalid_file", "password"),
        ("without pages", empty, "invalid_file", "PDF"),
        ("too many pages", pdf::texts(&["x"; 101]), "file_too_large", "101 pages or more; the limit is 100"),
        ("too large", vec![b'a'; 100_001], "invalid_file_url", "the limit is 100000"),
    ] {
        let (status, error) = server.refuse(&chat(&json!([file_part(&file)]))).await;
        let message = error["message"].as_str().unwrap();
        assert_eq!((status, error["code"].as_str()), (400, Some(code)), "{name}: {message}");
        assert_eq!(error["param"], format!("{here}file_data"), "{name}");
        assert!(message.contains(part), "{name}: {message}");
    }
    for (file, field, code, part) in [
        (json!({"file_id": "file-1"}), "file_id", "unsupported_parameter", "--files"),
        (
            json!({"file_url": "https://a.b/c.pdf"}),
            "file_url",
            "invalid_file_url",
            "send the file as a data URL, data:application/pdf",
        ),
        (json!({"file_data": "data:application/pdf,x"}), "file_data", "invalid_file_url", "base64"),
        (json!({"file_data": "!"}), "file_data", "invalid_file_url", "base64"),
        (json!({}), "file_data", "missing_required_parameter", "file_data"),
        (json!({"filename": "a.pdf"}), "file_data", "missing_required_parameter", "file_data"),
    ] {
        let (status, error) = server.refuse(&chat(&json!([{"type": "file", "file": file}]))).await;
        let message = error["message"].as_str().unwrap();
        assert_eq!((status, error["code"].as_str()), (400, Some(code)), "{message}");
        assert_eq!(error["param"], format!("{here}{field}"));
        assert!(message.contains(part), "{message}");
    }
    // All documents of a request together.
    let many = file_part(&pdf::texts(&["x"; 60]));
    let (_, error) = server.refuse(&chat(&json!([many, many]))).await;
    assert!(error["message"].as_str().unwrap().contains("120 pages or more; the limit is 100"), "{error}");
    assert_eq!(error["param"], "messages[0].content[1].file.file_data");
    // The question goes on behind all of that.
    server.ask(&chat(&json!([file_part(&good), text("what?")]))).await;
    server.idle().await;
}

#[tokio::test]
async fn a_limit_is_reached_and_not_passed() {
    // One more page than fits would be too much for the pictures; they become smaller instead.
    let settings =
        Settings { max_document_pages: Some(3), max_request_pixels: Some(900_000), ..Settings::default() };
    let server = start(settings).await;
    let answer = server.ask(&chat(&json!([file_part(&pdf::texts(&["a", "b", "c"]))]))).await;
    assert!(answer["usage"]["prompt_tokens"].as_u64().unwrap() > 3 * 16);
    let (status, error) = server.refuse(&chat(&json!([file_part(&pdf::texts(&["a"; 4]))]))).await;
    assert_eq!((status, &error["code"]), (400, &json!("file_too_large")));
}

/// A stream that becomes so many times 16 MiB of zeros.
fn zeros(times: usize) -> Vec<u8> {
    let mut compress = Compress::new(Compression::best(), false);
    let block = vec![0; 16 << 20];
    let mut compressed = Vec::with_capacity(1 << 20);
    compress.compress_vec(&block, &mut compressed, FlushCompress::Full).unwrap();
    assert_eq!(compress.total_in(), block.len() as u64);
    let mut data = vec![0x78, 0x9c];
    data.extend(compressed.repeat(times));
    data.extend([3, 0]);
    pdf::stream("/Filter /FlateDecode", &data)
}

async fn survives(server: &Server, name: &str, file: &[u8], codes: &[&str]) {
    let response = server.post(&chat(&json!([file_part(file), text("what?")]))).await;
    let status = response.status();
    let body: Value = response.json().await.unwrap();
    if status == 200 {
        assert!(codes.contains(&"ok"), "{name}: {body}");
    } else {
        check_error(&body);
        let code = body["error"]["code"].as_str().unwrap();
        assert!(status == 400 && codes.contains(&code), "{name}: {body}");
    }
    server.ask(&words("are you there?")).await;
}

#[tokio::test]
async fn bombs_end_the_process_that_reads_them_and_nothing_else() {
    let settings = Settings { max_document_seconds: Some(3), ..Settings::default() };
    let server = start(settings).await;
    // 4 GiB of a page's program.
    survives(&server, "zeros", &pdf::pages(&[zeros(256)], "", &[]), &["file_too_large"]).await;
    // Pictures of pictures: ten times ten times ten and so on.
    let form = |next: usize| {
        let entries = format!(
            "/Type /XObject /Subtype /Form /BBox [0 0 200 100] /Resources << /XObject << /X {next} 0 R >> >>"
        );
        pdf::stream(&entries, "/X Do ".repeat(10).as_bytes())
    };
    let forms: Vec<Vec<u8>> = (5..20)
        .map(form)
        .chain([pdf::stream("/Type /XObject /Subtype /Form /BBox [0 0 200 100]", b"0 0 9 9 re f")])
        .collect();
    let laughs = pdf::pages(&[pdf::stream("", b"/X Do")], "/XObject << /X 4 0 R >>", &forms);
    survives(&server, "laughs", &laughs, &["file_too_large", "invalid_file", "ok"]).await;
    // A form inside of itself.
    let entries =
        "/Type /XObject /Subtype /Form /BBox [0 0 200 100] /Resources << /XObject << /X 4 0 R >> >>";
    let itself = pdf::pages(
        &[pdf::stream("", b"/X Do")],
        "/XObject << /X 4 0 R >>",
        &[pdf::stream(entries, b"/X Do")],
    );
    survives(&server, "itself", &itself, &["file_too_large", "invalid_file", "ok"]).await;
    // Lists in lists, in the file and in a page's program.
    let nested = [b"[".repeat(1 << 20), b"]".repeat(1 << 20)].concat();
    survives(
        &server,
        "lists",
        &pdf::pages(&[pdf::stream("", &nested)], "", &[]),
        &["file_too_large", "invalid_file", "ok"],
    )
    .await;
    survives(
        &server,
        "object",
        &pdf::pages(&[pdf::stream("", b"")], "/XObject << /X 4 0 R >>", &[nested]),
        &["file_too_large", "invalid_file", "ok"],
    )
    .await;
    // A picture that says it is huge.
    let huge = pdf::stream(
        "/Subtype /Image /Width 2000000000 /Height 2000000000 /ColorSpace /DeviceRGB /BitsPerComponent 8",
        b"abc",
    );
    let huge =
        pdf::pages(&[pdf::stream("", b"q 200 0 0 100 0 0 cm /I Do Q")], "/XObject << /I 4 0 R >>", &[huge]);
    survives(&server, "huge", &huge, &["file_too_large", "invalid_file", "ok"]).await;
    // A page that says it is huge, or is nothing.
    for size in ["0 0 1e30 1e30", "0 0 0 0", "0 0 1e-9 1e9", "5 5 -5 -5"] {
        let objects = [
            b"<< /Type /Catalog /Pages 2 0 R >>".to_vec(),
            b"<< /Type /Pages /Count 1 /Kids [ 3 0 R ] >>".to_vec(),
            format!("<< /Type /Page /Parent 2 0 R /MediaBox [{size}] >>").into_bytes(),
        ];
        survives(
            &server,
            size,
            &pdf::file(&objects, ""),
            &["file_too_large", "invalid_file", "invalid_image", "ok"],
        )
        .await;
    }
    // Pages that are their own.
    let objects = [
        b"<< /Type /Catalog /Pages 2 0 R >>".to_vec(),
        b"<< /Type /Pages /Count 1000000000 /Kids [ 2 0 R 2 0 R ] >>".to_vec(),
    ];
    survives(&server, "pages", &pdf::file(&objects, ""), &["file_too_large", "invalid_file", "ok"]).await;
    server.idle().await;
}

#[tokio::test]
async fn a_broken_byte_does_no_harm() {
    let server = start(Settings::default()).await;
    let file = pdf::texts(&["a text", "another"]);
    for place in (0..file.len()).step_by(file.len() / 24) {
        let mut broken = file.clone();
        broken[place] ^= 0x55;
        survives(&server, &format!("byte {place}"), &broken, &["ok", "invalid_file", "file_too_large"]).await;
    }
}

#[tokio::test]
async fn documents_are_fetched_where_pictures_are() {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let listener = tokio::net::TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let file = pdf::texts(&["from afar"]);
    let sent = file.clone();
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            let _ = stream.read(&mut vec![0; 4096]).await;
            let head =
                format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\nconnection: close\r\n\r\n", sent.len());
            let _ = stream.write_all(&[head.as_bytes(), &sent].concat()).await;
        }
    });
    let policy = format!("127.0.0.1:{port}").parse().unwrap();
    let server = start(Settings { fetch: Some(policy), ..Settings::default() }).await;
    let url = format!("http://127.0.0.1:{port}/a.pdf");
    let given = json!({"type": "file", "file": {"file_data": pdf_url(&file)}});
    let expected = server.ask(&chat(&json!([given, text("what?")]))).await;
    let part = json!({"type": "file", "file": {"file_url": url}});
    let fetched = server.ask(&chat(&json!([part, text("what?")]))).await;
    assert_eq!(fetched["choices"], expected["choices"]);
    let block = json!({"type": "document", "source": {"type": "url", "url": url}});
    let body = json!({"model": "llava", "max_tokens": 8, "temperature": 0, "messages": [{"role": "user", "content": [block, text("what?")]}]});
    let answer: Value = server.post_to("/v1/messages", &body).await.json().await.unwrap();
    assert_eq!(answer["content"][0]["text"], expected["choices"][0]["message"]["content"]);
    let elsewhere = json!({"type": "file", "file": {"file_url": "http://169.254.169.254/a.pdf"}});
    let (status, error) = server.refuse(&chat(&json!([elsewhere]))).await;
    assert_eq!((status, &error["code"]), (400, &json!("invalid_file_url")));
}
