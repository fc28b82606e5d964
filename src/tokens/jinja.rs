//! Chat templates are Jinja programs written for Python. This is the Python they rely on: Hugging Face's
//! `raise_exception`, `strftime_now` and `tojson`, string methods, whitespace control, `{% generation %}`.

use anyhow::{Result, anyhow, ensure};
use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Kwargs, Value};
use minijinja::{AutoEscape, Environment, Error, ErrorKind};

use crate::error::usage;

/// An environment that behaves like the one of Hugging Face's `apply_chat_template`, with `source` in it as
/// the template `chat`.
pub(super) fn environment(source: &str, date: FixedDate) -> Result<Environment<'static>> {
    let mut environment = Environment::new();
    let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
    environment.set_syntax(syntax.map_err(|error| anyhow!("{error}"))?);
    environment.set_auto_escape_callback(|_| AutoEscape::None);
    environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
    environment.add_filter("tojson", to_json);
    environment.add_function("raise_exception", raise_exception);
    environment.add_function("strftime_now", move |format: &str| date.format(format));
    environment.set_debug(true);
    environment
        .add_template_owned("chat", without_generation_tags(source))
        .map_err(|error| anyhow!("the chat template is not valid Jinja: {error}"))?;
    Ok(environment)
}

fn raise_exception(message: &str) -> Result<Value, Error> {
    Err(Error::new(ErrorKind::InvalidOperation, format!("the template refuses: {message}")))
}

/// `{% generation %}` marks the assistant's text for Python's loss masks. It renders its body and nothing
/// else, so an `if true` that keeps the tag's whitespace control stands for it.
fn without_generation_tags(source: &str) -> String {
    let mut out = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(open) = rest.find("{%") {
        let Some(length) = rest[open..].find("%}") else {
            break;
        };
        let inner = &rest[open + 2..open + length];
        let word = inner.trim_matches(|c: char| c.is_whitespace() || c == '-' || c == '+');
        let replacement = match word {
            "generation" => Some("if true"),
            "endgeneration" => Some("endif"),
            _ => None,
        };
        out.push_str(&rest[..open + 2]);
        match replacement {
            Some(tag) => out.push_str(&inner.replacen(word, tag, 1)),
            None => out.push_str(inner),
        }
        out.push_str("%}");
        rest = &rest[open + length + 2..];
    }
    out.push_str(rest);
    out
}

/// Python's `json.dumps` as Hugging Face offers it: no HTML escapes, non-ASCII text kept, `", "` and `": "`
/// between items unless indented.
#[expect(clippy::needless_pass_by_value, reason = "minijinja converts arguments by value")]
fn to_json(value: &Value, indent: Option<Value>, kwargs: Kwargs) -> Result<String, Error> {
    let indent = match indent {
        Some(indent) => Some(indent),
        None => kwargs.get::<Option<Value>>("indent")?,
    };
    let indent = match indent.filter(|v| !v.is_none() && !v.is_undefined()) {
        None => None,
        Some(value) => Some(match value.as_str() {
            Some(text) => text.to_owned(),
            None => " ".repeat(usize::try_from(value)?),
        }),
    };
    let separators = kwargs.get::<Option<Vec<String>>>("separators")?;
    let (item, key) = match separators.as_deref() {
        Some([item, key]) => (item.clone(), key.clone()),
        Some(_) => {
            return Err(Error::new(ErrorKind::InvalidOperation, "separators needs two strings"));
        }
        None if indent.is_some() => (",".to_owned(), ": ".to_owned()),
        None => (", ".to_owned(), ": ".to_owned()),
    };
    let style = JsonStyle {
        indent,
        item,
        key,
        ensure_ascii: kwargs.get::<Option<bool>>("ensure_ascii")?.unwrap_or(false),
        sort_keys: kwargs.get::<Option<bool>>("sort_keys")?.unwrap_or(false),
    };
    kwargs.assert_all_used()?;
    if value.is_undefined() {
        return Err(Error::new(ErrorKind::UndefinedError, "tojson of an undefined value"));
    }
    let json = serde_json::to_value(value)
        .map_err(|error| Error::new(ErrorKind::BadSerialization, error.to_string()))?;
    let mut out = String::new();
    style.write(&mut out, &json, 0);
    Ok(out)
}

struct JsonStyle {
    indent: Option<String>,
    item: String,
    key: String,
    ensure_ascii: bool,
    sort_keys: bool,
}

impl JsonStyle {
    fn write(&self, out: &mut String, value: &serde_json::Value, depth: usize) {
        match value {
            serde_json::Value::String(text) => self.write_string(out, text),
            serde_json::Value::Array(items) if items.is_empty() => out.push_str("[]"),
            serde_json::Value::Object(map) if map.is_empty() => out.push_str("{}"),
            serde_json::Value::Array(items) => {
                out.push('[');
                for (i, item) in items.iter().enumerate() {
                    self.separate(out, i, depth + 1);
                    self.write(out, item, depth + 1);
                }
                self.new_line(out, depth);
                out.push(']');
            }
            serde_json::Value::Object(map) => {
                let mut entries: Vec<_> = map.iter().collect();
                if self.sort_keys {
                    entries.sort_by_key(|(key, _)| *key);
                }
                out.push('{');
                for (i, (key, item)) in entries.into_iter().enumerate() {
                    self.separate(out, i, depth + 1);
                    self.write_string(out, key);
                    out.push_str(&self.key);
                    self.write(out, item, depth + 1);
                }
                self.new_line(out, depth);
                out.push('}');
            }
            // null, true, false and numbers are written as Python writes them.
            other => out.push_str(&other.to_string()),
        }
    }

    fn separate(&self, out: &mut String, i: usize, depth: usize) {
        if i > 0 {
            out.push_str(&self.item);
        }
        self.new_line(out, depth);
    }

    fn new_line(&self, out: &mut String, depth: usize) {
        if let Some(indent) = &self.indent {
            out.push('\n');
            out.push_str(&indent.repeat(depth));
        }
    }

    fn write_string(&self, out: &mut String, text: &str) {
        let quoted = serde_json::Value::from(text).to_string();
        if !self.ensure_ascii {
            out.push_str(&quoted);
            return;
        }
        for c in quoted.chars() {
            if c.is_ascii() {
                out.push(c);
            } else {
                let mut units = [0; 2];
                for unit in c.encode_utf16(&mut units) {
                    out.push_str(&format!("\\u{unit:04x}"));
                }
            }
        }
    }
}

/// The day that templates print instead of today's, so that what a model is trained on does not depend on
/// when it was trained.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct FixedDate {
    year: i64,
    /// From 0.
    month: usize,
    day: i64,
}

const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];
const WEEKDAYS: [&str; 7] = ["Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday"];

impl FixedDate {
    /// Reads a date written like `26 Jul 2024`.
    pub(super) fn parse(text: &str) -> Result<Self> {
        let bad = || usage(format!("tokens.date is {text:?}: write it like \"26 Jul 2024\""));
        let parts: Vec<&str> = text.split_whitespace().collect();
        let [day, month, year] = parts[..] else {
            return Err(bad());
        };
        let month = MONTHS.iter().position(|name| name[..3] == *month || *name == month).ok_or_else(bad)?;
        let (day, year): (i64, i64) = (day.parse().map_err(|_| bad())?, year.parse().map_err(|_| bad())?);
        ensure!((1000..=9999).contains(&year), bad());
        let date = Self { year, month, day };
        ensure!((1..=date.days_in_month()).contains(&day), bad());
        Ok(date)
    }

    fn days_in_month(self) -> i64 {
        let (year, month) = if self.month == 11 { (self.year + 1, 0) } else { (self.year, self.month + 1) };
        days_from_epoch(year, month, 1) - days_from_epoch(self.year, self.month, 1)
    }

    /// The date as `date_string` has it: `26 Jul 2024`.
    pub(super) fn to_text(self) -> String {
        format!("{:02} {} {}", self.day, &MONTHS[self.month][..3], self.year)
    }

    /// Python's `strftime` at midnight of the date.
    fn format(self, format: &str) -> Result<String, Error> {
        let days = days_from_epoch(self.year, self.month, self.day);
        // 1 January 1970 was a Thursday.
        let weekday = WEEKDAYS[(days + 3).rem_euclid(7) as usize];
        let month = MONTHS[self.month];
        let mut out = String::new();
        let mut chars = format.chars();
        while let Some(c) = chars.next() {
            if c != '%' {
                out.push(c);
                continue;
            }
            let mut code = chars.next();
            let padded = code != Some('-');
            if !padded {
                code = chars.next();
            }
            let number = |value: i64, width: usize| {
                if padded { format!("{value:0width$}") } else { value.to_string() }
            };
            out.push_str(&match code {
                Some('d') => number(self.day, 2),
                Some('m') => number(self.month as i64 + 1, 2),
                Some('y') => number(self.year % 100, 2),
                Some('j') => number(days - days_from_epoch(self.year, 0, 1) + 1, 3),
                Some('H' | 'M' | 'S') => number(0, 2),
                Some('I') => number(12, 2),
                Some('p') => "AM".to_owned(),
                Some('Y') => self.year.to_string(),
                Some('b') => month[..3].to_owned(),
                Some('B') => month.to_owned(),
                Some('a') => weekday[..3].to_owned(),
                Some('A') => weekday.to_owned(),
                Some('%') => "%".to_owned(),
                _ => {
                    let message = format!("strftime_now does not know the format {format:?}");
                    return Err(Error::new(ErrorKind::InvalidOperation, message));
                }
            });
        }
        Ok(out)
    }
}

/// Days from 1 January 1970 (proleptic Gregorian); `month` from 0.
fn days_from_epoch(year: i64, month: usize, day: i64) -> i64 {
    // Counted from March, a leap day is the last day of its year.
    let month = month as i64 + 1;
    let year = if month <= 2 { year - 1 } else { year };
    let day_of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    365 * year + year.div_euclid(4) - year.div_euclid(100) + year.div_euclid(400) + day_of_year - 719_468
}

#[cfg(test)]
mod tests {
    use super::*;

    fn date(text: &str) -> FixedDate {
        FixedDate::parse(text).expect("a date")
    }

    fn render(source: &str, value: serde_json::Value) -> String {
        let environment = environment(source, date("26 Jul 2024")).expect("a template");
        let x: Value = serde_json::from_value(value).expect("any JSON is a value");
        let context = minijinja::context! { x };
        environment.get_template("chat").and_then(|t| t.render(context)).expect("a rendering")
    }

    #[test]
    fn dates_are_those_of_the_calendar() {
        // From `datetime.date(...).strftime(...)` in Python.
        let format = |text: &str, format: &str| date(text).format(format).expect("a known format");
        assert_eq!(format("26 Jul 2024", "%d %b %Y"), "26 Jul 2024");
        assert_eq!(format("1 Feb 2000", "%A, %B %-d, %Y (%j)"), "Tuesday, February 1, 2000 (032)");
        assert_eq!(format("31 Dec 2024", "%a %y-%m-%d %H:%M %j"), "Tue 24-12-31 00:00 366");
        assert_eq!(format("29 February 2024", "%d %b"), "29 Feb");
        for bad in ["29 Feb 2023", "0 Jan 2024", "2024-07-26", "26 Jux 2024", ""] {
            assert!(FixedDate::parse(bad).is_err(), "{bad:?} must be refused");
        }
    }

    #[test]
    fn json_is_written_as_python_writes_it() {
        // From `json.dumps(x, ensure_ascii=..., ...)` in Python.
        let x = serde_json::json!({"b": [1, 2.5, null, true], "a": "<ü\"\n>", "e": {}});
        assert_eq!(
            render("{{ x | tojson }}", x.clone()),
            r#"{"b": [1, 2.5, null, true], "a": "<ü\"\n>", "e": {}}"#
        );
        assert_eq!(
            render("{{ x | tojson(indent=4) }}", serde_json::json!({"b": [1], "a": 2})),
            "{\n    \"b\": [\n        1\n    ],\n    \"a\": 2\n}"
        );
        assert_eq!(
            render("{{ x | tojson(separators=(',', ':'), sort_keys=true, ensure_ascii=true) }}", x),
            r#"{"a":"<\u00fc\"\n>","b":[1,2.5,null,true],"e":{}}"#
        );
    }

    #[test]
    fn python_idioms_render() {
        let x = serde_json::json!(["a</think>b", " c "]);
        assert_eq!(
            render("{{ x[0].split('</think>')[-1] }}|{{ x[1].strip() }}|{{ x[::-1][0] }}", x.clone()),
            "b|c| c "
        );
        let tagged =
            "{% for m in x %}\n  {%- generation -%}\n  {{ m }}\n  {%- endgeneration %}\n{% endfor %}";
        assert_eq!(render(tagged, x), "a</think>b c ");
        assert_eq!(render("{{ strftime_now('%Y') }}", serde_json::Value::Null), "2024");
    }
}
