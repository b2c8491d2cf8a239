//! What templates become, and what is said of wrong ones.

use std::collections::BTreeMap;

use super::*;

struct Meta(BTreeMap<String, String>);

impl Fields for Meta {
    fn type_name(&self) -> &'static str {
        "v1.Meta"
    }

    fn field(&self, name: &str) -> Option<Value<'_>> {
        match name {
            "Name" => Some(Value::Text("web".into())),
            "Labels" => Some(Value::Map(&self.0)),
            _ => None,
        }
    }
}

fn render(source: &str) -> Result<String, String> {
    let data = Meta([("app".to_owned(), "shop".to_owned())].into());
    Template::parse("t", source).and_then(|t| t.render(&data)).map_err(|e| e.to_string())
}

#[test]
fn renders() {
    for (source, text) in [
        ("a-{{.Name}}", "a-web"),
        ("{{ .Labels.app }}", "shop"),
        ("{{.Labels.none}}", "<no value>"),
        (r#"{{index .Labels "none"}}"#, ""),
        (r#"{{ index .Labels "app" | printf "%s-%q" .Name }}"#, r#"web-"shop""#),
        (r#"{{if eq .Name "web"}}yes{{else}}no{{end}}"#, "yes"),
        (r#"{{if (index .Labels "x")}}a{{else if .Labels}}b{{else}}c{{end}}"#, "b"),
        ("a {{- /* note */ -}} b", "ab"),
        ("{{slice .Name 0 2}}{{len .Name}}", "we3"),
        (r#"{{or (index .Labels "x") `raw`}}"#, "raw"),
    ] {
        assert_eq!(render(source).as_deref(), Ok(text), "{source}");
    }
}

#[test]
fn nesting_has_an_end() {
    let deep = format!("{{{{{}.Name{}}}}}", "(".repeat(100_000), ")".repeat(100_000));
    assert!(render(&deep).is_err());
    assert!(render(&"{{if .Name}}".repeat(100_000)).is_err());
}

proptest::proptest! {
    #[test]
    fn any_text_is_a_template_or_an_error(text in "[{}().| a-z\"`if-]*|\\PC*") {
        let _ = render(&text);
        let _ = render(&format!("{{{{{text}}}}}"));
    }
}

#[test]
fn errors_name_the_place() {
    for (source, error) in [
        ("{{.Name", "template: t:1: unclosed action"),
        ("{{ a", r#"template: t:1: function "a" not defined"#),
        (
            "\n{{.Nope}}",
            r#"template: t:2:2: executing "t" at <.Nope>: can't evaluate field Nope in type v1.Meta"#,
        ),
        ("{{if .Name}}x", "template: t:1: unexpected EOF"),
        ("{{end}}", "template: t:1: unexpected {{end}}"),
        ("{{}}", "template: t:1: missing value for command"),
    ] {
        assert_eq!(render(source), Err(error.to_owned()), "{source}");
    }
}

/// A request, as far as it takes to show what objects can do.
struct Request {
    header: Header,
    path: String,
}

struct Header(BTreeMap<String, Vec<String>>);

impl Fields for Request {
    fn type_name(&self) -> &'static str {
        "*http.Request"
    }

    fn field(&self, name: &str) -> Option<Value<'_>> {
        match name {
            "Header" => Some(Value::Object(&self.header)),
            "Path" => Some(Value::Text(self.path.as_str().into())),
            "Request" => Some(Value::Object(self)),
            "Latency" => Some(Value::Float(5.4e-5)),
            "Code" => Some(Value::Int(404)),
            _ => None,
        }
    }

    fn method(&self, name: &str, arguments: &[Value<'_>]) -> Option<Result<Value<'_>, String>> {
        match (name, arguments) {
            ("Self", []) => Some(Ok(Value::Object(self))),
            ("Self", _) => Some(Err("takes nothing".to_owned())),
            _ => None,
        }
    }
}

impl Fields for Header {
    fn type_name(&self) -> &'static str {
        "http.Header"
    }

    fn field(&self, _: &str) -> Option<Value<'_>> {
        None
    }

    fn method(&self, name: &str, arguments: &[Value<'_>]) -> Option<Result<Value<'_>, String>> {
        (name == "Get").then(|| match arguments {
            [Value::Text(key)] => {
                let first = self.0.get(key.as_ref()).and_then(|list| list.first());
                Ok(Value::Text(first.map_or("", String::as_str).into()))
            }
            _ => Err("wants a key".to_owned()),
        })
    }

    fn lists(&self) -> Option<&BTreeMap<String, Vec<String>>> {
        Some(&self.0)
    }
}

fn request() -> Request {
    let list = |list: &[&str]| list.iter().map(|text| (*text).to_owned()).collect();
    let header = Header(
        [
            ("Accept".to_owned(), list(&["a", "b"])),
            ("X".to_owned(), list(&["<\"é\u{a0}\u{200b}=&'>\u{7f}\n"])),
        ]
        .into(),
    );
    Request { header, path: "/a".to_owned() }
}

fn show(source: &str) -> Result<String, String> {
    Template::parse("t", source).and_then(|t| t.render(&request())).map_err(|e| e.to_string())
}

#[test]
fn objects_have_fields_methods_and_entries() {
    for (source, text) in [
        (
            r#"{{.Request.Request.Path}} {{.Self.Self.Path}} {{(.Request).Path}} {{(.Self).Self.Path}}"#,
            "/a /a /a /a",
        ),
        (
            r#"{{.Header.Get "Accept"}} {{.Header.Get "None"}}|{{"Accept" | .Header.Get | printf "%q"}}"#,
            r#"a |"a""#,
        ),
        (r#"{{index .Header "Accept"}} {{index .Header "Accept" 1}} {{index .Header "None"}}"#, "[a b] b []"),
        (
            "{{.Header.Accept}} {{.Header.None}} {{len .Header}} {{len .Header.Accept}}",
            "[a b] <no value> 2 2",
        ),
        ("{{slice .Header.Accept 1}} {{.Latency}}s {{.Code}}", "[b] 5.4e-05s 404"),
        (r#"{{if and .Header (eq .Code 200 404) (lt .Latency 0.5) (ne .Path "")}}y{{end}}"#, "y"),
        (r#"{{if or .Header.None (ge .Code 500)}}y{{else if not .Code}}z{{end}}"#, ""),
        (r#"{{print 1 2 "a" 3 true}} {{println .Path 1}}"#, "1 2a3 true /a 1\n"),
    ] {
        assert_eq!(show(source).as_deref(), Ok(text), "{source}");
    }
}

#[test]
fn escapes_are_gos() {
    for (source, text) in [
        (r#"{{js (.Header.Get "X")}}"#, "\\u003C\\\"é\\u00A0\\u200B\\u003D\\u0026\\'\\u003E\u{7f}\\u000A"),
        (r#"{{.Header.Get "X" | html}}"#, "&lt;&#34;é\u{a0}\u{200b}=&amp;&#39;&gt;\u{7f}\n"),
        (r#"{{urlquery "a b/ü~" 1}}"#, "a+b%2F%C3%BC~1"),
        (r#"{{js "a" 1 2 "\\"}}"#, r"a1 2\\"),
    ] {
        assert_eq!(show(source).as_deref(), Ok(text), "{source}");
    }
}

#[test]
fn branches_and_variables() {
    for (source, text) in [
        ("{{with .Path}}{{.}} {{$.Code}}{{else}}none{{end}}", "/a 404"),
        ("{{with .Header.None}}x{{else with .Path}}{{.}}{{else}}y{{end}}", "/a"),
        ("{{with $p := .Path}}{{$p}}{{end}}", "/a"),
        ("{{range .Header.Accept}}[{{.}}]{{else}}none{{end}}", "[a][b]"),
        ("{{range $i, $e := .Header.Accept}}{{$i}}{{$e}} {{end}}", "0a 1b "),
        ("{{range $k, $v := .Header}}{{$k}}:{{len $v}} {{end}}", "Accept:2 X:1 "),
        ("{{range $v := .Header.None}}x{{else}}none{{end}}", "none"),
        ("{{range 3}}{{.}}{{end}}", "012"),
        (r#"{{$x := "a"}}{{if true}}{{$x = "b"}}{{$x := "c"}}{{end}}{{$x}}"#, "b"),
        (r#"{{- $last := "" -}} {{range .Header.Accept}}{{$last = .}}{{end}}{{$last}}"#, "b"),
        ("{{$r := .Request}}{{$r.Path}}{{$r.Self.Path}}", "/a/a"),
        ("{{0x1F}} {{1_000}} {{-1.5e3}} {{.5}} {{`a\\n`}}{{\"\\u00e9\\x41\"}}", "31 1000 -1500 0.5 a\\néA"),
    ] {
        assert_eq!(show(source).as_deref(), Ok(text), "{source}");
    }
}

#[test]
fn what_is_not_supported_is_refused_and_what_does_not_apply_fails() {
    for source in [
        "{{define \"x\"}}{{end}}",
        "{{template \"x\"}}",
        "{{block \"x\" .}}{{end}}",
        "{{range .Header}}{{break}}{{end}}",
        "{{$x}}",
        "{{if true}}{{$x := 1}}{{end}}{{$x}}",
        "{{$x = 1}}",
        "{{$a, $b := 1}}",
        "{{1 | 2}}",
        "{{'a'}}",
        "{{if .Path}}{{else}}{{else}}{{end}}",
    ] {
        assert!(Template::parse("t", source).is_err(), "{source}");
    }
    for source in [
        "{{.}}",
        "{{nil}}",
        "{{.Path.Deeper}}",
        "{{.Header.None.Deeper}}",
        "{{.Code 1}}",
        "{{.Self 1}}",
        "{{index .Header.Accept 2}}",
        "{{index .Header 1}}",
        "{{eq .Code \"404\"}}",
        "{{lt .Code 1.5}}",
        "{{range .Path}}{{end}}",
        "{{call .Path}}",
        "{{slice .Path 2 1}}",
        "{{slice \"é\" 1}}",
    ] {
        let parsed = Template::parse("t", source);
        assert!(parsed.is_ok_and(|template| template.render(&request()).is_err()), "{source}");
    }
}

#[test]
fn a_rendering_has_an_end() {
    for source in [
        "{{range 9223372036854775807}}{{end}}",
        "{{range 100000}}{{range 100000}}{{end}}{{end}}",
        "{{range 1000000}}0123456789{{end}}",
        &format!("{{{{$x := `0123456789`}}}}{}", "{{$x = print $x $x}}".repeat(40)),
        &format!("{{{{{}}}}}", ["printf `%9999d` 1"; 1000].join(" | len | ")),
        &format!("{{{{printf `{}`}}}}", "%9999d".repeat(1000))
            .replace("`}}", &format!("`{}}}}}", " 1".repeat(1000))),
    ] {
        match show(source) {
            Ok(text) => assert!(text.len() <= MAX_COST),
            Err(error) => assert!(error.contains("too large") || error.contains("wrong number"), "{error}"),
        }
    }
    assert!(show(&format!("{{{{$x := `0123456789`}}}}{}", "{{$x = print $x $x}}".repeat(40))).is_err());
}

proptest::proptest! {
    #[test]
    fn any_program_ends(parts in proptest::collection::vec(part(), 0..12)) {
        if let Ok(text) = show(&parts.concat()) {
            assert!(text.len() <= MAX_COST);
        }
    }
}

/// Pieces that make templates more often than not.
fn part() -> impl proptest::strategy::Strategy<Value = &'static str> {
    proptest::sample::select(vec![
        "{{",
        "}}",
        "{{- ",
        " -}}",
        "{{if .Path}}",
        "{{else}}",
        "{{end}}",
        "{{end}}",
        "{{range .Header}}",
        "{{range $k, $v := .Header}}",
        "{{range 100}}",
        "{{with .Path}}",
        "{{.}}",
        "{{$k}}",
        "{{$v}}",
        "{{$x := 1}}",
        "{{$x := print . $}}",
        "{{$x = print $x $x}}",
        "{{js .Path}}",
        "{{printf \"%5.2f %s %d %q %v\" .Latency . 1 .Path}}",
        ".Header.Get \"X\"",
        "index .Header \"Accept\"",
        " | js",
        " | html",
        "(",
        ")",
        "\"é\"",
        "0x",
        "1e9",
        "-",
        " ",
        "{{/* */}}",
        "text é",
        "slice .Path 1 2",
        "len .",
        "and . .Code",
        "nil",
        "\n",
    ])
}
