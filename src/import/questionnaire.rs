//! Questionnaires that people filled in: a table with a person a row and an item of the Big-Five questionnaire a column.
//!
//! Columns are known by the item's number in the official order (`1` to `50`, `Q1`, `item 1`), by trait and number
//! within it (`E1`, `EXT1`, `N3`, `EST3`, …) or by the item's words. Answers are as given, 1 to 5, whatever the item's
//! key. Commas, semicolons or tabs part the fields.

use std::path::Path;

use anyhow::{Context as _, Result, ensure};

use super::{Imported, Person, follow_all, stem};
use crate::episode::Problem;
use crate::error::usage;
use crate::rng;
use crate::teacher::{Follower, TeacherConfig, WorldName};
use crate::world::World;
use crate::world::ipip::{ITEMS, Trait};

/// What a column holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Column {
    Item(usize),
    User,
    Other,
}

/// Reads a table of answers, and lets the teacher of `config`, whose world must be the questionnaire, go through each
/// person's. Items come in the order that the config says; what a person left out (empty, `NA` or `0`) is not asked.
///
/// # Errors
/// If the file cannot be read, or no items are found in its header, or the config makes no sense.
pub fn questionnaire(path: &Path, config: &TeacherConfig, seed: u64) -> Result<Imported> {
    let mut config = config.clone();
    ensure!(
        config.world == WorldName::Personality,
        usage("a questionnaire is of the personality world: leave teacher.world out, or say \"personality\"")
    );
    let world = config.world_of_people()?;
    let at = || format!("cannot read {}", path.display());
    let bytes = std::fs::read(path).with_context(at)?;
    let bytes = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(&bytes);
    let mut table = csv::ReaderBuilder::new().delimiter(delimiter(bytes)).flexible(true).from_reader(bytes);
    let header = table.headers().with_context(|| format!("{}, line 1", path.display()))?.clone();
    let columns = columns(&header).with_context(|| format!("{}, line 1", path.display()))?;
    let found = columns.iter().filter(|c| matches!(c, Column::Item(_))).count();
    let mut imported = Imported::default();
    if found < ITEMS.len() {
        imported.notes.push(format!("{found} of the {} items are in the table", ITEMS.len()));
    }
    let stem = stem(path);
    let mut people = Vec::new();
    let mut line = 1;
    for (row, record) in table.records().enumerate() {
        let record = match record {
            Ok(record) => record,
            Err(error) => {
                let line = error.position().map_or(line + 1, |p| p.line() as usize);
                imported.problems.push(Problem { line, message: what(&error) });
                continue;
            }
        };
        line = record.position().map_or(line + 1, |p| p.line() as usize);
        match answers(&record, &columns, &header) {
            Ok(answers) => {
                let answers = asked(&world, &config, answers, seed, row);
                let named = columns.iter().position(|c| *c == Column::User).and_then(|c| record.get(c));
                let user = named.map(str::trim).filter(|name| !name.is_empty());
                let user = user.map_or_else(|| format!("row {}", row + 1), str::to_owned);
                people.push(Person { id: format!("{stem}-{:06}", row + 1), user, said: answers });
            }
            Err(found) => {
                imported.problems.extend(found.into_iter().map(|message| Problem { line, message }));
            }
        }
    }
    ensure!(
        !people.is_empty() || !imported.problems.is_empty(),
        "{}: there is nobody in the table",
        path.display()
    );
    let teacher = Follower::new(&config, &world, seed)?;
    follow_all(&teacher, &people, |answers| Ok(answers.clone()), &mut imported);
    Ok(imported)
}

/// The mark between fields: of those possible, the one that the header has most of.
fn delimiter(bytes: &[u8]) -> u8 {
    let header = bytes.split(|b| *b == b'\n').next().unwrap_or_default();
    let count = |mark: u8| header.iter().filter(|b| **b == mark).count();
    [b',', b';', b'\t'].into_iter().max_by_key(|mark| (count(*mark), *mark == b',')).unwrap_or(b',')
}

fn what(error: &csv::Error) -> String {
    match error.kind() {
        csv::ErrorKind::Utf8 { err, .. } => format!("field {} is not UTF-8 text", err.field() + 1),
        _ => error.to_string(),
    }
}

fn columns(header: &csv::StringRecord) -> Result<Vec<Column>> {
    let columns: Vec<Column> = header.iter().map(column).collect();
    let items: Vec<(usize, usize)> = (columns.iter().enumerate())
        .filter_map(|(c, column)| if let Column::Item(item) = column { Some((*item, c)) } else { None })
        .collect();
    ensure!(
        items.len() >= 2,
        "no items of the questionnaire are among the columns. They may be called by number (1 to 50, Q1, item 1), by \
         trait (E1 to E10, A1, C1, N1 or ES1, O1; EXT1, AGR1, CSN1, EST1, OPN1), or by their words"
    );
    for (i, (item, c)) in items.iter().enumerate() {
        if let Some((_, other)) = items[..i].iter().find(|(of, _)| of == item) {
            anyhow::bail!(
                "the columns {:?} and {:?} are the same item: {}",
                header.get(*other).unwrap_or_default(),
                header.get(*c).unwrap_or_default(),
                ITEMS[*item].text
            );
        }
    }
    Ok(columns)
}

fn column(name: &str) -> Column {
    let letters = |text: &str| -> String {
        text.chars().filter(|c| c.is_alphanumeric()).flat_map(char::to_lowercase).collect()
    };
    let plain = letters(name);
    if ["id", "user", "userid", "person", "participant", "participantid", "respondent"]
        .contains(&plain.as_str())
    {
        return Column::User;
    }
    let digits = plain.trim_start_matches(|c: char| !c.is_ascii_digit());
    let prefix = &plain[..plain.len() - digits.len()];
    if let Ok(number) = digits.parse::<usize>() {
        let of = |t: Trait, count: usize| {
            let item = Trait::ALL.iter().position(|other| *other == t)? + Trait::ALL.len() * (number - 1);
            (number <= count).then_some(item)
        };
        let each = ITEMS.len() / Trait::ALL.len();
        let item = match prefix {
            _ if number == 0 => None,
            "" | "q" | "item" | "ipip" | "question" => (number <= ITEMS.len()).then(|| number - 1),
            "e" | "ext" | "extraversion" => of(Trait::Extraversion, each),
            "a" | "agr" | "agreeableness" => of(Trait::Agreeableness, each),
            "c" | "con" | "csn" | "conscientiousness" => of(Trait::Conscientiousness, each),
            "n" | "neu" | "neuroticism" | "es" | "est" | "emotionalstability" => {
                of(Trait::EmotionalStability, each)
            }
            "o" | "ope" | "opn" | "openness" | "int" | "intellect" | "imagination" => {
                of(Trait::Intellect, each)
            }
            _ => None,
        };
        return item.map_or(Column::Other, Column::Item);
    }
    let same = |item: &crate::world::ipip::Item| {
        let words = letters(item.text);
        words == plain || words.strip_prefix('i') == Some(plain.as_str())
    };
    ITEMS.iter().position(same).map_or(Column::Other, Column::Item)
}

/// The answer to each item, or all that is wrong with a row.
fn answers(
    record: &csv::StringRecord,
    columns: &[Column],
    header: &csv::StringRecord,
) -> Result<Vec<Option<usize>>, Vec<String>> {
    let mut answers = vec![None; ITEMS.len()];
    let mut problems = Vec::new();
    if record.len() != columns.len() {
        problems.push(format!("{} fields, where the header has {}", record.len(), columns.len()));
        return Err(problems);
    }
    for (c, (field, column)) in record.iter().zip(columns).enumerate() {
        let Column::Item(item) = column else { continue };
        match field.trim() {
            "" | "NA" | "N/A" | "NaN" | "null" | "NULL" | "." | "0" => {}
            text => match text.parse::<f64>().ok().filter(|x| (1.0..=5.0).contains(x) && x.fract() == 0.0) {
                Some(answer) => answers[*item] = Some(answer as usize - 1),
                None => problems.push(format!(
                    "column {:?} is {text:?}, answers are 1 to 5 (empty, NA or 0: not answered)",
                    header.get(c).unwrap_or_default()
                )),
            },
        }
    }
    if problems.is_empty() && answers.iter().all(Option::is_none) {
        problems.push("nothing was answered".into());
    }
    if problems.is_empty() { Ok(answers) } else { Err(problems) }
}

/// The items that a person answered, in the order in which they are asked.
fn asked(
    world: &World,
    config: &TeacherConfig,
    answers: Vec<Option<usize>>,
    seed: u64,
    row: usize,
) -> Vec<(crate::world::Question, usize)> {
    let order = world.bank(&mut rng::stream(seed, "import.questions", row as u64));
    let given = order.into_iter().filter_map(|item| Some((item, answers[item]?)));
    let given = given.take(config.rounds.unwrap_or(usize::MAX)).enumerate();
    given.filter_map(|(i, (item, answer))| Some((world.item(item, i + 1)?, answer))).collect()
}
