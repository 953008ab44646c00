//! PDF files, as small as they can be.

use std::fmt::Write as _;

/// A file of these objects, numbered from 1, of which the first is the catalogue.
pub fn file(objects: &[Vec<u8>], trailer: &str) -> Vec<u8> {
    let mut file = b"%PDF-1.7\n".to_vec();
    let mut places = String::new();
    for (index, object) in objects.iter().enumerate() {
        writeln!(places, "{:010} 00000 n ", file.len()).unwrap();
        file.extend_from_slice(format!("{} 0 obj\n", index + 1).as_bytes());
        file.extend_from_slice(object);
        file.extend_from_slice(b"\nendobj\n");
    }
    let (start, count) = (file.len(), objects.len() + 1);
    let end = format!(
        "xref\n0 {count}\n0000000000 65535 f \n{places}trailer\n<< /Size {count} /Root 1 0 R {trailer} >>\nstartxref\n{start}\n%%EOF\n"
    );
    file.extend_from_slice(end.as_bytes());
    file
}

pub fn stream(entries: &str, data: &[u8]) -> Vec<u8> {
    let head = format!("<< /Length {} {entries} >>\nstream\n", data.len());
    [head.as_bytes(), data, b"\nendstream"].concat()
}

/// A file of pages of 200 by 100 points, each drawn by such a program, in which `/F` is Helvetica. `more` are objects
/// behind the font, the first of which is the fourth of all, and `resources` may name them.
pub fn pages(programs: &[Vec<u8>], resources: &str, more: &[Vec<u8>]) -> Vec<u8> {
    let first = 4 + more.len();
    let kids: String = (0..programs.len()).map(|page| format!("{} 0 R ", first + 2 * page)).collect();
    let mut objects = vec![
        b"<< /Type /Catalog /Pages 2 0 R /OpenAction << /S /JavaScript /JS (app.alert\\('no'\\)) >> >>".to_vec(),
        format!(
            "<< /Type /Pages /Count {} /Kids [ {kids}] /MediaBox [0 0 200 100] /Resources << /Font << /F 3 0 R >> {resources} >> >>",
            programs.len()
        )
        .into_bytes(),
        b"<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>".to_vec(),
    ];
    objects.extend_from_slice(more);
    for (page, program) in programs.iter().enumerate() {
        objects
            .push(format!("<< /Type /Page /Parent 2 0 R /Contents {} 0 R >>", first + 2 * page + 1).into());
        objects.push(program.clone());
    }
    file(&objects, "")
}

/// A file with a text on each page.
pub fn texts(texts: &[&str]) -> Vec<u8> {
    let page = |text: &&str| stream("", format!("BT /F 12 Tf 20 70 Td ({text}) Tj ET").as_bytes());
    pages(&texts.iter().map(page).collect::<Vec<_>>(), "", &[])
}
