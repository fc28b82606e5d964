//! The text around questions, from templates.
//!
//! Templates are Jinja, rendered once when a world is built, with a placeholder for each *slot*: what is only known
//! when an episode is drawn. An episode then only fills slots, which is quick and cannot fail. So a template may put
//! a slot anywhere and as often as it likes, but cannot look into it or change it.

use std::collections::BTreeMap;
use std::sync::Arc;

use minijinja::syntax::SyntaxConfig;
use minijinja::value::Value;
use minijinja::{AutoEscape, Environment, UndefinedBehavior, context};

/// What a template has been made into: text with slots.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Template(Vec<Piece>);

#[derive(Clone, Debug, PartialEq)]
enum Piece {
    Text(String),
    Slot(usize),
}

/// Around the number of a slot in a placeholder: characters that no text has.
const BEGIN: char = '\u{E000}';
const END: char = '\u{E001}';

impl Template {
    /// Renders a template; `context` gets a function from the number of a slot to what stands for it.
    ///
    /// The error is a fragment that says what is wrong with the template, with its line.
    pub(super) fn new(
        source: &str,
        slots: usize,
        context: impl Fn(&dyn Fn(usize) -> String) -> Value,
    ) -> Result<Template, String> {
        if source.contains([BEGIN, END]) {
            return Err("the template has characters of Unicode's private use area".into());
        }
        let environment = environment().map_err(|e| e.to_string())?;
        // Twice, with placeholders that differ in length: a template that looks into a slot gives itself away.
        let render = |padding: &str| -> Result<Vec<Piece>, String> {
            let placeholder = |slot: usize| format!("{BEGIN} Slot {slot}{padding} {END}");
            let rendered = environment
                .render_str(source, context(&placeholder))
                .map_err(|e| format!("the template fails: {}", describe(&e)))?;
            pieces(rendered.trim_end(), &(0..slots).map(placeholder).collect::<Vec<_>>())
        };
        let template = render("")?;
        if render(" Again")? != template {
            return Err(CHANGED.into());
        }
        Ok(Template(template))
    }

    /// The text, with what stands in each slot.
    pub(super) fn fill<'a>(&'a self, slot: impl Fn(usize) -> &'a str) -> String {
        self.0
            .iter()
            .map(|piece| match piece {
                Piece::Text(text) => text.as_str(),
                Piece::Slot(i) => slot(*i),
            })
            .collect()
    }

    /// What stands in each slot of a text that the template has been [filled](Self::fill) to, as the index of one of the
    /// slot's possible values; none for a slot that the template does not have. None if the template does not give this
    /// text.
    pub(super) fn read(&self, text: &str, values: &[Vec<&str>]) -> Option<Vec<Option<usize>>> {
        let mut found = vec![None; values.len()];
        matches(&self.0, text, values, &mut found).then_some(found)
    }

    /// The places of a text at which something that the template gives may begin.
    pub(super) fn beginnings<'t>(&'t self, text: &'t str) -> impl Iterator<Item = usize> + 't {
        let starts = |at: &usize| match self.0.first() {
            Some(Piece::Text(first)) => text[*at..].starts_with(first.as_str()),
            _ => true,
        };
        (0..text.len()).filter(|&at| text.is_char_boundary(at)).filter(starts)
    }

    /// How often a slot stands in the text.
    pub(super) fn count(&self, slot: usize) -> usize {
        self.0.iter().filter(|piece| **piece == Piece::Slot(slot)).count()
    }

    /// The byte at which the only occurrence of slot 0 begins.
    fn start(&self) -> usize {
        match self.0.first() {
            Some(Piece::Text(text)) => text.len(),
            _ => 0,
        }
    }
}

const CHANGED: &str = "the template changes or examines what is only known later (a filter on `question`, `place` \
    or a feature, say); it can only insert it";

/// How templates and expressions are understood.
pub(super) fn environment() -> Result<Environment<'static>, minijinja::Error> {
    let mut environment = Environment::new();
    environment.set_syntax(SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build()?);
    environment.set_auto_escape_callback(|_| AutoEscape::None);
    environment.set_undefined_behavior(UndefinedBehavior::Strict);
    environment.set_debug(true);
    Ok(environment)
}

fn describe(error: &minijinja::Error) -> String {
    let detail =
        error.detail().map_or_else(|| error.kind().to_string(), |d| format!("{}: {d}", error.kind()));
    match error.line() {
        Some(line) => format!("{detail} (in its line {line})"),
        None => detail,
    }
}

/// Whether the pieces give the text; what stands in the slots is left in `found`.
fn matches(pieces: &[Piece], text: &str, values: &[Vec<&str>], found: &mut Vec<Option<usize>>) -> bool {
    let Some((piece, rest)) = pieces.split_first() else { return text.is_empty() };
    match piece {
        Piece::Text(literal) => {
            text.strip_prefix(literal.as_str()).is_some_and(|text| matches(rest, text, values, found))
        }
        Piece::Slot(slot) => {
            let before = found[*slot];
            for (i, value) in values[*slot].iter().enumerate() {
                if before.is_some_and(|known| known != i) {
                    continue;
                }
                if let Some(text) = text.strip_prefix(value) {
                    found[*slot] = Some(i);
                    if matches(rest, text, values, found) {
                        return true;
                    }
                    found[*slot] = before;
                }
            }
            false
        }
    }
}

fn pieces(rendered: &str, placeholders: &[String]) -> Result<Vec<Piece>, String> {
    let mut pieces = Vec::new();
    let mut rest = rendered;
    while let Some(begin) = rest.find([BEGIN, END]) {
        let found = placeholders.iter().position(|p| rest[begin..].starts_with(p.as_str()));
        let slot = found.ok_or(CHANGED)?;
        if begin > 0 {
            pieces.push(Piece::Text(rest[..begin].to_owned()));
        }
        pieces.push(Piece::Slot(slot));
        rest = &rest[begin + placeholders[slot].len()..];
    }
    if !rest.is_empty() {
        pieces.push(Piece::Text(rest.to_owned()));
    }
    Ok(pieces)
}

/// Renders a template that knows everything at once.
pub(super) fn render(source: &str, context: Value) -> Result<String, String> {
    let environment = environment().map_err(|e| e.to_string())?;
    environment.render_str(source, context).map_err(|e| format!("the template fails: {}", describe(&e)))
}

/// The templates of a dialogue.
#[derive(Clone, Copy, Debug)]
pub(super) struct TextTemplates<'a> {
    /// The first message of the user; `question`.
    pub(super) opening: &'a str,
    /// What the assistant says; `label`, exactly once.
    pub(super) reply: &'a str,
    /// Every other message of the user; `said`, `truth`, the next `question`, and where options have features, the one
    /// that is true as `chosen`.
    pub(super) feedback: &'a str,
}

/// A feature that all options of a question have.
#[derive(Clone, Copy, Debug)]
pub(super) struct Feature<'a> {
    /// By which a template finds the level's text, such as `departure_time`.
    pub(super) name: &'a str,
    /// Before the level's text where nothing else is said, such as `departure time`.
    pub(super) label: &'a str,
}

/// What templates know of an option: its `label`, what each feature is by the feature's name, and all of them as `text`.
pub(super) fn describe_option(
    label: &str,
    features: &[Feature<'_>],
    level: impl Fn(usize) -> String,
) -> BTreeMap<String, String> {
    let all: Vec<String> =
        features.iter().enumerate().map(|(i, f)| format!("{}: {}", f.label, level(i))).collect();
    let named = features.iter().enumerate().map(|(i, f)| (f.name.to_owned(), level(i)));
    let own = [("label".to_owned(), label.to_owned()), ("text".to_owned(), all.join(", "))];
    named.chain(own).collect()
}

/// A mistake in one of the templates.
#[derive(Debug)]
pub(super) struct TextMistake {
    /// The template's key.
    pub(super) key: &'static str,
    /// What is wrong with it.
    pub(super) message: String,
}

/// The text of a dialogue.
#[derive(Clone, Debug)]
pub(super) struct Texts {
    opening: Template,
    reply: Template,
    /// For each list of labels, one template for each pair of what was said and what is true.
    feedback: BTreeMap<Arc<[String]>, Vec<Template>>,
}

impl Texts {
    /// `labels` are all lists of labels that questions have, `features` those of their options, if they have any.
    pub(super) fn new<'a>(
        templates: TextTemplates<'_>,
        labels: impl Iterator<Item = &'a Arc<[String]>>,
        features: &[Feature<'_>],
    ) -> Result<Texts, TextMistake> {
        let mistake = |key| move |message| TextMistake { key, message };
        let opening = Template::new(templates.opening, 1, |slot| context! { question => slot(0) })
            .map_err(mistake("opening"))?;
        if opening.count(0) == 0 {
            return Err(mistake("opening")("the template does not insert `question`".into()));
        }
        let reply = Template::new(templates.reply, 1, |slot| context! { label => slot(0) })
            .map_err(mistake("reply"))?;
        if reply.count(0) != 1 {
            let message =
                format!("the template inserts `label` {} times, it must do so once", reply.count(0));
            return Err(mistake("reply")(message));
        }
        let mut feedback = BTreeMap::new();
        for labels in labels {
            if feedback.contains_key(labels) {
                continue;
            }
            let mut of_pairs = Vec::new();
            for said in labels.iter() {
                for truth in labels.iter() {
                    // Slot 0 is the next question, then the features of the option that is true.
                    let template = Template::new(templates.feedback, 1 + features.len(), |slot| {
                        let told = context! { said => said, truth => truth, question => slot(0) };
                        if features.is_empty() {
                            return told;
                        }
                        let chosen = describe_option(truth, features, |feature| slot(1 + feature));
                        context! { chosen => chosen, ..told }
                    })
                    .map_err(mistake("feedback"))?;
                    if template.count(0) == 0 {
                        return Err(mistake("feedback")("the template does not insert `question`".into()));
                    }
                    of_pairs.push(template);
                }
            }
            check_tells_truth(labels, &of_pairs).map_err(mistake("feedback"))?;
            feedback.insert(Arc::clone(labels), of_pairs);
        }
        Ok(Texts { opening, reply, feedback })
    }

    pub(super) fn opening(&self, first: &str) -> String {
        self.opening.fill(|_| first)
    }

    /// What the assistant says, and the byte at which the label begins.
    pub(super) fn reply(&self, label: &str) -> (String, usize) {
        (self.reply.fill(|_| label), self.reply.start())
    }

    /// `labels` must be one of the lists that the texts were made for; `chosen` says what each of the true option's
    /// features is.
    pub(super) fn feedback(
        &self,
        labels: &Arc<[String]>,
        said: usize,
        truth: usize,
        chosen: &[&str],
        next: &str,
    ) -> String {
        let template = &self.feedback[labels][said * labels.len() + truth];
        template.fill(|slot| slot.checked_sub(1).map_or(next, |feature| chosen[feature]))
    }
}

/// Whoever reads the feedback must know what is true, or there is nothing to be learnt from it: the same words for two
/// truths are a mistake. `of_pairs` has a template for each pair of what was said and what is true.
fn check_tells_truth(labels: &[String], of_pairs: &[Template]) -> Result<(), String> {
    for (said, by_truth) in labels.iter().zip(of_pairs.chunks(labels.len())) {
        for (i, template) in by_truth.iter().enumerate() {
            if let Some(j) = by_truth[..i].iter().position(|earlier| earlier == template) {
                return Err(format!(
                    "the template does not tell the truth: where {said:?} was said, it reads alike for {:?} and {:?}; it has \
                     to insert `truth`, or tell in another way",
                    labels[j], labels[i]
                ));
            }
        }
    }
    Ok(())
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test may panic")]
mod tests {
    use super::*;

    #[test]
    fn slots_are_filled_wherever_they_stand() {
        let source = "{% for x in list %}\n{{ loop.index }}: {{ x }}, {{ x }}\n{% endfor %}\n";
        let template = Template::new(source, 2, |slot| context! { list => [slot(0), slot(1)] }).unwrap();
        assert_eq!(template.fill(|i| ["one", "two"][i]), "1: one, one\n2: two, two");
        assert_eq!((template.count(0), template.count(1)), (2, 2));
        // And what was filled in is read again, also where one value begins another.
        let values = [vec!["on", "one"], vec!["one", "two"]];
        assert_eq!(template.read("1: one, one\n2: two, two", &values), Some(vec![Some(1), Some(1)]));
        assert_eq!(template.read("1: one, on\n2: two, two", &values), None);
        assert_eq!(template.read("1: one, one\n2: two, two.", &values), None);
    }

    #[test]
    fn templates_that_look_into_a_slot_are_refused() {
        let wrong = |source: &str| {
            Template::new(source, 1, |slot| context! { question => slot(0), place => 1 }).unwrap_err()
        };
        for changed in
            ["{{ question | upper }}", "{{ question | length }}", "{{ question | replace(' ', '') }}"]
        {
            assert!(wrong(changed).contains("can only insert"), "{changed}");
        }
        assert!(wrong("\n{{ qestion }}").contains("line 2"), "{}", wrong("\n{{ qestion }}"));
        assert!(wrong("{% if %}").contains("syntax error"), "{}", wrong("{% if %}"));
    }

    #[test]
    fn a_dialogue_needs_its_parts() {
        let labels: Arc<[String]> = ["yes".to_owned(), "no".to_owned()].into();
        let texts = |opening, reply, feedback| {
            Texts::new(TextTemplates { opening, reply, feedback }, std::iter::once(&labels), &[])
        };
        let good = texts(
            "Guess.\n{{ question }}",
            "I guess {{ label }}!",
            "{% if said == truth %}Right.{% else %}No, {{ truth }}.{% endif %} {{ question }}",
        )
        .unwrap();
        assert_eq!(good.opening("A?"), "Guess.\nA?");
        assert_eq!(good.reply("no"), ("I guess no!".into(), 8));
        assert_eq!(good.feedback(&labels, 1, 1, &[], "B?"), "Right. B?");
        assert_eq!(good.feedback(&labels, 1, 0, &[], "B?"), "No, yes. B?");

        let key = |result: Result<Texts, TextMistake>| result.unwrap_err().key;
        assert_eq!(key(texts("Guess.", "{{ label }}", "{{ question }}")), "opening");
        assert_eq!(key(texts("{{ question }}", "{{ label }} {{ label }}", "{{ question }}")), "reply");
        assert_eq!(key(texts("{{ question }}", "{{ label }}", "{{ truth }}")), "feedback");
        assert_eq!(key(texts("{{ question }}", "{{ label }}", "{{ lie }}{{ question }}")), "feedback");
        assert_eq!(key(texts("{{ question }}", "{{ label }}", "Thanks. {{ question }}")), "feedback");
        // Of two options, whether it was right tells as much.
        let right = "{% if said == truth %}Right.{% else %}Wrong.{% endif %} {{ question }}";
        texts("{{ question }}", "{{ label }}", right).unwrap();
        let three: Arc<[String]> = ["a", "b", "c"].map(String::from).into();
        let templates = TextTemplates { opening: "{{ question }}", reply: "{{ label }}", feedback: right };
        let wrong = Texts::new(templates, std::iter::once(&three), &[]).unwrap_err();
        assert!(wrong.message.contains("reads alike for \"b\" and \"c\""), "{}", wrong.message);
    }
}
