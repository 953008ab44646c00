//! A report as one page that needs nothing else: no network, no script of anybody's.

use std::fmt::Write as _;

use super::{Report, svg};

const STYLE: &str = "\
:root{color-scheme:light dark}body{font:15px/1.5 system-ui,sans-serif;max-width:64rem;margin:2rem auto;padding:0 1rem}\
table{border-collapse:collapse;margin:1rem 0}th,td{padding:.2rem .7rem;border-bottom:1px solid #8884}\
th:first-child,td:first-child{text-align:left;white-space:pre}th,td{text-align:right;font-variant-numeric:tabular-nums}\
thead th{position:sticky;top:0;background:Canvas}.wide{overflow-x:auto}code{overflow-wrap:anywhere}\
.warning{border-left:4px solid #c05600;padding-left:.7rem}svg{max-width:100%;height:auto}";

/// The page.
///
/// # Errors
/// When the report cannot be written as JSON, which would be a mistake in it.
pub fn html(report: &Report) -> serde_json::Result<String> {
    let title = report.facts().into_iter().next().unwrap_or_default();
    let mut page = format!(
        "<!doctype html><html lang=\"en\"><head><meta charset=\"utf-8\">\
         <meta name=\"viewport\" content=\"width=device-width,initial-scale=1\">\
         <title>percept bench: {title}</title><style>{STYLE}</style></head><body><h1>{title}</h1><ul>",
        title = escaped(&title)
    );
    for fact in report.facts().iter().skip(1) {
        let _ = write!(page, "<li>{}</li>", escaped(fact));
    }
    let _ = write!(page, "<li><code>{}</code></li></ul>", escaped(&report.command));
    for warning in &report.warnings {
        let _ = write!(page, "<p class=\"warning\">{}</p>", escaped(warning));
    }
    page += &svg(report).unwrap_or_default();
    page += "<div class=\"wide\"><table>";
    for (index, (name, cells)) in report.grid().rows().enumerate() {
        let (tag, head, foot) =
            if index == 0 { ("th", "<thead>", "</thead><tbody>") } else { ("td", "", "") };
        let _ = write!(page, "{head}<tr><{tag}>{}</{tag}>", escaped(name));
        for cell in cells {
            let _ = write!(page, "<{tag}>{}</{tag}>", escaped(cell));
        }
        let _ = write!(page, "</tr>{foot}");
    }
    page += "</tbody></table></div>";
    for note in report.notes() {
        let _ = write!(page, "<p>{}</p>", escaped(&note));
    }
    // What ends a script must not be in it; in JSON it can be written otherwise.
    let data = serde_json::to_string(report)?.replace('<', "\\u003c");
    let _ = write!(
        page,
        "<details><summary>All figures as JSON</summary><script type=\"application/json\" id=\"report\">{data}</script>\
         <pre>{}</pre></details></body></html>",
        escaped(&serde_json::to_string_pretty(report)?)
    );
    Ok(page)
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}
