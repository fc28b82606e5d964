//! The page of a live dialogue: a visitor answers, and teacher and model say what they believe.

use std::path::Path;

use minijinja::{AutoEscape, Environment, Value as Safe, context};

use super::style;

const TEMPLATE: &str = include_str!("belief.html");

/// The page of run `number`; all that it shows it asks of `/belief/<number>/look`, and saves by `/belief/<number>/save`
/// into `save`. Unless the visitor chooses otherwise, what tells most is asked (`most_telling`), or what the world asks.
pub fn belief_page(
    number: usize,
    name: &str,
    world: &str,
    has_model: bool,
    most_telling: bool,
    save: &Path,
) -> String {
    let mut environment = Environment::new();
    environment.set_auto_escape_callback(|_| AutoEscape::Html);
    let page = environment.render_named_str(
        "belief.html",
        TEMPLATE,
        context! {
            number => number,
            name => name,
            world => world,
            has_model => has_model,
            evidence => if most_telling { "eig" } else { "random" },
            save => save.display().to_string(),
            shapes => Safe::from_safe_string(style::SHAPES.to_string()),
            light => Safe::from_safe_string(style::light()),
            dark => Safe::from_safe_string(style::dark()),
        },
    );
    page.unwrap_or_else(|error| format!("this page's template is damaged: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_stay_text() {
        let hostile = "</title><script>alert(1)</script>\"'&{{ 7 * 7 }}";
        let page = belief_page(3, hostile, hostile, true, false, Path::new(hostile));
        assert!(!page.contains("<script>alert") && !page.contains("49"));
        assert!(page.contains("&lt;script&gt;alert") && page.contains("data-run=\"3\" data-model=\"true\""));
        assert!(!page.contains("damaged"));
    }
}
