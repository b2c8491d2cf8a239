//! Histories as one HTML page that loads nothing from elsewhere.

use std::fmt::Write as _;

use crate::chart::{escaped, svg};
use crate::history::History;
use crate::table::cells;

const STYLE: &str = "\
:root{color-scheme:light dark;--bg:#ffffff;--fg:#1f2328;--grid:#d1d9e0}\
@media (prefers-color-scheme:dark){:root{--bg:#0d1117;--fg:#e6edf3;--grid:#3d444d}}\
body{background:var(--bg);color:var(--fg);font:15px/1.5 system-ui,-apple-system,'Segoe UI',Roboto,sans-serif;\
max-width:1000px;margin:2rem auto;padding:0 1rem}\
table{border-collapse:collapse;margin:1.5rem 0;font-variant-numeric:tabular-nums}\
th,td{padding:.25rem .9rem;border-bottom:1px solid var(--grid);text-align:right}\
th:first-child,td:first-child{text-align:left;padding-left:0}svg{width:100%;height:auto}";

/// The page. `title` says what was simulated.
#[must_use]
pub fn html(title: &str, histories: &[History]) -> String {
    let title = escaped(title);
    let mut page = format!(
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\
         <meta name=\"viewport\" content=\"width=device-width\">\
         <title>{title}</title><style>{STYLE}</style></head><body>\n<h1>{title}</h1>\n{}<table><thead><tr><th></th>",
        svg(histories)
    );
    // Writing to a String does not fail.
    for history in histories {
        let _ = write!(page, "<th>{}</th>", escaped(&history.setting));
    }
    page.push_str("</tr></thead><tbody>\n");
    for (name, values) in cells(histories) {
        let _ = write!(page, "<tr><td>{name}</td>");
        for value in values {
            let _ = write!(page, "<td>{}</td>", escaped(&value));
        }
        page.push_str("</tr>\n");
    }
    page.push_str("</tbody></table></body></html>\n");
    page
}
