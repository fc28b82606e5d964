//! SVG, written piece by piece. Every text is escaped here.

use std::fmt::Write as _;

/// Text with the characters that mean something in XML and HTML replaced; what XML cannot hold is left out.
pub(super) fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\'' => escaped.push_str("&#39;"),
            '\t' | '\n' | '\r' => escaped.push(c),
            // Controls and the two non-characters are not XML.
            c if c.is_control() || matches!(c, '\u{fffe}' | '\u{ffff}') => {}
            c => escaped.push(c),
        }
    }
    escaped
}

/// How text is set at its place.
#[derive(Clone, Copy, Debug)]
pub(super) enum Anchor {
    Start,
    Middle,
    End,
}

/// A drawing in the making.
#[derive(Clone, Debug)]
pub(super) struct Svg {
    width: f64,
    height: f64,
    body: String,
}

impl Svg {
    pub(super) fn new(width: f64, height: f64) -> Self {
        Self { width, height, body: String::new() }
    }

    pub(super) fn line(&mut self, class: &str, (x1, y1): (f64, f64), (x2, y2): (f64, f64)) {
        let [x1, y1, x2, y2] = [x1, y1, x2, y2].map(number);
        self.push(format_args!(r#"<line class="{class}" x1="{x1}" y1="{y1}" x2="{x2}" y2="{y2}"/>"#));
    }

    pub(super) fn rect(&mut self, class: &str, (x, y): (f64, f64), (width, height): (f64, f64)) {
        let [x, y, width, height] = [x, y, width, height].map(number);
        self.push(format_args!(
            r#"<rect class="{class}" x="{x}" y="{y}" width="{width}" height="{height}"/>"#
        ));
    }

    /// A rectangle of which a part of the colour is seen, from 0 to 1.
    pub(super) fn shade(&mut self, class: &str, (x, y): (f64, f64), (width, height): (f64, f64), part: f64) {
        let [x, y, width, height] = [x, y, width, height].map(number);
        self.push(format_args!(
            r#"<rect class="{class}" x="{x}" y="{y}" width="{width}" height="{height}" fill-opacity="{part:.2}"/>"#
        ));
    }

    /// A line through points.
    pub(super) fn polyline(&mut self, class: &str, points: &[(f64, f64)]) {
        let points = joined(points);
        self.push(format_args!(r#"<polyline class="{class}" points="{points}"/>"#));
    }

    /// A filled shape with these corners.
    pub(super) fn polygon(&mut self, class: &str, corners: &[(f64, f64)]) {
        let points = joined(corners);
        self.push(format_args!(r#"<polygon class="{class}" points="{points}"/>"#));
    }

    pub(super) fn circle(&mut self, class: &str, (x, y): (f64, f64), radius: f64) {
        let [x, y, radius] = [x, y, radius].map(number);
        self.push(format_args!(r#"<circle class="{class}" cx="{x}" cy="{y}" r="{radius}"/>"#));
    }

    pub(super) fn text(&mut self, class: &str, (x, y): (f64, f64), anchor: Anchor, text: &str) {
        let ([x, y], text) = ([x, y].map(number), escape(text));
        let anchor = match anchor {
            Anchor::Start => "",
            Anchor::Middle => r#" text-anchor="middle""#,
            Anchor::End => r#" text-anchor="end""#,
        };
        self.push(format_args!(r#"<text class="{class}" x="{x}" y="{y}"{anchor}>{text}</text>"#));
    }

    /// Text that runs upwards, centred at its place.
    pub(super) fn upward_text(&mut self, class: &str, (x, y): (f64, f64), text: &str) {
        let ([x, y], text) = ([x, y].map(number), escape(text));
        self.push(format_args!(
            r#"<text class="{class}" transform="translate({x} {y}) rotate(-90)" text-anchor="middle">{text}</text>"#
        ));
    }

    /// What `draw` draws belongs together, and says `tip` under the mouse.
    pub(super) fn group(&mut self, class: &str, tip: &str, draw: impl FnOnce(&mut Self)) {
        self.push(format_args!(r#"<g class="{class}">"#));
        if !tip.is_empty() {
            self.push(format_args!("<title>{}</title>", escape(tip)));
        }
        draw(self);
        self.push(format_args!("</g>"));
    }

    /// As part of a page, whose style sheet gives the colours; `title` is what a screen reader says.
    pub(super) fn inline(&self, title: &str) -> String {
        let (width, height, title) = (number(self.width), number(self.height), escape(title));
        format!(
            r#"<svg viewBox="0 0 {width} {height}" width="{width}" height="{height}" role="img" aria-label="{title}">{}</svg>"#,
            self.body
        )
    }

    /// As a file that stands alone, with its style sheet and a white ground.
    pub(super) fn file(&self, title: &str, style: &str) -> String {
        let (width, height, title) = (number(self.width), number(self.height), escape(title));
        format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" width=\"{width}\" \
             height=\"{height}\" role=\"img\">\n<title>{title}</title>\n<style>{style}</style>\n\
             <rect width=\"{width}\" height=\"{height}\" fill=\"#fff\"/>\n{}\n</svg>\n",
            self.body.replace("><", ">\n<")
        )
    }

    fn push(&mut self, piece: std::fmt::Arguments) {
        // Writing to a String cannot fail.
        let _ = self.body.write_fmt(piece);
    }
}

/// Two digits are a hundredth of a pixel.
fn number(value: f64) -> String {
    let text = format!("{value:.2}");
    let text = text.trim_end_matches('0').trim_end_matches('.');
    if text == "-0" { "0".into() } else { text.into() }
}

fn joined(points: &[(f64, f64)]) -> String {
    let pairs: Vec<String> = points.iter().map(|(x, y)| format!("{},{}", number(*x), number(*y))).collect();
    pairs.join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hostile_text_stays_text() {
        let hostile = "</text><script>alert(\"1\")</script>&amp;'\u{0}\u{1b}\u{ffff}\u{202e}";
        let mut svg = Svg::new(10.0, 10.0);
        svg.text("label", (1.0, 2.0), Anchor::End, hostile);
        svg.upward_text("label", (1.0, 2.0), hostile);
        svg.group("g", hostile, |svg| svg.circle("c", (0.0, -0.0), 1.0));
        for drawn in [svg.inline(hostile), svg.file(hostile, "")] {
            assert!(!drawn.contains("<script") && !drawn.contains("&amp;'"), "{drawn}");
            assert!(
                drawn
                    .contains("&lt;/text&gt;&lt;script&gt;alert(&quot;1&quot;)&lt;/script&gt;&amp;amp;&#39;")
            );
            assert!(!drawn.contains(['\u{0}', '\u{1b}', '\u{ffff}']));
        }
    }

    #[test]
    fn numbers_are_short() {
        assert_eq!(
            ["0", "1.5", "-3", "0.33"],
            [-0.0, 1.5, -3.0, 1.0 / 3.0].map(number).each_ref().map(String::as_str)
        );
    }
}
